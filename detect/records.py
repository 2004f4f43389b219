"""What models said, read from files without losing a line of it (DESIGN 6).

A `Reader` turns files, folders, patterns and standard input into `Document`s of `Text`s, in constant
memory. Every record ends in exactly one column of its `Accounting`::

    read = scored + excluded + malformed

The reader counts what it read and what was malformed; whoever takes the documents says of each that it was scored, or
why not. Beyond `max_malformed` the reader reads on, so that the count is whole, and then raises: there is no result.

`detect.inputs` cuts files into the bytes of records; `detect.strict_json` parses those of a line.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from detect.conversation import described, pieces, text_of
from detect.inputs import PORTION, Input, Portion, RawRecord, find_inputs, opened, shown_path
from detect.line_blocks import LineBlock
from detect.plain_lines import plain_texts
from detect.strict_json import TOO_DEEP, decode_utf8, parse_object, parse_value
from watermark.errors import InputError, TaggantError, UsageError, printable

__all__ = [
    "COLLECTION",
    "MAX_PROBLEMS",
    "Accounting",
    "Document",
    "Fields",
    "LeftOutError",
    "Reader",
    "RecordParser",
    "Text",
]

_PLACE = re.compile(r"(.*?)(?::([0-9]{1,18}))?: ")

#: How many malformed records are kept with their messages.
MAX_PROBLEMS = 20

#: The schema that the first line of a collection's journal names (`detect.collection.journal`).
COLLECTION = "taggant/collection/1"


#: Fields that mean something under these names alone, beside those of `Fields`.
_TELLING = ("schema", "prompt_index", "error", "fingerprint", "tokenizer")

#: Why an error of an endpoint is left out; the second where the same request was asked again and answered.
_FAILED, _FAILED_FIRST = "an error of the endpoint", "an error of the endpoint, later answered"


class LeftOutError(TaggantError):
    """A record that is well formed and no text's: a journal's header, or an error that it keeps."""

    def __init__(self, reason: str, *, request: tuple[int, int] | None = None) -> None:
        super().__init__(reason)
        self.request = request
        """Of an error, which request it is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One thing that a model said."""

    response: str | None
    """None when only token ids were given."""
    token_ids: npt.NDArray[np.uint32] | None
    """The ids that the server logged, if it did, (n,)."""
    prompts: tuple[str, ...] | None
    """The texts before it, each tokenised alone; None: not recorded."""
    role: str = "response"
    """"response", "assistant", "reasoning", "tool_call" or "text"."""
    logprobs: object = None
    """What an endpoint gave as log-probabilities, as it stands in the record: `detect.top_lists` reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One record: a line, or a text file."""

    source: str
    """"answers.jsonl:12", "-:3" or "novel.txt", with control characters escaped."""
    texts: tuple[Text, ...]
    """Empty for a conversation in which no model answers."""
    fingerprint: str | None
    """The fingerprint of the scope that a server recorded."""
    account: str | None
    """To whom it was served, as a ledger's export says."""
    tokenizer: str | None
    """The digest of the tokenizer that a server recorded."""
    request: tuple[int, int] | None = None
    """In a collection's journal, which request it answers: the prompt's place and the sample's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The names of a record's fields. A name that two kinds share belongs to the first of them, in this order."""

    prompt: str = "prompt"
    """A string, or an array of chat messages."""
    response: str = "response"
    """A string."""
    token_ids: str = "token_ids"  # noqa: S105 - a name
    """An array of token ids."""
    messages: str = "messages"
    """An array of chat messages."""
    text: str = "text"
    """A string that is the whole of what was said."""

    def names(self) -> tuple[str, ...]:
        """Return the names, in this order."""
        return (self.prompt, self.response, self.token_ids, self.messages, self.text)


