"""Reading a ledger while servers write to it: logs, entries, checkpoints to publish and proofs to hand out.

Entries never change once they are there, so nothing here holds a long transaction: a reader notes each log's size when
it begins and pages through what lies below.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from watermark.checkpoint import Checkpoint, LogProof
from watermark.errors import LedgerError, UsageError, VerificationError, printable
from watermark.ledger.record import Kind, timestamp
from watermark.ledger.schema import (
    CHECKPOINTS,
    ENTRIES,
    LOGS,
    NODES,
    check_version,
    connect_engine,
    ledger_url,
    shown_url,
)
from watermark.merkle import Tree
from watermark.signed_note import NoteSigner, NoteVerifier

import sqlalchemy as sa  # isort: skip - after schema, which says how to install it

from watermark.ledger.entry import leaf_of

__all__ = ["PAGE", "LedgerReader", "Log", "StoredCheckpoint"]

#: Rows that are read at a time.
PAGE: Final = 2048

#: The columns of a row, marked as the number that is stored: a driver would take any number for a truth value.
ROW: Final = [
    sa.type_coerce(column, sa.Integer).label("marked") if column.name == "marked" else column for column in ENTRIES.c
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A log's head, as it was when it was read."""

    id: int
    """In this database."""
    origin: str
    size: int
    root: bytes
    frontier: bytes
    session: str | None
    """Of the writer that has it open, or crashed with it open."""
    opened: str | None
    seen: str | None
    """When that writer last wrote or noted that it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint that was signed."""

    note: str
    verifier: NoteVerifier
    signed: str
    """When."""


