"""The tally's compiled kernels: which positions are in, and which distinct windows and pairs they hold.

They call one another and nothing of another file, for the reason given in `watermark.kernels`. Nothing
here knows a key: tables are probed by a mix of the ids themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from watermark.kernels import inline, kernel

__all__ = [
    "MIN_MASS",
    "UNIT",
    "add_reference",
    "leave_out",
    "longer_names",
    "number",
    "times",
    "whole_windows",
    "window_names",
]

#: Reference mass is an integer in units of 2^-32, so that sums of it don't depend on order.
UNIT = 2**32

#: A reference's mass is kept for tokens to which it gives at least this probability, and for the token
#: said. That is about 4.5 rows a said pair and 99% of the z of keeping everything (DESIGN 5).
MIN_MASS = 0.02

#: Names in a part of `number`: with its table, some 200 KB.
_PART = 8192

Ids = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

_U = np.uint64
_C1 = np.uint64(0x9E3779B97F4A7C15)
_29, _32, _ONE, _SLOT = np.uint64(29), np.uint64(32), np.uint64(1), np.uint64(20)


@inline
def _name(ids, end, h):
    """A nonzero 64-bit name of the window before position `end`: exact for h <= 2, else a hash (no key, no secret)."""
    if h == 1:
        return _U(ids[end - 1]) + _ONE
    if h == 2:
        # ids are below 2^32 - 1 wherever a vocabulary is: the sum cannot wrap to 0 (`tally_of` sees to it).
        return ((_U(ids[end - 2]) << _32) | _U(ids[end - 1])) + _ONE
    x = _U(h)
    for i in range(end - h, end):
        x = (x ^ _U(ids[i])) * _C1
        x ^= x >> _29
    return x | _ONE


@inline
def _equal(a, i, b, j, h):
    """Whether the windows before a[i] and before b[j], which have one name, are the same."""
    if h > 2:
        for d in range(1, h + 1):
            if a[i - d] != b[j - d]:
                return False
    return True


@inline
def _mixed(name):
    """A name's bits, stirred: the high ones choose a part, those from `_SLOT` on a slot."""
    return (name ^ (name >> _29)) * _C1


@inline
def _slot(name, mask):
    """Where in a table of mask + 1 slots to look first."""
    return np.int64((_mixed(name) >> _SLOT) & _U(mask))


@inline
def _is_special(special, v):
    """Whether `v` is among the sorted special ids."""
    if special.shape[0] == 0 or v < special[0] or v > special[-1]:
        return False
    return special[np.searchsorted(special, v)] == v


@kernel
def whole_windows(ids: Ids, starts: Counts, special: Ids, h: int) -> npt.NDArray[np.bool_]:
    """Mark the positions whose token is not special and whose window lies wholly inside one segment."""
    valid = np.zeros(ids.shape[0], np.bool_)
    for r in range(starts.shape[0] - 1):
        start, end = starts[r], starts[r + 1]
        # Most responses hold none, which is told of many ids at once: a loop without a branch.
        perhaps = False
        if special.shape[0]:
            least, largest = special[0], special[-1]
            for i in range(start, end):
                perhaps |= (ids[i] >= least) & (ids[i] <= largest)
        if not perhaps:
            valid[start + h : end] = True
            continue
        run = 0
        for i in range(start, end):
            if _is_special(special, ids[i]):
                run = 0
            else:
                valid[i] = run >= h
                run += 1
    return valid


@kernel
def leave_out(
    ids: Ids,
    starts: Counts,
    valid: npt.NDArray[np.bool_],
    prompt_ids: Ids,
    piece_starts: Counts,
    groups: Counts,
    h: int,
) -> None:
    """Unmark the positions of record r whose window occurs inside one of the pieces groups[r] .. groups[r + 1]."""
    longest = 1
    for r in range(starts.shape[0] - 1):
        longest = max(longest, piece_starts[groups[r + 1]] - piece_starts[groups[r]])
    capacity = 1
    while capacity < 2 * longest:
        capacity *= 2
    names = np.zeros(capacity, np.uint64)
    ends = np.zeros(capacity, np.int64)
    for r in range(starts.shape[0] - 1):
        length = piece_starts[groups[r + 1]] - piece_starts[groups[r]]
        size = 1
        while size < 2 * length:
            size *= 2
        names[:size] = _U(0)
        mask = size - 1
        for piece in range(groups[r], groups[r + 1]):
            # A window ends before `end`; the piece's last h ids are one too.
            for end in range(piece_starts[piece] + h, piece_starts[piece + 1] + 1):
                name = _name(prompt_ids, end, h)
                s = _slot(name, mask)
                while names[s] != _U(0) and not (names[s] == name and _equal(prompt_ids, ends[s], prompt_ids, end, h)):
                    s = (s + 1) & mask
                names[s] = name
                ends[s] = end
        for i in range(starts[r], starts[r + 1]):
            if valid[i]:
                name = _name(ids, i, h)
                s = _slot(name, mask)
                while names[s] != _U(0) and not (names[s] == name and _equal(prompt_ids, ends[s], ids, i, h)):
                    s = (s + 1) & mask
                if names[s] != _U(0):
                    valid[i] = False


