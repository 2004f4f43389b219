"""Entropy weights: a distinct pair said counts by how much choice the reference had there. For comparison.

EWD (Lu et al., "An entropy-based text watermarking detection method", arXiv 2403.13485, section 4) weighs a token by
the spike entropy of the distribution that it was drawn from (Kirchenbauer et al., arXiv 2301.10226, section 4.2), less
its smallest value, ::

    W = sum over v of p(v) / (1 + z p(v)) - 1 / (1 + z),    z = (1 - gamma) (e^delta - 1) / (1 + gamma (e^delta - 1))

which is 0 where one token is certain, and z = sum W (green - gamma) / sqrt(gamma (1 - gamma) sum W^2). Here p is the
reference's, a pair weighs the mean of W over its occurrences, and each pair stands once.

Null: as for the count test. W comes from the text and the reference, never from the key; so given the weights the
scores of distinct pairs are still independent draws of the mark's law, and the sum's law is exactly known
(`detect.weighted_test`), where the paper sums over repeats and takes the normal tail. A reference that is wrong costs
power and never validity.

A small p says that the outputs depend on the key. It does not say who trained on what, when, or with what intent. It
is weaker than the centred test, which knows which token was to be expected and not only how open the choice was.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from detect.reference import Reference
from detect.tally import UNIT, Tally
from detect.weighting import Weighting

__all__ = ["ENTROPY_WEIGHTED", "entropy_weighting", "spike_modulus"]

#: Rows of the reference taken at a time.
_ROWS = 1 << 16


def spike_modulus(*, gamma: float, delta: float) -> float:
    """Return the modulus z of the spike entropy that fits a green list (arXiv 2301.10226, theorem 4.2).

    >>> round(spike_modulus(gamma=0.5, delta=2.0), 4)
    0.7616
    """
    lift = math.expm1(delta)
    return (1 - gamma) * lift / (1 + gamma * lift)


def entropy_weighting(*, modulus: float = 1.0, name: str = "entropy-weighted") -> Weighting:
    """Return the rule that weighs by spike entropy.

    Args:
        modulus: z, above 0; `spike_modulus` gives the one of a green list. Any value leaves the test valid.
        name: of the weighting.

    Raises:
        ValueError: *modulus* is not a finite number above 0.
    """
    if not 0 < modulus < math.inf:
        raise ValueError(f"modulus of the spike entropy: expected a finite number above 0, got {modulus!r}")

    def rule(tally: Tally, reference: Reference | None) -> npt.NDArray[np.int64]:
        if reference is None:
            raise ValueError(f"the {name} test wants a reference")
        return _entropy_weights(tally, reference, modulus)

    return Weighting(name=name, rule=rule, needs_positions=True)


def _entropy_weights(tally: Tally, reference: Reference, modulus: float) -> npt.NDArray[np.int64]:
    """Return the mean of W over each pair's occurrences, in units of 2^-32: int64 (n,)."""
    pair = tally.position_pair
    if len(reference.ids) != len(pair):
        raise ValueError(f"reference {reference.name}: {len(reference.ids)} positions, and the tally has {len(pair)}")
    sums = np.zeros(len(tally.tokens), dtype=np.int64)
    for start in range(0, len(pair), _ROWS):
        part = pair[start : start + _ROWS]
        inside = part >= 0
        p = reference.top_p[start : start + _ROWS][inside].astype(np.float64)
        # What the top leaves over is spread over many tokens, each of them small: p / (1 + z p) is about p.
        entropy = (p / (1.0 + modulus * p)).sum(axis=1) + np.clip(1.0 - p.sum(axis=1), 0.0, 1.0)
        weight = np.maximum(0.0, entropy - 1.0 / (1.0 + modulus))
        # Integers, so that the sum does not depend on the order of the positions.
        np.add.at(sums, part[inside], np.rint(weight * UNIT).astype(np.int64))
    return np.where(tally.said > 0, sums // np.maximum(tally.said, 1), 0)


#: The modulus of gamma = 1/4 and delta = 2, a usual green list.
ENTROPY_WEIGHTED = entropy_weighting(modulus=spike_modulus(gamma=0.25, delta=2.0))
