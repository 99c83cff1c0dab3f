"""Figure: useful tokens a second, beside Hugging Face's Trainer with PEFT (unpacked) and TRL's SFTTrainer (packed).

Run as: python benchmarks/useful_tokens.py [--rounds 5] [--rows 8] [--only NAME,NAME]
Targets: at least 2 times the first and 1.3 times the second, on the same samples and model, in the same run.

Useful are the tokens that a sample asks to predict: padding is none, nor the head of a sample that is only read. All
train SmolLM2-135M by LoRA of rank 16 on the samples of the same rows of a dataset of this repository, with the same
labels, for one optimizer step a turn over all of them; processes take turns (see training_step.py). Rows have 512
tokens, two of them in a forward pass here and in TRL; the Trainer pads 8 samples a pass (its default) to the longest,
or takes one at a time, which pads nothing. The first loss, before any update, is the same for all who compute the same:
a packed batch whose samples see each other shows another one. Needs `pip install --group peers`.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import training_step as steps
from training_step import ALPHA, INT8_PRODUCTS, LEARNING_RATE, RANK, TOKENS, Baton, Case

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "useful_tokens.json"
#: Rows of a forward pass of those who pack.
MICRO_BATCH = 2
#: Epochs, each one step: more than anyone will take.
ENOUGH = 18
UNPACKED, PACKED = "HF Trainer + PEFT, unpacked", "TRL SFT, packed"
TARGETS = {UNPACKED: 2.0, PACKED: 1.3}
#: First losses that differ by more are of another computation.
SAME_LOSS = 2e-3


# ---------------------------------------------------------------- the process of one variant


def ours(case: Case, baton: Baton, *settings: str) -> None:
    """`jobs.training.train`, held where it tells of a step."""
    rows = json.loads((case.dataset / "manifest.json").read_text())["splits"]["train"]["rows"]
    steps.ours(
        case,
        baton,
        f"optimization.micro_batch={MICRO_BATCH}",
        f"optimization.accumulation={rows // MICRO_BATCH}",
        f"training.epochs={ENOUGH}",
        *settings,
    )


def trainer(case: Case, baton: Baton, *, batch: int) -> None:
    """Hugging Face's Trainer on a PEFT model: a batch is padded to its longest sample."""
    import datasets
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    samples = _samples(case)
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    lora = steps.lora()
    baton.tell(state="imported")
    baton.begin()
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32, device_map={"": "cpu"})
    made = Trainer(
        model=get_peft_model(model, lora),
        args=TrainingArguments(**_arguments(case, batch, -(-len(samples) // batch))),
        train_dataset=datasets.Dataset.from_list(samples),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[steps.turns(baton)],
    )
    baton.tell(state="loaded")
    made.train()


def trl(case: Case, baton: Baton) -> None:
    """TRL's SFTTrainer with its own packing (best-fit decreasing)."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer, pack_dataset

    samples = datasets.Dataset.from_list(_samples(case))
    rows = len(pack_dataset(samples, TOKENS, "bfd"))
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    baton.tell(state="imported")
    baton.begin()
    made = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32, device_map={"": "cpu"}),
        args=SFTConfig(**_arguments(case, MICRO_BATCH, -(-rows // MICRO_BATCH)), packing=True, max_length=TOKENS),
        train_dataset=samples,
        processing_class=tokenizer,
        peft_config=steps.lora(),
        callbacks=[steps.turns(baton)],
    )
    baton.tell(state="loaded")
    made.train()


def _samples(case: Case) -> list[dict[str, list[int]]]:
    samples: list[dict[str, list[int]]] = json.loads((case.dataset.parent / "samples.json").read_text())
    return samples


def _arguments(case: Case, batch: int, accumulation: int) -> dict[str, Any]:
    """One optimizer step an epoch; all else is the trainer's own default but what would cost it time."""
    return {
        "output_dir": str(case.work / "out"),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": ENOUGH,
        "learning_rate": LEARNING_RATE,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


VARIANTS: dict[str, Callable[[Case, Baton], None]] = {
    UNPACKED: lambda case, baton: trainer(case, baton, batch=8),
    "HF Trainer + PEFT, one at a time": lambda case, baton: trainer(case, baton, batch=1),
    PACKED: trl,
    "repotune none": lambda case, baton: ours(case, baton, "quantization.kind=none"),
    "repotune int8": lambda case, baton: ours(case, baton, "quantization.kind=int8"),
    "repotune int8 compute": lambda case, baton: ours(case, baton, "quantization.kind=int8", *INT8_PRODUCTS),
}


# ---------------------------------------------------------------- the process that measures


def prepare(folder: Path, count: int) -> tuple[str, dict[str, int]]:
    """Put rows and samples into `folder`; the model's folder, and what the samples come to."""
    from backends import models
    from jobs import shards

    script = ROOT / "examples" / "demo_model.py"
    found = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.strip()
    common = ["--model", found, "--config", ROOT / "examples" / "demo.yaml"]
    command = [Path(sys.executable).with_name("repotune"), "dataset", "--repo", ROOT, *common, "--output"]
    subprocess.run([*command, folder / "whole"], check=True, stdout=subprocess.DEVNULL)
    whole = shards.open_dataset(folder / "whole")
    rows = [whole.train[number * len(whole.train) // count] for number in range(count)]
    files, splits = {}, {}
    for split, chosen in ((shards.TRAIN, rows), (shards.HELD_OUT, [whole.held_out[0]])):
        with shards.ShardWriter(folder / "dataset", split, TOKENS, whole.manifest["dtype"]) as writer:
            for row in chosen:
                writer.append(row.ids, row.flags)
        files |= writer.files
        splits[split] = {"rows": len(chosen), "tokens": len(chosen) * TOKENS}
    manifest = {"files": files, "splits": splits, "dtype": whole.manifest["dtype"], "sequence_length": TOKENS}
    shards.write_manifest(folder / "dataset", manifest | {"commit": whole.manifest["commit"]})
    samples = [sample for row in rows for sample in _cut(row)]
    (folder / "samples.json").write_text(json.dumps(samples))
    lengths = sorted(len(sample["input_ids"]) for sample in samples)
    return models.model_folder(found), {
        "samples": len(samples),
        "tokens": sum(lengths),
        "useful_tokens": sum(label != shards.IGNORED for sample in samples for label in sample["labels"]),
        "median_length": lengths[len(lengths) // 2],
        "tokens_padded_to_longest": lengths[-1] * len(lengths),
    }


def _cut(row: Any) -> list[dict[str, list[int]]]:
    """The samples of a packed row, without its padding."""
    import numpy as np

    from jobs import shards

    starts = [*np.flatnonzero(row.flags & shards.DOCUMENT_START), len(row.ids)]
    labels = shards.labels(row.ids, row.flags)
    samples = []
    for start, end in pairwise(starts):
        if (row.flags[start:end] & shards.LABEL).any():
            samples.append({"input_ids": row.ids[start:end].tolist(), "labels": labels[start:end].tolist()})
    return samples


def measure(names: list[str], folder: Path, model: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Load them one after another, then let them step in turns."""
    rows: dict[str, dict[str, Any]] = {}
    times: dict[str, list[dict[str, float]]] = {}
    with steps.processes(names, folder, model, __file__) as alive:
        for name, process in alive.items():
            rows[name] = steps.warm_up(process)
            print(f"  {name}: {rows[name].get('error', 'ready')}", file=sys.stderr, flush=True)
        running = {name: process for name, process in alive.items() if "error" not in rows[name]}
        for number in range(rounds):
            for name, process in list(running.items()):
                process.go()
                reply = process.reply()
                if "wall" in reply:
                    times.setdefault(name, []).append(reply)
                else:  # the system ended it, most often for want of memory: the others go on
                    rows[name] = {"error": f"ended between its steps: {reply}"}
                    times.pop(name, None)
                    del running[name]
            print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for name, taken in times.items():
        rows[name]["seconds"] = {key: [round(each[key], 3) for each in taken] for key in ("wall", "cpu")}
    return rows


def with_ratios(rows: dict[str, dict[str, Any]], useful: int) -> dict[str, dict[str, Any]]:
    """Add useful tokens a second, and how many times each peer's they are: the median of the rounds' ratios."""
    for row in rows.values():
        if "seconds" not in row:
            continue
        row["useful_tokens_per_second"] = round(useful / statistics.median(row["seconds"]["wall"]), 1)
        row["times"] = {peer: _ratios(rows[peer], row) for peer in TARGETS if "seconds" in rows.get(peer, {})}
        base = rows.get("repotune none", {}).get("first_loss")
        if base is not None:
            row["same_loss"] = abs(row["first_loss"] - base) < SAME_LOSS
    return rows


def _ratios(peer: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
    pairs = {key: zip(peer["seconds"][key], row["seconds"][key], strict=True) for key in ("wall", "cpu")}
    return {key: round(statistics.median(theirs / mine for theirs, mine in pairs[key]), 3) for key in pairs}


def tell(rows: dict[str, dict[str, Any]], size: dict[str, int]) -> None:
    """Print a table."""
    print(", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in size.items()))
    print(f"{'':<36}{'tok/s':>8}{'CPU s':>8}{'x HF':>7}{'x TRL':>7}{'cpu x HF':>10}{'cpu x TRL':>10}{'loss':>9}")
    for name, row in rows.items():
        if "seconds" not in row:
            print(f"{name:<36} {row.get('error', 'never stepped')}")
            continue
        times = [row["times"].get(peer, {}) for peer in (UNPACKED, PACKED)]
        columns = "".join(f"{each.get('wall', 0):>7.2f}" for each in times)
        columns += "".join(f"{each.get('cpu', 0):>10.2f}" for each in times)
        cpu = statistics.median(row["seconds"]["cpu"])
        print(f"{name:<36}{row['useful_tokens_per_second']:>8.1f}{cpu:>8.2f}{columns}{row['first_loss']:>9.4f}")


def main() -> int:
    """Measure, print and keep; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8, help="packed rows whose samples all train on")
    parser.add_argument("--only", help="beginnings of variants' names, by commas")
    parser.add_argument("--serve", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        work = options.folder / options.serve.replace(" ", "-")
        steps.serve(VARIANTS[options.serve], Case(options.model, options.folder / "dataset", work))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the variants' processes and the folder go as well
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    with tempfile.TemporaryDirectory() as folder:
        model, size = prepare(Path(folder), options.rows)
        names = [name for name in VARIANTS if name.startswith(wanted)]
        rows = with_ratios(measure(names, Path(folder), model, min(options.rounds, ENOUGH - 3)), size["useful_tokens"])
    tell(rows, size)
    machine = f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    settings = {"rank": RANK, "alpha": ALPHA, "row_tokens": TOKENS, "micro_batch": MICRO_BATCH}
    run = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "versions": steps.versions(), **settings}
    RESULTS.write_text(json.dumps({"samples": size, "variants": rows, "run": run}, indent=2) + "\n", encoding="utf-8")
    reached = rows.get("repotune int8", {}).get("times", {})
    return 0 if all(reached.get(peer, {}).get("wall", 0) >= least for peer, least in TARGETS.items()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
