"""What a student holds of many accounts' code words, and what the others' words leave of it to one cluster.

In the account lanes a student carries the mean of its accounts' code words. With Y_i as in `detect.attribution`, made
of self-normalised weights, and m_ci the mean of the signs of cluster c's accounts at position i, ::

    Y_i = b_i (sum over the clusters of f_c m_ci) + noise of the variance d_i

to first order: f_c is the cluster's share of the marked answers, b_i what the whole would add if all accounts agreed
(the fleet lanes say how much was learned), d_i the sum of the squared weights over 4. `detect.cohorts` says what it is
used for, and why a wrong model costs power alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detect.account_pairs import code_positions
from detect.centred import residuals
from detect.mark import GreenListMark
from detect.tally import UNIT, Tally
from detect.weighted_test import EffectSize, effect_size, weighted_test
from detect.weighting import Weights
from watermark.errors import UsageError
from watermark.keys import CODE_BITS, ScopeKeys

__all__ = ["CHANCE", "OTHERS", "Learned", "Others", "StudentModel", "evidence_of", "fleet_effect"]

Floats = npt.NDArray[np.float64]

#: Clusters whose words are taken out of the noise of one.
OTHERS: Final = 256

#: t: theta is on the scale of the likelihood ratio, so that 1 is best if the model and the shares are right.
_TILTS: Final = (0.25, 0.5, 1.0, 2.0)

#: Of the signal's variance, what a window's accounts differ from the mean of all by: it was seen by some of them only.
CHANCE: Final = 0.25

#: Allowance for the rounding of an exponent's terms, which is some 1e-13 of them, and of theta: 4e-10 at the worst,
#: since 1 / prior + gram has a condition number of at most 4 n OTHERS / fed.
_ROUNDING: Final = 1e-9


def fleet_effect(tally: Tally, weights: Weights, keys: ScopeKeys) -> EffectSize:
    """Return the effect size in the fleet lanes, as the weights see it."""
    mark = GreenListMark(keys)
    fleet = mark.tested(tally)
    test = weighted_test(weights.within(fleet), mark=mark, tally=tally, scores=mark.scores(tally))
    windows = np.zeros(len(tally.windows), dtype=np.bool_)
    windows[tally.pair_window[fleet]] = True
    slope, _ = of_windows(tally, weights)
    effect = effect_size(test.statistic, sd=test.sd, mark=mark, information=round(float(slope[windows].sum()) * UNIT))
    if effect is None:
        raise UsageError("these outputs leave nothing to chance in the fleet lanes: there is nothing to test")
    return effect


def of_windows(tally: Tally, weights: Weights) -> tuple[Floats, Floats]:
    """Return for each window omega I and the sum of its squared weights (`SELF_NORMALISED`): float64 (m,) both."""
    a, c = weights.values / UNIT, residuals(tally) / UNIT
    m = len(tally.windows)
    energy = np.bincount(tally.pair_window, weights=c * c, minlength=m)
    along = np.bincount(tally.pair_window, weights=a * c, minlength=m)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(energy > 0, tally.information / UNIT * along / energy, 0.0)
    return slope, np.bincount(tally.pair_window, weights=a * a, minlength=m).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the account lanes of a text can hold, at the positions of the code words that they speak of."""

    at: npt.NDArray[np.int64]
    """The positions, (n,)."""
    slope: Floats
    """What tau = 1 would add if all accounts agreed, (n,)."""
    sampling: Floats
    drift: Floats
    """The two parts of the variance of Y, (n,): one in proportion to the text, the other to its square."""

    @classmethod
    def of(cls, tally: Tally, weights: Weights, keys: ScopeKeys) -> Learned:
        """Return it of a tally and its self-normalised weights."""
        slope, energy = of_windows(tally, weights)
        inside = tally.lanes >= keys.params.fleet_lanes
        position = code_positions(keys, tally.windows)
        # Of a sum of omega (n - mu) the variance that a true reference would leave is omega^2 I.
        sampling = np.minimum(energy, slope**2 / np.maximum(tally.information / UNIT, np.finfo(np.float64).tiny))
        by_window: list[Floats] = [keys.delta * _gain(tally, keys) * slope, sampling, energy - sampling]
        tilt, sampling, drift = (
            np.bincount(position[inside], weights=each[inside], minlength=CODE_BITS).astype(np.float64) / 4
            for each in by_window
        )
        at = np.flatnonzero(tilt > 0)
        return cls(at=at, slope=tilt[at], sampling=sampling[at], drift=drift[at])


