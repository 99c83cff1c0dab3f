"""The artifact store: whole or absent, on a disk and behind fsspec, with a bounded cache."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.errors import ExitCode
from queue_app import artifacts
from queue_app.artifacts import (
    MANIFEST,
    ArtifactDamaged,
    ArtifactError,
    ArtifactNotFound,
    ArtifactStore,
    InvalidArtifactPath,
)


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    if request.param == "file":
        yield ArtifactStore((tmp_path / "store").as_uri(), tmp_path / "cache")
    else:
        yield memory_store(tmp_path)
        _memory().rm("/", recursive=True)


def memory_store(tmp_path, gigabytes=1.0):
    return ArtifactStore(f"memory://{tmp_path.name}", tmp_path / "cache", gigabytes)


def _memory():
    import fsspec

    return fsspec.filesystem("memory")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "made"
    (folder / "train").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"of": "the job"}', encoding="utf-8")
    (folder / "train" / "00000.ids").write_bytes(bytes(range(256)) * 9000)
    (folder / "empty").write_bytes(b"")
    return folder


def content(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in Path(folder).rglob("*")
        if file.is_file() and file.name != MANIFEST
    }


def test_a_folder_comes_back_as_it_was_put(store, folder):
    store.put_folder(folder, "train-a/1/output")
    assert store.exists("train-a/1/output")
    assert content(store.fetch("train-a/1/output")) == content(folder)


def test_a_file_comes_back_as_a_file(store, folder):
    store.put_file(folder / "manifest.json", "bundles/abc")
    fetched = store.fetch("bundles/abc")
    assert (fetched.name, fetched.read_text()) == ("manifest.json", '{"of": "the job"}')


def test_what_was_fetched_can_be_put_again(store, folder):
    store.put_folder(folder, "a")
    store.put_folder(store.fetch("a"), "b")
    assert content(store.fetch("b")) == content(folder)


def test_putting_again_replaces_the_artifact(store, folder):
    store.put_folder(folder, "a")
    store.fetch("a")
    (folder / "empty").unlink()
    (folder / "new").write_bytes(b"new")
    store.put_folder(folder, "a")
    store.put_folder(folder, "a")
    assert content(store.fetch("a")) == content(folder)


def test_the_artifact_does_not_change_with_the_files_it_was_made_from(store, folder):
    store.put_folder(folder, "a")
    before = content(folder)
    with (folder / "manifest.json").open("a") as file:
        file.write("more")
    assert content(store.fetch("a")) == before


def test_a_removed_artifact_is_gone_and_its_neighbour_stays(store, folder):
    store.put_folder(folder, "job/1/checkpoints/step-1")
    store.put_folder(folder, "job/1/checkpoints/step-2")
    store.remove("job/1/checkpoints/step-1")
    store.remove("job/1/checkpoints/step-1")
    assert not store.exists("job/1/checkpoints/step-1")
    assert content(store.fetch("job/1/checkpoints/step-2")) == content(folder)


def test_what_does_not_exist_is_said_not_to(store):
    assert not store.exists("a/b")
    store_dir_exists(store)
    assert not store.exists("a/b")
    assert store.local_path("a/b") is None
    with pytest.raises(ArtifactNotFound, match="no artifact a/b"):
        store.fetch("a/b")


def store_dir_exists(store):
    if store._folder:
        store._folder.mkdir()


def test_a_missing_source_makes_no_artifact(store, tmp_path):
    with pytest.raises(ArtifactNotFound, match="no folder"):
        store.put_folder(tmp_path / "gone", "a")
    with pytest.raises(ArtifactNotFound, match="no file"):
        store.put_file(tmp_path / "gone", "a")
    assert not store.exists("a")


@pytest.mark.parametrize("path", ["", "/etc", "../a", "a/../../b", "a\\b", "a\0b", ".."])
def test_a_path_out_of_the_store_is_refused(store, folder, path):
    for call in (store.fetch, store.exists, store.local_path, lambda path: store.put_folder(folder, path)):
        with pytest.raises(InvalidArtifactPath, match="cannot name an artifact"):
            call(path)


def test_a_manifest_that_points_out_of_the_artifact_is_damaged(tmp_path, folder):
    store = memory_store(tmp_path)
    store.put_folder(folder, "a")
    at = f"/{tmp_path.name}/a/{MANIFEST}"
    manifest = json.loads(_memory().cat_file(at))
    manifest["files"]["../../outside"] = manifest["files"].pop("empty")
    _memory().pipe_file(at, json.dumps(manifest).encode())
    with pytest.raises(ArtifactDamaged):
        store.fetch("a")
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", '{"files": [], "kind": "folder"}', '{"files": {}, "kind": "file"}']
)
def test_a_manifest_that_is_none_is_damaged(tmp_path, folder, text):
    store = ArtifactStore((tmp_path / "store").as_uri(), tmp_path / "cache")
    store.put_folder(folder, "a")
    (tmp_path / "store/a" / MANIFEST).write_text(text)
    with pytest.raises(ArtifactDamaged, match="run the job"):
        store.fetch("a")


@pytest.mark.parametrize("harm", [lambda data: data[:-1] + b"!", lambda data: data[:-1], None])
def test_a_changed_a_short_and_a_missing_file_are_damaged(store, folder, tmp_path, harm):
    store.put_folder(folder, "a")
    if store._folder:
        file = tmp_path / "store/a/train/00000.ids"
        file.write_bytes(harm(file.read_bytes())) if harm else file.unlink()
    else:
        at = f"/{tmp_path.name}/a/train/00000.ids"
        _memory().pipe_file(at, harm(_memory().cat_file(at))) if harm else _memory().rm_file(at)
    with pytest.raises((ArtifactDamaged, ArtifactNotFound)) as caught:
        store.fetch("a")
    assert caught.value.exit_code == ExitCode.JOB_FAILED
    assert not list(tmp_path.glob("cache/*"))


def test_an_artifact_on_this_disk_is_read_in_place(tmp_path, folder):
    store = ArtifactStore((tmp_path / "a store").as_uri(), tmp_path / "cache")
    store.put_folder(folder, "j/1/output")
    assert store.fetch("j/1/output") == store.local_path("j/1/output") == tmp_path / "a store/j/1/output"
    assert not (tmp_path / "cache").exists()


def test_an_artifact_elsewhere_is_fetched_once_and_again_when_somebody_wrote_into_it(tmp_path, folder):
    store = memory_store(tmp_path)
    store.put_folder(folder, "a")
    first = store.fetch("a")
    at = first.stat().st_ino
    assert store.local_path("a") is None
    assert store.fetch("a").stat().st_ino == at
    (first / "empty").write_bytes(b"scribble")
    assert content(store.fetch("a")) == content(folder)


def test_the_cache_drops_what_was_unused_for_longest_and_nothing_in_use(tmp_path, folder):
    store = memory_store(tmp_path, gigabytes=0.005)  # two of 2.3 MB
    for name in "abc":
        store.put_folder(folder, name)
    paths = {name: store.fetch(name) for name in "abc"}
    assert all(path.is_dir() for path in paths.values()), "all were used just now"
    for age, name in enumerate("bac"):
        long_ago = time.time() - artifacts._IN_USE_SECONDS - 100 + age
        os.utime(paths[name], (long_ago, long_ago))
    store.fetch("a")  # in use once more
    store.put_folder(folder, "d")
    store.fetch("d")
    assert {name for name, path in paths.items() if path.is_dir()} == {"a"}


_PUT = """
import resource, sys
from pathlib import Path
from queue_app.artifacts import ArtifactError, ArtifactStore
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
store = ArtifactStore(sys.argv[1], Path(sys.argv[2]))
try:
    store.put_folder(Path(sys.argv[3]), "a") if sys.argv[4] == "put" else store.fetch("a")
