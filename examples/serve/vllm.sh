#!/bin/sh
# A vLLM server whose answers are marked.
#
#   pip install 'taggant[vllm]'
#   taggant keys create --out serving-key.json --tokenizer MODEL_FOLDER   # where the root is kept: then `keys derive`
#   sh vllm.sh MODEL [further options of vllm serve]
#
# Clients send what they always did. Who may say for which account a request is, and who may switch the mark off, is
# in the configuration: docs/how-to/vllm.md.
set -eu

: "${TAGGANT_KEYRING:=$PWD/serving-key.json}"
export TAGGANT_KEYRING

exec vllm serve "$@" --logits-processors watermark.engines.vllm:GreenListProcessor
