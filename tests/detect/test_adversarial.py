"""Attacks on the promise itself: a reported p is never below the truth, and nothing in it but the colours is random."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builders import corpus_of, scope_of, shape_of

from detect import mark
from detect.binomial import log10_tail
from detect.calibration import calibrate
from detect.centred import CENTRED, SELF_NORMALISED
from detect.decoys import decoy_words
from detect.distillation import ModelResult, detect_model
from detect.echo import Echoes
from detect.marked_text import detect_text
from detect.ngram_reference import ngram_reference
from detect.reference import Reference
from detect.tally import PromptPolicy, tally_of
from detect.verdict import Verdict, verdict_of
from watermark import kernels, prf
from watermark.errors import ReferenceMismatchError
from watermark.examples import examples_path
from watermark.keyring import Keyring
from watermark.keys import ScopeKeys
from watermark.tokenizer import Tokenizer

#: What comparing two sums of float64 may be off by, in decades.
ROUNDING = 1e-9


class Painted:
    """The kernels, but for the colours, which are those given."""

    def __init__(self, colours: npt.NDArray[np.bool_]) -> None:
        self.colours = colours

    def __getattr__(self, name: str) -> Any:
        return getattr(kernels, name)

    def green(self, *_: object) -> npt.NDArray[np.bool_]:
        return self.colours


def random_reference(rng: np.random.Generator, responses: list[np.ndarray], vocabulary: int) -> Reference:
    """A reference that is plain nonsense, tokens listed twice among it: valid all the same."""
    n = sum(map(len, responses))
    return Reference(
        name="nonsense",
        tokenizer="00" * 32,
        ids=np.concatenate(responses),
        starts=np.concatenate([[0], np.cumsum([len(ids) for ids in responses])]).astype(np.int64),
        top_ids=rng.integers(0, vocabulary, (n, 2)).astype(np.uint32),
        top_p=(rng.dirichlet([0.5, 0.5], n) * 0.99).astype(np.float32),
        said_p=rng.random(n).astype(np.float32),
    )


def never_below_the_truth(outcomes: list[tuple[float, float]]) -> None:
    """Outcomes are (log10 p reported, chance): the chance of a p of at most t must be at most t, for each t."""
    outcomes.sort()
    chance = 0.0
    for (log10_p, probability), after in zip(outcomes, [*outcomes[1:], (1.0, 0.0)], strict=True):
        chance += probability
        if after[0] > log10_p:
            assert math.log10(min(1.0, chance)) <= log10_p + ROUNDING


@pytest.mark.parametrize("seed", range(16))
def test_every_colouring_of_a_small_corpus(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `detect_model` under all 2^n colourings, each with its exact chance under the null."""
    rng = np.random.default_rng(seed)
    window, k = 1 + seed % 3, (1, 64, 128, 255)[seed % 4]
    while True:
        vocabulary = int(rng.integers(3, 6))
        responses = [rng.integers(0, vocabulary, int(rng.integers(window + 1, 8))).astype(np.uint32) for _ in range(2)]
        responses += [np.repeat(responses[0], 3)]
        prompts = [[rng.integers(0, vocabulary, 2).astype(np.uint32)] for _ in responses]
        scope = scope_of(window=window, fleet_k=k, account_lanes=16 * (seed % 2), special_ids=(0,) * (seed % 5 == 0))
        reference = None
        if seed // 2 % 3 == 1:
            reference = ngram_reference(
                responses, responses, order=window + 1, vocabulary_size=50_000, tokenizer="00" * 32, name="itself"
            )
        elif seed // 2 % 3 == 2:
            reference = random_reference(rng, responses, vocabulary)
        policy = list(PromptPolicy)[seed % 3]
        n = len(
            tally_of(responses, **shape_of(scope.params), prompts=prompts, policy=policy, reference=reference).tokens
        )
        if 4 <= n <= 8:
            break
    count, main = [], []
    for colours in itertools.product([False, True], repeat=n):
        monkeypatch.setattr(mark, "kernels", Painted(np.array(colours)))
        chance = math.prod(k / 256 if green else 1 - k / 256 for green in colours)
        try:
            result = detect_model(corpus_of(responses, prompts), [scope], reference=reference, policy=policy, decoys=0)[
                0
            ]
        except ReferenceMismatchError:  # All its mass is green: the reference is refused, which finds nothing.
            assert chance <= 1e-6
            continue
        count.append((result.count.log10_p, chance))
        main.append((result.log10_p, chance))
    never_below_the_truth(count)
    never_below_the_truth(main)


