"""A plan's curves as one SVG file: tokens against dose at several p, and power against tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from detect.inline_svg import INK, QUIET, STUDENT, TWIN, inline_svg
from detect.power import DoseCurve, PowerCurve, PowerPlan, dose_curve, plan, power_curve
from detect.svg_file import check_svg, write_svg
from watermark.errors import UsageError

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["power_svg", "write_power_plot"]

#: Levels of the first plot unless told otherwise.
_LEVELS: Final = (1e-2, 1e-6, 1e-12)

#: Width and height of a plot in inches of 72 units.
_SIZE: Final = (5.6, 3.6)
_STYLES: Final = ((STUDENT, "-"), (INK, "--"), (TWIN, "-."), (QUIET, ":"))
#: Doses of the first plot, least to most.
_LEAST, _POINTS = 1e-3, 160
#: Tests of the second plot.
_TESTS: Final = ("default", "e-process", "count")


def power_svg(asked: PowerPlan, *, levels: Sequence[float] = _LEVELS) -> tuple[Markup, Markup]:
    """Draw a plan.

    Args:
        asked: the plan. Where it has no absorption the first plot is against tau.
        levels: one line each in the first plot, four at most.

    Returns:
        Two elements for an HTML page under a strict policy: the default test's tokens against dose, and the
        power of three tests against tokens.

    Raises:
        UsageError: no level, or more than four.
    """
    if not 1 <= len(levels) <= len(_STYLES):
        raise UsageError(f"levels: expected 1 to {len(_STYLES)} lines, got {len(levels)}")
    doses = np.geomspace(_LEAST, 1.0, _POINTS).tolist()
    by_dose = [dose_curve(asked, doses, level=level) for level in levels]
    default = plan(asked).tests[0]
    middle = default.needed or default.needed_ideal or 1_000_000
    tokens = np.unique(np.geomspace(max(10, middle / 30), 30 * middle, _POINTS).astype(np.int64)).tolist()
    by_tokens = [power_curve(asked, tokens, test=test) for test in _TESTS]
    share = "tau" if asked.absorption is None else "dose"
    return _dose_svg(asked, by_dose, share=share), _power_svg(asked, by_tokens)


def write_power_plot(asked: PowerPlan, out: Path, *, levels: Sequence[float] = _LEVELS) -> Path:
    """Write both plots below one another to one SVG file, whole or not at all. The same plan gives the same bytes.

    Returns:
        The path of the file.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        UsageError: the file cannot be written there, or it is not named .svg.
    """
    check_svg(out)
    return write_svg(out, power_svg(asked, levels=levels), size=_SIZE)


def _dose_svg(asked: PowerPlan, curves: Sequence[DoseCurve], *, share: str) -> Markup:
    def draw(axes: Any) -> None:
        for curve, (colour, dash) in zip(curves, _STYLES, strict=False):
            points = [(dose, tokens) for dose, tokens in zip(curve.doses, curve.tokens, strict=True) if tokens]
            axes.plot(
                [dose for dose, _ in points],
                [tokens for _, tokens in points],
                dash,
                color=colour,
                label=f"p = {curve.level:g}",
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(_LEAST, 1.0)
        axes.set_xlabel("share of marked training text" if share == "dose" else "tau")
        axes.set_ylabel(f"tokens, power {asked.power:.0%}")
        axes.legend(frameon=False)

    ends = "; ".join(
        f"p = {curve.level:g}: " + (f"{last:,.0f} tokens at {share} 1" if (last := curve.tokens[-1]) else "never")
        for curve in curves
    )
    return inline_svg(
        "power-dose", f"Line chart of the tokens that the default test needs against {share}. {ends}.", _SIZE, draw
    )


def _power_svg(asked: PowerPlan, curves: Sequence[PowerCurve]) -> Markup:
    def draw(axes: Any) -> None:
        for curve, (colour, dash) in zip(curves, _STYLES, strict=False):
            axes.plot(curve.tokens, curve.power, dash, color=colour, label=curve.test)
        axes.axhline(asked.power, color=QUIET, linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set_ylim(0, 1)
        axes.set_xlabel("tokens of the suspect")
        axes.set_ylabel(f"chance of p ≤ {asked.level:g}")
        axes.legend(frameon=False)

    label = (
        f"Line chart of the chance of p at most {asked.level:g} against tokens, "
        f"from 10^{math.log10(curves[0].tokens[0]):.1f} to 10^{math.log10(curves[0].tokens[-1]):.1f}: "
        + "; ".join(f"{curve.test} at the end {curve.power[-1]:.2f}" for curve in curves)
        + "."
    )
    return inline_svg("power-tokens", label, _SIZE, draw)
