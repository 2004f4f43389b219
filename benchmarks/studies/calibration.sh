#!/usr/bin/env bash
# False-positive rates on repetitive real text: this repository's documents, Python's licence and its standard library.
# 10,000 random keys each, seeds fixed. Run from the checkout; the figures are in docs/benchmarks.md.
set -euo pipefail
library=$(python3 -c 'import os; print(os.path.dirname(os.__file__))')
texts=(docs/specification.md docs/method.md SECURITY.md LICENSE "$library"/LICENSE.txt "$library"/{argparse,ast,calendar,csv,datetime,difflib,enum,ftplib,gzip,heapq,imaplib}.py)
for window in 1 2 4; do
  taggant calibrate "${texts[@]}" --window "$window" --seed "$window" --reference "$library/pydoc_data/topics.py"
done
# The real thing: suspects' answers with the base model's probabilities, under keys that had no part in them.
for suspect in clean-twin student; do
  taggant calibrate "examples/$suspect.jsonl" --window 1 --reference "examples/$suspect-reference.npz"
done
