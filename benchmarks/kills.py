"""Figure: runs that are killed at random instants and resumed end as one that never was. Target: 30 of 30, bit for bit.

Run as: python benchmarks/kills.py [--kills 30] [--stops 3] [--points all] [--quantization int8] [--seed 17]

A tiny model with dropout trains on the CPU, with checkpoints, measurements and the best one kept. Each run is a process
of its own; it gets SIGKILL at an instant drawn evenly over the time of an undisturbed run, is started again to go on,
and its losses, learning rates, gradient norms, tokens, measurements and the bytes of its adapter are compared with the
undisturbed run's. --stops pauses runs (SIGSTOP) for a while instead. --points kills before and after every call that
makes something on disk stand (rename, replace, fsync), in all runs of checkpoint, adapter and result; a number takes so
many of them. Processes are forked from one that has imported torch and computed nothing: a start costs no imports.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from backends.devices import Device
from backends.registry import open_backend
from jobs import shards
from jobs.context import JobContext
from jobs.spec import Config
from jobs.training import train

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "kills.json"
TARGET = 30
LENGTH, VOCABULARY = 32, 96
COMPARED = ("step", "loss", "lr", "grad_norm", "tokens")
RESULTS = ("steps", "tokens", "published_step", "loss_before", "loss_after", "best_loss")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")

#: What makes a file or a folder stand; a process may die before or after each.
CALLS = ("rename", "replace", "fsync")


@dataclass(frozen=True)
class Bench:
    """What every run of this benchmark has in common."""

    config: Config
    dataset: Path
    folder: Path


def main() -> int:
    options = _parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(Path(folder), options.quantization)
        began = time.monotonic()
        _finish(bench, bench.folder / "straight", resume=False)
        seconds = time.monotonic() - began
        straight = _outcome(bench.folder / "straight")
        draw = random.Random(options.seed)  # noqa: S311 - no secret
        figures: dict[str, Any] = {"seconds_of_a_run": round(seconds, 2), "steps": len(straight["steps"])}
        figures["kills"] = _tell("kills", _killed(bench, options.kills, lambda: draw.uniform(0, seconds), straight))
        pauses = [draw.uniform(0, seconds) for _ in range(options.stops)]
        figures["stops"] = _tell("stops", _stopped(bench, pauses, straight))
        figures["points"] = _tell("points", _at_points(bench, options.points, straight))
    return _report(figures, options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=TARGET)
    parser.add_argument("--stops", type=int, default=3)
    parser.add_argument("--points", default="40", help="how many, evenly spaced; 'all' takes an hour")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="where to write them")
    return parser.parse_args()


# ---- the run ----


def _bench(folder: Path, quantization: str) -> Bench:
    model, dataset = folder / "model", folder / "dataset"
    _in_process(lambda: _write_model(model))
    _write_dataset(dataset)
    config = Config.model_validate(
        {
            "model": {"name": str(model)},
            "quantization": {"kind": quantization, "group_size": 32},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.05},
            "optimization": {"learning_rate": 5e-3, "micro_batch": 2, "accumulation": 2},
            "training": {"epochs": 4, "checkpoint_every_steps": 3, "evaluate_every_steps": 5},
            "output": {"keep_checkpoints": 1},
        }
    )
    return Bench(config, dataset, folder)


def _write_model(folder: Path) -> None:
    torch.manual_seed(17)
    config = Starcoder2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.1,
        residual_dropout=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    Starcoder2ForCausalLM(config).save_pretrained(folder)


def _write_dataset(folder: Path) -> None:
    draw = np.random.default_rng(3)
    files, splits = {}, {}
    for split, rows in (("train", 30), ("held_out", 5)):
        with shards.ShardWriter(folder, split, LENGTH, "uint16") as writer:
            for _ in range(rows):
                flags = np.full(LENGTH, shards.LABEL, dtype=np.uint8)
                flags[[0, draw.integers(2, LENGTH - 8)]] = shards.DOCUMENT_START
                writer.append((np.arange(LENGTH) * 3 + draw.integers(0, VOCABULARY)) % VOCABULARY, flags)
        files |= writer.files
        splits[split] = {"rows": rows, "tokens": rows * LENGTH}
    manifest = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": LENGTH, "commit": "c" * 40}
    shards.write_manifest(folder, manifest)


def _train(bench: Bench, output: Path, *, resume: bool) -> None:
    context = JobContext(output=output, emit=lambda _event: None)
    backend = open_backend(bench.config.quantization.kind, Device.CPU)
    resume_from = output / "checkpoints" if resume else None
    train(bench.config, bench.dataset, backend, Device.CPU, context, resume_from=resume_from)


def _outcome(output: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((output / "result.json").read_text())
    return {
        "steps": [[line[key] for key in COMPARED] for line in lines],
        "result": {key: result[key] for key in RESULTS},
        "adapter": {name: (output / "adapter" / name).read_bytes() for name in ADAPTER},
    }


# ---- processes ----


def _fork(action: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        action()
    except BaseException:  # noqa: BLE001 - the child must never return into its parent's program
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _in_process(action: Callable[[], None]) -> int:
    """How a process that did `action` ended: 0, or what `os.waitstatus_to_exitcode` gives."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(action), 0)[1])


