"""The green lists of several scopes, biased in a batch of logits where the logits are.

The same integers as `watermark.green_list`, for a server whose logits lie on an accelerator: rows of
several scopes, with and without accounts, marked and not, in one batch; float32, bfloat16 or float16; in
place; without waiting for the device and usable inside a captured CUDA graph. On CUDA Triton does it,
elsewhere PyTorch.

    lists = DeviceGreenLists([scope], device="cuda", max_slots=256, vocab_size=151_936)
    lists.set_slot(3, scope=0, addition=2.0, code_word=scope.code_word("acme"))   # a request comes
    lists.flush()                                                                 # once a step
    lists.bias(logits, windows=windows, row_slot=row_slot, window_length=window_length)

There is no `min_entropy` here: it would take a pass over the logits of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import torch

from watermark.device import torch_bias
from watermark.device.tables import DeviceTables
from watermark.device.windows import TokenTable, windows_from
from watermark.keys import ScopeKeys
from watermark.prf import MAX_WINDOW

__all__ = ["DeviceGreenLists"]

_INTEGERS = (torch.int32, torch.int64)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class DeviceGreenLists:
    """Bias logits towards the green tokens of each row's scope.

    Args:
        scopes: those there from the start, with the indices 0, 1, 2...
        device: where the logits will be.
        max_slots: request slots, 0..max_slots - 1.
        vocab_size: an upper bound of the logits' width.
        max_scopes: scopes at one time, those added later among them.
        fused: whether Triton's kernels are used; by default, where the device is CUDA and Triton is there.

    Not thread-safe: one thread, the one that issues the device's work, calls it. Every tensor that a
    captured graph reads stays where it is for the object's life, so that a graph of `bias` goes on working
    while slots and scopes change. Run `bias` once outside the capture first: Triton compiles then.
    """

    def __init__(
        self,
        scopes: Sequence[ScopeKeys] = (),
        *,
        device: torch.device | str,
        max_slots: int,
        vocab_size: int,
        max_scopes: int = 8,
        fused: bool | None = None,
    ) -> None:
        # "cuda" alone is the device that is current now, and stays it.
        self.device = torch.empty(0, device=device).device
        if fused is None:
            fused = self.device.type == "cuda" and importlib.util.find_spec("triton") is not None
        self.fused = fused
        self.tables = DeviceTables(
            device=self.device, max_slots=max_slots, vocab_size=vocab_size, max_scopes=max_scopes
        )
        for scope in scopes:
            self.tables.add_scope(scope)

    def __repr__(self) -> str:
        path = "Triton" if self.fused else "PyTorch"
        return f"{type(self).__name__}(device={self.device}, scopes={self.tables.scopes}, {path})"

    def add_scope(self, scope: ScopeKeys) -> int:
        """Write a scope's keys to the device and return its index; see `DeviceTables.add_scope`."""
        return self.tables.add_scope(scope)

    def reveal(self, index: int, scope: ScopeKeys) -> None:
        """Leave alone the lanes of a scope on the device that *scope* says were revealed since."""
        self.tables.write_bounds(index, scope)

    def remove_scope(self, index: int) -> None:
        """Take a scope that no slot uses off the device and free its index; see `DeviceTables.remove_scope`."""
        self.tables.remove_scope(index)

    def set_slot(
        self,
        slot: int,
        *,
        scope: int,
        addition: float,
        code_word: npt.NDArray[np.bool_] | npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Stage what a request slot's rows are marked with; see `DeviceTables.set_slot`."""
        self.tables.set_slot(slot, scope=scope, addition=addition, code_word=code_word)

    def clear_slot(self, slot: int) -> None:
        """Stage that a slot is empty; see `DeviceTables.clear_slot`."""
        self.tables.clear_slot(slot)

    def flush(self) -> None:
        """Send what was staged, in one copy, without waiting: once a step, before `bias` and outside a capture."""
        self.tables.flush()

    def bias(
        self,
        logits: torch.Tensor,
        *,
        windows: torch.Tensor,
        row_slot: torch.Tensor,
        window_length: torch.Tensor,
    ) -> None:
        """Add each row's addition to its green logits, in place.

        A row stays bit-identical where its slot is out of range or empty, or the slot's addition is 0; where
        its response has fewer than h ids; where one of its window's h ids is special, negative (an engine's
        placeholder) or not below `vocab_size`; and where its lane is an account lane and its slot has no
        account. Special ids stay bit-identical in every row, and so does what is not green. -inf stays -inf.
        The sum is that of float32, rounded to the nearest value of the logits' type, ties to even.

        Args:
            logits: float32, bfloat16 or float16 of shape (R, V), V up to `vocab_size`; the columns lie side
                by side, rows may be further apart than V.
            windows: int32 or int64 of shape (R, H), the last ids of each row's response, oldest first, the
                newest at the right; H is at least the widest h of the scopes.
            row_slot: int32 or int64 of shape (R,).
            window_length: int32 or int64 of shape (R,), how many ids the row's response has so far; what
                stands further left in its window is not looked at. May be more than H, or negative.

        Raises:
            ValueError: a shape, dtype or device is not as above.
        """
        self._check_logits(logits)
        rows = logits.shape[0]
        self._check("row_slot", row_slot, (rows,))
        self._check("window_length", window_length, (rows,))
        self._check("windows", windows, (rows, windows.shape[-1]))
        if windows.shape[1] < self.tables.widest_window:
            raise ValueError(
                f"windows: expected {self.tables.widest_window} or more ids a row, which a scope's window takes, "
                f"got {windows.shape[1]}"
            )
        if not logits.numel() or not windows.shape[1]:
            return
        windows = windows[:, -MAX_WINDOW:]
        with torch.no_grad(), self._on_device():
            if self.fused:
                from watermark.device import triton_kernels

                plan = triton_kernels.plan_rows(
                    self.tables,
                    row_slot=row_slot.contiguous(),
                    windows=windows.contiguous(),
                    window_length=window_length.contiguous(),
                )
                triton_kernels.add_to_green(logits, self.tables, plan)
            else:
                torch_bias.add_to_green(
                    logits,
                    self.tables,
                    torch_bias.plan_rows(self.tables, windows=windows, row_slot=row_slot, window_length=window_length),
                )

    def bias_from_table(self, logits: torch.Tensor, *, table: TokenTable) -> None:
        """Do as `bias` with the windows of an engine's token table, which Triton's kernel reads by itself.

        Args:
            logits: as for `bias`.
            table: the ids before each row. Its slots are those of `set_slot`, and as many.

        Raises:
            ValueError: a shape, dtype or device is not as described.
        """
        self._check_logits(logits)
        table.check()
        self._check("row_slot", table.row_slot, (logits.shape[0],))
        for name in ("all_token_ids", "prompt_len", "local_pos", "input_ids", "pos"):
            tensor = getattr(table, name)
            self._check(name, tensor, tuple(tensor.shape))
        if table.all_token_ids.shape[0] < self.tables.max_slots:
            raise ValueError(
                f"all_token_ids: expected {self.tables.max_slots} or more slots, got {table.all_token_ids.shape[0]}"
            )
        if not self.fused:
            windows, length = windows_from(table, width=max(self.tables.widest_window, 1))
            self.bias(logits, windows=windows, row_slot=table.row_slot, window_length=length)
            return
        if not logits.numel():
            return
        from watermark.device import triton_kernels

        table = TokenTable(
            all_token_ids=table.all_token_ids
            if table.all_token_ids.stride(1) == 1
            else table.all_token_ids.contiguous(),
            prompt_len=table.prompt_len.contiguous(),
            row_slot=table.row_slot.contiguous(),
            local_pos=table.local_pos.contiguous(),
            input_ids=table.input_ids.contiguous(),
            pos=table.pos.contiguous(),
        )
        with torch.no_grad(), self._on_device():
            plan = triton_kernels.plan_rows_from_table(self.tables, table)
            triton_kernels.add_to_green(logits, self.tables, plan)

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how many rows of each scope had each `Outcome`: int64 of shape (max_scopes, 5).

        Rows of logits, whatever became of their samples: those of rejected drafts and of unfinished
        prefills are among them. Waits for the device; the only thing here that does.
        """
        return np.asarray(self.tables.counts.cpu().numpy()).copy()

    def _on_device(self) -> AbstractContextManager[object]:
        # Triton launches on the current device, whatever its arguments' is.
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _check_logits(self, logits: torch.Tensor) -> None:
        if logits.dtype not in _FLOATS or logits.ndim != 2:
            raise ValueError(
                f"logits: expected float32, bfloat16 or float16 of shape (R, V), got {logits.dtype} of "
                f"{tuple(logits.shape)}"
            )
        rows, vocabulary = logits.shape
        if vocabulary > self.tables.vocab_size:
            raise ValueError(
                f"logits: expected {self.tables.vocab_size} columns at most (vocab_size), got {vocabulary}"
            )
        if logits.numel() and (logits.stride(1) != 1 or (rows > 1 and logits.stride(0) < vocabulary)):
            raise ValueError(f"logits: expected columns side by side and rows apart, got strides {logits.stride()}")
        if logits.device != self.device:
            raise ValueError(f"logits: expected a tensor on {self.device}, got one on {logits.device}")

    def _check(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tensor.dtype not in _INTEGERS or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name}: expected int32 or int64 of shape {shape}, got {tensor.dtype} of {tuple(tensor.shape)}"
            )
        if tensor.device != self.device:
            raise ValueError(f"{name}: expected a tensor on {self.device}, got one on {tensor.device}")
