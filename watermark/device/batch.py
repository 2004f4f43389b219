"""Batches whose ids an engine keeps on the host, biased where their logits are.

For engines that show the ids so far of each row at every step, and no slots (transformers, SGLang, a loop of
one's own). The ids of the windows go to the device, the logits stay there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy.typing as npt
import torch

from watermark.device.requests import DeviceRequests
from watermark.marker import UNMARKED, Marker, RequestMark

__all__ = ["DeviceBatch", "batch_of"]


class DeviceBatch:
    """Do as `Marker.bias` does, with logits on a device.

    Args:
        marker: whose requests they are.
        device: where the logits are.
        max_rows: rows of a batch at most.
        vocab_size: an upper bound of the logits' width.

    Raises:
        TaggantError: the device does not give what `watermark.prf` specifies (`watermark.self_test`).
    """

    def __init__(self, marker: Marker, *, device: torch.device | str, max_rows: int, vocab_size: int) -> None:
        self.max_rows = max_rows
        self.vocab_size = vocab_size
        self.requests = DeviceRequests(marker, device=device, max_slots=max_rows, vocab_size=vocab_size)
        self.requests.self_test(vocab_size)
        self._held = [UNMARKED] * max_rows

    def bias(
        self,
        logits: torch.Tensor,
        responses: Sequence[Sequence[int] | npt.NDArray[Any]],
        requests: Sequence[RequestMark],
    ) -> None:
        """Bias rows in place; arguments as `Marker.bias`, with logits (B, V) in a tensor.

        Raises:
            ValueError: a response holds a placeholder of a token that is not sampled yet.
        """
        for row, request in enumerate(requests):
            if self._held[row] is not request:  # A row's request stays, as a rule, from step to step.
                self.requests.put(row, request)
                self._held[row] = request
        self.requests.flush()
        self.requests.bias_responses(logits, responses, slots=range(len(requests)))


_batches: WeakKeyDictionary[Marker, dict[torch.device, DeviceBatch]] = WeakKeyDictionary()


def batch_of(marker: Marker, logits: torch.Tensor) -> DeviceBatch:
    """Return the batch of *marker* on the device of *logits* (B, V), made or made larger where there is need."""
    rows, vocabulary = logits.shape
    here = _batches.setdefault(marker, {})
    found = here.get(logits.device)
    if found is None or found.max_rows < rows or found.vocab_size < vocabulary:
        size = max(rows, 32, 0 if found is None else 2 * found.max_rows)
        found = here[logits.device] = DeviceBatch(marker, device=logits.device, max_rows=size, vocab_size=vocabulary)
    return found
