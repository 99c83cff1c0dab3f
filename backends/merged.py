"""An adapter added into the base's own weights, in the precision that the base is stored in, by PEFT.

Never into quantised weights: what rounds to nothing there stays in a full-precision base. Each layer is added up in
fp32 and rounded once, one layer at a time, so that the peak is the model and one layer.
"""

import warnings
from pathlib import Path
from typing import Any

import torch

from backends import adapters, models
from backends.errors import ModelNotLoadable
from backends.gguf_cache import first_line

#: ||a - b|| / ||a|| of two sides' logits that is rounding, by the type of the weights: measured below 1e-5 in fp32
#: (a tiny model) and 1.9e-3 in fp16 (SmolLM2-135M); bf16 rounds eight times as coarsely as fp16.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def stored_type(model_config: Any) -> torch.dtype:
    """The type of the base's weights on disk; fp32 where its configuration does not say."""
    named = getattr(model_config, "dtype", None)
    return named if named in TOLERANCE else torch.float32


def load_adapted(name: str, revision: str | None, adapter: Path, dtype: torch.dtype) -> Any:
    """The base in full precision on the cpu with an adapter of PEFT's beside it, ready to compare and to merge.

    Raises:
        ModelNotLoadable: the name or the adapter does not give a model.
    """
    from peft import PeftModel

    base = models.load_base(name, revision, dtype=dtype, device="cpu")
    with warnings.catch_warnings():
        # PEFT asks transformers >= 5.23 by a name that it has deprecated; nothing a person can act on.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            return PeftModel.from_pretrained(base, adapter).eval()
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise ModelNotLoadable(adapters.misfit(adapter, name, error)) from error


def merge(model: Any) -> Any:
    """The base with the adapter added into its weights; `model` itself is used up.

    Raises:
        ModelNotLoadable: a merged weight is not finite in the type of the base.
    """
    from peft.tuners.lora.layer import LoraLayer

    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            _merge_layer(layer, name)
    return model.unload()


def _merge_layer(layer: Any, name: str) -> None:
    weight = layer.get_base_layer().weight
    dtype = weight.dtype
    weight.data = weight.data.float()
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        raise ModelNotLoadable(f"The adapter cannot be merged into {name}: {first_line(error)}") from error
    merged = layer.get_base_layer().weight
    merged.data = merged.data.to(dtype)
    if not torch.isfinite(merged.data).all():
        raise ModelNotLoadable(f"The merged weights of {name} are not finite: train the adapter again.")


def save(model: Any, name: str, revision: str | None, folder: Path) -> None:
    """Write weights, configuration and tokenizer as transformers reads them.

    The base was loaded with its dropouts off (`backends.models.load_base`); they are written as the base has them.
    """
    own = models.load_config(name, revision)
    for key, value in vars(own).items():
        if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
            setattr(model.config, key, value)
    with models.quiet():
        model.save_pretrained(folder)
    models.load_tokenizer(name, revision).save_pretrained(folder)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """What the model says of the next token at each of `ids`: fp32 [len(ids), vocabulary]."""
    with torch.no_grad():
        given: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return given


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """||one - other|| / ||one||."""
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(one))
