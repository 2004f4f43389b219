"""Near-duplicates: those of brute-force Jaccard, whatever the order, the portions, workers and interruptions."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cli
from detect import near_search
from detect.binomial import log10_tail
from detect.corpus_scan import scan_corpus
from detect.duplicates import Duplicates
from detect.mark import GreenListMark
from detect.near_duplicates import (
    PERMUTATIONS,
    SHINGLE,
    NearDuplicates,
    matches_needed,
    signatures,
    to_leave_out,
)
from detect.near_search import find_near_duplicates, near_of
from detect.place import NumberedPortions, Place
from detect.portions import Sifter
from detect.records import Reader
from detect.tally_build import Build, build_tally
from detect.tally_file import read_tally
from watermark import kernels
from watermark.errors import InputError, UsageError
from watermark.keys import Params, ScopeKeys, Secret
from watermark.tokenizer import Tokenizer, load


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load("smollm2")


@pytest.fixture(scope="module")
def sifter(smollm2: Tokenizer) -> Sifter:
    return Sifter(smollm2, window=2, special_ids=smollm2.special_ids)


def documents_of(count: int, seed: int) -> list[np.ndarray]:
    """Ids of documents, most of them with a run of some others' ids replaced."""
    rng = np.random.default_rng(seed)
    made: list[np.ndarray] = []
    for _ in range(count):
        if made and rng.random() < 0.7:
            ids = made[rng.integers(len(made))].copy()
            at = rng.integers(0, len(ids))
            changed = min(len(ids) - at, int(rng.integers(1, 40)))
            ids[at : at + changed] = rng.integers(20, 49_000, changed)
        else:
            ids = rng.integers(20, 49_000, int(rng.integers(3, 300))).astype(np.uint32)
        made.append(ids)
    return made


def shingles(ids: np.ndarray) -> set[tuple[int, ...]]:
    size = min(SHINGLE, len(ids))
    return {tuple(ids[i : i + size].tolist()) for i in range(len(ids) - size + 1)}


def jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other)


def groups(names: list[bytes], edges: list[tuple[int, int]]) -> set[bytes]:
    """The names to leave out: all of a connected component but its smallest."""
    component = list(range(len(names)))
    for a, b in edges:
        old, new = component[a], component[b]
        component = [new if one == old else one for one in component]
    left_out = set(names)
    for one in set(component):
        left_out.remove(min(name for name, its in zip(names, component, strict=True) if its == one))
    return left_out


def named(left_out: np.ndarray) -> set[bytes]:
    return {row.astype(">u8").tobytes() for row in left_out}


def digests_of(count: int, seed: int) -> tuple[list[bytes], np.ndarray]:
    rng = random.Random(seed)
    names = [rng.randbytes(16) for _ in range(count)]
    return names, np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 16)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95, 1.0])
def test_groups_are_those_of_all_pairs_of_signatures(threshold: float) -> None:
    """Every pair is held against every other here; bands look at those that agree in one."""
    documents = documents_of(300, 1)
    names, digests = digests_of(300, 1)
    signed = signatures(documents, list(range(300)), documents=300)
    edges = [
        (a, b)
        for a, b in itertools.combinations(range(300), 2)
        if ((signed[a] == signed[b]).mean() - 1 / 256) / (1 - 1 / 256) >= threshold - 1e-12
    ]
    assert len(edges) > 10 or threshold == 1.0
    assert named(to_leave_out(digests, signed, threshold=threshold)) == groups(names, edges)


def test_estimates_are_those_of_brute_force_jaccard() -> None:
    documents = documents_of(300, 2)
    signed = signatures(documents, list(range(300)), documents=300)
    sets = [shingles(ids) for ids in documents]
    errors, likely = [], []
    for a, b in itertools.combinations(range(300), 2):
        truth = jaccard(sets[a], sets[b])
        estimate = ((signed[a] == signed[b]).mean() - 1 / 256) / (1 - 1 / 256)
        if 0.05 < truth < 1:
            errors.append(estimate - truth)
            likely.append(truth * (1 - truth) / PERMUTATIONS)
        elif truth == 1:
            assert estimate == 1
        else:
            assert estimate < 0.25
    assert len(errors) > 200
    # Pairs share documents and so are not independent: the bounds are wide.
    assert abs(np.mean(errors)) < 0.01
    assert 0.7 < np.mean(np.square(errors)) / np.mean(likely) < 1.4
    # Pairs far from the threshold are on their side of it.
    names, digests = digests_of(300, 2)
    found = named(to_leave_out(digests, signed, threshold=0.8))
    pairs = list(itertools.combinations(range(300), 2))
    sure = groups(names, [(a, b) for a, b in pairs if jaccard(sets[a], sets[b]) >= 0.92])
    possible = groups(names, [(a, b) for a, b in pairs if jaccard(sets[a], sets[b]) >= 0.65])
    assert len(sure) <= len(found) <= len(possible)
    assert len(sure) > 20


