from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect import conversation, inputs
from detect.records import Accounting, Document, Fields, Reader, Text
from watermark.errors import InputError, TaggantError, UsageError

GOOD = b'{"prompt": "Why?", "response": "Because."}'


def lines(*parts: bytes) -> bytes:
    return b"\n".join(parts) + b"\n"


def write(folder: Path, data: bytes, name: str = "answers.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def stdin_of(data: bytes, **options: Any) -> Reader:
    return Reader(["-"], stdin=io.BytesIO(data), **options)


def scoring(reader: Reader) -> Iterator[Document]:
    for document in reader:
        reader.accounting.score()
        yield document


def scored(reader: Reader) -> list[Document]:
    """Every document, each accounted for as it comes."""
    documents = list(scoring(reader))
    reader.accounting.check()
    return documents


def told(line: bytes) -> str:
    """Why *line* is malformed, read between two good ones, which are not lost."""
    reader = stdin_of(lines(GOOD, line, GOOD), max_malformed=1)
    assert [document.source for document in scored(reader)] == ["-:1", "-:3"]
    assert reader.accounting.to_json()["malformed"] == 1
    assert reader.accounting.read == 3
    (problem,) = reader.accounting.problems
    assert problem.startswith("-:2: expected ")
    assert ", found" in problem
    assert problem.isprintable()
    return problem


def only(record: object, **options: Any) -> Document:
    (document,) = scored(stdin_of(json.dumps(record).encode(), **options))
    return document


def plain(text: Text) -> tuple[object, ...]:
    ids = None if text.token_ids is None else text.token_ids.tolist()
    return text.role, text.response, ids, text.prompts


def said(messages: list[dict[str, Any]], **extra: Any) -> list[tuple[object, ...]]:
    """(role, response, prompts) of each text of a conversation."""
    return [(text.role, text.response, text.prompts) for text in only({"messages": messages, **extra}).texts]


# The forms of a record.


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "p", "response": "r"}, ("response", "r", None, ("p",))),
        ({"response": "r"}, ("response", "r", None, None)),
        ({"response": "", "prompt": ""}, ("response", "", None, ("",))),
        ({"text": "t"}, ("text", "t", None, None)),
        ({"text": "t", "prompt": "p"}, ("text", "t", None, ("p",))),
        ({"token_ids": [0, 2**32 - 1]}, ("response", None, [0, 2**32 - 1], None)),
        ({"token_ids": []}, ("response", None, [], None)),
        ({"prompt": "p", "response": "r", "token_ids": [7]}, ("response", "r", [7], ("p",))),
        ({"text": "t", "token_ids": [7]}, ("text", "t", [7], None)),
        # Exported tables have every column in every row.
        ({"prompt": None, "response": "r", "text": None, "messages": None}, ("response", "r", None, None)),
        (
            {"prompt": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}], "response": "r"},
            ("response", "r", None, ("s", "a")),
        ),
        ({"prompt": [], "response": "r"}, ("response", "r", None, ())),
        ({"response": "é\u2028\u0085\x0b\x0c\r\n\0😀"}, ("response", "é\u2028\u0085\x0b\x0c\r\n\0😀", None, None)),
    ],
)
def test_forms(record: dict[str, Any], expected: tuple[object, ...]) -> None:
    (text,) = only(record).texts
    assert plain(text) == expected


def test_line_separators_of_text_end_no_line() -> None:
    data = '{"text": "one\u2028two\u0085three"}\n{"text": "four"}'.encode()
    assert [document.texts[0].response for document in scored(stdin_of(data))] == ["one\u2028two\u0085three", "four"]


def test_token_ids_are_whole_and_fixed() -> None:
    (text,) = only({"token_ids": [1, 2]}).texts
    assert text.token_ids is not None
    assert text.token_ids.dtype == np.uint32
    with pytest.raises(ValueError, match="read-only"):
        text.token_ids[0] = 3


def test_scope_and_tokenizer_that_the_server_recorded() -> None:
    document = only({"response": "r", "fingerprint": "f", "tokenizer": "sha256:0"})
    assert (document.fingerprint, document.tokenizer) == ("f", "sha256:0")
    assert only({"response": "r", "fingerprint": None}).fingerprint is None


