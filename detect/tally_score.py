"""Scoring a tally with keys: the pooled test of whatever amount of text it is of (DESIGN 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from detect.count import CountTest
from detect.decoys import DECOYS
from detect.family import SCORE
from detect.mark import GreenListMark, Mark
from detect.marked_text import pooled_test, units_of
from detect.multiplicity import holm, rank_p
from detect.tally_file import About, TallyFile
from detect.verdict import LEVEL, Verdict, verdict_of
from detect.weighted_test import WeightedTest
from watermark.errors import UsageError, printable

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
    log10_p_holm: float
    """After Holm over the keys of this call."""
    scopes_tested: int
    level: float
    verdict: Verdict
    decoy_seed: int


def score_tally(
    tally: TallyFile, marks: Sequence[Mark], *, decoys: int = DECOYS, decoy_seed: int = 0, level: float = LEVEL
) -> list[TallyScore]:
    """Test whether the texts of a tally depend on keys: the same test as `detect_text`'s of all of them pooled.

    Null of each key: the texts are independent of it, given the prompts. Which windows are kept depends on the text and
    on a hash without a key, never on the key; so the green bits of the distinct pairs kept are independent
    Bernoulli(gamma) bits, and their count is binomial as that of all pairs is. Its z is the z of all pairs times the
    square root of the share kept. Several keys are corrected for by Holm.

    Args:
        tally: what `detect.tally_file.read_tally` read.
        marks: keys. Each was fixed before the texts.
        decoys: decoy keys a green list; 0 for none.
        decoy_seed: from which they are drawn.
        level: of the verdict, family-wise over the keys.

    Raises:
        UsageError: no key, one twice, or one for another window, other special ids or another tokenizer.
    """
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
    if not marks or len({mark.identity for mark in marks}) != len(marks):
        raise UsageError("expected at least one scope, and each once: give each key file once")
    for mark in marks:
        _check(tally.about, mark)
    rows = tally.rows.to_tally(left_out_prompt=tally.about.left_out_prompt)
    tests = []
    for mark in marks:
        tested = mark.tested(rows) & (rows.said > 0)
        test, smallest = pooled_test(mark, tested, units_of(mark, rows), mark.scores(rows), rows)
        if isinstance(test, CountTest) and decoys and test.pairs:
            weights = (SCORE.weigh(rows).within(tested).values > 0).astype(np.int64)[:, None]
            sums = mark.decoy_sums(rows, np.ascontiguousarray(weights), count=decoys, seed=decoy_seed)[:, 0]
            test = replace(test, decoy_rank=rank_p(test.green, decoys=sums)[0], decoys=decoys)
        tests.append((test, smallest))
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
            z_of_all=test.z * 2.0 ** (tally.rows.level / 2),
            pooled=test,
            log10_p_holm=log10_p,
            scopes_tested=len(marks),
            level=level,
            verdict=verdict_of(log10_p, smallest=smallest + listed, log10_level=math.log10(level)),
            decoy_seed=decoy_seed,
        )
        for mark, (test, smallest), log10_p in zip(marks, tests, adjusted, strict=True)
    ]


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
