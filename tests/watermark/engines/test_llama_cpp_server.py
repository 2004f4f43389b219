"""llama-cpp-python's OpenAI server as an operator runs it: answers over HTTP, detected from their text.

The server is examples/serve/llama_cpp_server.py in a process of its own, with SmolLM2's weights and one thread. Who
may say what is tried in this process, on the server's own application.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import markers
import pytest

from watermark.errors import MissingExtraError, TaggantError
from watermark.gguf import shipped_smollm2_gguf
from watermark.ingress.context import CURRENT_TICKET
from watermark.marker import Marker
from watermark.serving import FieldTrust, Policy
from watermark.ticket import Ticket, process_key, sign_ticket
from watermark.tokenizer import load

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
llama_app = pytest.importorskip("llama_cpp.server.app", reason="needs llama-cpp-python[server]")
httpx = pytest.importorskip("httpx")

pytestmark = pytest.mark.engines

SCRIPT = Path(__file__).parents[3] / "examples" / "serve" / "llama_cpp_server.py"
SUBJECTS = ("the sea", "a long road", "the old library", "winter in the mountains")


@pytest.fixture(scope="module")
def weights() -> Path:
    try:
        return shipped_smollm2_gguf()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    markers.key_file(folder, smollm2=True)
    metrics = f'metrics = "{folder}"\n' if importlib.util.find_spec("prometheus_client") else ""
    config = f'keyring = "{folder / "key.json"}"\nfields = "plain"\nrefresh = 0.2\n{metrics}'
    (folder / "taggant.toml").write_text(config, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, weights: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "TAGGANT_CONFIG": str(folder / "taggant.toml"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    command = [sys.executable, str(SCRIPT), "--model", str(weights), "--port", str(port), "--n-ctx", "1024"]
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}/v1"
            for _ in range(600):
                if server.poll() is not None:
                    break
                try:
                    httpx.get(f"{address}/models")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            assert server.poll() is None, (folder / "server.log").read_text(encoding="utf-8")
            yield address
        finally:
            server.terminate()
            server.wait(20)


def complete(url: str, subject: str, fields: dict[str, Any]) -> dict[str, Any]:
    prompt = f"The history of {subject} is long, and"
    body = {"prompt": prompt, "max_tokens": 100, "temperature": 1.0, "repeat_penalty": 1.0, **fields}
    answer = httpx.post(f"{url}/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return {"prompt": prompt, "response": answer.json()["choices"][0]["text"]}


def chat(url: str, subject: str, fields: dict[str, Any]) -> dict[str, Any]:
    said = {"role": "user", "content": f"Write a story about {subject}."}
    body = {"messages": [said], "max_tokens": 100, "temperature": 1.0, "repeat_penalty": 1.0, **fields}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return {"messages": [said, answer.json()["choices"][0]["message"]]}


def stream(url: str, subject: str, fields: dict[str, Any]) -> dict[str, Any]:
    said = {"role": "user", "content": f"Write a story about {subject}."}
    body = {"messages": [said], "max_tokens": 100, "temperature": 1.0, "repeat_penalty": 1.0, "stream": True, **fields}
    text = ""
    with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=120) as answer:
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        text += json.loads(event)["choices"][0]["delta"].get("content") or ""
    return {"messages": [said, {"role": "assistant", "content": text}]}


def log10_p(folder: Path, name: str, records: list[dict[str, Any]]) -> float:
    """What `taggant detect text` says of the answers."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    command = [sys.executable, "-c", "from cli import main; main()", "detect", "text", str(path), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    ran = subprocess.run(
        [*command, "--keyring", str(folder / "key.json")], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout)
    return float(found["pooled"]["log10_p"])


@pytest.mark.parametrize(
    ("ask", "fields"),
    [
        (complete, {"taggant_account": "acme"}),
        (complete, {"taggant_account": "globex", "logit_bias": {"5": -100}, "seed": 5}),
        (complete, {"temperature": 0.0}),
        (chat, {"taggant_account": "acme"}),
        (stream, {"taggant_account": "globex"}),
    ],
    ids=["completions", "logit bias", "greedy", "chat", "stream"],
)
def test_what_comes_back_over_http_is_marked(url: str, folder: Path, ask: Any, fields: dict[str, Any]) -> None:
    records = [ask(url, subject, fields) for subject in SUBJECTS]
    assert log10_p(folder, "marked", records) < -10


def test_what_the_operator_switched_off_is_not_marked(url: str, folder: Path) -> None:
    records = [ask(url, "the sea", {"taggant_mark": "off", "max_tokens": 100}) for ask in (complete, chat, stream)]
    assert log10_p(folder, "unmarked", records) > -3


