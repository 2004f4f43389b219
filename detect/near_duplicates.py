"""Near-duplicates: which documents say nearly what another says, in any order and in little memory.

A document's shingles are its runs of 5 token ids (a shorter text is one), and two documents are as similar as the
Jaccard index of their sets of shingles, |A and B| / |A or B|. It is estimated by MinHash (Broder, SEQUENCES 1997): of
128 permutations, the share under which both sets have the same first shingle. One byte of each first shingle is kept
(Li and Koenig, WWW 2010), so that strangers agree in 1 of 256. The estimate's standard deviation is at most 0.045.

Pairs are looked at that agree in a whole band of permutations (Indyk and Motwani, STOC 1998), bands so wide that of
pairs at the threshold fewer than 1% are missed. Pairs whose estimate is at least the threshold are joined, and so are
those that are joined by way of others. All of it is a function of the set of documents: of their order, and of who
hashed which, nothing is left. The permutations are ours, not those of a library: another version of it would leave out
others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detect.duplicates import Duplicates
from watermark.errors import UsageError
from watermark.kernels import inline, kernel, window_hashes

__all__ = ["LEAST", "PERMUTATIONS", "SHINGLE", "NearDuplicates", "matches_needed", "signatures", "to_leave_out"]

Ids = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

#: Token ids of a shingle.
SHINGLE = 5

PERMUTATIONS = 128

#: The lowest threshold: below it the pairs that have to be looked at are most of all.
LEAST = 0.5

#: Share of the pairs at the threshold that may agree in no band.
_MISSED = 0.01

#: Of the documents that agree in a band each is held against so many before it, in the order of their digests: what
#: bounds the time where very many agree and are not alike.
_MOST_COMPARED = 1000

#: Digests taken up at a time.
_TAKEN = 2**16

_WORDS = np.frombuffer(hashlib.shake_128(b"taggant/near-duplicates").digest(8 * PERMUTATIONS), dtype="<u4")
#: Permutations of the 32-bit integers: x to a x + b, a odd.
_A = _WORDS[:PERMUTATIONS].astype(np.uint32) | np.uint32(1)
_B = _WORDS[PERMUTATIONS:].astype(np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NearDuplicates:
    """What is left out of some inputs for being nearly another record of theirs."""

    threshold: float
    records: str
    """The digest of all records of the inputs, by which it is known that they are still the same."""
    left_out: Words
    """The digests of the records to leave out as two big-endian words each, sorted, (n, 2)."""
    _table: Duplicates = field(default_factory=Duplicates, repr=False)

    def __post_init__(self) -> None:
        for start in range(0, len(self.left_out), _TAKEN):
            data = self.left_out[start : start + _TAKEN].astype(">u8").tobytes()
            self._table.add([data[i : i + 16] for i in range(0, len(data), 16)])

    def holds(self, digests: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Tell which records, by their digests, are to be left out."""
        return self._table.holds(digests)

    def digest(self) -> str:
        """Return the SHA-256 of the digests that are left out."""
        return hashlib.sha256(self.left_out.astype(">u8").tobytes()).hexdigest()


def signatures(texts: Sequence[Ids], document: Sequence[int], *, documents: int) -> Bytes:
    """Return the signature of each document: uint8 (documents, 128).

    Args:
        texts: ids of each text.
        document: to which document each belongs.
        documents: how many there are.
    """
    lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
    ends = np.cumsum(lengths)
    first, last = ends - lengths, ends - (SHINGLE - 1)
    ids = np.concatenate([np.zeros(0, dtype=np.uint32), *texts])
    # All runs of 5 at once, those that reach from one text into the next among them, which nothing refers to.
    hashes = [_hashes(ids, SHINGLE)]
    count = len(hashes[0])
    for i in np.flatnonzero((lengths > 0) & (lengths < SHINGLE)):
        hashes.append(_hashes(texts[int(i)], int(lengths[i])))
        first[i], last[i], count = count, count + 1, count + 1
    return _minima(np.concatenate(hashes), first, last, np.array(document, dtype=np.int64), documents, _A, _B)


def _hashes(ids: Ids, size: int) -> Words:
    """Return the key-free hash of each run of *size* ids."""
    if len(ids) < size:
        return np.zeros(0, dtype=np.uint64)
    return window_hashes(np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(ids, size)))


def matches_needed(threshold: float) -> int:
    """Return in how many bytes of 128 two signatures must agree to be as similar as *threshold*.

    Bytes agree where the shingles do, and in 1 of 256 where they don't.

    >>> matches_needed(0.8), matches_needed(1.0)
    (103, 128)
    """
    # What floating point adds to a whole number is no reason for a further match.
    return math.ceil(PERMUTATIONS * (threshold + (1 - threshold) / 256) - 1e-9)


