"""The integers of `watermark.prf` in PyTorch, on any device that has int64.

PyTorch has no complete uint64, so a word is its 64 bits in an int64. Addition, multiplication, exclusive
or and left shift are the same on either; a logical right shift is an arithmetic one with the copies of the
sign masked off; the only comparison that the suite needs, ``u < k * 2^56``, is one of top bytes.

Every function is made of elementwise operations on tensors of known shape: none waits for the device, and
all can be captured in a graph.
"""

from __future__ import annotations

import torch

from watermark.prf import LANES, MAX_WINDOW

__all__ = ["is_green", "lane", "siphash24", "split_mix", "split_mix_steps", "to_signed", "uniform"]

_M64 = 2**64


def to_signed(word: int) -> int:
    """Return the int64 whose bits are those of the 64-bit *word*.

    >>> to_signed(2**64 - 1), to_signed(5)
    (-1, 5)
    """
    return (word % _M64) - _M64 if word % _M64 >= _M64 // 2 else word % _M64


_GOLDEN = to_signed(0x9E3779B97F4A7C15)
_MIX_1 = to_signed(0xBF58476D1CE4E5B9)
_MIX_2 = to_signed(0x94D049BB133111EB)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _rotate(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x << bits) | _shift_right(x, 64 - bits)


State = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _sip_rounds(state: State, count: int) -> State:
    v0, v1, v2, v3 = state
    for _ in range(count):
        v0 = v0 + v1
        v2 = v2 + v3
        v1 = _rotate(v1, 13) ^ v0
        v3 = _rotate(v3, 16) ^ v2
        v0 = _rotate(v0, 32)
        v2 = v2 + v1
        v0 = v0 + v3
        v1 = _rotate(v1, 17) ^ v2
        v3 = _rotate(v3, 21) ^ v0
        v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def siphash24(
    k0: torch.Tensor, k1: torch.Tensor, windows: torch.Tensor, *, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Hash each window with SipHash-2-4.

    Args:
        k0: int64 bit patterns of shape (n,) or (), SipHash's first key word of each row.
        k1: the second.
        windows: int64 of shape (n, w), ids 0..2^32 - 1, oldest first, w = 0..8.
        lengths: int64 of shape (n,), 0..w: row i's window is its first ``lengths[i]`` ids, and what
            follows is not looked at. By default every window is w ids.

    Returns:
        int64 bit patterns of shape (n,).

    Raises:
        ValueError: the windows are not as above.
    """
    if windows.dtype != torch.int64 or windows.ndim != 2 or windows.shape[1] > MAX_WINDOW:
        raise ValueError(f"windows are int64 of shape (n, w), w = 0..8; got {windows.dtype} of {tuple(windows.shape)}")
    n, width = windows.shape
    if lengths is None:
        lengths = torch.full((n,), width, dtype=torch.int64, device=windows.device)
    k0, k1 = k0.expand(n), k1.expand(n)
    state = (
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    )
    last = lengths >> 1
    nothing = torch.zeros((n,), dtype=torch.int64, device=windows.device)
    for block_index in range(width // 2 + 1):
        block = nothing
        for half in range(2):
            place = 2 * block_index + half
            if place < width:
                block = block | torch.where(place < lengths, windows[:, place] << (32 * half), nothing)
        # The last block holds the odd id, if there is one, and the length in bytes in its highest byte.
        block = torch.where(last == block_index, block | (lengths << 58), block)
        v0, v1, v2, v3 = state
        w0, w1, w2, w3 = _sip_rounds((v0, v1, v2, v3 ^ block), 2)
        after = (w0 ^ block, w1, w2, w3)
        if block_index == 0:  # Every message has a first block.
            state = after
        else:
            v0, v1, v2, v3 = (torch.where(block_index <= last, new, old) for new, old in zip(after, state, strict=True))
            state = (v0, v1, v2, v3)
    v0, v1, v2, v3 = state
    v0, v1, v2, v3 = _sip_rounds((v0, v1, v2 ^ 0xFF, v3), 4)
    return v0 ^ v1 ^ v2 ^ v3


def lane(windows: torch.Tensor, *, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Return the public lane, 0..63, of each window (as in `siphash24`): int64 of shape (n,)."""
    zero = torch.zeros((), dtype=torch.int64, device=windows.device)
    return siphash24(zero, zero, windows, lengths=lengths) & (LANES - 1)


def split_mix_steps(tokens: torch.Tensor) -> torch.Tensor:
    """Return what `split_mix` adds to a seed at each of *tokens*, int64: int64 bit patterns of the same shape."""
    return (tokens + 1) * _GOLDEN


def split_mix(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return SplitMix64's output for each state of *seeds* at each of *steps* (`split_mix_steps`), broadcast."""
    z = seeds + steps
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def uniform(k0: torch.Tensor, k1: torch.Tensor, windows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return ``u(key, window, token)`` of each pair.

    Args:
        k0: int64 bit patterns of shape (n,) or (), the first word of each pair's lane key.
        k1: the second.
        windows: int64 of shape (n, h), h = 0..8.
        tokens: int64 of shape (n,), 0..2^32 - 1.

    Returns:
        int64 bit patterns of shape (n,).
    """
    return split_mix(siphash24(k0, k1, windows), split_mix_steps(tokens))


def is_green(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return ``u < k * 2^56`` for int64 bit patterns *u* and k = 1..255 (broadcast): bool."""
    return _shift_right(u, 56) < k
