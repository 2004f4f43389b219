"""The integers of `watermark.prf`, fast: every compiled kernel that hashes, in one file.

They live together because Numba's disk cache does not see an edit of another file that a cached kernel
calls: it would go on returning the old integers. All release the GIL and are cached on disk; where the
cache cannot be written they are compiled anew in each process.

Arrays of keys are uint64 of shape (64, 2): the two SipHash words of each lane's key. Bounds are uint64
of shape (64,): a token is green in lane j when ``u < bounds[j]``. Shapes: B rows, V vocabulary, h window,
n pairs, m windows, K keys, J weight vectors.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as nb
import numpy as np
import numpy.typing as npt

__all__ = [
    "CACHE",
    "add_to_green",
    "add_to_green_half",
    "green",
    "green_sums",
    "holds_any",
    "inline",
    "kept_pairs",
    "kernel",
    "lanes",
    "row",
    "rows",
    "seeds",
    "signed_sums",
    "uniform",
    "window_hashes",
]

F = TypeVar("F", bound=Callable[..., Any])

Words = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.uint32]


def _cache_is_writable() -> bool:
    """Tell whether Numba can write its cache: beside this file, or where NUMBA_CACHE_DIR says."""
    folder = os.environ.get("NUMBA_CACHE_DIR") or os.path.join(os.path.dirname(__file__), "__pycache__")
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


#: Whether kernels are cached on disk.
CACHE = _cache_is_writable()


def kernel(function: F) -> F:
    """Compile *function* with Numba: no GIL, cached on disk where the disk allows."""
    return cast("F", nb.njit(function, nogil=True, cache=CACHE, boundscheck=False, error_model="numpy"))


def inline(function: F) -> F:
    """Compile *function* into the kernels that call it, which are in its own file."""
    return cast("F", nb.njit(function, nogil=True, inline="always", error_model="numpy"))


_U = np.uint64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SIP_0 = np.uint64(0x736F6D6570736575)
_SIP_1 = np.uint64(0x646F72616E646F6D)
_SIP_2 = np.uint64(0x6C7967656E657261)
_SIP_3 = np.uint64(0x7465646279746573)
_FF = np.uint64(0xFF)
_ONE = np.uint64(1)
_R = {bits: (np.uint64(bits), np.uint64(64 - bits)) for bits in (13, 16, 17, 21, 32)}
_13, _51 = _R[13]
_16, _48 = _R[16]
_17, _47 = _R[17]
_21, _43 = _R[21]
_32, _ = _R[32]
_30, _27, _31, _56 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(56)
_LANE_MASK = np.uint64(63)
_CODE_MASK = np.uint64(4095)

#: Tokens that the kernels of a row take at a time, and what SplitMix64's state gains on the way through them: a
#: table in the first cache is faster than the product (v + 1) * GOLDEN, which is three multiplications without AVX-512.
_CHUNK = 1024
_STEPS = np.arange(_CHUNK, dtype=np.uint64) * _GOLDEN


@inline
def _round(v0, v1, v2, v3):
    v0 += v1
    v2 += v3
    v1 = ((v1 << _13) | (v1 >> _51)) ^ v0
    v3 = ((v3 << _16) | (v3 >> _48)) ^ v2
    v0 = (v0 << _32) | (v0 >> _32)
    v2 += v1
    v0 += v3
    v1 = ((v1 << _17) | (v1 >> _47)) ^ v2
    v3 = ((v3 << _21) | (v3 >> _43)) ^ v0
    v2 = (v2 << _32) | (v2 >> _32)
    return v0, v1, v2, v3


@inline
def _sip(k0, k1, ids, start, h):
    """SipHash-2-4 of the h ids that begin at ids[start]."""
    v0 = k0 ^ _SIP_0
    v1 = k1 ^ _SIP_1
    v2 = k0 ^ _SIP_2
    v3 = k1 ^ _SIP_3
    for i in range(h // 2):
        block = _U(ids[start + 2 * i]) | (_U(ids[start + 2 * i + 1]) << _32)
        v3 ^= block
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= block
    block = _U(4 * h) << _56
    if h % 2 == 1:
        block |= _U(ids[start + h - 1])
    v3 ^= block
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= block
    v2 ^= _FF
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@inline
def _mix(seed, token):
    """SplitMix64's output for state `seed` at index `token`."""
    z = seed + (_U(token) + _ONE) * _GOLDEN
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@kernel
def lanes(windows: Ids) -> npt.NDArray[np.uint8]:
    """Return the public lane of each window: (n, h) to (n,)."""
    n, h = windows.shape
    flat = windows.reshape(n * h)
    out = np.empty(n, np.uint8)
    for i in range(n):
        out[i] = np.uint8(_sip(_U(0), _U(0), flat, i * h, h) & _LANE_MASK)
    return out


