"""A repository is read from its object store: pinned, bundled, listed, and nothing in it runs."""

import contextlib
import os
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import ExitCode
from jobs import repository
from jobs.dataset.history import count_commits, read_history
from jobs.repository import (
    RepositoryError,
    TreeEntry,
    fetch_url,
    has_commit,
    is_shallow,
    is_url,
    lacks,
    list_files,
    open_bundle,
    parse_tree,
    read_blobs,
    resolve,
    shown,
    split_fields,
    write_bundle,
)

WHO = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"}
DAY = {"GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z"}
PLAIN = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}


def git(folder, *command, stdin=None):
    done = subprocess.run(
        ["git", "-C", str(folder), *command], input=stdin, capture_output=True, check=True, env=PLAIN | WHO | DAY
    )
    return done.stdout.decode().strip()


def commit_all(folder, message="one"):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "a.py").write_text("print(1)\n")
    (folder / "docs").mkdir()
    (folder / "docs" / "b.md").write_text("# b\n")
    commit_all(folder)
    return folder


def head(folder):
    return git(folder, "rev-parse", "HEAD")


def paths(git_dir, commit):
    return [entry.path for entry in list_files(git_dir, commit)]


def test_a_work_tree_its_subfolder_a_bare_clone_and_a_linked_work_tree_all_resolve_to_the_same_commit(repo, tmp_path):
    git(repo, "clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    git(repo, "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    for place in (repo, repo / "docs", tmp_path / "bare.git", tmp_path / "linked"):
        resolved = resolve(str(place))
        assert resolved.commit == head(repo)
        assert not resolved.shallow
        assert paths(resolved.git_dir, resolved.commit) == [b"a.py", b"docs/b.md"]


def test_a_linked_work_tree_resolves_its_own_head(repo, tmp_path):
    git(repo, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "linked"))
    (tmp_path / "linked" / "c.py").write_text("c\n")
    mine = commit_all(tmp_path / "linked")
    assert resolve(str(tmp_path / "linked")).commit == mine != resolve(str(repo)).commit


def test_branches_tags_annotated_tags_and_short_ids_resolve(repo):
    git(repo, "tag", "light")
    git(repo, "tag", "--annotate", "--message", "m", "heavy")
    for ref in ("main", "light", "heavy", head(repo)[:8], "HEAD~0"):
        assert resolve(str(repo), ref).commit == head(repo)


