"""What people see of jobs and workers, on a real store."""

import json

import pytest
from click.testing import CliRunner

from backends.devices import Device, Machine, queues_served
from backends.errors import ExitCode
from jobs.spec import Config, JobSpec, Kind, Source
from jobs.states import Cause, State
from queue_app import tables
from queue_app.cli import repotune
from queue_app.ending import typed
from queue_app.explanation import explain
from queue_app.records import NewJob, WorkerRecord, new_claim_id, new_job_id
from queue_app.store import JobNotFound, JobStore

GIB = 1024**3


@pytest.fixture
def store(valkey_url, monkeypatch):
    monkeypatch.setenv("REPOTUNE_BROKER_URL", valkey_url)
    store = JobStore.connect(valkey_url)
    yield store
    store.close()


def new_job(**fields):
    spec = JobSpec(kind=Kind.TRAINING, config=Config(), source=Source(repository="/code", commit="a" * 40))
    base = {"id": new_job_id("training"), "kind": "training", "name": "the-block", "device": "cpu", "queue": "cpu.8g"}
    return NewJob(**(base | {"spec": spec.model_dump_json()} | fields))


def a_worker(name="anna", device=Device.CPU, memory=16 * GIB, **fields):
    machine = Machine(device=device, device_name="A CPU", memory_bytes=memory, reason="", versions={})
    return WorkerRecord(
        name=name,
        device=device,
        device_name="A CPU",
        memory_bytes=memory,
        queues=tuple(queues_served(machine)),
        versions={},
        pid=1,
        host="here",
        **fields,
    )


def invoke(*arguments):
    result = CliRunner().invoke(repotune, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_a_token_in_the_address_of_a_repository_is_not_shown(store):
    source = Source(repository="https://me:secret@host/code.git", commit="a" * 40)
    spec = JobSpec(kind=Kind.DATASET, config=Config(), source=source)
    (job,) = store.submit([new_job(kind="dataset", spec=spec.model_dump_json())])
    for arguments in (("show", job.id), ("show", job.id, "--json"), ("jobs", "--json")):
        told = invoke(*arguments)
        assert "secret" not in told
    assert "https://host/code.git" in told


def test_the_schema_is_written_to_a_new_file_or_refused_in_a_sentence(tmp_path):
    file = tmp_path / "schema.json"
    assert json.loads(invoke("schema", "--output", str(file), "--json")) == {"output": str(file)}
    result = CliRunner().invoke(repotune, ["schema", "--output", str(tmp_path / "nowhere" / "x")])
    assert (result.exit_code, "cannot be written (No such file" in result.stderr) == (ExitCode.USAGE, True)


def test_a_queued_job_without_workers_says_what_to_start(store):
    (job,) = store.submit([new_job()])
    assert explain(store, job) == (
        "No worker is registered: start `device-worker --device cpu` on a machine with 8 GB."
    )


def test_a_queued_job_says_why_no_worker_fits(store):
    store.register(a_worker("anna", memory=4 * GIB))
    store.register(a_worker("bert", Device.MPS))
    (job,) = store.submit([new_job()])
    why = explain(store, job)
    assert "worker anna serves cpu up to 4 GB, the job needs a 8 GB machine" in why
    assert "worker bert serves mps, not cpu" in why


def test_a_queued_job_says_that_all_are_busy(store):
    store.register(a_worker("anna"))
    store.heartbeat("anna", "busy", "train-other")
    (job,) = store.submit([new_job()])
    assert explain(store, job) == "Every worker that serves the queue cpu.8g is busy (anna runs train-other)."


def test_a_queued_job_with_an_idle_worker_is_about_to_start(store):
    store.register(a_worker("anna"))
    (job,) = store.submit([new_job()])
    assert "Worker anna is idle" in explain(store, job)


def test_a_job_that_may_not_start_yet_says_when_and_why(store):
    (job,) = store.submit([new_job()])
    claim = store.claim(job.id, 1, "anna", new_claim_id())
    store.requeue(claim, None, "The GPU is busy with something else.", delay_s=60)
    why = explain(store, store.get(job.id))
    assert why.startswith("The GPU is busy with something else. No worker may take it for another ")


def test_a_waiting_job_tells_of_its_dependency(store):
    data = new_job(id=new_job_id("dataset"), kind="dataset", queue="any.2g", device="any")
    _, training = store.submit([data, new_job(depends_on=data.id)])
    why = explain(store, training)
    assert why.startswith(f"It waits for {data.id}, which is QUEUED. No worker is registered")


def test_jobs_are_listed_and_filtered_by_state(store):
    first, second = store.submit([new_job(), new_job()])
    store.cancel(first.id)
    assert {job["job"] for job in json.loads(invoke("jobs", "--json"))["jobs"]} == {first.id, second.id}
    assert [job["job"] for job in json.loads(invoke("jobs", "--json", "--state", "cancelled"))["jobs"]] == [first.id]


def test_a_piped_table_is_not_cut(store):
    (job,) = store.submit([new_job(name="n" * 150)])
    line = invoke("jobs").splitlines()[1]
    assert job.id in line
    assert "n" * 150 in line


def test_no_jobs_say_how_to_make_one(store):
    assert "submit-job --repo" in invoke("jobs")


def test_show_tells_state_reason_and_source(store):
    (job,) = store.submit([new_job()])
    shown = invoke("show", job.id)
    assert "QUEUED" in shown
    assert "No worker is registered" in shown
    assert "/code at aaaaaaaaaaaa" in shown


def test_show_as_json_has_the_spec_as_an_object(store):
    (job,) = store.submit([new_job()])
    shown = json.loads(invoke("show", job.id, "--json"))
    assert shown["job"] == job.id
    assert shown["spec"]["source"]["commit"] == "a" * 40
    assert "No worker is registered" in shown["why"]


@pytest.mark.parametrize("command", ["show", "follow", "logs", "cancel", "retry", "pull"])
def test_a_job_that_does_not_exist_is_exit_code_4(store, command):
    with pytest.raises(JobNotFound) as raised:
        invoke(command, "train-nothere")
    assert raised.value.exit_code == ExitCode.NO_SUCH_JOB


def test_logs_print_the_lines_in_order(store):
    (job,) = store.submit([new_job()])
    claim = store.claim(job.id, 1, "anna", new_claim_id())
    store.logs_append(claim, ["one", "two"], 0)
    assert invoke("logs", job.id) == "one\ntwo\n"
    assert [line["line"] for line in json.loads(invoke("logs", job.id, "--json").splitlines()[-1])["lines"]] == [
        "one",
        "two",
    ]


def test_workers_are_listed_with_what_they_serve(store):
    assert "device-worker" in invoke("workers")
    store.register(a_worker("anna"))
    assert "cpu.16g any.16g" in invoke("workers")
    assert json.loads(invoke("workers", "--json"))["workers"][0]["worker"] == "anna"


def test_cancel_and_retry_say_what_became_of_the_job(store):
    (job,) = store.submit([new_job()])
    assert invoke("cancel", job.id) == f"{job.id} is cancelled.\n"
    assert invoke("cancel", job.id) == f"{job.id} is cancelled.\n"
    assert f"{job.id} is QUEUED again, attempt 2." in invoke("retry", job.id)
    assert json.loads(invoke("retry", job.id, "--json").splitlines()[-1])["state"] == "QUEUED"


def test_a_job_that_ended_is_not_cancelled(store):
    (job,) = store.submit([new_job()])
    store.finish(store.claim(job.id, 1, "anna", new_claim_id()), State.SUCCEEDED)
    assert "is SUCCEEDED: there is nothing to cancel" in invoke("cancel", job.id)


def test_a_running_job_is_asked_to_stop(store):
    (job,) = store.submit([new_job()])
    store.claim(job.id, 1, "anna", new_claim_id())
    assert "asked to stop" in invoke("cancel", job.id)


def test_a_failed_job_shows_its_cause(store):
    (job,) = store.submit([new_job()])
    claim = store.claim(job.id, 1, "anna", new_claim_id())
    store.finish(claim, State.FAILED, Cause.USER_ERROR, "The repository has no text files.")
    shown = invoke("show", job.id)
    assert "FAILED (user_error)" in shown
    assert "The repository has no text files." in shown


def test_a_job_whose_dependency_failed_tells_why_that_failed(store):
    data = new_job(id=new_job_id("dataset"), kind="dataset")
    dataset, training = store.submit([data, new_job(depends_on=data.id)])
    claim = store.claim(dataset.id, 1, "anna", new_claim_id())
    store.finish(claim, State.FAILED, Cause.USER_ERROR, "The repository has no text files.")
    assert explain(store, store.get(training.id)).endswith("The repository has no text files.")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1536, "1.5 KiB"), (3 * 1024**2, "3.0 MiB"), (GIB, "1.0 GiB")]
)
def test_bytes_are_told_in_their_unit(size, text):
    assert tables.size_text(size) == text


