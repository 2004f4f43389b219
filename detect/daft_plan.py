"""The same tally on Daft: its local engine, or a Ray cluster (extra `corpora`; `ray` for a cluster).

Daft schedules files and parts of files; our strict reader runs inside its functions, since Daft's own JSON reader gives
a whole file up at one bad line and names no line. A unit of work is a row of the plan: a file, or of a large file of
JSON Lines a span of bytes (`detect.line_spans`). First the digests of every unit's records come back, by which the
driver tells duplicates, in the order of the files, and how many lines each span has; of a file in spans also its own
digest, for which one worker reads it. If near-duplicates are left out, the signatures of every unit's documents come
back next. Then each unit is tallied without what is left out, where it lies, and the tallies are merged: tallies of
equal capacity add up to that of one build, so that the result has the same bytes.

Each file must be readable under the same path or address by every worker, and Taggant installed there. A worker takes
the credentials of a store from its own environment.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detect.bounded_tally import BoundedTally
from detect.duplicates import Duplicates
from detect.inputs import Input, Portion, find_inputs, opened, shown_path
from detect.line_spans import opened_span, spans_of
from detect.near_duplicates import NearDuplicates
from detect.near_search import Signatures, Signed, Signer, near_of, remove_near
from detect.portions import Flags, Sifter, flags_of
from detect.records import Accounting, Reader, RecordParser
from detect.tally_build import Build, Tallier, kind_of, of_inputs
from detect.tally_file import TallyFile, read_tally, write_tally
from watermark.errors import InputError, MissingExtraError, TaggantError, UsageError, printable

__all__ = ["SPAN", "build_tally_on_daft"]

#: Bytes of a span: some 30 million ids of text.
SPAN = 2**27


def build_tally_on_daft(
    inputs: Sequence[str | Path],
    sifter: Sifter,
    *,
    out: Path,
    build: Build | None = None,
    near_duplicates: float | None = None,
    max_malformed: int = 0,
    ray: str | None = None,
    span: int = SPAN,
) -> TallyFile:
    """Tally everything that *inputs* hold and write it to *out*: the bytes that `build_tally` writes.

    Args:
        inputs: paths, patterns and addresses.
        sifter: parses and tokenises.
        out: the file.
        build: how; `workers` and `every` are Daft's affair, and `near` is found here.
        near_duplicates: leave out documents as similar as this to another; None: none are looked for.
        max_malformed: with up to so many malformed records there is a result.
        ray: the address of a Ray cluster, e.g. "auto"; None: Daft's engine on this machine.
        span: bytes of a part of a large file that one worker takes.

    Raises:
        InputError: more is malformed than allowed.
        UsageError: an input is a pipe.
        MissingExtraError: Daft or Ray is not installed.
    """
    build = build or Build()
    if near_duplicates is not None and build.keep_duplicates:
        raise UsageError("near-duplicates are left out where identical records are: not with --keep-duplicates")
    reader = Reader(inputs, fields=sifter.fields, max_malformed=max_malformed)
    if reader.bytes_total is None:
        raise UsageError("Daft's workers read files: standard input and pipes are read without Daft alone")
    engine = _Engine(ray)
    units = _units(reader.files, span, absolute=ray is not None)
    whole = sorted({unit.name for unit in units if unit.end})
    sha256 = engine.all_of(_Digesting(), [json.dumps(name) for name in whole])
    listed = engine.all_of(_Listing(sifter, build), [unit.to_json() for unit in units])
    units, digests = _numbered(units, listed)
    for unit, found in zip(units, digests, strict=True):
        reader.took(unit.file, len(found))
    if near_duplicates is not None:
        signed = engine.run(_Signing(sifter, build), [unit.to_json() for unit in units])
        build = replace(build, near=_near(signed, digests, near_duplicates, out))
    duplicates = Duplicates()
    seen = []
    for found in digests:
        none = np.zeros(len(found), dtype=np.bool_)
        before = none if build.keep_duplicates else duplicates.add(found)
        seen.append(flags_of(before, none if build.near is None else build.near.holds(found)).tobytes())
    kind = kind_of(sifter, build)
    names = {name: data.decode() for name, data in zip(whole, sha256, strict=True)}
    about = kind.added(of_inputs(kind, {unit.shown: names[unit.name] for unit in units if unit.end}))
    merged = BoundedTally(window=sifter.window, capacity=build.capacity)
    for _, data in engine.run(_Tallying(sifter, build), [unit.to_json() for unit in units], seen):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tally"
            path.write_bytes(data)
            tally, _ = read_tally(path)
        merged.add(tally.rows)
        about = about.added(tally.about)
    reader.accounting.add(about.accounting)
    reader.finish()
    result = TallyFile(about=about, rows=merged.rows())
    write_tally(out, result)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """What a worker takes at a time."""

    file: int
    """Which input."""
    name: str
    """Under which the workers find it."""
    shown: str
    """The input's name for results."""
    start: int = 0
    end: int = 0
    """0: the whole file; else its bytes from `start` on before this one."""
    first_line: int = 1

    def to_json(self) -> str:
        return json.dumps([self.file, self.name, self.shown, self.start, self.end, self.first_line])

    @classmethod
    def of_json(cls, text: str) -> _Unit:
        file, name, shown, start, end, first_line = json.loads(text)
        return cls(file=file, name=name, shown=shown, start=start, end=end, first_line=first_line)


