"""The evidence of any amount of text, without the key: distinct pairs and their counts.

For each pair, how often it was said and how often a reference would have said it.
A *pair* is a window and the token after it. Under the null hypothesis the green bits of *distinct* pairs
are independent Bernoulli(gamma) bits, whatever the text; so the tally keeps each pair once, over the
whole of the evidence, with its counts as integers. Sums over it don't depend on the order of the texts.

Out are: positions whose window reaches over the start of a response or over a special id, special ids
themselves, and (by the `PromptPolicy`) windows that occur in prompts, since a model copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, cast

import numba as nb
import numpy as np
import numpy.typing as npt

from detect.reference import Reference
from watermark import kernels
from watermark.keys import Params

__all__ = ["UNIT", "PromptPolicy", "Tally", "tally_of"]

#: Reference mass is an integer in units of 2^-32, so that sums of it don't depend on order.
UNIT = 2**32

#: A reference's mass is kept for tokens to which it gives at least this probability, and for the token
#: said. That is about 4.5 rows a said pair and 99% of the z of keeping everything (DESIGN 5).
MIN_MASS = 0.02

Ids = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


class PromptPolicy(Enum):
    """Which windows are left out because a suspect may have copied them from its prompt."""

    OWN = "own"
    """Those of the record's own prompt (the default)."""
    CLEAN = "clean"
    """None: the prompts are declared to hold no marked text."""
    MARKED = "marked"
    """Those of every record's prompt: the prompts are known to hold marked text. Rigorous, and costly at width 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Distinct windows (m of them, h ids wide) and distinct pairs (n of them)."""

    windows: Ids
    """uint32 (m, h)."""
    lanes: npt.NDArray[np.uint8]
    """The public lane of each window, (m,)."""
    information: Counts
    """For each window, the sum over its occurrences of 1 - sum p_ref^2, in units of 2^-32, (m,); 0 without a
    reference."""
    pair_window: Counts
    """Index of each pair's window, (n,)."""
    tokens: Ids
    """(n,)."""
    said: Counts
    """How often each pair was said, (n,); 0 for a pair that only the reference would have said."""
    expected: Counts
    """Reference mass of each pair over all occurrences of its window, in units of 2^-32, (n,)."""
    position_pair: npt.NDArray[np.int32]
    """For each position of the concatenated responses, its pair, or -1 where it is out, (N,)."""
    left_out_prompt: int
    """Positions left out since their window occurs in a prompt."""

    @property
    def scored(self) -> int:
        """Positions that are in."""
        return int(self.said.sum())

    def in_lanes(self, lanes: range) -> npt.NDArray[np.bool_]:
        """Tell which pairs' windows fall into *lanes*: bool (n,)."""
        inside = (self.lanes >= lanes.start) & (self.lanes < lanes.stop)
        return inside[self.pair_window]


def tally_of(
    responses: Sequence[Ids],
    *,
    params: Params,
    prompts: Sequence[Sequence[Ids]] = (),
    policy: PromptPolicy = PromptPolicy.OWN,
    reference: Reference | None = None,
) -> Tally:
    """Tally responses.

    Args:
        responses: each response's ids, uint32.
        params: the scope's: window and special ids.
        prompts: for each response the texts before it, each tokenised alone; empty if none are recorded.
        policy: which windows are left out for standing in a prompt.
        reference: probabilities aligned with the responses' ids.

    Raises:
        ReferenceMismatchError: the reference is of other ids.
    """
    ids, starts = _joined(responses)
    if reference is not None:
        reference.check(ids, starts)
    special = np.array(params.special_ids, dtype=np.uint32)
    valid = _whole_windows(ids, starts, special, params.window)
    before = int(valid.sum())
    if prompts and policy is not PromptPolicy.CLEAN:
        pieces = [piece for group in prompts for piece in group]
        prompt_ids, piece_starts = _joined(pieces)
        if policy is PromptPolicy.OWN:
            groups = np.concatenate([[0], np.cumsum([len(group) for group in prompts])]).astype(np.int64)
            _leave_out(ids, starts, valid, prompt_ids, piece_starts, groups, params.window)
        else:
            whole = np.array([0, len(ids)], dtype=np.int64)
            groups = np.array([0, len(pieces)], dtype=np.int64)
            _leave_out(ids, whole, valid, prompt_ids, piece_starts, groups, params.window)
    left_out = before - int(valid.sum())
    if reference is None:
        top_ids, top_p = np.zeros((0, 0), dtype=np.uint32), np.zeros((0, 0), dtype=np.float32)
        said_p = np.zeros(0, dtype=np.float32)
    else:
        top_ids, top_p, said_p = reference.top_ids, reference.top_p, reference.said_p
    first, information, pair_key, said, expected, position_pair = _tabulate(
        ids, valid, params.window, special, top_ids, top_p, said_p
    )
    offsets = np.arange(-params.window, 0)
    windows = np.ascontiguousarray(ids[first[:, None] + offsets[None, :]])
    return Tally(
        windows=windows,
        lanes=kernels.lanes(windows),
        information=information,
        pair_window=(pair_key >> np.uint64(32)).astype(np.int64) - 1,
        tokens=(pair_key & np.uint64(0xFFFFFFFF)).astype(np.uint32),
        said=said,
        expected=expected,
        position_pair=position_pair,
        left_out_prompt=left_out,
    )


