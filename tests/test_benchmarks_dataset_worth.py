"""The baseline that our dataset is measured against is a fair one: as many tokens, the same files, nothing newer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jobs import shards
from jobs.dataset.files import Drop, Reason
from jobs.dataset.writing import write_drops

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
LENGTH = 64


def _commit(folder, message):
    who = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull} | who
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", message]):
        subprocess.run(["git", *command], cwd=folder, env=environment, check=True)
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return told.stdout.strip()


@pytest.fixture(scope="module")
def modules():
    """The modules of the benchmark, which lie outside of every package."""
    pytest.importorskip("torch")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import dataset_mix
        import dataset_worth
        import random_chunks

        yield SimpleNamespace(chunks=random_chunks, worth=dataset_worth, mix=dataset_mix)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def history(tmp_path):
    """A repository, the commit where training ends and a newer one, after which `zebra` is a word."""
    folder = tmp_path / "repository"
    (folder / "package").mkdir(parents=True)
    for number in range(6):
        text = "".join(f"value_{number}_{line} = {line}\n" for line in range(60))
        (folder / "package" / f"module_{number}.py").write_text(text, encoding="utf-8")
    (folder / "dropped.txt").write_text("giraffe\n" * 50, encoding="utf-8")
    (folder / "image.bin").write_bytes(b"\0\1\2")
    cut = _commit(folder, "Begin")
    old = (folder / "package" / "module_0.py").read_text(encoding="utf-8")
    (folder / "package" / "module_0.py").write_text(f"zebra = 1\n{old}zebra = 2\n", encoding="utf-8")
    (folder / "newer.py").write_text("zebra = 3\n" * 100, encoding="utf-8")
    return folder, cut, _commit(folder, "Go on")


def _ours(folder, cut, newest, rows):
    """What the baseline reads of a dataset of ours."""
    folder.mkdir()
    manifest = {
        "commit": newest,
        "trained_until": cut,
        "dtype": "uint16",
        "sequence_length": LENGTH,
        "tokenizer": {},
        "files": {},
        "splits": {"train": {"rows": rows, "tokens": rows * LENGTH}, "held_out": {"rows": 0}},
    }
    (folder / shards.MANIFEST).write_text(json.dumps({"format": shards.FORMAT, **manifest}), encoding="utf-8")
    write_drops(folder, [Drop(path="dropped.txt", blob="0" * 40, bytes=1, reason=Reason.TOO_LARGE)])
    return manifest


@pytest.mark.parametrize("rows", [5, 500])
def test_the_baseline_has_as_many_tokens_and_nothing_after_the_cut(modules, history, tiny_tokenizer, tmp_path, rows):
    repository, cut, newest = history
    manifest = _ours(tmp_path / "ours", cut, newest, rows)
    files = modules.chunks.kept_files(repository / ".git", tmp_path / "ours")
    assert sorted(files) == [f"package/module_{number}.py" for number in range(6)]
    modules.chunks.write_random_chunks(tmp_path / "baseline", files, tiny_tokenizer, manifest, 17)
    shards.verify(tmp_path / "baseline")
    data = shards.open_dataset(tmp_path / "baseline")
    assert len(data.train) == rows
    assert len(data.held_out) > 0
    assert all(row.ids.shape == (LENGTH,) and (row.flags[1:] == shards.LABEL).all() for row in data.train)
    text = "".join(tiny_tokenizer.decode(row.ids) for rows_ in (data.train, data.held_out) for row in rows_)
    assert "value_" in text
    assert "zebra" not in text


def test_a_chunk_that_is_held_out_is_not_trained_on(modules, history, tiny_tokenizer, tmp_path):
    repository, cut, newest = history
    manifest = _ours(tmp_path / "ours", cut, newest, 500)
    files = modules.chunks.kept_files(repository / ".git", tmp_path / "ours")
    modules.chunks.write_random_chunks(tmp_path / "baseline", files, tiny_tokenizer, manifest, 17)
    data = shards.open_dataset(tmp_path / "baseline")
    learned = {row.ids.tobytes() for row in data.train}
    assert not learned & {row.ids.tobytes() for row in data.held_out}


def test_only_the_lines_that_newer_commits_added_are_measured(modules, history, tiny_tokenizer):
    repository, cut, newest = history
    windows = modules.worth.added_windows(repository / ".git", (cut, newest), tiny_tokenizer, LENGTH)
    assert {window.path for window in windows} == {"newer.py", "package/module_0.py"}
    text = "".join(tiny_tokenizer.decode(window.ids[window.measured]) for window in windows)
    assert "zebra" in text
    assert "value_" not in text


def test_an_adapter_that_is_better_on_every_file_is_below_with_its_whole_interval(modules):
    worse = {"a": [30.0, 10], "b": [5.0, 2], "c": [9.0, 3]}
    better = {path: [total - 1.0, tokens] for path, (total, tokens) in worse.items()}
    told = modules.worth.difference([better], [worse])
    assert told["difference"] == pytest.approx(-3 / 15)
    assert told["interval"][1] < 0
    assert told["files_better"] == 3


def test_counting_gives_probabilities_and_learns_labels_alone(modules):
    ids = np.array([0, 1, 2, 3, 1, 2, 3], np.int64)
    learned = np.full(7, shards.LABEL, np.uint8)
    learned[0] = shards.DOCUMENT_START
    counts = modules.mix.Counts(5)
    counts.learn([shards.Row(ids, learned)])
    assert sum(counts.probability([1, 2], token) for token in range(5)) == pytest.approx(1)
    assert counts.probability([1, 2], 3) > 0.7
    shown = np.zeros(7, np.uint8)
    shown[0] = shards.DOCUMENT_START
    untaught = modules.mix.Counts(5)
    untaught.learn([shards.Row(ids, shown)])
    assert untaught.probability([1, 2], 3) == pytest.approx(1 / 5)
