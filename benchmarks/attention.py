"""Memory and time of attention in training: in blocks, torch's fused kernel, and torch's math path, as Metal trains.

Run as: python benchmarks/attention.py [--lengths 1024 2048 4096] [--heads 24] [--rounds 3] [--threads 1]
        [--part memory|times]

One layer of StarCoder2-3B's heads (24 of 128, two of keys), fp32, forward and backward, as one document per row and
packed with documents of 512 tokens on average. Memory: growth of the resident peak over a fresh process that holds the
inputs, per variant and length; it holds output and gradients, which every variant needs. Time: the variants in turn in
one process; ratios are of CPU time, so that a busy machine slows both alike. Gradients differ by the largest difference
over the largest gradient.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from backends.blocked_attention import blocked_attention

MIB = 2**20
SIZE = 128
KEY_HEADS = 2
DOCUMENT = 512
VARIANTS = ("blocked", "fused", "math", "blocked packed", "fused packed")
Attention = Callable[..., torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=("memory", "times"), help="measure only this and keep the other's figures")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(options.threads)
        what, length = options.child[0], int(options.child[1])
        print(json.dumps(times(options, length) if what == "times" else peak(what, options.heads, length)))
        return
    results = Path(__file__).parent / "results" / "attention.json"
    figures = json.loads(results.read_text(encoding="utf-8")) if options.part and results.exists() else {}
    for part, measure in (("memory", memory), ("times", all_times)):
        if options.part in (None, part):
            figures[part] = about(options) | measure(options)
    print(json.dumps(figures, indent=2))
    results.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def about(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": " ".join(["python benchmarks/attention.py", *sys.argv[1:]]),
        "heads": options.heads,
        "key_heads": KEY_HEADS,
        "threads": options.threads,
        "versions": {"torch": version("torch"), "python": platform.python_version()},
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
    }


def memory(options: argparse.Namespace) -> dict[str, Any]:
    extra = {variant: {length: child(options, variant, length) for length in options.lengths} for variant in VARIANTS}
    return {
        "extra_resident_mib": extra,
        "extra_over_that_of_the_length_before": {
            variant: {long: round(by[long] / max(by[short], 0.1), 2) for short, long in itertools.pairwise(by)}
            for variant, by in extra.items()
        },
    }


def all_times(options: argparse.Namespace) -> dict[str, Any]:
    return {"by_length": {length: child(options, "times", length) for length in options.lengths}}


def child(options: argparse.Namespace, what: str, length: int) -> Any:
    """What a fresh process measures."""
    shared = [f"--heads={options.heads}", f"--rounds={options.rounds}", f"--threads={options.threads}"]
    command = [sys.executable, __file__, *shared, "--child", what, str(length)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(variant: str, heads: int, length: int) -> float:
    """MiB that one pass forward and back adds to a process that holds its inputs."""
    attend = attention(variant, 256)
    run(attend, *inputs(heads, 256))  # libraries and their buffers
    tensors, direction = inputs(heads, length)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = resident("VmRSS")
    run(attention(variant, length), tensors, direction)
    return round((resident("VmHWM") - before) / MIB, 1)


def resident(which: str) -> int:
    """Bytes of this process that are in memory now (VmRSS) or were at most (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def times(options: argparse.Namespace, length: int) -> dict[str, Any]:
    variants = [variant for variant in VARIANTS if variant != "math"]
    tensors, direction = inputs(options.heads, length)
    gradients = {variant: run(attention(variant, length), tensors, direction) for variant in variants}
    rounds: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for _ in range(options.rounds):
        for variant in variants:
            wall, cpu = time.perf_counter(), time.process_time()
            run(attention(variant, length), tensors, direction)
            rounds[variant].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        "seconds": {variant: summary(rounds[variant]) for variant in variants},
        "blocked_over_fused": ratios(rounds["blocked"], rounds["fused"]),
        "blocked_over_fused_packed": ratios(rounds["blocked packed"], rounds["fused packed"]),
        "gradients_differ_by": difference(gradients["blocked"], gradients["fused"]),
        "gradients_differ_by_packed": difference(gradients["blocked packed"], gradients["fused packed"]),
    }


def summary(passes: list[tuple[float, float]]) -> dict[str, float]:
    walls, cpus = zip(*passes, strict=True)
    return {
        "wall_min": round(min(walls), 3),
        "wall_median": round(statistics.median(walls), 3),
        "cpu_median": round(statistics.median(cpus), 3),
    }


def ratios(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> dict[str, float]:
    by_round = [one[1] / other[1] for one, other in zip(ours, theirs, strict=True)]
    return {"min": round(min(by_round), 3), "median": round(statistics.median(by_round), 3)}


def difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(ours, theirs, strict=True))


def inputs(heads: int, length: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Queries, keys and values, and the gradient of the output."""
    torch.manual_seed(length)
    tensors = [torch.randn(1, count, length, SIZE, requires_grad=True) for count in (heads, KEY_HEADS, KEY_HEADS)]
    return tensors, torch.randn(1, length, heads, SIZE)


def attention(variant: str, length: int) -> Attention:
    """A function of queries, keys and values, set up as a layer of a model gets it."""
    name, *packed = variant.split()
    first = document_starts(length) if packed else torch.zeros(length, dtype=torch.int64)
    if name == "blocked":
        bounds = first[None].tolist()
        return lambda *tensors: blocked_attention(*tensors, first=first[None], bounds=bounds)
    places = torch.arange(length)
    table = ((places >= first[:, None]) & (places <= places[:, None]))[None, None] if packed else None
    backend = SDPBackend.MATH if name == "math" else SDPBackend.FLASH_ATTENTION

    def torchs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if table is not None:  # as transformers does where there is a mask
            key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
        with sdpa_kernel(backend):
            out = scaled_dot_product_attention(
                query, key, value, attn_mask=table, is_causal=table is None, enable_gqa=table is None
            )
        return out.transpose(1, 2).contiguous()

    return torchs


def document_starts(length: int) -> torch.Tensor:
    """Of each place of a row of documents of random lengths: where its document starts."""
    generator = torch.Generator().manual_seed(length)
    cuts = torch.randperm(length, generator=generator)[: max(length // DOCUMENT - 1, 1)].sort().values
    starts = torch.zeros(length, dtype=torch.int64)
    starts[cuts] = cuts
    return starts.cummax(0).values


def run(attend: Attention, tensors: list[torch.Tensor], direction: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(attend(*tensors), tensors, direction))


if __name__ == "__main__":
    main()
