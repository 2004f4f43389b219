"""Files, folders, patterns, objects and standard input, cut into the bytes or the rows of records (DESIGN 6).

Every input comes as raw records, each with its place; gzip and zstd are undone on the way, in constant memory.

Lines are bytes that end in a line feed, and nothing else ends one: U+2028 is a character of a text. What
stands in them is another module's concern; only a blank line is no record, and one that is over its limit is
a record with a problem. A record of a CSV file is a line, or several where a quoted cell holds line feeds.

What unpacks to more than `MAX_RATIO` times its size is a bomb: reading ends there, with a problem.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from glob import glob, has_magic
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from detect.arrow_rows import ArrowRows, arrow_rows
from detect.delimited import header_of
from detect.line_blocks import BLANK, OVERHEAD, UTF8_MARK, LineBlock, cut_lines, in_blocks, is_blank
from detect.object_store import find_objects, is_object, open_object
from detect.strict_json import UTF16_MARKS
from watermark.errors import InputError, MissingExtraError, UsageError, printable

__all__ = [
    "MAX_LINE",
    "MAX_RATIO",
    "MAX_TEXT",
    "PORTION",
    "Input",
    "Portion",
    "RawRecord",
    "Source",
    "find_inputs",
    "in_portions",
    "line_blocks",
    "opened",
    "shown_path",
    "stream_of",
]

#: Bytes of one line. A longer one is malformed, and is passed over without being held.
MAX_LINE = 64 * 2**20

#: Bytes of records that are handed on together.
PORTION = 2**20

#: Bytes of one text file, or of what a gzip file holds.
MAX_TEXT = 256 * 2**20

#: What a gzip or zstd stream may unpack to, in times of its size, beyond the first MAX_TEXT bytes. Answers of models
#: unpack to some 5 times theirs; gzip cannot reach more than 1,032, zstd reaches 30,000.
MAX_RATIO = 500

#: The largest window of a zstd stream: what unpacking it holds in memory. `zstd --long=27` is the most that the zstd
#: command itself unpacks without being told.
_MAX_WINDOW = 2**27

LINES = (".jsonl", ".ndjson")
TEXTS = (".txt", ".md", ".py")
TABLES = (".parquet", ".csv", ".tsv")
_READ = LINES + TEXTS + TABLES
_PACKED = (".gz", ".zst", ".zstd")
NOT_READ = {".bz2": "bzip2", ".xz": "xz", ".zip": "zip"}
_MAGIC = {b"PK\x03\x04": ".zip", b"\xfd7zX": ".xz"}
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"

#: Compressed bytes unpacked at a time: zstd makes at most some 33 MB of them.
_SIP = 1024

_PASSED_OVER = "files passed over in folders: hidden, or of a suffix that is not read"
_CHUNK = 2**20


T = TypeVar("T")


class _Form(Enum):
    LINES = auto()
    TEXT = auto()
    PARQUET = auto()
    COMMAS = auto()
    """CSV."""
    TABS = auto()
    """CSV with tabs for commas."""
    EITHER = auto()
    """Told by the first character."""


@dataclass(frozen=True, slots=True)
class Input:
    """One file, or standard input, that is to be read."""

    path: Path | None
    """None: standard input, or an object."""
    name: str
    """For messages and results, with control characters escaped."""
    given: str
    """The input through which it was reached."""
    form: _Form
    url: str | None = None
    """The address of an object of a store."""
    url_size: int | None = None

    def size(self) -> int | None:
        """Return how many bytes it is now; None if it is a pipe."""
        if self.path is None:
            return self.url_size
        return self.path.stat().st_size if self.path.is_file() else None

    @property
    def of_lines(self) -> bool:
        """Whether its name says that it is plain JSON Lines."""
        return self.form is _Form.LINES and not self.name.lower().endswith(_PACKED)


class RawRecord(NamedTuple):
    """One record as it stands in its file, or why it cannot be had."""

    name: str
    """"answers.jsonl:12", "-:3" or "novel.txt", with control characters escaped."""
    line: int | None
    """Its number, from 1; None: a text file. Of a Parquet file the row's."""
    content: bytes
    """Empty if there is a problem, or a row."""
    problem: str | None = None
    """What was expected and what was found."""
    row: Mapping[str, object] | None = None
    """The values by column where the file is a table."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Some records in a row, as they are sent to whoever parses them."""

    name: str
    cut: Sequence[RawRecord] | LineBlock | ArrowRows

    def __len__(self) -> int:
        return self.cut.length if isinstance(self.cut, ArrowRows) else len(self.cut)

    def records(self) -> Iterator[RawRecord]:
        """Yield each record."""
        cut = self.cut
        if isinstance(cut, LineBlock):
            lines = zip(self.names(), cut.numbers.tolist(), cut.contents(), strict=True)
            for i, (name, number, line) in enumerate(lines):
                yield RawRecord(name, number or None, line, cut.problems.get(i))
        elif isinstance(cut, ArrowRows):
            for name, number, row in zip(self.names(), count(cut.first), cut.rows(), strict=False):
                if isinstance(row, str):
                    yield RawRecord(name, number, b"", row)
                else:
                    yield RawRecord(name, number, b"", row=row)
        else:
            yield from cut

    def names(self) -> list[str]:
        """Return each record's name."""
        if isinstance(self.cut, LineBlock):
            return [f"{self.name}:{number}" if number else self.name for number in self.cut.numbers.tolist()]
        if isinstance(self.cut, ArrowRows):
            return [f"{self.name}:{number}" for number in range(self.cut.first, self.cut.first + self.cut.length)]
        return [raw.name for raw in self.cut]

    def id_lists(self, column: str) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]] | None:
        """Return the ids of all records and where each one's begin, with the end; None if there is more to them."""
        return self.cut.id_lists(column) if isinstance(self.cut, ArrowRows) else None

    def digests(self) -> list[bytes]:
        """Return each record's digest, 16 bytes; of one with a problem nothing is known, and its digest is empty."""
        if isinstance(self.cut, (LineBlock, ArrowRows)):
            return self.cut.digests()
        return [_digest(raw) for raw in self.cut]