def test_field_names() -> None:
    record = {"question": "p", "answer": "r", "ids": [3], "prompt": 1, "response": 2, "token_ids": 3}
    fields = Fields(prompt="question", response="answer", token_ids="ids")  # noqa: S106 - a name
    assert plain(only(record, fields=fields).texts[0]) == ("response", "r", [3], ("p",))
    assert plain(only({"body": "t", "text": 5}, fields=Fields(text="body")).texts[0]) == ("text", "t", None, None)
    assert (
        only({"chat": [{"role": "assistant", "content": "a"}]}, fields=Fields(messages="chat")).texts[0].response == "a"
    )
    # A shared name belongs to the option that was given it.
    assert plain(only({"text": "r"}, fields=Fields(response="text")).texts[0]) == ("response", "r", None, None)
    assert plain(only({"text": "p", "response": "r"}, fields=Fields(prompt="text")).texts[0]) == (
        "response",
        "r",
        None,
        ("p",),
    )


# Conversations.


def test_conversation() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "U1"}, {"type": "text", "text": "U2"}]},
        {
            "role": "assistant",
            "reasoning_content": "R1",
            "content": "A1",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "T"},
        {"role": "assistant", "reasoning": "R2", "content": None},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "2"}]},
    ]
    order = ["S", "U1U2", "R1", "A1", '{"x": 1}', "{}", "T", "R2", "A2"]
    assert said(messages) == [
        ("reasoning", "R1", tuple(order[:2])),
        ("assistant", "A1", tuple(order[:3])),
        ("tool_call", '{"x": 1}', tuple(order[:4])),
        ("tool_call", "{}", tuple(order[:5])),
        ("reasoning", "R2", tuple(order[:7])),
        ("assistant", "A2", tuple(order[:8])),
    ]


def test_prompt_beside_messages_stands_before_them() -> None:
    messages = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert said(messages, prompt="p") == [("assistant", "a", ("p",)), ("assistant", "b", ("p", "a"))]
    assert said(messages) == [("assistant", "a", ()), ("assistant", "b", ("a",))]


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user", "content": "u"}], [{"role": "assistant", "content": ""}, {"role": "assistant"}]]
)
def test_conversation_without_an_answer_is_a_document(messages: list[dict[str, Any]]) -> None:
    assert said(messages) == []


def test_reasoning_under_both_names_is_said_once() -> None:
    same = {"role": "assistant", "reasoning": "r", "reasoning_content": "r", "content": "a"}
    assert said([same]) == [("reasoning", "r", ()), ("assistant", "a", ("r",))]
    two = {"role": "assistant", "reasoning": "2", "reasoning_content": "1"}
    assert said([two]) == [("reasoning", "1", ()), ("reasoning", "2", ("1",))]


def test_parsed_arguments_are_noted_and_are_only_a_prompt() -> None:
    messages = [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"city": "Köln"}}}]},
        {"role": "assistant", "content": [{"type": "image_url"}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "raw"}, "tool_calls": [{"type": "custom"}]},
    ]
    reader = stdin_of(json.dumps({"messages": messages}).encode())
    (document,) = scored(reader)
    assert [(text.response, text.prompts) for text in document.texts] == [
        ("a", ('{"city": "Köln"}',)),
        ("raw", ('{"city": "Köln"}', "a")),
    ]
    assert reader.accounting.notes == {conversation.NOT_RAW: 1, conversation.NO_TEXT: 2}


