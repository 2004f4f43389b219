"""Do the outputs answer the plan? Each planned request once, with the planned prompt, and nothing beside."""

from __future__ import annotations

from detect.evidence.predicates import Plan
from detect.strict_json import parse_object
from watermark.errors import InputError

__all__ = ["departures", "prompt_lines"]

_SHOWN = 5


def prompt_lines(prompts: bytes) -> list[object]:
    """Return the prompts of a prompts file, in order.

    Raises:
        InputError: a line is no `{"prompt": ...}`.
    """
    found = []
    for number, line in enumerate(prompts.split(b"\n")[:-1], start=1):
        record = parse_object(line)
        if set(record) != {"prompt"}:
            raise InputError(f'prompts.jsonl:{number}: expected {{"prompt": ...}} and nothing else')
        found.append(record["prompt"])
    if prompts and not prompts.endswith(b"\n"):
        raise InputError("prompts.jsonl: its last line has no end: it was cut")
    return found


def departures(outputs: bytes, prompts: bytes, plan: Plan) -> tuple[str, ...]:
    """Return in what the outputs depart from the plan; nothing if each planned request is answered once.

    A line with ``prompt_index`` and ``sample_index`` answers one request, be it by an error. A request that failed may
    have been asked again: further lines may come after an error, and none after an answer. Other lines (a journal's
    header, say) answer none.

    Raises:
        InputError: a line is no JSON object.
    """
    asked = prompt_lines(prompts)
    seen: set[tuple[int, int]] = set()
    answered: set[tuple[int, int]] = set()
    wrong: list[str] = []
    stray = 0
    for number, line in enumerate(outputs.split(b"\n"), start=1):
        if not line.strip():
            continue
        record = parse_object(line)
        request = record.get("prompt_index"), record.get("sample_index")
        prompt, sample = request
        if type(prompt) is not int or type(sample) is not int:
            stray += "response" in record or "text" in record or "messages" in record
            continue
        if not (0 <= prompt < len(asked) and 0 <= sample < plan.samples_per_prompt):
            wrong.append(f"line {number} answers a request that was not planned: prompt {prompt}, sample {sample}")
        elif (prompt, sample) in answered:
            wrong.append(f"line {number} answers prompt {prompt}, sample {sample} a second time")
        elif record.get("prompt") != asked[prompt]:
            wrong.append(f"line {number} has another prompt than prompt {prompt} of the plan")
        seen.add((prompt, sample))
        if record.get("error") is None:
            answered.add((prompt, sample))
    if stray:
        wrong.append(f"{stray:,} answers do not say which request they answer (prompt_index, sample_index)")
    missing = plan.stopping.planned_responses - len(seen)
    if missing > 0 and plan.stopping.rule == "fixed":
        wrong.append(f"{missing:,} of {plan.stopping.planned_responses:,} planned requests are not answered")
    if len(seen) > plan.stopping.planned_responses:
        wrong.append(f"{len(seen):,} answers, {plan.stopping.planned_responses:,} were planned")
    more = len(wrong) - _SHOWN
    return (*wrong[:_SHOWN], *([f"and {more:,} more"] if more > 0 else []))
