"""Which reference a caller asks for, and how it comes about: a file, a clean model's outputs, or a model that reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detect.corpus import Corpus
from detect.reference import TOP, Reference, reference_from_outputs
from detect.terminal import busy, progress
from watermark.errors import ReferenceMismatchError, UsageError, printable
from watermark.keys import Params
from watermark.tokenizer import Tokenizer

__all__ = ["ReferenceChoice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceChoice:
    """At most one of a file and a model.

    Raises:
        UsageError: both are named, or the computed reference cannot be saved where it should.
    """

    file: str | None = None
    """Probabilities (``.npz``), or records of a clean model's outputs."""
    model: str | None = None
    """A model that reads the corpus: any name that `watermark.models.load_model` takes."""
    save: Path | None = None
    """Where the probabilities that *model* gave are kept."""
    top: int = TOP
    """How many of the model's likeliest tokens are kept at each position."""

    def __post_init__(self) -> None:
        if self.file is not None and self.model is not None:
            raise UsageError(
                "--reference and --reference-model exclude each other: one reference is used, leave one out"
            )
        if self.save is None:
            return
        if self.model is None:
            raise UsageError("--save-reference keeps what --reference-model computes: name a model with it")
        if self.save.suffix != ".npz":
            raise UsageError(f"--save-reference: expected a name that ends in .npz, got {printable(self.save)}")
        if not self.save.absolute().parent.is_dir():
            folder = printable(self.save.absolute().parent)
            raise UsageError(f"--save-reference: no folder {folder} to write in: make it first")

    def make(
        self, corpus: Corpus, tokenizer: Tokenizer, params: Params, *, read: Callable[[str], Corpus]
    ) -> Reference | None:
        """Return the reference for *corpus*, or None where none was asked for.

        Args:
            corpus: the suspect's outputs.
            tokenizer: the scope's.
            params: the scope's.
            read: reads the records of a clean model's outputs.

        Raises:
            ReferenceMismatchError: another tokenizer's model, or outputs that were marked under these parameters.
        """
        if self.model is not None:
            return self._by_reading(self.model, corpus, tokenizer)
        if self.file is None:
            return None
        if self.file.endswith(".npz"):
            return Reference.load(Path(self.file))
        clean = read(self.file)
        if params.fingerprint() in clean.fingerprints:
            raise ReferenceMismatchError(
                f"reference {self.file}: its records say that they were marked under the parameters tested. "
                "A reference must know nothing of the key: take outputs of a model that never saw the mark"
            )
        return reference_from_outputs(
            corpus.responses, clean.responses, window=params.window, tokenizer=tokenizer.digest(), name=self.file
        )

    def _by_reading(self, name: str, corpus: Corpus, tokenizer: Tokenizer) -> Reference:
        from detect.teacher_forcing import read_reference
        from watermark.models import load_model

        with busy(f"loading {name}"):
            # A folder that train.py or a user saved without its tokenizer is read with the scope's.
            bare = Path(name).is_dir() and not (Path(name) / "tokenizer.json").exists()
            model = load_model(name, tokenizer=tokenizer if bare else None)
        if model.tokenizer.digest() != tokenizer.digest():
            raise ReferenceMismatchError(
                f"reference model {printable(name)}: has another tokenizer than the scope's ({tokenizer.name}), so its "
                "probabilities are of other tokens. Take a model of the same tokenizer, or its outputs with --reference"
            )
        with progress("responses read", len(corpus.responses)) as advance:
            made = read_reference(
                model,
                corpus.responses,
                corpus.prompt_texts,
                top=self.top,
                progress=advance,
            )
        if self.save is not None:
            made.save(self.save)
        return made
