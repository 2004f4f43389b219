"""Tails of weighted sums of pair scores of any law, in log10: a rigorous bound, an estimate, and exact values.

Null hypothesis of everything here: S = sum_i a_i (phi_i - E phi), where the scores phi_i of *distinct* pairs are
independent draws of one law (`detect.score_law`) and the weights a_i were fixed without the key. Weights that were
chosen by looking at a score void every number below.

A small p says that the text depends on the key. It does not say who wrote it, when, or with what intent.

The methods are those of `detect.weighted_sums.WeightedSum`, which is the case of independent bits. Tied weights are
counted, not repeated.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from detect.binomial import log10_tail
from detect.score_law import GRID_SHIFT, Bernoulli, BinomialMean, DualExponential, Exponential, ScoreLaw

__all__ = ["WeightedScores", "log_gamma_tail"]

FloatArray = npt.NDArray[np.float64]

_LN10 = math.log(10.0)

#: As in `detect.weighted_sums`: for the rounding of a statistic, as a share of sum_i |a_i| + |S|.
_STATISTIC_ROUNDING = 1e-12

#: For the rounding of an exponent, as a share of its terms.
_EXPONENT_ROUNDING = 64 * 2.0**-53

_GRID_RATIO = 1.02
_GRID_FROM = 0.1
_NEAR_ZERO = 0.01

#: Largest t times the largest weight, where the law has all moments: beyond it nothing is gained.
_LARGEST = 2000.0

#: Share of the domain that is used, where it has an end.
_OF_DOMAIN = 1.0 - 1e-12

#: Most terms of the exact sum of two gammas.
_MOST_TERMS = 4_000_000


class WeightedScores:
    """Prepare the law of S = sum_i a_i (phi_i - E phi) for many statistics of the same weights.

    Null and assumptions are in the module's docstring.

    A thousand pairs, Gumbel-max, 20% more than expected:

    >>> from detect.score_law import Exponential
    >>> law = WeightedScores([1.0] * 1000, Exponential())
    >>> round(law.log10_exact(200.0), 3), round(law.log10_chernoff(200.0), 3), round(law.log10_saddlepoint(200.0), 3)
    (-8.89, -7.678, -8.89)

    Args:
        weights: a_i, any shape and any real numbers; zeros are left out.
        law: of one score.

    Attributes:
        n: number of weights other than zero.
        law: as given.
        sd: standard deviation of S.
        max: largest value of S; infinite where the law has no largest score that counts.
        min: smallest value of S.

    Raises:
        ValueError: a weight is not finite.
    """

    __slots__ = (
        "_allowance",
        "_end",
        "_max",
        "_scale",
        "_sd",
        "_start",
        "_step",
        "_times",
        "_total",
        "_values",
        "law",
        "max",
        "min",
        "n",
        "sd",
    )

    def __init__(self, weights: npt.ArrayLike, law: ScoreLaw) -> None:
        given = np.asarray(weights, dtype=np.float64).ravel()
        if not np.isfinite(given).all():
            raise ValueError(f"weight {int(np.argmin(np.isfinite(given)))} is not a finite number")
        values, counts = np.unique(given[given != 0.0], return_counts=True)
        largest = float(np.abs(values).max(initial=0.0)) or 1.0
        scale = math.ldexp(0.5, math.frexp(largest)[1])  # Dividing by a power of two is exact.
        values = values / scale
        times = counts.astype(np.float64)
        above, below = law.support[1] - law.mean, law.mean - law.support[0]
        positive, negative = times[values > 0] @ values[values > 0], -(times[values < 0] @ values[values < 0])
        up = (positive * above if positive else 0.0) + (negative * below if negative else 0.0)
        down = (positive * below if positive else 0.0) + (negative * above if negative else 0.0)
        low, high = law.domain
        most, least = float(values.max(initial=0.0)), float(-values.min(initial=0.0))
        limit = _LARGEST / (largest / scale)
        self.law: Final = law
        self.n: Final = int(counts.sum())
        self._values: Final = values
        self._times: Final = times
        self._scale: Final = scale
        self._total: Final = float(times @ np.abs(values))
        self._sd: Final = math.sqrt(law.variance * float(times @ (values * values)))
        self._max: Final = float(up)
        end = _OF_DOMAIN * min(high / most if most else math.inf, -low / least if least else math.inf)
        start = _OF_DOMAIN * min(-low / most if most else math.inf, high / least if least else math.inf)
        self._end: Final = limit if end == math.inf else end
        self._start: Final = -limit if start == math.inf else -start
        #: The law's K holds it for each weight; sums with weights of one sign do without.
        self._allowance: Final = 0.0 if most and least else self.n * law.sign_allowance
        self._step: Final = _lattice_step(np.abs(values)) * law.step
        self.sd: Final = scale * self._sd
        self.max: Final = scale * float(up)
        self.min: Final = -scale * float(down)

    def __repr__(self) -> str:
        return f"WeightedScores(n={self.n}, law={self.law!r}, sd={self.sd:.6g})"

    def log10_chernoff(self, statistic: float) -> float:
        """Return a rigorous upper bound of log10 P(S >= statistic): Chernoff's, at its best t.

        P(S >= s) <= exp(K(t) - t s) for every t >= 0 of the domain (H. Chernoff, Ann. Math. Statist. 23, 1952,
        theorem 1), so the optimisation need not be exact for the bound to hold. Rounding goes outward. t ends at 2000
        over the largest weight: at the largest value that S can take, which only an infinite t meets, weights below a
        thousandth of the largest are not used up, and the bound is above that value's probability (by 0.6 decades for
        300 Gaussian weights of bits).

        Returns:
            log10 of the bound, at most 0; 0.0 for a statistic that is not positive.

        Raises:
            ValueError: *statistic* is not a number, or above the largest value that S can take.
        """
        s = self._outward(statistic)
        if s <= 0.0:
            return 0.0
        return self._log10_at(self._solve(s), s)

    def log10_chernoff_many(self, statistics: npt.ArrayLike) -> FloatArray:
        """Return Chernoff's bound for many statistics, as of decoy keys, from one table over t.

        As rigorous as `log10_chernoff` and never below it but by rounding; neighbouring t differ by a factor of 1.02.

        Args:
            statistics: any shape.

        Returns:
            log10 of the bounds, at most 0, float64, of the same shape.

        Raises:
            ValueError: a statistic is not a number, or above the largest value that S can take.
        """
        given = np.asarray(statistics, dtype=np.float64)
        result = np.zeros(given.shape)
        if not given.size:
            return result
        largest = self._outward(float(given.max()))
        s = given / self._scale - _STATISTIC_ROUNDING * (self._total + np.abs(given) / self._scale)
        inside = s > 0.0
        if not inside.any():
            return result
        wanted = s[inside]
        low = self._solve(min(largest, _GRID_FROM * self._sd))
        high = max(low, self._solve(largest))
        grid = np.geomspace(low, high, 2 + int(math.log(high / low) / math.log(_GRID_RATIO)))
        bounds = [self._bound(t) for t in grid.tolist()]
        k, slack = np.array([bound for bound, _ in bounds]), np.array([rounding for _, rounding in bounds])
        # K is convex: the best point of the table is the first whose chord is steeper than the statistic.
        chord = np.diff(k) / np.maximum(np.diff(grid), np.finfo(np.float64).tiny)
        best = np.searchsorted(np.maximum.accumulate(chord), wanted)
        linear = grid[best] * wanted
        exponent = k[best] - linear + slack[best] + _EXPONENT_ROUNDING * linear
        result[inside] = np.minimum(0.0, exponent / _LN10)
        return result

    def log10_saddlepoint(self, statistic: float) -> float:
        """Return a saddlepoint estimate of log10 P(S >= statistic). An estimate, not a bound.

        Lugannani and Rice's tail in Barndorff-Nielsen's form, as in `WeightedSum.log10_saddlepoint`. Not to be trusted
        where a handful of weights carry the sum.

        Raises:
            ValueError: *statistic* is not a number, or above the largest value that S can take.
        """
        self._outward(statistic)
        s = float(statistic) / self._scale
        if not self.n or s * self._scale <= self.min * (1 - _STATISTIC_ROUNDING):
            return 0.0
        if abs(s) < _NEAR_ZERO * self._sd:
            return _log10_normal_tail(self._near_zero(s / self._sd))
        t = self._solve(s)
        exponent = min(0.0, self._k(t) - t * s)
        w = math.sqrt(-2.0 * exponent)
        if w == 0.0:
            return _log10_normal_tail(s / self._sd)
        curvature = float(self._times @ (self._values**2 * self.law.curvature(t * self._values)))
        log_v = math.log(abs(t)) + 0.5 * math.log(max(curvature, 1e-300)) + _log_lattice(t * self._step)
        estimate = _log10_normal_tail((w + (log_v - math.log(w)) / w) * math.copysign(1.0, s))
        return min(estimate, exponent / _LN10) if s > 0.0 else estimate

    def log10_exact(self, statistic: float) -> float:
        """Return log10 P(S >= statistic), where all weights are equal and positive and the law has a known sum.

        Exponential scores: the regularised upper incomplete gamma. Dual-key: the exact sum of two gammas, as the
        negative-binomial mixture of gammas (P. Moschopoulos, Ann. Inst. Statist. Math. 37, 1985), summed in logarithms
        with a geometric bound of what is left out. BinomialMean, and bits with gamma = k/256: the binomial tail. Right
        to 1e-6 decades down to 1e-2000; a server's 24-bit grid is taken outward (`GRID_SHIFT` a pair).

        Raises:
            ValueError: there is no exact value (`has_exact`); *statistic* is not a number, or above what S can be.
        """
        value = self._exact(statistic)
        if value is None:
            raise ValueError("no exact tail of this law with these weights: use log10_chernoff")
        return value

    def log10_tail(self, statistic: float) -> float:
        """Return the exact value where there is one, else Chernoff's bound: never below log10 P(S >= statistic)."""
        return self.tail(statistic)[0]

    def tail(self, statistic: float) -> tuple[float, bool]:
        """Return `log10_tail`, and whether it is the exact value."""
        value = self._exact(statistic)
        return (self.log10_chernoff(statistic), False) if value is None else (value, True)

    @property
    def has_exact(self) -> bool:
        """Whether `log10_exact` has a value (for all statistics, but for a few of extreme dual-key alphas)."""
        law = self.law
        known = isinstance(law, Exponential | DualExponential | BinomialMean) or (
            isinstance(law, Bernoulli) and (256 * law.gamma).is_integer()
        )
        return known and len(self._values) == 1 and bool(self._values[0] > 0)

    def _exact(self, statistic: float) -> float | None:
        if not self.has_exact:
            return None
        s = self._outward(statistic)
        law, n = self.law, self.n
        if isinstance(law, Bernoulli | BinomialMean):
            depth = law.depth if isinstance(law, BinomialMean) else 1
            wanted = depth * (s / float(self._values[0]) + n * law.mean)
            ones = min(n * depth, max(0, math.ceil(wanted - 1e-9)))
            return log10_tail(ones, pairs=n * depth, k=round(256 * law.mean))
        # The sum of the scores that is to be reached.
        y = s / float(self._values[0]) + n * (1.0 - GRID_SHIFT)
        if y <= 0.0:
            return 0.0
        large, small = law.scales if isinstance(law, DualExponential) else (1.0, 0.0)
        if small == 0.0:
            log_p: float | None = float(log_gamma_tail(float(n), y))
        elif small == large:
            log_p = float(log_gamma_tail(2.0 * n, y / small))
        else:
            log_p = _log_two_gammas(n, y, large, small)
        return None if log_p is None else min(0.0, log_p / _LN10)

    def _outward(self, statistic: float) -> float:
        """Return the statistic in units of the scale, less its rounding; refuse what S cannot reach."""
        s = float(statistic) / self._scale
        slack = _STATISTIC_ROUNDING * (self._total + abs(s))
        if not s - slack <= self._max:
            raise ValueError(f"the sum of these {self.n} weights is at most {self.max!r}, got {statistic!r}")
        return s - slack

    def _k(self, t: float) -> float:
        # An estimate does without what a bound has to allow for.
        return float(self._times @ self.law.cumulant(t * self._values)) - self.n * self.law.sign_allowance

    def _bound(self, t: float) -> tuple[float, float]:
        """Return K(t) and an allowance for its rounding."""
        x = t * self._values
        k = self.law.cumulant(x)
        terms = np.abs(k) + np.abs(x) * (1.0 + np.abs(self.law.slope(x)))
        return float(self._times @ k) - self._allowance, _EXPONENT_ROUNDING * float(self._times @ terms)

    def _log10_at(self, t: float, s: float) -> float:
        k, slack = self._bound(t)
        return min(0.0, (k - t * s + slack + _EXPONENT_ROUNDING * t * s) / _LN10)

    def _solve(self, s: float) -> float:
        """Return the t of the domain where K'(t) = *s*, of the sign of *s*: Newton's steps inside a bracket."""
        sign = math.copysign(1.0, s)
        end = self._end if s > 0 else -self._start
        low, high = 0.0, end
        t = min(abs(s) / self._sd**2, 0.5 * end) or 0.5 * end
        for _ in range(200):
            x = sign * t * self._values
            gap = abs(s) - sign * float(self._times @ (self._values * self.law.slope(x)))
            if gap > 0:
                low = t
            else:
                high = t
            if high - low <= 1e-9 * high:
                break
            curvature = float(self._times @ (self._values**2 * self.law.curvature(x)))
            new = t + gap / curvature if curvature > 0 else math.inf
            if abs(new - t) <= 1e-9 * t and low <= new <= high:
                return sign * new
            if not low < new < high:
                new = 0.5 * (low + high)
            t = new
        return sign * t  # Any t gives a valid bound.

    def _near_zero(self, z: float) -> float:
        """Return r* for z = s / sd near 0: its series to first order, as in `WeightedSum`."""
        third = self.law.third * float(self._times @ self._values**3) / self._sd**3
        fourth = self.law.fourth * float(self._times @ self._values**4) / self._sd**4
        step = self._step / self._sd
        w = z - third * z * z / 6.0
        smooth = third / 6.0 + w * (fourth / 8.0 - 7.0 / 36.0 * third**2)
        return w + smooth - step / 2.0 + w * (step * third / 6.0 + step * step / 24.0)


