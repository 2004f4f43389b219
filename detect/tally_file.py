"""A tally on disk: Parquet, a row a window, with what it is of in the schema's metadata (extra `corpora`).

Schema `taggant/tally/1`. Columns: `window`, the ids, a fixed-size list of uint32; `token`, a list of uint32; `said`,
how often each was said, a list of uint64; with a reference also `expected`, its mass in units of 2^-32, and
`expected_first`, what of it stands at the first position of a window in a text (`detect.reference_check`), lists of
uint64, and `information`, the window's sum of 1 - sum p_ref^2 in the same units, uint64. Rows stand in the order of
(SipHash-2-4 of the window under the zero key, window, token), and none twice. The key `taggant` of the metadata holds a
JSON object, `About`, in RFC 8785's form, with the SHA-256 of the rows. No key of a watermark is in it or went into it.

A file is read as what a stranger made: a pair that stood twice would void the tests, so that order, counts, level and
digest are checked. What was said cannot be checked without the texts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rfc8785

from detect.arrow_rows import need_pyarrow
from detect.records import Accounting
from detect.row_kernels import disordered
from detect.strict_json import parse_object
from detect.tally_rows import MAX_LEVEL, TallyRows, last_hash
from watermark import kernels
from watermark.errors import InputError, TaggantError, UsageError, printable
from watermark.whole_file import writing_whole

__all__ = ["SCHEMA", "About", "TallyFile", "merge_tallies", "read_tally", "write_tally"]

SCHEMA = "taggant/tally/1"

_KEY = b"taggant"

#: Windows in a row group.
_GROUP = 2**17

#: Windows and pairs that a file may hold: more than any capacity that fits a machine.
_MOST = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a tally is of. Everything in it adds up, whatever the order of the texts."""

    window: int
    special_ids: tuple[int, ...]
    tokenizer: str
    """The tokenizer's digest."""
    capacity: int
    prompt_policy: str
    duplicates: str
    """"once": identical records count once within what one build read; "kept"; "near-duplicates of 0.8 left out"."""
    reference: str | None = None
    """The name of the reference whose mass is kept, with what tells it from others."""
    reference_fingerprints: frozenset[str] = frozenset()
    """Scope fingerprints that its source's records name: under those scopes it is no reference."""
    tokens: int = 0
    """Ids in all texts."""
    positions: int = 0
    """Positions that are in, before windows were sampled."""
    left_out_prompt: int = 0
    texts: int = 0
    without_prompt: int = 0
    from_ids: int = 0
    fingerprints: frozenset[str] = frozenset()
    inputs: tuple[tuple[str, str], ...] = ()
    """SHA-256 and name of each input, sorted."""
    accounting: Accounting = field(default_factory=Accounting)

    def added(self, other: About) -> About:
        """Return the sum; *other* is of the same kind."""
        accounting = Accounting()
        accounting.add(self.accounting)
        accounting.add(other.accounting)
        return replace(
            self,
            tokens=self.tokens + other.tokens,
            positions=self.positions + other.positions,
            left_out_prompt=self.left_out_prompt + other.left_out_prompt,
            texts=self.texts + other.texts,
            without_prompt=self.without_prompt + other.without_prompt,
            from_ids=self.from_ids + other.from_ids,
            fingerprints=self.fingerprints | other.fingerprints,
            inputs=tuple(sorted({*self.inputs, *other.inputs})),
            accounting=accounting,
        )

    def kind(self) -> dict[str, Any]:
        """Return what two tallies that are added up have in common."""
        return {
            "window": self.window,
            "special_ids": list(self.special_ids),
            "tokenizer": self.tokenizer,
            "capacity": self.capacity,
            "prompt_policy": self.prompt_policy,
            "duplicates": self.duplicates,
            "reference": self.reference,
            **({} if self.reference is None else {"reference_fingerprints": sorted(self.reference_fingerprints)}),
        }

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            **self.kind(),
            "tokens": self.tokens,
            "positions": self.positions,
            "left_out_prompt": self.left_out_prompt,
            "texts": self.texts,
            "texts_without_prompt": self.without_prompt,
            "texts_scored_by_recorded_ids": self.from_ids,
            "fingerprints": sorted(self.fingerprints),
            "inputs": [list(one) for one in self.inputs],
            "accounting": self.accounting.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyFile:
    """A tally with what it is of."""

    about: About
    rows: TallyRows

    def digest(self) -> str:
        """Return the SHA-256 of the rows: of each column's little-endian bytes, one after the other."""
        sha256 = hashlib.sha256()
        windows, starts, tokens, said, expected, information = self.rows.columns()[1:]
        masses = [expected[:, 0], expected[:, 1]] if len(expected) else [expected]
        columns: list[npt.NDArray[Any]] = [windows, starts, tokens, said, *masses, information]
        for column in columns:
            sha256.update(len(column).to_bytes(8, "little"))
            sha256.update(np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<"), copy=False).data)
        return sha256.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return what the file's metadata holds."""
        return {
            "schema": SCHEMA,
            **self.about.to_json(),
            "level": self.rows.level,
            "windows": len(self.rows.hashes),
            "pairs": self.rows.pairs,
            "rows_sha256": self.digest(),
        }


def write_tally(path: Path, tally: TallyFile, *, beside: dict[str, Any] | None = None) -> None:
    """Write a tally, whole or not at all, and onto the disk before it has its name.

    Args:
        path: the file.
        tally: what to write.
        beside: a checkpoint's place in its inputs.

    Raises:
        UsageError: it cannot be written there.
        MissingExtraError: pyarrow is not installed.
    """
    need_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = tally.to_json() | ({} if beside is None else {"beside": beside})
    schema = _schema(tally.rows.windows.shape[1], reference=bool(len(tally.rows.expected)))
    schema = schema.with_metadata({_KEY: rfc8785.dumps(about)})
    with writing_whole(path, what="the tally") as partial:
        with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=False, write_statistics=False) as out:
            for start in range(0, len(tally.rows.hashes), _GROUP):
                out.write_batch(_batch(tally.rows, start, pa, schema))
        with partial.open("rb") as written:
            os.fsync(written.fileno())


