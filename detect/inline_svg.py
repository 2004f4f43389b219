"""Matplotlib's plots as elements of an HTML page under a strict Content-Security-Policy.

Matplotlib writes ``style`` attributes and style sheets, which such a policy forbids: they are turned into
presentation attributes, and each colour gets a class beside it, so that the page's sheet can give the
plots other colours in the dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["DECOY", "INK", "QUIET", "STUDENT", "TWIN", "decoy_histogram", "inline_svg"]

#: Colours of the plots, each with the class under which a page's style sheet changes it in the dark.
INK, QUIET, STUDENT, TWIN, DECOY = "#1a1d21", "#5a646f", "#0b5cad", "#a84300", "#b3bcc6"
_CLASSES = {INK: "ink", QUIET: "quiet", STUDENT: "student", TWIN: "twin", DECOY: "decoy"}


def inline_svg(name: str, label: str, size: tuple[float, float], draw: Callable[[Any], None]) -> Markup:
    """Draw one plot and return it as an element that a page under a strict policy shows.

    Args:
        name: prefix of every id in it, so that no two plots of a page share one.
        label: what it shows, for those who do not see it.
        size: width and height in inches.
        draw: draws into the axes that it is given.
    """
    import matplotlib
    from markupsafe import Markup
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {
        # Letters stay letters: found, read aloud, and set in the reader's own font.
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 11,
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": INK,
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), QUIET),
    }
    drawn = io.BytesIO()
    # The reader's own matplotlibrc would change the picture: start from the defaults, and put it back after.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())  # noqa: S314 - matplotlib wrote it, a line above
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        _make_inline(element, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": label,
        # What matplotlib's own style sheet says.
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - ElementTree has escaped it


def decoy_histogram(
    name: str,
    label: str,
    *,
    decoys: npt.NDArray[np.float64],
    real: float,
    span: tuple[float, float],
    colour: str,
    said: str,
    test: str,
) -> Markup:
    """Draw the decoys' z and the real key's among them.

    Args:
        name: see `inline_svg`.
        label: what the plot shows; the figures are added.
        decoys: z of each decoy key.
        real: z of the real key.
        span: ends of the axis.
        colour: of the real key.
        said: what the real key is called.
        test: whose z it is.
    """
    low, high = span
    counts, edges = np.histogram(decoys, bins=np.arange(low, high + 0.25, max(0.25, (high - low) / 200)))

    def draw(axes: Any) -> None:
        axes.stairs(counts, edges, fill=True, color=DECOY)
        top = 1.3 * counts.max()
        axes.vlines(real, 0, 0.9 * top, color=colour, linewidth=2)
        to_the_left = real > (low + high) / 2
        axes.annotate(
            f"{said}: z = {real:.1f}".replace("-", "\N{MINUS SIGN}"),
            (real, 0.9 * top),
            (4 if to_the_left else -4, 4),
            textcoords="offset points",
            horizontalalignment="right" if to_the_left else "left",
            color=colour,
            fontweight="bold",
        )
        axes.set_xlim(low, high)
        axes.set_ylim(0, top)
        axes.set_xlabel(f"z of the {test} test")
        axes.set_ylabel("decoy keys")

    ends = f"from {decoys.min():.1f} to {decoys.max():.1f}"
    figures = f"z of {len(decoys):,} decoy keys {ends}, and the real key's at {real:.1f}."
    return inline_svg(name, f"{label}: {figures}", (5.0, 3.2), draw)


def _local(name: str) -> str:
    """Return a name without its namespace, which HTML neither needs nor understands."""
    return name.rpartition("}")[2]


def _make_inline(element: ElementTree.Element, name: str) -> None:
    """Rename an SVG element's ids, and turn its style into presentation attributes and classes."""
    element.tag = _local(element.tag)
    attributes = {_local(key): value for key, value in element.attrib.items()}
    for declaration in filter(None, map(str.strip, attributes.pop("style", "").split(";"))):
        key, _, value = map(str.strip, declaration.partition(":"))
        if key == "font":
            # Matplotlib before 3.9 writes the shorthand, which is no presentation attribute.
            if size := re.search(r"[\d.]+px", value):
                attributes["font-size"] = size[0]
            if re.search(r"\b(bold|[6-9]00)\b", value):
                attributes["font-weight"] = "bold"
        elif key != "font-family":
            attributes[key] = value
    classes = [f"{key}-{_CLASSES[value]}" for key, value in attributes.items() if value in _CLASSES]
    if classes:
        attributes["class"] = " ".join(classes)
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if "href" in attributes:
        attributes["href"] = attributes["href"].replace("#", f"#{name}-")
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{name}-")
    element.attrib = attributes
