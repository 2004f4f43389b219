"""Attribution: against brute force, under thousands of innocents, and at its stated level."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import builders
import numpy as np
import pytest
from marked_texts import marked_texts

from detect.account_pairs import AccountPairs, _left
from detect.attribution import (
    AccountFinding,
    Attribution,
    CodeSums,
    _Chains,
    _Text,
    _texts,
    _tried,
    attribute,
    code_sums,
)
from detect.family import SCORE
from detect.tally import UNIT, PromptPolicy, tally_of
from detect.verdict import Verdict
from watermark import prf
from watermark.errors import UsageError
from watermark.keys import CODE_BITS, ScopeKeys

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
@pytest.mark.parametrize("guilty", [0, 1, 2, 3])
def test_wrong_attributions_over_ten_thousand_trials(guilty: int) -> None:
    """Texts of none, one, two or three registered accounts' answers, and of strangers': who else is named?"""
    assert trials(guilty, keys=100, texts=100, accounts=200, level=0.01) <= 130  # 100 expected at most, and three sd.


@pytest.mark.parametrize("guilty", [1, 2, 3])
def test_innocents_beside_those_set_aside_are_named_at_the_stated_rate_or_below(guilty: int) -> None:
    assert trials(guilty, keys=6, texts=25, accounts=50, level=0.1) <= 26  # 15 expected at most, and three sd.


def trials(guilty: int, *, keys: int, texts: int, accounts: int, level: float) -> int:
    """Return in how many of keys * texts an account is named that had no part in the text."""
    wrong = aside = 0
    for seed in range(keys):
        scope = builders.scope_of(key=1_000 + seed, window=1, account_lanes=16)
        strange = marked_texts(scope, [f"stranger-{i}" for i in range(texts)], length=300, vocabulary=300, seed=seed)
        said = [ACCOUNTS[k] for k in range(guilty) for _ in range(texts)]
        made = marked_texts(scope, said, length=600, vocabulary=300, seed=500 + seed) if guilty else []
        for text in range(texts):
            whole = np.concatenate([strange[text], *made[text::texts]])
            (found,) = attribute(builders.corpus_of([whole]), scope, ACCOUNTS[:accounts], level=level)
            wrong += not {each.account for each in found.found} <= {*ACCOUNTS[:guilty]}
            aside += len(found.findings[-1].beside)
    assert aside >= 0.3 * guilty * keys * texts  # The chains are what is tried here.
    return wrong


def test_a_text_too_short_is_refused_with_what_it_would_take() -> None:
    (text,) = marked_texts(KEYS, ["account-7"], length=60, seed=5)
    (found,) = attribute(builders.corpus_of([text]), KEYS, ACCOUNTS, level=1e-6)
    assert found.verdict is Verdict.TOO_SHORT
    assert found.positions_needed == math.ceil((math.log10(2_000) + 6) / math.log10(2))
    assert found.tokens_needed is not None
    assert found.tokens_needed > 60


# Others set aside.


def text_of(responses: list[np.ndarray], keys: ScopeKeys = KEYS) -> _Text:
    (text,) = _texts(builders.corpus_of(responses), keys, each=False, policy=PromptPolicy.OWN)
    return text


def chains_of(text: _Text, names: list[str], words: np.ndarray, *, accounts: int | None = None) -> _Chains:
    return _Chains(text, names, text.sums.statistics(words), lambda: words, accounts=accounts or len(names))


def test_what_is_left_is_the_chance_of_the_rest_over_all_paths() -> None:
    random = np.random.default_rng(1)
    at, begins = np.array([0, 3, 4, 9, 30, 31, 35]), np.array([0, 5, 7])
    agrees, parts = random.random((7, 2)) < 0.5, np.array([1, 0.5, 1, 1, 1 / 3, 1, 0.5])
    left, likelihoods = _left(agrees, at, parts, begins, 0.8, 1 / 16)
    for r, (first, end) in enumerate(itertools.pairwise(begins)):
        total, rest = 0.0, np.zeros(end - first)
        for path in itertools.product(range(3), repeat=end - first):
            chance = 1.0
            for step, kind in enumerate(path):
                i = first + step
                stay = (15 / 16) ** (at[i] - at[i - 1]) if step else 0.0
                chance *= (1 - stay) / 3 + stay * (step > 0 and path[step - 1] == kind)
                if kind:
                    chance *= (1.6 if agrees[i, kind - 1] else 0.4) ** parts[i]
            total += chance
            rest += chance * (np.array(path) == 0)
        assert likelihoods[r] == pytest.approx(math.log(total))
        assert left[first:end] == pytest.approx(rest / total)


def test_two_and_three_accounts_of_one_text_are_found_where_they_would_not_be_beside_one_another() -> None:
    names = ["account-7", "account-70", "account-700"]
    a, b, c = marked_texts(KEYS, names, length=1_000, seed=6)
    half = builders.corpus_of([np.concatenate([a[:600], b[:600]])])
    thirds = builders.corpus_of([np.concatenate([a[:600], b[:600], c[:600]])])
    (two,), (three,) = attribute(half, KEYS, ACCOUNTS, level=1e-6), attribute(thirds, KEYS, ACCOUNTS, level=1e-6)
    assert {each.account for each in two.found} == {*names[:2]}
    assert {each.account: set(each.beside) for each in two.found} == {names[0]: {names[1]}, names[1]: {names[0]}}
    assert {each.account for each in three.found} == {*names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detect.attribution._LONGEST", 0)
        assert len(attribute(half, KEYS, ACCOUNTS, level=1e-6)[0].found) < 2
        assert len(attribute(thirds, KEYS, ACCOUNTS, level=1e-6)[0].found) < 3


def test_the_chain_without_an_account_is_what_it_would_be_had_it_never_been_registered() -> None:
    names = ACCOUNTS[:40]
    parts = marked_texts(KEYS, names[:3], length=700, seed=7)
    for text in (
        text_of([np.concatenate(parts)]),
        text_of([part[i : i + 90] for i in range(0, 700, 90) for part in parts]),
    ):
        words = KEYS.packed_code_words(names)
        chains = chains_of(text, names, words)
        common = chains.without(None)
        assert len(common) >= 3
        for j in range(len(names)):
            fewer = [name for name in names if name != names[j]]
            absent = chains_of(text, fewer, np.delete(words, j, axis=0), accounts=len(names))
            chain = absent.without(None)
            used = chains.without(j) if j in common else common
            assert [fewer[i] for i in chain] == [names[i] for i in used]
            assert (absent.left(chain).sums.twice == chains.left(used).sums.twice).all()


def test_ties_go_to_the_smaller_id_with_and_without_another() -> None:
    (part,) = marked_texts(KEYS, ["account-7"], length=700, seed=8)
    text = text_of([part])
    word = KEYS.packed_code_words(["account-7", "account-9"])
    twins = word[[0, 0, 1, 0]]  # No two ids have one word; were it so, the order would still be theirs.
    for names in (["b", "c", "z", "a"], ["a", "b", "z", "c"]):
        chains = chains_of(text, names, twins)
        assert names[chains.without(None)[0]] == "a"
        assert names[chains.without(names.index("a"))[0]] == "b"


def test_p_is_exact_over_every_code_word_of_an_account_given_all_else() -> None:
    """All 2^n words, by the bits that speak: where some lead to chains with the account in them, and some do not."""
    random = np.random.default_rng(9)
    chained = 0
    for _ in range(4):
        speaking, sayings = 8, 40
        position = np.sort(random.choice(CODE_BITS, speaking, replace=False)).astype(np.int64)
        said = random.integers(0, 14, sayings)
        said = np.unique(said, return_inverse=True)[1].astype(np.int64)
        n = int(said.max()) + 1
        others = random.integers(0, 256, (2, 512), dtype=np.uint8)
        of = np.concatenate([np.arange(speaking), random.integers(0, speaking, max(0, n - speaking))])[:n]
        where = position[of]
        # The text agrees with the first of the others in its first half, and with the second in the other.
        bits = np.unpackbits(others, axis=1, bitorder="little")[np.where(np.arange(n) < n // 2, 0, 1), where]
        value = np.where((bits == 0) != (random.random(n) < 0.1), UNIT, -UNIT).astype(np.int64)
        pairs = AccountPairs(position=where, value=value, at=np.arange(sayings) * 3, said=said)
        sums = CodeSums(twice=pairs.twice(), pairs=n, tokens=3 * sayings)
        text = _Text(source="", pairs=pairs, starts=np.array([0, 3 * sayings]), sums=sums)
        used = np.unique(where)
        ps = []
        for word in itertools.product((0, 1), repeat=len(used)):
            mine = np.zeros(CODE_BITS, dtype=np.uint8)
            mine[used] = word
            words = np.concatenate([others, np.packbits(mine, bitorder="little")[None]])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("detect.attribution._CHANCE", 2.0)
                places = np.arange(3), text.sums.statistics(words)
                tried = _tried(text, [places], ["a", "b", "j"], SimpleNamespace(of=lambda _, words=words: words))
            row = tried.names.index("j")
            ps.append(tried.log10_p[row])
            chained += len(tried.beside[row])
        ps = np.sort(np.array(ps))
        for x in np.unique(ps):
            assert math.log10(float((ps <= x).mean())) <= x + 1e-9
    assert chained > 600


@pytest.mark.parametrize("guilty", [2, 3])
def test_innocents_look_like_fair_signs_where_others_are_set_aside(guilty: int) -> None:
    parts = marked_texts(KEYS, [f"account-{k}" for k in range(guilty)] * 20, length=1_200, vocabulary=2_000, seed=10)
    names = [f"account-{k}" for k in range(guilty)] + [f"innocent-{i}" for i in range(6_000)]
    chains = chains_of(text_of(parts), names, KEYS.packed_code_words(names))
    chain = chains.without(None)
    assert {*range(guilty)} <= {*chain}
    left = chains.left(chain)
    z = np.delete(left.statistics, chain) / left.sums.sd
    assert abs(z.std() - 1) < 0.035
    assert abs(z.mean()) < 0.06
    assert z.max() < 5.2


def test_neither_the_order_of_the_records_nor_the_chunks_change_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = marked_texts(KEYS, ["account-7", "account-70"] * 6, length=150, seed=11)
    (one,) = attribute(builders.corpus_of(parts), KEYS, ACCOUNTS, level=1e-6)
    monkeypatch.setattr("detect.attribution._CHUNK", 300)
    monkeypatch.setattr("detect.attribution._HELD", 600)
    (other,) = attribute(builders.corpus_of(parts[::-1]), KEYS, ACCOUNTS[::-1], level=1e-6)
    assert one.findings == other.findings
    assert len(one.found) == 2


def one_of(found: Attribution, account: str) -> AccountFinding:
    (finding,) = (each for each in found.findings if each.account == account)
    return finding


def test_of_many_accounts_those_whose_code_word_hardly_fits_do_not_come_into_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = marked_texts(KEYS, ["account-7", "account-1999"], length=600, seed=6)
    corpus = builders.corpus_of([np.concatenate([a, b])])
    (whole,) = attribute(corpus, KEYS, ACCOUNTS, level=1e-6, shown=300)
    monkeypatch.setattr("detect.attribution._QUESTIONED", 100)
    monkeypatch.setattr("detect.attribution._HELD", 1)
    (few,) = attribute(corpus, KEYS, ACCOUNTS, level=1e-6, shown=300)
    assert few.found == whole.found
    assert 60 <= len(few.findings) <= 150
    both = {each.account for each in few.findings} & {each.account for each in whole.findings}
    assert len(both) >= 20
    for name in both:
        few_of, whole_of = one_of(few, name), one_of(whole, name)
        assert (few_of.z, few_of.beside) == (whole_of.z, whole_of.beside)
        assert few_of.log10_p == pytest.approx(whole_of.log10_p, abs=1e-3)  # Bounds from tables of other grids.
    silent = builders.corpus_of([np.arange(3, dtype=np.uint32)])
    assert attribute(silent, KEYS, ACCOUNTS, level=1e-6)[0].findings == ()


def test_a_scope_without_account_lanes_is_refused() -> None:
    with pytest.raises(UsageError, match="no account lanes"):
        attribute(builders.corpus_of([np.arange(50, dtype=np.uint32)]), builders.scope_of(), ["a"], level=0.01)
