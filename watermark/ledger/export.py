"""A ledger as a file: Parquet or JSON Lines, in the order of the responses' start, written whole or not at all.

The order is what the supervised test asks for (`detect.supervised`), and a JSON Lines export is what `taggant detect
text` and `taggant detect model --served` read: a record has ``token_ids``, ``response``, ``prompt`` and
``fingerprint`` under these names, as far as they were kept.

An export that has gaps says so: in its summary, in the Parquet file's metadata (key ``taggant.ledger``), and beside a
JSON Lines file in ``FILE.summary.json``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from watermark import __version__
from watermark.errors import MissingExtraError, UsageError, printable
from watermark.ledger.reader import PAGE, ROW, LedgerReader, Log
from watermark.ledger.record import Kind, timestamp
from watermark.ledger.schema import ENTRIES
from watermark.ledger.verify import Gap, gap_of
from watermark.whole_file import write_whole, writing_whole

import sqlalchemy as sa  # isort: skip - after schema, which says how to install it

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ExportSummary", "Filter", "export_ledger", "instant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which responses are exported. Times are of their start, as `timestamp` writes them."""

    origin: str | None = None
    since: str | None = None
    """At or after."""
    until: str | None = None
    """Before."""
    account: str | None = None
    scope: str | None = None
    marked: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What an export holds, and what it may lack."""

    responses: int
    logs: tuple[str, ...]
    """Origins of the logs that were read."""
    gaps: tuple[Gap, ...]
    """Of these logs, in the time asked for: responses that were served and are not here."""
    open_sessions: tuple[tuple[str, str], ...]
    """Origin of each log that has a writer, or one that crashed since, and when it was last seen to live."""
    filter: Filter

    def to_json(self) -> dict[str, Any]:
        """Return the summary as it is written beside the export, and printed."""
        return {
            "schema": "taggant/ledger-export/1",
            "version": __version__,
            "responses": self.responses,
            "logs": list(self.logs),
            "gaps": [{**asdict(gap), "missing": gap.missing} for gap in self.gaps],
            "open_sessions": [{"origin": origin, "seen": seen} for origin, seen in self.open_sessions],
            "filter": asdict(self.filter),
        }


def instant(text: str) -> str:
    """Return a date or an RFC 3339 time as the ledger writes times. Without a zone it is UTC.

    >>> instant("2026-10-01")
    '2026-10-01T00:00:00.000000Z'

    Raises:
        UsageError: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"expected a date or a time, e.g. 2026-10-01 or 2026-10-01T12:00:00Z, got {printable(text, 40)!r}"
        ) from None
    return timestamp(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def export_ledger(reader: LedgerReader, path: Path, *, chosen: Filter | None = None) -> ExportSummary:
    """Write the responses chosen to a ``.parquet``, ``.jsonl`` or ``.ndjson`` file, in the order of their start.

    Args:
        reader: of the ledger.
        path: the file; one that is there is replaced once the new one is whole.
        chosen: which responses; all, by default.

    Raises:
        UsageError: the suffix is another, the log is not there, or the file cannot be written.
        MissingExtraError: pyarrow is not installed.
        LedgerError: the database fails.
    """
    chosen = chosen or Filter()
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".jsonl", ".ndjson"):
        raise UsageError(f"{printable(path)}: expected a name that ends in .parquet, .jsonl or .ndjson")
    logs = {log.id: log for log in (reader.logs() if chosen.origin is None else (reader.log(chosen.origin),))}
    gaps = tuple(_gaps(reader, logs, chosen))
    summary = ExportSummary(
        responses=reader.fetch(_select([sa.func.count().label("responses")], logs, chosen))[0]["responses"],
        logs=tuple(log.origin for log in logs.values()),
        gaps=gaps,
        open_sessions=tuple((log.origin, log.seen or "") for log in logs.values() if log.session is not None),
        filter=chosen,
    )
    said = json.dumps(summary.to_json(), indent=1) + "\n"
    with writing_whole(path, what="the export") as partial:
        pages = _pages(reader, logs, chosen)
        if suffix == ".parquet":
            _write_parquet(partial, pages, logs, said)
        else:
            with open(partial, "w", encoding="utf-8", newline="\n") as file:
                for page in pages:
                    file.writelines(_json_line(row, logs) for row in page)
    if suffix != ".parquet":
        write_whole(path.with_name(path.name + ".summary.json"), said, what="the export's summary")
    return summary


def _where(logs: dict[int, Log]) -> sa.ColumnElement[bool]:
    """Return what keeps a query below the heads as they were when the export began.

    An expression that no index serves, so that SQLite walks the index of the order and does not sort each page anew.
    """
    if not logs:
        return sa.false()
    return ENTRIES.c.leaf_index < sa.case({log.id: log.size for log in logs.values()}, value=ENTRIES.c.log_id, else_=0)


