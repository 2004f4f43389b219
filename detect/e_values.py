"""E-values of weighted pair scores: bets on a tilt, and the mixture of several.

Null: as for the weighted test (`detect.weighted_test`): given what was known before they are looked at, the scores of
pairs not looked at before are independent draws of the mark's law. A *bet* on the tilt theta multiplies the capital
by ::

    exp(sum over the pairs of c (phi - E phi) - K(c)),   c = theta * a,   K(c) = ln E exp(c (phi - E phi))

whose mean is exactly 1 under the null whatever the weights a are, as long as they and theta were fixed before the
scores were looked at. That is an *e-value*: P(e >= 1 / alpha) <= alpha by Markov's inequality. Products over
successive sets of pairs keep the mean, and so does the mixture of the products of several tilts, sum_i share_i *
product_i: one who does not know the tilt pays ln(1 / share) for having it in the list, once and not at every step (V.
Vovk and R. Wang, "E-values: calibration, combination and applications", Ann. Statist. 49, 2021; G. Shafer, "Testing
by betting", JRSS A 184, 2021; the mixture is H. Robbins's, Ann. Math. Statist. 41, 1970).

Centred weights times the student's tilt in logits are the log likelihood ratio to first order, so one tilt is right
for all sizes of text, and the list is of tilts, not of standard deviations.

A large e says that the outputs depend on the key. It does not say who, when, or with what intent; a small one says
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detect.centred import residuals
from detect.mark import Mark
from detect.score_law import Bernoulli, ScoreLaw
from detect.tally import UNIT, Tally
from detect.weighting import Weights

__all__ = ["Mixture", "log_bets", "mixture_for", "tilt_information", "tilt_scale"]

FloatArray = npt.NDArray[np.float64]

#: The smallest tilt of a mixture, in units of 1 / sd of the whole evidence expected. Where p = 1e-6 is reached with 80%
#: power the sum has some 6 sd, and the best bet is as many; one at 4.5 has 97% of its exponent.
_SMALLEST = 4.5

#: Tilts of a mixture, a factor of sqrt 2 apart: the largest is right for a 250 times larger sample than is needed.
_TILTS = 9

#: Bets are kept where the cumulant is far from overflow.
_LARGEST = 30.0

#: Share of the cumulant's domain that bets keep within.
_OF_DOMAIN = 0.9

#: Allowance for the rounding of an exponent, as in `detect.weighted_sums`.
_ROUNDING = 64 * 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The tilts that are bet on, and the share of the capital that each gets at the start.

    Raises:
        ValueError: they are not as many, a tilt or a share is not positive, or the shares sum to more than 1.
    """

    tilts: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.tilts or len(self.tilts) != len(self.shares):
            raise ValueError(f"expected as many shares as tilts, got {len(self.shares)} for {len(self.tilts)}")
        if not all(0 < tilt < math.inf for tilt in self.tilts):
            raise ValueError("a tilt is positive and finite: the tests are one-sided")
        if not (all(share > 0 for share in self.shares) and math.fsum(self.shares) <= 1 + 1e-12):
            raise ValueError("shares are positive and sum to at most 1, else the mixture is no e-value")

    def log10(self, log_bets: FloatArray) -> FloatArray:
        """Return log10 of the mixture, rounded down.

        Args:
            log_bets: natural logarithms of each tilt's product, (..., k).

        Returns:
            float64 of the shape (...).
        """
        terms = np.log(self.shares) + log_bets
        top = terms.max(axis=-1)
        total = top + np.log(np.exp(terms - top[..., None]).sum(axis=-1))
        return np.asarray((total - 1e-12 * (1 + np.abs(total))) / math.log(10))


