"""Lanes whose seeds were opened: left bit for bit alone by every marker, and not tested any more."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import builders
import markers
import numpy as np
import pytest

from detect.mark import GreenListMark
from detect.tally import tally_of
from watermark import kernels
from watermark.errors import UsageError
from watermark.green_list import GreenList, Outcome
from watermark.keyring import Keyring
from watermark.life_cycle import reveal, update_key_file
from watermark.marker import Marker

V = 512
REVEALED = (0, 5, 17, 30)


def windows_by_lane() -> tuple[np.ndarray, np.ndarray]:
    windows = np.arange(2_000, dtype=np.uint32)[:, None]
    return windows, kernels.lanes(windows)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16], ids=["float32", "float16", "bfloat16"])
def test_rows_of_revealed_lanes_stay_bit_identical_and_the_others_do_not_change(dtype: type) -> None:
    keys = builders.scope_of(account_lanes=16)
    windows, lanes = windows_by_lane()
    logits = np.random.default_rng(1).normal(0, 4, (len(windows), V)).astype(np.float32)
    start = (logits.view(np.uint32) >> 16).astype(np.uint16) if dtype is np.uint16 else logits.astype(dtype)
    before, after = start.copy(), start.copy()
    GreenList(keys).bias(before, windows)
    outcomes = GreenList(replace(keys, revealed=REVEALED)).bias(after, windows)
    revealed = np.isin(lanes, REVEALED)
    assert revealed.sum() > 50
    assert after[revealed].tobytes() == start[revealed].tobytes()
    assert before[revealed].tobytes() != start[revealed].tobytes()
    assert after[~revealed].tobytes() == before[~revealed].tobytes()
    assert set(outcomes[revealed]) == {Outcome.OFF}


def test_the_device_leaves_them_alone_from_the_step_on_at_which_it_is_told() -> None:
    torch = pytest.importorskip("torch")
    from watermark.device.green_lists import DeviceGreenLists

    keys = builders.scope_of()
    windows, lanes = windows_by_lane()
    lists = DeviceGreenLists([keys], device="cpu", max_slots=1, vocab_size=4_000)
    lists.set_slot(0, scope=0, addition=2.0)
    lists.flush()
    start = torch.randn(len(windows), V)
    arguments = {
        "windows": torch.from_numpy(windows.astype(np.int64)),
        "row_slot": torch.zeros(len(windows), dtype=torch.int64),
        "window_length": torch.ones(len(windows), dtype=torch.int64),
    }
    before, after = start.clone(), start.clone()
    lists.bias(before, **arguments)
    lists.reveal(0, replace(keys, revealed=REVEALED))
    lists.flush()
    lists.bias(after, **arguments)
    revealed = torch.from_numpy(np.isin(lanes, REVEALED))
    assert torch.equal(after[revealed], start[revealed])
    assert not torch.equal(before[revealed], start[revealed])
    assert torch.equal(after[~revealed], before[~revealed])


def test_they_are_not_tested() -> None:
    keys = builders.scope_of()
    tally = tally_of([np.random.default_rng(2).integers(0, 900, 5_000).astype(np.uint32)], window=1)
    all_lanes, fewer = GreenListMark(keys), GreenListMark(replace(keys, revealed=REVEALED))
    assert all_lanes.tested(tally).all()
    assert (fewer.tested(tally) == ~np.isin(tally.lanes, REVEALED)[tally.pair_window]).all()


def test_never_more_than_half_and_none_twice(tmp_path: Path) -> None:
    path = markers.key_file(tmp_path)  # 48 fleet lanes
    update_key_file(path, lambda old: reveal(old, "test", list(range(20))))
    assert Keyring.load(path).scope().revealed == tuple(range(20))
    for lanes, said in ((list(range(20, 25)), "half"), ([3], "revealed"), ([60], "fleet")):
        with pytest.raises(UsageError, match=said):
            update_key_file(path, lambda old, lanes=lanes: reveal(old, "test", lanes))
    assert Keyring.load(path).scope().revealed == tuple(range(20))


def test_a_server_takes_them_up_without_a_restart(tmp_path: Path) -> None:
    path = markers.key_file(tmp_path, window=1, account_lanes=0)
    marker = Marker(markers.config_of(tmp_path))
    windows, lanes = windows_by_lane()
    responses = [[int(w)] for w in windows[:, 0] if w >= 20]
    lanes = lanes[20:]

    def marked() -> np.ndarray:
        request = marker.admit(None)
        row = np.zeros((len(responses), V), dtype=np.float32)
        marker.bias(row, responses, [request] * len(responses))
        return row.any(axis=1)

    assert marked().all()
    update_key_file(path, lambda old: reveal(old, "test", list(REVEALED)))
    os.utime(path, (time.time() + 5, time.time() + 5))
    marker.refresh()
    assert (marked() == ~np.isin(lanes, REVEALED)).all()
