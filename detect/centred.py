"""The centred weights: what was said minus what a reference model would have said anyway.

Each pair (w, v) has the weight ::

    a(w, v) = n(w, v) - sum over occurrences t of w of p_ref(v | context of t)

for tokens said and unsaid, and the statistic is S = sum a (green - gamma). To first order in the tilt it
is the locally most powerful weight: the score of a student whose logits lean towards green (METHOD in
docs/method.md). Low-entropy steps weigh nothing by themselves.

The *self-normalised* weights multiply a window's by omega = min(1, E / Q), E the sum of 1 - sum p_ref^2 over its
occurrences (the variance that a true reference would leave), Q the sum of a^2: windows in which the reference is wrong
for reasons of its own shout less.

Null: as for the count test. The weights depend on the text and on the reference, never on the key; so
given them the green bits are still independent Bernoulli(gamma), and S has an exactly known law. A
reference that is wrong costs power and never validity. One that has seen the key (the marked teacher
itself) is no reference: its probabilities depend on the key.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detect.reference import Reference
from detect.tally import UNIT, Tally
from detect.weighting import Weighting

__all__ = ["CENTRED", "SELF_NORMALISED", "residuals"]


def residuals(tally: Tally) -> npt.NDArray[np.int64]:
    """Return n - sum p_ref of each pair, in units of 2^-32: int64 (n,)."""
    return tally.said * UNIT - tally.expected


def _centred(tally: Tally, reference: Reference | None) -> npt.NDArray[np.int64]:
    return residuals(tally)


def _self_normalised(tally: Tally, reference: Reference | None) -> npt.NDArray[np.int64]:
    a = residuals(tally) / UNIT
    energy = np.bincount(tally.pair_window, weights=a * a, minlength=len(tally.windows))
    with np.errstate(divide="ignore", invalid="ignore"):
        omega = np.where(energy > 0, np.minimum(1.0, tally.information / UNIT / energy), 0.0)
    return np.asarray(np.rint(a * omega[tally.pair_window] * UNIT), dtype=np.int64)


CENTRED = Weighting(name="centred", rule=_centred)
SELF_NORMALISED = Weighting(name="self-normalised", rule=_self_normalised)
