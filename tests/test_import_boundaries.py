"""Help stays light, and the arrows between the packages hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from queue_app.cli import COMMANDS, registered

HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "celery", "redis", "pydantic", "flower", "numpy"}
REGISTERED = sorted(registered())

_LOADED_BY_HELP = """
import json, sys
sys.argv = {argv!r}
from queue_app import cli
try:
    cli.{entry}()
except SystemExit as left:
    code = left.code
print("\\n" + json.dumps([code, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def loaded_by_help(entry, *arguments):
    """The exit code of `--help` and the top-level modules that it imported."""
    script = _LOADED_BY_HELP.format(argv=["repotune", *arguments, "--help"], entry=entry)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, set(modules)


@pytest.mark.parametrize("name", [*COMMANDS, *REGISTERED])
def test_help_of_a_command_loads_nothing_heavy(name):
    code, modules = loaded_by_help("main", name)
    assert code == 0
    assert not modules & HEAVY


@pytest.mark.parametrize("entry", ["main", "submit_main", "worker_main"])
def test_help_of_a_program_loads_nothing_heavy(entry):
    code, modules = loaded_by_help(entry)
    assert code == 0
    assert not modules & HEAVY


def test_help_of_submit_job_does_not_even_look_for_entry_points():
    _, modules = loaded_by_help("submit_main")
    assert "importlib_metadata" not in modules
    assert not modules & {"rich", "yaml", "email"}


def test_the_import_contracts_hold():
    house = Path(__file__).parent.parent
    linter = Path(sys.executable).parent / "lint-imports"
    if not (house / "pyproject.toml").exists() or not linter.exists():
        pytest.skip("needs the checkout and import-linter")
    done = subprocess.run(
        [linter], cwd=house, env={"PYTHONPATH": str(house)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
