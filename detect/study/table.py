"""The tables of a study: z and p by dose, test and reference; null controls; evidence against tokens.

Every figure is over students (keys and seeds). The *ratio* is the test's mean z over the count test's mean z on the
same students. Its interval is the delta method's for a ratio of two means. A z has a standard deviation of about 1 over
keys whatever the student, and with three students a sample's own is worth little: so the variance of each mean is taken
as no less than 1 / students, and a covariance estimated from fewer than five students as 0, which widens it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.study.measure import COUNT, Measurement
from watermark.errors import InputError, UsageError, printable

__all__ = ["Table", "evidence_table", "load_results", "null_table", "signal_table", "study_tables"]

_Z95 = 1.959963984540054

_LATEX = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of text, ready to be written out."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Return the table in columns of fixed width."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        numeric = [
            bool(self.rows) and all(not row[i] or row[i][0] in "0123456789-+<.[" for row in self.rows)
            for i in range(len(widths))
        ]

        def line_of(line: Sequence[str]) -> str:
            cells = [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ]
            return "  ".join(cells).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, "", line_of(self.header), rule, *map(line_of, self.rows)]) + "\n"

    def latex(self) -> str:
        r"""Return the table as a LaTeX ``table`` with a ``tabular`` in it, rules of booktabs."""

        def line_of(line: Sequence[str]) -> str:
            return " & ".join(cell.translate(_LATEX) for cell in line) + r" \\"

        return "\n".join(
            [
                r"\begin{table}",
                r"\caption{" + self.title.translate(_LATEX) + "}",
                r"\begin{tabular}{" + "l" * len(self.header) + "}",
                r"\toprule",
                line_of(self.header),
                r"\midrule",
                *map(line_of, self.rows),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        """Return the table as comma-separated values with a header line."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return out.getvalue()


def load_results(folder: Path) -> list[Measurement]:
    """Read a study's results.jsonl.

    Raises:
        UsageError: the study has none.
        InputError: a line is not a measurement.
    """
    path = folder / "results.jsonl" if folder.is_dir() else folder
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{printable(path)}: no results there ({type(error).__name__}); `taggant study run` makes them"
        ) from None
    names = {member.name for member in fields(Measurement)}
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if set(row) != names:
                raise ValueError("keys")
            found.append(Measurement(**row))
        except (ValueError, TypeError):
            raise InputError(
                f"{printable(path)}:{number}: not a measurement of this version: run the study again with --measure"
            ) from None
    return found


def signal_table(measured: Sequence[Measurement], *, prefix: int = 0) -> Table:
    """Return mean z, its standard deviation and the ratio to the count, by window, dose, arm, test and reference.

    Args:
        measured: of a study.
        prefix: number of tokens asked for; 0 for all.
    """
    chosen = [m for m in measured if m.own and m.prefix == prefix]
    counts = {(m.cell, m.key): m.z for m in chosen if m.test == COUNT}
    rows = []
    for (arm, window, dose, test, reference), group in _grouped(
        chosen, lambda m: (m.arm, m.window, m.dose, m.test, m.reference)
    ):
        zs = np.array([m.z for m in group])
        taus = [m.tau for m in group if m.tau is not None]
        beside = np.array([counts[m.cell, m.key] for m in group])
        rows.append(
            (
                arm or "-",
                str(window),
                _percent(dose),
                test,
                reference or "-",
                str(len(group)),
                f"{zs.mean():.2f}",
                f"{zs.std(ddof=1):.2f}" if len(zs) > 1 else "",
                f"{np.mean([m.log10_p for m in group]):.2f}",
                "" if test == COUNT else _ratio(zs, beside),
                f"{np.mean(taus):.3f}" if taus else "",
            )
        )
    tokens = max((m.tokens for m in chosen), default=0)
    return Table(
        title=f"z over students at {'all' if not prefix else f'{prefix:,}'} tokens (up to {tokens:,})",
        header=(
            *("arm", "window", "dose", "test", "reference", "students"),
            *("mean z", "sd", "mean log10 p", "z / count's (95%)", "tau"),
        ),
        rows=tuple(rows),
    )


