"""Serves Flower, Celery's dashboard, on our broker: on loopback, behind a password, nothing kept on disk."""

import ipaddress
import json
import secrets
import signal
import sys
from dataclasses import dataclass

import click
from flower.app import Flower
from flower.options import options
from flower.urls import settings as flower_settings

from backends.errors import ExitCode, RepotuneError
from queue_app.celery_app import make_app
from queue_app.connection import connect
from queue_app.settings import load_settings

AUTH_VARIABLE = "REPOTUNE_MONITOR_AUTH"


class MonitorRefused(RepotuneError):
    """The dashboard cannot be served as asked."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, kw_only=True)
class Login:
    """Who may look."""

    user: str
    password: str
    #: Made up just now: the person has to be told.
    generated: bool


def serve(address: str, port: int, *, local: bool, as_json: bool) -> None:
    """Serve the dashboard until Ctrl-C or SIGTERM.

    Raises:
        MonitorRefused: no password of one's own for an address that others reach, or the port is taken.
        StoreUnreachable: the broker does not answer.
    """
    login = read_login(load_settings().monitor_auth, address)
    connection = connect(local=local)
    connection.store.ping()
    dashboard = make_dashboard(connection.settings.broker_url, address, port, login)
    try:
        dashboard.start_http_server()
    except OSError as error:
        raise MonitorRefused(
            f"{address}:{port} cannot be listened on ({error.strerror}): choose another with --port."
        ) from error
    _announce(f"http://{_in_url(address)}:{port}", login, as_json=as_json)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        dashboard.start()
    except KeyboardInterrupt:
        click.echo("The dashboard is closed.", err=True)
    finally:
        dashboard.stop()


def read_login(text: str, address: str) -> Login:
    """The login that the environment names, or a password made up for an address that only this machine reaches.

    Raises:
        MonitorRefused: the text is not user:password, or there is none and others reach the address.
    """
    user, separator, password = text.partition(":")
    if user and separator and password:
        return Login(user=user, password=password, generated=False)
    if text:
        raise MonitorRefused(f"{AUTH_VARIABLE} is not of the form user:password.")
    if not _is_loopback(address):
        raise MonitorRefused(
            f"Others can reach {address}: set {AUTH_VARIABLE}=user:password first, or listen on 127.0.0.1."
        )
    return Login(user="repotune", password=secrets.token_urlsafe(12), generated=True)


def make_dashboard(broker_url: str, address: str, port: int, login: Login) -> Flower:
    """Flower on our broker; it does not listen yet."""
    options.address = address
    options.port = port
    options.basic_auth = [f"{login.user}:{login.password}"]
    options.persistent = False
    options.max_tasks = 10_000
    return Flower(capp=make_app(broker_url), options=options, **flower_settings)


def _announce(url: str, login: Login, *, as_json: bool) -> None:
    told = f"password {login.password}" if login.generated else f"the password of {AUTH_VARIABLE}"
    click.echo(f"Dashboard at {url}, user {login.user}, {told}. Ctrl-C ends it.", err=as_json)
    if as_json:
        password = login.password if login.generated else None
        click.echo(json.dumps({"url": url, "user": login.user, "password": password}))


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address
