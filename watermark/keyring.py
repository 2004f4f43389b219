"""Key files: what holds the root and its scopes on disk, and who may read it.

A key file is one JSON object, mode 0600, created with O_EXCL. The root is written as
``taggant_sk1_`` + 64 hexadecimal digits + 8 of a checksum, so that a secret scanner finds it where it
should not be. A file that its group or others can read is refused with the command that mends it.

A *scope-only* keyring, for a serving host (`watermark.life_cycle.derive`), has no root: each of its scopes
holds its own key, in the same form. Whoever takes it can mark and detect under these scopes and no others.

A *published* keyring (the example that the demo uses) says so in the file and in every result. Its root
is no secret; it has no prefix, its mode is not checked, and it can not mark anything.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from watermark.errors import KeyringError, UsageError, printable
from watermark.keys import NO_ACTIVATION, Params, ScopeKeys, Secret, check_scope_name, scope_key
from watermark.prf import LANES
from watermark.secret_file import check_mode, create_private, read_private, secret_from, secret_text

if TYPE_CHECKING:
    from watermark.tokenizer import Tokenizer

__all__ = ["SCHEMA", "Event", "Keyring", "Scope", "checked_delta", "create_key_file", "public_view"]

SCHEMA: Final = "taggant/keyring/1"

_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z")
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
    revealed: tuple[int, ...] = ()
    """Lanes whose seeds were opened as evidence, increasing: neither marked nor tested any more."""
    key: Secret | None = None
    """The scope's key in a keyring that has no root; None where it follows from the root."""

    @property
    def state(self) -> str:
        """The last state of the life cycle."""
        return self.history[-1].state if self.history else "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """A root and its scopes, or scopes alone, each with its key.

    Created with `create`, read with `load`, written once with `write`; `watermark.life_cycle` changes it.
    """

    root: Secret | None
    scopes: tuple[Scope, ...]
    published: bool = False

    def __post_init__(self) -> None:
        if any((scope.key is None) == (self.root is None) for scope in self.scopes):
            raise KeyringError("a keyring holds a root, or a key for each of its scopes: one or the other")

    @classmethod
    def create(
        cls, scope: str, *, params: Params, delta: float, root: Secret | None = None, state: str = "active"
    ) -> Keyring:
        """Draw a new root (or take *root*, 32 bytes) and put one scope under it, active unless *state* is "pending".

        Raises:
            KeyringError: *root* is not 32 bytes long.
            UsageError: the name or delta is out of its range.
        """
        if root is None:
            root = Secret(secrets.token_bytes(32))
        if len(root) != 32:
            raise KeyringError(f"root: expected exactly 32 bytes, got {len(root)}")
        first = Scope(
            name=check_scope_name(scope), params=params, delta=checked_delta(delta), history=(Event.now(state),)
        )
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
                key = scope.key if self.root is None else scope_key(self.root, scope.name)
                assert key is not None  # noqa: S101 (`__post_init__` has seen to it)
                return ScopeKeys(
                    name=scope.name,
                    params=scope.params,
                    delta=scope.delta,
                    key=key,
                    activation=scope.activation,
                    revealed=scope.revealed,
                )
        raise UsageError(f"no scope {printable(name)!r} in this keyring: it has {names}")

    def scope_to_mark(self, name: str | None = None) -> ScopeKeys:
        """Return the keys of a scope that may mark now: active, in a keyring that is not published.

        Args:
            name: the scope; by default the one that was activated last.

        Raises:
            UsageError: there is no such scope.
            KeyringError: it may not mark.
        """
        if self.published:
            raise KeyringError(
                "this keyring is published: anyone could mark with it. Make your own: taggant keys create --out FILE"
            )
        if name is None and len(self.scopes) > 1:
            active = [scope for scope in self.scopes if scope.state == "active"]
            if not active:
                states = ", ".join(f"{scope.name} is {scope.state}" for scope in self.scopes)
                raise KeyringError(f"no scope of this keyring is active ({states}): taggant keys activate --scope NAME")
            # Python's sort keeps the file's order among equal times: the later in the file is the later.
            name = sorted(active, key=lambda scope: datetime.fromisoformat(scope.history[-1].time))[-1].name
        keys_of = self.scope(name)
        state = next(scope.state for scope in self.scopes if scope.name == keys_of.name)
        if state != "active":
            raise KeyringError(
                f"scope {keys_of.name} is {state}: only an active scope marks. Name another with --scope"
            )
        return keys_of

    def publish(self) -> Keyring:
        """Return this keyring as a published one, whose root everybody may read and nobody may mark with.

        Raises:
            KeyringError: it has no root.
        """
        if self.root is None:
            raise KeyringError("a scope-only keyring has no root to publish")
        return replace(self, published=True)

    def write(self, path: Path) -> None:
        """Write the key file, mode 0600 (0644 if published).

        Raises:
            KeyringError: the file exists, or cannot be written.
        """
        text = json.dumps(_to_json(self), indent=1) + "\n"
        create_private(path, text, mode=0o644 if self.published else 0o600)

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """Read a key file.

        Raises:
            KeyringError: missing, readable by others, or not a key file of this version.
        """
        content, mode = read_private(path, made_by="taggant keys create")
        keyring = _parsed(content)
        if isinstance(keyring, str):
            raise KeyringError(f"{printable(path)}: {keyring}")
        if not keyring.published:
            check_mode(path, mode)
        return keyring


def create_key_file(
    path: Path,
    *,
    scope: str,
    window: int,
    delta: float,
    fleet_k: int,
    account_lanes: int,
    tokenizer: Tokenizer,
    special: Sequence[str] = (),
    root_file: Path | None = None,
    state: str = "active",
) -> Keyring:
    """Create a key file with one scope for *tokenizer*.

    Args:
        path: the file to create; never overwritten.
        scope: the scope's name.
        window: ids hashed for each choice, 1..8.
        delta: logits added to green tokens.
        fleet_k: gamma of the fleet lanes in units of 1/256.
        account_lanes: 16 or 0.
        tokenizer: the generating model's; its special ids become the scope's.
        special: further special ids or tokens, which the tokenizer does not flag.
        root_file: 32 raw bytes from an HSM or KMS, in place of random ones.
        state: "active", or "pending" until `watermark.life_cycle.activate`.

    Raises:
        KeyringError: the file exists, or the root file does not hold 32 bytes.
        UsageError: a parameter out of range.
    """
    root = None
    if root_file is not None:
        try:
            with open(root_file, "rb") as file:
                root = Secret(file.read(33))  # One more than there may be; /dev/urandom has no end.
        except OSError as error:
            raise KeyringError(f"{root_file}: cannot read the root: {error.strerror}") from None
        if len(root) != 32:
            raise KeyringError(
                f"{root_file}: expected exactly 32 raw bytes, got {'more' if len(root) > 32 else len(root)}"
            )
    special_ids = {*tokenizer.special_ids, *(tokenizer.special_id(name) for name in special)}
    params = Params(
        tokenizer=tokenizer.digest(),
        special_ids=tuple(sorted(special_ids)),
        window=window,
        fleet_k=fleet_k,
        account_lanes=account_lanes,
    )
    keyring = Keyring.create(scope, params=params, delta=delta, root=root, state=state)
    keyring.write(path)
    return keyring


def public_view(keyring: Keyring) -> dict[str, Any]:
    """Return what is public of a keyring: what `keys show --json` prints, and what is to be published."""
    scopes = []
    for scope in keyring.scopes:
        keys_of = keyring.scope(scope.name)
        scopes.append(
            {
                "scope": scope.name,
                "fingerprint": keys_of.fingerprint,
                "params": json.loads(scope.params.canonical()),
                "delta": scope.delta,
                "state": scope.state,
                "history": [{"state": event.state, "time": event.time} for event in scope.history],
                "activation": None if scope.activation == NO_ACTIVATION else scope.activation.hex(),
                "revealed": list(scope.revealed),
                "commitments": keys_of.commitments(),
            }
        )
    return {"schema": "taggant/commitments/1", "published": keyring.published, "scopes": scopes}


def checked_delta(delta: float) -> float:
    """Return *delta*; a UsageError unless it is 0 to 50 logits."""
    if isinstance(delta, bool) or not 0 <= delta <= 50:
        raise UsageError(f"delta: expected 0 to 50 logits, got {delta}")
    return float(delta)


def _to_json(keyring: Keyring) -> dict[str, object]:
    secret: dict[str, object] = {}
    if keyring.published:
        secret = {"published": True, "published_root": keyring.root.reveal().hex() if keyring.root else None}
    elif keyring.root is not None:
        secret = {"root": secret_text(keyring.root)}
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
                **({"revealed": list(scope.revealed)} if scope.revealed else {}),
                **({} if scope.key is None else {"key": secret_text(scope.key)}),
            }
            for scope in keyring.scopes
        ],
    }


def _parsed(content: bytes) -> Keyring | str:
    """Return the keyring, or what is wrong with the file.

    A text and no exception: the errors of the JSON and UTF-8 decoders hold the content, and one that is
    raised while they are handled keeps them in its chain.
    """
    try:
        return _from_json(json.loads(content))
    except KeyringError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, RecursionError, UsageError):
        return f"not a key file of this version (expected schema {SCHEMA!r})"


def _from_json(data: Mapping[str, Any]) -> Keyring:
    if data["schema"] != SCHEMA:
        # Only what is surely a schema's name is shown: nothing else of a key file goes into a message.
        named = re.fullmatch(r"taggant/[a-z]{1,16}/[0-9]{1,4}", str(data["schema"]))
        raise KeyringError(f"schema {named[0] if named else 'unknown'!r}: this version reads {SCHEMA!r}")
    published = data.get("published") is True
    if published and ("root" in data or any("key" in entry for entry in data["scopes"])):
        raise KeyringError("it is marked as published and holds a secret root: it is one or the other")
    root = None
    if published:
        root = Secret(bytes.fromhex(data["published_root"]))
    elif "root" in data or not all("key" in entry for entry in data["scopes"]):
        root = secret_from(data["root"], what="the root's")
    if root is not None and len(root) != 32:
        raise KeyringError("expected a root of 32 bytes")
    scopes = tuple(_scope(entry) for entry in data["scopes"])
    names = [scope.name for scope in scopes]
    if not names or len(set(names)) != len(names):
        raise KeyringError("expected at least one scope, and each name once")
    return Keyring(root=root, scopes=scopes, published=published)


def _scope(entry: Mapping[str, Any]) -> Scope:
    params = dict(entry["params"])
    params["special_ids"] = tuple(params["special_ids"])
    integers = [params[name] for name in ("window", "fleet_k", "account_k", "account_lanes")]
    if any(type(value) is not int for value in (*integers, *params["special_ids"])):
        raise KeyringError("a scope's parameters are integers")
    history = tuple(Event(event["state"], event["time"]) for event in entry["history"])
    if any(event.state not in _STATES for event in history):
        raise KeyringError(f"scope states are {', '.join(_STATES)}")
    if any(not _TIME.fullmatch(event.time) for event in history):
        raise KeyringError("a scope's times are RFC 3339 in UTC")
    activation = NO_ACTIVATION if entry["activation"] is None else bytes.fromhex(entry["activation"])
    if len(activation) != 32:
        raise KeyringError("a scope's activation is 32 bytes")
    revealed = tuple(entry.get("revealed", ()))
    if any(type(lane) is not int or not 0 <= lane < LANES for lane in revealed) or sorted(set(revealed)) != [*revealed]:
        raise KeyringError(f"a scope's revealed lanes are increasing numbers of 0 to {LANES - 1}")
    name = check_scope_name(entry["name"])
    return Scope(
        name=name,
        params=Params(**params),
        delta=checked_delta(entry["delta"]),
        activation=activation,
        history=history,
        revealed=revealed,
        key=secret_from(entry["key"], what=f"scope {name}: its key's") if "key" in entry else None,
    )
