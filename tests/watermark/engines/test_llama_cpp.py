"""llama-cpp-python's adapter in the real engine, with SmolLM2's weights: each trap, and each way of decoding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import markers
import numpy as np
import pytest

from watermark import prf
from watermark.errors import MissingExtraError, TaggantError, TokenizerError
from watermark.gguf import shipped_smollm2_gguf
from watermark.green_list import Outcome, before_temperature
from watermark.marker import Marker
from watermark.tokenizer import load

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")

from watermark.engines.llama_cpp import (  # noqa: E402
    GreenListLogitsProcessor,
    GreenListLogitsProcessorList,
    attach,
    processors,
    tokenizer_of,
)

pytestmark = pytest.mark.models

PROMPT = "Write a long story about the sea.\n"
ACCOUNT = {"taggant_account": "acme"}


def load_llama(**changes: Any) -> Any:
    try:
        path = shipped_smollm2_gguf()
    except MissingExtraError as error:
        pytest.skip(str(error))
    options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **changes}
    return llama_cpp.Llama(str(path), **options)


@pytest.fixture(scope="module")
def llama() -> Iterator[Any]:
    loaded = load_llama()
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def drafting() -> Iterator[Any]:
    """The same model with a draft model, and with the logits that logprobs want."""
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    loaded = load_llama(draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4), logits_all=True)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Marker:
    return markers.marker_of(tmp_path_factory.mktemp("keys"), smollm2=True)


def answer(llama: Any, marker: Marker, fields: dict[str, str] | None = None, **options: Any) -> tuple[list[int], Any]:
    """Complete the prompt, and return the ids that were drawn and the whole completion."""
    chosen = {"max_tokens": 48, "temperature": 1.0, "seed": 1, **options}
    strength = before_temperature(chosen["temperature"])
    given = processors(llama, marker, marker.admit(ACCOUNT if fields is None else fields, strength=strength))
    said: list[int] = []
    generate = llama.generate

    def spying(*args: Any, **kwargs: Any) -> Iterator[int]:
        for token in generate(*args, **kwargs):
            said.append(token)
            yield token

    llama.generate = spying
    try:
        completion = llama.create_completion(PROMPT, logits_processor=given, **chosen)
    finally:
        llama.generate = generate
    return said, completion


def windows_seen(llama: Any, marker: Marker, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record which ids of the response each row was marked by, those of the self-test left out."""
    attach(llama, marker)
    seen: list[list[int]] = []
    bias = marker.bias

    def recording(logits: Any, responses: Any, requests: Any) -> None:
        seen.append(list(map(int, responses[0])))
        bias(logits, responses, requests)

    monkeypatch.setattr(marker, "bias", recording)
    return seen


def z_of(marker: Marker, ids: list[int], account: str = "acme") -> float:
    """Return how many standard deviations more tokens are green than chance has."""
    assert marker.green_list is not None
    excess, variance = 0.0, 0.0
    for i in range(2, len(ids)):
        window, special = ids[i - 2 : i], marker.green_list.scope.params.special_ids
        if not set(ids[i - 2 : i + 1]) & set(special):
            lane = int(prf.lane(np.array([window], dtype=np.uint32))[0])
            gamma = 0.25 if lane < 48 else 0.5
            green = markers.green_of(marker.green_list, window, 49_152, account)
            excess += green[ids[i]] - gamma
            variance += gamma * (1 - gamma)
    return float(excess / np.sqrt(variance))


def test_the_engines_own_tokenizer_is_the_shipped_one(llama: Any) -> None:
    own, shipped = tokenizer_of(llama), load("smollm2")
    assert own.digest() == shipped.digest()
    assert own.special_ids == shipped.special_ids


