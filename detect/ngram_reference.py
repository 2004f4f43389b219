"""A reference where no model is at hand: a backed-off n-gram language model of clean text.

Any token sequences that never saw the mark will do: a clean twin's outputs, human text, a code corpus. The model is
Witten and Bell's (IEEE Trans. Inf. Theory 37, 1991, method C; interpolated as in Chen and Goodman, Computer Speech and
Language 13, 1999, section 2.6): after a context c seen N(c) times with T(c) kinds of tokens ::

    p(v | c) = (N(c v) + T(c) p(v | c without its first id)) / (N(c) + T(c)),

down to the empty context, which is mixed with the uniform distribution over the vocabulary. Contexts do not reach over
the start of a sequence. No key is in it, and the suspect's text is only looked up, never counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from detect.reference import TOP, Reference, on_grid
from detect.tabulation import longer_names, number
from watermark.errors import UsageError
from watermark.kernels import kernel

__all__ = ["ORDER", "ngram_reference"]

#: Ids that the model looks at, the predicted one among them, unless told otherwise.
ORDER: Final = 3

#: Half a unit of the file format: smaller probabilities are stored as 0.
_LEAST: Final = 2.0**-17

Ids = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def ngram_reference(
    responses: Sequence[Ids],
    clean: Sequence[Ids],
    *,
    tokenizer: str,
    name: str,
    vocabulary_size: int,
    order: int = ORDER,
    top: int = TOP,
) -> Reference:
    """Estimate a reference for *responses* from *clean* text.

    Args:
        responses: the suspect's, each uint32.
        clean: sequences that never saw the mark, each uint32.
        tokenizer: digest of the tokenizer of all of them.
        name: of the reference, for people.
        vocabulary_size: ids are below it.
        order: longest n-gram counted, 1 or more; 1 is the unigram model.
        top: how many of the likeliest tokens are kept at each position.

    Returns:
        A reference of every position, the first of a response too (it follows the empty context).

    Raises:
        UsageError: *clean* holds no id, or an id is outside the vocabulary; *order* or *top* is below 1.
    """
    if order < 1 or top < 1:
        raise UsageError(f"reference {name}: expected an order and a number of tokens of 1 or more, got {order}, {top}")
    parts = [*clean, *responses]
    ids = np.concatenate(parts).astype(np.uint32) if parts else np.zeros(0, dtype=np.uint32)
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    known = int(sizes[: len(clean)].sum())
    if not known:
        raise UsageError(f"reference {name}: its text holds no ids: give some clean text")
    if int(ids.max()) >= vocabulary_size:
        raise UsageError(
            f"reference {name}: expected ids under {vocabulary_size}, got {int(ids.max())}: text of another tokenizer"
        )
    depth = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    asked = slice(known, len(ids))
    said = np.full(len(ids) - known, 1.0 / vocabulary_size)
    # One row a level, from the empty context on: where the asked positions' contexts are in `tokens` and `p`.
    begin = np.zeros((len(said), order), dtype=np.int64)
    end = np.zeros((len(said), order), dtype=np.int64)
    share = np.ones((len(said), order))
    tokens: list[Ids] = []
    probabilities: list[Values] = []
    context = np.zeros(len(ids), dtype=np.int32)
    lower = np.full(known, 1.0 / vocabulary_size)
    listed = 0
    for level in range(order):
        if level:
            # A context of `level` ids: one shorter that began a step later has its number at the position before.
            shifted = np.concatenate([np.full(1, -1, dtype=np.int32), context[:-1]])
            context, _ = number(longer_names(np.where(depth >= level, shifted, np.int32(-1)), ids, 1))
        pair, _ = number(longer_names(context, ids, 0))
        contexts, pairs = int(context.max(initial=-1)) + 1, int(pair.max(initial=-1)) + 1
        inside = pair[:known] >= 0
        count = np.bincount(pair[:known][inside], minlength=pairs)
        of, token, below = np.zeros(pairs, np.int64), np.zeros(pairs, np.uint32), np.zeros(pairs)
        of[pair[:known][inside]] = context[:known][inside]
        token[pair[:known][inside]] = ids[:known][inside]
        below[pair[:known][inside]] = lower[inside]
        total = np.bincount(context[:known][inside], minlength=contexts)
        kinds = np.bincount(of[count > 0], minlength=contexts)
        with np.errstate(invalid="ignore"):
            passed = np.where(total > 0, kinds / (total + kinds), 1.0)
        p = np.where(count > 0, count / np.maximum(1, total + kinds)[of], 0.0) + passed[of] * below
        lower = np.where(inside, p[np.where(inside, pair[:known], 0)] if pairs else 0.0, lower)
        here = context[asked]
        at = here >= 0
        share[at, level] = passed[here[at]]
        said *= share[:, level]
        found = at & (pair[asked] >= 0)
        seen = np.zeros(len(said), dtype=np.bool_)
        seen[found] = count[pair[asked][found]] > 0
        said[seen] = p[pair[asked][seen]]
        rows = np.flatnonzero((count > 0) & (p >= _LEAST))
        rows = rows[np.lexsort((token[rows], -p[rows], of[rows]))]
        ends = listed + np.cumsum(np.bincount(of[rows], minlength=contexts)) if contexts else np.zeros(0, np.int64)
        begins = np.concatenate([[listed], ends[:-1]]) if contexts else ends
        begin[at, level], end[at, level] = begins[here[at]], ends[here[at]]
        tokens.append(token[rows])
        probabilities.append(p[rows])
        listed += len(rows)
    top_ids, top_p = _likeliest(
        begin, end, share, np.concatenate(tokens), np.concatenate(probabilities), vocabulary_size, top
    )
    return Reference(
        name=name,
        tokenizer=tokenizer,
        ids=ids[asked].copy(),
        starts=np.concatenate([[0], np.cumsum(sizes[len(clean) :])]).astype(np.int64),
        top_ids=top_ids,
        top_p=on_grid(top_p),
        said_p=on_grid(said.astype(np.float32)),
    )


@kernel
def _likeliest(
    begin: Indices, end: Indices, share: Values, tokens: Ids, p: Values, vocabulary_size: int, top: int
) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Merge each position's lists, longest context first: the *top* likeliest tokens and their probabilities.

    Each list is sorted by falling p. A token in a longer context's list has its probability there; in a shorter one's
    it has a smaller one times the mass passed down, so it is skipped. *top* tokens that are new suffice of each list:
    what stands after them in a list is beaten by them.
    """
    n, levels = begin.shape
    out_ids = np.zeros((n, top), np.uint32)
    out_p = np.zeros((n, top), np.float32)
    stamp = np.full(vocabulary_size, -1, np.int64)
    found_ids = np.empty(top * levels, np.uint32)
    found_p = np.empty(top * levels, np.float64)
    for i in range(n):
        mass = 1.0
        found = 0
        for back in range(levels):
            level = levels - 1 - back
            new = 0
            for j in range(begin[i, level], end[i, level]):
                if new == top or mass * p[j] < _LEAST:
                    break
                if stamp[tokens[j]] != i:
                    stamp[tokens[j]] = i
                    found_ids[found] = tokens[j]
                    found_p[found] = mass * p[j]
                    found += 1
                    new += 1
            mass *= share[i, level]
            if mass < _LEAST:
                break
        order = np.argsort(-found_p[:found], kind="mergesort")
        for t in range(min(top, found)):
            out_ids[i, t] = found_ids[order[t]]
            out_p[i, t] = found_p[order[t]]
    return out_ids, out_p
