"""Exact causal attention in memory linear in the length: a block of queries at a time, computed again going back.

Where torch has no fused kernel to train with (Metal), attention keeps the scores of every token for every other.
Here the backward pass keeps the inputs, the output and one number per query, the logarithm of its softmax's sum, and
computes the scores of a block again when it needs them. Heads that share keys are folded into the rows of one product,
so keys and values are never repeated; keys that no query of a block may see are not multiplied, which makes rows of
many documents and sliding windows cheaper than one long document.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

#: Bytes of scores that exist at a time: what a CPU's cache holds; elsewhere few and large steps.
SCORE_BYTES = {"cpu": 2 * 2**20}
SCORE_BYTES_ELSEWHERE = 32 * 2**20
#: Fewer queries than this make products too thin, whatever the budget.
_FEWEST_QUERIES = 32
#: Nor are there fewer blocks in a row than this, where that leaves enough queries: a block multiplies keys that come
#: after some of its queries, for nothing.
_FEWEST_BLOCKS = 8
#: Lengths of key ranges that one length of a row may give: Metal compiles a graph for each and keeps it.
_MOST_SHAPES = 32


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How scores become probabilities."""

    #: What the product of a query and a key is multiplied by.
    scale: float
    #: Scores go through `softcap * tanh(score / softcap)`; None leaves them.
    softcap: float | None = None
    #: Probability that a probability is set to 0.
    dropout: float = 0.0
    #: Of the dropout masks: the backward pass draws them again.
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Queries of one row of the batch and the range of keys that they see."""

    row: int
    queries: slice
    keys: slice
    #: Whether some query of the block sees less than all keys of the range before it.
    cut: bool


def blocked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    rule: Rule | None = None,
    first: torch.Tensor | None = None,
    bounds: Sequence[Sequence[int]] | None = None,
    score_bytes: int | None = None,
) -> torch.Tensor:
    """Attention of every query to the keys from its first visible one up to its own position.

    Scores and probabilities are fp32, whatever the inputs (fp64 for fp64).

    Args:
        query: [batch, heads, length, size].
        key: [batch, key heads, length, size]; heads / key heads neighbouring heads share one.
        value: [batch, key heads, length, value size].
        rule: Scale and the like; None scales by size^-0.5.
        first: Integers [batch, length], never decreasing along a row: position of the first key that each query sees,
            which ends documents and windows. None shows all earlier keys.
        bounds: `first` as nested sequences, where it is known already: reading them from a device waits for it.
        score_bytes: Scores that may exist at a time; None is chosen by device.

    Returns:
        [batch, length, heads, value size], contiguous, in the type of the inputs.

    Raises:
        ValueError: the shapes do not fit together.
    """
    _check_shapes(query, key, value, first)
    budget = score_bytes or SCORE_BYTES.get(query.device.type, SCORE_BYTES_ELSEWHERE)
    if first is not None and bounds is None:
        bounds = first.tolist()
    heads, length = query.shape[1:3]
    blocks = list(plan_blocks(query.shape[0], heads, length, bounds, budget))
    rule = rule or Rule(scale=query.shape[-1] ** -0.5)
    result: torch.Tensor = _BlockedAttention.apply(query, key, value, first, tuple(blocks), rule)
    return result


def queries_per_block(heads: int, length: int, score_bytes: int) -> int:
    """How many queries of all heads have their fp32 scores for `length` keys within the budget: a power of two."""
    fit = max(min(score_bytes // (4 * heads * length), length // _FEWEST_BLOCKS), _FEWEST_QUERIES)
    return 1 << (fit.bit_length() - 1)


def plan_blocks(
    rows: int, heads: int, length: int, bounds: Sequence[Sequence[int]] | None, score_bytes: int
) -> Iterator[Block]:
    """Blocks that cover all queries of all rows, with the range of keys for each."""
    size = queries_per_block(heads, length, score_bytes)
    # Ranges begin at multiples of this, so that few lengths of ranges occur however documents lie.
    step = size * math.ceil(length / (size * _MOST_SHAPES))
    for row in range(rows):
        for start in range(0, length, size):
            stop = min(start + size, length)
            first, last = (bounds[row][start], bounds[row][stop - 1]) if bounds is not None else (0, 0)
            low = first // step * step
            high = min(math.ceil(stop / step) * step, length)
            yield Block(row=row, queries=slice(start, stop), keys=slice(low, high), cut=last > low)


def _check_shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first: torch.Tensor | None) -> None:
    rows, heads, length, size = query.shape
    if key.shape[::2] != (rows, length) or key.shape[3] != size or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"Keys {tuple(key.shape)} and values {tuple(value.shape)} do not fit queries {tuple(query.shape)}."
        )
    if heads % key.shape[1]:
        raise ValueError(f"{heads} heads cannot share {key.shape[1]} keys evenly.")
    if first is not None and first.shape != (rows, length):
        raise ValueError(f"The first visible keys are {tuple(first.shape)}, not {(rows, length)}.")


class _BlockedAttention(torch.autograd.Function):
    # Autograd passes by position.
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        first: torch.Tensor | None,
        blocks: tuple[Block, ...],
        rule: Rule,
    ) -> torch.Tensor:
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1])
        sums = query.new_empty(rows, heads, length, dtype=_wide(query.dtype))
        with torch.autocast(query.device.type, enabled=False):
            for row in range(rows):
                one = _Row.of(query[row], key[row], value[row], None if first is None else first[row], rule)
                for number, block in enumerate(blocks):
                    if block.row == row:
                        one.attend(block, number, out[row], sums[row])
        ctx.save_for_backward(query, key, value, out, sums, first)
        ctx.blocks, ctx.rule = blocks, rule
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, sums, first = ctx.saved_tensors
        gradients = tuple(torch.empty_like(one) for one in (query, key, value))
        with torch.autocast(query.device.type, enabled=False):
            for row in range(query.shape[0]):
                one = _Row.of(query[row], key[row], value[row], None if first is None else first[row], ctx.rule)
                back = _Back.of(one, out[row], sums[row], gradient[row], gradients[0][row])
                for number, block in enumerate(ctx.blocks):
                    if block.row == row:
                        back.accumulate(block, number)
                gradients[1][row], gradients[2][row] = back.keys, back.values
        return *gradients, None, None, None


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of a batch, with keys and values in the type that scores are computed in."""

    #: [heads, length, size]
    query: torch.Tensor
    #: [key heads, length, size]
    key: torch.Tensor
    value: torch.Tensor
    #: [length]
    first: torch.Tensor | None
    rule: Rule

    @classmethod
    def of(
        cls, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first: torch.Tensor | None, rule: Rule
    ) -> "_Row":
        wide = _wide(query.dtype)
        return cls(query=query, key=key.to(wide), value=value.to(wide), first=first, rule=rule)

    def attend(self, block: Block, number: int, out: torch.Tensor, sums: torch.Tensor) -> None:
        """Write the block's part of `out` [length, heads, value size] and of `sums` [heads, length]."""
        scores = self.scores(block, self.fold(self.query, block) * self.rule.scale)
        largest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(largest).exp_()
        total = weights.sum(-1, keepdim=True)
        sums[:, block.queries] = (largest + total.log()).view(sums.shape[0], -1)
        if self.rule.dropout:
            weights.mul_(self.kept(weights, number))
        mixed = torch.bmm(weights, self.value[:, block.keys]).div_(total)
        out[block.queries] = mixed.view(out.shape[1], -1, out.shape[2]).transpose(0, 1)

    def fold(self, tensor: torch.Tensor, block: Block) -> torch.Tensor:
        """The block's queries of [heads, length, size], in the wide type, as [key heads, group x queries, size]."""
        part = tensor[:, block.queries].to(self.key.dtype)
        return part.reshape(self.key.shape[0], -1, tensor.shape[-1])

    def scores(self, block: Block, query: torch.Tensor) -> torch.Tensor:
        """Capped and masked scores [key heads, group x queries, keys] of scaled, folded queries."""
        scores = torch.bmm(query, self.key[:, block.keys].transpose(1, 2))
        if self.rule.softcap is not None:
            scores.div_(self.rule.softcap).tanh_().mul_(self.rule.softcap)
        hidden = self.hidden(block, scores.device)
        scores.view(-1, *hidden.shape).masked_fill_(hidden, -math.inf)
        return scores

    def hidden(self, block: Block, device: torch.device) -> torch.Tensor:
        """Which keys of its range each query of the block must not see: booleans [queries, keys]."""
        keys = torch.arange(block.keys.start, block.keys.stop, device=device)
        queries = torch.arange(block.queries.start, block.queries.stop, device=device)
        hidden = keys > queries[:, None]
        if block.cut and self.first is not None:
            hidden |= keys < self.first[block.queries, None]
        return hidden

    def kept(self, weights: torch.Tensor, number: int) -> torch.Tensor:
        """The dropout mask of a block, the same each time: what is kept, scaled up for what is not."""
        generator = torch.Generator(weights.device).manual_seed(self.rule.seed + number)
        chance = 1 - self.rule.dropout
        return torch.empty_like(weights).bernoulli_(chance, generator=generator).div_(chance)


