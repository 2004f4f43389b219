"""Make vLLM refuse to start where it would leave the green list out without a word (a general plugin of vLLM).

With speculative decoding, vLLM's V1 runner does not load processors that were announced by entry point, and
warns of something else (`vllm.v1.sample.logits_processor.build_logitsprocs`, 0.32): answers would be unmarked.

vLLM loads general plugins early, in each of its processes. Nothing heavy is imported here; Numba above all is
not, since vLLM's CPU worker then fails at its start (it takes every object in every module for a Triton kernel
that it may have to replace, and chokes on llvmlite's).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from watermark.errors import UsageError
from watermark.serving import Policy, ServingConfig

__all__ = ["guard", "missing"]

#: Whether `guard` has run in this process.
_guarded = False


def guard() -> None:
    """Wrap vLLM's making of logits processors, once."""
    from vllm.v1.sample import logits_processor as module

    global _guarded
    _guarded = True
    build = module.build_logitsprocs
    if getattr(build, "of_taggant", False):
        return

    @functools.wraps(build)
    def guarded(
        vllm_config: Any,
        device: Any,
        is_pin_memory: bool,
        is_pooling_model: bool,
        custom_logitsprocs: Sequence[Any] = (),
    ) -> Any:
        if vllm_config.speculative_config and not is_pooling_model:
            _refuse_unless_off()
        return build(vllm_config, device, is_pin_memory, is_pooling_model, custom_logitsprocs)

    guarded.of_taggant = True  # type: ignore[attr-defined]
    module.build_logitsprocs = guarded
    runner = sys.modules.get("vllm.v1.worker.gpu_model_runner")
    if runner is not None:  # Imported before this plugin was loaded, and it has the name for itself.
        runner.build_logitsprocs = guarded  # type: ignore[attr-defined]


def missing() -> str | None:
    """Return what is wrong where `guard` is announced to vLLM and an allow-list keeps it from being loaded."""
    if _guarded or os.environ.get("VLLM_PLUGINS") is None or not _announced():
        return None
    return "VLLM_PLUGINS leaves taggant out, so that nothing checks that answers are marked: add taggant to it"


@functools.cache
def _announced() -> bool:
    here = f"{__name__}:{guard.__name__}"
    return any(point.value == here for point in entry_points(group="vllm.general_plugins"))


def _refuse_unless_off() -> None:
    if ServingConfig.from_environment().policy is not Policy.OFF:
        raise UsageError(
            "speculative decoding with vLLM's V1 model runner leaves logits processors out, and answers would be "
            "served unmarked: use the V2 runner (a GPU with Triton; VLLM_USE_V2_MODEL_RUNNER=1), leave "
            "--speculative-config out, or set TAGGANT_POLICY=off"
        )