def test_what_git_would_call_by_environment_is_not_what_we_read(repo, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert resolve(str(repo)).commit == head(repo)


def refusal(function, *arguments):
    with pytest.raises(RepositoryError) as caught:
        function(*arguments)
    sentence = str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_a_folder_without_a_repository_is_refused(tmp_path):
    assert "not a git repository" in refusal(resolve, str(tmp_path))


def test_a_file_and_a_missing_path_are_refused(repo):
    assert "is a file" in refusal(resolve, str(repo / "a.py"))
    assert "does not exist" in refusal(resolve, str(repo / "nowhere"))


def test_an_empty_repository_is_refused(tmp_path):
    git(tmp_path, "init", "--quiet")
    assert "is empty" in refusal(resolve, str(tmp_path))


def test_an_unknown_ref_is_refused_by_name(repo):
    assert "'nosuch'" in refusal(resolve, str(repo), "nosuch")
    assert "'" + "0" * 40 + "'" in refusal(resolve, str(repo), "0" * 40)


def test_a_ref_that_names_a_file_or_looks_like_a_flag_is_refused(repo):
    refusal(resolve, str(repo), "HEAD:a.py")
    refusal(resolve, str(repo), "--upload-pack=touch x")


def test_a_head_without_commits_asks_for_a_ref(repo):
    git(repo, "symbolic-ref", "HEAD", "refs/heads/unborn")
    assert "--ref" in refusal(resolve, str(repo))


def test_urls_and_paths_are_told_apart(tmp_path, monkeypatch):
    for url in ("https://h/r.git", "ssh://git@h/r", "git@h:me/r.git", "file:///r", "h:r.git"):
        assert is_url(url)
    for path in (".", "/a/b", "../x", "plain", "~/code", "a b/c", "./h:r"):
        assert not is_url(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h:r").mkdir()
    assert not is_url("h:r")


@pytest.mark.parametrize(
    "trap",
    [
        "ext::sh -c touch% /tmp/owned",
        "--upload-pack=touch /tmp/owned",
        "-u",
        "http://h/r",
        "git://h/r",
        "ftp://h/r",
        "ssh://-oProxyCommand=touch/r",
        "ssh://git@-oProxyCommand=touch/r",
        "https://h/r --upload-pack=x",
        "fd::3",
        "",
        " ",
        "a\0b",
    ],
)
def test_remote_helpers_flags_and_other_schemes_are_refused(trap):
    refusal(is_url, trap)
    refusal(resolve, trap)


def test_a_file_url_resolves_without_a_local_folder(repo):
    git(repo, "tag", "--annotate", "--message", "m", "heavy")
    for ref in (None, "main", "heavy", "refs/heads/main", "tags/heavy"):
        resolved = resolve(f"file://{repo}", ref)
        assert resolved.commit == head(repo)
        assert resolved.git_dir is None


def test_a_url_that_does_not_answer_an_unknown_ref_there_and_an_empty_one_are_refused(repo, tmp_path):
    git(tmp_path, "init", "--quiet", "--bare", "empty")
    assert "cannot be reached" in refusal(resolve, f"file://{tmp_path}/nowhere")
    assert "'nosuch'" in refusal(resolve, f"file://{repo}", "nosuch")
    assert "is empty" in refusal(resolve, f"file://{tmp_path}/empty")


def test_a_host_that_hangs_is_given_up_with_its_helper(tmp_path, monkeypatch):
    hang = tmp_path / "ssh"
    hang.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 100\n")
    hang.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(hang))
    monkeypatch.setattr(repository, "LIST_TIMEOUT", 1.0)
    assert "did not answer" in refusal(resolve, "git@host.invalid:r.git")
    # The helper's process group is gone: a zombie of another parent may remain, a running sleep may not.
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/status")
    assert not status.exists() or "State:\tS" not in status.read_text()


def test_a_password_in_a_url_is_not_shown():
    assert shown("https://me:secret@h/r.git") == "https://h/r.git"
    assert "secret" not in refusal(resolve, "https://me:secret@127.0.0.1:1/r.git")


def test_a_bundle_carries_the_commit_to_another_machine_and_leaves_no_trace(repo, tmp_path):
    before = sorted(str(path) for path in (repo / ".git").rglob("*"))
    write_bundle(repo / ".git", head(repo), tmp_path / "out" / "source.bundle")
    assert sorted(str(path) for path in (repo / ".git").rglob("*")) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["source.bundle"]
    git_dir = open_bundle(tmp_path / "out" / "source.bundle", head(repo), tmp_path / "far" / "repo.git")
    assert paths(git_dir, head(repo)) == [b"a.py", b"docs/b.md"]
    assert resolve(str(git_dir), head(repo)).commit == head(repo)
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["repo.git"]


def test_a_bundle_holds_only_what_the_commit_reaches(repo, tmp_path):
    first = head(repo)
    (repo / "later.py").write_text("later\n")
    later = commit_all(repo, "two")
    write_bundle(repo / ".git", first, tmp_path / "b")
    git_dir = open_bundle(tmp_path / "b", first, tmp_path / "far.git")
    refusal(resolve, str(git_dir), later)


def test_a_path_with_strange_letters_can_be_bundled(repo, tmp_path):
    strange = tmp_path / 'we"ird\n# näme'
    repo.rename(strange)
    write_bundle(strange / ".git", head(strange), tmp_path / "b")
    assert paths(open_bundle(tmp_path / "b", head(strange), tmp_path / "far.git"), head(strange))


def test_a_shallow_clone_is_flagged_and_survives_its_bundle(repo, tmp_path):
    (repo / "a.py").write_text("print(2)\n")
    commit_all(repo, "two")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repo}", "shallow")
    resolved = resolve(str(tmp_path / "shallow"))
    assert resolved.shallow
    write_bundle(resolved.git_dir, resolved.commit, tmp_path / "b")
    git_dir = open_bundle(tmp_path / "b", resolved.commit, tmp_path / "far.git")
    assert is_shallow(git_dir)
    assert git(git_dir, "log", "--format=%s", resolved.commit) == "two"
    assert paths(git_dir, resolved.commit) == [b"a.py", b"docs/b.md"]