def _gain(tally: Tally, keys: ScopeKeys) -> Floats:
    """Return what the same delta adds in account lanes for what it adds in fleet lanes, at each window: (m,).

    To first order 1. A flat distribution is moved less where more of it is green: by gamma e / (1 + gamma (e - 1)) -
    gamma, e = exp(delta), where the first order says delta gamma (1 - gamma). One that hangs between two tokens is
    moved alike. Between them by the chance that two draws of the reference are the same token.
    """
    e, said = math.exp(keys.delta), np.bincount(tally.pair_window, weights=tally.said, minlength=len(tally.windows))
    account, fleet = (
        (e / (1 + k / 256 * (e - 1)) - 1) / (1 - k / 256) for k in (keys.params.account_k, keys.params.fleet_k)
    )
    flat = account / fleet if keys.delta else 1.0
    return np.asarray(flat + (1 - flat) * (1 - tally.information / UNIT / np.maximum(said, 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentModel:
    """What Y is taken to be made of. Known before any code word."""

    b: Floats
    """What the whole of the marked answers would add if all accounts agreed, (n,)."""
    d: Floats
    """Variance of the noise, (n,)."""
    share: float
    fed: int

    @classmethod
    def of(cls, learned: Learned, tau: float, *, share: float, clusters: int, longer: float = 1.0) -> StudentModel:
        """Return the model of a student of tilt *tau*, for *longer* times the text."""
        return cls(
            b=learned.slope * tau * longer,
            d=learned.sampling * longer + learned.drift * longer**2,
            share=share,
            fed=max(1, min(clusters, round(1 / share))),
        )

    def noise(self, y: Floats) -> Floats:
        """Return the diagonal of K, (n,): d, and what Y has in it beyond what equal shares of `fed` clusters would add.

        Accounts that no cluster names are part of that.
        """
        explained = self.fed * self.share**2
        energy = float(self.b @ self.b)
        excess = (float(y @ y) - float(self.d.sum())) / energy - explained if energy else 0.0
        return self.d + max(CHANCE * explained, excess) * self.b**2


class Others:
    """What the others leave of Y to one cluster."""

    def __init__(self, model: StudentModel, y: Floats, means: Floats) -> None:
        """Take the clusters' mean signs, (k, n)."""
        noise = model.noise(y)
        self._left = model.b / noise * y
        self._rows = means * (model.b**2 / noise)
        self._model = model
        self._gram = self._rows @ means.T
        self._along = means @ self._left

    def theta(self, chosen: npt.NDArray[np.int64]) -> Floats:
        """Return theta of a cluster that is not among the rows *chosen*, (n,); of the others nothing enters.

        By Woodbury's identity, b K^-1 Y = b y / noise - rows^T (1 / prior + gram)^-1 (means b y / noise).
        """
        share, fed = self._model.share, self._model.fed
        prior = share**2 * min(1.0, fed / max(1, len(chosen)))
        inner = self._gram[np.ix_(chosen, chosen)] + np.eye(len(chosen)) / prior
        return np.asarray(share * (self._left - np.linalg.solve(inner, self._along[chosen]) @ self._rows[chosen]))


def evidence_of(total: float, theta: Floats, accounts: int) -> tuple[float, float, float]:
    """Return z, log10 e and log10 p of T = *total*."""
    sd = float(np.linalg.norm(theta)) / math.sqrt(accounts)
    if not sd:
        return 0.0, 0.0, 0.0
    z = total / sd
    log_e = float(np.logaddexp.reduce([_bet(t, total, theta, accounts) for t in _TILTS])) - math.log(len(_TILTS))
    # The best of several bounds is a bound.
    best = max([0.0] + [_bet(t * z / sd, total, theta, accounts) for t in (0.8, 0.9, 1.0, 1.1, 1.25, 1.5) if z > 0])
    return z, log_e / math.log(10), -best / math.log(10)


def _bet(t: float, total: float, theta: Floats, accounts: int) -> float:
    """Return ln e of the tilt *t*, rounded down."""
    won, size = t * total, np.abs(t / accounts * theta)
    paid = accounts * float((size + np.log1p(np.exp(-2 * size)) - math.log(2)).sum())
    return won - paid - _ROUNDING * (1 + abs(won) + accounts * float(size.sum()))
