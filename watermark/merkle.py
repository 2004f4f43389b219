"""The Merkle tree of RFC 6962 section 2.1: roots, inclusion and consistency proofs, and what is kept to make them.

::

    MTH({})    = SHA-256()
    MTH({d})   = SHA-256(0x00 + d)                            a leaf
    MTH(D[n])  = SHA-256(0x01 + MTH(D[0:k]) + MTH(D[k:n]))    k the largest power of two below n

An append-only log keeps two things: the hash of every leaf, and one *tile node* for each complete subtree whose
height is a multiple of 8 (so 256 leaves, 65,536 leaves, ...), as C2SP's tlog-tiles does. `Frontier` says which tile
nodes an appended leaf completes. `Tree` makes roots and proofs from them: a proof in a log of 16 million leaves reads
at most 255 hashes of each of its three levels.

A verifier here raises `VerificationError` and never returns False.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from watermark.errors import VerificationError

__all__ = [
    "EMPTY_ROOT",
    "TILE_HEIGHT",
    "Frontier",
    "Tree",
    "leaf_hash",
    "node_hash",
    "tree_of",
    "verify_consistency",
    "verify_inclusion",
]

#: Levels of the tree between one kept level and the next.
TILE_HEIGHT: Final = 8

#: The root of the tree without a leaf.
EMPTY_ROOT: Final = sha256().digest()

#: Return *count* hashes of complete subtrees of height *level* (a multiple of 8) from the *start*-th on.
ReadHashes = Callable[[int, int, int], Sequence[bytes]]


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf that holds *data*: 32 bytes."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node from its children's hashes: 32 bytes."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: one hash for each one bit of its size, the largest subtree first.

    >>> frontier = Frontier()
    >>> for data in (b"a", b"b", b"c"):
    ...     frontier.append(leaf_hash(data))
    []
    []
    []
    >>> frontier.root() == tree_of([leaf_hash(data) for data in (b"a", b"b", b"c")]).root()
    True

    Args:
        size: leaves so far.
        hashes: 32 bytes for each one bit of *size*, joined, as `to_bytes` returns them.

    Raises:
        ValueError: *hashes* does not fit *size*.
    """

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: bytes = b"") -> None:
        if len(hashes) != 32 * size.bit_count():
            raise ValueError(f"expected {32 * size.bit_count()} bytes for {size} leaves, got {len(hashes)}")
        self.size = size
        self._hashes = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Append a leaf's hash; return the tile nodes it completes: level (8, 16, ...), index in that level, hash."""
        completed = []
        self.size += 1
        height, current = 0, leaf
        # Each trailing zero bit of the new size is a subtree that just became complete.
        rest = self.size
        while not rest & 1:
            current = node_hash(self._hashes.pop(), current)
            height, rest = height + 1, rest >> 1
            if height % TILE_HEIGHT == 0:
                completed.append((height, rest - 1, current))
        self._hashes.append(current)
        return completed

    def root(self) -> bytes:
        """Return the root of the tree as it is."""
        return _fold(self._hashes)

    def to_bytes(self) -> bytes:
        """Return what the constructor takes."""
        return b"".join(self._hashes)


