"""The same tally on Daft: its local engine, or a Ray cluster (extra `corpora`; `ray` for a cluster).

Daft schedules files; our strict reader runs inside its functions, since Daft's own JSON reader gives a whole file up at
one bad line and names no line. A file is a row of the plan. First the digests of every file's records come back, by
which the driver tells duplicates, in the order of the files; then each file is tallied without them, where it lies, and
the tallies are merged: tallies of equal capacity add up to that of one build, so that the result has the same bytes.

Each file must be readable under the same path by every worker, and Taggant installed there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detect.bounded_tally import BoundedTally
from detect.duplicates import Duplicates
from detect.portions import Flags, Sifter, flags_of
from detect.records import Reader
from detect.tally_build import Build, Tallier, kind_of, of_inputs
from detect.tally_file import TallyFile, read_tally, write_tally
from watermark.errors import InputError, MissingExtraError, TaggantError, UsageError, printable

__all__ = ["build_tally_on_daft"]


def build_tally_on_daft(
    inputs: Sequence[str | Path],
    sifter: Sifter,
    *,
    out: Path,
    build: Build | None = None,
    max_malformed: int = 0,
    ray: str | None = None,
) -> TallyFile:
    """Tally everything that *inputs* hold and write it to *out*: the bytes that `build_tally` writes.

    Args:
        inputs: paths and patterns.
        sifter: parses and tokenises.
        out: the file.
        build: how; `workers` and `every` are Daft's affair.
        max_malformed: with up to so many malformed records there is a result.
        ray: the address of a Ray cluster, e.g. "auto"; None: Daft's engine on this machine.

    Raises:
        InputError: more is malformed than allowed.
        UsageError: an input is no file.
        MissingExtraError: Daft or Ray is not installed.
    """
    build = build or Build()
    reader = Reader(inputs, fields=sifter.fields, max_malformed=max_malformed)
    if reader.bytes_total is None:
        raise UsageError("Daft's workers read files: standard input and pipes are read without Daft alone")
    names = [str(path.absolute() if ray else path) for path in reader.paths]
    daft = _daft(ray)
    binary = daft.DataType.binary()
    listed = daft.func(_Listing(sifter, build), return_dtype=binary, use_process=False)
    frame = _spread(daft.from_pydict({"number": list(range(len(names))), "name": names}), ray, len(names))
    digests = dict(_made(frame.select("number", listed(daft.col("name")).alias("made"))))
    duplicates = Duplicates()
    seen = []
    for number in range(len(names)):
        records = [digests[number][i : i + 16] for i in range(0, len(digests[number]), 16)]
        reader.took(number, len(records))
        known = [b"" if digest == _UNKNOWN else digest for digest in records]
        none = np.zeros(len(known), dtype=np.bool_)
        before = none if build.keep_duplicates else duplicates.add(known)
        seen.append(flags_of(before, none if build.near is None else build.near.holds(known)).tobytes())
    tallied = daft.func(_Tallying(sifter, build), return_dtype=binary, use_process=False)
    frame = daft.from_pydict({"number": list(range(len(names))), "name": names, "seen": seen})
    frame = _spread(frame, ray, len(names))
    merged, about = BoundedTally(window=sifter.window, capacity=build.capacity), kind_of(sifter, build)
    for _, data in _made(frame.select("number", tallied(daft.col("name"), daft.col("seen")).alias("made"))):
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


#: Stands for the digest of a record with a problem; no SHA-256 begins so.
_UNKNOWN = bytes(16)

#: What a result begins with.
_GOOD, _BAD = b"+", b"-"


class _Listing:
    """List the digests of a file's records, on a worker."""

    __name__ = "taggant_digests"

    def __init__(self, sifter: Sifter, build: Build) -> None:
        self._sifter = sifter
        self._build = build

    def __call__(self, name: str) -> bytes:
        try:
            portions = Reader([name], fields=self._sifter.fields).portions(self._build.portion)
            found = [digest or _UNKNOWN for portion in portions for digest in portion.digests()]
            return _GOOD + b"".join(found)
        except TaggantError as error:
            return _BAD + str(error).encode()


class _Tallying:
    """Tally a file, on a worker."""

    __name__ = "taggant_tally"

    def __init__(self, sifter: Sifter, build: Build) -> None:
        self._sifter = sifter
        self._build = build

    def __call__(self, name: str, seen: bytes) -> bytes:
        try:
            return _GOOD + self._tally(name, np.frombuffer(seen, dtype=np.uint8))
        except TaggantError as error:
            return _BAD + str(error).encode()

    def _tally(self, name: str, seen: Flags) -> bytes:
        kind = about = kind_of(self._sifter, self._build)
        tally = BoundedTally(window=self._sifter.window, capacity=self._build.capacity)
        tallier = Tallier(self._sifter)
        reader = Reader([name], fields=self._sifter.fields)
        at = 0
        for portion in reader.portions(self._build.portion):
            flags = seen[at : at + len(portion)]
            at += len(portion)
            if len(flags) == len(portion):
                part = tallier(portion, flags, tally.level)
                tally.add(part.rows)
                about = about.added(part.about)
        if at != len(seen):
            raise InputError(f"{name}: changed while it was read")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tally"
            write_tally(path, TallyFile(about=about.added(of_inputs(kind, reader.digests)), rows=tally.rows()))
            return path.read_bytes()


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


def _spread(frame: Any, ray: str | None, files: int) -> Any:
    """Return the frame with each file in a partition of its own, where there are partitions."""
    return frame if ray is None else frame.into_partitions(files)


def _made(frame: Any) -> Iterator[tuple[int, bytes]]:
    """Run the plan and yield the number of each file and what was made of it."""
    for row in frame.iter_rows():
        data = bytes(row["made"])
        if not data.startswith(_GOOD):
            raise InputError(data[1:].decode())
        yield int(row["number"]), data[1:]
