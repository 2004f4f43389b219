"""One byte form for each JSON value (RFC 8785), and strict reading of what must be in it."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from detect.strict_json import parse_object
from watermark.errors import InputError, UsageError

__all__ = ["canonical", "parse_canonical", "sha256_hex"]


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 bytes of a JSON value.

    Raises:
        UsageError: it has none: a float that is not finite, an integer beyond 2^53, a lone surrogate, or nesting
            beyond the stack.
    """
    try:
        return bytes(rfc8785.dumps(value))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise UsageError(f"a value that has no canonical JSON (RFC 8785): {type(error).__name__}") from None


def parse_canonical(data: bytes, *, what: str) -> dict[str, Any]:
    """Return the JSON object whose RFC 8785 bytes are *data*.

    Raises:
        InputError: it is no JSON object, or not in this form.
    """
    try:
        value = parse_object(data)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    try:
        same = canonical(value) == data
    except UsageError as error:
        raise InputError(f"{what}: {error}") from None
    if not same:
        raise InputError(f"{what}: expected the canonical form of its JSON (RFC 8785), found another")
    return value


def sha256_hex(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of *data*."""
    return hashlib.sha256(data).hexdigest()
