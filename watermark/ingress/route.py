"""Which paths of a generation server put out a model's text, and in which shape.

Found in the routers of vLLM 0.32, llama-cpp-python 0.3.36 and SGLang 0.5.23. What is not listed here passes
untouched: models, tokenisation, embeddings, rendering, administration.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["Shape", "Unreadable", "prefix_of", "route_of"]


class Shape(Enum):
    """How request and answer of a route look."""

    COMPLETIONS = "completions"
    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"
    """Anthropic's."""
    TOKENS = "tokens"
    """vLLM's token ids in, token ids out: sampling parameters are a table of their own."""
    SGLANG = "sglang"
    """SGLang's own."""
    INVOCATIONS = "invocations"
    """SageMaker's: completions or chat, by what the body holds."""


class Unreadable(Enum):
    """Why a route is refused where every answer must be marked and read."""

    SPEECH = "takes a form, in which no ticket can be put: serve transcripts from a server of their own"
    COHERE = "takes no ticket: use /v1/chat/completions"
    OTHER_API = "is not read by the ingress: use /v1/chat/completions or /generate"
    SOCKET = "is a web socket, which the ingress does not read: use /v1/chat/completions"
    SCORES = (
        "answers with probabilities, which may show the green list: the operator may allow them with "
        'logprobs = "pass" under [ingress], where the server computes them before the mark (vLLM: raw_logprobs)'
    )


_ROUTES: Final[dict[str, Shape | Unreadable]] = {
    "/v1/completions": Shape.COMPLETIONS,
    "/v1/engines/copilot-codex/completions": Shape.COMPLETIONS,
    "/v1/chat/completions": Shape.CHAT,
    "/v1/chat/completions/batch": Shape.CHAT,
    "/v1/responses": Shape.RESPONSES,
    "/v1/messages": Shape.MESSAGES,
    "/inference/v1/generate": Shape.TOKENS,
    "/generate": Shape.SGLANG,
    "/invocations": Shape.INVOCATIONS,
    "/v1/audio/transcriptions": Unreadable.SPEECH,
    "/v1/audio/translations": Unreadable.SPEECH,
    "/v1/realtime": Unreadable.SOCKET,
    "/cohere/v2/chat": Unreadable.COHERE,
    "/vertex_generate": Unreadable.OTHER_API,
    "/generate_from_file": Unreadable.OTHER_API,
    "/api/chat": Unreadable.OTHER_API,
    "/api/generate": Unreadable.OTHER_API,
    "/generative_scoring": Unreadable.SCORES,
    "/v1/systemone": Unreadable.SCORES,
    "/v1/score": Unreadable.SCORES,
}

#: Longest first: "/generate" is the end of others.
_ENDS: Final = sorted(_ROUTES.items(), key=lambda item: -len(item[0]))


def route_of(path: str) -> Shape | Unreadable | None:
    """Return how the route of *path* looks; None for one that generates nothing.

    Only the end of the path counts, since a server may be mounted under a prefix.

    >>> route_of("/v1/chat/completions")
    <Shape.CHAT: 'chat'>
    >>> route_of("/v1/models") is None
    True
    """
    path = path.rstrip("/")
    exact = _ROUTES.get(path)
    return exact or next((shape for end, shape in _ENDS if path.endswith(end)), None)


def prefix_of(path: str) -> str:
    """Return what stands before a route's own path.

    >>> prefix_of("/models/a/v1/chat/completions")
    '/models/a'
    """
    path = path.rstrip("/")
    return next((path[: -len(end)] for end, _ in _ENDS if path.endswith(end)), "")
