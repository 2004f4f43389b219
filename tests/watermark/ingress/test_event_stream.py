from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watermark.ingress.event_stream import EventSplitter, data_of, with_data

EVENTS = [
    b'data: {"choices":[{"index":0,"text":"\xc3\xa9\xe2\x82\xac","token_ids":[1]}]}\n\n',
    b": keep-alive\r\n\r\n",
    b"event: delta\r\ndata: {\r\ndata: }\r\n\r\n",
    b"data: 1\rid: 4\r\r",
    b"data\n\n",
    b"data: [DONE]\n\n",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=6), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_events_do_not_depend_on_where_the_stream_is_cut(events: list[bytes], cuts: list[int], ended: bool) -> None:
    stream = b"".join(events) + (b"" if ended else b"data: half")
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    splitter = EventSplitter()
    got = [e for a, b in pairwise(places) for e in splitter.feed(stream[a:b])]
    rest = splitter.rest()
    assert b"".join(got) + rest == stream
    assert [data_of(event) for event in got if event.strip()] == [data_of(event) for event in events]
    assert rest.strip() == (b"" if ended else b"data: half")


def test_a_stream_cut_at_every_byte() -> None:
    stream = b"".join(EVENTS)
    for at in range(len(stream) + 1):
        splitter = EventSplitter()
        assert splitter.feed(stream[:at]) + splitter.feed(stream[at:]) == EVENTS
    splitter = EventSplitter()
    assert [e for i in range(len(stream)) for e in splitter.feed(stream[i : i + 1])] == EVENTS


@pytest.mark.parametrize(
    ("event", "data", "replaced"),
    [
        (b"data: a\n\n", b"a", b"data: Z\n\n"),
        (b"data:a\r\n\r\n", b"a", b"data: Z\r\n\r\n"),
        (b"id: 1\ndata: a\ndata: b\nretry: 5\n\n", b"a\nb", b"id: 1\ndata: Z\nretry: 5\n\n"),
        (b": a\n\n", None, b": a\n\n"),
        (b"data\n\n", b"", b"data: Z\n\n"),
        (b"database: a\n\n", None, b"database: a\n\n"),
        (b"data: a", b"a", b"data: Z"),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes | None, replaced: bytes) -> None:
    assert data_of(event) == data
    assert with_data(event, b"Z") == replaced
