"""Figure: the optimizers side by side on the small model: held-out loss at one learning rate, bytes of state, time.

Run as: python benchmarks/optimizers.py [--steps N] [--model FOLDER]
Each starts from the same adapter (LoRA of rank 16 on all linear layers of SmolLM2-135M, fp32) and sees the same rows in
the same order: Python files of this repository. Beside ours: what else kept libraries offer for less memory.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from backends import models, optimizers
from jobs.optimizer import trainable

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "optimizers.json"

LENGTH = 128
HELD_OUT = 8
RATE = 2e-4
WARMUP = 3

Make = Callable[[Iterable[Any]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--model", help="folder of the small model; by default that of the demo")
    arguments = parser.parse_args()
    name = arguments.model or _demo_model()
    base = models.load_base(name, None, dtype=torch.float32, device="cpu")
    torch.manual_seed(17)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    start = {key: value.detach().clone() for key, value in trainable(model).items()}
    held_out, train = _rows(name)
    before = _loss(model, held_out)
    figures = {}
    for candidate, make, rate in _candidates():
        with torch.no_grad():
            for key, value in trainable(model).items():
                value.copy_(start[key])
        optimizer = make(trainable(model).values())
        seconds = list(_train(model, optimizer, train, arguments.steps, rate))
        figures[candidate] = {
            "learning_rate": rate,
            "held_out_loss": round(_loss(model, held_out), 4),
            "state_bytes_per_weight": round(_state_bytes(optimizer) / sum(map(torch.numel, start.values())), 3),
            "update_ms_min": round(min(seconds) * 1e3, 1),
            "update_ms_median": round(statistics.median(seconds) * 1e3, 1),
        }
        print(candidate, json.dumps(figures[candidate]), flush=True)
    _write(before, figures, arguments.steps)


def _candidates() -> Iterator[tuple[str, Make, float]]:
    import bitsandbytes
    import transformers

    def ours(name: str) -> Make:
        return lambda parameters: optimizers.make(name, parameters, learning_rate=RATE, weight_decay=0.0)

    for name in ("adamw", "adamw8bit", "adafactor"):
        yield name, ours(name), RATE
    yield "torch Adafactor, its own eps", lambda parameters: torch.optim.Adafactor(parameters, lr=RATE), RATE
    fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    yield "transformers Adafactor, fixed rate", lambda some: transformers.Adafactor(some, lr=RATE, **fixed), RATE
    # Lion moves every weight by the rate; a quarter of Adam's is what its authors advise at most.
    yield "bitsandbytes Lion8bit", lambda some: bitsandbytes.optim.Lion8bit(some, lr=RATE / 4), RATE / 4


def _demo_model() -> str:
    script = ROOT / "examples" / "demo_model.py"
    return subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.strip()


def _rows(name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Held-out rows and rows to train on, [1, LENGTH] each."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "jobs").glob("*.py")))
    ids = torch.tensor(models.load_tokenizer(name, None)(text)["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, 1, LENGTH)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    return [rows[number] for number in order[:HELD_OUT]], [rows[number] for number in order[HELD_OUT:]]


def _train(model: Any, optimizer: Any, rows: list[torch.Tensor], steps: int, peak: float) -> Iterator[float]:
    """Cosine after a warm-up, clipped to 1 as by default; yields the seconds of each update alone."""
    for step in range(steps):
        row = rows[step % len(rows)]
        model(input_ids=row, labels=row, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable(model).values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        began = time.perf_counter()
        optimizer.step()
        yield time.perf_counter() - began
        optimizer.zero_grad()


@torch.no_grad()
def _loss(model: Any, rows: list[torch.Tensor]) -> float:
    return sum(float(model(input_ids=row, labels=row, use_cache=False).loss) for row in rows) / len(rows)


def _state_bytes(optimizer: Any) -> int:
    """What several parameters share is counted once."""
    tensors = {
        value.data_ptr(): value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    }
    return sum(tensors.values())


def _write(before: float, figures: dict[str, Any], steps: int) -> None:
    libraries = ("torch", "transformers", "peft", "bitsandbytes")
    content = {
        "held_out_loss_before": round(before, 4),
        "optimizers": figures,
        "steps": steps,
        "tokens_per_step": LENGTH,
        "cpu_seconds": round(time.process_time(), 1),
        "versions": {name: metadata.version(name) for name in libraries},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "command": "python benchmarks/optimizers.py",
    }
    FIGURES.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
