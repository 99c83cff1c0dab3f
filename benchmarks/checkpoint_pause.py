"""Figure: the part of its time that a training stands still for checkpoints. Target: under 2 % at the default interval.

Run as: python benchmarks/checkpoint_pause.py [--steps 6] [--dataset DIR --model M]

Trains the demo's small model on this repository with the default adapter and a checkpoint after every step, and takes
the pause of each from the run's own events. At the defaults a checkpoint falls due after 5 minutes or 100 steps,
whichever comes first. Beside it stands what the same code takes to write the tensors of a rank 32 adapter of
StarCoder2-3B and its optimizer.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from jobs import checkpoint
from jobs.spec import TrainingSection

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "checkpoint_pause.json"
TARGET = 0.02

#: Parameters of a rank 32 adapter on all linear layers of StarCoder2-3B; AdamW keeps two numbers for each.
LARGE_ADAPTER = 47_677_440


def main() -> int:
    options = _parse()
    with tempfile.TemporaryDirectory(dir=options.disk) as folder:
        small = _trained(Path(folder), options)
        large = _written(Path(folder) / "large")
    defaults = TrainingSection()
    interval = min(defaults.checkpoint_every_minutes * 60, defaults.checkpoint_every_steps * small["step_seconds"])
    figures = {
        **small,
        "interval_seconds": round(interval, 1),
        "share_of_time": round(small["pause_seconds"] / interval, 6),
        "large_adapter": large | {"share_of_5_minutes": round(large["pause_seconds"] / 300, 6)},
        "target": TARGET,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "safetensors")},
        "machine": platform.platform(),
    }
    print(json.dumps(figures, indent=2))
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if figures["share_of_time"] < TARGET else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dataset", type=Path, help="folder that `repotune dataset` wrote; default: made here")
    parser.add_argument("--model", help="for --dataset")
    parser.add_argument("--disk", type=Path, help="folder on the disk to measure")
    options = parser.parse_args()
    if bool(options.dataset) != bool(options.model):
        parser.error("--dataset and --model go together")
    return options


def _trained(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    repotune = Path(sys.executable).with_name("repotune")
    model, dataset, run = options.model, options.dataset, folder / "run"
    if dataset is None:
        script = ROOT / "examples" / "demo_model.py"
        found = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
        model, dataset = found.stdout.strip(), folder / "dataset"
        command = [repotune, "dataset", "--repo", ROOT, "--model", model, "--config", ROOT / "examples" / "demo.yaml"]
        subprocess.run([*command, "--output", dataset], check=True)
    keys = {"training.max_steps": options.steps, "training.checkpoint_every_steps": 1, "training.evaluation_rows": 1}
    keys |= {"lora.rank": 32, "lora.alpha": 64}  # as by default
    changes = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    command = [repotune, "train", "--device", "cpu", "--dataset", dataset, "--model", model, "--output", run]
    subprocess.run([*command, "--config", ROOT / "examples" / "demo.yaml", *changes], check=True)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    pauses = [event["seconds"] for event in events if event["event"] == "checkpoint"]
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    files = [file for file in (run / "checkpoints" / f"step-{options.steps}").rglob("*") if file.is_file()]
    return {
        "model": Path(model).name,
        "checkpoints": len(pauses),
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "pause_seconds": round(statistics.median(pauses), 3),
        "longest_pause_seconds": max(pauses),
        "step_seconds": round(result["seconds"] / result["steps"], 2),
    }


def _written(folder: Path) -> dict[str, Any]:
    adapter = {"adapter": torch.rand(LARGE_ADAPTER)}
    moments = {name: torch.rand(LARGE_ADAPTER) for name in ("first", "second")}

    def write(into: Path) -> None:
        save_file(adapter, into / "adapter.safetensors")
        save_file(moments, into / "optimizer.safetensors")

    pauses = []
    for step in range(1, 4):
        began = time.perf_counter()
        checkpoint.save(folder, step, write, keep=1)
        pauses.append(time.perf_counter() - began)
    return {"megabytes": round(LARGE_ADAPTER * 12 / 1e6, 1), "pause_seconds": round(statistics.median(pauses), 3)}


if __name__ == "__main__":
    sys.exit(main())
