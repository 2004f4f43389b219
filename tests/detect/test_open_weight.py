"""The open-weight test: weights by hand, its nulls, the freshness rule, and what it finds."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from builders import scope_of

from detect.baselines import hoeffding
from detect.decoys import random_words
from detect.mark import GreenListMark
from detect.open_weight import (
    OPEN_WEIGHT,
    OPEN_WEIGHT_ROOT,
    ContextCollector,
    LogitTally,
    Origin,
    detect_open_weight,
    log10_mixture_p,
    open_weight_test,
)
from detect.tally import UNIT, tally_of
from detect.verdict import Verdict
from detect.weighted_sums import WeightedSum
from watermark import kernels
from watermark.errors import ReferenceMismatchError, TokenizerError, UsageError


def rows_of(rng: np.random.Generator, contexts: int, vocabulary: int) -> np.ndarray:
    return rng.dirichlet(np.full(vocabulary, 0.3), contexts).astype(np.float32)


def test_weights_are_sums_over_the_contexts_of_a_window() -> None:
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 5, (60, 2)).astype(np.uint32)
    p, q = rows_of(rng, 60, 30), rows_of(rng, 60, 30)
    whole = ContextCollector(window=2, special_ids=(3,), floor=0.01)
    whole.add(windows, p, q)
    parts = ContextCollector(window=2, special_ids=(3,), floor=0.01)
    for start in range(0, 60, 7):
        parts.add(windows[start : start + 7], p[start : start + 7], q[start : start + 7])
    tally = whole.tally()
    weights = OPEN_WEIGHT.weigh(tally).values
    again = parts.tally()
    assert np.array_equal(weights, OPEN_WEIGHT.weigh(again).values)
    assert np.array_equal(tally.information, again.information)
    expected: dict[tuple[bytes, int], float] = {}
    dropped = 0.0
    for t in range(60):
        for v in range(30):
            if v != 3 and max(p[t, v], q[t, v]) >= np.float32(0.01):
                name = (windows[t].tobytes(), v)
                expected[name] = expected.get(name, 0.0) + float(p[t, v]) - float(q[t, v])
            else:
                dropped += float(p[t, v])
    assert len(expected) == len(weights)
    for pair in range(len(weights)):
        name = (tally.windows[tally.pair_window[pair]].tobytes(), int(tally.tokens[pair]))
        assert weights[pair] / UNIT == pytest.approx(expected[name], abs=1e-7)
    assert tally.dropped_suspect == pytest.approx(dropped / 60, abs=1e-6)
    assert tally.contexts == 60
    root = OPEN_WEIGHT_ROOT.weigh(tally).values / UNIT
    assert np.allclose(np.sign(weights) * np.sqrt(np.abs(weights) / UNIT), root, atol=1e-9)
    with pytest.raises(TypeError, match="LogitTally"):
        OPEN_WEIGHT.weigh(tally_of([np.arange(9, dtype=np.uint32)], window=2))


def test_refuses_what_are_no_distributions() -> None:
    collector = ContextCollector(window=1)
    one = np.full((1, 4), 0.25, dtype=np.float32)
    window = np.zeros((1, 1), dtype=np.uint32)
    with pytest.raises(ReferenceMismatchError, match="sum to 1"):
        collector.add(window, one * 3, one)
    with pytest.raises(ReferenceMismatchError, match="shape"):
        collector.add(window, one, one[:, :3])
    with pytest.raises(ReferenceMismatchError, match="sum to 1"):
        collector.add(window, one, np.full((1, 4), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="window"):
        ContextCollector(window=0)


def test_positions_of_key_free_contexts() -> None:
    ids = np.array([1, 2, 9, 1, 2, 1, 2], dtype=np.uint32)
    collector = ContextCollector(window=2, special_ids=(9,))
    assert collector.positions(ids).tolist() == [2, 5, 6, 7]
    assert collector.positions(ids, start=6).tolist() == [6, 7]
    assert collector.positions(ids[:1]).tolist() == []


def test_a_marked_window_counts_once_in_all_sequences() -> None:
    collector = ContextCollector(window=1, origin=Origin.MARKED)
    assert collector.positions(np.array([1, 2, 1, 3], dtype=np.uint32)).tolist() == [1, 2, 4]
    assert collector.positions(np.array([3, 4, 4, 2], dtype=np.uint32)).tolist() == [2]
    # The prompt's windows are visited, and not scored.
    assert collector.positions(np.array([7, 8, 7, 6], dtype=np.uint32), start=3).tolist() == [4]
    assert collector.positions(np.array([8, 5], dtype=np.uint32)).tolist() == [2]
    one = np.full((1, 4), 0.25, dtype=np.float32)
    collector.add(np.array([[1]], dtype=np.uint32), one, one)
    for window in (1, 50):
        with pytest.raises(ValueError, match="once"):
            collector.add(np.array([[window]], dtype=np.uint32), one, one)


def test_the_mixture_is_rigorous_and_near_the_best_lambda() -> None:
    """Against its definition by mpmath, and at most 1.7 decades and 4% from Chernoff's bound."""
    import mpmath

    rng = np.random.default_rng(3)
    collector = ContextCollector(window=1)
    collector.add(np.arange(20, dtype=np.uint32)[:, None], rows_of(rng, 20, 30), rows_of(rng, 20, 30))
    tally = collector.tally()
    mark = GreenListMark(scope_of(window=1))
    weights = OPEN_WEIGHT.weigh(tally)
    a = weights.values / UNIT
    law = WeightedSum(a, gamma=0.25)
    with mpmath.workdps(40):
        for statistic in (0.0, 4 * law.sd, 0.6 * law.max):
            e = mpmath.mpf(0)
            for i in range(45):
                t = mpmath.mpf(2) ** (mpmath.mpf(i) / 2 - 10)
                k = mpmath.fsum(mpmath.log(0.75 + 0.25 * mpmath.exp(t * x)) - 0.25 * t * x for x in a)
                e += mpmath.exp(t * statistic - k) / 45
            exact = float(min(mpmath.mpf(0), -mpmath.log10(e)))
            found = log10_mixture_p(weights, statistic=statistic, mark=mark)
            assert exact <= found <= exact + 1e-6
            assert found <= 0.96 * law.log10_chernoff(statistic) + 1.7


