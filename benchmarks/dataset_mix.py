"""Which mix of code, commits and documentation tells most about future commits, by counting? A quick look, no training.

Run as: python benchmarks/dataset_mix.py [--repo PATH --name psf/requests] [--tokens 49152 98304] [--arms baseline ours]

A model of runs of up to five tokens (Witten and Bell 1991, interpolated down to a uniform vocabulary) is counted from
some rows of each arm's dataset, as many for every arm: the labels only, no run across a document's start. Measured are
the `added lines` of dataset_worth.py, all of them, in nats a token. Counting knows nothing that a pretrained model
knows, so its losses are high and its differences larger than those of adapters; it tells how much of tomorrow's text an
arm's rows hold, exactly and in a minute, where training takes hours. What it prefers is to be confirmed by
dataset_worth.py, which has the same arms.

Each arm is counted once for every seed, which draws the rows. An arm with fewer rows than asked for has `all` of them,
once: counting them twice would teach nothing.
"""

import json
import math
import platform
import random
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from dataset_worth import (
    BASELINE,
    OURS,
    Losses,
    Window,
    added_windows,
    compared_by_kind,
    dataset,
    difference,
    mean,
    parser,
    typed,
)

from backends import models
from jobs import repository, shards

RESULTS = Path(__file__).resolve().parent / "results" / "dataset_mix.json"
#: Tokens of the longest run, the predicted one included.
ORDER = 5


class Counts:
    """How often each token followed each run of fewer than `ORDER` tokens."""

    def __init__(self, vocabulary: int) -> None:
        self._uniform = 1 / vocabulary
        #: Run -> token -> how often it followed; and of each run the sum.
        self._followers: dict[tuple[int, ...], dict[int, int]] = {}
        self._totals: dict[tuple[int, ...], int] = {}

    def learn(self, rows: Iterable[shards.Row]) -> None:
        """Count the labels of some rows; a run never reaches beyond the start of its document."""
        for row in rows:
            ids, positions = row.ids.tolist(), shards.position_ids(row.flags)
            for place in np.flatnonzero(row.flags & shards.LABEL).tolist():
                for length in range(min(ORDER - 1, int(positions[place])) + 1):
                    before = tuple(ids[place - length : place])
                    followers = self._followers.setdefault(before, {})
                    followers[ids[place]] = followers.get(ids[place], 0) + 1
                    self._totals[before] = self._totals.get(before, 0) + 1

    def losses(self, windows: Sequence[Window]) -> Losses:
        """The summed loss of the measured tokens and their number, by file."""
        found: Losses = {}
        for window in windows:
            of_file = found.setdefault(window.path, [0.0, 0])
            ids = window.ids.tolist()
            for place in np.flatnonzero(window.measured).tolist():
                of_file[0] -= math.log(self.probability(ids[max(0, place - ORDER + 1) : place], ids[place]))
                of_file[1] += 1
        return found

    def probability(self, before: Sequence[int], token: int) -> float:
        """Of `token` after the tokens `before`: of each run a share, as its kinds of followers are of all it saw."""
        found = self._uniform
        for length in range(len(before) + 1):
            run = tuple(before[len(before) - length :])
            followers = self._followers.get(run)
            if followers is None:
                break
            found = (followers.get(token, 0) + len(followers) * found) / (self._totals[run] + len(followers))
        return found


def main() -> int:
    options = parser(__doc__, arms=[BASELINE, *OURS], tokens=[49_152, 98_304, 147_456], seeds=[1, 2, 3]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(exist_ok=True)
        figures = run(options)
    print(json.dumps(figures, indent=2))
    if not options.print_only:
        kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(kept | {options.name: figures}, indent=2) + "\n", encoding="utf-8")
    return 0


def run(options: Any) -> dict[str, Any]:
    """The figures of every arm at every number of tokens."""
    manifest = shards.open_dataset(dataset("ours", options)).manifest
    span = (manifest["trained_until"], manifest["commit"])
    git_dir = repository.resolve(options.repo).git_dir
    windows = added_windows(git_dir, span, models.load_tokenizer(options.model), options.length)
    return {
        "commit": manifest["commit"],
        "trained_until": manifest["trained_until"],
        "command": typed("dataset_mix.py"),
        "files": len({window.path for window in windows}),
        "tokens_measured": int(sum(window.measured.sum() for window in windows)),
        "seeds": options.seeds,
        "settings": {arm: list(OURS[arm]) for arm in options.arms if arm in OURS},
        "trained_on": {str(tokens): _at(tokens, windows, options) for tokens in options.tokens},
        "versions": {name: metadata.version(name) for name in ("repotune", "numpy", "tokenizers")},
        "machine": f"{platform.platform()}, Python {platform.python_version()}",
    }


def _at(tokens: int, windows: Sequence[Window], options: Any) -> dict[str, Any]:
    wanted = tokens // options.length
    told: dict[str, Any] = {}
    losses: dict[str, list[Losses]] = {}
    for arm in options.arms:
        data = shards.open_dataset(dataset(arm, options))
        losses[arm] = [_counted(data, wanted, seed).losses(windows) for seed in options.seeds]
        told[arm] = {
            "rows": wanted if wanted <= len(data.train) else f"all, {len(data.train)} of {wanted}",
            "loss": round(mean(losses[arm], sorted(losses[arm][0])), 4),
            # What the lot of the rows makes: the intervals are over files alone.
            "loss_by_seed": [round(mean([one], sorted(one)), 4) for one in losses[arm]],
            "loss_by_kind": compared_by_kind(losses[arm]),
        }
        if arm != BASELINE and BASELINE in losses:
            told[arm]["below_baseline"] = difference(losses[arm], losses[BASELINE])
        print(f"{tokens} tokens, {arm}: {told[arm]['loss']}", file=sys.stderr, flush=True)
    return told


def _counted(data: shards.PackedDataset, wanted: int, seed: int) -> Counts:
    """A model of so many rows of a dataset, drawn by lot."""
    counts = Counts(data.manifest["tokenizer"]["vocabulary_size"])
    places = random.Random(f"rows {seed}").sample(range(len(data.train)), min(wanted, len(data.train)))  # noqa: S311
    counts.learn(data.train[place] for place in places)
    return counts


if __name__ == "__main__":
    sys.exit(main())
