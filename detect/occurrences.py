"""Pairs as they were said, one an occurrence, and how they are grouped and counted.

Many portions' pairs are grouped at once: that takes a third of the time of grouping each and adding up the groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from detect import row_kernels
from detect.tally import Positions
from detect.tally_rows import TallyRows, last_hash
from watermark import kernels

__all__ = ["Grouping", "Occurrences"]

Ids = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrences:
    """Pairs in any order, each as often as it was said (k of them, windows of h ids)."""

    level: int
    """How often the sample of windows was halved; 0: nothing was left out."""
    hashes: Words
    """The key-free hash of each window, (k,)."""
    pairs: Ids
    """The ids of each window with the token as the last, (k, h + 1)."""

    def __len__(self) -> int:
        return len(self.hashes)

    def __reduce__(self) -> tuple[Any, ...]:
        # Hashes take less time to make again than to send to another process.
        return _of_pairs, (self.level, self.pairs)

    @classmethod
    def of_positions(cls, found: Positions, *, window: int, level: int) -> Occurrences:
        """Return what was said at the positions that are in, of the windows kept at *level*."""
        hashes, pairs = kernels.kept_pairs(found.ids, found.valid, window, last_hash(level))
        return cls(level=level, hashes=hashes, pairs=pairs)

    def rows(self) -> TallyRows:
        """Return the distinct pairs and how often each was said."""
        return next(Grouping(window=self.pairs.shape[1] - 1).grouped([self], level=self.level, bits=0))


def _of_pairs(level: int, pairs: Ids) -> Occurrences:
    hashes = kernels.window_hashes(np.ascontiguousarray(pairs[:, :-1]))
    return Occurrences(level=level, hashes=hashes, pairs=pairs)


class Grouping:
    """Count what was said.

    Pairs are dealt by their windows' hashes into ranges, and each range is sorted by itself, in the cache. The room
    that they are dealt into is kept: memory that is fresh from the system takes longer to get than to fill.

    Args:
        window: ids of a window.
    """

    def __init__(self, *, window: int) -> None:
        self._hashes = np.empty(0, dtype=np.uint64)
        self._pairs = np.empty((0, window + 1), dtype=np.uint32)

    def grouped(self, parts: list[Occurrences], *, level: int, bits: int) -> Iterator[TallyRows]:
        """Yield the distinct pairs of each of the 2^bits equal ranges of the hashes that are kept at *level*, in order.

        Args:
            parts: is emptied on the way, since memory would hold everything twice.
            level: at least that of each part.
            bits: see above.
        """
        last = last_hash(level)
        ends = np.zeros(2**bits + 1, dtype=np.int64)
        for part in parts:
            row_kernels.count_ranges(part.hashes, last, level, bits, ends[1:])
        np.cumsum(ends, out=ends)
        starts = ends.tolist()
        if len(self._hashes) < starts[-1]:
            # None of the old room is held while there is new, which is for the next parts, too: they are about as many.
            width, room = self._pairs.shape[1], starts[-1] + starts[-1] // 8
            self.release()
            self._hashes = np.empty(room, dtype=np.uint64)
            self._pairs = np.empty((room, width), dtype=np.uint32)
        largest = 0
        while parts:
            part = parts.pop()
            row_kernels.deal(part.hashes, part.pairs, last, level, bits, ends, self._hashes, self._pairs)
            largest = max(largest, int(part.pairs[:, -1].max(initial=0)))
        token_bits = max(1, largest.bit_length())
        for start, end in pairwise(starts):
            yield _counted(self._hashes[start:end], self._pairs[start:end], level, bits, token_bits)

    def release(self) -> None:
        """Give the room back."""
        self._hashes, self._pairs = self._hashes[:0].copy(), self._pairs[:0].copy()


def _counted(hashes: Words, pairs: Ids, level: int, bits: int, token_bits: int) -> TallyRows:
    """Return the distinct pairs of one range."""
    row_bits = max(1, len(pairs).bit_length())
    names = row_kernels.name_pairs(hashes, pairs, min(63, level + bits), token_bits, row_bits)
    # Sorts of plain words, with what is wanted in them, are five times faster than an indirect one.
    names.sort()
    disordered, windows, starts, tokens, said = row_kernels.group(names, token_bits, row_bits, hashes, pairs)
    if disordered:
        row_kernels.separate(names, token_bits, row_bits, hashes, pairs)
        _, windows, starts, tokens, said = row_kernels.group(names, token_bits, row_bits, hashes, pairs)
    return TallyRows.of_said(level, windows, starts, tokens, said)
