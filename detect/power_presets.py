"""What a plan assumes where nobody has measured: texts, references, and what students carry.

Every figure says where it is from. All were measured on small models; replace them by a pilot's
(`detect.pilot`), and by `taggant study`'s where there is one. Nothing here enters a p-value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from detect.pilot import PilotFigures
from watermark.errors import UsageError

__all__ = [
    "ABSORPTIONS",
    "COUNT_DECLINE",
    "COUNT_KNEE",
    "DOMAINS",
    "EPROCESS_FACTOR",
    "OPEN_MISMATCH",
    "QUASI_GAINS",
    "REFERENCES",
    "Absorption",
    "absorption_of",
    "preset_figures",
]

#: Mean of 1 - sum p^2 under SmolLM2-135M-Instruct: prose .724 and .685 on the shipped student's and clean twin's
#: answers; code .61 on five standard-library modules. A larger model is surer of code: METHOD 0.4 reckons with .41.
DOMAINS: Final[Mapping[str, float]] = MappingProxyType({"prose": 0.70, "code": 0.61})

#: Kinds of reference; the figures are in `_WIDTHS`.
REFERENCES: Final = ("base", "poor")

#: Mean |p_suspect - p_ref|^2 at a chosen context, for the test from logits. An assumption: no transformer was measured.
OPEN_MISMATCH: Final = 0.05

#: Tokens that the e-process needs for one that the fixed-size test needs: the bound that it is held to, and keeps on
#: students of a known tilt (docs/study.md).
EPROCESS_FACTOR: Final = 1.5

#: z of the quasi-score over that of centring, by window: docs/study.md has 1.00 and 1.14 (transformers from scratch,
#: doses of 10 and 100%) and 1.17 (the shipped student) at window 1; 1.5 and 1.57 at window 2. It comes of rare pairs
#: that are not learned, so that no theory of one tilt has it. Where nobody measured, 1 is cautious.
QUASI_GAINS: Final[Mapping[int, float]] = MappingProxyType({1: 1.0, 2: 1.5})

#: The count test lives on pairs said once, and their windows are ever rarer, so that the student learned less of them.
#: On the shipped student (window 1) the shift of such pairs is the whole tilt's up to this many positions ...
COUNT_KNEE: Final = 600.0
#: ... and beyond falls as their number to minus this power (share .68 at 2,013 positions, .51 at 5,050, .42 at 10,289;
#: one student, give or take a third).
COUNT_DECLINE: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorption:
    """How much of the teacher's tilt a kind of student carries when all its training text is marked."""

    student: str
    window: int
    share: float
    """Tau at a dose of 1."""
    source: str


#: One row a kind of student and window: the one place to refine.
ABSORPTIONS: Final = (
    Absorption(
        student="lora",
        window=1,
        share=0.15,
        source="the shipped student: LoRA of SmolLM2-135M, 3 epochs on 56,000 marked tokens, tau 0.153",
    ),
    Absorption(
        student="lora",
        window=2,
        share=0.02,
        source="LoRA of SmolLM2-135M, 3 epochs on 51,000 marked tokens: z = 3.1 at 49,000 tokens, so tau about 0.02 "
        "give or take a third",
    ),
    Absorption(
        student="full",
        window=2,
        share=0.45,
        source="Llama-1-7B fine-tuned in full by Sander et al. (arXiv 2402.14904): their shipped log has .2588 green "
        "of 248,200 pairs at a dose of 5%, gamma 1/4, delta 3, in windows that the teacher favoured (hopeful)",
    ),
    Absorption(
        student="full",
        window=1,
        share=0.42,
        source="transformers of 2.6 M parameters fine-tuned on 409,000 ids (docs/study.md): .42 at a dose of 100%, "
        ".037 at 10%, .007 at 2%",
    ),
    Absorption(
        student="small",
        window=1,
        share=0.42,
        source="transformers of 2.6 M parameters fine-tuned on 409,000 ids (docs/study.md)",
    ),
    Absorption(
        student="small",
        window=2,
        share=0.043,
        source="the same at window 2: .043 at a dose of 100%, .005 at 10% (docs/study.md)",
    ),
    Absorption(student="ngram", window=1, share=0.7, source="trigram students that memorise: 0.5 to 0.9"),
    Absorption(student="ngram", window=2, share=0.7, source="trigram students that memorise: 0.5 to 0.9"),
)


