"""The first pass over a corpus in which near-duplicates are left out: the signature of every document.

Signatures are appended to files beside the output, 144 bytes a document with its digest. How far they reach is written
down once a minute, in one step, so that whatever ends the process, the next run cuts off what came after and goes on.
In memory are some 32 bytes a document here (to tell identical records), and some 40 while groups are made.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rfc8785

from detect.inputs import Portion
from detect.near_duplicates import LEAST, PERMUTATIONS, NearDuplicates, signatures, to_leave_out
from detect.place import NumberedPortions, Place
from detect.portions import Flags, Sifter, in_order
from detect.records import Accounting, Reader
from detect.strict_json import parse_object
from detect.tally import PromptPolicy
from watermark.errors import InputError, UsageError, printable
from watermark.whole_file import writing_whole

__all__ = ["Signatures", "Signed", "Signer", "find_near_duplicates", "near_of", "remove_near"]

#: Seconds between the times at which it is written down how far the signatures reach.
_EVERY = 60.0

_DIGEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """The signatures of a portion's documents."""

    digests: bytes
    """16 of each document."""
    signatures: bytes
    """128 of each."""
    tokens: int
    accounting: Accounting


class Signer:
    """Sign the documents of one portion. It can be sent to another process.

    Args:
        sifter: parses and tokenises.
    """

    def __init__(self, sifter: Sifter) -> None:
        # Which documents there are does not depend on the prompts, and a signature is of what was said.
        self._sifter = Sifter(
            sifter.tokenizer,
            window=sifter.window,
            special_ids=sifter.special_ids,
            policy=PromptPolicy.CLEAN,
            fields=sifter.fields,
            retokenize=sifter.retokenize,
        )

    def __call__(self, portion: Portion, seen: Flags) -> Signed:
        """Return the signatures of the documents that are not left out for what *seen* says."""
        found = self._sifter.sift(portion, seen)
        digests = portion.digests()
        signed = signatures(found.responses, found.document, documents=len(found.sources))
        return Signed(
            digests=b"".join(digests[number] for number in found.record),
            signatures=signed.tobytes(),
            tokens=found.tokens,
            accounting=found.accounting,
        )


