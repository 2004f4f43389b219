from __future__ import annotations

import math
import time

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect.binomial import MAX_PAIRS, green_interval, log10_tail, log10_tails, min_log10_p

#: What the README promises, in decades.
PROMISE = 1e-6


def reference(green: int, pairs: int, k: int) -> float:
    """log10 P(Binomial(pairs, k/256) >= green) at 60 digits, by the definition.

    mp.log10(mp.binomial(n, g) * p^g * (1-p)^(n-g) * sum of ratios), the ratios' sum in integers scaled by
    2^256; at or below the mean, log1p of minus the other tail.
    """
    if green == 0:
        return 0.0
    mirrored = 256 * green <= pairs * k
    if mirrored:
        green, k = pairs - green + 1, 256 - k
    one = 1 << 256
    term, total, x = one, one, green
    while x < pairs and term > 1 << 64:
        term = term * ((pairs - x) * k) // ((x + 1) * (256 - k))
        total += term
        x += 1
    with mpmath.workdps(60):
        gamma = mpmath.mpf(k) / 256
        log_p = mpmath.loggamma(pairs + 1) - mpmath.loggamma(green + 1) - mpmath.loggamma(pairs - green + 1)
        log_p += green * mpmath.log(gamma) + (pairs - green) * mpmath.log(1 - gamma) + mpmath.log(mpmath.mpf(total))
        log_p -= 256 * mpmath.log(2)
        if mirrored:
            log_p = mpmath.log1p(-mpmath.exp(log_p))
        return float(log_p / mpmath.log(10))


def exact(green: int, pairs: int, k: int) -> float:
    """The same by counting outcomes in integers: sum of C(n, x) k^x (256 - k)^(n - x) over 256^n."""
    missing = sum(math.comb(pairs, x) * k**x * (256 - k) ** (pairs - x) for x in range(green))
    every = 256**pairs
    with mpmath.workdps(60):
        if 2 * missing < every:
            return float(mpmath.log1p(-mpmath.mpf(missing) / every) / mpmath.log(10))
        return float(mpmath.log10(mpmath.mpf(every - missing) / every))


@pytest.mark.parametrize(("green", "pairs", "k"), [(3, 7, 64), (5, 20, 64), (4, 20, 64), (260, 300, 200), (1, 300, 1)])
def test_reference_is_the_definition(green: int, pairs: int, k: int) -> None:
    assert reference(green, pairs, k) == pytest.approx(exact(green, pairs, k), rel=1e-13)


@pytest.mark.parametrize("pairs", [1, 2, 15, 16, 17, 33, 1000, 10**5, 10**7, 10**9])
@pytest.mark.parametrize("k", [1, 3, 64, 128, 255])
def test_against_mpmath(pairs: int, k: int) -> None:
    deviation = math.sqrt(pairs * k * (256 - k)) / 256
    for z in (-300.0, -20.0, -4.0, -1.0, 0.0, 0.5, 1.0, 3.0, 10.0, 37.0, 100.0, 220.0, 1000.0):
        green = round(pairs * k / 256 + z * deviation)
        if 0 <= green <= pairs:
            expected = reference(green, pairs, k)
            # Tighter than promised: 1e-9 decades down to 1e-100000, and relative to log p near p = 1 as well.
            assert log10_tail(green, pairs=pairs, k=k) == pytest.approx(expected, abs=1e-300, rel=1e-11)
            if expected > -1e5:
                assert log10_tail(green, pairs=pairs, k=k) == pytest.approx(expected, abs=1e-9)


