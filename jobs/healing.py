"""Memory that ran out in the middle of a run: what failed is done again in smaller parts, and nothing else.

The step begins anew with the random numbers that it began with, over the same rows in the same order, with half the
micro-batch: what comes out is what a run with that micro-batch would have computed. Only the memory differs, and the
smaller micro-batch stays. Where there is nothing to halve any more, activations are recomputed if the configuration
leaves that open; after that the run fails with what would fit.

An update of the weights needs little memory beside the optimizer's state, which the first one allocates. A failed first
update is undone and tried once more in memory that was tidied up. A later one may have moved some weights and not
others: it is not repeated, and the run goes on from its last checkpoint instead.
"""

import gc
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from backends import allocator, hardware, loading, models
from backends.devices import Device
from backends.free_memory import limit_bytes, release_unused
from jobs.events import Healed, Note
from jobs.fitting import estimator_of, what_would_fit
from jobs.incident import Incident
from jobs.optimizer import trainable
from jobs.randomness import random_state, restore_random_state
from jobs.run import OutOfMemory, Run, Step
from jobs.stepping import Gradients, gather_gradients, update

_Result = TypeVar("_Result")

#: What would fit must take less than this part of what did not, by the memory model's own measure.
_CLEARLY_LESS = 0.9


class NothingToHalve(OutOfMemory):
    """Memory ran out, and every saving that the configuration allows is made already."""


def step_that_fits(run: Run, rows: Sequence[Any], lr: float) -> Step:
    """Train on `rows` with the learning rate `lr`, in parts as small as memory demands.

    Raises:
        NothingToHalve: not even one row at a time fits; the sentence says what would.
        RuntimeError: memory ran out in an update that cannot be repeated.
    """
    began = time.perf_counter()
    gradients = _gather_that_fits(run, rows)
    _update_that_fits(run, gradients, lr)
    return Step(
        loss=gradients.mean, grad_norm=gradients.norm, tokens=gradients.tokens, seconds=time.perf_counter() - began
    )


def measure_that_fits(run: Run, measure: Callable[[int], _Result]) -> _Result:
    """What `measure` gives for a micro-batch, halved until it fits. It draws no random numbers and keeps no gradients.

    The micro-batch of the training stays: a measurement may come while another program fills the memory.

    Raises:
        NothingToHalve: not even one row at a time fits.
    """
    micro_batch = run.execution.micro_batch
    while True:
        measured, told = attempt(lambda: measure(micro_batch))  # noqa: B023 - called at once
        if told is None:
            return measured  # type: ignore[return-value] # one of the two is there
        tidy_up(run)
        if micro_batch == 1:
            raise NothingToHalve(_sentence(run, "while the held-out loss was measured"))
        micro_batch //= 2
        message = f"Memory ran out while the held-out loss was measured ({told}): again with {_rows(micro_batch)}"
        run.context.emit(Note(level="warning", message=message))


