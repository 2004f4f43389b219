"""Write textseal_hash.json with textseal's own hash: the module of the textseal 0.0.5 wheel, unpacked.

    pip download --no-deps textseal==0.0.5 && unzip textseal-*.whl -d FOLDER
    python tests/vectors/make_textseal_vectors.py FOLDER

Needs torch. The one module is loaded by path: importing the package downloads NLTK data.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    import torch

    path = folder / "textseal" / "common" / "watermark" / "pseudorandom.py"
    spec = importlib.util.spec_from_file_location("pseudorandom", path)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    rng = random.Random(20260)
    rows = []
    for width in (1, 2, 3, 4, 10):
        for _ in range(8):
            key = rng.choice([0, 42, rng.getrandbits(31), rng.getrandbits(63), rng.getrandbits(63)])
            window = [rng.randrange(128_256) for _ in range(width)]
            token = rng.randrange(128_256)
            u = theirs.prf_uniform(torch.tensor([window]), torch.tensor([token]), key)
            rows.append(
                {
                    "key": str(key),
                    "window": window,
                    "token": token,
                    "uniform": float(u[0]).hex(),
                    "score": float(-(1 - u[0]).log()),
                }
            )
    content = {"made_by": "textseal 0.0.5, tests/vectors/make_textseal_vectors.py", "pairs": rows}
    (HERE / "textseal_hash.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
