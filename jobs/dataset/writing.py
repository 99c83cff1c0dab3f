"""Writes the splits of a dataset: packed rows, and a table that says what lies where in them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.files import Drop
from jobs.dataset.gaps import fill_gaps
from jobs.dataset.lots import drawn
from jobs.dataset.mixing import Item
from jobs.dataset.packing import pack
from jobs.dataset.tokens import Vocabulary
from jobs.shards import DOCUMENT_START, LABEL, ShardWriter, dtype_name
from jobs.stages import Stages

SAMPLES = "samples.parquet"
DROPS = "drops.jsonl.zst"


@dataclass(frozen=True)
class Split:
    """One side of the dataset, ready to be written."""

    name: str
    #: Files that it was made of, and their bytes.
    files: int
    bytes: int
    items: list[Item]
    #: Indices into `items`, a list for every row.
    rows: list[list[int]]

    @classmethod
    def packed(
        cls,
        name: str,
        items: list[Item],
        *,
        sizes: Mapping[tuple[str, str | None], int],
        sequence_length: int,
        seed: int,
    ) -> "Split":
        """Pack items into rows; the rows are in an order as good as chance, as packing leaves long documents first.

        Args:
            name: of the split.
            items: its samples.
            sizes: bytes by path and blob of the files that they may be of.
            sequence_length: tokens of a row.
            seed: of the order.
        """
        files = {(part.path, part.blob) for item in items for part in item.parts} & set(sizes)
        packed = pack([len(item.sample.ids) for item in items], sequence_length)
        filled = fill_gaps([item.sample for item in items], packed, sequence_length)
        pieces = zip(filled.samples, filled.origins, strict=True)
        rows = sorted(filled.rows, key=lambda row: _shuffled(seed, name, row))
        written = [replace(items[origin], sample=sample) for sample, origin in pieces]
        return cls(name, len(files), sum(sizes[file] for file in files), written, rows)

    @property
    def tokens(self) -> int:
        """Tokens of documents, padding not counted."""
        return sum(len(item.sample.ids) for item in self.items)

    @property
    def labels(self) -> int:
        """Tokens that are learned or measured."""
        return sum(label_count(item) for item in self.items)


def label_count(item: Item) -> int:
    """Tokens of a sample that are learned or measured; the first of a document never is."""
    return int(item.sample.learned[1:].sum())


def _shuffled(seed: int, split: str, row: Sequence[int]) -> bytes:
    return drawn(seed, f"{split} {row[0]}".encode(), b"rows", 16)


def write_splits(
    folder: Path, splits: Sequence[Split], sequence_length: int, vocabulary: Vocabulary, stages: Stages
) -> dict[str, Any]:
    """Write the shards; their sizes and hashes, by name."""
    files: dict[str, Any] = {}
    for split in splits:
        with ShardWriter(folder, split.name, sequence_length, dtype_name(vocabulary.size)) as writer:
            for done, row in enumerate(split.rows, 1):
                stages.progress(done, len(split.rows), "rows")
                writer.append(*_row([split.items[index] for index in row], sequence_length, vocabulary))
        files |= writer.files
    return files


def _row(items: Sequence[Item], length: int, vocabulary: Vocabulary) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """One row: documents side by side, then padding as a document of its own without labels."""
    ids = np.full(length, vocabulary.padding, np.int64)
    flags = np.zeros(length, np.uint8)
    place = 0
    for item in items:
        sample, stop = item.sample, place + len(item.sample.ids)
        ids[place:stop] = sample.ids
        flags[place:stop] = np.where(sample.learned, LABEL, 0)
        flags[place] = DOCUMENT_START
        place = stop
    if place < length:
        flags[place] = DOCUMENT_START
    return ids, flags


def write_samples(folder: Path, splits: Sequence[Split], vocabulary: Vocabulary) -> None:
    """Write `samples.parquet`: a line for every sample, with its row and place, and its files as lists."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA}
    for split in splits:
        for row, indices in enumerate(split.rows):
            place = 0
            for index in indices:
                item = split.items[index]
                for name, value in _line(split.name, item, row, place, vocabulary).items():
                    columns[name].append(value)
                place += len(item.sample.ids)
    schema = pa.schema([(name, _arrow_type(kind)) for name, kind in _SCHEMA.items()])
    parquet.write_table(pa.table(columns, schema=schema), folder / SAMPLES, compression="zstd")


def write_drops(folder: Path, drops: Iterable[Drop]) -> None:
    """Write `drops.jsonl.zst`: a line of JSON for every file that is not learned, compressed: a tree may be vast."""
    import pyarrow as pa

    with pa.output_stream(str(folder / DROPS), compression="zstd") as stream:
        for drop in drops:
            stream.write(json.dumps(asdict(drop)).encode() + b"\n")


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    inner = kind.removeprefix("list ")
    return getattr(pa, inner)() if inner == kind else pa.list_(getattr(pa, inner)())


_SCHEMA = {
    "split": "string",
    "kind": "string",
    "mode": "string",
    "commit": "string",
    "paths": "list string",
    "blobs": "list string",
    "licences": "list string",
    "sizes": "list int32",
    "start": "int64",
    "stop": "int64",
    "tokens": "int32",
    "labels": "int32",
    "redactions": "int32",
    "row": "int32",
    "place": "int32",
}


def _line(split: str, item: Item, row: int, place: int, vocabulary: Vocabulary) -> dict[str, Any]:
    sample = item.sample
    return {
        "split": split,
        **item.about,
        "blobs": [part.blob for part in item.parts],
        "licences": [part.licence for part in item.parts],
        "sizes": sample.sizes,
        "start": sample.start,
        "stop": sample.stop,
        "labels": label_count(item),
        "redactions": vocabulary.count_redactions(sample.ids),
        "row": row,
        "place": place,
    }
