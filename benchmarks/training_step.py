"""Figure: one whole training step (forward, loss, backward, clipping, optimizer) beside PEFT's and TRL's.

Run as: python benchmarks/training_step.py [--shape smollm2|starcoder2] [--rounds 7] [--only NAME,NAME]

`smollm2` is the demo's real model (135 M) on real text, `starcoder2` four layers of StarCoder2-3B's shape with random
weights. LoRA of rank 16 on all linear layers, one row of 512 tokens, no checkpointing unless a name says so, two
threads. Ours is `jobs.training.train` itself and TRL's is `SFTTrainer.train`, each held between its steps; PEFT's is
the usual loop of eight lines. Each variant lives in its own process, as peak memory is a process's; they step in turns
(interleaved rounds), the others asleep.

Memory: the peak of anonymous bytes during the second step, sampled by this process every millisecond; `above_imports`
is without what the process had before it loaded the model. That step is not timed. The loss of the first step shows
that all of them compute the same thing. Needs `pip install --group peers`; a peer that is absent is a row that says so.
"""

import argparse
import contextlib
import json
import os
import platform
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "training_step.json"
BASELINE = "PEFT fp32"
TOKENS = 512
RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-4
INT8_PRODUCTS = ("quantization.compute=int8", "quantization.group_size=row")
#: Rows that a dataset holds: more than anyone will step.
ENOUGH = 200
#: OpenMP's threads stay as users have them: told to sleep at once, a step of many small products took up to 1.7 x.
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
FIRST_REPLY_SECONDS = 600.0


# ---------------------------------------------------------------- the process of one variant


@dataclass(frozen=True)
class Case:
    """What a variant trains on: a model's folder, and one row of tokens in the forms that trainers read."""

    model: str
    dataset: Path
    work: Path

    @property
    def ids(self) -> list[int]:
        """The row."""
        ids: list[int] = json.loads((self.dataset.parent / "row.json").read_text())
        return ids


class Baton:
    """The variant's end of the pipe: it waits for its turn, steps, and says what the step took."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever a library prints is not a reply
        self._wall = self._cpu = 0.0

    def tell(self, **reply: Any) -> None:
        """Send a reply."""
        self._replies.write(json.dumps(reply) + "\n")

    def begin(self) -> None:
        """Wait for the turn; leave when there are no more."""
        if sys.stdin.readline().strip() != "go":
            os._exit(0)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def taken(self) -> dict[str, float]:
        """Seconds since the turn began."""
        return {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}


def ours(case: Case, baton: Baton, *settings: str) -> None:
    """`jobs.training.train`, held where it tells of a step."""
    from backends.devices import Device
    from backends.registry import open_backend
    from jobs import config, training
    from jobs.context import JobContext
    from jobs.events import Event, StageStarted, StepDone

    chosen = config.load_config(None, [*_our_settings(case), *settings]).for_device(Device.CPU)
    backend = open_backend(chosen.quantization.kind, Device.CPU)
    baton.tell(state="imported")
    baton.begin()

    def emit(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "train":
            baton.tell(state="loaded")
            baton.begin()
        if isinstance(event, StepDone):
            baton.tell(loss=event.loss, **baton.taken())
            baton.begin()

    training.train(chosen, case.dataset, backend, Device.CPU, JobContext(output=case.work / "run", emit=emit))


def _our_settings(case: Case) -> list[str]:
    return [
        f"model.name={case.model}",
        f"lora.rank={RANK}",
        f"lora.alpha={ALPHA}",
        f"dataset.sequence_length={TOKENS}",
        f"optimization.learning_rate={LEARNING_RATE}",
        "optimization.accumulation=1",
        "training.gradient_checkpointing='off'",
        "training.evaluation_rows=1",
        "training.checkpoint_every_minutes=1000",
        "training.checkpoint_every_steps=1000000",
    ]


def peft(case: Case, baton: Baton, quantization: Callable[[], Any] = lambda: None) -> None:
    """PEFT as its documentation writes the loop."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    config = quantization()
    adapter = lora()
    baton.tell(state="imported")
    baton.begin()
    model = AutoModelForCausalLM.from_pretrained(
        case.model, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=config
    )
    model = get_peft_model(model, adapter).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
    ids = torch.tensor([case.ids])
    baton.tell(state="loaded")
    while True:
        baton.begin()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        baton.tell(loss=loss.item(), **baton.taken())
        del loss


