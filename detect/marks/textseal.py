"""TextSeal's Gumbel-max mark (package textseal 0.0.5): a linear hash with 8,191 values.

Null: the text is independent of the key, a random number fixed before. A pair's score is -ln(1 - u), u the hash over
8,191. Exp(1) is what the scheme's p-values assume; but the hash is linear before its one shift, keys correlate (keys
76 apart by -0.30, PEERS), and distinct pairs do not have independent scores. Only the rank among decoy keys is valid:
the real key and keys drawn like it are exchangeable. It wants a key drawn at random, not the default 42.

A small p says that the text depends on the key. It does not say who wrote it, when, or with what intent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detect.mark import Mark
from detect.marks.decoy_numbers import decoy_like, fingerprint_of
from detect.score_law import Exponential
from detect.tally import Tally
from watermark.errors import UsageError
from watermark.kernels import kernel
from watermark.keys import Secret

__all__ = ["DEFAULT_KEY", "MAX_WIDTH", "TextSealGumbelMark", "hashes"]

FloatArray = npt.NDArray[np.float64]

#: secret_key unless configured.
DEFAULT_KEY = 42

#: The hash has a constant for each of ten positions.
MAX_WIDTH = 10

#: The hash's constants: one a position of the window, the token's, the key's, and the product of the two mixing ones.
_PLACES = np.array(
    [10000019, 10000247, 10000439, 10000643, 10000747, 10000867, 10000993, 10001213, 10001357, 10001501], np.int64
)
_TOKEN = np.int64(100000007)
_KEY = np.int64(500001713)
_MIX = np.int64(15485863 * 40499)
_VALUES = 8191

#: -ln(1 - u) of each hash value, u rounded to float32 as the package has it.
_SCORES = -np.log1p(-(np.arange(_VALUES, dtype=np.float32) / np.float32(_VALUES)).astype(np.float64))


class TextSealGumbelMark(Mark):
    """The mark of TextSeal's `WatermarkConfig` with watermark_type gumbelmax and method uniform.

    Args:
        key: secret_key (with the source's number added, where sources have their own), 8 big-endian bytes.
        ngram: ids hashed before the token, 1 to 10.
        special_ids: ids that are not to be scored, if any.
        tokenizer: digest of the generating model's tokenizer, if known.
    """

    exact = False

    def __init__(
        self,
        key: Secret,
        *,
        ngram: int = 1,
        special_ids: tuple[int, ...] = (),
        tokenizer: str | None = None,
    ) -> None:
        if len(key) != 8:
            raise UsageError(f"TextSeal's secret_key: expected a number of at most 64 bits, got {8 * len(key)}")
        if not 1 <= ngram <= MAX_WIDTH:
            raise UsageError(f"ngram: expected 1 to {MAX_WIDTH}, got {ngram}")
        self._key = key
        self.window = ngram
        self.special_ids = special_ids
        self.tokenizer = tokenizer
        self.name = "textseal gumbel"
        self.law = Exponential()
        self.fingerprint = fingerprint_of(
            {"mark": "textseal", "ngram": ngram, "special_ids": list(special_ids), "tokenizer": tokenizer}
        )
        cautions = [
            "the hash has 13 bits and is linear: scores of distinct pairs are not independent, and a text of one key "
            "shows under keys at certain distances; only the rank among decoy keys is reported"
        ]
        if int.from_bytes(key.reveal(), "big") < 2**31:
            cautions.append(
                "secret_key is a small number: the rank holds for a key that was drawn at random among numbers of its "
                "length, not for one that somebody chose (42 is the package's default)"
            )
        self.cautions = tuple(cautions)

    def __repr__(self) -> str:
        return f"TextSealGumbelMark(ngram={self.window})"

    def tested(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return all pairs."""
        return np.ones(len(tally.tokens), dtype=np.bool_)

    def scores(self, tally: Tally) -> FloatArray:
        """Return -ln(1 - u)."""
        return self._scores(int.from_bytes(self._key.reveal(), "big"), tally)

    def decoy_sums(self, tally: Tally, weights: npt.NDArray[np.int64], *, count: int, seed: int) -> FloatArray:
        """Return the sums of weighted scores under decoy keys as long as the key."""
        columns = np.asarray(weights, dtype=np.float64)
        sums = np.empty((count, weights.shape[1]))
        own = int.from_bytes(self._key.reveal(), "big")
        for i in range(count):
            sums[i] = self._scores(decoy_like(own, "textseal", seed=seed, index=i), tally) @ columns
        return sums

    def _scores(self, key: int, tally: Tally) -> FloatArray:
        signed = key - 2**64 if key >= 2**63 else key
        return np.asarray(_SCORES[hashes(signed, tally.windows, tally.pair_window, tally.tokens)])


@kernel
def hashes(
    key: int,
    windows: npt.NDArray[np.uint32],
    pair_window: npt.NDArray[np.int64],
    tokens: npt.NDArray[np.uint32],
) -> npt.NDArray[np.int64]:
    """Return the hash value of each pair, 0..8190: windows (m, h), index of the window (n,), tokens (n,) to (n,)."""
    m, h = windows.shape
    sums = np.empty(m, np.int64)
    for i in range(m):
        total = np.int64(0)
        for j in range(h):
            total += np.int64(windows[i, j]) * _PLACES[j]
        sums[i] = total + _KEY * np.int64(key)
    out = np.empty(tokens.shape[0], np.int64)
    for i in range(tokens.shape[0]):
        value = (sums[pair_window[i]] + _TOKEN * np.int64(tokens[i])) * _MIX
        out[i] = (value ^ (value >> 13)) % _VALUES
    return out
