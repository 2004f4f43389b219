"""The supervised test: only windows that served answers contain, in the order of their first visit.

Who has the ledger knows which windows the mark was ever served in; a student can have learnt it nowhere else.

Null: the suspect's outputs and the prompts that users sent are independent of the key, but for what prompts took over
from answers served before them; the key is uniformly random and was fixed before the first answer.

**Why not simply leave the other windows out and use Chernoff's bound.** Which windows served answers contain depends
on the key: marked generation draws each token by the bits of its window, and the token makes the next window. For one
t fixed beforehand exp(t S - K(t)) over the windows visited still has the mean 1 (below), but Chernoff's bound takes
the best t afterwards, for the set of windows that came out; with another set each time that is no longer one bound but
the best of many, and where the ledger goes on until the sum is high, the tail is too. Worse, restricted to the *pairs*
that were served the bits are green by construction.

**What is done.** Windows are visited when they are formed in an answer, before the next token is drawn (the last
window of an answer and one before a special id are visited too: whether the answer ends there depends on the bits).
Let F_i hold the suspect's text, references, prompts, and the ledger up to the i-th first visit, with the bits of the
windows visited before. At its first visit a window's bits have decided nothing yet; so given F_i they are independent
draws of the mark's law, and that the window is the i-th depends on F_i alone. Weights come from the suspect's text
and the reference, which F_i holds; so for each fixed tilt the product of the bets (`detect.e_values`), window by
window in this order, is a martingale, and so is the mixture, whose tilts were fixed by the suspect's text alone.
Ville: it ever reaches 1 / alpha with probability at most alpha, wherever the ledger ends. p = min(1, 1 / max e).

**For some accounts.** The windows whose *first* visit in the whole ledger was an answer to one of a set of accounts:
that a visit is the first and whose it is lies in F_i, so that betting on these windows alone is as valid. It is the
trace of what these accounts were shown first; that nobody else was served the window later may not be asked for, since
that depends on later answers and so on the bits. The set must have been fixed without the suspect's outputs under the
key.

Weights may not depend on how often a window was served in the end, nor on which tokens followed it.

**Control.** The windows never visited have, given the whole ledger, bits that are still independent draws: the plain
weighted test restricted to them is valid with Chernoff's bound. A student shows in the visited windows and not there;
one that shows there was trained on marked answers that the ledger lacks.

Assumes that the ledger is complete and in order of the answers' start, or that what it lacks was never taken over into
a later prompt, and that an answer's prompt was fixed at its start.

A small p says that the outputs depend on the key. It does not say who trained on what, when, or with what intent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.centred import CENTRED
from detect.corpus import Corpus
from detect.e_process import check_law
from detect.e_values import log_bets_by_group, mixture_for, tilt_information, tilt_scale
from detect.family import SCORE
from detect.mark import Mark
from detect.multiplicity import e_to_p
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy, Tally, tally_of
from detect.weighted_test import WeightedTest, weighted_test
from detect.weighting import Weights
from watermark.errors import InputError, UsageError

__all__ = ["SupervisedTest", "detect_served", "served_order", "supervised_test"]

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedTest:
    """The e-process over the windows served, and the plain test of the others."""

    name: str
    """Of the weighting."""
    served_responses: int
    """In the ledger, to whomever."""
    accounts: int | None
    """Accounts whose first visits count; None for everybody's."""
    windows: int
    """Distinct windows of the suspect's tested pairs."""
    windows_served: int
    """Those of them that were served, first to an account that counts."""
    windows_never: int
    """Those of them that nobody was served."""
    pairs: int
    """Pairs with a weight in windows_served."""
    statistic: float
    """S over the windows served, in tokens times the score's unit."""
    sd: float
    """Square root of the sum of the predictable variances."""
    log10_e: float
    """At the end of the ledger."""
    log10_p: float
    """log10 of min(1, 1 / the largest e on the way)."""
    never_served: WeightedTest
    """The same weights in the windows that were never served: a control."""


