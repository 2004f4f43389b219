from __future__ import annotations

import itertools
import math
import time

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from detect.binomial import log10_tail
from detect.weighted_sums import EXACT_LIMIT, WeightedSum

GAMMAS = st.sampled_from([1 / 256, 0.1, 0.25, 0.5, 0.75, 255 / 256])
PLAIN = st.floats(-4, 4, allow_subnormal=False)
TIED = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0, 1.5])
WILD = st.builds(
    lambda mantissa, exponent: mantissa * 10.0**exponent, st.sampled_from([-1.0, 1.0, 3.0]), st.floats(-9, 9)
)
WEIGHTS = st.one_of(*(st.lists(kind, min_size=1, max_size=11) for kind in (PLAIN, TIED, WILD)))


def enumerated(weights: list[float], gamma: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return every outcome's S, one bit pattern after the other, and its probability."""
    bits = np.array(list(itertools.product([0, 1], repeat=len(weights))), dtype=float).reshape(-1, len(weights))
    chances = np.prod(np.where(bits == 1, gamma, 1 - gamma), axis=1)
    return (bits - gamma) @ np.array(weights), chances


def attainable(law: WeightedSum, share: float) -> float:
    """Return a statistic between the least and the largest that the law allows."""
    return law.min + share * (law.max - law.min)


@given(WEIGHTS, GAMMAS, st.floats(0, 1))
def test_exact_is_the_enumeration(weights: list[float], gamma: float, share: float) -> None:
    law = WeightedSum(weights, gamma=gamma)
    sums, chances = enumerated(weights, gamma)
    tolerance = 1e-12 * float(np.abs(weights).sum())
    for statistic in (float(sums[int(share * (len(sums) - 1))]), attainable(law, share)):
        # An outcome within rounding of the tolerance itself could fall either way.
        assume(not np.any(np.abs(np.abs(sums - statistic) - tolerance) < 0.5 * tolerance) or tolerance == 0.0)
        expected = math.log10(min(1.0, math.fsum(chances[sums >= statistic - tolerance])))
        assert law.log10_exact(statistic) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=300)
@given(WEIGHTS, GAMMAS, st.floats(0, 1))
@example([1e-9, 1.0, 1.0], 0.5, 1.0)
@example([1.0], 0.5, 1.0)
@example([4.0, 2.2250738585072014e-308], 1 / 256, 0.0)
@example([1.7e308, -5e-324, 1.0], 0.25, 0.7)
def test_bound_is_never_below_the_truth(weights: list[float], gamma: float, share: float) -> None:
    law = WeightedSum(weights, gamma=gamma)
    sums, _ = enumerated(weights, gamma)
    for statistic in (float(sums[int(share * (len(sums) - 1))]), attainable(law, share), law.max):
        truth = law.log10_exact(statistic)
        bound = law.log10_chernoff(statistic)
        assert 0.0 >= bound >= truth - 1e-15
        assert 0.0 >= law.log10_chernoff_many([statistic])[0] >= truth - 1e-15


