"""Several tests of one text, several keys, several looks: what is left of their p-values.

Everything is in log10, so that p-values of 1e-5000 stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["e_bh", "e_to_p", "holm", "mean_e", "rank_p"]


def holm(log10_ps: Sequence[float]) -> list[float]:
    """Return Holm's adjusted log10 p-values, in the order given.

    Null: each hypothesis has its own; the j-th adjusted p is at most alpha only if Holm's procedure
    rejects hypothesis j at family-wise error rate alpha. Assumes that each p is valid by itself and that
    the list was fixed beforehand, keys without a finding included; any dependence between them is
    allowed (S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6,
    1979, section 3). The smallest adjusted p is min(1, m * the smallest p), Bonferroni's.

    An adjusted p that is not small does not say that the hypothesis is true.

    Three accounts, the first of which shows:

    >>> [round(p, 3) for p in holm([-9.0, -0.1, -2.0])]
    [-8.523, -0.1, -1.699]

    Raises:
        ValueError: a log10 p is above 0 or not a number.
    """
    for place, log10_p in enumerate(log10_ps):
        if not log10_p <= 0.0:
            raise ValueError(f"log10 of a p-value is at most 0, got {log10_p} at place {place}")
    adjusted = [0.0] * len(log10_ps)
    largest = -math.inf
    for done, place in enumerate(sorted(range(len(log10_ps)), key=log10_ps.__getitem__)):
        largest = max(largest, log10_ps[place] + math.log10(len(log10_ps) - done))
        adjusted[place] = min(0.0, largest)
    return adjusted


def rank_p(statistic: float, *, decoys: npt.ArrayLike) -> tuple[int, int]:
    """Return the rank of *statistic* among decoy keys as (rank, count): the p-value is rank / count.

    Null: the text is independent of the key, so that the real key and the decoys, derived alike and
    never seen by the text, are exchangeable. Then p = (1 + #{decoy >= real}) / (decoys + 1) is valid at
    any number of decoys, ties counted against the finding (Davison and Hinkley, "Bootstrap methods and
    their application", 1997, section 4.2; Phipson and Smyth, SAGMB 9, 2010, section 2).

    It cannot be below 1 / count: a control, and no measure of how strong a finding is.

    >>> rank_p(4.2, decoys=[0.3, -1.1, 0.9])
    (1, 4)

    Raises:
        ValueError: a value is not a number.
    """
    others = np.asarray(decoys).ravel()  # As they are: float64 would make ties of integers beyond 2^53.
    if math.isnan(statistic) or bool(np.isnan(others).any()):
        raise ValueError("a statistic is not a number (NaN); its rank among decoys is undefined")
    if others.dtype.kind == "f" and others.size:
        # Sums of the same terms in another order are off by their last bits: such a tie is one.
        statistic -= 1e-9 * (abs(statistic) + float(np.abs(others).max()))
    return 1 + int(np.count_nonzero(others >= statistic)), 1 + others.size


def mean_e(log10_es: Sequence[float]) -> float:
    """Return log10 of the mean of e-values: one e-value for "none of these keys is in the outputs".

    Null: all the hypotheses are true. The mean of variables whose means are at most 1 has a mean of at most 1,
    whatever their dependence: several keys on one text, several tests of one key (V. Vovk and R. Wang, "E-values:
    calibration, combination and applications", Ann. Statist. 49, 2021, section 3, where no symmetric rule does
    essentially better). Assumes that the list was fixed beforehand, keys without a finding included. Means of
    e-processes over the same looks are e-processes too.

    A large mean says that at least one key shows. It does not say which: that is `e_bh` or `holm`.

    One key of four at 1e9:

    >>> round(mean_e([9.0, 0.2, -1.5, -0.3]), 3)
    8.398

    Raises:
        ValueError: there is none, or one is not a number or infinite.
    """
    _check_es(log10_es)
    if not log10_es:
        raise ValueError("expected at least one e-value")
    top = max(log10_es)
    if top == -math.inf:
        return top
    mean = top + math.log10(math.fsum(10.0 ** (e - top) for e in log10_es) / len(log10_es))
    return mean - 1e-12 * (1 + abs(mean))


def e_bh(log10_es: Sequence[float], *, level: float) -> list[bool]:
    """Return which hypotheses the e-BH procedure rejects: the k largest for the largest k with e_(k) >= N / (level k).

    Null: each hypothesis has its own. The expected share of true nulls among those rejected is at most *level* times
    the share of true nulls among all N, whatever the dependence between the e-values (R. Wang and A. Ramdas, "False
    discovery rate control with e-values", JRSS B 84, 2022, section 4). Proof: with R rejections each rejected e is at
    least N / (level R), so 1(rejected) / R <= level e / N; sum over the true nulls and take means. Assumes that the
    list was fixed beforehand. It is the rate of false findings that is bounded, not the chance of any: for that,
    Holm.

    A hypothesis that is not rejected is not shown to be true.

    >>> e_bh([4.0, 2.9, 0.1, -2.0], level=0.01)
    [True, True, False, False]

    Raises:
        ValueError: an e-value is not a number or infinite, or *level* is not between 0 and 1.
    """
    _check_es(log10_es)
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability between 0 and 1, got {level}")
    largest_first = sorted(log10_es, reverse=True)
    least = math.inf
    for k, log10_e in enumerate(largest_first, start=1):
        if log10_e >= math.log10(len(log10_es)) - math.log10(level) - math.log10(k):
            least = log10_e
    return [log10_e >= least for log10_e in log10_es]


def e_to_p(log10_e: float) -> float:
    """Return log10 of the p-value min(1, 1 / e): valid by Markov's inequality.

    For an e-process the largest e so far may stand in for e, and the p is valid at any time (J. Ville, "Etude critique
    de la notion de collectif", 1939).

    >>> e_to_p(6.5), e_to_p(-2.0)
    (-6.5, 0.0)

    Raises:
        ValueError: *log10_e* is not a number or infinite.
    """
    _check_es([log10_e])
    return min(0.0, -log10_e)


def _check_es(log10_es: Sequence[float]) -> None:
    for place, log10_e in enumerate(log10_es):
        if not log10_e < math.inf:
            raise ValueError(f"log10 of an e-value is a number below infinity, got {log10_e} at place {place}")
