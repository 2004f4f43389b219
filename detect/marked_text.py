"""Is this text marked? The test of each document, and of all of them pooled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.binomial import log10_tail, min_log10_p
from detect.corpus import Corpus
from detect.count import CountTest, count_test
from detect.family import SCORE
from detect.mark import GreenListMark, Mark
from detect.multiplicity import holm
from detect.tally import PromptPolicy, Tally, tally_of
from detect.verdict import LEVEL, Verdict, verdict_of
from detect.weighted_scores import WeightedScores
from detect.weighted_test import WeightedTest, weighted_test
from watermark import kernels
from watermark.errors import UsageError
from watermark.keys import ScopeKeys

__all__ = ["DocumentResult", "TextResult", "detect_text", "document_sums", "document_tail", "pooled_test", "units_of"]

#: Decoy keys behind the pooled p of a mark whose hash is too weak for an exact one.
_DECOYS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentResult:
    """One document's test."""

    source: str
    pairs: int
    score: int | float
    """Sum of the scores of its distinct pairs: for a green list how many are green."""
    log10_p: float
    """Of this document alone."""
    log10_p_holm: float
    """After Holm over the documents of this call."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TextResult:
    """What one key says of some texts."""

    scope: str
    fingerprint: str
    window: int
    gamma_256: int | None
    """Gamma in units of 1/256; None where the mark is no green list."""
    mean_score: float
    """A pair's mean score where no key marked the text: gamma for a green list."""
    cautions: tuple[str, ...]
    documents: list[DocumentResult]
    """Empty where the mark's hash is too weak for a p of each document."""
    pooled: CountTest | WeightedTest
    """Pairs deduplicated over all documents: pooling per-document counts would count repeats twice."""
    pooled_verdict: Verdict
    level: float
    tokens: int
    left_out_prompt: int
    prompt_policy: str

    @property
    def count(self) -> CountTest:
        """The pooled test of a green list.

        Raises:
            TypeError: the mark is no green list.
        """
        if not isinstance(self.pooled, CountTest):
            raise TypeError(f"{self.scope} is no green list: its pooled test is no count")
        return self.pooled


def detect_text(
    corpus: Corpus, key: ScopeKeys | Mark, *, policy: PromptPolicy = PromptPolicy.OWN, level: float = LEVEL
) -> TextResult:
    """Test whether texts carry a key's mark, each by itself and all pooled.

    Null of each document: it is independent of the key; the scores of its distinct pairs are then
    independent draws of the mark's law, and the tail of their sum is known: binomial for a green list,
    gamma for Gumbel-max. Documents share the key and may share pairs, so their p-values depend on one
    another; Holm's correction holds under any dependence.

    Args:
        corpus: the texts.
        key: a scope, of which fleet lanes only are scored, or a mark made by others.
        policy: which windows are left out for standing in a prompt: a text that quotes a marked prompt is
            not marked for that.
        level: family-wise over the documents, and that of the pooled test.

    Raises:
        UsageError: *level* is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
    mark = GreenListMark(key) if isinstance(key, ScopeKeys) else key
    tally = tally_of(
        corpus.responses,
        window=mark.window,
        special_ids=mark.special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
    )
    scores = mark.scores(tally)
    tested = mark.tested(tally)
    unit_of = units_of(mark, tally)
    sizes, sums = document_sums(corpus.responses, corpus.document, tally, mark, documents=len(corpus.sources))
    log10_level = math.log10(level)
    documents = []
    if mark.exact:
        outcomes = [document_tail(mark, int(n), float(total)) for n, total in zip(sizes, sums, strict=True)]
        multiplicity = math.log10(max(1, len(outcomes)))
        adjusted = holm([log10_p for log10_p, _ in outcomes])
        documents = [
            DocumentResult(
                source=source,
                pairs=int(n),
                score=int(total) if isinstance(mark, GreenListMark) else float(total),
                log10_p=log10_p,
                log10_p_holm=log10_p_holm,
                verdict=verdict_of(log10_p_holm, smallest=smallest + multiplicity, log10_level=log10_level),
            )
            for source, n, total, (log10_p, smallest), log10_p_holm in zip(
                corpus.sources, sizes, sums, outcomes, adjusted, strict=True
            )
        ]
    pooled, smallest = pooled_test(mark, tested, unit_of, scores, tally)
    return TextResult(
        scope=mark.name,
        fingerprint=mark.fingerprint,
        window=mark.window,
        gamma_256=mark.k if isinstance(mark, GreenListMark) else None,
        mean_score=mark.law.mean,
        cautions=mark.cautions,
        documents=documents,
        pooled=pooled,
        pooled_verdict=verdict_of(pooled.log10_p, smallest=smallest, log10_level=log10_level),
        level=level,
        tokens=corpus.tokens,
        left_out_prompt=tally.left_out_prompt,
        prompt_policy=policy.value,
    )


def document_sums(
    responses: Sequence[npt.NDArray[np.uint32]],
    document: npt.NDArray[np.int64],
    tally: Tally,
    mark: Mark,
    *,
    documents: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return for each document how many distinct pairs it has, and the sum of their scores.

    Args:
        responses: the texts that *tally* is of.
        document: the number of each text's document, not decreasing.
        tally: of all of them.
        mark: whose units are counted, each once in a document.
        documents: how many there are.
    """
    owners = np.repeat(document, [len(ids) for ids in responses])
    scores = mark.scores(tally).astype(np.float64)
    return _document_sums(tally.position_pair, owners, mark.tested(tally), units_of(mark, tally), scores, documents)


