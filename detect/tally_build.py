"""Building a tally from any amount of text, interrupted or not, on one process or several (DESIGN 5 and 6).

One reader cuts the inputs into portions and tells duplicates by their digests; workers parse, tokenise and tally each
portion; the portions' rows are added up in order. The result depends on the set of records alone, so that portions,
workers, engines and the order of the inputs leave no trace in the file.

A checkpoint is the tally so far and its place in the inputs. It is put in place of the last one in one step, so that
whatever ends the process, the next run finds one of the two. That run reads the inputs from their beginning, which is
fast, since nothing is parsed: it finds the duplicates again, and that the records are still those of the checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rfc8785

from detect.bounded_tally import CAPACITY, BoundedTally
from detect.inputs import Portion
from detect.near_duplicates import NearDuplicates
from detect.near_search import remove_near
from detect.occurrences import Occurrences
from detect.place import NumberedPortions, Place
from detect.portions import Flags, Sifted, Sifter, in_order
from detect.records import Reader
from detect.reference_check import first_mass
from detect.reference_reader import ReferenceReader
from detect.tally_file import About, TallyFile, read_tally, write_tally
from detect.tally_rows import TallyRows
from watermark.errors import UsageError, printable

__all__ = ["Build", "Part", "Progress", "Tallier", "build_tally", "checkpoint_of", "kind_of", "of_inputs"]

#: Called with bytes read, records and ids so far.
Progress = Callable[[int, int, int], None]

#: Bytes of records that a worker takes at a time: some 100,000 ids of text or 500,000 as numbers.
PORTION = 2 * 2**20

#: Seconds between checkpoints, and how many times as long as one takes.
_EVERY, _TIMES = 60.0, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How a tally is built; none of it changes what is in it but `capacity`, `keep_duplicates` and `near`."""

    capacity: int = CAPACITY
    keep_duplicates: bool = False
    """Whether identical records count as often as they are there."""
    near: NearDuplicates | None = None
    """What is left out besides, found in the same inputs by `find_near_duplicates`."""
    workers: int = 1
    portion: int = PORTION
    """Bytes of records that a worker takes at a time."""
    reference: ReferenceReader | None = None
    """What would have been said anyway; its mass is tallied beside what was said."""
    every: float = _EVERY
    """Seconds between checkpoints at least."""


def checkpoint_of(out: Path) -> Path:
    """Return where the checkpoint of a build that writes to *out* is."""
    return out.with_name(out.name + ".checkpoint")


def build_tally(
    inputs: Sequence[str | Path],
    sifter: Sifter,
    *,
    out: Path,
    build: Build | None = None,
    max_malformed: int = 0,
    stdin: BinaryIO | None = None,
    progress: Progress = lambda bytes_read, records, tokens: None,
    resumed: Callable[[int], None] = lambda records: None,
) -> TallyFile:
    """Tally everything that *inputs* hold and write it to *out*, whole or not at all.

    A run that was interrupted is gone on with, if it was of the same inputs and options.

    Args:
        inputs: paths, patterns, or `-`.
        sifter: parses and tokenises.
        out: the file; a checkpoint stands beside it until it is there.
        build: how.
        max_malformed: with up to so many malformed records there is a result.
        stdin: read for `-`; else the process's own.
        progress: called after each portion.
        resumed: called with the number of records that the checkpoint has.

    Raises:
        InputError: more is malformed than allowed, or the inputs changed since the checkpoint.
        UsageError: the checkpoint is of other inputs or options, or *out* cannot be written.
    """
    build = build or Build()
    reader = Reader(inputs, fields=sifter.fields, max_malformed=max_malformed, stdin=stdin)
    kind = kind_of(sifter, build)
    options = {
        "inputs": reader.names,
        "portion": build.portion,
        "fields": list(sifter.fields.names()),
        "retokenize": sifter.retokenize,
        **({} if build.near is None else {"near_duplicates": build.near.digest()}),
    }
    path = checkpoint_of(out)
    # What is read from a pipe cannot be read again.
    lasting = reader.bytes_total is not None
    before = _checkpoint(path, kind, options) if lasting else None
    tally = BoundedTally(window=kind.window, capacity=build.capacity)
    about, place = kind, Place.beginning()
    if before is not None:
        about, place = before.about, before.place
        tally.add(before.rows)
        resumed(about.accounting.read)
    numbered = NumberedPortions(
        reader, size=build.portion, keep_duplicates=build.keep_duplicates, start=place, near=build.near
    )
    due = time.monotonic() + build.every
    tallier = Tallier(sifter, build.reference)
    tasks = ((portion, seen, tally.level) for portion, seen in numbered)
    for number, part in enumerate(in_order(tasks, tallier, workers=build.workers), start=place.portions + 1):
        tally.add(part.rows)
        about = about.added(part.about)
        progress(reader.bytes_done, about.accounting.read, about.tokens)
        if lasting and time.monotonic() >= due:
            began = time.monotonic()
            so_far = TallyFile(about=about, rows=tally.rows())
            write_tally(path, so_far, beside={**options, **numbered.place(number).to_json()})
            due = time.monotonic() + max(build.every, _TIMES * (time.monotonic() - began))
    reader.accounting.add(about.accounting)
    reader.finish()
    result = TallyFile(about=about.added(of_inputs(kind, reader.digests)), rows=tally.rows())
    write_tally(out, result)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    if build.near is not None:
        remove_near(out)
    return result


