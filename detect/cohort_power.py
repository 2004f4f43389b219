"""The power to tell which clusters fed a student, before a code word is looked at.

Words are drawn at random, what the account lanes would hold of them is made by the model (`detect.cohort_model`), and
the test of `detect.cohorts` is made on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from detect.cohort_model import CHANCE, OTHERS, Learned, Others, StudentModel, evidence_of
from detect.multiplicity import e_bh
from detect.weighted_test import EffectSize

__all__ = ["CohortPower", "cohort_power"]

#: Fed clusters simulated for a power that is stated, and for one on the way to the tokens needed.
_STATED: Final = 256
_ON_THE_WAY: Final = 64

#: Power below which a question is refused.
_HOPELESS: Final = 0.05

#: The text is not thought to be made longer than so many times.
_LONGEST: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortPower:
    """What may be hoped for before a code word is looked at."""

    effect: EffectSize
    """Of the fleet lanes, by the same weights."""
    share: float
    """Of the marked answers, that one cluster is assumed to have supplied."""
    fed: int
    """Clusters that are assumed to have supplied as much."""
    found: float
    """Part of them that would be found."""
    found_at_most: float
    """The same at the upper end of the effect's interval."""
    tokens: int
    """Of the outputs."""
    tokens_needed: int | None
    """Tokens of such outputs at which half of them would be found, one figure of it; None where no amount is enough."""

    @property
    def answerable(self) -> bool:
        """Whether any cluster is likely to be found."""
        return self.found_at_most >= _HOPELESS


def cohort_power(
    learned: Learned, effect: EffectSize, sizes: Sequence[int], *, share: float, level: float, tokens: int
) -> CohortPower:
    """Return the power at a share. No code word enters."""

    def found(tau: float, longer: float = 1.0, *, simulated: int = _ON_THE_WAY) -> float:
        model = StudentModel.of(learned, max(tau, 0.0), share=share, clusters=len(sizes), longer=longer)
        return _simulate(model, sizes, level=level, least=simulated)

    now, at_most = found(effect.tau, simulated=_STATED), found(effect.high, simulated=_STATED)
    # Powers of the root of 2: with the first of them too little is found, with the last enough, if with any.
    few, enough = 0, 2 * (_LONGEST.bit_length() - 1)
    if now >= 0.5:
        enough = 0
    elif found(effect.tau, 2 ** (enough / 2)) < 0.5:
        few = enough
    while enough - few > 1:
        between = (few + enough) // 2
        few, enough = (few, between) if found(effect.tau, 2 ** (between / 2)) >= 0.5 else (between, enough)
    longer = None if few and few == enough else 2 ** (enough / 2)
    return CohortPower(
        effect=effect,
        share=share,
        fed=max(1, min(len(sizes), round(1 / share))),
        found=now,
        found_at_most=max(now, at_most),
        tokens=tokens,
        tokens_needed=None if longer is None else max(tokens, int(float(f"{tokens * longer:.1g}"))),
    )


def _simulate(model: StudentModel, sizes: Sequence[int], *, level: float, least: int) -> float:
    """Return the part of the clusters, *least* or more, that fed the model's students which is found."""
    random = np.random.default_rng(0)
    found = simulated = 0
    n = len(model.b)
    # The words of more clusters than `OTHERS` can't all be set aside, and what they leave is no more than noise.
    if model.fed > OTHERS or not model.b.any():
        return 0.0
    while simulated < least:
        # Clusters that did not feed it are so many sets of random signs: of more than `OTHERS` a part is enough.
        drawn = random.choice(len(sizes), min(len(sizes), OTHERS), replace=False)
        accounts = np.array([sizes[i] for i in drawn])[:, None]
        means = 2 * random.binomial(accounts, 0.5, (len(drawn), n)) / accounts - 1
        signal = model.share * means[: model.fed].sum(axis=0)
        chance = random.normal(size=n) * math.sqrt(CHANCE * model.fed) * model.share
        y = model.b * (signal + chance) + np.sqrt(model.d) * random.normal(size=n)
        others, rows = Others(model, y, means), np.arange(len(drawn))
        log10_es = []
        for row in rows[: model.fed].tolist():
            theta = others.theta(rows[rows != row])
            log10_es.append(evidence_of(float(means[row] @ theta), theta, int(accounts[row, 0]))[1])
        none = [-math.inf] * (len(sizes) - len(log10_es))
        found += sum(e_bh(log10_es + none, level=level))
        simulated += model.fed
    return found / simulated
