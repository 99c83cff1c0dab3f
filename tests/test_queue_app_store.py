"""The job store on a real server: every transition, and every script sent twice."""

import json
import socket
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from backends.errors import ExitCode
from jobs.events import Evaluated, Progress, StageStarted, StepDone
from jobs.states import TERMINAL, Cause, Desired, State
from queue_app.records import NewJob, Ticket, WorkerRecord, new_claim_id, new_job_id
from queue_app.store import JobNotFound, JobStore, StoreTimes, StoreUnreachable, without_password

# Long enough that no lease runs out by itself; tests that want that let it run out in the index.
TIMES = StoreTimes(lease=60, suspect=60, gap=60, worker=60)


@pytest.fixture
def store(valkey_url):
    store = JobStore.connect(valkey_url, TIMES)
    store.reap()  # from now on somebody watches
    yield store
    store.close()


def new_job(**fields):
    base = {"id": new_job_id("training"), "kind": "training", "name": "n", "device": "cpu", "queue": "cpu.8g"}
    return NewJob(**(base | {"spec": "{}"} | fields))


def queued(store, **fields):
    return store.submit([new_job(**fields)])[0]


def running(store, record=None, worker="anna", **fields):
    record = record or queued(store, **fields)
    return store.claim(record.id, record.attempt, worker, new_claim_id())


def pipeline(store, **fields):
    data = new_job(id=new_job_id("dataset"), kind="dataset")
    return store.submit([data, new_job(depends_on=data.id, **fields)])


def let_lease_run_out(store, job_id):
    store.redis.zadd("rt:leases", {job_id: 1})


def let_grace_run_out(store, job_id):
    store.redis.zadd("rt:suspects", {job_id: 1})


def lose(store, claim):
    """The worker of a claim vanishes, and the reaper notices."""
    let_lease_run_out(store, claim.job_id)
    assert store.reap() == []
    let_grace_run_out(store, claim.job_id)
    return store.reap()


def snapshot(store):
    """All of Redis but what a clock or a repeated event changes."""
    dump = {}
    for key in store.redis.keys("rt:*"):
        kind = store.redis.type(key)
        read = {"hash": store.redis.hgetall, "set": store.redis.smembers, "string": store.redis.get}
        if kind == "zset":
            dump[key] = set(store.redis.zrange(key, 0, -1))
        elif kind == "stream":
            dump[key] = store.redis.xlen(key)
        else:
            dump[key] = read[kind](key)
    for fields in dump.values():
        if isinstance(fields, dict):
            fields.pop("seen_at", None)
    return dump


def twice(store, call):
    """The reply to a call, once it was shown that sending it again replies the same and changes nothing more."""
    first = call()
    before = snapshot(store)
    assert call() == first
    assert snapshot(store) == before
    return first


# ---- submit ----------------------------------------------------------------------------------------------------------


def test_a_submitted_job_is_queued_and_comes_back_as_it_was_given(store):
    new = new_job(name="the block", priority=7, need_bytes=123_456_789_012, spec='{"ü": "\\u0000 \\" \'"}')
    (record,) = twice(store, lambda: store.submit([new]))
    assert (record.state, record.attempt, record.fence) == (State.QUEUED, 1, 1)
    assert (record.name, record.priority, record.need_bytes, record.spec) == (
        new.name, new.priority, new.need_bytes, new.spec,
    )  # fmt: skip
    assert 0 < record.created_at <= store.now()
    assert store.get(new.id) == record


def test_a_name_that_is_no_utf_8_is_kept_as_far_as_it_can_be(store):
    assert queued(store, name="a\udcffb").name == "a?b"


def test_a_pipeline_waits_for_its_first_job(store):
    jobs = _pair()
    data, train = twice(store, lambda: store.submit(jobs))
    assert (data.state, train.state) == (State.QUEUED, State.WAITING)
    assert data.id in train.reason


def _pair():
    data = new_job()
    return [data, new_job(depends_on=data.id)]


def test_one_idempotency_key_is_one_job_while_it_lives_or_has_succeeded(store):
    first = queued(store, idempotency_key="k")
    assert queued(store, idempotency_key="k").id == first.id
    store.finish(running(store, first), State.SUCCEEDED)
    assert queued(store, idempotency_key="k").id == first.id


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_the_key_of_a_job_that_did_not_succeed_is_free_again(store, state):
    first = running(store, idempotency_key="k")
    store.finish(first, state, Cause.USER_ERROR)
    second = queued(store, idempotency_key="k")
    assert second.id != first.job_id
    assert queued(store, idempotency_key="k").id == second.id