# Rows: pairs, green, k, log10 p by `reference` above.
@pytest.mark.parametrize(
    ("pairs", "green", "k", "expected"),
    [
        (1_000_000_000, 250_000_000, 64, -0.3010194516196561),
        (1_000_000_000, 250_085_000, 64, -9.569302343782454),
        (1_000_000_000, 502_395_000, 128, -4984.8444274893645),
        (1_000_000_000, 503_390_000, 128, -9984.715092231198),
        (10_000_000, 5_338_800, 128, -9980.480794980991),
        (40_000, 37_000, 128, -7415.711741090429),
    ],
)
def test_table(pairs: int, green: int, k: int, expected: float) -> None:
    assert log10_tail(green, pairs=pairs, k=k) == pytest.approx(expected, abs=PROMISE)
    assert reference(green, pairs, k) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("pairs", [10**6, 10**8, 10**9])
@pytest.mark.parametrize("k", [1, 64, 128, 255])
def test_the_last_outcomes_of_all(pairs: int, k: int) -> None:
    for green in (pairs - 5, pairs - 1, pairs):
        assert log10_tail(green, pairs=pairs, k=k) == pytest.approx(reference(green, pairs, k), abs=PROMISE)


@pytest.mark.parametrize("pairs", [0, 1, 17, 10**9])
@pytest.mark.parametrize("k", [1, 77, 128, 255])
def test_edges(pairs: int, k: int) -> None:
    nothing = log10_tail(0, pairs=pairs, k=k)
    assert nothing == 0.0
    assert math.copysign(1.0, nothing) == 1.0
    assert log10_tail(pairs, pairs=pairs, k=k) == min_log10_p(pairs, k=k)
    assert min_log10_p(pairs, k=k) == pytest.approx(pairs * math.log10(k / 256), rel=1e-15)


@given(st.integers(1, 400), st.integers(1, 255), st.data())
def test_against_counting(pairs: int, k: int, data: st.DataObject) -> None:
    green = data.draw(st.integers(0, pairs))
    assert log10_tail(green, pairs=pairs, k=k) == pytest.approx(exact(green, pairs, k), rel=1e-10, abs=1e-300)


@given(st.integers(1, 10**9), st.integers(1, 255), st.floats(0, 1))
def test_falls_with_every_green_pair(pairs: int, k: int, share: float) -> None:
    green = min(int(share * pairs), pairs - 1)
    here, above = log10_tail(green, pairs=pairs, k=k), log10_tail(green + 1, pairs=pairs, k=k)
    assert above <= here + 1e-14 * abs(here)
    assert here <= 0.0
    # Far out the ratio of neighbours is known: P(X > g) / P(X >= g) < (n - g) gamma / ((g + 1) (1 - gamma)).
    if 256 * green > 2 * pairs * k and pairs < 10**6:
        bound = math.log10((pairs - green) * k / ((green + 1) * (256 - k)))
        assert above - here <= bound + 1e-12 * abs(here)


@given(st.integers(1, 10**7), st.integers(1, 255), st.floats(0, 1), st.integers(-3, 3))
def test_complement(pairs: int, k: int, share: float, z: int) -> None:
    # P(X >= g) of the greens and P(X >= n - g + 1) of the reds are all there is.
    near = pairs * k / 256 + z * math.sqrt(pairs * k * (256 - k)) / 256 + share
    green = min(max(1, round(near)), pairs)
    greens = log10_tail(green, pairs=pairs, k=k)
    reds = log10_tail(pairs - green + 1, pairs=pairs, k=256 - k)
    assert 10**greens + 10**reds == pytest.approx(1.0, abs=1e-10)


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 255))
def test_many_is_one_by_one(green: list[int], k: int) -> None:
    many = log10_tails(np.array(green, dtype=np.int64), pairs=500, k=k)
    assert many.dtype == np.float64
    assert many.tolist() == pytest.approx([log10_tail(g, pairs=500, k=k) for g in green], rel=1e-13, abs=1e-300)


