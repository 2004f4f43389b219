"""What a server answers, taken in as it passes: ids, text and end of each choice.

An answer is read from one JSON object or from the events of a stream, of any of the shapes that
`watermark.ingress.route` knows. Nothing here fails on an answer of another form: what is not understood
is not taken in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from watermark.ingress.route import Shape

__all__ = ["Answer", "Choice", "hide_ids", "holds_logprobs", "scrub_logprobs", "without_ids"]

Payload = dict[str, Any]

#: Where a server's answer may hold probabilities. Tools and schemas, which are the client's, are not looked into.
_INSIDE: Final = ("choices", "output", "content", "response", "item", "part", "message", "delta", "meta_info")
_PROBABILITIES: Final = re.compile(r"(?:\w*logprobs?\w*|completion_probabilities|sampling_mask|hidden_states)\Z")
_FOUND: Final = re.compile(
    rb'"(?:\w*logprobs?\w*|completion_probabilities|sampling_mask|hidden_states)"\s*:\s*(?!null|\[\s*\])'
)
_IDS: Final = re.compile(rb'("(?:prompt_)?token_ids":)\[[0-9,]*\]')


@dataclass(slots=True)
class Choice:
    """One of the answers to a request."""

    ids: list[int] = field(default_factory=list)
    prompt_ids: list[int] | None = None
    parts: list[str] = field(default_factory=list)
    """Text in order of arrival: thoughts, content and arguments of tool calls."""
    finish: str | None = None
    has_ids: bool = False

    @property
    def text(self) -> str:
        """The text, halves of surrogate pairs replaced."""
        return "".join(self.parts).encode("utf-8", "replace").decode()


@dataclass(slots=True)
class Answer:
    """The answers to one request, as far as they have passed."""

    shape: Shape
    id: str | None = None
    model: str | None = None
    choices: dict[int, Choice] = field(default_factory=dict)

    def take(self, payload: Payload) -> None:
        """Take in a whole answer, or the next event of a stream."""
        match self.shape:
            case Shape.RESPONSES:
                self._take_response(payload)
            case Shape.MESSAGES:
                self._take_message(payload)
            case Shape.SGLANG if "choices" not in payload:
                self._take_sglang(payload)
            case _:
                self._take_choices(payload)

    def choice(self, index: object) -> Choice:
        """Return the choice of a number, which is made if there is none."""
        return self.choices.setdefault(index if isinstance(index, int) else 0, Choice())

    def _named(self, payload: Payload, *names: str) -> None:
        for name in (*names, "id"):
            if self.id is None and isinstance(payload.get(name), str):
                self.id = payload[name]
        if self.model is None and isinstance(payload.get("model"), str):
            self.model = payload["model"]

    def _take_choices(self, payload: Payload) -> None:
        self._named(payload, "request_id")
        for said in _objects(payload.get("choices")):
            choice = self.choice(said.get("index"))
            # Chat has the prompt's ids beside the choices, completions in them.
            for prompt in (payload.get("prompt_token_ids"), said.get("prompt_token_ids")):
                if isinstance(prompt, list):
                    choice.prompt_ids = prompt
            if isinstance(said.get("token_ids"), list):
                choice.ids += said["token_ids"]
                choice.has_ids = True
            _add(choice, said.get("text"))
            for message in (said.get("message"), said.get("delta")):
                if isinstance(message, dict):
                    _take_chat(choice, message)
            if isinstance(said.get("finish_reason"), str):
                choice.finish = said["finish_reason"]

    def _take_response(self, payload: Payload) -> None:
        kind = payload.get("type")
        if not isinstance(kind, str) or not kind.startswith("response."):
            self._named(payload)
            for item in _objects(payload.get("output")):
                self._take_item(item)
            self._end_response(payload)
            return
        if isinstance(payload.get("response"), dict):
            self._named(payload["response"])
            self._end_response(payload["response"])
        if kind.endswith(".delta"):
            _add(self.choice(0), payload.get("delta"))

    def _take_item(self, item: Payload) -> None:
        choice = self.choice(0)
        for part in (*_objects(item.get("summary")), *_objects(item.get("content"))):
            _add(choice, part.get("text"))
        _add(choice, item.get("arguments"))

    def _end_response(self, response: Payload) -> None:
        status = response.get("status")
        if status in ("completed", "incomplete", "failed", "cancelled"):
            self.choice(0).finish = status

    def _take_message(self, payload: Payload) -> None:
        if isinstance(payload.get("message"), dict):
            self._named(payload["message"])
        elif payload.get("type") == "message":
            self._named(payload)
            for block in _objects(payload.get("content")):
                _add(self.choice(0), block.get("thinking"), block.get("text"))
        delta = payload.get("delta")
        if isinstance(delta, dict):
            _add(self.choice(0), delta.get("thinking"), delta.get("text"), delta.get("partial_json"))
        for said in (payload, delta):
            if isinstance(said, dict) and isinstance(said.get("stop_reason"), str):
                self.choice(0).finish = said["stop_reason"]

    def _take_sglang(self, payload: Payload) -> None:
        meta = payload.get("meta_info")
        meta = meta if isinstance(meta, dict) else {}
        self._named(meta)
        choice = self.choice(payload.get("index", 0))
        text, ids = payload.get("text"), payload.get("output_ids")
        # A stream repeats what it has said, unless the server streams by increments.
        if isinstance(text, str):
            whole = "".join(choice.parts)
            choice.parts = [text] if text.startswith(whole) else [whole, text]
        if isinstance(ids, list):
            choice.ids = ids if ids[: len(choice.ids)] == choice.ids else choice.ids + ids
            choice.has_ids = True
        finish = meta.get("finish_reason")
        if isinstance(finish, dict):
            choice.finish = str(finish.get("type"))


def hide_ids(payload: Payload) -> tuple[bool, int]:
    """Take the ids that the client had not asked for out of an answer or event of vLLM's.

    Returns:
        Whether vLLM would have sent the event at all (of some tokens, those of a tool call's frame, it sends nothing
        but ids), and how many lists were taken out.
    """
    hidden = 0
    wanted = not payload.get("choices")
    for said in (payload, *_objects(payload.get("choices"))):
        for name in ("token_ids", "prompt_token_ids"):
            if said.get(name) is not None:
                said[name] = None  # And not gone: null is what it sends where nobody asks.
                hidden += 1
    for said in _objects(payload.get("choices")):
        wanted |= said.get("delta") != {} or said.get("finish_reason") is not None or bool(said.get("logprobs"))
    return wanted, hidden


def without_ids(data: bytes, hidden: int) -> bytes | None:
    """Return an answer's bytes without the *hidden* lists of ids, the others as they are; None if they aren't found.

    A text that looks like one is not touched: quotes inside of JSON's strings are escaped.
    """
    rest, found = _IDS.subn(rb"\1null", data)
    return rest if found == hidden else None


def holds_logprobs(data: bytes) -> bool:
    """Say whether an answer's bytes may hold probabilities: cheap, and right whenever it says no."""
    return _FOUND.search(data) is not None


def scrub_logprobs(payload: Payload) -> bool:
    """Take the probabilities out of an answer or event; return whether there were any."""
    scrubbed = False
    for name, value in payload.items():
        if _PROBABILITIES.match(name):
            if value is not None and value != []:
                payload[name] = [] if name == "logprobs" and isinstance(value, list) else None
                scrubbed = True
        elif name in _INSIDE:
            for inner in _objects(value):
                scrubbed |= scrub_logprobs(inner)
    return scrubbed


def _objects(value: object) -> Iterator[Payload]:
    """Yield the objects of an array, or the one that *value* is."""
    for one in value if isinstance(value, list) else (value,):
        if isinstance(one, dict):
            yield one


def _add(choice: Choice, *texts: object) -> None:
    choice.parts += [text for text in texts if isinstance(text, str) and text]


def _take_chat(choice: Choice, message: Payload) -> None:
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    content = message.get("content")
    _add(choice, reasoning, content)
    for call in (*_objects(message.get("tool_calls")), {"function": message.get("function_call")}):
        function = call.get("function")
        if isinstance(function, dict):
            _add(choice, function.get("arguments"))
