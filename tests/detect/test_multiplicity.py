from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect.multiplicity import holm, rank_p

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
