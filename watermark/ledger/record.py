"""One served response as the ledger keeps it, and the leaf that stands for it in the log's Merkle tree.

The *leaf* is the RFC 8785 canonical JSON of the entry without what was said: its metadata, the SHA-256 of each thing
that was known of the response and its prompt, and a random nonce. What was said can be kept or not, and be deleted
later, and the tree stays whole. The nonce (16 bytes) keeps whoever sees published hashes from trying account ids and
short answers until one fits.

Digests, all hexadecimal SHA-256, by name:

========================= ==========================================================================
``token_ids``             over the response's ids, each little-endian uint32
``response``              over the response's text in UTF-8
``prompt_token_ids``      over the prompt's ids, each little-endian uint32
``prompt``                over the prompt's text in UTF-8
``prompt_messages``       over the prompt's chat messages as compact JSON with sorted names, in UTF-8
========================= ==========================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from json.encoder import encode_basestring
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from watermark.errors import InputError, UsageError, printable
from watermark.keys import account_bytes, check_scope_name

__all__ = ["DIGESTS", "SCHEMA", "Kind", "LedgerRecord", "Retention", "leaf_bytes", "timestamp"]

SCHEMA: Final = "taggant/ledger/1"

#: The names of what a digest can be over.
DIGESTS: Final = ("prompt", "prompt_messages", "prompt_token_ids", "response", "token_ids")

_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)

Ids = npt.NDArray[np.uint32]


class Kind(StrEnum):
    """What an entry of the log is."""

    response = "response"
    """A response that was served."""
    opened = "opened"
    """A writer began a session."""
    closed = "closed"
    """A writer ended its session, with everything that it had accepted written."""
    gap = "gap"
    """A session was found that had not ended: what it had accepted after its last flush is not in the log."""


class Retention(StrEnum):
    """What is kept of a response and its prompt beside their digests."""

    ids = "ids"
    """The token ids. What the supervised test wants."""
    text = "text"
    """The texts."""
    both = "both"
    digest = "digest"
    """Nothing."""


def timestamp(moment: datetime | None = None) -> str:
    """Return an instant (now, by default) as the ledger writes it: RFC 3339, UTC, microseconds.

    >>> timestamp(datetime(2026, 10, 1, 12, 0, tzinfo=UTC))
    '2026-10-01T12:00:00.000000Z'

    Raises:
        UsageError: *moment* has no time zone.
    """
    if moment is None:
        moment = datetime.now(UTC)
    if moment.tzinfo is None:
        raise UsageError("expected a time with a time zone, got a datetime with none: give it one")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LedgerRecord:
    """One served response. Everything is checked here, so that the writer's thread has nothing left to refuse.

    The repr shows no prompt, response or ids.

    Raises:
        InputError: a field is out of its range, or nothing is known of the response.
    """

    id: str
    """The server's response id; ids should be unique, and `ledger prove` asks which one is meant where they are not."""
    started: str
    """When the response's first token was asked for: RFC 3339, UTC, microseconds (`timestamp`)."""
    ended: str
    """When its last token was there."""
    model: str
    marked: bool
    """Whether it carries the mark."""
    account: str | None = None
    scope: str | None = None
    """None only where it is not marked; so for the next two."""
    fingerprint: str | None = None
    """The scope's, hexadecimal SHA-256."""
    scheme: str | None = None
    """E.g. "sipmix-v1"."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the marking and the sampling, JSON values: delta, temperature, min_entropy, ..."""
    reason: str | None = None
    """Why it is not marked."""
    token_ids: Sequence[int] | Ids | None = field(default=None, repr=False)
    """Ids of the response, (n,); kept as a read-only uint32 array of its own."""
    prompt_token_ids: Sequence[int] | Ids | None = field(default=None, repr=False)
    """Ids of the prompt as the model read it, (n,)."""
    response: str | None = field(default=None, repr=False)
    """Its text."""
    prompt: str | Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    """The prompt's text, or chat messages."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By the names of `DIGESTS`; computed from what is given, and to be given only for what is not."""
    parameters_json: str = field(init=False, repr=False)
    """The parameters as RFC 8785 JSON."""

    def __post_init__(self) -> None:
        for name, value in (("id", self.id), ("model", self.model)):
            _check_name(name, value)
        _check_time("started", self.started)
        _check_time("ended", self.ended)
        if type(self.marked) is not bool:
            raise InputError("marked: expected true or false")
        self._check_mark()
        if self.account is not None:
            try:
                account_bytes(self.account)
            except (UsageError, AttributeError) as error:
                raise InputError(
                    str(error) if isinstance(error, UsageError) else "account: expected a string"
                ) from None
        put = object.__setattr__
        put(self, "parameters_json", _canonical_parameters(self.parameters))
        put(self, "token_ids", _ids("token_ids", self.token_ids))
        put(self, "prompt_token_ids", _ids("prompt_token_ids", self.prompt_token_ids))
        self._check_texts()
        if self.digests:
            self._check_digests()
        elif self.token_ids is None and self.response is None:
            raise InputError("expected the response's token_ids, its text, or a digest of either, found none")

    def contents(self) -> dict[str, bytes]:
        """Return what is known of the response and the prompt, as the bytes that digests are over, by their names."""
        found: dict[str, bytes] = {}
        if self.token_ids is not None:
            found["token_ids"] = np.asarray(self.token_ids, dtype="<u4").tobytes()
        if self.prompt_token_ids is not None:
            found["prompt_token_ids"] = np.asarray(self.prompt_token_ids, dtype="<u4").tobytes()
        if self.response is not None:
            found["response"] = self.response.encode()
        if isinstance(self.prompt, str):
            found["prompt"] = self.prompt.encode()
        elif self.prompt is not None:
            found["prompt_messages"] = _COMPACT.encode(list(self.prompt)).encode()
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LedgerRecord:
        """Make a record of a JSON object with the fields of this class. A field that is null counts as absent.

        Raises:
            InputError: a field is missing, unknown or out of its range.
        """
        given = {name: value for name, value in data.items() if value is not None}
        unknown = sorted(given.keys() - _FIELDS)
        missing = [name for name in ("id", "started", "ended", "model", "marked") if name not in given]
        if unknown or missing:
            what = f"unknown field {printable(unknown[0], 40)}" if unknown else f"no field {missing[0]}"
            raise InputError(f"{what}: a record has {', '.join(sorted(_FIELDS))}")
        for name in ("token_ids", "prompt_token_ids"):
            # NumPy takes true for 1.
            if not isinstance(given.get(name, []), list) or not set(map(type, given.get(name, []))) <= {int}:
                raise InputError(f"{name}: expected an array of whole numbers from 0 to 4294967295")
        return cls(**given)

    def _check_mark(self) -> None:
        if self.scope is not None:
            try:
                check_scope_name(self.scope)
            except (UsageError, TypeError):
                raise InputError("scope: expected 1 to 64 characters of a-z, 0-9, '.', '_', '-'") from None
        if self.fingerprint is not None and not (
            isinstance(self.fingerprint, str) and _HEX.fullmatch(self.fingerprint)
        ):
            raise InputError("fingerprint: expected the 64 hexadecimal digits of a scope's fingerprint")
        if self.scheme is not None:
            _check_name("scheme", self.scheme)
        if self.reason is not None:
            _check_name("reason", self.reason)
        if self.marked and None in (self.scope, self.fingerprint, self.scheme):
            raise InputError("a marked response: expected scope, fingerprint and scheme, found one of them missing")
        if self.marked and self.reason is not None:
            raise InputError("reason: says why a response is not marked, and this one is")

    def _check_texts(self) -> None:
        if self.response is not None:
            _check_text("response", self.response)
        if isinstance(self.prompt, str):
            _check_text("prompt", self.prompt)
        elif self.prompt is not None:
            try:
                if not isinstance(self.prompt, list | tuple) or not all(isinstance(m, Mapping) for m in self.prompt):
                    raise TypeError
                _COMPACT.encode(list(self.prompt)).encode()
            except (TypeError, ValueError, RecursionError):
                raise InputError("prompt: expected a text, or an array of chat messages that JSON can hold") from None

    def _check_digests(self) -> None:
        if not isinstance(self.digests, Mapping):
            raise InputError("digests: expected an object of names and hexadecimal SHA-256")
        for name, digest in self.digests.items():
            if name not in DIGESTS or not (isinstance(digest, str) and _HEX.fullmatch(digest)):
                raise InputError(
                    f"digests: expected 64 hexadecimal digits by the names {', '.join(DIGESTS)}, found "
                    f"{printable(name, 40)!r}"
                )
        for name, content in self.contents().items():
            if self.digests.get(name, sha256(content).hexdigest()) != sha256(content).hexdigest():
                raise InputError(f"digests: the one of {name} is not that of the {name} given")
        if not {"token_ids", "response"} & (self.digests.keys() | self.contents().keys()):
            raise InputError("expected the response's token_ids, its text, or a digest of either, found none")


