"""The optimizers: what each holds, and that a run goes on from the saved state as if it had not stopped."""

import json
import struct

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn

from backends import optimizers
from backends.devices import Device
from backends.errors import BackendUnavailable
from jobs.checkpoint import CheckpointDamaged
from jobs.optimizer import (
    FILE,
    load_optimizer,
    make_optimizer,
    refuse_unavailable,
    save_optimizer,
    set_rate,
    trainable,
)
from jobs.spec import OptimizationSection

torch.set_num_threads(1)

NAMES = ("adamw", "adamw8bit", "adafactor")


class Adapter(nn.Module):
    """Matrices large and small for 8-bit state, a vector as DoRA's magnitudes, and a frozen base."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(17)
        self.base = nn.Parameter(torch.randn(96, 96, generator=generator), requires_grad=False)
        self.lora_a = nn.Parameter(torch.randn(64, 96, generator=generator) / 10)
        self.lora_b = nn.Parameter(torch.zeros(96, 64))
        self.small = nn.Parameter(torch.randn(4, 96, generator=generator) / 10)
        self.magnitude = nn.Parameter(torch.ones(96))

    def forward(self, x):
        return (x @ self.base + x @ self.lora_a.T @ self.lora_b.T) * self.magnitude + (x @ self.small.T).sum(-1)[
            :, None
        ]


def section(name, **changed):
    return OptimizationSection(optimizer=name, **{"learning_rate": 1e-2, **changed})


def run_steps(model, optimizer, numbers):
    """One optimizer step for each number, which also is the seed of its input, with a learning rate of its own."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        x, y = torch.randn(8, 96, generator=generator), torch.randn(8, 96, generator=generator)
        (model(x) - y).square().mean().backward()
        set_rate(optimizer, 1e-2 / (number + 1))
        optimizer.step()
        optimizer.zero_grad()


def same(left, right):
    return left.dtype == right.dtype and torch.equal(left, right)


def bytes_of_state(optimizer, parameter):
    return sum(
        value.numel() * value.element_size()
        for key, value in optimizer.state[parameter].items()
        if torch.is_tensor(value) and key not in optimizers.TABLES and key != "step"
    )


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "prepared by accelerate"])
@pytest.mark.parametrize("name", NAMES)
def test_steps_after_a_reload_are_bit_equal_to_those_without_one(tmp_path, name, wrapped):
    AcceleratorState._reset_state(reset_partial_state=True)
    prepare = Accelerator(cpu=True).prepare_optimizer if wrapped else (lambda optimizer: optimizer)
    model = Adapter()
    optimizer = prepare(make_optimizer(model, section(name)))
    run_steps(model, optimizer, range(3))
    save_optimizer(optimizer, model, tmp_path)
    again = Adapter()
    again.load_state_dict(model.state_dict())
    fresh = prepare(make_optimizer(again, section(name)))
    load_optimizer(fresh, again, tmp_path)
    run_steps(model, optimizer, range(3, 7))
    run_steps(again, fresh, range(3, 7))
    for parameter, other in zip(model.parameters(), again.parameters(), strict=True):
        assert same(parameter, other)
    for parameter, other in zip(trainable(model).values(), trainable(again).values(), strict=True):
        assert optimizer.state[parameter].keys() == fresh.state[other].keys()
        for key, value in optimizer.state[parameter].items():
            restored = fresh.state[other][key]
            assert type(value) is type(restored), key
            assert same(torch.as_tensor(value), torch.as_tensor(restored)), key


