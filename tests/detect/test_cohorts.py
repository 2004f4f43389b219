"""Cohorts: exact e-values against enumeration, under innocent clusters, and the power that is stated.

A student is here a model of the accounts' bigrams, its reference one of unmarked text.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
from bigrams import bigrams, said_by
from marked_texts import marked_texts

from detect import cohort_model, cohorts
from detect.attribution import code_sums
from detect.centred import SELF_NORMALISED
from detect.cohorts import detect_cohorts
from detect.corpus import read_corpus
from detect.records import Reader
from detect.reference import Reference
from detect.tally import UNIT, tally_of
from watermark.errors import UsageError
from watermark.keys import CODE_BITS
from watermark.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"

CLUSTER_KEYS = builders.scope_of(key=5, window=1, account_lanes=16, delta=3.0)
V = 400


@pytest.fixture(scope="module")
def student() -> tuple[np.ndarray, Reference]:
    """A student of cluster a's 4 accounts and of strangers, 40% to 60%."""
    marked = marked_texts(CLUSTER_KEYS, [f"a{i % 4}" for i in range(80)], length=1_500, vocabulary=V, seed=1)
    strangers = marked_texts(CLUSTER_KEYS, [f"stranger{i}" for i in range(120)], length=1_500, vocabulary=V, seed=2)
    clean = marked_texts(builders.scope_of(delta=0.0), [None] * 100, length=1_500, vocabulary=V, seed=3)
    return said_by(bigrams(marked + strangers, V), bigrams(clean, V), length=60_000, seed=4)


def clusters(count: int, size: int) -> dict[str, list[str]]:
    return {"a": [f"a{i}" for i in range(size)]} | {
        f"b{c}": [f"b{c}-{i}" for i in range(size)] for c in range(count - 1)
    }


def test_the_cluster_that_fed_the_student_is_found(student: tuple[np.ndarray, Reference]) -> None:
    text, reference = student
    result = detect_cohorts(
        builders.corpus_of([text]), CLUSTER_KEYS, clusters(8, 4), reference=reference, level=1e-3, share=0.4
    )
    assert result.findings[0].cluster == "a"
    assert [each.cluster for each in result.findings if each.found] == ["a"]
    assert result.findings[0].log10_p <= -result.findings[0].log10_e + 1e-9
    assert result.power.fed == 2
    assert 0.3 < result.power.found <= result.power.found_at_most <= 1


def test_innocent_clusters_beside_one_that_fed_have_e_values_of_mean_at_most_one(
    student: tuple[np.ndarray, Reference],
) -> None:
    text, reference = student
    many = {f"c{c}": [f"c{c}-{i}" for i in range(2)] for c in range(1_500)}
    named = {"a": [f"a{i}" for i in range(4)]} | many
    result = detect_cohorts(builders.corpus_of([text]), CLUSTER_KEYS, named, reference=reference, level=0.05, share=0.4)
    innocent = [each for each in result.findings if each.cluster != "a"]
    es = 10 ** np.array([each.log10_e for each in innocent])
    zs = np.array([each.z for each in innocent])
    ps = np.array([each.log10_p for each in innocent])
    assert es.mean() < 1.5
    assert abs(zs.mean()) < 0.1
    assert abs(zs.std() - 1) < 0.08
    assert (ps <= -2).mean() <= 0.01 + 3 * math.sqrt(0.01 / 1_500)
    assert {each.cluster for each in result.findings if each.found} <= {"a"}
    assert result.findings[0].cluster == "a"


