"""The exact test of a green count, in log10, and an interval for the green share.

Null hypothesis of everything here: the key was fixed without the text being looked at, and the text is
independent of the key. Then the green bits of *distinct* (window, token) pairs are independent, each
green with probability gamma = k/256, and their sum is Binomial(pairs, gamma), whatever the text says.
Counting one pair twice breaks this.

A small p says that the text depends on the key. It does not say who wrote it, when, or with what intent.

The leading term is Loader's saddle-point form of the binomial probability (C. Loader, "Fast and accurate
computation of binomial probabilities", 2000, section 2): a difference of lgammas cancels 2e10 down to 10
at 1e9 pairs. The tail beyond it is summed as ratios of neighbouring probabilities (Feller, "An
introduction to probability theory", volume I, chapter VI.3), which fall from the first on, so that what
is left out is below a geometric series. Some 10 * sqrt(pairs) terms at most, and a handful far out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_PAIRS", "green_interval", "log10_tail", "log10_tails", "min_log10_p"]

#: Largest number of pairs taken: beyond it k * pairs / 256 and the ratios' sum lose exactness and time.
MAX_PAIRS = 1 << 40

_LN10 = math.log(10.0)
_HALF_LN_2PI = 0.5 * math.log(2.0 * math.pi)


def log10_tail(green: int, *, pairs: int, k: int) -> float:
    """Return log10 of P(Binomial(pairs, k/256) >= green).

    The null and its assumptions are in the module's docstring. Right within 1e-6 decades for up to 1e9
    pairs, from p = 1 down to the smallest p there is (k^pairs / 256^pairs). Never above 0.

    A small p does not say how much of the text is marked, nor by whom: it measures dependence on one key.

    60 of 80 distinct pairs green where 20 were expected:

    >>> round(log10_tail(60, pairs=80, k=64), 3)
    -20.024
    >>> round(log10_tail(500_500_000, pairs=1_000_000_000, k=128), 3)
    -219.046

    Args:
        green: number of distinct pairs that are green.
        pairs: number of distinct pairs looked at.
        k: 256 times the share of green tokens, 1..255.

    Raises:
        ValueError: *k*, *pairs* or *green* is out of its range.
    """
    _check(green, green, pairs=pairs, k=k)
    return _tails([green], pairs=pairs, k=k)[0]


def log10_tails(green: npt.NDArray[np.integer], *, pairs: int, k: int) -> npt.NDArray[np.float64]:
    """Return `log10_tail` of each of many counts out of the same *pairs*, as under decoy keys.

    Each distinct count is computed once, from the sum of the next larger one.

    >>> log10_tails(np.array([0, 8, 4, 8]), pairs=8, k=128).round(3).tolist()
    [0.0, -2.408, -0.196, -2.408]

    Args:
        green: counts, any shape, any integer dtype.
        pairs: number of distinct pairs looked at, the same for every count.
        k: 256 times the share of green tokens, 1..255.

    Returns:
        log10 p, float64, of the shape of *green*.

    Raises:
        ValueError: *k*, *pairs* or one of *green* is out of its range, or the counts are not integers.
    """
    counts = np.asarray(green)
    if counts.dtype.kind not in "iu":
        raise ValueError(f"green counts are integers, got an array of {counts.dtype}")
    distinct, place = np.unique(counts, return_inverse=True)
    if not distinct.size:
        return np.zeros(counts.shape)
    _check(int(distinct[0]), int(distinct[-1]), pairs=pairs, k=k)
    return np.array(_tails(distinct.tolist(), pairs=pairs, k=k))[place].reshape(counts.shape)


def min_log10_p(pairs: int, *, k: int) -> float:
    """Return the smallest log10 p that *pairs* pairs can give: that of every one of them green.

    A text for which this is above the level asked for is too short to tell.

    >>> min_log10_p(10, k=64) > -6.1
    True
    """
    _check(0, 0, pairs=pairs, k=k)
    return pairs * math.log10(k / 256) + 0.0


def green_interval(green: int, *, pairs: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of the probability that a pair is green.

    Assumes that the pairs are independent and alike. Covers the true share with probability *level* or
    more, whatever it is (Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26,
    1934). In a text that is partly marked pairs are not alike; the interval is then of their mean share,
    and no narrower than it need be (Hoeffding, Ann. Math. Statist. 27, 1956, theorem 5).

    >>> low, high = green_interval(60, pairs=80)
    >>> round(low, 4), round(high, 4)
    (0.6406, 0.8401)
    >>> green_interval(0, pairs=0)
    (0.0, 1.0)

    Raises:
        ValueError: *pairs* or *green* is out of its range, or *level* is not between 0 and 1.
    """
    _check(green, green, pairs=pairs, k=1)
    if not 0.0 < level < 1.0:
        raise ValueError(f"a level lies between 0 and 1, got {level}")
    from scipy.special import betaincinv  # 0.15 s to import, and no other function here needs it.

    outside = (1.0 - level) / 2.0
    low = float(betaincinv(green, pairs - green + 1, outside)) if green > 0 else 0.0
    high = 1.0 - float(betaincinv(pairs - green, green + 1, outside)) if green < pairs else 1.0
    return low, high


