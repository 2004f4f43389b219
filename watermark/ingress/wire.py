"""Requests as they come off the wire, and what is sent back where they are refused: ASGI's messages."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from watermark.ingress.route import Shape, Unreadable
from watermark.ticket import RequestRefusedError

__all__ = [
    "MAX_BODY",
    "App",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "read_body",
    "replay",
    "send_error",
    "send_whole",
]

#: Bytes of a request's body at most: pictures come in it, as base64.
MAX_BODY: Final = 32 << 20

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Headers:
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


async def read_body(receive: Receive, headers: Headers) -> bytes | None:
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


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that begins with *body* and goes on with the client's, who may hang up."""
    waiting = [body]

    async def next_message() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return next_message


async def send_error(scope: Scope, send: Send, route: Shape | Unreadable | None, error: RequestRefusedError) -> None:
    """Answer with an error in the API's own form."""
    if scope["type"] == "websocket" and "websocket.http.response" not in (scope.get("extensions") or {}):
        # What a client sees of it is a refused handshake.
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
    await send_whole(send, error.status, headers, json.dumps(content).encode(), prefix=prefix)


async def send_whole(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, prefix: str = ""
) -> None:
    """Answer with a whole body."""
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    kept.append((b"content-length", str(len(body)).encode()))
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": kept})
    await send({"type": f"{prefix}http.response.body", "body": body})