def document_tail(mark: Mark, n: int, total: float) -> tuple[float, float]:
    """Return log10 p of a sum of n scores, and the smallest that n scores could give."""
    if isinstance(mark, GreenListMark):
        k = mark.k
        return log10_tail(round(total), pairs=n, k=k), min_log10_p(n, k=k)
    if not n:
        return 0.0, 0.0
    law = WeightedScores(np.ones(n), mark.law)
    return law.log10_tail(total - n * mark.law.mean), -math.inf


def pooled_test(
    mark: Mark, tested: npt.NDArray[np.bool_], unit_of: npt.NDArray[np.int64], scores: npt.NDArray[Any], tally: Tally
) -> tuple[CountTest | WeightedTest, float]:
    """Return the test of all units once, and the smallest log10 p that it could give."""
    first = np.zeros(len(unit_of), dtype=np.bool_)
    first[np.unique(np.where(tested, unit_of, -1), return_index=True)[1]] = True
    first &= tested
    if isinstance(mark, GreenListMark):
        k, pairs = mark.k, int(first.sum())
        return count_test(int(scores[first].sum()), pairs=pairs, k=k), min_log10_p(pairs, k=k)
    weights = SCORE.weigh(tally).within(first)
    sums = None
    if not mark.exact and first.any():
        sums = mark.decoy_sums(tally, np.ascontiguousarray(weights.values[:, None]), count=_DECOYS, seed=0)[:, 0]
    test = weighted_test(weights, mark=mark, tally=tally, scores=scores, decoy_sums=sums)
    return test, test.log10_p_smallest


def units_of(mark: Mark, tally: Tally) -> npt.NDArray[np.int64]:
    """Return the number of each pair's unit, (n,): one random quantity, scored once in each document."""
    units = mark.units(tally)
    if units is None:
        return np.arange(len(tally.tokens), dtype=np.int64)
    return np.unique(units, return_inverse=True)[1].astype(np.int64)


@kernels.kernel
def _document_sums(
    position_pair: npt.NDArray[np.int32],
    owners: npt.NDArray[np.int64],
    tested: npt.NDArray[np.bool_],
    unit_of: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    documents: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return each document's distinct units and the sum of their scores. Owners don't decrease."""
    sizes = np.zeros(documents, np.int64)
    sums = np.zeros(documents, np.float64)
    last = np.full(tested.shape[0], -1, np.int64)
    for i in range(position_pair.shape[0]):
        pair = position_pair[i]
        if pair >= 0 and tested[pair] and last[unit_of[pair]] != owners[i]:
            last[unit_of[pair]] = owners[i]
            sizes[owners[i]] += 1
            sums[owners[i]] += scores[pair]
    return sizes, sums
