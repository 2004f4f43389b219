"""The green list where the logits are: PyTorch on any device, and Triton on CUDA.

`watermark.device.green_lists` is the module to use; `windows` gathers the windows of a batch from an
engine's table of token ids, `torch_prf` and `triton_kernels` hold the keyed function. These modules import
torch (extra `hf`), so none is imported from here.
"""
