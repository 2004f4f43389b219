"""Files, folders, patterns and standard input, cut into the bytes of records (DESIGN 6).

`find_inputs` says what there is to read, in a stable order and each file once; `opened` gives one of them as
a `Source` of `RawRecord`s, with gzip undone, in constant memory.

Lines are bytes that end in a line feed, and nothing else ends one: U+2028 is a character of a text. What
stands in them is another module's concern; only a blank line is no record, and one that is over its limit is
a record with a problem.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from detect.strict_json import UTF16_MARKS
from watermark.errors import InputError, UsageError, printable

__all__ = ["MAX_LINE", "MAX_TEXT", "Input", "RawRecord", "Source", "find_inputs", "opened", "shown_path"]

#: Bytes of one line. A longer one is malformed, and is passed over without being held.
MAX_LINE = 64 * 2**20

#: Bytes of one text file, or of what a gzip file holds.
MAX_TEXT = 256 * 2**20

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


class _Form(Enum):
    LINES = auto()
    TEXT = auto()
    EITHER = auto()
    """Told by the first character."""


@dataclass(frozen=True, slots=True)
class Input:
    """One file, or standard input, that is to be read."""

    path: Path | None
    """None: standard input."""
    name: str
    """For messages and results, with control characters escaped."""
    given: str
    """The input through which it was reached."""
    form: _Form


class RawRecord(NamedTuple):
    """One record as it stands in its file, or why it cannot be had."""

    name: str
    """"answers.jsonl:12", "-:3" or "novel.txt", with control characters escaped."""
    line: int | None
    """Its number, from 1; None: a text file."""
    content: bytes
    """Empty if there is a problem."""
    problem: str | None = None
    """What was expected and what was found."""


class Source:
    """An open input: its records, once, and then the digest of all of its bytes.

    Raises:
        UsageError: it begins as a file of a format that is not read.
    """

    def __init__(self, file: Input, stream: BinaryIO) -> None:
        self._file = file
        self._tap = tap = _Tap(stream)
        if (suffix := _MAGIC.get(tap.magic)) is not None:
            raise UsageError(_not_read(file.name, suffix))
        self._stream: BinaryIO = io.BufferedReader(tap)
        if tap.magic.startswith(b"\x1f\x8b") or file.name.lower().endswith(".gz"):
            self._stream = gzip.GzipFile(fileobj=self._stream)  # type: ignore[assignment]

    def records(self) -> Iterator[RawRecord]:
        """Yield each record; if a gzip stream is damaged, the last of them says so."""
        last = 0
        try:
            for record in self._cut():
                last = record.line or 0
                yield record
            return
        except EOFError:
            found = "its end: it was cut short"
        except (zlib.error, gzip.BadGzipFile):
            found = "damage"
        problem = f"expected a whole gzip stream, found {found} after line {last}: what follows it is lost"
        yield RawRecord(self._file.name, None, b"", problem)

    def digest(self) -> str:
        """Read to the end and return the SHA-256 of the bytes, compressed if they were, in hexadecimal."""
        return self._tap.digest()

    def _cut(self) -> Iterator[RawRecord]:
        name, form, blank, first = self._file.name, self._file.form, b"", b""
        if form is _Form.EITHER:
            blank, first = _first_line(self._stream)
            form = _Form.LINES if first.removeprefix(_UTF8_MARK).lstrip(_BLANK).startswith(b"{") else _Form.TEXT
        if form is _Form.TEXT:
            content = _whole(self._stream, blank + first)
            if len(content) > MAX_TEXT:
                problem = f"expected a text of at most {MAX_TEXT:,} bytes, found a longer one: split it"
                yield RawRecord(name, None, b"", problem)
            elif not _is_blank(content):
                yield RawRecord(name, None, content)
            return
        for number, line in _lines(self._stream, blank.count(b"\n") + 1, first):
            if len(line) > MAX_LINE:
                problem = f"expected a line of at most {MAX_LINE:,} bytes, found a longer one"
                yield RawRecord(f"{name}:{number}", number, b"", problem)
            elif not _is_blank(line):
                yield RawRecord(f"{name}:{number}", number, line)
            if number == 1 and line.startswith(UTF16_MARKS):
                # Its line feeds are halves of characters: the file is one malformed record.
                return


@contextmanager
def opened(file: Input, stdin: BinaryIO | None) -> Iterator[Source]:
    """Open *file* for the length of a `with`; *stdin* is read for `-`, else the process's own.

    Raises:
        InputError: it cannot be opened, or cannot be read to its end.
        UsageError: it begins as a file of a format that is not read.
    """
    try:
        with _stream(file, stdin) as stream:
            yield Source(file, stream)
    except OSError as error:
        raise InputError(f"cannot read {file.name}: {printable(error.strerror or error)}") from None


def find_inputs(inputs: Iterable[str], note: Callable[[str, int], None]) -> list[Input]:
    """Return every file of *inputs* once, in the order given and sorted within each.

    Args:
        inputs: paths, patterns, or `-`.
        note: called with what was passed over in a folder, and how many.

    Raises:
        InputError: an input does not exist or holds no file.
        UsageError: a file is of a format that is not read.
    """
    files: dict[str, Input] = {}
    for given in inputs:
        if given == "-":
            files.setdefault("-", Input(None, "-", given, _Form.EITHER))
            continue
        # A name that exists is no pattern, whatever is in it.
        paths = [given] if os.path.exists(given) or not has_magic(given) else sorted(glob(given, recursive=True))
        if not paths:
            raise InputError(f"no file matches {shown_path(given)}: check the pattern and the folder it starts from")
        for path in paths:
            for file in _in_folder(path, note) if os.path.isdir(path) else [path]:
                files.setdefault(os.path.realpath(file), Input(Path(file), shown_path(file), given, _form(file)))
    return list(files.values())


def shown_path(path: str) -> str:
    r"""Return *path* for a message or a result: a file's name may hold anything but a NUL.

    >>> print(shown_path("answers\n.jsonl"))
    answers\n.jsonl
    """
    return printable(path, 4096)


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


def _stream(file: Input, stdin: BinaryIO | None) -> AbstractContextManager[BinaryIO]:
    if file.path is not None:
        return file.path.open("rb")
    if stdin is None and sys.stdin is None:
        raise InputError("-: there is no standard input")
    return nullcontext(stdin if stdin is not None else sys.stdin.buffer)


def _not_read(name: str, suffix: str) -> str:
    if suffix == ".json":
        return (
            f"{name}: a .json file is not read by this version: convert it to JSON Lines "
            "(jq -c '.[]' FILE > FILE.jsonl), or name it .jsonl if it has one object a line"
        )
    return f"{name}: {NOT_READ[suffix]} is not read by this version: convert it to JSON Lines (one object a line)"


def _suffix(path: str) -> str:
    return Path(path.lower().removesuffix(".gz")).suffix


def _form(path: str) -> _Form:
    if not os.path.exists(path):
        raise InputError(f"{shown_path(path)}: no such file or folder: check the name, or give - for standard input")
    suffix = _suffix(path)
    if suffix in NOT_READ or suffix == ".json":
        raise UsageError(_not_read(shown_path(path), suffix))
    if suffix in LINES:
        return _Form.LINES
    return _Form.TEXT if os.path.isfile(path) else _Form.EITHER


def _in_folder(folder: str, note: Callable[[str, int], None]) -> list[str]:
    """Return the files of *folder* that are read, sorted by path; a link to a folder is not followed."""

    def stop(error: OSError) -> NoReturn:
        raise InputError(f"cannot read {shown_path(error.filename)}: {printable(error.strerror)}")

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
            f"no records in {shown_path(folder)}: expected files {', '.join(LINES + TEXTS)} (or those with .gz), "
            f"found {passed_over} others"
        )
    if passed_over:
        note(_PASSED_OVER, passed_over)
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
    """Return the blank lines before the first other one, and it; a line over MAX_LINE is not known to be blank."""
    blank = bytearray()
    while 0 < len(line := stream.readline(MAX_LINE + 1)) <= MAX_LINE and _is_blank(line) and len(blank) <= MAX_TEXT:
        blank += line
    return bytes(blank), line


def _is_blank(content: bytes) -> bool:
    return not content.removeprefix(_UTF8_MARK).strip(_BLANK)


def _whole(stream: BinaryIO, content: bytes) -> bytes:
    """Return *content* and what follows it, at most one byte more than MAX_TEXT; the rest is let go."""
    parts, size = [content], len(content)
    while size <= MAX_TEXT and (part := stream.read(min(_CHUNK, MAX_TEXT + 1 - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)
