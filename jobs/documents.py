"""Which file stands where in the rows of a split, as `samples.parquet` tells it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.shards import DatasetError

_FILE = "samples.parquet"
_COLUMNS = ("split", "row", "place", "tokens", "labels")


@dataclass(frozen=True)
class Piece:
    """A document of a row: a file, or a part of one that is longer than a row."""

    path: str
    row: int
    #: Of its first token in the row.
    place: int
    tokens: int
    #: Tokens that are measured.
    labels: int

    @property
    def span(self) -> slice:
        """Its tokens in the row."""
        return slice(self.place, self.place + self.tokens)


def read_pieces(dataset: Path) -> Mapping[str, Sequence[Piece]]:
    """The pieces of each split, in the order of its rows.

    Raises:
        DatasetError: the table is not there, or is none of ours.
    """
    lines = _lines(dataset / _FILE)
    found: dict[str, list[Piece]] = defaultdict(list)
    for line in lines:
        path = line["paths"][0] if "paths" in line else line["path"]
        found[line["split"]].append(Piece(path, line["row"], line["place"], line["tokens"], line["labels"]))
    return {split: sorted(pieces, key=lambda piece: (piece.row, piece.place)) for split, pieces in found.items()}


def by_row(pieces: Sequence[Piece]) -> Mapping[int, Sequence[Piece]]:
    """The pieces of each row that has some."""
    rows: dict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        rows[piece.row].append(piece)
    return rows


def _lines(file: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    if not file.is_file():
        raise DatasetError(f"Dataset file {file} is missing: build the dataset again.")
    try:
        names = set(parquet.read_schema(file).names)
        # A table of an earlier version names one file for a sample.
        paths = "paths" if "paths" in names else "path"
        lines: list[dict[str, Any]] = parquet.read_table(file, columns=[*_COLUMNS, paths]).to_pylist()
    except (ArrowException, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"Dataset file {file} cannot be read ({reason}): build the dataset again.") from error
    return lines
