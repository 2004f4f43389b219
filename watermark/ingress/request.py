"""A client's request body: read as the server will read it, cleaned, and given the ingress's word.

What a server would parse otherwise than we do could smuggle a field past the ingress (names that stand twice, UTF-16,
NaN). So what goes on is not the client's bytes but what was parsed here, written anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

from watermark.ingress.route import Shape
from watermark.ticket import ACCOUNT_FIELD, MARK_FIELD, TICKET_FIELD, RequestRefusedError

__all__ = [
    "Injection",
    "ask_for_ids",
    "inject",
    "parse_body",
    "plain_fields",
    "prompt_of",
    "sampling_of",
    "shape_of",
    "strip_logprobs",
    "strip_marking",
    "unmarkable",
    "written",
]

Body = dict[str, Any]


class Injection(StrEnum):
    """How the ingress's word reaches the sampler. It is always in `watermark.ingress.context` too."""

    VLLM = "vllm"
    """In ``vllm_xargs``."""
    SGLANG = "sglang"
    """In ``custom_params``, with the operator's ``custom_logit_processor``."""
    CONTEXT = "context"
    """Nowhere in the body: the sampler is in this process (llama-cpp-python)."""


#: Fields with which a client could mark, re-key or leave unmarked on some server or other.
_MARKING: Final = frozenset(
    {
        *("watermarking", "watermark", "watermarking_config", "generation_config"),
        *("custom_logit_processor", "logits_processor", "logits_processors"),
    }
)

#: Fields that ask for probabilities of tokens, on any of the servers.
_LOGPROBS: Final = frozenset(
    {
        *("logprobs", "top_logprobs", "prompt_logprobs", "logprob_token_ids", "flat_logprobs", "n_probs"),
        *("prompt_logprob_token_ids", "prompt_logprob_start", "return_logprob", "logprob_start_len"),
        *("top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs", "return_hidden_states"),
    }
)

_TOO_DEEP: Final = "the body is nested too deep"
_NO_NUMBER: Final = "the body holds NaN, Infinity or a number that is too large"

_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p")


