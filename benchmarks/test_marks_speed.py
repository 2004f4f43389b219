"""Scoring speed of marks made by others, pairs a second on one core.

pytest benchmarks/test_marks_speed.py --benchmark-columns=min,median,rounds
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detect.mark import Mark
from detect.marks.synthid import SynthIDMark, keys_secret
from detect.marks.textseal import TextSealGumbelMark
from detect.marks.transformers_kgw import TransformersGreenListMark
from detect.marks.vllm_gumbel import VllmGumbelMark
from detect.tally import tally_of
from watermark.keys import Secret

KEY = Secret(bytes(range(1, 9)))

MARKS: dict[str, Mark] = {
    "vllm": VllmGumbelMark(KEY),
    "vllm dual": VllmGumbelMark(KEY, alpha=0.1),
    "lefthash": TransformersGreenListMark(KEY, vocabulary=49_152),
    "synthid": SynthIDMark(keys_secret(list(range(30))), ngram_len=5),
    "textseal": TextSealGumbelMark(KEY, ngram=2),
}


@pytest.mark.parametrize("name", MARKS)
def test_scores(benchmark: Any, name: str) -> None:
    mark = MARKS[name]
    vocabulary = 2_000 if name == "lefthash" else 49_152
    ids = np.random.default_rng(1).integers(0, vocabulary, 1_000_000, dtype=np.uint32)
    tally = tally_of([ids], window=mark.window)
    mark.scores(tally)
    benchmark.extra_info["tokens"] = len(tally.tokens)
    benchmark(mark.scores, tally)
    benchmark.extra_info["pairs_per_second"] = round(len(tally.tokens) / benchmark.stats.stats.min)
