"""Weights know no key: by type, and whatever the weighting."""

from __future__ import annotations

import numpy as np
import pytest
from builders import scope_of, shape_of

from detect.family import DEFAULT, FAMILY, SCORE
from detect.mark import GreenListMark
from detect.reference import Reference
from detect.tally import tally_of
from detect.weighted_test import weighted_test
from detect.weighting import Weighting, Weights


def test_an_array_is_not_taken_for_weights() -> None:
    scope = scope_of()
    tally = tally_of([np.arange(50, dtype=np.uint32)], **shape_of(scope.params))
    mark = GreenListMark(scope)
    green = mark.scores(tally)
    with pytest.raises(TypeError, match="cannot know a key"):
        weighted_test(green.astype(np.int64), mark=mark, tally=tally, scores=green)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="made by a Weighting"):
        Weights(object(), name="mine", values=green.astype(np.int64))


def test_weights_cannot_be_changed_once_made() -> None:
    tally = tally_of([np.arange(50, dtype=np.uint32)], window=1)
    with pytest.raises(ValueError, match="read-only"):
        SCORE.weigh(tally).values[0] = 7


def test_a_weighting_that_wants_a_reference_says_so() -> None:
    tally = tally_of([np.arange(50, dtype=np.uint32)], window=1)
    for weighting in DEFAULT:
        with pytest.raises(ValueError, match=f"the {weighting.name} test wants a reference"):
            weighting.weigh(tally)


def test_a_weighting_gives_one_integer_a_pair() -> None:
    tally = tally_of([np.arange(50, dtype=np.uint32)], window=1)
    floats = Weighting(name="floats", rule=lambda tally, reference: np.ones(1), needs_reference=False)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="expected int64 of shape"):
        floats.weigh(tally)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_weights_do_not_depend_on_the_order_of_the_texts(
    name: str, repetitive: list[np.ndarray], references: dict[int, Reference]
) -> None:
    """The same pairs get the same weights, to the unit, so that evidence can be recomputed from merged tallies."""
    weighting, reference = FAMILY[name], references[1]
    tally = tally_of(repetitive, window=1, reference=reference)
    order = np.arange(len(repetitive))[::-1]
    spans = [slice(int(reference.starts[r]), int(reference.starts[r + 1])) for r in order]
    turned = Reference(
        name=reference.name,
        tokenizer=reference.tokenizer,
        ids=np.concatenate([reference.ids[span] for span in spans]),
        starts=np.concatenate([[0], np.cumsum([span.stop - span.start for span in spans])]).astype(np.int64),
        top_ids=np.concatenate([reference.top_ids[span] for span in spans]),
        top_p=np.concatenate([reference.top_p[span] for span in spans]),
        said_p=np.concatenate([reference.said_p[span] for span in spans]),
    )
    other = tally_of([repetitive[r] for r in order], window=1, reference=turned)

    def by_pair(tally: object, values: np.ndarray) -> dict[tuple[int, ...], int]:
        windows, pair_window, tokens = tally.windows, tally.pair_window, tally.tokens  # type: ignore[attr-defined]
        return {
            (*map(int, windows[w]), int(v)): int(value) for w, v, value in zip(pair_window, tokens, values, strict=True)
        }

    forward = by_pair(tally, weighting.weigh(tally, reference).values)
    backward = by_pair(other, weighting.weigh(other, turned).values)
    assert forward.keys() == backward.keys()
    assert max(abs(forward[pair] - backward[pair]) for pair in forward) <= 1 << 12
