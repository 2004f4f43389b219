"""Results as a person reads them in a terminal: tables and sentences, made with rich."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from detect.calibration import NAIVE, CalibrationResult
from detect.corpus import Corpus
from detect.count import CountTest
from detect.demo import Demo
from detect.distillation import ModelResult
from detect.e_process import SequentialResult
from detect.marked_text import TextResult
from detect.open_weight import OpenWeightResult
from detect.records import MAX_PROBLEMS, Accounting
from detect.reference_choice import Candidate
from detect.supervised import SupervisedTest
from detect.top_logprobs import LogprobsResult
from detect.verdict import DOES_NOT_SAY, Verdict
from detect.warning import Warned
from detect.weighted_test import WeightedTest
from watermark.errors import printable

__all__ = [
    "STYLES",
    "accounting_text",
    "calibration_table",
    "decoy_rank",
    "demo_story",
    "does_not_say",
    "grid",
    "logprobs_table",
    "model_tables",
    "p_value",
    "sequential_table",
    "supervised_table",
    "text_tables",
    "warnings_text",
    "weights_tables",
]

#: Documents listed one by one; with more, the most significant are.
_LISTED = 20

#: Malformed records, where some are tolerated, that are told one by one.
_PROBLEMS = 3

STYLES = {Verdict.DEPENDS: "bold red", Verdict.NO_SIGN: "green", Verdict.TOO_SHORT: "yellow"}


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


def grid(*headings: str) -> Table:
    """Return an empty table of these columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def accounting_text(accounting: Accounting) -> Text:
    """Return where every record went."""
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


def warnings_text(warned: Iterable[Warned]) -> list[RenderableType]:
    """Return a line a warning."""
    return [Text(f"note: {warning.value}", style="yellow") for warning in warned]


def decoy_rank(place: int | None, decoys: int) -> str:
    """Return a rank among decoys."""
    return "-" if place is None else f"{place:,} of {decoys + 1:,}"


def model_tables(
    result: ModelResult, corpus: Corpus, warned: Sequence[Warned], candidates: Sequence[Candidate] = ()
) -> RenderableType:
    """Return the result of one scope: the tests, the effect and the verdict. `does_not_say` goes below."""
    table = grid("test", "pairs", "green share", "expected", "z", "p", "decoy rank")
    for test in result.tests:
        counted = isinstance(test, CountTest) and result.gamma_256 is not None
        table.add_row(
            test.name,
            f"{test.pairs:,}",
            # A weighted test's share of green pairs would mislead: most of its pairs were not said.
            f"{test.green / test.pairs if test.pairs else 0:.4f}" if isinstance(test, CountTest) else "-",
            f"{(result.gamma_256 or 0) / 256:.4f}" if counted else "-",
            f"{test.z:.1f}",
            ("" if counted or (isinstance(test, WeightedTest) and test.exact) else "<= ") + p_value(test.log10_p),
            decoy_rank(test.decoy_rank, test.decoys),
        )
    lines: list[RenderableType] = [
        Text(
            f"scope {result.scope}: {result.tokens:,} tokens, {result.positions:,} positions scored, "
            f"{result.left_out_prompt:,} left out for standing in a prompt ({result.prompt_policy})"
        ),
        table,
    ]
    if result.reference is not None:
        effect = ""
        if result.effect is not None:
            effect = (
                f"; effect size tau {result.effect.tau:.2f} (95%: {result.effect.low:.2f} to {result.effect.high:.2f}) "
                "of the teacher's tilt"
            )
        lines.append(Text(f"reference {printable(result.reference)}, {result.reference_nll:.2f} nats a token{effect}"))
    else:
        lines.append(
            Text(
                f"no reference: only the {result.unweighted.name} test was made. --reference or --reference-model "
                "makes the stronger one"
            )
        )
    if result.min_p_rank is not None:
        rank = decoy_rank(result.min_p_rank, result.weighted[0].decoys)
        lines.append(Text(f"the smallest p of the tests listed ranks {rank} among the decoys' smallest"))
    if len(candidates) > 1:
        ranked = sorted(candidates, key=lambda candidate: candidate.negative_log_likelihood)
        told = ", ".join(f"{printable(each.name)} {each.negative_log_likelihood:.3f}" for each in ranked)
        lines.append(Text(f"reference chosen by the likelihood of the outputs (nats a token): {told}"))
    lines += [Text(f"caution: {caution}", style="yellow") for caution in result.cautions]
    corrected = f", Holm over {result.scopes_tested} scopes" if result.scopes_tested > 1 else ""
    exact = isinstance(result.unweighted, CountTest) and not result.weighted and result.scopes_tested == 1
    tests = "tests" if len(result.weighted) > 1 else "test"
    verdict = Text.assemble(
        (f"{result.verdict.value}", STYLES[result.verdict]),
        f": p {'=' if exact else '<='} {p_value(result.log10_p_holm)} ({result.main_test} {tests}{corrected}; "
        f"level {result.level:g})",
    )
    return Group(*lines, verdict, accounting_text(corpus.accounting), *warnings_text(warned))


