"""The open-weight test: what the suspect would say at chosen contexts, from its logits, less what a reference would.

With the weights at hand nothing need be sampled. For each pair (w, v) ::

    a(w, v) = sum over contexts t whose last h ids are w of p_suspect(v | t) - p_ref(v | t)

and S = sum a (phi - E phi) over all tokens v that either model gives `MIN_MASS` or more. What is below is dropped,
which needs no allowance: a pair left out has the weight 0, and any weights fixed without the key leave the law of S
known. How much mass that was is in the result.

Null: the suspect is independent of the key, which is uniformly random and was fixed before. What the p-value takes
beyond that depends on where the contexts come from (`Origin`).

- *Key-free contexts* (human text, fresh prompts, the teacher's **un**marked answers). Then the weights are functions of
  things independent of the key; given them the scores of distinct pairs are independent draws of the mark's law,
  whatever the text and however often a window occurs. The p reported is Chernoff's bound (`detect.weighted_test`).
- *Marked contexts* (reading mode: the teacher's marked answers, e.g. those that the suspect may have been trained on).
  The key chose them, so the weights depend on bits of the key: a suspect that never saw the key copies from what it
  reads. A window is scored once only, where it occurs for the first time in *all* the sequences, in the order given.
  Let F be everything up to there: all the randomness but the bits of windows not visited yet. The prefix, hence both
  models' probabilities, are functions of F, and the bits of the new window are independent of F. So for each fixed
  lambda ::

      E = product over pairs, in that order, of exp(lambda a (phi - E phi)) / E_0 exp(lambda a (phi - E phi))

  is a martingale of mean 1, whatever the suspect does with its prefix; so is the mean over a grid of lambda fixed
  beforehand, and p = 1 / E by Markov's inequality. Chernoff's bound at the best lambda is *not* valid here, since the
  weights, and with them the best lambda, depend on earlier bits. Nor is it enough that a window be new in its own
  sequence, pooled over sequences (METHOD 12; arXiv 2402.14904, section 4): each window's term has mean 0, but one
  sequence may visit w before w', another w' before w; then the weights of each depend on the bits of the other, and S
  has up to twice the variance that the fixed-weight law gives it (`benchmarks/studies/open_weight.py` builds such a
  suspect). It takes (1) the ids that the server logged: text tokenised anew hides windows that were used; (2)
  sequences chosen and ordered, and cut, without regard to what they say; (3) prompts that hold no marked text but what
  stands in full in an earlier sequence. Decoy keys are not exchangeable with the key that chose the contexts, so no
  rank is given.

The reference is another model that never saw the key: the suspect's public base, a clean twin. A wrong one costs power
and never validity; one that has seen the key (the marked teacher) makes the weights depend on it and is no reference.

A small p says that the suspect depends on the key. It does not say who trained on what, when, or with what intent:
marked text that came by the public web leaves the same trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detect.corpus import Corpus
from detect.decoys import DECOYS
from detect.mark import GreenListMark, Mark
from detect.multiplicity import holm
from detect.tally import UNIT, Tally
from detect.verdict import LEVEL, Verdict, verdict_of
from detect.weighted_test import EffectSize, WeightedTest, effect_size, weighted_test
from detect.weighting import Weighting, Weights
from watermark import kernels
from watermark.errors import ReferenceMismatchError, TokenizerError, UsageError
from watermark.kernels import kernel
from watermark.keys import ScopeKeys

if TYPE_CHECKING:
    from detect.reference import Reference
    from watermark.models import LanguageModel

__all__ = [
    "MIN_MASS",
    "OPEN_WEIGHT",
    "OPEN_WEIGHT_ROOT",
    "ContextCollector",
    "LogitTally",
    "OpenWeightResult",
    "Origin",
    "contexts_of",
    "detect_open_weight",
    "log10_mixture_p",
    "open_weight_test",
    "read_contexts",
]

Ids = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]

#: A token is kept at a context where either model gives it at least this: some hundreds of tokens, and most of the
#: mass.
MIN_MASS = 2.0**-14

#: Rows of pairs gathered before those of one pair are added up: 32 bytes each.
_GATHERED = 4_000_000

#: Positions read at a time, after as many more of context: 50,000 logits of each are 100 MB a model in float32.
_POSITIONS = 512

#: The grid of lambda of the mixture: 2^-10 to 2^12 in steps of the square root of 2. Fixed here, before any evidence.
_LAMBDAS = 2.0 ** np.arange(-10, 12.25, 0.5)


class Origin(Enum):
    """Where contexts come from, which decides which of them count and how the p-value is made."""

    KEY_FREE = "key-free"
    """Independent of the key: human text, fresh prompts, unmarked answers. Every context counts."""
    MARKED = "marked"
    """Answers marked with the key that is tested. A window counts where it first occurs in all the sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTally(Tally):
    """A tally of probabilities in place of words said: *said* is 0 throughout, *expected* the reference's mass.

    *information* is that of `Tally`; *position_pair* is empty.
    """

    suspect: Counts
    """The suspect's mass of each pair, summed over the contexts of its window, in units of 2^-32, (n,)."""
    first: Counts
    """The same at the first context of each window alone, for the baselines, (n,)."""
    contexts: int
    """Contexts that count."""
    origin: Origin
    dropped_suspect: float
    dropped_reference: float
    """Mean mass a context of the tokens dropped, special ones among them."""


