"""What is looked at before anything starts: each check able to pass, to warn and to fail."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from backends.devices import GIB, Device
from backends.errors import ExitCode
from jobs.config import load_config
from queue_app.model_facts import ModelFacts, find_model_facts
from queue_app.plan import Request, make_plan
from queue_app.preflight import machine, model, room
from queue_app.preflight.checks import Preflight
from queue_app.preflight.data import built_line, planned_line
from queue_app.preflight.line import Grade, Place, PreflightFailed, worst
from queue_app.preflight.machine import Looking, hardware_line, power_line, read_pmset, temperature_line
from queue_app.preflight.model import HubAnswer, check_access
from queue_app.preflight.room import disk_line, disk_need
from queue_app.settings import load_settings

REPOTUNE = Path(sys.executable).parent / "repotune"
CHECKS = ["configuration", "repository", "model", "memory", "dataset", "disk", "power", "temperature", "hardware"]
SMALL = ["--set", "dataset.sequence_length=64", "--set", "optimization.accumulation=4"]
CPU = {"device": "cpu", "device_name": "Some CPU", "memory_bytes": 16 * GIB, "reason": "as asked."}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An own home, a machine that was looked at already, and no hub."""
    probed = {"devices": [CPU], "absent": {"cuda": "there is no GPU.", "mps": "this is no Mac."}, "versions": {}}
    (tmp_path / "probe.json").write_text(json.dumps(probed), encoding="utf-8")
    monkeypatch.setenv("REPOTUNE_PROBE", str(tmp_path / "probe.json"))
    monkeypatch.setenv("REPOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validate(*arguments):
    command = [REPOTUNE, "validate", "--json", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    return done, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def a_request(repository, *settings, device="cpu"):
    return Request(repository=str(repository), config=load_config(None, settings), device=device)


# ---- The command -----------------------------------------------------------------------------------------------------


def test_validate_has_a_line_for_every_check(place, tiny_repository, tiny_model_folder):
    done, told = validate("--repo", tiny_repository, "--model", tiny_model_folder, "--device", "cpu", *SMALL)
    assert done.returncode == 0, done.stderr
    assert [check["name"] for check in told["checks"]] == CHECKS
    assert all(set(check) == {"name", "grade", "text", "remedy"} for check in told["checks"])
    assert told["valid"] is True
    assert told["queue"].startswith("cpu.")
    assert [line.split()[:2] for line in done.stderr.splitlines()] == [
        [check["name"], check["grade"]] for check in told["checks"]
    ]


def test_a_check_that_fails_gives_its_exit_code_and_the_others_are_made(place, tiny_model_folder):
    done, told = validate("--repo", "nowhere", "--model", tiny_model_folder)
    grades = {check["name"]: check["grade"] for check in told["checks"]}
    assert done.returncode == told["exit_code"] == ExitCode.USAGE
    assert told["valid"] is False
    assert grades["repository"] == "fail"
    assert {"model", "power", "hardware"} <= set(grades)
    assert "nowhere does not exist" in told["error"]
    assert done.stderr.splitlines()[-1].startswith("repotune: ")


def test_a_device_that_this_machine_must_have_is_a_fail(place, tiny_repository, tiny_model_folder):
    where = ["--repo", tiny_repository, "--model", tiny_model_folder, "--device", "cuda", *SMALL]
    elsewhere, _ = validate(*where)
    here, told = validate(*where, "--local")
    assert (elsewhere.returncode, here.returncode) == (0, ExitCode.DEVICE_UNAVAILABLE)
    assert told["error"] == "No cuda device here: there is no GPU."


def test_a_configuration_that_is_wrong_is_the_only_line(place, tiny_repository):
    done, told = validate("--repo", tiny_repository, "--set", "lora.rank=0")
    assert done.returncode == ExitCode.USAGE
    assert [check["name"] for check in told["checks"]] == ["configuration"]
    assert "lora.rank" in told["error"]


def test_checks_load_no_torch(place, tiny_repository, tiny_model_folder):
    code = (
        "import sys; from queue_app.cli import repotune; "
        f"repotune(['validate', '--repo', {str(tiny_repository)!r}, '--model', {str(tiny_model_folder)!r}], "
        "standalone_mode=False); assert not {'torch', 'transformers', 'celery'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_submission_stops_at_the_first_fail(place, tiny_repository):
    request = a_request(tiny_repository, f"model.name={place / 'home'}/none.gguf")
    with pytest.raises(PreflightFailed, match="The model cannot be loaded: there is no file") as raised:
        Preflight(request, load_settings(), Place.HERE).to_plan()
    assert raised.value.exit_code == ExitCode.USAGE


def test_a_submission_to_the_queue_does_not_look_at_this_machine(place, tiny_repository, monkeypatch):
    monkeypatch.setattr("queue_app.preflight.checks.Looking", pytest.fail)
    plan, warnings = Preflight(a_request(tiny_repository), load_settings(), Place.QUEUE).to_plan()
    assert plan.files == 13
    assert {line.name for line in warnings} == {"model", "dataset"}


def test_a_warning_stops_nothing():
    lines = [SimpleNamespace(grade=Grade.WARN), SimpleNamespace(grade=Grade.PASS)]
    assert worst(lines) is Grade.WARN
    assert worst([]) is Grade.PASS


def test_a_shallow_clone_is_a_warning(place, tiny_repository, tiny_model_folder):
    subprocess.run(["git", "clone", "-q", "--depth", "1", tiny_repository.as_uri(), "clone"], cwd=place, check=True)
    (place / "clone" / ".git" / "shallow").touch()
    request = a_request(place / "clone", f"model.name={tiny_model_folder}")
    [line] = [line for line in Preflight(request, load_settings(), Place.QUEUE).lines() if line.name == "repository"]
    assert line.grade is Grade.WARN
    assert "--unshallow" in line.remedy


def test_trackers_that_are_not_installed_are_a_warning(place, tiny_repository, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else object())
    request = a_request(tiny_repository, "output.sinks=[tensorboard, mlflow]")
    lines = Preflight(request, load_settings(), Place.HERE).lines()
    assert next(lines).name == "configuration"
    assert next(lines).remedy == "pip install mlflow"
    lines.close()


# ---- The model -------------------------------------------------------------------------------------------------------


def answer(status=200, problem="", **about):
    return lambda _name, _revision: HubAnswer(status=status, problem=problem, about=about)


@pytest.fixture
def hub(monkeypatch):
    """Sets what the hub says; nothing is in the cache."""
    monkeypatch.setattr(model, "is_cached", lambda _name, _revision: False)
    return lambda found: monkeypatch.setattr(model, "ask_hub", found)


FACTS = ModelFacts(name="some/model", config={"model_type": "llama"}, origin="config.json on the hub")


def test_a_model_with_a_licence_passes_and_its_size_is_known(hub):
    files = [{"rfilename": "a.safetensors", "size": 70}, {"rfilename": "a.bin", "size": 900}]
    hub(answer(cardData={"license": "apache-2.0"}, siblings=files))
    access = check_access(FACTS, None, Place.HERE)
    assert access.line.grade is Grade.PASS
    assert "licence apache-2.0" in access.line.text
    assert access.download_bytes == 70


def test_a_model_without_a_licence_is_a_warning(hub):
    hub(answer())
    assert "licence is not stated" in check_access(FACTS, None, Place.HERE).line.text


def test_a_model_with_code_of_its_own_is_a_warning(hub):
    hub(answer(cardData={"license": "mit"}))
    facts = ModelFacts(name="some/model", config={"model_type": "odd", "auto_map": {"AutoModel": "x.y"}})
    line = check_access(facts, None, Place.HERE).line
    assert line.grade is Grade.WARN
    assert "auto_map" in line.text


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_model_that_the_hub_does_not_show_is_refused(hub, status):
    hub(answer(status))
    assert check_access(FACTS, "v9", Place.HERE).line.grade is Grade.FAIL
    assert check_access(FACTS, "v9", Place.QUEUE).line.grade is Grade.WARN


def test_a_gated_model_says_where_its_terms_are(hub, monkeypatch):
    hub(answer(gated="auto"))
    monkeypatch.setattr(model, "_may_read", lambda _name, _revision: False)
    line = check_access(FACTS, None, Place.HERE).line
    assert line.grade is Grade.FAIL
    assert "/some/model and log in" in line.remedy


@pytest.mark.parametrize(("place", "grade"), [(Place.HERE, Grade.FAIL), (Place.EITHER, Grade.WARN)])
def test_a_hub_that_does_not_answer_counts_where_the_job_must_run_here(hub, place, grade):
    hub(answer(None, "no route"))
    assert check_access(FACTS, None, place).line.grade is grade


def test_a_model_in_the_cache_needs_no_hub(hub, monkeypatch):
    hub(answer(None, "no route"))
    monkeypatch.setattr(model, "is_cached", lambda _name, _revision: True)
    assert check_access(FACTS, None, Place.HERE).line.grade is Grade.PASS


def test_a_folder_without_weights_or_tokenizer_is_refused(tiny_model_folder, tmp_path):
    for left_out, told in (("*.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")):
        folder = shutil.copytree(tiny_model_folder, tmp_path / told, ignore=shutil.ignore_patterns(left_out))
        line = check_access(find_model_facts(str(folder)), None, Place.HERE).line
        assert line.grade is Grade.FAIL
        assert told in line.text


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [("README.md", '---\nlicense: "mit"\n---\nText', "licence mit"), ("LICENSE", "Do as you like", "in LICENSE")],
)
def test_the_licence_of_a_folder_is_told(tiny_model_folder, tmp_path, name, text, licence):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    (folder / name).write_text(text, encoding="utf-8")
    line = check_access(find_model_facts(str(folder)), None, Place.HERE).line
    assert line.grade is Grade.PASS
    assert licence in line.text


# ---- The dataset -----------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    np = pytest.importorskip("numpy")
    from jobs import shards

    folder, files = tmp_path / "dataset", {}
    for split, rows in (("train", 4), ("held_out", 1)):
        with shards.ShardWriter(folder, split, 32, "uint16") as writer:
            for _ in range(rows):
                writer.append(np.arange(32), np.full(32, shards.LABEL, dtype=np.uint8))
        files |= writer.files
    splits = {"train": {"rows": 4}, "held_out": {"rows": 1}}
    tokenizer = {"vocabulary_size": 100}
    shards.write_manifest(
        folder, {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": 32, "tokenizer": tokenizer}
    )
    return folder


FEW = load_config(None, ["optimization.accumulation=4"])


def test_a_whole_dataset_passes_and_its_rows_are_told(dataset):
    line = built_line(dataset, FEW, {"vocab_size": 100})
    assert line.grade is Grade.PASS
    assert "4 rows of 32 tokens to train on, 1 held out, 0 of newer commits" in line.text


def test_a_dataset_smaller_than_a_step_is_a_warning(dataset):
    assert "one optimizer step takes 16 rows" in built_line(dataset, load_config(None, []), None).text


def test_a_cut_or_altered_shard_is_named(dataset):
    file = dataset / "train" / "00000.ids"
    content = file.read_bytes()
    file.write_bytes(b"\1" + content[1:])
    altered = built_line(dataset, FEW, None)
    file.write_bytes(content[:-1])
    cut = built_line(dataset, FEW, None)
    assert altered.grade is cut.grade is Grade.FAIL
    assert "00000.ids was altered" in altered.text
    assert "00000.ids is cut" in cut.text


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"vocab_size": 99}, "built with another tokenizer"),
        ({"max_position_embeddings": 16}, "longer than the 16 positions"),
        ({"max_position_embeddings": 16, "rope_parameters": {"rope_type": "default"}}, "longer than"),
    ],
)
def test_a_dataset_that_does_not_go_with_the_model_is_refused(dataset, config, told):
    line = built_line(dataset, FEW, config)
    assert line.grade is Grade.FAIL
    assert told in line.text


