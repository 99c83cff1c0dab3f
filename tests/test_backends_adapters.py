"""Adapters: what cannot carry one is told."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from backends.adapters import attach
from backends.contract import AdapterRequest
from backends.errors import ModelNotLoadable


def test_a_model_of_convolutions_is_a_sentence():
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    with pytest.raises(ModelNotLoadable, match="architecture gpt2 has no linear layers"):
        attach(GPT2LMHeadModel(config), AdapterRequest(rank=2, alpha=4), seed=1)
