"""How z falls where a tally keeps a sample of the windows: count, centred and quasi-score, over keys.

    python benchmarks/studies/sampled_tally.py [--keys 20]      # two minutes

Texts of 200,000 ids of bigrams over 400 tokens, window 1, green logits tilted by 0.3; the law without the tilt is the
reference. The ratio is of mean z to that of all windows, with its standard error over keys; beside it the root.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from builders import scope_of
from tilted_rows import tilted_rows

from detect.distillation import make_tests
from detect.mark import GreenListMark

LEVELS = (0, 2, 4)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=20)
    keys = parser.parse_args().keys
    names: list[str] = []
    found = []
    for key in range(keys):
        scope = scope_of(key=key, window=1)
        rows = tilted_rows(scope, seed=key)
        of_key = []
        for level in LEVELS:
            tests = make_tests(rows.cut(level).to_tally(left_out_prompt=0), GreenListMark(scope), decoys=0)
            listed = (tests.unweighted, *tests.weighted)
            names = [test.name for test in listed]
            of_key.append([test.z for test in listed])
        found.append(of_key)
    z = np.array(found)
    print("| windows kept | root | " + " | ".join(f"{name}: z, ratio" for name in names) + " |")
    print("|---|---|" + "---|" * len(names))
    for i, level in enumerate(LEVELS):
        ratio = z[:, i] / z[:, 0].mean(axis=0)
        error = ratio.std(axis=0) / keys**0.5
        cells = [f"{z[:, i, t].mean():.1f}, {ratio[:, t].mean():.3f} (± {error[t]:.3f})" for t in range(len(names))]
        print(f"| 1 in {2**level} | {2 ** (-level / 2):.3f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
