"""The plots of a study: evidence against tokens, z against dose, and the p-values of null controls, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from detect.inline_svg import DECOY, INK, QUIET, STUDENT, TWIN, inline_svg
from detect.study.measure import COUNT, Measurement
from detect.svg_file import check_svg, write_svg

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["study_svg", "write_study_plots"]

#: Width and height of a plot in inches of 72 units.
_SIZE: Final = (5.6, 3.6)

_COLOURS: Final = (INK, STUDENT, TWIN, QUIET, DECOY)
_STYLES: Final = ("-", "--", "-.", ":")


def write_study_plots(measured: Sequence[Measurement], out: Path, *, reference: str | None = None) -> Path:
    """Write a study's plots, one below the other.

    Args:
        measured: the study's.
        out: ends in .svg.
        reference: of the tests that have one; by default the first that was used.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        UsageError: the file cannot be written there.
    """
    check_svg(out)
    return write_svg(out, study_svg(measured, reference=reference), size=_SIZE)


def study_svg(measured: Sequence[Measurement], *, reference: str | None = None) -> list[Markup]:
    """Draw a study's plots: for each window the evidence and the z of each test, then the null controls.

    Args:
        measured: the study's.
        reference: of the tests that have one; by default the first that was used.
    """
    if reference is None:
        reference = next((m.reference for m in measured if m.reference), "")
    chosen = [m for m in measured if m.reference in ("", reference)]
    plots = []
    for window in sorted({m.window for m in chosen if m.own}):
        own = [m for m in chosen if m.own and m.window == window and not m.arm]
        title = f"window {window}, reference: {reference or 'none'}"
        plots.append(
            inline_svg(
                f"evidence-{window}",
                f"Mean -log10 p of each test against tokens, {title}",
                _SIZE,
                partial(_draw_evidence, own=own, title=title),
            )
        )
        plots.append(
            inline_svg(
                f"dose-{window}",
                f"Mean z of each test against dose, {title}",
                _SIZE,
                partial(_draw_dose, own=own, title=title),
            )
        )
    null = [m for m in chosen if not m.own and m.prefix == 0 and not m.arm]
    if null:
        plots.append(
            inline_svg("null", "p-values of null controls against uniform ones", _SIZE, partial(_draw_null, null=null))
        )
    return plots


def _tests(measured: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(m.test for m in measured))


def _draw_evidence(axes: Any, own: Sequence[Measurement], title: str) -> None:
    doses = sorted({m.dose for m in own}, reverse=True)
    for place, test in enumerate(_tests(own)):
        for style, dose in zip(_STYLES, doses, strict=False):
            group = [m for m in own if m.test == test and m.dose == dose]
            sizes = sorted({m.prefix for m in group}, key=lambda prefix: prefix or 2**62)
            at = [[m for m in group if m.prefix == size] for size in sizes]
            axes.plot(
                [np.mean([m.tokens for m in some]) for some in at],
                [max(1e-2, float(-np.mean([m.log10_p for m in some]))) for some in at],
                style,
                color=_COLOURS[place % len(_COLOURS)],
                marker="o",
                label=test if dose == doses[0] else None,
            )
    for style, dose in zip(_STYLES, doses, strict=False):
        axes.plot([], [], style, color=INK, label=f"dose {100 * dose:g}%")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("suspect tokens")
    axes.set_ylabel("mean -log10 p")
    axes.set_title(title, fontsize=10, loc="left")
    # Above the lines, which fill the plot.
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.08), ncols=4)


def _draw_dose(axes: Any, own: Sequence[Measurement], title: str) -> None:
    whole = [m for m in own if m.prefix == 0]
    doses = sorted({m.dose for m in whole})
    for place, test in enumerate(_tests(whole)):
        groups = [[m.z for m in whole if m.test == test and m.dose == dose] for dose in doses]
        axes.errorbar(
            [100 * dose for dose in doses],
            [float(np.mean(zs)) for zs in groups],
            # A z has a standard deviation of about 1 over keys.
            yerr=[1.96 / np.sqrt(len(zs)) for zs in groups],
            color=_COLOURS[place % len(_COLOURS)],
            marker="o",
            capsize=2,
            label=test,
        )
    axes.axhline(0, color=QUIET, linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlabel("marked share of the student's answers, %")
    axes.set_ylabel("mean z, with 95% interval")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def _draw_null(axes: Any, null: Sequence[Measurement]) -> None:
    for place, test in enumerate(_tests(null)):
        p = np.sort([-m.log10_p for m in null if m.test == test])
        expected = -np.log10((np.arange(len(p), 0, -1) - 0.5) / len(p))
        label = test if test == COUNT else f"{test} (a bound, at most)"
        axes.plot(expected, p, ".", color=_COLOURS[place % len(_COLOURS)], label=label)
    top = max(1.0, *axes.get_xlim())
    axes.plot([0, top], [0, top], color=QUIET, linewidth=0.6)
    axes.set_xlabel("-log10 p expected of an innocent model")
    axes.set_ylabel("-log10 p found")
    axes.legend(fontsize=8, frameon=False)
