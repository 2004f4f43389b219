"""Plans against simulation, against the shipped student, and against figures that others published."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from detect.corpus import Corpus, read_corpus
from detect.pilot import PilotFigures, pilot
from detect.power import PowerPlan, dose_curve, plan, power_curve
from detect.power_presets import ABSORPTIONS, DOMAINS, REFERENCES, absorption_of, preset_figures
from detect.records import Reader
from detect.reference import Reference
from detect.tally import UNIT, Tally, tally_of
from detect.weighted_sums import WeightedSum
from watermark import kernels
from watermark.errors import ReferenceMismatchError, UsageError
from watermark.examples import examples_path
from watermark.keyring import Keyring

Floats = npt.NDArray[np.float64]

FIGURES = PilotFigures(
    source="test",
    tokens=10_000,
    window=1,
    scored=1.0,
    gini=0.7,
    energy=0.7,
    mismatch=0.0,
    distinct_scale=1.0,
    distinct_exponent=1.0,
)
PLAN = PowerPlan(figures=FIGURES, delta=2.0, tau=0.1, fleet_share=1.0)


# A student by simulation: windows with Zipf's frequencies, a categorical after each, tilted by theta on green.


@dataclass(frozen=True)
class Student:
    share: Floats
    base: Floats
    """(W, V), what the student would say without the tilt."""
    reference: Floats
    theta: float
    gamma: float

    def tilted(self, green: npt.NDArray[np.bool_]) -> Floats:
        said = self.base * np.exp(self.theta * green)
        return np.asarray(said / said.sum(axis=1, keepdims=True))

    def counts(self, rng: np.random.Generator, green: npt.NDArray[np.bool_], n: int) -> npt.NDArray[np.int64]:
        return rng.multinomial(rng.multinomial(n, self.share), self.tilted(green))

    def green(self, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        return rng.random(self.base.shape) < self.gamma

    def weights(self, counts: npt.NDArray[np.int64]) -> Floats:
        return np.asarray(counts - counts.sum(axis=1, keepdims=True) * self.reference)

    def figures(self) -> PilotFigures:
        """The model's constants, by their definitions."""
        squares = (self.reference**2).sum(axis=1)
        own = 1 - 2 * (self.base * self.reference).sum(axis=1) + squares
        p = self.base
        variance = self.gamma * (1 - self.gamma)
        tilt = variance * (p**2 * (1 - 2 * p + (p**2).sum(axis=1, keepdims=True))).sum(axis=1)
        return replace(
            FIGURES,
            gini=float(self.share @ (1 - squares)),
            energy=float(self.share @ own),
            mismatch=float(self.share**2 @ ((self.base - self.reference) ** 2).sum(axis=1)),
            tilt_mismatch=float(self.share**2 @ tilt),
        )


def student_of(*, theta: float, gamma: float, wrong: float, seed: int = 1) -> Student:
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 301) ** 0.8
    base = rng.dirichlet(np.full(40, 0.3), size=300)
    reference = (1 - wrong) * base + wrong * rng.dirichlet(np.full(40, 0.3), size=300)
    return Student(share / share.sum(), base, reference, theta, gamma)


def simulated(student: Student, n: int, *, keys: int, seed: int) -> tuple[Floats, Floats]:
    """Return z and log10 of Chernoff's bound under each of many keys."""
    rng = np.random.default_rng(seed)
    zs, log10_ps = [], []
    for _ in range(keys):
        green = student.green(rng)
        a = student.weights(student.counts(rng, green, n))
        law = WeightedSum(a, gamma=student.gamma)
        statistic = float((a * (green - student.gamma)).sum())
        zs.append(statistic / law.sd)
        log10_ps.append(law.log10_chernoff(statistic))
    return np.array(zs), np.array(log10_ps)


