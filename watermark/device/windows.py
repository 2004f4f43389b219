"""The windows of a batch, gathered on the device from an engine's table of token ids.

Written for vLLM's Model Runner V2 (0.32, read at source: `v1/worker/gpu/input_batch.py`, `states.py`,
`sample/logits_processor/interface.py`). When its logits processors run,

- ``all_token_ids[slot, :total_len]`` holds the prompt and every sampled token, the last one among them
  (`_post_update_kernel` has written it), but none of this step's draft tokens;
- row r was fed ``input_ids[r]`` at position ``pos[r]``, and its logits choose the token at ``pos[r] + 1``;
- the rows of one request lie one after another, ``expanded_local_pos`` 0, 1, 2..., one a draft token, so
  that the id d places before row r's is ``input_ids[r - d]`` where d <= local_pos[r], and is in the table
  otherwise;
- ``prompt_len`` stays the user's prompt when a preempted request comes back with part of its answer as its
  prefill, so that the response so far is always ``pos + 1 - prompt_len`` ids; it is 0 or less in the rows
  of an unfinished chunked prefill, whose samples are thrown away;
- draft slots that are placeholders are -1 (`gather_draft_sampled`), and such a row has no window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from watermark.prf import MAX_WINDOW

__all__ = ["TokenTable", "windows_from"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTable:
    """The ids before each row of logits, as an engine keeps them; int32 or int64 tensors, all on one device."""

    all_token_ids: torch.Tensor
    """(S, L), the committed ids of each slot, prompt and response."""
    prompt_len: torch.Tensor
    """(S,)"""
    row_slot: torch.Tensor
    """(R,), the slot of each row; one out of range has no window."""
    local_pos: torch.Tensor
    """(R,), the row's offset among the rows of its own request, which lie one after another."""
    input_ids: torch.Tensor
    """(R,), the id that was fed at each row: the one before the token to be chosen."""
    pos: torch.Tensor
    """(R,), that id's position in its sequence."""

    def check(self) -> None:
        """Raise ValueError if a shape or a dtype is not as above."""
        rows = self.row_slot.shape[0] if self.row_slot.ndim == 1 else -1
        slots = self.all_token_ids.shape[0]
        for name, shape in (
            ("all_token_ids", (slots, self.all_token_ids.shape[-1])),
            ("prompt_len", (slots,)),
            ("row_slot", (rows,)),
            ("local_pos", (rows,)),
            ("input_ids", (rows,)),
            ("pos", (rows,)),
        ):
            tensor: torch.Tensor = getattr(self, name)
            if tensor.dtype not in (torch.int32, torch.int64) or tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name}: expected int32 or int64 of shape {shape}, got {tensor.dtype} of {tuple(tensor.shape)}"
                )


def windows_from(table: TokenTable, *, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather each row's last *width* ids, and how many ids its response has so far.

    Ids that a response does not have are what stands before it in the table, or -1: whoever uses a window
    of h ids looks at the length first.

    Args:
        table: the ids as the engine keeps them.
        width: 1..8, the widest window of the scopes.

    Returns:
        Windows, int32 of shape (R, width), oldest first, and lengths, int32 of shape (R,), which may be
        negative.

    Raises:
        ValueError: a shape or a dtype is not as `TokenTable` says, or the width is not 1..8.
    """
    table.check()
    if not 1 <= width <= MAX_WINDOW:
        raise ValueError(f"width: expected 1 to {MAX_WINDOW}, got {width}")
    slots, capacity = table.all_token_ids.shape
    rows = table.row_slot.shape[0]
    device = table.row_slot.device
    row_slot = table.row_slot.long()
    known = (row_slot >= 0) & (row_slot < slots)
    slot = torch.where(known, row_slot, 0)
    back = torch.arange(width - 1, -1, -1, device=device)[None, :]
    position = table.pos.long()[:, None] - back
    from_table = table.all_token_ids[slot[:, None], position.clamp(0, capacity - 1)].long()
    row = torch.arange(rows, device=device)[:, None] - back
    from_rows = table.input_ids.long()[row.clamp(min=0)]
    in_rows = (back <= table.local_pos.long()[:, None]) & (row >= 0)
    ids = torch.where(in_rows, from_rows, from_table)
    ids = torch.where(known[:, None] & (position >= 0), ids, -1)
    length = torch.where(known, table.pos.long() + 1 - table.prompt_len.long()[slot], 0)
    return ids.int(), length.int()
