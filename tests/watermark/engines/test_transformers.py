"""transformers' adapters under the real `generate` and the real continuous batching, with a tiny random model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import markers
import numpy as np
import pytest

from watermark.errors import KeyringError, UsageError
from watermark.marker import Marker, RequestMark
from watermark.ticket import RequestRefusedError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from watermark.engines.process_marker import process_marker  # noqa: E402
from watermark.engines.transformers import (  # noqa: E402
    GreenListLogitsProcessor,
    GreenListWatermarkingConfig,
)
from watermark.engines.transformers_batching import add_request  # noqa: E402

V = 512
PROMPT = [[5, 6, 7, 8], [9, 10, 11, 12]]
#: Its special ids are 0 and 3; the model ends on neither, so that every answer has its full length.
LENGTH = 24


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.5,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("keys")
    key = markers.key_file(folder)
    path = folder / "taggant.toml"
    path.write_text(f'keyring = "{key}"\nfields = "plain"\n', encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def marker(configuration: str) -> Marker:
    return process_marker(configuration, vocabulary=V)


class Recording(transformers.LogitsProcessor):  # type: ignore[misc]
    """Keep every call of a processor."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls: list[tuple[list[list[int]], np.ndarray, np.ndarray]] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        before = scores.numpy().copy()
        after = self.inner(input_ids, scores)
        self.calls.append((input_ids.tolist(), before, after.numpy().copy()))
        return after


def options(**changes: Any) -> dict[str, Any]:
    return {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **changes}


def generate(model: Any, **changes: Any) -> Any:
    torch.manual_seed(1)
    with torch.inference_mode():
        return model.generate(torch.tensor(PROMPT), attention_mask=torch.ones(2, 4, dtype=int), **options(**changes))


def before(marker: Marker, **changes: Any) -> GreenListLogitsProcessor:
    assert marker.green_list is not None
    return GreenListLogitsProcessor(marker.green_list, prompt_length=4, **{"temperature": 0.0, **changes})


def check(recorded: Recording, marker: Marker, accounts: list[str | None], *, strength: float = 1.0) -> int:
    """Compare every row of every call with the specification; return how many were raised."""
    raised = 0
    for input_ids, scores, after in recorded.calls:
        for b, ids in enumerate(input_ids):
            request = RequestMark(green_list=marker.green_list, account=accounts[b * len(accounts) // len(input_ids)])
            expected = markers.expected_row(scores[b], request, ids[4:], strength=strength)
            assert after[b].tobytes() == expected.tobytes()
            raised += bool((expected != scores[b]).any())
    return raised


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.5])
def test_greedy_and_sampled_answers(model: Any, marker: Marker, temperature: float) -> None:
    recorded = Recording(before(marker, temperature=temperature, accounts=["a", None]))
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    out = generate(
        model,
        logits_processor=[recorded],
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **sampling,
    )
    assert check(recorded, marker, ["a", None], strength=max(temperature, 1.0)) > LENGTH
    for step, (_, scores, after) in enumerate(recorded.calls):
        # What is handed out as raw logits shows no mark; as scores, it does.
        assert (out.logits[step].numpy() == scores).all()
        assert np.allclose(out.scores[step].numpy(), after / (temperature or 1.0), atol=1e-5)


def test_beam_search_marks_each_beam_by_its_own_ids(model: Any, marker: Marker) -> None:
    recorded = Recording(before(marker, accounts=["a", "b"]))
    generate(model, logits_processor=[recorded], num_beams=3)
    assert {len(scores) for _, scores, _ in recorded.calls} == {6}
    assert check(recorded, marker, ["a", "b"]) > 3 * LENGTH


def test_returned_sequences_are_their_prompts_accounts(model: Any, marker: Marker) -> None:
    recorded = Recording(before(marker, temperature=1.0, accounts=["a", "b"]))
    generate(model, logits_processor=[recorded], do_sample=True, num_return_sequences=3)
    assert {len(scores) for _, scores, _ in recorded.calls} == {6}
    assert check(recorded, marker, ["a", "b"]) > 3 * LENGTH