class Source:
    """An open input: its records, once, and then the digest of all of its bytes.

    Raises:
        UsageError: it begins as a file of a format that is not read.
    """

    def __init__(self, file: Input, stream: BinaryIO, *, columns: Sequence[str] = ()) -> None:
        self._file = file
        self._columns = columns
        self._tap = tap = _Tap(stream)
        if (suffix := _MAGIC.get(tap.magic)) is not None:
            raise UsageError(_not_read(file.name, suffix))
        self._form = _Form.PARQUET if tap.magic == _PARQUET else file.form
        self._packed: str | None = None
        self._stream: BinaryIO = io.BufferedReader(tap)
        name = file.name.lower()
        if tap.magic.startswith(_GZIP) or name.endswith(".gz"):
            self._packed = "gzip"
            self._stream = io.BufferedReader(_Unpacked(gzip.GzipFile(fileobj=self._stream), tap), _CHUNK)
        elif tap.magic == _ZSTD or name.endswith((".zst", ".zstd")):
            self._packed = "zstd"
            self._stream = io.BufferedReader(_Unpacked(_Zstd(self._stream), tap), _CHUNK)
        self._raw = stream
        self._sought: int | None = None

    def records(self) -> Iterator[RawRecord]:
        """Yield each record; if a compressed stream or a Parquet file is damaged, the last of them says so."""
        for portion in self.portions(PORTION):
            yield from portion.records()

    def portions(self, size: int) -> Iterator[Portion]:
        """Yield the records in portions of some *size* bytes: the same ones whenever the file is read."""
        if self._form is _Form.PARQUET:
            yield from self._tables(size)
            return
        name = self._file.name
        try:
            form, read = self._begin()
        except _DAMAGE as error:
            yield _trouble(name, self._damage(error, 0))
            return
        if form is _Form.LINES:
            lines = cut_lines(self._stream, 1, read, longest=MAX_LINE, chunk=_CHUNK)
            mended = self._mended(lines, lambda block: int(block.numbers[-1]), partial(LineBlock.of_problem, 0))
            for block in in_blocks(mended, size):
                yield Portion(name, block)
            return
        records = self._mended(self._cut(form, read), lambda record: record.line or 0, partial(_spoilt, name))
        yield from in_portions(name, records, size)

    def digest(self) -> str:
        """Read to the end and return the SHA-256 of the bytes, compressed if they were, in hexadecimal."""
        return self._tap.digest()

    @property
    def is_plain(self) -> bool:
        """Whether it begins as a text in UTF-8 may."""
        packed_or_table = self._packed is not None or self._form is _Form.PARQUET
        return not packed_or_table and not self._tap.magic.startswith(UTF16_MARKS)

    @property
    def bytes_read(self) -> int:
        """How much of the file was read, compressed if it is."""
        return self._tap.count if self._sought is None else self._sought

    def _tables(self, size: int) -> Iterator[Portion]:
        name = self._file.name
        if self._packed is not None or self._tap.magic != _PARQUET:
            found = f"one in {self._packed}: unpack it" if self._packed else "no Parquet in it"
            yield _trouble(name, f"expected a Parquet file, found {found}")
            return
        read = 0
        try:
            self._raw.seek(0)
            for rows in arrow_rows(self._raw, columns=self._columns, size=size):
                read += rows.length
                self._sought = rows.file_bytes
                yield Portion(name, rows)
        except InputError as error:
            yield _trouble(name, f"{error} (after row {read}: what follows it is lost)")
        except io.UnsupportedOperation:
            raise UsageError(f"{name}: Parquet cannot be read from a pipe: name the file") from None
        # The digest is of the whole file, from its beginning.
        self._raw.seek(len(self._tap.magic))
        self._tap.rewind()
        self._sought = None

    def _begin(self) -> tuple[_Form, bytes]:
        """Return the form, and what was read to tell it: blank lines and the line after them."""
        if self._form is not _Form.EITHER:
            return self._form, b""
        blank, first = _first_line(self._stream)
        in_lines = first.removeprefix(UTF8_MARK).lstrip(BLANK).startswith(b"{")
        return _Form.LINES if in_lines else _Form.TEXT, blank + first

    def _mended(self, cut: Iterator[T], last: Callable[[T], int], spoilt: Callable[[str], T]) -> Iterator[T]:
        """Yield what was cut; if a compressed stream is damaged or a bomb, the last of it says so."""
        line = 0
        try:
            for one in cut:
                line = last(one)
                yield one
        except _DAMAGE as error:
            yield spoilt(self._damage(error, line))

    def _damage(self, error: Exception, line: int) -> str:
        """Return what is wrong with a compressed stream after a line."""
        if isinstance(error, EOFError):
            found = "its end: it was cut short"
        elif isinstance(error, _BombError):
            found = f"one that unpacks to more than {MAX_RATIO} times its size, a bomb"
        else:
            found = "damage"
        return f"expected a whole {self._packed} stream, found {found} after line {line}: what follows it is lost"

    def _cut(self, form: _Form, read: bytes) -> Iterator[RawRecord]:
        name = self._file.name
        if form is _Form.TEXT:
            content = _whole(self._stream, read)
            if len(content) > MAX_TEXT:
                problem = f"expected a text of at most {MAX_TEXT:,} bytes, found a longer one: split it"
                yield RawRecord(name, None, b"", problem)
            elif not is_blank(content):
                yield RawRecord(name, None, content)
            return
        yield from self._cells("," if form is _Form.COMMAS else "\t")

    def _cells(self, delimiter: str) -> Iterator[RawRecord]:
        """Yield each record of a CSV file under its header. Quotes that don't pair spoil what they enclose."""
        name, header = self._file.name, None
        parts: list[bytes] = []
        began = held = quotes = 0
        for number, line in _lines(self._stream):
            began = began if parts else number
            parts.append(line)
            held += len(line)
            quotes += line.count(b'"')
            if held <= MAX_LINE and quotes % 2 and line.endswith(b"\n"):
                continue
            record = b"".join(parts)
            parts, held, quotes = [], 0, 0
            if is_blank(record):
                continue
            if len(record) > MAX_LINE:
                yield RawRecord(f"{name}:{began}", began, b"", _too_long())
            elif header is None:
                try:
                    header = header_of(record, delimiter)
                except InputError as error:
                    yield RawRecord(f"{name}:{began}", began, b"", f"{error}. Nothing below it can be told")
                    return
            else:
                try:
                    row = header.row(record)
                except InputError as error:
                    yield RawRecord(f"{name}:{began}", began, b"", str(error))
                else:
                    yield RawRecord(f"{name}:{began}", began, record, row=row)
        if parts:
            yield RawRecord(f"{name}:{began}", began, b"", "expected a closing quote, found the end of the file")


