"""Figure: does a demo-sized training help on commits that were written after all it has seen?

Run as: python benchmarks/future_loss.py [--repo PATH --name psf/requests] [--tokens 131072]

One adapter of a small model is trained on our default dataset of a repository, up to the commit where that ends
(`dataset_worth.py` trains it, and goes on with what is in --work). What the commits after it added is then measured as
`repotune evaluate` does: base and adapter on the same documents, the difference with its paired bootstrap interval over
files. The figure holds where the whole interval lies below 0. The figures of a repository replace those of an earlier
run in benchmarks/results/future_loss.json.
"""

import argparse
import os
import platform
import sys
from importlib import metadata
from typing import Any

import dataset_worth as worth
import torch

from backends.devices import Device
from backends.registry import open_backend
from jobs import config
from jobs.adapter_evaluation import evaluate
from jobs.context import JobContext
from jobs.evaluate import write_evaluation
from jobs.events import Event, Note
from jobs.published import open_published

RESULTS = worth.ROOT / "benchmarks" / "results" / "future_loss.json"
_METRICS = ("loss", "perplexity", "bits_per_byte", "next_line_exact", "fim_exact", "fim_similarity")


def main() -> int:
    figures = worth.measured(_options(), run, RESULTS)
    return 0 if figures["holds"] else 1


def _options() -> argparse.Namespace:
    described = worth.parser(__doc__, arms=["ours"], tokens=131_072, seeds=[17])
    described.add_argument("--learning-rate", type=float, default=5e-4)
    described.add_argument("--accumulation", type=int, default=4, help="rows of an optimizer step")
    described.add_argument("--own-rows", type=int, default=8, help="held-out rows measured before and after training")
    described.add_argument("--rows", type=int, default=256, help="rows evaluated at most, of each split")
    described.add_argument("--prompts", type=int, default=32, help="places to complete")
    described.add_argument("--threads", type=int, default=os.cpu_count())
    options = described.parse_args()
    torch.set_num_threads(options.threads)
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train what is not there yet, evaluate it; the figures."""
    arm, seed = options.arms[0], options.seeds[0]
    data = worth.dataset(arm, options)
    trained = worth.train(arm, seed, options)
    adapter = worth.run_folder(arm, seed, options) / trained["adapter"]
    settings = [
        f"model.name={options.model}",
        "quantization.kind=none",
        f"evaluation.rows={options.rows}",
        f"evaluation.future_rows={options.rows}",
        f"evaluation.prompts={options.prompts}",
        "evaluation.minutes=120",
    ]
    chosen = config.load_config(None, settings).for_device(Device.CPU)
    context = JobContext(output=options.work, emit=_tell)
    found = evaluate(chosen, data, open_published(adapter), open_backend("none", Device.CPU), Device.CPU, context)
    write_evaluation(adapter.parent, found)
    high = found["splits"]["future"]["difference"]["loss"]["high"]
    return {
        "holds": high is not None and high < 0,
        "steps": trained["steps"],
        "tokens_trained_on": trained["steps"] * options.accumulation * options.length,
        "splits": {split: _told(one) for split, one in found["splits"].items()},
        "bounds": found["bounds"],
        "command": worth.typed("future_loss.py"),
        "versions": {name: metadata.version(name) for name in ("repotune", "torch", "transformers", "peft")},
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def _told(scores: dict[str, Any]) -> dict[str, Any]:
    counts = {name: scores[name] for name in ("documents", "tokens", "bytes")}
    rows = {
        name: {"base": scores["base"][name], "adapter": scores["adapter"][name], **scores["difference"][name]}
        for name in _METRICS
        if scores["base"][name] is not None
    }
    return counts | rows


def _tell(event: Event) -> None:
    if isinstance(event, Note):
        print(f"  {event.message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