def parse_body(data: bytes) -> Body:
    """Return the JSON object of a request.

    Raises:
        RequestRefusedError: it is not UTF-8, no JSON object, nested too deep, or holds NaN, Infinity or an integer of
            thousands of digits. The message holds nothing of the body.
    """
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise RequestRefusedError(f"the body is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise RequestRefusedError(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise RequestRefusedError(_TOO_DEEP) from None
    except ValueError:
        raise RequestRefusedError(_NO_NUMBER) from None
    if not isinstance(body, dict):
        raise RequestRefusedError(f"the body is a JSON {type(body).__name__}: expected an object")
    return body


def written(body: Body) -> bytes:
    """Return the body as the bytes that are sent on.

    Raises:
        RequestRefusedError: a number is too large for a float (1e999), or it is nested too deep.
    """
    try:
        # ASCII keeps halves of surrogate pairs, which UTF-8 has not, as the client wrote them.
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
    except RecursionError:
        raise RequestRefusedError(_TOO_DEEP) from None
    except ValueError:
        raise RequestRefusedError(_NO_NUMBER) from None


def shape_of(shape: Shape, body: Body) -> Shape:
    """Return the shape in which SageMaker's route takes this body; other routes have theirs."""
    if shape is not Shape.INVOCATIONS:
        return shape
    return Shape.CHAT if "messages" in body else Shape.COMPLETIONS


def strip_marking(body: Body, *, own_only: bool = False) -> list[str]:
    """Take out the client's marking fields, wherever a server looks for them; return their names.

    Args:
        body: is changed.
        own_only: only those that are named after us: nothing is marked here.

    Raises:
        RequestRefusedError: what should hold fields holds something else.
    """
    stripped = []
    for fields in _tables(body):
        for name in list(fields):
            if name.lower().startswith("taggant"):
                stripped.append("taggant")
            elif name in _MARKING and not own_only:
                stripped.append(name)
            else:
                continue
            del fields[name]
    return stripped


def strip_logprobs(body: Body) -> list[str]:
    """Take out every request for probabilities of tokens; return the fields' names."""
    stripped = []
    for fields in (body, *_samplings(body)):
        for name in _LOGPROBS & fields.keys():
            del fields[name]
            stripped.append(name)
    include = body.get("include")
    if isinstance(include, list) and any("logprobs" in str(one) for one in include):
        body["include"] = [one for one in include if "logprobs" not in str(one)]
        stripped.append("include")
    return stripped


def unmarkable(body: Body, shape: Shape, injection: Injection) -> tuple[str, str] | None:
    """Return which field or route makes that the answer is not sampled from marked logits, and a word for it.

    None: nothing does.
    """
    if injection is Injection.SGLANG and shape in (Shape.RESPONSES, Shape.MESSAGES):
        # SGLang makes requests of its own of these, and carries neither processor nor parameters over.
        return f"/v1/{shape.value}", f"SGLang's {shape.value} API"
    if body.get("use_beam_search"):
        # vLLM ranks beams by the model's own probabilities, to which no processor has added anything.
        return "use_beam_search", "beam search"
    if any(fields.get("trace_decode_token_ids") for fields in (body, *_samplings(body))):
        return "trace_decode_token_ids", "prescribed ids"
    return None


def ask_for_ids(body: Body, shape: Shape) -> bool:
    """Ask vLLM for the ids that it samples, where the client has not; return whether they are to be taken out again."""
    if shape not in (Shape.COMPLETIONS, Shape.CHAT) or body.get("return_token_ids"):
        return False
    if shape is Shape.COMPLETIONS and body.get("echo"):
        return False  # With ids vLLM would no longer echo the prompt's text.
    body["return_token_ids"] = True
    return True


def plain_fields(body: Body, shape: Shape, injection: Injection) -> dict[str, object]:
    """Return the plain fields of a request that came from where clients are not (`FieldTrust.PLAIN`)."""
    fields = next(iter(_homes(body, shape, injection)), {})
    return {name: fields[name] for name in (ACCOUNT_FIELD, MARK_FIELD) if name in fields}


def inject(
    body: Body, shape: Shape, fields: Mapping[str, object], *, injection: Injection, logit_processor: str | None = None
) -> None:
    """Put the ingress's word into the body, where the engine's adapter looks for it.

    Raises:
        RequestRefusedError: what should hold it holds something else.
    """
    if injection is Injection.CONTEXT:
        # A ticket is in the context; plain fields are where they were.
        body.update((name, value) for name, value in fields.items() if name != TICKET_FIELD)
        return
    if injection is Injection.SGLANG:
        if logit_processor is not None:
            body["custom_logit_processor"] = logit_processor
        if shape is Shape.SGLANG and body.get("sampling_params") is None:
            body["sampling_params"] = {}
    for home in _homes(body, shape, injection):
        home.update(fields)


def _homes(body: Body, shape: Shape, injection: Injection) -> list[Body]:
    """Return the tables from which an engine's adapter reads a request's fields, made where there are none.

    Raises:
        RequestRefusedError: something else is in their place.
    """
    if injection is Injection.CONTEXT:
        return [body]
    if injection is Injection.SGLANG:
        owners, name = (_samplings(body) if shape is Shape.SGLANG else [body]), "custom_params"
    elif shape is Shape.TOKENS:
        owners, name = _samplings(body), "extra_args"
        if not isinstance(body.get("sampling_params"), dict):
            raise RequestRefusedError("sampling_params: expected an object")
    else:
        owners, name = [body], "vllm_xargs"
    for owner in owners:
        owner[name] = _table(owner, name)
    return [owner[name] for owner in owners]


def sampling_of(body: Body) -> dict[str, float]:
    """Return what the request says of its sampling; what it leaves to the server is not in it."""
    said: Mapping[str, Any] = next(iter(_samplings(body)), body)
    return {
        name: said[name]
        for name in _SAMPLING
        if isinstance(said.get(name), int | float) and not isinstance(said[name], bool) and abs(said[name]) < 2**53
    }


def prompt_of(body: Body, shape: Shape) -> str | tuple[Mapping[str, Any], ...] | None:
    """Return the prompt as the client sent it: a text, or messages."""
    for name in ("messages", "prompt", "input", "text"):
        prompt = body.get(name)
        if isinstance(prompt, str) and prompt:
            return prompt
        if isinstance(prompt, list) and prompt and all(isinstance(one, dict) for one in prompt):
            system = body.get("system") if shape is Shape.MESSAGES else body.get("instructions")
            first = () if system is None else ({"role": "system", "content": system},)
            return (*first, *prompt)
    return None


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _table(fields: Body, name: str) -> Body:
    """Return a table inside of *fields*; an absent one is empty."""
    table = fields.get(name)
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise RequestRefusedError(f"{name}: expected an object")
    return table


def _samplings(body: Body) -> list[Body]:
    """Return the tables of sampling parameters: SGLang takes one for each prompt."""
    found = body.get("sampling_params")
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


def _tables(body: Body) -> Iterator[Body]:
    yield body
    for fields in (body, *_samplings(body)):
        for name in ("vllm_xargs", "extra_args", "custom_params", "extra_body"):
            if name in fields:
                yield _table(fields, name)
    yield from _samplings(body)