def sequential_table(result: SequentialResult) -> RenderableType:
    """Return the looks of an e-process."""
    table = grid("look", "tokens", "lanes opened", "pairs", "log10 e", "anytime p")
    for look in result.looks:
        table.add_row(
            str(look.number),
            f"{look.tokens:,}",
            str(len(look.opened)),
            f"{look.pairs:,}",
            f"{look.log10_e:.2f}",
            "<= " + p_value(look.log10_p),
        )
    needed = result.tokens_needed
    said = f"never reached in {result.tokens:,}" if needed is None else f"reached at {needed:,}"
    return Group(
        Text(f"\ne-process ({result.weighting} weights), valid at every look; level {result.level:g} {said} tokens"),
        table,
    )


def supervised_table(result: SupervisedTest) -> RenderableType:
    """Return the test of the windows served, and its control."""
    table = grid("windows", "number", "pairs", "z", "p")
    served = result.windows_served
    z = result.statistic / result.sd if result.sd else 0.0
    name = "served" if result.accounts is None else "first served to them"
    table.add_row(name, f"{served:,}", f"{result.pairs:,}", f"{z:.1f}", "<= " + p_value(result.log10_p))
    control = result.never_served
    table.add_row(
        "never served",
        f"{result.windows_never:,}",
        f"{control.pairs:,}",
        f"{control.z:.1f}",
        "<= " + p_value(control.log10_p),
    )
    return Group(
        Text(
            f"\nsupervised by {result.served_responses:,} served answers, in the order of first visit ({result.name})"
            + ("" if result.accounts is None else f"; of {result.accounts:,} accounts")
        ),
        table,
    )


def logprobs_table(result: LogprobsResult) -> RenderableType:
    """Return the test of an endpoint's log-probabilities."""
    test = result.test
    table = grid("test", "pairs", "z", "p", "decoy rank")
    rank = decoy_rank(test.decoy_rank, test.decoys)
    table.add_row(test.name, f"{test.pairs:,}", f"{test.z:.1f}", "<= " + p_value(test.log10_p), rank)
    return Group(
        Text(
            f"\nlog-probabilities at {result.contexts:,} positions, {result.windows:,} distinct windows; "
            f"{result.dropped_suspect:.0%} of the suspect's mass is not listed; minus {printable(result.reference)}"
        ),
        table,
        Text(
            "this p is by itself: name beforehand which one counts, or count the smaller of it and the one above twice"
        ),
        accounting_text(result.accounting),
    )


def weights_tables(result: OpenWeightResult, corpus: Corpus, warned: Sequence[Warned]) -> RenderableType:
    """Return the result of one key on a model whose weights are at hand. `does_not_say` goes below."""
    test = result.test
    table = grid("test", "pairs", "z", "p", "decoy rank")
    table.add_row(
        test.name,
        f"{test.pairs:,}",
        f"{test.z:.1f}",
        "<= " + p_value(test.log10_p),
        decoy_rank(test.decoy_rank, test.decoys),
    )
    lines: list[RenderableType] = [
        Text(
            f"scope {result.scope}: {result.contexts:,} contexts ({result.origin.value}), {result.windows:,} distinct "
            f"windows; {printable(result.suspect)} minus {printable(result.reference)}"
        ),
        table,
    ]
    if result.effect is not None:
        lines.append(
            Text(
                f"effect size tau {result.effect.tau:.2f} (95%: {result.effect.low:.2f} to {result.effect.high:.2f}) "
                "of the teacher's tilt"
            )
        )
    lines += [Text(f"caution: {caution}", style="yellow") for caution in result.cautions]
    corrected = f", Holm over {result.scopes_tested} keys" if result.scopes_tested > 1 else ""
    verdict = Text.assemble(
        (f"{result.verdict.value}", STYLES[result.verdict]),
        f": p <= {p_value(result.log10_p_holm)} ({test.name} test{corrected}; level {result.level:g})",
    )
    return Group(*lines, verdict, accounting_text(corpus.accounting), *warnings_text(warned))


