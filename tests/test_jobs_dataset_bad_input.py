"""Whatever a repository holds, it becomes a dataset or a sentence: nothing runs, leaks or is left behind."""

import json
import os
import random
import re
import resource
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from backends.errors import RepotuneError
from jobs import repository
from jobs.context import JobContext, StopRequested
from jobs.dataset.build import build_dataset
from jobs.events import StageStarted
from jobs.repository import RepositoryError, resolve
from jobs.shards import DOCUMENT_START, DatasetError, open_dataset, verify
from jobs.spec import Config, Source

PLAIN = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
WHO = "A <a@example.org>"
WORDS = """account buffer channel digest engine folder gateway handler invoice journal kernel ledger margin notice order
packet queue record signal ticket update vector window yield accept build collect deliver expand filter gather
hold inspect join keep launch move notify open""".split()  # noqa: SIM905 - read more easily


def git(folder, *command, stdin=None):
    done = subprocess.run(["git", "-C", str(folder), *command], input=stdin, capture_output=True, check=True, env=PLAIN)
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def code(number):
    """A page of code that resembles no other number's."""
    pick = random.Random(number)
    lines = []
    for line in range(6):
        one, two, three, four = (f"{pick.choice(WORDS)}_{pick.choice(WORDS)}" for _ in range(4))
        lines.append(f"def {one}_{number}_{line}({two}, {three}):\n    {four} = {two}.{pick.choice(WORDS)}({number})\n")
        lines.append(
            f"    if {four} != {three}:\n        return {pick.choice(WORDS)}({four})\n    return {three}\n\n\n"
        )
    return "".join(lines).encode()


def plain(count, folder=b"plain"):
    return {folder + b"/page_%03d.py" % number: code(number) for number in range(count)}


@dataclass
class History:
    """Commits of a bare repository, written by git fast-import: any path, any message, any parents."""

    folder: Path
    _marks: int = 0
    _stream: list = field(default_factory=list)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        git(self.folder, "init", "--quiet", "--bare", "--initial-branch=main")

    def commit(self, files, *, parents=None, message=b"Change the pages as planned\n", who=WHO, encoding=b""):
        """Files: path -> content, None to remove, or (mode, object id or content). Returns the commit's mark."""
        self._marks += 1
        lines = [b"commit refs/heads/main\nmark :%d\n" % self._marks]
        lines.append(f"author {who} {1_600_000_000 + self._marks * 3600} +0000\n".encode())
        lines.append(f"committer {who} {1_600_000_000 + self._marks * 3600} +0000\n".encode())
        lines.append(encoding + b"data %d\n%s\n" % (len(message), message))
        for number, parent in enumerate(parents if parents is not None else [self._marks - 1] * (self._marks > 1)):
            lines.append(b"%s :%d\n" % (b"merge" if number else b"from", parent))
        lines += [self._line(path, content) for path, content in files.items()]
        self._stream.append(b"".join(lines))
        return self._marks

    @staticmethod
    def _line(path, content):
        quoted = b'"' + re.sub(rb'[\\"]', rb"\\\g<0>", path).replace(b"\n", b"\\n") + b'"'
        if content is None:
            return b"D %s\n" % quoted
        mode, blob = content if isinstance(content, tuple) else (b"100644", content)
        if re.fullmatch(rb"[0-9a-f]{40}", blob):
            return b"M %s %s %s\n" % (mode, blob, quoted)
        return b"M %s inline %s\ndata %d\n%s\n" % (mode, quoted, len(blob), blob)

    def done(self):
        """Write what was said; the folder."""
        git(self.folder, "fast-import", "--quiet", stdin=b"".join(self._stream))
        self._stream = []
        return self.folder


def history_of(folder, *changes):
    """A repository whose commits make these changes, one after the other."""
    history = History(folder)
    for files in changes:
        history.commit(files)
    return history.done()


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "repository")


