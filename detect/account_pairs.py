"""The account-lane pairs of a text, and what is left of them where the answers of some accounts are set aside.

Text is made of stretches: what one account was answered stands together. So the text is read as a hidden Markov chain
(L. R. Rabiner, Proc. IEEE 77, 1989, section III): at each token it is an answer to one of the k accounts to be set
aside, or the rest; between two tokens a stretch ends with a small chance, and the next is of any of the k + 1 kinds,
all equally likely; a response begins a stretch. An account's answer agrees with its code word with the chance q, the
rest with 1/2. What is left of a pair is the chance, given all that the text says, that it is of the rest: near 0 within
the stretches of those accounts, near 1 elsewhere, in between where stretches are too short to tell.

q and how often stretches end are the likeliest of a few settings. All of it is a function of the text, of the keys and
of the k code words: no other code word has been near it. A wrong model costs power alone (`detect.attribution`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detect.tally import Tally
from detect.weighting import Weights
from watermark import kernels
from watermark.errors import UsageError
from watermark.keys import CODE_BITS, ScopeKeys
from watermark.prf import LANES, siphash24

__all__ = ["AccountPairs", "code_positions"]

#: How often an account's answers agree with its code word: edited or constrained text, to free text at a delta of 2.
_AGREEMENTS = (0.65, 0.75, 0.85)

#: Chance that a stretch ends at a token.
_ENDS = (1 / 8, 1 / 32, 1 / 128, 1 / 512)

#: What is left of a pair is counted in 1 / 2^10, so that sums depend on no order.
_BITS = 10

Counts = npt.NDArray[np.int64]


def code_positions(keys: ScopeKeys, windows: npt.NDArray[np.uint32]) -> Counts:
    """Return the position of the code words that each window, uint32 (m, h), goes by: int64 (m,)."""
    return (siphash24(keys.code_key().reveal(), windows) % np.uint64(CODE_BITS)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPairs:
    """The distinct pairs (n of them) in account lanes that have a weight, and where they are said."""

    position: Counts
    """Of the code words, 0..4095, (n,)."""
    value: Counts
    """Weight in units of 2^-32, times 1 where the pair is green before any complement, else -1: (n,)."""
    at: Counts
    """Where in the concatenated responses one of them is said, increasing, (m,)."""
    said: Counts
    """Which is said there, 0..n-1, (m,)."""

    @classmethod
    def of(cls, tally: Tally, weights: Weights, keys: ScopeKeys) -> AccountPairs:
        """Return the pairs of a text.

        Args:
            tally: of the text.
            weights: made by a `Weighting` from *tally*, without a key.
            keys: the scope.

        Raises:
            UsageError: the scope has no account lanes.
        """
        if keys.params.account_lanes == 0:
            raise UsageError(
                f"scope {keys.name} has no account lanes: its answers say nothing about accounts. A scope made with "
                "--account-lanes 16 has"
            )
        chosen = np.arange(LANES) >= keys.params.fleet_lanes
        inside = np.flatnonzero(chosen[tally.lanes][tally.pair_window] & (weights.values != 0))
        windows = tally.pair_window[inside]
        seeds = kernels.seeds(keys.lane_words(), tally.windows, tally.lanes)
        tokens = np.ascontiguousarray(tally.tokens[inside])
        green = kernels.green(seeds, keys.params.bounds()[tally.lanes], windows, tokens)
        position = code_positions(keys, tally.windows)
        # The last entry is what -1, a position that is out, finds.
        number = np.full(len(tally.tokens) + 1, -1, dtype=np.int64)
        number[inside] = np.arange(len(inside))
        said = number[tally.position_pair]
        at = np.flatnonzero(said >= 0)
        return cls(
            position=position[windows],
            value=np.where(green, 1, -1) * weights.values[inside],
            at=at,
            said=said[at],
        )

    def twice(self) -> Counts:
        """Return the sum of the values at each position of the code words: int64 (4096,)."""
        return self._added(self.value)

    def twice_beside(self, words: npt.NDArray[np.uint8], starts: Counts) -> Counts:
        """Return the same of what is left where the answers of some accounts are set aside.

        Neither the order of the responses nor of the accounts' registry has a part in it.

        Args:
            words: those accounts' code words, uint8 (k, 512), k >= 1.
            starts: where each response starts in the concatenation, with the end as the last entry.
        """
        if not len(self.at):
            return self.twice()
        places = self.position >> 3, (self.position & 7).astype(np.uint8)
        unset = (words[:, places[0]] >> places[1]) & 1 == 0
        agrees = np.ascontiguousarray((unset == (self.value > 0)).T[self.said])
        times = np.bincount(self.said, minlength=len(self.value))
        # A pair that is said often is evidence once: each time for its part.
        parts = 1.0 / times[self.said]
        begins = np.unique(np.searchsorted(self.at, starts))
        best, left = -math.inf, np.zeros(0)
        for agreement, ends in itertools.product(_AGREEMENTS, _ENDS):
            found, likelihoods = _left(agrees, self.at, parts, begins, agreement, ends)
            likelihood = math.fsum(likelihoods.tolist())
            if likelihood > best:
                best, left = likelihood, found
        counted = np.zeros(len(self.value), dtype=np.int64)
        np.add.at(counted, self.said, np.rint(np.ldexp(left, _BITS)).astype(np.int64))
        # Pairs that only a reference would have said are said nowhere, and stay whole.
        share = np.where(times > 0, counted // np.maximum(times, 1), 1 << _BITS)
        return self._added((self.value * share) >> _BITS)

    def _added(self, values: Counts) -> Counts:
        twice = np.zeros(CODE_BITS, dtype=np.int64)
        np.add.at(twice, self.position, values)
        return twice


@kernels.kernel
def _left(
    agrees: npt.NDArray[np.bool_],
    at: Counts,
    parts: npt.NDArray[np.float64],
    begins: Counts,
    agreement: float,
    ends: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the chance of each saying that it is of the rest, and each response's log likelihood over that of chance.

    Args:
        agrees: whether what is said agrees with each code word, (m, k).
        at: token of each saying, increasing within a response, (m,).
        parts: as how much of an observation each counts, (m,).
        begins: first saying of each response, with m as the last entry, (r + 1,).
        agreement: chance that an account's answer agrees with its word.
        ends: chance that a stretch ends at a token.

    Returns:
        float64 (m,) and (r,).
    """
    m, k = agrees.shape
    kinds = k + 1
    forward = np.empty((m, kinds))
    seen = np.ones((m, kinds))
    left = np.empty(m)
    likelihoods = np.zeros(len(begins) - 1)
    agreed, not_agreed, stays = np.log(2 * agreement), np.log(2 * (1 - agreement)), np.log(1 - ends)
    for i in range(m):
        yes, no = np.exp(parts[i] * agreed), np.exp(parts[i] * not_agreed)
        for c in range(k):
            seen[i, c + 1] = yes if agrees[i, c] else no
    backward = np.empty(kinds)
    for r in range(len(begins) - 1):
        first, end = begins[r], begins[r + 1]
        for i in range(first, end):
            stay = np.exp(stays * (at[i] - at[i - 1])) if i > first else 0.0
            total = 0.0
            for c in range(kinds):
                before = forward[i - 1, c] if i > first else 0.0
                forward[i, c] = (stay * before + (1 - stay) / kinds) * seen[i, c]
                total += forward[i, c]
            likelihoods[r] += np.log(total)
            for c in range(kinds):
                forward[i, c] /= total
        backward[:] = 1.0
        for i in range(end - 1, first - 1, -1):
            total = 0.0
            for c in range(kinds):
                total += forward[i, c] * backward[c]
            left[i] = forward[i, 0] * backward[0] / total
            if i == first:
                break
            stay = np.exp(stays * (at[i] - at[i - 1]))
            anew, largest = 0.0, 0.0
            for c in range(kinds):
                backward[c] *= seen[i, c]
                anew += backward[c]
            for c in range(kinds):
                backward[c] = stay * backward[c] + (1 - stay) / kinds * anew
                largest = max(largest, backward[c])
            for c in range(kinds):
                backward[c] /= largest
    return left, likelihoods
