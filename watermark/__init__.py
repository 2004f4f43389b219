"""The serving side of Taggant: one keyed function, keys, and the green list.

Nothing here imports `detect`. A generation server needs this package and no other.
"""

from __future__ import annotations

__all__ = ["TAGGANT", "__version__"]

__version__ = "0.1.0"

#: The mark by which Taggant tells its own packages from others of the same import name
#: (PyPI's `watermark`, an IPython magic, installs a package of this name too).
TAGGANT = "taggant"
