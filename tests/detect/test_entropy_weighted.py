"""Entropy weights: their values by hand, and their null."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import scope_of

from detect.decoys import random_words
from detect.entropy_weighted import ENTROPY_WEIGHTED, entropy_weighting, spike_modulus
from detect.ngram_reference import ngram_reference
from detect.reference import Reference
from detect.tally import UNIT, Tally, tally_of
from detect.weighted_sums import WeightedSum
from watermark import kernels


def reference_of(ids: np.ndarray, rows: list[list[float]]) -> Reference:
    top_p = np.array(rows, dtype=np.float32)
    return Reference(
        name="r",
        tokenizer="00" * 32,
        ids=ids,
        starts=np.array([0, len(ids)]),
        top_ids=np.tile(np.arange(top_p.shape[1], dtype=np.uint32), (len(ids), 1)),
        top_p=top_p,
        said_p=np.zeros(len(ids), dtype=np.float32),
    )


def test_the_modulus_is_the_papers() -> None:
    gamma, delta = 0.25, 2.0
    alpha = math.exp(delta)
    assert spike_modulus(gamma=gamma, delta=delta) == pytest.approx(
        (1 - gamma) * (alpha - 1) / (1 + (alpha - 1) * gamma)
    )


def test_weights_by_hand() -> None:
    """The pair (1, 2) is said twice: its weight is the mean over both places."""
    ids = np.array([1, 2, 1, 2, 1, 3], dtype=np.uint32)
    rows = [[0, 0], [0.5, 0.5], [1, 0], [0.25, 0.25], [0.75, 0.25], [1, 0]]
    reference = reference_of(ids, [[float(p) for p in row] for row in rows])
    tally = tally_of([ids], window=1, reference=reference)
    z = 0.8
    weights = entropy_weighting(modulus=z).weigh(tally, reference).values / UNIT
    least = 1 / (1 + z)

    def spike(*p: float, rest: float = 0.0) -> float:
        return sum(each / (1 + z * each) for each in p) + rest - least

    expected = {
        (1, 2): (spike(0.5, 0.5) + spike(0.25, 0.25, rest=0.5)) / 2,
        (2, 1): (0.0 + spike(0.75, 0.25)) / 2,
        (1, 3): 0.0,
    }
    for pair in np.flatnonzero(tally.said):
        name = (int(tally.windows[tally.pair_window[pair], 0]), int(tally.tokens[pair]))
        assert weights[pair] == pytest.approx(expected[name], abs=1e-7), name
    assert (weights[tally.said == 0] == 0).all()


def test_wants_a_reference_that_fits() -> None:
    ids = np.array([1, 2, 1], dtype=np.uint32)
    tally = tally_of([ids], window=1)
    with pytest.raises(ValueError, match="wants a reference"):
        ENTROPY_WEIGHTED.weigh(tally)
    with pytest.raises(ValueError, match="3"):
        ENTROPY_WEIGHTED.weigh(tally, reference_of(ids[:2], [[1.0], [1.0]]))
    with pytest.raises(ValueError, match="modulus"):
        entropy_weighting(modulus=0.0)


def false_positives(repetitive: list[np.ndarray], clean: list[np.ndarray], *, keys: int, window: int) -> np.ndarray:
    reference = ngram_reference(
        repetitive, clean, order=window + 1, vocabulary_size=50_000, tokenizer="00" * 32, name="clean"
    )
    tally: Tally = tally_of(repetitive, window=window, reference=reference)
    values = ENTROPY_WEIGHTED.weigh(tally, reference).values
    assert (values[tally.said > 0] > 0).mean() > 0.5
    sums = kernels.green_sums(
        random_words(keys, seed=5),
        tally.windows,
        tally.lanes,
        scope_of(window=window).params.bounds(),
        tally.pair_window,
        tally.tokens,
        np.ascontiguousarray(values[:, None]),
    )[:, 0]
    law = WeightedSum(values / UNIT, gamma=0.25)
    statistics = (sums - 0.25 * float(values.sum())) / UNIT
    assert abs((statistics / law.sd).std() - 1) < 5 / math.sqrt(2 * keys)
    return law.log10_chernoff_many(statistics)


@pytest.mark.parametrize("keys", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_false_positive_rate(keys: int, repetitive: list[np.ndarray], clean: list[np.ndarray]) -> None:
    log10_ps = false_positives(repetitive, clean, keys=keys, window=1)
    for level in (1e-1, 1e-2, 1e-3):
        nominal = keys * level
        assert (log10_ps <= math.log10(level)).sum() <= nominal + 4 * math.sqrt(nominal) + 1
    assert (log10_ps <= math.log10(0.3)).sum() > 0.02 * keys
