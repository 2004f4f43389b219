"""Log-probabilities of an endpoint: against brute force, under random keys, in both forms, and hostile ones."""

from __future__ import annotations

import io
import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from student_server import Student, StudentServer, logprobs_of, served

from detect.collection.command import Asked, run_collection
from detect.corpus import Corpus, read_corpus
from detect.distillation import detect_model
from detect.mark import GreenListMark
from detect.open_weight import OPEN_WEIGHT_ROOT
from detect.records import Document, Reader, Text
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy
from detect.top_lists import LogprobReader, TopLists
from detect.top_logprobs import detect_logprobs, tally_lists
from detect.weighted_test import decoys_log10_p
from watermark import prf
from watermark.errors import UsageError
from watermark.keys import ScopeKeys
from watermark.tokenizer import load

TOKENIZER = load("smollm2")


def scope(key: int = 1, *, window: int = 1) -> ScopeKeys:
    keys = builders.scope_of(key=key, delta=2.0, window=window)
    return replace(keys, params=replace(keys.params, tokenizer=TOKENIZER.digest(), special_ids=TOKENIZER.special_ids))


def read(records: list[dict[str, Any]]) -> tuple[Corpus, TopLists]:
    reading = LogprobReader(TOKENIZER)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    reader = Reader(["-"], stdin=io.BytesIO(lines.encode()))
    corpus = read_corpus(reader, TOKENIZER, window=1, progress=reading)
    lists = reading.lists(corpus)
    for accounting in (reader.accounting, lists.accounting):
        accounting.check()
    return corpus, lists


def record(student: Student, seed: int, *, k: int = 5, chat: bool = True, words: int = 30) -> dict[str, Any]:
    text = student.say(words, zlib.crc32(f"{seed}".encode()))
    given = logprobs_of(student.top(text, k), chat)
    return {"prompt": f"Number {seed}?", "response": text, "logprobs": given["content"] if chat else [given]}


@pytest.fixture(scope="module")
def student() -> Student:
    return Student.taught(scope(), TOKENIZER)


@pytest.fixture(scope="module")
def twin() -> Student:
    return Student.taught(None, TOKENIZER)


