"""The weights of the family, reckoned again pair by pair from their formulas."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from detect.centred import CENTRED, SELF_NORMALISED
from detect.quasi_score import DISPERSION, PAIR_SHARE, QUASI_SCORE, WINDOW_SHARE
from detect.reference import Reference
from detect.tally import UNIT, tally_of


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("window", [1, 2])
def test_weights_are_their_formulas(
    window: int, share: float, repetitive: list[np.ndarray], references: dict[int, Reference]
) -> None:
    tally = replace(tally_of(repetitive, window=window, reference=references[window]), share=share)
    n, mu = tally.said.tolist(), [mass / UNIT for mass in tally.expected.tolist()]
    # Of a sample the positions of all windows count, about as many.
    positions = sum(n) / share
    visits: dict[int, int] = defaultdict(int)
    energy: dict[int, float] = defaultdict(float)
    for at, of in enumerate(tally.pair_window.tolist()):
        visits[of] += n[at]
        energy[of] += (n[at] - mu[at]) ** 2
    expected: dict[str, list[float]] = {"centred": [], "self-normalised": [], "quasi-score": []}
    for at, of in enumerate(tally.pair_window.tolist()):
        a = n[at] - mu[at]
        expected["centred"].append(a)
        expected["self-normalised"].append(a * min(1.0, tally.information[of] / UNIT / energy[of]) if energy[of] else 0)
        rate = mu[at] * (1 + DISPERSION * n[at]) / (1 + DISPERSION * mu[at])
        pair, whole = rate / (rate + PAIR_SHARE * positions), visits[of] / (visits[of] + WINDOW_SHARE * positions)
        expected["quasi-score"].append(a / (1 + DISPERSION * mu[at]) * pair * whole)
    for weighting in (CENTRED, SELF_NORMALISED, QUASI_SCORE):
        weights = weighting.weigh(tally, references[window]).values / UNIT
        assert weights == pytest.approx(np.array(expected[weighting.name]), abs=1e-8), weighting.name


def test_an_empty_text_has_no_weights() -> None:
    tally = tally_of([], window=1)
    empty = Reference(
        name="r",
        tokenizer="00" * 32,
        ids=np.zeros(0, np.uint32),
        starts=np.zeros(1, np.int64),
        top_ids=np.zeros((0, 1), np.uint32),
        top_p=np.zeros((0, 1), np.float32),
        said_p=np.zeros(0, np.float32),
    )
    assert len(QUASI_SCORE.weigh(tally, empty).values) == 0
