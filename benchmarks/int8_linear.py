"""Figure: a block of quantised linear layers, forward and input gradient, beside plain fp32 and beside peers.

Run as: python benchmarks/int8_linear.py [--width 3072] [--tokens 512,128] [--rounds 7] [--threads 2]

The six layers of a StarCoder2-3B block (q, k, v, o, c_fc, c_proj; smaller with --width), gaussian weights, fp32
inputs. Rounds are interleaved; ratios are taken within a round, so that another process on the machine slows both.
Counted beside wall time and CPU seconds: bytes of the weights, bytes that autograd keeps for the backward pass beyond
the inputs and what the layer owns anyway (a full float copy of the weights shows here), and the relative errors of
outputs and input gradients against the unquantised weights.

Some ways of multiplying int8 take minutes on a CPU that has no instructions for it: each variant is first tried on a
small block in a process of its own, and left out with a row that says why. Peers: `pip install --group peers`.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

RESULTS = Path(__file__).resolve().parent / "results" / "int8_linear.json"
BASELINE = "nn.Linear fp32"
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj")
#: A trial: a small block, how long it may take, and how many times the CPU seconds of plain layers a pass may.
TRIAL_WIDTH, TRIAL_TOKENS, TRIAL_SECONDS, TOO_SLOW = 1536, 128, 180.0, 12.0
#: Libraries whose objects may hold tensors of a layer.
OWN = ("bitsandbytes", "optimum", "torchao", "backends", "torch.nn")


def shapes(width: int) -> list[tuple[int, int]]:
    """(in, out) of the layers; keys and values have two heads of 24."""
    small = width // 12
    return [(width, width), (width, small), (width, small), (width, width), (width, 4 * width), (4 * width, width)]


def plain_block(width: int) -> list[nn.Linear]:
    """Gaussian weights, as trained ones roughly are, and biases."""
    layers = []
    for inputs, outputs in shapes(width):
        layer = nn.Linear(inputs, outputs)
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(layer.bias, std=0.02)
        layers.append(layer.requires_grad_(False))  # noqa: FBT003
    return layers


# ---------------------------------------------------------------- variants


def _int8(layer: nn.Linear) -> nn.Module:
    from backends.int8.linear import Int8Linear

    return Int8Linear.from_linear(layer)


def _int4(layer: nn.Linear) -> nn.Module:
    from backends.int8.int4 import Int4Linear

    return Int4Linear.from_linear(layer)


def _int8_compute(layer: nn.Linear) -> nn.Module:
    from backends.int8.linear import Int8Linear

    return Int8Linear.from_linear(layer, None, compute="int8")


def _nf4(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    quantised = Linear4bit(
        layer.in_features, layer.out_features, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True
    )
    quantised.load_state_dict(layer.state_dict())
    return quantised.to("cpu")


def _llm_int8(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear8bitLt

    quantised = Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, threshold=0.0)
    quantised.load_state_dict(layer.state_dict())
    return quantised.to("cpu")


def _torchao(layer: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    quantize_(copy, Int8WeightOnlyConfig())
    return copy


def _quanto(layer: nn.Linear) -> nn.Module:
    from optimum.quanto import freeze, qint8, quantize

    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    holder = nn.Sequential(copy)  # children are quantised, not the module itself
    quantize(holder, weights=qint8)
    freeze(holder)
    return holder[0]


VARIANTS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    BASELINE: lambda layer: layer,
    "repotune int8": _int8,
    "repotune int4": _int4,
    "repotune int8 compute": _int8_compute,
    "bitsandbytes nf4, double quant": _nf4,
    "bitsandbytes int8": _llm_int8,
    "torchao int8 weight only": _torchao,
    "optimum-quanto qint8": _quanto,
}


def build(name: str, plain: list[nn.Linear]) -> list[nn.Module]:
    """The block with its weights held in another way."""
    return [VARIANTS[name](layer).requires_grad_(False) for layer in plain]  # noqa: FBT003


def why_not(name: str) -> str | None:
    """Why a variant cannot run here within reason, found out in a process of its own; None where it can."""
    command = [sys.executable, __file__, "--try", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"a small block took more than {TRIAL_SECONDS:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return f"the trial ended with status {done.returncode}"
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        return str(answer["error"])
    ratio = answer["ratio"]
    return f"{ratio:.0f} times the CPU seconds of {BASELINE} on this CPU" if ratio > TOO_SLOW else None


def trial(name: str) -> None:
    """Some passes through a small block; prints their CPU seconds in those of plain layers, or what went wrong."""
    torch.set_num_threads(2)
    try:
        work, plain = Work.random(TRIAL_WIDTH, TRIAL_TOKENS), plain_block(TRIAL_WIDTH)
        block = build(name, plain)
        work.run(block), work.run(plain)
        theirs, ours = (min(work.run(each)[1] for _ in range(2)) for each in (block, plain))
    except ImportError as error:
        print(json.dumps({"error": f"not installed: {error.name or error}"}))
    except Exception as error:  # noqa: BLE001 - a peer that fails is a row
        line = (str(error).strip().splitlines() or [""])[0]
        print(json.dumps({"error": f"{type(error).__name__}: {line[:200]}"}))
    else:
        print(json.dumps({"ratio": theirs / ours}))


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Work:
    """What goes into the layers: rows [tokens, in] and gradients [tokens, out]."""

    inputs: list[torch.Tensor]
    gradients: list[torch.Tensor]

    @classmethod
    def random(cls, width: int, tokens: int) -> "Work":
        """Gaussian."""
        pairs = [(torch.randn(tokens, inputs), torch.randn(tokens, outputs)) for inputs, outputs in shapes(width)]
        return cls([x for x, _ in pairs], [gradient for _, gradient in pairs])

    def run(self, block: list[nn.Module]) -> tuple[float, float]:
        """Wall and CPU seconds of one pass through each layer and back to its input."""
        began, began_cpu = time.perf_counter(), time.process_time()
        for layer, x, gradient in zip(block, self.inputs, self.gradients, strict=True):
            layer(x.detach().requires_grad_()).backward(gradient)
        return time.perf_counter() - began, time.process_time() - began_cpu

    def results(self, block: list[nn.Module]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Output and input gradient, layer by layer."""
        for layer, x, gradient in zip(block, self.inputs, self.gradients, strict=True):
            leaf = x.detach().requires_grad_()
            out = layer(leaf)
            out.backward(gradient)
            assert leaf.grad is not None
            yield out.detach(), leaf.grad


