"""SynthID-Text as transformers marks with it: `SynthIDTextWatermarkingConfig`.

A pair's score is the mean of *depth* bits, one a key, each looked up in a public table of (usually) 65,536 bits.

Null: the text is independent of the keys, which were drawn at random. The bits are *not* what the scheme's papers take
them for (Nature 634, 2024): window and token enter through one number modulo the table's size, the same for all keys,
so that different pairs share all their bits, and a key only shifts where the table is read. Mean bits are no
Binomial/depth, and for some table seeds any text looks marked under every key. Two p-values hold all the same:

- the *rank* among decoy keys, since the real keys and the decoys are exchangeable;
- `SynthIDMark.log10_key_bound`: given text and table, S = sum_d F(key_d) / depth with F known for all shifts, and the
  keys' shifts are independent and uniform: an exact law of S, and Chernoff's bound of it, far below 1 / (decoys + 1).

Both want keys drawn uniformly; the documentation's example keys were not drawn by anybody. A small p says that the
text depends on the keys. It does not say who wrote it, when, or with what intent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from detect.mark import Mark
from detect.marks.decoy_numbers import decoy_number, fingerprint_of
from detect.marks.torch_random import random_bits
from detect.score_law import BinomialMean
from detect.tally import UNIT, Tally
from watermark.errors import UsageError
from watermark.kernels import kernel
from watermark.keys import Secret

__all__ = ["SynthIDMark", "keys_secret"]

FloatArray = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

_MULTIPLIER = np.uint64(6364136223846793005)
_ONE = np.uint64(1)


class SynthIDMark(Mark):
    """The mark of a `SynthIDTextWatermarkingConfig`.

    Args:
        keys: each 8 little-endian bytes (two's complement), one a layer, joined.
        ngram_len: ids hashed, the token itself among them; 2 or more.
        table_seed: sampling_table_seed.
        table_size: sampling_table_size.
        special_ids: ids that are not to be scored, if any.
        tokenizer: digest of the generating model's tokenizer, if known.
    """

    hashes_prompt = True

    exact = False

    def __init__(
        self,
        keys: Secret,
        *,
        ngram_len: int,
        table_seed: int = 0,
        table_size: int = 2**16,
        special_ids: tuple[int, ...] = (),
        tokenizer: str | None = None,
    ) -> None:
        if len(keys) % 8 or not len(keys):
            raise UsageError("SynthID's keys: expected at least one 64-bit number")
        if not 2 <= ngram_len <= 65:
            raise UsageError(f"ngram_len: expected 2 to 65 (the token and the ids before it), got {ngram_len}")
        if not 2 <= table_size <= 2**24:
            raise UsageError(f"sampling_table_size: expected 2 to 2^24, got {table_size}")
        self._keys = keys
        self.depth = len(keys) // 8
        self.table_seed, self.table_size = table_seed, table_size
        self.window = ngram_len - 1
        self.special_ids = special_ids
        self.tokenizer = tokenizer
        self.name = "transformers synthid"
        self.law = BinomialMean(self.depth)
        self.fingerprint = fingerprint_of(
            {
                "mark": "synthid",
                "ngram_len": ngram_len,
                "depth": self.depth,
                "sampling_table_seed": str(table_seed),
                "sampling_table_size": table_size,
                "special_ids": list(special_ids),
                "tokenizer": tokenizer,
            }
        )
        self._table = random_bits(table_seed, table_size)
        self.cautions = (
            f"the hash is one number modulo {table_size}: pairs share all their bits, ids that differ by {table_size} "
            "are one id, and a fair-coin p-value is wrong; only what compares the key with other keys holds",
            f"a key counts modulo {table_size} only ({self.table_size.bit_length() - 1} bits a layer): the rank is "
            "valid if the keys were drawn at random; keys copied from the documentation were not",
            "a mark by DeepMind's own code since June 2025 is another hash and is not found by this one",
        )

    def __repr__(self) -> str:
        return f"SynthIDMark(depth={self.depth}, ngram_len={self.window + 1})"

    def tested(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return all pairs."""
        return np.ones(len(tally.tokens), dtype=np.bool_)

    def scores(self, tally: Tally) -> FloatArray:
        """Return the mean of each pair's bits."""
        keys = np.frombuffer(self._keys.reveal(), dtype="<u8").astype(np.uint64)
        return _mean_bits(_hashes(tally.windows, tally.pair_window, tally.tokens), keys, self._table)

    def decoy_sums(self, tally: Tally, weights: npt.NDArray[np.int64], *, count: int, seed: int) -> FloatArray:
        """Return the sums of weighted scores under decoy keys, drawn from all that the hash tells apart."""
        hashes = _hashes(tally.windows, tally.pair_window, tally.tokens)
        columns = np.asarray(weights, dtype=np.float64)
        if self._shifts:
            # Only the hash modulo the table's size matters: weights of one value are added first.
            shift = (hashes & np.uint64(self.table_size - 1)).astype(np.int64)
            columns = np.column_stack(
                [np.bincount(shift, weights=column, minlength=self.table_size) for column in columns.T]
            )
            hashes = np.arange(self.table_size, dtype=np.uint64)
        bits = 64 if not self._shifts else self.table_size.bit_length() - 1
        sums = np.empty((count, weights.shape[1]))
        for i in range(count):
            numbers = [
                decoy_number("synthid", seed=seed, index=i * self.depth + j, bits=bits) for j in range(self.depth)
            ]
            sums[i] = _mean_bits(hashes, np.array(numbers, dtype=np.uint64), self._table) @ columns
        return sums

    def log10_key_bound(self, tally: Tally, weights: npt.NDArray[np.int64]) -> float | None:
        """Return a rigorous upper bound of log10 P(S >= the S under the real keys), over random keys alone.

        Text and table are given; each layer's key shifts the table by a uniform number, so that S is the mean of
        *depth* independent draws of F, F(shift) = sum of the weights where the shifted table has a 1 (computed for all
        shifts by a Fourier transform, and taken outward by its rounding). Chernoff's bound of that law. It holds
        however biased the table and however often pairs share their bits.

        Args:
            tally: the pairs.
            weights: int64 (n,), in units of 2^-32; made without the keys.

        Returns:
            log10 of the bound, at most 0; None where the table's size is no power of two.
        """
        if not self._shifts:
            return None
        size = self.table_size
        hashes = _hashes(tally.windows, tally.pair_window, tally.tokens)
        shift = (hashes & np.uint64(size - 1)).astype(np.int64)
        at = np.bincount(shift, weights=weights / UNIT, minlength=size)
        place = (np.arange(size, dtype=np.uint64) * _MULTIPLIER + _ONE) & np.uint64(size - 1)
        table = self._table[place.astype(np.int64)].astype(np.float64)
        sums = np.fft.irfft(np.conj(np.fft.rfft(at)) * np.fft.rfft(table), size)
        slack = 1e-10 * (float(np.abs(at).sum()) + 1e-300)
        statistic = float((weights / UNIT) @ self.scores(tally)) - 2.0 * slack
        centre = float(sums.mean())
        gain = statistic - centre
        sd = float(sums.std()) / math.sqrt(self.depth)
        if gain <= 0.0 or sd == 0.0:
            return 0.0
        deviations = (sums - centre) / self.depth

        def exponent(t: float) -> float:
            x = t * deviations
            top = float(x.max())
            return self.depth * (top + math.log(float(np.exp(x - top).mean()))) - t * gain

        # The exponent is convex in t: any t gives a bound, and thirty bisections of its slope's sign find a good one.
        low, high = 0.0, 60.0 * max(gain / sd, 1.0) / sd
        for _ in range(30):
            middle = 0.5 * (low + high)
            x = middle * deviations
            tilted = np.exp(x - x.max())
            rises = self.depth * float(deviations @ tilted) / float(tilted.sum()) > gain
            low, high = (low, middle) if rises else (middle, high)
        best = exponent(high)
        return min(0.0, (best + 1e-9 * (1.0 + abs(best))) / math.log(10.0))

    @property
    def _shifts(self) -> bool:
        """Whether the table's size is a power of two, so that keys count modulo it."""
        return self.table_size & (self.table_size - 1) == 0


def keys_secret(keys: Sequence[int]) -> Secret:
    """Return keys of 64 bits, signed or not, in the form that `SynthIDMark` takes."""
    return Secret(b"".join((key & (2**64 - 1)).to_bytes(8, "little") for key in keys))


@kernel
def _hashes(
    windows: npt.NDArray[np.uint32], pair_window: npt.NDArray[np.int64], tokens: npt.NDArray[np.uint32]
) -> Words:
    """Return the 64-bit hash of each pair's n-gram: a linear congruential generator fed id by id."""
    m, h = windows.shape
    states = np.empty(m, np.uint64)
    for i in range(m):
        state = np.uint64(1)
        for j in range(h):
            state = (state + np.uint64(windows[i, j])) * _MULTIPLIER + _ONE
        states[i] = state
    out = np.empty(tokens.shape[0], np.uint64)
    for i in range(tokens.shape[0]):
        out[i] = (states[pair_window[i]] + np.uint64(tokens[i])) * _MULTIPLIER + _ONE
    return out


@kernel
def _mean_bits(hashes: Words, keys: Words, table: npt.NDArray[np.uint8]) -> FloatArray:
    """Return the mean over the keys of the table's bits, (n,)."""
    size = table.shape[0]
    power = size & (size - 1) == 0
    mask = np.uint64(size - 1)
    out = np.empty(hashes.shape[0])
    for i in range(hashes.shape[0]):
        ones = 0
        for key in keys:
            number = (hashes[i] + key) * _MULTIPLIER + _ONE
            if power:
                ones += table[np.int64(number & mask)]
            else:
                ones += table[np.int64(number) % size]  # Of a signed number, as torch's: never negative.
        out[i] = ones / keys.shape[0]
    return out
