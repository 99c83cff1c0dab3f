"""What a model makes of the product of its head: nothing, a scale, a soft cap, or something only its own code knows.

The loss is computed over chunks of the head's product (`backends.head`), so whatever comes after the product must be
known. It is not read from a table of families: numbers that the configuration names after logits are tried, and what
holds is what gives the model's own logits on one short row.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

#: Largest logits of the tokens of the short row: a cap of 30 shows only where logits come near it.
_PEAKS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
#: What the numbers of configurations are called that change logits (Gemma, Granite, Cohere, Falcon-H1).
_WORDS = ("logit", "head_multiplier", "output_multiplier")


@dataclass(frozen=True)
class LogitShape:
    """cap * tanh(scale * product / cap), or scale * product where there is no cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, product: torch.Tensor) -> torch.Tensor:
        """The logits that the model makes of a product, as a new tensor."""
        logits = product * self.scale if self.scale != 1 else product
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    def apply_(self, product: torch.Tensor) -> None:
        """Turn a product into logits in place."""
        if self.cap:
            product.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        elif self.scale != 1:
            product.mul_(self.scale)


def find_shape(model: Any, device: torch.device) -> LogitShape | None:
    """Find out by comparing on one short row; training mode and random numbers are left as they were.

    Args:
        model: A PEFT model around a causal language model, on `device`.
        device: Where the row is put.

    Returns:
        The shape that gives the model's logits, or None: then only the model itself can compute them.
    """
    base = model.get_base_model()
    head, decoder = base.get_output_embeddings(), base.base_model
    if head is None or decoder is base:
        return None
    with undisturbed(model, device), torch.no_grad():
        row = _short_row(head, device)
        louder = _Louder(head)
        hook = decoder.register_forward_hook(louder)
        try:
            logits = model(**row).logits
        finally:
            hook.remove()
        # Training calls the decoder alone: it must give what the whole model's forward takes from it.
        if louder.states is None or not _agree(decoder(**row)[0], louder.states):
            return None
        product = head(louder.raised).float()
    return next((shape for shape in _candidates(base.config) if _agree(shape(product), logits)), None)


class _Louder:
    """A hook on the decoder: keeps its states, and hands on states that make logits of the sizes in _PEAKS."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self.states: torch.Tensor | None = None
        self.raised: torch.Tensor | None = None

    def __call__(self, _decoder: Any, _inputs: Any, output: Any) -> Any:
        self.states = output[0]
        peaks = torch.tensor(_PEAKS, device=self.states.device)[None, :, None]
        found = self.head(self.states).float().abs().amax(dim=-1, keepdim=True)
        factors = peaks / found.clamp(min=torch.finfo(torch.float16).tiny)
        self.raised = (self.states.float() * factors).to(self.states.dtype)
        if isinstance(output, tuple):
            return (self.raised, *output[1:])
        output[next(iter(output))] = self.raised
        return output


def _short_row(head: Any, device: torch.device) -> dict[str, Any]:
    positions = torch.arange(len(_PEAKS), device=device)[None]
    return {
        "input_ids": positions % vocabulary_of(head),
        "attention_mask": None,
        "position_ids": positions,
        "use_cache": False,
    }


def vocabulary_of(head: Any) -> int:
    """Logits per token."""
    return int(getattr(head, "out_features", None) or head.weight.shape[0])


def _agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether both are the same up to the rounding of the type that the model computes in, token by token."""
    if ours.shape != theirs.shape:
        return False
    tolerance = max(1e-4, 4 * torch.finfo(theirs.dtype).eps)
    ours, theirs = ours.float(), theirs.float()
    allowed = tolerance * theirs.abs().amax(dim=-1)
    return bool(((ours - theirs).abs().amax(dim=-1) <= allowed).all())


def _candidates(config: Any) -> Iterator[LogitShape]:
    """Shapes to try: the numbers that the configuration names after logits or the head, as a scale and as a cap."""
    fields = {
        name: float(value)
        for name, value in config.get_text_config().to_dict().items()
        if any(word in name for word in _WORDS) and _is_factor(value)
    }
    caps = [value for name, value in fields.items() if "cap" in name]
    numbers = [value for name, value in fields.items() if "cap" not in name]
    scales = [1.0, *numbers, *(1 / number for number in numbers)]
    return (LogitShape(scale, cap) for cap, scale in itertools.product([None, *caps], scales))


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


@contextmanager
def undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Evaluate the model inside; afterwards every module is in the mode it was in, and every generator where it was."""
    modes = {module: module.training for module in model.modules()}
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)
