"""Signed statements: in-toto Statement v1 in a DSSE v1 envelope, signed with Ed25519.

::

    envelope   RFC 8785 JSON {"payload": base64, "payloadType": PAYLOAD_TYPE,
                              "signatures": [{"keyid": hex, "sig": base64}, ...]}
    signed     PAE = "DSSEv1" SP len(type) SP type SP len(payload) SP payload        (lengths in decimal)
    payload    RFC 8785 JSON {"_type", "predicate", "predicateType", "subject": [{"digest": {"sha256"}, "name"}]}

The key is a note key (`watermark.signed_note`), the same that signs the log; ``keyid`` is its 4-byte id, a hint. An
envelope, and the payload in it, must equal its own canonical re-encoding, so that no byte of the file is free. Nothing
of a payload is to be believed before `Envelope.verify`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from detect.evidence.canonical import canonical, parse_canonical, sha256_hex
from watermark.errors import InputError, VerificationError
from watermark.signed_note import NoteSigner, NoteVerifier, base64_bytes, base64_text

__all__ = ["PAYLOAD_TYPE", "Envelope", "Statement", "pae", "predicate_type", "sign_statement"]

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"

#: Signatures of one envelope that are read.
_MAX_SIGNATURES: Final = 16


def predicate_type(kind: str) -> str:
    """Return the URI of a kind of predicate: "plan", "scores", "opening", "claim" or "verification"."""
    return f"urn:taggant:evidence:{kind}:v1"


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return the bytes that are signed (DSSE v1, "Pre-Authentication Encoding")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What an envelope says of which files."""

    kind: str
    """The predicate's: "plan", "scores", "opening", "claim", "verification"."""
    subject: Mapping[str, str]
    """Name of each file to its hexadecimal SHA-256."""
    predicate: Mapping[str, Any]

    def payload(self) -> bytes:
        """Return the canonical bytes."""
        return canonical(
            {
                "_type": _STATEMENT,
                "subject": [
                    {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(self.subject.items())
                ],
                "predicateType": predicate_type(self.kind),
                "predicate": dict(self.predicate),
            }
        )

    @classmethod
    def parse(cls, payload: bytes, *, kind: str) -> Statement:
        """Read a statement whose predicate is of this kind and of this version.

        Raises:
            InputError: it is none.
        """
        value = parse_canonical(payload, what=f"{kind} statement")
        if set(value) != {"_type", "subject", "predicateType", "predicate"} or value["_type"] != _STATEMENT:
            raise InputError(f"{kind} statement: expected an in-toto Statement v1")
        if value["predicateType"] != predicate_type(kind):
            raise InputError(f"{kind} statement: expected the predicate type {predicate_type(kind)!r}, found another")
        try:
            subject = {entry["name"]: entry["digest"]["sha256"] for entry in value["subject"]}
            whole = cls(kind=kind, subject=subject, predicate=value["predicate"])
            same = whole.payload() == payload
        except (TypeError, KeyError, ValueError):
            same = False
        if not same:
            raise InputError(f"{kind} statement: expected subjects with a name and a SHA-256 each, sorted, each once")
        return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload and who signed it: `parse`, then `verify`."""

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]
    """Key id (hexadecimal, a hint) and signature (64 bytes) of each."""

    def to_bytes(self) -> bytes:
        """Return the file."""
        return canonical(
            {
                "payload": base64_text(self.payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"keyid": keyid, "sig": base64_text(sig)} for keyid, sig in self.signatures],
            }
        )

    def digest(self) -> str:
        """Return the hexadecimal SHA-256 of the file."""
        return sha256_hex(self.to_bytes())

    @classmethod
    def parse(cls, data: bytes, *, what: str) -> Envelope:
        """Read an envelope, strictly. Nothing in it is verified yet.

        Raises:
            InputError: it is none, or not in canonical form.
        """
        value = parse_canonical(data, what=what)
        try:
            signatures = tuple((entry["keyid"], base64_bytes(entry["sig"])) for entry in value["signatures"])
            envelope = cls(payload=base64_bytes(value["payload"]), signatures=signatures)
            good = 1 <= len(signatures) <= _MAX_SIGNATURES and envelope.to_bytes() == data
        except (TypeError, KeyError, ValueError):
            good = False
        if not good:
            raise InputError(f"{what}: expected a DSSE envelope of an in-toto statement, with 1 to 16 signatures")
        return envelope

    def verify(self, verifier: NoteVerifier) -> None:
        """Check that *verifier*'s key signed the payload.

        Signatures of other keys are passed over; a wrong one of this key is an error even beside a right one.

        Raises:
            VerificationError: it did not.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        key = Ed25519PublicKey.from_public_bytes(verifier.public_key)
        signed = pae(self.payload)
        verified = False
        for keyid, signature in self.signatures:
            if keyid != verifier.key_id.hex():
                continue
            try:
                key.verify(signature, signed)
            except InvalidSignature:
                raise VerificationError(f"envelope: a signature of {verifier.name} is wrong") from None
            verified = True
        if not verified:
            raise VerificationError(f"envelope: not signed by {verifier.name}+{verifier.key_id.hex()}")


def sign_statement(statement: Statement, signers: Sequence[NoteSigner]) -> Envelope:
    """Return the envelope of a statement, signed by each of *signers*."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    payload = statement.payload()
    signed = pae(payload)
    return Envelope(
        payload=payload,
        signatures=tuple(
            (
                signer.verifier().key_id.hex(),
                Ed25519PrivateKey.from_private_bytes(signer.seed.reveal()).sign(signed),
            )
            for signer in signers
        ),
    )
