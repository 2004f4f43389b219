"""The provenance ledger: what a server served, to which account, under which scope, chained into a Merkle log.

A server opens its log once and appends a record for each response. Appending puts the record into a bounded queue and
takes microseconds; a thread of the ledger's own writes what has gathered, each batch in one transaction with its tree
nodes and the log's new head::

    with Ledger.open("ledger.db", origin="host-a.example/ledger") as ledger:
        ledger.append(LedgerRecord(id=..., started=..., ended=..., model=..., marked=True, ...))

**What is never lost.** After `close` (or leaving the `with`, or the interpreter's normal end) everything accepted is
written. After kill -9 what is missing is what was accepted and not yet flushed: at most `capacity` responses, as a rule
those of the last `flush_interval`. It does not pass unseen: each session begins and ends with an entry of its own, and
whoever opens the log next finds a session without an end and appends a *gap* entry, which says since when and how many.

**When the database is away** (locked, full, restarting) the writer tries again with growing pauses, on a new connection
if need be, and the head in the database says whether an attempt had succeeded: no batch is written twice. The queue
fills meanwhile, `ready` turns false, so that a server that must not serve what it cannot record refuses requests, and
`append` raises once the queue is full.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from watermark.errors import LedgerError, UsageError, printable
from watermark.ledger.record import LedgerRecord, Retention
from watermark.ledger.schema import connect_engine, ledger_url, shown_url, upgrade
from watermark.signed_note import check_key_name

import sqlalchemy as sa  # isort: skip - after schema, which says how to install it

from watermark.ledger import entry as ledger_entry
from watermark.ledger.session import LogSession, LostLogError

__all__ = ["Ledger", "LedgerStatus"]

#: The writer works for so long before it pauses for others, who would otherwise get the interpreter after 5 ms.
_SLICE_S: Final = 0.5e-3
_PAUSE_S: Final = 50e-6

#: The queue's share from which on the writer pauses no more: where it is that far behind, keeping up comes first.
_BEHIND: Final = 0.25

#: The queue's share beyond which no more requests should be admitted: the rest is for those being answered.
_HIGH_WATER: Final = 0.9

_FIRST_RETRY_S: Final = 0.05
_LAST_RETRY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatus:
    """How a ledger stands."""

    accepted: int
    """Responses of this session that `append` took."""
    written: int
    """Of those, how many are in the database."""
    capacity: int
    """How many may wait."""
    ready: bool
    """Whether a server should admit a request that it must record."""
    problem: str | None
    """What the last attempt to write ran into; None once one succeeded."""


class Ledger:
    """A log that is open for writing. Made by `open`; safe to use from any thread, and from asyncio.

    Not usable in a process forked after it was opened: open it there.
    """

    def __init__(
        self,
        session: LogSession,
        *,
        name: str,
        retention: Retention,
        capacity: int,
        flush_interval: float,
        heartbeat: float,
    ) -> None:
        self.origin = session.origin
        self.retention = retention
        self.capacity = capacity
        self._half_full = (capacity + 1) // 2
        self._session = session
        self._name = name
        self._flush_interval = flush_interval
        self._heartbeat = heartbeat
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._pending: deque[LedgerRecord] = deque()
        self._accepted = 0
        self._written = 0
        self._closing = False
        self._deadline: float | None = None
        self._problem: str | None = None
        self._dead: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"ledger {self.origin}", daemon=True)

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        *,
        origin: str,
        retention: Retention | str = Retention.ids,
        capacity: int = 20_000,
        flush_interval: float = 0.05,
        heartbeat: float = 5.0,
    ) -> Self:
        """Open a log for writing; the database and the log are made if they are not there.

        Args:
            url: a file's name, ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``.
            origin: the log's unique name, one a server: e.g. "host-a.example/ledger".
            retention: what is kept of prompts and responses beside their digests.
            capacity: responses that may wait to be written.
            flush_interval: seconds for which responses gather before they are written.
            heartbeat: seconds after which an idle writer notes that it still lives.

        Raises:
            LedgerError: the database cannot be reached or is of a newer version, or the log has a writer already.
            UsageError: the URL, the origin or a number is none.
            MissingExtraError: a library is not installed.
        """
        check_key_name(origin)
        if retention not in tuple(Retention):
            raise UsageError(f"retention: expected {', '.join(Retention)}, got {printable(retention, 40)}")
        if capacity < 1 or flush_interval < 0 or heartbeat <= 0:
            raise UsageError("capacity: expected 1 or more; flush_interval: 0 or more; heartbeat: more than 0")
        engine = connect_engine(ledger_url(url), create=True)
        try:
            upgrade(engine)
            session = LogSession(engine, origin)
        except sa.exc.DBAPIError as error:
            raise LedgerError(f"{shown_url(engine.url)}: cannot open the ledger: {_said(error)}") from None
        ledger = cls(
            session,
            name=shown_url(engine.url),
            retention=Retention(retention),
            capacity=capacity,
            flush_interval=flush_interval,
            heartbeat=heartbeat,
        )
        # Before the interpreter's end daemon threads are stopped wherever they are: the queue is written before that.
        atexit.register(ledger._close_quietly)
        ledger._thread.start()
        return ledger

    def append(self, record: LedgerRecord, *, timeout: float = 0.0) -> None:
        """Take a record. It is written soon, by another thread; `flush` waits for that.

        Args:
            record: of a response that was served.
            timeout: seconds to wait for room where the queue is full. In asyncio leave it at 0, or use `append_async`.

        Raises:
            LedgerError: the queue is full, or the ledger is closed or can no longer be written. The record was not
                taken.
        """
        if self._process != os.getpid():
            raise LedgerError("the ledger was opened before this process was forked: open it in each process")
        with self._lock:
            if timeout > 0 and not self._has_room():
                self._room.wait_for(lambda: self._has_room() or self._stopped(), timeout)
            self._take(record)

    async def append_async(self, record: LedgerRecord, *, timeout: float = 1.0) -> None:
        """Take a record; where the queue is full, wait for room without holding up the event loop.

        Raises:
            LedgerError: as for `append`.
        """
        until = time.monotonic() + timeout
        while not self._has_room() and not self._stopped() and time.monotonic() < until:
            await asyncio.sleep(self._flush_interval / 4 or 0.001)
        self.append(record)

    def ready(self) -> bool:
        """Say whether a request may be admitted that must be recorded: the writer writes, and the queue has room."""
        return (
            self._problem is None
            and not self._stopped()
            and self._accepted - self._written < _HIGH_WATER * self.capacity
        )

    def status(self) -> LedgerStatus:
        """Return how the ledger stands."""
        with self._lock:
            return LedgerStatus(
                accepted=self._accepted,
                written=self._written,
                capacity=self.capacity,
                ready=self.ready(),
                problem=self._dead or self._problem,
            )

    def flush(self, *, timeout: float = 30.0) -> None:
        """Wait until everything that was accepted before is written.

        Raises:
            LedgerError: it was not in time, or never will be.
        """
        with self._lock:
            wanted = self._accepted
            self._room.wait_for(lambda: self._written >= wanted or self._dead is not None, timeout)
            if self._written < wanted:
                raise LedgerError(self._missing(wanted - self._written))

    def close(self, *, timeout: float = 30.0) -> None:
        """Write everything that was accepted, end the session and let go of the log. Nothing happens the second time.

        Args:
            timeout: seconds within which the database has to take it; longer only where a batch is being written.

        Raises:
            LedgerError: not everything could be written; the message says how much. The next opening records the gap.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._deadline = time.monotonic() + timeout
            self._work.notify_all()
            self._room.notify_all()
        self._thread.join()
        atexit.unregister(self._close_quietly)
        self._session.release()
        if self._written < self._accepted or self._dead or self._problem:
            raise LedgerError(self._missing(self._accepted - self._written))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self._name!r}, origin={self.origin!r})"

    # What follows up to the writer's thread is called with the lock held, or reads what is set in one step.

    def _has_room(self) -> bool:
        return self._accepted - self._written < self.capacity

    def _stopped(self) -> bool:
        return self._closing or self._dead is not None

    def _take(self, record: LedgerRecord) -> None:
        if self._dead is not None:
            raise LedgerError(f"the ledger can no longer be written: {self._dead}")
        if self._closing:
            raise LedgerError("the ledger is closed")
        if not self._has_room():
            why = f" ({self._problem})" if self._problem else ""
            raise LedgerError(
                f"the ledger's queue is full: {self.capacity} responses wait to be written{why}. Admit requests only "
                "while ready() is true"
            )
        self._pending.append(record)
        self._accepted += 1
        self._session.count(self._accepted)
        if len(self._pending) in (1, self._half_full):
            self._work.notify()

    def _missing(self, count: int) -> str:
        why = self._dead or self._problem or "the database took too long"
        return f"{self._name}: {count} responses that were accepted are not written: {why}"

    # The writer's thread.

    def _run(self) -> None:
        try:
            while True:
                taken, closing = self._gather()
                if not self._persist(self._rows_of(taken, closing=closing), len(taken), closing=closing):
                    return
                if closing and not self._pending:
                    return
        except BaseException as error:  # A defect of ours must not pass for an idle writer.
            self._die(f"internal error: {type(error).__name__}")
            raise

    def _gather(self) -> tuple[deque[LedgerRecord], bool]:
        """Wait for records, let more gather, and take them; none on a heartbeat."""
        with self._lock:
            self._work.wait_for(lambda: self._pending or self._closing, self._heartbeat)
            if self._pending and not self._closing:
                # However many come, they are one transaction; a queue that is half full need not wait.
                self._work.wait_for(
                    lambda: self._closing or len(self._pending) >= self._half_full, self._flush_interval
                )
            taken, self._pending = self._pending, deque()
            return taken, self._closing

    def _rows_of(self, records: Iterable[LedgerRecord], *, closing: bool) -> ledger_entry.Rows:
        rows = self._session.rows()
        until = time.perf_counter() + _SLICE_S
        for record in records:
            rows.add(ledger_entry.response(record, self.retention))
            if time.perf_counter() > until:
                if not closing and len(self._pending) < _BEHIND * self.capacity:
                    time.sleep(_PAUSE_S)
                until = time.perf_counter() + _SLICE_S
        if closing:
            self._session.end(rows, accepted=self._accepted)
        return rows

    def _persist(self, rows: ledger_entry.Rows, responses: int, *, closing: bool) -> bool:
        """Write the rows, however often it takes; return whether they are written."""
        pause = _FIRST_RETRY_S
        while True:
            written = self._written + responses
            try:
                self._session.write(rows, accepted=self._accepted, written=written, closing=closing)
            except LostLogError as error:
                self._die(str(error))
                return False
            except (LedgerError, sa.exc.DBAPIError) as error:
                self._problem = _said(error)
                self._session.disconnect()
            else:
                break
            with self._lock:
                left = self._deadline - time.monotonic() if self._deadline is not None else pause
                if left <= 0:
                    return False
                # Closing wakes it, for one more try; so may a record, which does no harm.
                self._work.wait(min(pause, left))
            pause = min(2 * pause, _LAST_RETRY_S)
        with self._lock:
            self._written = written
            self._problem = None
            self._room.notify_all()
        return True

    def _die(self, why: str) -> None:
        with self._lock:
            self._dead = why
            self._room.notify_all()

    def _close_quietly(self) -> None:
        # At the interpreter's end nobody is there to catch it; the gap is recorded by the next opening.
        with contextlib.suppress(LedgerError):
            self.close()


def _said(error: LedgerError | sa.exc.DBAPIError) -> str:
    """Return what an error says, on one line; of the database's what the driver said, without the statement."""
    if isinstance(error, sa.exc.DBAPIError):
        return printable(f"{type(error.orig).__name__}: {error.orig}".split("\n")[0], 200)
    return str(error)
