"""Records are read from hashes of strings that an older or a newer program may have written."""

import subprocess
import sys

import pytest

from jobs.states import Cause, Desired, State
from queue_app.records import Ticket, job_from_hash, new_claim_id, new_job_id

OLDEST = {
    "id": "train-a",
    "kind": "training",
    "device": "cpu",
    "queue": "cpu.8g",
    "priority": "5",
    "spec": "{}",
    "state": "QUEUED",
    "attempt": "1",
    "fence": "1",
}


def test_a_hash_with_the_fewest_fields_is_a_record():
    record = job_from_hash(OLDEST)
    assert (record.state, record.desired, record.cause, record.depends_on) == (State.QUEUED, Desired.RUN, None, None)
    assert (record.checkpoint, record.progress, record.result, record.finished_at) == (None, {}, {}, 0)


def test_empty_fields_are_none_and_unknown_ones_are_ignored():
    fields = {"cause": "", "desired": "", "depends_on": "", "checkpoint": "", "result": "", "colour": "red"}
    assert job_from_hash(OLDEST | fields) == job_from_hash(OLDEST)


def test_filled_fields_are_read():
    record = job_from_hash(
        OLDEST
        | {
            "cause": "stalled",
            "checkpoint": '{"step": 4, "artifact": "a"}',
            "last_step": '{"loss": 1}',
            "result": '{"x": 2}',
        }
    )
    assert record.cause == Cause.STALLED
    assert record.checkpoint == {"step": 4, "artifact": "a"}
    assert record.progress == {"step": {"loss": 1}}
    assert record.result == {"x": 2}


@pytest.mark.parametrize(("kind", "prefix"), [("training", "train"), ("dataset", "dataset")])
def test_an_id_says_the_kind_and_is_new_each_time(kind, prefix):
    ids = {new_job_id(kind) for _ in range(1000)}
    assert len(ids) == 1000
    assert all(job_id.startswith(f"{prefix}-") and len(job_id) == len(prefix) + 9 for job_id in ids)
    assert new_claim_id() != new_claim_id()


def test_a_ticket_is_known_to_celery_by_job_and_attempt():
    assert Ticket(job_id="train-a", attempt=3, queue="q", priority=5).task_id == "train-a.3"


def test_records_need_nothing_but_the_standard_library():
    program = "import sys, queue_app.records; assert not {'redis', 'pydantic', 'celery'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
