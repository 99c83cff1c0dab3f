"""`repotune dataset` and `repotune train` as a person runs them, and the whole job through a worker."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jobs.events import StepDone, event_from_json

PROGRAM = "from queue_app.cli import main; main()"
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "celery", "redis", "pydantic", "flower")


def command(*arguments, **environment):
    return {
        "args": [sys.executable, "-P", "-c", PROGRAM, *map(str, arguments)],
        "env": os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        "text": True,
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_repository, tiny_model_folder):
    """Built by a process, as a person's is."""
    folder = tmp_path_factory.mktemp("foreground") / "dataset"
    flags = ("--output", folder, "--set", "dataset.sequence_length=64", "--set", "dataset.held_out=0.2", "--json")
    asked = command("dataset", "--repo", tiny_repository, "--model", tiny_model_folder, *flags)
    done = subprocess.run(**asked, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder, json.loads(done.stdout), done.stderr


def train_arguments(dataset, model, output, *more):
    settings = (
        "cpu.quantization.kind=int8",
        "quantization.group_size=32",
        "lora.rank=4",
        "optimization.accumulation=2",
        "evaluation.prompts=1",
        "evaluation.resamples=100",
    )
    flags = [part for setting in settings for part in ("--set", setting)]
    return ["train", "--dataset", dataset, "--model", model, "--device", "cpu", "--output", output, *flags, *more]


@pytest.mark.slow
def test_dataset_writes_a_dataset_and_one_json_object(dataset, tiny_repository):
    folder, result, errors = dataset
    assert (folder / "manifest.json").is_file()
    assert (folder / "stats.json").is_file()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tiny_repository, capture_output=True, text=True, check=True)
    assert result["commit"] == head.stdout.strip()
    assert result["train_rows"] > 0
    assert "rows to train on" in errors


@pytest.mark.slow
def test_dataset_refuses_a_folder_that_holds_something_else(tmp_path, tiny_repository, tiny_model_folder, typed):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = typed("dataset", "--repo", tiny_repository, "--model", tiny_model_folder, "--output", tmp_path, code=2)
    assert "holds something that is no dataset" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_dataset_prints_samples_and_says_that_nothing_has_changed(tmp_path, tiny_repository, tiny_model_folder, typed):
    command = ("dataset", "--repo", tiny_repository, "--model", tiny_model_folder, "--output", tmp_path / "out")
    first = typed(*command, "--sample", 2)
    assert "sample 2 of 2" in first.stdout
    assert "<file_sep>" in first.stdout
    written = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert "up to date" in typed(*command).stdout
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == written
    typed(*command, "--set", "dataset.seed=18")
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns != written


@pytest.mark.slow
def test_a_look_at_samples_needs_no_folder_and_leaves_none(tmp_path, tiny_repository, tiny_model_folder, typed):
    command = ("dataset", "--repo", tiny_repository, "--model", tiny_model_folder)
    assert "sample 1 of 1" in typed(*command, "--sample", 1).stdout
    assert "--output" in typed(*command, code=2).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_dataset_refuses_what_is_no_repository(tmp_path, tiny_model_folder, typed):
    done = typed("dataset", "--repo", tmp_path, "--model", tiny_model_folder, "--output", tmp_path / "out", code=2)
    assert str(tmp_path) in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_train_writes_an_adapter_and_refuses_to_do_so_twice(dataset, tiny_model_folder, tmp_path, probed, typed):
    arguments = train_arguments(dataset[0], tiny_model_folder, tmp_path / "out", "--max-steps", 3, "--json")
    result = json.loads(typed(*arguments, REPOTUNE_PROBE=probed).stdout)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert result["adapter"] == str(tmp_path / "out" / "adapter")
    assert result["steps"] == 3
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 3
    kept = (tmp_path / "out" / "events.jsonl").read_text()
    events = [event_from_json(line) for line in kept.splitlines()]
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3]
    assert "already holds an adapter" in typed(*arguments, code=2, REPOTUNE_PROBE=probed).stderr
    assert (tmp_path / "out" / "events.jsonl").read_text() == kept


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_goes_on(*, dataset, tiny_model_folder, tmp_path, probed, typed, only_worker_extra):
    epochs = ("--set", "training.epochs=10000", "--set", "training.checkpoint_every_steps=100000")
    arguments = train_arguments(dataset[0], tiny_model_folder, tmp_path / "out", *epochs)
    process = subprocess.Popen(
        **command(*arguments, "--max-steps", 100_000, REPOTUNE_PROBE=probed, PYTHONPATH=only_worker_extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for_lines(tmp_path / "out" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume to go on" in errors
    saved = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "out" / "checkpoints").iterdir())
    again = typed(*arguments, "--max-steps", saved + 2, "--resume", "--json", REPOTUNE_PROBE=probed)
    assert f"Resumes after step {saved}" in again.stderr
    assert json.loads(again.stdout)["steps"] == saved + 2


def wait_for_lines(file, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and file.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"no step was trained: {process.communicate(timeout=5)}")


def test_train_without_the_device_says_so(dataset_folder, tmp_path, probed, typed):
    flags = ("--dataset", dataset_folder, "--device", "cuda", "--output", tmp_path / "out")
    assert "No cuda device here: none" in typed("train", *flags, code=5, REPOTUNE_PROBE=probed).stderr


def test_train_names_what_is_wrong_with_a_dataset(dataset_folder, tmp_path, probed, typed):
    flags = ("--dataset", dataset_folder, "--output", tmp_path / "out")
    assert "no manifest.json" in typed("train", *flags, code=2, REPOTUNE_PROBE=probed).stderr


def test_a_wrong_key_is_named(dataset_folder, tmp_path, probed, typed):
    flags = ("--dataset", dataset_folder, "--output", tmp_path / "out", "--set", "lora.rnak=3")
    assert "lora.rnak" in typed("train", *flags, code=2, REPOTUNE_PROBE=probed).stderr


@pytest.fixture
def dataset_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize("name", ["worker", "dataset", "train"])
def test_help_loads_nothing_heavy(name):
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules))))\n" + PROGRAM
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, name, "--help"], capture_output=True, text=True, check=True
    )
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize("name", ["../up", "a b", "", "-x"])
def test_a_worker_name_that_is_no_name_is_refused(name, typed):
    assert "letters, digits" in typed("worker", f"--name={name}", code=2).stderr