def test_a_model_that_scales_its_positions_takes_longer_rows_with_a_warning(dataset):
    line = built_line(dataset, FEW, {"max_position_embeddings": 16, "rope_scaling": {"type": "yarn"}})
    assert line.grade is Grade.WARN
    assert "it stretches them" in line.text


def test_a_repository_smaller_than_a_step_is_a_warning(tiny_repository, tiny_model_folder):
    plan = make_plan(a_request(tiny_repository, f"model.name={tiny_model_folder}"))
    assert planned_line(plan, load_config(None, [])).grade is Grade.FAIL  # 512 positions, rows of 1024
    short = load_config(None, ["dataset.sequence_length=512"])
    assert planned_line(plan, short).grade is Grade.WARN
    assert planned_line(plan, load_config(None, ["dataset.sequence_length=64"])).grade is Grade.PASS


# ---- The machine -----------------------------------------------------------------------------------------------------


def test_the_disk_must_hold_what_is_kept(monkeypatch, tmp_path):
    settings = load_settings(home=tmp_path / "not" / "there")
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil has it
    for free, grade in ((99, Grade.FAIL), (101, Grade.WARN), (200, Grade.PASS)):
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _folder, free=free: usage(1000, 0, free))
        assert disk_line({"checkpoints": 60, "model": 40}, settings, Grade.FAIL).grade is grade
    assert room.existing(settings.home) == tmp_path


