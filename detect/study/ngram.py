"""The tiny lab: interpolated trigram models, for continuous integration and for a first look.

Interpolated Witten-Bell smoothing (Witten and Bell, "The zero-frequency problem", IEEE Trans. Inf. Theory 37, 1991,
method C, as in Chen and Goodman, 1998, section 2.6)::

    p(v | h) = (c(h v) + T(h) p(v | shorter h)) / (c(h) + T(h))      T(h) = distinct ids seen after h

down to the uniform distribution. A student counts the base's text and the teacher's answers together. Such models
memorise more than neural ones do: what they show of tests is true in kind, not in size.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.reference import Reference, on_grid
from detect.study.config import StudyConfig
from detect.study.foreign import foreign_size, retokenised, shared_boundaries
from detect.study.lab import Lab
from detect.study.outputs import Outputs
from detect.study.text import Half, digest_of, find_passages
from detect.study.vocabulary import END, train_vocabulary
from watermark.green_list import GreenList
from watermark.keys import ScopeKeys
from watermark.tokenizer import Tokenizer, load

__all__ = ["NgramModel", "TinyLab", "train_ngrams"]

Ids = npt.NDArray[np.uint32]

#: Answers sampled at once: 256 rows of 2,048 float64 are 4 MB.
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramModel:
    """A trigram model of V ids."""

    bigram: npt.NDArray[np.float64]
    """p(v | w), smoothed, (V, V)."""
    contexts: npt.NDArray[np.int64]
    """u V + w of each pair seen, increasing, (C,)."""
    starts: npt.NDArray[np.int64]
    """Where each pair's continuations start, and the end, (C + 1,)."""
    after: npt.NDArray[np.int64]
    """Continuations, (T,)."""
    times: npt.NDArray[np.float64]
    """How often each was seen, (T,)."""

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.bigram)

    def probabilities(self, earlier: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return p(v | u, w) for each pair of ids (u, w), (B, V)."""
        wanted = earlier * self.vocabulary + last
        at = np.minimum(np.searchsorted(self.contexts, wanted), len(self.contexts) - 1)
        seen = self.contexts[at] == wanted
        kinds = np.where(seen, self.starts[at + 1] - self.starts[at], 0)
        rows = np.repeat(np.arange(len(wanted)), kinds)
        # Places of each row's continuations: a run from its start on.
        run = np.arange(len(rows)) - np.repeat(np.cumsum(kinds) - kinds, kinds)
        places = np.repeat(self.starts[at], kinds) + run
        total = np.bincount(rows, weights=self.times[places], minlength=len(wanted)) + kinds
        p = self.bigram[last]
        p *= np.where(seen, kinds / np.maximum(total, 1), 1.0)[:, None]
        # Each continuation of a row is another id, so that no place is added to twice.
        p[rows, self.after[places]] += self.times[places] / total[rows]
        return p


def train_ngrams(stream: npt.NDArray[Any], *, vocabulary: int) -> NgramModel:
    """Count a stream of ids and return its model."""
    ids = stream.astype(np.int64)
    unigram = np.bincount(ids, minlength=vocabulary).astype(np.float64)
    kinds = np.count_nonzero(unigram)
    lowest = (unigram + kinds / vocabulary) / (unigram.sum() + kinds)
    pairs = np.zeros((vocabulary, vocabulary))
    np.add.at(pairs, (ids[:-1], ids[1:]), 1.0)
    seen = np.count_nonzero(pairs, axis=1)[:, None]
    total = pairs.sum(axis=1, keepdims=True)
    pairs += seen * lowest
    bigram = np.where(total + seen > 0, pairs / np.maximum(total + seen, 1), lowest)
    names, counts = np.unique((ids[:-2] * vocabulary + ids[1:-1]) * vocabulary + ids[2:], return_counts=True)
    contexts, firsts = np.unique(names // vocabulary, return_index=True)
    return NgramModel(
        bigram=bigram,
        contexts=contexts,
        starts=np.append(firsts, len(names)).astype(np.int64),
        after=names % vocabulary,
        times=counts.astype(np.float64),
    )


class TinyLab(Lab):
    """Trigram models of the standard library's code and docstrings."""

    def __init__(self, config: StudyConfig, folder: Path) -> None:
        super().__init__(config, folder)
        self._models: dict[str, NgramModel] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The teacher's, which the students share."""
        return load(self.folder / "tokenizer.json")

    @cached_property
    def foreign_tokenizer(self) -> Tokenizer:
        """That of the student of the arm ``cross-tokenizer``."""
        return load(self.folder / "foreign-tokenizer.json")

    def make_text(self) -> dict[str, Any]:
        """Find the passages in the standard library alone."""
        text = self.config.text
        passages = find_passages(text.characters(), folders=[Path(sysconfig.get_paths()["stdlib"])])
        learned = [passage for passage in passages if passage.half in (Half.TEACHER, Half.BASE)]
        trained = train_vocabulary(
            (passage.text for passage in learned[::2]), size=text.vocabulary, path=self.folder / "tokenizer.json"
        )
        encoded = [trained.encode(passage.text) for passage in passages]
        np.savez_compressed(
            self.folder / "text.npz",
            ids=np.concatenate(encoded),
            starts=np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64),
            halves=np.array([passage.half.value for passage in passages]),
            kinds=np.array([passage.kind for passage in passages]),
        )
        return {"digest": digest_of(passages), "passages": len(passages), "tokenizer": trained.digest()}

    def make_model(self, which: str) -> dict[str, Any]:
        """Count one half of the text."""
        ids, _ = self._texts(Half.TEACHER if which == "teacher" else Half.BASE)
        tokenizer, record = self.tokenizer, {}
        if which == "foreign":
            texts = [tokenizer.decode(part) for part in ids]
            tokenizer = train_vocabulary(
                texts, size=foreign_size(tokenizer.vocabulary_size), path=self.folder / "foreign-tokenizer.json"
            )
            ids = [tokenizer.encode(text) for text in texts]
            record = {"shared_boundaries": shared_boundaries(texts[::20], first=self.tokenizer, second=tokenizer)}
        stream = _stream(ids, tokenizer.special_id(END))
        _write(stream, self.folder / f"{which}.npz")
        return {"tokens": len(stream), **record}

    def teacher_answers(self, scope: ScopeKeys | None, *, kind: str = "") -> Outputs:
        """Return one answer to the beginning of each held-out passage, as many as the study wants."""
        seed = 13 if scope is None else int(scope.commitments()[0][:12], 16)
        return self._answers("teacher", Half.ASKED, self.config.answers, seed=seed, scope=scope, kind=kind)

    def train_student(self, answers: Outputs, *, seed: int, path: Path, base: Path | None = None) -> dict[str, Any]:
        """Count the base's text and the answers; the seed changes which nine tenths of the base's text it is."""
        with np.load(base or self.folder / "base.npz") as file:
            parts = np.array_split(file["ids"], 10)
        if base is None:
            parts.pop(seed % 10)
        return _learned(parts, answers, self.tokenizer, path)

    def suspect_outputs(self, model: Path, *, seed: int, kind: str = "") -> Outputs:
        """Return the model's answers to beginnings of passages that no other part of the study uses."""
        return self._suspect(model, seed=seed, scope=None, kind=kind)

    def foreign_student(self, answers: Outputs, *, seed: int, path: Path) -> dict[str, Any]:
        """Count the base's text and the answers', both in another vocabulary."""
        with np.load(self.folder / "foreign.npz") as file:
            parts = np.array_split(file["ids"], 10)
        parts.pop(seed % 10)
        theirs = retokenised(answers, of=self.tokenizer, by=self.foreign_tokenizer)
        return _learned(parts, theirs, self.foreign_tokenizer, path)

    def foreign_outputs(self, model: Path, *, seed: int) -> Outputs:
        """Return its answers to the same beginnings, as the teacher's tokenizer cuts them."""
        said = self._answers(model, Half.AUDIT, self._asked, seed=seed, scope=None, tokenizer=self.foreign_tokenizer)
        return retokenised(said, of=self.foreign_tokenizer, by=self.tokenizer).first_tokens(self.config.suspect_tokens)

    def teacher_relayed(self, scope: ScopeKeys, *, seed: int) -> Outputs:
        """Return the marked teacher's own answers to the prompts of the audit."""
        return self._suspect("teacher", seed=seed, scope=scope)

    def read(self, model: Path | str, outputs: Outputs, *, name: str) -> Reference:
        """Look up the probabilities after each position's two ids."""
        chosen = self._model(model)
        top = min(self.config.top, chosen.vocabulary)
        ids = np.concatenate(outputs.responses)
        starts = np.concatenate([[0], np.cumsum([len(r) for r in outputs.responses])]).astype(np.int64)
        pairs = []
        for prompt, response in zip(outputs.prompts, outputs.responses, strict=True):
            whole = np.concatenate([prompt[-2:], response]).astype(np.int64)
            pairs.append(whole[:-2] * chosen.vocabulary + whole[1:-1])
        contexts, context_of = np.unique(np.concatenate(pairs), return_inverse=True)
        top_ids = np.zeros((len(ids), top), dtype=np.uint32)
        top_p = np.zeros((len(ids), top), dtype=np.float32)
        said_p = np.zeros(len(ids), dtype=np.float32)
        # Positions in the order of their contexts, so that each context's distribution is made once.
        order = np.argsort(context_of, kind="stable")
        ends = np.searchsorted(context_of[order], np.arange(len(contexts) + 1))
        for first in range(0, len(contexts), _BATCH):
            block = contexts[first : first + _BATCH]
            p = chosen.probabilities(block // chosen.vocabulary, block % chosen.vocabulary)
            best = np.argpartition(-p, top - 1, axis=1)[:, :top]
            values = np.take_along_axis(p, best, axis=1)
            ranked = np.argsort(-values, axis=1, kind="stable")
            places = order[ends[first] : ends[min(first + _BATCH, len(contexts))]]
            row = context_of[places] - first
            top_ids[places] = np.take_along_axis(best, ranked, axis=1)[row]
            top_p[places] = np.take_along_axis(values, ranked, axis=1)[row]
            said_p[places] = p[row, ids[places]]
        return Reference(
            name=name,
            tokenizer=self.tokenizer.digest(),
            ids=ids.astype(np.uint32),
            starts=starts,
            top_ids=top_ids,
            top_p=on_grid(top_p),
            said_p=on_grid(said_p),
        )

    @property
    def _asked(self) -> int:
        """Prompts of the audit: an answer that does not end by itself has `answer_tokens` ids, others fewer."""
        return -(-self.config.suspect_tokens * 11 // (10 * self.config.answer_tokens))

    def _suspect(self, model: Path | str, *, seed: int, scope: ScopeKeys | None, kind: str = "") -> Outputs:
        said = self._answers(model, Half.AUDIT, self._asked, seed=seed, scope=scope, kind=kind)
        return said.first_tokens(self.config.suspect_tokens)

    def _answers(
        self,
        model: Path | str,
        half: Half,
        count: int,
        *,
        seed: int,
        scope: ScopeKeys | None,
        kind: str = "",
        tokenizer: Tokenizer | None = None,
    ) -> Outputs:
        texts, kinds = self._texts(half, kind)
        if tokenizer is not None:
            texts = [tokenizer.encode(self.tokenizer.decode(part)) for part in texts]
        else:
            tokenizer = self.tokenizer
        length = max(2, self.config.prompt_tokens)
        beginnings = [
            (i, begin)
            for begin in range(0, 40 * length, 2 * length)
            for i in range(len(texts))
            if len(texts[i]) >= begin + length
        ][:count]
        prompts = [texts[i][begin : begin + length] for i, begin in beginnings]
        chosen = self._model(model, vocabulary=tokenizer.vocabulary_size)
        green_list = None if scope is None else GreenList(scope)
        end = tokenizer.special_id(END)
        responses: list[Ids] = []
        ended: list[bool] = []
        for number, first in enumerate(range(0, len(prompts), _BATCH)):
            rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
            block = np.stack(prompts[first : first + _BATCH])
            for row in _sample(chosen, block, self.config.answer_tokens, rng, green_list):
                at = np.flatnonzero(row == end)
                responses.append(np.ascontiguousarray(row[: at[0]] if at.size else row))
                ended.append(bool(at.size))
        return Outputs(
            prompts=prompts,
            responses=responses,
            ended=np.array(ended, dtype=np.bool_),
            kinds=tuple(kinds[i] for i, _ in beginnings),
        )

    def _model(self, model: Path | str, *, vocabulary: int | None = None) -> NgramModel:
        path = model if isinstance(model, Path) else self.folder / f"{model}.npz"
        if isinstance(model, str) and model in self._models:
            return self._models[model]
        with np.load(path, allow_pickle=False) as file:
            made = train_ngrams(file["ids"], vocabulary=vocabulary or self.tokenizer.vocabulary_size)
        if isinstance(model, str):
            self._models[model] = made
        return made

    def _texts(self, half: Half, kind: str = "") -> tuple[list[Ids], list[str]]:
        with np.load(self.folder / "text.npz", allow_pickle=False) as file:
            ids, starts, halves, kinds = (file[name] for name in ("ids", "starts", "halves", "kinds"))
        chosen = np.flatnonzero((halves == half.value) & ((kinds == kind) | (kind == "")))
        return [ids[starts[i] : starts[i + 1]].astype(np.uint32) for i in chosen], [str(kinds[i]) for i in chosen]


def _sample(
    model: NgramModel, prompts: Ids, tokens: int, rng: np.random.Generator, green_list: GreenList | None
) -> Ids:
    """Return (B, tokens) ids drawn at temperature 1."""
    rows = len(prompts)
    said = np.zeros((rows, tokens), dtype=np.uint32)
    before = prompts[:, -2:].astype(np.int64)
    for t in range(tokens):
        p = model.probabilities(before[:, 0], before[:, 1])
        if green_list is not None and t >= green_list.window:
            # exp(log p + delta) is p exp(delta): the bias of a row of zeros says which are green.
            bias = np.zeros(p.shape, dtype=np.float32)
            green_list.bias(bias, np.array(said[:, t - green_list.window : t]))
            p *= np.exp(bias)
        mass = np.cumsum(p, axis=1)
        drawn = rng.random(rows) * mass[:, -1]
        said[:, t] = np.minimum((mass <= drawn[:, None]).sum(axis=1), p.shape[1] - 1)
        before = np.stack([before[:, 1], said[:, t].astype(np.int64)], axis=1)
    return said


def _stream(texts: Sequence[Ids], end: int) -> Ids:
    return np.concatenate([np.append(ids, np.uint32(end)) for ids in texts])


def _learned(base: Sequence[Ids], answers: Outputs, tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """Write a student, which is the text it was counted on, and return what is to be recorded."""
    texts = [np.concatenate([p, r]) for p, r in zip(answers.prompts, answers.responses, strict=True)]
    _write(np.concatenate([*base, _stream(texts, tokenizer.special_id(END))]), path)
    return {"tokens": answers.tokens}


def _write(stream: Ids, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, ids=stream.astype(np.uint32))
    os.replace(partial, path)
