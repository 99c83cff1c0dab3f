"""Lets a resumed run compute as it did before, so that it gives the numbers of a run that was never interrupted.

The plan is made from the memory that is free at the moment, so the same machine may plan otherwise an hour later; sums
that are divided otherwise differ in their last digits.
"""

from dataclasses import fields, replace

from backends import models
from backends.devices import Device
from backends.free_memory import limit_bytes
from backends.memory import PROCESS_BYTES, MemoryEstimate, Recipe
from jobs.execution import Execution
from jobs.fitting import estimator_of
from jobs.planner import TrainingPlan
from jobs.spec import Config

#: What makes the base another one: the loss itself changes, not its last digits (`jobs.seam`).
BASE = ("kind", "compute", "dtype", "group_size")


def as_before(plan: TrainingPlan, before: Execution | None, config: Config, *, lessened: bool) -> TrainingPlan:
    """The plan with the micro-batch and recomputation of `before`, where base and device are the same and it fits.

    Args:
        plan: Made from the memory at hand.
        before: How the run computed when the checkpoint was written; None where that is not known.
        config: As it holds on the device; recomputation that it sets on or off holds.
        lessened: Memory ran out since: nothing may take more than planned.
    """
    if before is None or not _is_same_place(plan.recipe, before):
        return plan
    recipe = _recipe(plan.recipe, before, config, lessened=lessened)
    if recipe == plan.recipe:
        return plan
    modelled = None
    if plan.shape is not None:
        model_config = models.load_config(config.model.name, config.model.revision)
        modelled = estimator_of(model_config)(recipe)
        if not _fits(modelled, plan, Device(recipe.device)):
            return plan
    state = "on" if recipe.checkpointing else "off"
    note = (
        f"Computes as before: a micro-batch of {recipe.micro_batch}, gradient checkpointing {state}; the effective "
        "batch stays"
    )
    return replace(plan, recipe=recipe, modelled=modelled, notes=(note,))


def changes(before: Execution, now: Execution) -> str | None:
    """A sentence that tells what a resumed run computes otherwise on the same base; None where all is as before."""
    names = [one.name for one in fields(Execution) if one.name not in BASE]
    different = [name for name in names if getattr(before, name) != getattr(now, name)]
    if not different:
        return None
    listed = ", ".join(f"{name} was {getattr(before, name)} and is {getattr(now, name)}" for name in different)
    return (
        f"This run computes otherwise than before ({listed}): its losses may differ in their last digits from those "
        "of a run that was never interrupted"
    )


def _is_same_place(recipe: Recipe, before: Execution) -> bool:
    return (recipe.device, recipe.quantization, recipe.compute) == (before.device, before.kind, before.compute)


def _recipe(planned: Recipe, before: Execution, config: Config, *, lessened: bool) -> Recipe:
    micro_batch, checkpointing = before.micro_batch, before.checkpointing
    if lessened:
        micro_batch = min(micro_batch, planned.micro_batch)
        checkpointing = checkpointing or planned.checkpointing
    if config.training.gradient_checkpointing != "auto":
        checkpointing = planned.checkpointing
    return replace(planned, micro_batch=micro_batch, checkpointing=checkpointing)


def _fits(modelled: MemoryEstimate, plan: TrainingPlan, device: Device) -> bool:
    factor = plan.measured.memory_factor
    need = modelled if factor is None else modelled.corrected(factor)
    # What this process holds already is part of the estimate.
    return need.total <= limit_bytes(device) + PROCESS_BYTES[device]
