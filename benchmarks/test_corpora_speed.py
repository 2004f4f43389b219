"""Tallying a corpus end to end: files on disk to the tally file; beside the tokenizer alone on the same texts.

pytest benchmarks/test_corpora_speed.py --benchmark-columns=min,median,rounds
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


@pytest.mark.parametrize("what", ["tally", "tokenizer"])
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
        run(benchmark, lambda: [smollm2.encode(piece) for piece in pieces], tokens)
    else:
        run(benchmark, lambda: build_tally([path], sifter, out=tmp_path / "x"), tokens)
