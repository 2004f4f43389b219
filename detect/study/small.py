"""The small lab: transformers of 2 to 5 M parameters, trained from scratch on text found in packages.

The teacher learns one half of the text, the students' base the other, each from its own initial weights. The teacher
answers prompts that begin files of neither half; a suspect is queried with the beginnings of yet other files. All
prompts are human text, so that they are clean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detect.reference import Reference
from detect.study.config import StudyConfig
from detect.study.foreign import foreign_size, retokenised, shared_boundaries
from detect.study.lab import Lab
from detect.study.outputs import Outputs
from detect.study.text import Half, Passage, digest_of, find_passages
from detect.study.vocabulary import END, train_vocabulary
from watermark.green_list import GreenList
from watermark.keys import ScopeKeys
from watermark.tokenizer import Tokenizer, load

__all__ = ["SmallLab"]

Ids = npt.NDArray[np.uint32]
Neutralise = Callable[[npt.NDArray[np.float32], Ids], None]

_SEEDS = {"teacher": 11, "base": 12, "unmarked": 13, "relay": 14, "foreign": 15}


class SmallLab(Lab):
    """See the module's docstring."""

    def __init__(self, config: StudyConfig, folder: Path) -> None:
        super().__init__(config, folder)
        self._models: dict[str, Any] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The teacher's, which the students share."""
        return load(self.folder / "tokenizer.json")

    @cached_property
    def foreign_tokenizer(self) -> Tokenizer:
        """That of the student of the arm ``cross-tokenizer``."""
        return load(self.folder / "foreign-tokenizer.json")

    @property
    def end(self) -> int:
        """The id that ends a document."""
        return self.tokenizer.special_id(END)

    def make_text(self) -> dict[str, Any]:
        """Find the passages and train the vocabulary on every fourth of those that models are trained on."""
        text = self.config.text
        passages = find_passages(text.characters())
        learned = [passage for passage in passages if passage.half in (Half.TEACHER, Half.BASE)]
        trained = train_vocabulary(
            (passage.text for passage in learned[::4]),
            size=text.vocabulary,
            path=self.folder / "tokenizer.json",
        )
        np.savez_compressed(self.folder / "text.npz", **_arrays(passages, trained))
        return {
            "digest": digest_of(passages),
            "passages": len(passages),
            "characters": sum(len(passage.text) for passage in passages),
            "tokenizer": trained.digest(),
        }

    def make_model(self, which: str) -> dict[str, Any]:
        """Train the teacher, the base or the base of another vocabulary from scratch."""
        from detect.study.transformer import Shape, Training, pretrain

        ids, _ = self._texts(Half.TEACHER if which == "teacher" else Half.BASE)
        tokenizer, record = self.tokenizer, {}
        if which == "foreign":
            texts = [tokenizer.decode(part) for part in ids]
            tokenizer = train_vocabulary(
                texts, size=foreign_size(tokenizer.vocabulary_size), path=self.folder / "foreign-tokenizer.json"
            )
            ids = [tokenizer.encode(text) for text in texts]
            record = {"shared_boundaries": shared_boundaries(texts[::50], first=self.tokenizer, second=tokenizer)}
        model = pretrain(
            ids,
            name=which,
            shape=Shape(vocabulary=tokenizer.vocabulary_size, **asdict(self.config.shape)),
            training=Training(**asdict(self.config.pretraining)),
            end=tokenizer.special_id(END),
            seed=_SEEDS[which],
        )
        model.save(self.folder / f"{which}.pt")
        return {"tokens": sum(map(len, ids)), "losses": model.losses, "seconds": model.seconds, **record}

    def teacher_answers(
        self, scope: ScopeKeys | None, *, kind: str = "", accounts: Sequence[str] | None = None
    ) -> Outputs:
        """Return one answer to the beginning of each held-out passage, as many as the study wants.

        Args:
            scope: see `Lab`.
            kind: see `Lab`.
            accounts: to whom each is served; without, account lanes are not marked.
        """
        seed = _SEEDS["unmarked"] if scope is None else int(scope.commitments()[0][:12], 16)
        return self._answers(
            "teacher", Half.ASKED, self.config.answers, seed=seed, scope=scope, kind=kind, accounts=accounts
        )

    def train_student(self, answers: Outputs, *, seed: int, path: Path, base: Path | None = None) -> dict[str, Any]:
        """Fine-tune the base (all its weights) on the answers."""
        return self._fine_tuned(base or "base", answers, end=self.end, seed=seed, path=path)

    def suspect_outputs(self, model: Path, *, seed: int, kind: str = "") -> Outputs:
        """Return the model's answers to beginnings of passages that no other part of the study uses."""
        return self._suspect(model, seed=seed, scope=None, kind=kind)

    def foreign_student(self, answers: Outputs, *, seed: int, path: Path) -> dict[str, Any]:
        """Fine-tune the base of the other vocabulary on the answers' text."""
        theirs = retokenised(answers, of=self.tokenizer, by=self.foreign_tokenizer)
        end = self.foreign_tokenizer.special_id(END)
        return self._fine_tuned("foreign", theirs, end=end, seed=seed, path=path)

    def foreign_outputs(self, model: Path, *, seed: int) -> Outputs:
        """Return its answers to the same beginnings, as the teacher's tokenizer cuts them."""
        said = self._answers(model, Half.AUDIT, self._asked, seed=seed, tokenizer=self.foreign_tokenizer)
        return retokenised(said, of=self.foreign_tokenizer, by=self.tokenizer).first_tokens(self.config.suspect_tokens)

    def teacher_relayed(self, scope: ScopeKeys, *, seed: int) -> Outputs:
        """Return the marked teacher's own answers to the prompts of the audit."""
        return self._suspect("teacher", seed=seed, scope=scope)

    def paraphrased(self, answers: Outputs, *, seed: int) -> Outputs:
        """Return the answers with half of their spans of 16 ids written anew by the base, after what stands before."""
        from detect.study.transformer import rewrite

        return rewrite(self._model("base"), answers, span=16, share=0.5, end=self.end, seed=seed)

    def neutralised_outputs(self, model: Path, learned: Outputs, *, seed: int) -> Outputs:
        """Return a student's answers with the average shift after each frequent window taken from its logits."""
        from detect.study.neutralisation import Shift

        shift = Shift.between(self._model("base"), self._model(model), learned)
        return self._suspect(model, seed=seed, scope=None, neutralise=shift.take_away)

    def read(self, model: Path | str, outputs: Outputs, *, name: str) -> Reference:
        """Read the outputs after their prompts."""
        from detect.study.transformer import read

        reference = read(self._model(model), outputs, tokenizer=self.tokenizer.digest(), top=self.config.top)
        return replace(reference, name=name)

    @property
    def _asked(self) -> int:
        """Prompts of the audit: an answer that does not end by itself has `answer_tokens` ids, others fewer."""
        return -(-self.config.suspect_tokens * 11 // (10 * self.config.answer_tokens))

    def _fine_tuned(self, base: Path | str, answers: Outputs, *, end: int, seed: int, path: Path) -> dict[str, Any]:
        from detect.study.transformer import Training, fine_tune

        student = fine_tune(
            self._model(base),
            answers,
            name=path.parent.name,
            training=Training(**asdict(self.config.fine_tuning)),
            end=end,
            seed=seed,
        )
        student.save(path)
        return {"tokens": answers.tokens, "losses": student.losses, "seconds": student.seconds}

    def _suspect(
        self,
        model: Path | str,
        *,
        seed: int,
        scope: ScopeKeys | None,
        neutralise: Neutralise | None = None,
        kind: str = "",
    ) -> Outputs:
        said = self._answers(model, Half.AUDIT, self._asked, seed=seed, scope=scope, neutralise=neutralise, kind=kind)
        return said.first_tokens(self.config.suspect_tokens)

    def _answers(
        self,
        model: Path | str,
        half: Half,
        count: int,
        *,
        seed: int,
        scope: ScopeKeys | None = None,
        neutralise: Neutralise | None = None,
        kind: str = "",
        tokenizer: Tokenizer | None = None,
        accounts: Sequence[str] | None = None,
    ) -> Outputs:
        from detect.study.transformer import answer

        ids, kinds = self._texts(half, kind)
        if tokenizer is not None:
            ids = [tokenizer.encode(self.tokenizer.decode(part)) for part in ids]
        length = self.config.prompt_tokens
        long = [i for i in range(len(ids)) if len(ids[i]) >= length]
        # Later rounds begin further into the passage, where it is long enough.
        beginnings = [(i, 0) for i in long]
        for begin in range(4 * length, 20 * length, 4 * length):
            beginnings += [(i, begin) for i in long if len(ids[i]) >= begin + length]
        order = np.random.default_rng(7).permutation(len(long)).tolist()
        chosen = [beginnings[i] for i in [*order, *range(len(long), len(beginnings))]][:count]
        return answer(
            self._model(model),
            [ids[i][begin : begin + length] for i, begin in chosen],
            [kinds[i] for i, _ in chosen],
            tokens=self.config.answer_tokens,
            end=(tokenizer or self.tokenizer).special_id(END),
            seed=seed,
            green_list=None if scope is None else GreenList(scope),
            neutralise=neutralise,
            accounts=accounts,
        )

    def _model(self, model: Path | str) -> Any:
        from detect.study.transformer import TrainedModel

        path = model if isinstance(model, Path) else self.folder / f"{model}.pt"
        if isinstance(model, Path):
            return TrainedModel.load(path, name=path.parent.name)
        if model not in self._models:
            self._models[model] = TrainedModel.load(path, name=model)
        return self._models[model]

    def _texts(self, half: Half, kind: str = "") -> tuple[list[Ids], list[str]]:
        """Return the ids of each passage of one half, or of one kind in it, and its kind."""
        with np.load(self.folder / "text.npz", allow_pickle=False) as file:
            ids, starts, halves, kinds = (file[name] for name in ("ids", "starts", "halves", "kinds"))
        chosen = np.flatnonzero((halves == half.value) & ((kinds == kind) | (kind == "")))
        return (
            [ids[starts[i] : starts[i + 1]].astype(np.uint32) for i in chosen],
            [str(kinds[i]) for i in chosen],
        )


def _arrays(passages: list[Passage], tokenizer: Tokenizer) -> dict[str, Any]:
    encoded = [tokenizer.encode(passage.text) for passage in passages]
    return {
        "ids": np.concatenate(encoded).astype(np.uint32),
        "starts": np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64),
        "halves": np.array([passage.half.value for passage in passages]),
        "kinds": np.array([passage.kind for passage in passages]),
    }
