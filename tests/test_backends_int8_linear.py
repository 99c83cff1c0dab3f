"""The int8 layer: every weight within half a scale, products and gradients those of the dequantised weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from backends.int8 import Int8Linear, tiles
from backends.int8.linear import GROUP_SIZES, quantize

SIZES = (*GROUP_SIZES, None)
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 300))


def weights(shape, seed, exponent=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent


def spread(scales, columns, group_size):
    return scales.float().repeat_interleave(group_size or columns, dim=1)[:, :columns]


@given(SHAPES, st.integers(0, 2**31), st.sampled_from(SIZES), st.floats(-9, 6))
@settings(deadline=None, max_examples=60)
def test_every_weight_is_within_half_a_scale_whatever_its_size(shape, seed, group_size, exponent):
    weight = weights(shape, seed, exponent)
    linear = nn.Linear(shape[1], shape[0], bias=False)
    linear.weight = nn.Parameter(weight)
    layer = Int8Linear.from_linear(linear, group_size=group_size)
    bound = spread(layer.scales, shape[1], group_size) / 2
    assert ((layer.dequantize() - weight).abs() <= bound * (1 + 1e-5)).all()
    assert layer.weight.dtype is torch.int8
    assert layer.weight.shape == weight.shape
    assert int(layer.weight.min()) >= -127


@given(SHAPES, st.integers(0, 2**31), st.sampled_from(GROUP_SIZES))
@settings(deadline=None, max_examples=40)
def test_a_scale_is_hardly_larger_than_the_largest_weight_needs(shape, seed, group_size):
    weight = weights(shape, seed)
    _, scales = quantize(weight, group_size)
    needed = functional.pad(weight, (0, -shape[1] % group_size)).unflatten(1, (-1, group_size)).abs().amax(-1) / 127
    assert scales.dtype is torch.float16
    assert (scales.float() <= needed * (1 + 2**-9) + 2**-23).all()


def test_groups_of_zeros_stay_zeros():
    weight = torch.zeros(3, 256)
    weight[1, 130] = 1.0
    codes, scales = quantize(weight, 128)
    assert (scales > 0).all()
    assert torch.count_nonzero(codes) == 1
    layer = Int8Linear.from_linear(linear_with(weight))
    assert torch.equal(layer.dequantize()[0], weight[0])
    assert layer(torch.randn(2, 256)).isfinite().all()


def linear_with(weight, bias=None):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def test_weights_beyond_the_range_of_fp16_scales_get_fp32_scales():
    layer = Int8Linear.from_linear(linear_with(torch.tensor([[3e7, -1.0], [1.0, 2.0]])))
    assert layer.scales.dtype is torch.float32
    assert torch.allclose(layer.dequantize()[0, 0], torch.tensor(3e7))
    assert layer(torch.ones(1, 2)).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        quantize(torch.tensor([[1.0, value]]), 32)


def test_a_group_size_that_is_not_offered_is_refused():
    with pytest.raises(ValueError, match="choose one of"):
        quantize(torch.ones(2, 2), 48)


def test_weights_with_other_strides_give_the_same_layer():
    weight = weights((96, 70), 1)
    strided = weight.t().contiguous().t()
    sliced = torch.cat([weight, weight], dim=1)[:, :70]
    for other in (strided, sliced):
        assert not other.is_contiguous()
        assert all(torch.equal(one, two) for one, two in zip(quantize(weight, 32), quantize(other, 32), strict=True))


@given(
    st.tuples(st.integers(1, 1200), st.integers(1, 300)),
    st.booleans(),
    st.sampled_from([(), (3,), (2, 5)]),
    st.sampled_from(SIZES),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_product_and_gradients_are_those_of_the_dequantised_weights(shape, with_bias, batch, group_size, seed):
    rows, columns = shape
    bias = weights((rows,), seed) if with_bias else None
    layer = Int8Linear.from_linear(linear_with(weights((rows, columns), seed), bias), group_size=group_size)
    x = weights((*batch, columns), seed + 1).requires_grad_()
    reference = x.detach().clone().requires_grad_()
    y, wanted = layer(x), functional.linear(reference, layer.dequantize(), bias)
    grad = weights(y.shape, seed + 2)
    y.backward(grad)
    wanted.backward(grad)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, reference.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("group_size", [32, None])
def test_the_gradient_is_the_derivative(group_size):
    layer = Int8Linear.from_linear(linear_with(weights((7, 40), 3), weights((7,), 4)), group_size=group_size).double()
    layer.bias.requires_grad_()
    x = weights((3, 40), 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.bias))
    assert layer.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_gives_half_precision_output_close_to_fp32(dtype):
    layer = Int8Linear.from_linear(linear_with(weights((600, 256), 6) * 0.05, weights((600,), 7)))
    x = weights((4, 256), 8)
    y = layer(x.to(dtype))
    assert y.dtype is dtype
    assert (y.float() - layer(x)).abs().max() < 0.05


def test_strided_input_and_gradient_are_taken_as_they_come():
    layer = Int8Linear.from_linear(linear_with(weights((48, 32), 9)))
    x = weights((32, 6), 10).t().requires_grad_()
    y = layer(x)
    y.backward(weights((48, 6), 11).t())
    torch.testing.assert_close(y, functional.linear(x.detach(), layer.dequantize()), rtol=1e-4, atol=1e-5)


def test_autograd_keeps_no_tensor():
    kept = []
    layer = Int8Linear.from_linear(linear_with(weights((512, 512), 12)))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(64, 512, requires_grad=True))
    assert kept == []


def test_a_hundred_and_twenty_eight_weights_take_a_hundred_and_thirty_bytes():
    layer = Int8Linear.from_linear(linear_with(weights((64, 1024), 13)))
    stored = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
    assert stored * 8 / (64 * 1024) == 8.125


def test_one_scale_per_row_takes_two_bytes_a_row():
    layer = Int8Linear.from_linear(linear_with(weights((8, 100), 22)), group_size=None)
    assert layer.scales.shape == (8, 1)
    assert "group_size=None" in repr(layer)


def test_storing_another_weight_returns_what_quantising_changed():
    layer = Int8Linear.from_linear(linear_with(weights((700, 100), 23)), group_size=64)
    weight = weights((100, 700), 24).t()
    error = layer.store(weight)
    assert error == pytest.approx(float((layer.dequantize() - weight).norm() / weight.norm()), rel=1e-4)
    assert 0 < error < 0.0066
    assert layer.store(torch.zeros(700, 100)) == 0.0
    assert not layer.weight.requires_grad


def test_a_weight_that_cannot_be_stored_changes_nothing():
    layer = Int8Linear.from_linear(linear_with(weights((4, 32), 25)))
    before = layer.dequantize()
    with pytest.raises(ValueError, match="not finite"):
        layer.store(torch.full((4, 32), torch.nan))
    with pytest.raises(ValueError, match="does not fit 4 x 32"):
        layer.store(torch.ones(32, 4))
    assert torch.equal(layer.dequantize(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_any_float_type_are_taken(dtype):
    weight = weights((8, 100), 26).to(dtype)
    layer = Int8Linear.from_linear(linear_with(weight), group_size=32)
    assert ((layer.dequantize() - weight.float()).abs() <= spread(layer.scales, 100, 32) / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("shape", [(3, 5000), (5000, 3)])
def test_tiles_cover_products_that_need_several(shape, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", 2**10)
    layer = Int8Linear.from_linear(linear_with(weights(shape, 27)), group_size=256)
    held, weight = layer.frozen_weight(), layer.dequantize()
    x, gradient = weights((2, shape[1]), 28), weights((2, shape[0]), 29)
    torch.testing.assert_close(held.multiply(x), x @ weight.t(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(held.multiply_back(gradient), gradient @ weight, rtol=1e-4, atol=1e-3)
    onto = torch.ones(2, shape[1])
    assert held.multiply_back(gradient, onto=onto) is onto
    torch.testing.assert_close(onto, gradient @ weight + 1, rtol=1e-4, atol=1e-3)


def test_casting_the_model_leaves_codes_and_scales_alone():
    layer = Int8Linear.from_linear(linear_with(weights((8, 64), 14), weights((8,), 15)))
    before = layer.dequantize()
    layer.to(torch.bfloat16).half()
    assert layer.bias.dtype is torch.float16
    assert torch.equal(layer.dequantize(), before)


def test_state_goes_from_one_layer_to_another():
    layer = Int8Linear.from_linear(linear_with(weights((8, 100), 16), weights((8,), 17)), group_size=64)
    other = Int8Linear(100, 8, group_size=64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dequantize(), layer.dequantize())
    assert "group_size=64" in repr(other)
    twin = copy.deepcopy(layer)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in layer.state_dict().items())


def test_autocast_does_not_change_the_type_of_products():
    layer = Int8Linear.from_linear(linear_with(weights((8, 64), 18)))
    x = torch.randn(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, layer(x))


def test_a_layer_can_be_trained_through_after_it_ran_in_inference_mode():
    layer = Int8Linear.from_linear(nn.Linear(640, 900))
    with torch.inference_mode():
        layer(torch.ones(2, 640))
    x = torch.ones(2, 640, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(dim=0).expand(2, -1))