class LedgerReader:
    """A ledger that is open for reading, and for signing its heads. Made by `open`.

    Database errors come out as `LedgerError`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Self:
        """Open a ledger.

        Args:
            url: a file's name, ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``.

        Raises:
            LedgerError: there is none, it is of another version, or the database cannot be reached.
            UsageError: the URL is none.
        """
        reader = cls(connect_engine(ledger_url(url), create=False))
        with reader.errors():
            check_version(reader._engine)
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.dispose()

    def __repr__(self) -> str:
        return f"LedgerReader({self.name!r})"

    @property
    def name(self) -> str:
        """The database, fit for a message."""
        return shown_url(self._engine.url)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the database's errors into ours."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            said = printable(str(error.orig).split("\n")[0], 200)
            raise LedgerError(f"{self.name}: cannot read the ledger: {said}") from None

    def logs(self) -> tuple[Log, ...]:
        """Return the heads of all logs, by origin."""
        columns = [LOGS.c[name] for name in ("id", "origin", "size", "root", "frontier", "session", "opened", "seen")]
        with self.errors(), self._engine.connect() as connection:
            rows = connection.execute(sa.select(*columns).order_by(LOGS.c.origin)).mappings().all()
        return tuple(Log(**{**row, "root": bytes(row["root"]), "frontier": bytes(row["frontier"])}) for row in rows)

    def log(self, origin: str | None = None) -> Log:
        """Return the head of a log, or of the only one.

        Raises:
            UsageError: there is no such log, or several and none was named.
        """
        logs = self.logs()
        found = [log for log in logs if origin in (None, log.origin)]
        if len(found) != 1:
            names = ", ".join(printable(log.origin) for log in logs) or "none"
            asked = "name one with --origin" if origin is None else f"no log {printable(origin)}"
            raise UsageError(f"{self.name}: {asked} (logs: {names})")
        return found[0]

    def tree(self, log: Log) -> Tree:
        """Return the tree of a log as of its head, from what is stored of it."""

        def read(level: int, start: int, count: int) -> Sequence[bytes]:
            if level == 0:
                of, at, value = ENTRIES.c.log_id == log.id, ENTRIES.c.leaf_index, ENTRIES.c.leaf_hash
            else:
                of, at, value = (NODES.c.log_id == log.id) & (NODES.c.level == level), NODES.c.position, NODES.c.hash
            query = sa.select(value).where(of, at >= start, at < start + count).order_by(at)
            with self.errors(), self._engine.connect() as connection:
                return [bytes(found) for found in connection.execute(query).scalars()]

        return Tree(log.size, read)

    def pages(self, log: Log) -> Iterator[list[dict[str, Any]]]:
        """Yield all entries of a log below its head's size, in order, by pages."""
        start = 0
        while start < log.size:
            query = (
                sa.select(*ROW)
                .where(ENTRIES.c.log_id == log.id, ENTRIES.c.leaf_index >= start, ENTRIES.c.leaf_index < log.size)
                .order_by(ENTRIES.c.leaf_index)
                .limit(PAGE)
            )
            page = self.fetch(query)
            if not page:
                return
            yield page
            start = page[-1]["leaf_index"] + 1

    def fetch(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """Return the rows of a query, by the columns' names."""
        with self.errors(), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def checkpoints(self, log: Log) -> tuple[StoredCheckpoint, ...]:
        """Return the checkpoints of a log that were signed, the smallest first."""
        query = (
            sa.select(CHECKPOINTS)
            .where(CHECKPOINTS.c.log_id == log.id)
            .order_by(CHECKPOINTS.c.size, CHECKPOINTS.c.signed)
        )
        return tuple(
            StoredCheckpoint(note=row["note"], verifier=NoteVerifier.parse(row["verifier"]), signed=row["signed"])
            for row in self.fetch(query)
        )

    def sign(self, signer: NoteSigner, *, origin: str | None = None) -> str:
        """Sign a log's head, keep the checkpoint and return it: what is published.

        It is only signed if the tree as stored gives the head's root and the roots of all checkpoints before, so that
        no two checkpoints of a log ever contradict each other.

        Raises:
            UsageError: no such log, or the key is not named like its origin.
            VerificationError: the tree contradicts its head or an earlier checkpoint.
        """
        log = self.log(origin)
        if signer.name != log.origin:
            raise UsageError(
                f"the key is named {printable(signer.name)} and the log {printable(log.origin)}: a log's key bears its "
                "name (taggant ledger create-key --name ORIGIN)"
            )
        tree = self.tree(log)
        if tree.root() != log.root:
            raise VerificationError(
                f"{self.name}: the tree of {printable(log.origin)} does not give its head's root: it was changed; "
                "taggant ledger verify says where"
            )
        for stored in self.checkpoints(log):
            before = Checkpoint.open(stored.note, [stored.verifier])
            if before.size > log.size or tree.root(before.size) != before.root:
                raise VerificationError(
                    f"{self.name}: the log {printable(log.origin)} contradicts its checkpoint of {before.size} leaves: "
                    "entries were changed or removed since"
                )
        note = Checkpoint(log.origin, log.size, log.root).sign(signer)
        row = {"log_id": log.id, "size": log.size, "verifier": str(signer.verifier()), "note": note}
        writing = self._engine.connect().execution_options(taggant_writes=True)
        with self.errors(), writing as connection, contextlib.suppress(sa.exc.IntegrityError), connection.begin():
            # The same head signed again gives the same note: it is there already.
            connection.execute(sa.insert(CHECKPOINTS).values(**row, signed=timestamp()))
        return note

    def prove(
        self, id: str, *, origin: str | None = None, index: int | None = None, signer: NoteSigner | None = None
    ) -> LogProof:
        """Return the proof that the response with this id is in the log, with its leaf.

        Args:
            id: the response's.
            origin: of the log, where several have such an id.
            index: of the leaf, where several have this id.
            signer: sign the log's head now; else the latest checkpoint is used.

        Raises:
            UsageError: there is no such response, or several; or no checkpoint covers it.
            VerificationError: the log is damaged: the proof would not hold.
        """
        logs = {log.id: log for log in self.logs() if origin in (None, log.origin)}
        query = sa.select(*ROW).where(ENTRIES.c.id == id, ENTRIES.c.kind == Kind.response.value).limit(20)
        if index is not None:
            query = query.where(ENTRIES.c.leaf_index == index)
        found = [row for row in self.fetch(query) if row["log_id"] in logs]
        if len(found) != 1:
            where = ", ".join(f"{printable(logs[row['log_id']].origin)} {row['leaf_index']}" for row in found)
            raise UsageError(
                f"{self.name}: {len(found)} responses have the id {printable(id)}"
                + (f" (origin and index: {where}): say which with --origin and --index" if found else "")
            )
        row, log = found[0], logs[found[0]["log_id"]]
        if signer is not None:
            note, verifier = self.sign(signer, origin=log.origin), signer.verifier()
        else:
            covering = [
                stored
                for stored in self.checkpoints(log)
                if Checkpoint.open(stored.note, [stored.verifier]).size > row["leaf_index"]
            ]
            if not covering:
                raise UsageError(
                    f"{self.name}: no checkpoint covers leaf {row['leaf_index']} of {printable(log.origin)}: sign one "
                    "(--key FILE, or taggant ledger checkpoint)"
                )
            note, verifier = covering[-1].note, covering[-1].verifier
        size = Checkpoint.open(note, [verifier]).size
        # The head may have grown since it was signed: the tree is read as of the checkpoint's size.
        path = self.tree(self.log(log.origin)).inclusion(row["leaf_index"], size)
        proof = LogProof(index=row["leaf_index"], path=tuple(path), note=note, leaf=leaf_of(row))
        proof.verify([verifier])
        return proof
