"""The goodness-of-fit statistic against brute force, its null, its bound, and what it finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import scope_of

from detect.goodness_of_fit import (
    goodness_of_fit,
    log10_bound,
    null_statistics,
    pair_p_values,
    truncated_statistic,
)
from detect.mark import GreenListMark
from detect.tally import tally_of
from watermark.errors import UsageError


@pytest.mark.parametrize("n", [1, 2, 30, 200])
def test_statistic_is_the_supremum(n: int) -> None:
    rng = np.random.default_rng(n)
    for power in (1.0, 1.5):
        p = np.sort(rng.random(n) ** power)
        levels = np.unique(np.concatenate([np.linspace(1e-3, 1, 200_001)[:-1], p[p >= 1e-3]]))
        share = np.searchsorted(p, levels, side="right") / n
        terms = np.where(share > levels, n * (share - levels) ** 2 / (2 * levels * (1 - levels)), 0.0)
        value, level = truncated_statistic(p, 1e-3)
        assert value == pytest.approx(terms.max(), rel=1e-9)
        if value:
            assert level == pytest.approx(levels[terms.argmax()], abs=1e-5)


def test_values_below_the_floor_count_at_the_floor() -> None:
    value, level = truncated_statistic(np.array([1e-9, 1e-6, 0.9, 0.95]), 1e-2)
    assert level == 1e-2
    assert value == pytest.approx(4 * (0.5 - 0.01) ** 2 / (2 * 0.01 * 0.99))
    assert truncated_statistic(np.array([0.99]), 1e-3)[0] == pytest.approx((0.01) ** 2 / (2 * 0.99 * 0.01))
    assert truncated_statistic(np.zeros(0), 1e-3)[0] == 0.0


def test_the_drawn_null_is_that_of_sorted_uniforms() -> None:
    rng = np.random.default_rng(0)
    direct = np.array([truncated_statistic(np.sort(rng.random(300)), 1e-3)[0] for _ in range(4000)])
    drawn = null_statistics(300, 1e-3, 4000, 1)
    both = np.sort(np.concatenate([direct, drawn]))
    distance = np.abs(
        np.searchsorted(np.sort(direct), both, side="right") - np.searchsorted(np.sort(drawn), both, side="right")
    ).max()
    assert distance / 4000 < 1.95 / math.sqrt(2000)  # Kolmogorov and Smirnov's, level 1e-3


@pytest.mark.parametrize("n", [10, 1000])
def test_the_bound_is_above_the_truth(n: int) -> None:
    drawn = null_statistics(n, 1e-3, 20_000, 7)
    for statistic in (0.5, 2.0, 5.0, 8.0, 12.0):
        share = (drawn >= statistic).mean()
        assert 10 ** log10_bound(statistic, pairs=n) >= share - 4 * math.sqrt(share / 20_000)


def test_the_bound_far_out() -> None:
    """One value: T >= t means p <= r* = 1 / (1 + 2 t), so that the bound lies above log10 r*."""
    for t in (10.0, 100.0):
        exact = math.log10(1 / (1 + 2 * t))
        assert exact <= log10_bound(t, pairs=1) <= 0
    values = [log10_bound(t, pairs=100_000) for t in (10.0, 30.0, 100.0, 1000.0, 30_000.0)]
    assert values == sorted(values, reverse=True)
    # It holds at every level at once, and so at the floor, where the tail is heaviest; and it is not far above that.
    from scipy.stats import binom

    for t, value in ((30.0, values[1]), (100.0, values[2])):
        least = math.ceil(100_000 * (1e-3 + math.sqrt(2e-3 * 0.999 * t / 100_000)))
        alone = float(binom.logsf(least - 1, 100_000, 1e-3)) / math.log(10)
        assert alone <= value <= alone + 3
    assert math.isfinite(values[-1])
    assert log10_bound(0.0, pairs=10) == 0.0
    with pytest.raises(ValueError, match="floor"):
        log10_bound(1.0, pairs=10, floor=0.0)


def test_the_p_values_of_pairs_are_the_keyed_uniforms() -> None:
    from watermark import kernels

    mark = GreenListMark(scope_of(window=2))
    tally = tally_of([np.random.default_rng(1).integers(0, 500, 3000).astype(np.uint32)], window=2)
    p = pair_p_values(tally, mark)
    assert ((p < 0.25) == mark.scores(tally)).all()
    words = mark.scope.lane_words()
    for i in range(0, len(p), 401):
        w = tally.pair_window[i]
        one = words[tally.lanes[w]]
        u = kernels.row(one[0], one[1], tally.windows[w], int(tally.tokens[i]) + 1)[-1]
        assert p[i] == pytest.approx(int(u) / 2**64, abs=1e-15)


def test_finds_a_mark_and_says_that_it_degenerates() -> None:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 400, 20_000).astype(np.uint32)
    mark = GreenListMark(scope_of(window=1))
    tally = tally_of([ids], window=1)
    null = goodness_of_fit(tally, mark, draws=199)
    assert null.degenerate
    assert null.draws == 199
    assert null.log10_p > -2
    green = mark.scores(tally)
    from dataclasses import replace

    kept = replace(tally, said=np.where(green | (rng.random(len(green)) < 0.5), tally.said, 0))
    found = goodness_of_fit(kept, mark, draws=199)
    assert found.log10_p_bound < -50
    assert found.log10_p == pytest.approx(found.log10_p_bound + math.log10(2))
    # The tip of the tent: at gamma, where the count looks.
    assert found.level == pytest.approx(0.25, abs=0.01)


def test_nothing_said_is_no_finding() -> None:
    result = goodness_of_fit(tally_of([], window=1), GreenListMark(scope_of(window=1)), draws=99)
    assert result.pairs == 0
    assert result.log10_p == 0.0
    assert math.isnan(result.level)


class Weak(GreenListMark):
    exact = False


def test_refuses_marks_without_a_law() -> None:
    with pytest.raises(UsageError, match="independent"):
        goodness_of_fit(tally_of([], window=1), Weak(scope_of(window=1)))


@pytest.mark.parametrize("keys", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_false_positive_rate(keys: int, repetitive: list[np.ndarray]) -> None:
    """Random keys on repetitive real text: the Monte Carlo p is uniform, the reported one below."""
    tally = tally_of(repetitive[:1], window=1)
    rng = np.random.default_rng(4)
    reported, drawn = np.zeros(keys), np.zeros(keys)
    for i in range(keys):
        mark = GreenListMark(scope_of(key=int(rng.integers(1, 2**62)), window=1))
        result = goodness_of_fit(tally, mark, draws=199, seed=i)
        reported[i], drawn[i] = result.log10_p, result.log10_p_monte_carlo
    for level in (0.5, 0.1, 0.01):
        nominal = keys * level
        assert (drawn <= math.log10(level) + 1e-12).sum() <= nominal + 4 * math.sqrt(nominal)
        assert (reported <= math.log10(level) + 1e-12).sum() <= nominal / 2 + 4 * math.sqrt(nominal)
    assert (drawn <= math.log10(0.1) + 1e-12).sum() >= 0.1 * keys - 4 * math.sqrt(0.1 * keys)
