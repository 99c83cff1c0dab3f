"""Figure: how soon a training moves, from the command to the first optimizer step. Target: under 15 s.

Run as: python benchmarks/first_step.py [--rounds 3]

`repotune train` of SmolLM2-135M with the demo's settings on a dataset of this repository, as a person starts it:
imports, the checked dataset, the loaded and quantised model, the first step of 1024 tokens. The model's file was
converted before, as `repotune dataset` does. The phases are the events that the run itself writes. CPU seconds beside
wall seconds: where they are well below the cores' share, the machine was busy with something else.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "first_step.json"
TARGET_SECONDS = 15.0
REPOTUNE = Path(sys.executable).with_name("repotune")


def main() -> int:
    """Measure and say whether the target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = ["--model", _model(), "--config", str(ROOT / "examples" / "demo.yaml")]
        dataset = folder / "dataset"
        subprocess.run([REPOTUNE, "dataset", "--repo", ROOT, *common, "--output", dataset], check=True)
        rounds = [_start(folder / f"run-{number}", dataset, common) for number in range(options.rounds)]
    return _tell(rounds)


def _model() -> str:
    script = ROOT / "examples" / "demo_model.py"
    return subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.strip()


def _start(output: Path, dataset: Path, common: list[str]) -> dict[str, float]:
    """Seconds from the start of the process to each event, and its CPU seconds until the first step."""
    command = [REPOTUNE, "train", "--dataset", dataset, *common, "--device", "cpu", "--output", output]
    began = time.time()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        seen = psutil.Process(process.pid)
        cpu = 0.0
        while not any(event["event"] == "step" for event in _events(output)):
            assert process.poll() is None, f"it ended before its first step: {command}"
            times = seen.cpu_times()
            cpu = times.user + times.system
            time.sleep(0.05)
        process.kill()
    return _phases(_events(output), began) | {"cpu_seconds": cpu}


def _events(output: Path) -> list[dict[str, Any]]:
    try:
        lines = (output / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _phases(events: list[dict[str, Any]], began: float) -> dict[str, float]:
    at = {event.get("stage", event["event"]): event["time"] - began for event in reversed(events)}
    return {
        "first_event": min(at.values()),
        "load_model": at["load model"],
        "training_begins": at["train"],
        "first_step_done": at["step"],
    }


def _tell(rounds: list[dict[str, float]]) -> int:
    best = {name: min(one[name] for one in rounds) for name in rounds[0]}
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    figures = {
        "seconds": {
            "best": {name: round(value, 2) for name, value in best.items()},
            "median": {name: round(value, 2) for name, value in median.items()},
        },
        "rounds": len(rounds),
        "target_seconds": TARGET_SECONDS,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(figures, indent=2))
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if best["first_step_done"] < TARGET_SECONDS else 1


if __name__ == "__main__":
    raise SystemExit(main())
