"""Tickets: what Celery carries. A ticket invites a worker to claim one attempt of a job, and may be lost.

Redis pops a message before a worker notes it, so a worker that dies in between takes its ticket along. Whoever
reconciles asks for the queued jobs whose ticket is nowhere, and publishes those again.
"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from queue_app.celery_app import RUN_JOB, celery_priority
from queue_app.records import JobRecord, Ticket
from queue_app.store import JobStore, StoreUnreachable, reaching, without_password

if TYPE_CHECKING:
    from celery import Celery

# kombu's names of the list of a queue and a priority, and of the hash of messages that nobody acknowledged yet.
_PRIORITY_SEPARATOR = "\x06\x16"
_UNACKED = "unacked"


def ticket_of(record: JobRecord) -> Ticket:
    """The ticket for a record's present attempt."""
    return Ticket(job_id=record.id, attempt=record.attempt, queue=record.queue, priority=record.priority)


def publish(app: "Celery", ticket: Ticket) -> None:
    """Send a ticket to its queue.

    Raises:
        StoreUnreachable: the broker does not answer.
    """
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    try:
        app.send_task(
            RUN_JOB,
            args=[ticket.job_id, ticket.attempt],
            task_id=ticket.task_id,
            queue=ticket.queue,
            priority=celery_priority(ticket.priority),
            ignore_result=True,
        )
    except (OperationalError, RedisError, OSError):
        shown = without_password(app.conf.broker_url)
        text = f"The broker at {shown} took no ticket for {ticket.job_id}: a worker publishes it when it is back."
        raise StoreUnreachable(text) from None


def missing(store: JobStore, app: "Celery") -> list[Ticket]:
    """Tickets of the queued jobs that are due, and whose ticket is in no queue and in no worker's hands.

    A ticket that is on its way just now may be returned too; publishing it twice does no harm.

    Raises:
        StoreUnreachable: Redis does not answer.
    """
    records = store.due()
    if not records:
        return []
    steps = app.conf.broker_transport_options["priority_steps"]
    keys = [key for queue in {record.queue for record in records} for key in _list_keys(queue, steps)]
    with reaching(store.url):
        known = set(_known_task_ids(store.redis, keys))
    return [ticket for record in records if (ticket := ticket_of(record)).task_id not in known]


def _known_task_ids(client: Any, keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        for message in client.lrange(key, 0, -1):
            yield _task_id(message)
    for delivery in client.hvals(_UNACKED):
        # [message, exchange, routing key]
        yield _task_id(delivery, 0)


def _list_keys(queue: str, steps: Iterable[int]) -> list[str]:
    """The lists of a queue, one for each priority; the first has the queue's own name."""
    return [f"{queue}{_PRIORITY_SEPARATOR}{step}" if step else queue for step in steps]


def _task_id(text: str, *path: int) -> str:
    """The task id in a message; "" for what is none: anybody may write to a Redis."""
    try:
        message = json.loads(text)
        for step in path:
            message = message[step]
        return str(message["headers"]["id"])
    except (ValueError, LookupError, TypeError):
        return ""