def test_a_malformed_conversation_leaves_no_note() -> None:
    messages = [{"role": "assistant", "content": [{"type": "image_url"}]}, {"role": 1}]
    reader = stdin_of(json.dumps({"messages": messages}).encode(), max_malformed=1)
    assert scored(reader) == []
    assert reader.accounting.notes == {}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("x", "an array of chat messages in messages, found a string"),
        (["x"], "in messages[0], found a string"),
        ([{"content": "a"}], "a string in messages[0].role, found null"),
        ([{"role": "assistant", "content": 3}], "in messages[0].content, found the number 3"),
        ([{"role": "assistant", "content": ["a"]}], "in messages[0].content[0], found a string"),
        ([{"role": "assistant", "content": [{"type": "text"}]}], "a string in messages[0].content[0].text, found null"),
        ([{"role": "assistant", "reasoning": {}}], "a string in messages[0]'s reasoning, found an object"),
        ([{"role": "assistant", "tool_calls": {}}], "an array in messages[0].tool_calls, found an object"),
        ([{"role": "assistant", "tool_calls": [1]}], "an object in messages[0].tool_calls[0], found the number 1"),
        ([{"role": "assistant", "function_call": []}], "an object in messages[0].function_call, found an array"),
        ([{"role": "user", "content": "\ud800"}], "the lone surrogate \\ud800 at character 0"),
        ([{"role": "a", "tool_calls": [{"function": {"arguments": {"x": "\udc00"}}}]}], "the lone surrogate \\udc00"),
    ],
)
def test_malformed_conversations(messages: object, problem: str) -> None:
    assert problem in told(json.dumps({"messages": messages}).encode())
    if isinstance(messages, list):
        assert problem.replace("messages[", "prompt[") in told(
            json.dumps({"prompt": messages, "response": "r"}).encode()
        )


def test_too_many_texts_in_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_PIECES", 3)
    messages = [{"role": "assistant", "content": "a"}] * 4
    assert len(said(messages[:3])) == 3
    assert "at most 3 texts in messages, found more" in told(json.dumps({"messages": messages}).encode())


# Malformed lines. Each stands between two good ones, which come through.


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"response": "a\xff"}', "UTF-8, found the byte 0xff at byte 15"),
        (b'{"response": "\xed\xa0\x80"}', "UTF-8, found the byte 0xed at byte 14"),
        (b'{"response": "a", "response": "b"}', "each field once, found response twice"),
        (b'{"response": "a", "meta": [{"x": 1, "x": 2}]}', "each field once, found x twice"),
        (b'{"response": "a", "score": NaN}', "found in it NaN"),
        (b'{"response": "a", "score": -Infinity}', "found in it -Infinity"),
        (b'{"response": "a", "score": -1e400}', "a number out of range: -1e400"),
        (b'{"response": "a", "n": ' + b"9" * 5000 + b"}", "an integer of thousands of digits"),
        (b'{"token_ids": [' + b"9" * 5000 + b"]}", "an integer of thousands of digits"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"response": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"response": "\\ud83d"}', "the lone surrogate \\ud83d at character 0: it has no UTF-8 form"),
        (b'{"prompt": "x\\udc00", "response": "a"}', "in prompt, found the lone surrogate \\udc00 at character 1"),
        (b'{"response": "a", "fingerprint": "\\udfff"}', "in fingerprint, found the lone surrogate"),
        (b'{"response": "a", "tokenizer": {}}', "a string in tokenizer, found an object"),
        (b'{"response": "a\tb"}', "a JSON object, found none: Invalid control character at character 15"),
        (b'{"response": "a"', "a JSON object, found none: Expecting"),
        (b'{"response": "a"} {"response": "b"}', "a JSON object, found none: Extra data at character 18"),
        (b'["a"]', "a JSON object, found an array"),
        (b"null", "a JSON object, found null"),
        (b"3", "a JSON object, found the number 3"),
        (b"\0", "a JSON object, found none"),
        (b"{}", "one of the fields response, text, messages, token_ids"),
        (b'{"prompt": "p", "response": null}', "found prompt, response (null): name the field with --response-field"),
        (b'{"response": "a", "messages": []}', "found response, messages: name"),
        (b'{"response": "a", "text": "b"}', "found response, text: name"),
        (b'{"text": "a", "messages": []}', "found text, messages: name"),
        (b'{"messages": [], "token_ids": [1]}', "found messages, token_ids: name"),
        (b'{"\\u001b[31m\\u202e": 1}', "found \\x1b[31m\\u202e: name"),
        (json.dumps({str(i): i for i in range(100)}).encode(), "found 0, 1, 2, 3, 4, 5, 6, 7, 92 more: name"),
        (b'{"response": 5}', "a string in response, found the number 5"),
        (b'{"response": ["a"]}', "a string in response, found an array"),
        (b'{"response": "a", "prompt": 1.5}', "array of chat messages in prompt, found the number 1.5"),
        (b'{"token_ids": "1 2"}', "an array of token ids in token_ids, found a string"),
        (b'{"token_ids": [1, true]}', "in token_ids, found true at position 1"),
        (b'{"token_ids": [1.0]}', "in token_ids, found the number 1.0 at position 0"),
        (b'{"token_ids": [1, 2, -1]}', "in token_ids, found the number -1 at position 2"),
        (b'{"token_ids": [4294967296]}', "in token_ids, found the number 4294967296 at position 0"),
        (
            b'{"token_ids": [1, 99999999999999999999]}',
            "in token_ids, found the number 99999999999999999999 at position",
        ),
        (b'{"token_ids": [[1]]}', "in token_ids, found an array at position 0"),
    ],
)
def test_malformed_lines(line: bytes, problem: str) -> None:
    assert problem in told(line)


