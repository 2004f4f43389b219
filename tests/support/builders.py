"""What tests of several files build: corpora and scopes of random ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from detect.corpus import Corpus
from detect.records import Accounting
from watermark.keys import Params, ScopeKeys, Secret


def corpus_of(responses: list[np.ndarray], prompts: list[list[np.ndarray]] | None = None) -> Corpus:
    return Corpus(
        responses=responses,
        prompts=prompts or [[] for _ in responses],
        prompt_texts=[() for _ in responses],
        document=np.arange(len(responses), dtype=np.int64),
        sources=[f"text:{i}" for i in range(len(responses))],
        accounting=Accounting(),
        digests={},
        without_prompt=0,
        from_ids=0,
    )


def shape_of(params: Params) -> dict[str, Any]:
    """What `tally_of` wants of a scope's parameters."""
    return {"window": params.window, "special_ids": params.special_ids}


def scope_of(
    *,
    key: int = 1,
    window: int = 1,
    delta: float = 2.0,
    special_ids: tuple[int, ...] = (),
    fleet_k: int = 64,
    account_k: int = 128,
    account_lanes: int = 0,
) -> ScopeKeys:
    params = Params(
        tokenizer="00" * 32,
        special_ids=special_ids,
        window=window,
        fleet_k=fleet_k,
        account_k=account_k,
        account_lanes=account_lanes,
    )
    return ScopeKeys(name="test", params=params, delta=delta, key=Secret(key.to_bytes(32, "little")))
