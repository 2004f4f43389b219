"""A part of a JSON Lines file between two of its bytes, so that one large file is read by several (DESIGN 6).

A span begins after the first line feed at or after its first byte (the first span with the file) and ends with the
first line feed at or after the byte that follows it. So spans that follow upon one another hold each line once: a line
is of the span in which, or right after which, it begins. Whoever knows how many line feeds the spans before hold knows
the numbers of its lines.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from detect.inputs import Input, Portion, line_blocks, opened, stream_of
from watermark.errors import InputError, printable

__all__ = ["LineSpan", "opened_span", "spans_of"]

_CHUNK = 2**20


def spans_of(file: Input, length: int) -> list[tuple[int, int]]:
    """Return the spans of *length* bytes that a file may be read by; none if it is read as a whole.

    Read as a whole is what is not plain JSON Lines, and what is hardly longer than a span.

    Raises:
        InputError: it cannot be read.
    """
    size = file.size()
    if size is None or size < 2 * length or not file.of_lines:
        return []
    with opened(file, None) as source:
        if not source.is_plain:
            return []
    starts = range(0, size, length)
    return [(start, min(start + length, size)) for start in starts]


class LineSpan:
    """An open span: its records, once.

    Args:
        file: plain JSON Lines.
        stream: it, open.
        start: the first byte.
        end: the byte after the last.
        first_line: the number of the first line in the span.
    """

    def __init__(self, file: Input, stream: BinaryIO, start: int, end: int, *, first_line: int = 1) -> None:
        self._file = file
        self._first_line = first_line
        self._part = _Part(stream, start, end)

    def portions(self, size: int) -> Iterator[Portion]:
        """Yield the records in portions of some *size* bytes."""
        lines = io.BufferedReader(self._part, _CHUNK)
        # A mark of UTF-16 is the beginning of a file alone: such a file is read as a whole.
        for block in line_blocks(lines, self._first_line, size):
            yield Portion(self._file.name, block)

    @property
    def line_feeds(self) -> int:
        """Line feeds in what was read so far; once all is read, in the span."""
        return self._part.line_feeds


@contextmanager
def opened_span(file: Input, start: int, end: int, *, first_line: int = 1) -> Iterator[LineSpan]:
    """Open a span for the length of a `with`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with stream_of(file, None) as stream:
            yield LineSpan(file, stream, start, end, first_line=first_line)
    except OSError as error:
        raise InputError(f"cannot read {file.name}: {printable(error.strerror or error)}") from None


class _Part(io.RawIOBase):
    """The bytes of a span, and how many line feeds are in them."""

    def __init__(self, stream: BinaryIO, start: int, end: int) -> None:
        super().__init__()
        self._stream = stream
        self._end = end
        self._ended = False
        self.line_feeds = 0
        stream.seek(start)
        self._at = start
        self._ahead = b""
        # A line that begins after `end` is of the next span.
        while start and self._at < end:
            data = stream.read(min(_CHUNK, end - self._at))
            found = data.find(b"\n")
            self._at += len(data)
            if found >= 0:
                self._ahead = data[found + 1 :]
                self._at -= len(self._ahead)
                return
            if not data:
                break
        self._ended = start > 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._ended:
            return 0
        if self._ahead:
            data, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        else:
            data = self._stream.read(len(buffer))
        if self._at + len(data) > self._end:
            found = data.find(b"\n", max(0, self._end - self._at))
            if found >= 0:
                data, self._ended = data[: found + 1], True
        self._at += len(data)
        self.line_feeds += data.count(b"\n")
        buffer[: len(data)] = data
        return len(data)