def reference_of(corpus: Corpus, *, top: int = 4) -> Reference:
    """Any probabilities at all: three quarters of them on tokens that are often listed."""
    random = np.random.default_rng(3)
    ids = np.concatenate(corpus.responses)
    known = np.unique(ids)
    top_ids = np.stack([random.choice(known, size=top, replace=False) for _ in ids]).astype(np.uint32)
    top_p = np.sort(random.dirichlet(np.ones(top), size=len(ids)) * 0.75, axis=1)[:, ::-1].astype(np.float32)
    listed = top_ids == ids[:, None]
    said_p = np.where(listed.any(axis=1), (top_p * listed).sum(axis=1), 0.01).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum([len(each) for each in corpus.responses])]).astype(np.int64)
    return Reference(
        name="any", tokenizer=TOKENIZER.digest(), ids=ids, starts=starts, top_ids=top_ids, top_p=top_p, said_p=said_p
    )


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_the_weights_are_those_of_a_loop_over_positions(
    student: Student, window: int, with_reference: bool, chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detect.top_logprobs._POSITIONS", 50)
    records = [record(student, seed, chat=chat) for seed in range(8)]
    # One that repeats its prompt, whose windows are out.
    records[3]["prompt"] = " ".join(records[3]["response"].split()[:6])
    corpus, lists = read(records)
    reference = reference_of(corpus) if with_reference else None
    tally = tally_lists(
        corpus, lists, window=window, special_ids=TOKENIZER.special_ids, policy=PromptPolicy.OWN, reference=reference
    )

    suspect: dict[tuple[tuple[int, ...], int], float] = {}
    expected: dict[tuple[tuple[int, ...], int], float] = {}
    times: dict[tuple[tuple[int, ...], int], int] = {}
    after: dict[tuple[int, ...], int] = {}
    position = 0
    for number, (ids, said) in enumerate(zip(corpus.responses, records, strict=True)):
        text = said["response"]
        listed = student.top(text, 5)
        asked = [prompt.tolist() for prompt in corpus.prompts[number]]
        for at, (word, logprob, top) in enumerate(listed):
            before = tuple(ids[max(0, at - window) : at].tolist())
            copied = any(
                tuple(prompt[i : i + window]) == before for prompt in asked for i in range(len(prompt) - window + 1)
            )
            if len(before) == window and not copied and not corpus.echoes[number][at - window : at].any():
                after[before] = after.get(before, 0) + 1
                known = dict(top) if chat else {**dict(top), word: logprob}
                for token, each in known.items():
                    pair = before, int(TOKENIZER.encode(token)[0])
                    suspect[pair] = suspect.get(pair, 0) + math.exp(each)
                    times[pair] = times.get(pair, 0) + 1
                    if reference is not None:
                        row = dict(zip(reference.top_ids[position].tolist(), reference.top_p[position], strict=True))
                        row.setdefault(int(ids[at]), reference.said_p[position])
                        expected[pair] = expected.get(pair, 0) + float(row.get(pair[1], 0.0))
            position += 1
    if reference is None:
        for pair in suspect:
            others = [mass for (before, token), mass in suspect.items() if token == pair[1] and before != pair[0]]
            expected[pair] = sum(others) / max(1, sum(after.values()) - after[pair[0]]) * times[pair]

    found = {
        (tuple(tally.windows[w].tolist()), int(v)): (s / UNIT, e / UNIT)
        for w, v, s, e in zip(tally.pair_window, tally.tokens, tally.suspect, tally.expected, strict=True)
    }
    assert found.keys() == suspect.keys()
    for pair, (s, e) in found.items():
        assert s == pytest.approx(suspect[pair], abs=1e-6)
        assert e == pytest.approx(expected[pair], abs=1e-6)
    assert tally.contexts == sum(after.values())
    assert tally.left_out_prompt > 0 or window > 2

    # The statistic, from the specification of the key alone.
    keys = scope(4, window=window)
    result = detect_logprobs(corpus, lists, GreenListMark(keys), reference=reference, decoys=0)
    params, words = keys.params, keys.lane_words()
    statistic = 0.0
    for (before, token), (s, e) in found.items():
        row = np.array([before], dtype=np.uint32)
        lane = int(prf.lane(row)[0])
        if lane < params.fleet_lanes:
            green = (
                int(prf.uniform(words[lane].tobytes(), row, np.array([token], dtype=np.uint32))[0])
                < params.fleet_k << 56
            )
            statistic += math.copysign(math.sqrt(abs(s - e)), s - e) * (green - params.fleet_k / 256)
    assert result.test.statistic == pytest.approx(statistic, abs=1e-3)
    assert result.contexts == tally.contexts


def test_both_forms_say_the_same_of_the_likeliest(student: Student) -> None:
    corpora = [read([record(student, seed, k=200, chat=chat) for seed in range(5)]) for chat in (True, False)]
    (corpus, lists), (other, others) = corpora
    assert all(np.array_equal(a, b) for a, b in zip(corpus.responses, other.responses, strict=True))
    assert corpus.from_ids == 5
    results = [detect_logprobs(*each, GreenListMark(scope()), decoys=0) for each in corpora]
    assert results[0].log10_p == pytest.approx(results[1].log10_p, abs=1e-3)
    assert len(lists.ids) == len(others.ids)


def test_a_collected_journal_gives_more_with_its_log_probabilities(student: Student, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"Say something about number {i}.\n" for i in range(20)))
    marks = [GreenListMark(scope(key)) for key in (1, 2)]
    for completions in (False, True):
        out = tmp_path / f"{completions}.jsonl"
        with served(StudentServer(student)) as url:
            asked = Asked(
                url=url,
                model="student",
                completions=completions,
                sampling={"temperature": 1.0, "max_tokens": 40},
                logprobs=10,
                prompts=tmp_path / "prompts.txt",
            )
            run_collection(asked, out, watched=None)
        reading = LogprobReader(TOKENIZER)
        corpus = read_corpus(Reader([out]), TOKENIZER, window=1, progress=reading)
        lists = reading.lists(corpus)
        assert lists.accounting.scored == 20
        text = detect_model(corpus, marks[:1], decoys=0)[0]
        right, wrong = (detect_logprobs(corpus, lists, mark, decoys=99) for mark in marks)
        assert right.log10_p < 2 * text.log10_p < -10
        assert right.test.decoy_rank == 1
        assert wrong.log10_p > -4


def loops(student: Student) -> list[dict[str, Any]]:
    """Repetitive text: the same few answers again and again, one of them inside itself."""
    once = [record(student, seed, k=8, words=25) for seed in range(3)]
    twice = {**once[0], "response": once[0]["response"] * 6, "logprobs": once[0]["logprobs"] * 6}
    return [*once * 10, twice]


