"""A small student behind a real OpenAI-compatible HTTP server, and servers that misbehave in every way.

The student is a bigram model of words, trained on answers that a teacher marked (or did not: the clean twin).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import uvicorn
from evidence import WORDS, answers
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from watermark.keys import ScopeKeys
from watermark.tokenizer import Tokenizer


class Student:
    """A bigram model of *texts*, over the words that these tests know."""

    def __init__(self, texts: list[str]) -> None:
        number = {word: i for i, word in enumerate(WORDS)}
        counts = np.full((len(WORDS), len(WORDS)), 0.01)
        for text in texts:
            said = [number[word] for word in text.split()]
            np.add.at(counts, (said[:-1], said[1:]), 1.0)
        self.p = counts / counts.sum(axis=1, keepdims=True)
        self._edges = self.p.cumsum(axis=1)

    @classmethod
    def taught(cls, keys: ScopeKeys | None, tokenizer: Tokenizer, *, seed: int = 5) -> Student:
        return cls(answers(keys, tokenizer, count=250, length=60, seed=seed, bias=0.6))

    def say(self, words: int, seed: int) -> str:
        random = np.random.default_rng(seed)
        said = [int(random.integers(len(WORDS)))]
        while len(said) < words:
            said.append(min(len(WORDS) - 1, int(np.searchsorted(self._edges[said[-1]], random.random()))))
        return " " + " ".join(WORDS[i] for i in said)

    def top(self, text: str, k: int) -> list[tuple[str, float, list[tuple[str, float]]]]:
        """For each word of a text: it, its log-probability, and the k likeliest words with theirs."""
        number = {word: i for i, word in enumerate(WORDS)}
        row, found = np.full(len(WORDS), 1 / len(WORDS)), []
        for word in text.split():
            best = np.argsort(-row, kind="stable")[:k]
            listed = [(f" {WORDS[i]}", float(np.log(row[i]))) for i in best]
            found.append((f" {word}", float(np.log(row[number[word]])), listed))
            row = self.p[number[word]]
        return found


class StudentServer:
    """An ASGI application. *manner* is how it misbehaves; None for not at all."""

    def __init__(self, student: Student, *, manner: str | None = None, delay: float = 0.0) -> None:
        self.student = student
        self.manner = manner
        self.delay = delay
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.requests = 0
        routes = [Route(f"/v1/{path}", self.answer, methods=["POST"]) for path in ("chat/completions", "completions")]
        self.app = Starlette(routes=routes)

    async def answer(self, request: Request) -> Response:
        self.requests += 1
        self.headers.append(dict(request.headers))
        body = json.loads(await request.body())
        chat = "messages" in body
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        self.asked[prompt] += 1
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.manner == "never the first" and prompt.endswith("number 0."):
            return JSONResponse({"error": "filtered"}, 400)
        bad = self.misbehave()
        if bad is not None:
            return bad
        text = self.student.say(body["max_tokens"], seed=zlib.crc32(f"{prompt}{self.asked[prompt]}".encode()))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if body.get("logprobs"):
            choice["logprobs"] = logprobs_of(self.student.top(text, body["top_logprobs" if chat else "logprobs"]), chat)
        model = "student-2" if self.manner == "model changes" and self.requests > 10 else "student"
        return JSONResponse(
            {
                "id": "x",
                "object": "chat.completion",
                "model": model,
                "system_fingerprint": "fp_1",
                "choices": [choice],
                "usage": {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]},
            }
        )

    def misbehave(self) -> Response | None:
        manner = self.manner
        if manner == "hangs":
            return StreamingResponse(_slowly())
        if manner == "garbage":
            return PlainTextResponse("\x1b[31m<html>\u202e{{{", 200)
        if manner == "truncated":
            return Response(b'{"choices": [{"message": {"content": "hal', 200, media_type="application/json")
        if manner == "cut off":
            return StreamingResponse(_cut_off(), headers={"content-length": "100000"})
        if manner == "gigabyte":
            return StreamingResponse(_gigabyte())
        if manner == "compressed":
            return Response(b"\x1f\x8b" + bytes(100), 200, headers={"content-encoding": "gzip"})
        if manner == "redirects":
            return RedirectResponse("http://elsewhere.example/v1/chat/completions", 307)
        if manner == "unauthorised":
            return JSONResponse({"error": {"message": "Incorrect API key provided: \x1b[31m"}}, 401)
        if manner == "busy":
            return JSONResponse({"error": "slow down"}, 429, headers={"retry-after": "0"})
        if manner == "broken":
            return PlainTextResponse("oops", 503)
        if manner == "busy at first" and self.requests <= 6:
            return JSONResponse({"error": "slow down"}, 429, headers={"retry-after": "0.01"})
        if manner == "other form":
            return JSONResponse({"choices": [{"message": {"content": ["a", 1]}}]})
        if manner == "deep":
            return Response(b"[" * 200_000, 200)
        if manner == "refuses":
            return JSONResponse({"choices": [{"message": {"content": None, "refusal": "I can't."}}]})
        return None


def logprobs_of(said: list[tuple[str, float, list[tuple[str, float]]]], chat: bool) -> dict[str, Any]:
    """Return log-probabilities as the chat endpoint gives them, or as the older one does."""
    if chat:

        def entry(token: str, logprob: float) -> dict[str, Any]:
            return {"token": token, "bytes": list(token.encode()), "logprob": logprob}

        return {
            "content": [
                {**entry(token, logprob), "top_logprobs": [entry(*each) for each in listed]}
                for token, logprob, listed in said
            ]
        }
    starts = np.cumsum([0, *(len(token) for token, _, _ in said)])[:-1]
    return {
        "tokens": [token for token, _, _ in said],
        "token_logprobs": [logprob for _, logprob, _ in said],
        # The older endpoint lists the token said beside the likeliest.
        "top_logprobs": [{**dict(listed), token: logprob} for token, logprob, listed in said],
        "text_offset": starts.tolist(),
    }


async def _slowly() -> AsyncIterator[bytes]:
    for _ in range(100):
        yield b" "
        await asyncio.sleep(0.2)


async def _cut_off() -> AsyncIterator[bytes]:
    yield b'{"choices": ['
    raise ConnectionError


async def _gigabyte() -> AsyncIterator[bytes]:
    for _ in range(1024):
        yield b" " * (1 << 20)


@contextlib.contextmanager
def served(server: StudentServer) -> Iterator[str]:
    """Serve over HTTP in a thread of its own; yield the base address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        running = uvicorn.Server(uvicorn.Config(server.app, log_level="critical", lifespan="off", ws="none"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            running.should_exit = running.force_exit = True
            thread.join(timeout=20)
