"""A tally's rows in their one order, and the sample of them that is kept.

The order is that of (hash, window ids, token), the hash being the key-free SipHash-2-4 of the window, whose low 6 bits
are its lane. At *level* L the windows are kept whose hash lies below 2^(64-L), with all of their pairs: whole windows,
chosen without a key, so that every test of what is left is exact (DESIGN 5). In this order they are the first ones, so
that halving the sample is cutting off its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from detect import row_kernels
from detect.tally import Positions, Tally
from watermark import kernels

__all__ = ["MAX_LEVEL", "TallyRows", "last_hash"]

Ids = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

#: The sample's threshold is on the 58 bits of the hash above the lane.
MAX_LEVEL = 58

_LANE = np.uint64(63)
_INDEX = np.uint64(0xFFFFFFFF)

#: Positions that are grouped together: some 2 MB.
_PART = 2**15
_NONE = np.zeros(0, dtype=np.int64)


def last_hash(level: int) -> np.uint64:
    """Return the largest hash that is kept at *level*.

    >>> hex(last_hash(4))
    '0xfffffffffffffff'
    """
    return np.uint64(2 ** (64 - level) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyRows:
    """Distinct windows (m of them, h ids wide) with their distinct pairs (n), in order, each once.

    Counts are integers and add up: `merged` is associative and commutative, whatever came first.
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
    """Reference mass in units of 2^-32, (n,), or empty without a reference."""
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
            expected=_NONE,
            information=_NONE,
        )

    @classmethod
    def of_positions(cls, found: Positions, *, window: int, level: int) -> TallyRows:
        """Return the rows of positions that are in, of the windows kept at *level*."""
        hashes, positions = kernels.sampled(found.ids, found.valid, window, last_hash(level))
        # Dealt by the first bits of the hash into parts that fit the cache, which takes a third of the time.
        bits = min(8, (len(hashes) // _PART).bit_length())
        part = ((hashes << np.uint64(level)) >> np.uint64(56)).astype(np.uint8) >> np.uint8(8 - bits)
        dealt = np.argsort(part, kind="stable")
        hashes, positions = hashes[dealt], positions[dealt]
        ends = np.cumsum(np.bincount(part, minlength=1 << bits))
        parts = [
            _grouped(hashes[start:end], positions[start:end], found.ids, window, level)
            for start, end in pairwise([0, *ends.tolist()])
        ]
        sizes = np.concatenate([np.diff(starts) for _, _, starts, _, _ in parts])
        firsts = np.concatenate([firsts for _, firsts, _, _, _ in parts])
        windows = found.ids[firsts[:, None] + np.arange(-window, 0)[None, :]]
        return cls(
            level=level,
            hashes=np.concatenate([hashes for hashes, _, _, _, _ in parts]),
            windows=np.ascontiguousarray(windows),
            starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            tokens=np.concatenate([tokens for _, _, _, tokens, _ in parts]),
            said=np.concatenate([said for _, _, _, _, said in parts]),
            expected=_NONE,
            information=_NONE,
        )

    @classmethod
    def of_tally(cls, tally: Tally, *, reference: bool) -> TallyRows:
        """Return the rows of a tally in memory, with its reference mass if *reference*."""
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
            expected=tally.expected[order] if reference else _NONE,
            information=tally.information[window_order] if reference else _NONE,
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

    def merged(self, other: TallyRows) -> TallyRows:
        """Return the sum of both, at the higher of their levels."""
        level = max(self.level, other.level)
        a, b = self.cut(level), other.cut(level)
        if not a.pairs or not b.pairs:
            return a if a.pairs else b
        hashes, windows, starts, tokens, said, expected, information = row_kernels.merge(*a.columns(), *b.columns())
        return TallyRows(
            level=level,
            hashes=hashes,
            windows=windows,
            starts=starts,
            tokens=tokens,
            said=said,
            expected=expected,
            information=information,
        )

    def columns(self) -> tuple[Words, Ids, Counts, Ids, Counts, Counts, Counts]:
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
            expected=self.expected if len(self.expected) else np.zeros(n, dtype=np.int64),
            position_pair=np.zeros(0, dtype=np.int32),
            left_out_prompt=left_out_prompt,
        )


def _grouped(
    hashes: Words, positions: npt.NDArray[np.int32], ids: Ids, window: int, level: int
) -> tuple[Words, Counts, Counts, Ids, Counts]:
    """Return the windows' hashes and first positions, and their pairs' starts, tokens and counts, in order."""
    index = np.arange(len(hashes), dtype=np.uint64)
    # A plain sort of one word each, what to sort by above and index below, is five times faster than an indirect one.
    # By token first, then by hash: so the tokens of each window are in order.
    by_token = (np.sort((ids[positions].astype(np.uint64) << np.uint64(32)) | index) & _INDEX).astype(np.int64)
    hashes, positions = hashes[by_token], positions[by_token]
    shift = max(1, len(hashes).bit_length())
    beginnings = (hashes << np.uint64(level)) >> np.uint64(shift)
    packed = np.sort((beginnings << np.uint64(shift)) | index)
    which, firsts, starts, tokens, said = row_kernels.group(packed, shift, hashes, positions, ids, window)
    return hashes[which], firsts, starts, tokens, said