def plan_for(student: Student, *, level: float = 1e-6, power: float = 0.8) -> PowerPlan:
    figures = student.figures()
    # The bound's share of the Gaussian exponent, from a draw without a key: as a pilot does it.
    rng = np.random.default_rng(99)
    counts = rng.multinomial(rng.multinomial(10_000, student.share), student.base)
    law = WeightedSum(student.weights(counts), gamma=student.gamma)
    share = -law.log10_chernoff(math.sqrt(2 * math.log(1e6)) * law.sd) / 6
    return PowerPlan(
        figures=replace(figures, chernoff=share),
        delta=student.theta / 0.1,
        tau=0.1,
        gamma_256=round(256 * student.gamma),
        fleet_share=1.0,
        level=level,
        power=power,
    )


def check_power(*, theta: float, gamma: float, wrong: float, keys: int, near: float) -> None:
    student = student_of(theta=theta, gamma=gamma, wrong=wrong)
    asked = plan_for(student)
    centred = plan(asked).test("centred")
    assert centred.needed is not None
    zs, log10_ps = simulated(student, centred.needed, keys=keys, seed=7)
    assert zs.mean() == pytest.approx(centred.z_needed, abs=0.2 + 3 / math.sqrt(keys))
    assert zs.std() == pytest.approx(1.0, abs=0.08 + 3 / math.sqrt(2 * keys))
    assert (log10_ps <= -6).mean() == pytest.approx(0.8, abs=near)


@pytest.mark.parametrize(("gamma", "theta", "wrong"), [(0.5, 0.3, 0.0), (0.5, 0.3, 0.2), (0.25, 0.05, 0.0)])
def test_the_power_asked_for_is_the_power_found(gamma: float, theta: float, wrong: float) -> None:
    check_power(theta=theta, gamma=gamma, wrong=wrong, keys=250, near=0.09)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gamma", "theta", "wrong"),
    [(0.5, 0.3, 0.0), (0.5, 0.3, 0.1), (0.5, 0.3, 0.2), (0.25, 0.05, 0.0), (0.25, 0.05, 0.02)],
)
def test_the_power_asked_for_is_the_power_found_with_more_keys(gamma: float, theta: float, wrong: float) -> None:
    check_power(theta=theta, gamma=gamma, wrong=wrong, keys=2000, near=0.05)


def test_z_stops_growing_where_the_reference_is_wrong() -> None:
    student = student_of(theta=0.1, gamma=0.5, wrong=0.6)
    asked = plan_for(student)
    centred = plan(asked, tokens=200_000).test("centred")
    assert centred.z_limit is not None
    assert centred.expected_z is not None
    zs, _ = simulated(student, 200_000, keys=60, seed=3)
    assert zs.mean() == pytest.approx(centred.expected_z, abs=0.5)
    assert centred.expected_z < centred.z_limit < centred.z_needed
    assert centred.needed is None
    assert centred.needed_ideal is not None
    assert "no number of tokens is enough" in plan(asked).notes[0]


def test_the_count_is_as_strong_as_planned_where_the_tilt_is_everywhere_the_same() -> None:
    student = student_of(theta=0.4, gamma=0.5, wrong=0.0)
    rng = np.random.default_rng(5)
    n, zs, distinct, once = 1500, [], [], []
    for _ in range(150):
        green = student.green(rng)
        counts = student.counts(rng, green, n)
        said = counts > 0
        distinct.append(int(said.sum()))
        once.append(int((counts == 1).sum()))
        zs.append((green[said].sum() - student.gamma * said.sum()) / math.sqrt(0.25 * said.sum()))
    exponent = float(np.mean(once) / np.mean(distinct))
    figures = replace(
        student.figures(), distinct_scale=float(np.mean(distinct)) / n**exponent, distinct_exponent=exponent
    )
    asked = replace(plan_for(student), figures=figures, count_decline=0.0)
    expected = plan(asked, tokens=n).test("count").expected_z
    assert expected is not None
    # Pairs said once have more open choices than the mean position: the plan is cautious by so much.
    assert expected <= np.mean(zs) <= 1.35 * expected


