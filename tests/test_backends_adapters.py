"""Adapters: what cannot carry one is told, and one that is gone on with takes what its new device asks."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from backends.adapters import attach
from backends.contract import AdapterRequest
from backends.errors import ModelNotLoadable


def test_a_model_of_convolutions_is_a_sentence():
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    with pytest.raises(ModelNotLoadable, match="architecture gpt2 has no linear layers"):
        attach(GPT2LMHeadModel(config), AdapterRequest(rank=2, alpha=4), seed=1)


def test_an_adapter_gone_on_with_has_the_dropout_of_the_request_not_the_one_it_was_saved_with(tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    attach(LlamaForCausalLM(config), AdapterRequest(rank=2, alpha=4, dropout=0.5), seed=1).save_pretrained(
        tmp_path, save_embedding_layers=False
    )
    model = attach(LlamaForCausalLM(config), AdapterRequest(rank=2, alpha=4, resume_from=tmp_path), seed=1)
    assert not [name for name, module in model.named_modules() if getattr(module, "p", 0)]
    assert any(parameter.requires_grad for parameter in model.parameters())
