"""Students and references that are bigram models of token ids."""

from __future__ import annotations

import numpy as np

from detect.reference import Reference


def bigrams(texts: list[np.ndarray], vocabulary: int) -> np.ndarray:
    """Return the probabilities of each token after each, smoothed: (vocabulary, vocabulary)."""
    counts = np.full((vocabulary, vocabulary), 0.02)
    for text in texts:
        np.add.at(counts, (text[:-1], text[1:]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def said_by(model: np.ndarray, reference: np.ndarray, *, length: int, seed: int) -> tuple[np.ndarray, Reference]:
    """Return a text of the model, and what the reference would have said."""
    random = np.random.default_rng(seed)
    edges = model.cumsum(axis=1)
    text = np.zeros(length, dtype=np.uint32)
    for at in range(1, length):
        text[at] = min(len(model) - 1, np.searchsorted(edges[text[at - 1]], random.random()))
    rows = reference[np.concatenate([[0], text[:-1]])]
    top = np.argsort(-rows, axis=1)[:, :64]
    return text, Reference(
        name="clean bigrams",
        tokenizer="00" * 32,
        ids=text,
        starts=np.array([0, length]),
        top_ids=top.astype(np.uint32),
        top_p=np.take_along_axis(rows, top, axis=1).astype(np.float32),
        said_p=rows[np.arange(length), text].astype(np.float32),
    )
