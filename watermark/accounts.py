"""Who calls: the file that maps API keys to accounts.

One caller a line, white space between; ``#`` begins a comment, at a line's start or after white space::

    <SHA-256 of the API key, 64 hexadecimal digits> <account id> [off]

``off`` serves the caller unmarked: an evaluation service of the operator's own, say. The file holds no API
key, only digests; API keys are long and random, so that a plain digest can't be searched.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from watermark.errors import UsageError, printable
from watermark.keys import account_bytes
from watermark.ticket import Ticket

__all__ = ["AccountMap", "WatchedAccounts", "add_account"]

log = logging.getLogger("taggant")

_LINE = re.compile(r"([0-9a-f]{64})\s+(\S+)(?:\s+(off))?(?:\s+#.*)?")


@dataclass(frozen=True, slots=True)
class AccountMap:
    """API keys' digests to what the ingress says of their callers."""

    path: Path
    callers: dict[str, Ticket] = field(repr=False)
    _accounts: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        named = frozenset(ticket.account for ticket in self.callers.values() if ticket.account is not None)
        object.__setattr__(self, "_accounts", named)

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
                    "account id without white space: taggant accounts add writes such a line"
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
        return self._accounts


class WatchedAccounts:
    """The account map of a running server: a changed file is taken up, and a bad one changes nothing.

    Args:
        path: the file.
        interval: seconds between looks at it.

    Raises:
        UsageError: as `AccountMap.load`.
    """

    def __init__(self, path: Path, *, interval: float) -> None:
        self.interval = interval
        self._seen = _identity(path)
        self._map = AccountMap.load(path)
        self._looked = time.monotonic()

    def __repr__(self) -> str:
        return f"WatchedAccounts({str(self._map.path)!r})"

    @property
    def path(self) -> Path:
        """The file."""
        return self._map.path

    def caller(self, api_key: str) -> Ticket | None:
        """Return what to say of whoever holds *api_key*; None if nobody here does."""
        self._look_in_time()
        return self._map.caller(api_key)

    def accounts(self) -> frozenset[str]:
        """Return the accounts' ids."""
        self._look_in_time()
        return self._map.accounts()

    def _look_in_time(self) -> None:
        now = time.monotonic()
        if now - self._looked >= self.interval:
            self._looked = now
            self._look()

    def _look(self) -> None:
        identity = _identity(self._map.path)
        if identity == self._seen:
            return
        self._seen = identity
        try:
            self._map = AccountMap.load(self._map.path)
        except UsageError as error:
            log.error("the accounts changed and were not taken up; the earlier ones stay in use: %s", error)
        else:
            log.info("the accounts changed: %d callers", len(self._map.callers))


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
        with open(path, "a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line  # An editor left the last line without an end.
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot write the accounts: {error.strerror}") from None


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _digest(api_key: str) -> str:
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()
