"""The Celery app: carries tickets, nothing else. Job records say what is true; results and states of Celery do not.

The producer sends the one task by name, so nothing here, and nothing that imports this, imports a task.
These settings must be the same on every machine, Flower's included. Why each: tickets are acknowledged before the
job runs, because a job of many hours that is not acknowledged is delivered a second time as soon as the connection
blinks; nothing is prefetched, so no ticket waits behind a running job; every priority has its own list.
"""

from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from celery import Celery

# The one task, by which `workers` registers it and producers send it.
RUN_JOB = "repotune.run_job"

LOWEST_PRIORITY, HIGHEST_PRIORITY = 0, 9

_TRANSPORT = {
    "visibility_timeout": 300,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "priority_steps": list(range(LOWEST_PRIORITY, HIGHEST_PRIORITY + 1)),
    "queue_order_strategy": "priority",
    "socket_timeout": 30,
    "socket_connect_timeout": 10,
    "socket_keepalive": True,
}

_SETTINGS: dict[str, Any] = {
    "broker_transport_options": _TRANSPORT,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # A submission says within seconds that the broker is gone; the reconciler publishes what it could not.
    "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5},
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "result_backend": None,
    "task_ignore_result": True,
    "task_acks_late": False,
    "task_track_started": True,
    "task_send_sent_event": True,
    "task_default_queue": "repotune",
    "worker_pool": "threads",
    "worker_concurrency": 1,
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 1,
    "worker_send_task_events": True,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}


def make_app(broker_url: str) -> Celery:
    """A Celery app on this broker, with no task registered; connects at the first use."""
    app = Celery("repotune", broker=kombu_url(broker_url), backend=None)
    app.conf.update(_SETTINGS)
    return app


def celery_priority(priority: int) -> int:
    """What Celery calls our priority: there 0 is consumed first, here 9 is."""
    return HIGHEST_PRIORITY - min(max(priority, LOWEST_PRIORITY), HIGHEST_PRIORITY)


def kombu_url(url: str) -> str:
    """The broker's URL as kombu understands it: redis-py's unix:// has another name, TLS must be told to verify."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        database = parse_qs(parts.query).get("db", ["0"])[0]
        return parts._replace(scheme="redis+socket", query=urlencode({"virtual_host": database})).geturl()
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in parts.query:
        query = "&".join(filter(None, [parts.query, "ssl_cert_reqs=required"]))
        return parts._replace(query=query).geturl()
    return url
