"""Which cluster of accounts fed a student: the clusters' code words against the account lanes of the student's outputs.

A student of many accounts' answers carries, in the account lanes, the mean of their code words, each by its share. With
Y_i as in `detect.attribution`, over the student's outputs and with self-normalised weights, and m_ci the mean of the
signs of cluster c's accounts at position i, ::

    Y_i = b_i (sum over the clusters of f_c m_ci) + noise of the variance d_i

to first order: f_c is the cluster's share of the marked answers, b_i what the whole would add if all accounts agreed
(the fleet lanes say how much was learned), d_i the sum of the squared weights over 4. The other clusters' words are
noise to c, and the most of it where there is much text; but they are known. So c is tested on what they leave: with K
the covariance of Y that the model gives, the *other* clusters' words in it and c's not, ::

    theta = f b K^-1 Y,    T_c = sum over c's accounts j and the positions i of s_ij theta_i / n_c

which is the log likelihood ratio but for a constant. Of more clusters than `OTHERS` those stand in K whose words,
each taken alone, fit Y best.

Null of cluster c: the outputs are independent of the code words of c's accounts, which are uniformly random bits given
everything else, the other clusters' words and the text included. theta is a function of these alone. Given it, T_c is a
sum of fair signs, and for every t >= 0 that was fixed beforehand ::

    e = exp(t T_c - n_c sum_i ln cosh(t theta_i / n_c))

has the mean 1, and so has the mean of several; whatever becomes of the model. The clusters' e-values are under e-BH at
the level given (Wang and Ramdas, JRSS B 84, 2022), which bounds the false discovery rate however they depend on one
another: they do, each being tested on what the others leave.

Power is simulated before a code word is looked at: words are drawn, Y is made of them by the model, and the same test
is made. What cannot be answered is refused.

A finding says that the outputs depend on the code words of these accounts. It does not say who holds them, nor that
they knew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from detect.account_pairs import code_positions
from detect.attribution import CodeSums, code_sums
from detect.centred import SELF_NORMALISED, residuals
from detect.corpus import Corpus
from detect.mark import GreenListMark
from detect.multiplicity import e_bh
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy, Tally, tally_of
from detect.weighted_test import EffectSize, effect_size, weighted_test
from detect.weighting import Weights
from watermark.errors import UsageError
from watermark.keys import CODE_BITS, ScopeKeys

__all__ = ["OTHERS", "CohortFinding", "CohortPower", "CohortResult", "detect_cohorts"]

Floats = npt.NDArray[np.float64]

#: Clusters whose words are taken out of the noise of one.
OTHERS: Final = 256

#: t: theta is on the scale of the likelihood ratio, so that 1 is best if the model and the shares are right.
_TILTS: Final = (0.25, 0.5, 1.0, 2.0)

#: Of the signal's variance, what a window's accounts differ from the mean of all by: it was seen by some of them only.
_CHANCE: Final = 0.25

#: Allowance for the rounding of an exponent's terms, which is some 1e-13 of them.
_ROUNDING: Final = 1e-11

#: Accounts whose signs are held at once: 64 MiB.
_CHUNK: Final = 2_048

#: Fed clusters simulated for a power, and the power below which a question is refused.
_SIMULATED: Final = 64
_HOPELESS: Final = 0.05

#: The text is not thought to be made longer than so many times.
_LONGEST: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortPower:
    """What may be hoped for before a code word is looked at."""

    effect: EffectSize
    """Of the fleet lanes, by the same weights."""
    share: float
    """Of the marked answers, that one cluster is assumed to have supplied."""
    fed: int
    """Clusters that are assumed to have supplied as much."""
    found: float
    """Part of them that would be found."""
    found_at_most: float
    """The same at the upper end of the effect's interval."""
    tokens: int
    """Of the outputs."""
    tokens_needed: int | None
    """Tokens of such outputs at which half of them would be found, one figure of it; None where no amount is enough."""

    @property
    def answerable(self) -> bool:
        """Whether any cluster is likely to be found."""
        return self.found_at_most >= _HOPELESS


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortFinding:
    """One cluster."""

    cluster: str
    accounts: int
    z: float
    """T in standard deviations of its null law."""
    log10_e: float
    log10_p: float
    """Chernoff's bound, of this cluster alone."""
    found: bool
    """By e-BH over all clusters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortResult:
    """All clusters beside a student's outputs."""

    sums: CodeSums = field(repr=False)
    power: CohortPower
    level: float
    """Bound of the false discovery rate."""
    findings: tuple[CohortFinding, ...]
    """The largest e first."""
    reference: str
    left_out_prompt: int


