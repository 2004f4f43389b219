"""The test of the log-probabilities that an endpoint gives: what a suspect would say, from its own lists.

An endpoint that names the k likeliest tokens at each position shows more of its model than the one token that it drew.
For each pair (w, v) ::

    a(w, v) = sum over positions t after window w that list v of p_suspect(v | t) - p_ref(v | t)

and S is that of the roots of a, with their signs, as for a model whose weights are at hand (`detect.open_weight`). A
token that a position does not list has no mass there, of neither model. Its difference is not known, and the
reference's mass alone would count as a difference what the list merely left out: even with the bound that the least
listed token sets in the suspect's place, a quarter to half of the evidence was lost (docs/log.md). For the same reason
no effect size is made of lists: that of the outputs themselves stands beside it.

The reference is what `taggant detect model` uses: another model that read the same tokens, or n-grams of clean text.
Without one, it is what the suspect gives the token on the whole, in its lists after all other windows.

Null: the transcript, texts and log-probabilities, is independent of the key given the prompts (whose windows are left
out), and the key is uniformly random and was fixed before.

Why it is exact: the transcript decides the ids, the lists, the reference and so all weights; no key enters. Given the
transcript the scores of distinct pairs, outside the windows of the prompts, are then still independent draws of the
mark's law, whatever the transcript says and however often it repeats itself. So S is a sum of independent terms with
known weights, and Chernoff's bound holds at the best lambda. The rule of first visits that marked contexts want
(`detect.open_weight.Origin.MARKED`) is not needed: there a third party's marked text is read, which depends on the key
whatever the suspect is; here each context is the suspect's own text, which under the null is as independent of the key
as the lists are. Log-probabilities that are false, cut, scaled by a temperature or left out at some positions cost
power, never validity.

A small p says that the suspect depends on the key. It does not say who trained on what, when, or with what intent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detect.corpus import Corpus
from detect.decoys import DECOYS
from detect.mark import Mark
from detect.open_weight import OPEN_WEIGHT_ROOT, LogitTally, Origin
from detect.records import Accounting
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy, positions_of
from detect.top_lists import TopLists
from detect.weighted_test import WeightedTest, weighted_test
from watermark import kernels

__all__ = ["LogprobsResult", "detect_logprobs", "tally_lists"]

Ids = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

#: Positions whose lists are added up at a time.
_POSITIONS: Final = 1 << 16

#: The name of the reference where there is none.
OWN: Final = "the suspect on the whole"


def tally_lists(
    corpus: Corpus,
    lists: TopLists,
    *,
    window: int,
    special_ids: tuple[int, ...] = (),
    policy: PromptPolicy = PromptPolicy.OWN,
    reference: Reference | None = None,
) -> LogitTally:
    """Add up both models' probabilities of the tokens listed.

    *information* is 0, since no effect size is made of lists.

    Args:
        corpus: the suspect's outputs.
        lists: of its positions.
        window: ids before each token.
        special_ids: sorted ids that are never scored and never inside a window.
        policy: which windows are left out for standing in a prompt.
        reference: probabilities at each position; without one the suspect's own lists after other windows.

    Raises:
        ReferenceMismatchError: the reference is of other ids.
    """
    found = positions_of(
        corpus.responses,
        window=window,
        special_ids=special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        policy=policy,
    )
    if reference is not None:
        reference.check(found.ids, found.starts)
    at = np.flatnonzero(found.valid & (np.diff(lists.starts) > 0))
    windows, number, first = _windows(found.ids, at, window)
    special = np.array(special_ids, dtype=np.uint32)
    gathered = [_added(np.zeros(0, dtype=np.uint64), np.zeros((0, 4), dtype=np.int64))]
    dropped = np.zeros(2)
    for begin in range(0, len(at), _POSITIONS):
        part = slice(begin, begin + _POSITIONS)
        keys, mass, lost = _block(lists, at[part], number[part], first[part], special, reference)
        dropped += lost
        gathered.append(_added(keys, mass))
    keys, mass = _added(np.concatenate([keys for keys, _ in gathered]), np.concatenate([mass for _, mass in gathered]))
    pair_window = (keys >> np.uint64(32)).astype(np.int64)
    tokens = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    if reference is None:
        mass[:, 1] = _on_the_whole(pair_window, tokens, mass, np.bincount(number, minlength=len(windows)))
    return LogitTally(
        windows=windows,
        lanes=kernels.lanes(windows),
        information=np.zeros(len(windows), dtype=np.int64),
        pair_window=pair_window,
        tokens=tokens,
        said=np.zeros(len(keys), dtype=np.int64),
        expected=mass[:, 1].copy(),
        position_pair=np.zeros(0, dtype=np.int32),
        left_out_prompt=found.left_out_prompt,
        suspect=mass[:, 0].copy(),
        first=mass[:, 2].copy(),
        contexts=len(at),
        origin=Origin.KEY_FREE,
        dropped_suspect=float(dropped[0]) / max(1, len(at)),
        dropped_reference=float(dropped[1]) / max(1, len(at)),
    )


def _windows(ids: Ids, at: Counts, width: int) -> tuple[Ids, Counts, npt.NDArray[np.bool_]]:
    """Return the distinct windows before positions, each position's window by number, and which are its first."""
    number = np.zeros(len(at), dtype=np.int64)
    where = np.zeros(0, dtype=np.int64)
    for back in range(width, 0, -1):
        names = (number.astype(np.uint64) << np.uint64(32)) | ids[at - back].astype(np.uint64)
        _, where, number = np.unique(names, return_index=True, return_inverse=True)
    first = np.zeros(len(at), dtype=np.bool_)
    first[where] = True
    windows = ids[at[where][:, None] + np.arange(-width, 0)[None, :]]
    return np.ascontiguousarray(windows), number.astype(np.int64), first


