"""From outputs to the integers of every lane, and from opened lanes to p.

Null: the outputs are independent of the key, given the prompts (whose windows are left out), and the key is uniformly
random and was fixed before. Each lane has a key of its own, so the green bits of the distinct pairs of any set of lanes
that was chosen without a look at them are independent Bernoulli(gamma) bits. The opened lanes are chosen by a hash of
the signed scores together with randomness that was drawn after them and without them (`detect.evidence.lanes`): their
order is uniform whatever the scores are. So the p of the opened lanes alone is exact; the other lanes' integers, which
nobody can recount, never enter it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from detect.binomial import min_log10_p
from detect.centred import CENTRED
from detect.corpus import Corpus, read_corpus
from detect.count import count_test
from detect.evidence.lanes import OpenedLanes
from detect.evidence.predicates import COUNT, LaneScore, TestClaim, WeightedLane, log10_text
from detect.family import FAMILY, SCORE
from detect.mark import Mark
from detect.multiplicity import rank_p
from detect.records import Reader
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy, Tally, tally_of
from detect.verdict import Verdict, verdict_of
from detect.weighted_test import EffectSize, effect_size, weighted_test
from detect.weighting import Weights
from watermark.keys import Params
from watermark.prf import LANES
from watermark.tokenizer import Tokenizer

__all__ = ["Evidence", "PublicTests", "evidence_of", "lane_scores", "public_tests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Outputs, tallied, and the weights of the tests listed; no key has been near it."""

    corpus: Corpus
    tally: Tally
    weights: Mapping[str, Weights]
    """By test; the count's are 1 (2^32 units) a pair."""
    reference: Reference | None = field(repr=False)
    params: Params
    policy: PromptPolicy

    def first(self, responses: int) -> Evidence:
        """Return the evidence of the first so many responses, as if no more had been collected."""
        return _weigh(
            self.corpus.first(responses),
            params=self.params,
            tests=tuple(self.weights),
            policy=self.policy,
            reference=None if self.reference is None else self.reference.first(responses),
        )


def evidence_of(
    outputs: BinaryIO,
    tokenizer: Tokenizer,
    *,
    params: Params,
    tests: Sequence[str],
    policy: PromptPolicy,
    reference: Reference | None,
) -> Evidence:
    """Read outputs (JSON Lines), tokenise them, and make the weights of *tests*.

    Texts are tokenised again from their text: token ids in a record are the endpoint's word and nobody else's.

    Raises:
        InputError: a record is malformed.
        ReferenceMismatchError: the reference is of other text.
    """
    reader = Reader(["-"], stdin=outputs)
    corpus = read_corpus(
        reader, tokenizer, window=params.window, retokenize=True, every_prompt=policy is PromptPolicy.MARKED
    )
    return _weigh(corpus, params=params, tests=tests, policy=policy, reference=reference)


