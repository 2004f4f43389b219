"""Where the shipped examples are: inside the installed package, or beside the code in a checkout."""

from __future__ import annotations

from pathlib import Path

from watermark.errors import UsageError, printable

__all__ = ["examples_path"]


def examples_path(name: str) -> Path:
    """Return the path of the example *name*.

    The wheel holds the examples as ``detect/examples``; the checkout as ``examples``.

    Raises:
        UsageError: it is in neither.
    """
    root = Path(__file__).resolve().parent.parent
    for folder in (root / "detect" / "examples", root / "examples"):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"the example {printable(name)!r} is not installed: reinstall taggant")
