"""The log of commitments: what a publisher fixed, in which order, under one signature a step.

A log is a folder that is kept in git and published as a whole::

    entries.jsonl     a leaf a line: its RFC 8785 JSON, without the newline
    checkpoint        the newest signed head (C2SP tlog-checkpoint); its origin is the key's name
    checkpoints/N     the signed head of each size N, and N.tsr, the RFC 3161 token over it if there is one

The leaves (RFC 6962 section 2.1 hashes them) are objects with a ``type`` and a ``time``::

    taggant/commitment/1   scope, params, fingerprint, commitments (65: `ScopeKeys.commitments`)
    taggant/activation/1   scope, fingerprint, commitment (hash of its leaf), activation (64 hex digits or null), source
    taggant/state/1        scope, fingerprint, state: retired, compromised or destroyed
    taggant/revealed/1     scope, fingerprint, lanes
    taggant/envelope/1     kind (plan, scores, opening), sha256 of the signed file, plan: sha256 of the plan that it
                           belongs to (null: it is the plan)

Each commitment leaf is one *root*: a p-value of a scope in this log is multiplied by their number and by that of the
plans, since its owner might have tried that many keys in that many studies. The order of leaves is the order in time as
far as the log's own word goes; an external timestamp of a head is what shows it to those who don't trust the publisher.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import rfc8785

from watermark.checkpoint import Checkpoint, LogProof
from watermark.errors import LedgerError, UsageError, VerificationError, printable
from watermark.keys import NO_ACTIVATION, Params, ScopeKeys
from watermark.life_cycle import parse_activation
from watermark.merkle import Tree, leaf_hash, tree_of
from watermark.prf import LANES
from watermark.signed_note import NoteSigner, NoteVerifier
from watermark.whole_file import write_whole

__all__ = [
    "COMMITMENT",
    "ENVELOPE",
    "ActivationSource",
    "CommitmentLog",
    "Leaf",
    "activation_leaf",
    "commitment_leaf",
    "envelope_leaf",
    "now",
    "params_from_json",
    "read_entries",
    "revealed_leaf",
    "state_leaf",
    "tree_of_entries",
]

COMMITMENT: Final = "taggant/commitment/1"
ACTIVATION: Final = "taggant/activation/1"
STATE: Final = "taggant/state/1"
REVEALED: Final = "taggant/revealed/1"
ENVELOPE: Final = "taggant/envelope/1"

_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    COMMITMENT: frozenset({"type", "time", "scope", "params", "fingerprint", "commitments"}),
    ACTIVATION: frozenset({"type", "time", "scope", "fingerprint", "commitment", "activation", "source"}),
    STATE: frozenset({"type", "time", "scope", "fingerprint", "state"}),
    REVEALED: frozenset({"type", "time", "scope", "fingerprint", "lanes"}),
    ENVELOPE: frozenset({"type", "time", "kind", "sha256", "plan"}),
}
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_HEX: Final = re.compile(r"[0-9a-f]{64}")

#: Bytes of a log that are read. A root is 5 kB.
MAX_BYTES: Final = 64 << 20

#: Take an RFC 3161 token over some bytes.
Timestamper = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One entry of a log."""

    index: int
    data: bytes
    """Its canonical JSON: what is hashed."""
    value: Mapping[str, Any]

    @property
    def type(self) -> str:
        """The kind of entry."""
        return str(self.value["type"])

    @property
    def hash(self) -> str:
        """The leaf's hash, hexadecimal."""
        return leaf_hash(self.data).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationSource:
    """Where the randomness of an activation came from."""

    kind: str
    """"beacon" or "nonce"."""
    name: str
    """The beacon's, or the auditor's."""
    value: str
    """As it was published: 64 hexadecimal digits are taken as they are, anything else is hashed (SHA-256)."""
    round: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("beacon", "nonce"):
            raise UsageError(f"source of randomness: expected a beacon or a nonce, got {printable(self.kind, 40)!r}")
        if not self.name or not self.value or len(self.value) > 4096 or len(self.name) > 255:
            raise UsageError("source of randomness: expected a name and a value of 1 to 4,096 characters")

    @property
    def activation(self) -> bytes:
        """The 32 bytes that go into the keys."""
        if re.fullmatch("[0-9a-fA-F]{64}", self.value):
            return parse_activation(self.value)
        return sha256(self.value.encode()).digest()

    def to_json(self) -> dict[str, Any]:
        """Return it as a leaf holds it."""
        return {"kind": self.kind, "name": self.name, "round": self.round, "value": self.value}


def now() -> str:
    """Return the time as leaves have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def commitment_leaf(keys: ScopeKeys) -> dict[str, Any]:
    """Return the leaf that commits to a scope's seeds."""
    return {
        "type": COMMITMENT,
        "time": now(),
        "scope": keys.name,
        "params": json.loads(keys.params.canonical()),
        "fingerprint": keys.fingerprint,
        "commitments": keys.commitments(),
    }