def mixture_for(information: float) -> Mixture:
    """Return the mixture for a sum of scores that is expected to reach *information*.

    Tilts from 4.5 / sqrt(information) up, each half as likely by variance as the one before: powerful where the
    evidence is just enough for p = 1e-6, and little less so where it is plenty.

    Args:
        information: of the whole evidence, as `tilt_information` gives it: the log likelihood ratio of a tilt theta
            has the variance theta^2 * information. A guess without the key; a bad one costs power alone.
    """
    base = _SMALLEST / math.sqrt(information) if information > 0 else 1.0
    halves = np.arange(_TILTS) / 2
    shares = 2.0**-halves
    return Mixture(
        tilts=tuple((base * 2.0**halves).tolist()), shares=tuple((shares / shares.sum() * (1 - 1e-15)).tolist())
    )


def log_bets(a: FloatArray, excess: FloatArray, law: ScoreLaw, tilts: Sequence[float]) -> FloatArray:
    """Return ln of each tilt's bet on these pairs, rounded down.

    Args:
        a: weights in tokens, (n,); one a score.
        excess: the scores less their mean, (n,).
        law: of one score.
        tilts: (k,).

    Returns:
        (k,).
    """
    return np.array([_outward_sum(*_terms(tilt * a, excess, law)) for tilt in tilts])


def log_bets_by_group(
    a: FloatArray,
    excess: FloatArray,
    law: ScoreLaw,
    tilts: Sequence[float],
    *,
    group: npt.NDArray[np.int64],
    groups: int,
) -> FloatArray:
    """Return ln of each tilt's bet on each group of pairs, rounded down: (groups, k), *group* int64 (n,)."""
    out = np.empty((groups, len(tilts)))
    for column, tilt in enumerate(tilts):
        won, paid = _terms(tilt * a, excess, law)
        slack = _ROUNDING * (np.abs(won) + np.abs(paid))
        out[:, column] = np.bincount(group, weights=won - paid - slack, minlength=groups)
    return out


def tilt_scale(tally: Tally, weights: Weights) -> float:
    """Return how many tilts of the weights a student's tilt amounts to: 1 for centred weights and a true reference.

    The best bet on S is E S / Var S. By the windows' information I_w the expected gain of S in each is
    I_w (a . c) / (c . c), c the centred weights; a reference that is wrong adds to Var S and not to E S, so that the
    bet gets smaller, the more so the more often a window comes again. Made without the key.
    """
    a, c = weights.values / UNIT, residuals(tally) / UNIT
    energy = float(a @ a)
    if not (energy > 0 and tally.information.any()):
        return 1.0
    windows = len(tally.windows)
    along = np.bincount(tally.pair_window, weights=a * c, minlength=windows)
    squares = np.bincount(tally.pair_window, weights=c * c, minlength=windows)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(squares > 0, tally.information / UNIT * along / squares, 0.0)
    scale = float(gain.sum()) / energy
    return scale if scale > 0 else 1.0


def tilt_information(tally: Tally, weights: Weights, mark: Mark) -> float:
    """Return the variance of the bet on a tilt of 1, scale^2 Var(phi) sum a^2. Made without the key."""
    a = weights.values / UNIT
    return tilt_scale(tally, weights) ** 2 * mark.law.variance * float(a @ a)


def _terms(c: FloatArray, excess: FloatArray, law: ScoreLaw) -> tuple[FloatArray, FloatArray]:
    """Return each pair's c (phi - E phi) and K(c), c brought within the bounds."""
    if isinstance(law, Bernoulli):
        c = np.clip(c, -_LARGEST, _LARGEST)
        return c * excess, np.log1p(law.gamma * np.expm1(c)) - law.gamma * c
    low, high = law.domain
    c = np.clip(c, max(-_LARGEST, _OF_DOMAIN * low), min(_LARGEST, _OF_DOMAIN * high))
    return c * excess, np.asarray(law.cumulant(c), dtype=np.float64)


def _outward_sum(won: FloatArray, paid: FloatArray) -> float:
    return float((won - paid).sum()) - _ROUNDING * float(np.abs(won).sum() + np.abs(paid).sum())
