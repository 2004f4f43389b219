"""Several tests of one text, several keys, several looks: what is left of their p-values.

Everything is in log10, so that p-values of 1e-5000 stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["holm", "rank_p"]


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
    return 1 + int(np.count_nonzero(others >= statistic)), 1 + others.size