def activation_leaf(committed: Leaf, source: ActivationSource | None) -> dict[str, Any]:
    """Return the leaf that activates a scope; without a *source* its keys' randomness can't be verified."""
    return {
        "type": ACTIVATION,
        "time": now(),
        "scope": committed.value["scope"],
        "fingerprint": committed.value["fingerprint"],
        "commitment": committed.hash,
        "activation": None if source is None else source.activation.hex(),
        "source": None if source is None else source.to_json(),
    }


def state_leaf(keys: ScopeKeys, state: str) -> dict[str, Any]:
    """Return the leaf of a change of state."""
    return {"type": STATE, "time": now(), "scope": keys.name, "fingerprint": keys.fingerprint, "state": state}


def revealed_leaf(keys: ScopeKeys, lanes: Sequence[int]) -> dict[str, Any]:
    """Return the leaf that says which lanes are opened from now on."""
    return {
        "type": REVEALED,
        "time": now(),
        "scope": keys.name,
        "fingerprint": keys.fingerprint,
        "lanes": sorted(lanes),
    }


def envelope_leaf(kind: str, digest: str, *, plan: str | None) -> dict[str, Any]:
    """Return the leaf that fixes a signed file; *plan* is the digest of the plan's, None for the plan itself."""
    return {"type": ENVELOPE, "time": now(), "kind": kind, "sha256": digest, "plan": plan}


def params_from_json(value: Mapping[str, Any]) -> Params:
    """Return the parameters of a commitment leaf.

    Raises:
        VerificationError: they are none.
    """
    try:
        params = Params(**{**value, "special_ids": tuple(value["special_ids"])})
        same = json.loads(params.canonical()) == value
    except (KeyError, TypeError, ValueError, UsageError):
        same = False
    if not same:
        raise VerificationError("commitment log: a commitment whose parameters are none of this version")
    return params


def read_entries(content: bytes) -> list[Leaf]:
    """Return the leaves of an entries file, each checked for its form.

    Raises:
        VerificationError: a line is no leaf; the message names it.
    """
    if len(content) > MAX_BYTES:
        raise VerificationError(f"commitment log: expected at most {MAX_BYTES >> 20} MiB")
    if content and not content.endswith(b"\n"):
        raise VerificationError("commitment log: its last line has no end: it was cut")
    leaves = []
    for index, data in enumerate(content.split(b"\n")[:-1]):
        try:
            value = json.loads(data)
            if bytes(rfc8785.dumps(value)) != data or not isinstance(value, dict):
                raise ValueError
            _check_leaf(value)
        except (ValueError, KeyError, TypeError, RecursionError, rfc8785.CanonicalizationError):
            raise VerificationError(
                f"commitment log: line {index + 1}: expected a leaf of this version in canonical JSON, found "
                f"{printable(data[:60].decode('utf-8', 'replace'), 60)!r}"
            ) from None
        leaves.append(Leaf(index=index, data=data, value=value))
    return leaves


def tree_of_entries(leaves: Sequence[Leaf]) -> Tree:
    """Return the Merkle tree of a log."""
    return tree_of([leaf_hash(leaf.data) for leaf in leaves])


