"""Spans of a JSON Lines file: together the records of the whole file, each once, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detect import inputs, line_spans
from detect.inputs import Input, RawRecord, find_inputs, opened
from detect.line_spans import opened_span, spans_of
from watermark.errors import InputError


def file_of(path: Path, content: bytes) -> Input:
    path.write_bytes(content)
    (file,) = find_inputs([str(path)], lambda what, count: None)
    return file


def in_spans(file: Input, length: int, size: int = 50) -> list[RawRecord]:
    """The records of all spans, their lines numbered by those before."""
    found: list[RawRecord] = []
    line = 1
    for start, end in spans_of(file, length):
        with opened_span(file, start, end, first_line=line) as span:
            for portion in span.portions(size):
                found += portion.records()
            line += span.line_feeds
    return found


line = st.one_of(
    st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"-")),
    st.sampled_from(
        [b"", b" \t\r", b"\xef\xbb\xbf{}", b"\x1f\x8b", b"\xff\xfe", b"PAR1", "\u2028".encode(), b"x" * 80]
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(line, max_size=12), last=st.booleans(), length=st.integers(1, 40), chunk=st.sampled_from([3, 2**20])
)
def test_spans_are_the_file(tmp_path: Path, lines: list[bytes], last: bool, length: int, chunk: int) -> None:
    file = file_of(tmp_path / "a.jsonl", b"{}\n" + b"\n".join(lines) + b"\n" * last)
    with pytest.MonkeyPatch.context() as patch:
        # A line over the limit, which is passed over, and reads that end anywhere.
        patch.setattr(inputs, "MAX_LINE", 30)
        patch.setattr(line_spans, "_CHUNK", chunk)
        with opened(file, None) as source:
            expected = list(source.records())
        if spans_of(file, length):
            assert in_spans(file, length) == expected


def test_what_is_read_as_a_whole(tmp_path: Path) -> None:
    plain = b'{"text": "a"}\n' * 100
    assert len(spans_of(file_of(tmp_path / "a.jsonl", plain), 100)) == 14
    assert spans_of(file_of(tmp_path / "a.jsonl", plain), 1000) == []
    assert spans_of(file_of(tmp_path / "a.csv", plain), 100) == []
    assert spans_of(file_of(tmp_path / "a.jsonl.gz", plain), 100) == []
    for mark in (b"\xff\xfe", b"\x1f\x8b", b"PAR1", b"\x28\xb5\x2f\xfd"):
        # What a file is named is not what it is.
        assert spans_of(file_of(tmp_path / "b.jsonl", mark + plain), 100) == []
    file = file_of(tmp_path / "c.jsonl", plain)
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(InputError, match="cannot read"), opened_span(file, 0, 10):
        pass
