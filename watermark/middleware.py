"""The ingress: an ASGI middleware that says for whom each request of an OpenAI-compatible server is.

::

    vllm serve MODEL --logits-processors ... --middleware watermark.middleware.TaggantMiddleware

It maps the caller's API key to an account, takes the client's own marking fields out of the request and puts a
ticket in (`watermark.ticket`), takes probabilities out, which show the green list where they are computed after the
mark, and writes what was answered into the ledger. Before the first answer it asks the server for one of its own
and looks whether that is marked (`watermark.ingress.self_test`).

A request that generates nothing (models, tokenisation, embeddings) passes untouched, and is not authenticated here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from watermark.accounts import WatchedAccounts
from watermark.errors import LedgerError, TaggantError, UsageError, printable
from watermark.green_list import before_temperature
from watermark.ingress.answer import Answer
from watermark.ingress.counts import IngressCounts
from watermark.ingress.gate import Gate
from watermark.ingress.reply import Reply
from watermark.ingress.request import (
    Injection,
    ask_for_ids,
    inject,
    parse_body,
    plain_fields,
    sampling_of,
    shape_of,
    strip_logprobs,
    strip_marking,
    unmarkable,
    written,
)
from watermark.ingress.route import Shape, Unreadable, route_of
from watermark.ingress.self_test import SampleRefusedError
from watermark.ingress_context import CURRENT_TICKET
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
    from watermark.ledger import Ledger

__all__ = ["MAX_BODY", "TaggantMiddleware"]

log = logging.getLogger("taggant")

#: Bytes of a request's body at most: pictures come in it, as base64.
MAX_BODY: Final = 32 << 20

#: Processes of one server that write into one ledger, each a log of its own.
_MAX_LOGS: Final = 64

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that is to be answered."""

    mark: RequestMark
    fields: Mapping[str, object]
    """The ingress's word, as the engine's adapter reads it."""


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
        if route is None or (scope["type"] == "http" and scope["method"] != "POST"):
            await self.app(scope, receive, send)
            return
        held = CURRENT_TICKET.set(None)
        try:
            if self._broken is not None:
                raise RequestRefusedError(f"the ingress could not start: {self._broken}", status=503)
            if isinstance(route, Shape) and scope["type"] == "http":
                await self._answer(scope, receive, send, route)
                return
            self._refuse_unreadable(scope, route)
            await self.app(scope, receive, send)
        except RequestRefusedError as error:
            await self._refuse(scope, send, route, error)
        except SampleRefusedError as refused:
            await _send(send, refused.status, refused.headers, refused.body)
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
        await _send_error(scope, send, route, error)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, route: Shape) -> None:
        headers = _Headers(scope)
        caller = self._caller(headers)
        headers.check_type()
        data = await _read(receive, headers)
        if data is None:
            return  # The client hung up.
        body = parse_body(data)
        shape = shape_of(route, body)
        admitted = self._admit(body, shape, caller)
        await self._check(scope, shape, body, admitted)
        if self._ledger is not None and self.config.policy is Policy.REQUIRED:
            if not self._ledger.ready():
                raise RequestRefusedError("the ledger can't take more answers now; ask again later", status=503)
            if body.get("background"):
                raise RequestRefusedError("background: answers here are recorded as they pass; leave it out")
        hides = self._ledger is not None and self._injection is Injection.VLLM and ask_for_ids(body, shape)
        if self.config.policy is not Policy.OFF:
            inject(body, shape, admitted.fields, injection=self._injection, logit_processor=self._logit_processor)
        new = written(body)
        ticket = admitted.fields.get(TICKET_FIELD)
        CURRENT_TICKET.set(ticket if isinstance(ticket, str) else None)
        forwarded = {**scope, "headers": headers.rewritten(len(new))}
        if self._ledger is None and not self._strips_logprobs:
            await self.app(forwarded, _replay(new, receive), send)
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
            await self.app(forwarded, _replay(new, receive), reply.send)
        finally:
            reply.finish()

    @property
    def _strips_logprobs(self) -> bool:
        return self.config.ingress.logprobs == "strip" and self.config.policy is not Policy.OFF

    def _caller(self, headers: _Headers) -> Ticket:
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
            caller = read_plain_fields(plain_fields(body, shape))
        self.counts.stripped.update(stripped := strip_marking(body, own_only=policy is Policy.OFF))
        if self._strips_logprobs:
            self.counts.stripped.update(more := strip_logprobs(body))
            stripped += more
        if stripped:
            log.debug("taken out of a request: %s", ", ".join(stripped))
        temperature = sampling_of(body).get("temperature", 1.0)
        strength = before_temperature(temperature)
        green_list = self.marker.green_list
        if caller.mark and green_list is not None:
            if policy is Policy.REQUIRED and (found := unmarkable(body)):
                raise RequestRefusedError(
                    f"{found[0]}: answers here are marked, and that of {found[1]} is not: leave it out"
                )
            caller = Ticket(account=caller.account, scope=green_list.scope.name)
        fields = self._word(caller)
        mark = self.marker.admit(fields, strength=strength)
        if not mark.marked and caller.mark:
            # So that an engine that has just seen a scope doesn't mark what is recorded as unmarked.
            fields = self._word(Ticket(account=caller.account, mark=False))
        self.marker.took_on(mark)
        return _Admitted(mark, fields)

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
        ticket = fields.get(TICKET_FIELD)
        CURRENT_TICKET.set(ticket if isinstance(ticket, str) else None)
        await self._gate.enter(scope, shape, model=body.get("model"), mark=mark, fields=fields)

    def _served(self, body: dict[str, Any], shape: Shape, mark: RequestMark) -> Served:
        from watermark.ingress.record import Served
        from watermark.ledger_record import timestamp

        reason = mark.reason
        if mark.marked and self.config.shadow:
            reason = "shadow"
        elif mark.marked and not self._gate.open:
            reason = "self-test failed"
        elif mark.marked and (found := unmarkable(body)):
            reason = found[1]
        model, ids = body.get("model"), body.get("token_ids" if shape is Shape.TOKENS else "prompt")
        return Served(
            mark=mark,
            reason=reason,
            started=timestamp(),
            model=model if isinstance(model, str) else None,
            sampling=sampling_of(body),
            min_entropy=self.config.min_entropy,
            prompt=_prompt_of(body, shape),
            prompt_ids=ids if isinstance(ids, list) and all(type(one) is int for one in ids) else None,
        )