def lora() -> Any:
    """The adapter of every peer."""
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def _nf4() -> Any:
    import bitsandbytes  # noqa: F401 - an absent library is told before the model is loaded
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def turns(baton: Baton) -> Any:
    """A callback that holds a trainer of transformers between its steps."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        took: dict[str, float]

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            baton.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.took = baton.taken()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                baton.tell(loss=logs["loss"], **self.took)

    return Turns()


def trl(case: Case, baton: Baton, *, checkpointing: bool = False) -> None:
    """`SFTTrainer.train` with its own defaults, held by a callback between its steps."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        output_dir=str(case.work / "trl"),
        per_device_train_batch_size=1,
        max_steps=ENOUGH,
        max_length=TOKENS,
        learning_rate=LEARNING_RATE,
        gradient_checkpointing=checkpointing,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    rows = datasets.Dataset.from_dict({"input_ids": [case.ids] * ENOUGH})
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    baton.tell(state="imported")
    baton.begin()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32, device_map={"": "cpu"}),
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora(),
        callbacks=[turns(baton)],
    )
    baton.tell(state="loaded")
    trainer.train()


VARIANTS: dict[str, Callable[[Case, Baton], None]] = {
    BASELINE: peft,
    "PEFT + bitsandbytes nf4": lambda case, baton: peft(case, baton, _nf4),
    "PEFT + torchao int8": lambda case, baton: peft(case, baton, _torchao),
    "TRL SFT fp32": trl,
    "TRL SFT fp32, checkpointing": lambda case, baton: trl(case, baton, checkpointing=True),
    "repotune int8": lambda case, baton: ours(case, baton, "quantization.kind=int8"),
    "repotune int4": lambda case, baton: ours(case, baton, "quantization.kind=int4"),
    "repotune none": lambda case, baton: ours(case, baton, "quantization.kind=none"),
    "repotune int8 compute": lambda case, baton: ours(case, baton, "quantization.kind=int8", *INT8_PRODUCTS),
}


def serve(variant: Callable[[Case, Baton], None], case: Case) -> None:
    """Run one variant until the pipe ends."""
    baton = Baton()
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(1)
    try:
        variant(case, baton)
    except ImportError as error:
        traceback.print_exc()
        baton.tell(error=f"not installed: {error.name or error}")
    except Exception as error:  # noqa: BLE001 - a variant that fails is a row
        lines = str(error).strip().splitlines() or [""]
        baton.tell(error=f"{type(error).__name__}: {lines[0][:300]}")


# ---------------------------------------------------------------- the process that measures


class Process:
    """A variant's process, seen from outside."""

    def __init__(self, name: str, case: Case, script: str) -> None:
        folder = str(case.work.parent)
        command = [sys.executable, script, "--serve", name, "--model", case.model, "--folder", folder]
        self._log = (case.work / "log").open("w+")
        self._process = subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self._seen = psutil.Process(self._process.pid)
        self._replies: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(json.dumps({"error": f"the process ended: {self._last_words()}"}))

    def _last_words(self) -> str:
        self._log.seek(0)
        return next((line.strip() for line in reversed(self._log.readlines()) if line.strip()), "without a word")

    def reply(self, seconds: float = FIRST_REPLY_SECONDS) -> dict[str, Any]:
        """The next reply, or an error."""
        try:
            answer: dict[str, Any] = json.loads(self._replies.get(timeout=seconds))
        except queue.Empty:
            self.end()
            return {"error": f"no answer within {seconds:.0f} s"}
        return answer

    def go(self) -> None:
        """Give it its turn."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")

    def memory(self) -> int:
        """Anonymous bytes that it holds now: weights and activations, not libraries and files mapped."""
        if not sys.platform.startswith("linux"):
            return int(self._seen.memory_full_info().uss)
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))

    def peak_of_a_step(self) -> tuple[int, dict[str, Any]]:
        """Let it step once; the most memory meanwhile, and its reply."""
        self.go()
        peak = 0
        while self._replies.empty():
            with contextlib.suppress(OSError, StopIteration, psutil.Error):  # it has ended
                peak = max(peak, self.memory())
            time.sleep(0.001)
        return peak, self.reply()

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def prepare(shape: str, folder: Path) -> str:
    """Put model, row and dataset into `folder`; the model's folder."""
    from transformers import AutoTokenizer

    found = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo_model.py"], check=True, capture_output=True, text=True
    )
    from backends import models

    source = models.model_folder(found.stdout.strip())
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = source
    if shape == "starcoder2":
        model = str(folder / "model")
        _save_starcoder2(Path(model))
        tokenizer.save_pretrained(model)
    text = (ROOT / "jobs" / "training.py").read_text(encoding="utf-8")
    ids = tokenizer(text)["input_ids"][:TOKENS]
    assert len(ids) == TOKENS
    (folder / "row.json").write_text(json.dumps(ids))
    _write_dataset(folder / "dataset", ids)
    return model


