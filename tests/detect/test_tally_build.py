"""Tallies on disk: the same bytes whatever the order, the portions and the workers; interrupted, merged and scored."""

from __future__ import annotations

import io
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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import scope_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detect import tally_build
from detect.binomial import log10_tail
from detect.corpus import read_corpus
from detect.mark import GreenListMark
from detect.marked_text import detect_text
from detect.portions import Sifter
from detect.records import Accounting, Reader
from detect.reference_reader import NgramReader
from detect.tally import PromptPolicy
from detect.tally_build import Build, build_tally, checkpoint_of
from detect.tally_file import TallyFile, merge_tallies, read_tally, write_tally
from detect.tally_rows import TallyRows
from detect.tally_score import score_tally
from watermark import kernels
from watermark.errors import InputError, TaggantError, UsageError
from watermark.keys import Params, ScopeKeys, Secret
from watermark.tokenizer import Tokenizer, load

WORDS = "the sky is blue because molecules of air scatter short waves more than long ones and so it goes on".split()


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load("smollm2")


@pytest.fixture(scope="module")
def sifter(smollm2: Tokenizer) -> Sifter:
    return Sifter(smollm2, window=2, special_ids=smollm2.special_ids)


def key_of(tokenizer: Tokenizer, number: int = 1) -> ScopeKeys:
    params = Params(tokenizer=tokenizer.digest(), special_ids=tokenizer.special_ids, window=2)
    return ScopeKeys(name="test", params=params, delta=2.0, key=Secret(number.to_bytes(32, "little")))


def records_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Answers with prompts, some of which they echo; texts; ids; conversations; duplicates; things left out."""
    rng = random.Random(seed)

    def sentence(words: int) -> str:
        return " ".join(rng.choice(WORDS) + rng.choice(["", "", f" {rng.randrange(99)}"]) for _ in range(words))

    made: list[dict[str, Any]] = []
    for i in range(count):
        prompt = sentence(8)
        kinds = [
            {"prompt": prompt, "response": sentence(30)},
            {"prompt": prompt, "response": prompt + ". " + sentence(20)},
            {"text": sentence(40)},
            {"token_ids": [rng.randrange(20, 49_000) for _ in range(30)]},
            {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": sentence(25)}]},
            {"response": ""},
            {"messages": [{"role": "user", "content": prompt}]},
        ]
        made.append(made[rng.randrange(i)] if i and rng.random() < 0.1 else rng.choice(kinds))
    return made


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(5, 60),
    seed=st.integers(0, 10**6),
    files=st.integers(1, 4),
    portion=st.sampled_from([300, 2000, 10**6]),
    capacity=st.sampled_from([7, 200, 10**6]),
    keep=st.booleans(),
)
def test_order_and_portions_leave_no_trace(
    tmp_path: Path, sifter: Sifter, count: int, seed: int, files: int, portion: int, capacity: int, keep: bool
) -> None:
    records = records_of(count, seed)
    paths = [write_lines(tmp_path / f"{n}.jsonl", records[n::files]) for n in range(files)]
    a, b = tmp_path / "a.tally", tmp_path / "b.tally"
    build_tally(paths, sifter, out=a, build=Build(capacity=capacity, keep_duplicates=keep))
    build_tally(paths[::-1], sifter, out=b, build=Build(capacity=capacity, keep_duplicates=keep, portion=portion))
    assert a.read_bytes() == b.read_bytes()
    tally, beside = read_tally(a)
    assert beside is None
    assert tally.rows.pairs <= capacity
    accounting = tally.about.accounting
    assert accounting.read == count == accounting.scored + sum(accounting.excluded.values()) + accounting.malformed
    # The same evidence in one file, in another order, has the same rows.
    random.Random(seed).shuffle(records)
    c = build_tally(
        [write_lines(tmp_path / "c.jsonl", records)],
        sifter,
        out=tmp_path / "c.tally",
        build=Build(capacity=capacity, keep_duplicates=keep, portion=portion),
    )
    assert c.digest() == tally.digest()
    assert c.about.tokens == tally.about.tokens
    assert c.about.accounting.to_json() == accounting.to_json()


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON Lines and a Parquet file."""
    folder = tmp_path_factory.mktemp("some")
    write_lines(folder / "a.jsonl", [*records_of(400), {"no": "answer"}, {"response": 3}])
    ids = [np.random.default_rng(i).integers(20, 2000, 200).astype(np.uint32) for i in range(300)]
    pq.write_table(pa.table({"token_ids": pa.array(ids, pa.list_(pa.uint32()))}), folder / "b.parquet")
    return folder