def test_what_is_unusual_and_fine() -> None:
    data = b"\xef\xbb\xbf" + lines(GOOD + b"\r", b"", b" \t\r", b"  " + GOOD, b"\xef\xbb\xbf" + GOOD) + GOOD
    assert [document.source for document in scored(stdin_of(data))] == ["-:1", "-:4", "-:5", "-:6"]
    # Strings that are not read may be anything that is JSON.
    assert only({"response": "a", "other": "\ud800", "number": 10**300, "deep": [[[[]]]]}).texts[0].response == "a"


@pytest.mark.parametrize("ending", [b"", b"\n"])
@pytest.mark.parametrize("over", [-1, 0, 1, 2, 5000])
def test_line_limit(monkeypatch: pytest.MonkeyPatch, ending: bytes, over: int) -> None:
    monkeypatch.setattr(inputs, "MAX_LINE", 1000)
    monkeypatch.setattr(inputs, "_CHUNK", 64)
    frame = b'{"text": ""}'
    long = b'{"text": "' + b"a" * (1000 - len(frame) - len(ending) + over) + b'"}' + ending
    reader = stdin_of(long if not ending else lines(GOOD) + long + lines(GOOD), max_malformed=1)
    documents = scored(reader)
    assert reader.accounting.malformed == (over > 0)
    if over > 0:
        assert "expected a line of at most 1,000 bytes" in reader.accounting.problems[0]
    if ending:
        good = ["-:1", "-:2", "-:3"] if over <= 0 else ["-:1", "-:3"]
        assert [document.source for document in documents] == good


def test_an_overlong_line_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_LINE", 2**20)
    bomb = gzip.compress(lines(GOOD, b'{"text": "' + b"a" * (64 * 2**20) + b'"}', b" " * (64 * 2**20), GOOD))
    reader = stdin_of(bomb, max_malformed=2)
    tracemalloc.start()
    try:
        documents = scored(reader)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [document.source for document in documents] == ["-:1", "-:4"]
    # A blank line that was not seen to its end is not known to be blank.
    assert reader.accounting.malformed == 2
    assert peak < 8 * 2**20


# The allowance and the accounting.


def test_beyond_the_allowance_all_is_read_and_then_refused(tmp_path: Path) -> None:
    path = write(tmp_path, lines(GOOD, b"{", GOOD, b"[]", b"", GOOD))
    reader = Reader([path], max_malformed=1)
    found: list[Document] = []
    with pytest.raises(InputError) as refusal:
        found.extend(scoring(reader))
    assert [document.source for document in found] == [f"{path}:{n}" for n in (1, 3, 6)]
    assert reader.accounting.to_json() == {
        "read": 5,
        "scored": 3,
        "excluded": {},
        "malformed": 2,
        "problems": reader.accounting.problems,
        "notes": {},
    }
    assert str(refusal.value).startswith(f"2 of 5 records are malformed and 1 allowed. The first: {path}:2: expected")
    assert str(refusal.value).endswith("--max-malformed 2")
    assert refusal.value.exit_code == 3
    assert len(scored(Reader([path], max_malformed=2))) == 3


