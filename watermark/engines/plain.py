"""Any loop that shows the ids so far and the next token's logits: ``f(ids, row)``, in place.

It fits TensorRT-LLM's and Dynamo's per-request logits processors (``__call__(input_ids, logits)`` that edits
in place), and a loop of one's own::

    marker = Marker(ServingConfig.from_environment())
    mark = RowMarker(marker, marker.admit(None, strength=before_temperature(0.8)), prompt_length=len(prompt))
    ids = list(prompt)
    while len(ids) < limit:
        row = model(ids)              # (V,) or (1, V), before the temperature and the top-k and top-p filters
        mark(ids, row)
        ids.append(sample(row))

It keeps nothing between calls but the prompt's length: ids that were sampled and thrown away do no harm.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from watermark import prf
from watermark.counts import Counts
from watermark.errors import TaggantError

if TYPE_CHECKING:
    from watermark.marker import Marker, RequestMark

__all__ = ["RowMarker", "check_row", "trial_marker"]


class RowMarker:
    """Mark one request of an engine that samples it row by row.

    Args:
        marker: the server's.
        request: what `Marker.admit` returned for the request.
        prompt_length: ids of the prompt (and of a prefill, if the answer begins with one), which come first in the
            ids of every call; 0 for an engine that shows the response's ids alone. None: the first call's ids are
            the prompt.
    """

    def __init__(self, marker: Marker, request: RequestMark, *, prompt_length: int | None = None) -> None:
        self.marker = marker
        self.request = request
        self.prompt_length = prompt_length
        self._row: npt.NDArray[Any] | None = None
        marker.took_on(request)

    def __call__(self, input_ids: Any, logits: Any) -> Any:
        """Add delta to the green logits, in place, and return *logits*.

        Args:
            input_ids: the ids so far, (T,) or (1, T): prompt and response; integers of any dtype, on any device.
            logits: the next token's, (V,) or (1, V): float32 or float16, uint16 holding the bits of bfloat16, or a
                PyTorch tensor of one of the three types, with any strides and on any device.

        Raises:
            ValueError: a shape or dtype is not as above, or an id is a placeholder (negative).
        """
        response = self.response_of(input_ids)
        rows = logits[None] if logits.ndim == 1 else logits
        if rows.ndim != 2 or rows.shape[0] != 1:
            raise ValueError(f"logits: expected one row, (V,) or (1, V), got shape {tuple(logits.shape)}")
        if isinstance(rows, np.ndarray):
            self._mark(rows, response)
        else:
            from watermark.engines.tensors import bias_rows

            bias_rows(self.marker, rows, [response], [self.request])
        return logits

    def response_of(self, input_ids: Any) -> npt.NDArray[Any]:
        """Return the last ids of the response, as many as a window holds."""
        if len(getattr(input_ids, "shape", "1")) == 2:
            input_ids = input_ids[0]
        length = len(input_ids)
        if self.prompt_length is None:
            self.prompt_length = length
        green_list = self.request.green_list
        start = max(self.prompt_length, length - (0 if green_list is None else green_list.window))
        tail = input_ids[start:]
        return np.asarray(tail if isinstance(tail, np.ndarray | list | tuple) else tail.tolist(), dtype=np.int64)

    def _mark(self, rows: npt.NDArray[Any], response: npt.NDArray[Any]) -> None:
        if rows.strides[1] == rows.itemsize:
            self.marker.bias(rows, [response], [self.request])
            return
        # The row lies scattered, and kernels want it in one piece.
        if self._row is None or self._row.shape != rows.shape or self._row.dtype != rows.dtype:
            self._row = np.empty(rows.shape, dtype=rows.dtype)
        self._row[:] = rows
        self.marker.bias(self._row, [response], [self.request])
        rows[:] = self._row


def trial_marker(marker: Marker) -> Marker:
    """Return a marker of the same keys for a self-test: it counts for itself, and marks though the server shadows."""
    trial = copy.copy(marker)
    trial.counts = Counts()
    trial.config = replace(marker.config, shadow=False)
    return trial


def check_row(marker: Marker, *, vocabulary: int) -> None:
    """Put a row of zeros through the bias and compare its green tokens with the keyed function itself.

    Nothing is checked where nothing is marked.

    Args:
        marker: the server's.
        vocabulary: the width of the engine's logits.

    Raises:
        TaggantError: they differ: the compiled kernels do not do what `watermark.prf` says.
    """
    from watermark.marker import RequestMark

    green_list = marker.green_list
    if green_list is None:
        return
    scope = green_list.scope
    special = np.array(scope.params.special_ids, dtype=np.int64)
    ordinary = np.setdiff1d(np.arange(min(vocabulary, 512 + special.size)), special)
    windows = np.lib.stride_tricks.sliding_window_view(ordinary, green_list.window).astype(np.uint32)
    # The account lanes are marked for an account only.
    lanes = prf.lane(windows)
    chosen = int(np.flatnonzero(lanes < scope.params.fleet_lanes)[0])
    expected = prf.row(scope.lane_key(int(lanes[chosen])).reveal(), windows[chosen], vocabulary)
    green = expected < np.uint64(prf.green_below(scope.params.fleet_k))
    green[special[special < vocabulary]] = False
    row = np.zeros((1, vocabulary), dtype=np.float32)
    trial_marker(marker).bias(row, [windows[chosen]], [RequestMark(green_list=green_list)])
    if scope.delta and not np.array_equal(row[0], np.where(green, np.float32(scope.delta), np.float32(0))):
        raise TaggantError(
            "the compiled bias does not do what the keyed function says: delete Numba's cache (the files *.nbi and "
            "*.nbc beside watermark/kernels.py, or NUMBA_CACHE_DIR) and start again"
        )
