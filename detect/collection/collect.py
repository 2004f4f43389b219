"""Ask an endpoint every planned request, keep whatever it answers, and stop in time.

Requests are asked in the plan's order, several at once. Each answer or error is in the journal before its worker asks
another, so that a collection that was killed goes on where it stopped, and loses and repeats nothing. Requests that
failed are asked again when a collection is gone on with, after those that were never asked: what fails for good does
not stand in the way of the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from detect.collection.endpoint import Answer, Endpoint
from detect.collection.journal import Journal, Request
from watermark.errors import UsageError, printable

__all__ = ["MOST_FAILURES", "Budget", "Collection", "Outcome", "Stopped", "collect", "header_of"]

#: Characters a token where the endpoint does not say how many there were.
_CHARACTERS: Final = 4

#: Requests in a row that fail after all their tries before the collection stops.
MOST_FAILURES: Final = 10


class Stopped(Enum):
    """Why a collection ended."""

    COMPLETE = "every planned request is answered"
    FAILED = "every planned request was asked, and some failed"
    EVIDENCE = "the evidence suffices"
    FUTILE = "more of the plan would hardly help: a fifth of the evidence is open and e is below 1"
    BUDGET = "the budget is reached"
    FAILURES = f"{MOST_FAILURES} requests in a row failed after all their tries"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent. What earlier runs into the same journal spent counts."""

    tokens: int | None = None
    """Of prompts and answers."""
    money: float | None = None
    price_in: float = 0.0
    """A million prompt tokens."""
    price_out: float = 0.0
    """A million answer tokens."""

    def __post_init__(self) -> None:
        if self.money is not None and not self.price_in + self.price_out > 0:
            raise UsageError("--budget-money wants --price-in and --price-out, a million tokens")

    def cost(self, prompt: int, completion: int) -> float:
        """Return what so many tokens cost."""
        return (prompt * self.price_in + completion * self.price_out) / 1e6


