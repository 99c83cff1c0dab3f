"""What our dataset is worth: is an adapter trained on it better on future commits than one trained on random chunks?

Run as: python benchmarks/dataset_worth.py [--repo PATH --name psf/requests] [--tokens 131072] [--arms baseline ours]

Arms differ in the dataset alone; model, LoRA, steps, rows, learning rate and seed are the same. `baseline` is
random_chunks.py: the files as they were at the commit where our training ends, cut anywhere. `ours` is what
`repotune dataset` makes by default; the other arms differ from it by the settings that `OURS` names.

Measured is the mean loss, in nats a token, of the base and of each adapter on what the commits after that one added:

* `future split`: ours, as `repotune dataset` writes it, each piece below its file's path;
* `added lines`: so that nobody need trust ours: the newest text of every file that changed, tokenised as it is and cut
  into windows, no paths and no special tokens, counting the lines that `git diff` calls added.

Intervals of 95 % are bootstraps over files, paired: the same files for both arms. With several seeds a file's losses
are added up over them. `own held-out loss` is what each would tell of itself: random chunks look good by their own
measure, because their neighbours were trained on.

With --work everything stays in a folder and a next call goes on from there; several calls with --arms of their own
may share it. The figures of a repository replace those of an earlier run in benchmarks/results/dataset_worth.json.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from random_chunks import kept_files, texts, write_random_chunks

from backends import models
from backends.devices import Device
from backends.registry import open_backend
from jobs import config, repository, shards, training
from jobs.context import JobContext
from jobs.events import Evaluated, Event, StepDone
from jobs.results import RESULT
from jobs.saving import CHECKPOINTS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "dataset_worth.json"
BASE, BASELINE = "base", "baseline"
#: Arm -> settings of its dataset.
OURS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "no commits": ("dataset.commit_share=0",),
    "few commits": ("dataset.commit_share=0.1",),
    "more commits": ("dataset.commit_share=0.45",),
    "code": ("dataset.commit_share=0", "dataset.doc_share=0"),
    "more documentation": ("dataset.doc_share=0.25",),
    "few commits, more documentation": ("dataset.commit_share=0.1", "dataset.doc_share=0.25"),
}
RESAMPLES = 4000
_HUNK = re.compile(rb"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", re.MULTILINE)


@dataclass(frozen=True)
class Window:
    """A piece of one file."""

    path: str
    #: int64 [T]
    ids: NDArray[np.int64]
    #: bool [T]: which tokens are measured; never the first.
    measured: NDArray[np.bool_]


# ---- What is trained on ----------------------------------------------------------------------------------------------


def dataset(arm: str, options: argparse.Namespace) -> Path:
    """The folder of an arm's dataset, made where it is not there yet."""
    folder: Path = options.work / f"dataset {arm}"
    if (folder / shards.MANIFEST).exists():
        return folder
    if arm == BASELINE:
        ours = dataset("ours", options)
        manifest = shards.open_dataset(ours).manifest
        files = kept_files(repository.resolve(options.repo).git_dir, ours)
        write_random_chunks(folder, files, models.load_tokenizer(options.model), manifest, options.seeds[0])
        return folder
    settings = [f"dataset.sequence_length={options.length}", *OURS[arm]]
    command = [str(Path(sys.executable).with_name("repotune")), "dataset", "--repo", options.repo]
    command += ["--model", options.model, "--output", str(folder), "--json"]
    subprocess.run([*command, *(part for one in settings for part in ("--set", one))], check=True, stdout=sys.stderr)
    return folder


