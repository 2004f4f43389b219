"""vLLM: one logits processor for both of its model runners, and the refusal of every path that would not mark.

Two lines make a server mark; the second is needed where the V1 runner schedules asynchronously, and does no
harm elsewhere::

    export TAGGANT_KEYRING=/etc/taggant/serving-key.json
    vllm serve MODEL --logits-processors watermark.engines.vllm:GreenListProcessor

Installing Taggant announces `GreenListProcessor` to vLLM (entry point group ``vllm.logits_processors``), and
`watermark.engines.vllm_guard.guard` (group ``vllm.general_plugins``). What is marked, and how, is the
operator's configuration (`watermark.serving.ServingConfig`), which each of the server's processes reads for
itself; a request holds no key. The hook lies before temperature, top-k and top-p in both runners, hence
`before_temperature`.

Written against vLLM 0.32, whose names are cited where something depends on them.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
import weakref
from http import HTTPStatus
from typing import Any

from watermark import self_test
from watermark.engines import vllm_guard
from watermark.errors import MissingExtraError, TaggantError, TokenizerError, UsageError
from watermark.green_list import before_temperature
from watermark.marker import Marker, RequestMark
from watermark.serving import Policy, ServingConfig
from watermark.ticket import SCOPE_FIELD, RequestRefusedError
from watermark.tokenizer import load

try:
    import torch
    from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
    from vllm.v1.sample.logits_processor import MoveDirectionality
except ImportError:
    raise MissingExtraError("marking in vLLM needs vllm 0.32 or newer: pip install 'taggant[vllm]'") from None
try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor
except ImportError:  # A release without the V2 runner's interface.

    class V2LogitsProcessor:  # type: ignore[no-redef]
        """Nothing."""


__all__ = ["GreenListProcessor", "server_marker"]

log = logging.getLogger("taggant")

_FLAG = "--logits-processors watermark.engines.vllm:GreenListProcessor"


_lock = threading.Lock()
_marker: Marker | None = None


def server_marker() -> Marker:
    """Return this process's marker, made from the environment when it is first asked for.

    Raises:
        UsageError: the server is not configured, or wrongly.
        KeyringError: the key file is missing, unsafe or malformed, or no scope may mark.
    """
    global _marker
    with _lock:  # vLLM admits requests in several threads, and two markers would write one file of counters.
        if _marker is None:
            if not log.handlers:
                # vLLM sets up the loggers of its own name alone, and an operator reads what it writes.
                log.handlers, log.propagate = logging.getLogger("vllm").handlers, False
                log.setLevel(logging.INFO)
            _marker = Marker(ServingConfig.from_environment())
            _marker.watch()
            atexit.register(_marker.close)
        return _marker


class GreenListProcessor(V1LogitsProcessor, V2LogitsProcessor):  # type: ignore[misc]
    """Mark what vLLM samples. vLLM makes it, in each process that samples; its arguments say for which runner.

    Args:
        vllm_config: the server's.
        place: the device (V1 runner), or the requests' state on it (V2 runner).
        is_pin_memory: given by the V1 runner alone.

    Raises:
        TaggantError: this server cannot mark, with the remedy. It does not start then.
    """

    def __init__(self, vllm_config: Any, place: Any, is_pin_memory: bool | None = None) -> None:
        self.marker = server_marker()
        self._superseded = False
        self._config = vllm_config
        _take_over(self, vllm_config)
        self._runner: _V1 | _V2 | None = None
        if self.marker.config.policy is Policy.OFF:
            log.warning("TAGGANT_POLICY is off: this server marks nothing")
            return
        _check_server(vllm_config, self.marker, v2=is_pin_memory is None)
        self._runner = _V2(self.marker, place) if is_pin_memory is None else _V1(self.marker, vllm_config, place)
        self._runner.self_test()
        log.info("marking with %r", self.marker)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Admit a request in the process that takes it in, and note its scope for those that sample.

        Raises:
            Exception: vLLM's, by the status of the refusal: 400, 401, 403 or 503.
        """
        marker = server_marker()
        fields = {name: value for name, value in (sampling_params.extra_args or {}).items() if name != SCOPE_FIELD}
        try:
            marker.refuse_if(vllm_guard.missing(), status=503)
            request = marker.admit(fields, strength=before_temperature(sampling_params.temperature))
            if request.marked and marker.config.policy is Policy.REQUIRED:
                marker.refuse_if(_unmarkable(sampling_params))
        except RequestRefusedError as refused:
            raise _as_vllm_error(refused) from None
        if marker.config.policy is not Policy.OFF:
            # What vLLM hands to the sampling processes is a copy of this that it makes next.
            sampling_params.extra_args = marker.decided_fields(fields, request)

    def is_argmax_invariant(self) -> bool:
        """Say that greedy decoding is marked too (V1)."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: requests that left, came and moved, in this order (V1)."""
        if isinstance(self._runner, _V1) and not self._superseded and batch_update is not None:
            self._runner.update(batch_update)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Put a request into its slot; return whether its rows are marked (V2)."""
        if not isinstance(self._runner, _V2) or self._superseded:
            return False
        return self._runner.add(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Send what `add_request` staged to the device (V2)."""
        if isinstance(self._runner, _V2) and not self._superseded:
            self._runner.requests.flush()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Add each request's delta to the green logits of its rows, in place; float32 of shape (rows, V)."""
        if self._runner is not None and not self._superseded:
            self._runner.apply(logits, ctx)
        return logits


