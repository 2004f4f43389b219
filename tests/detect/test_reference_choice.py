"""Which reference is used: the likeliest, and none that cannot be one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import corpus_of

from detect.corpus import Corpus
from detect.ngram_reference import ngram_reference
from detect.reference import Reference
from detect.reference_choice import ChosenReference, ReferenceChoice
from watermark.errors import ReferenceMismatchError, UsageError
from watermark.keys import Params
from watermark.tokenizer import Tokenizer


def chosen_of(choice: ReferenceChoice, corpus: Corpus, smollm2: Tokenizer, **options: Any) -> ChosenReference:
    settings = {"window": 1, "fingerprints": frozenset(), "read": lambda file: corpus, **options}
    made = choice.make(corpus, smollm2, **settings)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"files": ("a.npz", "a.npz")}, "named twice"),
        ({"save": Path("a.npz")}, "name one with --reference-model"),
        ({"models": ("smollm2",), "save": Path("a.json")}, r"ends in \.npz"),
        ({"models": ("smollm2",), "save": Path("no/such/folder/a.npz")}, "no folder"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        ReferenceChoice(**options)


def test_without_a_candidate_there_is_no_reference(smollm2: Tokenizer) -> None:
    corpus = corpus_of([smollm2.encode("An answer of some length.")])
    made = ReferenceChoice().make(corpus, smollm2, window=1, fingerprints=frozenset(), read=lambda file: corpus)
    assert made is None


def test_outputs_marked_under_the_parameters_tested_are_no_reference(smollm2: Tokenizer, tmp_path: Path) -> None:
    params = Params(tokenizer=smollm2.digest(), special_ids=smollm2.special_ids, window=1, account_lanes=0)
    corpus = corpus_of([smollm2.encode("An answer of some length.")])
    marked = replace(corpus, fingerprints=frozenset({params.fingerprint()}))
    file = tmp_path / "marked.jsonl"
    file.write_text(json.dumps({"text": "x"}), encoding="utf-8")
    with pytest.raises(ReferenceMismatchError, match="know nothing of the key"):
        chosen_of(
            ReferenceChoice(files=(str(file),)),
            corpus,
            smollm2,
            fingerprints=frozenset({params.fingerprint()}),
            read=lambda name: marked,
        )


def test_the_likeliest_candidate_is_used_and_all_are_told(
    repetitive: list[np.ndarray], clean: list[np.ndarray], smollm2: Tokenizer, tmp_path: Path
) -> None:
    corpus = corpus_of(repetitive)
    files = []
    for name, order in (("good", 3), ("poor", 1)):
        reference = ngram_reference(
            repetitive,
            clean,
            tokenizer=smollm2.digest(),
            name=name,
            vocabulary_size=smollm2.vocabulary_size,
            order=order,
        )
        reference.save(tmp_path / f"{name}.npz")
        files.append(str(tmp_path / f"{name}.npz"))
    for order_given in (files, files[::-1]):
        saved = tmp_path / "used.npz"
        made = chosen_of(ReferenceChoice(files=tuple(order_given), save=saved), corpus, smollm2)
        assert made.reference.name == files[0]
        assert [each.name for each in made.candidates] == order_given
        (used,) = [each for each in made.candidates if each.chosen]
        assert used.negative_log_likelihood == min(each.negative_log_likelihood for each in made.candidates)
        assert used.digest == hashlib.sha256(Path(files[0]).read_bytes()).hexdigest()
        assert Reference.load(saved).said_p.tolist() == made.reference.said_p.tolist()


def test_probabilities_of_other_text_or_another_tokenizer_are_refused(
    repetitive: list[np.ndarray], clean: list[np.ndarray], smollm2: Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "r.npz"
    made = ngram_reference(
        repetitive, clean, tokenizer=smollm2.digest(), name="r", vocabulary_size=smollm2.vocabulary_size
    )
    made.save(file)
    with pytest.raises(ReferenceMismatchError, match="made for"):
        chosen_of(ReferenceChoice(files=(str(file),)), corpus_of(repetitive[:-1]), smollm2)
    replace(made, tokenizer="11" * 32).save(file)
    with pytest.raises(ReferenceMismatchError, match="another tokenizer"):
        chosen_of(ReferenceChoice(files=(str(file),)), corpus_of(repetitive), smollm2)
