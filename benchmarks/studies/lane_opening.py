"""How often a falsified lane count is caught: f of the lanes signed with invented counts, m of them opened.

    python benchmarks/studies/lane_opening.py [--bundles 100]

Theory: the m opened lanes are a uniform draw, so the forgery stands only if none of the f lies among them:
C(L - f, m) / C(L, m). Measured twice: with the choice of lanes alone over many values of a beacon, and with whole
bundles, forged by a publisher that holds its key, through `verify_bundle`. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from evidence import Forgery, make_study

from detect.evidence.checks import Status
from detect.evidence.lanes import order_of_lanes
from detect.evidence.verify import open_and_verify

LANES = 48


def caught_by_choice(f: int, m: int, trials: int) -> int:
    tested = np.arange(64) < LANES
    random = np.random.default_rng(f * 100 + m)
    caught = 0
    for trial in range(trials):
        falsified = random.choice(LANES, f, replace=False)
        scores = hashlib.sha256(random.bytes(8)).hexdigest()
        opened = order_of_lanes(tested, scores=scores, value=f"value {trial}")[:m]
        caught += bool({*opened} & {*falsified.tolist()})
    return caught


def caught_by_bundle(f: int, m: int, bundles: int) -> tuple[int, int]:
    """Return how many of the bundles fail E-SCORE-02, and how many fail anything else first."""
    random = np.random.default_rng(f * 100 + m)
    caught = others = 0
    for trial in range(bundles):
        falsified = random.choice(LANES, f, replace=False).tolist()

        def falsify(scores: dict[str, Any], falsified: list[int] = falsified) -> None:
            for lane in falsified:
                scores["lanes"][lane]["green"] += 3

        def plan(config: dict[str, Any]) -> None:
            config["lanes_to_open"] = m

        with tempfile.TemporaryDirectory() as folder:
            # The scores' time and the key differ from bundle to bundle, and with them the lanes that are chosen.
            made = make_study(
                Path(folder), forgery=Forgery(statements={"scores": falsify}, config=plan), responses=8 + trial % 3
            )
            found = open_and_verify(made.path, str(made.publisher), tokenizer=None, decoys=1, tsa_root=None)
        failed = [result.check.id for result in found.results if result.status is Status.FAILED]
        caught += failed == ["E-SCORE-02"]
        others += failed not in ([], ["E-SCORE-02"])
    return caught, others


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--bundles", type=int, default=100)
    options = parser.parse_args()
    print(f"lanes {LANES}; {options.trials:,} choices and {options.bundles} bundles a row")
    print("falsified  opened  caught, theory  by choice  by bundle (95% interval of the theory)  other checks")
    for f, m in ((1, 8), (1, 16), (1, 24), (2, 16), (4, 16), (8, 16), (4, 24)):
        theory = 1 - comb(LANES - f, m) / comb(LANES, m)
        choice = caught_by_choice(f, m, options.trials) / options.trials
        caught, others = caught_by_bundle(f, m, options.bundles)
        low, high = binom.ppf([0.025, 0.975], options.bundles, theory) / options.bundles
        print(
            f"{f:9}  {m:6}  {theory:14.4f}  {choice:9.4f}  {caught / options.bundles:9.2f} ({low:.2f} to {high:.2f})"
            f"{others:30}"
        )


if __name__ == "__main__":
    main()