def does_not_say() -> RenderableType:
    """Return what no result on a model says, to stand once below the results."""
    return Text("\n" + DOES_NOT_SAY, style="dim")


def text_tables(result: TextResult, corpus: Corpus, warned: Sequence[Warned]) -> RenderableType:
    """Return the documents (the most significant of many) and the pooled test."""
    green = result.gamma_256 is not None
    holm = f"p, Holm over {len(result.documents):,}"
    table = grid("document", "pairs", *(("green", "share") if green else ("mean score",)), "p", holm, "verdict")
    listed = sorted(result.documents, key=lambda document: document.log10_p)[:_LISTED]
    if len(result.documents) <= _LISTED:
        listed = result.documents
    for document in listed:
        share = f"{document.score / document.pairs if document.pairs else 0:.3f}"
        table.add_row(
            printable(document.source, 48),
            f"{document.pairs:,}",
            *((f"{document.score:,}", share) if green else (share,)),
            p_value(document.log10_p),
            p_value(document.log10_p_holm),
            Text(document.verdict.value, style=STYLES[document.verdict]),
        )
    counts = {verdict: sum(d.verdict is verdict for d in result.documents) for verdict in Verdict}
    lines: list[RenderableType] = [
        table if listed else Text(f"no text is longer than the window of {result.window} ids: nothing could be scored")
    ]
    if not result.documents and result.tokens and result.cautions:
        lines = [Text("this mark's hash is too weak for a p-value of each document: pooled only")]
    if len(listed) < len(result.documents):
        lines.append(Text(f"({_LISTED} most significant of {len(result.documents):,}; --json has all)"))
    enough = ""
    if counts[Verdict.TOO_SHORT] and green:
        # With fewer distinct pairs even an all-green text has a p above the level.
        least = math.log10(max(1, len(result.documents))) - math.log10(result.level)
        enough = f" (it takes {math.ceil(least / -math.log10(result.mean_score)):,} distinct pairs at least)"
    if result.documents:
        lines.append(
            Text("documents: " + ", ".join(f"{count:,} {verdict.value}" for verdict, count in counts.items()) + enough)
        )
    return Group(
        *lines,
        Text.assemble(
            "pooled, each distinct pair once: ",
            (result.pooled_verdict.value, STYLES[result.pooled_verdict]),
            f": {_pooled(result)}; level {result.level:g})",
        ),
        Text(f"{result.left_out_prompt:,} positions left out for standing in a prompt ({result.prompt_policy})"),
        *(Text(f"caution: {caution}", style="yellow") for caution in result.cautions),
        accounting_text(corpus.accounting),
        *warnings_text(warned),
    )


def _pooled(result: TextResult) -> str:
    pooled = result.pooled
    if isinstance(pooled, CountTest):
        return (
            f"p = {p_value(pooled.log10_p)}, {pooled.green:,} green of {pooled.pairs:,} distinct pairs "
            f"({result.mean_score:.4f} expected by chance"
        )
    among = (
        "" if pooled.decoy_rank is None else f", rank {decoy_rank(pooled.decoy_rank, pooled.decoys)} among decoy keys"
    )
    return (
        f"p <= {p_value(pooled.log10_p)}, {pooled.pairs:,} distinct pairs{among} "
        f"(mean score {result.mean_score:.4f} expected by chance"
    )


def calibration_table(result: CalibrationResult, corpus: Corpus) -> RenderableType:
    """Return the false-positive rates beside the nominal ones."""
    table = grid("test", *(f"p <= {rate.level:g}" for rate in next(iter(result.rates.values()))), "sd of z")
    for test, rates in result.rates.items():
        cells = [
            Text(f"{rate.rate:.4f}{' ' if rate.within else '*'}", style="" if rate.within else "bold red")
            for rate in rates
        ]
        table.add_row(test + (" (not valid)" if test == NAIVE else ""), *cells, f"{result.sds[test]:.2f}")
    return Group(
        Text(
            f"{result.keys:,} random keys (seed {result.seed}) on {result.tokens:,} tokens: {result.positions:,} "
            f"positions, {result.pairs:,} distinct pairs; window {result.window}, gamma {result.gamma_256}/256"
        ),
        table,
        Text("* above nominal beyond its 95% interval", style="dim"),
        accounting_text(corpus.accounting),
    )


def demo_story(demo: Demo) -> RenderableType:
    """Return the story of the demo with its figures."""
    teacher, student, twin = demo.teacher.count, demo.student.result, demo.clean_twin.result
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
