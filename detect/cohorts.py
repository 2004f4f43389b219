"""Which cluster of accounts fed a student: the clusters' code words against the account lanes of the student's outputs.

A student of many accounts' answers carries, in the account lanes, the mean of their code words, each by its share. With
Y_i as in `detect.attribution`, over the student's outputs and with centred weights, the statistic of cluster c is
T_c = sum over its accounts j and the positions i of s_ij Y_i.

Null of cluster c: the outputs are independent of the code words of c's accounts, which are uniformly random bits given
everything else, the other clusters' words and the text included. Given Y, T_c is a sum of fair signs, n_c of the weight
|Y_i| for each i. For every fixed lambda >= 0

    e = exp(lambda T_c - n_c sum_i ln cosh(lambda Y_i))

has the mean 1, and so has the mean of several; the tilts are fixed multiples of 1 / sd(T_c), which the code words do
not enter. The clusters' e-values are under e-BH at the level given (Wang and Ramdas, JRSS B 84, 2022), which
bounds the false discovery rate however they depend on one another. The p beside each is Chernoff's bound.

Power. If cluster c supplied the share f_c of the marked answers, evenly over its n_c accounts, its z is that which the
account lanes would show if every account had the same word, times f_c / sqrt(n_c). The fleet lanes of the same outputs
say how large the former is at most. What cannot be answered is refused beforehand.

A small p says that the outputs depend on the code words of these accounts. It does not say who holds them, nor that
they knew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detect.attribution import CodeSums, code_sums
from detect.centred import CENTRED
from detect.corpus import Corpus
from detect.mark import GreenListMark
from detect.multiplicity import e_bh
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy, Tally, tally_of
from detect.weighted_test import EffectSize, effect_size, weighted_test
from detect.weighting import Weights
from watermark.errors import UsageError
from watermark.keys import ScopeKeys

__all__ = ["CohortFinding", "CohortPower", "CohortResult", "cohort_power", "detect_cohorts"]

#: Tilts in units of 1 / sd: a z of 5 to 9, which is where findings begin, loses a factor of 5 to 7 to the best tilt.
_TILTS = (2.0, 3.0, 4.5, 6.75, 10.0)

_CHUNK = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortPower:
    """What may be hoped for before a code word is looked at."""

    effect: EffectSize
    """Of the fleet lanes."""
    z_together: float
    """At most the account lanes' z if every account had the same word: at the upper end of the effect's interval."""
    z_needed: float
    """For an e-value of clusters / level."""
    share: float
    """Of the marked answers, that one cluster is assumed to have supplied."""
    z_expected: Mapping[str, float]
    """At most, by cluster, at that share."""
    tokens: int
    """Of the outputs."""

    @property
    def answerable(self) -> bool:
        """Whether any cluster could be found."""
        return max(self.z_expected.values()) >= self.z_needed

    @property
    def tokens_needed(self) -> int | None:
        """Tokens of such outputs at which the best placed cluster could be found; None if there is no effect."""
        best = max(self.z_expected.values())
        return math.ceil(self.tokens * (self.z_needed / best) ** 2) if best > 0 else None


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
        clusters: accounts by cluster, fixed without the outputs.
        reference: what another model would have said, at each position of the corpus.
        level: bound of the false discovery rate.
        share: of the marked answers, that one cluster may have supplied; by default 1 / clusters.
        policy: which windows are left out for standing in a prompt.
        on_accounts: told how many more accounts were gone through.

    Raises:
        UsageError: the scope has no account lanes, or these outputs cannot answer the question.
        ReferenceMismatchError: the reference is of other text.
    """
    tally = tally_of(
        corpus.responses,
        window=keys.params.window,
        special_ids=keys.params.special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
        reference=reference,
    )
    weights = CENTRED.weigh(tally, reference)
    sums = code_sums(tally, weights, keys, tokens=corpus.tokens)
    power = cohort_power(tally, weights, keys, clusters, sums=sums, level=level, share=share)
    if not power.answerable:
        raise UsageError(_refusal(power, len(clusters)))
    findings = [_test(name, clusters[name], keys, sums, on_accounts) for name in clusters]
    found = e_bh([finding[1] for finding in findings], level=level)
    named = [
        CohortFinding(cluster=name, accounts=len(clusters[name]), z=z, log10_e=log10_e, log10_p=log10_p, found=is_found)
        for name, (z, log10_e, log10_p), is_found in zip(clusters, findings, found, strict=True)
    ]
    return CohortResult(
        sums=sums,
        power=power,
        level=level,
        findings=tuple(sorted(named, key=lambda finding: -finding.log10_e)),
        reference=reference.name,
        left_out_prompt=tally.left_out_prompt,
    )


