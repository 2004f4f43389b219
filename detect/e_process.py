"""The e-process: evidence that may be looked at as it comes in, and collected until it suffices.

Null: the suspect's outputs are independent of the key, given the prompts (whose windows are left out), and the key is
uniformly random and was fixed before. Prompts may be chosen by anyone who knows what the looks so far have shown.

**What is done.** The windows fall into 64 public lanes. Look t *opens* lanes not opened before, and scores, in all
the text collected so far, every pair of an opened lane that no earlier look has scored: those of the newly opened
lanes, and in lanes opened earlier the pairs that have since turned up for the first time. No pair is scored twice.
The weights are made again at each look from the text and its reference so far (`detect.weighting`). Each look
multiplies the capital of each tilt of a mixture by its bet on those pairs (`detect.e_values`), and e is the mixture
of the products. Waiting is what closed lanes are for: a pair scored early is scored for good, with the little text
that there was, so most lanes are kept for late looks (spending every pair at the first look that has it costs more than
half of the z).

**Why it is valid at every look.** Let F_t hold everything up to look t: text, prompts, references, randomness that is
not the key's, and the scores of the pairs scored by then. Under the null the scores of all other pairs are, given
F_t, still independent draws of the mark's law: text that was collected after a look depends on the key through F_t at
most. Which pairs look t + 1 scores, their weights and the tilts are fixed before their scores are looked at; so each
tilt's bet has the mean 1 given F_t (`detect.e_values`), its product over looks is a martingale that starts at 1, and
so is the mixture, whose shares and tilts were fixed at the first look from its text alone. By Ville's inequality e
ever reaches 1 / alpha with probability at most alpha, whatever the rule of stopping and of choosing the next prompt;
so min(1, 1 / max e) is a p-value at any time (J. Ville, "Etude critique de la notion de collectif", 1939; A. Ramdas,
P. Gruenwald, V. Vovk and G. Shafer, "Game-theoretic statistics and safe anytime-valid inference", Statist. Sci. 38,
2023, section 3).

Nobody may look at the key's other scores, as by a fixed-size test on the same text, and then choose prompts or when
to stop, or how lanes are opened. The order of the lanes is drawn from public words, so that it can't be chosen after
the fact.

A small p says that the outputs depend on the key. It does not say who trained on what, when, or with what intent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detect.centred import CENTRED
from detect.corpus import Corpus
from detect.e_values import Mixture, log_bets, mixture_for, tilt_information, tilt_scale
from detect.effect import effect_of
from detect.family import SCORE
from detect.mark import GreenListMark, Mark
from detect.multiplicity import e_to_p
from detect.reference import Reference
from detect.tally import UNIT, PromptPolicy, Tally, tally_of
from detect.verdict import LEVEL
from detect.weighted_test import EffectSize
from detect.weighting import Weighting, Weights
from watermark.errors import InputError, UsageError
from watermark.prf import LANES

__all__ = [
    "LOOKS",
    "EProcess",
    "Look",
    "SequentialResult",
    "SequentialTest",
    "lane_order",
    "lanes_to_open",
    "schedule",
    "sequential_test",
]

SCHEMA: Final = "taggant/e-process/1"

#: Looks unless told otherwise.
LOOKS: Final = 16

#: The share of the evidence opened at a look grows as this power of the share of the text that is there. With 5, 1.5
#: times the tokens of the fixed-size test suffice; with 3 that is not established (docs/study.md). A text that is more
#: than is needed by a factor of 4 to 8 costs 7 to 12% more tokens with 5 than with 3 before it is seen to be.
SCHEDULE_POWER: Final = 5.0

_LABEL = b"taggant/1/e-process/lanes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look scored, and what all looks up to it say."""

    number: int
    """From 1."""
    responses: int
    """Responses collected by then."""
    tokens: int
    """Ids in them."""
    opened: tuple[int, ...]
    """Lanes opened at this look."""
    pairs: int
    """Pairs scored at this look."""
    log10_e: float
    """log10 of the e-process; it may fall again."""
    log10_p: float
    """The anytime p-value, log10 of min(1, 1 / the largest e so far)."""


