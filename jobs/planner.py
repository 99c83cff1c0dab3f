"""How this machine will train: the micro-batch and the recomputation that are fastest in the memory at hand.

Decided before anything is loaded. What the configuration fixes holds: the effective batch, the largest micro-batch,
recomputation where it is set on or off. Nothing that does not fit is begun.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends import calibration, kinds, models
from backends.calibration import Measured
from backends.devices import GIB, Device
from backends.errors import ExitCode, RepotuneError
from backends.free_memory import free_bytes, limit_bytes
from backends.memory import PROCESS_BYTES, MemoryEstimate, Recipe
from backends.shape import Shape, read_shape
from jobs.fitting import Fit, estimator_of, first_that_fits, least, options, recipe_of, what_would_fit
from jobs.spec import Config

#: Part of the free memory that a choice may fill while a smaller one is there: other programs grow too.
_COMFORTABLE = 0.8


class DoesNotFit(RepotuneError):
    """No way that the configuration allows fits the memory of this machine."""

    exit_code = ExitCode.DEVICE_UNAVAILABLE


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What was decided, and from what."""

    recipe: Recipe
    #: None: the configuration does not tell the architecture's sizes.
    shape: Shape | None
    #: As modelled, without this machine's correction; None as above.
    modelled: MemoryEstimate | None
    #: What this machine measured of such trainings before.
    measured: Measured
    #: Under which it keeps what it measures of this one.
    kind: str
    #: Lines for people: each choice and its reason.
    notes: tuple[str, ...]


def plan_training(
    config: Config,
    device: Device,
    sequence_length: int,
    *,
    micro_batch_divisor: int = 1,
    calibration_file: Path | None = None,
) -> TrainingPlan:
    """Choose micro-batch and recomputation.

    Args:
        config: As it holds on `device`.
        device: Where to train; it must be there.
        sequence_length: Of the dataset.
        micro_batch_divisor: After a lack of memory: the micro-batch is divided by it, and recomputation comes on where
            there is no more to divide.
        calibration_file: What this machine measured of earlier trainings.

    Raises:
        DoesNotFit: nothing that the configuration allows fits; the sentence says what would.
        ModelNotLoadable: the model has no configuration.
    """
    model_config = models.load_config(config.model.name, config.model.revision)
    wanted = recipe_of(config, device, sequence_length)
    most = max(1, wanted.micro_batch // micro_batch_divisor)
    choice = config.training.gradient_checkpointing
    if choice == "auto" and micro_batch_divisor > wanted.micro_batch:
        choice = "on"
    quantization = config.quantization
    way = quantization.kind if quantization.compute == "exact" else f"{quantization.kind} in integers"
    kind = kinds.kind_of_training(device, _family(model_config), way)
    measured = calibration.read(calibration_file, kind)
    recipe = replace(wanted, micro_batch=most)
    try:
        shape = read_shape(model_config)
        fit, reason = _choose(config, model_config, recipe, choice, measured.memory_factor)
    except (ValueError, TypeError, ZeroDivisionError):
        return _unknown(recipe, choice, measured, kind)
    return TrainingPlan(
        recipe=fit.recipe,
        shape=shape,
        modelled=estimator_of(model_config)(fit.recipe),
        measured=measured,
        kind=kind,
        notes=(reason, *_micro_batch_note(config, fit.recipe.micro_batch)),
    )


def _choose(config: Config, model_config: Any, recipe: Recipe, choice: str, factor: float | None) -> tuple[Fit, str]:
    """The fastest way that fits comfortably, or else the smallest if that fits at all; and a line that says why."""
    device = Device(recipe.device)
    optimization = config.optimization
    ways = options(model_config, recipe, optimization.micro_batch * optimization.accumulation, choice)
    estimator = estimator_of(model_config, factor)
    # What this process holds already is part of the estimate.
    free, limit = (bytes_of(device) + PROCESS_BYTES[device] for bytes_of in (free_bytes, limit_bytes))
    fit = first_that_fits(ways, int(free * _COMFORTABLE), estimator) or least(ways, estimator)
    if fit.need.total > limit:
        raise DoesNotFit(_sentence(fit, limit, what_would_fit(fit.recipe, limit, estimator)))
    state = "on" if fit.recipe.checkpointing else "off"
    if config.training.gradient_checkpointing == choice != "auto":
        return fit, f"Gradient checkpointing is {state}, as configured: {_takes(fit, free)}"
    if not fit.recipe.checkpointing:
        return fit, f"Gradient checkpointing is off: without it {_takes(fit, free)}"
    without = least([replace(way, checkpointing=False) for way in ways], estimator)
    return fit, (
        f"Gradient checkpointing is on: without it the training would take about {without.need.total / GIB:.1f} GiB; "
        f"with it {_takes(fit, free)}"
    )


def _takes(fit: Fit, free: int) -> str:
    return f"the training takes about {fit.need.total / GIB:.1f} GiB, and {free / GIB:.1f} GiB may be used"


def _sentence(fit: Fit, limit: int, remedy: str) -> str:
    return (
        f"The training needs about {fit.need.total / GIB:.1f} GiB of memory even with a micro-batch of "
        f"{fit.recipe.micro_batch}, and {limit / GIB:.1f} GiB may be used: {remedy}."
    )


def _micro_batch_note(config: Config, taken: int) -> tuple[str, ...]:
    wanted = config.optimization.micro_batch
    if taken == wanted:
        return ()
    effective = wanted * config.optimization.accumulation
    return (f"The micro-batch is {taken} instead of {wanted} to save memory; the effective batch stays {effective}",)


def _unknown(recipe: Recipe, choice: str, measured: Measured, kind: str) -> TrainingPlan:
    """Recomputation where nobody forbids it: the careful choice."""
    on = choice != "off"
    said = ", as configured" if choice != "auto" else ": the memory need of this architecture is not known"
    return TrainingPlan(
        recipe=replace(recipe, checkpointing=on),
        shape=None,
        modelled=None,
        measured=measured,
        kind=kind,
        notes=(f"Gradient checkpointing is {'on' if on else 'off'}{said}",),
    )


def _family(model_config: Any) -> str:
    return str(getattr(model_config, "model_type", "") or "unknown")
