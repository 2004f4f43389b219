"""What a reader of a result must be told beside it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from detect.corpus import Corpus
from detect.distillation import ModelResult
from detect.mark import Mark
from detect.verdict import Verdict

__all__ = ["Warned", "warnings_of", "warnings_of_model"]

#: From this share of the teacher's tilt on, a suspect looks like the teacher itself behind another name.
_RELAY = 0.7

#: Bounds of the decoys' standard deviation; with 999 decoys its own is 0.022.
_DECOY_SD = (0.85, 1.15)

#: Decoys from which on their standard deviation is judged.
_ENOUGH_DECOYS = 200


class Warned(Enum):
    """A warning, in words that stay the same wherever it is printed."""

    NOT_ACTIVATED = "key randomness not verifiable: no public randomness went into this key after it was committed to"
    PUBLISHED = "the key is published: anyone can mark with it, so this is an example and no evidence"
    NO_PROMPTS = "some texts have no recorded prompt: echoes of it could not be left out"
    OTHER_SCOPE = "records name another scope's fingerprint than the one tested"
    RELAY = "an effect near the teacher's own: a relay of the teacher's service looks like this, a student rarely"
    ONE_LANE = "less than half of the signal is left without one lane: a lane's key in other hands looks like this"
    FEW_WINDOWS = "less than half of the signal is left without five windows: copied or planted text looks like this"
    DECOYS_SPREAD = "the decoys' spread is not what the null says: do not rely on this result, and report it"


def warnings_of(corpus: Corpus, mark: Mark, *, published: bool) -> list[Warned]:
    """Return what goes beside any result of *mark* on *corpus*; *published* if its key is public."""
    found = []
    if mark.activated is False:
        found.append(Warned.NOT_ACTIVATED)
    if published:
        found.append(Warned.PUBLISHED)
    if corpus.without_prompt:
        found.append(Warned.NO_PROMPTS)
    if corpus.fingerprints - {mark.fingerprint}:
        found.append(Warned.OTHER_SCOPE)
    return found


def warnings_of_model(result: ModelResult, general: Sequence[Warned]) -> list[Warned]:
    """Return *general* and what goes beside this result of `detect_model`."""
    found = list(general)
    if result.effect is not None and result.effect.tau >= _RELAY and result.log10_p_holm < -3:
        found.append(Warned.RELAY)
    parts = result.concentration
    if parts is not None and result.verdict is Verdict.DEPENDS:
        found += [Warned.ONE_LANE] * parts.in_one_lane + [Warned.FEW_WINDOWS] * parts.in_few_windows
    low, high = _DECOY_SD
    spreads = [test.decoy_sd for test in result.weighted if test.decoys >= _ENOUGH_DECOYS]
    if any(sd is not None and not low < sd < high for sd in spreads):
        found.append(Warned.DECOYS_SPREAD)
    return found
