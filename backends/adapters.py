"""LoRA adapters by PEFT: put a fresh one on a base model, or go on with a saved one.

Adapter weights are fp32 whatever the base computes in: updates of a learning rate are smaller than an fp16 step.
"""

import warnings
from pathlib import Path
from typing import Any

from backends.contract import AdapterRequest
from backends.errors import ModelNotLoadable
from backends.gguf_cache import first_line
from backends.shape import adapted_layers, read_shape


def attach(model: Any, request: AdapterRequest, seed: int) -> Any:
    """Freeze `model` and give it a trainable adapter.

    Args:
        model: A causal language model of transformers.
        request: Size and place of the adapter, or the folder of one to go on with.
        seed: The same seed gives the same initial weights; torch's own generators are left as they were.

    Returns:
        A `peft.PeftModel` of which only the adapter's parameters require gradients.

    Raises:
        ModelNotLoadable: no layer of the model can carry the adapter, or the saved adapter does not fit it.
    """
    import torch

    from backends.fusion import fuse

    _check_linear_layers(model)
    devices = [parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        # PEFT asks transformers >= 5.23 by a name that it has deprecated; nothing a person can act on.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        if request.resume_from is None:
            adapted = _fresh(model, request)
        else:
            adapted = _resumed(model, request.resume_from, request.dropout)
        fuse(adapted)
        return adapted


def _fresh(model: Any, request: AdapterRequest) -> Any:
    from peft import LoraConfig, get_peft_model

    targets, layers = request.target_modules, _layers(model, request.layers)
    if layers and targets == "all-linear":
        targets = tuple(sorted(_linear_names(model)))  # PEFT takes numbers of layers with names only
    config = LoraConfig(
        r=request.rank,
        lora_alpha=request.alpha,
        lora_dropout=request.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        layers_to_transform=layers,
        use_rslora=request.rslora,
        use_dora=request.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        names = targets if isinstance(targets, str) else ", ".join(targets)
        raise ModelNotLoadable(
            f"The adapter's target modules ({names}) do not fit this model: {first_line(error)} "
            f"Use all-linear, or names among {', '.join(sorted(_linear_names(model)))}."
        ) from error


def _layers(model: Any, chosen: str | tuple[int, ...]) -> list[int] | None:
    """The numbers of the decoder layers that get an adapter; None for all of them."""
    if chosen == "all":
        return None
    try:
        layers = read_shape(model.config).layers
    except ValueError as error:
        raise ModelNotLoadable(f"The layers to adapt cannot be counted: {error} Set lora.layers to all.") from error
    return list(adapted_layers(layers, chosen))


def _resumed(model: Any, folder: Path, dropout: float) -> Any:
    """The saved adapter with the dropout of this device: the one that it was saved with may be of another."""
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    if not (folder / "adapter_config.json").is_file():
        raise ModelNotLoadable(f"There is no adapter in {folder}: no adapter_config.json.")
    try:
        config = PeftConfig.from_pretrained(folder)
        config.lora_dropout = dropout
        return PeftModel.from_pretrained(model, folder, is_trainable=True, config=config)
    except SafetensorError as error:
        raise ModelNotLoadable(f"The adapter in {folder} cannot be read ({error}): fetch it anew.") from error
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ModelNotLoadable(misfit(folder, "this model", error)) from error


def misfit(folder: Path, model: str, error: Exception) -> str:
    """Why PEFT could not put the adapter in `folder` on `model`, and what to do.

    torch tells of weights with other shapes in lines of their own, under one that says only that there are some.
    """
    lines = [line.strip().rstrip(":.") for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("size mismatch")), (lines or [type(error).__name__])[0])
    return f"The adapter in {folder} does not fit {model} ({reason}): it was trained on another base; name that one."


def _linear_names(model: Any) -> set[str]:
    """The last part of the names of all linear layers, the output head aside."""
    import torch

    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def _check_linear_layers(model: Any) -> None:
    if not _linear_names(model):
        raise ModelNotLoadable(
            f"The architecture {model.config.model_type} has no linear layers that can carry an adapter "
            "(GPT-2 stores its weights as convolutions): choose a newer model."
        )
