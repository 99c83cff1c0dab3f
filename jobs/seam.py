"""The seam of a run that goes on with its base held in another way: the held-out loss on both sides of it.

The adapter was trained to mend one base and now sits on another, so the loss jumps by what their rounding differs. The
gap is measured, told, and kept with the run: a curve across a seam is two curves.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import replace

from backends.contract import LoadedModel
from backends.devices import Device
from backends.errors import RepotuneError
from backends.free_memory import release_unused
from jobs.continuation import BASE
from jobs.evaluation import HeldOut, evaluation_rows, measure
from jobs.events import Seam, StageStarted
from jobs.execution import Execution
from jobs.loss import NextTokenLoss
from jobs.run import OldBase, Run
from jobs.saving import leave
from jobs.shards import PackedDataset
from jobs.snapshot import TrainingState
from jobs.spec import Config, QuantizationSection

_NOT_MEASURED = "it was not measured when the checkpoint was written"


def look_back(
    before: Execution, state: TrainingState, config: Config, data: PackedDataset, load: Callable[[Config], LoadedModel]
) -> OldBase:
    """The base that the run computed on before, with its held-out loss where that is known or can be had here.

    Called before the new base is loaded: the two need not fit into memory together.

    Args:
        before: As the checkpoint tells.
        state: Of the checkpoint.
        config: As it holds now.
        data: Of the run.
        load: Loads the checkpoint's adapter on the base that a configuration asks for.
    """
    measured = next((one for one in reversed(state.measurements) if one.step == state.step), None)
    then = _quantization(before, config.quantization)
    if measured or then is config.quantization:
        return OldBase(execution=before, held_out=measured, reason=_NOT_MEASURED)
    try:
        loaded = load(config.model_copy(update={"quantization": then}))
    except RepotuneError as error:  # no such backend here, or no memory for it
        return OldBase(execution=before, held_out=None, reason=str(error).removesuffix("."))
    measured = _measure(loaded, data, config, state.step, lambda _done, _total: None)
    device = Device(loaded.torch_device.type)
    del loaded
    gc.collect()
    release_unused(device)
    return OldBase(execution=before, held_out=measured, reason="")


def measure_gap(run: Run) -> None:
    """Where the base is another one than before, measure the held-out loss on it and tell the gap.

    Raises:
        StopRequested: asked to leave.
    """
    old, run.old_base = run.old_base, None
    if old is None or not _is_other(old.execution, run.execution):
        return
    before, after = _names(old.execution, run.execution)
    state = run.state
    run.context.emit(StageStarted(stage="evaluate", message=f"held-out loss after {state.step} steps on {after}"))
    with run.averaged():
        held_out = _measure_now(run)
    with run.loaded.model.disable_adapter():
        base = _measure_now(run)
    numbers = _numbers(state, old.held_out, held_out, base)
    _keep(state, old.held_out, held_out, base)
    _carry_best(state, old.held_out, held_out)
    run.happened("seam", _sentence(before, after, old, held_out), numbers=numbers)
    run.context.emit(
        Seam(
            step=state.step,
            before=before,
            after=after,
            loss_before=old.held_out.loss if old.held_out else None,
            loss_after=held_out.loss,
        )
    )


def _quantization(before: Execution, now: QuantizationSection) -> QuantizationSection:
    """How the base was held before; `now` where that is the same."""
    then = now.model_copy(update={"kind": before.kind, "compute": before.compute})
    if before.group_size is not None:
        then = then.model_copy(update={"group_size": before.group_size})
    same = (then.kind, then.compute, then.chosen_group) == (now.kind, now.compute, now.chosen_group)
    return now if same else then


def _is_other(before: Execution, now: Execution) -> bool:
    others = [name for name in BASE if name != "group_size"]
    return _has_other_groups(before, now) or any(getattr(before, name) != getattr(now, name) for name in others)


def _has_other_groups(before: Execution, now: Execution) -> bool:
    return before.group_size not in {None, now.group_size}


def _names(before: Execution, now: Execution) -> tuple[str, str]:
    """What to call the two bases, e.g. `int8 on mps` and `nf4 on cuda`; with more words only where these are alike."""
    first, second = _name(before), _name(now)
    if first != second:
        return first, second
    if _has_other_groups(before, now):
        return f"{first} with {_group(before)}", f"{second} with {_group(now)}"
    return f"{first} in {before.dtype}", f"{second} in {now.dtype}"


def _name(one: Execution) -> str:
    return f"{one.kind if one.compute == 'exact' else f'{one.kind} in integers'} on {one.device}"


def _group(one: Execution) -> str:
    return "one scale a row" if one.group_size == "row" else f"groups of {one.group_size}"


def _sentence(before: str, after: str, old: OldBase, held_out: HeldOut) -> str:
    words = f"The run goes on with {after}, before it was {before}: the held-out loss is {held_out.loss:.4f} now"
    if old.held_out is None:
        return f"{words}; before, it is not known ({old.reason})"
    return f"{words}, {old.held_out.loss:.4f} before ({held_out.loss - old.held_out.loss:+.4f})"


def _numbers(state: TrainingState, old: HeldOut | None, new: HeldOut, base: HeldOut) -> dict[str, float]:
    """With the adapter on both sides, and of the base alone: gains are measured from the base that they stand on."""
    first = next((one for one in state.measurements if one.step == 0), None)
    named = {"loss_before": old, "loss_after": new, "base_loss_before": first, "base_loss_after": base}
    return {name: one.loss for name, one in named.items() if one is not None and math.isfinite(one.loss)}


def _keep(state: TrainingState, old: HeldOut | None, new: HeldOut, base: HeldOut) -> None:
    """Both points of the curve; and the base as it is now where it was not measured before it changed."""
    if all(one.step for one in state.measurements):
        state.measurements.insert(0, replace(base, step=0))
    if old is not None and old not in state.measurements:
        state.measurements.append(old)
    state.measurements.append(new)


def _carry_best(state: TrainingState, old: HeldOut | None, new: HeldOut) -> None:
    """Losses on two bases do not compare: the best one is moved by the gap, or begun anew where that is not known."""
    if state.best is not None:
        gap = None if old is None else new.loss - old.loss
        state.best = None if gap is None else state.best | {"loss": state.best["loss"] + gap}


def _measure_now(run: Run) -> HeldOut:
    def on_progress(_done: int, _total: int) -> None:
        if run.context.should_stop():
            leave(run)

    return _measure(run.loaded, run.data, run.config, run.state.step, on_progress)


def _measure(
    loaded: LoadedModel, data: PackedDataset, config: Config, step: int, on_progress: Callable[[int, int], None]
) -> HeldOut:
    """The same rows as in training, one at a time: memory may be short for more."""
    numbers = evaluation_rows(len(data.held_out), config.training.evaluation_rows)
    return measure(
        NextTokenLoss.of(loaded.model, loaded.torch_device),
        [data.held_out[number] for number in numbers],
        micro_batch=1,
        device=loaded.torch_device,
        step=step,
        on_progress=on_progress,
    )
