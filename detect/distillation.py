"""Was this model trained on marked answers? The tests of a suspect's outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.binomial import min_log10_p
from detect.concentration import Concentration, concentration_of
from detect.corpus import Corpus
from detect.count import CountTest, count_test
from detect.decoys import DECOYS
from detect.effect import effect_of
from detect.family import DEFAULT, SCORE
from detect.mark import GreenListMark, Mark
from detect.multiplicity import holm, rank_p
from detect.reference import Reference
from detect.reference_check import ReferenceCheck, reference_sees_key
from detect.score_law import Bernoulli
from detect.tally import UNIT, PromptPolicy, Tally, tally_of
from detect.verdict import LEVEL, Verdict, verdict_of
from detect.weighted_test import EffectSize, WeightedTest, decoys_log10_p, weighted_test
from detect.weighting import Weighting, Weights
from watermark.errors import ReferenceMismatchError, UsageError, printable
from watermark.keys import ScopeKeys

__all__ = ["KeyTests", "ModelResult", "detect_model", "make_tests", "refuse_reference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """What one key says of a suspect's outputs."""

    scope: str
    """The scope's name, or the mark's."""
    fingerprint: str
    activated: bool | None
    """Whether public randomness went into the key after it was committed to; None where the scheme knows no such."""
    window: int
    gamma_256: int | None
    """Gamma of the lanes tested, in units of 1/256; None where the mark is no green list."""
    delta: float | None
    cautions: tuple[str, ...]
    """The scheme's weaknesses by name."""
    tokens: int
    """Ids in the suspect's outputs."""
    positions: int
    """Positions scored: not at the start of a segment, not special, not left out for the prompts."""
    left_out_prompt: int
    prompt_policy: str
    reference: str | None
    reference_nll: float | None
    """Mean -ln p of the suspect's ids under the reference, in nats."""
    reference_check: ReferenceCheck | None
    """How far the reference was found not to depend on this key; None where that could not be checked."""
    decoy_seed: int
    unweighted: CountTest | WeightedTest
    """The count test, or for a mark that is no green list the sum of the scores of the distinct pairs said."""
    weighted: tuple[WeightedTest, ...]
    """The weighted tests listed; none without a reference."""
    effect: EffectSize | None
    concentration: Concentration | None
    """Whether the leading test's signal stands in one lane or a few windows; None where there is too little."""
    main_test: str
    """The weighted tests listed where there is a reference, else the unweighted: fixed before any key is looked at."""
    min_p_rank: int | None
    """Rank of the smallest p of several listed tests among the decoys' smallest: a control of the combination, valid
    under any dependence of the tests (Westfall and Young, "Resampling-based multiple testing", 1993, section 2.3).
    None for a single test."""
    log10_p: float
    """The main test's; of several listed tests m times the smallest."""
    log10_p_holm: float
    """The same after Holm over the keys tested in this call."""
    scopes_tested: int
    level: float
    verdict: Verdict

    @property
    def count(self) -> CountTest:
        """The unweighted test of a green list.

        Raises:
            TypeError: the mark is no green list.
        """
        if not isinstance(self.unweighted, CountTest):
            raise TypeError(f"{self.scope} is no green list: its unweighted test is no count")
        return self.unweighted

    @property
    def leading(self) -> CountTest | WeightedTest:
        """The listed test with the smallest p, which the result's p is made of; the unweighted without a reference."""
        return min(self.weighted, key=lambda test: test.log10_p) if self.weighted else self.unweighted

    @property
    def tests(self) -> tuple[CountTest | WeightedTest, ...]:
        """All tests made, the unweighted first."""
        return (self.unweighted, *self.weighted)


