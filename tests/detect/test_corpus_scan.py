"""Verdicts of documents over a corpus: those of `detect text`, and Benjamini and Hochberg's over all of them."""

from __future__ import annotations

import csv
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import scope_of
from hypothesis import given, settings
from hypothesis import strategies as st

from detect import corpus_scan
from detect.binomial import log10_tail
from detect.corpus import read_corpus
from detect.corpus_scan import CorpusScan, load_scope, parts_of, scan_corpus
from detect.duplicates import Duplicates
from detect.false_discovery import benjamini_hochberg, benjamini_yekutieli
from detect.mark import GreenListMark
from detect.marked_text import detect_text
from detect.portions import Sifter
from detect.records import Reader
from watermark import kernels
from watermark.errors import InputError, UsageError
from watermark.examples import examples_path
from watermark.keyring import Keyring, create_key_file
from watermark.tokenizer import Tokenizer, load


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load("smollm2")


@pytest.fixture(scope="module")
def key() -> GreenListMark:
    return GreenListMark(Keyring.load(examples_path("keyring.json")).scope("demo"))


@pytest.fixture(scope="module")
def sifter(smollm2: Tokenizer, key: GreenListMark) -> Sifter:
    return Sifter(smollm2, window=key.window, special_ids=key.special_ids)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Marked answers of the teacher, unmarked ones of the clean twin, a duplicate and two malformed lines."""
    lines = [
        *examples_path("teacher.jsonl").read_bytes().splitlines()[:40],
        *examples_path("clean-twin.jsonl").read_bytes().splitlines()[:60],
    ]
    path = tmp_path / "=mixed.jsonl"
    path.write_bytes(b"\n".join([*lines, lines[0], b"{}", b"[]", b'{"response": ""}']) + b"\n")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_documents_are_those_of_detect_text(
    tmp_path: Path, mixed: Path, sifter: Sifter, key: GreenListMark, smollm2: Tokenizer
) -> None:
    out = tmp_path / "out.parquet"
    scan = scan_corpus([mixed], sifter, key, out=out, max_malformed=2, keep_duplicates=True, portion=5000)
    expected = detect_text(read_corpus(Reader([mixed], max_malformed=2), smollm2, window=key.window), key)
    rows = rows_of(out)
    assert [(row["source"], row["pairs"], row["score"], row["log10_p"]) for row in rows] == [
        (d.source, d.pairs, d.score, d.log10_p) for d in expected.documents
    ]
    assert scan.documents == len(rows) == 101
    assert [row["verdict"] == "depends on the key" for row in rows] == brute_force(
        [row["log10_p"] for row in rows], 0.01
    )
    assert scan.verdicts["depends on the key"] >= 30
    assert sum(scan.verdicts.values()) == scan.documents
    once = scan_corpus([mixed], sifter, key, out=out, max_malformed=2)
    accounting = once.accounting.to_json()
    assert accounting["excluded"] == {"duplicate": 1, "not longer than the window": 1}
    assert (accounting["read"], accounting["scored"], accounting["malformed"]) == (104, 100, 2)
    assert not parts_of(out).exists()


def test_formats_and_formulas(
    tmp_path: Path, mixed: Path, sifter: Sifter, key: GreenListMark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scans: list[CorpusScan] = []
    for suffix in ("parquet", "jsonl", "csv"):
        scans.append(scan_corpus([mixed.name], sifter, key, out=Path(f"out.{suffix}"), max_malformed=2))
    parquet, lines, cells = (rows_of(tmp_path / f"out.{suffix}") for suffix in ("parquet", "jsonl", "csv"))
    assert parquet == lines
    assert scans[0] == scans[1] == scans[2]
    assert [row["source"] for row in cells] == ["'" + row["source"] for row in parquet]
    assert [float(row["log10_p"]) for row in cells] == [row["log10_p"] for row in parquet]
    with pytest.raises(UsageError, match=r"expected a file \.parquet, \.jsonl or \.csv"):
        scan_corpus([mixed], sifter, key, out=tmp_path / "out.txt")


def test_resumed_and_with_workers(
    tmp_path: Path, sifter: Sifter, mixed: Path, smollm2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = tmp_path / "key.json"
    create_key_file(ring, scope="s", tokenizer=smollm2, window=2, delta=2.0, fleet_k=64, account_lanes=16)
    mark = load_scope(ring, "s")
    sifter = Sifter(smollm2, window=mark.window, special_ids=mark.special_ids)
    options: dict[str, Any] = {"max_malformed": 2, "portion": 3000, "part": 10}
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    expected = scan_corpus([mixed], sifter, mark, out=whole, **options)

    def ended(*arguments: Any) -> None:
        if arguments[1] > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_corpus([mixed], sifter, mark, out=out, progress=ended, **options)
    assert parts_of(out).exists()
    with pytest.raises(UsageError, match="other inputs or options"):
        scan_corpus([mixed], sifter, mark, out=out, max_malformed=2, portion=3001)
    content = mixed.read_bytes()
    mixed.write_bytes(content[10:])
    with pytest.raises(InputError, match="the inputs changed"):
        scan_corpus([mixed], sifter, mark, out=out, **options)
    mixed.write_bytes(content)
    resumed: list[int] = []
    with pytest.raises(UsageError, match="a way to load the key"):
        scan_corpus([mixed], sifter, mark, out=out, workers=2, **options)
    load_it = functools.partial(load_scope, ring, "s")
    again = scan_corpus([mixed], sifter, mark, out=out, workers=2, load=load_it, resumed=resumed.append, **options)
    assert resumed == [resumed[0]]
    assert 0 < resumed[0] <= 60
    assert out.read_bytes() == whole.read_bytes()
    assert again == expected


def test_no_key_is_sent_to_a_worker(key: GreenListMark, sifter: Sifter) -> None:
    state = corpus_scan._Tester(sifter, key, None).__getstate__()
    assert set(state) == {"sifter", "load", "id"}


def brute_force(log10_ps: list[float], level: float) -> list[bool]:
    """The step-up procedure as it is written."""
    m = len(log10_ps)
    cut = -math.inf
    for k, log10_p in enumerate(sorted(log10_ps), start=1):
        if log10_p <= math.log10(k) + math.log10(level) - math.log10(m):
            cut = log10_p
    return [log10_p <= cut for log10_p in log10_ps]


@settings(max_examples=300, deadline=None)
@given(
    ps=st.lists(st.floats(-8, 0).map(lambda p: round(p, 1)), min_size=1, max_size=60),
    size=st.integers(1, 7),
    level=st.sampled_from([0.5, 0.05, 0.001]),
)
def test_benjamini_hochberg_in_parts(ps: list[float], size: int, level: float) -> None:
    whole = np.array(ps)
    parts = [whole[i : i + size] for i in range(0, len(ps), size)]
    bound = benjamini_hochberg(lambda: parts, tests=len(ps), level=level)
    assert (whole <= bound).tolist() == brute_force(ps, level)
    strict = benjamini_yekutieli(lambda: parts, tests=len(ps), level=level)
    assert strict <= bound
    harmonic = sum(1 / k for k in range(1, len(ps) + 1))
    by = np.array(brute_force(ps, level / harmonic))
    assert not ((whole <= strict) & ~by).any()


def test_levels_are_checked() -> None:
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            benjamini_hochberg(list, tests=0, level=level)
    assert benjamini_yekutieli(list, tests=0, level=0.1) == -math.inf


def false_findings(*, keys: int, documents: int, seed: int) -> float:
    """Share of random keys under which any document of a repetitive corpus is a finding at 0.1: all nulls are true."""
    rng = np.random.default_rng(seed)
    stock = [rng.integers(20, 30_000, 30).astype(np.uint32) for _ in range(60)]
    # Documents share most of their sentences, and so their pairs.
    texts = [np.concatenate([stock[i] for i in rng.integers(0, 60, 12)]) for _ in range(documents)]
    pairs = [np.unique(np.stack([t[:-1], t[1:]], axis=1), axis=0) for t in texts]
    joined = np.concatenate(pairs)
    owner = np.repeat(np.arange(documents), [len(p) for p in pairs])
    windows, tokens = np.ascontiguousarray(joined[:, :1]), np.ascontiguousarray(joined[:, 1])
    sizes = np.bincount(owner)
    tails = [np.array([log10_tail(k, pairs=int(n), k=64) for k in range(int(n) + 1)]) for n in sizes]
    found = 0
    for _ in range(keys):
        scope = scope_of(key=int(rng.integers(1, 2**60)))
        lanes = kernels.lanes(windows)
        seeds = kernels.seeds(scope.lane_words(), windows, lanes)
        green = kernels.green(seeds, scope.params.bounds()[lanes], np.arange(len(tokens)), tokens)
        counts = np.bincount(owner, weights=green, minlength=documents).astype(int)
        log10_ps = np.array([tail[count] for tail, count in zip(tails, counts, strict=True)])
        found += benjamini_hochberg(lambda: [log10_ps], tests=documents, level=0.1) > -math.inf  # noqa: B023
    return found / keys


def test_false_findings_under_random_keys() -> None:
    """Where no document is marked, the rate of false findings is the chance of any."""
    assert false_findings(keys=500, documents=40, seed=1) <= 0.1 + 3.5 * math.sqrt(0.09 / 500)


@pytest.mark.slow
def test_false_findings_under_5000_keys() -> None:
    assert false_findings(keys=5000, documents=200, seed=2) <= 0.1 + 3.5 * math.sqrt(0.09 / 5000)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=6))
def test_duplicates_are_those_of_a_set(parts: list[list[int]]) -> None:
    duplicates, seen = Duplicates(), set()
    for part in parts:
        # 60 stands for a record with a problem. 0, which no SHA-256 is, marks an empty place.
        digests = [b"" if i == 60 else (i + 1).to_bytes(16, "little") for i in part]
        expected = []
        for digest in digests:
            expected.append(bool(digest) and digest in seen)
            seen.add(digest)
        assert duplicates.add(digests).tolist() == expected
    assert len(duplicates) == len(seen - {b""})


def test_duplicates_grow() -> None:
    rng = np.random.default_rng(0)
    duplicates = Duplicates()
    digests = [rng.bytes(16) for _ in range(20_000)]
    assert not duplicates.add(digests).any()
    assert duplicates.add(digests).all()


def test_pickled_portions(tmp_path: Path) -> None:
    table = pa.table({"response": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    (portion,) = Reader([tmp_path / "a.parquet"]).portions(10**6)
    assert [raw.row for raw in portion.records()] == [{"response": "a"}, {"response": "b"}]
