from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watermark.ingress.answer import Answer, hide_ids, holds_logprobs, scrub_logprobs, without_ids
from watermark.ingress.route import Shape


def compact(payload: Any) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


ids = st.none() | st.lists(st.integers(0, 2**20), max_size=4)
texts = st.text(max_size=12) | st.sampled_from(['"token_ids":[1,2]', '\\"token_ids":[3]', '","token_ids":[4],"'])


@given(st.lists(st.tuples(texts, ids, ids), max_size=3), ids)
@settings(deadline=None)
def test_only_the_ids_go_out_of_an_answers_bytes(choices: list[tuple[str, Any, Any]], prompt: Any) -> None:
    payload = {
        "prompt_token_ids": prompt,
        "choices": [{"text": text, "token_ids": a, "prompt_token_ids": b, "x": 1e-7} for text, a, b in choices],
    }
    data = compact(payload)
    _, hidden = hide_ids(payload)
    assert hidden == sum(one is not None for one in [prompt, *(one for _, *both in choices for one in both)])
    assert without_ids(data, hidden) == compact(payload)


def test_ids_that_are_written_otherwise_are_not_taken_for_found() -> None:
    assert without_ids(b'{"choices": [{"token_ids": [1, 2]}]}', 1) is None
    assert without_ids(b'{"kv":{"token_ids":[1]},"choices":[{"token_ids":[2]}]}', 1) is None


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"delta": {}, "finish_reason": None, "logprobs": None}, False),
        ({"delta": {}, "finish_reason": "stop"}, True),
        ({"delta": {"content": ""}, "finish_reason": None}, True),
        ({"text": "", "finish_reason": None}, True),
        ({"delta": {}, "logprobs": {"content": []}}, True),
    ],
)
def test_events_that_hold_nothing_but_ids(choice: dict[str, Any], wanted: bool) -> None:
    assert hide_ids({"choices": [{**choice, "token_ids": [1]}], "usage": {}}) == (wanted, 1)
    assert hide_ids({"choices": [], "usage": {}}) == (True, 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "logprobs", "prompt_logprobs", "message", "output_top_logprobs", "text", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(["choices", "meta_info", "logprobs", "output"]), json_values, max_size=3))
@settings(deadline=None)
def test_what_holds_no_probabilities_is_told_from_its_bytes(payload: dict[str, Any]) -> None:
    """The cheap look never says no where there is something to scrub; what is scrubbed once is clean."""
    data, spaced = compact(payload), json.dumps(payload).encode()
    if scrub_logprobs(payload):
        assert holds_logprobs(data)
        assert holds_logprobs(spaced)
    assert not scrub_logprobs(payload)


def test_sglang_repeats_what_it_has_said() -> None:
    answer = Answer(Shape.SGLANG)
    answer.take({"text": "a", "output_ids": [1], "meta_info": {"id": "x", "finish_reason": None}})
    answer.take({"text": "ab", "output_ids": [1, 2], "meta_info": {"id": "x", "finish_reason": {"type": "stop"}}})
    assert (answer.id, answer.choice(0).text, answer.choice(0).ids, answer.choice(0).finish) == (
        "x",
        "ab",
        [1, 2],
        "stop",
    )
    answer.take({"text": "c", "output_ids": [3], "meta_info": {}})  # A server that streams by increments.
    assert (answer.choice(0).text, answer.choice(0).ids) == ("abc", [1, 2, 3])


@given(st.sampled_from(list(Shape)), st.dictionaries(st.text(max_size=6), json_values, max_size=4), json_values)
@settings(deadline=None)
def test_an_answer_of_any_other_form_is_no_error(shape: Shape, payload: dict[str, Any], inner: Any) -> None:
    answer = Answer(shape)
    for name in ("choices", "output", "delta", "message", "meta_info", "content", "type"):
        answer.take({**payload, name: inner})
        answer.take({**payload, name: [inner], "type": "response.x.delta"})
    for choice in answer.choices.values():
        assert choice.text.encode().decode() == choice.text


def test_thoughts_content_and_arguments_are_taken_in_order() -> None:
    answer = Answer(Shape.CHAT)
    call = {"function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"reasoning": "Hm. ", "content": "So. ", "tool_calls": [call], "function_call": None}
    answer.take({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    assert answer.choice(0).text == 'Hm. So. {"a":1}'


def test_half_a_surrogate_pair_has_a_text() -> None:
    answer = Answer(Shape.COMPLETIONS)
    answer.take({"choices": [{"index": 0, "text": "a\ud83d"}, {"index": 0, "text": "\ude00"}]})
    assert answer.choice(0).text == "a??"
