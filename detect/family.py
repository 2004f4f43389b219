"""The weighted tests by name, and those that `detect model` makes unless told otherwise."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from detect.centred import CENTRED, SELF_NORMALISED
from detect.entropy_weighted import ENTROPY_WEIGHTED
from detect.quasi_score import QUASI_SCORE
from detect.reference import Reference
from detect.tally import UNIT, Tally
from detect.weighting import Weighting

__all__ = ["DEFAULT", "FAMILY", "SCORE"]


def _said(tally: Tally, reference: Reference | None) -> npt.NDArray[np.int64]:
    return np.where(tally.said > 0, UNIT, 0)


#: Every distinct pair said weighs 1: the count of a green list, and the sum of the scores of any other mark.
SCORE = Weighting(name="score", rule=_said, needs_reference=False)

#: What docs/study.md found best, fixed here before any key is looked at: the smaller p of the two, times 2. Each wins
#: where the other loses (weak marks with a good reference; strong marks, or a poor one), by more than the 0.3 decades
#: that the factor costs.
DEFAULT = (QUASI_SCORE, CENTRED)

#: Weighted tests that may be asked for by name.
FAMILY = MappingProxyType(
    {weighting.name: weighting for weighting in (QUASI_SCORE, CENTRED, SELF_NORMALISED, ENTROPY_WEIGHTED)}
)
