from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_server import END

from watermark.green_list import GreenList
from watermark.ingress.trial import Evidence, evidence_of
from watermark.keyring import Keyring
from watermark.keys import Params

PARAMS = Params(tokenizer="ab" * 32, special_ids=(END,), window=2, fleet_k=64, account_k=128, account_lanes=16)


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_unmarked_ids_pass_no_more_often_than_they_may(seed: int, window: int) -> None:
    """Each example is an independent key and text; that one passes at 1e-4 is a chance of 1 in 500."""
    rng = np.random.default_rng(seed)
    params = Params(tokenizer="ab" * 32, special_ids=(END,), window=window, fleet_k=64, account_k=128, account_lanes=16)
    scope = Keyring.create("a", params=params, delta=2.0, root=None, state="active").scope()
    found = evidence_of(GreenList(scope), [rng.integers(0, 50, size=300).tolist() for _ in range(3)])
    assert found.pairs <= 900 - 3 * window
    assert found.green <= found.pairs
    assert found.p > 1e-9


def test_evidence_counts_distinct_pairs_outside_of_special_ids() -> None:
    scope = Keyring.create("a", params=PARAMS, delta=2.0, state="active").scope()
    green_list = GreenList(scope)
    base = list(range(10, 60))
    once = evidence_of(green_list, [base])
    assert evidence_of(green_list, [base, base]) == once
    assert 0 < once.pairs <= 48
    cut = evidence_of(green_list, [[*base[:25], END, *base[25:]]])
    assert cut.pairs < once.pairs
    assert evidence_of(green_list, [[1], []]) == Evidence(0, 0, 0.25, 2.0)
    assert not Evidence(0, 0, 0.25, 2.0).passed
