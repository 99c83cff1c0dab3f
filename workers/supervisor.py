"""Runs one claimed attempt of a job: inputs, trainer process, checkpoints, and the report of how it ended.

It decides; others do: `lease` renews and hears what is wanted, `relay` brings events and logs to the store, `uploads`
brings checkpoints into the artifact store, each in its thread. An unreachable store or artifact store stops nothing:
only LOST does, and then nothing more is written.
"""

import logging
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from backends.calibration import FILE as CALIBRATION
from backends.errors import ExitCode, RepotuneError
from jobs.events import Event, Failed, Finished, Note, StageStarted, Stopped
from jobs.spec import Config, JobSpec, Kind
from jobs.states import Cause, Desired, State
from queue_app.records import Claim
from workers.assignment import EVENTS, LOG, OUTPUT, REPORT
from workers.failure import failure_of
from workers.inputs import prepare
from workers.lease import Lease
from workers.memory import free_bytes, shortage
from workers.process import LineTail, TrainerProcess
from workers.relay import Outbox, Relay
from workers.runtime import Runtime
from workers.uploads import CheckpointUploads, link_aside
from workers.watch import End, Limits, Stop, Watch

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2

#: A trainer that dies without a word is started again so often.
_DEATHS_FORGIVEN = 3
_DEATH = "The trainer process died"


_STOP_FOR = {Desired.CANCEL: Stop.CANCEL, Desired.PAUSE: Stop.PAUSE, Desired.PREEMPT: Stop.PREEMPT}