def detect_cohorts(
    corpus: Corpus,
    keys: ScopeKeys,
    clusters: Mapping[str, Sequence[str]],
    *,
    reference: Reference,
    level: float,
    share: float | None = None,
    policy: PromptPolicy = PromptPolicy.OWN,
    on_accounts: Callable[[int], None] = lambda done: None,
) -> CohortResult:
    """Test each cluster. Null, proof and assumptions are in the module's docstring.

    Args:
        corpus: the student's outputs.
        keys: the scope, with account lanes.
        clusters: accounts by cluster, no account in two, fixed without the outputs.
        reference: what another model would have said, at each position of the corpus.
        level: bound of the false discovery rate.
        share: of the marked answers, that one cluster may have supplied; by default 1 / clusters. A wrong one costs
            power alone.
        policy: which windows are left out for standing in a prompt.
        on_accounts: told how many more accounts were gone through.

    Raises:
        UsageError: the scope has no account lanes, *share* is not above 0 and at most 1, or these outputs cannot answer
            the question.
        ReferenceMismatchError: the reference is of other text.
    """
    assumed = 1 / len(clusters) if share is None else share
    if not 0 < assumed <= 1:
        raise UsageError(f"share: expected a part of the marked answers, above 0 and at most 1, got {assumed:g}")
    tally = tally_of(
        corpus.responses,
        window=keys.params.window,
        special_ids=keys.params.special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
        reference=reference,
    )
    weights = SELF_NORMALISED.weigh(tally)
    sums = code_sums(tally, weights, keys, tokens=corpus.tokens)
    effect = _fleet_effect(tally, weights, keys)
    learned = _Learned.of(tally, weights, keys)
    sizes = [len(accounts) for accounts in clusters.values()]
    power = _power(learned, effect, sizes, share=assumed, level=level, tokens=corpus.tokens)
    if not power.answerable:
        raise UsageError(_refusal(power, len(clusters), len(learned.at)))
    model = _Model.of(learned, max(effect.tau, 0.0), share=assumed, clusters=len(clusters))
    y = sums.twice[learned.at] / (2 * UNIT)
    tests = _tests(model, y, keys, clusters, learned.at, on_accounts)
    found = e_bh([log10_e for _, log10_e, _ in tests], level=level)
    named = [
        CohortFinding(cluster=name, accounts=len(clusters[name]), z=z, log10_e=log10_e, log10_p=log10_p, found=is_found)
        for name, (z, log10_e, log10_p), is_found in zip(clusters, tests, found, strict=True)
    ]
    return CohortResult(
        sums=sums,
        power=power,
        level=level,
        findings=tuple(sorted(named, key=lambda finding: -finding.log10_e)),
        reference=reference.name,
        left_out_prompt=tally.left_out_prompt,
    )


def _fleet_effect(tally: Tally, weights: Weights, keys: ScopeKeys) -> EffectSize:
    """Return the effect size in the fleet lanes, as the weights see it."""
    mark = GreenListMark(keys)
    fleet = mark.tested(tally)
    test = weighted_test(weights.within(fleet), mark=mark, tally=tally, scores=mark.scores(tally))
    windows = np.zeros(len(tally.windows), dtype=np.bool_)
    windows[tally.pair_window[fleet]] = True
    slope, _ = _of_windows(tally, weights)
    effect = effect_size(test.statistic, sd=test.sd, mark=mark, information=round(float(slope[windows].sum()) * UNIT))
    if effect is None:
        raise UsageError("these outputs leave nothing to chance in the fleet lanes: there is nothing to test")
    return effect


