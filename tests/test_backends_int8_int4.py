"""The int4 layer: every weight within half a step of its group, products and gradients those of these weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from backends.int8.int4 import Int4Linear
from backends.int8.layer import layer_class
from backends.int8.linear import Int8Linear

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 200))


def weights(shape, seed, exponent=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent


def linear_with(weight, bias=None):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def spread(values, columns):
    return values.float().repeat_interleave(64, dim=1)[:, :columns]


@given(SHAPES, st.integers(0, 2**31), st.floats(-9, 6), st.floats(-3, 3))
@settings(deadline=None, max_examples=60)
def test_every_weight_is_within_half_a_step_wherever_its_group_lies(shape, seed, exponent, offset):
    weight = (weights(shape, seed) + offset) * 10.0**exponent
    layer = Int4Linear.from_linear(linear_with(weight))
    bound = spread(layer.scales, shape[1]) / 2
    rounding = 1e-6 * weight.abs() + 2e-6 * bound
    assert ((layer.dequantize() - weight).abs() <= bound * (1 + 1e-5) + rounding).all()
    assert layer.weight.dtype is torch.uint8
    assert layer.weight.shape == (shape[0], -(-shape[1] // 64) * 32)


@given(SHAPES, st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_a_step_is_hardly_longer_than_the_range_of_its_group_needs(shape, seed):
    weight = weights(shape, seed)
    layer = Int4Linear.from_linear(linear_with(weight))
    padded = torch.cat([weight, weight[:, -1:].expand(-1, -shape[1] % 64)], dim=1).unflatten(1, (-1, 64))
    needed = (padded.amax(-1) - padded.amin(-1)) / 15
    assert layer.scales.dtype is layer.zeros.dtype is torch.float16
    assert (layer.scales.float() <= needed * (1 + 2**-9) + padded.amin(-1).abs() * 2**-10 + 2**-23).all()


def test_groups_of_one_value_keep_it():
    weight = torch.zeros(3, 128)
    weight[1, 64:] = 0.3
    layer = Int4Linear.from_linear(linear_with(weight))
    assert torch.equal(layer.dequantize()[0], weight[0])
    torch.testing.assert_close(layer.dequantize()[1], weight[1], rtol=1e-3, atol=0)


def test_weights_beyond_the_range_of_fp16_get_fp32_scales():
    weight = torch.tensor([[3e7, -1e6], [1.0, 2.0]])
    layer = Int4Linear.from_linear(linear_with(weight))
    assert layer.scales.dtype is layer.zeros.dtype is torch.float32
    torch.testing.assert_close(layer.dequantize(), weight, rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_and_changes_nothing(value):
    layer = Int4Linear.from_linear(linear_with(weights((2, 70), 1)))
    before = layer.dequantize()
    bad = weights((2, 70), 2)
    bad[1, 69] = value
    with pytest.raises(ValueError, match="not finite"):
        layer.store(bad)
    assert torch.equal(layer.dequantize(), before)


def test_other_groups_and_other_products_are_refused():
    with pytest.raises(ValueError, match="choose one of 64"):
        Int4Linear(64, 8, group_size=128)
    with pytest.raises(ValueError, match="4-bit weights cannot compute 'int8'"):
        Int4Linear(64, 8, compute="int8")


@given(
    st.integers(1, 1200), st.integers(1, 300), st.booleans(), st.sampled_from([(), (3,), (2, 5)]), st.integers(0, 99)
)
@settings(deadline=None, max_examples=30)
def test_product_and_gradients_are_those_of_the_dequantised_weights(rows, columns, with_bias, batch, seed):
    bias = weights((rows,), seed) if with_bias else None
    layer = Int4Linear.from_linear(linear_with(weights((rows, columns), seed), bias))
    x = weights((*batch, columns), seed + 1).requires_grad_()
    reference = x.detach().clone().requires_grad_()
    y, wanted = layer(x), functional.linear(reference, layer.dequantize(), bias)
    grad = weights(y.shape, seed + 2)
    y.backward(grad)
    wanted.backward(grad)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, reference.grad, rtol=1e-4, atol=1e-3)


def test_the_gradient_is_the_derivative():
    layer = Int4Linear.from_linear(linear_with(weights((7, 70), 3), weights((7,), 4))).double()
    layer.bias.requires_grad_()
    x = weights((3, 70), 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_gives_half_precision_output_close_to_fp32(dtype):
    layer = Int4Linear.from_linear(linear_with(weights((600, 200), 6) * 0.05))
    x = weights((4, 200), 8).to(dtype)
    y = layer(x)
    assert y.dtype is dtype
    assert (y.float() - layer(x.float())).abs().max() < 0.05


def test_a_weight_takes_four_and_a_half_bits():
    layer = Int4Linear.from_linear(linear_with(weights((64, 1024), 13)))
    stored = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
    assert stored * 8 / (64 * 1024) == 4.5


def test_autograd_keeps_no_tensor():
    kept = []
    layer = Int4Linear.from_linear(linear_with(weights((128, 128), 12)))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(64, 128, requires_grad=True))
    assert kept == []


def test_casting_the_model_leaves_codes_scales_and_zeros_alone():
    layer = Int4Linear.from_linear(linear_with(weights((8, 64), 14), weights((8,), 15)))
    before = layer.dequantize()
    layer.to(torch.bfloat16).double()
    assert layer.bias.dtype is torch.float64
    assert torch.equal(layer.dequantize(), before)


def test_state_and_copies_are_bit_equal():
    layer = Int4Linear.from_linear(linear_with(weights((8, 100), 16), weights((8,), 17)))
    other = Int4Linear(100, 8)
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        assert torch.equal(twin.dequantize(), layer.dequantize())
        assert torch.equal(twin.bias, layer.bias)


def test_storing_another_weight_returns_what_quantising_changed():
    layer = Int4Linear.from_linear(linear_with(weights((40, 100), 18)))
    weight = weights((40, 100), 19)
    error = layer.store(weight)
    assert error == pytest.approx(float((layer.dequantize() - weight).norm() / weight.norm()), rel=1e-4)
    assert 0.07 < error < 0.1
    with pytest.raises(ValueError, match="does not fit"):
        layer.store(weight.t())


def test_peft_finds_the_true_weights():
    from peft.utils.integrations import dequantize_module_weight

    layer = Int4Linear.from_linear(linear_with(weights((8, 100), 20)))
    assert torch.equal(dequantize_module_weight(layer), layer.dequantize())


def test_the_bits_choose_the_layer():
    assert layer_class(4) is Int4Linear
    assert layer_class(8) is Int8Linear
    with pytest.raises(ValueError, match="choose one of 8, 4"):
        layer_class(3)
