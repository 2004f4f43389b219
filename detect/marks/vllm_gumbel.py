"""vLLM's native marks: Gumbel-max and dual-key Gumbel-max over `philox4x32-10-v1` (vLLM 0.32 and later).

Null: the text is independent of the key, 64 random bits fixed before. A pair's score is -ln(1 - u), u Philox's uniform
of (key, window, token): Exp(1), and independent over distinct pairs, the pair being what the hash depends on. So S has
a gamma law, and where two keys are mixed that of a sum of two gammas. Rests on Philox4x32-10 being a good random
function (it passes the batteries, Salmon et al., SC 2011) and on nobody having searched its 2^64 keys against the text.

A small p says that the text depends on the key. It does not say who wrote it, when, or with what intent.

The hash, from its published description (PEERS: words 0x574D4358 "WMCX" and 0x574D544B "WMTK"): the window is absorbed
four ids at a time into a Philox state, and the state and the token's number / 4 are the counter of the last call, of
whose four output words the token takes the one at its number mod 4.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.mark import Mark
from detect.marks.decoy_numbers import decoy_number, fingerprint_of
from detect.score_law import DualExponential, Exponential, ScoreLaw
from detect.tally import Tally
from watermark.errors import UsageError
from watermark.kernels import inline, kernel
from watermark.keys import Secret

__all__ = ["DEFAULT_WIDTH", "VllmGumbelMark", "sub_key", "uniforms"]

Ids = npt.NDArray[np.uint32]
FloatArray = npt.NDArray[np.float64]

#: vLLM's context_width unless configured.
DEFAULT_WIDTH = 4

_U = np.uint64
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_2 = np.uint64(2)
_8 = np.uint64(8)
_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_CONTEXT = np.uint64(0x574D4358)
_TOKEN = np.uint64(0x574D544B)


class VllmGumbelMark(Mark):
    """The mark of a server run with ``--watermark-config '{"algorithm": "gumbel", "key": ...}'`` or dual_key_gumbel.

    Positions before which fewer than *width* output tokens stand are left out; vLLM itself scores them with padding.

    Args:
        key: 64 bits, as 8 big-endian bytes.
        width: context_width, 1 or more.
        alpha: the weight of key B where there are two keys; None for the single-key scheme.
        special_ids: ids that are not to be scored, if any.
        tokenizer: digest of the generating model's tokenizer, if known.
    """

    def __init__(
        self,
        key: Secret,
        *,
        width: int = DEFAULT_WIDTH,
        alpha: float | None = None,
        special_ids: tuple[int, ...] = (),
        tokenizer: str | None = None,
    ) -> None:
        if len(key) != 8:
            raise UsageError(f"vLLM's key: expected 64 bits, got {8 * len(key)}")
        if not 1 <= width <= 64:
            raise UsageError(f"context_width: expected 1 to 64 tokens, got {width}")
        if alpha is not None and not 0.0 <= alpha <= 1.0:
            raise UsageError(f"alpha: expected a weight of 0 to 1, got {alpha}")
        self._key = key
        self.alpha = alpha
        self.window = width
        self.special_ids = special_ids
        self.tokenizer = tokenizer
        self.name = "vllm gumbel" if alpha is None else "vllm dual_key_gumbel"
        law: ScoreLaw = Exponential() if alpha is None else DualExponential(alpha)
        self.law = law
        self.fingerprint = fingerprint_of(
            {
                "mark": "vllm",
                "prf": "philox4x32-10-v1",
                "context_width": width,
                "alpha": alpha,
                "special_ids": list(special_ids),
                "tokenizer": tokenizer,
            }
        )
        cautions = [
            "vLLM hashes output tokens alone: score the response without its prompt; greedy decoding, beam search and "
            "requests that opted out are not marked"
        ]
        if width >= 3:
            cautions.append(
                f"context_width {width}: students hardly learn so wide a window, so that finding nothing in a model's "
                "outputs says little; text detection is not concerned"
            )
        self.cautions = tuple(cautions)

    def __repr__(self) -> str:
        return f"VllmGumbelMark(name={self.name!r}, width={self.window})"

    def tested(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return all pairs."""
        return np.ones(len(tally.tokens), dtype=np.bool_)

    def scores(self, tally: Tally) -> FloatArray:
        """Return -ln(1 - u), mixed over the two keys where there are two."""
        return self._scores(int.from_bytes(self._key.reveal(), "big"), tally)

    def decoy_sums(self, tally: Tally, weights: npt.NDArray[np.int64], *, count: int, seed: int) -> FloatArray:
        """Return the sums of weighted scores under decoy keys of 64 bits."""
        sums = np.empty((count, weights.shape[1]))
        columns = np.ascontiguousarray(weights, dtype=np.float64)
        for i in range(count):
            sums[i] = self._scores(decoy_number("vllm", seed=seed, index=i, bits=64), tally) @ columns
        return sums

    def _scores(self, key: int, tally: Tally) -> FloatArray:
        if self.alpha is None:
            return _scores_of(*_words(key), tally)
        first, second = (
            _scores_of(*_words(sub_key(key, b"key_a")), tally),
            _scores_of(*_words(sub_key(key, b"key_b")), tally),
        )
        return np.asarray((1.0 - self.alpha) * first + self.alpha * second)


