"""Tails of weighted scores against mpmath, enumeration, Monte Carlo, and `WeightedSum` for bits."""

from __future__ import annotations

import math

import mpmath as mp
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
from detect.weighted_scores import WeightedScores, log_gamma_tail
from detect.weighted_sums import WeightedSum


@pytest.mark.parametrize(
    ("shape", "x"), [(1, 11_512.9), (10, 12_000.0), (1000, 14_000.0), (10**5, 150_000.0), (10**6, 1.01e6), (50, 40.0)]
)
def test_gamma_tail_is_mpmaths(shape: int, x: float) -> None:
    with mp.workdps(40):
        truth = float(mp.log10(mp.gammainc(shape, x, regularized=True)))
    assert log_gamma_tail(float(shape), x) / math.log(10) == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "alpha", "y"),
    [
        *((1, 0.1, 3.0), (1, 0.01, 40.0), (2, 0.2, 900.0), (3, 0.1, 5000.0), (5, 0.1, 30.0), (8, 0.06, 400.0)),
        *((10, 0.499, 300.0), (20, 0.3, 60.0), (30, 0.03, 1400.0), (50, 0.9, 100.0), (100, 0.1, 120.0)),
    ],
)
def test_dual_key_tail_is_that_of_partial_fractions(n: int, alpha: float, y: float) -> None:
    """(1 - a s)^-n (1 - b s)^-n in partial fractions: a sum of 2 n gamma tails, in as many digits as it cancels."""
    large, small = max(alpha, 1 - alpha), min(alpha, 1 - alpha)
    with mp.workdps(60 + 8 * n):
        total = mp.mpf(0)
        for a, b in ((mp.mpf(large), mp.mpf(small)), (mp.mpf(small), mp.mpf(large))):
            for i in range(1, n + 1):
                factor = (a / (a - b)) ** n * mp.binomial(2 * n - i - 1, n - i) * (-b / (a - b)) ** (n - i)
                total += factor * mp.gammainc(i, y / a, regularized=True)
        truth = float(mp.log10(total))
    law = WeightedScores(np.full(n, 1.0), DualExponential(alpha))
    # The grid of 24 bits is taken outward: the sum counts as larger by 2^-23 a pair.
    assert truth - 1e-9 <= law.log10_exact(y - n) <= truth + 1e-7 + n * GRID_SHIFT / (large * math.log(10))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_dual_key_meets_the_single_gamma(alpha: float) -> None:
    law = WeightedScores(np.full(40, 0.5), DualExponential(alpha))
    scale = max(alpha, 1 - alpha)
    shape = 80.0 if alpha == 0.5 else 40.0
    truth = log_gamma_tail(shape, 60.0 / scale) / math.log(10)
    assert law.log10_exact(0.5 * (60.0 - 40.0)) == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize("law", [Exponential(), DualExponential(0.1), BinomialMean(30), Bernoulli(0.25)], ids=repr)
@pytest.mark.parametrize("n", [30, 5000])
def test_bound_above_exact_and_estimate_beside_it(law: ScoreLaw, n: int) -> None:
    scores = WeightedScores(np.full(n, 0.7), law)
    for z in (0.5, 2.0, 6.0):
        s = z * scores.sd
        if law.step:
            # Between two values that S can take, the exact tail is that of the next and the estimate is neither's.
            s = 0.7 * (round((s / 0.7 + n * law.mean) / law.step) * law.step - n * law.mean)
        exact, bound = scores.log10_exact(s), scores.log10_chernoff(s)
        assert exact <= bound <= exact + 1.5
        assert bound == pytest.approx(scores.log10_chernoff_many([s])[0], rel=1e-2)
        assert scores.log10_chernoff_many([s])[0] >= bound - 1e-9
        assert scores.log10_saddlepoint(s) == pytest.approx(exact, abs=0.05)
        assert scores.log10_tail(s) == exact
    assert scores.log10_saddlepoint(-3 * scores.sd) == pytest.approx(0.0, abs=0.01)
    assert scores.log10_saddlepoint(0.0) == pytest.approx(math.log10(0.5), abs=0.08)


