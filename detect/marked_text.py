"""Is this text marked? The count test of each document, and of all of them pooled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detect.binomial import log10_tail, min_log10_p
from detect.corpus import Corpus
from detect.count import CountTest, count_test
from detect.multiplicity import holm
from detect.tally import PromptPolicy, tally_of
from detect.verdict import LEVEL, Verdict, verdict_of
from watermark import kernels
from watermark.errors import UsageError
from watermark.keys import ScopeKeys

__all__ = ["DocumentResult", "TextResult", "detect_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentResult:
    """One document's count test."""

    source: str
    pairs: int
    green: int
    log10_p: float
    """Of this document alone."""
    log10_p_holm: float
    """After Holm over the documents of this call."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TextResult:
    """What one scope's key says of some texts."""

    scope: str
    fingerprint: str
    window: int
    gamma_256: int
    documents: list[DocumentResult]
    pooled: CountTest
    """Pairs deduplicated over all documents: pooling per-document counts would count repeats twice."""
    pooled_verdict: Verdict
    level: float
    tokens: int
    left_out_prompt: int
    prompt_policy: str


def detect_text(
    corpus: Corpus, scope: ScopeKeys, *, policy: PromptPolicy = PromptPolicy.OWN, level: float = LEVEL
) -> TextResult:
    """Test whether texts carry the scope's mark, each by itself and all pooled.

    Null of each document: it is independent of the key; its distinct pairs are then independent
    Bernoulli(gamma) bits, and the tail is exactly binomial. Documents share the key and may share pairs,
    so their p-values depend on one another; Holm's correction holds under any dependence.

    Args:
        corpus: the texts.
        scope: the key. Fleet lanes only are scored.
        policy: which windows are left out for standing in a prompt: a text that quotes a marked prompt is
            not marked for that.
        level: family-wise over the documents, and that of the pooled test.

    Raises:
        UsageError: *level* is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
    params = scope.params
    tally = tally_of(corpus.responses, params=params, prompts=corpus.prompts, echoes=corpus.echoes, policy=policy)
    seeds = kernels.seeds(scope.lane_words(), tally.windows, tally.lanes)
    green = kernels.green(seeds, params.bounds()[tally.lanes], tally.pair_window, tally.tokens)
    in_fleet = tally.in_lanes(range(params.fleet_lanes))
    owners = np.repeat(corpus.document, [len(ids) for ids in corpus.responses])
    pairs, greens = _document_counts(tally.position_pair, owners, in_fleet, green, len(corpus.sources))
    log10_ps = [log10_tail(int(g), pairs=int(n), k=params.fleet_k) for n, g in zip(pairs, greens, strict=True)]
    multiplicity, log10_level = math.log10(max(1, len(log10_ps))), math.log10(level)
    documents = [
        DocumentResult(
            source=source,
            pairs=int(n),
            green=int(g),
            log10_p=log10_p,
            log10_p_holm=adjusted,
            verdict=verdict_of(
                adjusted, smallest=min_log10_p(int(n), k=params.fleet_k) + multiplicity, log10_level=log10_level
            ),
        )
        for source, n, g, log10_p, adjusted in zip(corpus.sources, pairs, greens, log10_ps, holm(log10_ps), strict=True)
    ]
    pooled = count_test(int((green & in_fleet).sum()), pairs=int(in_fleet.sum()), k=params.fleet_k)
    return TextResult(
        scope=scope.name,
        fingerprint=scope.fingerprint,
        window=params.window,
        gamma_256=params.fleet_k,
        documents=documents,
        pooled=pooled,
        pooled_verdict=verdict_of(
            pooled.log10_p, smallest=min_log10_p(pooled.pairs, k=params.fleet_k), log10_level=log10_level
        ),
        level=level,
        tokens=corpus.tokens,
        left_out_prompt=tally.left_out_prompt,
        prompt_policy=policy.value,
    )


@kernels.kernel
def _document_counts(
    position_pair: npt.NDArray[np.int32],
    owners: npt.NDArray[np.int64],
    in_fleet: npt.NDArray[np.bool_],
    green: npt.NDArray[np.bool_],
    documents: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each document's distinct pairs and how many are green. Owners don't decrease."""
    pairs = np.zeros(documents, np.int64)
    greens = np.zeros(documents, np.int64)
    last = np.full(in_fleet.shape[0], -1, np.int64)
    for i in range(position_pair.shape[0]):
        pair = position_pair[i]
        if pair >= 0 and in_fleet[pair] and last[pair] != owners[i]:
            last[pair] = owners[i]
            pairs[owners[i]] += 1
            greens[owners[i]] += green[pair]
    return pairs, greens
