"""A person at a terminal is asked before anything starts; a script never is."""

import os
import pty
import subprocess
import sys

import pytest

PROGRAM = "from queue_app.cli import main; main()"


def at_a_terminal(answer, *arguments, **environment):
    """What a command shows on a terminal of its own where `answer` is typed, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, *arguments],
        env=os.environ | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, answer)
    shown = b"".join(_parts(ours))
    os.close(ours)
    return shown.decode(), process.wait(60)


def _parts(terminal):
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other end is closed
            return
        if not part:
            return
        yield part


@pytest.fixture
def submission(tmp_path, tiny_repository, tiny_model_folder, valkey_url):
    small = ("--set", "dataset.sequence_length=64")
    arguments = ("submit", "--repo", str(tiny_repository), "--model", str(tiny_model_folder), *small)
    return arguments, {"REPOTUNE_HOME": str(tmp_path), "REPOTUNE_BROKER_URL": valkey_url}


def test_a_no_starts_nothing(submission, redis_client):
    arguments, environment = submission
    shown, code = at_a_terminal(b"n\n", *arguments, **environment)
    assert "Start? [Y/n]" in shown
    assert "Repository:" in shown
    assert "Nothing was started." in shown
    assert code == 130
    assert not redis_client.keys("*job*")


def test_an_empty_line_is_a_yes(submission):
    arguments, environment = submission
    shown, code = at_a_terminal(b"\n", *arguments, **environment)
    assert "Start?" in shown
    assert "Follow it:" in shown
    assert code == 0


def test_yes_on_the_command_line_asks_nothing(submission):
    arguments, environment = submission
    shown, code = at_a_terminal(b"", *arguments, "--yes", **environment)
    assert "Start?" not in shown
    assert code == 0
