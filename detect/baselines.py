"""Tests that others publish, to be measured against. NEVER RECOMMENDED; `taggant detect model` makes none of them.

- `deduplicated_binomial`: Sander et al. (arXiv 2402.14904, section 4). Valid, and weaker than the centred test.
- `hoeffding`: antidistillation fingerprinting (ADFP, arXiv 2602.03812). Valid for key-free contexts, and weaker by far.
- `UNCENTRED`: the suspect's probabilities alone, without a reference. Valid for key-free contexts, and weaker.
- `naive_z`: the z-score over all positions, repeats counted anew. **Not valid**: on unmarked text of 200,000 tokens it
  has a standard deviation of 14 to 25 over random keys, and accuses an innocent model at z > 6 under one key in three.

Null of all: the outputs are independent of the key, which is uniformly random and was fixed before. A small p of the
valid ones says that the outputs depend on the key, not who trained on what, when, or with what intent; a small p of
`naive_z` says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detect.binomial import log10_tail
from detect.mark import GreenListMark, Mark
from detect.open_weight import LogitTally, Origin
from detect.reference import Reference
from detect.tally import Tally
from detect.weighting import Weighting
from watermark.errors import UsageError

__all__ = ["UNCENTRED", "Baseline", "deduplicated_binomial", "frequent_windows", "hoeffding", "naive_z"]

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What another's test gives."""

    name: str
    n: int
    """Pairs, windows or positions counted."""
    mean: float
    """The mean score over them; gamma is expected."""
    log10_p: float
    valid: bool
    """Whether P(p <= alpha) is at most alpha under the null."""


def frequent_windows(served: Sequence[Ids], *, window: int, least: int) -> Ids:
    """Return the windows that occur at least so often in served answers: Sander et al.'s filter phi, uint32 (m, h).

    The counts depend on the key, since marked answers do; a set of windows chosen by them is harmless for a suspect
    that is independent of the key only where windows are chosen by counts and no pair by its colour. To be strict,
    count over answers that were not marked.
    """
    found = [np.lib.stride_tricks.sliding_window_view(ids, window) for ids in served if len(ids) >= window]
    if not found:
        return np.zeros((0, window), dtype=np.uint32)
    windows, times = np.unique(np.concatenate(found), axis=0, return_counts=True)
    return np.asarray(windows[times >= least], dtype=np.uint32)


def deduplicated_binomial(tally: Tally, mark: Mark, *, windows: Ids | None = None) -> Baseline:
    """Return the exact binomial tail of the green pairs, each pair once, within a filter's windows.

    Args:
        tally: the pairs.
        mark: a green list.
        windows: those counted, uint32 (m, h), from `frequent_windows`; None for all.

    Raises:
        UsageError: the mark is no green list.
    """
    k = _green_k(mark)
    counted = (tally.said > 0) & mark.tested(tally)
    if windows is not None:
        counted &= _among(tally.windows, windows)[tally.pair_window]
    pairs, green = int(counted.sum()), int(mark.scores(tally)[counted].sum())
    return Baseline(
        name="deduplicated binomial",
        n=pairs,
        mean=green / pairs if pairs else math.nan,
        log10_p=log10_tail(green, pairs=pairs, k=k),
        valid=True,
    )


def hoeffding(tally: LogitTally, mark: Mark) -> Baseline:
    """Return ADFP's bound exp(-2 n (mean - gamma)^2), mean the suspect's green mass at each window's first context.

    Mass is what the tally kept, made to sum to 1 at each window.

    Raises:
        UsageError: the mark is no green list, or the contexts are marked.
    """
    gamma = _green_k(mark) / 256
    if tally.origin is not Origin.KEY_FREE:
        raise UsageError("Hoeffding's bound wants key-free contexts")
    inside = mark.tested(tally)
    mass = np.where(inside, tally.first, 0).astype(np.float64)
    total = np.bincount(tally.pair_window, weights=mass, minlength=len(tally.windows))
    green = np.bincount(tally.pair_window, weights=mass * mark.scores(tally), minlength=len(tally.windows))
    some = total > 0
    n = int(some.sum())
    mean = float((green[some] / total[some]).mean()) if n else gamma
    excess = max(0.0, mean - gamma - 1e-12)
    return Baseline(name="Hoeffding", n=n, mean=mean, log10_p=-2 * n * excess**2 / math.log(10), valid=True)


def naive_z(tally: Tally, mark: Mark) -> Baseline:
    """Return the normal tail of the z-score over all positions, repeats counted anew. NOT A VALID TEST."""
    from scipy.special import log_ndtr

    times = np.where(mark.tested(tally), tally.said, 0)
    n = int(times.sum())
    total = float((times * mark.scores(tally)).sum())
    z = (total - n * mark.law.mean) / math.sqrt(n * mark.law.variance) if n else 0.0
    return Baseline(
        name="naive z",
        n=n,
        mean=total / n if n else math.nan,
        log10_p=float(log_ndtr(-z)) / math.log(10),
        valid=False,
    )


def _uncentred(tally: Tally, reference: Reference | None) -> npt.NDArray[np.int64]:
    if not isinstance(tally, LogitTally):
        raise TypeError("the uncentred weighting wants a LogitTally, which a ContextCollector makes from logits")
    return tally.suspect


#: The suspect's probabilities summed over the contexts, without a reference.
UNCENTRED = Weighting(name="uncentred", rule=_uncentred, needs_reference=False)


def _green_k(mark: Mark) -> int:
    if not isinstance(mark, GreenListMark):
        raise UsageError(f"mark {mark.name}: this baseline wants a green list")
    return round(mark.law.mean * 256)


def _among(windows: Ids, chosen: Ids) -> npt.NDArray[np.bool_]:
    """Tell which rows of (m, h) are among the rows of another array."""
    names = {row.tobytes() for row in np.ascontiguousarray(chosen, dtype=np.uint32)}
    return np.array([row.tobytes() in names for row in np.ascontiguousarray(windows)], dtype=np.bool_)
