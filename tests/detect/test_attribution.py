"""Attribution: against brute force, under thousands of innocents, and at its stated level."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import builders
import numpy as np
import pytest
from bigrams import bigrams, said_by
from marked_texts import marked_texts

from detect import cohorts
from detect.attribution import CodeSums, attribute, code_sums
from detect.cohorts import detect_cohorts
from detect.family import SCORE
from detect.reference import Reference
from detect.tally import UNIT, tally_of
from detect.verdict import Verdict
from watermark import prf
from watermark.errors import UsageError
from watermark.keys import CODE_BITS

KEYS = builders.scope_of(window=2, account_lanes=16)
ACCOUNTS = [f"account-{i}" for i in range(2_000)]


def sums_of(texts: list[np.ndarray]) -> CodeSums:
    tally = tally_of(texts, window=2)
    return code_sums(tally, SCORE.weigh(tally, None), KEYS, tokens=sum(map(len, texts)))


def test_many_code_words_are_what_each_is() -> None:
    names = ["a", "b", "ü" * 40, "x" * 255]
    many = KEYS.packed_code_words(names)
    for name, word in zip(names, many, strict=True):
        assert (word == KEYS.packed_code_word(name)).all()
    with pytest.raises(UsageError, match="account"):
        KEYS.packed_code_words(["good", ""])


def test_sums_are_those_of_the_specification() -> None:
    (text,) = marked_texts(KEYS, ["account-3"], length=400, seed=1)
    found = sums_of([text])
    expected = np.zeros(CODE_BITS)
    for pair in {tuple(map(int, text[i : i + 3])) for i in range(len(text) - 2)}:
        window = np.array([pair[:2]], dtype=np.uint32)
        lane = int(prf.lane(window)[0])
        if lane >= 48:
            u = prf.uniform(KEYS.lane_key(lane).reveal(), window, np.array(pair[2:], dtype=np.uint32))[0]
            position = int(prf.siphash24(KEYS.code_key().reveal(), window)[0]) % CODE_BITS
            expected[position] += 0.5 if u < prf.green_below(128) else -0.5
    assert (found.twice / (2 * UNIT) == expected).all()
    signs = np.where(KEYS.code_word("account-3"), -1, 1)
    statistic = found.statistics(KEYS.packed_code_words(["account-3"]))[0]
    assert statistic == expected @ signs
    assert found.sd == pytest.approx(math.sqrt(expected @ expected))


def test_p_bounds_the_exact_tail_of_fair_signs() -> None:
    twice = np.zeros(CODE_BITS, dtype=np.int64)
    twice[[5, 70, 71, 900, 1000, 1001, 2000, 4000, 4095]] = np.array([1, -2, 3, 1, 1, -4, 2, 2, 1]) * UNIT
    sums = CodeSums(twice=twice, pairs=17, tokens=70)
    y = twice[twice != 0] / (2 * UNIT)
    tails = np.array([np.dot(signs, y) for signs in itertools.product((1, -1), repeat=len(y))])
    law = sums.law()
    for statistic in np.unique(tails):
        exact = math.log10((tails >= statistic - 1e-12).mean())
        assert law.log10_exact(statistic) == pytest.approx(exact, abs=1e-9)
        assert law.log10_chernoff(statistic) >= exact - 1e-9


def test_the_account_is_found_among_all_and_nobody_else() -> None:
    texts = marked_texts(KEYS, ["account-7", "account-1999", None], length=1_000, seed=2)
    corpus = builders.corpus_of(texts)
    first, second, third = attribute(corpus, KEYS, ACCOUNTS, each=True, level=1e-6)
    assert [each.account for each in first.found] == ["account-7"]
    assert [each.account for each in second.found] == ["account-1999"]
    assert (third.found, third.verdict) == ((), Verdict.NO_SIGN)
    (together,) = attribute(corpus, KEYS, ACCOUNTS, level=1e-6)
    assert {each.account for each in together.found} == {"account-7", "account-1999"}
    assert together.source == "3 documents"


def test_the_order_of_the_registry_changes_nothing() -> None:
    texts = marked_texts(KEYS, ["account-7"], length=600, seed=3)
    (one,) = attribute(builders.corpus_of(texts), KEYS, ACCOUNTS, level=1e-6, shown=3)
    (other,) = attribute(builders.corpus_of(texts), KEYS, ACCOUNTS[::-1], level=1e-6, shown=3)
    assert one.findings[0] == other.findings[0]
    assert [f.z for f in one.findings] == [f.z for f in other.findings]


def test_innocents_of_strongly_marked_text_look_like_fair_signs() -> None:
    """With the variance of unmarked text their z would have a standard deviation of several."""
    texts = marked_texts(KEYS, ["account-7"] * 60, length=1_200, vocabulary=2_000, seed=4)
    sums = sums_of(texts)
    innocents = [f"innocent-{i}" for i in range(6_000)]
    z = sums.statistics(KEYS.packed_code_words(innocents)) / sums.sd
    assert sums.sd / math.sqrt(sums.pairs / 4) > 1.5
    assert abs(z.std() - 1) < 0.035
    assert abs(z.mean()) < 0.06
    assert z.max() < 5.2


def test_wrong_attributions_come_at_the_stated_rate_or_below() -> None:
    """400 texts marked for accounts that are not registered, 50 accounts each, under keys of their own."""
    wrong = 0
    for seed in range(20):
        keys = builders.scope_of(key=100 + seed, window=1, account_lanes=16)
        texts = marked_texts(keys, [f"stranger-{i}" for i in range(20)], length=300, vocabulary=300, seed=seed)
        for text in texts:
            (found,) = attribute(builders.corpus_of([text]), keys, ACCOUNTS[:50], level=0.1)
            wrong += bool(found.found)
    assert wrong <= 55  # 40 expected at most, and three standard deviations.


@pytest.mark.slow
def test_wrong_attributions_over_ten_thousand_trials() -> None:
    wrong = 0
    for seed in range(100):
        keys = builders.scope_of(key=1_000 + seed, window=1, account_lanes=16)
        texts = marked_texts(keys, [f"stranger-{i}" for i in range(100)], length=300, vocabulary=300, seed=seed)
        for found in (attribute(builders.corpus_of([text]), keys, ACCOUNTS[:200], level=0.01)[0] for text in texts):
            wrong += bool(found.found)
    assert wrong <= 130  # 100 expected at most, and three standard deviations.


def test_a_text_too_short_is_refused_with_what_it_would_take() -> None:
    (text,) = marked_texts(KEYS, ["account-7"], length=60, seed=5)
    (found,) = attribute(builders.corpus_of([text]), KEYS, ACCOUNTS, level=1e-6)
    assert found.verdict is Verdict.TOO_SHORT
    assert found.positions_needed == math.ceil((math.log10(2_000) + 6) / math.log10(2))
    assert found.tokens_needed is not None
    assert found.tokens_needed > 60


def test_a_scope_without_account_lanes_is_refused() -> None:
    with pytest.raises(UsageError, match="no account lanes"):
        attribute(builders.corpus_of([np.arange(50, dtype=np.uint32)]), builders.scope_of(), ["a"], level=0.01)


# Cohorts: a student is here a model of the accounts' bigrams, its reference one of unmarked text.

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


def model_of(n: int, *, share: float, fed: int) -> tuple[cohorts._Model, np.ndarray]:
    random = np.random.default_rng(n)
    model = cohorts._Model(b=random.uniform(1, 4, n), d=random.uniform(0.5, 3, n), share=share, fed=fed)
    return model, random.normal(size=n) * 3


def test_what_the_others_leave_is_the_inverse_of_the_covariance() -> None:
    model, y = model_of(40, share=0.25, fed=4)
    means = 1.0 - 2 * np.random.default_rng(1).integers(0, 2, (9, 40))
    x = means[1:] * model.b
    covariance = np.diag(model.noise(y)) + 0.25**2 * 4 / 8 * x.T @ x
    direct = 0.25 * model.b * np.linalg.solve(covariance, y)
    assert cohorts._Others(model, y, means).theta(np.arange(1, 9)) == pytest.approx(direct, rel=1e-9)


def test_a_cluster_s_own_words_do_not_enter_what_it_is_tested_on() -> None:
    model, y = model_of(40, share=0.25, fed=4)
    random = np.random.default_rng(2)
    means = 1.0 - 2 * random.integers(0, 2, (9, 40))
    other = means.copy()
    other[3] = 1.0 - 2 * random.integers(0, 2, 40)
    rows = np.delete(np.arange(9), 3)
    thetas = [cohorts._Others(model, y, each).theta(rows) for each in (means, other)]
    assert (thetas[0] == thetas[1]).all()


def test_the_mean_of_e_over_all_words_is_at_most_one() -> None:
    """One account and two, whatever the others' words and the text are; p bounds the tail of each."""
    n = 7
    model, y = model_of(n, share=0.5, fed=2)
    means = 1.0 - 2 * np.random.default_rng(3).integers(0, 2, (3, n))
    theta = cohorts._Others(model, y * 5, means).theta(np.arange(1, 3))
    words = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    for accounts, totals in ((1, words @ theta), (2, ((words[:, None] + words[None]) @ theta / 2).ravel())):
        results = np.array([cohorts._result(total, theta, accounts) for total in totals.tolist()])
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
        theta = cohorts._Others(model, y, means[others]).theta(np.arange(3))
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
    alone = {name: [name] for name in ACCOUNTS}
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