class Signatures:
    """Digests and signatures in two files of a folder.

    Args:
        folder: it is made if it is not there.
        count: so many documents of what is there are kept.

    Raises:
        UsageError: it cannot be written there.
    """

    def __init__(self, folder: Path, *, count: int = 0) -> None:
        self.count = count
        self._paths = {"digests": _DIGEST, "signatures": PERMUTATIONS}
        self._folder = folder
        try:
            folder.mkdir(exist_ok=True)
            for name, size in self._paths.items():
                path = folder / name
                path.touch()
                if path.stat().st_size < count * size:
                    raise InputError(
                        f"{printable(path)} is shorter than its state says: delete {printable(folder)} to begin anew"
                    )
                os.truncate(path, count * size)
        except OSError as error:
            raise _unwritable(folder, error) from None

    def add(self, parts: Sequence[Signed]) -> None:
        """Append documents, onto the disk before it returns."""
        try:
            for name in self._paths:
                with (self._folder / name).open("ab") as stream:
                    for part in parts:
                        stream.write(getattr(part, name))
                    stream.flush()
                    os.fsync(stream.fileno())
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        self.count += sum(len(part.digests) for part in parts) // _DIGEST

    def near(self, threshold: float, *, records: str) -> NearDuplicates:
        """Return what is to be left out of the inputs whose records have the digest *records*."""
        left_out = to_leave_out(self._mapped("digests"), self._mapped("signatures"), threshold=threshold)
        return NearDuplicates(threshold=threshold, records=records, left_out=left_out)

    def _mapped(self, name: str) -> npt.NDArray[np.uint8]:
        size = self._paths[name]
        if not self.count:
            return np.zeros((0, size), dtype=np.uint8)
        return np.asarray(np.memmap(self._folder / name, dtype=np.uint8, mode="r", shape=(self.count, size)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """How far a search has come."""

    count: int
    place: Place
    tokens: int
    accounting: Accounting
    records: str | None
    """The digest of all records, once all are read."""


def near_of(out: Path) -> Path:
    """Return the folder of the search for a command that writes to *out*."""
    return out.with_name(out.name + ".near-duplicates")


def remove_near(out: Path) -> None:
    """Remove that folder."""
    shutil.rmtree(near_of(out), ignore_errors=True)


def find_near_duplicates(
    inputs: Sequence[str | Path],
    sifter: Sifter,
    *,
    threshold: float,
    out: Path,
    workers: int = 1,
    portion: int,
    every: float = _EVERY,
    max_malformed: int = 0,
    progress: Callable[[int, int, int], None] = lambda bytes_read, records, tokens: None,
    resumed: Callable[[int], None] = lambda records: None,
) -> NearDuplicates:
    """Read everything that *inputs* hold, and tell which documents nearly repeat another.

    A run that was interrupted is gone on with. The folder beside *out* is kept, so that the pass that follows need not
    wait for this one again: whoever makes that removes it.

    Args:
        inputs: paths and patterns.
        sifter: parses and tokenises.
        threshold: the least estimated Jaccard similarity of the shingles of near-duplicates, from 0.5 to 1.
        out: what the pass that follows writes.
        workers: processes.
        portion: bytes of records that a worker takes at a time.
        every: seconds between checkpoints at least.
        max_malformed: with up to so many malformed records there is a result.
        progress: called after each portion with bytes read, records and ids so far.
        resumed: called with the number of records that an earlier run read.

    Raises:
        InputError: more is malformed than allowed, or the inputs changed since the earlier run.
        UsageError: what was begun is of other inputs or options, an input is a pipe, or the threshold is not one.
    """
    if not LEAST <= threshold <= 1:
        raise UsageError(f"near-duplicates: expected a similarity from {LEAST} to 1, got {threshold:g}")
    reader = Reader(inputs, fields=sifter.fields, max_malformed=max_malformed)
    if reader.bytes_total is None:
        raise UsageError("near-duplicates are looked for in a first pass, and a pipe is read once: save it to a file")
    options = {
        "schema": "taggant/near-duplicates/1",
        "inputs": reader.names,
        "bytes": reader.bytes_total,
        "fields": list(sifter.fields.names()),
        "tokenizer": sifter.tokenizer.digest(),
        "window": sifter.window,
        "retokenize": sifter.retokenize,
        "portion": portion,
    }
    folder = near_of(out)
    state = _read(folder, options)
    if state is None:
        # Signatures without a state are of a run that wrote down nothing.
        state = _State(count=0, place=Place.beginning(), tokens=0, accounting=Accounting(), records=None)
    elif state.records is None:
        resumed(state.accounting.read)
    kept = Signatures(folder, count=state.count)
    if state.records is None:
        numbered = NumberedPortions(reader, size=portion, keep_duplicates=False, start=state.place)
        held: list[Signed] = []
        accounting, tokens, number = state.accounting, state.tokens, state.place.portions
        due = time.monotonic() + every
        for signed in in_order(numbered, Signer(sifter), workers=workers):
            number += 1
            held.append(signed)
            accounting.add(signed.accounting)
            tokens += signed.tokens
            progress(reader.bytes_done, accounting.read, tokens)
            if time.monotonic() >= due:
                kept.add(held)
                held = []
                place = numbered.place(number)
                state = replace(state, count=kept.count, place=place, tokens=tokens, accounting=accounting)
                _write(folder, options, state)
                due = time.monotonic() + every
        reader.accounting.add(accounting)
        reader.finish()
        kept.add(held)
        place = numbered.place(number) if number > state.place.portions else state.place
        state = replace(
            state, count=kept.count, place=place, tokens=tokens, accounting=accounting, records=numbered.records()
        )
        _write(folder, options, state)
    return kept.near(threshold, records=str(state.records))


def _write(folder: Path, options: dict[str, Any], state: _State) -> None:
    value = {
        "options": options,
        "count": state.count,
        **state.place.to_json(),
        "tokens": state.tokens,
        "accounting": state.accounting.to_json(),
        "records": state.records,
    }
    with writing_whole(folder / "state.json", what="the state of the search") as partial, partial.open("wb") as stream:
        stream.write(rfc8785.dumps(value))
        stream.flush()
        os.fsync(stream.fileno())


def _read(folder: Path, options: dict[str, Any]) -> _State | None:
    """Return how far an earlier run came, if there was one."""
    path = folder / "state.json"
    if not path.exists():
        return None
    try:
        value: dict[str, Any] = parse_object(path.read_bytes())
        then = rfc8785.dumps(value["options"])
        state = _State(
            count=int(value["count"]),
            place=Place.of_json(value),
            tokens=int(value["tokens"]),
            accounting=Accounting(**value["accounting"]),
            records=None if value["records"] is None else str(value["records"]),
        )
    except (OSError, KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(
            f"{printable(path)}: no state of a search: {printable(error)}. Delete {printable(folder)} to begin anew"
        ) from None
    if then != rfc8785.dumps(options):
        raise UsageError(
            f"{printable(folder)} is of a run with other inputs or options: give the same ones to go on with it, or "
            "delete it to begin anew"
        )
    return state


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"{printable(folder)}: signatures cannot be kept there: {error.strerror}")
