"""A keyed mark as the tests see it: for each distinct pair a score with a known law under the null hypothesis.

The green list is one: a pair's score is 1 where it is green, else 0. Marks that servers make with schemes of their own
are in `detect.marks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.decoys import decoy_words
from detect.score_law import Bernoulli, ScoreLaw
from detect.tally import Tally
from watermark import kernels
from watermark.keys import ScopeKeys
from watermark.prf import LANES

__all__ = ["GreenListMark", "Mark"]


class Mark(ABC):
    """What a test needs to know of a mark and its key."""

    name: str
    """For people."""
    fingerprint: str
    """Public digest of the parameters, without the key."""
    window: int
    """Ids before the token that the score depends on."""
    special_ids: tuple[int, ...]
    """Ids never scored, and never inside a window."""
    tokenizer: str | None
    """Digest of the generating model's tokenizer; None where the mark does not name one."""
    law: ScoreLaw
    """Law of one pair's score under the null hypothesis."""
    strength: float | None = None
    """Delta in logits, for the effect size; None where the mark is no tilt of logits."""
    cautions: tuple[str, ...] = ()
    """Named weaknesses of the scheme, and what still holds: sentences for people."""
    exact: bool = True
    """False where the scheme's hash is too weak for the law to hold. Then only the rank among decoy keys is reported,
    which is valid since keys are exchangeable."""
    activated: bool | None = None
    """Whether public randomness went into the key after it was committed to; None where the scheme knows no such."""

    hashes_prompt: bool = False
    """Whether an answer's first tokens are marked by the last of the prompt, which is in no window of the answer."""

    @property
    def identity(self) -> Any:
        """Return what tells this key from others: keys of one identity are one key."""
        return id(self)

    @property
    def public_id(self) -> str:
        """Return what tells this key from others as far as the public may know."""
        return self.fingerprint

    @abstractmethod
    def tested(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return which pairs the tests may use: bool (n,)."""

    @abstractmethod
    def scores(self, tally: Tally) -> npt.NDArray[Any]:
        """Return each pair's score under the key: float64 (n,), or bool where it is 0 or 1."""

    @abstractmethod
    def decoy_sums(self, tally: Tally, weights: npt.NDArray[np.int64], *, count: int, seed: int) -> npt.NDArray[Any]:
        """Return, under each of *count* decoy keys, the sums of the weights times the scores.

        Args:
            tally: the pairs.
            weights: int64 (n, J).
            count: how many decoys.
            seed: from which they are drawn, so that anyone can draw the same.

        Returns:
            (count, J), int64 where scores are 0 or 1, else float64.
        """

    def units(self, tally: Tally) -> npt.NDArray[np.int64] | None:
        """Return a label of the random quantity behind each pair, (n,); None where every pair has its own.

        Weights of pairs of one unit are added before the law is applied. Labels may depend on the text alone.
        """
        return None


class GreenListMark(Mark):
    """A scope's fleet lanes: a pair is green with probability gamma = k / 256."""

    law: Bernoulli

    def __init__(self, scope: ScopeKeys) -> None:
        params = scope.params
        self.scope = scope
        self.name = scope.name
        self.fingerprint = scope.fingerprint
        self.window = params.window
        self.special_ids = params.special_ids
        self.tokenizer = params.tokenizer
        self.k = params.fleet_k
        self.law = Bernoulli(params.fleet_k / 256)
        self.strength = scope.delta
        self.activated = scope.activated
        self._bounds = params.bounds()

    @property
    def identity(self) -> str:
        """Return the public id."""
        return self.public_id

    @property
    def public_id(self) -> str:
        """Return the scope's name, parameters and first commitment."""
        return f"{self.name} {self.fingerprint} {self.scope.commitments()[0]}"

    def __repr__(self) -> str:
        return f"GreenListMark(scope={self.name!r})"

    def tested(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return which pairs lie in fleet lanes that were not revealed."""
        tested = np.arange(LANES) < self.scope.params.fleet_lanes
        tested[list(self.scope.revealed)] = False
        return np.asarray(tested[tally.lanes][tally.pair_window], dtype=np.bool_)

    def scores(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return which pairs are green."""
        seeds = kernels.seeds(self.scope.lane_words(), tally.windows, tally.lanes)
        return kernels.green(seeds, self._bounds[tally.lanes], tally.pair_window, tally.tokens)

    def decoy_sums(
        self, tally: Tally, weights: npt.NDArray[np.int64], *, count: int, seed: int
    ) -> npt.NDArray[np.int64]:
        """Return the sums of the green pairs' weights under decoy roots of the same scope name and activation."""
        return kernels.green_sums(
            np.asarray(decoy_words(self.scope, count=count, seed=seed)),
            tally.windows,
            tally.lanes,
            self._bounds,
            tally.pair_window,
            tally.tokens,
            np.ascontiguousarray(weights),
        )