def test_a_known_job_stands_in_as_the_dependency(store):
    known = queued(store, idempotency_key="data")
    data = new_job(idempotency_key="data")
    records = store.submit([data, new_job(depends_on=data.id)])
    assert records[0].id == known.id
    assert records[1].depends_on == known.id
    assert store.finish(running(store, known), State.SUCCEEDED)[0].job_id == records[1].id


def test_one_key_twice_in_a_submission_is_one_job(store):
    records = store.submit([new_job(idempotency_key="k"), new_job(idempotency_key="k"), new_job(), new_job()])
    assert records[0] == records[1]
    assert len(store.jobs()) == 3


def test_a_job_that_depends_on_a_succeeded_one_is_queued_at_once(store):
    data = running(store)
    store.finish(data, State.SUCCEEDED)
    assert queued(store, depends_on=data.job_id).state == State.QUEUED


def test_a_job_that_depends_on_a_failed_one_has_failed(store):
    data = running(store)
    store.finish(data, State.FAILED, Cause.USER_ERROR)
    record = queued(store, depends_on=data.job_id)
    assert (record.state, record.cause) == (State.FAILED, Cause.DEPENDENCY_FAILED)


@pytest.mark.parametrize("itself", [True, False])
def test_an_unknown_dependency_creates_nothing(store, itself):
    bad = new_job(id="train-bad", depends_on="train-bad" if itself else "train-gone")
    with pytest.raises(JobNotFound, match="train-"):
        store.submit([new_job(), bad])
    assert store.jobs() == []


# ---- claim -----------------------------------------------------------------------------------------------------------


def test_a_claim_wins_once_and_the_same_claim_id_gets_the_same_claim(store):
    record = queued(store)
    claim = twice(store, lambda: store.claim(record.id, 1, "anna", "c1"))
    assert (claim.fence, claim.record.state, claim.record.worker) == (1, State.RUNNING, "anna")
    assert store.claim(record.id, 1, "bert", "c2") is None


def test_of_many_who_claim_at_once_one_wins(store):
    record = queued(store)
    claims = []
    threads = [
        threading.Thread(target=lambda n=n: claims.append(store.claim(record.id, 1, f"w{n}", f"c{n}")))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in claims) == 1


def test_a_ticket_for_another_attempt_is_refused(store):
    record = queued(store)
    assert store.claim(record.id, 2, "anna", "c") is None
    lose(store, running(store, record))
    assert store.claim(record.id, 1, "anna", "c") is None
    assert store.claim(record.id, 2, "anna", "c").fence == 2


def test_a_job_that_does_not_exist_is_not_claimed(store):
    assert store.claim("train-gone", 1, "anna", "c") is None
    assert snapshot(store).keys() == {"rt:reaper"}


def test_a_waiting_a_cancelled_and_a_finished_job_are_not_claimed(store):
    _, waiting = pipeline(store)
    cancelled = store.cancel(queued(store).id)
    done = running(store)
    store.finish(done, State.SUCCEEDED)
    for job_id in (waiting.id, cancelled.id, done.job_id):
        assert store.claim(job_id, 1, "anna", "c") is None
    assert store.claim(done.job_id, 1, "anna", done.claim_id) is None


# ---- renew, emit, logs, checkpoint: the fence ------------------------------------------------------------------------


def test_renewing_lengthens_the_lease_and_replies_what_is_desired(store):
    claim = running(store)
    let_lease_run_out(store, claim.job_id)
    assert twice(store, lambda: store.renew(claim)) == Desired.RUN
    assert store.reap() == []
    store.cancel(claim.job_id)
    assert store.renew(claim) == Desired.CANCEL


