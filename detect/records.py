"""What models said, read from files without losing a line of it (DESIGN 6).

A `Reader` turns files, folders, patterns and standard input into `Document`s of `Text`s, in constant
memory. Every record ends in exactly one column of its `Accounting`::

    read = scored + excluded + malformed

The reader counts what it read and what was malformed; whoever takes the documents says of each that it
was scored, or why not. Beyond `max_malformed` the reader reads on, so that the count is whole, and then
raises: there is no result.

Lines are bytes that end in a line feed, and nothing else ends one: U+2028 is a character of a text. They
are strict UTF-8 and strict JSON (RFC 8259): no doubled name, no NaN, no number too large for a double.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum, auto
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from detect.conversation import described, pieces, text_of
from watermark.errors import InputError, TaggantError, UsageError, printable

__all__ = ["MAX_LINE", "MAX_TEXT", "Accounting", "Document", "Reader", "Text"]

#: Bytes of one line. A longer one is malformed, and is passed over without being held.
MAX_LINE = 64 * 2**20

#: Bytes of one text file, or of what a gzip file holds.
MAX_TEXT = 256 * 2**20

#: How many malformed records are kept with their messages.
MAX_PROBLEMS = 20

LINES = (".jsonl", ".ndjson")
TEXTS = (".txt", ".md", ".py")
NOT_READ = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".zip": "zip",
}
_MAGIC = {b"PAR1": ".parquet", b"\x28\xb5\x2f\xfd": ".zst"}

_PASSED_OVER = "files passed over in folders: hidden, or of a suffix that is not read"
_BLANK = b" \t\r\n"
_CHUNK = 2**20
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

_Parser = Callable[[str, bytes], "Document"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One record: a line, or a text file."""

    source: str
    """"answers.jsonl:12", "-:3" or "novel.txt", with control characters escaped."""
    texts: tuple[Text, ...]
    """Empty for a conversation in which no model answers."""
    fingerprint: str | None
    """The fingerprint of the scope that a server recorded."""
    tokenizer: str | None
    """The digest of the tokenizer that a server recorded."""


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

    def exclude(self, reason: str) -> None:
        """Count one record as left out for *reason*."""
        self.excluded[reason] = self.excluded.get(reason, 0) + 1
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

    `.jsonl` and `.ndjson` hold one record a line; any other file is one text. Standard input, and a path
    that is no regular file, is JSON Lines if its first character is `{`. Gzip is undone on all of them.
    A record holds a response (or text, or messages) and may hold a prompt, token ids, a fingerprint and a
    tokenizer's digest; a field that is null counts as absent.

    A file that is reached twice is read once. An input without a record is an error.

    Args:
        inputs: paths, patterns, or `-`.
        prompt_field: a string, or an array of chat messages.
        response_field: a string.
        ids_field: an array of token ids.
        text_field: a string that is the whole of what was said.
        messages_field: an array of chat messages.
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

    def __init__(
        self,
        inputs: Sequence[str | Path],
        *,
        prompt_field: str = "prompt",
        response_field: str = "response",
        ids_field: str = "token_ids",
        text_field: str = "text",
        messages_field: str = "messages",
        max_malformed: int = 0,
        stdin: BinaryIO | None = None,
    ) -> None:
        if not inputs:
            raise UsageError("nothing to read: give a file, a folder, a pattern, or - for standard input")
        if max_malformed < 0:
            raise UsageError(f"expected --max-malformed of 0 or more, got {max_malformed}")
        self.accounting = Accounting()
        self.digests = {}
        # A name that two options share belongs to the first, so that `--response-field text` means it.
        fields: dict[str, str] = {}
        for kind, name in (
            ("prompt", prompt_field),
            ("response", response_field),
            ("token_ids", ids_field),
            ("messages", messages_field),
            ("text", text_field),
        ):
            fields.setdefault(name, kind)
        self._fields = fields
        self._max_malformed = max_malformed
        self._stdin = stdin
        self._files = _files([str(given) for given in inputs], self.accounting)
        self._begun = False

    def __iter__(self) -> Iterator[Document]:
        if self._begun:
            raise UsageError("a Reader reads once: make a new one")
        self._begun = True
        found: dict[str, int] = {}
        for file in self._files:
            before = self.accounting.read
            yield from self._documents(file)
            found[file.given] = found.get(file.given, 0) + self.accounting.read - before
        if self.accounting.malformed > self._max_malformed:
            raise InputError(self._refusal())
        for given, records in found.items():
            if records == 0:
                raise InputError(f"no records in {_name(given)}: expected text or JSON Lines, found it blank")

    def _refusal(self) -> str:
        malformed, read, first = self.accounting.malformed, self.accounting.read, self.accounting.problems[0]
        return (
            f"{malformed} of {read} records {'is' if malformed == 1 else 'are'} malformed and {self._max_malformed} "
            f"allowed. The first: {first}. Correct the input, or go on without them: --max-malformed {malformed}"
        )

    def _documents(self, file: _File) -> Iterator[Document]:
        try:
            with self._open(file) as source:
                tap = _Tap(source)
                if (suffix := _MAGIC.get(tap.magic)) is not None:
                    raise UsageError(_not_read(file.name, suffix))
                stream: BinaryIO = io.BufferedReader(tap)
                if tap.magic.startswith(b"\x1f\x8b") or file.name.lower().endswith(".gz"):
                    stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]
                last = 0
                try:
                    for source_name, number, content, parse in self._records(file, stream):
                        last = number
                        self.accounting.read += 1
                        try:
                            document = parse(source_name, content)
                        except InputError as error:
                            self.accounting.refuse(f"{source_name}: {error}")
                        else:
                            yield document
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    self.accounting.read += 1
                    found = "its end: it was cut short" if isinstance(error, EOFError) else "damage"
                    self.accounting.refuse(
                        f"{file.name}: expected a whole gzip stream, found {found} after line {last}: what follows it "
                        "is lost"
                    )
                self.digests[file.name] = tap.digest()
        except OSError as error:
            raise InputError(f"cannot read {file.name}: {printable(error.strerror or error)}") from None

    def _open(self, file: _File) -> Any:
        if file.path is not None:
            return file.path.open("rb")
        if self._stdin is None and sys.stdin is None:
            raise InputError("-: there is no standard input")
        return nullcontext(self._stdin if self._stdin is not None else sys.stdin.buffer)

    def _records(self, file: _File, stream: BinaryIO) -> Iterator[tuple[str, int, bytes, _Parser]]:
        """Yield each record's name, its line, its bytes, and what makes a document of them or raises InputError."""
        form, blank, first = file.form, b"", b""
        if form is _Form.EITHER:
            blank, first = _first_line(stream)
            form = _Form.LINES if first.removeprefix(_UTF8_MARK).lstrip(_BLANK).startswith(b"{") else _Form.TEXT
        if form is _Form.TEXT:
            content = _whole(stream, blank + first)
            if not _is_blank(content, MAX_TEXT):
                yield file.name, 1, content, _text_document
            return
        for number, line in _lines(stream, blank.count(b"\n") + 1, first):
            if not _is_blank(line, MAX_LINE):
                yield f"{file.name}:{number}", number, line, self._line_document
            if number == 1 and line.startswith(_UTF16_MARKS):
                # Its line feeds are halves of characters: the file is one malformed record.
                return

    def _line_document(self, source: str, line: bytes) -> Document:
        if len(line) > MAX_LINE:
            raise InputError(f"expected a line of at most {MAX_LINE:,} bytes, found a longer one")
        try:
            record = _object(_decoded(line))
            return self._of_record(source, record)
        except RecursionError:
            raise InputError("expected a record, found arrays or objects nested too deep") from None

    def _of_record(self, source: str, record: dict[str, object]) -> Document:
        given = {kind: name for name, kind in self._fields.items() if record.get(name) is not None}
        answers = [kind for kind in ("response", "text", "messages") if kind in given]
        if len(answers) > 1 or not (answers or "token_ids" in given) or {"messages", "token_ids"} <= given.keys():
            raise InputError(self._misfit(record))
        where = {kind: printable(name, 40) for kind, name in given.items()}
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
            texts = (Text(response=response, token_ids=ids, prompts=prompts, role=role),)
        recorded = [
            None if record.get(name) is None else text_of(record[name], name) for name in ("fingerprint", "tokenizer")
        ]
        return Document(source=source, texts=texts, fingerprint=recorded[0], tokenizer=recorded[1])

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
            self.accounting.note(note)
        return texts

    def _misfit(self, record: dict[str, object]) -> str:
        names = {kind: printable(name, 40) for name, kind in self._fields.items()}
        expected = [names[kind] for kind in ("response", "text", "messages", "token_ids") if kind in names]
        found = [
            printable(name, 40) + (" (null)" if value is None else "")
            for name, value in itertools.islice(record.items(), 8)
        ]
        if len(record) > len(found):
            found.append(f"{len(record) - len(found)} more")
        return (
            f"expected one of the fields {', '.join(expected)} (token ids may stand beside a response or a text), "
            f"found {', '.join(found) or 'none'}: name the field with --response-field, --text-field, "
            "--messages-field or --ids-field"
        )