def absorption_of(student: str, window: int) -> Absorption:
    """Return the row of a kind of student.

    Raises:
        UsageError: nobody has measured it.
    """
    for row in ABSORPTIONS:
        if (row.student, row.window) == (student, window):
            return row
    known = ", ".join(f"{row.student} at window {row.window}" for row in ABSORPTIONS)
    raise UsageError(
        f"absorption: not measured for student {student!r} at window {window} (known: {known}). Give --tau, the share "
        "of the teacher's tilt that the student carries, or --absorption, that share at a dose of 1"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Width:
    """What goes with a window's width."""

    energy: float
    """A unit of gini: the shipped student's answers read by its base."""
    mismatch: tuple[tuple[float, float], tuple[float, float]]
    """With its standard error, by `REFERENCES`. "base": the clean twin's answers read by its base after their
    prompts. "poor": manuals that a 135 M model reads without context."""
    tilt_mismatch: float
    """What the shipped student's answers have beyond the clean twin's, over (0.153 * 3)^2."""
    distinct: Mapping[str, tuple[float, float]]
    """Scale and exponent by domain: answers to 70 prompts; five modules of the standard library."""
    scored: float
    chernoff: float


_WIDTHS: Final = (
    _Width(
        energy=1.10,
        mismatch=((3.6e-6, 1.7e-6), (7.8e-5, 6e-6)),
        tilt_mismatch=2.9e-4,
        distinct={"prose": (2.2, 0.885), "code": (5.5, 0.75)},
        scored=0.93,
        chernoff=0.96,
    ),
    _Width(
        energy=1.06,
        mismatch=((4e-7, 5e-7), (3e-5, 6e-6)),
        tilt_mismatch=2.8e-5,
        distinct={"prose": (1.37, 0.958), "code": (2.8, 0.857)},
        scored=0.98,
        chernoff=0.97,
    ),
    _Width(
        energy=1.05,
        mismatch=((2.8e-7, 2.6e-7), (1.7e-5, 5e-6)),
        tilt_mismatch=6e-6,
        distinct={"prose": (1.16, 0.981), "code": (2.0, 0.907)},
        scored=0.98,
        chernoff=0.97,
    ),
)


def preset_figures(domain: str, *, window: int, reference: str = "base", gini: float | None = None) -> PilotFigures:
    """Return what pilots of ours measured, for want of a pilot. Windows wider than 3 are taken as 3: that is cautious.

    Args:
        domain: one of `DOMAINS`.
        window: ids hashed, 1 to 8.
        reference: one of `REFERENCES`.
        gini: mean of 1 - sum p^2 in place of the domain's.

    Raises:
        UsageError: an unknown domain or reference, or a gini outside 0 to 1.
    """
    if domain not in DOMAINS:
        raise UsageError(f"domain: expected one of {', '.join(DOMAINS)}, got {domain!r}")
    if reference not in REFERENCES:
        raise UsageError(f"reference: expected one of {', '.join(REFERENCES)}, got {reference!r}")
    if not 1 <= window <= 8:
        raise UsageError(f"window: expected 1 to 8 ids, got {window}")
    if gini is not None and not 0 < gini < 1:
        raise UsageError(f"gini: expected a mean of 1 - sum p^2 between 0 and 1, got {gini:g}")
    width = _WIDTHS[min(window, len(_WIDTHS)) - 1]
    openness = DOMAINS[domain] if gini is None else gini
    mismatch, error = width.mismatch[REFERENCES.index(reference)]
    scale, exponent = width.distinct[domain]
    return PilotFigures(
        source=f"preset: {domain}, {reference} reference",
        tokens=11_000 if domain == "prose" else 7_700,
        window=window,
        scored=width.scored,
        gini=openness,
        energy=width.energy * openness,
        mismatch=mismatch,
        mismatch_error=error,
        tilt_mismatch=width.tilt_mismatch,
        chernoff=width.chernoff,
        distinct_scale=scale,
        distinct_exponent=exponent,
    )
