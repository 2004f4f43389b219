"""Which tokens of a response repeat its prompt, however it is wrapped, quoted or cased.

A copy may be cut into other ids than the prompt: a word at the start of a line is another id than one after a space.
The windows of the prompt's ids do not catch it, and if the prompt holds marked text the pair after it is a marked one.
So tokens are also compared as text: letters and digits alone, case folded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from watermark.tokenizer import Tokenizer

__all__ = ["Echoes"]

#: Letters and digits in a row that make an echo: fewer are said by chance, and a short copy holds few pairs.
_LENGTH = 12

#: What stands between the words of a prompt that is JSON, or HTML, and not in a copy of what it says.
_ESCAPE, _TAG = re.compile(r'\\[nrt"/]'), re.compile(r"<[^>]*>")


class Echoes:
    """Finds echoes in the ids of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._letters: dict[int, str] = {}

    def passages(self, prompts: Iterable[str]) -> set[str]:
        """Return every run of `_LENGTH` letters and digits of the prompts, as written, unescaped and without tags."""
        found: set[str] = set()
        for prompt in prompts:
            for form in {prompt, _ESCAPE.sub(" ", prompt), _TAG.sub(" ", prompt)}:
                letters = _letters_of(form)
                found.update(letters[i : i + _LENGTH] for i in range(len(letters) - _LENGTH + 1))
        return found

    def find(self, ids: npt.NDArray[np.uint32], passages: set[str]) -> npt.NDArray[np.bool_]:
        """Return which tokens lie in an echo of the passages: uint32 (n,) to bool (n,)."""
        echoed = np.zeros(len(ids), dtype=np.bool_)
        if not passages:
            return echoed
        pieces = [self._of_token(i) for i in ids.tolist()]
        letters = "".join(pieces)
        owner: Sequence[int] = np.repeat(np.arange(len(ids)), [len(piece) for piece in pieces]).tolist()
        for i in range(len(letters) - _LENGTH + 1):
            if letters[i : i + _LENGTH] in passages:
                echoed[owner[i] : owner[i + _LENGTH - 1] + 1] = True
        return echoed

    def _of_token(self, token_id: int) -> str:
        letters = self._letters.get(token_id)
        if letters is None:
            text = self._tokenizer.token_bytes(token_id).decode("utf-8", "ignore")
            letters = self._letters[token_id] = _letters_of(text)
        return letters


def _letters_of(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
