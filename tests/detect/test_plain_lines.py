"""Lines that are told at a glance are told as the strict parser tells them, whatever bytes they are."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence

import hostile
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detect.inputs import Portion, RawRecord
from detect.line_blocks import LineBlock, cut_lines, in_blocks
from detect.plain_lines import plain_texts
from detect.portions import Sifter
from detect.records import Fields, LeftOutError, RecordParser
from watermark.errors import InputError
from watermark.tokenizer import Tokenizer

NAMES = ["text", "response", "prompt", "messages", "token_ids", "schema", "error", "prompt_index", "fingerprint"]
NAMES += ["tokenizer", "account", "id", "t\u00e9xt", "te\\u0078t", "", "\U0001f600"]

VALUES = st.sampled_from([
    '"a b"', '""', "null", "true", "false", "nul", "0", "-0", "-1.50", "12345", "01", "-", "1.", ".5", "1e5", "1E400",
    "NaN", "Infinity", "9" * 15, "9" * 16, "9" * 5000, "[]", "[1, 2]", "{}", '{"a": 1, "a": 2}', '"\\ud83d\\ude00"',
    '"\\ud83d"', '"\\ude00\\ud83d"', '"\\ud83d\\n"', '"\\ud83d\\ud83d"', '"\\u12g4"', '"\\x"', '"\\', '"\\u00', '"\t"',
    '"\\u0000\\u007f\\u0080\\u07ff\\u0800\\uffff\\uFEFF"', '"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\x7f\u2028\x85"', '"',
])  # fmt: skip
MEMBERS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES | st.text(max_size=12).map(json.dumps)), max_size=5)
BLANKS = st.sampled_from(["", "", "", " ", "\t", "\r", "  ", "\x0b", "\xa0", "\ufeff"])


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Return what is nearly an object of one of the shapes that are told at a glance."""
    parts: list[str] = []
    for name, value in draw(MEMBERS):
        parts.append(f'{draw(BLANKS)}"{name}"{draw(BLANKS)}:{draw(BLANKS)}{value}{draw(BLANKS)}')
    line = draw(BLANKS) + "{" + ",".join(parts) + "}" + draw(BLANKS)
    return line.encode("utf-8", "surrogatepass")


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """Return such an object with bytes put in, changed or left out."""
    line = bytearray(draw(objects()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(line)))
        piece = draw(st.binary(max_size=4) | st.sampled_from(hostile.PIECES))[:400]
        line[at : at + draw(st.integers(0, 3))] = piece
    return bytes(line).replace(b"\n", b" ")


def block_of(lines: Sequence[bytes]) -> LineBlock:
    ends = np.cumsum([len(line) for line in lines])
    starts = ends - [len(line) for line in lines]
    return LineBlock(data=b"".join(lines), starts=starts, ends=ends, numbers=np.arange(1, len(lines) + 1))


def check(lines: Sequence[bytes], fields: Fields | None = None) -> int:
    """Hold each line that is told at a glance against the strict parser; return how many were."""
    parser = RecordParser(fields, note=lambda note: pytest.fail(note))
    which, texts = parser.texts_alone(Portion("a", block_of(lines)))
    for i, text in zip(which, texts, strict=True):
        document = parser.document(RawRecord("a:1", 1, lines[i]))
        (said,) = document.texts
        assert (said.response, said.token_ids, said.prompts) == (text, None, None)
        assert (document.fingerprint, document.tokenizer, document.request) == (None, None, None)
    return len(which)


@settings(max_examples=1500, deadline=None)
@given(st.lists(objects() | changed() | st.binary(max_size=60), min_size=1, max_size=6))
@example([b'{"text": "a"}', b'{"text": "\xed\xa0\x80"}', b'{"text": "\xc0\x80"}', b'{"text": "\xf4\x90\x80\x80"}'])
@example([b'{"text": "a", "text": "a"}', b'{"text": "a", "te\\u0078t": "b"}', b'{"text": "a", "id": 1, "id": 1}'])
def test_what_is_told_at_a_glance_is_what_the_strict_parser_says(lines: list[bytes]) -> None:
    check(lines)
    check(lines, Fields(response="id", text="schema"))
    check(lines, Fields(response="text", text="text", prompt="id"))


def accepted(line: bytes) -> str | None:
    """Return the text that the strict parser finds in a flat line, None if it refuses it."""
    try:
        return RecordParser(note=lambda note: None).document(RawRecord("a:1", 1, line)).texts[0].response
    except (InputError, LeftOutError):
        return None


@pytest.mark.parametrize(
    ("lead", "tail"),
    [
        (b"", b""),
        (b"\xe0", b""),
        (b"\xed", b""),
        (b"\xef", b""),
        (b"\xf0", b"\x80"),
        (b"\xf4", b"\x80"),
        (b"\xf5", b"\x80"),
    ],
)
def test_every_pair_of_bytes_in_a_string(lead: bytes, tail: bytes) -> None:
    """All 65,536 pairs, alone or in a character: told exactly where the strict parser finds the text."""
    lines = [b'{"text": "' + lead + bytes([a, b]) + tail + b'"}' for a in range(256) for b in range(256)]
    block = block_of(lines)
    texts, places = plain_texts(block.data, block.starts, block.ends, answers=["text"], others=[])
    for line, (start, end) in zip(lines, places.tolist(), strict=True):
        assert (texts[start:end].decode() if start >= 0 else None) == accepted(line), line