def detect_model(
    corpus: Corpus,
    keys: Sequence[ScopeKeys | Mark],
    *,
    reference: Reference | None = None,
    weightings: Sequence[Weighting] = DEFAULT,
    policy: PromptPolicy = PromptPolicy.OWN,
    decoys: int = DECOYS,
    decoy_seed: int = 0,
    level: float = LEVEL,
) -> list[ModelResult]:
    """Test a suspect's outputs under one or several keys.

    The null and what a small p does not mean are in `detect.count` and `detect.weighted_test`. Several
    listed tests of one key are corrected for by Bonferroni, several keys by Holm.

    Args:
        corpus: the suspect's outputs, all of them.
        keys: scopes, or marks made by others. Each key was fixed before the suspect was trained.
        reference: what another model would have said, at each position of the corpus; without one only
            the unweighted test is made.
        weightings: the weighted tests, listed before anything is looked at. One that needs no reference is
            made without one too.
        policy: which windows are left out for standing in a prompt.
        decoys: number of decoy keys; 0 for none.
        decoy_seed: from which they are drawn.
        level: the level of the verdict, family-wise over the keys.

    Returns:
        One result a key, in the order given.

    Raises:
        ReferenceMismatchError: the reference is of other text or another tokenizer, or depends on a key tested.
        UsageError: no key, or one twice; a test listed twice.
    """
    marks = [GreenListMark(key) if isinstance(key, ScopeKeys) else key for key in keys]
    if not marks or len({mark.identity for mark in marks}) != len(marks):
        raise UsageError("expected at least one scope, and each once: give each key file once")
    if len({weighting.name for weighting in weightings}) != len(weightings):
        raise UsageError("expected each test once")
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
    outcomes = [
        _detect_one(corpus, mark, reference, weightings, policy, decoys=decoys, decoy_seed=decoy_seed, level=level)
        for mark in marks
    ]
    adjusted = holm([result.log10_p for result, _ in outcomes])
    multiplicity = math.log10(len(marks))
    return [
        replace(
            result,
            log10_p_holm=log10_p,
            scopes_tested=len(marks),
            verdict=verdict_of(log10_p, smallest=smallest + multiplicity, log10_level=math.log10(level)),
        )
        for (result, smallest), log10_p in zip(outcomes, adjusted, strict=True)
    ]


def _detect_one(
    corpus: Corpus,
    mark: Mark,
    reference: Reference | None,
    weightings: Sequence[Weighting],
    policy: PromptPolicy,
    *,
    decoys: int,
    decoy_seed: int,
    level: float,
) -> tuple[ModelResult, float]:
    """Return one key's result, uncorrected, and the smallest log10 p that its evidence could have given."""
    if reference is not None:
        reference.check_unmarked([mark.fingerprint])
    if reference is not None and mark.tokenizer is not None and reference.tokenizer != mark.tokenizer:
        raise ReferenceMismatchError(
            f"reference {reference.name}: made with another tokenizer than scope {mark.name}'s; "
            "make it again with the scope's"
        )
    tally = tally_of(
        corpus.responses,
        window=mark.window,
        special_ids=mark.special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
        reference=reference,
    )
    check = None if reference is None else reference_sees_key(tally, reference, mark)
    if reference is not None:
        refuse_reference(check, reference.name, mark)
    tests = make_tests(tally, mark, reference=reference, weightings=weightings, decoys=decoys, decoy_seed=decoy_seed)
    result = ModelResult(
        scope=mark.name,
        fingerprint=mark.fingerprint,
        activated=mark.activated,
        window=mark.window,
        gamma_256=mark.k if isinstance(mark, GreenListMark) else None,
        delta=mark.strength,
        cautions=mark.cautions,
        tokens=corpus.tokens,
        positions=tally.scored,
        left_out_prompt=tally.left_out_prompt,
        prompt_policy=policy.value,
        reference=None if reference is None else reference.name,
        reference_nll=None if reference is None else reference.negative_log_likelihood(),
        reference_check=check,
        decoy_seed=decoy_seed,
        unweighted=tests.unweighted,
        weighted=tests.weighted,
        effect=tests.effect,
        concentration=tests.concentration,
        main_test=tests.main_test,
        min_p_rank=tests.min_p_rank,
        log10_p=tests.log10_p,
        log10_p_holm=tests.log10_p,
        scopes_tested=1,
        level=level,
        verdict=Verdict.NO_SIGN,
    )
    return result, tests.log10_p_smallest


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTests:
    """The tests of one tally under one key; the fields are those of `ModelResult`, uncorrected for other keys."""

    unweighted: CountTest | WeightedTest
    weighted: tuple[WeightedTest, ...]
    effect: EffectSize | None
    concentration: Concentration | None
    min_p_rank: int | None
    log10_p: float
    log10_p_smallest: float
    """The smallest that this evidence could have given."""

    @property
    def main_test(self) -> str:
        """See `ModelResult`."""
        return " and ".join(test.name for test in self.weighted) if self.weighted else self.unweighted.name

    @property
    def leading(self) -> CountTest | WeightedTest:
        """See `ModelResult`."""
        return min(self.weighted, key=lambda test: test.log10_p) if self.weighted else self.unweighted


