"""The claim in words: what p says, what it does not say, and what else must be true."""

from __future__ import annotations

from collections.abc import Sequence

from detect.evidence.predicates import Plan, Scores
from detect.verdict import Verdict

__all__ = ["ELSE_MUST_BE_TRUE", "claim_in_words"]

#: What must be shown beside a small p before "trained on our answers" may be said.
ELSE_MUST_BE_TRUE = (
    "that this key marked these answers only, and was served by nobody else",
    "that the outputs are the suspect's own: each planned request asked of the endpoint once, and its answer kept",
    "that the prompts held no marked text beyond the windows left out",
    "that no marked answers reached the suspect by the public web or by another's data set",
    "that the suspect is a model of its own and no relay of the key's server",
)

_ALTERNATIVES = (
    "Alternatives that a reader should weigh: a relay of the key's own service behind another name; marked answers "
    "learned from the public web; prompts that hold marked text; a key that leaked and was used by somebody else."
)


def claim_in_words(
    plan: Plan,
    scores: Scores,
    *,
    verdict: Verdict,
    log10_p: str,
    cautions: Sequence[str],
    roots: int,
    plans: int,
) -> tuple[str, ...]:
    """Return the sentences that go with a claim.

    Args:
        plan: as it was signed.
        scores: as they were signed.
        verdict: of the opened lanes.
        log10_p: of the opened lanes, corrected, as the claim says it.
        cautions: what was not shown, a sentence each.
        roots: commitment roots in the log.
        plans: plans in the log.
    """
    lanes, tests = plan.lanes_to_open, ", ".join(plan.tests)
    finding = {
        Verdict.DEPENDS: "The outputs depend on this key, at the planned level.",
        Verdict.NO_SIGN: "No sign of this key at the planned level. That is no sign of innocence: too little text, a "
        "filtered or paraphrased training set, or a small share of marked answers look the same.",
        Verdict.TOO_SHORT: "Too little text in the opened lanes to tell anything at the planned level.",
    }[verdict]
    sentences = [
        finding,
        f"If the outputs were independent of the key, {lanes} lanes chosen as these were would show as much, by the "
        f"tests listed beforehand ({tests}), with a probability of at most 10^{log10_p}; that is "
        f"corrected for {_number(len(plan.tests), 'test')}, {_number(roots, 'key')} and {_number(plans, 'plan')} "
        "in the log, and holds whatever the text says.",
        "It does not say who trained on what, when, or with what intent, and it is no measure of how much.",
        "For 'trained on our answers' it must also be true " + "; ".join(ELSE_MUST_BE_TRUE) + ".",
        _ALTERNATIVES,
    ]
    if plan.controls:
        names = "; ".join(f"{control.name} ({control.kind}): {control.text}" for control in plan.controls)
        sentences.append(f"Controls, scored in the same lanes by the same tests: {names}.")
    else:
        sentences.append("No control was planned.")
    sentences.append("Exclusions planned: " + ("; ".join(plan.exclusions) if plan.exclusions else "none") + ".")
    deviations = (*plan.deviations, *scores.deviations)
    sentences.append("Deviations from the plan: " + ("; ".join(deviations) if deviations else "none") + ".")
    sentences.extend(f"Not shown: {caution}." for caution in cautions)
    return tuple(sentences)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
