"""Figure: the base install, for machines that only submit and watch, brings no torch.

Run as: python benchmarks/base_install.py
Builds the wheel, installs it into a fresh environment without extras and reports what came: number of distributions,
megabytes, and whether any machine-learning library is among them. Needs a package index.
"""

import json
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy"}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        empty = _megabytes(environment)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", ROOT], check=True)
        listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True)
        names = {item["name"].lower() for item in json.loads(listed.stdout)}
        figures = {
            "distributions": len(names),
            "megabytes": round(_megabytes(environment) - empty, 1),
            "heavy": sorted(names & HEAVY),
            "python": platform.python_version(),
            "machine": platform.platform(),
        }
    print(json.dumps(figures, indent=2))
    (ROOT / "benchmarks" / "results" / "base_install.json").write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(1 if figures["heavy"] else 0)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