def test_whoever_lost_the_job_writes_nothing(store):
    claim = running(store)
    lose(store, claim)
    running(store, store.get(claim.job_id), worker="bert")
    before = snapshot(store)
    for zombie in (claim, replace(claim, fence=2), replace(claim, claim_id="")):
        assert store.renew(zombie) == Desired.LOST
        assert not store.emit(zombie, ["{}"], 0)
        assert not store.logs_append(zombie, ["x"], 0)
        assert not store.checkpoint(zombie, 1, "a")
        assert store.finish(zombie, State.FAILED, Cause.USER_ERROR) == []
        assert store.requeue(zombie, Cause.PREEMPTED, "r") is None
    assert snapshot(store) == before


def test_a_claim_id_that_is_used_again_does_not_revive_an_older_fence(store):
    record = queued(store)
    older = store.claim(record.id, 1, "anna", "c")
    store.requeue(older, None, "The GPU is busy.")
    newer = store.claim(record.id, 1, "anna", "c")
    assert store.renew(older) == Desired.LOST
    assert not store.emit(older, ["{}"], 0)
    assert store.requeue(older, None, "The GPU is busy.") is None
    assert store.renew(newer) == Desired.RUN


def test_a_job_that_vanished_with_its_server_is_lost(store):
    claim = running(store)
    store.redis.flushall()
    assert store.renew(claim) == Desired.LOST
    assert not store.emit(claim, ["{}"], 0)
    assert store.redis.keys("rt:*") == []


STEP = StepDone(
    step=3, total_steps=9, loss=1.5, lr=1e-4, grad_norm=0.5, tokens=512, tokens_per_second=2.5, memory_bytes=1
)


def test_events_come_back_in_order_and_the_newest_of_each_kind_is_in_the_record(store):
    claim = running(store)
    events = [
        StageStarted(stage="train"),
        replace(STEP, step=1),
        STEP,
        Evaluated(step=3, loss=1, perplexity=2, tokens=9),
    ]
    lines = [event.to_json() for event in events]
    assert twice(store, lambda: store.emit(claim, lines, 0))
    seen = [event for _, event in store.events(claim.job_id) if event["event"] != "state"]
    assert seen == [{**json.loads(line), "attempt": 1} for line in lines]
    progress = store.get(claim.job_id).progress
    assert progress["step"] == json.loads(STEP.to_json())
    assert set(progress) == {"stage", "step", "evaluation"}


def test_the_loss_of_newer_commits_does_not_hide_that_of_held_out_files(store):
    claim = running(store)
    held_out = Evaluated(step=3, loss=1, perplexity=2, tokens=9)
    future = replace(held_out, loss=7, split="future")
    assert store.emit(claim, [held_out.to_json(), future.to_json()], 0)
    assert store.emit(claim, [future.to_json()], 2)
    assert store.get(claim.job_id).progress["evaluation"] == json.loads(held_out.to_json())
    assert [event["loss"] for _, event in store.events(claim.job_id) if event["event"] == "evaluation"] == [1, 7, 7]


def test_events_that_overlap_with_what_was_sent_are_taken_once(store):
    claim = running(store)
    lines = [Progress(stage="s", done=number).to_json() for number in range(1200)]
    store.emit(claim, lines[:700], 1)
    store.emit(claim, lines[400:], 401)
    store.emit(claim, lines[100:200], 101)
    done = [event["done"] for _, event in store.events(claim.job_id, limit=5000) if event["event"] == "progress"]
    assert done == list(range(1200))
    assert store.get(claim.job_id).progress["progress"]["done"] == 1199


def test_numbers_begin_anew_with_each_claim(store):
    claim = running(store)
    store.emit(claim, [STEP.to_json()] * 5, 0)
    store.logs_append(claim, ["a"] * 5, 0)
    lose(store, claim)
    second = running(store, store.get(claim.job_id))
    store.emit(second, [replace(STEP, step=4).to_json()], 0)
    store.logs_append(second, ["b"], 0)
    assert store.get(claim.job_id).progress["step"]["step"] == 4
    assert store.logs(claim.job_id)[-1][1] == {"line": "b", "attempt": 2}


def test_rubbish_and_giants_become_notes_so_that_numbers_do_not_shift(store):
    claim = running(store)
    store.emit(claim, ["not json", "[1]", '{"event":"note","message":"' + "x" * 99_000 + '"}', "\udcff"], 0)
    notes = [event for _, event in store.events(claim.job_id) if event["event"] == "note"]
    assert [note["message"].split()[-1] for note in notes] == ["read.", "read.", "long.", "read."]