def train(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run, or the rest of it; what the trainer says of it."""
    output, data = run_folder(arm, seed, options), dataset(arm, options)
    settings = [
        f"model.name={options.model}",
        "quantization.kind=none",
        "lora.rank=16",
        "lora.alpha=32",
        f"dataset.sequence_length={options.length}",
        f"optimization.learning_rate={options.learning_rate}",
        f"optimization.accumulation={options.accumulation}",
        "optimization.warmup_ratio=0.1",
        f"training.max_steps={max(1, options.tokens // (options.length * options.accumulation))}",
        "training.epochs=1000",
        "training.checkpoint_every_steps=10",
        f"training.evaluation_rows={options.own_rows}",
        "training.gradient_checkpointing='off'",
        f"training.seed={seed}",
    ]
    if not (output / RESULT).exists():
        chosen = config.load_config(None, settings).for_device(Device.CPU)
        context = JobContext(output=output, emit=_teller(f"{arm}, seed {seed}"))
        known = output / CHECKPOINTS
        backend = open_backend("none", Device.CPU)
        training.train(chosen, data, backend, Device.CPU, context, known if known.is_dir() else None)
    result: dict[str, Any] = json.loads((output / RESULT).read_text(encoding="utf-8"))
    return result


def run_folder(arm: str, seed: int, options: argparse.Namespace) -> Path:
    """Where the run of an arm with a seed lies."""
    folder: Path = options.work / f"run {arm} {seed}"
    return folder


def _teller(name: str) -> Any:
    began = time.monotonic()

    def emit(event: Event) -> None:
        seconds = time.monotonic() - began
        if isinstance(event, StepDone):
            print(f"  {name}: step {event.step}, loss {event.loss:.3f}, {seconds:.0f} s", flush=True)
        if isinstance(event, Evaluated):
            print(f"  {name}: own held-out loss {event.loss:.4f} after {event.step} steps", flush=True)

    return emit


# ---- What is measured ------------------------------------------------------------------------------------------------


def future_windows(folder: Path) -> list[Window]:
    """The documents of our future split: none sees another in a row, so each can be measured by itself."""
    from pyarrow import parquet

    rows = shards.open_dataset(folder).future
    columns = ["split", "paths", "row", "place", "tokens"]
    samples = parquet.read_table(folder / "samples.parquet", columns=columns).to_pylist()
    windows = []
    for sample in (sample for sample in samples if sample["split"] == shards.FUTURE):
        row = rows[sample["row"]]
        part = slice(sample["place"], sample["place"] + sample["tokens"])
        windows.append(Window(sample["paths"][0], row.ids[part], (row.flags[part] & shards.LABEL).astype(np.bool_)))
    return windows


def added_windows(git_dir: Path, span: tuple[str, str], tokenizer: Any, length: int) -> list[Window]:
    """The text of the files that the second commit of `span` changed, cut every `length` tokens; added lines count."""
    newest = dict(texts(git_dir, span[1]))
    windows = []
    for path in changed_paths(git_dir, span):
        text = newest.get(path, "")
        lines = added_lines(git_dir, span, path)
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.array(encoding["input_ids"], np.int64)
        numbers = _line_numbers(text, [start for start, _ in encoding["offset_mapping"]])
        measured = np.array([number in lines for number in numbers], np.bool_)
        for start in range(0, len(ids), length):
            counted = measured[start : start + length].copy()
            counted[:1] = False
            if counted.any():
                windows.append(Window(path, ids[start : start + length], counted))
    return windows


def changed_paths(git_dir: Path, span: tuple[str, str]) -> list[str]:
    """Files that are new or altered between two commits; renamed ones are neither."""
    command = ["diff-tree", "-r", "-z", "-M", "--diff-filter=AM", "--name-only", *span]
    fields = repository.split_fields(repository.read_output(git_dir, span[1], command))
    return [field.decode("utf-8", "replace") for field in fields]


def added_lines(git_dir: Path, span: tuple[str, str], path: str) -> set[int]:
    """Numbers, from 1, of the lines of a file that its second version has and its first has not."""
    command = ["diff-tree", "-r", "-p", "-U0", "--no-ext-diff", "--no-textconv", *span, "--", f":(literal){path}"]
    patch = b"".join(repository.read_output(git_dir, span[1], command))
    found: set[int] = set()
    for start, count in _HUNK.findall(patch):
        found.update(range(int(start), int(start) + int(count or b"1")))
    return found


def _line_numbers(text: str, places: Sequence[int]) -> list[int]:
    """The line, from 1, on which each character lies; only a line feed ends one, as in git."""
    ends = np.array([place for place, letter in enumerate(text) if letter == "\n"], np.int64)
    return [int(number) + 1 for number in np.searchsorted(ends, np.array(places, np.int64))]


def some(windows: Sequence[Window], most: int) -> list[Window]:
    """At most so many of them, by lot, whatever the arm or seed."""
    if len(windows) <= most:
        return list(windows)
    places = random.Random("windows").sample(range(len(windows)), most)  # noqa: S311 - no secret
    return [windows[place] for place in sorted(places)]


# ---- Measuring -------------------------------------------------------------------------------------------------------

#: Path -> [sum of the losses of its tokens, how many they are].
Losses = dict[str, list[float]]


def measure(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Losses]:
    """Losses by measure and file of the base or of an adapter, from the model's own logits."""
    output = run_folder(arm, seed, options)
    kept = output / f"measured-{options.windows}.json"
    if not kept.exists():
        output.mkdir(exist_ok=True)
        print(f"  measuring {arm}, seed {seed}", flush=True)
        model = _model(output, is_base=arm == BASE, name=options.model)
        losses = {name: _losses(model, windows) for name, windows in measures(options).items()}
        kept.write_text(json.dumps(losses), encoding="utf-8")
    read: dict[str, Losses] = json.loads(kept.read_text(encoding="utf-8"))
    return read


def measures(options: argparse.Namespace) -> dict[str, list[Window]]:
    """Everything that is measured on."""
    ours = dataset("ours", options)
    manifest = shards.open_dataset(ours).manifest
    span = (manifest["trained_until"], manifest["commit"])
    tokenizer = models.load_tokenizer(options.model)
    git_dir = repository.resolve(options.repo).git_dir
    return {
        "future split": some(future_windows(ours), options.windows),
        "added lines": some(added_windows(git_dir, span, tokenizer, options.length), options.windows),
    }


def _model(run: Path, *, is_base: bool, name: str) -> Any:
    from peft import PeftModel

    base = models.load_base(name, None, dtype=torch.float32, device="cpu", quantization_config=None)
    if is_base:
        return base.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name of yesterday
        return PeftModel.from_pretrained(base, run / "adapter").eval()


def _losses(model: Any, windows: Sequence[Window]) -> Losses:
    found: Losses = {}
    for window in windows:
        places = np.flatnonzero(window.measured)
        ids = torch.from_numpy(window.ids)
        with torch.no_grad():
            # Only the logits before a measured token: the head of a small model is a third of its work.
            before = torch.from_numpy(places - 1)
            logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=before).logits[0]
        loss = torch.nn.functional.cross_entropy(logits.double(), ids[torch.from_numpy(places)], reduction="sum")
        of_file = found.setdefault(window.path, [0.0, 0])
        of_file[0] += loss.item()
        of_file[1] += len(places)
    return found