@dataclass(frozen=True, slots=True)
class Part:
    """The tally of a portion."""

    about: About
    rows: TallyRows | Occurrences


class Tallier:
    """Tally one portion. It can be sent to another process.

    Args:
        sifter: parses and tokenises.
        reference: whose mass is tallied, if any.
    """

    def __init__(self, sifter: Sifter, reference: ReferenceReader | None = None) -> None:
        self._sifter = sifter
        self._reference = reference

    def __call__(self, portion: Portion, seen: Flags, level: int) -> Part:
        """Return the rows of a portion, of the windows kept at *level*; *seen*: records that were there before."""
        found = self._sifter.sift(portion, seen)
        positions, left_out, rows = self._rows(found, level)
        about = About(
            window=self._sifter.window,
            special_ids=self._sifter.special_ids,
            tokenizer="",
            capacity=0,
            prompt_policy="",
            duplicates="",
            tokens=found.tokens,
            positions=positions,
            left_out_prompt=left_out,
            texts=len(found.responses),
            without_prompt=found.without_prompt,
            from_ids=found.from_ids,
            fingerprints=frozenset(found.fingerprints),
            accounting=found.accounting,
        )
        return Part(about, rows)

    def _rows(self, found: Sifted, level: int) -> tuple[int, int, TallyRows | Occurrences]:
        """Return how many positions are in, how many are left out for prompts, and the rows."""
        if self._reference is None:
            positions = self._sifter.positions(found)
            said = Occurrences.of_positions(positions, window=self._sifter.window, level=level)
            return int(np.count_nonzero(positions.valid)), positions.left_out_prompt, said
        reference = self._reference.read(found.responses, found.prompt_texts)
        tally = self._sifter.tally(found, reference)
        mass = first_mass(tally, reference, special_ids=self._sifter.special_ids)
        return tally.scored, tally.left_out_prompt, TallyRows.of_tally(tally, first_mass=mass).cut(level)


@dataclass(frozen=True, slots=True)
class _Before:
    about: About
    rows: TallyRows
    place: Place


def _checkpoint(path: Path, kind: About, options: dict[str, Any]) -> _Before | None:
    """Return what the checkpoint holds, if there is one."""
    if not path.exists():
        return None
    tally, beside = read_tally(path)
    then = {key: value for key, value in (beside or {}).items() if key not in ("portions", "chain")}
    if beside is None or rfc8785.dumps([tally.about.kind(), then]) != rfc8785.dumps([kind.kind(), options]):
        raise UsageError(
            f"{printable(path)} is the checkpoint of a run with other inputs or options: give the same ones to go on "
            "with it, or delete it to begin anew"
        )
    return _Before(tally.about, tally.rows, Place.of_json(beside))


def kind_of(sifter: Sifter, build: Build) -> About:
    """Return what the tally of nothing is of."""
    return About(
        window=sifter.window,
        special_ids=sifter.special_ids,
        tokenizer=sifter.tokenizer.digest(),
        capacity=build.capacity,
        prompt_policy=sifter.policy.value,
        duplicates=_duplicates(build),
        reference=None if build.reference is None else build.reference.name,
        reference_fingerprints=frozenset() if build.reference is None else build.reference.fingerprints,
    )


def _duplicates(build: Build) -> str:
    if build.near is None:
        return "kept" if build.keep_duplicates else "once"
    if build.keep_duplicates:
        raise UsageError("near-duplicates are left out where identical records are: not with --keep-duplicates")
    return f"near-duplicates of {build.near.threshold:g} left out"


def of_inputs(kind: About, digests: Mapping[str, str]) -> About:
    """Return *kind* with the digests of inputs by name, and nothing else in it."""
    return replace(kind, inputs=tuple(sorted((digest, name) for name, digest in digests.items())))
