"""The named checks of a bundle: what each looks at, what its failure means, and on which others it rests.

A check passes, fails, is a *caution* (nothing is wrong, and something is not shown), or is *not checked* since a check
that it rests on failed. Names never change their meaning; a new check has a new name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["CHECKS", "Check", "CheckResult", "Status"]


class Status(Enum):
    """What became of a check."""

    PASSED = "pass"
    FAILED = "fail"
    CAUTION = "caution"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A named check."""

    id: str
    title: str
    failure: str
    """What it means if it fails."""
    rests_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """A check, and what became of it."""

    check: Check
    status: Status
    detail: str


def _check(id: str, title: str, failure: str, *rests_on: str) -> Check:
    return Check(id=id, title=title, failure=failure, rests_on=rests_on)


#: In the order in which they are made; each rests on earlier ones alone.
CHECKS: Final = tuple(
    [
        _check(
            "E-FILE-01",
            "The bundle holds the files of a bundle and no others",
            "A file is missing, is no file of a bundle, is a link, stands twice or is too large.",
        ),
        _check(
            "E-FILE-02",
            "Each file has the digest that the manifest says",
            "A file was changed, added or taken away after the bundle was signed.",
            "E-FILE-01",
        ),
        _check(
            "E-SIGN-01",
            "The claim is signed by the publisher, in canonical form, over this manifest",
            "The claim is not this publisher's, or was changed.",
            "E-FILE-01",
        ),
        _check(
            "E-SIGN-02",
            "The plan is signed by the publisher, in canonical form",
            "The plan is not this publisher's, was changed, or is of another version.",
            "E-FILE-01",
        ),
        _check(
            "E-SIGN-03",
            "The scores are signed by the publisher, in canonical form",
            "The scores are not this publisher's, were changed, or are of another version.",
            "E-FILE-01",
        ),
        _check(
            "E-SIGN-04",
            "The opening is signed by the publisher, in canonical form",
            "The opening is not this publisher's, was changed, or is of another version.",
            "E-FILE-01",
        ),
        _check(
            "E-LINK-01",
            "Claim, opening, scores and plan name one another by digest",
            "Statements of different studies were put together.",
            "E-SIGN-01",
            "E-SIGN-02",
            "E-SIGN-03",
            "E-SIGN-04",
        ),
        _check(
            "E-LINK-02",
            "Outputs, reference and controls are those that the scores are about",
            "A file was put in the place of the one that was scored.",
            "E-SIGN-03",
        ),
        _check(
            "E-LOG-01",
            "The log's head is signed by the publisher",
            "The log is another's, or its head was changed.",
            "E-FILE-01",
        ),
        _check(
            "E-LOG-02",
            "The log's entries are those that its head was signed over",
            "An entry was changed, added or taken away.",
            "E-LOG-01",
        ),
        _check(
            "E-LOG-03",
            "The paths of inclusion lead to the signed head",
            "A path is not of this entry or not of this log.",
            "E-LOG-02",
        ),
        _check(
            "E-ORDER-01",
            "Commitment, activation, plan, scores and opening stand in the log in this order",
            "A step was fixed after the step that it should have preceded, or never.",
            "E-LOG-02",
            "E-SIGN-02",
            "E-SIGN-03",
            "E-SIGN-04",
        ),
        _check(
            "E-ORDER-02",
            "The times follow one another, and none is in the future",
            "A time is before that of an earlier step, or has not come yet.",
            "E-SIGN-01",
            "E-SIGN-02",
            "E-SIGN-03",
            "E-SIGN-04",
            "E-LOG-02",
        ),
        _check(
            "E-TIME-01",
            "External timestamps stand over heads of the log",
            "A timestamp is of something else, or of no authority that was named.",
            "E-LOG-02",
        ),
        _check(
            "E-STATE-01",
            "The scope was not compromised or destroyed before the scores",
            "Somebody else had the key when the outputs were collected.",
            "E-ORDER-01",
        ),
        _check(
            "E-ACTIVATE-01",
            "Public randomness went into the key after it was committed to",
            "The activation is not of this commitment.",
            "E-LOG-02",
            "E-SIGN-02",
        ),
        _check(
            "E-COMMIT-01",
            "The opened seeds are those that the log committed to, with these parameters",
            "A seed is another than the one committed to: the key was chosen after the fact.",
            "E-LOG-02",
            "E-SIGN-02",
            "E-SIGN-04",
        ),
        _check(
            "E-ROOTS-01",
            "p is corrected for every key and every plan in the log",
            "The claim counts fewer keys or plans than there are.",
            "E-LOG-02",
            "E-SIGN-01",
        ),
        _check(
            "E-LANES-01",
            "The opened lanes are those that the randomness chose, as many as planned",
            "Lanes were chosen in another way, perhaps by their scores.",
            "E-ORDER-01",
            "E-LINK-01",
        ),
        _check(
            "E-LANES-02",
            "At most half of the fleet lanes were ever opened, and none twice",
            "A lane was opened that had been known before.",
            "E-ORDER-01",
        ),
        _check(
            "E-PLAN-01",
            "The prompts are those of the plan",
            "Prompts were changed after the plan was signed.",
            "E-SIGN-02",
        ),
        _check(
            "E-PLAN-02",
            "Each planned request is answered once, or the departure is said",
            "Answers were left out, added, or given to other prompts.",
            "E-PLAN-01",
            "E-LINK-02",
        ),
        _check(
            "E-PLAN-03",
            "Tests, level and controls of the claim are those of the plan",
            "A test, a level or a control was chosen after the outputs were seen.",
            "E-SIGN-01",
            "E-SIGN-02",
            "E-SIGN-03",
        ),
        _check(
            "E-TOKEN-01",
            "The tokenizer is the one of the key",
            "Windows would be cut in another way than the server cut them.",
            "E-LOG-02",
            "E-SIGN-02",
            "E-SIGN-03",
        ),
        _check(
            "E-SCORE-01",
            "The accounting of the outputs comes out again",
            "Records were dropped or counted otherwise.",
            "E-TOKEN-01",
            "E-LINK-02",
        ),
        _check(
            "E-REF-01",
            "The reference is of these outputs and does not depend on the key",
            "The weights would have known the key.",
            "E-COMMIT-01",
            "E-SCORE-01",
        ),
        _check(
            "E-SCORE-02",
            "The integers of every opened lane come out again, of the outputs and of the controls",
            "Counts were invented.",
            "E-COMMIT-01",
            "E-SCORE-01",
        ),
        _check(
            "E-CLAIM-01",
            "The tests' integers and p-values, the effect size and the verdict come out again",
            "The claim is not what the opened lanes say.",
            "E-REF-01",
            "E-SCORE-02",
            "E-ROOTS-01",
        ),
        _check(
            "E-CLAIM-02",
            "The controls' p-values come out again, and show nothing",
            "A control is not what was claimed.",
            "E-SCORE-02",
            "E-SIGN-01",
        ),
        _check(
            "E-CLAIM-03",
            "The key's rank among decoy keys agrees with the claim",
            "Keys that nobody served do as well as this one, or the rank was invented.",
            "E-CLAIM-01",
        ),
        _check(
            "E-CLAIM-04",
            "The claim's words are those that follow from its figures",
            "The text says something else than the figures.",
            "E-CLAIM-01",
        ),
    ]
)
