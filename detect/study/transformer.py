"""Small transformers trained from scratch: the teacher, the students' base and the students of the `small` lab.

Llama-shaped, 1 to 5 M parameters, trained with float32 weights by AdamW, under bfloat16 autocast where that is fast
(`watermark.precision`). Everything is drawn from seeds; sums of floating-point numbers depend on the machine and on
its number of threads, so that two machines make students alike but not the same.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from detect.reference import TOP, Reference, on_grid
from detect.study.outputs import Outputs
from watermark.errors import MissingExtraError
from watermark.green_list import GreenList
from watermark.precision import fast_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["Shape", "TrainedModel", "Training", "answer", "fine_tune", "log_ratios", "pretrain", "read", "rewrite"]

Ids = npt.NDArray[np.uint32]

#: Rows of logits whose softmax is taken at once in training: 256 of 4,096 float32 are 4 MB.
_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Size of a model."""

    vocabulary: int = 4096
    width: int = 192
    hidden: int = 512
    layers: int = 4
    heads: int = 3
    context: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model is trained: AdamW, a linear warm-up over the first 2% of the steps, then a cosine to a tenth."""

    epochs: float = 1.0
    batch: int = 16
    """Sequences a step."""
    rate: float = 3e-3
    """Largest learning rate."""
    length: int = 192
    """Ids a sequence, for text; answers keep their own length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A model and what its training said."""

    name: str
    shape: Shape
    model: Any
    losses: tuple[float, ...]
    """Mean loss over each tenth of the steps, in nats."""
    seconds: float

    def save(self, path: Path) -> None:
        """Write the weights, whole or not at all."""
        import os

        import torch

        partial = path.with_name(path.name + ".partial")
        state = {name: value.to(torch.float32) for name, value in self.model.state_dict().items()}
        torch.save(
            {"shape": asdict(self.shape), "state": state, "losses": self.losses, "seconds": self.seconds}, partial
        )
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path, *, name: str) -> TrainedModel:
        """Read the weights that `save` wrote."""
        import torch

        saved = torch.load(path, map_location="cpu", weights_only=True)
        shape = Shape(**saved["shape"])
        model = new_model(shape, seed=0)
        model.load_state_dict(saved["state"])
        return cls(name=name, shape=shape, model=model, losses=tuple(saved["losses"]), seconds=float(saved["seconds"]))


def new_model(shape: Shape, *, seed: int) -> Any:
    """Return an untrained model, its weights drawn from *seed*.

    Raises:
        MissingExtraError: torch or transformers is not installed.
    """
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise MissingExtraError(
            f"this study needs {error.name}: pip install torch==2.13.0 && pip install 'taggant[hf]'"
        ) from None
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).to(_device())


def pretrain(
    texts: Sequence[Ids],
    *,
    name: str,
    shape: Shape,
    training: Training,
    end: int,
    seed: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> TrainedModel:
    """Train a model from scratch on texts, packed into sequences with *end* after each text.

    Args:
        texts: each text's ids.
        name: for people.
        shape: the model's size.
        training: how.
        end: the id that ends a document.
        seed: of the weights and of the order.
        progress: called with the number of tokens read since the last call.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(texts))
    stream = np.concatenate([np.append(texts[i], np.uint32(end)) for i in order])
    rows = stream[: len(stream) // training.length * training.length].reshape(-1, training.length).astype(np.int64)
    model = new_model(shape, seed=seed)
    return _train(
        model, list(rows), [0] * len(rows), name=name, shape=shape, training=training, rng=rng, progress=progress
    )


def fine_tune(
    base: TrainedModel,
    answers: Outputs,
    *,
    name: str,
    training: Training,
    end: int,
    seed: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> TrainedModel:
    """Fine-tune a copy of *base* on answers: the loss is on the answer, after its prompt.

    Args:
        base: the model to start from; it stays as it is.
        answers: what to learn.
        name: for people.
        training: how.
        end: the id that ends a document; learned where an answer ended by itself.
        seed: of the order.
        progress: called with the number of tokens read since the last call.
    """
    rows = []
    for prompt, response, ended in zip(answers.prompts, answers.responses, answers.ended, strict=True):
        rows.append(np.concatenate([prompt, response, [end] if ended else []]).astype(np.int64))
    model = new_model(base.shape, seed=0)
    model.load_state_dict(base.model.state_dict())
    return _train(
        model,
        rows,
        [len(prompt) for prompt in answers.prompts],
        name=name,
        shape=base.shape,
        training=training,
        rng=np.random.default_rng(seed),
        progress=progress,
    )


def answer(
    model: TrainedModel,
    prompts: Sequence[Ids],
    kinds: Sequence[str],
    *,
    tokens: int,
    end: int,
    seed: int,
    green_list: GreenList | None = None,
    neutralise: Callable[[npt.NDArray[np.float32], Ids], None] | None = None,
    accounts: Sequence[str] | None = None,
    batch: int = 256,
    progress: Callable[[int], None] = lambda answers: None,
) -> Outputs:
    """Sample an answer to each prompt at temperature 1 from the full distribution.

    Args:
        model: who answers.
        prompts: ids, all of one length.
        kinds: of each prompt.
        tokens: most ids of an answer.
        end: the id that ends one.
        seed: from which each batch draws.
        green_list: marks the answers.
        neutralise: changes the logits of a step, (B, V), in place, given the answers so far, (B, t).
        accounts: to whom each answer is served; without, account lanes are not marked.
        batch: prompts at once.
        progress: called with the number of answers since the last call.
    """
    responses: list[Ids] = []
    ended: list[bool] = []
    for number, first in enumerate(range(0, len(prompts), batch)):
        chosen = np.stack(prompts[first : first + batch])
        rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
        callers = None if accounts is None else accounts[first : first + batch]
        said = _sample(model, chosen, tokens, end, rng, green_list, neutralise, callers)
        for row in said:
            at = np.flatnonzero(row == end)
            responses.append(np.ascontiguousarray(row[: at[0]] if at.size else row))
            ended.append(bool(at.size))
        progress(len(chosen))
    return Outputs(
        prompts=list(prompts), responses=responses, ended=np.array(ended, dtype=np.bool_), kinds=tuple(kinds)
    )


def rewrite(
    model: TrainedModel,
    answers: Outputs,
    *,
    span: int,
    share: float,
    end: int,
    seed: int,
    batch: int = 256,
) -> Outputs:
    """Return answers with a share of their spans drawn anew by *model*, each after all that stands before it.

    Args:
        model: who writes anew.
        answers: what is rewritten; lengths stay.
        span: ids a span.
        share: of the spans.
        end: the id that ends a document, which is not drawn.
        seed: from which spans and ids are drawn.
        batch: answers at once.
    """
    rng = np.random.default_rng(seed)
    rewritten = [ids.copy() for ids in answers.responses]
    for first in range(0, max(map(len, rewritten), default=0), span):
        chosen = [i for i, ids in enumerate(rewritten) if len(ids) > first and rng.random() < share]
        # All prompts have one length, so that all contexts have.
        for begin in range(0, len(chosen), batch):
            block = chosen[begin : begin + batch]
            contexts = np.stack([np.concatenate([answers.prompts[i], rewritten[i][:first]]) for i in block])
            said = _sample(model, contexts, span, end, rng, None, _never(end), None)
            for i, row in zip(block, said, strict=True):
                rewritten[i][first : first + span] = row[: len(rewritten[i]) - first]
    return Outputs(prompts=answers.prompts, responses=rewritten, ended=answers.ended, kinds=answers.kinds)


def _never(end: int) -> Callable[[npt.NDArray[np.float32], Ids], None]:
    def mask(logits: npt.NDArray[np.float32], said: Ids) -> None:
        logits[:, end] = -np.inf

    return mask


def read(
    model: TrainedModel,
    outputs: Outputs,
    *,
    tokenizer: str,
    top: int = TOP,
    batch: int = 48,
    progress: Callable[[int], None] = lambda responses: None,
) -> Reference:
    """Return *model*'s probabilities at each position of the answers, read after their prompts.

    The same as `detect.teacher_forcing.read_reference`, by ids and with no chat format.

    Args:
        model: the reference.
        outputs: the suspect's.
        tokenizer: digest of the ids' tokenizer.
        top: how many of the likeliest tokens are kept at each position.
        batch: answers at once.
        progress: called with the number of answers read since the last call.
    """
    import torch

    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in outputs.responses])]).astype(np.int64)
    n = int(starts[-1])
    top_ids = np.zeros((n, top), dtype=np.uint32)
    top_p = np.zeros((n, top), dtype=np.float32)
    said_p = np.zeros(n, dtype=np.float32)
    order = sorted(range(len(outputs)), key=lambda r: len(outputs.prompts[r]) + len(outputs.responses[r]))
    model.model.eval()
    device = _device()
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        rows = [np.concatenate([outputs.prompts[r], outputs.responses[r]]).astype(np.int64) for r in chosen]
        ids = torch.zeros((len(rows), max(len(row) for row in rows)), dtype=torch.long)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = torch.from_numpy(row)
        ids = ids.to(device)
        with torch.inference_mode(), _autocast(device):
            # Padding is on the right, where a causal model does not look.
            states = model.model.model(input_ids=ids, use_cache=False).last_hidden_state
        with torch.inference_mode():
            for b, r in enumerate(chosen):
                begin, length = len(outputs.prompts[r]), len(outputs.responses[r])
                if not length:
                    continue
                logits = states[b, begin - 1 : begin - 1 + length].float() @ model.model.lm_head.weight.T
                p = torch.softmax(logits, dim=-1)
                best = torch.topk(p, top, dim=-1)
                at = slice(int(starts[r]), int(starts[r + 1]))
                top_ids[at] = best.indices.cpu().numpy()
                top_p[at] = best.values.cpu().numpy()
                said_p[at] = p.gather(1, ids[b, begin : begin + length, None])[:, 0].cpu().numpy()
        progress(len(chosen))
    joined = np.concatenate(outputs.responses) if n else np.zeros(0, dtype=np.uint32)
    return Reference(
        name=model.name,
        tokenizer=tokenizer,
        ids=joined.astype(np.uint32),
        starts=starts,
        top_ids=top_ids,
        top_p=on_grid(top_p),
        said_p=on_grid(said_p),
    )


