"""Output files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from watermark.errors import UsageError, printable

__all__ = ["write_whole", "writing_whole"]


def write_whole(path: Path, data: bytes | str, *, what: str) -> Path:
    """Write a file beside its name and put it in place in one step; text is written as UTF-8.

    Args:
        path: the file; its folder must exist.
        data: what to write.
        what: the noun for the error's sentence, e.g. "the plot".

    Returns:
        *path*.

    Raises:
        UsageError: it cannot be written there.
    """
    with writing_whole(path, what=what) as partial:
        partial.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return path


@contextlib.contextmanager
def writing_whole(path: Path, *, what: str) -> Iterator[Path]:
    """Hand out a name beside *path* to write to; it is put in place when the block ends, and removed if it fails.

    Args:
        path: the file; its folder must exist.
        what: the noun for the error's sentence.

    Raises:
        UsageError: it cannot be written there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{printable(path)}: {what} cannot be written there ({error.strerror}). Name a file in a folder that you "
            "can write to"
        ) from None
