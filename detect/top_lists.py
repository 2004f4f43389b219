"""Lists of likeliest tokens that an endpoint gives with its answers, read from records and held against their text.

Records are taken as they come from an endpoint that is not trusted. One whose tokens are not, byte by byte, the
response and ids of the tokenizer is left out of the test (`detect.top_logprobs`), with the reason counted; nothing in
it is an error. Both forms are read: the chat endpoint's, and the older one's of completions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detect.corpus import Corpus
from detect.records import Accounting, Document, Text
from watermark.errors import UsageError
from watermark.tokenizer import Tokenizer

__all__ = ["LogprobReader", "TopLists"]

Ids = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

#: A log-probability, or the sum of a list's probabilities, may pass its bound by so much for rounding.
_SLACK: Final = 1e-3

#: Less is no mass: half of the unit in which masses are added.
_LEAST: Final = 2.0**-33

#: How OpenAI's older endpoint writes a token that is no UTF-8.
_BYTES: Final = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")


class _LeftOutError(Exception):
    """A record without lists that can be used; its message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLists:
    """The lists of a corpus' positions, one after the other: each token once a position."""

    starts: Counts
    """Where each position's list starts, and the end, (N + 1,)."""
    ids: Ids
    """(E,)."""
    p: npt.NDArray[np.float32]
    """The suspect's probability of each, (E,)."""
    accounting: Accounting
    """Where every record went, as far as this test goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lists:
    """Of one record."""

    said: Ids
    sizes: Counts
    ids: Ids
    p: npt.NDArray[np.float32]


class LogprobReader:
    """Read the lists of records as they pass, and give those records the ids that the endpoint says it drew.

    Args:
        tokenizer: the key's.

    Attributes:
        accounting: where every record went; complete once `lists` was called.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.accounting = Accounting()
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.special_ids)
        self._found: dict[str, _Lists] = {}
        self._number: dict[bytes, int] = {}
        # Of several ids with the same bytes the lowest that is not special.
        for i in sorted(range(tokenizer.vocabulary_size), key=lambda i: (i in self._special, i)):
            self._number.setdefault(tokenizer.token_bytes(i), i)
        self._number.pop(b"", None)

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents, those with usable lists by the endpoint's ids."""
        for document in documents:
            self.accounting.read += 1
            try:
                found = self._of_document(document)
            except _LeftOutError as reason:
                self.accounting.exclude(str(reason))
                yield document
                continue
            self._found[document.source] = found
            text = replace(document.texts[0], token_ids=found.said)
            yield replace(document, texts=(text,), tokenizer=self._tokenizer.digest())

    def lists(self, corpus: Corpus) -> TopLists:
        """Return the lists of *corpus*, which was read from the documents yielded.

        Raises:
            UsageError: no record has any.
        """
        sizes: list[Counts] = []
        parts: list[_Lists] = []
        for number, ids in zip(corpus.document.tolist(), corpus.responses, strict=True):
            found = self._found.pop(corpus.sources[number], None)
            if found is None or not np.array_equal(found.said, ids):
                sizes.append(np.zeros(len(ids), dtype=np.int64))
                if found is not None:
                    self.accounting.exclude("log-probabilities of other ids than are scored")
                continue
            self.accounting.score()
            sizes.append(found.sizes)
            parts.append(found)
        for _ in range(len(self._found)):
            self.accounting.exclude("log-probabilities of a record that is not scored")
        self._found.clear()
        if not self.accounting.scored:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in self.accounting.excluded.items())
            raise UsageError(
                f"--logprobs: none of {self.accounting.read:,} records has log-probabilities that can be used "
                f"({reasons}). Collect them with taggant collect --logprobs 20"
            )
        joined = np.concatenate(sizes)
        return TopLists(
            starts=np.concatenate([[0], np.cumsum(joined)]).astype(np.int64),
            ids=np.concatenate([part.ids for part in parts]),
            p=np.concatenate([part.p for part in parts]),
            accounting=self.accounting,
        )

    def _of_document(self, document: Document) -> _Lists:
        """Return a document's lists.

        Raises:
            _LeftOutError: it has none that can be used.
        """
        text = document.texts[0] if len(document.texts) == 1 else None
        if text is None or text.response is None or text.logprobs is None:
            raise _LeftOutError("no log-probabilities")
        tokens, tops = _unified(text.logprobs)
        said = self._said(tokens, text)
        tops = tops[: len(said)]
        if text.token_ids is not None and not np.array_equal(text.token_ids, said):
            raise _LeftOutError("log-probabilities of other ids than the record's")
        ids: list[int] = []
        p: list[float] = []
        sizes = np.zeros(len(said), dtype=np.int64)
        unknown = empty = 0
        for at, top in enumerate(tops):
            listed: dict[int, float] = {}
            for name, logprob in top:
                token = self._number.get(name)
                if not isinstance(logprob, float | int) or isinstance(logprob, bool) or not logprob <= _SLACK:
                    raise _LeftOutError("a log-probability that is none")
                if token is None:
                    unknown += 1
                elif (mass := math.exp(min(0.0, max(-1e3, logprob)))) >= _LEAST:
                    # A token that is listed twice counts once.
                    listed.setdefault(token, mass)
            if math.fsum(listed.values()) > 1 + _SLACK:
                raise _LeftOutError("probabilities of one position that sum to more than 1")
            empty += not listed
            sizes[at] = len(listed)
            ids.extend(listed)
            p.extend(listed.values())
        if not ids:
            raise _LeftOutError("no log-probabilities")
        for count, what in (
            (unknown, "listed tokens of no id"),
            (empty, "tokens without a list"),
        ):
            if count:
                self.accounting.note(what, count)
        return _Lists(said=said, sizes=sizes, ids=np.array(ids, dtype=np.uint32), p=np.array(p, dtype=np.float32))

    def _said(self, tokens: list[bytes], text: Text) -> Ids:
        """Return the ids of the tokens said, whose bytes must be the response.

        Raises:
            _LeftOutError: they are not.
        """
        response = (text.response or "").encode("utf-8", "surrogatepass")
        joined = b"".join(tokens)
        # An end of turn is often listed as a token, by its name or empty, and is not in the response.
        while tokens and (not tokens[-1] or (joined != response and self._number.get(tokens[-1]) in self._special)):
            joined = joined[: len(joined) - len(tokens.pop())]
        if joined != response and not (self._tokenizer.leading_space and joined == b" " + response):
            raise _LeftOutError("tokens that are not the response")
        found = [self._number.get(token) for token in tokens]
        if None in found:
            raise _LeftOutError("tokens that are none of the tokenizer's")
        return np.array(found, dtype=np.uint32)


