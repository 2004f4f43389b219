"""Lanes as evidence: which may be opened, which randomness opens, and their keys from opened seeds.

The lanes opened are the first m of the tested lanes sorted by

    SHA-256("taggant/1/opening" + L(digest of scores.dsse.json, 32 bytes) + L(value, UTF-8) + the lane's byte)

with L(x) = le32(length of x) + x. The value comes after the scores were signed (a beacon's round, an auditor's nonce),
so that nobody chose lanes by their scores: of 48 lanes the best 8 give z = 4.1 on nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from detect.decoys import decoy_words_of
from detect.mark import Mark
from detect.score_law import Bernoulli
from detect.tally import Tally
from watermark import kernels
from watermark.keys import NO_ACTIVATION, Params, hkdf
from watermark.prf import LANES, key_words

__all__ = ["OpenedLanes", "lanes_tested", "order_of_lanes"]


def lanes_tested(params: Params, *, revealed: Iterable[int] = (), live: Iterable[int] = ()) -> npt.NDArray[np.bool_]:
    """Return which lanes a study may test and open: fleet lanes, none revealed before, none looked at while collecting.

    Returns:
        bool of shape (64,).
    """
    tested = np.arange(LANES) < params.fleet_lanes
    tested[[*revealed, *live]] = False
    return tested


def order_of_lanes(tested: npt.NDArray[np.bool_], *, scores: str, value: str) -> list[int]:
    """Return the tested lanes in the order in which they are opened.

    Args:
        tested: bool (64,).
        scores: hexadecimal digest of the signed scores.
        value: the randomness, as it was published.
    """
    digest, said = bytes.fromhex(scores), value.encode()
    head = b"taggant/1/opening" + b"".join(len(part).to_bytes(4, "little") + part for part in (digest, said))
    lanes = [int(lane) for lane in np.flatnonzero(tested)]
    return sorted(lanes, key=lambda lane: hashlib.sha256(head + bytes([lane])).digest())


class OpenedLanes(Mark):
    """Some lanes of a scope, known by their opened seeds: what a stranger tests with.

    Args:
        name: the scope's.
        params: of the commitment.
        activation: the scope's; `NO_ACTIVATION` if there was none.
        seeds: 32 bytes each, by lane.
        delta: for the effect size.
    """

    law: Bernoulli

    def __init__(
        self, name: str, params: Params, *, activation: bytes, seeds: Mapping[int, bytes], delta: float
    ) -> None:
        self.name = name
        self.params = params
        self.fingerprint = params.fingerprint()
        self.window = params.window
        self.special_ids = params.special_ids
        self.tokenizer = params.tokenizer
        self.law = Bernoulli(params.fleet_k / 256)
        self.strength = delta
        self.activated = activation != NO_ACTIVATION
        self.lanes = tuple(sorted(seeds))
        self._activation = activation
        self._words = np.zeros((LANES, 2), dtype=np.uint64)
        for lane, seed in seeds.items():
            self._words[lane] = key_words(hkdf(seed, b"key\0" + activation, 16))
        self.is_open = np.zeros(LANES, dtype=np.bool_)
        self.is_open[list(seeds)] = True

    def __repr__(self) -> str:
        return f"OpenedLanes(scope={self.name!r}, lanes={self.lanes})"

    def tested(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return which pairs lie in opened lanes."""
        return np.asarray(self.is_open[tally.lanes][tally.pair_window])

    def scores(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return which pairs are green; of a lane that is not open nothing is known, and none is."""
        seeds = kernels.seeds(self._words, tally.windows, tally.lanes)
        green = kernels.green(seeds, self.params.bounds()[tally.lanes], tally.pair_window, tally.tokens)
        return np.asarray(green & self.tested(tally))

    def decoy_sums(
        self, tally: Tally, weights: npt.NDArray[np.int64], *, count: int, seed: int
    ) -> npt.NDArray[np.int64]:
        """Return the sums of the green pairs' weights in the opened lanes under decoy roots."""
        pairs = self.tested(tally)
        windows = np.flatnonzero(self.is_open[tally.lanes])
        place = np.zeros(len(tally.windows), dtype=np.int64)
        place[windows] = np.arange(len(windows))
        return kernels.green_sums(
            np.asarray(decoy_words_of(self.name, self._activation, self.params, count, seed)),
            np.ascontiguousarray(tally.windows[windows]),
            np.ascontiguousarray(tally.lanes[windows]),
            self.params.bounds(),
            place[tally.pair_window[pairs]],
            np.ascontiguousarray(tally.tokens[pairs]),
            np.ascontiguousarray(weights[pairs]),
        )
