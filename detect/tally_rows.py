"""A tally's rows in their one order, and the sample of them that is kept.

The order is that of (hash, window ids, token), the hash being the key-free SipHash-2-4 of the window, whose low 6 bits
are its lane. At *level* L the windows are kept whose hash lies below 2^(64-L), with all of their pairs: whole windows,
chosen without a key, so that every test of what is left is exact (DESIGN 5). In this order they are the first ones, so
that halving the sample is cutting off its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heapreplace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from detect import row_kernels
from detect.tally import Tally
from watermark import kernels

__all__ = ["MAX_LEVEL", "TallyRows", "last_hash"]

Ids = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Columns: TypeAlias = tuple[Words, Ids, Counts, Ids, Counts, Counts, Counts]

#: The sample's threshold is on the 58 bits of the hash above the lane.
MAX_LEVEL = 58

_LANE = np.uint64(63)

_NONE = np.zeros(0, dtype=np.int64)
_NO_MASS = np.zeros((0, 2), dtype=np.int64)


def last_hash(level: int) -> np.uint64:
    """Return the largest hash that is kept at *level*.

    >>> hex(last_hash(4))
    '0xfffffffffffffff'
    """
    return np.uint64(2 ** (64 - level) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyRows:
    """Distinct windows (m of them, h ids wide) with their distinct pairs (n), in order, each once.

    Counts are integers and add up: `total` is the same whatever came first.
    """

    level: int
    """How often the sample was halved; 0: nothing was left out."""
    hashes: Words
    """(m,)."""
    windows: Ids
    """(m, h)."""
    starts: Counts
    """Where each window's pairs start, with n as the last entry, (m + 1,)."""
    tokens: Ids
    """(n,)."""
    said: Counts
    """How often each pair was said, (n,)."""
    expected: Counts
    """Reference mass in units of 2^-32, and what of it is `detect.reference_check.first_mass`, (n, 2); (0, 2) without a
    reference."""
    information: Counts
    """For each window the sum of 1 - sum p_ref^2 in units of 2^-32, (m,), or empty without a reference."""

    @property
    def pairs(self) -> int:
        """Distinct pairs."""
        return len(self.tokens)

    @classmethod
    def none(cls, *, window: int) -> TallyRows:
        """Return no rows."""
        return cls(
            level=0,
            hashes=np.zeros(0, dtype=np.uint64),
            windows=np.zeros((0, window), dtype=np.uint32),
            starts=np.zeros(1, dtype=np.int64),
            tokens=np.zeros(0, dtype=np.uint32),
            said=_NONE,
            expected=_NO_MASS,
            information=_NONE,
        )

    @classmethod
    def of_said(cls, level: int, windows: Ids, starts: Counts, tokens: Ids, said: Counts) -> TallyRows:
        """Return rows without a reference; the arguments are the fields."""
        return cls(
            level=level,
            hashes=kernels.window_hashes(windows),
            windows=windows,
            starts=starts,
            tokens=tokens,
            said=said,
            expected=_NO_MASS,
            information=_NONE,
        )

    @classmethod
    def of_tally(cls, tally: Tally, *, first_mass: Counts | None = None) -> TallyRows:
        """Return the rows of a tally in memory.

        Args:
            tally: with or without a reference.
            first_mass: of a tally with one (`detect.reference_check.first_mass`).
        """
        hashes = kernels.window_hashes(tally.windows)
        window_order = np.lexsort((*tally.windows.T[::-1], hashes))
        rank = np.empty(len(window_order), dtype=np.int64)
        rank[window_order] = np.arange(len(window_order))
        order = np.lexsort((tally.tokens, rank[tally.pair_window]))
        sizes = np.bincount(rank[tally.pair_window], minlength=len(rank))
        return cls(
            level=0,
            hashes=hashes[window_order],
            windows=np.ascontiguousarray(tally.windows[window_order]),
            starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            tokens=tally.tokens[order],
            said=tally.said[order],
            expected=_NO_MASS if first_mass is None else np.column_stack([tally.expected, first_mass])[order],
            information=_NONE if first_mass is None else tally.information[window_order],
        )

    def cut(self, level: int) -> TallyRows:
        """Return what is kept at *level*, which is at least this one's."""
        if level <= self.level:
            return self
        m = int(np.searchsorted(self.hashes, last_hash(level), side="right"))
        n = int(self.starts[m])
        return replace(
            self,
            level=level,
            hashes=self.hashes[:m],
            windows=self.windows[:m],
            starts=self.starts[: m + 1],
            tokens=self.tokens[:n],
            said=self.said[:n],
            expected=self.expected[:n],
            information=self.information[:m],
        )

    @classmethod
    def total(cls, parts: Sequence[TallyRows]) -> TallyRows:
        """Return the sum of one or more, at the highest of their levels."""
        level = max(part.level for part in parts)
        kept = [part.cut(level) for part in parts]
        # The two smallest first, so that few rows are gone through often.
        heap = [(part.pairs, number, part) for number, part in enumerate(kept) if part.pairs] or [(0, 0, kept[0])]
        heapify(heap)
        while len(heap) > 1:
            _, _, one = heappop(heap)
            _, number, other = heap[0]
            both = cls._of_columns(level, row_kernels.merge(*one.columns(), *other.columns()))
            heapreplace(heap, (both.pairs, number, both))
        return heap[0][2]

    @classmethod
    def joined(cls, parts: Sequence[TallyRows], *, level: int) -> TallyRows:
        """Return the rows of one or more parts, each of which is wholly before the next, at *level*."""
        hashes, windows, starts, tokens, said, expected, information = (
            list(column) for column in zip(*(part.columns() for part in parts), strict=True)
        )
        pairs = np.cumsum([0, *(part.pairs for part in parts)])
        starts = [*(start[:-1] + before for start, before in zip(starts, pairs, strict=False)), pairs[-1:]]
        return cls(
            level=level,
            hashes=np.concatenate(hashes),
            windows=np.concatenate(windows),
            starts=np.concatenate(starts),
            tokens=np.concatenate(tokens),
            said=np.concatenate(said),
            expected=np.concatenate(expected),
            information=np.concatenate(information),
        )

    def between(self, lasts: Words) -> list[TallyRows]:
        """Return the rows of windows whose hashes are at most lasts[0], of those above up to lasts[1], and so on."""
        ends = [0, *np.searchsorted(self.hashes, lasts, side="right").tolist()]
        return [self._between(start, end) for start, end in pairwise(ends)]

    @classmethod
    def _of_columns(cls, level: int, columns: Columns) -> TallyRows:
        """Return rows with the arrays in the order of the fields."""
        hashes, windows, starts, tokens, said, expected, information = columns
        return cls(
            level=level,
            hashes=hashes,
            windows=windows,
            starts=starts,
            tokens=tokens,
            said=said,
            expected=expected,
            information=information,
        )

    def _between(self, start: int, end: int) -> TallyRows:
        """Return the rows of some windows."""
        first, last = int(self.starts[start]), int(self.starts[end])
        return TallyRows(
            level=self.level,
            hashes=self.hashes[start:end],
            windows=self.windows[start:end],
            starts=self.starts[start : end + 1] - first,
            tokens=self.tokens[first:last],
            said=self.said[first:last],
            expected=self.expected[first:last],
            information=self.information[start:end],
        )

    def columns(self) -> Columns:
        """Return the arrays, in the order of the fields."""
        return (
            self.hashes,
            self.windows,
            self.starts,
            self.tokens,
            self.said,
            self.expected,
            self.information,
        )

    def to_tally(self, *, left_out_prompt: int) -> Tally:
        """Return them as the tests want them; the text that they are of is not in it."""
        m, n = len(self.hashes), self.pairs
        return Tally(
            windows=self.windows,
            lanes=(self.hashes & _LANE).astype(np.uint8),
            information=self.information if len(self.information) else np.zeros(m, dtype=np.int64),
            pair_window=np.repeat(np.arange(m, dtype=np.int64), np.diff(self.starts)),
            tokens=self.tokens,
            said=self.said,
            expected=self.expected[:, 0].copy() if len(self.expected) else np.zeros(n, dtype=np.int64),
            position_pair=np.zeros(0, dtype=np.int32),
            left_out_prompt=left_out_prompt,
            referenced=len(self.expected) > 0,
            share=math.ldexp(1.0, -self.level),
        )
