"""What a checkpoint of a training job holds, written to and read from a folder.

    adapter/               PEFT format: loads wherever PEFT does
    optimizer.safetensors  the optimizer's state by parameter name
    state.json             step, tokens, data position, measurements, gradient scaler, what the run is of
    random.json            the state of every random generator
    metrics.jsonl          the lines of every step so far
    ema.safetensors        the weights as trained, where the adapter is their moving average
    best/                  the adapter of the best held-out loss, where that will be the result and is another one

Nothing is pickled and nothing names a device, so a job that began on one machine goes on on another.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from jobs import metrics
from jobs.adapter import save_adapter
from jobs.checkpoint import CheckpointDamaged, newest_whole, step_of, steps, write_json
from jobs.ema import Ema
from jobs.evaluation import HeldOut
from jobs.optimizer import load_optimizer, save_optimizer
from jobs.order import Position
from jobs.randomness import random_state, restore_random_state
from jobs.spec import Config, InvalidSpec

ADAPTER = "adapter"
BEST = "best"
STATE = "state.json"
RANDOM = "random.json"

_Part = TypeVar("_Part", "TrainingState", Position, HeldOut)


@dataclass(kw_only=True)
class TrainingState:
    """How far a training is: all that changes from step to step beside weights and generators."""

    step: int = 0
    #: Label tokens trained on, over all attempts.
    tokens: int = 0
    #: Spent in optimizer steps, over all attempts.
    seconds: float = 0.0
    position: Position = field(default_factory=Position)
    measurements: list[HeldOut] = field(default_factory=list)
    #: Steps skipped in a row because a loss or gradient was not a finite number.
    skipped_in_a_row: int = 0
    # All that follow were added later: a checkpoint without them begins them anew.
    #: Steps skipped for that reason over all attempts.
    skipped: int = 0
    #: What `jobs.execution.Execution.to_json` gave; None in a checkpoint from before it was kept.
    execution: dict[str, Any] | None = None
    #: What `jobs.incident.Incident.to_json` gave, the oldest first.
    incidents: list[dict[str, Any]] = field(default_factory=list)
    #: {"step": int, "loss": float} of the best held-out loss whose checkpoint is kept.
    best: dict[str, Any] | None = None
    #: What early stopping remembers.
    stopping: dict[str, Any] = field(default_factory=dict)
    #: What the estimate of the time left remembers.
    eta: dict[str, Any] = field(default_factory=dict)
    #: By name of the tracker the run that a resumed training goes on with.
    tracker_runs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is of. A checkpoint of something else cannot be gone on from."""

    model: str
    revision: str | None
    rank: int
    alpha: float
    rslora: bool
    target_modules: str
    #: sha256 over the dataset's files.
    dataset: str
    effective_batch: int
    seed: int
    #: All with a default were added later: a checkpoint that does not say had it.
    dora: bool = False
    optimizer: str = "adamw"
    schedule: str = "cosine"
    lora_plus_ratio: float | None = None
    #: "all", "last:N" or the numbers.
    layers: str = "all"
    neftune_alpha: float | None = None
    ema: float | None = None

    @classmethod
    def of(cls, config: Config, manifest: Mapping[str, Any]) -> "Identity":
        """The identity of a run with `config` on the dataset that `manifest` describes."""
        targets, layers = config.lora.target_modules, config.lora.layers
        return cls(
            model=config.model.name,
            revision=config.model.revision,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            rslora=config.lora.rslora,
            target_modules=targets if isinstance(targets, str) else ", ".join(targets),
            dataset=dataset_sha256(manifest),
            effective_batch=config.optimization.micro_batch * config.optimization.accumulation,
            seed=config.training.seed,
            dora=config.lora.dora,
            optimizer=config.optimization.optimizer,
            schedule=config.optimization.schedule,
            lora_plus_ratio=config.optimization.lora_plus_ratio,
            layers=layers if isinstance(layers, str) else ", ".join(map(str, layers)),
            neftune_alpha=config.training.neftune_alpha,
            ema=config.training.ema,
        )


