"""The test of a device finds what is wrong with it, and says nothing of one that computes rightly.

The CPU stands for the device; what is broken is broken for the tested side alone.
"""

from dataclasses import replace

import pytest
import torch

from backends import hardware, self_test
from backends.devices import Device
from backends.hardware import Precision
from backends.int8.backend import Int8
from backends.self_test import Verdict
from backends.self_test import examine as compare


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loader(change):
    """The CPU's loader with `change` done to the loaded model."""

    def broken(request):
        loaded = Int8().load(request)
        change(loaded.model, request.gradient_checkpointing)
        return loaded

    return broken


def test_the_cpu_agrees_with_itself():
    verdict = compare(Device.CPU)
    assert verdict.fault is None
    assert verdict.untested is None
    assert set(verdict.differences) == {"loss", "gradient", "recomputed gradient", "loss after 4 steps"}
    assert max(verdict.differences.values()) < 1e-5
    assert "agrees with the CPU" in verdict.summary


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_sixteen_bits_is_no_fault(monkeypatch, dtype):
    def rounded(request):
        with monkeypatch.context() as patch:
            patch.setattr(hardware, "precision", lambda device: Precision(dtype=dtype, reason=""))
            return Int8().load(request)

    verdict = compare(Device.CPU, rounded)
    assert verdict.fault is None
    assert verdict.dtype == str(dtype).removeprefix("torch.")
    allowed = self_test.TOLERANCES[verdict.dtype].gradient
    assert allowed / 50 < verdict.differences["gradient"] < allowed / 2


def scale_gradients(factor):
    def change(model, _checkpointing):
        head = next(p for name, p in model.named_parameters() if "layers.0" in name and "lora_B" in name)
        head.register_hook(lambda gradient: gradient * factor)

    return change


def test_a_wrong_gradient_is_named_with_its_size():
    fault = compare(Device.CPU, loader(scale_gradients(1.3))).fault
    assert "the gradient of a tiny model differs from the CPU's by" in fault
    assert "rounding explains 0.2% at most" in fault


def test_a_gradient_that_is_no_number_is_a_fault():
    assert "gradient" in compare(Device.CPU, loader(scale_gradients(float("nan")))).fault


def test_a_gradient_that_is_missing_altogether_is_a_fault():
    def freeze(model, _checkpointing):
        next(p for name, p in model.named_parameters() if "lora_A" in name).requires_grad_(requires_grad=False)

    assert compare(Device.CPU, loader(freeze)).fault is not None


def test_documents_that_see_each_other_are_a_fault():
    def see_all(model, _checkpointing):
        forward = model.forward
        model.forward = lambda position_ids, **rest: forward(
            **rest, position_ids=torch.arange(position_ids.shape[1])[None]
        )

    assert "the loss of a tiny model differs" in compare(Device.CPU, loader(see_all)).fault


def test_a_device_that_forgets_its_dropout_masks_is_a_fault():
    """What Metal does without `backends.checkpointing`."""

    def forget(model, checkpointing):
        if checkpointing:
            base = model.get_base_model()
            enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
            enable({"use_reentrant": False, "preserve_rng_state": False})

    fault = compare(Device.CPU, loader(forget)).fault
    assert "the recomputed gradient" in fault
    assert "without recomputing" in fault


def test_a_device_that_cannot_do_it_at_all_is_a_fault():
    def fails(request):
        raise NotImplementedError("aten::no_such is not implemented for MPS")

    fault = compare(Device.CPU, fails).fault
    assert "aten::no_such" in fault
    assert "update PyTorch" in fault


def test_a_device_without_free_memory_is_not_blamed():
    def full(request):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)")

    verdict = compare(Device.CPU, full)
    assert verdict.fault is None
    assert "not tested: cpu has no free memory" in verdict.summary


def test_a_verdict_travels_as_json():
    verdict = Verdict(device="mps", dtype="float16", seconds=2.5, differences={"loss": 0.0012})
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert verdict.summary == "agrees with the CPU within 0.12% in float16, 2.5 s"
    assert replace(verdict, fault="It is broken.").summary == "It is broken."
    with pytest.raises(ValueError, match="unexpected"):
        Verdict.from_json('{"nonsense": 1}')


@pytest.mark.mps
def test_metal_agrees_with_the_cpu():
    verdict = compare(Device.MPS)
    assert verdict.fault is None, verdict.fault
    assert verdict.untested is None
