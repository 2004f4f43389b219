"""The tally against a plain Python one, on real and on random ids."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from builders import shape_of
from hypothesis import given, settings
from hypothesis import strategies as st

from detect.reference import Reference
from detect.tabulation import MIN_MASS, UNIT
from detect.tally import PromptPolicy, Tally, tally_of
from watermark import prf
from watermark.errors import ReferenceMismatchError
from watermark.keys import Params

SPECIAL = (3, 7)


def params_of(window: int, special_ids: tuple[int, ...] = SPECIAL) -> Params:
    return Params(tokenizer="00" * 32, special_ids=special_ids, window=window, account_lanes=0)


def ids_of(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


def positions_in(response: list[int], window: int, left_out: set[tuple[int, ...]]) -> list[int]:
    """The positions that DESIGN 1 and 4 leave in, by the letter."""
    found = []
    for i in range(window, len(response)):
        context = tuple(response[i - window : i])
        if not set(context) & set(SPECIAL) and response[i] not in SPECIAL and context not in left_out:
            found.append(i)
    return found


def windows_in(pieces: list[list[int]], window: int) -> set[tuple[int, ...]]:
    return {tuple(p[i : i + window]) for p in pieces for i in range(len(p) - window + 1)}


def pairs_of(tally: Tally) -> dict[tuple[tuple[int, ...], int], tuple[int, int]]:
    return {
        (tuple(tally.windows[w].tolist()), int(v)): (int(n), int(mass))
        for w, v, n, mass in zip(tally.pair_window, tally.tokens, tally.said, tally.expected, strict=True)
    }


token = st.integers(0, 9)
text = st.lists(token, max_size=30)


@settings(max_examples=300, deadline=None)
@given(
    window=st.integers(1, 4),
    records=st.lists(st.tuples(text, st.lists(text, max_size=3)), min_size=1, max_size=5),
    policy=st.sampled_from(PromptPolicy),
)
def test_tally_is_a_plain_count(
    window: int, records: list[tuple[list[int], list[list[int]]]], policy: PromptPolicy
) -> None:
    expected: dict[tuple[tuple[int, ...], int], int] = defaultdict(int)
    everywhere = {w for _, pieces in records for w in windows_in(pieces, window)}
    for response, pieces in records:
        left_out = {
            PromptPolicy.OWN: windows_in(pieces, window),
            PromptPolicy.CLEAN: set(),
            PromptPolicy.MARKED: everywhere,
        }[policy]
        for i in positions_in(response, window, left_out):
            expected[tuple(response[i - window : i]), response[i]] += 1
    tally = tally_of(
        [ids_of(response) for response, _ in records],
        **shape_of(params_of(window)),
        prompts=[[ids_of(piece) for piece in pieces] for _, pieces in records],
        policy=policy,
    )
    assert {pair: n for pair, (n, _) in pairs_of(tally).items()} == expected
    assert tally.scored == sum(expected.values())
    assert (tally.lanes == prf.lane(tally.windows)).all()


@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_tables_grow(window: int) -> None:
    """Many more distinct windows and pairs than the tables begin with, against sets."""
    rng = np.random.default_rng(window)
    ids = rng.integers(10, 40_000, 60_000, dtype=np.uint32)
    tally = tally_of([ids], **shape_of(params_of(window)))
    expected = {(tuple(ids[i - window : i].tolist()), int(ids[i])) for i in range(window, len(ids))}
    assert pairs_of(tally).keys() == expected
    assert len(tally.tokens) == len(expected)


def test_windows_of_three_and_more_are_told_apart_by_their_ids_and_not_by_a_hash(repetitive: list[np.ndarray]) -> None:
    tally = tally_of(repetitive, **shape_of(params_of(3, ())))
    assert len({tuple(row) for row in tally.windows.tolist()}) == len(tally.windows)


def random_reference(rng: np.random.Generator, responses: list[np.ndarray], top: int = 6) -> Reference:
    n = sum(len(ids) for ids in responses)
    joined = np.concatenate(responses)
    top_ids = np.stack([rng.permutation(10)[:top] for _ in range(n)]).astype(np.uint32)
    top_p = -np.sort(-rng.dirichlet(np.ones(top) * 0.3, n), axis=1).astype(np.float32) * np.float32(0.9)
    said_p = np.full(n, 0.001, dtype=np.float32)
    for i in range(n):
        at = np.flatnonzero(top_ids[i] == joined[i])
        if at.size:
            said_p[i] = top_p[i, at[0]]
    return Reference(
        name="random",
        tokenizer="00" * 32,
        ids=joined,
        starts=np.concatenate([[0], np.cumsum([len(ids) for ids in responses])]).astype(np.int64),
        top_ids=top_ids,
        top_p=top_p,
        said_p=said_p,
    )


@pytest.mark.parametrize("window", [1, 2])
def test_reference_mass_is_a_plain_sum(window: int) -> None:
    rng = np.random.default_rng(5)
    responses = [rng.integers(0, 10, 200, dtype=np.uint32) for _ in range(3)]
    reference = random_reference(rng, responses)
    tally = tally_of(responses, **shape_of(params_of(window)), reference=reference)
    mass: dict[tuple[tuple[int, ...], int], int] = defaultdict(int)
    information: dict[tuple[int, ...], int] = defaultdict(int)
    position = 0
    for ids in responses:
        response = ids.tolist()
        for i in positions_in(response, window, set()):
            context = tuple(response[i - window : i])
            row = dict(
                zip(reference.top_ids[position + i].tolist(), reference.top_p[position + i].tolist(), strict=True)
            )
            information[context] += int((1 - sum(p * p for p in row.values())) * UNIT)
            kept = {v: p for v, p in row.items() if (p >= MIN_MASS or v == response[i]) and v not in SPECIAL}
            kept.setdefault(response[i], float(reference.said_p[position + i]))
            for v, p in kept.items():
                mass[context, v] += int(p * UNIT)
        position += len(response)
    got = pairs_of(tally)
    assert {pair: m for pair, (_, m) in got.items()} == mass
    for row, value in zip(tally.windows.tolist(), tally.information.tolist(), strict=True):
        assert abs(value - information[tuple(row)]) <= 2 * 600


def test_order_of_the_texts_changes_nothing(repetitive: list[np.ndarray]) -> None:
    forward, backward = (tally_of(texts, **shape_of(params_of(2, ()))) for texts in (repetitive, repetitive[::-1]))
    assert pairs_of(forward) == pairs_of(backward)


def test_a_reference_of_other_text_is_refused() -> None:
    rng = np.random.default_rng(5)
    responses = [rng.integers(0, 10, 50, dtype=np.uint32) for _ in range(3)]
    reference = random_reference(rng, responses)
    changed = [ids.copy() for ids in responses]
    changed[1][7] += 1
    for others, match in ((responses[:2], "3 responses, and there are 2"), (changed, "response 2 has other")):
        with pytest.raises(ReferenceMismatchError, match=match):
            tally_of(others, **shape_of(params_of(1)), reference=reference)


def test_nothing_at_all() -> None:
    tally = tally_of([], **shape_of(params_of(1)))
    assert tally.scored == 0
    assert tally_of([ids_of([1])], **shape_of(params_of(1))).scored == 0
