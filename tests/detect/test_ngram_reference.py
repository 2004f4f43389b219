"""The n-gram reference against the formula computed one context at a time, and the check for references that know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import scope_of, shape_of

from detect.mark import GreenListMark
from detect.ngram_reference import ngram_reference
from detect.reference import Reference
from detect.reference_check import reference_sees_key
from detect.tally import tally_of
from watermark.errors import InputError, ReferenceMismatchError, UsageError

V = 7


def witten_bell(context: list[int] | None, clean: list[np.ndarray]) -> np.ndarray:
    if context is None:
        return np.full(V, 1 / V)
    counts, h = np.zeros(V), len(context)
    for text in (ids.tolist() for ids in clean):
        for i in range(h, len(text)):
            counts[text[i]] += text[i - h : i] == context
    lower = witten_bell(context[1:] if context else None, clean)
    kinds = (counts > 0).sum()
    return (counts + kinds * lower) / (counts.sum() + kinds) if counts.sum() else lower


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_those_of_the_formula(order: int) -> None:
    rng = np.random.default_rng(order)
    clean = [rng.integers(0, V, k).astype(np.uint32) for k in (9, 30, 1, 0)]
    responses = [rng.integers(0, V, k).astype(np.uint32) for k in (12, 0, 3)]
    made = ngram_reference(responses, clean, tokenizer="t", name="r", vocabulary_size=V, order=order, top=V)
    at = 0
    for text in (ids.tolist() for ids in responses):
        for j, said in enumerate(text):
            p = witten_bell(text[max(0, j - order + 1) : j], clean)
            listed = np.zeros(V)
            listed[made.top_ids[at]] = made.top_p[at]
            assert listed == pytest.approx(p, abs=1e-4)
            assert made.said_p[at] == pytest.approx(p[said], abs=1e-4)
            at += 1
    assert at == len(made.ids)
    assert made.remainder == pytest.approx(0, abs=1e-3)


def test_text_that_cannot_be_is_refused() -> None:
    text = np.array([1, 2, 9], dtype=np.uint32)
    with pytest.raises(UsageError, match="holds no ids"):
        ngram_reference([text], [], tokenizer="t", name="r", vocabulary_size=10)
    with pytest.raises(UsageError, match="expected ids under 9, got 9"):
        ngram_reference([text], [text], tokenizer="t", name="r", vocabulary_size=9)


def test_a_reference_that_has_seen_the_key_is_told_from_a_clean_one(
    repetitive: list[np.ndarray], clean: list[np.ndarray]
) -> None:
    marked_rng, special = np.random.default_rng(3), ()
    smallest = []
    for key in range(1, 41):
        mark = GreenListMark(scope_of(key=key, special_ids=special))
        reference = ngram_reference(repetitive, clean, tokenizer="00" * 32, name="r", vocabulary_size=49_152)
        tally = tally_of(repetitive, **shape_of(mark.scope.params), reference=reference)
        smallest.append(reference_sees_key(tally, reference, mark).log10_p)
        if key > 2:
            continue
        green = mark.scores(tally)
        # Text of a source that says green pairs only.
        pairs = marked_rng.permutation(np.flatnonzero(green & (tally.said > 0)))
        marked = [np.array([tally.windows[tally.pair_window[i], 0], tally.tokens[i]], dtype=np.uint32) for i in pairs]
        knows = ngram_reference(repetitive, marked, tokenizer="00" * 32, name="m", vocabulary_size=49_152)
        tally = tally_of(repetitive, **shape_of(mark.scope.params), reference=knows)
        assert reference_sees_key(tally, knows, mark).sees_key
    assert min(smallest) > -4


def test_a_file_whose_arrays_are_not_what_they_should_be_is_refused(tmp_path: Path) -> None:
    text = np.arange(5, dtype=np.uint32)
    made = ngram_reference([text], [text], tokenizer="t", name="r", vocabulary_size=10)
    made.save(tmp_path / "r.npz")
    arrays = dict(np.load(tmp_path / "r.npz"))
    for name, bad in [
        ("top_p", arrays["top_p"].astype(np.complex128)),
        ("ids", arrays["ids"].astype(np.float64)),
        ("starts", arrays["starts"][None]),
        ("said_p", np.array([None])),
    ]:
        np.savez(tmp_path / "bad.npz", **{**arrays, name: bad})
        with pytest.raises(InputError, match="not a reference file"):
            Reference.load(tmp_path / "bad.npz")


def test_a_reference_of_marked_records_or_another_vocabulary_is_refused_by_name() -> None:
    from dataclasses import replace

    text = np.arange(5, dtype=np.uint32)
    made = ngram_reference([text], [text], tokenizer="t", name="twin", vocabulary_size=10)
    with pytest.raises(ReferenceMismatchError, match=r"twin.*know nothing of the key"):
        replace(made, fingerprints=frozenset({"ab"})).check_unmarked(["cd", "ab"])
    with pytest.raises(ReferenceMismatchError, match="twin: expected ids under 4, the scope's vocabulary, got 4"):
        made.check_vocabulary(4)
