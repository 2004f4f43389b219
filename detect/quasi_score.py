"""The quasi-score weights: centred, less where the reference is unreliable, and less where little can be learned.

The counts of a text scatter about a reference's expectation mu more than Poisson counts do: a student differs from its
base for reasons of its own. With the negative binomial's variance mu (1 + phi mu) the score of a tilt s_i tau at pair i
is ::

    a_i = s_i (n_i - mu_i) / (1 + phi mu_i)

(quasi-likelihood: Wedderburn, Biometrika 61, 1974; McCullagh and Nelder, "Generalized linear models", 1989, section
9.2). For Poisson counts the likelihood ratio of the text under the key and under a random key is, whatever tau, a
product over pairs of functions linear in their bits: so a weighted sum of bits is the right form of test, and only the
weights are to be found.

s_i is the share of the teacher's tilt that a student can have learned at the pair. A pair that stood m times in the
training data is learned as m / (m + m0), a mean shrunk towards no tilt, and so is its window. What stood there is not
known; but a student says what it was taught. So s is taken at the shares of the suspect's own text: the pair's by the
posterior mean of its rate, mu (1 + phi n) / (1 + phi mu), and the window's by its count.

phi and the two half-learned shares are constants, chosen on the demo's student and on the first key's window-1
students of the study `small`. On the others, which had no part in the choice, it is far ahead of centring at window 2,
a little behind it at window 1 and a dose of 10%, and behind it at 100% (docs/study.md). Fitting phi to each text by
likelihood was worse: the many rare pairs decide it, and the frequent ones carry the evidence.

Null: as for every weighting (`detect.weighted_test`). The weights are a function of text and reference; so the law of
S given them is exact, whatever becomes of the model above. A wrong model costs power only.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from detect.reference import Reference
from detect.tally import UNIT, Tally
from detect.weighting import Weighting

__all__ = ["DISPERSION", "PAIR_SHARE", "QUASI_SCORE", "WINDOW_SHARE"]

#: phi: a reference is taken to be off by a factor of exp(+-sqrt(phi)), some 17%, at each pair.
DISPERSION: Final = 0.03

#: A pair, or a window, with this share of all positions is taken to be half learned.
PAIR_SHARE: Final = 1e-6
WINDOW_SHARE: Final = 1e-4


def _quasi_score(tally: Tally, reference: Reference | None) -> npt.NDArray[np.int64]:
    said, expected = tally.said.astype(np.float64), tally.expected / UNIT
    positions = float(said.sum()) / tally.share
    in_window = np.bincount(tally.pair_window, weights=said, minlength=len(tally.windows))
    window_learned = in_window / (in_window + max(WINDOW_SHARE * positions, np.finfo(np.float64).tiny))
    rate = expected * (1 + DISPERSION * said) / (1 + DISPERSION * expected)
    learned = rate / (rate + max(PAIR_SHARE * positions, np.finfo(np.float64).tiny))
    weights = (said - expected) / (1 + DISPERSION * expected) * learned * window_learned[tally.pair_window]
    return np.asarray(np.rint(weights * UNIT), dtype=np.int64)


QUASI_SCORE = Weighting(name="quasi-score", rule=_quasi_score)
