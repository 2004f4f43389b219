"""The evidence of any amount of text, without the key: distinct pairs and their counts.

For each pair, how often it was said and how often a reference would have said it.
A *pair* is a window and the token after it. Under the null hypothesis the green bits of *distinct* pairs
are independent Bernoulli(gamma) bits, whatever the text; so the tally keeps each pair once, over the
whole of the evidence, with its counts as integers. Sums over it don't depend on the order of the texts.

Out are: positions whose window reaches over the start of a response or over a special id, special ids
themselves, and (by the `PromptPolicy`) windows that occur in prompts, since a model copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import overload

import numpy as np
import numpy.typing as npt

from detect.reference import Reference
from detect.tabulation import (
    UNIT,
    add_reference,
    leave_out,
    longer_names,
    number,
    times,
    whole_windows,
    window_names,
)
from watermark import kernels

__all__ = ["UNIT", "Positions", "PromptPolicy", "Tally", "Texts", "positions_of", "tally_of"]

Ids = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


class PromptPolicy(Enum):
    """Which windows are left out because a suspect may have copied them from its prompt."""

    OWN = "own"
    """Those of the record's own prompt (the default)."""
    CLEAN = "clean"
    """None: the prompts are declared to hold no marked text."""
    MARKED = "marked"
    """Those of every record's prompt: the prompts are known to hold marked text. Costly at width 1."""


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
    referenced: bool = False
    """Whether *expected* and *information* are a reference's."""
    share: float = 1.0
    """Share of the windows that was kept, chosen without a key; 1: all."""

    @property
    def scored(self) -> int:
        """Positions that are in."""
        return int(self.said.sum())

    def in_lanes(self, lanes: range) -> npt.NDArray[np.bool_]:
        """Tell which pairs' windows fall into *lanes*: bool (n,)."""
        inside = (self.lanes >= lanes.start) & (self.lanes < lanes.stop)
        return inside[self.pair_window]


class Texts(Sequence[Ids]):
    """Responses that stand one after the other in one array already, and are not cut out and joined again.

    Args:
        ids: of all, (N,).
        starts: where each starts, with N as the last entry.
    """

    def __init__(self, ids: Ids, starts: Counts) -> None:
        self.ids = ids
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, which: int) -> Ids: ...
    @overload
    def __getitem__(self, which: slice) -> list[Ids]: ...
    def __getitem__(self, which: int | slice) -> Ids | list[Ids]:
        numbers = range(len(self))[which]
        if isinstance(numbers, range):
            return [self[number] for number in numbers]
        return self.ids[self.starts[numbers] : self.starts[numbers + 1]]


def tally_of(
    responses: Sequence[Ids],
    *,
    window: int,
    special_ids: Sequence[int] = (),
    prompts: Sequence[Sequence[Ids]] = (),
    echoes: Sequence[npt.NDArray[np.bool_]] = (),
    policy: PromptPolicy = PromptPolicy.OWN,
    reference: Reference | None = None,
) -> Tally:
    """Tally responses.

    Args:
        responses: each response's ids, uint32.
        window: ids before each token, 1 or more.
        special_ids: sorted ids that are never scored and never inside a window.
        prompts: for each response the texts before it, each tokenised alone; empty if none are recorded.
        echoes: for each response which of its ids repeat a prompt (`detect.echo`); empty if none were looked for.
        policy: which windows are left out for standing in a prompt.
        reference: probabilities aligned with the responses' ids.

    Raises:
        ReferenceMismatchError: the reference is of other ids.
        ValueError: an id is 2^32 - 1.
    """
    found = positions_of(
        responses, window=window, special_ids=special_ids, prompts=prompts, echoes=echoes, policy=policy
    )
    ids, valid = found.ids, found.valid
    if reference is not None:
        reference.check(ids, found.starts)
    # A window of h ids is numbered as its first h - 1, numbered, and the last: names are exact, and nothing is hashed
    # that could collide.
    window_of, first = number(window_names(ids, valid, window))
    for offset in range(window - 2, 0, -1):
        window_of, first = number(longer_names(window_of, ids, offset))
    names = longer_names(window_of, ids, 0)
    position_pair, first_said = number(names)
    keys, said = names[first_said], times(position_pair, len(first_said))
    information, expected = np.zeros(len(first), dtype=np.int64), np.zeros(len(keys), dtype=np.int64)
    if reference is not None:
        keys, expected, information = add_reference(
            ids, window_of, len(first), keys, _array(special_ids), reference.top_ids, reference.top_p, reference.said_p
        )
        said = np.concatenate([said, np.zeros(len(keys) - len(said), dtype=np.int64)])
    offsets = np.arange(-window, 0)
    windows = np.ascontiguousarray(ids[first[:, None] + offsets[None, :]])
    return Tally(
        windows=windows,
        lanes=kernels.lanes(windows),
        information=information,
        pair_window=(keys >> np.uint64(32)).astype(np.int64) - 1,
        tokens=(keys & np.uint64(0xFFFFFFFF)).astype(np.uint32),
        said=said,
        expected=expected,
        position_pair=position_pair,
        left_out_prompt=found.left_out_prompt,
        referenced=reference is not None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Which positions of some responses are in."""

    ids: Ids
    """The concatenated responses, (N,)."""
    starts: Counts
    """Where each response starts, with the end as the last entry."""
    valid: npt.NDArray[np.bool_]
    """(N,)."""
    left_out_prompt: int
    """Positions left out since their window occurs in a prompt."""


def positions_of(
    responses: Sequence[Ids],
    *,
    window: int,
    special_ids: Sequence[int] = (),
    prompts: Sequence[Sequence[Ids]] = (),
    echoes: Sequence[npt.NDArray[np.bool_]] = (),
    policy: PromptPolicy = PromptPolicy.OWN,
) -> Positions:
    """Tell which positions are in; the arguments are those of `tally_of`.

    Raises:
        ValueError: an id is 2^32 - 1.
    """
    ids, starts = _joined(responses)
    if len(ids) and int(ids.max()) == 2**32 - 1:
        raise ValueError("token id 4294967295 is no id of any tokenizer")
    valid = whole_windows(ids, starts, _array(special_ids), window)
    before = np.count_nonzero(valid)
    if any(prompts) and policy is not PromptPolicy.CLEAN:
        pieces = [piece for group in prompts for piece in group]
        prompt_ids, piece_starts = _joined(pieces)
        if policy is PromptPolicy.OWN:
            groups = np.concatenate([[0], np.cumsum([len(group) for group in prompts])]).astype(np.int64)
            leave_out(ids, starts, valid, prompt_ids, piece_starts, groups, window)
        else:
            whole = np.array([0, len(ids)], dtype=np.int64)
            groups = np.array([0, len(pieces)], dtype=np.int64)
            leave_out(ids, whole, valid, prompt_ids, piece_starts, groups, window)
    if echoes and policy is not PromptPolicy.CLEAN:
        echoed = np.concatenate(echoes)
        for back in range(1, window + 1):
            valid[back:] &= ~echoed[:-back]
    return Positions(ids=ids, starts=starts, valid=valid, left_out_prompt=int(before - np.count_nonzero(valid)))


def _array(special_ids: Sequence[int]) -> Ids:
    return np.array(special_ids, dtype=np.uint32)


def _joined(parts: Sequence[Ids]) -> tuple[Ids, Counts]:
    """Return the concatenation and where each part starts, with the end as the last entry."""
    if isinstance(parts, Texts):
        return parts.ids, parts.starts
    starts = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    joined = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
    return np.ascontiguousarray(joined, dtype=np.uint32), starts