def test_as_many_are_found_as_the_power_says() -> None:
    """Half of 8 clusters fed a student, under 12 keys; a short text, so that neither none nor all are found.

    Marks as strong as these make the noise look larger than it is: what is stated is rather too little.
    """
    clean = bigrams(marked_texts(builders.scope_of(delta=0.0), [None] * 80, length=1_000, vocabulary=V, seed=3), V)
    stated, found = [], []
    for key in range(12):
        scope = builders.scope_of(key=700 + key, window=1, account_lanes=16, delta=3.0)
        marked = marked_texts(scope, [f"a{i % 4}" for i in range(80)], length=1_000, vocabulary=V, seed=key)
        text, reference = said_by(bigrams(marked, V), clean, length=1_500, seed=key)
        named = {name: [name] for name in [f"a{i}" for i in range(4)] + [f"b{i}" for i in range(4)]}
        result = detect_cohorts(builders.corpus_of([text]), scope, named, reference=reference, level=0.01, share=0.25)
        stated.append(result.power.found)
        found.append(sum(each.found and each.cluster[0] == "a" for each in result.findings) / 4)
    assert 0.1 < np.mean(stated) < 0.6
    assert -0.12 < np.mean(found) - np.mean(stated) < 0.3


@pytest.mark.parametrize("keys", [200, pytest.param(3_000, marks=pytest.mark.slow)])
def test_innocents_of_real_text_under_many_keys(smollm2: Tokenizer, keys: int) -> None:
    """The demo's student, whom none of these keys marked: 40 clusters a key, of one account or three."""
    corpus = read_corpus(Reader([EXAMPLES / "student.jsonl"]), smollm2, window=1)
    tally = tally_of(corpus.responses, window=1, reference=Reference.load(EXAMPLES / "student-reference.npz"))
    weights = SELF_NORMALISED.weigh(tally)
    log10_es, log10_ps, zs = [], [], []
    for key in range(keys):
        scope = builders.scope_of(key=10_000 + key, window=1, account_lanes=16)
        learned = cohort_model.Learned.of(tally, weights, scope)
        y = code_sums(tally, weights, scope, tokens=corpus.tokens).twice[learned.at] / (2 * UNIT)
        model = cohort_model.StudentModel.of(learned, (0.05, 0.3, 1.0)[key % 3], share=0.25, clusters=40)
        members = {f"c{c}": [f"c{c}-{i}" for i in range(1 + c % 2 * 2)] for c in range(40)}
        found = cohorts._tests(model, y, scope, members, learned.at, lambda done: None)
        zs += [z for z, _, _ in found]
        log10_es += [log10_e for _, log10_e, _ in found]
        log10_ps += [log10_p for _, _, log10_p in found]
    es = 10 ** np.array(log10_es)
    assert es.mean() <= 1 + 4 * es.std() / math.sqrt(len(es))
    assert abs(np.std(zs) - 1) < 4 / math.sqrt(2 * len(zs)) + 0.01
    for level in (0.1, 0.01, 0.001):
        assert (np.array(log10_ps) <= math.log10(level)).mean() <= level
        assert (es >= 1 / level).mean() <= level


def model_of(n: int, *, share: float, fed: int) -> tuple[cohort_model.StudentModel, np.ndarray]:
    random = np.random.default_rng(n)
    model = cohort_model.StudentModel(b=random.uniform(1, 4, n), d=random.uniform(0.5, 3, n), share=share, fed=fed)
    return model, random.normal(size=n) * 3


def test_what_the_others_leave_is_the_inverse_of_the_covariance() -> None:
    model, y = model_of(40, share=0.25, fed=4)
    means = 1.0 - 2 * np.random.default_rng(1).integers(0, 2, (9, 40))
    x = means[1:] * model.b
    covariance = np.diag(model.noise(y)) + 0.25**2 * 4 / 8 * x.T @ x
    direct = 0.25 * model.b * np.linalg.solve(covariance, y)
    assert cohort_model.Others(model, y, means).theta(np.arange(1, 9)) == pytest.approx(direct, rel=1e-9)


def test_a_cluster_s_own_words_do_not_enter_what_it_is_tested_on() -> None:
    model, y = model_of(40, share=0.25, fed=4)
    random = np.random.default_rng(2)
    means = 1.0 - 2 * random.integers(0, 2, (9, 40))
    other = means.copy()
    other[3] = 1.0 - 2 * random.integers(0, 2, 40)
    rows = np.delete(np.arange(9), 3)
    thetas = [cohort_model.Others(model, y, each).theta(rows) for each in (means, other)]
    assert (thetas[0] == thetas[1]).all()


