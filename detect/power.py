"""How many tokens of a suspect an audit needs: the power of each test, from theory.

A student whose logits lean by theta = tau * delta towards green says, to first order, theta * gamma * (1 - gamma) *
(1 - sum p^2) more of it at each position (`detect.centred`). Among n positions scored, a share f of them in lanes that
the key marks, the *centred* test then has ::

    mean S = theta v G f n,   v = gamma (1 - gamma),  G the mean of 1 - sum p_ref^2 over positions
    var  S = v sum a^2 = v f (energy n + mismatch n^2)                                     (`detect.pilot`)
    E z    = theta G sqrt(v f n / (energy + mismatch n))

With a true reference *energy* is G and *mismatch* 0, which is METHOD 7.3. A wrong reference is wrong again wherever a
window comes again, so z stops growing, at theta G sqrt(v f / mismatch): no number of tokens goes beyond. z itself
spreads with standard deviation 1.

The p-value reported is Chernoff's bound, about exp(-c z^2 / 2), with c = 1 for Gaussian sums and a little less for
those that occur. So p is asked for at z_level = sqrt(2 ln(1 / p) / c), not at the normal quantile, and a power of beta
at z_level + Phi^-1(beta).

The *default* of `detect model` is the smaller p of centring and the quasi-score, doubled. So it has the level wherever
centring reaches half of it: that much is a bound. What the quasi-score adds is a measured factor of z
(`detect.power_presets.QUASI_GAINS`), of the better of the two, and 1 where nobody measured it.

The *count* test sees theta G once for each pair said once, and none for the rest (their bit is known already): E z =
theta G kappa D' n / sqrt(D) * sqrt(v f), D(n) distinct pairs, n D' of them said once, kappa the share of the tilt that
rare windows carry (METHOD 7.3 with repetition). Its tail is exact: z_level is the normal quantile. The *e-process* is
reckoned with a stated factor of the centred test's tokens. The *open-weight* test has no sampling noise: E z =
theta G sqrt(v f m / M) from m contexts, M the mean of |p_suspect - p_ref|^2.

Assumptions: tau is the same whatever the token, theta at most about 1 (beyond, the first order says too much), and
responses are independent. A plan is no test: it has no null hypothesis, makes no p-value, and its
figures are expectations over keys and texts; a valid test that finds nothing at the planned size proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scipy.special import log_ndtr, ndtr, ndtri, ndtri_exp

from detect.pilot import PilotFigures
from detect.power_presets import COUNT_DECLINE, COUNT_KNEE, EPROCESS_FACTOR, OPEN_MISMATCH, QUASI_GAINS
from watermark.errors import UsageError

__all__ = ["DoseCurve", "PowerCurve", "PowerOfTest", "PowerPlan", "PowerResult", "dose_curve", "plan", "power_curve"]

_LN10 = math.log(10)

#: Tokens beyond which a plan says that nobody collects them.
_COLLECTABLE = 1e9

#: Tokens at which a search gives up.
_ENDLESS = 1e30

CENTRED: Final = "centred"
DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerPlan:
    """What is asked, and what is known of mark, student, text and reference.

    Raises:
        UsageError: a number is out of its range, or it does not follow what the student carries.
    """

    figures: PilotFigures
    """A pilot's, or a preset's."""
    delta: float
    """Logits added to green tokens."""
    tau: float | None = None
    """Share of the teacher's tilt that the student carries; None where *dose* and *absorption* give it."""
    dose: float | None = None
    """Share of marked text among the student's training text."""
    absorption: float | None = None
    """Tau at a dose of 1: what lies between is taken as proportional."""
    gamma_256: int = 64
    fleet_share: float = 0.75
    """Share of windows in the lanes tested: 48 of 64 with account lanes, 1 without."""
    level: float = 1e-6
    """The p-value that is to be reached."""
    keys: int = 1
    """Keys or tests that the level is split over."""
    power: float = 0.8
    """Chance of reaching it."""
    quasi_gain: float | None = None
    """z of the quasi-score over centring's; None for the preset of the window."""
    eprocess_factor: float = EPROCESS_FACTOR
    count_knee: float = COUNT_KNEE
    """Positions from which on pairs said once carry less of the tilt than the rest: it counts for the count alone."""
    count_decline: float = COUNT_DECLINE
    """How fast, as a power of the positions. 0 where the tilt is everywhere the same, or where only windows that the
    teacher served are counted."""
    open_mismatch: float = OPEN_MISMATCH
    """Mean |p_suspect - p_ref|^2 at a chosen context."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("level", self.level, 0.0, 1.0),
            ("power", self.power, 0.0, 1.0),
            ("gamma", self.gamma_256 / 256, 0.0, 1.0),
        ):
            if not low < value < high:
                raise UsageError(f"{name}: expected a number between {low:g} and {high:g}, got {value:g}")
        for name, positive in (
            ("delta", self.delta),
            ("e-process factor", self.eprocess_factor),
            ("open mismatch", self.open_mismatch),
            ("count knee", self.count_knee),
            ("keys", float(self.keys)),
            ("quasi-score gain", 1.0 if self.quasi_gain is None else self.quasi_gain),
            ("tau", 1.0 if self.tau is None else self.tau),
            ("absorption", 1.0 if self.absorption is None else self.absorption),
        ):
            if not 0 < positive < math.inf:
                raise UsageError(f"{name}: expected a number above 0, got {positive:g}")
        if not 0 <= self.count_decline < 0.5:
            raise UsageError(f"count decline: expected at least 0 and below 0.5, got {self.count_decline:g}")
        for name, share in (("fleet share", self.fleet_share), ("dose", 1.0 if self.dose is None else self.dose)):
            if not 0 < share <= 1:
                raise UsageError(f"{name}: expected a share above 0 and at most 1, got {share:g}")
        for name, carried in (("tau", self.tau), ("absorption", self.absorption)):
            if carried is not None and carried > 1.5:
                raise UsageError(
                    f"{name}: expected a share of the teacher's tilt, got {carried:g}: 1 is the teacher itself"
                )
        if self.tau is None and (self.dose is None or self.absorption is None):
            raise UsageError("expected --dose, the share of marked text in the training data, or --tau, the tilt kept")
        if self.tau is not None and self.dose is not None and self.absorption is None:
            raise UsageError("expected --dose or --tau, got both: give one")

    @property
    def carried(self) -> float:
        """Tau."""
        if self.tau is not None:
            return self.tau
        return (self.dose or 0.0) * (self.absorption or 0.0)

    @property
    def tilt(self) -> float:
        """Theta = tau * delta, in logits."""
        return self.carried * self.delta

    @property
    def gain(self) -> float:
        """How many times centring's z the better of centring and the quasi-score has."""
        preset = QUASI_GAINS.get(self.figures.window, 1.0)
        return max(1.0, preset if self.quasi_gain is None else self.quasi_gain)

    @property
    def variance(self) -> float:
        """Variance of a pair's green bit, times the share of windows tested."""
        gamma = self.gamma_256 / 256
        return gamma * (1 - gamma) * self.fleet_share

    @property
    def log_level(self) -> float:
        """Natural logarithm of the level for each key."""
        return math.log(self.level) - math.log(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOfTest:
    """One test's answer."""

    name: str
    unit: str
    """"tokens" of the suspect, or "contexts" whose logits are read."""
    z_level: float
    """Where the level lies for this test."""
    z_needed: float
    """The expected z that has the power asked for."""
    z_limit: float | None
    """What the expected z tends to as tokens grow; None where it grows for ever."""
    needed: int | None
    """Tokens, or contexts; None where no number of them is enough."""
    needed_ideal: int | None
    """The same with a reference that is not wrong; None where that changes nothing."""
    smallest_tau: float | None = None
    """Smallest tau with that power at the tokens given; None where no tokens were given or none is small enough."""
    smallest_dose: float | None = None
    """The same as a dose; None where the absorption is not known, or a dose above 1 were needed."""
    expected_z: float | None = None
    """At the tokens given."""
    expected_log10_p: float | None = None
    """log10 p at the expected z."""
    power: float | None = None
    """Chance of reaching the level at the tokens given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerResult:
    """What `plan` found."""

    plan: PowerPlan
    tau: float
    tilt: float
    """tau * delta, in logits."""
    tokens: int | None
    """Tokens, or contexts, for which power and p were asked."""
    tests: tuple[PowerOfTest, ...]
    """Default, centred, count, e-process, open-weight."""
    notes: tuple[str, ...]
    """What must be said beside the figures: sentences for people."""

    def test(self, name: str) -> PowerOfTest:
        """Return one test's answer."""
        return next(test for test in self.tests if test.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoseCurve:
    """Tokens that the default test needs, against dose (or tau)."""

    level: float
    doses: tuple[float, ...]
    tokens: tuple[float | None, ...]
    """None where no number is enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerCurve:
    """A test's power against tokens."""

    test: str
    tokens: tuple[int, ...]
    power: tuple[float, ...]


def plan(asked: PowerPlan, *, tokens: int | None = None) -> PowerResult:
    """Return the tokens that each test needs, and what a given number of tokens gives.

    Model, formulas and assumptions are in the module's docstring.

    >>> from detect.power_presets import preset_figures
    >>> asked = PowerPlan(figures=preset_figures("prose", window=1), delta=3.0, tau=0.15, fleet_share=1.0)
    >>> answer = plan(asked, tokens=11_027)
    >>> [(test.name, test.needed) for test in answer.tests[:2]], round(answer.tests[0].expected_z, 1)
    ([('default', 2067), ('centred', 1969)], 11.6)

    Raises:
        UsageError: *tokens* is not positive.
    """
    if tokens is not None and tokens < 1:
        raise UsageError(f"tokens: expected at least 1, got {tokens}")
    tests = tuple(_answer(model, asked, tokens) for model in _MODELS)
    return PowerResult(
        plan=asked, tau=asked.carried, tilt=asked.tilt, tokens=tokens, tests=tests, notes=_notes(asked, tests)
    )


def dose_curve(asked: PowerPlan, doses: Sequence[float], *, level: float | None = None) -> DoseCurve:
    """Return the default test's tokens against doses, or against tau where *asked* has no absorption."""
    level = asked.level if level is None else level
    needed = tuple(_DEFAULT.needed(_at(asked, dose, level)) for dose in doses)
    return DoseCurve(
        level=level, doses=tuple(doses), tokens=tuple(None if math.isinf(tokens) else tokens for tokens in needed)
    )


def power_curve(asked: PowerPlan, tokens: Sequence[int], *, test: str = DEFAULT) -> PowerCurve:
    """Return a test's power against tokens.

    Raises:
        UsageError: there is no such test.
    """
    model = next((model for model in _MODELS if model.name == test), None)
    if model is None:
        raise UsageError(f"test: expected one of {', '.join(model.name for model in _MODELS)}, got {test!r}")
    return PowerCurve(test=test, tokens=tuple(tokens), power=tuple(model.power(asked, n) for n in tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """The power of one test."""

    name: str
    unit: str
    z: Callable[[PowerPlan, float, float], float]
    """Expected z, from the plan, theta, and tokens."""
    z_level: Callable[[PowerPlan], float]
    log_p: Callable[[PowerPlan, float], float]
    """Natural logarithm of p at a z."""
    z_limit: Callable[[PowerPlan], float | None] = lambda asked: None
    factor: Callable[[PowerPlan], float] = lambda asked: 1.0
    """Tokens for one of the centred test's, where it is reckoned from that."""

    def z_needed(self, asked: PowerPlan) -> float:
        return self.z_level(asked) + float(ndtri(asked.power))

    def power(self, asked: PowerPlan, tokens: float) -> float:
        return float(ndtr(self.z(asked, asked.tilt, tokens) - self.z_level(asked)))

    def needed(self, asked: PowerPlan) -> float:
        """Return the least number of tokens, or infinity. The expected z grows with them."""
        wanted = self.z_needed(asked)
        return _least(lambda tokens: self.z(asked, asked.tilt, tokens) - wanted, 1.0, _ENDLESS)

    def smallest_tau(self, asked: PowerPlan, tokens: float) -> float:
        """Return the least tau for the power asked, or infinity."""
        wanted = self.z_needed(asked)
        return _least(lambda tau: self.z(asked, tau * asked.delta, tokens) - wanted, 1e-9, 1.0)


def _least(excess: Callable[[float], float], low: float, high: float) -> float:
    """Return where a growing function comes to 0, by bisection of the logarithm; infinity if beyond *high*."""
    if excess(low) >= 0:
        return low
    if excess(high) < 0:
        return math.inf
    a, b = math.log(low), math.log(high)
    for _ in range(100):
        middle = (a + b) / 2
        a, b = (a, middle) if excess(math.exp(middle)) >= 0 else (middle, b)
    return math.exp(b)


def _centred_z(asked: PowerPlan, tilt: float, tokens: float) -> float:
    figures = asked.figures
    positions = figures.scored * tokens
    squares = figures.sum_of_squares(positions, tilt=tilt)
    return tilt * figures.gini * positions * math.sqrt(asked.variance / squares) if squares > 0 else 0.0


def _centred_limit(asked: PowerPlan) -> float | None:
    figures = asked.figures
    mismatch = figures.mismatch + figures.tilt_mismatch * asked.tilt**2
    return asked.tilt * figures.gini * math.sqrt(asked.variance / mismatch) if mismatch > 0 else None


def _default_z(asked: PowerPlan, tilt: float, tokens: float) -> float:
    return asked.gain * _centred_z(asked, tilt, tokens)


def _default_limit(asked: PowerPlan) -> float | None:
    limit = _centred_limit(asked)
    return None if limit is None else asked.gain * limit


def _count_z(asked: PowerPlan, tilt: float, tokens: float) -> float:
    figures = asked.figures
    positions = figures.scored * tokens
    distinct = figures.distinct(positions)
    once = positions if distinct >= positions else figures.distinct_exponent * distinct
    carried = math.exp(-asked.count_decline * max(0.0, math.log(positions / asked.count_knee)))
    return tilt * figures.gini * carried * once * math.sqrt(asked.variance / distinct)


def _open_z(asked: PowerPlan, tilt: float, contexts: float) -> float:
    gini, variance = asked.figures.gini, asked.variance / asked.fleet_share
    # The tilt itself moves p_suspect by p (g - mean g) theta.
    mismatch = asked.open_mismatch + tilt * tilt * variance * (1 - gini)
    return tilt * gini * math.sqrt(asked.variance * contexts / mismatch)


def _bound_level(asked: PowerPlan) -> float:
    return math.sqrt(-2 * asked.log_level / asked.figures.chernoff)


def _twice_level(asked: PowerPlan) -> float:
    return math.sqrt(-2 * (asked.log_level - math.log(2)) / asked.figures.chernoff)


def _exact_level(asked: PowerPlan) -> float:
    return -float(ndtri_exp(asked.log_level))


def _bound_log_p(asked: PowerPlan, z: float) -> float:
    return -asked.figures.chernoff * max(0.0, z) ** 2 / 2


def _twice_log_p(asked: PowerPlan, z: float) -> float:
    return math.log(2) + _bound_log_p(asked, z)


def _exact_log_p(asked: PowerPlan, z: float) -> float:
    return float(log_ndtr(-z))


_DEFAULT: Final = _Model(
    name=DEFAULT,
    unit="tokens",
    z=_default_z,
    z_level=_twice_level,
    log_p=_twice_log_p,
    z_limit=_default_limit,
    factor=lambda asked: asked.gain**-2,
)
_MODELS: Final = (
    _DEFAULT,
    _Model(name=CENTRED, unit="tokens", z=_centred_z, z_level=_bound_level, log_p=_bound_log_p, z_limit=_centred_limit),
    _Model(name="count", unit="tokens", z=_count_z, z_level=_exact_level, log_p=_exact_log_p),
    _Model(
        name="e-process",
        unit="tokens",
        z=lambda asked, tilt, tokens: _centred_z(asked, tilt, tokens / asked.eprocess_factor),
        z_level=_bound_level,
        log_p=_bound_log_p,
        z_limit=_centred_limit,
        factor=lambda asked: asked.eprocess_factor,
    ),
    _Model(name="open-weight", unit="contexts", z=_open_z, z_level=_bound_level, log_p=_bound_log_p),
)


def _answer(model: _Model, asked: PowerPlan, tokens: int | None) -> PowerOfTest:
    needed, limit = model.needed(asked), model.z_limit(asked)
    ideal = math.inf
    if limit is not None:
        energy = asked.figures.energy
        per_position = asked.tilt * asked.figures.gini * math.sqrt(asked.variance / energy)
        ideal = model.factor(asked) * (model.z_needed(asked) / per_position) ** 2 / asked.figures.scored
    z = None if tokens is None else model.z(asked, asked.tilt, tokens)
    tau = math.inf if tokens is None else model.smallest_tau(asked, tokens)
    dose = tau / asked.absorption if asked.absorption is not None else math.inf
    return PowerOfTest(
        name=model.name,
        unit=model.unit,
        z_level=model.z_level(asked),
        z_needed=model.z_needed(asked),
        z_limit=limit,
        needed=_whole(needed),
        needed_ideal=_whole(ideal),
        smallest_tau=tau if tau < math.inf else None,
        smallest_dose=dose if dose <= 1 else None,
        expected_z=z,
        expected_log10_p=None if z is None else min(0.0, model.log_p(asked, z) / _LN10),
        power=None if tokens is None else model.power(asked, tokens),
    )


def _whole(tokens: float) -> int | None:
    return None if math.isinf(tokens) else max(1, math.ceil(tokens))


def _at(asked: PowerPlan, dose: float, level: float) -> PowerPlan:
    if asked.absorption is None:
        return replace(asked, tau=dose, dose=None, level=level)
    return replace(asked, tau=None, dose=dose, level=level)


def _how_sure(asked: PowerPlan) -> str:
    """Say how well the figure is known on which the answer rests."""
    figures = asked.figures
    if figures.mismatch_error <= 0:
        return "How wrong the reference is was given, not measured"
    least = max(0.0, figures.mismatch - 2 * figures.mismatch_error)
    lighter = replace(asked, figures=replace(figures, mismatch=least))
    limit, needed = _default_limit(lighter), _DEFAULT.needed(lighter)
    measured = f"({figures.source}: {figures.mismatch:.1e} with a standard error of {figures.mismatch_error:.1e})"
    if math.isinf(needed):
        return f"How wrong it is has been measured {measured}: at two errors less z would stop at {limit:.2g}"
    return (
        f"How wrong it is has been measured {measured}: at two errors less {needed:.2g} tokens would do. A larger "
        "pilot tells"
    )


def _notes(asked: PowerPlan, tests: Sequence[PowerOfTest]) -> tuple[str, ...]:
    default = tests[0]
    notes = []
    if default.needed is None and default.z_limit is not None:
        notes.append(
            f"no number of tokens is enough: with this reference the expected z stops at {default.z_limit:.2g}, and "
            f"{default.z_needed:.2g} is needed. A reference that were not wrong would take "
            f"{default.needed_ideal:.2g} tokens: a better reference (the suspect's own base, a clean twin), a larger "
            f"dose or a larger delta comes first. {_how_sure(asked)}"
        )
    elif default.needed is not None and default.needed > _COLLECTABLE:
        notes.append(
            f"{default.needed:.2g} tokens are more than anyone collects: at this dose and tilt the question cannot be "
            "answered from text. Logits of the suspect, a larger delta or a narrower window can"
        )
    if asked.tilt > 1:
        notes.append(
            f"a tilt of {asked.tilt:.2g} logits is beyond the first order that the plan is reckoned with: the tokens "
            "needed are a rough figure"
        )
    if asked.tau is None and asked.absorption is not None:
        notes.append(
            f"tau {asked.carried:.2g} is dose {asked.dose:g} times absorption {asked.absorption:g}: an assumption. Of "
            "few marked tokens, or at small doses, students carry less"
        )
    if default.needed is not None and default.needed > 30 * asked.figures.tokens:
        notes.append(
            f"this is {default.needed / asked.figures.tokens:.0f} times the text that the figures were measured on "
            f"({asked.figures.source}): measure again on the way"
        )
    return tuple(notes)