class Tree:
    """A log's tree, read through what is kept of it.

    Args:
        size: how many leaves may be read.
        read: returns hashes of complete subtrees by level (0, 8, 16, ...), first index and count. It is asked for
            no subtree that reaches beyond *size*.
    """

    def __init__(self, size: int, read: ReadHashes) -> None:
        self.size = size
        self._read = read

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first *size* leaves (all, by default)."""
        return self._range(0, self._checked(size))

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the inclusion proof of leaf *index* in the tree of the first *size* leaves (RFC 6962 2.1.1).

        The hashes are in the order of the RFC: the leaf's sibling first, the root's child last.

        Raises:
            IndexError: there is no such leaf in that tree.
        """
        size = self._checked(size)
        if not 0 <= index < size:
            raise IndexError(f"leaf {index} of a tree of {size}")
        path: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self._range(middle, high))
                high = middle
            else:
                path.append(self._range(low, middle))
                low = middle
        return path[::-1]

    def consistency(self, old: int, new: int | None = None) -> list[bytes]:
        """Return the proof that the tree of *new* leaves continues that of *old* (RFC 6962 2.1.2).

        It is empty for *old* = *new*; RFC 6962 defines none for *old* = 0, and it is empty here too.

        Raises:
            IndexError: *old* is larger than *new*.
        """
        new = self._checked(new)
        if not 0 <= old <= new:
            raise IndexError(f"a tree of {old} leaves is no beginning of one of {new}")
        if old in (0, new):
            return []
        path: list[bytes] = []
        low, high, known = 0, new, True
        while old != high:
            middle = low + _split(high - low)
            if old <= middle:
                path.append(self._range(middle, high))
                high = middle
            else:
                path.append(self._range(low, middle))
                low, known = middle, False
        if not known:
            path.append(self._range(low, high))
        return path[::-1]

    def _checked(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise IndexError(f"{size} leaves of a tree of {self.size}")
        return size

    def _range(self, low: int, high: int) -> bytes:
        """Return MTH(D[low:high]), where *low* is a multiple of the largest power of two in the range."""
        return _fold([self._subtree(height, index) for height, index in _complete_subtrees(low, high)])

    def _subtree(self, height: int, index: int) -> bytes:
        """Return the hash of the complete subtree over leaves [index * 2^height, (index + 1) * 2^height)."""
        above = height % TILE_HEIGHT
        hashes = self._read(height - above, index << above, 1 << above)
        if len(hashes) != 1 << above:
            raise VerificationError(
                f"the tree has holes: expected {1 << above} hashes of level {height - above} from {index << above} on, "
                f"got {len(hashes)}"
            )
        while len(hashes) > 1:
            hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
        return hashes[0]


def tree_of(leaves: Sequence[bytes]) -> Tree:
    """Return the tree over leaf hashes that are in memory.

    >>> tree_of([]).root() == EMPTY_ROOT
    True
    """
    levels: dict[int, list[bytes]] = {0: list(leaves)}
    frontier = Frontier()
    for leaf in leaves:
        for level, _, value in frontier.append(leaf):
            levels.setdefault(level, []).append(value)

    def read(level: int, start: int, count: int) -> Sequence[bytes]:
        return levels[level][start : start + count]

    return Tree(len(leaves), read)


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf stands at *index* in the tree of *size* leaves with this root (RFC 9162 2.1.3.2).

    Does not check where *root* comes from: take it from a checkpoint whose signature was verified.

    Args:
        leaf: the leaf's hash.
        index: 0 for the first.
        size: leaves of the tree.
        proof: as `Tree.inclusion` returns it.
        root: 32 bytes.

    Raises:
        VerificationError: it does not.
    """
    if not 0 <= index < size:
        raise VerificationError(f"inclusion proof: expected an index below the tree's size {size}, got {index}")
    position, last, value = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise VerificationError(f"inclusion proof: {len(proof)} hashes are too many for leaf {index} of {size}")
        if position & 1 or position == last:
            value = node_hash(sibling, value)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise VerificationError(f"inclusion proof: {len(proof)} hashes are too few for leaf {index} of {size}")
    if not compare_digest(value, root):
        raise VerificationError(
            f"inclusion proof: leaf {index} with this proof gives the root {value.hex()}, and the tree of {size} "
            f"leaves has {root.hex()}: the leaf, the proof or the tree is not the one that was logged"
        )


def verify_consistency(*, old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of *new* leaves begins with the tree of *old* leaves (RFC 9162 2.1.4.2).

    Does not check where the roots come from: take them from checkpoints whose signatures were verified.

    Raises:
        VerificationError: it does not: leaves were changed, removed or put in between.
    """
    if not 0 <= old <= new:
        raise VerificationError(f"consistency proof: a tree of {old} leaves is no beginning of one of {new}")
    if old in (0, new):
        if proof:
            raise VerificationError(f"consistency proof: expected none from {old} to {new} leaves, got {len(proof)}")
        if not compare_digest(old_root, EMPTY_ROOT if old == 0 else new_root):
            raise VerificationError(f"consistency: two roots for a tree of {old} leaves; the log was rewritten")
        return
    hashes = list(proof)
    if old & (old - 1) == 0:
        # A whole subtree is its own first hash, which the proof therefore leaves out.
        hashes.insert(0, old_root)
    if not hashes:
        raise VerificationError("consistency proof: expected hashes, got none")
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_value = new_value = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise VerificationError(f"consistency proof: {len(proof)} hashes are too many from {old} to {new} leaves")
        if position & 1 or position == last:
            old_value = node_hash(sibling, old_value)
            new_value = node_hash(sibling, new_value)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new_value = node_hash(new_value, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise VerificationError(f"consistency proof: {len(proof)} hashes are too few from {old} to {new} leaves")
    if not (compare_digest(old_value, old_root) and compare_digest(new_value, new_root)):
        raise VerificationError(
            f"consistency proof: the tree of {new} leaves does not begin with the tree of {old} leaves: the log was "
            "rewritten, or the proof is of another log"
        )


def _split(leaves: int) -> int:
    """Return the largest power of two below *leaves*, which is 2 or more."""
    return 1 << (leaves - 1).bit_length() - 1


def _complete_subtrees(low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield height and index of the complete subtrees that make up [low, high), from the left."""
    while low < high:
        height = (high - low).bit_length() - 1
        yield height, low >> height
        low += 1 << height


def _fold(hashes: Sequence[bytes]) -> bytes:
    """Return the root over complete subtrees of falling size."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in hashes[-2::-1]:
        root = node_hash(left, root)
    return root
