"""Hands the numbers of a run to the trackers that `output.sinks` names, beside `metrics.jsonl` and the events.

The trackers are Accelerate's. Each has a thread of its own and a queue of fixed length, so that a slow one, or a
network that is away, is never waited for; the first error of a tracker is told once, and that tracker is off. A
resumed training goes on with the same run: its id travels in the checkpoint (`TrainingState.tracker_runs`).
"""

import importlib
import importlib.util
import json
import math
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.events import Evaluated, Event, Note, StepDone
from jobs.metrics import FILE as METRICS
from jobs.run import Run
from jobs.spec import Config

#: Steps that may wait for a slow tracker; what comes beyond is left out and counted.
QUEUE_STEPS = 1000
#: How long the end of a run waits for all trackers together to take what is left.
CLOSE_SECONDS = 30.0

_NOT_INSTALLED = "it is not installed here: pip install {name}"
_STEP_KEYS = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "memory_bytes")


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a tracker is opened for."""

    project: str
    #: Folder of the job on this machine.
    output: Path
    #: Id of the run to go on with; None begins one.
    run: str | None
    #: Steps done so far.
    step: int
    #: The configuration, flat: what the tracker shows as parameters.
    parameters: Mapping[str, Any]

    @property
    def folder_name(self) -> str:
        """The project as the name of a folder."""
        return re.sub(r"[^\w.-]+", "-", self.project).strip(".-") or "repotune"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A tracker that took off."""

    tracker: Any
    #: What a resumed training names to go on with this run.
    run: str
    #: Whether the tracker has nothing of the steps before; then they are handed to it again.
    fresh: bool
    #: One line for people; may be empty.
    told: str = ""
    #: Whether the tracker drops what is of an earlier step than the newest it has.
    goes_forward: bool = False


@contextmanager
def feeding(run: Run) -> Iterator[None]:
    """Hand the numbers that `run` tells to its trackers, too, until it ends."""
    if not run.config.output.sinks:
        yield
        return
    context = run.context
    sinks = Sinks.open(run.config, context.output, run.state.tracker_runs, run.state.step, context.emit)

    def emit(event: Event) -> None:
        context.emit(event)
        sinks.heard(event)

    run.context = replace(context, emit=emit)
    try:
        yield
    finally:
        run.context = context
        sinks.close()


class Sinks:
    """The trackers of a run. Called from the thread that trains; none of its methods raises."""

    def __init__(self, sinks: list["_Sink"], runs: dict[str, Any], emit: Callable[[Event], None]) -> None:
        self._sinks = sinks
        self._runs = runs
        self._emit = emit

    @classmethod
    def open(
        cls, config: Config, output: Path, runs: dict[str, Any], step: int, emit: Callable[[Event], None]
    ) -> "Sinks":
        """Begin to open every tracker of the configuration.

        Args:
            config: As it holds on this device.
            output: Folder of the job; trackers that keep files keep them below.
            runs: Ids of the runs to go on with, by tracker; ids of new ones are added as they become known.
            step: Steps done so far, whose lines are in `metrics.jsonl`.
            emit: Takes notes.
        """
        sinks = [
            _Sink(
                name,
                Session(
                    project=config.output.project,
                    output=output.absolute(),
                    run=runs.get(name),
                    step=step,
                    parameters=_parameters(config),
                ),
            )
            for name in dict.fromkeys(config.output.sinks)
        ]
        for sink in sinks:
            sink.start()
        return cls(sinks, runs, emit)

    def heard(self, event: Event) -> None:
        """Take the numbers of an event, if it has any, and tell what the trackers had to say."""
        if isinstance(event, StepDone):
            numbers = {f"train/{key}": getattr(event, key) for key in _STEP_KEYS}
        elif isinstance(event, Evaluated):
            numbers = {f"{event.split}/loss": event.loss, f"{event.split}/perplexity": event.perplexity}
        else:
            return
        for sink in self._sinks:
            sink.offer(numbers, event.step)
        self._tell()

    def close(self) -> None:
        """Let the trackers take what is left; past `CLOSE_SECONDS` they are left behind."""
        for sink in self._sinks:
            sink.offer_end()
        waited_for = threading.Event()
        threading.Thread(target=self._join, args=(waited_for,), daemon=True).start()
        waited_for.wait(CLOSE_SECONDS)
        for sink in self._sinks:
            sink.tell_losses()
        self._tell()

    def _join(self, done: threading.Event) -> None:
        for sink in self._sinks:
            sink.join()
        done.set()

    def _tell(self) -> None:
        for sink in self._sinks:
            if sink.run_id is not None:
                self._runs[sink.name] = sink.run_id
            while not sink.news.empty():
                level, message = sink.news.get()
                self._emit(Note(level=level, message=message))


