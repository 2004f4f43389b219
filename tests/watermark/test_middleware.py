"""The ingress in front of a small server that really samples from marked logits."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx", reason="the ingress is asked through httpx: pip install httpx")
pytest.importorskip("sqlalchemy", reason="records go into a ledger: pip install 'taggant[ledger]'")


from small_server import END, SmallServer, text_of  # noqa: E402

from watermark.accounts import add_account  # noqa: E402
from watermark.errors import LedgerError  # noqa: E402
from watermark.green_list import GreenList  # noqa: E402
from watermark.ingress.context import CURRENT_TICKET  # noqa: E402
from watermark.ingress.trial import Evidence, evidence_of, level_of  # noqa: E402
from watermark.ingress.wire import MAX_BODY  # noqa: E402
from watermark.keyring import Keyring  # noqa: E402
from watermark.keys import Params  # noqa: E402
from watermark.life_cycle import activate, add_scope, retire, update_key_file  # noqa: E402
from watermark.middleware import TaggantMiddleware  # noqa: E402
from watermark.serving import FieldTrust, IngressConfig, LedgerConfig, Policy, ServingConfig  # noqa: E402
from watermark.ticket import (  # noqa: E402
    TICKET_FIELD,
    Ticket,
    create_ingress_key,
    open_ticket,
    process_key,
    read_ingress_key,
    sign_ticket,
)

ALICE = "sk-alice-0123456789abcdef"
EVAL = "sk-evaluation-0123456789"
PARAMS = Params(tokenizer="ab" * 32, special_ids=(END,), window=2, fleet_k=64, account_k=128, account_lanes=16)

Build = Callable[..., TaggantMiddleware]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    Keyring.create("first", params=PARAMS, delta=3.0, state="active").write(tmp_path / "key.json")
    return tmp_path / "key.json"


@pytest.fixture
def build(key_file: Path, tmp_path: Path) -> Iterator[Build]:
    """Return a function that puts an ingress in front of a `SmallServer` (or of another application)."""
    built: list[TaggantMiddleware] = []

    def build(
        app: Any = None,
        *,
        ledger: bool = False,
        accounts: bool = False,
        logprobs: str = "strip",
        self_test: bool = False,
        retention: str = "both",
        server: dict[str, Any] | None = None,
        injection: str = "vllm",
        **changes: Any,
    ) -> TaggantMiddleware:
        path = None
        if accounts:
            path = tmp_path / "accounts"
            if not path.exists():
                add_account(path, "alice", ALICE)
                add_account(path, "evaluation", EVAL, mark=False)
        database = f"sqlite:///{tmp_path}/ledger.db" if ledger else None
        config = ServingConfig(
            **{
                "keyring": None if changes.get("policy") is Policy.OFF else key_file,
                "refresh": 0.05,
                "ingress": IngressConfig(accounts=path, logprobs=logprobs, self_test=self_test),
                "ledger": LedgerConfig(database=database, origin="test/ledger", retention=retention),
                **changes,
            }
        )
        app = app or SmallServer(config, **(server or {}))
        processor = "80ab" if injection == "sglang" else None
        built.append(TaggantMiddleware(app, config, injection=injection, logit_processor=processor))
        return built[-1]

    yield build
    for middleware in built:
        middleware.close()
        if isinstance(middleware.app, SmallServer) and middleware.app.marker is not None:
            middleware.app.marker.close()


def ask(
    app: Any,
    path: str = "/v1/completions",
    body: Any = None,
    *,
    key: str | None = None,
    method: str = "POST",
    **more: Any,
) -> Any:
    """Return the answer to one request; a dict is sent as JSON, bytes as they are."""
    headers = dict(more.pop("headers", {}))
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    content = body if isinstance(body, bytes) else json.dumps({"prompt": "a", "model": "m"} | (body or {})).encode()
    headers = {"content-type": "application/json"} | headers

    async def asked() -> Any:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=more.pop("raises", True))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, content=content, headers=headers, **more)

    return asyncio.run(asked())


def rows(middleware: TaggantMiddleware, tmp_path: Path) -> list[dict[str, Any]]:
    """Close the ingress and return what it wrote of responses."""
    middleware.close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute(
            "SELECT * FROM taggant_entries WHERE kind = 'response' ORDER BY leaf_index"
        ).fetchall()
    connection.close()
    return [dict(row) | {"parameters": json.loads(row["parameters"])} for row in found]


def ids_of(row: dict[str, Any], name: str = "token_ids") -> list[int] | None:
    return None if row[name] is None else np.frombuffer(row[name], dtype="<u4").tolist()


def seen(middleware: TaggantMiddleware) -> dict[str, Any]:
    assert isinstance(middleware.app, SmallServer)
    return middleware.app.seen[-1]


def evidence(key_file: Path, ids: list[int]) -> Evidence:
    return evidence_of(GreenList(Keyring.load(key_file).scope("first")), [ids])


# What the caller is


def test_the_api_key_becomes_a_signed_ticket(build: Build) -> None:
    middleware = build(accounts=True)
    for how in ({"authorization": f"Bearer {ALICE}"}, {"authorization": f"bearer  {ALICE}"}, {"x-api-key": ALICE}):
        assert ask(middleware, headers=how).status_code == 200
        ticket = open_ticket(seen(middleware)["vllm_xargs"][TICKET_FIELD], process_key())
        assert ticket == Ticket(account="alice", mark=True, scope="first")
    assert ask(middleware, key=EVAL).status_code == 200
    ticket = open_ticket(seen(middleware)["vllm_xargs"][TICKET_FIELD], process_key())
    assert ticket == Ticket(account="evaluation", mark=False)


def test_an_ingress_on_another_host_shares_a_key_file(build: Build, tmp_path: Path) -> None:
    create_ingress_key(tmp_path / "ingress-key")
    shared = IngressConfig(key=tmp_path / "ingress-key", self_test=False)
    middleware = build(ingress=shared)
    assert ask(middleware).status_code == 200
    ticket = seen(middleware)["vllm_xargs"][TICKET_FIELD]
    assert open_ticket(ticket, read_ingress_key(tmp_path / "ingress-key")) == Ticket(scope="first")
    alone = build(SmallServer(middleware.config), ingress=IngressConfig(self_test=False))
    assert ask(alone).status_code == 403  # The server does not take the word of an ingress without the key.


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer nobody"}, {"authorization": f"Basic {ALICE}"}, {"x-api-key": ""}]
)
def test_an_unknown_key_is_refused_in_the_form_of_the_api(build: Build, headers: dict[str, str]) -> None:
    middleware = build(accounts=True)
    answer = ask(middleware, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    anthropic = ask(middleware, "/v1/messages", headers=headers).json()
    assert anthropic["type"] == "error"
    assert anthropic["error"]["type"] == "authentication_error"
    assert middleware.app.seen == []


def test_a_key_that_is_sent_twice_is_refused(build: Build) -> None:
    middleware = build(accounts=True)
    headers = [(b"authorization", f"Bearer {key}".encode()) for key in (ALICE, EVAL)]
    headers.append((b"content-type", b"application/json"))
    answer = asyncio.run(raw(middleware, headers, b'{"prompt": "a"}'))
    assert answer[0]["status"] == 400


async def raw(
    app: Any, headers: list[tuple[bytes, bytes]], body: bytes, path: str = "/v1/completions", **more: Any
) -> list[dict[str, Any]]:
    """Return the messages that an application sends, without a client between that mends what is sent."""
    sent: list[dict[str, Any]] = []
    incoming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return incoming.pop() if incoming else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": path, "headers": headers, **more}, receive, send)
    return sent


def test_a_changed_account_map_is_taken_up_and_a_bad_one_is_not(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    middleware = build(accounts=True)
    assert ask(middleware, key=ALICE).status_code == 200
    path, bob = tmp_path / "accounts", "sk-bob-0123456789abcdef"
    add_account(path, "bob", bob)
    time.sleep(0.06)
    assert ask(middleware, key=bob).status_code == 200
    path.write_text(f"{bob} bob\n")
    time.sleep(0.06)
    assert ask(middleware, key=ALICE).status_code == 200
    assert "the earlier ones stay in use" in caplog.text
    assert bob not in caplog.text


# What is taken out, and what goes on


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_clients_own_fields_are_stripped(build: Build, path: str) -> None:
    middleware = build()
    forged = {TICKET_FIELD: sign_ticket(Ticket(account="bob", mark=False), process_key()), "taggant_mark": "off"}
    body = {
        **forged,
        "vllm_xargs": {**forged, "mine": 3, "Taggant_x": 1},
        "watermarking": False,
        "watermark": {"key": "00"},
        "custom_logit_processor": "80",
        "custom_params": {**forged, "theirs": 1},
        "generation_config": {},
        "logits_processors": ["x"],
        "user": "u",
    }
    assert ask(middleware, path, body).status_code == 200
    got = seen(middleware)
    assert got.keys() == {"prompt", "model", "vllm_xargs", "custom_params", "user"}
    assert got["custom_params"] == {"theirs": 1}
    assert got["vllm_xargs"].keys() == {"mine", TICKET_FIELD}
    assert open_ticket(got["vllm_xargs"][TICKET_FIELD], process_key()) == Ticket(scope="first")
    assert middleware.counts.stripped["taggant"] == 7
    assert middleware.counts.stripped["watermarking"] == 1


def test_token_routes_carry_the_ticket_among_the_extra_arguments(build: Build) -> None:
    middleware = build()
    sampling = {"max_tokens": 4, "logprobs": 5, "watermarking": False, "extra_args": {"taggant_mark": "off", "mine": 1}}
    answer = ask(middleware, "/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": sampling})
    got = seen(middleware)["sampling_params"]
    assert got.keys() == {"max_tokens", "extra_args"}
    assert got["extra_args"].keys() == {"mine", TICKET_FIELD}
    assert len(answer.json()["choices"][0]["token_ids"]) == 4
    assert answer.json()["choices"][0]["sampling_mask"] is None
    assert ask(middleware, "/inference/v1/generate", {"token_ids": [5, 6]}).status_code == 400


def test_sglangs_fields_are_the_operators(build: Build) -> None:
    middleware = build(injection="sglang", logprobs="pass")
    body = {
        "text": "a",
        "custom_logit_processor": "evil",
        "sampling_params": {"custom_params": {"taggant_mark": "off"}},
    }
    with pytest.raises(KeyError):  # The small server has no such route.
        ask(middleware, "/generate", body)
    got = seen(middleware)
    assert got["custom_logit_processor"] == "80ab"
    assert got["sampling_params"]["custom_params"].keys() == {TICKET_FIELD}
    assert ask(middleware, "/v1/chat/completions", {"custom_params": {"a": 1}}).status_code == 200
    assert seen(middleware)["custom_params"].keys() == {"a", TICKET_FIELD}


def test_sglang_without_a_processor_is_refused(key_file: Path) -> None:
    middleware = TaggantMiddleware(SmallServer(None), ServingConfig(keyring=key_file), injection="sglang")
    assert ask(middleware, "/generate", {"text": "a"}).status_code == 503


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_no_method_goes_past_the_ingress(build: Build, method: str) -> None:
    """SGLang's /generate takes PUT as well as POST."""
    middleware = build(injection="sglang", accounts=True)
    assert ask(middleware, "/generate", {"text": "a"}, method=method).status_code == 401
    with pytest.raises(KeyError):  # The small server has no such route.
        ask(middleware, "/generate", {"text": "a", "custom_logit_processor": "evil"}, key=ALICE, method=method)
    got = seen(middleware)
    assert got["custom_logit_processor"] == "80ab"
    assert got["sampling_params"]["custom_params"].keys() == {TICKET_FIELD}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_sglangs_routes_that_drop_the_processor_are_refused(build: Build, tmp_path: Path, path: str) -> None:
    answer = ask(build(injection="sglang"), path, {"input": "a", "max_tokens": 3})
    assert answer.status_code == 400
    assert "answers here are marked" in answer.text
    middleware = build(injection="sglang", policy=Policy.OPTIONAL, ledger=True)
    assert ask(middleware, path, {"input": "a", "max_tokens": 3}).status_code == 200
    [row] = rows(middleware, tmp_path)
    assert (row["marked"], row["scope"]) == (0, None)
    assert row["reason"].startswith("SGLang's")