def log_ratios(
    before: TrainedModel, after: TrainedModel, outputs: Outputs, *, batch: int = 32
) -> Iterator[tuple[Ids, npt.NDArray[np.float32]]]:
    """Yield, answer by answer, its ids (n,) and ln p_after - ln p_before after each prefix of it, float32 (n, V).

    Row t is of the distribution that follows ids[: t + 1] and the prompt.
    """
    import torch

    device = _device()
    for first in range(0, len(outputs), batch):
        places = [r for r in range(first, min(first + batch, len(outputs))) if len(outputs.responses[r])]
        rows = [np.concatenate([outputs.prompts[r], outputs.responses[r]]).astype(np.int64) for r in places]
        ids = torch.zeros((len(rows), max(map(len, rows), default=1)), dtype=torch.long)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = torch.from_numpy(row)
        states = []
        for model in (before, after):
            model.model.eval()
            with torch.inference_mode(), _autocast(device):
                states.append(model.model.model(input_ids=ids.to(device), use_cache=False).last_hidden_state)
        for b, r in enumerate(places):
            at = slice(len(outputs.prompts[r]), len(rows[b]))
            with torch.inference_mode():
                old, new = (
                    torch.log_softmax(s[b, at].float() @ model.model.lm_head.weight.T, dim=-1)
                    for s, model in zip(states, (before, after), strict=True)
                )
                ratio = (new - old).cpu().numpy()
            yield outputs.responses[r], ratio