@given(WEIGHTS, GAMMAS, st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_many_bounds_are_above_the_best_and_close(weights: list[float], gamma: float, shares: list[float]) -> None:
    law = WeightedSum(weights, gamma=gamma)
    statistics = np.array([attainable(law, share) for share in [*shares, 0.0, 1.0]])
    best = np.array([law.log10_chernoff(s) for s in statistics.tolist()])
    many = law.log10_chernoff_many(statistics)
    assert np.all(many >= best - 1e-9 * np.maximum(1.0, -best))
    # As documented: 1/1.02 of the best one's log, from 0.1 sd on.
    far = statistics >= 0.1 * law.sd
    assert np.all(many[far] <= best[far] / 1.02 + 1e-9)


@given(WEIGHTS, GAMMAS)
def test_at_the_largest_sum_the_bound_is_the_probability(weights: list[float], gamma: float) -> None:
    largest = max(abs(a) for a in weights)
    weights = [a for a in weights if abs(a) > 1e-6 * largest]
    assume(weights)
    law = WeightedSum(weights, gamma=gamma)
    expected = sum(math.log10(gamma if a > 0 else 1 - gamma) for a in weights)
    assert law.log10_chernoff(law.max) == pytest.approx(expected, rel=1e-13)
    assert law.log10_chernoff(law.max) >= law.log10_exact(law.max)
    assert law.log10_saddlepoint(law.max) == pytest.approx(expected, rel=1e-13)
    assert law.log10_chernoff_many([law.max])[0] == law.log10_chernoff(law.max)


def mp_chernoff(weights: list[float], gamma: float, statistic: float) -> float:
    """Least over t of sum log(1 - gamma + gamma e^(t a)) - t (gamma sum a + S), by mp.findroot on its slope."""
    with mpmath.workdps(60):
        a, g, s = [mpmath.mpf(x) for x in weights], mpmath.mpf(gamma), mpmath.mpf(statistic)
        s += g * sum(a)

        def exponent(t: mpmath.mpf) -> mpmath.mpf:
            return sum(mpmath.log(1 - g + g * mpmath.exp(t * x)) for x in a) - t * s

        def slope(t: mpmath.mpf) -> mpmath.mpf:
            return sum(x * g * mpmath.exp(t * x) / (1 - g + g * mpmath.exp(t * x)) for x in a) - s

        t = mpmath.findroot(slope, (mpmath.mpf(0), mpmath.mpf(400)), solver="anderson", tol=1e-40, maxsteps=2000)
        return float(exponent(t) / mpmath.log(10))


@pytest.mark.parametrize("gamma", [0.1, 0.5])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_bound_is_the_best_one(gamma: float, share: float) -> None:
    weights = np.random.default_rng(5).normal(size=40).round(3).tolist()
    law = WeightedSum(weights, gamma=gamma)
    expected = mp_chernoff(weights, gamma, share * law.max)
    bound = law.log10_chernoff(share * law.max)
    assert bound == pytest.approx(expected, abs=1e-9)
    assert bound >= expected


def test_bound_of_equal_weights_is_the_binomial_divergence() -> None:
    # For n equal weights the bound is exp(-n KL(green share || gamma)), whatever n.
    for n, green in [(50, 40), (10**6, 251_000), (10**6, 999_000)]:
        law = WeightedSum(np.full(n, 3.7), gamma=0.25)
        x = green / n
        divergence = x * math.log(x / 0.25) + (1 - x) * math.log((1 - x) / 0.75)
        bound = law.log10_chernoff(3.7 * (green - 0.25 * n))
        assert bound == pytest.approx(-n * divergence / math.log(10), rel=1e-9, abs=1e-7)
        assert bound > log10_tail(green, pairs=n, k=64)


def test_far_tail_does_not_underflow() -> None:
    weights = np.random.default_rng(2).normal(size=200_000)
    law = WeightedSum(weights, gamma=0.5)
    bound, estimate = law.log10_chernoff(0.9 * law.max), law.log10_saddlepoint(0.9 * law.max)
    assert -60_206 < estimate < bound < -10_000
    # Chernoff over saddlepoint is t sqrt(2 pi K''(t)): a few decades, not a few percent of the exponent.
    assert bound - estimate < 5.0


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e9, 1e300])
def test_the_unit_of_the_weights_does_not_matter(scale: float) -> None:
    weights = np.random.default_rng(11).normal(size=60)
    law, scaled = WeightedSum(weights, gamma=0.25), WeightedSum(weights * scale, gamma=0.25)
    for z in (-2.0, 0.001, 1.0, 4.0):
        s = z * law.sd
        assert scaled.log10_chernoff(s * scale) == pytest.approx(law.log10_chernoff(s), rel=1e-9, abs=1e-12)
        assert scaled.log10_saddlepoint(s * scale) == pytest.approx(law.log10_saddlepoint(s), rel=1e-9)


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5])
def test_saddlepoint_against_the_truth(gamma: float) -> None:
    weights = np.random.default_rng(21).normal(size=30)
    law = WeightedSum(weights, gamma=gamma)
    for z in (-2.0, -1.0, -0.011, -0.009, 0.0, 0.009, 0.011, 0.5, 1.0, 2.0, 3.0, 3.5):
        statistic = z * law.sd
        # 3 % of p.
        assert law.log10_saddlepoint(statistic) == pytest.approx(law.log10_exact(statistic), abs=0.013)


