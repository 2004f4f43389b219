"""A study's keys: drawn from numbers that everyone knows, so that anyone can make the study again."""

from __future__ import annotations

import hashlib

from watermark.keys import Params, ScopeKeys, Secret, scope_key
from watermark.tokenizer import Tokenizer

__all__ = ["study_root", "study_scope"]

_LABEL = b"taggant/1/study"


def study_scope(number: int, *, tokenizer: Tokenizer, window: int, delta: float, gamma_256: int) -> ScopeKeys:
    """Return the keys of a study's scope *number*: fit for studies alone, since they are public.

    The root is SHA-256("taggant/1/study" + le64(number)), the scope's name ``study``, and all lanes are
    fleet lanes.
    """
    params = Params(
        tokenizer=tokenizer.digest(),
        special_ids=tokenizer.special_ids,
        window=window,
        fleet_k=gamma_256,
        account_lanes=0,
    )
    return ScopeKeys(name="study", params=params, delta=delta, key=scope_key(study_root(number), "study"))


def study_root(number: int) -> Secret:
    """Return the root of a study's scope *number*, which is no secret."""
    return Secret(hashlib.sha256(_LABEL + number.to_bytes(8, "little")).digest())
