r"""Laws of one pair's score under the null hypothesis, by their cumulant functions.

Null: the text is independent of the key. Then the scores phi of distinct pairs are independent draws of one law, which
the marking scheme fixes whatever the text says. A law gives the *centred cumulant function*
K(t) = ln E exp(t (phi - E phi)) and its first two derivatives; the tail bounds, the e-values and the saddlepoint need
nothing else of it. K is never below the truth: where a server computes its uniform on a grid, or draws its green list
without replacement, the difference is taken outward and the docstring says by how much. Of the derivatives it is left
out, since bounds hold at any t.

A small p made of these says that the text depends on the key. It does not say who wrote it, when, or with what intent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "GRID_SHIFT",
    "Bernoulli",
    "BinomialMean",
    "DualExponential",
    "Exponential",
    "FixedSizeGreenList",
    "ScoreLaw",
]

FloatArray = npt.NDArray[np.float64]

#: A uniform of 24 bits, rounded to float32, makes -ln(1 - u) larger than a continuous one would by at most this.
#: Coupled bin by bin: u exceeds the bin's lower end m / 2^24 by at most (1 - 2^-k) / 2^24 for u in [2^-k-1, 2^-k),
#: where the slope 1 / (1 - u) is at most 1 / (1 - 2^-k), and by nothing for u >= 1/2. The product is 2^-24; twice
#: that is taken, for the curvature over a bin and the logarithm's rounding.
GRID_SHIFT = 2.0**-23

_GRID = 2.0**-24


class ScoreLaw(Protocol):
    """Law of one score. All functions of t are vectorised over float64 of any shape."""

    @property
    def mean(self) -> float:
        """E phi."""

    @property
    def variance(self) -> float:
        """Var phi."""

    @property
    def third(self) -> float:
        """Third cumulant."""

    @property
    def fourth(self) -> float:
        """Fourth cumulant."""

    @property
    def domain(self) -> tuple[float, float]:
        """The open interval of t on which K is finite."""

    @property
    def support(self) -> tuple[float, float]:
        """The smallest and the largest score; infinite where there is none."""

    @property
    def step(self) -> float:
        """Scores are whole multiples of it; 0 where they are continuous."""

    @property
    def sign_allowance(self) -> float:
        """What K holds, at any t but 0, only for sums with weights of both signs, in nats; mostly 0."""

    def cumulant(self, t: npt.ArrayLike) -> FloatArray:
        """Return K(t), never below the truth but by rounding."""

    def slope(self, t: npt.ArrayLike) -> FloatArray:
        """Return K'(t)."""

    def curvature(self, t: npt.ArrayLike) -> FloatArray:
        """Return K''(t)."""

    def upper_tail(self, scores: npt.ArrayLike) -> FloatArray:
        """Return P(phi >= score), never below the truth but by rounding."""

    def sample(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw *n* scores."""


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """A bit that is 1 with probability gamma: a green list that decides each token by itself.

    >>> law = Bernoulli(0.25)
    >>> float(law.slope(0.0)), float(law.curvature(0.0))
    (0.0, 0.1875)
    """

    gamma: float

    def __post_init__(self) -> None:
        if not 0.0 < self.gamma < 1.0:
            raise ValueError(f"gamma lies strictly between 0 and 1, got {self.gamma}")

    @property
    def mean(self) -> float:
        """Gamma."""
        return self.gamma

    @property
    def variance(self) -> float:
        """Gamma (1 - gamma)."""
        return self.gamma * (1.0 - self.gamma)

    @property
    def third(self) -> float:
        """Third cumulant."""
        return self.variance * (1.0 - 2.0 * self.gamma)

    @property
    def fourth(self) -> float:
        """Fourth cumulant."""
        return self.variance * (1.0 - 6.0 * self.variance)

    @property
    def domain(self) -> tuple[float, float]:
        """Every t."""
        return (-math.inf, math.inf)

    @property
    def support(self) -> tuple[float, float]:
        """0 and 1."""
        return (0.0, 1.0)

    @property
    def step(self) -> float:
        """1."""
        return 1.0

    @property
    def sign_allowance(self) -> float:
        """0."""
        return 0.0

    def cumulant(self, t: npt.ArrayLike) -> FloatArray:
        """Return ln(1 - gamma + gamma e^t) - gamma t."""
        return _bit_cumulant(np.asarray(t, dtype=np.float64), self.gamma, self.gamma, 1.0 - self.gamma)

    def slope(self, t: npt.ArrayLike) -> FloatArray:
        """Return K'(t)."""
        return _tilted(t, self.gamma) - self.gamma

    def curvature(self, t: npt.ArrayLike) -> FloatArray:
        """Return K''(t)."""
        tilted = _tilted(t, self.gamma)
        return tilted * (1.0 - tilted)

    def upper_tail(self, scores: npt.ArrayLike) -> FloatArray:
        """Return P(phi >= score)."""
        x = np.asarray(scores, dtype=np.float64)
        return np.where(x <= 0.0, 1.0, np.where(x <= 1.0, self.gamma, 0.0))

    def sample(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw *n* bits."""
        return (rng.random(n) < self.gamma).astype(np.float64)


@dataclass(frozen=True, slots=True)
class FixedSizeGreenList:
    """A bit of a green list that is drawn without replacement: exactly *size* of *vocabulary* tokens are green.

    KGW's lists are (Kirchenbauer et al., arXiv 2301.10226, algorithm 2). Two bits of one window then are not
    independent; bits of different windows are. K bounds E exp(t S) all the same, where no window has a weight on more
    than `most` of its tokens (a mark leaves fuller windows out). Let b named tokens of a window be green and c red:

    - *weights of one sign*: E exp(t S) is a sum, with coefficients that are not negative, of the chances that named
      tokens all have the colour their weight asks for, and without replacement those are at most gamma^b, or
      (1 - gamma)^c: Chernoff's bound of independent bits stands as it is.
    - *weights of both signs*: the chance is gamma^b (1 - gamma)^c times q, the ratio of two binomial probabilities:
      of size - b among vocabulary - b - c tokens, and of size among vocabulary. ln q is at most `sign_allowance` times
      b + c, computed for these very numbers; about 0.63 / V for a quarter of V: 0.6 decades for 100,000 pairs at
      V = 49152. `WeightedScores` takes it off again where all weights have one sign.

    The shuffle's step i draws a 32-bit word modulo n = V - i, so that each token left is chosen with probability
    1 / n +- 2^-32. A step that chooses a named token then is likelier by a factor of at most 1 + V / 2^32, one that
    spares m of them by at most 1 + m / 2^32 / (1 - m / n), which is below exp(2 m / 2^32) for m <= most: over all
    steps exp((V + 2 size) / 2^32) for each named token. That goes into the chance of either colour.

    Args:
        size: how many tokens are green.
        vocabulary: V.
    """

    size: int
    vocabulary: int

    def __post_init__(self) -> None:
        if not 0 < self.size < self.vocabulary < 2**26:
            raise ValueError(f"a green list holds some of its vocabulary and not all, got {self.size}")

    @property
    def gamma(self) -> float:
        """Share of green tokens."""
        return self.size / self.vocabulary

    @property
    def mean(self) -> float:
        """Gamma."""
        return self.gamma

    @property
    def variance(self) -> float:
        """Gamma (1 - gamma)."""
        return self.gamma * (1.0 - self.gamma)

    @property
    def third(self) -> float:
        """Third cumulant."""
        return self.variance * (1.0 - 2.0 * self.gamma)

    @property
    def fourth(self) -> float:
        """Fourth cumulant."""
        return self.variance * (1.0 - 6.0 * self.variance)

    @property
    def domain(self) -> tuple[float, float]:
        """Every t."""
        return (-math.inf, math.inf)

    @property
    def support(self) -> tuple[float, float]:
        """0 and 1."""
        return (0.0, 1.0)

    @property
    def step(self) -> float:
        """1."""
        return 1.0

    @property
    def most(self) -> int:
        """How many tokens of one window may have a weight."""
        return (self.vocabulary - self.size) // 2

    @property
    def sign_allowance(self) -> float:
        """Largest ln q a pair, over all m up to `most`."""
        return _without_replacement(self.size, self.vocabulary)

    def cumulant(self, t: npt.ArrayLike) -> FloatArray:
        """Return a bound of each bit's share of ln E exp(t (phi - gamma))."""
        t = np.asarray(t, dtype=np.float64)
        bias = self._bias
        own = _bit_cumulant(t, self.gamma, self.gamma * bias, (1.0 - self.gamma) * bias)
        return own + np.where(t != 0.0, self.sign_allowance, 0.0)

    def slope(self, t: npt.ArrayLike) -> FloatArray:
        """Return K'(t) of independent bits."""
        return _tilted(t, self.gamma) - self.gamma

    def curvature(self, t: npt.ArrayLike) -> FloatArray:
        """Return K''(t) of independent bits."""
        tilted = _tilted(t, self.gamma)
        return tilted * (1.0 - tilted)

    def upper_tail(self, scores: npt.ArrayLike) -> FloatArray:
        """Return P(phi >= score)."""
        x = np.asarray(scores, dtype=np.float64)
        return np.where(x <= 0.0, 1.0, np.where(x <= 1.0, self.gamma * self._bias, 0.0))

    def sample(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw *n* bits of different windows."""
        return (rng.random(n) < self.gamma).astype(np.float64)

    @property
    def _bias(self) -> float:
        return math.exp((self.vocabulary + 2 * self.size) * 2.0**-32)


@dataclass(frozen=True, slots=True)
class Exponential:
    """phi = -ln(1 - u), the score of Gumbel-max marks: exponential with mean 1.

    A server's u lies on a grid of 2^-24, rounded to float32. Then, with N = 2^24, sums over the grid lie within one
    step of their integrals (the integrand is monotone): E exp(t phi) <= 1 / (1 - t) + (2^t - 1) / N for 0 <= t < 1, and
    E exp(-s phi) <= 1 / (1 + s) + min(1, 10 s) / N for s > 0. Both are in K: 1e6 pairs at t = 0.01 cost 4e-4 nats.

    >>> law = Exponential()
    >>> round(float(law.cumulant(0.5)), 6), float(law.slope(0.5)), float(law.curvature(0.5))
    (0.193147, 1.0, 4.0)
    """

    @property
    def mean(self) -> float:
        """1."""
        return 1.0

    @property
    def variance(self) -> float:
        """1."""
        return 1.0

    @property
    def third(self) -> float:
        """2."""
        return 2.0

    @property
    def fourth(self) -> float:
        """6."""
        return 6.0

    @property
    def domain(self) -> tuple[float, float]:
        """Below 1."""
        return (-math.inf, 1.0)

    @property
    def support(self) -> tuple[float, float]:
        """From 0."""
        return (0.0, math.inf)

    @property
    def step(self) -> float:
        """0."""
        return 0.0

    @property
    def sign_allowance(self) -> float:
        """0."""
        return 0.0

    def cumulant(self, t: npt.ArrayLike) -> FloatArray:
        """Return -ln(1 - t) - t and the grid's allowance."""
        t = np.asarray(t, dtype=np.float64)
        return _exponential_cumulant(t) + _grid_allowance(t)

    def slope(self, t: npt.ArrayLike) -> FloatArray:
        """Return t / (1 - t)."""
        t = np.asarray(t, dtype=np.float64)
        return np.asarray(t / (1.0 - t))

    def curvature(self, t: npt.ArrayLike) -> FloatArray:
        """Return 1 / (1 - t)^2."""
        t = np.asarray(t, dtype=np.float64)
        return np.asarray(1.0 / (1.0 - t) ** 2)

    def upper_tail(self, scores: npt.ArrayLike) -> FloatArray:
        """Return exp(-score), the grid taken outward."""
        x = np.asarray(scores, dtype=np.float64)
        return np.asarray(np.exp(-np.maximum(0.0, x - GRID_SHIFT)))

    def sample(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw *n* scores without the grid."""
        return rng.standard_exponential(n)


@dataclass(frozen=True, slots=True)
class DualExponential:
    """phi = (1 - alpha) E1 + alpha E2, the score of dual-key Gumbel-max marks; mean 1.

    Here as in vLLM alpha is the weight of key B, the second; TextSeal (arXiv 2605.12456) calls it alpha too, and
    weighs its second key by it. Both terms have the grid of `Exponential`.

    >>> float(DualExponential(0.1).variance)
    0.8200000000000001
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha lies between 0 and 1, got {self.alpha}")

    @property
    def scales(self) -> tuple[float, float]:
        """The larger and the smaller of the two weights."""
        return max(self.alpha, 1.0 - self.alpha), min(self.alpha, 1.0 - self.alpha)

    @property
    def mean(self) -> float:
        """1."""
        return 1.0

    @property
    def variance(self) -> float:
        """(1 - alpha)^2 + alpha^2."""
        return (1.0 - self.alpha) ** 2 + self.alpha**2

    @property
    def third(self) -> float:
        """Third cumulant."""
        return 2.0 * ((1.0 - self.alpha) ** 3 + self.alpha**3)

    @property
    def fourth(self) -> float:
        """Fourth cumulant."""
        return 6.0 * ((1.0 - self.alpha) ** 4 + self.alpha**4)

    @property
    def domain(self) -> tuple[float, float]:
        """Below 1 over the larger weight."""
        return (-math.inf, 1.0 / self.scales[0])

    @property
    def support(self) -> tuple[float, float]:
        """From 0."""
        return (0.0, math.inf)

    @property
    def step(self) -> float:
        """0."""
        return 0.0

    @property
    def sign_allowance(self) -> float:
        """0."""
        return 0.0

    def cumulant(self, t: npt.ArrayLike) -> FloatArray:
        """Return the sum of both keys' cumulant functions."""
        t = np.asarray(t, dtype=np.float64)
        return np.asarray(sum(_exponential_cumulant(t * b) + _grid_allowance(t * b) for b in self.scales))

    def slope(self, t: npt.ArrayLike) -> FloatArray:
        """Return K'(t)."""
        t = np.asarray(t, dtype=np.float64)
        return np.asarray(sum(b * (t * b) / (1.0 - t * b) for b in self.scales))

    def curvature(self, t: npt.ArrayLike) -> FloatArray:
        """Return K''(t)."""
        t = np.asarray(t, dtype=np.float64)
        return np.asarray(sum((b / (1.0 - t * b)) ** 2 for b in self.scales))

    def upper_tail(self, scores: npt.ArrayLike) -> FloatArray:
        """Return P(phi >= score), the grid taken outward."""
        x = np.maximum(0.0, np.asarray(scores, dtype=np.float64) - GRID_SHIFT)
        large, small = self.scales
        if small == 0.0:
            return np.asarray(np.exp(-x))
        rate = 1.0 / small - 1.0 / large
        # (L exp(-x/L) - S exp(-x/S)) / (L - S), without the cancellation at L = S.
        inner = x if rate == 0.0 else -np.expm1(-x * rate) / rate
        return np.asarray(np.minimum(1.0, np.exp(-x / large) * (1.0 + inner / large)))

    def sample(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw *n* scores without the grid."""
        return (1.0 - self.alpha) * rng.standard_exponential(n) + self.alpha * rng.standard_exponential(n)


@dataclass(frozen=True, slots=True)
class BinomialMean:
    """The mean of *depth* fair bits: the score of SynthID-Text, if its hash were good.

    >>> BinomialMean(30).variance
    0.008333333333333333
    """

    depth: int

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1 layer, got {self.depth}")

    @property
    def mean(self) -> float:
        """1/2."""
        return 0.5

    @property
    def variance(self) -> float:
        """1 / (4 depth)."""
        return 0.25 / self.depth

    @property
    def third(self) -> float:
        """0."""
        return 0.0

    @property
    def fourth(self) -> float:
        """-1 / (8 depth^3)."""
        return -0.125 / self.depth**3

    @property
    def domain(self) -> tuple[float, float]:
        """Every t."""
        return (-math.inf, math.inf)

    @property
    def support(self) -> tuple[float, float]:
        """0 and 1."""
        return (0.0, 1.0)

    @property
    def step(self) -> float:
        """1 / depth."""
        return 1.0 / self.depth

    @property
    def sign_allowance(self) -> float:
        """0."""
        return 0.0

    def cumulant(self, t: npt.ArrayLike) -> FloatArray:
        """Return depth ln cosh(t / (2 depth))."""
        x = np.abs(np.asarray(t, dtype=np.float64)) / (2 * self.depth)
        # ln cosh x = ln1p(2 sinh^2(x / 2)) where that does not overflow, else x - ln 2 + ln1p(e^-2x).
        near = np.log1p(2.0 * np.sinh(np.minimum(x, 1.0) / 2.0) ** 2)
        return self.depth * np.where(x < 1.0, near, x - math.log(2.0) + np.log1p(np.exp(-2.0 * x)))

    def slope(self, t: npt.ArrayLike) -> FloatArray:
        """Return tanh(t / (2 depth)) / 2."""
        return np.asarray(0.5 * np.tanh(np.asarray(t, dtype=np.float64) / (2 * self.depth)))

    def curvature(self, t: npt.ArrayLike) -> FloatArray:
        """Return K''(t)."""
        tanh = np.tanh(np.asarray(t, dtype=np.float64) / (2 * self.depth))
        return np.asarray((1.0 - tanh * tanh) / (4 * self.depth))

    def upper_tail(self, scores: npt.ArrayLike) -> FloatArray:
        """Return P(phi >= score)."""
        from scipy.stats import binom  # 0.3 s to import, and the bounds do not need it.

        ones = np.ceil(np.asarray(scores, dtype=np.float64) * self.depth - 1e-9)
        tail: Any = binom.sf(ones - 1.0, self.depth, 0.5)
        return np.asarray(tail, dtype=np.float64)

    def sample(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw *n* scores."""
        return rng.binomial(self.depth, 0.5, n) / self.depth


@lru_cache(maxsize=64)
def _without_replacement(size: int, vocabulary: int) -> float:
    """Return the largest ln q / m of `FixedSizeGreenList` over m = 1..most: q has its largest value at a mode."""
    from scipy.special import gammaln  # Slow to import.

    def log_chance(n: FloatArray, k: FloatArray) -> FloatArray:
        ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        return np.asarray(ways + k * math.log(gamma) + (n - k) * math.log1p(-gamma))

    gamma = size / vocabulary
    whole = log_chance(np.array([float(vocabulary)]), np.array([float(size)]))[0]
    # Each logarithm is off by some units of the last place of the largest.
    rounding = 32 * 2.0**-53 * (float(gammaln(vocabulary + 1.0)) + vocabulary)
    largest = 0.0
    most = (vocabulary - size) // 2
    for start in range(1, most + 1, 1 << 20):
        m = np.arange(start, min(start + (1 << 20), most + 1), dtype=np.float64)
        rest = vocabulary - m
        # Rounding may miss the mode by one: both neighbours are tried.
        mode = np.floor((rest + 1) * gamma)
        around = [log_chance(rest, np.clip(mode + d, 0, rest)) for d in (-1, 0, 1)]
        largest = max(largest, float(((np.max(around, axis=0) - whole + rounding) / m).max()))
    return largest


def _bit_cumulant(t: FloatArray, mean: float, green: float, red: float) -> FloatArray:
    """Return ln(1 + green (e^t - 1)) - mean t for t > 0 and the same of the other colour for t < 0."""
    up = np.maximum(t, 0.0)
    down = np.maximum(-t, 0.0)
    # 1 + g (e^t - 1) overflows beyond 709; e^t (g + (1 - g) e^-t) does not.
    above = np.where(up < 1.0, np.log1p(green * np.expm1(np.minimum(up, 1.0))), up + _log_rest(green, up)) - mean * up
    below = (
        np.where(down < 1.0, np.log1p(red * np.expm1(np.minimum(down, 1.0))), down + _log_rest(red, down))
        - (1.0 - mean) * down
    )
    return np.asarray(np.where(t >= 0.0, above, below))


def _log_rest(share: float, t: FloatArray) -> FloatArray:
    return np.asarray(np.log(share + (1.0 - share) * np.exp(-t)))


def _tilted(t: npt.ArrayLike, gamma: float) -> FloatArray:
    """Return gamma e^t / (1 - gamma + gamma e^t)."""
    x = np.asarray(t, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.asarray(
        np.where(x >= 0.0, gamma / (gamma + (1.0 - gamma) * small), gamma * small / (1.0 - gamma + gamma * small))
    )


def _exponential_cumulant(t: FloatArray) -> FloatArray:
    """Return -ln(1 - t) - t, without cancellation near 0."""
    near = np.abs(t) < 1e-3
    x = np.where(near, t, 0.0)
    series = x * x * (1 / 2 + x * (1 / 3 + x * (1 / 4 + x * (1 / 5 + x * (1 / 6 + x / 7)))))
    return np.asarray(np.where(near, series, -np.log1p(-np.where(near, 0.0, t)) - t))


def _grid_allowance(t: FloatArray) -> FloatArray:
    """Return how much the 24-bit grid adds to the cumulant function at most (`Exponential`)."""
    up = np.clip(t, 0.0, 1.0)
    down = np.maximum(-t, 0.0)
    return np.asarray(_GRID * ((1.0 - up) * np.expm1(up * math.log(2.0)) + (1.0 + down) * np.minimum(1.0, 10.0 * down)))
