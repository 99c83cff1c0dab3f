"""A repository behind a URL is fetched once, and then only what is new of it."""

import contextlib
import os
import shutil
import subprocess

import pytest

from backends.locks import locked
from jobs.mirror import KEPT_SECONDS, mirrored
from jobs.repository import RepositoryError, has_commit, resolve

WHO = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
QUIET = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def commit_all(folder, message):
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", message]):
        subprocess.run(["git", *command], cwd=folder, env=os.environ | WHO | QUIET, check=True)


@pytest.fixture
def remote(tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "one.py").write_text("one = 1\n")
    commit_all(folder, "Begin")
    return folder


def test_the_second_build_needs_no_server(remote, tmp_path):
    commit = resolve(str(remote)).commit
    first = mirrored(f"file://{remote}", commit, tmp_path / "mirrors")
    shutil.rmtree(remote)
    assert mirrored(f"file://{remote}", commit, tmp_path / "mirrors") == first
    assert has_commit(first, commit)


def test_a_new_commit_is_fetched_into_what_is_there(remote, tmp_path):
    old = resolve(str(remote)).commit
    place = mirrored(f"file://{remote}", old, tmp_path / "mirrors")
    inode = place.stat().st_ino
    (remote / "two.py").write_text("two = 2\n")
    commit_all(remote, "Go on")
    new = resolve(str(remote)).commit
    assert mirrored(f"file://{remote}", new, tmp_path / "mirrors") == place
    assert place.stat().st_ino == inode
    assert has_commit(place, new)
    assert has_commit(place, old)


def test_a_rewritten_history_is_fetched_too(remote, tmp_path):
    mirrored(f"file://{remote}", resolve(str(remote)).commit, tmp_path / "mirrors")
    shutil.rmtree(remote / ".git")
    (remote / "one.py").write_text("one = 11\n")
    commit_all(remote, "Begin again")
    new = resolve(str(remote)).commit
    assert has_commit(mirrored(f"file://{remote}", new, tmp_path / "mirrors"), new)


def test_an_unknown_commit_leaves_what_was_there(remote, tmp_path):
    commit = resolve(str(remote)).commit
    place = mirrored(f"file://{remote}", commit, tmp_path / "mirrors")
    with pytest.raises(RepositoryError):
        mirrored(f"file://{remote}", "1" * 40, tmp_path / "mirrors")
    assert has_commit(place, commit)


def test_what_nobody_asked_for_in_two_months_goes(remote, tmp_path):
    commit = resolve(str(remote)).commit
    place = mirrored(f"file://{remote}", commit, tmp_path / "mirrors")
    os.utime(place, (0, place.stat().st_mtime - KEPT_SECONDS - 9))
    other = mirrored(f"file://{remote}/.git", commit, tmp_path / "mirrors")
    assert other.is_dir()
    assert not place.exists()


def test_the_start_of_a_range_is_fetched_into_what_is_there(remote, tmp_path):
    git = ["git", "-C", str(remote)]
    subprocess.run([*git, "branch", "feature"], check=True)
    (remote / "two.py").write_text("two = 2\n")
    commit_all(remote, "Go on")
    subprocess.run([*git, "checkout", "--quiet", "feature"], check=True)
    (remote / "three.py").write_text("three = 3\n")
    commit_all(remote, "Begin a feature")
    url = f"file://{remote}"
    span = resolve(url, "main..feature")
    assert not has_commit(mirrored(url, span.commit, tmp_path / "mirrors"), span.since)
    assert has_commit(mirrored(url, span.commit, tmp_path / "mirrors", span.since), span.since)


def test_one_that_is_being_fetched_into_stays_however_old(remote, tmp_path):
    commit = resolve(str(remote)).commit
    place = mirrored(f"file://{remote}", commit, tmp_path / "mirrors")
    os.utime(place, (0, place.stat().st_mtime - KEPT_SECONDS - 9))
    with locked(place.with_suffix(".lock")):
        mirrored(f"file://{remote}/.git", commit, tmp_path / "mirrors")
        assert has_commit(place, commit)


def test_what_was_asked_for_while_another_waited_to_remove_it_stays(remote, tmp_path, monkeypatch):
    commit = resolve(str(remote)).commit
    place = mirrored(f"file://{remote}", commit, tmp_path / "mirrors")
    os.utime(place, (0, place.stat().st_mtime - KEPT_SECONDS - 9))

    @contextlib.contextmanager
    def after_another_build(file, *, wait=True):
        if not wait:
            os.utime(place)
        yield True

    monkeypatch.setattr("jobs.mirror.locked", after_another_build)
    mirrored(f"file://{remote}/.git", commit, tmp_path / "mirrors")
    assert has_commit(place, commit)


def test_what_a_killed_removal_left_is_no_repository_and_goes(remote, tmp_path):
    left = tmp_path / "mirrors" / "0123.gone"
    left.mkdir(parents=True)
    (left / "HEAD").touch()
    mirrored(f"file://{remote}", resolve(str(remote)).commit, tmp_path / "mirrors")
    assert not left.exists()
