"""How an attempt that ended is reported, on a real store."""

import time
from dataclasses import replace

import pytest

from backends.devices import GIB, Device, Machine
from jobs.config import load_config
from jobs.events import Failed, Finished, StepDone, Stopped
from jobs.planner import DoesNotFit
from jobs.report import FILE
from jobs.spec import JobSpec, Kind
from jobs.states import Cause, Desired, State
from queue_app.artifacts import ArtifactStore
from queue_app.celery_app import make_app
from queue_app.ending import next_commands
from queue_app.pulling import NothingToPull, pull_result
from queue_app.records import NewJob, new_claim_id, new_job_id
from queue_app.settings import load_settings
from queue_app.store import JobStore, StoreUnreachable
from workers.assignment import OUTPUT, REPORT
from workers.failure import failure_of
from workers.lease import Lease
from workers.process import LineTail
from workers.relay import Outbox
from workers.runtime import Runtime
from workers.supervisor import Supervisor
from workers.uploads import CheckpointUploads, link_aside
from workers.watch import End, Stop


@pytest.fixture
def runtime(valkey_url, tmp_path):
    machine = Machine(device=Device.CPU, device_name="test", memory_bytes=8 * GIB, reason="", versions={})
    return Runtime(
        name="anna",
        machine=machine,
        settings=load_settings(broker_url=valkey_url, home=tmp_path, cache=tmp_path / "cache"),
        store=JobStore.connect(valkey_url),
        artifacts=ArtifactStore((tmp_path / "artifacts").as_uri(), tmp_path / "cache"),
        app=make_app(valkey_url),
        workroot=tmp_path / "work",
    )


def claimed(runtime, micro_batch=1):
    config = load_config(settings=[f"optimization.micro_batch={micro_batch}"])
    spec = JobSpec(kind=Kind.TRAINING, config=config, dataset_job="dataset-x").model_dump_json()
    new = NewJob(id=new_job_id("training"), kind="training", name="n", device="cpu", queue="cpu.8g", spec=spec)
    return claim_again(runtime, runtime.store.submit([new])[0].id)


def claim_again(runtime, job_id):
    attempt = runtime.store.get(job_id).attempt
    return runtime.store.claim(job_id, attempt, runtime.name, new_claim_id())


def report(runtime, claim, last=None, stop=None, *, exit_code=0, memory_kill=""):
    end = End(last=last, stop=stop, exit_code=exit_code, log="Killed", memory_kill=memory_kill)
    Supervisor(runtime, claim)._report(end)
    return runtime.store.get(claim.job_id)


def tickets(runtime):
    return sum(runtime.store.redis.llen(key) for key in runtime.store.redis.keys("cpu.8g*"))


def out_of_memory():
    return Failed(cause=Cause.OUT_OF_MEMORY, message="Out of memory.")


def test_out_of_memory_halves_the_micro_batch_until_it_is_one_and_then_recomputes(runtime):
    claim = claimed(runtime, micro_batch=4)
    for halvings in (1, 2, 3):
        record = report(runtime, claim, out_of_memory())
        assert (record.state, record.cause, record.memory_halvings) == (State.QUEUED, Cause.OUT_OF_MEMORY, halvings)
        claim = claim_again(runtime, claim.job_id)
    assert tickets(runtime) == 3
    assert "gradient checkpointing" in record.reason
    record = report(runtime, claim, out_of_memory())
    assert (record.state, record.cause, record.reason) == (State.FAILED, Cause.OUT_OF_MEMORY, "Out of memory.")


def test_a_training_that_no_saving_makes_fit_is_not_tried_again(runtime):
    failed = failure_of(DoesNotFit("The training needs 9 GiB."))
    record = report(runtime, claimed(runtime, micro_batch=4), failed)
    assert (record.state, record.cause) == (State.FAILED, Cause.OUT_OF_MEMORY)
    assert record.reason == "The training needs 9 GiB."


def test_a_trainer_that_dies_again_and_again_fails_the_job_with_its_last_words(runtime):
    claim = claimed(runtime)
    for _ in range(3):
        record = report(runtime, claim, exit_code=-9)
        assert (record.state, record.cause) == (State.QUEUED, Cause.WORKER_LOST)
        claim = claim_again(runtime, claim.job_id)
    record = report(runtime, claim, exit_code=-9)
    assert (record.state, record.cause) == (State.FAILED, Cause.WORKER_LOST)
    assert "signal 9" in record.reason
    assert "Killed" in record.reason


