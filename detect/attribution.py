"""Whose answers a text is made of: the code words of many accounts against the account lanes of one text.

In an account lane the green list is complemented where the account's code word has a bit (docs/specification.md 2).
Over the distinct account-lane pairs of a text, Y_i is the sum of a (g - 1/2) at position i, g being the green bit
before any complement; T_j = sum_i s_ij Y_i with s_ij = 1 where bit i of account j's word is 0, else -1.

Null of account j: the text is independent of j's code word, which is 4096 uniformly random bits given everything else
(a PRF of the account's id). *The text is marked by somebody*, so the bits g are anything but fair coins; so Y is
taken as it is. Given Y, T_j is a sum of fair signs with the weights |Y_i|, and Chernoff's bound of that law (log p <=
min over lambda of sum ln cosh(lambda Y_i) - lambda T_j) holds whatever the text says and whoever marked it. (With the
variance that Y would have under the null of no mark at all, innocent accounts reach z = 12.9.) Holm over all accounts
registered, and over the texts where each is taken by itself.

**Others set aside.** In a text of several accounts' answers the others' are noise to each. So j is tested on Y(-j):
what is left where the answers of other accounts are set aside (`detect.account_pairs`). Those are *the chain without
j*, made greedily among the accounts other than j: the one with the largest T on what is left so far comes next, as
long as that T is at least sd sqrt(2 ln(4 N)), N accounts being registered, and up to 8. (By Hoeffding that happens in
at most a quarter of the texts that carry none of these words.) Which accounts come into question at all is fixed
beforehand: j does if its T on the whole of Y is at least a number that Y, N and the count of texts make; if not, its
p is 1.

*It is exact.* Let F be everything but j's code word: the text, the keys, every other word. Y, the others that come
into question, each next of them, when to stop and Y(-j) are computed from F alone. So Y(-j) is constant given F, under
the null j's bits are fair given F, and T_j is a sum of fair signs with the weights |Y(-j)_i|: P(p_j <= x | F) <= x.
Where j does not come into question p_j is 1, which only makes p larger. There is one p an account, and no best of
several.

*One chain serves nearly all.* Let c_1..c_k be the chain with nobody left out. For j not in it the chain without j is
the same: at each step the largest T among all is that of c_m, who is not j, so it is the largest among those other
than j as well; ties go to the smaller id, which the absence of j does not change. After c_k either k = 8, or the
largest T, perhaps j's, is below the threshold, and then so are those of all others: T is compared with one number,
which both chains have in common, so that this holds of rounded numbers too. What is left is then computed of the same
arguments by the same code, and is the same to the last bit. For the k members chains of their own are made.

*Rounding.* What is left of a pair is computed in floating point and rounded to an integer; from there on Y(-j) *is*
that integer, and T_j is an exact sum of integers. The bound rounds outward (`detect.weighted_sums`).

A small p says that the text depends on the account's code word. It does not say who gave the text away: answers are
passed on. An account counts only if it stood in the registry before the text did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from detect.account_pairs import AccountPairs
from detect.corpus import Corpus
from detect.family import SCORE
from detect.tally import UNIT, PromptPolicy, Tally, tally_of
from detect.verdict import Verdict, verdict_of
from detect.weighted_sums import WeightedSum
from detect.weighting import Weights
from watermark import kernels
from watermark.errors import UsageError
from watermark.keys import CODE_BITS, ScopeKeys

__all__ = ["AccountFinding", "Attribution", "CodeSums", "attribute", "code_sums"]

#: Accounts whose code words are derived at once: 8 MiB.
_CHUNK = 16_384

#: Accounts, the first of the registry, whose code words are held: 32 MiB.
_HELD = 65_536

#: About how many accounts come into question at most, of one text and of all together.
_QUESTIONED, _QUESTIONED_IN_ALL = 131_072, 4_194_304

#: Accounts set aside at most.
_LONGEST = 8

#: Chance, at most, that one whose word the text does not carry is set aside: it costs the others power.
_CHANCE = 0.25

#: Accounts kept of each text: more are not told apart from one another in a table, and Holm looks at the first alone.
_KEPT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSums:
    """What a text says at each position of the code words. No code word has been near it."""

    twice: npt.NDArray[np.int64]
    """2 Y_i in units of 2^-32, int64 (4096,)."""
    pairs: int
    """Account-lane pairs with a weight."""
    tokens: int
    """Of the text."""

    @property
    def positions(self) -> int:
        """Positions that say something."""
        return int(np.count_nonzero(self.twice))

    @property
    def sd(self) -> float:
        """Standard deviation of T under the null, given Y."""
        return float(np.linalg.norm(self.twice / (2 * UNIT)))

    def law(self) -> WeightedSum:
        """Return the null law of T."""
        return WeightedSum(self.twice / UNIT, gamma=0.5)

    def statistics(self, words: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Return T of each code word, uint8 (N, 512): float64 (N,)."""
        signs = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(
            np.int64
        )
        table = self.twice.reshape(CODE_BITS // 8, 8) @ signs.T
        used = np.flatnonzero(self.twice.reshape(CODE_BITS // 8, 8).any(axis=1))
        return kernels.signed_sums(words, np.ascontiguousarray(table), used) / (2 * UNIT)


def code_sums(tally: Tally, weights: Weights, keys: ScopeKeys, *, tokens: int) -> CodeSums:
    """Return the sums at each position of the code words.

    Args:
        tally: of the text.
        weights: made by a `Weighting` from *tally*, without a key.
        keys: the scope.
        tokens: of the text, for what is said of it.

    Raises:
        UsageError: the scope has no account lanes.
    """
    pairs = AccountPairs.of(tally, weights, keys)
    return CodeSums(twice=pairs.twice(), pairs=len(pairs.value), tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountFinding:
    """One account beside one text."""

    account: str
    beside: tuple[str, ...]
    """Whose answers were set aside, in the order of the chain."""
    z: float
    """T in standard deviations of its null law, without theirs."""
    log10_p: float
    """Chernoff's bound, of this account alone."""
    log10_p_holm: float
    """After Holm over all accounts and texts."""
    found: bool
    """Whether that is at or below the level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """The accounts whose code words one text carries."""

    source: str
    sums: CodeSums = field(repr=False)
    """With nobody set aside."""
    accounts: int
    """Registered, all of which were tried."""
    texts: int
    """Over which Holm's correction went as well."""
    findings: tuple[AccountFinding, ...]
    """The smallest p first: those found, and a few beside them; of each text the best 256 are kept, and the chain."""
    verdict: Verdict
    positions_needed: int
    """Positions that must speak before any account could be found at all."""

    @property
    def found(self) -> tuple[AccountFinding, ...]:
        """The accounts found."""
        return tuple(finding for finding in self.findings if finding.found)

    @property
    def tokens_needed(self) -> int | None:
        """Tokens of such text at least before any account could be found; None where no account lane spoke."""
        if not self.sums.positions:
            return None
        return math.ceil(self.sums.tokens * self.positions_needed / self.sums.positions)


def attribute(
    corpus: Corpus,
    keys: ScopeKeys,
    accounts: Sequence[str],
    *,
    each: bool = False,
    level: float,
    shown: int = 10,
    policy: PromptPolicy = PromptPolicy.OWN,
    on_accounts: Callable[[int], None] = lambda done: None,
) -> list[Attribution]:
    """Try every account on a corpus, taken as one text or document by document.

    Null and assumptions are in the module's docstring.

    Args:
        corpus: the texts, of the scope's window.
        keys: the scope, with account lanes.
        accounts: all registered, each once, in any order.
        each: attribute each document by itself.
        level: of a finding, after Holm.
        shown: findings returned of each text beside those that were found.
        policy: which windows are left out for standing in a prompt.
        on_accounts: told how many more accounts were tried.

    Returns:
        One for each document, or the one of them all.

    Raises:
        UsageError: the scope has no account lanes, or there is no account.
    """
    if not accounts:
        raise UsageError("no account is registered: there is nothing to try")
    texts = list(_texts(corpus, keys, each=each, policy=policy))
    words = _Words(keys, accounts)
    least = _least(len(accounts), len(texts))
    found: list[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]] = [[] for _ in texts]
    for start in range(0, len(accounts), _CHUNK):
        chunk = words.chunk(start)
        for text, parts in zip(texts, found, strict=True):
            statistics = text.sums.statistics(chunk)
            # Where no position speaks T is 0 for all, and nobody comes into question.
            questioned = np.flatnonzero(statistics >= (least * text.sums.sd if text.sums.positions else math.inf))
            parts.append((start + questioned, statistics[questioned]))
        on_accounts(len(chunk))
    tried = [_tried(text, parts, accounts, words) for text, parts in zip(texts, found, strict=True)]
    return _findings(texts, tried, accounts=len(accounts), log10_level=math.log10(level), shown=shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    source: str
    pairs: AccountPairs
    starts: npt.NDArray[np.int64]
    """Of the responses, with the end as the last entry."""
    sums: CodeSums
    """Of all pairs."""

    def beside(self, words: npt.NDArray[np.uint8]) -> CodeSums:
        """Return the sums where the answers of some accounts are set aside, by their code words, uint8 (k, 512)."""
        twice = self.pairs.twice_beside(words, self.starts)
        return CodeSums(twice=twice, pairs=self.sums.pairs, tokens=self.sums.tokens)


def _texts(corpus: Corpus, keys: ScopeKeys, *, each: bool, policy: PromptPolicy) -> Iterator[_Text]:
    owners = corpus.document if each else np.zeros(len(corpus.responses), dtype=np.int64)
    for owner in np.unique(owners):
        chosen = np.flatnonzero(owners == owner).tolist()
        responses = [corpus.responses[i] for i in chosen]
        tally = tally_of(
            responses,
            window=keys.params.window,
            special_ids=keys.params.special_ids,
            prompts=[corpus.prompts[i] for i in chosen],
            echoes=[corpus.echoes[i] for i in chosen] if corpus.echoes else (),
            policy=policy,
        )
        starts = np.cumsum([0, *map(len, responses)], dtype=np.int64)
        pairs = AccountPairs.of(tally, SCORE.weigh(tally, None), keys)
        yield _Text(
            source=corpus.sources[owner] if each or len(corpus.sources) == 1 else f"{len(corpus.sources):,} documents",
            pairs=pairs,
            starts=starts,
            sums=CodeSums(twice=pairs.twice(), pairs=len(pairs.value), tokens=int(starts[-1])),
        )


class _Words:
    """The code words of a registry: those of the first accounts are held, the others derived when they are wanted."""

    def __init__(self, keys: ScopeKeys, accounts: Sequence[str]) -> None:
        self._keys = keys
        self._accounts = accounts
        self._held: list[npt.NDArray[np.uint8]] = []

    def chunk(self, start: int) -> npt.NDArray[np.uint8]:
        """Return the next words, the first time through: uint8 (N, 512)."""
        words = self._keys.packed_code_words(self._accounts[start : start + _CHUNK])
        if start < _HELD:
            self._held.append(words)
        return words

    def of(self, accounts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the words of some accounts, by their places in increasing order: uint8 (N, 512)."""
        held = np.concatenate(self._held)
        inside = accounts[accounts < len(held)]
        others = [self._accounts[i] for i in accounts[len(inside) :].tolist()]
        return np.concatenate([held[inside], self._keys.packed_code_words(others)])


def _least(accounts: int, texts: int) -> float:
    """Return from how many standard deviations of T an account comes into question: of innocents, about so many do."""
    wanted = min(_QUESTIONED, _QUESTIONED_IN_ALL // texts)
    return -math.inf if accounts <= wanted else NormalDist().inv_cdf(1 - max(1, wanted) / accounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """The best accounts of one text, the smallest p first."""

    names: list[str]
    beside: list[tuple[str, ...]]
    z: list[float]
    log10_p: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """What is left of a text, and T on it of each account that comes into question."""

    sums: CodeSums
    statistics: npt.NDArray[np.float64]


class _Chains:
    """The chains of one text.

    Args:
        text: which.
        names: of the accounts that come into question, (N,).
        statistics: T of each on the whole text, float64 (N,).
        words: makes their code words, uint8 (N, 512), when they are wanted.
        accounts: registered.
    """

    def __init__(
        self,
        text: _Text,
        names: Sequence[str],
        statistics: npt.NDArray[np.float64],
        words: Callable[[], npt.NDArray[np.uint8]],
        *,
        accounts: int,
    ) -> None:
        self._text = text
        self._names = names
        self._words = cache(words)
        self._threshold = math.sqrt(2 * math.log(accounts / _CHANCE))
        self._left: dict[tuple[int, ...], _Left] = {(): _Left(sums=text.sums, statistics=statistics)}

    def without(self, omitted: int | None) -> tuple[int, ...]:
        """Return the chain without one account, or that with nobody left out."""
        chain: tuple[int, ...] = ()
        while len(chain) < _LONGEST and (after := self._next(chain, omitted)) is not None:
            chain = *chain, after
        return chain

    def left(self, chain: tuple[int, ...]) -> _Left:
        """Return what is left where a chain is set aside."""
        if chain not in self._left:
            words = self._words()
            sums = self._text.beside(words[list(chain)])
            self._left[chain] = _Left(sums=sums, statistics=sums.statistics(words))
        return self._left[chain]

    def _next(self, chain: tuple[int, ...], omitted: int | None) -> int | None:
        left = self.left(chain)
        others = left.statistics.copy()
        others[[*chain, *([] if omitted is None else [omitted])]] = -math.inf
        largest = float(others.max(initial=-math.inf))
        # Without a position that speaks every T is 0, and so is the threshold.
        if not left.sums.positions or largest < self._threshold * left.sums.sd:
            return None
        return min(np.flatnonzero(others == largest).tolist(), key=lambda place: self._names[place])


def _tried(
    text: _Text,
    parts: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]],
    accounts: Sequence[str],
    words: _Words,
) -> _Tried:
    """Test the accounts that come into question, each where the chain without it is set aside."""
    places = np.concatenate([place for place, _ in parts])
    statistics = np.concatenate([statistic for _, statistic in parts])
    names = [accounts[i] for i in places.tolist()]
    chains = _Chains(text, names, statistics, lambda: words.of(places), accounts=len(accounts))
    common = chains.without(None)
    rest = chains.left(common)
    outside = np.setdiff1d(np.arange(len(names)), common)
    kept = outside[np.argsort(-rest.statistics[outside], kind="stable")[:_KEPT]].tolist()
    tested = [(common, kept), *((chains.without(member), [member]) for member in common)]
    rows = []
    for chain, those in tested:
        left = chains.left(chain)
        beside = tuple(names[i] for i in chain)
        log10_ps = left.sums.law().log10_chernoff_many(left.statistics[those])
        for i, log10_p in zip(those, log10_ps.tolist(), strict=True):
            z = float(left.statistics[i] / left.sums.sd) if left.sums.sd else 0.0
            rows.append((log10_p, -z, names[i], beside))
    rows.sort()
    return _Tried(
        names=[name for _, _, name, _ in rows],
        beside=[beside for _, _, _, beside in rows],
        z=[-z for _, z, _, _ in rows],
        log10_p=np.array([log10_p for log10_p, _, _, _ in rows]),
    )


def _findings(
    texts: Sequence[_Text], tried: Sequence[_Tried], *, accounts: int, log10_level: float, shown: int
) -> list[Attribution]:
    """Return the findings of each text, by Holm over all of them: the j-th smallest p times what is left from it on."""
    joined = np.concatenate([each.log10_p for each in tried])
    order = np.argsort(joined, kind="stable")
    tests = accounts * len(texts)
    # What was not kept has larger p-values than what was kept of the same text, so that up to the first that is not
    # found the ranks are right unless more than `_KEPT` are found in one text; then later ranks are too strict.
    adjusted = np.empty_like(joined)
    adjusted[order] = np.minimum(
        0.0, np.maximum.accumulate(joined[order] + np.log10(np.maximum(1, tests - np.arange(len(joined)))))
    )
    needed = math.ceil((math.log10(tests) - log10_level) / math.log10(2))
    result, at = [], 0
    for text, each in zip(texts, tried, strict=True):
        holm = adjusted[at : at + len(each.names)]
        at += len(each.names)
        found = int((holm <= log10_level).sum())
        law = text.sums.law()
        smallest = law.log10_chernoff(law.max) if text.sums.positions else 0.0
        result.append(
            Attribution(
                source=text.source,
                sums=text.sums,
                accounts=accounts,
                texts=len(texts),
                findings=tuple(
                    AccountFinding(
                        account=each.names[i],
                        beside=each.beside[i],
                        z=each.z[i],
                        log10_p=float(each.log10_p[i]),
                        log10_p_holm=float(holm[i]),
                        found=bool(holm[i] <= log10_level),
                    )
                    for i in range(min(len(each.names), found + shown))
                ),
                verdict=verdict_of(
                    float(holm[:1].min(initial=0.0)), smallest=smallest + math.log10(tests), log10_level=log10_level
                ),
                positions_needed=needed,
            )
        )
    return result