class _V1:
    """The V1 runner's persistent batch: request i is row i."""

    def __init__(self, marker: Marker, vllm_config: Any, device: torch.device) -> None:
        self.marker = marker
        self.vocabulary = int(vllm_config.model_config.get_vocab_size())
        self._rows: dict[int, _Row] = {}
        self._requests: list[RequestMark] = []
        self._responses: list[list[int]] = []
        self._slots: list[int] = []
        self._device: Any = None
        if device.type != "cpu":
            from watermark.device.requests import DeviceRequests

            slots = int(vllm_config.scheduler_config.max_num_seqs)
            # One request may come before another leaves.
            self._free_slots = list(range(2 * slots))
            self._device = DeviceRequests(marker, device=device, max_slots=2 * slots, vocab_size=self.vocabulary)

    def update(self, batch_update: Any) -> None:
        for index in batch_update.removed:
            self._drop(index)
        for index, sampling_params, _, output_ids in batch_update.added:
            self._drop(index)
            self._rows[index] = self._taken_in(sampling_params, output_ids)
        for start, end, direction in batch_update.moved:
            moved = self._rows.pop(start, None)
            if direction is MoveDirectionality.SWAP:
                other = self._rows.pop(end, None)
                if other is not None:
                    self._rows[start] = other
            else:
                self._drop(end)
            if moved is not None:
                self._rows[end] = moved
        rows = [self._rows[index] for index in range(batch_update.batch_size)]
        self._requests = [row.request for row in rows]
        self._responses = [row.output_ids for row in rows]
        self._slots = [row.slot for row in rows]

    def apply(self, logits: torch.Tensor, ctx: Any) -> None:
        if len(self._requests) != logits.shape[0]:
            raise TaggantError(
                f"vLLM has {logits.shape[0]} rows of logits for {len(self._requests)} requests: rows would be marked "
                "with the wrong keys. Speculative decoding with the V1 runner cannot be marked; report anything else"
            )
        try:
            if self._device is None:
                self.marker.bias(logits.numpy(), self._responses, self._requests)
            else:
                self._device.flush()
                self._device.bias_responses(logits, self._responses, slots=self._slots)
        except ValueError as error:
            if any(ids and ids[-1] < 0 for ids in self._responses):
                raise TaggantError(
                    "vLLM has not told the ids that it sampled (placeholders of asynchronous scheduling), and answers "
                    f"would be served unmarked: start it with {_FLAG}, or with --no-async-scheduling"
                ) from error
            raise

    def self_test(self) -> None:
        if self._device is not None:
            self._device.self_test(self.vocabulary)
        else:
            self_test.check_marker(self.marker, vocabulary=self.vocabulary)

    def _taken_in(self, sampling_params: Any, output_ids: list[int]) -> _Row:
        request = _admitted(self.marker, sampling_params)
        if not output_ids:  # Else it comes back after a preemption, and was counted when it first came.
            self.marker.took_on(request)
        slot = -1
        if self._device is not None:
            slot = self._free_slots.pop()
            self._device.put(slot, request)
        return _Row(request, output_ids, slot)

    def _drop(self, index: int) -> None:
        row = self._rows.pop(index, None)
        if row is not None and row.slot >= 0:
            self._device.take_out(row.slot)
            self._free_slots.append(row.slot)


