"""What every engine adapter holds: which requests are marked, how, and what became of each token.

An adapter asks `Marker.admit` once a request and hands what it gets to `Marker.bias` at every step::

    marker = Marker(ServingConfig.from_environment())
    request = marker.admit(fields, strength=before_temperature(temperature))   # 4xx: RequestRefusedError
    marker.bias(logits, responses, requests)                                   # in place, every step

A request keeps the scope under which it was admitted; a scope that is activated or retired in the key file
meanwhile is taken up by the requests that come after (`Marker.refresh`), without a restart.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from watermark.accounts import WatchedAccounts
from watermark.counts import Counts
from watermark.errors import KeyringError, TaggantError, TokenizerError, UsageError, printable
from watermark.green_list import GreenList, Outcome
from watermark.keyring import Keyring
from watermark.keys import ScopeKeys, Secret
from watermark.serving import FieldTrust, Policy, ServingConfig
from watermark.ticket import (
    ACCOUNT_FIELD,
    MARK_FIELD,
    PREFIX,
    SCOPE_FIELD,
    TICKET_FIELD,
    RequestRefusedError,
    Ticket,
    open_ticket,
    process_key,
    read_ingress_key,
    read_plain_fields,
)

__all__ = ["UNMARKED", "Marker", "RequestMark"]

log = logging.getLogger("taggant")

#: The largest factor on delta: delta times it is still a float32. Not every engine bounds a client's temperature.
_MAX_STRENGTH: Final = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMark:
    """How one request is marked: what `Marker.admit` decided."""

    green_list: GreenList | None = None
    """None: it is served unmarked."""
    account: str | None = None
    strength: float = 1.0
    """Factor on delta."""
    reason: str | None = None
    """Why it is served unmarked: "off" (the ingress says so), "policy" (nothing is marked here), "no active scope"."""

    @property
    def marked(self) -> bool:
        """Whether the request's answer is marked."""
        return self.green_list is not None

    @property
    def scope(self) -> str | None:
        """The name of the scope under which it is marked."""
        return None if self.green_list is None else self.green_list.scope.name


#: A row that nobody asked for: a slot of a batch that is empty.
UNMARKED = RequestMark(reason="off")