def test_many_is_one_by_one_at_scale() -> None:
    pairs, k = 10**9, 64
    green = np.random.default_rng(7).binomial(pairs, k / 256, 10_000).reshape(100, 100)
    # Outcomes far from the rest must not lean on each other.
    green[0, :3] = [0, pairs, pairs // 2]
    many = log10_tails(green, pairs=pairs, k=k)
    assert many.shape == green.shape
    for row, column in [(0, 0), (0, 1), (0, 2), (1, 1), (50, 3), (99, 99)]:
        one = log10_tail(int(green[row, column]), pairs=pairs, k=k)
        assert many[row, column] == pytest.approx(one, rel=1e-11)


def test_large_counts_take_milliseconds() -> None:
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        log10_tail(500_000_001, pairs=10**9, k=128)
        best = min(best, time.perf_counter() - start)
    assert best < 0.05


@pytest.mark.parametrize(
    ("green", "pairs", "k"), [(-1, 5, 64), (6, 5, 64), (0, -1, 64), (0, MAX_PAIRS + 1, 64), (1, 5, 0), (1, 5, 256)]
)
def test_refuses_what_cannot_be(green: int, pairs: int, k: int) -> None:
    with pytest.raises(ValueError, match="got"):
        log10_tail(green, pairs=pairs, k=k)
    with pytest.raises(ValueError, match="got"):
        log10_tails(np.array([0, green]), pairs=pairs, k=k)


def test_refuses_counts_that_are_floats() -> None:
    with pytest.raises(ValueError, match="float64"):
        log10_tails(np.array([1.0]), pairs=5, k=64)  # type: ignore[arg-type]
    assert log10_tails(np.zeros((0, 3), dtype=np.int64), pairs=5, k=64).shape == (0, 3)


def mp_upper(green: int, pairs: int, share: mpmath.mpf) -> mpmath.mpf:
    """P(Binomial(pairs, share) >= green), green above the mean: its first term times the sum of ratios."""
    first = mpmath.exp(
        mpmath.loggamma(pairs + 1) - mpmath.loggamma(green + 1) - mpmath.loggamma(pairs - green + 1)
    ) * mpmath.exp(green * mpmath.log(share) + (pairs - green) * mpmath.log1p(-share))
    one = 1 << 128
    odds = int(share / (1 - share) * one)
    term, total, x = one, one, green
    while x < pairs and term > 1 << 60:
        term = (term * (pairs - x) // (x + 1) * odds) >> 128
        total += term
        x += 1
    return first * total / one


@pytest.mark.parametrize(
    ("green", "pairs", "level"),
    [
        (1, 3, 0.95),
        (60, 80, 0.95),
        (20, 80, 0.99),
        (2, 10**6, 0.95),
        (130_000, 500_000, 0.999),
        (3 * 10**8, 10**9, 0.95),
    ],
)
def test_interval_ends_have_the_tails_they_should(green: int, pairs: int, level: float) -> None:
    low, high = green_interval(green, pairs=pairs, level=level)
    assert low < green / pairs < high
    outside = (1 - level) / 2
    with mpmath.workdps(60):
        assert float(mp_upper(green, pairs, mpmath.mpf(low))) == pytest.approx(outside, rel=1e-5)
        assert float(mp_upper(pairs - green, pairs, 1 - mpmath.mpf(high))) == pytest.approx(outside, rel=1e-5)


def test_interval_edges() -> None:
    assert green_interval(0, pairs=0) == (0.0, 1.0)
    # With nothing green the upper end solves (1 - share)^n = 0.025; with all green the lower share^n.
    assert green_interval(0, pairs=10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert green_interval(10, pairs=10) == pytest.approx((0.025**0.1, 1.0))
    with pytest.raises(ValueError, match="level"):
        green_interval(1, pairs=2, level=1.0)
    with pytest.raises(ValueError, match="got 3"):
        green_interval(3, pairs=2)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_interval_contains_and_mirrors(pairs: int, share: float) -> None:
    green = round(share * pairs)
    low, high = green_interval(green, pairs=pairs)
    assert 0.0 <= low <= green / pairs <= high <= 1.0
    other_low, other_high = green_interval(pairs - green, pairs=pairs)
    assert (1 - other_high, 1 - other_low) == pytest.approx((low, high), abs=1e-9)
