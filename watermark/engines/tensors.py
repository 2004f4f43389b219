"""Logits as PyTorch tensors: the same bias, on whichever device they are.

On the CPU the tensor's own memory is biased. On CUDA `bias_rows` biases it there (`watermark.device`);
otherwise, and in `bias_tensor`, the rows travel to the CPU and back, which is right to the bit and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from watermark.marker import Marker, RequestMark

__all__ = ["array_of", "bias_rows", "bias_tensor"]


def bias_rows(
    marker: Marker,
    logits: torch.Tensor,
    responses: Sequence[Sequence[int] | npt.NDArray[Any]],
    requests: Sequence[RequestMark],
) -> None:
    """Do as `Marker.bias` does, with logits in a tensor: (B, V), float32, float16 or bfloat16, of any device.

    Raises:
        ValueError: another dtype; or a response holds a placeholder of a token that is not sampled yet.
    """
    if logits.device.type == "cuda" and logits.stride(-1) == 1:
        from watermark.device.batch import batch_of

        batch_of(marker, logits).bias(logits, responses, requests)
    else:
        bias_tensor(logits, lambda rows: marker.bias(rows, responses, requests))


def bias_tensor(logits: torch.Tensor, bias: Callable[[npt.NDArray[Any]], object]) -> None:
    """Call *bias* with the logits as an array that it may write to; what it writes is in *logits* afterwards.

    Args:
        logits: (B, V), float32, float16 or bfloat16, of any device and strides.
        bias: takes what `watermark.green_list.GreenList.bias` takes: (B, V), bfloat16 as uint16 bits.

    Raises:
        ValueError: another dtype.
    """
    if logits.device.type == "cpu" and (logits.stride(-1) == 1 or logits.shape[-1] == 1):
        bias(array_of(logits))
        return
    on_host = logits.detach().to("cpu", copy=True).contiguous()
    bias(array_of(on_host))
    logits.copy_(on_host)


def array_of(logits: torch.Tensor) -> npt.NDArray[Any]:
    """Return a CPU tensor's memory as an array; bfloat16, which NumPy lacks, as the bits in uint16.

    Raises:
        ValueError: the tensor is not float32, float16 or bfloat16, or not on the CPU.
    """
    if logits.dtype not in (torch.float32, torch.float16, torch.bfloat16) or logits.device.type != "cpu":
        raise ValueError(
            f"logits: expected float32, float16 or bfloat16 on the CPU, got {logits.dtype} on {logits.device}"
        )
    logits = logits.detach()
    if logits.dtype == torch.bfloat16:
        return np.asarray(logits.view(torch.int16).numpy().view(np.uint16))
    return np.asarray(logits.numpy())
