"""CSV, strictly (RFC 4180): a header that names each column once, and as many cells in every record.

Cells are text. An empty one counts as absent, since CSV does not tell nothing from an empty string. Token ids and chat
messages stand in a cell as the JSON that they are in JSON Lines.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

from detect.strict_json import decode_utf8
from watermark.errors import InputError, printable

__all__ = ["Header", "header_of"]

#: Characters of a cell: as many as a line may have bytes. The module's own bound is for the whole process.
_MAX_CELL = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Header:
    """The names of a file's columns."""

    names: tuple[str, ...]
    delimiter: str

    def row(self, record: bytes) -> dict[str, object]:
        """Return a record's cells by column; None where one is empty.

        Raises:
            InputError: it is not UTF-8, not CSV, or has more or fewer cells.
        """
        cells = _cells(record, self.delimiter)
        if len(cells) != len(self.names):
            raise InputError(f"expected {len(self.names)} cells as in the header, found {len(cells)}")
        return {name: cell or None for name, cell in zip(self.names, cells, strict=True)}


def header_of(record: bytes, delimiter: str) -> Header:
    """Return the header that a file begins with.

    Raises:
        InputError: it is not UTF-8, not CSV, or names no column or one twice.
    """
    names = _cells(record, delimiter)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"expected a header that names each column once, found {printable(twice, 40)!r} twice")
    return Header(tuple(names), delimiter)


def _cells(record: bytes, delimiter: str) -> list[str]:
    text = decode_utf8(record).removesuffix("\n").removesuffix("\r")
    if len(text) > csv.field_size_limit():
        csv.field_size_limit(_MAX_CELL)
    try:
        # Split at line feeds alone, as the record was cut; a quoted cell keeps its own.
        rows = list(csv.reader(_kept(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"expected a record of CSV, found none: {printable(error)}") from None
    if len(rows) != 1:
        raise InputError(f"expected a record of CSV, found {len(rows)}: a quote inside a cell that is not quoted?")
    return rows[0]


def _kept(text: str) -> list[str]:
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + parts[-1:]
