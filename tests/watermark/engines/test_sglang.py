"""SGLang's adapter under SGLang's own dispatch of custom processors, which is taken from its wheel.

What is not SGLang's here: the requests, the scheduler's settings, and the batch.
"""

from __future__ import annotations

import importlib
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import markers
import numpy as np
import pytest
import sglang_module

from watermark.marker import Marker

torch = pytest.importorskip("torch")
V = 512


class Req:
    """What a processor sees of a request."""

    def __init__(self, rid: str, output_ids: list[int], *, temperature: float = 1.0) -> None:
        self.rid = rid
        self.output_ids = output_ids
        self.origin_input_ids = [9, 9, 9]
        self.sampling_params = SimpleNamespace(temperature=temperature)
        self.to_finish: Any = None


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    return markers.marker_of(tmp_path)


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch, marker: Marker) -> Any:
    apply = sglang_module.install(monkeypatch)
    module = importlib.import_module("watermark.engines.sglang")
    monkeypatch.setattr(module, "process_marker", lambda vocabulary: marker)
    return SimpleNamespace(module=module, apply=apply)


def step(sglang: Any, requests: list[tuple[Req, dict[str, str] | None]], logits: Any, *, tokens: int = 1) -> None:
    """One call of SGLang's dispatch; a request with None names no processor."""
    processor = sglang.module.GreenListCustomLogitProcessor
    text = processor.to_str()
    rows = [i for i, (_, fields) in enumerate(requests) if fields is not None]
    entry = SimpleNamespace(processor=processor.from_str(text), rows=rows, indices=torch.tensor(rows))
    params = [None if fields is None else {**fields, "__req__": weakref.proxy(req)} for req, fields in requests]

    class Batch(SimpleNamespace):
        def __len__(self) -> int:
            return len(requests)

    batch = Batch(custom_params=params, custom_logit_processor={hash(text): entry}, device="cpu")
    sglang.apply(logits, batch, tokens)


def random_logits(rows: int) -> Any:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 4, (rows, V)).astype(np.float32))


def test_a_mixed_batch_is_marked_row_by_row(sglang: Any, marker: Marker) -> None:
    requests = [
        (Req("a", [5, 6, 7]), {"taggant_account": "acme"}),
        (Req("b", [5, 6, 7]), None),
        (Req("c", [8, 6, 7, 11]), {"taggant_account": "globex"}),
        (Req("d", [8, 6, 7, 11]), {"taggant_mark": "off"}),
        (Req("e", [7], temperature=1.5), {"taggant_account": "acme"}),
        (Req("f", [7, 12], temperature=1.5), {"taggant_account": "acme"}),
    ]
    logits = random_logits(len(requests))
    before = logits.numpy().copy()
    step(sglang, requests, logits)
    for b, (req, fields) in enumerate(requests):
        asked = marker.admit(fields if fields is not None else {"taggant_mark": "off"})
        expected = markers.expected_row(before[b], asked, req.output_ids, strength=req.sampling_params.temperature)
        assert logits[b].numpy().tobytes() == expected.tobytes()
        assert req.to_finish is None
    assert (logits.numpy() != before).any(axis=1).tolist() == [True, False, True, False, False, True]


def test_the_processor_that_travels_holds_no_key(sglang: Any, marker: Marker) -> None:
    text = sglang.module.GreenListCustomLogitProcessor.to_str()
    pickled = bytes.fromhex(json.loads(text)["callable"])
    assert b"watermark.engines.sglang" in pickled
    assert len(pickled) < 200  # The name of a class, and nothing of what it knows.
    keys = [markers.ROOT.reveal()]
    assert marker.green_list is not None
    scope = marker.green_list.scope
    keys += [scope.lane_key(j).reveal() for j in range(64)] + [scope.code_key().reveal()]
    assert not any(key in pickled or key.hex() in text for key in keys)
    body = sglang.module.request_fields({"taggant_ticket": "t"})
    assert body == {"custom_logit_processor": text, "custom_params": {"taggant_ticket": "t"}}


def test_a_request_keeps_its_scope_and_a_new_one_of_its_id_does_not(sglang: Any, marker: Marker) -> None:
    req = Req("a", [])
    step(sglang, [(req, {"taggant_account": "acme"})], random_logits(1))
    marker._current = None  # Retired while it is being answered.
    req.output_ids = [5, 6]
    logits = random_logits(1)
    step(sglang, [(req, {"taggant_account": "acme"})], logits)
    assert req.to_finish is None
    assert (logits != random_logits(1)).any()
    later = Req("a", [])
    step(sglang, [(later, {"taggant_account": "acme"})], random_logits(1))
    assert later.to_finish.status_code == 503


@pytest.mark.parametrize("fields", [{"taggant_ticket": "x"}, {"taggant_account": 7}, {"taggant_delta": "0"}])
def test_a_refused_request_is_ended_and_the_others_go_on(sglang: Any, fields: dict[str, Any], marker: Marker) -> None:
    bad, good = Req("bad", [5, 6]), Req("good", [5, 6])
    logits = random_logits(2)
    before = logits.numpy().copy()
    step(sglang, [(bad, fields), (good, {"taggant_account": "acme"})], logits)
    assert bad.to_finish.to_json()["status_code"] == 400
    assert "taggant_" in bad.to_finish.message
    assert good.to_finish is None
    expected = markers.expected_row(before[1], marker.admit({"taggant_account": "acme"}), [5, 6])
    assert logits[1].numpy().tobytes() == expected.tobytes()


def test_draft_rows_are_refused(sglang: Any) -> None:
    """SGLang repeats a request's parameters for each draft token, and does not show the draft."""
    requests = [(Req("a", [5, 6]), {"taggant_account": "acme"}), (Req("b", [5, 6]), {"taggant_account": "acme"})]
    logits = random_logits(6)
    step(sglang, requests, logits, tokens=3)
    assert [req.to_finish.status_code for req, _ in requests] == [503, 503]
    assert "speculative" in requests[0][0].to_finish.message
    assert (logits == random_logits(6)).all()


def test_the_overlap_scheduler_is_refused(monkeypatch: pytest.MonkeyPatch, marker: Marker) -> None:
    apply = sglang_module.install(monkeypatch, overlap=True)
    module = importlib.import_module("watermark.engines.sglang")
    monkeypatch.setattr(module, "process_marker", lambda vocabulary: marker)
    req = Req("a", [5, 6])
    step(SimpleNamespace(module=module, apply=apply), [(req, {})], random_logits(1))
    assert "--disable-overlap-schedule" in req.to_finish.message


def test_a_row_without_parameters_stops_the_step(sglang: Any) -> None:
    from watermark.errors import TaggantError

    processor = sglang.module.GreenListCustomLogitProcessor()
    for params in (None, [None], [{"taggant_account": "acme"}]):
        with pytest.raises(TaggantError):
            processor(random_logits(1), params)
