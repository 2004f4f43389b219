"""Cumulant functions against direct sums and draws; the grid and the green list's fixed size taken outward."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from detect.score_law import (
    GRID_SHIFT,
    Bernoulli,
    BinomialMean,
    DualExponential,
    Exponential,
    FixedSizeGreenList,
    ScoreLaw,
)

LAWS: list[ScoreLaw] = [
    Bernoulli(0.25),
    Exponential(),
    DualExponential(0.1),
    DualExponential(0.5),
    BinomialMean(30),
    FixedSizeGreenList(12_288, 49_152),
]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_slope_and_curvature_are_the_derivatives(law: ScoreLaw) -> None:
    t = np.array([-30.0, -2.0, -0.3, 0.2, 0.7])
    h = 1e-4
    around = np.array([law.cumulant(t + d) for d in (-h, 0.0, h)])
    assert (around[2] - around[0]) / (2 * h) == pytest.approx(law.slope(t), rel=1e-4, abs=1e-4)
    assert (law.slope(t + h) - law.slope(t - h)) / (2 * h) == pytest.approx(law.curvature(t), rel=1e-4, abs=1e-9)
    assert float(law.cumulant(0.0)) == 0.0
    assert float(law.slope(0.0)) == 0.0
    assert float(law.curvature(0.0)) == pytest.approx(law.variance)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_moments_and_tails_are_those_of_the_draws(law: ScoreLaw) -> None:
    draws = law.sample(np.random.default_rng(3), 200_000)
    assert draws.mean() == pytest.approx(law.mean, abs=4 * math.sqrt(law.variance / len(draws)))
    centred = draws - law.mean
    assert centred.var() == pytest.approx(law.variance, rel=0.02)
    assert (centred**3).mean() == pytest.approx(law.third, abs=0.15 * law.variance**1.5)
    for level in np.quantile(draws, [0.2, 0.5, 0.9]):
        assert float(law.upper_tail(level)) == pytest.approx((draws >= level).mean(), abs=0.006)


def test_exponential_bounds_the_servers_grid_exactly() -> None:
    """All 2^24 values that vLLM's uniform takes, as float32: the law is never below them."""
    m = np.arange(2**24, dtype=np.float64)
    phi = -np.log1p(-((m + 1) / (2**24 + 1)).astype(np.float32).astype(np.float64))
    assert phi.max() == pytest.approx(24 * math.log(2))
    assert (Exponential().upper_tail(phi) >= 1 - m / 2**24 - 1e-15).all()
    assert (phi + np.log1p(-m / 2**24)).max() <= GRID_SHIFT / 2 * (1 + 1e-6)
    for t in (-10.0, -0.1, -1e-4, 1e-4, 0.01, 0.5, 0.99):
        exact = math.log1p(float(np.expm1(t * phi).mean())) - t
        assert exact <= float(Exponential().cumulant(t)) <= exact + 2 + 0.2 / abs(t)
    assert float(Exponential().cumulant(0.01)) == pytest.approx(-math.log1p(-0.01) - 0.01, abs=1e-9)


def log_largest_ratio(size: int, vocabulary: int, m: int) -> float:
    """Ln of the largest ratio, over all colours of m named tokens, of their chances without and with replacement."""
    ratios = []
    for green in range(max(0, m - (vocabulary - size)), min(m, size) + 1):
        without = Fraction(math.comb(vocabulary - m, size - green), math.comb(vocabulary, size))
        ratios.append(
            without * Fraction(vocabulary, size) ** green * Fraction(vocabulary, vocabulary - size) ** (m - green)
        )
    return math.log(max(ratios))


@pytest.mark.parametrize(("size", "vocabulary"), [(1, 40), (2, 9), (7, 30), (25, 100), (50, 100), (90, 100), (30, 300)])
def test_without_replacement_is_within_the_allowance(size: int, vocabulary: int) -> None:
    """In whole numbers, for every m: the allowance covers it, and no smaller one would."""
    law = FixedSizeGreenList(size, vocabulary)
    exact = [log_largest_ratio(size, vocabulary, m) / m for m in range(1, law.most + 1)]
    assert max(exact) <= law.sign_allowance <= max(exact) + 1e-10
    # Beyond `most` it would not hold for long: a list of which every token is asked about is no surprise at all.
    assert log_largest_ratio(size, vocabulary, vocabulary) > vocabulary * law.sign_allowance


