"""The Celery app: settings that keep long jobs from running twice, and a URL that kombu understands."""

import subprocess
import sys

import pytest

from queue_app.celery_app import celery_priority, kombu_url, make_app


def test_tickets_are_acknowledged_before_the_job_and_never_prefetched(valkey_url):
    conf = make_app(valkey_url).conf
    assert not conf.task_acks_late
    assert conf.worker_disable_prefetch
    assert (conf.worker_pool, conf.worker_concurrency) == ("threads", 1)
    assert conf.broker_connection_max_retries is None
    assert not conf.worker_cancel_long_running_tasks_on_connection_loss


def test_nothing_but_json_travels_and_no_result_is_kept(valkey_url):
    app = make_app(valkey_url)
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"
    assert app.conf.task_ignore_result
    assert type(app.backend).__name__ == "DisabledBackend"


def test_the_app_knows_no_task_of_ours(valkey_url):
    assert [name for name in make_app(valkey_url).tasks if not name.startswith("celery.")] == []


def test_nine_is_first_for_people_and_nought_for_celery():
    assert [celery_priority(priority) for priority in (9, 5, 0)] == [0, 4, 9]
    assert [celery_priority(priority) for priority in (99, -1)] == [0, 9]


def test_each_queue_has_a_list_for_each_priority(valkey_url):
    with make_app(valkey_url).connection_for_write() as connection:
        assert connection.default_channel.priority_steps == list(range(10))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://u:p@h:1/2", "redis://u:p@h:1/2"),
        ("unix://u:p@/tmp/s.sock?db=3", "redis+socket://u:p@/tmp/s.sock?virtual_host=3"),
        ("rediss://h:1/0", "rediss://h:1/0?ssl_cert_reqs=required"),
        ("rediss://h:1/0?ssl_cert_reqs=none", "rediss://h:1/0?ssl_cert_reqs=none"),
    ],
)
def test_a_url_of_redis_py_becomes_one_of_kombu(url, expected):
    assert kombu_url(url) == expected


def test_a_tls_broker_is_verified():
    import ssl

    with make_app("rediss://127.0.0.1:1/0").connection_for_write() as connection:
        assert connection.ssl["ssl_cert_reqs"] == ssl.CERT_REQUIRED


def test_sending_a_task_imports_no_torch_and_no_worker():
    program = "import sys, queue_app.celery_app, queue_app.tickets; assert not {'torch', 'workers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