def test_bits_give_the_bounds_of_weighted_sums() -> None:
    rng = np.random.default_rng(5)
    weights = rng.normal(size=300)
    ours, theirs = WeightedScores(weights, Bernoulli(0.25)), WeightedSum(weights, gamma=0.25)
    assert (ours.sd, ours.max, ours.min) == pytest.approx((theirs.sd, theirs.max, theirs.min))
    for z in (-1.0, 0.1, 1.0, 5.0, 12.0):
        assert ours.log10_chernoff(z * ours.sd) == pytest.approx(theirs.log10_chernoff(z * ours.sd), abs=1e-6)
        assert ours.log10_saddlepoint(z * ours.sd) == pytest.approx(theirs.log10_saddlepoint(z * ours.sd), abs=1e-5)
    # At the largest value ours is looser (`log10_chernoff`), and never below the truth.
    assert 0.0 <= ours.log10_chernoff(ours.max) - theirs.log10_chernoff(theirs.max) <= 1.0
    truth = float(np.where(weights > 0, math.log10(0.25), math.log10(0.75)).sum())
    assert theirs.log10_chernoff(theirs.max) == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_bound_is_never_below_an_enumeration(seed: int) -> None:
    """Fourteen bits of any weights, at every value that S can take, the largest among them."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=14) * rng.choice([0.01, 1.0, 10.0], 14)
    law = WeightedScores(weights, Bernoulli(0.25))
    bits = (np.arange(2**14)[:, None] >> np.arange(14)) & 1
    values, chances = (bits - 0.25) @ weights, 0.25 ** bits.sum(axis=1) * 0.75 ** (14 - bits.sum(axis=1))
    order = np.argsort(-values)
    truth, sums = np.log10(np.cumsum(chances[order])), values[order]
    assert (law.log10_chernoff_many(sums) >= truth - 1e-9).all()
    for i in (0, 1, 2, 5, 30, 400, 5000):
        assert truth[i] - 1e-9 <= law.log10_chernoff(float(sums[i])) <= law.log10_chernoff_many(sums[i]) + 1e-6


@pytest.mark.parametrize("law", [Exponential(), DualExponential(0.1), BinomialMean(8), FixedSizeGreenList(25, 100)])
def test_bounds_hold_for_draws_of_signed_weights(law: ScoreLaw) -> None:
    rng = np.random.default_rng(8)
    weights = rng.normal(size=60) * rng.gamma(1.0, size=60)
    scores = WeightedScores(weights, law)
    draws = np.array([weights @ (law.sample(rng, 60) - law.mean) for _ in range(20_000)])
    assert draws.std() == pytest.approx(scores.sd, rel=0.03)
    bounds = scores.log10_chernoff_many(draws)
    for level in (0.1, 0.01, 0.001):
        assert (bounds <= math.log10(level)).mean() <= level
    z2 = 2 * scores.sd
    assert scores.log10_saddlepoint(z2) == pytest.approx(math.log10((draws >= z2).mean()), abs=0.06)


def test_sign_allowance_is_charged_only_where_signs_mix() -> None:
    law = FixedSizeGreenList(250, 1000)
    one, both = WeightedScores(np.ones(100), law), WeightedScores([1.0] * 99 + [-1.0], law)
    bits = WeightedScores(np.ones(100), Bernoulli(0.25))
    # The shuffle's remainders remain: 100 pairs, (V + 2 size) / 2^32 each, times the tilt.
    assert 0.0 < one.log10_chernoff(15.0) - bits.log10_chernoff(15.0) < 100 * 1500 / 2**32 * 3
    mixed = WeightedScores([1.0] * 99 + [-1.0], Bernoulli(0.25))
    charged = both.log10_chernoff(15.0) - mixed.log10_chernoff(15.0)
    assert charged == pytest.approx(100 * law.sign_allowance / math.log(10), abs=2e-4)


def test_edges() -> None:
    empty = WeightedScores([], Exponential())
    assert (empty.n, empty.sd, empty.log10_chernoff(0.0)) == (0, 0.0, 0.0)
    law = WeightedScores([2.0, 2.0], Exponential())
    assert law.max == math.inf
    assert law.log10_chernoff(-1.0) == 0.0
    assert law.log10_exact(-4.0) == 0.0
    assert math.isfinite(law.log10_chernoff(1e6))
    assert not WeightedScores([1.0, 2.0], Exponential()).has_exact
    with pytest.raises(ValueError, match="no exact tail"):
        WeightedScores([1.0, 2.0], Exponential()).log10_exact(1.0)
    with pytest.raises(ValueError, match="at most"):
        WeightedScores([1.0], BinomialMean(2)).log10_chernoff(0.6)
    with pytest.raises(ValueError, match="finite"):
        WeightedScores([math.nan], Exponential())
    with pytest.raises(ValueError, match="at most"):
        law.log10_chernoff(math.nan)
