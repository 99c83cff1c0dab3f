"""Which attention a model trains with, and how transformers finds ours.

transformers asks a registered function for each mask it needs and hands the answer to every layer. Ours answers with
one integer per query, the position of the first key that it sees, instead of a [length, length] table: packed
documents and sliding windows are all of that kind. They are found by asking transformers' own mask function about
single pairs of positions, so that whatever it means by a document or a window is what is trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.devices import Device
from backends.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch

#: Under which transformers knows our attention, as `from_pretrained(attn_implementation=…)` takes it.
BLOCKED = "repotune_blocked"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An attention for one model on one device."""

    #: As `from_pretrained(attn_implementation=…)` takes it; None leaves it to transformers.
    implementation: str | None
    #: One line for people.
    note: str

    @property
    def blocked(self) -> bool:
        """Whether memory is linear in the length without a fused kernel of torch."""
        return self.implementation == BLOCKED


def choose(model_config: Any, device: Device | str, requested: str = "auto") -> Choice:
    """Pick the attention to train a model with, and make it known to transformers.

    Args:
        model_config: The configuration of transformers that the model will be loaded with.
        device: Where it will train.
        requested: auto, sdpa or blocked.
    """
    if requested == "sdpa":
        return _sdpa(model_config, "as asked for")
    reason = "as asked for" if requested == "blocked" else _reason_for_blocked(model_config, Device(device))
    if reason is None:
        return _sdpa(model_config, "torch has a fused kernel for it here")
    obstacle = _obstacle(model_config)
    if obstacle is not None:
        return _sdpa(model_config, f"{obstacle}; its scores may take memory that grows with the square of the length")
    register()
    return Choice(implementation=BLOCKED, note=f"attention in blocks of queries, memory linear in the length: {reason}")