def _check(least: int, most: int, *, pairs: int, k: int) -> None:
    if not 1 <= k <= 255:
        raise ValueError(f"k is a whole number from 1 to 255 (gamma = k/256), got {k}")
    if not 0 <= pairs <= MAX_PAIRS:
        raise ValueError(f"the number of pairs lies between 0 and 2^40, got {pairs}")
    if least < 0 or most > pairs:
        raise ValueError(f"a green count lies between 0 and the {pairs} pairs, got {least if least < 0 else most}")


def _tails(greens: Sequence[int], *, pairs: int, k: int) -> list[float]:
    """Return log10 P(X >= green) for each of *greens*, which ascend and are distinct."""
    # Above the mean the tail is summed; at or below it, the tail on the other side, which is the smaller.
    above = [green for green in greens if 256 * green > pairs * k]
    below = [green for green in greens if 0 < 256 * green <= pairs * k]
    zero = [0.0] * (len(greens) - len(above) - len(below))
    reds = [pairs - green + 1 for green in below]
    lower = [math.log1p(-math.exp(log_p)) for log_p in _log_upper_tails(reds, pairs=pairs, k=256 - k)]
    upper = _log_upper_tails(above[::-1], pairs=pairs, k=k)[::-1]
    # + 0.0 makes a zero of -0.0.
    result = zero + [log_p / _LN10 + 0.0 for log_p in lower + upper]
    if greens[-1] == pairs:
        result[-1] = min_log10_p(pairs, k=k)
    return result


def _log_upper_tails(greens: Sequence[int], *, pairs: int, k: int) -> list[float]:
    """Return ln P(X >= green) for each of *greens*, which descend, are distinct, and are above the mean."""
    result = []
    known, known_ratio = pairs, 1.0
    for green in greens:
        known_ratio = _tail_ratio(green, pairs=pairs, k=k, known=known, known_ratio=known_ratio)
        known = green
        result.append(_log_probability(green, pairs=pairs, k=k) + math.log(known_ratio))
    return result


def _tail_ratio(green: int, *, pairs: int, k: int, known: int, known_ratio: float) -> float:
    """Return P(X >= green) / P(X = green), given the same ratio at *known* >= *green*.

    P(X = x + 1) / P(X = x) = (pairs - x) k / ((x + 1) (256 - k)) falls in x and is below 1 above the mean.
    Rounding grows by at most 3 ulp a term: 1e-10 after the 2e5 terms that 1e9 pairs can need.
    """
    odds = k / (256 - k)
    total = 1.0
    term = 1.0
    at, block = green, 32
    while at < known:
        x = np.arange(at, min(at + block, known), dtype=np.float64)
        step = (pairs - x) / (x + 1.0) * odds
        terms = term * np.cumprod(step)
        at += len(x)
        term, ratio = float(terms[-1]), float(step[-1])
        if at == known:
            return total + float(terms[:-1].sum()) + term * known_ratio
        total += float(terms.sum())
        if term * ratio < 1e-15 * (1.0 - ratio) * total:
            break  # The rest is below the geometric series term * (ratio + ratio^2 + ...).
        block = min(4 * block, 1 << 16)
    return total if green < known else known_ratio


def _log_probability(x: int, *, pairs: int, k: int) -> float:
    """Return ln P(X = x) in Loader's form, his section 2 and the appendix's `dbinom`."""
    gamma, other = k / 256, (256 - k) / 256
    if x == pairs:
        return pairs * math.log(gamma)
    if x == 0:
        return pairs * math.log(other)
    stirling = _stirling_error(pairs) - _stirling_error(x) - _stirling_error(pairs - x)
    # gamma has 8 bits, so both means are exact and only the deviances round.
    deviance = _deviance(x, pairs * gamma) + _deviance(pairs - x, pairs * other)
    return stirling - deviance - _HALF_LN_2PI + 0.5 * math.log(pairs / (x * (pairs - x)))


def _stirling_error(n: int) -> float:
    """Return ln n! - ln(sqrt(2 pi n) (n / e)^n), Loader's delta(n)."""
    if n < 16:  # lgamma is below 28 here, and the difference right to 1e-14.
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - _HALF_LN_2PI
    square = float(n) * n
    # Abramowitz and Stegun 6.1.41; the next term is below 2e-15 at n = 16.
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / square) / square) / square) / square) / n


def _deviance(x: int, mean: float) -> float:
    """Return x ln(x / mean) + mean - x without cancellation, Loader's bd0."""
    gap = x - mean
    if abs(gap) >= 0.1 * (x + mean):
        return x * math.log(x / mean) - gap
    # ln(x / mean) = 2 atanh(v), summed as its series: |v| < 0.1, so eight terms leave less than 1e-17.
    v = gap / (x + mean)
    series = sum(v ** (2 * j) / (2 * j + 1) for j in range(8, 0, -1))
    return gap * v + 2.0 * x * v * series