@pytest.mark.parametrize("name", NAMES)
def test_a_state_saved_loaded_and_saved_again_is_the_same_file(tmp_path, name):
    model = Adapter()
    optimizer = make_optimizer(model, section(name))
    run_steps(model, optimizer, range(2))
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    save_optimizer(optimizer, model, tmp_path / "first")
    fresh = make_optimizer(model, section(name))
    load_optimizer(fresh, model, tmp_path / "first")
    save_optimizer(fresh, model, tmp_path / "second")
    first, second = (load_file(tmp_path / folder / FILE) for folder in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(same(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_before_the_first_step_there_is_nothing_to_save_and_nothing_to_put_back(tmp_path, name):
    model = Adapter()
    save_optimizer(make_optimizer(model, section(name)), model, tmp_path)
    assert load_file(tmp_path / FILE) == {}
    optimizer = make_optimizer(model, section(name))
    load_optimizer(optimizer, model, tmp_path)
    run_steps(model, optimizer, [0])


def test_tables_of_the_8_bit_codes_are_held_and_written_once(tmp_path):
    model = Adapter()
    optimizer = make_optimizer(model, section("adamw8bit"))
    run_steps(model, optimizer, [0])
    save_optimizer(optimizer, model, tmp_path)
    written = load_file(tmp_path / FILE)
    assert {key for key in written if "qmap" in key} == {"*/qmap1", "*/qmap2"}
    fresh = make_optimizer(model, section("adamw8bit"))
    load_optimizer(fresh, model, tmp_path)
    assert fresh.state[model.lora_a]["qmap1"].data_ptr() == fresh.state[model.lora_b]["qmap1"].data_ptr()
    assert "qmap1" not in fresh.state[model.small]


def test_nothing_in_the_file_is_pickled_and_parameters_are_named(tmp_path):
    model = Adapter()
    optimizer = make_optimizer(model, section("adamw8bit"))
    run_steps(model, optimizer, [0])
    save_optimizer(optimizer, model, tmp_path)
    content = (tmp_path / FILE).read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert header["lora_a/state1"]["dtype"] == "U8"
    assert header["lora_a/step"] == header["small/step"] | {"data_offsets": header["lora_a/step"]["data_offsets"]}
    assert {name.partition("/")[0] for name in header} == {"*", *trainable(model)}


def test_state_of_a_parameter_that_the_model_lacks_is_refused(tmp_path):
    model = Adapter()
    save_file({"elsewhere/exp_avg": torch.zeros(2)}, tmp_path / FILE)
    with pytest.raises(CheckpointDamaged, match="elsewhere, which this model lacks"):
        load_optimizer(make_optimizer(model, section("adamw")), model, tmp_path)


def test_bytes_of_state_are_those_that_the_memory_model_counts():
    model = Adapter()
    matrix, rows, columns = model.lora_a, 64, 96
    counted = {}
    for name in NAMES:
        optimizer = make_optimizer(model, section(name))
        run_steps(model, optimizer, [0])
        counted[name] = bytes_of_state(optimizer, matrix)
    assert counted == {
        "adamw": 8 * rows * columns,
        "adamw8bit": 2 * rows * columns + 8 * -(-rows * columns // 256),
        "adafactor": 4 * (rows + columns),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_learning_rate_moves_weights_about_as_far_with_each(name):
    """Also those that begin at zero: LoRA's B, whose relative size says nothing."""
    model = Adapter()
    optimizer = make_optimizer(model, section(name, learning_rate=1e-3))
    before = {key: value.detach().clone() for key, value in trainable(model).items()}
    run_steps(model, optimizer, [9])  # its rate is 1e-2 / 10
    for key in ("lora_b", "small", "magnitude"):
        moved = (trainable(model)[key] - before[key]).square().mean().sqrt()
        assert 0.5e-3 < moved < 1.5e-3, key


@pytest.mark.parametrize("name", NAMES)
def test_gradients_as_small_as_clipping_makes_them_are_not_flattened(name):
    """Adafactor's own epsilon is above the mean square of such gradients: rows of 1 % would move 1 % as far."""
    parameter = nn.Parameter(torch.zeros(64, 128))
    optimizer = optimizers.make(name, [parameter], learning_rate=1e-3, weight_decay=0.0)
    scale = torch.logspace(-7, -5, 64)[:, None]
    for _ in range(2):
        parameter.grad = torch.ones(64, 128) * scale
        optimizer.step()
    moved = parameter.abs().mean(dim=1)
    assert moved.min() > 0.5 * moved.max()


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_shrinks_by_the_learning_rate_times_itself(name):
    parameter = nn.Parameter(torch.full((64, 128), 3.0))
    optimizer = optimizers.make(name, [parameter], learning_rate=1e-2, weight_decay=0.1)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(parameter, torch.full((64, 128), 3.0 * (1 - 1e-3)))


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_scaler_skips_the_step_that_overflows_and_takes_the_next(name):
    model = Adapter()
    optimizer = make_optimizer(model, section(name))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    before = model.lora_b.detach().clone()
    for overflows in (True, False):
        scaler.scale(model(torch.ones(2, 96)).square().mean()).backward()
        if overflows:
            model.lora_b.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, model.lora_b) == overflows
    assert scaler.get_scale() == 2.0**7


def test_without_bitsandbytes_the_other_two_are_named(monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    sentence = optimizers.check("adamw8bit", Device.CPU)
    assert "bitsandbytes, which is not installed" in sentence
    assert sentence.endswith("set optimization.optimizer to adamw or adafactor.")
    with pytest.raises(BackendUnavailable, match="adamw or adafactor"):
        make_optimizer(Adapter(), section("adamw8bit"))


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_an_8_bit_step_that_fails_on_the_device_is_a_sentence(monkeypatch, error):
    """As on Apple GPUs, for which bitsandbytes loads and has no such kernel."""

    def step(*_):
        raise error

    monkeypatch.setattr("bitsandbytes.optim.AdamW8bit.step", step)
    assert "no 8-bit AdamW on cpu: set optimization.optimizer to adamw" in optimizers.check("adamw8bit", Device.CPU)


def test_a_resumed_run_is_told_that_its_optimizer_cannot_be_changed(monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match="adafactor for a new run; this one began with adamw8bit"):
        refuse_unavailable(section("adamw8bit"), Device.CPU, resumes=True)
    refuse_unavailable(section("adafactor"), Device.CPU, resumes=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_runs_on_this_cpu(name):
    assert optimizers.check(name, Device.CPU) is None


def test_an_unknown_name_is_a_sentence():
    with pytest.raises(BackendUnavailable, match="adamw, adamw8bit or adafactor"):
        optimizers.make("sgd", [nn.Parameter(torch.zeros(2))], learning_rate=1.0, weight_decay=0.0)


class TwoNames(nn.Module):
    """Parameters named as PEFT names them, B before A: groups count them in another order than the model does."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(17)
        self.one, self.two = (
            nn.ModuleDict(
                {
                    "lora_B": nn.ModuleDict({"default": nn.Linear(64, 96, bias=False)}),
                    "lora_A": nn.ModuleDict({"default": nn.Linear(96, 64, bias=False)}),
                }
            )
            for _ in range(2)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)

    def forward(self, x):
        for part in (self.one, self.two):
            x = x + part["lora_B"]["default"](part["lora_A"]["default"](x))
        return x


@pytest.mark.parametrize("name", NAMES)
def test_state_of_groups_goes_back_to_its_own_parameters(tmp_path, name):
    model, again = TwoNames(), TwoNames()
    chosen = section(name, lora_plus_ratio=8.0)
    optimizer = make_optimizer(model, chosen)
    run_steps(model, optimizer, range(3))
    save_optimizer(optimizer, model, tmp_path)
    again.load_state_dict(model.state_dict())
    fresh = make_optimizer(again, chosen)
    load_optimizer(fresh, again, tmp_path)
    assert [group.get("factor", 1.0) for group in fresh.param_groups] == [1.0, 8.0]
    run_steps(model, optimizer, range(3, 6))
    run_steps(again, fresh, range(3, 6))
    for parameter, other in zip(model.parameters(), again.parameters(), strict=True):
        assert same(parameter, other)


def test_a_group_with_a_factor_learns_so_many_times_as_fast():
    parameters = [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "factor": 16.0}]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 4.0]
