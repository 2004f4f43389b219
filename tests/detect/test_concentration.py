"""A signal in all lanes, in one lane, in a few windows: told apart."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from detect.concentration import Concentration, concentration_of
from detect.family import SCORE
from detect.mark import GreenListMark
from detect.tally import tally_of

MARK = GreenListMark(builders.scope_of(fleet_k=64))


def concentration(favoured: str) -> Concentration:
    """Of a text whose tokens are green more often: everywhere, in one lane, or after three windows."""
    random = np.random.default_rng(1)
    ids = random.integers(0, 900, 12_000).astype(np.uint32)
    tally = tally_of([ids], window=1)
    scores = random.random(len(tally.tokens)) < 0.25
    lane_of_pair = tally.lanes[tally.pair_window]
    where = {
        "everywhere": np.ones(len(scores), dtype=np.bool_),
        "one lane": lane_of_pair == 7,
        "few windows": np.isin(tally.pair_window, np.argsort(-np.bincount(tally.pair_window))[:3]),
        "nowhere": np.zeros(len(scores), dtype=np.bool_),
    }[favoured]
    raised = {"everywhere": 0.06, "one lane": 1.0, "few windows": 1.0, "nowhere": 0.0}[favoured]
    scores |= where & (random.random(len(scores)) < raised)
    found = concentration_of(SCORE.weigh(tally), mark=MARK, tally=tally, scores=scores)
    assert found is not None
    return found


def test_a_signal_that_is_everywhere_stays_without_its_strongest_parts() -> None:
    found = concentration("everywhere")
    assert found.z > 8
    assert not found.in_one_lane
    assert not found.in_few_windows


def test_a_signal_in_one_lane_is_named() -> None:
    found = concentration("one lane")
    assert found.z > 4
    assert found.lane == 7
    assert found.in_one_lane


def test_a_signal_in_a_few_windows_is_named() -> None:
    random = np.random.default_rng(2)
    # Three windows with hundreds of different followers each, all green: planted.
    planted = np.concatenate([[w, t] for w in (901, 902, 903) for t in range(60)]).astype(np.uint32)
    ids = np.concatenate([random.integers(0, 900, 1_500).astype(np.uint32), planted])
    tally = tally_of([ids], window=1)
    scores = random.random(len(tally.tokens)) < 0.25
    scores |= np.isin(tally.windows[tally.pair_window, 0], (901, 902, 903))
    found = concentration_of(SCORE.weigh(tally), mark=MARK, tally=tally, scores=scores)
    assert found is not None
    assert found.in_few_windows
    assert {(901,), (902,), (903,)} <= {*found.windows}


def test_z_without_nothing_is_z() -> None:
    found = concentration("nowhere")
    assert abs(found.z) < 4
    assert found.z_without_lane < found.z


@pytest.mark.parametrize("ids", [[], [5, 6], [5, 6, 7]])
def test_too_little_to_leave_out(ids: list[int]) -> None:
    tally = tally_of([np.array(ids, dtype=np.uint32)], window=1)
    scores = np.zeros(len(tally.tokens), dtype=np.bool_)
    assert concentration_of(SCORE.weigh(tally), mark=MARK, tally=tally, scores=scores) is None
