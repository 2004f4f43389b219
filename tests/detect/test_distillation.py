"""The tests of a model and of a text, end to end, against brute force over the specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import corpus_of, scope_of

from detect.centred import CENTRED
from detect.corpus import Corpus
from detect.distillation import detect_model
from detect.family import FAMILY
from detect.marked_text import detect_text
from detect.ngram_reference import ngram_reference
from detect.reference import Reference
from detect.tally import PromptPolicy
from detect.verdict import Verdict
from watermark import prf
from watermark.errors import ReferenceMismatchError, UsageError
from watermark.keys import ScopeKeys


def is_green(scope: ScopeKeys, window: tuple[int, ...], token: int) -> bool:
    """Green by the specification, one pair at a time."""
    row = np.array([window], dtype=np.uint32)
    key = scope.lane_key(int(prf.lane(row)[0])).reveal()
    u = int(prf.uniform(key, row, np.array([token], dtype=np.uint32))[0])
    return u < prf.green_below(scope.params.fleet_k)


def marked(scope: ScopeKeys, tokens: int, *, share: float, seed: int, vocabulary: int = 500) -> np.ndarray:
    """Draw ids at random, taking a green one with probability *share* where there is a window."""
    rng = np.random.default_rng(seed)
    ids = [int(i) for i in rng.integers(20, vocabulary, scope.params.window)]
    while len(ids) < tokens:
        window = tuple(ids[-scope.params.window :])
        wants = rng.random() < share
        ids.append(next(v for v in rng.integers(20, vocabulary, 400).tolist() if is_green(scope, window, v) == wants))
    return np.array(ids, dtype=np.uint32)


def test_count_and_centred_are_the_sums_they_say() -> None:
    scope = scope_of(window=2, account_lanes=16, special_ids=(1, 25))
    rng = np.random.default_rng(2)
    responses = [rng.integers(0, 60, 300, dtype=np.uint32) for _ in range(4)]
    prompts = [[rng.integers(0, 60, 40, dtype=np.uint32)] for _ in range(4)]
    reference = ngram_reference(
        responses,
        [rng.integers(0, 60, 3000, dtype=np.uint32)],
        order=3,
        vocabulary_size=50_000,
        tokenizer="00" * 32,
        name="r",
    )
    result = detect_model(corpus_of(responses, prompts), [scope], reference=reference, weightings=[CENTRED], decoys=20)[
        0
    ]
    said: dict[tuple[tuple[int, ...], int], float] = {}
    weight: dict[tuple[tuple[int, ...], int], float] = {}
    position = 0
    for ids, (prompt,) in zip(responses, prompts, strict=True):
        copied = {tuple(prompt[i : i + 2].tolist()) for i in range(len(prompt) - 1)}
        for i in range(len(ids)):
            window, v, row = tuple(ids[i - 2 : i].tolist()), int(ids[i]), position + i
            if i < 2 or {*window, v} & {1, 25} or window in copied:
                continue
            if prf.lane(np.array([window], dtype=np.uint32))[0] >= 48:
                continue
            said[window, v] = 1
            weight[window, v] = weight.get((window, v), 0) + 1
            p_of = {
                int(u): float(p)
                for u, p in zip(reference.top_ids[row], reference.top_p[row], strict=True)
                if p >= 0.02 or (u == v and p > 0)
            }
            p_of.setdefault(v, float(reference.said_p[row]))
            for u, p in p_of.items():
                if u not in (1, 25):
                    weight[window, u] = weight.get((window, u), 0) - p
        position += len(ids)
    assert result.count.pairs == len(said)
    assert result.count.green == sum(is_green(scope, w, v) for w, v in said)
    statistic = sum(a * (is_green(scope, w, v) - 0.25) for (w, v), a in weight.items())
    assert result.weighted[0].statistic == pytest.approx(statistic, abs=1e-6)
    assert result.weighted[0].sd == pytest.approx(math.sqrt(0.1875 * sum(a * a for a in weight.values())), rel=1e-6)
    assert result.left_out_prompt > 0


def test_marked_text_is_found_and_other_text_is_not() -> None:
    scope = scope_of()
    texts = [marked(scope, 200, share=0.6, seed=1), marked(scope, 200, share=0.25, seed=2), np.array([5, 6, 7])]
    texts[2] = texts[2].astype(np.uint32)
    result = detect_text(corpus_of(texts), scope)
    assert [document.verdict for document in result.documents] == [
        Verdict.DEPENDS,
        Verdict.NO_SIGN,
        Verdict.TOO_SHORT,
    ]
    assert result.pooled_verdict is Verdict.DEPENDS
    assert result.documents[2].pairs == 2
    # Holm over three: the smallest p is multiplied by three.
    assert result.documents[0].log10_p_holm == pytest.approx(result.documents[0].log10_p + math.log10(3))


def test_too_short_to_tell_is_by_the_best_outcome_there_could_be() -> None:
    """Nine green pairs at gamma 1/4 give p = 4^-9 = 3.8e-6 at best, ten give 9.5e-7."""
    scope = scope_of()
    for pairs, verdict in ((9, Verdict.TOO_SHORT), (10, Verdict.DEPENDS)):
        ids = marked(scope, pairs + 1, share=1.0, seed=4, vocabulary=40_000)
        document = detect_text(corpus_of([ids]), scope).documents[0]
        assert (document.pairs, document.score) == (pairs, pairs)
        assert document.verdict is verdict
        assert document.log10_p == pytest.approx(-pairs * math.log10(4))


def test_pooling_counts_a_repeated_pair_once() -> None:
    scope = scope_of()
    text = marked(scope, 100, share=0.5, seed=8)
    once, thrice = (detect_text(corpus_of([text] * n), scope).count for n in (1, 3))
    assert (once.pairs, once.green) == (thrice.pairs, thrice.green)
    assert once.log10_p == thrice.log10_p


def test_documents_of_several_texts_are_one() -> None:
    scope = scope_of()
    a, b = marked(scope, 60, share=0.5, seed=1), marked(scope, 60, share=0.5, seed=2)
    together = corpus_of([a, b])
    joined = Corpus(
        responses=[a, b],
        prompts=[[], []],
        prompt_texts=[(), ()],
        document=np.zeros(2, dtype=np.int64),
        sources=["one"],
        accounting=together.accounting,
        digests={},
        without_prompt=0,
        from_ids=0,
    )
    result = detect_text(joined, scope)
    assert len(result.documents) == 1
    assert result.documents[0].pairs == result.pooled.pairs


def test_a_copier_is_not_accused() -> None:
    """Marked text in the prompt, echoed: its windows are left out, and without that it would be a finding."""
    scope = scope_of(window=2)
    source = marked(scope, 400, share=0.8, seed=6)
    echo = corpus_of([source], [[source]])
    assert detect_model(echo, [scope], decoys=0)[0].verdict is Verdict.TOO_SHORT
    assert detect_model(echo, [scope], policy=PromptPolicy.CLEAN, decoys=0)[0].verdict is Verdict.DEPENDS
    mixed = corpus_of([source, source[::-1].copy()], [[], [source]])
    assert detect_model(mixed, [scope], policy=PromptPolicy.MARKED, decoys=0)[0].verdict is not Verdict.DEPENDS


def test_several_scopes_share_the_level_by_holm() -> None:
    scopes = [scope_of(key=n) for n in (1, 2, 3)]
    for n, scope in enumerate(scopes):
        object.__setattr__(scope, "name", f"s{n}")
    text = corpus_of([marked(scopes[1], 300, share=0.5, seed=3)])
    alone = detect_model(text, [scopes[1]], decoys=0)[0]
    together = detect_model(text, scopes, decoys=0)
    assert together[1].log10_p_holm == pytest.approx(alone.log10_p + math.log10(3))
    assert [r.verdict for r in together] == [Verdict.NO_SIGN, Verdict.DEPENDS, Verdict.NO_SIGN]
    with pytest.raises(UsageError, match="each once"):
        detect_model(text, [scopes[0], scopes[0]])


def test_the_decoy_rank_of_a_marked_text_is_one_and_is_repeatable() -> None:
    scope = scope_of()
    corpus = corpus_of([marked(scope, 400, share=0.6, seed=3)])
    first, again = (detect_model(corpus, [scope], decoys=99)[0] for _ in range(2))
    assert first == again
    assert (first.count.decoy_rank, first.count.decoys) == (1, 99)
    other = detect_model(corpus, [scope], decoys=99, decoy_seed=1)[0]
    assert other.count.decoy_rank == 1


def test_a_reference_of_another_tokenizer_is_refused() -> None:
    text = np.arange(50, dtype=np.uint32)
    reference = ngram_reference([text], [text], order=2, vocabulary_size=50_000, tokenizer="11" * 32, name="r")
    with pytest.raises(ReferenceMismatchError, match="another tokenizer"):
        detect_model(corpus_of([text]), [scope_of()], reference=reference)


@pytest.mark.parametrize("level", [0.0, 1.0, float("nan")])
def test_levels_out_of_range(level: float) -> None:
    with pytest.raises(UsageError, match="level"):
        detect_model(corpus_of([np.arange(9, dtype=np.uint32)]), [scope_of()], level=level)


def test_an_empty_corpus_is_too_short() -> None:
    assert detect_model(corpus_of([]), [scope_of()])[0].verdict is Verdict.TOO_SHORT


def test_a_decoy_seed_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(UsageError, match="decoy seed"):
        detect_model(corpus_of([np.arange(50, dtype=np.uint32)]), [scope_of()], decoy_seed=2**64)


def test_several_listed_tests_cost_their_number_and_are_ranked_together(
    repetitive: list[np.ndarray], references: dict[int, Reference]
) -> None:
    corpus, scope = corpus_of(repetitive), scope_of()
    singles = [
        detect_model(corpus, [scope], reference=references[1], weightings=[weighting], decoys=99)[0]
        for weighting in FAMILY.values()
    ]
    together = detect_model(corpus, [scope], reference=references[1], weightings=list(FAMILY.values()), decoys=99)[0]
    smallest = min(single.log10_p for single in singles)
    assert together.log10_p == pytest.approx(min(0.0, smallest + math.log10(len(singles))))
    assert [test.log10_p for test in together.weighted] == [single.weighted[0].log10_p for single in singles]
    assert all(single.min_p_rank is None for single in singles)
    assert together.min_p_rank is not None
    assert 1 <= together.min_p_rank <= 100
    ranks = [test.decoy_rank for test in together.weighted]
    # The combination's rank is no better than the best test's, but by the other tests' luck under the decoys.
    assert together.min_p_rank >= min(rank for rank in ranks if rank is not None)