class ContextCollector:
    """Add up both models' probabilities over contexts, batch by batch; no logits are kept.

    Memory is 32 bytes for each pair kept, some hundreds a distinct window.

    Args:
        window: ids before each token, 1 or more.
        special_ids: ids that are never scored and never inside a window.
        origin: where the contexts come from.
        floor: the least probability, of either model, with which a token is kept.
    """

    def __init__(
        self,
        *,
        window: int,
        special_ids: Sequence[int] = (),
        origin: Origin = Origin.KEY_FREE,
        floor: float = MIN_MASS,
    ) -> None:
        if window < 1:
            raise ValueError(f"window: expected at least 1 id, got {window}")
        self.window = window
        self.origin = origin
        self.contexts = 0
        self._special = np.array(sorted(special_ids), dtype=np.uint32)
        self._floor = floor
        self._visited: set[bytes] = set()
        self._number: dict[bytes, int] = {}
        self._information: dict[int, int] = {}
        self._gathered: list[tuple[npt.NDArray[np.uint64], Counts]] = []
        self._rows = 0
        self._dropped = np.zeros(2)

    def positions(self, ids: Ids, *, start: int = 0) -> Counts:
        """Return the positions of a sequence whose next token counts: t stands for the context ids[:t].

        Of marked sequences those whose window occurs for the first time in all sequences that this was called with;
        so call it once a sequence, in an order that was fixed without looking at what they say.

        Args:
            ids: uint32 (N,), prompt and answer.
            start: where the answer begins. Earlier windows are not scored; of marked sequences they count as visited.

        Returns:
            int64, ascending, each from max(start, window) to N. A window lies wholly before t, may reach into the
            prompt, and holds no special id.
        """
        h = self.window
        if len(ids) < h:
            return np.zeros(0, dtype=np.int64)
        special = np.concatenate([[0], np.cumsum(np.isin(ids, self._special))])
        whole = special[h:] == special[: len(ids) - h + 1]
        raw = np.ascontiguousarray(ids, dtype="<u4").tobytes()
        counted = []
        for t in range(h, len(ids) + 1):
            if not whole[t - h]:
                continue
            if self.origin is Origin.MARKED:
                name = raw[4 * (t - h) : 4 * t]
                if name in self._visited:
                    continue
                self._visited.add(name)
            if t >= start:
                counted.append(t)
        return np.array(counted, dtype=np.int64)

    def add(self, windows: Ids, suspect: Rows, reference: Rows) -> None:
        """Add contexts: the windows that end them, and both models' probabilities of the next token.

        Args:
            windows: uint32 (B, window).
            suspect: float32 (B, V), rows that sum to 1.
            reference: float32 (B, V).

        Raises:
            ReferenceMismatchError: shapes differ, or a row is no distribution.
            ValueError: a marked collector was given a window twice, or one that it did not hand out.
        """
        if suspect.shape != reference.shape or suspect.ndim != 2 or windows.shape != (len(suspect), self.window):
            raise ReferenceMismatchError(
                f"open weights: expected windows ({len(suspect)}, {self.window}) and two arrays (contexts, vocabulary) "
                f"of one shape, got {windows.shape}, {suspect.shape} and {reference.shape}"
            )
        for rows, name in ((suspect, "suspect"), (reference, "reference")):
            sums = rows.sum(axis=1, dtype=np.float64)
            if len(rows) and not (np.abs(sums - 1) < 1e-2).all():
                raise ReferenceMismatchError(
                    f"open weights: the {name}'s rows are expected to sum to 1, and one sums to "
                    f"{sums[np.argmax(np.abs(sums - 1))]:.4g}: pass probabilities of the whole vocabulary, no logits"
                )
        numbers = np.empty(len(windows), dtype=np.int64)
        first = np.empty(len(windows), dtype=np.bool_)
        raw = np.ascontiguousarray(windows, dtype="<u4")
        for b in range(len(windows)):
            name = raw[b].tobytes()
            first[b] = name not in self._number
            if self.origin is Origin.MARKED and (not first[b] or name not in self._visited):
                raise ValueError("open weights: a marked window counts once, where `positions` says")
            numbers[b] = self._number.setdefault(name, len(self._number))
        special = np.zeros(suspect.shape[1], dtype=np.bool_)
        special[self._special[self._special < suspect.shape[1]]] = True
        keys, mass, information, dropped = _kept(
            numbers,
            first,
            np.ascontiguousarray(suspect, dtype=np.float32),
            np.ascontiguousarray(reference, dtype=np.float32),
            special,
            self._floor,
        )
        for number, amount in zip(numbers.tolist(), information.tolist(), strict=True):
            self._information[number] = self._information.get(number, 0) + amount
        self._dropped += dropped
        self.contexts += len(windows)
        self._gathered.append((keys, mass))
        self._rows += len(keys)
        if self._rows > _GATHERED:
            self._merge()

    def tally(self) -> LogitTally:
        """Return the tally of what was added so far."""
        keys, mass = self._merge()
        names = b"".join(self._number)
        windows = np.frombuffer(names, dtype="<u4").astype(np.uint32).reshape(-1, self.window)
        each = max(1, self.contexts)
        return LogitTally(
            windows=windows,
            lanes=kernels.lanes(windows),
            information=np.array([self._information[i] for i in range(len(windows))], dtype=np.int64),
            pair_window=(keys >> np.uint64(32)).astype(np.int64),
            tokens=(keys & np.uint64(0xFFFFFFFF)).astype(np.uint32),
            said=np.zeros(len(keys), dtype=np.int64),
            expected=mass[:, 1].copy(),
            position_pair=np.zeros(0, dtype=np.int32),
            left_out_prompt=0,
            suspect=mass[:, 0].copy(),
            first=mass[:, 2].copy(),
            contexts=self.contexts,
            origin=self.origin,
            dropped_suspect=float(self._dropped[0]) / each,
            dropped_reference=float(self._dropped[1]) / each,
        )

    def _merge(self) -> tuple[npt.NDArray[np.uint64], Counts]:
        """Add up the rows of each pair, sort the pairs, and return them."""
        keys = np.concatenate([keys for keys, _ in self._gathered] or [np.zeros(0, dtype=np.uint64)])
        mass = np.concatenate([mass for _, mass in self._gathered] or [np.zeros((0, 3), dtype=np.int64)])
        if len(keys):
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            keys, mass = keys[starts], np.add.reduceat(mass[order], starts)
        self._gathered = [(keys, mass)]
        self._rows = 0  # Of what comes from now on: a large whole is not added up again at each batch.
        return keys, mass


