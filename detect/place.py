"""Where in its inputs a long reading stands, so that it can be gone on with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from detect.duplicates import Duplicates
from detect.inputs import Portion
from detect.near_duplicates import NearDuplicates
from detect.portions import Flags, flags_of
from detect.records import Reader
from watermark.errors import InputError

__all__ = ["NumberedPortions", "Place"]

_START = hashlib.sha256(b"taggant/checkpoint").digest()


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the inputs: after how many portions, and a chain of the digests of their records."""

    portions: int
    chain: bytes

    @classmethod
    def beginning(cls) -> Place:
        """Return the place before the first portion."""
        return cls(0, _START)

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Place:
        """Return the place that `to_json` wrote down."""
        return cls(int(value["portions"]), bytes.fromhex(str(value["chain"])))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"portions": self.portions, "chain": self.chain.hex()}


class NumberedPortions:
    """The portions after a place, with which of their records were there before.

    Reading begins at the inputs' beginning all the same, which is fast, since nothing is parsed: the duplicates are
    found again, and that the records before the place are still those that it is of.

    Args:
        reader: the inputs.
        size: bytes of a portion; a place is one of portions of this size.
        keep_duplicates: whether a record that was there before is as good as another.
        start: the portions from here on are wanted.
        near: what is left out besides; it was found in the same inputs.
    """

    def __init__(
        self, reader: Reader, *, size: int, keep_duplicates: bool, start: Place, near: NearDuplicates | None = None
    ) -> None:
        self._reader = reader
        self._size = size
        self._keep_duplicates = keep_duplicates
        self._start = start
        self._near = near
        self._records = hashlib.sha256()
        self._chain = _START
        self._places: dict[int, bytes] = {}

    def __iter__(self) -> Iterator[tuple[Portion, Flags]]:
        duplicates = Duplicates()
        number = 0
        for portion in self._reader.portions(self._size):
            digests = portion.digests()
            number += 1
            padded = b"".join(digest.ljust(16, b"\0") for digest in digests)
            self._chain = hashlib.sha256(self._chain + padded).digest()
            self._records.update(padded)
            none = np.zeros(len(digests), dtype=np.bool_)
            seen = flags_of(
                none if self._keep_duplicates else duplicates.add(digests),
                none if self._near is None else self._near.holds(digests),
            )
            if number > self._start.portions:
                self._places[number] = self._chain
                yield portion, seen
            elif number == self._start.portions:
                self._check()
        if number < self._start.portions:
            self._check()
        if self._near is not None and self.records() != self._near.records:
            raise InputError(
                "the inputs changed since near-duplicates were looked for in them. Bring them back, or begin anew"
            )

    def records(self) -> str:
        """Return the digest of all records read so far, in order, whatever the portions."""
        return self._records.hexdigest()

    def place(self, portions: int) -> Place:
        """Return the place after so many portions, which were yielded; earlier ones are forgotten."""
        place = Place(portions, self._places[portions])
        self._places = {number: chain for number, chain in self._places.items() if number >= portions}
        return place

    def _check(self) -> None:
        if self._chain != self._start.chain:
            raise InputError(
                "the inputs changed since the checkpoint was written: it is not of what they hold now. Bring them "
                "back, or delete it to begin anew"
            )