def sub_key(key: int, label: bytes) -> int:
    """Return the first 8 bytes of SHA-256(label + the key's 8 big-endian bytes); labels are key_a and key_b."""
    return int.from_bytes(hashlib.sha256(label + key.to_bytes(8, "big")).digest()[:8], "big")


def uniforms(key: int, windows: Ids, tokens: Ids) -> npt.NDArray[np.float32]:
    """Return vLLM's uniform of each pair: windows (n, h), tokens (n,) to float32 (n,).

    >>> import numpy as np
    >>> float(uniforms(42, np.array([[1, 2, 3, 4]], np.uint32), np.array([5], np.uint32))[0]) < 1
    True
    """
    states = _states(*_words(key), windows)
    words = _token_words(*_words(key), states, np.arange(len(tokens)), tokens)
    return (((words >> 8).astype(np.float64) + 1.0) / (2**24 + 1)).astype(np.float32)


def _words(key: int) -> tuple[Any, Any]:
    return np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)


def _scores_of(low: Any, high: Any, tally: Tally) -> FloatArray:
    return _pair_scores(low, high, _states(low, high, tally.windows), tally.pair_window, tally.tokens)


@inline
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@kernel
def _states(low: int, high: int, windows: Ids) -> npt.NDArray[np.uint64]:
    """Return the state of each window, uint64 (m, 4) of 32-bit words."""
    m, h = windows.shape
    out = np.empty((m, 4), np.uint64)
    for i in range(m):
        s0, s1, s2, s3 = _CONTEXT, _U(h), _U(0), _U(0)
        for offset in range(0, h, 4):
            b0 = _U(windows[i, offset])
            b1 = _U(windows[i, offset + 1]) if offset + 1 < h else _LOW - _U(1)
            b2 = _U(windows[i, offset + 2]) if offset + 2 < h else _LOW - _U(2)
            b3 = _U(windows[i, offset + 3]) if offset + 3 < h else _LOW - _U(3)
            s0, s1, s2, s3 = _philox(s0 ^ b0, s1 ^ b1, s2 ^ b2, s3 ^ b3, _U(low) ^ _U(offset), _U(high))
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = s0, s1, s2, s3
    return out


@inline
def _token_word(low: Any, high: Any, s0: Any, s1: Any, s2: Any, s3: Any, token: Any) -> Any:
    o0, o1, o2, o3 = _philox(_U(token) >> _2, s0, s1, s2, low ^ s3, high ^ _TOKEN)
    # Picked by shifts, not by branches, which would be mispredicted three times out of four.
    part = _U(token) & _U(3)
    upper = _U(0) - (part >> _U(1))
    pair = ((o0 | (o1 << _32)) & ~upper) | ((o2 | (o3 << _32)) & upper)
    return (pair >> ((part & _U(1)) << _U(5))) & _LOW


@kernel
def _token_words(
    low: int, high: int, states: npt.NDArray[np.uint64], pair_window: npt.NDArray[np.int64], tokens: Ids
) -> Ids:
    """Return the 32-bit word of each pair."""
    n = tokens.shape[0]
    out = np.empty(n, np.uint32)
    for i in range(n):
        w = pair_window[i]
        out[i] = _token_word(_U(low), _U(high), states[w, 0], states[w, 1], states[w, 2], states[w, 3], tokens[i])
    return out


@kernel
def _pair_scores(
    low: int, high: int, states: npt.NDArray[np.uint64], pair_window: npt.NDArray[np.int64], tokens: Ids
) -> FloatArray:
    """Return -ln(1 - u) of each pair, u rounded to float32 as the server's is."""
    n = tokens.shape[0]
    out = np.empty(n)
    for i in range(n):
        w = pair_window[i]
        word = _token_word(_U(low), _U(high), states[w, 0], states[w, 1], states[w, 2], states[w, 3], tokens[i])
        u = np.float32((np.float64(np.int64(word >> _8)) + 1.0) / 16777217.0)
        # 1 - u is exact in float64, since u is a multiple of 2^-48.
        out[i] = -math.log(1.0 - np.float64(u))
    return out
