"""Hugging Face transformers' continuous batching: each request marked for its own account.

::

    model.generation_config.watermarking_config = GreenListWatermarkingConfig()
    batching = ContinuousBatchingConfig(
        per_request_processors=True, use_async_batching=False, use_cuda_graph=False
    )
    with model.continuous_batching_context_manager(continuous_batching_config=batching) as manager:
        add_request(manager, ids, fields={"taggant_account": "acme"})

transformers makes one list of processors for all requests and hands those that it knows an int32 a request;
it is taught ours (`register`). What a request has said so far stands in its state on the host, which is
complete in synchronous batching only: with asynchronous batching or a captured graph ours refuses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    CLASSIC_TO_CB_PROCESSORS_MAP,
    ContinuousBatchingLogitsProcessor,
)

from watermark.engines.tensors import bias_rows
from watermark.engines.transformers import MarkingProcessor
from watermark.errors import TaggantError, UsageError
from watermark.green_list import after_temperature
from watermark.marker import UNMARKED, RequestMark
from watermark.ticket import ACCOUNT_FIELD, MARK_FIELD, TICKET_FIELD

__all__ = ["BatchMarkingProcessor", "add_request", "register"]

#: Requests whose admission is remembered; more than a batch and its queue hold.
_KEPT = 65_536


def register() -> None:
    """Teach continuous batching to turn a `MarkingProcessor` into one that marks each request for its account."""
    CLASSIC_TO_CB_PROCESSORS_MAP[MarkingProcessor] = BatchMarkingProcessor


class BatchMarkingProcessor(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Mark every request of a batch, after the temperature and the filters.

    Args:
        processor: what the watermarking configuration has made; its account and off-switch hold for requests that
            bring no fields of ours.
    """

    supported_kwargs: dict[str, type] = {TICKET_FIELD: str, ACCOUNT_FIELD: str, MARK_FIELD: str}  # noqa: RUF012
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, processor: MarkingProcessor) -> None:
        self.marker = processor.marker
        self._default = processor
        self._admitted: OrderedDict[tuple[str, float], RequestMark] = OrderedDict()
        self._vouched: OrderedDict[str, None] = OrderedDict()
        self._requests: list[RequestMark] = []
        self._responses: list[Sequence[int]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fill in nothing in particular: what is handed over stays on the host."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Take down what the requests of the next step have said, and return an int32 a request, which says nothing.

        Raises:
            TaggantError: a request's last id is not known here yet: batching is asynchronous.
        """
        self._requests = [self._request(future.state) for future in requests_with_new_token]
        self._responses = [
            _response(future.state, 0 if request.green_list is None else request.green_list.window)
            for future, request in zip(requests_with_new_token, self._requests, strict=True)
        ]
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Add delta to each request's green tokens, in place: float32 (B, V). Rows after the requests' are padding.

        Raises:
            TaggantError: the step is being captured into a graph, which would mark every later one as this.
        """
        if torch.compiler.is_compiling() or (scores.is_cuda and torch.cuda.is_current_stream_capturing()):
            raise TaggantError(
                "continuous batching captures or compiles its steps, and would mark each like the first: give "
                "ContinuousBatchingConfig(use_cuda_graph=False), and no compile configuration"
            )
        if self._requests:
            bias_rows(self.marker, scores[: len(self._requests)], self._responses, self._requests)
        return scores

    def admit(
        self, fields: Mapping[str, object], *, temperature: float | None = None, verified: bool = False
    ) -> RequestMark:
        """Decide how a request is marked: by *fields*, or as the configuration says if it brings none.

        Raises:
            RequestRefusedError: see `Marker.admit`.
        """
        if not fields:
            return self._default.admit(temperature=temperature)
        chosen = self._default.config.temperature if temperature is None else temperature
        return self.marker.admit(fields, strength=after_temperature(chosen), verified=verified)

    def vouch(self, fields: Mapping[str, object], *, temperature: float | None = None) -> None:
        """Admit a request that is about to be queued, and remember its ticket.

        Raises:
            RequestRefusedError: see `Marker.admit`.
        """
        self.admit(fields, temperature=temperature)
        ticket = fields.get(TICKET_FIELD)
        if isinstance(ticket, str):
            self._vouched[ticket] = None
            if len(self._vouched) > _KEPT:
                self._vouched.popitem(last=False)

    def _request(self, state: Any) -> RequestMark:
        # Warm-up asks for one id; a client that names its request so (X-Request-Id) gets no further unmarked.
        if state.request_id.startswith("__warmup_") and state.max_new_tokens == 1:
            return UNMARKED
        # A client may name its request, and name two alike.
        known = (state.request_id, state.created_time)
        request = self._admitted.get(known)
        if request is None:
            options = state.logit_processor_kwargs
            fields = {name: options[name] for name in self.supported_kwargs if name in options}
            # A ticket that `add_request` has seen is good however long the request was queued; another is checked now.
            ticket = fields.get(TICKET_FIELD)
            vouched = isinstance(ticket, str) and ticket in self._vouched
            request = self.admit(fields, temperature=options.get("temperature"), verified=vouched)
            self.marker.took_on(request)
            self._admitted[known] = request
            if len(self._admitted) > _KEPT:
                self._admitted.popitem(last=False)
        return request


def add_request(
    manager: Any,
    input_ids: Sequence[int],
    *,
    fields: Mapping[str, str] | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    request_id: str | None = None,
    streaming: bool = False,
) -> str | None:
    """Queue a request with a `ContinuousBatchingManager`, for the account that *fields* say.

    A request that is refused is refused here; inside the batch it would end everybody's.

    Args:
        manager: transformers' own, of a model whose generation configuration has a `GreenListWatermarkingConfig`.
        input_ids: the prompt.
        fields: ``taggant_ticket``, or ``taggant_account`` and ``taggant_mark`` (`watermark.ticket`).
        temperature: the request's own, where the generation configuration names one other than 1.
        max_new_tokens: ids of the answer at most.
        request_id: by default numbered.
        streaming: whether each id is handed out as it is sampled.

    Returns:
        The request's id.

    Raises:
        RequestRefusedError: see `Marker.admit`.
        UsageError: the manager marks nothing, or not each request for itself.
    """
    ours = [p for p in manager.logit_processor.logits_processor if isinstance(p, BatchMarkingProcessor)]
    if not ours:
        raise UsageError(
            "this manager does not mark its requests: set generation_config.watermarking_config to a "
            "GreenListWatermarkingConfig and give ContinuousBatchingConfig(per_request_processors=True)"
        )
    options: dict[str, Any] = dict(fields or {})
    ours[0].vouch(options, temperature=temperature)
    if temperature is not None:
        options["temperature"] = temperature
    queued = manager.add_request(
        list(input_ids), request_id=request_id, max_new_tokens=max_new_tokens, streaming=streaming, **options
    )
    return None if queued is None else str(queued)


def _response(state: Any, h: int) -> list[int]:
    """Return the last *h* ids of a request's response."""
    if not h:
        return []
    known = len(state.initial_tokens) + len(state.generated_tokens)
    if state.position_offset != known:
        raise TaggantError(
            f"a request's step follows {state.position_offset} ids, of which {known} are known here: give "
            "ContinuousBatchingConfig(use_async_batching=False)"
        )
    # A request that was put back and starts over has what it had said among its prompt.
    start = state._true_initial_tokens or len(state.initial_tokens)
    said = [*state.initial_tokens[max(start, len(state.initial_tokens) - h) :], *state.generated_tokens[-h:]]
    return said[-h:]