def test_a_broken_bundle_and_a_bundle_of_another_commit_are_refused_and_leave_nothing(repo, tmp_path):
    write_bundle(repo / ".git", head(repo), tmp_path / "b")
    refusal(open_bundle, tmp_path / "b", "1" * 40, tmp_path / "far.git")
    whole = (tmp_path / "b").read_bytes()
    (tmp_path / "b").write_bytes(whole[: len(whole) - 30])
    refusal(open_bundle, tmp_path / "b", head(repo), tmp_path / "far.git")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "repo"]


def test_a_place_that_cannot_be_written_is_a_sentence(repo, tmp_path):
    (tmp_path / "file").write_text("x")
    refusal(write_bundle, repo / ".git", head(repo), tmp_path / "file" / "b")
    refusal(fetch_url, f"file://{repo}", head(repo), tmp_path / "file" / "r.git")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("x")
    refusal(fetch_url, f"file://{repo}", head(repo), tmp_path / "taken")


def test_a_url_is_fetched_whole_or_not_at_all(repo, tmp_path):
    git_dir = fetch_url(f"file://{repo}", head(repo), tmp_path / "far" / "r.git")
    assert paths(git_dir, head(repo)) == [b"a.py", b"docs/b.md"]
    refusal(fetch_url, f"file://{repo}", "1" * 40, tmp_path / "far" / "none.git")
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["r.git"]


def test_a_sha256_repository_works(tmp_path):
    git(tmp_path, "init", "--quiet", "--object-format=sha256")
    (tmp_path / "a").write_text("a\n")
    commit = commit_all(tmp_path)
    assert len(commit) == 64
    write_bundle(tmp_path / ".git", commit, tmp_path / "b")
    assert paths(open_bundle(tmp_path / "b", commit, tmp_path / "far.git"), commit) == [b"a"]


def test_blobs_come_back_in_order_whatever_bytes_they_hold(repo):
    contents = [b"", b"\n", b"no newline", bytes(range(256)) * 999, b"abc blob 3\nabc\n"]
    ids = [git(repo, "hash-object", "-w", "--stdin", stdin=content) for content in contents]
    assert list(read_blobs(repo / ".git", ids * 2)) == list(zip(ids, contents, strict=True)) * 2


def test_many_blobs_do_not_block_the_pipes(repo):
    blob = git(repo, "hash-object", "-w", "--stdin", stdin=b"x" * 1000)
    assert sum(len(content) for _, content in read_blobs(repo / ".git", [blob] * 20_000)) == 20_000_000


def test_a_reader_that_loses_interest_leaves_no_process(repo):
    blob = git(repo, "hash-object", "-w", "--stdin", stdin=b"x" * 100_000)
    blobs = read_blobs(repo / ".git", [blob] * 1000)
    next(blobs)
    blobs.close()


def test_a_reader_that_loses_interest_in_sized_blobs_leaves_no_process(repo):
    blob = git(repo, "hash-object", "-w", "--stdin", stdin=b"x" * 100_000)
    blobs = read_blobs(repo / ".git", (blob for _ in range(1000)), max_bytes=1 << 20)
    next(blobs)
    blobs.close()
    assert psutil.Process().children(recursive=True) == []


def test_a_missing_commit_is_a_sentence(repo):
    refusal(lambda: list(list_files(repo / ".git", "1" * 40)))
    refusal(lambda: list(list_files(repo / ".git", "HEAD")))
    refusal(lambda: list(list_files(repo / "docs", "1" * 40)))


