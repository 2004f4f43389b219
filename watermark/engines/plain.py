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

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from watermark.marker import Marker, RequestMark

__all__ = ["RowMarker"]


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