@pytest.mark.parametrize("k", [26, 64, 128, 230])
@pytest.mark.parametrize("pairs", [30, 1000])
def test_saddlepoint_of_counts_against_the_binomial(pairs: int, k: int) -> None:
    gamma = k / 256
    law = WeightedSum(np.ones(pairs), gamma=gamma)
    for green in range(0, pairs + 1, max(1, pairs // 60)):
        expected = log10_tail(green, pairs=pairs, k=k)
        # 2 % of p up to the last few outcomes, 10 % there.
        margin = 0.0087 if green < 0.9 * pairs else 0.044
        assert law.log10_saddlepoint(green - gamma * pairs) == pytest.approx(expected, abs=margin)


def test_saddlepoint_is_continuous_where_it_changes_form() -> None:
    for weights in (np.random.default_rng(4).exponential(size=25), np.ones(25), np.full(25, -1.0)):
        for gamma in (0.05, 0.5):
            law = WeightedSum(weights, gamma=gamma)
            for edge in (-0.01, 0.01):
                outside, inside = edge * (1 + 1e-9) * law.sd, edge * (1 - 1e-9) * law.sd
                assert law.log10_saddlepoint(outside) == pytest.approx(law.log10_saddlepoint(inside), abs=1e-5)


def test_saddlepoint_against_monte_carlo() -> None:
    rng = np.random.default_rng(8)
    weights = rng.exponential(size=200) - 0.3
    law = WeightedSum(weights, gamma=0.25)
    draws = np.concatenate([(rng.random((20_000, 200)) < 0.25) @ weights for _ in range(5)]) - 0.25 * weights.sum()
    for z in (-1.0, 0.0, 1.0, 2.0, 3.0):
        p = 10 ** law.log10_saddlepoint(z * law.sd)
        seen = float((draws >= z * law.sd).mean())
        assert abs(seen - p) < 5 * math.sqrt(p * (1 - p) / len(draws)) + 0.005 * p
        assert seen < 10 ** law.log10_chernoff(z * law.sd)


def test_bound_covers_under_the_null() -> None:
    rng = np.random.default_rng(9)
    weights = rng.normal(size=300)
    law = WeightedSum(weights, gamma=0.5)
    draws = (rng.random((20_000, 300)) < 0.5) @ weights - 0.5 * weights.sum()
    bounds = law.log10_chernoff_many(draws)
    for log10_alpha in (-0.3, -1.0, -2.0, -3.0):
        assert (bounds <= log10_alpha).mean() <= 10**log10_alpha
    # The bound is not so wide as to say nothing: at 1e-2 its true size is some 0.8 decades below.
    assert (bounds <= -2.0).mean() > 3e-4


def test_repeated_and_zero_weights_are_only_grouped() -> None:
    rng = np.random.default_rng(10)
    weights = rng.choice([-1.0, 0.0, 0.5, 2.25], size=36)
    law = WeightedSum(weights, gamma=0.25)
    assert law.n == np.count_nonzero(weights)
    assert law.max == pytest.approx(weights[weights > 0].sum() - 0.25 * weights.sum())
    assert law.min == pytest.approx(weights[weights < 0].sum() - 0.25 * weights.sum())
    assert law.sd == pytest.approx(math.sqrt(0.25 * 0.75) * np.linalg.norm(weights))
    apart = WeightedSum(weights * (1 + 1e-14 * np.arange(36)), gamma=0.25)
    assert law.log10_chernoff(5.0) == pytest.approx(apart.log10_chernoff(5.0), rel=1e-9)
    assert repr(law).startswith("WeightedSum(n=")


@pytest.mark.parametrize("weights", [[], [0.0, 0.0]])
def test_no_weights(weights: list[float]) -> None:
    law = WeightedSum(weights, gamma=0.25)
    for statistic in (0.0, -1.0):
        assert law.log10_chernoff(statistic) == 0.0
        assert law.log10_saddlepoint(statistic) == 0.0
        assert law.log10_exact(statistic) == 0.0
        assert law.log10_chernoff_many([statistic]).tolist() == [0.0]
    with pytest.raises(ValueError, match="at most 0"):
        law.log10_chernoff(1e-300)


@pytest.mark.parametrize("statistic", [2.0, math.inf, math.nan, np.float64(1e300)])
def test_refuses_what_the_sum_cannot_reach(statistic: float) -> None:
    law = WeightedSum([1.0, 1.0, -1.0], gamma=0.5)  # At most 1.5.
    with pytest.raises(ValueError, match=r"at most 1\.5"):
        law.log10_chernoff(statistic)
    with pytest.raises(ValueError, match=r"at most 1\.5"):
        law.log10_chernoff_many([0.0, statistic])
    with pytest.raises(ValueError, match=r"at most 1\.5"):
        law.log10_saddlepoint(statistic)
    with pytest.raises(ValueError, match=r"at most 1\.5"):
        law.log10_exact(statistic)


def test_refuses_bad_weights() -> None:
    for gamma in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="gamma"):
            WeightedSum([1.0], gamma=gamma)
    with pytest.raises(ValueError, match="weight 1"):
        WeightedSum([1.0, math.nan, math.inf], gamma=0.5)
    with pytest.raises(ValueError, match=str(EXACT_LIMIT)):
        WeightedSum(np.ones(EXACT_LIMIT + 1), gamma=0.5).log10_exact(0.0)


def test_enumeration_at_its_limit() -> None:
    law = WeightedSum(np.ones(EXACT_LIMIT), gamma=0.25)
    for green in (1, 10, 30, EXACT_LIMIT):
        expected = log10_tail(green, pairs=EXACT_LIMIT, k=64)
        assert law.log10_exact(green - 0.25 * EXACT_LIMIT) == pytest.approx(expected, rel=1e-9)


def test_a_million_weights_take_well_below_a_second() -> None:
    weights = np.random.default_rng(1).normal(size=10**6)
    law = WeightedSum(weights, gamma=0.25)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        law.log10_chernoff(10 * law.sd)
        best = min(best, time.perf_counter() - start)
    assert best < 0.5