@pytest.mark.parametrize("capacity", [10**7, 3000])
def test_workers_leave_no_trace(tmp_path: Path, some: Path, sifter: Sifter, capacity: int) -> None:
    inputs = [some / "a.jsonl", some / "b.parquet"]
    written = []
    for workers in (1, 4):
        out = tmp_path / f"{workers}.tally"
        build = Build(capacity=capacity, workers=workers, portion=20_000)
        build_tally(inputs, sifter, out=out, build=build, max_malformed=2)
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_score_is_that_of_detect_text(tmp_path: Path, some: Path, sifter: Sifter, smollm2: Tokenizer) -> None:
    inputs = [some / "a.jsonl", some / "b.parquet"]
    build_tally(inputs, sifter, out=tmp_path / "x", build=Build(keep_duplicates=True), max_malformed=2)
    tally, _ = read_tally(tmp_path / "x")
    corpus = read_corpus(Reader(inputs, max_malformed=2), smollm2, window=2)
    key = key_of(smollm2)
    expected = detect_text(corpus, key)
    (result,) = score_tally(tally, [GreenListMark(key)], decoys=20)
    assert (result.pooled.pairs, result.pooled.log10_p, result.pooled.z) == (
        expected.pooled.pairs,
        expected.pooled.log10_p,
        expected.pooled.z,
    )
    assert result.pooled.decoy_rank is not None
    assert tally.about.left_out_prompt == expected.left_out_prompt > 0
    assert tally.about.tokens == expected.tokens
    assert tally.about.without_prompt == corpus.without_prompt
    assert tally.about.from_ids == corpus.from_ids
    # Duplicates change how often a pair was said, and nothing else.
    once = build_tally(inputs, sifter, out=tmp_path / "y", max_malformed=2)
    assert (once.rows.tokens == tally.rows.tokens).all()
    assert once.rows.said.sum() < tally.rows.said.sum()
    excluded = once.about.accounting.excluded
    assert excluded["duplicate"] > 0
    assert once.about.accounting.read == tally.about.accounting.read
    with pytest.raises(UsageError, match="all of them at once"):
        Sifter(smollm2, window=2, special_ids=(), policy=PromptPolicy.MARKED)


def test_what_a_tally_was_not_built_for(tmp_path: Path, some: Path, sifter: Sifter, smollm2: Tokenizer) -> None:
    tally = build_tally([some / "b.parquet"], sifter, out=tmp_path / "x")
    other = scope_of(window=2, special_ids=smollm2.special_ids)
    with pytest.raises(UsageError, match="the tokenizer of digest"):
        score_tally(tally, [GreenListMark(other)])
    with pytest.raises(UsageError, match="a window of 2"):
        score_tally(tally, [GreenListMark(scope_of(window=3))])
    with pytest.raises(UsageError, match="at least one scope"):
        score_tally(tally, [])


def test_merge_is_one_build(tmp_path: Path, sifter: Sifter) -> None:
    for capacity in (10**6, 500):
        build = Build(capacity=capacity)
        paths = [write_lines(tmp_path / f"{n}.jsonl", records_of(80, n)) for n in range(3)]
        outs = [tmp_path / f"{n}.tally" for n in range(3)]
        for path, out in zip(paths, outs, strict=True):
            build_tally([path], sifter, out=out, build=build)
        whole = build_tally(paths, sifter, out=tmp_path / "whole", build=build)
        write_tally(tmp_path / "merged", merge_tallies(outs[::-1]))
        assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()
        pair = tmp_path / "pair"
        write_tally(pair, merge_tallies(outs[:2]))
        assert merge_tallies([pair, outs[2]]).digest() == whole.digest()
    with pytest.raises(UsageError, match=r"is in both .*0.tally and .*pair: it would count twice"):
        merge_tallies([outs[0], pair])
    other = tmp_path / "other"
    build_tally([write_lines(tmp_path / "9.jsonl", records_of(9, 9))], sifter, out=other, build=Build(capacity=9))
    with pytest.raises(UsageError, match="differ in capacity"):
        merge_tallies([outs[0], other])
    with pytest.raises(UsageError, match="nothing to merge"):
        merge_tallies([])


