"""How long a training will take, told before anything is started; loads no machine-learning library.

The speed is that of earlier trainings of the same kind on this machine (`backends.calibration`): where there was none,
or where another machine will take the job, nothing is told. The tokens are a guess until the dataset is built.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends import calibration
from backends.devices import Device
from backends.shape import Shape, read_shape
from backends.throughput import Range, time_text, work_per_token
from jobs.fitting import recipe_of
from jobs.spec import Config

#: Bytes of a repository's files per token that is trained on in an epoch, from most to least: pictures and the like
#: are left out, commits come on top. In benchmarks/results/dataset.json it is 10.5 of requests and 3.4 of a made one.
_BYTES_PER_TOKEN = (11.0, 2.5)
#: How far the speed may be off: other programs, other lengths.
_SPEED_WITHIN = (0.8, 1.2)


@dataclass(frozen=True, kw_only=True)
class ExpectedTime:
    """On one device of this machine."""

    device: Device
    #: Seconds.
    range: Range
    #: Whether the tokens are a guess.
    is_guess: bool

    @property
    def text(self) -> str:
        """For people."""
        guess = "; how large the dataset will be is a guess" if self.is_guess else ""
        return f"{time_text(self.range)} on this machine's {self.device} (as fast as its earlier trainings{guess})"


def expected_time(
    config: Config, model: Mapping[str, Any] | None, device: Device, repository_bytes: int | None, home: Path
) -> ExpectedTime | None:
    """The time on `device` of this machine; None where that cannot be told.

    Args:
        config: As it holds on the device.
        model: Its config.json; None where that is not here.
        device: Where to train.
        repository_bytes: Of the files of the main repository; None where they are not here.
        home: Folder of what this machine measured.
    """
    tokens, is_guess = _tokens(config, repository_bytes)
    if model is None or tokens is None:
        return None
    family, quantization = str(model.get("model_type") or "unknown"), config.quantization
    way = quantization.kind if quantization.compute == "exact" else f"{quantization.kind} in integers"
    rate = calibration.work_rate(home / calibration.FILE, device.value, family, way)
    if rate is None:
        return None
    try:
        shape = read_shape(model)
    except (ValueError, TypeError, ZeroDivisionError):
        return None
    work = _work(config, device, shape)
    slow, fast = (rate * part for part in _SPEED_WITHIN)
    return ExpectedTime(
        device=device, range=Range(tokens.low * work.low / fast, tokens.high * work.high / slow), is_guess=is_guess
    )


def _tokens(config: Config, repository_bytes: int | None) -> tuple[Range | None, bool]:
    """Tokens of the whole run, and whether that is a guess."""
    optimization, training = config.optimization, config.training
    step = optimization.micro_batch * optimization.accumulation * config.dataset.sequence_length
    most = float("inf") if training.max_steps is None else float(training.max_steps * step)
    epoch = _epoch(config, repository_bytes)
    if epoch is None:
        return (None, True) if training.max_steps is None else (Range(min(most, step), most), True)
    low, high = (min(most, training.epochs * tokens) for tokens in (epoch.low, epoch.high))
    return Range(low, high), low < most


def _epoch(config: Config, repository_bytes: int | None) -> Range | None:
    if config.dataset.tokens is not None:
        return Range(config.dataset.tokens, config.dataset.tokens)
    if not repository_bytes or config.dataset.also:
        return None
    return Range(*(repository_bytes / size for size in _BYTES_PER_TOKEN))


def _work(config: Config, device: Device, shape: Shape) -> Range:
    """Operations per token, without and with recomputation where the memory will decide that."""
    recipe = recipe_of(config, device)
    whole = work_per_token(shape, recipe).total
    if config.training.gradient_checkpointing != "auto":
        return Range(whole, whole)
    return Range(work_per_token(shape, replace(recipe, checkpointing=False)).total, whole)