_PLACE: Final = (ENTRIES.c.started, ENTRIES.c.log_id, ENTRIES.c.leaf_index)


def _select(columns: Sequence[Any], logs: dict[int, Log], chosen: Filter) -> sa.Select[Any]:
    """Return the query for the responses chosen."""
    query = sa.select(*columns).where(ENTRIES.c.kind == Kind.response.value, _where(logs))
    if chosen.since is not None:
        query = query.where(ENTRIES.c.started >= chosen.since)
    if chosen.until is not None:
        query = query.where(ENTRIES.c.started < chosen.until)
    if chosen.account is not None:
        query = query.where(ENTRIES.c.account == chosen.account)
    if chosen.scope is not None:
        query = query.where(ENTRIES.c.scope == chosen.scope)
    if chosen.marked is not None:
        query = query.where(ENTRIES.c.marked.is_(chosen.marked))
    return query


def _pages(reader: LedgerReader, logs: dict[int, Log], chosen: Filter) -> Iterator[list[dict[str, Any]]]:
    """Yield the responses chosen by pages, in the order of start, then log, then leaf."""
    query = _select(ROW, logs, chosen).order_by(*_PLACE).limit(PAGE)
    page = reader.fetch(query)
    while page:
        yield page
        if len(page) < PAGE:
            return
        last = page[-1]
        page = reader.fetch(query.where(sa.tuple_(*_PLACE) > (last["started"], last["log_id"], last["leaf_index"])))


def _gaps(reader: LedgerReader, logs: dict[int, Log], chosen: Filter) -> Iterator[Gap]:
    """Yield the gaps that touch the time chosen."""
    query = sa.select(*ROW).where(ENTRIES.c.kind == Kind.gap.value, _where(logs)).order_by(ENTRIES.c.started)
    for row in reader.fetch(query):
        gap = gap_of(logs[row["log_id"]].origin, row)
        if (chosen.since is None or gap.found >= chosen.since) and (chosen.until is None or gap.seen < chosen.until):
            yield gap


def _record(row: dict[str, Any], logs: dict[int, Log]) -> dict[str, Any]:
    """Return a row as a record: ids as arrays, texts as texts."""
    digests = json.loads(row["digests"])
    texts = {name: None if row[name] is None else row[name].decode() for name in ("response", "prompt")}
    ids = {
        name: None if row[name] is None else np.frombuffer(row[name], dtype="<u4")
        for name in ("token_ids", "prompt_token_ids")
    }
    return {
        "id": row["id"],
        "origin": logs[row["log_id"]].origin,
        "index": row["leaf_index"],
        **{name: row[name] for name in ("started", "ended", "account", "model", "scope", "fingerprint", "scheme")},
        "parameters": row["parameters"],
        "marked": bool(row["marked"]),
        "reason": row["reason"],
        "digests": row["digests"],
        **texts,
        "messages": texts["prompt"] is not None and "prompt_messages" in digests,
        **ids,
    }


def _json_line(row: dict[str, Any], logs: dict[int, Log]) -> str:
    record = _record(row, logs)
    if record.pop("messages"):
        record["prompt"] = json.loads(record["prompt"])
    for name in ("parameters", "digests"):
        record[name] = json.loads(record[name])
    for name in ("token_ids", "prompt_token_ids"):
        record[name] = None if record[name] is None else record[name].tolist()
    return json.dumps(record, ensure_ascii=False) + "\n"


_TEXT_COLUMNS: Final = ("account", "model", "scope", "fingerprint", "scheme", "parameters", "reason", "digests")


def _write_parquet(path: Path, pages: Iterator[Sequence[dict[str, Any]]], logs: dict[int, Log], summary: str) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("a Parquet export needs pyarrow: pip install pyarrow") from None
    moment, ids, text = pa.timestamp("us", tz="UTC"), pa.list_(pa.uint32()), pa.string()
    schema = pa.schema(
        [
            pa.field("id", text),
            pa.field("origin", text),
            pa.field("index", pa.int64()),
            pa.field("started", moment),
            pa.field("ended", moment),
            *(pa.field(name, text) for name in _TEXT_COLUMNS),
            pa.field("marked", pa.bool_()),
            pa.field("response", text),
            # One of the two: a text, or chat messages as JSON.
            pa.field("prompt", text),
            pa.field("prompt_messages", text),
            pa.field("token_ids", ids),
            pa.field("prompt_token_ids", ids),
        ],
        metadata={"taggant.ledger": summary},
    )
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
        for page in pages:
            writer.write_table(_table([_record(row, logs) for row in page], schema))


def _table(records: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    for record in records:
        messages = record.pop("messages")
        record["prompt_messages"] = record["prompt"] if messages else None
        record["prompt"] = None if messages else record["prompt"]
        for name in ("started", "ended"):
            record[name] = datetime.fromisoformat(record[name])
    return pa.Table.from_pylist(records, schema=schema)