def test_every_escape_of_sixteen_bits() -> None:
    lines = [f'{{"text": "\\u{code:04x}"}}'.encode() for code in range(2**16)]
    lines += [f'{{"text": "\\uD83D\\u{code:04X}"}}'.encode() for code in range(0xDB00, 0xE100)]
    block = block_of(lines)
    texts, places = plain_texts(block.data, block.starts, block.ends, answers=["text"], others=[])
    for line, (start, end) in zip(lines, places.tolist(), strict=True):
        assert (texts[start:end].decode() if start >= 0 else None) == accepted(line), line


def test_common_records_are_told_at_a_glance() -> None:
    """Else the path for all the others is taken for them, and nobody notices but by the time."""
    lines = [
        b'{"text": "a"}\n',
        b'{"id": 12, "score": -0.25, "ok": true, "of": null, "response": "na\\u00efve \\n \xf0\x9f\x98\x80"}\r\n',
        b' { "text" : "a" , "date" : "2026" } \n',
    ]  # fmt: skip
    assert check(lines) == 3
    for other in (b'"prompt": "b"', b'"token_ids": [1]', b'"response": "b"', b'"fingerprint": "f"', b'"schema": "x"'):
        assert check([b'{"text": "a", ' + other + b"}"]) == 0


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32), names=st.lists(st.sampled_from(sorted(dict(hostile.seeds()))), min_size=1, max_size=4)
)
def test_portions_are_sifted_as_record_by_record(smollm2: Tokenizer, seed: int, names: list[str]) -> None:
    """Whatever is among the lines, the account and the texts are those of the records taken one by one."""
    rng, seeds = random.Random(seed), dict(hostile.seeds())
    good = b'{"text": "A text alone, \\u00e9 \\ud83d\\ude00, as most records are.", "id": 3}\n{"text": "a"}\n'
    data = good + b"".join(hostile.changed(seeds[name][:3000], good, rng) + b"\n" + good for name in names)
    sifter = Sifter(smollm2, window=2, special_ids=smollm2.special_ids)
    (block,) = in_blocks(cut_lines(io.BytesIO(data), 1, b"", longest=2**20, chunk=2**20), 2**24)
    portion = Portion("a", block)
    seen = np.array([rng.choice([0, 0, 0, 1, 2]) for _ in range(len(portion))], dtype=np.uint8)
    found, one_by_one = sifter.sift(portion, seen), sifter.sift(Portion("a", list(portion.records())), seen)
    assert found.accounting == one_by_one.accounting
    assert [ids.tolist() for ids in found.responses] == [ids.tolist() for ids in one_by_one.responses]
    for name in (
        "prompts",
        "prompt_texts",
        "document",
        "sources",
        "record",
        "without_prompt",
        "from_ids",
        "fingerprints",
    ):
        left, right = getattr(found, name), getattr(one_by_one, name)
        if name == "prompts":
            left, right = ([[ids.tolist() for ids in pieces] for pieces in group] for group in (left, right))
        assert left == right, name


def lines_of(data: bytes, longest: int) -> list[tuple[int, bytes | None]]:
    """Return the lines of *data* as a plain loop cuts them: None where one is too long."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.split(b"\n")[0] + (b"\n" if b"\n" in data else b"")
    lines = io.BytesIO(data).readlines()
    kept = [
        (i, line)
        for i, line in enumerate(lines, 1)
        if len(line) > longest or line.removeprefix(b"\xef\xbb\xbf").strip()
    ]
    return [(i, None if len(line) > longest else line) for i, line in kept]


@settings(max_examples=600, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([b"{a}", b"\n", b"\r\n", b" ", b"\xef\xbb\xbf", b"\xff\xfe", b"x" * 30, b"{", b"\n\n"]),
        max_size=20,
    ),
    chunk=st.integers(1, 40),
    size=st.integers(1, 700),
    before=st.integers(0, 20),
)
def test_lines_are_cut_the_same_however_they_are_read(pieces: list[bytes], chunk: int, size: int, before: int) -> None:
    data = b"".join(pieces)
    stream = io.BufferedReader(io.BytesIO(data), 16)  # type: ignore[arg-type]
    first = stream.read(before)
    blocks = list(in_blocks(cut_lines(stream, 1, first, longest=25, chunk=chunk), size))
    cut: list[tuple[int, bytes | None]] = []
    costs: list[list[int]] = []
    for block in blocks:
        lines = [None if i in block.problems else line for i, line in enumerate(block.contents())]
        cut += zip(block.numbers.tolist(), lines, strict=True)
        costs.append([100 + len(line or b"") for line in lines])
    assert cut == lines_of(data, 25)
    # A block is as long as it has to be, and no longer.
    assert all(sum(cost) >= size for cost in costs[:-1])
    assert all(sum(cost[:-1]) < size for cost in costs)
