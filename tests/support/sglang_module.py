"""SGLang's own module of custom processors, and the function that calls them, without its CUDA packages.

They are taken from an installed sglang, or from the wheel that SGLANG_WHEEL names
(``pip download --no-deps sglang``), and everything else that they import is left out.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import logging
import os
import sys
import types
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

_MODULE = "sglang/srt/sampling/custom_logit_processor.py"
_SAMPLER = "sglang/srt/layers/sampler.py"
_REQUESTS = "sglang/srt/managers/schedule_batch.py"


@functools.cache
def _source(name: str) -> str:
    wheel = os.environ.get("SGLANG_WHEEL")
    if wheel:
        with zipfile.ZipFile(wheel) as file:
            return file.read(name).decode("utf-8")
    found = importlib.util.find_spec("sglang")
    if found is None or found.origin is None:
        pytest.skip("SGLang's module of custom processors is not here: set SGLANG_WHEEL to its wheel")
    return (Path(found.origin).parent.parent / name).read_text(encoding="utf-8")


@functools.cache
def _definitions(name: str, names: frozenset[str]) -> types.CodeType:
    """Return the top-level definitions of *names* alone."""
    tree = ast.parse(_source(name))
    kept = [node for node in tree.body if getattr(node, "name", None) in names]
    tree.body = [*ast.parse("from __future__ import annotations").body, *kept]
    return compile(tree, name, "exec")


def _defined(name: str, names: set[str], given: dict[str, Any]) -> dict[str, Any]:
    exec(_definitions(name, frozenset(names)), given)  # noqa: S102 (SGLang's own code)
    return given


def install(monkeypatch: pytest.MonkeyPatch, *, overlap: bool = False) -> Any:
    """Put what the adapter imports of SGLang into `sys.modules`; return `apply_custom_logit_processor`."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("dill")
    pytest.importorskip("orjson")
    for needed in (_MODULE, _SAMPLER, _REQUESTS):
        _source(needed)  # Before empty packages stand in for SGLang's, which lead to none of its files.
    for package in ("sglang", "sglang.srt", "sglang.srt.sampling", "sglang.srt.managers"):
        module = types.ModuleType(package)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, package, module)
    name = "sglang.srt.sampling.custom_logit_processor"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(_source(_MODULE), name, "exec"), module.__dict__)  # noqa: S102 (SGLang's own code)
    context = types.ModuleType("sglang.srt.runtime_context")
    context.get_schedule = lambda: SimpleNamespace(disable_overlap_schedule=not overlap)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, context.__name__, context)
    requests = types.ModuleType("sglang.srt.managers.schedule_batch")
    requests.__dict__.update(_defined(_REQUESTS, {"BaseFinishReason", "FINISH_ABORT"}, {}))
    monkeypatch.setitem(sys.modules, requests.__name__, requests)
    monkeypatch.delitem(sys.modules, "watermark.engines.sglang", raising=False)
    given = {"torch": torch, "logger": logging.getLogger("sglang")}
    return _defined(_SAMPLER, {"apply_custom_logit_processor"}, given)["apply_custom_logit_processor"]
