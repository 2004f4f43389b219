"""One portion of a corpus, parsed and tokenised: the code that every engine runs, in whatever process (DESIGN 6).

A `Portion` of raw records comes in, with the flags of those that were there before; the texts to score come out, and an
account of every record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from detect.corpus import TOO_SHORT, encode, long_enough
from detect.echo import Echoes
from detect.inputs import Portion
from detect.records import Accounting, Document, Fields, LeftOutError, RecordParser, Text
from detect.reference import Reference
from detect.tally import Positions, PromptPolicy, Tally, Texts, positions_of, tally_of
from watermark.errors import InputError, TaggantError, UsageError
from watermark.tokenizer import Tokenizer

__all__ = ["DUPLICATE", "NEAR_DUPLICATE", "Flags", "Sifted", "Sifter", "flags_of", "in_order"]

Ids = npt.NDArray[np.uint32]

#: For each record of a portion, why it is left out: 0 for no reason, else which of `_REASONS`.
Flags = npt.NDArray[np.uint8]
T = TypeVar("T")

#: Why a record is left out that was there before.
DUPLICATE = "duplicate"

#: Why a record is left out that says nearly what another says.
NEAR_DUPLICATE = "near-duplicate"

_REASONS = ("", DUPLICATE, NEAR_DUPLICATE)

#: The text of a record that has nothing else, once it is encoded.
_ALONE = (Text(response=None, token_ids=None, prompts=None),)

#: Prompts whose ids are held: in a conversation each message is the prompt of all later ones.
_MOST_PROMPTS = 4096


@dataclass(slots=True, kw_only=True)
class Sifted:
    """The texts of a portion that are to be scored; text i belongs to document ``document[i]``."""

    accounting: Accounting
    responses: list[Ids] | Texts = field(default_factory=list)
    prompts: list[tuple[Ids, ...]] = field(default_factory=list)
    prompt_texts: list[tuple[str, ...]] = field(default_factory=list)
    """The texts before each, whatever the policy."""
    echoes: list[npt.NDArray[np.bool_] | None] = field(default_factory=list)
    """None: no prompt is recorded."""
    document: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    record: list[int] = field(default_factory=list)
    """Which record of the portion each document is."""
    without_prompt: int = 0
    from_ids: int = 0
    fingerprints: set[str] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        """Ids in all texts."""
        return len(self.responses.ids) if isinstance(self.responses, Texts) else sum(map(len, self.responses))

    def left_out(self) -> tuple[Sequence[Sequence[Ids]], Sequence[npt.NDArray[np.bool_]]]:
        """Return the prompts and the echoes as `tally_of` wants them."""
        if not any(map(len, self.prompts)):
            return (), ()
        return self.prompts, [
            np.zeros(len(ids), dtype=np.bool_) if echoed is None else echoed
            for ids, echoed in zip(self.responses, self.echoes, strict=True)
        ]


class Sifter:
    """Parse and tokenise portions. It can be sent to another process.

    Args:
        tokenizer: the generating model's.
        window: a document without a text longer than this many ids is excluded.
        special_ids: sorted ids that are never scored and never inside a window.
        policy: which windows are left out for standing in a prompt.
        fields: what the fields of a record are called.
        retokenize: tokenise the text even where there are ids.

    Raises:
        UsageError: the policy needs the prompts of all records at once.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        window: int,
        special_ids: tuple[int, ...],
        policy: PromptPolicy = PromptPolicy.OWN,
        fields: Fields | None = None,
        retokenize: bool = False,
    ) -> None:
        if policy is PromptPolicy.MARKED:
            raise UsageError(
                "prompts that are known to hold marked text are left out of every record, which takes all of them at "
                "once: use taggant detect model for such a corpus, or a part of it"
            )
        self.tokenizer = tokenizer
        self.window = window
        self.special_ids = special_ids
        self.policy = policy
        self.fields = fields or Fields()
        self.retokenize = retokenize
        named = list(asdict(self.fields).values())
        # A name that stands for two fields is the other's (`RecordParser`).
        self._ids_alone = self.fields.token_ids if named.count(self.fields.token_ids) == 1 else None
        self._echoes = Echoes(tokenizer)
        self._cache: dict[str, Ids] = {}

    def sift(self, portion: Portion, seen: Flags) -> Sifted:
        """Return what is to be scored of a portion of whose records *seen* says which are left out."""
        lists = None if self._ids_alone is None else portion.id_lists(self._ids_alone)
        if lists is not None and (not len(lists[0]) or int(lists[0].max()) < self.tokenizer.vocabulary_size):
            return self._sift_lists(portion, *lists, seen, from_ids=True)
        accounting = Accounting(read=len(portion))
        parser = RecordParser(self.fields, note=accounting.note)
        which, texts = parser.texts_alone(portion)
        ids_alone, starts = self.tokenizer.encode_all(texts)
        if len(which) == len(portion):
            return self._sift_lists(portion, ids_alone, starts, seen, from_ids=False)
        alone = dict(zip(which, Texts(ids_alone, starts), strict=True))
        responses: list[Ids] = []
        found = Sifted(accounting=accounting, responses=responses)
        for number, (raw, reason) in enumerate(zip(portion.records(), seen.tolist(), strict=True)):
            try:
                document = None if number in alone else parser.document(raw)
            except LeftOutError as left_out:
                accounting.exclude(str(left_out))
                continue
            except InputError as error:
                accounting.refuse(f"{raw.name}: {error}")
                continue
            if document is None:
                document = Document(source=raw.name, texts=_ALONE, fingerprint=None, account=None, tokenizer=None)
                encoded = long_enough([(alone[number], False)], accounting, window=self.window)
            else:
                encoded = encode(document, self.tokenizer, accounting, window=self.window, retokenize=self.retokenize)
            if encoded is None:
                continue
            if reason:
                accounting.exclude(_REASONS[reason])
                continue
            accounting.score()
            if document.fingerprint is not None:
                found.fingerprints.add(document.fingerprint)
            for text, (ids, logged) in zip(document.texts, encoded, strict=True):
                responses.append(ids)
                found.from_ids += logged
                found.without_prompt += text.prompts is None
                earlier = text.prompts or ()
                found.prompt_texts.append(earlier)
                if self.policy is PromptPolicy.CLEAN:
                    earlier = ()
                found.prompts.append(tuple(self._encoded(piece) for piece in earlier))
                found.echoes.append(self._echoes.find(ids, self._echoes.passages(earlier)) if earlier else None)
                found.document.append(len(found.sources))
            found.sources.append(document.source)
            found.record.append(number)
        return found

    def _sift_lists(
        self, portion: Portion, ids: Ids, starts: npt.NDArray[np.int64], seen: Flags, *, from_ids: bool
    ) -> Sifted:
        """Return the same of records each of which is one text without a prompt, given as ids or encoded."""
        short = np.diff(starts) <= self.window
        scored = np.flatnonzero(~short & (seen == 0)).tolist()
        accounting = Accounting(read=len(portion), scored=len(scored))
        accounting.exclude(TOO_SHORT, int(short.sum()))
        for flag, reason in enumerate(_REASONS[1:], start=1):
            accounting.exclude(reason, int((~short & (seen == flag)).sum()))
        if len(scored) == len(portion):
            # Kernels are compiled for arrays that can be written to, and Arrow's cannot.
            responses: list[Ids] | Texts = Texts(ids if ids.flags.writeable else ids.copy(), starts)
        else:
            responses = [ids[starts[i] : starts[i + 1]] for i in scored]
        names = portion.names()
        return Sifted(
            accounting=accounting,
            responses=responses,
            prompts=[()] * len(scored),
            prompt_texts=[()] * len(scored),
            echoes=[None] * len(scored),
            document=list(range(len(scored))),
            sources=[names[i] for i in scored],
            record=scored,
            without_prompt=len(scored),
            from_ids=len(scored) if from_ids else 0,
        )

    def tally(self, found: Sifted, reference: Reference) -> Tally:
        """Return the tally of the texts with a reference of them."""
        return tally_of(found.responses, reference=reference, **self._options(found))

    def positions(self, found: Sifted) -> Positions:
        """Return which positions of the texts are in."""
        return positions_of(found.responses, **self._options(found))

    def _options(self, found: Sifted) -> dict[str, Any]:
        """Return what `tally_of` and `positions_of` want to know beside the texts."""
        prompts, echoes = found.left_out()
        return {
            "window": self.window,
            "special_ids": self.special_ids,
            "prompts": prompts,
            "echoes": echoes,
            "policy": self.policy,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_echoes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._echoes = Echoes(self.tokenizer)

    def _encoded(self, text: str) -> Ids:
        ids = self._cache.get(text)
        if ids is None:
            if len(self._cache) > _MOST_PROMPTS:
                self._cache.clear()
            ids = self._cache[text] = self.tokenizer.encode(text)
        return ids


def flags_of(twice: npt.NDArray[np.bool_], near: npt.NDArray[np.bool_]) -> Flags:
    """Return the flags of records that were there before or are near-duplicates; of one that is both, the former."""
    return np.where(twice, np.uint8(1), np.where(near, np.uint8(2), np.uint8(0)))


def in_order(tasks: Iterable[tuple[Any, ...]], function: Callable[..., T], *, workers: int) -> Iterator[T]:
    """Call a function on each task and yield the results in the order of the tasks.

    A few tasks a worker are under way at any time, so that memory does not grow with their number. One worker is this
    process itself.

    Args:
        tasks: the arguments of each call.
        function: it and its arguments can be sent to another process.
        workers: processes.

    Raises:
        TaggantError: a worker was ended, by the system for its memory as a rule.
    """
    if workers < 1:
        raise UsageError(f"expected 1 worker or more, got {workers}")
    if workers == 1:
        for task in tasks:
            yield function(*task)
        return
    # Spawned, since a fork of a process with threads (pyarrow's, Numba's) may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_take, initargs=(function,))
    under_way: list[Future[T]] = []
    try:
        for task in tasks:
            under_way.append(pool.submit(_run, *task))
            if len(under_way) > 2 * workers:
                yield under_way.pop(0).result()
        while under_way:
            yield under_way.pop(0).result()
    except BrokenProcessPool:
        raise TaggantError(
            "a worker process ended unexpectedly, as a rule for want of memory: try fewer --workers. What was done up "
            "to the last checkpoint is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[..., Any] = partial(int)


def _take(function: Callable[..., Any]) -> None:
    """Keep what the tasks of this process share: it is sent once, not with each of them."""
    global _function
    _function = function


def _run(*task: Any) -> Any:
    return _function(*task)