def test_the_share_of_pairs_that_bands_miss() -> None:
    """Of 2,000 pairs at the threshold, those that agree in no band are as few as promised."""
    rng = np.random.default_rng(3)
    for threshold in (0.5, 0.6, 0.8, 0.9):
        pairs = 2000
        signed = np.zeros((2 * pairs, PERMUTATIONS), dtype=np.uint8)
        signed[::2] = rng.integers(0, 256, (pairs, PERMUTATIONS))
        needed = matches_needed(threshold)
        for pair in range(pairs):
            differ = rng.permutation(PERMUTATIONS)[needed:]
            signed[2 * pair + 1] = signed[2 * pair]
            signed[2 * pair + 1, differ] ^= rng.integers(1, 256, len(differ)).astype(np.uint8)
        _, digests = digests_of(2 * pairs, 3)
        found = len(to_leave_out(digests, signed, threshold=threshold))
        assert pairs * 0.985 <= found <= pairs


def test_order_of_documents_and_repeats_leave_no_trace() -> None:
    documents = documents_of(200, 4)
    _, digests = digests_of(200, 4)
    signed = signatures(documents, list(range(200)), documents=200)
    expected = to_leave_out(digests, signed, threshold=0.8)
    order = np.random.default_rng(0).permutation(np.concatenate([np.arange(200), np.arange(50)]))
    assert (to_leave_out(digests[order], signed[order], threshold=0.8) == expected).all()
    assert len(expected) > 20


def test_many_that_agree_in_a_band_and_are_not_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is held against few others then; the order leaves no trace all the same."""
    from detect import near_duplicates

    monkeypatch.setattr(near_duplicates, "_MOST_COMPARED", 5)
    rng = np.random.default_rng(5)
    signed = rng.integers(0, 256, (400, PERMUTATIONS)).astype(np.uint8)
    signed[:, :6] = 7
    signed[200:300] = signed[0]
    _, digests = digests_of(400, 5)
    found = to_leave_out(digests, signed, threshold=0.8)
    order = rng.permutation(400)
    assert (to_leave_out(digests[order], signed[order], threshold=0.8) == found).all()
    # Those of one signature agree in every other band, and there with one another alone.
    assert len(found) == 100


def test_short_texts_and_conversations() -> None:
    a, b, c = (np.array(ids, dtype=np.uint32) for ids in ([1, 2, 3], [1, 2, 4], [9, 8, 7, 6, 5, 4]))
    signed = signatures([a, b, a, c, c, a], [0, 1, 2, 3, 4, 4], documents=5)
    assert (signed[0] == signed[2]).all()
    assert (signed[0] == signed[1]).sum() < 10
    # A document of two texts has the shingles of both.
    assert 64 < (signed[3] == signed[4]).sum() < PERMUTATIONS
    assert to_leave_out(np.zeros((0, 16), np.uint8), signed[:0], threshold=0.8).shape == (0, 2)
    with pytest.raises(UsageError, match="expected a similarity"):
        to_leave_out(np.zeros((5, 16), np.uint8), signed, threshold=0.4)


def test_signatures_are_those_of_the_sets_of_shingles() -> None:
    """Whoever shares the call, and however the texts of a document are cut, its signature is of its shingles."""
    documents = [*documents_of(60, 15), np.zeros(0, dtype=np.uint32)]
    together = signatures(documents, list(range(61)), documents=61)
    for number, ids in enumerate(documents):
        assert (signatures([ids], [0], documents=1) == together[number]).all()
        # Every shingle as a text of its own, and some of them twice.
        runs = [np.array(run, dtype=np.uint32) for run in shingles(ids)] if len(ids) else []
        runs += runs[:3]
        assert (signatures(runs, [0] * len(runs), documents=1) == together[number]).all()
    assert signatures([], [], documents=0).shape == (0, PERMUTATIONS)


def test_digests_are_looked_up_and_not_taken_up() -> None:
    names, _ = digests_of(5000, 6)
    table = Duplicates()
    table.add(names[:2500])
    held = table.holds([*names, b"", bytes(16)])
    assert held.tolist() == [True] * 2500 + [False] * 2502
    assert len(table) == 2500


def records_of(count: int, seed: int) -> list[dict[str, Any]]:
    """Answers, near-copies of answers before, identical records, and what is left out or malformed."""
    rng = random.Random(seed)
    words = "the sky is blue because molecules of air scatter short waves more than long ones and so on".split()
    made: list[dict[str, Any]] = []
    for i in range(count):
        kind = rng.random()
        if made and kind < 0.1:
            made.append(rng.choice(made))
        elif made and kind < 0.5:
            text = rng.choice(made)["response"].split()
            text[rng.randrange(len(text))] = rng.choice(words)
            made.append({"prompt": f"what {i}", "response": " ".join(text)})
        else:
            text = [rng.choice(words) + (f" {rng.randrange(99)}" if rng.random() < 0.5 else "") for _ in range(60)]
            made.append({"prompt": f"what {i}", "response": " ".join(text)})
    return [*made, {"response": ""}, {"response": 3}]


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def built(inputs: list[Path], sifter: Sifter, out: Path, build: Build, threshold: float = 0.8) -> bytes:
    """Both passes; the second has the first's result."""
    near = find_near_duplicates(
        inputs, sifter, threshold=threshold, out=out, workers=build.workers, portion=build.portion, max_malformed=9
    )
    options = {name: getattr(build, name) for name in ("workers", "portion", "capacity")}
    build_tally(inputs, sifter, out=out, build=Build(near=near, **options), max_malformed=9)
    assert not near_of(out).exists()
    return out.read_bytes()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(5, 60),
    seed=st.integers(0, 10**6),
    files=st.integers(1, 4),
    portion=st.sampled_from([300, 4000]),
    threshold=st.sampled_from([0.5, 0.8, 1.0]),
)
def test_order_and_portions_leave_no_trace(
    tmp_path: Path, sifter: Sifter, count: int, seed: int, files: int, portion: int, threshold: float
) -> None:
    records = records_of(count, seed)
    paths = [write_lines(tmp_path / f"{n}.jsonl", records[n::files]) for n in range(files)]
    a = built(paths, sifter, tmp_path / "a.tally", Build(), threshold)
    b = built(paths[::-1], sifter, tmp_path / "b.tally", Build(portion=portion), threshold)
    assert a == b
    tally, _ = read_tally(tmp_path / "a.tally")
    accounting = tally.about.accounting
    assert accounting.read == count + 2
    distinct = len({json.dumps(record) for record in records[:-2]})
    assert accounting.scored + accounting.excluded.get("near-duplicate", 0) == distinct
    assert accounting.excluded.get("duplicate", 0) == count - distinct
    assert accounting.malformed == 1
    # The same records in one file, in another order.
    random.Random(seed).shuffle(records)
    built([write_lines(tmp_path / "c.jsonl", records)], sifter, tmp_path / "c.tally", Build(), threshold)
    c, _ = read_tally(tmp_path / "c.tally")
    assert c.digest() == tally.digest()
    assert c.about.accounting.excluded == accounting.excluded


