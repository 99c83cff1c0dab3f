"""The loss at a model's head: cross-entropy summed over label tokens, without the logits of a whole row ever existing.

A row of 1024 tokens over 49152 words is 200 MB of logits, and plain autograd keeps three of their kind. Here a chunk of
logits exists at a time. As the head is frozen and a loss is one number, the gradient by the hidden states is computed
at once, while the chunk is there: the head is multiplied by twice in all, where recomputing would do so three times,
and only that gradient [tokens, hidden] is kept. Tokens that nobody asks to predict are skipped before the product.

A head that is trained, or whose weight is no plain product (`backends.frozen`), is recomputed in the backward pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from backends.frozen import FrozenWeight, PlainWeight, frozen_weight
from backends.logits import LogitShape, vocabulary_of

#: The label of a token that nobody asks to predict.
IGNORED = -100
#: Logits that exist at a time, in bytes: 244 tokens of 49152 words in fp32.
LOGIT_BYTES = 48_000_000
#: Words that a product on a CPU takes at a time: 205 tokens by the whole head at once take 20 % longer.
_TILE_WORDS = 1024

#: Logits that a step of the softmax walks over: on a CPU they stay in the cache from the first pass to the last.
_BLOCK_BYTES = {"cpu": 2_000_000}
_BLOCK_BYTES_ON_GPU = 16_000_000

#: fp16 gradients of logits are multiplied by this: one word's share of 49152 would be a subnormal number.
_LIFT = 256.0


def summed_loss(head: Any, shape: LogitShape, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the label tokens.

    Args:
        head: The output layer, [n, hidden] to [n, vocabulary].
        shape: What the model makes of the head's product.
        states: What the decoder gave, [tokens, hidden].
        targets: The word to predict at each token, int64 [tokens], or IGNORED.

    Returns:
        A scalar on the device, fp32 or what is wider, with gradients where they are enabled.
    """
    fixed = _Head.of(head, shape)
    if fixed is None:
        return _recomputed(head, shape, states, targets)
    if torch.is_grad_enabled() and states.requires_grad:
        loss: torch.Tensor = _FrozenHeadLoss.apply(states, targets, fixed)
        return loss
    return fixed.walk(states, targets, gradient=None)