@kernel
def _kept(
    numbers: Counts,
    first: npt.NDArray[np.bool_],
    suspect: Rows,
    reference: Rows,
    special: npt.NDArray[np.bool_],
    floor: float,
) -> tuple[npt.NDArray[np.uint64], Counts, Counts, npt.NDArray[np.float64]]:
    """Return the pairs kept, number << 32 | token, with three masses each; each row's information; mass dropped."""
    rows, vocabulary = suspect.shape
    count = 0
    for b in range(rows):
        for v in range(vocabulary):
            if (suspect[b, v] >= floor or reference[b, v] >= floor) and not special[v]:
                count += 1
    keys = np.empty(count, np.uint64)
    mass = np.zeros((count, 3), np.int64)
    information = np.empty(rows, np.int64)
    dropped = np.zeros(2)
    i = 0
    for b in range(rows):
        squares = 0.0
        for v in range(vocabulary):
            q = np.float64(reference[b, v])
            p = np.float64(suspect[b, v])
            squares += q * q
            if (suspect[b, v] >= floor or reference[b, v] >= floor) and not special[v]:
                keys[i] = (np.uint64(numbers[b]) << np.uint64(32)) | np.uint64(v)
                mass[i, 0] = np.int64(p * 4294967296.0)
                mass[i, 1] = np.int64(q * 4294967296.0)
                if first[b]:
                    mass[i, 2] = mass[i, 0]
                i += 1
            else:
                dropped[0] += p
                dropped[1] += q
        information[b] = np.int64(max(0.0, 1.0 - squares) * 4294967296.0)
    return keys, mass, information, dropped