def lane_scores(evidence: Evidence, mark: Mark, tested: npt.NDArray[np.bool_]) -> tuple[LaneScore, ...]:
    """Return the integers of all 64 lanes; those that *tested*, bool (64,), leaves out are 0.

    Sums are exact: of integers, in halves that do not overflow.
    """
    tally = evidence.tally
    green = mark.scores(tally)
    lane_of_pair = tally.lanes[tally.pair_window]
    order = np.argsort(lane_of_pair, kind="stable")
    ends = np.searchsorted(lane_of_pair[order], np.arange(LANES + 1))
    weighted = {name: weights for name, weights in evidence.weights.items() if name != COUNT}
    found = []
    for lane in range(LANES):
        pairs = order[ends[lane] : ends[lane + 1]] if tested[lane] else order[:0]
        said, is_green = tally.said[pairs] > 0, green[pairs]
        found.append(
            LaneScore(
                lane=lane,
                tested=bool(tested[lane]),
                pairs=int(said.sum()),
                green=int((said & is_green).sum()),
                weighted={name: _weighted_lane(weights.values[pairs], is_green) for name, weights in weighted.items()},
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicTests:
    """What the opened lanes say."""

    tests: dict[str, TestClaim]
    log10_ps: dict[str, float]
    log10_p: float
    """Corrected for the tests, and for the keys and plans in the log."""
    verdict: Verdict
    effect: EffectSize | None
    rank: int
    """Of the first listed test's statistic among the decoys'."""
    decoys: int
    decoy_z: npt.NDArray[np.float64] = field(repr=False)
    """The decoys' statistic of the first listed test, in standard deviations, (decoys,)."""
    z: float
    """The key's own."""


def public_tests(
    evidence: Evidence, mark: OpenedLanes, *, tried: int, log10_level: float, decoys: int, decoy_seed: int = 0
) -> PublicTests:
    """Test the opened lanes.

    The p is the smallest of the listed tests' (the exact tail of the count, Chernoff's bound of a weighted sum), times
    the number of tests, times the number of keys and studies that might have been tried.

    Args:
        evidence: of `evidence_of`.
        mark: the opened lanes.
        tried: keys times plans in the log, 1 or more.
        log10_level: of the verdict.
        decoys: decoy keys, 1 or more.
        decoy_seed: from which they are drawn.
    """
    tally, green = evidence.tally, mark.scores(evidence.tally)
    tested = mark.tested(tally)
    tests, log10_ps, smallest = {}, {}, {}
    for name, all_weights in evidence.weights.items():
        weights = all_weights.within(tested)
        values = weights.values
        if name == COUNT:
            pairs, said_green = int(np.count_nonzero(values)), int(np.count_nonzero(values[green]))
            log10_ps[name] = count_test(said_green, pairs=pairs, k=mark.params.fleet_k).log10_p
            smallest[name] = min_log10_p(pairs, k=mark.params.fleet_k)
            total, green_total = pairs, said_green
        else:
            test = weighted_test(weights, mark=mark, tally=tally, scores=green)
            pairs, log10_ps[name], smallest[name] = test.pairs, test.log10_p, test.log10_p_smallest
            total, green_total = _exact_sum(values), _exact_sum(values[green])
        tests[name] = TestClaim(
            pairs=pairs, sum=str(total), green_sum=str(green_total), log10_p=log10_text(log10_ps[name])
        )
    first = next(iter(evidence.weights.values())).within(tested).values
    sums = mark.decoy_sums(tally, np.ascontiguousarray(first[:, None]), count=decoys, seed=decoy_seed)[:, 0]
    own = int(first[green].sum())
    gamma = mark.params.fleet_k / 256
    sd = math.sqrt(gamma * (1 - gamma)) * float(np.linalg.norm(first / UNIT)) or 1.0
    correction = math.log10(len(tests)) + math.log10(tried)
    log10_p = min(0.0, min(log10_ps.values()) + correction)
    return PublicTests(
        tests=tests,
        log10_ps=log10_ps,
        log10_p=log10_p,
        verdict=verdict_of(log10_p, smallest=min(smallest.values()) + correction, log10_level=log10_level),
        effect=_effect(evidence, mark, green),
        rank=rank_p(own, decoys=sums)[0],
        decoys=decoys,
        decoy_z=(sums - gamma * float(first.sum())) / UNIT / sd,
        z=(own - gamma * float(first.sum())) / UNIT / sd,
    )


def _weigh(
    corpus: Corpus, *, params: Params, tests: Sequence[str], policy: PromptPolicy, reference: Reference | None
) -> Evidence:
    tally = tally_of(
        corpus.responses,
        window=params.window,
        special_ids=params.special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
        reference=reference,
    )
    weights = {test: (SCORE if test == COUNT else FAMILY[test]).weigh(tally, reference) for test in tests}
    return Evidence(corpus=corpus, tally=tally, weights=weights, reference=reference, params=params, policy=policy)


def _effect(evidence: Evidence, mark: OpenedLanes, green: npt.NDArray[np.bool_]) -> EffectSize | None:
    if evidence.reference is None:
        return None
    tally, tested = evidence.tally, mark.tested(evidence.tally)
    weights = CENTRED.weigh(tally, evidence.reference).within(tested)
    test = weighted_test(weights, mark=mark, tally=tally, scores=green)
    windows = np.zeros(len(tally.windows), dtype=np.bool_)
    windows[tally.pair_window[tested]] = True
    information = int(tally.information[windows].sum())
    return effect_size(test.statistic, sd=test.sd, mark=mark, information=information)


def _weighted_lane(values: npt.NDArray[np.int64], green: npt.NDArray[np.bool_]) -> WeightedLane:
    objects: Any = values.astype(object)
    return WeightedLane(
        pairs=int(np.count_nonzero(values)),
        sum=str(_exact_sum(values)),
        green_sum=str(_exact_sum(values[green])),
        square_sum=str(int(objects @ objects) if len(values) else 0),
    )


def _exact_sum(values: npt.NDArray[np.int64]) -> int:
    """Return the sum, in halves: a pair said 2^20 times weighs 2^52, and a thousand of them pass int64."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())
