"""Signed notes (C2SP signed-note v1): a text that keys have signed, as a text that a person can read.

::

    <text, ending in a newline>

    — <key name> <base64 of the 4-byte key id and the Ed25519 signature>

Keys are written as Go's sumdb/note writes them: ``PRIVATE+KEY+<name>+<id, 8 hexadecimal digits>+<base64>`` for the
signer and ``<name>+<id>+<base64>`` for whoever verifies; the base64 holds the byte 0x01 (Ed25519) and 32 bytes of seed
or public key. A private key is in a file of its own, mode 0600, created with O_EXCL; nothing else holds it and nothing
prints it.

The text of a note is not to be believed before `NoteVerifier.open` returned it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from watermark.errors import KeyringError, UsageError, VerificationError, printable
from watermark.keys import Secret
from watermark.secret_file import check_mode, create_private, read_private

__all__ = [
    "NoteSigner",
    "NoteVerifier",
    "base64_bytes",
    "base64_text",
    "check_key_name",
    "create_note_key",
    "open_note",
]

_ED25519: Final = b"\x01"
_PRIVATE: Final = "PRIVATE+KEY+"

#: Signature lines that are read; the specification asks for at least 16.
_MAX_SIGNATURES: Final = 64
_MAX_NOTE: Final = 1 << 20


def check_key_name(name: str) -> str:
    """Return *name* if it can name a key or be a log's origin.

    Raises:
        UsageError: it is empty, over 255 characters, or holds white space, a plus sign or what does not print.
    """
    if not 1 <= len(name) <= 255 or "+" in name or not name.isprintable() or any(c.isspace() for c in name):
        raise UsageError(
            f"key name or origin {printable(name)!r}: expected 1 to 255 printing characters without white space or "
            "'+', e.g. 'host-a.example/ledger'"
        )
    return name


@dataclass(frozen=True, slots=True)
class NoteVerifier:
    """A public key that verifies notes: what is published.

    >>> NoteVerifier.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").name
    'PeterNeumann'
    """

    name: str
    public_key: bytes
    """32 bytes (RFC 8032)."""

    @property
    def key_id(self) -> bytes:
        """The first 4 bytes of SHA-256(name + newline + 0x01 + public key): a hint, no proof of identity."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64_text(_ED25519 + self.public_key)}"

    @classmethod
    def parse(cls, text: str) -> NoteVerifier:
        """Read a verifier key.

        Raises:
            KeyringError: it is none, or of another algorithm, or its id does not fit.
        """
        if text.startswith(_PRIVATE):
            raise KeyringError("expected a verifier key (NAME+ID+BASE64), found a private key: publish only the former")
        name, _, rest = text.strip().partition("+")
        found = re.fullmatch(r"([0-9a-f]{8})\+([A-Za-z0-9+/=]+)", rest)
        try:
            data = base64_bytes(found[2]) if found else b""
            verifier = cls(check_key_name(name), data[1:])
        except (ValueError, UsageError):
            found, data = None, b""
        if found is None or data[:1] != _ED25519 or len(data) != 33:
            raise KeyringError(
                f"verifier key {printable(text.strip(), 40)!r}: expected NAME+ID+BASE64 of an Ed25519 key, as "
                "`taggant ledger create-key` prints it"
            )
        if verifier.key_id.hex() != found[1]:
            raise KeyringError(
                f"verifier key {printable(name, 40)!r}: its id does not fit the key: it was cut or edited"
            )
        return verifier

    @classmethod
    def load(cls, given: str) -> NoteVerifier:
        """Read a verifier key from a file of that name, if there is one, or else from the text itself.

        Raises:
            KeyringError: it is none.
        """
        try:
            path = Path(given)
            return cls.parse(path.read_text(encoding="utf-8") if path.is_file() else given)
        except (OSError, ValueError):
            raise KeyringError(f"verifier key {printable(given, 80)!r}: cannot be read") from None

    def verify(self, text: str, signature: bytes) -> None:
        """Check an Ed25519 signature (RFC 8032) of *text*.

        Raises:
            VerificationError: it is not this key's.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            raise VerificationError(
                f"signed note: the signature of {printable(self.name)} is wrong: the text or the signature was changed"
            ) from None


@dataclass(frozen=True, slots=True)
class NoteSigner:
    """A private key that signs notes. Its repr shows the name alone."""

    name: str
    seed: Secret
    """32 bytes."""

    @classmethod
    def load(cls, path: Path) -> NoteSigner:
        """Read a private key's file.

        Raises:
            KeyringError: missing, readable by others, or no signer key.
        """
        content, mode = read_private(path, made_by="taggant ledger create-key")
        check_mode(path, mode)
        signer = _parsed_signer(content)
        if signer is None:
            # Nothing of the file goes into the message: it may be most of a key.
            raise KeyringError(f"{printable(path)}: not a signer key (PRIVATE+KEY+NAME+ID+BASE64 of an Ed25519 seed)")
        return signer

    def verifier(self) -> NoteVerifier:
        """Return the public key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        public = Ed25519PrivateKey.from_private_bytes(self.seed.reveal()).public_key()
        return NoteVerifier(self.name, public.public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return the signed note of *text*.

        Raises:
            ValueError: *text* does not end in a newline, or holds another control character or a surrogate.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if not text.endswith("\n") or _control(text):
            raise ValueError("a note's text ends in a newline and holds no other control character")
        signature = Ed25519PrivateKey.from_private_bytes(self.seed.reveal()).sign(text.encode())
        return f"{text}\n— {self.name} {base64_text(self.verifier().key_id + signature)}\n"


def create_note_key(path: Path, *, name: str) -> NoteSigner:
    """Draw an Ed25519 key and write it to a file, mode 0600.

    Args:
        path: the file to create; never overwritten.
        name: the key's name. A log's key is named like its origin.

    Raises:
        KeyringError: the file exists, or cannot be written.
        UsageError: *name* can name no key.
    """
    signer = NoteSigner(check_key_name(name), Secret(os.urandom(32)))
    line = f"{_PRIVATE}{name}+{signer.verifier().key_id.hex()}+{base64_text(_ED25519 + signer.seed.reveal())}\n"
    create_private(path, line)
    return signer


def open_note(note: str, verifiers: Sequence[NoteVerifier]) -> str:
    r"""Return the text of a note, final newline included, once a known key's signature is verified.

    Signatures of unknown keys are passed over, as the specification asks; a wrong one of a known key is an error even
    beside a right one.

    >>> peter = NoteVerifier.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    >>> open_note("Me.\n\n— Someone x08go/ZJ\n", [peter])
    Traceback (most recent call last):
        ...
    watermark.errors.VerificationError: signed note: no signature of PeterNeumann+c74f20a3

    Raises:
        VerificationError: not a signed note, or not signed by any of *verifiers*.
    """
    text, lines = _split(note)
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    verified = False
    for line in lines:
        found = re.fullmatch(r"— (\S+) ([A-Za-z0-9+/]+={0,2})", line)
        try:
            data = base64_bytes(found[2]) if found else b""
        except ValueError:
            data = b""
        if found is None or "+" in found[1] or len(data) < 5:
            raise VerificationError(f"signed note: expected '— NAME BASE64', found {printable(line, 60)!r}")
        verifier = known.get((found[1], data[:4]))
        if verifier is not None:
            verifier.verify(text, data[4:])
            verified = True
    if not verified:
        names = ", ".join(printable(f"{v.name}+{v.key_id.hex()}", 80) for v in verifiers) or "anyone: no key was given"
        raise VerificationError(f"signed note: no signature of {names}")
    return text


def _split(note: str) -> tuple[str, list[str]]:
    """Return a note's text and its signature lines."""
    if len(note) > _MAX_NOTE or _control(note):
        raise VerificationError("signed note: expected at most 1 MiB of text without control characters but newlines")
    text, gap, signatures = note.rpartition("\n\n")
    lines = signatures.removesuffix("\n").split("\n")
    if not gap or not signatures.endswith("\n") or not 1 <= len(lines) <= _MAX_SIGNATURES:
        raise VerificationError(
            f"signed note: expected a text, an empty line and 1 to {_MAX_SIGNATURES} signature lines, each ended by a "
            "newline"
        )
    return text + "\n", lines


def _control(text: str) -> bool:
    return any((c < " " and c != "\n") or "\ud800" <= c <= "\udfff" for c in text)


def _parsed_signer(content: bytes) -> NoteSigner | None:
    """Return the key, or None: the errors of the decoders would hold the content."""
    try:
        text = content.decode().removesuffix("\n")
    except UnicodeDecodeError:
        return None
    found = re.fullmatch(r"PRIVATE\+KEY\+([^+\s]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)", text)
    if found is None:
        return None
    try:
        data = base64_bytes(found[3])
    except ValueError:
        return None
    if data[:1] != _ED25519 or len(data) != 33:
        return None
    signer = NoteSigner(found[1], Secret(data[1:]))
    return signer if signer.verifier().key_id.hex() == found[2] else None


def base64_text(data: bytes) -> str:
    """Return the standard base64 of *data* (RFC 4648 section 4), padded."""
    return base64.b64encode(data).decode("ascii")


def base64_bytes(text: str) -> bytes:
    """Decode base64, strictly: one text for each value.

    Raises:
        ValueError: it is none, or not the canonical one.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
    if base64_text(data) != text:
        raise ValueError("not canonical base64")
    return data