def test_more_checkpoints_need_more_disk(tiny_repository):
    plan = make_plan(a_request(tiny_repository))
    few, many = (disk_need(plan, load_config(None, [f"output.keep_checkpoints={n}"]).output, 7) for n in (1, 5))
    assert many["checkpoints"] > 2 * few["checkpoints"]
    assert few["model"] == 7


@pytest.mark.parametrize(("plugged", "grade"), [(True, Grade.PASS), (None, Grade.PASS), (False, Grade.WARN)])
def test_a_laptop_on_battery_is_a_warning(monkeypatch, plugged, grade):
    battery = SimpleNamespace(percent=61.0, power_plugged=plugged)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert power_line().grade is grade
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert power_line().text == "no battery found"


def sensors(current, high):
    return {"coretemp": [SimpleNamespace(label="Package", current=current, high=high, critical=None)]}


@pytest.mark.parametrize(
    ("found", "grade", "told"),
    [
        (sensors(50.0, 80.0), Grade.PASS, "Package at 50 °C"),
        (sensors(81.0, 80.0), Grade.WARN, "Package is at 81 °C, its limit is 80 °C"),
        (sensors(96.0, None), Grade.WARN, "its limit is 95 °C"),
        ({}, Grade.PASS, "not readable on this machine"),
    ],
)
def test_heat_is_told_where_it_can_be_read(monkeypatch, tmp_path, found, grade, told):
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found, raising=False)
    monkeypatch.setattr(machine, "_gpu", lambda: iter(()))
    monkeypatch.setattr(machine, "_mac", lambda: iter(()))
    line = temperature_line(tmp_path)
    assert line.grade is grade
    assert told in line.text


