"""Hugging Face transformers: a `LogitsProcessor` for `generate`, and a watermarking configuration.

Processors given to `generate` as ``logits_processor=`` run before the temperature and the top-k and
top-p filters, and the one that `generation_config.watermarking_config` makes after them (transformers issue
34630): hence `before_temperature` in one class and `after_temperature` in the other::

    model.generation_config.watermarking_config = GreenListWatermarkingConfig(account="acme")
    model.generate(**inputs, do_sample=True)

The watermarking configuration holds no key: it names the configuration file, or leaves it to the
environment (`watermark.serving`). Continuous batching is in `watermark.engines.transformers_batching`.

Where the mark lies under the other ways of decoding, each tried in tests/watermark/engines:

- greedy and sampling: every answer is marked; unmarked rows of the same batch are bit-identical;
- beam search: each beam is marked by its own ids; the beams' scores hold the mark, which so prefers green beams;
- assisted decoding (a draft model or prompt lookup): each position is marked by the ids before it;
- `output_scores` and logprobs computed from them show the mark, token by token; `output_logits` do not;
- contrastive search, DoLa and group beam search are no part of transformers any more, but code from its hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from watermark.engines.process_marker import process_marker
from watermark.errors import MissingExtraError, UsageError
from watermark.green_list import GreenList, after_temperature, before_temperature
from watermark.marker import Marker, RequestMark
from watermark.serving import FieldTrust, ServingConfig
from watermark.ticket import (
    ACCOUNT_FIELD,
    MARK_FIELD,
    TICKET_FIELD,
    Ticket,
    process_key,
    read_ingress_key,
    sign_ticket,
)

try:
    import torch
    from transformers import LogitsProcessor
    from transformers.generation.configuration_utils import BaseWatermarkingConfig

    from watermark.engines.tensors import bias_rows, bias_tensor
except ImportError as error:
    raise MissingExtraError(f"this engine needs {error.name}: pip install 'taggant[hf]'") from None

__all__ = ["GreenListLogitsProcessor", "GreenListWatermarkingConfig", "MarkingProcessor"]


class GreenListLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Mark one call of `generate`, before the temperature.

    Args:
        green_list: the scope's green list.
        prompt_length: the width of the prompt batch, padding included. What follows is the response.
        temperature: the sampling temperature of the call; 0 for greedy decoding.
        accounts: an account a prompt, or None; by default none. Beams and returned sequences of a prompt are its.
    """

    def __init__(
        self,
        green_list: GreenList,
        *,
        prompt_length: int,
        temperature: float,
        accounts: Sequence[str | None] | None = None,
    ) -> None:
        self.green_list = green_list
        self.prompt_length = prompt_length
        self.strength = before_temperature(temperature)
        self.accounts = accounts

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """Return *scores*, (B, V), with delta added to each row's green tokens; *scores* itself stays as it is.

        The result has the device and the dtype (float32, float16 or bfloat16) of *scores*.
        """
        windows, marked = self.green_list.windows_of(_tails(input_ids, self.prompt_length, self.green_list.window))
        accounts = None if self.accounts is None else _for_rows(self.accounts, len(windows))
        # A copy, since `generate` hands the same tensor out as the raw logits (output_logits=True).
        biased = scores.clone(memory_format=torch.contiguous_format)
        bias_tensor(
            biased,
            lambda rows: self.green_list.bias(rows, windows, marked=marked, accounts=accounts, strength=self.strength),
        )
        return biased