_FIELDS: Final = frozenset({item.name for item in fields(LedgerRecord) if item.init})


def leaf_bytes(
    kind: str,
    id: str,
    started: str,
    ended: str,
    account: str | None,
    model: str | None,
    scope: str | None,
    fingerprint: str | None,
    scheme: str | None,
    parameters: str,
    marked: bool | None,
    reason: str | None,
    digests: str,
    nonce: bytes,
) -> bytes:
    """Return an entry's leaf: RFC 8785 canonical JSON, from the entry's columns.

    It is put together by hand, since rfc8785 takes 60 microseconds for what takes 5 here: names are sorted already,
    strings need no escapes but JSON's own, *parameters* and *digests* are canonical already, and numbers are only
    there. A test compares the two. The order of the arguments is that of a row, so that a row can be handed over.
    """
    text = encode_basestring
    said = "null" if marked is None else ("true" if marked else "false")
    return (
        f'{{"account":{"null" if account is None else text(account)},"digests":{digests},"ended":{text(ended)},'
        f'"fingerprint":{"null" if fingerprint is None else text(fingerprint)},"id":{text(id)},"kind":{text(kind)},'
        f'"marked":{said},"model":{"null" if model is None else text(model)},"nonce":"{nonce.hex()}",'
        f'"parameters":{parameters},"reason":{"null" if reason is None else text(reason)},"schema":"{SCHEMA}",'
        f'"scheme":{"null" if scheme is None else text(scheme)},"scope":{"null" if scope is None else text(scope)},'
        f'"started":{text(started)}}}'
    ).encode()


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= 255 or not value.isprintable() or value != value.strip():
        raise InputError(f"{name}: expected 1 to 255 printing characters without outer white space")


