"""A verified bundle as a page for people, and as a claim card in Markdown.

Both are made from a verification, never from the claim alone: what the page shows was reckoned again a moment before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from detect.evidence.predicates import COUNT, Claim, LaneScore, Plan, Scores
from detect.evidence.scoring import public_tests
from detect.evidence.verify import Verification
from detect.html_page import MINUS, render, write_page
from detect.inline_svg import DECOY, INK, QUIET, STUDENT, decoy_histogram, inline_svg
from detect.power_presets import ABSORPTIONS
from detect.result_tables import p_value
from detect.tally import UNIT
from detect.verdict import Verdict
from watermark import __version__
from watermark.errors import UsageError, printable
from watermark.whole_file import write_whole

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["claim_card", "verdict_line", "write_evidence_report"]

#: Prefixes of the outputs at which the evidence is reckoned for its curve.
_PREFIXES: Final = 12

#: Width and height of a plot in inches of 72 units: small, so that its letters stay legible on a telephone.
_WIDE = (5.6, 3.4)

#: What Markdown or HTML would take as markup.
_MARKUP: Final = re.compile(r"([\\`*_{}\[\]<>#|!~&@]|:(?=//))")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    """One lane in its plot."""

    lane: int
    opened: bool
    pairs: int
    z: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """The evidence in the first so many responses."""

    responses: int
    tokens: int
    log10_p: float


def write_evidence_report(verification: Verification, out: Path, *, command: str) -> tuple[Path, Path]:
    """Write ``report.html`` and ``claim-card.md`` into a folder, which is made if it does not exist.

    Args:
        verification: of a bundle whose four statements could be read.
        out: the folder.
        command: how a reader repeats the verification, as it is printed.

    Returns:
        The paths of the page and of the card.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        UsageError: the statements could not be read, or the files cannot be written.
    """
    page = write_page(out / "report.html", lambda: _page(verification, command))
    card = write_whole(out / "claim-card.md", claim_card(verification, command=command), what="the claim card")
    return page, card


def verdict_line(verification: Verification) -> str:
    """Return the page's headline: what was found, or that the bundle does not bear it out."""
    plan, found = verification.plan, verification.found
    model = "the suspect" if plan is None else plan.suspect.model
    if verification.failed:
        return f"The claim about {model} is not borne out by its bundle."
    if found is None:
        return f"The claim about {model} could not be checked."
    return {
        Verdict.DEPENDS: f"The outputs of {model} depend on the key.",
        Verdict.NO_SIGN: f"The outputs of {model} show no sign of the key.",
        Verdict.TOO_SHORT: f"Too few outputs of {model} to tell.",
    }[found.verdict]


def claim_card(verification: Verification, *, command: str) -> str:
    """Return the claim as a short Markdown text. Whatever comes from the bundle is escaped.

    Raises:
        UsageError: the statements could not be read.
    """
    plan, scores, claim = _said(verification)
    found = verification.found
    rows: list[tuple[str, str]] = [("Question", plan.title)]
    if found is not None and not verification.failed:
        effect = claim.effect
        rows += [
            ("Verdict", f"{found.verdict.value}, at the level {plan.level}"),
            ("p", f"at most {p_value(float(claim.log10_p))} (log10 p {claim.log10_p})"),
            ("Evidence", f"{scores.outputs.tokens:,} tokens; {plan.lanes_to_open} opened lanes of 64"),
            ("Decoy keys", f"rank {claim.decoys.rank} of {claim.decoys.count + 1}"),
            ("Effect size", "not reckoned" if effect is None else f"{effect.tau} ({effect.low} to {effect.high})"),
        ]
        rows += [(f"Control {name}", f"log10 p {log10_p}") for name, log10_p in sorted(claim.controls.items())]
    rows += [
        ("Suspect", f"{plan.suspect.model} at {plan.suspect.endpoint}"),
        ("Key", f"scope {plan.scope}, fingerprint {plan.fingerprint}"),
        (
            "Records",
            f"{scores.outputs.read:,} read = {scores.outputs.scored:,} scored + "
            f"{sum(scores.outputs.excluded.values()):,} excluded + {scores.outputs.malformed:,} malformed",
        ),
        ("Deviations", "; ".join((*plan.deviations, *scores.deviations)) or "none"),
        ("Checks", verification.summary),
        ("Manifest", verification.manifest or "not read"),
    ]
    lines = [f"# {_escaped(verdict_line(verification))}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_escaped(value)} |" for name, value in rows]
    wrong = [*verification.failed, *verification.cautions]
    if wrong:
        lines += ["", "## Failed checks and cautions", ""]
        lines += [f"- {r.check.id}, {r.status.value}: {_escaped(r.check.title)}. {_escaped(r.detail)}" for r in wrong]
    if not verification.failed:
        lines += ["", "## What it says and does not say", ""]
        lines += [f"- {_escaped(sentence)}" for sentence in claim.statement]
    lines += [
        "",
        "## Repeat it",
        "",
        f"    {printable(command, 1000)}",
        "",
        f"Checked by taggant {__version__}, offline.",
        "",
    ]
    return "\n".join(lines)


def _said(verification: Verification) -> tuple[Plan, Scores, Claim]:
    if verification.plan is None or verification.scores is None or verification.claim is None:
        raise UsageError(
            "no report: the plan, the scores and the claim could not all be read. taggant evidence verify says why"
        )
    return verification.plan, verification.scores, verification.claim


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", printable(text, 2000))


