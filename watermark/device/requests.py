"""Admitted requests in the device's slots: what `watermark.marker.Marker.bias` is where the logits are on a device.

An engine's adapter tells `DeviceRequests` which request is in which slot, and calls `bias` or
`bias_from_table` at every step. One thread does all of it, the one that issues the device's work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from watermark import self_test
from watermark.device.green_lists import DeviceGreenLists
from watermark.device.windows import TokenTable
from watermark.errors import TaggantError
from watermark.green_list import GreenList, Outcome
from watermark.marker import Marker, RequestMark

__all__ = ["DeviceRequests"]

#: Scopes that one process may mark under in its life: a slot remembers its scope until it is used again.
_SCOPES = 32


class DeviceRequests:
    """Bias logits on a device for the requests of a `Marker`.

    Args:
        marker: whose requests they are; its counters get what became of each row, every so many seconds.
        device: where the logits are.
        max_slots: request slots, 0..max_slots - 1.
        vocab_size: an upper bound of the logits' width.

    Rows of requests that are not marked are counted nowhere here, and rows of drafts that are rejected are
    counted like others.
    """

    def __init__(self, marker: Marker, *, device: torch.device | str, max_slots: int, vocab_size: int) -> None:
        self.marker = marker
        self.lists = DeviceGreenLists(device=device, max_slots=max_slots, vocab_size=vocab_size, max_scopes=_SCOPES)
        self._green_lists: dict[int, GreenList] = {}
        self._counted = np.zeros((_SCOPES, len(Outcome)), dtype=np.int64)
        self._copy: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
        self._next_look = time.monotonic() + marker.config.refresh
        if marker.green_list is not None:
            self._index(marker.green_list)

    def __repr__(self) -> str:
        return f"DeviceRequests({self.lists!r})"

    @property
    def window(self) -> int:
        """The widest window of the scopes, in ids."""
        return self.lists.tables.widest_window

    def put(self, slot: int, request: RequestMark) -> bool:
        """Stage that *request* is in *slot*, whatever was there before; return whether it is marked."""
        if request.green_list is None:
            self.lists.clear_slot(slot)
            return False
        scope = request.green_list.scope
        self.lists.set_slot(
            slot,
            scope=self._index(request.green_list),
            # As `GreenList.bias` multiplies: in float32.
            addition=float(np.float32(request.green_list.delta) * np.float32(request.strength)),
            code_word=None if request.account is None else scope.packed_code_word(request.account),
        )
        return True

    def take_out(self, slot: int) -> None:
        """Stage that *slot* is empty."""
        self.lists.clear_slot(slot)

    def flush(self) -> None:
        """Send what was staged; once a step, before `bias`. Now and then, fetch the counters."""
        self.lists.flush()
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self.marker.config.refresh
            self._count()

    def bias(
        self, logits: torch.Tensor, *, windows: torch.Tensor, row_slot: torch.Tensor, window_length: torch.Tensor
    ) -> None:
        """Bias rows in place; arguments as `DeviceGreenLists.bias`."""
        self.lists.bias(
            self._target(logits),
            windows=windows,
            row_slot=self._uncertain(logits, row_slot),
            window_length=window_length,
        )

    def bias_responses(
        self,
        logits: torch.Tensor,
        responses: Sequence[Sequence[int] | npt.NDArray[Any]],
        *,
        slots: Sequence[int],
    ) -> None:
        """Bias rows in place by the ids so far of each row's response, which are on the host.

        Args:
            logits: as for `DeviceGreenLists.bias`.
            responses: the ids of each row; only the last h are looked at, and sent.
            slots: the slot of each row.

        Raises:
            ValueError: a response holds a placeholder of a token that the engine has not sampled yet.
        """
        width = max(self.window, 1)
        rows = np.zeros((len(responses), width + 2), dtype=np.int64)
        for row, ids in zip(rows, responses, strict=True):
            tail = ids[-width:]
            row[width - len(tail) : width] = tail
        if (rows < 0).any():
            raise ValueError("a response holds a negative id: a placeholder of a token that is not known yet")
        rows[:, width] = slots
        rows[:, width + 1] = [len(ids) for ids in responses]
        sent = torch.from_numpy(rows.astype(np.int32)).to(logits.device, non_blocking=True)
        self.bias(logits, windows=sent[:, :width], row_slot=sent[:, width], window_length=sent[:, width + 1])

    def bias_from_table(self, logits: torch.Tensor, *, table: TokenTable) -> None:
        """Bias rows in place; arguments as `DeviceGreenLists.bias_from_table`."""
        if self.marker.config.min_entropy > 0:
            table = TokenTable(
                all_token_ids=table.all_token_ids,
                prompt_len=table.prompt_len,
                row_slot=self._uncertain(logits, table.row_slot),
                local_pos=table.local_pos,
                input_ids=table.input_ids,
                pos=table.pos,
            )
        self.lists.bias_from_table(self._target(logits), table=table)

    def self_test(self, vocabulary: int) -> None:
        """Compare what the device does with the specification; uses slot 0, which is empty afterwards.

        Raises:
            TaggantError: they differ.
        """
        green_list = self.marker.green_list
        if green_list is None:
            return
        device = self.lists.device

        def bias(logits: npt.NDArray[np.float32], windows: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
            self.put(0, RequestMark(green_list=green_list, account=self_test.ACCOUNT))
            self.lists.flush()
            target = torch.from_numpy(logits).to(device)
            rows = torch.zeros(len(windows), dtype=torch.int64, device=device)
            self.lists.bias(
                target,
                windows=torch.from_numpy(windows.astype(np.int64)).to(device),
                row_slot=rows,
                window_length=rows + windows.shape[1],
            )
            return np.asarray(target.cpu().numpy())

        self_test.check_bias(bias, green_list.scope, vocabulary)
        self.take_out(0)
        self.lists.flush()
        self._counted += self.lists.counts()  # The test's rows are nobody's tokens.

    def _index(self, green_list: GreenList) -> int:
        """Return the index of a scope on the device; its keys are written there if they are not yet."""
        scope = green_list.scope
        for index, known in self._green_lists.items():
            if known is green_list:
                return index
            if known.scope.name != scope.name:
                continue
            # The same name after an edit of the key file. Delta is the slot's affair; the keys must be the same.
            # Lanes revealed since are left alone for requests under way too.
            if known.scope.params == scope.params and np.array_equal(known.scope.lane_words(), scope.lane_words()):
                self.lists.reveal(index, scope)
                return index
            raise TaggantError(
                f"scope {scope.name}: its keys changed while this server ran, and requests may still be marked with "
                "the earlier ones: restart the server, and give a new scope a name of its own"
            )
        index = self.lists.add_scope(scope)
        self._green_lists[index] = green_list
        return index

    def _target(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.clone() if self.marker.config.shadow else logits

    def _uncertain(self, logits: torch.Tensor, row_slot: torch.Tensor) -> torch.Tensor:
        """Return the rows' slots, with -1, which no slot is, for rows of less entropy than `min_entropy`."""
        if self.marker.config.min_entropy <= 0:
            return row_slot
        # A masked logit has weight 0 and would give 0 * -inf; a row of NaN compares as False.
        log_p = logits.float().log_softmax(dim=-1)
        bits = -torch.where(log_p.isneginf(), 0.0, log_p.exp() * log_p).sum(dim=-1) / np.log(2.0)
        return torch.where(bits >= self.marker.config.min_entropy, row_slot, -1)

    def _count(self) -> None:
        """Add what the copy of last time says, if it is there by now, and begin the next; waits for nothing."""
        if self._copy is None or self._copy[1] is None or self._copy[1].query():
            if self._copy is not None:
                self._add(self._copy[0].numpy())
            counts = self.lists.tables.counts
            if counts.device.type == "cuda":
                there = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
                there.copy_(counts, non_blocking=True)
                event = torch.cuda.Event()
                event.record()
                self._copy = (there, event)
            else:
                self._copy = None
                self._add(counts.cpu().numpy())

    def _add(self, counts: npt.NDArray[np.int64]) -> None:
        new = counts - self._counted
        self._counted = counts.copy()
        for index, green_list in self._green_lists.items():
            self.marker.counts.add_totals(green_list.scope.name, new[index], shadow=self.marker.config.shadow)