def in_portions(name: str, records: Iterable[RawRecord], size: int) -> Iterator[Portion]:
    """Yield records in portions of some *size* bytes."""
    held: list[RawRecord] = []
    held_bytes = 0
    for record in records:
        held.append(record)
        held_bytes += len(record.content) + OVERHEAD
        if held_bytes >= size:
            yield Portion(name, held)
            held, held_bytes = [], 0
    if held:
        yield Portion(name, held)


def line_blocks(stream: BinaryIO, number: int, size: int) -> Iterator[LineBlock]:
    """Yield the lines of *stream*, from line *number* on, in blocks of some *size* bytes."""
    return in_blocks(cut_lines(stream, number, b"", longest=MAX_LINE, chunk=_CHUNK), size)


@contextmanager
def opened(file: Input, stdin: BinaryIO | None, *, columns: Sequence[str] = ()) -> Iterator[Source]:
    """Open *file* for the length of a `with`; *stdin* is read for `-`, else the process's own.

    Of a Parquet file the *columns* are read that it has.

    Raises:
        InputError: it cannot be opened, or cannot be read to its end.
        UsageError: it begins as a file of a format that is not read.
    """
    try:
        with stream_of(file, stdin) as stream:
            yield Source(file, stream, columns=columns)
    except OSError as error:
        raise InputError(f"cannot read {file.name}: {printable(error.strerror or error)}") from None