def _finish(bench: Bench, output: Path, *, resume: bool) -> None:
    code = _in_process(lambda: _train(bench, output, resume=resume))
    assert code == 0, f"a run that nobody disturbed ended with {code}"


# ---- what is done to them ----


def _killed(bench: Bench, kills: int, draw: Callable[[], float], straight: dict[str, Any]) -> Iterator[bool]:
    for number in range(kills):
        output = bench.folder / f"killed-{number}"
        while not _dies(bench, output, draw()):
            shutil.rmtree(output)
        _finish(bench, output, resume=True)
        yield _outcome(output) == straight


def _dies(bench: Bench, output: Path, instant: float) -> bool:
    """Whether the kill came before the run had ended: one may be faster than the one whose time was taken."""
    child = _fork(lambda: _train(bench, output, resume=False))
    time.sleep(instant)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _stopped(bench: Bench, instants: list[float], straight: dict[str, Any]) -> Iterator[bool]:
    for number, instant in enumerate(instants):
        output = bench.folder / f"stopped-{number}"
        child = _fork(lambda output=output: _train(bench, output, resume=False))  # type: ignore[misc]
        time.sleep(instant)
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(child, signal.SIGCONT)
        yield os.waitpid(child, 0)[1] == 0 and _outcome(output) == straight


def _at_points(bench: Bench, wanted: str, straight: dict[str, Any]) -> Iterator[bool]:
    counted = bench.folder / "points"
    assert _in_process(lambda: _train_counting(bench, bench.folder / "counted", counted)) == 0
    total = 2 * int(counted.read_text())
    count = total if wanted == "all" else min(int(wanted), total)
    for point in (number * total // count for number in range(count)):
        output = bench.folder / f"point-{point}"
        code = _in_process(lambda output=output, point=point: _train_to_point(bench, output, point))  # type: ignore[misc]
        assert code == -signal.SIGKILL, f"point {point} of {total} was not reached: {code}"
        _finish(bench, output, resume=True)
        yield _outcome(output) == straight


def _train_counting(bench: Bench, output: Path, file: Path) -> None:
    calls = 0

    def count(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return call(*arguments, **options)

    _watch_calls(count)
    _train(bench, output, resume=False)
    file.write_text(str(calls))


def _train_to_point(bench: Bench, output: Path, point: int) -> None:
    """Train until before (even) or after (odd) call `point // 2`, and die there."""
    calls = -1

    def die(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if 2 * calls == point:
            os.kill(os.getpid(), signal.SIGKILL)
        value = call(*arguments, **options)
        if 2 * calls + 1 == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    _watch_calls(die)
    _train(bench, output, resume=False)


def _watch_calls(watch: Callable[..., Any]) -> None:
    for name in CALLS:
        call = getattr(os, name)
        setattr(os, name, lambda *arguments, call=call, **options: watch(call, *arguments, **options))


# ---- telling ----


def _tell(what: str, outcomes: Iterator[bool]) -> dict[str, int]:
    equal = done = 0
    for outcome in outcomes:
        done += 1
        equal += outcome
        print(f"{what}: {equal} of {done} end bit-equal", flush=True)
    return {"runs": done, "bit_equal": equal}


def _report(figures: dict[str, Any], options: argparse.Namespace) -> int:
    figures |= {
        "quantization": options.quantization,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
        "machine": platform.platform(),
    }
    print(json.dumps(figures, indent=2))
    options.figures.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if all(figures[what]["runs"] == figures[what]["bit_equal"] for what in ("kills", "stops", "points")) else 1


if __name__ == "__main__":
    sys.exit(main())