class CommitmentLog:
    """A log's folder. One process writes at a time; every step is on the disk before the call returns.

    Args:
        folder: of the log; made with the first entry.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"CommitmentLog({str(self.folder)!r})"

    def entries(self) -> list[Leaf]:
        """Return the leaves; none for a log that is not there yet.

        Raises:
            LedgerError: the folder cannot be read.
            VerificationError: the file holds something else.
        """
        return read_entries(self._read("entries.jsonl"))

    def checkpoint(self) -> str:
        """Return the newest signed head.

        Raises:
            UsageError: nothing was logged yet.
        """
        note = self._read("checkpoint").decode("utf-8", "replace")
        if not note:
            raise UsageError(f"{printable(self.folder)}: nothing was committed to this log yet: taggant keys commit")
        return note

    def prove(self, index: int) -> LogProof:
        """Return the proof that leaf *index* is in the log as of its newest head."""
        leaves = self.entries()
        return LogProof(
            index=index,
            path=tuple(tree_of_entries(leaves).inclusion(index)),
            note=self.checkpoint(),
            leaf=leaves[index].data,
        )

    def commitment(self, scope: str, fingerprint: str) -> Leaf:
        """Return the commitment of a scope.

        Raises:
            UsageError: there is none.
        """
        for leaf in reversed(self.entries()):
            if leaf.type == COMMITMENT and leaf.value["scope"] == scope and leaf.value["fingerprint"] == fingerprint:
                return leaf
        raise UsageError(
            f"{printable(self.folder)}: no commitment of scope {scope} in this log: "
            f"taggant keys commit --scope {scope} --log {printable(self.folder)}"
        )

    def timestamp(self, take: Timestamper) -> Path:
        """Keep an RFC 3161 token over the newest signed head, and return its file.

        Raises:
            UsageError: nothing was logged yet.
        """
        note = self.checkpoint()
        size = Checkpoint.parse_unverified(note).size
        self._write(f"checkpoints/{size}.tsr", take(note.encode()))
        return self.folder / "checkpoints" / f"{size}.tsr"

    def timestamps(self) -> dict[int, tuple[bytes, bytes]]:
        """Return, for each size whose head has a token, the signed head and the token."""
        sizes = sorted(int(path.stem) for path in (self.folder / "checkpoints").glob("*.tsr") if path.stem.isdecimal())
        return {size: (self._read(f"checkpoints/{size}"), self._read(f"checkpoints/{size}.tsr")) for size in sizes}

    def append(self, value: Mapping[str, Any], signer: NoteSigner) -> Leaf:
        """Append a leaf and sign the new head.

        Args:
            value: from one of the functions above.
            signer: the publisher's key, which names the log.

        Raises:
            LedgerError: the folder cannot be written, or another process writes to it.
            VerificationError: the entries are not those that the head was signed over, or by another key.
        """
        _check_leaf(value)
        data = bytes(rfc8785.dumps(dict(value)))
        with self._locked():
            leaves = self._checked(signer.verifier())
            leaf = Leaf(index=len(leaves), data=data, value=value)
            leaves.append(leaf)
            content = b"".join(each.data + b"\n" for each in leaves)
            note = Checkpoint(signer.name, len(leaves), tree_of_entries(leaves).root()).sign(signer)
            # The entries first: a head without its leaf would be a lie, a leaf without its head is cut off next time.
            self._write("entries.jsonl", content)
            self._write(f"checkpoints/{len(leaves)}", note.encode())
            self._write("checkpoint", note.encode())
        return leaf

    def _checked(self, verifier: NoteVerifier) -> list[Leaf]:
        """Return the leaves below the signed head; one that a crash left above it was never published."""
        content, note = self._read("entries.jsonl"), self._read("checkpoint").decode("utf-8", "replace")
        if not note:
            if content.count(b"\n") > 1:
                raise VerificationError(f"{printable(self.folder)}: entries without a signed head: restore it from git")
            return []
        head = Checkpoint.open(note, [verifier])
        leaves = read_entries(content)[: head.size]
        if len(leaves) < head.size or tree_of_entries(leaves).root() != head.root:
            raise VerificationError(
                f"{printable(self.folder)}: the entries are not those that the head of size {head.size} was signed "
                "over: they were edited or cut; restore them from git"
            )
        return leaves

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(f"{printable(self.folder)}: cannot write the log: {error.strerror}") from None
        try:
            if sys.platform != "win32":
                import fcntl

                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise LedgerError(f"{printable(self.folder)}: another process writes to this log") from None
            yield
        finally:
            os.close(descriptor)

    def _read(self, name: str) -> bytes:
        try:
            with open(self.folder / name, "rb") as file:
                return file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise LedgerError(f"{printable(self.folder / name)}: cannot be read: {error.strerror}") from None

    def _write(self, name: str, content: bytes) -> None:
        write_whole(self.folder / name, content, what="the log")


def _check_leaf(value: Mapping[str, Any]) -> None:
    """Check a leaf's form.

    Raises:
        ValueError: it is none.
    """
    kind = value["type"]
    if set(value) != _FIELDS[kind] or not _TIME.fullmatch(value["time"]):
        raise ValueError("fields")
    digests = [value[name] for name in ("fingerprint", "commitment", "sha256") if name in value]
    if kind == COMMITMENT:
        digests += value["commitments"]
        if len(value["commitments"]) != LANES + 1:
            raise ValueError("commitments")
        params_from_json(value["params"])
    elif kind == ACTIVATION:
        source = value["source"]
        if (source is None) != (value["activation"] is None):
            raise ValueError("source")
        if source is not None:
            if set(source) != {"kind", "name", "round", "value"} or type(source["round"]) not in (int, type(None)):
                raise ValueError("source")
            if ActivationSource(**source).activation.hex() != value["activation"]:
                raise ValueError("activation")
            if value["activation"] == NO_ACTIVATION.hex():
                raise ValueError("activation")
    elif kind == STATE and value["state"] not in ("retired", "compromised", "destroyed"):
        raise ValueError("state")
    elif kind == REVEALED:
        lanes = value["lanes"]
        if not lanes or sorted(set(lanes)) != lanes or not all(type(j) is int and 0 <= j < LANES for j in lanes):
            raise ValueError("lanes")
    elif kind == ENVELOPE:
        if value["kind"] not in ("plan", "scores", "opening") or (value["plan"] is None) != (value["kind"] == "plan"):
            raise ValueError("kind")
        digests += [] if value["plan"] is None else [value["plan"]]
    if not all(isinstance(digest, str) and _HEX.fullmatch(digest) for digest in digests):
        raise ValueError("digest")
