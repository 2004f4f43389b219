"""Tails of weighted sums of green bits, in log10: a rigorous bound, an estimate, and the exact value.

Null hypothesis of everything here: S = sum_i a_i (g_i - gamma), where the green bits g_i of *distinct*
pairs are independent Bernoulli(gamma) and the weights a_i were fixed without the key. They may depend on
the text, on reference models and on each other, and be negative, tied or zero. Weights that were chosen
by looking at a bit of the key void every number below.

A small p says that the text depends on the key. It does not say who wrote it, when, or with what intent.

Everything is computed from the deficit D = max S - S = sum_i |a_i| B_i, where B_i is 1 when bit i is not
the one its weight asks for: B_i ~ Bernoulli(b_i), b_i = 1 - gamma for a positive weight and gamma for a
negative one. S has the cumulant function K(t) = t max S + L(t), L(t) = sum_i ln(1 - b_i + b_i exp(-t |a_i|)),
in which nothing overflows however large t is. Tied weights are counted, not repeated.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["EXACT_LIMIT", "WeightedSum"]

#: Most weights other than zero that `WeightedSum.log10_exact` takes: two halves of 2^20 sums.
EXACT_LIMIT = 40

FloatArray = npt.NDArray[np.float64]

_LN10 = math.log(10.0)

#: Allowance for the rounding of a statistic that the caller summed, as a share of sum_i |a_i|:
#: a running float64 sum of 1e6 terms is typically off by 1e-13 of it.
_STATISTIC_ROUNDING = 1e-12

#: Allowance for the rounding of an exponent, as a share of the two terms it is the difference of:
#: numpy's pairwise sum of 1e6 terms is off by at most about 30 half-ulps, a logarithm by one or two.
_EXPONENT_ROUNDING = 64 * 2.0**-53

#: Neighbouring points of the table of `log10_chernoff_many` differ by this factor.
_GRID_RATIO = 1.02

#: The table starts where the optimum is for this many standard deviations.
_GRID_FROM = 0.1

#: Statistics closer to zero than this many standard deviations use the series of what is 0/0 at zero.
_NEAR_ZERO = 0.01


class _Side(NamedTuple):
    """One tail's deficit: |a_i| in units of the scale, b_i, and how many weights share the two."""

    size: FloatArray
    miss: FloatArray
    times: FloatArray

    def slope(self, t: float) -> tuple[float, float]:
        """Return -L'(t) and L''(t)."""
        tilted = self.miss * np.exp(-t * self.size)
        tilted /= 1.0 - self.miss + tilted
        mean = self.times * self.size * tilted
        return float(mean.sum()), float((mean * self.size * (1.0 - tilted)).sum())

    def log_transform(self, t: float) -> float:
        """Return L(t) = ln E exp(-t D)."""
        return float((self.times * np.log1p(self.miss * np.expm1(-t * self.size))).sum())

    def solve(self, deficit: float, *, start: float) -> float:
        """Return the t > 0 where -L'(t) = *deficit*: Newton's steps on ln(-L'), inside a bracket."""
        low, high, t = 0.0, math.inf, start
        for _ in range(200):
            mean, variance = self.slope(t)
            if mean > deficit:
                low = t
            else:
                high = t
            # ln(-L') is nearly straight in t both near the mean and where the large weights are spent.
            step = math.log(mean / deficit) * mean / variance if mean > 0.0 and variance > 0.0 else math.inf
            new = t + step
            if abs(step) <= 1e-6 * t:
                return new
            if not low < new < high or new > 64.0 * t:
                new = 8.0 * t if high == math.inf else math.sqrt(low * high) if low > 0.0 else high / 8.0
            t = new
        return t  # Any t gives a valid bound.


