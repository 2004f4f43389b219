"""Verification of a large bundle, and what of it is the tokenizer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence import Forgery, Made, make_study

from detect.evidence.verify import open_and_verify
from watermark.tokenizer import Tokenizer, load

RESPONSES, TOKENS = 2_000, 560


def random_texts(tokenizer: Tokenizer) -> list[str]:
    """Texts in which hardly a pair comes twice: the worst case, a distinct pair a token."""
    random = np.random.default_rng(1)
    return [tokenizer.decode(random.integers(1_000, 49_000, TOKENS)) for _ in range(RESPONSES)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    texts = random_texts(load("smollm2"))

    def long(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [record | {"response": text} for record, text in zip(records, texts, strict=True)]

    return make_study(
        tmp_path_factory.mktemp("large"), forgery=Forgery(outputs=long), marked=False, responses=RESPONSES
    )


def test_verification_of_a_million_pairs_with_200_decoys(benchmark: Any, made: Made) -> None:
    found = benchmark.pedantic(
        lambda: open_and_verify(made.path, str(made.publisher), tokenizer=None, decoys=200, tsa_root=None),
        rounds=3,
    )
    assert found.exit_code == 0
    assert found.evidence is not None
    assert len(found.evidence.tally.tokens) > 1_000_000
    benchmark.extra_info["distinct pairs"] = len(found.evidence.tally.tokens)


def test_the_tokenizer_alone_on_its_text(benchmark: Any, made: Made) -> None:
    path: Path = made.path / "outputs.jsonl"
    texts = [json.loads(line)["response"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    tokenizer = load("smollm2")
    benchmark.pedantic(lambda: [tokenizer.encode(text) for text in texts], rounds=3)
