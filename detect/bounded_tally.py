"""The distinct-pair evidence of any amount of text in bounded memory (DESIGN 5).

Exact up to a capacity of pairs; beyond it whole windows are sampled without a key, and the share kept halves as needed.
What is kept depends on the set of texts alone: not on their order, on how they were cut into parts, nor on who tallied
which. For the level is the lowest at which the distinct pairs fit, and the number of them only grows as texts come in:
a level that was needed on the way is needed at the end.
"""

from __future__ import annotations

from detect.tally_rows import TallyRows
from watermark.errors import UsageError

__all__ = ["CAPACITY", "BoundedTally"]

#: Pairs kept unless told otherwise: some 400 MB, and twice that while rows are merged.
CAPACITY = 2**24

#: Rows wait to be added to the others until they are a share of the capacity.
_WAITING = 8

#: Parts of like size that are added up together.
_TOGETHER = 8

#: How often the sum of all parts was added up, as it were: no other part is.
_ALL = 64


class BoundedTally:
    """Add up rows, and keep at most *capacity* pairs.

    Parts of like size are added up first, so that a row is copied some log8(parts) times, as in a log-structured
    merge tree.

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
        self._window = window
        self._level = 0
        self._parts: list[tuple[int, TallyRows]] = []
        """What is waiting, the most often added up first; and how often that was."""

    @property
    def level(self) -> int:
        """How often the sample was halved so far. Rows of windows beyond it need not be added."""
        return self._level

    def add(self, rows: TallyRows) -> None:
        """Add the rows of some texts."""
        self._level = max(self._level, rows.level)
        rows = rows.cut(self._level)
        if not rows.pairs:
            return
        times = 0
        self._parts.append((times, rows))
        while [each for each, _ in self._parts[-_TOGETHER:]] == [times] * _TOGETHER:
            times += 1
            self._parts[-_TOGETHER:] = [(times, TallyRows.total([part for _, part in self._parts[-_TOGETHER:]]))]
        if sum(part.pairs for _, part in self._parts) > self.capacity + self.capacity // _WAITING:
            self.rows()

    def rows(self) -> TallyRows:
        """Return what is kept of all that was added."""
        rows = TallyRows.none(window=self._window)
        if self._parts:
            rows = TallyRows.total([part for _, part in self._parts])
        rows = rows.cut(self._level).within(self.capacity)
        self._level = rows.level
        self._parts = [(_ALL, rows)] if rows.pairs else []
        return rows
