"""Parquet: rows of a table as records, a bounded part at a time (extra `corpora`).

A file's footer and page headers are what the file says of itself. They are held against bounds before anything is
unpacked, since a few bytes of dictionary or run-length encoding stand for any number of values. Strings are checked for
being UTF-8, which Parquet promises and no reader of it looks at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from detect.parquet_footer import ColumnChunk, column_chunks
from watermark.errors import InputError, MissingExtraError, UsageError, printable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAX_COLUMN_BYTES", "MAX_VALUES", "ArrowRows", "arrow_rows", "need_pyarrow"]

#: Values of one column in one row group, and bytes of it unpacked.
MAX_VALUES = 2**28
MAX_COLUMN_BYTES = 2**31

#: Rows, and bytes, decoded at a time: the same ones whatever the size of the parts that are cut from them, so that what
#: stands before damage does not depend on it.
_MOST_ROWS = 2**16
_DECODED = 2**22


def need_pyarrow() -> None:
    """Make sure that pyarrow is there.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtraError("Parquet needs pyarrow: pip install 'taggant[corpora]'") from None


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """Some rows of a file; sent to another process as Arrow's stream format."""

    first: int
    """The number of the first row in its file, from 1."""
    length: int
    file_bytes: int
    """Bytes of the file, about, up to the last row."""
    batch: pa.RecordBatch

    def __reduce__(self) -> tuple[Any, ...]:
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.batch.schema) as writer:
            writer.write_batch(self.batch)
        return _of_stream, (self.first, self.length, self.file_bytes, sink.getvalue().to_pybytes())

    def rows(self) -> Iterator[dict[str, object] | str]:
        """Yield each row's values that are not null, or what is wrong with it."""
        batch = self.batch
        columns = {name: _values(batch.column(i)) for i, name in enumerate(batch.schema.names)}
        for number in range(batch.num_rows):
            row = {name: values[number] for name, values in columns.items()}
            wrong = next(((name, value) for name, value in row.items() if isinstance(value, _NotText)), None)
            if wrong is None:
                yield row
            else:
                name, value = wrong
                yield f"expected UTF-8 in {printable(name, 40)}, found the byte 0x{value.byte:02x} at byte {value.at}"

    def id_lists(self, column: str) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]] | None:
        """Return the ids of all rows and where each row's begin, with the end; None if there is more than *column*."""
        import pyarrow.types as kinds

        batch = self.batch
        if batch.schema.names != [column] or batch.column(0).null_count:
            return None
        if not (kinds.is_list(batch.column(0).type) or kinds.is_large_list(batch.column(0).type)):
            return None
        values, starts = _lists(batch.column(0))
        ids = _small_integers(values)
        return None if ids is None else (ids, starts)

    def digests(self) -> list[bytes]:
        """Return a digest of each row: equal where the values that are not null are."""
        batch = self.batch
        hashes: list[Any] = [None] * batch.num_rows
        for name, i in sorted((name, i) for i, name in enumerate(batch.schema.names)):
            head = name.encode() + b"\0"
            for number, value in enumerate(_bytes(batch.column(i))):
                if value is not None:
                    described = head + len(value).to_bytes(8, "little")
                    if (sha256 := hashes[number]) is None:
                        hashes[number] = sha256 = hashlib.sha256(described)
                    else:
                        sha256.update(described)
                    sha256.update(value)
        nothing = hashlib.sha256()
        return [(sha256 or nothing).digest()[:16] for sha256 in hashes]


def _of_stream(first: int, length: int, file_bytes: int, stream: bytes) -> ArrowRows:
    import pyarrow as pa

    return ArrowRows(first, length, file_bytes, pa.ipc.open_stream(pa.py_buffer(stream)).read_next_batch())


@dataclass(frozen=True, slots=True)
class _NotText:
    at: int
    byte: int


def arrow_rows(stream: BinaryIO, *, columns: Sequence[str], size: int) -> Iterator[ArrowRows]:
    """Yield the rows of a Parquet file in parts of some *size* bytes.

    Args:
        stream: the file, which can be sought in.
        columns: names of which those that the file has are read.
        size: of a part, unpacked, in bytes.

    Raises:
        InputError: it is no whole Parquet file, names a column twice, or is over a bound.
        UsageError: *stream* cannot be sought in.
    """
    need_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not stream.seekable():
        raise UsageError("Parquet cannot be read from a pipe, since it begins at its end: name the file")
    chunks = column_chunks(stream)
    stream.seek(0)
    try:
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"expected each column once, found {printable(twice, 40)} twice")
        wanted = [name for name in names if name in columns]
        # What a dictionary stands for stays one value in memory, however often it is said.
        said_again = [name for name in wanted if _holds_text(file.schema_arrow.field(name).type, pa)]
        file = pq.ParquetFile(stream, read_dictionary=said_again)
        first, size_of_file = 1, stream.seek(0, 2)
        for group, columns_of_group in enumerate(chunks):
            described = file.metadata.row_group(group)
            total = _checked(columns_of_group, wanted, group)
            if not wanted or not described.num_rows:
                first += described.num_rows
                continue
            rows = max(1, min(_MOST_ROWS, described.num_rows, described.num_rows * _DECODED // max(1, total)))
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=wanted, use_threads=False):
                for start, end in _cuts(batch, size):
                    done = size_of_file * (first + end - start - 1) // max(1, file.metadata.num_rows)
                    yield ArrowRows(first, end - start, done, batch.slice(start, end - start))
                    first += end - start
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"expected a whole Parquet file, found one that cannot be read: {printable(str(error).splitlines()[0])}"
        ) from None