def null(student: Student, keys: int) -> None:
    corpus, lists = read(loops(student))
    for reference in (None, reference_of(corpus)):
        tally = tally_lists(corpus, lists, window=1, special_ids=TOKENIZER.special_ids, reference=reference)
        weights = OPEN_WEIGHT_ROOT.weigh(tally)
        mark = GreenListMark(scope(1))
        result = detect_logprobs(corpus, lists, mark, reference=reference, decoys=keys, decoy_seed=7)
        # A decoy is a random key; its p is made as the key's is.
        p = decoys_log10_p(weights.within(mark.tested(tally)), result.test, mark=mark, tally=tally)
        assert len(p) == keys
        for level in (0.1, 0.01, 0.001):
            allowed = level * keys + 4 * math.sqrt(level * keys) + 1
            assert (p <= math.log10(level)).sum() <= allowed
        assert (p <= -0.3).sum() > keys / 20  # And it is a test at all.


def test_null_of_repetitive_text_under_random_keys(student: Student) -> None:
    null(student, 2_000)


@pytest.mark.slow
def test_null_of_repetitive_text_under_many_random_keys(student: Student) -> None:
    null(student, 10_000)


def test_the_null_with_keys_of_their_own(student: Student) -> None:
    """The same, through the whole of the test, key by key."""
    corpus, lists = read(loops(student))
    p = np.array(
        [detect_logprobs(corpus, lists, GreenListMark(scope(key)), decoys=0).log10_p for key in range(10, 210)]
    )
    assert (p <= -1).sum() <= 20 + 4 * math.sqrt(20)
    assert (p <= -2).sum() <= 8


def changed(student: Student, change: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Any]:
    given = record(student, 0)
    result = change(given["logprobs"])
    if result is not None:
        given["logprobs"] = result
    return given


def set_top(logprob: object) -> Callable[[list[dict[str, Any]]], None]:
    return lambda given: given[4]["top_logprobs"][0].__setitem__("logprob", logprob)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_top("x"), "a log-probability that is none"),
        (set_top(None), "a log-probability that is none"),
        (set_top(True), "a log-probability that is none"),
        (set_top(0.7), "a log-probability that is none"),
        (set_top(-1e-9), "probabilities of one position that sum to more than 1"),
        (lambda given: given[4].update({"token": " cat", "bytes": [32, 99]}), "tokens that are not the response"),
        (lambda given: given.__delitem__(-1), "tokens that are not the response"),
        (lambda given: given[4].update(bytes=[256]), "log-probabilities of an unknown form"),
        (lambda given: given[4].update(bytes="x"), "log-probabilities of an unknown form"),
        (lambda given: given[4].update(bytes=None, token=3), "log-probabilities of an unknown form"),
        (lambda given: given[4].update(top_logprobs=[1, 2]), "log-probabilities of an unknown form"),
        (lambda given: [1, 2], "log-probabilities of an unknown form"),
        (lambda given: [], "no log-probabilities"),
        (lambda given: "x", "log-probabilities of an unknown form"),
        (lambda given: {"a": 1}, "log-probabilities of an unknown form"),
        (lambda given: [{"tokens": [" a"], "top_logprobs": []}], "log-probabilities of an unknown form"),
        (lambda given: [{"tokens": [" a"]}], "no log-probabilities"),
        (lambda given: [{**entry, "top_logprobs": []} for entry in given], "no log-probabilities"),
    ],
)
def test_lists_that_cannot_be_used_are_counted_and_left_out(student: Student, change: Any, reason: str) -> None:
    good = record(student, 1)
    corpus, lists = read([changed(student, change), good])
    assert len(corpus.responses) == 2
    assert lists.accounting.to_json() | {"notes": {}} == {
        "read": 2,
        "scored": 1,
        "excluded": {reason: 1},
        "malformed": 0,
        "problems": [],
        "notes": {},
    }
    # The others are tested as if it were not there.
    alone = detect_logprobs(*read([good]), GreenListMark(scope()), decoys=0)
    assert detect_logprobs(corpus, lists, GreenListMark(scope()), decoys=0).log10_p == alone.log10_p


def test_tokens_that_the_vocabulary_lacks(student: Student) -> None:
    """Said, they leave the record out; listed, they are passed over and counted."""
    said = record(student, 0)
    first, second = said["logprobs"][3:5]
    joined = first["token"] + second["token"]
    assert len(TOKENIZER.encode(joined)) == 2
    said["logprobs"][3:5] = [{**first, "token": joined, "bytes": list(joined.encode())}]
    listed = record(student, 1)
    listed["logprobs"][2]["top_logprobs"][1].update({"token": "\ufffd\ufffd", "bytes": [0xFF, 0xFE, 0xFD]})
    _, lists = read([said, listed])
    assert lists.accounting.excluded == {"tokens that are none of the tokenizer's": 1}
    assert lists.accounting.notes == {"listed tokens of no id": 1}


