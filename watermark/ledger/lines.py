"""Records of an engine that has none of our middleware, appended from JSON Lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn

from watermark import __version__
from watermark.errors import InputError, printable
from watermark.ledger.record import LedgerRecord, Retention
from watermark.ledger.writer import Ledger

__all__ = ["AppendedLines", "append_file", "append_lines"]

#: How many malformed lines are kept with what is wrong with them.
_MAX_PROBLEMS: Final = 20

#: Seconds that a line waits for room in the ledger's queue.
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendedLines:
    """Where every line went: ``read = appended + malformed``. Blank lines are not counted."""

    read: int
    appended: int
    malformed: int
    problems: tuple[str, ...]
    """What was wrong with the first malformed lines, each with its number."""

    def to_json(self) -> dict[str, Any]:
        """Return what ``ledger append --json`` prints."""
        return {"schema": "taggant/ledger-append/1", "version": __version__, **asdict(self)}


def append_file(url: str, path: str, *, origin: str, retention: Retention | str = Retention.ids) -> AppendedLines:
    """Open a log and append the records of a JSON Lines file, or of standard input for ``-``.

    Raises:
        InputError: the file cannot be read.
        LedgerError: the log cannot be opened, or takes no more.
    """
    try:
        file = sys.stdin.buffer if path == "-" else open(path, "rb")
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    try:
        with Ledger.open(url, origin=origin, retention=retention) as ledger:
            return append_lines(ledger, file)
    finally:
        if file is not sys.stdin.buffer:
            file.close()


def append_lines(ledger: Ledger, lines: Iterable[bytes]) -> AppendedLines:
    """Append the record of each line, a JSON object with the fields of `LedgerRecord`; pass over malformed ones.

    Malformed lines are counted and no reason to stop: what was served is to be recorded. Whoever mends them appends
    these alone, since a record that is appended twice is in the ledger twice.

    Raises:
        LedgerError: the ledger takes no more.
    """
    read = appended = 0
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        read += 1
        try:
            record = LedgerRecord.from_json(_parsed(line))
        except InputError as error:
            if len(problems) < _MAX_PROBLEMS:
                problems.append(f"line {number}: {error}")
            continue
        ledger.append(record, timeout=_PATIENCE_S)
        appended += 1
    return AppendedLines(read=read, appended=appended, malformed=read - appended, problems=tuple(problems))


def _parsed(line: bytes) -> dict[str, Any]:
    """Parse one JSON object, strictly: what parsers differ about is refused, since a leaf has one reading."""
    try:
        value = json.loads(line, object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError:
        raise InputError("expected a JSON object, found arrays or objects nested too deep") from None
    except UnicodeDecodeError:
        raise InputError("expected UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"expected a JSON object: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise InputError("expected a JSON object, found in it an integer of thousands of digits") from None
    if not isinstance(value, dict):
        raise InputError("expected a JSON object, found another value")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"expected each field once, found {printable(twice, 40)} twice")
    return found


def _constant(name: str) -> NoReturn:
    raise InputError(f"expected a JSON object, found in it {name}, which is not JSON")
