"""From records to token ids: the texts that a test scores, tokenised, with every record accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from detect.echo import Echoes
from detect.records import Accounting, Document, Reader, Text
from watermark.errors import InputError
from watermark.tokenizer import Tokenizer

__all__ = ["TOO_SHORT", "Corpus", "encode", "long_enough", "read_corpus"]

Ids = npt.NDArray[np.uint32]

#: Why a record is left out that no window fits into.
TOO_SHORT = "not longer than the window"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The texts of some inputs as token ids.

    Text i belongs to document ``document[i]``, whose place in the input is ``sources[document[i]]``.
    """

    responses: list[Ids]
    prompts: list[list[Ids]]
    """For each text the texts before it, each tokenised alone."""
    prompt_texts: list[tuple[str, ...]]
    """The same as text."""
    document: npt.NDArray[np.int64]
    sources: list[str]
    accounting: Accounting
    digests: dict[str, str]
    """SHA-256 of each input."""
    without_prompt: int
    """Texts whose prompt is not recorded: echoes of it can't be left out."""
    from_ids: int
    """Texts scored by the ids in the record; the others were tokenised from their text."""
    echoes: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    """For each text, which of its ids repeat a prompt (`detect.echo`)."""
    fingerprints: frozenset[str] = field(default_factory=frozenset)
    """Scope fingerprints that records name."""
    accounts: tuple[str | None, ...] = ()
    """For each document, to whom it was served, where the record says so."""

    @property
    def tokens(self) -> int:
        """Ids in all responses."""
        return sum(len(ids) for ids in self.responses)

    def first(self, texts: int) -> Corpus:
        """Return the corpus of the first so many texts (the accounting stays that of the whole input)."""
        return replace(
            self,
            responses=self.responses[:texts],
            prompts=self.prompts[:texts],
            prompt_texts=self.prompt_texts[:texts],
            document=self.document[:texts],
            echoes=self.echoes[:texts],
        )


def read_corpus(
    reader: Reader,
    tokenizer: Tokenizer,
    *,
    window: int,
    retokenize: bool = False,
    every_prompt: bool = False,
    progress: Callable[[Iterable[Document]], Iterable[Document]] = lambda documents: documents,
) -> Corpus:
    """Read and tokenise everything that *reader* yields.

    A record's token ids are used where it has them and they are of the scope's tokenizer (or say nothing
    of it); otherwise its text is tokenised. A record with an id outside the vocabulary, or with ids of another
    tokenizer and no text beside them, is malformed.

    Args:
        reader: the inputs.
        tokenizer: the generating model's.
        window: a document without a text longer than this many ids is excluded.
        retokenize: tokenise the text even where there are ids.
        every_prompt: look in each text for echoes of every record's prompt, not of its own alone (for
            `PromptPolicy.MARKED`).
        progress: wraps the documents, e.g. in a progress bar.

    Raises:
        InputError: more is malformed than *reader* allows.
    """
    responses: list[Ids] = []
    prompts: list[list[Ids]] = []
    prompt_texts: list[tuple[str, ...]] = []
    owners: list[int] = []
    sources: list[str] = []
    fingerprints: set[str] = set()
    accounts: list[str | None] = []
    without_prompt = from_ids = 0
    cache: dict[str, Ids] = {}
    for document in progress(reader):
        encoded = encode(document, tokenizer, reader.accounting, window=window, retokenize=retokenize)
        if encoded is None:
            continue
        reader.accounting.score()
        if document.fingerprint is not None:
            fingerprints.add(document.fingerprint)
        for text, (ids, logged) in zip(document.texts, encoded, strict=True):
            responses.append(ids)
            from_ids += logged
            without_prompt += text.prompts is None
            earlier = text.prompts or ()
            prompts.append([_cached(piece, tokenizer, cache) for piece in earlier])
            prompt_texts.append(earlier)
            owners.append(len(sources))
        sources.append(document.source)
        accounts.append(document.account)
    echoes = Echoes(tokenizer)
    everywhere = echoes.passages({piece for earlier in prompt_texts for piece in earlier}) if every_prompt else None
    return Corpus(
        echoes=[
            echoes.find(ids, echoes.passages(earlier) if everywhere is None else everywhere)
            for ids, earlier in zip(responses, prompt_texts, strict=True)
        ],
        responses=responses,
        prompts=prompts,
        prompt_texts=prompt_texts,
        document=np.array(owners, dtype=np.int64),
        sources=sources,
        accounting=reader.accounting,
        digests=reader.digests,
        without_prompt=without_prompt,
        from_ids=from_ids,
        fingerprints=frozenset(fingerprints),
        accounts=tuple(accounts),
    )


def encode(
    document: Document, tokenizer: Tokenizer, accounting: Accounting, *, window: int, retokenize: bool
) -> list[tuple[Ids, bool]] | None:
    """Return the ids of each text of a document and whether they are those of the record.

    None if there is nothing to score, which *accounting* then has with the reason; a document to score is not counted.
    """
    try:
        encoded = [_ids(text, document, tokenizer, retokenize=retokenize) for text in document.texts]
    except InputError as error:
        # Counted like what the reader refuses, which raises at the end if there is more of it than allowed.
        accounting.refuse(f"{document.source}: {error}")
        return None
    return long_enough(encoded, accounting, window=window)


def long_enough(
    encoded: list[tuple[Ids, bool]], accounting: Accounting, *, window: int
) -> list[tuple[Ids, bool]] | None:
    """Return the texts of a document; None if there is nothing to score, which *accounting* then has."""
    if not encoded:
        accounting.exclude("no answer in it")
        return None
    if all(len(ids) <= window for ids, _ in encoded):
        accounting.exclude(TOO_SHORT)
        return None
    return encoded


def _ids(text: Text, document: Document, tokenizer: Tokenizer, *, retokenize: bool) -> tuple[Ids, bool]:
    """Return a text's ids and whether they are those of the record."""
    logged = text.token_ids
    same = document.tokenizer in (None, tokenizer.digest())
    if logged is not None and same and not (retokenize and text.response is not None):
        if logged.size and int(logged.max()) >= tokenizer.vocabulary_size:
            raise InputError(
                f"expected token ids under {tokenizer.vocabulary_size}, the vocabulary of {tokenizer.name}, found "
                f"{int(logged.max())}: they are of another tokenizer. Name it with --tokenizer, or have the text "
                "tokenised with --retokenize"
            )
        return logged, True
    if text.response is None:
        raise InputError(
            f"expected token ids of {tokenizer.name}, found those of another tokenizer, and no text to tokenise: "
            "add the text, or name the tokenizer with --tokenizer"
        )
    return tokenizer.encode(text.response), False


def _cached(text: str, tokenizer: Tokenizer, cache: dict[str, Ids]) -> Ids:
    """Return the ids of a prompt: in a conversation each message is the prompt of all later ones."""
    ids = cache.get(text)
    if ids is None:
        if len(cache) > 4096:
            cache.clear()
        ids = cache[text] = tokenizer.encode(text)
    return ids