def test_each_id_is_marked_by_the_two_before_it(llama: Any, marker: Marker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = windows_seen(llama, marker, monkeypatch)
    said, _ = answer(llama, marker)
    assert seen == [said[max(0, i - 2) : i] for i in range(len(said))]
    # The second call finds its prompt in the engine's cache of prefixes.
    seen.clear()
    again, _ = answer(llama, marker)
    assert again == said
    assert seen == [said[max(0, i - 2) : i] for i in range(len(said))]


def test_a_draft_models_guesses_are_no_part_of_a_window(
    drafting: Any, marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = windows_seen(drafting, marker, monkeypatch)
    shown: list[int] = []
    call = GreenListLogitsProcessor.__call__

    def recording(self: Any, input_ids: Any, scores: Any) -> Any:
        shown.append(len(input_ids))
        return call(self, input_ids, scores)

    monkeypatch.setattr(GreenListLogitsProcessor, "__call__", recording)
    said, _ = answer(drafting, marker, temperature=0.0)
    assert seen == [said[max(0, i - 2) : i] for i in range(len(said))]
    # More was shown than had been said: the trap is there.
    assert any(later - earlier != 1 for earlier, later in itertools.pairwise(shown))
    assert z_of(marker, said) > 4


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.3},
        {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"mirostat_mode": 1},
        {"mirostat_mode": 2},
        {"logit_bias": {5: -100.0, 6: 1.0}},
        {"repeat_penalty": 1.3, "presence_penalty": 0.5},
        {"grammar": "a-z"},
    ],
    ids=lambda options: next(iter(options)) + str(next(iter(options.values())))[:4],
)
def test_every_way_of_sampling_is_marked(llama: Any, marker: Marker, options: dict[str, Any]) -> None:
    options = dict(options)
    if "grammar" in options:
        options["grammar"] = llama_cpp.LlamaGrammar.from_string("root ::= [a-z ]+", verbose=False)
        options["logit_bias"] = dict.fromkeys(load("smollm2").special_ids, -100.0)  # It may not end early.
    said, completion = answer(llama, marker, max_tokens=96, **options)
    assert z_of(marker, said) > 3.5
    if "grammar" in options:
        assert set(completion["choices"][0]["text"]) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_an_unmarked_answer_is_what_the_engine_says_by_itself(llama: Any, marker: Marker) -> None:
    said, completion = answer(llama, marker, {"taggant_mark": "off"}, max_tokens=64)
    alone = llama.create_completion(PROMPT, max_tokens=64, temperature=1.0, seed=1)
    assert completion["choices"][0]["text"] == alone["choices"][0]["text"]
    assert abs(z_of(marker, said)) < 3.5


