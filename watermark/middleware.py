"""The ingress: an ASGI middleware that says for whom each request of an OpenAI-compatible server is.

::

    vllm serve MODEL --logits-processors ... --middleware watermark.middleware.TaggantMiddleware

It maps the caller's API key to an account, takes the client's own marking fields out of the request and puts a
ticket in (`watermark.ticket`), takes probabilities out, which show the green list where they are computed after the
mark, and writes what was answered into the ledger. Before the first answer it asks the server for one of its own
and looks whether that is marked (`watermark.ingress.trial`).

A request that generates nothing (models, tokenisation, embeddings) passes untouched, and is not authenticated here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from watermark.accounts import WatchedAccounts
from watermark.errors import LedgerError, TaggantError, UsageError, printable
from watermark.green_list import before_temperature
from watermark.ingress.answer import Answer
from watermark.ingress.context import CURRENT_TICKET
from watermark.ingress.counts import IngressCounts
from watermark.ingress.gate import Gate
from watermark.ingress.reply import Reply
from watermark.ingress.request import (
    Injection,
    ask_for_ids,
    inject,
    parse_body,
    plain_fields,
    prompt_of,
    sampling_of,
    shape_of,
    strip_logprobs,
    strip_marking,
    unmarkable,
    written,
)
from watermark.ingress.route import Shape, Unreadable, route_of
from watermark.ingress.trial import SampleRefusedError
from watermark.ingress.wire import (
    App,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    read_body,
    replay,
    send_error,
    send_whole,
)
from watermark.marker import Marker, RequestMark
from watermark.serving import FieldTrust, Policy, ServingConfig
from watermark.ticket import (
    ACCOUNT_FIELD,
    MARK_FIELD,
    TICKET_FIELD,
    RequestRefusedError,
    Ticket,
    process_key,
    read_ingress_key,
    read_plain_fields,
    sign_ticket,
)

if TYPE_CHECKING:
    from watermark.ingress.record import Served
    from watermark.ledger.writer import Ledger

__all__ = ["TaggantMiddleware"]

log = logging.getLogger("taggant")

#: Processes of one server that write into one ledger, each a log of its own.
_MAX_LOGS: Final = 64

#: Methods that generate nothing. SGLang's /generate takes PUT as it takes POST.
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that is to be answered."""

    mark: RequestMark
    ticket: Ticket
    """What the engine is told."""


