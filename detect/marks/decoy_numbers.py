"""Numbers that anyone can draw again: decoy keys of other schemes, and public fingerprints of their parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from watermark.errors import UsageError

__all__ = ["decoy_like", "decoy_number", "fingerprint_of"]

#: Fewest bits of a decoy: a shorter key was chosen by somebody, and no rank says anything of it.
_FEWEST_BITS = 16

_LABEL = b"taggant/1/decoy\0"


def decoy_number(scheme: str, *, seed: int, index: int, bits: int) -> int:
    """Return a number of *bits* bits (at most 64): the first of SHA-256(label + scheme + le64(seed) + le64(index)).

    Raises:
        UsageError: *seed* has more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"decoy seed: expected 0 to {2**64 - 1}, got {seed}")
    parts = _LABEL, scheme.encode(), b"\0", seed.to_bytes(8, "little"), index.to_bytes(8, "little")
    return int.from_bytes(hashlib.sha256(b"".join(parts)).digest()[:8], "big") >> (64 - bits)


def decoy_like(key: int, scheme: str, *, seed: int, index: int) -> int:
    """Return a decoy of as many bits as *key*: hashes that multiply and compare treat short and long keys unlike.

    The rank among such decoys is valid for a key drawn evenly from all of its length. At least 16 bits.

    Raises:
        UsageError: *seed* has more than 64 bits.
    """
    bits = max(_FEWEST_BITS, key.bit_length())
    return (1 << (bits - 1)) | decoy_number(scheme, seed=seed, index=index, bits=bits - 1)


def fingerprint_of(parameters: Mapping[str, object]) -> str:
    """Return the hexadecimal SHA-256 of the RFC 8785 JSON of *parameters*, which hold no key."""
    import rfc8785

    return hashlib.sha256(rfc8785.dumps(dict(parameters))).hexdigest()
