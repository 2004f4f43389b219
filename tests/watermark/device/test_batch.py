"""Batches whose ids are on the host: what a device does is what `Marker.bias` does."""

from __future__ import annotations

from pathlib import Path

import markers
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from watermark.device.batch import DeviceBatch, batch_of  # noqa: E402
from watermark.marker import UNMARKED  # noqa: E402

V = 700


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_steps_of_a_changing_batch_are_what_the_marker_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    marker = markers.marker_of(tmp_path)
    batch = DeviceBatch(marker, device="cpu", max_rows=8, vocab_size=V)
    random = np.random.default_rng(1)
    requests = [UNMARKED, *(marker.admit({"taggant_account": name} if name else None) for name in ("a", "b", None))]
    responses: list[list[int]] = [[] for _ in requests]
    for step in range(12):
        if step % 4 == 3:  # A request leaves, and another takes its row.
            gone = int(random.integers(len(requests)))
            requests[gone], responses[gone] = requests[(gone + 1) % len(requests)], []
        logits = torch.from_numpy(random.normal(0, 4, (len(requests), V)).astype(np.float32)).to(dtype)
        expected = logits.clone()
        batch.bias(logits, responses, requests)
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        array = expected.view(bits).numpy()
        marker.bias(
            array.view({torch.float32: np.float32, torch.float16: np.float16}.get(dtype, np.uint16)),
            responses,
            requests,
        )
        assert torch.equal(logits.view(bits), torch.from_numpy(array))
        for ids in responses:
            ids.append(int(random.integers(20, V)))


def test_a_placeholder_is_refused(tmp_path: Path) -> None:
    marker = markers.marker_of(tmp_path)
    with pytest.raises(ValueError, match="placeholder"):
        batch_of(marker, torch.zeros(1, V)).bias(torch.zeros(1, V), [[4, -1]], [marker.admit(None)])


def test_a_batch_is_kept_and_grows(tmp_path: Path) -> None:
    marker = markers.marker_of(tmp_path)
    small = batch_of(marker, torch.zeros(3, V))
    assert batch_of(marker, torch.zeros(32, V - 1)) is small
    assert batch_of(marker, torch.zeros(33, V)).max_rows == 64
