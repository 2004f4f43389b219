"""Publish the example key: write it as a keyring that everyone may read and nobody can mark with.

python benchmarks/studies/demo/publish.py KEYRING OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from watermark.keyring import Keyring


def main() -> None:
    Keyring.load(Path(sys.argv[1])).publish().write(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
