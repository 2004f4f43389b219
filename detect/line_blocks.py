"""Lines of a file by the block: the bytes as they were read, and where in them each line that is not blank stands.

A line is bytes that end in a line feed. Its record is made when somebody asks for it; for most lines of a corpus nobody
does (`detect.plain_lines`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from detect.strict_json import UTF16_MARKS

__all__ = ["BLANK", "OVERHEAD", "UTF8_MARK", "LineBlock", "cut_lines", "in_blocks", "is_blank"]

Places = npt.NDArray[np.int64]

BLANK = b" \t\r\n"
UTF8_MARK = b"\xef\xbb\xbf"

#: What a record of a line costs beside its bytes.
OVERHEAD = 100

_FEED, _BRACE = ord("\n"), ord("{")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineBlock:
    """Some lines in a row that are not blank."""

    data: bytes
    starts: Places
    """Where in `data` each line begins, (n,)."""
    ends: Places
    """Where each ends, its line feed included, (n,)."""
    numbers: Places
    """The number of each, from 1; 0: a problem of the file that is no line's."""
    problems: dict[int, str] = field(default_factory=dict)
    """What is wrong with a line that cannot be had, by its place in the block; it begins where it ends."""

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of_problem(cls, number: int, problem: str) -> LineBlock:
        """Return a block of one line that cannot be had."""
        none = np.zeros(1, dtype=np.int64)
        return cls(data=b"", starts=none, ends=none, numbers=none + number, problems={0: problem})

    @classmethod
    def joined(cls, parts: list[LineBlock]) -> LineBlock:
        """Return one or more blocks as one."""
        bases = np.cumsum([0, *(len(part.data) for part in parts)]).tolist()
        counts = np.cumsum([0, *map(len, parts)]).tolist()
        return cls(
            data=b"".join(part.data for part in parts),
            starts=np.concatenate([part.starts + base for part, base in zip(parts, bases, strict=False)]),
            ends=np.concatenate([part.ends + base for part, base in zip(parts, bases, strict=False)]),
            numbers=np.concatenate([part.numbers for part in parts]),
            problems={
                before + i: problem
                for part, before in zip(parts, counts, strict=False)
                for i, problem in part.problems.items()
            },
        )

    def part(self, first: int, last: int) -> LineBlock:
        """Return lines *first* to *last* - 1, at least one, with no bytes of others."""
        base, end = int(self.starts[first]), int(self.ends[last - 1])
        return LineBlock(
            data=self.data[base:end],
            starts=self.starts[first:last] - base,
            ends=self.ends[first:last] - base,
            numbers=self.numbers[first:last],
            problems={i - first: problem for i, problem in self.problems.items() if first <= i < last},
        )

    def contents(self) -> Iterator[bytes]:
        """Yield the bytes of each line."""
        data = self.data
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            yield data[start:end]

    def digests(self) -> list[bytes]:
        """Return the first 16 bytes of each line's SHA-256, without the blanks around it; of a problem none."""
        digests = [hashlib.sha256(line.strip(BLANK)).digest()[:16] for line in self.contents()]
        for i in self.problems:
            digests[i] = b""
        return digests


def is_blank(content: bytes) -> bool:
    """Tell whether a line or a text is nothing but blanks, after the byte order mark that it may begin with."""
    return not content.removeprefix(UTF8_MARK).strip(BLANK)


def cut_lines(stream: BinaryIO, number: int, first: bytes, *, longest: int, chunk: int) -> Iterator[LineBlock]:
    """Yield the lines that are not blank.

    Args:
        stream: buffered; what it raises comes after the lines before it.
        number: of the first line.
        first: what was read of the stream before.
        longest: bytes of a line; a longer one is a problem, and is not held.
        chunk: bytes to read at a time.
    """
    held: list[bytes] = []
    size = 0
    passing = False
    while piece := first or stream.read1(chunk):  # type: ignore[attr-defined]
        first = b""
        if passing:
            if not (after := piece.find(b"\n") + 1):
                continue
            piece, passing = piece[after:], False
            number += 1
        end = piece.rfind(b"\n") + 1
        if end:
            data = b"".join([*held, piece[:end]])
            if len(block := _block(data, number, longest)):
                yield block
            if _in_utf16(data, number):
                return
            number += data.count(b"\n")
            held, size, piece = [], 0, piece[end:]
        held.append(piece)
        size += len(piece)
        if size > longest:
            yield LineBlock.of_problem(number, _too_long(longest))
            if _in_utf16(b"".join(held), number):
                return
            held, size, passing = [], 0, True
    if size and len(block := _block(b"".join(held), number, longest)):
        yield block


def in_blocks(blocks: Iterable[LineBlock], size: int) -> Iterator[LineBlock]:
    """Yield the same lines in blocks of some *size* bytes: the same ones, however the lines were read."""
    held: list[LineBlock] = []
    held_bytes = 0
    for block in blocks:
        first, before = 0, 0
        costs = np.cumsum(block.ends - block.starts + OVERHEAD)
        while first < len(block):
            last = int(np.searchsorted(costs, size - held_bytes + before)) + 1
            if last > len(block):
                held.append(block.part(first, len(block)))
                held_bytes += int(costs[-1]) - before
                break
            yield LineBlock.joined([*held, block.part(first, last)])
            held, held_bytes = [], 0
            first, before = last, int(costs[last - 1])
    if held:
        yield LineBlock.joined(held)


def _block(data: bytes, number: int, longest: int) -> LineBlock:
    """Return the lines of *data*, from line *number* on."""
    read = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(read == _FEED) + 1
    if not len(ends) or ends[-1] < len(data):
        ends = np.append(ends, len(data))
    if _in_utf16(data, number):
        # Its line feeds are halves of characters: the file is one malformed record.
        ends = ends[:1]
    starts = np.concatenate([[0], ends[:-1]])
    kept = np.ones(len(ends), dtype=np.bool_)
    for i in np.flatnonzero(read[starts] != _BRACE).tolist():
        kept[i] = not is_blank(data[starts[i] : ends[i]])
    # Whether a line that is too long is blank is not asked.
    long = ends - starts > longest
    kept |= long
    ends = np.where(long, starts, ends)[kept]
    numbers = number + np.flatnonzero(kept)
    problems = {i: _too_long(longest) for i in np.flatnonzero(long[kept]).tolist()}
    return LineBlock(data=data, starts=starts[kept], ends=ends, numbers=numbers, problems=problems)


def _in_utf16(data: bytes, number: int) -> bool:
    return number == 1 and data.startswith(UTF16_MARKS)


def _too_long(longest: int) -> str:
    return f"expected a line of at most {longest:,} bytes, found a longer one"
