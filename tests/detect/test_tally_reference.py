"""Tallies made with a reference: they add up like others, and are scored as `detect model` scores the texts."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import scope_of
from tilted_rows import tilted_rows

from detect.centred import CENTRED
from detect.corpus import read_corpus
from detect.distillation import detect_model, make_tests
from detect.family import DEFAULT
from detect.mark import GreenListMark
from detect.ngram_reference import ngram_reference
from detect.portions import Sifter
from detect.records import Reader
from detect.reference import Reference
from detect.reference_reader import GrowingReference, ModelReader, NgramReader, ReferenceReader
from detect.tally_build import Build, build_tally
from detect.tally_file import merge_tallies, read_tally, write_tally
from detect.tally_score import score_tally
from detect.weighted_test import weighted_test
from watermark.errors import InputError, ReferenceMismatchError, UsageError
from watermark.keyring import Keyring
from watermark.keys import Params, ScopeKeys, Secret
from watermark.tokenizer import Tokenizer, load

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load("smollm2")


@pytest.fixture(scope="module")
def keys() -> ScopeKeys:
    return Keyring.load(EXAMPLES / "keyring.json").scope()


@pytest.fixture(scope="module")
def sifter(smollm2: Tokenizer, keys: ScopeKeys) -> Sifter:
    return Sifter(smollm2, window=1, special_ids=keys.params.special_ids)


@pytest.fixture(scope="module")
def reader(smollm2: Tokenizer, sifter: Sifter) -> NgramReader:
    source = str(EXAMPLES / "clean-twin.jsonl")
    clean = read_corpus(Reader([source]), smollm2, window=1)
    return NgramReader(clean=tuple(clean.responses), tokenizer=smollm2, window=1, source=source)


class Stored(ReferenceReader):
    """A reference's probabilities by text: what a model would say, without one."""

    def __init__(self, reference: Reference, responses: list[np.ndarray]) -> None:
        self._parts = {ids.tobytes(): (reference.starts[i], reference.starts[i + 1]) for i, ids in enumerate(responses)}
        self._reference = reference

    @property
    def name(self) -> str:
        return "stored"

    def read(self, responses: object, prompts: object) -> Reference:
        assert isinstance(responses, list)
        rows = np.concatenate([np.arange(*self._parts[ids.tobytes()]) for ids in responses])
        whole = self._reference
        return replace(
            whole,
            name="stored",
            ids=whole.ids[rows],
            starts=np.concatenate([[0], np.cumsum([len(ids) for ids in responses])]).astype(np.int64),
            top_ids=whole.top_ids[rows],
            top_p=whole.top_p[rows],
            said_p=whole.said_p[rows],
        )


