"""What would make a p-value untrue is refused: a hostile review's findings, each with the case that it was found by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import corpus_of, scope_of

from detect.centred import CENTRED
from detect.corpus import Corpus
from detect.distillation import detect_model
from detect.e_process import EProcess, sequential_test
from detect.e_values import mixture_for
from detect.family import FAMILY, SCORE
from detect.mark import GreenListMark
from detect.multiplicity import rank_p
from detect.open_weight import Origin, contexts_of
from detect.records import Accounting
from detect.reference import Reference
from detect.supervised import detect_served
from detect.tally import tally_of
from detect.verdict import Verdict
from watermark.errors import InputError, UsageError


def random_corpus(seed: int, *lengths: int) -> Corpus:
    rng = np.random.default_rng(seed)
    return corpus_of([rng.integers(0, 40, length, dtype=np.uint32) for length in lengths])


def by_ids(corpus: Corpus, **fields: Any) -> Corpus:
    return replace(corpus, from_ids=len(corpus.responses), **fields)


def test_a_ledger_that_is_not_whole_is_refused() -> None:
    suspect, mark = random_corpus(1, 300), GreenListMark(scope_of())
    served = random_corpus(2, 200, 200)
    detect_served(suspect, mark, by_ids(served))
    with pytest.raises(InputError, match="every one by its logged token_ids"):
        detect_served(suspect, mark, served)
    with pytest.raises(InputError, match="1 records were left out"):
        detect_served(suspect, mark, by_ids(served, accounting=Accounting(read=3, scored=2, malformed=1)))
    with pytest.raises(InputError, match="other parameters"):
        detect_served(suspect, mark, by_ids(served, fingerprints=frozenset({"ff" * 32})))


def test_a_scheme_that_hashes_the_prompt_has_no_supervised_test() -> None:
    class FromThePrompt(GreenListMark):
        hashes_prompt = True

    with pytest.raises(UsageError, match="prompt's last"):
        detect_served(random_corpus(1, 300), FromThePrompt(scope_of()), by_ids(random_corpus(2, 200)))


def test_contexts_marked_under_the_key_are_not_taken_for_key_free() -> None:
    mark: Any = GreenListMark(scope_of())
    marked = replace(random_corpus(1, 50), fingerprints=frozenset({mark.fingerprint}))
    with pytest.raises(UsageError, match="--contexts-are-marked"):
        contexts_of(marked, None, [mark], origin=Origin.KEY_FREE)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="logged token_ids"):
        contexts_of(marked, None, [mark], origin=Origin.MARKED)  # type: ignore[arg-type]
    sequences, starts = contexts_of(by_ids(marked), None, [mark], origin=Origin.MARKED)  # type: ignore[arg-type]
    assert (len(sequences), starts) == (1, [0])


def test_a_look_is_the_same_whatever_is_collected_after_it() -> None:
    mark = GreenListMark(scope_of())
    lengths = [150] * 10
    short = random_corpus(3, *lengths)
    longer = corpus_of([*short.responses, *random_corpus(4, 1000, 1000).responses])
    first, again = (
        sequential_test(corpus, mark, weighting=SCORE, looks=8, planned_tokens=4000).looks for corpus in (short, longer)
    )
    assert len(first) >= 2
    assert again[: len(first)] == first


def test_the_state_of_another_key_is_not_taken_up() -> None:
    one, other = (GreenListMark(scope_of(key=key)) for key in (1, 2))
    tally = tally_of(random_corpus(5, 400).responses, window=1)
    weights = SCORE.weigh(tally)
    process = EProcess(mixture_for(50.0))
    process.look(tally, weights, one, range(64), responses=1, tokens=400)
    with pytest.raises(UsageError, match="of one key"):
        process.look(tally, weights, other, (), responses=1, tokens=400)
    state = process.to_json()
    assert EProcess.from_json(state, mark=one, earlier=[(tally, weights)]).log10_e == process.log10_e
    with pytest.raises(InputError, match="another key"):
        EProcess.from_json(state, mark=other, earlier=[(tally, weights)])
    state["looks"][0]["log10_e"] += 5.0
    with pytest.raises(InputError, match="don't fit"):
        EProcess.from_json(state, mark=one, earlier=[(tally, weights)])


@pytest.mark.parametrize("decoys", [0, 19, 999])
def test_a_rank_that_cannot_reach_the_level_is_too_short_to_tell(decoys: int) -> None:
    class Weak(GreenListMark):
        exact = False

    result = detect_model(random_corpus(6, 400), [Weak(scope_of())], decoys=decoys)[0]
    assert result.verdict is Verdict.TOO_SHORT
    assert result.log10_p >= -np.log10(1 + decoys) - 1e-12


def test_tests_without_a_weight_rank_last_and_not_first() -> None:
    corpus = random_corpus(7, 200)
    ids = corpus.responses[0]
    sure = Reference(
        name="sure",
        tokenizer="00" * 32,
        ids=ids,
        starts=np.array([0, len(ids)]),
        top_ids=ids[:, None].copy(),
        top_p=np.ones((len(ids), 1), np.float32),
        said_p=np.ones(len(ids), np.float32),
    )
    assert not CENTRED.weigh(tally_of([ids], window=1, reference=sure), sure).values.any()
    result = detect_model(corpus, [scope_of()], reference=sure, weightings=list(FAMILY.values()), decoys=19)[0]
    assert result.log10_p == 0.0
    assert result.min_p_rank == 20


def test_a_tie_but_for_the_order_of_a_sum_counts_against_the_finding() -> None:
    assert rank_p(0.1 + 0.2 + 0.3, decoys=[0.3 + 0.2 + 0.1, -1.0]) == (2, 3)
