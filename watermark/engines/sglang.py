"""SGLang: a `CustomLogitProcessor`.

::

    python -m sglang.launch_server ... --enable-custom-logit-processor --disable-overlap-schedule

and the ingress puts `request_fields` into every request. A custom processor travels with the request as
the pickle of its class, and this one's is its name: keys and configuration are looked up in the server's
process, from the environment (`watermark.serving`). The ingress must take away a client's own
``custom_logit_processor`` (which is code that the server would run), ``custom_params`` and ``watermark``.

The tickets' key is a file (``[ingress] key``): SGLang samples in another process than it takes requests in.

A request that can't be marked right is ended with an error, and no more than one of its tokens leaves:

- with the overlap scheduler, a request's `output_ids` may lag behind what was sampled;
- with speculative decoding a request has a row for each draft token, and its processor is not shown the draft.

Written against release 0.5.23 and tested with its module of custom processors, and without its scheduler, which
runs on CUDA only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from watermark.engines.process_marker import process_marker
from watermark.engines.tensors import bias_rows
from watermark.errors import MissingExtraError, TaggantError
from watermark.green_list import before_temperature
from watermark.marker import UNMARKED, Marker, RequestMark
from watermark.ticket import PREFIX, RequestRefusedError

try:
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
except ImportError:
    raise MissingExtraError("this engine needs SGLang: pip install sglang") from None

__all__ = ["GreenListCustomLogitProcessor", "request_fields"]

#: Running requests that are remembered; more than a server runs at once.
_KEPT = 65_536

_admitted: OrderedDict[str, tuple[Mapping[str, object], RequestMark]] = OrderedDict()


def request_fields(fields: Mapping[str, str]) -> dict[str, object]:
    """Return what the ingress puts into a request's body, in the place of whatever the client has put there.

    Args:
        fields: ``{"taggant_ticket": ...}``, or the plain fields (`watermark.ticket`).
    """
    return {"custom_logit_processor": GreenListCustomLogitProcessor.to_str(), "custom_params": dict(fields)}


class GreenListCustomLogitProcessor(CustomLogitProcessor):  # type: ignore[misc]
    """Mark the rows of the requests that name this processor. SGLang makes it anew as batches change."""

    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> torch.Tensor:
        """Add delta to each row's green tokens, in place, and return *logits*.

        Args:
            logits: float32 (B, V), before the temperature.
            custom_param_list: each row's `custom_params`, in which SGLang has put ``__req__``, the request.

        Raises:
            TaggantError: a row has no request that could be ended: SGLang is made otherwise than release 0.5.23.
        """
        rows = [_request_of(params) for params in custom_param_list or ()]
        if len(rows) != logits.shape[0]:
            raise TaggantError(f"expected the parameters of {logits.shape[0]} rows, got {len(rows)}")
        marker = process_marker(vocabulary=int(logits.shape[-1]))
        reason = _unsupported(rows)
        requests = []
        for request, fields in rows:
            try:
                if reason is not None:
                    raise RequestRefusedError(reason, status=503)
                requests.append(_admit(marker, request, fields))
            except RequestRefusedError as error:
                _end(request, error)
                requests.append(UNMARKED)
        responses = [request.output_ids for request, _ in rows]
        bias_rows(marker, logits, responses, requests)
        return logits


def _request_of(params: dict[str, Any] | None) -> tuple[Any, dict[str, object]]:
    request = (params or {}).get("__req__")
    if params is None or request is None:
        raise TaggantError(
            "a row names this processor and has no custom_params: the ingress puts in both "
            "(watermark.engines.sglang.request_fields)"
        )
    return request, {name: value for name, value in params.items() if name.startswith(PREFIX)}


def _admit(marker: Marker, request: Any, fields: dict[str, object]) -> RequestMark:
    """Return how a request is marked; it is asked once, and again when another of the same id comes."""
    known = _admitted.get(request.rid)
    if known is not None and known[0] == fields and len(request.output_ids):
        return known[1]
    strength = before_temperature(request.sampling_params.temperature)
    mark = marker.admit(fields, strength=strength)
    marker.took_on(mark)
    _admitted[request.rid] = (fields, mark)
    if len(_admitted) > _KEPT:
        _admitted.popitem(last=False)
    return mark


def _unsupported(rows: list[tuple[Any, dict[str, object]]]) -> str | None:
    """Return why the rows of this server can't be marked right, if they can't."""
    from sglang.srt.runtime_context import get_schedule

    if not get_schedule().disable_overlap_schedule:
        return "answers can't be marked under SGLang's overlap scheduler: start it with --disable-overlap-schedule"
    names = [request.rid for request, _ in rows]
    if len(set(names)) < len(names):
        return "answers can't be marked under SGLang's speculative decoding: start it without"
    return None


def _end(request: Any, error: RequestRefusedError) -> None:
    """End a request with an error, as SGLang itself ends those that it has no memory for."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    request.to_finish = FINISH_ABORT(str(error), error.status, "TaggantRefused")