class _Form(Enum):
    LINES = auto()
    TEXT = auto()
    EITHER = auto()
    """Told by the first character."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path | None
    """None: standard input."""
    name: str
    given: str
    """The input through which it was reached."""
    form: _Form


class _Tap(io.RawIOBase):
    """Digest what flows through, and know its first four bytes before it does."""

    def __init__(self, source: BinaryIO) -> None:
        super().__init__()
        self._source = source
        self._sha256 = hashlib.sha256()
        self.magic = b""
        # A pipe may give fewer bytes than were asked for.
        while len(self.magic) < 4 and (more := source.read(4 - len(self.magic))):
            self.magic += more
        self._sha256.update(self.magic)
        self._ahead = self.magic

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._ahead:
            data, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        else:
            data = self._source.read(len(buffer))
            self._sha256.update(data)
        buffer[: len(data)] = data
        return len(data)

    def digest(self) -> str:
        """Read to the end, which a damaged gzip stream or UTF-16 is not, and return the SHA-256 in hexadecimal."""
        while self.read(_CHUNK):
            pass
        return self._sha256.hexdigest()


def _name(path: str) -> str:
    """Return *path* for a message or a result: a file's name may hold anything but a NUL."""
    return printable(path, 4096)


def _not_read(name: str, suffix: str) -> str:
    if suffix == ".json":
        return (
            f"{name}: a .json file is not read by this version: convert it to JSON Lines "
            "(jq -c '.[]' FILE > FILE.jsonl), or name it .jsonl if it has one object a line"
        )
    return f"{name}: {NOT_READ[suffix]} is not read by this version: convert it to JSON Lines (one object a line)"


