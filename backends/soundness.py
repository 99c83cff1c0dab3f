"""Whether a model can be trained on at all: its numbers, its tokenizer.

Each of these gives a training that runs and learns nothing, or fails after hours with another reason. Here each is one
sentence before the first step.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from backends import models
from backends.errors import ModelNotLoadable


def refuse_unsound(model: Any, name: str) -> None:
    """Look at every number of a loaded base once.

    Args:
        model: As `backends.models.load_base` gives it.
        name: As the person named it.

    Raises:
        ModelNotLoadable: names the first tensor that holds a NaN or an infinity.
    """
    for tensor_name, tensor in _floats(model):
        if not _is_finite(tensor):
            raise ModelNotLoadable(
                f"The weights of {name} are damaged, {tensor_name} holds numbers that are not finite (NaN, infinity): "
                "fetch the model anew, or choose another revision or model."
            )


def refuse_other_tokenizer(manifest: Mapping[str, Any], name: str, revision: str | None) -> None:
    """Compare the tokenizer that a dataset was built with and the model's own, where there are both.

    Args:
        manifest: Of the dataset.
        name: Of the model.
        revision: Of the model.

    Raises:
        ModelNotLoadable: they differ: the same numbers would mean other text.
    """
    wanted = manifest.get("tokenizer", {}).get("sha256")
    own = _tokenizer_sha256(name, revision) if wanted else None
    if own is not None and own != wanted:
        raise ModelNotLoadable(
            f"The dataset was built with another tokenizer than that of {name} (sha256 {wanted[:12]}, and {own[:12]} "
            "here): build the dataset with this model."
        )


def _tokenizer_sha256(name: str, revision: str | None) -> str | None:
    """None where the model brings no tokenizer that can be read."""
    try:
        return models.tokenizer_file_sha256(models.read_tokenizer(models.tokenizer_folder(name, revision)))
    except ModelNotLoadable:
        return None


def _floats(model: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor of floats, and the scales of those that hold codes."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # bitsandbytes keeps what its 4-bit codes are multiplied with beside them.
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            nested = getattr(state, "state2", None)
            parts = (state.absmax, getattr(state, "offset", None), getattr(nested, "absmax", None))
            yield from ((name, part) for part in parts if part is not None and part.is_floating_point())
        elif tensor.is_floating_point() and not tensor.is_meta:
            yield name, tensor


def _is_finite(tensor: Any) -> bool:
    """One pass without a copy: a sum is not finite where a term is not; a large one is looked at more closely."""
    import torch

    detached = tensor.detach()
    if bool(torch.isfinite(detached.sum(dtype=torch.float32))):
        return True
    return bool(torch.isfinite(detached).all())
