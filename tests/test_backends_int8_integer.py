"""Products of integers: those of floats up to the rounding of activations, on each road that torch offers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from backends.devices import Device
from backends.int8 import Int8Linear, integer, packed
from backends.int8.integer import IntegerWeight, integer_gain


@pytest.fixture(params=["int_mm", "packed"])
def road(request, monkeypatch):
    if request.param == "packed" and not packed.available():
        pytest.skip("this torch has no fbgemm")
    monkeypatch.setattr(integer, "_packed_is_faster", lambda: request.param == "packed")
    return request.param


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(outputs, inputs, *, bias=False, seed=1):
    linear = nn.Linear(inputs, outputs, bias=bias)
    linear.weight = nn.Parameter(normal((outputs, inputs), seed) * 0.05)
    return Int8Linear.from_linear(linear, group_size=None, compute="int8")


def error(found, wanted):
    return float((found.detach() - wanted).norm() / wanted.norm())


#: Of the product; seven bits instead of eight double it.
ROUNDING = {"int_mm": 0.012, "packed": 0.024}


@given(st.integers(1, 40), st.integers(8, 90), st.integers(8, 90), st.integers(0, 999))
@settings(deadline=None, max_examples=25)
def test_both_products_are_those_of_the_dequantised_weight_up_to_the_rounding_of_one_factor(
    tokens, inputs, outputs, seed
):
    layer = layer_of(outputs, inputs, seed=seed)
    weight = layer.dequantize()
    x, gradient = normal((tokens, inputs), seed + 1), normal((tokens, outputs), seed + 2)
    held = layer.frozen_weight()
    step = x.abs().amax(dim=1, keepdim=True) / (63 if integer._packed_is_faster() else 127)
    bound = step / 2 * weight.abs().sum(dim=1) * 1.05 + 1e-5
    assert ((held.multiply(x) - x @ weight.t()).abs() <= bound).all()
    scaled = gradient * held.scales.float().t()
    step = scaled.abs().amax(dim=1, keepdim=True) / (63 if integer._packed_is_faster() else 127)
    bound = step / 2 * held.codes.float().abs().sum(dim=0) * 1.05 + 1e-5
    assert ((held.multiply_back(gradient) - gradient @ weight).abs() <= bound).all()


def test_the_error_is_that_of_a_few_bits(road):
    layer = layer_of(96, 256, bias=True)
    x = normal((64, 256), 2).requires_grad_()
    y = layer(x)
    y.backward(normal(y.shape, 3))
    weight = layer.dequantize()
    assert error(y - layer.bias, x.detach() @ weight.t()) < ROUNDING[road]
    assert error(x.grad, normal(y.shape, 3) @ weight) < ROUNDING[road]


def test_a_token_with_large_values_does_not_coarsen_the_others(road):
    layer = layer_of(32, 64)
    x = normal((8, 64), 4)
    loud = x.clone()
    loud[3] *= 1000
    others = [0, 1, 2, 4, 5, 6, 7]
    torch.testing.assert_close(layer(loud)[others], layer(x)[others], rtol=0.05, atol=0.02)


def test_sums_of_the_largest_codes_are_not_cut_off(road):
    codes = torch.full((8, 512), 127, dtype=torch.int8)
    weight = IntegerWeight(codes, torch.ones(8, 1, dtype=torch.float16))
    x = torch.ones(4, 512)
    x[1] = -1
    torch.testing.assert_close(weight.multiply(x)[:, 0], x[:, 0] * 127 * 512, rtol=0.02, atol=0)
    torch.testing.assert_close(weight.multiply_back(x[:, :8])[:, 0], x[:, 0] * 127 * 8, rtol=0.02, atol=0)


def test_sums_too_long_for_int32_are_added_in_parts(monkeypatch):
    monkeypatch.setattr(integer, "LONGEST_SUM", 10)
    left, right = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((3, 64), (64, 5)))
    assert torch.equal(integer._sums(left, right), left.float() @ right.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_stays_so_and_harms_no_other(road, value):
    layer = layer_of(16, 32)
    x = normal((4, 32), 5)
    whole = layer(x)
    x[3] = value
    y = layer(x)
    assert not y[3].isfinite().any()
    torch.testing.assert_close(y[:3], whole[:3], rtol=0.05, atol=0.02)


def test_tokens_of_zeros_and_no_tokens_at_all(road):
    layer = layer_of(16, 32)
    assert torch.equal(layer(torch.zeros(2, 3, 32)), torch.zeros(2, 3, 16))
    assert layer(torch.zeros(0, 32)).shape == (0, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type(road, dtype):
    layer = layer_of(16, 32)
    x = normal((4, 32), 6).to(dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype is x.grad.dtype is dtype
    torch.testing.assert_close(y.float(), layer(x.detach().float()), rtol=0.02, atol=0.01)


def test_the_product_back_can_be_added_onto_another(road):
    held = layer_of(16, 32).frozen_weight()
    gradient, onto = normal((4, 16), 7), normal((4, 32), 8)
    wanted = onto + held.multiply_back(gradient)
    assert held.multiply_back(gradient, onto=onto) is onto
    torch.testing.assert_close(onto, wanted)


def test_packed_copies_follow_the_weight(monkeypatch):
    if not packed.available():
        pytest.skip("this torch has no fbgemm")
    monkeypatch.setattr(integer, "_packed_is_faster", lambda: True)
    layer, other = layer_of(16, 32), layer_of(16, 32, seed=9)
    x = normal((4, 32), 10)
    before = layer(x)
    twin = copy.deepcopy(layer)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    layer.store(normal((16, 32), 1) * 0.05)
    assert torch.equal(layer(x), before)
    assert torch.equal(twin(x), before)
    assert list(layer.state_dict()) == ["weight", "scales"]


def test_factors_are_padded_as_cuda_wants_them():
    left, right = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((3, 30), (30, 5)))
    wide_left, wide_right, shape = integer._padded(left, right)
    assert (wide_left.shape, wide_right.shape, shape) == ((24, 32), (32, 8), (3, 5))
    product = wide_left.float() @ wide_right.float()
    assert torch.equal(product[:3, :5], left.float() @ right.float())
    fitting = torch.zeros(32, 16, dtype=torch.int8), torch.zeros(16, 8, dtype=torch.int8)
    assert all(one is two for one, two in zip(integer._padded(*fitting), fitting, strict=False))


def test_groups_smaller_than_rows_are_refused():
    with pytest.raises(ValueError, match="one scale per row"):
        Int8Linear(8, 8, group_size=128, compute="int8")
    with pytest.raises(ValueError, match="cannot compute 'int9'"):
        Int8Linear(8, 8, group_size=None, compute="int9")


def test_the_gain_on_this_cpu_is_measured_and_said():
    found = integer_gain(Device.CPU)
    assert found.gain > 0
    assert f"{found.gain:.2g} times as fast as floats here" in found.sentence
    assert found.usable != ("set quantization.compute to exact" in found.sentence)
    assert integer_gain(Device.CPU) is found


def test_a_cpu_that_multiplies_integers_one_by_one_is_refused(monkeypatch):
    monkeypatch.setattr(integer, "_packed_is_faster", lambda: False)
    monkeypatch.setattr(integer, "_gain", lambda *_: 0.02)
    found = integer_gain.__wrapped__(Device.CPU)
    assert not found.usable
    assert "0.02 times as fast" in found.sentence
    assert "set quantization.compute to exact" in found.sentence


def test_apple_gpus_are_refused_with_a_sentence():
    found = integer_gain(Device.MPS)
    assert not found.usable
    assert "no integer matrix product" in found.sentence


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(3, 30, 5), (64, 256, 128)])
def test_cuda_gives_what_the_cpu_gives(shape):
    tokens, inputs, outputs = shape
    layer = layer_of(outputs, inputs)
    x = normal((tokens, inputs), 11)
    held, moved = layer.frozen_weight(), layer.to("cuda").frozen_weight()
    torch.testing.assert_close(moved.multiply(x.cuda()).cpu(), held.multiply(x), rtol=0.05, atol=0.05)