class Marker:
    """Admit requests and bias batches by a `ServingConfig`.

    Raises:
        KeyringError: the key file is missing, unsafe or malformed, or no scope may mark and the policy is "required".
        UsageError: the scope is not in it.

    Thread-safe: requests are admitted in one thread and batches biased in another.
    """

    def __init__(self, config: ServingConfig) -> None:
        self.config = config
        self.counts = Counts()
        self._green_lists: dict[tuple[str, str], GreenList] = {}
        self._by_name: dict[str, GreenList] = {}
        self._lock = threading.Lock()
        self._current: GreenList | None = None
        self._latest: GreenList | None = None
        #: Of the engine where it can tell, else of the first scope: a scope for another one is never taken up.
        self._tokenizer: str | None = None
        self._seen: tuple[int, int, int] | None = None
        self._accounts: WatchedAccounts | None = None
        self._ingress_key: Secret = read_ingress_key(config.ingress.key) if config.ingress.key else process_key()
        if config.fields is FieldTrust.PLAIN and config.ingress.accounts is not None:
            self._accounts = WatchedAccounts(config.ingress.accounts, interval=config.refresh)
        if config.policy is not Policy.OFF:
            self._take_up()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        scope = None if self._current is None else self._current.scope.name
        return f"Marker(scope={scope!r}, policy={self.config.policy.value!r}, shadow={self.config.shadow})"

    @property
    def green_list(self) -> GreenList | None:
        """The green list under which requests are admitted now; None if nothing is marked."""
        return self._current

    def admit(
        self, fields: Mapping[str, object] | None, *, strength: float = 1.0, verified: bool = False
    ) -> RequestMark:
        """Decide how a request is marked. Refusals are counted; what is admitted is counted by `took_on`.

        Args:
            fields: the request's extra fields (vLLM's ``extra_args``); those that begin with ``taggant_`` are ours.
            strength: factor on delta (`watermark.green_list.before_temperature`).
            verified: the request was admitted by another process of this server a moment ago; its ticket is not
                checked again, and it is marked under the scope that this process names in the field `SCOPE_FIELD`
                (`decided_fields`), or under the current one, even if that was retired meanwhile.

        Raises:
            RequestRefusedError: a field is malformed, forged or unknown; no account where one is required; or no scope
                may mark now and the policy is "required".
        """
        try:
            return self._admitted(fields or {}, strength, verified)
        except RequestRefusedError:
            self.counts.requests[None, "refused"] += 1
            raise

    def refuse_if(self, reason: str | None, *, status: int = 400) -> None:
        """Refuse a request that the engine's adapter cannot mark, and count it; None as the reason lets it pass.

        Raises:
            RequestRefusedError: there is a reason.
        """
        if reason is not None:
            self.counts.requests[None, "refused"] += 1
            raise RequestRefusedError(reason, status=status)

    def decided_fields(self, fields: Mapping[str, object] | None, request: RequestMark) -> dict[str, object]:
        """Return a request's fields as the processes that sample for it are to have them: with its scope.

        Where several processes sample for one request (tensor parallelism), each takes up a changed key file at
        its own time; what decides is the one that admitted the request.
        """
        return {**(fields or {}), SCOPE_FIELD: request.scope or ""}

    def took_on(self, request: RequestMark) -> None:
        """Count a request that the engine has begun to answer (it may be admitted in two processes, and again)."""
        self.counts.requests[request.scope, request.reason or "marked"] += 1

    def _admitted(self, fields: Mapping[str, object], strength: float, verified: bool) -> RequestMark:
        ticket = self._ticket(fields, verified)
        if self.config.policy is Policy.OFF:
            return RequestMark(account=ticket.account, reason="policy")
        if not ticket.mark:
            return RequestMark(account=ticket.account, reason="off")
        if self.config.require_account and ticket.account is None:
            raise RequestRefusedError("this server answers for known accounts only: send your API key", status=401)
        if verified:
            current = self._decided(fields.get(SCOPE_FIELD, ticket.scope))
        else:
            current = self._current if ticket.scope is None else self._asked_for(ticket.scope)
        if current is None:
            if self.config.policy is Policy.REQUIRED:
                raise RequestRefusedError(
                    "no scope of this server's keyring is active, and answers must be marked: the operator activates "
                    "one with taggant keys activate",
                    status=503,
                )
            return RequestMark(account=ticket.account, reason="no active scope")
        if not 0 <= strength <= _MAX_STRENGTH:
            raise RequestRefusedError("temperature: expected a number of 0 to 1e30")
        return RequestMark(green_list=current, account=ticket.account, strength=strength)

    def _decided(self, name: object) -> GreenList | None:
        """Return the green list that the process which admitted a request has named."""
        if name == "":
            return None
        if name is not None:
            named = self._named(name)
            if named is not None:
                return named
            log.error("scope %s: marked under in another process, and not to be had here", printable(name))
        return self._current or self._latest

    def _asked_for(self, name: str) -> GreenList:
        """Return the green list that a ticket names, so that what the ingress records is what marks."""
        named = self._named(name)
        if named is None:
            raise RequestRefusedError(
                f"scope {name}: the ingress marks under it, and this server's key file has no such active scope: give "
                "both the same file",
                status=503,
            )
        return named

    def _named(self, name: object) -> GreenList | None:
        if name not in self._by_name:
            self._look()  # The other process has seen a change of the key file that this one has not.
        return self._by_name.get(str(name))

    def bias(
        self,
        logits: npt.NDArray[Any],
        responses: Sequence[Sequence[int] | npt.NDArray[np.uint32]],
        requests: Sequence[RequestMark],
    ) -> None:
        """Add each request's delta to the green logits of its row, in place. Rows that are not marked keep their bits.

        Args:
            logits: (B, V), as `GreenList.bias` takes them.
            responses: the ids so far of each row's response; only the last h are looked at.
            requests: what `admit` returned for each row.

        Raises:
            ValueError: a response holds a placeholder of a token that the engine has not sampled yet.
        """
        by_list: dict[GreenList | None, list[int]] = {}
        for b, request in enumerate(requests):
            by_list.setdefault(request.green_list, []).append(b)
        for green_list, chosen in by_list.items():
            if green_list is None:
                self.counts.tokens[None, Outcome.OFF] += len(chosen)
                continue
            windows, whole = green_list.windows_of([responses[b] for b in chosen])
            strength = np.array([requests[b].strength for b in chosen], dtype=np.float32)
            if len(chosen) < len(requests):  # Rows of another scope, or of none, are masked, and not copied.
                windows, whole, strength = (_spread(part, chosen, len(requests)) for part in (windows, whole, strength))
            target = logits.copy() if self.config.shadow else logits
            accounts = [request.account for request in requests]
            outcomes = green_list.bias(target, windows, marked=whole, accounts=accounts, strength=strength)
            self.counts.add(green_list.scope.name, outcomes[chosen], shadow=self.config.shadow)

    def check_tokenizer(self, digest: str, name: str) -> None:
        """Refuse to mark for another tokenizer than the scope's, now and when the key file changes.

        Raises:
            TokenizerError: *digest* (`watermark.tokenizer.Tokenizer.digest`) is not that of the scope.
        """
        if self._current is not None and self._current.scope.params.tokenizer != digest:
            raise TokenizerError(
                f"scope {self._current.scope.name} was made for another tokenizer than {name}'s "
                f"(expected digest {self._current.scope.params.tokenizer[:16]}…, got {digest[:16]}…): make a scope for "
                "it with `taggant keys create --tokenizer`, or name the right tokenizer.json in the configuration"
            )
        self._tokenizer = digest

    def refresh(self) -> None:
        """Look whether the key file has changed and take it up; write the metrics. A bad file changes nothing."""
        self._look()
        if self.config.metrics is not None:
            self.counts.write(self.config.metrics)

    def watch(self) -> None:
        """Call `refresh` every so many seconds in a thread of its own, until `close`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="taggant-refresh", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop watching, and write the metrics a last time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.config.metrics is not None:
            self.counts.write(self.config.metrics)

    def _watch(self) -> None:
        while not self._stop.wait(self.config.refresh):
            try:
                self.refresh()
            except Exception:
                log.exception("taggant: refresh failed; it is tried again")

    def _look(self) -> None:
        if self.config.policy is Policy.OFF or self._identity() == self._seen:
            return
        with self._lock:
            if self._identity() == self._seen:
                return
            try:
                self._take_up()
            except TaggantError as error:
                self._seen = self._identity()  # Said once, not at every look.
                self.counts.reload_errors += 1
                log.error("the key file changed and was not taken up; the earlier keys stay in use: %s", error)
            else:
                log.info("the key file changed: %r", self)

    def _ticket(self, fields: Mapping[str, object], verified: bool) -> Ticket:
        ours = {name: value for name, value in fields.items() if name.startswith(PREFIX)}
        if verified:
            ours.pop(SCOPE_FIELD, None)
        if not ours:
            return Ticket()
        unknown = sorted(ours.keys() - {TICKET_FIELD, ACCOUNT_FIELD, MARK_FIELD})
        if unknown:
            raise RequestRefusedError(f"{', '.join(unknown)[:120]!r}: no field of this server's; leave it out")
        if self.config.fields is FieldTrust.SIGNED:
            if ours.keys() != {TICKET_FIELD}:
                raise RequestRefusedError(
                    f"{', '.join(sorted(ours))}: only this server's ingress says for whom a request is; leave it out",
                    status=403,
                )
            return open_ticket(ours[TICKET_FIELD], None if verified else self._ingress_key)
        if TICKET_FIELD in ours:
            raise RequestRefusedError(f'{TICKET_FIELD}: this server takes plain fields (fields = "plain")')
        ticket = read_plain_fields(ours)
        known = None if verified else self._accounts
        if known is not None and ticket.account is not None and ticket.account not in known.accounts():
            raise RequestRefusedError(f"{ACCOUNT_FIELD}: no such account: add it to {known.path}")
        return ticket

    def _take_up(self) -> None:
        assert self.config.keyring is not None  # noqa: S101 (the configuration has seen to it)
        seen = self._identity()
        keyring = Keyring.load(self.config.keyring)
        try:
            scope = keyring.scope_to_mark(self.config.scope)
        except (KeyringError, UsageError) as error:
            if self._seen is None and self.config.policy is Policy.REQUIRED:
                raise  # At the start; later, requests are refused until a scope is active.
            log.warning("nothing is marked now: %s", error)
            self._current, self._seen = None, seen
            return
        known = self._by_name.get(scope.name)
        if known is not None and not _same_keys(known.scope, scope):
            raise KeyringError(
                f"scope {scope.name}: its keys are not those that it had here before, with which requests under way "
                "are marked: give a new scope a name of its own, or restart the server"
            )
        # Another delta or other revealed lanes of the same name are another green list; an unchanged one stays.
        identity = (scope.name, scope.commitments()[0] + scope.activation.hex() + repr((scope.delta, scope.revealed)))
        if identity not in self._green_lists:
            self._green_lists[identity] = GreenList(scope, min_entropy=self.config.min_entropy)
        if self._tokenizer not in (None, scope.params.tokenizer):
            before = "the engine's" if self._latest is None else f"that of {self._latest.scope.name}"
            raise TokenizerError(f"scope {scope.name} is for another tokenizer than {before}")
        self._tokenizer = scope.params.tokenizer
        self._current = self._latest = self._by_name[scope.name] = self._green_lists[identity]
        self._seen = seen

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            status = Path(self.config.keyring or "").stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _same_keys(one: ScopeKeys, other: ScopeKeys) -> bool:
    return one.params == other.params and np.array_equal(one.lane_words(), other.lane_words())


def _spread(part: npt.NDArray[Any], chosen: Sequence[int], rows: int) -> npt.NDArray[Any]:
    """Return an array of *rows* rows that holds *part* in the rows *chosen*, and zeros."""
    spread = np.zeros((rows, *part.shape[1:]), dtype=part.dtype)
    spread[chosen] = part
    return spread