def make_tests(
    tally: Tally,
    mark: Mark,
    *,
    reference: Reference | None = None,
    weightings: Sequence[Weighting] = DEFAULT,
    decoys: int = DECOYS,
    decoy_seed: int = 0,
) -> KeyTests:
    """Make the tests of a tally under one key.

    Args:
        tally: of all of the outputs.
        mark: the key.
        reference: that the tally was made with, for weightings that look at it position by position.
        weightings: those that want a reference are made where the tally has one.
        decoys: number of decoy keys; 0 for none.
        decoy_seed: from which they are drawn.
    """
    # All weights are made before the key is looked at.
    tested = mark.tested(tally)
    plain = SCORE.weigh(tally).within(tested)
    weights = [
        weighting.weigh(tally, reference).within(tested)
        for weighting in weightings
        if tally.referenced or not weighting.needs_reference
    ]
    scores = mark.scores(tally)
    sums: npt.NDArray[Any] | None = None
    if decoys and plain.values.any():
        columns = np.column_stack([(plain.values != 0).astype(np.int64), *(each.values for each in weights)])
        sums = mark.decoy_sums(tally, np.ascontiguousarray(columns), count=decoys, seed=decoy_seed)
    unweighted, smallest = _unweighted(plain, mark, tally, scores, None if sums is None else sums[:, 0])
    weighted = tuple(
        weighted_test(each, mark=mark, tally=tally, scores=scores, decoy_sums=None if sums is None else sums[:, number])
        for number, each in enumerate(weights, start=1)
    )
    leading = plain
    if weighted:
        leading = weights[min(range(len(weighted)), key=lambda number: weighted[number].log10_p)]
    log10_p = unweighted.log10_p
    min_p_rank: int | None = None
    if weighted:
        listed = math.log10(len(weighted))
        if len(weighted) > 1 and sums is not None and mark.exact:
            decoy_ps = [
                decoys_log10_p(each, test, mark=mark, tally=tally) for each, test in zip(weights, weighted, strict=True)
            ]
            # The smallest p ranks first.
            min_p_rank, _ = rank_p(-min(test.log10_p for test in weighted), decoys=-np.min(decoy_ps, axis=0))
        log10_p = min(0.0, min(test.log10_p for test in weighted) + listed)
        smallest = min(test.log10_p_smallest for test in weighted) + listed
    return KeyTests(
        unweighted=unweighted,
        weighted=weighted,
        effect=effect_of(tally, mark, tested=tested, scores=scores),
        concentration=concentration_of(leading, mark=mark, tally=tally, scores=scores),
        min_p_rank=min_p_rank,
        log10_p=log10_p,
        log10_p_smallest=smallest,
    )


def refuse_reference(check: ReferenceCheck | None, name: str, mark: Mark) -> None:
    """Refuse a reference that depends on the key.

    Raises:
        ReferenceMismatchError: it was found to.
    """
    if check is not None and check.sees_key:
        # No result, not the count's: to fall back on another test by a look at the key would cost its validity.
        raise ReferenceMismatchError(
            f"reference {printable(name)}: depends on the key of {mark.name} (its own mass on what the key "
            f"favours: z = {check.z:.1f}, p <= 1e{math.ceil(check.log10_p)}), so no test made with it is valid. Is it "
            "the marked teacher, its student, or text of theirs? Take the suspect's public base, a clean twin or the "
            "unmarked teacher"
        )


def _unweighted(
    plain: Weights, mark: Mark, tally: Tally, scores: npt.NDArray[Any], decoy_sums: npt.NDArray[Any] | None
) -> tuple[CountTest | WeightedTest, float]:
    """Return the test of the distinct pairs said, each with weight 1, and the smallest log10 p that it could give."""
    if not (isinstance(mark.law, Bernoulli) and mark.exact and mark.units(tally) is None):
        scaled = None if decoy_sums is None else decoy_sums * float(UNIT)
        test = weighted_test(plain, mark=mark, tally=tally, scores=scores, decoy_sums=scaled)
        return test, test.log10_p_smallest
    said = plain.values != 0
    pairs, green, k = int(said.sum()), int((scores.astype(np.bool_) & said).sum()), round(mark.law.gamma * 256)
    count = count_test(
        green,
        pairs=pairs,
        k=k,
        decoy_rank=None if decoy_sums is None else rank_p(green, decoys=decoy_sums)[0],
        decoys=0 if decoy_sums is None else len(decoy_sums),
    )
    return count, min_log10_p(pairs, k=k)