def test_malformed_records_are_told_and_nothing_is_written(tmp_path: Path, sifter: Sifter) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*records_of(30), {"no": "answer"}, {"no": "answer"}])
    out = tmp_path / "x"
    with pytest.raises(InputError, match=r"2 of 32 records are malformed and 0 allowed. The first: .*a.jsonl:31: "):
        build_tally([path], sifter, out=out)
    assert not out.exists()
    accounting = build_tally([path], sifter, out=out, max_malformed=2).about.accounting
    # A malformed record that is there twice is malformed twice.
    assert accounting.malformed == 2
    assert [problem.split(": ")[0] for problem in accounting.problems] == [f"{path}:31", f"{path}:32"]
    (tmp_path / "blank.jsonl").write_bytes(b"\n")
    with pytest.raises(InputError, match="no records in"):
        build_tally([path, tmp_path / "blank.jsonl"], sifter, out=out, max_malformed=2)


def test_problems_kept_are_the_first_whoever_found_them() -> None:
    problems = [f"b.jsonl:{n}: x" for n in range(30, 0, -1)] + ["a.jsonl:7: x", "novel.txt: y"]
    a, b = Accounting(), Accounting()
    for each, part in ((a, problems), (b, problems[::-1])):
        for problem in part:
            one = Accounting(read=1)
            one.refuse(problem)
            each.add(one)
    assert a == b
    assert a.problems[:3] == ["a.jsonl:7: x", "b.jsonl:1: x", "b.jsonl:2: x"]


class _EndedError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("referenced", [False, True])
def test_resumed_run_gives_the_same_bytes(
    tmp_path: Path, sifter: Sifter, monkeypatch: pytest.MonkeyPatch, referenced: bool
) -> None:
    """Ended after each write of a checkpoint and before it, in turn, until it is done."""
    path = write_lines(tmp_path / "a.jsonl", records_of(120, 5))
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    clean = (sifter.tokenizer.encode(" ".join(WORDS * 3)),)
    reader = NgramReader(clean=clean, tokenizer=sifter.tokenizer, window=2, source="words")
    build = Build(portion=2000, every=0.0, capacity=800, reference=reader if referenced else None)
    monkeypatch.setattr(tally_build, "_TIMES", 0.0)
    build_tally([path], sifter, out=undisturbed, build=build)
    assert not checkpoint_of(undisturbed).exists()
    write = write_tally
    calls = 0

    def ended(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise _EndedError
        write(*arguments, **options)
        if calls % 3 == 2:
            raise _EndedError

    resumed: list[int] = []
    runs = 0
    with monkeypatch.context() as patch:
        patch.setattr(tally_build, "write_tally", ended)
        while runs < 200:
            runs += 1
            try:
                build_tally([path], sifter, out=out, build=build, resumed=resumed.append)
                break
            except _EndedError:
                continue
    assert 3 < runs < 200
    assert resumed == sorted(resumed)
    build_tally([path], sifter, out=out, build=build)
    assert out.read_bytes() == undisturbed.read_bytes()
    assert not checkpoint_of(out).exists()


def test_checkpoint_of_other_inputs_is_refused(tmp_path: Path, sifter: Sifter, monkeypatch: pytest.MonkeyPatch) -> None:
    records = records_of(100, 6)
    path, out = write_lines(tmp_path / "a.jsonl", records), tmp_path / "out"
    build = Build(portion=2000, every=0.0)
    monkeypatch.setattr(tally_build, "_TIMES", 0.0)

    def ended(*arguments: Any) -> None:
        if arguments[1] > 50:
            raise _EndedError

    with pytest.raises(_EndedError):
        build_tally([path], sifter, out=out, build=build, progress=ended)
    kept = checkpoint_of(out).read_bytes()
    with pytest.raises(UsageError, match="that is not done"):
        raise_if_checkpoint(checkpoint_of(out))
    with pytest.raises(UsageError, match="other inputs or options"):
        build_tally([path], sifter, out=out, build=Build(portion=2000, every=0.0, capacity=5))
    with pytest.raises(UsageError, match="other inputs or options"):
        build_tally([path, write_lines(tmp_path / "b.jsonl", records_of(3))], sifter, out=out, build=build)
    for changed in (records[1:], [*records[:9], {"text": "another text than before"}, *records[10:]], records[:4]):
        write_lines(path, changed)
        with pytest.raises(InputError, match="the inputs changed since the checkpoint"):
            build_tally([path], sifter, out=out, build=build)
        assert not out.exists()
    assert checkpoint_of(out).read_bytes() == kept
    # What comes after the checkpoint may be new.
    write_lines(path, [*records, *records_of(20, 7)])
    build_tally([path], sifter, out=out, build=build)
    build_tally([path], sifter, out=tmp_path / "fresh", build=build)
    assert out.read_bytes() == (tmp_path / "fresh").read_bytes()


def raise_if_checkpoint(path: Path) -> None:
    merge_tallies([path])


def test_standard_input_is_not_gone_on_with(tmp_path: Path, sifter: Sifter) -> None:
    data = b"".join(json.dumps(record).encode() + b"\n" for record in records_of(50))
    a = build_tally(["-"], sifter, out=tmp_path / "a", stdin=io.BytesIO(data), build=Build(every=0.0, portion=500))
    assert not checkpoint_of(tmp_path / "a").exists()
    assert a.about.inputs[0][1] == "-"


KILLED = """
import sys
from pathlib import Path
from detect import tally_build
from detect.portions import Sifter
from watermark.tokenizer import load

if __name__ == "__main__":
    tally_build._TIMES = 0.0
    smollm2 = load("smollm2")
    tally_build.build_tally(
        sys.argv[2:], Sifter(smollm2, window=2, special_ids=smollm2.special_ids), out=Path(sys.argv[1]),
        build=tally_build.Build(portion=20_000, every=0.0, workers=2, capacity=20_000),
    )
"""


def test_killed_at_any_moment(tmp_path: Path, some: Path, sifter: Sifter) -> None:
    """Kill -9 of the whole process group, at random moments, until a run is done: the bytes of an undisturbed one."""
    (tmp_path / "run.py").write_text(KILLED, encoding="utf-8")
    inputs = [write_lines(tmp_path / "a.jsonl", records_of(1500, 8)), some / "b.parquet"]
    out = tmp_path / "out"
    build = Build(portion=20_000, capacity=20_000)
    undisturbed = build_tally(inputs, sifter, out=tmp_path / "undisturbed", build=build)
    rng = random.Random(11)
    killed = 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "run.py"), str(out), *map(str, inputs)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=rng.uniform(0.5, 3.0) if killed < 4 else 120)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            time.sleep(0.1)
    assert process.returncode == 0
    assert out.read_bytes() == (tmp_path / "undisturbed").read_bytes()
    assert undisturbed.about.accounting.read == 1800