def null_table(measured: Sequence[Measurement]) -> Table:
    """Return what the tests make of keys that a student has nothing to do with, at all tokens."""
    rows = []
    for (test, reference), group in _grouped(
        [m for m in measured if not m.own and m.prefix == 0 and not m.arm], lambda m: (m.test, m.reference)
    ):
        zs = np.array([m.z for m in group])
        p = np.array([m.log10_p for m in group])
        decoys = [m.decoy_sd for m in group if m.decoy_sd is not None]
        rows.append(
            (
                test,
                reference or "-",
                str(len(group)),
                f"{zs.mean():.2f}",
                f"{zs.std(ddof=1):.2f}" if len(zs) > 1 else "",
                *(f"{int((p <= math.log10(level)).sum())} ({level * len(p):.1f})" for level in (0.1, 0.05, 0.01)),
                f"{p.min():.2f}",
                f"{np.mean(decoys):.2f}" if decoys else "",
            )
        )
    return Table(
        title="Null controls: keys that the student's teacher did not mark with. In brackets, what is expected at most",
        header=(
            *("test", "reference", "tests", "mean z", "sd", "p <= 0.1", "p <= 0.05", "p <= 0.01"),
            *("least log10 p", "decoys' sd"),
        ),
        rows=tuple(rows),
    )


def evidence_table(measured: Sequence[Measurement]) -> Table:
    """Return the mean log10 p over students at growing numbers of tokens, the arms left out."""
    chosen = [m for m in measured if m.own and not m.arm]
    prefixes = [*sorted({m.prefix for m in chosen if m.prefix}), 0]
    rows = []
    for (window, dose, test, reference), group in _grouped(chosen, lambda m: (m.window, m.dose, m.test, m.reference)):
        at = {prefix: [m.log10_p for m in group if m.prefix == prefix] for prefix in prefixes}
        means = [f"{np.mean(at[prefix]):.2f}" if at[prefix] else "" for prefix in prefixes]
        rows.append((str(window), _percent(dose), test, reference or "-", *means))
    return Table(
        title="Mean log10 p over students at growing numbers of suspect tokens",
        header=("window", "dose", "test", "reference", *(f"{prefix:,}" if prefix else "all" for prefix in prefixes)),
        rows=tuple(rows),
    )


def study_tables(measured: Sequence[Measurement]) -> tuple[Table, Table, Table]:
    """Return the signal, the null controls and the evidence against tokens."""
    return signal_table(measured), null_table(measured), evidence_table(measured)


def _grouped(
    measured: Iterable[Measurement], key: Callable[[Measurement], tuple[Any, ...]]
) -> list[tuple[tuple[Any, ...], list[Measurement]]]:
    groups: dict[tuple[Any, ...], list[Measurement]] = defaultdict(list)
    for measurement in measured:
        groups[key(measurement)].append(measurement)
    # Tests in the order in which they were made, not the alphabet's; numbers by size.
    places = {name: place for place, name in enumerate(dict.fromkeys(str(m.test) for g in groups.values() for m in g))}
    return sorted(
        groups.items(),
        key=lambda item: tuple(places.get(x, x) if isinstance(x, str) and x in places else x for x in item[0]),
    )


def _percent(dose: float) -> str:
    return f"{100 * dose:g}%"


def _ratio(zs: npt.NDArray[np.float64], beside: npt.NDArray[np.float64]) -> str:
    """Return the ratio of the means and its 95% interval; nothing where the count's mean is within 2 SE of 0."""
    n = len(zs)
    a, b = float(zs.mean()), float(beside.mean())
    if n >= 2:
        va, vb = (max(float(x.var(ddof=1)), 1.0) / n for x in (zs, beside))
    else:
        va, vb = 1.0, 1.0
    if b <= 2 * math.sqrt(vb):
        return "count's too small"
    cov = float(np.cov(zs, beside)[0, 1]) / n if n >= 5 else 0.0
    ratio = a / b
    half = _Z95 * math.sqrt(max(va - 2 * ratio * cov + ratio**2 * vb, 0.0)) / b
    return f"{ratio:.2f} [{ratio - half:.2f}, {ratio + half:.2f}]"