def _save_starcoder2(folder: Path) -> None:
    """Four layers of StarCoder2-3B's shape; bf16 on disk, so that every variant makes its own fp32."""
    import torch
    from transformers import AutoModelForCausalLM, Starcoder2Config

    torch.manual_seed(1)
    config = Starcoder2Config(
        num_hidden_layers=4,
        num_key_value_heads=2,
        num_attention_heads=24,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def _write_dataset(folder: Path, ids: list[int]) -> None:
    import numpy as np

    from jobs import shards

    row = np.array(ids, dtype=np.int64)
    flags = np.full(TOKENS, shards.LABEL, dtype=np.uint8)
    flags[0] = shards.DOCUMENT_START
    files, splits = {}, {}
    for split, rows in ((shards.TRAIN, ENOUGH), (shards.HELD_OUT, 1)):
        with shards.ShardWriter(folder, split, TOKENS, "uint16") as writer:
            for _ in range(rows):
                writer.append(row, flags)
        files |= writer.files
        splits[split] = {"rows": rows, "tokens": rows * TOKENS}
    manifest = {"files": files, "splits": splits, "dtype": "uint16", "sequence_length": TOKENS, "commit": "0" * 40}
    shards.write_manifest(folder, manifest)


@contextlib.contextmanager
def processes(names: list[str], folder: Path, model: str, script: str = __file__) -> Iterator[dict[str, Process]]:
    """One process a variant, all importing at once; `script` takes the flags of this file's --serve."""
    started = {}
    for name in names:
        case = Case(model, folder / "dataset", folder / name.replace(" ", "-"))
        case.work.mkdir()
        started[name] = Process(name, case, script)
    try:
        yield started
    finally:
        for process in started.values():
            process.end()


def measure(names: list[str], folder: Path, model: str, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Load them one after another, then let them step in turns; no new round once so many seconds have gone."""
    began = time.monotonic()
    rows: dict[str, dict[str, Any]] = {}
    times: dict[str, list[dict[str, float]]] = {}
    with processes(names, folder, model) as alive:
        for name, process in alive.items():
            rows[name] = warm_up(process)
            print(f"  {name}: {rows[name].get('error', 'ready')}", file=sys.stderr, flush=True)
        running = {name: process for name, process in alive.items() if "error" not in rows[name]}
        for number in range(rounds):
            for name, process in running.items():
                process.go()
                times.setdefault(name, []).append(process.reply())
                assert "wall" in times[name][-1], f"{name} ended between its steps: {times[name][-1]}"
            print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            if time.monotonic() - began > seconds:
                break
    for name, taken in times.items():
        rows[name] |= _summary(taken, times.get(BASELINE))
    return rows


def warm_up(process: Process) -> dict[str, Any]:
    """Load and step twice: the first step allocates the optimizer's state, the second is watched."""
    answer = process.reply()
    if "error" in answer:
        return {"error": answer["error"]}
    before = process.memory()
    for _ in ("load", "first step"):
        process.go()
        answer = process.reply()
        if "error" in answer:
            return {"error": answer["error"]}
    held = process.memory()
    peak, second = process.peak_of_a_step()
    if "error" in second:
        return {"error": second["error"]}
    megabytes = {"peak": peak, "above_imports": peak - before, "between_steps": held - before}
    return {
        "first_loss": round(answer["loss"], 4),
        "megabytes": {name: round(value / 1e6, 1) for name, value in megabytes.items()},
    }


def _summary(taken: list[dict[str, float]], base: list[dict[str, float]] | None) -> dict[str, Any]:
    wall, cpu = ([each[name] for each in taken] for name in ("wall", "cpu"))
    figures: dict[str, Any] = {
        "rounds": len(taken),
        "ms": {"min": round(1000 * min(wall)), "median": round(1000 * statistics.median(wall))},
        "cpu_seconds": {"min": round(min(cpu), 3), "median": round(statistics.median(cpu), 3)},
    }
    if base:
        ratios = [mine / theirs["wall"] for mine, theirs in zip(wall, base, strict=True)]
        cpu_ratios = [mine / theirs["cpu"] for mine, theirs in zip(cpu, base, strict=True)]
        fastest = min(each["wall"] for each in base)
        figures["time_ratio"] = {
            "of_minima": round(min(wall) / fastest, 3),
            "median_of_rounds": round(statistics.median(ratios), 3),
            "cpu_median": round(statistics.median(cpu_ratios), 3),
        }
    return figures


def _with_memory_ratios(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    base = rows.get(BASELINE, {}).get("megabytes")
    for row in rows.values():
        if base and "megabytes" in row:
            names = ("peak", "above_imports")
            row["memory_ratio"] = {name: round(row["megabytes"][name] / base[name], 3) for name in names}
    return rows


def tell(rows: dict[str, dict[str, Any]]) -> None:
    """Print a table."""
    print(f"{'':<28}{'ms min':>8}{'median':>8}{'CPU s':>7}{'x':>7}{'x cpu':>7}", end="")
    print(f"{'MB peak':>9}{'above':>7}{'x':>7}{'loss':>9}")
    for name, row in rows.items():
        if "ms" not in row:
            print(f"{name:<28} {row.get('error', 'never stepped')}")
            continue
        speed, memory, megabytes = row.get("time_ratio", {}), row.get("memory_ratio", {}), row["megabytes"]
        print(
            f"{name:<28}{row['ms']['min']:>8}{row['ms']['median']:>8}{row['cpu_seconds']['median']:>7.2f}"
            f"{speed.get('median_of_rounds', 0):>7.2f}{speed.get('cpu_median', 0):>7.2f}{megabytes['peak']:>9.0f}"
            f"{megabytes['above_imports']:>7.0f}{memory.get('above_imports', 0):>7.2f}{row['first_loss']:>9.4f}"
        )


def versions() -> dict[str, str]:
    known = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "torchao", "trl"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[name] = metadata.version(name)
    return known


def write(shape: str, rows: dict[str, dict[str, Any]]) -> None:
    """Keep the rows, each with the run that it is of; a ratio is to the baseline of the same run."""
    run = {
        "baseline_ms": rows[BASELINE].get("ms"),
        "command": "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "environment": ENVIRONMENT,
        "versions": versions(),
    }
    told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept = told.get(shape, {})
    told[shape] = {name: kept[name] for name in VARIANTS if name in kept}
    told[shape] |= {name: row | {"run": run} for name, row in rows.items()}
    RESULTS.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["smollm2", "starcoder2"], default="smollm2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3600, help="begin no round after so many")
    parser.add_argument("--only", help="beginnings of variants' names, by commas; the rows of others are kept")
    parser.add_argument("--serve", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        work = options.folder / options.serve.replace(" ", "-")
        serve(VARIANTS[options.serve], Case(options.model, options.folder / "dataset", work))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the variants' processes and the folder go as well
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    names = [name for name in VARIANTS if name == BASELINE or name.startswith(wanted)]
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(options.shape, Path(folder))
        rows = measure(names, Path(folder), model, options.rounds, options.seconds)
    tell(_with_memory_ratios(rows))
    write(options.shape, rows)


if __name__ == "__main__":
    main()
