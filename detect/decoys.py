"""Decoy keys: keys of the same derivation that nobody served, to hold the real one against.

Under the null hypothesis the real key and the decoys are exchangeable, so the real key's rank among
B + 1 is uniform. The rank is a control of the whole chain, not a tail: 999 decoys can't say less than 0.001.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from watermark.errors import UsageError
from watermark.keys import Params, ScopeKeys, Secret, scope_key
from watermark.prf import LANES

__all__ = ["DECOYS", "decoy_words", "decoy_words_of", "random_words"]

#: How many decoy keys a test draws unless told otherwise.
DECOYS = 999

_LABEL = b"taggant/1/decoy"


def decoy_words(scope: ScopeKeys, *, count: int = DECOYS, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Derive the lane keys of *count* decoy roots for the same scope name and activation.

    Decoy root i is SHA-256("taggant/1/decoy" + le64(seed) + le64(i)), so that anyone can draw the same.

    Returns:
        uint64 of shape (count, 64, 2).
    """
    return decoy_words_of(scope.name, scope.activation, scope.params, count, seed)


@lru_cache(maxsize=4)
def decoy_words_of(name: str, activation: bytes, params: Params, count: int, seed: int) -> npt.NDArray[np.uint64]:
    """Derive the lane keys of decoy roots for a scope whose own key is not at hand: see `decoy_words`."""
    if not 0 <= seed < 2**64:
        raise UsageError(f"decoy seed: expected 0 to {2**64 - 1}, got {seed}")
    words = np.empty((count, LANES, 2), dtype=np.uint64)
    for i in range(count):
        root = hashlib.sha256(_LABEL + seed.to_bytes(8, "little") + i.to_bytes(8, "little")).digest()
        decoy = ScopeKeys(
            name=name,
            params=params,
            delta=0.0,
            key=scope_key(Secret(root), name),
            activation=activation,
        )
        words[i] = decoy.lane_words()
    words.flags.writeable = False
    return words


def random_words(count: int, *, seed: int) -> npt.NDArray[np.uint64]:
    """Draw the lane keys of *count* scopes uniformly, for calibration: uint64 of shape (count, 64, 2).

    Cheaper than deriving them, and the same under the null, where lane keys are uniform.
    """
    return np.random.default_rng(seed).integers(0, 2**64, (count, LANES, 2), dtype=np.uint64)