def errors(work: Work, block: list[nn.Module], plain: list[nn.Linear]) -> dict[str, float]:
    """Relative errors of outputs and input gradients over the whole block."""
    sums = dict.fromkeys(("output", "output_size", "gradient", "gradient_size"), 0.0)
    for (out, back), (true_out, true_back) in zip(work.results(block), work.results(plain), strict=True):
        sums["output"] += float((out - true_out).square().sum(dtype=torch.float64))
        sums["output_size"] += float(true_out.square().sum(dtype=torch.float64))
        sums["gradient"] += float((back - true_back).square().sum(dtype=torch.float64))
        sums["gradient_size"] += float(true_back.square().sum(dtype=torch.float64))
    return {
        "output_error": round((sums["output"] / sums["output_size"]) ** 0.5, 6),
        "gradient_error": round((sums["gradient"] / sums["gradient_size"]) ** 0.5, 6),
    }


def storages(thing: Any) -> dict[int, int]:
    """Bytes by address of every storage that `thing` holds, through tensor subclasses and states of libraries."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            if hasattr(one, "__tensor_flatten__"):
                waiting += [getattr(one, name) for name in one.__tensor_flatten__()[0]]
            else:
                storage = one.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
            waiting += vars(one).values()
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif type(one).__module__.startswith(OWN) and hasattr(one, "__dict__"):
            waiting += vars(one).values()
    return found


def packed_bytes(block: list[nn.Module]) -> int:
    """Bytes of the copies that int8 products keep in the form that fbgemm wants, outside any tensor."""
    from backends.int8 import packed

    copies = [(layer.weight.numel(), packed._copies.get(layer.weight)) for layer in block]  # noqa: SLF001
    return sum(weights * len(found.packed) for weights, found in copies if found is not None)


def kept_bytes(work: Work, block: list[nn.Module]) -> int:
    """Bytes that wait for the backward pass beside the inputs, the outputs and what the layers hold anyway."""
    owned = storages([*block, *work.inputs])
    kept: list[Any] = []
    outputs = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for layer, x in zip(block, work.inputs, strict=True):
            outputs.append(layer(x.detach().requires_grad_()))
    kept += [_kept_on_the_side(out.grad_fn) for out in outputs]
    owned |= storages(outputs)
    return sum(size for address, size in storages(kept).items() if address not in owned)


def _kept_on_the_side(node: Any) -> list[Any]:
    """Attributes that the Python functions of a graph put on their contexts, where no hook sees them."""
    states, waiting = [], [node]
    while waiting:
        one = waiting.pop()
        states += getattr(one, "__dict__", {}).values()
        waiting += [following for following, _ in one.next_functions if following is not None]
    return states


def measure(plain: list[nn.Linear], blocks: dict[str, list[nn.Module]], work: Work, rounds: int) -> dict[str, Any]:
    """The figures of every block for one number of tokens."""
    held = {name: kept_bytes(work, block) for name, block in blocks.items()}
    wrong = {name: errors(work, block, plain) for name, block in blocks.items()}  # and warms up
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in blocks}
    for number in range(rounds):
        for name, block in blocks.items():
            times[name].append(work.run(block))
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {name: {**_speed(times[name], times[BASELINE]), "bytes_kept": held[name], **wrong[name]} for name in blocks}


def _speed(taken: list[tuple[float, float]], base: list[tuple[float, float]]) -> dict[str, Any]:
    wall, cpu = ([each[number] for each in taken] for number in (0, 1))
    ratios = [mine[0] / theirs[0] for mine, theirs in zip(taken, base, strict=True)]
    cpu_ratios = [mine[1] / theirs[1] for mine, theirs in zip(taken, base, strict=True)]
    return {
        "ms": {"min": round(1000 * min(wall), 1), "median": round(1000 * statistics.median(wall), 1)},
        "cpu_seconds": {"min": round(min(cpu), 3), "median": round(statistics.median(cpu), 3)},
        "ratio": {
            "of_minima": round(min(wall) / min(each[0] for each in base), 3),
            "median_of_rounds": round(statistics.median(ratios), 3),
            "cpu_median": round(statistics.median(cpu_ratios), 3),
        },
    }


# ---------------------------------------------------------------- telling


def tell(figures: dict[str, Any]) -> None:
    """Print a table for each number of tokens."""
    for tokens, rows in figures["tokens"].items():
        print(f"\n{tokens} tokens{'':<24}{'ms min':>8}{'x min':>7}{'x med':>7}{'x cpu':>7}", end="")
        print(f"{'MB held':>9}{'MB kept':>9}{'output':>10}{'gradient':>10}")
        for name, row in rows.items():
            ratio = row["ratio"]
            print(
                f"{name:<34}{row['ms']['min']:>8.0f}{ratio['of_minima']:>7.2f}{ratio['median_of_rounds']:>7.2f}"
                f"{ratio['cpu_median']:>7.2f}{figures['weight_bytes'][name] / 1e6:>9.1f}{row['bytes_kept'] / 1e6:>9.1f}"
                f"{row['output_error']:>10.5f}{row['gradient_error']:>10.5f}"
            )
    for name, reason in figures["left_out"].items():
        print(f"{name:<34}left out: {reason}")


def _versions() -> dict[str, str]:
    known = {"python": platform.python_version()}
    for name in ("torch", "bitsandbytes", "torchao", "optimum-quanto"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[name] = metadata.version(name)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=3072, help="hidden size of the block, a multiple of 384")
    parser.add_argument("--tokens", default="512,128", help="numbers of tokens, by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--try", dest="tried", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tried:
        trial(options.tried)
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    plain = plain_block(options.width)
    left_out = {name: reason for name in VARIANTS if name != BASELINE and (reason := why_not(name))}
    blocks = {name: build(name, plain) for name in VARIANTS if name not in left_out}
    first = Work.random(options.width, 8)
    for block in blocks.values():
        first.run(block)  # some peers arrange their weights at the first call
    held = {name: sum(storages(block).values()) + packed_bytes(block) for name, block in blocks.items()}
    figures = {
        "width": options.width,
        "layers": dict(zip(LAYERS, shapes(options.width), strict=True)),
        "threads": options.threads,
        "rounds": options.rounds,
        "weight_bytes": held,
        "tokens": {
            tokens: measure(plain, blocks, Work.random(options.width, int(tokens)), options.rounds)
            for tokens in options.tokens.split(",")
        },
        "left_out": left_out,
        "command": "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": _versions(),
    }
    tell(figures)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
