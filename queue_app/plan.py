"""What a submission would do, worked out before anything is started: commit, size, need in bytes, queue, takers.

A plan reads the repository and the model's configuration; it writes nothing and starts nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.devices import ANY, GIB, TIERS_GIB, USABLE_FRACTION, Device, queue_name, tier_for_need
from backends.errors import ExitCode, RepotuneError
from jobs.repository import Resolved, list_files, shown
from jobs.sources import Sources, resolve_all
from jobs.spec import Config
from queue_app.expected_time import ExpectedTime, expected_time
from queue_app.model_facts import ModelFacts, find_model_facts
from queue_app.settings import load_settings

if TYPE_CHECKING:
    from queue_app.records import WorkerRecord

#: A dataset job holds a tokenizer and one shard at a time, whatever the model.
DATASET_NEED_BYTES = GIB


class TooLarge(RepotuneError):
    """No machine that could be bought holds this training."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asked for: the flags of `submit`, the configuration already read."""

    repository: str
    config: Config
    ref: str | None = None
    device: str = ANY
    #: 0 to 9, 9 first.
    priority: int = 5
    name: str = ""
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Need:
    """The memory that the training needs on one device."""

    device: Device
    #: Bytes by part, in the order in which people read them.
    parts: Mapping[str, int]
    total_bytes: int
    #: GiB; None where no tier holds it.
    tier: int | None
    #: Where no tier holds it: what to change, as a clause.
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Code:
    """The repositories of a request, pinned."""

    sources: Sources
    #: Files at the commit of the main repository; None where only the worker will see them (a URL).
    files: int | None
    #: Bytes of those files.
    size_bytes: int | None

    @property
    def source(self) -> Resolved:
        """The main repository."""
        return self.sources.main


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a submission would do."""

    name: str
    sources: Sources
    #: Files at the commit of the main repository; None where only the worker will see them (a URL).
    files: int | None
    #: Bytes of those files.
    size_bytes: int | None
    model: ModelFacts
    #: One for each device that may run it; empty where the model's shape is not known.
    needs: tuple[Need, ...]
    device: str
    tier: int
    #: On the devices of this machine that may run it and have run such trainings before.
    times: tuple[ExpectedTime, ...] = ()

    @property
    def source(self) -> Resolved:
        """The main repository."""
        return self.sources.main

    @property
    def queue(self) -> str:
        """The queue of the training job."""
        return queue_name(self.device, self.tier)

    @property
    def need_bytes(self) -> int:
        """The largest need among the devices that may run it; 0 where it is not known."""
        return max((need.total_bytes for need in self.needs), default=0)


def read_code(request: Request) -> Code:
    """Pin the repositories of `request` and measure the main one.

    Raises:
        RepositoryError: the repository or the ref cannot be read.
        InvalidSpec: keys of the configuration do not go together on a device.
    """
    sources = resolve_all(request.repository, request.ref, config_of_dataset(request).dataset.also)
    files, size = _measure(sources.main)
    return Code(sources=sources, files=files, size_bytes=size)


def make_plan(request: Request, code: Code | None = None, model: ModelFacts | None = None) -> Plan:
    """Work out what submitting `request` would do.

    Args:
        request: What a person asked for.
        code: Where it was read before.
        model: Where it was looked for before.

    Raises:
        RepositoryError: the repository or the ref cannot be read.
        InvalidSpec: keys of the configuration do not go together on a device.
        TooLarge: no tier holds the training.
    """
    code = code or read_code(request)
    wanted = request.config.model
    facts, needs = _needs(request, model or find_model_facts(wanted.name, wanted.revision))
    home = load_settings().home
    configs = {need.device: request.config.for_device(need.device) for need in needs}
    times = [expected_time(one, facts.config, device, code.size_bytes, home) for device, one in configs.items()]
    return Plan(
        name=request.name or repository_name(request.repository),
        sources=code.sources,
        files=code.files,
        size_bytes=code.size_bytes,
        model=facts,
        needs=needs,
        device=request.device,
        tier=_tier(needs),
        times=tuple(time for time in times if time),
    )


def config_of_dataset(request: Request) -> Config:
    """The configuration of the dataset job: as it holds on the training's device, whoever builds the dataset."""
    if request.device != ANY:
        return request.config.for_device(Device(request.device))
    return Config.model_validate(request.config.model_dump(exclude={device.value for device in Device}))