def _difference(tally: Tally, reference: Reference | None) -> Counts:
    if not isinstance(tally, LogitTally):
        raise TypeError("the open-weight weighting wants a LogitTally, which a ContextCollector makes from logits")
    return tally.suspect - tally.expected


#: The suspect's probability less the reference's, summed over the contexts.
OPEN_WEIGHT = Weighting(name="open-weight", rule=_difference, needs_reference=False)


def _root(tally: Tally, reference: Reference | None) -> Counts:
    a = _difference(tally, reference) / UNIT
    return np.asarray(np.rint(np.sign(a) * np.sqrt(np.abs(a)) * UNIT), dtype=np.int64)


#: The square root of that, with its sign: differences that are large for reasons of their own shout less. Key-free as
#: the difference is; a function of the pair's own weight, so that the rule for marked contexts holds as well.
OPEN_WEIGHT_ROOT = Weighting(name="open-weight-root", rule=_root, needs_reference=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWeightResult:
    """What one key says of a model whose weights are at hand."""

    scope: str
    """The scope's name, or the mark's."""
    fingerprint: str
    activated: bool | None
    """Whether public randomness went into the key after it was committed to; None where the scheme knows no such."""
    window: int
    gamma_256: int | None
    delta: float | None
    cautions: tuple[str, ...]
    suspect: str
    reference: str
    """The models' names."""
    origin: Origin
    contexts: int
    """Contexts read."""
    windows: int
    """Distinct windows among them."""
    dropped_suspect: float
    dropped_reference: float
    """Mean mass a context of the tokens dropped."""
    test: WeightedTest
    """Of marked contexts its p is the mixture's, and there are neither a saddlepoint estimate nor decoys."""
    effect: EffectSize | None
    decoy_seed: int
    log10_p: float
    log10_p_holm: float
    """The same after Holm over the keys tested in this call."""
    scopes_tested: int
    level: float
    verdict: Verdict


def open_weight_test(
    tally: LogitTally, mark: Mark, *, weighting: Weighting = OPEN_WEIGHT_ROOT, decoys: int = DECOYS, decoy_seed: int = 0
) -> tuple[WeightedTest, EffectSize | None]:
    """Test the difference of two models' probabilities. The null and what a small p says not are in the module.

    Args:
        tally: from a `ContextCollector` of the mark's window and special ids.
        mark: whose key it is.
        weighting: `OPEN_WEIGHT` or `OPEN_WEIGHT_ROOT`, fixed before anything is looked at.
        decoys: number of decoy keys; 0 for none. None are drawn for marked contexts.
        decoy_seed: from which they are drawn.

    Raises:
        UsageError: the tally is of another window, the two models never differ, or contexts are marked by a mark whose
            pairs share random quantities or whose hash is too weak.
    """
    if tally.windows.shape[1] != mark.window:
        raise UsageError(
            f"mark {mark.name}: its window is {mark.window} ids wide, the tally's {tally.windows.shape[1]}"
        )
    tested = mark.tested(tally)
    weights = weighting.weigh(tally).within(tested)
    if tally.contexts and not (tally.suspect != tally.expected).any():
        raise UsageError(
            "the suspect and the reference give every token the same probability: they are one model. "
            "Name the suspect's public base or a clean twin as the reference"
        )
    marked = tally.origin is Origin.MARKED
    if marked and (not mark.exact or mark.units(tally) is not None):
        raise UsageError(
            f"mark {mark.name}: its pairs are not independent, and then marked contexts give no valid p; "
            "read key-free contexts instead"
        )
    sums: npt.NDArray[Any] | None = None
    if decoys and not marked and weights.values.any():
        sums = mark.decoy_sums(tally, np.ascontiguousarray(weights.values[:, None]), count=decoys, seed=decoy_seed)[
            :, 0
        ]
    scores = mark.scores(tally)
    test = weighted_test(weights, mark=mark, tally=tally, scores=scores, decoy_sums=sums)
    # The effect size comes from the difference whatever test is made: to first order it has no bias.
    plain = weighted_test(OPEN_WEIGHT.weigh(tally).within(tested), mark=mark, tally=tally, scores=scores)
    if marked:
        test = replace(
            test,
            log10_p=log10_mixture_p(weights, statistic=test.statistic, mark=mark),
            log10_p_saddlepoint=None,
            log10_p_smallest=log10_mixture_p(weights, statistic=_largest(weights, mark), mark=mark),
        )
    windows = np.zeros(len(tally.windows), dtype=np.bool_)
    windows[tally.pair_window[tested]] = True
    information = int(tally.information[windows].sum())
    return test, effect_size(plain.statistic, sd=plain.sd, mark=mark, information=information)


def log10_mixture_p(weights: Weights, *, statistic: float, mark: Mark) -> float:
    """Return log10 of 1 / E, E the mean over a fixed grid of lambda of exp(lambda S - sum of cumulants), rounded up.

    Valid for weights that depend on the bits of windows scored before (the module's docstring). It costs up to 1.7
    decades against Chernoff's bound at the best lambda.

    Args:
        weights: of distinct pairs.
        statistic: S, in tokens times the score's unit.
        mark: gives the score's law.
    """
    values, times = np.unique(weights.values[weights.values != 0], return_counts=True)
    a = values / UNIT
    slack = 1e-12 * float(np.abs(a) @ times)
    log_e = np.full(len(_LAMBDAS), -np.inf)
    for i, t in enumerate(_LAMBDAS.tolist()):
        cumulants = _cumulants(mark, t * a) * times
        if np.isfinite(cumulants).all():
            log_e[i] = t * (statistic - slack) - float(cumulants.sum()) - 1e-12 * float(np.abs(cumulants).sum())
    log_mean = float(np.logaddexp.reduce(log_e)) - math.log(len(_LAMBDAS))
    return min(0.0, -log_mean / math.log(10.0) * (1 - 1e-12))


def _cumulants(mark: Mark, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ln E exp(t (phi - E phi)) under the null, infinite where there is none."""
    if isinstance(mark, GreenListMark):
        gamma = mark.law.mean
        # Where exp(t) may overflow the larger of the two terms is what matters; the other adds this at most.
        rest = (1 - gamma) / gamma * math.exp(-30.0)
        small = np.log1p(gamma * np.expm1(np.minimum(t, 30.0)))
        return np.asarray(np.where(t > 30.0, t + math.log(gamma) + rest, small) - gamma * t)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        cumulants = np.asarray(mark.law.cumulant(t), dtype=np.float64)
    return np.where(np.isfinite(cumulants), cumulants, np.inf)


def _largest(weights: Weights, mark: Mark) -> float:
    """Return the largest S that the weights allow, infinite where the score knows no bound."""
    if not isinstance(mark, GreenListMark):
        return 1e300
    a = weights.values / UNIT
    return float(np.where(a > 0, a, 0.0).sum() - mark.law.mean * a.sum())


def read_contexts(
    suspect: LanguageModel,
    reference: LanguageModel,
    sequences: Sequence[Ids],
    collectors: Sequence[ContextCollector],
    *,
    starts: Sequence[int] = (),
    limit: int | None = None,
    progress: Callable[[int], None] = lambda contexts: None,
) -> None:
    """Read both models' next-token distributions at the positions that each collector counts.

    Args:
        suspect: the model in question.
        reference: its public base, or a clean twin.
        sequences: token ids, as the models read them (a beginning-of-sequence id, if the models want one, is in them).
        collectors: one for each window and set of special ids.
        starts: where each sequence's answer begins; empty for 0 throughout.
        limit: contexts read at most, a collector: the first so many in the order given.
        progress: called with the number of positions read since the last call.

    Raises:
        TokenizerError: the two models' tokenizers differ.
        ReferenceMismatchError: an id is outside the vocabulary.
    """
    if suspect.tokenizer.digest() != reference.tokenizer.digest():
        raise TokenizerError(
            f"suspect {suspect.name} and reference {reference.name} have different tokenizers: the difference of their "
            "probabilities wants one; name the suspect's public base or a clean twin"
        )
    vocabulary = suspect.tokenizer.vocabulary_size
    beyond = [number for number, ids in enumerate(sequences) if len(ids) and int(ids.max()) >= vocabulary]
    if beyond:
        raise ReferenceMismatchError(
            f"contexts: sequence {beyond[0] + 1} holds an id beyond the vocabulary of {vocabulary}: "
            "tokenise it with the models' tokenizer"
        )
    # In the order given, before anything is read: of marked sequences the order decides what counts.
    wanted: list[list[Counts]] = []
    left = [limit if limit is not None else 1 << 62 for _ in collectors]
    for number, ids in enumerate(sequences):
        start = starts[number] if len(starts) else 0
        wanted.append([])
        for c, collector in enumerate(collectors):
            at = collector.positions(ids, start=start)
            at = at[at > 0][: max(0, left[c])]
            left[c] -= len(at)
            wanted[-1].append(at)
    for number, ids in enumerate(sequences):
        at = np.unique(np.concatenate(wanted[number]))
        for block in np.unique(at // _POSITIONS).tolist():
            part = at[at // _POSITIONS == block]
            # What is far back is not read: a forward pass stays short, and no context is longer than a model takes.
            begin = max(0, (block - 1) * _POSITIONS)
            p = _distributions(suspect, ids[begin:], part - begin, vocabulary)
            q = _distributions(reference, ids[begin:], part - begin, vocabulary)
            for collector, mine in zip(collectors, wanted[number], strict=True):
                chosen = np.isin(part, mine)
                windows = ids[part[chosen][:, None] + np.arange(-collector.window, 0)[None, :]]
                collector.add(windows, p[chosen], q[chosen])
            progress(len(part))


def _distributions(model: LanguageModel, ids: Ids, positions: Counts, vocabulary: int) -> Rows:
    """Return the probabilities of the next token after ids[:t] for each position t: float32 (B, V)."""
    import torch

    with torch.inference_mode():
        input_ids = torch.from_numpy(ids[: int(positions[-1])].astype(np.int64))[None].to(model.device)
        logits = model.model(input_ids=input_ids, use_cache=False).logits[0]
        rows = logits[torch.from_numpy(positions - 1).to(model.device), :vocabulary].float()
        return np.asarray(torch.softmax(rows, dim=-1).cpu().numpy(), dtype=np.float32)


def contexts_of(
    corpus: Corpus, model: LanguageModel, marks: Sequence[Mark], *, origin: Origin
) -> tuple[list[Ids], list[int]]:
    """Return each text of *corpus* after its prompt in the model's chat format, and where the text begins.

    Args:
        corpus: the contexts.
        model: gives the chat format.
        marks: the keys to be tested.
        origin: what the caller says of the contexts.

    Raises:
        UsageError: records name a key tested and the contexts are called key-free; or marked contexts are not by their
            logged ids, which hides windows visited.
    """
    named = corpus.fingerprints & {mark.fingerprint for mark in marks}
    if named and origin is Origin.KEY_FREE:
        raise UsageError(
            "the contexts' records say that they were marked under a key tested: say --contexts-are-marked, or better "
            "take the teacher's unmarked answers"
        )
    if origin is Origin.MARKED and corpus.from_ids != len(corpus.responses):
        raise UsageError(
            f"marked contexts: expected every text by its logged token_ids, got {corpus.from_ids:,} of "
            f"{len(corpus.responses):,}: ids made again from text hide windows that were visited"
        )
    prompts = [model.prompt_ids("\n\n".join(earlier)) if earlier else [] for earlier in corpus.prompt_texts]
    joined = [
        np.concatenate([np.array(prompt, dtype=np.uint32), ids])
        for prompt, ids in zip(prompts, corpus.responses, strict=True)
    ]
    return joined, [len(prompt) for prompt in prompts]


def detect_open_weight(
    suspect: LanguageModel,
    reference: LanguageModel,
    contexts: Sequence[Ids],
    keys: Sequence[ScopeKeys | Mark],
    *,
    weighting: Weighting = OPEN_WEIGHT_ROOT,
    origin: Origin = Origin.KEY_FREE,
    starts: Sequence[int] = (),
    limit: int | None = None,
    decoys: int = DECOYS,
    decoy_seed: int = 0,
    level: float = LEVEL,
    progress: Callable[[int], None] = lambda contexts: None,
) -> list[OpenWeightResult]:
    """Test a model whose weights are at hand under one or several keys.

    The null, and what a small p does not say, are in the module's docstring. Several keys are corrected for by Holm.

    Args:
        suspect: the model in question.
        reference: its public base, or a clean twin: a model that never saw the key.
        contexts: token ids of texts; every position from the window's width on is a context.
        keys: scopes, or marks made by others, of the models' tokenizer.
        weighting: `OPEN_WEIGHT` or `OPEN_WEIGHT_ROOT`, fixed before anything is looked at.
        origin: whether the texts are independent of the keys.
        starts: where each text's answer begins, if what comes before is not to be scored.
        limit: contexts read at most, the first so many.
        decoys: number of decoy keys; 0 for none.
        decoy_seed: from which they are drawn.
        level: the level of the verdict, family-wise over the keys.
        progress: called with the number of contexts read since the last call.

    Returns:
        One result a key, in the order given.

    Raises:
        UsageError: no key, the two models are one, or the mark does not go with the origin.
        TokenizerError: the tokenizers of the suspect, the reference and a key differ.
        ReferenceMismatchError: an id is outside the vocabulary.
    """
    if not keys:
        raise UsageError("expected at least one key")
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
    marks = [GreenListMark(key) if isinstance(key, ScopeKeys) else key for key in keys]
    for mark in marks:
        if mark.tokenizer is not None and mark.tokenizer != suspect.tokenizer.digest():
            raise TokenizerError(
                f"mark {mark.name}: made for another tokenizer than {suspect.name}'s; sample its answers and use "
                "`taggant detect model`, which tokenises text anew"
            )
    shapes = sorted({(mark.window, tuple(mark.special_ids)) for mark in marks})
    collectors = {shape: ContextCollector(window=shape[0], special_ids=shape[1], origin=origin) for shape in shapes}
    read_contexts(
        suspect, reference, contexts, list(collectors.values()), starts=starts, limit=limit, progress=progress
    )
    tallies = {shape: collector.tally() for shape, collector in collectors.items()}
    tests = []
    for mark in marks:
        tally = tallies[mark.window, tuple(mark.special_ids)]
        tests.append((tally, *open_weight_test(tally, mark, weighting=weighting, decoys=decoys, decoy_seed=decoy_seed)))
    adjusted = holm([test.log10_p for _, test, _ in tests])
    return [
        OpenWeightResult(
            scope=mark.name,
            fingerprint=mark.fingerprint,
            activated=mark.activated,
            window=mark.window,
            gamma_256=round(mark.law.mean * 256) if isinstance(mark, GreenListMark) else None,
            delta=mark.strength,
            cautions=mark.cautions,
            suspect=suspect.name,
            reference=reference.name,
            origin=origin,
            contexts=tally.contexts,
            windows=len(tally.windows),
            dropped_suspect=tally.dropped_suspect,
            dropped_reference=tally.dropped_reference,
            test=test,
            effect=effect,
            decoy_seed=decoy_seed,
            log10_p=test.log10_p,
            log10_p_holm=log10_p,
            scopes_tested=len(marks),
            level=level,
            verdict=verdict_of(
                log10_p, smallest=test.log10_p_smallest + math.log10(len(marks)), log10_level=math.log10(level)
            ),
        )
        for mark, (tally, test, effect), log10_p in zip(marks, tests, adjusted, strict=True)
    ]
