"""The bias against the specification of the keyed function, and what it must leave alone to the bit."""

from __future__ import annotations

import functools
import pickle
import threading
from typing import Any

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from watermark import green_list as module
from watermark import kernels, prf
from watermark.errors import UsageError
from watermark.green_list import GreenList, Outcome, after_temperature, before_temperature, entropy_bits
from watermark.keys import ScopeKeys

scope_of = functools.partial(builders.scope_of, window=2)

#: A quiet NaN with a payload, and its opposite.
NAN = np.array([0x7FC0_1234, 0xFFC0_4321], dtype=np.uint32).view(np.float32)


def random_windows(rows: int, h: int, seed: int = 0, vocabulary: int = 2**32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, (rows, h), dtype=np.uint32)


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 4, (rows, vocabulary)).astype(np.float32)


def specified(
    scope: ScopeKeys, window: np.ndarray, vocabulary: int, account: str | None = None
) -> tuple[np.ndarray, bool]:
    """Return a row's green tokens, and whether it is marked at all, by the specification in `watermark.prf`."""
    lane = int(prf.lane(window[None, :])[0])
    in_fleet = lane < scope.params.fleet_lanes
    bound = prf.green_below(scope.params.fleet_k if in_fleet else scope.params.account_k)
    green = prf.row(scope.lane_key(lane).reveal(), window, vocabulary) < np.uint64(bound)
    if not in_fleet and account is not None:
        position = int(prf.siphash24(scope.code_key().reveal(), window[None, :])[0]) % 4096
        green = ~green if scope.code_word(account)[position] else green
    return green, in_fleet or account is not None


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((bits(a) == bits(b)).all())


scopes = st.builds(
    scope_of,
    key=st.integers(1, 2**64),
    window=st.integers(1, 8),
    delta=st.floats(0.125, 8, width=16),
    account_lanes=st.sampled_from((0, 16)),
    special_ids=st.sets(st.integers(0, 400), max_size=6).map(lambda ids: tuple(sorted(ids))),
    fleet_k=st.integers(1, 255),
)


@settings(max_examples=150, deadline=None)
@given(scope=scopes, rows=st.integers(1, 9), vocabulary=st.integers(1, 300), seed=st.integers(0, 2**32), data=st.data())
def test_the_biased_entries_are_those_that_the_specification_says_are_green(
    scope: ScopeKeys, rows: int, vocabulary: int, seed: int, data: st.DataObject
) -> None:
    windows = random_windows(rows, scope.params.window, seed)
    accounts = data.draw(st.lists(st.sampled_from((None, "a", "b")), min_size=rows, max_size=rows))
    marked = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=np.bool_)
    logits = random_logits(rows, vocabulary, seed)
    biased = logits.copy()
    GreenList(scope).bias(biased, windows, marked=marked, accounts=accounts)
    special = [i for i in scope.params.special_ids if i < vocabulary]
    for b in range(rows):
        green, may = specified(scope, windows[b], vocabulary, accounts[b])
        green[special] = False
        expected = np.where(green & may & marked[b], logits[b] + np.float32(scope.delta), logits[b])
        assert same_bits(biased[b], expected)


@settings(max_examples=60, deadline=None)
@given(scope=scopes, rows=st.integers(2, 9), seed=st.integers(0, 2**32), data=st.data())
def test_a_batch_is_a_loop_of_rows(scope: ScopeKeys, rows: int, seed: int, data: st.DataObject) -> None:
    windows = random_windows(rows, scope.params.window, seed)
    accounts = data.draw(st.lists(st.sampled_from((None, "a", "b")), min_size=rows, max_size=rows))
    strength = np.linspace(0.5, 2.0, rows, dtype=np.float32)
    green_list = GreenList(scope, min_entropy=3.0)
    together = random_logits(rows, 257, seed)
    alone = together.copy()
    green_list.bias(together, windows, accounts=accounts, strength=strength)
    for b in range(rows):
        one = slice(b, b + 1)
        green_list.bias(alone[one], windows[one], accounts=accounts[one], strength=strength[one])
    assert same_bits(together, alone)


