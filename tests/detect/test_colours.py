"""The view of green tokens: each colour against the specification, and hostile text in a terminal and on a page."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
from html_elements import LOADING, Page
from rich.console import Console

from detect.colours import Colour, colour_texts, text_of_colours, write_colours
from detect.corpus import Corpus
from detect.mark import GreenListMark
from watermark import prf
from watermark.tokenizer import load

TOKENIZER = load("smollm2")
HOSTILE = "<script>x</script> a \x1b[31m \u202e naïve 🦜 text, a naïve 🦜 text\nand an end"


def corpus(*texts: str) -> Corpus:
    return builders.corpus_of([TOKENIZER.encode(text) for text in texts])


def test_each_colour_is_that_of_the_specification() -> None:
    keys = builders.scope_of(window=2, account_lanes=16)
    ids = TOKENIZER.encode("The cat sat on the mat, and the cat sat on the mat again, and then it was gone.")
    (text,) = colour_texts(builders.corpus_of([ids]), GreenListMark(keys), TOKENIZER)
    seen: set[tuple[int, ...]] = set()
    for at, colour in enumerate(text.colours):
        window = ids[max(0, at - 2) : at]
        lane = int(prf.lane(window[None, :])[0]) if len(window) == 2 else 63
        pair = (*window.tolist(), int(ids[at]))
        if lane >= 48:
            expected = Colour.OUT
        elif pair in seen:
            expected = Colour.AGAIN
        else:
            u = prf.uniform(keys.lane_key(lane).reveal(), window[None, :], ids[at : at + 1])[0]
            expected = Colour.GREEN if u < prf.green_below(64) else Colour.RED
        seen.add(pair)
        assert colour is expected
    assert {*text.colours} == {*Colour}
    assert text.green == text.colours.count(Colour.GREEN)
    assert text.pairs == text.green + text.colours.count(Colour.RED)


def test_pieces_are_the_text_even_where_a_character_spans_tokens() -> None:
    texts = [HOSTILE, "🦜🦜🦜", "日本語のテキスト", ""]
    for text, coloured in zip(
        texts, colour_texts(corpus(*texts), GreenListMark(builders.scope_of()), TOKENIZER), strict=True
    ):
        assert "".join(coloured.tokens) == text
        assert len(coloured.tokens) == len(coloured.colours)


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    texts = colour_texts(corpus(HOSTILE), GreenListMark(builders.scope_of()), TOKENIZER)
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(text_of_colours(texts))
    printed = console.file.getvalue()
    assert not {*"\x1b\u202e"} & {*printed}
    assert "<script>" in printed
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    html = write_colours(texts, tmp_path / "page.html", scope="test").read_text(encoding="utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.elements} & LOADING == {"style"}
    assert not {*"\x1b\u202e"} & {*html}
    assert "<script>x</script>" in "".join(page.texts)


def test_revealed_lanes_have_no_colour() -> None:
    keys = builders.scope_of()
    ids = np.arange(100, 400, dtype=np.uint32)
    (before,) = colour_texts(builders.corpus_of([ids]), GreenListMark(keys), TOKENIZER)
    (after,) = colour_texts(
        builders.corpus_of([ids]), GreenListMark(replace(keys, revealed=tuple(range(32)))), TOKENIZER
    )
    lanes = prf.lane(ids[:-1, None])
    assert before.colours.count(Colour.OUT) == 1
    assert [c is Colour.OUT for c in after.colours[1:]] == [bool(lane < 32) for lane in lanes]
