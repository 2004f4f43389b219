"""What a plan must know of a suspect's text and its reference: a few figures, measured without any key.

A tally of n scored positions has sum a^2 = Q(n), a the centred weights (`detect.centred`). Write e_t for what
position t adds, the token said minus the reference's probabilities, so that Q = sum over v of (sum over t of e_tv)^2
in each window: |e_t|^2 of every position, and e_t . e_s of every two positions that share a window. Where responses
are independent draws of one distribution, any two of them share the same amount on average, and what each has by
itself grows with their number; so exactly, but for the last response's length ::

    E Q(n) = energy * n + mismatch * n^2

*energy* is what sampling leaves (a true reference: mean of 1 - sum p^2) and repeats inside a response; *mismatch* is
what a wrong reference, or a student's tilt, says again wherever the window comes again: the sum over windows of
f_w^2 |p_suspect - p_ref|^2, f_w the window's share of positions. Assumes nothing of language but independent responses.

No null hypothesis is tested here and no p-value comes out. Nothing here knows a key, so a pilot spends nothing: the
same text may be tested afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detect.reference import Reference
from detect.tabulation import MIN_MASS
from detect.tally import UNIT, Tally
from detect.weighted_sums import WeightedSum
from watermark.errors import ReferenceMismatchError, UsageError

__all__ = ["PilotFigures", "pilot"]

#: Scored positions below which a pilot's figures are too loose to plan with.
_LEAST = 500

#: Where Chernoff's bound is compared with the Gaussian's: z of 1e-6.
_AT = math.sqrt(2 * math.log(1e6))


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotFigures:
    """Figures of one domain, reference and window. Those of `detect.power_presets` are pilots of ours."""

    source: str
    """Where they are from, for people."""
    tokens: int
    """Tokens that they were measured on."""
    window: int
    scored: float
    """Share of the suspect's tokens that are scored: not at the start of a segment, not left out for a prompt."""
    gini: float
    """Mean of 1 - sum p_ref^2 over the positions scored: 0 where every token is forced, near 1 where all is open."""
    energy: float
    """Part of sum a^2 that grows with the positions scored, a position."""
    mismatch: float
    """Part of sum a^2 that grows with their square, a position squared."""
    mismatch_error: float = 0.0
    """Standard error of *mismatch*, by the jackknife over responses; 0 where it is not known."""
    tilt_mismatch: float = 0.0
    """What a student's own tilt adds to *mismatch* per (tau delta)^2; 0 where *mismatch* holds it already."""
    chernoff: float = 1.0
    """Share of the Gaussian exponent z^2 / 2 that Chernoff's bound of such weights reaches at 1e-6."""
    distinct_scale: float
    """Distinct pairs said among n positions scored are about min(n, distinct_scale * n^distinct_exponent)."""
    distinct_exponent: float

    def sum_of_squares(self, positions: float, *, tilt: float = 0.0) -> float:
        """Return the expected sum a^2 of *positions* scored, for a student whose logits lean by *tilt* to green."""
        return positions * (self.energy + (self.mismatch + self.tilt_mismatch * tilt * tilt) * positions)

    def distinct(self, positions: float) -> float:
        """Return the expected number of distinct pairs said."""
        return min(positions, self.distinct_scale * math.exp(self.distinct_exponent * math.log(positions)))


