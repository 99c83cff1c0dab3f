"""The policy for Apple GPUs: what torch would do there that loses memory, speed or right results, and what is done.

Three moments: `set_environment()` before torch is imported, `prepare()` before the first tensor, `watch()` once the
model is loaded. `policy_notes()` says each point in a line.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backends.fallbacks import Fallbacks

HIGH = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"
LOW = "PYTORCH_MPS_LOW_WATERMARK_RATIO"
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"

#: Share of Metal's recommended working set that a process may take. Unlimited, torch takes 1.7 times that set, which on
#: an 8 GB Mac is more than the memory: the machine then swaps to a standstill where an error would have helped.
MEMORY_FRACTION = 0.95
#: Share from which on torch gives cached memory back. Its default, 1.4, lies above our limit, and torch refuses that.
_LOW_OF_HIGH = 0.85

#: Different shapes of input that a healthy run has: full and last micro-batches, of training and of evaluation.
MAX_SHAPES = 8

#: First chips whose GPU multiplies bf16 natively, by family: M3, and A17, which has the same GPU cores.
_FIRST_WITH_BF16 = {"M": 3, "A": 17}


@dataclass(frozen=True)
class Point:
    """One point of the policy."""

    rule: str
    reason: str


POLICY = (
    Point(
        f"memory is limited to {MEMORY_FRACTION:.0%} of Metal's recommended working set",
        "torch's own limit is more than an 8 GB Mac has, which then swaps to a standstill instead of failing",
    ),
    Point(
        "all rows have one length",
        "Metal keeps a compiled graph per shape, and hundreds of shapes fill gigabytes",
    ),
    Point(
        "the model's own dropouts are 0",
        "they serve its pretraining, and an adapter gains nothing by them",
    ),
    Point(
        "recomputed activations see the dropout masks of the first time",
        "torch does not restore Metal's random generator, and gradients would be wrong without a sign",
    ),
    Point(
        "Metal's random generator is part of every checkpoint",
        "a resumed run would draw other masks",
    ),
    Point("nothing is in fp64", "Metal has no such type"),
    Point(
        "operators that Metal lacks run on the CPU, and are named with their number of calls",
        "unseen they would only be slow",
    ),
    Point("memory is the driver's figure", "torch's own leaves out what Metal's graphs and heaps hold"),
)


def policy_notes() -> tuple[str, ...]:
    """The policy for people, a line for each point."""
    return tuple(f"Metal: {point.rule}, because {point.reason}" for point in POLICY)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch reads at its import and at its first allocation, beside those `given`.

    A limit that somebody set is kept, unless it is none; the low watermark always ends up at or below the high one.
    """
    high = _ratio(given.get(HIGH)) or MEMORY_FRACTION
    low = _ratio(given.get(LOW))
    if low is None or low > high:
        low = high * _LOW_OF_HIGH
    return {HIGH: f"{high:g}", LOW: f"{low:g}", FALLBACK: given.get(FALLBACK, "1")}


def set_environment() -> None:
    """Set `environment` for this process. Call it before torch is imported: it reads FALLBACK then and never again."""
    os.environ.update(environment(os.environ))


def prepare() -> None:
    """Hold Metal to its share of the memory, and listen for operators that it lacks. Before the first tensor."""
    import torch

    set_environment()
    torch.mps.set_per_process_memory_fraction(float(os.environ[HIGH]))
    _fallbacks.listen()


def watch(model: Any) -> Callable[[], tuple[str, ...]]:
    """Follow what the policy can only notice while the model trains.

    Returns:
        A function to call after each step: lines for people about what is new since its last call.
    """
    shapes = InputShapes()
    model.get_input_embeddings().register_forward_pre_hook(shapes.note)

    def news() -> tuple[str, ...]:
        return (*_fallbacks.news(), *shapes.news())

    return news


class InputShapes:
    """The different shapes of token ids that a model was fed; more than a few fill Metal's cache of graphs."""

    def __init__(self) -> None:
        self._shapes: set[tuple[int, ...]] = set()
        self._told = False

    def note(self, _module: Any, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook of the embedding."""
        self._shapes.add(tuple(inputs[0].shape))

    def news(self) -> tuple[str, ...]:
        """A line, once, when there are too many; then the cache is emptied where torch can do that."""
        if self._told or len(self._shapes) <= MAX_SHAPES:
            return ()
        self._told = True
        done = "the cache was emptied" if clear_graph_cache() else "this version of torch cannot empty the cache"
        return (f"Metal compiled graphs for {len(self._shapes)} shapes of input, each of which takes memory: {done}",)


def clear_graph_cache() -> bool:
    """Let Metal forget its compiled graphs; False where torch (2.13 and before) has no call for it."""
    import torch

    clear = getattr(torch.mps, "clear_graph_cache", None)
    if clear is None:
        return False
    clear()
    return True


def has_native_bf16(chip: str, macos: str) -> bool:
    """Whether the GPU of `chip` ("Apple M1 Pro") multiplies bf16 itself, and macOS ("14.5") lets it."""
    found = re.match(r"Apple ([AM])(\d+)", chip)
    version = re.match(r"\d+", macos)
    if not found or not version or int(version[0]) < 14:  # noqa: PLR2004 - Metal has the type since macOS 14
        return False
    return int(found[2]) >= _FIRST_WITH_BF16[found[1]]


def _ratio(text: str | None) -> float | None:
    """A watermark that limits anything, as torch would read it; None otherwise, also for 0, which means unlimited."""
    try:
        ratio = float(text or "")
    except ValueError:
        return None
    return ratio if 0 < ratio <= 2 else None  # noqa: PLR2004 - torch refuses more than twice the working set


_fallbacks = Fallbacks()
