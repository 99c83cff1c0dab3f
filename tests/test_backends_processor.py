"""What is known of a processor, on the systems that tell of it differently."""

import pytest
import torch

from backends import hardware, processor
from backends.devices import Device

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 9004\nflags\t\t: fpu avx512f {}\n\nprocessor\t: 1\nmodel name\t: other\n"
ARM = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd {}\n"


@pytest.fixture
def linux(tmp_path, monkeypatch):
    def has(text):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
        monkeypatch.setattr("sys.platform", "linux")

    return has


@pytest.fixture
def mac(monkeypatch):
    def has(**values):
        monkeypatch.setattr("sys.platform", "darwin")
        monkeypatch.setattr(processor, "sysctl", lambda key: values.get(key.replace(".", "_"), ""))

    return has


def test_the_name_is_the_makers(linux, mac):
    linux(X86.format(""))
    assert processor.name() == "AMD EPYC 9004"
    mac(machdep_cpu_brand_string="Apple M2")
    assert processor.name() == "Apple M2"
    mac()
    assert processor.name() == "Mac"


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16"])
def test_bf16_instructions_are_found_on_x86(linux, instruction):
    linux(X86.format(instruction))
    assert processor.has_bf16()


def test_bf16_instructions_are_found_on_arm(linux, mac):
    linux(ARM.format("bf16"))
    assert processor.has_bf16()
    mac(hw_optional_arm_FEAT_BF16="1")
    assert processor.has_bf16()


def test_where_nothing_tells_of_them_there_are_none(linux, mac, monkeypatch, tmp_path):
    linux(X86.format("avx512f avx512_vnni"))
    assert not processor.has_bf16()
    linux(ARM.format("asimdhp"))
    assert not processor.has_bf16()
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "absent")
    assert not processor.has_bf16()
    mac(hw_optional_arm_FEAT_BF16="0")
    assert not processor.has_bf16()


def test_an_unknown_key_of_the_kernel_is_nothing():
    assert processor.sysctl("repotune.no.such.key") == ""


def test_the_gain_is_measured():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gain = processor.bf16_gain()
    torch.set_num_threads(threads)
    assert 0.001 < gain < 100


@pytest.mark.parametrize(
    ("has_bf16", "gain", "dtype", "said"),
    [
        (False, 9.0, torch.float32, "no bf16 instructions"),
        (True, 0.8, torch.float32, "0.8 times as fast"),
        (True, 3.1, torch.bfloat16, "3.1 times as fast"),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_that_is_measured_to_help(monkeypatch, has_bf16, gain, dtype, said):
    monkeypatch.setattr(processor, "has_bf16", lambda: has_bf16)
    monkeypatch.setattr(processor, "bf16_gain", lambda: gain)
    chosen = hardware.cpu_precision()
    assert chosen.dtype is dtype
    assert said in chosen.reason
    assert not chosen.needs_scaler


def test_exact_backends_stay_in_fp32_whatever_the_cpu_can(monkeypatch):
    monkeypatch.setattr(processor, "has_bf16", lambda: True)
    assert hardware.precision(Device.CPU).dtype is torch.float32