def _joined(parts: Sequence[Ids]) -> tuple[Ids, Counts]:
    """Return the concatenation and where each part starts, with the end as the last entry."""
    starts = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    joined = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
    return np.ascontiguousarray(joined, dtype=np.uint32), starts


# The kernels of this file call one another and nothing of another file: see `watermark.kernels`.

F = TypeVar("F", bound=Callable[..., Any])


def _kernel(function: F) -> F:
    return cast("F", kernels.kernel(function))


def _inline(function: F) -> F:
    return cast("F", nb.njit(function, nogil=True, inline="always", error_model="numpy"))


_U = np.uint64
_C1 = np.uint64(0x9E3779B97F4A7C15)
_29, _32, _ONE = np.uint64(29), np.uint64(32), np.uint64(1)


@_inline
def _name(ids, end, h):  # type: ignore[no-untyped-def]
    """A nonzero 64-bit name of the window before position `end`: exact for h <= 2, else a hash (no key, no secret)."""
    if h == 1:
        return _U(ids[end - 1]) + _ONE
    if h == 2:
        # ids are below 2^32 - 1 wherever a vocabulary is: the sum cannot wrap to 0 (`Params` and `tally_of` see to it).
        return ((_U(ids[end - 2]) << _32) | _U(ids[end - 1])) + _ONE
    x = _U(h)
    for i in range(end - h, end):
        x = (x ^ _U(ids[i])) * _C1
        x ^= x >> _29
    return x | _ONE


@_inline
def _equal(a, i, b, j, h):  # type: ignore[no-untyped-def]
    """Whether the windows before a[i] and before b[j], which have one name, are the same."""
    if h > 2:
        for d in range(1, h + 1):
            if a[i - d] != b[j - d]:
                return False
    return True


@_inline
def _slot(name, mask):  # type: ignore[no-untyped-def]
    """Where in a table of mask + 1 slots to look first."""
    return np.int64((((name ^ (name >> _29)) * _C1) >> _29) & _U(mask))


@_kernel
def _whole_windows(ids: Ids, starts: Counts, special: Ids, h: int) -> npt.NDArray[np.bool_]:
    """Mark the positions whose token is not special and whose window lies wholly inside one segment."""
    valid = np.zeros(ids.shape[0], np.bool_)
    lowest = special[0] if special.shape[0] else np.uint32(0)
    highest = special[-1] if special.shape[0] else np.uint32(0)
    for r in range(starts.shape[0] - 1):
        run = 0
        for i in range(starts[r], starts[r + 1]):
            v = ids[i]
            is_special = False
            if special.shape[0] and lowest <= v <= highest:
                at = np.searchsorted(special, v)
                is_special = at < special.shape[0] and special[at] == v
            if is_special:
                run = 0
            else:
                valid[i] = run >= h
                run += 1
    return valid


