"""Write the demo's prompts: 480 for training and 480 for the suspects, on disjoint topics.

python benchmarks/studies/demo/prompts.py OUT_DIR
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from detect.study.real import TOPICS

FORMS = (
    "Explain {} to a beginner.",
    "Write a short story about {}.",
    "What should everyone know about {}?",
    "Give me advice about {}.",
    "Describe {} in detail.",
    "Why does {} matter?",
    "Write a letter to a friend about {}.",
    "How has {} changed over time?",
)


def main() -> None:
    out = Path(sys.argv[1])
    rng = random.Random(20261124)
    topics = list(TOPICS)
    rng.shuffle(topics)
    half = len(topics) // 2
    for name, chosen in (("prompts-train.jsonl", topics[:half]), ("prompts-suspect.jsonl", topics[half:])):
        prompts = [form.format(topic) for topic in chosen for form in FORMS]
        rng.shuffle(prompts)
        lines = (json.dumps({"prompt": prompt}) for prompt in prompts)
        (out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(name, len(prompts))


if __name__ == "__main__":
    main()
