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

from backends.head import IGNORED, summed_loss, summed_loss_of_logits, token_losses, token_losses_of_logits
from backends.logits import LogitShape, find_shape
from jobs import shards


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
    #: What the model makes of its head's product; None where only the model knows, whose logits then exist as a whole.
    shape: LogitShape | None

    @classmethod
    def of(cls, model: Any, device: torch.device) -> "NextTokenLoss":
        """Find out, by comparing both ways on one short row, whether the logits may be computed in chunks."""
        return cls(model, find_shape(model, device))

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The summed loss: a float32 scalar on the device, with gradients where they are enabled."""
        targets = _targets(batch)
        if self.shape is None:
            return summed_loss_of_logits(self._logits(batch), targets)
        return summed_loss(self._head(), self.shape, self._states(batch), targets)

    def by_token(self, batch: Batch) -> torch.Tensor:
        """The loss of each token under those before it: [rows, sequence_length] on the device; 0 where it is no label.

        No gradients.
        """
        targets = _targets(batch)
        with torch.no_grad():
            if self.shape is None:
                found = token_losses_of_logits(self._logits(batch), targets)
            else:
                found = token_losses(self._head(), self.shape, self._states(batch), targets)
        # The loss of a token stands where the token does, not where it was predicted.
        return torch.nn.functional.pad(found.view_as(batch.ids)[:, :-1], (1, 0))

    def _head(self) -> Any:
        return self.model.get_base_model().get_output_embeddings()

    def _states(self, batch: Batch) -> torch.Tensor:
        states: torch.Tensor = self.model.get_base_model().base_model(**_inputs(batch))[0].flatten(0, 1)
        return states

    def _logits(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self.model(**_inputs(batch)).logits.flatten(0, 1)
        return logits


def _targets(batch: Batch) -> torch.Tensor:
    """What each token is to predict, int64 [rows * sequence_length].

    Targets move, not states: a shifted slice of the states would be a copy of them.
    """
    return torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED).flatten()


def _inputs(batch: Batch) -> dict[str, Any]:
    return {
        "input_ids": batch.ids,
        "attention_mask": None,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }
