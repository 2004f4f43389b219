"""Strict parsing of one line: strict UTF-8 and strict JSON (RFC 8259), with errors that a person can act on.

What parsers differ about is refused, since two readers of one file must see the same record: a name that stands
twice in an object, NaN and the infinities, a number too large for a double, an integer of thousands of digits,
nesting beyond the stack. A lone surrogate that JSON escapes is refused where a text is taken
(`detect.conversation.text_of`), since a string that nobody reads may hold one.

Errors here say what was expected and what was found; the reader of the file adds the file and the line.
"""

from __future__ import annotations

import json
import math
from typing import NoReturn

from detect.conversation import described
from watermark.errors import InputError, printable

__all__ = ["TOO_DEEP", "UTF16_MARKS", "decode_utf8", "parse_object", "parse_value"]

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

#: The problem of a record that the stack is too small for, in parsing it or in writing a part of it again.
TOO_DEEP = "expected a record, found arrays or objects nested too deep"


def decode_utf8(data: bytes) -> str:
    r"""Return *data* as text, without the byte order mark that it may begin with.

    >>> decode_utf8(b"\xef\xbb\xbfna\xc3\xafve")
    'naïve'

    Raises:
        InputError: it is not UTF-8.
    """
    if data.startswith(UTF16_MARKS):
        raise InputError(
            "expected UTF-8, found the byte order mark of UTF-16: convert the file with iconv -f UTF-16 -t UTF-8"
        )
    try:
        # The mark is an editor's, not the author's; concatenated files have it on later lines too.
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8, found the byte 0x{data[error.start]:02x} at byte {error.start}") from None


def parse_object(line: bytes) -> dict[str, object]:
    """Parse one JSON object, strictly.

    >>> parse_object(b'{"response": "Because."}')
    {'response': 'Because.'}
    >>> parse_object(b'{"response": "a", "response": "b"}')
    Traceback (most recent call last):
        ...
    watermark.errors.InputError: expected each field once, found response twice

    Raises:
        InputError: *line* is not UTF-8, not JSON, not an object, or has one of the things that are refused.
    """
    value = parse_value(decode_utf8(line), "a JSON object")
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, found {described(value)}")
    return value


def parse_value(text: str, expected: str) -> object:
    """Parse JSON, as strictly; *expected* is what should be there, for errors.

    Raises:
        InputError: *text* is not JSON, or has one of the things that are refused.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"expected {expected}, found none: {error.msg.removesuffix(' at')} at character {error.pos}"
        ) from None
    except RecursionError:
        raise InputError(TOO_DEEP) from None
    except ValueError:
        # Python refuses an integer of more than sys.get_int_max_str_digits() digits, since its cost is quadratic.
        raise InputError(f"expected {expected}, found in it an integer of thousands of digits") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"expected each field once, found {printable(twice, 40)} twice")
    return record


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise InputError(f"expected a JSON object, found in it a number out of range: {printable(digits, 40)}")
    return value


def _constant(name: str) -> NoReturn:
    raise InputError(f"expected a JSON object, found in it {name}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)