def repository_name(repository: str) -> str:
    """The last part of a path or URL, without `.git`: what people call the job."""
    text = shown(repository)
    if Path(text).expanduser().exists():
        text = str(Path(text).expanduser().resolve())
    return text.rstrip("/").removesuffix(".git").rstrip("/").replace(":", "/").rsplit("/", 1)[-1] or "repository"


def dataset_queue() -> str:
    """The queue of dataset jobs: any device, the smallest tier."""
    tiers = [tier_for_need(DATASET_NEED_BYTES, device) or TIERS_GIB[0] for device in Device]
    return queue_name(ANY, max(tiers))


def takers(queue: str, workers: Sequence["WorkerRecord"]) -> list["WorkerRecord"]:
    """The workers that serve `queue`."""
    return [worker for worker in workers if queue in worker.queues]


def why_not(queue: str, worker: "WorkerRecord") -> str:
    """One clause: why `worker` does not serve `queue`."""
    device, _, size = queue.partition(".")
    tiers = [int(name.partition(".")[2].rstrip("g")) for name in worker.queues if name.startswith(f"{device}.")]
    if not tiers:
        return f"worker {worker.name} serves {worker.device}, not {device}"
    return f"worker {worker.name} serves {device} up to {max(tiers)} GB, the job needs a {size.rstrip('g')} GB machine"


def why_nobody(queue: str, workers: Sequence["WorkerRecord"]) -> str:
    """One sentence: why no registered worker takes jobs from `queue`, and what to do; empty when one does."""
    if takers(queue, workers):
        return ""
    device, _, size = queue.partition(".")
    start = (
        f"start `device-worker{'' if device == ANY else f' --device {device}'}` on a machine with {size.rstrip('g')} GB"
    )
    if not workers:
        return f"No worker is registered: {start}."
    return f"No worker serves the queue {queue} ({'; '.join(why_not(queue, worker) for worker in workers)}): {start}."


def _measure(source: Resolved) -> tuple[int | None, int | None]:
    if source.git_dir is None:
        return None, None
    sizes = [entry.size for entry in list_files(source.git_dir, source.commit) if entry.mode.startswith("100")]
    return len(sizes), sum(max(size, 0) for size in sizes)


def _needs(request: Request, facts: ModelFacts) -> tuple[ModelFacts, tuple[Need, ...]]:
    """The need on each device; where the configuration tells no shape, none, and the facts with that problem."""
    devices = tuple(Device) if request.device == ANY else (Device(request.device),)
    configs = {device: request.config.for_device(device) for device in devices}
    if facts.config is None:
        return facts, ()
    try:
        return facts, tuple(_need(facts.config, config, device) for device, config in configs.items())
    except (ValueError, TypeError, ZeroDivisionError) as error:
        problem = f"its configuration does not tell its shape ({str(error).rstrip('.')})"
        return replace(facts, config=None, problem=problem, is_path=False), ()


def _need(model_config: Mapping[str, Any], config: Config, device: Device) -> Need:
    """The least that the trainer can do with: it lowers the micro-batch and recomputes where memory is short."""
    from jobs.fitting import estimator_of, recipe_of, what_would_fit

    estimator = estimator_of(model_config)
    recipe = replace(recipe_of(config, device), micro_batch=1)
    parts = estimator(recipe)
    tier = tier_for_need(parts.total, device)
    return Need(
        device=device,
        parts={field.name: int(getattr(parts, field.name)) for field in fields(parts)},
        total_bytes=parts.total,
        tier=tier,
        remedy="" if tier else what_would_fit(recipe, int(TIERS_GIB[-1] * GIB * USABLE_FRACTION[device]), estimator),
    )


def _tier(needs: Sequence[Need]) -> int:
    """The tier that is enough on whichever of the devices takes the job."""
    for need in needs:
        if need.tier is None:
            raise TooLarge(
                f"The training needs {need.total_bytes / GIB:.1f} GiB on {need.device}, more than any machine of "
                f"{TIERS_GIB[-1]} GB offers: {need.remedy}."
            )
    return max((need.tier or TIERS_GIB[0] for need in needs), default=TIERS_GIB[0])
