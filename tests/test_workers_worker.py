"""Real workers on a real broker: claims, faults, signals. The processes are killed for real."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from jobs import shards
from jobs.config import load_config
from jobs.repository import resolve, write_bundle
from jobs.spec import JobSpec, Kind, Pinned, Source
from jobs.states import TERMINAL, Cause, State
from queue_app.artifacts import ArtifactStore
from queue_app.celery_app import make_app
from queue_app.records import NewJob, new_claim_id, new_job_id
from queue_app.store import JobStore, StoreTimes
from queue_app.tickets import publish, ticket_of

pytestmark = pytest.mark.slow

LENGTH = 32
WORKER = "from queue_app.cli import worker_main; worker_main()"
FAST = {
    "LEASE_SECONDS": "4",
    "SUSPECT_SECONDS": "1",
    "RENEW_SECONDS": "0.5",
    "REAP_SECONDS": "0.5",
    "RECONCILE_SECONDS": "1",
    "WORKER_SECONDS": "8",
    "STOP_SECONDS": "30",
}


class Site:
    """One broker, one artifact store, and the workers that a test starts on this machine."""

    def __init__(self, url, folder, model, probed, python_path):
        self.url = url
        self.folder = folder
        self.model = model
        self.probed = probed
        self.python_path = python_path
        self.store = JobStore.connect(url, StoreTimes(lease=4, suspect=1, gap=4, worker=8))
        self.app = make_app(url)
        self.artifacts = ArtifactStore((folder / "artifacts").as_uri(), folder / "cache" / "artifacts")
        self.workers = []

    def start(self, name="anna", *, device="cpu", code=WORKER, **environment):
        """Start a worker and wait until it is known."""
        before = {worker.pid for worker in self.store.workers()}
        process = self.launch("--device", device, "--name", name, code=code, **environment)
        wait_for(lambda: process.poll() is not None or {w.pid for w in self.store.workers()} - before)
        assert process.poll() is None, self.output(name)
        return process

    def launch(self, *arguments, code=WORKER, **environment):
        settings = FAST | {
            "BROKER_URL": self.url,
            "HOME": str(self.folder),
            "CACHE": str(self.folder / "cache"),
            "ARTIFACTS": (self.folder / "artifacts").as_uri(),
            "PROBE": str(self.probed),
        }
        variables = {f"REPOTUNE_{key}": value for key, value in (settings | environment).items()}
        with (self.folder / "workers.log").open("ab") as log:
            self.workers.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", code, *arguments],
                    env=os.environ | variables | {"OMP_NUM_THREADS": "1", "PYTHONPATH": self.python_path},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                )
            )
        return self.workers[-1]

    def output(self, _name=""):
        return (self.folder / "workers.log").read_text()

    def close(self):
        for process in self.workers:
            if process.poll() is None:
                process.kill()
            process.wait()

    def submit(self, *jobs):
        records = self.store.submit(jobs)
        for record in records:
            if record.state == State.QUEUED:
                publish(self.app, ticket_of(record))
        return records

    def submit_training(self, max_steps, device="cpu", **settings):
        """A training job whose dataset job is done."""
        dataset = self.finished_dataset()
        chosen = {
            "model.name": str(self.model),
            "cpu.quantization.kind": "none",
            "lora.rank": 4,
            "training.max_steps": max_steps,
            "training.epochs": 10_000,
            "training.checkpoint_every_steps": 10,
            "optimization.accumulation": 2,
            "evaluation.prompts": 1,
            "evaluation.resamples": 100,
        } | settings
        config = load_config(settings=[f"{key}={json.dumps(value)}" for key, value in chosen.items()])
        spec = JobSpec(kind=Kind.TRAINING, device=device, config=config, dataset_job=dataset)
        return self.submit(new_job("training", f"{device}.2g", spec, depends_on=dataset))[0].id

    def finished_dataset(self):
        spec = JobSpec(kind=Kind.DATASET, config=load_config())
        record = self.store.submit([new_job("dataset", "cpu.256g", spec)])[0]
        claim = self.store.claim(record.id, 1, "nobody", new_claim_id())
        folder = write_dataset(self.folder / record.id)
        self.artifacts.put_folder(folder, f"{record.id}/1/output")
        self.store.finish(claim, State.SUCCEEDED, result={"artifact": f"{record.id}/1/output"})
        return record.id

    def ended(self, job_id, seconds=120):
        """The record once the job has ended."""
        wait_for(lambda: self.store.get(job_id).state in TERMINAL, seconds, self.output)
        return self.store.get(job_id)

    def events(self, job_id, kind):
        return [event for _, event in self.store.events(job_id, limit=5000) if event["event"] == kind]

    def has_checkpoint(self, job_id):
        return wait_for(lambda: self.store.get(job_id).checkpoint, 60, self.output)

    def trainer_pid(self, worker):
        return wait_for(lambda: next(iter(psutil.Process(worker.pid).children()), None)).pid


def new_job(kind, queue, spec, **fields):
    return NewJob(
        id=new_job_id(kind),
        kind=kind,
        name="tiny",
        device=queue.partition(".")[0],
        queue=queue,
        spec=spec.model_dump_json(),
        **fields,
    )


def write_dataset(folder):
    random, files, splits = np.random.default_rng(3), {}, {}
    flags = np.full(LENGTH, shards.LABEL, dtype=np.uint8)
    flags[0] = shards.DOCUMENT_START
    for split, rows in (("train", 16), ("held_out", 2)):
        with shards.ShardWriter(folder, split, LENGTH, "uint16") as writer:
            for _ in range(rows):
                writer.append(random.integers(8, 300, LENGTH), flags)
        files |= writer.files
        splits[split] = {"rows": rows, "tokens": rows * LENGTH}
    about = {"splits": splits, "dtype": "uint16", "sequence_length": LENGTH, "commit": "c" * 40}
    shards.write_manifest(folder, {"files": files, **about})
    return folder


def wait_for(condition, seconds=60, explain=lambda: ""):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"it did not happen in {seconds} s\n{explain()}")


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """What the real probe finds here, asked once: it takes seconds."""
    file = tmp_path_factory.mktemp("probe") / "probe.json"
    with file.open("w") as output:
        subprocess.run([sys.executable, "-P", "-m", "workers.probe"], stdout=output, check=True)
    return file


@pytest.fixture
def site(valkey_url, tmp_path, tiny_model_folder, probed, only_worker_extra):
    site = Site(valkey_url, tmp_path, tiny_model_folder, probed, only_worker_extra)
    yield site
    site.close()


def test_a_worker_trains_tells_the_story_in_order_loads_no_torch_itself_and_clears_up(site):
    modules = site.folder / "modules.json"
    code = (
        "import atexit, json, pathlib, sys\n"
        "def tell():\n"
        "    loaded = [name for name, module in sys.modules.items() if module]\n"
        f"    pathlib.Path({str(modules)!r}).write_text(json.dumps(loaded))\n"
        "atexit.register(tell)\n" + WORKER
    )
    worker = site.start(code=code)
    record = site.ended(site.submit_training(max_steps=5))
    assert record.state == State.SUCCEEDED, record.reason
    assert (record.worker, record.attempt) == ("anna", 1)
    assert record.result["steps"] == 5
    assert [event["step"] for event in site.events(record.id, "step")] == [1, 2, 3, 4, 5]
    assert record.checkpoint["step"] == 5
    result = site.artifacts.fetch(record.result["artifact"])
    assert (result / "adapter" / "adapter_model.safetensors").is_file()
    assert not (result / "checkpoints").exists()
    wait_for(lambda: list((site.folder / "work" / "anna" / "jobs").iterdir()) == [], 10)
    worker.terminate()
    assert worker.wait(15) == 0
    assert site.store.workers() == []
    heavy = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "tokenizers"}
    told = json.loads(modules.read_text())
    assert "celery" in told
    assert heavy & set(told) == set()


def test_a_killed_trainer_is_started_again_from_its_checkpoint(site):
    worker = site.start()
    job_id = site.submit_training(max_steps=80)
    site.has_checkpoint(job_id)
    os.kill(site.trainer_pid(worker), signal.SIGKILL)
    record = site.ended(job_id)
    assert (record.state, record.attempt) == (State.SUCCEEDED, 2), record.reason
    assert any("Resumes after step" in event["message"] for event in site.events(job_id, "note"))


def test_a_killed_worker_loses_no_job_and_leaves_no_orphan(site):
    first = site.start("anna")
    job_id = site.submit_training(max_steps=80)
    site.has_checkpoint(job_id)
    trainer = psutil.Process(site.trainer_pid(first))
    first.kill()
    wait_for(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE, seconds=5)
    site.start("berta")
    record = site.ended(job_id)
    assert (record.state, record.worker, record.attempt) == (State.SUCCEEDED, "berta", 2), record.reason
    assert any(event["cause"] == Cause.WORKER_LOST for event in site.events(job_id, "state"))


def test_a_frozen_worker_that_comes_back_writes_nothing_more(site):
    frozen = site.start("anna")
    job_id = site.submit_training(max_steps=100_000)
    site.has_checkpoint(job_id)
    trainer = psutil.Process(site.trainer_pid(frozen))
    os.kill(frozen.pid, signal.SIGSTOP)
    site.start("berta")
    wait_for(lambda: site.store.get(job_id).worker == "berta")
    os.kill(frozen.pid, signal.SIGCONT)
    wait_for(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE, seconds=20)
    wait_for(lambda: site.store.get(job_id).checkpoint["artifact"].startswith(f"{job_id}/2/"))
    record = site.store.get(job_id)
    assert (record.state, record.worker, record.attempt) == (State.RUNNING, "berta", 2)
    wait_for(lambda: {worker.name: worker.state for worker in site.store.workers()}["anna"] == "idle")


def test_sigterm_saves_and_gives_the_job_back_and_a_cancelled_job_saves_as_well(site):
    first = site.start("anna")
    job_id = site.submit_training(max_steps=100_000, **{"training.checkpoint_every_steps": 100_000})
    wait_for(lambda: site.events(job_id, "step"))
    first.terminate()
    assert first.wait(30) == 0, site.output()
    record = site.store.get(job_id)
    assert (record.state, record.cause) == (State.QUEUED, Cause.PREEMPTED)
    assert record.checkpoint["step"] > 0
    assert site.store.workers() == []
    site.start("berta")
    wait_for(lambda: any("Resumes after step" in event["message"] for event in site.events(job_id, "note")))
    # Cancelled, it saves its last step once more.
    wait_for(lambda: site.events(job_id, "step")[-1]["step"] > record.checkpoint["step"])
    site.store.cancel(job_id)
    cancelled = site.ended(job_id, 30)
    assert (cancelled.state, cancelled.cause) == (State.CANCELLED, Cause.CANCELLED)
    assert cancelled.checkpoint["step"] > record.checkpoint["step"]


def test_a_second_signal_means_now(site):
    worker = site.start()
    job_id = site.submit_training(max_steps=100_000)
    wait_for(lambda: site.events(job_id, "step"))
    trainer = psutil.Process(site.trainer_pid(worker))
    trainer.suspend()  # it cannot save: the first signal alone would wait
    worker.terminate()
    time.sleep(0.5)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(20) == 130
    assert site.store.get(job_id).state == State.QUEUED
    wait_for(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE, seconds=5)


def test_a_trainer_that_does_not_stop_is_ended_after_its_grace(site):
    worker = site.start(STOP_SECONDS="1")
    job_id = site.submit_training(max_steps=100_000)
    wait_for(lambda: site.events(job_id, "step"))
    psutil.Process(site.trainer_pid(worker)).suspend()
    site.store.cancel(job_id)
    assert site.ended(job_id, 20).state == State.CANCELLED


def test_a_job_that_tells_nothing_for_too_long_has_stalled(site):
    site.start(STALL_MINUTES="0.01", STOP_SECONDS="60")  # loading torch takes longer than that
    record = site.ended(site.submit_training(max_steps=100_000))
    assert (record.state, record.cause) == (State.FAILED, Cause.STALLED)


def test_a_job_that_runs_for_too_long_is_ended(site):
    site.start()
    job_id = site.submit_training(max_steps=100_000, **{"training.max_wall_hours": 12 / 3600})
    record = site.ended(job_id)
    assert (record.state, record.cause) == (State.FAILED, Cause.MAX_WALL_TIME)


def test_garbage_tickets_harm_nobody_and_a_wrong_job_is_told_in_a_sentence(site):
    site.start()
    for arguments in ([], ["no-such-job", 1], [{"a": 1}, "x"], ["../../etc", 1], [None, None, None]):
        site.app.send_task("repotune.run_job", args=arguments, queue="cpu.2g")
    site.app.send_task("no.such.task", queue="cpu.2g")
    # The next job is taken, and what is wrong with that one is told in a sentence.
    record = site.ended(site.submit_training(max_steps=1, **{"model.name": "/nowhere/at/all"}))
    assert (record.state, record.cause, record.attempt) == (State.FAILED, Cause.USER_ERROR, 1)
    assert "/nowhere/at/all" in record.reason


def test_a_job_too_big_for_what_is_free_waits_with_a_reason(site):
    site.start(BUSY_SECONDS="600")
    spec = JobSpec(kind=Kind.DATASET, config=load_config())
    job_id = site.submit(new_job("dataset", "cpu.2g", spec, need_bytes=1 << 50))[0].id
    record = wait_for(lambda: (found := site.store.get(job_id)).reason and found)
    assert (record.state, record.attempt) == (State.QUEUED, 1)
    assert "another program uses it" in record.reason


def test_each_job_lands_where_its_tag_says(site, tmp_path):
    # There is no Mac here: REPOTUNE_PROBE stands a fake mps worker beside the real cpu one. Its trainer finds no Metal,
    # and says so, which shows who took the job; the other one looks for its model.
    probe = tmp_path / "probe.json"
    device = {"device": "mps", "device_name": "Fake M1", "memory_bytes": 8 << 30}
    probe.write_text(json.dumps({"devices": [device], "absent": {}, "versions": {}}))
    site.start("cpu-worker")
    site.start("mps-worker", device="mps", PROBE=str(probe))
    on_cpu = site.submit_training(max_steps=1, **{"model.name": "/nowhere/at/all"})
    on_mps = site.submit_training(max_steps=1, device="mps")
    assert (site.ended(on_cpu).worker, site.ended(on_mps).worker) == ("cpu-worker", "mps-worker")
    assert (site.store.get(on_cpu).state, site.store.get(on_mps).state) == (State.FAILED, State.FAILED)
    assert "/nowhere/at/all" in site.store.get(on_cpu).reason
    assert "mps" in site.store.get(on_mps).reason


def test_a_broker_away_for_longer_than_the_lease_ends_no_training(site):
    site.start()
    job_id = site.submit_training(max_steps=60)
    site.has_checkpoint(job_id)
    server = psutil.Process(int(site.store.redis.info("server")["process_id"]))
    server.suspend()
    time.sleep(8)
    server.resume()
    record = site.ended(job_id)
    assert (record.state, record.attempt) == (State.SUCCEEDED, 1), record.reason
    assert [event["step"] for event in site.events(job_id, "step")] == list(range(1, 61))


def test_a_name_is_taken_once_on_a_machine(site):
    site.start("anna")
    second = site.launch("--device", "cpu", "--name", "anna")
    assert second.wait(30) == 2
    assert "runs on this machine already" in site.output()


def test_a_device_that_is_not_here_is_refused_with_a_sentence(site):
    worker = site.launch("--device", "cuda", PROBE="")
    assert worker.wait(60) == 5
    assert "No cuda device here" in site.output()


def test_a_broker_that_is_not_there_is_said_at_the_start(site):
    worker = site.launch("--device", "cpu", BROKER_URL="redis://127.0.0.1:1/0")
    assert worker.wait(60) == 3


def test_the_chosen_device_is_said_in_one_line(site):
    site.start(PROBE="")
    wait_for(lambda: "is ready for jobs" in site.output())
    line = next(line for line in site.output().splitlines() if line.startswith("Serving cpu on "))
    assert "(tiers " in line
    assert line.endswith(": as asked.")


def test_repositories_become_an_adapter_through_the_queue(site, tiny_repository):
    more = site.folder / "more"
    more.mkdir()
    for number in range(3):
        (more / f"more_{number}.py").write_text(
            f"def more_{number}(value):\n    return value + {number}\n" * (number + 2)
        )
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        subprocess.run(["git", *person, *command], cwd=more, check=True)
    resolved = resolve(str(tiny_repository))
    bundle = site.folder / "source.bundle"
    write_bundle(resolved.git_dir, resolved.commit, bundle)
    site.artifacts.put_file(bundle, "bundles/tiny")
    settings = [f"model.name={site.model}", "cpu.quantization.kind=int8", "training.max_steps=3", "lora.rank=4"]
    settings += ["dataset.sequence_length=64", "dataset.held_out=0.2", "optimization.accumulation=2"]
    config = load_config(settings=settings)
    also = (Pinned(repository=f"file://{more}", commit=resolve(str(more)).commit),)
    source = Source(repository=str(tiny_repository), commit=resolved.commit, bundle="bundles/tiny", also=also)
    dataset = new_job("dataset", "any.2g", JobSpec(kind=Kind.DATASET, config=config, source=source))
    spec = JobSpec(kind=Kind.TRAINING, config=config, dataset_job=dataset.id)
    training = new_job("training", "cpu.2g", spec, depends_on=dataset.id)
    site.submit(dataset, training)
    site.start()
    record = site.ended(training.id)
    assert record.state == State.SUCCEEDED, (record.reason, site.store.get(dataset.id).reason)
    assert site.store.get(dataset.id).result["files"] == 13 + 3
    assert (site.artifacts.fetch(record.result["artifact"]) / "adapter" / "adapter_config.json").is_file()
