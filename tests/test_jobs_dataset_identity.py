"""A build is left out only where it would give the same bytes."""

import json

from jobs.dataset.identity import identity, is_fresh
from jobs.shards import DATASET_NAMES, SPLITS
from jobs.spec import DatasetSection, Pinned, Source

SOURCE = Source(repository="/code", commit="a" * 40)


def folder_with(folder, identity_, size=3):
    (folder / "train").mkdir()
    (folder / "train" / "00000.ids").write_bytes(b"abc")
    for name in DATASET_NAMES - {*SPLITS}:
        (folder / name).touch()
    files = {"train/00000.ids": {"bytes": size, "sha256": "0"}}
    (folder / "manifest.json").write_text(json.dumps({"identity": identity_, "files": files}))
    return folder


def test_everything_that_bytes_hang_on_is_in_the_identity():
    section = DatasetSection()
    others = [
        identity(SOURCE, section, "key"),
        identity(SOURCE, section, "another key"),
        identity(SOURCE.model_copy(update={"commit": "b" * 40}), section, "key"),
        identity(SOURCE.model_copy(update={"since": "b" * 40}), section, "key"),
        identity(SOURCE, section.model_copy(update={"seed": 18}), "key"),
        identity(SOURCE.model_copy(update={"also": (Pinned(repository="/more", commit="c" * 40),)}), section, "key"),
        identity(
            SOURCE.model_copy(update={"also": (Pinned(repository="/more", commit="c" * 40, weight=2),)}), section, "key"
        ),
    ]
    assert len(set(others)) == len(others)
    assert identity(SOURCE, section, "key") == others[0]


def test_a_dataset_of_that_identity_is_fresh(tmp_path):
    assert is_fresh(folder_with(tmp_path, "same"), "same")


def test_a_dataset_without_its_report_is_not(tmp_path):
    folder = folder_with(tmp_path, "same")
    (folder / "report.html").unlink()
    assert not is_fresh(folder, "same")


def test_another_identity_a_cut_file_or_no_dataset_is_not(tmp_path):
    assert not is_fresh(tmp_path, "same")
    folder = folder_with(tmp_path, "same", size=4)
    assert not is_fresh(folder, "same")
    (folder / "manifest.json").write_text("[]")
    assert not is_fresh(folder, "same")


def test_a_clone_that_was_deepened_is_not_taken_for_unchanged(tmp_path):
    git_dir = tmp_path / "shallow.git"
    (git_dir / "objects").mkdir(parents=True)
    whole = identity(SOURCE, DatasetSection(), "key", [git_dir])
    (git_dir / "shallow").write_text("a" * 40 + "\n")
    shallow = identity(SOURCE, DatasetSection(), "key", [git_dir])
    (git_dir / "shallow").write_text("b" * 40 + "\n")
    assert len({whole, shallow, identity(SOURCE, DatasetSection(), "key", [git_dir])}) == 3