class Built:
    """A dataset, and what its bytes say."""

    def __init__(self, folder, result, tokenizer):
        self.folder, self.result, self._tokenizer = folder, result, tokenizer

    def json(self, name):
        return json.loads((self.folder / name).read_text())

    @property
    def drops(self):
        import pyarrow as pa

        with pa.input_stream(str(self.folder / "drops.jsonl.zst"), compression="zstd") as stream:
            lines = stream.read().splitlines()
        return {drop["path"]: drop["reason"] for drop in map(json.loads, lines)}

    def rows(self):
        dataset = open_dataset(self.folder)
        for split in ("train", "held_out", "future"):
            yield from getattr(dataset, split, ())

    @property
    def text(self):
        """Everything that a model would see, special tokens spelled out."""
        decode = self._tokenizer.backend_tokenizer.decode
        return "\n".join(decode(row.ids.tolist(), skip_special_tokens=False) for row in self.rows())

    @property
    def bytes(self):
        return b"\n".join(file.read_bytes() for file in sorted(self.folder.rglob("*")) if file.is_file())

    def digest(self):
        """What is trained and measured on, byte by byte."""
        files = [file for file in sorted(self.folder.rglob("*")) if file.suffix in {".ids", ".flags"}]
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in files}


@pytest.fixture
def build(tiny_tokenizer, tmp_path):
    """Builds a repository's dataset; by default without a split by time: its newest commit is what is learned."""

    def run(folder, output="out", *, emit=lambda event: None, ref=None, should_stop=lambda: False, **section):
        resolved = resolve(str(folder), ref)
        section = {"sequence_length": 256, "future": 0.0, **section}
        config = Config.model_validate({"dataset": section})
        source = Source(repository=str(folder), commit=resolved.commit)
        context = JobContext(output=tmp_path / output, emit=emit, should_stop=should_stop)
        result = build_dataset(resolved.git_dir, source, config, tiny_tokenizer, context)
        verify(tmp_path / output)
        return Built(tmp_path / output, result, tiny_tokenizer)

    return run


def refused(build, folder, kind=RepotuneError, **section):
    """The sentence with which a build is refused; it leaves nothing."""
    before = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(kind) as caught:
        build(folder, **section)
    assert sorted(path.name for path in folder.parent.iterdir()) == before
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


# ---- Not enough to learn from ----------------------------------------------------------------------------------------


def test_what_is_no_repository_is_refused_and_nothing_is_written(build, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "not a git repository" in refused(build, tmp_path / "folder", RepositoryError)
    assert "does not exist" in refused(build, tmp_path / "nowhere", RepositoryError)


def test_an_unknown_ref_is_refused_by_name(build, tmp_path):
    folder = history_of(tmp_path / "r", plain(3))
    assert "'nosuch'" in refused(build, folder, RepositoryError, ref="nosuch")


def test_an_empty_repository_is_refused(build, history):
    assert "is empty" in refused(build, history.folder, RepositoryError)


def test_a_commit_without_files_is_refused(build, history):
    history.commit(plain(3))
    history.commit(dict.fromkeys(plain(3)))
    assert "no file to learn from" in refused(build, history.done(), DatasetError)


def test_a_history_of_one_commit_is_enough(build, tmp_path):
    built = build(history_of(tmp_path / "r", plain(12)), future=0.05)
    assert built.result["train_tokens"] > 0


def test_commits_that_change_nothing_are_no_obstacle(build, history):
    history.commit(plain(12))
    for _ in range(5):
        history.commit({})
    assert build(history.done()).result["train_tokens"] > 0


# ---- Where a repository lies -----------------------------------------------------------------------------------------


def test_a_bare_a_cloned_a_detached_and_a_linked_work_tree_give_the_same_rows(build, tmp_path):
    folder = history_of(tmp_path / "r", plain(12), {b"plain/page_000.py": code(100)})
    git(tmp_path, "clone", "--quiet", str(folder), "clone")
    git(tmp_path / "clone", "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    git(tmp_path / "clone", "checkout", "--quiet", "--detach")
    (tmp_path / "clone" / "plain" / "page_001.py").write_text("changed = 'but never committed'\n")
    config = {"sequence_length": 256}
    rows = [
        _renamed(tmp_path / place, tmp_path / f"as-{place}" / "r", build, f"out-{place}", **config)
        for place in ("r", "clone", "linked")
    ]
    assert rows[0] == rows[1] == rows[2]


def _renamed(folder, link, build, output, **section):
    """What a repository gives under the name `r`: its name is part of what is learned."""
    link.parent.mkdir()
    link.symlink_to(folder)
    return build(link, output, **section).digest()


def test_how_objects_are_stored_and_how_many_branches_there_are_makes_no_difference(build, tmp_path):
    changes = [plain(12), *({b"plain/page_%03d.py" % number: code(200 + number)} for number in range(12))]
    folder = history_of(tmp_path / "r", *changes)
    assert loose(folder)
    before = build(folder, "loose").digest()
    git(folder, "repack", "-a", "-d", "-f", "-q")
    assert not list((folder / "objects").glob("??/*"))
    tip = git(folder, "rev-parse", "main")
    lines = [f"{tip} refs/heads/branch-{number:05}\n" for number in range(10_000)]
    (folder / "packed-refs").write_text("# pack-refs with: peeled fully-peeled sorted \n" + "".join(lines))
    assert build(folder, "packed").digest() == before


def test_a_shallow_clone_is_built_and_flagged(build, tmp_path):
    changes = [plain(12), *({b"plain/page_%03d.py" % number: code(300 + number)} for number in range(6))]
    folder = history_of(tmp_path / "r", *changes)
    git(tmp_path, "clone", "--quiet", "--bare", "--depth=3", f"file://{folder}", "shallow")
    built = build(tmp_path / "shallow")
    assert built.result["shallow"] is True
    assert built.json("manifest.json")["source"]["shallow"] is True


def test_a_partial_clone_learns_what_it_holds_and_fetches_nothing(build, tmp_path):
    large = b"# a page that is left on the server\n" + code(7) * 40
    folder = history_of(tmp_path / "r", plain(12) | {b"large.py": large}, {b"plain/page_003.py": code(400)})
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "--quiet", "--bare", "--filter=blob:limit=10k", f"file://{folder}", "partial")
    folder.rename(tmp_path / "gone")
    built = build(tmp_path / "partial")
    assert built.drops["large.py"] == "missing object"
    assert built.result["train_tokens"] > 0


def test_a_partial_clone_without_any_content_is_refused(build, tmp_path):
    folder = history_of(tmp_path / "r", plain(12))
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "--quiet", "--bare", "--filter=blob:none", f"file://{folder}", "partial")
    assert "missing object" in refused(build, tmp_path / "partial", DatasetError)


