"""Prometheus reads what a worker does, where a port was named."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import pytest

from backends.devices import GIB, Device, Machine
from jobs.events import Checkpointed, Evaluated, Finished, Healed, StepDone
from workers.gauges import Gauges, GaugesRefused
from workers.watch import Watch

MACHINE = Machine(device=Device.CPU, device_name='Some "CPU"', memory_bytes=1, reason="", versions={"python": "3"})


@pytest.fixture
def gauges():
    return Gauges("anna", MACHINE)


def step(**values):
    numbers = {
        "step": 3,
        "total_steps": 9,
        "loss": 1.5,
        "lr": 1e-4,
        "grad_norm": 0.5,
        "tokens": 70,
        "tokens_per_second": 5.0,
        "memory_bytes": 1000,
        "eta_seconds": None,
    }
    return StepDone(**(numbers | values))


def test_a_step_sets_the_gauges_of_its_job(gauges):
    gauges.began("training-abcd")
    gauges.heard(step())
    value = gauges.registry.get_sample_value
    assert value("repotune_job_loss", {"job": "training-abcd"}) == 1.5
    assert value("repotune_job_steps", {"job": "training-abcd"}) == 9
    assert value("repotune_job_eta_seconds", {"job": "training-abcd"}) is None
    assert value("repotune_worker_busy") == 1


def test_a_job_that_ended_leaves_its_gauges_and_is_counted(gauges):
    gauges.began("training-abcd")
    for event in (
        step(),
        Evaluated(step=3, loss=2.0, perplexity=7.4, tokens=5, split="future"),
        Checkpointed(step=3, path="/x"),
        Healed(step=3, micro_batch=1, accumulation=2, message=""),
        Finished(result={}),
    ):
        gauges.heard(event)
    value = gauges.registry.get_sample_value
    assert value("repotune_job_evaluation_loss", {"job": "training-abcd", "split": "future"}) == 2.0
    gauges.ended()
    assert value("repotune_job_loss", {"job": "training-abcd"}) is None
    assert value("repotune_worker_busy") == 0
    assert value("repotune_jobs_total", {"end": "succeeded"}) == 1
    assert value("repotune_checkpoints_total") == value("repotune_healed_total") == 1


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_prometheus_fetches_them_over_http(gauges):
    port = free_port()
    server = gauges.serve("127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    server.close()
    assert 'repotune_worker_info{device="cpu",device_name="Some \\"CPU\\"",worker="anna"} 1.0' in text
    assert "repotune_worker_busy 0.0" in text


def test_a_port_that_is_taken_is_one_sentence(gauges):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(GaugesRefused, match="choose another REPOTUNE_METRICS_PORT"):
            gauges.serve("127.0.0.1", taken.getsockname()[1])


def test_a_watched_trainer_tells_the_gauges_of_its_events(gauges):
    gauges.began("training-abcd")
    watch = Watch(SimpleNamespace(pid=os.getpid()), lambda: None, SimpleNamespace(), SimpleNamespace(), gauges.heard)
    watch._take(step().to_json())
    assert gauges.registry.get_sample_value("repotune_job_step", {"job": "training-abcd"}) == 3


@pytest.mark.slow
def test_a_worker_shows_its_gauges_where_a_port_was_named(valkey_url, tmp_path):
    cpu = {"device": "cpu", "device_name": "Some CPU", "memory_bytes": 8 * GIB}
    (tmp_path / "probe.json").write_text(json.dumps({"devices": [cpu], "absent": {}, "versions": {}}))
    port = free_port()
    settings = {
        "BROKER_URL": valkey_url,
        "HOME": str(tmp_path),
        "PROBE": str(tmp_path / "probe.json"),
        "METRICS_PORT": str(port),
    }
    variables = {f"REPOTUNE_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-P", "-c", "from queue_app.cli import worker_main; worker_main()", "--name", "anna"]
    with subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert any("is ready" in line for line in worker.stdout)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        finally:
            worker.terminate()
    assert 'repotune_worker_info{device="cpu",device_name="Some CPU",worker="anna"} 1.0' in text
