from __future__ import annotations

import pytest

from watermark.ingress.route import Shape, Unreadable, route_of


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/completions", Shape.COMPLETIONS),
        ("/v1/chat/completions/", Shape.CHAT),
        ("/llm/v1/chat/completions", Shape.CHAT),
        ("/inference/v1/generate", Shape.TOKENS),
        ("/generate", Shape.SGLANG),
        ("/v1/chat/completions/render", None),
        ("/v1/messages/count_tokens", None),
        ("/v1/responses/resp_1/cancel", None),
        ("/tokenize", None),
        ("/generative_scoring", Unreadable.SCORES),
        ("/generate_from_file", Unreadable.OTHER_API),
        ("/v1/audio/transcriptions", Unreadable.SPEECH),
    ],
)
def test_routes(path: str, shape: Shape | Unreadable | None) -> None:
    assert route_of(path) is shape
