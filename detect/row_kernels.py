"""The compiled kernels of `detect.tally_rows`: rows are grouped from positions, added up, and checked.

They call one another and nothing of another file, for the reason given in `watermark.kernels`. Nothing here hashes:
the windows' key-free hashes come from there. Rows stand in the order of (hash, window ids, token).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from watermark.kernels import inline, kernel

__all__ = ["add_up", "count_pairs", "disordered", "rank_rows", "rank_windows"]

Ids = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@inline
def _window_order(a, i, b, j, h):
    """-1, 0 or 1: the window a[i : i + h] is before, the same as or after b[j : j + h]."""
    for d in range(h):
        if a[i + d] != b[j + d]:
            return -1 if a[i + d] < b[j + d] else 1
    return 0


@kernel
def rank_windows(words: Words, shift: int, ids: Ids, h: int) -> tuple[Words, Ids]:
    """Rank the windows before positions, and name each position's pair by its window's rank and its token.

    Args:
        words: sorted; above the low *shift* bits the beginning of the window's hash, in them the position. Those of
            windows whose hashes begin alike are reordered in place.
        shift: bits of the position.
        ids: what they are positions of.
        h: ids of a window.

    Returns:
        rank << 32 | token of each position, (n,); and the windows by rank, (m, h): in the order of the beginnings of
        their hashes, and those that begin alike in any.
    """
    n = words.shape[0]
    mask = (np.uint64(1) << np.uint64(shift)) - np.uint64(1)
    names = np.empty(n, np.uint64)
    windows = np.empty((n, h), np.uint32)
    m = 0
    start = 0
    while start < n:
        end = start + 1
        beginning = words[start] >> np.uint64(shift)
        one = np.int64(words[start] & mask)
        rank = np.uint64(m) << np.uint64(32)
        names[start] = rank | np.uint64(ids[one])
        for d in range(h):
            windows[m, d] = ids[one - h + d]
        m += 1
        while end < n and words[end] >> np.uint64(shift) == beginning:
            other = np.int64(words[end] & mask)
            if _window_order(ids, other - h, ids, one - h, h) != 0:
                break
            names[end] = rank | np.uint64(ids[other])
            end += 1
        if end < n and words[end] >> np.uint64(shift) == beginning:
            # Another window whose hash begins alike, which is rare: those of this one are brought to the front.
            i = end + 1
            while i < n and words[i] >> np.uint64(shift) == beginning:
                other = np.int64(words[i] & mask)
                if _window_order(ids, other - h, ids, one - h, h) == 0:
                    words[i] = words[end]
                    words[end] = (beginning << np.uint64(shift)) | np.uint64(other)
                    names[end] = rank | np.uint64(ids[other])
                    end += 1
                i += 1
        start = end
    return names, windows[:m].copy()


@kernel
def count_pairs(names: Words, m: int) -> tuple[Counts, Ids, Counts]:
    """Return where each of *m* windows' pairs start, their tokens, and how often each was said.

    *names* are sorted: rank << 32 | token.
    """
    n = names.shape[0]
    starts = np.empty(m + 1, np.int64)
    tokens = np.empty(n, np.uint32)
    said = np.empty(n, np.int64)
    pairs = 0
    windows = 0
    start = 0
    while start < n:
        name = names[start]
        end = start + 1
        while end < n and names[end] == name:
            end += 1
        if np.int64(name >> np.uint64(32)) == windows:
            starts[windows] = pairs
            windows += 1
        tokens[pairs] = np.uint32(name & np.uint64(0xFFFFFFFF))
        said[pairs] = end - start
        pairs += 1
        start = end
    starts[windows] = pairs
    return starts, tokens[:pairs].copy(), said[:pairs].copy()


@kernel
def rank_rows(
    words: Words,
    shift: int,
    hashes: Words,
    windows: Ids,
    starts: Counts,
    tokens: Ids,
    information: Counts,
    token_bits: int,
    row_bits: int,
) -> tuple[Words, Words, Ids, Counts]:
    """Rank windows, of which each may stand there several times, and name each row's pair by rank, token and row.

    Args:
        words: sorted; above the low *shift* bits the beginning of a window's hash, in them its place in what follows.
            Those of windows whose hashes begin alike are reordered in place.
        shift: bits of the place.
        hashes: (w,).
        windows: (w, h).
        starts: where each window's pairs start, (w + 1,).
        tokens: (n,).
        information: (w,), or empty.
        token_bits: bits of a token.
        row_bits: bits of a place in *tokens*.

    Returns:
        (rank << token_bits | token) << row_bits | row of each row, (n,); and by rank the hashes, the windows and
        the sums of the information: in the order of the beginnings of their hashes, and those that begin alike in any.
    """
    w, h = windows.shape
    flat = windows.reshape(w * h)
    mask = (np.uint64(1) << np.uint64(shift)) - np.uint64(1)
    names = np.empty(tokens.shape[0], np.uint64)
    into_hashes = np.empty(w, np.uint64)
    into_windows = np.empty((w, h), np.uint32)
    into_information = np.zeros(information.shape[0], np.int64)
    referred = information.shape[0] > 0
    m = 0
    n = 0
    start = 0
    while start < w:
        beginning = words[start] >> np.uint64(shift)
        one = np.int64(words[start] & mask)
        into_hashes[m] = hashes[one]
        for d in range(h):
            into_windows[m, d] = windows[one, d]
        end = start
        i = start
        while i < w and words[i] >> np.uint64(shift) == beginning:
            other = np.int64(words[i] & mask)
            if i == start or _window_order(flat, other * h, flat, one * h, h) == 0:
                # That of another window whose hash begins alike, which is rare, goes back.
                words[i] = words[end]
                end += 1
                if referred:
                    into_information[m] += information[other]
                for row in range(starts[other], starts[other + 1]):
                    name = (np.uint64(m) << np.uint64(token_bits)) | np.uint64(tokens[row])
                    names[n] = (name << np.uint64(row_bits)) | np.uint64(row)
                    n += 1
            i += 1
        m += 1
        start = end
    return names, into_hashes[:m], into_windows[:m], into_information[:m] if referred else into_information


@kernel
def add_up(
    names: Words,
    token_bits: int,
    row_bits: int,
    said: Counts,
    expected: Counts,
    starts: Counts,
    tokens: Ids,
    into_said: Counts,
    into_expected: Counts,
    m: int,
    n: int,
) -> int:
    """Add up the rows of pairs.

    Args:
        names: sorted; (rank << token_bits | token) << row_bits | row.
        token_bits: see above.
        row_bits: see above.
        said: by row.
        expected: by row, (n, c), or empty.
        starts: takes up where each window's pairs start, from window *m* on; and the other three the pairs, from pair
            *n* on.
        tokens: see above.
        into_said: see above.
        into_expected: see above.
        m: windows that are there.
        n: pairs that are there.

    Returns:
        n after it.
    """
    row_mask = (np.uint64(1) << np.uint64(row_bits)) - np.uint64(1)
    token_mask = (np.uint64(1) << np.uint64(token_bits)) - np.uint64(1)
    referred = expected.shape[0] > 0
    columns = expected.shape[1]
    windows = 0
    before = np.uint64(0)
    for i in range(names.shape[0]):
        name = names[i] >> np.uint64(row_bits)
        row = np.int64(names[i] & row_mask)
        if i > 0 and name == before:
            into_said[n - 1] += said[row]
            if referred:
                for c in range(columns):
                    into_expected[n - 1, c] += expected[row, c]
        else:
            if np.int64(name >> np.uint64(token_bits)) == windows:
                starts[m + windows] = n
                windows += 1
            tokens[n] = np.uint32(name & token_mask)
            into_said[n] = said[row]
            if referred:
                for c in range(columns):
                    into_expected[n, c] = expected[row, c]
            n += 1
        before = name
    starts[m + windows] = n
    return n


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
