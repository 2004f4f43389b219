"""The whole story on the shipped real data: a marked teacher, a student of its answers, and a clean twin.

Everything in ``examples/`` was made by this project's own commands (benchmarks/studies/demo/README.md):
SmolLM2-135M-Instruct answered 360 prompts under the example key; the student is the same base model
fine-tuned on those answers, the clean twin on unmarked answers to the same prompts; both then answered
other prompts, unmarked, and the base model read what they said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from detect.corpus import Corpus, read_corpus
from detect.distillation import ModelResult, detect_model
from detect.mark import GreenListMark
from detect.marked_text import TextResult, detect_text
from detect.records import Reader
from detect.reference import Reference
from detect.warning import Warned, warnings_of, warnings_of_model
from watermark.examples import examples_path
from watermark.keyring import Keyring
from watermark.tokenizer import load

__all__ = ["Demo", "GrowthPoint", "Suspect", "run_demo"]

#: Prefixes of the suspects' outputs at which the evidence is computed for the growth curve.
_PREFIXES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthPoint:
    """The evidence in the first so many answers of a suspect."""

    tokens: int
    count_log10_p: float
    main_log10_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """One suspect's outputs and what the tests say of them."""

    corpus: Corpus
    result: ModelResult
    growth: list[GrowthPoint]
    warnings: list[Warned]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo found."""

    teacher_corpus: Corpus
    teacher: TextResult
    student: Suspect
    clean_twin: Suspect
    teacher_warnings: list[Warned]
    tokenizer: str
    """Digest of the tokenizer."""
    fitting_commitments: int
    """Commitments to the key's seeds that are shipped and fit the key."""


def run_demo(*, decoys: int, growth: bool = True) -> Demo:
    """Run every test of the story.

    Args:
        decoys: decoy keys a suspect.
        growth: compute the evidence of growing prefixes too (the report plots it).
    """
    keyring = Keyring.load(examples_path("keyring.json"))
    scope = keyring.scope()
    mark = GreenListMark(scope)
    tokenizer = load("smollm2")

    def corpus_of(name: str) -> Corpus:
        return read_corpus(Reader([examples_path(name)]), tokenizer, window=scope.params.window)

    def suspect_of(name: str) -> Suspect:
        corpus = corpus_of(f"{name}.jsonl")
        reference = Reference.load(examples_path(f"{name}-reference.npz"))
        result = detect_model(corpus, [scope], reference=reference, decoys=decoys)[0]
        points = []
        for step in range(1, _PREFIXES + 1) if growth else ():
            answers = max(1, len(corpus.responses) * step // _PREFIXES)
            part = corpus.first(answers)
            at = detect_model(part, [scope], reference=reference.first(answers), decoys=0)[0]
            points.append(GrowthPoint(tokens=at.tokens, count_log10_p=at.unweighted.log10_p, main_log10_p=at.log10_p))
        warned = warnings_of_model(result, warnings_of(corpus, mark, published=keyring.published))
        return Suspect(corpus=corpus, result=result, growth=points, warnings=warned)

    teacher_corpus = corpus_of("teacher.jsonl")
    return Demo(
        teacher_corpus=teacher_corpus,
        teacher=detect_text(teacher_corpus, scope),
        student=suspect_of("student"),
        clean_twin=suspect_of("clean-twin"),
        teacher_warnings=warnings_of(teacher_corpus, mark, published=keyring.published),
        tokenizer=tokenizer.digest(),
        fitting_commitments=_fitting_commitments(scope.commitments(), examples_path("commitments.json")),
    )


def _fitting_commitments(commitments: list[str], path: Path) -> int:
    published = json.loads(path.read_text(encoding="utf-8"))["scopes"][0]["commitments"]
    return sum(a == b for a, b in zip(commitments, published, strict=True))
