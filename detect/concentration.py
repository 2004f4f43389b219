"""Does a signal stand in all of the evidence, or in one lane or a few windows of it?

A student carries the mark wherever it learned: in all lanes alike, in many windows. A signal that vanishes with one
lane looks like that lane's key in other hands; one that vanishes with a few windows like a phrase that was planted, or
copied. Both are looked for after the test and are no test themselves: they say what to look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detect.mark import Mark
from detect.tally import UNIT, Tally
from detect.weighting import Weights
from watermark.prf import LANES

__all__ = ["Concentration", "concentration_of"]

#: Windows left out together.
_WINDOWS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Concentration:
    """z of the main test with its strongest parts left out."""

    z: float
    lane: int
    """The lane that adds most."""
    z_without_lane: float
    windows: tuple[tuple[int, ...], ...]
    """Ids of the windows that add most, five at most."""
    z_without_windows: float

    @property
    def in_one_lane(self) -> bool:
        """Whether less than half of z is left without the lane."""
        return self.z_without_lane < self.z / 2

    @property
    def in_few_windows(self) -> bool:
        """Whether less than half of z is left without the windows."""
        return self.z_without_windows < self.z / 2


def concentration_of(weights: Weights, *, mark: Mark, tally: Tally, scores: npt.NDArray[Any]) -> Concentration | None:
    """Return how concentrated a test's statistic is; None where there is too little to leave out.

    Args:
        weights: of the test, 0 outside `Mark.tested`.
        mark: gives the scores' mean and variance.
        tally: the pairs.
        scores: (n,), from `Mark.scores`.
    """
    a = weights.values / UNIT
    gained = a * (np.asarray(scores, dtype=np.float64) - mark.law.mean)
    lane_of_pair = tally.lanes[tally.pair_window]
    by_lane = _sums(lane_of_pair, gained, LANES), _sums(lane_of_pair, a * a, LANES)
    by_window = (
        _sums(tally.pair_window, gained, len(tally.windows)),
        _sums(tally.pair_window, a * a, len(tally.windows)),
    )
    if np.count_nonzero(by_lane[1]) < 2 or np.count_nonzero(by_window[1]) <= _WINDOWS:
        return None
    variance = mark.law.variance
    top_lane = np.array([int(np.argmax(by_lane[0]))])
    top_windows = np.argsort(-by_window[0], kind="stable")[:_WINDOWS]
    return Concentration(
        z=_z(*by_lane, np.zeros(0, dtype=np.int64), variance),
        lane=int(top_lane[0]),
        z_without_lane=_z(*by_lane, top_lane, variance),
        windows=tuple(tuple(map(int, tally.windows[window])) for window in top_windows),
        z_without_windows=_z(*by_window, top_windows, variance),
    )


def _sums(group: npt.NDArray[Any], values: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.float64]:
    return np.bincount(group, weights=values, minlength=groups).astype(np.float64)


def _z(
    gained: npt.NDArray[np.float64], squares: npt.NDArray[np.float64], out: npt.NDArray[np.int64], variance: float
) -> float:
    rest = float(squares.sum() - squares[out].sum())
    return float((gained.sum() - gained[out].sum()) / np.sqrt(variance * rest)) if rest > 0 else 0.0