def _files(inputs: Iterable[str], accounting: Accounting) -> list[_File]:
    """Return every file of *inputs* once, in the order given and sorted within each."""
    files: dict[str, _File] = {}
    for given in inputs:
        if given == "-":
            files.setdefault("-", _File(None, "-", given, _Form.EITHER))
            continue
        # A name that exists is no pattern, whatever is in it.
        paths = [given] if os.path.exists(given) or not has_magic(given) else sorted(glob(given, recursive=True))
        if not paths:
            raise InputError(f"no file matches {_name(given)}: check the pattern and the folder it starts from")
        for path in paths:
            for file in _in_folder(path, accounting) if os.path.isdir(path) else [path]:
                files.setdefault(os.path.realpath(file), _File(Path(file), _name(file), given, _form(file)))
    return list(files.values())


def _suffix(path: str) -> str:
    return Path(path.lower().removesuffix(".gz")).suffix


def _form(path: str) -> _Form:
    if not os.path.exists(path):
        raise InputError(f"{_name(path)}: no such file or folder: check the name, or give - for standard input")
    suffix = _suffix(path)
    if suffix in NOT_READ or suffix == ".json":
        raise UsageError(_not_read(_name(path), suffix))
    if suffix in LINES:
        return _Form.LINES
    return _Form.TEXT if os.path.isfile(path) else _Form.EITHER


