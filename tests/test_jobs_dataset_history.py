"""A history is read as it is: every commit once, every change with its own path and blobs, and nothing of it runs."""

import contextlib
import itertools
import os
import random
import subprocess
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import repository
from jobs.dataset import history
from jobs.dataset.history import (
    Change,
    Commit,
    Lineages,
    count_commits,
    cut_commit,
    parse_history,
    read_history,
)
from jobs.repository import RepositoryError, read_blobs

WHO = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"}
PLAIN = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
TEXT = b"".join(b"line %d of a file that is long enough to be known again\n" % number for number in range(20))


def git(folder, *command, stdin=None):
    ask = ["git", "-C", str(folder), *command]
    done = subprocess.run(ask, input=stdin, capture_output=True, check=False, env=PLAIN | WHO)
    assert done.returncode == 0, done.stderr
    return done.stdout


def quoted(path):
    return b'"' + b"".join(b"\\%03o" % byte for byte in path) + b'"'


def put(path, content=TEXT, mode=b"100644"):
    """A line of `git fast-import` that puts `content` at `path`."""
    return b"M %b inline %b\ndata %d\n%b\n" % (mode, quoted(path), len(content), content)


def commit(*lines, message=b"m", merging=(), branch=b"main", when=1_700_000_000, headers=b"", start=b""):
    merged = (b"from %b\n" % start if start else b"") + b"".join(b"merge %b\n" % name for name in merging)
    return b"commit refs/heads/%b\ncommitter A <a@b> %d +0000\n%bdata %d\n%b\n%b%b\n" % (
        *(branch, when, headers, len(message), message, merged),
        b"".join(lines),
    )


def imported(folder, *commits, kind="sha1"):
    """A bare repository made of `commits`, and the id of its tip."""
    git_dir = folder / "r.git"
    git(folder, "init", "--quiet", "--bare", f"--object-format={kind}", "--initial-branch=main", str(git_dir))
    git(git_dir, "fast-import", "--quiet", "--force", stdin=b"".join(commits))
    return git_dir, tip_of(git_dir)


def tip_of(git_dir, ref="main"):
    return git(git_dir, "rev-parse", ref).decode().strip()


def blob_of(git_dir, commit_, path):
    return git(git_dir, "rev-parse", f"{commit_}:{path}").decode().strip()


# ---- What a commit changed ------------------------------------------------------------------------------------------


def test_every_kind_of_change_is_told_with_its_paths_blobs_and_mode(tmp_path):
    git_dir, tip = imported(
        tmp_path,
        commit(put(b"kept", b"1\n"), put(b"gone", b"g\n"), put(b"old", TEXT + b"o"), put(b"turned", b"t"), when=1),
        commit(
            put(b"kept", b"2\n", b"100755"),
            b"D gone\nD old\n",
            put(b"new", TEXT + b"n"),
            put(b"turned", b"/etc/passwd", b"120000"),
            b"M 160000 " + b"1" * 40 + b" module\n",
            when=2,
        ),
    )
    last, first = read_history(git_dir, tip)
    assert [change.kind for change in first.changes] == ["A"] * 4
    assert all(change.before is None and change.before_path == change.path for change in first.changes)
    blobs = {path: blob_of(git_dir, f"{tip}~", path) for path in ("kept", "gone", "old", "turned")}
    after = {path: blob_of(git_dir, tip, path) for path in ("kept", "new", "turned")}
    assert last.changes == (
        Change("D", b"gone", b"gone", blobs["gone"], None, "100644"),
        Change("M", b"kept", b"kept", blobs["kept"], after["kept"], "100755"),
        Change("A", b"module", b"module", None, "1" * 40, history.SUBMODULE),
        Change("R", b"new", b"old", blobs["old"], after["new"], "100644"),
        Change("T", b"turned", b"turned", blobs["turned"], after["turned"], history.SYMLINK),
    )
    assert (last.parents, first.parents, last.when, first.when) == ((first.id,), (), 2, 1)


