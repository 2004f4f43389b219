"""The number format in which models run here.

Answers differ by rounding alone. Processors that have no bfloat16 of their own emulate it, ten times slower than
float32 (754 against 8,559 ids/s of training on one core that has AVX2 and no more).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["fast_dtype"]


def fast_dtype(device: str) -> torch.dtype:
    """Return bfloat16 on a GPU and on a CPU that has AVX-512 or more, else float32."""
    import torch

    capable = device != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
    return torch.bfloat16 if capable else torch.float32
