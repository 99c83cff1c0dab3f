"""The contract of a backend: say whether it can run here, then load a model with trainable adapters.

Protocol in, plain functions out: a backend inherits nothing. The training loop receives a `LoadedModel` and knows no
device names. No job, no queue here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from backends.devices import Device


@dataclass(frozen=True, kw_only=True)
class AdapterRequest:
    """The LoRA adapter to train, or one to go on from."""

    rank: int
    alpha: float
    dropout: float = 0.0
    #: "all-linear" or module names, as PEFT takes them.
    target_modules: str | tuple[str, ...] = "all-linear"
    #: Decoder layers that get one: "all", "last:N" or numbers from 0.
    layers: str | tuple[int, ...] = "all"
    rslora: bool = False
    #: Learn direction and magnitude of each row apart (DoRA).
    dora: bool = False
    #: Folder with an adapter in PEFT format to go on from; None starts a fresh one.
    resume_from: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """The base model to load and how."""

    #: Hub id, folder, or path of a .gguf file.
    name: str
    adapter: AdapterRequest
    device: Device
    revision: str | None = None
    #: Weights of a row that share one scale; None gives each row one scale.
    group_size: int | None = 128
    #: How quantised layers multiply: "exact" (dequantised) or "int8" (activations in int8 too).
    compute: str = "exact"
    #: "sdpa" (torch's own), "blocked" (memory linear in the length) or "auto" (by device).
    attention: str = "auto"
    #: Recompute activations in the backward pass.
    gradient_checkpointing: bool = False
    #: Seed of the adapter's initial weights.
    seed: int = 17


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on its device, ready for the training loop."""

    #: A `peft.PeftModel`; only adapter parameters require gradients.
    model: Any
    #: `torch.device` of its inputs.
    torch_device: Any
    #: `torch.dtype` that the matrix products run in.
    compute_dtype: Any
    #: Whether a gradient scaler is needed (fp16 compute on cuda).
    needs_scaler: bool = False
    #: Lines to tell a person: dtype and why, layers quantised, trainable parameters.
    notes: tuple[str, ...] = ()
    #: Bytes of device memory in use now.
    memory_in_use: Callable[[], int] = field(default=lambda: 0)
    #: Lines to tell a person that came up since the last call, e.g. an operator that the GPU lacks; called every step.
    news: Callable[[], tuple[str, ...]] = field(default=lambda: ())


class Backend(Protocol):
    """One way of holding a model on a device."""

    #: As `quantization.kind` names it.
    name: str

    def check(self, device: Device) -> str | None:
        """None when this backend can train on `device` of this machine; otherwise one sentence that says why not."""

    def load(self, request: ModelRequest) -> LoadedModel:
        """Load the base, attach the adapter, move both to the device.

        Raises:
            BackendUnavailable: what `check` would have said.
            ModelNotLoadable: the name gives no causal language model.
        """
