"""The trainer process alone: what it writes, how it stops, that it never outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from jobs import shards
from jobs.config import load_config
from jobs.events import Checkpointed, Failed, Finished, StepDone, Stopped, event_from_json
from jobs.spec import JobSpec, Kind
from jobs.states import Cause
from workers.assignment import ASSIGNMENT, EVENTS, Assignment
from workers.process import LineTail, TrainerProcess

LENGTH = 32


@pytest.fixture(autouse=True)
def _environment(monkeypatch, only_worker_extra):
    monkeypatch.setenv("PYTHONPATH", only_worker_extra)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "dataset"
    random, files, splits = np.random.default_rng(3), {}, {}
    flags = np.full(LENGTH, shards.LABEL, dtype=np.uint8)
    flags[0] = shards.DOCUMENT_START
    for split, rows in (("train", 16), ("held_out", 2)):
        with shards.ShardWriter(folder, split, LENGTH, "uint16") as writer:
            for _ in range(rows):
                writer.append(random.integers(8, 300, LENGTH), flags)
        files |= writer.files
        splits[split] = {"rows": rows, "tokens": rows * LENGTH}
    shards.write_manifest(
        folder, {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": LENGTH, "commit": "c" * 40}
    )
    return folder


def assignment(model, dataset, parent_pid=None, max_steps=4, **settings):
    chosen = {
        "model.name": str(model),
        "quantization.kind": "none",
        "lora.rank": 4,
        "training.max_steps": max_steps,
        "training.checkpoint_every_steps": 2,
        "optimization.accumulation": 2,
        "evaluation.prompts": 1,
        "evaluation.resamples": 100,
    } | settings
    config = load_config(settings=[f"{key}={json.dumps(value)}" for key, value in chosen.items()])
    spec = JobSpec(kind=Kind.TRAINING, config=config, dataset_job="dataset-x")
    return Assignment(
        spec=spec.model_dump_json(), device="cpu", parent_pid=parent_pid or os.getpid(), dataset=str(dataset)
    )


@pytest.fixture
def start(tmp_path, tiny_model_folder, dataset):
    started = []

    def start(**options):
        started.append(TrainerProcess(assignment(tiny_model_folder, dataset, **options), tmp_path, tmp_path / "cache"))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def events(process):
    file = process.workdir / EVENTS
    return [event_from_json(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail("it did not happen in time")


def first(process, kind):
    return wait_for(lambda: next((event for event in events(process) if isinstance(event, kind)), None))


def ended(process):
    return wait_for(lambda: process.exit_code is not None) and process.exit_code


@pytest.mark.slow
def test_a_trainer_tells_its_story_in_a_file_and_folders_called_like_ours_shadow_nothing(start, tmp_path):
    for name in ("workers", "jobs", "backends"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    process = start()  # its working folder is tmp_path
    assert ended(process) == 0, process.last_log_lines()
    assert isinstance(events(process)[-1], Finished)
    assert events(process)[-1].result["steps"] == 4
    assert [event.step for event in events(process) if isinstance(event, StepDone)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_says_so(start):
    process = start(max_steps=100_000, **{"training.checkpoint_every_steps": 100_000})
    first(process, StepDone)
    process.ask_to_stop()
    assert ended(process) == 0
    checkpoint = first(process, Checkpointed)
    assert isinstance(events(process)[-1], Stopped)
    assert events(process)[-1].step == checkpoint.step
    assert (Path(checkpoint.path) / "manifest.json").is_file()


@pytest.mark.slow
def test_a_second_signal_means_now(start):
    process = start(max_steps=100_000)
    first(process, StepDone)
    os.kill(process.pid, signal.SIGSTOP)  # so that both signals are pending before it can leave by itself
    process.ask_to_stop()
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert ended(process) != 0
    assert not isinstance(events(process)[-1], Stopped)


@pytest.mark.slow
def test_a_trainer_leaves_when_its_parent_is_killed(tmp_path, tiny_model_folder, dataset):
    given = assignment(tiny_model_folder, dataset, max_steps=100_000)
    parent = textwrap.dedent(f"""
        import os, time
        from dataclasses import replace
        from pathlib import Path
        from workers.assignment import Assignment
        from workers.process import TrainerProcess
        given = Assignment(**{given.__dict__!r})
        folder = Path({str(tmp_path)!r})
        print(TrainerProcess(replace(given, parent_pid=os.getpid()), folder, folder).pid, flush=True)
        time.sleep(1000)
    """)
    process = subprocess.Popen([sys.executable, "-P", "-c", parent], stdout=subprocess.PIPE, text=True)
    trainer_pid = int(process.stdout.readline())
    wait_for(lambda: (tmp_path / EVENTS).exists() and '"step"' in (tmp_path / EVENTS).read_text())
    process.kill()
    process.communicate()
    wait_for(lambda: not is_alive(trainer_pid), seconds=10)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie whose new parent does not reap it is gone, too
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.slow
def test_what_is_wrong_is_one_sentence_and_a_cause(start):
    process = start(**{"model.name": "/nowhere/at/all"})
    ended(process)
    last = events(process)[-1]
    assert isinstance(last, Failed)
    assert last.cause == Cause.USER_ERROR
    assert "/nowhere/at/all" in last.message
    assert "Traceback" not in last.message
    assert "Traceback" in last.details


def test_an_assignment_is_readable_by_its_owner_only_and_comes_back_equal(tmp_path, tiny_model_folder, dataset):
    given = assignment(tiny_model_folder, dataset)
    given.write(tmp_path)
    assert (tmp_path / ASSIGNMENT).stat().st_mode & 0o777 == 0o600
    assert Assignment.read(tmp_path) == given


@pytest.mark.slow
def test_a_trainer_knows_no_way_to_broker_or_artifacts(start, monkeypatch):
    monkeypatch.setenv("REPOTUNE_BROKER_URL", "redis://:secret@example.org")
    monkeypatch.setenv("REPOTUNE_ARTIFACTS", "s3://key:secret@bucket")
    process = start(max_steps=100_000)
    environment = Path(f"/proc/{process.pid}/environ")
    if not environment.exists():
        pytest.skip("only Linux shows the environment of a process as a file")
    assert b"secret" not in environment.read_bytes()


def test_a_tail_hands_out_whole_lines_once(tmp_path):
    file = tmp_path / "log"
    tail = LineTail(file)
    assert tail.read() == []
    file.write_bytes("one\ntwo\nhal\xc3".encode("latin-1"))
    assert tail.read() == ["one", "two"]
    with file.open("ab") as log:
        log.write(b"\xa9f\n")
    assert tail.read() == ["halé" + "f"]
    assert tail.read() == []