class TaggantMiddleware:
    """Wrap an ASGI application that answers with a model's text.

    Args:
        app: the server's application.
        config: by default what the environment says (`ServingConfig.from_environment`).
        injection: how the ingress's word reaches the sampler.
        logit_processor: for SGLang: the processor's text (``to_str()`` of the adapter's class).

    What is wrong with the configuration, the key file, the accounts or the ledger does not raise here, where servers
    would take it for a lack of lifespan support and go on: the server fails to start, or every request fails with 503.
    """

    def __init__(
        self,
        app: App,
        config: ServingConfig | None = None,
        *,
        injection: Injection | str = Injection.VLLM,
        logit_processor: str | None = None,
    ) -> None:
        self.app = app
        self.counts = IngressCounts()
        self._injection = Injection(injection)
        self._logit_processor = logit_processor
        self._broken: str | None = None
        self._ledger: Ledger | None = None
        self._accounts: WatchedAccounts | None = None
        try:
            self.config = config or ServingConfig.from_environment()
            self._set_up()
        except (TaggantError, OSError) as error:
            self._broken = str(error)
            log.error("the ingress cannot start: %s", error)

    def _set_up(self) -> None:
        config = self.config
        if self._injection == "sglang" and self._logit_processor is None and config.policy is not Policy.OFF:
            raise UsageError(
                "SGLang marks by the processor that comes with a request: give the middleware "
                "logit_processor=GreenListCustomLogitProcessor.to_str() (watermark.engines.sglang)"
            )
        self.marker = Marker(config)
        self.marker.counts = self.counts
        self._key = read_ingress_key(config.ingress.key) if config.ingress.key else process_key()
        self._trusted = config.fields is FieldTrust.PLAIN
        if config.ingress.accounts is not None and not self._trusted:
            self._accounts = WatchedAccounts(config.ingress.accounts, interval=config.refresh)
        elif config.require_account and not self._trusted:
            raise UsageError("require_account: name the file of accounts, as accounts under [ingress]")
        self._gate = Gate(
            self.app,
            config,
            injection=self._injection,
            logit_processor=self._logit_processor,
            counts=self.counts,
        )
        if config.metrics is not None:
            self.counts.write(config.metrics)
        if config.ledger.database is not None:
            self._ledger = _open_ledger(config)
        self.marker.watch()

    def __repr__(self) -> str:
        return f"TaggantMiddleware({self._broken or self.marker!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        route = route_of(scope["path"]) if scope["type"] in ("http", "websocket") else None
        if route is None or (scope["type"] == "http" and scope["method"] in _READING):
            await self.app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        held = CURRENT_TICKET.set(None)
        try:
            if self._broken is not None:
                raise RequestRefusedError("the ingress could not start, and its log says why", status=503)
            if isinstance(route, Shape) and scope["type"] == "http":
                await self._answer(scope, receive, noted, route)
                return
            self._refuse_unreadable(scope, route)
            await self.app(scope, receive, noted)
        except RequestRefusedError as error:  # Also an engine's in this process.
            if started:
                raise
            await self._refuse(scope, send, route, error)
        except SampleRefusedError as refused:
            await send_whole(send, refused.status, refused.headers, refused.body)
        finally:
            CURRENT_TICKET.reset(held)

    def close(self) -> None:
        """Write the ledger to the end and let go of it, and stop watching the key file."""
        if self._broken is None:
            self.marker.close()
        if self._ledger is not None:
            try:
                self._ledger.close()
            except LedgerError as error:
                log.error("%s", error)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._broken is not None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"taggant: {self._broken}"})
            return

        async def closing(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await asyncio.to_thread(self.close)
            await send(message)

        await self.app(scope, receive, closing)

    def _refuse_unreadable(self, scope: Scope, route: Shape | Unreadable) -> None:
        """Refuse a route on which no ticket can be put or whose answers can't be read, where that matters."""
        policy = self.config.policy
        if policy is Policy.OFF:
            return
        if route is Unreadable.SCORES:
            if self.config.ingress.logprobs == "pass":
                return
        elif policy is Policy.OPTIONAL and not self._trusted:
            # Unmarked or not, on no account's behalf; a ticket of the client's own fails its check.
            return
        why = route.value if isinstance(route, Unreadable) else Unreadable.SOCKET.value
        raise RequestRefusedError(f"{printable(scope['path'])} {why}")

    async def _refuse(
        self, scope: Scope, send: Send, route: Shape | Unreadable | None, error: RequestRefusedError
    ) -> None:
        self.counts.refused[error.status] += 1
        await send_error(scope, send, route, error)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, route: Shape) -> None:
        headers = Headers(scope)
        caller = self._caller(headers)
        headers.check_type()
        data = await read_body(receive, headers)
        if data is None:
            return  # The client hung up.
        body = parse_body(data)
        shape = shape_of(route, body)
        admitted = self._admit(body, shape, caller)
        await self._check(scope, shape, body, admitted)
        if self._ledger is not None:
            if body.get("background"):
                raise RequestRefusedError("background: answers here are recorded as they pass; leave it out")
            if self.config.policy is Policy.REQUIRED and not self._ledger.ready():
                raise RequestRefusedError("the ledger can't take more answers now; ask again later", status=503)
        hides = self._ledger is not None and self._injection is Injection.VLLM and ask_for_ids(body, shape)
        fields = self._word(admitted.ticket)  # Signed now: the self-test may have taken minutes.
        if self.config.policy is not Policy.OFF:
            inject(body, shape, fields, injection=self._injection, logit_processor=self._logit_processor)
        new = written(body)
        _put_in_context(fields)
        forwarded = {**scope, "headers": headers.rewritten(len(new))}
        if self._ledger is None and not self._strips_logprobs:
            await self.app(forwarded, replay(new, receive), send)
            return
        reply = Reply(
            send,
            Answer(shape),
            refuse=lambda error: self._refuse(scope, send, route, error),
            hide_ids=hides,
            scrub=self._strips_logprobs,
            ledger=self._ledger,
            served=None if self._ledger is None else self._served(body, shape, admitted.mark),
            strict=self.config.policy is Policy.REQUIRED,
            counts=self.counts,
        )
        try:
            await self.app(forwarded, replay(new, receive), reply.send)
        finally:
            reply.finish()

    @property
    def _strips_logprobs(self) -> bool:
        return self.config.ingress.logprobs == "strip" and self.config.policy is not Policy.OFF

    def _caller(self, headers: Headers) -> Ticket:
        """Return what the account map says of the caller."""
        if self._accounts is None:
            return Ticket()
        key = headers.api_key()
        caller = None if key is None else self._accounts.caller(key)
        if caller is None:
            what = "no API key was sent" if key is None else "this API key is not known here"
            raise RequestRefusedError(f"{what}: send yours as Authorization: Bearer, or as x-api-key", status=401)
        return caller

    def _admit(self, body: dict[str, Any], shape: Shape, caller: Ticket) -> _Admitted:
        """Clean the body, and decide how it is marked."""
        policy = self.config.policy
        if self._trusted:
            caller = read_plain_fields(plain_fields(body, shape, self._injection))
        self.counts.stripped.update(stripped := strip_marking(body, own_only=policy is Policy.OFF))
        if self._strips_logprobs:
            self.counts.stripped.update(more := strip_logprobs(body))
            stripped += more
        if stripped:
            log.debug("taken out of a request: %s", ", ".join(stripped))
        temperature = sampling_of(body).get("temperature", 1.0)
        strength = before_temperature(temperature)
        green_list = self.marker.green_list
        if caller.mark and policy is Policy.REQUIRED and (found := unmarkable(body, shape, self._injection)):
            raise RequestRefusedError(
                f"{found[0]}: answers here are marked, and that of {found[1]} is not: leave it out"
            )
        if caller.mark and green_list is not None:
            caller = Ticket(account=caller.account, scope=green_list.scope.name)
        mark = self.marker.admit(self._word(caller), strength=strength)
        if not mark.marked and caller.mark:
            # So that an engine that has just seen a scope doesn't mark what is recorded as unmarked.
            caller = Ticket(account=caller.account, mark=False)
        elif mark.marked:
            # The scope may have become active since it was looked at above.
            caller = Ticket(account=caller.account, scope=mark.scope)
        self.marker.took_on(mark)
        return _Admitted(mark, caller)

    def _word(self, ticket: Ticket) -> dict[str, object]:
        """Return a ticket as the fields in which the engine's adapter reads it."""
        if not self._trusted:
            return {TICKET_FIELD: sign_ticket(ticket, self._key)}
        named: dict[str, object] = {} if ticket.account is None else {ACCOUNT_FIELD: ticket.account}
        return named | {MARK_FIELD: "on" if ticket.mark else "off"}

    async def _check(self, scope: Scope, shape: Shape, body: dict[str, Any], admitted: _Admitted) -> None:
        """Wait for the self-test, which asks on no account's behalf unless there must be one."""
        mark = admitted.mark
        if self._gate.open or mark.green_list is None:
            return
        account = mark.account if self.config.require_account else None
        fields = self._word(Ticket(account=account, scope=mark.scope))
        _put_in_context(fields)
        await self._gate.enter(scope, shape, model=body.get("model"), mark=mark, fields=fields)

    def _served(self, body: dict[str, Any], shape: Shape, mark: RequestMark) -> Served:
        from watermark.ingress.record import Served
        from watermark.ledger.record import Retention, timestamp

        assert self._ledger is not None  # noqa: S101
        reason = mark.reason
        if mark.marked and self.config.shadow:
            reason = "shadow"
        elif mark.marked and not self._gate.open:
            reason = "self-test failed"
        elif mark.marked and (found := unmarkable(body, shape, self._injection)):
            reason = found[1]
        model, ids = body.get("model"), body.get("token_ids" if shape is Shape.TOKENS else "prompt")
        return Served(
            mark=mark,
            reason=reason,
            started=timestamp(),
            model=model if isinstance(model, str) else None,
            sampling=sampling_of(body),
            min_entropy=self.config.min_entropy,
            prompt=prompt_of(body, shape),
            keeps_text=self._ledger.retention in (Retention.text, Retention.both),
            prompt_ids=ids if isinstance(ids, list) and all(type(one) is int for one in ids) else None,
        )


def _put_in_context(fields: Mapping[str, object]) -> None:
    ticket = fields.get(TICKET_FIELD)
    CURRENT_TICKET.set(ticket if isinstance(ticket, str) else None)


def _open_ledger(config: ServingConfig) -> Ledger:
    """Open this process's log: of several processes of one server each writes one of its own."""
    from watermark.ledger.lock import LogHeldError
    from watermark.ledger.writer import Ledger

    assert config.ledger.database is not None  # noqa: S101
    origin = config.ledger.origin or f"{socket.gethostname()}/ledger"
    for number in range(1, _MAX_LOGS + 1):
        try:
            return Ledger.open(
                config.ledger.database,
                origin=origin if number == 1 else f"{origin}/{number}",
                retention=config.ledger.retention,
            )
        except LogHeldError:
            continue
    raise LedgerError(f"{printable(origin)}: {_MAX_LOGS} processes write this ledger already: another origin, please")