def attempt(work: Callable[[], _Result]) -> tuple[_Result | None, str | None]:
    """What `work` gives; or, where memory ran out, the device's own words in a line, with all that it held let go of.

    Raises:
        Exception: whatever else went wrong.
    """
    try:
        return work(), None
    except (RuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
        # The frames of the failed call hold activations for as long as the error lives.
        traceback.clear_frames(error.__traceback__)
        return None, _first_sentence(error)


def tidy_up(run: Run) -> None:
    """Give memory that nobody uses back, so that a smaller attempt finds it in one piece."""
    gc.collect()
    release_unused(Device(run.execution.device))
    allocator.trim()


def _gather_that_fits(run: Run, rows: Sequence[Any]) -> Gradients:
    before = random_state()
    while True:
        gradients, told = attempt(lambda: gather_gradients(run, rows))
        if gradients is not None:
            return gradients
        run.optimizer.zero_grad()
        _forget_unscaled(run.accelerator.scaler, run.loaded.torch_device)
        tidy_up(run)
        _save_memory(run, told or "")
        restore_random_state(before)


def _save_memory(run: Run, told: str) -> None:
    """Halve the micro-batch for the rest of the run, or turn recomputation on; tell and note which."""
    execution, optimization = run.execution, run.config.optimization
    effective = optimization.micro_batch * optimization.accumulation
    if execution.micro_batch > 1:
        smaller = _largest_divisor(effective, execution.micro_batch // 2)
        run.execution = replace(execution, micro_batch=smaller)
        remedy = f"again, and from now on, with {_rows(smaller)}"
    elif not execution.checkpointing and run.config.training.gradient_checkpointing == "auto":
        allocator.return_large_blocks()
        loading.recompute(run.loaded.model.get_base_model(), Device(execution.device))
        run.execution = replace(execution, checkpointing=True)
        remedy = "again, and from now on, with activations that are computed twice"
    else:
        raise NothingToHalve(_sentence(run, f"in step {run.state.step + 1}"))
    _tell_healed(run, f"Memory ran out in step {run.state.step + 1} ({told}): {remedy}; it stays {effective} a step.")


def _tell_healed(run: Run, message: str) -> None:
    micro_batch, optimization = run.execution.micro_batch, run.config.optimization
    accumulation = optimization.micro_batch * optimization.accumulation // micro_batch
    step = run.state.step
    run.state.execution = run.execution.to_json()
    numbers = {"micro_batch": float(micro_batch), "accumulation": float(accumulation)}
    run.state.incidents.append(Incident(kind="healed", step=step, message=message, numbers=numbers).to_json())
    # What the first steps take is noted for the next training, which would begin with what was planned.
    run.expectation.file = None
    run.context.emit(Healed(step=step, micro_batch=micro_batch, accumulation=accumulation, message=message))


def _update_that_fits(run: Run, gradients: Gradients, lr: float) -> None:
    parameters = list(trainable(run.loaded.model).values())
    if run.optimizer.state:
        update(run, gradients, lr)
        return
    before = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    _, told = attempt(lambda: update(run, gradients, lr))
    if told is None:
        return
    run.optimizer.state.clear()
    with torch.no_grad():
        for parameter, kept in zip(parameters, before, strict=True):
            parameter.copy_(kept)
    tidy_up(run)
    _, told_again = attempt(lambda: update(run, gradients, lr))
    if told_again is not None:
        raise NothingToHalve(_sentence(run, "for the state of the optimizer"))
    _tell_healed(run, f"Memory ran out for the state of the optimizer ({told}): the update was undone and made again.")


def _forget_unscaled(scaler: Any, device: torch.device) -> None:
    """Let the gradient scaler, its scale unchanged, take the next gradients for those of a new step."""
    if scaler is not None:
        scaler.scale(torch.zeros((), device=device))  # its scale exists from its first use on
        scaler.update(float(scaler.get_scale()))


def _sentence(run: Run, when: str) -> str:
    rows, recomputed = _rows(run.execution.micro_batch), run.execution.checkpointing
    state = f"with {rows}{' and activations that are computed twice' if recomputed else ''}"
    return f"Memory ran out {when}, {state}: {_remedy(run)}."


def _remedy(run: Run) -> str:
    """What would fit, a clause."""
    plan, execution = run.expectation.plan, run.execution
    if plan.shape is None:
        return "lower dataset.sequence_length or lora.rank, or use a machine with more memory"
    failed = replace(plan.recipe, micro_batch=1, checkpointing=execution.checkpointing)
    config = run.config.model
    estimator = estimator_of(models.load_config(config.name, config.revision), plan.measured.memory_factor)
    room = limit_bytes(Device(execution.device)) + run.loaded.memory_in_use()
    return what_would_fit(failed, min(room, int(_CLEARLY_LESS * estimator(failed).total)), estimator)


def _largest_divisor(number: int, most: int) -> int:
    return next(size for size in range(most, 0, -1) if number % size == 0)


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''} at a time"


def _first_sentence(error: BaseException) -> str:
    """The beginning of what torch says: before it a line of its source, after it the settings of its allocators."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    text = re.sub(r"^\[enforce fail[^]]*][^.]*\. ", "", text)
    return text.partition(". ")[0].removesuffix(".")[:200]
