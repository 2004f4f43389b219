"""The test of a weighted sum of pair scores, and the effect size.

Null: the outputs are independent of the key (given the prompts, whose windows are left out), and the key is uniformly
random and was fixed before. Then, given the weights, which no key entered (`detect.weighting`), the scores of distinct
pairs are independent draws of the mark's law, and S = sum a (phi - E phi) has an exactly known law, whatever the text
says and however often it repeats itself.

The p-value reported is Chernoff's bound, which is never below the truth; the saddlepoint estimate stands beside it.
Where all weights are equal and the sum of such scores has a known law (`WeightedScores.log10_exact`), it is the exact
tail, rounded outward.
Where a mark's hash is too weak for its law to hold, the p-value is the rank among decoy keys instead.

A small p says that the outputs depend on the key. It does not say who trained on what, when, or with what intent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.mark import Mark
from detect.multiplicity import rank_p
from detect.score_law import Bernoulli
from detect.tally import UNIT, Tally
from detect.weighted_scores import WeightedScores
from detect.weighted_sums import WeightedSum
from detect.weighting import Weights

__all__ = [
    "EffectSize",
    "WeightedTest",
    "decoys_log10_p",
    "effect_size",
    "green_statistics",
    "law_of",
    "statistics_of",
    "weighted_test",
]

#: Half-width of a 95% interval in standard deviations.
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedTest:
    """The test of a sum of weighted scores."""

    name: str
    """Of the weighting."""
    pairs: int
    """Distinct pairs with a weight, said or not."""
    statistic: float
    """S, in tokens times the score's unit."""
    sd: float
    """Standard deviation of S under the null."""
    log10_p: float
    """P(S >= statistic) is at most this: the exact tail where `exact`, else Chernoff's bound. Where the mark is not
    exact, the rank's p."""
    log10_p_saddlepoint: float | None
    """An estimate of the same probability; None where the mark is not exact."""
    log10_p_smallest: float
    """What the most extreme outcome would have given."""
    exact: bool = False
    """Whether `log10_p` is the tail itself, rounded outward, and no bound of it."""
    decoy_rank: int | None = None
    """Rank of the key among itself and the decoys: 1 is the largest. None where no decoys were drawn."""
    decoys: int = 0
    decoy_z: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    """The decoys' S / sd, (decoys,)."""

    @property
    def decoy_sd(self) -> float | None:
        """Standard deviation of the decoys' S / sd: about 1 if all is well."""
        return float(self.decoy_z.std()) if len(self.decoy_z) else None

    @property
    def z(self) -> float:
        """S in standard deviations."""
        return self.statistic / self.sd if self.sd else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectSize:
    """The share of the teacher's tilt that the suspect carries: 1 is the teacher itself."""

    tau: float
    low: float
    high: float
    """Ends of its 95% interval, with the null's variance."""


def law_of(values: npt.NDArray[Any], mark: Mark) -> WeightedSum | WeightedScores:
    """Return the null law of sum a (phi - E phi) for weights *values* in tokens."""
    if isinstance(mark.law, Bernoulli):
        return WeightedSum(values, gamma=mark.law.gamma)
    return WeightedScores(values, mark.law)


def statistics_of(sums: npt.NDArray[Any], *, total: int, mark: Mark) -> npt.NDArray[np.float64]:
    """Return S under each of many keys, float64 of the shape of *sums*.

    Args:
        sums: the sum of the weights times the scores under each key, in units of 2^-32.
        total: the sum of all weights, in the same units.
        mark: gives the score's mean.
    """
    if isinstance(mark.law, Bernoulli):
        return green_statistics(sums, total=total, k=mark.law.gamma * 256)
    return np.asarray((sums - mark.law.mean * float(total)) / UNIT)


def green_statistics(sums: npt.NDArray[Any], *, total: int, k: float) -> npt.NDArray[np.float64]:
    """Return S under each of many keys from the sums of the green pairs' weights, in units of 2^-32; gamma is k/256."""
    # In float64: 256 times a sum over some 8 million tokens passes int64.
    return np.asarray((256.0 * sums - float(k) * total) / (256 * UNIT))


