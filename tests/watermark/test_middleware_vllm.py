"""The ingress inside a real vLLM server on the CPU: what it records is what was served, and is marked.

``TAGGANT_TEST_SMOLLM2`` names a folder that ``examples/serve/make_smollm2.py`` has made. It takes some five minutes on
one core.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="needs vLLM")
httpx = pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("sqlalchemy", reason="records go into a ledger: pip install 'taggant[ledger]'")

import watermark  # noqa: E402
from watermark.accounts import add_account  # noqa: E402
from watermark.green_list import GreenList  # noqa: E402
from watermark.ingress.trial import evidence_of  # noqa: E402
from watermark.keyring import Keyring, create_key_file  # noqa: E402
from watermark.tokenizer import load  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engines,
    pytest.mark.skipif("TAGGANT_TEST_SMOLLM2" not in os.environ, reason="TAGGANT_TEST_SMOLLM2 names no model"),
]

ALICE, BOB, EVAL = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef", "sk-evaluation-0123456789"
MESSAGES = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]


@dataclass
class Server:
    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def ask(self, path: str, key: str, **body: Any) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(self.url + path, json={"model": "m", **body}, headers=headers, timeout=600)


def start(folder: Path, *options: str) -> Server:
    create_key_file(
        folder / "key.json", scope="s", window=2, delta=3.0, fleet_k=64, account_lanes=16, tokenizer=load("smollm2")
    )
    for account, key in (("alice", ALICE), ("bob", BOB)):
        add_account(folder / "accounts", account, key)
    add_account(folder / "accounts", "evaluation", EVAL, mark=False)
    (folder / "taggant.toml").write_text(
        f"""keyring = "{folder}/key.json"
        [ingress]
        accounts = "{folder}/accounts"
        [ledger]
        database = "sqlite:///{folder}/ledger.db"
        origin = "test/ledger"
        retention = "both"
        """
    )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TAGGANT_", "VLLM_"))}
    environment = own | {
        "PYTHONPATH": str(Path(watermark.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TAGGANT_CONFIG": str(folder / "taggant.toml"),
    }
    command = [
        *(sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", os.environ["TAGGANT_TEST_SMOLLM2"], "--served-model-name", "m"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--enforce-eager"),
        *("--max-model-len", "1024", "--max-num-seqs", "8", "--enable-scale-out"),
        *("--middleware", "watermark.middleware.TaggantMiddleware", *options),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", folder, process)
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return server
        except httpx.TransportError:
            time.sleep(1)
    process.kill()
    process.wait()
    pytest.fail(f"the server did not come up: {server.log[-3000:]}")


def stop(server: Server) -> None:
    server.process.terminate()
    server.process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start(
        tmp_path_factory.mktemp("server"), "--logits-processors", "watermark.engines.vllm:GreenListProcessor"
    )
    yield server
    stop(server)


def rows(server: Server, id_: str) -> list[dict[str, Any]]:
    time.sleep(0.5)
    with sqlite3.connect(server.folder / "ledger.db") as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute(
            "SELECT * FROM taggant_entries WHERE kind = 'response' AND id LIKE ? ORDER BY id", (f"{id_}%",)
        ).fetchall()
    connection.close()
    return [dict(row) for row in found]


def p_of(server: Server, rows: list[dict[str, Any]]) -> float:
    scope = Keyring.load(server.folder / "key.json").scope("s")
    ids = [np.frombuffer(row["token_ids"], dtype="<u4").tolist() for row in rows]
    return evidence_of(GreenList(scope), ids).p


def events(text: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


@pytest.mark.parametrize(("path", "body"), [("completions", {"prompt": "Once"}), ("chat/completions", {})])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_served_is_recorded_and_marked(server: Server, path: str, body: dict[str, Any], stream: bool) -> None:
    asked = {"max_tokens": 120, "n": 2, "temperature": 1.0, "stream": stream, "logprobs": 1, **body}
    answer = server.ask(f"/v1/{path}", ALICE, **({"messages": MESSAGES} if not body else {}), **asked)
    assert answer.status_code == 200, answer.text
    assert '"token_ids":[' not in answer.text
    assert '"logprobs":{' not in answer.text
    texts = ["", ""]
    whole = events(answer.text) if stream else [answer.json()]
    for payload in whole:
        for choice in payload["choices"]:
            message = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            texts[choice["index"]] += message.get("content") or ""
    found = rows(server, whole[0]["id"])
    assert [row["id"].rpartition("#")[2] for row in found] == ["0", "1"]
    tokenizer = load("smollm2")
    for row, text in zip(found, texts, strict=True):
        assert (row["account"], row["marked"], row["scope"]) == ("alice", 1, "s")
        assert row["response"].decode() == text
        ids = np.frombuffer(row["token_ids"], dtype="<u4")
        assert tokenizer.decode(ids[ids > 16]).startswith(text[:40])
    assert p_of(server, found) < 1e-6


def test_each_caller_is_its_account_whatever_it_says(server: Server) -> None:
    forged = {"taggant_account": "alice", "taggant_mark": "off", "taggant_ticket": "x.y"}
    body = {"prompt": "Once upon a time", "max_tokens": 200, "temperature": 1.0, "watermarking": False, **forged}
    answer = server.ask("/v1/completions", BOB, vllm_xargs=forged, **body)
    assert answer.status_code == 200, answer.text
    found = rows(server, answer.json()["id"])
    assert found[0]["account"] == "bob"
    assert p_of(server, found) < 1e-6
    answer = server.ask("/v1/completions", EVAL, **body)
    found = rows(server, answer.json()["id"])
    assert (found[0]["account"], found[0]["marked"], found[0]["reason"]) == ("evaluation", 0, "off")
    assert p_of(server, found) > 1e-4
    assert server.ask("/v1/completions", "nobody", **body).status_code == 401


def test_token_routes(server: Server) -> None:
    sampling = {"max_tokens": 200, "temperature": 1.0, "extra_args": {"taggant_mark": "off"}, "logprobs": 3}
    answer = server.ask("/inference/v1/generate", ALICE, token_ids=[300, 400, 500], sampling_params=sampling)
    assert answer.status_code == 200, answer.text
    assert not answer.json()["choices"][0]["logprobs"]
    found = rows(server, answer.json()["request_id"])
    assert found[0]["account"] == "alice"
    assert np.frombuffer(found[0]["token_ids"], dtype="<u4").tolist() == answer.json()["choices"][0]["token_ids"]
    assert p_of(server, found) < 1e-6


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 8}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 8}),
        ("/invocations", {"messages": MESSAGES, "max_tokens": 8}),
    ],
)
def test_other_apis_are_recorded_by_their_text(server: Server, path: str, body: dict[str, Any], stream: bool) -> None:
    answer = server.ask(path, ALICE, stream=stream, **body)
    assert answer.status_code == 200, answer.text
    time.sleep(0.5)
    last = rows(server, "")
    newest = max(last, key=lambda row: row["leaf_index"])
    text = newest["response"].decode()
    assert text
    assert stream or json.dumps(text)[1:-1] in answer.text
    assert (newest["account"], newest["marked"]) == ("alice", 1)


def test_what_is_refused(server: Server) -> None:
    assert server.ask("/v1/completions", ALICE, prompt="a", use_beam_search=True, n=2).status_code == 400
    assert server.ask("/v1/completions", ALICE, prompt="a", vllm_xargs=[1]).status_code == 400
    assert server.ask("/v1/responses", ALICE, input="a", background=True).status_code == 400
    wrong = httpx.post(
        f"{server.url}/v1/completions",
        content=b"\xff",
        headers={"x-api-key": ALICE, "content-type": "application/json"},
    )
    assert wrong.status_code == 400


def test_a_server_without_the_processor_is_found_out(tmp_path: Path) -> None:
    server = start(tmp_path)
    try:
        assert server.ask("/v1/completions", ALICE, prompt="Once", max_tokens=5).status_code == 503
        assert "answers are not marked" in server.log
        assert ALICE not in server.log
        assert server.ask("/v1/completions", EVAL, prompt="Once", max_tokens=5).status_code == 200
    finally:
        stop(server)
