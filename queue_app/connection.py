"""The way to the queue: settings, and the job store that they name. With `--local`, the embedded broker's."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from queue_app.settings import Settings, load_settings
from queue_app.store import JobStore, StoreTimes


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Settings and the store they lead to."""

    settings: Settings
    store: JobStore


def connect(*, local: bool = False) -> Connection:
    """The store that the settings name, or that of the embedded broker on this machine; does not talk to it yet.

    Raises:
        InvalidSettings: an environment variable has an impossible value.
        StoreUnreachable: `local`, and the embedded broker does not start.
    """
    if not local:
        return _to(load_settings())
    embedded = connect_embedded()
    connection = embedded.__enter__()
    # The broker ends with its last user: this process is one until it leaves.
    atexit.register(embedded.__exit__, None, None, None)
    return connection


def _to(settings: Settings) -> Connection:
    return Connection(settings=settings, store=JobStore.connect(settings.broker_url, store_times(settings)))


def store_times(settings: Settings) -> StoreTimes:
    """The store's patience as the settings say."""
    return StoreTimes(
        lease=settings.lease_seconds,
        suspect=settings.suspect_seconds,
        gap=settings.lease_seconds,
        worker=settings.worker_seconds,
    )


@contextmanager
def connect_embedded() -> Iterator[Connection]:
    """The store of the embedded broker, which is started if need be and runs at least as long as this context."""
    from queue_app.embedded import EmbeddedBroker

    settings = load_settings()
    with EmbeddedBroker(settings.home) as broker:
        yield _to(load_settings(broker_url=broker.url))