def test_log_lines_are_kept_whatever_bytes_they_hold(store):
    claim = running(store)
    assert twice(store, lambda: store.logs_append(claim, ["grüße \udcff", "", "y" * 99_000], 0))
    lines = [entry["line"] for _, entry in store.logs(claim.job_id)]
    assert lines[:2] == ["grüße ?", ""]
    assert len(lines[2]) < 99_000


def test_events_and_logs_can_be_followed_from_where_one_was(store):
    claim = running(store)
    store.logs_append(claim, ["a", "b"], 0)
    last = store.logs(claim.job_id)[0][0]
    assert [entry["line"] for _, entry in store.logs(claim.job_id, after=last)] == ["b"]
    assert store.events("train-gone") == []


def test_a_checkpoint_is_kept_for_the_next_attempt(store):
    claim = running(store)
    assert twice(store, lambda: store.checkpoint(claim, 40, "j/1/step-40"))
    lose(store, claim)
    assert store.get(claim.job_id).checkpoint == {"step": 40, "artifact": "j/1/step-40"}


# ---- finish, requeue -------------------------------------------------------------------------------------------------


def test_success_keeps_the_result_and_releases_those_who_waited(store):
    data, train = pipeline(store, priority=8, queue="cuda.8g")
    claim = running(store, data)
    tickets = twice(store, lambda: store.finish(claim, State.SUCCEEDED, result={"rows": 3, "empty": []}))
    assert tickets == [Ticket(job_id=train.id, attempt=1, queue="cuda.8g", priority=8)]
    assert store.get(data.id).result == {"rows": 3, "empty": []}
    assert store.get(data.id).finished_at > 0
    assert store.get(train.id).state == State.QUEUED


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_failure_fails_those_who_waited_and_those_who_wait_for_them(store, state):
    data, train = pipeline(store)
    last = queued(store, depends_on=train.id)
    claim = running(store, data)
    assert twice(store, lambda: store.finish(claim, state, Cause.USER_ERROR, "Because.")) == []
    assert (store.get(data.id).cause, store.get(data.id).reason) == (Cause.USER_ERROR, "Because.")
    for needed, record in ((data, store.get(train.id)), (train, store.get(last.id))):
        assert (record.state, record.cause) == (State.FAILED, Cause.DEPENDENCY_FAILED)
        assert needed.id in record.reason


def test_a_finished_job_is_told_to_those_who_follow(store):
    claim = running(store)
    store.finish(claim, State.FAILED, Cause.STALLED, "No progress.")
    told = [event for _, event in store.events(claim.job_id) if event["event"] == "state"]
    assert [event["state"] for event in told] == ["QUEUED", "RUNNING", "FAILED"]
    assert (told[-1]["cause"], told[-1]["reason"]) == ("stalled", "No progress.")


def test_a_job_given_back_is_a_new_attempt_under_a_new_fence(store):
    claim = running(store)
    ticket = twice(store, lambda: store.requeue(claim, Cause.OUT_OF_MEMORY, "Too big.", halve_memory=True))
    record = store.get(claim.job_id)
    assert ticket == Ticket(job_id=claim.job_id, attempt=2, queue="cpu.8g", priority=5)
    assert (record.state, record.attempt, record.fence, record.memory_halvings) == (State.QUEUED, 2, 2, 1)
    assert (record.cause, record.reason) == (Cause.OUT_OF_MEMORY, "Too big.")


def test_a_job_that_never_began_keeps_its_attempt_but_not_its_fence(store):
    claim = running(store)
    assert twice(store, lambda: store.requeue(claim, None, "The GPU is busy.")).attempt == 1
    record = store.get(claim.job_id)
    assert (record.attempt, record.fence, record.reason) == (1, 2, "The GPU is busy.")
    assert store.claim(record.id, 1, "bert", "c2").fence == 2
    assert store.renew(claim) == Desired.LOST


def test_a_job_given_back_for_later_is_not_claimed_before(store):
    claim = running(store)
    assert twice(store, lambda: store.requeue(claim, None, "The GPU is busy.", delay_s=60)) is None
    assert store.claim(claim.job_id, 1, "bert", "c2") is None
    assert store.due() == []
    store.redis.hset(f"rt:job:{claim.job_id}", "not_before", store.now())
    assert [record.id for record in store.due()] == [claim.job_id]
    assert store.claim(claim.job_id, 1, "bert", "c2")


