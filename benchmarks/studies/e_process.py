"""How many more tokens does the e-process want than a test of fixed size?

    python benchmarks/studies/e_process.py gaussian
    python benchmarks/studies/e_process.py student --keys 400 --first-key 1000

`gaussian` compares schedules and bets where S is Gaussian and lanes are even (no text, 6,000 draws a cell). `student`
runs the real code on students whose logits lean by a known tilt to the green tokens of random keys: windows drawn
from a Zipf law, a base distribution after each, the base as reference. Both tests get the same texts. N is the number
of tokens at which the centred test's Chernoff p is at most 1e-6 with 80% power. Seeds are fixed; every key is
another, and `--first-key` takes fresh ones.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from builders import corpus_of, scope_of

import detect.e_process
from detect.centred import CENTRED
from detect.corpus import Corpus
from detect.e_process import EProcess, sequential_test
from detect.e_values import tilt_scale
from detect.mark import GreenListMark, Mark
from detect.reference import Reference
from detect.tally import Tally, tally_of
from detect.weighted_test import weighted_test
from detect.weighting import Weights
from watermark import kernels

FloatArray = npt.NDArray[np.float64]

LEVEL = 1e-6
LOG_LEVEL = -math.log(LEVEL)
SEPARATOR = 0

app = typer.Typer(add_completion=False)


# ---------------------------------------------------------------------------------------------- Gaussian limit


def gaussian_bets(kind: str, sd: float) -> tuple[FloatArray, FloatArray]:
    """Tilts in units of 1 / sd of all the evidence planned, and their shares."""
    if kind == "oracle":
        return np.array([sd]), np.ones(1)
    if kind == "one":
        return np.array([6.2]), np.ones(1)
    if kind == "wide":
        return np.geomspace(0.6, 120, 32), np.full(32, 1 / 32)
    shares = 2.0 ** -(np.arange(9) / 2)
    return 4.5 * 2.0 ** (np.arange(9) / 2), shares / shares.sum()


def gaussian_run(looks: int, power: float, kind: str, sd: float, *, draws: int, lanes: int = 48) -> tuple[float, float]:
    """The share of draws that ever reach 1e-6, and the mean share of the planned text used."""
    rng = np.random.default_rng(0)
    x = np.arange(1, looks + 1) / looks
    opened = np.round(lanes * np.cumsum(x**power) / np.sum(x**power))
    variance = np.diff(np.concatenate([[0], opened])) / lanes * x
    s = sd * variance + np.sqrt(variance) * rng.standard_normal((draws, looks))
    if kind == "plug-in":
        before, size = np.cumsum(s, 1) - s, np.cumsum(variance) - variance
        tilt = np.clip((6.0 * 0.15 + before) / (0.15 + size), 3, 60)
        log_e = np.cumsum(tilt * s - tilt**2 * variance / 2, 1)
    else:
        tilts, shares = gaussian_bets("mixture" if kind == "product of mixtures" else kind, sd)
        if kind == "product of mixtures":
            steps = tilts * s[:, :, None] - tilts**2 * variance[None, :, None] / 2
            log_e = np.cumsum(np.log((shares * np.exp(steps)).sum(-1)), 1)
        else:
            sums, size = np.cumsum(s, 1)[:, :, None], np.cumsum(variance)[None, :, None]
            log_e = np.log((shares * np.exp(np.clip(tilts * sums - tilts**2 * size / 2, -700, 700))).sum(-1))
    hit = log_e >= LOG_LEVEL
    ever = hit.any(1)
    return float(ever.mean()), float(x[np.where(ever, hit.argmax(1), looks - 1)].mean())


@app.command()
def gaussian(draws: int = 6000) -> None:
    """Compare schedules and bets where all is Gaussian: the plan, in units of N, that has 80% power."""
    fixed = (math.sqrt(2 * LOG_LEVEL) + 0.8416) ** 2
    kinds = ("oracle", "one", "mixture", "wide", "plug-in", "product of mixtures")
    typer.echo("looks power  " + "  ".join(f"{kind:>19}" for kind in kinds))
    for looks in (8, 16, 32):
        for power in (0, 1, 2, 3, 5):
            cells = []
            for kind in kinds:
                low, high = 20.0, 300.0
                for _ in range(13):
                    middle = (low + high) / 2
                    reached, _ = gaussian_run(looks, power, kind, math.sqrt(middle), draws=draws)
                    low, high = (middle, high) if reached < 0.8 else (low, middle)
                used = gaussian_run(looks, power, kind, math.sqrt(high), draws=draws)[1]
                cells.append(f"{high / fixed:.2f} (used {used * high / fixed:.2f})".rjust(19))
            typer.echo(f"{looks:5} {power:5}  " + "  ".join(cells))


# ------------------------------------------------------------------------------------------------------ students


class Domain:
    """A base model: windows of one id from a Zipf law, and a distribution over a few tokens after each."""

    def __init__(self, *, windows: int, exponent: float, support: int = 16, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        share = 1.0 / np.arange(1, windows + 1) ** exponent
        self.cumulative = np.cumsum(share / share.sum())
        self.windows = windows
        self.tokens = rng.integers(1, 1 + 20_000, (windows, support)).astype(np.uint32)
        self.tokens += np.arange(support, dtype=np.uint32) * np.uint32(20_000)  # No token twice after a window.
        self.base = -np.sort(-rng.dirichlet(np.full(support, 0.25), windows), axis=1)
        self.gini = float(np.diff(self.cumulative, prepend=0.0) @ (1 - (self.base**2).sum(axis=1)))

    def student(self, mark: GreenListMark, *, positions: int, tilt: float, seed: int) -> tuple[Corpus, Reference]:
        """Outputs of a student with this tilt, twenty positions a response, and the base's probabilities for them."""
        # Two streams, so that a longer text begins with the shorter one's.
        rng, draws = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        ids = np.arange(1, self.windows + 1, dtype=np.uint32)[:, None]
        lanes = kernels.lanes(ids)
        seeds = kernels.seeds(mark.scope.lane_words(), ids, lanes)
        support = self.tokens.shape[1]
        green = kernels.green(
            seeds,
            mark.scope.params.bounds()[lanes],
            np.repeat(np.arange(self.windows), support),
            self.tokens.ravel(),
        ).reshape(self.windows, support)
        cumulative = np.cumsum(self.base * np.exp(tilt * green), axis=1)
        window = np.searchsorted(self.cumulative, rng.random(positions))
        window = np.minimum(window, self.windows - 1)
        draw = draws.random(positions) * cumulative[window, -1]
        place = np.minimum((cumulative[window] < draw[:, None]).sum(axis=1), support - 1)
        text = np.zeros((positions, 3), dtype=np.uint32)
        text[:, 1], text[:, 2] = window + 1, self.tokens[window, place]
        joined = text.ravel()
        starts = np.arange(0, positions + 1, 20) * 3
        top_ids = np.zeros((len(joined), support), dtype=np.uint32)
        top_p = np.zeros((len(joined), support), dtype=np.float32)
        said_p = np.zeros(len(joined), dtype=np.float32)
        top_ids[2::3], top_p[2::3] = self.tokens[window], self.base[window]
        said_p[2::3] = self.base[window, place]
        reference = Reference(
            name="base",
            tokenizer="00" * 32,
            ids=joined,
            starts=starts,
            top_ids=top_ids,
            top_p=np.minimum(top_p, 1),
            said_p=np.minimum(said_p, 1),
        )
        return corpus_of([joined[a:b] for a, b in pairwise(starts)]), reference


