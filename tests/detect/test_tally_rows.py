"""Rows in order, sampled and merged, against a tally in memory and against dictionaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect import row_kernels
from detect.bounded_tally import BoundedTally
from detect.reference import Reference
from detect.reference_check import first_mass
from detect.tally import positions_of, tally_of
from detect.tally_rows import MAX_LEVEL, TallyRows, _joined, last_hash
from watermark import kernels, prf
from watermark.errors import UsageError

SPECIAL = (3, 7)
ZERO = bytes(16)


def ids_of(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), dtype=np.uint32)


def rows_of(texts: list[np.ndarray], *, window: int, level: int = 0) -> TallyRows:
    return TallyRows.of_positions(positions_of(texts, window=window, special_ids=SPECIAL), window=window, level=level)


def counts_of(rows: TallyRows) -> dict[tuple[tuple[int, ...], int], int]:
    return {
        (tuple(rows.windows[w].tolist()), int(rows.tokens[p])): int(rows.said[p])
        for w in range(len(rows.hashes))
        for p in range(rows.starts[w], rows.starts[w + 1])
    }


def same(a: TallyRows, b: TallyRows) -> bool:
    return a.level == b.level and all(
        x.dtype == y.dtype and x.shape == y.shape and bool((x == y).all())
        for x, y in zip(a.columns(), b.columns(), strict=True)
    )


texts = st.lists(st.lists(st.integers(0, 9), max_size=40).map(ids_of), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(texts=texts, window=st.integers(1, 4))
def test_rows_are_those_of_the_tally_in_memory(texts: list[np.ndarray], window: int) -> None:
    tally = tally_of(texts, window=window, special_ids=SPECIAL)
    rows = rows_of(texts, window=window)
    assert same(rows, TallyRows.of_tally(tally))
    again = rows.to_tally(left_out_prompt=0)
    assert same(TallyRows.of_tally(again), rows)
    assert (again.lanes == prf.lane(again.windows)).all()


@settings(max_examples=100, deadline=None)
@given(texts=texts, window=st.integers(1, 3), level=st.integers(0, 6))
def test_level_keeps_whole_windows_by_their_hash(texts: list[np.ndarray], window: int, level: int) -> None:
    """DESIGN 5 by the letter, with the specification's SipHash."""
    whole, kept = rows_of(texts, window=window), rows_of(texts, window=window, level=level)
    hashes = prf.siphash24(ZERO, whole.windows)
    threshold = 2 ** (58 - level)
    expected = {
        (tuple(row), token): said
        for (row, token), said in counts_of(whole).items()
        if int(prf.siphash24(ZERO, np.array([row], dtype=np.uint32))[0]) >> 6 < threshold
    }
    assert counts_of(kept) == expected
    assert same(kept, whole.cut(level))
    assert (hashes == whole.hashes).all()


def test_windows_whose_hashes_begin_alike() -> None:
    """The slow paths, for windows that share the bits they are sorted by: here down to all of them."""
    rng = np.random.default_rng(3)
    ids = rng.integers(10, 16, 3000).astype(np.uint32)
    found = positions_of([ids], window=2)
    expected = rows_of([ids], window=2)
    for bits in (0, 1, 3):
        shift = 64 - bits if bits else 63
        words = kernels.packed_windows(found.ids, found.valid, 2, last_hash(0), 0, shift)
        words = np.sort(words & np.uint64(2**63 - 1) if not bits else words)
        names, windows = row_kernels.rank_windows(words, shift, ids, 2)
        starts, tokens, said = row_kernels.count_pairs(np.sort(names), len(windows))
        rows = TallyRows(
            level=0,
            hashes=kernels.window_hashes(windows),
            windows=windows,
            starts=starts,
            tokens=tokens,
            said=said,
            expected=np.zeros((0, 2), dtype=np.int64),
            information=np.zeros(0, dtype=np.int64),
        )
        assert not same(rows, expected)
        assert same(rows._in_order(), expected)


def test_adding_up_windows_whose_hashes_begin_alike() -> None:
    rng = np.random.default_rng(4)
    parts = [rows_of([rng.integers(10, 16, 500).astype(np.uint32)], window=2) for _ in range(5)]
    expected = TallyRows.total(parts)
    hashes, windows, starts, tokens, said, _, none = _joined(parts)
    for bits in (0, 1, 3):
        shift = 64 - bits if bits else 63
        heads = hashes >> np.uint64(shift) << np.uint64(shift) if bits else np.zeros_like(hashes)
        words = np.sort(heads | np.arange(len(heads), dtype=np.uint64))
        names, *ranked, _ = row_kernels.rank_rows(words, shift, hashes, windows, starts, tokens, none, 4, 20)
        into = (np.zeros(len(tokens) + 1, dtype=np.int64) for _ in range(2))
        into_starts, into_said, into_tokens = *into, np.zeros(len(tokens), dtype=np.uint32)
        masses = np.zeros((0, 2), dtype=np.int64)
        n = row_kernels.add_up(np.sort(names), 4, 20, said, masses, into_starts, into_tokens, into_said, masses, 0, 0)
        assert n == expected.pairs
        rows = TallyRows(
            level=0,
            hashes=ranked[0],
            windows=ranked[1],
            starts=into_starts[: len(ranked[0]) + 1],
            tokens=into_tokens[:n],
            said=into_said[:n],
            expected=masses,
            information=none,
        )
        assert not same(rows, expected)
        assert same(rows._in_order(), expected)


