"""Batches of logits rows of many scopes and accounts, and what the specification says becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import builders
import numpy as np

from watermark import prf
from watermark.green_list import Outcome
from watermark.keys import ScopeKeys

#: (outcome of the row) as in `watermark.green_list.Outcome`, or None for a row that no slot has.
MARKED, OFF, NO_WINDOW, NO_ACCOUNT = range(4)


def scope_named(name: str, **of: Any) -> ScopeKeys:
    scope = builders.scope_of(**of)
    return ScopeKeys(name=name, params=scope.params, delta=scope.delta, key=scope.key)


@dataclass(kw_only=True)
class Slot:
    scope: int
    addition: float
    account: str | None = None


@dataclass(kw_only=True)
class Batch:
    """Rows as `DeviceGreenLists.bias` takes them, on the host."""

    scopes: list[ScopeKeys]
    slots: dict[int, Slot]
    row_slot: list[int]
    windows: np.ndarray
    """(R, H) int64, right-aligned."""
    window_length: list[int]
    vocab_size: int
    counts: np.ndarray = field(init=False)
    """What the counter of outcomes says after this batch: (8, 4)."""

    def __post_init__(self) -> None:
        self.counts = np.zeros((8, len(Outcome)), dtype=np.int64)
        for row, slot in enumerate(self.row_slot):
            if slot in self.slots:
                self.counts[self.slots[slot].scope, self.outcome(row)[0]] += 1

    def outcome(self, row: int) -> tuple[int | None, np.ndarray | None]:
        """Return a row's outcome, and its green tokens (V,) if it is marked: by `watermark.prf`, row by row."""
        slot = self.slots.get(self.row_slot[row])
        if slot is None:
            return None, None
        if np.float32(slot.addition) == 0:
            return OFF, None
        scope = self.scopes[slot.scope]
        params = scope.params
        ids = self.windows[row, self.windows.shape[1] - params.window :].tolist()
        if self.window_length[row] < params.window or any(
            i < 0 or i >= self.vocab_size or i in params.special_ids for i in ids
        ):
            return NO_WINDOW, None
        window = np.array([ids], dtype=np.uint32)
        lane = int(prf.lane(window)[0])
        in_fleet = lane < params.fleet_lanes
        if not in_fleet and slot.account is None:
            return NO_ACCOUNT, None
        k = params.fleet_k if in_fleet else params.account_k
        green = prf.row(scope.lane_key(lane).reveal(), window[0], self.vocab_size) < np.uint64(prf.green_below(k))
        if not in_fleet:
            position = int(prf.siphash24(scope.code_key().reveal(), window)[0]) % 4096
            green = ~green if scope.code_word(slot.account)[position] else green
        green[[i for i in params.special_ids if i < self.vocab_size]] = False
        return MARKED, green

    def chosen(self, vocabulary: int) -> np.ndarray:
        """Return which logits get their row's addition: (R, V) bool."""
        rows = [self.outcome(row)[1] for row in range(len(self.row_slot))]
        nothing = np.zeros(vocabulary, dtype=np.bool_)
        return np.array([nothing if green is None else green[:vocabulary] for green in rows])

    def additions(self) -> np.ndarray:
        """Return each row's addition, (R, 1) float32."""
        rows = [self.slots.get(slot, Slot(scope=0, addition=0.0)).addition for slot in self.row_slot]
        return np.array(rows, dtype=np.float32)[:, None]
