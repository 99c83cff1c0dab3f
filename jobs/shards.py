"""The dataset on disk: rows of token ids of one length, a byte of flags beside every token, a manifest written last.

A split is a folder of shards: `NNNNN.ids` holds little-endian uint16 or uint32 [rows, T], `NNNNN.flags` uint8
[rows, T]. A folder without `manifest.json` is not a dataset.
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from backends.errors import ExitCode, RepotuneError

FORMAT = 1
MANIFEST = "manifest.json"
TRAIN = "train"
HELD_OUT = "held_out"
#: What commits added that are newer than all that is trained on; empty where a history is too short for it.
FUTURE = "future"
SPLITS = (TRAIN, HELD_OUT, FUTURE)
_NO_ROWS = {"rows": 0}
#: The files in the folder of a whole dataset, beside its splits.
DATASET_FILES = frozenset(
    {MANIFEST, "stats.json", "drops.jsonl.zst", "examples.json", "timing.json", "samples.parquet", "report.html"}
)
#: All that may lie there: what an earlier version wrote, too.
DATASET_NAMES = frozenset({*DATASET_FILES, *SPLITS, "drops.jsonl"})

#: Flag: a document starts at this token.
DOCUMENT_START = 1
#: Flag: this token is predicted. Never set on padding, nor on the first token of a document.
LABEL = 2
#: The label that the loss leaves out.
IGNORED = -100

#: Bytes of ids in one shard at most; a shard holds at least one row.
SHARD_BYTES = 32 << 20

_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_FILE = re.compile(r"(?:train|held_out|future)/[0-9]{5}\.(?:ids|flags)")


class DatasetError(RepotuneError):
    """No dataset can be built of this repository as asked, or a dataset on disk cannot be used."""

    exit_code = ExitCode.USAGE


class Row(NamedTuple):
    """One packed row."""

    #: int64 [T]
    ids: NDArray[np.int64]
    #: uint8 [T]: DOCUMENT_START, LABEL
    flags: NDArray[np.uint8]


def dtype_name(vocabulary: int) -> str:
    """The smallest storage that holds every id of a vocabulary of that size."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def position_ids(flags: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Positions [..., T] that restart at 0 at each document start."""
    places = np.arange(flags.shape[-1], dtype=np.int64)
    starts = np.where(flags & DOCUMENT_START, places, 0)
    return places - np.maximum.accumulate(starts, axis=-1)