@pytest.mark.parametrize(
    ("logprob", "usable"), [(math.nan, False), (math.inf, False), (-math.inf, True), (-(10**400), True), (1e-6, False)]
)
def test_numbers_that_json_has_not(student: Student, logprob: float, usable: bool) -> None:
    given = record(student, 0)
    given["logprobs"][4]["top_logprobs"][0]["logprob"] = logprob
    text = Text(response=given["response"], token_ids=None, prompts=None, logprobs=given["logprobs"])
    document = Document(source="x:1", texts=(text,), fingerprint=None, account=None, tokenizer=None)
    reading = LogprobReader(TOKENIZER)
    assert len(list(reading([document]))) == 1
    assert sum(reading.accounting.excluded.values()) == (not usable)


def test_what_is_listed_twice_counts_once(student: Student) -> None:
    once, twice = record(student, 0), record(student, 0)
    for entry in twice["logprobs"]:
        entry["top_logprobs"] += entry["top_logprobs"][:2]
    a, b = (detect_logprobs(*read([each]), GreenListMark(scope()), decoys=0) for each in (once, twice))
    assert a.test == b.test


def test_missing_positions_are_no_contexts(student: Student) -> None:
    given = record(student, 0)
    for entry in given["logprobs"][5:10]:
        entry["top_logprobs"] = None
    corpus, lists = read([given])
    result = detect_logprobs(corpus, lists, GreenListMark(scope()), decoys=0)
    assert result.contexts == len(corpus.responses[0]) - 1 - 5
    assert lists.accounting.notes == {"tokens without a list": 5}
    older = record(student, 0, chat=False)
    older["logprobs"][0]["top_logprobs"][5:10] = [None] * 5
    older["logprobs"][0]["token_logprobs"][0] = None
    assert detect_logprobs(*read([older]), GreenListMark(scope()), decoys=0).contexts == result.contexts


def test_an_end_of_turn_that_is_listed_is_no_part_of_the_response(student: Student) -> None:
    plain = record(student, 0)
    for end in ("<|im_end|>", ""):
        ended = record(student, 0)
        ended["logprobs"].append({**ended["logprobs"][0], "token": end, "bytes": list(end.encode())})
        a, b = (detect_logprobs(*read([each]), GreenListMark(scope()), decoys=0) for each in (plain, ended))
        assert a.test == b.test


def test_tokens_by_their_bytes_in_the_older_form() -> None:
    text = " the \N{SNOWMAN}"
    ids = TOKENIZER.encode(text)
    pieces = [TOKENIZER.token_bytes(int(i)) for i in ids]
    names = []
    for piece in pieces:
        try:
            names.append(piece.decode())
        except UnicodeDecodeError:
            names.append("bytes:" + "".join(f"\\x{byte:02x}" for byte in piece))
    assert any(name.startswith("bytes:") for name in names)
    given = {"tokens": names, "token_logprobs": [-1.0] * len(names), "top_logprobs": [{name: -1.0} for name in names]}
    corpus, lists = read([{"response": text, "logprobs": [given]}])
    assert np.array_equal(corpus.responses[0], ids)
    assert np.array_equal(lists.ids, ids)


def test_lists_that_are_all_the_same_say_nothing(student: Student) -> None:
    given = record(student, 0)
    same = given["logprobs"][0]["top_logprobs"]
    for entry in given["logprobs"]:
        entry["top_logprobs"] = same
    result = detect_logprobs(*read([given]), GreenListMark(scope()), decoys=9)
    assert result.log10_p == 0.0


def test_no_record_with_lists_is_said(student: Student) -> None:
    given = record(student, 0)
    del given["logprobs"]
    with pytest.raises(UsageError, match=r"none of 1 records .* \(1 no log-probabilities\)"):
        read([given])


def test_a_million_entries(student: Student) -> None:
    given = record(student, 0)
    entry = given["logprobs"][5]
    entry["top_logprobs"] = [{"token": str(i % 1000), "logprob": -14.0} for i in range(1_000_000)]
    started = time.monotonic()
    _, lists = read([given])
    assert lists.accounting.scored == 1
    assert 10 <= lists.starts[6] - lists.starts[5] <= 1000
    assert lists.accounting.notes["listed tokens of no id"] > 0
    assert time.monotonic() - started < 120
