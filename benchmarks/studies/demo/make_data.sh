#!/usr/bin/env bash
# Make examples/ again from nothing, with another key: most of an hour on two busy cores. See README.md beside this.
#
#     benchmarks/studies/demo/make_data.sh OUT_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out"
cd "$out"

python "$here/prompts.py" .
head -n 360 prompts-train.jsonl > train.jsonl
head -n 110 prompts-suspect.jsonl > suspect.jsonl

# 1. The key, and its commitments, before anything is generated.
taggant keys create --out keyring.json --scope demo --window 1 --delta 3 --account-lanes 0
taggant keys show --keyring keyring.json --json > commitments.json

# 2. The teacher's answers, marked; and unmarked ones to the same prompts for the clean twin.
sampling=(--max-tokens 160 --batch-size 40)
taggant generate --model smollm2 --prompts train.jsonl --keyring keyring.json --out teacher.jsonl --seed 1 "${sampling[@]}"
taggant generate --model smollm2 --prompts train.jsonl --unmarked --out unmarked.jsonl --seed 2 "${sampling[@]}"

# 3. The student and the clean twin: same base, same prompts, same training.
python "$here/train.py" teacher.jsonl student-model --seed 3
python "$here/train.py" unmarked.jsonl clean-twin-model --seed 3

# 4. Their answers to other prompts, unmarked, and what the base model says to them. The first 70 of 110 are shipped.
for suspect in student clean-twin; do
  taggant generate --model "$suspect-model" --tokenizer smollm2 --prompts suspect.jsonl --unmarked \
    --out "$suspect-all.jsonl" --seed 5 "${sampling[@]}"
  head -n 70 "$suspect-all.jsonl" > "$suspect.jsonl"
  taggant detect model "$suspect.jsonl" --keyring keyring.json --reference-model smollm2 \
    --save-reference "$suspect-reference.npz"
done

# 5. The key is published with the data; it is no secret from here on.
mv keyring.json keyring.secret.json
python "$here/publish.py" keyring.secret.json keyring.json
