"""A log's signed head, and proofs that need nothing else: C2SP tlog-checkpoint and tlog-proof v1.

A *checkpoint* is a signed note of three lines: the log's origin, its size, the base64 of its root. Published, it
fixes every leaf below that size. A *tlog-proof* is a text with a leaf's index, its inclusion proof and a checkpoint;
Taggant puts the leaf itself into the proof's ``extra`` line, so that the file can be checked by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from watermark.errors import VerificationError, printable
from watermark.merkle import leaf_hash, verify_inclusion
from watermark.signed_note import NoteSigner, NoteVerifier, base64_bytes, base64_text, check_key_name, open_note

__all__ = ["Checkpoint", "LogProof"]

_FIRST_LINE: Final = "c2sp.org/tlog-proof@v1"
_NUMBER: Final = r"(0|[1-9][0-9]{0,18})"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log: what a signature of it is about."""

    origin: str
    """The log's unique name, e.g. "host-a.example/ledger"."""
    size: int
    """Leaves."""
    root: bytes
    """32 bytes."""

    def text(self) -> str:
        """Return the three lines that are signed."""
        return f"{check_key_name(self.origin)}\n{self.size}\n{base64_text(self.root)}\n"

    def sign(self, signer: NoteSigner) -> str:
        """Return the signed checkpoint.

        Does not check that it continues what was signed before: `watermark.ledger.reader.LedgerReader.sign` does.
        """
        return signer.sign(self.text())

    @classmethod
    def open(cls, note: str, verifiers: Sequence[NoteVerifier]) -> Checkpoint:
        """Return what a signed checkpoint says, once its log's signature is verified. Extension lines are passed over.

        A log's key bears the log's name (C2SP tlog-checkpoint): the key of one log says nothing of another.

        Raises:
            VerificationError: it is none, or not signed by that one of *verifiers* which is named like its origin.
        """
        checkpoint = cls.parse(open_note(note, verifiers))
        if checkpoint.origin not in {verifier.name for verifier in verifiers}:
            raise VerificationError(
                f"checkpoint: of the log {printable(checkpoint.origin)}, and no key of that name was given"
            )
        # Once more, with that log's keys alone: the signature may have been another's.
        open_note(note, [verifier for verifier in verifiers if verifier.name == checkpoint.origin])
        return checkpoint

    @classmethod
    def parse_unverified(cls, note: str) -> Checkpoint:
        """Return what a signed checkpoint says, signatures unread: for one's own, which is shown.

        Raises:
            VerificationError: it is none.
        """
        return cls.parse(note.rpartition("\n\n")[0] + "\n")

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a checkpoint's lines, unsigned.

        Raises:
            VerificationError: they are none.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]) or not re.fullmatch(_NUMBER, lines[1]):
            raise VerificationError(
                f"checkpoint: expected an origin, a size and a root, a line each, found {printable(text, 100)!r}"
            )
        try:
            root = base64_bytes(lines[2])
        except ValueError:
            root = b""
        if len(root) != 32:
            raise VerificationError(f"checkpoint: expected the base64 of a root, found {printable(lines[2], 60)!r}")
        return cls(lines[0], int(lines[1]), root)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProof:
    """That a leaf is in a log, with what is needed to check it offline."""

    index: int
    path: tuple[bytes, ...]
    """The inclusion proof, the leaf's sibling first: 32 bytes each."""
    note: str
    """The signed checkpoint."""
    leaf: bytes | None
    """The leaf's bytes (the ``extra`` line); not to be believed before `verify`."""

    def text(self) -> str:
        """Return the proof as a tlog-proof."""
        extra = [] if self.leaf is None else [f"extra {base64_text(self.leaf)}"]
        return "\n".join([_FIRST_LINE, *extra, f"index {self.index}", *map(base64_text, self.path), "", self.note])

    def to_json(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the proof as the commands print it; *checkpoint* is what its note says.

        Raises:
            VerificationError: the leaf is no JSON, as another kind of log may have it.
        """
        try:
            leaf = None if self.leaf is None else json.loads(self.leaf)
        except (ValueError, RecursionError):
            raise VerificationError("proof: it holds, and its leaf is no entry of a ledger: expected JSON") from None
        return {
            "index": self.index,
            "origin": checkpoint.origin,
            "size": checkpoint.size,
            "root": checkpoint.root.hex(),
            "leaf": leaf,
        }

    @classmethod
    def parse(cls, text: str) -> LogProof:
        """Read a tlog-proof, strictly. Nothing of it is verified yet.

        Raises:
            VerificationError: it is none.
        """
        head, _, note = text.partition("\n\n")
        lines = head.split("\n")
        leaf = None
        try:
            if lines.pop(0) != _FIRST_LINE:
                raise ValueError
            if lines[0].startswith("extra "):
                leaf = base64_bytes(lines.pop(0).removeprefix("extra "))
            found = re.fullmatch(f"index {_NUMBER}", lines.pop(0))
            path = tuple(base64_bytes(line) for line in lines)
            if found is None or not note or len(path) > 63 or any(len(value) != 32 for value in path):
                raise ValueError
        except (ValueError, IndexError):
            raise VerificationError(
                f"proof: expected {_FIRST_LINE!r}, an index, at most 63 hashes, an empty line and a signed checkpoint, "
                f"found {printable(text, 60)!r}"
            ) from None
        return cls(index=int(found[1]), path=path, note=note, leaf=leaf)

    def verify(self, verifiers: Sequence[NoteVerifier], *, leaf: bytes | None = None) -> Checkpoint:
        """Check the checkpoint's signature and that the leaf is in that tree; return the checkpoint.

        Args:
            verifiers: the keys that are trusted; those of the log.
            leaf: the leaf's bytes, where the proof does not bring them.

        Raises:
            VerificationError: the signature, the leaf or the path is wrong, or there is no leaf.
        """
        leaf = self.leaf if leaf is None else leaf
        if leaf is None:
            raise VerificationError("proof: it does not bring its leaf (no extra line): give the leaf")
        checkpoint = Checkpoint.open(self.note, verifiers)
        verify_inclusion(leaf_hash(leaf), index=self.index, size=checkpoint.size, proof=self.path, root=checkpoint.root)
        return checkpoint
