"""`--local`: a worker of our own, started, restarted once, stopped; two signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.errors import ExitCode
from jobs.states import State
from queue_app import local_worker
from queue_app.connection import Connection
from queue_app.interrupts import Interrupts
from queue_app.local_run import Stopping
from queue_app.local_worker import LocalWorker, LocalWorkerFailed, last_lines
from queue_app.records import NewJob, WorkerRecord, new_job_id
from queue_app.settings import load_settings
from queue_app.store import JobStore

PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def connection(valkey_url, tmp_path):
    store = JobStore.connect(valkey_url)
    yield Connection(settings=load_settings(broker_url=valkey_url, home=tmp_path), store=store)
    store.close()


def fake_command(monkeypatch, script):
    """Let a Python script stand in for the worker program."""
    monkeypatch.setattr(local_worker, "_COMMAND", (sys.executable, "-c", script))


def tend_until(worker, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        worker.tend()
        time.sleep(0.05)


def a_worker(pid, queues=("cpu.8g",), host=None):
    return WorkerRecord(
        name="w",
        device="cpu",
        device_name="",
        memory_bytes=1,
        queues=queues,
        versions={},
        pid=pid,
        host=host or socket.gethostname(),
    )


def test_a_worker_that_dies_twice_is_a_sentence_with_its_last_words(connection, monkeypatch):
    fake_command(monkeypatch, "print('torch is broken'); raise SystemExit(7)")
    worker = LocalWorker(connection, "cpu.8g", "cpu")
    with pytest.raises(
        LocalWorkerFailed, match=r"(?s)ended with exit code 7; its log, .*torch is broken\n.*torch is broken"
    ):
        tend_until(worker, lambda: False)


def test_a_worker_that_says_why_it_cannot_run_is_not_asked_again(connection, monkeypatch):
    fake_command(monkeypatch, "print('repotune: No cuda device here.'); raise SystemExit(5)")
    worker = LocalWorker(connection, "cuda.8g", "cuda")
    with pytest.raises(LocalWorkerFailed, match=r"^No cuda device here\.$"):
        tend_until(worker, lambda: False)
    assert worker.log.read_text(encoding="utf-8").count("No cuda") == 1


def test_the_broker_is_named_in_the_environment_and_not_in_the_arguments(connection, monkeypatch):
    fake_command(monkeypatch, "import os, sys; print(os.environ['REPOTUNE_BROKER_URL'], sys.argv[1:], flush=True)")
    worker = LocalWorker(connection, "mps.8g", "mps")
    tend_until(worker, lambda: worker.log.exists() and worker.log.read_text(encoding="utf-8").endswith("\n"))
    worker.kill()
    line = worker.log.read_text(encoding="utf-8").splitlines()[0]
    assert line == f"{connection.settings.broker_url} ['--device', 'mps']"


def test_none_is_started_where_a_living_worker_serves_the_queue(connection):
    connection.store.register(a_worker(os.getpid()))
    worker = LocalWorker(connection, "cpu.8g", "cpu")
    worker.tend()
    assert not worker.log.exists()


def test_the_record_of_a_killed_worker_does_not_count(connection, monkeypatch):
    fake_command(monkeypatch, "import time; time.sleep(60)")
    connection.store.register(a_worker(2**22 - 1))  # no machine gives this pid out
    worker = LocalWorker(connection, "cpu.8g", "cpu")
    worker.tend()
    assert worker.log.exists()
    worker.kill()


def test_a_machine_that_is_too_small_says_so(connection, monkeypatch):
    fake_command(monkeypatch, "import time; time.sleep(60)")
    worker = LocalWorker(connection, "cpu.64g", "cpu")
    worker.tend()
    connection.store.register(a_worker(worker._process.pid))
    with pytest.raises(LocalWorkerFailed, match="This machine cannot run the job") as raised:
        worker.tend()
    assert raised.value.exit_code == ExitCode.DEVICE_UNAVAILABLE
    assert "serves cpu up to 8 GB, the job needs a 64 GB machine" in str(raised.value)
    worker.kill()


def test_a_worker_that_does_not_stop_is_killed(connection, monkeypatch):
    fake_command(
        monkeypatch, "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    worker = LocalWorker(connection, "cpu.8g", "cpu")
    tend_until(worker, lambda: worker.log.exists() and worker.log.read_text(encoding="utf-8"))
    worker.stop(patience=0.2)
    assert worker._process.returncode == -signal.SIGKILL


def test_the_first_signal_asks_and_the_second_ends():
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_cancels_both_jobs_once(connection, capsys):
    data = NewJob(id=new_job_id("dataset"), kind="dataset", name="n", device="any", queue="any.2g", spec="{}")
    training = NewJob(
        id=new_job_id("training"),
        kind="training",
        name="n",
        device="cpu",
        queue="cpu.2g",
        spec="{}",
        depends_on=data.id,
    )
    _, job = connection.store.submit([data, training])
    with Interrupts() as interrupts:
        stopping = Stopping(connection.store, job, interrupts)
        stopping.look()
        assert connection.store.get(job.id).state == State.WAITING
        os.kill(os.getpid(), signal.SIGINT)
        stopping.look()
        stopping.look()
    assert {connection.store.get(one).state for one in (data.id, job.id)} == {State.CANCELLED}
    assert capsys.readouterr().err.count("Ctrl-C again") == 1


def test_the_last_lines_of_a_log(tmp_path):
    (tmp_path / "log").write_text("a\nb\nc\n", encoding="utf-8")
    assert last_lines(tmp_path / "log", 2) == "  b\n  c"
    assert "cannot be read" in last_lines(tmp_path / "none")


@pytest.fixture
def local_place(tmp_path, monkeypatch, only_worker_extra):
    """An own home and cache, a folder without a .env, one thread for torch."""
    monkeypatch.setenv("PYTHONPATH", only_worker_extra)
    monkeypatch.setenv("REPOTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REPOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("REPOTUNE_BROKER_URL", "REPOTUNE_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def start(local_place):
    """Starts a program whose streams are read while it runs; what still runs in the end is ended."""
    started = []

    def start(name, *arguments):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([PROGRAMS / name, *arguments], text=True, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def local_flags(repository, model, *arguments):
    settings = (
        "dataset.sequence_length=64",
        "optimization.accumulation=1",
        "optimization.learning_rate=0.01",
        "quantization.kind=none",
        "training.epochs=50",
        "evaluation.prompts=1",
        "evaluation.resamples=100",
    )
    flags = [part for setting in settings for part in ("--set", setting)]
    return ["--repo", repository, "--model", model, "--device", "cpu", "--local", "--json", *flags, *arguments]


def read_until(stream, text):
    """The first line that holds `text`; fails when the stream ends before."""
    seen = []
    for line in stream:
        seen.append(line)
        if text in line:
            return line
    pytest.fail(f"no {text!r} in:\n{''.join(seen)}")


def job_now(job_id):
    command = [PROGRAMS / "repotune", "show", job_id, "--local", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


@pytest.mark.slow
def test_a_repository_becomes_an_adapter_with_one_command(start, tiny_repository, tiny_model_folder):
    code = ("--max-steps", "20", "--set", 'dataset.include=["*.py"]')  # prose held out would gain nothing from code
    process = start("submit-job", *local_flags(tiny_repository, tiny_model_folder, *code))
    out, err = process.communicate(timeout=200)
    told = json.loads(out.splitlines()[-1])
    assert (process.returncode, told["state"]) == (0, "SUCCEEDED"), err
    assert (Path(told["adapter"]) / "adapter_model.safetensors").is_file()
    assert told["metrics"]["loss_after"] < told["metrics"]["loss_before"]
    assert f"repotune pull {told['job']} --local --to my-adapter" in err
    assert job_now(told["job"])["state"] == "SUCCEEDED"


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_retry_goes_on_from_it(start, tiny_repository, tiny_model_folder):
    first = start("submit-job", *local_flags(tiny_repository, tiny_model_folder))
    read_until(first.stderr, "tokens/s")
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=200)
    told = json.loads(out.splitlines()[-1])
    assert (first.returncode, told["state"]) == (ExitCode.INTERRUPTED, "CANCELLED"), err
    assert f"repotune retry {told['job']} --local" in err
    reached = job_now(told["job"])["checkpoint"]["step"]

    second = start("repotune", "retry", told["job"], "--local", "--json")
    # Both attempts are told from the beginning: the second one comes after the second claim.
    for _ in range(2):
        read_until(second.stderr, "RUNNING on")
    resumed_at = read_until(second.stderr, "tokens/s").partition("step ")[2].partition("/")[0]
    assert int(resumed_at) > reached >= 1
    second.send_signal(signal.SIGINT)
    read_until(second.stderr, "Ctrl-C again")
    second.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=60)
    assert second.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in err
    assert "Ended. Go on from the last checkpoint" in err