def test_the_open_weight_test_is_as_strong_as_planned() -> None:
    student = student_of(theta=0.2, gamma=0.5, wrong=0.3)
    rng = np.random.default_rng(5)
    zs = []
    for _ in range(200):
        green = student.green(rng)
        a = student.tilted(green) - student.reference
        zs.append(float((a * (green - 0.5)).sum()) / math.sqrt(0.25 * float((a**2).sum())))
    squares = ((student.base - student.reference) ** 2).sum(axis=1)
    gini = float((1 - (student.base**2).sum(axis=1)).mean())
    asked = replace(plan_for(student), figures=replace(FIGURES, gini=gini), open_mismatch=float(squares.mean()))
    expected = plan(asked, tokens=300).test("open-weight").expected_z
    assert expected is not None
    assert np.mean(zs) == pytest.approx(expected, abs=0.1 * expected + 0.25)


# The pilot.


def tally_from(responses: list[npt.NDArray[np.uint32]], reference: Reference) -> Tally:
    return tally_of(responses, window=1, reference=reference)


def synthetic(rng: np.random.Generator, *, responses: int, length: int, base: Floats, reference: Floats) -> Reference:
    """Return responses of a Markov chain, as the ids of a reference that gives every token a probability."""
    vocabulary = len(base)
    ids = np.zeros((responses, length), dtype=np.uint32)
    ids[:, 0] = rng.integers(vocabulary, size=responses)
    thresholds = base.cumsum(axis=1)
    for t in range(1, length):
        drawn = (rng.random(responses)[:, None] > thresholds[ids[:, t - 1]]).sum(axis=1)
        ids[:, t] = np.minimum(drawn, vocabulary - 1)
    before = np.concatenate([np.zeros((responses, 1), np.uint32), ids[:, :-1]], axis=1).ravel()
    top_p = reference[before].astype(np.float32)
    flat = ids.ravel()
    return Reference(
        name="synthetic",
        tokenizer="",
        ids=flat,
        starts=np.arange(0, responses * length + 1, length, dtype=np.int64),
        top_ids=np.tile(np.arange(vocabulary, dtype=np.uint32), (len(flat), 1)),
        top_p=top_p,
        said_p=top_p[np.arange(len(flat)), flat],
    )


def parts(reference: Reference) -> list[npt.NDArray[np.uint32]]:
    return [reference.ids[a:b] for a, b in zip(reference.starts[:-1], reference.starts[1:], strict=True)]


@pytest.fixture(scope="module")
def chain() -> tuple[Floats, Floats]:
    rng = np.random.default_rng(4)
    base = rng.dirichlet(np.full(8, 0.8), size=8).clip(0.03)
    base /= base.sum(axis=1, keepdims=True)
    other = rng.dirichlet(np.full(8, 0.8), size=8).clip(0.03)
    other /= other.sum(axis=1, keepdims=True)
    return base, 0.7 * base + 0.3 * other


def test_a_pilot_agrees_with_a_count_by_hand(chain: tuple[Floats, Floats]) -> None:
    reference = synthetic(np.random.default_rng(1), responses=30, length=40, base=chain[0], reference=chain[1])
    figures = pilot(tally_from(parts(reference), reference), reference)
    sums: list[dict[tuple[int, int], float]] = []
    for ids, start in zip(parts(reference), reference.starts[:-1], strict=True):
        own: dict[tuple[int, int], float] = {}
        for t in range(1, len(ids)):
            w = int(ids[t - 1])
            for v in range(8):
                p = float(reference.top_p[start + t, v])
                if p >= 0.02 or v == ids[t]:
                    own[w, v] = own.get((w, v), 0.0) + (v == ids[t]) - p
        sums.append(own)
    n = 30 * 39
    couples = sum(39 * 39 for i in range(30) for j in range(30) if i != j)
    shared = sum(
        value * sums[j].get(key, 0.0) for i in range(30) for j in range(30) if i != j for key, value in sums[i].items()
    )
    whole: dict[tuple[int, int], float] = {}
    for own in sums:
        for key, value in own.items():
            whole[key] = whole.get(key, 0.0) + value
    total = sum(value**2 for value in whole.values())
    assert figures.mismatch == pytest.approx(shared / couples, rel=1e-4)
    assert figures.sum_of_squares(n) == pytest.approx(total, rel=1e-5)
    assert figures.scored == 39 / 40
    squares = (reference.top_p.astype(np.float64) ** 2).sum(axis=1).reshape(30, 40)[:, 1:]
    assert figures.gini == pytest.approx(float((1 - squares).mean()), rel=1e-6)


