"""Texts that a server marked for accounts, drawn from a Zipf-like model of a small vocabulary: many at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from watermark.green_list import GreenList
from watermark.keys import ScopeKeys


def marked_texts(
    keys: ScopeKeys, accounts: Sequence[str | None], *, length: int, vocabulary: int = 800, seed: int
) -> list[np.ndarray]:
    """Return one text a given account: uint32 (length,), the next token drawn by what the last one was."""
    random = np.random.default_rng(seed)
    green_list = GreenList(keys)
    order = np.argsort(np.random.default_rng(0).random((64, vocabulary)), axis=1)
    base = (-1.0 * np.log(2.0 + order)).astype(np.float32)
    texts = np.zeros((len(accounts), length), dtype=np.uint32)
    texts[:, 0] = random.integers(0, vocabulary, len(accounts))
    names = list(accounts)
    for at in range(1, length):
        rows = base[texts[:, at - 1] % 64].copy()
        if at >= keys.params.window:
            green_list.bias(rows, np.ascontiguousarray(texts[:, at - keys.params.window : at]), accounts=names)
        rows += random.gumbel(size=rows.shape).astype(np.float32)
        texts[:, at] = rows.argmax(axis=1)
    return list(texts)