class WeightedSum:
    """Prepare the law of S = sum_i a_i (g_i - gamma) for many statistics of the same weights.

    Null and assumptions are in the module's docstring.

    Ten pairs, three of them with the weight 1.5; nine are green, those three among them:

    >>> law = WeightedSum([0.5] * 7 + [1.5] * 3, gamma=0.5)
    >>> statistic = (6 * 0.5 + 3 * 1.5) - 0.5 * 8.0
    >>> round(law.log10_exact(statistic), 3), round(law.log10_chernoff(statistic), 3)
    (-2.107, -1.758)
    >>> round(law.log10_saddlepoint(statistic), 3)
    -2.093

    A sum of fair signs, sum_i s_i y_i with s_i = +-1, is ``WeightedSum(2 * y, gamma=0.5)``.

    Args:
        weights: a_i, any shape and any real numbers; zeros are left out.
        gamma: probability that a pair is green under the null, strictly between 0 and 1.

    Attributes:
        n: number of weights other than zero.
        gamma: as given.
        sd: standard deviation of S, sqrt(gamma (1 - gamma) sum a_i^2).
        max: largest value of S, with every positive weight green and every negative one not.
        min: smallest value of S.

    Raises:
        ValueError: a weight is not finite, or *gamma* is not between 0 and 1.
    """

    __slots__ = ("_down", "_scale", "_sd", "_step", "_total", "_up", "gamma", "max", "min", "n", "sd")

    def __init__(self, weights: npt.ArrayLike, *, gamma: float) -> None:
        given = np.asarray(weights, dtype=np.float64).ravel()
        if not 0.0 < gamma < 1.0:
            raise ValueError(f"gamma lies strictly between 0 and 1, got {gamma}")
        if not np.isfinite(given).all():
            raise ValueError(f"weight {int(np.argmin(np.isfinite(given)))} is not a finite number")
        values, counts = np.unique(given[given != 0.0], return_counts=True)
        # Dividing by a power of two is exact; sizes are then below 2.
        scale = math.ldexp(0.5, math.frexp(float(np.abs(values).max(initial=0.0)) or 1.0)[1])
        size = np.abs(values) / scale
        times = counts.astype(np.float64)
        miss = np.where(values > 0.0, 1.0 - gamma, gamma)
        weight = times * size
        sd = math.sqrt(gamma * (1.0 - gamma) * float((weight * size).sum()))
        self.n: Final = int(counts.sum())
        self.gamma: Final = gamma
        self.sd: Final = scale * sd
        self.max: Final = scale * float((weight * miss).sum())
        self.min: Final = -scale * float((weight * (1.0 - miss)).sum())
        self._scale: Final = scale
        self._sd: Final = sd
        self._total: Final = float(weight.sum())
        self._step: Final = _lattice_step(size)
        self._up: Final = _Side(size, miss, times)
        self._down: Final = _Side(size, 1.0 - miss, times)

    def __repr__(self) -> str:
        return f"WeightedSum(n={self.n}, gamma={self.gamma}, sd={self.sd:.6g}, max={self.max:.6g})"

    def log10_chernoff(self, statistic: float) -> float:
        """Return a rigorous upper bound of log10 P(S >= statistic): Chernoff's, at its best t.

        P(S >= s) <= exp(K(t) - t s) for every t >= 0 (H. Chernoff, Ann. Math. Statist. 23, 1952, theorem
        1), so the optimisation need not be exact for the bound to hold. At the largest value of S it is
        that value's probability; elsewhere it is above the truth by a factor of about 2.5 t sd, which is
        0.8 decades at p = 1e-2, 1.1 at 1e-6 and 1.5 at 1e-40.

        Rounding goes outward: a statistic counts as lower by 1e-12 of sum |a_i|, the exponent as higher
        by 64 half-ulps of its terms. Together below 1e-6 decades down to p = 1e-10000.

        Returns:
            log10 of the bound, at most 0; 0.0 for a statistic that is not positive.

        Raises:
            ValueError: *statistic* is not a number, or above the largest value that S can take.
        """
        deficit = self._outward_deficit(statistic)
        if deficit >= self._up_max:
            return 0.0
        if deficit <= 2.0 * self._slack:
            return self._log10_at_max()
        t = self._up.solve(deficit, start=(self._up_max - deficit) / self._sd**2)
        return _outward_log10(t * deficit, self._up.log_transform(t))

    def log10_chernoff_many(self, statistics: npt.ArrayLike) -> FloatArray:
        """Return Chernoff's bound for many statistics, as of decoy keys, from one table over t.

        As rigorous as `log10_chernoff` and never below it but by rounding. Neighbouring t differ by a
        factor of 1.02, and t s - K(t) is concave and 0 at 0; so for a statistic above 0.1 sd the log of
        the bound is at least 1/1.02 of the best one's. Where S is near Gaussian it is 0.9999 of it.

        Args:
            statistics: any shape.

        Returns:
            log10 of the bounds, at most 0, float64, of the same shape.

        Raises:
            ValueError: a statistic is not a number, or above the largest value that S can take.
        """
        values = np.asarray(statistics, dtype=np.float64)
        if not values.size:
            return np.zeros(values.shape)
        self._outward_deficit(float(values.max()))  # Refuses what is too large; NaN comes through max().
        deficit = self._up_max - values / self._scale + self._slack
        result = np.zeros(values.shape)
        at_max = (deficit <= 2.0 * self._slack) & (deficit < self._up_max)
        if at_max.any():
            result[at_max] = self._log10_at_max()
        inside = (deficit < self._up_max) & ~at_max
        if not inside.any():
            return result
        wanted = deficit[inside]
        least = float(wanted.min())
        most = max(least, self._up_max - _GRID_FROM * self._sd)
        variance = self._sd**2
        low = self._up.solve(most, start=(self._up_max - most) / variance)
        high = self._up.solve(least, start=(self._up_max - least) / variance)
        points = 2 + int(math.log(max(high / low, 1.0)) / math.log(_GRID_RATIO))
        grid = np.geomspace(low, max(low, high), points)
        transform = np.array([self._up.log_transform(t) for t in grid.tolist()])
        # L is convex: the best point of the table is the first whose chord is less steep than the deficit.
        chord = np.diff(transform) / np.maximum(np.diff(grid), np.finfo(np.float64).tiny)
        best = np.searchsorted(chord, -wanted)
        linear, log_transform = grid[best] * wanted, transform[best]
        exponent = linear + log_transform + _EXPONENT_ROUNDING * (linear - log_transform)
        result[inside] = np.minimum(0.0, exponent / _LN10)
        return result

    def log10_saddlepoint(self, statistic: float) -> float:
        """Return a saddlepoint estimate of log10 P(S >= statistic). An estimate, not a bound.

        Lugannani and Rice's tail (Adv. Appl. Probab. 12, 1980) in Barndorff-Nielsen's form, which stays
        in (0, 1) and in logarithms: Phi(-r*), r* = w + ln(v / w) / w, with w = sgn(t) sqrt(2 (t s - K(t))),
        v = t sqrt(K''(t)) at the t where K'(t) = s (H. E. Daniels, "Tail probability approximations", Int.
        Statist. Rev. 55, 1987, sections 4 and 7). Where all weights are whole multiples of the smallest,
        as counts are, v has (1 - exp(-t step)) / step for t: his first continuity correction, section 6.

        Within a few percent of p from some twenty weights of comparable size on, far out as well. Not to
        be trusted where a handful of weights carry the sum, or where weights are tied without being
        multiples of the smallest. Reported beside the bound, never instead of it.

        Raises:
            ValueError: *statistic* is not a number, or above the largest value that S can take.
        """
        if self._outward_deficit(statistic) <= 2.0 * self._slack:
            return self._log10_at_max() if self.n else 0.0
        s = statistic / self._scale
        if s + self._down_max <= self._slack:
            return 0.0
        if abs(s) < _NEAR_ZERO * self._sd:
            return _log10_normal_tail(self._near_zero(s / self._sd))
        side, deficit = (self._up, self._up_max - s) if s > 0.0 else (self._down, self._down_max + s)
        t = side.solve(deficit, start=abs(s) / self._sd**2)
        exponent = min(0.0, t * deficit + side.log_transform(t))
        w = math.sqrt(-2.0 * exponent)
        log_v = math.log(t) + 0.5 * math.log(side.slope(t)[1]) + _log_lattice(math.copysign(t * self._step, s))
        root = (w + (log_v - math.log(w)) / w) * math.copysign(1.0, s)
        estimate = _log10_normal_tail(root)
        return min(estimate, exponent / _LN10) if s > 0.0 else estimate

    def log10_exact(self, statistic: float) -> float:
        """Return log10 P(S >= statistic) by enumeration, for at most `EXACT_LIMIT` weights.

        The sums of the two halves of the weights are listed and matched (Horowitz and Sahni, "Computing
        partitions with applications to the knapsack problem", J. ACM 21, 1974, section 3). A sum counts
        as reaching the statistic when it falls short by 1e-12 of sum |a_i|: outward, as in the bound.

        Raises:
            ValueError: there are more than `EXACT_LIMIT` weights other than zero; *statistic* is not a
                number, or above the largest value that S can take.
        """
        if self.n > EXACT_LIMIT:
            raise ValueError(f"at most {EXACT_LIMIT} weights can be enumerated, got {self.n}: use log10_chernoff")
        deficit = self._outward_deficit(statistic)
        repeats = self._up.times.astype(np.int64)
        size, miss = np.repeat(self._up.size, repeats), np.repeat(self._up.miss, repeats)
        half_sum, half_p = _subset_sums(size[::2], miss[::2])
        other_sum, other_p = _subset_sums(size[1::2], miss[1::2])
        order = np.argsort(other_sum, kind="stable")
        at_most = np.concatenate([[0.0], np.cumsum(other_p[order])])
        reached = at_most[np.searchsorted(other_sum[order], deficit - half_sum, side="right")]
        some = reached > 0.0
        # In logarithms: 40 greens at gamma = 1e-9 are below the smallest float64.
        log_p = float(np.logaddexp.reduce(np.log(half_p[some]) + np.log(reached[some])))
        return min(0.0, log_p / _LN10)

    @property
    def _slack(self) -> float:
        return _STATISTIC_ROUNDING * self._total

    @property
    def _up_max(self) -> float:
        return self.max / self._scale

    @property
    def _down_max(self) -> float:
        return -self.min / self._scale

    def _outward_deficit(self, statistic: float) -> float:
        """Return (max S - statistic) / scale, plus the slack; refuse what S cannot reach."""
        deficit = self._up_max - float(statistic) / self._scale + self._slack
        if not deficit >= 0.0:
            raise ValueError(f"the sum of these {self.n} weights is at most {self.max!r}, got {statistic!r}")
        return deficit

    def _log10_at_max(self) -> float:
        """Return log10 of the chance that every weight which is above the slack gets the bit it asks for."""
        matters = self._up.size > 2.0 * self._slack
        log_p = float((self._up.times * np.log1p(-self._up.miss))[matters].sum())
        return _outward_log10(0.0, log_p)

    def _near_zero(self, z: float) -> float:
        """Return r* for z = s / sd near 0, where ln(v / w) / w is 0/0: its series to first order in w."""
        size, miss, times = self._up
        variance = self.gamma * (1.0 - self.gamma)
        third = variance * float((times * (2.0 * miss - 1.0) * size**3).sum()) / self._sd**3
        fourth = variance * (1.0 - 6.0 * variance) * float((times * size**4).sum()) / self._sd**4
        step = self._step / self._sd
        w = z - third * z * z / 6.0
        smooth = third / 6.0 + w * (fourth / 8.0 - 7.0 / 36.0 * third**2)
        return w + smooth - step / 2.0 + w * (step * third / 6.0 + step * step / 24.0)


