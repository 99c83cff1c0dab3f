"""Submitting: two jobs or none, one dataset for the same input, bad input as one sentence."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from backends.errors import ExitCode
from jobs.repository import open_bundle
from jobs.spec import JobSpec
from jobs.states import State
from queue_app.artifacts import ArtifactStore
from queue_app.records import new_claim_id
from queue_app.store import JobStore

SUBMIT = Path(sys.executable).parent / "submit-job"
DOWN = "redis://127.0.0.1:1/0"


@pytest.fixture
def place(valkey_url, tmp_path, monkeypatch):
    """An own home, and a working folder without a .env."""
    monkeypatch.setenv("REPOTUNE_BROKER_URL", valkey_url)
    monkeypatch.setenv("REPOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REPOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("REPOTUNE_ARTIFACTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(place, valkey_url):
    store = JobStore.connect(valkey_url)
    yield store
    store.close()


@pytest.fixture
def submit(typed):
    """Types `submit-job ARGUMENTS`."""
    return partial(typed, program="submit-job", code=None)


@pytest.fixture
def submitted(submit):
    """Types `submit-job ARGUMENTS --json`, and has the two records of the submission as it names them."""

    def submitted(*arguments):
        return told_by(submit(*arguments, "--json"))

    return submitted


def told_by(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def tickets(redis_client):
    """The arguments of every ticket in a queue."""
    lists = [
        key
        for key in redis_client.scan_iter()
        if not key.startswith(("rt:", "_kombu")) and redis_client.type(key) == "list"
    ]
    return [json.loads(text)["headers"]["id"] for key in lists for text in redis_client.lrange(key, 0, -1)]


def test_a_submission_is_two_jobs_and_one_ticket(store, redis_client, tiny_repository):
    # The installed program, in a process of its own.
    command = [SUBMIT, "--repo", str(tiny_repository), "--device", "cpu", "--priority", "7", "--json"]
    told = told_by(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))
    dataset, training = store.get(told["dataset_job"]), store.get(told["job"])
    assert (dataset.state, training.state) == (State.QUEUED, State.WAITING)
    assert training.depends_on == dataset.id
    assert (dataset.queue, training.queue.partition(".")[0]) == ("any.2g", "cpu")
    assert dataset.priority == training.priority == 7
    assert tickets(redis_client) == [f"{dataset.id}.1"]


def test_the_specs_are_whole(store, tiny_repository, submitted):
    told = submitted("--repo", str(tiny_repository), "--name", "tiny", "--epochs", "2", "--set", "lora.rank=8")
    dataset = JobSpec.model_validate_json(store.get(told["dataset_job"]).spec)
    training = JobSpec.model_validate_json(store.get(told["job"]).spec)
    assert dataset.source.repository == str(tiny_repository)
    assert (training.config.training.epochs, training.config.lora.rank, training.name) == (2, 8, "tiny")
    assert training.config.cuda.quantization.kind == "nf4"


def test_further_repositories_travel_with_the_first(store, place, tiny_repository, submitted):
    more = place / "more"
    more.mkdir()
    (more / "main.py").write_text("print(1)\n")
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        subprocess.run(["git", *person, *command], cwd=more, check=True)
    told = submitted("--repo", str(tiny_repository), "--also", "more=0.5")
    spec = JobSpec.model_validate_json(store.get(told["dataset_job"]).spec)
    [also] = spec.source.also
    assert (also.repository, also.weight) == (str(more), 0.5)
    artifacts = ArtifactStore((place / "home" / "artifacts").as_uri(), place / "cache")
    git_dir = open_bundle(artifacts.fetch(also.bundle), also.commit, place / "far.git")
    assert (git_dir / "objects").is_dir()
    training = JobSpec.model_validate_json(store.get(told["job"]).spec)
    assert spec.config.dataset.also == training.config.dataset.also == ()
    again = submitted("--repo", str(tiny_repository), "--also", "more=0.5")
    assert again["dataset_job"] == told["dataset_job"]
    assert submitted("--repo", str(tiny_repository), "--also", "more")["dataset_job"] != told["dataset_job"]


@pytest.mark.parametrize(
    ("also", "told"),
    [
        ("TINY=0", "a weight above 0"),
        ("TINY=-1", "a weight above 0"),
        ("=1", "a weight above 0"),
        ("TINY", "is named twice"),
        ("nowhere", "nowhere does not exist"),
        ("TINY=much", "does not exist"),
    ],
)
def test_a_further_repository_that_is_none_is_one_sentence(place, tiny_repository, also, told, submit):
    done = submit("--repo", str(tiny_repository), "--also", also.replace("TINY", str(tiny_repository)), "--dry-run")
    assert done.returncode == ExitCode.USAGE
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_bundle_holds_the_commit(store, place, tiny_repository, submitted):
    told = submitted("--repo", str(tiny_repository))
    source = JobSpec.model_validate_json(store.get(told["dataset_job"]).spec).source
    artifacts = ArtifactStore((place / "home" / "artifacts").as_uri(), place / "cache")
    git_dir = open_bundle(artifacts.fetch(source.bundle), source.commit, place / "opened.git")
    assert git_dir.is_dir()


def test_a_url_is_left_to_the_worker(store, place, tiny_repository, submitted):
    told = submitted("--repo", tiny_repository.as_uri())
    source = JobSpec.model_validate_json(store.get(told["dataset_job"]).spec).source
    assert source.bundle is None
    assert source.repository == tiny_repository.as_uri()
    assert not (place / "home" / "artifacts").exists()


def test_an_unchanged_repository_reuses_the_dataset(store, tiny_repository, submitted):
    first = submitted("--repo", str(tiny_repository))
    second = submitted("--repo", str(tiny_repository), "--set", "lora.rank=8")
    other = submitted("--repo", str(tiny_repository), "--set", "dataset.sequence_length=64")
    assert first["dataset_job"] == second["dataset_job"] != other["dataset_job"]
    assert first["job"] != second["job"]
    assert store.get(second["job"]).depends_on == first["dataset_job"]


def test_one_key_is_one_job(store, tiny_repository, submitted):
    first, second = (submitted("--repo", str(tiny_repository), "--key", "nightly") for _ in range(2))
    assert first == second


def finish_dataset(store, place, job_id):
    """As a worker does that built it."""
    claim = store.claim(job_id, 1, "anna", new_claim_id())
    (place / "built").mkdir(exist_ok=True)
    ArtifactStore((place / "home" / "artifacts").as_uri(), place / "cache").put_folder(place / "built", f"{job_id}/1")
    store.finish(claim, State.SUCCEEDED, result={"artifact": f"{job_id}/1"})


def test_a_dataset_that_left_the_artifact_store_is_built_again_once(store, place, tiny_repository, submitted):
    first = submitted("--repo", str(tiny_repository))["dataset_job"]
    finish_dataset(store, place, first)
    assert submitted("--repo", str(tiny_repository))["dataset_job"] == first
    shutil.rmtree(place / "home" / "artifacts" / first)
    second = submitted("--repo", str(tiny_repository))["dataset_job"]
    assert second != first
    finish_dataset(store, place, second)
    assert submitted("--repo", str(tiny_repository))["dataset_job"] == second


def test_a_dataset_that_is_done_starts_the_training_at_once(store, place, redis_client, tiny_repository, submitted):
    first = submitted("--repo", str(tiny_repository))
    finish_dataset(store, place, first["dataset_job"])
    redis_client.delete(*redis_client.scan_iter("any*"))
    second = submitted("--repo", str(tiny_repository))
    assert second["state"] == "QUEUED"
    assert tickets(redis_client) == [f"{second['job']}.1"]


def test_the_dataset_follows_the_section_of_the_training_device(store, tiny_repository, submitted):
    told = submitted("--repo", str(tiny_repository), "--device", "mps", "--set", "mps.dataset.sequence_length=64")
    spec = JobSpec.model_validate_json(store.get(told["dataset_job"]).spec)
    assert spec.config.dataset.sequence_length == 64


def test_a_relative_model_folder_is_sent_in_full(store, place, tiny_repository, submitted):
    (place / "model").mkdir()
    told = submitted("--repo", str(tiny_repository), "--model", "model")
    assert JobSpec.model_validate_json(store.get(told["job"]).spec).config.model.name == str(
        (place / "model").resolve()
    )


def test_a_broker_that_is_down_leaves_nothing_behind(place, tiny_repository, submit):
    done = submit("--repo", str(tiny_repository), REPOTUNE_BROKER_URL=DOWN)
    assert done.returncode == ExitCode.UNREACHABLE
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "home").exists()
    assert not (place / "cache").exists()


def test_an_artifact_store_that_is_away_records_nothing(store, place, tiny_repository, submit):
    (place / "file").write_text("", encoding="utf-8")
    done = submit("--repo", str(tiny_repository), REPOTUNE_ARTIFACTS=str(place / "file" / "below"))
    assert done.returncode == ExitCode.UNREACHABLE
    assert store.jobs() == []


def test_a_device_without_a_worker_is_told_and_the_job_waits(store, tiny_repository, submit, typed):
    done = submit("--repo", str(tiny_repository), "--device", "cuda")
    assert done.returncode == 0
    assert "No worker is registered: start `device-worker --device cuda`" in done.stdout
    assert "Until then the job waits." in done.stdout
    shown = json.loads(typed("show", store.jobs()[0].id, "--json").stdout)
    assert "No worker is registered" in shown["why"]


def test_a_dry_run_starts_nothing(store, tiny_repository, place, submit):
    done = submit("--repo", str(tiny_repository), "--dry-run")
    assert done.returncode == 0
    assert "queues:     any.2g (dataset), any." in done.stdout
    assert store.jobs() == []
    assert not (place / "home").exists()


def test_a_dry_run_needs_no_broker(place, tiny_repository, submit):
    done = submit("--repo", str(tiny_repository), "--dry-run", "--json", REPOTUNE_BROKER_URL=DOWN)
    assert done.returncode == 0
    assert json.loads(done.stdout)["workers"] is None
    assert "not known: the broker does not answer" in done.stderr


@pytest.mark.parametrize("command", [["submit", "--local"], ["validate"]])
def test_a_model_folder_that_holds_none_is_refused_here(place, tiny_repository, command, typed):
    (place / "model").mkdir()
    done = typed(*command, "--repo", str(tiny_repository), "--model", "model", code=None)
    assert done.returncode == ExitCode.USAGE
    assert "has no config.json" in done.stderr
    assert not (place / "home").exists()


def empty_repository(place):
    subprocess.run(["git", "init", "-q", "empty"], cwd=place, check=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--repo", "."], "not a git repository"),
        (["--repo", "nowhere"], "does not exist"),
        (["--repo", "empty"], "is empty: commit something first"),
        (["--repo", "TINY", "--ref", "nobranch"], "has no branch, tag or commit 'nobranch'"),
        (["--repo", "file:///nowhere/at/all"], "cannot be reached as a git repository"),
        (["--repo", "ext::sh"], "remote helper"),
        (["--repo", "TINY", "--device", "tpu"], "'tpu' is not one of 'cuda', 'mps', 'cpu', 'any'"),
        (["--repo", "TINY", "--priority", "10"], "10 is not in the range 0<=x<=9"),
        (["--repo", "TINY", "--set", "lora.rnak=4"], "lora.rnak: unknown key; allowed here: alpha"),
        (["--repo", "TINY", "--set", "lora.rank=four"], "lora.rank: input should be a valid integer"),
        (["--repo", "TINY", "--epochs", "0"], "training.epochs: input should be greater than or equal to 1"),
        (["--repo", "TINY", "--config", "none.yaml"], "Config file none.yaml does not exist"),
        (["--repo", "TINY", "--config", "bad.yaml"], "bad.yaml, line 2: lora.rank: input should be"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(*, store, place, tiny_repository, arguments, sentence, submit):
    empty_repository(place)
    (place / "bad.yaml").write_text("lora:\n  rank: -1\n", encoding="utf-8")
    done = submit(*[str(tiny_repository) if argument == "TINY" else argument for argument in arguments])
    assert done.returncode == ExitCode.USAGE
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert store.jobs() == []


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_submission_tells_what_is_worth_a_look(store, tiny_repository, dry, submit):
    done = submit("--repo", str(tiny_repository), *dry)
    assert done.returncode == 0
    assert "dataset        warn  " in done.stdout
    assert "one optimizer step takes 16 rows: lower dataset.sequence_length" in done.stdout


def test_a_submission_that_fails_a_check_records_nothing(store, place, tiny_repository, tiny_model_folder, submit):
    done = submit("--repo", str(tiny_repository), "--model", str(tiny_model_folder), "--json")
    assert done.returncode == ExitCode.USAGE
    assert "longer than the 512 positions" in json.loads(done.stdout)["error"]
    assert store.jobs() == []


def test_pull_copies_the_result_and_never_over_something(store, place, tiny_repository, submitted, typed):
    told = submitted("--repo", str(tiny_repository))
    folder = place / "output"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    ArtifactStore((place / "home" / "artifacts").as_uri(), place / "cache").put_folder(folder, "x/1/output")
    claim = store.claim(told["dataset_job"], 1, "anna", new_claim_id())
    too_early = typed("pull", told["dataset_job"], "--to", "mine", code=None)
    store.finish(claim, State.SUCCEEDED, result={"artifact": "x/1/output", "adapter": "adapter"})

    first = typed("pull", told["dataset_job"], "--to", "mine", "--json")
    again = typed("pull", told["dataset_job"], "--to", "mine", code=None)
    assert (too_early.returncode, first.returncode, again.returncode) == (1, 0, 2)
    assert "only a job that SUCCEEDED has a result" in too_early.stderr
    assert "mine exists already and is not empty" in again.stderr
    adapter = Path(json.loads(first.stdout)["adapter"])
    assert [file.name for file in adapter.iterdir()] == ["adapter_model.safetensors"]
    assert [file.name for file in (place / "mine").iterdir()] == ["adapter"]