def test_what_is_left_out_is_what_brute_force_leaves_out(tmp_path: Path, sifter: Sifter, smollm2: Tokenizer) -> None:
    """The accounting of a build, beside the components of exact Jaccard over all pairs, where none is near 0.8."""
    rng = random.Random(7)
    records = []
    for _ in range(60):
        text = [f"{rng.randrange(10**6)}" for _ in range(80)]
        records.append(" ".join(text))
        for _ in range(rng.randrange(4)):
            near = text.copy()
            near[rng.randrange(80)] = "another"
            records.append(" ".join(near))
    records = sorted(set(records))
    rng.shuffle(records)
    ids = [smollm2.encode(text) for text in records]
    sets = [shingles(one) for one in ids]
    pairs = [(a, b, jaccard(sets[a], sets[b])) for a, b in itertools.combinations(range(len(sets)), 2)]
    assert not any(0.6 < similar < 0.9 for _, _, similar in pairs)
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in records])
    (portion,) = list(Reader([path]).portions(10**9))
    names = portion.digests()
    expected = groups(names, [(a, b) for a, b, similar in pairs if similar >= 0.8])
    near = find_near_duplicates([path], sifter, threshold=0.8, out=tmp_path / "x", portion=2000)
    assert named(near.left_out) == expected
    tally = build_tally([path], sifter, out=tmp_path / "x", build=Build(near=near))
    assert tally.about.accounting.excluded == {"near-duplicate": len(expected)}
    assert tally.about.duplicates == "near-duplicates of 0.8 left out"
    # It is the tally of the others.
    others = [text for text, name in zip(records, names, strict=True) if name not in expected]
    alone = build_tally(
        [write_lines(tmp_path / "b.jsonl", [{"text": text} for text in others])], sifter, out=tmp_path / "y"
    )
    assert alone.digest() == tally.digest()


