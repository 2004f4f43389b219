"""How often the tests cry wolf, as a picture: the share of random keys at or below each p."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from detect.binomial import green_interval
from detect.calibration import NAIVE, CalibrationResult
from detect.inline_svg import DECOY, INK, QUIET, STUDENT, TWIN, inline_svg
from detect.svg_file import check_svg, write_svg

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["calibration_svg", "write_calibration_plot"]

#: Width and height in inches of 72 units.
_SIZE: Final = (5.6, 4.4)
_STYLES: Final = ((STUDENT, "-"), (TWIN, "-"), (INK, "--"), (QUIET, "-."))


def calibration_svg(result: CalibrationResult) -> Markup:
    """Draw the rates against their nominal values, both axes logarithmic.

    Below the diagonal a test is conservative; above it, and above the band in which 95% of valid tests lie, it is not
    valid.
    """
    least = 1.0 / result.keys
    levels = np.geomspace(least, 1.0, 60)
    band = [green_interval(round(level * result.keys), pairs=result.keys) for level in levels.tolist()]

    def draw(axes: Any) -> None:
        axes.fill_between(levels, [low for low, _ in band], [high for _, high in band], color=DECOY, linewidth=0)
        axes.plot([least, 1.0], [least, 1.0], color=QUIET, linewidth=1)
        styles = iter(_STYLES)
        for test, log10_ps in result.log10_ps.items():
            ordered = np.sort(np.maximum(log10_ps, np.log10(least) - 3))
            shares = np.searchsorted(ordered, np.log10(levels), side="right") / result.keys
            colour, dash = (QUIET, ":") if test == NAIVE else next(styles, (QUIET, "-."))
            seen = shares > 0
            axes.plot(levels[seen], shares[seen], dash, color=colour, label=test)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(least, 1.0)
        axes.set_ylim(0.5 * least, 1.0)
        axes.set_xlabel("p at or below")
        axes.set_ylabel("share of random keys")
        axes.legend(frameon=False, loc="upper left")

    at = "; ".join(
        f"{test}: " + ", ".join(f"{rate.rate:.4g} at {rate.level:g}" for rate in rates)
        for test, rates in result.rates.items()
    )
    label = f"Line chart of the share of {result.keys:,} random keys with p at or below each level. {at}."
    return inline_svg("calibration", label, _SIZE, draw)


def write_calibration_plot(result: CalibrationResult, out: Path) -> Path:
    """Write the picture to one SVG file, whole or not at all.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        UsageError: the file cannot be written there, or it is not named .svg.
    """
    check_svg(out)
    return write_svg(out, [calibration_svg(result)], size=_SIZE)
