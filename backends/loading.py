"""The steps that every backend shares: base weights, adapter, gradient checkpointing, and what to tell a person."""

from dataclasses import replace
from functools import partial
from typing import Any

from backends import adapters, hardware, models
from backends.contract import LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import BackendUnavailable
from backends.hardware import Precision


def require(sentence: str | None) -> None:
    """Raise `BackendUnavailable` with what a `check` answered, unless it answered None."""
    if sentence is not None:
        raise BackendUnavailable(sentence)


def load_model(request: ModelRequest, precision: Precision, quantization_config: Any = None) -> LoadedModel:
    """The base model on its device with a trainable adapter.

    Args:
        request: What to load.
        precision: Type of the products and of the weights that are not quantised.
        quantization_config: As `from_pretrained` takes it; None keeps full precision.

    Raises:
        ModelNotLoadable: the name or the adapter does not give a model.
    """
    import torch

    # Checkpointing on mps recomputes with fresh dropout masks, which makes gradients silently wrong.
    dropout = request.device is not Device.MPS
    hardware.prepare(request.device)
    base = models.load_base(
        request.name,
        request.revision,
        dtype=precision.dtype,
        device=request.device.value,
        quantization_config=quantization_config,
        dropout=dropout,
    )
    adapter = request.adapter if dropout else replace(request.adapter, dropout=0.0)
    model = adapters.attach(base, adapter, request.seed)
    _set_checkpointing(model, request.gradient_checkpointing)
    return LoadedModel(
        model=model,
        torch_device=torch.device(request.device.value),
        compute_dtype=precision.dtype,
        needs_scaler=precision.needs_scaler,
        notes=_notes(model, precision, dropout=dropout),
        memory_in_use=partial(hardware.memory_in_use, request.device),
    )


def _set_checkpointing(model: Any, checkpointing: bool) -> None:
    # A cache of keys and values is of no use in training, and hides the bounds of packed documents from the mask.
    model.config.use_cache = False
    if not checkpointing:
        return
    base = model.get_base_model()
    if hasattr(base, "activation_checkpointing_enable"):  # transformers 5.23 renamed it
        base.activation_checkpointing_enable({"use_reentrant": False})
    else:
        base.gradient_checkpointing_enable({"use_reentrant": False})


def _notes(model: Any, precision: Precision, *, dropout: bool) -> tuple[str, ...]:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    notes = [precision.reason, f"{trainable:,} trainable parameters"]
    if not dropout:
        notes.append("dropout is 0 on Apple GPUs: recomputed activations would see other dropout masks")
    return tuple(notes)