class _Row:
    """One request of the V1 batch."""

    __slots__ = ("output_ids", "request", "slot")

    def __init__(self, request: RequestMark, output_ids: list[int], slot: int) -> None:
        self.request = request
        self.output_ids = output_ids
        """vLLM's own list, which it appends to."""
        self.slot = slot


class _V2:
    """The V2 runner's slots on the device. A request's prompt and answer so far are in its table of ids."""

    def __init__(self, marker: Marker, states: Any) -> None:
        from watermark.device.requests import DeviceRequests

        self.marker = marker
        self.states = states
        self.requests = DeviceRequests(
            marker, device=states.device, max_slots=states.max_num_reqs, vocab_size=states.vocab_size
        )

    def add(self, slot: int, sampling_params: Any) -> bool:
        request = _admitted(self.marker, sampling_params)
        if self.states.prefill_len.np[slot] == self.states.prompt_len.np[slot]:
            self.marker.took_on(request)  # Else it comes back after a preemption.
        return self.requests.put(slot, request)

    def apply(self, logits: torch.Tensor, ctx: Any) -> None:
        from watermark.device.windows import TokenTable

        self.requests.bias_from_table(
            logits,
            table=TokenTable(
                all_token_ids=self.states.all_token_ids.gpu,
                prompt_len=self.states.prompt_len.gpu,
                row_slot=ctx.expanded_idx_mapping,
                local_pos=ctx.expanded_local_pos,
                input_ids=ctx.input_ids,
                pos=ctx.pos,
            ),
        )

    def self_test(self) -> None:
        self.requests.self_test(self.states.vocab_size)


#: The processor in use of each vLLM configuration, by its `id`; a processor keeps its configuration alive.
_in_use: dict[int, weakref.ref[GreenListProcessor]] = {}


def _take_over(processor: GreenListProcessor, vllm_config: Any) -> None:
    """Make *processor* the only one of its server that marks.

    vLLM loads the class twice where the entry point and the command line both name it, and two would add delta
    twice. The later one marks: should vLLM make its processors anew, these are the ones that it uses.
    """
    earlier = _in_use.get(id(vllm_config))
    found = None if earlier is None else earlier()
    if found is not None:
        found._superseded = True
    _in_use[id(vllm_config)] = weakref.ref(processor)


def _admitted(marker: Marker, sampling_params: Any) -> RequestMark:
    """Return the mark of a request that `GreenListProcessor.validate_params` has admitted."""
    strength = before_temperature(sampling_params.temperature)
    return marker.admit(sampling_params.extra_args, strength=strength, verified=True)


def _as_vllm_error(refused: RequestRefusedError) -> Exception:
    """Return the exception that vLLM answers with the refusal's status."""
    from vllm import exceptions

    if refused.status == HTTPStatus.BAD_REQUEST:
        validation = getattr(exceptions, "VLLMValidationError", ValueError)
        return validation(str(refused))
    graceful = getattr(exceptions, "GracefulHTTPError", None)
    if graceful is None:  # Releases before it answer 400 to whatever a processor refuses.
        return ValueError(str(refused))
    return graceful(str(refused), HTTPStatus(refused.status))  # type: ignore[no-any-return]


