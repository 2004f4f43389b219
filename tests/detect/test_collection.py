"""Collecting: from a real server, killed and resumed, stopped by evidence, and from servers that misbehave."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import numpy as np
import pytest

pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from raw_server import answer_of, raw_server, reply_of
from rich.console import Console
from rich.table import Table
from student_server import Student, StudentServer, served

from detect.collection.collect import MOST_FAILURES, Budget, Collection, Stopped
from detect.collection.command import Asked, Collected, Watched, progress_table, run_collection
from detect.collection.endpoint import Endpoint, FatalAnswerError
from detect.collection.journal import Journal, Request
from detect.collection.prompts import DOMAINS, made_prompts
from detect.corpus import Corpus, read_corpus
from detect.distillation import detect_model
from detect.e_process import sequential_test
from detect.evidence.accounting import departures
from detect.mark import GreenListMark
from detect.records import Reader
from detect.reference import Reference
from detect.reference_choice import ReferenceChoice
from watermark.errors import InputError, UsageError
from watermark.keys import ScopeKeys
from watermark.tokenizer import load

TOKENIZER = load("smollm2")
WORDS_SAID = 40


def scope(key: int = 1) -> ScopeKeys:
    keys = builders.scope_of(key=key, delta=2.0)
    return replace(keys, params=replace(keys.params, tokenizer=TOKENIZER.digest(), special_ids=TOKENIZER.special_ids))


@pytest.fixture(scope="module")
def student() -> Student:
    return Student.taught(scope(), TOKENIZER)


@pytest.fixture(scope="module")
def twin() -> Student:
    return Student.taught(None, TOKENIZER)


def asked(url: str, folder: Path, *, prompts: int = 40, **settings: Any) -> Asked:
    path = folder / "prompts.txt"
    path.write_text("".join(f"Say something about number {i}.\n" for i in range(prompts)), encoding="utf-8")
    values = {
        "url": url,
        "model": "student",
        "sampling": {"temperature": 1.0, "max_tokens": WORDS_SAID},
        "prompts": path,
        "retries": 2,
        "backoff": 0.01,
        "timeout": 5.0,
        **settings,
    }
    return Asked(**values)


def watched(keys: ScopeKeys, *, level: float = 1e-6, looks: int = 8, planned: int | None = None) -> Watched:
    mark = GreenListMark(keys)
    return Watched(mark=mark, tokenizer=TOKENIZER, level=level, looks=looks, planned_tokens=planned, reference_of=None)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("completions", [False, True])
def test_every_request_is_answered_once_and_kept(student: Student, tmp_path: Path, completions: bool) -> None:
    server = StudentServer(student)
    out = tmp_path / "journal.jsonl"
    with served(server) as url:
        done = run_collection(asked(url, tmp_path, samples=2, completions=completions), out, watched=None)
    assert (done.exit_code, done.outcome.stopped) == (0, Stopped.COMPLETE)
    header, *lines = records(out)
    assert header["schema"] == "taggant/collection/1"
    assert {(r["prompt_index"], r["sample_index"]) for r in lines} == {(p, s) for p in range(40) for s in range(2)}
    assert len(lines) == 80
    assert set(server.asked.values()) == {2}
    assert all(r["prompt"] == f"Say something about number {r['prompt_index']}." for r in lines)
    reader = Reader([out])
    corpus = read_corpus(reader, TOKENIZER, window=1)
    assert (reader.accounting.read, reader.accounting.scored) == (81, 80)
    assert reader.accounting.excluded == {"header of a collection's journal": 1}
    assert corpus.without_prompt == 0


def test_a_collection_killed_at_any_time_loses_and_repeats_nothing(student: Student, tmp_path: Path) -> None:
    server = StudentServer(student, delay=0.01)
    out = tmp_path / "journal.jsonl"
    with served(server) as url:
        asked(url, tmp_path, prompts=150)
        command = [sys.executable, "-c", "import cli; cli.main()", "collect", url, "--model", "student"]
        command += ["--out", str(out), "--prompts", str(tmp_path / "prompts.txt"), "--max-tokens", "10"]
        kept: list[bytes] = []
        for kills in range(4):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            wanted = 30 * (kills + 1)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and (not out.exists() or out.read_bytes().count(b"\n") < wanted):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            lines = out.read_bytes().split(b"\n")[:-1]
            assert lines[: len(kept)] == kept
            kept = lines
        if kills:  # What a crash leaves of a line.
            with open(out, "ab") as file:
                file.write(b'{"prompt_index": 149, "sam')
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    _, *lines = records(out)
    assert sorted(r["prompt_index"] for r in lines) == list(range(150))
    assert not [r for r in lines if "error" in r]
    # What was under way at a kill was asked again, and nothing else.
    assert 150 <= sum(server.asked.values()) <= 150 + 4 * 4


def test_evidence_stops_early_and_is_what_the_journal_says(student: Student, tmp_path: Path) -> None:
    keys, out = scope(), tmp_path / "journal.jsonl"
    planned = 300 * WORDS_SAID
    with served(StudentServer(student)) as url:
        done = run_collection(asked(url, tmp_path, prompts=300), out, watched=watched(keys, planned=planned, looks=16))
    assert done.outcome.stopped is Stopped.EVIDENCE
    assert done.evidence is not None
    assert done.evidence.log10_p <= -6
    assert done.evidence.tokens < planned * 0.8
    corpus = read_corpus(Reader([out]), TOKENIZER, window=1)
    again = sequential_test(corpus, GreenListMark(keys), looks=16, planned_tokens=planned)
    assert again.looks[: len(done.evidence.looks)] == done.evidence.looks
    assert (again.decided_at, again.log10_p) == (done.evidence.decided_at, done.evidence.log10_p)


def test_the_effect_size_beside_the_looks_is_that_of_the_whole_text_at_the_end(
    student: Student, twin: Student, tmp_path: Path
) -> None:
    keys, out, clean = scope(), tmp_path / "journal.jsonl", tmp_path / "clean.jsonl"
    clean.write_text("".join(json.dumps({"response": twin.say(40, seed)}) + "\n" for seed in range(300)))

    def reference_of(corpus: Corpus) -> Reference:
        choice = ReferenceChoice(files=(str(clean),))
        chosen = choice.make(
            corpus,
            TOKENIZER,
            window=1,
            fingerprints=frozenset(),
            read=lambda file: read_corpus(Reader([file]), TOKENIZER, window=1),
        )
        assert chosen is not None
        return chosen.reference

    shown: list[str] = []

    def show(state: Collection, live: Any, budget: Budget) -> Table:
        table = progress_table(state, live, budget)
        for width in (80, 120):
            console = Console(width=width, file=io.StringIO())
            console.print(table)
            assert isinstance(console.file, io.StringIO)
            shown.append(console.file.getvalue())
        return table

    with served(StudentServer(student)) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr("detect.collection.command._display", lambda live, budget: _shown_with(show, live, budget))
        looked = replace(watched(keys, level=1e-300, planned=60 * WORDS_SAID), reference_of=reference_of)
        done = run_collection(asked(url, tmp_path, prompts=60, price_out=5.0, budget_money=1.0), out, watched=looked)
    assert done.outcome.stopped is Stopped.COMPLETE
    corpus = read_corpus(Reader([out]), TOKENIZER, window=1)
    whole = detect_model(corpus, [keys], reference=reference_of(corpus), decoys=0)[0].effect
    assert done.effect == whole
    assert whole is not None
    assert whole.low > 0
    assert any(line.startswith("effect size: tau ") for line in done.lines())
    assert max(len(line) for text in shown[::2] for line in text.splitlines()) <= 80
    for text in shown[-2:]:
        for name in ("requests", "tokens", "cost", "looks", "e-value", "p at any time", "effect size", "tokens to go"):
            assert f"{name} " in text
        assert f"tau {whole.tau:.2f} (95%: {whole.low:.2f} to {whole.high:.2f}) of the teacher's tilt" in text


@contextlib.contextmanager
def _shown_with(show: Any, live: Any, budget: Budget) -> Iterator[Any]:
    yield lambda state: show(state, live, budget)


def test_a_resumed_collection_takes_its_looks_up(student: Student, tmp_path: Path) -> None:
    keys, out = scope(), tmp_path / "journal.jsonl"
    with served(StudentServer(student)) as url:
        short = asked(url, tmp_path, prompts=60, budget_tokens=1_000)
        first = run_collection(short, out, watched=watched(keys, level=1e-300))
        assert (first.outcome.stopped, first.exit_code) == (Stopped.BUDGET, 7)
        assert first.outcome.collection.prompt_tokens + first.outcome.collection.completion_tokens <= 1_000
        rest = run_collection(replace(short, budget_tokens=None), out, watched=watched(keys, level=1e-300))
    assert rest.outcome.stopped is Stopped.COMPLETE
    assert first.evidence is not None
    assert rest.evidence is not None
    assert rest.evidence.looks[: len(first.evidence.looks)] == first.evidence.looks
    assert len(rest.evidence.looks) == 8


def test_the_clean_twin_never_crosses_over_200_keys(twin: Student, tmp_path: Path) -> None:
    out = tmp_path / "journal.jsonl"
    with served(StudentServer(twin)) as url:
        run_collection(asked(url, tmp_path, prompts=60), out, watched=None)
    corpus = read_corpus(Reader([out]), TOKENIZER, window=1)
    found = [sequential_test(corpus, GreenListMark(scope(key)), looks=8) for key in range(2, 202)]
    crossed = np.array([each.log10_p for each in found])
    assert (crossed <= -6).sum() == 0
    assert (crossed <= -2).sum() <= 8  # 2 expected at most.
    assert np.mean([10.0**each.log10_e for each in found]) < 2


def test_a_hopeless_collection_is_given_up_by_the_stated_rule(twin: Student, tmp_path: Path) -> None:
    out = tmp_path / "journal.jsonl"
    stopped = Counter()
    with served(StudentServer(twin)) as url:
        for key in range(3, 6):
            path = out.with_name(f"{key}.jsonl")
            done = run_collection(
                asked(url, tmp_path, prompts=100),
                path,
                watched=watched(scope(key), planned=100 * WORDS_SAID, looks=16),
            )
            stopped[done.outcome.stopped] += 1
            assert done.evidence is not None
            if done.outcome.stopped is Stopped.FUTILE:
                assert done.evidence.looks[-1].log10_e < 0
    assert stopped[Stopped.FUTILE] >= 1
    assert stopped[Stopped.EVIDENCE] == 0


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("hangs", "no answer within 0.5 seconds"),
        ("garbage", "not an answer"),
        ("truncated", "not an answer"),
        ("cut off", "no answer: "),
        ("gigabyte", "a reply of more than 32 MiB"),
        ("compressed", "a compressed reply"),
        ("busy", "HTTP 429: slow down"),
        ("broken", "HTTP 503: oops"),
        ("other form", "expected a text"),
        ("deep", "not an answer"),
    ],
)
def test_endpoints_that_misbehave_are_bounded_and_journalled(
    student: Student, tmp_path: Path, manner: str, said: str
) -> None:
    out = tmp_path / "journal.jsonl"
    started = time.monotonic()
    with served(StudentServer(student, manner=manner)) as url:
        timeout = 20.0 if manner == "gigabyte" else 0.5
        done = run_collection(asked(url, tmp_path, timeout=timeout, retries=1, prompts=30), out, watched=None)
    assert time.monotonic() - started < 100
    assert (done.outcome.stopped, done.exit_code) == (Stopped.FAILURES, 7)
    _, *lines = records(out)
    assert MOST_FAILURES <= len(lines) <= MOST_FAILURES + 4
    for record in lines:
        assert said in record["error"]
        assert record["error"].isprintable()
        assert record["tries"] == 2
        assert record["response"] == ""
    reader = Reader([out])
    assert list(reader) == []
    assert reader.accounting.excluded["an error of the endpoint"] == len(lines)


@pytest.mark.parametrize(
    ("manner", "said"), [("redirects", "redirects are not followed"), ("unauthorised", "HTTP 401: Incorrect API key")]
)
def test_endpoints_that_refuse_for_good_end_it(student: Student, tmp_path: Path, manner: str, said: str) -> None:
    server = StudentServer(student, manner=manner)
    with served(server) as url, pytest.raises(FatalAnswerError, match=said) as error:
        run_collection(asked(url, tmp_path), tmp_path / "journal.jsonl", watched=None)
    assert str(error.value).isprintable()
    assert server.requests <= 4


def test_a_server_that_is_busy_for_a_while_is_waited_for(student: Student, tmp_path: Path) -> None:
    out = tmp_path / "journal.jsonl"
    with served(StudentServer(student, manner="busy at first")) as url:
        done = run_collection(asked(url, tmp_path, retries=6), out, watched=None)
    assert done.outcome.stopped is Stopped.COMPLETE
    assert done.outcome.collection.errors == 0
    assert max(record["tries"] for record in records(out)[1:]) > 1


def test_what_failed_is_asked_again_when_a_collection_goes_on(student: Student, tmp_path: Path) -> None:
    server, out = StudentServer(student, manner="broken"), tmp_path / "journal.jsonl"
    with served(server) as url:
        settings = asked(url, tmp_path, retries=0)
        down = run_collection(settings, out, watched=None)
        assert (down.outcome.stopped, down.exit_code) == (Stopped.FAILURES, 7)
        history = out.read_bytes()
        assert down.outcome.collection.failed == down.outcome.collection.errors >= MOST_FAILURES
        assert f"40 requests are left ({down.outcome.collection.failed} of them failed)" in down.lines()[1]
        server.manner = None
        up = run_collection(settings, out, watched=None)
    assert (up.outcome.stopped, up.exit_code) == (Stopped.COMPLETE, 0)
    assert (up.outcome.collection.answered, up.outcome.collection.failed) == (40, 0)
    assert out.read_bytes().startswith(history)
    _, *lines = records(out)
    answered = Counter(record["prompt_index"] for record in lines if "error" not in record)
    assert answered == Counter(range(40))
    errors = sum("error" in record for record in lines)
    assert errors == up.outcome.collection.errors == len(history.splitlines()) - 1
    # Those never asked come first: what fails for good does not stand in the way. Four are asked at once, in any order.
    again = {record["prompt_index"] for record in lines if "error" in record}
    order = [record["prompt_index"] for record in lines if "error" not in record]
    assert set(order[: max(0, 40 - len(again) - 4)]).isdisjoint(again)
    reader = Reader([out])
    corpus = read_corpus(reader, TOKENIZER, window=1)
    assert len(corpus.responses) == reader.accounting.scored == 40
    assert reader.accounting.excluded == {
        "header of a collection's journal": 1,
        "an error of the endpoint, later answered": errors,
    }
    reader.accounting.check()


def test_a_request_that_fails_for_good_leaves_the_collection_unfinished(student: Student, tmp_path: Path) -> None:
    server, out = StudentServer(student, manner="never the first"), tmp_path / "journal.jsonl"
    with served(server) as url:
        for again in range(1, 4):
            done = run_collection(asked(url, tmp_path, prompts=5, retries=0), out, watched=None)
            assert (done.outcome.stopped, done.exit_code) == (Stopped.FAILED, 7)
            state = done.outcome.collection
            assert (state.answered, state.failed, state.errors) == (4, 1, again)
    assert len(records(out)) == 1 + 4 + 3
    reader = Reader([out])
    assert len(list(reader)) == 4
    assert reader.accounting.excluded["an error of the endpoint"] == 3


def test_a_journal_holds_one_answer_a_request_and_nothing_after_it(tmp_path: Path) -> None:
    header, path = {"endpoint": "x", "model": "m"}, tmp_path / "j.jsonl"
    failed, said = {"prompt": "a", "response": "", "error": "HTTP 503"}, {"prompt": "a", "response": "b"}
    with Journal(path, header) as journal:
        for record in (failed, failed, said):
            journal.add(Request(0, 0), record)
        assert (len(journal.answers), journal.failed, len(journal.errors)) == (1, {}, 2)
        with pytest.raises(ValueError, match="answered"):
            journal.add(Request(0, 0), failed)
    with Journal(path, header) as journal:
        assert (len(journal.answers), journal.failed, len(journal.errors)) == (1, {}, 2)
    for extra in (failed, said):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"prompt_index": 0, "sample_index": 0, **extra}) + "\n")
        with pytest.raises(InputError, match="answered before"):
            Journal(path, header)


def test_killed_between_an_error_and_its_answer(student: Student, tmp_path: Path) -> None:
    server, out = StudentServer(student, manner="broken", delay=0.01), tmp_path / "journal.jsonl"
    with served(server) as url:
        asked(url, tmp_path, prompts=60)
        command = [sys.executable, "-c", "import cli; cli.main()", "collect", url, "--model", "student"]
        command += ["--out", str(out), "--prompts", str(tmp_path / "prompts.txt"), "--max-tokens", "10"]
        command += ["--retries", "0"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 7
        errors = len(out.read_bytes().splitlines()) - 1
        server.manner = None
        for _ in range(2):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            begun, deadline = out.read_bytes().count(b"\n"), time.monotonic() + 60
            while time.monotonic() < deadline and out.read_bytes().count(b"\n") < begun + 20:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    _, *lines = records(out)
    assert sorted(r["prompt_index"] for r in lines if "error" not in r) == list(range(60))
    assert sum("error" in r for r in lines) == errors
    assert 60 <= sum(server.asked.values()) - errors <= 60 + 2 * 4


def test_a_refusal_is_an_answer(student: Student, tmp_path: Path) -> None:
    out = tmp_path / "journal.jsonl"
    with served(StudentServer(student, manner="refuses")) as url:
        done = run_collection(asked(url, tmp_path, prompts=5), out, watched=None)
    assert done.outcome.collection.answered == 5
    assert {record["response"] for record in records(out)[1:]} == {"I can't."}


def test_a_model_that_changes_in_mid_audit_is_told(student: Student, tmp_path: Path) -> None:
    with served(StudentServer(student, manner="model changes")) as url:
        done = run_collection(asked(url, tmp_path), tmp_path / "journal.jsonl", watched=None)
    assert set(done.outcome.collection.models) == {"student fp_1", "student-2 fp_1"}
    assert sum(done.outcome.collection.models.values()) == 40
    assert any("WARNING: the endpoint named more than one model" in line for line in done.lines())
    json.dumps(done.to_json())


def test_a_journal_of_other_settings_is_never_written_over(student: Student, tmp_path: Path) -> None:
    out = tmp_path / "journal.jsonl"
    with served(StudentServer(student)) as url:
        settings = asked(url, tmp_path, prompts=3)
        run_collection(settings, out, watched=None)
        before = out.read_bytes()
        for change in ({"model": "another"}, {"samples": 2}, {"sampling": {"max_tokens": 9}}, {"completions": True}):
            with pytest.raises(UsageError, match="another collection's journal"):
                run_collection(replace(settings, **change), out, watched=None)
        (tmp_path / "other.jsonl").write_text('{"text": "mine"}\n', encoding="utf-8")
        with pytest.raises(UsageError, match="never written over"):
            run_collection(settings, tmp_path / "other.jsonl", watched=None)
    assert out.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="locks are of POSIX")
def test_one_process_collects_into_a_journal(tmp_path: Path) -> None:
    header = {"endpoint": "x", "model": "m"}
    with Journal(tmp_path / "j.jsonl", header), pytest.raises(UsageError, match="another process"):
        Journal(tmp_path / "j.jsonl", header)
    with Journal(tmp_path / "j.jsonl", header) as journal:
        journal.add(Request(0, 0), {"prompt": "a", "response": "b"})
        with pytest.raises(ValueError, match="already"):
            journal.add(Request(0, 0), {"prompt": "a", "response": "c"})


def test_the_api_key_reaches_the_endpoint_and_nothing_else(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sk-canary-0123456789"
    server = StudentServer(student)
    out = tmp_path / "journal.jsonl"
    monkeypatch.setenv("SUSPECT_KEY", key)
    with served(server) as url:
        settings = asked(url, tmp_path, prompts=3, api_key_env="SUSPECT_KEY")
        done = run_collection(settings, out, watched=None)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {key}"}
        server.manner = "unauthorised"
        with pytest.raises(FatalAnswerError) as error:
            run_collection(settings, tmp_path / "second.jsonl", watched=None)
    captured = capsys.readouterr()
    told = [out.read_text(), str(done), str(done.to_json()), *done.lines(), repr(settings.endpoint())]
    for text in (*told, str(error.value), captured.out, captured.err):
        assert key not in text
    with pytest.raises(UsageError, match="use https"):
        Endpoint(url="http://far.example/v1", model="m", key=settings.endpoint().key)
    (tmp_path / "key").write_text(key, encoding="utf-8")
    os.chmod(tmp_path / "key", 0o644)
    with pytest.raises(Exception, match="chmod"):
        replace(settings, api_key_env=None, api_key_file=tmp_path / "key").endpoint()
    monkeypatch.delenv("SUSPECT_KEY")
    with pytest.raises(UsageError, match="not set"):
        settings.endpoint()


@pytest.mark.parametrize("url", ["ftp://host/v1", "host/v1", "https://user:secret@host/v1", "https://"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="expected an address"):
        Endpoint(url=url, model="m")


def test_a_budget_of_money_wants_prices() -> None:
    with pytest.raises(UsageError, match="price"):
        Budget(money=1.0)
    assert Budget(money=1.0, price_in=2.0, price_out=10.0).cost(1_000_000, 500_000) == 7.0


def test_prompts_from_templates_differ_and_are_the_same_again() -> None:
    for domain in DOMAINS:
        prompts = made_prompts(domain, 300, seed=1)
        assert len(set(prompts)) == 300
        assert prompts == made_prompts(domain, 300, seed=1) != made_prompts(domain, 300, seed=2)
        assert all("{" not in prompt for prompt in prompts)
    with pytest.raises(UsageError, match="prose, code, tool-use"):
        made_prompts("poems", 3)
    with pytest.raises(UsageError, match="--samples"):
        made_prompts("code", 10**6)


def test_an_interruption_ends_in_good_order(student: Student, tmp_path: Path) -> None:
    out = tmp_path / "journal.jsonl"
    with served(StudentServer(student, delay=0.02)) as url:
        asked(url, tmp_path, prompts=2_000)
        command = [sys.executable, "-c", "import cli; cli.main()", "collect", url, "--model", "student"]
        command += ["--out", str(out), "--prompts", str(tmp_path / "prompts.txt"), "--max-tokens", "5"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not out.exists() or out.read_bytes().count(b"\n") < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in told
    assert "Traceback" not in errors


def test_what_a_collection_says_is_in_words(student: Student, tmp_path: Path) -> None:
    with served(StudentServer(student)) as url:
        done = run_collection(asked(url, tmp_path, prompts=4, price_out=5.0), tmp_path / "j.jsonl", watched=None)
    assert isinstance(done, Collected)
    assert done.lines()[0].endswith("4 of 4 requests: 4 answers, 0 errors; 28 prompt and 160 answer tokens")
    assert done.lines()[1] == "ended: every planned request is answered"


def test_a_plan_is_kept_where_errors_were_answered_later() -> None:
    plan: Any = SimpleNamespace(samples_per_prompt=1, stopping=SimpleNamespace(planned_responses=2, rule="fixed"))
    prompts = b'{"prompt": "a"}\n{"prompt": "b"}\n'

    def lines(*said: tuple[int, str | None]) -> bytes:
        found = [
            {"prompt_index": i, "sample_index": 0, "prompt": "ab"[i], "response": "", "error": error}
            for i, error in said
        ]
        return "".join(json.dumps(line) + "\n" for line in found).encode()

    assert departures(lines((0, "down"), (1, None), (0, "down"), (0, None)), prompts, plan) == ()
    assert departures(lines((0, "down"), (1, None)), prompts, plan) == ()
    for after in (None, "down"):
        wrong = departures(lines((0, None), (1, None), (0, after)), prompts, plan)
        assert wrong == ("line 3 answers prompt 0, sample 0 a second time",)


# An endpoint that means harm.

KEY = "sk-canary-0123456789"


def hostile(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Asked:
    monkeypatch.setenv("SUSPECT_KEY", KEY)
    return asked(url, tmp_path, api_key_env="SUSPECT_KEY", **{"prompts": 3, "retries": 0, **settings})


def test_an_answer_that_would_make_a_line_too_long_to_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detect.collection.journal.MAX_LINE", 8_000)
    monkeypatch.setattr("detect.inputs.MAX_LINE", 8_000)
    out = tmp_path / "journal.jsonl"
    texts = iter(["é" * 1_200, "é" * 1_400, "a" * 7_000])
    with raw_server(lambda head: [reply_of(answer_of(next(texts)))]) as url:
        settings = hostile(tmp_path, url, monkeypatch, concurrency=1)
        done = run_collection(settings, out, watched=None)
    assert (done.exit_code, done.outcome.collection.answered, done.outcome.collection.unread) == (7, 2, 1)
    assert max(map(len, out.read_bytes().splitlines(keepends=True))) <= 8_000
    assert records(out)[2]["error"].startswith("an answer too long to keep: 8,")
    reader = Reader([out])
    assert [len(document.texts[0].response or "") for document in reader] == [1_200, 7_000]
    assert (reader.accounting.read, reader.accounting.malformed) == (4, 0)
    with raw_server(lambda head: [reply_of(answer_of("short"))]) as url:
        header = records(out)[0] | {"endpoint": url}
        out.write_text("\n".join([json.dumps(header), *out.read_text().splitlines()[1:]]) + "\n")
        assert run_collection(replace(settings, url=url), out, watched=None).exit_code == 0


@pytest.mark.slow
def test_a_reply_of_the_largest_size_can_be_read_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers grow when they are written again: 16 MiB of them are 67 MB, of which 64 MiB are read."""
    out = tmp_path / "journal.jsonl"
    numbers = b'{"choices":[{"message":{"content":"a b c"},"logprobs":{"content":[' + b"1e15," * 3_500_000 + b"1]}}]}"
    replies = iter([numbers, answer_of("\u4e2d" * (10 << 20)), answer_of("\u4e2d" * (11 << 20))])
    with raw_server(lambda head: [reply_of(next(replies))]) as url:
        settings = hostile(tmp_path, url, monkeypatch, concurrency=1, timeout=60.0)
        run_collection(settings, out, watched=None)
    errors = [record.get("error", "") for record in records(out)[1:]]
    assert errors[0].startswith("an answer too long to keep: 7")
    assert errors[1:] == ["", "a reply of more than 32 MiB"]
    reader = Reader([out])
    assert [len(document.texts[0].response or "") for document in reader] == [10 << 20]
    assert reader.accounting.malformed == 0


