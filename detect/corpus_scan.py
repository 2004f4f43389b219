"""Which documents of a corpus are marked: a p-value and a verdict for each of millions (extra `corpora`).

Documents are tested a portion at a time, by whatever number of workers, and written in parts; when all are read the
parts become one file, with the verdicts that Benjamini and Hochberg's procedure gives over all of them. Each part holds
its place in the inputs, so that a run that was ended is gone on with.

What grows with the corpus is the set of digests that duplicates are told by, some 32 bytes a record.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import rfc8785

from detect.arrow_rows import need_pyarrow
from detect.document_file import VERDICTS, WRITERS
from detect.false_discovery import benjamini_hochberg, benjamini_yekutieli
from detect.inputs import Portion
from detect.mark import GreenListMark, Mark
from detect.marked_text import document_sums, document_tail
from detect.near_duplicates import NearDuplicates
from detect.near_search import remove_near
from detect.place import NumberedPortions, Place
from detect.portions import Flags, Sifted, Sifter, in_order
from detect.records import Accounting, Reader
from detect.strict_json import parse_object
from detect.tally import tally_of
from detect.verdict import Verdict
from watermark.errors import InputError, UsageError, printable
from watermark.keyring import Keyring
from watermark.whole_file import writing_whole

__all__ = ["CorpusScan", "load_scope", "parts_of", "scan_corpus"]

_KEY = b"taggant"

#: Documents of a part, at least: some 4 MB.
_PART = 2**17

PORTION = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusScan:
    """What one key says of the documents of a corpus."""

    scope: str
    fingerprint: str
    level: float
    """Bound on the expected share of false findings among the findings."""
    documents: int
    verdicts: dict[str, int]
    """How many documents have each."""
    log10_p_bound: float | None
    """The largest log10 p that is a finding; None if there is none."""
    findings_any_dependence: int
    """How many are findings by Benjamini and Yekutieli's procedure, which holds whatever the dependence."""
    tokens: int
    without_prompt: int
    from_ids: int
    prompt_policy: str
    accounting: Accounting
    inputs: dict[str, str]
    """SHA-256 of each."""


@dataclass(slots=True, kw_only=True)
class _Sums:
    """What adds up over the portions."""

    accounting: Accounting = field(default_factory=Accounting)
    tokens: int = 0
    without_prompt: int = 0
    from_ids: int = 0

    def add(self, found: _Sums) -> None:
        self.accounting.add(found.accounting)
        self.tokens += found.tokens
        self.without_prompt += found.without_prompt
        self.from_ids += found.from_ids

    def to_json(self) -> dict[str, Any]:
        return {
            "accounting": self.accounting.to_json(),
            "tokens": self.tokens,
            "without_prompt": self.without_prompt,
            "from_ids": self.from_ids,
        }

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> _Sums:
        return cls(
            accounting=Accounting(**value["accounting"]),
            tokens=value["tokens"],
            without_prompt=value["without_prompt"],
            from_ids=value["from_ids"],
        )


@dataclass(slots=True, kw_only=True)
class _Tested:
    """The documents of a portion."""

    sums: _Sums
    sources: list[str]
    pairs: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    log10_p: npt.NDArray[np.float64]
    smallest: npt.NDArray[np.float64]


def load_scope(keyring: Path, name: str) -> Mark:
    """Return the mark of a scope, read from its key file: how a worker process comes by a key."""
    return GreenListMark(Keyring.load(keyring).scope(name))


