"""Attributions and cohorts as tables, and as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from detect.attribution import Attribution
from detect.cohort_power import CohortPower
from detect.cohorts import CohortResult
from detect.corpus import Corpus
from detect.result_json import inputs_json
from detect.result_tables import accounting_text, grid, p_value, warnings_text
from detect.verdict import Verdict
from detect.warning import Warned
from watermark import __version__
from watermark.errors import printable

__all__ = ["attribution_json", "attribution_tables", "cohorts_json", "cohorts_tables"]

_SAYS = (
    "A small p says that the text depends on this account's code word. It does not say who gave the text away. An "
    "account counts as evidence only if it stood in the registry before the text did."
)
_COHORTS_SAY = (
    "A finding says that the outputs depend on the code words of these accounts. It does not say who holds them, nor "
    "that they knew. No sign of a cluster is no sign of its innocence."
)


def attribution_tables(
    found: Sequence[Attribution], corpus: Corpus, warned: Sequence[Warned], *, level: float
) -> RenderableType:
    """Return what ``detect accounts`` prints."""
    parts: list[RenderableType] = []
    for text in found:
        parts.append(Text(_head(text)))
        if text.verdict is not Verdict.TOO_SHORT:
            table = grid("account", "z", "p", "p, Holm", "", "answers set aside")
            for each in text.findings:
                shown = p_value(each.log10_p), p_value(each.log10_p_holm), "found" if each.found else ""
                table.add_row(printable(each.account, 80), f"{each.z:.2f}", *shown, _names(each.beside) or "-")
            parts.append(table)
        parts.append(Text(_verdict(text, level)))
    return Group(*parts, accounting_text(corpus.accounting), *warnings_text(warned), Text(), Text(_SAYS))


def _head(text: Attribution) -> str:
    return (
        f"{printable(text.source, 200)}: {text.sums.tokens:,} tokens, {text.sums.pairs:,} distinct pairs in account "
        f"lanes, {text.sums.positions:,} positions of the code words; {text.accounts:,} accounts tried"
    )


def _verdict(text: Attribution, level: float) -> str:
    if text.verdict is Verdict.TOO_SHORT:
        needed = text.tokens_needed
        more = "" if needed is None else f", some {needed:,} tokens such as these at least"
        return f"too short to tell: {text.positions_needed} positions must speak at the level {level:g}{more}"
    if not text.found:
        return f"no account's code word is found (level {level:g}, Holm over {text.accounts * text.texts:,})"
    names = _names([each.account for each in text.found[:10]])
    return f"carries the code word of {names} (level {level:g}, Holm over {text.accounts * text.texts:,})"


def _names(accounts: Sequence[str]) -> str:
    return ", ".join(printable(account, 80) for account in accounts)


def attribution_json(
    found: Sequence[Attribution],
    corpus: Corpus,
    warned: Sequence[Warned],
    *,
    level: float,
    registry: str,
    tokenizer: str,
) -> dict[str, Any]:
    """Return what ``detect accounts --json`` prints."""
    return {
        "schema": "taggant/detect-accounts/1",
        "version": __version__,
        "level": level,
        "registry": registry,
        "tokenizer": tokenizer,
        **inputs_json(corpus),
        "warnings": [warning.value for warning in warned],
        "texts": [
            {
                "source": text.source,
                "tokens": text.sums.tokens,
                "pairs": text.sums.pairs,
                "positions": text.sums.positions,
                "accounts": text.accounts,
                "verdict": text.verdict.value,
                "positions_needed": text.positions_needed,
                "findings": [
                    {
                        "account": each.account,
                        "beside": list(each.beside),
                        "z": each.z,
                        "log10_p": each.log10_p,
                        "log10_p_holm": each.log10_p_holm,
                        "found": each.found,
                    }
                    for each in text.findings
                ],
            }
            for text in found
        ],
    }


def cohorts_tables(result: CohortResult, corpus: Corpus, warned: Sequence[Warned]) -> RenderableType:
    """Return what ``detect accounts --cohorts`` prints."""
    power = result.power
    table = grid("cluster", "accounts", "z", "log10 e", "p", "")
    for each in result.findings:
        row = f"{each.accounts:,}", f"{each.z:.2f}", f"{each.log10_e:.2f}", p_value(each.log10_p)
        table.add_row(printable(each.cluster, 80), *row, "found" if each.found else "")
    found = [printable(each.cluster, 80) for each in result.findings if each.found]
    effect = power.effect
    return Group(
        Text(
            f"{corpus.tokens:,} tokens, {result.sums.pairs:,} weighted pairs in account lanes; in the fleet lanes tau "
            f"{effect.tau:.3f} (95%: {effect.low:.3f} to {effect.high:.3f})"
        ),
        Text(
            f"power: if {power.fed:,} of {len(result.findings):,} clusters supplied {power.share:.2g} of the marked "
            f"answers each, {power.found:.0%} of them would be found{_more(power)}"
        ),
        table,
        Text(f"found: {', '.join(found)}" if found else "no cluster is found"),
        Text(f"by e-BH at a false discovery rate of {result.level:g} over {len(result.findings):,} clusters"),
        accounting_text(corpus.accounting),
        *warnings_text(warned),
        Text(),
        Text(_COHORTS_SAY),
    )


def _more(power: CohortPower) -> str:
    if power.found >= 0.5:
        return ""
    if power.tokens_needed is None:
        return "; more tokens like these would not make it half of them"
    return f"; half of them in some {power.tokens_needed:,} tokens like these"


def cohorts_json(
    result: CohortResult, corpus: Corpus, warned: Sequence[Warned], *, cohorts: str, tokenizer: str
) -> dict[str, Any]:
    """Return what ``detect accounts --cohorts --json`` prints."""
    power = result.power
    return {
        "schema": "taggant/detect-cohorts/1",
        "version": __version__,
        "level": result.level,
        "cohorts": cohorts,
        "tokenizer": tokenizer,
        **inputs_json(corpus),
        "warnings": [warning.value for warning in warned],
        "reference": result.reference,
        "pairs": result.sums.pairs,
        "power": {
            "tau": power.effect.tau,
            "tau_low": power.effect.low,
            "tau_high": power.effect.high,
            "share": power.share,
            "fed": power.fed,
            "found": power.found,
            "found_at_most": power.found_at_most,
            "tokens_needed": power.tokens_needed,
        },
        "clusters": [
            {
                "cluster": each.cluster,
                "accounts": each.accounts,
                "z": each.z,
                "log10_e": each.log10_e,
                "log10_p": each.log10_p,
                "found": each.found,
            }
            for each in result.findings
        ],
    }
