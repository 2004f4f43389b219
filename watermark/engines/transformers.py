"""Hugging Face transformers: the green list as a `LogitsProcessor` for `generate`.

Processors given to `generate` as ``logits_processor=`` run before the temperature and the top-k and
top-p filters (transformers issue 34630), hence `before_temperature`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from transformers import LogitsProcessor

from watermark.green_list import GreenList, before_temperature

if TYPE_CHECKING:
    import torch

__all__ = ["GreenListLogitsProcessor"]


class GreenListLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Mark one call of `generate`.

    Args:
        green_list: the scope's green list.
        prompt_length: the width of the prompt batch, padding included. What follows is the response.
        temperature: the sampling temperature of the call; 0 for greedy decoding.
    """

    def __init__(self, green_list: GreenList, *, prompt_length: int, temperature: float) -> None:
        self.green_list = green_list
        self.prompt_length = prompt_length
        self.strength = before_temperature(temperature)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return *scores*, (B, V) float32 on the CPU, with delta added to each row's green tokens."""
        responses = input_ids[:, self.prompt_length :].cpu().numpy().astype(np.uint32)
        windows, marked = self.green_list.windows_of(list(responses))
        logits = np.ascontiguousarray(scores.float().cpu().numpy())
        self.green_list.bias(logits, windows, marked=marked, strength=self.strength)
        return scores.new_tensor(logits) if scores.device.type != "cpu" else _from_numpy(logits)


def _from_numpy(logits: np.ndarray) -> torch.FloatTensor:
    import torch

    return torch.from_numpy(logits)
