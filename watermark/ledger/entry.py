"""A log's entries as rows: columns, leaves and tree nodes, and the statements that insert them.

Rows go in by blocks, one statement of many rows each. A driver lets go of Python's interpreter lock around each
statement, and with other threads busy it may take 5 ms to get it back: row by row a busy server would hold its own
ledger to some hundred responses a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import sqlalchemy as sa

from watermark.ledger.record import Kind, LedgerRecord, Retention, leaf_bytes
from watermark.ledger.schema import ENTRIES, NODES
from watermark.merkle import Frontier, leaf_hash

__all__ = ["Entry", "Rows", "event", "insert", "leaf_of", "response"]

#: The columns of `leaf_bytes`, in the order in which rows hold them.
_LEAF: Final = (
    *("kind", "id", "started", "ended", "account", "model", "scope", "fingerprint", "scheme", "parameters"),
    *("marked", "reason", "digests", "nonce"),
)
_CONTENT: Final = ("token_ids", "prompt_token_ids", "response", "prompt")
#: The names of what is kept in those, the prompt under two.
_CONTENTS: Final = (*_CONTENT, "prompt_messages")
_ENTRY: Final = ("log_id", "leaf_index", *_LEAF, "leaf_hash", *_CONTENT)
_NODE: Final = ("log_id", "level", "position", "hash")

#: Rows a statement; SQLite takes 32,766 parameters (65,535 in PostgreSQL). Handing 64 rows over takes half a
#: millisecond, during which no other thread runs.
_BLOCK: Final = 64

_KEPT: Final = {
    Retention.ids: frozenset({"token_ids", "prompt_token_ids"}),
    Retention.text: frozenset({"response", "prompt", "prompt_messages"}),
    Retention.both: frozenset({"token_ids", "prompt_token_ids", "response", "prompt", "prompt_messages"}),
    Retention.digest: frozenset[str](),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry without its place: the leaf's columns but the nonce, and what is kept of what was said."""

    columns: tuple[Any, ...]
    contents: tuple[bytes | None, ...] = (None, None, None, None)


@dataclass(slots=True)
class Rows:
    """Rows to insert in one transaction, and the tree with them."""

    log_id: int
    frontier: Frontier
    """Grows as entries are added."""
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    nodes: list[tuple[Any, ...]] = field(default_factory=list)
    _random: list[bytes] = field(default_factory=list, repr=False)

    def add(self, entry: Entry) -> None:
        """Append an entry to the log."""
        if not self._random:
            # Many at once: each call lets go of the interpreter, and has to get it back.
            drawn = os.urandom(16 * 256)
            self._random = [drawn[at : at + 16] for at in range(0, len(drawn), 16)]
        columns = (*entry.columns, self._random.pop())
        hashed = leaf_hash(leaf_bytes(*columns))
        self.entries.append((self.log_id, self.frontier.size, *columns, hashed, *entry.contents))
        for level, position, value in self.frontier.append(hashed):
            self.nodes.append((self.log_id, level, position, value))


def response(record: LedgerRecord, retention: Retention) -> Entry:
    """Return the entry of a served response."""
    contents = record.contents()
    digests = {name: sha256(content).hexdigest() for name, content in contents.items()}
    if record.digests:
        digests = {**record.digests, **digests}
    # Names and values need no escapes, so that sorted and compact is canonical.
    digests_json = "{" + ",".join([f'"{name}":"{digest}"' for name, digest in sorted(digests.items())]) + "}"
    kept = _KEPT[retention]
    token_ids, prompt_token_ids, text, prompt, messages = [
        contents.get(name) if name in kept else None for name in _CONTENTS
    ]
    return Entry(
        (
            *(Kind.response.value, record.id, record.started, record.ended, record.account, record.model, record.scope),
            *(record.fingerprint, record.scheme, record.parameters_json, record.marked, record.reason, digests_json),
        ),
        (token_ids, prompt_token_ids, text, messages if prompt is None else prompt),
    )


def event(kind: Kind, *, session: str, time: str, details: Mapping[str, str | int | bool]) -> Entry:
    """Return the entry of a session's beginning, end or gap. *details* are its parameters."""
    parameters = json.dumps(details, sort_keys=True, separators=(",", ":"))
    return Entry((kind.value, session, time, time, None, None, None, None, None, parameters, None, None, "{}"))


def leaf_of(row: Mapping[str, Any]) -> bytes:
    """Return the leaf of a stored row."""
    return leaf_bytes(*[row[name] for name in _LEAF])


def insert(connection: sa.Connection, rows: Rows) -> None:
    """Insert the rows, in the transaction that *connection* is in."""
    for table, names, values in ((ENTRIES.name, _ENTRY, rows.entries), (NODES.name, _NODE, rows.nodes)):
        for block in _blocks(values):
            statement = _statement(table, names, len(block), connection.dialect.paramstyle)
            connection.exec_driver_sql(statement, tuple(value for row in block for value in row))


def _blocks(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Yield the rows in blocks of 64, and what is left in powers of two: seven statements in all, kept by drivers."""
    at, size = 0, _BLOCK
    while at < len(rows):
        while size > len(rows) - at:
            size //= 2
        yield rows[at : at + size]
        at += size


_STATEMENTS: dict[tuple[str, int, str], str] = {}


def _statement(table: str, names: tuple[str, ...], rows: int, paramstyle: str) -> str:
    """Return the INSERT of so many rows. Names are constants of this module: nothing of a record is in it."""
    key = (table, rows, paramstyle)
    if key not in _STATEMENTS:
        # psycopg counts as pyformat in SQLAlchemy and takes positional %s too.
        row = "(" + ", ".join(["?" if paramstyle == "qmark" else "%s"] * len(names)) + ")"
        _STATEMENTS[key] = f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([row] * rows)}"  # noqa: S608
    return _STATEMENTS[key]