def test_accounts_that_fit_no_rows_are_refused(model: Any, marker: Marker) -> None:
    with pytest.raises(UsageError, match="3 for 2 rows"):
        generate(model, logits_processor=[before(marker, accounts=["a", "b", "c"])])


@pytest.mark.parametrize("how", ["prompt lookup", "assistant"])
def test_assisted_decoding_says_what_greedy_decoding_says(model: Any, marker: Marker, how: str) -> None:
    def answer(**changes: Any) -> tuple[list[int], Recording]:
        recorded = Recording(before(marker, accounts=["a"]))
        with torch.inference_mode():
            out = model.generate(
                torch.tensor(PROMPT[:1]),
                attention_mask=torch.ones(1, 4, dtype=int),
                logits_processor=[recorded],
                **options(**changes),
            )
        return out[0].tolist(), recorded

    assist = {"prompt_lookup_num_tokens": 3} if how == "prompt lookup" else {"assistant_model": model}
    plain, _ = answer()
    assisted, recorded = answer(**assist)
    assert assisted == plain
    assert check(recorded, marker, ["a"]) > LENGTH / 2


def test_half_precision_rows_keep_their_type(marker: Marker) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        scores = torch.randn(1, V).to(dtype)
        biased = before(marker)(torch.tensor([[1, 1, 1, 1, 5, 6]]), scores)
        assert biased.dtype == dtype
        assert (biased != scores).any()