@kernel
def number(names: Words) -> tuple[npt.NDArray[np.int32], Counts]:
    """Number distinct names.

    They are first dealt into parts that fit the cache, so that no search waits for memory, and each part's table is
    made for its size.

    Args:
        names: (N,), 0 where there is none.

    Returns:
        Each position's number, int32 (N,), -1 where there is no name; and for each number the first position.
    """
    n = names.shape[0]
    bits = 1
    while (n >> bits) > _PART and bits < 12:
        bits += 1
    shift = _U(64 - bits)
    ends = np.zeros(1 << bits, np.int64)
    for i in range(n):
        if names[i] != _U(0):
            ends[np.int64(_mixed(names[i]) >> shift)] += 1
    largest = ends.max()
    ends = np.cumsum(ends)
    total = ends[-1]
    at = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    dealt = np.empty(total, np.uint64)
    places = np.empty(total, np.int64)
    for i in range(n):
        if names[i] != _U(0):
            part = np.int64(_mixed(names[i]) >> shift)
            dealt[at[part]] = names[i]
            places[at[part]] = i
            at[part] += 1
    capacity = 1
    while capacity < 2 * largest:
        capacity *= 2
    slot_names = np.empty(capacity, np.uint64)
    slot_numbers = np.empty(capacity, np.int32)
    numbers = np.full(n, -1, np.int32)
    first = np.empty(total, np.int64)
    count = 0
    start = 0
    for part in range(ends.shape[0]):
        end = ends[part]
        size = 1
        while size < 2 * (end - start):
            size *= 2
        mask = size - 1
        slot_names[:size] = _U(0)
        for j in range(start, end):
            name = dealt[j]
            s = _slot(name, mask)
            while slot_names[s] != name and slot_names[s] != _U(0):
                s = (s + 1) & mask
            if slot_names[s] == _U(0):
                slot_names[s] = name
                slot_numbers[s] = count
                first[count] = places[j]
                count += 1
            numbers[places[j]] = slot_numbers[s]
        start = end
    return numbers, first[:count].copy()


@kernel
def window_names(ids: Ids, valid: npt.NDArray[np.bool_], h: int) -> Words:
    """Name the first two ids of each valid position's window (the one, at width 1), exactly; 0 elsewhere."""
    names = np.zeros(ids.shape[0], np.uint64)
    for i in range(ids.shape[0]):
        if valid[i]:
            names[i] = _name(ids, i - max(0, h - 2), min(h, 2))
    return names


@kernel
def longer_names(numbers: npt.NDArray[np.int32], ids: Ids, offset: int) -> Words:
    """Name what is numbered together with the id *offset* positions back: (number + 1) << 32 | id; 0 where none."""
    names = np.zeros(ids.shape[0], np.uint64)
    for i in range(ids.shape[0]):
        if numbers[i] >= 0:
            names[i] = (_U(numbers[i] + 1) << _32) | _U(ids[i - offset])
    return names


@kernel
def times(numbers: npt.NDArray[np.int32], count: int) -> Counts:
    """Return how many positions have each number."""
    found = np.zeros(count, np.int64)
    for number in numbers:
        if number >= 0:
            found[number] += 1
    return found


@inline
def _find(table, name, mask):
    """The slot of `name` in a table of rows (name, index), or the empty slot where it belongs."""
    s = _slot(name, mask)
    while table[s, 0] != name and table[s, 0] != _U(0):
        s = (s + 1) & mask
    return s


@inline
def _doubled(table):
    """A table of twice the size with the same rows."""
    larger = np.zeros((2 * table.shape[0], 2), np.uint64)
    for i in range(table.shape[0]):
        if table[i, 0] != _U(0):
            s = _find(larger, table[i, 0], larger.shape[0] - 1)
            larger[s, 0] = table[i, 0]
            larger[s, 1] = table[i, 1]
    return larger


@inline
def _extended(values, new):
    """The values at the front of a longer array."""
    new[: values.shape[0]] = values
    return new


@kernel
def add_reference(
    ids: Ids,
    window_of: npt.NDArray[np.int32],
    windows: int,
    said_keys: npt.NDArray[np.uint64],
    special: Ids,
    top_ids: Ids,
    top_p: npt.NDArray[np.float32],
    said_p: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint64], Counts, Counts]:
    """Add a reference's mass.

    The keys of all pairs (those said first, in their order), each one's mass, and each window's information, the
    sum over its positions of 1 - sum p^2; both in units of 2^-32.
    """
    room = 1 << 10
    while room < 2 * said_keys.shape[0]:
        room *= 2
    table = np.zeros((2 * room, 2), np.uint64)
    keys = np.empty(room, np.uint64)
    mass = np.zeros(room, np.int64)
    information = np.zeros(windows, np.int64)
    count = 0
    top = top_ids.shape[1]
    for key in said_keys:
        s = _find(table, key, table.shape[0] - 1)
        table[s, 0] = key
        table[s, 1] = _U(count)
        keys[count] = key
        count += 1
    for i in range(ids.shape[0]):
        w = window_of[i]
        if w < 0:
            continue
        if count + top + 1 > keys.shape[0]:
            keys = _extended(keys, np.empty(2 * keys.shape[0] + top, np.uint64))
            mass = _extended(mass, np.zeros(2 * mass.shape[0] + top, np.int64))
            while table.shape[0] < 2 * keys.shape[0]:
                table = _doubled(table)
        mask = table.shape[0] - 1
        squares = 0.0
        listed = False
        for t in range(top + 1):
            if t < top:
                v = top_ids[i, t]
                p = np.float64(top_p[i, t])
                squares += p * p
                if v == ids[i]:
                    listed = True
                elif p < MIN_MASS or _is_special(special, v):
                    continue
            elif listed:
                break
            else:
                v = ids[i]
                p = np.float64(said_p[i])
            key = (_U(w + 1) << _32) | _U(v)
            s = _find(table, key, mask)
            if table[s, 0] == _U(0):
                table[s, 0] = key
                table[s, 1] = _U(count)
                keys[count] = key
                count += 1
            mass[np.int64(table[s, 1])] += np.int64(p * UNIT)
        information[w] += np.int64(max(0.0, 1.0 - squares) * UNIT)
    return keys[:count].copy(), mass[:count].copy(), information
