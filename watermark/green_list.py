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
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from watermark import kernels
from watermark.errors import UsageError
from watermark.keys import ScopeKeys
from watermark.prf import key_words

__all__ = ["GreenList", "Outcome", "after_temperature", "before_temperature"]

#: Accounts whose code words a `GreenList` keeps at once (512 bytes each, 16 MiB in all); a server may see millions.
_KEPT_CODE_WORDS = 32_768


class Outcome(IntEnum):
    """What became of one row of logits. The numbers are those that the kernels on a device count by."""

    MARKED = 0
    OFF = 1
    """Its request is not to be marked, or delta is 0."""
    NO_WINDOW = 2
    """Fewer than h ids since the response began or since its last special id."""
    NO_ACCOUNT = 3
    """In an account lane, and the request names no account."""
    LOW_ENTROPY = 4
    """Below `min_entropy`."""


def before_temperature(temperature: float) -> float:
    """Return the factor for delta at a hook that runs before the sampling *temperature* divides.

    The mark is a change of the model, which the temperature then divides; but a client must not be
    able to take it away with a temperature of 0.01, so below 1 it is kept whole. Greedy decoding
    (temperature 0) gets delta as it is.

    >>> before_temperature(0.0), before_temperature(0.5), before_temperature(1.5)
    (1.0, 1.0, 1.5)
    """
    return max(temperature, 1.0)