def test_the_sum_of_squares_grows_as_the_pilot_says(chain: tuple[Floats, Floats]) -> None:
    rng = np.random.default_rng(2)
    pilots, totals = [], []
    for _ in range(40):
        small = synthetic(rng, responses=20, length=30, base=chain[0], reference=chain[1])
        pilots.append(pilot(tally_from(parts(small), small), small))
        large = synthetic(rng, responses=200, length=30, base=chain[0], reference=chain[1])
        tally = tally_from(parts(large), large)
        totals.append(float((((tally.said * UNIT - tally.expected) / UNIT) ** 2).sum()))
    predicted = np.array([figures.sum_of_squares(200 * 29) for figures in pilots])
    error = predicted.std() / math.sqrt(len(pilots)) + np.std(totals) / math.sqrt(len(totals))
    assert predicted.mean() == pytest.approx(np.mean(totals), abs=4 * error)
    spread = np.std([figures.mismatch for figures in pilots])
    assert np.mean([figures.mismatch_error for figures in pilots]) == pytest.approx(spread, rel=0.4)


def test_pilots_that_cannot_be_used_are_refused(chain: tuple[Floats, Floats]) -> None:
    reference = synthetic(np.random.default_rng(1), responses=30, length=40, base=chain[0], reference=chain[1])
    tally = tally_from(parts(reference), reference)
    with pytest.raises(UsageError, match="at least 500"):
        pilot(tally_from(parts(reference)[:5], reference.first(5)), reference.first(5))
    with pytest.raises(ReferenceMismatchError, match="same outputs"):
        pilot(tally, reference.first(5))
    with pytest.raises(UsageError, match="without a reference"):
        pilot(tally_of(parts(reference), window=1), reference)
    with pytest.raises(UsageError, match="gamma"):
        pilot(tally, reference, gamma_256=0)


# The shipped student.


@pytest.fixture(scope="module")
def shipped() -> tuple[Corpus, Reference, Keyring]:
    from watermark.tokenizer import load

    keyring = Keyring.load(examples_path("keyring.json"))
    window = keyring.scope().params.window
    corpus = read_corpus(Reader([examples_path("student.jsonl")]), load("smollm2"), window=window)
    return corpus, Reference.load(examples_path("student-reference.npz")), keyring


def shipped_tally(shipped: tuple[Corpus, Reference, Keyring], answers: int) -> tuple[Tally, Reference]:
    corpus, reference = shipped[0].first(answers), shipped[1].first(answers)
    params = shipped[2].scope().params
    tally = tally_of(
        corpus.responses,
        window=params.window,
        special_ids=params.special_ids,
        prompts=corpus.prompts,
        echoes=corpus.echoes,
        reference=reference,
    )
    return tally, reference


def z_of(shipped: tuple[Corpus, Reference, Keyring], answers: int) -> float:
    """Return the centred test's z from its definition."""
    tally, _ = shipped_tally(shipped, answers)
    scope = shipped[2].scope()
    a = (tally.said * UNIT - tally.expected) / UNIT
    seeds = kernels.seeds(scope.lane_words(), tally.windows, tally.lanes)
    green = kernels.green(seeds, scope.params.bounds()[tally.lanes], tally.pair_window, tally.tokens)
    return float((a * (green - 0.25)).sum() / math.sqrt(0.1875 * (a**2).sum()))


@pytest.mark.parametrize(("answers", "measured"), [(14, 6.69), (35, 9.67), (70, 12.12)])
def test_the_shipped_student_is_as_strong_as_its_tau_says(
    shipped: tuple[Corpus, Reference, Keyring], answers: int, measured: float
) -> None:
    """Tau 0.153 is the estimate from all 70 answers; the pilot is the first 14 and knows no key."""
    z = z_of(shipped, answers)
    assert z == pytest.approx(measured, abs=0.01)
    pilot_figures = pilot(*shipped_tally(shipped, 14))
    tokens = int(shipped[1].starts[answers])
    for figures in (pilot_figures, preset_figures("prose", window=1)):
        asked = PowerPlan(figures=figures, delta=3.0, tau=0.153, fleet_share=1.0)
        expected = plan(asked, tokens=tokens).test("centred").expected_z
        assert expected == pytest.approx(z, rel=0.12)