def test_a_kill_by_the_system_for_want_of_memory_halves_the_micro_batch_as_well(runtime):
    claim = claimed(runtime, micro_batch=2)
    for halvings in (1, 2):  # to one row, then to recomputation
        record = report(runtime, claim, exit_code=-9, memory_kill="the system killed it")
        assert (record.state, record.cause, record.memory_halvings) == (State.QUEUED, Cause.OUT_OF_MEMORY, halvings)
        claim = claim_again(runtime, claim.job_id)
    assert record.reason.startswith("Out of memory with a micro-batch of 1")
    for _ in range(3):  # nothing is left to halve: perhaps another program took the memory
        record = report(runtime, claim, exit_code=-9, memory_kill="the system killed it")
        assert (record.state, record.memory_halvings) == (State.QUEUED, 2)
        claim = claim_again(runtime, claim.job_id)
    record = report(runtime, claim, exit_code=-9, memory_kill="the system killed it")
    assert (record.state, record.cause) == (State.FAILED, Cause.OUT_OF_MEMORY)


def test_a_retry_by_its_owner_forgives_the_deaths_before(runtime):
    claim = claimed(runtime)
    for _ in range(4):
        report(runtime, claim, exit_code=-9)
        claim = claim_again(runtime, claim.job_id)
    runtime.store.retry(runtime.store.jobs()[0].id)
    claim = claim_again(runtime, runtime.store.jobs()[0].id)
    assert report(runtime, claim, exit_code=-9).state == State.QUEUED


def test_a_user_error_is_not_tried_again(runtime):
    record = report(runtime, claimed(runtime), Failed(cause=Cause.USER_ERROR, message="No such model."))
    assert (record.state, record.cause, record.reason) == (State.FAILED, Cause.USER_ERROR, "No such model.")
    assert tickets(runtime) == 0


def with_report(runtime, claim):
    output = Supervisor(runtime, claim)._workdir / OUTPUT
    (output / "checkpoints" / "step-5").mkdir(parents=True)
    (output / REPORT).write_text("<h1>It diverged</h1>")
    return claim


@pytest.mark.parametrize(
    "ended", [{"last": Failed(cause=Cause.USER_ERROR, message="It diverged.")}, {"stop": Stop.CANCEL}]
)
def test_the_report_of_a_training_that_ended_badly_can_be_pulled(runtime, tmp_path, ended):
    record = report(runtime, with_report(runtime, claimed(runtime)), **ended)
    pull_result(record, runtime.settings, tmp_path / "left")
    assert [path.name for path in (tmp_path / "left").iterdir()] == [FILE]
    assert any("pull" in command for command in next_commands(record, local=False))


def test_a_training_that_goes_on_leaves_nothing_yet_and_one_without_a_report_nothing(runtime, tmp_path):
    assert report(runtime, with_report(runtime, claimed(runtime)), stop=Stop.PAUSE).result == {}
    record = report(runtime, claimed(runtime), Failed(cause=Cause.USER_ERROR, message="No such model."))
    with pytest.raises(NothingToPull, match="FAILED"):
        pull_result(record, runtime.settings, tmp_path / "left")


def test_an_artifact_store_that_is_away_holds_up_no_end(runtime):
    away = replace(runtime, artifacts=ArtifactStore("file:///proc/nowhere", runtime.settings.cache))
    record = report(away, with_report(away, claimed(away)), Failed(cause=Cause.USER_ERROR, message="It diverged."))
    assert (record.state, record.result) == (State.FAILED, {})


@pytest.mark.parametrize(
    ("stop", "state", "cause"),
    [
        (Stop.CANCEL, State.CANCELLED, Cause.CANCELLED),
        (Stop.PAUSE, State.PAUSED, None),
        (Stop.WALL_TIME, State.FAILED, Cause.MAX_WALL_TIME),
        (Stop.STALLED, State.FAILED, Cause.STALLED),
        (Stop.PREEMPT, State.QUEUED, Cause.PREEMPTED),
    ],
)
def test_every_stop_has_its_end(runtime, stop, state, cause):
    record = report(runtime, claimed(runtime), Stopped(step=3), stop)
    assert (record.state, record.cause) == (state, cause)


