"""Attribution of a text of 1,000 tokens among many accounts, code words derived on the way."""

from __future__ import annotations

from typing import Any

import builders
import pytest
from marked_texts import marked_texts

from detect.attribution import attribute

KEYS = builders.scope_of(window=2, account_lanes=16)


@pytest.mark.parametrize("accounts", [24_000, 1_000_000])
def test_attribution(benchmark: Any, accounts: int) -> None:
    names = [f"account-{i}" for i in range(accounts)]
    corpus = builders.corpus_of(marked_texts(KEYS, ["account-7"], length=1_000, seed=1))
    rounds = 3 if accounts < 100_000 else 1
    (found,) = benchmark.pedantic(attribute, (corpus, KEYS, names), {"level": 1e-6}, rounds=rounds, warmup_rounds=1)
    assert [each.account for each in found.found] == ["account-7"]
