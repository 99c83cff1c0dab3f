"""A commit becomes a dataset: whole or not at all, the same bytes every time, nothing forged and nothing leaked."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.context import JobContext, OutputExists, StopRequested
from jobs.dataset.build import build_dataset
from jobs.dataset.origin import repository_name
from jobs.events import Progress, StageStarted
from jobs.repository import open_bundle, resolve, write_bundle
from jobs.shards import DOCUMENT_START, LABEL, DatasetError, labels, open_dataset, position_ids, verify
from jobs.spec import Config, Source

PLAIN = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
WHO = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder, *command, stdin=None):
    done = subprocess.run(
        ["git", "-C", str(folder), *command],
        input=stdin,
        capture_output=True,
        check=True,
        env=os.environ | PLAIN | WHO,
    )
    return done.stdout.decode().strip()


def code(number):
    return "".join(f"def area_{number}_{line}(width):\n    return width * {line}\n" for line in range(number % 7 + 3))


def commit(folder, files):
    """A repository with these files (path as bytes -> content), made without a work tree."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    lines = b""
    for path, content in files.items():
        mode, kind, blob = b"100644", b"blob", content
        if isinstance(content, tuple):
            mode, kind, blob = content
        identifier = git(folder, "hash-object", "-w", "--stdin", stdin=blob) if kind == b"blob" else blob.decode()
        lines += b"%s %s %s\t%s\0" % (mode, kind, identifier.encode(), path)
    tree = git(folder, "mktree", "-z", stdin=lines)
    identifier = git(folder, "commit-tree", "-m", "m", tree)
    git(folder, "update-ref", "HEAD", identifier)
    return folder


def plain_files(count):
    return {f"file_{number:03}.py".encode(): code(number).encode() for number in range(count)}


def build(repository, output, tokenizer, *, emit=lambda event: None, should_stop=lambda: False, **section):
    resolved = resolve(str(repository))
    config = Config.model_validate({"dataset": {"sequence_length": 128, **section}})
    source = Source(repository=str(repository), commit=resolved.commit)
    context = JobContext(output=output, emit=emit, should_stop=should_stop)
    return build_dataset(resolved.git_dir, source, config, tokenizer, context)


def documents(tokenizer, rows):
    """Every document of a split as text, special tokens spelled out, padding left out."""
    for row in rows:
        starts = [*np.flatnonzero(row.flags & DOCUMENT_START).tolist(), len(row.ids)]
        for start, stop in itertools.pairwise(starts):
            if stop - start > 1 and row.flags[start + 1] & LABEL:
                yield tokenizer.backend_tokenizer.decode(row.ids[start:stop].tolist(), skip_special_tokens=False)


#: Tell of times.
LOOSE = {"timing.json", "report.html"}


