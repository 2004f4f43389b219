"""The plain loop: what it takes, what it refuses, and its self-test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import markers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watermark import kernels
from watermark.engines.plain import RowMarker
from watermark.errors import TaggantError
from watermark.green_list import Outcome
from watermark.marker import Marker
from watermark.self_test import check_marker, trial_marker
from watermark.serving import Policy

V = 300


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Marker:
    return markers.marker_of(tmp_path_factory.mktemp("keys"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_alone_are_the_rows_of_a_batch(marker: Marker, data: Any) -> None:
    """A reference simulation: requests come and go and swap places; each row is its own whatever stands beside it."""
    ids = st.lists(st.integers(0, V - 1), max_size=6)
    accounts = st.sampled_from([{}, {"taggant_account": "a"}, {"taggant_account": "b"}, {"taggant_mark": "off"}])
    batch = data.draw(st.lists(st.tuples(ids, ids, accounts), min_size=1, max_size=6))
    logits = np.random.default_rng(len(batch)).normal(0, 4, (len(batch), V)).astype(np.float32)
    requests = [marker.admit(fields) for _, _, fields in batch]
    together = logits.copy()
    marker.bias(together, [response for _, response, _ in batch], requests)
    for b in data.draw(st.permutations(range(len(batch)))):
        prompt, response, _ = batch[b]
        alone = logits[b].copy()
        RowMarker(marker, requests[b], prompt_length=len(prompt))(prompt + response, alone)
        assert alone.tobytes() == together[b].tobytes()
        assert alone.tobytes() == markers.expected_row(logits[b], requests[b], response).tobytes()
        if not requests[b].marked:
            assert alone.tobytes() == logits[b].tobytes()


def test_the_prompt_is_never_a_window(marker: Marker) -> None:
    mark = RowMarker(marker, marker.admit({"taggant_account": "a"}))
    for ids in ([5, 6, 7], [5, 6, 7, 8]):
        row = np.zeros(V, dtype=np.float32)
        mark(ids, row)
        assert not row.any()
    mark([5, 6, 7, 8, 9], row)
    assert row.any()


@pytest.mark.parametrize("logits", [np.zeros((2, V), np.float32), np.zeros((1, 1, V), np.float32)])
def test_several_rows_are_refused(marker: Marker, logits: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one row"):
        RowMarker(marker, marker.admit({}), prompt_length=0)([5, 6], logits)


def test_a_placeholder_is_refused(marker: Marker) -> None:
    with pytest.raises(ValueError, match="placeholder"):
        RowMarker(marker, marker.admit({}), prompt_length=0)([5, -1], np.zeros(V, dtype=np.float32))


def test_double_precision_is_refused(marker: Marker) -> None:
    with pytest.raises(ValueError, match="float64"):
        RowMarker(marker, marker.admit({}), prompt_length=0)([5, 6], np.zeros(V))
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="float64"):
        RowMarker(marker, marker.admit({}), prompt_length=0)([5, 6], torch.zeros(V, dtype=torch.float64))


def test_requests_and_tokens_are_counted(tmp_path: Path) -> None:
    marker = markers.marker_of(tmp_path)
    mark = RowMarker(marker, marker.admit({"taggant_account": "a"}), prompt_length=0)
    for ids in ([], [5], [5, 6], [5, 6, 7]):
        mark(ids, np.zeros(V, dtype=np.float32))
    assert marker.counts.requests == {("test", "marked"): 1}
    assert marker.counts.tokens == {("test", Outcome.NO_WINDOW): 2, ("test", Outcome.MARKED): 2}


def test_the_self_test_passes_counts_nothing_and_finds_a_wrong_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = markers.marker_of(tmp_path)
    check_marker(marker, vocabulary=V)
    check_marker(marker, vocabulary=3)
    assert not marker.counts.tokens
    right = kernels.add_to_green
    monkeypatch.setattr(
        kernels, "add_to_green", lambda logits, seeds, *rest: right(logits, seeds ^ np.uint64(1), *rest)
    )
    with pytest.raises(TaggantError, match=r"self-test: .* Numba's"):
        check_marker(marker, vocabulary=V)


def test_the_self_test_marks_though_the_server_shadows_and_not_where_nothing_is_marked(tmp_path: Path) -> None:
    markers.key_file(tmp_path)
    shadowing = Marker(markers.config_of(tmp_path, shadow=True))
    check_marker(shadowing, vocabulary=V)
    assert not trial_marker(shadowing).config.shadow
    assert shadowing.config.shadow
    assert not shadowing.counts.shadowed
    check_marker(Marker(markers.config_of(tmp_path, policy=Policy.OFF)), vocabulary=V)