class _Tester:
    """Test the documents of one portion. It can be sent to another process, and the key is not: that loads it anew."""

    def __init__(self, sifter: Sifter, mark: Mark, load: Callable[[], Mark] | None) -> None:
        self._sifter = sifter
        self._mark = mark
        self._load = load

    def __getstate__(self) -> dict[str, Any]:
        return {"sifter": self._sifter, "load": self._load, "id": self._mark.public_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._sifter, self._load = state["sifter"], state["load"]
        self._mark = state["load"]()
        if self._mark.public_id != state["id"]:
            raise UsageError("the key file was changed while it was used: begin anew")

    def __call__(self, portion: Portion, seen: Flags) -> _Tested:
        found = self._sifter.sift(portion, seen)
        sums = _Sums(
            accounting=found.accounting,
            tokens=found.tokens,
            without_prompt=found.without_prompt,
            from_ids=found.from_ids,
        )
        pairs, scores = self._sums_of(found)
        tails = [_tail(self._mark, int(n), float(total)) for n, total in zip(pairs, scores, strict=True)]
        log10_p, smallest = np.array(tails, dtype=np.float64).reshape(-1, 2).T
        return _Tested(sums=sums, sources=found.sources, pairs=pairs, scores=scores, log10_p=log10_p, smallest=smallest)

    def _sums_of(self, found: Sifted) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        prompts, echoes = found.left_out()
        tally = tally_of(
            found.responses,
            window=self._sifter.window,
            special_ids=self._sifter.special_ids,
            prompts=prompts,
            echoes=echoes,
            policy=self._sifter.policy,
        )
        document = np.array(found.document, dtype=np.int64)
        return document_sums(found.responses, document, tally, self._mark, documents=len(found.sources))


@lru_cache(maxsize=2**18)
def _tail(mark: Mark, n: int, total: float) -> tuple[float, float]:
    return document_tail(mark, n, total)


def parts_of(out: Path) -> Path:
    """Return the folder of the parts of a scan that writes to *out*."""
    return out.with_name(out.name + ".parts")


def scan_corpus(
    inputs: Sequence[str | Path],
    sifter: Sifter,
    mark: Mark,
    *,
    out: Path,
    level: float = 0.01,
    keep_duplicates: bool = False,
    near: NearDuplicates | None = None,
    workers: int = 1,
    load: Callable[[], Mark] | None = None,
    portion: int = PORTION,
    part: int = _PART,
    max_malformed: int = 0,
    stdin: BinaryIO | None = None,
    progress: Callable[[int, int, int], None] = lambda bytes_read, records, tokens: None,
    resumed: Callable[[int], None] = lambda records: None,
) -> CorpusScan:
    """Test every document of *inputs* by itself, and write a row for each to *out*, whole or not at all.

    Null of each document: it is independent of the key; its p-value is that of `detect_text`. What the verdicts of all
    of them promise is in `detect.false_discovery`.

    Columns: `source`, `pairs` (distinct pairs), `score` (for a green list how many are green), `log10_p`, `verdict`,
    and `any_dependence`, whether it is a finding whatever the dependence between documents.

    Args:
        inputs: paths, patterns, or `-`.
        sifter: parses and tokenises; of the mark's window and special ids.
        mark: the key.
        out: `.parquet`, `.jsonl` or `.csv`.
        level: bound on the expected share of false findings among the findings.
        keep_duplicates: whether identical records are tested as often as they are there.
        near: what is left out besides, found in the same inputs by `find_near_duplicates`.
        workers: processes.
        load: reads the key anew in each of several processes, since a key is not sent to them.
        portion: bytes of records that a worker takes at a time.
        part: documents written at a time.
        max_malformed: with up to so many malformed records there is a result.
        stdin: read for `-`; else the process's own.
        progress: called after each portion with bytes read, records and ids so far.
        resumed: called with the number of records that an earlier run did.

    Raises:
        InputError: more is malformed than allowed, or the inputs changed since the earlier run.
        UsageError: the parts are of other inputs or options, the mark gives no p-value of a document, or *out* is of
            another format or cannot be written.
    """
    need_pyarrow()
    if out.suffix not in WRITERS:
        raise UsageError(f"{printable(out)}: expected a file .parquet, .jsonl or .csv to write")
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
    if not mark.exact:
        raise UsageError(f"{mark.name}: this mark's hash is too weak for a p-value of each document")
    if near is not None and keep_duplicates:
        raise UsageError("near-duplicates are left out where identical records are: not with --keep-duplicates")
    if workers > 1 and load is None:
        raise UsageError("several workers need a way to load the key: give load, or one worker")
    reader = Reader(inputs, fields=sifter.fields, max_malformed=max_malformed, stdin=stdin)
    options = {
        "schema": "taggant/scan-part/1",
        "inputs": reader.names,
        "fields": list(sifter.fields.names()),
        "mark": mark.public_id,
        "tokenizer": sifter.tokenizer.digest(),
        "prompt_policy": sifter.policy.value,
        "retokenize": sifter.retokenize,
        "keep_duplicates": keep_duplicates,
        "portion": portion,
        **({} if near is None else {"near_duplicates": near.digest()}),
    }
    parts = _Parts(parts_of(out), options)
    sums, place = parts.begin(lasting=reader.bytes_total is not None)
    if place.portions:
        resumed(sums.accounting.read)
    numbered = NumberedPortions(reader, size=portion, keep_duplicates=keep_duplicates, start=place, near=near)
    held: list[_Tested] = []
    number = place.portions
    for tested in in_order(numbered, _Tester(sifter, mark, load), workers=workers):
        number += 1
        held.append(tested)
        sums.add(tested.sums)
        progress(reader.bytes_done, sums.accounting.read, sums.tokens)
        if sum(len(one.sources) for one in held) >= part:
            parts.write(held, sums, numbered.place(number))
            held = []
    if held:
        parts.write(held, sums, numbered.place(number))
    reader.accounting.add(sums.accounting)
    reader.finish()
    scan = _finish(parts, out, mark, sifter, sums, level, reader.digests)
    if near is not None:
        remove_near(out)
    return scan


def _finish(
    parts: _Parts, out: Path, mark: Mark, sifter: Sifter, sums: _Sums, level: float, digests: dict[str, str]
) -> CorpusScan:
    """Put the parts together with their verdicts, and remove them."""
    tests = sums.accounting.scored
    bound = benjamini_hochberg(parts.log10_ps, tests=tests, level=level)
    strict = benjamini_yekutieli(parts.log10_ps, tests=tests, level=level)
    # What one finding alone would have to be under.
    first = math.log10(level) - math.log10(max(1, tests))
    verdicts = dict.fromkeys(Verdict, 0)
    any_dependence = 0
    with writing_whole(out, what="the documents") as partial:
        with WRITERS[out.suffix](partial, isinstance(mark, GreenListMark)) as write:
            for batch in parts.batches():
                log10_p, smallest = batch["log10_p"], batch["smallest"]
                finding, sure = log10_p <= bound, log10_p <= strict
                short = ~finding & (smallest > max(bound, first))
                verdict = np.where(finding, 0, np.where(short, 2, 1))
                for code, one in enumerate(VERDICTS):
                    verdicts[one] += int(np.count_nonzero(verdict == code))
                any_dependence += int(np.count_nonzero(sure))
                write(batch, verdict, sure)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
    parts.remove()
    return CorpusScan(
        scope=mark.name,
        fingerprint=mark.fingerprint,
        level=level,
        documents=tests,
        verdicts={verdict.value: count for verdict, count in verdicts.items()},
        log10_p_bound=bound if math.isfinite(bound) else None,
        findings_any_dependence=any_dependence,
        tokens=sums.tokens,
        without_prompt=sums.without_prompt,
        from_ids=sums.from_ids,
        prompt_policy=sifter.policy.value,
        accounting=sums.accounting,
        inputs=digests,
    )


class _Parts:
    """The parts of a scan in a folder, each whole or not there."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self._folder = folder
        self._options = options
        self._count = 0

    def begin(self, *, lasting: bool) -> tuple[_Sums, Place]:
        """Return what the parts that are there add up to, and the place after them."""
        import pyarrow.parquet as pq

        if not lasting:
            # What is read from a pipe cannot be read again.
            self.remove()
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{printable(self._folder)}: cannot make the folder of parts: {error.strerror}") from None
        while self._path(self._count + 1).exists():
            self._count += 1
        if not self._count:
            return _Sums(), Place.beginning()
        last = self._path(self._count)
        try:
            about: dict[str, Any] = parse_object(pq.read_schema(last).metadata[_KEY])
            sums, place = _Sums.of_json(dict(about["sums"])), Place.of_json(about)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{printable(last)}: no part of a scan: {printable(error)}. Delete it") from None
        if rfc8785.dumps(about["options"]) != rfc8785.dumps(self._options):
            raise UsageError(
                f"{printable(self._folder)} has parts of a run with other inputs or options: give the same ones to go "
                "on with it, or delete the folder to begin anew"
            )
        return sums, place

    def write(self, held: list[_Tested], sums: _Sums, place: Place) -> None:
        """Write a further part, onto the disk before it has its name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"options": self._options, "sums": sums.to_json(), **place.to_json()}
        table = pa.table(
            {
                "source": [source for one in held for source in one.sources],
                "pairs": np.concatenate([one.pairs for one in held]),
                "score": np.concatenate([one.scores for one in held]),
                "log10_p": np.concatenate([one.log10_p for one in held]),
                "smallest": np.concatenate([one.smallest for one in held]),
            }
        ).replace_schema_metadata({_KEY: rfc8785.dumps(about)})
        self._count += 1
        with writing_whole(self._path(self._count), what="a part of the scan") as partial:
            pq.write_table(table, partial, compression="zstd")
            with partial.open("rb") as written:
                os.fsync(written.fileno())

    def log10_ps(self) -> Iterator[npt.NDArray[np.float64]]:
        """Yield all log10 p."""
        for batch in self.batches(["log10_p"]):
            yield batch["log10_p"]

    def batches(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield columns by name: the sources a list, the others arrays."""
        import pyarrow.parquet as pq

        for number in range(1, self._count + 1):
            with pq.ParquetFile(self._path(number)) as file:
                for batch in file.iter_batches(columns=columns, use_threads=False):
                    yield {
                        name: column.to_pylist() if name == "source" else column.to_numpy()
                        for name, column in zip(batch.schema.names, batch.columns, strict=True)
                    }

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._count = 0

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:08}.parquet"
