"""Tallying a corpus end to end: files on disk to the tally file; beside the tokenizer alone on the same texts.

pytest benchmarks/test_corpora_speed.py --benchmark-columns=min,median,rounds
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect.near_duplicates import signatures, to_leave_out
from detect.portions import Sifter
from detect.tally_build import Build, build_tally
from watermark.tokenizer import Tokenizer

pa = pytest.importorskip("pyarrow")


def run(benchmark: Any, function: Any, tokens: int) -> None:
    benchmark.extra_info["tokens"] = tokens
    benchmark.pedantic(function, rounds=3, warmup_rounds=1)
    benchmark.extra_info["tokens_per_second"] = round(tokens / benchmark.stats.stats.min)


@pytest.mark.parametrize("capacity", [2**24, 2**17], ids=["exact", "sampled"])
def test_ids_in_parquet(benchmark: Any, tmp_path: Path, smollm2: Tokenizer, capacity: int) -> None:
    """10 M Zipf ids in documents of 1,000."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    ids = (rng.zipf(1.2, 20_000_000)).astype(np.int64)
    ids = ids[ids < 49_000][:10_000_000].astype(np.uint32) + np.uint32(20)
    offsets = pa.array(np.arange(0, len(ids) + 1, 1000, dtype=np.int32))
    table = pa.table({"token_ids": pa.ListArray.from_arrays(offsets, pa.array(ids))})
    pq.write_table(table, tmp_path / "a.parquet", compression="lz4", use_dictionary=False)
    sifter = Sifter(smollm2, window=2, special_ids=smollm2.special_ids)
    benchmark.group = "tally build from ids in Parquet"
    build = Build(capacity=capacity)
    run(benchmark, lambda: build_tally([tmp_path / "a.parquet"], sifter, out=tmp_path / "x", build=build), len(ids))


@pytest.mark.parametrize("what", ["tally", "sampled", "tokenizer"])
def test_text_in_json_lines(
    benchmark: Any, tmp_path: Path, smollm2: Tokenizer, real_texts: list[str], what: str
) -> None:
    """The standard library's sources in pieces of 2,000 characters."""
    pieces = [text[i : i + 2000] for text in real_texts for i in range(0, len(text), 2000)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    tokens = sum(len(smollm2.encode(piece)) for piece in pieces)
    benchmark.group = "tally build from text in JSON Lines"
    sifter = Sifter(smollm2, window=2, special_ids=smollm2.special_ids)
    if what == "tokenizer":
        # The fastest call that there is.
        run(benchmark, lambda: [smollm2.encode_text(piece) for piece in pieces], tokens)
    else:
        build = Build(capacity=2**24 if what == "tally" else 2**17)
        run(benchmark, lambda: build_tally([path], sifter, out=tmp_path / "x", build=build), tokens)


@pytest.mark.parametrize("what", ["signatures", "groups"])
def test_near_duplicates(benchmark: Any, what: str) -> None:
    """Signatures of 2,000 documents of 1,000 ids; groups among 500,000 documents, a fifth of them copies."""
    rng = np.random.default_rng(0)
    benchmark.group = f"near-duplicates: {what}, tokens are documents"
    if what == "signatures":
        documents = [rng.integers(20, 49_000, 1000).astype(np.uint32) for _ in range(2000)]
        run(benchmark, lambda: signatures(documents, range(2000), documents=2000), 2000)
        return
    digests = rng.integers(0, 256, (500_000, 16)).astype(np.uint8)
    signed = rng.integers(0, 256, (500_000, 128)).astype(np.uint8)
    signed[400_000:] = signed[:100_000]
    run(benchmark, lambda: to_leave_out(digests, signed, threshold=0.8), 500_000)
