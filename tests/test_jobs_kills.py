import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)  # some thirty runs
def test_a_run_that_dies_at_any_instant_is_resumed_to_the_same_losses_and_adapter(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "benchmarks" / "kills.py", "--figures", figures]
    amounts = ["--kills", "3", "--stops", "1", "--points", "8", "--seed", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *amounts], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(figures.read_text())
    assert [told[what]["bit_equal"] for what in ("kills", "stops", "points")] == [3, 1, 8]
