"""The metadata at the head of a .gguf file, read without loading a tensor and without the gguf package.

Only what tells the shape of a model: numbers, short texts, lengths of lists, names of tensors. Weights stay on disk.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"GGUF"

# Value types of the format; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# No name, key or template is longer: a broken length must not ask for gigabytes.
_LONGEST_TEXT = 1 << 24


class NotGguf(ValueError):
    """The file is no GGUF file, or is cut off."""


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """Metadata of a .gguf file. A list is represented by its length."""

    metadata: Mapping[str, Any]
    tensors: frozenset[str]


def read_gguf_header(file: Path) -> GgufHeader:
    """Read the header of `file`.

    Raises:
        NotGguf: it is something else, or cut off.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise NotGguf("not a GGUF file")
        try:
            _version, tensors, entries = struct.unpack("<IQQ", stream.read(20))
            metadata = dict(_entry(stream) for _ in range(entries))
            names = frozenset(_tensor_name(stream) for _ in range(tensors))
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise NotGguf(f"a broken GGUF header ({error})") from error
    return GgufHeader(metadata=metadata, tensors=names)


def _entry(stream: BinaryIO) -> tuple[str, Any]:
    key = _text(stream)
    return key, _value(stream, _scalar(stream, "I"))


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(stream)
    if kind != _ARRAY:
        return _scalar(stream, _SCALARS[kind])
    item, length = struct.unpack("<IQ", stream.read(12))
    if item in _SCALARS:
        stream.seek(length * struct.calcsize("<" + _SCALARS[item]), 1)
    else:
        for _ in range(length):
            _value(stream, item)
    return length


def _scalar(stream: BinaryIO, code: str) -> Any:
    code = "<" + code
    return struct.unpack(code, stream.read(struct.calcsize(code)))[0]


def _text(stream: BinaryIO) -> str:
    length = _scalar(stream, "Q")
    if length > _LONGEST_TEXT:
        raise NotGguf("a broken GGUF header (a text of absurd length)")
    return stream.read(length).decode("utf-8", errors="replace")


def _tensor_name(stream: BinaryIO) -> str:
    name = _text(stream)
    dimensions = _scalar(stream, "I")
    stream.seek(8 * dimensions + 4 + 8, 1)
    return name
