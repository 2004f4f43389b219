"""One vector file, every adapter: which logits are raised, in each type of logits, and that nothing else changes.

The vectors are made by the specification (tests/vectors/make_engine_vectors.py), as a detector looks a token up.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import markers
import numpy as np
import pytest
import sglang_module

from watermark.engines.plain import RowMarker
from watermark.marker import Marker, RequestMark

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "engines.json").read_text(encoding="utf-8"))
assert bytes.fromhex(VECTORS["root"]) == markers.ROOT.reveal()
V = VECTORS["vocabulary"]

#: Puts one row of logits, (V,), through an adapter: the marker, the request, prompt and response, the row.
Adapter = Callable[[Marker, RequestMark, list[int], list[int], np.ndarray], np.ndarray]


def torch_row(row: np.ndarray) -> Any:
    torch = pytest.importorskip("torch")
    if row.dtype == np.uint16:
        return torch.from_numpy(row.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(row.copy())


def array(row: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    if row.dtype == torch.bfloat16:
        return np.asarray(row.contiguous().view(torch.int16).numpy().view(np.uint16))
    return np.asarray(row.numpy())


def core(marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray) -> np.ndarray:
    marker.bias(row[None], [response], [request])
    return row


def plain(marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray) -> np.ndarray:
    assert RowMarker(marker, request, prompt_length=len(prompt))(prompt + response, row) is row
    return row


def plain_strided(
    marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray
) -> np.ndarray:
    scattered = np.zeros((V, 3), dtype=row.dtype)
    scattered[:, 1] = row
    mark = RowMarker(marker, request)
    mark(np.array(prompt, dtype=np.int32), np.zeros(V, dtype=np.float32))  # The first call's ids are the prompt.
    mark(np.array([prompt + response], dtype=np.int32), scattered[:, 1])
    assert not scattered[:, [0, 2]].any()
    return scattered[:, 1].copy()


def plain_torch(
    marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray
) -> np.ndarray:
    torch = pytest.importorskip("torch")
    logits = torch_row(row)
    RowMarker(marker, request, prompt_length=len(prompt))(torch.tensor([prompt + response]), logits[None])
    strided = torch_row(np.repeat(row, 2))[::2]
    RowMarker(marker, request, prompt_length=len(prompt))(torch.tensor(prompt + response), strided)
    np.testing.assert_array_equal(array(strided), array(logits))
    return array(logits)


def transformers_before(
    marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray
) -> np.ndarray:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from watermark.engines.transformers import GreenListLogitsProcessor

    assert request.green_list is not None
    logits = torch_row(row)[None]
    processor = GreenListLogitsProcessor(
        request.green_list, prompt_length=len(prompt), temperature=1.0, accounts=[request.account]
    )
    biased = processor(torch.tensor([prompt + response]), logits)
    assert (array(logits[0]) == row).all()
    return array(biased[0])


def transformers_after(
    marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray
) -> np.ndarray:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from watermark.engines.transformers import GreenListWatermarkingConfig, MarkingProcessor

    processor = MarkingProcessor(marker, GreenListWatermarkingConfig(account=request.account))
    processor(torch.tensor([prompt]), torch.zeros(1, V))
    return array(processor(torch.tensor([prompt + response]), torch_row(row)[None])[0])


def transformers_batching(
    marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray
) -> np.ndarray:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from watermark.engines.transformers import GreenListWatermarkingConfig, MarkingProcessor
    from watermark.engines.transformers_batching import BatchMarkingProcessor

    processor = BatchMarkingProcessor(MarkingProcessor(marker, GreenListWatermarkingConfig()))
    fields = {} if request.account is None else {"taggant_account": request.account}
    state = SimpleNamespace(
        request_id="r",
        created_time=0.0,
        logit_processor_kwargs=fields,
        initial_tokens=prompt,
        generated_tokens=response,
        position_offset=len(prompt) + len(response),
        _true_initial_tokens=0,
    )
    args = processor.prepare_tensor_args([SimpleNamespace(state=state)])
    return array(processor(torch_row(row)[None], args)[0])


def llama_cpp(
    marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray
) -> np.ndarray:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    from watermark.engines.llama_cpp import GreenListLogitsProcessor

    if row.dtype != np.float32:
        pytest.skip("llama.cpp's logits are float32")
    candidates = np.zeros(V, dtype=[("id", np.intc), ("logit", np.single), ("p", np.single)])
    candidates["logit"] = row
    processor = GreenListLogitsProcessor(marker, request)
    processor.begin(len(prompt))
    candidates["logit"] = processor(np.array(prompt + response, dtype=np.intc), candidates["logit"])
    return candidates["logit"].copy()


def sglang(marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        sglang_module.install(patch)
        module = importlib.import_module("watermark.engines.sglang")
        patch.setattr(module, "process_marker", lambda vocabulary: marker)
        said = SimpleNamespace(
            rid="r", output_ids=response, sampling_params=SimpleNamespace(temperature=1.0), to_finish=None
        )
        fields = {} if request.account is None else {"taggant_account": request.account}
        processor = module.GreenListCustomLogitProcessor.from_str(module.GreenListCustomLogitProcessor.to_str())
        return array(processor(torch_row(row)[None], [{**fields, "__req__": said}])[0])


def onnxruntime_genai(
    marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray
) -> np.ndarray:
    from watermark.engines.onnxruntime_genai import GeneratorMarker

    class Generator:
        logits = row[None, None]

        def get_logits(self) -> np.ndarray:
            return self.logits

        def set_logits(self, logits: np.ndarray) -> None:
            assert logits.shape == self.logits.shape
            self.logits = logits

        def get_sequence(self, b: int) -> np.ndarray:
            return np.array(prompt + response, dtype=np.int32)

    generator = Generator()
    GeneratorMarker(marker, [request], prompt_length=len(prompt))(generator)
    return generator.logits[0, 0]


def mlx_lm(marker: Marker, request: RequestMark, prompt: list[int], response: list[int], row: np.ndarray) -> np.ndarray:
    mx = pytest.importorskip("mlx.core", reason="needs mlx")
    from watermark.engines.mlx_lm import GreenListProcessor

    half = row.dtype == np.uint16
    logits = mx.array(row)[None]
    processor = GreenListProcessor(marker, request)
    processor(mx.array(prompt), mx.zeros((1, V)))
    marked = processor(mx.array(prompt + response), logits.view(mx.bfloat16) if half else logits)
    return np.array(marked.view(mx.uint16) if half else marked)[0]


ADAPTERS: list[Adapter] = [
    core,
    plain,
    plain_strided,
    plain_torch,
    transformers_before,
    transformers_after,
    transformers_batching,
    llama_cpp,
    sglang,
    onnxruntime_genai,
    mlx_lm,
]


def plus_two(row: np.ndarray) -> np.ndarray:
    """Return each logit plus 2, widened to float32 and rounded to nearest even."""
    if row.dtype != np.uint16:
        return (row.astype(np.float32) + np.float32(2)).astype(row.dtype)
    wide = ((row.astype(np.uint32) << 16).view(np.float32) + np.float32(2)).view(np.uint32)
    return ((wide + np.uint32(0x7FFF) + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


def logits_of(dtype: Any, seed: int) -> np.ndarray:
    wide = np.random.default_rng(seed).normal(0, 4, V).astype(np.float32)
    wide[[5, 77]] = -np.inf
    return (wide.view(np.uint32) >> 16).astype(np.uint16) if dtype is np.uint16 else wide.astype(dtype)


@functools.cache
def marker_of(folder: Path, window: int) -> Marker:
    (folder / str(window)).mkdir()
    return markers.marker_of(folder / str(window), window=window)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
def test_every_adapter_raises_the_same_logits(adapter: Adapter, dtype: Any, folder: Path) -> None:
    assert sum(bool(case["raised"]) for case in VECTORS["cases"]) >= 24
    for number, case in enumerate(VECTORS["cases"]):
        marker = marker_of(folder, case["window"])
        fields = {} if case["account"] is None else {"taggant_account": case["account"]}
        row = logits_of(dtype, number)
        expected = row.copy()
        expected[case["raised"]] = plus_two(row)[case["raised"]]
        marked = adapter(marker, marker.admit(fields), case["prompt"], case["response"], row.copy())
        # To the bit, -inf and the logits that stay as they are among them.
        assert marked.tobytes() == expected.tobytes(), (number, case)
