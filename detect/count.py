"""The count test: how many of the distinct pairs said are green.

Null: the outputs are independent of the key (given the prompts, whose windows are left out), and the key
is uniformly random and was fixed before. Then the green bits of distinct pairs are independent
Bernoulli(gamma) bits, whatever the text says and however often it repeats itself, and their number is
binomial. Assumes nothing of language. Deduplicated over the whole evidence as in Sander et al.,
"Watermarking makes language models radioactive" (arXiv 2402.14904, section 4); the exact tail in place
of the normal one as in Fernandez et al., "Three bricks" (arXiv 2308.00113, section 3).

A small p says that the outputs depend on the key. It does not say who trained on what, when, or with
what intent; and it is no measure of how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from detect.binomial import green_interval, log10_tail

__all__ = ["CountTest", "count_test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTest:
    """The exact binomial test of a number of green pairs."""

    name: str = "count"
    pairs: int
    """Distinct pairs scored."""
    green: int
    """How many of them are green."""
    z: float
    """The number of green pairs, in standard deviations from the mean."""
    log10_p: float
    """log10 P(Binomial(pairs, gamma) >= green), exact."""
    green_share_low: float
    green_share_high: float
    """Ends of the 95% Clopper-Pearson interval of the green share."""
    decoy_rank: int | None = None
    """Rank of the key among itself and the decoys: 1 is the most green. None where no decoys were drawn."""
    decoys: int = 0


def count_test(green: int, *, pairs: int, k: int, decoy_rank: int | None = None, decoys: int = 0) -> CountTest:
    """Test whether *green* of *pairs* distinct pairs are more than gamma = k/256 explains.

    The null, and what a small p does not say, are in the module's docstring.

    >>> count_test(6615, pairs=24000, k=64).log10_p
    -19.196470544...

    Args:
        green: number of distinct pairs that are green.
        pairs: number of distinct pairs scored.
        k: gamma in units of 1/256.
        decoy_rank: the key's rank among itself and the decoys, if any were drawn.
        decoys: how many were drawn.

    Raises:
        ValueError: *k*, *pairs* or *green* is out of its range.
    """
    sd = math.sqrt(pairs * k / 256 * (1 - k / 256)) if pairs else 0.0
    low, high = green_interval(green, pairs=pairs) if pairs else (0.0, 1.0)
    return CountTest(
        pairs=pairs,
        green=green,
        z=(green - k / 256 * pairs) / sd if sd else 0.0,
        log10_p=log10_tail(green, pairs=pairs, k=k),
        green_share_low=low,
        green_share_high=high,
        decoy_rank=decoy_rank,
        decoys=decoys,
    )