def test_answers_are_their_accounts(url: str, folder: Path) -> None:
    """In account lanes each account's answers are green by its own code word, and another's by chance."""
    import numpy as np

    from watermark import prf

    marker = markers.Marker(markers.config_of(folder))
    assert marker.green_list is not None
    fields = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 200, "seed": 3}
    hits: dict[tuple[str, str], list[bool]] = {}
    for account in ("acme", "globex"):
        record = complete(url, "the sea", {**fields, "taggant_account": account})
        ids = load("smollm2").encode(record["response"]).tolist()
        for i in range(2, len(ids)):
            if prf.lane(np.array([ids[i - 2 : i]], dtype=np.uint32))[0] < 48:
                continue
            for by in ("acme", "globex"):
                green = markers.green_of(marker.green_list, ids[i - 2 : i], 49_152, by)
                hits.setdefault((account, by), []).append(bool(green[ids[i]]))
    own = hits["acme", "acme"] + hits["globex", "globex"]
    others = hits["acme", "globex"] + hits["globex", "acme"]
    assert len(own) > 60
    assert np.mean(own) > 0.6
    assert abs(np.mean(others) - 0.5) < 0.17


def test_the_metrics_tell_marked_from_unmarked(url: str, folder: Path) -> None:
    if importlib.util.find_spec("prometheus_client") is None:
        pytest.skip("needs prometheus_client")
    complete(url, "the sea", {"max_tokens": 5})
    time.sleep(1)
    (text,) = [path.read_text(encoding="utf-8") for path in folder.glob("taggant-[0-9]*.prom")]
    assert re.search(r'taggant_tokens_total\{outcome="marked",process="[0-9]+",scope="test"\}', text)


class Application:
    """The server's application in this process, behind an ingress that signs tickets."""

    def __init__(self, weights: Path, marker: Marker) -> None:
        from llama_cpp.server.settings import ModelSettings, ServerSettings

        from watermark.engines.llama_cpp import mark_server

        model = ModelSettings(
            model=str(weights), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=False, verbose=False
        )
        self.app = llama_app.create_app(server_settings=ServerSettings(), model_settings=[model])
        mark_server(llama_app, self.app, marker)
        self.marker = marker
        self.ticket: str | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = CURRENT_TICKET.set(self.ticket)
        try:
            await self.app(scope, receive, send)
        finally:
            CURRENT_TICKET.reset(token)

    def post(self, body: dict[str, Any], *, path: str = "/v1/completions") -> Any:
        import anyio

        async def send() -> Any:
            transport = httpx.ASGITransport(app=self)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.post(path, json={"prompt": "Once", "max_tokens": 4, "temperature": 0.0, **body})

        return anyio.run(send)


@pytest.fixture
def application(weights: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Application] = []
    monkeypatch.setattr(llama_app, "prepare_request_resources", llama_app.prepare_request_resources)

    def make(**changes: Any) -> Application:
        if made:
            llama_app._llama_proxy.free()
        config = markers.config_of(folder, **{"fields": FieldTrust.SIGNED, **changes})
        made.append(Application(weights, Marker(config)))
        return made[-1]

    yield make
    llama_app._llama_proxy.free()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["taggant_account", "taggant_mark", "taggant_ticket", "taggant_delta"])
def test_a_clients_own_fields_are_refused(application: Any, field: str, stream: bool) -> None:
    server = application()
    answer = server.post({field: "off", "stream": stream})
    assert answer.status_code in (400, 403)
    assert field in answer.json()["detail"]
    assert server.marker.counts.requests == {(None, "refused"): 1}


# A streamed answer's channel is left open by the server itself when nobody listens to the end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_ingress_says_for_whom_and_whether(application: Any) -> None:
    server = application(require_account=True)
    assert server.post({}).status_code == 401
    server.ticket = sign_ticket(Ticket(account="acme"), process_key())
    assert server.post({}).status_code == 200
    # A client's own does not stand beside it.
    assert server.post({"taggant_mark": "off"}).status_code == 403
    assert server.post({"taggant_ticket": "mine"}).status_code == 200
    server.ticket = sign_ticket(Ticket(account="acme", mark=False), process_key())
    assert server.post({"stream": True}).status_code == 200
    server.ticket = sign_ticket(Ticket(account="acme"), process_key(), now=time.time() - 1000)
    assert server.post({"stream": True}).status_code == 403
    requests = server.marker.counts.requests
    assert requests == {(None, "refused"): 3, ("test", "marked"): 2, (None, "off"): 1}


def test_without_a_scope_answers_are_refused_or_unmarked_as_the_policy_says(application: Any) -> None:
    for policy, status in ((Policy.REQUIRED, 503), (Policy.OPTIONAL, 200)):
        server = application(policy=policy)
        server.marker._current = None
        assert server.post({}).status_code == status


def test_embeddings_and_models_need_no_admission(application: Any) -> None:
    server = application(require_account=True)
    assert server.post({"input": "a"}, path="/v1/embeddings").status_code != 401
    assert server.post({}, path="/v1/chat/completions").status_code == 401


def test_a_server_that_is_made_otherwise_is_refused(folder: Path) -> None:
    from types import SimpleNamespace

    from watermark.engines.llama_cpp import mark_server

    with pytest.raises(TaggantError, match=r"0\.3\.36"):
        mark_server(SimpleNamespace(), None, Marker(markers.config_of(folder)))
