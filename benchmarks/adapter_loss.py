"""Figure: how far the reported held-out loss is from what the saved adapter gives under plain PEFT, on every base.

Run as: python benchmarks/adapter_loss.py [--run OUT --dataset DIR]
Without --run it first trains one: the demo's small model and settings on this repository (some minutes).
Nothing of `jobs.training` or `jobs.loss` is used, and training happened in another process: rows are read from disk and
the model's own logits are taken, one row at a time. Beside the base as it was trained on, the same adapter is loaded on
the base in full precision and in every other quantisation: the gap is what moving between machines costs.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from backends import models
from jobs import shards

# Training sums float32 log-probabilities, this float64: over 49152 tokens of vocabulary they differ by 2e-5 a token.
TOLERANCE = 1e-4
#: Ways to hold a base that an adapter may be loaded on.
KINDS = frozenset(("none", "int8", "int4", "nf4"))

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "adapter_loss.json"


def main() -> int:
    arguments = _parse()
    if arguments.run:
        return _compare(arguments.run, arguments.dataset)
    with tempfile.TemporaryDirectory() as folder:
        run, dataset = Path(folder) / "run", Path(folder) / "dataset"
        _train(run, dataset)
        return _compare(run, dataset)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder that `repotune train` wrote")
    parser.add_argument("--dataset", type=Path, help="folder that `repotune dataset` wrote, for --run")
    arguments = parser.parse_args()
    if bool(arguments.run) != bool(arguments.dataset):
        parser.error("--run and --dataset go together")
    return arguments


def _train(run: Path, dataset: Path) -> None:
    script = ROOT / "examples" / "demo_model.py"
    found = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    common = ["--model", found.stdout.strip(), "--config", ROOT / "examples" / "demo.yaml"]
    repotune = Path(sys.executable).with_name("repotune")
    subprocess.run([repotune, "dataset", "--repo", ROOT, *common, "--output", dataset], check=True)
    subprocess.run([repotune, "train", "--device", "cpu", "--dataset", dataset, *common, "--output", run], check=True)


def _compare(run: Path, dataset: Path) -> int:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    trained_on = result["quantization"]
    rows = shards.open_dataset(dataset).held_out
    count = result["held_out_rows"]
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    losses = {kind: _loss_on(kind, run, result, chosen) for kind in (trained_on, *(KINDS - {trained_on}))}
    loss, tokens = losses[trained_on]
    difference = abs(loss - result["loss_after"])
    figures = {
        "base": trained_on,
        "before_training": result["loss_before"],
        "reported": result["loss_after"],
        "recomputed": loss,
        "difference": difference,
        "perplexity": math.exp(loss),
        "held_out_tokens": tokens,
        "gap_on_other_bases": {kind: other - loss for kind, (other, _) in losses.items() if kind != trained_on},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
        "machine": platform.platform(),
    }
    print(json.dumps(figures, indent=2))
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if difference <= TOLERANCE and tokens == result["held_out_tokens"] else 1


def _loss_on(kind: str, run: Path, result: dict[str, Any], rows: list[shards.Row]) -> tuple[float, int]:
    base = models.load_base(
        result["model"],
        result["revision"],
        dtype=torch.float32,
        device="cpu",
        quantization_config=_config(kind, result),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name of yesterday
        model = PeftModel.from_pretrained(base, run / result["adapter"]).eval()
    return _mean_loss(model, rows)


def _config(kind: str, result: dict[str, Any]) -> Any:
    """What transformers takes to hold the base as the run did."""
    if kind in ("int8", "int4"):
        from backends.int8 import Int8Config

        return Int8Config(group_size=result["group_size"]) if kind == "int8" else Int8Config(group_size=64, bits=4)
    if kind == "nf4":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return None


def _mean_loss(model: Any, rows: list[shards.Row]) -> tuple[float, int]:
    """The mean over label tokens, from the model's own logits, and how many those are."""
    total, tokens = 0.0, 0
    for row in rows:
        targets = torch.from_numpy(shards.labels(row.ids, row.flags))[1:]
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(row.ids)[None],
                position_ids=torch.from_numpy(shards.position_ids(row.flags))[None],
                use_cache=False,
            ).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum").item()
        tokens += int((targets != shards.IGNORED).sum())
    return total / tokens, tokens


if __name__ == "__main__":
    sys.exit(main())