def test_blobs_of_a_history_are_there_to_be_read(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a", b"1")), commit(put(b"a", b"2")))
    blobs = [change.after for entry in read_history(git_dir, tip) for change in entry.changes]
    assert [content for _, content in read_blobs(git_dir, blobs)] == [b"2", b"1"]


def test_paths_of_any_bytes_are_told_as_they_are(tmp_path):
    look_alike = b":100644 100644 %b %b M" % (b"1" * 40, b"2" * 40)
    paths = [b"new\nline", b'tab\tquote"', b"\xff\xfe latin", b"\n:", look_alike, b"a" * 40, b"\x01\x02", b"-rf"]
    git_dir, tip = imported(tmp_path, commit(*(put(path, path) for path in paths)))
    (entry,) = read_history(git_dir, tip)
    assert [change.path for change in entry.changes] == sorted(paths)
    contents = dict(zip(sorted(paths), read_blobs(git_dir, [change.after for change in entry.changes]), strict=True))
    assert all(content == path for path, (_, content) in contents.items())


def test_a_message_that_looks_like_git_is_a_message(tmp_path):
    forged = b"%b\n\n:100644 100644 %b %b M\tsecret.py\n\x01\x02\x1b[2J\r\n%%x00" % (b"1" * 40, b"2" * 40, b"3" * 40)
    git_dir, tip = imported(tmp_path, commit(put(b"a"), message=forged), commit(message=b"", when=1_700_000_001))
    empty, entry = read_history(git_dir, tip)
    assert entry.message == forged.decode().strip()
    assert [change.path for change in entry.changes] == [b"a"]
    assert (empty.message, empty.changes) == ("", ())


def test_a_nul_in_a_message_ends_it_and_moves_nothing(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a")))
    raw = git(git_dir, "cat-file", "commit", tip).replace(b"\n\nm", b"\n\nshown\0:100644 hidden\0")
    forged = git(git_dir, "hash-object", "-w", "-t", "commit", "--literally", "--stdin", stdin=raw).decode().strip()
    (entry,) = read_history(git_dir, forged)
    assert entry.message == "shown"
    assert [change.path for change in entry.changes] == [b"a"]


def test_messages_are_read_in_the_encoding_they_name_else_as_utf_8_else_as_latin_1(tmp_path):
    git_dir, _ = imported(
        tmp_path,
        commit(message="日本".encode("shift_jis"), headers=b"encoding Shift_JIS\n", when=4),
        commit(message="grün".encode("latin-1"), headers=b"encoding ISO-8859-1\n", when=3),
        commit(message="grün".encode("latin-1"), headers=b"encoding rot13\n", when=2),
        commit(message="grün".encode(), when=1),
        commit(message="grün".encode("latin-1"), when=0),
    )
    messages = [entry.message for entry in read_history(git_dir, tip_of(git_dir))]
    assert messages == ["grün", "grün", "grün", "grün", "日本"]


def test_a_message_of_megabytes_is_cut(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a"), message=b"word " * 1_000_000))
    (entry,) = read_history(git_dir, tip)
    assert len(entry.message) == history.MESSAGE_LIMIT
    assert entry.changes


# ---- Which commits ---------------------------------------------------------------------------------------------------


def octopus(arms):
    """A root, `arms` branches of one commit each, and a merge of them all."""
    root = commit(put(b"root"), b"", when=1)
    branches = [
        commit(put(b"arm%d" % arm), start=b"refs/heads/main", branch=b"arm%d" % arm, when=2 + arm)
        for arm in range(arms)
    ]
    names = [b"refs/heads/arm%d" % arm for arm in range(arms)]
    files = [put(b"arm%d" % arm) for arm in range(arms)]
    return [root, *branches, commit(*files, merging=names, when=1000, message=b"merge")]


def test_merges_have_all_their_parents_and_no_changes(tmp_path):
    git_dir, tip = imported(tmp_path, *octopus(30))
    merge, *arms, root = read_history(git_dir, tip)
    assert len(merge.parents) == 31
    assert merge.changes == ()
    assert {entry.parents for entry in arms} == {(root.id,)}
    assert sorted(change.path for entry in arms for change in entry.changes) == sorted(b"arm%d" % n for n in range(30))
    assert count_commits(git_dir, tip) == 32


def test_what_an_excluded_commit_reaches_is_left_out(tmp_path):
    git_dir, tip = imported(tmp_path, *(commit(put(b"a", b"%d" % n), when=n) for n in range(5)))
    names = [entry.id for entry in read_history(git_dir, tip)]
    assert [entry.id for entry in read_history(git_dir, tip, names[2])] == names[:2]
    assert list(read_history(git_dir, tip, tip)) == []


def test_a_shallow_clones_oldest_commits_have_no_changes(tmp_path):
    git_dir, _ = imported(tmp_path, *(commit(put(b"a", b"%d" % n), when=n) for n in range(5)))
    git(tmp_path, "clone", "--quiet", "--bare", "--depth=3", f"file://{git_dir}", "shallow.git")
    commits = list(read_history(tmp_path / "shallow.git", tip_of(git_dir)))
    assert [len(entry.changes) for entry in commits] == [1, 1, 0]
    assert count_commits(tmp_path / "shallow.git", tip_of(git_dir)) == 3


def test_a_sha256_history_is_read(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a")), commit(put(b"b")), kind="sha256")
    assert len(tip) == 64
    assert [change.path for entry in read_history(git_dir, tip) for change in entry.changes] == [b"b", b"a"]
    assert cut_commit(git_dir, tip, 0.5) == tip_of(git_dir, "main~")


def test_a_commit_without_a_readable_date_is_from_1970(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a")))
    raw = git(git_dir, "cat-file", "commit", tip).replace(b"1700000000 +0000", b"tomorrow")
    undated = git(git_dir, "hash-object", "-w", "-t", "commit", "--literally", "--stdin", stdin=raw).decode().strip()
    assert [entry.when for entry in read_history(git_dir, undated)] == [0]


# ---- Renames ---------------------------------------------------------------------------------------------------------


def test_a_commit_that_moves_more_than_the_limit_has_its_equal_contents_as_renames(tmp_path):
    count = history.RENAME_LIMIT + 2  # one of them goes before they are counted
    before = [put(b"old/%d" % n, TEXT + b"%d" % n) for n in range(count)]
    after = [put(b"new/%d-%d" % (n, n), TEXT + b"%d%b" % (n, b" changed" if n else b"")) for n in range(count)]
    git_dir, tip = imported(tmp_path, commit(*before), commit(b"D old\n", *after))
    moved, _ = read_history(git_dir, tip)
    kinds = [change.kind for change in moved.changes]
    assert (kinds.count("R"), kinds.count("A"), kinds.count("D")) == (1, count - 1, count - 1)


def test_empty_files_are_no_renames_of_one_another(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a/__init__.py", b"")), commit(b"D a\n", put(b"b/__init__.py", b"")))
    moved, _ = read_history(git_dir, tip)
    assert sorted(change.kind for change in moved.changes) == ["A", "D"]


def test_contents_that_are_missing_cost_only_the_renames_that_need_them(tmp_path):
    git_dir, tip = imported(
        tmp_path,
        commit(put(b"a"), put(b"b", TEXT * 2), when=1),
        commit(b"D a\nD b\n", put(b"c", TEXT + b"more"), put(b"d", TEXT * 2), when=2),
        commit(put(b"e"), when=3),
    )
    remove(git_dir, blob_of(git_dir, f"{tip}~", "c"))
    last, moved, first = read_history(git_dir, tip)
    assert [(change.kind, change.path) for change in moved.changes] == [("D", b"a"), ("A", b"c"), ("R", b"d")]
    assert [change.path for change in last.changes + first.changes] == [b"e", b"a", b"b"]


def test_huge_contents_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "_MEMORY_LIMIT", "1m")
    big = random.Random(1).randbytes(3 << 20)
    git_dir, tip = imported(tmp_path, commit(put(b"a", big)), commit(b"D a\n", put(b"b", big + b"more")))
    moved, _ = read_history(git_dir, tip)
    assert sorted(change.kind for change in moved.changes) == ["A", "D"]


def remove(git_dir, name):
    """Take an object out of the repository."""
    for pack in list((git_dir / "objects" / "pack").glob("*.pack")):
        aside = git_dir.parent / pack.name
        pack.rename(aside)
        for file in (git_dir / "objects" / "pack").glob(f"{pack.stem}.*"):
            file.unlink()
        git(git_dir, "unpack-objects", "-q", stdin=aside.read_bytes())
    (git_dir / "objects" / name[:2] / name[2:]).unlink()


# ---- What is broken or hostile ---------------------------------------------------------------------------------------


def test_a_missing_tree_or_commit_is_a_sentence_and_no_shorter_history(tmp_path):
    git_dir, tip = imported(tmp_path, *(commit(put(b"a", b"%d" % n), when=n) for n in range(3)))
    remove(git_dir, git(git_dir, "rev-parse", f"{tip}~^{{tree}}").decode().strip())
    with pytest.raises(RepositoryError, match="cannot be read"):
        list(read_history(git_dir, tip))
    remove(git_dir, tip_of(git_dir, "main~"))
    for ask in (count_commits, lambda *where: cut_commit(*where, 0.5), lambda *where: list(read_history(*where))):
        with pytest.raises(RepositoryError, match="cannot be read"):
            ask(git_dir, tip)


def test_an_abbreviated_or_named_tip_is_refused(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a")))
    for name in (tip[:12], "main", "--output=/tmp/owned", ""):
        with pytest.raises(RepositoryError, match="not a full object id"):
            list(read_history(git_dir, name))


def test_replaced_and_grafted_commits_are_read_as_they_were_made(tmp_path):
    git_dir, tip = imported(tmp_path, *(commit(put(b"a", b"%d" % n), when=n) for n in range(3)))
    before = list(read_history(git_dir, tip))
    git(git_dir, "replace", tip, tip_of(git_dir, "main~2"))
    (git_dir / "info").mkdir(exist_ok=True)
    (git_dir / "info" / "grafts").write_text(f"{tip}\n")
    assert list(read_history(git_dir, tip)) == before
    assert count_commits(git_dir, tip) == 3


def test_nothing_that_a_repository_names_is_run_or_obeyed(tmp_path):
    trap = tmp_path / "trap"
    trap.write_text(f'#!/bin/sh\ntouch "{tmp_path}/sprung"\ncat\n')
    trap.chmod(0o755)
    attributes = put(b".gitattributes", b"* diff=trap filter=trap\n")
    git_dir, tip = imported(
        tmp_path,
        commit(attributes, put(b"a", TEXT), when=1),
        commit(b"D a\n", put(b"b", TEXT + b"more"), when=2),
    )
    clean = list(read_history(git_dir, tip))
    (git_dir / "info").mkdir(exist_ok=True)
    (git_dir / "info" / "attributes").write_text("* diff=trap\n")
    for key in ("diff.external", "diff.trap.command", "diff.trap.textconv", "gpg.program", "core.fsmonitor"):
        git(git_dir, "config", key, str(trap))
    for key, value in {
        "core.alternateRefsCommand": str(trap),
        "core.pager": str(trap),
        "log.showSignature": "true",
        "log.mailmap": "true",
        "log.diffMerges": "separate",
        "log.showRoot": "false",
        "log.follow": "true",
        "diff.renames": "copies",
        "diff.orderFile": "/dev/zero",
        "format.pretty": "trap %H",
        "i18n.logOutputEncoding": "UTF-16",
        "core.quotePath": "true",
    }.items():
        git(git_dir, "config", key, value)
    assert list(read_history(git_dir, tip)) == clean
    assert count_commits(git_dir, tip) == 2
    assert not (tmp_path / "sprung").exists()


def test_a_partial_clone_is_read_without_being_completed(tmp_path):
    git_dir, tip = imported(
        tmp_path,
        commit(put(b"a"), put(b"b", TEXT * 2), when=1),
        commit(b"D a\nD b\n", put(b"c", TEXT + b"more"), put(b"d", TEXT * 2), when=2),
    )
    git(git_dir, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "--quiet", "--bare", "--filter=blob:none", f"file://{git_dir}", "partial.git")
    moved, first = read_history(tmp_path / "partial.git", tip)
    assert [(change.kind, change.path) for change in moved.changes] == [("D", b"a"), ("A", b"c"), ("R", b"d")]
    blobs = [change.after for change in first.changes]
    assert [content for _, content in read_blobs(tmp_path / "partial.git", blobs)] == [None, None]


def test_a_reader_that_loses_interest_leaves_no_folder_behind(tmp_path, monkeypatch):
    git_dir, tip = imported(tmp_path, *(commit(put(b"a", b"%d" % n), when=n) for n in range(50)))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    commits = read_history(git_dir, tip)
    next(commits)
    commits.close()
    assert list((tmp_path / "tmp").iterdir()) == []


# ---- Large histories -------------------------------------------------------------------------------------------------


def test_a_commit_of_fifty_thousand_files_in_one_folder_is_read(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a")))
    blob = bytes.fromhex(blob_of(git_dir, tip, "a"))
    raw = b"".join(b"100644 f%06d\0%b" % (number, blob) for number in range(50_000))
    tree = git(git_dir, "hash-object", "-w", "-t", "tree", "--stdin", stdin=raw).decode().strip()
    large = git(git_dir, "commit-tree", "-m", "m", "-p", tip, tree).decode().strip()
    entry, _ = read_history(git_dir, large)
    # The file that was there moved to one of the many like it.
    assert sorted(Counter(change.kind for change in entry.changes).items()) == [("A", 49_999), ("R", 1)]
    assert entry.changes[-1].path == b"f049999"


def test_ten_thousand_branches_cost_nothing(tmp_path):
    git_dir, tip = imported(tmp_path, commit(put(b"a")))
    refs = "".join(f"{tip} refs/heads/b{number:05}\n" for number in range(10_000))
    (git_dir / "packed-refs").write_text(f"# pack-refs with: peeled fully-peeled sorted \n{refs}")
    began = time.process_time()
    assert repository.resolve(str(git_dir), "b09999").commit == tip
    assert len(list(read_history(git_dir, tip))) == 1
    assert time.process_time() - began < 1


# ---- The parser ------------------------------------------------------------------------------------------------------

IDS = st.sampled_from([letter * 40 for letter in "0123456789abcdef"[1:]] + ["e" * 64])
NAMES = st.binary(min_size=1, max_size=30).map(lambda raw: raw.replace(b"\0", b"\n"))
MODES = st.sampled_from(["100644", "100755", "120000", "160000"])


@st.composite
def changes(draw):
    kind = draw(st.sampled_from("AMDRT"))
    path = draw(NAMES)
    before = None if kind == "A" else draw(IDS)
    after = None if kind == "D" else draw(IDS)
    return Change(kind, path, draw(NAMES) if kind == "R" else path, before, after, draw(MODES))


COMMITS = st.builds(
    Commit,
    id=IDS,
    parents=st.lists(IDS, max_size=3).map(tuple),
    when=st.integers(0, 2**63),
    message=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80).map(str.strip),
    changes=st.lists(changes(), max_size=4).map(tuple),
)


def logged(commits):
    """What git would say of `commits`."""
    fields = []
    for entry in commits:
        fields += [entry.id.encode(), " ".join(entry.parents).encode(), b"%d" % entry.when, b""]
        fields.append(entry.message.encode() + b"\n")
        for place, change in enumerate(entry.changes):
            sides = [(name or "0" * 40).encode() for name in (change.before, change.after)]
            score = b"R087" if change.kind == "R" else change.kind.encode()
            modes = (change.mode.encode(), b"000000") if change.kind == "D" else (b"100644", change.mode.encode())
            fields.append(b"%b:%b %b %b %b %b" % (b"" if place else b"\n", *modes, *sides, score))
            fields += [change.before_path, change.path] if change.kind == "R" else [change.path]
    return b"".join(field + b"\0" for field in fields)


def pieces(raw, cut):
    return [raw[start : start + cut] for start in range(0, len(raw), cut)]


@given(commits=st.lists(COMMITS, max_size=5), cut=st.integers(1, 99))
def test_a_log_is_read_however_it_is_cut(commits, cut):
    assert list(parse_history(pieces(logged(commits), cut))) == commits


@given(rubbish=st.lists(st.binary(max_size=60) | st.sampled_from([b"1" * 40 + b"\0", b"\n:", b"\0", b":"]), max_size=9))
def test_rubbish_is_commits_or_a_sentence_but_never_another_error(rubbish):
    with contextlib.suppress(RepositoryError):
        assert all(entry.id for entry in parse_history(rubbish))


@given(commits=st.lists(COMMITS, min_size=1, max_size=3), data=st.data())
def test_a_log_that_ends_early_is_a_sentence_or_a_beginning(commits, data):
    raw = logged(commits)
    read = []
    with contextlib.suppress(RepositoryError):
        read.extend(parse_history([raw[: data.draw(st.integers(0, len(raw) - 1))]]))
    whole = read[:-1] if read and read != commits[: len(read)] else read
    assert whole == commits[: len(whole)]
    for entry, full in itertools.islice(zip(read, commits, strict=False), len(whole), None):
        assert entry.changes == full.changes[: len(entry.changes)]


# ---- The cut ---------------------------------------------------------------------------------------------------------


def test_the_newest_twentieth_of_a_straight_history_is_cut_off(tmp_path):
    git_dir, tip = imported(tmp_path, *(commit(put(b"a", b"%d" % n), when=n) for n in range(41)))
    names = [entry.id for entry in read_history(git_dir, tip)]
    assert cut_commit(git_dir, tip, 0.05) == names[3]
    assert len(list(read_history(git_dir, tip, names[3]))) == 3
    assert cut_commit(git_dir, tip, 0.0) is None


def test_a_short_history_is_not_cut(tmp_path):
    git_dir, tip = imported(tmp_path, *(commit(put(b"a", b"%d" % n), when=n) for n in range(19)))
    assert cut_commit(git_dir, tip, 0.05) is None


def test_a_history_that_a_merge_would_mostly_lose_is_not_cut(tmp_path):
    side = [commit(put(b"s", b"%d" % n), branch=b"side", when=n) for n in range(30)]
    merge = commit(put(b"s"), merging=[b"refs/heads/side"], when=99)
    git_dir, tip = imported(tmp_path, *side, commit(put(b"a"), when=1), merge)
    assert cut_commit(git_dir, tip, 0.05) is None


@st.composite
def graphs(draw):
    """Parents of commits 0, 1, …: larger numbers only, so that 0 is a tip and the order is a topological one."""
    count = draw(st.integers(1, 14))
    parents = st.integers(0, 2)
    return [
        draw(st.lists(st.integers(n + 1, count - 1), max_size=draw(parents), unique=True)) if n < count - 1 else []
        for n in range(count)
    ]


def reached(graph, start):
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph[name]
    return seen


@given(graph=graphs(), share=st.floats(0.01, 0.99))
def test_the_cut_is_the_newest_first_parent_that_does_not_reach_enough(graph, share):
    shown = [name for name in range(len(graph)) if name in reached(graph, 0)]
    lines = [" ".join(f"{name:040x}" for name in (entry, *graph[entry])).encode() for entry in shown]
    trunk = [0]
    while graph[trunk[-1]]:
        trunk.append(graph[trunk[-1]][0])
    lost = {name: len(shown) - len(reached(graph, name)) for name in trunk}
    found = next((name for name in trunk if lost[name] >= share * len(shown)), None)
    large = found is None or lost[found] > len(shown) / 2 or share * len(shown) < 1
    assert history._cut_of(lines, f"{0:040x}", share) == (None if large else f"{found:040x}")


# ---- Lineages --------------------------------------------------------------------------------------------------------


def renamed(before, after):
    return Change("R", after, before, "1" * 40, "2" * 40, "100644")


def a_commit(*changes_):
    return Commit("1" * 40, (), 0, "", changes_)


def test_a_file_keeps_its_lineage_through_renames_in_a_real_history(tmp_path):
    git_dir, tip = imported(
        tmp_path,
        commit(put(b"z.py"), put(b"other.py", b"other\n"), when=1),
        commit(b"D z.py\n", put(b"m.py", TEXT + b"1\n"), when=2),
        commit(b"D m.py\n", put(b"q.py", TEXT + b"1\n2\n"), when=3),
    )
    lineages = Lineages.of_history(read_history(git_dir, tip))
    assert {lineages.of(path) for path in (b"z.py", b"m.py", b"q.py")} == {b"m.py"}
    assert lineages.of(b"other.py") == b"other.py"
    assert lineages.of(b"never seen") == b"never seen"


PAIRS = st.lists(st.tuples(*[st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f", b"\xff", b"a/b"])] * 2), max_size=12)


@given(pairs=PAIRS, seed=st.integers(0, 99))
def test_lineages_are_the_connected_paths_whatever_the_order(pairs, seed):
    groups = {path: {path} for pair in pairs for path in pair}
    for before, after in pairs:
        joined = groups[before] | groups[after]
        groups.update(dict.fromkeys(joined, joined))
    random.Random(seed).shuffle(pairs)
    lineages = Lineages.of_history(a_commit(renamed(*pair)) for pair in pairs)
    assert {path: lineages.of(path) for path in groups} == {path: min(group) for path, group in groups.items()}


def test_a_chain_of_a_hundred_thousand_renames_is_quick():
    lineages = Lineages.of_history(
        a_commit(renamed(b"%06d" % number, b"%06d" % (number - 1))) for number in range(100_000, 0, -1)
    )
    began = time.process_time()
    assert {lineages.of(b"%06d" % number) for number in range(100_001)} == {b"000000"}
    assert time.process_time() - began < 2


def test_what_two_histories_know_of_the_same_files_is_put_together():
    one = Lineages.of_history([a_commit(renamed(b"b", b"c"))])
    other = Lineages.of_history([a_commit(renamed(b"a", b"b")), a_commit(renamed(b"x", b"y"))])
    one.learn(other)
    assert one.of(b"a") == one.of(b"b") == one.of(b"c") == b"a"
    assert one.of(b"y") == b"x"
