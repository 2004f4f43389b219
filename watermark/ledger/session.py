"""A writer's session of a log: the lock, the connection and the log's head, and batches that are written once.

A session begins with an entry in the log and ends with one. In between the log's row names it, and that row is what a
batch is checked against in its own transaction: its size says whether an attempt whose answer was lost had succeeded,
its session whether somebody else has taken the log over.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

from watermark.errors import LedgerError, printable
from watermark.ledger.record import Kind, timestamp
from watermark.ledger.schema import LOGS
from watermark.merkle import EMPTY_ROOT, Frontier

import sqlalchemy as sa  # isort: skip - after schema, which says how to install it

from watermark.ledger import entry as ledger_entry
from watermark.ledger.lock import AdvisoryLock, FileLock

__all__ = ["LogSession", "LostLogError"]


class LostLogError(LedgerError):
    """Report a log that this session can never write again."""


class LogSession:
    """Hold a log for writing. Used by one thread at a time, but for `count`.

    Args:
        engine: of a ledger whose tables are there; the session disposes of it in the end.
        origin: the log's; it is made if it is not there.

    Raises:
        LedgerError: the log has a writer.
        sqlalchemy.exc.DBAPIError: the database fails.
    """

    def __init__(self, engine: sa.Engine, origin: str) -> None:
        self.origin = origin
        self._engine = engine
        self._id = uuid.uuid4().hex
        self._log_id = 0
        self._frontier = Frontier()
        self._connection: sa.Connection | None = None
        self._file_lock: FileLock | None = None
        try:
            if engine.dialect.name == "sqlite":
                self._file_lock = FileLock(Path(str(engine.url.database)), origin)
            self._begin()
        except BaseException:
            self.release()
            raise

    def count(self, accepted: int) -> None:
        """Note how many responses were accepted, where that outlives the process (SQLite)."""
        if self._file_lock is not None:
            self._file_lock.count(accepted)

    def rows(self) -> ledger_entry.Rows:
        """Return an empty batch, to be filled and written."""
        return ledger_entry.Rows(self._log_id, Frontier(self._frontier.size, self._frontier.to_bytes()))

    def end(self, rows: ledger_entry.Rows, *, accepted: int) -> None:
        """Add the session's end to its last batch."""
        details = {"accepted": accepted, "written": accepted}
        rows.add(ledger_entry.event(Kind.closed, session=self._id, time=timestamp(), details=details))

    def write(self, rows: ledger_entry.Rows, *, accepted: int, written: int, closing: bool) -> None:
        """Write a batch in one transaction, if an attempt before did not.

        Args:
            rows: what `rows` returned, filled.
            accepted: responses that the session has accepted by now.
            written: those that are in the database with this batch.
            closing: whether the batch ends the session.

        Raises:
            LostLogError: another session has taken the log over, or the log was changed.
            LedgerError: the log's lock was lost with the connection, and is not to be had again yet.
            sqlalchemy.exc.DBAPIError: the database fails; try again after `disconnect`.
        """
        try:
            self._write(rows, accepted=accepted, written=written, closing=closing)
        except sa.exc.IntegrityError as error:
            said = printable(str(error.orig).split("\n")[0], 200)
            raise LostLogError(f"the log holds rows beyond its head, or its tables were changed: {said}") from None
        self._frontier = rows.frontier

    def _write(self, rows: ledger_entry.Rows, *, accepted: int, written: int, closing: bool) -> None:
        connection = self._connected()
        with connection.begin():
            head = connection.execute(
                sa.select(LOGS.c.size, LOGS.c.root, LOGS.c.session).where(LOGS.c.id == self._log_id).with_for_update()
            ).one_or_none()
            root = rows.frontier.root()
            after = (rows.frontier.size, root, None if closing else self._id)
            if head is not None and rows.entries and (head.size, bytes(head.root), head.session) == after:
                return  # It was committed, and the connection lost before the server could say so.
            if head is None or (head.size, head.session) != (self._frontier.size, self._id):
                raise LostLogError("another writer has taken the log over, or its head was changed")
            ledger_entry.insert(connection, rows)
            session: dict[str, object] = {
                "session": self._id,
                "seen": timestamp(),
                "accepted": accepted,
                "written": written,
            }
            if closing:
                session = {"session": None, "opened": None, "seen": None, "accepted": None, "written": None}
            connection.execute(
                sa.update(LOGS)
                .where(LOGS.c.id == self._log_id)
                .values(size=rows.frontier.size, root=root, frontier=rows.frontier.to_bytes(), **session)
            )

    def disconnect(self) -> None:
        """Drop the connection; the next batch makes another."""
        if self._connection is not None:
            # A connection that is broken may not even be closed.
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.close()
            self._connection = None

    def release(self) -> None:
        """Let go of the log. Nothing happens the second time."""
        self.disconnect()
        self._engine.dispose()
        if self._file_lock is not None:
            self._file_lock.release()

    def _connected(self) -> sa.Connection:
        """Return the writer's connection, made anew and locked again if it was lost."""
        if self._connection is None:
            connection = self._engine.connect().execution_options(taggant_writes=True)
            try:
                if self._engine.dialect.name == "postgresql":
                    AdvisoryLock(connection, self.origin)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _begin(self) -> None:
        """Take the log's head over, and record the last session's gap, if it left one, and this one's beginning."""
        connection = self._connected()
        now = timestamp()
        with connection.begin():
            found = connection.execute(sa.select(LOGS).where(LOGS.c.origin == self.origin)).one_or_none()
            if found is None:
                made = sa.insert(LOGS).values(
                    origin=self.origin, created=now, size=0, root=EMPTY_ROOT, frontier=b"", accepted=None
                )
                connection.execute(made)
                found = connection.execute(sa.select(LOGS).where(LOGS.c.origin == self.origin)).one()
            self._log_id = found.id
            self._frontier = Frontier(found.size, bytes(found.frontier))
            rows = ledger_entry.Rows(found.id, self._frontier)
            if found.session is not None:
                rows.add(self._gap(found, now))
            rows.add(ledger_entry.event(Kind.opened, session=self._id, time=now, details={"origin": self.origin}))
            ledger_entry.insert(connection, rows)
            connection.execute(
                sa.update(LOGS)
                .where(LOGS.c.id == found.id)
                .values(
                    size=self._frontier.size,
                    root=self._frontier.root(),
                    frontier=self._frontier.to_bytes(),
                    session=self._id,
                    opened=now,
                    seen=now,
                    accepted=0,
                    written=0,
                )
            )
        if self._file_lock is not None:
            self._file_lock.begin(self._id)

    def _gap(self, found: sa.Row[tuple[object, ...]], now: str) -> ledger_entry.Entry:
        counted = self._file_lock.accepted(found.session) if self._file_lock is not None else None
        return ledger_entry.event(
            Kind.gap,
            session=found.session,
            time=now,
            details={
                "opened": found.opened,
                "seen": found.seen,
                "found": now,
                # The count in the lock's file is exact; else it is what the last batch or heartbeat knew.
                "accepted": found.accepted if counted is None else counted,
                "accepted_exact": counted is not None,
                "written": found.written,
            },
        )
