"""The dashboard: loopback, always behind a password."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("flower")

from queue_app.monitor import MonitorRefused, read_login

REPOTUNE = Path(sys.executable).parent / "repotune"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url, user="", password=""):
    request = urllib.request.Request(url)  # noqa: S310 - ours
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
            return reply.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def wait_for_listener(port, process, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nothing listens on {port}; exit code {process.poll()}")


@pytest.fixture
def monitor(valkey_url, tmp_path):
    port = free_port()
    environment = os.environ | {"REPOTUNE_BROKER_URL": valkey_url, "PYTHONUNBUFFERED": "1"}
    environment.pop("REPOTUNE_MONITOR_AUTH", None)
    process = subprocess.Popen(
        [REPOTUNE, "monitor", "--port", str(port), "--json"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_listener(port, process)
    yield process, port
    process.kill()
    process.communicate()


def test_the_dashboard_asks_for_the_password_that_was_printed(monitor):
    process, port = monitor
    told = json.loads(process.stdout.readline())
    assert told["url"] == f"http://127.0.0.1:{port}"
    assert get(told["url"] + "/workers") == 401
    assert get(told["url"] + "/api/workers") == 401
    assert get(told["url"] + "/workers", told["user"], "wrong") == 401
    assert get(told["url"] + "/workers", told["user"], told["password"]) == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_it_quietly(monitor, number):
    process, _ = monitor
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in {0, 130}
    assert "Traceback" not in errors


def test_a_taken_port_is_a_sentence(valkey_url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [REPOTUNE, "monitor", "--port", port],
            env=os.environ | {"REPOTUNE_BROKER_URL": valkey_url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr


def test_the_login_may_stand_in_the_file_of_settings(valkey_url, tmp_path):
    (tmp_path / ".env").write_text("REPOTUNE_MONITOR_AUTH=half\n")
    environment = os.environ | {"REPOTUNE_BROKER_URL": valkey_url}
    environment.pop("REPOTUNE_MONITOR_AUTH", None)
    done = subprocess.run(
        [REPOTUNE, "monitor"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count("REPOTUNE_MONITOR_AUTH is not of the form user:password")) == (2, 1)


def test_an_address_that_others_reach_needs_a_password_of_ones_own():
    with pytest.raises(MonitorRefused, match=r"Others can reach 0\.0\.0\.0"):
        read_login("", "0.0.0.0")  # noqa: S104
    assert read_login("me:secret", "0.0.0.0").password == "secret"  # noqa: S104


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_gets_a_fresh_password_each_time(address):
    first, second = read_login("", address), read_login("", address)
    assert first.generated
    assert first.password != second.password


@pytest.mark.parametrize("text", ["me", "me:", ":secret"])
def test_half_a_login_is_refused(text):
    with pytest.raises(MonitorRefused, match="user:password"):
        read_login(text, "127.0.0.1")
