"""Scoring: pre-tokenized ids, whole-corpus deduplication and the exact p-value; beside the peers, in one run.

    pytest benchmarks/test_scoring_speed.py --benchmark-columns=min,median,rounds

``tokens`` in extra_info, divided by the time, is the throughput. Each group is one comparison.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import corpus_of, scope_of

from detect.binomial import log10_tail
from detect.distillation import detect_model
from detect.reference import Reference
from detect.tally import tally_of
from watermark import kernels
from watermark.keys import ScopeKeys
from watermark.tokenizer import Tokenizer

#: Special ids as SmolLM2's.
SPECIAL = tuple(range(17))


def score(documents: list[np.ndarray], scope: ScopeKeys) -> float:
    """Return log10 p of the pooled count test."""
    tally = tally_of(documents, window=scope.params.window, special_ids=scope.params.special_ids)
    seeds = kernels.seeds(scope.lane_words(), tally.windows, tally.lanes)
    green = kernels.green(seeds, scope.params.bounds()[tally.lanes], tally.pair_window, tally.tokens)
    return log10_tail(int(green.sum()), pairs=len(green), k=scope.params.fleet_k)


def run(benchmark: Any, function: Any, tokens: int, *arguments: Any) -> Any:
    benchmark.extra_info["tokens"] = tokens
    result = benchmark(function, *arguments)
    benchmark.extra_info["tokens_per_second"] = round(tokens / benchmark.stats.stats.min)
    return result


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("text", ["zipf", "real"])
def test_score_ids(benchmark: Any, window: int, text: str, request: pytest.FixtureRequest) -> None:
    documents = request.getfixturevalue(f"{text}_ids")
    benchmark.group = f"score ids, {text}"
    run(benchmark, score, sum(map(len, documents)), documents, scope_of(window=window, special_ids=SPECIAL))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_bare_kernel(benchmark: Any, window: int) -> None:
    rng = np.random.default_rng(1)
    windows = rng.integers(0, 128_256, (1_000_000, window), dtype=np.uint32)
    tokens = rng.integers(0, 128_256, 1_000_000, dtype=np.uint32)
    benchmark.group = "bare kernel"
    run(benchmark, kernels.uniform, len(tokens), np.uint64(1), np.uint64(2), windows, tokens)


@pytest.mark.parametrize("peer", ["taggant", "transformers"])
def test_against_transformers(benchmark: Any, peer: str, zipf_ids: list[np.ndarray]) -> None:
    """Transformers' WatermarkDetector (lefthash), as it comes and on few tokens: it takes a millisecond for each."""
    benchmark.group = "taggant against transformers' WatermarkDetector"
    if peer == "taggant":
        run(benchmark, score, sum(map(len, zipf_ids)), zipf_ids, scope_of(window=1, special_ids=SPECIAL))
        return
    torch = pytest.importorskip("torch", reason="the peer needs torch: make test-models installs it")
    transformers = pytest.importorskip("transformers", reason="the peer: make test-models installs it")
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(vocab_size=128_256, bos_token_id=128_000)
    detector = transformers.WatermarkDetector(
        model_config=config,
        device="cpu",
        watermarking_config=transformers.WatermarkingConfig(),
        ignore_repeated_ngrams=True,
    )
    few = torch.tensor(np.concatenate(zipf_ids)[:400].astype(np.int64))[None, :]
    benchmark.extra_info["tokens"] = few.shape[1]
    benchmark.pedantic(detector, args=(few,), rounds=3, warmup_rounds=1)
    benchmark.extra_info["tokens_per_second"] = round(few.shape[1] / benchmark.stats.stats.min)


@pytest.mark.parametrize("what", ["tokenizer alone", "detect text"])
def test_raw_text(benchmark: Any, what: str, real_texts: list[str], smollm2: Tokenizer, tmp_path: Any) -> None:
    """From JSON Lines on disk to the verdicts, beside the tokenizer alone on the same texts."""
    import json

    from detect.corpus import read_corpus
    from detect.marked_text import detect_text
    from detect.records import Reader

    benchmark.group = "raw text"
    tokens = sum(len(smollm2.encode(text)) for text in real_texts)
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in real_texts), encoding="utf-8")
    scope = scope_of(window=2, special_ids=SPECIAL)

    def tokenizer_alone() -> None:
        for text in real_texts:
            smollm2.encode(text)

    def whole() -> None:
        corpus = read_corpus(Reader([file]), smollm2, window=scope.params.window)
        detect_text(corpus, scope)

    run(benchmark, tokenizer_alone if what == "tokenizer alone" else whole, tokens)


@pytest.mark.parametrize("decoys", [0, 999])
def test_detect_model(benchmark: Any, decoys: int, real_ids: list[np.ndarray]) -> None:
    """The count test with decoys."""
    corpus = corpus_of(real_ids)
    benchmark.group = "detect model, no reference"
    scope = scope_of(window=2, special_ids=SPECIAL)
    benchmark.extra_info["tokens"] = corpus.tokens
    benchmark.pedantic(detect_model, args=(corpus, [scope]), kwargs={"decoys": decoys}, rounds=2, warmup_rounds=1)


@pytest.mark.parametrize("decoys", [0, 999])
def test_detect_model_with_a_reference(benchmark: Any, decoys: int) -> None:
    """The default tests over a million ids with the 256 likeliest tokens of a reference stored at each."""
    tokens, top, vocabulary = 1_000_000, 256, 49_152
    rng = np.random.default_rng(6)
    ids = (vocabulary * rng.random(tokens) ** 6).astype(np.uint32)
    # Each position's row is one of 5,000: geometric probabilities over tokens drawn from the same law.
    rows = (vocabulary * rng.random((5_000, top)) ** 6).astype(np.uint32)
    shapes = rng.uniform(0.2, 0.95, (5_000, 1)) ** np.arange(top)
    chosen = rng.integers(0, 5_000, tokens)
    probabilities = (0.98 * shapes / shapes.sum(axis=1, keepdims=True)).astype(np.float32)
    starts = np.arange(0, tokens + 1, 500)
    reference = Reference(
        name="synthetic",
        tokenizer="00" * 32,
        ids=ids,
        starts=starts,
        top_ids=rows[chosen],
        top_p=probabilities[chosen],
        said_p=np.full(tokens, 0.01, dtype=np.float32),
    )
    corpus = corpus_of(np.split(ids, starts[1:-1]))
    benchmark.group = "detect model, quasi-score and centred, top 256 stored"
    benchmark.extra_info["tokens"] = tokens
    benchmark.pedantic(
        detect_model,
        args=(corpus, [scope_of(window=2, special_ids=SPECIAL)]),
        kwargs={"reference": reference, "decoys": decoys},
        rounds=1,
        warmup_rounds=0,
    )
