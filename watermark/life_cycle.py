"""The life of a scope: pending, active, retired; and the keyrings that serving hosts hold.

A scope is added as *pending*: its seeds are fixed, so that its commitments can be published
(`taggant keys show --json`), and nothing is marked with it. Public randomness that is drawn after that, a
beacon's round or an auditor's nonce, goes into its keys when it is *activated*, which keeps whoever made
the seeds from having tried keys until one fits innocent text. A *retired* scope marks nothing more and
is still detected. A serving host gets the keys of single scopes and never the root (`derive`).

Every function here returns a new keyring; `update_key_file` puts one in the place of another on disk.
A server that watches its key file (`watermark.marker`) takes the change up without a restart.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from watermark.errors import KeyringError, UsageError, printable
from watermark.keyring import Event, Keyring, Scope, checked_delta
from watermark.keys import NO_ACTIVATION, Params, check_scope_name, scope_key

__all__ = [
    "activate",
    "add_scope",
    "check_lanes_to_reveal",
    "compromise",
    "derive",
    "parse_activation",
    "retire",
    "reveal",
    "update_key_file",
]


def add_scope(keyring: Keyring, name: str, *, params: Params, delta: float) -> Keyring:
    """Return *keyring* with a new, pending scope.

    Raises:
        UsageError: the name is taken or no scope's name, or delta is out of its range.
        KeyringError: the keyring has no root to derive the scope's key from.
    """
    if keyring.root is None:
        raise KeyringError("this keyring is scope-only: add the scope where the root is, then `taggant keys derive`")
    if any(scope.name == check_scope_name(name) for scope in keyring.scopes):
        raise UsageError(f"scope {name}: is in this keyring already; a scope's parameters never change. Name another")
    pending = Scope(name=name, params=params, delta=checked_delta(delta), history=(Event.now("pending"),))
    return replace(keyring, scopes=(*keyring.scopes, pending))


def activate(keyring: Keyring, name: str, *, activation: bytes = NO_ACTIVATION) -> Keyring:
    """Return *keyring* with a pending scope made active.

    Args:
        keyring: the keyring.
        name: the scope.
        activation: 32 bytes of public randomness drawn after the scope's commitments were published. Without,
            every report will say that the key's randomness cannot be verified.

    Raises:
        UsageError: there is no such scope, it is not pending, or *activation* is not 32 bytes.
    """
    if len(activation) != 32:
        raise UsageError(f"activation: expected 32 bytes (64 hexadecimal digits), got {len(activation)}")
    scope = _in_state(keyring, name, "pending", "activated")
    return _replaced(keyring, replace(scope, activation=activation, history=(*scope.history, Event.now("active"))))


def parse_activation(text: str) -> bytes:
    """Return public randomness of 32 bytes from its 64 hexadecimal digits.

    Raises:
        UsageError: it is anything else.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise UsageError(
            f"activation: expected 64 hexadecimal digits, got {len(text)} characters. A longer value is hashed first: "
            "sha256sum"
        )
    return bytes.fromhex(text)


def retire(keyring: Keyring, name: str) -> Keyring:
    """Return *keyring* with an active scope retired: it marks nothing more, and is still detected.

    Raises:
        UsageError: there is no such scope, or it is not active.
    """
    scope = _in_state(keyring, name, "active", "retired")
    return _replaced(keyring, replace(scope, history=(*scope.history, Event.now("retired"))))


def compromise(keyring: Keyring, name: str) -> Keyring:
    """Return *keyring* with a scope marked as compromised: what was collected from then on is no evidence.

    Raises:
        UsageError: there is no such scope, or it is compromised already.
    """
    scope = _found(keyring, name)
    if scope.state in ("compromised", "destroyed"):
        raise UsageError(f"scope {scope.name} is {scope.state} already")
    return _replaced(keyring, replace(scope, history=(*scope.history, Event.now("compromised"))))


