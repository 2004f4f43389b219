"""Results as a person reads them in a terminal: tables and sentences, made with rich."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from detect.calibration import CalibrationResult
from detect.corpus import Corpus
from detect.demo import Demo
from detect.distillation import ModelResult
from detect.marked_text import TextResult
from detect.records import MAX_PROBLEMS, Accounting
from detect.verdict import DOES_NOT_SAY, Verdict
from detect.warning import Warned
from watermark.errors import printable

__all__ = ["calibration_table", "demo_story", "does_not_say", "model_tables", "text_tables"]

#: Documents listed one by one; with more, the most significant are.
_LISTED = 20

#: Malformed records, where some are tolerated, that are told one by one.
_PROBLEMS = 3

_STYLES = {Verdict.DEPENDS: "bold red", Verdict.NO_SIGN: "green", Verdict.TOO_SHORT: "yellow"}


def p_value(log10_p: float) -> str:
    """Return a p-value for reading, two digits, rounded up: what is printed is never below what was computed.

    >>> p_value(-8127.3), p_value(-19.196), p_value(-2.0), p_value(-0.05)
    ('5.1e-8128', '6.4e-20', '0.010', '0.90')
    """
    exponent = math.floor(log10_p)
    # The small allowance keeps 10^-2 from becoming 0.011 for the last bit of a logarithm.
    digits = math.ceil(10 ** (log10_p - exponent + 1) - 1e-6)
    if digits == 100:
        digits, exponent = 10, exponent + 1
    if exponent < -3:
        return f"{digits / 10:.1f}e{exponent}"
    return f"{digits * 10.0 ** (exponent - 1):.{1 - exponent}f}"


def _grid(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _accounting(accounting: Accounting) -> Text:
    excluded = sum(accounting.excluded.values())
    parts = [f"{accounting.read:,} records read: {accounting.scored:,} scored"]
    parts.append(f"{excluded:,} excluded")
    parts.append(f"{accounting.malformed:,} malformed")
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in accounting.excluded.items())
    lines = [", ".join(parts) + (f" ({reasons})" if reasons else "")]
    lines += [f"malformed: {problem}" for problem in accounting.problems[:_PROBLEMS]]
    if accounting.malformed > _PROBLEMS:
        lines.append(f"malformed: {accounting.malformed - _PROBLEMS:,} more (--json has the first {MAX_PROBLEMS})")
    lines += [f"beside the records: {count:,} {what}" for what, count in accounting.notes.items()]
    return Text("\n".join(lines))


def _warnings(warned: Iterable[Warned]) -> list[RenderableType]:
    return [Text(f"note: {warning.value}", style="yellow") for warning in warned]


def _rank(rank: int | None, decoys: int) -> str:
    return "-" if rank is None else f"{rank:,} of {decoys + 1:,}"


def model_tables(result: ModelResult, corpus: Corpus, warned: Sequence[Warned]) -> RenderableType:
    """Return the result of one scope: the tests, the effect and the verdict. `does_not_say` goes below."""
    gamma = result.gamma_256 / 256
    table = _grid("test", "pairs", "green", "share", "expected", "z", "p", "decoy rank")
    count = result.count
    share = count.green / count.pairs if count.pairs else 0.0
    sd = (count.pairs * gamma * (1 - gamma)) ** 0.5
    table.add_row(
        "count",
        f"{count.pairs:,}",
        f"{count.green:,}",
        f"{share:.4f}",
        f"{gamma:.4f}",
        f"{(count.green - gamma * count.pairs) / sd if sd else 0:.1f}",
        p_value(count.log10_p),
        _rank(count.decoy_rank, count.decoys),
    )
    lines: list[RenderableType] = [
        Text(
            f"scope {result.scope}: {result.tokens:,} tokens, {result.positions:,} positions scored, "
            f"{result.left_out_prompt:,} left out for standing in a prompt ({result.prompt_policy})"
        ),
        table,
    ]
    centred = result.centred
    if centred is not None:
        table.add_row(
            "centred",
            f"{centred.pairs:,}",
            f"{centred.green:,}",
            f"{centred.green / centred.pairs if centred.pairs else 0:.4f}",
            f"{gamma:.4f}",
            f"{centred.z:.1f}",
            p_value(centred.log10_p),
            _rank(centred.decoy_rank, centred.decoys),
        )
        effect = ""
        if centred.tau is not None:
            effect = (
                f"; effect size tau {centred.tau:.2f} (95%: {centred.tau_low:.2f} to {centred.tau_high:.2f}) "
                "of the teacher's tilt"
            )
        lines.append(Text(f"reference {printable(result.reference)}, {result.reference_nll:.2f} nats a token{effect}"))
    else:
        lines.append(
            Text("no reference: only the count test was made. --reference or --reference-model makes the stronger one")
        )
    corrected = f", Holm over {result.scopes_tested} scopes" if result.scopes_tested > 1 else ""
    verdict = Text.assemble(
        (f"{result.verdict.value}", _STYLES[result.verdict]),
        f": p <= {p_value(result.log10_p_holm)} ({result.main_test} test{corrected}; level {result.level:g})",
    )
    return Group(*lines, verdict, _accounting(corpus.accounting), *_warnings(warned))


def does_not_say() -> RenderableType:
    """Return what no result on a model says, to stand once below the results."""
    return Text("\n" + DOES_NOT_SAY, style="dim")


def text_tables(result: TextResult, corpus: Corpus, warned: Sequence[Warned]) -> RenderableType:
    """Return the documents (the most significant of many) and the pooled test."""
    table = _grid("document", "pairs", "green", "share", "p", f"p, Holm over {len(result.documents):,}", "verdict")
    listed = sorted(result.documents, key=lambda document: document.log10_p)[:_LISTED]
    if len(result.documents) <= _LISTED:
        listed = result.documents
    for document in listed:
        table.add_row(
            printable(document.source, 48),
            f"{document.pairs:,}",
            f"{document.green:,}",
            f"{document.green / document.pairs if document.pairs else 0:.3f}",
            p_value(document.log10_p),
            p_value(document.log10_p_holm),
            Text(document.verdict.value, style=_STYLES[document.verdict]),
        )
    counts = {verdict: sum(d.verdict is verdict for d in result.documents) for verdict in Verdict}
    pooled = result.pooled
    gamma = result.gamma_256 / 256
    # With fewer distinct pairs even an all-green text has a p above the level.
    enough = math.ceil((math.log10(max(1, len(result.documents))) - math.log10(result.level)) / -math.log10(gamma))
    lines: list[RenderableType] = [
        table if listed else Text(f"no text is longer than the window of {result.window} ids: nothing could be scored")
    ]
    if len(listed) < len(result.documents):
        lines.append(Text(f"({_LISTED} most significant of {len(result.documents):,}; --json has all)"))
    return Group(
        *lines,
        Text(
            "documents: "
            + ", ".join(f"{count:,} {verdict.value}" for verdict, count in counts.items())
            + (f" (it takes {enough:,} distinct pairs at least)" if counts[Verdict.TOO_SHORT] else "")
        ),
        Text.assemble(
            "pooled, each distinct pair once: ",
            (result.pooled_verdict.value, _STYLES[result.pooled_verdict]),
            f": p = {p_value(pooled.log10_p)}, {pooled.green:,} green of {pooled.pairs:,} distinct pairs "
            f"({gamma:.4f} expected by chance; level {result.level:g})",
        ),
        Text(f"{result.left_out_prompt:,} positions left out for standing in a prompt ({result.prompt_policy})"),
        _accounting(corpus.accounting),
        *_warnings(warned),
    )


def calibration_table(result: CalibrationResult, corpus: Corpus) -> RenderableType:
    """Return the false-positive rates beside the nominal ones."""
    table = _grid("test", *(f"p <= {rate.level:g}" for rate in next(iter(result.rates.values()))), "sd of z")
    for test, rates in result.rates.items():
        cells = [Text(f"{rate.rate:.4f}", style="" if rate.within else "bold red") for rate in rates]
        table.add_row(test + (" (not valid)" if test == "naive z" else ""), *cells, f"{result.sds[test]:.2f}")
    return Group(
        Text(
            f"{result.keys:,} random keys (seed {result.seed}) on {result.tokens:,} tokens: {result.positions:,} "
            f"positions, {result.pairs:,} distinct pairs; window {result.window}, gamma {result.gamma_256}/256"
        ),
        table,
        Text("a rate above nominal beyond its 95% interval is shown in red", style="dim"),
        _accounting(corpus.accounting),
    )


def demo_story(demo: Demo) -> RenderableType:
    """Return the story of the demo with its figures."""
    teacher, student, twin = demo.teacher.pooled, demo.student.result, demo.clean_twin.result
    marked = sum(document.verdict is Verdict.DEPENDS for document in demo.teacher.documents)

    def heading(text: str) -> Text:
        return Text("\n" + text, style="bold")

    return Group(
        heading("1. A teacher answered under a key"),
        Text(
            f"SmolLM2-135M-Instruct answered {len(demo.teacher.documents):,} prompts with its logits biased by a keyed "
            f"green list (window {demo.teacher.window}, gamma 1/4, delta {student.delta:g}). The "
            f"{demo.fitting_commitments} commitments to the key were public before. Is the text marked?"
        ),
        Text(
            f"   {teacher.green:,} of {teacher.pairs:,} distinct pairs are green "
            f"({teacher.green / teacher.pairs:.3f}; 0.250 by chance): p = {p_value(teacher.log10_p)}. Of the answers "
            f"by themselves, {marked:,} of {len(demo.teacher.documents):,} are found marked."
        ),
        heading("2. A student was trained on those answers, a clean twin on unmarked ones"),
        Text(
            "Same base model, same prompts, same training. Then both answered other prompts with no key anywhere near. "
            "Was the model distilled?"
        ),
        heading("   the student"),
        model_tables(student, demo.student.corpus, demo.student.warnings),
        heading("   the clean twin"),
        model_tables(twin, demo.clean_twin.corpus, demo.clean_twin.warnings),
        does_not_say(),
    )
