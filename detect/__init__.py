"""The analysis side of Taggant: exact tests of texts and of models.

Imports `watermark` for keys and the keyed function, never the reverse.
"""

from __future__ import annotations

__all__ = ["TAGGANT"]

#: See `watermark.TAGGANT`.
TAGGANT = "taggant"
