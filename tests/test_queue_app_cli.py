"""The program itself: commands by name, errors as one sentence, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from backends.errors import BackendUnavailable, ExitCode, RepotuneError
from queue_app import cli
from queue_app.store import JobNotFound, StoreUnreachable

PROGRAMS = Path(sys.executable).parent


def program(*arguments, **environment):
    return subprocess.run(
        [PROGRAMS / arguments[0], *arguments[1:]],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_raising(monkeypatch, capsys, error, *arguments):
    """Run a command that raises `error`; returns its exit code and what it wrote to stderr."""

    @click.command(params=[cli._debug_option(), click.Option(["--json"], is_flag=True)])
    def command(json):
        raise error

    monkeypatch.setattr(sys, "argv", ["repotune", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.run(command, "repotune")
    return left.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RepotuneError("It failed."), 1),
        (StoreUnreachable("No store."), 3),
        (JobNotFound("train-x"), 4),
        (BackendUnavailable("No device."), 5),
        (click.UsageError("Wrong flag."), 2),
        (KeyboardInterrupt(), 130),
        (ValueError("a defect"), 1),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(monkeypatch, capsys, error, code):
    left, written = run_raising(monkeypatch, capsys, error)
    assert left == code
    assert "Traceback" not in written.err
    assert str(error) in written.err


def test_an_error_of_ours_is_one_line_on_stderr(monkeypatch, capsys):
    _, written = run_raising(monkeypatch, capsys, BackendUnavailable("No such device: check the flag."))
    assert written.err == "repotune: No such device: check the flag.\n"
    assert written.out == ""


def test_a_defect_says_how_to_see_more(monkeypatch, capsys):
    _, written = run_raising(monkeypatch, capsys, ZeroDivisionError("division by zero"))
    assert written.err.startswith("repotune: unexpected error (ZeroDivisionError: division by zero); run again")


def test_debug_shows_the_traceback(monkeypatch, capsys):
    _, written = run_raising(monkeypatch, capsys, ValueError("here"), "--debug")
    assert "Traceback" in written.err


def test_an_error_beside_json_is_json_too(monkeypatch, capsys):
    _, written = run_raising(monkeypatch, capsys, StoreUnreachable("No store."), "--json")
    assert json.loads(written.out) == {"error": "No store.", "exit_code": ExitCode.UNREACHABLE}


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "worker"), ("bitsandbytes", "cuda"), ("flower.app", "monitor")]
)
def test_a_missing_extra_is_named_with_its_pip_command(monkeypatch, capsys, module, extra):
    left, written = run_raising(monkeypatch, capsys, ModuleNotFoundError("x", name=module))
    assert left == ExitCode.DEVICE_UNAVAILABLE
    assert f"pip install 'repotune[{extra}]'" in written.err


def test_a_missing_module_of_ours_is_a_defect(monkeypatch, capsys):
    left, written = run_raising(monkeypatch, capsys, ModuleNotFoundError("no", name="queue_app.nothing"))
    assert left == ExitCode.JOB_FAILED
    assert "unexpected error" in written.err


def test_help_lists_every_command():
    done = program("repotune", "--help")
    assert done.returncode == 0
    assert {"worker", "dataset", "train"} <= set(cli.registered())
    for name in (*cli.COMMANDS, *cli.registered()):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_table_of_commands_tells_the_truth(name):
    command = cli.load_command(name)
    assert command.name == name
    assert command.help


def test_an_unknown_command_is_a_usage_error():
    done = program("repotune", "fly")
    assert done.returncode == ExitCode.USAGE
    assert "No such command 'fly'" in done.stderr


def test_version_is_that_of_the_distribution():
    assert program("repotune", "--version").stdout.startswith("repotune 0.")


def test_submit_job_is_a_short_name():
    assert "Usage: submit-job [OPTIONS]" in program("submit-job", "--help").stdout


def test_a_reader_that_goes_away_is_no_error():
    writer = subprocess.Popen([PROGRAMS / "repotune", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.close()
    assert b"Traceback" not in writer.stderr.read()
    writer.stderr.close()
    writer.wait(60)


def test_the_schema_is_that_of_the_configuration():
    schema = json.loads(program("repotune", "schema").stdout)
    assert {"model", "lora", "mps", "cuda", "cpu"} <= set(schema["properties"])


def test_the_default_file_is_printed_with_its_comments():
    assert "# int8 | int4 | nf4 | none" in program("repotune", "schema", "--yaml").stdout


def test_the_schema_never_overwrites_a_file(tmp_path):
    file = tmp_path / "schema.json"
    assert program("repotune", "schema", "--output", str(file)).returncode == 0
    again = program("repotune", "schema", "--output", str(file))
    assert again.returncode == ExitCode.USAGE
    assert "exists already" in again.stderr


def test_a_wrong_setting_is_named_with_its_variable():
    done = program("repotune", "jobs", REPOTUNE_BROKER_URL="http://somewhere")
    assert done.returncode == ExitCode.USAGE
    assert "REPOTUNE_BROKER_URL" in done.stderr


@pytest.mark.parametrize("device", ["mps", "cuda", "any"])
def test_validate_refuses_what_does_not_go_together_on_a_device(device, tmp_path):
    told = program("repotune", "validate", "--repo", tmp_path, "--device", device, "--set", "quantization.compute=int8")
    assert told.returncode == ExitCode.USAGE
    assert "quantization.compute: int8" in told.stderr
    assert "configuration  ok" not in told.stdout + told.stderr
