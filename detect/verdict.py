"""What a p-value says, in words that stay the same wherever it is printed."""

from __future__ import annotations

from enum import Enum

__all__ = ["DOES_NOT_SAY", "LEVEL", "Verdict", "verdict_of"]

#: The level at which a finding is called one unless told otherwise. An accusation may rest on it.
LEVEL = 1e-6


class Verdict(Enum):
    """The outcome of a test at a level."""

    DEPENDS = "depends on the key"
    NO_SIGN = "no sign of the key"
    TOO_SHORT = "too short to tell"


#: Printed under every verdict on a model.
DOES_NOT_SAY = (
    "A small p says that the outputs depend on this key. It does not say who trained on what, when, or with what "
    "intent: that the key served these answers only, that the outputs are the suspect's, that prompts held no marked "
    "text and that no marked answers reached the suspect through the public web must be shown beside it. "
    "No sign of the key is no sign of innocence: too little text, a filtered or paraphrased training set, or a small "
    "share of marked answers look the same."
)


def verdict_of(log10_p: float, *, smallest: float, log10_level: float) -> Verdict:
    """Return the verdict.

    Args:
        log10_p: after correction for the number of tests.
        smallest: the log10 p of the most extreme outcome that this evidence could have had, corrected alike.
        log10_level: log10 of the level.
    """
    if log10_p <= log10_level:
        return Verdict.DEPENDS
    # By Holm a finding beside others may need less than the smallest p by Bonferroni: it is one all the same.
    return Verdict.TOO_SHORT if smallest > log10_level else Verdict.NO_SIGN
