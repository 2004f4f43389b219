"""Real, repetitive text and keys for the tests of the analysis side."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from detect.ngram_reference import ngram_reference
from detect.reference import Reference
from watermark.tokenizer import Tokenizer, load

ROOT = Path(__file__).parents[2]

#: Python's own: boilerplate-heavy, with many phrases said again and again.
STDLIB = ("argparse", "ast", "calendar", "csv", "datetime", "difflib", "enum", "ftplib", "gzip", "heapq", "imaplib")
CLEAN = (
    "cgi",
    "cmd",
    "code",
    "codecs",
    "copy",
    "decimal",
    "dis",
    "doctest",
    "inspect",
    "json/decoder",
    "logging/config",
)


def stdlib_text(name: str, characters: int = 12_000) -> str:
    path = Path(os.__file__).parent / f"{name}.py"
    return path.read_text(encoding="utf-8", errors="replace")[:characters] if path.exists() else ""


def licence_text() -> str:
    import sys

    for folder in (Path(os.__file__).parent, Path(sys.base_prefix)):
        for name in ("LICENSE.txt", "LICENSE"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
    return (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    return load("smollm2")


@pytest.fixture(scope="session")
def repetitive(smollm2: Tokenizer) -> list[np.ndarray]:
    """The repository's own documents, Python's licence, and standard-library code: some 60,000 ids."""
    documents = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    texts = [licence_text(), (ROOT / "LICENSE").read_text(encoding="utf-8"), *documents]
    texts += [stdlib_text(name) for name in STDLIB]
    return [smollm2.encode(text[:20_000]) for text in texts if text]


@pytest.fixture(scope="session")
def clean(smollm2: Tokenizer) -> list[np.ndarray]:
    """Other text of the same kinds, for references."""
    return [smollm2.encode(stdlib_text(name, 20_000)) for name in CLEAN]


@pytest.fixture(scope="session")
def references(repetitive: list[np.ndarray], clean: list[np.ndarray]) -> dict[int, Reference]:
    return {
        window: ngram_reference(
            repetitive, clean, order=window + 1, vocabulary_size=50_000, tokenizer="00" * 32, name="other code"
        )
        for window in (1, 2, 4)
    }