@dataclass(frozen=True, kw_only=True)
class _Back:
    """The backward pass of one row: gradients of keys and values add up over blocks."""

    row: _Row
    #: [heads, length]: logarithm of each softmax's sum.
    sums: torch.Tensor
    #: [heads, length, value size]
    out: torch.Tensor
    gradient: torch.Tensor
    #: [heads, length, size], [key heads, length, size] and [key heads, length, value size]: what is asked for.
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(
        cls, row: _Row, out: torch.Tensor, sums: torch.Tensor, gradient: torch.Tensor, queries: torch.Tensor
    ) -> "_Back":
        """Begin: `out` and `gradient` are [length, heads, value size], `queries` [heads, length, size] is written."""
        return cls(
            row=row,
            sums=sums,
            out=out.transpose(0, 1),
            gradient=gradient.transpose(0, 1),
            queries=queries,
            keys=torch.zeros_like(row.key),
            values=torch.zeros_like(row.value),
        )

    def accumulate(self, block: Block, number: int) -> None:
        """Write the block's gradients of queries, add those of its keys and values."""
        row, rule = self.row, self.row.rule
        query, gradient = row.fold(row.query, block) * rule.scale, row.fold(self.gradient, block)
        scores = row.scores(block, query)
        # Of tanh: 1 - tanh^2. Masked scores are -inf here, and their weight is 0: any finite slope will do.
        slope = None if rule.softcap is None else 1 - (scores / rule.softcap).clamp_(-1, 1).square_()
        weights = scores.sub_(row.fold(self.sums[..., None], block)).exp_()
        change = torch.bmm(gradient, row.value[:, block.keys].transpose(1, 2))
        if rule.dropout:
            kept = row.kept(weights, number)
            change.mul_(kept)
            self.values[:, block.keys] += torch.bmm((kept.mul_(weights)).transpose(1, 2), gradient)
        else:
            self.values[:, block.keys] += torch.bmm(weights.transpose(1, 2), gradient)
        share = (row.fold(self.out, block) * gradient).sum(-1, keepdim=True)
        change.sub_(share).mul_(weights)
        if slope is not None:
            change.mul_(slope)
        self.keys[:, block.keys] += torch.bmm(change.transpose(1, 2), query)
        towards = torch.bmm(change, row.key[:, block.keys]).mul_(rule.scale)
        self.queries[:, block.queries] = towards.view(self.queries.shape[0], -1, self.queries.shape[2])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32
