"""The effect size of a suspect's outputs: which share of the teacher's tilt they carry, beside every p."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detect.centred import CENTRED
from detect.mark import Mark
from detect.reference import Reference
from detect.tally import Tally
from detect.weighted_test import EffectSize, effect_size, weighted_test

__all__ = ["effect_of"]


def effect_of(
    tally: Tally,
    mark: Mark,
    *,
    reference: Reference | None,
    tested: npt.NDArray[np.bool_],
    scores: npt.NDArray[Any],
) -> EffectSize | None:
    """Return the effect size, from the centred weights whatever test was made: to first order it has no bias.

    Args:
        tally: of the outputs, made with the reference.
        mark: whose key it is.
        reference: None gives no effect size.
        tested: which pairs count, bool (n,); chosen by whole windows.
        scores: (n,), from `Mark.scores`.
    """
    if reference is None or mark.strength is None:
        return None
    test = weighted_test(CENTRED.weigh(tally, reference).within(tested), mark=mark, tally=tally, scores=scores)
    windows = np.zeros(len(tally.windows), dtype=np.bool_)
    windows[tally.pair_window[tested]] = True
    return effect_size(test.statistic, sd=test.sd, mark=mark, information=int(tally.information[windows].sum()))