def test_workers_leave_no_trace(tmp_path: Path, sifter: Sifter) -> None:
    path = write_lines(tmp_path / "a.jsonl", records_of(300, 8))
    written = [built([path], sifter, tmp_path / f"{n}", Build(workers=n, portion=5000)) for n in (1, 2)]
    assert written[0] == written[1]


def test_documents_tested_are_those_that_stand(tmp_path: Path, sifter: Sifter, smollm2: Tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", records_of(100, 9))
    params = Params(tokenizer=smollm2.digest(), special_ids=smollm2.special_ids, window=2)
    mark = GreenListMark(ScopeKeys(name="test", params=params, delta=2.0, key=Secret(bytes(range(32)))))
    out = tmp_path / "x.csv"
    near = find_near_duplicates([path], sifter, threshold=0.8, out=out, portion=2000, max_malformed=1)
    scan = scan_corpus([path], sifter, mark, out=out, near=near, portion=2000, max_malformed=1)
    assert scan.accounting.excluded["near-duplicate"] == len(near.left_out) > 5
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1 + scan.documents == 1 + scan.accounting.scored
    assert not near_of(out).exists()
    with pytest.raises(UsageError, match="not with --keep-duplicates"):
        scan_corpus([path], sifter, mark, out=out, near=near, keep_duplicates=True)


class _EndedError(Exception):
    """Stands for whatever ends a process."""


def test_first_pass_is_gone_on_with(tmp_path: Path, sifter: Sifter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended before the state is written and after it, in turn, until it is done."""
    path = write_lines(tmp_path / "a.jsonl", records_of(120, 10))
    undisturbed = built([path], sifter, tmp_path / "undisturbed", Build(portion=2000))
    write, calls = near_search._write, 0

    def ended(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise _EndedError
        write(*arguments)
        if calls % 3 == 2:
            raise _EndedError

    out, resumed, runs = tmp_path / "out", [], 0
    near: NearDuplicates | None = None
    with monkeypatch.context() as patch:
        patch.setattr(near_search, "_write", ended)
        while near is None:
            runs += 1
            assert runs < 200
            try:
                near = find_near_duplicates(
                    [path],
                    sifter,
                    threshold=0.8,
                    out=out,
                    portion=2000,
                    every=0.0,
                    max_malformed=1,
                    resumed=resumed.append,
                )
            except _EndedError:
                continue
    assert runs > 3
    assert resumed == sorted(resumed)
    build_tally([path], sifter, out=out, build=Build(portion=2000, near=near), max_malformed=1)
    assert out.read_bytes() == undisturbed


def test_what_changed_is_refused(tmp_path: Path, sifter: Sifter) -> None:
    records = records_of(80, 11)[:-1]
    path, out = write_lines(tmp_path / "a.jsonl", records), tmp_path / "out"

    def search(**options: Any) -> NearDuplicates:
        return find_near_duplicates([path], sifter, **{"threshold": 0.8, "out": out, "portion": 2000} | options)

    def ended(*arguments: Any) -> None:
        if arguments[1] > 40:
            raise _EndedError

    with pytest.raises(_EndedError):
        search(every=0.0, progress=ended)
    with pytest.raises(UsageError, match="other inputs or options"):
        search(portion=3000)
    # Of the same size, so that only the records tell.
    write_lines(path, [records[1], records[0], *records[2:]])
    with pytest.raises(InputError, match="the inputs changed since the checkpoint"):
        search()
    write_lines(path, records)
    near = search()
    assert search().digest() == near.digest()
    write_lines(path, [records[1], records[0], *records[2:]])
    with pytest.raises(InputError, match="changed since near-duplicates were looked for"):
        build_tally([path], sifter, out=out, build=Build(portion=2000, near=near))
    assert not out.exists()
    with pytest.raises(UsageError, match="a pipe is read once"):
        find_near_duplicates(["-"], sifter, threshold=0.8, out=out, portion=2000)
    with pytest.raises(UsageError, match="expected a similarity"):
        search(threshold=0.3)
    with pytest.raises(UsageError, match="not with --keep-duplicates"):
        build_tally([path], sifter, out=out, build=Build(near=near, keep_duplicates=True))
    (near_of(out) / "state.json").write_text("{}")
    with pytest.raises(InputError, match="no state of a search"):
        search()
    malformed = write_lines(tmp_path / "b.jsonl", [{"response": 3}])
    with pytest.raises(InputError, match="1 of 1 records is malformed"):
        find_near_duplicates([malformed], sifter, threshold=0.8, out=tmp_path / "b", portion=2000)


def test_a_tally_s_checkpoint_is_of_what_was_left_out(tmp_path: Path, sifter: Sifter) -> None:
    """Records that come after the checkpoint may make others before it stand for a group no more."""
    records = records_of(80, 12)[:-1]
    path, out = write_lines(tmp_path / "a.jsonl", records), tmp_path / "out"
    near = find_near_duplicates([path], sifter, threshold=0.8, out=out, portion=2000)

    def ended(*arguments: Any) -> None:
        if arguments[1] > 60:
            raise _EndedError

    with pytest.raises(_EndedError):
        build_tally([path], sifter, out=out, build=Build(portion=2000, every=0.0, near=near), progress=ended)
    other = NearDuplicates(threshold=0.8, records=near.records, left_out=near.left_out[1:])
    with pytest.raises(UsageError, match="other inputs or options"):
        build_tally([path], sifter, out=out, build=Build(portion=2000, near=other))
    numbered = NumberedPortions(Reader([path]), size=500, keep_duplicates=False, start=Place.beginning(), near=near)
    assert sum(int((flags == 2).sum()) for _, flags in numbered) == len(near.left_out)


def test_p_is_uniform_where_near_duplicates_are_left_out(tmp_path: Path, sifter: Sifter) -> None:
    """What is left out is chosen without a key: under random keys z keeps its spread on text that repeats itself."""
    rng = np.random.default_rng(16)
    stock = [rng.integers(20, 49_000, 25).tolist() for _ in range(200)]
    documents = [[i for s in rng.zipf(1.3, 20) % 200 for i in stock[s]] for _ in range(60)]
    copies = [[*documents[n % 60][:-3], *rng.integers(20, 49_000, 3).tolist()] for n in range(200)]
    path = write_lines(tmp_path / "a.jsonl", [{"token_ids": ids} for ids in documents + copies])
    near = find_near_duplicates([path], sifter, threshold=0.8, out=tmp_path / "x", portion=10**5)
    assert len(near.left_out) >= 190
    rows = build_tally([path], sifter, out=tmp_path / "x", build=Build(near=near)).rows
    tally, keys = rows.to_tally(left_out_prompt=0), 1000
    words = rng.integers(0, 2**64, (keys, 1, 2), dtype=np.uint64).repeat(64, axis=1)
    green = kernels.green_sums(
        words,
        rows.windows,
        tally.lanes,
        np.full(64, 64 << 56, dtype=np.uint64),
        tally.pair_window,
        tally.tokens,
        np.ones((rows.pairs, 1), dtype=np.int64),
    )[:, 0]
    z = (green - rows.pairs / 4) / np.sqrt(rows.pairs * 3 / 16)
    assert abs(z.mean()) < 4 / np.sqrt(keys)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * keys)
    for level in (0.1, 0.01):
        rate = np.mean([log10_tail(int(g), pairs=rows.pairs, k=64) <= np.log10(level) for g in green])
        assert rate <= level + 3.5 * np.sqrt(level / keys)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", records_of(60, 17)[:-1])

    def run(*options: str) -> tuple[object, str, str]:
        arguments = ["tally", "build", str(path), "--out", str(tmp_path / "x"), "--near-duplicates", "0.8", *options]
        monkeypatch.setattr(sys, "argv", ["taggant", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    code, out, _ = run("--json")
    assert code == 0
    told = json.loads(out)
    assert told["duplicates"] == "near-duplicates of 0.8 left out"
    assert told["accounting"]["excluded"]["near-duplicate"] > 3
    assert not near_of(tmp_path / "x").exists()
    code, _, error = run("--keep-duplicates")
    assert code == 2
    assert "--near-duplicates leaves identical records out too" in error


def killed_run(tmp_path: Path, out: Path, inputs: list[Path]) -> int:
    """Run the command, kill -9 of its process group at random moments, until it is done; return how often."""
    rng = random.Random(13)
    command = [sys.executable, "-m", "cli", "tally", "build", *map(str, inputs), "--out", str(out), "--workers", "2"]
    command += ["--near-duplicates", "0.8", "--checkpoint-seconds", "0", "--max-malformed", "1"]
    for killed in range(30):
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=rng.uniform(1.0, 5.0) if killed < 4 else 120)
            assert process.returncode == 0
            return killed
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(0.1)
    raise AssertionError("never done")


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path, sifter: Sifter) -> None:
    inputs = [write_lines(tmp_path / "a.jsonl", records_of(12_000, 14))]
    undisturbed = built(inputs, sifter, tmp_path / "undisturbed", Build())
    assert killed_run(tmp_path, tmp_path / "out", inputs) > 0
    assert (tmp_path / "out").read_bytes() == undisturbed