def test_a_job_given_back_while_its_owner_wants_it_cancelled_or_paused_is_so(store):
    cancelled, paused = running(store), running(store)
    store.cancel(cancelled.job_id)
    store.pause(paused.job_id)
    assert twice(store, lambda: store.requeue(cancelled, Cause.PREEMPTED, "r")) is None
    assert twice(store, lambda: store.requeue(paused, Cause.PREEMPTED, "r")) is None
    assert store.get(cancelled.job_id).state == State.CANCELLED
    assert store.get(paused.job_id).state == State.PAUSED


# ---- cancel, pause, resume, retry ------------------------------------------------------------------------------------


def test_what_nobody_runs_is_cancelled_at_once_with_those_who_wait(store):
    data, train = pipeline(store)
    assert twice(store, lambda: store.cancel(data.id)).state == State.CANCELLED
    assert store.get(data.id).cause == Cause.CANCELLED
    assert store.get(train.id).cause == Cause.DEPENDENCY_FAILED


def test_a_waiting_job_is_cancelled_alone(store):
    data, train = pipeline(store)
    assert store.cancel(train.id).state == State.CANCELLED
    assert store.finish(running(store, data), State.SUCCEEDED) == []
    assert store.get(train.id).state == State.CANCELLED


def test_the_owner_of_a_running_job_is_told_to_cancel_and_ends_it(store):
    claim = running(store)
    assert twice(store, lambda: store.cancel(claim.job_id)).state == State.RUNNING
    assert store.renew(claim) == Desired.CANCEL
    store.finish(claim, State.CANCELLED, Cause.CANCELLED)
    assert store.cancel(claim.job_id).state == State.CANCELLED


def test_a_finished_job_stays_as_it_is(store):
    claim = running(store)
    store.finish(claim, State.SUCCEEDED)
    record = store.get(claim.job_id)
    assert store.cancel(claim.job_id) == record
    assert store.pause(claim.job_id) == record
    assert store.retry(claim.job_id) == []
    assert store.get(claim.job_id) == record


def test_a_paused_job_comes_back_with_a_new_attempt(store):
    record = queued(store)
    assert twice(store, lambda: store.pause(record.id)).state == State.PAUSED
    assert store.claim(record.id, 1, "anna", "c") is None
    (ticket,) = twice(store, lambda: store.resume(record.id))
    assert store.claim(record.id, ticket.attempt, "anna", "c").fence == 2


def test_a_paused_job_is_cancelled_at_once(store):
    record = queued(store)
    store.pause(record.id)
    assert twice(store, lambda: store.cancel(record.id)).state == State.CANCELLED


def test_a_running_job_is_paused_by_its_owner_and_cancelling_wins(store):
    first, second = running(store), running(store)
    for claim in (first, second):
        store.pause(claim.job_id)
        assert store.renew(claim) == Desired.PAUSE
    store.cancel(second.job_id)
    assert store.renew(second) == Desired.CANCEL
    assert store.pause(second.job_id).desired == Desired.CANCEL
    twice(store, lambda: store.finish(first, State.PAUSED))
    store.finish(second, State.PAUSED)
    assert store.get(first.job_id).state == State.PAUSED
    assert store.get(second.job_id).state == State.CANCELLED


def test_a_pause_not_yet_obeyed_is_taken_back(store):
    claim = running(store)
    store.pause(claim.job_id)
    assert store.resume(claim.job_id) == []
    assert store.renew(claim) == Desired.RUN


def test_a_job_whose_dependency_failed_while_it_was_paused_fails_when_resumed(store):
    data, train = pipeline(store)
    store.pause(train.id)
    store.finish(running(store, data), State.FAILED, Cause.USER_ERROR)
    assert store.resume(train.id) == []
    assert store.get(train.id).cause == Cause.DEPENDENCY_FAILED


def test_a_retry_goes_on_from_the_checkpoint(store):
    claim = running(store)
    store.checkpoint(claim, 5, "a")
    store.finish(claim, State.FAILED, Cause.USER_ERROR, "Because.")
    (ticket,) = twice(store, lambda: store.retry(claim.job_id))
    record = store.get(claim.job_id)
    assert ticket.attempt == record.attempt == 2
    assert (record.fence, record.cause, record.checkpoint["step"], record.finished_at) == (2, None, 5, 0)


