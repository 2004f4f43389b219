"""Which of millions of documents are marked, at a bound on the share of false ones among them, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["benjamini_hochberg", "benjamini_yekutieli"]

#: log10 p-values in parts, from the beginning at each call.
Parts = Callable[[], Iterable[npt.NDArray[np.float64]]]

_EULER = 0.5772156649015329


def benjamini_hochberg(parts: Parts, *, tests: int, level: float) -> float:
    """Return the largest log10 p that Benjamini and Hochberg's procedure rejects at *level*; -inf if none.

    Null: each hypothesis has its own. The expected share of true nulls among the rejected is at most *level* if the
    p-values are independent, or depend on one another positively in the sense of PRDS (Y. Benjamini and D. Yekutieli,
    "The control of the false discovery rate in multiple testing under dependency", Ann. Statist. 29, 2001, theorem
    1.2). Documents that are tested with one key share pairs. For documents independent of the key PRDS holds: the
    green bits of all distinct pairs are independent, and given a document's number of green pairs every increasing
    function of them has an increasing mean (B. Efron, "Increasing properties of Polya frequency functions", Ann. Math.
    Statist. 36, 1965, theorem 1). Where some documents were written with the key nothing is proved of how the others
    depend on them; `benjamini_yekutieli` holds whatever the dependence.

    A document that is not rejected is not shown to be unmarked.

    The largest k with at least k of the p-values under k level / tests is found without sorting: no k above the number
    of p-values under the bound of a larger k will do, so that the bound is lowered to that number until it stands.

    >>> parts = lambda: [np.array([-4.0, -2.0]), np.array([-1.5, -0.1])]
    >>> round(benjamini_hochberg(parts, tests=4, level=0.05), 3)
    -1.426

    Args:
        parts: the log10 p-values; read some times.
        tests: how many there are.
        level: between 0 and 1.

    Raises:
        ValueError: *level* is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability between 0 and 1, got {level}")
    k = tests
    while k:
        bound = math.log10(k) + math.log10(level) - math.log10(tests)
        under = sum(int(np.count_nonzero(part <= bound)) for part in parts())
        if under >= k:
            return bound
        k = under
    return -math.inf


def benjamini_yekutieli(parts: Parts, *, tests: int, level: float) -> float:
    """Return the largest log10 p rejected at *level* whatever the dependence: `benjamini_hochberg`'s at a lower level.

    Null and meaning are those of `benjamini_hochberg`; the level is divided by 1 + 1/2 + ... + 1/tests (theorem 1.3 of
    the same paper).
    """
    # The sum lies below ln m + gamma + 1/(2 m) (that of Euler and Maclaurin), so that the level is never too large.
    harmonic = math.log(tests) + _EULER + 0.5 / tests if tests else 1.0
    return benjamini_hochberg(parts, tests=tests, level=level / harmonic)
