"""The ingress's word on a request: for which account it is, and whether it is marked.

A client must not choose its account, nor switch its mark off; and what a server hands to its sampler is
the client's own JSON. So the ingress, which knows the caller's API key, strips every field of ours from
the request and puts in one of its own, a *ticket*::

    taggant_ticket = base64url(JSON {"account": text or null, "mark": bool, "scope": text or null, "time": seconds})
                     "." base64url(tag)
    tag            = the first 16 bytes of HMAC-SHA256(key, the part before the dot)

The ingress names the scope, so that what it puts into the ledger is what marks, in the seconds too in which
not every process has taken up a change of the key file.

Where the ingress is the server's own middleware, both are one process and the key is 32 random bytes
that never leave it (`process_key`). An ingress on another host shares a key file with the server. A
ticket is good for five minutes, so that one which was overheard is of little use.

Where clients cannot reach the server at all, an operator may have the plain fields ``taggant_account``
and ``taggant_mark`` ("on" or "off") honoured (`watermark.serving.FieldTrust`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from watermark.errors import TaggantError, UsageError, printable
from watermark.keys import Secret, account_bytes, check_scope_name
from watermark.secret_file import create_secret_file, read_secret_file

__all__ = [
    "ACCOUNT_FIELD",
    "MARK_FIELD",
    "PREFIX",
    "SCOPE_FIELD",
    "TICKET_FIELD",
    "RequestRefusedError",
    "Ticket",
    "create_ingress_key",
    "open_ticket",
    "process_key",
    "read_ingress_key",
    "read_plain_fields",
    "sign_ticket",
]

#: What every field of ours begins with; a request's others are none of our business.
PREFIX: Final = "taggant_"
TICKET_FIELD: Final = "taggant_ticket"
ACCOUNT_FIELD: Final = "taggant_account"
MARK_FIELD: Final = "taggant_mark"
#: Said by the process that admitted a request to those that sample for it, which may not all have seen the same
#: key file yet, and must mark alike. Never taken from outside.
SCOPE_FIELD: Final = "taggant_scope"

#: Seconds that a ticket is good for, either way.
_LIFETIME: Final = 300.0


class RequestRefusedError(TaggantError):
    """Report a request that is not served; the server answers with *status* and the message."""

    exit_code = 2

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """For which account a request is, and whether it is marked."""

    account: str | None = None
    mark: bool = True
    scope: str | None = None
    """The scope that marks it; None: the one under which the server marks now."""

    def __post_init__(self) -> None:
        if self.account is not None:
            account_bytes(self.account)
        if self.scope is not None:
            check_scope_name(self.scope)


@cache
def process_key() -> Secret:
    """Return the key of this process, drawn when it is first asked for."""
    return Secret(secrets.token_bytes(32))


def create_ingress_key(path: Path) -> None:
    """Draw a key for an ingress on another host and write its file, mode 0600.

    Raises:
        KeyringError: the file exists, or cannot be written.
    """
    create_secret_file(path, Secret(secrets.token_bytes(32)), what="ingress key")


def read_ingress_key(path: Path) -> Secret:
    """Read an ingress's key file.

    Raises:
        KeyringError: missing, readable by others, or no such file of ours.
    """
    return read_secret_file(path, made_by="taggant keys ingress", what="ingress key")


def sign_ticket(ticket: Ticket, key: Secret, *, now: float | None = None) -> str:
    """Return the ticket's text. Does not hide the account: whoever sees a ticket can read it."""
    said = {
        "account": ticket.account,
        "mark": ticket.mark,
        "scope": ticket.scope,
        "time": round(time.time() if now is None else now, 3),
    }
    body = base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
    return f"{body}.{_tag(body, key)}"


def open_ticket(text: object, key: Secret | None, *, now: float | None = None) -> Ticket:
    """Return what a ticket says.

    Args:
        text: the ticket.
        key: the ingress's key; None if another process of the server has checked the ticket already.
        now: seconds since 1970; by default the clock's.

    Raises:
        RequestRefusedError: it was not signed with this key, is older than five minutes, or holds something else.
    """
    body, _, tag = text.partition(".") if isinstance(text, str) and text.isascii() else ("", "", "")
    if not body or (key is not None and not hmac.compare_digest(tag, _tag(body, key))):
        raise RequestRefusedError(
            f"{TICKET_FIELD}: was not signed by this server's ingress. Only the ingress sets it; leave it out",
            status=403,
        )
    try:
        said = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if type(said["mark"]) is not bool or type(said["time"]) not in (int, float):
            raise TypeError
        age = (time.time() if now is None else now) - said["time"]
        ticket = Ticket(account=said["account"], mark=said["mark"], scope=said.get("scope"))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, UsageError):
        # An ingress of another make signed it; what it has got wrong is one request's matter, and no engine's end.
        raise RequestRefusedError(
            f"{TICKET_FIELD}: holds something else than account, mark, scope and time as watermark.ticket says",
            status=403,
        ) from None
    if key is not None and not abs(age) <= _LIFETIME:
        raise RequestRefusedError(
            f"{TICKET_FIELD}: was signed {abs(age):.0f} s {'ago' if age > 0 else 'in the future'}, and is good for "
            f"{_LIFETIME:.0f} s: send the request anew, and set the clocks of ingress and server",
            status=403,
        )
    return ticket


def read_plain_fields(fields: Mapping[str, object]) -> Ticket:
    """Return what the plain fields say.

    Raises:
        RequestRefusedError: a field is malformed.
    """
    account, mark = fields.get(ACCOUNT_FIELD), fields.get(MARK_FIELD, "on")
    if account is not None and not isinstance(account, str):
        raise RequestRefusedError(f"{ACCOUNT_FIELD}: expected text, got {type(account).__name__}")
    if mark not in ("on", "off"):
        raise RequestRefusedError(f'{MARK_FIELD}: expected "on" or "off", got {printable(mark)!r}')
    try:
        return Ticket(account=account, mark=mark == "on")
    except UsageError as error:
        raise RequestRefusedError(f"{ACCOUNT_FIELD}: {error}") from None


def _tag(body: str, key: Secret) -> str:
    tag = hmac.new(key.reveal(), body.encode(), hashlib.sha256).digest()[:16]
    return base64.urlsafe_b64encode(tag).decode().rstrip("=")
