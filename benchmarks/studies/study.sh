#!/usr/bin/env bash
# Make the tables and plots of docs/study.md again: benchmarks/studies/study.sh OUT_DIR [tiny|small|arms|real|real-two-cores]
# tiny: two minutes; small: some 75 minutes on two cores; arms: 20 on one; goes on from where it was stopped.
set -euo pipefail
out=$1
size=${2:-small}
mkdir -p "$out"
taggant study run "$size" --out "$out/$size"
taggant study table "$out/$size" | tee "$out/$size.txt"
taggant study table "$out/$size" --format latex > "$out/$size.tex"
taggant study table "$out/$size" --format csv > "$out/$size.csv"
taggant study table "$out/$size" --plot "$out/$size.svg" > /dev/null
