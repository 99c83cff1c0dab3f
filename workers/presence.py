"""Makes a worker known to everybody and keeps saying that it lives."""

import logging
import os
import socket
import threading

from backends.devices import queues_served
from queue_app.records import WorkerRecord
from queue_app.store import StoreUnreachable
from workers.runtime import Runtime

_log = logging.getLogger(__name__)

#: Beats per time to live: two may get lost.
_BEATS = 4


class Presence(threading.Thread):
    """Registers the worker, then beats until `leave()`."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(name="presence", daemon=True)
        self._runtime = runtime
        self._over = threading.Event()
        self._wake = threading.Event()

    def register(self) -> None:
        """Make the worker known. Raises StoreUnreachable."""
        machine = self._runtime.machine
        self._runtime.store.register(
            WorkerRecord(
                name=self._runtime.name,
                device=machine.device.value,
                device_name=machine.device_name,
                memory_bytes=machine.memory_bytes,
                queues=tuple(queues_served(machine)),
                versions=machine.versions,
                pid=os.getpid(),
                host=socket.gethostname(),
            )
        )

    def run(self) -> None:
        """Beat, wait, beat again."""
        pause = self._runtime.settings.worker_seconds / _BEATS
        while not self._over.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            if self._over.is_set():
                return
            try:
                self._beat()
            except StoreUnreachable:
                continue
            except Exception:  # noqa: BLE001 - the next beat may succeed
                _log.exception("the heartbeat failed")

    def tell(self) -> None:
        """Beat now: a job began or ended."""
        self._wake.set()

    def leave(self) -> None:
        """Beat no more, and be forgotten."""
        self._over.set()
        self._wake.set()
        try:
            self._runtime.store.unregister(self._runtime.name)
        except StoreUnreachable:
            _log.warning("the store is away: it forgets this worker after a while by itself")

    def _beat(self) -> None:
        job_id = next(iter(self._runtime.running), "")
        if not self._runtime.store.heartbeat(self._runtime.name, "busy" if job_id else "idle", job_id):
            self.register()
