"""Does a server's way of biasing give what `watermark.prf` specifies: asked at its start, before the first request.

An engine that hands over logits in another layout, a compiler that goes wrong on one machine, a table that
did not reach the device: each would serve answers that no detector finds, and nobody would notice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.counts import Counts
from watermark.errors import TaggantError
from watermark.keys import CODE_BITS, ScopeKeys
from watermark.marker import Marker, RequestMark

__all__ = ["ACCOUNT", "check_bias", "check_marker", "specified_row", "trial_marker"]

#: The account for which the test's rows are marked.
ACCOUNT: Final = "taggant-self-test"

#: Rows of the test, half of them in account lanes where the scope has such.
_ROWS: Final = 4


def specified_row(
    scope: ScopeKeys, window: npt.NDArray[np.uint32], vocabulary: int, *, account: str | None = None
) -> npt.NDArray[np.bool_]:
    """Return which ids of a vocabulary are biased after *window* (h,), by `watermark.prf` and nothing else.

    Returns:
        bool of shape (vocabulary,); all False in an account lane without an account, and special ids always.
    """
    lane = int(prf.lane(window[None, :])[0])
    if lane < scope.params.fleet_lanes:
        green = prf.row(scope.lane_key(lane).reveal(), window, vocabulary) < np.uint64(
            prf.green_below(scope.params.fleet_k)
        )
    elif account is None:
        return np.zeros(vocabulary, dtype=np.bool_)
    else:
        bound = np.uint64(prf.green_below(scope.params.account_k))
        green = prf.row(scope.lane_key(lane).reveal(), window, vocabulary) < bound
        position = int(prf.siphash24(scope.code_key().reveal(), window[None, :])[0]) % CODE_BITS
        if scope.code_word(account)[position]:
            green = ~green
    green[[i for i in scope.params.special_ids if i < vocabulary]] = False
    return np.asarray(green)


def check_bias(
    bias: Callable[[npt.NDArray[np.float32], npt.NDArray[np.uint32]], npt.NDArray[np.float32]],
    scope: ScopeKeys,
    vocabulary: int,
) -> None:
    """Bias rows of zeros and compare them with the specification.

    Args:
        bias: takes logits, float32 (B, V), and windows, uint32 (B, h), and returns the logits biased for
            `ACCOUNT` at strength 1. B is 4, or fewer where the vocabulary is a toy's.
        scope: whose keys are used.
        vocabulary: V.

    Raises:
        TaggantError: they differ.
    """
    windows = _windows(scope, vocabulary)
    found = bias(np.zeros((len(windows), vocabulary), dtype=np.float32), windows)
    expected = np.array([specified_row(scope, window, vocabulary, account=ACCOUNT) for window in windows])
    if not np.array_equal(found, np.where(expected, np.float32(scope.delta), np.float32(0.0))):
        wrong = int((found != np.where(expected, np.float32(scope.delta), np.float32(0.0))).sum())
        raise TaggantError(
            f"self-test: {wrong} of {found.size} logits are not what the specification gives for scope {scope.name}. "
            "Nothing is served, since it could not be detected. Clear Numba's and Triton's caches and start again; "
            "if it stays, report it with the versions of numba, torch and triton"
        )


def check_marker(marker: Marker, *, vocabulary: int) -> None:
    """Do as `check_bias` does, through `Marker.bias`. Nothing is checked where nothing is marked.

    Args:
        marker: the server's; its counters stay as they are.
        vocabulary: the width of the engine's logits.

    Raises:
        TaggantError: the logits are not what the specification gives.
    """
    green_list = marker.green_list
    if green_list is None:
        return
    # A row of zeros has the highest entropy that there is: under a `min_entropy` above it nothing would ever be marked.
    request = RequestMark(green_list=green_list, account=ACCOUNT)
    trial = trial_marker(marker)

    def bias(logits: npt.NDArray[np.float32], windows: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
        trial.bias(logits, list(windows), [request] * len(windows))
        return logits

    check_bias(bias, green_list.scope, vocabulary)


def trial_marker(marker: Marker) -> Marker:
    """Return a marker of the same keys for a self-test: it counts for itself, and marks though the server shadows."""
    trial = copy.copy(marker)
    trial.counts = Counts()
    trial.config = replace(marker.config, shadow=False)
    return trial


def _windows(scope: ScopeKeys, vocabulary: int) -> npt.NDArray[np.uint32]:
    """Return windows of ordinary ids, half of them in account lanes where there are any."""
    random = np.random.default_rng(0)
    ordinary = np.setdiff1d(np.arange(vocabulary), scope.params.special_ids)
    if not ordinary.size:
        return np.zeros((0, scope.params.window), dtype=np.uint32)
    drawn = random.choice(ordinary, (4096, scope.params.window)).astype(np.uint32)
    in_fleet = prf.lane(drawn) < scope.params.fleet_lanes
    half = _ROWS // 2 if not in_fleet.all() else 0
    return np.concatenate([drawn[in_fleet][: _ROWS - half], drawn[~in_fleet][:half]])
