"""Fine-tune SmolLM2-135M-Instruct on a teacher's answers with LoRA, and save the merged model.

    python benchmarks/studies/demo/train.py ANSWERS.jsonl OUT_DIR [--seed 0]

Needs the extra `study`. Prints one line each 10 steps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from detect.study.lora import train_lora
from watermark.models import LanguageModel, load_model


def examples_of(path: Path, model: LanguageModel) -> list[tuple[list[int], int]]:
    """Return (ids, where the answer begins) of each record."""
    examples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        prompt = model.prompt_ids(record["prompt"])
        examples.append((prompt + record["token_ids"], len(prompt)))
    return examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    base = load_model("smollm2")
    start = time.time()

    def shown(step: int, steps: int, loss: float) -> None:
        if step % 10 == 0 or step == steps:
            print(f"step {step}/{steps} loss {loss:.3f} {time.time() - start:.0f} s", flush=True)

    train_lora(base, examples_of(arguments.answers, base), arguments.out, seed=arguments.seed, progress=shown)


if __name__ == "__main__":
    main()