def is_in_account_lane(windows: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    return np.asarray(prf.lane(windows) >= 48)


def result_of(**options: Any) -> tuple[ScopeKeys, ModelResult]:
    rng = np.random.default_rng(4)
    responses = [rng.integers(0, 60, 400).astype(np.uint32) for _ in range(3)]
    scope = scope_of(window=2, account_lanes=16, **options)
    clean = [rng.integers(0, 60, 3000).astype(np.uint32)]
    reference = ngram_reference(responses, clean, order=3, vocabulary_size=50_000, tokenizer="00" * 32, name="r")
    return scope, detect_model(corpus_of(responses), [scope], reference=reference, decoys=300)[0]


@pytest.mark.parametrize("fleet_k", [1, 64, 200])
def test_the_count_is_against_the_scopes_own_gamma(fleet_k: int) -> None:
    _, result = result_of(fleet_k=fleet_k)
    assert result.count.log10_p == log10_tail(result.count.green, pairs=result.count.pairs, k=fleet_k)


def test_the_decoys_spread_is_that_of_the_null() -> None:
    _, result = result_of()
    assert result.weighted[0].decoy_sd == pytest.approx(1.0, abs=5 / math.sqrt(2 * 300))
    assert abs(result.weighted[0].decoy_z.mean()) < 5 / math.sqrt(300)


def test_a_tie_with_a_decoy_is_counted_against_the_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoys that are the real key itself tie with it: the rank is the last, not the first."""
    scope, _ = result_of()
    monkeypatch.setattr(mark, "decoy_words", lambda *_, **__: np.stack([scope.lane_words()] * 9))
    _, result = result_of()
    assert (result.count.decoy_rank, result.weighted[0].decoy_rank) == (10, 10)


def test_decoys_differ_by_seed_scope_and_activation() -> None:
    plain = scope_of()
    activated = ScopeKeys(name="test", params=plain.params, delta=2.0, key=plain.key, activation=b"\1" * 32)
    drawn = [
        decoy_words(plain, count=2),
        decoy_words(plain, count=2, seed=1),
        decoy_words(activated, count=2),
        decoy_words(ScopeKeys(name="other", params=plain.params, delta=2.0, key=plain.key), count=2),
    ]
    assert len({words.tobytes() for words in drawn}) == 4


def test_the_pairs_of_account_lanes_weigh_nothing_in_either_test() -> None:
    """Painting every pair of the account lanes green changes no figure."""
    rng = np.random.default_rng(8)
    responses = [rng.integers(0, 40, 300).astype(np.uint32)]
    scope = scope_of(window=1, account_lanes=16)
    reference = ngram_reference(
        responses, responses, order=2, vocabulary_size=50_000, tokenizer="00" * 32, name="itself"
    )
    plain = detect_model(corpus_of(responses), [scope], reference=reference, decoys=0)[0]
    real = kernels.green
    painted = Painted(np.zeros(0, dtype=np.bool_))

    def green(seeds: Any, bounds: Any, pair_window: Any, tokens: Any) -> npt.NDArray[np.bool_]:
        tally = tally_of(responses, **shape_of(scope.params), reference=reference)
        colours: npt.NDArray[np.bool_] = real(seeds, bounds, pair_window, tokens)
        inside = is_in_account_lane(tally.windows)[tally.pair_window]
        assert inside.any()
        return colours | inside

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painted, "green", green, raising=False)
        patch.setattr(mark, "kernels", painted)
        assert detect_model(corpus_of(responses), [scope], reference=reference, decoys=0)[0] == plain


def test_a_text_is_not_scored_in_account_lanes() -> None:
    """They have another gamma, and are another account's: half of their pairs are green in any text."""
    text = np.random.default_rng(3).integers(0, 400, 4000).astype(np.uint32)
    tally = tally_of([text], **shape_of(scope_of(account_lanes=16).params))
    fleet = int((~is_in_account_lane(tally.windows))[tally.pair_window].sum())
    for scope in (scope_of(account_lanes=16), scope_of(account_lanes=16, fleet_k=8)):
        result = detect_text(corpus_of([text]), scope)
        assert result.pooled.pairs == result.documents[0].pairs == fleet < len(tally.tokens)
        assert result.pooled.log10_p > -4


def test_calibration_counts_the_pairs_that_the_test_counts() -> None:
    """Not those that only the reference would have said."""
    rng = np.random.default_rng(4)
    responses = [rng.integers(0, 60, 400).astype(np.uint32)]
    scope = scope_of()
    reference = random_reference(rng, responses, 60)
    tested = detect_model(corpus_of(responses), [scope], reference=reference, decoys=0)[0].count.pairs
    assert calibrate(corpus_of(responses), scope.params, keys=2, reference=reference).pairs == tested


def test_calibration_leaves_out_what_the_test_leaves_out() -> None:
    text = np.arange(10, 60, dtype=np.uint32)
    params = scope_of().params
    assert calibrate(corpus_of([text], [[text]]), params, keys=2).pairs == 0
    assert calibrate(corpus_of([text], [[text]]), params, keys=2, policy=PromptPolicy.CLEAN).pairs == 49


@pytest.mark.parametrize(("top", "said"), [([0.6, 0.6], 0.5), ([-0.1, 0.2], 0.5), ([math.nan, 0.2], 0.5), ([0, 0], 2)])
def test_probabilities_that_are_none_are_refused(top: list[float], said: float) -> None:
    with pytest.raises(ReferenceMismatchError, match="probabilities"):
        Reference(
            name="r",
            tokenizer="00" * 32,
            ids=np.array([5], dtype=np.uint32),
            starts=np.array([0, 1]),
            top_ids=np.array([[1, 2]], dtype=np.uint32),
            top_p=np.array([top], dtype=np.float32),
            said_p=np.array([said], dtype=np.float32),
        )


def test_the_effect_is_of_what_the_fleet_lanes_could_have_shown() -> None:
    rng = np.random.default_rng(8)
    responses = [rng.integers(0, 40, 300).astype(np.uint32)]
    scope = scope_of(account_lanes=16)
    reference = ngram_reference(
        responses, responses, order=2, vocabulary_size=50_000, tokenizer="00" * 32, name="itself"
    )
    tally = tally_of(responses, **shape_of(scope.params), reference=reference)
    information = tally.information[~is_in_account_lane(tally.windows)].sum() / 2**32
    result = detect_model(
        corpus_of(responses), [scope], reference=reference, weightings=[CENTRED, SELF_NORMALISED], decoys=0
    )[0]
    assert result.effect is not None
    assert result.effect.tau == pytest.approx(result.weighted[0].statistic / (scope.delta * 0.1875 * information))


def test_a_p_at_the_level_is_a_finding() -> None:
    assert verdict_of(-6.0, smallest=-6.0, log10_level=-6.0) is Verdict.DEPENDS


def test_too_short_is_by_the_level_that_is_left_for_each_scope() -> None:
    """Ten pairs can give 9.5e-7 at best: enough for one scope at 1e-6, and not for two."""
    one = scope_of()
    other = ScopeKeys(name="other", params=one.params, delta=2.0, key=one.key)
    text = corpus_of([np.arange(11, dtype=np.uint32)])
    assert detect_model(text, [one], decoys=0)[0].verdict is Verdict.NO_SIGN
    assert [result.verdict for result in detect_model(text, [one, other], decoys=0)] == [Verdict.TOO_SHORT] * 2


def test_a_document_of_one_phrase_is_as_much_evidence_as_the_phrase() -> None:
    """Per document too a pair counts once, however often the document says it."""
    scope = scope_of()
    phrase = np.arange(10, 30, dtype=np.uint32)
    once = detect_text(corpus_of([phrase]), scope).documents[0]
    often = detect_text(corpus_of([np.tile(np.append(phrase, 5), 50).astype(np.uint32)]), scope).documents[0]
    assert once.pairs == 19
    assert often.pairs == 19 + 2  # the two joints


@pytest.mark.parametrize("test", [detect_text, lambda corpus, scope: detect_model(corpus, [scope], decoys=0)[0]])
def test_prompts_are_left_out_by_either_command(test: Callable[..., Any]) -> None:
    text = np.arange(10, 60, dtype=np.uint32)
    assert test(corpus_of([text], [[text]]), scope_of()).left_out_prompt == 49


def test_windows_do_not_run_from_one_message_of_a_prompt_into_the_next() -> None:
    a, b = np.array([[1, 2], [3, 4]], dtype=np.uint32)
    response = np.array([2, 3, 9], dtype=np.uint32)
    assert detect_model(corpus_of([response], [[a, b]]), [scope_of(window=2)], decoys=0)[0].left_out_prompt == 0
    joined = corpus_of([response], [[np.concatenate([a, b])]])
    assert detect_model(joined, [scope_of(window=2)], decoys=0)[0].left_out_prompt == 1


def test_a_finding_by_holm_is_not_called_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten green pairs are at the level by themselves; beside a document that shows, Holm does not take that away."""
    monkeypatch.setattr(mark, "kernels", Painted(np.ones(50 + 10, dtype=np.bool_)))
    texts = [np.arange(0, 51, dtype=np.uint32), np.arange(100, 111, dtype=np.uint32)]
    documents = detect_text(corpus_of(texts), scope_of()).documents
    assert [document.pairs for document in documents] == [50, 10]
    assert documents[1].log10_p_holm <= -6
    assert documents[1].verdict is Verdict.DEPENDS


@pytest.mark.parametrize(
    "asked",
    [
        lambda text: f"Proofread this: {text}",
        lambda text: "Proofread this:\n" + "\n".join(f"> {line}" for line in text.split("\n")),
        lambda text: f"Proofread this: {' '.join(text.split())}",
    ],
    ids=["after a space", "quoted", "unwrapped"],
)
@pytest.mark.parametrize("policy", [PromptPolicy.OWN, PromptPolicy.MARKED])
def test_a_clean_model_that_repeats_marked_prompts_is_not_accused(
    asked: Callable[[str], str], policy: PromptPolicy, smollm2: Tokenizer
) -> None:
    """Each line of a copy may begin with another id than in the prompt, and its next token is then scored."""
    lines = examples_path("teacher.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["response"] for line in lines]
    corpus = corpus_of([smollm2.encode(text) for text in answers], [[smollm2.encode(asked(text))] for text in answers])
    scope = Keyring.load(examples_path("keyring.json")).scope()
    echoes = Echoes(smollm2)
    every = echoes.passages(map(asked, answers)) if policy is PromptPolicy.MARKED else None
    found = [
        echoes.find(ids, echoes.passages([asked(text)]) if every is None else every)
        for ids, text in zip(corpus.responses, answers, strict=True)
    ]
    result = detect_model(replace(corpus, echoes=found), [scope], policy=policy, decoys=0)
    assert result[0].log10_p > -4