def test_what_could_not_be_read_from_the_journal_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b'{"choices":[{"message":{"content":"a"},"logprobs":{"content":' + b"[" * 100 + b"]" * 100 + b"}}]}"
    replies = [answer_of("a\ud800b", ascii_only=True), answer_of("a\ud800b"), deep]
    out = tmp_path / "journal.jsonl"
    waiting = iter(replies)
    with raw_server(lambda head: [reply_of(next(waiting))]) as url:
        settings = hostile(tmp_path, url, monkeypatch, concurrency=1)
        done = run_collection(settings, out, watched=watched(scope(), planned=100))
    errors = [record["error"] for record in records(out)[1:]]
    assert "found the lone surrogate" in errors[0]
    assert "expected UTF-8" in errors[1]
    assert "nested too deep" in errors[2]
    assert done.outcome.collection.unread == 3
    reader = Reader([out])
    assert list(reader) == []
    assert reader.accounting.malformed == 0


@pytest.mark.parametrize(
    "reply",
    [
        reply_of(json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), status="401 No"),
        reply_of(b"x" * 190 + f"Authorization: Bearer {KEY}".encode(), status="500 Oops"),
        reply_of(b"", f"Location: http://elsewhere/?key={KEY}", status="302 Found"),
        reply_of(answer_of(f"You said {KEY}.")),
        reply_of(answer_of("hi", system_fingerprint="@").replace(b"@", b"\\u0073" + KEY[1:].encode())),
        reply_of(answer_of("hi").replace(b'"index"', b'"logprobs": {"content": ["' + KEY.encode() + b'"]}, "index"')),
    ],
    ids=["401", "500", "redirect", "answer", "escaped", "log-probabilities"],
)
def test_an_endpoint_that_repeats_the_api_key_gets_it_into_no_file_and_no_message(
    reply: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "journal.jsonl", []
    with raw_server(lambda head: [reply]) as url:
        try:
            done = run_collection(hostile(tmp_path, url, monkeypatch), out, watched=None)
            told += [*done.lines(), str(done.to_json())]
        except FatalAnswerError as error:
            told += [str(error), repr(error.__context__)]
    captured = capsys.readouterr()
    for text in (out.read_text(), *told, captured.out, captured.err):
        assert KEY not in text
        assert KEY[:12] not in text
    assert not any("response" in record and record["response"] for record in records(out))


def test_cookies_are_not_kept_and_no_proxy_sees_what_goes_to_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    def reply(head: bytes) -> list[bytes]:
        heads.append(head)
        return [reply_of(answer_of("hi"), f"Set-Cookie: k{len(heads)}={'x' * 3_000}; Path=/")]

    with raw_server(reply) as url:
        done = run_collection(hostile(tmp_path, url, monkeypatch, prompts=20), tmp_path / "j.jsonl", watched=None)
    assert done.exit_code == 0
    assert len(heads) == 20
    assert not any(b"cookie" in head.lower() for head in heads)


def test_names_of_models_are_counted_and_not_all_shown_nor_taken_for_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = iter(range(1_000))
    with raw_server(lambda head: [reply_of(answer_of("hi", system_fingerprint=f"[/x{next(count)}]"))]) as url:
        done = run_collection(hostile(tmp_path, url, monkeypatch, prompts=40), tmp_path / "j.jsonl", watched=None)
    (warning,) = [line for line in done.lines() if line.startswith("WARNING")]
    assert warning.endswith(", and 32 more")
    assert warning.count("student [/x") == 8
    console = Console(width=100, file=io.StringIO())
    console.print(progress_table(done.outcome.collection, None, Budget()))
    assert isinstance(console.file, io.StringIO)
    assert "[/x0]" in console.file.getvalue()


@pytest.mark.parametrize("per_minute", [None, 6_000.0])
def test_a_budget_holds_with_many_at_once_and_is_used_up(
    student: Student, tmp_path: Path, per_minute: float | None
) -> None:
    server = StudentServer(student, delay=0.02)
    with served(server) as url:
        settings = asked(url, tmp_path, prompts=200, concurrency=32, per_minute=per_minute, budget_tokens=1_500)
        done = run_collection(settings, tmp_path / "j.jsonl", watched=None)
    spent = done.outcome.collection.prompt_tokens + done.outcome.collection.completion_tokens
    assert done.outcome.stopped is Stopped.BUDGET
    assert sum(server.asked.values()) * (7 + WORDS_SAID) == spent  # Nothing was asked that is not accounted for.
    assert 1_500 - (7 + WORDS_SAID) - 4 <= spent <= 1_500


def test_tries_that_may_have_been_paid_for_count_in_the_budget(student: Student, tmp_path: Path) -> None:
    server, out = StudentServer(student, manner="truncated"), tmp_path / "j.jsonl"
    with served(server) as url:
        settings = asked(url, tmp_path, prompts=200, retries=1, budget_money=0.01, price_out=20.0)
        done = run_collection(settings, out, watched=None)
        assert (done.outcome.stopped, done.exit_code) == (Stopped.BUDGET, 7)
        assert done.outcome.collection.unread == server.requests
        assert server.requests * WORDS_SAID <= 500 + 4 * WORDS_SAID  # A request under way is tried again.
        assert done.outcome.cost == server.requests * WORDS_SAID * 20e-6
        assert "may have been paid for: each counts as 40 answer tokens" in " ".join(done.lines())
        server.manner = "busy"
        free = replace(settings, budget_money=0.02, retries=0)
        done = run_collection(free, out, watched=None)
    assert done.outcome.stopped is Stopped.FAILURES  # What was refused cost nothing.


def test_bytes_of_every_kind_end_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    good = reply_of(answer_of("hi"), "Retry-After: Mon, 01 Jan 0001 00:00:00 -0000")

    def reply(head: bytes) -> list[bytes]:
        kind = int(random.integers(4))
        if kind == 0:
            return [random.bytes(int(random.integers(3_000)))]
        broken = bytearray(good)
        for _ in range(int(random.integers(1, 4)) if kind < 3 else 0):
            broken[int(random.integers(len(broken)))] = int(random.integers(256))
        return [bytes(broken[: int(random.integers(len(broken)))] if kind == 1 else broken)]

    monkeypatch.setattr("detect.collection.collect.MOST_FAILURES", 10**6)
    with raw_server(reply) as url:
        settings = hostile(tmp_path, url, monkeypatch, prompts=300, timeout=1.0, concurrency=16)
        done = run_collection(settings, tmp_path / "j.jsonl", watched=None)
    state = done.outcome.collection
    assert state.answered + state.failed == 300
    assert min(state.answered, state.failed) > 50
    assert all(record.get("error", "").isprintable() for record in records(tmp_path / "j.jsonl"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits are of POSIX")
def test_a_disk_that_is_full_leaves_the_journal_whole(student: Student, tmp_path: Path) -> None:
    import resource

    out = tmp_path / "journal.jsonl"
    with served(StudentServer(student)) as url:
        asked(url, tmp_path, prompts=60)
        command = [sys.executable, "-c", "import cli; cli.main()", "collect", url, "--model", "student"]
        command += ["--out", str(out), "--prompts", str(tmp_path / "prompts.txt"), "--max-tokens", "40"]

        def full() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

        stopped = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=full)
        assert stopped.returncode == 1
        assert "cannot be written: File too large. What it holds is whole" in stopped.stderr
        held = out.read_bytes()
        assert held.endswith(b"\n")
        assert 8_000 < len(held) <= 10_000
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert out.read_bytes().startswith(held)
    assert sorted(record["prompt_index"] for record in records(out)[1:]) == list(range(60))


@pytest.mark.parametrize(
    "content", [b"a letter without a line feed", b'{"text": "mine"}', b'{"text": "mine"}\nand more']
)
def test_a_file_that_is_no_journal_is_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises((UsageError, InputError)):
        Journal(path, {"endpoint": "x", "model": "m"})
    assert path.read_bytes() == content
    path.write_bytes(b'{"schema": "taggant/colle')  # What a crash left of a header.
    with Journal(path, {"endpoint": "x", "model": "m"}):
        assert len(records(path)) == 1
