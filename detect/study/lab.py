"""What a study asks of a lab: a teacher, the students' base, answers, students, what they say, and references.

A lab keeps what it makes in a folder, so that any process can go on from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from detect.reference import Reference
from detect.study.config import StudyConfig
from detect.study.keys import study_scope
from detect.study.outputs import Outputs
from watermark.errors import UsageError
from watermark.keys import ScopeKeys
from watermark.tokenizer import Tokenizer

__all__ = ["Lab", "open_lab"]


class Lab(ABC):
    """One size of study.

    Args:
        config: the study.
        folder: where the lab keeps what it makes; created if it is not there.
    """

    def __init__(self, config: StudyConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def make_text(self) -> dict[str, Any]:
        """Find the text and the tokenizer; return what is to be recorded of them."""

    @abstractmethod
    def make_model(self, which: str) -> dict[str, Any]:
        """Make the ``teacher``, the ``base`` or the ``foreign`` base; return what is to be recorded of it."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The teacher's."""

    @abstractmethod
    def teacher_answers(self, scope: ScopeKeys | None, *, kind: str = "") -> Outputs:
        """Return the teacher's answers to the prompts that students learn from, marked under *scope* if given.

        Args:
            scope: whose mark the answers bear; None for unmarked ones.
            kind: of the prompts; by default all.
        """

    @abstractmethod
    def train_student(self, answers: Outputs, *, seed: int, path: Path, base: Path | None = None) -> dict[str, Any]:
        """Train a student on answers, write it to *path* and return what is to be recorded of it.

        Args:
            answers: what it learns.
            seed: of the order.
            path: where it goes.
            base: the student to go on from; by default the common base.
        """

    @abstractmethod
    def suspect_outputs(self, model: Path, *, seed: int, kind: str = "") -> Outputs:
        """Return a model's unmarked answers to the prompts of the audit, or to those of one kind."""

    @abstractmethod
    def teacher_relayed(self, scope: ScopeKeys, *, seed: int) -> Outputs:
        """Return the marked teacher's own answers to the prompts of the audit."""

    def paraphrased(self, answers: Outputs, *, seed: int) -> Outputs:
        """Return the answers with half of their spans of 16 ids written anew by the base.

        Raises:
            UsageError: this lab has no such arm.
        """
        raise UsageError(f"arm 'paraphrase': the {self.config.lab} lab has none; leave it out of arms")

    def foreign_student(self, answers: Outputs, *, seed: int, path: Path) -> dict[str, Any]:
        """Train a student with a vocabulary of its own on the answers' text (`detect.study.foreign`).

        Args:
            answers: what it learns, in the teacher's ids.
            seed: of the order.
            path: where it goes.

        Raises:
            UsageError: this lab has no such arm.
        """
        raise UsageError(f"arm 'cross-tokenizer': the {self.config.lab} lab has none; leave it out of arms")

    def foreign_outputs(self, model: Path, *, seed: int) -> Outputs:
        """Return such a student's answers to the prompts of the audit, their text cut into the teacher's ids.

        Raises:
            UsageError: this lab has no such arm.
        """
        raise UsageError(f"arm 'cross-tokenizer': the {self.config.lab} lab has none; leave it out of arms")

    def neutralised_outputs(self, model: Path, learned: Outputs, *, seed: int) -> Outputs:
        """Return a student's answers to the prompts of the audit, the shift of its training taken away.

        Args:
            model: the student's.
            learned: what it learned, on which the shift is estimated.
            seed: from which it draws.

        Raises:
            UsageError: this lab has no such arm.
        """
        raise UsageError(f"arm 'neutralised': the {self.config.lab} lab has none; leave it out of arms")

    @abstractmethod
    def read(self, model: Path | str, outputs: Outputs, *, name: str) -> Reference:
        """Return a reference of *outputs*.

        Args:
            model: a student's path, or ``teacher`` or ``base``.
            outputs: the suspect's.
            name: of the reference.
        """

    def scope(self, key: int, window: int) -> ScopeKeys:
        """Return the study's scope of that number for one window."""
        return study_scope(
            key,
            tokenizer=self.tokenizer,
            window=window,
            delta=self.config.delta,
            gamma_256=self.config.gamma_256,
        )


def open_lab(config: StudyConfig, folder: Path) -> Lab:
    """Return the lab that *config* names, with what its folder already holds."""
    if config.lab == "tiny":
        from detect.study.ngram import TinyLab

        return TinyLab(config, folder)
    if config.lab == "small":
        from detect.study.small import SmallLab

        return SmallLab(config, folder)
    from detect.study.real import RealLab

    return RealLab(config, folder)
