"""Runs the embedded broker for as long as somebody uses it. Started by `queue_app.embedded` as a file of its own.

Every user holds a shared lock on `users.lock`, which the kernel drops when the user ends, however it ends. The guard
asks for the same lock exclusively, and gets it when the last user is gone: then the broker stops. Standard library
only, and nothing of ours: the guard stays small, and needs no path to the packages.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_STOP_SECONDS = 20.0
#: Set before the broker is asked to leave: its end is then no reason to leave before the note of it is gone.
_stopping = threading.Event()


def main() -> None:
    """Read the assignment (JSON on stdin), start the broker where told to, wait for its last user, stop it."""
    assignment = json.load(sys.stdin)
    folder = Path(assignment["folder"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (folder / "guard.lock").open("w") as guard, (folder / "users.lock").open("a") as users:
        fcntl.flock(guard, fcntl.LOCK_EX)
        server = _start(assignment)
        try:
            fcntl.flock(users, fcntl.LOCK_EX)
        finally:
            _stopping.set()
            _stop(assignment, server)
            (folder / "broker.json").unlink(missing_ok=True)


def _start(assignment: dict[str, Any]) -> "subprocess.Popen[bytes] | None":
    """Start the broker; None where it runs already, its guard having been killed."""
    if not assignment["binary"]:
        return None
    # The configuration holds the password: neither the command line nor a file shows it.
    server = subprocess.Popen([assignment["binary"], "-"], stdin=subprocess.PIPE)
    if server.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            server.stdin.write(assignment["config"].encode())
            server.stdin.close()
    threading.Thread(target=_leave_with, args=(server,), daemon=True).start()
    return server


def _leave_with(server: "subprocess.Popen[bytes]") -> None:
    """A broker that ended by itself needs no guard."""
    code = server.wait()
    if not _stopping.is_set():
        os._exit(1 if code else 0)


def _stop(assignment: dict[str, Any], server: "subprocess.Popen[bytes] | None") -> None:
    """Ask the broker to save and leave; one that does not is killed."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", assignment["port"]), timeout=5) as talk:
        talk.sendall(f"AUTH {assignment['password']}\r\nSHUTDOWN\r\n".encode())
        talk.settimeout(_STOP_SECONDS)
        while talk.recv(1024):
            pass
    if server is not None:
        server.kill()


if __name__ == "__main__":
    main()