def after_temperature(temperature: float) -> float:
    """Return the factor for delta at a hook that runs after the sampling *temperature* has divided.

    It gives what `before_temperature` gives, seen from the other side of the division.

    >>> after_temperature(0.0), after_temperature(0.5), after_temperature(1.5)
    (1.0, 2.0, 1.0)
    """
    return before_temperature(temperature) / temperature if temperature > 0 else 1.0


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
        self._bounds = scope.bounds()
        self._fleet_lanes = scope.params.fleet_lanes
        self._special = np.array(scope.params.special_ids, dtype=np.int64)
        self._code_key = np.array(key_words(scope.code_key().reveal()), dtype=np.uint64)
        self._code_word = lru_cache(_KEPT_CODE_WORDS)(scope.packed_code_word)

    def __repr__(self) -> str:
        return f"GreenList(scope={self.scope.name!r}, delta={self.delta}, min_entropy={self.min_entropy})"

    def bias(
        self,
        logits: npt.NDArray[Any],
        windows: npt.NDArray[np.uint32],
        *,
        marked: npt.NDArray[np.bool_] | None = None,
        accounts: Sequence[str | None] | None = None,
        strength: float | npt.NDArray[np.float32] = 1.0,
    ) -> npt.NDArray[np.uint8]:
        """Add delta to the green logits of each row, in place.

        Args:
            logits: float32 or float16 of shape (B, V), or uint16, which is read as the bits of bfloat16. Each row
                is contiguous; rows may lie apart. V may exceed the tokenizer's vocabulary (padding). Half precision
                is widened to float32, added to and rounded to nearest even, as torch does.
            windows: uint32 of shape (B, h), the last h ids of each row's response, oldest first.
            marked: bool of shape (B,), rows whose window is whole; by default all. A row whose response has fewer
                than h ids since its start or its last special id is not to be marked: see `windows_of`.
            accounts: an account id a row, or None. A row without one is left unmarked in account lanes.
            strength: factor on delta, one or one a row (see `before_temperature`); 0 leaves a row as it is.

        Returns:
            uint8 of shape (B,), the `Outcome` of each row. Only a row that is `Outcome.MARKED` was touched.

        Raises:
            ValueError: a shape or dtype is not as above.
        """
        self._check(logits, windows, marked, accounts)
        count, vocabulary = logits.shape
        windows = np.array(windows, order="C")  # The kernels take neither a slice of columns nor a read-only view.
        outcomes = np.zeros(count, dtype=np.uint8)
        additions = np.empty(count, dtype=np.float32)
        additions[:] = np.float32(self.delta) * np.asarray(strength, dtype=np.float32)
        if marked is not None:
            outcomes[~marked] = Outcome.NO_WINDOW
        outcomes[additions == 0.0] = Outcome.OFF
        lanes, seeds, positions = kernels.rows(windows, self._lane_words, self._code_key, self._fleet_lanes)
        outcomes[self._bounds[lanes] == 0] = Outcome.OFF  # Revealed.
        complemented = self._complemented(positions, accounts, outcomes)
        if self.min_entropy > 0 and not outcomes.all():
            # A row with NaN, or masked as a whole, has no entropy and is left alone too.
            low = ~(entropy_bits(_as_float32(logits)) >= self.min_entropy)
            outcomes[low & (outcomes == Outcome.MARKED)] = Outcome.LOW_ENTROPY
        additions[outcomes != Outcome.MARKED] = 0.0
        special = self._special[: self._special.searchsorted(vocabulary)]
        bounds = self._bounds[lanes]
        for part in (slice(0, count),) if logits.flags.c_contiguous else (slice(b, b + 1) for b in range(count)):
            of_rows = (seeds[part], bounds[part], complemented[part], additions[part], special)
            if logits.dtype == np.float32:
                kernels.add_to_green(logits[part], *of_rows)
            else:
                kernels.add_to_green_half(logits[part].view(np.uint16), logits.dtype == np.uint16, *of_rows)
        return outcomes

    def windows_of(
        self, responses: Sequence[Sequence[int] | npt.NDArray[np.uint32]]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Return each response's window, (B, h), and whether its next token is to be marked, (B,).

        The first h tokens of a response and the first h after a special id are not: a window lies
        wholly inside one segment. Only the last h ids of each response are looked at.

        Raises:
            ValueError: an id is negative: the engine has not yet said what it sampled (a placeholder).
        """
        h = self.window
        none = [0] * h
        whole = np.array([len(ids) >= h for ids in responses], dtype=np.bool_)
        tails = [ids[len(ids) - h :] if len(ids) >= h else none for ids in responses]
        windows = np.array(tails, dtype=np.int64).reshape(len(tails), h)
        if len(tails) and windows.min() < 0:
            raise ValueError("a response holds a negative id: a placeholder of a token that is not known yet")
        windows_of_ids = windows.astype(np.uint32)
        whole &= ~kernels.holds_any(windows_of_ids, self._special)
        return windows_of_ids, whole

    def _complemented(
        self,
        positions: npt.NDArray[np.int64],
        accounts: Sequence[str | None] | None,
        outcomes: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.bool_]:
        """Return which rows' lists are complemented; says of rows that lack an account that they do."""
        complemented = np.zeros(len(positions), dtype=np.bool_)
        for b, position in enumerate(positions.tolist()):
            if position < 0 or outcomes[b] != Outcome.MARKED:
                continue
            account = None if accounts is None else accounts[b]
            if account is None:
                outcomes[b] = Outcome.NO_ACCOUNT
            else:
                complemented[b] = self._code_word(account)[position >> 3] >> (position & 7) & 1
        return complemented

    def _check(
        self,
        logits: npt.NDArray[Any],
        windows: npt.NDArray[np.uint32],
        marked: npt.NDArray[np.bool_] | None,
        accounts: Sequence[str | None] | None,
    ) -> None:
        known = logits.dtype in (np.float32, np.float16, np.uint16)
        scattered = logits.size > logits.shape[0] and logits.strides[-1] != logits.itemsize
        if not known or logits.ndim != 2 or scattered or not logits.flags.writeable:
            raise ValueError(
                "logits: expected writable float32, float16 or uint16 (the bits of bfloat16) of shape (B, V), each row "
                f"contiguous; got {logits.dtype} of {logits.shape}"
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


def _as_float32(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return logits as float32; uint16 holds the bits of bfloat16, which are the upper half of a float32's."""
    if logits.dtype == np.uint16:
        return np.asarray((logits.astype(np.uint32) << np.uint32(16)).view(np.float32))
    return np.asarray(logits, dtype=np.float32)


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
