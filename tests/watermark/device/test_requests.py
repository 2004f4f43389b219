"""Requests in the device's slots, against the host's bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from watermark.device.requests import DeviceRequests  # noqa: E402
from watermark.errors import TaggantError  # noqa: E402
from watermark.green_list import GreenList, Outcome  # noqa: E402
from watermark.keyring import Keyring  # noqa: E402
from watermark.keys import Params, Secret  # noqa: E402
from watermark.life_cycle import activate, add_scope  # noqa: E402
from watermark.marker import UNMARKED, Marker, RequestMark  # noqa: E402
from watermark.serving import ServingConfig  # noqa: E402

WIDTH = 300
PARAMS = Params(tokenizer="ab" * 32, special_ids=(0, 1), window=2, account_lanes=16)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keyring = add_scope(Keyring(root=Secret(bytes(range(32))), scopes=()), "a", params=PARAMS, delta=2.0)
    activate(keyring, "a").write(tmp_path / "k.json")
    return tmp_path / "k.json"


def requests_of(key_file: Path, **values: Any) -> DeviceRequests:
    marker = Marker(ServingConfig(keyring=key_file, **values))
    return DeviceRequests(marker, device="cpu", max_slots=4, vocab_size=WIDTH)


def applied(requests: DeviceRequests, logits: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """The rows of slots 0, 1, 2..."""
    requests.flush()
    rows = len(windows)
    target = torch.from_numpy(logits.copy())
    requests.bias(
        target,
        windows=torch.from_numpy(windows.astype(np.int64)),
        row_slot=torch.arange(rows),
        window_length=torch.full((rows,), 2),
    )
    return np.asarray(target.numpy())


def test_it_biases_as_the_host_does(key_file: Path) -> None:
    requests = requests_of(key_file)
    green_list = requests.marker.green_list
    random = np.random.default_rng(0)
    for _ in range(30):
        marks = [
            RequestMark(green_list=green_list, account=account, strength=strength)
            for account, strength in zip(random.choice([None, "x", "y"], 3), random.choice([1.0, 1.7], 3), strict=True)
        ]
        marks.append(UNMARKED)
        for slot, mark in enumerate(marks):
            assert requests.put(slot, mark) == mark.marked
        windows = random.integers(0, 20, (4, 2), dtype=np.uint32)
        logits = random.normal(size=(4, WIDTH)).astype(np.float32)
        expected = logits.copy()
        requests.marker.bias(expected, list(windows), marks)
        assert np.array_equal(applied(requests, logits, windows).view(np.uint32), expected.view(np.uint32))


def test_a_slot_that_was_taken_out_is_left_alone(key_file: Path) -> None:
    requests = requests_of(key_file)
    logits, windows = np.zeros((1, WIDTH), dtype=np.float32), np.array([[5, 7]], dtype=np.uint32)
    requests.put(0, RequestMark(green_list=requests.marker.green_list, account="x"))
    assert applied(requests, logits, windows).any()
    requests.take_out(0)
    assert not applied(requests, logits, windows).any()


def test_the_self_test_passes_and_finds_wrong_keys(key_file: Path) -> None:
    requests = requests_of(key_file)
    requests.self_test(WIDTH)
    requests.lists.tables.lane_words += 1
    with pytest.raises(TaggantError, match="self-test"):
        requests.self_test(WIDTH)


def test_another_delta_of_the_same_name_is_taken_and_other_keys_are_not(key_file: Path) -> None:
    requests = requests_of(key_file)
    scope = requests.marker.green_list.scope
    logits, windows = np.zeros((1, WIDTH), dtype=np.float32), np.array([[5, 7]], dtype=np.uint32)

    def again(**values: Any) -> GreenList:
        fields = {name: getattr(scope, name) for name in ("name", "params", "delta", "key", "activation")}
        return GreenList(type(scope)(**fields | values))

    requests.put(0, RequestMark(green_list=again(delta=1.25), account="x"))
    assert applied(requests, logits, windows).max() == 1.25
    with pytest.raises(TaggantError, match="restart"):
        requests.put(0, RequestMark(green_list=again(activation=bytes(range(32)))))


def test_the_counters_are_the_rows_outcomes(key_file: Path) -> None:
    requests = requests_of(key_file, refresh=1e-9)
    requests.put(0, RequestMark(green_list=requests.marker.green_list, account="x"))
    applied(requests, np.zeros((1, WIDTH), dtype=np.float32), np.array([[5, 7]], dtype=np.uint32))
    applied(requests, np.zeros((1, WIDTH), dtype=np.float32), np.array([[1, 7]], dtype=np.uint32))
    requests.flush()
    assert requests.marker.counts.tokens == {("a", Outcome.MARKED): 1, ("a", Outcome.NO_WINDOW): 1}


def test_shadow_leaves_the_logits(key_file: Path) -> None:
    requests = requests_of(key_file, shadow=True, refresh=1e-9)
    requests.put(0, RequestMark(green_list=requests.marker.green_list, account="x"))
    zeros = np.zeros((1, WIDTH), dtype=np.float32)
    assert not applied(requests, zeros, np.array([[5, 7]], dtype=np.uint32)).any()
    requests.flush()
    assert requests.marker.counts.shadowed == {"a": 1}


def test_rows_of_little_entropy_are_left_alone(key_file: Path) -> None:
    requests = requests_of(key_file, min_entropy=2.0)
    for slot in range(3):
        requests.put(slot, RequestMark(green_list=requests.marker.green_list, account="x"))
    logits = np.zeros((3, WIDTH), dtype=np.float32)
    logits[1, 9] = 40.0
    logits[2] = -np.inf  # No distribution at all.
    biased = applied(requests, logits, np.array([[5, 7]] * 3, dtype=np.uint32))
    assert biased[0].any()
    assert np.array_equal(biased[1:], logits[1:])
