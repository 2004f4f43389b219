"""Which tokens of a text are green: a view for whoever holds the key, in a terminal or as a page.

It is a view and no test: an eye finds patterns in anything, and the figures below each text are of that text alone.
Nobody else can make it, and a page of it shows bits of the key: it is not for publishing while the key marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.text import Text

from detect.corpus import Corpus
from detect.count import count_test
from detect.html_page import render, write_page
from detect.mark import GreenListMark
from detect.result_tables import p_value
from detect.tally import PromptPolicy, tally_of
from watermark.errors import printable
from watermark.tokenizer import Tokenizer

__all__ = ["Colour", "ColouredText", "colour_texts", "text_of_colours", "write_colours"]


class Colour(Enum):
    """What a token is to the tests."""

    GREEN = "green"
    RED = "not green"
    AGAIN = "counted before"
    """Its pair stands earlier in the same text, and counts once."""
    OUT = "not tested"
    """After too few tokens, after a special one, as an echo of the prompt, in a lane that is not tested."""


_STYLES: Final = {
    Colour.GREEN: "black on green",
    Colour.RED: "white on red",
    Colour.AGAIN: "dim underline",
    Colour.OUT: "dim",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColouredText:
    """One text, token by token. Its pairs are counted within it alone."""

    source: str
    tokens: tuple[str, ...]
    colours: tuple[Colour, ...]
    green: int
    pairs: int
    expected: float
    """Share of green tokens by chance."""
    log10_p: float
    """Exact binomial tail of *green* of *pairs*."""

    @property
    def summary(self) -> str:
        """The figures, in words."""
        share = self.green / max(1, self.pairs)
        return (
            f"{self.green:,} of {self.pairs:,} distinct pairs are green: {share:.3f}, by chance {self.expected:.3f}; "
            f"p = {p_value(self.log10_p)}"
        )


def colour_texts(
    corpus: Corpus, mark: GreenListMark, tokenizer: Tokenizer, *, policy: PromptPolicy = PromptPolicy.OWN
) -> list[ColouredText]:
    """Colour each text of a corpus, each by itself.

    Args:
        corpus: of the mark's window.
        mark: the key.
        tokenizer: the key's.
        policy: which windows are left out for standing in a prompt.
    """
    k = mark.scope.params.fleet_k
    found = []
    for i, ids in enumerate(corpus.responses):
        tally = tally_of(
            [ids],
            window=mark.window,
            special_ids=mark.special_ids,
            prompts=corpus.prompts[i : i + 1],
            echoes=corpus.echoes[i : i + 1],
            policy=policy,
        )
        tested, green = mark.tested(tally), mark.scores(tally)
        colours = _colours(tally.position_pair, tested, green)
        count = count_test(int((green & tested).sum()), pairs=int(tested.sum()), k=k)
        found.append(
            ColouredText(
                source=corpus.sources[corpus.document[i]],
                tokens=tuple(_pieces(tokenizer, ids)),
                colours=tuple(colours),
                green=count.green,
                pairs=count.pairs,
                expected=k / 256,
                log10_p=count.log10_p,
            )
        )
    return found


def _colours(pairs: npt.NDArray[np.int32], tested: npt.NDArray[np.bool_], green: npt.NDArray[np.bool_]) -> list[Colour]:
    seen: set[int] = set()
    colours = []
    for pair in pairs.tolist():
        if pair < 0 or not tested[pair]:
            colours.append(Colour.OUT)
        elif pair in seen:
            colours.append(Colour.AGAIN)
        else:
            seen.add(pair)
            colours.append(Colour.GREEN if green[pair] else Colour.RED)
    return colours


def _pieces(tokenizer: Tokenizer, ids: npt.NDArray[np.uint32]) -> list[str]:
    """Return the text of each token; a character that spans tokens stands at its last one."""
    pieces, pending = [], b""
    for i in ids.tolist():
        pending += tokenizer.token_bytes(i)
        try:
            piece, pending = pending.decode(), b""
        except UnicodeDecodeError as error:
            # What may still become a character waits for the next token; what cannot is shown as U+FFFD.
            waits = error.end == len(pending) and len(pending) - error.start < 4
            keep = pending[error.start :] if waits else b""
            piece, pending = pending[: len(pending) - len(keep)].decode(errors="replace"), keep
        pieces.append(piece)
    if pending and pieces:
        pieces[-1] += pending.decode(errors="replace")
    return pieces


def text_of_colours(texts: Sequence[ColouredText]) -> RenderableType:
    """Return texts for a terminal."""
    parts: list[RenderableType] = [
        Text.assemble("legend: ", *((f" {c.value} ", _STYLES[c]) if c.value else "" for c in Colour)),
    ]
    for text in texts:
        shown = Text()
        for token, colour in zip(text.tokens, text.colours, strict=True):
            shown.append(_shown(token), style=_STYLES[colour])
        parts += [Text(), Text(printable(text.source, 200), style="bold"), shown, Text(text.summary, style="italic")]
    return Group(*parts)


def write_colours(texts: Sequence[ColouredText], path: Path, *, scope: str) -> Path:
    """Write texts as a page.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        UsageError: the file cannot be written there.
    """
    template = resources.files("detect").joinpath("colours.html.j2").read_text(encoding="utf-8")
    shown = [
        (text, [(_shown(t).split("\n"), c.name.lower()) for t, c in zip(text.tokens, text.colours, strict=True)])
        for text in texts
    ]
    return write_page(path, lambda: render(template, texts=shown, scope=scope, colours=list(Colour)))


def _shown(token: str) -> str:
    """Return a token's text with what a terminal would act on made visible; line ends stay."""
    return "\n".join(printable(part, 400) for part in token.split("\n"))