def weighted_test(
    weights: Weights,
    *,
    mark: Mark,
    tally: Tally,
    scores: npt.NDArray[Any],
    decoy_sums: npt.NDArray[Any] | None = None,
) -> WeightedTest:
    """Test weighted scores. Null and assumptions are in the module's docstring.

    Args:
        weights: made by a `Weighting`, 0 outside `Mark.tested`.
        mark: whose key it is.
        tally: the pairs.
        scores: (n,), from `Mark.scores`.
        decoy_sums: (decoys,), for each decoy key the sum of the weights times the scores.

    Raises:
        TypeError: *weights* is an array.
    """
    if not isinstance(weights, Weights):
        raise TypeError("weighted_test takes the Weights that a Weighting made, no array: weights cannot know a key")
    values = weights.values
    total = int(values.sum())
    if scores.dtype == np.bool_:
        scored: Any = int(values[scores].sum())
        whole = isinstance(mark.law, Bernoulli)
        k = round(mark.law.gamma * 256) if isinstance(mark.law, Bernoulli) else 0
        statistic = (256 * scored - k * total) / (256 * UNIT) if whole else (scored - mark.law.mean * total) / UNIT
    else:
        scored = float(values.astype(np.float64) @ scores)
        statistic = math.fsum((values / UNIT) * (scores - mark.law.mean))
    units = mark.units(tally)
    merged = values if units is None else _merged(values, units)
    law = law_of(merged / UNIT, mark)
    rank: int | None = None
    decoy_z = np.zeros(0 if decoy_sums is None else len(decoy_sums))
    if decoy_sums is not None and len(decoy_sums):
        rank, _ = rank_p(scored, decoys=decoy_sums)
        if law.sd:
            decoy_z = statistics_of(decoy_sums, total=total, mark=mark) / law.sd
    decoys = 0 if decoy_sums is None else len(decoy_sums)
    log10_p, exact = _tail(law, statistic) if mark.exact else (math.log10((rank or 1 + decoys) / (1 + decoys)), False)
    return WeightedTest(
        name=weights.name,
        pairs=int(np.count_nonzero(values)),
        statistic=statistic,
        sd=law.sd,
        log10_p=log10_p,
        log10_p_saddlepoint=law.log10_saddlepoint(statistic) if mark.exact else None,
        log10_p_smallest=_smallest(law) if mark.exact else -math.log10(1 + decoys),
        exact=exact,
        decoy_rank=rank,
        decoys=decoys,
        decoy_z=decoy_z,
    )


def _smallest(law: WeightedSum | WeightedScores) -> float:
    """Return log10 p of the most extreme outcome: minus infinity where scores have no largest value."""
    return _tail(law, law.max)[0] if law.max < math.inf else -math.inf


def decoys_log10_p(weights: Weights, test: WeightedTest, *, mark: Mark, tally: Tally) -> npt.NDArray[np.float64]:
    """Return log10 p under each decoy key, (decoys,), of the same kind as that of the test made of *weights*."""
    units = mark.units(tally)
    merged = weights.values if units is None else _merged(weights.values, units)
    law, statistics = law_of(merged / UNIT, mark), test.decoy_z * test.sd
    if isinstance(law, WeightedScores) and law.has_exact:
        return np.array([law.log10_tail(statistic) for statistic in statistics.tolist()])
    return law.log10_chernoff_many(statistics)


def effect_size(statistic: float, *, sd: float, mark: Mark, information: int) -> EffectSize | None:
    """Return the effect size of the centred statistic; None where the mark is no tilt or nothing was left to chance.

    A suspect with tilt tau * delta says green tokens more often by tau * delta * gamma * (1 - gamma) times the
    occurrence's 1 - sum p_ref^2, to first order; so this is the maximum-likelihood slope at 0.

    Args:
        statistic: S of the centred weights.
        sd: its standard deviation under the null.
        mark: gives delta and the score's variance.
        information: sum over the tested windows of `Tally.information`.
    """
    if mark.strength is None or not mark.exact:
        return None
    per_tau = mark.strength * mark.law.variance * information / UNIT
    if per_tau <= 0:
        return None
    tau, half = statistic / per_tau, _Z95 * sd / per_tau
    return EffectSize(tau=tau, low=tau - half, high=tau + half)


def _tail(law: WeightedSum | WeightedScores, statistic: float) -> tuple[float, bool]:
    """Return log10 of the exact tail, or of Chernoff's bound, and which of the two it is."""
    return law.tail(statistic) if isinstance(law, WeightedScores) else (law.log10_chernoff(statistic), False)


def _merged(values: npt.NDArray[np.int64], units: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sum of the weights of each unit."""
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(units[order]) != 0])) if len(units) else order
    return np.add.reduceat(values[order], starts) if len(units) else values
