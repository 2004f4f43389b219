"""Checking a whole ledger: every row against its leaf, every leaf against the tree, the tree against what was signed.

What is found: any change of a row, of what was kept of a response, of the tree's nodes or of a log's head; a row taken
out, put in or moved; a session that neither ended nor left a gap entry. Who rewrites a log consistently from some leaf
on, heads and stored checkpoints included, is found by a checkpoint that was published before and is given here.

What is not found: a response that was never recorded. Contents that were deleted are no fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final

from watermark.checkpoint import Checkpoint
from watermark.errors import UsageError, VerificationError, printable
from watermark.ledger.reader import LedgerReader, Log
from watermark.ledger.record import Kind
from watermark.ledger.schema import ENTRIES, NODES
from watermark.merkle import EMPTY_ROOT, TILE_HEIGHT, Frontier, leaf_hash
from watermark.signed_note import NoteVerifier

import sqlalchemy as sa  # isort: skip - after schema, which says how to install it

from watermark.ledger.entry import leaf_of

__all__ = ["Gap", "VerifiedLog", "gap_of", "verify_ledger"]

#: The type of each column that may not be null, and of each that may.
_TEXTS: Final = ("kind", "id", "started", "ended", "parameters", "digests")
_MAYBE_TEXTS: Final = ("account", "model", "scope", "fingerprint", "scheme", "reason")
_BYTES: Final = ("nonce", "leaf_hash")
_MAYBE_BYTES: Final = ("token_ids", "prompt_token_ids", "response", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A session that did not end: a crash, a kill, a power failure. Responses may be missing."""

    origin: str
    session: str
    opened: str
    seen: str
    """When the writer last wrote or noted that it lived: what is missing is from then on."""
    found: str
    """When the next writer found it: what is missing is from before."""
    written: int
    """Responses of the session that are in the log."""
    accepted: int
    """Responses that the session had accepted."""
    accepted_exact: bool
    """Whether that is exact (SQLite); else it is what the last batch or heartbeat knew, and more may be missing."""

    def sentence(self) -> str:
        """Say the gap in a sentence."""
        count = f"{self.missing:,}" if self.accepted_exact else f"{self.missing:,} or more"
        return (
            f"{printable(self.origin)}: gap: a session did not end; {count} of its responses are missing, served after "
            f"{self.seen} and before {self.found}"
        )

    @property
    def missing(self) -> int:
        """How many responses are known to be missing."""
        return max(0, self.accepted - self.written)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLog:
    """A log that was checked, leaf by leaf."""

    origin: str
    size: int
    root: bytes
    responses: int
    sessions: int
    gaps: tuple[Gap, ...]
    open_since: str | None
    """When the session began that is still open, of a writer that lives or has crashed since; None if there is none."""
    checkpoints: int
    """How many signed heads, stored or given, the leaves were checked against."""

    def sentence(self) -> str:
        """Say in a sentence what was checked."""
        opened = f"; a session is open since {self.open_since}" if self.open_since else ""
        return (
            f"{printable(self.origin)}: {self.size:,} leaves verified: {self.responses:,} responses, {self.sessions:,} "
            f"sessions, {len(self.gaps):,} gaps, {self.checkpoints:,} checkpoints{opened}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the log as ``ledger verify --json`` prints it."""
        gaps = [{**asdict(gap), "missing": gap.missing} for gap in self.gaps]
        return {**asdict(self), "root": self.root.hex(), "gaps": gaps}


def gap_of(origin: str, row: Mapping[str, Any]) -> Gap:
    """Return the gap that an entry of that kind records."""
    return Gap(origin=origin, session=row["id"], **json.loads(row["parameters"]))


def verify_ledger(
    reader: LedgerReader,
    *,
    origin: str | None = None,
    published: Sequence[str] = (),
    verifiers: Sequence[NoteVerifier] = (),
) -> tuple[VerifiedLog, ...]:
    """Check a ledger from its rows up.

    Args:
        reader: of the ledger.
        origin: of one log; else all are checked.
        published: signed checkpoints that were published before, of any of the logs.
        verifiers: the logs' public keys, for *published*.

    Raises:
        VerificationError: something was changed; the message names the first bad row.
        UsageError: there is no such log, or a published checkpoint is of none of the logs.
    """
    heads = [Checkpoint.open(note, verifiers) for note in published]
    logs = reader.logs() if origin is None else (reader.log(origin),)
    for head in heads:
        if head.origin not in {log.origin for log in logs}:
            raise UsageError(f"the checkpoint is of the log {printable(head.origin)}, which is not among those checked")
    return tuple(_verify_log(reader, log, [head for head in heads if head.origin == log.origin]) for log in logs)


def _verify_log(reader: LedgerReader, log: Log, published: Sequence[Checkpoint]) -> VerifiedLog:
    heads = list(published)
    for stored in reader.checkpoints(log):
        head = Checkpoint.open(stored.note, [stored.verifier])
        if head.origin != log.origin:
            raise _bad(log, f"a stored checkpoint is of the log {printable(head.origin)}")
        heads.append(head)
    # A head may have been signed, and leaves added, after the log's was read.
    heads = [head for head in heads if head.size <= log.size or head in published]
    expected: dict[int, set[bytes]] = {}
    for head in heads:
        expected.setdefault(head.size, set()).add(head.root)
    expected.setdefault(log.size, set()).add(log.root)
    expected.setdefault(0, set()).add(EMPTY_ROOT)
    largest = max(expected)
    if largest > log.size:
        raise _bad(log, f"it has {log.size} leaves and a checkpoint of {largest} was signed: leaves were removed")
    tree, sessions = Frontier(), _Sessions(log)
    _check_root(log, tree, expected)
    for page in reader.pages(log):
        nodes = _nodes_of(reader, log, page)
        for row in page:
            try:
                _check_row(log, row, tree.size)
                sessions.add(row)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                # Its leaf's hash was changed with it, so that it still fits itself.
                raise _bad(log, f"{_named(row)}: a column holds what the ledger never writes") from None
            for level, position, value in tree.append(bytes(row["leaf_hash"])):
                if nodes.get((level, position)) != value:
                    first = position << level
                    raise _bad(
                        log,
                        f"one of the entries {first} to {tree.size - 1} is not the one that was logged, or the tree's "
                        f"node {position} of level {level} was changed",
                    )
            _check_root(log, tree, expected)
    if tree.size != log.size:
        raise _bad(log, f"entry {tree.size}: missing; the log has {log.size} leaves")
    if tree.to_bytes() != log.frontier:
        raise _bad(log, "the frontier of its head was changed")
    _check_beyond(reader, log)
    sessions.finish()
    return VerifiedLog(
        origin=log.origin,
        size=log.size,
        root=log.root,
        responses=sessions.responses,
        sessions=sessions.begun,
        gaps=tuple(sessions.gaps),
        open_since=sessions.open_since,
        checkpoints=len(heads),
    )


class _Sessions:
    """Follows a log's sessions: each begins, and ends or leaves a gap, before the next."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._open: str | None = None
        self.open_since: str | None = None
        self.begun = self.responses = 0
        self.gaps: list[Gap] = []

    def add(self, row: Mapping[str, Any]) -> None:
        kind = row["kind"]
        if kind == Kind.response.value:
            self.responses += 1
            if self._open is None:
                raise _bad(self._log, f"{_named(row)}: stands between sessions")
        elif kind == Kind.opened.value:
            if self._open is not None:
                raise _bad(self._log, f"{_named(row)}: a session begins in another that neither ended nor left a gap")
            self._open, self.open_since = row["id"], row["started"]
            self.begun += 1
        elif kind in (Kind.closed.value, Kind.gap.value):
            if self._open != row["id"]:
                raise _bad(self._log, f"{_named(row)}: ends a session that is not open")
            self._open = self.open_since = None
            if kind == Kind.gap.value:
                self.gaps.append(gap_of(self._log.origin, row))
        else:
            raise _bad(self._log, f"{_named(row)}: unknown kind {printable(kind, 40)}")

    def finish(self) -> None:
        if self._open != self._log.session:
            raise _bad(self._log, "its head names another session than its last entry: a gap was hidden")


def _check_row(log: Log, row: Mapping[str, Any], index: int) -> None:
    if row["leaf_index"] != index:
        raise _bad(log, f"entry {index}: missing")
    typed = (
        all(isinstance(row[name], str) for name in _TEXTS)
        and all(isinstance(row[name], str | None) for name in _MAYBE_TEXTS)
        and all(isinstance(row[name], bytes) for name in _BYTES)
        and all(isinstance(row[name], bytes | None) for name in _MAYBE_BYTES)
        and (row["marked"] is None or (isinstance(row["marked"], int) and row["marked"] in (0, 1)))
    )
    if not typed:
        raise _bad(log, f"{_named(row)}: a column holds what the ledger never writes")
    if leaf_hash(leaf_of(row)) != row["leaf_hash"]:
        raise _bad(log, f"{_named(row)}: its columns are not those that were logged")
    digests = json.loads(row["digests"])
    for name in _MAYBE_BYTES:
        content = row[name]
        if content is None:
            continue
        key = "prompt_messages" if name == "prompt" and "prompt_messages" in digests else name
        if sha256(content).hexdigest() != digests.get(key):
            raise _bad(log, f"{_named(row)}: its {name} is not what was logged")


def _nodes_of(reader: LedgerReader, log: Log, page: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], bytes]:
    """Return the stored nodes that the leaves of a page complete."""
    found: dict[tuple[int, int], bytes] = {}
    first, last = page[0]["leaf_index"], page[-1]["leaf_index"]
    for level in range(TILE_HEIGHT, 64, TILE_HEIGHT):
        low, high = (first >> level), (last + 1 >> level)
        if low < high:
            query = sa.select(NODES).where(
                NODES.c.log_id == log.id, NODES.c.level == level, NODES.c.position >= low, NODES.c.position < high
            )
            found |= {(level, row["position"]): bytes(row["hash"]) for row in reader.fetch(query)}
    return found


def _check_root(log: Log, tree: Frontier, expected: Mapping[int, set[bytes]]) -> None:
    roots = expected.get(tree.size)
    if roots is not None and roots != {tree.root()}:
        raise _bad(
            log,
            f"its first {tree.size} entries do not give the root of the head or checkpoint of that size: one of them "
            "is not the one that was logged, or the head was changed",
        )


def _check_beyond(reader: LedgerReader, log: Log) -> None:
    """Make sure that no row stands where none can: beyond the head, as it is now, or of a level that is not kept."""
    head = sa.text("(SELECT size FROM taggant_logs WHERE taggant_logs.id = :log)").bindparams(log=log.id)
    beyond = sa.select(sa.func.min(ENTRIES.c.leaf_index).label("first")).where(
        ENTRIES.c.log_id == log.id, sa.or_(ENTRIES.c.leaf_index >= head, ENTRIES.c.leaf_index < 0)
    )
    first = reader.fetch(beyond)[0]["first"]
    if first is not None:
        raise _bad(log, f"entry {first}: stands beyond the log's head")


def _named(row: Mapping[str, Any]) -> str:
    return f"entry {row['leaf_index']} ({printable(row['id'], 60)})"


def _bad(log: Log, what: str) -> VerificationError:
    return VerificationError(f"log {printable(log.origin)}: {what}")
