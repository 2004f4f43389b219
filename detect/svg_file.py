"""Plots as one SVG file that needs nothing else: white, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from watermark.errors import MissingExtraError, UsageError, printable
from watermark.whole_file import write_whole

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["check_svg", "write_svg"]


def check_svg(path: Path) -> None:
    """Refuse, before any work is done, a plot that could not be written.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        UsageError: the name does not end in .svg, or its folder does not exist.
    """
    if path.suffix.lower() != ".svg":
        raise UsageError(f"{printable(path)}: expected a name that ends in .svg; the plot is written as SVG")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{printable(path)}: no folder {printable(path.absolute().parent)} to write in: make it first")
    for library in ("jinja2", "matplotlib"):
        try:
            import_module(library)
        except ImportError:
            raise MissingExtraError(f"the plot needs {library}: pip install 'taggant[report]'") from None


def write_svg(path: Path, plots: Sequence[Markup], *, size: tuple[float, float]) -> Path:
    """Write plots below one another, whole or not at all. The same plots give the same bytes.

    Args:
        path: ends in .svg.
        plots: elements made by `detect.inline_svg.inline_svg`.
        size: width and height of each in inches of 72 units.

    Raises:
        UsageError: the file cannot be written there.
    """
    width, height = (72 * inches for inches in size)
    parts = [
        str(plot).replace("<svg ", f'<svg y="{number * height:g}" width="{width:g}" height="{height:g}" ', 1)
        for number, plot in enumerate(plots)
    ]
    page = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {len(parts) * height:g}" '
        f'font-family="sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>\n{"".join(parts)}\n</svg>\n'
    )
    return write_whole(path, page, what="the plot")
