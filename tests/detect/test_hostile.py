"""Every hostile input ends in an account that adds up or in one error of Taggant's: seeds, finds, and new changes."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect import inputs
from detect.portions import Sifter
from detect.records import Reader
from watermark.errors import InputError
from watermark.tokenizer import load

#: Inputs that broke a promise once; `tests/support/hostile.py` puts new ones there.
FOUND = sorted((Path(__file__).parent / "hostile").glob("*.*"))

SEEDS = dict(hostile.seeds())


@pytest.fixture(scope="module")
def sifter() -> Sifter:
    smollm2 = load("smollm2")
    return Sifter(smollm2, window=2, special_ids=smollm2.special_ids)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """The bounds that inputs of a few thousand bytes meet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "MAX_LINE", 2**18)
        patch.setattr(inputs, "MAX_TEXT", 2**18)
        yield


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_seeds(name: str, sifter: Sifter) -> None:
    form = name.rsplit(".")[-1]
    outcome = hostile.try_one(form, SEEDS[name], sifter)
    good = name in (
        "good.jsonl",
        "good.any",
        "gzip.jsonl",
        "zstd.jsonl",
        "plain.txt",
        "separators.jsonl",
        "formulas.csv",
    )
    if good or name.endswith(".parquet"):
        assert outcome == "read"
    elif name not in ("cells.csv", "ids.tsv", "deep_calls.jsonl"):
        assert outcome in ("malformed", "UsageError")


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_found(path: Path, sifter: Sifter) -> None:
    hostile.try_one(path.suffix[1:], path.read_bytes(), sifter)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(SEEDS)),
    other=st.sampled_from(sorted(SEEDS)),
    form=st.none() | st.sampled_from(sorted(hostile.FORMS)),
    seed=st.integers(0, 2**32),
)
def test_changed(name: str, other: str, form: str | None, seed: int, sifter: Sifter) -> None:
    data = hostile.changed(SEEDS[name], SEEDS[other], random.Random(seed))
    hostile.try_one(form or name.rsplit(".")[-1], data, sifter)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), form=st.sampled_from(sorted(hostile.FORMS)))
def test_any_bytes(data: bytes, form: str, sifter: Sifter) -> None:
    hostile.try_one(form, data, sifter)


@settings(max_examples=200, deadline=None)
@given(
    record=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["role", "content", "messages", "response", "text", "prompt", "token_ids", "tool_calls"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json(record: object, sifter: Sifter) -> None:
    hostile.try_one("jsonl", json.dumps(record).encode() + b"\n", sifter)


LONG_LINE = """
import resource, sys
from detect.records import Reader

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), -1))
reader = Reader([sys.argv[1]], max_malformed=1)
for document in reader:
    reader.accounting.score()
print(reader.accounting.to_json()["read"], reader.accounting.malformed)
"""


@pytest.mark.slow
def test_a_line_of_a_gigabyte_and_a_half(tmp_path: Path) -> None:
    """Passed over in less memory than it is long."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.write(hostile.GOOD + b'{"response": "')
        for _ in range(1536):
            stream.write(b"a" * 2**20)
        stream.write(b'"}\n' + hostile.GOOD)
    ran = subprocess.run(
        [sys.executable, "-c", LONG_LINE, str(path), str(2**30)], capture_output=True, text=True, check=False
    )
    assert ran.stdout.split() == ["3", "1"], ran.stderr


@pytest.mark.slow
def test_ten_gigabytes_of_zstd_bomb(tmp_path: Path) -> None:
    """300 kB that unpack to 10 GB: told as a bomb after 256 MB, in a second and little memory."""
    zstandard = pytest.importorskip("zstandard")
    packing = zstandard.ZstdCompressor().compressobj()
    path = tmp_path / "a.jsonl.zst"
    with path.open("wb") as stream:
        for _ in range(1250):
            stream.write(packing.compress(bytes(2**23)))
        stream.write(packing.flush())
    assert path.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "MAX_LINE", 2**26)
        patch.setattr(inputs, "MAX_TEXT", 2**28)
        reader = Reader([path])
        with pytest.raises(InputError, match="records are malformed"):
            list(reader)
    assert "a bomb" in reader.accounting.problems[-1]
    assert time.monotonic() - began < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
