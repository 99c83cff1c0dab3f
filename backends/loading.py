"""The steps that every backend shares: base weights, adapter, gradient checkpointing, and what to tell a person."""

from functools import partial
from typing import Any

from backends import adapters, attention, checkpointing, hardware, models, soundness
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

    hardware.prepare(request.device)
    chosen: list[attention.Choice] = []

    def choose(config: Any) -> str | None:
        chosen.append(attention.choose(config, request.device, request.attention))
        return chosen[-1].implementation

    base = models.load_base(
        request.name,
        request.revision,
        dtype=precision.dtype,
        device=request.device.value,
        quantization_config=quantization_config,
        attention=choose,
    )
    soundness.refuse_unsound(base, request.name)
    model = adapters.attach(base, request.adapter, request.seed)
    # A cache of keys and values is of no use in training, and hides the bounds of packed documents from the mask.
    model.config.use_cache = False
    if request.gradient_checkpointing:
        recompute(model.get_base_model(), request.device)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return LoadedModel(
        model=model,
        torch_device=torch.device(request.device.value),
        compute_dtype=precision.dtype,
        needs_scaler=precision.needs_scaler,
        notes=(
            precision.reason,
            f"{trainable:,} trainable parameters",
            *(choice.note for choice in chosen),
            *hardware.policy_notes(request.device),
        ),
        memory_in_use=partial(hardware.memory_in_use, request.device),
        news=hardware.watch(request.device, base),
    )


def recompute(base: Any, device: Device) -> None:
    """Let every decoder layer compute its activations again in the backward pass, from now on."""
    arguments = checkpointing.arguments(device)
    if hasattr(base, "activation_checkpointing_enable"):  # transformers 5.23 renamed it
        base.activation_checkpointing_enable(arguments)
    else:
        base.gradient_checkpointing_enable(arguments)
