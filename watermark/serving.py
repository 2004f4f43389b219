"""How a generation server is told to mark: one TOML file, or environment variables.

::

    keyring = "/etc/taggant/serving-key.json"   # scope-only, made with `taggant keys derive`
    scope = "2026-q4"            # default: the scope that was activated last
    policy = "required"          # or "optional", or "off"
    shadow = false               # compute everything, mark nothing
    min_entropy = 0.0            # bits; steps below are left alone
    fields = "signed"            # or "plain": see `watermark.ticket`
    require_account = false      # refuse requests that name none
    tokenizer = "/models/m/tokenizer.json"      # checked against the scope where the engine cannot tell its own
    metrics = "/var/lib/node_exporter/taggant"  # a folder for Prometheus text files
    refresh = 5.0                # seconds between looks at the key file and writes of metrics

    [ingress]                    # the middleware (`watermark.middleware`)
    accounts = "/etc/taggant/accounts.txt"      # who calls: see `watermark.accounts`
    key = "/etc/taggant/ingress-key"            # only where the ingress is another process than the server
    logprobs = "strip"           # or "pass"
    self_test = true             # before the first answer: is what the server says marked?

    [ledger]
    database = "sqlite:////var/lib/taggant/ledger.db"   # or TAGGANT_LEDGER, where a password is in it
    origin = "host-a.example/ledger"
    retention = "ids"

``TAGGANT_CONFIG`` names the file. ``TAGGANT_KEYRING``, ``TAGGANT_SCOPE``, ``TAGGANT_POLICY``,
``TAGGANT_SHADOW`` and ``TAGGANT_LEDGER`` stand above what is in it, and the first of them is enough by
itself. No key is ever in the file, in the environment or in a request.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from watermark.errors import UsageError, printable

__all__ = ["FieldTrust", "IngressConfig", "LedgerConfig", "Policy", "ServingConfig"]


class Policy(StrEnum):
    """What becomes of a request that cannot be marked."""

    REQUIRED = "required"
    """It fails."""
    OPTIONAL = "optional"
    """It is served unmarked, and recorded as such."""
    OFF = "off"
    """Nothing is marked, by the operator's word."""


class FieldTrust(StrEnum):
    """Who may say in a request for which account it is, and whether it is marked."""

    SIGNED = "signed"
    """The ingress, in a ticket that it signs. Other fields of ours are refused."""
    PLAIN = "plain"
    """Whoever can reach the server: only where clients cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressConfig:
    """The middleware's part of the configuration."""

    accounts: Path | None = None
    key: Path | None = None
    logprobs: str = "strip"
    self_test: bool = True

    def __post_init__(self) -> None:
        if self.logprobs not in ("strip", "pass"):
            raise UsageError(f'ingress.logprobs: expected "strip" or "pass", got {printable(self.logprobs)!r}')


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerConfig:
    """Where what was served is recorded."""

    database: str | None = field(default=None, repr=False)
    """An SQLAlchemy URL; it may hold a password."""
    origin: str | None = None
    retention: str = "ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """What an operator decides. See the module's text for each."""

    keyring: Path | None = None
    scope: str | None = None
    policy: Policy = Policy.REQUIRED
    shadow: bool = False
    min_entropy: float = 0.0
    fields: FieldTrust = FieldTrust.SIGNED
    require_account: bool = False
    tokenizer: str | None = None
    metrics: Path | None = None
    refresh: float = 5.0
    ingress: IngressConfig = IngressConfig()
    ledger: LedgerConfig = LedgerConfig()

    def __post_init__(self) -> None:
        if self.keyring is None and self.policy is not Policy.OFF:
            raise UsageError(
                "no key file is named: set TAGGANT_KEYRING=FILE, or keyring in the file that TAGGANT_CONFIG names; "
                "TAGGANT_POLICY=off serves unmarked"
            )
        if not self.min_entropy >= 0 or not 0 < self.refresh <= 86_400:
            # A thread that waits longer than the platform can count would end, and the key file be looked at no more.
            raise UsageError("min_entropy: expected 0 or more bits, and refresh: more than 0 seconds, a day at most")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ServingConfig:
        """Return what the environment says, and the file that it names.

        Raises:
            UsageError: neither names a key file, or the configuration is malformed.
        """
        env = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        source = "the environment"
        if env.get("TAGGANT_CONFIG"):
            source = env["TAGGANT_CONFIG"]
            values = _read(Path(source))
        for name in ("keyring", "scope", "policy"):
            if env.get(f"TAGGANT_{name.upper()}"):
                values[name] = env[f"TAGGANT_{name.upper()}"]
        if env.get("TAGGANT_SHADOW"):
            values["shadow"] = _flag(env["TAGGANT_SHADOW"])
        if env.get("TAGGANT_LEDGER"):
            values["ledger"] = {**_table(values, "ledger", source), "database": env["TAGGANT_LEDGER"]}
        return cls._of(values, source)

    @classmethod
    def load(cls, path: Path) -> ServingConfig:
        """Return what the file at *path* says.

        Raises:
            UsageError: it cannot be read, or is malformed.
        """
        return cls._of(_read(path), str(path))

    @classmethod
    def _of(cls, values: dict[str, Any], source: str) -> ServingConfig:
        ingress, ledger = _table(values, "ingress", source), _table(values, "ledger", source)
        plain = {name: value for name, value in values.items() if name not in ("ingress", "ledger")}
        return cls(
            **_typed(plain, _TOP, source),
            ingress=IngressConfig(**_typed(ingress, _INGRESS, f"{source}, [ingress]")),
            ledger=LedgerConfig(**_typed(ledger, _LEDGER, f"{source}, [ledger]")),
        )


_TOP: dict[str, type] = {
    "keyring": Path,
    "scope": str,
    "policy": Policy,
    "shadow": bool,
    "min_entropy": float,
    "fields": FieldTrust,
    "require_account": bool,
    "tokenizer": str,
    "metrics": Path,
    "refresh": float,
}
_INGRESS: dict[str, type] = {"accounts": Path, "key": Path, "logprobs": str, "self_test": bool}
_LEDGER: dict[str, type] = {"database": str, "origin": str, "retention": str}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot read the configuration: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # The decoders' own are ValueErrors, as is an integer too long.
        raise UsageError(f"{printable(path)}: not TOML: {printable(error)}") from None


def _flag(text: str) -> bool:
    if text.lower() not in ("0", "1", "false", "true"):
        raise UsageError(f"TAGGANT_SHADOW: expected 0 or 1, got {printable(text)!r}")
    return text.lower() in ("1", "true")


def _table(values: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{printable(source)}: [{name}] is a table")
    return table


def _typed(values: dict[str, Any], types: dict[str, type], source: str) -> dict[str, Any]:
    """Return the values in the types that they have here; what is not known is not passed over."""
    typed = {}
    for name, value in values.items():
        kind = types.get(name)
        if kind is None:
            raise UsageError(f"{printable(source)}: {printable(name)!r} is not known; there are {', '.join(types)}")
        wanted: tuple[type, ...] = (int, float) if kind is float else (bool,) if kind is bool else (str,)
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            shown = kind.__name__ if kind in (bool, float) else "text"
            raise UsageError(f"{printable(source)}: {name}: expected {shown}, got {type(value).__name__}")
        try:
            typed[name] = kind(value)
        except (ValueError, OverflowError):
            allowed = ", ".join(str(one) for one in kind) if issubclass(kind, StrEnum) else kind.__name__
            raise UsageError(f"{printable(source)}: {name}: expected {allowed}; got {printable(value)!r}") from None
    return typed