@settings(max_examples=60, deadline=None)
@given(scope=scopes, rows=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_the_generators_row_is_the_detectors_lookup(scope: ScopeKeys, rows: int, seed: int) -> None:
    """What detection looks up pair by pair, with other kernels, is what generation added to."""
    vocabulary = 200
    windows = random_windows(rows, scope.params.window, seed)
    biased = np.zeros((rows, vocabulary), dtype=np.float32)
    GreenList(scope).bias(biased, windows)
    lanes = kernels.lanes(windows)
    fleet = np.flatnonzero(lanes < scope.params.fleet_lanes)
    seeds = kernels.seeds(scope.lane_words(), windows, lanes)
    pair_window = np.repeat(np.arange(rows, dtype=np.int64), vocabulary)
    tokens = np.tile(np.arange(vocabulary, dtype=np.uint32), rows)
    looked_up = kernels.green(seeds, scope.params.bounds()[lanes], pair_window, tokens).reshape(rows, vocabulary)
    special = [i for i in scope.params.special_ids if i < vocabulary]
    looked_up[:, special] = False
    assert ((biased[fleet] > 0) == looked_up[fleet]).all()


def test_what_is_added_is_delta_times_the_strength_of_the_row() -> None:
    windows = random_windows(3, 2)
    for strength in (1.5, np.array([1.0, 0.5, 3.0], dtype=np.float32)):
        logits = np.zeros((3, 1000), dtype=np.float32)
        GreenList(scope_of(delta=2.5)).bias(logits, windows, strength=strength)
        expected = np.broadcast_to(np.float32(2.5) * np.asarray(strength, dtype=np.float32), (3,))
        for row, added in zip(logits, expected, strict=True):
            assert set(row.tolist()) == {0.0, float(added)}


def awkward(rows: int, vocabulary: int) -> np.ndarray:
    """Return logits full of -0.0, NaN payloads, infinities and denormals."""
    values = np.concatenate([NAN, np.array([-0.0, 0.0, -np.inf, np.inf, 1e-45, -1e-45, 3.25], dtype=np.float32)])
    return np.resize(values, (rows, vocabulary)).astype(np.float32)


def test_delta_0_is_the_identity_to_the_bit() -> None:
    logits = awkward(5, 999)
    before = logits.copy()
    GreenList(scope_of(delta=0.0, special_ids=(0, 5))).bias(logits, random_windows(5, 2))
    assert same_bits(logits, before)


def test_strength_0_is_the_identity_to_the_bit() -> None:
    logits = awkward(5, 999)
    before = logits.copy()
    GreenList(scope_of()).bias(logits, random_windows(5, 2), strength=np.zeros(5, dtype=np.float32))
    assert same_bits(logits, before)


def test_rows_that_are_not_marked_stay_bit_identical() -> None:
    logits = awkward(6, 999)
    before = logits.copy()
    marked = np.array([True, False, True, False, False, True])
    GreenList(scope_of()).bias(logits, random_windows(6, 2), marked=marked)
    assert same_bits(logits[~marked], before[~marked])
    assert not same_bits(logits[marked], before[marked])


def test_special_ids_stay_bit_identical() -> None:
    special = tuple(range(0, 999, 3))
    logits = awkward(4, 999)
    before = logits.copy()
    GreenList(scope_of(special_ids=special)).bias(logits, random_windows(4, 2))
    assert same_bits(logits[:, list(special)], before[:, list(special)])
    assert not same_bits(logits, before)


def test_masked_logits_stay_masked_and_nan_stays_nan() -> None:
    logits = awkward(4, 999)
    before = logits.copy()
    GreenList(scope_of()).bias(logits, random_windows(4, 2))
    assert (np.isneginf(logits) == np.isneginf(before)).all()
    assert (np.isposinf(logits) == np.isposinf(before)).all()
    assert same_bits(logits[np.isnan(before)], before[np.isnan(before)])
    finite = np.isfinite(before)
    moved = logits[finite] - before[finite]
    assert ((moved == 0) | (np.abs(moved - 2) < 1e-6)).all()


def test_padding_above_the_tokenizers_vocabulary_and_special_ids_above_the_models_do_no_harm() -> None:
    """A model of 128 logits, a tokenizer of 100 ids; and a scope that lists an id that this model lacks."""
    scope = scope_of(special_ids=(7, 90, 5_000))
    wide, narrow = np.zeros((2, 128), dtype=np.float32), np.zeros((2, 100), dtype=np.float32)
    windows = random_windows(2, 2)
    GreenList(scope).bias(wide, windows)
    GreenList(scope).bias(narrow, windows)
    assert same_bits(np.ascontiguousarray(wide[:, :100]), narrow)
    assert narrow.any()


def lanes_of_both_kinds(h: int = 2) -> tuple[np.ndarray, np.ndarray]:
    windows = random_windows(400, h, seed=3)
    return windows, prf.lane(windows) >= 48


def test_without_an_account_account_lanes_stay_unmarked() -> None:
    windows, in_account_lane = lanes_of_both_kinds()
    assert 0 < in_account_lane.sum() < 400
    green_list = GreenList(scope_of(account_lanes=16))
    for accounts in (None, [None] * 400):
        logits = np.full((400, 64), -0.0, dtype=np.float32)
        green_list.bias(logits, windows, accounts=accounts)
        assert (bits(logits[in_account_lane]) == 0x8000_0000).all()
        assert logits[~in_account_lane].any(axis=1).all()


def test_an_accounts_bit_complements_its_list_at_gamma_one_half() -> None:
    windows, in_account_lane = lanes_of_both_kinds()
    windows = windows[in_account_lane]
    scope = scope_of(account_lanes=16)
    green_list = GreenList(scope)
    lists = {}
    for account in ("a", "b"):
        logits = np.zeros((len(windows), 512), dtype=np.float32)
        green_list.bias(logits, windows, accounts=[account] * len(windows))
        lists[account] = logits > 0
        assert abs(lists[account].mean() - 0.5) < 4 * 0.5 / np.sqrt(lists[account].size)
    position = prf.siphash24(scope.code_key().reveal(), windows) % np.uint64(4096)
    differ = scope.code_word("a")[position] != scope.code_word("b")[position]
    assert 0 < differ.sum() < len(windows)
    assert (lists["a"][differ] == ~lists["b"][differ]).all()
    assert (lists["a"][~differ] == lists["b"][~differ]).all()


def test_special_ids_are_left_alone_in_a_complemented_row_too() -> None:
    windows, in_account_lane = lanes_of_both_kinds()
    windows = windows[in_account_lane]
    logits = np.full((len(windows), 64), -0.0, dtype=np.float32)
    GreenList(scope_of(account_lanes=16, special_ids=(3, 4))).bias(logits, windows, accounts=["a"] * len(windows))
    assert (bits(logits[:, [3, 4]]) == 0x8000_0000).all()


def test_many_accounts_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_CODE_WORDS", 3)
    windows, in_account_lane = lanes_of_both_kinds()
    window = windows[in_account_lane][:1]
    green_list = GreenList(scope_of(account_lanes=16))
    for number in [*range(10), *range(10)]:
        biased, expected = np.zeros((1, 64), dtype=np.float32), np.zeros((1, 64), dtype=np.float32)
        green_list.bias(biased, window, accounts=[f"account {number}"])
        GreenList(scope_of(account_lanes=16)).bias(expected, window, accounts=[f"account {number}"])
        assert same_bits(biased, expected)
        assert green_list._code_word.cache_info().currsize <= 3


def test_account_lanes_0_makes_every_lane_a_fleet_lane() -> None:
    windows, _ = lanes_of_both_kinds()
    logits = np.zeros((400, 512), dtype=np.float32)
    GreenList(scope_of(account_lanes=0)).bias(logits, windows, accounts=["a"] * 400)
    assert logits.any(axis=1).all()
    assert abs((logits > 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / logits.size)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocabulary=st.integers(1, 60),
    scale=st.floats(0, 60),
    masked=st.integers(0, 50),
    seed=st.integers(0, 2**32),
)
def test_entropy_is_scipys(rows: int, vocabulary: int, scale: float, masked: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (rows, vocabulary)).astype(np.float32) + np.float32(100)
    logits[:, rng.permutation(vocabulary)[: min(masked, vocabulary - 1)]] = -np.inf
    z = logits.astype(np.float64)
    weights = np.exp(z - z.max(axis=1, keepdims=True))
    assert np.allclose(entropy_bits(logits), entropy(weights, base=2, axis=1), rtol=1e-9, atol=1e-9)


def test_entropy_of_known_rows() -> None:
    uniform = np.zeros((1, 256), dtype=np.float32)
    certain = np.where(np.arange(256) == 9, 0, -np.inf).astype(np.float32)[None, :]
    assert entropy_bits(uniform)[0] == pytest.approx(8.0)
    assert entropy_bits(certain)[0] == 0.0


def test_min_entropy_leaves_near_certain_rows_bit_identical() -> None:
    logits = random_logits(4, 300)
    logits[0] = -0.0  # log2(300) = 8.2 bits
    logits[1, 17] = 60.0
    logits[2] = -np.inf
    logits[2, :2] = 0.0  # 1 bit
    logits[3, 5] = NAN[0]
    before = logits.copy()
    GreenList(scope_of(), min_entropy=2.0).bias(logits, random_windows(4, 2))
    assert not same_bits(logits[0], before[0])
    assert same_bits(logits[1:], before[1:])


def test_min_entropy_meets_a_wholly_masked_row_in_silence() -> None:
    logits = np.full((2, 50), -np.inf, dtype=np.float32)
    logits[1] = 0.0
    GreenList(scope_of(), min_entropy=1.0).bias(logits, random_windows(2, 2))
    assert np.isneginf(logits[0]).all()
    assert logits[1].any()


@pytest.mark.parametrize("min_entropy", [-0.1, float("nan")])
def test_an_absurd_min_entropy_is_refused(min_entropy: float) -> None:
    with pytest.raises(UsageError, match="min_entropy: expected 0 or more bits"):
        GreenList(scope_of(), min_entropy=min_entropy)


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


def test_a_window_lies_wholly_inside_one_segment() -> None:
    green_list = GreenList(scope_of(window=2, special_ids=(0, 9)))
    responses = [ids(), ids(5), ids(5, 6), ids(1, 2, 3), ids(1, 9, 3), ids(1, 2, 9), ids(9, 2, 3), ids(0, 0), ids(7, 0)]
    windows, marked = green_list.windows_of(responses)
    assert marked.tolist() == [False, False, True, True, False, False, True, False, False]
    assert windows[marked].tolist() == [[5, 6], [2, 3], [2, 3]]
    assert windows.dtype == np.uint32


@settings(max_examples=100, deadline=None)
@given(
    h=st.integers(1, 8),
    responses=st.lists(st.lists(st.integers(0, 6), max_size=12), max_size=6),
)
def test_windows_of_agrees_with_the_definition(h: int, responses: list[list[int]]) -> None:
    """Marked where at least h ids follow the last special id, or the start."""
    special = (0, 3)
    windows, marked = GreenList(scope_of(window=h, special_ids=special)).windows_of([ids(*r) for r in responses])
    for response, window, whole in zip(responses, windows, marked, strict=True):
        segment = response
        for position, i in enumerate(response):
            if i in special:
                segment = response[position + 1 :]
        assert whole == (len(segment) >= h)
        if whole:
            assert window.tolist() == segment[-h:]
    assert windows.shape == (len(responses), h)


def test_ids_of_32_bits_are_kept_whole() -> None:
    windows, marked = GreenList(scope_of(window=1)).windows_of([ids(2**32 - 1)])
    assert (windows[0, 0], marked[0]) == (2**32 - 1, True)


GOOD_LOGITS, GOOD_WINDOWS = np.zeros((3, 50), dtype=np.float32), np.zeros((3, 2), dtype=np.uint32)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("logits", "windows", "options", "message"),
    [
        (GOOD_LOGITS.astype(np.float64), GOOD_WINDOWS, {}, "logits: expected .* got float64"),
        (GOOD_LOGITS.astype(np.int16), GOOD_WINDOWS, {}, "logits: expected .* got int16"),
        (GOOD_LOGITS[0], GOOD_WINDOWS, {}, "logits: expected"),
        (GOOD_LOGITS[:, ::2], GOOD_WINDOWS, {}, "logits: expected"),
        (np.asfortranarray(GOOD_LOGITS), GOOD_WINDOWS, {}, "logits: expected"),
        (read_only(GOOD_LOGITS), GOOD_WINDOWS, {}, "logits: expected writable"),
        (GOOD_LOGITS, GOOD_WINDOWS.astype(np.int64), {}, "windows: expected uint32 .* got int64"),
        (GOOD_LOGITS, GOOD_WINDOWS[:2], {}, "windows: expected"),
        (GOOD_LOGITS, GOOD_WINDOWS[:, :1], {}, "windows: expected"),
        (GOOD_LOGITS, GOOD_WINDOWS, {"marked": np.ones(2, dtype=np.bool_)}, "marked: expected bool"),
        (GOOD_LOGITS, GOOD_WINDOWS, {"marked": np.ones(3, dtype=np.uint8)}, "marked: expected bool"),
        (GOOD_LOGITS, GOOD_WINDOWS, {"accounts": ["a", "b"]}, "accounts: expected one a row, 3, got 2"),
        (GOOD_LOGITS, GOOD_WINDOWS, {"strength": np.ones(2, dtype=np.float32)}, "broadcast"),
    ],
)
def test_wrong_arrays_are_refused_untouched(
    logits: np.ndarray, windows: np.ndarray, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GreenList(scope_of()).bias(logits, windows, **options)
    assert not logits.any()


def test_windows_may_be_a_slice_or_read_only() -> None:
    """An engine hands over the last columns of its own array."""
    history = random_windows(3, 6)
    expected, sliced, frozen = (np.zeros((3, 50), dtype=np.float32) for _ in range(3))
    green_list = GreenList(scope_of())
    green_list.bias(expected, history[:, -2:].copy())
    green_list.bias(sliced, history[:, -2:])
    green_list.bias(frozen, read_only(history[:, -2:]))
    assert expected.any()
    assert same_bits(sliced, expected)
    assert same_bits(frozen, expected)


@pytest.mark.parametrize("rows", [0, 1])
def test_an_empty_batch_and_an_empty_vocabulary_are_nothing_to_do(rows: int) -> None:
    GreenList(scope_of()).bias(np.zeros((rows, 0), dtype=np.float32), random_windows(rows, 2))
    GreenList(scope_of(), min_entropy=0.0).bias(np.zeros((0, 10), dtype=np.float32), random_windows(0, 2))


def test_threads_share_one_green_list() -> None:
    scope = scope_of(account_lanes=16)
    shared = GreenList(scope)
    windows = random_windows(64, 2)
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        for _ in range(20):
            logits = random_logits(64, 500, number)
            shared.bias(logits, windows, accounts=[f"account {number}"] * 64)
            results[number] = logits

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        alone = random_logits(64, 500, number)
        GreenList(scope).bias(alone, windows, accounts=[f"account {number}"] * 64)
        assert same_bits(results[number], alone)


def test_a_green_list_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="a Secret is not pickled"):
        pickle.dumps(GreenList(scope_of()))


