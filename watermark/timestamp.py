"""External timestamps (RFC 3161): another party's word that some bytes existed at a time.

A token is taken over the signed head of a commitment log (`watermark.commitment_log`); it fixes every entry below it.
Wants the extra ``timestamp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from watermark.errors import KeyringError, LedgerError, MissingExtraError, UsageError, VerificationError, printable

__all__ = ["TimestampRoots", "take_timestamp"]

#: Bytes of a reply that are read; a token is a few kB.
_MAX_REPLY: Final = 1 << 20
_SECONDS: Final = 30.0


def take_timestamp(message: bytes, *, url: str) -> bytes:
    """Ask an authority for a token over *message* and return its reply, checked to be one over these bytes.

    Does not check the authority's certificate: `TimestampRoots.verify` does.

    Raises:
        MissingExtraError: rfc3161-client or httpx is not installed.
        UsageError: *url* is no http or https address.
        LedgerError: the authority can't be reached, or its reply is no token over these bytes.
    """
    client = _library()
    try:
        import httpx
    except ImportError:
        raise MissingExtraError(_MISSING) from None
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"{printable(url, 80)}: expected the http(s) address of a timestamping authority")
    request = client.TimestampRequestBuilder().data(message).hash_algorithm(client.HashAlgorithm.SHA256).build()
    reply = bytearray()
    try:
        headers = {"Content-Type": "application/timestamp-query"}
        with httpx.stream("POST", url, content=request.as_bytes(), headers=headers, timeout=_SECONDS) as response:
            if response.status_code != 200:
                raise LedgerError(f"{printable(url, 80)}: expected a timestamp, got HTTP {response.status_code}")
            for chunk in response.iter_bytes():
                reply += chunk
                if len(reply) > _MAX_REPLY:
                    raise LedgerError(f"{printable(url, 80)}: expected a timestamp, got more than 1 MiB")
    except httpx.HTTPError as error:
        raise LedgerError(f"{printable(url, 80)}: no timestamp: {type(error).__name__}") from None
    try:
        info = _decoded(bytes(reply)).tst_info
        fits = info.nonce == request.nonce and info.message_imprint.message == request.message_imprint.message
    except VerificationError:
        fits = False
    if not fits:
        raise LedgerError(f"{printable(url, 80)}: its reply is no token over what was sent")
    return bytes(reply)


@dataclass(frozen=True, slots=True)
class TimestampRoots:
    """The root certificates of authorities that a verifier trusts."""

    certificates: Sequence[Any]

    @classmethod
    def load(cls, path: Path) -> TimestampRoots:
        """Read a PEM file.

        Raises:
            KeyringError: it cannot be read, or holds no certificate.
        """
        from cryptography import x509

        try:
            return cls(tuple(x509.load_pem_x509_certificates(path.read_bytes())))
        except OSError as error:
            raise KeyringError(f"{printable(path)}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise KeyringError(f"{printable(path)}: expected certificates in PEM") from None

    def verify(self, token: bytes, message: bytes) -> datetime:
        """Check that a token is over *message* and by an authority under one of these roots; return its time.

        Raises:
            VerificationError: it is not.
            MissingExtraError: rfc3161-client is not installed.
        """
        client = _library()
        reply = _decoded(token)
        for certificate in self.certificates:
            try:
                client.VerifierBuilder().add_root_certificate(certificate).build().verify_message(reply, message)
            except (client.VerificationError, ValueError):
                continue
            when: datetime = reply.tst_info.gen_time
            return when.astimezone(UTC)
        raise VerificationError("timestamp: not over these bytes, or not by an authority under the roots given")


_MISSING: Final = "timestamps want the extra: pip install 'taggant[timestamp]'"


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError:
        raise MissingExtraError(_MISSING) from None
    return rfc3161_client


def _decoded(token: bytes) -> Any:
    try:
        return _library().decode_timestamp_response(token)
    except ValueError:
        raise VerificationError("timestamp: expected an RFC 3161 response") from None
