"""How fast a training will be, from the model's configuration and one measured number: operations per token, and time.

Standard library only. The one number is how many floating-point operations a second this device does in matrix products
of the model's own sizes (`backends.product_rate`). A training reaches a part of it: the share is a range until this
machine has measured its own (`backends.calibration`), and real steps replace both.
"""

from dataclasses import dataclass

from backends.memory import Recipe, adapter_size
from backends.shape import Shape, adapted_layers, adapted_linears

#: Share of the measured product rate that a training reached in the measured runs: the lowest and the highest.
SHARE_OF_RATE = (0.35, 0.9)
#: How far a share that this machine has measured may be off: other programs, other lengths.
_KNOWN_WITHIN = (0.8, 1.1)

#: Times below so many are told in seconds, in minutes; from so many hours on without the minutes.
_SECONDS_SHOWN = 90
_MINUTES_SHOWN = 60
_HOURS_ALONE = 10


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations per token of a training, by part; a multiplication and an addition are two."""

    #: Linear layers and head, once forward.
    forward: float
    #: The gradient to the inputs; frozen weights need none of their own.
    backward: float
    #: The second forward pass of recomputed layers.
    recomputation: float
    #: Adapters, forward and both gradients.
    adapters: float
    #: Scores and their products with the values, forward and backward.
    attention: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.forward + self.backward + self.recomputation + self.adapters + self.attention


@dataclass(frozen=True)
class Range:
    """A span that the truth should lie in."""

    low: float
    high: float


def work_per_token(shape: Shape, recipe: Recipe) -> Work:
    """Operations for one token of training.

    A token attends to half the row on average, in its own document to less: this is the upper bound, and small.
    """
    chosen = adapted_layers(shape.layers, recipe.layers)
    # Gradients end at the lowest layer with an adapter.
    depth = (shape.layers - chosen[0]) / shape.layers
    layers = 2.0 * shape.layers * sum(_active_size(shape, linear.size, linear.count) for linear in shape.linears)
    head = 2.0 * shape.hidden * shape.vocabulary
    adapters = 2.0 * len(chosen) * adapter_size(adapted_linears(shape, recipe.target), recipe)
    scores = 2.0 * shape.layers * 2 * shape.heads * shape.head_size * recipe.sequence_length / 2
    again = depth * (layers + scores) + adapters if recipe.checkpointing else 0.0
    # Forward twice the work, backward four times: gradients of scores and values are two products each.
    return Work(
        forward=layers + head,
        backward=depth * layers + head,
        recomputation=again,
        adapters=3 * adapters,
        attention=(1 + 2 * depth) * scores,
    )


def _active_size(shape: Shape, size: int, count: int) -> float:
    """Of the experts, a token passes a few: `experts_per_token` of them."""
    return size * (shape.experts_per_token / count if count > 1 else 1.0)


def tokens_per_second(work: Work, product_rate: float, share: float | None = None) -> Range:
    """Tokens a second that a training may reach.

    Args:
        work: Of the training.
        product_rate: Operations a second of this device, as measured.
        share: Of that rate, as this machine measured it in earlier trainings; None: not known.
    """
    low, high = SHARE_OF_RATE if share is None else (share * _KNOWN_WITHIN[0], share * _KNOWN_WITHIN[1])
    return Range(low * product_rate / work.total, high * product_rate / work.total)


def training_seconds(tokens: int, speed: Range) -> Range:
    """Time for so many tokens."""
    return Range(tokens / speed.high, tokens / speed.low)


def time_text(time: Range) -> str:
    """A range of seconds for people: "3 h 10 min to 5 h", "2 to 3 min"; one time where both read the same."""
    low, high = _duration(time.low), _duration(time.high)
    if low == high:
        return low
    unit = low.rpartition(" ")[2]
    if low.count(" ") == high.count(" ") == 1 and high.endswith(f" {unit}"):
        low = low.removesuffix(f" {unit}")
    return f"{low} to {high}"


def _duration(seconds: float) -> str:
    """Rounded to what a guess deserves."""
    if seconds < _SECONDS_SHOWN:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < _MINUTES_SHOWN:
        return f"{minutes} min"
    hours, rest = divmod(5 * round(minutes / 5), 60)
    if hours >= _HOURS_ALONE:
        return f"{round(minutes / 60)} h"
    return f"{hours} h {rest} min" if rest else f"{hours} h"