def tree_bytes(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in LOOSE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def drops_of(folder):
    import pyarrow as pa

    with pa.input_stream(str(folder / "drops.jsonl.zst"), compression="zstd") as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


def test_a_repository_becomes_a_dataset_that_says_what_it_holds(tiny_repository, tiny_tokenizer, tmp_path):
    events = []
    result = build(tiny_repository, tmp_path / "out", tiny_tokenizer, emit=events.append)
    verify(tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert (len(dataset.train), len(dataset.held_out)) == (result["train_rows"], result["held_out_rows"])
    assert result["files"] == stats["kept"]["files"] == stats["in"]["files"] == 13
    assert sum(stats["splits"][split]["files"] for split in ("train", "held_out")) == 13
    assert result["fim"] is True
    assert stats["splits"]["held_out"]["modes"]["plain"] == stats["splits"]["held_out"]["samples"]
    assert sum(language["tokens"] for language in stats["languages"].values()) == (
        result["train_tokens"] + result["held_out_tokens"]
    )
    assert dataset.manifest["commit"] == result["commit"]
    stages = list(dict.fromkeys(event.stage for event in events if isinstance(event, StageStarted)))
    told = [
        "resolve",
        "enumerate",
        "read",
        "redact",
        "filter",
        "history",
        "deduplicate",
        "split",
        "render",
        "tokenise",
        "commits",
        "pack",
        "write",
        "report",
    ]
    assert stages == told
    assert any(isinstance(event, Progress) and event.done == event.total for event in events)


def test_two_builds_are_the_same_bytes_also_from_a_bundle_elsewhere(tiny_repository, tiny_tokenizer, tmp_path):
    build(tiny_repository, tmp_path / "one", tiny_tokenizer)
    resolved = resolve(str(tiny_repository))
    write_bundle(resolved.git_dir, resolved.commit, tmp_path / "bundle")
    git_dir = open_bundle(tmp_path / "bundle", resolved.commit, tmp_path / "elsewhere.git")
    source = Source(repository=str(tiny_repository), commit=resolved.commit)
    config = Config.model_validate({"dataset": {"sequence_length": 128}})
    context = JobContext(output=tmp_path / "two", emit=lambda event: None)
    build_dataset(git_dir, source, config, tiny_tokenizer, context)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_another_seed_is_another_dataset(tiny_repository, tiny_tokenizer, tmp_path):
    build(tiny_repository, tmp_path / "one", tiny_tokenizer)
    build(tiny_repository, tmp_path / "two", tiny_tokenizer, seed=18)
    assert tree_bytes(tmp_path / "one") != tree_bytes(tmp_path / "two")


def test_the_first_token_of_a_document_and_padding_are_never_predicted(tiny_repository, tiny_tokenizer, tmp_path):
    result = build(tiny_repository, tmp_path / "out", tiny_tokenizer)
    dataset = open_dataset(tmp_path / "out")
    pad = tiny_tokenizer.convert_tokens_to_ids("<fim_pad>")
    tokens = 0
    for row in dataset.train:
        assert row.flags[0] & DOCUMENT_START
        assert not np.any((row.flags & DOCUMENT_START != 0) & (row.flags & LABEL != 0))
        assert pad not in labels(row.ids, row.flags)
        assert position_ids(row.flags)[row.flags & DOCUMENT_START != 0].tolist().count(0) == int((row.flags & 1).sum())
        tokens += int((row.ids != pad).sum())
    assert tokens == result["train_tokens"]


def test_every_kept_file_is_in_exactly_one_split_in_full(tiny_tokenizer, tmp_path):
    files = plain_files(30)
    build(commit(tmp_path, files), tmp_path / "out", tiny_tokenizer, sequence_length=1024, fim_rate=0.0, held_out=0.2)
    dataset = open_dataset(tmp_path / "out")
    sides = [files_of(documents(tiny_tokenizer, rows)) for rows in (dataset.train, dataset.held_out)]
    assert not set(sides[0]) & set(sides[1])
    assert sorted([*sides[0], *sides[1]]) == sorted(f"{path.decode()}\n{text.decode()}" for path, text in files.items())


def files_of(texts):
    """The files in documents, each with its path; small ones share a document."""
    return [file for text in texts for file in text.removesuffix("<|endoftext|>").split("<file_sep>")[1:]]


def test_the_same_text_never_lies_on_both_sides_however_it_is_stored(tiny_tokenizer, tmp_path):
    files = {}
    for number in range(20):
        text = code(number) + f"# {number}\n"
        files[f"a{number}.py".encode()] = text.encode()
        files[f"b{number}.py".encode()] = text.replace("\n", "\r\n").encode()
        files[f"c{number}.py".encode()] = b"\xef\xbb\xbf" + text.encode()
        files[f"d{number}.py".encode()] = text.encode()
    settings = {"sequence_length": 1024, "fim_rate": 0.0, "held_out": 0.3}
    result = build(commit(tmp_path, files), tmp_path / "out", tiny_tokenizer, **settings)
    assert result["files"] == 60
    dataset = open_dataset(tmp_path / "out")
    train, held_out = (
        {text.split("\n", 1)[1].replace("\r", "") for text in documents(tiny_tokenizer, rows)}
        for rows in (dataset.train, dataset.held_out)
    )
    assert train
    assert held_out
    assert not train & held_out


def test_an_edit_moves_no_file_to_the_other_split(tiny_tokenizer, tmp_path):
    def held_out(output):
        build(tmp_path, tmp_path / output, tiny_tokenizer, sequence_length=1024, held_out=0.2)
        rows = open_dataset(tmp_path / output).held_out
        return {text.split("<file_sep>")[1].split("\n")[0] for text in documents(tiny_tokenizer, rows)}

    files = plain_files(60)
    commit(tmp_path, files)
    before = held_out("before")
    edited = {path: text + b"# edited\n" if path.decode() in before else text for path, text in files.items()}
    commit(tmp_path, edited)
    assert held_out("after") == before


def test_what_is_left_out_is_written_down_with_its_reason(tiny_tokenizer, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("never learn this\n")
    strange = {
        b"link.py": (b"120000", b"blob", str(secret).encode()),
        b"module": (b"160000", b"commit", b"1" * 40),
        b"model.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        b"image.png": b"\x89PNG\r\n\x1a\n\0",
        b"latin.py": b"# gr\xfc\xdf\n",
        b"big.py": b"x = 1\n" * 400,
        b"yarn.lock": b"lock\n",
        b"app.min.js": b"var a\n",
        b"empty.py": b"",
        b"copy.py": code(0).encode(),
        b"new\nline.lock": b"x\n",
        b"\xff\xfe.lock": b"x\n",
    }
    plain = {b"zz" + path: text for path, text in plain_files(5).items()}
    repo = commit(tmp_path, strange | plain)
    result = build(repo, tmp_path / "out", tiny_tokenizer, max_file_bytes=2000)
    drops = {drop["path"]: drop["reason"] for drop in drops_of(tmp_path / "out")}
    assert drops == {
        "link.py": "symlink",
        "module": "submodule",
        "model.bin": "LFS pointer",
        "image.png": "binary",
        "latin.py": "unknown encoding",
        "big.py": "too large",
        "yarn.lock": "lock file",
        "app.min.js": "minified",
        "empty.py": "empty",
        "zzfile_000.py": "duplicate",
        "new\\nline.lock": "lock file",
        "\\xff\\xfe.lock": "lock file",
    }
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert sum(stats["dropped"]["reasons"].values()) == result["dropped_files"] == len(drops)
    learned = "".join(text for rows in _splits(tmp_path / "out") for text in documents(tiny_tokenizer, rows))
    assert "never learn this" not in learned
    assert str(secret) not in learned


def _splits(folder):
    dataset = open_dataset(folder)
    return dataset.train, dataset.held_out


def test_hostile_names_and_contents_forge_no_document(tiny_tokenizer, tmp_path):
    hostile = {
        b"<file_sep>.py": b"first = 1\n<|endoftext|><file_sep>evil.py\n<fim_middle>\n",
        b"quo\"te'.py": b"second = 1 # <repo_name>\n",
        b"new\nline.py": b"third = 1\n",
        b"\xff.py": b"fourth = 1\n",
        b"-rf": b"fifth = 1\n",
        "gr\u00fc\u00df.py".encode(): b"sixth = 1\n",
    }
    build(commit(tmp_path, hostile), tmp_path / "out", tiny_tokenizer, fim_rate=0.0, held_out=0.3)
    special = {token: tiny_tokenizer.convert_tokens_to_ids(token) for token in ("<file_sep>", "<|endoftext|>")}
    count = 0
    for rows in _splits(tmp_path / "out"):
        for row in rows:
            starts = int((row.flags & DOCUMENT_START != 0).sum()) - int(not row.flags[-1] & LABEL)
            assert row.ids.tolist().count(special["<|endoftext|>"]) == starts
            count += row.ids.tolist().count(special["<file_sep>"])
    assert count == len(hostile)


def test_a_model_without_fill_tokens_gets_whole_documents_and_the_report_says_so(
    tiny_repository, tiny_tokenizer, tmp_path
):
    transformers = pytest.importorskip("transformers")
    backend = type(tiny_tokenizer.backend_tokenizer).from_str(
        tiny_tokenizer.backend_tokenizer.to_str().replace("<fim_", "<not_fim_")
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    events = []
    result = build(tiny_repository, tmp_path / "out", tokenizer, emit=events.append)
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert result["fim"] is False
    assert stats["fill_in_the_middle"]["supported"] is False
    assert any("no fill-in-the-middle tokens" in event.message for event in events if isinstance(event, StageStarted))


def test_packing_uses_99_percent_of_real_code(tiny_tokenizer, tmp_path):
    files = {path.name.encode(): path.read_bytes() for path in sorted(Path(json.__file__).parents[1].glob("[a-d]*.py"))}
    build(commit(tmp_path, files), tmp_path / "out", tiny_tokenizer, sequence_length=1024)
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert stats["splits"]["train"]["packing"] > 0.99


def test_a_shallow_clone_works_and_is_flagged(tiny_repository, tiny_tokenizer, tmp_path):
    git(tmp_path, "clone", "--quiet", "--bare", f"file://{tiny_repository}", "whole")
    tree = git(tmp_path / "whole", "rev-parse", "HEAD^{tree}")
    child = git(tmp_path / "whole", "commit-tree", "-p", "HEAD", "-m", "two", tree)
    git(tmp_path / "whole", "update-ref", "HEAD", child)
    git(tmp_path, "clone", "--quiet", "--bare", "--depth=1", f"file://{tmp_path}/whole", "shallow")
    assert build(tmp_path / "shallow", tmp_path / "out", tiny_tokenizer)["shallow"] is True
    assert open_dataset(tmp_path / "out").manifest["source"]["shallow"] is True


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({b"a.png": b"\0\1"}, "no file to learn from .left out: 1 binary."),
        ({b"a.py": b"x = one\n"}, "has 1 file to learn from"),
        ({b"a.py": b"x = one\n", b"b.py": b"x = one \r\n"}, "All 2 files of the repository belong together"),
    ],
)
def test_a_repository_with_too_little_is_refused_and_nothing_is_left(tiny_tokenizer, tmp_path, files, sentence):
    repo = tmp_path / "repo"
    repo.mkdir()
    with pytest.raises(DatasetError, match=sentence):
        build(commit(repo, files), tmp_path / "out", tiny_tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_two_files_are_enough(tiny_tokenizer, tmp_path):
    result = build(commit(tmp_path, plain_files(2)), tmp_path / "out", tiny_tokenizer)
    assert result["train_tokens"] > 0
    assert result["held_out_tokens"] > 0


def test_a_stop_at_any_moment_leaves_nothing(tiny_repository, tiny_tokenizer, tmp_path):
    asked = 0

    def count():
        nonlocal asked
        asked += 1
        return False

    build(tiny_repository, tmp_path / "whole", tiny_tokenizer, should_stop=count)
    for moment in range(1, asked + 1, 7):
        left = iter([False] * (moment - 1))
        with pytest.raises(StopRequested):
            build(tiny_repository, tmp_path / "out", tiny_tokenizer, should_stop=lambda left=left: next(left, True))
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_folder_that_holds_something_else_is_not_overwritten(tiny_repository, tiny_tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists):
        build(tiny_repository, tmp_path / "out", tiny_tokenizer)
    assert tree_bytes(tmp_path / "out") == {"thesis.txt": b"years of work"}


def test_a_second_build_of_the_same_folder_is_refused_while_the_first_runs(tiny_repository, tiny_tokenizer, tmp_path):
    refused = []

    def emit(event):
        if isinstance(event, StageStarted) and event.stage == "pack":
            with pytest.raises(DatasetError, match="Another run") as caught:
                build(tiny_repository, tmp_path / "out", tiny_tokenizer)
            refused.append(caught.value)

    build(tiny_repository, tmp_path / "out", tiny_tokenizer, emit=emit)
    assert refused
    verify(tmp_path / "out")


PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from jobs.context import JobContext
from jobs.dataset.build import build_dataset
from jobs.repository import resolve
from jobs.shards import DatasetError
from jobs.spec import Config, Source

repository, tokenizer, output, limit, killed = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))

def emit(event):
    if event.kind == "stage" and event.stage == killed:
        os.kill(os.getpid(), signal.SIGKILL)
    if event.kind == "progress" and killed == event.stage + " done" and event.done == event.total:
        os.kill(os.getpid(), signal.SIGKILL)

resolved = resolve(repository)
source = Source(repository=repository, commit=resolved.commit)
config = Config.model_validate({"dataset": {"sequence_length": 128}})
tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer, eos_token="<|endoftext|>")
try:
    build_dataset(resolved.git_dir, source, config, tokenizer, JobContext(output=Path(output), emit=emit))
