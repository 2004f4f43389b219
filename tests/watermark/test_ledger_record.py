"""What a record takes and refuses, and the leaf that stands for it."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from watermark.errors import InputError, UsageError
from watermark.ledger.record import DIGESTS, SCHEMA, LedgerRecord, leaf_bytes, timestamp

NOW = "2026-10-01T12:00:00.000000Z"
LEAST: dict[str, Any] = {
    "id": "r1",
    "started": NOW,
    "ended": NOW,
    "model": "a/model",
    "marked": False,
    "token_ids": [1, 2, 3],
}
MARKED: dict[str, Any] = {
    **LEAST,
    "marked": True,
    "scope": "2026-q4",
    "fingerprint": "ab" * 32,
    "scheme": "sipmix-v1",
}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False) | texts
json_values = st.recursive(
    scalars.filter(lambda value: not isinstance(value, float) or abs(value) != float("inf")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(
    maybe=st.lists(st.none() | texts, min_size=6, max_size=6),
    sure=st.lists(texts, min_size=4, max_size=4),
    parameters=st.dictionaries(texts, json_values, max_size=4),
    marked=st.none() | st.booleans(),
    digests=st.dictionaries(st.sampled_from(DIGESTS), st.just("ab" * 32)),
    nonce=st.binary(min_size=16, max_size=16),
)
def test_the_leaf_is_canonical_json(
    maybe: list[str | None],
    sure: list[str],
    parameters: dict[str, Any],
    marked: bool | None,
    digests: dict[str, str],
    nonce: bytes,
) -> None:
    fields: dict[str, Any] = {
        **dict(zip(("account", "model", "scope", "fingerprint", "scheme", "reason"), maybe, strict=True)),
        **dict(zip(("kind", "id", "started", "ended"), sure, strict=True)),
        "marked": marked,
    }
    leaf = leaf_bytes(
        **fields,
        parameters=LedgerRecord(**{**LEAST, "parameters": parameters}).parameters_json,
        digests=json.dumps(digests, sort_keys=True, separators=(",", ":")),
        nonce=nonce,
    )
    expected = {**fields, "parameters": parameters, "digests": digests, "nonce": nonce.hex(), "schema": SCHEMA}
    assert leaf == rfc8785.dumps(expected)


def test_numbers_of_parameters_are_told_apart() -> None:
    """1, 1.0 and true are one key to a cache that compares values."""
    canonical = [LedgerRecord(**{**LEAST, "parameters": {"a": value}}).parameters_json for value in (True, 1, 1.0, 0.1)]
    assert canonical == ['{"a":true}', '{"a":1}', '{"a":1}', '{"a":0.1}']


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_ids_come_in_any_form(ids: list[int]) -> None:
    forms = [ids, tuple(ids), np.array(ids, dtype=np.uint32), np.array(ids, dtype=np.int64)]
    contents = [LedgerRecord(**{**LEAST, "token_ids": form}).contents() for form in forms]
    raw = b"".join(value.to_bytes(4, "little") for value in ids)
    assert contents == [{"token_ids": raw}] * 4


def test_ids_are_the_record_s_own() -> None:
    mine = np.array([1, 2, 3], dtype=np.uint32)
    record = LedgerRecord(**{**LEAST, "token_ids": mine})
    mine[0] = 9
    assert record.contents()["token_ids"][:4] == b"\x01\0\0\0"
    with pytest.raises(ValueError, match="read-only"):
        record.token_ids[0] = 9  # type: ignore[index]


def test_a_repr_holds_nothing_that_was_said() -> None:
    shown = repr(LedgerRecord(**MARKED, response="the answer", prompt="the question", prompt_token_ids=[77777]))
    assert not {"answer", "question", "77777", "token_ids=array"} & set(shown.replace("'", " ").split())
    assert "77777" not in shown
    assert "the answer" not in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id: "),
        ({"id": "a\nb"}, "id: "),
        ({"id": "x" * 256}, "id: "),
        ({"id": 7}, "id: "),
        ({"model": " m"}, "model: "),
        ({"started": "2026-10-01T12:00:00Z"}, "started: expected a time in UTC with microseconds"),
        ({"ended": "2026-13-01T12:00:00.000000Z"}, "ended: "),
        ({"ended": None}, "ended: "),
        ({"marked": 1}, "marked: "),
        ({"account": "a\0b"}, "account id"),
        ({"account": ""}, "account id"),
        ({"account": 3}, "account: "),
        ({"scope": "Big"}, "scope: "),
        ({"scope": 3}, "scope: "),
        ({"fingerprint": "AB" * 32}, "fingerprint: "),
        ({"scheme": "a\x1bb"}, "scheme: "),
        ({"reason": ""}, "reason: "),
        ({"parameters": [1]}, "parameters: expected an object"),
        ({"parameters": {"a": float("nan")}}, "parameters: expected JSON values"),
        ({"parameters": {"a": 2**53}}, "parameters: expected JSON values"),
        ({"parameters": {"a": "\ud800"}}, "parameters: expected JSON values"),
        ({"parameters": {"\ud800": 1}}, "parameters: expected JSON values"),
        ({"parameters": {"a": {1}}}, "parameters: expected JSON values"),
        ({"token_ids": [-1]}, "token_ids: "),
        ({"token_ids": [2**32]}, "token_ids: "),
        ({"token_ids": [2**70]}, "token_ids: "),
        ({"token_ids": [1.5]}, "token_ids: "),
        ({"token_ids": [[1]]}, "token_ids: "),
        ({"token_ids": ["a"]}, "token_ids: "),
        ({"token_ids": [True, False]}, "token_ids: "),
        ({"prompt_token_ids": "12"}, "prompt_token_ids: "),
        ({"token_ids": None}, "found none"),
        ({"response": "\udcff"}, "response: holds a surrogate"),
        ({"response": b"x"}, "response: expected a text"),
        ({"prompt": 3}, "prompt: "),
        ({"prompt": ["x"]}, "prompt: "),
        ({"prompt": [{"content": "\udcff"}]}, "prompt: "),
        ({"prompt": [{"content": float("inf")}]}, "prompt: "),
        ({"digests": {"answer": "ab" * 32}}, "digests: "),
        ({"digests": {"response": "ab"}}, "digests: "),
        ({"digests": ["response"]}, "digests: "),
        ({"digests": {"token_ids": "ab" * 32}}, "digests: the one of token_ids is not that"),
        ({"token_ids": None, "digests": {"prompt": "ab" * 32}}, "found none"),
        ({"marked": True}, "a marked response: "),
        ({**MARKED, "reason": "why"}, "reason: says why"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LedgerRecord(**{**LEAST, **changes})


def test_deep_parameters_are_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(InputError, match="parameters: "):
        LedgerRecord(**{**LEAST, "parameters": deep})
    with pytest.raises(InputError, match="prompt: "):
        LedgerRecord(**{**LEAST, "prompt": [deep]})


def test_digests_stand_for_what_is_not_given() -> None:
    digest = hashlib.sha256(b"answer").hexdigest()
    record = LedgerRecord(**{**LEAST, "token_ids": None, "digests": {"response": digest}})
    assert record.contents() == {}
    LedgerRecord(**LEAST, response="answer", digests={"response": digest, "prompt": "ab" * 32})


def test_records_from_json() -> None:
    data = json.loads(json.dumps({**MARKED, "account": None, "prompt": [{"role": "user", "content": "x"}]}))
    assert LedgerRecord.from_json(data).contents().keys() == {"token_ids", "prompt_messages"}
    for changes, message in (
        ({"more": 1}, "unknown field more"),
        ({"parameters_json": "{}"}, "unknown field parameters_json"),
        ({"id": None}, "no field id"),
        ({"token_ids": [1, True]}, "token_ids: "),
        ({"token_ids": "12"}, "token_ids: "),
    ):
        with pytest.raises(InputError, match=message):
            LedgerRecord.from_json({**MARKED, **changes})


def test_times() -> None:
    moment = datetime(2026, 10, 1, 14, 0, 0, 5, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp(moment) == "2026-10-01T12:00:00.000005Z"
    assert timestamp() > NOW
    with pytest.raises(UsageError, match="with a time zone"):
        timestamp(datetime(2026, 10, 1))
