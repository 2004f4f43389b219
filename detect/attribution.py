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

A small p says that the text depends on the account's code word. It does not say who gave the text away: answers are
passed on. An account counts only if it stood in the registry before the text did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detect.corpus import Corpus
from detect.family import SCORE
from detect.tally import UNIT, PromptPolicy, Tally, tally_of
from detect.verdict import Verdict, verdict_of
from detect.weighted_sums import WeightedSum
from detect.weighting import Weights
from watermark import kernels
from watermark.errors import UsageError
from watermark.keys import CODE_BITS, ScopeKeys
from watermark.prf import LANES, siphash24

__all__ = ["AccountFinding", "Attribution", "CodeSums", "attribute", "code_positions", "code_sums"]

#: Accounts whose code words are held at once: 8 MiB.
_CHUNK = 16_384

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
    if keys.params.account_lanes == 0:
        raise UsageError(
            f"scope {keys.name} has no account lanes: its answers say nothing about accounts. A scope made with "
            "--account-lanes 16 has"
        )
    chosen = np.arange(LANES) >= keys.params.fleet_lanes
    inside = chosen[tally.lanes][tally.pair_window] & (weights.values != 0)
    seeds = kernels.seeds(keys.lane_words(), tally.windows, tally.lanes)
    green = kernels.green(
        seeds, keys.params.bounds()[tally.lanes], tally.pair_window[inside], np.ascontiguousarray(tally.tokens[inside])
    )
    position = code_positions(keys, tally.windows)
    twice = np.zeros(CODE_BITS, dtype=np.int64)
    np.add.at(twice, position[tally.pair_window[inside]], np.where(green, 1, -1) * weights.values[inside])
    return CodeSums(twice=twice, pairs=int(inside.sum()), tokens=tokens)


def code_positions(keys: ScopeKeys, windows: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Return the position of the code words that each window, uint32 (m, h), goes by: int64 (m,)."""
    return (siphash24(keys.code_key().reveal(), windows) % np.uint64(CODE_BITS)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountFinding:
    """One account beside one text."""

    account: str
    z: float
    """T in standard deviations of its null law."""
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
    accounts: int
    """Registered, all of which were tried."""
    texts: int
    """Over which Holm's correction went as well."""
    findings: tuple[AccountFinding, ...]
    """The largest z first: those found (256 at most), and a few beside them."""
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
    best: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = [
        (np.zeros(0), np.zeros(0, dtype=np.int64)) for _ in texts
    ]
    for start in range(0, len(accounts), _CHUNK):
        words = keys.packed_code_words(accounts[start : start + _CHUNK])
        for at, (_, sums) in enumerate(texts):
            found = np.concatenate([best[at][0], sums.statistics(words)])
            which = np.concatenate([best[at][1], np.arange(start, start + len(words))])
            # The first of equals is kept, whatever the chunks.
            kept = np.lexsort((which, -found))[:_KEPT] if len(found) > _KEPT else np.lexsort((which, -found))
            best[at] = found[kept], which[kept]
        on_accounts(len(words))
    return _findings(texts, best, accounts, log10_level=math.log10(level), shown=shown)


def _texts(corpus: Corpus, keys: ScopeKeys, *, each: bool, policy: PromptPolicy) -> Iterator[tuple[str, CodeSums]]:
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
        tokens = sum(map(len, responses))
        name = corpus.sources[owner] if each or len(corpus.sources) == 1 else f"{len(corpus.sources):,} documents"
        yield name, code_sums(tally, SCORE.weigh(tally, None), keys, tokens=tokens)


def _findings(
    texts: Sequence[tuple[str, CodeSums]],
    best: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]],
    accounts: Sequence[str],
    *,
    log10_level: float,
    shown: int,
) -> list[Attribution]:
    """Return the findings of each text, by Holm over all of them: the j-th smallest p times what is left from it on."""
    laws = [sums.law() for _, sums in texts]
    log10_ps = [law.log10_chernoff_many(statistics) for law, (statistics, _) in zip(laws, best, strict=True)]
    joined = np.concatenate(log10_ps)
    order = np.argsort(joined, kind="stable")
    tests = len(accounts) * len(texts)
    # What was not kept has larger p-values than what was kept of the same text, so that up to the first that is not
    # found the ranks are right unless more than `_KEPT` are found in one text; then later ranks are too strict.
    adjusted = np.empty_like(joined)
    adjusted[order] = np.minimum(
        0.0, np.maximum.accumulate(joined[order] + np.log10(np.maximum(1, tests - np.arange(len(joined)))))
    )
    needed = math.ceil((math.log10(tests) - log10_level) / math.log10(2))
    result, at = [], 0
    for (source, sums), law, (statistics, which), log10_p in zip(texts, laws, best, log10_ps, strict=True):
        holm = adjusted[at : at + len(which)]
        at += len(which)
        found = int((holm <= log10_level).sum())
        count = min(len(which), found + shown)
        smallest = law.log10_chernoff(law.max) if sums.positions else 0.0
        result.append(
            Attribution(
                source=source,
                sums=sums,
                accounts=len(accounts),
                texts=len(texts),
                findings=tuple(
                    AccountFinding(
                        account=accounts[which[i]],
                        z=float(statistics[i] / sums.sd) if sums.sd else 0.0,
                        log10_p=float(log10_p[i]),
                        log10_p_holm=float(holm[i]),
                        found=bool(holm[i] <= log10_level),
                    )
                    for i in range(count)
                ),
                verdict=verdict_of(
                    float(holm[:1].min(initial=0.0)), smallest=smallest + math.log10(tests), log10_level=log10_level
                ),
                positions_needed=needed,
            )
        )
    return result
