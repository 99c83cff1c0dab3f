"""Shows what a worker does as gauges that Prometheus fetches, and only where REPOTUNE_METRICS_PORT names a port.

They tell of the machine and of the numbers of the job that runs, never of code, paths or names of repositories; still,
anybody who reaches the port can read them, so it listens on loopback unless REPOTUNE_METRICS_ADDRESS says otherwise.
"""

from typing import Any

from backends.devices import Machine
from backends.errors import ExitCode, RepotuneError
from jobs.events import Checkpointed, Evaluated, Event, Failed, Finished, Healed, StepDone, Stopped

#: Gauge of a job -> (field of StepDone, what it says).
_STEP_GAUGES = {
    "repotune_job_step": ("step", "Optimizer steps done."),
    "repotune_job_steps": ("total_steps", "Optimizer steps in all."),
    "repotune_job_loss": ("loss", "Training loss of the last step, nats."),
    "repotune_job_learning_rate": ("lr", "Learning rate of the last step."),
    "repotune_job_gradient_norm": ("grad_norm", "Norm of the gradient of the last step, before clipping."),
    "repotune_job_tokens": ("tokens", "Label tokens trained on, over all attempts."),
    "repotune_job_tokens_per_second": ("tokens_per_second", "Label tokens per second of the last steps."),
    "repotune_job_memory_bytes": ("memory_bytes", "Memory of the device in use."),
    "repotune_job_eta_seconds": ("eta_seconds", "Time left as far as it is known."),
}
_ENDS = {Finished: "succeeded", Failed: "failed", Stopped: "stopped"}


class GaugesRefused(RepotuneError):
    """The port for Prometheus cannot be listened on."""

    exit_code = ExitCode.USAGE


class Served:
    """A port where Prometheus is answered."""

    def __init__(self, server: Any, thread: Any) -> None:
        self._server = server
        self._thread = thread

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Gauges:
    """The gauges of one worker."""

    def __init__(self, worker: str, machine: Machine) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Info

        self.registry = CollectorRegistry()
        info = Info("repotune_worker", "The worker and its machine.", registry=self.registry)
        info.info({"worker": worker, "device": machine.device.value, "device_name": machine.device_name})
        self._busy = Gauge("repotune_worker_busy", "1 while a job runs.", registry=self.registry)
        self._heard = Gauge(
            "repotune_worker_last_event_seconds", "When the last event came, Unix time.", registry=self.registry
        )
        self._of_job = {
            name: (field, Gauge(name, text, ["job"], registry=self.registry))
            for name, (field, text) in _STEP_GAUGES.items()
        }
        self._held_out = Gauge(
            "repotune_job_evaluation_loss", "Loss on a split, nats.", ["job", "split"], registry=self.registry
        )
        self._checkpoints = Counter("repotune_checkpoints", "Checkpoints written.", registry=self.registry)
        self._healed = Counter("repotune_healed", "Steps redone for want of memory.", registry=self.registry)
        self._ended = Counter("repotune_jobs", "Attempts that ended, by how.", ["end"], registry=self.registry)
        self._job = ""

    def serve(self, address: str, port: int) -> "Served":
        """Answer Prometheus from a thread of its own until the process ends, or until the answer is closed.

        Raises:
            GaugesRefused: the port is taken, or the address is none of this machine.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, addr=address, registry=self.registry)
        except OSError as error:
            raise GaugesRefused(
                f"{address}:{port} cannot be listened on ({error.strerror or error}): choose another "
                "REPOTUNE_METRICS_PORT or REPOTUNE_METRICS_ADDRESS, or set the port to 0."
            ) from error
        return Served(server, thread)

    def began(self, job_id: str) -> None:
        """A job began."""
        self._job = job_id
        self._busy.set(1)

    def ended(self) -> None:
        """It ended, one way or another: its gauges are gone."""
        self._busy.set(0)
        for _, gauge in self._of_job.values():
            gauge.clear()
        self._held_out.clear()
        self._job = ""

    def heard(self, event: Event) -> None:
        """Take the numbers of an event of the job that runs."""
        self._heard.set(event.time)
        if isinstance(event, StepDone):
            for field, gauge in self._of_job.values():
                value = getattr(event, field)
                if value is not None:
                    gauge.labels(self._job).set(value)
        elif isinstance(event, Evaluated):
            self._held_out.labels(self._job, event.split).set(event.loss)
        elif isinstance(event, Checkpointed):
            self._checkpoints.inc()
        elif isinstance(event, Healed):
            self._healed.inc()
        elif type(event) in _ENDS:
            self._ended.labels(_ENDS[type(event)]).inc()
