"""The e-process: a fair game whatever the text, the prompts and the stopping; and powerful enough."""

from __future__ import annotations

import json
import math

import mpmath
import numpy as np
import pytest
from builders import corpus_of, scope_of

from detect.centred import CENTRED
from detect.e_process import EProcess, lane_order, lanes_to_open, schedule, sequential_test
from detect.e_values import Mixture, log_bets, mixture_for, tilt_information
from detect.family import SCORE
from detect.mark import GreenListMark
from detect.ngram_reference import ngram_reference
from detect.reference import Reference
from detect.score_law import Bernoulli
from detect.tally import Tally, tally_of
from detect.weighting import Weights
from watermark.errors import InputError, UsageError


def mark_of(key: int, **shape: int) -> GreenListMark:
    return GreenListMark(scope_of(key=key, **shape))


def test_a_bet_has_the_mean_one() -> None:
    """Against every outcome of eight pairs, in 50 digits."""
    a = np.array([0.3, -1.2, 2.0, 0.7, 5.0, -0.1, 1.0, 1.0])
    gamma = 0.25
    for tilt in (0.01, 0.4, 3.0):
        mean = mpmath.mpf(0)
        for outcome in range(256):
            bits = np.array([outcome >> i & 1 for i in range(8)], dtype=np.float64)
            chance = mpmath.mpf(gamma) ** int(bits.sum()) * mpmath.mpf(1 - gamma) ** int(8 - bits.sum())
            mean += chance * mpmath.exp(float(log_bets(a, bits - gamma, Bernoulli(gamma), [tilt])[0]))
        assert 1 - 1e-10 < mean <= 1 + 1e-15


def test_bets_do_not_overflow() -> None:
    value = log_bets(np.array([1e6, -1e6]), np.array([0.75, -0.25]), Bernoulli(0.25), [1e3])
    assert np.isfinite(value).all()
    mixture = mixture_for(40.0)
    assert mixture.log10(np.full(len(mixture.tilts), 1e5)) == pytest.approx(1e5 / math.log(10))
    assert mixture.log10(np.full(len(mixture.tilts), -1e5)) == pytest.approx(-1e5 / math.log(10))
    assert mixture.log10(np.zeros(len(mixture.tilts))) <= 0


def test_a_mixture_that_is_no_e_value_is_refused() -> None:
    with pytest.raises(ValueError, match="sum to at most 1"):
        Mixture(tilts=(1.0, 2.0), shares=(0.7, 0.7))
    with pytest.raises(ValueError, match="one-sided"):
        Mixture(tilts=(-1.0,), shares=(1.0,))
    with pytest.raises(ValueError, match="as many"):
        Mixture(tilts=(1.0,), shares=())


def steps(repetitive: list[np.ndarray], reference: Reference, mark: GreenListMark) -> list[tuple[Tally, Weights]]:
    out = []
    for end in (3, 6, 9, len(repetitive)):
        part = reference.first(end)
        tally = tally_of(repetitive[:end], window=1, reference=part)
        out.append((tally, CENTRED.weigh(tally, part)))
    return out


@pytest.fixture(scope="module")
def text(repetitive: list[np.ndarray]) -> list[np.ndarray]:
    return [ids[:800] for ids in repetitive]


@pytest.fixture(scope="module")
def reference(text: list[np.ndarray], clean: list[np.ndarray]) -> Reference:
    return ngram_reference(text, clean, order=2, vocabulary_size=50_000, tokenizer="00" * 32, name="other code")


@pytest.mark.parametrize("keys", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_fair_game_on_repetitive_text(text: list[np.ndarray], reference: Reference, keys: int) -> None:
    """Optional stopping at the highest e: crossing 1 / alpha at most alpha; mean at most 1."""
    looks = steps(text, reference, mark_of(1))
    shares = schedule([0.25, 0.5, 0.75, 1.0])
    e = np.empty((keys, len(looks)))
    order = lane_order("x")
    first_tally, first_weights = looks[0]
    mixture = mixture_for(4 * tilt_information(first_tally, first_weights, mark_of(1)))
    for key in range(keys):
        mark, process = mark_of(key + 1), EProcess(mixture)
        for at, ((tally, weights), share) in enumerate(zip(looks, shares.tolist(), strict=True)):
            lanes = lanes_to_open(tally, weights, order=order, opened=process.opened, share=share)
            e[key, at] = process.look(tally, weights, mark, lanes, responses=0, tokens=0).log10_e
    assert process.opened == frozenset(range(64))
    values = 10**e
    for at in range(len(looks)):
        assert values[:, at].mean() <= 1 + 4 * values[:, at].std() / math.sqrt(keys)
    best = e.max(axis=1)
    for alpha in (0.1, 0.03, 0.01):
        assert (best >= -math.log10(alpha)).mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / keys)
    assert values.std() > 0.1  # It does bet.