def _holds_text(kind: Any, pa: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _cuts(batch: Any, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of parts of a batch that hold some *size* bytes each when dictionaries are written out."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    lengths = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        if kinds.is_dictionary(column.type):
            # Arrow takes an index for what it is worth, and would look where it points.
            which = pc.fill_null(column.indices, 0).to_numpy()
            if column.null_count < len(column) and not 0 <= which.min() <= which.max() < len(column.dictionary):
                raise InputError("expected a dictionary of all values, found an index beyond it")
            of_value = pc.fill_null(pc.binary_length(column.dictionary), 0).to_numpy().astype(np.int64)
            lengths += of_value[which] if len(of_value) else 0
        else:
            lengths += column.nbytes // max(1, batch.num_rows)
    part = np.cumsum(lengths) // max(1, size)
    ends = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), batch.num_rows]
    yield from pairwise(sorted(set(ends)))


def _checked(chunks: Sequence[ColumnChunk], wanted: Sequence[str], group: int) -> int:
    """Return the bytes, unpacked, of the wanted columns of a row group that is within the bounds."""
    total = 0
    for chunk in chunks:
        if chunk.column not in wanted:
            continue
        values, unpacked = chunk.values, chunk.unpacked
        if values > MAX_VALUES or unpacked > MAX_COLUMN_BYTES or min(values, unpacked) < 0:
            raise InputError(
                f"expected at most {MAX_VALUES:,} values and {MAX_COLUMN_BYTES:,} bytes of a column in a row group, "
                f"found {values:,} and {unpacked:,} in group {group}: write it with smaller row groups"
            )
        # A few bytes of run-length encoding stand for any number of values.
        total += max(unpacked, 4 * values)
    return total


def _lists(column: Any) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the values of a column of lists and where in them each list starts, with the end as the last entry.

    The values are the column's own, not all those of the columns that it was cut from.
    """
    starts = column.offsets.to_numpy().astype(np.int64)
    return column.values.slice(starts[0], starts[-1] - starts[0]), starts - starts[0]


def _values(column: Any) -> Sequence[object]:
    """Return a column's values for `detect.records`: strings, arrays of ids, or what Arrow makes of them."""
    import pyarrow.types as kinds

    kind = column.type
    if kinds.is_dictionary(kind):
        values = _values(column.dictionary)
        return [None if i is None else values[i] for i in column.indices.to_pylist()]
    if (kinds.is_list(kind) or kinds.is_large_list(kind)) and kinds.is_integer(kind.value_type):
        flat, offsets = _lists(column)
        if flat.null_count == 0:
            values = flat.to_numpy()
            null = column.is_null().to_numpy(zero_copy_only=False)
            return [
                None if missing else values[start:end]
                for start, end, missing in zip(offsets[:-1].tolist(), offsets[1:].tolist(), null.tolist(), strict=True)
            ]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(column[i]) for i in range(len(column))]


def _value(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return _NotText(error.start, error.object[error.start])


def _bytes(column: Any) -> Iterator[bytes | memoryview | None]:
    """Yield each value's bytes, or None where it is null."""
    import pyarrow as pa
    import pyarrow.types as kinds

    kind = column.type
    ids = None
    if (kinds.is_list(kind) or kinds.is_large_list(kind)) and column.null_count == 0:
        values_of_all, starts = _lists(column)
        ids = _small_integers(values_of_all)
    if ids is not None:
        data = ids.astype("<u4", copy=False).data.cast("B")
        for start, end in pairwise((4 * starts).tolist()):
            yield data[start:end]
    elif kinds.is_dictionary(kind):
        values = list(_bytes(column.dictionary))
        for i in column.indices.to_pylist():
            yield None if i is None else values[i]
    elif kinds.is_string(kind) or kinds.is_large_string(kind):
        for value in column.cast(pa.binary() if kinds.is_string(kind) else pa.large_binary()).to_pylist():
            yield value
    else:
        for value in _values(column):
            if value is None:
                yield None
            elif isinstance(value, np.ndarray):
                # One form whatever the width of the integers, so that a rewritten file has the same digests.
                small = value.dtype == np.uint32 or not value.size or 0 <= value.min() <= value.max() < 2**32
                yield value.astype("<u4" if small else "<i8").tobytes()
            else:
                yield repr(value).encode("utf-8", "surrogatepass")


def _small_integers(values: Any) -> npt.NDArray[np.uint32] | None:
    """Return an array of integers as uint32, if none of it is null or too large."""
    import pyarrow.types as kinds

    if not kinds.is_integer(values.type) or values.null_count:
        return None
    found = values.to_numpy()
    if found.dtype != np.uint32 and found.size and not 0 <= int(found.min()) <= int(found.max()) < 2**32:
        return None
    return np.asarray(found.astype(np.uint32, copy=False))
