"""Whether the adapter, loaded by plain PEFT in a process of its own, has the held-out loss that its run reported.

    python benchmarks/adapter_loss.py --run OUT --dataset DIR [--base as-trained|full]

OUT is the folder that `repotune train` wrote. Nothing of `jobs.training` or `jobs.loss` is used: rows are read from
disk, the model's own logits are taken, one row at a time, in float32. `--base as-trained` (the default) holds the base
as the run did; `--base full` shows what the adapter gives on the unquantised base.
"""

import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from backends import models
from backends.devices import Device
from backends.hardware import precision
from jobs import shards

TOLERANCE = 1e-4


def main() -> int:
    arguments = _parse()
    result = json.loads((arguments.run / "result.json").read_text(encoding="utf-8"))
    kind = result["quantization"] if arguments.base == "as-trained" else "none"
    base = models.load_base(
        result["model"],
        result["revision"],
        dtype=torch.float32,
        device="cpu",
        quantization_config=_config(kind, result),
    )
    adapter = arguments.run / result["adapter"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name of yesterday
        model = PeftModel.from_pretrained(base, adapter).eval()
    rows = shards.open_dataset(arguments.dataset).held_out
    count = result["held_out_rows"]
    loss, tokens = _mean_loss(model, [rows[number * len(rows) // count] for number in range(count)])
    difference = abs(loss - result["loss_after"])
    print(
        json.dumps(
            {
                "benchmark": "adapter_loss",
                "base": kind,
                "reported": result["loss_after"],
                "recomputed": loss,
                "difference": difference,
                "perplexity": math.exp(loss),
                "tokens": tokens,
                "torch": torch.__version__,
                "compute": str(precision(Device.CPU).dtype),
            }
        )
    )
    if arguments.base == "as-trained" and (difference > TOLERANCE or tokens != result["held_out_tokens"]):
        print(f"The recomputed loss differs from the reported one by {difference:.2e}.", file=sys.stderr)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder that `repotune train` wrote")
    parser.add_argument("--dataset", type=Path, required=True, help="folder that `repotune dataset` wrote")
    parser.add_argument("--base", choices=["as-trained", "full"], default="as-trained")
    return parser.parse_args()


def _config(kind: str, result: dict[str, Any]) -> Any:
    """What transformers takes to hold the base as the run did."""
    if kind == "int8":
        from backends.int8 import Int8Config

        return Int8Config(group_size=result["group_size"])
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
