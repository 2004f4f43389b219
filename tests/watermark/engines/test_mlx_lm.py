"""mlx-lm's adapter in its real loops, with a tiny random model: single, batched, and with a draft model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import markers
import numpy as np
import pytest

from watermark.marker import Marker

mx = pytest.importorskip("mlx.core", reason="needs mlx")
pytest.importorskip("mlx_lm", reason="needs mlx-lm")

from watermark.engines.mlx_lm import GreenListProcessor  # noqa: E402

V = 512
PROMPT = [5, 6, 7, 8]
LENGTH = 24


@pytest.fixture(scope="module")
def model() -> Any:
    from mlx_lm.models import llama

    mx.random.seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2}
    made = llama.Model(llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, vocab_size=V, **shape))
    mx.eval(made.parameters())
    return made


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Marker:
    return markers.marker_of(tmp_path_factory.mktemp("keys"))


class Recording:
    """Keep every call of a processor."""

    def __init__(self, marker: Marker, fields: dict[str, str]) -> None:
        self.request = marker.admit(fields)
        self.inner = GreenListProcessor(marker, self.request)
        self.rows: list[tuple[list[int], np.ndarray, np.ndarray]] = []

    def __call__(self, tokens: Any, logits: Any) -> Any:
        marked = self.inner(tokens, logits)
        self.rows.append((np.array(tokens).tolist(), np.array(logits)[0], np.array(marked)[0]))
        return marked

    def check(self) -> int:
        """Compare every row with the specification; return how many were raised."""
        first, raised = len(self.rows[0][0]), 0
        for tokens, before, after in self.rows:
            expected = markers.expected_row(before, self.request, tokens[first:])
            assert after.tobytes() == expected.tobytes()
            raised += bool((after != before).any())
        return raised


def test_the_single_loop(model: Any, marker: Marker) -> None:
    from mlx_lm.generate import generate_step

    recorded = Recording(marker, {"taggant_account": "acme"})
    said = [int(t) for t, _ in generate_step(mx.array(PROMPT), model, max_tokens=LENGTH, logits_processors=[recorded])]
    assert len(said) == LENGTH
    assert recorded.check() > LENGTH / 2


def test_each_request_of_a_batch_is_its_own(model: Any, marker: Marker) -> None:
    from mlx_lm.generate import BatchGenerator

    fields = [{"taggant_account": "acme"}, {"taggant_account": "globex"}, {"taggant_mark": "off"}]
    recorded = [Recording(marker, said) for said in fields]
    generator = BatchGenerator(model, max_tokens=LENGTH)
    prompts = [PROMPT, [9, *PROMPT], PROMPT[1:]]
    generator.insert(prompts, logits_processors=[[one] for one in recorded])
    finished = 0
    for _ in range(4 * LENGTH):
        finished += sum(response.finish_reason is not None for response in generator.next()[1])
    generator.close()
    assert finished == 3
    for prompt, one in zip(prompts, recorded, strict=True):
        # The first call's ids are the prompt, whole or its end.
        assert prompt[-len(one.rows[0][0]) :] == one.rows[0][0]
    raised = [one.check() for one in recorded]
    assert min(raised[:2]) > LENGTH / 2
    assert raised[2] == 0


def test_a_draft_model_changes_nothing(model: Any, marker: Marker) -> None:
    from mlx_lm.generate import generate_step, speculative_generate_step

    def processors() -> list[GreenListProcessor]:
        return [GreenListProcessor(marker, marker.admit({"taggant_account": "acme"}))]

    plain = generate_step(mx.array(PROMPT), model, max_tokens=LENGTH, logits_processors=processors())
    drafted = speculative_generate_step(
        mx.array(PROMPT), model, model, num_draft_tokens=3, max_tokens=LENGTH, logits_processors=processors()
    )
    assert [int(said[0]) for said in drafted] == [int(t) for t, _ in plain]


def test_a_wrong_kernel_is_found_in_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from watermark.engines import mlx_lm

    checked: list[int] = []
    monkeypatch.setattr(mlx_lm, "check_marker", lambda marker, vocabulary: checked.append(vocabulary))
    marker = markers.marker_of(tmp_path)
    processor = GreenListProcessor(marker, marker.admit({}))
    for _ in range(2):
        processor(mx.array(PROMPT), mx.zeros((1, V)))
    assert checked == [V]