def test_allowance_of_real_vocabularies() -> None:
    assert FixedSizeGreenList(12_288, 49_152).sign_allowance == pytest.approx(0.627 / 49_152, rel=0.01)
    assert FixedSizeGreenList(64_128, 128_256).sign_allowance == pytest.approx(0.577 / 128_256, rel=0.01)


@pytest.mark.parametrize(("size", "vocabulary"), [(4, 12), (6, 15), (3, 16), (8, 14)])
def test_mixed_signs_without_replacement_stay_below_the_bound(size: int, vocabulary: int) -> None:
    """All lists enumerated, weights drawn: E exp(t S) against the bound, of both signs and of one."""
    law = FixedSizeGreenList(size, vocabulary)
    rng = np.random.default_rng(size)
    lists = np.array([np.isin(np.arange(vocabulary), green) for green in combinations(range(vocabulary), size)])
    tightest = math.inf
    for _ in range(60):
        m = int(rng.integers(1, law.most + 1))
        weights = rng.normal(size=m) * rng.choice([0.1, 1.0, 4.0])
        weights[rng.random(m) < 0.3] = rng.choice([-1.0, 1.0])
        for values, allowance in ((weights, 0.0), (np.abs(weights), law.sign_allowance)):
            sums = lists[:, :m] @ values - law.gamma * values.sum()
            for t in (0.03, 0.3, 1.0, 3.0, -0.3, -2.0):
                gap = float(law.cumulant(t * values).sum()) - m * allowance - math.log(np.exp(t * sums).mean())
                assert gap >= -1e-12
                tightest = min(tightest, gap)
    assert tightest < 0.1


@pytest.mark.parametrize(("size", "vocabulary", "word"), [(2, 8, 16), (3, 9, 32), (2, 10, 64)])
def test_the_shuffles_remainders_are_within_their_factor(size: int, vocabulary: int, word: int) -> None:
    """The shuffle enumerated with words of 4 to 6 bits, which are far more uneven than 32: chances of all colours."""
    chances: dict[tuple[int, ...], Fraction] = {tuple(range(vocabulary)): Fraction(1)}
    for i in range(size):
        new: dict[tuple[int, ...], Fraction] = {}
        left = vocabulary - i
        for order, chance in chances.items():
            for r in range(left):
                swapped = list(order)
                swapped[i], swapped[i + r] = swapped[i + r], swapped[i]
                times = word // left + (r < word % left)
                new[tuple(swapped)] = new.get(tuple(swapped), Fraction(0)) + chance * Fraction(times, word)
        chances = new
    greens: dict[frozenset[int], Fraction] = {}
    for order, chance in chances.items():
        green = frozenset(order[:size])
        greens[green] = greens.get(green, Fraction(0)) + chance
    assert sum(greens.values()) == 1
    factor = math.exp((vocabulary + 2 * size) / word)
    worst = 0.0
    for m in range(1, (vocabulary - size) // 2 + 1):
        for named in combinations(range(vocabulary), m):
            for b in range(min(m, size) + 1):
                asked, spared = set(named[:b]), set(named[b:])
                chance = sum((p for green, p in greens.items() if asked <= green and not spared & green), Fraction(0))
                even = Fraction(math.comb(vocabulary - m, size - b), math.comb(vocabulary, size))
                worst = max(worst, float(chance / even) / factor**m)
    assert 0.1 < worst <= 1.0


@pytest.mark.parametrize("law", [Bernoulli(0.25), BinomialMean(4), FixedSizeGreenList(5, 20)], ids=repr)
def test_far_tilts_do_not_overflow(law: ScoreLaw) -> None:
    t = np.array([-2000.0, 2000.0])
    assert np.isfinite(law.cumulant(t)).all()
    assert (law.cumulant(t) > 0).all()


def test_refuses_what_is_no_law() -> None:
    for make in (
        lambda: Bernoulli(1.0),
        lambda: DualExponential(1.5),
        lambda: BinomialMean(0),
        lambda: FixedSizeGreenList(9, 9),
    ):
        with pytest.raises(ValueError, match=r"."):
            make()