@pytest.mark.parametrize(
    ("temperature", "factor"), [(0.0, 1.0), (0.01, 1.0), (0.5, 1.0), (1.0, 1.0), (1.5, 1.5), (8.0, 8.0)]
)
def test_a_temperature_below_1_does_not_take_the_mark_away(temperature: float, factor: float) -> None:
    assert before_temperature(temperature) == factor


@pytest.mark.parametrize(("delta", "fleet_k"), [(0.5, 64), (2.0, 64), (2.0, 128), (4.0, 32)])
def test_a_uniform_teacher_says_green_tokens_at_the_expected_rate(delta: float, fleet_k: int) -> None:
    """Kirchenbauer et al. 2023, section 4: gamma e^d / (1 + gamma (e^d - 1)) of a uniform teacher's tokens are green.

    The vocabulary's own green share wanders around gamma by sqrt(gamma (1 - gamma) / V) a row, which the tolerance
    includes: 4.5 standard errors of the mean over rows. The seed is fixed.
    """
    rows, vocabulary = 4_000, 2_000
    gamma, tilt = fleet_k / 256, np.exp(delta)
    scope = scope_of(delta=delta, fleet_k=fleet_k, window=1)
    windows = random_windows(rows, 1, seed=11)
    logits = np.zeros((rows, vocabulary), dtype=np.float32)
    GreenList(scope).bias(logits, windows)
    gumbel = np.random.default_rng(12).gumbel(size=(rows, vocabulary)).astype(np.float32)
    tokens = (logits + gumbel).argmax(axis=1)
    lanes = prf.lane(windows)
    keys = [scope.lane_key(lane).reveal() for lane in range(64)]
    said = [
        int(prf.uniform(keys[lanes[b]], windows[b : b + 1], tokens[b : b + 1].astype(np.uint32))[0])
        for b in range(rows)
    ]
    share = np.mean([u < prf.green_below(fleet_k) for u in said])
    expected = gamma * tilt / (1 + gamma * (tilt - 1))
    derivative = tilt / (1 + gamma * (tilt - 1)) ** 2
    error = np.sqrt(expected * (1 - expected) / rows + derivative**2 * gamma * (1 - gamma) / vocabulary / rows)
    assert abs(share - expected) < 4.5 * error


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the bits of bfloat16 by choosing between the two neighbours: an independent computation."""
    down = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint32)
    wide = values.astype(np.float64)
    below, above = ((down + step << np.uint32(16)).view(np.float32).astype(np.float64) for step in (0, 1))
    # Beyond the largest finite bfloat16 the neighbour stands where the next step of the same size would be.
    above = np.where(np.isinf(above), np.copysign(2.0**128, wide), above)
    up = np.abs(above - wide) < np.abs(wide - below)
    tie = np.abs(above - wide) == np.abs(wide - below)
    up |= tie & (down % 2 == 1)
    return np.where(np.isfinite(values), down + up, down).astype(np.uint16)


@pytest.mark.parametrize("addition", [2.0, 0.1, 3e-6, 1e-8, 50.0, 65504.0, -1.7, 1 / 3])
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float16", "bfloat16"])
def test_every_half_precision_value_is_added_to_and_rounded_to_nearest_even(bfloat16: bool, addition: float) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    logits = every[None, :].copy()
    one = (np.array([5], np.uint64), np.array([2**63], np.uint64), np.array([False]), np.array([addition], np.float32))
    kernels.add_to_green_half(logits, bfloat16, *one, np.array([], dtype=np.int64))
    green = prf.split_mix(one[0], every.astype(np.uint32)) < one[1]
    with np.errstate(over="ignore", invalid="ignore"):
        if bfloat16:
            wide = (every.astype(np.uint32) << np.uint32(16)).view(np.float32)
            expected = to_bfloat16(wide + np.float32(addition))
        else:
            wide = every.view(np.float16).astype(np.float32)
            expected = (wide + np.float32(addition)).astype(np.float16).view(np.uint16)
    number = ~np.isnan(wide)
    assert (logits[0, ~green] == every[~green]).all()
    assert (logits[0, green & number] == expected[green & number]).all()
    exponent = 0x7F80 if bfloat16 else 0x7C00
    assert ((logits[0, ~number] & 0x7FFF) > exponent).all()


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.float32])
def test_rows_that_lie_apart_and_narrower_types_are_marked_as_one_float32_row_is(dtype: type) -> None:
    windows, _ = lanes_of_both_kinds()
    scope = scope_of(account_lanes=16, special_ids=(3, 40))
    accounts = [("a", "b", None)[i % 3] for i in range(len(windows))]
    wide, vocabulary = np.zeros((len(windows), 99), dtype=dtype), 61
    outcomes = GreenList(scope).bias(wide[:, :vocabulary], windows, accounts=accounts)
    plain = np.zeros((len(windows), vocabulary), dtype=np.float32)
    assert (GreenList(scope).bias(plain, windows, accounts=accounts) == outcomes).all()
    assert ((wide[:, :vocabulary] != 0) == (plain != 0)).all()
    assert not wide[:, vocabulary:].any()


def test_the_outcome_of_each_row_is_said() -> None:
    windows, in_account_lane = lanes_of_both_kinds()
    fleet, account = windows[~in_account_lane][:4], windows[in_account_lane][:2]
    flat, peaked = np.zeros(64, dtype=np.float32), np.where(np.arange(64) == 7, 90, 0).astype(np.float32)
    logits = np.stack([flat, flat, flat, peaked, flat, flat])
    outcomes = GreenList(scope_of(account_lanes=16), min_entropy=1.0).bias(
        logits,
        np.concatenate([fleet, account]),
        marked=np.array([True, False, True, True, True, True]),
        accounts=[None, None, None, None, None, "a"],
        strength=np.array([1, 1, 0, 1, 1, 1], dtype=np.float32),
    )
    assert [Outcome(outcome).name for outcome in outcomes] == [
        "MARKED",
        "NO_WINDOW",
        "OFF",
        "LOW_ENTROPY",
        "NO_ACCOUNT",
        "MARKED",
    ]
    assert logits[[0, 5]].any(axis=1).all()
    assert not logits[[1, 2, 4]].any()


def test_a_placeholder_is_refused() -> None:
    green_list = GreenList(scope_of(window=2))
    windows, marked = green_list.windows_of([[-1, 4, 5], [4, 5]])
    assert (windows.tolist(), marked.tolist()) == ([[4, 5], [4, 5]], [True, True])
    with pytest.raises(ValueError, match="placeholder"):
        green_list.windows_of([[4, 5], [4, -1]])


@pytest.mark.parametrize("temperature", [0.0, 0.01, 0.5, 1.0, 1.5, 7.0])
def test_a_hook_after_the_temperature_gives_what_one_before_it_gives(temperature: float) -> None:
    divided = before_temperature(temperature) / (temperature or 1.0)
    assert after_temperature(temperature) == pytest.approx(divided)