def log_gamma_tail(shape: float, x: float) -> float:
    """Return ln P(G >= x), G gamma with this shape and scale 1: right where the value itself underflows.

    Legendre's continued fraction (DLMF 8.9.2) by Lentz's method beyond the mean, where it converges the faster the
    further out; scipy's below.

    >>> round(log_gamma_tail(1.0, 5000.0), 9)
    -5000.0
    """
    from scipy.special import gammaincc  # Slow to import.

    if x <= 0.0:
        return 0.0
    if x < shape + 8.0 * math.sqrt(shape) + 8.0:
        value = float(gammaincc(shape, x))
        if value > 1e-30:
            return math.log(value)
    tiny = 1e-300
    b = x + 1.0 - shape
    c, d = 1.0 / tiny, 1.0 / b
    h = d
    for i in range(1, 1_000_000):
        an = -i * (i - shape)
        b += 2.0
        d = an * d + b
        c = b + an / c
        d = 1.0 / (d if d != 0.0 else tiny)
        c = c if c != 0.0 else tiny
        step = d * c
        h *= step
        if abs(step - 1.0) < 1e-15:
            break
    # x^shape e^-x / Gamma(shape) as shape * pi_shape(x), by Loader's form of the Poisson probability: no cancellation.
    return math.log(h) + math.log(shape) + _log_poisson(shape, x)


