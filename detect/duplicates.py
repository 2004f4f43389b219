"""Which records were there before: a set of 16-byte digests, 23 to 46 bytes a record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from watermark.kernels import kernel

__all__ = ["Duplicates"]

Words = npt.NDArray[np.uint64]


class Duplicates:
    """Tell records that were there before by their digests (the first 16 bytes of a SHA-256)."""

    def __init__(self) -> None:
        self._table = np.zeros((2**10, 2), dtype=np.uint64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def holds(self, digests: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Tell which of some records were there, and take none up; an empty digest never was."""
        known, words = _words(digests)
        held = np.zeros(len(known), dtype=np.bool_)
        held[known] = _looked_up(self._table, words, False)
        return held

    def add(self, digests: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Take up the digests of some records and tell which were there before; an empty one never was."""
        known, words = _words(digests)
        while 10 * (self._size + len(words)) > 7 * len(self._table):
            larger = np.zeros((2 * len(self._table), 2), dtype=np.uint64)
            _looked_up(larger, self._table[self._table.any(axis=1)], True)
            self._table = larger
        before = np.zeros(len(known), dtype=np.bool_)
        before[known] = _looked_up(self._table, words, True)
        self._size += int((known & ~before).sum())
        return before


def _words(digests: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], Words]:
    """Return which digests are not empty, and those as two words each."""
    known = np.array([len(digest) == 16 for digest in digests], dtype=np.bool_)
    words = np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64).reshape(-1, 2)
    # Two zeros mark an empty place.
    words[(words == 0).all(axis=1), 0] = 1
    return known, words


@kernel
def _looked_up(table: Words, words: Words, put: bool) -> npt.NDArray[np.bool_]:
    """Return which of *words* are in the table, and put the others into it if *put*."""
    mask = np.uint64(table.shape[0] - 1)
    found = np.zeros(words.shape[0], np.bool_)
    for i in range(words.shape[0]):
        slot = words[i, 0] & mask
        while table[slot, 0] != np.uint64(0) or table[slot, 1] != np.uint64(0):
            if table[slot, 0] == words[i, 0] and table[slot, 1] == words[i, 1]:
                found[i] = True
                break
            slot = (slot + np.uint64(1)) & mask
        if put:
            table[slot, 0] = words[i, 0]
            table[slot, 1] = words[i, 1]
    return found