# ---- Objects that are missing, broken or huge ------------------------------------------------------------------------


def loose(folder):
    """The repository with every object in a file of its own; the path of each by its id."""
    for pack in sorted((folder / "objects" / "pack").glob("*.pack")):
        content = pack.read_bytes()
        pack.unlink()
        pack.with_suffix(".idx").unlink()
        git(folder, "unpack-objects", "-q", stdin=content)
    return {file.parent.name + file.name: file for file in (folder / "objects").glob("??/*")}


def identifier(folder, name):
    return git(folder, "rev-parse", name)


def test_a_missing_file_is_left_out_and_the_rest_is_learned(build, tmp_path):
    folder = history_of(tmp_path / "r", plain(12))
    loose(folder)[identifier(folder, "main:plain/page_004.py")].unlink()
    built = build(folder)
    assert built.drops == {"plain/page_004.py": "missing object"}
    assert "page_005.py" in built.text


def test_a_version_that_is_missing_in_history_costs_its_commits_only(build, tmp_path):
    changes = [plain(12), *({b"plain/page_%03d.py" % number: code(500 + number)} for number in range(8))]
    folder = history_of(tmp_path / "r", *changes)
    blob = identifier(folder, "main~8:plain/page_004.py")
    loose(folder)[blob].unlink()
    assert build(folder).result["train_tokens"] > 0


@pytest.mark.parametrize("name", ["main^{tree}", "main:plain", "main~1"])
def test_a_missing_folder_or_commit_is_a_sentence(build, tmp_path, name):
    folder = history_of(tmp_path / "r", plain(12), {b"plain/page_000.py": code(600)})
    loose(folder)[identifier(folder, name)].unlink()
    if name == "main~1":
        # The newest commit is whole: learning it without its history would do as well as a sentence.
        built_or_refused(build, folder)
    else:
        refused(build, folder, RepositoryError)


def built_or_refused(build, folder):
    """The dataset, or None where a sentence was said and nothing written."""
    try:
        return build(folder)
    except RepositoryError as error:
        said = str(error)
    assert said.endswith(".")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return None


def test_an_object_whose_bytes_are_damaged_is_left_out_or_a_sentence(build, tmp_path):
    folder = history_of(tmp_path / "r", plain(12))
    file = loose(folder)[identifier(folder, "main:plain/page_004.py")]
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:40])
    built = built_or_refused(build, folder)
    assert built is None or "plain/page_004.py" in built.drops