def _log_poisson(k: float, mean: float) -> float:
    """Return ln(mean^k e^-mean / k!): C. Loader, "Fast and accurate computation of binomial probabilities", 2000."""
    if k == 0.0:
        return -mean
    return -_stirling_error(k) - _deviance(k, mean) - 0.5 * math.log(2.0 * math.pi * k)


def _stirling_error(k: float) -> float:
    if k < 16.0:
        return math.lgamma(k + 1.0) - ((k + 0.5) * math.log(k) - k + 0.5 * math.log(2.0 * math.pi))
    square = k * k
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / (1188 * square)) / square) / square) / square) / k


def _deviance(k: float, mean: float) -> float:
    """Return k ln(k / mean) + mean - k."""
    excess = (mean - k) / k
    if abs(excess) < 0.1:
        # mean - k - k ln1p(excess), by the series of excess - ln1p(excess).
        total, power = 0.0, excess * excess
        for j in range(2, 40):
            total += power / j if j % 2 == 0 else -power / j
            power *= excess
        return k * total
    return mean - k - k * math.log(mean / k)


def _log_two_gammas(n: int, y: float, large: float, small: float) -> float | None:
    """Return ln P(large G1 + small G2 >= y), G1 and G2 gamma with shape n; None where it would take too many terms.

    P = sum_k w_k Q(2n + k, y / small), w_k the negative-binomial chances of k failures before n successes of
    probability c = small / large. Both factors are log-concave in k, so that the ratio of neighbouring terms falls and
    what is left out on either side is below a geometric series.
    """
    from scipy.special import gammaln  # Slow to import.

    c, x = small / large, y / small
    log_c, log_rest = math.log(c), math.log1p(-c)

    def log_weight(k: float) -> float:
        return math.lgamma(n + k) - math.lgamma(n) - math.lgamma(k + 1.0) + n * log_c + k * log_rest

    def grows(k: int) -> bool:
        """Tell whether term k + 1 is above term k."""
        tail = log_gamma_tail(2.0 * n + k, x)
        new = np.logaddexp(tail, _log_poisson(2.0 * n + k, x))
        return bool(math.log((n + k) / (k + 1.0)) + log_rest + float(new) - tail > 0.0)

    low, high = 0, max(1, int(n / c))
    while grows(high):
        low, high = high, 2 * high
        if high > 1 << 50:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if grows(middle) else (low, middle)
    peak = high if low or grows(0) else 0
    top = log_weight(peak) + log_gamma_tail(2.0 * n + peak, x)
    width = 64 + int(4.0 * math.sqrt(peak + 1.0))
    while True:
        first, last = max(0, peak - width), peak + width
        edges = [first, last] if first else [last]
        if all(log_weight(k) + log_gamma_tail(2.0 * n + k, x) < top - 46.0 for k in edges):
            break
        width *= 2
        if width > _MOST_TERMS:
            return None
    k = np.arange(first, last + 1, dtype=np.float64)
    shapes = 2.0 * n + k[:-1]
    steps = shapes * math.log(x) - x - gammaln(shapes + 1.0)
    tails = np.logaddexp.accumulate(np.concatenate([[log_gamma_tail(2.0 * n + first, x)], steps]))
    terms = gammaln(n + k) - math.lgamma(n) - gammaln(k + 1.0) + n * log_c + k * log_rest + tails
    total = float(np.logaddexp.reduce(terms))
    outside = []
    for edge, inner in ((terms[-1], terms[-2]), (terms[0], terms[1])) if first else ((terms[-1], terms[-2]),):
        ratio = math.exp(min(-1e-12, float(edge - inner)))
        outside.append(float(edge) + math.log(ratio) - math.log1p(-ratio))
    # gammaln of these arguments and the products beside it are right to some units of the last place.
    largest = float(gammaln(2.0 * n + last + 1.0)) + 2.0 * n * abs(math.log(max(x, 2.0))) + last * math.log(max(x, 2.0))
    return float(np.logaddexp.reduce([total, *outside])) + 8 * 2.0**-53 * (largest + x)


def _log10_normal_tail(z: float) -> float:
    from scipy.special import log_ndtr  # 0.15 s to import, and the bound does not need it.

    return min(0.0, float(log_ndtr(-z)) / _LN10)


def _lattice_step(size: FloatArray) -> float:
    """Return the smallest size if every size is a whole multiple of it, else 0."""
    smallest = float(size.min(initial=2.0))
    if smallest < 1e-6:
        return 0.0
    multiple = size / smallest
    return smallest if bool((np.abs(multiple - np.rint(multiple)) <= 1e-9).all()) else 0.0


def _log_lattice(x: float) -> float:
    """Return ln((1 - exp(-x)) / x) of either sign of x, and 0 at 0."""
    if x == 0.0:
        return 0.0
    magnitude = abs(x)
    return math.log(-math.expm1(-magnitude) / magnitude) + max(0.0, -x)
