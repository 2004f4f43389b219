"""A verification as a table, and as one JSON object."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from detect.evidence.checks import Status
from detect.evidence.strict import to_json
from detect.evidence.verify import Verification
from watermark import __version__

__all__ = ["verification_json", "verification_table"]

_STYLE = {
    Status.PASSED: "green",
    Status.FAILED: "bold red",
    Status.CAUTION: "yellow",
    Status.NOT_CHECKED: "dim",
}


def verification_table(verification: Verification) -> RenderableType:
    """Return the checks, and below them what they say together."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("check", "", "what", "found"):
        table.add_column(name, overflow="fold")
    for result in verification.results:
        failed = result.status is Status.FAILED
        table.add_row(
            result.check.id,
            Text(result.status.value, style=_STYLE[result.status]),
            Text(result.check.title),
            Text(f"{result.detail}. {result.check.failure}" if failed else result.detail),
        )
    return Group(table, Text(), *(Text(line) for line in _closing(verification)))


def _closing(verification: Verification) -> list[str]:
    head = verification.summary
    if verification.failed:
        return [head, "The bundle does not bear its claim out."]
    if verification.claim is None:
        return [head]
    return [head, "", *verification.claim.statement]


def verification_json(verification: Verification) -> dict[str, Any]:
    """Return what ``evidence verify --json`` prints."""
    claim = verification.claim
    return {
        "schema": "taggant/evidence-verify/1",
        "version": __version__,
        "exit_code": verification.exit_code,
        "manifest": verification.manifest,
        "unable": verification.unable,
        "checks": [
            {
                "id": result.check.id,
                "status": result.status.value,
                "title": result.check.title,
                "detail": result.detail,
                "rests_on": list(result.check.rests_on),
            }
            for result in verification.results
        ],
        "claim": None if claim is None or verification.failed else to_json(claim),
    }
