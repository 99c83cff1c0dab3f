"""What only a Mac can show: that the parts give on its GPU what they give on the CPU. Left out elsewhere."""

import pytest
import torch

from backends.contract import AdapterRequest, ModelRequest
from backends.devices import Device
from backends.int8 import Int8Linear
from backends.registry import open_backend

DEVICE = Device.MPS

pytestmark = pytest.mark.mps


def relative(found, expected):
    return float((found.cpu().float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("features", [128, 112])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_int8_layers_give_what_they_give_on_the_cpu(features, dtype, allowed):
    torch.manual_seed(1)
    layer = Int8Linear.from_linear(torch.nn.Linear(features, 96), group_size=32)
    x, upward = torch.randn(17, features), torch.randn(17, 96)

    def run(layer, device, dtype):
        inputs = x.clone().to(device, dtype).requires_grad_()
        result = layer(inputs)
        result.backward(upward.to(device, dtype))
        return result.detach(), inputs.grad

    expected = run(layer, "cpu", torch.float32)
    found = run(layer.to(DEVICE.value, dtype), DEVICE.value, dtype)
    assert relative(found[0], expected[0]) < allowed
    assert relative(found[1], expected[1]) < allowed


@pytest.mark.parametrize("documents", [None, (0, 40, 71)])
def test_blocked_attention_gives_what_it_gives_on_the_cpu(documents):
    from backends.blocked_attention import blocked_attention

    torch.manual_seed(2)
    query, key, value = (torch.randn(1, heads, 96, 16) for heads in (4, 2, 2))
    first = None
    if documents:
        starts = torch.tensor(documents)
        first = torch.stack([starts[starts <= position].max() for position in range(96)])[None]

    def run(device):
        inputs = [tensor.detach().to(device).requires_grad_() for tensor in (query, key, value)]
        result = blocked_attention(*inputs, first=None if first is None else first.to(device))
        result.sin().sum().backward()
        return [result.detach(), *(tensor.grad for tensor in inputs)]

    for found, expected in zip(run(DEVICE.value), run("cpu"), strict=True):
        assert relative(found, expected) < 1e-4


def test_a_checkpoint_brings_back_the_generator_of_the_device():
    from jobs.randomness import random_state, restore_random_state, seed_everything

    seed_everything(5)
    state = random_state()
    drawn = torch.rand(8, device=DEVICE.value).cpu()
    torch.rand(100, device=DEVICE.value)
    restore_random_state(state)
    assert torch.equal(torch.rand(8, device=DEVICE.value).cpu(), drawn)


@pytest.mark.parametrize("kind", ["int8", "nf4", "none"])
def test_a_backend_learns_on_the_device_what_it_learns_on_the_cpu(kind, tiny_model_folder):
    def last_loss(device):
        request = ModelRequest(
            name=str(tiny_model_folder), adapter=AdapterRequest(rank=4, alpha=8), device=device, group_size=32
        )
        loaded = open_backend(kind, device).load(request)
        assert loaded.memory_in_use() > 0
        return train(loaded)

    before, after = last_loss(Device.CPU)
    assert after < before - 0.1
    assert last_loss(DEVICE) == pytest.approx((before, after), abs=0.05)


def train(loaded, steps=10):
    """The loss before and after some steps on one batch."""
    model = loaded.model.train()
    generator = torch.Generator().manual_seed(5)
    parameters = [tensor for _, tensor in model.named_parameters() if tensor.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    ids = torch.randint(0, 256, (2, 24), generator=generator).to(loaded.torch_device)
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps + 1):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss.float()
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss * 64).backward()
        for parameter in parameters:
            parameter.grad /= 64
        optimizer.step()
    return losses[0], losses[-1]
