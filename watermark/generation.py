"""Answers from a local model, marked or not: one JSON line a prompt, resumable.

The prompts are cut into batches of a fixed size; each batch draws from a generator seeded by (seed,
batch number), so that a run that was interrupted and resumed writes the same answers as one that was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from watermark.errors import InputError, TokenizerError, UsageError
from watermark.green_list import GreenList
from watermark.keys import account_bytes

if TYPE_CHECKING:
    from watermark.models import LanguageModel

__all__ = ["Sampling", "generate", "read_prompts", "refuse_existing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    max_tokens: int = 256
    """Ids an answer at most."""
    temperature: float = 1.0
    """0 is greedy decoding."""
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.batch_size < 1 or not 0 <= self.temperature <= 100 or self.seed < 0:
            raise UsageError(
                "sampling: expected max_tokens and batch_size of at least 1, a temperature from 0 to 100 and a "
                f"seed of at least 0; got {self}"
            )


def read_prompts(path: Path) -> list[str]:
    """Read prompts: JSON Lines with a ``prompt`` field, or text with one prompt a line (blank lines are skipped).

    Raises:
        InputError: a line is malformed, or there is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot read the prompts: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        prompt: object = line
        if path.suffix == ".jsonl":
            try:
                record = json.loads(line)
                prompt = record["prompt"]
            except (ValueError, KeyError, TypeError, RecursionError):
                prompt = None
            if not isinstance(prompt, str) or not prompt:
                raise InputError(f'{path}:{number}: expected a JSON object with a text "prompt"')
        prompts.append(str(prompt))
    if not prompts:
        raise InputError(f"{path}: no prompts in this file")
    return prompts


