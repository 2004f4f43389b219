"""The bias in PyTorch operations: what serves where there is no Triton, and what Triton is tested against.

Nothing here depends on what a tensor holds, only on shapes, so nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from watermark.device.tables import DeviceTables
from watermark.device.torch_prf import is_green, lane, siphash24, split_mix, split_mix_steps
from watermark.green_list import Outcome
from watermark.keys import CODE_BITS

__all__ = ["RowPlan", "add_to_green", "plan_rows"]

#: Logits worked on at once: on a CPU what its cache holds, elsewhere some 200 MB of temporaries.
_CHUNK = {"cpu": 2**15}
_CHUNK_ELSEWHERE = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """What is to be done with each of R rows."""

    addition: torch.Tensor
    """float32 (R,), 0 for a row that is left alone."""
    seed: torch.Tensor
    """int64 bit patterns (R,)."""
    k: torch.Tensor
    """int64 (R,): gamma in units of 1/256."""
    complemented: torch.Tensor
    """bool (R,): the green list is the other tokens."""
    scope: torch.Tensor
    """int64 (R,)."""


def plan_rows(
    tables: DeviceTables, *, windows: torch.Tensor, row_slot: torch.Tensor, window_length: torch.Tensor
) -> RowPlan:
    """Work out each row's seed, bound and addition, and count its outcome (arguments as `DeviceGreenLists.bias`)."""
    slot, in_use = _bounded(row_slot.long(), tables.max_slots)
    scope, has_scope = _bounded(tables.slots_int[slot, 1].long(), tables.max_scopes)
    in_use = in_use & has_scope
    addition = tables.slots_float[slot, 0]
    h = tables.windows[scope].long()

    ids = windows.long()
    width = ids.shape[1]
    place = torch.arange(width, device=ids.device)
    known_id, in_vocabulary = _bounded(ids, tables.vocab_size)
    usable = in_vocabulary & (tables.special[scope[:, None], known_id] == 0)
    whole = (window_length >= h) & (usable | (place < width - h[:, None])).all(dim=1)

    # The h ids at the right go to the left, where the hash wants them.
    left = (place + (width - h[:, None])).clamp(max=width - 1)
    window = known_id.gather(1, left)
    window_lane = lane(window, lengths=h)
    keys = tables.lane_words[scope, window_lane]
    seed = siphash24(keys[:, 0], keys[:, 1], window, lengths=h)
    code_keys = tables.code_words[scope]
    position = siphash24(code_keys[:, 0], code_keys[:, 1], window, lengths=h) & (CODE_BITS - 1)
    bit = (tables.slots[slot, 2 + (position >> 6)] >> (position & 63)) & 1
    in_account_lane = window_lane >= tables.fleet_lanes[scope]
    has_account = tables.slots_int[slot, 2] != 0

    outcome = torch.full_like(slot, Outcome.MARKED)
    outcome = torch.where(in_account_lane & ~has_account, Outcome.NO_ACCOUNT, outcome)
    outcome = torch.where(whole, outcome, Outcome.NO_WINDOW)
    outcome = torch.where(addition == 0, Outcome.OFF, outcome)
    tables.counts.view(-1).scatter_add_(0, scope * len(Outcome) + outcome, in_use.long())
    return RowPlan(
        addition=torch.where(in_use & (outcome == Outcome.MARKED), addition, 0.0),
        seed=seed,
        k=tables.lane_k[scope, window_lane].long(),
        complemented=in_account_lane & (bit == 1),
        scope=scope,
    )


def add_to_green(logits: torch.Tensor, tables: DeviceTables, plan: RowPlan) -> None:
    """Add each row's addition to its green logits, in place, as many columns at once as memory allows."""
    rows, vocabulary = logits.shape
    chunk = max(_CHUNK.get(logits.device.type, _CHUNK_ELSEWHERE) // rows, 1)
    seed, k = plan.seed[:, None], plan.k[:, None]
    addition, complemented = plan.addition[:, None], plan.complemented[:, None]
    marked = addition != 0
    for start in range(0, vocabulary, chunk):
        part = logits[:, start : start + chunk]
        stop = start + part.shape[1]
        steps = split_mix_steps(torch.arange(start, stop, device=logits.device))
        chosen = is_green(split_mix(seed, steps[None, :]), k) ^ complemented
        chosen &= marked
        chosen &= tables.special[:, start:stop].index_select(0, plan.scope) == 0
        part.copy_(torch.where(chosen, (part.float() + addition).to(part.dtype), part))


def _bounded(index: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return *index* with what is out of 0..size - 1 replaced by 0, and which were inside."""
    inside = (index >= 0) & (index < size)
    return torch.where(inside, index, 0), inside