class EProcess:
    """An e-process of one key, fed look by look. Null and proof are in the module's docstring.

    Args:
        mixture: the tilts bet on; made before any score is looked at (`detect.e_values.mixture_for`).

    Attributes:
        looks: those so far.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.mixture: Final = mixture
        self.looks: list[Look] = []
        self._key: str | None = None
        self._log_bets = np.zeros(len(mixture.tilts))
        self._best = -math.inf
        self._open: set[int] = set()
        self._numbers: dict[bytes, int] = {}
        self._scored = np.zeros(0, dtype=np.uint64)  # Increasing.

    def __repr__(self) -> str:
        return f"EProcess(looks={len(self.looks)}, lanes={len(self._open)}, log10_e={self.log10_e:.4g})"

    @property
    def opened(self) -> frozenset[int]:
        """Lanes opened so far."""
        return frozenset(self._open)

    @property
    def log10_e(self) -> float:
        """Return log10 of e: 0 before the first look."""
        return self.looks[-1].log10_e if self.looks else 0.0

    @property
    def log10_p(self) -> float:
        """Return the anytime p-value's log10."""
        return self.looks[-1].log10_p if self.looks else 0.0

    def look(
        self, tally: Tally, weights: Weights, mark: Mark, lanes: Iterable[int], *, responses: int, tokens: int
    ) -> Look:
        """Open *lanes* and score what is new in the lanes open by then.

        Args:
            tally: of all the text collected so far.
            weights: made from it by a `Weighting`.
            mark: whose key it is.
            lanes: to be opened; chosen without a look at any score that was not scored before.
            responses: collected so far, for the record.
            tokens: collected so far, for the record.

        Raises:
            TypeError: *weights* is an array.
            UsageError: a lane is open already or is none, or the mark's scores have no exact law.
        """
        if not isinstance(weights, Weights):
            raise TypeError("a look takes the Weights that a Weighting made, no array: weights cannot know a key")
        check_law(mark)
        if self._key is None:
            self._key = mark.public_id
        elif self._key != mark.public_id:
            raise UsageError(f"an e-process is of one key: this one is not of {mark.name}'s")
        opened = tuple(sorted(lanes))
        self._open_lanes(opened)
        tested = weights.within(mark.tested(tally))
        pairs, a = self._take(tally, tested, mark)
        if len(pairs):
            excess = np.asarray(mark.scores(tally)[pairs], dtype=np.float64) - mark.law.mean
            self._log_bets += log_bets(tilt_scale(tally, tested) * a, excess, mark.law, self.mixture.tilts)
        log10_e = float(self.mixture.log10(self._log_bets))
        self._best = max(self._best, log10_e)
        look = Look(
            number=len(self.looks) + 1,
            responses=responses,
            tokens=tokens,
            opened=opened,
            pairs=len(pairs),
            log10_e=log10_e,
            log10_p=e_to_p(self._best),
        )
        self.looks.append(look)
        return look

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values. It holds no key; the scored pairs are made again by `from_json`."""
        return {
            "schema": SCHEMA,
            "key": self._key,
            "tilts": list(self.mixture.tilts),
            "shares": list(self.mixture.shares),
            "log_bets": self._log_bets.tolist(),
            "looks": [asdict(look) for look in self.looks],
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any], *, mark: Mark, earlier: Sequence[tuple[Tally, Weights]]) -> EProcess:
        """Take a process up again.

        Args:
            state: from `to_json`.
            mark: the same.
            earlier: for each look so far its tally and weights, made again from the first so many responses, so that
                no pair is scored twice.

        Raises:
            InputError: the state is not one of this version, or the tallies are not those of its looks.
        """
        try:
            if state["schema"] != SCHEMA:
                raise ValueError("schema")
            process = cls(Mixture(tilts=tuple(state["tilts"]), shares=tuple(state["shares"])))
            saved = np.array(state["log_bets"], dtype=np.float64)
            looks = [Look(**{**look, "opened": tuple(look["opened"])}) for look in state["looks"]]
            if saved.shape != process._log_bets.shape or not np.isfinite(saved).all():
                raise ValueError("log_bets")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"not the state of an e-process of this version ({SCHEMA}): {type(error).__name__}; start again"
            ) from None
        if len(looks) != len(earlier):
            raise InputError(f"expected the tallies of the {len(looks)} looks so far, got {len(earlier)}")
        if state.get("key") not in (None, mark.public_id):
            raise InputError(f"the state of an e-process of another key than {mark.name}'s")
        if looks and not math.isclose(float(process.mixture.log10(saved)), looks[-1].log10_e, abs_tol=1e-6):
            raise InputError("the state of an e-process whose figures don't fit one another; start again")
        process._key = state.get("key")
        for look, (tally, weights) in zip(looks, earlier, strict=True):
            process._open_lanes(look.opened)
            pairs, _ = process._take(tally, weights.within(mark.tested(tally)), mark)
            if len(pairs) != look.pairs:
                raise InputError(
                    f"look {look.number}: expected {look.pairs:,} pairs to score, got {len(pairs):,}: the text, the "
                    "reference or the weighting is not the one that was looked at"
                )
            process._best = max(process._best, look.log10_e)
        process.looks = looks
        process._log_bets = saved
        return process

    def _open_lanes(self, lanes: Sequence[int]) -> None:
        again = sorted(self._open.intersection(lanes))
        if again or len(set(lanes)) != len(lanes) or not all(0 <= lane < LANES for lane in lanes):
            raise UsageError(
                f"lanes to open: expected lanes 0 to {LANES - 1}, each once, got {list(lanes)} ({again} open)"
            )
        self._open.update(lanes)

    def _take(self, tally: Tally, weights: Weights, mark: Mark) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the pairs to be scored now and their weights in tokens, and remember them as scored."""
        is_open = np.zeros(LANES, dtype=np.bool_)
        is_open[list(self._open)] = True
        pairs = np.flatnonzero(is_open[tally.lanes][tally.pair_window] & (weights.values != 0))
        names = self._names(tally, pairs, mark)
        at = np.minimum(np.searchsorted(self._scored, names), max(len(self._scored) - 1, 0))
        new = self._scored[at] != names if len(self._scored) else np.ones(len(names), dtype=np.bool_)
        pairs, names = pairs[new], names[new]
        # Pairs of one unit share a score: their weights are added, and the first stands for all.
        names, first, unit = np.unique(names, return_index=True, return_inverse=True)
        a = np.bincount(unit, weights=weights.values[pairs] / UNIT, minlength=len(names))
        self._scored = np.sort(np.concatenate([self._scored, names]))
        return pairs[first], a

    def _names(self, tally: Tally, pairs: npt.NDArray[np.int64], mark: Mark) -> npt.NDArray[np.uint64]:
        """Return what tells the scores of *pairs* apart, the same in every tally."""
        units = mark.units(tally)
        if units is not None:
            return units[pairs].astype(np.int64).view(np.uint64)
        windows, of = np.unique(tally.pair_window[pairs], return_inverse=True)
        size = 4 * tally.windows.shape[1]
        raw = tally.windows[windows].astype("<u4").tobytes()
        numbers = self._numbers
        number = [numbers.setdefault(raw[at : at + size], len(numbers)) for at in range(0, len(raw), size)]
        return (np.array(number, dtype=np.uint64)[of] << np.uint64(32)) | tally.tokens[pairs].astype(np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialResult:
    """What one key says of outputs looked at in the order of their arrival."""

    scope: str
    fingerprint: str
    weighting: str
    """Name of the weights."""
    reference: str | None
    prompt_policy: str
    planned_tokens: int
    """Size of the text that the schedule of looks was made for."""
    lane_seed: int
    """From which the order of the lanes was drawn."""
    tilts: tuple[float, ...]
    """The tilts bet on, in logits."""
    looks: tuple[Look, ...]
    log10_e: float
    """At the last look."""
    log10_p: float
    """Anytime: from the largest e."""
    level: float
    decided_at: int | None
    """Number of the first look at which p was at most *level*: collecting could have ended there. None if never."""

    @property
    def tokens(self) -> int:
        """Ids in all the text looked at."""
        return self.looks[-1].tokens if self.looks else 0

    @property
    def tokens_needed(self) -> int | None:
        """Ids collected by the look that decided; None if none did."""
        return None if self.decided_at is None else self.looks[self.decided_at - 1].tokens


def lane_order(fingerprint: str, *, seed: int = 0, lanes: Iterable[int] = range(LANES)) -> tuple[int, ...]:
    """Return *lanes* in a random order that anyone can draw again and no key enters.

    They are sorted by SHA-256("taggant/1/e-process/lanes" + le32(length of the fingerprint) + fingerprint +
    le64(seed) + the lane's byte).

    Raises:
        UsageError: the seed is not 0 to 2^64 - 1.
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"lane seed: expected 0 to {2**64 - 1}, got {seed}")
    name = fingerprint.encode()
    head = _LABEL + len(name).to_bytes(4, "little") + name + seed.to_bytes(8, "little")
    return tuple(sorted(lanes, key=lambda lane: hashlib.sha256(head + bytes([lane])).digest()))


def schedule(fractions: Sequence[float], *, power: float = SCHEDULE_POWER) -> npt.NDArray[np.float64]:
    """Return which share of the evidence is to be open after each look: (looks,), 1 at the last.

    Look t adds a share proportional to fractions[t]^power. With power 0 every look opens as much, and early looks
    spend lanes on little text; with a large power nearly all is kept for the end, and a strong effect is seen late.

    >>> schedule([0.25, 0.5, 0.75, 1.0]).round(3).tolist()
    [0.001, 0.025, 0.212, 1.0]

    Args:
        fractions: the text collected by each look, as a share of all that is planned; rising, above 0, at most 1.
        power: see above.

    Raises:
        UsageError: the fractions are not as above.
    """
    x = np.asarray(fractions, dtype=np.float64)
    if not (x.ndim == 1 and len(x) and x[0] > 0 and x[-1] <= 1 and (np.diff(x) > 0).all()):
        raise UsageError("schedule: expected rising shares of the planned text, above 0 and at most 1")
    shares = np.cumsum(x**power)
    return np.asarray(shares / shares[-1])


def lanes_to_open(
    tally: Tally, weights: Weights, *, order: Sequence[int], opened: Iterable[int], share: float
) -> tuple[int, ...]:
    """Return the next lanes to open, so that those open hold *share* of the evidence or little less.

    A lane's evidence is its sum a^2 in the text so far, which no key enters: at width 1 a few windows make some lanes
    much heavier than others, and one that does not fit yet waits. At a share of 1 all lanes are opened.

    Args:
        tally: of the text so far.
        weights: of its pairs.
        order: of the lanes, from `lane_order`.
        opened: those open already.
        share: of sum a^2, 0 to 1.
    """
    done = set(opened)
    waiting = [lane for lane in order if lane not in done]
    if share >= 1:
        return tuple(waiting)
    a = weights.values / UNIT
    evidence = np.bincount(tally.lanes[tally.pair_window], weights=a * a, minlength=LANES)
    room = share * float(evidence.sum()) - float(evidence[list(done)].sum())
    chosen = []
    for lane in waiting:
        if 0 < evidence[lane] <= room:
            chosen.append(lane)
            room -= float(evidence[lane])
    return tuple(chosen)


class SequentialTest:
    """A sequential test that is taken up as text comes in: `sequential_test` is one call of it.

    Null, proof and what a small p does not say are in the module's docstring. The arguments are those of
    `sequential_test`; *planned_tokens* has no default here.

    Raises:
        UsageError: no looks, a level that cannot be, or the mark's scores have no exact law.
    """

    def __init__(
        self,
        mark: Mark,
        *,
        planned_tokens: int,
        has_reference: bool = False,
        weighting: Weighting = CENTRED,
        looks: int = LOOKS,
        policy: PromptPolicy = PromptPolicy.OWN,
        lane_seed: int = 0,
        power: float = SCHEDULE_POWER,
        level: float = LEVEL,
    ) -> None:
        check_law(mark)
        if not 0 < level < 1:
            raise UsageError(f"level: expected a probability between 0 and 1, got {level}")
        if looks < 1:
            raise UsageError(f"expected at least one look, got {looks}")
        self.mark = mark
        self.planned = planned_tokens
        self.weighting = weighting if has_reference or not weighting.needs_reference else SCORE
        self.steps = looks
        self.policy = policy
        self.lane_seed = lane_seed
        self.level = level
        # By the step reached, and by nothing of the text that comes after a look.
        self.shares = schedule([step / looks for step in range(1, looks + 1)], power=power)
        self._order = lane_order(mark.fingerprint, seed=lane_seed, lanes=_lanes_of(mark))
        self._process: EProcess | None = None
        self._reference: str | None = None
        self._last: Tally | None = None

    @property
    def looks(self) -> tuple[Look, ...]:
        """Those so far."""
        return tuple(self._process.looks) if self._process else ()

    def effect(self) -> EffectSize | None:
        """Return the effect size in the lanes open so far, in the text of the last look; None without a reference.

        No score is looked at that the looks have not scored, so it may be seen while text is still collected.
        """
        if self._process is None or self._last is None:
            return None
        tally = self._last
        is_open = np.zeros(LANES, dtype=np.bool_)
        is_open[list(self._process.opened)] = True
        tested = self.mark.tested(tally) & is_open[tally.lanes][tally.pair_window]
        # Closed lanes' scores are made with the others and go no further: their weights are 0.
        return effect_of(tally, self.mark, tested=tested, scores=self.mark.scores(tally))

    @property
    def share_open(self) -> float:
        """The share of the evidence that was to be open by the last look."""
        return float(self.shares[self._step(self.looks[-1].tokens) - 1]) if self.looks else 0.0

    @property
    def decided(self) -> bool:
        """Whether the level was reached."""
        return bool(self.looks) and self.looks[-1].log10_p <= math.log10(self.level)

    def due(self, tokens: int) -> bool:
        """Tell whether *tokens* collected are enough for another look."""
        return tokens > 0 and self._step(tokens) > (self._step(self.looks[-1].tokens) if self.looks else 0)

    def advance(self, corpus: Corpus, reference: Reference | None = None) -> None:
        """Take the looks that are due. What was looked at before must stand at the head of *corpus* unchanged.

        The last look is at the text that reaches the plan and at all before it; what comes after is not looked at.

        Raises:
            ReferenceMismatchError: the reference is of other text.
        """
        self._reference = None if reference is None else reference.name
        collected = np.cumsum([len(ids) for ids in corpus.responses], dtype=np.int64)
        seen = self.looks[-1].responses if self.looks else 0
        for end in _ends(collected, planned=self.planned, looks=self.steps):
            if end > seen:
                self._look(corpus.first(end), None if reference is None else reference.first(end))

    def result(self) -> SequentialResult:
        """Return what all looks so far say."""
        process = self._process or EProcess(mixture_for(0.0))
        log10_level = math.log10(self.level)
        return SequentialResult(
            scope=self.mark.name,
            fingerprint=self.mark.fingerprint,
            weighting=self.weighting.name,
            reference=self._reference,
            prompt_policy=self.policy.value,
            planned_tokens=self.planned,
            lane_seed=self.lane_seed,
            tilts=process.mixture.tilts,
            looks=tuple(process.looks),
            log10_e=process.log10_e,
            log10_p=process.log10_p,
            level=self.level,
            decided_at=next((look.number for look in process.looks if look.log10_p <= log10_level), None),
        )

    def _step(self, tokens: int) -> int:
        return min(self.steps, int(tokens / self.planned * self.steps + 1e-9))

    def _look(self, text: Corpus, reference: Reference | None) -> None:
        mark = self.mark
        tally = tally_of(
            text.responses,
            window=mark.window,
            special_ids=mark.special_ids,
            prompts=text.prompts,
            echoes=text.echoes,
            policy=self.policy,
            reference=reference,
        )
        weights = self.weighting.weigh(tally, reference).within(mark.tested(tally))
        if self._process is None:
            fraction = text.tokens / self.planned
            self._process = EProcess(mixture_for(tilt_information(tally, weights, mark) / fraction))
        share = float(self.shares[self._step(text.tokens) - 1])
        lanes = lanes_to_open(tally, weights, order=self._order, opened=self._process.opened, share=share)
        self._process.look(tally, weights, mark, lanes, responses=len(text.responses), tokens=text.tokens)
        self._last = tally


def sequential_test(
    corpus: Corpus,
    mark: Mark,
    *,
    reference: Reference | None = None,
    weighting: Weighting = CENTRED,
    looks: int = LOOKS,
    planned_tokens: int | None = None,
    policy: PromptPolicy = PromptPolicy.OWN,
    lane_seed: int = 0,
    power: float = SCHEDULE_POWER,
    level: float = LEVEL,
) -> SequentialResult:
    """Look at a suspect's outputs *looks* times, in the order of their arrival.

    Null, proof and what a small p does not say are in the module's docstring.

    Args:
        corpus: the outputs, in the order in which they were collected.
        mark: whose key it is, fixed before the suspect was trained.
        reference: what another model would have said, at each position of the corpus.
        weighting: of the pairs; listed before anything is looked at. Without a reference, where it needs one, every
            distinct pair said weighs 1.
        looks: at equal steps of the planned text, between responses; fewer where there are too few responses.
        planned_tokens: size of the text that is to be collected, where the corpus is not yet all of it. Looks are then
            taken as far as the text goes, and called again with more text and the same plan they are the same; what
            comes after the text that reaches it is not looked at.
        policy: which windows are left out for standing in a prompt.
        lane_seed: from which the order of the lanes is drawn; declared beforehand.
        power: of the `schedule`.
        level: the p-value at which collecting would have ended.

    Raises:
        ReferenceMismatchError: the reference is of other text.
        UsageError: no looks, a level or a plan that cannot be, or the mark's scores have no exact law.
    """
    if planned_tokens is not None and planned_tokens < 1:
        raise UsageError(f"expected a plan of 1 token or more, got {planned_tokens}")
    planned = corpus.tokens if planned_tokens is None else planned_tokens
    test = SequentialTest(
        mark,
        planned_tokens=planned,
        has_reference=reference is not None,
        weighting=weighting,
        looks=looks,
        policy=policy,
        lane_seed=lane_seed,
        power=power,
        level=level,
    )
    test.advance(corpus, reference)
    return test.result()


def check_law(mark: Mark) -> None:
    """Check that bets on the mark's scores are e-values.

    Raises:
        UsageError: its hash is too weak for its scores to have a known law.
    """
    if not mark.exact:
        raise UsageError(
            f"{mark.name}: this scheme's hash is too weak for an e-value to hold; use the fixed-size test, whose p is "
            "the rank among decoy keys"
        )


def _lanes_of(mark: Mark) -> range:
    """Return the lanes that hold tested pairs: opening others would spend shares of the plan on nothing."""
    return range(mark.scope.params.fleet_lanes) if isinstance(mark, GreenListMark) else range(LANES)


def _ends(collected: npt.NDArray[np.int64], *, planned: int, looks: int) -> list[int]:
    """Return after how many responses each look is taken: the first at which the step's share is there."""
    if not len(collected) or collected[-1] == 0:
        return []
    wanted = planned * np.arange(1, looks + 1) / looks
    ends = np.searchsorted(collected, np.ceil(wanted - 1e-9), side="left") + 1
    return sorted({int(end) for end in ends if end <= len(collected)})
