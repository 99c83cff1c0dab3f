"""Fits a training into memory: the fastest micro-batch and recomputation that go, or what would have to change.

The effective batch is the configuration's in any case: a smaller micro-batch takes more forward passes per step. Loads
no machine-learning library: the submitter asks, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from backends.devices import GIB, Device
from backends.memory import MemoryEstimate, Recipe, estimate
from backends.shape import read_shape
from backends.throughput import work_per_token
from jobs.spec import Config

#: Tokens whose products take as long as what a forward pass costs whatever its size: dequantising, starting kernels.
_FIXED_TOKENS = {"cpu": 64, "mps": 256, "cuda": 512}

#: Shorter rows and smaller ranks than these are no use: they are not proposed.
_SHORTEST = 128
_SMALLEST_RANK = 8

#: A model's estimate for a recipe; in tests and on calibrated machines, corrected.
Estimator = Callable[[Recipe], MemoryEstimate]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A way of training, and the memory that it takes."""

    recipe: Recipe
    need: MemoryEstimate


def recipe_of(config: Config, device: Device, sequence_length: int | None = None) -> Recipe:
    """What the configuration asks for, with recomputation unless it forbids that: the least memory at its micro-batch.

    Args:
        config: As it holds on `device` (`Config.for_device`).
        device: Where to train.
        sequence_length: Of the dataset, where there is one already.
    """
    quantization, lora = config.quantization, config.lora
    return Recipe(
        quantization=quantization.kind,
        group_size=quantization.scale_group,
        compute=quantization.compute,
        rank=lora.rank,
        target=lora.target_modules,
        layers=lora.layers,
        ema=config.training.ema is not None,
        dora=lora.dora,
        dropout=lora.dropout > 0,
        optimizer=config.optimization.optimizer,
        attention=config.training.attention,
        micro_batch=config.optimization.micro_batch,
        sequence_length=sequence_length or config.dataset.sequence_length,
        checkpointing=config.training.gradient_checkpointing != "off",
        device=device.value,
    )


def options(model_config: Any, recipe: Recipe, effective_batch: int, recomputation: str) -> list[Recipe]:
    """The ways to train with this effective batch and at most this micro-batch, the fastest first.

    Args:
        model_config: As `backends.memory.estimate` takes it.
        recipe: With the largest micro-batch allowed.
        effective_batch: Rows of an optimizer step; micro-batches divide it.
        recomputation: auto, on or off.
    """
    states = {"on": (True,), "off": (False,)}.get(recomputation, (False, True))
    divisors = [rows for rows in range(recipe.micro_batch, 0, -1) if effective_batch % rows == 0]
    ways = [replace(recipe, micro_batch=rows, checkpointing=state) for state in states for rows in divisors]
    shape = read_shape(model_config)

    def time_per_token(way: Recipe) -> float:
        return work_per_token(shape, way).total * (1 + _FIXED_TOKENS[way.device] / way.tokens)

    return sorted(ways, key=time_per_token)


def first_that_fits(ways: list[Recipe], room: int, estimator: Estimator) -> Fit | None:
    """The first of `ways` that takes at most `room` bytes; None where none does."""
    fits = (Fit(recipe=way, need=estimator(way)) for way in ways)
    return next((fit for fit in fits if fit.need.total <= room), None)


def least(ways: list[Recipe], estimator: Estimator) -> Fit:
    """The one of `ways` that takes the least memory."""
    return min((Fit(recipe=way, need=estimator(way)) for way in ways), key=lambda fit: fit.need.total)


def what_would_fit(recipe: Recipe, room: int, estimator: Estimator) -> str:
    """A clause: the first change of the configuration that makes the training fit, or all of them together.

    Args:
        recipe: The least that the configuration allows.
        room: Bytes that may be taken.
        estimator: Of the model.
    """
    for change, changed in _changes(recipe):
        need = estimator(changed).total
        if need <= room:
            return f"set {change} ({need / GIB:.1f} GiB), or use a machine with more memory"
    together = _all_together(recipe)
    need = estimator(together).total
    if need <= room:
        words = ", ".join(change for change, changed in _differences(recipe, together))
        return f"set {words} ({need / GIB:.1f} GiB), or use a machine with more memory"
    return f"use a smaller model or a machine with more memory: even with every saving it takes {need / GIB:.1f} GiB"


def _changes(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Single changes, the least painful first."""
    if recipe.micro_batch > 1:
        yield "optimization.micro_batch to 1", replace(recipe, micro_batch=1)
    recipe = replace(recipe, micro_batch=1)
    if not recipe.checkpointing:
        yield "training.gradient_checkpointing to auto", replace(recipe, checkpointing=True)
    recipe = replace(recipe, checkpointing=True)
    for length in _halves(recipe.sequence_length, _SHORTEST):
        yield f"dataset.sequence_length to {length}", replace(recipe, sequence_length=length)
    for kind in _smaller_weights(recipe):
        yield f"quantization.kind to {kind}", replace(recipe, quantization=kind)
    for rank in _halves(recipe.rank, _SMALLEST_RANK):
        yield f"lora.rank to {rank}", replace(recipe, rank=rank)
    for optimizer in _smaller_optimizers(recipe):
        yield f"optimization.optimizer to {optimizer}", replace(recipe, optimizer=optimizer)


def _all_together(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        micro_batch=1,
        checkpointing=True,
        sequence_length=min([recipe.sequence_length, *_halves(recipe.sequence_length, _SHORTEST)]),
        quantization=next(iter(_smaller_weights(recipe)), recipe.quantization),
        rank=min([recipe.rank, *_halves(recipe.rank, _SMALLEST_RANK)]),
        optimizer=next(reversed(_smaller_optimizers(recipe)), recipe.optimizer),
    )


def _differences(recipe: Recipe, other: Recipe) -> Iterator[tuple[str, Any]]:
    keys = {
        "micro_batch": "optimization.micro_batch",
        "sequence_length": "dataset.sequence_length",
        "quantization": "quantization.kind",
        "rank": "lora.rank",
        "optimizer": "optimization.optimizer",
    }
    for field, key in keys.items():
        value = getattr(other, field)
        if value != getattr(recipe, field):
            yield f"{key} to {value}", value
    if other.checkpointing != recipe.checkpointing:
        yield "training.gradient_checkpointing to auto", other.checkpointing


def _halves(number: int, smallest: int) -> list[int]:
    halves = []
    while number // 2 >= smallest:
        number //= 2
        halves.append(number)
    return halves


def _smaller_weights(recipe: Recipe) -> list[str]:
    """Kinds that take fewer bytes, ours first: it runs everywhere."""
    return ["int4"] if recipe.quantization in {"int8", "none"} else []


def _smaller_optimizers(recipe: Recipe) -> list[str]:
    order = ["adamw", "adamw8bit", "adafactor"]
    return order[order.index(recipe.optimizer) + 1 :] if recipe.optimizer in order else []


def estimator_of(model_config: Any, factor: float | None = None) -> Estimator:
    """The estimate of a model's training, corrected by what this machine measured where it did."""

    def of(recipe: Recipe) -> MemoryEstimate:
        parts = estimate(model_config, recipe)
        return parts if factor is None else parts.corrected(factor)

    return of