def labels(ids: NDArray[np.int64], flags: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The ids [..., T], with -100 where a token is not predicted."""
    return np.where(flags & LABEL, ids, IGNORED).astype(np.int64)


class ShardWriter:
    """Writes the rows of one split, shard after shard; `files` tells what was written once it is closed."""

    def __init__(self, folder: Path, split: str, sequence_length: int, dtype: str) -> None:
        (folder / split).mkdir(parents=True)
        self._folder = folder
        self._split = split
        self._dtype = _DTYPES[dtype]
        self._length = sequence_length
        self._rows_per_shard = max(1, SHARD_BYTES // (sequence_length * self._dtype.itemsize))
        self._open: list[_HashedFile] = []
        self.rows = 0
        #: Path below the dataset's folder -> {"bytes", "sha256"}
        self.files: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, ids: NDArray[np.int64], flags: NDArray[np.uint8]) -> None:
        """Add one row: ids [T] that fit the dtype, flags [T]."""
        if ids.shape != (self._length,) or flags.shape != (self._length,):
            msg = f"a row has {self._length} tokens, not {ids.shape} and {flags.shape}"
            raise ValueError(msg)
        if self.rows % self._rows_per_shard == 0:
            self._next_shard()
        self._open[0].write(ids.astype(self._dtype).tobytes())
        self._open[1].write(flags.astype(np.uint8).tobytes())
        self.rows += 1

    def _next_shard(self) -> None:
        self.close()
        name = f"{self._split}/{self.rows // self._rows_per_shard:05d}"
        for ending in ("ids", "flags"):
            self._open.append(_HashedFile(self._folder, f"{name}.{ending}"))

    def close(self) -> None:
        """Put what was written on the disk for good."""
        with ExitStack() as stack:
            while self._open:
                # Both are closed even where the disk is full and the first of them fails.
                stack.callback(self._close, self._open.pop())

    def _close(self, file: "_HashedFile") -> None:
        self.files[file.name] = file.close()


class _HashedFile:
    """A file that knows its sha256 when it is closed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._file = (folder / name).open("wb")
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def close(self) -> dict[str, Any]:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Make the folder a dataset. The same manifest gives the same bytes."""
    text = json.dumps({"format": FORMAT, **manifest}, indent=2, sort_keys=True, allow_nan=False) + "\n"
    unfinished = folder / f".{MANIFEST}"
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MANIFEST)


@dataclass(frozen=True)
class PackedDataset:
    """A dataset opened for reading; the rows stay on disk until asked for."""

    manifest: dict[str, Any]
    sequence_length: int
    train: "Rows"
    held_out: "Rows"
    future: "Rows"
    #: Where it lies.
    folder: Path

    def split(self, name: str) -> "Rows":
        """The rows of one of SPLITS."""
        return {TRAIN: self.train, HELD_OUT: self.held_out, FUTURE: self.future}[name]


class Rows:
    """The rows of a split: `len(rows)`, `rows[i]`, iteration."""

    def __init__(self, folder: Path, names: list[str], sequence_length: int, dtype: str) -> None:
        self._ids = [_mapped(folder / name, _DTYPES[dtype], sequence_length) for name in names]
        self._flags = [
            _mapped((folder / name).with_suffix(".flags"), np.dtype("u1"), sequence_length) for name in names
        ]
        self._ends = list(accumulate(len(shard) for shard in self._ids))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            msg = f"row {index} of {len(self)}"
            raise IndexError(msg)
        shard = bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        return Row(self._ids[shard][place].astype(np.int64), np.array(self._flags[shard][place], dtype=np.uint8))

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


def _mapped(file: Path, dtype: np.dtype[Any], sequence_length: int) -> NDArray[Any]:
    flat = np.memmap(file, dtype=dtype, mode="r")
    if flat.size % sequence_length:
        raise DatasetError(f"Dataset file {file} does not hold whole rows: build the dataset again.")
    return flat.reshape(-1, sequence_length)


def open_dataset(folder: Path) -> PackedDataset:
    """Open a dataset. Sizes are checked here, contents by `verify`.

    Raises:
        DatasetError: there is none in the folder, it is incomplete, or a newer repotune wrote it.
    """
    manifest = _read_manifest(folder)
    for name, about in manifest["files"].items():
        _check_size(folder / name, about["bytes"])
    length, dtype = manifest["sequence_length"], manifest["dtype"]
    ids = sorted(name for name in manifest["files"] if name.endswith(".ids"))
    splits = [Rows(folder, [name for name in ids if name.startswith(f"{split}/")], length, dtype) for split in SPLITS]
    for split, rows in zip(SPLITS, splits, strict=True):
        if len(rows) != manifest["splits"].get(split, _NO_ROWS)["rows"]:
            raise DatasetError(f"Dataset {folder} lacks rows of its {split} split: build it again.")
    train, held_out, future = splits
    return PackedDataset(manifest, length, train, held_out, future, folder)


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        DatasetError: names the file that is missing, cut or altered.
    """
    for name, about in _read_manifest(folder)["files"].items():
        _check_size(folder / name, about["bytes"])
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                raise DatasetError(f"Dataset file {folder / name} was altered: build the dataset again.")


def _check_size(file: Path, size: int) -> None:
    if not file.is_file():
        raise DatasetError(f"Dataset file {file} is missing: build the dataset again.")
    if file.stat().st_size != size:
        raise DatasetError(f"Dataset file {file} is cut or altered: build the dataset again.")


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{folder} holds no finished dataset: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"Dataset manifest {file} cannot be read ({error}): build the dataset again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DatasetError(f"Dataset {folder} has a format that this repotune does not read: build it again.")
    if not _is_whole(manifest):
        raise DatasetError(f"Dataset manifest {file} lacks what it should say: build the dataset again.")
    return manifest


def _is_whole(manifest: dict[str, Any]) -> bool:
    """True where every key that reading relies on has its shape; paths cannot lead out of the folder."""
    files, splits = manifest.get("files"), manifest.get("splits")
    return (
        isinstance(files, dict)
        and all(_FILE.fullmatch(name) and {"bytes", "sha256"} <= set(about) for name, about in files.items())
        and all(name.removesuffix(".ids") + ".flags" in files for name in files if name.endswith(".ids"))
        and isinstance(splits, dict)
        and {TRAIN, HELD_OUT} <= set(splits)
        and all(isinstance(splits[split], dict) and "rows" in splits[split] for split in SPLITS if split in splits)
        and manifest.get("dtype") in _DTYPES
        and isinstance(manifest.get("sequence_length"), int)
        and manifest["sequence_length"] > 0
    )