def test_only_the_first_problems_are_kept() -> None:
    reader = stdin_of(lines(GOOD, *[b"{"] * 50), max_malformed=50)
    scored(reader)
    assert reader.accounting.malformed == 50
    assert [problem.split(":")[1] for problem in reader.accounting.problems] == [str(n) for n in range(2, 22)]


def test_accounting_must_add_up() -> None:
    accounting = Accounting(read=3)
    accounting.score()
    accounting.exclude("too short")
    with pytest.raises(TaggantError, match="3 records were read and 2 are accounted for"):
        accounting.to_json()
    accounting.exclude("too short")
    assert accounting.to_json()["excluded"] == {"too short": 2}
    with pytest.raises(TaggantError, match="3 records were read and 4 are accounted for"):
        accounting.score()


@given(st.lists(st.sampled_from(["good", "bad", "blank", "left out"]), max_size=30), st.integers(0, 3))
def test_every_line_is_in_one_column(kinds: list[str], allowed: int) -> None:
    line = {"good": GOOD, "bad": b'{"response": 1}', "blank": b" ", "left out": b'{"messages": []}'}
    reader = stdin_of(lines(b'{"text": "first"}', *[line[kind] for kind in kinds]), max_malformed=allowed)
    refused = False
    try:
        for document in reader:
            if document.texts:
                reader.accounting.score()
            else:
                reader.accounting.exclude("no answer in it")
    except InputError:
        refused = True
    table = reader.accounting.to_json()
    assert table["read"] == 1 + len(kinds) - kinds.count("blank")
    assert table["scored"] == 1 + kinds.count("good")
    assert table["malformed"] == kinds.count("bad")
    assert sum(table["excluded"].values()) == kinds.count("left out")
    assert refused == (kinds.count("bad") > allowed)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
RECORDS = st.fixed_dictionaries(
    {"response": TEXTS},
    optional={"prompt": TEXTS, "token_ids": st.lists(st.integers(0, 2**32 - 1), max_size=8), "fingerprint": TEXTS},
)


@given(
    st.lists(RECORDS, min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
    st.booleans(),
)
def test_what_was_written_is_read(
    written: list[dict[str, Any]], escaped: bool, newline: str, compressed: bool, ended: bool
) -> None:
    data = newline.join(json.dumps(record, ensure_ascii=escaped) for record in written).encode()
    data += newline.encode() if ended else b""
    documents = scored(stdin_of(gzip.compress(data) if compressed else data))
    assert len(documents) == len(written)
    for document, record in zip(documents, written, strict=True):
        prompts = (record["prompt"],) if "prompt" in record else None
        assert plain(document.texts[0]) == ("response", record["response"], record.get("token_ids"), prompts)
        assert document.fingerprint == record.get("fingerprint")


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"{", b'{"text": "', b"\x1f\x8b\x08\0", gzip.compress(GOOD, mtime=0)[:20]]),
)
def test_any_bytes_are_read_or_refused_in_one_line(data: bytes, start: bytes) -> None:
    reader = stdin_of(start + data, max_malformed=10**6)
    messages = reader.accounting.problems
    try:
        for document in scoring(reader):
            for text in document.texts:
                assert text.response is None or text.response.encode().decode() == text.response
    except (InputError, UsageError) as error:
        messages = [*messages, str(error)]
    assert all(message.isprintable() for message in messages)
    reader.accounting.check()


# Files, folders, patterns, standard input, gzip.


