"""What the ingress adds to a request and to each event of a stream, in microseconds.

pytest benchmarks/test_middleware_speed.py --benchmark-columns=min,median,rounds -s

The application behind it answers at once, so that what is timed is the ingress: as a table, the 50th and 99th
percentile without it, with it, and with a ledger (SQLite) too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from watermark.accounts import add_account
from watermark.keyring import Keyring
from watermark.keys import Params
from watermark.middleware import TaggantMiddleware
from watermark.serving import IngressConfig, LedgerConfig, ServingConfig

KEY = "sk-alice-0123456789abcdef"
EVENTS = 256
REQUESTS = 1000
BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "word " * 400}], "temperature": 0.7, "max_tokens": 256}
).encode()
HEADERS = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")]
SCOPE = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": HEADERS}


def chunk(token: int) -> bytes:
    """An event as vLLM writes it."""
    choice = {"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None, "token_ids": [token]}
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(frame, separators=(",", ":")).encode() + b"\n\n"


CHUNKS = [chunk(token) for token in range(EVENTS)]
WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": " word" * EVENTS},
                "finish_reason": "length",
                "token_ids": list(range(EVENTS)),
            }
        ],
    }
).encode()


async def app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    kind = b"text/event-stream" if scope["path"].startswith("/stream") else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if kind == b"application/json":
        await send({"type": "http.response.body", "body": WHOLE})
        return
    for event in CHUNKS:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


@pytest.fixture(params=["without", "ingress", "ingress and ledger"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "without":
        yield app
        return
    params = Params(tokenizer="ab" * 32, special_ids=(), window=2, fleet_k=64, account_k=128, account_lanes=16)
    Keyring.create("s", params=params, delta=2.0).write(tmp_path / "key.json")
    add_account(tmp_path / "accounts", "alice", KEY)
    database = f"sqlite:///{tmp_path}/ledger.db" if "ledger" in request.param else None
    config = ServingConfig(
        keyring=tmp_path / "key.json",
        ingress=IngressConfig(accounts=tmp_path / "accounts", self_test=False),
        ledger=LedgerConfig(database=database, origin="benchmark/ledger"),
    )
    middleware = TaggantMiddleware(app, config)
    yield middleware
    middleware.close()


async def once(server: Any, path: str) -> list[float]:
    """Answer one request; return the moments at which the client got something."""
    moments = [time.perf_counter()]
    incoming = [{"type": "http.request", "body": BODY, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return incoming.pop()

    async def send(message: dict[str, Any]) -> None:
        moments.append(time.perf_counter())

    await server({**SCOPE, "path": path}, receive, send)
    return moments


async def measured(server: Any, path: str, times: int) -> list[list[float]]:
    await once(server, path)
    return [await once(server, path) for _ in range(times)]


def tell(benchmark: Any, what: str, values: Any) -> None:
    p50, p99 = np.percentile(np.asarray(values) * 1e6, [50, 99])
    benchmark.extra_info[f"{what} p50 us"] = round(float(p50), 1)
    benchmark.extra_info[f"{what} p99 us"] = round(float(p99), 1)
    print(f"\n{what}: p50 {p50:.1f} us, p99 {p99:.1f} us", end="")


def run(benchmark: Any, function: Callable[[], Any]) -> Any:
    return benchmark.pedantic(function, rounds=1, iterations=1)


def test_a_request(benchmark: Any, server: Any) -> None:
    answers = run(benchmark, lambda: asyncio.run(measured(server, "/v1/chat/completions", REQUESTS)))
    tell(benchmark, "request", [moments[-1] - moments[0] for moments in answers])


def test_an_event_of_a_stream(benchmark: Any, server: Any) -> None:
    answers = run(benchmark, lambda: asyncio.run(measured(server, "/stream/v1/chat/completions", REQUESTS // 10)))
    tell(benchmark, "event", np.concatenate([np.diff(moments[2:-1]) for moments in answers]))