def _outward_log10(linear: float, log_transform: float) -> float:
    """Return log10 of exp(linear + log_transform), rounded up: linear >= 0 >= log_transform."""
    exponent = linear + log_transform + _EXPONENT_ROUNDING * (linear - log_transform)
    return min(0.0, exponent / _LN10)


def _log10_normal_tail(z: float) -> float:
    from scipy.special import log_ndtr  # 0.15 s to import, and the bound does not need it.

    return min(0.0, float(log_ndtr(-z)) / _LN10)


def _lattice_step(size: FloatArray) -> float:
    """Return the smallest size if every size is a whole multiple of it, else 0."""
    smallest = float(size.min(initial=2.0))
    if smallest < 1e-6:  # Sizes go up to 1 to 2: such a step would show in nothing.
        return 0.0
    multiple = size / smallest
    return smallest if bool((np.abs(multiple - np.rint(multiple)) <= 1e-9).all()) else 0.0


def _log_lattice(x: float) -> float:
    """Return ln((1 - exp(-x)) / x) of either sign of x, and 0 at 0."""
    if x == 0.0:
        return 0.0
    magnitude = abs(x)
    return math.log(-math.expm1(-magnitude) / magnitude) + max(0.0, -x)


def _subset_sums(size: FloatArray, miss: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the deficit of each of the 2^n outcomes and its probability."""
    sums, chances = np.zeros(1), np.ones(1)
    for step, chance in zip(size.tolist(), miss.tolist(), strict=True):
        sums = np.concatenate([sums, sums + step])
        chances = np.concatenate([chances * (1.0 - chance), chances * chance])
    return sums, chances