def read_tally(path: Path) -> tuple[TallyFile, dict[str, Any] | None]:
    """Read a tally, and what stands beside it in a checkpoint.

    Raises:
        InputError: it is not a tally, is damaged, or its rows are not what the tests need.
        UsageError: it cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    need_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = printable(path, 4096)
    try:
        with path.open("rb") as stream:
            file = pq.ParquetFile(stream)
            about = _described(file.schema_arrow.metadata)
            _expect(about.get("schema") == SCHEMA, f"schema {SCHEMA}, found {printable(about.get('schema'))}")
            rows = _rows(file, about)
    except (pa.ArrowException, InputError) as error:
        raise InputError(
            f"{name}: expected a tally, found none: {printable(str(error).splitlines()[0], 400)}"
        ) from None
    except OSError as error:
        if error.errno is None:
            raise InputError(f"{name}: expected a tally, found a damaged file") from None
        raise UsageError(f"{name}: the tally cannot be read: {error.strerror}") from None
    try:
        tally = TallyFile(about=_about(about), rows=rows)
    except (KeyError, TypeError, ValueError, TaggantError) as error:
        raise InputError(f"{name}: expected what a tally is of, found it incomplete: {printable(error)}") from None
    if tally.digest() != about["rows_sha256"]:
        raise InputError(f"{name}: the rows are not those that its digest is of: the file was changed or damaged")
    return tally, about.get("beside")


def merge_tallies(paths: list[Path]) -> TallyFile:
    """Add up tallies. The result is that of one build over all their inputs, in any order.

    Identical records are told apart within one build alone: one that is in two of them is said twice here. That
    changes no distinct pair, and so no count test.

    Raises:
        InputError: one is not a tally.
        UsageError: they are of different kinds, or an input is in two of them.
    """
    from detect.bounded_tally import BoundedTally

    merged: BoundedTally | None = None
    about: About | None = None
    where: dict[str, Path] = {}
    for path in paths:
        tally, beside = read_tally(path)
        if beside is not None:
            raise UsageError(f"{printable(path)} is the checkpoint of a build that is not done: finish it first")
        if about is not None and about.kind() != tally.about.kind():
            differing = [key for key, value in about.kind().items() if value != tally.about.kind().get(key)]
            raise UsageError(
                f"{printable(path)} and {printable(paths[0])} differ in {', '.join(differing)}: tallies "
                "are merged that were built with the same options"
            )
        for digest, name in tally.about.inputs:
            if digest in where:
                raise UsageError(
                    f"{name} (SHA-256 {digest[:16]}…) is in both {printable(where[digest])} and {printable(path)}: it "
                    "would count twice"
                )
        where.update({digest: path for digest, _ in tally.about.inputs})
        if merged is None or about is None:
            merged, about = BoundedTally(window=tally.about.window, capacity=tally.about.capacity), tally.about
        else:
            about = about.added(tally.about)
        merged.add(tally.rows)
    if merged is None or about is None:
        raise UsageError("nothing to merge: name tallies that taggant tally build wrote")
    return TallyFile(about=about, rows=merged.rows())


def _schema(window: int, *, reference: bool) -> Any:
    import pyarrow as pa

    columns = [
        pa.field("window", pa.list_(pa.field("item", pa.uint32(), nullable=False), window), nullable=False),
        pa.field("token", pa.list_(pa.field("item", pa.uint32(), nullable=False)), nullable=False),
        pa.field("said", pa.list_(pa.field("item", pa.uint64(), nullable=False)), nullable=False),
    ]
    if reference:
        for name in ("expected", "expected_first"):
            columns.append(pa.field(name, pa.list_(pa.field("item", pa.uint64(), nullable=False)), nullable=False))
        columns.append(pa.field("information", pa.uint64(), nullable=False))
    return pa.schema(columns)


def _batch(rows: TallyRows, start: int, pa: Any, schema: Any) -> Any:
    """Return the windows from *start* on, as many as a row group holds."""
    end = min(start + _GROUP, len(rows.hashes))
    first, last = int(rows.starts[start]), int(rows.starts[end])
    offsets = pa.array((rows.starts[start : end + 1] - first).astype(np.int32))

    def lists(values: Any, name: str) -> Any:
        # None is negative: the bytes of int64 are those of uint64.
        one = np.ascontiguousarray(values[first:last])
        one = one.view(np.uint64) if one.dtype == np.int64 else one
        return pa.ListArray.from_arrays(offsets, pa.array(one), type=schema.field(name).type)

    windows = pa.array(np.ascontiguousarray(rows.windows[start:end]).reshape(-1))
    columns = [
        pa.FixedSizeListArray.from_arrays(windows, type=schema.field("window").type),
        lists(rows.tokens, "token"),
        lists(rows.said, "said"),
    ]
    if len(rows.expected):
        columns.append(lists(rows.expected[:, 0], "expected"))
        columns.append(lists(rows.expected[:, 1], "expected_first"))
        columns.append(pa.array(rows.information[start:end].astype(np.uint64)))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _described(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    if metadata is None or _KEY not in metadata:
        raise InputError("its schema has no metadata of Taggant's")
    return parse_object(metadata[_KEY])


def _expect(true: bool, what: str) -> None:
    if not true:
        raise InputError(f"expected {what}")


def _rows(file: Any, about: dict[str, Any]) -> TallyRows:
    """Return the rows, if they are those of a tally."""
    numbers = [about.get(key) for key in ("window", "level", "windows", "pairs")]
    for number in numbers:
        _expect(type(number) is int and 0 <= number < _MOST, f"a number below {_MOST}, found {printable(number)}")
    window, level, m, n = (int(number) for number in numbers if number is not None)
    _expect(1 <= window <= 8, f"a window of 1 to 8 ids, found {window}")
    _expect(level <= MAX_LEVEL, f"a level of 0 to {MAX_LEVEL}, found {level}")
    reference = about.get("reference") is not None
    _expect(file.schema_arrow.equals(_schema(window, reference=reference)), "the columns of a tally, found others")
    _expect(file.metadata.num_rows == m, f"{m} windows, found {file.metadata.num_rows}")
    described = [file.metadata.row_group(g).column(1) for g in range(file.metadata.num_row_groups)]
    _expect(sum(column.num_values for column in described) == n, f"{n} pairs, found another number")
    windows, tokens = np.empty((m, window), dtype=np.uint32), np.empty(n, dtype=np.uint32)
    starts, said = np.zeros(m + 1, dtype=np.int64), np.empty(n, dtype=np.int64)
    expected = np.empty((n if reference else 0, 2), dtype=np.int64)
    information = np.empty(m if reference else 0, dtype=np.int64)
    at, pair = 0, 0
    for batch in _batches(file):
        offsets = batch.column("token").offsets.to_numpy().astype(np.int64)
        end, last = at + batch.num_rows, pair + int(offsets[-1] - offsets[0])
        windows[at:end] = batch.column("window").flatten().to_numpy().reshape(-1, window)
        starts[at + 1 : end + 1] = offsets[1:] - offsets[0] + pair
        tokens[pair:last] = batch.column("token").flatten().to_numpy()
        for name, into in (("said", said), ("expected", expected[:, 0]), ("expected_first", expected[:, 1])):
            if name == "said" or reference:
                column = batch.column(name)
                _expect(
                    bool((np.diff(column.offsets.to_numpy()) == np.diff(offsets)).all()), f"a {name} for each token"
                )
                into[pair:last] = column.flatten().to_numpy().astype(np.int64)
        if reference:
            information[at:end] = batch.column("information").to_numpy().astype(np.int64)
        at, pair = end, last
    hashes = kernels.window_hashes(windows)
    wrong = disordered(hashes, windows, starts, tokens, said)
    _expect(wrong < 0, f"each pair once and in order, found window {wrong} otherwise")
    _expect(not m or hashes[-1] <= last_hash(level), f"windows of level {level} alone, found others")
    _expect(bool((expected >= 0).all() and (information >= 0).all()), "masses of 0 or more")
    _expect(bool((expected[:, 1] <= expected[:, 0]).all()), "no more mass at first positions than at all")
    return TallyRows(
        level=level,
        hashes=hashes,
        windows=windows,
        starts=starts,
        tokens=tokens,
        said=said,
        expected=expected,
        information=information,
    )


def _batches(file: Any) -> Iterator[Any]:
    for group in range(file.metadata.num_row_groups):
        for batch in file.iter_batches(batch_size=_GROUP, row_groups=[group], use_threads=False):
            if batch.num_rows:
                yield batch


def _about(value: dict[str, Any]) -> About:
    """Return what the tally is of, from JSON whose numbers must be numbers."""
    counted = value["accounting"]
    accounting = Accounting(
        read=_count(counted["read"]),
        scored=_count(counted["scored"]),
        excluded={str(reason): _count(count) for reason, count in counted["excluded"].items()},
        malformed=_count(counted["malformed"]),
        problems=[str(problem) for problem in counted["problems"]],
        notes={str(what): _count(count) for what, count in counted["notes"].items()},
    )
    accounting.check()
    about = About(
        window=_count(value["window"]),
        special_ids=tuple(_count(i) for i in value["special_ids"]),
        tokenizer=str(value["tokenizer"]),
        capacity=_count(value["capacity"]),
        prompt_policy=str(value["prompt_policy"]),
        duplicates=str(value["duplicates"]),
        reference=None if value["reference"] is None else str(value["reference"]),
        reference_fingerprints=frozenset(str(one) for one in value.get("reference_fingerprints", ())),
        tokens=_count(value["tokens"]),
        positions=_count(value["positions"]),
        left_out_prompt=_count(value["left_out_prompt"]),
        texts=_count(value["texts"]),
        without_prompt=_count(value["texts_without_prompt"]),
        from_ids=_count(value["texts_scored_by_recorded_ids"]),
        fingerprints=frozenset(str(one) for one in value["fingerprints"]),
        inputs=tuple((str(digest), str(name)) for digest, name in value["inputs"]),
        accounting=accounting,
    )
    if about.to_json().keys() != value.keys() - {"schema", "level", "windows", "pairs", "rows_sha256", "beside"}:
        raise ValueError("fields that are not known")
    return about


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
