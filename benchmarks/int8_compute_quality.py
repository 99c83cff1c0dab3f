"""Figure: what rounding activations to int8 costs in quality: the same training, exact and with int8 products.

Run as: python benchmarks/int8_compute_quality.py [--steps 200] [--emulate] [--work DIR]

The demo's real model (135 M) on the text of this repository, rows of 256 tokens, LoRA of rank 16: the same rows in the
same order with the same seed, held in int8 with exact products, and with products in int8 (one scale per row of the
weight, one per token). Compared are the held-out losses after the last step; both curves are kept and drawn.

The products are those that this machine would train with. Where they gain nothing and are refused, and with --emulate,
the numbers of a machine with VNNI or tensor cores are taken: the integer codes are multiplied as fp32 in blocks of
1024, where every sum is below 2^24 and therefore exact, and added up in int32. That this is equal to `torch._int_mm` to
the bit is checked on a small shape before it is used.

With --work the runs stay in a folder, and go on from their last checkpoint when the program is started again.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends import models
from backends.devices import Device
from backends.int8 import integer
from backends.registry import open_backend
from jobs import config, shards, training
from jobs.context import JobContext
from jobs.events import Evaluated, Event, StepDone
from jobs.metrics import FILE as METRICS
from jobs.metrics import read_metrics
from jobs.results import RESULT

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TARGET = 0.01
TOKENS = 256
HELD_OUT_ROWS = 16
#: Terms of a sum of int8 products that fp32 adds up without rounding: 1024 x 127 x 127 < 2^24.
EXACT_SUM = 1024
SMOOTH = 10
RUNS = {
    "exact": ("quantization.compute=exact", "quantization.group_size=128"),
    "int8 products": ("quantization.compute=int8", "quantization.group_size=row"),
}


def emulated_int_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """What `torch._int_mm` gives, by exact fp32 products: int8 [n, k] @ [k, m] in int32."""
    total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.int32)
    for start in range(0, left.shape[1], EXACT_SUM):
        part = slice(start, start + EXACT_SUM)
        total += (left[:, part].float() @ right[part].float()).int()
    return total


def check_emulation() -> None:
    """Equal to the bit, the largest codes and a sum longer than a block included."""
    torch.manual_seed(1)
    left = torch.randint(-127, 128, (17, 2500), dtype=torch.int8)
    right = torch.randint(-127, 128, (2500, 24), dtype=torch.int8)
    left[0], right[:, 0] = 127, -127
    assert torch.equal(emulated_int_mm(left, right), torch._int_mm(left, right))  # noqa: SLF001
    print("emulated products are equal to torch._int_mm", flush=True)


def emulate() -> None:
    """Let the integer backend multiply by `emulated_int_mm`, whatever this machine has."""
    check_emulation()
    integer._torch_int_mm = emulated_int_mm  # noqa: SLF001
    integer._packed_is_faster = lambda: False  # noqa: SLF001
    integer.integer_gain = lambda _device: integer.IntegerGain(integer.WORTHWHILE_GAIN, "emulated int8 products")


def write_dataset(folder: Path, model: str) -> None:
    """The Python and Markdown files of this repository, one after another, cut into rows."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    tokenizer = models.load_tokenizer(model)
    ids = [token for name in listed for token in tokenizer((ROOT / name).read_text(encoding="utf-8"))["input_ids"]]
    rows = np.array(ids[: len(ids) // TOKENS * TOKENS], dtype=np.int64).reshape(-1, TOKENS)
    held = set(range(0, len(rows), max(1, len(rows) // HELD_OUT_ROWS)))
    parts = {
        shards.TRAIN: [row for number, row in enumerate(rows) if number not in held],
        shards.HELD_OUT: [row for number, row in enumerate(rows) if number in held],
    }
    flags = np.full(TOKENS, shards.LABEL, dtype=np.uint8)
    flags[0] = shards.DOCUMENT_START
    files, splits = {}, {}
    for split, chosen in parts.items():
        with shards.ShardWriter(folder, split, TOKENS, "uint16") as writer:
            for row in chosen:
                writer.append(row, flags)
        files |= writer.files
        splits[split] = {"rows": len(chosen), "tokens": len(chosen) * TOKENS}
    manifest = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": TOKENS, "commit": "0" * 40}
    shards.write_manifest(folder, manifest)


def train(name: str, model: str, dataset: Path, output: Path, steps: int) -> dict[str, Any]:
    """One run, or the rest of it; its losses."""
    settings = [
        f"model.name={model}",
        "quantization.kind=int8",
        "lora.rank=16",
        "lora.alpha=32",
        f"dataset.sequence_length={TOKENS}",
        "optimization.learning_rate=3.0e-4",
        "optimization.accumulation=1",
        f"training.max_steps={steps}",
        "training.epochs=1000",
        "training.checkpoint_every_steps=20",
        "training.evaluation_rows=1000",
        "training.gradient_checkpointing='off'",
        *RUNS[name],
    ]
    chosen = config.load_config(None, settings).for_device(Device.CPU)
    if not (output / RESULT).exists():
        context = JobContext(output=output, emit=_teller(name))
        known = output / training.CHECKPOINTS
        backend = open_backend(chosen.quantization.kind, Device.CPU)
        training.train(chosen, dataset, backend, Device.CPU, context, known if known.is_dir() else None)
    result = json.loads((output / RESULT).read_text(encoding="utf-8"))
    return {
        "loss_before": result["loss_before"],
        "loss_after": result["loss_after"],
        "curve": [round(line["loss"], 4) for line in read_metrics(output / METRICS)],
    }


def _teller(name: str) -> Any:
    began = time.monotonic()

    def emit(event: Event) -> None:
        seconds = time.monotonic() - began
        if isinstance(event, StepDone) and event.step % 10 == 0:
            print(f"  {name}: step {event.step}, loss {event.loss:.3f}, {seconds:.0f} s", flush=True)
        if isinstance(event, Evaluated):
            print(f"  {name}: held-out loss {event.loss:.4f} after {event.step} steps, {seconds:.0f} s", flush=True)

    return emit


def _smoothed(curve: list[float]) -> list[float]:
    """The mean of the last steps."""
    return [sum(part) / len(part) for end in range(len(curve)) for part in [curve[max(0, end - SMOOTH + 1) : end + 1]]]


def draw(curves: dict[str, list[float]]) -> str:
    """An SVG of the smoothed curves: step along, loss up."""
    lines = {name: _smoothed(curve) for name, curve in curves.items()}
    every = [loss for line in lines.values() for loss in line]
    low, high, steps = min(every), max(every), max(len(line) for line in lines.values())
    colours = ("#2563eb", "#ea580c")
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-family="sans-serif" font-size="12">',
        '<rect width="640" height="300" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = 260 - 230 * share
        parts.append(f'<path d="M50 {y:.1f}H620" stroke="#ddd"/>')
        parts.append(f'<text x="44" y="{y + 4:.1f}" text-anchor="end">{low + (high - low) * share:.2f}</text>')
        parts.append(f'<text x="{50 + 570 * share:.1f}" y="278" text-anchor="middle">{round(steps * share)}</text>')
    for number, (name, line) in enumerate(lines.items()):
        places = [
            f"{50 + 570 * step / max(1, steps - 1):.1f},{260 - 230 * (loss - low) / max(high - low, 1e-9):.1f}"
            for step, loss in enumerate(line)
        ]
        colour = colours[number % len(colours)]
        parts.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="470" y="{40 + 18 * number}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="335" y="295" text-anchor="middle">step (loss: mean of the last {SMOOTH})</text></svg>')
    return "\n".join(parts) + "\n"


def _model() -> str:
    found = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo_model.py"], check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


def _work(given: Path | None) -> Any:
    return contextlib.nullcontext(given) if given else tempfile.TemporaryDirectory()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--emulate", action="store_true", help="the numbers of a machine with int8 instructions")
    parser.add_argument("--work", type=Path, help="keep the runs here, and go on with those that are")
    options = parser.parse_args()
    torch.set_num_threads(2)
    gain = integer.integer_gain(Device.CPU)
    emulated = options.emulate or not gain.usable
    how = f"emulated, 8-bit activations ({gain.sentence})" if emulated else gain.sentence
    if emulated:
        emulate()
    with _work(options.work) as folder:
        work, model = Path(folder), _model()
        dataset = work / "dataset"
        if not (dataset / shards.MANIFEST).exists():
            write_dataset(dataset, model)
        suffix = "-emulated" if emulated else ""
        runs = {
            name: train(name, model, dataset, work / f"{name.replace(' ', '-')}{suffix}", options.steps)
            for name in RUNS
        }
    return _tell(runs, options.steps, how)


def _tell(runs: dict[str, dict[str, Any]], steps: int, how: str) -> int:
    exact, rounded = (runs[name]["loss_after"] for name in RUNS)
    difference = rounded / exact - 1
    figures = {
        "steps": steps,
        "tokens_per_row": TOKENS,
        "products": how,
        "held_out_difference": round(difference, 5),
        "target": TARGET,
        "target_met": abs(difference) <= TARGET,
        "runs": runs,
        "command": "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }
    for name, run in runs.items():
        print(f"{name:<16}held-out loss {run['loss_before']:.4f} -> {run['loss_after']:.4f}")
    print(
        f"difference {100 * difference:+.2f} %, target {100 * TARGET:.0f} %: {'met' if figures['target_met'] else 'no'}"
    )
    (RESULTS / "int8_compute_quality.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    chart = draw({name: run["curve"] for name, run in runs.items()})
    (RESULTS / "int8_compute_quality.svg").write_text(chart, encoding="utf-8")
    return 0 if figures["target_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