def pilot(tally: Tally, reference: Reference, *, gamma_256: int = 64) -> PilotFigures:
    """Measure a pilot text of the suspect: 2,000 to 5,000 tokens, in several responses.

    Of the two constants of sum a^2 *mismatch* comes from pairs of positions in different responses alone,
    without bias (but that it is never below 0), and *energy* is the rest: at the pilot's own size they give its own sum
    a^2. *tilt_mismatch* is 0, since a
    pilot's mismatch is a student's as it is.

    Args:
        tally: of the pilot text, made with *reference*. All lanes count, whichever a key marks.
        reference: the one that will be used for the test; `Reference.starts` tells the responses apart.
        gamma_256: gamma in units of 1/256, for the skewness of the bound.

    Raises:
        ReferenceMismatchError: the reference is of other text.
        UsageError: fewer than 500 positions are scored, or in fewer than 3 responses.
    """
    if not 1 <= gamma_256 <= 255:
        raise UsageError(f"gamma: expected 1 to 255 units of 1/256, got {gamma_256}")
    if len(reference.ids) != len(tally.position_pair):
        raise ReferenceMismatchError(
            f"reference {reference.name}: has {len(reference.ids):,} positions, and the pilot has "
            f"{len(tally.position_pair):,}: make both of the same outputs"
        )
    positions = np.flatnonzero(tally.position_pair >= 0)
    response = np.searchsorted(reference.starts, positions, side="right") - 1
    lengths = np.bincount(response).astype(np.float64)
    n = len(positions)
    if n < _LEAST or np.count_nonzero(lengths) < 3:
        raise UsageError(
            f"pilot: expected at least {_LEAST} scored positions in at least 3 responses, got {n:,} in "
            f"{np.count_nonzero(lengths):,}: collect a few thousand tokens of the suspect first"
        )
    if not tally.information.any():
        raise UsageError("pilot: the tally was made without a reference, or every token was forced: pass reference=")
    a = (tally.said * UNIT - tally.expected) / UNIT
    total = float(a @ a)
    shared = _shared(tally, reference, positions, response)
    couples = lengths * (n - lengths)
    mismatch = float(shared.sum() / couples.sum())
    # Hoeffding's projection of a U-statistic of order 2 (Ann. Math. Statist. 19, 1948, section 5).
    error = 2 * float(np.linalg.norm(shared - mismatch * couples) / couples.sum())
    mismatch = max(0.0, mismatch)
    law = WeightedSum(a, gamma=gamma_256 / 256)
    bound = -law.log10_chernoff(min(law.max, _AT * law.sd))
    distinct = int(np.count_nonzero(tally.said))
    # Good and Toulmin: pairs said once are the slope of the distinct ones against log n (Biometrika 43, 1956).
    exponent = min(1.0, float(np.count_nonzero(tally.said == 1)) / distinct)
    return PilotFigures(
        source=f"pilot of {len(tally.position_pair):,} tokens",
        tokens=len(tally.position_pair),
        window=tally.windows.shape[1],
        scored=n / len(tally.position_pair),
        gini=float(tally.information.sum()) / UNIT / n,
        energy=total / n - mismatch * n,
        mismatch=mismatch,
        mismatch_error=error,
        chernoff=min(1.0, bound / 6.0),
        distinct_scale=distinct / n**exponent,
        distinct_exponent=exponent,
    )


def _shared(
    tally: Tally, reference: Reference, positions: npt.NDArray[np.int64], response: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return for each response the sum, over pairs, of its own part of a times that of all the others: float64 (R,)."""
    said = tally.position_pair[positions].astype(np.int64)
    window = tally.pair_window[said]
    # A pair is found by its window and token; the tally holds every pair that has mass.
    names = (tally.pair_window.astype(np.uint64) << np.uint64(32)) | tally.tokens
    order = np.argsort(names)
    top_p = reference.top_p[positions].astype(np.float64)
    top_ids = reference.top_ids[positions]
    row, column = np.nonzero((top_p >= MIN_MASS) & (top_ids != reference.ids[positions][:, None]))
    wanted = (window[row].astype(np.uint64) << np.uint64(32)) | top_ids[row, column]
    at = np.minimum(np.searchsorted(names[order], wanted), len(names) - 1)
    held = names[order][at] == wanted  # Special ids have mass and no pair.
    row, column = row[held], column[held]
    pair = np.concatenate([said, order[at][held]])
    value = np.concatenate([1.0 - reference.said_p[positions].astype(np.float64), -top_p[row, column]])
    responses = int(response.max()) + 1
    cells, index = np.unique(pair * responses + np.concatenate([response, response[row]]), return_inverse=True)
    own = np.bincount(index, weights=value)
    whole = np.bincount(pair, weights=value)
    others = own * (whole[cells // responses] - own)
    return np.bincount(cells % responses, weights=others, minlength=responses).astype(np.float64)
