"""Tickets on a real broker: sent, consumed in order, lost, and found missing."""

import json
import socket
import time

import pytest

from jobs.states import State
from queue_app.celery_app import RUN_JOB, make_app
from queue_app.records import NewJob, Ticket, new_claim_id, new_job_id
from queue_app.store import JobStore, StoreUnreachable
from queue_app.tickets import missing, publish, ticket_of


@pytest.fixture
def app(valkey_url):
    app = make_app(valkey_url)
    yield app
    app.close()


@pytest.fixture
def store(valkey_url):
    store = JobStore.connect(valkey_url)
    yield store
    store.close()


def submit(store, queue="cpu.8g", priority=5):
    new = NewJob(
        id=new_job_id("training"), kind="training", name="n", device="cpu", queue=queue, priority=priority, spec="{}"
    )
    return store.submit([new])[0]


def consume(app, queue):
    """Take one message as a worker would; it stays unacknowledged for as long as its channel is open."""
    connection = app.connection_for_read()
    message = connection.default_channel.basic_get(queue)
    return connection, message


def test_a_ticket_names_the_task_the_job_and_the_attempt(app, redis_client):
    publish(app, Ticket(job_id="train-a", attempt=3, queue="cpu.8g", priority=9))
    message = json.loads(redis_client.lindex("cpu.8g", 0))
    assert (message["headers"]["task"], message["headers"]["id"]) == (RUN_JOB, "train-a.3")
    assert message["content-type"] == "application/json"
    assert message["properties"]["priority"] == 0


def test_the_highest_priority_is_consumed_first(app):
    for priority in (3, 9, 0, 6):
        publish(app, Ticket(job_id=f"train-{priority}", attempt=1, queue="cpu.8g", priority=priority))
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("cpu.8g")
        taken = [queue.get(timeout=5).headers["id"] for _ in range(4)]
        queue.close()
    assert taken == ["train-9.1", "train-6.1", "train-3.1", "train-0.1"]


def test_a_queued_job_whose_ticket_is_nowhere_is_found(app, store):
    record = submit(store)
    assert missing(store, app) == [ticket_of(record)]


@pytest.mark.parametrize("priority", range(10))
def test_a_ticket_in_any_list_of_its_queue_is_not_missing(app, store, priority):
    publish(app, ticket_of(submit(store, priority=priority)))
    assert missing(store, app) == []


def test_a_ticket_in_another_queue_is_missing(app, store):
    record = submit(store, queue="cpu.16g")
    publish(app, Ticket(job_id=record.id, attempt=1, queue="cpu.8g", priority=5))
    assert missing(store, app) == [ticket_of(record)]


def test_a_ticket_in_a_worker_s_hands_is_not_missing_until_it_is_acknowledged(app, store):
    record = submit(store)
    publish(app, ticket_of(record))
    connection, message = consume(app, "cpu.8g")
    assert message is not None
    assert missing(store, app) == []
    message.ack()
    connection.release()
    assert missing(store, app) == [ticket_of(record)]


def test_only_jobs_that_may_be_claimed_now_miss_a_ticket(app, store):
    done, later = submit(store), submit(store)
    store.finish(store.claim(done.id, 1, "w", new_claim_id()), State.SUCCEEDED)
    store.requeue(store.claim(later.id, 1, "w", new_claim_id()), None, "The GPU is busy.", delay_s=60)
    assert missing(store, app) == []


def test_a_ticket_of_the_attempt_before_does_not_count(app, store):
    record = submit(store)
    publish(app, ticket_of(record))
    store.cancel(record.id)
    assert missing(store, app) == []
    store.retry(record.id)
    assert [ticket.attempt for ticket in missing(store, app)] == [2]


def test_rubbish_in_a_queue_does_not_hide_what_is_missing(app, store, redis_client):
    record = submit(store)
    redis_client.rpush("cpu.8g", "not json", "3", '{"headers": 1}', "[]")
    redis_client.hset("unacked", mapping={"a": "rubbish", "b": "[]", "c": "[[1]]"})
    assert missing(store, app) == [ticket_of(record)]


def test_a_broker_that_is_down_is_one_sentence_within_seconds():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = make_app(f"redis://:secret@127.0.0.1:{port}/0")
    began = time.monotonic()
    with pytest.raises(StoreUnreachable, match="train-a") as caught:
        publish(app, Ticket(job_id="train-a", attempt=1, queue="cpu.8g", priority=5))
    assert time.monotonic() - began < 10
    assert "secret" not in str(caught.value)
    app.close()