def test_a_processor_that_was_slowed_down_before_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    monkeypatch.setattr(machine, "_gpu", lambda: iter(()))
    monkeypatch.setattr(machine, "_mac", lambda: iter(()))
    folder = tmp_path / "devices/system/cpu/cpu3/thermal_throttle"
    folder.mkdir(parents=True)
    (folder / "core_throttle_count").write_text("12\n", encoding="ascii")
    line = temperature_line(tmp_path)
    assert (line.grade, line.text) == (Grade.PASS, "slowed down by heat 12 times since it started")


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("CPU_Scheduler_Limit = 100\nCPU_Speed_Limit \t= 62", [True]),
        ("CPU_Speed_Limit = 100", [False]),
        ("Note: No thermal warning level has been recorded", []),
        ("Thermal Warning Level = 2", [True]),
    ],
)
def test_what_macos_says_of_heat_is_read(text, bad):
    assert [is_bad for is_bad, _ in read_pmset(text)] == bad


def gpu(reasons):
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda _index: "gpu",
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _gpu: reasons,
        nvmlDeviceGetTemperature=lambda _gpu, _sensor: 88,
        NVML_TEMPERATURE_GPU=0,
        NVMLError=RuntimeError,
    )


@pytest.mark.parametrize(("reasons", "grade"), [(0x01, Grade.PASS), (0x40, Grade.WARN), (0x80, Grade.WARN)])
def test_a_gpu_that_is_held_down_is_a_warning(monkeypatch, tmp_path, reasons, grade):
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", gpu(reasons))
    line = temperature_line(tmp_path)
    assert line.grade is grade
    assert "88 °C" in line.text


def test_the_hardware_must_hold_the_training(tiny_repository, monkeypatch):
    need = make_plan(a_request(tiny_repository)).needs
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=99 * GIB))
    assert hardware_line(CPU | {"memory_bytes": 64 * GIB}, need, Place.HERE).grade is Grade.PASS
    small = hardware_line(CPU | {"memory_bytes": 4 * GIB}, need, Place.HERE)
    assert (small.grade, small.exit_code) == (Grade.FAIL, ExitCode.DEVICE_UNAVAILABLE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 * GIB))
    assert "close other programs" in hardware_line(CPU | {"memory_bytes": 64 * GIB}, need, Place.HERE).remedy


def test_a_training_that_no_machine_holds_says_so(tiny_repository):
    need = replace(make_plan(a_request(tiny_repository)).needs[0], device=Device.CPU, tier=None, total_bytes=10**15)
    assert "more than any machine has" in hardware_line(CPU | {"memory_bytes": 64 * GIB}, (need,), Place.HERE).text


def test_looking_that_breaks_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("REPOTUNE_PROBE", str(tmp_path / "none.json"))
    assert Looking("cpu").found() == {
        "problem": "Looking for devices failed: run `python -m workers.probe` to see why."
    }


def test_what_was_found_is_handed_to_the_worker_of_this_machine(monkeypatch):
    from queue_app.commands.submit import _known_to_the_worker

    monkeypatch.delenv("REPOTUNE_PROBE", raising=False)
    with _known_to_the_worker({"devices": [CPU]}):
        assert json.loads(Path(os.environ["REPOTUNE_PROBE"]).read_text()) == {"devices": [CPU]}
    assert "REPOTUNE_PROBE" not in os.environ


def test_looking_tells_the_device_and_all_that_was_found(place):
    found = Looking("any").found()
    assert {name: found[name] for name in ("device", "device_name")} == {"device": "cpu", "device_name": "Some CPU"}
    assert found["probe"]["absent"]["mps"] == "this is no Mac."