@inline
def _sip_end(v0, v1, v2, v3, end):
    """SipHash-2-4's last block and what follows it."""
    v3 ^= end
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= end
    v2 ^= _FF
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@inline
def _sip_two(block, end):
    """SipHash-2-4 of two blocks under the zero key: straight code, which LLVM does 8 at a time."""
    v0, v1, v2, v3 = _round(_SIP_0, _SIP_1, _SIP_2, _SIP_3 ^ block)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return _sip_end(v0 ^ block, v1, v2, v3, end)


@kernel
def window_hashes(windows: Ids) -> Words:
    """Return the key-free SipHash-2-4 of each window, whose low 6 bits are its lane: (n, h) to (n,)."""
    n, h = windows.shape
    flat = windows.reshape(n * h)
    out = np.empty(n, np.uint64)
    # The widths that are used have code of their own, which takes a third of the time.
    if h == 1:
        for i in range(n):
            out[i] = _sip_end(_SIP_0, _SIP_1, _SIP_2, _SIP_3, (_U(4) << _56) | _U(flat[i]))
    elif h == 2:
        for i in range(n):
            out[i] = _sip_two(_U(flat[2 * i]) | (_U(flat[2 * i + 1]) << _32), _U(8) << _56)
    elif h == 3:
        for i in range(n):
            block = _U(flat[3 * i]) | (_U(flat[3 * i + 1]) << _32)
            out[i] = _sip_two(block, (_U(12) << _56) | _U(flat[3 * i + 2]))
    else:
        for i in range(n):
            out[i] = _sip(_U(0), _U(0), flat, i * h, h)
    return out


@kernel
def kept_pairs(ids: Ids, valid: npt.NDArray[np.bool_], h: int, last: np.uint64) -> tuple[Words, Ids]:
    """Return the pairs at valid positions whose window's key-free hash is at most *last*, in the order of positions.

    Args:
        ids: (n,).
        valid: which positions' windows are whole, (n,); none of the first h.
        h: ids of a window.
        last: the largest hash that is kept.

    Returns:
        The windows' hashes, (k,); and their ids with the token's as the last, (k, h + 1).
    """
    n = ids.shape[0]
    hashes = np.empty(_CHUNK, np.uint64)
    kept_hashes = np.empty(n, np.uint64)
    places = np.empty(n, np.uint32)
    kept = 0
    for start in range(h, n, _CHUNK):
        count = min(_CHUNK, n - start)
        back = ids[start - h : start - h + count]
        if h == 1:
            for i in range(count):
                hashes[i] = _sip_end(_SIP_0, _SIP_1, _SIP_2, _SIP_3, (_U(4) << _56) | _U(back[i]))
        elif h == 2:
            next_1 = ids[start - 1 : start - 1 + count]
            for i in range(count):
                hashes[i] = _sip_two(_U(back[i]) | (_U(next_1[i]) << _32), _U(8) << _56)
        elif h == 3:
            next_1 = ids[start - 2 : start - 2 + count]
            next_2 = ids[start - 1 : start - 1 + count]
            for i in range(count):
                hashes[i] = _sip_two(_U(back[i]) | (_U(next_1[i]) << _32), (_U(12) << _56) | _U(next_2[i]))
        else:
            for i in range(count):
                hashes[i] = _sip(_U(0), _U(0), ids, start + i - h, h)
        for i in range(count):
            kept_hashes[kept] = hashes[i]
            places[kept] = np.uint32(start + i)
            # No branch: which windows are kept is as good as random.
            kept += valid[start + i] & (hashes[i] <= _U(last))
    pairs = np.empty((kept, h + 1), np.uint32)
    for i in range(kept):
        place = np.int64(places[i])
        for d in range(h + 1):
            pairs[i, d] = ids[place - h + d]
    return kept_hashes[:kept].copy(), pairs