@_kernel
def _leave_out(
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


@_inline
def _find(table, name, mask):  # type: ignore[no-untyped-def]
    """The slot of `name` in a table of rows (name, index), or the empty slot where it belongs."""
    s = _slot(name, mask)
    while table[s, 0] != name and table[s, 0] != _U(0):
        s = (s + 1) & mask
    return s


@_inline
def _doubled(table):  # type: ignore[no-untyped-def]
    """A table of twice the size with the same rows. Rows of one name (hashes of two windows) stay apart."""
    larger = np.zeros((2 * table.shape[0], 2), np.uint64)
    mask = larger.shape[0] - 1
    for i in range(table.shape[0]):
        if table[i, 0] != _U(0):
            s = _slot(table[i, 0], mask)
            while larger[s, 0] != _U(0):
                s = (s + 1) & mask
            larger[s, 0] = table[i, 0]
            larger[s, 1] = table[i, 1]
    return larger


@_inline
def _extended(values, new):  # type: ignore[no-untyped-def]
    """The values at the front of a longer array."""
    new[: values.shape[0]] = values
    return new


@_kernel
def _tabulate(
    ids: Ids,
    valid: npt.NDArray[np.bool_],
    h: int,
    special: Ids,
    top_ids: Ids,
    top_p: npt.NDArray[np.float32],
    said_p: npt.NDArray[np.float32],
) -> tuple[Counts, Counts, npt.NDArray[np.uint64], Counts, Counts, npt.NDArray[np.int32]]:
    """Return the distinct windows and pairs.

    For windows, where each first ends and its information; for pairs, the key (window + 1) << 32 | token,
    times said and mass; and each position's pair.
    """
    n_positions = ids.shape[0]
    top = top_ids.shape[1]
    room = 1 << 10
    while room < n_positions // 8:
        room *= 2
    w_table = np.zeros((2 * room, 2), np.uint64)
    w_first = np.empty(room, np.int64)
    w_information = np.zeros(room, np.int64)
    w_count = 0
    p_table = np.zeros((2 * room, 2), np.uint64)
    p_key = np.empty(room, np.uint64)
    p_mass = np.zeros(room, np.int64)
    p_count = 0
    position_pair = np.full(n_positions, -1, np.int32)
    for i in range(n_positions):
        if not valid[i]:
            continue
        # The window.
        name = _name(ids, i, h)
        mask = w_table.shape[0] - 1
        s = _find(w_table, name, mask)
        while w_table[s, 0] != _U(0) and not (
            w_table[s, 0] == name and _equal(ids, w_first[np.int64(w_table[s, 1])], ids, i, h)
        ):
            s = (s + 1) & mask
        if w_table[s, 0] == _U(0):
            w = w_count
            w_table[s, 0] = name
            w_table[s, 1] = _U(w)
            w_first[w] = i
            w_count += 1
            if w_count == w_first.shape[0]:
                w_first = _extended(w_first, np.empty(2 * w_count, np.int64))
                w_information = _extended(w_information, np.zeros(2 * w_count, np.int64))
                w_table = _doubled(w_table)
        else:
            w = np.int64(w_table[s, 1])
        # The token said, and what the reference would have said: entry -1 is the token said.
        squares = 0.0
        said_seen = False
        for t in range(-1, top):
            if t < 0:
                v = ids[i]
                mass = np.int64(0)
            else:
                v = top_ids[i, t]
                p = np.float64(top_p[i, t])
                squares += p * p
                if v == ids[i]:
                    said_seen = True
                elif p < MIN_MASS:
                    continue
                if special.shape[0] and v <= special[-1]:
                    at = np.searchsorted(special, v)
                    if special[at] == v:
                        continue
                mass = np.int64(p * UNIT)
            key = (_U(w + 1) << _32) | _U(v)
            mask = p_table.shape[0] - 1
            s = _find(p_table, key, mask)
            if p_table[s, 0] == _U(0):
                pair = p_count
                p_table[s, 0] = key
                p_table[s, 1] = _U(pair)
                p_key[pair] = key
                p_count += 1
                if p_count == p_key.shape[0]:
                    p_key = _extended(p_key, np.empty(2 * p_count, np.uint64))
                    p_mass = _extended(p_mass, np.zeros(2 * p_count, np.int64))
                    p_table = _doubled(p_table)
            else:
                pair = np.int64(p_table[s, 1])
            if t < 0:
                position_pair[i] = pair
            else:
                p_mass[pair] += mass
        if top > 0:
            w_information[w] += np.int64(max(0.0, 1.0 - squares) * UNIT)
            if not said_seen:
                p_mass[position_pair[i]] += np.int64(np.float64(said_p[i]) * UNIT)
    p_said = np.zeros(p_count, np.int64)
    for i in range(n_positions):
        if position_pair[i] >= 0:
            p_said[position_pair[i]] += 1
    return (
        w_first[:w_count].copy(),
        w_information[:w_count].copy(),
        p_key[:p_count].copy(),
        p_said,
        p_mass[:p_count].copy(),
        position_pair,
    )