def test_seed_and_stream_give_the_same_answer(llama: Any, marker: Marker) -> None:
    _, completion = answer(llama, marker)
    given = processors(llama, marker, marker.admit(ACCOUNT))
    chunks = llama.create_completion(
        PROMPT, max_tokens=48, temperature=1.0, seed=1, stream=True, logits_processor=given
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == completion["choices"][0]["text"]


def test_logit_bias_drops_a_plain_list_and_not_ours(llama: Any, marker: Marker) -> None:
    def calls(kind: Any) -> int:
        processor = GreenListLogitsProcessor(marker, marker.admit(ACCOUNT))
        llama.create_completion(PROMPT, max_tokens=5, logit_bias={7: 1.0}, logits_processor=kind([processor]))
        return processor.calls

    attach(llama, marker)
    assert calls(GreenListLogitsProcessorList) == 5
    # The trap is there: this release drops a list of its own class.
    assert calls(llama_cpp.LogitsProcessorList) == 0


def test_a_servers_processor_stands_wherever_a_response_begins(
    llama: Any, marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat format may complete twice for one request, and drop the processors: each is a marked response."""
    seen = windows_seen(llama, marker, monkeypatch)
    processor = GreenListLogitsProcessor(marker, marker.admit(ACCOUNT))
    monkeypatch.setattr(llama.generate, "current", processor)
    for prompt in (PROMPT, PROMPT + "Once"):
        llama.create_completion(prompt, max_tokens=4, temperature=0.0, logit_bias={7: 1.0})
    assert [len(ids) for ids in seen] == [0, 1, 2, 2, 0, 1, 2, 2]


def test_what_goes_wrong_in_a_processor_ends_the_answer(
    llama: Any, marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ValueError("a placeholder")

    given = processors(llama, marker, marker.admit(ACCOUNT))
    monkeypatch.setattr(marker, "bias", fail)
    with pytest.raises(ValueError, match="a placeholder"):
        llama.create_completion(PROMPT, max_tokens=5, logits_processor=given)


def test_a_token_that_was_drawn_past_the_processor_ends_the_answer(llama: Any, marker: Marker) -> None:
    attach(llama, marker)
    list(llama.generate(llama.tokenize(b"a"), temp=0.0).__next__() for _ in range(1))
    given = processors(llama, marker, marker.admit(ACCOUNT))
    # The engine's sampler was built for a request without processors.
    with pytest.raises(TaggantError, match="without its logits processors"):
        llama.sample(logits_processor=given)
    llama._sampler = None


def test_logprobs_do_not_show_the_mark(drafting: Any, marker: Marker) -> None:
    """They are computed from the model's own logits, which the sampler chain has copied before we add to them."""
    draft, drafting.draft_model = drafting.draft_model, None
    try:
        said, completion = answer(drafting, marker, temperature=0.0, max_tokens=12, logprobs=3)
        ids = drafting.tokenize(PROMPT.encode())
        drafting.reset()
        drafting.eval([*ids, *said])
        own = llama_cpp.Llama.logits_to_logprobs(np.array(drafting.scores[len(ids) - 1 : len(ids) + len(said) - 1]))
    finally:
        drafting.draft_model = draft
    moved: list[float] = []
    reported = np.array(completion["choices"][0]["logprobs"]["token_logprobs"])
    assert marker.green_list is not None
    for i in range(2, len(said)):
        green = markers.green_of(marker.green_list, said[i - 2 : i], own.shape[1], "acme")
        shift = np.log(np.sum(np.exp(own[i] + 2.0 * green)))
        marked = own[i] + 2.0 * green - shift
        # One id at a time and many at once differ by some rounding of the quantised weights.
        assert abs(reported[i] - own[i, said[i]]) < 0.4
        moved.append(abs(marked[said[i]] - own[i, said[i]]))
    assert max(moved) > 0.8


def test_logprobs_are_refused_without_their_logits(llama: Any, marker: Marker) -> None:
    with pytest.raises(ValueError, match="logits_all=False"):
        answer(llama, marker, logprobs=3)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    llama = load_llama()
    with pytest.raises(TokenizerError, match="another tokenizer"):
        attach(llama, markers.marker_of(tmp_path))
    assert type(llama).generate is type(llama.generate.__self__).generate  # Nothing was hooked.
    llama.close()


def test_the_self_test_finds_an_engine_that_calls_no_processors(
    marker: Marker, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = load_llama()
    init = llama._init_sampler
    monkeypatch.setattr(llama, "_init_sampler", lambda **options: init(**{**options, "logits_processor": None}))
    with pytest.raises(TaggantError):
        attach(llama, marker)
    llama.close()


def test_the_self_test_counts_nothing(tmp_path: Path) -> None:
    marker = markers.marker_of(tmp_path, smollm2=True)
    llama = load_llama()
    attach(llama, marker)
    assert not marker.counts.tokens
    assert not marker.counts.requests
    llama.create_completion(PROMPT, max_tokens=5, logits_processor=processors(llama, marker, marker.admit(ACCOUNT)))
    assert marker.counts.requests == {("test", "marked"): 1}
    assert marker.counts.tokens == {("test", Outcome.NO_WINDOW): 2, ("test", Outcome.MARKED): 3}
    llama.close()
