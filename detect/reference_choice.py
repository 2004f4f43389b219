"""Which reference is used: of files, clean outputs and models that read, the one that makes the text likeliest.

The choice is made by the likelihood of the suspect's text alone, before any key is looked at: so there is nothing to
correct for. A reference that is fitted to the suspect's text would win every such choice and lose power
(docs/log.md); none is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detect.corpus import Corpus
from detect.ngram_reference import ORDER, ngram_reference
from detect.reference import TOP, Reference
from detect.reference_reader import load_reader
from watermark.errors import ReferenceMismatchError, UsageError, printable
from watermark.tokenizer import Tokenizer

__all__ = ["Candidate", "ChosenReference", "ReferenceChoice"]

#: Shows how far a model has read: what is counted and how much of it there is, to a context that gives a counter.
Reading = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

#: A probability stored as 0 counts as half of the smallest that is stored.
_FLOOR = 0.5 / (1 << 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A reference that could have been used."""

    name: str
    kind: str
    """``file`` (probabilities), ``outputs`` (an n-gram model of them) or ``model`` (it read the text)."""
    negative_log_likelihood: float
    """Mean -ln p of the suspect's ids after the first of each response, in nats."""
    chosen: bool
    digest: str | None
    """SHA-256 of the file; None for a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenReference:
    """The likeliest candidate, and all of them in the order given."""

    reference: Reference
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceChoice:
    """The candidates.

    Raises:
        UsageError: one is named twice, or the reference cannot be saved where it should.
    """

    files: tuple[str, ...] = ()
    """Probabilities (``.npz``), or records of a clean model's outputs."""
    models: tuple[str, ...] = ()
    """Models that read the corpus: any name that `watermark.models.load_model` takes."""
    save: Path | None = None
    """Where the chosen reference's probabilities are kept."""
    top: int = TOP
    """How many of a model's likeliest tokens are kept at each position."""

    def __post_init__(self) -> None:
        named = (*self.files, *self.models)
        if len(set(named)) != len(named):
            raise UsageError("a reference is named twice: name each candidate once")
        if self.save is None:
            return
        if not named:
            raise UsageError("--save-reference keeps the reference that is used: name one with --reference-model")
        if self.save.suffix != ".npz":
            raise UsageError(f"--save-reference: expected a name that ends in .npz, got {printable(self.save)}")
        if not self.save.absolute().parent.is_dir():
            folder = printable(self.save.absolute().parent)
            raise UsageError(f"--save-reference: no folder {folder} to write in: make it first")

    def make(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        window: int,
        fingerprints: frozenset[str],
        read: Callable[[str], Corpus],
        loading: Callable[[str], AbstractContextManager[object]] = nullcontext,
        reading: Reading = lambda what, total: nullcontext(lambda responses: None),
    ) -> ChosenReference | None:
        """Return the likeliest reference for *corpus*, or None where none was asked for.

        Args:
            corpus: the suspect's outputs.
            tokenizer: the scope's.
            window: ids before each token.
            fingerprints: of the keys tested.
            read: reads the records of a clean model's outputs.
            loading: entered, with the model's name, while a model is loaded.
            reading: entered, with what is counted and how much of it there is, while a model reads; what it gives is
                called with the number of responses read since the last call.

        Raises:
            ReferenceMismatchError: another tokenizer's model, probabilities of other text, or outputs that were marked
                under these parameters.
        """
        made: list[tuple[Reference, str, str | None]] = []
        for file in self.files:
            if file.endswith(".npz"):
                reference, kind = self._loaded(file, corpus, tokenizer, fingerprints), "file"
            else:
                reference, kind = self._counted(file, corpus, tokenizer, window, fingerprints, read), "outputs"
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else None
            made.append((reference, kind, digest))
        made += [(self._by_reading(name, corpus, tokenizer, loading, reading), "model", None) for name in self.models]
        if not made:
            return None
        likelihoods = [_negative_log_likelihood(reference) for reference, _, _ in made]
        best = int(np.argmin(likelihoods))
        if self.save is not None:
            made[best][0].save(self.save)
        return ChosenReference(
            reference=made[best][0],
            candidates=tuple(
                Candidate(
                    name=reference.name,
                    kind=kind,
                    negative_log_likelihood=likelihood,
                    chosen=number == best,
                    digest=digest,
                )
                for number, ((reference, kind, digest), likelihood) in enumerate(zip(made, likelihoods, strict=True))
            ),
        )

    @staticmethod
    def _loaded(file: str, corpus: Corpus, tokenizer: Tokenizer, fingerprints: frozenset[str]) -> Reference:
        """Return a file's probabilities, which must be of exactly these responses."""
        loaded = Reference.load(Path(file))
        if loaded.tokenizer != tokenizer.digest():
            raise ReferenceMismatchError(
                f"reference {printable(file)}: made with another tokenizer than the scope's ({tokenizer.name}); "
                "make it again with the scope's"
            )
        loaded.check_vocabulary(tokenizer.vocabulary_size)
        loaded.check_unmarked(fingerprints)
        responses: Sequence[np.ndarray] = corpus.responses
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in responses])]).astype(np.int64)
        loaded.check(np.concatenate(responses) if responses else np.zeros(0, dtype=np.uint32), starts)
        return replace(loaded, name=file)

    @staticmethod
    def _counted(
        file: str,
        corpus: Corpus,
        tokenizer: Tokenizer,
        window: int,
        fingerprints: frozenset[str],
        read: Callable[[str], Corpus],
    ) -> Reference:
        """Return what an n-gram model of a clean model's outputs says."""
        clean = read(file)
        if fingerprints & clean.fingerprints:
            raise ReferenceMismatchError(
                f"reference {printable(file)}: its records say that they were marked under the parameters tested. "
                "A reference must know nothing of the key: take outputs of a model that never saw the mark"
            )
        counted = ngram_reference(
            corpus.responses,
            clean.responses,
            tokenizer=tokenizer.digest(),
            name=file,
            vocabulary_size=tokenizer.vocabulary_size,
            order=max(ORDER, window + 1),
        )
        return replace(counted, fingerprints=clean.fingerprints)

    def _by_reading(
        self,
        name: str,
        corpus: Corpus,
        tokenizer: Tokenizer,
        loading: Callable[[str], AbstractContextManager[object]],
        reading: Reading,
    ) -> Reference:
        from detect.teacher_forcing import read_reference

        with loading(name):
            model = load_reader(name, tokenizer)
        with reading(f"responses read by {name}", len(corpus.responses)) as progress:
            return read_reference(model, corpus.responses, corpus.prompt_texts, top=self.top, progress=progress)


def _negative_log_likelihood(reference: Reference) -> float:
    """Return the mean of -ln p over the ids that follow another: one without a context has no probability."""
    kept = np.ones(len(reference.ids), dtype=np.bool_)
    kept[reference.starts[:-1][np.diff(reference.starts) > 0]] = False
    said = reference.said_p[kept].astype(np.float64)
    return float(-np.log(np.maximum(said, _FLOOR)).mean()) if said.size else 0.0
