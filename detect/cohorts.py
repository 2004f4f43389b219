"""Which cluster of accounts fed a student: the clusters' code words against the account lanes of the student's outputs.

A student carries, in the account lanes, the mean of its accounts' code words, each by its share (`detect.cohort_model`
has Y and b). The other clusters' words are noise to c, and the most of it where there is much text; but they are known.
So c is tested on what they leave: with K the covariance of Y that the model gives, the *other* clusters' words in it
and c's not, and f a cluster's share of the marked answers, ::

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from detect.attribution import CodeSums, code_sums
from detect.centred import SELF_NORMALISED
from detect.cohort_model import OTHERS, Learned, Others, StudentModel, evidence_of, fleet_effect
from detect.cohort_power import CohortPower, cohort_power
from detect.corpus import Corpus
from detect.multiplicity import e_bh
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy, tally_of
from watermark.errors import UsageError
from watermark.keys import ScopeKeys

__all__ = ["CohortFinding", "CohortResult", "detect_cohorts"]

Floats = npt.NDArray[np.float64]

#: Accounts whose signs are held at once: 64 MiB.
_CHUNK: Final = 2_048


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
    effect = fleet_effect(tally, weights, keys)
    learned = Learned.of(tally, weights, keys)
    sizes = [len(accounts) for accounts in clusters.values()]
    power = cohort_power(learned, effect, sizes, share=assumed, level=level, tokens=corpus.tokens)
    if not power.answerable:
        raise UsageError(_refusal(power, len(clusters), len(learned.at)))
    model = StudentModel.of(learned, max(effect.tau, 0.0), share=assumed, clusters=len(clusters))
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


def _tests(
    model: StudentModel,
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
    others = Others(model, y, means)
    rows = np.arange(len(best))
    results: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * len(members)
    for row, cluster in enumerate(best.tolist()):
        theta = others.theta(rows[rows != row][:OTHERS])
        results[cluster] = evidence_of(float(means[row] @ theta), theta, int(sizes[cluster]))
    if len(members) > len(best):
        theta = others.theta(rows[:OTHERS])
        tested = set(best.tolist())
        for first, part in _mean_signs(keys, members, at, lambda done: None):
            for cluster, total in enumerate((part @ theta).tolist(), start=first):
                if cluster not in tested:
                    results[cluster] = evidence_of(total, theta, int(sizes[cluster]))
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
