"""The self-test's gate: nobody is answered before an answer of this server was seen to be marked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from watermark.errors import TaggantError, TokenizerError
from watermark.ingress.counts import IngressCounts
from watermark.ingress.request import Injection
from watermark.ingress.route import Shape
from watermark.ingress.trial import ANSWERS, Evidence, SampleRefusedError, evidence_of, level_of, sample
from watermark.ingress.wire import App
from watermark.marker import RequestMark
from watermark.serving import Policy, ServingConfig
from watermark.ticket import RequestRefusedError

__all__ = ["Gate"]

log = logging.getLogger("taggant")

#: Seconds after which a test that failed is tried again, and within which the server must have answered.
_RETRY: Final = 60.0
_PATIENCE: Final = 300.0

#: A tail beyond which two answers of conclusive length are enough to say that the server does not mark.
_HOPELESS: Final = 0.05

_SWITCH: Final = "self_test = false under [ingress] switches this test off"
_REMEDY: Final = (
    "Check that the server loaded the plug-in (its log names it), that server and ingress have the same key file, and "
    "that no speculative decoding goes round it (taggant's page on the server lists what does)"
)


class Gate:
    """Hold marked requests back until the self-test has passed.

    Args:
        app: the server's application.
        config: says whether there is a test, and what a failure means.
        injection: how the ingress's word reaches the sampler.
        logit_processor: for SGLang.
        counts: of the ingress.
    """

    def __init__(
        self,
        app: App,
        config: ServingConfig,
        *,
        injection: Injection,
        logit_processor: str | None,
        counts: IngressCounts,
    ) -> None:
        self.config = config
        self.counts = counts
        self.open = not config.ingress.self_test or config.shadow or config.policy is Policy.OFF
        self.failure: str | None = None
        self._trials = 0
        """What the last test found wrong."""
        self._app = app
        self._injection = injection
        self._logit_processor = logit_processor
        self._lock = asyncio.Lock()
        self._next = 0.0

    async def enter(
        self, scope: Mapping[str, Any], shape: Shape, *, model: object, mark: RequestMark, fields: Mapping[str, object]
    ) -> None:
        """Return once requests may be served.

        Args:
            scope: of the request that is waiting: the test asks with the same credentials.
            shape: its shape.
            model: the model that it names.
            mark: how the test's own request is marked.
            fields: the ingress's word for it.

        Raises:
            RequestRefusedError: the test failed, and the policy is "required".
            SampleRefusedError: the server refuses this client.
        """
        if self.open:
            return
        async with self._lock:
            if not self.open and time.monotonic() >= self._next:
                await self._try(scope, shape, model, mark, fields)
        if not self.open and self.config.policy is Policy.REQUIRED:
            # What is wrong is the operator's to know.
            raise RequestRefusedError("this server's self-test failed, and its log says what to check", status=503)

    async def _try(
        self, scope: Mapping[str, Any], shape: Shape, model: object, mark: RequestMark, fields: Mapping[str, object]
    ) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                failure = await self._failure(scope, shape, model, mark, fields)
        except SampleRefusedError as refused:
            if refused.status < 500:
                raise  # The client's own fault (a model that there is not, a wrong key): nothing was learned.
            failure = f"the server answered its request with status {refused.status}. {_SWITCH}"
        except TimeoutError:
            failure = f"the server did not answer its request within {_PATIENCE:.0f} s. {_SWITCH}"
        except TaggantError as error:
            failure = f"{error}. {_SWITCH}"
        self.failure = failure
        self.open = failure is None
        self.counts.self_tests["passed" if self.open else "failed"] += 1
        if not self.open:
            self._next = time.monotonic() + _RETRY
            consequence = "refused" if self.config.policy is Policy.REQUIRED else "recorded as not marked"
            log.error("self-test failed, and requests are %s until one passes: %s", consequence, failure)

    async def _failure(
        self, scope: Mapping[str, Any], shape: Shape, model: object, mark: RequestMark, fields: Mapping[str, object]
    ) -> str | None:
        """Return what is wrong; None if the server marks."""
        assert mark.green_list is not None  # noqa: S101 (the caller has seen to it)
        responses: list[list[int]] = []
        evidence = Evidence(0, 0, 0.5, 0.0)
        self._trials += 1
        for number in range(ANSWERS):
            ids, text = await self._answer(scope, shape, number, model, fields)
            responses.append(ids if ids is not None else await asyncio.to_thread(self._ids, mark, text))
            evidence = await asyncio.to_thread(evidence_of, mark.green_list, responses)
            if number and evidence.conclusive and evidence.p > _HOPELESS:
                break
            if evidence.p < level_of(self._trials):
                log.info("self-test passed: %d of %d pairs green, p = %.1e", evidence.green, evidence.pairs, evidence.p)
                return None
        found = (
            f"{evidence.green} of {evidence.pairs} distinct pairs of its answers are green, expected some "
            f"{evidence.gamma * evidence.pairs:.0f} of unmarked ones (p = {evidence.p:.2g})"
        )
        if not evidence.conclusive:
            return f"could not tell whether answers are marked: {found}, and that is too few pairs. {_SWITCH}"
        return f"answers are not marked: {found}. {_REMEDY}"

    async def _answer(
        self, scope: Mapping[str, Any], shape: Shape, number: int, model: object, fields: Mapping[str, object]
    ) -> tuple[list[int] | None, str]:
        shapes = [shape]
        if shape not in (Shape.TOKENS, Shape.SGLANG):
            shapes = sorted((Shape.CHAT, Shape.COMPLETIONS), key=lambda one: one is not shape)
        first: SampleRefusedError | None = None
        for one in shapes:
            try:
                return await sample(
                    self._app,
                    scope,
                    shape=one,
                    number=number,
                    model=model,
                    fields=fields,
                    injection=self._injection,
                    logit_processor=self._logit_processor,
                )
            except SampleRefusedError as refused:
                first = first or refused  # A server may serve one of the two routes.
        assert first is not None  # noqa: S101
        raise first

    def _ids(self, mark: RequestMark, text: str) -> list[int]:
        """Return the ids of a text, of a server that gives none."""
        from watermark.tokenizer import load_for

        assert mark.green_list is not None  # noqa: S101
        scope = mark.green_list.scope
        try:
            tokenizer = load_for([(scope.name, scope.params.tokenizer)], spec=self.config.tokenizer)
        except TokenizerError as error:
            raise TokenizerError(
                f"the server gives no token ids, and its text could not be tokenised ({error}): name the model's "
                "tokenizer.json as tokenizer in the configuration"
            ) from None
        ids: list[int] = tokenizer.encode(text).tolist()
        return ids
