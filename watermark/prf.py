"""The keyed function `sipmix-v1`, written to be read: this file is the specification.

Everything in Taggant rests on one function, ``u(key, window, token) -> uint64``::

    window     the h token ids before the one being chosen, oldest first, each a little-endian uint32
    lane       SipHash-2-4(key = 16 zero bytes, window) mod 64          public: needs no secret
    seed       SipHash-2-4(lane key, window)                            64 bits
    u(v)       the SplitMix64 output for state `seed` at index v
    green      u(v) < k * 2^56, k = 1..255, so that gamma = k/256 exactly

SipHash-2-4 is a pseudorandom function with a 128-bit key (Aumasson and Bernstein, "SipHash: a fast
short-input PRF", INDOCRYPT 2012, section 2), applied to windows, so that neighbouring keys and windows
share nothing. SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014, figure 17, with Stafford's Mix13 constants) expands one window's seed over the vocabulary.
It is not cryptographic: some hundred known colours of one window determine that window's list by a
search over 2^64 seeds, and no other window's, and no key.

The suite never changes; a change is a new name. `watermark.kernels` computes the same integers fast,
and `tests/vectors/` holds them, with the published vectors of both parts among them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LANES", "MAX_WINDOW", "SUITE", "green_below", "key_words", "lane", "row", "siphash24", "uniform"]

SUITE = "sipmix-v1"

#: Number of lanes that windows fall into.
LANES = 64

#: The widest window that the suite defines.
MAX_WINDOW = 8

Windows = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def key_words(key: bytes) -> tuple[int, int]:
    """Return SipHash's two key words of a 16-byte *key*: k0 and k1, each little-endian.

    Raises:
        ValueError: *key* is not 16 bytes long.
    """
    if len(key) != 16:
        raise ValueError(f"a lane key has 16 bytes, got {len(key)}")
    return int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")


def _rotate(x: Words, bits: int) -> Words:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _sip_round(v0: Words, v1: Words, v2: Words, v3: Words) -> tuple[Words, Words, Words, Words]:
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


def siphash24(key: bytes, windows: Windows) -> Words:
    """Hash each row of *windows* with SipHash-2-4.

    Args:
        key: 16 bytes.
        windows: uint32 of shape (n, h), h = 0..8; a row is the message of 4h bytes, little-endian.

    Returns:
        uint64 of shape (n,).

    Raises:
        ValueError: the key or the shape is not as above.
    """
    windows = _checked(windows)
    n, h = windows.shape
    k0, k1 = (np.uint64(word) for word in key_words(key))
    v0 = np.full(n, k0 ^ np.uint64(0x736F6D6570736575))
    v1 = np.full(n, k1 ^ np.uint64(0x646F72616E646F6D))
    v2 = np.full(n, k0 ^ np.uint64(0x6C7967656E657261))
    v3 = np.full(n, k1 ^ np.uint64(0x7465646279746573))
    ids = windows.astype(np.uint64)
    # Two ids fill a 64-bit block. The last block holds the odd id, if there is one, and the message's
    # length in bytes modulo 256 in its highest byte.
    blocks = [ids[:, i] | (ids[:, i + 1] << np.uint64(32)) for i in range(0, h - 1, 2)]
    last = np.full(n, np.uint64(4 * h) << np.uint64(56))
    blocks.append(last | ids[:, h - 1] if h % 2 else last)
    for block in blocks:
        v3 = v3 ^ block
        for _ in range(2):
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        v0 = v0 ^ block
    v2 = v2 ^ np.uint64(0xFF)
    for _ in range(4):
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    return np.asarray(v0 ^ v1 ^ v2 ^ v3)


def split_mix(seeds: Words, tokens: npt.NDArray[np.uint32]) -> Words:
    """Return SplitMix64's output for each state of *seeds* at each index of *tokens* (broadcast)."""
    z = seeds + (tokens.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return np.asarray(z ^ (z >> np.uint64(31)))


def lane(windows: Windows) -> npt.NDArray[np.uint8]:
    """Return the public lane, 0..63, of each window: uint32 of shape (n, h) to uint8 of shape (n,)."""
    return (siphash24(bytes(16), windows) % np.uint64(LANES)).astype(np.uint8)


def uniform(lane_key: bytes, windows: Windows, tokens: npt.NDArray[np.uint32]) -> Words:
    """Return ``u(key, window, token)`` of each pair.

    Args:
        lane_key: 16 bytes, the key of the lane that the windows fall into (any 16 bytes here).
        windows: uint32 of shape (n, h), h = 0..8.
        tokens: uint32 of shape (n,).

    Returns:
        uint64 of shape (n,).

    >>> import numpy as np
    >>> windows = np.array([[7, 8]], dtype=np.uint32)
    >>> [hex(u) for u in uniform(bytes(range(16)), windows, np.array([42], dtype=np.uint32)).tolist()]
    ['0xe28b07f9fd564e3a']
    """
    return split_mix(siphash24(lane_key, windows), tokens)


def row(lane_key: bytes, window: npt.NDArray[np.uint32], vocab_size: int) -> Words:
    """Return ``u`` for the whole vocabulary after one *window* (h,): uint64 of shape (vocab_size,)."""
    seed = siphash24(lane_key, np.asarray(window, dtype=np.uint32)[None, :])
    return split_mix(seed, np.arange(vocab_size, dtype=np.uint32))


def green_below(k: int) -> int:
    """Return the bound under which ``u`` is green for gamma = k/256.

    Raises:
        ValueError: k is not in 1..255.
    """
    if not 1 <= k <= 255:
        raise ValueError(f"gamma is k/256 with k from 1 to 255, got k = {k}")
    return k << 56


def _checked(windows: Windows) -> Windows:
    windows = np.asarray(windows)
    if windows.dtype != np.uint32 or windows.ndim != 2 or windows.shape[1] > MAX_WINDOW:
        raise ValueError(f"windows are uint32 of shape (n, h), h = 0..8; got {windows.dtype} of {windows.shape}")
    return windows