def reveal(keyring: Keyring, name: str, lanes: Sequence[int]) -> Keyring:
    """Return *keyring* with lanes of a scope revealed: they mark nothing more and are tested no more.

    Raises:
        UsageError: there is no such scope, a lane is no fleet lane or was revealed before, or more than half of the
            fleet lanes would be revealed. The other half is kept, so that fresh lanes can be asked for later.
    """
    scope = _found(keyring, name)
    check_lanes_to_reveal(lanes, fleet_lanes=scope.params.fleet_lanes, revealed=scope.revealed)
    return _replaced(keyring, replace(scope, revealed=tuple(sorted({*scope.revealed, *lanes}))))


def check_lanes_to_reveal(lanes: Sequence[int], *, fleet_lanes: int, revealed: Sequence[int]) -> None:
    """Refuse lanes that may not be revealed.

    Raises:
        UsageError: as in `reveal`.
    """
    if len(set(lanes)) != len(lanes) or not all(0 <= lane < fleet_lanes for lane in lanes):
        raise UsageError(f"lanes to reveal: expected fleet lanes, 0 to {fleet_lanes - 1}, each once, got {list(lanes)}")
    again = sorted({*lanes} & {*revealed})
    if again:
        raise UsageError(f"lanes to reveal: {again} were revealed before; a lane is opened once")
    if len(lanes) + len(revealed) > fleet_lanes // 2:
        raise UsageError(
            f"lanes to reveal: {len(lanes)} beside {len(revealed)} revealed before are more than half of the scope's "
            f"{fleet_lanes} fleet lanes; the other half is kept"
        )


def derive(keyring: Keyring, names: Sequence[str] = ()) -> Keyring:
    """Return a scope-only keyring for a serving host: single scopes with their keys, and no root.

    Args:
        keyring: a keyring with a root, or one that is scope-only already.
        names: the scopes; by default every active one.

    Raises:
        UsageError: there is no such scope, or none is active.
        KeyringError: the keyring is published: nothing may mark with it.
    """
    if keyring.published:
        raise KeyringError("this keyring is published: nothing marks with it, so that there is nothing to derive")
    chosen = [_found(keyring, name) for name in names]
    chosen = chosen or [scope for scope in keyring.scopes if scope.state == "active"]
    if not chosen:
        raise UsageError("no scope of this keyring is active: name one with --scope, or activate one first")
    keyed = (
        scope if keyring.root is None else replace(scope, key=scope_key(keyring.root, scope.name)) for scope in chosen
    )
    return Keyring(root=None, scopes=tuple(keyed))


def update_key_file(path: Path, change: Callable[[Keyring], Keyring]) -> Keyring:
    """Put the changed keyring in the place of the one at *path*, in one step; a reader sees the old or the new.

    Raises:
        KeyringError: the file cannot be read or written, or somebody else is changing it.
    """
    partial = path.with_name(path.name + ".changing")
    while True:
        before = _identity(path)
        changed = change(Keyring.load(path))
        try:
            changed.write(partial)  # O_EXCL: of two that change the file at once one is told.
        except KeyringError as error:
            if partial.exists():
                raise KeyringError(
                    f"{printable(partial)}: another change of this key file is under way, or one was cut off; if none "
                    "is, delete that file"
                ) from None
            raise error from None
        if _identity(path) == before:
            break
        partial.unlink()  # Somebody else's change came between; it must not be lost.
    try:
        os.replace(partial, path)
        if sys.platform != "win32":  # A folder is not opened there, and its entry is written with the file.
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise KeyringError(f"{printable(path)}: cannot write the key file: {error.strerror}") from None
    return changed


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # `Keyring.load` says what is wrong.
    return status.st_ino, status.st_mtime_ns, status.st_size


def _found(keyring: Keyring, name: str) -> Scope:
    for scope in keyring.scopes:
        if scope.name == name:
            return scope
    raise UsageError(
        f"no scope {printable(name)!r} in this keyring: it has {', '.join(scope.name for scope in keyring.scopes)}"
    )


def _in_state(keyring: Keyring, name: str, state: str, done: str) -> Scope:
    scope = _found(keyring, name)
    if scope.state != state:
        raise UsageError(f"scope {scope.name} is {scope.state}: only a scope that is {state} can be {done}")
    return scope


def _replaced(keyring: Keyring, changed: Scope) -> Keyring:
    return replace(keyring, scopes=tuple(changed if scope.name == changed.name else scope for scope in keyring.scopes))
