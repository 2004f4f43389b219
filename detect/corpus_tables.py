"""Tallies and scans of corpora as JSON and as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from detect.corpus_scan import CorpusScan
from detect.count import CountTest
from detect.result_json import head, outcome_json
from detect.result_tables import STYLES, accounting_text, decoy_rank, grid, p_value, warnings_text
from detect.tally_file import About, TallyFile
from detect.tally_score import TallyScore
from detect.verdict import DOES_NOT_SAY, Verdict
from detect.warning import Warned
from watermark.errors import printable

__all__ = ["scan_json", "scan_tables", "score_json", "score_tables", "tally_json", "tally_table", "warnings_of_tally"]


def warnings_of_tally(
    about: About | CorpusScan, *, fingerprint: str, activated: bool | None, published: bool
) -> list[Warned]:
    """Return what goes beside any result of a key on a tally or a scan."""
    found = []
    if activated is False:
        found.append(Warned.NOT_ACTIVATED)
    if published:
        found.append(Warned.PUBLISHED)
    if about.without_prompt:
        found.append(Warned.NO_PROMPTS)
    if isinstance(about, About) and about.fingerprints - {fingerprint}:
        found.append(Warned.OTHER_SCOPE)
    return found


def tally_json(tally: TallyFile) -> dict[str, Any]:
    """Return what `tally build` and `tally merge` print: what the file's metadata holds."""
    return {**head("tally"), **tally.to_json(), "schema": head("tally")["schema"]}


def tally_table(tally: TallyFile) -> RenderableType:
    """Return what a tally is of."""
    about = tally.about
    return Group(
        Text(
            f"{len(tally.rows.hashes):,} windows of {about.window} ids and {tally.rows.pairs:,} distinct pairs of "
            f"{about.tokens:,} ids in {about.texts:,} texts; {_kept(tally.rows.level)}"
        ),
        Text(f"{about.left_out_prompt:,} positions left out for standing in a prompt ({about.prompt_policy})"),
        *([] if about.reference is None else [Text(f"reference: {printable(about.reference)}")]),
        accounting_text(about.accounting),
    )


def score_json(results: Sequence[TallyScore], tally: TallyFile, warned: Sequence[Sequence[Warned]]) -> dict[str, Any]:
    """Return what `tally score` prints."""
    return {
        **head("tally-score"),
        "scopes": [
            {
                **asdict(result),
                "pooled": {"name": result.pooled.name, **outcome_json(result.pooled)},
                "weighted": [{"name": test.name, **outcome_json(test)} for test in result.weighted],
                "verdict": result.verdict.value,
                "warnings": [warning.value for warning in warnings],
            }
            for result, warnings in zip(results, warned, strict=True)
        ],
        "tally": tally.to_json(),
        "does_not_say": DOES_NOT_SAY,
    }


def score_tables(results: Sequence[TallyScore], tally: TallyFile, warned: Sequence[Sequence[Warned]]) -> RenderableType:
    """Return the test of each key."""
    table = grid("scope", "test", "pairs", "green share", "expected", "z", "p", "p, Holm", "decoy rank", "verdict")
    lines: list[RenderableType] = [table]
    for result, warnings in zip(results, warned, strict=True):
        name = printable(result.scope, 40)
        for test in (result.pooled, *result.weighted):
            green = getattr(test, "green", None)
            table.add_row(
                name,
                test.name,
                f"{test.pairs:,}",
                "-" if green is None else f"{green / test.pairs if test.pairs else 0:.4f}",
                "-" if green is None else f"{result.mean_score:.4f}",
                f"{test.z:.1f}",
                p_value(test.log10_p) if isinstance(test, CountTest) else f"<= {p_value(test.log10_p)}",
                "" if result.weighted else p_value(result.log10_p_holm),
                decoy_rank(test.decoy_rank, test.decoys),
                Text("") if result.weighted else Text(result.verdict.value, style=STYLES[result.verdict]),
            )
        if result.weighted:
            table.add_row(
                name,
                result.main_test,
                *(["-"] * 4),
                f"<= {p_value(result.log10_p)}",
                f"<= {p_value(result.log10_p_holm)}",
                decoy_rank(result.min_p_rank, result.pooled.decoys),
                Text(result.verdict.value, style=STYLES[result.verdict]),
            )
            lines.append(Text(f"{name}: reference {printable(result.reference)}{_effect(result)}"))
        if result.share < 1:
            lines.append(Text(f"{name}: of all windows z would be about {result.z_of_all:.1f} ({result.main_test})"))
        lines += [Text(f"caution: {caution}", style="yellow") for caution in result.cautions]
        lines += warnings_text(warnings)
    return Group(*lines, tally_table(tally), Text(f"\n{DOES_NOT_SAY}"))


def scan_json(scan: CorpusScan, warned: Sequence[Warned], *, out: str) -> dict[str, Any]:
    """Return what `detect corpus` prints."""
    return {
        **head("detect-corpus"),
        **asdict(scan),
        "accounting": scan.accounting.to_json(),
        "out": out,
        "warnings": [warning.value for warning in warned],
    }


def scan_tables(scan: CorpusScan, warned: Sequence[Warned]) -> RenderableType:
    """Return how many documents have which verdict."""
    table = grid("verdict", "documents")
    for name, count in scan.verdicts.items():
        table.add_row(Text(name, style=STYLES[Verdict(name)]), f"{count:,}")
    bound = "no document is a finding" if scan.log10_p_bound is None else f"p up to {p_value(scan.log10_p_bound)}"
    return Group(
        table,
        Text(
            f"Benjamini-Hochberg over {scan.documents:,} documents: a share of at most {scan.level:g} of the "
            f"findings is expected to be false ({bound}); {scan.findings_any_dependence:,} findings whatever the "
            "dependence between documents"
        ),
        accounting_text(scan.accounting),
        *warnings_text(warned),
    )


def _effect(result: TallyScore) -> str:
    if result.effect is None:
        return ""
    return f"; effect size tau {result.effect.tau:.2f} (95%: {result.effect.low:.2f} to {result.effect.high:.2f})"


def _kept(level: int) -> str:
    return "nothing was left out" if not level else f"of the windows 1 in {2**level:,} is kept, chosen without a key"