def stream_of(file: Input, stdin: BinaryIO | None) -> AbstractContextManager[BinaryIO]:
    """Open *file*; *stdin* is read for `-`, else the process's own.

    Raises:
        OSError: it cannot be opened.
    """
    if file.url is not None:
        return open_object(file.url)
    if file.path is not None:
        return file.path.open("rb")
    if stdin is None and sys.stdin is None:
        raise InputError("-: there is no standard input")
    return nullcontext(stdin if stdin is not None else sys.stdin.buffer)


def find_inputs(inputs: Iterable[str], note: Callable[[str, int], None]) -> list[Input]:
    """Return every file of *inputs* once, in the order given and sorted within each.

    Args:
        inputs: paths, patterns, addresses `s3://BUCKET/KEY`, or `-`.
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
        if is_object(given):
            for url, size in _objects(given, note):
                form = _form_of_name(url) or _Form.TEXT
                files.setdefault(url, Input(None, shown_path(url), given, form, url=url, url_size=size))
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
        self.count = 0
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
            self.count += len(data)
        buffer[: len(data)] = data
        return len(data)

    def rewind(self) -> None:
        """Begin anew after the first bytes, where the file was put back to."""
        self._sha256 = hashlib.sha256(self.magic)
        self._ahead = b""
        self.count = 0

    def digest(self) -> str:
        """Read to the end, which a damaged gzip stream or UTF-16 is not, and return the SHA-256 in hexadecimal."""
        while self.read(_CHUNK):
            pass
        return self._sha256.hexdigest()


class _BombError(Exception):
    """A compressed stream unpacks to too many times its size."""


class _DamagedError(Exception):
    """A zstd stream is not one."""


#: What reading a compressed stream raises that is not whole.
_DAMAGE = (EOFError, _BombError, zlib.error, gzip.BadGzipFile, _DamagedError)


class _Unpacked(io.RawIOBase):
    """What a compressed stream holds, as long as it is no bomb."""

    def __init__(self, inner: Any, tap: _Tap) -> None:
        super().__init__()
        self._inner = inner
        self._tap = tap
        self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # One read at most, so that what comes before damage is not lost with it.
        data = self._inner.read1(len(buffer))
        self._unpacked += len(data)
        if self._unpacked > MAX_TEXT and self._unpacked > MAX_RATIO * self._tap.count:
            raise _BombError
        buffer[: len(data)] = data
        return len(data)


class _Zstd:
    """Frames of zstd, one after the other. The library's own reader says nothing of a frame that was cut short."""

    def __init__(self, source: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtraError("zstd needs zstandard: pip install 'taggant[corpora]'") from None
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._source = source
        self._frame: Any = None
        self._packed = b""
        self._ready = memoryview(b"")

    def read1(self, size: int) -> memoryview:
        """Return at most *size* bytes, none at the end."""
        while not self._ready:
            self._packed = self._packed or self._source.read(_SIP)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError
                return memoryview(b"")
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(self._packed))
            except self._error:
                raise _DamagedError from None
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        data, self._ready = self._ready[:size], self._ready[size:]
        return data


