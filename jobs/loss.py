"""The loss of packed rows: cross-entropy in float32, summed over label tokens, a few hundred tokens at a time.

Sums, never means: the caller divides once by the label tokens of everything it adds up. A mean of means would weigh a
row with few labels as much as a full one.

Documents in a row do not see each other because `position_ids` restart at each of them, no attention mask is passed and
there is no cache: transformers then builds the block-diagonal mask itself. An all-ones mask or a cache would silently
let them attend across.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from jobs import shards

#: Tokens whose logits exist at a time: 256 x 49152 x 4 bytes = 50 MB.
CHUNK = 256
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them, int64 on its device, each [rows, sequence_length]."""

    ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor


def make_batch(rows: Sequence[Any], device: torch.device) -> Batch:
    """Stack rows of a dataset (ids, flags) on `device`."""
    ids = np.stack([row.ids for row in rows])
    positions = np.stack([shards.position_ids(row.flags) for row in rows])
    labels = np.stack([shards.labels(row.ids, row.flags) for row in rows])
    return Batch(*(torch.from_numpy(array).to(device) for array in (ids, positions, labels)))


def count_labels(rows: Sequence[Any]) -> int:
    """Tokens that `rows` ask the model to predict.

    The first token of a row is nobody's target, as nothing stands before it.
    """
    return int(sum(np.count_nonzero(shards.labels(row.ids, row.flags)[1:] != IGNORED) for row in rows))


@dataclass(frozen=True)
class NextTokenLoss:
    """Cross-entropy of a PEFT causal language model, summed over the label tokens of a batch."""

    model: Any
    #: Whether the logits are just the head applied to the decoder's output, so that chunks are exact.
    has_plain_head: bool

    @classmethod
    def of(cls, model: Any, device: torch.device) -> "NextTokenLoss":
        """Find out, by comparing both ways on one short row, whether the logits may be computed in chunks."""
        return cls(model, _has_plain_head(model, device))

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The summed loss: a float32 scalar on the device, with gradients where they are enabled."""
        targets = batch.labels[:, 1:].reshape(-1)
        if self.has_plain_head:
            states = _hidden_states(self.model, batch.ids, batch.position_ids)
            head = self.model.get_base_model().get_output_embeddings()
        else:
            states = _logits(self.model, batch.ids, batch.position_ids)
            head = torch.nn.Identity()
        return _chunked(head, states[:, :-1].flatten(0, 1), targets)


def _chunked(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float32, device=states.device)
    for chunk, labels in zip(states.split(CHUNK), targets.split(CHUNK), strict=True):
        if torch.is_grad_enabled():
            # The chunk's logits are dropped and computed again in the backward pass.
            total = total + checkpoint(_cross_entropy, head, chunk, labels, use_reentrant=False)
        else:
            total = total + _cross_entropy(head, chunk, labels)
    return total


def _cross_entropy(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = head(states).float()
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def _hidden_states(model: Any, ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    decoder = model.get_base_model().base_model
    return decoder(input_ids=ids, attention_mask=None, position_ids=position_ids, use_cache=False)[0]


def _logits(model: Any, ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=None, position_ids=position_ids, use_cache=False).logits


def _has_plain_head(model: Any, device: torch.device) -> bool:
    """Some models scale or cap their logits after the head; for those chunks of the head alone would be wrong."""
    head = model.get_base_model().get_output_embeddings()
    if head is None:
        return False
    ids = torch.arange(8, device=device)[None] % head.weight.shape[0]
    positions = torch.arange(8, device=device)[None]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = _logits(model, ids, positions)
            same = torch.allclose(head(_hidden_states(model, ids, positions)), logits, rtol=1e-3, atol=1e-3)
    finally:
        model.train(training)
    return bool(same)
