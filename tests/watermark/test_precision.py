"""Models run in a number format that the processor has."""

from __future__ import annotations

import pytest


@pytest.mark.models
@pytest.mark.parametrize(
    ("device", "capability", "name"),
    [
        ("cpu", "AVX2", "float32"),
        ("cpu", "DEFAULT", "float32"),
        ("cpu", "AVX512", "bfloat16"),
        ("cuda", "AVX2", "bfloat16"),
    ],
)
def test_bfloat16_where_it_is_not_emulated(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: str, name: str
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from watermark.precision import fast_dtype

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert fast_dtype(device) is getattr(torch, name)
