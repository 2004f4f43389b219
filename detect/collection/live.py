"""The e-process beside a collection: looks are taken as soon as the text for them is there.

Answers count in the journal's order, which is that of their arrival; under the null it is as independent of the key as
they are. So ``taggant detect model JOURNAL --looks N --planned-tokens M`` says the same afterwards. Null and proof:
`detect.e_process`.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable

from detect.collection.collect import Stopped
from detect.collection.journal import Journal
from detect.corpus import Corpus, read_corpus
from detect.e_process import SequentialTest
from detect.mark import Mark
from detect.records import Reader
from detect.reference import Reference
from detect.weighted_test import EffectSize
from watermark.tokenizer import Tokenizer

__all__ = ["FUTILE_SHARE", "LiveEvidence"]

#: A collection is given up where so much of the evidence is open and e is below 1.
FUTILE_SHARE = 0.2


class LiveEvidence:
    """The looks at a journal.

    Args:
        test: the sequential test, before its first look.
        journal: what is collected.
        tokenizer: the key's.
        mark: the key.
        reference_of: makes the reference of a corpus; None for none.
    """

    def __init__(
        self,
        test: SequentialTest,
        journal: Journal,
        tokenizer: Tokenizer,
        mark: Mark,
        *,
        reference_of: Callable[[Corpus], Reference] | None = None,
    ) -> None:
        self.test = test
        self._journal = journal
        self._tokenizer = tokenizer
        self._mark = mark
        self._reference_of = reference_of
        self._counted = 0
        self.effect: EffectSize | None = None
        """In the lanes open so far; None without a reference."""
        self.tokens = 0
        """In the answers, each tokenised from its text."""

    def __call__(self) -> Stopped | None:
        """Take the looks that are due, and say whether to stop."""
        for record in itertools.islice(self._journal.answers.values(), self._counted, None):
            self.tokens += len(self._tokenizer.encode(record["response"]))
            self._counted += 1
        if self.test.due(min(self.tokens, self.test.planned)):
            self._advance()
        if self.test.decided:
            return Stopped.EVIDENCE
        if self.test.share_open >= FUTILE_SHARE and self.test.looks[-1].log10_e < 0:
            return Stopped.FUTILE
        return None

    def _advance(self) -> None:
        corpus = self._corpus()
        self.test.advance(corpus, None if self._reference_of is None else self._reference_of(corpus))
        self.effect = self.test.effect()

    def _corpus(self) -> Corpus:
        # Log-probabilities are a hundred times the text, and no look is at them.
        lines = [json.dumps({**record, "logprobs": None}) for record in self._journal.answers.values()]
        reader = Reader(["-"], stdin=io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
        return read_corpus(reader, self._tokenizer, window=self._mark.window)
