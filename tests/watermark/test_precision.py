"""Models run in a number format that the processor has."""

from __future__ import annotations

import pytest


@pytest.mark.models
@pytest.mark.parametrize(
    ("device", "has", "name"),
    [
        ("cpu", "", "float32"),
        ("cpu", "_is_avx512_bf16_supported", "bfloat16"),
        ("cpu", "_is_amx_tile_supported", "bfloat16"),
        ("cuda", "", "bfloat16"),
    ],
)
def test_bfloat16_where_it_is_not_emulated(monkeypatch: pytest.MonkeyPatch, device: str, has: str, name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from watermark import precision

    for told in precision._BFLOAT16:
        assert hasattr(torch.cpu, told)
        monkeypatch.setattr(torch.cpu, told, lambda told=told: told == has)
    assert precision.fast_dtype(device) is getattr(torch, name)
