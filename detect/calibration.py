"""How often do the tests cry wolf? The false-positive rate on any corpus, over many random keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detect.binomial import green_interval, log10_tails
from detect.corpus import Corpus
from detect.decoys import random_words
from detect.family import DEFAULT, SCORE
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy, tally_of
from detect.weighted_sums import WeightedSum
from detect.weighted_test import green_statistics
from detect.weighting import Weighting
from watermark import kernels
from watermark.keys import Params

__all__ = ["NAIVE", "CalibrationResult", "Rate", "calibrate"]

#: The test that is shown for contrast.
NAIVE = "naive z"

LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)

#: Keys scored between two reports of progress.
_BATCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How many of the keys gave a p at or below a level, beside how many should at most."""

    level: float
    below: int
    keys: int
    low: float
    high: float
    """Ends of the 95% Clopper-Pearson interval of the rate."""

    @property
    def rate(self) -> float:
        """The share of keys."""
        return self.below / self.keys

    @property
    def within(self) -> bool:
        """Whether the nominal rate lies in the interval or above it."""
        return self.low <= self.level


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationResult:
    """False-positive rates of the tests on a corpus that no key has marked."""

    keys: int
    seed: int
    window: int
    gamma_256: int
    tokens: int
    pairs: int
    """Distinct pairs."""
    positions: int
    """Scored positions, repeats included."""
    rates: dict[str, list[Rate]]
    """By test: "count", the weighted tests by name, and "naive z", for contrast: the z-score over all positions,
    repeats counted as if they were independent, against the normal tail. It is not valid and never reported."""
    sds: dict[str, float]
    """Standard deviation of each test's z over the keys: 1 if the null's variance is right."""
    log10_ps: dict[str, npt.NDArray[np.float64]] = field(repr=False, compare=False)
    """Every key's log10 p, (keys,), by test."""


def calibrate(
    corpus: Corpus,
    params: Params,
    *,
    keys: int = 10_000,
    seed: int = 0,
    reference: Reference | None = None,
    weightings: Sequence[Weighting] = DEFAULT,
    policy: PromptPolicy = PromptPolicy.OWN,
    progress: Callable[[int], None] = lambda keys: None,
) -> CalibrationResult:
    """Score a corpus under random keys that had no part in it.

    The null of every test, that the text is independent of the key, holds here for each key by construction; so a
    valid test gives a p at or below a level under at most that share of the keys, within binomial error.

    Args:
        corpus: any text that none of the keys has marked, which is any text.
        params: window, gamma and special ids.
        keys: how many keys.
        seed: from which they are drawn.
        reference: for the weighted tests.
        weightings: the weighted tests; those that need a reference are left out without one.
        policy: as in `detect_model`.
        progress: called with the number of keys scored since the last call.

    Raises:
        ReferenceMismatchError: the reference is of other text.
    """
    tally = tally_of(
        corpus.responses,
        window=params.window,
        special_ids=params.special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
        reference=reference,
    )
    in_fleet = tally.in_lanes(range(params.fleet_lanes))
    said = SCORE.weigh(tally).within(in_fleet).values != 0
    weights = [
        weighting.weigh(tally, reference).within(in_fleet)
        for weighting in weightings
        if reference is not None or not weighting.needs_reference
    ]
    columns = np.ascontiguousarray(
        np.column_stack([said.astype(np.int64), np.where(in_fleet, tally.said, 0), *(each.values for each in weights)])
    )
    words = random_words(keys, seed=seed)
    sums = np.empty((keys, columns.shape[1]), dtype=np.int64)
    for start in range(0, keys, _BATCH):
        part = words[start : start + _BATCH]
        sums[start : start + _BATCH] = kernels.green_sums(
            part, tally.windows, tally.lanes, params.bounds(), tally.pair_window, tally.tokens, columns
        )
        progress(len(part))
    k, gamma = params.fleet_k, params.fleet_k / 256
    pairs, positions = int(said.sum()), int(columns[:, 1].sum())
    log10_ps = {"count": log10_tails(sums[:, 0], pairs=pairs, k=k)}
    zs = {"count": _z(sums[:, 0], pairs, gamma), NAIVE: _z(sums[:, 1], positions, gamma)}
    for number, each in enumerate(weights, start=2):
        law = WeightedSum(each.values / UNIT, gamma=gamma)
        statistics = green_statistics(sums[:, number], total=int(each.values.sum()), k=k)
        log10_ps[each.name] = law.log10_chernoff_many(statistics)
        zs[each.name] = statistics / law.sd if law.sd else np.zeros(keys)
    log10_ps[NAIVE] = _normal_tails(zs[NAIVE])
    return CalibrationResult(
        keys=keys,
        seed=seed,
        window=params.window,
        gamma_256=k,
        tokens=corpus.tokens,
        pairs=pairs,
        positions=tally.scored,
        rates={test: [_rate(values, level) for level in LEVELS] for test, values in log10_ps.items()},
        sds={test: float(z.std()) for test, z in zs.items()},
        log10_ps=log10_ps,
    )


def _z(greens: npt.NDArray[np.int64], n: int, gamma: float) -> npt.NDArray[np.float64]:
    return np.asarray((greens - gamma * n) / math.sqrt(max(1.0, n * gamma * (1 - gamma))))


def _normal_tails(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import log_ndtr

    return np.asarray(log_ndtr(-z) / math.log(10))


def _rate(log10_ps: npt.NDArray[np.float64], level: float) -> Rate:
    below = int((log10_ps <= math.log10(level)).sum())
    low, high = green_interval(below, pairs=len(log10_ps))
    return Rate(level=level, below=below, keys=len(log10_ps), low=low, high=high)