except ArtifactError as error:
    sys.exit(f"{int(error.exit_code)} {error}")
"""


@pytest.mark.parametrize("there_before", [True, False])
def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_what_was_there(tmp_path, folder, there_before):
    url = (tmp_path / "store").as_uri()
    store = ArtifactStore(url, tmp_path / "cache")
    if there_before:
        store.put_folder(folder / "train", "a")
    command = [sys.executable, "-c", _PUT, url, str(tmp_path / "cache"), str(folder), "put"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("3 No room for artifact a"), done.stderr
    assert store.exists("a") == there_before
    assert not there_before or content(store.fetch("a")) == content(folder / "train")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["a"] * there_before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; only root on Linux may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a small file system; the test with a file size limit covers the same code")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_under_the_store_is_one_sentence_and_leaves_nothing(small_disk, tmp_path, folder):
    store = ArtifactStore((small_disk / "store").as_uri(), tmp_path / "cache")
    with pytest.raises(ArtifactError, match="No room") as caught:
        store.put_folder(folder, "a")
    assert caught.value.exit_code == ExitCode.UNREACHABLE
    assert not store.exists("a")
    assert list((small_disk / "store").iterdir()) == []


def test_a_full_disk_under_the_cache_is_one_sentence_and_leaves_nothing(small_disk, tmp_path, folder):
    store = ArtifactStore(f"memory://{tmp_path.name}", small_disk / "cache")
    store.put_folder(folder, "a")
    with pytest.raises(ArtifactError, match="No room"):
        store.fetch("a")
    assert list((small_disk / "cache").iterdir()) == []


def test_a_store_that_cannot_be_made_is_one_sentence(tmp_path, folder):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be used") as caught:
        ArtifactStore((tmp_path / "file/store").as_uri(), tmp_path / "cache").put_folder(folder, "a")
    assert caught.value.exit_code == ExitCode.UNREACHABLE


def test_a_store_that_is_not_mounted_is_worth_waiting_for(tmp_path):
    with pytest.raises(ArtifactError, match="mount it") as caught:
        ArtifactStore((tmp_path / "gone").as_uri(), tmp_path / "cache").fetch("a")
    assert caught.value.exit_code == ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("url", "words"), [("nosuch://u:secret@h/x", "no artifact store"), ("gdrive://u:secret@x", "need a package")]
)
def test_a_url_without_a_file_system_is_one_sentence_without_the_password(tmp_path, folder, url, words):
    with pytest.raises(ArtifactError, match=words) as caught:
        ArtifactStore(url, tmp_path).put_folder(folder, "a")
    assert "secret" not in str(caught.value)