def _check_time(name: str, value: object) -> None:
    try:
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            raise ValueError
        datetime.fromisoformat(value)
    except ValueError:
        raise InputError(
            f"{name}: expected a time in UTC with microseconds, e.g. 2026-10-01T12:00:00.000000Z, found "
            f"{printable(value, 40)!r}"
        ) from None


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name}: expected a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: holds a surrogate, which has no UTF-8 form") from None


def _ids(name: str, value: object) -> Ids | None:
    """Return ids as an array of this record's own: uint32, (n,), read-only."""
    if value is None:
        return None
    try:
        given = np.asarray(value)
        if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
            raise ValueError
        if given.dtype != np.uint32 and given.size and not (0 <= given.min() and given.max() < 2**32):
            raise ValueError
        ids = given.astype(np.uint32)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{name}: expected an array of whole numbers from 0 to 4294967295") from None
    ids.setflags(write=False)
    return ids


def _canonical_parameters(parameters: object) -> str:
    if not isinstance(parameters, Mapping):
        raise InputError("parameters: expected an object")
    try:
        return _canonical(json.dumps(dict(parameters)))
    except (TypeError, ValueError, RecursionError):
        # UnicodeEncodeError and rfc8785's own errors are ValueErrors.
        raise InputError(
            "parameters: expected JSON values: strings without surrogates, integers below 2^53, finite numbers"
        ) from None


@lru_cache(maxsize=1024)
def _canonical(text: str) -> str:
    """Return the canonical form of a JSON text. Servers use the same parameters again and again."""
    import rfc8785

    return str(rfc8785.dumps(json.loads(text)), "utf-8")
