"""Who may write a log: one process at a time, and how one that crashed is told from one that lives.

A lock here is held by the operating system or by the database server for as long as its holder lives, so nobody has
to guess from a heartbeat's age whether a silent writer is dead. `FileLock` (SQLite) is a lock on a file beside the
database, which the kernel drops when the process ends, however it ends. `AdvisoryLock` (PostgreSQL) is held by the
writer's connection, which the server drops when the process or its host is gone (after the TCP keepalive, in the
latter case). Behind both stands a fence: a batch is only written while the log's row still names this writer's session
(`watermark.ledger`), so that a writer that lost its lock without noticing cannot write over its successor.

`FileLock` also counts what was accepted in a page of memory that is the file's: it outlives a killed process, and the
gap that the next writer records says exactly how many responses are missing. After a restart of the machine the page
may be an old one, so it names the boot that it was written in, and then the count is not believed.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import weakref
from hashlib import sha256
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from watermark.errors import LedgerError, printable

__all__ = ["AdvisoryLock", "FileLock", "LogHeldError"]

#: A session's id and the machine's boot as 16 bytes each, and how many responses the session accepted.
_COUNTER: Final = struct.Struct("<16s16sQ")
_COUNT: Final = struct.Struct("<Q")
_COUNT_AT: Final = _COUNTER.size - _COUNT.size


class LogHeldError(LedgerError):
    """Report a log that another writer holds."""


class FileLock:
    """Hold a log of a SQLite database.

    Args:
        database: the database's file; the lock is a file beside it, which stays.
        origin: the log's.

    Raises:
        LogHeldError: somebody else holds it.
        LedgerError: the file cannot be made.
    """

    def __init__(self, database: Path, origin: str) -> None:
        database = Path(os.path.realpath(database))  # One lock, whatever name the file is called by.
        self.path = database.with_name(f"{database.name}.{sha256(origin.encode()).hexdigest()[:12]}.writer")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(f"{printable(self.path)}: cannot lock the log: {error.strerror}") from None
        try:
            _lock(self._file)
        except OSError:
            os.close(self._file)
            raise LogHeldError(
                f"{printable(database)}: the log {printable(origin)} is being written by another process, or elsewhere "
                "in this one. A log has one writer: give each server an origin of its own"
            ) from None
        if os.fstat(self._file).st_size < _COUNTER.size:
            os.ftruncate(self._file, _COUNTER.size)
        self._page = mmap.mmap(self._file, _COUNTER.size)
        _HELD.add(self)

    def accepted(self, session: str) -> int | None:
        """Return how many responses a session accepted, or None if that is not known exactly."""
        held, boot, count = _COUNTER.unpack_from(self._page)
        known = held == bytes.fromhex(session) and boot == _boot() != bytes(16)
        return int(count) if known else None

    def begin(self, session: str) -> None:
        """Count for a session, from 0."""
        _COUNTER.pack_into(self._page, 0, bytes.fromhex(session), _boot(), 0)

    def count(self, accepted: int) -> None:
        """Note how many responses the session has accepted by now."""
        _COUNT.pack_into(self._page, _COUNT_AT, accepted)

    def release(self) -> None:
        """Let go. Nothing happens the second time."""
        if not self._page.closed:
            self._page.close()
            os.close(self._file)
            _HELD.discard(self)


#: Of this process. A forked child would keep them held after its parent's end, so it lets go of its copies.
_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _boot() -> bytes:
    """Return what names the machine's boot, 16 bytes; zeros where the system has no such name."""
    try:
        return bytes.fromhex(
            Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
        )
    except (OSError, ValueError):
        return bytes(16)


class AdvisoryLock:
    """Hold a log of a PostgreSQL database, for as long as *connection* lives.

    Raises:
        LogHeldError: another connection holds it.
    """

    def __init__(self, connection: sa.Connection, origin: str) -> None:
        # One database may hold ledgers in several schemas.
        named = f"taggant/ledger\0{connection.dialect.default_schema_name}\0{origin}"
        key = int.from_bytes(sha256(named.encode()).digest()[:8], "big", signed=True)
        held = connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar()
        connection.commit()
        if not held:
            raise LogHeldError(
                f"the log {printable(origin)} is being written by another connection. A log has one writer: give each "
                "server an origin of its own; of a writer that was cut off the database server lets go when it notices"
            )


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
