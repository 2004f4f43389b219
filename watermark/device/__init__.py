"""The green list where the logits are: PyTorch on any device, and Triton on CUDA.

`watermark.device.green_lists` is the module to use; `windows` gathers the windows of a batch from an
engine's table of token ids, `torch_prf` and `triton_kernels` hold the keyed function. All import torch
(extra `hf`), whose absence is reported here, before any of them fails.
"""

from importlib.util import find_spec

from watermark.errors import MissingExtraError

if find_spec("torch") is None:
    raise MissingExtraError(
        "watermark.device: PyTorch is not installed; run: pip install 'taggant[hf]' (on the CPU `watermark.green_list` "
        "does without)"
    )
