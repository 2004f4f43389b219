"""What marking a batch costs on a CUDA device, beside a plain in-place add to the same logits.

    pytest benchmarks/test_cuda_speed.py

Each call is captured in a CUDA graph of many repetitions, so that what is timed is the device's work and
not Python's launches, and the repetitions go round several tensors, together larger than the device's
cache: an engine's logits are not all in it either. `test_ratio` (marked slow) asserts what is promised: at
64 x 151,936 the bias takes at most 1.5 times the add. Skipped without a CUDA device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from watermark.keys import Params, ScopeKeys, Secret

torch = pytest.importorskip("torch", reason="the device path needs torch")

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from watermark.device.green_lists import DeviceGreenLists  # noqa: E402

VOCABULARY = 151_936
REPETITIONS = 40
#: Bytes that the tensors of one timing take together: more than any device's cache.
SPREAD = 400_000_000

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def lists_of(rows: int, *, fused: bool) -> DeviceGreenLists:
    params = Params(tokenizer="00" * 32, special_ids=tuple(range(151_643, 151_670)), window=2)
    scope = ScopeKeys(name="speed", params=params, delta=2.0, key=Secret(bytes(32)))
    lists = DeviceGreenLists([scope], device="cuda", max_slots=rows, vocab_size=VOCABULARY, fused=fused)
    for slot in range(rows):
        lists.set_slot(slot, scope=0, addition=2.0, code_word=scope.code_word(f"account {slot}"))
    lists.flush()
    return lists


def logits_of(rows: int, dtype: Any) -> list[Any]:
    one = rows * VOCABULARY * torch.finfo(dtype).bits // 8
    return [torch.randn((rows, VOCABULARY), device="cuda").to(dtype) for _ in range(max(SPREAD // one, 1))]


def bias_of(rows: int, *, fused: bool = True) -> Callable[[Any], None]:
    lists = lists_of(rows, fused=fused)
    windows = torch.from_numpy(np.random.default_rng(0).integers(0, 151_643, (rows, 2), dtype=np.int32)).cuda()
    row_slot = torch.arange(rows, dtype=torch.int32, device="cuda")
    length = torch.full((rows,), 2, dtype=torch.int32, device="cuda")
    return lambda logits: lists.bias(logits, windows=windows, row_slot=row_slot, window_length=length)


def add(logits: Any) -> None:
    logits.add_(2.0)


def graph_of(call: Callable[[Any], None], tensors: list[Any], repetitions: int = REPETITIONS) -> Any:
    """Capture *repetitions* calls, one tensor after the other."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for tensor in tensors:
            call(tensor)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(repetitions):
            call(tensors[number % len(tensors)])
    return graph


def replay(graph: Any) -> None:
    graph.replay()
    torch.cuda.synchronize()


def microseconds(graph: Any) -> float:
    """Return what one call in *graph* takes, by the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000 / REPETITIONS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 8, 64, 256])
@pytest.mark.parametrize("what", ["add", "bias"])
def test_forty_calls(benchmark: Any, what: str, rows: int, dtype: str) -> None:
    benchmark.group = f"{rows} x {VOCABULARY}, {dtype}, {REPETITIONS} calls"
    graph = graph_of(add if what == "add" else bias_of(rows), logits_of(rows, DTYPES[dtype]))
    benchmark(replay, graph)


def test_forty_calls_in_pytorch(benchmark: Any) -> None:
    benchmark.group = f"64 x {VOCABULARY}, float32, {REPETITIONS} calls"
    benchmark(replay, graph_of(bias_of(64, fused=False), logits_of(64, torch.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_ratio(dtype: str) -> None:
    """The bias of 64 rows, hashing included, takes at most 1.5 times the plain add; the two alternate."""
    tensors = logits_of(64, DTYPES[dtype])
    graphs = {"bias": graph_of(bias_of(64), tensors), "add": graph_of(add, tensors)}
    least = dict.fromkeys(graphs, float("inf"))
    for _ in range(50):
        for name, graph in graphs.items():
            least[name] = min(least[name], microseconds(graph))
    assert least["bias"] <= 1.5 * least["add"], least