def test_a_server_in_this_process_reads_the_ticket_from_the_context(build: Build, key_file: Path) -> None:
    middleware = build(injection="context", server={"context": True}, self_test=True)
    answer = ask(middleware, body={"max_tokens": 200, "return_token_ids": True})
    assert "vllm_xargs" not in seen(middleware)
    assert evidence(key_file, answer.json()["choices"][0]["token_ids"]).p < level_of(1)
    assert CURRENT_TICKET.get() is None


def test_what_generates_nothing_passes_untouched(build: Build) -> None:
    middleware = build(accounts=True)
    assert ask(middleware, "/v1/models", method="GET").json() == {"object": "list", "data": []}
    body = b'{"a": 1, "a": 2, "taggant_mark": "off"}'
    assert ask(middleware, "/v1/embeddings", body, headers={"accept-encoding": "gzip"}).status_code == 200
    assert seen(middleware) == {"a": 2, "taggant_mark": "off"}
    assert middleware.app.headers[-1]["accept-encoding"] == "gzip"


SMUGGLED = [
    (b'{"prompt": "a", "vllm_xargs": {"taggant_mark": "off"}, "vllm_xargs": {"a": 1}}', 200),
    (b'{"prompt": "a", "vllm_xargs": {"a": 1}, "vllm_xargs": {"taggant_mark": "off"}}', 200),
    (rb'{"prompt": "a", "vllm_xargs": {"\u0074aggant_mark": "off"}}', 200),
    (rb'{"prompt": "\ud800", "taggant_mark": "off"}', 200),
    (json.dumps({"prompt": "a", "taggant_mark": "off"}).encode("utf-16"), 400),
    (json.dumps({"prompt": "a", "taggant_mark": "off"}).encode("utf-8-sig"), 400),
    (b'{"prompt": "\xff"}', 400),
    (b'{"prompt": "a", "temperature": NaN}', 400),
    (b'{"prompt": "a", "temperature": 1e999}', 400),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400),
    (b'{"prompt": ' + b"[" * 200_000, 400),
    (b'{"prompt": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", 400),
    (b'[{"prompt": "a"}]', 400),
    (b"", 400),
    (b'{"prompt": "a"', 400),
    (b'{"prompt": "a", "vllm_xargs": "taggant_mark"}', 400),
    (b'{"prompt": "a", "vllm_xargs": [["taggant_mark", "off"]]}', 400),
]


