"""How long `submit-job --help` takes, beside a bare interpreter. Target: under 150 ms.

Run as: python benchmarks/help_start.py

Rounds of both alternate, so that another process on the machine slows both. Prints and keeps minimum and median.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 20
TARGET_MS = 150
PROGRAMS = {
    "bare interpreter": [sys.executable, "-c", "pass"],
    "submit-job --help": [str(Path(sys.executable).parent / "submit-job"), "--help"],
    "repotune --help": [str(Path(sys.executable).parent / "repotune"), "--help"],
}


def milliseconds(command: list[str]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)


def main() -> int:
    """Measure, print a table, keep it in results/."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for round_number in range(ROUNDS + 1):
        for name, command in PROGRAMS.items():
            taken = milliseconds(command)
            if round_number:  # the first round fills the disk cache
                times[name].append(taken)
    figures = {name: {"min_ms": min(taken), "median_ms": statistics.median(taken)} for name, taken in times.items()}
    print(f"{'':<20}{'min ms':>10}{'median ms':>12}")
    for name, figure in figures.items():
        print(f"{name:<20}{figure['min_ms']:>10.0f}{figure['median_ms']:>12.0f}")
    within = figures["submit-job --help"]["median_ms"] < TARGET_MS
    print(f"target {TARGET_MS} ms: {'met' if within else 'missed'}")
    results = Path(__file__).parent / "results" / "help_start.json"
    load = os.getloadavg()[0]  # a busy machine slows all of them, and the larger ones more
    told = {
        "rounds": ROUNDS,
        "load": round(load, 1),
        "python": platform.python_version(),
        "target_ms": TARGET_MS,
        "figures": figures,
    }
    results.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
