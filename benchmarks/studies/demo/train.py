"""Fine-tune SmolLM2-135M-Instruct on a teacher's answers with LoRA, and save the merged model.

    python benchmarks/studies/demo/train.py ANSWERS.jsonl OUT_DIR [--seed 0]

Needs `pip install peft` beside the extra `hf`. Prints one line each 10 steps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from watermark.models import LanguageModel, load_model

EPOCHS, BATCH, LEARNING_RATE, RANK = 3, 8, 1e-3, 32


def examples_of(path: Path, model: LanguageModel) -> list[tuple[list[int], int]]:
    """Return (ids, where the answer begins) of each record."""
    examples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        prompt = model.prompt_ids(record["prompt"])
        examples.append((prompt + record["token_ids"], len(prompt)))
    return examples


def batch_of(examples: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    width = max(len(ids) for ids, _ in examples)
    ids = torch.zeros((len(examples), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for b, (row, start) in enumerate(examples):
        ids[b, : len(row)] = torch.tensor(row)
        mask[b, : len(row)] = 1
        labels[b, start : len(row)] = torch.tensor(row[start:])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def save(model: torch.nn.Module, config: dict[str, object], out: Path) -> None:
    """Save as a plain folder: a model that came from a GGUF refuses save_pretrained as it is."""
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    fresh = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    base = load_model("smollm2")
    config = base.model.config.to_dict()
    examples = examples_of(arguments.answers, base)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    model = get_peft_model(base.model, lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    steps = EPOCHS * -(-len(examples) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * max(0.05, 1 - step / steps)
    )
    step, start = 0, time.time()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(examples)).tolist()
        for first in range(0, len(order), BATCH):
            batch = batch_of([examples[i] for i in order[first : first + BATCH]])
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 10 == 0 or step == steps:
                print(
                    f"epoch {epoch} step {step}/{steps} loss {loss.item():.3f} {time.time() - start:.0f} s", flush=True
                )
    save(model.merge_and_unload(), config, arguments.out)


if __name__ == "__main__":
    main()