@pytest.mark.parametrize("keys", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_an_adversary_who_chooses_the_next_document_by_the_bits_so_far(text: list[np.ndarray], keys: int) -> None:
    """Each next document is one of three, chosen by e so far and by the bits that the last look revealed."""
    pool = [text[i][j : j + 400] for i in range(3) for j in (0, 400)]
    tallies: dict[tuple[int, ...], Tally] = {}
    depth = 4
    final, best = np.empty(keys), np.empty(keys)
    order = lane_order("y")
    shares = schedule([0.25, 0.5, 0.75, 1.0], power=0.5)
    for key in range(keys):
        mark = mark_of(key + 1)
        process = EProcess(mixture_for(20.0))
        path: tuple[int, ...] = (0,)
        for at in range(depth):
            if path not in tallies:
                tallies[path] = tally_of([pool[i] for i in path], window=1)
            tally = tallies[path]
            weights = SCORE.weigh(tally)
            lanes = lanes_to_open(tally, weights, order=order, opened=process.opened, share=float(shares[at]))
            look = process.look(tally, weights, mark, lanes, responses=at + 1, tokens=0)
            # The same document again while it goes well, else another, which one by the parity of the green pairs.
            shown = mark.scores(tally)[np.isin(tally.lanes[tally.pair_window], list(process.opened))]
            path += (path[-1] if look.log10_e > 0 else (path[-1] + 1 + int(shown.sum()) % 2) % len(pool),)
            if look.log10_e > 0.5:
                break
        final[key], best[key] = process.log10_e, -process.log10_p
    values = 10**final
    assert values.mean() <= 1 + 4 * values.std() / math.sqrt(keys)
    assert (best >= 1).mean() <= 0.1 + 4 * math.sqrt(0.09 / keys)
    assert len(tallies) > 6


def tilted(mark: GreenListMark, *, positions: int, tilt: float) -> tuple[list[np.ndarray], Reference]:
    """A student that leans to green, and its base: 300 windows, eight tokens after each, even odds."""
    rng = np.random.default_rng(0)
    pairs = np.array([(w, 1000 + 8 * w + v) for w in range(1, 301) for v in range(8)], dtype=np.uint32)
    every = tally_of([np.array([w, v], dtype=np.uint32) for w, v in pairs], window=1)
    green = np.zeros((301, 8))
    green[every.windows[every.pair_window, 0], (every.tokens - 1000) % 8] = mark.scores(every)
    odds = np.exp(tilt * green)
    cumulative = np.cumsum(odds / odds.sum(axis=1, keepdims=True), axis=1)
    window = rng.integers(1, 301, positions)
    place = np.minimum((cumulative[window] < rng.random(positions)[:, None]).sum(axis=1), 7)
    joined = np.zeros((positions, 3), dtype=np.uint32)
    joined[:, 1], joined[:, 2] = window, 1000 + 8 * window + place
    top_ids, top_p = np.zeros((3 * positions, 8), dtype=np.uint32), np.zeros((3 * positions, 8), dtype=np.float32)
    top_ids[2::3] = 1000 + 8 * window[:, None] + np.arange(8)
    top_p[2::3] = 1 / 8
    said_p = np.zeros(3 * positions, dtype=np.float32)
    said_p[2::3] = 1 / 8
    starts = np.arange(0, 3 * positions + 1, 60)
    reference = Reference(
        name="base", tokenizer="00" * 32, ids=joined.ravel(), starts=starts, top_ids=top_ids, top_p=top_p, said_p=said_p
    )
    return np.split(joined.ravel(), starts[1:-1]), reference


def test_a_student_is_found_early_and_the_state_can_be_taken_up_again() -> None:
    mark = GreenListMark(scope_of(key=5, special_ids=(0,)))
    responses, reference = tilted(mark, positions=16_000, tilt=0.3)
    corpus = corpus_of(responses)
    result = sequential_test(corpus, mark, reference=reference, looks=8, level=1e-6)
    assert result.log10_p < -6
    assert result.decided_at is not None
    assert result.tokens_needed is not None
    assert result.tokens_needed < corpus.tokens
    assert result.tokens == corpus.tokens
    assert [look.number for look in result.looks] == list(range(1, 9))
    # At the end of the plan all lanes are open.
    lanes = list(range(mark.scope.params.fleet_lanes))
    assert sorted(lane for look in result.looks for lane in look.opened) == lanes
    # Called while it is still coming in, with the same plan, the looks are the same.
    half = corpus.first(400)
    early = sequential_test(half, mark, reference=reference.first(400), looks=8, planned_tokens=corpus.tokens)
    assert early.looks == result.looks[: len(early.looks)]
    assert len(early.looks) == 4
    # Text beyond the plan is not looked at; the last look is at the text that reaches the plan.
    planned = sum(len(ids) for ids in responses[:401]) - 3
    whole, more = corpus.first(401), sequential_test(corpus, mark, reference=reference, looks=8, planned_tokens=planned)
    assert more.tokens == whole.tokens > planned
    assert len(more.looks) == 8
    assert sorted(lane for look in more.looks for lane in look.opened) == lanes
    ended = sequential_test(whole, mark, reference=reference.first(401), looks=8, planned_tokens=planned)
    assert ended.looks == more.looks
    # Another key finds nothing.
    other = sequential_test(corpus, GreenListMark(scope_of(key=6, special_ids=(0,))), reference=reference, looks=8)
    assert other.log10_p > -3


def test_state() -> None:
    mark = GreenListMark(scope_of(key=5, special_ids=(0,)))
    responses, reference = tilted(mark, positions=2_000, tilt=0.3)
    seen = []
    for end in (40, 70, 100):
        part = reference.first(end)
        tally = tally_of(responses[:end], window=1, special_ids=(0,), reference=part)
        seen.append((tally, CENTRED.weigh(tally, part)))
    process = EProcess(mixture_for(100.0))
    process.look(*seen[0], mark, range(10), responses=40, tokens=2400)
    process.look(*seen[1], mark, range(10, 30), responses=70, tokens=4200)
    state = json.loads(json.dumps(process.to_json()))
    again = EProcess.from_json(state, mark=mark, earlier=seen[:2])
    looks = [each.look(*seen[2], mark, range(30, 64), responses=100, tokens=6000) for each in (process, again)]
    assert looks[0] == looks[1]
    with pytest.raises(InputError, match="look 1: expected"):
        EProcess.from_json(state, mark=mark, earlier=[seen[1], seen[2]])
    with pytest.raises(InputError, match="2 looks so far"):
        EProcess.from_json(state, mark=mark, earlier=[])
    with pytest.raises(InputError, match="start again"):
        EProcess.from_json({"schema": "x"}, mark=mark, earlier=[])


def test_no_pair_is_scored_twice_and_no_lane_opened_twice(text: list[np.ndarray]) -> None:
    tally = tally_of(text, window=1)
    weights, mark = SCORE.weigh(tally), mark_of(1)
    process = EProcess(mixture_for(100.0))
    first = process.look(tally, weights, mark, range(64), responses=1, tokens=1)
    assert first.pairs == len(tally.tokens)
    second = process.look(tally, weights, mark, (), responses=1, tokens=1)
    assert (second.pairs, second.log10_e) == (0, first.log10_e)
    with pytest.raises(UsageError, match="lanes to open"):
        process.look(tally, weights, mark, (3,), responses=1, tokens=1)
    with pytest.raises(TypeError, match="Weights"):
        process.look(tally, weights.values, mark, (), responses=1, tokens=1)  # type: ignore[arg-type]


def test_lanes() -> None:
    assert sorted(lane_order("a")) == list(range(64))
    assert lane_order("a") != lane_order("b") != lane_order("b", seed=1)
    assert lane_order("a", lanes=range(48)) == tuple(lane for lane in lane_order("a") if lane < 48)
    with pytest.raises(UsageError, match="lane seed"):
        lane_order("a", seed=-1)
    for wrong in ([], [0.0, 1.0], [0.5, 0.5], [0.5, 1.5]):
        with pytest.raises(UsageError, match="schedule"):
            schedule(wrong)


def test_bad_plans_and_no_text() -> None:
    mark, empty = mark_of(1), corpus_of([])
    assert sequential_test(empty, mark, weighting=SCORE).log10_p == 0.0
    some = corpus_of([np.arange(9, dtype=np.uint32)])
    for wrong in ({"looks": 0}, {"planned_tokens": 0}, {"level": 0.0}):
        with pytest.raises(UsageError):
            sequential_test(some, mark, weighting=SCORE, **wrong)
    mark.exact = False
    with pytest.raises(UsageError, match="too weak"):
        sequential_test(some, mark, weighting=SCORE)
