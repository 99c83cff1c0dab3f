"""Figure: how far the time left, as it is told during a training, is from the truth. Target: 10 % after 2 % of a run.

Run as: python benchmarks/eta.py --model /path/to/small.gguf [--steps 100] [--length 256] [--work DIR]
   or:  python benchmarks/eta.py OUT [OUT ...]

The first trains on this repository, with a measurement of the held-out loss every quarter and a checkpoint every tenth
of the run; the second reads the output folders of trainings in the foreground that ended (`repotune train` keeps
events.jsonl). Told is, at each step, the time of its event plus the ETA that it carries; true is the time of
result.json, which is written last. An error is (told - true) / true of the time that was left. The run begins with its
`train` stage: loading is over by then.

For comparison the same errors of what was told before: the mean of the last 20 steps times the steps that are left.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "eta.json"
#: Parts of a run after which it is looked at.
PARTS = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75)
TARGET = 0.1


def main() -> int:
    """Measure, print, keep; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs="*", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4, help="of an optimizer step")
    parser.add_argument("--work", type=Path, help="keep dataset and run here")
    options = parser.parse_args()
    if not options.outputs and not options.model:
        parser.error("name output folders, or a --model to train")
    with tempfile.TemporaryDirectory() as folder:
        outputs = options.outputs or [_train(options, options.work or Path(folder))]
        figures = [_of_run(output) for output in outputs]
    told = {"runs": figures, "cores": os.cpu_count(), "machine": platform.platform()}
    print(json.dumps(told, indent=2))
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")
    return int(any(abs(figure["told"]["2%"]) > TARGET for figure in figures))


def _train(options: argparse.Namespace, work: Path) -> Path:
    """A run of this repository; the folder it writes."""
    program = str(Path(sys.executable).with_name("repotune"))
    length = ("--set", f"dataset.sequence_length={options.length}")
    if not (work / "dataset" / "manifest.json").exists():
        dataset = [program, "dataset", "--repo", str(ROOT), "--model", options.model, "--output", str(work / "dataset")]
        subprocess.run([*dataset, *length], check=True, stdout=sys.stderr)
    settings = (
        "lora.rank=8",
        f"optimization.accumulation={options.rows}",
        f"training.evaluate_every_steps={options.steps // 4}",
        f"training.checkpoint_every_steps={options.steps // 10}",
        "training.evaluation_rows=16",
        "training.epochs=1000",
    )
    train = [program, "train", "--dataset", str(work / "dataset"), "--model", options.model, "--device", "cpu"]
    train += ["--output", str(work / "out"), "--max-steps", str(options.steps), *length]
    subprocess.run([*train, *(part for one in settings for part in ("--set", one))], check=True, stdout=sys.stderr)
    return work / "out"


def _of_run(output: Path) -> dict[str, Any]:
    lines = (output / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    steps = [event for event in events if event["event"] == "step"]
    began = next(event["time"] for event in events if event["event"] == "stage" and event["stage"] == "train")
    ended = (output / "result.json").stat().st_mtime
    looked = {f"{part:.0%}": max(1, round(part * len(steps))) for part in PARTS}
    return {
        "steps": len(steps),
        "seconds": round(ended - began, 1),
        "told": {part: _error(steps, number, ended) for part, number in looked.items()},
        "of_steps_alone": {part: _error(_by_steps_alone(steps), number, ended) for part, number in looked.items()},
    }


def _error(steps: Sequence[dict[str, Any]], number: int, ended: float) -> float:
    """Of what was told after step `number`."""
    step = steps[number - 1]
    left = ended - step["time"]
    return round((step["eta_seconds"] - left) / left, 4)


def _by_steps_alone(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same steps with the time that 20 of them would tell; a step's own time is its tokens by their speed."""
    told, seconds, tokens = [], [], 0
    for step in steps:
        seconds.append((step["tokens"] - tokens) / max(step["tokens_per_second"], 1e-9))
        tokens = step["tokens"]
        last = seconds[-20:]
        left = step["total_steps"] - step["step"]
        told.append(step | {"eta_seconds": left * sum(last) / len(last)})
    return told


if __name__ == "__main__":
    sys.exit(main())
