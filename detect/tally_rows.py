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
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from detect import row_kernels
from detect.tally import Positions, Tally
from watermark import kernels

__all__ = ["MAX_LEVEL", "TallyRows", "last_hash"]

Ids = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Columns: TypeAlias = tuple[Words, Ids, Counts, Ids, Counts, Counts, Counts]

#: The sample's threshold is on the 58 bits of the hash above the lane.
MAX_LEVEL = 58

_LANE = np.uint64(63)

#: Windows that are added up together: some 2 MB.
_RANGE = 2**16

_WORD = 64
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
    def of_positions(cls, found: Positions, *, window: int, level: int) -> TallyRows:
        """Return the rows of positions that are in, of the windows kept at *level*."""
        shift = max(1, len(found.ids).bit_length())
        words = kernels.packed_windows(found.ids, found.valid, window, last_hash(level), level, shift)
        # Sorts of plain words, with what is wanted in them, are five times faster than an indirect one.
        words.sort()
        names, windows = row_kernels.rank_windows(words, shift, found.ids, window)
        names.sort()
        starts, tokens, said = row_kernels.count_pairs(names, len(windows))
        return cls(
            level=level,
            hashes=kernels.window_hashes(windows),
            windows=windows,
            starts=starts,
            tokens=tokens,
            said=said,
            expected=_NO_MASS,
            information=_NONE,
        )._in_order()

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

    def within(self, capacity: int) -> TallyRows:
        """Return what is kept at the lowest level at which there are at most *capacity* pairs."""
        level = self.level
        while level < MAX_LEVEL and self.cut(level).pairs > capacity:
            level += 1
        return self.cut(level)

    @classmethod
    def total(cls, parts: Sequence[TallyRows]) -> TallyRows:
        """Return the sum of one or more, at the highest of their levels."""
        level = max(part.level for part in parts)
        kept = [part.cut(level) for part in parts]
        kept = [part for part in kept if part.pairs] or kept[:1]
        if len(kept) == 1:
            return kept[0]
        into = _Sum(kept, level)
        # Range by range of the hash, of which each fits the cache.
        ranges = max(1, sum(len(part.hashes) for part in kept) // _RANGE)
        lasts = np.array([((last + 1) << (64 - level)) // ranges - 1 for last in range(ranges)], dtype=np.uint64)
        cuts = [[0, *np.searchsorted(part.hashes, lasts, side="right").tolist()] for part in kept]
        for which in range(ranges):
            into.add([part._between(*cut[which : which + 2]) for part, cut in zip(kept, cuts, strict=True)])
        return into.rows()._in_order()

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

    def _in_order(self) -> TallyRows:
        """Return them with windows whose hashes begin alike in order, too; as a rule they are."""
        if bool((self.hashes[1:] > self.hashes[:-1]).all()):
            return self
        order = np.lexsort((*self.windows.T[::-1], self.hashes))
        sizes = np.diff(self.starts)[order]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        pairs = np.repeat(self.starts[:-1][order] - starts[:-1], sizes) + np.arange(self.pairs)
        return replace(
            self,
            hashes=self.hashes[order],
            windows=self.windows[order],
            starts=starts,
            tokens=self.tokens[pairs],
            said=self.said[pairs],
            expected=self.expected[pairs] if len(self.expected) else _NO_MASS,
            information=self.information[order] if len(self.information) else _NONE,
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


class _Sum:
    """The sum of rows, range by range of the hash.

    Args:
        parts: what is to be added up.
        level: of the sum.
    """

    def __init__(self, parts: Sequence[TallyRows], level: int) -> None:
        windows, pairs = sum(len(part.hashes) for part in parts), sum(part.pairs for part in parts)
        referred = any(len(part.expected) for part in parts)
        self._level = level
        self._m = self._n = 0
        # Pages that are never written to take no memory.
        self._hashes = np.empty(windows, dtype=np.uint64)
        self._windows = np.empty((windows, parts[0].windows.shape[1]), dtype=np.uint32)
        self._starts = np.zeros(windows + 1, dtype=np.int64)
        self._tokens = np.empty(pairs, dtype=np.uint32)
        self._said = np.empty(pairs, dtype=np.int64)
        self._expected = np.empty((pairs if referred else 0, 2), dtype=np.int64)
        self._information = np.empty(windows if referred else 0, dtype=np.int64)

    def add(self, parts: Sequence[TallyRows]) -> None:
        """Add up the rows of the next range."""
        hashes, windows, starts, tokens, said, expected, information = _joined(parts)
        if not len(tokens):
            return
        place_bits, row_bits = len(hashes).bit_length(), len(tokens).bit_length()
        token_bits = max(1, int(tokens.max()).bit_length())
        if place_bits + token_bits + row_bits > _WORD and hashes.min() != hashes.max():
            # No vocabulary is so large; what a stranger's ids are, nobody knows.
            middle = hashes.min() + (hashes.max() - hashes.min()) // np.uint64(2)
            ends = [int(np.searchsorted(part.hashes, middle, side="right")) for part in parts]
            self.add([part._between(0, end) for part, end in zip(parts, ends, strict=True)])
            self.add([part._between(end, len(part.hashes)) for part, end in zip(parts, ends, strict=True)])
            return
        heads = (hashes << np.uint64(self._level)) & ~np.uint64(2**place_bits - 1)
        words = heads | np.arange(len(hashes), dtype=np.uint64)
        words.sort()
        names, hashes, windows, information = row_kernels.rank_rows(
            words, place_bits, hashes, windows, starts, tokens, information, token_bits, row_bits
        )
        names.sort()
        m = self._m
        self._n = row_kernels.add_up(
            names,
            token_bits,
            row_bits,
            said,
            expected,
            self._starts,
            self._tokens,
            self._said,
            self._expected,
            m,
            self._n,
        )
        self._m += len(hashes)
        self._hashes[m : self._m] = hashes
        self._windows[m : self._m] = windows
        self._information[m : m + len(information)] = information

    def rows(self) -> TallyRows:
        """Return what was added up."""
        m, n = self._m, self._n
        return TallyRows(
            level=self._level,
            hashes=self._hashes[:m],
            windows=self._windows[:m],
            starts=self._starts[: m + 1],
            tokens=self._tokens[:n],
            said=self._said[:n],
            expected=self._expected[:n],
            information=self._information[:m],
        )


def _joined(parts: Sequence[TallyRows]) -> Columns:
    """Return the columns of all parts, one after the other."""
    hashes, windows, starts, tokens, said, expected, information = (
        list(column) for column in zip(*(part.columns() for part in parts), strict=True)
    )
    pairs = np.cumsum([0, *(part.pairs for part in parts)])
    joined = [start[:-1] + before for start, before in zip(starts, pairs.tolist(), strict=False)]
    return (
        np.concatenate(hashes),
        np.concatenate(windows),
        np.concatenate([*joined, pairs[-1:]]),
        np.concatenate(tokens),
        np.concatenate(said),
        np.concatenate(expected),
        np.concatenate(information),
    )
