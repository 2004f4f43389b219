"""What a step of each engine's adapter costs, beside the bare add and transformers' own green list.

    pytest benchmarks/test_engines_speed.py

A group is a width of the vocabulary and a number of rows (float32). `bare_add` adds a number to all of them in
place, the least that any bias costs; `kgw_lefthash` is `WatermarkLogitsProcessor` of transformers, with its default
seeding. An adapter that takes one row is called once a row. llama.cpp's logits lie scattered (a field of 12 bytes),
and `llama_cpp_copy` is what its own loop pays to read and write them. What `generate` itself copies is not in it.

No time is asserted, but for the ratio of adapters to the core, in `test_ratio` (marked slow).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import markers
import numpy as np
import pytest

from watermark.engines.plain import RowMarker
from watermark.marker import Marker

ROWS = (1, 8, 32)
WIDTHS = (49_152, 128_256)
PROMPT = [5, 6, 7, 8]

Step = Callable[[], object]


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Marker:
    return markers.marker_of(tmp_path_factory.mktemp("keys"), special_ids=(0, 3))


def ids_of(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(10, 40_000, (rows, 64))


def logits_of(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 4, (rows, width)).astype(np.float32)


def bare_add(marker: Marker, rows: int, width: int) -> Step:
    logits = logits_of(rows, width)

    def step() -> None:
        nonlocal logits
        logits += 2.0

    return step


def core(marker: Marker, rows: int, width: int) -> Step:
    logits, responses = logits_of(rows, width), list(ids_of(rows))
    requests = [marker.admit({"taggant_account": f"a{b}"}) for b in range(rows)]
    return lambda: marker.bias(logits, responses, requests)


def plain(marker: Marker, rows: int, width: int) -> Step:
    logits, ids = logits_of(rows, width), ids_of(rows)
    marks = [RowMarker(marker, marker.admit({"taggant_account": f"a{b}"}), prompt_length=4) for b in range(rows)]
    return lambda: [mark(ids[b], logits[b]) for b, mark in enumerate(marks)]


def transformers_before(marker: Marker, rows: int, width: int) -> Step:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from watermark.engines.transformers import GreenListLogitsProcessor

    assert marker.green_list is not None
    accounts = [f"a{b}" for b in range(rows)]
    processor = GreenListLogitsProcessor(marker.green_list, prompt_length=4, temperature=1.0, accounts=accounts)
    ids, scores = torch.from_numpy(ids_of(rows)), torch.from_numpy(logits_of(rows, width))
    return lambda: processor(ids, scores)


def transformers_batching(marker: Marker, rows: int, width: int) -> Step:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from watermark.engines.transformers import GreenListWatermarkingConfig, MarkingProcessor
    from watermark.engines.transformers_batching import BatchMarkingProcessor

    processor = BatchMarkingProcessor(MarkingProcessor(marker, GreenListWatermarkingConfig()))
    ids, scores = ids_of(rows), torch.from_numpy(logits_of(rows, width))
    states = [
        SimpleNamespace(
            request_id=str(b),
            created_time=0.0,
            logit_processor_kwargs={"taggant_account": f"a{b}"},
            initial_tokens=PROMPT,
            generated_tokens=ids[b].tolist(),
            position_offset=len(PROMPT) + 64,
            _true_initial_tokens=0,
        )
        for b in range(rows)
    ]
    batch = [SimpleNamespace(state=state) for state in states]
    return lambda: processor(scores, processor.prepare_tensor_args(batch))


def kgw_lefthash(marker: Marker, rows: int, width: int) -> Step:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processor = transformers.WatermarkLogitsProcessor(vocab_size=width, device="cpu")
    ids, scores = torch.from_numpy(ids_of(rows)), torch.from_numpy(logits_of(rows, width))
    return lambda: processor(ids, scores)


def onnxruntime_genai(marker: Marker, rows: int, width: int) -> Step:
    from watermark.engines.onnxruntime_genai import GeneratorMarker

    ids, logits = ids_of(rows), logits_of(rows, width)[:, None]
    generator = SimpleNamespace(
        get_logits=lambda: logits, set_logits=lambda changed: None, get_sequence=lambda b: ids[b]
    )
    requests = [marker.admit({"taggant_account": f"a{b}"}) for b in range(rows)]
    mark = GeneratorMarker(marker, requests, prompt_length=4)
    return lambda: mark(generator)


def scattered(rows: int, width: int) -> np.ndarray:
    candidates = np.zeros((rows, width), dtype=[("id", np.intc), ("logit", np.single), ("p", np.single)])
    candidates["logit"] = logits_of(rows, width)
    return candidates["logit"]


def llama_cpp(marker: Marker, rows: int, width: int) -> Step:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    from watermark.engines.llama_cpp import GreenListLogitsProcessor

    logits, ids = scattered(rows, width), ids_of(rows).astype(np.intc)
    requests = [marker.admit({"taggant_account": f"a{b}"}) for b in range(rows)]
    processors = [GreenListLogitsProcessor(marker, request, prompt_length=4) for request in requests]

    def step() -> None:
        for b, processor in enumerate(processors):
            logits[b] = processor(ids[b], logits[b])

    return step


def llama_cpp_copy(marker: Marker, rows: int, width: int) -> Step:
    logits, row = scattered(rows, width), np.empty(width, dtype=np.float32)

    def step() -> None:
        for b in range(rows):
            row[:] = logits[b]
            logits[b] = row

    return step


STEPS = [
    bare_add,
    core,
    plain,
    transformers_before,
    transformers_batching,
    kgw_lefthash,
    onnxruntime_genai,
    llama_cpp,
    llama_cpp_copy,
]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("made", STEPS, ids=lambda made: made.__name__)
def test_step(benchmark: Any, marker: Marker, made: Any, rows: int, width: int) -> None:
    benchmark.group = f"{width} x {rows}"
    step = made(marker, rows, width)
    step()
    benchmark.pedantic(step, rounds=200 // rows, iterations=1, warmup_rounds=2)


@pytest.mark.slow
@pytest.mark.parametrize("made", [plain, transformers_batching, onnxruntime_genai], ids=lambda made: made.__name__)
def test_ratio(marker: Marker, made: Any) -> None:
    """An adapter adds at most half of what the core takes for a row of 128,256.

    The least of many rounds, which alternate, so that whatever else the machine does meets both alike. What the core
    takes beside the bare add is promised and tested in test_green_list_speed.py.
    """
    steps = {"adapter": made(marker, 1, 128_256), "core": core(marker, 1, 128_256)}
    least = dict.fromkeys(steps, float("inf"))
    for _ in range(1_000):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            least[name] = min(least[name], time.perf_counter() - start)
    assert least["adapter"] <= 1.5 * least["core"], least
