"""The compiled kernels of `detect.tally_rows`: rows are grouped from positions, merged, and checked.

They call one another and nothing of another file, for the reason given in `watermark.kernels`. Nothing here hashes:
the windows' key-free hashes come from there. Rows stand in the order of (hash, window ids, token).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from watermark.kernels import inline, kernel

__all__ = ["disordered", "group", "merge"]

Ids = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Rows: TypeAlias = tuple[Words, Ids, Counts, Ids, Counts, Counts, Counts]


@inline
def _window_order(a, i, b, j, h):
    """-1, 0 or 1: the window a[i : i + h] is before, the same as or after b[j : j + h]."""
    for d in range(h):
        if a[i + d] != b[j + d]:
            return -1 if a[i + d] < b[j + d] else 1
    return 0


@kernel
def group(
    packed: Words, shift: int, hashes: Words, positions: npt.NDArray[np.int32], ids: Ids, h: int
) -> tuple[Counts, Counts, Counts, Ids, Counts]:
    """Group positions into distinct windows and pairs.

    Args:
        packed: sorted; above the low *shift* bits the beginning of a window's hash, in them an index, which increases
            with the token at the position.
        shift: bits of the index.
        hashes: of the window before each position, by that index.
        positions: by that index.
        ids: what they are positions of.
        h: ids of a window.

    Returns:
        An index of each distinct window's occurrence; its position; where its pairs start, with their number at the
        end; the pairs' tokens; how often each was said.
    """
    n = packed.shape[0]
    mask = (np.uint64(1) << np.uint64(shift)) - np.uint64(1)
    which = np.empty(n, np.int64)
    firsts = np.empty(n, np.int64)
    starts = np.empty(n + 1, np.int64)
    tokens = np.empty(n, np.uint32)
    said = np.empty(n, np.int64)
    order = np.empty(n, np.int64)
    for i in range(n):
        order[i] = np.int64(packed[i] & mask)
    windows = 0
    pairs = 0
    start = 0
    while start < n:
        end = start + 1
        beginning = packed[start] >> np.uint64(shift)
        one = order[start]
        same = True
        while end < n and packed[end] >> np.uint64(shift) == beginning:
            other = order[end]
            if hashes[other] != hashes[one] or (
                _window_order(ids, positions[other] - h, ids, positions[one] - h, h) != 0
            ):
                same = False
            end += 1
        if not same:
            # Two windows whose hashes begin alike: rare, so that a slow sort of their positions by window will do.
            for i in range(start + 1, end):
                moved = order[i]
                j = i
                while j > start:
                    before = order[j - 1]
                    if hashes[before] < hashes[moved] or (
                        hashes[before] == hashes[moved]
                        and _window_order(ids, positions[before] - h, ids, positions[moved] - h, h) <= 0
                    ):
                        break
                    order[j] = before
                    j -= 1
                order[j] = moved
        while start < end:
            one = order[start]
            stop = end
            if not same:
                stop = start + 1
                while stop < end and (
                    hashes[order[stop]] == hashes[one]
                    and _window_order(ids, positions[order[stop]] - h, ids, positions[one] - h, h) == 0
                ):
                    stop += 1
            which[windows] = one
            firsts[windows] = positions[one]
            starts[windows] = pairs
            windows += 1
            count = stop - start
            there = tokens[pairs : pairs + count]
            for i in range(count):
                there[i] = ids[positions[order[start + i]]]
            # The distinct ones are moved to the front, in place.
            i = 0
            while i < count:
                token = there[i]
                j = i + 1
                while j < count and there[j] == token:
                    j += 1
                tokens[pairs] = token
                said[pairs] = j - i
                pairs += 1
                i = j
            start = stop
    starts[windows] = pairs
    return (
        which[:windows].copy(),
        firsts[:windows].copy(),
        starts[: windows + 1].copy(),
        tokens[:pairs].copy(),
        said[:pairs].copy(),
    )


@kernel
def merge(
    a_hashes: Words,
    a_windows: Ids,
    a_starts: Counts,
    a_tokens: Ids,
    a_said: Counts,
    a_expected: Counts,
    a_information: Counts,
    b_hashes: Words,
    b_windows: Ids,
    b_starts: Counts,
    b_tokens: Ids,
    b_said: Counts,
    b_expected: Counts,
    b_information: Counts,
) -> Rows:
    """Add up two sets of rows; `expected` and `information` of both are as long as the others, or empty."""
    h = a_windows.shape[1]
    most_windows = a_hashes.shape[0] + b_hashes.shape[0]
    most_pairs = a_tokens.shape[0] + b_tokens.shape[0]
    referred = a_expected.shape[0] + b_expected.shape[0] > 0
    # Pages that are never written to take no memory.
    hashes = np.empty(most_windows, np.uint64)
    windows = np.empty((most_windows, h), np.uint32)
    starts = np.empty(most_windows + 1, np.int64)
    tokens = np.empty(most_pairs, np.uint32)
    said = np.empty(most_pairs, np.int64)
    expected = np.empty(most_pairs if referred else 0, np.int64)
    information = np.empty(most_windows if referred else 0, np.int64)
    a_flat = a_windows.reshape(a_windows.shape[0] * h)
    b_flat = b_windows.reshape(b_windows.shape[0] * h)
    m = 0
    n = 0
    i = 0
    j = 0
    while i < a_hashes.shape[0] or j < b_hashes.shape[0]:
        if i == a_hashes.shape[0]:
            order = 1
        elif j == b_hashes.shape[0]:
            order = -1
        elif a_hashes[i] != b_hashes[j]:
            order = -1 if a_hashes[i] < b_hashes[j] else 1
        else:
            order = _window_order(a_flat, i * h, b_flat, j * h, h)
        starts[m] = n
        p = 0
        p_end = 0
        q = 0
        q_end = 0
        if order <= 0:
            hashes[m] = a_hashes[i]
            for d in range(h):
                windows[m, d] = a_windows[i, d]
            p = a_starts[i]
            p_end = a_starts[i + 1]
            if referred:
                information[m] = a_information[i]
        if order >= 0:
            hashes[m] = b_hashes[j]
            for d in range(h):
                windows[m, d] = b_windows[j, d]
            q = b_starts[j]
            q_end = b_starts[j + 1]
            if referred:
                information[m] = b_information[j] + (information[m] if order == 0 else 0)
        while p < p_end or q < q_end:
            from_a = p < p_end and (q == q_end or a_tokens[p] <= b_tokens[q])
            from_b = q < q_end and (p == p_end or b_tokens[q] <= a_tokens[p])
            tokens[n] = a_tokens[p] if from_a else b_tokens[q]
            said[n] = (a_said[p] if from_a else 0) + (b_said[q] if from_b else 0)
            if referred:
                expected[n] = (a_expected[p] if from_a else 0) + (b_expected[q] if from_b else 0)
            p += from_a
            q += from_b
            n += 1
        i += order <= 0
        j += order >= 0
        m += 1
    starts[m] = n
    return (
        hashes[:m],
        windows[:m],
        starts[: m + 1],
        tokens[:n],
        said[:n],
        expected[:n],
        information[:m],
    )


@kernel
def disordered(hashes: Words, windows: Ids, starts: Counts, tokens: Ids, said: Counts) -> int:
    """Return the first window whose row is out of order, stands twice, or has no or wrong pairs; -1 if there is none.

    A pair that stood twice would be counted twice, and the tests would not be exact.
    """
    m, h = windows.shape
    flat = windows.reshape(m * h)
    for i in range(m):
        if i > 0:
            if hashes[i] < hashes[i - 1]:
                return i
            if hashes[i] == hashes[i - 1] and _window_order(flat, (i - 1) * h, flat, i * h, h) >= 0:
                return i
        if starts[i] >= starts[i + 1]:
            return i
        for p in range(starts[i], starts[i + 1]):
            if said[p] < 0 or (p > starts[i] and tokens[p] <= tokens[p - 1]):
                return i
    return -1