def _block(
    lists: TopLists,
    at: Counts,
    number: Counts,
    first: npt.NDArray[np.bool_],
    special: Ids,
    reference: Reference | None,
) -> tuple[Words, Counts, npt.NDArray[np.float64]]:
    """Return rows of some positions, and the mass of both models that is dropped.

    A row is window << 32 | token, with the suspect's mass, the reference's, the suspect's at the window's first
    position, and 1.
    """
    sizes = lists.starts[at + 1] - lists.starts[at]
    of = np.repeat(np.arange(len(at)), sizes)
    entry = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(lists.starts[at], sizes)
    kept = ~np.isin(lists.ids[entry], special)
    of, tokens, p = of[kept], lists.ids[entry][kept], lists.p[entry][kept].astype(np.float64)
    q = np.zeros(len(p)) if reference is None else _reference_mass(reference, at, of, tokens)
    mass = np.zeros((len(of), 4), dtype=np.int64)
    mass[:, 0], mass[:, 1], mass[:, 3] = np.rint(p * UNIT), np.rint(q * UNIT), 1
    mass[:, 2] = np.where(first[of], mass[:, 0], 0)
    names = (number[of].astype(np.uint64) << np.uint64(32)) | tokens.astype(np.uint64)
    return names, mass, np.array([len(at) - p.sum(), 0.0 if reference is None else len(at) - q.sum()])


def _reference_mass(reference: Reference, at: Counts, of: Counts, tokens: Ids) -> npt.NDArray[np.float64]:
    """Return the reference's probability of each token listed, 0 where it does not know it."""
    rows = np.arange(len(at), dtype=np.uint64)[:, None]
    # The id said is known where it is not among the likeliest, too.
    columns = np.concatenate([reference.top_ids[at], reference.ids[at][:, None]], axis=1).astype(np.uint64)
    values = np.concatenate([reference.top_p[at], reference.said_p[at][:, None]], axis=1).astype(np.float64)
    # Of a name that is there twice the first is taken, and it counts once.
    names, where = np.unique(((rows << np.uint64(32)) | columns).ravel(), return_index=True)
    wanted = (of.astype(np.uint64) << np.uint64(32)) | tokens.astype(np.uint64)
    place = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    return np.where(names[place] == wanted, values.ravel()[where][place], 0.0)