class LanesOnly(EProcess):
    """The process that never scores the newcomers of lanes that are open already."""

    def _take(self, tally: Tally, weights: Weights, mark: Mark) -> tuple[npt.NDArray[np.int64], FloatArray]:
        newly = np.zeros(64, dtype=np.bool_)
        newly[list(self._open - getattr(self, "_before", set()))] = True
        self._before = set(self._open)
        return super()._take(tally, weights.within(newly[tally.lanes][tally.pair_window]), mark)


def mark_of(key: int) -> GreenListMark:
    return GreenListMark(scope_of(key=key, special_ids=(SEPARATOR,), account_lanes=16))


def fixed_log10_p(corpus: Corpus, reference: Reference, mark: GreenListMark, responses: int) -> float:
    part = reference.first(responses)
    tally = tally_of(corpus.responses[:responses], window=1, special_ids=(SEPARATOR,), reference=part)
    weights = CENTRED.weigh(tally, part).within(mark.tested(tally))
    return weighted_test(weights, mark=mark, tally=tally, scores=mark.scores(tally)).log10_p


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSize:
    """What the fixed-size test needs."""

    responses: int
    """N: at which 80% of keys have p <= 1e-6."""
    error: float
    """Its standard error over keys."""


def fixed_size(domain: Domain, tilt: float, keys: range) -> FixedSize:
    """Find N from the share of keys that reach 1e-6 at six sizes of text, by a probit line."""
    guess = (math.sqrt(2 * LOG_LEVEL) + 0.8416) ** 2 / (tilt**2 * 0.1875 * domain.gini * 48 / 64)
    sizes = (np.array([0.75, 0.9, 1.05, 1.2, 1.35, 1.5]) * guess / 20).astype(int)
    reached = np.zeros((len(keys), len(sizes)))
    for row, key in enumerate(keys):
        mark = mark_of(1 + key)
        corpus, reference = domain.student(mark, positions=20 * int(sizes[-1]), tilt=tilt, seed=key)
        reached[row] = [fixed_log10_p(corpus, reference, mark, int(size)) <= -6 for size in sizes]
    rng = np.random.default_rng(0)
    again = [_probit_size(sizes, reached[rng.integers(0, len(keys), len(keys))]) for _ in range(200)]
    return FixedSize(responses=math.ceil(_probit_size(sizes, reached)), error=float(np.nanstd(again)))