def test_a_job_that_finished_while_it_was_asked_to_stop_is_done(runtime):
    claim = claimed(runtime)
    output = runtime.workroot / claim.job_id / "output"
    (output / "checkpoints" / "step-1").mkdir(parents=True)
    (output / "result.json").write_text("{}")
    record = report(runtime, claim, Finished(result={"steps": 3}), Stop.PREEMPT)
    assert record.state == State.SUCCEEDED
    assert record.result == {"steps": 3, "artifact": f"{claim.job_id}/{claim.fence}/output"}
    assert [file.name for file in runtime.artifacts.fetch(record.result["artifact"]).glob("[!.]*")] == ["result.json"]


@pytest.mark.parametrize("end", [(Failed(cause="user_error", message="x"), None), (Stopped(step=3), Stop.PREEMPT)])
def test_who_lost_a_job_writes_nothing_more(runtime, end):
    claim = claimed(runtime)
    supervisor = Supervisor(runtime, claim)
    supervisor._lease.desired = Desired.LOST
    before = runtime.store.get(claim.job_id)
    supervisor._report(End(last=end[0], stop=end[1], exit_code=0, log=""))
    assert runtime.store.get(claim.job_id) == before


def test_an_artifact_store_that_is_away_is_waited_for_without_using_up_an_attempt(runtime):
    dataset, claim = claimed(runtime), claimed(runtime)
    runtime.store.finish(dataset, State.SUCCEEDED, result={"artifact": "a/1/output"})
    runtime = replace(runtime, artifacts=ArtifactStore("http://127.0.0.1:1/artifacts", runtime.settings.cache))
    Supervisor(runtime, replace(claim, record=replace(claim.record, depends_on=dataset.job_id))).run()
    after = runtime.store.get(claim.job_id)
    assert (after.state, after.attempt) == (State.QUEUED, 1), after.reason
    assert "127.0.0.1" in after.reason


def test_a_job_that_cannot_be_prepared_fails_with_its_sentence(runtime):
    claim = claimed(runtime)
    Supervisor(runtime, replace(claim, record=replace(claim.record, spec='{"kind": "training"}'))).run()
    after = runtime.store.get(claim.job_id)
    assert after.state == State.FAILED
    assert after.reason
    assert not (runtime.workroot / claim.job_id).exists()


def test_a_lease_hears_what_is_wanted(runtime):
    claim = claimed(runtime)
    lease = Lease(runtime.store, claim, renew_seconds=0.05)
    lease.start()
    runtime.store.cancel(claim.job_id)
    deadline = time.monotonic() + 5
    while lease.desired is Desired.RUN and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lease.desired is Desired.CANCEL
    lease.end()
    lease.join(5)


def test_an_outbox_sends_each_line_once_in_order_whatever_the_store_does(tmp_path):
    file, got, trouble = tmp_path / "events", [], [True, False, True, True, False]

    def send(lines, first):
        if trouble and trouble.pop(0):
            raise StoreUnreachable("away")
        assert first == len(got) + 1
        got.extend(lines)
        return True

    outbox = Outbox(LineTail(file), send)
    lines = [StepDone(step=n, total_steps=9, loss=1, lr=1, grad_norm=1, tokens=1, tokens_per_second=1, memory_bytes=0)
             .to_json() for n in range(500)]  # fmt: skip
    for part in (lines[:250], lines[250:]):
        with file.open("a") as events:
            events.write("".join(f"{line}\n" for line in part))
        drained = False
        while not drained:
            try:
                drained = outbox.pump()
            except StoreUnreachable:
                continue
    assert got == lines


