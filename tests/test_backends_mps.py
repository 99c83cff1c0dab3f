"""The policy for Apple GPUs, as far as it can be known without one; the rest is marked `mps`."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from backends import mps
from backends.devices import Device
from backends.fallbacks import Fallbacks
from backends.hardware import policy_notes, watch


def ratios(given):
    chosen = mps.environment(given)
    return float(chosen[mps.HIGH]), float(chosen[mps.LOW])


def test_memory_is_limited_below_the_working_set_and_both_watermarks_agree():
    high, low = ratios({})
    assert high == mps.MEMORY_FRACTION
    assert 0 < low <= high < 1


@pytest.mark.parametrize("none", ["0.0", "0", "much", "", "-1", "7"])
def test_no_limit_is_not_a_limit(none):
    assert ratios({mps.HIGH: none}) == ratios({})


def test_a_limit_that_somebody_set_is_kept_and_the_other_one_follows():
    assert ratios({mps.HIGH: "0.5"})[0] == 0.5
    assert 0 < ratios({mps.HIGH: "0.5"})[1] < 0.5
    assert ratios({mps.HIGH: "0.8", mps.LOW: "0.4"}) == (0.8, 0.4)
    high, low = ratios({mps.HIGH: "0.5", mps.LOW: "1.4"})
    assert low <= high


def test_operators_that_metal_lacks_run_on_the_cpu_unless_somebody_says_no():
    assert mps.environment({})[mps.FALLBACK] == "1"
    assert mps.environment({mps.FALLBACK: "0"})[mps.FALLBACK] == "0"


def test_the_process_is_prepared_within_the_limit(monkeypatch):
    for name in (mps.HIGH, mps.LOW, mps.FALLBACK):
        monkeypatch.delenv(name, raising=False)
    told = []
    monkeypatch.setattr("torch.mps.set_per_process_memory_fraction", told.append)
    monkeypatch.setattr(mps, "_fallbacks", Fallbacks())
    with warnings.catch_warnings():
        mps.prepare()
        torch.set_warn_always(False)
    assert told == [mps.MEMORY_FRACTION]
    assert float(os.environ[mps.LOW]) < told[0]


def test_a_training_process_sets_the_environment_before_it_loads_torch():
    script = (
        "import os, sys\n"
        "from workers import run\n"
        "assert 'torch' not in sys.modules\n"
        "run._prepare_process()\n"
        "assert 'torch' not in sys.modules\n"
        f"print(os.environ['{mps.FALLBACK}'], os.environ['{mps.HIGH}'])\n"
    )
    kept = {name: value for name, value in os.environ.items() if "MPS" not in name}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=kept)
    assert done.stdout.split() == ["1", "0.95"]


def test_every_point_of_the_policy_has_its_reason_and_only_metal_has_a_policy():
    assert all(point.reason for point in mps.POLICY)
    assert len(policy_notes(Device.MPS)) == len(mps.POLICY)
    assert all(" because " in note for note in policy_notes(Device.MPS))
    assert policy_notes(Device.CPU) == policy_notes(Device.CUDA) == ()


@pytest.mark.parametrize(
    ("chip", "macos", "native"),
    [
        ("Apple M1", "15.0", False),
        ("Apple M1 (Virtual)", "15.0", False),
        ("Apple M2 Max", "14.5", False),
        ("Apple M3", "14.0", True),
        ("Apple M10 Pro", "26.1", True),
        ("Apple A18 Pro", "26.0", True),
        ("Apple M4", "13.6", False),
        ("Apple processor", "15.0", False),
        ("", "", False),
    ],
)
def test_bf16_is_native_from_m3_on(chip, macos, native):
    assert mps.has_native_bf16(chip, macos) is native


# ---- operators on the CPU ----


@pytest.fixture
def fallbacks():
    with warnings.catch_warnings():
        listening = Fallbacks()
        listening.listen()
        yield listening
        torch.set_warn_always(False)


def torch_warns(operator):
    warnings.warn(
        f"The operator '{operator}' is not currently supported on the MPS backend and will fall back to run on the "
        "CPU. This may have performance implications. (Triggered internally at MPSFallback.mm:14.)",
        stacklevel=1,
    )


def test_operators_that_fall_back_are_counted_and_told_once(fallbacks):
    for operator in ("aten::cumsum.out", "aten::median", "aten::cumsum.out", "aten::cumsum.out"):
        torch_warns(operator)
    first, second = fallbacks.news()
    assert "aten::cumsum.out" in first
    assert "3 times" in first
    assert "aten::median" in second
    assert "once" in second
    torch_warns("aten::median")
    assert fallbacks.news() == ()
    assert fallbacks.counts == {"aten::cumsum.out": 3, "aten::median": 2}


def test_torch_is_asked_to_warn_of_every_operator_not_of_the_first_alone(fallbacks):
    assert torch.is_warn_always_enabled()


def test_other_warnings_are_shown_as_before(monkeypatch):
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *rest, **named: shown.append(str(message)))
        listening = Fallbacks()
        listening.listen()
        warnings.warn("something else", stacklevel=1)
        torch_warns("aten::median")
        torch.set_warn_always(False)
    assert shown == ["something else"]


# ---- shapes ----


class Embedded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 2)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, ids):
        return self.embedding(ids)


def feed(model, lengths):
    for length in lengths:
        model(torch.zeros(1, length, dtype=torch.long))


def test_a_run_of_constant_shapes_has_no_news(monkeypatch):
    monkeypatch.setattr(mps, "_fallbacks", Fallbacks())
    model = Embedded()
    news = watch(Device.MPS, model)
    feed(model, [16] * 50 + [8, 4])
    assert news() == ()


def test_many_shapes_are_told_once_and_the_graphs_forgotten_where_torch_can(monkeypatch):
    monkeypatch.setattr(mps, "_fallbacks", Fallbacks())
    cleared = []
    monkeypatch.setattr(torch.mps, "clear_graph_cache", lambda: cleared.append(True), raising=False)
    model = Embedded()
    news = watch(Device.MPS, model)
    feed(model, range(1, mps.MAX_SHAPES + 2))
    (line,) = news()
    assert f"{mps.MAX_SHAPES + 1} shapes" in line
    assert cleared == [True]
    assert news() == ()


def test_a_torch_that_cannot_clear_its_graphs_is_no_error(monkeypatch):
    monkeypatch.delattr(torch.mps, "clear_graph_cache", raising=False)
    assert mps.clear_graph_cache() is False


def test_other_devices_watch_nothing():
    assert watch(Device.CPU, object())() == ()


# ---- on a Mac ----


@pytest.mark.mps
def test_metal_refuses_more_than_its_share_with_an_error_that_is_known_as_a_lack_of_memory():
    from backends.hardware import is_out_of_memory, prepare

    prepare(Device.MPS)
    size = torch.mps.recommended_max_memory() // 16
    with pytest.raises(RuntimeError) as raised:
        _ = [torch.empty(size, dtype=torch.uint8, device="mps") for _ in range(64)]
    assert is_out_of_memory(raised.value)


@pytest.mark.mps
def test_metal_has_no_fp64():
    with pytest.raises(TypeError, match="float64"):
        torch.ones(1, dtype=torch.float64).to("mps")


@pytest.mark.mps
def test_the_driver_tells_of_memory():
    from backends.hardware import memory_in_use

    held = torch.ones(4 << 20, device="mps")
    torch.mps.synchronize()
    assert memory_in_use(Device.MPS) >= held.numel() * 4