@pytest.mark.parametrize("name", ["novel.txt", "notes.md", "code.py", "LICENSE", "odd.suffix", "novel.TXT"])
@pytest.mark.parametrize("compressed", [False, True])
def test_any_other_file_is_one_text(tmp_path: Path, name: str, compressed: bool) -> None:
    content = '{"text": "not a record"}\r\nline\u2028two\n\n'
    data = content.encode()
    path = write(tmp_path, gzip.compress(data) if compressed else data, name + ".gz" * compressed)
    (document,) = scored(Reader([str(path)]))
    assert document.source == str(path)
    assert plain(document.texts[0]) == ("text", content, None, None)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"abc\xe9", "expected UTF-8, found the byte 0xe9 at byte 3"),
        (b"a\0b", "expected text, found a NUL at character 1"),
        ("text".encode("utf-16"), "found the byte order mark of UTF-16: convert the file with iconv"),
        ("text".encode("utf-16-be"), "found a NUL at character 0"),
    ],
)
def test_malformed_texts(tmp_path: Path, data: bytes, problem: str) -> None:
    reader = Reader([write(tmp_path, b"good", "a.txt"), path := write(tmp_path, data, "b.txt")], max_malformed=1)
    assert len(scored(reader)) == 1
    assert reader.accounting.problems == [reader.accounting.problems[0]]
    assert reader.accounting.problems[0].startswith(f"{path}: ")
    assert problem in reader.accounting.problems[0]


def test_text_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_TEXT", 1000)
    assert len(scored(Reader([write(tmp_path, b"a" * 1000, "a.txt")]))) == 1
    with pytest.raises(InputError, match="expected a text of at most 1,000 bytes, found a longer one"):
        scored(Reader([write(tmp_path, b" " * 1001, "a.txt")]))
    # Of what a small file unpacks to, no more is held than is allowed.
    bomb = write(tmp_path, gzip.compress(bytes(64 * 2**20)), "bomb.gz")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="expected a text of at most"):
            scored(Reader([bomb]))
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_the_mark_of_utf8_is_no_text(tmp_path: Path) -> None:
    (document,) = scored(Reader([write(tmp_path, b"\xef\xbb\xbfabc", "a.txt")]))
    assert document.texts[0].response == "abc"
    assert len(scored(stdin_of(b"\xef\xbb\xbf\n" + GOOD))[0].texts) == 1
    with pytest.raises(InputError, match="no records in"):
        scored(Reader([write(tmp_path, b"\xef\xbb\xbf \n", "b.txt")]))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
def test_utf16_is_one_clear_problem(tmp_path: Path, encoding: str) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"
    path = write(tmp_path, (mark + (GOOD.decode() + "\n") * 5000).encode(encoding))
    reader = Reader([path, write(tmp_path, lines(GOOD), "good.jsonl")], max_malformed=1)
    assert len(scored(reader)) == 1
    (problem,) = reader.accounting.problems
    assert problem.startswith(f"{path}:1: expected UTF-8, found the byte order mark of UTF-16")
    assert reader.digests[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'\n \r\n\t{"text": "a"}\n{"text": "b"}', [("-:3", "a"), ("-:4", "b")]),
        (b"\n\n plain {text}\nmore\n", [("-", "\n\n plain {text}\nmore\n")]),
        (b"[1]\n", [("-", "[1]\n")]),
        (b"x", [("-", "x")]),
    ],
)
def test_standard_input_tells_records_from_text(data: bytes, expected: list[tuple[str, str]]) -> None:
    for given_bytes in (data, gzip.compress(data)):
        documents = scored(reader := stdin_of(given_bytes))
        assert [(document.source, document.texts[0].response) for document in documents] == expected
        assert reader.digests == {"-": hashlib.sha256(given_bytes).hexdigest()}