def test_the_loss_on_newer_commits_is_told_with_how_sure_it_is():
    result = {"future_loss_before": 2.0, "future_loss_after": 1.5, "future_interval": [-0.6, -0.4]}
    assert tables.result_lines(result) == [("newer commits", "loss 2 -> 1.5 (difference -0.600 to -0.400, 95 %)")]
    few = result | {"future_interval": [None, None]}
    assert tables.result_lines(few) == [("newer commits", "loss 2 -> 1.5")]
    assert tables.result_lines({"future_loss_before": None, "future_loss_after": None}) == []


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_told_in_their_unit(seconds, text):
    assert tables.duration(seconds) == text


def test_a_program_is_named_by_its_path_where_the_shell_would_not_find_it(tmp_path, monkeypatch):
    script = tmp_path / "bin" / "repotune"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "bin" / "submit-job")])
    monkeypatch.setenv("PATH", "/nowhere")
    assert typed("repotune") == "bin/repotune"
    monkeypatch.setenv("PATH", str(script.parent))
    assert typed("repotune") == "repotune"


def a_moment(kind, moment, **fields):
    return json.dumps({"event": kind, "time": moment, **fields})


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([a_moment("step", 100.0, step=5, total_steps=9, loss=2.0, eta_seconds=600.0)], 600.0),
        (
            [
                a_moment("step", 100.0, step=9, total_steps=9, loss=2.0, eta_seconds=600.0),
                a_moment("stage", 101.0, stage="evaluate"),
                a_moment("progress", 160.0, stage="evaluate", done=5, total=64),
            ],
            540.0,
        ),
        (
            [
                a_moment("step", 100.0, step=5, total_steps=9, loss=2.0, eta_seconds=600.0),
                a_moment("stage", 900.0, stage="load model"),
            ],
            None,
        ),
        ([a_moment("stage", 1.0, stage="train")], None),
    ],
    ids=["a step", "an evaluation after it", "a new attempt that loads", "no step yet"],
)
def test_the_time_left_is_told_while_a_job_runs(store, events, left):
    (job,) = store.submit([new_job()])
    claim = store.claim(job.id, job.attempt, "anna", new_claim_id())
    store.emit(claim, events, 0)
    told = json.loads(invoke("show", job.id, "--json"))
    assert told["seconds_left"] == left
    assert ("time left:     about" in invoke("show", job.id)) == (left is not None)
    assert invoke("jobs").count("about") == (left is not None)
    store.finish(claim, State.SUCCEEDED)
    assert json.loads(invoke("show", job.id, "--json"))["seconds_left"] is None