def _of_windows(tally: Tally, weights: Weights) -> tuple[Floats, Floats]:
    """Return for each window omega I and the sum of its squared weights (`SELF_NORMALISED`): float64 (m,) both."""
    a, c = weights.values / UNIT, residuals(tally) / UNIT
    m = len(tally.windows)
    energy = np.bincount(tally.pair_window, weights=c * c, minlength=m)
    along = np.bincount(tally.pair_window, weights=a * c, minlength=m)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(energy > 0, tally.information / UNIT * along / energy, 0.0)
    return slope, np.bincount(tally.pair_window, weights=a * a, minlength=m).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learned:
    """What the account lanes of a text can hold, at the positions of the code words that they speak of."""

    at: npt.NDArray[np.int64]
    """The positions, (n,)."""
    slope: Floats
    """What tau = 1 would add if all accounts agreed, (n,)."""
    sampling: Floats
    drift: Floats
    """The two parts of the variance of Y, (n,): one in proportion to the text, the other to its square."""

    @classmethod
    def of(cls, tally: Tally, weights: Weights, keys: ScopeKeys) -> _Learned:
        slope, energy = _of_windows(tally, weights)
        inside = tally.lanes >= keys.params.fleet_lanes
        position = code_positions(keys, tally.windows)
        # Of a sum of omega (n - mu) the variance that a true reference would leave is omega^2 I.
        sampling = np.minimum(energy, slope**2 / np.maximum(tally.information / UNIT, np.finfo(np.float64).tiny))
        by_window: list[Floats] = [keys.delta * _gain(tally, keys) * slope, sampling, energy - sampling]
        tilt, sampling, drift = (
            np.bincount(position[inside], weights=each[inside], minlength=CODE_BITS).astype(np.float64) / 4
            for each in by_window
        )
        at = np.flatnonzero(tilt > 0)
        return cls(at=at, slope=tilt[at], sampling=sampling[at], drift=drift[at])


