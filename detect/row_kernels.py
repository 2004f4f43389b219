"""The compiled kernels of `detect.tally_rows`: pairs are dealt by their windows' hashes, grouped, merged and checked.

They call one another and nothing of another file, for the reason given in `watermark.kernels`. Nothing here hashes:
the windows' key-free hashes come from there. Rows stand in the order of (hash, window ids, token).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from watermark.kernels import inline, kernel

__all__ = ["count_ranges", "deal", "disordered", "group", "merge", "name_pairs", "separate"]

Ids = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

_U = np.uint64
_ONE = np.uint64(1)


@inline
def _window_order(a, i, b, j, h):
    """-1, 0 or 1: the window a[i : i + h] is before, the same as or after b[j : j + h]."""
    for d in range(h):
        if a[i + d] != b[j + d]:
            return -1 if a[i + d] < b[j + d] else 1
    return 0


@inline
def _range_of(value, level, bits):
    """Which of the 2^bits equal ranges of the hashes below 2^(64 - level) a hash falls into."""
    return np.int64(((value << _U(level)) >> _ONE) >> _U(63 - bits))


@kernel
def count_ranges(hashes: Words, last: np.uint64, level: int, bits: int, sizes: Counts) -> None:
    """Add to *sizes*, (2^bits,), how many of the hashes up to *last* = 2^(64 - level) - 1 fall into each range."""
    for i in range(hashes.shape[0]):
        if hashes[i] <= _U(last):
            sizes[_range_of(hashes[i], level, bits)] += 1


@kernel
def deal(
    hashes: Words,
    pairs: Ids,
    last: np.uint64,
    level: int,
    bits: int,
    ends: Counts,
    into_hashes: Words,
    into_pairs: Ids,
) -> None:
    """Put pairs, one an occurrence, behind those that are in their range already.

    Args:
        hashes: of the windows, (k,).
        pairs: window ids and token, (k, h + 1).
        last: see `count_ranges`.
        level: see there.
        bits: see there.
        ends: where the next of each range goes, (2^bits,); moved on.
        into_hashes: takes up the hashes.
        into_pairs: takes up the pairs.
    """
    width = pairs.shape[1]
    for i in range(hashes.shape[0]):
        if hashes[i] <= _U(last):
            which = _range_of(hashes[i], level, bits)
            at = ends[which]
            ends[which] = at + 1
            into_hashes[at] = hashes[i]
            for d in range(width):
                into_pairs[at, d] = pairs[i, d]


@kernel
def name_pairs(hashes: Words, pairs: Ids, lead: int, token_bits: int, row_bits: int) -> Words:
    """Name each of the rows by the beginning of its window's hash below the first *lead* bits, its token and its place.

    Sorted, the names stand in the order of the rows, but for windows whose hashes begin alike (see `separate`).
    """
    h = pairs.shape[1] - 1
    names = np.empty(hashes.shape[0], np.uint64)
    tail = _U(token_bits + row_bits)
    for i in range(hashes.shape[0]):
        head = ((hashes[i] << _U(lead)) >> tail) << tail
        names[i] = head | (_U(pairs[i, h]) << _U(row_bits)) | _U(i)
    return names


@kernel
def separate(names: Words, token_bits: int, row_bits: int, hashes: Words, pairs: Ids) -> None:
    """Put sorted names of windows whose hashes begin alike into the order of (hash, window, token), in place.

    Two windows of one range do so rarely: each takes a pass over the names that begin alike.
    """
    n, width = pairs.shape
    flat = pairs.reshape(n * width)
    tail = _U(token_bits + row_bits)
    mask = (_ONE << _U(row_bits)) - _ONE
    others = np.empty(n, np.uint64)
    start = 0
    while start < n:
        end = start + 1
        while end < n and names[end] >> tail == names[start] >> tail:
            end += 1
        while start < end:
            least = np.int64(names[start] & mask)
            for i in range(start + 1, end):
                row = np.int64(names[i] & mask)
                if hashes[row] < hashes[least] or (
                    hashes[row] == hashes[least]
                    and _window_order(flat, row * width, flat, least * width, width - 1) < 0
                ):
                    least = row
            count = 0
            for i in range(start, end):
                name = names[i]
                row = np.int64(name & mask)
                if _window_order(flat, row * width, flat, least * width, width - 1) == 0:
                    names[start] = name
                    start += 1
                else:
                    others[count] = name
                    count += 1
            for i in range(count):
                names[start + i] = others[i]


@kernel
def group(
    names: Words, token_bits: int, row_bits: int, hashes: Words, pairs: Ids
) -> tuple[bool, Ids, Counts, Ids, Counts]:
    """Count the occurrences of each pair.

    Args:
        names: (n,), sorted (`name_pairs`).
        token_bits: bits of a token.
        row_bits: bits of a place.
        hashes: of the windows by place, (n,).
        pairs: by place, (n, h + 1).

    Returns:
        Whether windows whose hashes begin alike are out of order, so that the rest is void; the windows, each once;
        where each window's pairs start, with their number as the last entry; their tokens; and how often each was said.
    """
    n, width = pairs.shape
    h = width - 1
    flat = pairs.reshape(n * width)
    mask = (_ONE << _U(row_bits)) - _ONE
    token_mask = (_ONE << _U(token_bits)) - _ONE
    windows = np.empty((n + 1) * h, np.uint32)
    starts = np.empty(n + 1, np.int64)
    tokens = np.empty(n + 1, np.uint32)
    said = np.empty(n + 1, np.int64)
    starts[0] = 0
    said[0] = 0
    # Windows and pairs so far. The next of each is written again and again until another one comes: no branch, since
    # whether one comes is as good as random. Place 0 is the end of those before the first.
    m = 0
    p = 0
    before = ~(names[0] >> _U(row_bits)) if n else _U(0)
    last = 0
    for i in range(n):
        name = names[i] >> _U(row_bits)
        row = np.int64(names[i] & mask) * width
        alike = (name >> _U(token_bits)) == (before >> _U(token_bits))
        other = False
        for d in range(h):
            other |= flat[row + d] != flat[last + d]
        if alike and other:
            one, two = hashes[last // width], hashes[row // width]
            if one > two or (one == two and _window_order(flat, last, flat, row, h) > 0):
                return True, pairs, starts, tokens, said
        fresh = not alike or other
        m += fresh
        p += fresh or name != before
        for d in range(h):
            windows[m * h + d] = flat[row + d]
        starts[m] = p
        tokens[p] = np.uint32(name & token_mask)
        said[p] = i + 1
        before = name
        last = row
    for i in range(p, 0, -1):
        said[i] -= said[i - 1]
    return (
        False,
        windows[h : (m + 1) * h].reshape(m, h),
        starts[: m + 1],
        tokens[1 : p + 1],
        said[1 : p + 1],
    )


@kernel
def merge(
    hashes_a: Words,
    windows_a: Ids,
    starts_a: Counts,
    tokens_a: Ids,
    said_a: Counts,
    expected_a: Counts,
    information_a: Counts,
    hashes_b: Words,
    windows_b: Ids,
    starts_b: Counts,
    tokens_b: Ids,
    said_b: Counts,
    expected_b: Counts,
    information_b: Counts,
) -> tuple[Words, Ids, Counts, Ids, Counts, Counts, Counts]:
    """Add up two sets of rows, each in order; both have reference mass or neither has.

    Arguments and results are the columns of `detect.tally_rows.TallyRows`.
    """
    a_m, h = windows_a.shape
    b_m = windows_b.shape[0]
    flat_a = windows_a.reshape(a_m * h)
    flat_b = windows_b.reshape(b_m * h)
    most = tokens_a.shape[0] + tokens_b.shape[0]
    referred = information_a.shape[0] + information_b.shape[0] > 0
    columns = expected_a.shape[1]
    hashes = np.empty(a_m + b_m, np.uint64)
    windows = np.empty((a_m + b_m, h), np.uint32)
    starts = np.empty(a_m + b_m + 1, np.int64)
    tokens = np.empty(most, np.uint32)
    said = np.empty(most, np.int64)
    expected = np.empty((most if referred else 0, columns), np.int64)
    information = np.empty(a_m + b_m if referred else 0, np.int64)
    i = 0
    j = 0
    m = 0
    n = 0
    while i < a_m or j < b_m:
        # Below 0: the next window is in a alone; above: in b alone.
        order = 0
        if j == b_m:
            order = -1
        elif i == a_m:
            order = 1
        elif hashes_a[i] != hashes_b[j]:
            order = -1 if hashes_a[i] < hashes_b[j] else 1
        else:
            order = _window_order(flat_a, i * h, flat_b, j * h, h)
        starts[m] = n
        if referred:
            information[m] = 0
        p = 0
        p_end = 0
        q = 0
        q_end = 0
        if order <= 0:
            hashes[m] = hashes_a[i]
            for d in range(h):
                windows[m, d] = flat_a[i * h + d]
            p = starts_a[i]
            p_end = starts_a[i + 1]
            if referred:
                information[m] += information_a[i]
            i += 1
        if order >= 0:
            hashes[m] = hashes_b[j]
            for d in range(h):
                windows[m, d] = flat_b[j * h + d]
            q = starts_b[j]
            q_end = starts_b[j + 1]
            if referred:
                information[m] += information_b[j]
            j += 1
        m += 1
        while p < p_end and q < q_end:
            # No branch: which token is the smaller one is as good as random.
            of_a = tokens_a[p] <= tokens_b[q]
            of_b = tokens_b[q] <= tokens_a[p]
            tokens[n] = min(tokens_a[p], tokens_b[q])
            said[n] = of_a * said_a[p] + of_b * said_b[q]
            if referred:
                for c in range(columns):
                    expected[n, c] = of_a * expected_a[p, c] + of_b * expected_b[q, c]
            p += of_a
            q += of_b
            n += 1
        while p < p_end:
            tokens[n] = tokens_a[p]
            said[n] = said_a[p]
            if referred:
                for c in range(columns):
                    expected[n, c] = expected_a[p, c]
            p += 1
            n += 1
        while q < q_end:
            tokens[n] = tokens_b[q]
            said[n] = said_b[q]
            if referred:
                for c in range(columns):
                    expected[n, c] = expected_b[q, c]
            q += 1
            n += 1
    starts[m] = n
    # Copies, since what was taken for the case that nothing adds up would stay taken.
    return (
        hashes[:m].copy(),
        windows[:m].copy(),
        starts[: m + 1].copy(),
        tokens[:n].copy(),
        said[:n].copy(),
        expected[:n].copy(),
        information[:m].copy(),
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
