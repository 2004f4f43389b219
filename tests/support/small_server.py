"""A small server in the manner of vLLM's: real sampling from logits that a real `Marker` biased, and its protocol.

The model is random: each token's logits are drawn from a normal distribution, so that an answer has entropy to spare.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np

from watermark.ingress.context import CURRENT_TICKET
from watermark.marker import Marker
from watermark.serving import ServingConfig
from watermark.ticket import TICKET_FIELD, RequestRefusedError

VOCABULARY = 600
END = 2

Send = Callable[[dict[str, Any]], Awaitable[None]]


def text_of(ids: list[int]) -> str:
    """One character an id, some of them of several bytes, some that JSON escapes."""
    return "".join(chr(0x20 + i) for i in ids)


class SmallServer:
    """An ASGI application.

    Args:
        config: None: it marks nothing, whatever it is told.
        cut: how to cut each stream's bytes into messages; by default an event is one.
        context: read the ticket from the context and not from the body, as llama-cpp-python's adapter does.
    """

    def __init__(
        self,
        config: ServingConfig | None,
        *,
        cut: Callable[[bytes], list[bytes]] = lambda event: [event],
        context: bool = False,
        gives_ids: bool = True,
        spread: float = 1.0,
        fails_after: int | None = None,
    ) -> None:
        self.marker = None if config is None else Marker(config)
        self.cut = cut
        self.context = context
        self.gives_ids = gives_ids
        self.spread = spread
        self.fails_after = fails_after
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lifespans: list[str] = []
        self._rng = np.random.default_rng(7)

    def sampled(self, fields: dict[str, Any], count: int) -> list[int]:
        request = None if self.marker is None else self.marker.admit(fields)
        ids: list[int] = []
        for _ in range(count):
            logits = (self._rng.normal(size=(1, VOCABULARY)) * self.spread).astype(np.float32)
            logits[0, END] = -np.inf
            if self.marker is not None and request is not None:
                self.marker.bias(logits, [ids], [request])
            weights = np.exp(logits[0] - logits[0].max())
            ids.append(int(self._rng.choice(VOCABULARY, p=weights / weights.sum())))
        return ids

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            for said in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{said}"
                self.lifespans.append(said)
                await send({"type": f"lifespan.{said}.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        path = scope["path"]
        if scope["method"] == "GET":
            await answer(send, 200, {"object": "list", "data": []})
            return
        asked = json.loads(body)
        self.seen.append(asked)
        if asked.get("model") == "none":
            await answer(send, 404, {"error": {"message": "no such model", "type": "NotFoundError", "code": 404}})
            return
        fields = dict(asked.get("vllm_xargs") or (asked.get("sampling_params") or {}).get("extra_args") or {})
        if self.context:
            ticket = CURRENT_TICKET.get()
            fields = {} if ticket is None else {TICKET_FIELD: ticket}
        try:
            choices = [self.sampled(fields, limit(asked)) for _ in range(asked.get("n", 1))]
        except RequestRefusedError as error:
            await answer(send, error.status, {"error": {"message": str(error), "type": "BadRequestError"}})
            return
        events = SHAPES[path](asked, choices, self.gives_ids)
        if not asked.get("stream"):
            await answer(send, 200, next(events))
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, event in enumerate(events):
            if number == self.fails_after:
                raise OSError("the engine is dead")
            for part in self.cut(event if isinstance(event, bytes) else data(event)):
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def limit(asked: dict[str, Any]) -> int:
    return int(asked.get("max_tokens") or (asked.get("sampling_params") or {}).get("max_tokens") or 16)


def data(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def answer(send: Send, status: int, payload: dict[str, Any]) -> None:
    content = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content[:7], "more_body": True})
    await send({"type": "http.response.body", "body": content[7:]})


def logprobs_of(asked: dict[str, Any]) -> dict[str, Any] | None:
    return {"content": [{"token": "a", "logprob": -0.5}]} if asked.get("logprobs") else None


Events = Iterator[Any]


def completions(asked: dict[str, Any], choices: list[list[int]], gives_ids: bool) -> Events:
    frame = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    asks = bool(asked.get("return_token_ids")) and gives_ids
    if not asked.get("stream"):
        said = [
            {
                "index": i,
                "text": text_of(ids),
                "logprobs": logprobs_of(asked),
                "finish_reason": "length",
                "prompt_logprobs": None,
                "prompt_token_ids": [5, 6, 7] if asks else None,
                "token_ids": ids if asks else None,
            }
            for i, ids in enumerate(choices)
        ]
        yield frame | {"choices": said, "usage": {"completion_tokens": sum(map(len, choices))}}
        return
    for step in range(len(choices[0])):
        for i, ids in enumerate(choices):
            last = step == len(ids) - 1
            choice = {"index": i, "text": text_of(ids[step : step + 1]), "logprobs": logprobs_of(asked)}
            choice["finish_reason"] = "length" if last else None
            choice["prompt_token_ids"] = [5, 6, 7] if asks and step == 0 else None
            choice["token_ids"] = ids[step : step + 1] if asks else None
            yield frame | {"choices": [choice]}
        yield b": keep-alive\n\n"
    if (asked.get("stream_options") or {}).get("include_usage"):
        yield frame | {"choices": [], "usage": {"completion_tokens": sum(map(len, choices))}}


def chat(asked: dict[str, Any], choices: list[list[int]], gives_ids: bool) -> Events:
    frame = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    asks = bool(asked.get("return_token_ids")) and gives_ids
    if not asked.get("stream"):
        said = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text_of(ids), "reasoning": None},
                "logprobs": logprobs_of(asked),
                "finish_reason": "length",
                "token_ids": ids if asks else None,
            }
            for i, ids in enumerate(choices)
        ]
        yield frame | {"choices": said, "usage": {}, "prompt_token_ids": [5, 6, 7] if asks else None}
        return
    frame["object"] += ".chunk"
    for i in range(len(choices)):
        first = {"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        yield frame | {"choices": [first], "prompt_token_ids": [5, 6, 7] if asks else None}
    tools = bool(asked.get("tools"))
    for step in range(len(choices[0])):
        for i, ids in enumerate(choices):
            last, here = step == len(ids) - 1, ids[step : step + 1]
            delta: dict[str, Any] = {"content": text_of(here)}
            if tools:  # The first half of a tool call's tokens is its frame, of which nothing is shown.
                call = {"index": 0, "function": {"arguments": text_of(here)}}
                delta = {} if step < len(ids) // 2 else {"tool_calls": [call]}
            if not delta and not asks and not last:
                continue
            choice = {"index": i, "delta": delta, "logprobs": logprobs_of(asked)}
            choice["finish_reason"] = ("tool_calls" if tools else "length") if last else None
            choice["token_ids"] = here if asks else None
            yield frame | {"choices": [choice]}


def responses(asked: dict[str, Any], choices: list[list[int]], gives_ids: bool) -> Events:
    [ids] = choices
    item = {"type": "message", "content": [{"type": "output_text", "text": text_of(ids), "logprobs": [{"logprob": 1}]}]}
    whole = {"id": "resp_1", "object": "response", "model": "m", "status": "completed", "output": [item]}
    whole["tools"] = asked.get("tools", [])
    if not asked.get("stream"):
        yield whole
        return

    def event(kind: str, **more: Any) -> bytes:
        return f"event: {kind}\n".encode() + data({"type": kind, **more})

    yield event("response.created", response={**whole, "status": "in_progress", "output": []})
    for token in ids:
        yield event("response.output_text.delta", delta=text_of([token]), logprobs=[])
    yield event("response.completed", response=whole)


def messages(asked: dict[str, Any], choices: list[list[int]], gives_ids: bool) -> Events:
    [ids] = choices
    frame = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
    if not asked.get("stream"):
        yield {**frame, "content": [{"type": "text", "text": text_of(ids)}], "stop_reason": "max_tokens"}
        return

    def event(kind: str, **more: Any) -> bytes:
        return f"event: {kind}\n".encode() + data({"type": kind, **more})

    yield event("message_start", message={**frame, "content": []})
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for token in ids:
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": text_of([token])})
    yield event("message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": len(ids)})


def tokens(asked: dict[str, Any], choices: list[list[int]], gives_ids: bool) -> Events:
    [ids] = choices
    choice = {"index": 0, "token_ids": ids, "finish_reason": "length", "logprobs": None, "sampling_mask": [[1, 2]]}
    yield {"request_id": "gen-1", "model": "m", "choices": [choice], "prompt_logprobs": None}


SHAPES: dict[str, Callable[[dict[str, Any], list[list[int]], bool], Events]] = {
    "/v1/completions": completions,
    "/v1/chat/completions": chat,
    "/v1/chat/completions/batch": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
    "/inference/v1/generate": tokens,
    "/v1/embeddings": lambda asked, choices, gives_ids: iter([{"object": "list", "seen": asked}]),
}
