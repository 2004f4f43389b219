"""Rows in order, sampled and merged, against a tally in memory and against dictionaries."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect import bounded_tally, row_kernels
from detect.bounded_tally import BoundedTally
from detect.occurrences import Grouping, Occurrences
from detect.reference import Reference
from detect.reference_check import first_mass
from detect.tally import Texts, positions_of, tally_of
from detect.tally_rows import MAX_LEVEL, TallyRows, last_hash
from watermark import kernels, prf
from watermark.errors import UsageError

SPECIAL = (3, 7)
ZERO = bytes(16)


def ids_of(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), dtype=np.uint32)


def said_in(texts: list[np.ndarray], *, window: int, level: int = 0) -> Occurrences:
    return Occurrences.of_positions(positions_of(texts, window=window, special_ids=SPECIAL), window=window, level=level)


def rows_of(texts: list[np.ndarray], *, window: int, level: int = 0) -> TallyRows:
    return said_in(texts, window=window, level=level).rows()


def counts_of(rows: TallyRows) -> dict[tuple[tuple[int, ...], int], int]:
    return {
        (tuple(rows.windows[w].tolist()), int(rows.tokens[p])): int(rows.said[p])
        for w in range(len(rows.hashes))
        for p in range(rows.starts[w], rows.starts[w + 1])
    }


def masses_of(parts: Iterable[TallyRows]) -> Counter[tuple[str, int, int]]:
    """What was said and expected of each pair, and the information of each window; windows of one id."""
    total: Counter[tuple[str, int, int]] = Counter()
    for rows in parts:
        pair_window = np.repeat(rows.windows[:, 0], np.diff(rows.starts)).tolist()
        columns = {"said": rows.said, "all": rows.expected[:, 0], "first": rows.expected[:, 1]}
        for name, column in columns.items():
            for window, token, amount in zip(pair_window, rows.tokens.tolist(), column.tolist(), strict=True):
                total[name, window, token] += amount
        for window, amount in zip(rows.windows[:, 0].tolist(), rows.information.tolist(), strict=True):
            total["information", window, 0] += amount
    return total


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


@settings(max_examples=100, deadline=None)
@given(texts=texts, window=st.integers(1, 4))
def test_whole_windows_by_the_letter(texts: list[np.ndarray], window: int) -> None:
    found = positions_of(texts, window=window, special_ids=SPECIAL)
    inside = [
        i >= window and not set(text[i - window : i + 1].tolist()) & set(SPECIAL)
        for text in texts
        for i in range(len(text))
    ]
    assert found.valid.tolist() == inside
    joined = positions_of(Texts(found.ids, found.starts), window=window, special_ids=SPECIAL)
    assert (joined.valid == found.valid).all()
    cut = Texts(found.ids, found.starts)
    assert [text.tolist() for text in cut] == [text.tolist() for text in texts] == [t.tolist() for t in cut[:]]


@settings(max_examples=100, deadline=None)
@given(texts=texts, window=st.integers(1, 5), level=st.integers(0, 3))
def test_pairs_that_are_kept(texts: list[np.ndarray], window: int, level: int) -> None:
    found = positions_of(texts, window=window, special_ids=SPECIAL)
    hashes, pairs = kernels.kept_pairs(found.ids, found.valid, window, last_hash(level))
    at = np.flatnonzero(found.valid)
    plain = found.ids[at[:, None] + np.arange(-window, 1)]
    expected = prf.siphash24(ZERO, np.ascontiguousarray(plain[:, :-1]))
    kept = expected <= last_hash(level)
    assert (hashes == expected[kept]).all()
    assert (pairs == plain[kept]).all()


def test_occurrences_are_the_same_in_another_process() -> None:
    said = said_in([np.arange(300, dtype=np.uint32)], window=3, level=1)
    sent = pickle.loads(pickle.dumps(said))  # noqa: S301
    assert sent.level == 1
    assert (sent.hashes == said.hashes).all()
    assert (sent.pairs == said.pairs).all()


def test_pairs_dealt_into_ranges() -> None:
    rng = np.random.default_rng(6)
    said = said_in([rng.integers(10, 60, 3000).astype(np.uint32)], window=2)
    level, bits = 2, 3
    sizes = np.zeros(2**bits, dtype=np.int64)
    row_kernels.count_ranges(said.hashes, last_hash(level), level, bits, sizes)
    which = (said.hashes >> np.uint64(64 - level - bits)).astype(np.int64)
    assert sizes.tolist() == [int((which == r).sum()) for r in range(2**bits)]
    ends = np.cumsum([0, *sizes])
    hashes, pairs = np.empty(sizes.sum(), dtype=np.uint64), np.empty((sizes.sum(), 3), dtype=np.uint32)
    row_kernels.deal(said.hashes, said.pairs, last_hash(level), level, bits, ends, hashes, pairs)
    order = np.argsort(which, kind="stable")[: sizes.sum()]
    assert (hashes == said.hashes[order]).all()
    assert (pairs == said.pairs[order]).all()
    # One range, and as many as there are hashes, are ranges too.
    for few in (0, 6):
        grouped = list(Grouping(window=2).grouped([said], level=level, bits=few))
        assert same(TallyRows.joined(grouped, level=level), said.rows().cut(level))


def test_windows_whose_hashes_begin_alike() -> None:
    """The slow path, for windows that share the bits that they are sorted by: here down to all but one."""
    rng = np.random.default_rng(3)
    said = said_in([rng.integers(10, 16, 3000).astype(np.uint32)], window=2)
    expected = said.rows()
    row_bits = len(said).bit_length()
    for head in (1, 3):
        bits = 64 - head - row_bits
        names = np.sort(row_kernels.name_pairs(said.hashes, said.pairs, 0, bits, row_bits))
        assert row_kernels.group(names, bits, row_bits, said.hashes, said.pairs)[0]
        row_kernels.separate(names, bits, row_bits, said.hashes, said.pairs)
        disordered, *columns = row_kernels.group(names, bits, row_bits, said.hashes, said.pairs)
        assert not disordered
        assert same(TallyRows.of_said(0, *columns), expected)  # type: ignore[arg-type]


def test_windows_whose_hashes_are_the_same() -> None:
    """Nobody has found two, but who knows the hash could: here all of them are."""
    rng = np.random.default_rng(7)
    said = said_in([rng.integers(10, 16, 2000).astype(np.uint32)], window=3)
    hashes, row_bits = np.full(len(said), 2**40, dtype=np.uint64), len(said).bit_length()
    names = np.sort(row_kernels.name_pairs(hashes, said.pairs, 0, 4, row_bits))
    row_kernels.separate(names, 4, row_bits, hashes, said.pairs)
    disordered, windows, starts, tokens, counts = row_kernels.group(names, 4, row_bits, hashes, said.pairs)
    assert not disordered
    assert windows.tolist() == sorted(map(list, set(map(tuple, said.pairs[:, :-1].tolist()))))
    counted = Counter(map(tuple, said.pairs.tolist()))
    found = {
        (*windows[w].tolist(), int(tokens[p])): int(counts[p])
        for w in range(len(windows))
        for p in range(starts[w], starts[w + 1])
    }
    assert found == counted
    # And two such sets of rows add up.
    none, masses = np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.int64)
    half = np.full(len(windows), 2**40, dtype=np.uint64), windows, starts, tokens, counts, masses, none
    merged = row_kernels.merge(*half, *half)
    assert merged[1].tolist() == windows.tolist()
    assert (merged[4] == 2 * counts).all()


def test_adding_up_ids_that_no_vocabulary_has() -> None:
    """Tokens of 32 bits, which leave few bits of the hash to sort by."""
    rng = np.random.default_rng(5)
    parts = [rows_of([rng.integers(2**32 - 40, 2**32 - 1, 900, dtype=np.uint32)], window=1) for _ in range(3)]
    counted: Counter[tuple[tuple[int, ...], int]] = Counter()
    for part in parts:
        counted.update(counts_of(part))
    assert counts_of(TallyRows.total(parts)) == counted


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
    assert masses_of([merged]) == masses_of(parts)
    assert int(merged.expected.sum()) > 0
    assert int(merged.information.sum()) > 0
    bounded = BoundedTally(window=1)
    for part in parts:
        bounded.add(part)
    assert same(bounded.rows(), merged)
    cut = merged.cut(2)
    assert len(cut.expected) == cut.pairs < merged.pairs
    assert len(cut.information) == len(cut.hashes)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=60).map(ids_of), min_size=1, max_size=12),
    capacity=st.integers(1, 300),
    waiting=st.sampled_from([1, 64, 2**20]),
    size=st.sampled_from([1, 16, 2**17]),
    data=st.data(),
)
def test_what_is_kept_depends_on_the_set_of_texts_alone(
    texts: list[np.ndarray], capacity: int, waiting: int, size: int, data: st.DataObject
) -> None:
    """Nor on how much waits to be added up, nor on how many ranges there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded_tally, "_LEAST", waiting)
        patch.setattr(bounded_tally, "_RANGE", size)
        kept_of_the_set(texts, capacity, data)


def kept_of_the_set(texts: list[np.ndarray], capacity: int, data: st.DataObject) -> None:
    whole = rows_of(texts, window=1)
    level = next(level for level in range(MAX_LEVEL + 1) if whole.cut(level).pairs <= capacity)
    order = data.draw(st.permutations(range(len(texts))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(texts)), max_size=4)) | {0, len(texts)})
    tally = BoundedTally(window=1, capacity=capacity)
    for start, end in pairwise(cuts):
        some, form = [texts[i] for i in order[start:end]], data.draw(st.sampled_from([rows_of, said_in]))
        tally.add(form(some, window=1, level=tally.level))
        if data.draw(st.booleans()):
            tally.rows()
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
