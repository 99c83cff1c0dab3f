import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs import checkpoint
from jobs.checkpoint import CheckpointDamaged, DiskFull, latest, save, steps, verify


def write_something(folder):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights").write_bytes(b"w" * 1000)
    (folder / "state.json").write_text("{}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_checkpoint_is_whole_and_names_its_files(tmp_path):
    path = save(tmp_path, 7, write_something, keep=2)
    assert path == tmp_path / "step-7"
    verify(path)
    assert latest(tmp_path) == path
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 7
    assert sorted(manifest["files"]) == ["adapter/weights", "state.json"]
    assert manifest["files"]["state.json"]["bytes"] == 2


def test_the_newest_are_kept_in_the_order_of_numbers_not_of_letters(tmp_path):
    for step in (9, 10, 100):
        save(tmp_path, step, write_something, keep=2)
    assert [path.name for path in steps(tmp_path)] == ["step-10", "step-100"]


@pytest.mark.parametrize(
    "damage", ["cut", "altered", "missing", "manifest missing", "manifest cut", "manifest is a list"]
)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, damage):
    older = save(tmp_path, 1, write_something, keep=2)
    newer = save(tmp_path, 2, write_something, keep=2)
    weights, manifest = newer / "adapter" / "weights", newer / "manifest.json"
    match damage:
        case "cut":
            weights.write_bytes(b"w" * 999)
        case "altered":
            weights.write_bytes(b"w" * 999 + b"x")
        case "missing":
            weights.unlink()
        case "manifest missing":
            manifest.unlink()
        case "manifest cut":
            manifest.write_bytes(manifest.read_bytes()[:20])
        case "manifest is a list":
            manifest.write_text("[]")
    with pytest.raises(CheckpointDamaged, match="step-2 is damaged"):
        verify(newer)
    found, problems = checkpoint.newest_whole(tmp_path)
    assert found == older
    assert len(problems) == 1


def test_there_is_no_checkpoint_in_an_empty_or_missing_folder(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None


def test_a_failing_write_leaves_nothing_and_harms_nothing(tmp_path):
    older = save(tmp_path, 1, write_something, keep=1)

    def fail(folder):
        write_something(folder)
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        save(tmp_path, 2, fail, keep=1)
    assert names(tmp_path) == ["step-1"]
    assert latest(tmp_path) == older


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from jobs.checkpoint import save\n"
        "def write(folder):\n"
        "    (folder / 'half').write_bytes(b'h' * 100)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "save(Path(sys.argv[1]), 1, write, keep=1)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert names(tmp_path) == [".partial-1"]
    assert latest(tmp_path) is None
    save(tmp_path, 2, write_something, keep=1)
    assert names(tmp_path) == ["step-2"]


def test_a_step_reached_again_replaces_its_damaged_checkpoint(tmp_path):
    path = save(tmp_path, 1, write_something, keep=1)
    (path / "state.json").unlink()
    save(tmp_path, 1, write_something, keep=1)
    verify(path)
    assert names(tmp_path) == ["step-1"]


@pytest.mark.parametrize("call", ["before the first rename", "between the renames", "after the second rename"])
def test_a_step_that_dies_while_it_is_saved_again_keeps_a_whole_checkpoint(tmp_path, call):
    save(tmp_path, 1, write_something, keep=1)
    after = ["before the first rename", "between the renames", "after the second rename"].index(call)
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from jobs.checkpoint import save\n"
        "rename, calls = os.rename, []\n"
        "def die(*arguments, **options):\n"
        "    calls.append(arguments)\n"
        "    if len(calls) > int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(*arguments, **options)\n"
        "    if int(sys.argv[2]) == 2 == len(calls): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.rename = die\n"
        "save(Path(sys.argv[1]), 1, lambda folder: (folder / 'new').write_text('new'), keep=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(after)], check=False)
    assert done.returncode == -9
    verify(latest(tmp_path))
    save(tmp_path, 2, write_something, keep=1)
    assert names(tmp_path) == ["step-2"]


def test_what_is_kept_beside_the_newest_stays_however_old(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, write_something, keep=1, beside=frozenset((1, 3)))
    assert names(tmp_path) == ["step-1", "step-3", "step-4"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only the superuser of a Linux machine can make a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def write_plain(folder):
    (folder / "big").write_bytes(os.urandom(800_000))


def write_safetensors(folder):
    save_file({"big": torch.rand(200_000)}, folder / "big.safetensors")


@pytest.mark.parametrize("write", [write_plain, write_safetensors])
def test_a_full_disk_is_told_and_the_checkpoint_before_stays(small_disk, write):
    older = save(small_disk, 1, write, keep=1)
    with pytest.raises(DiskFull, match="free some space and resume"):
        save(small_disk, 2, write, keep=1)
    verify(older)
    assert names(small_disk) == ["step-1"]


@pytest.mark.parametrize("write", ["write_plain", "write_safetensors"])
def test_a_limit_on_file_size_is_told_like_a_full_disk(tmp_path, write):
    program = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path.cwd())!r}]\n"
        "from pathlib import Path\n"
        "import test_jobs_checkpoint as t\n"
        "try: t.save(Path(sys.argv[1]), 1, getattr(t, sys.argv[2]), keep=1)\n"
        "except t.DiskFull as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), write],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No room left" in done.stdout, done.stderr
    assert names(tmp_path) == []


def test_checkpoints_of_a_course_that_was_given_up_go_and_the_new_one_stays(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, write_something, keep=3)
    path = save(tmp_path, 15, write_something, keep=1)
    assert names(tmp_path) == ["step-15"]
    verify(path)