def plant_zeros(folder, size):
    """An object that says it is so large, and is: a loose file of few bytes, made without ever holding them."""
    blob, chunk = "2" * 40, 1 << 24
    flushed = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = flushed.compress(f"blob {size}\0".encode()) + flushed.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the same input gives the same bytes, wherever it stands.
    once = flushed.compress(bytes(chunk)) + flushed.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.adler32(f"blob {size}\0".encode())
    low, high = checksum & 0xFFFF, checksum >> 16
    checksum = ((high + low * size) % 65521) << 16 | low
    file = folder / "objects" / blob[:2] / blob[2:]
    file.parent.mkdir()
    content = b"\x78\x01" + head + once * (size // chunk) + b"\x03\x00" + checksum.to_bytes(4, "big")
    file.write_bytes(content)
    return blob.encode()


def test_a_blob_of_2_gigabytes_is_left_out_without_being_read(build, history):
    blob = plant_zeros(history.folder, 2 << 30)
    history.commit(plain(12))
    history.commit({b"disk.img": (b"100644", blob), b"plain/page_000.py": code(700)})
    history.commit({b"disk.img": None, b"plain/page_001.py": code(701)})
    history.commit({b"plain/other.img": (b"100644", blob)})
    folder = history.done()
    assert git(folder, "cat-file", "-s", blob.decode()) == str(2 << 30)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    built = build(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert built.drops == {"plain/other.img": "too large"}
    assert grown < 500 * (1024 if sys.platform != "darwin" else 1024**2)
    assert time.monotonic() - start < 20


# ---- Large in number -------------------------------------------------------------------------------------------------


def commit_tree(folder, entries):
    """A commit of one tree, whatever its names are."""
    tree = git(folder, "mktree", "-z", stdin=entries)
    content = f"tree {tree}\nauthor {WHO} 1700000000 +0000\ncommitter {WHO} 1700000000 +0000\n\nPlant a tree\n"
    tip = git(folder, "hash-object", "-t", "commit", "-w", "--stdin", stdin=content.encode())
    git(folder, "update-ref", "refs/heads/main", tip)


def stored(history, numbers):
    """Pages that are in the object store already: a commit names them by their ids."""
    ids = (git(history.folder, "hash-object", "-w", "--stdin", stdin=code(number)) for number in numbers)
    return [(b"100644", blob.encode()) for blob in ids]


@pytest.mark.slow
def test_twenty_thousand_files_in_one_folder_are_built_from(build, history):
    """That many more are listed by test_jobs_repository.py."""
    pages = stored(history, range(40))
    lines = (b"100644 blob %s\tf%06d.py\0" % (pages[number % 40][1], number) for number in range(20_000))
    # By mktree: fast-import looks through a folder from its start for every file that it adds.
    commit_tree(history.folder, b"".join(lines))
    built = build(history.folder)
    assert built.result["files"] == 40
    assert built.result["dropped_files"] == 19_960


@pytest.mark.slow
def test_a_commit_that_touches_fifty_thousand_files_is_survived(build, history):
    history.commit(plain(12))
    pages = stored(history, range(800, 820))
    many = {b"bulk/%03d/f%05d.py" % (number % 500, number): pages[number % 20] for number in range(50_000)}
    history.commit(many, message=b"Import the generated clients\n")
    history.commit({b"plain/page_000.py": code(801)})
    history.commit(dict.fromkeys(many), message=b"Remove the generated clients\n")
    built = build(history.done())
    assert built.result["files"] == 12


def test_octopus_merges_and_unrelated_roots_are_survived(build, history):
    root = history.commit(plain(12))
    arms = [history.commit({b"arm_%d.py" % arm: code(820 + arm)}, parents=[root]) for arm in range(5)]
    arms.append(history.commit({b"other/root.py": code(830)}, parents=[]))
    merged = {b"arm_%d.py" % arm: code(820 + arm) for arm in range(5)} | {b"other/root.py": code(830)}
    history.commit(merged, parents=arms, message=b"Merge six branches\n")
    history.commit({b"plain/page_000.py": code(840)})
    built = build(history.done())
    assert built.result["files"] == 18


# ---- Names -----------------------------------------------------------------------------------------------------------

NAMES = {
    b"new\nline.py": "new\\nline.py",
    b"tab\tand\rreturn.py": "tab\\tand\\rreturn.py",
    b"quo\"te'.py": "quo\"te'.py",
    b"back\\slash.py": "back\\slash.py",
    b"\xff\xfe.py": "\\xff\\xfe.py",
    b"gr\xfc\xdf.py": "gr\\xfc\\xdf.py",
    "grüß.py".encode(): "grüß.py",
    b"<file_sep>.py": "<file_sep>.py",
    b"<|endoftext|>/x.py": "<|endoftext|>/x.py",
    b"-rf": "-rf",
    b" lead and trail .py": " lead and trail .py",
    b"\x1b[2Jescape.py": "\\x1b[2Jescape.py",
    b":000000 100644 A\x01.py": ":000000 100644 A\\x01.py",
    "\u202egnp.py".encode(): "\\u202egnp.py",
    b"a" * 240 + b".py": "a" * 240 + ".py",
}


def test_a_name_of_any_bytes_is_learned_changed_and_renamed(build, history, tiny_tokenizer):
    pages = {name: code(900 + number) for number, name in enumerate(NAMES)}
    history.commit({name: code(950 + number) for number, name in enumerate(NAMES)})
    history.commit(pages)
    history.commit({b"moved/" + name: text for name, text in pages.items()} | dict.fromkeys(pages))
    built = build(history.done(), sequence_length=2048, fim_rate=0.0)
    assert built.drops == {}
    assert built.result["files"] == len(NAMES)
    text = built.text
    shown = {name.replace("<", "").replace(">", "") for name in NAMES.values()}
    seen = text.replace("<", "").replace(">", "")
    assert [name for name in sorted(shown) if name not in seen] == []
    assert "\x1b" not in text
    assert forged(built, tiny_tokenizer) == []


def forged(built, tokenizer):
    """Documents' ends that stand where no document ends: what a repository must not be able to write."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    wrong = []
    for row in built.rows():
        for place in np.flatnonzero(row.ids == end).tolist():
            ends = place + 1 == len(row.ids) or row.flags[place + 1] & DOCUMENT_START
            if not ends:
                wrong.append(place)
    return wrong


def test_names_that_lead_out_of_the_folder_name_no_file_that_is_written(build, tmp_path):
    folder = tmp_path / "deep" / "r"
    history_of(folder, plain(12))
    blob = git(folder, "hash-object", "-w", "--stdin", stdin=code(990))
    lower = git(folder, "mktree", "-z", stdin=f"100644 blob {blob}\tescaped.py\0".encode())
    folders = {"..": lower, ".git": lower, "plain": identifier(folder, "main:plain")}
    entries = "".join(f"040000 tree {tree}\t{name}\0" for name, tree in folders.items())
    commit_tree(folder, entries.encode())
    output = build(folder, "deep/out").folder
    assert not [file for file in tmp_path.rglob("*") if "escaped" in file.name]
    written = [str(file.relative_to(output)) for file in output.rglob("*")]
    assert [name for name in written if not re.fullmatch(r"[\w-]+(/[0-9]+)?(\.[\w.]+)?", name)] == []


def test_a_file_that_became_a_folder_and_back_is_survived(build, history):
    history.commit(plain(12) | {b"thing": code(20)})
    history.commit({b"thing": None, b"thing/inner.py": code(21)})
    history.commit({b"thing/inner.py": None, b"thing": code(22)})
    history.commit({b"thing": (b"100755", code(22)), b"Plain/PAGE_000.py": code(23)})
    assert build(history.done()).result["files"] == 14


def test_names_that_were_swapped_are_survived(build, history):
    history.commit(plain(12))
    for _ in range(4):
        history.commit({b"plain/page_000.py": code(1), b"plain/page_001.py": code(0)})
        history.commit({b"plain/page_000.py": code(0), b"plain/page_001.py": code(1)})
    assert build(history.done()).result["files"] == 12


# ---- Contents --------------------------------------------------------------------------------------------------------


def kinds():
    """Contents that are no plain text, by path, with what becomes of each."""
    text = code(30).decode()
    return {
        b"image.png": (b"\x89PNG\r\n\x1a\n\0\0", "binary"),
        b"nul.py": (code(31) + b"\0", "binary"),
        b"latin.py": (code(32) + b"# gr\xfc\xdf\n", "unknown encoding"),
        b"cut.py": (code(33) + b"# \xe2\x82", "unknown encoding"),
        b"surrogate.py": (code(34) + b"# \xed\xa0\x80\n", "unknown encoding"),
        b"model.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "LFS pointer"),
        b"big.py": (code(35) * 60, "too large"),
        b"empty.py": (b"", "empty"),
        b"blank.py": (b" \n\t\n", "empty"),
        b"yarn.lock": (code(36), "lock file"),
        b"app.min.js": (code(37), "minified"),
        b"node_modules/x.js": (code(38), "vendored"),
        b"long.py": (b"x = [" + b"1, " * 9000 + b"]\n", "long lines"),
        b"bom.py": (b"\xef\xbb\xbf" + code(39), None),
        b"crlf.py": (code(40).replace(b"\n", b"\r\n"), None),
        b"utf16.py": (b"\xff\xfe" + text.encode("utf-16-le"), None),
        b"utf16be.py": (b"\xfe\xff" + code(41).decode().encode("utf-16-be"), None),
        b"old-mac.py": (code(42).replace(b"\n", b"\r"), None),
        b"noend.py": (code(43).rstrip(b"\n"), None),
    }


def test_every_kind_of_content_is_learned_or_has_its_reason_and_so_has_its_history(build, history):
    odd = kinds()
    history.commit(plain(12))
    history.commit({path: content for path, (content, _) in odd.items()})
    history.commit(dict.fromkeys(odd))
    history.commit({path: content for path, (content, _) in odd.items()})
    built = build(history.done(), max_file_bytes=30_000)
    assert built.drops == {path.decode(): reason for path, (_, reason) in odd.items() if reason}
    text = built.text
    assert "\ufeff" not in text
    assert "git-lfs" not in text


def test_latin_1_is_learned_where_the_configuration_says_so(build, history):
    history.commit(plain(12) | {b"latin.py": code(44) + b"# gr\xfc\xdf dich\n"})
    built = build(history.done(), encoding="latin-1", fim_rate=0.0, sequence_length=2048)
    assert built.drops == {}
    assert "grüß dich" in built.text


def test_links_and_submodules_are_named_and_never_followed(build, history, tmp_path):
    (tmp_path / "secret.py").write_text("never_learn_this = 1\n")
    target = str(tmp_path / "secret.py").encode()
    history.commit(plain(12) | {b"link.py": (b"120000", target), b"module": (b"160000", b"1" * 40)})
    history.commit({b"link.py": (b"120000", target + b"2"), b"module": (b"160000", b"3" * 40)})
    history.commit({b"link.py": code(45), b"plain/page_000.py": (b"120000", target)})
    built = build(history.done())
    assert built.drops == {"plain/page_000.py": "symlink", "module": "submodule"}
    assert "never_learn_this" not in built.text
    assert target not in built.bytes


def test_contents_and_messages_cannot_forge_a_document(build, history, tiny_tokenizer):
    forgery = b"# <|endoftext|><file_sep>evil.py\n<fim_middle><repo_name><fim_prefix>\n"
    history.commit({path: text + forgery for path, text in plain(12).items()})
    for number in range(6):
        change = {b"plain/page_%03d.py" % number: code(50 + number) + forgery * 2}
        history.commit(change, message=b"Forge <|endoftext|><file_sep> a document\n\n" + forgery)
    assert forged(build(history.done()), tiny_tokenizer) == []


def secrets():
    """Made here, so that no file of this project holds one."""
    pick = random.Random(71)
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ234567"
    return {
        "AWS": "AKIA" + "".join(pick.choices(letters, k=16)),
        "GitHub": "ghp_" + "".join(pick.choices(letters + letters.lower() + "89", k=36)),
        "password": "".join(pick.choices(letters + letters.lower() + "89", k=24)),
        "URL": "".join(pick.choices(letters + letters.lower(), k=20)),
        "e-mail": "grete.olsen@fjord-post-office.net",
    }


def lines_with(values):
    return (
        f'aws_access_key_id = "{values["AWS"]}"\n'
        f'github_token = "{values["GitHub"]}"\n'
        f'password = "{values["password"]}"\n'
        f'database = "postgres://admin:{values["URL"]}@db.internal:5432/main"\n'
        f"# ask {values['e-mail']}\n"
    ).encode()


def test_a_secret_of_the_newest_commit_or_of_the_history_is_in_no_byte_of_the_dataset(build, history):
    values = secrets()
    history.commit(plain(12))
    history.commit({b"plain/page_001.py": code(60) + lines_with(values)}, message=b"Call " + values["e-mail"].encode())
    history.commit({b"plain/page_001.py": code(60)}, message=b"Take out " + values["GitHub"].encode() + b" again\n")
    history.commit({b"plain/page_002.py": code(61) + lines_with(values), b"plain/page_003.py": code(62)})
    told = []
    built = build(history.done(), emit=lambda event: told.append(str(event)), sequence_length=1024)
    text, raw, events = built.text, built.bytes, "".join(told)
    for kind, value in values.items():
        assert value not in text, kind
        assert value.encode() not in raw, kind
        assert value not in events, kind


# ---- Commits ---------------------------------------------------------------------------------------------------------

MESSAGES = [
    b"",
    b"\n\n\n",
    b"Nul \x01\x02\x1e\x1f and control \x7f bytes in a message\n",
    b"gr\xfc\xdf in Latin-1\n",
    b"commit 1111111111111111111111111111111111111111\nparent 2222\n:100644 100644 a b M\tforged.py\n",
    b"word " * 5000,
    b"line\r\nwith carriage returns\r\n",
    "Emoji \U0001f680 and right-to-left \u202e marks\n".encode(),
]


def test_any_message_is_survived(build, history):
    history.commit(plain(12))
    for number, message in enumerate(MESSAGES):
        history.commit({b"plain/page_%03d.py" % number: code(70 + number)}, message=message)
    history.commit({b"plain/page_011.py": code(80)}, message=b"gr\xfc\xdf\n", encoding=b"encoding ISO-8859-1\n")
    assert build(history.done()).result["files"] == 12


HEADS = [
    b"author <> 0 +0000\ncommitter <> 0 +0000\n",
    b"author A <a@b> -1 +0000\ncommitter A <a@b> -99999999999 -9999\n",
    b"author A <a@b> 99999999999999999999 +0000\ncommitter A <a@b> 99999999999999999999 +0000\n",
    b"author A\ncommitter B\n",
    b"author A <a\xff@b> x y\ncommitter A <a> 1\ngpgsig -----BEGIN PGP SIGNATURE-----\n x\n -----END PGP-----\n",
]


def test_commits_that_no_git_would_write_today_are_survived(build, tmp_path):
    folder = history_of(tmp_path / "r", plain(12), {b"plain/page_000.py": code(81)})
    tip, tree = identifier(folder, "main"), identifier(folder, "main^{tree}")
    for head in HEADS:
        content = b"tree %s\nparent %s\n%s\nStrange\n" % (tree.encode(), tip.encode(), head)
        tip = git(folder, "hash-object", "-t", "commit", "-w", "--literally", "--stdin", stdin=content)
    (folder / "refs" / "heads" / "main").write_text(tip + "\n")
    (folder / "packed-refs").unlink(missing_ok=True)
    assert build(folder).result["files"] == 12


# ---- What a repository would like to run -----------------------------------------------------------------------------


def test_nothing_that_a_repository_names_is_run_by_a_build(build, tmp_path):
    attributes = {b".gitattributes": b"* filter=trap diff=trap merge=trap text eol=crlf ident export-subst\n"}
    changes = [plain(12) | attributes, *({b"plain/page_%03d.py" % number: code(90 + number)} for number in range(4))]
    folder = history_of(tmp_path / "r", *changes)
    trap = tmp_path / "trap"
    trap.write_text(f'#!/bin/sh\ntouch "{tmp_path}/sprung"\ncat\n')
    trap.chmod(0o755)
    for key in (
        "filter.trap.smudge",
        "filter.trap.clean",
        "filter.trap.process",
        "diff.trap.textconv",
        "diff.trap.command",
        "diff.external",
        "merge.trap.driver",
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "pager.log",
        "core.editor",
        "core.askPass",
        "core.gitProxy",
        "core.alternateRefsCommand",
        "credential.helper",
        "uploadpack.packObjectsHook",
        "gpg.program",
        "gpg.ssh.program",
        "log.showSignature",
        "trailer.x.command",
        "interactive.diffFilter",
    ):
        git(folder, "config", key, "true" if key == "log.showSignature" else str(trap))
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::{trap}",
        "protocol.ext.allow": "always",
        "core.hooksPath": str(tmp_path / "hooks"),
        "log.date": "format:%Y",
        "log.showRoot": "false",
        "diff.noprefix": "true",
        "diff.renames": "false",
        "diff.ignoreSubmodules": "all",
        "core.quotePath": "true",
        "i18n.logOutputEncoding": "utf-16",
        "alias.log": f"!{trap}",
        "alias.ls-tree": f"!{trap}",
        "alias.cat-file": f"!{trap}",
    }.items():
        git(folder, "config", key, value)
    for hooks in (tmp_path / "hooks", folder / "hooks"):
        hooks.mkdir(exist_ok=True)
        for hook in (
            "post-checkout",
            "reference-transaction",
            "pre-auto-gc",
            "post-index-change",
            "fsmonitor-watchman",
        ):
            (hooks / hook).unlink(missing_ok=True)
            (hooks / hook).symlink_to(trap)
    (folder / "info").mkdir(exist_ok=True)
    (folder / "info" / "attributes").write_text("* diff=trap filter=trap\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    built = build(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])
    assert built.result["files"] >= 12


def test_replacements_and_grafts_do_not_change_what_is_learned(build, tmp_path):
    changes = [plain(12), *({b"plain/page_%03d.py" % number: code(110 + number)} for number in range(6))]
    folder = history_of(tmp_path / "r", *changes)
    before = build(folder, "before").digest()
    blob = git(folder, "hash-object", "-w", "--stdin", stdin=b"replaced_by_a_trap = 1\n" * 9)
    git(folder, "replace", identifier(folder, "main:plain/page_008.py"), blob)
    git(folder, "replace", "--graft", "main~2")
    assert build(folder, "after").digest() == before


def test_a_build_leaves_the_repository_as_it_was(build, tmp_path):
    folder = history_of(tmp_path / "r", plain(12), {b"plain/page_000.py": code(120)})
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    build(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# ---- Interruptions ---------------------------------------------------------------------------------------------------


def stages_of(build, folder):
    events = []
    built = build(folder, "whole", emit=events.append)
    count = sum(isinstance(event, StageStarted) for event in events)
    return built, count


@pytest.mark.slow
def test_ctrl_c_at_any_stage_leaves_nothing_running_and_the_next_run_gives_the_same(build, tmp_path):
    changes = [plain(12), *({b"plain/page_%03d.py" % number: code(130 + number)} for number in range(6))]
    folder = history_of(tmp_path / "r", *changes)
    whole, count = stages_of(build, folder)
    assert count >= 5
    for stage in range(count):
        left = iter([None] * stage)

        def interrupt(event, left=left):
            if isinstance(event, StageStarted) and next(left, "now") == "now":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(folder, "out", emit=interrupt)
        assert not (tmp_path / "out").exists()
        assert [child.name() for child in psutil.Process().children() if child.name().startswith("git")] == []
    assert build(folder, "out").digest() == whole.digest()


def test_a_stop_between_any_two_steps_leaves_nothing_and_the_next_run_goes_on(build, tmp_path):
    folder = history_of(tmp_path / "r", plain(12), {b"plain/page_000.py": code(140)})
    asked = 0

    def count():
        nonlocal asked
        asked += 1
        return False

    whole = build(folder, "whole", should_stop=count)
    for moment in range(0, asked, max(1, asked // 6)):
        left = iter([False] * moment)
        with pytest.raises(StopRequested):
            build(folder, "out", should_stop=lambda left=left: next(left, True))
        assert not (tmp_path / "out").exists()
    assert build(folder, "out").digest() == whole.digest()


def test_git_that_dies_half_way_is_a_sentence(build, tmp_path, monkeypatch):
    folder = history_of(tmp_path / "r", plain(12), {b"plain/page_000.py": code(150)})
    original, started = repository._start, []

    def start(command, *rest, **named):
        process = original(command, *rest, **named)
        started.append(process)
        if "cat-file" in command:
            process.kill()
        return process

    monkeypatch.setattr(repository, "_start", start)
    refused(build, folder, RepositoryError)
    assert all(process.poll() is not None for process in started)
