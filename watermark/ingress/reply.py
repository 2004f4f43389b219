"""One answer on its way from the server to the client: read, cleaned, recorded, and held up by nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from watermark.errors import LedgerError
from watermark.ingress.answer import Answer, hide_ids, holds_logprobs, scrub_logprobs, without_ids
from watermark.ingress.counts import IngressCounts
from watermark.ingress.event_stream import EventSplitter, data_of, with_data
from watermark.ingress.wire import Message, Send
from watermark.ticket import RequestRefusedError

if TYPE_CHECKING:
    from watermark.ingress.record import Served
    from watermark.ledger.writer import Ledger

__all__ = ["Reply"]

log = logging.getLogger("taggant")

_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_UNREADABLE: Final = "the server's answer is in no form that can be recorded"


class Reply:
    """Stand between a server's application and the client, as the `send` of one request.

    Args:
        send: the client's.
        refuse: sends an error in place of the answer.
        answer: takes in what passes.
        hide_ids: whether to take token ids out again: we asked for them and the client had not.
        scrub: whether to take probabilities out.
        ledger: where the answer is recorded; None: nowhere, and then it need not be read.
        served: what the record says beside the answer; None where there is no ledger.
        strict: an answer that cannot be recorded is not given.
        counts: of the ingress.
    """

    def __init__(
        self,
        send: Send,
        answer: Answer,
        *,
        refuse: Callable[[RequestRefusedError], Awaitable[None]],
        hide_ids: bool,
        scrub: bool,
        ledger: Ledger | None,
        served: Served | None,
        strict: bool,
        counts: IngressCounts,
    ) -> None:
        self._send = send
        self._refuse = refuse
        self._refused = False
        self._answer = answer
        self._hide_ids = hide_ids
        self._scrub = scrub
        self._ledger = ledger
        self._served = served
        self._strict = strict
        self._counts = counts
        self._start: Message | None = None
        self._body = bytearray()
        self._events: EventSplitter | None = None
        self._recorded = False

    async def send(self, message: Message) -> None:
        """Pass one of the application's messages on; an error instead where the policy wants what can't be done.

        Nothing is raised into the application, which takes the answer for sent.
        """
        kind = message["type"]
        if self._refused:
            return
        if kind == "http.response.start":
            await self._on_start(message)
        elif kind == "http.response.body" and self._events is not None:
            await self._on_events(message)
        elif kind == "http.response.body" and self._start is not None:
            await self._on_body(message)
        else:
            await self._send(message)

    def finish(self) -> bool:
        """Record what came; nothing happens the second time. Called however the request ended.

        Returns:
            Whether it is in the ledger, if there is one.
        """
        if self._recorded:
            return True
        self._recorded = True
        try:
            self._record()
        except LedgerError as error:
            self._counts.unrecorded += 1
            log.error("an answer is not in the ledger: %s", error)
            return False
        return True

    async def _give_up(self, error: RequestRefusedError) -> None:
        self._refused = self._recorded = True
        await self._refuse(error)

    async def _on_start(self, message: Message) -> None:
        headers = message.get("headers", [])
        kind = next((value for name, value in headers if name.lower() == b"content-type"), b"").partition(b";")[0]
        packed = any(name.lower() == b"content-encoding" and value != b"identity" for name, value in headers)
        if message["status"] != 200 or packed:
            kind = b""
        kind = kind.strip().lower()
        if kind == b"application/json":
            self._start = message  # Its length is not known before the body was read.
            return
        if kind == b"text/event-stream":
            self._events = EventSplitter()
            kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
            message = {**message, "headers": kept}
        elif message["status"] == 200 and self._strict and self._ledger is not None:
            await self._give_up(RequestRefusedError(_UNREADABLE, status=502))
            return
        await self._send(message)

    async def _on_body(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        start, self._start = self._start, None
        assert start is not None  # noqa: S101
        body = self._read(bytes(self._body))
        if body is None:
            await self._give_up(RequestRefusedError(_UNREADABLE, status=502))
            return
        if not self.finish() and self._strict:
            await self._give_up(RequestRefusedError("the answer could not be recorded; ask again", status=503))
            return
        headers = [(name, value) for name, value in start.get("headers", []) if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "headers": headers})
        await self._send({**message, "body": body, "more_body": False})

    async def _on_events(self, message: Message) -> None:
        assert self._events is not None  # noqa: S101
        more = message.get("more_body", False)
        events = self._events.feed(message.get("body", b""))
        if not more:
            events.append(self._events.rest())
        passed = b"".join([self._event(event) for event in events])
        if not more:
            self.finish()  # Whoever has seen the end of an answer finds it in the ledger.
        if passed or not more:
            await self._send({**message, "body": passed})

    def _event(self, event: bytes) -> bytes:
        if not (self._hide_ids or self._ledger is not None or (self._scrub and holds_logprobs(event))):
            return event
        data = data_of(event)
        if data is None or data == b"[DONE]":
            return event
        payload = _json(data)
        if not isinstance(payload, dict):
            return event
        if self._ledger is not None:
            self._answer.take(payload)
        changed = self._scrub and holds_logprobs(data) and scrub_logprobs(payload)
        hidden = 0
        if self._hide_ids and b"token_ids" in data:
            wanted, hidden = hide_ids(payload)
            if not wanted:
                return b""
        return with_data(event, _shown(data, payload, hidden, changed=changed)) if changed or hidden else event

    def _read(self, body: bytes) -> bytes | None:
        """Take in a whole answer, and return what the client is to see of it; None if that is nothing."""
        if self._ledger is None and not holds_logprobs(body):
            return body
        payload = _json(body)
        answers = payload if isinstance(payload, list) else [payload]
        if not all(isinstance(one, dict) for one in answers):
            return None if self._strict and self._ledger is not None else body
        changed, hidden = False, 0
        for number, one in enumerate(answers):
            if self._ledger is not None:
                # SGLang answers several prompts with an array.
                self._answer.take({"index": number, **one} if isinstance(payload, list) else one)
            changed |= self._scrub and scrub_logprobs(one)
            if self._hide_ids:
                hidden += hide_ids(one)[1]
        return _shown(body, payload, hidden, changed=changed) if changed or hidden else body

    def _record(self) -> None:
        if self._ledger is None or self._served is None:
            return
        from watermark.ingress.record import records

        for record in records(self._answer, self._served):
            self._ledger.append(record)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _shown(data: bytes, payload: object, hidden: int, *, changed: bool) -> bytes:
    """Return an answer's bytes without what was taken out of it: where only ids were, all others are the server's."""
    rest = None if changed else without_ids(data, hidden)
    if rest is not None:
        return rest
    try:
        return _COMPACT(payload).encode()
    except UnicodeEncodeError:  # Half a surrogate pair, which only an escape can write.
        return json.dumps(payload, separators=(",", ":")).encode()
