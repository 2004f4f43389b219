"""The centred test: what was said minus what a reference model would have said anyway.

Each pair (w, v) has the weight ::

    a(w, v) = n(w, v) - sum over occurrences t of w of p_ref(v | context of t)

for tokens said and unsaid, and the statistic is S = sum a (green - gamma). To first order in the tilt it
is the locally most powerful weight: the score of a student whose logits lean towards green (METHOD in
docs/method.md). Low-entropy steps weigh nothing by themselves.

Null: as for the count test. The weights depend on the text and on the reference, never on the key; so
given them the green bits are still independent Bernoulli(gamma), and S has an exactly known law. A
reference that is wrong costs power and never validity. One that has seen the key (the marked teacher
itself) is no reference: its probabilities depend on the key.

The p-value reported is Chernoff's bound, which is never below the truth; the saddlepoint estimate stands
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detect.multiplicity import rank_p
from detect.tally import UNIT, Tally
from detect.weighted_sums import WeightedSum
from watermark.keys import Params

__all__ = ["CentredTest", "centred_test", "centred_weights", "statistics_of"]

#: Half-width of a 95% interval in standard deviations.
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class CentredTest:
    """The test of a sum of weighted green bits."""

    pairs: int
    """Distinct pairs with a weight, said or not."""
    green: int
    """How many of them are green."""
    statistic: float
    """S, in tokens."""
    sd: float
    """Standard deviation of S under the null."""
    log10_p: float
    """Chernoff's bound: P(S >= statistic) is at most this."""
    log10_p_saddlepoint: float
    """An estimate of the same probability."""
    tau: float | None
    """Effect size: the share of the teacher's tilt that the suspect carries (1 is the teacher itself); None where
    delta is 0 or the reference left nothing to chance."""
    tau_low: float | None
    tau_high: float | None
    """Ends of its 95% interval, with the null's variance."""
    decoy_rank: int | None = None
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


def centred_weights(tally: Tally, params: Params) -> npt.NDArray[np.int64]:
    """Return each pair's weight in units of 2^-32; 0 outside the fleet lanes: int64 (n,)."""
    weights = tally.said * UNIT - tally.expected
    weights[~tally.in_lanes(range(params.fleet_lanes))] = 0
    return weights


def statistics_of(green_sums: npt.NDArray[np.int64], *, total: int, k: int) -> npt.NDArray[np.float64]:
    """Return S under each of many keys, float64 (K,).

    Args:
        green_sums: (K,), the sum of the green pairs' weights under each key, in units of 2^-32.
        total: the sum of all pairs' weights, in the same units.
        k: gamma in units of 1/256.
    """
    # In float64: 256 times a sum over some 8 million tokens passes int64.
    return np.asarray((256.0 * green_sums - float(k) * total) / (256 * UNIT))


def centred_test(
    weights: npt.NDArray[np.int64],
    *,
    green: npt.NDArray[np.bool_],
    params: Params,
    delta: float,
    information: int,
    decoy_sums: npt.NDArray[np.int64] | None = None,
) -> CentredTest:
    """Test weighted green bits. The null, and what a wrong reference costs, are in the module's docstring.

    Args:
        weights: (n,), from `centred_weights`.
        green: (n,), the colours under the key.
        params: the scope's.
        delta: the teacher's, in logits, for the effect size.
        information: sum over the fleet lanes' windows of `Tally.information`.
        decoy_sums: (decoys,), for each decoy key the sum of the weights of its green pairs.
    """
    k = params.fleet_k
    gamma = k / 256
    law = WeightedSum(weights / UNIT, gamma=gamma)
    total = int(weights.sum())
    green_sum = int(weights[green].sum())
    statistic = (256 * green_sum - k * total) / (256 * UNIT)
    # A suspect with tilt tau * delta says green tokens more often by tau * delta * gamma * (1 - gamma) times the
    # occurrence's 1 - sum p^2, to first order; so this is the maximum-likelihood slope at 0.
    per_tau = delta * gamma * (1 - gamma) * information / UNIT
    tau = statistic / per_tau if per_tau > 0 else None
    half = _Z95 * law.sd / per_tau if per_tau > 0 else 0.0
    rank: int | None = None
    decoy_z = np.zeros(0)
    if decoy_sums is not None and len(decoy_sums):
        rank, _ = rank_p(green_sum, decoys=decoy_sums)
        if law.sd:
            decoy_z = statistics_of(decoy_sums, total=total, k=k) / law.sd
    return CentredTest(
        pairs=int(np.count_nonzero(weights)),
        green=int(np.count_nonzero(green & (weights != 0))),
        statistic=statistic,
        sd=law.sd,
        log10_p=law.log10_chernoff(statistic),
        log10_p_saddlepoint=law.log10_saddlepoint(statistic),
        tau=tau,
        tau_low=None if tau is None else tau - half,
        tau_high=None if tau is None else tau + half,
        decoy_rank=rank,
        decoys=0 if decoy_sums is None else len(decoy_sums),
        decoy_z=decoy_z,
    )
