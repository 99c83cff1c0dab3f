"""Noise on the input embeddings while a model trains.

NEFTune, by Jain et al. 2023 (arXiv 2310.05914). Drawn from torch's own generators, which are part of every checkpoint:
a resumed run draws the same numbers.
"""

from math import sqrt
from typing import Any

import torch


def install(model: Any, alpha: float | None) -> None:
    """Add noise between -m and m, m = alpha / sqrt(tokens of a row x width), to what the embedding gives in training.

    Args:
        model: A `peft.PeftModel`; in evaluation mode it stays exact.
        alpha: How much; None installs nothing.
    """
    if alpha is None:
        return

    def add_noise(module: Any, _arguments: Any, embedded: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded
        most = alpha / sqrt(embedded.shape[-2] * embedded.shape[-1])
        return embedded + torch.empty_like(embedded).uniform_(-most, most)

    model.get_base_model().get_input_embeddings().register_forward_hook(add_noise)