def test_the_mean_of_e_over_all_words_is_at_most_one() -> None:
    """One account and two, whatever the others' words and the text are; p bounds the tail of each."""
    n = 7
    model, y = model_of(n, share=0.5, fed=2)
    means = 1.0 - 2 * np.random.default_rng(3).integers(0, 2, (3, n))
    theta = cohort_model.Others(model, y * 5, means).theta(np.arange(1, 3))
    words = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    for accounts, totals in ((1, words @ theta), (2, ((words[:, None] + words[None]) @ theta / 2).ravel())):
        results = np.array([cohort_model.evidence_of(total, theta, accounts) for total in totals.tolist()])
        assert 0.9 < (10 ** results[:, 1]).mean() <= 1
        assert results[:, 0].std() == pytest.approx(1)
        for total, log10_p in zip(totals, results[:, 2], strict=True):
            assert 10**log10_p >= (totals >= total - 1e-12).mean() - 1e-12


def test_of_many_clusters_the_best_others_are_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cluster's z is what it is with the three others that fit best, whatever it says itself."""
    monkeypatch.setattr(cohorts, "OTHERS", 3)
    monkeypatch.setattr(cohorts, "_CHUNK", 5)
    at = np.sort(np.random.default_rng(4).choice(CODE_BITS, 60, replace=False))
    model, y = model_of(60, share=0.5, fed=2)
    members = {f"c{c}": [f"c{c}-{i}" for i in range(1 + c % 3 + 7 * (c == 4))] for c in range(12)}
    found = cohorts._tests(model, y, CLUSTER_KEYS, members, at, lambda done: None)
    means = np.array(
        [
            np.mean([np.where(CLUSTER_KEYS.code_word(name), -1.0, 1.0)[at] for name in names], axis=0)
            for names in members.values()
        ]
    )
    fit = means @ (model.b / model.noise(y) * y) * np.sqrt([len(names) for names in members.values()])
    for c, (z, _, _) in enumerate(found):
        others = [i for i in np.argsort(-fit).tolist() if i != c][:3]
        theta = cohort_model.Others(model, y, means[others]).theta(np.arange(3))
        size = len(members[f"c{c}"])
        assert z == pytest.approx(float(means[c] @ theta) / np.linalg.norm(theta) * math.sqrt(size), rel=1e-9)


def test_clusters_that_fed_nobody_have_e_values_of_mean_at_most_one(student: tuple[np.ndarray, Reference]) -> None:
    text, reference = student
    many = {f"c{c}": [f"c{c}-{i}" for i in range(2)] for c in range(1_500)}
    result = detect_cohorts(builders.corpus_of([text]), CLUSTER_KEYS, many, reference=reference, level=0.05, share=1.0)
    es = 10 ** np.array([each.log10_e for each in result.findings])
    zs = np.array([each.z for each in result.findings])
    ps = np.array([each.log10_p for each in result.findings])
    assert es.mean() < 1.5
    assert abs(zs.std() - 1) < 0.08
    assert (ps <= -2).mean() <= 0.01 + 3 * math.sqrt(0.01 / 1_500)
    assert not any(each.found for each in result.findings)


def test_a_question_that_cannot_be_answered_is_refused(student: tuple[np.ndarray, Reference]) -> None:
    text, reference = student
    alone = {f"account-{i}": [f"account-{i}"] for i in range(2_000)}
    with pytest.raises(UsageError, match="no number of tokens like these would do"):
        detect_cohorts(builders.corpus_of([text]), CLUSTER_KEYS, alone, reference=reference, level=1e-6)


def test_a_refusal_names_the_tokens_it_would_take(student: tuple[np.ndarray, Reference]) -> None:
    text, whole = student
    short = replace(
        whole,
        ids=text[:1_000],
        starts=np.array([0, 1_000]),
        top_ids=whole.top_ids[:1_000],
        top_p=whole.top_p[:1_000],
        said_p=whole.said_p[:1_000],
    )
    with pytest.raises(UsageError, match=r"It would take some [0-9]+,000 tokens like these 1,000, fewer"):
        detect_cohorts(builders.corpus_of([text[:1_000]]), CLUSTER_KEYS, clusters(8, 1), reference=short, level=1e-3)
