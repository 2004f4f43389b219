"""The effect size of a suspect's outputs: which share of the teacher's tilt they carry, beside every p."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detect.centred import CENTRED
from detect.mark import Mark
from detect.tally import Tally
from detect.weighted_test import EffectSize, effect_size, weighted_test

__all__ = ["effect_of"]


def effect_of(
    tally: Tally,
    mark: Mark,
    *,
    tested: npt.NDArray[np.bool_],
    scores: npt.NDArray[Any],
) -> EffectSize | None:
    """Return the effect size, from the centred weights whatever test was made: to first order it has no bias.

    Args:
        tally: of the outputs; without a reference it gives no effect size.
        mark: whose key it is.
        tested: which pairs count, bool (n,); chosen by whole windows.
        scores: (n,), from `Mark.scores`.
    """
    if not tally.referenced or mark.strength is None:
        return None
    test = weighted_test(CENTRED.weigh(tally).within(tested), mark=mark, tally=tally, scores=scores)
    windows = np.zeros(len(tally.windows), dtype=np.bool_)
    windows[tally.pair_window[tested]] = True
    return effect_size(test.statistic, sd=test.sd, mark=mark, information=int(tally.information[windows].sum()))