def _units(files: Sequence[Input], span: int, *, absolute: bool) -> list[_Unit]:
    """Return the units of all files, in the order of the files."""
    units = []
    for number, file in enumerate(files):
        name = file.url or str(file.path)
        shown = file.name
        if absolute and file.path is not None:
            name = str(file.path.absolute())
            shown = shown_path(name)
        unit = _Unit(file=number, name=name, shown=shown)
        spans = spans_of(file, span)
        units += [replace(unit, start=start, end=end) for start, end in spans] or [unit]
    return units


def _numbered(units: Sequence[_Unit], listed: Sequence[bytes]) -> tuple[list[_Unit], list[list[bytes]]]:
    """Return the units with the numbers of their first lines, and the digests of each one's records."""
    numbered, digests = [], []
    next_line = 1
    for unit, data in zip(units, listed, strict=True):
        first_line = next_line if unit.start else 1
        numbered.append(replace(unit, first_line=first_line))
        next_line = first_line + int.from_bytes(data[:8], "little")
        found = [data[i : i + 16] for i in range(8, len(data), 16)]
        digests.append([b"" if digest == _UNKNOWN else digest for digest in found])
    return numbered, digests


def _near(
    signed: Iterator[tuple[int, bytes]], digests: Sequence[Sequence[bytes]], threshold: float, out: Path
) -> NearDuplicates:
    """Return what is left out for being nearly another record."""
    records = hashlib.sha256(b"".join(digest.ljust(16, b"\0") for found in digests for digest in found)).hexdigest()
    # What is there of an interrupted run without Daft is made anew.
    remove_near(out)
    try:
        kept = Signatures(near_of(out))
        for _, data in signed:
            split = 16 * (len(data) // 144)
            part = Signed(digests=data[:split], signatures=data[split:], tokens=0, accounting=Accounting())
            kept.add([part])
        return kept.near(threshold, records=records)
    finally:
        remove_near(out)


#: Stands for the digest of a record with a problem; no SHA-256 begins so.
_UNKNOWN = bytes(16)

#: What a result begins with.
_GOOD, _BAD = b"+", b"-"


class _Opened:
    """A unit, open: its portions once, and then what is known of it."""

    def __init__(self, unit: _Unit, sifter: Sifter, build: Build) -> None:
        self.line_feeds = 0
        self.digests: dict[str, str] = {}
        self._unit = unit
        self._sifter = sifter
        self._build = build

    def portions(self) -> Iterator[Portion]:
        (file,) = find_inputs([self._unit.name], lambda what, count: None)
        file = replace(file, name=self._unit.shown)
        if self._unit.end:
            with opened_span(file, self._unit.start, self._unit.end, first_line=self._unit.first_line) as part:
                yield from part.portions(self._build.portion)
                self.line_feeds = part.line_feeds
            return
        columns = RecordParser(self._sifter.fields, note=lambda what: None).columns
        with opened(file, None, columns=columns) as source:
            yield from source.portions(self._build.portion)
            self.digests[file.name] = source.digest()


class _Task(ABC):
    """What is done with a unit, on a worker."""

    __name__ = "taggant"

    def __init__(self, sifter: Sifter, build: Build) -> None:
        self._sifter = sifter
        self._build = build

    def __call__(self, unit: str, seen: bytes) -> bytes:
        try:
            # A sifter for each call, since calls may run beside one another in one process.
            return _GOOD + self.made(_Unit.of_json(unit), copy.copy(self._sifter), np.frombuffer(seen, dtype=np.uint8))
        except TaggantError as error:
            return _BAD + str(error).encode()

    @abstractmethod
    def made(self, unit: _Unit, sifter: Sifter, seen: Flags) -> bytes:
        """Return what is made of a unit."""


class _Listing(_Task):
    """List the digests of a unit's records, after the number of its line feeds."""

    def made(self, unit: _Unit, sifter: Sifter, seen: Flags) -> bytes:
        source = _Opened(unit, sifter, self._build)
        found = b"".join(digest or _UNKNOWN for portion in source.portions() for digest in portion.digests())
        return source.line_feeds.to_bytes(8, "little") + found


class _Signing(_Task):
    """Return the digests of a unit's documents, and then their signatures."""

    def made(self, unit: _Unit, sifter: Sifter, seen: Flags) -> bytes:
        sign = Signer(sifter)
        parts = [
            sign(portion, np.zeros(len(portion), dtype=np.uint8))
            for portion in _Opened(unit, sifter, self._build).portions()
        ]
        return b"".join([part.digests for part in parts] + [part.signatures for part in parts])


class _Tallying(_Task):
    """Tally a unit."""

    def made(self, unit: _Unit, sifter: Sifter, seen: Flags) -> bytes:
        kind = about = kind_of(sifter, self._build)
        tally = BoundedTally(window=sifter.window, capacity=self._build.capacity)
        tallier = Tallier(sifter, self._build.reference)
        source = _Opened(unit, sifter, self._build)
        at = 0
        for portion in source.portions():
            flags = seen[at : at + len(portion)]
            at += len(portion)
            if len(flags) == len(portion):
                part = tallier(portion, flags, tally.level)
                tally.add(part.rows)
                about = about.added(part.about)
        if at != len(seen):
            raise InputError(f"{unit.shown}: changed while it was read")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tally"
            write_tally(path, TallyFile(about=about.added(of_inputs(kind, source.digests)), rows=tally.rows()))
            return path.read_bytes()


class _Digesting:
    """Return the SHA-256 of a file that is tallied in spans."""

    __name__ = "taggant_sha256"

    def __call__(self, name: str, seen: bytes) -> bytes:
        try:
            (file,) = find_inputs([json.loads(name)], lambda what, count: None)
            with opened(file, None) as source:
                return _GOOD + source.digest().encode()
        except TaggantError as error:
            return _BAD + str(error).encode()


class _Engine:
    """Daft on its own or on Ray."""

    def __init__(self, ray: str | None) -> None:
        self._daft = _daft(ray)
        self._ray = ray

    def run(
        self, function: Any, units: Sequence[str], seen: Sequence[bytes] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the number of each unit and what *function* makes of it, as they come; each is a task of its own."""
        if not units:
            return
        daft = self._daft
        columns = {"number": list(range(len(units))), "unit": list(units), "seen": list(seen or [b""] * len(units))}
        frame = daft.from_pydict(columns)
        frame = frame.into_batches(1) if self._ray is None else frame.into_partitions(len(units))
        make = daft.func(function, return_dtype=daft.DataType.binary(), use_process=False)
        for row in frame.select("number", make(daft.col("unit"), daft.col("seen")).alias("made")).iter_rows():
            data = bytes(row["made"])
            if not data.startswith(_GOOD):
                raise InputError(data[1:].decode())
            yield int(row["number"]), data[1:]

    def all_of(self, function: Any, units: Sequence[str]) -> list[bytes]:
        """Return what *function* makes of each unit, in their order."""
        made = dict(self.run(function, units))
        return [made[number] for number in range(len(units))]


def _daft(ray: str | None) -> Any:
    """Return Daft with its engine chosen; it reports to nobody."""
    # Before the import, since Daft reports that it was imported.
    os.environ.update(DO_NOT_TRACK="1", SCARF_NO_ANALYTICS="true", DAFT_ANALYTICS_ENABLED="0", DAFT_PROGRESS_BAR="0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import daft
    except ImportError:
        raise MissingExtraError("this engine needs Daft: pip install 'taggant[corpora,daft]'") from None
    if ray is None:
        daft.set_runner_native()
        return daft
    try:
        import ray as ray_module
    except ImportError:
        raise MissingExtraError("a Ray cluster needs ray: pip install 'taggant[corpora,ray]'") from None
    if not ray_module.is_initialized():
        try:
            ray_module.init(address=ray, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"no Ray cluster at {printable(ray)}: {printable(error)}") from None
    daft.set_runner_ray(noop_if_initialized=True)
    return daft