def test_a_pilot_of_the_first_answers_foretells_all(shipped: tuple[Corpus, Reference, Keyring]) -> None:
    figures = pilot(*shipped_tally(shipped, 14))
    tally, _ = shipped_tally(shipped, 70)
    a = (tally.said * UNIT - tally.expected) / UNIT
    assert figures.sum_of_squares(tally.scored) == pytest.approx(float(a @ a), rel=0.1)
    assert figures.gini == pytest.approx(float(tally.information.sum()) / UNIT / tally.scored, rel=0.1)
    assert figures.distinct(tally.scored) == pytest.approx(int((tally.said > 0).sum()), rel=0.15)
    assert 0.9 < figures.chernoff <= 1


def test_the_preset_of_the_count_is_the_shipped_students() -> None:
    asked = PowerPlan(figures=preset_figures("prose", window=1), delta=3.0, tau=0.153, fleet_share=1.0)
    for tokens, measured in ((2130, 3.65), (5427, 4.38), (11_027, 5.02)):
        assert plan(asked, tokens=tokens).test("count").expected_z == pytest.approx(measured, rel=0.12)


def test_sanders_shipped_log() -> None:
    """.2588 green of 248,200 distinct pairs in favoured windows is z = 10.1, and p = 2.6e-24 (METHOD 1)."""
    share = absorption_of("full", 2).share
    asked = PowerPlan(
        figures=replace(FIGURES, window=2),
        delta=3.0,
        dose=0.05,
        absorption=share,
        fleet_share=1.0,
        count_decline=0.0,
    )
    count = plan(asked, tokens=248_200).test("count")
    assert count.expected_z == pytest.approx(0.0088 / math.sqrt(0.1875 / 248_200), rel=0.03)
    assert count.expected_log10_p == pytest.approx(-23.6, abs=1.2)


# The formulas.


def test_without_mismatch_it_is_the_textbook_formula() -> None:
    centred = plan(PLAN).test("centred")
    # sqrt(2 ln 1e6) + 0.8416, mpmath: sqrt(2*log(1e6)) = 5.25652177...
    assert centred.z_level == pytest.approx(5.2565217, abs=1e-6)
    assert centred.z_needed == pytest.approx(5.2565217 + 0.8416212, abs=1e-6)
    assert centred.needed == math.ceil(centred.z_needed**2 / (0.2**2 * 0.1875 * 0.7))
    assert centred.z_limit is None
    # The normal quantile of 1e-6, for the count's exact tail.
    assert plan(PLAN).test("count").z_level == pytest.approx(4.7534243, abs=1e-6)


def test_counting_needs_one_over_gini_times_the_tokens() -> None:
    """METHOD 0.4: the same z, and nothing said twice."""
    answer = plan(replace(PLAN, count_decline=0.0), tokens=10_000)
    centred, count = answer.test("centred").expected_z, answer.test("count").expected_z
    assert centred is not None
    assert count is not None
    assert (centred / count) ** 2 == pytest.approx(1 / 0.7)


def test_mismatch_and_its_limit() -> None:
    asked = replace(PLAN, figures=replace(FIGURES, mismatch=1e-5))
    centred = plan(asked).test("centred")
    assert centred.needed is not None
    assert centred.needed_ideal is not None
    assert centred.z_limit == pytest.approx(0.2 * 0.7 * math.sqrt(0.1875 / 1e-5))
    information = 0.2**2 * 0.1875 * 0.7**2
    wanted = centred.z_needed**2
    assert centred.needed == math.ceil(wanted * 0.7 / (information - wanted * 1e-5))
    assert centred.needed > centred.needed_ideal == plan(PLAN).test("centred").needed


