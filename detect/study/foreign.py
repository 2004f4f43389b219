"""A student with a vocabulary of its own: what it learns and says passes through text.

A provider sees the text of a student's answers and makes ids of it with the teacher's tokenizer. Where the two
vocabularies cut a word alike the student can have learned the mark on its pairs; where they do not, it has seen other
pairs than those that were marked. Here the student's byte-level BPE is twice as large as the teacher's and is
trained on the base's half of the text alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Final

from detect.study.outputs import Outputs
from watermark.tokenizer import Tokenizer

__all__ = ["foreign_size", "retokenised", "shared_boundaries"]

#: Size of the student's vocabulary, as a share of the teacher's.
_SIZE: Final = 2.0


def foreign_size(vocabulary: int) -> int:
    """Return the size of the student's vocabulary, given that of the teacher's."""
    return round(_SIZE * vocabulary)


def retokenised(outputs: Outputs, *, of: Tokenizer, by: Tokenizer) -> Outputs:
    """Return answers as another tokenizer cuts their text, prompts and answers each by themselves.

    Bytes that are no UTF-8, as where an answer broke off inside a character, become U+FFFD, as in an API's text.

    Args:
        outputs: whose ids are those *of* a tokenizer.
        of: theirs.
        by: the one wanted.
    """
    return Outputs(
        prompts=[by.encode(of.decode(ids)) for ids in outputs.prompts],
        responses=[by.encode(of.decode(ids)) for ids in outputs.responses],
        ended=outputs.ended,
        kinds=outputs.kinds,
    )


def shared_boundaries(texts: Iterable[str], *, first: Tokenizer, second: Tokenizer) -> float:
    """Return the share of all places where *first* or *second* ends a token at which both do."""
    both = either = 0
    for text in texts:
        cuts = [
            set(accumulate(len(tokenizer.token_bytes(int(i))) for i in tokenizer.encode(text)))
            for tokenizer in (first, second)
        ]
        both += len(cuts[0] & cuts[1])
        either += len(cuts[0] | cuts[1])
    return both / either if either else 1.0
