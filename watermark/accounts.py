"""Who calls: the file that maps API keys to accounts.

One caller a line, white space between; ``#`` begins a comment::

    <SHA-256 of the API key, 64 hexadecimal digits> <account id> [off]

``off`` serves the caller unmarked: an evaluation service of the operator's own, say. The file holds no API
key, only digests; API keys are long and random, so that a plain digest can't be searched.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from watermark.errors import UsageError, printable
from watermark.keys import account_bytes
from watermark.ticket import Ticket

__all__ = ["AccountMap", "add_account"]

_LINE = re.compile(r"([0-9a-f]{64})\s+(.+?)(?:\s+(off))?\s*")


@dataclass(frozen=True, slots=True)
class AccountMap:
    """API keys' digests to what the ingress says of their callers."""

    path: Path
    callers: dict[str, Ticket] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> AccountMap:
        """Read the file.

        Raises:
            UsageError: it cannot be read, a line is malformed, or an API key stands in two lines.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise UsageError(f"{printable(path)}: cannot read the accounts: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{printable(path)}: not UTF-8 at byte {error.start}") from None
        callers: dict[str, Ticket] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            found = _LINE.fullmatch(line.strip())
            if not found:
                # The line is not shown: by mistake it may hold an API key.
                raise UsageError(
                    f"{printable(path)}:{number}: expected the SHA-256 of an API key, 64 hexadecimal digits, and an "
                    "account id: taggant accounts add writes such a line"
                )
            digest, account, off = found.groups()
            if digest in callers:
                raise UsageError(f"{printable(path)}:{number}: this API key stands in an earlier line too")
            try:
                callers[digest] = Ticket(account=account, mark=off is None)
            except UsageError as error:
                raise UsageError(f"{printable(path)}:{number}: {error}") from None
        return cls(path, callers)

    def caller(self, api_key: str) -> Ticket | None:
        """Return what to say of whoever holds *api_key*; None if nobody here does."""
        return self.callers.get(_digest(api_key))

    def accounts(self) -> frozenset[str]:
        """Return the accounts' ids."""
        return frozenset(ticket.account for ticket in self.callers.values() if ticket.account is not None)


def add_account(path: Path, account: str, api_key: str, *, mark: bool = True) -> None:
    """Add a line for *account* to the file, which is made if there is none.

    Raises:
        UsageError: the account id or the API key is malformed, the key is there already, or the file can't be written.
    """
    account_bytes(account)
    if " off" in account or account.split() != [account]:
        raise UsageError(f"account id {printable(account)!r}: in this file an account id holds no white space")
    if len(api_key) < 16 or api_key != api_key.strip():
        raise UsageError(f"API key: expected at least 16 characters without outer white space, got {len(api_key)}")
    if path.exists() and AccountMap.load(path).caller(api_key) is not None:
        raise UsageError(f"{printable(path)}: this API key is there already: delete its line first")
    line = f"{_digest(api_key)} {account}{'' if mark else ' off'}\n"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot write the accounts: {error.strerror}") from None


def _digest(api_key: str) -> str:
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()
