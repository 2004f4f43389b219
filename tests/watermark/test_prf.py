"""`sipmix-v1`: the specification and the kernels against the vectors and against each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watermark import kernels, prf

VECTORS = Path(__file__).parents[1] / "vectors"
PRF: dict[str, Any] = json.loads((VECTORS / "prf.json").read_text(encoding="utf-8"))

ids = st.integers(0, 2**32 - 1)


def windows_of(rows: list[list[int]], h: int) -> np.ndarray:
    return np.array(rows, dtype=np.uint32).reshape(len(rows), h)


def test_the_vector_files_are_what_the_second_implementation_writes(tmp_path: Path) -> None:
    script = tmp_path / "make_vectors.py"
    script.write_text((VECTORS / "make_vectors.py").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, str(script)], check=True)
    for name in ("prf.json", "keys.json"):
        assert (tmp_path / name).read_bytes() == (VECTORS / name).read_bytes()


@pytest.mark.parametrize("h", range(9))
def test_siphash_gives_the_published_vectors(h: int) -> None:
    """A window of h ids is a message of 4h bytes, so the published messages of 0, 4, ... 32 bytes are windows."""
    window = np.frombuffer(bytes(range(4 * h)), dtype="<u4").astype(np.uint32)[None, :]
    got = prf.siphash24(bytes(range(16)), window)
    assert int(got[0]).to_bytes(8, "little").hex() == PRF["siphash24"][str(4 * h)]


def test_split_mix_gives_the_published_vectors() -> None:
    got = prf.split_mix(np.full(5, 1234567, dtype=np.uint64), np.arange(5, dtype=np.uint32))
    assert got.tolist() == PRF["splitmix64"]


@pytest.mark.parametrize("vector", PRF["uniform"], ids=lambda v: f"h{len(v['window'])}")
def test_vectors(vector: dict[str, Any]) -> None:
    tokens = np.array(vector["tokens"], dtype=np.uint32)
    window = np.array(vector["window"], dtype=np.uint32)
    windows = np.tile(window, (len(tokens), 1))
    key = bytes.fromhex(vector["key"])
    expected = [int(u) for u in vector["u"]]
    assert prf.siphash24(key, windows)[0] == int(vector["seed"])
    assert prf.uniform(key, windows, tokens).tolist() == expected
    assert prf.lane(windows)[0] == vector["lane"]
    k0, k1 = (np.uint64(word) for word in prf.key_words(key))
    assert kernels.uniform(k0, k1, windows, tokens).tolist() == expected
    assert kernels.lanes(windows)[0] == vector["lane"]
    assert [u < prf.green_below(64) for u in expected] == vector["green_64"]


@settings(max_examples=200, deadline=None)
@given(
    key=st.binary(min_size=16, max_size=16),
    h=st.integers(0, 8),
    data=st.data(),
)
def test_kernel_is_the_specification(key: bytes, h: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(ids, min_size=h, max_size=h), min_size=1, max_size=6))
    tokens = np.array(data.draw(st.lists(ids, min_size=len(rows), max_size=len(rows))), dtype=np.uint32)
    windows = windows_of(rows, h)
    words = prf.key_words(key)
    k0, k1 = (np.uint64(word) for word in words)
    assert (kernels.uniform(k0, k1, windows, tokens) == prf.uniform(key, windows, tokens)).all()
    lanes = kernels.lanes(windows)
    assert (lanes == prf.lane(windows)).all()
    table = np.tile(np.array(words, dtype=np.uint64), (64, 1))
    assert (kernels.seeds(table, windows, lanes) == prf.siphash24(key, windows)).all()
    assert (kernels.row(k0, k1, windows[0], 300) == prf.row(key, windows[0], 300)).all()


def test_a_row_is_the_pairs_of_its_window() -> None:
    key = bytes(range(16))
    window = np.array([5, 70_000], dtype=np.uint32)
    tokens = np.arange(1000, dtype=np.uint32)
    assert (prf.row(key, window, 1000) == prf.uniform(key, np.tile(window, (1000, 1)), tokens)).all()


def test_green_sums_are_a_loop_over_the_specification() -> None:
    rng = np.random.default_rng(1)
    windows = rng.integers(0, 50_000, (40, 2), dtype=np.uint32)
    keys = rng.integers(0, 2**64, (3, 64, 2), dtype=np.uint64)
    bounds = np.array([prf.green_below(64 if j < 48 else 128) for j in range(64)], dtype=np.uint64)
    pair_window = rng.integers(0, 40, 500)
    tokens = rng.integers(0, 50_000, 500, dtype=np.uint32)
    weights = rng.integers(-1000, 1000, (500, 2))
    lanes = prf.lane(windows)
    got = kernels.green_sums(keys, windows, lanes, bounds, pair_window, tokens, weights)
    for number, table in enumerate(keys):
        total = np.zeros(2, dtype=np.int64)
        for w, v, a in zip(pair_window, tokens, weights, strict=True):
            key = table[lanes[w]].astype("<u8").tobytes()
            if prf.uniform(key, windows[w : w + 1], np.array([v], dtype=np.uint32))[0] < bounds[lanes[w]]:
                total += a
        assert got[number].tolist() == total.tolist()


def test_neighbouring_tokens_windows_and_keys_share_nothing() -> None:
    """Greenness of 400,000 pairs against that of a neighbour: |r| below 4 standard errors."""
    n = 400_000
    tokens = np.arange(n, dtype=np.uint32)
    window = np.array([[17]], dtype=np.uint32)
    base = _green(1, np.tile(window, (n, 1)), tokens)
    others = {
        "next token": _green(1, np.tile(window, (n, 1)), tokens + np.uint32(1)),
        "token + 65536": _green(1, np.tile(window, (n, 1)), tokens + np.uint32(65536)),
        "next window": _green(1, np.tile(window + np.uint32(1), (n, 1)), tokens),
        "next key": _green(2, np.tile(window, (n, 1)), tokens),
    }
    for name, other in others.items():
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / np.sqrt(n), name
    assert abs(base.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / n)


def _green(key: int, windows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return kernels.uniform(np.uint64(key), np.uint64(0), windows, tokens) < np.uint64(prf.green_below(64))


@pytest.mark.parametrize("k", [0, 256, -1])
def test_gamma_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        prf.green_below(k)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint32 of shape"):
        prf.lane(np.zeros((3, 9), dtype=np.uint32))
    with pytest.raises(ValueError, match="uint32 of shape"):
        prf.lane(np.zeros((3, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="16 bytes"):
        prf.key_words(b"short")
