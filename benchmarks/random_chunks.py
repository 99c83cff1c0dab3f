"""The dataset that is commonly made of a repository: its files one after another, cut anywhere into equal chunks.

No figure of its own: dataset_worth.py trains on it beside ours. It is written in the same format, so that the very same
trainer reads it. In its favour, only the files are taken that our build keeps (no binaries, no generated ones); nothing
else of ours is in it: no paths, no commits, no document borders, no redaction, copies kept, and chunks held out by lot
instead of files, which leaks: their neighbours are trained on.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from backends import models
from jobs import repository, shards
from jobs.dataset.files import Reason
from jobs.dataset.writing import DROPS

#: Left out by our mix, not for what they are: the baseline has them.
_KEPT = {Reason.DUPLICATE, Reason.DOCS_SHARE, Reason.TOKENS}

#: Share of the chunks that are held out.
HELD_OUT = 0.05


def kept_files(git_dir: Path, ours: Path) -> dict[str, str]:
    """Path -> text of every file of the commit that `ours` was trained until and that its build did not drop."""
    manifest = json.loads((ours / shards.MANIFEST).read_text(encoding="utf-8"))
    with pa.input_stream(str(ours / DROPS), compression="zstd") as stream:
        lines = stream.read().splitlines()
    dropped = {drop["path"] for drop in map(json.loads, lines) if drop["reason"] not in _KEPT}
    return {path: text for path, text in texts(git_dir, manifest["trained_until"]) if path not in dropped}


def texts(git_dir: Path, commit: str) -> Iterator[tuple[str, str]]:
    """Path and text of every UTF-8 file of a commit, in the order of the paths."""
    entries = [entry for entry in repository.list_files(git_dir, commit) if entry.mode.startswith("100")]
    contents = repository.read_blobs(git_dir, (entry.blob for entry in entries))
    for entry, (_, content) in zip(entries, contents, strict=True):
        if content is None or b"\0" in content:
            continue
        try:
            yield entry.path.decode("utf-8"), content.decode("utf-8")
        except UnicodeDecodeError:
            continue


def write_random_chunks(folder: Path, files: dict[str, str], tokenizer: Any, like: dict[str, Any], seed: int) -> None:
    """Write a dataset with as many training rows, as long, as the one whose manifest is `like`.

    Args:
        folder: is made.
        files: path -> text.
        tokenizer: the model's.
        like: manifest of our dataset.
        seed: of the order of files and chunks. Where the files have too few chunks, they come again in another order.
    """
    length, rows = like["sequence_length"], like["splits"][shards.TRAIN]["rows"]
    draw = random.Random(f"random chunks {seed}")  # noqa: S311 - no secret
    chunks = _chunks(files, tokenizer, length, draw)
    draw.shuffle(chunks)
    held_out = max(1, round(HELD_OUT * len(chunks)))
    learned = chunks[held_out:]
    train: list[NDArray[np.int64]] = []
    while len(train) < rows:
        train += draw.sample(learned, min(len(learned), rows - len(train)))
    written: dict[str, Any] = {}
    splits: dict[str, Any] = {}
    for split, part in ((shards.TRAIN, train), (shards.HELD_OUT, chunks[:held_out])):
        written |= _write(folder, split, part, like["dtype"])
        splits[split] = {"rows": len(part), "tokens": len(part) * length, "labels": len(part) * (length - 1)}
    about = {key: like[key] for key in ("commit", "trained_until", "dtype", "sequence_length", "tokenizer")}
    shards.write_manifest(folder, about | {"files": written, "splits": splits})


def _chunks(files: dict[str, str], tokenizer: Any, length: int, draw: random.Random) -> list[NDArray[np.int64]]:
    """The files in random order, an end-of-text token after each, cut every `length` tokens; the rest is left out."""
    order = sorted(files)
    draw.shuffle(order)
    end = models.document_end_id(tokenizer)
    ids: list[int] = []
    for path in order:
        ids += [*tokenizer(files[path], add_special_tokens=False)["input_ids"], end]
    return list(np.array(ids[: len(ids) // length * length], np.int64).reshape(-1, length))


def _write(folder: Path, split: str, rows: list[NDArray[np.int64]], dtype: str) -> dict[str, Any]:
    flags = np.full(len(rows[0]), shards.LABEL, np.uint8)
    flags[0] = shards.DOCUMENT_START
    with shards.ShardWriter(folder, split, len(rows[0]), dtype) as writer:
        for row in rows:
            writer.append(row, flags)
    return writer.files