@kernel
def seeds(keys: Words, windows: Ids, window_lanes: npt.NDArray[np.uint8]) -> Words:
    """Return each window's seed under its lane's key: keys (64, 2), windows (n, h), lanes (n,) to (n,)."""
    n, h = windows.shape
    flat = windows.reshape(n * h)
    out = np.empty(n, np.uint64)
    for i in range(n):
        lane = window_lanes[i]
        out[i] = _sip(keys[lane, 0], keys[lane, 1], flat, i * h, h)
    return out


@kernel
def uniform(k0: int, k1: int, windows: Ids, tokens: Ids) -> Words:
    """Return ``u`` of each pair under one key: windows (n, h), tokens (n,) to (n,)."""
    n, h = windows.shape
    flat = windows.reshape(n * h)
    out = np.empty(n, np.uint64)
    for i in range(n):
        out[i] = _mix(_sip(_U(k0), _U(k1), flat, i * h, h), tokens[i])
    return out


@kernel
def row(k0: int, k1: int, window: Ids, vocab_size: int) -> Words:
    """Return ``u`` for the whole vocabulary after one window: (h,) to (vocab_size,)."""
    seed = _sip(_U(k0), _U(k1), window, 0, window.shape[0])
    out = np.empty(vocab_size, np.uint64)
    for v in range(vocab_size):
        out[v] = _mix(seed, v)
    return out


@kernel
def green(
    window_seeds: Words, window_bounds: Words, pair_window: npt.NDArray[np.int64], tokens: Ids
) -> npt.NDArray[np.bool_]:
    """Return whether each pair is green: seeds (m,), bounds (m,), index of the window (n,), tokens (n,) to (n,)."""
    n = tokens.shape[0]
    out = np.empty(n, np.bool_)
    for i in range(n):
        w = pair_window[i]
        out[i] = _mix(window_seeds[w], tokens[i]) < window_bounds[w]
    return out