_KEYS = {
    "model": "model.name",
    "revision": "model.revision",
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "rslora": "lora.rslora",
    "target_modules": "lora.target_modules",
    "dataset": "the dataset (sha256)",
    "effective_batch": "optimization.micro_batch x optimization.accumulation",
    "seed": "training.seed",
    "dora": "lora.dora",
    "optimizer": "optimization.optimizer",
    "schedule": "optimization.schedule",
    "lora_plus_ratio": "optimization.lora_plus_ratio",
    "layers": "lora.layers",
    "neftune_alpha": "training.neftune_alpha",
    "ema": "training.ema",
}


_LATER = {one.name: one.default for one in fields(Identity) if one.default is not MISSING}


def dataset_sha256(manifest: Mapping[str, Any]) -> str:
    """One hash of a dataset's shards, the same for two builds of the same rows."""
    files = manifest["files"]
    text = json.dumps({name: files[name]["sha256"] for name in sorted(files)})
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A whole checkpoint of a training job, read."""

    path: Path
    state: TrainingState
    scaler: dict[str, Any] | None
    metrics: bytes

    def restore(self, optimizer: Any, model: Any, scaler: Any) -> None:
        """Put back optimizer, gradient scaler (where both machines have one) and random generators."""
        load_optimizer(optimizer, model, self.path)
        if scaler is not None and self.scaler:
            scaler.load_state_dict(self.scaler)
        restore_random_state(json.loads((self.path / RANDOM).read_text(encoding="utf-8")))


def write_snapshot(
    folder: Path,
    *,
    state: TrainingState,
    identity: Identity,
    config: Config,
    model: Any,
    optimizer: Any,
    scaler: Any,
    metrics_so_far: bytes,
    ema: Ema | None = None,
) -> None:
    """Fill `folder` with all that a resumed run needs."""
    with nullcontext() if ema is None else ema.applied():
        save_adapter(model, folder / ADAPTER, config)
    if ema is not None:
        ema.save(folder)
    save_optimizer(optimizer, model, folder)
    write_json(folder / RANDOM, random_state())
    (folder / metrics.FILE).write_bytes(metrics_so_far)
    scaler_state = scaler.state_dict() if scaler is not None else None
    write_json(folder / STATE, {"state": asdict(state), "identity": asdict(identity), "scaler": scaler_state})


def find_snapshot(resume_from: Path, identity: Identity) -> tuple[Snapshot | None, list[str]]:
    """The checkpoint to go on from, and a sentence for each newer one that is damaged.

    Args:
        resume_from: A checkpoint (`…/step-40`) or a folder of checkpoints, which may be empty or not exist.
        identity: Of the run that wants to go on.

    Raises:
        CheckpointDamaged: there are checkpoints, and none is whole.
        InvalidSpec: the checkpoint is of another model, adapter or dataset.
    """
    folder = resume_from.parent if step_of(resume_from) is not None else resume_from
    candidates = steps(folder)
    path, problems = newest_whole(folder, up_to=step_of(resume_from))
    if path is None and (candidates or step_of(resume_from) is not None):
        reason = problems[0] if problems else f"There is no checkpoint {resume_from}."
        raise CheckpointDamaged(f"{reason} No other one is whole: remove {folder} to start from the beginning.")
    return (read_snapshot(path, identity) if path else None), problems


def read_snapshot(path: Path, identity: Identity) -> Snapshot:
    """Read a whole checkpoint, provided it is of the same run."""
    data = json.loads((path / STATE).read_text(encoding="utf-8"))
    _refuse_another(path, _LATER | data["identity"], asdict(identity))
    state = _known(TrainingState, data["state"])
    state.position = _known(Position, data["state"]["position"])
    state.measurements = [_known(HeldOut, measurement) for measurement in data["state"]["measurements"]]
    content = (path / metrics.FILE).read_bytes()
    return Snapshot(path=path, state=state, scaler=data["scaler"], metrics=content)


def _known(cls: type[_Part], values: Mapping[str, Any]) -> _Part:
    """`values` as a `cls`; what a newer program added is dropped."""
    names = {one.name for one in fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names})


def _refuse_another(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if then.get(name) != value:
            raise InvalidSpec(
                f"Checkpoint {path} cannot be resumed: {_KEYS[name]} was {then.get(name)} then and is {value} now; "
                "put it back, or start a new run in another output folder."
            )
