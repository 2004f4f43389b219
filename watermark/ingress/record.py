"""Ledger records of what passed the ingress: one a choice."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from watermark.errors import InputError, printable
from watermark.ingress.answer import Answer, Choice
from watermark.ledger.record import LedgerRecord, timestamp
from watermark.marker import RequestMark
from watermark.prf import SUITE

__all__ = ["Served", "records"]

#: The end of a choice that the server did not end: the client hung up, or the server failed.
ABORTED: Final = "aborted"

#: The form of chat messages that `watermark.ledger.record` takes digests over.
_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is known of a request before it is answered."""

    mark: RequestMark
    reason: str | None
    """Why its answers are not marked; None if they are."""
    started: str
    model: str | None
    sampling: Mapping[str, float]
    min_entropy: float
    prompt: str | tuple[Mapping[str, Any], ...] | None
    prompt_ids: Sequence[int] | None
    keeps_text: bool
    """Whether the ledger keeps prompts; otherwise their digests wait in its queue, and not megabytes of pictures."""


def records(answer: Answer, served: Served) -> Iterator[LedgerRecord]:
    """Yield a record for each choice of which something came."""
    ended = timestamp()
    # Clients choose ids on some servers, and choose them badly.
    name = printable(answer.id or f"taggant-{uuid.uuid4().hex}", 200).strip() or f"taggant-{uuid.uuid4().hex}"
    for index, choice in sorted(answer.choices.items()):
        if choice.finish is None and not choice.ids and not choice.parts:
            continue
        yield _record(name if len(answer.choices) == 1 else f"{name}#{index}", choice, answer, served, ended)


def _record(name: str, choice: Choice, answer: Answer, served: Served, ended: str) -> LedgerRecord:
    mark, marked = served.mark, served.reason is None
    scope = None if mark.green_list is None or not marked else mark.green_list.scope
    text = choice.text
    prompt = served.prompt
    if isinstance(prompt, str) and not choice.has_ids:
        text = text.removeprefix(prompt)  # The client had it echoed.
    parameters: dict[str, Any] = dict(served.sampling) | {"finish": printable(choice.finish or ABORTED, 60)}
    if scope is not None:
        parameters["delta"] = scope.delta
        if served.min_entropy:
            parameters["min_entropy"] = served.min_entropy
    said: dict[str, Any] = {
        "id": name,
        "started": served.started,
        "ended": ended,
        "model": printable(answer.model or served.model or "unknown", 200).strip() or "unknown",
        "account": mark.account,
        "scope": None if scope is None else scope.name,
        "fingerprint": None if scope is None else scope.fingerprint,
        "scheme": None if scope is None else SUITE,
        "parameters": parameters,
        "marked": marked,
        "reason": served.reason,
        "token_ids": choice.ids if choice.has_ids else None,
        "response": text if text or not choice.has_ids else None,
    }
    # What the ledger can't hold (half a surrogate pair, ids that are none) costs its digest, and not the record.
    for with_prompt in (True, False):
        try:
            return LedgerRecord(**said, **(_of_prompt(choice, served) if with_prompt else {}))
        except (InputError, UnicodeEncodeError):
            continue
    return LedgerRecord(**{**said, "token_ids": None, "response": text})


def _of_prompt(choice: Choice, served: Served) -> dict[str, Any]:
    """Return what the record says of the prompt.

    Raises:
        UnicodeEncodeError: it holds half a surrogate pair.
    """
    ids, prompt = choice.prompt_ids or served.prompt_ids, served.prompt
    if served.keeps_text or prompt is None:
        return {"prompt_token_ids": ids, "prompt": prompt}
    name, text = ("prompt", prompt) if isinstance(prompt, str) else ("prompt_messages", _COMPACT.encode(prompt))
    return {"prompt_token_ids": ids, "digests": {name: sha256(text.encode()).hexdigest()}}