def token_losses(head: Any, shape: LogitShape, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token, without gradients; the arguments are those of `summed_loss`.

    Returns:
        [tokens] on the device, fp32 or what is wider; 0 where the target is IGNORED.
    """
    fixed = _Head.of(head, shape)
    found = torch.zeros(len(targets), dtype=_wide(states.dtype), device=states.device)
    with torch.no_grad():
        if fixed is not None:
            return fixed.each(states, targets, found)
        size = chunk_rows(len(targets), vocabulary_of(head), states.dtype)
        for chunk in _chunks(targets, size):
            product = head(states.index_select(0, chunk.rows))
            logits = shape(product.to(_wide(product.dtype)))
            each = torch.nn.functional.cross_entropy(logits, chunk.labels, reduction="none")
            found.index_add_(0, chunk.rows, each * chunk.counts)
    return found


def token_losses_of_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same of logits [tokens, vocabulary] that exist already."""
    size = chunk_rows(len(targets), logits.shape[1], logits.dtype)
    with torch.no_grad():
        parts = [
            torch.nn.functional.cross_entropy(
                chunk.to(_wide(chunk.dtype)), labels, ignore_index=IGNORED, reduction="none"
            )
            for chunk, labels in zip(logits.split(size), targets.split(size), strict=True)
        ]
    return torch.cat(parts)


def summed_loss_of_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same of logits [tokens, vocabulary] that exist already; their log-probabilities never do all at once."""
    total = logits[:0].sum(dtype=_wide(logits.dtype))
    size = chunk_rows(len(targets), logits.shape[1], logits.dtype)
    for chunk, labels in zip(logits.split(size), targets.split(size), strict=True):
        total = total + _checkpointed(_cross_entropy, chunk, labels)
    return total


def chunk_rows(tokens: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Tokens whose logits exist at a time: as many as LOGIT_BYTES hold, the chunks of `tokens` being of one size."""
    wide = _wide(dtype)
    # Narrower products stand beside their fp32 copy.
    each: int = vocabulary * (wide.itemsize + (dtype.itemsize if dtype != wide else 0))
    chunks = -(-tokens // max(1, LOGIT_BYTES // each))
    return max(1, -(-tokens // max(1, chunks)))


@dataclass(frozen=True)
class _Head:
    """A head that is never trained."""

    weight: FrozenWeight
    bias: torch.Tensor | None
    vocabulary: int
    shape: LogitShape

    @classmethod
    def of(cls, layer: Any, shape: LogitShape) -> "_Head | None":
        """None where the head must be called as the module that it is."""
        if any(parameter.requires_grad for parameter in layer.parameters()):
            return None
        weight = frozen_weight(layer)
        return None if weight is None else cls(weight, layer.bias, vocabulary_of(layer), shape)

    def walk(self, states: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor:
        """The loss; its gradient by `states`, times the lift of their type, is written to `gradient` (of zeros)."""
        wide = _wide(states.dtype)
        total = torch.zeros((), dtype=wide, device=states.device)
        factor = None if gradient is None else self.shape.scale * _lift(states.dtype)
        for chunk, product, logits in self._products(states, targets):
            total += (self._descend_(logits, chunk.labels, factor) * chunk.counts).sum()
            if gradient is not None:
                back = self.weight.multiply_back(logits if product is logits else product.copy_(logits))
                gradient.index_add_(0, chunk.rows, back.mul_(chunk.counts[:, None]))
        return total

    def each(self, states: torch.Tensor, targets: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """The loss of each label token, added to `found` [tokens]."""
        for chunk, _product, logits in self._products(states, targets):
            found.index_add_(0, chunk.rows, self._descend_(logits, chunk.labels, factor=None) * chunk.counts)
        return found

    def _products(
        self, states: torch.Tensor, targets: torch.Tensor
    ) -> Iterator[tuple["_Chunk", torch.Tensor, torch.Tensor]]:
        """Each chunk of label tokens, the head's product as the weight gives it, and in the type of the softmax.

        Both lie in memory that the next chunk takes.
        """
        wide = _wide(states.dtype)
        size = chunk_rows(len(targets), self.vocabulary, states.dtype)
        buffer = torch.empty(size, self.vocabulary, dtype=wide, device=states.device)
        for chunk in _chunks(targets, size):
            product = self._product(states.index_select(0, chunk.rows), buffer)
            logits = product if product.dtype == wide else buffer[: len(product)].copy_(product)
            yield chunk, product, logits

    def _product(self, rows: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """[n, vocabulary] in the type of `rows`, in the buffer where the weight can write to it."""
        if isinstance(self.weight, PlainWeight) and buffer.dtype == rows.dtype:
            product = buffer[: len(rows)]
            step = _TILE_WORDS if rows.device.type == "cpu" else self.vocabulary
            for weight, tile in zip(self.weight.weight.split(step), product.split(step, dim=1), strict=True):
                torch.mm(rows, weight.t(), out=tile)
        else:
            product = self.weight.multiply(rows)
        return product if self.bias is None else product.add_(self.bias)

    def _descend_(self, product: torch.Tensor, labels: torch.Tensor, factor: float | None) -> torch.Tensor:
        """The loss of each row; the product is replaced by `factor` times its gradient, or spoilt if that is None."""
        step = max(1, _BLOCK_BYTES.get(product.device.type, _BLOCK_BYTES_ON_GPU) // (4 * self.vocabulary))
        blocks = zip(product.split(step), labels.split(step), strict=True)
        return torch.cat([_descend_block_(block, part, self.shape, factor) for block, part in blocks])


class _FrozenHeadLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass and keeps nothing else."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, targets: torch.Tensor, head: _Head) -> torch.Tensor:
        gradient = torch.zeros_like(states)
        loss = head.walk(states, targets, gradient)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        dtype = gradient.dtype
        # A gradient scaler's factor may be beyond fp16 though its product is not.
        scaled = gradient.to(_wide(dtype)) * (upstream / _lift(dtype))
        return scaled.to(dtype), None, None


def _descend_block_(
    product: torch.Tensor, labels: torch.Tensor, shape: LogitShape, factor: float | None
) -> torch.Tensor:
    shape.apply_(product)
    logits, label = product, labels[:, None]
    slope = 1 - (logits / shape.cap).square_() if shape.cap and factor is not None else None
    peak = logits.amax(dim=-1, keepdim=True)
    margin = peak - logits.gather(1, label)
    exponentials = logits.sub_(peak).exp_()
    sums = exponentials.sum(dim=-1, keepdim=True)
    if factor is not None:
        gradient = exponentials.mul_(factor / sums).scatter_add_(1, label, torch.full_like(sums, -factor))
        if slope is not None:
            gradient.mul_(slope)
    return (sums.log() + margin).squeeze(1)


class _Chunk(NamedTuple):
    """Label tokens that are taken at a time, each [n]."""

    #: Where they stand.
    rows: torch.Tensor
    labels: torch.Tensor
    #: 1, or 0 for one that only fills the chunk.
    counts: torch.Tensor


def _chunks(targets: torch.Tensor, size: int) -> Iterator[_Chunk]:
    rows, labels, counts = _label_tokens(targets, size, pad=targets.device.type == "mps")
    yield from map(_Chunk, rows.split(size), labels.split(size), counts.split(size))


def _label_tokens(targets: torch.Tensor, size: int, *, pad: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, labels and counts of the label tokens.

    Args:
        targets: [tokens].
        size: Of a chunk.
        pad: Fill the last chunk. Metal keeps a compiled graph for every shape that it has seen, so that a shape for
            each count of labels would fill its memory.
    """
    here = targets.cpu()  # where shapes may vary; Metal's must not
    rows = (here != IGNORED).nonzero().squeeze(1)
    counts = torch.ones(len(rows))
    if pad and len(rows):
        missing = -len(rows) % size
        rows = torch.cat([rows, rows[-1:].expand(missing)])
        counts = torch.nn.functional.pad(counts, (0, missing))
    device = targets.device
    return rows.to(device), here[rows].to(device), counts.to(device)


def _recomputed(head: Any, shape: LogitShape, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    size = chunk_rows(len(targets), vocabulary_of(head), states.dtype)
    rows, labels, counts = _label_tokens(targets, size, pad=targets.device.type == "mps")
    labelled = states.index_select(0, rows)
    labels = labels.masked_fill(counts == 0, IGNORED)
    total = labelled[:0].sum(dtype=_wide(states.dtype))
    for chunk, part in zip(labelled.split(size), labels.split(size), strict=True):
        total = total + _checkpointed(_loss_of_states, head, shape, chunk, part)
    return total


def _checkpointed(function: Any, *values: Any) -> Any:
    """Drop the logits and compute them again in the backward pass, if there is one."""
    if torch.is_grad_enabled():
        return checkpoint(function, *values, use_reentrant=False)
    return function(*values)


def _loss_of_states(head: Any, shape: LogitShape, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    product = head(states)
    return _cross_entropy(shape(product.to(_wide(product.dtype))), labels)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = logits.to(_wide(logits.dtype))
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and of the softmax."""
    return torch.promote_types(dtype, torch.float32)


def _lift(dtype: torch.dtype) -> float:
    return _LIFT if dtype is torch.float16 else 1.0