@pytest.mark.parametrize(("body", "status"), SMUGGLED)
def test_nothing_is_smuggled_past_in_a_body_that_is_read_otherwise(build: Build, body: bytes, status: int) -> None:
    middleware = build()
    answer = ask(middleware, body=body)
    assert answer.status_code == status
    if status == 200:
        got = json.dumps(seen(middleware))
        assert "taggant_mark" not in got
        assert got.count("taggant") == 1
        assert int(middleware.app.headers[-1]["content-length"]) > 100
    else:
        assert middleware.app.seen == []
        assert "error" in answer.json()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "APPLICATION/JSON ; charset=utf-16"}, 200),
        ({"content-type": ""}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/vnd.api+json"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "Identity"}, 200),
    ],
)
def test_only_plain_json_is_read(build: Build, headers: dict[str, str], status: int) -> None:
    middleware = build()
    body = json.dumps({"prompt": "a"}).encode()
    body = gzip.compress(body) if headers.get("content-encoding") == "gzip" else body
    assert ask(middleware, body=body, headers=headers).status_code == status
    if status == 200:
        assert middleware.app.headers[-1]["content-type"] == "application/json"


def test_a_body_that_is_too_large_is_not_read(build: Build) -> None:
    middleware = build()
    announced = [(b"content-length", str(MAX_BODY + 1).encode())]
    assert asyncio.run(raw(middleware, announced, b""))[0]["status"] == 413
    assert asyncio.run(raw(middleware, [], b" " * (MAX_BODY + 1)))[0]["status"] == 413
    assert asyncio.run(raw(middleware, [], b'{"prompt": "a"}' + b" " * 10_000_000))[0]["status"] == 200


# Probabilities


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_probabilities_are_neither_asked_for_nor_passed(build: Build, path: str, stream: bool) -> None:
    middleware = build()
    tools = [{"type": "function", "parameters": {"properties": {"logprobs": {"type": "number"}}}}]
    asked = {
        "logprobs": 5,
        "top_logprobs": 20,
        "prompt_logprobs": 1,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "stream": stream,
        "tools": tools if path == "/v1/responses" else None,
    }
    text = ask(middleware, path, asked).text
    got = seen(middleware)
    assert not {"logprobs", "top_logprobs", "prompt_logprobs"} & got.keys()
    assert got["include"] == ["reasoning.encrypted_content"]
    assert '"logprob":' not in text
    assert '"logprobs":{"content"' not in text
    if path == "/v1/responses":
        assert '"parameters":{"properties":{"logprobs":{"type":"number"}}}' in text  # The client's own schema.


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_gives_probabilities_unasked_is_scrubbed(build: Build, stream: bool) -> None:
    leak = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "b", "logprob": -2.0}]}]}
    payload = {"id": "x", "choices": [{"index": 0, "text": "é", "logprobs": leak}], "prompt_logprobs": [None, {}]}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kind = b"text/event-stream" if stream else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        body = json.dumps(payload).encode()
        await send({"type": "http.response.body", "body": b"data: " + body + b"\r\n\r\n" if stream else body})

    clean = {"id": "x", "choices": [{"index": 0, "text": "é", "logprobs": None}], "prompt_logprobs": None}
    got = ask(build(app)).content
    assert json.loads(got.removeprefix(b"data: ")) == clean
    assert ask(build(app, logprobs="pass")).content == ask(app).content != got


