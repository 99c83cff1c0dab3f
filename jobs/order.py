"""In which order the rows of a dataset are trained on: a permutation per epoch that every machine computes alike.

An optimizer step takes `effective_batch` rows. The last step of an epoch takes the rows that are left, however few:
every row is seen exactly once per epoch, no step mixes two epochs, and each step's loss is the mean over its own
tokens.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """How far training is in the data; part of every checkpoint."""

    epoch: int = 0
    #: Rows of this epoch's permutation that were trained on.
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class Order:
    """The rows of every optimizer step, from a seed."""

    rows: int
    effective_batch: int
    seed: int
    epochs: int
    #: None: epochs decide.
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch, the last of which may be smaller."""
        return math.ceil(self.rows / self.effective_batch)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step_of(self, position: Position) -> int:
        """Optimizer steps done at `position`."""
        return position.epoch * self.steps_per_epoch + math.ceil(position.index / self.effective_batch)

    def steps_from(self, position: Position) -> Iterator[tuple[list[int], Position]]:
        """The rows of each step that is left after `position`, with the position once the step is done."""
        left = self.total_steps - self.step_of(position)
        while left > 0:
            permutation = self.permutation(position.epoch)
            while left > 0 and position.index < self.rows:
                end = min(position.index + self.effective_batch, self.rows)
                rows = permutation[position.index : end]
                position = Position(position.epoch, end)
                left -= 1
                yield rows, position
            position = Position(position.epoch + 1, 0)

    def permutation(self, epoch: int) -> list[int]:
        """The rows in the order of `epoch`.

        Sorted by `random()` draws, because Python promises that stream for a seed across versions and machines, which
        neither `shuffle` nor numpy's generators do.
        """
        draw = random.Random(f"repotune {self.seed} {epoch}").random  # noqa: S311 - no secret
        keys = [draw() for _ in range(self.rows)]
        return sorted(range(self.rows), key=keys.__getitem__)