class _Headers:
    """A request's headers, as far as they matter here."""

    def __init__(self, scope: Scope) -> None:
        self.all: list[tuple[bytes, bytes]] = [(name.lower(), value) for name, value in scope["headers"]]

    def one(self, name: bytes) -> str | None:
        """Return a header's value.

        Raises:
            RequestRefusedError: it stands there twice: the server might believe the other.
        """
        values = [value for other, value in self.all if other == name]
        if len(values) > 1:
            raise RequestRefusedError(f"the header {name.decode()} stands there {len(values)} times: send it once")
        return values[0].decode("utf-8", "surrogateescape") if values else None

    def api_key(self) -> str | None:
        """Return the caller's API key."""
        kind, _, key = (self.one(b"authorization") or "").partition(" ")
        return key.strip() if kind.lower() == "bearer" else self.one(b"x-api-key")

    def check_type(self) -> None:
        """Refuse a body that is not JSON in plain bytes.

        Raises:
            RequestRefusedError: 415.
        """
        kind = (self.one(b"content-type") or "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestRefusedError("expected a body of content-type application/json", status=415)
        if (self.one(b"content-encoding") or "identity").strip().lower() != "identity":
            raise RequestRefusedError("expected a body without content-encoding", status=415)

    def rewritten(self, length: int) -> list[tuple[bytes, bytes]]:
        """Return the headers of the request that goes on, with a body of so many bytes."""
        # Without accept-encoding nothing inside compresses what is to be read here.
        dropped = {b"content-length", b"content-type", b"transfer-encoding", b"content-encoding", b"accept-encoding"}
        kept = [(name, value) for name, value in self.all if name not in dropped]
        return [*kept, (b"content-type", b"application/json"), (b"content-length", str(length).encode())]


async def _read(receive: Receive, headers: _Headers) -> bytes | None:
    """Return a request's body; None if the client hung up."""
    data = bytearray()
    announced = headers.one(b"content-length") or ""
    more = True
    while more:
        if len(data) > MAX_BODY or (announced.isdecimal() and int(announced[:20]) > MAX_BODY):
            raise RequestRefusedError(f"the body is larger than {MAX_BODY >> 20} MiB", status=413)
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        data += message.get("body", b"")
        more = message.get("more_body", False)
    if len(data) > MAX_BODY:
        raise RequestRefusedError(f"the body is larger than {MAX_BODY >> 20} MiB", status=413)
    return bytes(data)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that begins with *body* and goes on with the client's, who may hang up."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _send_error(scope: Scope, send: Send, route: Shape | Unreadable | None, error: RequestRefusedError) -> None:
    """Answer with an error in the API's own form."""
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
            return
    kinds = {401: "authentication_error", 403: "permission_error", 413: "request_too_large"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    said: dict[str, Any] = {"message": str(error), "type": kind, "param": None, "code": error.status}
    content: dict[str, Any] = {"error": said}
    if route is Shape.MESSAGES:
        content = {"type": "error", "error": {"type": kind, "message": str(error)}}
    headers = [(b"content-type", b"application/json")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    prefix = "websocket." if scope["type"] == "websocket" else ""
    await _send(send, error.status, headers, json.dumps(content).encode(), prefix=prefix)


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, prefix: str = "") -> None:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    kept.append((b"content-length", str(len(body)).encode()))
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": kept})
    await send({"type": f"{prefix}http.response.body", "body": body})


def _prompt_of(body: dict[str, Any], shape: Shape) -> str | tuple[Mapping[str, Any], ...] | None:
    """Return the prompt as the client sent it: a text, or messages."""
    for name in ("messages", "prompt", "input", "text"):
        prompt = body.get(name)
        if isinstance(prompt, str) and prompt:
            return prompt
        if isinstance(prompt, list) and prompt and all(isinstance(one, dict) for one in prompt):
            system = body.get("system") if shape is Shape.MESSAGES else body.get("instructions")
            first = () if system is None else ({"role": "system", "content": system},)
            return (*first, *prompt)
    return None


def _open_ledger(config: ServingConfig) -> Ledger:
    """Open this process's log: of several processes of one server each writes one of its own."""
    from watermark.ledger import Ledger
    from watermark.ledger_lock import LogHeldError

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
