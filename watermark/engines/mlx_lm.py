"""mlx-lm: a logits processor, ``f(tokens, logits) -> logits``.

::

    request = marker.admit({"taggant_account": "acme"}, strength=before_temperature(0.8))
    processor = GreenListProcessor(marker, request)
    mlx_lm.generate(model, tokenizer, prompt, sampler=make_sampler(temp=0.8), logits_processors=[processor])

and `BatchGenerator.insert(..., logits_processors=[[processor], ...])` takes one a request. Processors run before
the temperature. Under speculative decoding each position is marked by the ids before it, the draft's own
distribution too. The logprobs that mlx-lm hands out are computed after its processors and show the mark.

The row travels to NumPy and back, for which MLX has to finish the step: its asynchronous evaluation of the
next one is lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from watermark.engines.plain import RowMarker
from watermark.errors import MissingExtraError
from watermark.marker import Marker, RequestMark
from watermark.self_test import check_marker

try:
    import mlx.core as mx
except ImportError:
    raise MissingExtraError("this engine needs MLX: pip install mlx-lm (on Linux 'mlx[cpu]' too)") from None

__all__ = ["GreenListProcessor"]


class GreenListProcessor:
    """Mark the answer of one request.

    Args:
        marker: the server's.
        request: what `Marker.admit` returned for it.
    """

    def __init__(self, marker: Marker, request: RequestMark) -> None:
        self._marker = RowMarker(marker, request)
        self._checked = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return the logits with delta added to the green ones.

        Args:
            tokens: the ids so far, (T,); the first call's are the prompt, or its end.
            logits: the next token's, (1, V), float32, float16 or bfloat16.

        Raises:
            TaggantError: in the first call; see `watermark.self_test.check_marker`.
        """
        if not self._checked:
            check_marker(self._marker.marker, vocabulary=logits.shape[-1])
            self._checked = True
        half = logits.dtype == mx.bfloat16  # Which NumPy lacks.
        row: Any = np.array(logits.view(mx.uint16) if half else logits)
        self._marker(np.array(tokens), row)
        marked = mx.array(row)
        return marked.view(mx.bfloat16) if half else marked