def text_contexts(texts: list[np.ndarray], *, seed: int) -> LogitTally:
    """Two models that differ for reasons of their own, at every position of a text."""
    rng = np.random.default_rng(seed)
    collector = ContextCollector(window=1)
    tables = [rows_of(rng, 97, 40), rows_of(rng, 97, 40)]
    for ids in texts:
        at = collector.positions(ids)
        now = ids[at - 1].astype(np.int64)
        before = ids[np.maximum(at - 2, 0)].astype(np.int64)
        p, q = (0.5 * table[now % 97] + 0.5 * table[before % 97] for table in tables)
        collector.add(ids[at - 1][:, None], p, q)
    return collector.tally()


@pytest.mark.parametrize("keys", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("weighting", [OPEN_WEIGHT, OPEN_WEIGHT_ROOT])
def test_false_positive_rate_at_key_free_contexts(keys: int, weighting, repetitive: list[np.ndarray]) -> None:
    tally = text_contexts([ids[:1500] for ids in repetitive[:6]], seed=1)
    values = weighting.weigh(tally).values
    sums = kernels.green_sums(
        random_words(keys, seed=8),
        tally.windows,
        tally.lanes,
        scope_of(window=1).params.bounds(),
        tally.pair_window,
        tally.tokens,
        np.ascontiguousarray(values[:, None]),
    )[:, 0]
    law = WeightedSum(values / UNIT, gamma=0.25)
    statistics = (sums - 0.25 * float(values.sum())) / UNIT
    log10_ps = law.log10_chernoff_many(statistics)
    assert abs((statistics / law.sd).std() - 1) < 5 / math.sqrt(2 * keys)
    for level in (1e-1, 1e-2, 1e-3):
        assert (log10_ps <= math.log10(level)).sum() <= keys * level + 4 * math.sqrt(keys * level) + 1
    assert (log10_ps <= math.log10(0.3)).sum() > 0.02 * keys


def greens_of(mark: GreenListMark, vocabulary: int) -> np.ndarray:
    windows = np.arange(vocabulary, dtype=np.uint32)[:, None]
    lanes = kernels.lanes(windows)
    return kernels.green(
        kernels.seeds(mark.scope.lane_words(), windows, lanes),
        mark.scope.params.bounds()[lanes],
        np.repeat(np.arange(vocabulary), vocabulary),
        np.tile(np.arange(vocabulary, dtype=np.uint32), vocabulary),
    ).reshape(vocabulary, vocabulary)


def marked_texts(rng: np.random.Generator, green: np.ndarray, texts: int, length: int) -> np.ndarray:
    total = np.cumsum(np.where(green, math.exp(3.0), 1.0), axis=1)
    ids = np.zeros((texts, length), dtype=np.uint32)
    ids[:, 0] = rng.integers(len(green), size=texts)
    for i in range(1, length):
        rows = total[ids[:, i - 1]]
        ids[:, i] = (rows <= (rng.random(texts) * rows[:, -1])[:, None]).sum(axis=1)
    return ids


def copied_z_and_p(key: int, origin: Origin, vocabulary: int = 40) -> tuple[float, float]:
    """A suspect that never saw the key, and says again what followed the token earlier in the text."""
    mark = GreenListMark(scope_of(key=key, window=1))
    rng = np.random.default_rng(key)
    ids = marked_texts(rng, greens_of(mark, vocabulary), 20, 40)
    table = rows_of(np.random.default_rng(0), vocabulary, vocabulary)
    collector = ContextCollector(window=1, origin=origin)
    for text in ids:
        at = collector.positions(text)
        rows = table[text[at - 1]]
        for row, t in enumerate(at):
            earlier = np.flatnonzero(text[: t - 1] == text[t - 1])
            if len(earlier):
                rows[row] *= 0.2
                rows[row, text[earlier[-1] + 1]] += 0.8
        collector.add(text[at - 1][:, None], rows, np.full_like(rows, 1 / vocabulary))
    test, _ = open_weight_test(collector.tally(), mark, decoys=0)
    return test.z, test.log10_p


@pytest.mark.parametrize("keys", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_copying_suspect_is_not_accused_in_reading_mode(keys: int) -> None:
    z, log10_p = np.array([copied_z_and_p(1 + key, Origin.MARKED) for key in range(keys)]).T
    assert abs(z.mean()) < 4 / math.sqrt(keys)
    assert abs(z.std() - 1) < 4 / math.sqrt(2 * keys) + 0.05
    for level in (0.05, 0.01, 0.001):
        assert (log10_p <= math.log10(level)).sum() <= keys * level + 4 * math.sqrt(keys * level)


def test_the_freshness_rule_is_what_saves_it() -> None:
    """The same texts taken for key-free contexts accuse it every time: the rule is tested, not only obeyed."""
    z = [copied_z_and_p(1 + key, Origin.KEY_FREE)[0] for key in range(5)]
    assert min(z) > 5


def student(green: np.ndarray, base: np.ndarray, tau: float) -> np.ndarray:
    tilted = base * np.exp(tau * 2.0 * green)
    return (tilted / tilted.sum(axis=1, keepdims=True)).astype(np.float32)


def tilted_tally(mark: GreenListMark, tau: float, origin: Origin = Origin.KEY_FREE) -> LogitTally:
    vocabulary = 300
    rng = np.random.default_rng(5)
    base = rows_of(rng, vocabulary, vocabulary).astype(np.float64)
    noisy = base * np.exp(0.3 * rng.standard_normal(base.shape))
    noisy /= noisy.sum(axis=1, keepdims=True)
    ids = np.arange(vocabulary, dtype=np.uint32)
    collector = ContextCollector(window=1, origin=origin)
    at = collector.positions(ids)
    windows = ids[at - 1]
    learned = student(greens_of(mark, vocabulary), noisy, tau)
    collector.add(windows[:, None], learned[windows], base[windows].astype(np.float32))
    return collector.tally()


def test_finds_a_small_tilt_and_its_size() -> None:
    mark = GreenListMark(scope_of(window=1))
    test, effect = open_weight_test(tilted_tally(mark, 0.15), mark, decoys=99)
    assert test.log10_p < -10
    assert test.decoy_rank == 1
    assert effect is not None
    assert effect.low < effect.tau < effect.high
    assert effect.tau == pytest.approx(0.15, abs=0.02)
    assert hoeffding(tilted_tally(mark, 0.15), mark).log10_p > test.log10_p + 8
    null, _ = open_weight_test(tilted_tally(mark, 0.0), mark, decoys=99)
    assert null.log10_p > -3
    marked, _ = open_weight_test(tilted_tally(mark, 0.15, Origin.MARKED), mark)
    assert test.log10_p < marked.log10_p < 0.9 * test.log10_p + 2
    assert marked.log10_p_saddlepoint is None
    assert marked.decoys == 0
    root, same = open_weight_test(tilted_tally(mark, 0.15), mark, weighting=OPEN_WEIGHT_ROOT, decoys=0)
    assert root.log10_p < -10
    assert same == effect


class Weak(GreenListMark):
    exact = False


def test_refusals() -> None:
    mark = GreenListMark(scope_of(window=1))
    collector = ContextCollector(window=1)
    one = np.full((1, 4), 0.25, dtype=np.float32)
    collector.add(np.zeros((1, 1), dtype=np.uint32), one, one)
    with pytest.raises(UsageError, match="one model"):
        open_weight_test(collector.tally(), mark)
    with pytest.raises(UsageError, match="wide"):
        open_weight_test(collector.tally(), GreenListMark(scope_of(window=2)))
    with pytest.raises(UsageError, match="independent"):
        open_weight_test(tilted_tally(mark, 0.1, Origin.MARKED), Weak(scope_of(window=1)))
    empty, _ = open_weight_test(ContextCollector(window=1).tally(), mark)
    assert empty.log10_p == 0.0


class Table:
    """What `LanguageModel` is to the test: logits by the last id."""

    def __init__(self, torch, rows: np.ndarray, digest: str = "00" * 32, width: int = 0) -> None:
        self.name, self.device = "table", torch.device("cpu")
        logits = torch.log(torch.from_numpy(rows.astype(np.float32)))
        padded = torch.nn.functional.pad(logits, (0, width), value=5.0)
        self.tokenizer = SimpleNamespace(digest=lambda: digest, vocabulary_size=rows.shape[1])
        self.model = lambda input_ids, use_cache: SimpleNamespace(logits=padded[input_ids])


@pytest.mark.models
def test_from_models_as_from_arrays() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    scope = scope_of(window=1)
    mark = GreenListMark(scope)
    rng = np.random.default_rng(6)
    base = rows_of(rng, 50, 50).astype(np.float64) + 1e-6
    base /= base.sum(axis=1, keepdims=True)
    learned = student(greens_of(mark, 50), base, 0.5)
    texts = [rng.integers(0, 50, n).astype(np.uint32) for n in (3, 700, 1300)]
    # The suspect's logits are padded: what is beyond the vocabulary is no token.
    suspect, reference = Table(torch, learned, width=6), Table(torch, base)
    (result,) = detect_open_weight(suspect, reference, texts, [scope], decoys=19)
    collector = ContextCollector(window=1)
    for ids in texts:
        at = collector.positions(ids)
        collector.add(ids[at - 1][:, None], learned[ids[at - 1]], base[ids[at - 1]].astype(np.float32))
    direct, _ = open_weight_test(collector.tally(), mark, decoys=0)
    assert result.contexts == sum(len(ids) for ids in texts)
    assert result.test.statistic == pytest.approx(direct.statistic, rel=1e-4)
    assert result.verdict is Verdict.DEPENDS
    limited = detect_open_weight(suspect, reference, texts, [scope, scope_of(key=2, window=1)], limit=500, decoys=0)
    assert [each.contexts for each in limited] == [500, 500]
    assert limited[0].log10_p_holm > limited[0].log10_p
    with pytest.raises(TokenizerError, match="different tokenizers"):
        detect_open_weight(suspect, Table(torch, base, "11" * 32), texts, [scope])
    with pytest.raises(TokenizerError, match="made for another"):
        detect_open_weight(Table(torch, base, "11" * 32), Table(torch, base, "11" * 32), texts, [scope])
    with pytest.raises(ReferenceMismatchError, match="beyond the vocabulary"):
        detect_open_weight(suspect, reference, [np.array([70], dtype=np.uint32)], [scope])
    with pytest.raises(UsageError, match="one key"):
        detect_open_weight(suspect, reference, texts, [])
