"""Files that hold a secret: made once, mode 0600, and refused where others can read them."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from shlex import quote

from watermark.errors import KeyringError, printable

__all__ = ["create_key_file_with", "read_key_file", "refuse_readable"]


def create_key_file_with(path: Path, content: str, *, mode: int = 0o600) -> None:
    """Create a key file, with O_EXCL, and bring it to the disk.

    Raises:
        KeyringError: the file exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise KeyringError(f"{printable(path)}: exists; a key file is never overwritten. Choose another name") from None
    except OSError as error:
        raise KeyringError(f"{printable(path)}: cannot create the key file: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if sys.platform != "win32":
                os.fchmod(descriptor, mode)  # The umask may have taken bits away; it must not have the say here.
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)  # It is this call's own: O_EXCL made it.
        raise KeyringError(f"{printable(path)}: cannot write the key file: {error.strerror}") from None


def read_key_file(path: Path, *, made_by: str) -> tuple[bytes, int]:
    """Return a key file's content, at most 16 MiB of it, and its mode, which is not judged here.

    Args:
        path: the file.
        made_by: the command that makes one, for the error's sentence.

    Raises:
        KeyringError: it is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            return file.read(1 << 24), mode
    except FileNotFoundError:
        raise KeyringError(
            f"{printable(path)}: no such key file; `{made_by} --out {printable(path)}` makes one"
        ) from None
    except OSError as error:
        raise KeyringError(f"{printable(path)}: cannot read the key file: {error.strerror}") from None


def refuse_readable(path: Path, mode: int) -> None:
    """Refuse a secret's file that its group or others can read, with the command that mends it.

    Raises:
        KeyringError: they can.
    """
    # Windows has no such bits (every file shows 0666): there the folder's access list says who may read.
    if sys.platform != "win32" and mode & 0o077:
        raise KeyringError(
            f"{printable(path)}: others can read this key file (mode {mode:04o}). Mend it: "
            f"chmod 600 {printable(quote(str(path)))}"
        )
