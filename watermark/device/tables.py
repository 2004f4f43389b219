"""What the device must know to mark rows: scopes' keys, and each request slot's scope, account and strength.

Every tensor has its final size and address from the start, so that a captured graph goes on reading what
is written later. Nothing here waits for the device: what is written goes through pinned memory that
PyTorch's host allocator does not hand out again before the copy is done, on the current stream.

The tensors hold secrets (lane keys, code words): they are in no repr and no pickle.
"""

from __future__ import annotations

from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from watermark.errors import UsageError
from watermark.green_list import Outcome
from watermark.keys import CODE_BITS, ScopeKeys
from watermark.prf import LANES, key_words

__all__ = ["TILE", "DeviceTables"]

#: Token ids that one Triton program biases; special ids are also counted by tiles of this many.
TILE: Final = 2048

_CODE_WORDS: Final = CODE_BITS // 64

#: One request slot as the device reads it, 528 bytes. Scope -1 is an empty slot.
_SLOT: Final = np.dtype(
    [
        ("addition", "<f4"),
        ("scope", "<i4"),
        ("has_account", "<i4"),
        ("unused", "<i4"),
        ("code", "<u8", (_CODE_WORDS,)),
    ]
)


class DeviceTables:
    """Hold the device's tables of scopes and of request slots.

    Args:
        device: where they live.
        max_slots: request slots, 0..max_slots - 1.
        vocab_size: an upper bound of the logits' width.
        max_scopes: scopes at one time.

    One thread writes at a time, the one that issues the device's work.
    """

    def __init__(self, *, device: torch.device, max_slots: int, vocab_size: int, max_scopes: int) -> None:
        for name, value in (("max_slots", max_slots), ("vocab_size", vocab_size), ("max_scopes", max_scopes)):
            if not 1 <= value < 2**31:
                raise ValueError(f"{name}: expected 1 or more and fewer than 2^31, got {value}")
        self.device = device
        self.max_slots = max_slots
        self.vocab_size = vocab_size
        self.max_scopes = max_scopes

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.lane_words = zeros(max_scopes, LANES, 2, dtype=torch.int64)
        self.lane_k = zeros(max_scopes, LANES, dtype=torch.int32)
        self.code_words = zeros(max_scopes, 2, dtype=torch.int64)
        self.windows = zeros(max_scopes, dtype=torch.int32)
        """(max_scopes,), each scope's h."""
        self.fleet_lanes = zeros(max_scopes, dtype=torch.int32)
        self.special = zeros(max_scopes, vocab_size, dtype=torch.uint8)
        """(max_scopes, vocab_size), 1 where an id is special."""
        self.special_tiles = zeros(max_scopes, -(-vocab_size // TILE), dtype=torch.int32)
        """How many special ids each tile of the vocabulary holds."""
        self.counts = zeros(max_scopes, len(Outcome), dtype=torch.int64)

        self.slots = zeros(max_slots, _SLOT.itemsize // 8, dtype=torch.int64)
        """(max_slots, 66): `_SLOT` records."""
        self.slots_float = self.slots.view(torch.float32)
        self.slots_int = self.slots.view(torch.int32)
        self.slots_int[:, 1] = -1

        self._scopes: list[ScopeKeys | None] = [None] * max_scopes
        self._slot_scopes: dict[int, int] = {}
        self._staged: dict[int, npt.NDArray[np.void]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(device={self.device}, scopes={self.scopes}, max_slots={self.max_slots})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("tables of keys are not pickled")

    @property
    def scopes(self) -> dict[str, int]:
        """The scopes' names, and their indices."""
        return {scope.name: index for index, scope in enumerate(self._scopes) if scope is not None}

    @property
    def widest_window(self) -> int:
        """The largest h of the scopes, 0 without any."""
        return max((scope.params.window for scope in self._scopes if scope is not None), default=0)

    def add_scope(self, scope: ScopeKeys) -> int:
        """Write a scope's keys to the device and return its index; one that is there keeps its index.

        Raises:
            UsageError: another scope of that name is there, or all places are taken.
        """
        for index, other in enumerate(self._scopes):
            if other is scope:
                return index
            if other is not None and other.name == scope.name:
                raise UsageError(f"scope {scope.name}: another scope of this name is on the device; remove it first")
        if None not in self._scopes:
            raise UsageError(f"scope {scope.name}: all {self.max_scopes} places are taken; raise max_scopes")
        index = self._scopes.index(None)
        params = scope.params
        special = np.zeros(self.vocab_size, dtype=np.uint8)
        special[[i for i in params.special_ids if i < self.vocab_size]] = 1
        tiles = np.add.reduceat(special, np.arange(0, self.vocab_size, TILE), dtype=np.int32)
        self._write(self.lane_words[index], scope.lane_words().view(np.int64))
        self.write_bounds(index, scope)
        code_words = np.array(key_words(scope.code_key().reveal()), dtype=np.uint64)
        self._write(self.code_words[index], code_words.view(np.int64))
        self._write(self.special[index], special)
        self._write(self.special_tiles[index], tiles)
        self.windows[index] = params.window
        self.fleet_lanes[index] = params.fleet_lanes
        self.counts[index] = 0
        self._scopes[index] = scope
        return index

    def remove_scope(self, index: int) -> None:
        """Take a scope's keys off the device and free its index.

        Raises:
            UsageError: there is no such scope, or slots use it (clear them first).
        """
        self._scope_at(index)
        users = sorted(slot for slot, scope in self._slot_scopes.items() if scope == index)
        if users:
            raise UsageError(f"scope {index}: in use by slots {users[:8]}; clear them first")
        self.flush()  # What was staged for this scope's slots must not come after.
        self.lane_words[index] = 0
        self.code_words[index] = 0
        self._scopes[index] = None

    def set_slot(
        self,
        slot: int,
        *,
        scope: int,
        addition: float,
        code_word: npt.NDArray[np.bool_] | npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Stage what a request slot is to be marked with; all that was there is replaced. Takes effect at `flush`.

        Args:
            slot: 0..max_slots - 1.
            scope: the index that `add_scope` gave.
            addition: what is added to green logits, rounded to float32; 0 leaves the rows alone.
            code_word: the account's, bool of shape (4096,) (`ScopeKeys.code_word`) or the same packed, lowest
                bit first, uint8 of shape (512,); None for a request without an account.

        Raises:
            UsageError: no such slot or scope.
            ValueError: the addition is not finite, or the code word's shape or dtype is not as above.
        """
        self._check_slot(slot)
        self._scope_at(scope)
        record = np.zeros((), dtype=_SLOT)
        with np.errstate(over="ignore"):
            record["addition"] = np.float32(addition)
        if not np.isfinite(record["addition"]):
            raise ValueError(f"slot {slot}: the addition is a finite float32, got {addition}")
        record["scope"] = scope
        record["has_account"] = code_word is not None
        if code_word is not None:
            record["code"] = _packed(code_word)
        self._staged[slot] = record
        self._slot_scopes[slot] = scope

    def clear_slot(self, slot: int) -> None:
        """Stage that a slot is empty: its rows are left alone and counted nowhere. Takes effect at `flush`."""
        self._check_slot(slot)
        record = np.zeros((), dtype=_SLOT)
        record["scope"] = -1
        self._staged[slot] = record
        self._slot_scopes.pop(slot, None)

    def flush(self) -> None:
        """Send the staged slots to the device in one copy, ordered on the current stream; does not wait for it."""
        if not self._staged:
            return
        indices = np.fromiter(self._staged, dtype=np.int64, count=len(self._staged))
        records = np.array(list(self._staged.values()), dtype=_SLOT).view(np.int64).reshape(len(indices), -1)
        staged = self._sent(np.concatenate([indices[:, None], records], axis=1))
        self.slots.index_copy_(0, staged[:, 0], staged[:, 1:])
        self._staged.clear()

    def _sent(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        """Return *array* on the device. The pinned copy is held by PyTorch until the device has read it."""
        host = torch.from_numpy(np.array(array))
        if self.device.type != "cuda":
            return host.to(self.device)
        return host.pin_memory().to(self.device, non_blocking=True)

    def write_bounds(self, index: int, scope: ScopeKeys) -> None:
        """Write which share of each lane is green: none of a lane that was revealed."""
        self._write(self.lane_k[index], (scope.bounds() >> np.uint64(56)).astype(np.int32))

    def _write(self, destination: torch.Tensor, array: npt.NDArray[np.generic]) -> None:
        destination.copy_(self._sent(array))

    def _scope_at(self, index: int) -> ScopeKeys:
        scope = self._scopes[index] if 0 <= index < self.max_scopes else None
        if scope is None:
            raise UsageError(f"scope {index}: no scope has this index; `add_scope` gives one")
        return scope

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.max_slots:
            raise UsageError(f"slot {slot}: expected 0 to {self.max_slots - 1}")


def _packed(code_word: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return a code word as 64 words, bit i at word i // 64, place i % 64."""
    if code_word.dtype == np.bool_ and code_word.shape == (CODE_BITS,):
        code_word = np.packbits(code_word, bitorder="little")
    if code_word.dtype != np.uint8 or code_word.shape != (CODE_BITS // 8,):
        raise ValueError(
            f"code word: expected bool of shape ({CODE_BITS},) or uint8 of shape ({CODE_BITS // 8},), "
            f"got {code_word.dtype} of {code_word.shape}"
        )
    return np.ascontiguousarray(code_word).view("<u8")
