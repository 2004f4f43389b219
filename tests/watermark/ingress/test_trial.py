from __future__ import annotations

import math
from fractions import Fraction
from importlib.resources import files

import numpy as np
import pytest
from scipy.stats import binom
from small_server import END

from watermark import kernels
from watermark.green_list import GreenList
from watermark.ingress.trial import ANSWERS, LEVEL, Evidence, evidence_of, level_of
from watermark.keyring import Keyring
from watermark.keys import Params, ScopeKeys, Secret
from watermark.tokenizer import load

PARAMS = Params(tokenizer="ab" * 32, special_ids=(END,), window=2, fleet_k=64, account_k=128, account_lanes=16)


@pytest.mark.parametrize("window", [1, 2])
def test_unmarked_repetitive_text_passes_no_more_often_than_it_may(window: int) -> None:
    """5,000 random keys on real text said three times over; the count by the kernels, which the test does not use."""
    text = files("watermark").joinpath("probe.txt").read_text(encoding="utf-8")
    ids = load("smollm2").encode(text).tolist() * 3
    params = Params(tokenizer="ab" * 32, special_ids=(), window=window, account_lanes=16)
    pairs = np.array(sorted({tuple(ids[e - window : e + 1]) for e in range(window, len(ids))}), dtype=np.uint32)
    windows, tokens = np.ascontiguousarray(pairs[:, :window]), np.ascontiguousarray(pairs[:, window])
    lanes = kernels.lanes(windows)
    kept = lanes < params.fleet_lanes
    windows, tokens, lanes = windows[kept], tokens[kept], lanes[kept]
    each = (np.arange(len(tokens)), tokens, np.ones((len(tokens), 1), dtype=np.int64))

    def greens(keys: np.ndarray) -> np.ndarray:
        return np.asarray(kernels.green_sums(keys, windows, lanes, params.bounds(), *each)[:, 0])

    for number in range(3):
        scope = ScopeKeys(name="a", params=params, delta=2.0, key=Secret(bytes([number] * 32)))
        found = evidence_of(GreenList(scope), [ids])
        assert (found.pairs, found.green) == (len(tokens), greens(scope.lane_words()[None])[0])
    keys = np.random.default_rng(window).integers(0, 2**64, (5000, 64, 2), dtype=np.uint64)
    p = np.array([Evidence(len(tokens), int(green), 0.25, 2.0).p for green in greens(keys)])
    for level in (0.1, 0.01, 0.001):
        assert (p <= level).sum() <= binom.isf(1e-4, len(p), level)


def test_the_tail_is_that_of_exact_arithmetic() -> None:
    for pairs, green in ((9, 0), (9, 9), (190, 60), (700, 240)):
        terms = (math.comb(pairs, k) * 3 ** (pairs - k) for k in range(green, pairs + 1))
        exact = Fraction(sum(terms), 4**pairs)
        assert Evidence(pairs, green, 0.25, 2.0).p == pytest.approx(float(exact), rel=1e-9)


def test_the_levels_of_all_looks_add_up_to_no_more_than_1e_4() -> None:
    assert ANSWERS * level_of(1) == pytest.approx(LEVEL / 2)
    assert 0.99 * LEVEL < sum(ANSWERS * level_of(trial) for trial in range(1, 1000)) < LEVEL


def test_evidence_counts_distinct_pairs_outside_of_special_ids() -> None:
    scope = Keyring.create("a", params=PARAMS, delta=2.0, state="active").scope()
    green_list = GreenList(scope)
    base = list(range(10, 60))
    once = evidence_of(green_list, [base])
    assert evidence_of(green_list, [base, base]) == once
    assert 0 < once.pairs <= 48
    cut = evidence_of(green_list, [[*base[:25], END, *base[25:]]])
    assert cut.pairs < once.pairs
    assert evidence_of(green_list, [[1], []]) == Evidence(0, 0, 0.25, 2.0)
    assert Evidence(0, 0, 0.25, 2.0).p == 1