def refuse_existing(out: Path) -> None:
    """Raise a UsageError if *out* exists: answers are not overwritten."""
    if out.exists():
        raise UsageError(f"{out}: exists; name another file with --out")


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    green_list: GreenList | None,
    out: Path,
    account: str | None = None,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] = lambda answers: None,
) -> int:
    """Answer every prompt and write one JSON line each to *out*.

    What is finished lies in ``out.partial`` until all is, and a second call with the same arguments goes
    on from there. A line holds the prompt, the response, its token ids, and what it was made with.

    Args:
        model: where the answers come from.
        prompts: the users' messages.
        green_list: the mark, or None for unmarked answers.
        out: the file to write; it must not exist.
        account: for whom the answers are marked; None leaves the scope's account lanes unmarked.
        sampling: how answers are drawn.
        progress: called with the number of answers made since the last call, first those of an earlier part of the run.

    Returns:
        The number of tokens made, those of an earlier part of the run included.

    Raises:
        UsageError: *out* exists or cannot be written, or its partial file was made with other arguments.
        TokenizerError: the scope is not for the model's tokenizer.
    """
    sampling = sampling or Sampling()
    if green_list is not None and green_list.scope.params.tokenizer != model.tokenizer.digest():
        raise TokenizerError(
            f"scope {green_list.scope.name} was made for another tokenizer than {model.tokenizer.name}'s: "
            "make a scope for it with `taggant keys create --tokenizer`"
        )
    refuse_existing(out)
    if account is not None:
        account_bytes(account)
        if green_list is None:
            raise UsageError("an account without a mark: name a key, or leave the account out")
    made_with = _made_with(model, green_list, account, sampling)
    partial = out.with_name(out.name + ".partial")
    done, tokens = _resume(partial, prompts, made_with, sampling.batch_size)
    progress(done)
    try:
        file = open(partial, "a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{partial}: cannot write the answers: {error.strerror}") from None
    with file:
        for start in range(done, len(prompts), sampling.batch_size):
            batch = prompts[start : start + sampling.batch_size]
            answers = _answer(model, batch, green_list, account, sampling, number=start // sampling.batch_size)
            for prompt, ids in zip(batch, answers, strict=True):
                file.write(_line(prompt, ids, model, made_with))
            file.flush()
            os.fsync(file.fileno())
            tokens += sum(len(ids) for ids in answers)
            progress(len(batch))
    os.replace(partial, out)
    return tokens


def _made_with(
    model: LanguageModel, green_list: GreenList | None, account: str | None, sampling: Sampling
) -> dict[str, Any]:
    scope = None if green_list is None else green_list.scope
    return {
        "model": model.name,
        "tokenizer": model.tokenizer.digest(),
        "scope": None if scope is None else scope.name,
        "fingerprint": None if scope is None else scope.fingerprint,
        # The fingerprint is the parameters'. These two are the key's, and public.
        "commitment": None if scope is None else scope.commitments()[0],
        "activation": None if scope is None or not scope.activated else scope.activation.hex(),
        "delta": None if scope is None else scope.delta,
        "account": account,
        "min_entropy": None if green_list is None else green_list.min_entropy,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "batch_size": sampling.batch_size,
    }


def _line(prompt: str, ids: list[int], model: LanguageModel, made_with: dict[str, Any]) -> str:
    said = ids[:-1] if ids and ids[-1] in model.end_ids else ids
    record = {"prompt": prompt, "response": model.tokenizer.decode(said), "token_ids": ids, **made_with}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _resume(partial: Path, prompts: Sequence[str], made_with: dict[str, Any], batch_size: int) -> tuple[int, int]:
    """Cut the partial file to whole batches; return how many answers and tokens it holds."""
    if not partial.exists():
        return 0, 0
    whole: list[bytes] = []
    tokens: list[int] = []
    for line in partial.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        record = _record(line, partial)
        expected = {"prompt": prompts[len(whole)] if len(whole) < len(prompts) else None, **made_with}
        differing = sorted(key for key, value in expected.items() if record.get(key) != value)
        if differing:
            raise UsageError(
                f"{partial}: was made with another {', '.join(differing)}; delete it or name another file with --out"
            )
        whole.append(line)
        tokens.append(len(record["token_ids"]))
    done = len(whole) if len(whole) == len(prompts) else len(whole) // batch_size * batch_size
    with open(partial, "r+b") as file:
        file.truncate(sum(len(line) for line in whole[:done]))
    return done, sum(tokens[:done])


def _record(line: bytes, partial: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record["token_ids"], list):
            return record
    except (ValueError, KeyError, RecursionError):
        pass
    raise UsageError(f"{partial}: not a partial file of answers; delete it or name another file with --out")


def _answer(
    model: LanguageModel,
    batch: Sequence[str],
    green_list: GreenList | None,
    account: str | None,
    sampling: Sampling,
    *,
    number: int,
) -> list[list[int]]:
    import torch
    from transformers import LogitsProcessorList

    encoded = [model.prompt_ids(prompt) for prompt in batch]
    width = max(len(ids) for ids in encoded)
    padding = model.end_ids[0] if model.end_ids else 0
    input_ids = np.full((len(batch), width), padding, dtype=np.int64)
    attention = np.zeros((len(batch), width), dtype=np.int64)
    for b, ids in enumerate(encoded):
        input_ids[b, width - len(ids) :] = ids
        attention[b, width - len(ids) :] = 1
    processors = LogitsProcessorList()
    if green_list is not None:
        from watermark.engines.transformers import GreenListLogitsProcessor

        processors.append(
            GreenListLogitsProcessor(
                green_list,
                prompt_length=width,
                temperature=sampling.temperature,
                accounts=None if account is None else [account] * len(batch),
            )
        )
    vocabulary = model.tokenizer.vocabulary_size
    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    torch.manual_seed(np.random.SeedSequence([sampling.seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.inference_mode():
        output = model.model.generate(
            torch.from_numpy(input_ids).to(model.device),
            attention_mask=torch.from_numpy(attention).to(model.device),
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(model.end_ids) or None,
            pad_token_id=padding,
            # A model's output may be wider than its tokenizer, and such an id stands for no text.
            suppress_tokens=list(range(vocabulary, model.width)) or None,
            logits_processor=processors,
            **how,
        )
    return [_until_end(row[width:].tolist(), model.end_ids) for row in output.cpu()]


def _until_end(ids: Iterable[int], end_ids: Sequence[int]) -> list[int]:
    """Return the ids up to and with the first one that ends an answer: what follows it is padding."""
    kept = []
    for i in ids:
        kept.append(i)
        if i in end_ids:
            break
    return kept
