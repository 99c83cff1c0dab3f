"""Gradients with recomputed activations and dropout: the same as without, where the device's generator is restored.

The defect of Metal is that torch does not restore its generator. On the CPU the same comes of `preserve_rng_state`.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from backends import checkpointing
from backends.adapters import attach
from backends.contract import AdapterRequest
from backends.devices import Device

#: As on Metal: torch leaves the generator alone.
FORGETFUL = {"use_reentrant": False, "preserve_rng_state": False}
RESTORING = FORGETFUL | {"context_fn": checkpointing.restoring(torch)}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_with_dropout(rate=0.1):
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    torch.manual_seed(17)
    config = Starcoder2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        residual_dropout=rate,
        attention_dropout=rate,
        embedding_dropout=rate,
    )
    base = Starcoder2ForCausalLM(config)
    base.config.use_cache = False
    return attach(base, AdapterRequest(rank=4, alpha=8, dropout=rate), seed=3).train()


def gradients(arguments, device="cpu"):
    """The adapter's gradients and the generator's next number; None as arguments: nothing is computed again."""
    model = model_with_dropout().to(device)
    if arguments is not None:
        base = model.get_base_model()
        enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
        enable(arguments)
    torch.manual_seed(5)
    ids = (torch.arange(24) % 60).repeat(2, 1).to(device)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return found, torch.rand(1, device=device).item()


def difference(one, other):
    return float((one - other).norm() / other.norm())


def test_recomputed_gradients_with_dropout_are_the_plain_ones_where_our_contexts_restore_the_generator():
    plain, next_number = gradients(None)
    recomputed, next_after = gradients(RESTORING)
    assert difference(recomputed, plain) < 1e-5
    assert next_after == next_number  # the run draws on as if nothing had been computed twice


def test_without_them_a_forgotten_generator_gives_wrong_gradients():
    plain, _ = gradients(None)
    assert difference(gradients(FORGETFUL)[0], plain) > 0.1


def test_a_second_backward_pass_over_the_same_graph_sees_the_same_masks():
    x = torch.ones(64, requires_grad=True)
    y = checkpoint(torch.nn.functional.dropout, x * 2, **RESTORING).sin().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    torch.rand(7)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)
    assert 0 < (first == 0).sum() < 64


def test_nested_recomputation_restores_each_level():
    def inner(x):
        return torch.nn.functional.dropout(x, 0.5).sin()

    def outer(x):
        return checkpoint(inner, torch.nn.functional.dropout(x, 0.5), **RESTORING) * 2

    def gradient(function):
        torch.manual_seed(1)
        x = torch.linspace(0.1, 1, 64, requires_grad=True)
        function(x).sum().backward()
        return x.grad

    plain = gradient(lambda x: torch.nn.functional.dropout(torch.nn.functional.dropout(x, 0.5), 0.5).sin() * 2)
    assert torch.equal(gradient(lambda x: checkpoint(outer, x, **RESTORING)), plain)


def test_only_metal_needs_our_contexts():
    assert checkpointing.arguments(Device.CPU) == checkpointing.arguments(Device.CUDA) == {"use_reentrant": False}
    assert "context_fn" in checkpointing.arguments(Device.MPS)


def test_metal_is_asked_for_its_own_generator(monkeypatch):
    states = [torch.tensor([1]), torch.tensor([2])]
    put = []
    monkeypatch.setattr("torch.mps.get_rng_state", lambda: states.pop(0))
    monkeypatch.setattr("torch.mps.set_rng_state", put.append)
    first, again = checkpointing.arguments(Device.MPS)["context_fn"]()
    with first:
        pass
    with again:
        assert [state.item() for state in put] == [1]
    assert [state.item() for state in put] == [1, 2]


def test_torch_still_forgets_metals_generator():
    """Once it does not, our contexts can go."""
    assert not hasattr(torch.mps, "_initialized")


@pytest.mark.mps
def test_on_metal_recomputed_gradients_with_dropout_are_the_plain_ones():
    plain, _ = gradients(None, "mps")
    assert difference(gradients(checkpointing.arguments(Device.MPS), "mps")[0], plain) < 1e-4
    assert difference(gradients({"use_reentrant": False}, "mps")[0], plain) > 0.1
