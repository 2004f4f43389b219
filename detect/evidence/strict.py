"""Frozen dataclasses from JSON values, strictly: every field there, of its type, and no other."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from watermark.errors import InputError, printable

__all__ = ["from_json", "to_json"]

T = TypeVar("T")


def from_json(kind: type[T], value: object, *, what: str) -> T:
    """Return the dataclass *kind* that *value* says.

    Types are int, str, bool, float, None, tuple[T, ...], dict[str, T], other dataclasses, unions of these with None,
    and `Any`.

    Raises:
        InputError: a field is missing, unknown or of another type; the message names it.
    """
    result: T = _read(kind, value, what)
    return result


def to_json(value: Any) -> Any:
    """Return the JSON value of a dataclass."""
    return _plain(asdict(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _read(kind: Any, value: object, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        [inner] = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _read(inner, value, where)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected an object")
        names, hints = {field.name for field in fields(kind)}, get_type_hints(kind)
        wrong = sorted(names ^ set(value))
        if wrong:
            said = "is missing" if wrong[0] in names else "is unknown"
            raise InputError(f"{where}: the field {printable(wrong[0], 40)!r} {said}")
        found = {name: _read(hints[name], value[name], f"{where}.{name}") for name in sorted(names)}
        try:
            return kind(**found)  # type: ignore[operator]
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected an array")
        return tuple(_read(arguments[0], each, f"{where}[{place}]") for place, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected an object")
        return {
            name: _read(arguments[1], each, f"{where}.{printable(name, 40)}") for name, each in sorted(value.items())
        }
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {type(value).__name__}")
    return value