class Dripping(io.RawIOBase):
    """Give one byte at a time, as a pipe may."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        byte, self.rest = self.rest[:1], self.rest[1:]
        buffer[: len(byte)] = byte
        return len(byte)


@pytest.mark.parametrize("data", [lines(b"", b"", GOOD, GOOD), gzip.compress(lines(GOOD, GOOD), mtime=0)])
def test_a_slow_pipe(data: bytes) -> None:
    reader = Reader(["-"], stdin=Dripping(data))  # type: ignore[arg-type]
    assert len(scored(reader)) == 2
    assert reader.digests["-"] == hashlib.sha256(data).hexdigest()


def test_the_process_s_own_standard_input() -> None:
    code = "from detect.records import Reader; print([d.source for d in Reader(['-', '-'])])"
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    ran = subprocess.run(
        [sys.executable, "-c", code], input=lines(GOOD, GOOD), capture_output=True, env=environment, check=True
    )
    assert ran.stdout.decode().strip() == "['-:1', '-:2']"
    closed = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, code],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert b"InputError: -: there is no standard input" in closed.stderr


def test_named_pipe_is_told_by_its_first_character(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(lines(GOOD, GOOD),))
    writer.start()
    assert [document.source for document in scored(Reader([path]))] == [f"{path}:1", f"{path}:2"]
    writer.join()


def test_folder(tmp_path: Path) -> None:
    write(tmp_path, lines(GOOD), "b/z.jsonl")
    write(tmp_path, gzip.compress(lines(GOOD)), "b/a.NDJSON.gz")
    write(tmp_path, b"text", "c.txt")
    write(tmp_path, b"", "b/__init__.py")
    for name in (".hidden/x.jsonl", "b/.y.jsonl", "b/table.xml", "b/info.json", "b/image.png"):
        write(tmp_path, b"x", name)
    (tmp_path / "b" / "link.jsonl").symlink_to("z.jsonl")
    (tmp_path / "loop").symlink_to(tmp_path)
    reader = Reader([tmp_path])
    assert [os.path.relpath(document.source, tmp_path) for document in scored(reader)] == [
        "b/a.NDJSON.gz:1",
        "b/link.jsonl:1",
        "c.txt",
    ]
    assert sum(reader.accounting.notes.values()) == 5
    for name, digest in reader.digests.items():
        assert digest == hashlib.sha256(Path(name).read_bytes()).hexdigest()
    assert len(reader.digests) == 4


def test_patterns_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "[x].jsonl"):
        write(tmp_path, lines(GOOD), name)
    monkeypatch.chdir(tmp_path)
    sources = [document.source for document in scored(Reader(["*.jsonl", "a.jsonl", "./b.jsonl", "**/*.jsonl"]))]
    assert sources == ["[x].jsonl:1", "a.jsonl:1", "b.jsonl:1", "sub/c.jsonl:1"]
    # A name that exists is no pattern.
    assert [document.source for document in scored(Reader(["[x].jsonl"]))] == ["[x].jsonl:1"]
    assert [document.source for document in scored(Reader(["su*"]))] == ["sub/c.jsonl:1"]
    # The order in which inputs are given stays.
    assert [document.source for document in scored(Reader(["b.jsonl", "a.jsonl"]))] == ["b.jsonl:1", "a.jsonl:1"]


def test_digests_come_when_the_reading_ends(tmp_path: Path) -> None:
    path = write(tmp_path, lines(*[GOOD] * 5))
    reader = Reader([path])
    for document in reader:
        reader.accounting.score()
        assert reader.digests == {}
        if document.source.endswith(":3"):
            break
    assert reader.digests == {}
    scored(reader := Reader([path]))
    assert reader.digests == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}


def test_cut_gzip_keeps_the_lines_before(tmp_path: Path) -> None:
    # Random text, so that the cut falls into the middle and not before the first line.
    generator = random.Random(7)
    whole = lines(*[json.dumps({"text": generator.randbytes(3000).hex()}).encode() for _ in range(100)])
    packed = gzip.compress(whole)
    path = write(tmp_path, packed[: len(packed) // 2], "cut.jsonl.gz")
    reader = Reader([path, write(tmp_path, lines(GOOD), "whole.jsonl")], max_malformed=1)
    documents = scored(reader)
    assert 40 <= len(documents) <= 51
    assert [d.texts[0].response for d in documents[:-1]] == [
        json.loads(line)["text"] for line in whole.split(b"\n")[: len(documents) - 1]
    ]
    (problem,) = reader.accounting.problems
    assert f"{path}: expected a whole gzip stream, found its end: it was cut short after line" in problem
    assert f"after line {len(documents) - 1}:" in problem
    assert reader.digests[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="cut short"):
        scored(Reader([path]))


PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PACKED[:10] + b"\xff\xff" + PACKED[12:], id="deflate"),
        pytest.param(PACKED[:-8] + bytes(8), id="checksum"),
        pytest.param(PACKED + b"trailing", id="trailing"),
        pytest.param(b"not gzip at all", id="name only"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz"])
def test_damaged_gzip(tmp_path: Path, data: bytes, name: str) -> None:
    path = write(tmp_path, data, name)
    with pytest.raises(InputError, match="expected a whole gzip stream, found damage") as refusal:
        scored(Reader([path]))
    assert str(path) in str(refusal.value)


def test_gzip_of_several_members_and_without_its_suffix(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(lines(GOOD)) + gzip.compress(lines(GOOD)), "answers.jsonl")
    assert [document.source for document in scored(Reader([path]))] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize("data", [b"", b"\n \r\n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "folder/a.jsonl", "-"])
def test_an_input_without_a_record(tmp_path: Path, data: bytes, name: str) -> None:
    if name == "-":
        reader = stdin_of(data)
    else:
        path = write(tmp_path, gzip.compress(data) if name.endswith(".gz") else data, name)
        given_path = path if path.parent == tmp_path else path.parent
        reader = Reader([given_path, write(tmp_path, lines(GOOD), "good.jsonl")])
    with pytest.raises(InputError, match="no records in") as refusal:
        scored(reader)
    assert "good.jsonl" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.zip", "zip is not read by this version: convert it to JSON Lines"),
        ("a.jsonl.bz2", "bzip2 is not read by this version: convert it to JSON Lines"),
        ("a.xz.gz", "xz is not read by this version: convert it to JSON Lines"),
        ("a.json", "convert it to JSON Lines"),
        ("a.JSON.gz", "convert it to JSON Lines"),
    ],
)
def test_formats_that_are_not_read(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as refusal:
        Reader([write(tmp_path, GOOD, name)])
    assert str(tmp_path / name) in str(refusal.value)


@pytest.mark.parametrize(("magic", "name"), [(b"PK\x03\x04\0", "zip"), (b"\xfd7zXZ", "xz")])
def test_formats_that_are_not_read_under_another_name(magic: bytes, name: str) -> None:
    with pytest.raises(UsageError, match=f"-: {name} is not read by this version"):
        scored(stdin_of(magic))


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to read"):
        Reader([])
    with pytest.raises(UsageError, match="--max-malformed of 0 or more"):
        stdin_of(GOOD, max_malformed=-1)
    with pytest.raises(InputError, match=r"answers\\n\.jsonl: no such file or folder"):
        Reader([tmp_path / "answers\n.jsonl"])
    with pytest.raises(InputError, match=r"no file matches .*\*\.jsonl: check the pattern"):
        Reader([str(tmp_path / "*.jsonl")])
    write(tmp_path, b"", "a.png")
    with pytest.raises(InputError, match=r"no records in .*: expected files \.jsonl, .*, found 1 others"):
        Reader([tmp_path])


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, lines(GOOD))
    reader = Reader([path])
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*answers\.jsonl: No such file or directory"):
        scored(reader)


def test_a_reading_error_is_named(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100:
                raise OSError(5, "Input/output error")
            return super().read(min(size or 64, 64))

    with pytest.raises(InputError, match="cannot read -: Input/output error"):
        scored(Reader(["-"], stdin=Failing(lines(*[GOOD] * 10))))


def test_names_are_shown_escaped(tmp_path: Path) -> None:
    path = write(tmp_path, lines(GOOD, b"{"), "a\x1b[31m\u202e.jsonl")
    reader = Reader([path], max_malformed=1)
    (document,) = scored(reader)
    assert document.source == f"{tmp_path}/a\\x1b[31m\\u202e.jsonl:1"
    assert list(reader.digests) == [f"{tmp_path}/a\\x1b[31m\\u202e.jsonl"]
    assert reader.accounting.problems[0].isprintable()


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    try:
        path.write_bytes(lines(GOOD))
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    (document,) = scored(Reader([path]))
    assert document.source.encode()


def test_a_reader_reads_once() -> None:
    reader = stdin_of(GOOD)
    scored(reader)
    with pytest.raises(UsageError, match="reads once"):
        next(iter(reader))
