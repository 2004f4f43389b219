"""Validity: thousands of random keys on repetitive real text give small p-values no more often than they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import corpus_of, scope_of, shape_of

from detect.calibration import CalibrationResult, calibrate
from detect.centred import CENTRED
from detect.decoys import decoy_words, random_words
from detect.family import FAMILY
from detect.ngram_reference import ngram_reference
from detect.reference import Reference
from detect.tally import tally_of
from detect.weighted_sums import WeightedSum

KEYS = 10_000


def most_allowed(level: float, keys: int) -> int:
    """The largest count that a binomial with the nominal rate exceeds with probability under 1e-4."""
    from scipy.special import bdtrc

    return next(k for k in range(keys) if bdtrc(k, keys, level) < 1e-4)


def check(result: CalibrationResult, test: str) -> None:
    for rate in result.rates[test]:
        assert rate.below <= most_allowed(rate.level, rate.keys), (test, rate)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_false_positive_rates(window: int, repetitive: list[np.ndarray], references: dict[int, Reference]) -> None:
    result = calibrate(
        corpus_of(repetitive),
        scope_of(window=window).params,
        keys=KEYS,
        seed=window,
        reference=references[window],
        weightings=list(FAMILY.values()),
    )
    for test in ("count", *FAMILY):
        check(result, test)
        assert abs(result.sds[test] - 1) < 0.05
    # The rates are also not far below nominal: a test that never fires would pass the lines above.
    assert result.rates["count"][1].rate > 0.006
    assert result.rates["centred"][0].rate > 0.005
    # For contrast: the z-score over repeats, which the field's detectors report.
    assert result.sds["naive z"] > 1.1
    assert result.rates["naive z"][2].low > result.rates["naive z"][2].level


def test_the_calibration_can_fail(repetitive: list[np.ndarray]) -> None:
    """A weight that looks at the key is caught: the pooled count of the better half of the documents."""
    params = scope_of().params
    halves = [repetitive[::2], repetitive[1::2]]
    better = np.zeros(2000)
    for half in halves:
        tally = tally_of(half, **shape_of(params))
        from detect.binomial import log10_tails
        from watermark import kernels

        sums = kernels.green_sums(
            random_words(2000, seed=3),
            tally.windows,
            tally.lanes,
            params.bounds(),
            tally.pair_window,
            tally.tokens,
            np.ones((len(tally.tokens), 1), dtype=np.int64),
        )
        better = np.minimum(better, log10_tails(sums[:, 0], pairs=len(tally.tokens), k=64))
    assert (better <= math.log10(0.1)).mean() > 0.15


def test_decoys_are_keys_like_any_other(repetitive: list[np.ndarray], references: dict[int, Reference]) -> None:
    """The statistic's moments over derived decoy keys are those of the null, computed from the weights alone."""
    scope = scope_of()
    params = scope.params
    tally = tally_of(repetitive, **shape_of(params), reference=references[1])
    weights = CENTRED.weigh(tally, references[1]).values
    from watermark import kernels

    sums = kernels.green_sums(
        np.asarray(decoy_words(scope, count=999)),
        tally.windows,
        tally.lanes,
        params.bounds(),
        tally.pair_window,
        tally.tokens,
        weights[:, None].copy(),
    )[:, 0]
    law = WeightedSum(weights / 2**32, gamma=0.25)
    z = (sums / 2**32 - 0.25 * weights.sum() / 2**32) / law.sd
    assert abs(z.mean()) < 4 / math.sqrt(999)
    assert abs(z.std() - 1) < 4 / math.sqrt(2 * 999)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / math.sqrt(999)


def test_lanes_and_windows_carry_the_nominal_share(repetitive: list[np.ndarray]) -> None:
    """Over 2,000 keys each lane's green count has the binomial's mean and variance."""
    params = scope_of(window=2).params
    tally = tally_of(repetitive, **shape_of(params))
    from watermark import kernels

    lanes = tally.lanes[tally.pair_window]
    columns = (lanes[:, None] == np.arange(8)[None, :]).astype(np.int64)
    sums = kernels.green_sums(
        random_words(2000, seed=11),
        tally.windows,
        tally.lanes,
        params.bounds(),
        tally.pair_window,
        tally.tokens,
        np.ascontiguousarray(columns),
    )
    n = columns.sum(axis=0)
    z = (sums - 0.25 * n) / np.sqrt(n * 0.25 * 0.75)
    assert (np.abs(z.mean(axis=0)) < 5 / math.sqrt(2000)).all()
    assert (np.abs(z.std(axis=0) - 1) < 5 / math.sqrt(4000)).all()


def test_calibrating_nothing_gives_numbers() -> None:
    ids = [np.arange(2, dtype=np.uint32)]
    reference = ngram_reference(
        ids, [np.arange(9, dtype=np.uint32)], order=2, vocabulary_size=50_000, tokenizer="00" * 32, name="r"
    )
    result = calibrate(corpus_of(ids, [ids]), scope_of().params, keys=50, reference=reference)
    assert result.pairs == 0
    assert all(math.isfinite(sd) for sd in result.sds.values())
