"""Tr-GoF: do the pair scores of the text look uniform? A truncated goodness-of-fit test. For comparison.

Under the null each distinct pair said has a p-value of its own: the probability that its score is at least what it is.
With F_n their empirical distribution, Li et al. ("Robust detection of watermarks for large language models under human
edits", arXiv 2411.13868, section 3; the member s = 2 of their family) take ::

    T = sup over floor <= r < 1 with F_n(r) > r of n (F_n(r) - r)^2 / (2 r (1 - r))

which looks for a few pairs that are far too small anywhere, and needs to know neither how many of them there are nor
how strong they are. It was made for marks with continuous scores (Gumbel-max).

Null: the outputs are independent of the key, which is uniformly random and was fixed before. Then the p-values of
distinct pairs are independent and uniform (or, for discrete scores, larger), whatever the text says, and the law of T
depends on n alone. Two p-values, both valid:

- *Monte Carlo*: (1 + #{T of n uniforms >= T}) / (draws + 1), which no number of draws makes invalid, and which can't be
  below 1 / (draws + 1);
- *bound*: the levels are cut into cells [r', r'']. With b(r) = r + sqrt(2 r (1 - r) T / n) the boundary that F_n
  reaches, b(r) / r falls with r, so that reaching it inside a cell takes F_n(r) / r to b(r'') / r'' at least. F_n(r) /
  r is a martingale as r falls from r'' to r' (given how many values lie below r they are uniform there), and Doob's
  inequality for exp(theta n F_n(r) / r) gives at most exp(-n KL(r' b(r'') / r'' || r')). Beyond r = 1 / (1 + 2 T / n)
  the boundary is above 1. The sum over the cells bounds the tail, far out too.

The p reported is twice the smaller.

**For green lists it degenerates.** Their generator asks only whether u < gamma, so that under the alternative F_n
leaves the diagonal by a tent with its tip at r = gamma: T finds the count test again, at the price of the supremum. It
is made here from u itself. Said pairs count once whatever a reference would have said; weights have no place in it.

A small p says that the outputs depend on the key. It does not say who trained on what, when, or with what intent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import rel_entr

from detect.mark import GreenListMark, Mark
from detect.tally import Tally
from watermark import kernels
from watermark.errors import UsageError
from watermark.kernels import kernel

__all__ = ["GoodnessOfFit", "goodness_of_fit", "log10_bound", "null_statistics", "pair_p_values", "truncated_statistic"]

FloatArray = npt.NDArray[np.float64]

#: Levels below it are not looked at: the statistic of a single tiny p-value has a heavy tail there.
FLOOR = 1e-3

#: Draws of the null unless told otherwise.
DRAWS = 999

#: Cells of the bound at most.
_MOST_CELLS = 20_000

#: Statistics count as lower and tails as higher by this share, against rounding.
_ROUNDING = 1e-9

#: Uniforms drawn at most over all draws, so that a long text costs seconds and fewer draws, not minutes.
_MOST_UNIFORMS = 200_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodnessOfFit:
    """The truncated goodness-of-fit test of a text's pairs."""

    name: str = "goodness-of-fit"
    pairs: int
    """Distinct pairs said."""
    statistic: float
    """T."""
    level: float
    """The r at which it is attained; nan where F_n nowhere exceeds r."""
    log10_p: float
    """Of twice the smaller of the two below, rounded up."""
    log10_p_monte_carlo: float
    log10_p_bound: float
    draws: int
    """Of the null, by Monte Carlo."""
    degenerate: bool
    """Whether the mark is a green list, of which this can be no better than the count."""


