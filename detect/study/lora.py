"""Fine-tuning a real model on answers with LoRA: the demo's student and those of the `real` lab."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watermark.errors import MissingExtraError
from watermark.models import LanguageModel

if TYPE_CHECKING:
    import torch

__all__ = ["LoraTraining", "train_lora"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTraining:
    """LoRA on all linear layers, AdamW, a warm-up of 10 steps and a linear fall to a twentieth."""

    epochs: float = 3.0
    batch: int = 8
    rate: float = 1e-3
    rank: int = 32


def train_lora(
    base: LanguageModel,
    examples: Sequence[tuple[Sequence[int], int]],
    out: Path,
    *,
    training: LoraTraining | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, Any]:
    """Fine-tune *base* and save it, merged, as a plain folder that `watermark.models.load_model` takes.

    Args:
        base: the model to start from; its weights are changed: load it again for the next student.
        examples: for each its ids and the place where the answer begins, from which on it is learned.
        out: the folder.
        training: how.
        seed: of the adapter's weights and of the order.
        progress: called after each step with its number, of how many, and the loss.

    Returns:
        What is to be recorded: losses of each tenth of the steps, and seconds.

    Raises:
        MissingExtraError: peft is not installed.
    """
    try:
        import torch
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError(f"training a student needs {error.name}: pip install 'taggant[hf]' peft") from None
    training = training or LoraTraining()
    torch.manual_seed(seed)
    started = time.monotonic()
    config = base.model.config.to_dict()
    lora = LoraConfig(r=training.rank, lora_alpha=2 * training.rank, target_modules="all-linear")
    model: Any = get_peft_model(base.model, lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=training.rate, weight_decay=0.0)
    total = max(1, round(training.epochs * len(examples)))
    order = torch.cat([torch.randperm(len(examples)) for _ in range(-(-total // len(examples)))])[:total].tolist()
    batches = [order[first : first + training.batch] for first in range(0, total, training.batch)]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * max(0.05, 1 - step / len(batches))
    )
    losses = []
    for step, places in enumerate(batches, start=1):
        batch = _batch([examples[i] for i in places])
        loss = model(**{name: value.to(base.device) for name, value in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        progress(step, len(batches), losses[-1])
    _save(model.merge_and_unload(), config, out)
    tenth = max(1, len(losses) // 10)
    means = [round(sum(losses[i : i + tenth]) / len(losses[i : i + tenth]), 4) for i in range(0, len(losses), tenth)]
    return {"losses": means, "seconds": round(time.monotonic() - started, 1)}


def _batch(examples: Sequence[tuple[Sequence[int], int]]) -> dict[str, torch.Tensor]:
    import torch

    width = max(len(ids) for ids, _ in examples)
    ids = torch.zeros((len(examples), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for b, (row, start) in enumerate(examples):
        ids[b, : len(row)] = torch.tensor(list(row))
        mask[b, : len(row)] = 1
        labels[b, start : len(row)] = torch.tensor(list(row)[start:])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _save(model: Any, config: dict[str, Any], out: Path) -> None:
    """Save as a plain folder: a model that came from a GGUF refuses save_pretrained as it is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {key: value for key, value in config.items() if key != "quantization_config"}
    fresh = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(out)