def _unified(value: object) -> tuple[list[bytes], list[list[tuple[bytes, Any]]]]:
    """Return the tokens said and each position's list, of either form that endpoints use.

    Raises:
        _LeftOutError: of neither form.
    """
    wrong = _LeftOutError("log-probabilities of an unknown form")
    if not isinstance(value, list) or not value:
        raise wrong if value != [] else _LeftOutError("no log-probabilities")
    if len(value) == 1 and isinstance(value[0], dict) and "tokens" in value[0]:
        tokens, tops = value[0]["tokens"], value[0].get("top_logprobs")
        if tops is None:
            raise _LeftOutError("no log-probabilities")
        if not isinstance(tokens, list) or not isinstance(tops, list) or len(tokens) != len(tops):
            raise wrong
        named = [_name(token, None) for token in tokens]
        listed = [
            [(_name(token, None), logprob) for token, logprob in top.items()] if isinstance(top, dict) else []
            for top in tops
        ]
        return named, listed
    named, listed = [], []
    for entry in value:
        if not isinstance(entry, dict):
            raise wrong
        named.append(_name(entry.get("token"), entry.get("bytes")))
        top = entry.get("top_logprobs")
        top = top if isinstance(top, list) else []
        if not all(isinstance(each, dict) for each in top):
            raise wrong
        listed.append([(_name(each.get("token"), each.get("bytes")), each.get("logprob")) for each in top])
    return named, listed


def _name(token: object, raw: object) -> bytes:
    """Return a token's bytes.

    Raises:
        _LeftOutError: it has none.
    """
    if raw is not None:
        if isinstance(raw, list) and all(type(byte) is int and 0 <= byte < 256 for byte in raw):
            return bytes(raw)
        raise _LeftOutError("log-probabilities of an unknown form")
    if not isinstance(token, str):
        raise _LeftOutError("log-probabilities of an unknown form")
    escaped = _BYTES.fullmatch(token)
    return bytes.fromhex(escaped[1].replace("\\x", "")) if escaped else token.encode("utf-8", "surrogatepass")
