"""Keeps a claim alive from a thread of its own, and hears in every reply what is wanted of the job."""

import logging
import threading

from jobs.states import Desired
from queue_app.records import Claim
from queue_app.store import JobStore, StoreUnreachable

_log = logging.getLogger(__name__)

#: While Redis is away it is asked more often: the lease is running out.
_RETRY_SECONDS = 2.0


class Lease(threading.Thread):
    """Renews until `end()`. An unreachable store changes nothing: the job goes on, the next try comes soon."""

    def __init__(self, store: JobStore, claim: Claim, renew_seconds: float) -> None:
        super().__init__(name=f"lease-{claim.job_id}", daemon=True)
        #: What the store wanted of the job when it last answered.
        self.desired = Desired.RUN
        self._store = store
        self._claim = claim
        self._seconds = renew_seconds
        self._over = threading.Event()

    @property
    def lost(self) -> bool:
        """True once the job belongs to somebody else: nothing more may be written."""
        return self.desired is Desired.LOST

    def run(self) -> None:
        """Renew, wait, renew again."""
        pause = self._seconds
        while not self._over.wait(pause) and not self.lost:
            try:
                self.desired = self._store.renew(self._claim)
                pause = self._seconds
            except StoreUnreachable:
                pause = min(self._seconds, _RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - the lease must outlive any surprise
                _log.exception("the lease of %s could not be renewed", self._claim.job_id)

    def end(self) -> None:
        """Renew no more; the lease runs out unless the job was finished or given back."""
        self._over.set()
