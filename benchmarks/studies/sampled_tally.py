"""How z falls where a sample of the windows is kept: the demo's student, over many samples.

    python benchmarks/studies/sampled_tally.py [--samples 800]      # three minutes

Each sample keeps every window with the chance of 1 in 4 or 1 in 16, and all of its pairs, as a tally over its
capacity does. The weights are those of the whole text, whose share of positions a sampled tally knows as well. Beside
each ratio of mean z to that of all windows stands its standard error over samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from detect.corpus import read_corpus
from detect.family import DEFAULT, SCORE
from detect.mark import GreenListMark
from detect.ngram_reference import ngram_reference
from detect.records import Reader
from detect.reference import Reference
from detect.tally import tally_of
from detect.weighted_test import weighted_test
from watermark.keyring import Keyring
from watermark.tokenizer import load

EXAMPLES = Path(__file__).parents[2] / "examples"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=800)
    samples = parser.parse_args().samples
    tokenizer = load("smollm2")
    mark = GreenListMark(Keyring.load(EXAMPLES / "keyring.json").scope())
    corpus, clean = (
        read_corpus(Reader([EXAMPLES / f"{name}.jsonl"]), tokenizer, window=1) for name in ("student", "clean-twin")
    )
    ngrams = ngram_reference(
        corpus.responses,
        clean.responses,
        tokenizer=tokenizer.digest(),
        name="n-grams",
        vocabulary_size=tokenizer.vocabulary_size,
    )
    print("| reference | test | all: z | 1 in 4 (root .5) | 1 in 16 (root .25) |\n|---|---|---|---|---|")
    for reference in (Reference.load(EXAMPLES / "student-reference.npz"), ngrams):
        tally = tally_of(
            corpus.responses,
            window=1,
            special_ids=mark.special_ids,
            prompts=corpus.prompts,
            echoes=corpus.echoes,
            reference=reference,
        )
        scores = mark.scores(tally)
        for weighting in (SCORE, *DEFAULT):
            weights = weighting.weigh(tally, reference).within(mark.tested(tally))
            whole = weighted_test(weights, mark=mark, tally=tally, scores=scores).z
            cells = []
            for share in (1 / 4, 1 / 16):
                rng = np.random.default_rng(1)
                ratios = []
                for _ in range(samples):
                    kept = (rng.random(len(tally.windows)) < share)[tally.pair_window]
                    ratios.append(weighted_test(weights.within(kept), mark=mark, tally=tally, scores=scores).z / whole)
                cells.append(f"{np.mean(ratios):.3f} (± {np.std(ratios) / samples**0.5:.3f})")
            print(f"| {reference.name} | {weighting.name} | {whole:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
