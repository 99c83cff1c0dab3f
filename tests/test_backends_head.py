import math

import pytest
import torch
from torch import nn

from backends import head as head_module
from backends.head import (
    IGNORED,
    chunk_rows,
    summed_loss,
    summed_loss_of_logits,
    token_losses,
    token_losses_of_logits,
)
from backends.int8 import Int8Linear
from backends.logits import LogitShape

torch.set_num_threads(1)

PLAIN = LogitShape()
SHAPES = (PLAIN, LogitShape(scale=0.25), LogitShape(cap=3.0), LogitShape(scale=2.0, cap=5.0))
VOCABULARY = 37


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Eight tokens of 37 words in fp32 at a time, multiplied ten words and walked over three tokens at a time."""
    monkeypatch.setattr(head_module, "_TILE_WORDS", 10)
    monkeypatch.setattr(head_module, "LOGIT_BYTES", 8 * VOCABULARY * 4)
    monkeypatch.setitem(head_module._BLOCK_BYTES, "cpu", 3 * VOCABULARY * 4)


def frozen_head(*, bias=False, dtype=torch.float32):
    torch.manual_seed(5)
    return nn.Linear(16, VOCABULARY, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)


def tokens(count=29, dtype=torch.float32, ignored=0.3):
    torch.manual_seed(6)
    states = torch.randn(count, 16, dtype=dtype).mul_(3).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (count,))
    targets[torch.rand(count) < ignored] = IGNORED
    return states, targets


def plain_loss(head, shape, states, targets):
    logits = nn.functional.linear(states, head.weight, head.bias) * shape.scale
    if shape.cap:
        logits = shape.cap * torch.tanh(logits / shape.cap)
    return nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def with_gradient(function, head, shape, states, targets, upstream=1.0):  # noqa: PLR0917 - as they are passed on
    loss = function(head, shape, states, targets)
    (gradient,) = torch.autograd.grad(loss * upstream, states)
    return loss.detach(), gradient


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradient_are_those_of_plain_cross_entropy_in_float64(shape, bias):
    head, (states, targets) = frozen_head(bias=bias, dtype=torch.float64), tokens(dtype=torch.float64)
    found = with_gradient(summed_loss, head, shape, states, targets, upstream=0.125)
    expected = with_gradient(plain_loss, head, shape, states, targets, upstream=0.125)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_is_the_slope_of_the_loss(shape):
    head, (states, targets) = frozen_head(dtype=torch.float64), tokens(11, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda states: summed_loss(head, shape, states, targets), states)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 40])
def test_no_count_of_tokens_falls_between_chunks(count):
    head, (states, targets) = frozen_head(), tokens(count, ignored=0)
    found = with_gradient(summed_loss, head, PLAIN, states, targets)
    torch.testing.assert_close(found, with_gradient(plain_loss, head, PLAIN, states, targets), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_a_row_without_labels_has_no_loss_and_no_gradient(trained):
    head, (states, targets) = frozen_head().requires_grad_(trained), tokens(ignored=2)
    loss, gradient = with_gradient(summed_loss, head, PLAIN, states, targets)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(states))


def test_tokens_without_a_label_get_a_gradient_of_exactly_zero_even_beside_infinite_states():
    head, (states, targets) = frozen_head(), tokens()
    unasked = targets == IGNORED
    with torch.no_grad():
        states[unasked] = float("inf")
    loss, gradient = with_gradient(summed_loss, head, PLAIN, states, targets)
    assert torch.isfinite(loss)
    assert torch.equal(gradient[unasked], torch.zeros_like(gradient[unasked]))
    assert torch.isfinite(gradient).all()


def test_large_logits_in_fp16_give_what_float64_gives():
    head, (states, targets) = frozen_head(dtype=torch.float16), tokens(dtype=torch.float16)
    head.weight.mul_(400)  # logits of some thousands: their exponentials are beyond any type
    found = with_gradient(summed_loss, head, PLAIN, states, targets)
    wide = head.double(), PLAIN, states.detach().double().requires_grad_(), targets
    expected, expected_gradient = with_gradient(plain_loss, *wide)
    assert expected > 10_000
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-3, atol=0)
    assert found[1].dtype == torch.float16
    error = (found[1].double() - expected_gradient).norm() / expected_gradient.norm()
    assert error < 2e-3


def test_words_with_a_tiny_share_keep_their_gradient_in_fp16():
    """Where the label is nearly certain, all others share little: 9e-8 each, which fp16 rounds to 12e-8 or 6e-8."""
    words, rest = 8192, 7.3e-4
    head = nn.Linear(16, words).requires_grad_(requires_grad=False).half()
    head.weight[:] = torch.linspace(-2, 2, 16)
    head.weight[0] = 0
    head.bias[:] = 0
    head.bias[0] = math.log((words - 1) / rest)
    states = torch.zeros(2, 16, dtype=torch.float16, requires_grad=True)
    _, found = with_gradient(summed_loss, head, PLAIN, states, torch.zeros(2, dtype=torch.int64), upstream=64.0)
    torch.testing.assert_close(found.float(), 64 * rest * head.weight[1:3].float(), rtol=1e-2, atol=0)


def test_a_scalers_factor_beyond_fp16_still_gives_finite_gradients():
    head, (states, targets) = frozen_head(dtype=torch.float16), tokens(dtype=torch.float16)
    head.weight.mul_(0.001)
    _, once = with_gradient(summed_loss, head, PLAIN, states, targets)
    _, scaled = with_gradient(summed_loss, head, PLAIN, states, targets, upstream=2.0**25)
    assert torch.isfinite(scaled).all()
    assert scaled.abs().max() > 1000
    torch.testing.assert_close(scaled.float() / 2**25, once.float(), rtol=2e-3, atol=1e-6)


def test_the_graph_may_be_walked_twice():
    head, (states, targets) = frozen_head(), tokens()
    loss = summed_loss(head, PLAIN, states, targets)
    first, second = (torch.autograd.grad(loss, states, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_without_gradients_no_product_back_is_done():
    class OneWay(nn.Linear):
        def frozen_weight(self):
            return self

        def multiply(self, rows):
            return rows @ self.weight.t()

        def multiply_back(self, gradient, onto=None):
            raise AssertionError

    head, (states, targets) = OneWay(16, VOCABULARY, bias=False).requires_grad_(requires_grad=False), tokens()
    expected = plain_loss(head, PLAIN, states, targets)
    with torch.no_grad():
        torch.testing.assert_close(summed_loss(head, PLAIN, states, targets), expected.detach())
    torch.testing.assert_close(summed_loss(head, PLAIN, states.detach(), targets), expected.detach())
    with pytest.raises(AssertionError):
        summed_loss(head, PLAIN, states, targets)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_trained_head_gets_its_gradient(shape):
    head, (states, targets) = frozen_head(bias=True).requires_grad_(), tokens()
    found = torch.autograd.grad(summed_loss(head, shape, states, targets), [states, head.weight, head.bias])
    expected = torch.autograd.grad(plain_loss(head, shape, states, targets), [states, head.weight, head.bias])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_is_no_plain_product_is_called_as_the_module_it_is():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out_features = frozen_head(), VOCABULARY

        def forward(self, states):
            return self.inner(states) * 2

    head, (states, targets) = Doubled(), tokens()
    found = with_gradient(summed_loss, head, PLAIN, states, targets)
    expected = with_gradient(plain_loss, head.inner, LogitShape(scale=2.0), states, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_quantised_head_loses_what_its_own_weights_lose():
    head, (states, targets) = Int8Linear.from_linear(frozen_head(bias=True), group_size=32), tokens()
    plain = nn.Linear(16, VOCABULARY).requires_grad_(requires_grad=False)
    plain.weight.copy_(head.dequantize())
    plain.bias.copy_(head.bias)
    found = with_gradient(summed_loss, head, PLAIN, states, targets)
    torch.testing.assert_close(found, with_gradient(plain_loss, plain, PLAIN, states, targets), rtol=1e-5, atol=1e-5)


def test_logits_that_exist_give_the_same():
    head, (states, targets) = frozen_head(), tokens()

    def of_logits(head, _shape, states, targets):
        return summed_loss_of_logits(head(states), targets)

    found = with_gradient(of_logits, head, PLAIN, states, targets)
    torch.testing.assert_close(found, with_gradient(plain_loss, head, PLAIN, states, targets), rtol=1e-5, atol=1e-5)


def test_chunks_filled_to_one_size_change_nothing(monkeypatch):
    head, (states, targets) = frozen_head(), tokens()
    expected = with_gradient(summed_loss, head, PLAIN, states, targets)
    sizes, fill = [], head_module._label_tokens

    def filled(targets, size, *, pad):
        found = fill(targets, size, pad=True)
        sizes.append((size, len(found[0])))
        return found

    monkeypatch.setattr(head_module, "_label_tokens", filled)
    torch.testing.assert_close(with_gradient(summed_loss, head, PLAIN, states, targets), expected)
    trained = with_gradient(summed_loss, frozen_head().requires_grad_(), PLAIN, states, targets)
    torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-5)
    assert all(rows % size == 0 for size, rows in sizes)


def test_a_chunk_holds_as_many_logits_as_its_bytes_allow(monkeypatch):
    monkeypatch.setattr(head_module, "LOGIT_BYTES", 48_000_000)
    assert chunk_rows(1024, 49152, torch.float32) == 205  # 5 chunks of one size; 244 tokens would fit
    assert chunk_rows(1024, 49152, torch.bfloat16) == 147  # fp32 and bf16 logits side by side
    assert chunk_rows(100, 49152, torch.float32) == 100
    assert chunk_rows(8, 20_000_000, torch.float32) == 1
    for tokens in (1, 244, 245, 1000, 4096):
        assert 4 * 49152 * chunk_rows(tokens, 49152, torch.float32) <= 48_000_000


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("trained", [False, True])
def test_losses_of_tokens_are_those_of_plain_cross_entropy(shape, trained):
    head, (states, targets) = frozen_head(bias=True).requires_grad_(requires_grad=trained), tokens()
    logits = shape(nn.functional.linear(states, head.weight, head.bias)).detach()
    expected = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    found = token_losses(head, shape, states, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad
    torch.testing.assert_close(token_losses_of_logits(logits, targets), expected)
    assert found.sum() == pytest.approx(summed_loss(head, shape, states, targets).item(), rel=1e-6)


def test_tokens_that_only_fill_a_chunk_add_no_loss(monkeypatch):
    head, (states, targets) = frozen_head(), tokens(count=11)
    expected = token_losses(head, PLAIN, states, targets)
    label_tokens = head_module._label_tokens
    monkeypatch.setattr(
        head_module, "_label_tokens", lambda targets, size, *, pad: label_tokens(targets, size, pad=not pad)
    )
    torch.testing.assert_close(token_losses(head, PLAIN, states, targets), expected)


def test_no_label_gives_no_loss():
    head, (states, _) = frozen_head(), tokens()
    nothing = torch.full((29,), IGNORED)
    assert token_losses(head, PLAIN, states, nothing).tolist() == [0.0] * 29
