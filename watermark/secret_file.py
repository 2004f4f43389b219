"""A file that holds one secret of 32 bytes: ``taggant_sk1_`` + hexadecimal + checksum, mode 0600.

The form is that of a key file's root, so that one pattern of a secret scanner finds both.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from pathlib import Path
from shlex import quote
from typing import Final

from watermark.errors import KeyringError, printable
from watermark.keys import Secret

__all__ = [
    "check_mode",
    "create_private",
    "create_secret_file",
    "read_private",
    "read_secret_file",
    "secret_from",
    "secret_text",
]

_PREFIX: Final = "taggant_sk1_"


def secret_text(secret: Secret) -> str:
    """Return a secret of 32 bytes in the form in which files hold it. The result is a secret too."""
    value = secret.reveal()
    return _PREFIX + value.hex() + _checksum(value)


def secret_from(text: object, *, what: str) -> Secret:
    """Return the secret of its text.

    Raises:
        KeyringError: the checksum does not fit; the message does not hold *text*.
    """
    found = re.fullmatch(rf"{_PREFIX}([0-9a-f]{{64}})([0-9a-f]{{8}})", text) if isinstance(text, str) else None
    value = bytes.fromhex(found[1]) if found else b""
    if not found or _checksum(value) != found[2]:
        raise KeyringError(f"{what} checksum does not fit: the file was cut or edited; restore it from a copy")
    return Secret(value)


def create_private(path: Path, text: str, *, mode: int = 0o600, what: str = "key file") -> None:
    """Create a file that nobody else reads at any moment, never overwrite one, and bring it to the disk.

    Raises:
        KeyringError: the file exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise KeyringError(f"{printable(path)}: exists; a {what} is never overwritten. Choose another name") from None
    except OSError as error:
        raise KeyringError(f"{printable(path)}: cannot create the {what}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if sys.platform != "win32":
                os.fchmod(descriptor, mode)  # The umask may have taken bits away; it must not have the say here.
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)  # It is this call's own: O_EXCL made it.
        raise KeyringError(f"{printable(path)}: cannot write the {what}: {error.strerror}") from None


def read_private(path: Path, *, made_by: str, what: str = "key file") -> tuple[bytes, int]:
    """Return a file's content, at most 16 MiB of it, and its mode, which `check_mode` judges.

    Args:
        path: the file.
        made_by: the command that makes one, for the error's sentence.
        what: the noun for it.

    Raises:
        KeyringError: it is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            return file.read(1 << 24), mode
    except FileNotFoundError:
        raise KeyringError(
            f"{printable(path)}: no such {what}; `{made_by} --out {printable(path)}` makes one"
        ) from None
    except OSError as error:
        raise KeyringError(f"{printable(path)}: cannot read the {what}: {error.strerror}") from None


def check_mode(path: Path, mode: int, *, what: str = "key file") -> None:
    """Refuse a file that its group or others can reach, with the command that mends it.

    Raises:
        KeyringError: they can.
    """
    # Windows has no such bits (every file shows 0666): there the folder's access list says who may read.
    if sys.platform != "win32" and mode & 0o077:
        raise KeyringError(
            f"{printable(path)}: others can read this {what} (mode {mode:04o}). Mend it: "
            f"chmod 600 {printable(quote(str(path)))}"
        )


def create_secret_file(path: Path, secret: Secret, *, what: str) -> None:
    """Write a new file that holds *secret*, mode 0600.

    Raises:
        KeyringError: the file exists, or cannot be written.
    """
    create_private(path, secret_text(secret) + "\n", what=what)


def read_secret_file(path: Path, *, made_by: str, what: str) -> Secret:
    """Read a secret file.

    Raises:
        KeyringError: missing, readable by others, or not of this form.
    """
    content, mode = read_private(path, made_by=made_by, what=what)
    check_mode(path, mode, what=what)
    return secret_from(content.decode("ascii", "replace").strip(), what=f"{printable(path)}: the {what}'s")


def _checksum(value: bytes) -> str:
    return hashlib.sha256(_PREFIX.encode() + value).hexdigest()[:8]