def test_a_retry_does_not_wait_for_what_an_earlier_attempt_waited_for(store):
    claim = running(store)
    store.requeue(claim, None, "The GPU is busy.", delay_s=600)
    store.cancel(claim.job_id)
    (ticket,) = store.retry(claim.job_id)
    assert [record.id for record in store.due()] == [claim.job_id]
    assert store.claim(claim.job_id, ticket.attempt, "bert", "c2")


def test_a_retry_runs_the_failed_dependency_first(store):
    data, train = pipeline(store)
    store.finish(running(store, data), State.FAILED, Cause.USER_ERROR)
    tickets = twice(store, lambda: store.retry(train.id))
    assert [(ticket.job_id, ticket.attempt) for ticket in tickets] == [(data.id, 2)]
    assert store.get(train.id).state == State.WAITING
    tickets = store.finish(running(store, store.get(data.id)), State.SUCCEEDED)
    assert [(ticket.job_id, ticket.attempt) for ticket in tickets] == [(train.id, 2)]


def test_a_retry_of_a_job_whose_dependency_runs_waits_for_it(store):
    data, train = pipeline(store)
    store.cancel(train.id)
    claim = running(store, data)
    assert store.retry(train.id) == []
    assert store.get(train.id).state == State.WAITING
    assert len(store.finish(claim, State.SUCCEEDED)) == 1


@pytest.mark.parametrize("call", ["get", "cancel", "pause", "resume", "retry"])
def test_a_job_that_does_not_exist_is_said_not_to(store, call):
    with pytest.raises(JobNotFound, match="train-gone") as caught:
        getattr(store, call)("train-gone")
    assert caught.value.exit_code == ExitCode.NO_SUCH_JOB
    assert snapshot(store).keys() == {"rt:reaper"}


# ---- reap ------------------------------------------------------------------------------------------------------------


def test_a_lost_worker_is_first_suspected_then_its_job_is_queued_again(store):
    claim = running(store)
    let_lease_run_out(store, claim.job_id)
    assert twice(store, store.reap) == []
    assert store.get(claim.job_id).state == State.SUSPECT
    let_grace_run_out(store, claim.job_id)
    assert [ticket.task_id for ticket in store.reap()] == [f"{claim.job_id}.2"]
    assert store.reap() == []
    record = store.get(claim.job_id)
    assert (record.state, record.attempt, record.fence, record.cause) == (State.QUEUED, 2, 2, Cause.WORKER_LOST)
    assert "anna" in record.reason
    assert record.claim_id == ""
    assert store.renew(claim) == Desired.LOST


def test_the_owner_of_a_suspect_takes_it_back(store):
    claim = running(store)
    let_lease_run_out(store, claim.job_id)
    store.reap()
    assert store.emit(claim, [STEP.to_json()], 0)
    assert twice(store, lambda: store.renew(claim)) == Desired.RUN
    assert store.get(claim.job_id).state == State.RUNNING
    assert store.redis.zcard("rt:suspects") == 0
    assert store.reap() == []


def test_the_owner_of_a_suspect_may_still_finish_it(store):
    claim = running(store)
    let_lease_run_out(store, claim.job_id)
    store.reap()
    store.finish(claim, State.SUCCEEDED)
    assert store.redis.zcard("rt:suspects") == 0
    assert store.get(claim.job_id).state == State.SUCCEEDED


def test_a_suspect_that_was_cancelled_or_paused_ends_so(store):
    cancelled, paused = running(store), running(store)
    store.cancel(cancelled.job_id)
    store.pause(paused.job_id)
    assert lose(store, cancelled) == []
    assert lose(store, paused) == []
    assert store.get(cancelled.job_id).state == State.CANCELLED
    assert store.get(paused.job_id).state == State.PAUSED
    assert store.renew(cancelled) == Desired.LOST


def test_nobody_is_judged_over_a_time_in_which_nobody_watched(store):
    lost, suspect = running(store), running(store)
    let_lease_run_out(store, suspect.job_id)
    store.reap()
    let_lease_run_out(store, lost.job_id)
    let_grace_run_out(store, suspect.job_id)
    store.redis.hset("rt:reaper", "seen_at", store.now() - TIMES.gap - 1)
    assert store.reap() == []
    assert store.get(lost.job_id).state == State.RUNNING
    assert store.get(suspect.job_id).state == State.SUSPECT
    assert store.redis.zscore("rt:leases", lost.job_id) > store.now() + TIMES.lease - 5


