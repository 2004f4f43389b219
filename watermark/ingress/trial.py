"""Before the first answer is served: is what this server says marked?

A server can serve unmarked without a word: its plug-in was not loaded, speculative decoding goes round it, it
sees placeholders in place of tokens, its worker holds another key. All of these are seen from outside, in an answer.
So the ingress asks for one, as a client would, and counts its green tokens.

*Null*: the answer's tokens are independent of the key. Then each distinct (window, token) pair in a fleet lane is
green with probability gamma, independently, and the count's tail is binomial, whatever the model says
(docs/method.md). It is looked at after each answer, and the test is made again where it failed; `level_of` divides 1e-4
among all these looks, so that a server that does not mark ever passes with a chance of 1e-4 at most (Bonferroni).
A large tail does not say that the server does not mark, where the answers had little choice or delta is small.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from watermark.green_list import GreenList
from watermark.ingress.answer import Answer
from watermark.ingress.request import Injection, ask_for_ids, inject, written
from watermark.ingress.route import Shape, prefix_of
from watermark.ingress.wire import App, Message, Scope
from watermark.prf import lane, uniform

__all__ = ["Evidence", "SampleRefusedError", "evidence_of", "level_of", "sample"]

#: A server that does not mark ever passes with this chance at most, however often it is tried.
LEVEL: Final = 1e-4

#: Answers asked for at most, and their length. One answer of 192 tokens at delta 2 has z = 8, measured.
ANSWERS: Final = 6
_TOKENS: Final = 192

#: Standard deviations that half of the tilt which delta can give at most should make of the pairs.
_ENOUGH: Final = 4.0

_PROMPTS: Final = (
    "The old lighthouse keeper wrote in his diary:",
    "A list of strange things that were found in the attic:",
    "Once upon a time, in a town that no map shows,",
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """How many distinct pairs of fleet lanes the answers held, and how many were green."""

    pairs: int
    green: int
    gamma: float
    delta: float

    @property
    def p(self) -> float:
        """The chance of so many green ones or more, were nothing marked."""
        from scipy.stats import binom

        return float(binom.sf(self.green - 1, self.pairs, self.gamma))

    @property
    def conclusive(self) -> bool:
        """Whether there were pairs enough that a marking server would as a rule have passed.

        As a rule: whose answers carry half of the tilt that delta gives where all tokens are equally likely.
        """
        raised = self.gamma * math.exp(self.delta)
        tilt = raised / (1 - self.gamma + raised) - self.gamma
        return bool(self.pairs) and tilt / 2 >= _ENOUGH * math.sqrt(self.gamma * (1 - self.gamma) / self.pairs)


def level_of(trial: int) -> float:
    """Return what p is held against at each look of the first, second, ... trial.

    The sum over `ANSWERS` looks of every trial is `LEVEL`, since 1/(1*2) + 1/(2*3) + ... is 1.
    """
    return LEVEL / (ANSWERS * trial * (trial + 1))


def evidence_of(green_list: GreenList, responses: Iterable[Sequence[int]]) -> Evidence:
    """Count the green among the distinct (window, token) pairs of *responses*, lists of ids.

    Written with `watermark.prf`, the specification, and not with the kernels that mark: the two check each other.
    """
    scope = green_list.scope
    h, special = green_list.window, set(scope.params.special_ids)
    rows = set()
    for ids in responses:
        for end in range(h, len(ids)):
            row = tuple(ids[end - h : end + 1])
            if special.isdisjoint(row) and min(row) >= 0:
                rows.add(row)
    pairs = np.array(sorted(rows), dtype=np.uint32).reshape(-1, h + 1)
    windows, tokens = np.ascontiguousarray(pairs[:, :h]), pairs[:, h]
    lanes, bounds = lane(windows), scope.params.bounds()
    green = 0
    for j in range(scope.params.fleet_lanes):
        here = lanes == j
        if here.any():
            green += int((uniform(scope.lane_key(j).reveal(), windows[here], tokens[here]) < bounds[j]).sum())
    counted = int((lanes < scope.params.fleet_lanes).sum())
    return Evidence(counted, green, scope.params.fleet_k / 256, scope.delta)


class SampleRefusedError(Exception):
    """The server refused to answer the test's request; what it said is passed on."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers
        self.body = body


async def sample(
    app: App,
    scope: Mapping[str, Any],
    *,
    shape: Shape,
    number: int,
    model: object,
    fields: Mapping[str, object],
    injection: Injection,
    logit_processor: str | None = None,
) -> tuple[list[int] | None, str]:
    """Ask the server for an answer as the client whose request *scope* is would; return its ids, if any, and text.

    Raises:
        SampleRefusedError: the answer was an error, or nothing that can be read.
    """
    path, body = _question(shape, number, model)
    ask_for_ids(body, shape)
    inject(body, shape, fields, injection=injection, logit_processor=logit_processor)
    data = written(body)
    dropped = (b"content-length", b"content-type", b"transfer-encoding", b"accept-encoding", b"x-request-id")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    path = prefix_of(scope["path"]) + path
    inner: Scope = {**scope, "path": path, "raw_path": path.encode(), "query_string": b""}
    inner.update(headers=headers, state=dict(scope.get("state", {})), extensions={})
    incoming = iter([{"type": "http.request", "body": data, "more_body": False}])
    sent: list[Message] = []

    async def receive() -> Message:
        # The server listens for a client that hangs up; this one waits.
        return next(incoming, None) or await _never()

    async def send(message: Message) -> None:
        sent.append(message)

    await app(inner, receive, send)
    start: Message = next((message for message in sent if message["type"] == "http.response.start"), {"status": 500})
    content = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
    try:
        payload = json.loads(content)
    except ValueError:
        payload = None
    if start["status"] != 200 or not isinstance(payload, dict):
        raise SampleRefusedError(start["status"], list(start.get("headers", [])), content)
    answer = Answer(shape)
    answer.take(payload)
    choice = answer.choice(0)
    return (choice.ids if choice.has_ids else None), choice.text


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def _question(shape: Shape, number: int, model: object) -> tuple[str, dict[str, Any]]:
    prompt = _PROMPTS[number % len(_PROMPTS)]
    named = {"model": model} if isinstance(model, str) else {}
    if shape is Shape.SGLANG:
        sampling = {"max_new_tokens": _TOKENS, "temperature": 1.0, "ignore_eos": True}
        return "/generate", {"text": prompt, "sampling_params": sampling}
    if shape is Shape.TOKENS:
        # Any ids are a prompt, and any tokenizer has these.
        taken = {"max_tokens": _TOKENS, "temperature": 1.0, "ignore_eos": True, "seed": number + 1}
        first = 100 + 8 * number
        return "/inference/v1/generate", {"token_ids": list(range(first, first + 8)), "sampling_params": taken} | named
    # Filters and penalties as a server's defaults would have them take choice away; seeds make answers differ.
    body: dict[str, Any] = {"max_tokens": _TOKENS, "temperature": 1.0, "top_p": 1.0, "seed": number + 1}
    body |= {"ignore_eos": True, "top_k": 0, "min_p": 0.0, **named}
    if shape is Shape.CHAT:
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": f"Go on, at length: {prompt}"}]}
    return "/v1/completions", body | {"prompt": prompt}
