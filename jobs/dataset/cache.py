"""What earlier builds worked out, by the content that it was worked out from: a rebuild touches only what is new.

One SQLite file for all repositories of a person. Keys hash everything that a value hangs on, so a value is never wrong,
only unused; a cache that is lost, locked or damaged costs time and nothing else.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.code import code_version

#: Of the layout of what is kept; another one begins a new file.
_FORMAT = 2
#: Bytes on disk beyond which what was not used for longest goes.
LIMIT_BYTES = 2 << 30
#: Entries written in one transaction: a build that is stopped loses this much work at most.
_BATCH, _BATCH_BYTES = 256, 16 << 20
_CHECKSUM = 8
_DAY = 86_400
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Entry:
    """One value: a few plain facts and arrays of numbers."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def packed(self) -> bytes:
        """As bytes: a line of JSON that names the arrays, then their content."""
        shapes = {name: [array.dtype.str, len(array)] for name, array in self.arrays.items()}
        head = json.dumps({"facts": self.facts, "arrays": shapes}, separators=(",", ":")).encode()
        body = b"\n".join([head, b"".join(np.ascontiguousarray(array).tobytes() for array in self.arrays.values())])
        return _checksum(body) + body

    @classmethod
    def unpacked(cls, value: bytes) -> "Entry":
        """Of what `packed` gave; the arrays are views of `value`.

        Raises:
            ValueError: it is something else.
        """
        value, checksum = value[_CHECKSUM:], value[:_CHECKSUM]
        if _checksum(value) != checksum:
            raise ValueError("an entry of the cache is damaged")
        end = value.index(b"\n")
        head = json.loads(value[:end])
        arrays, place = {}, end + 1
        for name, (kind, length) in head["arrays"].items():
            arrays[name] = np.frombuffer(value, np.dtype(kind), length, place)
            place += arrays[name].nbytes
        return cls(head["facts"], arrays)


def _checksum(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_CHECKSUM).digest()


def key(stage: str, *parts: object) -> bytes:
    """The key of a value of `stage` that hangs on `parts`, and on the code of this package."""
    digest = hashlib.blake2b(f"{stage} {code_version()}".encode(), digest_size=20, person=b"dataset cache")
    for part in parts:
        text = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.digest()


class Cache:
    """The entries of earlier builds. Whatever is wrong with the file, `get` finds nothing and `put` does nothing."""

    def __init__(self, folder: Path | None, limit_bytes: int = LIMIT_BYTES) -> None:
        self._file = folder / f"dataset-{_FORMAT}.sqlite" if folder else None
        self._limit = limit_bytes
        self._today = int(time.time()) // _DAY
        self._new: dict[bytes, bytes] = {}
        self._new_bytes = 0
        self._touched: list[bytes] = []
        self._damaged = False
        self._connection: sqlite3.Connection | None = None
        self._connection = self._open()
        self.hits = self.misses = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> sqlite3.Connection | None:
        """The file, made anew where it is damaged; None where there can be none."""
        if self._file is None:
            return None
        for _ in range(2):
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                connection = sqlite3.connect(self._file, timeout=5)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute(_SCHEMA)
            except sqlite3.DatabaseError as error:
                if "locked" in str(error):
                    return None
                self._remove()
            except OSError:
                return None
            else:
                return connection
        return None

    def has(self, key: bytes) -> bool:
        """Whether there is an entry, without reading it."""
        if key in self._new:
            return True
        if self._connection is None:
            return False
        try:
            return self._connection.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone() is not None
        except sqlite3.Error:
            return False

    def get(self, key: bytes) -> Entry | None:
        """The entry, or None."""
        value = self._new.get(key)
        if value is None and self._connection is not None:
            value = self._read(key)
        try:
            entry = Entry.unpacked(value) if value is not None else None
        except (ValueError, KeyError, TypeError):
            entry = None
        self.hits += entry is not None
        self.misses += entry is None
        return entry

    def _read(self, key: bytes) -> bytes | None:
        assert self._connection is not None  # noqa: S101 - `get` asked
        try:
            row = self._connection.execute("SELECT value, day FROM entries WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._note(error)
            return None
        if row is not None and row[1] != self._today:
            self._touched.append(key)
        return row[0] if row is not None else None

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry."""
        if self._connection is None:
            return
        self._new[key] = entry.packed()
        self._new_bytes += len(self._new[key])
        if len(self._new) >= _BATCH or self._new_bytes >= _BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        rows: Iterable[tuple[bytes, bytes, int]] = ((key, value, self._today) for key, value in self._new.items())
        if self._connection is not None:
            try:
                with self._connection:
                    self._connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
                    touched = [(self._today, key) for key in self._touched]
                    self._connection.executemany("UPDATE entries SET day = ? WHERE key = ?", touched)
            except sqlite3.Error as error:
                self._note(error)
                self._connection = None  # a full disk, or another build that writes for long: go on without
        self._new.clear()
        self._new_bytes = 0
        self._touched.clear()

    def close(self) -> None:
        """Write what is left, and make room where the file has grown too large."""
        self._write()
        if self._damaged:
            self._remove()
        if self._connection is None:
            return
        try:
            self._make_room()
        except sqlite3.Error:
            pass
        finally:
            self._connection.close()
            self._connection = None

    def _note(self, error: sqlite3.Error) -> None:
        """Remember that the file itself is damaged; that it is busy or the disk is full passes."""
        self._damaged |= not isinstance(error, sqlite3.OperationalError)

    def _remove(self) -> None:
        """Let the next build begin a new file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        for ending in ("", "-wal", "-shm"):
            if self._file is not None:
                self._file.with_name(self._file.name + ending).unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Remove what was not used for longest until the rest takes half of the limit."""
        assert self._file is not None  # noqa: S101 - there is a connection
        assert self._connection is not None  # noqa: S101
        if self._file.stat().st_size <= self._limit:
            return
        kept = 0
        days = "SELECT day, sum(length(value)) FROM entries GROUP BY day ORDER BY day DESC"
        for day, size in self._connection.execute(days).fetchall():
            kept += size
            if kept > self._limit // 2:
                # Of the day on which the limit falls, too: a build may fill it alone.
                self._connection.execute("DELETE FROM entries WHERE day <= ?", (day,))
                break
        self._connection.commit()
        self._connection.execute("VACUUM")
