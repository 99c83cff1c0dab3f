"""How a run computes on this machine: what must be the same for a resumed run to give the same numbers. No torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Of one run, from the plan and the loaded model; a checkpoint keeps it as JSON."""

    device: str
    #: As `quantization.kind` names it.
    kind: str
    #: As `quantization.compute` names it.
    compute: str
    #: Of the matrix products, e.g. `float32`.
    dtype: str
    #: Rows of one forward pass.
    micro_batch: int
    #: Whether activations are computed again in the backward pass.
    checkpointing: bool
    #: As transformers names the implementation that was chosen.
    attention: str
    #: Whether the model is compiled.
    compile: bool
    #: Of the CPU; sums depend on how they are divided among threads.
    threads: int
    #: Weights of a row of int8 that share one scale, as `quantization.group_size` names it; None where the kind leaves
    #: no choice, and in a checkpoint from before it was kept.
    group_size: int | str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Execution":
        """Read what `to_json` gave; what a newer program added is dropped."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})
