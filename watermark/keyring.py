"""Key files: what holds the root and its scopes on disk, and who may read it.

A key file is one JSON object, mode 0600, created with O_EXCL. The root is written as
``taggant_sk1_`` + 64 hexadecimal digits + 8 of a checksum, so that a secret scanner finds it where it
should not be. A file that its group or others can read is refused with the command that mends it.

A *published* keyring (the example that the demo uses) says so in the file and in every result. Its root
is no secret; it has no prefix, its mode is not checked, and it can not mark anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from watermark.errors import KeyringError, UsageError, printable
from watermark.keys import NO_ACTIVATION, Params, ScopeKeys, Secret, check_scope_name, scope_key

__all__ = ["SCHEMA", "Event", "Keyring", "Scope"]

SCHEMA: Final = "taggant/keyring/1"

_PREFIX: Final = "taggant_sk1_"
_STATES: Final = ("pending", "active", "retired", "revealed", "compromised", "destroyed")


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a scope's state, and when: RFC 3339, UTC."""

    state: str
    time: str

    @classmethod
    def now(cls, state: str) -> Event:
        """Return the change to *state* as of now."""
        return cls(state, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is not secret of a scope: parameters, delta, activation and life cycle."""

    name: str
    params: Params
    delta: float
    activation: bytes = NO_ACTIVATION
    history: tuple[Event, ...] = ()

    @property
    def state(self) -> str:
        """The last state of the life cycle."""
        return self.history[-1].state if self.history else "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """A root and its scopes.

    Created with `create`, read with `load`, written once with `write`.
    """

    root: Secret
    scopes: tuple[Scope, ...]
    published: bool = False

    @classmethod
    def create(cls, scope: str, *, params: Params, delta: float, root: Secret | None = None) -> Keyring:
        """Draw a new root (or take *root*, 32 bytes) and put one active scope under it."""
        if not 0 <= delta <= 50:
            raise UsageError(f"delta: expected 0 to 50 logits, got {delta}")
        if root is None:
            root = Secret(secrets.token_bytes(32))
        if len(root) != 32:
            raise KeyringError(f"root: expected exactly 32 bytes, got {len(root)}")
        first = Scope(name=check_scope_name(scope), params=params, delta=delta, history=(Event.now("active"),))
        return cls(root=root, scopes=(first,))

    def scope(self, name: str | None = None) -> ScopeKeys:
        """Return the keys of scope *name*, or of the only scope.

        Raises:
            UsageError: there is no such scope, or several and none was named.
        """
        names = ", ".join(scope.name for scope in self.scopes)
        if name is None and len(self.scopes) != 1:
            raise UsageError(f"the keyring has {len(self.scopes)} scopes: name one with --scope (it has {names})")
        for scope in self.scopes:
            if name in (None, scope.name):
                return ScopeKeys(
                    name=scope.name,
                    params=scope.params,
                    delta=scope.delta,
                    key=scope_key(self.root, scope.name),
                    activation=scope.activation,
                )
        raise UsageError(f"no scope {printable(name)!r} in this keyring: it has {names}")

    def publish(self) -> Keyring:
        """Return this keyring as a published one, whose root everybody may read and nobody may mark with."""
        return replace(self, published=True)

    def write(self, path: Path) -> None:
        """Write the key file, mode 0600 (0644 if published).

        Raises:
            KeyringError: the file exists, or cannot be written.
        """
        mode = 0o644 if self.published else 0o600
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise KeyringError(f"{path}: exists; a key file is never overwritten. Choose another name") from None
        except OSError as error:
            raise KeyringError(f"{path}: cannot create the key file: {error.strerror}") from None
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)  # The umask may have taken bits away; it must not have the say here.
            json.dump(_to_json(self), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(descriptor)

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """Read a key file.

        Raises:
            KeyringError: missing, readable by others, or not a key file of this version.
        """
        try:
            with open(path, "rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(1 << 24)
        except FileNotFoundError:
            raise KeyringError(f"{path}: no such key file; `taggant keys create --out {path}` makes one") from None
        except OSError as error:
            raise KeyringError(f"{path}: cannot read the key file: {error.strerror}") from None
        try:
            data = json.loads(content)
            keyring = _from_json(data)
        except KeyringError as error:
            raise KeyringError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError, UsageError):
            # The cause is not shown: a JSON error can quote the line that it is about.
            raise KeyringError(f"{path}: not a key file of this version (expected schema {SCHEMA!r})") from None
        if not keyring.published and mode & 0o077:
            raise KeyringError(f"{path}: others can read this key file (mode {mode:04o}). Mend it: chmod 600 {path}")
        return keyring


def _checksum(root: bytes) -> str:
    return hashlib.sha256(_PREFIX.encode() + root).hexdigest()[:8]


def _to_json(keyring: Keyring) -> dict[str, object]:
    root = keyring.root.reveal()
    if keyring.published:
        secret: dict[str, object] = {"published": True, "published_root": root.hex()}
    else:
        secret = {"root": _PREFIX + root.hex() + _checksum(root)}
    return {
        "schema": SCHEMA,
        **secret,
        "scopes": [
            {
                "name": scope.name,
                "params": json.loads(scope.params.canonical()),
                "delta": scope.delta,
                "activation": None if scope.activation == NO_ACTIVATION else scope.activation.hex(),
                "history": [{"state": event.state, "time": event.time} for event in scope.history],
            }
            for scope in keyring.scopes
        ],
    }


def _from_json(data: Mapping[str, Any]) -> Keyring:
    if data["schema"] != SCHEMA:
        raise KeyringError(f"schema {printable(data['schema'])!r}: this version reads {SCHEMA!r}")
    if data.get("published") is True:
        root = bytes.fromhex(data["published_root"])
    else:
        found = re.fullmatch(rf"{_PREFIX}([0-9a-f]{{64}})([0-9a-f]{{8}})", data["root"])
        root = bytes.fromhex(found[1]) if found else b""
        if not found or _checksum(root) != found[2]:
            raise KeyringError("the root's checksum does not fit: the file was cut or edited")
    if len(root) != 32:
        raise KeyringError("expected a root of 32 bytes")
    scopes = tuple(_scope(entry) for entry in data["scopes"])
    names = [scope.name for scope in scopes]
    if not names or len(set(names)) != len(names):
        raise KeyringError("expected at least one scope, and each name once")
    return Keyring(root=Secret(root), scopes=scopes, published=data.get("published") is True)


def _scope(entry: Mapping[str, Any]) -> Scope:
    params = dict(entry["params"])
    params["special_ids"] = tuple(params["special_ids"])
    history = tuple(Event(event["state"], event["time"]) for event in entry["history"])
    if any(event.state not in _STATES for event in history):
        raise KeyringError(f"scope states are {', '.join(_STATES)}")
    return Scope(
        name=check_scope_name(entry["name"]),
        params=Params(**params),
        delta=float(entry["delta"]),
        activation=NO_ACTIVATION if entry["activation"] is None else bytes.fromhex(entry["activation"]),
        history=history,
    )
