"""RFC 6962 trees: vectors, every leaf of small trees, and an independent implementation (pymerkle)."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watermark.errors import VerificationError
from watermark.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    leaf_hash,
    node_hash,
    tree_of,
    verify_consistency,
    verify_inclusion,
)

#: The eight leaves of certificate-transparency's and Trillian's tests, whose roots many implementations share
#: (merkle_tree_test.cc; transparency-dev/merkle testonly.LeafInputs, RootHashes).
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def leaves_of(count: int) -> list[bytes]:
    return [leaf_hash(index.to_bytes(4, "big")) for index in range(count)]


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 2.1, word by word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 2.1.1, word by word."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if index < k:
        return [*path(index, leaves[:k]), mth(leaves[k:])]
    return [*path(index - k, leaves[k:]), mth(leaves[:k])]


def subproof(old: int, leaves: list[bytes], known: bool) -> list[bytes]:
    """RFC 6962 2.1.2, word by word."""
    if old == len(leaves):
        return [] if known else [mth(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if old <= k:
        return [*subproof(old, leaves[:k], known), mth(leaves[k:])]
    return [*subproof(old - k, leaves[k:], False), mth(leaves[:k])]


def test_the_published_roots() -> None:
    hashes = [leaf_hash(data) for data in INPUTS]
    for size, root in enumerate(ROOTS):
        assert tree_of(hashes[:size]).root().hex() == root
        frontier = Frontier()
        for leaf in hashes[:size]:
            frontier.append(leaf)
        assert frontier.root().hex() == root
    assert EMPTY_ROOT.hex() == ROOTS[0]


def test_every_leaf_of_every_size_up_to_69() -> None:
    everything = leaves_of(69)
    whole = tree_of(everything)
    for size in range(1, 70):
        leaves = everything[:size]
        root = mth(leaves)
        assert whole.root(size) == root
        for index in range(size):
            proof = whole.inclusion(index, size)
            assert proof == path(index, leaves)
            verify_inclusion(leaves[index], index=index, size=size, proof=proof, root=root)
        for old in range(1, size + 1):
            proof = whole.consistency(old, size)
            assert proof == subproof(old, leaves, True)
            verify_consistency(old=old, new=size, old_root=mth(leaves[:old]), new_root=root, proof=proof)


def test_random_leaves_of_large_trees_against_pymerkle() -> None:
    pymerkle = pytest.importorskip("pymerkle")
    rng = random.Random(1)
    count = 3000
    tree, theirs = tree_of(leaves_of(count)), pymerkle.InmemoryTree(algorithm="sha256")
    for index in range(count):
        theirs.append_entry(index.to_bytes(4, "big"))
    assert theirs.get_root() == tree.root()
    for _ in range(2000):
        size = rng.randrange(1, count + 1)
        index, old = rng.randrange(size), rng.randrange(1, size + 1)
        leaf, root = theirs.get_leaf(index + 1), tree.root(size)
        assert theirs.get_root(size) == root
        ours = tree.inclusion(index, size)
        verify_inclusion(leaf, index=index, size=size, proof=ours, root=theirs.get_root(size))
        # Theirs holds the leaf too, and has an order of folding of its own.
        path_of_theirs = theirs.prove_inclusion(index + 1, size).serialize()["path"]
        assert sorted([leaf.hex(), *(value.hex() for value in ours)]) == sorted(path_of_theirs)
        verify_consistency(
            old=old,
            new=size,
            old_root=theirs.get_root(old),
            new_root=root,
            proof=tree.consistency(old, size),
        )


@given(st.integers(1, 2000), st.data())
def test_tiles_and_frontier_are_the_tree(size: int, data: st.DataObject) -> None:
    """What a log keeps (leaves, nodes at level 8) gives the roots and proofs that the definition gives."""
    leaves = leaves_of(size)
    reads: list[tuple[int, int, int]] = []
    nodes: dict[int, list[bytes]] = {0: leaves}
    frontier = Frontier()
    for leaf in leaves:
        for level, position, value in frontier.append(leaf):
            assert position == len(nodes.setdefault(level, []))
            nodes[level].append(value)
        # A frontier survives being stored.
        frontier = Frontier(frontier.size, frontier.to_bytes())

    def read(level: int, start: int, count: int) -> list[bytes]:
        reads.append((level, start, count))
        return nodes[level][start : start + count]

    tree = Tree(size, read)
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    assert frontier.root() == tree.root() == mth(leaves)
    reads.clear()
    assert tree.inclusion(index) == path(index, leaves)
    assert sum(count for _, _, count in reads) <= 2 * 256
    assert tree.consistency(old) == subproof(old, leaves, True)


@given(st.integers(2, 300), st.data())
def test_a_wrong_proof_is_refused(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    tree = tree_of(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof, root = tree.inclusion(index), tree.root()
    other = data.draw(st.integers(0, size - 1).filter(lambda value: value != index))
    at = data.draw(st.integers(0, len(proof) - 1))
    flipped = [*proof[:at], bytes([proof[at][0] ^ 1]) + proof[at][1:], *proof[at + 1 :]]
    for leaf, position, hashes, head in (
        (leaves[other], index, proof, root),
        (leaves[index], other, proof, root),
        (leaves[index], index, flipped, root),
        (leaves[index], index, proof[:-1], root),
        (leaves[index], index, [*proof, root], root),
        (leaves[index], index, proof, leaf_hash(root)),
        (leaves[index], size, proof, root),
        (leaves[index], -1, proof, root),
    ):
        with pytest.raises(VerificationError):
            verify_inclusion(leaf, index=position, size=size, proof=hashes, root=head)


@given(st.integers(2, 300), st.data())
def test_a_rewritten_log_has_no_consistency_proof(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    old = data.draw(st.integers(1, size - 1))
    changed = list(leaves)
    changed[data.draw(st.integers(0, old - 1))] = leaf_hash(b"another")
    before, after = tree_of(leaves[:old]).root(), tree_of(changed)
    with pytest.raises(VerificationError):
        verify_consistency(
            old=old, new=size, old_root=before, new_root=after.root(), proof=after.consistency(old, size)
        )
    good = tree_of(leaves)
    proof = good.consistency(old)
    for hashes in (proof[:-1], [*proof, before], []):
        with pytest.raises(VerificationError):
            verify_consistency(old=old, new=size, old_root=before, new_root=good.root(), proof=hashes)


def test_consistency_at_the_edges() -> None:
    root = tree_of(leaves_of(5)).root()
    verify_consistency(old=0, new=5, old_root=EMPTY_ROOT, new_root=root, proof=[])
    verify_consistency(old=5, new=5, old_root=root, new_root=root, proof=[])
    for old, old_root, proof in ((0, root, []), (5, EMPTY_ROOT, []), (5, root, [root]), (6, root, [])):
        with pytest.raises(VerificationError):
            verify_consistency(old=old, new=5, old_root=old_root, new_root=root, proof=proof)


def test_what_cannot_be_asked() -> None:
    tree = tree_of(leaves_of(5))
    for ask in (lambda: tree.inclusion(5), lambda: tree.root(6), lambda: tree.consistency(6), lambda: tree.root(-1)):
        with pytest.raises(IndexError):
            ask()
    with pytest.raises(ValueError, match="expected 64 bytes for 5 leaves"):
        Frontier(5, b"short")
    with pytest.raises(VerificationError, match="holes"):
        Tree(5, lambda level, start, count: []).root()


def test_a_leaf_cannot_pass_for_a_node() -> None:
    left, right = leaves_of(2)
    assert leaf_hash(left + right) != node_hash(left, right)