def _added(keys: Words, mass: Counts) -> tuple[Words, Counts]:
    """Add up the rows of each pair, sorted."""
    if not len(keys):
        return keys, mass
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(mass[order], starts)


def _on_the_whole(pair_window: Counts, tokens: Ids, mass: Counts, positions: Counts) -> Counts:
    """Return for each pair what the suspect gives its token in lists after other windows, times the pair's lists."""
    _, token = np.unique(tokens, return_inverse=True)
    total = np.bincount(token, weights=mass[:, 0].astype(np.float64))
    others = np.maximum(1, positions.sum() - positions)[pair_window]
    return np.asarray(np.rint((total[token] - mass[:, 0]) / others * mass[:, 3]), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobsResult:
    """What one key says of the log-probabilities that an endpoint gave."""

    scope: str
    fingerprint: str
    reference: str
    """The reference's name, or that the suspect's own lists stand for one."""
    contexts: int
    """Positions whose lists count."""
    windows: int
    """Distinct windows among them."""
    left_out_prompt: int
    dropped_suspect: float
    """Mean mass a position of what was not listed, or is special."""
    dropped_reference: float
    """Mean mass a position that the reference gives to that; 0 without one."""
    test: WeightedTest
    accounting: Accounting
    """Where every record went, as far as this test goes."""

    @property
    def log10_p(self) -> float:
        """P(S >= statistic) is at most this, by itself: it is not corrected for other tests of the same outputs."""
        return self.test.log10_p


def detect_logprobs(
    corpus: Corpus,
    lists: TopLists,
    mark: Mark,
    *,
    reference: Reference | None = None,
    policy: PromptPolicy = PromptPolicy.OWN,
    decoys: int = DECOYS,
    decoy_seed: int = 0,
) -> LogprobsResult:
    """Test the log-probabilities of a suspect's outputs. The null and the proof are in the module's docstring.

    Args:
        corpus: the suspect's outputs, read through a `LogprobReader`.
        lists: from its `LogprobReader.lists`.
        mark: whose key it is, fixed before the suspect was trained.
        reference: what another model would have said, at each position of the corpus; one that never saw the key.
        policy: which windows are left out for standing in a prompt.
        decoys: number of decoy keys; 0 for none.
        decoy_seed: from which they are drawn.

    Raises:
        ReferenceMismatchError: the reference is of other text, or its records are marked under the key.
    """
    if reference is not None:
        reference.check_unmarked([mark.fingerprint])
    tally = tally_lists(
        corpus,
        lists,
        window=mark.window,
        special_ids=tuple(mark.special_ids),
        policy=policy,
        reference=reference,
    )
    # All weights are made before the key is looked at.
    weights = OPEN_WEIGHT_ROOT.weigh(tally).within(mark.tested(tally))
    sums: npt.NDArray[Any] | None = None
    if decoys and weights.values.any():
        columns = np.ascontiguousarray(weights.values[:, None])
        sums = mark.decoy_sums(tally, columns, count=decoys, seed=decoy_seed)[:, 0]
    test = weighted_test(weights, mark=mark, tally=tally, scores=mark.scores(tally), decoy_sums=sums)
    return LogprobsResult(
        scope=mark.name,
        fingerprint=mark.fingerprint,
        reference=OWN if reference is None else reference.name,
        contexts=tally.contexts,
        windows=len(tally.windows),
        left_out_prompt=tally.left_out_prompt,
        dropped_suspect=tally.dropped_suspect,
        dropped_reference=tally.dropped_reference,
        test=replace(test, name="log-probabilities"),
        accounting=lists.accounting,
    )
