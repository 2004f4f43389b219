from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect.multiplicity import e_bh, e_to_p, holm, mean_e, rank_p

LOG10_PS = st.lists(st.floats(-5000, 0), max_size=12)


def naive_holm(log10_ps: list[float]) -> list[float]:
    """Holm 1979, section 3, read literally: the largest of (m - i + 1) p_(i) over the p's up to one's own."""
    ordered = sorted(log10_ps)
    adjusted = []
    for log10_p in log10_ps:
        own = max(rank for rank, other in enumerate(ordered) if other == log10_p)
        adjusted.append(min(0.0, max(ordered[i] + math.log10(len(ordered) - i) for i in range(own + 1))))
    return adjusted


@given(LOG10_PS)
def test_holm_is_the_naive_loop(log10_ps: list[float]) -> None:
    assert holm(log10_ps) == pytest.approx(naive_holm(log10_ps), abs=1e-12)


@given(LOG10_PS.filter(bool))
def test_holm_is_monotone_and_does_not_mind_the_order(log10_ps: list[float]) -> None:
    adjusted = holm(log10_ps)
    assert all(0.0 >= after >= before for after, before in zip(adjusted, log10_ps, strict=True))
    order = np.argsort(log10_ps)
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0.0)
    assert min(adjusted) == min(0.0, min(log10_ps) + math.log10(len(log10_ps)))
    assert holm(log10_ps[::-1]) == adjusted[::-1]


def test_holm_by_hand() -> None:
    # p = 0.01, 0.04, 0.03, 0.005 adjust to 0.03, 0.06, 0.06, 0.02 (R: p.adjust(c(.01,.04,.03,.005), "holm")).
    adjusted = holm([math.log10(p) for p in (0.01, 0.04, 0.03, 0.005)])
    assert [10**p for p in adjusted] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([-3.0]) == [-3.0]
    assert holm([-0.1, -0.1]) == [0.0, 0.0]
    # Far past what a float64 p can hold, and still apart.
    assert holm([-5000.0, -4000.0]) == pytest.approx([-5000.0 + math.log10(2), -4000.0])


@pytest.mark.parametrize("bad", [0.5, math.nan, math.inf])
def test_holm_refuses_what_is_no_p(bad: float) -> None:
    with pytest.raises(ValueError, match="place 1"):
        holm([-1.0, bad])


def test_rank_counts_ties_against_the_finding() -> None:
    assert rank_p(2.0, decoys=[1.0, 2.0, 3.0]) == (3, 4)
    assert rank_p(4.0, decoys=[1.0, 2.0, 3.0]) == (1, 4)
    assert rank_p(0.0, decoys=np.arange(1, 1000)) == (1000, 1000)
    assert rank_p(0.0, decoys=[]) == (1, 1)
    with pytest.raises(ValueError, match="NaN"):
        rank_p(math.nan, decoys=[1.0])
    with pytest.raises(ValueError, match="NaN"):
        rank_p(1.0, decoys=[1.0, math.nan])


def test_rank_keeps_integers_apart_that_float64_does_not() -> None:
    assert rank_p(2**60, decoys=np.array([2**60 - 1], dtype=np.int64)) == (1, 2)


def test_rank_is_uniform_under_the_null() -> None:
    draws = np.random.default_rng(3).integers(0, 30, size=(4000, 20))
    p = np.array([rank / count for rank, count in (rank_p(row[0], decoys=row[1:]) for row in draws)])
    for alpha in (0.05, 0.1, 0.25, 0.5):
        assert (p <= alpha + 1e-12).mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / 4000)
    # And not so shy as to be empty.
    assert (p <= 0.5).mean() > 0.4


ES = st.lists(st.floats(-300, 300), min_size=1, max_size=8)


@given(ES)
def test_mean_of_e_values_is_the_plain_mean(log10_es: list[float]) -> None:
    plain = math.log10(math.fsum(10.0 ** (e - 300) for e in log10_es) / len(log10_es) + 1e-320) + 300
    if max(log10_es) > -5:
        assert mean_e(log10_es) == pytest.approx(plain, abs=1e-6)
    assert mean_e(log10_es) <= max(log10_es)


def test_mean_of_e_values_beyond_float64() -> None:
    assert mean_e([5000.0, 4000.0]) == pytest.approx(5000 - math.log10(2))
    assert mean_e([-math.inf, -math.inf]) == -math.inf
    with pytest.raises(ValueError, match="at least one"):
        mean_e([])
    with pytest.raises(ValueError, match="place 0"):
        mean_e([math.nan])


@given(st.lists(st.floats(-3, 6), min_size=1, max_size=10), st.sampled_from([0.01, 0.05, 0.3]))
def test_e_bh_is_the_definition(log10_es: list[float], level: float) -> None:
    n = len(log10_es)
    ordered = sorted((10**e for e in log10_es), reverse=True)
    k = max((i for i in range(1, n + 1) if i * ordered[i - 1] >= n / level * (1 + 1e-9)), default=0)
    most = max((i for i in range(1, n + 1) if i * ordered[i - 1] >= n / level * (1 - 1e-9)), default=0)
    assert k <= sum(e_bh(log10_es, level=level)) or log10_es.count(min(log10_es)) > 1
    assert sum(e_bh(log10_es, level=level)) >= k
    assert most or not any(e_bh(log10_es, level=level))


def test_e_bh_keeps_the_false_discovery_rate_under_dependence() -> None:
    """Twenty nulls that all rest on one draw: e = 1 / (20 u) below 1 / 20, the worst that a mean of 1 allows."""
    rng = np.random.default_rng(1)
    level, false = 0.1, 0
    for u in rng.random(4000):
        log10_e = math.log10(200.0) if u < 1 / 200 else -9.0
        false += any(e_bh([log10_e] * 20, level=level))
    assert false / 4000 <= level
    with pytest.raises(ValueError, match="level"):
        e_bh([1.0], level=1.0)
    assert e_bh([], level=0.1) == []


def test_e_to_p() -> None:
    assert e_to_p(5000.0) == -5000.0
    assert e_to_p(-1.0) == 0.0
    assert e_to_p(-math.inf) == 0.0
    with pytest.raises(ValueError, match="infinity"):
        e_to_p(math.inf)