@kernel
def green_sums(
    keys: Words,
    windows: Ids,
    window_lanes: npt.NDArray[np.uint8],
    bounds: Words,
    pair_window: npt.NDArray[np.int64],
    tokens: Ids,
    weights: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return, under each of many keys, the sum of each weight vector over the green pairs.

    Args:
        keys: (K, 64, 2).
        windows: (m, h), with `window_lanes` (m,).
        bounds: (64,).
        pair_window: (n,) index into `windows`.
        tokens: (n,).
        weights: (n, J), integers, so that the sum does not depend on the order of the pairs.

    Returns:
        int64 of shape (K, J).
    """
    m, h = windows.shape
    n, j_count = weights.shape
    flat = windows.reshape(m * h)
    out = np.zeros((keys.shape[0], j_count), np.int64)
    window_seeds = np.empty(m, np.uint64)
    for key in range(keys.shape[0]):
        for w in range(m):
            lane = window_lanes[w]
            window_seeds[w] = _sip(keys[key, lane, 0], keys[key, lane, 1], flat, w * h, h)
        for i in range(n):
            w = pair_window[i]
            # A product with the bit, not a branch: at gamma = 1/4 a branch is mispredicted a quarter of the time.
            bit = np.int64(_mix(window_seeds[w], tokens[i]) < bounds[window_lanes[w]])
            for j in range(j_count):
                out[key, j] += bit * weights[i, j]
    return out


@kernel
def rows(
    windows: Ids, lane_keys: Words, code_key: Words, account_lanes_from: int
) -> tuple[npt.NDArray[np.uint8], Words, npt.NDArray[np.int64]]:
    """Return what a batch's windows decide: their lanes, seeds and code-word positions, in one pass.

    Args:
        windows: (B, h).
        lane_keys: (64, 2).
        code_key: (2,), the key that maps a window to a position.
        account_lanes_from: the first account lane; 64 if there is none.

    Returns:
        lanes (B,), seeds (B,), and positions 0..4095 (B,), -1 where the window is in a fleet lane.
    """
    n, h = windows.shape
    flat = windows.reshape(n * h)
    lanes = np.empty(n, np.uint8)
    seeds = np.empty(n, np.uint64)
    positions = np.full(n, -1, np.int64)
    for i in range(n):
        lane = _sip(_U(0), _U(0), flat, i * h, h) & _LANE_MASK
        lanes[i] = np.uint8(lane)
        seeds[i] = _sip(lane_keys[lane, 0], lane_keys[lane, 1], flat, i * h, h)
        if lane >= account_lanes_from:
            positions[i] = np.int64(_sip(code_key[0], code_key[1], flat, i * h, h) & _CODE_MASK)
    return lanes, seeds, positions


@kernel
def holds_any(windows: Ids, special: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return whether each window holds one of the special ids: (n, h), strictly increasing (s,) to (n,)."""
    n, h = windows.shape
    out = np.zeros(n, np.bool_)
    for i in range(n):
        for j in range(h):
            found = np.searchsorted(special, np.int64(windows[i, j]))
            if found < special.shape[0] and special[found] == np.int64(windows[i, j]):
                out[i] = True
    return out


@kernel
def add_to_green(
    logits: npt.NDArray[np.float32],
    row_seeds: Words,
    row_bounds: Words,
    complemented: npt.NDArray[np.bool_],
    additions: npt.NDArray[np.float32],
    special: npt.NDArray[np.int64],
) -> None:
    """Add to the green logits of each row, in place.

    A row whose addition is 0 is not touched at all, so that it stays bit-identical (-0.0 + 0.0 is 0.0).

    Args:
        logits: float32 of shape (B, V).
        row_seeds: (B,), each row's window's seed.
        row_bounds: (B,), k << 56.
        complemented: (B,), rows whose green list is the other tokens.
        additions: (B,), float32.
        special: (s,), ids below V that keep their logits.
    """
    rows, vocabulary = logits.shape
    kept = np.empty(special.shape[0], np.float32)
    whole = vocabulary // _CHUNK
    for b in range(rows):
        addition = additions[b]
        if addition == 0.0:
            continue
        for i in range(special.shape[0]):
            kept[i] = logits[b, special[i]]
        seed = row_seeds[b]
        # u < k << 56 looks at u's highest byte alone, which the last shift of SplitMix64 leaves as it is.
        k = np.int64(row_bounds[b] >> _56)
        # x + -0.0 is x to the bit, -0.0 among them; x + 0.0 is not.
        on_green = np.float32(-0.0) if complemented[b] else addition
        on_others = addition if complemented[b] else np.float32(-0.0)
        for chunk in range(whole):
            start = chunk * _CHUNK
            state = seed + _U(start + 1) * _GOLDEN
            part = logits[b, start : start + _CHUNK]
            for i in range(_CHUNK):
                z = state + _STEPS[i]
                z = (z ^ (z >> _30)) * _MIX_1
                z = (z ^ (z >> _27)) * _MIX_2
                part[i] += on_green if np.int64(z >> _56) < k else on_others
        for v in range(whole * _CHUNK, vocabulary):
            logits[b, v] += on_green if _mix(seed, v) < row_bounds[b] else on_others
        for i in range(special.shape[0]):
            logits[b, special[i]] = kept[i]


@inline
def _widen_float16(bits):
    """The float32 bits of a float16's bits, NaN and denormals among them (no float arithmetic: FTZ can't spoil it)."""
    sign = (bits & np.uint32(0x8000)) << np.uint32(16)
    exponent = (bits >> np.uint32(10)) & np.uint32(0x1F)
    mantissa = bits & np.uint32(0x3FF)
    if exponent == np.uint32(31):
        return sign | np.uint32(0x7F800000) | (mantissa << np.uint32(13))
    if exponent == np.uint32(0):
        if mantissa == np.uint32(0):
            return sign
        exponent = np.uint32(1)
        while mantissa < np.uint32(0x400):
            mantissa <<= np.uint32(1)
            exponent -= np.uint32(1)  # Wraps below 0; adding 112 brings it back.
        mantissa &= np.uint32(0x3FF)
    return sign | ((exponent + np.uint32(112)) << np.uint32(23)) | (mantissa << np.uint32(13))


@inline
def _round_to_float16(bits):
    """The float16 bits nearest to a float32's bits, ties to even."""
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    if size > np.uint32(0x7F800000):
        return sign | np.uint32(0x7E00)
    if size >= np.uint32(0x47800000):
        return sign | np.uint32(0x7C00)
    if size >= np.uint32(0x38800000):
        odd = (size >> np.uint32(13)) & np.uint32(1)
        return sign | ((size - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13))
    if size < np.uint32(0x33000000):  # Below half of the smallest denormal, 2^-25.
        return sign
    shift = np.uint32(126) - (size >> np.uint32(23))  # 14..24
    mantissa = (size & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    half = np.uint32(1) << (shift - np.uint32(1))
    odd = (mantissa >> shift) & np.uint32(1)
    return sign | ((mantissa + half - np.uint32(1) + odd) >> shift)


@inline
def _round_to_bfloat16(bits):
    """The bfloat16 bits nearest to a float32's bits, ties to even."""
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint32(0x7FC0)
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


@kernel
def add_to_green_half(
    logits: npt.NDArray[np.uint16],
    bfloat16: bool,
    row_seeds: Words,
    row_bounds: Words,
    complemented: npt.NDArray[np.bool_],
    additions: npt.NDArray[np.float32],
    special: npt.NDArray[np.int64],
) -> None:
    """Add to the green logits of half-precision rows, in place: `add_to_green` on 16-bit floats.

    Numba has no float16 on the CPU and NumPy no bfloat16: the rows come as their bits. A green logit is
    widened to float32, added to, and rounded to nearest even, as torch does; others keep their bits.

    Args:
        logits: uint16 of shape (B, V), the bits of float16 or bfloat16.
        bfloat16: which of the two they are.
        row_seeds: (B,).
        row_bounds: (B,).
        complemented: (B,).
        additions: (B,), float32.
        special: (s,), ids below V that keep their logits.
    """
    rows, vocabulary = logits.shape
    kept = np.empty(special.shape[0], np.uint16)
    words = np.empty(_CHUNK, np.uint32)
    values = words.view(np.float32)
    for b in range(rows):
        addition = additions[b]
        if addition == 0.0:
            continue
        for i in range(special.shape[0]):
            kept[i] = logits[b, special[i]]
        seed = row_seeds[b]
        bound = row_bounds[b]
        other = complemented[b]
        for start in range(0, vocabulary, _CHUNK):
            count = min(_CHUNK, vocabulary - start)
            if bfloat16:
                for i in range(count):
                    words[i] = np.uint32(logits[b, start + i]) << np.uint32(16)
            else:
                for i in range(count):
                    words[i] = _widen_float16(np.uint32(logits[b, start + i]))
            for i in range(count):
                values[i] += addition
            if bfloat16:
                for i in range(count):
                    if (_mix(seed, start + i) < bound) != other:
                        logits[b, start + i] = np.uint16(_round_to_bfloat16(words[i]))
            else:
                for i in range(count):
                    if (_mix(seed, start + i) < bound) != other:
                        logits[b, start + i] = np.uint16(_round_to_float16(words[i]))
        for i in range(special.shape[0]):
            logits[b, special[i]] = kept[i]


@kernel
def signed_sums(
    words: npt.NDArray[np.uint8], table: npt.NDArray[np.int64], used: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return, for each code word, the sum of its bytes' entries.

    Args:
        words: (N, B), code words as bytes.
        table: (B, 256), what each value of each byte adds.
        used: indices of the bytes whose entries are not all 0.

    Returns:
        int64 of shape (N,).
    """
    out = np.zeros(words.shape[0], np.int64)
    for j in range(words.shape[0]):
        total = np.int64(0)
        for b in used:
            total += table[b, words[j, b]]
        out[j] = total
    return out
