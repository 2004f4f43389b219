"""What each signed statement of a study says: plan, scores, opening, claim.

Every number that matters is an integer (beyond 2^53 as decimal text); a log10 p is text with two decimals, rounded
toward 0, so that it never says more than was found. A predicate that has another field than these is of another
version, and is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from detect.evidence.envelope import Statement
from detect.evidence.strict import from_json, to_json
from detect.family import FAMILY
from detect.tally import PromptPolicy
from watermark.errors import InputError
from watermark.prf import LANES

__all__ = [
    "Claim",
    "Control",
    "Decoys",
    "Effect",
    "Hypotheses",
    "LaneChoice",
    "LaneScore",
    "Opening",
    "Outputs",
    "Plan",
    "Prompts",
    "Randomness",
    "ReferenceFile",
    "Scores",
    "Stopping",
    "Suspect",
    "TestClaim",
    "WeightedLane",
    "log10_text",
    "moment",
    "predicate_of",
    "statement_of",
]

COUNT: Final = "count"
_HEX = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_LEVEL = re.compile(r"1e-[1-9][0-9]{0,2}")
_LOG10 = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]{2}")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


def moment(text: str) -> datetime:
    """Return an RFC 3339 time in UTC, to the second.

    Raises:
        ValueError: it is none.
    """
    if not _TIME.fullmatch(text):
        raise ValueError("expected a time such as 2026-11-26T12:00:00Z")
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def log10_text(log10_p: float) -> str:
    """Return log10 p with two decimals, rounded toward 0.

    >>> log10_text(-12.349), log10_text(-0.004)
    ('-12.34', '0.00')
    """
    hundredths = math.floor(-log10_p * 100 + 1e-9) if log10_p < 0 else 0
    return f"{'-' if hundredths else ''}{hundredths // 100}.{hundredths % 100:02d}"


def _digests(*texts: str) -> None:
    if not all(_HEX.fullmatch(text) for text in texts):
        raise ValueError("expected digests of 64 hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """What is sampled."""

    endpoint: str
    model: str
    released: str | None
    """When it was first offered, as far as known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypotheses:
    """In words."""

    null: str
    alternative: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The prompts file: a line for each, `{"prompt": ...}`."""

    count: int
    sha256: str

    def __post_init__(self) -> None:
        _digests(self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When the collection ends."""

    rule: str
    """"fixed": all planned responses; "key-free": by a rule that no key enters; "e-process": by the anytime p of the
    live lanes, which are never opened."""
    planned_responses: int
    live_lanes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.rule not in ("fixed", "key-free", "e-process"):
            raise ValueError("rule: expected fixed, key-free or e-process")
        if bool(self.live_lanes) != (self.rule == "e-process"):
            raise ValueError("live_lanes: of an e-process, and of no other rule")
        if any(not 0 <= lane < LANES for lane in self.live_lanes) or len(set(self.live_lanes)) != len(self.live_lanes):
            raise ValueError(f"live_lanes: expected lanes 0 to {LANES - 1}, each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneChoice:
    """Whose randomness will choose the lanes that are opened."""

    kind: str
    """"beacon" or "nonce"."""
    name: str
    round: int | None

    def __post_init__(self) -> None:
        if self.kind not in ("beacon", "nonce") or not self.name:
            raise ValueError("kind: expected beacon or nonce, and a name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Outputs of a model, or texts, that are known not to depend on the key."""

    name: str
    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in ("base", "clean-twin", "human", "other"):
            raise ValueError("kind: expected base, clean-twin, human or other")
        if not re.fullmatch("[a-z0-9-]{1,32}", self.name):
            raise ValueError("name: expected 1 to 32 of a-z, 0-9 and -")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is fixed before anything is collected."""

    title: str
    scope: str
    fingerprint: str
    commitment: str
    """Hash of the scope's commitment leaf."""
    delta: float
    """Logits, as the server added them; enters the effect size alone."""
    suspect: Suspect
    hypotheses: Hypotheses
    prompts: Prompts
    samples_per_prompt: int
    sampling: dict[str, Any]
    stopping: Stopping
    prompt_policy: str
    exclusions: tuple[str, ...]
    tests: tuple[str, ...]
    """"count", or names of weighted tests (`detect.family`)."""
    reference: str | None
    """In words: what the reference probabilities will be of."""
    level: str
    lanes_to_open: int
    lane_choice: LaneChoice
    controls: tuple[Control, ...]
    deviations: tuple[str, ...]
    time: str

    def __post_init__(self) -> None:
        _digests(self.fingerprint, self.commitment)
        moment(self.time)
        if PromptPolicy(self.prompt_policy) is PromptPolicy.CLEAN:
            # Marked text in a prompt, repeated by an innocent model, would be its evidence.
            raise ValueError("prompt_policy: expected own or marked: evidence leaves out what stands in the prompts")
        if not self.tests or len(set(self.tests)) != len(self.tests):
            raise ValueError("tests: expected at least one, each once")
        unknown = sorted({*self.tests} - {COUNT, *FAMILY})
        if unknown:
            raise ValueError(f"tests: expected {COUNT}, {', '.join(FAMILY)}")
        if self.reference is None and {*self.tests} != {COUNT}:
            raise ValueError("reference: a weighted test wants one")
        if not _LEVEL.fullmatch(self.level):
            raise ValueError("level: expected a power of ten such as 1e-6")
        if not 1 <= self.lanes_to_open <= LANES // 2:
            raise ValueError(f"lanes_to_open: expected 1 to {LANES // 2}")
        if self.prompts.count < 1 or self.samples_per_prompt < 1:
            raise ValueError("prompts and samples_per_prompt: expected at least one")
        if self.stopping.planned_responses > self.prompts.count * self.samples_per_prompt:
            raise ValueError("planned_responses: more than the prompts and their samples give")
        names = [control.name for control in self.controls]
        if len(set(names)) != len(names):
            raise ValueError("controls: expected each name once")

    @property
    def log10_level(self) -> float:
        """log10 of the level."""
        return -float(self.level.removeprefix("1e-"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedLane:
    """One weighted test in one lane; weights a are integers in units of 2^-32."""

    pairs: int
    """Pairs with a weight."""
    sum: str
    """Sum of a."""
    green_sum: str
    """Sum of a over the green pairs."""
    square_sum: str
    """Sum of a squared."""

    def __post_init__(self) -> None:
        if not all(_INTEGER.fullmatch(text) for text in (self.sum, self.green_sum, self.square_sum)):
            raise ValueError("sums: expected integers as text")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneScore:
    """What one lane says. All is 0 in a lane that is not tested."""

    lane: int
    tested: bool
    pairs: int
    """Distinct pairs said."""
    green: int
    weighted: dict[str, WeightedLane]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The suspect's outputs, with every record accounted for."""

    sha256: str
    read: int
    scored: int
    excluded: dict[str, int]
    malformed: int
    tokens: int
    positions: int
    """Positions scored."""

    def __post_init__(self) -> None:
        _digests(self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFile:
    """The reference probabilities of the outputs."""

    name: str
    sha256: str

    def __post_init__(self) -> None:
        _digests(self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The scores of all lanes, signed before anybody knows which will be opened."""

    plan: str
    outputs: Outputs
    reference: ReferenceFile | None
    tokenizer: str
    lanes: tuple[LaneScore, ...]
    controls: dict[str, tuple[LaneScore, ...]]
    deviations: tuple[str, ...]
    """From the plan, in the collection."""
    software: str
    time: str

    def __post_init__(self) -> None:
        _digests(self.plan, self.tokenizer)
        moment(self.time)
        for lanes in (self.lanes, *self.controls.values()):
            if [score.lane for score in lanes] != list(range(LANES)):
                raise ValueError(f"lanes: expected lanes 0 to {LANES - 1} in order")


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomness:
    """What chose the lanes."""

    kind: str
    name: str
    round: int | None
    value: str

    def __post_init__(self) -> None:
        if not 8 <= len(self.value) <= 4096:
            raise ValueError("value: expected 8 to 4,096 characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The seeds of the chosen lanes."""

    scores: str
    randomness: Randomness
    lanes: tuple[int, ...]
    seeds: dict[str, str]
    """Lane in decimal to 64 hexadecimal digits."""
    time: str

    def __post_init__(self) -> None:
        _digests(self.scores, *self.seeds.values())
        moment(self.time)
        if {str(lane) for lane in self.lanes} != set(self.seeds) or len(set(self.lanes)) != len(self.lanes):
            raise ValueError("seeds: expected one for each lane, each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class TestClaim:
    """One test over the opened lanes. For the count every weight is 1."""

    __test__ = False  # No test of pytest's.

    pairs: int
    sum: str
    green_sum: str
    log10_p: str

    def __post_init__(self) -> None:
        if not _LOG10.fullmatch(self.log10_p) or not all(_INTEGER.fullmatch(t) for t in (self.sum, self.green_sum)):
            raise ValueError("expected integers, and log10 p with two decimals, as text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Share of the teacher's tilt, and its 95% interval, as text with three decimals."""

    tau: str
    low: str
    high: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoys:
    """The rank of the key among itself and the decoys, by the first listed test."""

    seed: int
    count: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is said, from the opened lanes alone."""

    plan: str
    scores: str
    opening: str
    roots: int
    """Commitment roots in the log, by which p is multiplied."""
    plans: int
    """Plans in the log, by which it is multiplied as well."""
    level: str
    tests: dict[str, TestClaim]
    log10_p: str
    """Corrected for the tests listed, the roots and the plans."""
    verdict: str
    effect: Effect | None
    decoys: Decoys
    controls: dict[str, str]
    """log10 p of each control, by the same tests on the same lanes; not corrected for roots and plans."""
    statement: tuple[str, ...]
    time: str

    def __post_init__(self) -> None:
        _digests(self.plan, self.scores, self.opening)
        moment(self.time)
        if not all(_LOG10.fullmatch(text) for text in (self.log10_p, *self.controls.values())):
            raise ValueError("log10_p: expected two decimals, as text")


_KINDS: Final[dict[str, type[Plan] | type[Scores] | type[Opening] | type[Claim]]] = {
    "plan": Plan,
    "scores": Scores,
    "opening": Opening,
    "claim": Claim,
}


def predicate_of(statement: Statement) -> Any:
    """Return the `Plan`, `Scores`, `Opening` or `Claim` of a statement.

    Raises:
        InputError: its predicate is none of this version.
    """
    try:
        return from_json(_KINDS[statement.kind], statement.predicate, what=statement.kind)
    except ValueError as error:
        raise InputError(f"{statement.kind}: {error}") from None


def statement_of(predicate: Plan | Scores | Opening | Claim, subject: dict[str, str]) -> Statement:
    """Return the statement that says *predicate* of the files in *subject* (name to digest)."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(predicate, cls))
    return Statement(kind=kind, subject=subject, predicate=to_json(predicate))
