"""Figure: reading a history, against the two git commands that the reading is made of.

Run as: python benchmarks/history.py [--size requests celery] [--repository PATH] [--rounds 3]

git alone: `git log --raw -z` with our flags, then `git cat-file --batch --buffer` of every blob that the log
names, once each; both through a pipe whose bytes this same Python reads in pieces of 64 KiB and forgets. Ours:
`read_history` and then `read_blobs` of the same blobs, every commit and every content in Python's hands. Both in fresh
processes, in turn; CPU seconds are those of all processes. The bar: at most 1.5 times git alone, by both.
Beside them: `bounded`, ours where blobs above 1 MiB are left out, as the dataset job reads; what finding renames costs
git (none, equal contents, contents compared with the limit that we use and with git's own); and `cut_commit`.
Without --repository the repositories are made by synthetic_repository.py in a folder that goes away.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LOG = ("log", "-z", "--raw", "--no-abbrev", "--format=%H%x00%P%x00%ct%x00%e%x00%B", "--encoding=UTF-8")
#: As `read_history` asks for renames.
OURS = ("--find-renames", "-l200", "--no-rename-empty")
BAR = 1.5
PIECE = 1 << 16
RENAMES = {
    "none": ["--no-renames"],
    "equal contents": ["--find-renames=100%"],
    "compared, limit 200": ["--find-renames", "-l200"],
    "compared, git's limit": ["--find-renames"],
}
MAX_BYTES = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", default=["requests", "celery"], help="of synthetic_repository.py")
    parser.add_argument("--repository", type=Path, help="a repository on this machine instead; nothing is kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "GIT_DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure[0]](Path(options.measure[1]))))
        return
    figures: dict[str, Any] = {"rounds": options.rounds, "git": git_version(), "machine": machine()}
    # On a busy machine wall seconds say little, and CPU seconds grow by a third.
    figures["load_average_before"] = round(os.getloadavg()[0], 2)
    if options.repository:
        figures["repository"] = compare(git_dir_of(options.repository), options.rounds)
        print(json.dumps(figures, indent=2))
        return
    for size in options.size:
        with tempfile.TemporaryDirectory(prefix="repotune-history-") as folder:
            made = Path(folder) / size
            subprocess.run(
                [sys.executable, str(ROOT / "benchmarks" / "synthetic_repository.py"), size, made], check=True
            )
            figures[size] = compare(git_dir_of(made), options.rounds)
    print(json.dumps(figures, indent=2))
    (ROOT / "benchmarks" / "results" / "history.json").write_text(
        json.dumps(figures, indent=2) + "\n", encoding="utf-8"
    )


def git_version() -> str:
    return subprocess.run(["git", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    return f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def git_dir_of(path: Path) -> Path:
    command = ["git", "-C", str(path), "rev-parse", "--path-format=absolute", "--git-common-dir"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def compare(git_dir: Path, rounds: int) -> dict[str, Any]:
    """Every way once a round, each in a fresh process."""
    ways = ("git", "ours", "bounded", "cut", *RENAMES)
    measured: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            measured[way].append(fresh(way, git_dir))
    figures: dict[str, Any] = {way: summary(measured[way]) for way in ways}
    over = {kind: ratio(measured["ours"], measured["git"], kind) for kind in ("wall", "cpu")}
    return figures | {"ours over git": over, "bar": BAR, "bar_met": max(over.values()) <= BAR}


def ratio(ours: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]], kind: str) -> float:
    """The median of the rounds' ratios: what runs in one round meets about the same machine."""
    return round(statistics.median(one[kind] / other[kind] for one, other in zip(ours, alone, strict=True)), 3)


def fresh(way: str, git_dir: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", way, str(git_dir)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = {
        f"{kind}_{name}": round(pick(entry[kind] for entry in rounds), 3)
        for kind in ("wall", "cpu")
        for name, pick in (("min", min), ("median", statistics.median))
    }
    return seconds | {name: value for name, value in rounds[-1].items() if name not in ("wall", "cpu")}


def timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Wall and CPU seconds of `work` with the processes that it starts and waits for, and the largest memory."""
    began, began_cpu = time.perf_counter(), cpu_seconds()
    told = work()
    peak = {
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "peak_git_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
    }
    return {"wall": time.perf_counter() - began, "cpu": cpu_seconds() - began_cpu} | told | peak


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def tip_of(git_dir: Path) -> str:
    command = ["git", f"--git-dir={git_dir}", "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def blobs_of(git_dir: Path, tip: str) -> list[str]:
    """Every blob that a change names, once, in the order of the history: what both sides read."""
    from jobs.dataset.history import SUBMODULE, read_history

    blobs: dict[str, None] = {}
    for commit in read_history(git_dir, tip):
        for change in commit.changes:
            if change.mode != SUBMODULE:
                blobs |= dict.fromkeys(name for name in (change.before, change.after) if name)
    return list(blobs)


def git_alone(git_dir: Path) -> dict[str, Any]:
    tip = tip_of(git_dir)
    git = ["git", "--no-pager", f"--git-dir={git_dir}"]
    with tempfile.TemporaryFile() as names:
        names.write("".join(f"{name}\n" for name in blobs_of(git_dir, tip)).encode())

        def work() -> dict[str, Any]:
            names.seek(0)
            size = emptied([*git, *LOG, *OURS, tip], subprocess.DEVNULL)
            size += emptied([*git, "cat-file", "--batch", "--buffer"], names)
            return {"mib": round(size / 2**20, 1)}

        return timed(work)


def emptied(command: Sequence[str], stdin: Any) -> int:
    """Bytes that a command writes into a pipe, which are read and forgotten."""
    size = 0
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE) as git:
        assert git.stdout is not None
        while piece := os.read(git.stdout.fileno(), PIECE):
            size += len(piece)
    assert git.returncode == 0
    return size


def reading(git_dir: Path, max_bytes: int | None = None) -> dict[str, Any]:
    from jobs.dataset.history import SUBMODULE, read_history
    from jobs.repository import read_blobs

    tip = tip_of(git_dir)

    def work() -> dict[str, Any]:
        commits, blobs = 0, {}
        for commit in read_history(git_dir, tip):
            commits += 1
            for change in commit.changes:
                if change.mode != SUBMODULE:
                    blobs[change.before] = blobs[change.after] = None
        blobs.pop(None, None)
        sizes = [len(content) for _, content in read_blobs(git_dir, blobs, max_bytes) if content is not None]
        return {"commits": commits, "blobs": len(blobs), "contents": len(sizes), "mib": round(sum(sizes) / 2**20, 1)}

    return timed(work)


def cut(git_dir: Path) -> dict[str, Any]:
    from jobs.dataset.history import cut_commit

    tip = tip_of(git_dir)
    return timed(lambda: {"found": cut_commit(git_dir, tip, 0.05) is not None})


def renames(git_dir: Path, flags: Sequence[str]) -> dict[str, Any]:
    """What git's log alone takes, and how many renames it finds."""
    command = ["git", "--no-pager", f"--git-dir={git_dir}", *LOG, *flags, tip_of(git_dir)]

    def work() -> dict[str, Any]:
        output = subprocess.run(command, check=True, capture_output=True).stdout
        found = [field.split(b" ")[-1] for field in output.split(b"\0") if field.lstrip(b"\n").startswith(b":")]
        return {"renames": sum(status.startswith(b"R") for status in found)}

    return timed(work)


MEASURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "git": git_alone,
    "ours": reading,
    "bounded": lambda git_dir: reading(git_dir, MAX_BYTES),
    "cut": cut,
    **{name: lambda git_dir, flags=flags: renames(git_dir, flags) for name, flags in RENAMES.items()},  # type: ignore[misc]
}


if __name__ == "__main__":
    main()
