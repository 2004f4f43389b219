"""A plan as a person reads it in a terminal, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from detect.power import PowerOfTest, PowerResult
from detect.result_tables import p_value
from watermark import __version__
from watermark.errors import printable

__all__ = ["power_json", "power_table"]

_NEVER = "never"


def power_table(result: PowerResult) -> RenderableType:
    """Return the tests' needs, what a number of tokens gives where one was asked for, and the notes."""
    asked, figures = result.plan, result.plan.figures
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ["test", "needed", "with a true reference", "z needed", "z at most"]
    if result.tokens is not None:
        headings += [f"at {result.tokens:,}: z", "p", "power", "smallest tau"]
        if asked.absorption is not None:
            headings.append("smallest dose")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for test in result.tests:
        cells = [
            test.name,
            _count(test.needed, test.unit),
            "-" if test.needed_ideal is None else _count(test.needed_ideal, test.unit),
            f"{test.z_needed:.2f}",
            "-" if test.z_limit is None else f"{test.z_limit:.1f}",
        ]
        if result.tokens is not None:
            cells += _at_tokens(test)
            if asked.absorption is not None:
                cells.append(_NEVER if test.smallest_dose is None else f"{test.smallest_dose:.2%}")
        table.add_row(*cells)
    carried = f"tau {result.tau:.3g}"
    if asked.dose is not None and asked.tau is None:
        carried = f"dose {asked.dose:.3g}, {carried}"
    over = f" over {asked.keys:,} keys" if asked.keys > 1 else ""
    return Group(
        Text(
            f"p <= {asked.level:g}{over} with a chance of {asked.power:.0%}: {carried}, delta {asked.delta:g}, gamma "
            f"{asked.gamma_256}/256, window {figures.window}, {asked.fleet_share:.0%} of windows tested"
        ),
        Text(
            f"{printable(figures.source)}: 1 - sum p^2 {figures.gini:.2f}, {figures.scored:.0%} of tokens scored, "
            f"sum a^2 = {figures.energy:.2f} n + {figures.mismatch + figures.tilt_mismatch * result.tilt**2:.1e} n^2"
        ),
        table,
        *(Text(f"note: {note}", style="yellow") for note in result.notes),
        Text(
            "A plan is reckoned from these figures and is no test. To find nothing at the planned size proves nothing. "
            "The count's need is rough: how little rare pairs carry was measured on one student. So is, on a few, what "
            f"the default gains on centring, {asked.gain:.2g} times the z.",
            style="dim",
        ),
    )


def power_json(result: PowerResult) -> dict[str, Any]:
    """Return what `power --json` prints: schema ``taggant/power/1``; null where no number is enough."""
    return {
        "schema": "taggant/power/1",
        "version": __version__,
        "plan": asdict(result.plan),
        "tau": result.tau,
        "tilt": result.tilt,
        "tokens": result.tokens,
        "tests": [asdict(test) for test in result.tests],
        "notes": list(result.notes),
    }


def _count(needed: int | None, unit: str) -> str:
    if needed is None:
        return _NEVER
    return (f"{needed:,}" if needed < 10_000_000 else f"{needed:.1e}") + f" {unit}"


def _at_tokens(test: PowerOfTest) -> list[str]:
    assert test.expected_z is not None  # noqa: S101 - tokens were given
    assert test.expected_log10_p is not None  # noqa: S101 - as above
    assert test.power is not None  # noqa: S101 - as above
    return [
        f"{test.expected_z:.1f}",
        p_value(test.expected_log10_p),
        f"{test.power:.1%}",
        _NEVER if test.smallest_tau is None else f"{test.smallest_tau:.3g}",
    ]