def _unmarkable(sampling_params: Any) -> str | None:
    """Return why a logits processor cannot mark a request's answer, or None."""
    # Beam search asks the engine for one token of each beam at a time, and chooses by the log-probabilities from
    # before the processors. This is how it asks (`vllm/entrypoints/generate/beam_search`), and nobody else can over
    # HTTP, where every request has detokenize.
    if (
        sampling_params.max_tokens == 1
        and sampling_params.logprobs
        and not sampling_params.detokenize
        and not getattr(sampling_params, "watermarking", False)
    ):
        return "beam search cannot be marked, and this server's answers must be: leave use_beam_search out"
    if getattr(sampling_params, "trace_decode_token_ids", None):
        return "a trace that is replayed cannot be marked, and this server's answers must be: leave it out"
    return None


def _check_server(vllm_config: Any, marker: Marker, *, v2: bool) -> None:
    """Refuse to start where answers would not be marked.

    Raises:
        UsageError: asynchronous scheduling hides the ids from a V1 processor, or the model is no language model
            that puts out one token after another.
        TokenizerError: the model's tokenizer is not the scope's, or can't be told.
    """
    if not v2 and vllm_config.scheduler_config.async_scheduling and not vllm_config.model_config.logits_processors:
        raise UsageError(
            "vLLM's V1 model runner with asynchronous scheduling hides the ids that it sampled from processors that "
            f"the command line does not name: start it with {_FLAG}, or with --no-async-scheduling"
        )
    if getattr(vllm_config.model_config, "is_diffusion", False):
        raise UsageError("a diffusion model's answers cannot be marked: set TAGGANT_POLICY=off to serve it")
    if str(getattr(vllm_config.model_config, "logprobs_mode", "")).startswith("processed"):
        log.warning("--logprobs-mode processed_* shows clients the green list: let the ingress strip logprobs")
    if getattr(vllm_config, "watermark_config", None) is not None:
        log.warning("vLLM's own watermark is on as well, and each weakens the other: leave --watermark-config out")
    _check_tokenizer(vllm_config.model_config, marker)


def _check_tokenizer(model_config: Any, marker: Marker) -> None:
    named = marker.config.tokenizer
    try:
        try:
            path = _tokenizer_file(model_config)
            digest = _digest(path)
        except (TokenizerError, MissingExtraError):
            if named is None:
                raise
            path, digest = named, _digest(named)
    except (TokenizerError, MissingExtraError) as error:
        if named is None and marker.config.policy is Policy.OPTIONAL:
            log.warning("whether the scope was made for this model's tokenizer is not known: %s", error)
            return
        raise TokenizerError(
            f"whether the scope was made for this model's tokenizer can't be told ({error}): name it in the file that "
            'TAGGANT_CONFIG names, tokenizer = "/path/to/tokenizer.json"'
        ) from None
    marker.check_tokenizer(digest, path)


@functools.cache
def _digest(path: str) -> str:
    return load(path).digest()


def _tokenizer_file(model_config: Any) -> str:
    """Return the path of the server's tokenizer.json, or of its GGUF file.

    Raises:
        TokenizerError: there is none.
    """
    name = str(model_config.tokenizer)
    if os.path.isdir(name):
        name = os.path.join(name, "tokenizer.json")
    if os.path.isfile(name):
        return name
    from transformers.utils import cached_file

    try:
        # The server has fetched it before; this finds it where it is kept.
        found = cached_file(name, "tokenizer.json", revision=model_config.tokenizer_revision)
    except Exception as error:  # The hub's own, and its HTTP client's.
        raise TokenizerError(f"{name}: no tokenizer.json ({type(error).__name__})") from None
    if found is None:
        raise TokenizerError(f"{name}: no tokenizer.json")
    return str(found)
