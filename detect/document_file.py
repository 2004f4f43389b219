"""The rows of `detect corpus` as a file: Parquet, JSON Lines, or CSV that a spreadsheet does not run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.verdict import Verdict

__all__ = ["VERDICTS", "WRITERS"]

#: In the order of their codes.
VERDICTS = (Verdict.DEPENDS, Verdict.NO_SIGN, Verdict.TOO_SHORT)

_NAMES = tuple(verdict.value for verdict in VERDICTS)


class _Writer:
    """Write rows in one format, within a `with`."""

    def __init__(self, path: Path, counts: bool) -> None:
        self._path = path
        self._counts = counts

    def rows(self, batch: dict[str, Any], verdict: npt.NDArray[Any], sure: npt.NDArray[Any]) -> Iterable[list[Any]]:
        """Yield the values of each row."""
        scores = batch["score"].astype(np.int64) if self._counts else batch["score"]
        columns = (batch["pairs"], scores, batch["log10_p"], np.array(_NAMES, dtype=object)[verdict], sure)
        return map(list, zip(batch["source"], *(column.tolist() for column in columns), strict=True))


_COLUMNS = ("source", "pairs", "score", "log10_p", "verdict", "any_dependence")


class _Parquet(_Writer):
    def __enter__(self) -> Callable[[dict[str, Any], npt.NDArray[Any], npt.NDArray[Any]], None]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = (pa.string(), pa.int64(), pa.int64() if self._counts else pa.float64(), pa.float64(), pa.string())
        self._schema = pa.schema(list(zip(_COLUMNS, (*kinds, pa.bool_()), strict=True)))
        self._out = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        return self.write

    def write(self, batch: dict[str, Any], verdict: npt.NDArray[Any], sure: npt.NDArray[Any]) -> None:
        import pyarrow as pa

        scores = batch["score"].astype(np.int64) if self._counts else batch["score"]
        named = pa.array(np.array(_NAMES, dtype=object)[verdict].tolist(), pa.string())
        columns = [pa.array(batch["source"], pa.string()), batch["pairs"], scores, batch["log10_p"], named, sure]
        self._out.write_table(pa.table([pa.array(column) for column in columns], schema=self._schema))

    def __exit__(self, *exception: object) -> None:
        self._out.close()


class _Lines(_Writer):
    def __enter__(self) -> Callable[[dict[str, Any], npt.NDArray[Any], npt.NDArray[Any]], None]:
        self._out = self._path.open("w", encoding="ascii")
        return self.write

    def write(self, batch: dict[str, Any], verdict: npt.NDArray[Any], sure: npt.NDArray[Any]) -> None:
        for row in self.rows(batch, verdict, sure):
            self._out.write(json.dumps(dict(zip(_COLUMNS, row, strict=True))) + "\n")

    def __exit__(self, *exception: object) -> None:
        self._out.close()


class _Cells(_Writer):
    def __enter__(self) -> Callable[[dict[str, Any], npt.NDArray[Any], npt.NDArray[Any]], None]:
        self._out = self._path.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._out)
        self._csv.writerow(_COLUMNS)
        return self.write

    def write(self, batch: dict[str, Any], verdict: npt.NDArray[Any], sure: npt.NDArray[Any]) -> None:
        for source, *others in self.rows(batch, verdict, sure):
            # A spreadsheet runs a cell that begins so as a formula; a file may be named like one.
            safe = "'" + source if source.startswith(("=", "+", "-", "@", "\t", "\r")) else source
            self._csv.writerow([safe, *others])

    def __exit__(self, *exception: object) -> None:
        self._out.close()


#: What writes a file of this ending, made with its path and whether scores are counts, within a `with`.
WRITERS: dict[str, type[_Parquet] | type[_Lines] | type[_Cells]] = {
    ".parquet": _Parquet,
    ".jsonl": _Lines,
    ".csv": _Cells,
}
