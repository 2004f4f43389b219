"""Registries of accounts: whose code words are tried, and to which cluster each account is thought to belong.

An id counts as evidence only if it stood in a registry before the text: a registry made to fit a text is no registry.
"""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from watermark.errors import InputError, UsageError, printable
from watermark.keys import account_bytes

__all__ = ["Cohorts", "Registry"]

#: A line of the ingress's file of callers: a digest, the account, and perhaps "off".
_CALLER = re.compile(r"[0-9a-f]{64}\s+(\S+)(?:\s+off)?(?:\s+#.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """All accounts, each once, in the order of the file."""

    accounts: tuple[str, ...]
    sha256: str
    """Of the file."""

    @classmethod
    def load(cls, path: Path) -> Registry:
        """Read one account id a line, or the ingress's file of callers; ``#`` begins a comment line.

        Raises:
            InputError: it cannot be read, a line is no account id, or there is none.
        """
        content = _read(path)
        accounts: dict[str, None] = {}
        for number, line in enumerate(_text(content, path).split("\n"), start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            caller = _CALLER.fullmatch(line)
            accounts[_checked(caller[1] if caller else line, path, number)] = None
        if not accounts:
            raise InputError(f"{printable(path)}: no account in it; expected one account id a line")
        return cls(accounts=tuple(accounts), sha256=hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohorts:
    """Clusters of accounts, no account in two of them."""

    clusters: dict[str, tuple[str, ...]]
    """By name, in the order of the file."""
    sha256: str
    """Of the file."""

    @classmethod
    def load(cls, path: Path) -> Cohorts:
        """Read CSV with the columns ``account`` and ``cluster``.

        Raises:
            InputError: it cannot be read, a line is malformed, or an account is in two clusters.
        """
        content = _read(path)
        rows = csv.DictReader(_text(content, path).split("\n"))
        if rows.fieldnames is None or not {"account", "cluster"} <= {*rows.fieldnames}:
            raise InputError(f"{printable(path)}: expected CSV whose first line has the columns account and cluster")
        of: dict[str, str] = {}
        clusters: dict[str, list[str]] = {}
        try:
            for row in rows:
                if not row["account"] or not row["cluster"]:
                    raise InputError(f"{printable(path)}:{rows.line_num}: expected an account and a cluster")
                account = _checked(row["account"], path, rows.line_num)
                if of.setdefault(account, row["cluster"]) != row["cluster"]:
                    raise InputError(
                        f"{printable(path)}:{rows.line_num}: account {printable(account, 80)} is in two clusters"
                    )
                clusters.setdefault(row["cluster"], []).append(account)
        except csv.Error as error:
            raise InputError(f"{printable(path)}:{rows.line_num}: {error}") from None
        if not clusters:
            raise InputError(f"{printable(path)}: no account in it")
        return cls(
            clusters={name: tuple(dict.fromkeys(accounts)) for name, accounts in clusters.items()},
            sha256=hashlib.sha256(content).hexdigest(),
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from None


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{printable(path)}: not UTF-8 at byte {error.start}") from None


def _checked(account: str, path: Path, number: int) -> str:
    try:
        account_bytes(account)
    except UsageError as error:
        raise InputError(f"{printable(path)}:{number}: {error}") from None
    return account
