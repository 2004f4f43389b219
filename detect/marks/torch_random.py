"""PyTorch's random numbers on the CPU, without PyTorch: MT19937, `randperm` and `randint(0, 2)`, bit by bit.

Marks of transformers draw green lists and tables with them. Only the low 32 bits of a seed count there (MT19937's
initialisation, Matsumoto and Nishimura, ACM TOMACS 8, 1998); `randperm` is Fisher and Yates's shuffle with a 32-bit
word modulo what is left. Generators on CUDA differ: a list drawn there is not this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from watermark.kernels import inline, kernel

__all__ = ["green_of_lists", "permutation", "random_bits"]


def random_bits(seed: int, n: int) -> npt.NDArray[np.uint8]:
    """Return ``torch.randint(0, 2, (n,), generator=Generator().manual_seed(seed))``."""
    return _bits(seed & 0xFFFFFFFF, n)


def permutation(seed: int, n: int) -> npt.NDArray[np.int64]:
    """Return ``torch.randperm(n, generator=Generator().manual_seed(seed))``."""
    return _permutation(seed & 0xFFFFFFFF, n)


@inline
def _seeded(state: Any, seed: Any) -> None:
    value = np.uint32(seed)
    state[0] = value
    for i in range(1, 624):
        value = np.uint32(np.uint32(1812433253) * np.uint32(value ^ (value >> np.uint32(30))) + np.uint32(i))
        state[i] = value


@inline
def _twist(state: Any) -> None:
    for i in range(624):
        after = i + 1 if i < 623 else 0
        far = i + 397 if i < 227 else i - 227
        y = np.uint32((state[i] & np.uint32(0x80000000)) | (state[after] & np.uint32(0x7FFFFFFF)))
        low = np.uint32(y & np.uint32(1)) * np.uint32(0x9908B0DF)
        state[i] = state[far] ^ np.uint32(y >> np.uint32(1)) ^ np.uint32(low)


@inline
def _tempered(word: Any) -> Any:
    y = np.uint32(word)
    y = np.uint32(y ^ np.uint32(y >> np.uint32(11)))
    y = np.uint32(y ^ np.uint32(np.uint32(y << np.uint32(7)) & np.uint32(0x9D2C5680)))
    y = np.uint32(y ^ np.uint32(np.uint32(y << np.uint32(15)) & np.uint32(0xEFC60000)))
    return np.uint32(y ^ np.uint32(y >> np.uint32(18)))


@kernel
def _bits(seed: int, n: int) -> npt.NDArray[np.uint8]:
    state = np.empty(624, np.uint32)
    _seeded(state, seed)
    out = np.empty(n, np.uint8)
    used = 624
    for i in range(n):
        if used == 624:
            _twist(state)
            used = 0
        out[i] = np.uint8(_tempered(state[used]) & np.uint32(1))
        used += 1
    return out


@kernel
def _permutation(seed: int, n: int) -> npt.NDArray[np.int64]:
    state = np.empty(624, np.uint32)
    _seeded(state, seed)
    out = np.arange(n)
    used = 624
    for i in range(n - 1):
        if used == 624:
            _twist(state)
            used = 0
        j = i + np.int64(_tempered(state[used]) % np.uint32(n - i))
        used += 1
        out[i], out[j] = out[j], out[i]
    return out


@kernel
def green_of_lists(
    seeds: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.uint32],
    vocabulary: int,
    size: int,
) -> npt.NDArray[np.bool_]:
    """Return which tokens are among the first *size* of each seed's permutation of the vocabulary.

    Args:
        seeds: (m,).
        starts: (m + 1,): list i is asked about ``tokens[starts[i] : starts[i + 1]]``.
        tokens: (n,); those beyond the vocabulary are not green.
        vocabulary: V.
        size: how many are green.

    Returns:
        bool (n,).
    """
    out = np.zeros(tokens.shape[0], np.bool_)
    state = np.empty(624, np.uint32)
    order = np.empty(vocabulary, np.int32)
    # The list that a token was last green in: nothing has to be cleared between lists.
    last = np.full(vocabulary, -1, np.int64)
    for m in range(seeds.shape[0]):
        for v in range(vocabulary):
            order[v] = v
        _seeded(state, seeds[m])
        used = 624
        for i in range(min(size, vocabulary - 1)):
            if used == 624:
                _twist(state)
                used = 0
            # A remainder by float64 division, faster than by integers: exact for 32-bit numbers, whose quotient lies
            # at least 2^-32 of itself below the next whole number.
            word = np.int64(_tempered(state[used]))
            j = i + word - (vocabulary - i) * np.int64(np.float64(word) / np.float64(vocabulary - i))
            used += 1
            chosen = order[j]
            order[j] = order[i]
            last[chosen] = m
        for p in range(starts[m], starts[m + 1]):
            out[p] = tokens[p] < vocabulary and last[tokens[p]] == m
    return out
