"""The policy of each device. CUDA and Metal are pretended here: their answers, never their arithmetic."""

import pytest
import torch

from backends import hardware
from backends.adapters import attach
from backends.contract import AdapterRequest
from backends.devices import Device
from backends.errors import BackendUnavailable
from backends.registry import open_backend


@pytest.mark.parametrize(
    ("capability", "dtype", "needs_scaler"),
    [((7, 5), torch.float16, True), ((8, 0), torch.bfloat16, False), ((9, 0), torch.bfloat16, False)],
)
def test_turing_computes_in_fp16_with_a_scaler_and_ampere_in_bf16(monkeypatch, capability, dtype, needs_scaler):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    chosen = hardware.precision(Device.CUDA)
    assert (chosen.dtype, chosen.needs_scaler) == (dtype, needs_scaler)
    assert f"{capability[0]}.{capability[1]}" in chosen.reason


def test_a_cpu_computes_in_fp32():
    chosen = hardware.precision(Device.CPU)
    assert (chosen.dtype, chosen.needs_scaler) == (torch.float32, False)


@pytest.mark.parametrize(
    ("chip", "dtype", "needs_scaler"),
    [("Apple M1", torch.float16, True), ("Apple M2 Pro", torch.float16, True), ("Apple M3", torch.bfloat16, False)],
)
def test_apple_gpus_compute_in_what_the_chip_has_and_the_note_says_what_stays_in_fp32(chip, dtype, needs_scaler):
    chosen = hardware.mps_precision(chip, "15.1")
    assert (chosen.dtype, chosen.needs_scaler) == (dtype, needs_scaler)
    assert chip in chosen.reason
    assert "loss stay in fp32" in chosen.reason
    assert "not measured" in chosen.reason


def test_the_chip_of_this_mac_decides(monkeypatch):
    monkeypatch.setattr("platform.mac_ver", lambda: ("14.5", ("", "", ""), "arm64"))
    monkeypatch.setattr("backends.processor.name", lambda: "Apple M4 Max")
    assert hardware.precision(Device.MPS).dtype is torch.bfloat16
    monkeypatch.setattr("backends.processor.name", lambda: "Apple M1")
    assert hardware.precision(Device.MPS).dtype is torch.float16


@pytest.mark.parametrize(
    "text",
    [
        "MPS backend out of memory (MPS allocated: 5.25 GB, other allocations: 1.2 GB, max allowed: 5.33 GB).",
        "Invalid buffer size: 13.52 GiB",
        "CUDA error: out of memory",
        "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ],
)
def test_a_lack_of_memory_is_recognised_by_its_text(text):
    assert hardware.is_out_of_memory(RuntimeError(text))
    assert not hardware.is_out_of_memory(RuntimeError("shapes do not fit"))


@pytest.fixture
def on_metal(monkeypatch, tiny_model_folder):
    """Load a model as on an Apple GPU; its weights lie on the CPU."""
    from backends import loading, mps
    from backends.contract import ModelRequest

    real = loading.models.load_base
    monkeypatch.setattr(
        loading.models, "load_base", lambda *names, device, **rest: real(*names, device=device and "cpu", **rest)
    )
    monkeypatch.setattr("torch.mps.set_per_process_memory_fraction", lambda _: None)
    monkeypatch.setattr(mps._fallbacks, "listen", lambda: None)
    for name, value in mps.environment({}).items():
        monkeypatch.setenv(name, value)
    request = ModelRequest(
        name=str(tiny_model_folder),
        adapter=AdapterRequest(rank=2, alpha=4, dropout=0.1),
        device=Device.MPS,
        gradient_checkpointing=True,
    )
    return loading.load_model(request, hardware.mps_precision("Apple M1", "15.0"))


def test_on_apple_gpus_only_the_adapter_drops_out_and_its_masks_are_restored(on_metal):
    config = on_metal.model.get_base_model().config
    assert config.residual_dropout == config.attention_dropout == config.embedding_dropout == 0
    assert on_metal.model.peft_config["default"].lora_dropout == 0.1
    layer = on_metal.model.get_base_model().model.layers[0]
    functions = [value for name, value in vars(layer).items() if name.endswith("checkpointing_func")]
    assert all("context_fn" in function.keywords for function in functions)
    assert functions


def test_on_apple_gpus_the_policy_is_told_and_news_are_watched(on_metal):
    assert set(hardware.policy_notes(Device.MPS)) <= set(on_metal.notes)
    assert on_metal.needs_scaler
    assert on_metal.news() == ()


def test_memory_in_use_on_a_cpu_grows_with_what_is_held():
    before = hardware.memory_in_use(Device.CPU)
    held = torch.ones(64 * 1024 * 1024)
    assert hardware.memory_in_use(Device.CPU) - before > held.numel() * 2


def test_an_unknown_backend_is_a_sentence():
    with pytest.raises(BackendUnavailable, match="no backend gptq"):
        open_backend("gptq", Device.CPU)


def test_without_bitsandbytes_nf4_says_what_to_install(monkeypatch):
    monkeypatch.setattr("backends.nf4.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'repotune\[cuda\]'"):
        open_backend("nf4", Device.CPU)


def test_a_bitsandbytes_without_kernels_for_the_device_is_told(monkeypatch):
    monkeypatch.setattr("bitsandbytes.supported_torch_devices", {"cuda"})
    with pytest.raises(BackendUnavailable, match="no 4-bit weights on cpu"):
        open_backend("nf4", Device.CPU)


@pytest.mark.parametrize(("gain", "dtype"), [(3.0, torch.bfloat16), (0.5, torch.float32)])
def test_nf4_on_a_cpu_computes_in_what_was_measured_to_be_faster(monkeypatch, gain, dtype):
    from backends import nf4

    monkeypatch.setattr("backends.processor.has_bf16", lambda: True)
    monkeypatch.setattr("backends.processor.bf16_gain", lambda: gain)
    assert nf4._precision(Device.CPU).dtype is dtype


def test_a_bitsandbytes_that_computes_wrongly_or_not_at_all_is_told(monkeypatch):
    from backends import nf4

    assert nf4._problem(Device.CPU) is None
    monkeypatch.setattr(nf4, "_error_of_a_product", lambda device: 0.9)
    with pytest.raises(BackendUnavailable, match=r"does not compute on cpu \(a product was wrong by 90%\)"):
        open_backend("nf4", Device.CPU)

    def fails(device):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(nf4, "_error_of_a_product", fails)
    with pytest.raises(BackendUnavailable, match=r"does not compute on cpu \(no kernel image"):
        open_backend("nf4", Device.CPU)


def test_an_adapter_leaves_the_weights_of_its_base_alone(tiny_model_folder):
    from backends.models import load_base

    base = load_base(str(tiny_model_folder), dtype=torch.float16, device="cpu")
    model = attach(base, AdapterRequest(rank=2, alpha=4), seed=1)
    assert {p.dtype for name, p in model.named_parameters() if "lora_" not in name} == {torch.float16}