def _gain(tally: Tally, keys: ScopeKeys) -> Floats:
    """Return what the same delta adds in account lanes for what it adds in fleet lanes, at each window: (m,).

    To first order 1. A flat distribution is moved less where more of it is green: by gamma e / (1 + gamma (e - 1)) -
    gamma, e = exp(delta), where the first order says delta gamma (1 - gamma). One that hangs between two tokens is
    moved alike. Between them by the chance that two draws of the reference are the same token.
    """
    e, said = math.exp(keys.delta), np.bincount(tally.pair_window, weights=tally.said, minlength=len(tally.windows))
    account, fleet = (
        (e / (1 + k / 256 * (e - 1)) - 1) / (1 - k / 256) for k in (keys.params.account_k, keys.params.fleet_k)
    )
    flat = account / fleet if keys.delta else 1.0
    return np.asarray(flat + (1 - flat) * (1 - tally.information / UNIT / np.maximum(said, 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What Y is taken to be made of. Known before any code word."""

    b: Floats
    """What the whole of the marked answers would add if all accounts agreed, (n,)."""
    d: Floats
    """Variance of the noise, (n,)."""
    share: float
    fed: int

    @classmethod
    def of(cls, learned: _Learned, tau: float, *, share: float, clusters: int, longer: float = 1.0) -> _Model:
        """Return the model of a student of tilt *tau*, for *longer* times the text."""
        return cls(
            b=learned.slope * tau * longer,
            d=learned.sampling * longer + learned.drift * longer**2,
            share=share,
            fed=max(1, min(clusters, round(1 / share))),
        )

    def noise(self, y: Floats) -> Floats:
        """Return the diagonal of K, (n,): d, and what Y has in it beyond what equal shares of `fed` clusters would add.

        Accounts that no cluster names are part of that.
        """
        explained = self.fed * self.share**2
        energy = float(self.b @ self.b)
        excess = (float(y @ y) - float(self.d.sum())) / energy - explained if energy else 0.0
        return self.d + max(_CHANCE * explained, excess) * self.b**2


class _Others:
    """What the others leave of Y to one cluster."""

    def __init__(self, model: _Model, y: Floats, means: Floats) -> None:
        """Take the clusters' mean signs, (k, n)."""
        noise = model.noise(y)
        self._left = model.b / noise * y
        self._rows = means * (model.b**2 / noise)
        self._model = model
        self._gram = self._rows @ means.T
        self._along = means @ self._left

    def theta(self, chosen: npt.NDArray[np.int64]) -> Floats:
        """Return theta of a cluster that is not among the rows *chosen*, (n,); of the others nothing enters.

        By Woodbury's identity, b K^-1 Y = b y / noise - rows^T (1 / prior + gram)^-1 (means b y / noise).
        """
        share, fed = self._model.share, self._model.fed
        prior = share**2 * min(1.0, fed / max(1, len(chosen)))
        inner = self._gram[np.ix_(chosen, chosen)] + np.eye(len(chosen)) / prior
        return np.asarray(share * (self._left - np.linalg.solve(inner, self._along[chosen]) @ self._rows[chosen]))


def _tests(
    model: _Model,
    y: Floats,
    keys: ScopeKeys,
    clusters: Mapping[str, Sequence[str]],
    at: npt.NDArray[np.int64],
    on_accounts: Callable[[int], None],
) -> list[tuple[float, float, float]]:
    """Return z, log10 e and log10 p of each cluster."""
    members = list(clusters.values())
    sizes = np.array([len(accounts) for accounts in members])
    left = model.b / model.noise(y) * y
    # The best `OTHERS` that are not cluster c are among the best OTHERS + 1 of all, and c's words do not move them.
    best, fit, means = np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, len(at)))
    for first, part in _mean_signs(keys, members, at, on_accounts):
        here = np.arange(first, first + len(part))
        best, fit = np.concatenate([best, here]), np.concatenate([fit, part @ left * np.sqrt(sizes[here])])
        order = np.lexsort((best, -fit))[: OTHERS + 1]
        means = np.concatenate([means, part])[order]
        best, fit = best[order], fit[order]
    others = _Others(model, y, means)
    rows = np.arange(len(best))
    results: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * len(members)
    for row, cluster in enumerate(best.tolist()):
        theta = others.theta(rows[rows != row][:OTHERS])
        results[cluster] = _result(float(means[row] @ theta), theta, int(sizes[cluster]))
    if len(members) > len(best):
        theta = others.theta(rows[:OTHERS])
        tested = set(best.tolist())
        for first, part in _mean_signs(keys, members, at, lambda done: None):
            for cluster, total in enumerate((part @ theta).tolist(), start=first):
                if cluster not in tested:
                    results[cluster] = _result(total, theta, int(sizes[cluster]))
    return results


def _mean_signs(
    keys: ScopeKeys,
    clusters: Sequence[Sequence[str]],
    at: npt.NDArray[np.int64],
    on_accounts: Callable[[int], None],
) -> Iterator[tuple[int, Floats]]:
    """Yield the index of a cluster and the mean signs of it and of those after it, (k, n)."""
    first = 0
    while first < len(clusters):
        last, accounts = first, 0
        while last < len(clusters) and (last == first or accounts + len(clusters[last]) <= _CHUNK):
            accounts += len(clusters[last])
            last += 1
        sums = np.zeros((last - first, len(at)))
        flat = [(place, account) for place in range(first, last) for account in clusters[place]]
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK]
            words = keys.packed_code_words([account for _, account in part])
            bits = np.unpackbits(words, axis=1, bitorder="little")[:, at]
            np.add.at(sums, np.array([place - first for place, _ in part]), 1.0 - 2.0 * bits)
            on_accounts(len(part))
        yield first, sums / np.array([[len(clusters[place])] for place in range(first, last)])
        first = last


def _result(total: float, theta: Floats, accounts: int) -> tuple[float, float, float]:
    """Return z, log10 e and log10 p of T = *total*."""
    sd = float(np.linalg.norm(theta)) / math.sqrt(accounts)
    if not sd:
        return 0.0, 0.0, 0.0
    z = total / sd
    log_e = float(np.logaddexp.reduce([_bet(t, total, theta, accounts) for t in _TILTS])) - math.log(len(_TILTS))
    # The best of several bounds is a bound.
    best = max([0.0] + [_bet(t * z / sd, total, theta, accounts) for t in (0.8, 0.9, 1.0, 1.1, 1.25, 1.5) if z > 0])
    return z, log_e / math.log(10), -best / math.log(10)