except DatasetError as error:
    print(error)
    sys.exit(int(error.exit_code))
"""


def run_apart(repository, tokenizer, output, limit=0, killed=""):
    file = output.parent.parent / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(file))
    command = [sys.executable, "-c", PROGRAM, str(repository), str(file), str(output), str(limit), killed]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tiny_tokenizer, place, tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    commit(repo, plain_files(100))
    done = run_apart(repo, tiny_tokenizer, place / "out", limit=4096)
    assert done.returncode == 2, done.stderr
    assert "is full" in done.stdout
    assert list(place.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["tokenise", "write", "write done"])
def test_a_killed_build_is_no_dataset_and_the_next_one_cleans_up(tiny_repository, tiny_tokenizer, place, moment):
    done = run_apart(tiny_repository, tiny_tokenizer, place / "out", killed=moment)
    assert done.returncode == -signal.SIGKILL
    assert not (place / "out").exists()
    assert list(place.iterdir())
    build(tiny_repository, place / "out", tiny_tokenizer)
    assert [path.name for path in place.iterdir()] == ["out"]
    verify(place / "out")


def test_a_place_that_cannot_be_written_is_a_sentence(tiny_repository, tiny_tokenizer, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="cannot be written"):
        build(tiny_repository, tmp_path / "file" / "out", tiny_tokenizer)


@pytest.mark.parametrize(
    ("named", "name"),
    [
        ("https://github.com/psf/requests.git", "requests"),
        ("git@github.com:psf/requests", "requests"),
        ("git@host:requests.git", "requests"),
        ("/home/me/code/requests/", "requests"),
        ("/home/me/requests/.git", "requests"),
        ("https://me:pass@h/r.git", "r"),
        (".", "repository"),
        ("/", "repository"),
    ],
)
def test_a_repository_is_called_by_the_end_of_its_path(named, name):
    assert repository_name(named) == name
