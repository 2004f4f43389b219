"""Hugging Face transformers: the green list as a `LogitsProcessor` for `generate`.

Processors given to `generate` as ``logits_processor=`` run before the temperature and the top-k and
top-p filters (transformers issue 34630), hence `before_temperature`.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import LogitsProcessor

from watermark.green_list import GreenList, before_temperature

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
        """Return *scores*, (B, V), with delta added to each row's green tokens; *scores* itself stays as it is.

        The bias is added in float32 on the CPU; the result has the device and the dtype of *scores*.
        """
        start = max(self.prompt_length, input_ids.shape[1] - self.green_list.window)
        responses = input_ids[:, start:].cpu().numpy().astype(np.uint32)
        windows, marked = self.green_list.windows_of(list(responses))
        # A copy, since `generate` hands the same tensor out as the raw logits (output_logits=True).
        logits = np.array(scores.detach().float().cpu().numpy(), order="C")
        self.green_list.bias(logits, windows, marked=marked, strength=self.strength)
        return torch.from_numpy(logits).to(device=scores.device, dtype=scores.dtype)