def _in_folder(folder: str, accounting: Accounting) -> list[str]:
    """Return the files of *folder* that are read, sorted by path; a link to a folder is not followed."""

    def stop(error: OSError) -> NoReturn:
        raise InputError(f"cannot read {_name(error.filename)}: {printable(error.strerror)}")

    found, passed_over = [], 0
    for root, folders, names in os.walk(folder, onerror=stop):
        passed_over += sum(name.startswith(".") for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(root, name)
            if not name.startswith(".") and _suffix(name) in LINES + TEXTS and os.path.isfile(path):
                found.append(path)
            else:
                passed_over += 1
    if not found:
        raise InputError(
            f"no records in {_name(folder)}: expected files {', '.join(LINES + TEXTS)} (or those with .gz), found "
            f"{passed_over} others"
        )
    if passed_over:
        accounting.note(_PASSED_OVER, passed_over)
    return sorted(found)


def _lines(stream: BinaryIO, number: int, line: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each line's number and bytes, beginning with *line* if it is not empty.

    Of a line over MAX_LINE comes only the beginning, which is one byte too long; the rest is read and let go.
    """
    line = line or stream.readline(MAX_LINE + 1)
    while line:
        yield number, line
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK)
        number += 1
        line = stream.readline(MAX_LINE + 1)


def _first_line(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Return the blank lines before the first other one, and it."""
    blank = bytearray()
    while (line := stream.readline(MAX_LINE + 1)) and _is_blank(line, MAX_LINE) and len(blank) <= MAX_TEXT:
        blank += line
    return bytes(blank), line


def _is_blank(content: bytes, limit: int) -> bool:
    """Tell whether there is nothing in *content*; what is over *limit* is not whole, so it is not known to be blank."""
    return len(content) <= limit and not content.removeprefix(_UTF8_MARK).strip(_BLANK)


def _whole(stream: BinaryIO, content: bytes) -> bytes:
    """Return *content* and what follows it, at most one byte more than MAX_TEXT; the rest is let go."""
    parts, size = [content], len(content)
    while size <= MAX_TEXT and (part := stream.read(min(_CHUNK, MAX_TEXT + 1 - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _decoded(data: bytes) -> str:
    if data.startswith(_UTF16_MARKS):
        raise InputError(
            "expected UTF-8, found the byte order mark of UTF-16: convert the file with iconv -f UTF-16 -t UTF-8"
        )
    try:
        # The mark is an editor's, not the author's; concatenated files have it on later lines too.
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8, found the byte 0x{data[error.start]:02x} at byte {error.start}") from None


def _text_document(name: str, content: bytes) -> Document:
    if len(content) > MAX_TEXT:
        raise InputError(f"expected a text of at most {MAX_TEXT:,} bytes, found a longer one: split it")
    text = _decoded(content)
    if "\0" in text:
        raise InputError(f"expected text, found a NUL at character {text.index(chr(0))}: is it UTF-16, or binary?")
    texts = (Text(response=text, token_ids=None, prompts=None, role="text"),)
    return Document(source=name, texts=texts, fingerprint=None, tokenizer=None)


def _object(line: str) -> dict[str, object]:
    """Parse one JSON object, strictly."""
    try:
        value = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"expected a JSON object, found none: {error.msg.removesuffix(' at')} at character {error.pos}"
        ) from None
    except ValueError:
        # Python refuses an integer of more than sys.get_int_max_str_digits() digits, since its cost is quadratic.
        raise InputError("expected a JSON object, found in it an integer of thousands of digits") from None
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, found {described(value)}")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"expected each field once, found {printable(twice, 40)} twice")
    return record


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise InputError(f"expected a JSON object, found in it a number out of range: {printable(digits, 40)}")
    return value


def _constant(name: str) -> NoReturn:
    raise InputError(f"expected a JSON object, found in it {name}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)


def _ids(value: object, where: str) -> npt.NDArray[np.uint32]:
    """Return token ids, uint32, read-only: whole numbers from 0 to 2^32 - 1, of which true is none."""
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