def test_what_is_needed_and_what_is_found_agree() -> None:
    for window in (1, 2, 3, 8):
        asked = PowerPlan(figures=preset_figures("code", window=window), delta=2.0, tau=0.1)
        for test in plan(asked).tests:
            assert test.needed is not None
            at = plan(asked, tokens=test.needed).test(test.name)
            assert at.power == pytest.approx(0.8, abs=2e-3)
            assert at.smallest_tau == pytest.approx(0.1, rel=2e-2)


def test_fleet_lanes_and_keys_cost_what_they_cost() -> None:
    whole, fleet = plan(PLAN).test("centred"), plan(replace(PLAN, fleet_share=0.75)).test("centred")
    assert whole.needed is not None
    assert fleet.needed is not None
    assert fleet.needed == pytest.approx(whole.needed / 0.75, abs=2)
    many = plan(replace(PLAN, keys=1000)).test("centred")
    assert many.z_level == pytest.approx(math.sqrt(2 * math.log(1e9)))


def test_the_default_is_the_smaller_p_of_two_doubled() -> None:
    answer = plan(PLAN, tokens=10_000)
    default, centred = answer.test("default"), answer.test("centred")
    # Window 1: the quasi-score is taken to be as good as centring, so that it costs a factor of 2 in p and no more.
    assert default.z_level == pytest.approx(math.sqrt(2 * math.log(2e6)))
    half = plan(replace(PLAN, level=5e-7), tokens=10_000).test("centred")
    assert (default.needed, default.power, default.smallest_tau) == (half.needed, half.power, half.smallest_tau)
    assert default.expected_z == centred.expected_z
    assert default.expected_log10_p is not None
    assert centred.expected_log10_p is not None
    assert default.expected_log10_p - centred.expected_log10_p == pytest.approx(math.log10(2))
    assert plan(replace(PLAN, tau=1e-7), tokens=10).test("default").expected_log10_p == 0.0


def test_the_quasi_scores_gain_is_of_the_window() -> None:
    wide = replace(PLAN, figures=replace(FIGURES, window=2, mismatch=1e-6))
    default, centred = plan(wide).test("default"), plan(replace(wide, level=5e-7)).test("centred")
    assert (default.z_limit, default.z_needed) == (1.5 * (centred.z_limit or 0.0), centred.z_needed)
    assert default.needed_ideal == pytest.approx((centred.needed_ideal or 0) / 1.5**2, abs=1)
    measured = plan(replace(wide, quasi_gain=1.2)).test("default")
    assert measured.z_limit == pytest.approx(1.2 * (centred.z_limit or 0.0))
    # Twice the smaller p is never worse than twice centring's, and windows that nobody measured gain nothing.
    for cautious in (replace(wide, quasi_gain=0.5), replace(wide, figures=replace(wide.figures, window=3))):
        assert plan(cautious).test("default").needed == centred.needed
    with pytest.raises(UsageError, match="quasi-score gain"):
        replace(PLAN, quasi_gain=0.0)


def test_the_e_process_costs_its_factor() -> None:
    answer = plan(replace(PLAN, eprocess_factor=2.0))
    centred, process = answer.test("centred").needed, answer.test("e-process").needed
    assert centred is not None
    assert process == pytest.approx(2 * centred, abs=2)


def test_an_infeasible_question_gets_its_figure() -> None:
    asked = replace(PLAN, tau=1e-7)
    answer = plan(asked)
    needed = answer.test("centred").needed
    assert needed is not None
    assert needed > 1e12
    assert "more than anyone collects" in answer.notes[0]


def test_a_dose_is_a_share_of_the_absorption() -> None:
    asked = PowerPlan(figures=FIGURES, delta=2.0, dose=0.05, absorption=0.4)
    answer = plan(asked, tokens=200_000)
    assert answer.tau == pytest.approx(0.02)
    assert any("assumption" in note for note in answer.notes)
    centred = answer.test("centred")
    assert centred.smallest_tau is not None
    assert centred.smallest_dose == pytest.approx(centred.smallest_tau / 0.4)


