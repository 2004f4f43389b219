"""The distinct-pair evidence of any amount of text in bounded memory (DESIGN 5).

Exact up to a capacity of pairs; beyond it whole windows are sampled without a key, and the share kept halves as needed.
What is kept depends on the set of texts alone: not on their order, on how they were cut into parts, nor on who tallied
which. For the level is the lowest at which the distinct pairs fit, and the number of them only grows as texts come in:
a level that was needed on the way is needed at the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detect.occurrences import Grouping, Occurrences
from detect.tally_rows import MAX_LEVEL, TallyRows, last_hash
from watermark.errors import UsageError

__all__ = ["CAPACITY", "BoundedTally"]

#: Pairs kept unless told otherwise: some 400 MB, and twice that at the end.
CAPACITY = 2**24

#: What is added waits until it is a share of what is kept, for each time all of that is gone through; and until it is
#: the same share of the capacity, within bounds. The largest takes some 320 MB at window 2.
_SHARE = 2
_MOST = 2**23
_LEAST = 2**20

#: Pairs of a range, about: what is done with one fits the cache.
_RANGE = 2**17


class BoundedTally:
    """Add up rows, and keep at most *capacity* pairs.

    What is kept lies in equal ranges of the windows' hashes, a power of two of them, so that a range is added up by
    itself, and halving the sample is dropping the upper half.

    Args:
        window: ids before each token.
        capacity: distinct pairs that are kept at most.

    Raises:
        UsageError: *capacity* is not positive.
    """

    def __init__(self, *, window: int, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise UsageError(f"expected a capacity of 1 pair or more, got {capacity}")
        self.capacity = capacity
        self._level = 0
        self._grouping = Grouping(window=window)
        self._ranges = [TallyRows.none(window=window)]
        self._occurrences: list[Occurrences] = []
        self._rows: list[TallyRows] = []
        self._waiting = 0
        """How many pairs the two hold."""

    @property
    def level(self) -> int:
        """How often the sample was halved so far. Rows of windows beyond it need not be added."""
        return self._level

    def add(self, part: TallyRows | Occurrences) -> None:
        """Add what was said in some texts."""
        self._rise(part.level)
        if isinstance(part, Occurrences):
            self._occurrences.append(part)
            self._waiting += len(part)
        else:
            self._rows.append(part)
            self._waiting += part.pairs
        kept = sum(rows.pairs for rows in self._ranges)
        if self._waiting > max(kept // _SHARE, min(self.capacity // _SHARE, _MOST), _LEAST):
            self._add_up()

    def rows(self) -> TallyRows:
        """Return what is kept of all that was added."""
        self._add_up()
        self._grouping.release()
        rows = TallyRows.joined(self._ranges, level=self._level)
        self._ranges = rows.between(self._lasts(len(self._ranges)))
        return rows

    def _add_up(self) -> None:
        """Add what is waiting to the rest, and halve the sample until it fits."""
        if self._waiting:
            pairs = self._waiting + sum(rows.pairs for rows in self._ranges)
            wanted = min(1 << (pairs // _RANGE).bit_length(), int(last_hash(self._level)) + 1)
            count = max(len(self._ranges), wanted)
            lasts = self._lasts(count)
            finer = np.split(lasts, len(self._ranges))
            self._ranges = [part for rows, ends in zip(self._ranges, finer, strict=True) for part in rows.between(ends)]
            waiting = [part.cut(self._level).between(lasts) for part in self._rows]
            said = self._grouping.grouped(self._occurrences, level=self._level, bits=count.bit_length() - 1)
            for i, rows in enumerate(said):
                self._ranges[i] = TallyRows.total([self._ranges[i], rows, *(parts[i] for parts in waiting)])
            self._rows, self._waiting = [], 0
        while self._level < MAX_LEVEL and sum(rows.pairs for rows in self._ranges) > self.capacity:
            self._rise(self._level + 1)

    def _rise(self, level: int) -> None:
        """Keep what is kept at *level*, too."""
        while self._level < level:
            self._level += 1
            if len(self._ranges) > 1:
                del self._ranges[len(self._ranges) // 2 :]
            else:
                self._ranges = [self._ranges[0].cut(self._level)]

    def _lasts(self, count: int) -> npt.NDArray[np.uint64]:
        """Return the largest hash of each of *count* equal ranges of those that are kept."""
        kept = int(last_hash(self._level)) + 1
        return np.array([kept * (i + 1) // count - 1 for i in range(count)], dtype=np.uint64)
