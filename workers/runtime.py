"""What every part of a running worker needs: the store, the queue, the artifacts, the machine, and two stop flags."""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from backends.devices import Machine
from queue_app.artifacts import ArtifactStore
from queue_app.records import Ticket
from queue_app.settings import Settings
from queue_app.store import JobStore, StoreUnreachable
from queue_app.tickets import publish
from workers.gauges import Gauges

_log = logging.getLogger(__name__)
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One running worker."""

    name: str
    machine: Machine
    settings: Settings
    store: JobStore
    artifacts: ArtifactStore
    #: The Celery app that tickets are published with.
    app: Any
    #: Folder for the files of the job that runs; emptied when the worker starts.
    workroot: Path
    #: None: no port was named.
    gauges: Gauges | None = None
    #: Set: take no more jobs, let the running one save and go back to the queue.
    leaving: threading.Event = field(default_factory=threading.Event)
    #: Set: end the running job without saving.
    now: threading.Event = field(default_factory=threading.Event)
    #: Id of the job that runs; empty when idle.
    running: list[str] = field(default_factory=list)

    def publish(self, tickets: Iterable[Ticket]) -> None:
        """Publish tickets. One that does not get out is found by the reconciler."""
        for ticket in tickets:
            try:
                publish(self.app, ticket)
            except Exception as error:  # noqa: BLE001 - kombu raises whatever its transport does
                _log.warning("ticket %s was not published, the reconciler will: %s", ticket.task_id, error)

    def insist(self, call: Callable[[], _Answer], give_up: Callable[[], bool]) -> _Answer | None:
        """Make a call to the store until it answers; None when `give_up()` came first."""
        attempt = 0
        while not give_up():
            try:
                return call()
            except StoreUnreachable as error:
                _log.warning("the job store is away, trying again: %s", error)
                self.now.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1
        return None
