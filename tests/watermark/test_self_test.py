"""The start-up self-test: it passes what is right, and finds what is not."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from watermark import prf
from watermark.errors import TaggantError
from watermark.green_list import GreenList
from watermark.self_test import ACCOUNT, check_bias, specified_row

SCOPE = builders.scope_of(window=2, special_ids=(3, 9), account_lanes=16)


def bias_of(account: str = ACCOUNT, delta: float | None = None):
    scope = SCOPE if delta is None else builders.scope_of(window=2, special_ids=(3, 9), account_lanes=16, delta=delta)
    green_list = GreenList(scope)

    def bias(logits: np.ndarray, windows: np.ndarray) -> np.ndarray:
        green_list.bias(logits, windows, accounts=[account] * len(windows))
        return logits

    return bias


def test_the_host_kernels_pass() -> None:
    check_bias(bias_of(), SCOPE, 1000)


@pytest.mark.parametrize("wrong", [bias_of("other"), bias_of(delta=2.5), lambda logits, windows: logits])
def test_another_account_another_delta_or_nothing_at_all_is_found(wrong: object) -> None:
    with pytest.raises(TaggantError, match="scope test"):
        check_bias(wrong, SCOPE, 1000)


def test_half_of_its_rows_lie_in_account_lanes() -> None:
    seen: list[np.ndarray] = []

    def bias(logits: np.ndarray, windows: np.ndarray) -> np.ndarray:
        seen.append(windows)
        return bias_of()(logits, windows)

    check_bias(bias, SCOPE, 1000)
    in_account_lanes = prf.lane(seen[0]) >= SCOPE.params.fleet_lanes
    assert sorted(in_account_lanes.tolist()) == [False, False, True, True]
    assert not np.isin(seen[0], [3, 9]).any()


def test_a_row_of_an_account_lane_without_an_account_is_not_biased() -> None:
    windows = np.random.default_rng(0).integers(0, 1000, (64, 2), dtype=np.uint32)
    for window, lane in zip(windows, prf.lane(windows), strict=True):
        assert specified_row(SCOPE, window, 1000).any() == (lane < SCOPE.params.fleet_lanes)
        assert not specified_row(SCOPE, window, 1000, account="a")[[3, 9]].any()