def test_adding_up_ids_that_no_vocabulary_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that do not fit a word: the range is halved until they do."""
    rng = np.random.default_rng(5)
    parts = [rows_of([rng.integers(2**32 - 40, 2**32 - 1, 900, dtype=np.uint32)], window=1) for _ in range(3)]
    expected = TallyRows.total(parts)
    monkeypatch.setattr("detect.tally_rows._WORD", 46)
    assert same(TallyRows.total(parts), expected)
    counted: Counter[tuple[tuple[int, ...], int]] = Counter()
    for part in parts:
        counted.update(counts_of(part))
    assert counts_of(expected) == counted


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(texts, min_size=3, max_size=3), levels=st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_merge_is_associative_commutative_and_a_sum(parts: list[list[np.ndarray]], levels: list[int]) -> None:
    a, b, c = (rows_of(part, window=2, level=level) for part, level in zip(parts, levels, strict=True))
    merged = TallyRows.total([a, b, c])
    assert same(merged, TallyRows.total([a, TallyRows.total([b, c])]))
    assert same(merged, TallyRows.total([TallyRows.total([c, a]), b]))
    total: Counter[tuple[tuple[int, ...], int]] = Counter()
    for part in parts:
        total.update(counts_of(rows_of(part, window=2, level=max(levels))))
    assert counts_of(merged) == total


def test_reference_mass_adds_up() -> None:
    rng = np.random.default_rng(1)

    def one() -> TallyRows:
        ids = rng.integers(10, 20, 200, dtype=np.uint32)
        top_ids = np.stack([rng.permutation(np.arange(10, 20, dtype=np.uint32))[:4] for _ in ids])
        top_p = -np.sort(-rng.dirichlet(np.ones(4), len(ids)), axis=1).astype(np.float32) * np.float32(0.9)
        reference = Reference(
            name="random",
            tokenizer="00" * 32,
            ids=ids,
            starts=np.array([0, len(ids)], dtype=np.int64),
            top_ids=top_ids,
            top_p=top_p,
            said_p=np.full(len(ids), 0.01, dtype=np.float32),
        )
        tally = tally_of([ids], window=1, reference=reference)
        return TallyRows.of_tally(tally, first_mass=first_mass(tally, reference, special_ids=()))

    parts = [one() for _ in range(3)]
    merged = TallyRows.total(parts)
    assert int(merged.expected.sum()) == sum(int(part.expected.sum()) for part in parts) > 0
    assert int(merged.information.sum()) == sum(int(part.information.sum()) for part in parts) > 0
    cut = merged.cut(2)
    assert len(cut.expected) == cut.pairs < merged.pairs
    assert len(cut.information) == len(cut.hashes)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=60).map(ids_of), min_size=1, max_size=12),
    capacity=st.integers(1, 300),
    data=st.data(),
)
def test_what_is_kept_depends_on_the_set_of_texts_alone(
    texts: list[np.ndarray], capacity: int, data: st.DataObject
) -> None:
    whole = rows_of(texts, window=1)
    level = next(level for level in range(MAX_LEVEL + 1) if whole.cut(level).pairs <= capacity)
    order = data.draw(st.permutations(range(len(texts))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(texts)), max_size=4)) | {0, len(texts)})
    tally = BoundedTally(window=1, capacity=capacity)
    for start, end in pairwise(cuts):
        tally.add(rows_of([texts[i] for i in order[start:end]], window=1, level=tally.level))
    assert same(tally.rows(), whole.cut(level))
    assert tally.level == level
    # Two bounded tallies make the third.
    halves = [BoundedTally(window=1, capacity=capacity) for _ in range(2)]
    for number, text in enumerate(texts):
        halves[number % 2].add(rows_of([text], window=1))
    together = BoundedTally(window=1, capacity=capacity)
    for half in halves:
        together.add(half.rows())
    assert same(together.rows(), whole.cut(level))


def test_capacity() -> None:
    with pytest.raises(UsageError, match="capacity of 1 pair or more"):
        BoundedTally(window=1, capacity=0)
    assert BoundedTally(window=2).rows().pairs == 0