class _Sink(threading.Thread):
    """One tracker in its thread. The end of the process does not wait for it."""

    def __init__(self, name: str, session: Session) -> None:
        super().__init__(name=name, daemon=True)
        self.run_id: str | None = None
        #: (level, line for people)
        self.news: queue.Queue[tuple[str, str]] = queue.Queue()
        self._session = session
        self._waiting: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(QUEUE_STEPS)
        self._off = threading.Event()
        self._ending = threading.Event()
        self._lost = 0

    def offer(self, numbers: Mapping[str, float], step: int) -> None:
        """Put numbers in line, unless the tracker is off or the line is full."""
        if self._off.is_set():
            return
        try:
            self._waiting.put_nowait((numbers, step))
        except queue.Full:
            self._lost += 1

    def offer_end(self) -> None:
        """Say that nothing more comes."""
        self._ending.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:  # then it sees `_ending` once it has taken all
            return

    def tell_losses(self) -> None:
        """Tell of what did not arrive."""
        if self.is_alive():
            self.news.put(("warning", f"{self.name} did not take all numbers in time: some of them may be missing"))
        elif self._lost and not self._off.is_set():
            self.news.put(
                ("warning", f"{self.name} was too slow for {self._lost} of the steps: they are missing there")
            )

    def run(self) -> None:
        """Open, log, finish; the first error turns it off."""
        try:
            self._feed(_open(self.name, self._session))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tracker may raise anything and stops nothing
            self._off.set()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            self.news.put(("warning", f"{self.name} is off: {reason}. The training and metrics.jsonl go on"))

    def _feed(self, opened: Opened) -> None:
        self.run_id = opened.run
        if opened.told:
            self.news.put(("info", opened.told))
        if opened.fresh:
            for line in _steps_before(self._session):
                opened.tracker.log(_finite({f"train/{key}": line[key] for key in _STEP_KEYS}), step=line["step"])
        newest = self._session.step
        for numbers, step in self._offered():
            late = opened.goes_forward and step < newest
            newest = max(newest, step)
            opened.tracker.log(_finite(_of_base(numbers) if late else numbers), step=newest if late else step)
        opened.tracker.finish()

    def _offered(self) -> Iterator[tuple[Mapping[str, float], int]]:
        while True:
            if self._ending.is_set() and self._waiting.empty():
                return
            item = self._waiting.get()
            if item is None:
                return
            yield item


def _of_base(numbers: Mapping[str, float]) -> dict[str, float]:
    """Under names of their own: what comes late is the loss of the base, which is measured after some steps."""
    return {name.replace("/", "/base_", 1): value for name, value in numbers.items()}


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Without NaN and infinity, which some trackers refuse."""
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


def _steps_before(session: Session) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` up to the checkpoint; the training may be writing one beyond meanwhile."""
    if not session.step:
        return []
    written = (session.output / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [json.loads(line) for line in written if line.endswith("\n")]
    return [line for line in lines if line["step"] <= session.step]


def _parameters(config: Config) -> dict[str, Any]:
    """Every key but what names places: trackers may be public."""
    values = config.model_dump(mode="json", exclude={"mps": True, "cuda": True, "cpu": True, "dataset": {"also"}})
    flat = {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
    name = Path(config.model.name).expanduser()
    flat["model.name"] = name.name if name.exists() else config.model.name
    return {key: value if isinstance(value, str | int | float) else json.dumps(value) for key, value in flat.items()}


# ---- The trackers ----------------------------------------------------------------------------------------------------


def tracker_class(name: str) -> Any:
    """Accelerate's class for a tracker."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the classes refuse to log without; in a training it is there already
    return LOGGER_TYPE_TO_CLASS[name]


def is_installed(name: str) -> bool:
    """Whether the library of a tracker can be imported here."""
    return importlib.util.find_spec(name) is not None


def _open(name: str, session: Session) -> Opened:
    if not is_installed(name):
        raise ModuleNotFoundError(_NOT_INSTALLED.format(name=name))
    opened = _OPENERS[name](session)
    if opened.fresh and name != "tensorboard":  # there, parameters become a run of their own
        opened.tracker.store_init_configuration(dict(session.parameters))
    return opened


def _tensorboard(session: Session) -> Opened:
    """Files in OUT/tensorboard; what an earlier attempt wrote beyond the checkpoint is hidden."""
    folder, run = session.output / "tensorboard", session.run or session.folder_name
    known = any((folder / run).glob("events.*"))
    options = {"purge_step": session.step + 1} if known else {}
    tracker = tracker_class("tensorboard")(run, logging_dir=str(folder), **options)
    tracker.start()
    return Opened(
        tracker=tracker,
        run=run,
        fresh=not known or session.run is None,
        told=f"TensorBoard files go to {folder}" if not known else "",
    )


def _wandb(session: Session) -> Opened:
    """Without a login it writes offline, and never asks for one."""
    run = session.run or secrets.token_hex(4)
    offline = "WANDB_MODE" not in os.environ and not _has_wandb_login()
    tracker = tracker_class("wandb")(
        session.project,
        id=run,
        resume="allow",
        dir=os.environ.get("WANDB_DIR", str(session.output)),
        **({"mode": "offline"} if offline else {}),
    )
    tracker.start()
    told = f"Weights & Biases has no login here: offline in {session.output / 'wandb'}, to be sent by `wandb sync`"
    told = told if offline else ""
    return Opened(tracker=tracker, run=run, fresh=session.run is None, told=told, goes_forward=True)


def _has_wandb_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc
    from urllib.parse import urlsplit

    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _trackio(session: Session) -> Opened:
    run = session.run or f"{session.folder_name}-{secrets.token_hex(4)}"
    tracker = tracker_class("trackio")(session.project, name=run, resume="allow")
    tracker.start()
    return Opened(tracker=tracker, run=run, fresh=session.run is None)


def _mlflow(session: Session) -> Opened:
    """The server that MLFLOW_TRACKING_URI names, else files in OUT, which another machine does not have."""
    known = session.run is not None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        # MLflow 3 gives its plain files up, and mlflow-skinny has no database: there they must be allowed.
        has_database = is_installed("sqlalchemy")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        place = session.output / ("mlflow.db" if has_database else "mlruns")
        known = known and place.exists()
        uri = f"sqlite:///{place}" if has_database else place.as_uri()
        importlib.import_module("mlflow").set_tracking_uri(uri)
    tracker = tracker_class("mlflow")(experiment_name=session.project, run_id=session.run if known else None)
    tracker.start()
    return Opened(tracker=tracker, run=tracker.tracker.info.run_id, fresh=not known)


_OPENERS: Mapping[str, Callable[[Session], Opened]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}
