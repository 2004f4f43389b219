"""Chat messages, as texts that a model said and texts that stood before them (DESIGN 6).

In a conversation each assistant message is up to three kinds of text, in the order in which a model says
them: its reasoning, its content, and the `arguments` string of each of its tool calls. What stands
earlier is the prompt of what stands later, each text alone, since each was tokenised alone. Errors here
name the field; the reader of the file adds the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from watermark.errors import InputError, printable

__all__ = ["MAX_PIECES", "NOT_RAW", "NO_TEXT", "Piece", "described", "pieces", "text_of"]

#: Texts in one conversation. Each has all earlier ones as its prompts, so 5,000 are 100 MB of references.
MAX_PIECES = 5_000

#: Notes: what a conversation holds and no text shows.
NOT_RAW = "tool call arguments not raw"
NO_TEXT = "message parts and tool calls without text"

#: Types of a content part whose text is in its field "text": Chat Completions, and Responses in and out.
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


class Piece(NamedTuple):
    """One text of a conversation."""

    text: str
    role: str | None
    """"assistant", "reasoning" or "tool_call"; None: not the model's own words, only a prompt of what follows."""


def described(value: object) -> str:
    """Name *value*'s JSON type with its article.

    >>> described([1]), described(True), described(None)
    ('an array', 'true', 'null')
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"the number {printable(value, 40)}"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def text_of(value: object, where: str) -> str:
    """Return *value*, a string that has a UTF-8 form.

    Raises:
        InputError: *value* is no string, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise InputError(f"expected a string in {where}, found {described(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected text in {where}, found the lone surrogate \\u{ord(value[error.start]):04x} at character "
            f"{error.start}: it has no UTF-8 form"
        ) from None
    return value


def pieces(messages: object, where: str, note: Callable[[str], None] = lambda what: None) -> Iterator[Piece]:
    """Yield the texts of chat *messages* in the order in which they were said; empty ones are no texts.

    Args:
        messages: what was found in the field.
        where: the field's name, for errors.
        note: called with `NOT_RAW` or `NO_TEXT` for each thing that is not a text.

    Raises:
        InputError: the messages are not an array of objects with roles and texts, or too many.
    """
    if not isinstance(messages, list):
        raise InputError(f"expected an array of chat messages in {where}, found {described(messages)}")
    count = 0
    for position, message in enumerate(messages):
        for piece in _message(message, f"{where}[{position}]", note):
            if not piece.text:
                continue
            count += 1
            if count > MAX_PIECES:
                raise InputError(
                    f"expected at most {MAX_PIECES:,} texts in {where}, found more: split the conversation"
                )
            yield piece


def _message(message: object, where: str, note: Callable[[str], None]) -> Iterator[Piece]:
    if not isinstance(message, dict):
        raise InputError(f"expected an object with role and content in {where}, found {described(message)}")
    is_model = text_of(message.get("role"), f"{where}.role") == "assistant"
    # Servers name the reasoning either way, and some send it under both names.
    reasoning = [message[key] for key in ("reasoning_content", "reasoning") if message.get(key) is not None]
    for number, said in enumerate(reasoning):
        if said not in reasoning[:number]:
            yield Piece(text_of(said, f"{where}'s reasoning"), "reasoning" if is_model else None)
    content = _content(message.get("content"), f"{where}.content", note)
    yield Piece(content, "assistant" if is_model else None)
    for place, function in _calls(message, where, note):
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            yield Piece(text_of(arguments, f"{place}.arguments"), "tool_call" if is_model else None)
        elif arguments is not None:
            # Which bytes the model said is lost. A later text may still copy from them: a prompt it stays.
            note(NOT_RAW)
            yield Piece(text_of(json.dumps(arguments, ensure_ascii=False), f"{place}.arguments"), None)


def _content(content: object, where: str, note: Callable[[str], None]) -> str:
    """Return the text of a message's content: a string, null, or parts, joined as chat templates join them."""
    if content is None:
        return ""
    if not isinstance(content, list):
        if isinstance(content, str):
            return text_of(content, where)
        raise InputError(f"expected a string, null or an array of parts in {where}, found {described(content)}")
    texts = []
    for position, part in enumerate(content):
        place = f"{where}[{position}]"
        if not isinstance(part, dict):
            raise InputError(f'expected an object such as {{"type": "text"}} in {place}, found {described(part)}')
        if text_of(part.get("type"), f"{place}.type") in TEXT_PARTS:
            texts.append(text_of(part.get("text"), f"{place}.text"))
        else:
            note(NO_TEXT)
    return "".join(texts)


def _calls(
    message: Mapping[str, object], where: str, note: Callable[[str], None]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield where each called function is, and the function: `tool_calls`, and its forerunner `function_call`."""
    calls = message.get("tool_calls")
    if calls is None:
        calls = []
    if not isinstance(calls, list):
        raise InputError(f"expected an array in {where}.tool_calls, found {described(calls)}")
    for position, call in enumerate(calls):
        place = f"{where}.tool_calls[{position}]"
        if not isinstance(call, dict):
            raise InputError(f"expected an object in {place}, found {described(call)}")
        if isinstance(function := call.get("function"), dict):
            yield f"{place}.function", function
        else:
            note(NO_TEXT)
    if (function := message.get("function_call")) is not None:
        if not isinstance(function, dict):
            raise InputError(f"expected an object in {where}.function_call, found {described(function)}")
        yield f"{where}.function_call", function
