"""The number format in which models run here.

Answers differ by rounding alone. Processors that have no bfloat16 of their own emulate it: a core with AVX2 alone
trained on 754 ids/s in place of 8,559, and one with AVX-512 but without its bfloat16 multiplied matrices at 27
GFLOP/s in place of 108.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["fast_dtype"]


def fast_dtype(device: str) -> torch.dtype:
    """Return bfloat16 on a GPU and on a CPU that computes in it, else float32."""
    import torch

    if device != "cpu":
        return torch.bfloat16
    return torch.bfloat16 if any(_has(torch.cpu, name) for name in _BFLOAT16) else torch.float32


#: What torch calls the instructions; none of it is public, and what an older version does not know it has not.
_BFLOAT16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def _has(cpu: Any, name: str) -> bool:
    told = getattr(cpu, name, None)
    return told is not None and bool(told())
