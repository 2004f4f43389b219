"""What a Parquet file's footer says of its column chunks, read in Python: a footer that is damaged ends in an error.

pyarrow (26.0) ends the process where a column chunk's statistics contradict one another, since the exception that its
C++ raises there is not expected. So the numbers that bounds are held against are read here before pyarrow is asked.
Thrift's compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md), of the fields of parquet.thrift named
below; others are read over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

from watermark.errors import InputError

__all__ = ["MAX_FOOTER", "ColumnChunk", "column_chunks"]

#: Bytes of a footer: some 300,000 column chunks.
MAX_FOOTER = 2**26

_MAGIC = b"PAR1"

#: FileMetaData.row_groups; RowGroup.columns; ColumnChunk.meta_data; ColumnMetaData's path, values, unpacked bytes.
_ROW_GROUPS, _COLUMNS, _META_DATA, _PATH, _VALUES, _UNPACKED = 4, 1, 3, 3, 5, 6

#: Structures in one another; those of Parquet are a handful.
_MAX_DEPTH = 32

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(1, 14)


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """One column of one row group, as the footer says."""

    column: str
    """The first name of its path."""
    values: int
    unpacked: int
    """Bytes, not compressed."""


def column_chunks(stream: BinaryIO) -> list[list[ColumnChunk]]:
    """Return the column chunks of each row group.

    Raises:
        InputError: there is no whole footer.
    """
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > min(MAX_FOOTER, size - 12):
        raise InputError("expected a Parquet file's footer, found none: it was cut short, or is encrypted")
    stream.seek(size - 8 - length)
    try:
        groups = _Compact(stream.read(length)).structure(0)[_ROW_GROUPS]
        return [[_chunk(column[_META_DATA]) for column in group[_COLUMNS]] for group in groups]
    except (IndexError, KeyError, TypeError, AttributeError, ValueError):
        raise InputError("expected a Parquet file's footer, found it damaged") from None


def _chunk(described: dict[int, Any]) -> ColumnChunk:
    return ColumnChunk(described[_PATH][0].decode(), int(described[_VALUES]), int(described[_UNPACKED]))


class _Compact:
    """A reader of Thrift's compact protocol: structures become dictionaries by field number."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def structure(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._signed()
            # A field's own head holds the value of a boolean.
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("too deep")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._signed()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _UUID:
            return self._bytes(16)
        if kind == _STRUCT:
            return self.structure(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            self._expect(count)
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == _MAP:
            count = self._varint()
            self._expect(count)
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(count)]
        raise ValueError("no type of Thrift's")

    def _expect(self, items: int) -> None:
        # Each takes a byte at least.
        if items > len(self._data) - self._at:
            raise ValueError("cut short")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._expect(count)
        self._at += count
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