def watermarked(model: Any, configuration: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Recording:
    """Generate with a watermarking configuration, and record its processor."""
    kept = {name: changes.pop(name) for name in ("account", "mark", "temperature") if name in changes}
    config = GreenListWatermarkingConfig(configuration, **kept)
    recorded: list[Recording] = []
    construct = GreenListWatermarkingConfig.construct_processor

    def constructed(self: Any, vocab_size: int, device: Any) -> Recording:
        recorded.append(Recording(construct(self, vocab_size, device)))
        return recorded[0]

    monkeypatch.setattr(GreenListWatermarkingConfig, "construct_processor", constructed)
    generate(model, watermarking_config=config, **changes)
    return recorded[0]


@pytest.mark.parametrize("temperature", [0.25, 2.0])
def test_the_configuration_marks_after_the_filters(
    model: Any, marker: Marker, configuration: str, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    sampling = {"do_sample": True, "top_k": 20}
    recorded = watermarked(model, configuration, monkeypatch, account="a", temperature=temperature, **sampling)
    assert check(recorded, marker, ["a"], strength=max(temperature, 1.0) / temperature) > LENGTH
    for _, scores, after in recorded.calls:
        assert (np.isfinite(scores).sum(axis=1) == 20).all()  # The filter came before, and stays.
        assert (np.isfinite(after) == np.isfinite(scores)).all()


def test_the_operators_off_switch(model: Any, configuration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = watermarked(model, configuration, monkeypatch, mark=False)
    assert all(before.tobytes() == after.tobytes() for _, before, after in recorded.calls)


def test_the_configuration_is_saved_without_a_key_and_is_not_read_as_another(
    configuration: str, marker: Marker, tmp_path: Path
) -> None:
    ours = GreenListWatermarkingConfig(configuration, account="a")
    config = transformers.GenerationConfig(watermarking_config=ours)
    assert copy.deepcopy(config).watermarking_config.configuration == configuration
    saved = {"configuration": configuration, "account": "a", "mark": True, "temperature": 1.0}
    assert json.loads(config.to_json_string())["watermarking_config"] == saved
    config.save_pretrained(tmp_path)
    text = (tmp_path / "generation_config.json").read_text(encoding="utf-8")
    assert json.loads(text)["watermarking_config"] == saved
    assert markers.ROOT.reveal().hex() not in text
    # transformers knows its own marks only: better no model than one that is served unmarked, or with KGW's.
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        transformers.GenerationConfig.from_pretrained(tmp_path)
    assert GreenListWatermarkingConfig.from_dict(saved).to_dict() == ours.to_dict()


@pytest.mark.parametrize(
    "changes", [{"account": "\n"}, {"temperature": -1.0}, {"configuration": 7}], ids=lambda changes: next(iter(changes))
)
def test_a_malformed_configuration_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        GreenListWatermarkingConfig(**changes)


def test_a_signed_configuration_is_its_own_ingress(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = markers.key_file(tmp_path)
    path = tmp_path / "taggant.toml"
    path.write_text(f'keyring = "{key}"\nrequire_account = true\n', encoding="utf-8")
    with pytest.raises(RequestRefusedError, match="known accounts"):
        watermarked(model, str(path), monkeypatch)
    monkeypatch.undo()
    recorded = watermarked(model, str(path), monkeypatch, account="a")
    assert check(recorded, process_marker(str(path), vocabulary=V), ["a"]) > LENGTH


def test_a_missing_key_file_is_named(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "taggant.toml"
    path.write_text(f'keyring = "{tmp_path / "none.json"}"\n', encoding="utf-8")
    with pytest.raises(KeyringError, match=r"none\.json"):
        generate(model, watermarking_config=GreenListWatermarkingConfig(str(path)))


def batching(**changes: Any) -> Any:
    values = {"per_request_processors": True, "use_async_batching": False, "use_cuda_graph": False}
    return transformers.ContinuousBatchingConfig(**{**values, "max_batch_tokens": 256, "num_blocks": 16, **changes})


def generation(configuration: str, **changes: Any) -> Any:
    ours = GreenListWatermarkingConfig(configuration)
    return transformers.GenerationConfig(**options(eos_token_id=-1, watermarking_config=ours, **changes))


ACCOUNTS = [{"taggant_account": "a"}, {"taggant_account": "b"}, {"taggant_mark": "off"}, {}]


def test_continuous_batching_says_to_each_request_what_it_says_alone(
    model: Any, marker: Marker, configuration: str
) -> None:
    """Greedy answers under each account, of a server that mixes them, are those of `generate` for that account."""
    prompts = [[5 + i, 6, 7, 8 + i, 30, 31][: 4 + i % 3] for i in range(8)]
    with model.continuous_batching_context_manager(
        generation(configuration), continuous_batching_config=batching()
    ) as manager:
        asked = {}
        for i, prompt in enumerate(prompts):
            asked[add_request(manager, prompt, fields=ACCOUNTS[i % 4])] = (prompt, ACCOUNTS[i % 4])
        answers = {}
        while len(answers) < len(asked):
            result = manager.get_result(timeout=30)
            assert result is not None
            assert result.error is None
            answers[result.request_id] = result.generated_tokens
    for name, (prompt, fields) in asked.items():
        config = GreenListWatermarkingConfig(
            configuration, account=fields.get("taggant_account"), mark=fields.get("taggant_mark") != "off"
        )
        with torch.inference_mode():
            alone = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=int),
                **options(watermarking_config=config),
            )
        assert answers[name] == alone[0, len(prompt) :].tolist()
    assert len({tuple(answer) for answer in answers.values()}) == 8


def test_continuous_batching_refuses_a_request_before_it_is_queued(model: Any, configuration: str) -> None:
    with model.continuous_batching_context_manager(
        generation(configuration), continuous_batching_config=batching()
    ) as manager:
        with pytest.raises(RequestRefusedError):
            add_request(manager, [5, 6], fields={"taggant_account": "\n"})
        name = add_request(manager, [5, 6], fields={"taggant_account": "a"}, max_new_tokens=3)
        result = manager.get_result(request_id=name, timeout=30)
    assert len(result.generated_tokens) == 3


def test_a_request_that_is_named_like_a_warm_up_is_marked(model: Any, configuration: str) -> None:
    with model.continuous_batching_context_manager(
        generation(configuration), continuous_batching_config=batching()
    ) as manager:
        said = []
        for request_id in ("r", "__warmup_DECODING_0__"):
            name = add_request(manager, [5, 6], fields={"taggant_account": "a"}, request_id=request_id)
            said.append(manager.get_result(request_id=name, timeout=30).generated_tokens)
    assert said[0] == said[1]


def test_continuous_batching_never_serves_unmarked(model: Any, configuration: str) -> None:
    # A list of processors that are not a request's own.
    with model.continuous_batching_context_manager(
        generation(configuration), continuous_batching_config=batching(per_request_processors=False)
    ) as manager:
        with pytest.raises(UsageError, match="per_request_processors"):
            add_request(manager, [5, 6])
        manager.add_request([5, 6], max_new_tokens=3)
        result = manager.get_result(timeout=30)
    assert "per_request_processors" in result.error
    assert not result.generated_tokens


def test_a_ticket_that_was_forged_past_our_queue_is_refused(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from watermark.engines.transformers import MarkingProcessor
    from watermark.engines.transformers_batching import BatchMarkingProcessor
    from watermark.keys import Secret
    from watermark.serving import FieldTrust
    from watermark.ticket import TICKET_FIELD, Ticket, process_key, sign_ticket

    markers.key_file(tmp_path)
    marker = Marker(markers.config_of(tmp_path, fields=FieldTrust.SIGNED))
    processor = BatchMarkingProcessor(MarkingProcessor(marker, GreenListWatermarkingConfig()))

    def step(ticket: str, request_id: str) -> None:
        state = SimpleNamespace(
            request_id=request_id,
            max_new_tokens=9,
            created_time=0.0,
            logit_processor_kwargs={TICKET_FIELD: ticket},
            initial_tokens=[5, 6],
            generated_tokens=[7, 8],
            position_offset=4,
            _true_initial_tokens=0,
        )
        processor.prepare_tensor_args([SimpleNamespace(state=state)])

    with pytest.raises(RequestRefusedError, match="not signed"):
        step(sign_ticket(Ticket(account="victim", mark=False), Secret(bytes(32))), "forged")
    old = sign_ticket(Ticket(account="a"), process_key(), now=0)
    with pytest.raises(RequestRefusedError, match="was signed"):
        step(old, "never vouched for")
    fresh = sign_ticket(Ticket(account="a"), process_key())
    processor.vouch({TICKET_FIELD: fresh})
    step(fresh, "queued")
    assert processor._requests[0].account == "a"


def test_an_id_that_is_not_known_yet_stops_the_batch(marker: Marker, configuration: str) -> None:
    """What asynchronous batching looks like, which needs CUDA: the step runs ahead of the state on the host."""
    from types import SimpleNamespace

    from watermark.engines.transformers import MarkingProcessor
    from watermark.engines.transformers_batching import BatchMarkingProcessor
    from watermark.errors import TaggantError

    processor = BatchMarkingProcessor(MarkingProcessor(marker, GreenListWatermarkingConfig(configuration)))
    state = SimpleNamespace(
        request_id="r",
        max_new_tokens=9,
        created_time=0.0,
        logit_processor_kwargs={},
        initial_tokens=[5, 6],
        generated_tokens=[7, 8],
        position_offset=5,
        _true_initial_tokens=0,
    )
    with pytest.raises(TaggantError, match="use_async_batching=False"):
        processor.prepare_tensor_args([SimpleNamespace(state=state)])
    # A request that was put back, and starts over with what it had said among its prompt.
    state.initial_tokens, state._true_initial_tokens = [5, 6, 7, 8], 2
    state.generated_tokens, state.position_offset = [9], 5
    processor.prepare_tensor_args([SimpleNamespace(state=state)])
    assert processor._responses == [[8, 9]]
