"""A reference made by reading: a model's next-token probabilities at each position of the suspect's text.

Needs the extra `hf`. The model never sees the key, only the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from detect.reference import TOP, Reference, on_grid
from watermark.models import LanguageModel

__all__ = ["read_reference"]

Ids = npt.NDArray[np.uint32]

#: Positions a forward pass, padding included: 2,048 rows of 50,000 float32 logits are 400 MB.
_POSITIONS = 2048


def read_reference(
    model: LanguageModel,
    responses: Sequence[Ids],
    prompts: Sequence[tuple[str, ...]],
    *,
    top: int = TOP,
    progress: Callable[[int], None] = lambda responses: None,
) -> Reference:
    """Return *model*'s probabilities at each position of the responses.

    Each response is read after its prompt in the model's chat format (several earlier messages are joined
    by blank lines); one whose prompt is not recorded is read alone, and then its first id has no
    probability.

    Args:
        model: the suspect's public base, a clean twin, or the teacher without its mark.
        responses: each response's ids in the model's tokenizer.
        prompts: for each the texts before it.
        top: how many of the likeliest tokens are kept at each position.
        progress: called with the number of responses read since the last call.
    """
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in responses])]).astype(np.int64)
    n = int(starts[-1])
    top_ids = np.zeros((n, top), dtype=np.uint32)
    top_p = np.zeros((n, top), dtype=np.float32)
    said_p = np.zeros(n, dtype=np.float32)
    contexts = [model.prompt_ids("\n\n".join(earlier)) if earlier else [] for earlier in prompts]
    # By length, so that little is padding.
    order = sorted(range(len(responses)), key=lambda r: len(contexts[r]) + len(responses[r]))
    first = 0
    while first < len(order):
        batch: list[int] = []
        width = 0
        while first < len(order):
            wider = max(width, len(contexts[order[first]]) + len(responses[order[first]]))
            if batch and wider * (len(batch) + 1) > _POSITIONS:
                break
            batch.append(order[first])
            width, first = wider, first + 1
        for r, (ids, p, said) in zip(
            batch, _read([contexts[r] for r in batch], [responses[r] for r in batch], model, top), strict=True
        ):
            # The first id of a response without a context has no row: it follows nothing.
            at = slice(int(starts[r + 1]) - len(said), int(starts[r + 1]))
            top_ids[at], top_p[at], said_p[at] = ids, p, said
        progress(len(batch))
    joined = np.concatenate(responses) if n else np.zeros(0, dtype=np.uint32)
    return Reference(
        name=model.name,
        tokenizer=model.tokenizer.digest(),
        ids=joined.astype(np.uint32),
        starts=starts,
        top_ids=top_ids,
        top_p=on_grid(top_p),
        said_p=on_grid(said_p),
    )


def _read(
    contexts: Sequence[list[int]], responses: Sequence[Ids], model: LanguageModel, top: int
) -> list[tuple[Ids, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Return, for each response, the likeliest ids, their probabilities and that of the id said."""
    import torch

    rows = [[*context, *(int(i) for i in ids)] for context, ids in zip(contexts, responses, strict=True)]
    width = max(len(row) for row in rows)
    input_ids = torch.zeros((len(rows), max(width, 1)), dtype=torch.long)
    attention = torch.zeros_like(input_ids)
    for b, row in enumerate(rows):
        input_ids[b, : len(row)] = torch.tensor(row, dtype=torch.long)
        attention[b, : len(row)] = 1
    with torch.inference_mode():
        logits = model.model(
            input_ids=input_ids.to(model.device), attention_mask=attention.to(model.device), use_cache=False
        ).logits
    results = []
    for b, (context, row) in enumerate(zip(contexts, rows, strict=True)):
        begin = max(len(context), 1)
        end = max(len(row), begin)
        # The logits at a position are of the next id.
        p = torch.softmax(logits[b, begin - 1 : end - 1].float(), dim=-1)
        said = p.gather(1, input_ids[b, begin:end, None].to(p.device))[:, 0]
        best = torch.topk(p, min(top, p.shape[1]), dim=-1)
        results.append((best.indices.cpu().numpy().astype(np.uint32), best.values.cpu().numpy(), said.cpu().numpy()))
    return results
