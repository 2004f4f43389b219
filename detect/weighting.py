"""Weights of pairs, and the rules that make them: by type, nothing that knows a key.

Every test's exact null rests on weights that were fixed without the key. So a test takes no array: it takes `Weights`,
which only a `Weighting` makes, from a `Tally` and a `Reference`, neither of which holds a key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from detect.reference import Reference
from detect.tally import Tally

__all__ = ["Weighting", "Weights"]

Values = npt.NDArray[np.int64]

_MADE_BY_A_WEIGHTING: Final = object()


class Weights:
    """One integer weight a pair, in units of 2^-32. Made by `Weighting.weigh` alone.

    Attributes:
        name: of the weighting.
        values: int64 (n,), read-only.

    Raises:
        TypeError: made in another way.
    """

    __slots__ = ("name", "values")

    def __init__(self, maker: object, *, name: str, values: Values) -> None:
        if maker is not _MADE_BY_A_WEIGHTING:
            raise TypeError(
                "weights are made by a Weighting from a tally and a reference, so that they cannot depend on a key; "
                "an array is not taken"
            )
        self.name: Final = name
        self.values: Final = values
        values.flags.writeable = False

    def __repr__(self) -> str:
        return f"Weights({self.name!r}, {np.count_nonzero(self.values):,} of {len(self.values):,} pairs)"

    def within(self, kept: npt.NDArray[np.bool_]) -> Weights:
        """Return the same weights, 0 outside *kept*: bool (n,), which may not depend on a key's bits either."""
        return Weights(_MADE_BY_A_WEIGHTING, name=self.name, values=np.where(kept, self.values, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """A named rule that gives each pair its weight, from the text and the reference alone."""

    name: str
    rule: Callable[[Tally, Reference | None], Values] = field(repr=False)
    """From a tally, and the reference that it was made with, to int64 (n,) in units of 2^-32."""
    needs_reference: bool = True
    """Whether the tally is to be made with one."""
    needs_positions: bool = False
    """Whether the rule looks at the reference itself, position by position, which a tally on disk has not."""

    def weigh(self, tally: Tally, reference: Reference | None = None) -> Weights:
        """Return the weights of *tally*'s pairs.

        Raises:
            ValueError: the rule wants a reference and there is none, or it does not give one int64 a pair.
        """
        if reference is None and (self.needs_positions or (self.needs_reference and not tally.referenced)):
            raise ValueError(f"the {self.name} test wants a reference")
        values = self.rule(tally, reference)
        if values.dtype != np.int64 or values.shape != tally.tokens.shape:
            raise ValueError(
                f"the {self.name} weighting: expected int64 of shape {tally.tokens.shape}, "
                f"got {values.dtype} of {values.shape}"
            )
        return Weights(_MADE_BY_A_WEIGHTING, name=self.name, values=values.copy())