def test_a_checkpoint_arrives_even_when_the_trainer_removes_it_meanwhile(tmp_path):
    arrived, attempts = [], []
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "weights").write_bytes(b"w")

    def upload(folder, step, _best):
        attempts.append(step)
        if len(attempts) == 1:
            raise OSError("the store is away")
        arrived.append((step, (folder / "weights").read_bytes()))

    uploads = CheckpointUploads("job", upload, tmp_path / "staging")
    uploads.start()
    uploads.add(1, tmp_path / "step-1")
    (tmp_path / "step-1" / "weights").unlink()
    uploads.close()
    uploads.join(10)
    assert arrived == [(1, b"w")]
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_step_that_is_saved_again_as_the_best_arrives_as_well(tmp_path):
    arrived = []
    (tmp_path / "step-1").mkdir()
    uploads = CheckpointUploads("job", lambda _folder, *told: arrived.append(told), tmp_path / "staging")
    uploads.add(1, tmp_path / "step-1")
    uploads.add(1, tmp_path / "step-1", best=True)
    uploads.start()
    uploads.close()
    uploads.join(10)
    assert arrived == [(1, False), (1, True)]


def test_a_checkpoint_that_is_current_is_never_written_over(runtime, tmp_path):
    claim = claimed(runtime)
    supervisor = Supervisor(runtime, claim)
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").write_text("{}")
    for best in (False, True):
        supervisor._upload_checkpoint(tmp_path / "step", 1, best)
    plain = f"{claim.job_id}/{claim.fence}/checkpoints/step-1"
    assert runtime.artifacts.exists(plain)
    pointer = runtime.store.get(claim.job_id).checkpoint
    assert pointer == {"step": 1, "artifact": f"{plain}.2", "best": f"{plain}.2"}
    assert runtime.artifacts.exists(pointer["artifact"])


def test_the_artifact_store_keeps_as_many_checkpoints_as_the_trainer(runtime, tmp_path):
    claim = claimed(runtime)
    supervisor = Supervisor(runtime, claim)
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").write_text("{}")
    for step in (1, 2, 3):
        supervisor._upload_checkpoint(tmp_path / "step", step, best=False)
    checkpoints = [f"{claim.job_id}/{claim.fence}/checkpoints/step-{step}" for step in (1, 2, 3)]
    assert [runtime.artifacts.exists(checkpoint) for checkpoint in checkpoints] == [False, True, True]
    assert runtime.store.get(claim.job_id).checkpoint == {"step": 3, "artifact": checkpoints[2]}


def test_the_best_checkpoint_stays_over_attempts_until_there_is_a_better_one(runtime, tmp_path):
    claim = claimed(runtime)
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").write_text("{}")
    supervisor = Supervisor(runtime, claim)
    for step in (1, 2, 3, 4):
        supervisor._upload_checkpoint(tmp_path / "step", step, best=step == 1)
    assert stored(runtime, claim, 4) == [True, False, True, True]
    runtime.store.requeue(claim, Cause.PREEMPTED, "")
    again = claim_again(runtime, claim.job_id)
    assert again.record.checkpoint["best"].endswith("/step-1")
    supervisor = Supervisor(runtime, again)
    for step in (5, 6):
        supervisor._upload_checkpoint(tmp_path / "step", step, best=False)
    assert stored(runtime, claim, 4)[::3] == [True, False]
    supervisor._upload_checkpoint(tmp_path / "step", 7, best=True)
    assert not stored(runtime, claim, 1)[0]
    assert stored(runtime, again, 7)[4:] == [False, True, True]


def stored(runtime, claim, steps):
    folder = f"{claim.job_id}/{claim.fence}/checkpoints"
    return [runtime.artifacts.exists(f"{folder}/step-{step}") for step in range(1, steps + 1)]


def test_a_resumed_attempt_forgets_the_checkpoint_it_began_from_once_it_has_newer_ones(runtime, tmp_path):
    first = claimed(runtime)
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").write_text("{}")
    Supervisor(runtime, first)._upload_checkpoint(tmp_path / "step", 1, best=False)
    runtime.store.requeue(first, Cause.PREEMPTED, "")
    second = claim_again(runtime, first.job_id)
    supervisor = Supervisor(runtime, second)
    for step in (2, 3):
        supervisor._upload_checkpoint(tmp_path / "step", step, best=False)
    assert not runtime.artifacts.exists(f"{first.job_id}/{first.fence}/checkpoints/step-1")
    assert runtime.artifacts.exists(f"{first.job_id}/{second.fence}/checkpoints/step-2")


def test_linking_aside_leaves_out_what_is_named(tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("x")
    link_aside(tmp_path / "a", tmp_path / "b", leave_out=("checkpoints",))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["file"]
