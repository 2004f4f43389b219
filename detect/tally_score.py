"""Scoring a tally with keys: the tests of `detect_model` of whatever amount of text it is of (DESIGN 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from detect.concentration import Concentration
from detect.count import CountTest
from detect.decoys import DECOYS
from detect.distillation import KeyTests, make_tests, refuse_reference
from detect.mark import GreenListMark, Mark
from detect.multiplicity import holm
from detect.reference_check import ReferenceCheck, check_mass
from detect.tally import Tally
from detect.tally_file import About, TallyFile
from detect.verdict import LEVEL, Verdict, verdict_of
from detect.weighted_test import EffectSize, WeightedTest
from watermark.errors import ReferenceMismatchError, UsageError, printable

__all__ = ["TallyScore", "score_tally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyScore:
    """What one key says of a tally."""

    scope: str
    fingerprint: str
    activated: bool | None
    window: int
    gamma_256: int | None
    """Gamma in units of 1/256; None where the mark is no green list."""
    mean_score: float
    """A pair's mean score where no key marked the text: gamma for a green list."""
    cautions: tuple[str, ...]
    share: float
    """Share of the windows that was kept: 1 where nothing was left out."""
    z_of_all: float
    """About what z would be, had all windows been kept: it grows as the square root of the share."""
    pooled: CountTest | WeightedTest
    """The test of the distinct pairs said."""
    weighted: tuple[WeightedTest, ...]
    """The weighted tests of `detect.distillation`; none where the tally was made without a reference."""
    main_test: str
    """The weighted tests where there are any, else the pooled one."""
    reference: str | None
    reference_check: ReferenceCheck | None
    effect: EffectSize | None
    concentration: Concentration | None
    min_p_rank: int | None
    log10_p: float
    """The main test's; of several weighted tests m times the smallest."""
    log10_p_holm: float
    """After Holm over the keys of this call."""
    scopes_tested: int
    level: float
    verdict: Verdict
    decoy_seed: int


def score_tally(
    tally: TallyFile, marks: Sequence[Mark], *, decoys: int = DECOYS, decoy_seed: int = 0, level: float = LEVEL
) -> list[TallyScore]:
    """Test whether the texts of a tally depend on keys: the count of the distinct pairs, as `detect_text` pools them.

    A tally that was made with a reference has the weighted tests of `detect_model` besides, and they are the main ones.

    Null of each key: the texts are independent of it, given the prompts. Which windows are kept depends on the text and
    on a hash without a key, never on the key; so the green bits of the distinct pairs kept are independent
    Bernoulli(gamma) bits, and their count is binomial as that of all pairs is; weights made of the counts and
    the reference's masses of these windows are fixed without a key too. z is that of all pairs times the square root of
    the share kept. Several keys are corrected for by Holm.

    Args:
        tally: what `detect.tally_file.read_tally` read.
        marks: keys. Each was fixed before the texts.
        decoys: decoy keys a green list; 0 for none.
        decoy_seed: from which they are drawn.
        level: of the verdict, family-wise over the keys.

    Raises:
        ReferenceMismatchError: the tally's reference depends on a key.
        UsageError: no key, one twice, or one for another window, other special ids or another tokenizer.
    """
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
    if not marks or len({mark.identity for mark in marks}) != len(marks):
        raise UsageError("expected at least one scope, and each once: give each key file once")
    for mark in marks:
        _check(tally.about, mark)
    rows = tally.rows.to_tally(left_out_prompt=tally.about.left_out_prompt)
    tests = [_tests(tally, rows, mark, decoys=decoys, decoy_seed=decoy_seed) for mark in marks]
    adjusted = holm([test.log10_p for test, _ in tests])
    listed = math.log10(len(marks))
    return [
        TallyScore(
            scope=mark.name,
            fingerprint=mark.fingerprint,
            activated=mark.activated,
            window=mark.window,
            gamma_256=mark.k if isinstance(mark, GreenListMark) else None,
            mean_score=mark.law.mean,
            cautions=mark.cautions,
            share=math.ldexp(1.0, -tally.rows.level),
            z_of_all=test.leading.z * 2.0 ** (tally.rows.level / 2),
            pooled=test.unweighted,
            weighted=test.weighted,
            main_test=test.main_test,
            reference=tally.about.reference,
            reference_check=check,
            effect=test.effect,
            concentration=test.concentration,
            min_p_rank=test.min_p_rank,
            log10_p=test.log10_p,
            log10_p_holm=log10_p,
            scopes_tested=len(marks),
            level=level,
            verdict=verdict_of(log10_p, smallest=test.log10_p_smallest + listed, log10_level=math.log10(level)),
            decoy_seed=decoy_seed,
        )
        for mark, (test, check), log10_p in zip(marks, tests, adjusted, strict=True)
    ]


def _tests(
    tally: TallyFile, rows: Tally, mark: Mark, *, decoys: int, decoy_seed: int
) -> tuple[KeyTests, ReferenceCheck | None]:
    """Make one key's tests, and what the check of the reference found."""
    about = tally.about
    check = None
    if about.reference is not None:
        if mark.fingerprint in about.reference_fingerprints:
            raise ReferenceMismatchError(
                f"reference {printable(about.reference)}: its records say that they were marked under the parameters "
                "tested. A reference must know nothing of the key: take outputs of a model that never saw the mark"
            )
        check = check_mass(rows, tally.rows.expected[:, 1], mark)
        refuse_reference(check, about.reference, mark)
    return make_tests(rows, mark, decoys=decoys, decoy_seed=decoy_seed), check


def _check(about: About, mark: Mark) -> None:
    """Make sure that the tally's pairs are the mark's."""
    for what, built, wanted in (
        ("a window of", about.window, mark.window),
        ("the special ids", list(about.special_ids), sorted(mark.special_ids)),
        ("the tokenizer of digest", about.tokenizer, mark.tokenizer or about.tokenizer),
    ):
        if built != wanted:
            raise UsageError(
                f"the tally was built with {what} {printable(built, 40)}, and {mark.name} has {printable(wanted, 40)}: "
                "build it anew with the options of the scope, which taggant keys show --json prints"
            )
