"""onnxruntime-genai's adapter in its real loop, with a tiny random model that its own builder has made."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import markers
import numpy as np
import pytest

from watermark.errors import UsageError
from watermark.marker import Marker

og = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx_ir", reason="onnxruntime-genai's builder needs onnx and onnx_ir")

from watermark.engines.onnxruntime_genai import GeneratorMarker  # noqa: E402

V = 512
PROMPT = [5, 6, 7, 8]
LENGTH = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={f"t{i}": i for i in range(V)}, merges=[]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="t2").save_pretrained(folder)  # noqa: S106
    out = folder / "onnx"
    # In a process of its own: the builder imports modules by names that others have too.
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    places = ["-i", str(folder), "-o", str(out), "-c", str(folder / "cache")]
    subprocess.run([*command, *places], check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return og.Model(str(out))


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Marker:
    return markers.marker_of(tmp_path_factory.mktemp("keys"))


def generator_of(model: Any, rows: int, **options: Any) -> Any:
    params = og.GeneratorParams(model)
    params.set_search_options(
        max_length=len(PROMPT) + LENGTH, min_length=len(PROMPT) + LENGTH, batch_size=rows, **options
    )
    generator = og.Generator(model, params)
    generator.append_tokens(np.array([PROMPT] * rows, dtype=np.int32))
    return generator


@pytest.mark.parametrize("sampled", [False, True])
def test_the_real_loop(model: Any, marker: Marker, sampled: bool) -> None:
    fields = [{"taggant_account": "acme"}, {"taggant_mark": "off"}, {"taggant_account": "globex"}]
    requests = [marker.admit(said) for said in fields]
    generator = generator_of(model, 3, do_sample=sampled, temperature=1.0, top_k=0)
    mark = GeneratorMarker(marker, requests, prompt_length=len(PROMPT))
    raised = np.zeros(3, dtype=int)
    while not generator.is_done():
        before = np.array(generator.get_logits()).reshape(3, V)
        mark(generator)
        after = np.array(generator.get_logits()).reshape(3, V)
        for b in range(3):
            response = generator.get_sequence(b)[len(PROMPT) :].tolist()
            expected = markers.expected_row(before[b], requests[b], response)
            assert after[b].tobytes() == expected.tobytes()
            raised[b] += bool((after[b] != before[b]).any())
        generator.generate_next_token()
        if not sampled:
            # What was set is what the engine draws from.
            assert [int(generator.get_sequence(b)[-1]) for b in range(3)] == drawable(after)
    assert raised[1] == 0
    assert min(raised[0], raised[2]) > LENGTH / 2


def drawable(logits: np.ndarray) -> list[int]:
    """Return the likeliest ids; the end is held back until the minimal length."""
    held = logits.copy()
    held[:, 2] = -np.inf
    return held.argmax(axis=1).tolist()


def test_beam_search_is_refused(model: Any, marker: Marker) -> None:
    generator = generator_of(model, 1, num_beams=2)
    mark = GeneratorMarker(marker, [marker.admit({})], prompt_length=len(PROMPT))
    with pytest.raises(UsageError, match="got 2"):
        mark(generator)
