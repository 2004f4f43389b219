"""False-positive rates of every weighted test and the count, under random keys, on clean students' answers by kind.

    python benchmarks/studies/null.py STUDY_DIR [--keys 10000] [--many 200000]
    python benchmarks/studies/null.py STUDY_DIR --config arms --cell w1-d100-k1-s1-tool-calls --windows 1 --many 0

STUDY_DIR is a run of the study `small`, or of another that is named. A student's answers, by default the first clean
one's, are split by kind; on each, all tests are made under --keys keys, and the count and the default tests under
--many. No key is a study's; seeds are the number of the row. Prints a Markdown table: the share of keys with
p at or below each level; an asterisk where its 95% interval lies above the level. One core, some ten minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from detect.calibration import NAIVE, calibrate
from detect.corpus import Corpus
from detect.family import DEFAULT, FAMILY
from detect.records import Accounting
from detect.reference import Reference
from detect.study.config import load_config
from detect.study.lab import open_lab
from detect.study.outputs import Outputs
from detect.tally import PromptPolicy


def corpus_of(responses: list[np.ndarray]) -> Corpus:
    return Corpus(
        responses=responses,
        prompts=[[] for _ in responses],
        prompt_texts=[() for _ in responses],
        document=np.arange(len(responses), dtype=np.int64),
        sources=[str(i) for i in range(len(responses))],
        accounting=Accounting(),
        digests={},
        without_prompt=0,
        from_ids=0,
    )


def part_of(reference: Reference, chosen: np.ndarray) -> Reference:
    """Return the reference of some responses."""
    spans = [slice(int(reference.starts[r]), int(reference.starts[r + 1])) for r in chosen]
    return Reference(
        name=reference.name,
        tokenizer=reference.tokenizer,
        ids=np.concatenate([reference.ids[span] for span in spans]),
        starts=np.concatenate([[0], np.cumsum([span.stop - span.start for span in spans])]).astype(np.int64),
        top_ids=np.concatenate([reference.top_ids[span] for span in spans]),
        top_p=np.concatenate([reference.top_p[span] for span in spans]),
        said_p=np.concatenate([reference.said_p[span] for span in spans]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=200_000)
    parser.add_argument("--config", default="small")
    parser.add_argument("--cell", default="d0-s101")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    lab = open_lab(load_config(arguments.config), arguments.study / "lab")
    cell = arguments.study / "cells" / arguments.cell
    outputs = Outputs.load(cell / "outputs.npz")
    reference = Reference.load(cell / "reference-base.npz")
    kinds = np.array(outputs.kinds)
    print("| text | window | test | keys | p <= 0.01 | p <= 0.001 | p <= 0.0001 | sd of z |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    row, started = 0, time.process_time()
    for kind in sorted(set(outputs.kinds)):
        chosen = np.flatnonzero(kinds == kind)
        corpus = corpus_of([outputs.responses[r] for r in chosen])
        part = part_of(reference, chosen)
        for window in arguments.windows:
            params = lab.scope(1, window).params
            for keys, weightings in ((arguments.keys, tuple(FAMILY.values())), (arguments.many, DEFAULT)):
                if not keys:
                    continue
                row += 1
                result = calibrate(
                    corpus,
                    params,
                    keys=keys,
                    seed=row,
                    reference=part,
                    weightings=weightings,
                    policy=PromptPolicy.CLEAN,
                )
                for test, rates in result.rates.items():
                    if test == NAIVE and keys != arguments.keys:
                        continue
                    cells = [f"{rate.rate:.5f}{'' if rate.within else '*'}" for rate in rates if rate.level < 0.05]
                    print(
                        f"| {kind}, {corpus.tokens:,} ids | {window} | {test} | {keys:,} | {' | '.join(cells)} "
                        f"| {result.sds[test]:.3f} |",
                        flush=True,
                    )
    print(f"\n{time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()