def _bet(t: float, total: float, theta: Floats, accounts: int) -> float:
    """Return ln e of the tilt *t*, rounded down."""
    won, size = t * total, np.abs(t / accounts * theta)
    paid = accounts * float((size + np.log1p(np.exp(-2 * size)) - math.log(2)).sum())
    return won - paid - _ROUNDING * (1 + abs(won) + accounts * float(size.sum()))


def _power(
    learned: _Learned, effect: EffectSize, sizes: Sequence[int], *, share: float, level: float, tokens: int
) -> CohortPower:
    """Return the power at a share. No code word enters."""

    def found(tau: float, longer: float = 1.0) -> float:
        model = _Model.of(learned, max(tau, 0.0), share=share, clusters=len(sizes), longer=longer)
        return _simulate(model, sizes, level=level)

    now, at_most = found(effect.tau), found(effect.high)
    # Powers of the root of 2: with the first of them too little is found, with the last enough, if with any.
    few, enough = 0, 2 * (_LONGEST.bit_length() - 1)
    if now >= 0.5:
        enough = 0
    elif found(effect.tau, 2 ** (enough / 2)) < 0.5:
        few = enough
    while enough - few > 1:
        between = (few + enough) // 2
        few, enough = (few, between) if found(effect.tau, 2 ** (between / 2)) >= 0.5 else (between, enough)
    longer = None if few and few == enough else 2 ** (enough / 2)
    return CohortPower(
        effect=effect,
        share=share,
        fed=max(1, min(len(sizes), round(1 / share))),
        found=now,
        found_at_most=max(now, at_most),
        tokens=tokens,
        tokens_needed=None if longer is None else max(tokens, int(float(f"{tokens * longer:.1g}"))),
    )


def _simulate(model: _Model, sizes: Sequence[int], *, level: float) -> float:
    """Return the part of the clusters that fed the model's student which is found, with words drawn at random."""
    random = np.random.default_rng(0)
    found = simulated = 0
    n = len(model.b)
    # The words of more clusters than `OTHERS` can't all be set aside, and what they leave is no more than noise.
    if model.fed > OTHERS or not model.b.any():
        return 0.0
    while simulated < _SIMULATED:
        # Clusters that did not feed it are so many sets of random signs: of more than `OTHERS` a part is enough.
        drawn = random.choice(len(sizes), min(len(sizes), OTHERS), replace=False)
        accounts = np.array([sizes[i] for i in drawn])[:, None]
        means = 2 * random.binomial(accounts, 0.5, (len(drawn), n)) / accounts - 1
        signal = model.share * means[: model.fed].sum(axis=0)
        chance = random.normal(size=n) * math.sqrt(_CHANCE * model.fed) * model.share
        y = model.b * (signal + chance) + np.sqrt(model.d) * random.normal(size=n)
        others, rows = _Others(model, y, means), np.arange(len(drawn))
        log10_es = []
        for row in rows[: model.fed].tolist():
            theta = others.theta(rows[rows != row])
            log10_es.append(_result(float(means[row] @ theta), theta, int(accounts[row, 0]))[1])
        none = [-math.inf] * (len(sizes) - len(log10_es))
        found += sum(e_bh(log10_es + none, level=level))
        simulated += model.fed
    return found / simulated


def _refusal(power: CohortPower, clusters: int, positions: int) -> str:
    head = (
        f"these outputs cannot say which of {clusters:,} clusters fed the student: if {power.fed:,} of them supplied "
        f"{power.share:.2g} of the marked answers each, {power.found_at_most:.0%} of those would be found at best"
    )
    if power.effect.high <= 0:
        return f"{head}; the fleet lanes show no effect at all. First taggant detect model"
    more = "fewer and larger clusters of the right accounts, or --share if one cluster may have supplied more"
    if power.tokens_needed is None:
        return (
            f"{head}, and no number of tokens like these would do ({positions:,} positions speak). It would take {more}"
        )
    return f"{head}. It would take some {power.tokens_needed:,} tokens like these {power.tokens:,}, {more}"
