"""Has the reference seen the key? A reference's mass on green tokens, against what chance gives.

Null hypothesis: the probabilities p_ref, at the positions taken, are independent of the key's bits of their windows.
With E(w, v) the mass at those positions, T = sum E(w, v) (score(w, v) - mean) is then a weighted sum with weights fixed
without the key, and the p is twice the smaller Chernoff bound of its two tails.

Mass counts where p_ref is at least 0.02, whether the token was said or not. Only the first position of each window in
each response is taken. There a clean p_ref reads a context without that
window; at a later one it may repeat what the suspect said after the window before, and that depends on the key in a
suspect that was taught the mark.

If the text is independent of the key the p is valid, whatever the text. If the suspect does depend on the key it is
approximate: which contexts were visited depends on bits of other windows, so that T has mean 0 for a generator whose
next token depends on its own window's bits alone, but not exactly the law above; and a student's choice of context may
know the bits ahead through what it learned. So the level is 1e-6, the finding is about the reference and accuses
nobody, and a reference that follows the suspect's text (an adapted one) is checked before it is adapted.

A small p says that this reference depends on the key: the marked teacher, its student, or text of theirs. Then weights
made with it have no known law, and no centred test's p is valid. A large p does not prove that it is clean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detect.mark import Mark
from detect.reference import Reference
from detect.tabulation import add_reference
from detect.tally import UNIT, Tally
from detect.weighted_test import law_of
from watermark.errors import ReferenceMismatchError

__all__ = ["LEVEL", "ReferenceCheck", "check_mass", "first_mass", "reference_sees_key"]

#: A clean reference is called one that has seen the key this often at most, if the text is independent of the key.
LEVEL: Final = 1e-6

#: An id of no tokenizer.
_NOTHING_SAID: Final = np.uint32(2**32 - 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCheck:
    """What the check found."""

    pairs: int
    """Distinct pairs with mass at the first position of a window in a response."""
    z: float
    """T in standard deviations: above 0 where the reference prefers green."""
    log10_p: float
    """Two-sided."""

    @property
    def sees_key(self) -> bool:
        """Whether the p is at or below `LEVEL`."""
        return self.log10_p <= math.log10(LEVEL)


def reference_sees_key(tally: Tally, reference: Reference, mark: Mark) -> ReferenceCheck | None:
    """Check whether *reference* depends on the key of *mark*. Null and limits are in the module's docstring.

    Args:
        tally: made with the reference.
        reference: before any adaptation to the suspect's text.
        mark: whose key it is. Where it is not exact, or its pairs share random quantities, nothing is checked.

    Returns:
        What was found; None where nothing could be checked.

    Raises:
        ReferenceMismatchError: the tally is of other text, or made with another reference.
    """
    reference.check_length(len(tally.position_pair))
    if not mark.exact or mark.units(tally) is not None:
        return None
    return check_mass(tally, first_mass(tally, reference, special_ids=mark.special_ids), mark)


def first_mass(tally: Tally, reference: Reference, *, special_ids: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return each pair's mass at the first position of its window in each response, in units of 2^-32, (n,).

    No key enters, and the masses of texts add up.

    Args:
        tally: made with the reference.
        reference: see `reference_sees_key`.
        special_ids: sorted ids that are never scored.

    Raises:
        ReferenceMismatchError: the tally is of other text, or made with another reference.
    """
    pair = tally.position_pair
    window_of = np.where(pair >= 0, tally.pair_window[np.maximum(pair, 0)] if len(tally.tokens) else -1, -1)
    at = np.flatnonzero(window_of >= 0)
    response = np.searchsorted(reference.starts, at, side="right").astype(np.int64)
    _, first = np.unique(response * (len(tally.windows) + 1) + window_of[at], return_index=True)
    taken = np.full(len(pair), -1, dtype=np.int32)
    taken[at[first]] = window_of[at[first]]
    names = ((tally.pair_window + 1).astype(np.uint64) << np.uint64(32)) | tally.tokens.astype(np.uint64)
    # No id is taken for said: the small mass that a tally keeps for what was said would follow a marked text.
    nothing = np.full(len(pair), _NOTHING_SAID, dtype=np.uint32)
    keys, mass, _ = add_reference(
        nothing,
        taken,
        len(tally.windows),
        names,
        np.array(special_ids, dtype=np.uint32),
        reference.top_ids,
        reference.top_p,
        np.zeros(len(pair), dtype=np.float32),
    )
    # The tally was made with the reference, so it has every pair, in its order; after it comes what nobody said.
    extra, mass = keys[len(names) :], mass[: len(names)]
    if ((extra & np.uint64(0xFFFFFFFF)) != _NOTHING_SAID).any():
        raise ReferenceMismatchError(
            f"reference {reference.name}: the tally was made with another reference: make it with this one"
        )
    return np.asarray(mass)


def check_mass(tally: Tally, mass: npt.NDArray[np.int64], mark: Mark) -> ReferenceCheck | None:
    """Check `first_mass` against the key of *mark*; None where nothing can be checked."""
    if not mark.exact or mark.units(tally) is not None:
        return None
    weights = np.where(mark.tested(tally), mass, 0) / UNIT
    scores = mark.scores(tally).astype(np.float64)
    statistic = math.fsum(weights * (scores - mark.law.mean))
    up = law_of(weights, mark)
    if not up.sd:
        return None
    low = law_of(-weights, mark).log10_chernoff(-statistic)
    return ReferenceCheck(
        pairs=int(np.count_nonzero(weights)),
        z=statistic / up.sd,
        log10_p=min(0.0, min(up.log10_chernoff(statistic), low) + math.log10(2)),
    )
