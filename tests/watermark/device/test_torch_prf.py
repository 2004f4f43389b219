"""The keyed function in PyTorch against the vectors and the specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watermark import prf

torch = pytest.importorskip("torch", reason="the device path needs torch")

from watermark.device import torch_prf  # noqa: E402

VECTORS = Path(__file__).parents[2] / "vectors" / "prf.json"
PRF: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))

devices = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]

ids = st.integers(0, 2**32 - 1)


def words_of(key: bytes, device: str) -> tuple[Any, Any]:
    k0, k1 = (torch.tensor(torch_prf.to_signed(word), device=device) for word in prf.key_words(key))
    return k0, k1


def tensor(array: np.ndarray, device: str) -> Any:
    return torch.from_numpy(array.astype(np.int64)).to(device)


def unsigned(words: Any) -> np.ndarray:
    return np.asarray(words.cpu().numpy()).view(np.uint64)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("h", range(9))
def test_siphash_gives_the_published_vectors(h: int, device: str) -> None:
    window = np.frombuffer(bytes(range(4 * h)), dtype="<u4")[None, :]
    got = torch_prf.siphash24(*words_of(bytes(range(16)), device), tensor(window, device))
    assert unsigned(got)[0].item().to_bytes(8, "little").hex() == PRF["siphash24"][str(4 * h)]


@pytest.mark.parametrize("device", devices)
def test_split_mix_gives_the_published_vectors(device: str) -> None:
    steps = torch_prf.split_mix_steps(torch.arange(5, device=device))
    got = torch_prf.split_mix(torch.tensor(1234567, device=device), steps)
    assert unsigned(got).tolist() == PRF["splitmix64"]


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("vector", PRF["uniform"], ids=lambda v: f"h{len(v['window'])}")
def test_vectors(vector: dict[str, Any], device: str) -> None:
    tokens = tensor(np.array(vector["tokens"]), device)
    windows = tensor(np.tile(np.array(vector["window"], dtype=np.int64), (len(tokens), 1)), device)
    k0, k1 = words_of(bytes.fromhex(vector["key"]), device)
    u = torch_prf.uniform(k0, k1, windows, tokens)
    assert unsigned(torch_prf.siphash24(k0, k1, windows))[0] == int(vector["seed"])
    assert unsigned(u).tolist() == [int(value) for value in vector["u"]]
    assert torch_prf.lane(windows)[0] == vector["lane"]
    assert torch_prf.is_green(u, torch.tensor(64, device=device)).tolist() == vector["green_64"]


@settings(max_examples=100, deadline=None)
@given(key=st.binary(min_size=16, max_size=16), h=st.integers(0, 8), data=st.data())
def test_it_is_the_specification(key: bytes, h: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(ids, min_size=h, max_size=h), min_size=1, max_size=6))
    tokens = np.array(data.draw(st.lists(ids, min_size=len(rows), max_size=len(rows))), dtype=np.uint32)
    windows = np.array(rows, dtype=np.uint32).reshape(len(rows), h)
    k0, k1 = words_of(key, "cpu")
    expected = prf.uniform(key, windows, tokens)
    u = torch_prf.uniform(k0, k1, tensor(windows, "cpu"), tensor(tokens, "cpu"))
    assert (unsigned(u) == expected).all()
    assert (torch_prf.lane(tensor(windows, "cpu")).numpy() == prf.lane(windows)).all()
    k = np.array(data.draw(st.lists(st.integers(1, 255), min_size=len(rows), max_size=len(rows))))
    bounds = np.array([prf.green_below(value) for value in k.tolist()], dtype=np.uint64)
    assert (torch_prf.is_green(u, tensor(k, "cpu")).numpy() == (expected < bounds)).all()


@pytest.mark.parametrize("k", [1, 127, 128, 129, 255])
def test_the_bound_itself_is_not_green_and_what_lies_below_is(k: int) -> None:
    """About the sign bit, where an int64 comparison would go wrong."""
    u = torch.tensor([torch_prf.to_signed((k << 56) + d) for d in (-1, 0)])
    assert torch_prf.is_green(u, torch.tensor(k)).tolist() == [True, False]


@settings(max_examples=60, deadline=None)
@given(key=st.binary(min_size=16, max_size=16), width=st.integers(0, 8), data=st.data())
def test_windows_of_several_lengths_hash_as_each_alone(key: bytes, width: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, width), min_size=1, max_size=6))
    windows = np.random.default_rng(width).integers(0, 2**32, (len(lengths), width), dtype=np.uint32)
    got = torch_prf.siphash24(*words_of(key, "cpu"), tensor(windows, "cpu"), lengths=torch.tensor(lengths))
    for row, (window, length) in enumerate(zip(windows, lengths, strict=True)):
        assert unsigned(got)[row] == prf.siphash24(key, window[None, :length])[0]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="int64 of shape"):
        torch_prf.lane(torch.zeros((3, 9), dtype=torch.int64))
    with pytest.raises(ValueError, match="int64 of shape"):
        torch_prf.lane(torch.zeros((3, 2), dtype=torch.int32))
