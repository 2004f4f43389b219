"""The watermark: a keyed green list, biased in a batch of logits.

After a window of h ids, each token of the vocabulary is green with probability gamma, by the keyed
function and nothing else (Kirchenbauer et al., "A watermark for large language models", arXiv
2301.10226, algorithm 2; here membership is an independent bit for each token and not a part of a
permutation, which makes the null distribution of the detector exact). `delta` is added to green logits.

`GreenList` is a pure function of (token ids, key): it counts nothing, since servers call it for samples
that they throw away. Masked logits stay -inf; rows that are not marked stay bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from watermark import kernels
from watermark.errors import UsageError
from watermark.keys import CODE_BITS, ScopeKeys
from watermark.prf import LANES, key_words

__all__ = ["GreenList", "before_temperature"]

#: Accounts whose code words a `GreenList` keeps at once (4 KiB each); a server may see millions.
_KEPT_CODE_WORDS = 4096


def before_temperature(temperature: float) -> float:
    """Return the factor for delta at a hook that runs before the sampling *temperature* divides.

    The mark is a change of the model, which the temperature then divides; but a client must not be
    able to take it away with a temperature of 0.01, so below 1 it is kept whole. Greedy decoding
    (temperature 0) gets delta as it is.

    >>> before_temperature(0.0), before_temperature(0.5), before_temperature(1.5)
    (1.0, 1.0, 1.5)
    """
    return max(temperature, 1.0)


class GreenList:
    """Bias logits towards the green tokens of one scope.

    Args:
        scope: the scope's keys; its params give window, gamma and special ids, and it gives delta.
        min_entropy: leave alone the rows whose next-token distribution, at temperature 1, has less than
            this many bits of entropy (code, tool calls). Detection is unchanged by it.

    Thread-safe after construction.
    """

    def __init__(self, scope: ScopeKeys, *, min_entropy: float = 0.0) -> None:
        if not min_entropy >= 0:
            raise UsageError(f"min_entropy: expected 0 or more bits, got {min_entropy}")
        self.scope = scope
        self.window = scope.params.window
        self.delta = scope.delta
        self.min_entropy = min_entropy
        self._lane_words = scope.lane_words()
        self._bounds = scope.params.bounds()
        self._fleet_lanes = scope.params.fleet_lanes
        self._special = np.array(scope.params.special_ids, dtype=np.int64)
        code_words = np.array(key_words(scope.code_key().reveal()), dtype=np.uint64)
        self._position_words = np.tile(code_words, (LANES, 1))
        self._code_words: dict[str, npt.NDArray[np.bool_]] = {}

    def __repr__(self) -> str:
        return f"GreenList(scope={self.scope.name!r}, delta={self.delta}, min_entropy={self.min_entropy})"

    def bias(
        self,
        logits: npt.NDArray[np.float32],
        windows: npt.NDArray[np.uint32],
        *,
        marked: npt.NDArray[np.bool_] | None = None,
        accounts: Sequence[str | None] | None = None,
        strength: float | npt.NDArray[np.float32] = 1.0,
    ) -> None:
        """Add delta to the green logits of each row, in place.

        Args:
            logits: float32 of shape (B, V), C-contiguous. V may exceed the tokenizer's vocabulary (padding).
            windows: uint32 of shape (B, h), the last h ids of each row's response, oldest first.
            marked: bool of shape (B,), rows to mark; by default all. A row whose response has fewer than
                h ids since its start or its last special id is not to be marked: see `windows_of`.
            accounts: an account id a row, or None. A row without one is left unmarked in account lanes.
            strength: factor on delta, one or one a row (see `before_temperature`).

        Raises:
            ValueError: a shape or dtype is not as above.
        """
        self._check(logits, windows, marked, accounts)
        rows, vocabulary = logits.shape
        windows = np.array(windows, order="C")  # The kernels take neither a slice of columns nor a read-only view.
        additions = np.empty(rows, dtype=np.float32)
        additions[:] = np.float32(self.delta) * np.asarray(strength, dtype=np.float32)
        if marked is not None:
            additions[~marked] = 0.0
        if self.min_entropy > 0:
            additions[~(entropy_bits(logits) >= self.min_entropy)] = 0.0  # A row with NaN is left alone too.
        lanes = kernels.lanes(windows)
        complemented = self._account_rows(windows, lanes, accounts, additions)
        if not additions.any():
            return
        seeds = kernels.seeds(self._lane_words, windows, lanes)
        special = self._special[: self._special.searchsorted(vocabulary)]
        kept = logits[:, special]
        kernels.add_to_green(logits, seeds, self._bounds[lanes], complemented, additions)
        logits[:, special] = kept

    def windows_of(
        self, responses: Sequence[npt.NDArray[np.uint32]]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Return each response's window, (B, h), and whether its next token is to be marked, (B,).

        The first h tokens of a response and the first h after a special id are not: a window lies
        wholly inside one segment.
        """
        h = self.window
        windows = np.zeros((len(responses), h), dtype=np.uint32)
        whole = np.zeros(len(responses), dtype=np.bool_)
        for b, ids in enumerate(responses):
            if len(ids) >= h:
                windows[b] = ids[len(ids) - h :]
                whole[b] = True
        whole &= ~np.isin(windows, self._special).any(axis=1)
        return windows, whole

    def _account_rows(
        self,
        windows: npt.NDArray[np.uint32],
        lanes: npt.NDArray[np.uint8],
        accounts: Sequence[str | None] | None,
        additions: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.bool_]:
        """Return which rows' lists are complemented; takes the addition from rows that lack an account."""
        complemented = np.zeros(len(lanes), dtype=np.bool_)
        in_account_lane = np.flatnonzero(lanes >= self._fleet_lanes)
        if not in_account_lane.size:
            return complemented
        if accounts is None:
            additions[in_account_lane] = 0.0
            return complemented
        positions = self._code_positions(windows)
        for b in in_account_lane.tolist():
            account = accounts[b]
            if account is None:
                additions[b] = 0.0
            else:
                complemented[b] = self._code_word(account)[positions[b]]
        return complemented

    def _code_positions(self, windows: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        hashes = kernels.seeds(self._position_words, windows, np.zeros(len(windows), dtype=np.uint8))
        return (hashes % np.uint64(CODE_BITS)).astype(np.int64)

    def _code_word(self, account: str) -> npt.NDArray[np.bool_]:
        word = self._code_words.get(account)
        if word is None:
            if len(self._code_words) >= _KEPT_CODE_WORDS:
                self._code_words.clear()
            word = self._code_words[account] = self.scope.code_word(account)
        return word

    def _check(
        self,
        logits: npt.NDArray[np.float32],
        windows: npt.NDArray[np.uint32],
        marked: npt.NDArray[np.bool_] | None,
        accounts: Sequence[str | None] | None,
    ) -> None:
        if logits.dtype != np.float32 or logits.ndim != 2 or not logits.flags.carray:
            raise ValueError(
                f"logits: expected writable, contiguous float32 (B, V), got {logits.dtype} of {logits.shape}"
            )
        if windows.dtype != np.uint32 or windows.shape != (logits.shape[0], self.window):
            raise ValueError(
                f"windows: expected uint32 of shape {(logits.shape[0], self.window)}, "
                f"got {windows.dtype} of {windows.shape}"
            )
        rows = logits.shape[0]
        if marked is not None and (marked.dtype != np.bool_ or marked.shape != (rows,)):
            raise ValueError(f"marked: expected bool of shape {(rows,)}, got {marked.dtype} of {marked.shape}")
        if accounts is not None and len(accounts) != rows:
            raise ValueError(f"accounts: expected one a row, {rows}, got {len(accounts)}")


def entropy_bits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the Shannon entropy of each row's softmax, in bits: float32 (B, V) to float64 (B,).

    NaN where a row has no softmax: it is masked as a whole, or holds NaN or +inf.
    """
    with np.errstate(invalid="ignore"):
        z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        weights = np.exp(z)
        total = weights.sum(axis=1)
        # A masked logit has weight 0 and would give 0 * -inf.
        mean = np.where(weights > 0, weights * np.where(np.isfinite(z), z, 0.0), 0.0).sum(axis=1) / total
    return np.asarray((np.log(total) - mean) / np.log(2.0))
