"""Was this model trained on marked answers? The count test and the centred test of a suspect's outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from detect.binomial import min_log10_p
from detect.centred import CentredTest, centred_test, centred_weights
from detect.corpus import Corpus
from detect.count import CountTest, count_test
from detect.decoys import DECOYS, decoy_words
from detect.multiplicity import holm, rank_p
from detect.reference import Reference
from detect.tally import PromptPolicy, tally_of
from detect.verdict import LEVEL, Verdict, verdict_of
from detect.weighted_sums import WeightedSum
from watermark import kernels
from watermark.errors import ReferenceMismatchError, UsageError
from watermark.keys import ScopeKeys

__all__ = ["ModelResult", "detect_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """What one scope's key says of a suspect's outputs."""

    scope: str
    fingerprint: str
    activated: bool
    """Whether public randomness went into the key after it was committed to."""
    window: int
    gamma_256: int
    """Gamma of the lanes tested, in units of 1/256."""
    delta: float
    tokens: int
    """Ids in the suspect's outputs."""
    positions: int
    """Positions scored: not at the start of a segment, not special, not left out for the prompts."""
    left_out_prompt: int
    prompt_policy: str
    reference: str | None
    reference_nll: float | None
    """Mean -ln p of the suspect's ids under the reference, in nats."""
    decoy_seed: int
    count: CountTest
    centred: CentredTest | None
    main_test: str
    """"centred" where there is a reference, else "count": fixed before any key is looked at."""
    log10_p: float
    """The main test's."""
    log10_p_holm: float
    """The same after Holm over the scopes tested in this call."""
    scopes_tested: int
    level: float
    verdict: Verdict


def detect_model(
    corpus: Corpus,
    scopes: Sequence[ScopeKeys],
    *,
    reference: Reference | None = None,
    policy: PromptPolicy = PromptPolicy.OWN,
    decoys: int = DECOYS,
    decoy_seed: int = 0,
    level: float = LEVEL,
) -> list[ModelResult]:
    """Test a suspect's outputs under one or several scopes' keys.

    The null and what a small p does not mean are in `detect.count` and `detect.centred`. Several scopes
    are corrected for by Holm.

    Args:
        corpus: the suspect's outputs, all of them.
        scopes: the keys. Each was fixed before the suspect was trained.
        reference: what another model would have said, at each position of the corpus; without one only
            the count test is made.
        policy: which windows are left out for standing in a prompt.
        decoys: number of decoy keys; 0 for none.
        decoy_seed: from which they are drawn.
        level: the level of the verdict, family-wise over the scopes.

    Returns:
        One result a scope, in the order given.

    Raises:
        ReferenceMismatchError: the reference is of other text or another tokenizer.
        UsageError: no scope, or one twice.
    """
    names = [(scope.name, scope.fingerprint, tuple(scope.commitments()[:1])) for scope in scopes]
    if not scopes or len(set(names)) != len(names):
        raise UsageError("expected at least one scope, and each once: give each key file once")
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
    outcomes = [
        _detect_one(corpus, scope, reference, policy, decoys=decoys, decoy_seed=decoy_seed, level=level)
        for scope in scopes
    ]
    adjusted = holm([result.log10_p for result, _ in outcomes])
    multiplicity = math.log10(len(scopes))
    return [
        replace(
            result,
            log10_p_holm=log10_p,
            scopes_tested=len(scopes),
            verdict=verdict_of(log10_p, smallest=smallest + multiplicity, log10_level=math.log10(level)),
        )
        for (result, smallest), log10_p in zip(outcomes, adjusted, strict=True)
    ]


def _detect_one(
    corpus: Corpus,
    scope: ScopeKeys,
    reference: Reference | None,
    policy: PromptPolicy,
    *,
    decoys: int,
    decoy_seed: int,
    level: float,
) -> tuple[ModelResult, float]:
    """Return one scope's result, uncorrected, and the smallest log10 p that its evidence could have given."""
    params = scope.params
    if reference is not None and reference.tokenizer != params.tokenizer:
        raise ReferenceMismatchError(
            f"reference {reference.name}: made with another tokenizer than scope {scope.name}'s; "
            "make it again with the scope's"
        )
    tally = tally_of(
        corpus.responses,
        params=params,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
        reference=reference,
    )
    bounds = params.bounds()
    in_fleet = tally.in_lanes(range(params.fleet_lanes))
    said = in_fleet & (tally.said > 0)
    weights = centred_weights(tally, params)
    seeds = kernels.seeds(scope.lane_words(), tally.windows, tally.lanes)
    green = kernels.green(seeds, bounds[tally.lanes], tally.pair_window, tally.tokens)
    pairs, green_said = int(said.sum()), int((green & said).sum())
    sums = None
    if decoys and pairs:
        sums = kernels.green_sums(
            np.asarray(decoy_words(scope, count=decoys, seed=decoy_seed)),
            tally.windows,
            tally.lanes,
            bounds,
            tally.pair_window,
            tally.tokens,
            np.ascontiguousarray(np.column_stack([said.astype(np.int64), weights])),
        )
    count = count_test(
        green_said,
        pairs=pairs,
        k=params.fleet_k,
        decoy_rank=None if sums is None else rank_p(green_said, decoys=sums[:, 0])[0],
        decoys=0 if sums is None else len(sums),
    )
    smallest = min_log10_p(pairs, k=params.fleet_k)
    centred = None
    if reference is not None:
        of_fleet = tally.lanes < params.fleet_lanes
        centred = centred_test(
            weights,
            green=green,
            params=params,
            delta=scope.delta,
            information=int(tally.information[of_fleet].sum()),
            decoy_sums=None if sums is None else sums[:, 1],
        )
        law = WeightedSum(weights, gamma=params.fleet_k / 256)
        smallest = law.log10_chernoff(law.max)
    log10_p = count.log10_p if centred is None else centred.log10_p
    result = ModelResult(
        scope=scope.name,
        fingerprint=scope.fingerprint,
        activated=scope.activated,
        window=params.window,
        gamma_256=params.fleet_k,
        delta=scope.delta,
        tokens=corpus.tokens,
        positions=tally.scored,
        left_out_prompt=tally.left_out_prompt,
        prompt_policy=policy.value,
        reference=None if reference is None else reference.name,
        reference_nll=None if reference is None else reference.negative_log_likelihood(),
        decoy_seed=decoy_seed,
        count=count,
        centred=centred,
        main_test="count" if centred is None else "centred",
        log10_p=log10_p,
        log10_p_holm=log10_p,
        scopes_tested=1,
        level=level,
        verdict=Verdict.NO_SIGN,
    )
    return result, smallest