def to_leave_out(digests: Bytes, signed: Bytes, *, threshold: float) -> Words:
    """Return which documents are near-duplicates of one with a smaller digest.

    Args:
        digests: (n, 16), in any order; those of a digest that is there before are the same document.
        signed: their signatures, (n, 128). Both may be on disk.
        threshold: from 0.5 to 1.

    Returns:
        The digests, as two big-endian words each, sorted, (left out, 2).

    Raises:
        UsageError: the threshold is not one, or there are 2^31 documents.
    """
    if not LEAST <= threshold <= 1:
        raise UsageError(f"near-duplicates: expected a similarity from {LEAST} to 1, got {threshold:g}")
    if len(digests) >= 2**31:
        raise UsageError("near-duplicates: 2^31 documents are too many for one build: tally parts and merge")
    words = np.ascontiguousarray(digests).view(">u8").astype(np.uint64).reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))
    words = words[order]
    first = np.ones(len(words), dtype=np.bool_)
    first[1:] = (words[1:] != words[:-1]).any(axis=1)
    order, words = order[first], words[first]
    # From here on a document is its rank by digest, so that the smallest of a group stands for it.
    parent = np.arange(len(order), dtype=np.int32)
    rows = _rows_of_a_band(threshold)
    for band in range(PERMUTATIONS // rows):
        # In the order of the file, which may be larger than memory.
        keys = _keys(signed, band * rows, rows)[order]
        by_key = np.argsort(keys, kind="stable")
        _join(signed, order, keys, by_key, parent, matches_needed(threshold), _MOST_COMPARED)
    stands = _roots(parent) == np.arange(len(order))
    return np.ascontiguousarray(words[~stands])


def _rows_of_a_band(threshold: float) -> int:
    """Return the widest band, 8 at most, for which hardly a pair at the threshold agrees in none."""
    for rows in range(8, 1, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= _MISSED:
            return rows
    raise AssertionError("a threshold of 0.5 has a band of 3")


@kernel
def _minima(
    hashes: Words,
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    document: npt.NDArray[np.int64],
    documents: int,
    a: Ids,
    b: Ids,
) -> Bytes:
    """Return a byte of the first shingle of each document under each permutation.

    Args:
        hashes: of shingles, (n,).
        first: where the shingles of each text begin, (t,).
        last: and end.
        document: of each text, (t,).
        documents: m, how many there are.
        a: (128,), odd.
        b: (128,).

    Returns:
        (m, 128).
    """
    count = a.shape[0]
    least = np.full((documents, count), np.uint32(0xFFFFFFFF), np.uint32)
    out = np.empty((documents, count), np.uint8)
    for text in range(first.shape[0]):
        row = least[document[text]]
        for j in range(first[text], last[text]):
            x = np.uint32(hashes[j])
            for i in range(count):
                value = np.uint32(a[i] * x + b[i])
                row[i] = min(row[i], value)
    for m in range(documents):
        for i in range(count):
            # The finisher of MurmurHash3, so that the byte depends on all of the smallest value.
            z = least[m, i]
            z = np.uint32((z ^ (z >> np.uint32(16))) * np.uint32(0x85EBCA6B))
            z = np.uint32((z ^ (z >> np.uint32(13))) * np.uint32(0xC2B2AE35))
            out[m, i] = np.uint8((z ^ (z >> np.uint32(16))) >> np.uint32(24))
    return out


@kernel
def _keys(signed: Bytes, start: int, rows: int) -> Words:
    """Return the bytes of a band as a number: (n, 128) to (n,)."""
    out = np.empty(signed.shape[0], np.uint64)
    for i in range(signed.shape[0]):
        key = np.uint64(0)
        for j in range(rows):
            key = (key << np.uint64(8)) | np.uint64(signed[i, start + j])
        out[i] = key
    return out


@inline
def _root(parent: npt.NDArray[np.int32], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


@kernel
def _join(
    signed: Bytes,
    order: npt.NDArray[np.int64],
    keys: Words,
    by_key: npt.NDArray[np.int64],
    parent: npt.NDArray[np.int32],
    needed: int,
    most: int,
) -> None:
    """Join the documents that agree in a band and in *needed* bytes, in place, to the one of the lowest rank."""
    start, n = 0, by_key.shape[0]
    while start < n:
        end = start + 1
        while end < n and keys[by_key[end]] == keys[by_key[start]]:
            end += 1
        # Whether all before i are joined already: then one of them joins i to all.
        single = True
        for i in range(start + 1, end):
            joined = False
            for j in range(i - 1, max(start, i - most) - 1, -1):
                one, other = _root(parent, by_key[i]), _root(parent, by_key[j])
                if one != other:
                    left, right = order[by_key[i]], order[by_key[j]]
                    agree = 0
                    for k in range(signed.shape[1]):
                        agree += int(signed[left, k] == signed[right, k])
                    if agree < needed:
                        continue
                    parent[max(one, other)] = min(one, other)
                joined = True
                if single:
                    break
            single = single and joined
        start = end


@kernel
def _roots(parent: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    out = np.empty(parent.shape[0], np.int64)
    for i in range(parent.shape[0]):
        out[i] = _root(parent, i)
    return out