def _digest(raw: RawRecord) -> bytes:
    if raw.problem is not None:
        return b""
    if raw.row is None:
        return hashlib.sha256(raw.content.strip(BLANK)).digest()[:16]
    # A column that is in another place, or is not there, makes no other record.
    cells = repr(sorted((name, value) for name, value in raw.row.items() if value is not None))
    return hashlib.sha256(cells.encode()).digest()[:16]


def _too_long() -> str:
    return f"expected a line of at most {MAX_LINE:,} bytes, found a longer one"


def _trouble(name: str, problem: str) -> Portion:
    return Portion(name, [_spoilt(name, problem)])


def _spoilt(name: str, problem: str) -> RawRecord:
    return RawRecord(name, None, b"", problem)


def _not_read(name: str, suffix: str) -> str:
    if suffix == ".json":
        return (
            f"{name}: a .json file is not read by this version: convert it to JSON Lines "
            "(jq -c '.[]' FILE > FILE.jsonl), or name it .jsonl if it has one object a line"
        )
    return f"{name}: {NOT_READ[suffix]} is not read by this version: convert it to JSON Lines (one object a line)"


def _suffix(path: str) -> str:
    path = path.lower()
    for packed in _PACKED:
        path = path.removesuffix(packed)
    return Path(path).suffix


def _form(path: str) -> _Form:
    if not os.path.exists(path):
        raise InputError(f"{shown_path(path)}: no such file or folder: check the name, or give - for standard input")
    return _form_of_name(path) or (_Form.TEXT if os.path.isfile(path) else _Form.EITHER)


def _form_of_name(path: str) -> _Form | None:
    """Return what a suffix says; None: nothing."""
    suffix = _suffix(path)
    if suffix in NOT_READ or suffix == ".json":
        raise UsageError(_not_read(shown_path(path), suffix))
    return _FORMS.get(suffix)


_FORMS = {
    **dict.fromkeys(LINES, _Form.LINES),
    ".parquet": _Form.PARQUET,
    ".csv": _Form.COMMAS,
    ".tsv": _Form.TABS,
}


def _objects(given: str, note: Callable[[str, int], None]) -> list[tuple[str, int]]:
    """Return the objects of an address; of a prefix those that are read, as of a folder."""
    found, is_prefix = find_objects(given)
    if not is_prefix:
        return found
    base = given.rstrip("/") + "/"
    kept = [
        (url, size)
        for url, size in found
        if not any(name.startswith(".") for name in url.removeprefix(base).split("/")) and _suffix(url) in _READ
    ]
    _held_against(shown_path(given), len(kept), len(found) - len(kept), note)
    return kept


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
            if not name.startswith(".") and _suffix(name) in _READ and os.path.isfile(path):
                found.append(path)
            else:
                passed_over += 1
    _held_against(shown_path(folder), len(found), passed_over, note)
    return sorted(found)


def _held_against(name: str, found: int, passed_over: int, note: Callable[[str, int], None]) -> None:
    """Note what was passed over in a folder, if anything is left."""
    if not found:
        raise InputError(
            f"no records in {name}: expected files {', '.join(_READ)} (or those with .gz or .zst), found {passed_over} "
            "others"
        )
    if passed_over:
        note(_PASSED_OVER, passed_over)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield each line's number and bytes.

    Of a line over MAX_LINE comes only the beginning, which is one byte too long; the rest is read and let go.
    """
    number = 1
    while line := stream.readline(MAX_LINE + 1):
        yield number, line
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK)
        number += 1


def _first_line(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Return the blank lines before the first other one, and it; a line over MAX_LINE is not known to be blank."""
    blank = bytearray()
    while 0 < len(line := stream.readline(MAX_LINE + 1)) <= MAX_LINE and is_blank(line) and len(blank) <= MAX_TEXT:
        blank += line
    return bytes(blank), line


def _whole(stream: BinaryIO, content: bytes) -> bytes:
    """Return *content* and what follows it, at most one byte more than MAX_TEXT; the rest is let go."""
    parts, size = [content], len(content)
    while size <= MAX_TEXT and (part := stream.read(min(_CHUNK, MAX_TEXT + 1 - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)
