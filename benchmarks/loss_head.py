"""Figure: time and memory of the loss at the head. Target: at most 180 MB extra, and faster than full logits.

Run as: python benchmarks/loss_head.py [--tokens 1024] [--hidden 3072] [--rounds 5] [--threads 2] [--part time|memory]

Forward and gradient by the hidden states of one micro-batch, fp32, 49152 words, every token a label (the dearest case).
Times: all variants alternate in one process, and a round's ratio is to full logits in that round. Memory: each variant
alone in a fresh process, the highest resident memory above what the process held with weights and states in place; the
gradient that comes out is counted. Beside ours: full logits; chunks that are recomputed in the backward pass; torch's
`linear_cross_entropy` (from 2.13 on), with its own choice of chunks and with 128 tokens; TRL's fused head, where it is
installed.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from backends.head import summed_loss
from backends.logits import LogitShape

RESULTS = Path(__file__).parent / "results" / "loss_head.json"
VOCABULARY = 49152
TARGET_MEGABYTES = 180

Loss = Callable[[torch.nn.Linear, torch.Tensor, torch.Tensor], torch.Tensor]


def full_logits(head: torch.nn.Linear, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(states).float(), targets, reduction="sum")


def recomputed_chunks(head: torch.nn.Linear, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    chunks = zip(states.split(256), targets.split(256), strict=True)
    return sum(checkpoint(full_logits, head, *chunk, use_reentrant=False) for chunk in chunks)


def ours(head: torch.nn.Linear, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return summed_loss(head, LogitShape(), states, targets)


def torch_auto(head: torch.nn.Linear, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return functional.linear_cross_entropy(states, head.weight, targets, reduction="sum", options=options)


def torch_128(head: torch.nn.Linear, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    options = torch.nn.LinearCrossEntropyOptions(acc_policy="accurate", batch_chunk_size=128, chunking_method=None)
    return functional.linear_cross_entropy(states, head.weight, targets, reduction="sum", options=options)


def trl_fused(head: torch.nn.Linear, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    size = _CHUNKED_LOGPROB_CHUNK_SIZE
    found = _ChunkedLogProbFunction.apply(states, head.weight, None, targets, 1.0, size, None, 1.0, ("log_probs",))
    return -found[0].sum()


def variants() -> dict[str, Loss]:
    found = {"full logits": full_logits, "recomputed chunks": recomputed_chunks, "repotune": ours}
    if hasattr(functional, "linear_cross_entropy"):
        found |= {"torch": torch_auto, "torch, 128 tokens": torch_128}
    if importlib.util.find_spec("trl"):
        found["TRL"] = trl_fused
    return found


def prepare(tokens: int, hidden: int) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    head = torch.nn.Linear(hidden, VOCABULARY, bias=False, device="meta")
    weight = torch.empty(VOCABULARY, hidden).normal_(std=0.02)
    head.weight = torch.nn.Parameter(weight, requires_grad=False)
    return head, torch.randn(tokens, hidden), torch.randint(0, VOCABULARY, (tokens,))


def once(loss: Loss, inputs: tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]) -> tuple[float, torch.Tensor]:
    head, states, targets = inputs
    states = states.detach().requires_grad_()
    value = loss(head, states, targets)
    (gradient,) = torch.autograd.grad(value / len(targets), states)
    return value.item() / len(targets), gradient


def extra_megabytes(name: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory-of", name]
    sizes = ["--tokens", options.tokens, "--hidden", options.hidden, "--threads", options.threads]
    printed = subprocess.run([*command, *map(str, sizes)], check=True, capture_output=True, text=True)
    return float(printed.stdout.splitlines()[-1])


def tell_memory(loss: Loss, options: argparse.Namespace) -> None:
    """In a fresh process: the peak of two passes above what was there before."""
    once(loss, prepare(2, 64))  # libraries are loaded, threads started
    inputs = prepare(options.tokens, options.hidden)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from now
    before = psutil.Process().memory_info().rss
    once(loss, inputs)
    once(loss, inputs)
    print((_peak() - before) / 1e6)


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def time_all(losses: dict[str, Loss], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds of each variant in each round, all having given the same loss and gradient."""
    inputs = prepare(options.tokens, options.hidden)
    expected, gradient = once(full_logits, inputs)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in losses}
    for name, loss in losses.items():
        value, found = once(loss, inputs)
        assert abs(value - expected) < 1e-5 * expected, (name, value, expected)
        assert (found - gradient).norm() < 1e-4 * gradient.norm(), name
    for _ in range(options.rounds):
        for name, loss in losses.items():
            wall, cpu = time.perf_counter(), time.process_time()
            once(loss, inputs)
            rounds[name].append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    return rounds


def summary(name: str, rounds: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    told = {}
    for clock in ("wall", "cpu"):
        here, full = ([each[clock] for each in rounds[which]] for which in (name, "full logits"))
        ratios = [mine / theirs for mine, theirs in zip(here, full, strict=True)]
        told[f"{clock}_seconds_min"] = round(min(here), 3)
        told[f"{clock}_seconds_median"] = round(statistics.median(here), 3)
        told[f"{clock}_ratio_of_minima"] = round(min(here) / min(full), 3)
        told[f"{clock}_ratio_median"] = round(statistics.median(ratios), 3)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=["both", "time", "memory"], default="both", help="figures to take anew")
    parser.add_argument("--only", help="variants, with commas between them; full logits must be one of them for times")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = options.only.split(",") if options.only else list(variants())
    losses = {name: loss for name, loss in variants().items() if name in wanted}
    if options.memory_of:
        tell_memory(losses[options.memory_of], options)
        return 0
    figures: dict[str, dict[str, float]] = {name: {} for name in losses}
    if options.part != "time":
        figures = {name: {"extra_megabytes": round(extra_megabytes(name, options), 1)} for name in losses}
    if options.part != "memory":
        rounds = time_all(losses, options)
        figures = {name: {**figures[name], **summary(name, rounds)} for name in losses}
    return tell(figures, options)


def tell(figures: dict[str, dict[str, float]], options: argparse.Namespace) -> int:
    key = f"T={options.tokens} H={options.hidden}"
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    before = known.get(key, {}).get("variants", {})
    figures = before | {name: {**before.get(name, {}), **each} for name, each in figures.items()}
    mine = figures["repotune"]
    faster = max(mine.get("cpu_ratio_median", 1), mine.get("wall_ratio_median", 1)) < 1
    met = mine.get("extra_megabytes", TARGET_MEGABYTES + 1) <= TARGET_MEGABYTES and faster
    known[key] = {
        "command": f"python benchmarks/loss_head.py --tokens {options.tokens} --hidden {options.hidden}"
        f" --rounds {options.rounds} --threads {options.threads}",
        "vocabulary": VOCABULARY,
        "rounds": options.rounds,
        "threads": options.threads,
        "targets": {"extra_megabytes": TARGET_MEGABYTES, "time_ratio_to_full_logits": 1.0},
        "targets_met": met,
        "variants": figures,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: _version(name) for name in ("torch", "trl")} | {"python": platform.python_version()},
    }
    RESULTS.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(known[key], indent=2))
    return 0 if met else 1


def _version(name: str) -> str | None:
    return metadata.version(name) if importlib.util.find_spec(name) else None


if __name__ == "__main__":
    sys.exit(main())