@dataclass(slots=True)
class Collection:
    """How far a collection is."""

    planned: int
    longest: int = 0
    """Tokens of an answer at most, as asked for."""
    answered: int = 0
    errors: int = 0
    """In all; a request may have several before its answer."""
    failed: int = 0
    """Requests that were asked and have no answer yet."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unread: int = 0
    """Tries without an answer that may have been paid for: each counts as an answer of the longest, in the tokens."""
    models: dict[str, int] = field(default_factory=dict)
    """Answers by model and system fingerprint, as the endpoint names them."""
    in_a_row: int = 0
    """Requests that failed, the newest ones."""
    waiting: int = 0
    """Requests under way."""
    coming: int = 0
    """Tokens of their prompts, by their characters."""
    last_error: str | None = None

    @property
    def done(self) -> int:
        """Requests that are in the journal."""
        return self.answered + self.failed

    @property
    def changed(self) -> bool:
        """Whether the endpoint named more than one model or system fingerprint."""
        return len(self.models) > 1

    def count(self, record: dict[str, Any]) -> None:
        """Take a journal's record into account."""
        unread = record.get("unread", 0)
        self.unread += unread
        self.prompt_tokens += unread * _tokens_of(record["prompt"])
        self.completion_tokens += unread * self.longest
        if record.get("error") is not None:
            self.errors += 1
            self.in_a_row += 1
            self.last_error = str(record["error"])
            return
        self.answered += 1
        self.in_a_row = 0
        used = record.get("usage") or {}
        self.prompt_tokens += used.get("prompt_tokens") or _tokens_of(record["prompt"])
        self.completion_tokens += used.get("completion_tokens") or _tokens_of(record["response"])
        name = " ".join(filter(None, (record.get("model"), record.get("system_fingerprint")))) or "no name"
        self.models[name] = self.models.get(name, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run of a collection came to."""

    stopped: Stopped
    collection: Collection
    cost: float


def header_of(endpoint: Endpoint, prompts: Sequence[str], samples: int) -> dict[str, Any]:
    """Return a journal's header: what is asked of whom, without a secret."""
    import hashlib
    import json

    digest = hashlib.sha256(b"".join(json.dumps(prompt).encode() + b"\n" for prompt in prompts)).hexdigest()
    return {
        "endpoint": endpoint.url,
        "model": endpoint.model,
        "kind": endpoint.kind,
        "sampling": endpoint.sampling,
        "logprobs": endpoint.logprobs,
        "prompts": {"count": len(prompts), "sha256": digest},
        "samples": samples,
        "started": _now(),
    }


async def collect(
    endpoint: Endpoint,
    prompts: Sequence[str],
    journal: Journal,
    *,
    samples: int = 1,
    concurrency: int = 4,
    per_minute: float | None = None,
    budget: Budget | None = None,
    look: Callable[[], Stopped | None] = lambda: None,
    on_record: Callable[[Collection], None] = lambda collection: None,
) -> Outcome:
    """Ask what has no answer in the journal yet.

    Args:
        endpoint: of whom.
        prompts: in the plan's order.
        journal: open, with the header of `header_of`.
        samples: answers a prompt.
        concurrency: requests at once.
        per_minute: requests begun at most.
        budget: what may be spent.
        look: called when a request came into the journal, and once before the first; says whether to stop.
        on_record: told of the state after each record, and the look that it made due.

    Raises:
        FatalAnswerError: the endpoint refuses for good; what was answered is in the journal.
        MissingExtraError: httpx is not installed.
    """
    planned = [Request(p, s) for p in range(len(prompts)) for s in range(samples)]
    spent = budget or Budget()
    longest = endpoint.sampling.get("max_tokens") or endpoint.sampling.get("max_completion_tokens") or 0
    state = Collection(planned=len(planned), longest=int(longest))
    for record in (*journal.errors, *journal.answers.values()):
        state.count(record)
    state.failed, state.in_a_row = len(journal.failed), 0
    on_record(state)
    pace = _Pace(per_minute)
    unanswered = [request for request in planned if request not in journal.answers]
    todo = deque(sorted(unanswered, key=lambda request: journal.failed[request]))
    landed = asyncio.Event()
    stopped: list[Stopped] = []
    if journal.answers and (before := look()) is not None:
        stopped.append(before)

    async def work(client: Any) -> None:
        while todo and not stopped:
            tokens = _tokens_of(prompts[todo[0].prompt_index])
            if _reached(state, spent, tokens):
                if not state.waiting:
                    stopped.append(Stopped.BUDGET)
                    return
                # What is under way may turn out shorter than it might.
                landed.clear()
                await landed.wait()
                continue
            request = todo.popleft()
            prompt = prompts[request.prompt_index]
            # Before the pace is waited for, so that no other worker spends the same.
            state.waiting += 1
            state.coming += tokens
            try:
                await pace.wait()
                if stopped:
                    return
                answer = await endpoint.ask(client, prompt, request.sample_index)
                state.count(journal.add(request, _record(prompt, answer)))
            finally:
                state.waiting -= 1
                state.coming -= tokens
                landed.set()
            state.failed = len(journal.failed)
            if state.in_a_row >= MOST_FAILURES:
                stopped.append(Stopped.FAILURES)
            elif (reason := look()) is not None:
                stopped.append(reason)
            on_record(state)

    async with endpoint.client(concurrency) as client:
        tasks = [asyncio.create_task(work(client)) for _ in range(max(1, concurrency))]
        try:
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            stopped.append(Stopped.INTERRUPTED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return Outcome(
        stopped=stopped[0] if stopped else Stopped.FAILED if state.failed else Stopped.COMPLETE,
        collection=state,
        cost=spent.cost(state.prompt_tokens, state.completion_tokens),
    )


def _reached(state: Collection, budget: Budget, prompt: int) -> bool:
    """Tell whether another request, at its longest, beside those under way might pass the budget."""
    said = state.prompt_tokens + state.coming + prompt
    answered = state.completion_tokens + (state.waiting + 1) * state.longest
    return (budget.tokens is not None and said + answered > budget.tokens) or (
        budget.money is not None and budget.cost(said, answered) > budget.money
    )


def _tokens_of(text: str) -> int:
    return len(text) // _CHARACTERS


def _record(prompt: str, answer: Answer) -> dict[str, Any]:
    record: dict[str, Any] = {"prompt": prompt, "response": answer.text}
    if answer.error is not None:
        record["error"] = printable(answer.error, 600)
    record |= {"time": _now(), "status": answer.status, "tries": answer.tries, "seconds": answer.seconds}
    if answer.unread:
        record["unread"] = answer.unread
    named = {
        "model": answer.model,
        "system_fingerprint": answer.system_fingerprint,
        "finish_reason": answer.finish_reason,
        "logprobs": answer.logprobs,
    }
    record |= {name: value for name, value in named.items() if value is not None}
    if answer.prompt_tokens is not None or answer.completion_tokens is not None:
        record["usage"] = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    return record


class _Pace:
    """At most so many begun a minute, evenly."""

    def __init__(self, per_minute: float | None) -> None:
        self._apart = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + self._apart
        if begin > now:
            await asyncio.sleep(begin - now)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