def cohort_power(
    tally: Tally,
    weights: Weights,
    keys: ScopeKeys,
    clusters: Mapping[str, Sequence[str]],
    *,
    sums: CodeSums,
    level: float,
    share: float | None = None,
) -> CohortPower:
    """Return what the fleet lanes let one hope for. No code word enters.

    Args:
        tally: of the outputs.
        weights: centred, of *tally*.
        keys: the scope.
        clusters: accounts by cluster.
        sums: of *tally*; their size is the noise.
        level: bound of the false discovery rate.
        share: of the marked answers that one cluster may have supplied; by default 1 / clusters.

    Raises:
        UsageError: *share* is not above 0 and at most 1.
    """
    assumed = 1 / len(clusters) if share is None else share
    if not 0 < assumed <= 1:
        raise UsageError(f"share: expected a part of the marked answers, above 0 and at most 1, got {assumed:g}")
    mark = GreenListMark(keys)
    fleet = mark.tested(tally)
    test = weighted_test(weights.within(fleet), mark=mark, tally=tally, scores=mark.scores(tally))
    in_fleet = np.zeros(len(tally.windows), dtype=np.bool_)
    in_fleet[tally.pair_window[fleet]] = True
    effect = effect_size(test.statistic, sd=test.sd, mark=mark, information=int(tally.information[in_fleet].sum()))
    if effect is None:
        raise UsageError("these outputs leave nothing to chance in the fleet lanes: there is nothing to test")
    information = int(tally.information[tally.lanes >= keys.params.fleet_lanes].sum()) / UNIT
    # T has the mean tau delta I / 4 where all words agree; its noise is what Y is, signal of others included.
    together = max(0.0, effect.high) * keys.delta * information / 4 / sums.sd if sums.sd else 0.0
    return CohortPower(
        effect=effect,
        z_together=together,
        z_needed=math.sqrt(2 * math.log(len(clusters) / level)),
        share=assumed,
        z_expected={name: together * assumed / math.sqrt(len(accounts)) for name, accounts in clusters.items()},
        tokens=sums.tokens,
    )


def _test(
    name: str, accounts: Sequence[str], keys: ScopeKeys, sums: CodeSums, on_accounts: Callable[[int], None]
) -> tuple[float, float, float]:
    """Return z, log10 e and log10 p of one cluster."""
    total = 0.0
    for start in range(0, len(accounts), _CHUNK):
        part = accounts[start : start + _CHUNK]
        total += float(sums.statistics(keys.packed_code_words(part)).sum())
        on_accounts(len(part))
    y = sums.twice / (2 * UNIT)
    n = len(accounts)
    sd = math.sqrt(n) * sums.sd
    if not sd:
        return 0.0, 0.0, 0.0
    log_es = [tilt * total / sd - n * float(_log_cosh(tilt / sd * y).sum()) for tilt in _TILTS]
    log_e = float(np.logaddexp.reduce(log_es)) - math.log(len(_TILTS))
    return total / sd, log_e / math.log(10), _log10_chernoff(total, sd=sd, y=y, n=n)


def _log_cosh(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ln cosh x, without overflow."""
    size = np.abs(x)
    return np.asarray(size + np.log1p(np.exp(-2 * size)) - math.log(2))


def _log10_chernoff(total: float, *, sd: float, y: npt.NDArray[np.float64], n: int) -> float:
    """Return Chernoff's bound at the best of a grid of tilts, each of which is a bound."""
    if total <= 0:
        return 0.0
    z = total / sd
    best = min(n * float(_log_cosh(t * z / sd * y).sum()) - t * z * z for t in (0.8, 0.9, 1.0, 1.1, 1.25, 1.5))
    # The allowance is for rounding, which is some 1e-13 of the two terms.
    return min(0.0, (best + 1e-9 * z * z) / math.log(10))


def _refusal(power: CohortPower, clusters: int) -> str:
    head = (
        f"these outputs cannot say which of {clusters:,} clusters fed the student: at a share of {power.share:.2g} "
        f"each the best placed could reach z = {max(power.z_expected.values()):.2g}, and {power.z_needed:.1f} is needed"
    )
    if power.tokens_needed is None:
        return f"{head}; the fleet lanes show no effect at all. First taggant detect model"
    return (
        f"{head}. It would take some {power.tokens_needed:.1g} tokens like these {power.tokens:,}, fewer and larger "
        "clusters of the right accounts, or --share if one cluster may have supplied more"
    )
