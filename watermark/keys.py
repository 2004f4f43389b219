r"""The key tree, scopes, fingerprints and commitments.

::

    root           32 random bytes
    scope key      HKDF(root,         "scope\0" + scope,        32)
    lane seed j    HKDF(scope key,    "lane\0" + one byte j,    32)   j = 0..63      committed
    account seed   HKDF(scope key,    "accounts\0",             32)                  committed
    activation     32 bytes of public randomness drawn after the commitments, or 32 zero bytes
    lane key j     HKDF(lane seed j,  "key\0" + activation,     16)
    account key    HKDF(account seed, "key\0" + activation,     32)
    code key       HKDF(account key,  "code\0",                 16)
    code word      HKDF(account key,  "account\0" + account id, 512)  bit i = byte[i // 8] >> (i % 8) & 1

HKDF is HKDF-SHA256 (RFC 5869) with salt "taggant/1"; the second argument is the info, the third the
length. Opening one lane's seed says nothing about another lane, the scope or the root. The activation
keeps whoever makes the key from trying keys, before committing, until one fits innocent text.

No secret is ever in a repr, a message or a pickle: `Secret` holds them, and nothing prints it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from watermark.errors import KeyringError, UsageError, printable
from watermark.prf import LANES, MAX_WINDOW, SUITE, green_below, key_words

__all__ = [
    "CODE_BITS",
    "NO_ACTIVATION",
    "Params",
    "ScopeKeys",
    "Secret",
    "account_bytes",
    "check_scope_name",
    "commitment",
    "hkdf",
    "scope_key",
]

#: Bits of an account's code word.
CODE_BITS: Final = 4096

#: The activation of a scope that was given no public randomness. Every report says so.
NO_ACTIVATION: Final = bytes(32)

_SALT: Final = b"taggant/1"
_COMMIT: Final = b"taggant/1/commit"
_SCOPE_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")


class Secret:
    r"""Hold secret bytes that no repr, message, comparison or pickle lets out.

    >>> Secret(b"\x01" * 32)
    Secret(32 bytes)
    """

    __slots__ = ("__value",)

    def __init__(self, value: bytes) -> None:
        self.__value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes. Whoever calls this answers for where they go."""
        return self.__value

    def __len__(self) -> int:
        return len(self.__value)

    def __repr__(self) -> str:
        return f"Secret({len(self.__value)} bytes)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """Derive *length* bytes with HKDF-SHA256 (RFC 5869 sections 2.2 and 2.3), salt "taggant/1".

    Does not check the entropy of *secret*: every caller passes 32 random bytes or what came of them.
    """
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=length, salt=_SALT, info=info).derive(secret)


def check_scope_name(name: str) -> str:
    """Return *name* if it can name a scope.

    Raises:
        UsageError: it is not 1-64 characters of a-z, 0-9, dot, underscore and hyphen.
    """
    if not _SCOPE_NAME.fullmatch(name):
        raise UsageError(
            f"scope name {printable(name)!r}: expected 1 to 64 characters of a-z, 0-9, '.', '_', '-', e.g. '2026-q4'"
        )
    return name


def account_bytes(account: str) -> bytes:
    """Return the bytes by which an account id is compared and derived: its UTF-8, not normalised.

    Raises:
        UsageError: empty, over 255 bytes, or with control characters, surrogates or outer white space.
    """
    try:
        encoded = account.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("account id: holds a surrogate, which has no UTF-8 form") from None
    if not 1 <= len(encoded) <= 255:
        raise UsageError(f"account id: expected 1 to 255 bytes of UTF-8, got {len(encoded)}")
    if account != account.strip() or any(unicodedata.category(c) == "Cc" for c in account):
        raise UsageError(f"account id {printable(account)!r}: control characters and outer white space are refused")
    return encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """What a server and a detector must agree on; its digest is the scope's fingerprint.

    Delta is not among them, since it changes nothing in detection.
    """

    tokenizer: str
    """Digest of the generating model's tokenizer, hexadecimal SHA-256 (`Tokenizer.digest`)."""
    special_ids: tuple[int, ...]
    """Ids that are never in a window, never biased and never scored; strictly increasing."""
    window: int = 2
    fleet_k: int = 64
    """Gamma of the fleet lanes in units of 1/256."""
    account_k: int = 128
    account_lanes: int = 16
    """16 (lanes 48..63) or 0 (all lanes are fleet lanes)."""
    suite: str = SUITE

    def __post_init__(self) -> None:
        if self.suite != SUITE:
            raise UsageError(f"suite {printable(self.suite)!r}: this version knows {SUITE}")
        if not 1 <= self.window <= MAX_WINDOW:
            raise UsageError(f"window: expected 1 to {MAX_WINDOW} tokens, got {self.window}")
        for name, k in (("fleet_k", self.fleet_k), ("account_k", self.account_k)):
            if not 1 <= k <= 255:
                raise UsageError(f"{name}: expected 1 to 255 (gamma is k/256), got {k}")
        if self.account_lanes not in (0, 16):
            raise UsageError(f"account_lanes: expected 0 or 16, got {self.account_lanes}")
        if not re.fullmatch(r"[0-9a-f]{64}", self.tokenizer):
            raise UsageError("tokenizer: expected the 64 hexadecimal digits of a tokenizer's digest")
        ids = self.special_ids
        if any(not 0 <= i < 2**32 for i in ids) or any(a >= b for a, b in pairwise(ids)):
            raise UsageError("special_ids: expected strictly increasing ids of 32 bits")

    def canonical(self) -> bytes:
        """Return the RFC 8785 JSON of the parameters."""
        import rfc8785

        return bytes(
            rfc8785.dumps(
                {
                    "suite": self.suite,
                    "window": self.window,
                    "fleet_k": self.fleet_k,
                    "account_k": self.account_k,
                    "account_lanes": self.account_lanes,
                    "tokenizer": self.tokenizer,
                    "special_ids": list(self.special_ids),
                }
            )
        )

    def fingerprint(self) -> str:
        """Return the hexadecimal SHA-256 of the canonical parameters."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def fleet_lanes(self) -> int:
        """How many lanes, from lane 0 on, carry the fleet's key."""
        return LANES - self.account_lanes

    def bounds(self) -> npt.NDArray[np.uint64]:
        """Return, for each lane, the bound below which ``u`` is green: uint64 of shape (64,)."""
        fleet, account = green_below(self.fleet_k), green_below(self.account_k)
        return np.array([fleet if j < self.fleet_lanes else account for j in range(LANES)], dtype=np.uint64)