def test_probabilities_pass_where_the_operator_lets_them(build: Build) -> None:
    middleware = build(logprobs="pass")
    answer = ask(middleware, body={"logprobs": 5})
    assert seen(middleware)["logprobs"] == 5
    assert answer.json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5


# Routes


def test_what_can_not_be_marked_or_read_is_refused_under_required(build: Build) -> None:
    middleware = build()
    for path in ("/v1/audio/transcriptions", "/cohere/v2/chat", "/v1/systemone", "/api/chat"):
        answer = ask(middleware, path)
        assert answer.status_code == 400
        assert path in answer.json()["error"]["message"]
    for field in ({"use_beam_search": True}, {"sampling_params": {"trace_decode_token_ids": [5]}}):
        answer = ask(middleware, body=field)
        assert answer.status_code == 400
        assert "leave it out" in answer.json()["error"]["message"]
    assert middleware.app.seen == []


def test_it_passes_where_marking_is_optional_but_for_scores(build: Build) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    assert ask(build(app, policy=Policy.OPTIONAL), "/v1/audio/transcriptions", b"--form").status_code == 204
    assert ask(build(app, policy=Policy.OPTIONAL), "/generative_scoring").status_code == 400
    assert ask(build(app, policy=Policy.OPTIONAL, logprobs="pass"), "/generative_scoring").status_code == 204
    plain = build(app, policy=Policy.OPTIONAL, fields=FieldTrust.PLAIN)
    assert ask(plain, "/v1/audio/transcriptions", b"--form").status_code == 400
    assert ask(build(app, policy=Policy.OFF), "/v1/audio/transcriptions", b"--form").status_code == 204


