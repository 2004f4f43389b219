"""A tally's rows of text that leans to the green, with the law that it would have had otherwise as reference."""

from __future__ import annotations

import numpy as np

from detect.mark import GreenListMark
from detect.reference import Reference
from detect.reference_check import first_mass
from detect.tally import Tally, tally_of
from detect.tally_rows import TallyRows
from watermark import kernels
from watermark.keys import ScopeKeys

VOCABULARY, TOP = 400, 32


def tilted_rows(scope: ScopeKeys, *, seed: int, tokens: int = 200_000, tilt: float = 0.3) -> TallyRows:
    """Return rows of one text of bigrams over 400 ids, whose green logits have *tilt* added."""
    rng, v = np.random.default_rng(seed), VOCABULARY
    logits = rng.normal(0, 2.0, (v, v))
    clean = np.exp(logits - logits.max(axis=1, keepdims=True))
    clean /= clean.sum(axis=1, keepdims=True)
    tilted = clean * np.exp(tilt * _green(scope))
    cumulated = np.cumsum(tilted / tilted.sum(axis=1, keepdims=True), axis=1)
    draws = rng.random(tokens)
    ids = np.zeros(tokens, dtype=np.uint32)
    for i in range(1, tokens):
        ids[i] = min(v - 1, int(np.searchsorted(cumulated[ids[i - 1]], draws[i])))
    best = np.argsort(-clean, axis=1)[:, :TOP]
    before = np.concatenate([[0], ids[:-1]])
    reference = Reference(
        name="true",
        tokenizer="00" * 32,
        ids=ids,
        starts=np.array([0, tokens], dtype=np.int64),
        top_ids=best[before].astype(np.uint32),
        top_p=np.take_along_axis(clean, best, axis=1)[before].astype(np.float32),
        said_p=clean[before, ids].astype(np.float32),
    )
    tally = tally_of([ids], window=1, reference=reference)
    return TallyRows.of_tally(tally, first_mass=first_mass(tally, reference, special_ids=()))


def _green(scope: ScopeKeys) -> np.ndarray:
    """Return which token is green after which, (v, v)."""
    v = VOCABULARY
    windows = np.repeat(np.arange(v, dtype=np.uint32), v)[:, None]
    every = Tally(
        windows=windows,
        lanes=kernels.lanes(windows),
        information=np.zeros(v * v, dtype=np.int64),
        pair_window=np.arange(v * v, dtype=np.int64),
        tokens=np.tile(np.arange(v, dtype=np.uint32), v),
        said=np.ones(v * v, dtype=np.int64),
        expected=np.zeros(v * v, dtype=np.int64),
        position_pair=np.zeros(0, dtype=np.int32),
        left_out_prompt=0,
    )
    return GreenListMark(scope).scores(every).reshape(v, v)