def served_order(
    served: Sequence[Ids], *, window: int, special_ids: Sequence[int], tally: Tally
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the windows of *tally* that served answers visit, in the order of their first visit, and by which answer.

    Args:
        served: ids of each answer, in the order of the answers' start.
        window: ids in a window.
        special_ids: sorted ids that are never inside a window.
        tally: of the suspect's text.

    Returns:
        Indices of windows, and of the answers that visited them first: (k,) each.

    Raises:
        UsageError: *window* is not the tally's.
    """
    if tally.windows.shape[1] != window:
        raise UsageError(f"expected the tally of windows of {window} ids, got one of {tally.windows.shape[1]}")
    size = 4 * window
    numbers: dict[bytes, int] = {}
    raw = tally.windows.astype("<u4").tobytes()
    for number, at in enumerate(range(0, len(raw), size)):
        numbers[raw[at : at + size]] = number
    special = np.array(special_ids, dtype=np.uint32)
    waiting = len(numbers)
    order: list[int] = []
    visitors: list[int] = []
    for visitor, ids in enumerate(served):
        if not waiting:
            break
        if len(ids) < window:
            continue
        inside = np.lib.stride_tricks.sliding_window_view(np.asarray(ids, dtype="<u4"), window)
        whole = ~np.isin(inside, special).any(axis=1)
        text = np.ascontiguousarray(inside[whole]).tobytes()
        for at in range(0, len(text), size):
            number = numbers.pop(text[at : at + size], -1)
            if number >= 0:
                order.append(number)
                visitors.append(visitor)
                waiting -= 1
    return np.array(order, dtype=np.int64), np.array(visitors, dtype=np.int64)


def supervised_test(
    weights: Weights,
    *,
    mark: Mark,
    tally: Tally,
    served: Sequence[Ids],
    counted: npt.NDArray[np.bool_] | None = None,
    accounts: int | None = None,
) -> SupervisedTest:
    """Test the windows that *served* answers contain. Null, proof and assumptions are in the module's docstring.

    Args:
        weights: made by a `Weighting` from *tally*.
        mark: whose key it is.
        tally: of the suspect's text.
        served: ids of each answer marked with this key, in the order of the answers' start.
        counted: which answers' first visits count, bool (len(served),); by default all.
        accounts: how many accounts that is.

    Raises:
        TypeError: *weights* is an array.
        UsageError: the mark's scores have no exact law, or windows share scores.
    """
    if not isinstance(weights, Weights):
        raise TypeError("supervised_test takes the Weights that a Weighting made, no array: weights cannot know a key")
    check_law(mark)
    if mark.hashes_prompt:
        raise UsageError(
            f"{mark.name}: this scheme marks an answer's first tokens by the prompt's last, so that a window's bits "
            "may have decided something before its first visit in the answers; use the test without the ledger"
        )
    if mark.units(tally) is not None:
        raise UsageError(
            f"{mark.name}: windows of this scheme share scores, so that a first visit is not the first look at them; "
            "use the test without the ledger"
        )
    weights = weights.within(mark.tested(tally))
    visited, visitor = served_order(served, window=mark.window, special_ids=mark.special_ids, tally=tally)
    order = visited if counted is None else visited[counted[visitor]]
    rank = np.full(len(tally.windows), -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    pair_rank = rank[tally.pair_window]
    inside = (pair_rank >= 0) & (weights.values != 0)
    scores: npt.NDArray[Any] = mark.scores(tally)
    a = weights.values[inside] / UNIT
    excess = np.asarray(scores[inside], dtype=np.float64) - mark.law.mean
    # The tilts depend on the suspect's text alone: on all its windows, not on which were served.
    mixture = mixture_for(tilt_information(tally, weights, mark))
    scale = tilt_scale(tally, weights)
    bets = log_bets_by_group(scale * a, excess, mark.law, mixture.tilts, group=pair_rank[inside], groups=len(order))
    log10_e = mixture.log10(np.cumsum(bets, axis=0)) if len(order) else np.zeros(1)
    windows = np.unique(tally.pair_window[weights.values != 0])
    never_visited = np.ones(len(tally.windows), dtype=np.bool_)
    never_visited[visited] = False
    never = weights.within(never_visited[tally.pair_window])
    return SupervisedTest(
        name=weights.name,
        served_responses=len(served),
        accounts=accounts,
        windows=len(windows),
        windows_served=int((rank[windows] >= 0).sum()),
        windows_never=int(never_visited[windows].sum()),
        pairs=int(inside.sum()),
        statistic=float(a @ excess),
        sd=float(np.sqrt(mark.law.variance * (a @ a))),
        log10_e=float(log10_e[-1]),
        log10_p=e_to_p(float(log10_e.max())),
        never_served=weighted_test(never, mark=mark, tally=tally, scores=scores),
    )


def detect_served(
    corpus: Corpus,
    mark: Mark,
    served: Corpus,
    *,
    reference: Reference | None = None,
    policy: PromptPolicy = PromptPolicy.OWN,
    accounts: Collection[str] | None = None,
) -> SupervisedTest:
    """Test a suspect's outputs in the windows served: with centred weights, or the pairs said without a reference.

    Args:
        corpus: the suspect's outputs.
        mark: whose key it is.
        served: all answers marked with this key, by their logged ids, in the order of their start; read with a window
            of 0, so that none is too short.
        reference: what another model would have said, at each position of the corpus.
        policy: which windows are left out for standing in a prompt.
        accounts: count the windows that were first served to one of these; *served* stays the whole ledger.

    Raises:
        ReferenceMismatchError: the reference is of other text.
        InputError: the ledger is not whole: answers without logged ids, left out, or marked under other parameters.
        UsageError: as for `supervised_test`.
    """
    left_out = served.accounting.malformed + sum(served.accounting.excluded.values())
    if served.from_ids != len(served.responses) or left_out:
        raise InputError(
            f"the served answers: expected every one by its logged token_ids, got {served.from_ids:,} of "
            f"{len(served.responses):,}, and {left_out:,} records were left out: a window's first visit could be missed"
        )
    if served.fingerprints - {mark.fingerprint}:
        raise InputError(f"the served answers: some were marked under other parameters than {mark.name}'s")
    tally = tally_of(
        corpus.responses,
        window=mark.window,
        special_ids=mark.special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
        reference=reference,
    )
    weights = (SCORE if reference is None else CENTRED).weigh(tally, reference)
    if accounts is None:
        return supervised_test(weights, mark=mark, tally=tally, served=served.responses)
    named = frozenset(accounts)
    to = [served.accounts[document] for document in served.document]
    counted = np.array([account in named for account in to], dtype=np.bool_)
    if not counted.any():
        raise InputError(
            "the served answers: none was served to any of the accounts named; the records' field is `account` "
            "(taggant ledger export)"
        )
    return supervised_test(
        weights, mark=mark, tally=tally, served=served.responses, counted=counted, accounts=len(named)
    )