@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
def test_web_sockets_are_refused(build: Build, extensions: dict[str, Any]) -> None:
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "extensions": extensions}
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def connect() -> None:
        await build()(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(connect())
    if extensions:
        assert sent[0] == sent[0] | {"type": "websocket.http.response.start", "status": 400}
    else:
        assert sent[0]["type"] == "websocket.close"


# Policies


def test_policy_off_strips_our_fields_and_nothing_else(build: Build) -> None:
    middleware = build(policy=Policy.OFF, server={"gives_ids": True})
    body = {"taggant_mark": "off", "vllm_xargs": {"taggant_ticket": "x", "a": 1}, "watermarking": True, "logprobs": 2}
    assert ask(middleware, body=body).json()["choices"][0]["logprobs"]
    got = seen(middleware)
    assert got == {"prompt": "a", "model": "m", "vllm_xargs": {"a": 1}, "watermarking": True, "logprobs": 2}


def test_an_account_can_be_required(build: Build) -> None:
    assert ask(build(require_account=True)).status_code == 503  # No map, so that the ingress can't start.
    assert ask(build(require_account=True, accounts=True), key=ALICE).status_code == 200


def test_plain_fields_are_believed_and_carried_on(build: Build) -> None:
    middleware = build(fields=FieldTrust.PLAIN)
    body = {"vllm_xargs": {"taggant_account": "carol", "taggant_mark": "off", "a": 1}, "taggant_account": "x"}
    assert ask(middleware, body=body).status_code == 200
    got = seen(middleware)
    assert got["vllm_xargs"] == {"taggant_account": "carol", "taggant_mark": "off", "a": 1}
    assert "taggant_account" not in got
    assert ask(middleware, body={"vllm_xargs": {"taggant_mark": "perhaps"}}).status_code == 400
    assert ask(middleware).status_code == 200
    assert seen(middleware)["vllm_xargs"] == {"taggant_mark": "on"}


@pytest.mark.parametrize(
    ("injection", "path", "body"),
    [
        ("context", "/v1/completions", lambda fields: fields),
        ("sglang", "/v1/completions", lambda fields: {"custom_params": fields}),
        ("vllm", "/inference/v1/generate", lambda fields: {"sampling_params": {"max_tokens": 3, "extra_args": fields}}),
    ],
)
def test_plain_fields_stay_where_the_adapter_reads_them(
    build: Build, injection: str, path: str, body: Callable[[Any], dict[str, Any]]
) -> None:
    middleware = build(SmallServer(None), fields=FieldTrust.PLAIN, injection=injection)
    fields = {"taggant_account": "carol", "taggant_mark": "off"}
    assert ask(middleware, path, body({**fields, "taggant_else": 1})).status_code == 200
    got = seen(middleware)
    assert body(fields).items() <= got.items()


@pytest.mark.parametrize("policy", [Policy.REQUIRED, Policy.OPTIONAL])
def test_without_an_active_scope(build: Build, key_file: Path, tmp_path: Path, policy: Policy) -> None:
    middleware = build(policy=policy, ledger=True)
    update_key_file(key_file, lambda keyring: retire(keyring, "first"))
    middleware.marker.refresh()
    answer = ask(middleware)
    if policy is Policy.REQUIRED:
        assert answer.status_code == 503
        assert "taggant keys activate" in answer.json()["error"]["message"]
        return
    assert answer.status_code == 200
    assert open_ticket(seen(middleware)["vllm_xargs"][TICKET_FIELD], process_key()) == Ticket(mark=False)
    [row] = rows(middleware, tmp_path)
    assert (row["marked"], row["reason"], row["scope"]) == (0, "no active scope", None)


def test_a_scope_that_becomes_active_during_admission_is_in_the_ticket(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    middleware = build()
    monkeypatch.setattr(type(middleware.marker), "green_list", None)  # As it was a moment ago.
    assert ask(middleware).status_code == 200
    ticket = open_ticket(seen(middleware)["vllm_xargs"][TICKET_FIELD], process_key())
    assert ticket == Ticket(scope="first")
    assert ask(middleware, body={"use_beam_search": True}).status_code == 400


def test_server_and_ledger_agree_on_the_scope_while_it_changes(build: Build, key_file: Path, tmp_path: Path) -> None:
    """Ingress and engine take a new scope up one after the other; what is recorded is what marked."""
    middleware = build(ledger=True, refresh=1000.0)
    assert isinstance(middleware.app, SmallServer)
    assert middleware.app.marker is not None
    asked = {"max_tokens": 300}
    ask(middleware, body=asked)
    update_key_file(
        key_file, lambda keyring: activate(add_scope(keyring, "second", params=PARAMS, delta=3.0), "second")
    )
    middleware.app.marker.refresh()
    ask(middleware, body=asked)  # Only the engine has seen it.
    middleware.marker.refresh()
    ask(middleware, body=asked)
    middleware.app.marker.refresh()
    update_key_file(key_file, lambda keyring: retire(keyring, "first"))
    ask(middleware, body=asked)
    keyring = Keyring.load(key_file)
    found = rows(middleware, tmp_path)
    assert [row["scope"] for row in found] == ["first", "first", "second", "second"]
    for row in found:
        for name in ("first", "second"):
            scope = keyring.scope(name)
            assert (evidence_of(GreenList(scope), [ids_of(row) or []]).p < 1e-10) == (row["scope"] == name)
            if row["scope"] == name:
                assert row["fingerprint"] == scope.fingerprint


def test_an_engine_that_is_behind_looks_at_the_key_file_at_once(build: Build, key_file: Path) -> None:
    middleware = build(refresh=1000.0)
    update_key_file(
        key_file, lambda keyring: activate(add_scope(keyring, "second", params=PARAMS, delta=3.0), "second")
    )
    middleware.marker.refresh()
    assert ask(middleware).status_code == 200


# The ledger


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("n", [1, 3])
def test_each_choice_is_recorded_with_its_ids(
    build: Build, key_file: Path, tmp_path: Path, path: str, stream: bool, n: int
) -> None:
    middleware = build(ledger=True, accounts=True)
    asked = {
        "max_tokens": 60,
        "n": n,
        "stream": stream,
        "temperature": 0.7,
        "messages": [{"role": "user", "content": "é"}],
    }
    answer = ask(middleware, path, asked, key=ALICE)
    assert "return_token_ids" in seen(middleware)
    assert "[5,6,7]" not in answer.text
    found = rows(middleware, tmp_path)
    name = "cmpl-1" if path == "/v1/completions" else "chatcmpl-1"
    assert [row["id"] for row in found] == ([name] if n == 1 else [f"{name}#{i}" for i in range(n)])
    ids = [i for row in found for i in (ids_of(row) or [])]
    assert len(ids) == 60 * n
    assert evidence(key_file, ids).p < level_of(1)
    for row in found:
        assert row["account"] == "alice"
        assert row["model"] == "m"
        assert (row["marked"], row["reason"], row["scope"], row["scheme"]) == (1, None, "first", "sipmix-v1")
        assert row["fingerprint"] == Keyring.load(key_file).scope("first").fingerprint
        assert row["parameters"] == {"delta": 3.0, "temperature": 0.7, "finish": "length"}
        assert ids_of(row, "prompt_token_ids") == [5, 6, 7]
        assert row["response"].decode() == text_of(ids_of(row) or [])
        assert row["started"] <= row["ended"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("more", [{}, {"tools": [{}]}, {"stream_options": {"include_usage": True}}])
def test_the_client_sees_to_the_byte_what_it_would_without_a_ledger(
    build: Build, path: str, stream: bool, more: dict[str, Any]
) -> None:
    asked = {"stream": stream, "max_tokens": 9, "n": 2, **more}
    plain, recorded = build(), build(ledger=True)
    assert ask(plain, path, asked).content == ask(recorded, path, asked).content
    assert seen(recorded)["return_token_ids"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_asks_for_ids_gets_them(build: Build, tmp_path: Path, stream: bool) -> None:
    middleware = build(ledger=True)
    text = ask(middleware, body={"return_token_ids": True, "stream": stream}).text
    assert text.count("[5,6,7]") == 1
    [row] = rows(middleware, tmp_path)
    assert len(ids_of(row) or []) == 16


def test_echo_is_left_to_the_client(build: Build, tmp_path: Path) -> None:
    """With ids vLLM would not echo the prompt's text."""
    middleware = build(ledger=True)
    ask(middleware, body={"echo": True})
    assert "return_token_ids" not in seen(middleware)
    [row] = rows(middleware, tmp_path)
    assert row["token_ids"] is None
    assert row["response"] is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "name"), [("/v1/responses", "resp_1"), ("/v1/messages", "msg_1")])
def test_other_shapes_are_recorded_by_their_text(
    build: Build, tmp_path: Path, path: str, name: str, stream: bool
) -> None:
    middleware = build(ledger=True)
    ask(middleware, path, {"stream": stream, "messages": [{"role": "user", "content": "q"}], "system": "s"})
    [row] = rows(middleware, tmp_path)
    assert row["id"] == name
    assert len(row["response"].decode()) == 16
    assert row["parameters"]["finish"] in ("completed", "max_tokens")


def test_token_routes_are_recorded(build: Build, tmp_path: Path) -> None:
    middleware = build(ledger=True)
    ask(middleware, "/inference/v1/generate", {"token_ids": [9, 8], "sampling_params": {"max_tokens": 5, "top_k": 3}})
    [row] = rows(middleware, tmp_path)
    assert len(ids_of(row) or []) == 5
    assert ids_of(row, "prompt_token_ids") == [9, 8]
    assert row["parameters"] == {"delta": 3.0, "top_k": 3, "finish": "length"}


def test_the_arguments_of_tool_calls_are_recorded(build: Build, tmp_path: Path) -> None:
    middleware = build(ledger=True)
    ask(middleware, "/v1/chat/completions", {"tools": [{}], "stream": True, "max_tokens": 10})
    [row] = rows(middleware, tmp_path)
    ids = ids_of(row) or []
    assert len(ids) == 10
    assert row["response"].decode() == text_of(ids[5:])
    assert row["parameters"]["finish"] == "tool_calls"


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"shadow": True}, ALICE, "shadow"),
        ({}, EVAL, "off"),
        ({"policy": Policy.OFF}, ALICE, "policy"),
    ],
)
def test_what_is_not_marked_is_recorded_as_such(
    build: Build, tmp_path: Path, changes: dict[str, Any], key: str, reason: str
) -> None:
    middleware = build(ledger=True, accounts=True, **changes)
    assert ask(middleware, key=key).status_code == 200
    [row] = rows(middleware, tmp_path)
    assert (row["marked"], row["reason"], row["scope"]) == (0, reason, None)
    assert row["account"] == ("alice" if key == ALICE else "evaluation")