@dataclass(slots=True)
class Accounting:
    """Where every record went.

    >>> accounting = Accounting(read=2)
    >>> accounting.score()
    >>> accounting.exclude("no answer in it")
    >>> accounting.to_json()["excluded"]
    {'no answer in it': 1}
    """

    read: int = 0
    scored: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    """How many for each reason."""
    malformed: int = 0
    problems: list[str] = field(default_factory=list)
    """What was wrong with the first malformed records, each with its place."""
    notes: dict[str, int] = field(default_factory=dict)
    """What was passed over inside records and folders: no record is among it."""

    def score(self) -> None:
        """Count one record as scored."""
        self.scored += 1
        self._at_most_read()

    def exclude(self, reason: str, count: int = 1) -> None:
        """Count one record, or *count*, as left out for *reason*."""
        if count:
            self.excluded[reason] = self.excluded.get(reason, 0) + count
        self._at_most_read()

    def refuse(self, problem: str) -> None:
        """Count one record as malformed; *problem* says where, what was expected and what was found."""
        self.malformed += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        self._at_most_read()

    def note(self, what: str, count: int = 1) -> None:
        """Count something that is not a record and was passed over."""
        self.notes[what] = self.notes.get(what, 0) + count

    def add(self, other: Accounting) -> None:
        """Add another's counts; the problems kept are the first by name and line, whichever was added first."""
        self.read += other.read
        self.scored += other.scored
        self.malformed += other.malformed
        for reason, count in other.excluded.items():
            self.excluded[reason] = self.excluded.get(reason, 0) + count
        for what, count in other.notes.items():
            self.note(what, count)
        self.problems = sorted({*self.problems, *other.problems}, key=_place)[:MAX_PROBLEMS]

    def exclude_otherwise(self, reason: str, *, instead_of: str, count: int = 1) -> None:
        """Give so many records that were left out another reason."""
        self.excluded[reason] = self.excluded.get(reason, 0) + count
        self.excluded[instead_of] -= count
        if not self.excluded[instead_of]:
            del self.excluded[instead_of]

    def check(self) -> None:
        """Make sure that every record read is in exactly one column.

        Raises:
            TaggantError: it is not: a defect of the code that took the records.
        """
        if self.read != self._settled():
            raise TaggantError(
                f"{self.read} records were read and {self._settled()} are accounted for: this is a defect in Taggant, "
                "please report it"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the table for a result, once it adds up.

        Raises:
            TaggantError: it does not.
        """
        self.check()
        return {
            "read": self.read,
            "scored": self.scored,
            "excluded": dict(sorted(self.excluded.items())),
            "malformed": self.malformed,
            "problems": list(self.problems),
            "notes": dict(sorted(self.notes.items())),
        }

    def _settled(self) -> int:
        return self.scored + sum(self.excluded.values()) + self.malformed

    def _at_most_read(self) -> None:
        if self._settled() > self.read:
            self.check()


class Reader:
    """Read documents from files, folders (recursively), patterns and `-`, once, in a stable order.

    `.jsonl` and `.ndjson` hold one record a line, `.csv`, `.tsv` and `.parquet` one a row; any other file is one text.
    Standard input, and a path that is no regular file, is JSON Lines if its first character is `{`. Gzip and zstd are
    undone on all of them but Parquet, which compresses by itself.
    A record holds a response (or text, or messages) and may hold a prompt, token ids, a fingerprint and a
    tokenizer's digest; a field that is null counts as absent.

    A file that is reached twice is read once. An input without a record is an error.

    Args:
        inputs: paths, patterns, or `-`.
        fields: what the fields of a record are called.
        max_malformed: with up to so many malformed records there is a result.
        stdin: read for `-`; else the process's own.

    Raises:
        InputError: an input does not exist or holds no file. While reading: more is malformed than allowed,
            an input holds no record, or reading fails.
        UsageError: a file is of a format that is not read.
    """

    accounting: Accounting
    digests: dict[str, str]
    """SHA-256 of each input's bytes as they were read, compressed if they were, once it is read to its end."""
    parser: RecordParser
    bytes_done: int
    """Bytes of the inputs read so far."""

    def __init__(
        self,
        inputs: Sequence[str | Path],
        *,
        fields: Fields | None = None,
        max_malformed: int = 0,
        stdin: BinaryIO | None = None,
    ) -> None:
        if not inputs:
            raise UsageError("nothing to read: give a file, a folder, a pattern, or - for standard input")
        if max_malformed < 0:
            raise UsageError(f"expected --max-malformed of 0 or more, got {max_malformed}")
        self.accounting = Accounting()
        self.digests = {}
        self.parser = RecordParser(fields, note=self.accounting.note)
        self._max_malformed = max_malformed
        self._stdin = stdin
        self._files = find_inputs([str(given) for given in inputs], self.accounting.note)
        self._begun = False
        self._found: dict[str, int] = {}
        self.bytes_done = self._bytes_before = 0

    def __iter__(self) -> Iterator[Document]:
        failed: Counter[tuple[str, tuple[int, int]]] = Counter()
        for portion in self.portions(PORTION):
            for raw in portion.records():
                self.accounting.read += 1
                file = raw.name.rpartition(":")[0]
                try:
                    document = self.parser.document(raw)
                except LeftOutError as reason:
                    self.accounting.exclude(str(reason))
                    if reason.request is not None:
                        failed[file, reason.request] += 1
                except InputError as error:
                    self.accounting.refuse(f"{raw.name}: {error}")
                else:
                    if document.request is not None and (errors := failed.pop((file, document.request), 0)):
                        self.accounting.exclude_otherwise(_FAILED_FIRST, instead_of=_FAILED, count=errors)
                    yield document
        self.finish()

    def portions(self, size: int) -> Iterator[Portion]:
        """Yield the raw records in portions of some *size* bytes, for whoever parses them; then call `finish`."""
        if self._begun:
            raise UsageError("a Reader reads once: make a new one")
        self._begun = True
        for file in self._files:
            self._found.setdefault(file.given, 0)
            with opened(file, self._stdin, columns=self.parser.columns) as source:
                for portion in source.portions(size):
                    self._found[file.given] += len(portion)
                    self.bytes_done = self._bytes_before + source.bytes_read
                    yield portion
                self.digests[file.name] = source.digest()
                self._bytes_before += source.bytes_read
            self.bytes_done = self._bytes_before

    @property
    def bytes_total(self) -> int | None:
        """Bytes of all inputs, compressed if they are; None if one is no file."""
        sizes = [file.size() for file in self._files]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def names(self) -> list[str]:
        """The names of all inputs, in the order in which they are read."""
        return [file.name for file in self._files]

    @property
    def files(self) -> list[Input]:
        """The inputs, in the same order."""
        return list(self._files)

    def took(self, number: int, records: int) -> None:
        """Take into account that somebody else read so many records of input *number*."""
        given = self._files[number].given
        self._found[given] = self._found.get(given, 0) + records

    def finish(self) -> None:
        """Hold the finished accounting against what is allowed.

        Raises:
            InputError: more is malformed than allowed, or an input holds no record.
        """
        if self.accounting.malformed > self._max_malformed:
            raise InputError(self._refusal())
        for given, records in self._found.items():
            if records == 0:
                raise InputError(f"no records in {shown_path(given)}: expected text or JSON Lines, found it blank")

    def _refusal(self) -> str:
        malformed, read, first = self.accounting.malformed, self.accounting.read, self.accounting.problems[0]
        return (
            f"{malformed} of {read} records {'is' if malformed == 1 else 'are'} malformed and {self._max_malformed} "
            f"allowed. The first: {first}. Correct the input, or go on without them: --max-malformed {malformed}"
        )


class RecordParser:
    """Make a `Document` of a raw record. It can be sent to another process.

    Args:
        fields: what the fields of a record are called.
        note: called with what was passed over inside a record.
    """

    def __init__(self, fields: Fields | None = None, *, note: Callable[[str], None]) -> None:
        # The first kind keeps a shared name, so that `--response-field text` means it.
        self._kinds: dict[str, str] = {}
        for kind, name in asdict(fields or Fields()).items():
            self._kinds.setdefault(name, kind)
        self._shown = {kind: printable(name, 40) for name, kind in self._kinds.items()}
        self._note = note

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that a record may have, and that mean something."""
        return (*self._kinds, "fingerprint", "tokenizer", "account")

    def texts_alone(self, portion: Portion) -> tuple[list[int], list[str]]:
        """Return which records are a text and nothing else that means anything, as many as are told at a glance.

        Of each, `document` would return that text, said without a prompt.

        Returns:
            Their places in the portion, and their texts.
        """
        block = portion.cut
        if not isinstance(block, LineBlock):
            return [], []
        answers = [name for name, kind in self._kinds.items() if kind in ("response", "text") and name not in _TELLING]
        others = [name for name in (*self._kinds, *_TELLING) if name not in answers]
        texts, places = plain_texts(block.data, block.starts, block.ends, answers=answers, others=others)
        which = np.flatnonzero(places[:, 0] >= 0)
        return which.tolist(), [texts[start:end].decode() for start, end in places[which].tolist()]

    def document(self, raw: RawRecord) -> Document:
        """Return the record.

        Raises:
            LeftOutError: it is none of a text's: its message is the reason.
            InputError: it is malformed.
        """
        if raw.problem is not None:
            raise InputError(raw.problem)
        if raw.row is None and raw.line is None:
            return _of_text(raw.name, decode_utf8(raw.content))
        if raw.row is None:
            record: Mapping[str, object] = parse_object(raw.content)
        else:
            # Of a table in text there are its bytes, too.
            record = self._of_cells(raw.row) if raw.content else raw.row
        if record.get("schema") == COLLECTION:
            raise LeftOutError("header of a collection's journal")
        if record.get("prompt_index") is not None and record.get("error") is not None:
            raise LeftOutError(_FAILED, request=_request(record))
        try:
            return self._of_record(raw.name, record)
        except RecursionError:
            # What could just be parsed may still be too deep to be written again, as a call's arguments are.
            raise InputError(TOO_DEEP) from None

    def _of_cells(self, row: Mapping[str, object]) -> Mapping[str, object]:
        """Return a row of text with ids and messages as the JSON that they are written in."""
        record = dict(row)
        given = {kind: name for name, kind in self._kinds.items() if name in row}
        for kind in ("token_ids", "messages"):
            if kind in given and isinstance(cell := row[given[kind]], str):
                record[given[kind]] = parse_value(cell, f"JSON in {printable(given[kind], 40)}")
        answers = [given[kind] for kind in ("response", "text", "messages", "token_ids") if kind in given]
        if (
            answers
            and all(record[name] is None for name in answers)
            and answers[0] in (given.get("response"), given.get("text"))
        ):
            # Nothing was said, which is no mistake of the file.
            record[answers[0]] = ""
        return record

    def _of_record(self, source: str, record: Mapping[str, object]) -> Document:
        given = {kind: name for name, kind in self._kinds.items() if record.get(name) is not None}
        answers = [kind for kind in ("response", "text", "messages") if kind in given]
        if len(answers) > 1 or not (answers or "token_ids" in given) or {"messages", "token_ids"} <= given.keys():
            raise InputError(self._misfit(record))
        where = self._shown
        prompts: tuple[str, ...] | None = None
        if "prompt" in given:
            prompt = record[given["prompt"]]
            if isinstance(prompt, list):
                prompts = tuple(piece.text for piece in pieces(prompt, where["prompt"]))
            elif isinstance(prompt, str):
                prompts = (text_of(prompt, where["prompt"]),)
            else:
                raise InputError(
                    f"expected a string or an array of chat messages in {where['prompt']}, found {described(prompt)}"
                )
        if "messages" in given:
            texts = self._conversation(record[given["messages"]], where["messages"], prompts or ())
        else:
            response = text_of(record[given[answers[0]]], where[answers[0]]) if answers else None
            ids = _ids(record[given["token_ids"]], where["token_ids"]) if "token_ids" in given else None
            role = "text" if answers == ["text"] else "response"
            given_logprobs = record.get("logprobs")
            texts = (Text(response=response, token_ids=ids, prompts=prompts, role=role, logprobs=given_logprobs),)
        recorded = [
            None if record.get(key) is None else text_of(record[key], key) for key in ("fingerprint", "tokenizer")
        ]
        # A field of this name in anybody's records may be anything.
        named = record.get("account")
        account = named if isinstance(named, str) else None
        return Document(
            source=source,
            texts=texts,
            fingerprint=recorded[0],
            account=account,
            tokenizer=recorded[1],
            request=_request(record),
        )

    def _conversation(self, messages: object, where: str, before: tuple[str, ...]) -> tuple[Text, ...]:
        """Return each text that the model said, with the texts before it as its prompts."""
        notes: list[str] = []
        spoken = list(pieces(messages, where, notes.append))
        earlier = [*before, *(piece.text for piece in spoken)]
        texts = tuple(
            Text(response=piece.text, token_ids=None, prompts=tuple(earlier[:position]), role=piece.role)
            for position, piece in enumerate(spoken, start=len(before))
            if piece.role is not None
        )
        # Only now, so that a malformed record leaves no note.
        for note in notes:
            self._note(note)
        return texts

    def _misfit(self, record: Mapping[str, object]) -> str:
        names = self._shown
        expected = [names[kind] for kind in ("response", "text", "messages", "token_ids") if kind in names]
        first = itertools.islice(record.items(), 8)
        found = [printable(name, 40) + (" (null)" if value is None else "") for name, value in first]
        if len(record) > len(found):
            found.append(f"{len(record) - len(found)} more")
        return (
            f"expected one of the fields {', '.join(expected)} (token ids may stand beside a response or a text), "
            f"found {', '.join(found) or 'none'}: name the field with --response-field, --text-field, "
            "--messages-field or --ids-field"
        )


def _place(problem: str) -> tuple[str, int, str]:
    """Return the name and the line in front of a problem, and it."""
    place = _PLACE.match(problem)
    return (place[1], int(place[2] or 0), problem) if place else ("", 0, problem)


def _request(record: Mapping[str, object]) -> tuple[int, int] | None:
    """Return which request of a collection a record is of; None where it does not say."""
    prompt, sample = record.get("prompt_index"), record.get("sample_index")
    return (prompt, sample) if type(prompt) is int and type(sample) is int else None


def _of_text(name: str, text: str) -> Document:
    if "\0" in text:
        raise InputError(f"expected text, found a NUL at character {text.index(chr(0))}: is it UTF-16, or binary?")
    texts = (Text(response=text, token_ids=None, prompts=None, role="text"),)
    return Document(source=name, texts=texts, fingerprint=None, account=None, tokenizer=None)


def _ids(value: object, where: str) -> npt.NDArray[np.uint32]:
    """Return token ids, uint32, read-only: whole numbers from 0 to 2^32 - 1, of which true is none."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        wrong = np.flatnonzero((value < 0) | (value >= 2**32)) if value.dtype != np.uint32 else ()
        if not len(wrong):
            ids = value.astype(np.uint32, copy=False)
            ids.setflags(write=False)
            return ids
        value = value.tolist()
    if not isinstance(value, list):
        raise InputError(f"expected an array of token ids in {where}, found {described(value)}")
    if not set(map(type, value)) <= {int} or (value and not (0 <= min(value) and max(value) < 2**32)):
        position = next(i for i, item in enumerate(value) if type(item) is not int or not 0 <= item < 2**32)
        raise InputError(
            f"expected whole numbers from 0 to 4294967295 in {where}, found {described(value[position])} at position "
            f"{position}"
        )
    ids = np.array(value, dtype=np.uint32)
    ids.setflags(write=False)
    return ids
