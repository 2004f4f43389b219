"""Others' tests, by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from builders import scope_of

import detect.distillation
from detect.baselines import UNCENTRED, deduplicated_binomial, frequent_windows, hoeffding, naive_z
from detect.binomial import log10_tail
from detect.mark import GreenListMark
from detect.open_weight import ContextCollector, Origin
from detect.tally import tally_of
from watermark.errors import UsageError

IDS = np.random.default_rng(0).integers(0, 60, 4000).astype(np.uint32)
MARK = GreenListMark(scope_of(window=1))


def green(window: int, token: int) -> bool:
    tally = tally_of([np.array([window, token], dtype=np.uint32)], window=1)
    return bool(MARK.scores(tally)[0])


def test_deduplicated_binomial_counts_each_pair_once() -> None:
    pairs = {(int(a), int(b)) for a, b in pairwise(IDS)}
    result = deduplicated_binomial(tally_of([IDS], window=1), MARK)
    count = sum(green(*pair) for pair in pairs)
    assert (result.n, result.mean) == (len(pairs), count / len(pairs))
    assert result.log10_p == log10_tail(count, pairs=len(pairs), k=64)
    assert result.valid


def test_the_filter_keeps_frequent_windows() -> None:
    served = [np.array([1, 2, 1, 3, 1], dtype=np.uint32), np.array([2, 9], dtype=np.uint32)]
    assert frequent_windows(served, window=1, least=2).tolist() == [[1], [2]]
    assert frequent_windows([], window=2, least=1).shape == (0, 2)
    tally = tally_of([IDS], window=1)
    result = deduplicated_binomial(tally, MARK, windows=frequent_windows(served, window=1, least=3))
    assert result.n == len({int(b) for a, b in pairwise(IDS) if a == 1})
    nothing = deduplicated_binomial(tally, MARK, windows=np.zeros((0, 1), dtype=np.uint32))
    assert (nothing.n, nothing.log10_p) == (0, 0.0)


def test_naive_z_counts_repeats() -> None:
    tally = tally_of([IDS], window=1)
    result = naive_z(tally, MARK)
    n = len(IDS) - 1
    count = sum(green(int(a), int(b)) for a, b in pairwise(IDS))
    z = (count - n / 4) / math.sqrt(n * 3 / 16)
    assert result.n == n
    assert 10**result.log10_p == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)))
    assert not result.valid


def test_hoeffding_takes_the_first_context_of_each_window() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(20), 3).astype(np.float32)
    q = np.full((3, 20), 0.05, dtype=np.float32)
    collector = ContextCollector(window=1, floor=0.0)
    collector.add(np.array([[4], [5], [4]], dtype=np.uint32), p, q)
    tally = collector.tally()
    greens = np.array([[green(w, v) for v in range(20)] for w in (4, 5)])
    mean = float((p[:2] * greens).sum(axis=1).mean())
    result = hoeffding(tally, MARK)
    assert result.n == 2
    assert result.mean == pytest.approx(mean, abs=1e-6)
    assert result.log10_p == pytest.approx(-4 * max(0.0, mean - 0.25) ** 2 / math.log(10), abs=1e-6)
    weights = UNCENTRED.weigh(tally).values / 2**32
    at = (tally.pair_window == 0) & (tally.tokens == 7)
    assert weights[at][0] == pytest.approx(p[0, 7] + p[2, 7], abs=1e-6)
    with pytest.raises(UsageError, match="key-free"):
        hoeffding(ContextCollector(window=1, origin=Origin.MARKED).tally(), MARK)
    with pytest.raises(TypeError, match="LogitTally"):
        UNCENTRED.weigh(tally_of([IDS], window=1))


def test_no_default_path_reaches_them() -> None:
    assert not any("baselines" in str(vars(detect.distillation).get(name)) for name in vars(detect.distillation))