def _probit_size(sizes: npt.NDArray[np.int64], reached: FloatArray) -> float:
    from scipy.special import ndtri

    floor = 0.5 / len(reached)
    probit = ndtri(np.clip(reached.mean(axis=0), floor, 1 - floor))
    slope, intercept = np.polyfit(np.sqrt(sizes), probit, 1)
    return float(((0.8416 - intercept) / slope) ** 2) if slope > 0 else math.nan


DOMAINS = {
    "1,500 windows (as width 1)": {"windows": 1_500, "exponent": 1.0},
    "40,000 windows (as width 2)": {"windows": 40_000, "exponent": 0.7},
}

PROCESSES = {"newcomers": EProcess, "lanes-only": LanesOnly}


@app.command()
def student(
    keys: int = 200,
    first_key: int = 0,
    tilt: float = 0.15,
    powers: str = "2,3",
    looks: str = "8,16,32",
    plan: float = 1.5,
    processes: str = "newcomers,lanes-only",
    width: int = 0,
) -> None:
    """Measure the e-process of the real code on students of a known tilt, under keys FIRST_KEY and up.

    WIDTH 1 or 2 chooses one of the two domains.
    """
    started = time.time()
    chosen = range(first_key, first_key + keys)
    settings = [
        (kind, float(power), int(number))
        for kind in processes.split(",")
        for power in powers.split(",")
        for number in looks.split(",")
    ]
    for number, (name, shape) in enumerate(DOMAINS.items(), start=1):
        if width not in (0, number):
            continue
        domain = Domain(seed=1, **shape)
        fixed = fixed_size(domain, tilt, chosen)
        n = fixed.responses
        typer.echo(
            f"{name}, tilt {tilt}, gini {domain.gini:.2f}: N = {20 * n:,} +- {20 * fixed.error:,.0f} tokens at 80% "
            f"power (keys {first_key} to {first_key + keys - 1})"
        )
        at_n, at_plan = [], []
        used: dict[tuple[str, float, int], list[float]] = {setting: [] for setting in settings}
        final: dict[tuple[str, float, int], list[float]] = {setting: [] for setting in settings}
        for key in chosen:
            mark = mark_of(1 + key)
            corpus, reference = domain.student(mark, positions=20 * int(plan * n), tilt=tilt, seed=key)
            at_n.append(fixed_log10_p(corpus, reference, mark, n))
            at_plan.append(fixed_log10_p(corpus, reference, mark, int(plan * n)))
            with shared_tallies():
                for setting in settings:
                    kind, power, number = setting
                    detect.e_process.EProcess = PROCESSES[kind]  # type: ignore[misc]
                    result = sequential_test(
                        corpus, mark, reference=reference, weighting=CENTRED, looks=number, power=power, level=LEVEL
                    )
                    needed = result.tokens_needed
                    used[setting].append(math.inf if needed is None else needed / 60 / n)
                    final[setting].append(result.log10_e)
        typer.echo(
            f"fixed size: mean log10 p {np.mean(at_n):.2f} at N (reached 1e-6: {np.mean(np.array(at_n) <= -6):.3f}), "
            f"{np.mean(at_plan):.2f} at {plan} N ({np.mean(np.array(at_plan) <= -6):.3f})"
        )
        typer.echo("process     power looks  reached 1e-6 (95%)  mean used/N  80% quantile/N  mean log10 e at end")
        for setting in settings:
            typer.echo(_line(setting, np.array(used[setting]), final[setting], plan=plan))
        typer.echo(f"({time.time() - started:.0f} s)")


def _line(setting: tuple[str, float, int], used: FloatArray, final: list[float], *, plan: float) -> str:
    kind, power, looks = setting
    share = float(np.isfinite(used).mean())
    half = 1.96 * math.sqrt(share * (1 - share) / len(used))
    mean = float(np.where(np.isfinite(used), used, plan).mean())
    quantile = np.sort(used)[math.ceil(0.8 * len(used)) - 1]
    return (
        f"{kind:11} {power:5.1f} {looks:5}  {share:.3f} +- {half:.3f}      {mean:11.2f}  {quantile:14.2f}  "
        f"{np.mean(final):19.1f}"
    )


@contextmanager
def shared_tallies() -> Iterator[None]:
    """Keep what no key and no schedule enters of one student's looks: looks of 8 are looks of 32 too."""
    tallies: dict[int, Tally] = {}
    scales: dict[int, float] = {}

    def tally(responses: Sequence[npt.NDArray[np.uint32]], **options: Any) -> Tally:
        if len(responses) not in tallies:
            tallies[len(responses)] = tally_of(responses, **options)
        return tallies[len(responses)]

    def scale(tally: Tally, weights: Weights) -> float:
        if id(tally) not in scales:
            scales[id(tally)] = tilt_scale(tally, weights)
        return scales[id(tally)]

    detect.e_process.tally_of, detect.e_process.tilt_scale = tally, scale  # type: ignore[assignment]
    try:
        yield
    finally:
        detect.e_process.tally_of, detect.e_process.tilt_scale = tally_of, tilt_scale


if __name__ == "__main__":
    app()
