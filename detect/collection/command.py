"""What ``taggant collect`` does: from its options to a journal, with a display meanwhile and an outcome at the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from detect.collection.collect import Budget, Collection, Outcome, Stopped, collect, header_of
from detect.collection.endpoint import Endpoint
from detect.collection.journal import Journal
from detect.collection.live import LiveEvidence
from detect.collection.prompts import made_prompts
from detect.corpus import Corpus
from detect.e_process import SequentialResult, SequentialTest
from detect.mark import Mark
from detect.reference import Reference
from detect.result_tables import p_value
from detect.weighted_test import EffectSize
from watermark import __version__
from watermark.errors import KeyringError, UsageError, printable
from watermark.generation import read_prompts
from watermark.keys import Secret
from watermark.secret_file import check_mode
from watermark.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Asked", "Collected", "Watched", "progress_table", "run_collection"]

#: Exit codes by why a collection ended; the others are 0.
_UNFINISHED: Final = {Stopped.BUDGET: 7, Stopped.FAILURES: 7, Stopped.FAILED: 7, Stopped.INTERRUPTED: 130}

#: Names of models that are shown.
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of a collection."""

    url: str
    model: str
    completions: bool = False
    sampling: dict[str, Any]
    logprobs: int | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = None
    prompts: Path | None = None
    plan: Path | None = None
    domain: str | None = None
    count: int = 100
    seed: int = 0
    samples: int = 1
    concurrency: int = 4
    per_minute: float | None = None
    retries: int = 6
    timeout: float = 120.0
    backoff: float = 1.0
    budget_tokens: int | None = None
    budget_money: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def endpoint(self) -> Endpoint:
        """Return the endpoint."""
        return Endpoint(
            url=self.url,
            model=self.model,
            kind="completions" if self.completions else "chat",
            sampling=self.sampling,
            logprobs=self.logprobs,
            key=self._key(),
            retries=self.retries,
            seconds=self.timeout,
            backoff=self.backoff,
        )

    def texts(self) -> list[str]:
        """Return the prompts.

        Raises:
            UsageError: not one source of them is named.
        """
        if [self.prompts is None, self.plan is None, self.domain is None].count(False) != 1:
            raise UsageError("give one of --prompts FILE, --plan FOLDER and --domain NAME")
        if self.domain is not None:
            return made_prompts(self.domain, self.count, seed=self.seed)
        return read_prompts(self.plan / "prompts.jsonl" if self.plan is not None else self.prompts or Path())

    def _key(self) -> Secret | None:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise UsageError("the API key is in a variable or in a file: give one of --api-key-env and --api-key-file")
        said = None
        if self.api_key_env is not None:
            said = os.environ.get(self.api_key_env)
            if not said:
                raise UsageError(f"--api-key-env: the variable {printable(self.api_key_env, 80)} is not set")
        if self.api_key_file is not None:
            try:
                check_mode(self.api_key_file, os.stat(self.api_key_file).st_mode)
                said = self.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                raise KeyringError(f"{printable(self.api_key_file)}: the API key cannot be read") from None
        if said is None:
            return None
        if not said.isascii() or not said.isprintable() or " " in said or not said:
            raise UsageError("the API key is no line of printable ASCII characters")
        return Secret(said.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """With which key to look meanwhile."""

    mark: Mark
    tokenizer: Tokenizer
    level: float
    looks: int
    planned_tokens: int | None
    reference_of: Callable[[Corpus], Reference] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a call came to."""

    journal: Path
    outcome: Outcome
    evidence: SequentialResult | None
    effect: EffectSize | None = None
    """In the lanes that the looks opened."""

    @property
    def exit_code(self) -> int:
        """0, 7 where the collection is unfinished, 130 where it was interrupted."""
        return _UNFINISHED.get(self.outcome.stopped, 0)

    def lines(self) -> list[str]:
        """Return it in words."""
        state = self.outcome.collection
        left = state.planned - state.answered
        failed = f" ({state.failed:,} of them failed)" if state.failed else ""
        lines = [
            f"{printable(self.journal)}: {state.done:,} of {state.planned:,} requests: {state.answered:,} answers, "
            f"{state.errors:,} errors; {state.prompt_tokens:,} prompt and {state.completion_tokens:,} answer tokens",
            f"ended: {self.outcome.stopped.value}"
            + (f"; {left:,} requests are left{failed}, and the same command goes on with them" if left else ""),
        ]
        if state.last_error is not None:
            lines.append(f"the last error: {printable(state.last_error, 300)}")
        if self.outcome.cost:
            lines.append(f"cost by the prices given: {self.outcome.cost:.2f}")
        if state.unread:
            lines.append(
                f"{state.unread:,} tries without an answer may have been paid for: each counts as {state.longest:,} "
                "answer tokens above"
            )
        if state.changed:
            lines.append(f"WARNING: the endpoint named more than one model or system fingerprint: {_names(state)}")
        if self.evidence is not None:
            found = self.evidence
            of_plan = f"{found.tokens:,} of {found.planned_tokens:,} tokens planned"
            lines.append(
                f"evidence: e = 10^{found.log10_e:.2f}, p <= {p_value(found.log10_p)} at any time (level "
                f"{found.level:g}), after {len(found.looks)} looks at {of_plan}"
            )
            if self.effect is not None:
                lines.append(f"effect size: {_tau(self.effect)}, in the lanes that were opened")
            lines.append(
                f"Repeat it: taggant detect model {printable(self.journal)} --keyring KEYRING --retokenize "
                f"--planned-tokens {found.planned_tokens} --looks LOOKS"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "schema": "taggant/collect/1",
            "version": __version__,
            "journal": str(self.journal),
            "stopped": self.outcome.stopped.name.lower(),
            "collection": asdict(self.outcome.collection),
            "cost": self.outcome.cost,
            "evidence": None if self.evidence is None else asdict(self.evidence),
            "effect": None if self.effect is None else asdict(self.effect),
        }


def run_collection(asked: Asked, out: Path, *, watched: Watched | None) -> Collected:
    """Collect, look, and stop. An interruption (Ctrl-C, SIGTERM) ends it in good order.

    Raises:
        TaggantError: a setting that cannot be, another collection's journal, or an endpoint that refuses for good.
    """
    endpoint, prompts = asked.endpoint(), asked.texts()
    budget = Budget(
        tokens=asked.budget_tokens, money=asked.budget_money, price_in=asked.price_in, price_out=asked.price_out
    )
    with Journal(out, header_of(endpoint, prompts, asked.samples)) as journal:
        live = None
        if watched is not None:
            planned = watched.planned_tokens or len(prompts) * asked.samples * int(asked.sampling["max_tokens"])
            test = SequentialTest(
                watched.mark,
                planned_tokens=planned,
                has_reference=watched.reference_of is not None,
                looks=watched.looks,
                level=watched.level,
            )
            live = LiveEvidence(test, journal, watched.tokenizer, watched.mark, reference_of=watched.reference_of)
        with _display(live, budget) as show:
            outcome = asyncio.run(
                _interruptible(
                    collect(
                        endpoint,
                        prompts,
                        journal,
                        samples=asked.samples,
                        concurrency=asked.concurrency,
                        per_minute=asked.per_minute,
                        budget=budget,
                        look=(lambda: None) if live is None else live,
                        on_record=show,
                    )
                )
            )
    return Collected(
        journal=out,
        outcome=outcome,
        evidence=None if live is None else live.test.result(),
        effect=None if live is None else live.effect,
    )


async def _interruptible(work: Any) -> Outcome:
    """Cancel the work on Ctrl-C or SIGTERM; it then returns what there is."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows has none, nor any thread but the main one: there Ctrl-C raises as it always does.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, task.cancel)
    outcome: Outcome = await task
    return outcome


def _tau(effect: EffectSize) -> str:
    return f"tau {effect.tau:.2f} (95%: {effect.low:.2f} to {effect.high:.2f}) of the teacher's tilt"


@contextlib.contextmanager
def _display(live: LiveEvidence | None, budget: Budget) -> Iterator[Callable[[Collection], None]]:
    """Show how far it is, on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda state: None
        return

    with Live(console=console, refresh_per_second=4, transient=True) as shown:
        yield lambda state: shown.update(progress_table(state, live, budget))


def progress_table(state: Collection, live: LiveEvidence | None, budget: Budget) -> Table:
    """Return what is shown while it collects."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    # Names are never cut; what stands beside them is folded where a terminal is narrow.
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(
        "requests",
        f"{state.answered:,} of {state.planned:,} answered, {state.failed:,} failed, {state.waiting} under way",
    )
    grid.add_row("tokens", f"{state.prompt_tokens:,} prompt, {state.completion_tokens:,} answer")
    if budget.price_in or budget.price_out:
        cost = budget.cost(state.prompt_tokens, state.completion_tokens)
        grid.add_row("cost", f"{cost:.2f}" + (f" of {budget.money:.2f}" if budget.money is not None else ""))
    if live is not None:
        grid.add_row("looks", f"{len(live.test.looks)} of {live.test.steps}, {live.tokens:,} tokens")
        if live.test.looks:
            last = live.test.looks[-1]
            grid.add_row("e-value", f"10^{last.log10_e:.2f}")
            grid.add_row("p at any time", f"<= {p_value(last.log10_p)} (until {live.test.level:g})")
            effect = "none without a reference" if live.effect is None else _tau(live.effect)
            grid.add_row("effect size", effect)
            grid.add_row("tokens to go", f"{max(0, live.test.planned - live.tokens):,} of the plan at most")
    if state.changed:
        # What the endpoint says is no markup.
        grid.add_row("[bold red]model changed[/]", Text(_names(state)))
    return grid


def _names(state: Collection) -> str:
    """Return the names of models and system fingerprints; an endpoint may give a new one with every answer."""
    shown = [f"{printable(name, 80)} ({count:,})" for name, count in itertools.islice(state.models.items(), _SHOWN)]
    more = len(state.models) - len(shown)
    return ", ".join(shown) + (f", and {more:,} more" if more else "")