def _page(verification: Verification, command: str) -> str:
    plan, scores, claim = _said(verification)
    sound = not verification.failed and verification.found is not None
    test = plan.tests[0]
    lanes = _lanes(verification, test)
    points = _points(verification) if sound else []
    return render(
        resources.files("detect.evidence").joinpath("report.html.j2").read_text(encoding="utf-8"),
        version=__version__,
        headline=verdict_line(verification),
        sound=sound,
        plan=plan,
        scores=scores,
        claim=claim,
        opening=verification.opening,
        found=verification.found,
        mark=verification.mark,
        head=verification.head,
        manifest=verification.manifest,
        log10_p=float(claim.log10_p),
        # From any p by the calibrator 1 / (2 sqrt p): Vovk and Wang 2021, equation 1 at kappa 1/2.
        log10_e=-float(claim.log10_p) / 2 - float(np.log10(2)),
        check_summary=verification.summary,
        results=verification.results,
        test=test,
        lanes=lanes,
        points=points,
        growth=_growth_svg(points, plan.log10_level) if points else None,
        histogram=_histogram_svg(verification, test) if sound else None,
        lane_plot=_lane_svg(lanes, test),
        doses=[row for row in ABSORPTIONS if verification.mark and row.window == verification.mark.window],
        deviations=(*plan.deviations, *scores.deviations),
        command=command,
    )


def _lanes(verification: Verification, test: str) -> list[_Lane]:
    """Return the z of each tested lane, as the scores were signed."""
    scores, mark = verification.scores, verification.mark
    if scores is None or mark is None:
        return []
    gamma = mark.params.fleet_k / 256
    return [
        _Lane(lane=score.lane, opened=bool(mark.is_open[score.lane]), pairs=score.pairs, z=_z(score, test, gamma))
        for score in scores.lanes
        if score.tested
    ]


def _z(score: LaneScore, test: str, gamma: float) -> float:
    """Return how many standard deviations a lane lies above chance; 0 in an empty one."""
    if test == COUNT:
        excess, square = score.green - gamma * score.pairs, float(score.pairs)
    else:
        sums = score.weighted[test]
        excess = (256 * int(sums.green_sum) - round(256 * gamma) * int(sums.sum)) / 256 / UNIT
        square = int(sums.square_sum) / UNIT**2
    return float(excess / np.sqrt(gamma * (1 - gamma) * square)) if square else 0.0


def _points(verification: Verification) -> list[_Point]:
    """Return the opened lanes' evidence in growing prefixes of the outputs, each by itself."""
    evidence, mark, claim, plan = verification.evidence, verification.mark, verification.claim, verification.plan
    if evidence is None or mark is None or claim is None or plan is None:
        return []
    total = len(evidence.corpus.responses)
    points = []
    for responses in sorted({max(1, total * step // _PREFIXES) for step in range(1, _PREFIXES + 1)} if total else ()):
        part = evidence.first(responses)
        tests = public_tests(part, mark, tried=claim.roots * claim.plans, log10_level=plan.log10_level, decoys=1)
        points.append(_Point(responses=responses, tokens=part.corpus.tokens, log10_p=tests.log10_p))
    return points


def _growth_svg(points: Sequence[_Point], log10_level: float) -> Markup:
    def draw(axes: Any) -> None:
        axes.plot([p.tokens for p in points], [-p.log10_p for p in points], "o-", color=STUDENT, clip_on=False)
        axes.axhline(-log10_level, color=INK, linestyle="--", linewidth=1)
        axes.annotate(
            "level",
            (1.0, -log10_level),
            (4, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            verticalalignment="center",
            color=INK,
        )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("tokens of the suspect")
        axes.set_ylabel(f"{MINUS}log₁₀ p, opened lanes")

    last = points[-1]
    label = (
        f"Line chart of minus log10 p against tokens: {-last.log10_p:.1f} at {last.tokens:,} tokens; the level is at "
        f"{-log10_level:g}."
    )
    return inline_svg("growth", label, _WIDE, draw)


def _histogram_svg(verification: Verification, test: str) -> Markup | None:
    found = verification.found
    if found is None or not len(found.decoy_z):
        return None
    decoys, real = found.decoy_z, found.z
    low, high = np.floor(min(decoys.min(), real, -4.0)), np.ceil(max(decoys.max(), real, 4.0)) + 1
    return decoy_histogram(
        "decoys",
        "Histogram",
        decoys=decoys,
        real=real,
        span=(float(low), float(high)),
        colour=STUDENT,
        said="the key",
        test=f"{test} (opened lanes)",
    )


def _lane_svg(lanes: Sequence[_Lane], test: str) -> Markup | None:
    if not lanes:
        return None

    def draw(axes: Any) -> None:
        for opened, colour, name in ((False, DECOY, "not opened: as signed"), (True, STUDENT, "opened: recounted")):
            some = [lane for lane in lanes if lane.opened is opened]
            axes.vlines([lane.lane for lane in some], 0, [lane.z for lane in some], color=colour, linewidth=1.5)
            axes.plot([lane.lane for lane in some], [lane.z for lane in some], "o", color=colour, label=name)
        axes.axhline(0, color=QUIET, linewidth=1)
        axes.set_xlim(-1, max(lane.lane for lane in lanes) + 1)
        axes.set_xlabel("lane")
        axes.set_ylabel(f"z, {test}")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)

    opened = [lane.z for lane in lanes if lane.opened]
    others = [lane.z for lane in lanes if not lane.opened]
    label = (
        f"Plot of z by lane: {len(opened)} opened lanes, mean {_mean(opened)}; {len(others)} others, {_mean(others)}."
    )
    return inline_svg("lanes", label, _WIDE, draw)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f}" if values else "none"