def _autocast(device: str) -> Any:
    import torch

    dtype = fast_dtype(device)
    return torch.autocast(device, dtype=dtype, enabled=dtype is torch.bfloat16)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _train(
    model: Any,
    rows: list[npt.NDArray[np.int64]],
    learned_from: list[int],
    *,
    name: str,
    shape: Shape,
    training: Training,
    rng: np.random.Generator,
    progress: Callable[[int], None],
) -> TrainedModel:
    """Train on rows of ids, the loss on what comes from the place *learned_from* of each on."""
    import torch

    device = _device()
    started = time.monotonic()
    total = max(1, round(training.epochs * len(rows)))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-total // len(rows)))])[:total]
    batches = [order[i : i + training.batch] for i in range(0, total, training.batch)]
    steps, warm = len(batches), max(1, len(batches) // 50)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.1 + 0.45 * (1 + float(np.cos(np.pi * step / steps)))),
    )
    model.train()
    losses: list[float] = []
    for places in batches:
        chosen = [rows[i] for i in places]
        ids = torch.zeros((len(chosen), max(len(row) for row in chosen)), dtype=torch.long)
        labels = torch.full_like(ids, -1)
        for b, (row, begin) in enumerate(zip(chosen, (learned_from[i] for i in places), strict=True)):
            ids[b, : len(row)] = torch.from_numpy(row)
            labels[b, max(begin - 1, 0) : len(row) - 1] = torch.from_numpy(row[max(begin, 1) :])
        ids, labels = ids.to(device), labels.to(device).reshape(-1)
        with _autocast(device):
            states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        kept = labels >= 0
        loss = _head_loss(states.reshape(-1, shape.width)[kept], model.lm_head.weight, labels[kept])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        progress(int(kept.sum()))
    model.eval()
    tenths = tuple(round(float(part.mean()), 4) for part in np.array_split(np.array(losses), min(10, steps)))
    return TrainedModel(
        name=name, shape=shape, model=model, losses=tenths, seconds=round(time.monotonic() - started, 1)
    )