def scope_key(root: Secret, name: str) -> Secret:
    """Derive the key of scope *name* from a keyring's root."""
    return Secret(hkdf(root.reveal(), b"scope\0" + check_scope_name(name).encode(), 32))


def commitment(scope: str, fingerprint: str, kind: str, seed: bytes, *, lane: int | None = None) -> str:
    """Return the hexadecimal commitment to one seed of a scope.

    SHA-256(L("taggant/1/commit") + L(scope) + L(fingerprint) + L(kind) + L(byte j, or empty) + L(seed))
    with L(x) = le32(length) + x. The seed is 32 random bytes, so the commitment hides it.

    Args:
        scope: the scope's name.
        fingerprint: the scope's, hexadecimal; hashed as its 32 bytes.
        kind: "lane" or "accounts".
        seed: 32 bytes.
        lane: 0..63 for kind "lane", None for "accounts".
    """
    if kind not in ("lane", "accounts") or (kind == "lane") != (lane is not None):
        raise ValueError(f'kind "lane" takes a lane and kind "accounts" none; got {kind!r} and {lane!r}')
    parts = (
        _COMMIT,
        scope.encode(),
        bytes.fromhex(fingerprint),
        kind.encode(),
        b"" if lane is None else bytes([lane]),
        seed,
    )
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in parts)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ScopeKeys:
    """One scope: its name, parameters, delta and activation, and its secret key.

    Everything below the scope key is derived when first asked for and kept.
    """

    name: str
    params: Params
    delta: float
    """What the server adds to green logits, in logits. Recorded, and of no matter to detection."""
    key: Secret
    activation: bytes = NO_ACTIVATION
    revealed: tuple[int, ...] = ()
    """Lanes whose seeds were opened: neither marked nor tested any more."""

    def __post_init__(self) -> None:
        check_scope_name(self.name)
        if len(self.key) != 32 or len(self.activation) != 32:
            raise KeyringError(f"scope {self.name}: expected a key and an activation of 32 bytes each")

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the parameters."""
        return self.params.fingerprint()

    @property
    def activated(self) -> bool:
        """Whether public randomness went into the keys after they were committed to."""
        return self.activation != NO_ACTIVATION

    def bounds(self) -> npt.NDArray[np.uint64]:
        """Return, for each lane, the bound below which ``u`` is green: uint64 (64,), 0 where it is revealed."""
        bounds = self.params.bounds()
        bounds[list(self.revealed)] = 0
        return bounds

    def lane_seed(self, lane: int) -> Secret:
        """Return the committed seed of one lane, 0..63."""
        return Secret(hkdf(self.key.reveal(), b"lane\0" + bytes([lane]), 32))

    def account_seed(self) -> Secret:
        """Return the committed seed of the account keys."""
        return Secret(hkdf(self.key.reveal(), b"accounts\0", 32))

    def lane_key(self, lane: int) -> Secret:
        """Return the 16-byte key of one lane."""
        return Secret(hkdf(self.lane_seed(lane).reveal(), b"key\0" + self.activation, 16))

    def lane_words(self) -> npt.NDArray[np.uint64]:
        """Return the SipHash key words of all lanes, secret: uint64 of shape (64, 2)."""
        return self._lane_words

    @cached_property
    def _lane_words(self) -> npt.NDArray[np.uint64]:
        return np.array([key_words(self.lane_key(lane).reveal()) for lane in range(LANES)], dtype=np.uint64)

    @cached_property
    def _account_key(self) -> Secret:
        return Secret(hkdf(self.account_seed().reveal(), b"key\0" + self.activation, 32))

    def code_key(self) -> Secret:
        """Return the 16-byte key that maps a window to a position of the code word."""
        return Secret(hkdf(self._account_key.reveal(), b"code\0", 16))

    def packed_code_word(self, account: str) -> npt.NDArray[np.uint8]:
        """Return an account's code word as it is derived: uint8 of shape (512,), read-only, bit i in byte i // 8.

        Raises:
            UsageError: *account* is no account id.
        """
        word = hkdf(self._account_key.reveal(), b"account\0" + account_bytes(account), CODE_BITS // 8)
        return np.frombuffer(word, dtype=np.uint8)

    def packed_code_words(self, accounts: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the code words of many accounts, as `packed_code_word` gives each: uint8 of shape (N, 512).

        Raises:
            UsageError: one is no account id.
        """
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

        # The extraction is the same for all.
        extracted = hmac.digest(_SALT, self._account_key.reveal(), "sha256")
        size = CODE_BITS // 8
        words = bytearray(size * len(accounts))
        for place, account in enumerate(accounts):
            expand = HKDFExpand(algorithm=SHA256(), length=size, info=b"account\0" + account_bytes(account))
            words[place * size : (place + 1) * size] = expand.derive(extracted)
        return np.frombuffer(words, dtype=np.uint8).reshape(len(accounts), size)

    def code_word(self, account: str) -> npt.NDArray[np.bool_]:
        """Return an account's code word: bool of shape (4096,)."""
        return np.unpackbits(self.packed_code_word(account), bitorder="little").astype(np.bool_)

    def commitments(self) -> list[str]:
        """Return the 65 public commitments: lanes 0..63, then the accounts' seed."""
        fingerprint = self.fingerprint
        lanes = [
            commitment(self.name, fingerprint, "lane", self.lane_seed(lane).reveal(), lane=lane)
            for lane in range(LANES)
        ]
        return [*lanes, commitment(self.name, fingerprint, "accounts", self.account_seed().reveal())]