def test_nobody_is_judged_right_after_the_server_started_again(store):
    claim = running(store)
    let_lease_run_out(store, claim.job_id)
    store.redis.hset("rt:reaper", "run_id", "of the server before")
    assert store.reap() == []
    assert store.get(claim.job_id).state == State.RUNNING
    let_lease_run_out(store, claim.job_id)
    store.reap()
    assert store.get(claim.job_id).state == State.SUSPECT


def test_leases_run_out_by_redis_time(valkey_url):
    store = JobStore.connect(valkey_url, StoreTimes(lease=0.2, suspect=0.1, gap=5))
    store.reap()
    claim = running(store)
    deadline = time.monotonic() + 10
    while not (tickets := store.reap()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert tickets[0].task_id == f"{claim.job_id}.2"
    store.close()


# ---- lists, workers --------------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_and_by_state(store):
    ids = [queued(store).id for _ in range(4)]
    store.cancel(ids[1])
    assert [record.id for record in store.jobs()] == ids[::-1]
    assert [record.id for record in store.jobs(limit=2)] == [ids[3], ids[2]]
    assert [record.id for record in store.jobs([State.CANCELLED])] == [ids[1]]
    assert [record.id for record in store.jobs([State.QUEUED, State.CANCELLED], limit=3)] == ids[:0:-1]


WORKER = WorkerRecord(
    name="anna",
    device="cpu",
    device_name="A CPU",
    memory_bytes=8 << 30,
    queues=("cpu.8g", "any.8g"),
    versions={"torch": "2.13"},
    pid=7,
    host="box",
)


def test_a_worker_is_known_while_its_heart_beats(store):
    store.register(WORKER)
    store.register(WORKER)
    (worker,) = store.workers()
    assert replace(worker, started_at=0, seen_at=0) == WORKER
    assert twice(store, lambda: store.heartbeat("anna", "busy", "train-1"))
    assert (store.workers()[0].state, store.workers()[0].job_id) == ("busy", "train-1")
    store.redis.pexpire("rt:worker:anna", 0)
    assert store.workers() == []
    assert not store.heartbeat("anna", "idle")
    assert store.workers() == []


def test_a_worker_that_leaves_is_forgotten(store):
    store.register(WORKER)
    twice(store, lambda: store.unregister("anna"))
    assert store.workers() == []


# ---- Redis away ------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_broker_that_is_down_is_one_sentence_without_the_password():
    store = JobStore.connect(f"redis://me:secret@127.0.0.1:{free_port()}/0?password=secret")
    with pytest.raises(StoreUnreachable, match=r"redis://127\.0\.0\.1:\d+/0 does not answer") as caught:
        store.ping()
    assert caught.value.exit_code == ExitCode.UNREACHABLE
    for text in (str(caught.value), repr(caught.value.__cause__)):
        assert "secret" not in text


def test_a_wrong_password_is_one_sentence_without_it(valkey_url):
    host = valkey_url.removeprefix("redis://")
    with pytest.raises(StoreUnreachable, match="refuses this user and password") as caught:
        JobStore.connect(f"redis://me:secret@{host}").jobs()
    assert "secret" not in str(caught.value)


def test_a_server_that_wants_a_password_says_so(valkey_url, redis_client):
    redis_client.config_set("requirepass", "secret")
    try:
        with pytest.raises(StoreUnreachable, match="password"):
            JobStore.connect(valkey_url).ping()
    finally:
        redis_client.config_set("requirepass", "")


def test_a_full_server_is_said_to_be_full(store):
    store.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnreachable, match="out of memory"):
            queued(store)
    finally:
        store.redis.config_set("maxmemory", 0)
    assert store.jobs() == []


@pytest.mark.parametrize("url", ["http://x", "redis://host:port", "nonsense", "redis://[::1"])
def test_what_is_no_redis_url_is_one_sentence(url):
    with pytest.raises(StoreUnreachable, match="no Redis URL"):
        JobStore.connect(url)