def test_curves() -> None:
    asked = PowerPlan(figures=preset_figures("prose", window=1), delta=2.0, dose=0.1, absorption=0.45)
    doses = [0.001, 0.05, 0.1, 0.5, 1.0]
    loose, strict = dose_curve(asked, doses, level=1e-2), dose_curve(asked, doses)
    assert loose.tokens[0] is None
    tokens = [value for value in loose.tokens if value]
    assert tokens == sorted(tokens, reverse=True)
    assert all(b is None or (a is not None and a < b) for a, b in zip(loose.tokens, strict.tokens, strict=True))
    grown = power_curve(asked, [100, 1000, 10_000, 100_000])
    assert list(grown.power) == sorted(grown.power)
    assert power_curve(asked, [100], test="count").power[0] < 0.01
    with pytest.raises(UsageError, match="expected one of default, centred, count"):
        power_curve(asked, [100], test="z")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"level": 0.0}, "level"),
        ({"power": 1.0}, "power"),
        ({"delta": -1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"gamma_256": 256}, "gamma"),
        ({"tau": 0.0}, "tau"),
        ({"tau": 2.0}, "the teacher itself"),
        ({"tau": None, "dose": 0.0, "absorption": 0.5}, "dose"),
        ({"tau": None, "dose": 0.1}, "--tau"),
        ({"dose": 0.1}, "got both"),
        ({"fleet_share": 1.5}, "fleet share"),
        ({"keys": 0}, "keys"),
        ({"count_decline": 0.7}, "count decline"),
    ],
)
def test_impossible_questions_are_refused(changed: dict[str, float | None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(PLAN, **changed)  # type: ignore[arg-type]


def test_tokens_are_positive() -> None:
    with pytest.raises(UsageError, match="tokens"):
        plan(PLAN, tokens=0)


def test_presets() -> None:
    for domain in DOMAINS:
        for reference in REFERENCES:
            for window in range(1, 9):
                figures = preset_figures(domain, window=window, reference=reference)
                assert figures.gini == DOMAINS[domain]
                assert 0 < figures.distinct(5000) <= 5000
    assert len({(row.student, row.window) for row in ABSORPTIONS}) == len(ABSORPTIONS)
    with pytest.raises(UsageError, match="not measured for student 'lora' at window 5"):
        absorption_of("lora", 5)
    for wrong in ({"domain": "poem"}, {"window": 9}, {"reference": "best"}, {"gini": 1.0}):
        with pytest.raises(UsageError):
            preset_figures(**{"domain": "prose", "window": 1, **wrong})  # type: ignore[arg-type]


# What is shown.


def test_table_and_json() -> None:
    from rich.console import Console

    from detect.power_table import power_json, power_table

    asked = PowerPlan(figures=preset_figures("prose", window=2), delta=2.0, dose=0.05, absorption=0.02)
    answer = plan(asked, tokens=200_000)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(power_table(answer))
    shown = console.export_text()
    assert "never" in shown
    assert "no number of tokens is enough" in shown
    assert "proves nothing" in shown
    parsed = json.loads(json.dumps(power_json(answer), allow_nan=False))
    assert parsed["schema"] == "taggant/power/1"
    assert parsed["tests"][0]["needed"] is None
    assert parsed["plan"]["figures"]["window"] == 2


def test_the_plot_is_one_file_and_always_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from xml.etree import ElementTree

    from detect.power_plot import write_power_plot

    asked = PowerPlan(figures=preset_figures("prose", window=1), delta=2.0, dose=0.1, absorption=0.45)
    one = write_power_plot(asked, tmp_path / "one.svg")
    two = write_power_plot(asked, tmp_path / "two.svg")
    assert one.read_bytes() == two.read_bytes()
    root = ElementTree.fromstring(one.read_text(encoding="utf-8"))  # noqa: S314 - ours
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "style=" not in one.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "two.svg"]
    with pytest.raises(UsageError, match="svg"):
        write_power_plot(asked, tmp_path / "plot.png")
    with pytest.raises(UsageError, match="no folder"):
        write_power_plot(asked, tmp_path / "none" / "plot.svg")
    # Where no dose is enough there is a plot all the same.
    write_power_plot(replace(asked, dose=1e-4), tmp_path / "never.svg")