def goodness_of_fit(
    tally: Tally, mark: Mark, *, floor: float = FLOOR, draws: int = DRAWS, seed: int = 0
) -> GoodnessOfFit:
    """Test whether the scores of the distinct pairs said look like chance. Null and limits are in the module.

    Args:
        tally: the pairs.
        mark: whose key it is.
        floor: the smallest level looked at.
        draws: of the null, at most: fewer are made for very long texts.
        seed: of the draws.

    Raises:
        UsageError: the mark's hash is too weak for its law to hold, several pairs share one random quantity, or
            the law of its scores has no known tail.
    """
    if not mark.exact or mark.units(tally) is not None:
        raise UsageError(
            f"mark {mark.name}: the goodness-of-fit test wants pairs whose scores are independent, and this "
            "scheme's are not; use the score test, which falls back to the rank among decoy keys"
        )
    p = pair_p_values(tally, mark)[(tally.said > 0) & mark.tested(tally)]
    statistic, level = truncated_statistic(np.sort(p), floor)
    made = max(99, min(draws, _MOST_UNIFORMS // max(1, len(p)))) if len(p) else draws
    null = null_statistics(len(p), floor, made, seed)
    monte_carlo = math.log10((1 + int((null >= statistic * (1 - _ROUNDING)).sum())) / (1 + made))
    bound = log10_bound(statistic, pairs=len(p), floor=floor)
    return GoodnessOfFit(
        pairs=len(p),
        statistic=statistic,
        level=level,
        log10_p=min(0.0, min(monte_carlo, bound) + math.log10(2.0)),
        log10_p_monte_carlo=monte_carlo,
        log10_p_bound=bound,
        draws=made,
        degenerate=isinstance(mark, GreenListMark),
    )


def pair_p_values(tally: Tally, mark: Mark) -> FloatArray:
    """Return P(score >= the pair's) under the null, of each pair: float64 (n,), in (0, 1].

    Raises:
        UsageError: the law of the mark's scores has no known tail.
    """
    if isinstance(mark, GreenListMark):
        return _uniforms(mark, tally)
    tail: Any = getattr(mark.law, "upper_tail", None)
    if tail is None:
        raise UsageError(
            f"mark {mark.name}: the goodness-of-fit test wants the tail of one score's law, and "
            f"{type(mark.law).__name__} has none; use the score test"
        )
    return np.asarray(tail(mark.scores(tally)), dtype=np.float64)


def log10_bound(statistic: float, *, pairs: int, floor: float = FLOOR) -> float:
    """Return a rigorous upper bound of log10 P(T >= statistic), T of *pairs* independent uniforms.

    The argument is in the module's docstring. Cells are equally wide in ln(r / (1 - r)), about 1 / statistic, which is
    where finer ones cost as much by their number as they gain.

    >>> round(log10_bound(12.0, pairs=1000), 2)
    -1.22

    Raises:
        ValueError: *floor* is not between 0 and 1.
    """
    if not 0 < floor < 1:
        raise ValueError(f"floor: expected a level between 0 and 1, got {floor!r}")
    t = statistic * (1 - _ROUNDING)
    last = 1 / (1 + 2 * t / pairs) if pairs else 0.0
    if last <= floor or t <= 0:
        # Nowhere at or above the floor can F_n reach so high a boundary, or there is nothing to reach.
        return 0.0 if t <= 0 or not pairs else -math.inf
    ends = [math.log(floor / (1 - floor)), math.log(last / (1 - last))]
    cells = min(_MOST_CELLS, 1 + int((ends[1] - ends[0]) * max(1.0, t)))
    r = 1 / (1 + np.exp(-np.linspace(ends[0], ends[1], num=cells + 1)))
    low, high = r[:-1], r[1:]
    reached = np.minimum(1.0, low * (1 + np.sqrt(2 * (1 - high) * t / (pairs * high))) * (1 - _ROUNDING))
    exponent = pairs * (rel_entr(reached, low) + rel_entr(1 - reached, 1 - low))
    log_p = np.where(reached > low, -np.maximum(0.0, exponent * (1 - _ROUNDING)), 0.0)
    return min(0.0, float(np.logaddexp.reduce(log_p)) / math.log(10) + _ROUNDING)


@kernel
def truncated_statistic(p: FloatArray, floor: float) -> tuple[float, float]:
    """Return T and the level at which it is attained, of p-values sorted ascending, (n,)."""
    n = p.shape[0]
    best, level = 0.0, np.nan
    # Between two p-values F_n stands still and the term falls with r: the supremum is at a p-value or at the floor.
    below = 0
    while below < n and p[below] <= floor:
        below += 1
    if n > 0 and below / n > floor:
        best, level = n * (below / n - floor) ** 2 / (2 * floor * (1 - floor)), floor
    for i in range(below, n):
        r = p[i]
        if r >= 1.0:
            break
        excess = (i + 1) / n - r
        if excess > 0.0:
            term = n * excess * excess / (2 * r * (1 - r))
            if term > best:
                best, level = term, r
    return best, level


@kernel
def null_statistics(n: int, floor: float, draws: int, seed: int) -> FloatArray:
    """Return T of n independent uniforms, *draws* times: float64 (draws,)."""
    np.random.seed(seed)
    out = np.zeros(draws)
    gaps = np.empty(n + 1)
    for d in range(draws):
        # Sorted uniforms are partial sums of exponential gaps over their total (Renyi): nothing is sorted.
        total = 0.0
        for i in range(n + 1):
            gaps[i] = -np.log(1.0 - np.random.random())
            total += gaps[i]
        r, below, best = 0.0, 0, 0.0
        for i in range(n):
            r += gaps[i] / total
            if r <= floor:
                below = i + 1
                continue
            excess = (i + 1) / n - r
            if excess > 0.0 and r < 1.0:
                term = n * excess * excess / (2 * r * (1 - r))
                if term > best:
                    best = term
        if n > 0 and below / n > floor:
            best = max(best, n * (below / n - floor) ** 2 / (2 * floor * (1 - floor)))
        out[d] = best
    return out


def _uniforms(mark: GreenListMark, tally: Tally) -> FloatArray:
    """Return (u + 1/2) / 2^53 of each pair, u the upper 53 bits of its uniform: the small ones are green."""
    words, lanes = mark.scope.lane_words(), tally.lanes[tally.pair_window]
    out = np.empty(len(tally.tokens))
    for lane in np.unique(lanes):
        where = np.flatnonzero(lanes == lane)
        windows, tokens = tally.windows[tally.pair_window[where]], tally.tokens[where]
        u = kernels.uniform(words[lane, 0], words[lane, 1], windows, tokens)
        out[where] = ((u >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return out