@pytest.mark.parametrize("max_bytes", [None, 5])
def test_what_is_missing_or_no_blob_is_none_in_its_place(repo, max_bytes):
    here = [git(repo, "hash-object", "-w", "--stdin", stdin=content) for content in (b"", b"here", b"\n")]
    tree = git(repo, "rev-parse", "HEAD^{tree}")
    asked = [here[0], "1" * 40, tree, here[1], "2" * 40, head(repo), here[2], "3" * 40, here[0]]
    expected = [b"", None, None, b"here", None, None, b"\n", None, b""]
    assert list(read_blobs(repo / ".git", asked, max_bytes)) == list(zip(asked, expected, strict=True))
    assert list(read_blobs(repo / ".git", ["1" * 40] * 3, max_bytes)) == [("1" * 40, None)] * 3
    assert list(read_blobs(repo / ".git", [], max_bytes)) == []


def test_blobs_above_the_size_are_not_read(repo):
    contents = [b"x" * size for size in (0, 9, 10, 11, 64 << 20, 1)]
    ids = [git(repo, "hash-object", "-w", "--stdin", stdin=content) for content in contents]
    tracemalloc.start()
    read = dict(read_blobs(repo / ".git", ids, max_bytes=10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [read[name] for name in ids] == [*contents[:3], None, None, contents[5]]
    assert peak < 1 << 20


def loose(repo, name):
    return repo / ".git" / "objects" / name[:2] / name[2:]


def test_a_blob_of_two_gigabytes_is_passed_over(repo):
    name = "ab" * 20
    loose(repo, name).parent.mkdir(exist_ok=True)
    # Only its head is there: who read on would fail.
    loose(repo, name).write_bytes(zlib.compress(b"blob %d\0begun" % (2 << 30)))
    small = git(repo, "hash-object", "-w", "--stdin", stdin=b"small")
    assert list(read_blobs(repo / ".git", [name, small], max_bytes=1 << 20)) == [(name, None), (small, b"small")]


@pytest.mark.parametrize("max_bytes", [None, 1 << 20])
@pytest.mark.parametrize("damage", [b"", b"rubbish", b"\x78\x01\x4b\xca\xc9\x4f\x52\x30\x34\x34"])
def test_a_broken_object_costs_only_itself(repo, damage, max_bytes):
    ids = [git(repo, "hash-object", "-w", "--stdin", stdin=b"content %d" % number) for number in range(40)]
    broken = {ids[0], ids[1], ids[20], ids[39]}
    for name in broken:
        loose(repo, name).chmod(0o644)
        loose(repo, name).write_bytes(damage)
    read = list(read_blobs(repo / ".git", iter(ids), max_bytes))
    assert read == [(name, None if name in broken else b"content %d" % place) for place, name in enumerate(ids)]


@pytest.mark.parametrize("max_bytes", [None, 1 << 20])
def test_an_object_that_is_cut_in_its_middle_costs_only_itself(repo, max_bytes):
    ids = [git(repo, "hash-object", "-w", "--stdin", stdin=os.urandom(100_000)) for _ in range(3)]
    loose(repo, ids[1]).chmod(0o644)
    loose(repo, ids[1]).write_bytes(loose(repo, ids[1]).read_bytes()[:50_000])
    read = list(read_blobs(repo / ".git", ids, max_bytes))
    assert [(name, content is None) for name, content in read] == list(zip(ids, (False, True, False), strict=True))


def test_a_store_with_very_many_broken_objects_is_refused(repo, monkeypatch):
    monkeypatch.setattr(repository, "_BROKEN_LIMIT", 3)
    ids = [git(repo, "hash-object", "-w", "--stdin", stdin=b"%d" % number) for number in range(4)]
    for name in ids:
        loose(repo, name).chmod(0o644)
        loose(repo, name).write_bytes(zlib.compress(b"blob 9\0x"))
    assert "git fsck" in refusal(lambda: list(read_blobs(repo / ".git", ids)))


@pytest.mark.parametrize("max_bytes", [None, 1 << 20])
def test_what_goes_wrong_while_asking_is_told_to_the_reader(repo, max_bytes):
    def asking():
        yield from [git(repo, "rev-parse", "HEAD:a.py")] * 1000
        raise KeyError("asker")

    with pytest.raises(KeyError, match="asker"):
        list(read_blobs(repo / ".git", asking(), max_bytes))


def test_objects_that_another_repository_lends_are_read(repo, tmp_path):
    git(tmp_path, "clone", "--quiet", "--bare", "--shared", str(repo), "borrower.git")
    alternates = tmp_path / "borrower.git" / "objects" / "info" / "alternates"
    for place in (alternates.read_text(), "../../repo/.git/objects\n"):
        alternates.write_text(place)
        entries = list(list_files(tmp_path / "borrower.git", head(repo)))
        blobs = [entry.blob for entry in entries]
        assert [content for _, content in read_blobs(tmp_path / "borrower.git", blobs)] == [b"print(1)\n", b"# b\n"]


def test_replaced_objects_are_read_as_they_were_made(repo):
    blob, other = (git(repo, "hash-object", "-w", "--stdin", stdin=content) for content in (b"made", b"replaced"))
    git(repo, "replace", blob, other)
    assert list(read_blobs(repo / ".git", [blob])) == [(blob, b"made")]


def test_a_hundred_thousand_files_in_one_folder_are_listed(repo):
    blob = bytes.fromhex(git(repo, "hash-object", "-w", "--stdin", stdin=b"x"))
    raw = b"".join(b"100644 f%06d\0%b" % (number, blob) for number in range(100_000))
    tree = git(repo, "hash-object", "-w", "-t", "tree", "--stdin", stdin=raw)
    commit = git(repo, "commit-tree", "-m", "m", tree)
    assert sum(1 for _ in list_files(repo / ".git", commit)) == 100_000


# ---- Ranges ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_commits(repo):
    git(repo, "tag", "old")
    (repo / "c.py").write_text("c\n")
    commit_all(repo, "two")
    return repo


@pytest.mark.parametrize("ref", ["old..main", "old..", "HEAD~1..HEAD"])
def test_a_range_has_an_end_and_a_start(two_commits, ref):
    resolved = resolve(str(two_commits), ref)
    assert resolved.commit == head(two_commits)
    assert resolved.since == git(two_commits, "rev-parse", "old")
    assert resolve(str(two_commits), "main").since is None


def test_a_range_of_a_url_is_pinned_at_both_ends(two_commits):
    old = git(two_commits, "rev-parse", "old")
    for ref in ("old..main", f"{old}..main", "old..", f"{old}..{head(two_commits)}"):
        resolved = resolve(f"file://{two_commits}", ref)
        assert (resolved.since, resolved.commit) == (old, head(two_commits))


@pytest.mark.parametrize("ref", ["..", "old...main", "main..-x", "a..b..c", "nosuch..main", "main..nosuch"])
def test_a_range_that_is_none_is_refused(two_commits, ref):
    refusal(resolve, str(two_commits), ref)
    refusal(resolve, f"file://{two_commits}", ref)


def test_a_range_without_commits_is_refused(two_commits):
    for ref in ("main..main", "main..old", "..old"):
        assert "holds no commit" in refusal(resolve, str(two_commits), ref)
    assert "holds no commit" in refusal(resolve, f"file://{two_commits}", "main..main")


@pytest.fixture
def beside(two_commits):
    """A branch that began before main: main is no part of its history."""
    git(two_commits, "checkout", "--quiet", "-b", "feature", "old")
    (two_commits / "feature.py").write_text("feature = 1\n")
    commit_all(two_commits, "Begin a feature")
    git(two_commits, "checkout", "--quiet", "main")
    return two_commits


def test_the_start_of_a_range_travels_though_its_end_does_not_reach_it(beside, tmp_path):
    resolved = resolve(str(beside), "main..feature")
    write_bundle(resolved.git_dir, resolved.commit, tmp_path / "b", resolved.since)
    bundled = open_bundle(tmp_path / "b", resolved.commit, tmp_path / "far.git")
    asked = resolve(f"file://{beside}", "main..feature")
    fetched = fetch_url(f"file://{beside}", asked.commit, tmp_path / "fetched.git", asked.since)
    for place in (resolved.git_dir, bundled, fetched):
        assert has_commit(place, resolved.since)
        assert [commit.message for commit in read_history(place, resolved.commit, resolved.since)] == [
            "Begin a feature"
        ]
        assert count_commits(place, resolved.commit, resolved.since) == 1


def test_a_clone_that_lacked_something_is_told_from_what_it_is_later(two_commits, tmp_path):
    (two_commits / "d.py").write_text("d\n")
    commit_all(two_commits, "three")
    url = f"file://{two_commits}"
    git(tmp_path, "clone", "--quiet", "--bare", "--depth=1", url, "shallow.git")
    git(tmp_path, "clone", "--quiet", "--bare", url, "whole.git")
    before = lacks(tmp_path / "shallow.git")
    assert before
    assert lacks(tmp_path / "whole.git") == ""
    git(tmp_path / "shallow.git", "fetch", "--quiet", "--depth=2", url, "main")
    deeper = lacks(tmp_path / "shallow.git")
    git(tmp_path / "shallow.git", "fetch", "--quiet", "--unshallow", url, "main")
    assert len({before, deeper, lacks(tmp_path / "shallow.git")}) == 3


def test_objects_that_arrive_in_a_partial_clone_are_seen(two_commits, tmp_path):
    git(two_commits, "config", "uploadpack.allowFilter", "true")
    git(two_commits, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(tmp_path, "clone", "--quiet", "--bare", "--filter=blob:none", f"file://{two_commits}", "partial.git")
    before = lacks(tmp_path / "partial.git")
    assert before == lacks(tmp_path / "partial.git") != ""
    blob = next(entry.blob for entry in list_files(two_commits / ".git", head(two_commits)))
    git(tmp_path / "partial.git", "cat-file", "-p", blob)
    assert lacks(tmp_path / "partial.git") != before


# ---- Hostile repositories --------------------------------------------------------------------------------------------


def test_nothing_that_a_repository_names_is_run(repo, tmp_path):
    trap = tmp_path / "trap"
    trap.write_text(f'#!/bin/sh\ntouch "{tmp_path}/sprung"\ncat\n')
    trap.chmod(0o755)
    (repo / ".gitattributes").write_text("* filter=trap diff=trap\n")
    commit = commit_all(repo, "attributes")
    for key in (
        "filter.trap.smudge",
        "filter.trap.clean",
        "diff.trap.textconv",
        "diff.external",
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "core.editor",
        "core.askPass",
        "credential.helper",
        "uploadpack.packObjectsHook",
        "core.alternateRefsCommand",
        "remote.origin.uploadpack",
        "gpg.program",
    ):
        git(repo, "config", key, str(trap))
    git(repo, "config", "remote.origin.url", f"ext::{trap}")
    git(repo, "config", "protocol.ext.allow", "always")
    git(repo, "config", "remote.origin.promisor", "true")
    git(repo, "config", "core.hooksPath", str(tmp_path / "hooks"))
    for folder in (tmp_path / "hooks", repo / ".git" / "hooks"):
        folder.mkdir(exist_ok=True)
        for hook in ("post-checkout", "reference-transaction", "pre-auto-gc", "post-index-change"):
            (folder / hook).symlink_to(trap)
    resolve(str(repo))
    entries = list(list_files(repo / ".git", commit))
    list(read_blobs(repo / ".git", [entry.blob for entry in entries]))
    assert list(read_blobs(repo / ".git", ["1" * 40])) == [("1" * 40, None)]
    write_bundle(repo / ".git", commit, tmp_path / "b")
    open_bundle(tmp_path / "b", commit, tmp_path / "far.git")
    resolve(f"file://{repo}")
    fetch_url(f"file://{repo}", commit, tmp_path / "fetched.git")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("remote", ["ext::{}", "git@host.invalid:r.git"])
def test_a_partial_clone_does_not_fetch_what_it_lacks(repo, tmp_path, remote):
    trap = tmp_path / "trap"
    trap.write_text(f'#!/bin/sh\ntouch "{tmp_path}/sprung"\n')
    trap.chmod(0o755)
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": remote.format(trap),
        "core.sshCommand": str(trap),
        "protocol.ext.allow": "always",
    }.items():
        git(repo, "config", key, value)
    for max_bytes in (None, 9):
        assert list(read_blobs(repo / ".git", ["1" * 40], max_bytes)) == [("1" * 40, None)]
    refusal(resolve, str(repo), "1" * 40)
    assert not (tmp_path / "sprung").exists()


def test_a_configuration_that_never_ends_is_given_up(repo, monkeypatch):
    os.mkfifo(repo / ".git" / "pipe")
    with (repo / ".git" / "config").open("a") as file:
        file.write("[include]\npath = pipe\n")
    monkeypatch.setattr(repository, "LIST_TIMEOUT", 0.3)
    assert "did not answer" in refusal(resolve, str(repo))
    # What is already pinned needs no configuration.
    commit = (repo / ".git" / "refs" / "heads" / "main").read_text().strip()
    assert paths(repo / ".git", commit) == [b"a.py", b"docs/b.md"]


def test_a_repository_of_another_user_is_read(repo):
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    for place in [repo, *repo.rglob("*")]:
        os.lchown(place, 12345, 12345)
    resolved = resolve(str(repo))
    assert paths(resolved.git_dir, resolved.commit) == [b"a.py", b"docs/b.md"]


def test_symlinks_and_submodules_are_listed_as_what_they_are(repo):
    (repo / "link").symlink_to("/etc/passwd")
    git(repo, "update-index", "--add", "--cacheinfo", f"160000,{head(repo)},module")
    commit = commit_all_keeping_index(repo)
    modes = {entry.path: (entry.mode, entry.size) for entry in list_files(repo / ".git", commit)}
    assert modes[b"link"] == ("120000", len("/etc/passwd"))
    assert modes[b"module"] == ("160000", 0)


def commit_all_keeping_index(folder):
    git(folder, "add", "link")
    git(folder, "commit", "--quiet", "--message", "links")
    return head(folder)


def test_names_of_any_bytes_are_listed_as_they_are(repo):
    names = [b"new\nline.py", b'quo"te.py', b"tab\there.py", b"\xff\xfe.py", b"<file_sep>.py", b" lead", b"-rf"]
    blob = git(repo, "hash-object", "-w", "--stdin", stdin=b"x")
    lines = b"".join(b"100644 blob %s\t%s\0" % (blob.encode(), name) for name in names)
    tree = git(repo, "mktree", "-z", stdin=lines)
    commit = git(repo, "commit-tree", "-m", "m", tree)
    assert paths(repo / ".git", commit) == sorted(names)


ENTRIES = st.lists(
    st.builds(
        TreeEntry,
        mode=st.sampled_from(["100644", "100755", "120000"]),
        blob=st.text("0123456789abcdef", min_size=40, max_size=40),
        size=st.integers(0, 10**12),
        path=st.binary(min_size=1, max_size=40).map(lambda raw: raw.replace(b"\0", b"\n")),
    )
)


@given(entries=ENTRIES, cut=st.integers(1, 50))
def test_a_listing_is_read_however_it_is_cut(entries, cut):
    listing = b"".join(
        f"{entry.mode} blob {entry.blob} {entry.size:7}\t".encode() + entry.path + b"\0" for entry in entries
    )
    chunks = [listing[start : start + cut] for start in range(0, len(listing), cut)]
    assert list(parse_tree(chunks)) == entries


@given(fields=st.lists(st.binary(max_size=9).map(lambda raw: raw.replace(b"\0", b"")), max_size=9), data=st.data())
def test_fields_are_found_however_they_are_cut(fields, data):
    raw = b"".join(field + b"\0" for field in fields)
    places = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    chunks = [raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True)]
    assert list(split_fields(chunks)) == fields


@given(rubbish=st.lists(st.binary(max_size=60), max_size=5))
def test_rubbish_is_entries_or_a_sentence_but_never_another_error(rubbish):
    with contextlib.suppress(RepositoryError):
        assert all(entry.path for entry in parse_tree(rubbish))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:p@ss@host/x.git", "https://host/x.git"),
        ("https://host/x.git?private_token=abc", "https://host/x.git"),
        ("ssh://git:pw@host/x", "ssh://git@host/x"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("https://host/x@y.git", "https://host/x@y.git"),
    ],
)
def test_no_password_of_a_url_is_shown(url, told):
    assert shown(url) == told