def mean(losses: Sequence[Losses], paths: Sequence[str]) -> float:
    """Nats a token over all seeds."""
    total = sum(one[path][0] for one in losses for path in paths)
    return total / sum(one[path][1] for one in losses for path in paths)


def difference(one: Sequence[Losses], other: Sequence[Losses]) -> dict[str, Any]:
    """Mean loss of `one` less that of `other` (below 0: `one` is better), and its interval over files."""
    paths = sorted(one[0])
    tokens = np.array([sum(part[path][1] for part in one) for path in paths], np.float64)
    gaps = np.array([sum(a[path][0] - b[path][0] for a, b in zip(one, other, strict=True)) for path in paths])
    chosen = np.random.default_rng(17).integers(0, len(paths), (RESAMPLES, len(paths)))
    resampled = gaps[chosen].sum(axis=1) / tokens[chosen].sum(axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return {
        "difference": round(float(gaps.sum() / tokens.sum()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "files_better": int((gaps < 0).sum()),
    }


# ---- Figures ---------------------------------------------------------------------------------------------------------


def main() -> int:
    measured(_options(), run, RESULTS)
    return 0


def measured(
    options: argparse.Namespace, run_: Callable[[argparse.Namespace], dict[str, Any]], results: Path
) -> dict[str, Any]:
    """The figures of a run in its work folder, printed and kept in the place of the repository's earlier ones."""
    with contextlib.ExitStack() as stack:
        options.work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options.work.mkdir(exist_ok=True)
        figures = run_(options)
    print(json.dumps(figures, indent=2))
    if not options.print_only:
        kept = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
        results.write_text(json.dumps(kept | {options.name: figures}, indent=2) + "\n", encoding="utf-8")
    return figures


def _options() -> argparse.Namespace:
    described = parser(__doc__, arms=[BASELINE, "ours"], tokens=131_072, seeds=[17])
    described.add_argument("--learning-rate", type=float, default=5e-4)
    described.add_argument("--accumulation", type=int, default=4, help="rows of an optimizer step")
    described.add_argument("--windows", type=int, default=200, help="measured at most, of each measure")
    described.add_argument("--own-rows", type=int, default=8, help="rows of an arm's own held-out loss")
    described.add_argument("--threads", type=int, default=os.cpu_count())
    options = described.parse_args()
    torch.set_num_threads(options.threads)
    return options


def parser(
    about: str | None, *, arms: Sequence[str], tokens: int | Sequence[int], seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """The options that every comparison of datasets has, with these defaults; `tokens` is one number or several."""
    described = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    described.add_argument("--repo", default=str(ROOT), help="a git repository. Default: this one")
    described.add_argument("--name", default="repotune", help="what the results call it")
    described.add_argument("--model", default=_demo_model(), help="folder or name. Default: the demo's")
    several = None if isinstance(tokens, int) else "+"
    described.add_argument("--tokens", type=int, nargs=several, default=tokens, help="learned from, by every arm")
    described.add_argument("--length", type=int, default=512, help="tokens of a row")
    described.add_argument("--arms", nargs="+", choices=(BASELINE, *OURS), default=arms)
    described.add_argument("--seeds", nargs="+", type=int, default=seeds)
    described.add_argument("--work", type=Path, help="keep everything here, and go on with what is")
    described.add_argument("--print-only", action="store_true", help="do not write the results")
    return described


def _demo_model() -> str:
    script = ROOT / "examples" / "demo_model.py"
    return subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.strip()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure what is not there yet; the figures."""
    trained = {arm: [train(arm, seed, options) for seed in options.seeds] for arm in options.arms}
    losses = {arm: [measure(arm, seed, options) for seed in options.seeds] for arm in options.arms}
    # The base knows no seed.
    losses[BASE] = [measure(BASE, 0, options)] * len(options.seeds)
    manifest = shards.open_dataset(dataset("ours", options)).manifest
    return {
        "commit": manifest["commit"],
        "trained_until": manifest["trained_until"],
        "command": typed("dataset_worth.py"),
        "arms": {arm: _told(arm, results, options) for arm, results in trained.items()},
        "measures": {name: _compared(name, losses) for name in losses[BASE][0]},
        "versions": {name: metadata.version(name) for name in ("repotune", "torch", "transformers", "peft")},
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def typed(program: str) -> str:
    """The command as it was typed, without the paths of this machine."""
    words = iter(sys.argv[1:])
    told = []
    for word in words:
        if word in {"--repo", "--work", "--model"}:
            next(words)
            told += [word, "PATH"]
        else:
            told.append(f'"{word}"' if " " in word else word)
    return " ".join([f"python benchmarks/{program}", *told])


def _told(arm: str, results: Sequence[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    data = shards.open_dataset(dataset(arm, options))
    labels = data.manifest["splits"][shards.TRAIN]["labels"] / (len(data.train) * data.sequence_length)
    return {
        "settings": list(OURS.get(arm, ())),
        "rows_in_dataset": len(data.train),
        "tokens_trained_on": results[0]["steps"] * options.accumulation * data.sequence_length,
        # What is shown and not learned, and padding, count among the tokens but teach nothing by themselves.
        "share_learned": round(labels, 3),
        "seeds": options.seeds,
        "own_held_out_loss": [[round(one[key], 4) for key in ("loss_before", "loss_after")] for one in results],
    }


def _compared(name: str, losses: dict[str, list[dict[str, Losses]]]) -> dict[str, Any]:
    of_arm = {arm: [one[name] for one in parts] for arm, parts in losses.items()}
    first = of_arm[BASE][0]
    return {
        "files": len(first),
        "tokens": sum(int(count) for _, count in first.values()),
        "loss": {arm: round(mean(parts, sorted(first)), 4) for arm, parts in of_arm.items()},
        "loss_by_kind": {arm: compared_by_kind(parts) for arm, parts in of_arm.items()},
        "below_base": {arm: difference(parts, of_arm[BASE]) for arm, parts in of_arm.items() if arm != BASE},
        "below_baseline": {
            arm: difference(parts, of_arm[BASELINE])
            for arm, parts in of_arm.items()
            if BASELINE in of_arm and arm in OURS
        },
    }


def compared_by_kind(losses: Sequence[Losses]) -> dict[str, float]:
    """Nats a token by kind of file."""
    return {kind: round(mean(losses, paths), 4) for kind, paths in _groups(sorted(losses[0]))}


def _groups(paths: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Code, prose, and the rest, by what a path ends with."""
    prose = (".md", ".rst", ".txt")
    groups = {
        "python": [path for path in paths if path.endswith((".py", ".pyi"))],
        "prose": [path for path in paths if path.endswith(prose)],
    }
    known = {path for part in groups.values() for path in part}
    groups["other"] = [path for path in paths if path not in known]
    yield from ((kind, part) for kind, part in groups.items() if part)


if __name__ == "__main__":
    sys.exit(main())
