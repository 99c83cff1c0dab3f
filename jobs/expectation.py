"""What a training is expected to take, in time and memory; and what its first steps take, noted for the next one."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from backends import calibration, throughput
from backends.contract import LoadedModel
from backends.devices import GIB, Device
from backends.peak import Peak
from backends.product_rate import measure_product_rate, seconds_worth
from backends.throughput import Range
from jobs.eta import FORWARD_SHARE
from jobs.execution import Execution
from jobs.planner import TrainingPlan

#: Steps that are watched. The first is left out of the speed: it pays for caches that the others find warm.
_WATCHED_STEPS = 3


@dataclass(kw_only=True)
class Expectation:
    """Of one run; begins to watch when it is made."""

    plan: TrainingPlan
    #: Operations a second in matrix products; None: the model's sizes are not known.
    product_rate: float | None
    peak: Peak
    #: Where to note what was measured; None: nowhere.
    file: Path | None
    #: Tokens and seconds of the steps so far.
    steps: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def of(cls, plan: TrainingPlan, loaded: LoadedModel, rows: int, file: Path | None) -> "Expectation":
        """Measure this device's rate, for as long as a training of so many rows is worth it."""
        rate = _measured_rate(plan, loaded, rows * plan.recipe.sequence_length)
        peak = Peak(Device(plan.recipe.device))
        return cls(plan=plan, product_rate=rate, peak=peak, file=file)

    def kind(self, execution: Execution) -> str:
        """What the times of a run hold for: this machine, this kind of training, computed in this way."""
        return f"{self.plan.kind}|{json.dumps(execution.to_json(), sort_keys=True)}"

    @property
    def forward_share(self) -> float:
        """Part of a training step's work that measuring the same rows takes."""
        if self.plan.shape is None:
            return FORWARD_SHARE
        work = throughput.work_per_token(self.plan.shape, self.plan.recipe)
        return (work.forward + (work.adapters + work.attention) / 3) / work.total

    def time_sentence(self, tokens: int, steps: int, measured_tokens: int = 0) -> str | None:
        """How long the training will take, as a range; None where nobody can tell.

        Args:
            tokens: To train on.
            steps: In which they are.
            measured_tokens: To measure the held-out loss on, forward only.
        """
        if not steps or self.plan.shape is None or self.product_rate is None:
            return None
        work = tokens + round(self.forward_share * measured_tokens)
        seconds = throughput.training_seconds(work, self._speed(self.product_rate))
        known = self.plan.measured.rate_share is not None
        basis = "earlier trainings on this machine" if known else "a first guess"
        what = f"{steps:,} steps{' and the held-out loss' if measured_tokens else ''}"
        return (
            f"The training takes about {throughput.time_text(seconds)} for {what} ({basis}, from "
            f"{self.product_rate / 1e9:,.0f} GFLOP/s in matrix products; the steps themselves soon tell better)"
        )

    def step_done(self, tokens: int, seconds: float, tell: Callable[[str], None]) -> None:
        """Note one of the first steps; after the last of them, keep and tell what they came to.

        Args:
            tokens: All that were computed, padding too.
            seconds: That the step took.
            tell: Takes a line for people.
        """
        if len(self.steps) == _WATCHED_STEPS:
            return
        self.steps.append((tokens, seconds))
        if len(self.steps) < _WATCHED_STEPS or self.plan.modelled is None:
            return
        measured = self.peak.bytes()
        if measured:
            tell(_memory_sentence(measured, self._expected_bytes()))
        if self.file is not None:
            calibration.add(
                self.file,
                self.plan.kind,
                memory_factor=self.plan.modelled.factor_of(measured) if measured else None,
                rate_share=self._share(),
                work_rate=self._work_rate(),
            )

    def _speed(self, rate: float) -> Range:
        assert self.plan.shape is not None  # noqa: S101 - the caller asked
        work = throughput.work_per_token(self.plan.shape, self.plan.recipe)
        return throughput.tokens_per_second(work, rate, self.plan.measured.rate_share)

    def _share(self) -> float | None:
        """Part of the product rate that the steps after the first reached."""
        rate = self._work_rate()
        return rate / self.product_rate if rate is not None and self.product_rate else None

    def _work_rate(self) -> float | None:
        """Operations a second of the steps after the first."""
        if self.plan.shape is None:
            return None
        work = throughput.work_per_token(self.plan.shape, self.plan.recipe).total
        tokens = sum(tokens for tokens, _ in self.steps[1:])
        seconds = sum(seconds for _, seconds in self.steps[1:])
        return tokens * work / seconds if seconds > 0 else None

    def _expected_bytes(self) -> int:
        assert self.plan.modelled is not None  # noqa: S101 - the caller asked
        factor = self.plan.measured.memory_factor
        return (self.plan.modelled if factor is None else self.plan.modelled.corrected(factor)).total


def _measured_rate(plan: TrainingPlan, loaded: LoadedModel, tokens: int) -> float | None:
    """First with one product, which tells how long the training is; then for as long as that is worth."""
    if plan.shape is None or not tokens:
        return None
    quick = _rate(plan, loaded, 0.0)
    work = throughput.work_per_token(plan.shape, plan.recipe).total
    worth = seconds_worth(tokens * work / quick)
    return max(quick, _rate(plan, loaded, worth)) if worth else quick


def _rate(plan: TrainingPlan, loaded: LoadedModel, seconds: float) -> float:
    assert plan.shape is not None  # noqa: S101 - the caller asked
    rate = measure_product_rate(plan.shape, plan.recipe.tokens, loaded.compute_dtype, loaded.torch_device, seconds)
    return rate if math.isfinite(rate) else 1.0


def _memory_sentence(measured: int, expected: int) -> str:
    return (
        f"The first steps took {measured / GIB:.2f} GiB at their peak; {expected / GIB:.2f} GiB were expected "
        f"({measured / expected - 1:+.0%})"
    )