def shuffled(tmp_path: Path, seed: int) -> Path:
    lines = (EXAMPLES / "student.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(seed).shuffle(lines)
    path = tmp_path / f"shuffled-{seed}.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["n-gram", "stored"])
def test_it_is_scored_as_detect_model_scores_the_texts(
    tmp_path: Path, smollm2: Tokenizer, keys: ScopeKeys, sifter: Sifter, reader: NgramReader, kind: str
) -> None:
    """To the last digit, with echoes and prompts left out, decoys and the check of the reference."""
    corpus = read_corpus(Reader([EXAMPLES / "student.jsonl"]), smollm2, window=1)
    if kind == "stored":
        reference = Reference.load(EXAMPLES / "student-reference.npz")
        used: ReferenceReader = Stored(reference, corpus.responses)
    else:
        reference = ngram_reference(
            corpus.responses,
            reader.clean,
            tokenizer=smollm2.digest(),
            name="n-grams",
            vocabulary_size=smollm2.vocabulary_size,
        )
        used = reader
    wanted = detect_model(corpus, [keys], reference=reference, decoys=50)[0]
    build = Build(reference=used, portion=20_000)
    tally = build_tally([shuffled(tmp_path, 1)], sifter, out=tmp_path / "a.tally", build=build)
    assert tally.about.reference == used.name
    found = score_tally(read_tally(tmp_path / "a.tally")[0], [GreenListMark(keys)], decoys=50)[0]
    assert found.weighted == wanted.weighted
    assert found.pooled == wanted.unweighted
    assert (found.log10_p, found.min_p_rank, found.main_test) == (wanted.log10_p, wanted.min_p_rank, wanted.main_test)
    assert found.effect == wanted.effect
    assert found.reference_check == wanted.reference_check
    assert found.concentration == wanted.concentration
    assert found.log10_p < (-40 if kind == "stored" else -10)


def test_order_portions_and_workers_leave_no_trace(tmp_path: Path, sifter: Sifter, reader: NgramReader) -> None:
    made = []
    for number, (seed, portion, workers) in enumerate([(1, 5_000, 1), (2, 40_000, 1), (1, 9_000, 2)]):
        out = tmp_path / f"{number}.tally"
        build = Build(reference=reader, portion=portion, workers=workers)
        tally = build_tally([shuffled(tmp_path, seed)], sifter, out=out, build=build)
        made.append(tally.to_json()["rows_sha256"])
    assert len(set(made)) == 1


def test_parts_are_merged_where_the_reference_is_the_same(
    tmp_path: Path, sifter: Sifter, reader: NgramReader, keys: ScopeKeys
) -> None:
    lines = (EXAMPLES / "student.jsonl").read_text(encoding="utf-8").splitlines()
    parts = []
    for number in range(2):
        source = tmp_path / f"part-{number}.jsonl"
        source.write_text("".join(line + "\n" for line in lines[number::2]), encoding="utf-8")
        parts.append(tmp_path / f"{number}.tally")
        build_tally([source], sifter, out=parts[-1], build=Build(reference=reader))
    merged = merge_tallies(parts)
    whole = build_tally([shuffled(tmp_path, 1)], sifter, out=tmp_path / "w.tally", build=Build(reference=reader))
    assert merged.to_json()["rows_sha256"] == whole.to_json()["rows_sha256"]
    write_tally(tmp_path / "m.tally", merged)
    assert read_tally(tmp_path / "m.tally")[0].about == merged.about
    other = replace(reader, clean=reader.clean[:-1])
    assert other.name != reader.name
    build_tally([tmp_path / "part-1.jsonl"], sifter, out=tmp_path / "o.tally", build=Build(reference=other))
    build_tally([tmp_path / "part-1.jsonl"], sifter, out=tmp_path / "p.tally", build=Build())
    for differing in ("o.tally", "p.tally"):
        with pytest.raises(UsageError, match="differ in reference"):
            merge_tallies([parts[0], tmp_path / differing])


def test_a_reference_that_depends_on_the_key_is_refused(
    tmp_path: Path, smollm2: Tokenizer, sifter: Sifter, keys: ScopeKeys
) -> None:
    marked = read_corpus(Reader([EXAMPLES / "teacher.jsonl"]), smollm2, window=1)
    reader = NgramReader(clean=tuple(marked.responses), tokenizer=smollm2, window=1, source="teacher.jsonl")
    build_tally([EXAMPLES / "student.jsonl"], sifter, out=tmp_path / "a.tally", build=Build(reference=reader))
    tally, _ = read_tally(tmp_path / "a.tally")
    with pytest.raises(ReferenceMismatchError, match="depends on the key"):
        score_tally(tally, [GreenListMark(keys)])
    named = replace(reader, marked_under=frozenset({keys.fingerprint}), clean=reader.clean[:1])
    build_tally([EXAMPLES / "student.jsonl"], sifter, out=tmp_path / "b.tally", build=Build(reference=named))
    with pytest.raises(ReferenceMismatchError, match="marked under the parameters"):
        score_tally(read_tally(tmp_path / "b.tally")[0], [GreenListMark(keys)])


def test_masses_of_a_stranger_s_tally_are_checked(tmp_path: Path, sifter: Sifter, reader: NgramReader) -> None:
    tally = build_tally([EXAMPLES / "student.jsonl"], sifter, out=tmp_path / "a.tally", build=Build(reference=reader))
    for column, by in ((0, -(2**40)), (1, 2**40)):
        expected = tally.rows.expected.copy()
        expected[3, column] += by
        write_tally(tmp_path / "b.tally", replace(tally, rows=replace(tally.rows, expected=expected)))
        with pytest.raises(InputError, match="mass"):
            read_tally(tmp_path / "b.tally")


def test_a_reference_grows_with_what_is_collected(smollm2: Tokenizer, reader: NgramReader) -> None:
    corpus = read_corpus(Reader([EXAMPLES / "student.jsonl"]), smollm2, window=1)
    growing = GrowingReference(reader, smollm2)
    for texts in (3, 9, 5):
        part = corpus.first(texts)
        found, whole = growing(part), reader.read(part.responses, part.prompt_texts)
        for name in ("ids", "starts", "top_ids", "top_p", "said_p"):
            assert (getattr(found, name) == getattr(whole, name)).all()


@pytest.mark.models
def test_a_model_reads_each_text_by_itself(tmp_path: Path, smollm2: Tokenizer, sifter: Sifter) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    lines = (EXAMPLES / "student.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    reader = ModelReader("smollm2", smollm2)
    other = ModelReader("smollm2", smollm2)
    assert other.name == reader.name == f"smollm2 ({reader.name[9:25]}), top 32"
    # Other weights under the same name are another reference.
    other = ModelReader("smollm2", smollm2)
    other._model.model.lm_head.weight.data[0, 0] += 1
    assert other.name != reader.name
    digests = set()
    for order, portion in ((1, 10**6), (-1, 800)):
        source = tmp_path / f"{order}.jsonl"
        source.write_text("".join(line + "\n" for line in lines[::order]), encoding="utf-8")
        build = Build(reference=reader, portion=portion)
        digests.add(build_tally([source], sifter, out=tmp_path / f"{order}.tally", build=build).digest())
    assert len(digests) == 1


def null_of(tmp_path: Path, smollm2: Tokenizer, *, keys: int, capacity: int) -> tuple[np.ndarray, int]:
    """Return log10 p of the count, of both weighted tests and of them together under keys that marked nothing."""
    texts = [json.loads(line) for line in (EXAMPLES / "clean-twin.jsonl").read_text(encoding="utf-8").splitlines()]
    source, clean = tmp_path / "twice.jsonl", tmp_path / "clean.jsonl"
    # Repetitive: every answer once more with the beginning of the next.
    both = [*texts, *({**a, "token_ids": a["token_ids"] + b["token_ids"][:40]} for a, b in pairwise(texts))]
    source.write_text("".join(json.dumps({**each, "response": None}) + "\n" for each in both), encoding="utf-8")
    clean.write_text((EXAMPLES / "student.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    sifter = Sifter(smollm2, window=1, special_ids=smollm2.special_ids)
    reader = NgramReader(
        clean=tuple(read_corpus(Reader([clean]), smollm2, window=1).responses),
        tokenizer=smollm2,
        window=1,
        source="student.jsonl",
    )
    tally = build_tally([source], sifter, out=tmp_path / "n.tally", build=Build(reference=reader, capacity=capacity))
    rows = tally.rows.to_tally(left_out_prompt=0)
    found = []
    for number in range(keys):
        params = Params(tokenizer=smollm2.digest(), special_ids=smollm2.special_ids, window=1)
        secret = Secret(np.random.default_rng([7, number]).bytes(32))
        mark = GreenListMark(ScopeKeys(name="null", params=params, delta=2.0, key=secret))
        tests = make_tests(rows, mark, decoys=0)
        found.append([tests.unweighted.log10_p, *(test.log10_p for test in tests.weighted), tests.log10_p])
    return np.array(found), tally.rows.level


@pytest.mark.parametrize("keys", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_sixteenth_of_the_windows_under_keys_that_marked_nothing(
    tmp_path: Path, smollm2: Tokenizer, keys: int
) -> None:
    """Chernoff's bound is conservative: the rates are at or below nominal within binomial error."""
    log10_ps, level = null_of(tmp_path, smollm2, keys=keys, capacity=1_500)
    assert level == 4
    assert log10_ps.shape == (keys, 4)
    for log10_p in log10_ps.T:
        for exponent in (1, 2, 3):
            nominal = 10.0**-exponent
            most = keys * nominal + 4 * (keys * nominal) ** 0.5 + 1
            assert (log10_p <= -exponent).sum() <= most


def test_z_falls_as_the_root_of_the_share(tmp_path: Path, smollm2: Tokenizer) -> None:
    """Of a student's marked text at 1, 1/4 and 1/16 of the windows, over keys; the mean ratio within its error."""
    ratios = []
    for seed in range(8):
        scope = scope_of(key=seed, window=1, delta=2.0)
        rows = tilted_rows(scope, seed=seed)
        mark = GreenListMark(scope)
        zs = []
        for level in (0, 2, 4):
            tally = rows.cut(level).to_tally(left_out_prompt=0)
            tested = mark.tested(tally)
            zs.append(
                [
                    weighted_test(
                        weighting.weigh(tally).within(tested),
                        mark=mark,
                        tally=tally,
                        scores=mark.scores(tally),
                    ).z
                    for weighting in (CENTRED, *DEFAULT[:1])
                ]
            )
        ratios.append([[zs[i][test] / zs[0][test] for test in range(2)] for i in (1, 2)])
    mean, sd = np.mean(ratios, axis=0), np.std(ratios, axis=0) / np.sqrt(len(ratios))
    for i, root in enumerate((0.5, 0.25)):
        assert (np.abs(mean[i] - root) < 4 * sd[i] + 0.02).all(), (mean, sd)
