"""The supervised test: valid although the windows that were served depend on the key."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import scope_of
from hypothesis import given, settings
from hypothesis import strategies as st

from detect.family import SCORE
from detect.mark import GreenListMark
from detect.supervised import served_order, supervised_test
from detect.tally import Tally, tally_of
from detect.weighted_sums import WeightedSum
from detect.weighting import Weighting
from watermark import kernels

V = 60


def mark_of(key: int) -> GreenListMark:
    return GreenListMark(scope_of(key=key, special_ids=(0,)))


def colours(mark: GreenListMark) -> np.ndarray:
    """Which token is green after which, (V, V)."""
    ids = np.arange(V, dtype=np.uint32)[:, None]
    lanes = kernels.lanes(ids)
    seeds = kernels.seeds(mark.scope.lane_words(), ids, lanes)
    pair_window, tokens = np.divmod(np.arange(V * V), V)
    bounds = mark.scope.params.bounds()[lanes]
    return kernels.green(seeds, bounds, pair_window, tokens.astype(np.uint32)).reshape(V, V)


def answers(mark: GreenListMark, rng: np.random.Generator, *, count: int, length: int = 12) -> list[np.ndarray]:
    """Marked answers of a model that would say anything after anything."""
    odds = np.exp(3.0 * colours(mark))
    odds[:, 0] = 0.3
    cumulative = np.cumsum(odds / odds.sum(axis=1, keepdims=True), axis=1)
    out = []
    for _ in range(count):
        ids = [int(rng.integers(1, V))]
        while len(ids) < length and ids[-1] != 0:
            ids.append(min(V - 1, int(np.searchsorted(cumulative[ids[-1]], rng.random()))))
        out.append(np.array(ids, dtype=np.uint32))
    return out


def clean_text(seed: int = 5, tokens: int = 900) -> Tally:
    rng = np.random.default_rng(seed)
    text = np.minimum(rng.zipf(1.3, tokens), V - 1).astype(np.uint32)
    return tally_of([text], window=1, special_ids=(0,))


def first_visits(served: list[list[int]], window: int, special: set[int], tally: Tally) -> list[int]:
    rows = [tuple(row) for row in tally.windows.tolist()]
    found: list[int] = []
    for ids in served:
        for i in range(len(ids) - window + 1):
            row = tuple(ids[i : i + window])
            if not special & set(row) and row in rows and rows.index(row) not in found:
                found.append(rows.index(row))
    return found


@settings(max_examples=150, deadline=None)
@given(
    window=st.integers(1, 3),
    text=st.lists(st.integers(0, 5), min_size=4, max_size=40),
    served=st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=5),
)
def test_order_is_that_of_the_first_visit(window: int, text: list[int], served: list[list[int]]) -> None:
    tally = tally_of([np.array(text, dtype=np.uint32)], window=window, special_ids=(3,))
    ids = [np.array(each, dtype=np.uint32) for each in served]
    got, visitors = served_order(ids, window=window, special_ids=(3,), tally=tally)
    assert got.tolist() == first_visits(served, window, {3}, tally)
    for number, visitor in zip(got.tolist(), visitors.tolist(), strict=True):
        assert number in first_visits(served[visitor : visitor + 1], window, {3}, tally)
        assert all(number not in first_visits([earlier], window, {3}, tally) for earlier in served[:visitor])


@pytest.mark.parametrize("keys", [400, pytest.param(4000, marks=pytest.mark.slow)])
def test_clean_suspects_of_a_marked_ledger(keys: int) -> None:
    """The served text is marked with each key, the suspect never saw it."""
    tally = clean_text()
    weights = SCORE.weigh(tally)
    es, ps, control = np.empty(keys), np.empty(keys), np.empty(keys)
    for key in range(keys):
        mark = mark_of(key + 1)
        served = answers(mark, np.random.default_rng(key), count=6)
        result = supervised_test(weights, mark=mark, tally=tally, served=served)
        es[key], ps[key], control[key] = result.log10_e, result.log10_p, result.never_served.log10_p
        assert result.log10_p <= min(0.0, -result.log10_e)
    mean = 10**es
    assert mean.mean() <= 1 + 4 * mean.std() / math.sqrt(keys)
    for alpha in (0.1, 0.01):
        for p in (ps, control):
            assert (p <= math.log10(alpha)).mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / keys)
    assert es.std() > 0.05  # It does look at the bits.


@pytest.mark.parametrize("keys", [300, pytest.param(4000, marks=pytest.mark.slow)])
def test_first_visits_by_some_accounts_alone_are_as_valid(keys: int) -> None:
    """Which windows they visit first depends on the key, and so on every answer before."""
    tally = clean_text()
    weights = SCORE.weigh(tally)
    es, ps, windows = np.empty(keys), np.empty(keys), 0
    for key in range(keys):
        mark = mark_of(key + 1)
        served = answers(mark, np.random.default_rng(key), count=6)
        counted = np.arange(len(served)) % 2 == 1
        result = supervised_test(weights, mark=mark, tally=tally, served=served, counted=counted, accounts=1)
        every = supervised_test(weights, mark=mark, tally=tally, served=served)
        assert result.windows_never == every.windows_never
        windows += 0 < result.windows_served < every.windows_served
        es[key], ps[key] = result.log10_e, result.log10_p
    assert windows > keys / 2
    mean = 10**es
    assert mean.mean() <= 1 + 4 * mean.std() / math.sqrt(keys)
    for alpha in (0.1, 0.01):
        assert (ps <= math.log10(alpha)).mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / keys)


def test_stopping_the_ledger_at_a_high_sum_fools_the_tail_and_not_the_e_process() -> None:
    tally = clean_text()
    weights = SCORE.weigh(tally)
    keys, fooled, crossed = 100, 0, 0
    for key in range(keys):
        mark = mark_of(key + 1)
        rng = np.random.default_rng(key)
        green = mark.scores(tally)
        served = answers(mark, rng, count=30, length=6)
        rank = np.full(len(tally.windows), len(served), dtype=np.int64)
        seen: set[int] = set()
        for number, ids in enumerate(served):
            for window in served_order([ids], window=1, special_ids=(0,), tally=tally)[0].tolist():
                if window not in seen:
                    rank[window] = number
                    seen.add(window)
        a = weights.values / 2**32
        at = rank[tally.pair_window]
        stop = len(served)
        for number in range(len(served)):
            inside = at <= number
            law = WeightedSum(a[inside], gamma=0.25)
            if law.log10_saddlepoint(float(a[inside] @ (green[inside] - 0.25))) <= -1:
                stop = number + 1
                fooled += 1
                break
        result = supervised_test(weights, mark=mark, tally=tally, served=served[:stop])
        crossed += result.log10_p <= -1
    assert fooled / keys > 0.15  # The tail at 0.1, reached by ending the ledger when it is.
    assert crossed / keys <= 0.1 + 4 * math.sqrt(0.09 / keys)


def test_pairs_that_were_served_are_green_by_construction() -> None:
    mark = mark_of(3)
    served = answers(mark, np.random.default_rng(1), count=200)
    tally = tally_of(served, window=1, special_ids=(0,))
    green = mark.scores(tally)
    assert green[tally.said > 0].mean() > 0.5  # Under the null it would be 0.25.


def test_a_student_that_learnt_where_it_was_served() -> None:
    mark = mark_of(11)
    rng = np.random.default_rng(2)
    served = [
        ids[ids < V // 2] for ids in answers(mark, rng, count=400, length=20)
    ]  # Half of the windows are never served.
    odds = np.ones((V, V))
    learnt, _ = served_order(served, window=1, special_ids=(0,), tally=clean_text())
    windows = clean_text().windows[learnt, 0]
    odds[windows] = np.exp(0.8 * colours(mark)[windows])
    odds[:, 0] = 0
    cumulative = np.cumsum(odds / odds.sum(axis=1, keepdims=True), axis=1)
    ids = [1]
    for _ in range(12_000):
        ids.append(min(V - 1, int(np.searchsorted(cumulative[ids[-1]], rng.random()))))
    tally = tally_of([np.array(ids, dtype=np.uint32)], window=1, special_ids=(0,))
    # The centred weight of a model that says anything after anything.
    n = np.bincount(tally.pair_window, weights=tally.said)[tally.pair_window]
    values = np.rint((tally.said - n / (V - 1)) * 2**32).astype(np.int64)
    weights = Weighting(name="uniform", rule=lambda tally, reference: values, needs_reference=False).weigh(tally)
    result = supervised_test(weights, mark=mark, tally=tally, served=served)
    assert 0 < result.windows_served < result.windows
    assert result.log10_p < -6
    assert result.never_served.log10_p > -3


def test_nothing_served_says_nothing() -> None:
    tally, mark = clean_text(), mark_of(1)
    result = supervised_test(SCORE.weigh(tally), mark=mark, tally=tally, served=[])
    assert (result.log10_p, result.log10_e, result.pairs) == (0.0, 0.0, 0)
    with pytest.raises(TypeError, match="Weights"):
        supervised_test(np.ones(len(tally.tokens)), mark=mark, tally=tally, served=[])  # type: ignore[arg-type]
