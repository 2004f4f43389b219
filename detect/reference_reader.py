"""References of texts that come piece by piece: each text is read by itself, so that pieces leave no trace.

A text's probabilities are a function of the text, its prompt and the reference alone: not of the texts that are read
beside it. So tallies made with one reference add up like others, and what is collected is read once. The n-gram
model's are the same on any machine; those of a transformer are rounded to 2^-16, and the same with the same libraries,
number of threads and kind of processor.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detect.ngram_reference import ORDER, ngram_reference
from detect.reference import TOP, Reference
from watermark.errors import ReferenceMismatchError, printable
from watermark.tokenizer import Tokenizer

if TYPE_CHECKING:
    from detect.corpus import Corpus
    from watermark.models import LanguageModel

__all__ = ["GrowingReference", "ModelReader", "NgramReader", "ReferenceReader", "load_reader"]

Ids = npt.NDArray[np.uint32]


class ReferenceReader(ABC):
    """What would have been said anyway, of any texts. It can be sent to another process."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, with what tells it from others of its kind: tallies of one name add up."""

    @property
    def fingerprints(self) -> frozenset[str]:
        """Scope fingerprints that its source's records name: under those scopes it is no reference."""
        return frozenset()

    @abstractmethod
    def read(self, responses: Sequence[Ids], prompts: Sequence[tuple[str, ...]]) -> Reference:
        """Return the probabilities at each position.

        Args:
            responses: each response's ids.
            prompts: for each the texts before it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramReader(ReferenceReader):
    """An n-gram model of clean text (`detect.ngram_reference`)."""

    clean: tuple[Ids, ...] = field(repr=False)
    tokenizer: Tokenizer
    window: int
    source: str
    """The text's file, for people."""
    marked_under: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The source, the digest of its ids and the order."""
        sha256 = hashlib.sha256()
        for ids in self.clean:
            sha256.update(len(ids).to_bytes(8, "little") + ids.astype("<u4").tobytes())
        return f"n-grams of {Path(self.source).name} ({sha256.hexdigest()[:16]}), order {self._order}"

    @property
    def fingerprints(self) -> frozenset[str]:
        """Those that the records name."""
        return self.marked_under

    @property
    def _order(self) -> int:
        return max(ORDER, self.window + 1)

    def read(self, responses: Sequence[Ids], prompts: Sequence[tuple[str, ...]]) -> Reference:
        """Look each text up; the prompts play no part."""
        counted = ngram_reference(
            responses,
            self.clean,
            tokenizer=self.tokenizer.digest(),
            name=self.source,
            vocabulary_size=self.tokenizer.vocabulary_size,
            order=self._order,
        )
        return counted


class ModelReader(ReferenceReader):
    """A model that reads the texts, one at a time.

    Args:
        model: any name that `watermark.models.load_model` takes; it is loaded where it is first used.
        tokenizer: the corpus's, which must be the model's.
        top: how many of the likeliest tokens are kept at each position.
    """

    def __init__(self, model: str, tokenizer: Tokenizer, *, top: int = TOP) -> None:
        self._model_name = model
        self._tokenizer = tokenizer
        self._top = top

    @cached_property
    def name(self) -> str:
        """The model's, the digest of its weights as they are loaded here, and how many tokens are kept."""
        import torch

        sha256 = hashlib.sha256()
        for name, weights in sorted(self._model.model.state_dict().items()):
            sha256.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
            sha256.update(weights.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return f"{printable(Path(self._model_name).name)} ({sha256.hexdigest()[:16]}), top {self._top}"

    @cached_property
    def _model(self) -> LanguageModel:
        return load_reader(self._model_name, self._tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    def read(self, responses: Sequence[Ids], prompts: Sequence[tuple[str, ...]]) -> Reference:
        """Read each text after its prompt, alone: how a batch is padded would show in the last bits."""
        from detect.teacher_forcing import read_reference

        parts = [
            read_reference(self._model, [response], [prompt], top=self._top)
            for response, prompt in zip(responses, prompts, strict=True)
        ]
        return joined(parts, name=self.name, tokenizer=self._tokenizer.digest(), top=self._top)


class GrowingReference:
    """A reference of outputs that come in: what was read before is not read again.

    Args:
        reader: reads each text by itself.
        tokenizer: of the outputs.
    """

    def __init__(self, reader: ReferenceReader, tokenizer: Tokenizer) -> None:
        self._reader = reader
        self._tokenizer = tokenizer
        self._parts: list[Reference] = []

    def __call__(self, corpus: Corpus) -> Reference:
        """Return the reference of all of *corpus*, at whose head stand the texts of the call before, unchanged."""
        n = len(self._parts)
        if len(corpus.responses) > n:
            self._parts += [
                self._reader.read([response], [prompt])
                for response, prompt in zip(corpus.responses[n:], corpus.prompt_texts[n:], strict=True)
            ]
        parts = self._parts[: len(corpus.responses)]
        top = parts[0].top_ids.shape[1] if parts else TOP
        found = joined(parts, name=self._reader.name, tokenizer=self._tokenizer.digest(), top=top)
        return replace(found, fingerprints=self._reader.fingerprints)


def load_reader(name: str, tokenizer: Tokenizer) -> LanguageModel:
    """Load a model that is to read text of *tokenizer*.

    Raises:
        ReferenceMismatchError: it has another tokenizer.
    """
    from watermark.models import load_model

    # A folder that train.py or a user saved without its tokenizer is read with the scope's.
    bare = Path(name).is_dir() and not (Path(name) / "tokenizer.json").exists()
    model = load_model(name, tokenizer=tokenizer if bare else None)
    if model.tokenizer.digest() != tokenizer.digest():
        raise ReferenceMismatchError(
            f"reference model {printable(name)}: has another tokenizer than the scope's ({tokenizer.name}), so its "
            "probabilities are of other tokens. Take a model of the same tokenizer, or its outputs with --reference"
        )
    return model


def joined(parts: Sequence[Reference], *, name: str, tokenizer: str, top: int) -> Reference:
    """Return one reference of the responses of all parts, of which each has *top* tokens a position."""
    sizes = [np.diff(part.starts) for part in parts]
    return Reference(
        name=name,
        tokenizer=tokenizer,
        ids=np.concatenate([np.zeros(0, dtype=np.uint32), *(part.ids for part in parts)]),
        starts=np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, dtype=np.int64), *sizes]))]).astype(np.int64),
        top_ids=np.concatenate([np.zeros((0, top), dtype=np.uint32), *(part.top_ids for part in parts)]),
        top_p=np.concatenate([np.zeros((0, top), dtype=np.float32), *(part.top_p for part in parts)]),
        said_p=np.concatenate([np.zeros(0, dtype=np.float32), *(part.said_p for part in parts)]),
    )
