"""One file an engine: each turns its engine's batch into windows and logits and calls `GreenList.bias`."""
