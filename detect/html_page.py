"""An HTML file that needs nothing else: no script, no font, no picture, no network.

A page carries a Content-Security-Policy that allows its one style sheet (`report.css`), by hash, and nothing more.
Whatever a template prints is escaped, and control and bidirectional characters are made visible first.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from detect.result_tables import p_value
from watermark.errors import MissingExtraError, UsageError, printable
from watermark.whole_file import write_whole

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["MINUS", "check_libraries", "render", "write_page"]

MINUS: Final = "\N{MINUS SIGN}"

#: What is printed of a string that came from an input.
_MAX_SHOWN: Final = 2000


def check_libraries() -> None:
    """Refuse at once where a page could not be made in the end.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    for library in ("jinja2", "matplotlib"):
        try:
            import_module(library)
        except ImportError:
            raise MissingExtraError(f"the report needs {library}: pip install 'taggant[report]'") from None


def write_page(path: Path, page: Callable[[], str]) -> Path:
    """Write a page, whole or not at all; its folder is made if it does not exist.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        UsageError: the file cannot be written there.
    """
    check_libraries()
    content = page()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{printable(path)}: the report cannot be written there ({error.strerror}). Name a folder that you can "
            "write to"
        ) from None
    return write_whole(path, content, what="the report")


def render(template: str, **context: Any) -> str:
    """Return the page of a Jinja2 template; it finds the style sheet as ``style``."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Whatever is printed is made printable first, so that no string of a record can be forgotten.
        finalize=lambda value: value if isinstance(value, Markup) else printable(value, _MAX_SHOWN),
    )
    environment.filters.update(
        sha256=lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
        typeset=_typeset,
        log10=math.log10,
        whole=lambda number: f"{number:,}",
        fixed=lambda number, digits: f"{number:.{digits}f}".replace("-", MINUS),
    )
    sheet = resources.files("detect").joinpath("report.css").read_text(encoding="utf-8")
    return environment.from_string(template).render(style=Markup(sheet), **context)  # noqa: S704 - our own sheet


def _typeset(log10_p: float) -> Markup:
    """Return a p-value, or a level, with its power of ten raised, rounded as in the terminal."""
    from markupsafe import Markup

    mantissa, raised, exponent = p_value(log10_p).partition("e-")
    if not raised:
        return Markup("{}").format(mantissa)
    power = Markup("10<sup>{}{}</sup>").format(MINUS, exponent)
    return power if mantissa == "1.0" else Markup("{}&nbsp;&times;&nbsp;{}").format(mantissa, power)