def register() -> None:
    """Make `BLOCKED` known to transformers; again does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(BLOCKED, attend)
    AttentionMaskInterface.register(BLOCKED, first_visible_keys)


def _reason_for_blocked(model_config: Any, device: Device) -> str | None:
    if _has_cap(model_config):
        return "torch's own attention cannot cap scores as this model does"
    if device is Device.MPS:
        return "torch keeps all scores when it trains on Apple GPUs"
    if device is Device.CPU:
        # Measured (benchmarks/attention.py): 0.2 to 0.8 of the time from 512 tokens on, the same below.
        return "packed documents are cut apart, where torch multiplies and masks all pairs"
    return None


def _sdpa(model_config: Any, reason: str) -> Choice:
    model_class = _model_class(model_config)
    if getattr(model_class, "_supports_sdpa", False) and not _has_cap(model_config):
        return Choice(implementation="sdpa", note=f"torch's own attention: {reason}")
    # Eager is what transformers falls back to; versions before 5.23 would ignore a cap with sdpa.
    return Choice(implementation="eager", note="plain attention: torch's own cannot compute this model's")


def _obstacle(model_config: Any) -> str | None:
    """Why a model cannot use blocked attention, if so."""
    model_class = _model_class(model_config)
    if not getattr(model_class, "_supports_attention_backend", False):
        return "this model's attention is its own code, which cannot be replaced"
    if not getattr(model_class, "_supports_sdpa", False) and not _has_cap(model_config):
        return "this model adds terms to its attention that only its own code computes"
    return None


def _model_class(model_config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)


def _has_cap(model_config: Any) -> bool:
    return getattr(_text(model_config), "attn_logit_softcapping", None) is not None


def _dropout(model_config: Any) -> bool:
    config = _text(model_config)
    return any(
        getattr(config, name, None) for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
    )


def _text(model_config: Any) -> Any:
    return model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config


def first_visible_keys(
    *,
    batch_size: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    attention_mask: Any = None,
    kv_offset: int = 0,
    use_vmap: bool = False,
    **others: Any,
) -> "torch.Tensor | None":
    """The mask of a batch as transformers asks for it, keyword by keyword (`transformers.masking_utils`).

    Returns:
        int32 [batch, 1, length, 1]: the first key that each query sees, of those up to its own position; it carries
        the same as nested tuples in `bounds`. Where what is visible is anything else (padding, a cache that holds
        keys already, patterns of images), the mask that torch's own attention takes.
    """
    import torch
    from transformers.masking_utils import sdpa_mask

    arguments = dict(
        others,
        batch_size=batch_size,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        kv_offset=kv_offset,
        use_vmap=use_vmap,
    )
    if _has_cap(others.get("config")):
        arguments["allow_is_causal_skip"] = False  # there is no kernel that would know causal without a mask
    length, device = _queries(others)
    padded = attention_mask is not None and not bool(attention_mask.all())
    if padded or use_vmap or kv_offset != 0 or length != kv_length or torch.compiler.is_compiling():
        return sdpa_mask(**arguments)
    first = _search(mask_function, batch_size, length, device)
    if not _explains(mask_function, first):
        return sdpa_mask(**arguments)
    mask = first.to(torch.int32)[:, None, :, None]
    mask.bounds = tuple(map(tuple, first.tolist()))
    # First visible keys never decrease: the last query's says whether there is one document and no window.
    mask.whole = not any(row[-1] for row in mask.bounds)
    return mask


def _queries(arguments: dict[str, Any]) -> tuple[int, Any]:
    """How many queries there are and on which device: transformers 5.0 names their positions, later ones the number."""
    positions = arguments.get("cache_position")
    if positions is not None:
        return int(positions.shape[0]), positions.device
    return int(arguments["q_length"]), arguments.get("device", "cpu")


def _search(mask_function: Callable[..., Any], rows: int, length: int, device: Any) -> "torch.Tensor":
    """Halve, for all queries at once, the range in which the first visible key lies: int64 [rows, length]."""
    import torch

    row = torch.arange(rows, device=device)[:, None]
    query = torch.arange(length, device=device).expand(rows, -1)
    low, high = torch.zeros_like(query), query
    for _ in range(length.bit_length()):
        middle = (low + high) // 2
        seen = mask_function(row, torch.zeros_like(row), query, middle)
        low, high = torch.where(seen, low, middle + 1), torch.where(seen, middle, high)
    return high


def _explains(mask_function: Callable[..., Any], first: "torch.Tensor") -> bool:
    """Whether keys near and far, and the next one, are visible exactly as the first visible key says."""
    import torch

    rows, length = first.shape
    device = first.device
    row = torch.arange(rows, device=device)[:, None, None]
    query = torch.arange(length, device=device)[None, :, None].expand(rows, -1, 1)
    distances = torch.tensor([-1, 0, *(2**power for power in range(length.bit_length()))], device=device)
    key = (query - distances).clamp_(0, length - 1)
    seen = mask_function(row, torch.zeros_like(row), query, key)
    said = (key >= first[..., None]) & (key <= query)
    ordered = (first[:, 1:] >= first[:, :-1]).all()
    return bool((seen == said).all() & ordered)


def attend(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> "tuple[torch.Tensor, None]":
    """Attention of one layer as transformers calls it.

    Args:
        module: The layer.
        query: [batch, heads, length, size].
        key: [batch, key heads, length, size].
        value: [batch, key heads, length, value size].
        attention_mask: What `first_visible_keys` returned.
        dropout: Probability that a probability is set to 0.
        scaling: What scores are multiplied by; None means size^-0.5.
        softcap: Cap of the scores.
        others: What else the model says: windows and positions are in the mask already.

    Returns:
        [batch, length, heads, value size], and None for the probabilities.

    Raises:
        BackendUnavailable: the model adds a term to its scores, or got a mask of its own.
    """
    import torch
    from transformers import AttentionInterface

    from backends.blocked_attention import Rule, blocked_attention

    _refuse_terms(others, attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None or attention_mask.dtype is torch.bool:
        if softcap is not None:
            return _capped(query * scale, key, value, attention_mask, softcap=softcap, dropout=dropout), None
        sdpa = AttentionInterface()["sdpa"]
        return sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scale, **others)[0], None
    if _fused_is_best(key, value, attention_mask, softcap=softcap, dropout=dropout):
        fused = torch.nn.functional.scaled_dot_product_attention
        return fused(query, key, value, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2).contiguous(), None
    rule = Rule(
        scale=scale,
        softcap=softcap,
        dropout=dropout,
        # Drawn on the CPU, whose generator checkpointing restores on every device.
        seed=int(torch.randint(2**48, ())) if dropout else 0,
    )
    bounds = getattr(attention_mask, "bounds", None)
    return blocked_attention(query, key, value, rule=rule, first=attention_mask[:, 0, :, 0], bounds=bounds), None


def _refuse_terms(arguments: dict[str, Any], mask: "torch.Tensor | None") -> None:
    import torch

    added = [name for name in ("s_aux", "position_bias") if arguments.get(name) is not None]
    if mask is not None and mask.dtype not in (torch.int32, torch.bool):
        added.append(f"a mask of {mask.dtype}")
    if added:
        raise BackendUnavailable(
            f"The model adds {added[0]} to its attention, which attention in blocks does not know: "
            "set training.attention to sdpa."
        )


def _fused_is_best(
    key: "torch.Tensor", value: "torch.Tensor", mask: "torch.Tensor", *, softcap: float | None, dropout: float
) -> bool:
    """Whether rows are one document each on a CPU, for which torch has a kernel that keeps no scores."""
    exact = softcap is None and not dropout and key.shape[-1] == value.shape[-1]
    return exact and key.device.type == "cpu" and getattr(mask, "whole", False)


def _capped(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    mask: "torch.Tensor | None",
    *,
    softcap: float,
    dropout: float,
) -> "torch.Tensor":
    """Capped attention of scaled queries under a boolean mask, all scores at once: [batch, length, heads, size]."""
    import torch

    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = softcap * torch.tanh((query @ key.transpose(2, 3)).float() / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous()