class Supervisor:
    """One attempt of one job."""

    def __init__(self, runtime: Runtime, claim: Claim) -> None:
        self._runtime = runtime
        self._claim = claim
        self._workdir = runtime.workroot / claim.job_id
        self._lease = Lease(runtime.store, claim, runtime.settings.renew_seconds)
        resumed = claim.record.checkpoint or {}
        #: The checkpoint of the best held-out loss in the artifact store, which stays.
        self._best: str | None = resumed.get("best")
        #: Checkpoints there that this attempt knows of, oldest first, each once.
        self._arrived: list[str] = list(dict.fromkeys(filter(None, (self._best, resumed.get("artifact")))))

    def run(self) -> None:
        """Run the attempt to its end and report it. Raises nothing that a ticket could be blamed for."""
        self._lease.start()
        try:
            self._fresh_workdir()
            self._attempt()
        except Exception as error:  # noqa: BLE001 - a job that cannot be run must say so, not vanish
            self._refused(error)
        finally:
            self._lease.end()
            shutil.rmtree(self._workdir, ignore_errors=True)

    def _fresh_workdir(self) -> None:
        shutil.rmtree(self._workdir, ignore_errors=True)
        self._workdir.mkdir(parents=True, mode=0o700)

    def _attempt(self) -> None:
        runtime, record = self._runtime, self._claim.record
        busy = shortage(runtime.machine, record.need_bytes)
        if busy:
            self._give_back(None, busy, delay=runtime.settings.busy_seconds)
            return
        relay, uploads = self._helpers()
        try:
            end = self._train(uploads)
            self._let_arrive(end, relay, uploads)
            self._report(end)
        finally:
            relay.abandon()
            uploads.abandon()

    def _train(self, uploads: CheckpointUploads) -> End:
        """Fetch the inputs, run the trainer to its end."""
        runtime, record = self._runtime, self._claim.record
        self._tell(StageStarted(stage="fetch", message="inputs of the job"))
        if free_bytes(runtime.machine.device) is None:
            self._tell(Note(message="Free GPU memory is not known here: install nvidia-ml-py to have it checked."))
        device = runtime.machine.device.value
        assignment = replace(
            prepare(record, device, self._workdir, runtime.store, runtime.artifacts),
            calibration=str(runtime.settings.home / CALIBRATION),
        )
        if self._must_drop() or self._wanted():
            return End(last=None, stop=self._wanted(), exit_code=0, log="")
        trainer = TrainerProcess(assignment, self._workdir, runtime.settings.cache)
        try:
            heard = runtime.gauges.heard if runtime.gauges else None
            return Watch(trainer, self._wanted, uploads, self._limits(), heard).until_end(give_up=self._must_drop)
        finally:
            trainer.kill()

    def _tell(self, event: Event) -> None:
        """Add an event of our own, before the trainer adds its."""
        with (self._workdir / EVENTS).open("a", encoding="utf-8") as file:
            file.write(event.to_json() + "\n")

    def _helpers(self) -> tuple[Relay, CheckpointUploads]:
        store, claim = self._runtime.store, self._claim
        relay = Relay(
            claim.job_id,
            [
                Outbox(LineTail(self._workdir / EVENTS), partial(store.emit, claim)),
                Outbox(LineTail(self._workdir / LOG), partial(store.logs_append, claim)),
            ],
        )
        uploads = CheckpointUploads(claim.job_id, self._upload_checkpoint, self._workdir / "uploads")
        relay.start()
        uploads.start()
        return relay, uploads

    def _config(self) -> Config:
        """The job's configuration as it holds on this machine."""
        spec = JobSpec.model_validate_json(self._claim.record.spec)
        return spec.config.for_device(self._runtime.machine.device)

    def _limits(self) -> Limits:
        hours = self._config().training.max_wall_hours
        settings = self._runtime.settings
        return Limits(
            wall_seconds=hours * 3600 if hours else float("inf"),
            stall_seconds=settings.stall_minutes * 60,
            stop_seconds=settings.stop_seconds,
        )

    # ---- what is wanted ----

    def _wanted(self) -> Stop | None:
        """Why the job should stop, by the store or because this worker leaves."""
        wanted = _STOP_FOR.get(self._lease.desired)
        return wanted or (Stop.PREEMPT if self._runtime.leaving.is_set() else None)

    def _must_drop(self) -> bool:
        """True when the trainer must end at once, and nothing is waited for."""
        return self._lease.lost or self._runtime.now.is_set()

    # ---- the end ----

    def _let_arrive(self, end: End, relay: Relay, uploads: CheckpointUploads) -> None:
        """Wait until events and logs have arrived, and checkpoints too, or patience with the artifact store is over."""
        relay.drain()
        while relay.is_alive() and not self._must_drop():
            relay.join(_POLL_SECONDS)
        settings = self._runtime.settings
        give_up_at = time.monotonic() + (settings.stop_seconds if end.stop else settings.stall_minutes * 60)
        uploads.close()
        while uploads.is_alive() and not self._must_drop() and time.monotonic() < give_up_at:
            uploads.join(_POLL_SECONDS)

    def _report(self, end: End) -> None:
        if self._lease.lost:
            _log.warning("%s belongs to somebody else now: nothing more is written", self._claim.job_id)
        elif isinstance(end.last, Finished):
            self._succeed(end.last.result)
        elif end.stop in _ENDS:
            self._end(*_ENDS[end.stop])
        elif end.stop is Stop.PREEMPT or isinstance(end.last, Stopped) or self._runtime.now.is_set():
            self._give_back(Cause.PREEMPTED, f"Worker {self._runtime.name} left; the job goes on from its checkpoint.")
        elif isinstance(end.last, Failed):
            self._fail(end.last)
        else:
            self._died(end)

    @property
    def _output(self) -> str:
        """The artifact that holds what this attempt leaves to people."""
        return f"{self._claim.job_id}/{self._claim.fence}/output"

    def _succeed(self, result: dict[str, Any]) -> None:
        # Checkpoints have their own artifacts; the result is what a person pulls.
        folder = link_aside(self._workdir / OUTPUT, self._workdir / "result", leave_out=("checkpoints",))
        give_up_at = time.monotonic() + self._runtime.settings.stall_minutes * 60
        while not self._must_drop():
            try:
                self._runtime.artifacts.put_folder(folder, self._output)
            except (RepotuneError, OSError) as error:
                _log.warning("the result of %s does not reach the artifact store: %s", self._claim.job_id, error)
                if time.monotonic() > give_up_at:
                    raise
                self._runtime.now.wait(5)
            else:
                self._finish(State.SUCCEEDED, None, "", {**result, "artifact": self._output})
                return

    def _end(self, state: State, cause: Cause | None, reason: str) -> None:
        """End the job without a result; a training that ended for good leaves its report and metrics to people."""
        self._finish(state, cause, reason, None if state is State.PAUSED else self._remains())

    def _remains(self) -> dict[str, Any]:
        """What is left of a training that got so far as to write a report, if the artifact store takes it."""
        if not (self._workdir / OUTPUT / REPORT).is_file():
            return {}
        try:
            folder = link_aside(self._workdir / OUTPUT, self._workdir / "remains", leave_out=("checkpoints", "adapter"))
            self._runtime.artifacts.put_folder(folder, self._output)
        except (RepotuneError, OSError) as error:
            _log.warning("the report of %s does not reach the artifact store: %s", self._claim.job_id, error)
            return {}
        return {"report": REPORT, "artifact": self._output}

    def _fail(self, failed: Failed) -> None:
        saving = self._next_saving() if failed.cause == Cause.OUT_OF_MEMORY and not failed.final else ""
        if saving:
            self._give_back(Cause.OUT_OF_MEMORY, f"Out of memory {saving}.", halve_memory=True)
        else:
            self._end(State.FAILED, Cause(failed.cause), failed.message)

    def _next_saving(self) -> str:
        """How the next attempt takes less memory than this one, as `jobs.planner` will; "" where it cannot."""
        record = self._claim.record
        if JobSpec.model_validate_json(record.spec).kind is not Kind.TRAINING:
            return ""
        config = self._config()
        micro_batch = config.optimization.micro_batch >> record.memory_halvings
        if micro_batch > 1:
            # Less where the planner or the trainer took less already.
            return f"with a micro-batch of at most {micro_batch}: going on with at most half of that"
        if micro_batch == 1 and config.training.gradient_checkpointing == "auto":
            return "with a micro-batch of 1: going on with gradient checkpointing"
        return ""

    def _died(self, end: End) -> None:
        """No last word: killed from outside, most often by the kernel for want of memory."""
        saving = self._next_saving() if end.memory_kill else ""
        if saving:
            reason = f"Out of memory {saving}: {end.memory_kill}."
            self._give_back(Cause.OUT_OF_MEMORY, reason, halve_memory=True)
            return
        how = f"signal {-end.exit_code}" if end.exit_code < 0 else f"exit code {end.exit_code}"
        killed = " The system may have run out of memory." if end.exit_code == -signal.SIGKILL else ""
        sentence = f"{_DEATH} ({how}): {end.memory_kill}." if end.memory_kill else f"{_DEATH} ({how}).{killed}"
        cause = Cause.OUT_OF_MEMORY if end.memory_kill else Cause.WORKER_LOST
        if self._deaths_before() < _DEATHS_FORGIVEN:
            self._give_back(Cause.WORKER_LOST, f"{sentence} The job goes on from its checkpoint.")
        else:
            times = _DEATHS_FORGIVEN + 1
            self._end(State.FAILED, cause, f"{sentence} That was time {times}. Its last words: {end.log}")

    def _deaths_before(self) -> int:
        """How often a trainer of this job died since the job last failed, as the store's own events tell."""
        deaths = 0
        after = "0"
        while page := self._runtime.insist(
            partial(self._runtime.store.events, self._claim.job_id, after), self._must_drop
        ):
            for after, event in page:  # noqa: B007 - the last id is where the next page begins
                if event.get("state") == State.FAILED:
                    deaths = 0
                deaths += int(str(event.get("reason", "")).startswith(_DEATH))
        return deaths

    def _refused(self, error: Exception) -> None:
        """The attempt could not be made. An artifact store that is away is waited for; all else is the job's end."""
        _log.warning("%s: %s", self._claim.job_id, error, exc_info=not isinstance(error, RepotuneError))
        if isinstance(error, RepotuneError) and error.exit_code == ExitCode.UNREACHABLE:
            self._give_back(None, str(error), delay=self._runtime.settings.busy_seconds)
            return
        failed = failure_of(error)
        self._finish(State.FAILED, Cause(failed.cause), failed.message)

    # ---- calls to the store, made until it answers ----

    def _finish(self, state: State, cause: Cause | None, reason: str, result: dict[str, Any] | None = None) -> None:
        finish = partial(self._runtime.store.finish, self._claim, state, cause, reason, result)
        self._runtime.publish(self._runtime.insist(finish, self._must_drop) or [])

    def _give_back(self, cause: Cause | None, reason: str, delay: float = 0.0, *, halve_memory: bool = False) -> None:
        requeue = partial(self._runtime.store.requeue, self._claim, cause, reason, delay, halve_memory)
        # Even a worker that must end now tries once: the job need not wait for the lease then.
        tries = iter((False,))
        ticket = self._runtime.insist(requeue, lambda: next(tries, self._must_drop()))
        self._runtime.publish([ticket] if ticket else [])

    def _upload_checkpoint(self, folder: Path, step: int, best: bool) -> None:
        artifact = self._unused_artifact(step)
        self._runtime.artifacts.put_folder(folder, artifact)
        kept = artifact if best else self._best
        point = partial(self._runtime.store.checkpoint, self._claim, step, artifact, kept)
        if self._runtime.insist(point, self._must_drop):
            self._best = kept
            self._arrived.append(artifact)
            self._forget_old_checkpoints()

    def _unused_artifact(self, step: int) -> str:
        """A name that is not taken: the current checkpoint stays whole until another one is in its place."""
        name = f"{self._claim.job_id}/{self._claim.fence}/checkpoints/step-{step}"
        again = (f"{name}.{number}" for number in count(2))
        return name if name not in self._arrived else next(other for other in again if other not in self._arrived)

    def _forget_old_checkpoints(self) -> None:
        """Keep as many as the trainer does, and the best: a night of checkpoints would fill the artifact store."""
        keep = self._config().output.keep_checkpoints
        old = [artifact for artifact in self._arrived[:-keep] if artifact != self._best]
        self._arrived = [artifact for artifact in self._arrived if artifact not in old]
        for artifact in old:
            try:
                self._runtime.artifacts.remove(artifact)
            except RepotuneError as error:
                _log.warning("old checkpoint %s stays: %s", artifact, error)


#: Stops that end the job: state, cause, sentence.
_ENDS = {
    Stop.CANCEL: (State.CANCELLED, Cause.CANCELLED, "Cancelled by its owner."),
    Stop.PAUSE: (State.PAUSED, None, "Set aside by its owner; it goes on from its checkpoint."),
    Stop.WALL_TIME: (
        State.FAILED,
        Cause.MAX_WALL_TIME,
        "The job ran longer than training.max_wall_hours: raise it and retry; it goes on from its checkpoint.",
    ),
    Stop.STALLED: (
        State.FAILED,
        Cause.STALLED,
        "The job told of no progress for too long (REPOTUNE_STALL_MINUTES): look at its log, then retry.",
    ),
}
