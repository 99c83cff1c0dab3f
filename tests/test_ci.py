"""The workflow of CI is valid, and runs what is there: it is read by a service that this machine cannot ask."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def lint(file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_workflow_fits_githubs_schema():
    done = lint(WORKFLOW)
    assert done.returncode == 0, done.stdout


def test_the_schema_finds_a_key_that_github_does_not_know(tmp_path):
    broken = tmp_path / "ci.yml"
    broken.write_text(WORKFLOW.read_text().replace("runs-on:", "run-on:", 1))
    assert lint(broken).returncode == 1


def test_the_scripts_that_it_runs_are_there_and_executable(jobs):
    scripts = {name for job in jobs.values() for line in commands(job) for name in re.findall(r"^\.ci/\w+", line)}
    assert {".ci/run", ".ci/wheel", ".ci/demo"} <= scripts
    assert all((ROOT / script).stat().st_mode & 0o100 for script in scripts)


def test_the_targets_of_make_are_there(jobs):
    makefile = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    targets = {name for job in jobs.values() for line in commands(job) for name in re.findall(r"^make (\S+)", line)}
    assert targets
    assert all(re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) for target in targets)


def test_every_version_of_python_that_the_project_names_is_tested(jobs, project):
    named = [line.rpartition(" ")[2] for line in project["project"]["classifiers"] if "Python :: 3." in line]
    assert jobs["python"]["strategy"]["matrix"]["python"] == named


def test_the_marks_that_it_selects_by_exist(jobs, project):
    known = {marker.partition(":")[0] for marker in project["tool"]["pytest"]["ini_options"]["markers"]}
    lines = [line for job in jobs.values() for line in commands(job)]
    selected = {name for line in lines for name in re.findall(r'pytest -m "?(?:not )?(\w+)', line)}
    assert selected == {"mps", "slow"}
    assert selected <= known


def test_expressions_name_contexts_that_github_offers_there():
    text = WORKFLOW.read_text()
    contexts = set(re.findall(r"\$\{\{\s*(\w+)\.", text))
    assert contexts <= {"github", "matrix", "vars"}
    assert text.count("${{") == text.count("}}")


def test_the_workflow_may_only_read_and_no_job_runs_for_ever(jobs):
    assert yaml.safe_load(WORKFLOW.read_text())["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 90 for job in jobs.values())


def test_code_from_forks_never_runs_on_the_projects_own_mac(jobs):
    assert "head.repo.full_name == github.repository" in jobs["metal"]["if"]
    assert all(job["runs-on"].startswith(("ubuntu-", "macos-")) for name, job in jobs.items() if name != "metal")