def _head_loss(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of softmax(states weight^T), its gradients taken block by block.

    On two cores the logits of a whole batch are what takes the time otherwise: they don't fit a cache.
    """
    import torch

    global _HeadLoss
    if _HeadLoss is None:

        class HeadLoss(torch.autograd.Function):  # type: ignore[misc]
            @staticmethod
            def forward(ctx: Any, states: Any, weight: Any, labels: Any) -> Any:
                dtype = fast_dtype(states.device.type)
                low = states.to(dtype)
                head = weight.to(dtype)
                to_states = torch.empty_like(low)
                to_head = torch.zeros_like(weight, dtype=torch.float32)
                total = torch.zeros((), device=states.device)
                count = len(labels)
                for first in range(0, count, _ROWS):
                    block = slice(first, min(first + _ROWS, count))
                    logits = (low[block] @ head.T).float()
                    at = labels[block, None]
                    largest = logits.amax(dim=-1, keepdim=True)
                    logits -= largest
                    picked = logits.gather(1, at)
                    logits.exp_()
                    mass = logits.sum(dim=-1, keepdim=True)
                    total += (mass.log() - picked).sum()
                    logits /= mass * count
                    logits.scatter_add_(1, at, torch.full_like(picked, -1.0 / count))
                    slope = logits.to(dtype)
                    to_states[block] = slope @ head
                    to_head += (slope.T @ low[block]).float()
                ctx.save_for_backward(to_states.to(states.dtype), to_head.to(weight.dtype))
                return total / count

            @staticmethod
            def backward(ctx: Any, slope: Any) -> Any:
                to_states, to_head = ctx.saved_tensors
                return to_states * slope, to_head * slope, None

        _HeadLoss = HeadLoss
    loss: torch.Tensor = _HeadLoss.apply(states, weight, labels)
    return loss


_HeadLoss: Any = None


def _sample(
    model: TrainedModel,
    prompts: Ids,
    tokens: int,
    end: int,
    rng: np.random.Generator,
    green_list: GreenList | None,
    neutralise: Callable[[npt.NDArray[np.float32], Ids], None] | None,
    accounts: Sequence[str] | None,
) -> Ids:
    """Return (B, tokens) ids; what comes after an `end` is no answer."""
    import torch
    from transformers import DynamicCache

    rows = len(prompts)
    device = _device()
    said = np.zeros((rows, tokens), dtype=np.uint32)
    over = np.zeros(rows, dtype=np.bool_)
    cache = DynamicCache()
    step_ids = torch.from_numpy(prompts.astype(np.int64)).to(device)
    # The logits are float32 in any case.
    layers = copy.deepcopy(model.model.model).to(fast_dtype(device)).eval()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5 renames past_key_values, 4 has no other name.
        for t in range(tokens):
            states = layers(input_ids=step_ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            logits = states.float() @ model.model.lm_head.weight.T
            if green_list is not None or neutralise is not None:
                changed = np.array(logits.cpu().numpy(), order="C")
                if neutralise is not None:
                    neutralise(changed, said[:, :t])
                if green_list is not None and t >= green_list.window:
                    windows = np.array(said[:, t - green_list.window : t])
                    green_list.bias(changed, windows, marked=~over, accounts=accounts)
                logits = torch.from_numpy(changed).to(device)
            logits -= logits.amax(dim=-1, keepdim=True)
            mass = logits.exp_().to(torch.float64).cumsum(dim=-1)
            drawn = torch.from_numpy(rng.random(rows)).to(device)[:, None] * mass[:, -1:]
            chosen = torch.searchsorted(mass, drawn, right=True)[:, 0].clamp_(max=mass.shape[1] - 1)
            said[:, t] = chosen.cpu().numpy()
            over |= said[:, t] == end
            if over.all():
                break
            step_ids = chosen[:, None]
    said[:, t + 1 :] = end
    return said
