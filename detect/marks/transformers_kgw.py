"""transformers' green lists: `WatermarkingConfig` with seeding_scheme lefthash or selfhash.

**lefthash.** Null: the text is independent of the key, a random number fixed before. The list after a token is the
beginning of a permutation seeded with key * token. It depends on *one* id whatever context_width says, so that is
the window here. Bits of one list are drawn without replacement: `detect.score_law.FixedSizeGreenList` says what that
changes and bounds it. After token 0 the list is the same under every key, and tokens whose seeds coincide under this
key share a list: those windows are left out (a rule that looks at seeds, never at colours), and so are windows that
more than `FixedSizeGreenList.most` tokens are asked about. The law holds if MT19937 behaves as a random function of its
32-bit seed; nobody may have searched those 2^32 keys against the text.

**selfhash.** The seed is the smallest of products over the window and the token itself: which pairs share a seed
depends on the key, so that no deduplication by text makes pairs independent. Only the rank among decoy keys is valid.

A small p says that the text depends on the key. It does not say who wrote it, when, or with what intent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from detect.mark import Mark
from detect.marks.decoy_numbers import decoy_like, fingerprint_of
from detect.marks.torch_random import green_of_lists, permutation
from detect.score_law import FixedSizeGreenList
from detect.tally import Tally
from watermark.errors import UsageError
from watermark.keys import Secret

__all__ = ["DEFAULT_KEY", "TransformersGreenListMark"]

#: hashing_key unless configured: public, and the same for everybody who left it.
DEFAULT_KEY = 15485863

_TABLE = 1_000_003
_WRAP = 2**64 - 1


class TransformersGreenListMark(Mark):
    """The mark of a `WatermarkingConfig`.

    Args:
        key: hashing_key, 8 big-endian bytes.
        vocabulary: the model's ``config.vocab_size``, over which lists are drawn.
        ratio: greenlist_ratio.
        bias: logits added to green tokens.
        scheme: "lefthash" or "selfhash".
        context_width: as configured; lefthash's hash ignores it.
        special_ids: ids that are not to be scored, if any.
        tokenizer: digest of the generating model's tokenizer, if known.
    """

    hashes_prompt = True

    law: FixedSizeGreenList

    def __init__(
        self,
        key: Secret,
        *,
        vocabulary: int,
        ratio: float = 0.25,
        bias: float = 2.0,
        scheme: str = "lefthash",
        context_width: int = 1,
        special_ids: tuple[int, ...] = (),
        tokenizer: str | None = None,
    ) -> None:
        if len(key) != 8:
            raise UsageError(f"hashing_key: expected a number of at most 64 bits, got {8 * len(key)}")
        if scheme not in ("lefthash", "selfhash"):
            raise UsageError("seeding_scheme: expected 'lefthash' or 'selfhash'")
        if not 1 <= context_width <= 64:
            raise UsageError(f"context_width: expected 1 to 64, got {context_width}")
        if not 2 <= vocabulary < 2**26 or not 0 < int(vocabulary * ratio) < vocabulary:
            raise UsageError(
                "expected a vocabulary of 2 to 2^26 tokens and a greenlist_ratio that makes some green and not all, "
                f"got {vocabulary} and {ratio}"
            )
        self._key = key
        self.scheme, self.context_width = scheme, context_width
        self.vocabulary, self.size = vocabulary, int(vocabulary * ratio)
        self.exact = scheme == "lefthash"
        self.window = 1 if self.exact else max(1, context_width - 1)
        self.special_ids = special_ids
        self.tokenizer = tokenizer
        self.strength = float(bias)
        self.name = f"transformers {scheme}"
        self.law = FixedSizeGreenList(self.size, vocabulary)
        self.fingerprint = fingerprint_of(
            {
                "mark": "transformers",
                "seeding_scheme": scheme,
                "context_width": context_width,
                "vocabulary": vocabulary,
                "green": self.size,
                "special_ids": list(special_ids),
                "tokenizer": tokenizer,
            }
        )
        cautions = [
            "MT19937 keeps 32 bits of a seed: whoever has marked text can find the key by search; and lists drawn on a "
            "CUDA device are others than the CPU's, which are scored here"
        ]
        if int.from_bytes(key.reveal(), "big") == DEFAULT_KEY:
            cautions.append(
                "hashing_key is the documented default: the text may depend on it through anybody else who left it so"
            )
        if self.exact:
            cautions.append(
                "lefthash hashes one token whatever context_width is: pairs are deduplicated by (previous token, "
                "token), and windows of token 0, whose list is the same under every key, are left out"
            )
        else:
            cautions.append(
                "selfhash's seed is a minimum over the window: different pairs share it, which ones depends on the "
                "key, and no binomial p-value is right; only the rank among decoy keys is reported"
            )
        self.cautions = tuple(cautions)

    def __repr__(self) -> str:
        return f"TransformersGreenListMark(scheme={self.scheme!r}, context_width={self.context_width})"

    def tested(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return which pairs have a list of their own: lefthash's after other than token 0 and shared seeds.

        Windows with more than `FixedSizeGreenList.most` pairs are left out as well: the law is not known of them.
        """
        inside = tally.tokens < self.vocabulary
        if self.exact:
            previous = tally.windows[:, 0]
            _, number, times = np.unique(_left_seeds(self._number, previous), return_inverse=True, return_counts=True)
            asked = np.bincount(tally.pair_window[inside], minlength=len(previous))
            inside &= ((previous != 0) & (times[number] == 1) & (asked <= self.law.most))[tally.pair_window]
        return np.asarray(inside)

    def scores(self, tally: Tally) -> npt.NDArray[np.bool_]:
        """Return which pairs are green."""
        return self._green(self._number, tally)

    def decoy_sums(self, tally: Tally, weights: npt.NDArray[np.int64], *, count: int, seed: int) -> npt.NDArray[Any]:
        """Return the sums of the green pairs' weights under decoy keys as long as the key, int64 (count, J).

        A permutation of the vocabulary is drawn for each window and each decoy: some 0.1 to 0.3 ms each.
        """
        sums = np.empty((count, weights.shape[1]), dtype=np.int64)
        for i in range(count):
            green = self._green(decoy_like(self._number, "transformers", seed=seed, index=i), tally)
            sums[i] = weights[green].sum(axis=0)
        return sums

    @property
    def _number(self) -> int:
        return int.from_bytes(self._key.reveal(), "big")

    def _green(self, key: int, tally: Tally) -> npt.NDArray[np.bool_]:
        if self.exact:
            seeds = _left_seeds(key, tally.windows[:, 0])[tally.pair_window]
        else:
            seeds = _self_seeds(key, tally, self.context_width)
        order = np.argsort(seeds, kind="stable")
        distinct, starts = np.unique(seeds[order], return_index=True)
        green = np.empty(len(seeds), dtype=np.bool_)
        green[order] = green_of_lists(
            distinct,
            np.append(starts, len(seeds)).astype(np.int64),
            tally.tokens[order],
            self.vocabulary,
            self.size,
        )
        return green


def _left_seeds(key: int, previous: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return the 32 bits that count of key * token mod (2^64 - 1)."""
    return np.array([(key * int(token) % _WRAP) & 0xFFFFFFFF for token in previous], dtype=np.uint32)


def _self_seeds(key: int, tally: Tally, context_width: int) -> npt.NDArray[np.uint32]:
    """Return the 32 bits that count of min(key * a * b) mod (2^64 - 1), a of the window's ids, b of the token."""
    table = permutation(key, _TABLE) + 1
    own = table[tally.tokens % _TABLE]
    number = np.array([key & _WRAP], dtype=np.uint64).view(np.int64)[0]
    with np.errstate(over="ignore"):
        seed = number * own * own
        for back in range(1, context_width):
            ids = tally.windows[:, -back][tally.pair_window]
            seed = np.minimum(seed, number * table[ids % _TABLE] * own)
        low = np.where(seed < 0, seed - 1, seed)  # A negative number mod (2^64 - 1) is it + 2^64 - 1.
    return np.asarray((low & np.int64(0xFFFFFFFF)).astype(np.uint32))
