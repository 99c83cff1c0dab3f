"""Sends the lines of a growing file to the store: in order, each once, for as long as it takes.

The file is the buffer. Nothing is read from it before the lines ahead have arrived, so a store that is away for hours
costs no memory, and no line is lost.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from queue_app.store import StoreUnreachable
from workers.process import LineTail

_log = logging.getLogger(__name__)
_PERIOD_SECONDS = 0.25
_RETRY_SECONDS = 2.0

#: Lines of one call: small enough for a Lua script to be quick.
_BATCH = 200

#: send(lines, number of the first line) -> False when the job is no longer ours
Send = Callable[[Sequence[str], int], bool]


class Outbox:
    """One file and the call that takes its lines."""

    def __init__(self, tail: LineTail, send: Send) -> None:
        self._tail = tail
        self._send = send
        self._pending: list[str] = []
        self._next = 1

    def pump(self) -> bool:
        """Send what has come. True when nothing is left to send.

        Raises:
            StoreUnreachable: the same lines are sent again by the next call.
        """
        self._pending = self._pending or self._tail.read()
        while self._pending:
            batch = self._pending[:_BATCH]
            self._send(batch, self._next)
            self._next += len(batch)
            del self._pending[: len(batch)]
        return not (self._pending or self._more())

    def _more(self) -> bool:
        self._pending = self._tail.read()
        return bool(self._pending)


class Relay(threading.Thread):
    """Pumps outboxes until they are drained or abandoned."""

    def __init__(self, job_id: str, outboxes: Sequence[Outbox]) -> None:
        super().__init__(name=f"relay-{job_id}", daemon=True)
        self._outboxes = outboxes
        self._draining = threading.Event()
        self._abandoned = threading.Event()

    def run(self) -> None:
        """Pump, wait, pump again; leave when draining and nothing is left."""
        while not self._abandoned.is_set():
            pause = _PERIOD_SECONDS
            try:
                last_round = self._draining.is_set()
                drained = [outbox.pump() for outbox in self._outboxes]
                if last_round and all(drained):
                    return
            except StoreUnreachable:
                pause = _RETRY_SECONDS
            except Exception:  # noqa: BLE001 - a report must not end the job it reports on
                _log.exception("events or logs could not be sent")
                pause = _RETRY_SECONDS
            self._abandoned.wait(pause)

    def drain(self) -> None:
        """The files grow no more: leave once all their lines have arrived."""
        self._draining.set()

    def abandon(self) -> None:
        """Leave now."""
        self._abandoned.set()
