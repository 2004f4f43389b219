"""onnxruntime-genai: the marking step of its loop.

::

    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    request = marker.admit({"taggant_account": "acme"}, strength=before_temperature(0.8))
    mark = GeneratorMarker(marker, [request], prompt_length=len(prompt))
    while not generator.is_done():
        mark(generator)
        generator.generate_next_token()

The logits are the model's own, before temperature, top-k and top-p (``params.set_search_options``). With
beam search (``num_beams``) the loop has no row of its own for each answer: `GeneratorMarker` refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from watermark.errors import UsageError
from watermark.marker import Marker, RequestMark
from watermark.self_test import check_marker

__all__ = ["GeneratorMarker"]


class GeneratorMarker:
    """Mark the answers of one generator.

    Args:
        marker: the server's.
        requests: what `Marker.admit` returned, one a sequence of the batch.
        prompt_length: ids of each prompt, padding included.
    """

    def __init__(self, marker: Marker, requests: Sequence[RequestMark], *, prompt_length: int) -> None:
        self.marker = marker
        self.requests = list(requests)
        self.prompt_length = prompt_length
        self._checked = False
        for request in self.requests:
            marker.took_on(request)

    def __call__(self, generator: Any) -> None:
        """Add delta to the green logits of the token that *generator* draws next.

        Raises:
            UsageError: it has another number of rows than there are requests.
            TaggantError: in the first call; see `watermark.self_test.check_marker`.
        """
        logits = np.array(generator.get_logits())
        vocabulary = logits.shape[-1]
        rows = logits.reshape(-1, vocabulary)
        if len(rows) != len(self.requests):
            raise UsageError(f"expected a row of logits for each of {len(self.requests)} requests, got {len(rows)}")
        if not self._checked:
            check_marker(self.marker, vocabulary=vocabulary)
            self._checked = True
        responses = [generator.get_sequence(b)[self.prompt_length :] for b in range(len(rows))]
        self.marker.bias(rows, responses, self.requests)
        generator.set_logits(logits)