def test_a_shown_url_has_no_password():
    assert without_password("rediss://u:p%40q@h:1/2?password=x") == "rediss://h:1/2"
    assert without_password("unix://u:p@/tmp/s?db=1") == "unix:///tmp/s"
    for password in ("p/q", "p#q", "p?q", "p@q"):
        assert without_password(f"redis://:{password}@h:1/2") == "redis://h:1/2"


def test_scripts_survive_a_server_that_forgot_them(store):
    store.redis.script_flush()
    assert queued(store).state == State.QUEUED


# ---- any order of calls ----------------------------------------------------------------------------------------------


class Queue(RuleBasedStateMachine):
    """Whatever people, workers and reapers do, in any order: no job is lost, none has two owners at one fence."""

    jobs, claims = Bundle("jobs"), Bundle("claims")
    url = ""

    def __init__(self):
        super().__init__()
        self.store = JobStore.connect(self.url, TIMES)
        self.store.redis.flushall()
        self.store.reap()
        self.known = set()
        self.owners = {}
        self.fences = {}

    def teardown(self):
        self.store.close()

    @rule(target=jobs, key=st.sampled_from([None, None, "k"]))
    def submit(self, key):
        record = queued(self.store, idempotency_key=key)
        self.known.add(record.id)
        return record.id

    @rule(target=jobs, needed=jobs)
    def submit_dependent(self, needed):
        record = queued(self.store, depends_on=needed)
        self.known.add(record.id)
        return record.id

    @rule(target=claims, job=jobs, late=st.integers(0, 1))
    def claim(self, job, late):
        claim = self.store.claim(job, self.store.get(job).attempt - late, "w", new_claim_id())
        if claim is None:
            return multiple()
        assert not late
        assert (job, claim.fence) not in self.owners, "two claims at one fence"
        self.owners[job, claim.fence] = claim.claim_id
        return claim

    @rule(claim=claims, times=st.integers(1, 2), state=st.sampled_from([*sorted(TERMINAL), State.PAUSED]))
    def finish(self, claim, times, state):
        for _ in range(times):
            self.store.finish(claim, state, Cause.USER_ERROR)

    @rule(claim=consumes(claims), cause=st.sampled_from([None, Cause.PREEMPTED]), delay=st.sampled_from([0, 0, 60]))
    def requeue(self, claim, cause, delay):
        self.store.requeue(claim, cause, "r", delay)

    @rule(claim=claims)
    def renew(self, claim):
        record = self.store.get(claim.job_id)
        mine = record.claim_id == claim.claim_id and record.fence == claim.fence
        assert (self.store.renew(claim) != Desired.LOST) == mine

    @rule(job=jobs, call=st.sampled_from(["cancel", "pause", "resume", "retry"]))
    def order(self, job, call):
        getattr(self.store, call)(job)

    @rule(job=jobs)
    def worker_vanishes(self, job):
        for index in ("rt:leases", "rt:suspects"):
            self.store.redis.zadd(index, {job: 1}, xx=True)

    @rule()
    def reap(self):
        self.store.reap()

    @invariant()
    def every_job_is_somewhere_and_moves_on(self):
        records = {record.id: record for record in self.store.jobs(limit=1000)}
        assert set(records) == self.known
        states = {state: {r.id for r in self.store.jobs([state], limit=1000)} for state in State}
        assert sum(map(len, states.values())) == len(records)
        assert states[State.RUNNING] == set(self.store.redis.zrange("rt:leases", 0, -1))
        assert states[State.SUSPECT] == set(self.store.redis.zrange("rt:suspects", 0, -1))
        for record in records.values():
            assert record.id in states[record.state]
            assert record.fence >= self.fences.get(record.id, 0), "a fence went back"
            self.fences[record.id] = record.fence
            assert bool(record.claim_id) == (record.state in {State.RUNNING, State.SUSPECT})
            if record.state == State.WAITING:
                assert records[record.depends_on].state not in TERMINAL
            if record.state in {State.QUEUED, State.RUNNING} and record.depends_on:
                assert records[record.depends_on].state == State.SUCCEEDED


def test_in_any_order_of_calls_no_job_is_lost_and_none_has_two_owners(valkey_url):
    Queue.url = valkey_url
    run_state_machine_as_test(
        Queue,
        settings=settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