def test_beams_are_recorded_as_unmarked_where_that_is_allowed(build: Build, tmp_path: Path) -> None:
    middleware = build(ledger=True, policy=Policy.OPTIONAL)
    ask(middleware, body={"use_beam_search": True})
    assert [row["reason"] for row in rows(middleware, tmp_path)] == ["beam search"]


def test_a_stream_that_breaks_off_is_recorded_as_far_as_it_came(build: Build, tmp_path: Path) -> None:
    middleware = build(ledger=True, server={"fails_after": 8})
    with pytest.raises(OSError, match="the engine is dead"):
        ask(middleware, body={"stream": True})
    [row] = rows(middleware, tmp_path)
    assert len(ids_of(row) or []) == 4  # Every second event is a comment.
    assert row["parameters"]["finish"] == "aborted"


def test_a_client_that_hangs_up_is_recorded_as_far_as_it_was_answered(build: Build, tmp_path: Path) -> None:
    middleware = build(ledger=True)
    count = 0

    async def send(message: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError("the client is gone")

    async def hang_up() -> None:
        body = json.dumps({"prompt": "a", "stream": True}).encode()
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        with pytest.raises(OSError, match="the client is gone"):
            await middleware(scope, receive, send)

    asyncio.run(hang_up())
    [row] = rows(middleware, tmp_path)
    assert len(ids_of(row) or []) in (2, 3)
    assert row["parameters"]["finish"] == "aborted"


def test_a_cancelled_request_is_recorded(build: Build, tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        event = b'data: {"id":"c","choices":[{"index":0,"text":"x","token_ids":[7]}]}\n\n'
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(60)

    middleware = build(app, ledger=True)

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(raw(middleware, [], b'{"prompt": "a", "stream": true}'), 0.1)

    asyncio.run(cancelled())
    [row] = rows(middleware, tmp_path)
    assert (row["id"], ids_of(row), row["parameters"]["finish"]) == ("c", [7], "aborted")


def test_errors_of_the_server_pass_and_leave_no_record(build: Build, tmp_path: Path) -> None:
    middleware = build(ledger=True)
    answer = ask(middleware, body={"model": "none"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")
    assert rows(middleware, tmp_path) == []


def test_names_that_a_ledger_does_not_hold_do_not_cost_the_record(build: Build, tmp_path: Path) -> None:
    said = {"id": "a\n\x1b" * 300, "model": "", "choices": [{"index": 0, "text": "x\ud800", "finish_reason": "\x00"}]}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    middleware = build(app, ledger=True)
    assert ask(middleware, body=rb'{"prompt": "\ud800", "model": ""}').json() == said
    [row] = rows(middleware, tmp_path)
    assert row["id"].isprintable()
    assert (row["model"], row["response"].decode()) == ("unknown", "x?")


@pytest.mark.parametrize(
    "body", [{"prompt": "é?"}, {"messages": [{"role": "user", "content": "é", "a": 1}, {"role": "user"}]}]
)
def test_prompts_that_are_not_kept_have_the_same_digest(build: Build, tmp_path: Path, body: dict[str, Any]) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    for retention in ("both", "ids"):
        middleware = build(ledger=True, retention=retention)
        ask(middleware, path, body)
        middleware.close()
    kept, digest = rows(middleware, tmp_path)
    assert kept["prompt"] is not None
    assert (digest["prompt"], digest["response"]) == (None, None)
    names = {"token_ids", "prompt_token_ids", "response", "prompt_messages" if "messages" in body else "prompt"}
    for row in (kept, digest):
        assert json.loads(row["digests"]).keys() == names
    [name] = [name for name in names if name.startswith("prompt") and name != "prompt_token_ids"]
    assert json.loads(kept["digests"])[name] == json.loads(digest["digests"])[name]


def test_what_cannot_be_recorded_is_not_served_under_required(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    middleware = build(ledger=True)
    assert middleware._ledger is not None
    monkeypatch.setattr(middleware._ledger, "ready", lambda: False)
    assert ask(middleware).status_code == 503
    assert middleware.app.seen == []
    monkeypatch.undo()

    def full(record: object) -> None:
        raise LedgerError("the queue is full")

    monkeypatch.setattr(middleware._ledger, "append", full)
    answer = ask(middleware)
    assert answer.status_code == 503
    assert "text" not in answer.text
    assert middleware.counts.unrecorded == 1
    assert ask(middleware, body={"stream": True}).status_code == 200  # Too late to take it back.
    assert middleware.counts.unrecorded == 2
    optional = build(policy=Policy.OPTIONAL)
    optional._ledger = middleware._ledger
    assert ask(optional).status_code == 200
    optional._ledger = None


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([(b"content-type", b"text/plain")], b"an answer"),
        ([(b"content-type", b"application/json")], b"an answer"),
        ([(b"content-type", b"application/json")], b'"an answer"'),
        ([(b"content-type", b"application/json"), (b"content-encoding", b"gzip")], b"\x1f\x8b"),
    ],
)
def test_an_answer_that_cannot_be_read_is_not_served_where_there_is_a_ledger(
    build: Build, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    answer = asyncio.run(raw(build(app, ledger=True), [], b'{"prompt": "a"}'))
    assert [message.get("status") for message in answer] == [502, None]
    answer = asyncio.run(raw(build(app), [], b'{"prompt": "a"}'))
    assert b"".join(message.get("body", b"") for message in answer) == body


def test_answers_in_the_background_are_refused_where_there_is_a_ledger(build: Build) -> None:
    assert ask(build(ledger=True), "/v1/responses", {"background": True}).status_code == 400
    assert ask(build(), "/v1/responses", {"background": True}).status_code == 200


def test_several_processes_of_one_server_write_a_log_each(build: Build, tmp_path: Path) -> None:
    first, second = build(ledger=True), build(ledger=True)
    ask(first)
    ask(second)
    first.close()
    assert len(rows(second, tmp_path)) == 2
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        logs = [origin for (origin,) in connection.execute("SELECT origin FROM taggant_logs ORDER BY origin")]
    connection.close()
    assert logs == ["test/ledger", "test/ledger/2"]


# The self-test


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/inference/v1/generate"])
def test_the_self_test_passes_on_a_server_that_marks(build: Build, path: str, caplog: pytest.LogCaptureFixture) -> None:
    middleware = build(self_test=True, accounts=True)
    with caplog.at_level(logging.INFO):
        asked = {"sampling_params": {"max_tokens": 3}} if "generate" in path else {}
        assert ask(middleware, path, asked, key=ALICE).status_code == 200
    assert "self-test passed" in caplog.text
    assert middleware.app.headers[0]["authorization"] == f"Bearer {ALICE}"
    test, _ = middleware.app.seen
    ticket = (test.get("vllm_xargs") or test["sampling_params"]["extra_args"])[TICKET_FIELD]
    assert open_ticket(ticket, process_key()) == Ticket(scope="first")
    assert middleware.counts.self_tests == {"passed": 1}
    ask(middleware, path, asked, key=ALICE)
    assert len(middleware.app.seen) == 3


def test_the_self_test_refuses_a_server_that_does_not_mark(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    middleware = build(SmallServer(None), self_test=True, accounts=True)
    for _ in range(3):
        answer = ask(middleware, key=ALICE)
        assert answer.status_code == 503
    assert "answers are not marked" in caplog.text
    assert "same key file" in caplog.text
    assert middleware.counts.self_tests == {"failed": 1}  # It is not tried at every request.
    assert ask(middleware, key=EVAL).status_code == 200  # Who is not marked need not wait.
    middleware._gate._next = 0.0
    middleware.app = middleware._gate._app = SmallServer(middleware.config)
    assert ask(middleware, key=ALICE).status_code == 200
    middleware.app.marker.close()  # type: ignore[union-attr]


def test_the_self_test_refuses_a_server_with_another_key(build: Build, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    Keyring.create("first", params=PARAMS, delta=3.0, state="active").write(other)
    server = SmallServer(ServingConfig(keyring=other))
    assert ask(build(server, self_test=True)).status_code == 503


def test_where_marking_is_optional_a_failed_self_test_is_recorded(build: Build, tmp_path: Path) -> None:
    middleware = build(SmallServer(None), self_test=True, ledger=True, policy=Policy.OPTIONAL)
    assert ask(middleware).status_code == 200
    assert [row["reason"] for row in rows(middleware, tmp_path)] == ["self-test failed"]


def test_a_model_without_choice_cannot_be_told(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    async def same(scope: Any, receive: Any, send: Any) -> None:
        choice = {"index": 0, "text": "", "token_ids": [7, 8, 9] * 64}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"choices": [choice]}).encode()})

    assert ask(build(same, self_test=True)).status_code == 503
    assert "could not tell" in caplog.text
    assert "self_test = false" in caplog.text


def test_without_ids_the_text_is_tokenised(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    middleware = build(self_test=True, server={"gives_ids": False})
    assert ask(middleware).status_code == 503
    assert "the server gives no token ids" in caplog.text  # The scope's tokenizer is none that there is.
    assert "tokenizer in the configuration" in caplog.text


def test_a_client_that_the_server_refuses_learns_the_servers_word(build: Build) -> None:
    middleware = build(self_test=True)
    answer = ask(middleware, body={"model": "none"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")
    assert not middleware._gate.open
    assert ask(middleware).status_code == 200


def test_a_server_that_fails_is_no_server_that_marks(build: Build) -> None:
    async def dead(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    assert ask(build(dead, self_test=True)).status_code == 503


@pytest.mark.parametrize("changes", [{"shadow": True}, {"policy": Policy.OFF}])
def test_there_is_no_self_test_where_nothing_is_to_be_marked(build: Build, changes: dict[str, Any]) -> None:
    middleware = build(self_test=True, **changes)
    assert ask(middleware).status_code == 200
    assert len(middleware.app.seen) == 1


def test_requests_that_come_together_wait_for_one_test(build: Build) -> None:
    middleware = build(self_test=True)

    async def together() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=middleware), base_url="http://s") as client:
            answers = await asyncio.gather(*(client.post("/v1/completions", json={"prompt": "a"}) for _ in range(5)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(together()) == [200] * 5
    assert len(middleware.app.seen) == 6


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("size", [1, 7])
def test_streams_cut_anywhere_are_recorded_alike(build: Build, tmp_path: Path, path: str, size: int) -> None:
    def cut(event: bytes) -> list[bytes]:
        return [event[i : i + size] for i in range(0, len(event), size)]

    asked = {"stream": True, "max_tokens": 20}
    whole = ask(build(), path, asked).content
    middleware = build(ledger=True, server={"cut": cut})
    assert ask(middleware, path, asked).content == whole
    [row] = rows(middleware, tmp_path)
    assert len(row["response"].decode()) == 20


def test_each_event_goes_out_as_soon_as_it_is_whole(build: Build) -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for i in range(3):
            order.append(f"made {i}")
            event = b'data: {"choices":[{"index":0,"text":"%d","token_ids":[7]}]}\n\n' % i
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body"})

    middleware = build(app, ledger=True)

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            order.append(f"sent {json.loads(message['body'][6:])['choices'][0]['text']}")

    async def run(receive: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        await middleware({"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}, receive, send)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"prompt": "a", "stream": true}'}

    asyncio.run(run(receive))
    assert order == ["made 0", "sent 0", "made 1", "sent 1", "made 2", "sent 2"]


# Life


def test_the_lifespan_passes_and_its_end_closes_the_ledger(build: Build, tmp_path: Path) -> None:
    middleware = build(ledger=True)
    ask(middleware)
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def live() -> None:
        async def receive() -> dict[str, Any]:
            return next(incoming)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message["type"])

        await middleware({"type": "lifespan"}, receive, send)

    asyncio.run(live())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert middleware.app.lifespans == ["startup", "shutdown"]
    assert middleware._ledger is not None
    assert not middleware._ledger.ready()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("SELECT count(*) FROM taggant_entries WHERE kind = 'closed'").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize("wrong", ["keyring", "accounts", "ledger", "environment"])
def test_a_server_with_a_wrong_configuration_does_not_start(
    build: Build, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if wrong == "environment":
        for name in [name for name in os.environ if name.startswith("TAGGANT_")]:
            monkeypatch.delenv(name)
        middleware = TaggantMiddleware(SmallServer(None))
    elif wrong == "keyring":
        middleware = build(SmallServer(None), keyring=tmp_path / "none.json")
    elif wrong == "accounts":
        middleware = build(ingress=IngressConfig(accounts=tmp_path / "none"))
    else:
        middleware = build(ledger=True, retention="everything")
    assert wrong == "environment" or str(middleware._broken) in caplog.text
    sent: list[dict[str, Any]] = []

    async def live() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "lifespan.startup"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await middleware({"type": "lifespan"}, receive, send)

    asyncio.run(live())
    assert sent == [{"type": "lifespan.startup.failed", "message": f"taggant: {middleware._broken}"}]
    answer = ask(middleware)
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text
    assert ask(middleware, "/v1/models", method="GET").status_code == 200
    middleware.close()


def test_starlette_takes_it_as_it_takes_any_middleware(
    build: Build, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starlette = pytest.importorskip("starlette.applications", reason="Starlette is what vLLM is built on")
    from starlette.requests import Request
    from starlette.responses import JSONResponse, StreamingResponse

    monkeypatch.setenv("TAGGANT_KEYRING", str(key_file))

    async def completions(request: Request) -> Any:
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(iter(["data: {}\n", "\ndata: [DONE]\n\n"]), media_type="text/event-stream")
        return JSONResponse({"choices": [], "xargs": sorted(body["vllm_xargs"])})

    app = starlette.Starlette()
    app.add_route("/v1/completions", completions, methods=["POST"])
    app.add_middleware(TaggantMiddleware)
    monkeypatch.setattr("watermark.middleware.Gate.enter", _nothing)
    assert ask(app).json()["xargs"] == [TICKET_FIELD]
    assert ask(app, body={"stream": True}).text == "data: {}\n\ndata: [DONE]\n\n"
    layer = app.middleware_stack
    while not isinstance(layer, TaggantMiddleware):
        layer = layer.app
    layer.close()


async def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def test_metrics_hold_no_account(build: Build, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="metrics need prometheus_client")
    middleware = build(accounts=True, metrics=tmp_path / "metrics")
    ask(middleware, body={"taggant_mark": "off"}, key=ALICE)
    ask(middleware)
    middleware.close()
    text = (tmp_path / "metrics" / f"taggant-ingress-{os.getpid()}.prom").read_text()
    process = f'process="{os.getpid()}"'
    assert f'taggant_ingress_requests_total{{outcome="marked",{process},scope="first"}} 1.0' in text
    assert f'taggant_ingress_refused_total{{{process},status="401"}} 1.0' in text
    assert f'taggant_ingress_stripped_total{{field="taggant",{process}}} 1.0' in text
    assert "alice" not in text


def test_no_key_is_shown(build: Build, key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        middleware = build(ledger=True, accounts=True, self_test=True)
        shown = [ask(middleware, body={"vllm_xargs": {"taggant_x": ALICE}}, key=ALICE).text]
        shown += [ask(middleware, body={"stream": True}, key=ALICE).text, ask(middleware, key=ALICE + "x").text]
        shown += [ask(middleware, body=b'{"prompt": ' + ALICE.encode(), key=ALICE).text]
        shown += [repr(middleware), repr(middleware._accounts), repr(middleware._gate), str(rows(middleware, tmp_path))]
    shown.append(caplog.text)
    secrets = [ALICE, hashlib.sha256(ALICE.encode()).hexdigest()]
    for secret in (process_key().reveal(), Keyring.load(key_file).root.reveal()):  # type: ignore[union-attr]
        secrets += [secret.hex(), repr(secret)]
    for text in shown:
        assert not [secret for secret in secrets if secret in text]
    assert ALICE.encode() not in (tmp_path / "ledger.db").read_bytes()


def test_it_brings_nothing_heavy_with_it() -> None:
    """A server imports it at its start; the ledger's and the tests' libraries come when they are used."""
    heavy = ("sqlalchemy", "alembic", "scipy.stats", "starlette", "httpx", "torch", "tiktoken")
    code = f"import sys, watermark.middleware; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
