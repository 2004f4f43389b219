"""Token ids and keys that the timings share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from watermark.tokenizer import Tokenizer, load


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    return load("smollm2")


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """The standard library's sources: 12 MB of real, repetitive text."""
    folder = Path(os.__file__).parent
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))]


@pytest.fixture(scope="session")
def real_ids(real_texts: list[str], smollm2: Tokenizer) -> list[np.ndarray]:
    return [smollm2.encode(text) for text in real_texts]


@pytest.fixture(scope="session")
def zipf_ids() -> list[np.ndarray]:
    """1,000,000 Zipf ids of 17..128,255 in 1,000 documents: many distinct pairs, the harder case."""
    rng = np.random.default_rng(0)
    ids = rng.zipf(1.2, 2_000_000)
    return np.array_split(ids[ids < 128_239][:1_000_000].astype(np.uint32) + np.uint32(16), 1000)
