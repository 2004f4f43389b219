"""The demo's story as one HTML file that needs nothing else: no script, no font, no picture, no network.

The page carries a Content-Security-Policy that allows its one style sheet, by hash, and nothing more.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detect.corpus import Corpus
from detect.count import CountTest
from detect.demo import Demo, Suspect
from detect.distillation import ModelResult
from detect.html_page import MINUS, render, write_page
from detect.inline_svg import INK, STUDENT, TWIN, decoy_histogram, inline_svg
from detect.verdict import DOES_NOT_SAY, Verdict
from detect.warning import Warned
from detect.weighted_test import WeightedTest
from watermark import __version__
from watermark.prf import LANES

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["write_report"]

Zs = npt.NDArray[np.float64]

#: One for each lane's seed and one for the accounts' (DESIGN 2).
_COMMITMENTS = LANES + 1

#: Width and height of a plot in inches of 72 units: small, so that its letters stay legible on a telephone.
_GROWTH_SIZE = (5.6, 3.7)

#: Warnings that the page spells out among the demo's limits.
_SPELLED_OUT = (Warned.NOT_ACTIVATED, Warned.PUBLISHED)

_COMMANDS = (
    "taggant demo --out report",
    "taggant detect text examples/teacher.jsonl --keyring examples/keyring.json",
    "taggant detect model examples/student.jsonl --keyring examples/keyring.json "
    "--reference examples/student-reference.npz",
    "taggant detect model examples/clean-twin.jsonl --keyring examples/keyring.json "
    "--reference examples/clean-twin-reference.npz",
)

_LIBRARIES = ("numpy", "scipy", "numba", "tiktoken", "matplotlib", "jinja2")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One test in the table of all figures."""

    test: str
    pairs: int
    green: int | None
    """None for a weighted test, most of whose pairs were not said: a share of them would mislead."""
    expected: float
    z: float
    log10_p: float
    saddlepoint: float | None = None
    decoy_rank: int | None = None
    decoys: int = 0
    tau: tuple[float, float, float] | None = None
    """The estimate and the ends of its interval."""

    @property
    def share(self) -> float | None:
        return None if self.green is None else self.green / max(1, self.pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Story:
    """One suspect as the page shows it."""

    key: str
    """"student" or "clean_twin"."""
    colour: str
    suspect: Suspect
    decoy_z: Zs

    @property
    def name(self) -> str:
        return self.key.replace("_", " ")

    @property
    def result(self) -> ModelResult:
        return self.suspect.result

    @property
    def main(self) -> _Row:
        """The test that the verdict's p is made of."""
        return next(row for row in _model_rows(self.result) if row.test == self.result.leading.name)


def write_report(demo: Demo, out: Path) -> Path:
    """Write the demo's story to ``out/report.html``, whole or not at all.

    The same demo gives the same bytes on the same machine: the page holds no time and no path.

    Args:
        demo: what was found. A suspect without decoys gets no histogram.
        out: the folder; it is made if it does not exist.

    Returns:
        The path of the file.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        UsageError: the file cannot be written there.
        TaggantError: the records do not add up.
    """
    return write_page(out / "report.html", lambda: _page(demo))


def _page(demo: Demo) -> str:
    """Return the page."""
    for corpus in (demo.teacher_corpus, demo.student.corpus, demo.clean_twin.corpus):
        corpus.accounting.check()
    stories = [
        _story("student", STUDENT, demo.student),
        _story("clean_twin", TWIN, demo.clean_twin),
    ]
    return render(
        resources.files("detect").joinpath("report.html.j2").read_text(encoding="utf-8"),
        demo=demo,
        marked=sum(document.verdict is Verdict.DEPENDS for document in demo.teacher.documents),
        stories=stories,
        groups=_groups(demo, stories),
        growth=_growth_svg(stories),
        histograms=[(story, _histogram_svg(story, stories)) for story in stories if _has_histogram(story)],
        corpora=_corpora(demo),
        files=_files(demo),
        warned=_warned(demo),
        commitments=_COMMITMENTS,
        does_not_say=DOES_NOT_SAY,
        commands=_COMMANDS,
        versions=[
            ("taggant", __version__),
            ("Python", platform.python_version()),
            *((library, metadata.version(library)) for library in _LIBRARIES),
        ],
    )


def _story(key: str, colour: str, suspect: Suspect) -> _Story:
    leading = suspect.result.leading
    decoy_z = leading.decoy_z if isinstance(leading, WeightedTest) else np.zeros(0)
    return _Story(key=key, colour=colour, suspect=suspect, decoy_z=decoy_z)


def _groups(demo: Demo, stories: Sequence[_Story]) -> list[tuple[str, list[_Row]]]:
    """Return the table of all figures: whose text, and its tests."""
    teacher = _count_row(demo.teacher.count, gamma_256=demo.teacher.gamma_256 or 0)
    return [("teacher", [teacher]), *((story.name, _model_rows(story.result)) for story in stories)]


def _count_row(count: CountTest, *, gamma_256: int) -> _Row:
    return _Row(
        test="count",
        pairs=count.pairs,
        green=count.green,
        expected=gamma_256 / 256,
        z=count.z,
        log10_p=count.log10_p,
        decoy_rank=count.decoy_rank,
        decoys=count.decoys,
    )


def _model_rows(result: ModelResult) -> list[_Row]:
    """Return a suspect's tests, the main one last."""
    gamma_256 = result.gamma_256 or 0
    rows = [_count_row(result.unweighted, gamma_256=gamma_256)] if isinstance(result.unweighted, CountTest) else []
    effect = result.effect
    for test in result.weighted:
        rows.append(
            _Row(
                test=test.name,
                pairs=test.pairs,
                green=None,
                expected=gamma_256 / 256,
                z=test.z,
                log10_p=test.log10_p,
                saddlepoint=test.log10_p_saddlepoint,
                decoy_rank=test.decoy_rank,
                decoys=test.decoys,
                tau=None if effect is None else (effect.tau, effect.low, effect.high),
            )
        )
    return rows


def _corpora(demo: Demo) -> list[tuple[str, Corpus, int]]:
    """Return each input's name, texts, and positions left out for the prompts."""
    return [
        ("teacher", demo.teacher_corpus, demo.teacher.left_out_prompt),
        ("student", demo.student.corpus, demo.student.result.left_out_prompt),
        ("clean twin", demo.clean_twin.corpus, demo.clean_twin.result.left_out_prompt),
    ]


def _files(demo: Demo) -> list[tuple[str, str]]:
    """Return the inputs' names, without the folders of whoever ran it, and their digests."""
    return [(Path(name).name, digest) for _, corpus, _ in _corpora(demo) for name, digest in corpus.digests.items()]


def _warned(demo: Demo) -> list[tuple[str, list[str]]]:
    """Return each warning that is not spelled out anyway, with whose text it is about."""
    about: dict[str, list[str]] = {}
    for name, warnings in (
        ("teacher", demo.teacher_warnings),
        ("student", demo.student.warnings),
        ("clean twin", demo.clean_twin.warnings),
    ):
        for warning in (w for w in warnings if w not in _SPELLED_OUT):
            about.setdefault(warning.value, []).append(name)
    return list(about.items())


def _growth_svg(stories: Sequence[_Story]) -> Markup | None:
    """Plot -log10 p against tokens, or return None where no prefix was tested."""
    if not any(story.suspect.growth for story in stories):
        return None
    log10_level = math.log10(stories[0].result.level)

    def draw(axes: Any) -> None:
        for story in stories:
            points = story.suspect.growth
            tokens = [point.tokens for point in points]
            for test, dash, log10_ps in (
                ("weighted", "o-", [point.main_log10_p for point in points]),
                ("count", "s:", [point.count_log10_p for point in points]),
            ):
                evidence = [-log10_p for log10_p in log10_ps]
                axes.plot(tokens, evidence, dash, color=story.colour, clip_on=False, label=f"{story.name}, {test}")
        axes.axhline(-log10_level, color=INK, linestyle="--", linewidth=1)
        axes.annotate(
            f"level\n{_raised(log10_level)}",
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
        axes.set_ylabel(f"{MINUS}log₁₀ p")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)

    ends = "; ".join(
        f"{story.name} at {points[-1].tokens:,} tokens: weighted {-points[-1].main_log10_p:.1f}, "
        f"count {-points[-1].count_log10_p:.1f}"
        for story in stories
        if (points := story.suspect.growth)
    )
    label = f"Line chart of minus log10 p against tokens, with the level at {-log10_level:g}. {ends}."
    return inline_svg("growth", label, _GROWTH_SIZE, draw)


def _has_histogram(story: _Story) -> bool:
    return len(story.decoy_z) > 0


def _histogram_svg(story: _Story, stories: Sequence[_Story]) -> Markup:
    """Plot the decoys' z with the real key's, on the axis that all suspects share."""
    reals = [s.main.z for s in stories if s.result.weighted]
    everything = np.concatenate([*(s.decoy_z for s in stories), reals, [-4.0, 4.0]])
    low, high = math.floor(everything.min()), math.ceil(everything.max()) + 1
    return decoy_histogram(
        f"decoys-{story.key.replace('_', '-')}",
        f"Histogram for the {story.name}",
        decoys=story.decoy_z,
        real=story.main.z,
        span=(low, high),
        colour=story.colour,
        said="the real key",
        test=story.main.test,
    )


def _raised(log10: float) -> str:
    """Return a power of ten for a plot, where there is no markup."""
    if not log10.is_integer():
        return f"{10**log10:g}"
    return "10" + f"{log10:.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