def tampered(tally: TallyFile, **changes: Any) -> TallyFile:
    rows = tally.rows
    fields = {name: changes.get(name, getattr(rows, name)) for name in TallyRows.__dataclass_fields__}
    return TallyFile(about=tally.about, rows=TallyRows(**fields))


def test_a_stranger_s_tally_is_checked(tmp_path: Path, some: Path, sifter: Sifter) -> None:
    path = tmp_path / "x"
    tally = build_tally([some / "b.parquet"], sifter, out=path, build=Build(capacity=5000))
    rows = tally.rows
    assert rows.level > 0
    twice = np.repeat(np.arange(len(rows.hashes)), 2)
    single = np.concatenate([[0], np.cumsum(np.diff(rows.starts)[twice])])
    doubled = np.concatenate(
        [np.tile(rows.tokens[rows.starts[w] : rows.starts[w + 1]], 2) for w in range(len(rows.hashes))]
    )
    bad = {
        "each pair once": tampered(
            tally,
            hashes=rows.hashes[twice],
            windows=rows.windows[twice],
            starts=single,
            tokens=doubled,
            said=np.ones(len(doubled), dtype=np.int64),
        ),
        "in order": tampered(tally, tokens=rows.tokens[::-1].copy()),
        "windows of level": tampered(tally, level=rows.level + 3),
    }
    for problem, made in bad.items():
        write_tally(path, made)
        with pytest.raises(InputError, match=problem):
            read_tally(path)
    write_tally(path, tally)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        at = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged[: rng.choice([len(whole), at])]))
        try:
            read, _ = read_tally(path)
        except TaggantError:
            continue
        # Nothing but what is not looked at can be damaged unseen.
        assert read.digest() == tally.digest()
    path.write_bytes(b"no tally")
    with pytest.raises(InputError, match="expected a tally, found none"):
        read_tally(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_tally(tmp_path / "absent")


def green_counts(tally: TallyFile, keys: int, k: int = 64) -> tuple[int, np.ndarray]:
    """How many pairs are green under each of many keys of one lane key each (fleet lanes all alike)."""
    rows = tally.rows.to_tally(left_out_prompt=0)
    words = np.random.default_rng(7).integers(0, 2**64, (keys, 1, 2), dtype=np.uint64).repeat(64, axis=1)
    bounds = np.full(64, k << 56, dtype=np.uint64)
    ones = np.ones((len(rows.tokens), 1), dtype=np.int64)
    sums = kernels.green_sums(words, rows.windows, rows.lanes, bounds, rows.pair_window, rows.tokens, ones)
    return len(rows.tokens), sums[:, 0]


def null_rates(tmp_path: Path, sifter: Sifter, *, keys: int, documents: int) -> None:
    """Repetitive text, sampled to a sixteenth: p under random keys is uniform, as of all pairs."""
    rng = np.random.default_rng(4)
    # Sentences from a small stock, over and over: the text that naive counts go wrong on.
    stock = [rng.integers(20, 49_000, 25).astype(np.uint32) for _ in range(400)]
    ids = [np.concatenate([stock[i] for i in rng.zipf(1.3, 20) % 400]) for _ in range(documents)]
    pq.write_table(pa.table({"token_ids": pa.array(ids, pa.list_(pa.uint32()))}), tmp_path / "a.parquet")
    whole = build_tally([tmp_path / "a.parquet"], sifter, out=tmp_path / "x")
    sampled = build_tally(
        [tmp_path / "a.parquet"], sifter, out=tmp_path / "y", build=Build(capacity=whole.rows.pairs // 16 + 50)
    )
    assert sampled.rows.level == 4
    pairs, green = green_counts(sampled, keys)
    z = (green - pairs / 4) / np.sqrt(pairs * 3 / 16)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * keys)
    for level in (0.1, 0.01, 0.001):
        rate = np.mean([log10_tail(int(g), pairs=pairs, k=64) <= np.log10(level) for g in green])
        assert rate <= level + 3.5 * np.sqrt(level / keys), level


def test_sampled_tally_keeps_its_level(tmp_path: Path, sifter: Sifter) -> None:
    null_rates(tmp_path, sifter, keys=1000, documents=400)


@pytest.mark.slow
def test_sampled_tally_keeps_its_level_under_10000_keys(tmp_path: Path, sifter: Sifter) -> None:
    null_rates(tmp_path, sifter, keys=10_000, documents=1000)


def test_z_falls_as_the_square_root_of_the_share_kept(tmp_path: Path, smollm2: Tokenizer) -> None:
    """Marked ids: each is drawn from the green half of some candidates more often than not."""
    key = key_of(smollm2)
    mark = GreenListMark(key)
    rng = np.random.default_rng(9)
    ids = rng.integers(20, 49_000, (4000, 200)).astype(np.uint32)
    bounds = key.params.bounds()
    for step in range(2, 200):
        windows = np.ascontiguousarray(ids[:, step - 2 : step])
        lanes = kernels.lanes(windows)
        seeds = kernels.seeds(key.lane_words(), windows, lanes)
        green = kernels.green(seeds, bounds[lanes], np.arange(4000), np.ascontiguousarray(ids[:, step]))
        again = ~green & (rng.random(4000) < 0.05)
        ids[again, step] = rng.integers(20, 49_000, int(again.sum()))
    table = pa.table({"token_ids": pa.array(list(ids), pa.list_(pa.uint32()))})
    pq.write_table(table, tmp_path / "a.parquet")
    sifter = Sifter(smollm2, window=2, special_ids=smollm2.special_ids)
    whole = build_tally([tmp_path / "a.parquet"], sifter, out=tmp_path / "x")
    (full,) = score_tally(whole, [mark], decoys=0)
    assert full.pooled.z > 12
    for level in (2, 4):
        build = Build(capacity=int(whole.rows.pairs / 2**level * 1.05))
        (part,) = score_tally(build_tally([tmp_path / "a.parquet"], sifter, out=tmp_path / "y", build=build), [mark])
        assert part.share == 2.0**-level
        # The z kept has a standard deviation of 1 around its mean.
        assert abs(part.pooled.z - full.pooled.z * 2 ** (-level / 2)) < 4
        assert part.z_of_all == pytest.approx(part.pooled.z * 2 ** (level / 2))
