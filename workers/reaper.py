"""Looks after the queue from a thread in every worker: leases that ran out, tickets that got lost.

The store's scripts make it safe that all workers do so at once.
"""

import logging
import threading
import time

from queue_app import tickets
from queue_app.store import StoreUnreachable
from workers.runtime import Runtime

_log = logging.getLogger(__name__)


class Reaper(threading.Thread):
    """Reaps every few seconds, reconciles every half minute (see settings), until the worker leaves."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(name="reaper", daemon=True)
        self._runtime = runtime
        self._reconcile_at = 0.0

    def run(self) -> None:
        """Look, wait, look again."""
        while not self._runtime.leaving.wait(self._runtime.settings.reap_seconds):
            try:
                self.look()
            except StoreUnreachable:
                continue  # nothing can be judged now; the store extends leases when it is back
            except Exception:  # noqa: BLE001 - the next look may succeed
                _log.exception("the queue could not be looked after")

    def look(self) -> None:
        """Reap once, and reconcile when it is time."""
        runtime = self._runtime
        runtime.publish(runtime.store.reap())
        if time.monotonic() >= self._reconcile_at:
            runtime.publish(tickets.missing(runtime.store, runtime.app))
            self._reconcile_at = time.monotonic() + runtime.settings.reconcile_seconds