class GreenListWatermarkingConfig(BaseWatermarkingConfig):  # type: ignore[misc]
    """What `generation_config.watermarking_config` is set to: which configuration, and for whom.

    It can be saved with a generation configuration, and holds no key. transformers reads a saved one as its own
    `WatermarkingConfig` and refuses it (TypeError): set it again after `from_pretrained`.

    Args:
        configuration: the file that `watermark.serving` describes; by default what the environment names.
        account: for whom the answers are; one for all prompts of a call. By default for nobody in particular.
        mark: False is the operator's off-switch.
        temperature: that of the calls, which transformers does not tell its processors; 0 or 1 for greedy decoding.
    """

    def __init__(
        self,
        configuration: str | None = None,
        *,
        account: str | None = None,
        mark: bool = True,
        temperature: float = 1.0,
    ) -> None:
        self.configuration = configuration
        self.account = account
        self.mark = mark
        self.temperature = temperature
        self.validate()

    def validate(self) -> None:
        """Raise a UsageError unless the fields have their types."""
        if self.configuration is not None and not isinstance(self.configuration, str):
            raise UsageError(f"configuration: expected a file's name, got {type(self.configuration).__name__}")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature: expected 0 to 100, got {self.temperature}")
        Ticket(account=self.account, mark=self.mark)

    def construct_processor(self, vocab_size: int, device: Any) -> MarkingProcessor:
        """Return the processor of one call; transformers calls this. For its errors see `process_marker`."""
        from watermark.engines import transformers_batching

        transformers_batching.register()
        return MarkingProcessor(process_marker(self.configuration, vocabulary=vocab_size), self)


class MarkingProcessor(LogitsProcessor):  # type: ignore[misc]
    """Mark one call of `generate`, after the temperature and the filters.

    Args:
        marker: the server's.
        config: for whom, and at which temperature.
    """

    #: Without it continuous batching drops the processor with no more than a warning, and serves unmarked.
    supports_continuous_batching = True

    def __init__(self, marker: Marker, config: GreenListWatermarkingConfig) -> None:
        self.marker = marker
        self.config = config
        self._request: RequestMark | None = None
        self._prompt_length = 0

    def admit(self, *, temperature: float | None = None) -> RequestMark:
        """Decide how the configuration's own answers are marked, by default at its own temperature.

        Raises:
            RequestRefusedError: the policy is "required" and no scope may mark now, or an account is missing.
        """
        ticket = Ticket(account=self.config.account, mark=self.config.mark)
        strength = after_temperature(self.config.temperature if temperature is None else temperature)
        return self.marker.admit(_fields(self.marker.config, ticket), strength=strength)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """Add delta to each row's green tokens, in a copy of *scores*, (B, V). The first call's ids are the prompt.

        Raises:
            RequestRefusedError: in the first call; see `admit`.
            UsageError: continuous batching calls it.
        """
        if input_ids.ndim != 2:
            raise UsageError(
                "continuous batching shows a processor no history: give ContinuousBatchingConfig("
                "per_request_processors=True), and requests are marked by watermark.engines.transformers_batching"
            )
        if self._request is None:
            self._request = self.admit()
            self._prompt_length = int(input_ids.shape[1])
            self.marker.took_on(self._request)
        request = self._request
        h = 0 if request.green_list is None else request.green_list.window
        responses = _tails(input_ids, self._prompt_length, h)
        biased = scores.clone(memory_format=torch.contiguous_format)
        bias_rows(self.marker, biased, responses, [request] * len(responses))
        return biased


def _fields(config: ServingConfig, ticket: Ticket) -> dict[str, object]:
    """Return the fields by which this process, which is its own ingress, says for whom a request is."""
    if config.fields is FieldTrust.PLAIN:
        account = {} if ticket.account is None else {ACCOUNT_FIELD: ticket.account}
        return {**account, MARK_FIELD: "on" if ticket.mark else "off"}
    key = process_key() if config.ingress.key is None else read_ingress_key(config.ingress.key)
    return {TICKET_FIELD: sign_ticket(ticket, key)}


def _tails(input_ids: torch.Tensor, prompt_length: int, h: int) -> list[np.ndarray[Any, Any]]:
    """Return the last *h* ids of each row's response, or as many as it has."""
    return list(input_ids[:, max(prompt_length, input_ids.shape[1] - h) :].cpu().numpy())


def _for_rows(accounts: Sequence[str | None], rows: int) -> list[str | None]:
    if not accounts or rows % len(accounts):
        raise UsageError(f"accounts: expected one a prompt, got {len(accounts)} for {rows} rows")
    return [account for account in accounts for _ in range(rows // len(accounts))]
