"""vLLM's processor in vLLM's own persistent batch and slots, against the specification of the keyed function."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="needs vLLM")
torch = pytest.importorskip("torch", reason="needs torch")

from vllm import SamplingParams  # noqa: E402
from vllm.exceptions import GracefulHTTPError, VLLMValidationError  # noqa: E402

from watermark.engines import vllm as module  # noqa: E402
from watermark.engines import vllm_guard  # noqa: E402
from watermark.engines.vllm import GreenListProcessor, server_marker  # noqa: E402
from watermark.errors import KeyringError, TaggantError, TokenizerError, UsageError  # noqa: E402
from watermark.green_list import Outcome  # noqa: E402
from watermark.keyring import Keyring  # noqa: E402
from watermark.keys import Params, Secret  # noqa: E402
from watermark.life_cycle import activate, add_scope, retire, update_key_file  # noqa: E402
from watermark.self_test import specified_row  # noqa: E402
from watermark.tokenizer import load  # noqa: E402

# vLLM's and torch's own, at import.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SPECIAL = (256, 257)
#: The tokenizer has 258 ids, and the model puts out some more (padding).
WIDTH = 264
SLOTS = 5
SECOND = "2027-q1"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of the 256 bytes and two special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from watermark.gguf import byte_characters

    made = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(byte_characters())}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")])
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def key_file(tokenizer: Path, tmp_path: Path) -> Path:
    params = Params(tokenizer=load(tokenizer).digest(), special_ids=SPECIAL, window=2, account_lanes=16)
    keyring = Keyring(root=Secret(bytes(range(32))), scopes=())
    keyring = add_scope(keyring, "2026-q4", params=params, delta=2.0)
    keyring = add_scope(keyring, SECOND, params=params, delta=1.5)
    keyring = activate(keyring, "2026-q4", activation=bytes(range(7, 39)))
    keyring.write(tmp_path / "k.json")
    return tmp_path / "k.json"


@pytest.fixture
def configured(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Configured]:
    forget_marker()
    made = Configured(key_file, monkeypatch)
    made(fields="plain", refresh=3600.0)
    yield made
    made.close()


def forget_marker() -> None:
    if module._marker is not None:
        module._marker.close()
        module._marker = None


class Configured:
    """The environment of a server's process, set anew at each call."""

    def __init__(self, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.key_file = key_file
        self.monkeypatch = monkeypatch

    def __call__(self, **values: Any) -> None:
        self.close()
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
        path = self.key_file.with_name("c.toml")
        path.write_text(f"keyring = {json.dumps(str(self.key_file))}\n" + "".join(lines))
        self.monkeypatch.setenv("TAGGANT_CONFIG", str(path))

    def close(self) -> None:
        forget_marker()


def server(tokenizer: Path | str, **values: Any) -> Any:
    """A vLLM configuration, so much of it as is looked at."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            get_vocab_size=lambda: WIDTH,
            tokenizer=str(tokenizer),
            tokenizer_revision=None,
            logits_processors=values.get("logits_processors"),
            is_diffusion=values.get("is_diffusion", False),
        ),
        scheduler_config=SimpleNamespace(async_scheduling=values.get("async_scheduling", False), max_num_seqs=SLOTS),
        speculative_config=values.get("speculative_config"),
    )


def params_of(account: str | None = None, *, mark: str = "on", temperature: float = 1.0) -> SamplingParams:
    fields = {"taggant_mark": mark} | ({} if account is None else {"taggant_account": account})
    return SamplingParams(temperature=temperature, extra_args=fields)


def admitted(params: SamplingParams) -> SamplingParams:
    """What the sampling processes get of a request that the process which took it in has let pass."""
    GreenListProcessor.validate_params(params)
    return params.clone()


@dataclass
class Request:
    params: SamplingParams
    prompt: list[int]
    output: list[int]
    number: int = 0
    scope: Any = None
    state: Any = field(default=None, repr=False)

    def expected(self, logits: np.ndarray, tail: list[int]) -> np.ndarray:
        """The row after the response *tail*, by the specification."""
        marked = self.params.extra_args["taggant_mark"] == "on"
        window = tail[-2:]
        if not marked or len(window) < 2 or set(window) & set(SPECIAL):
            return logits
        account = self.params.extra_args.get("taggant_account")
        green = specified_row(self.scope, np.array(window, dtype=np.uint32), len(logits), account=account)
        addition = np.float32(self.scope.delta) * np.float32(max(self.params.temperature, 1.0))
        return np.where(green, logits + addition, logits)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


requests = st.builds(
    Request,
    params=st.builds(
        params_of,
        st.sampled_from([None, "acme", "beta"]),
        mark=st.sampled_from(["on", "on", "on", "off"]),
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
    ),
    prompt=st.lists(st.integers(0, 257), min_size=1, max_size=4),
    output=st.just([]),
)


def logits_of(rows: int, random: np.random.Generator) -> np.ndarray:
    logits = random.normal(0, 4, (rows, WIDTH)).astype(np.float32)
    logits[random.random((rows, WIDTH)) < 0.1] = -np.inf
    return logits


def ids(random: np.random.Generator, count: int) -> list[int]:
    # Few ids, so that special ones are met often.
    return random.choice([3, 5, 7, 11, 256, 257], count, p=[0.22, 0.22, 0.22, 0.22, 0.06, 0.06]).tolist()


class V1Batch:
    """vLLM's own persistent batch, driven as its model runner drives it."""

    def __init__(self, processor: GreenListProcessor) -> None:
        from vllm.v1.sample.logits_processor import LogitsProcessors
        from vllm.v1.worker.gpu_input_batch import InputBatch

        self.batch = InputBatch(
            max_num_reqs=SLOTS,
            max_model_len=64,
            max_num_batched_tokens=64,
            device=torch.device("cpu"),
            vocab_size=WIDTH,
            block_sizes=[16],
            max_num_blocks_per_req=[4],
            logitsprocs=LogitsProcessors([processor]),
            logitsprocs_need_output_token_ids=True,
        )
        self.processor = processor
        self.running: dict[str, Request] = {}
        self.waiting: list[Request] = []

    def step(self, gone: list[str], come: list[Request], swaps: list[tuple[int, int]], random: Any) -> None:
        for name in gone:
            self.batch.remove_request(name)
        for request in come:
            self.add(request)
        self.batch.condense()
        for a, b in swaps:
            if a != b and max(a, b) < self.batch.num_reqs:
                self.batch.swap_states(a, b)
        self.batch.refresh_metadata()
        if not self.batch.num_reqs:
            return
        order = [self.running[name] for name in self.batch.req_ids]
        logits = logits_of(len(order), random)
        tensor = torch.from_numpy(logits.copy())
        assert self.processor.apply(tensor) is tensor
        for row, before, request in zip(tensor.numpy(), logits, order, strict=True):
            assert same_bits(row, request.expected(before, request.state.output_token_ids))
        for request in order:
            if random.random() < 0.9:  # Else a part of a long prompt, whose sample is thrown away.
                request.state.output_token_ids.extend(ids(random, 1))

    def add(self, request: Request) -> None:
        from vllm.v1.worker.gpu_input_batch import CachedRequestState

        name = str(request.number)
        if request.state is None:
            request.state = CachedRequestState(
                req_id=name,
                prompt_token_ids=request.prompt,
                mm_features=[],
                sampling_params=request.params,
                generator=None,
                block_ids=([0],),
                num_computed_tokens=0,
                output_token_ids=request.output,
            )
        self.running[name] = request
        self.batch.add_request(request.state)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A place that is not the host for the processor, and is for torch."""
    from watermark.device import requests

    made = requests.DeviceRequests
    monkeypatch.setattr(
        requests, "DeviceRequests", lambda marker, *, device, **sizes: made(marker, device="cpu", **sizes)
    )
    return SimpleNamespace(type="elsewhere")


@pytest.mark.parametrize("place", ["host", "device"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_each_row_of_the_v1_batch_is_as_specified_after_whatever_happens_to_the_batch(
    configured: Configured, tokenizer: Path, on_device: Any, place: str, data: st.DataObject, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scope = server_marker().green_list.scope
    device = torch.device("cpu") if place == "host" else on_device
    batch = V1Batch(GreenListProcessor(server(tokenizer), device, False))
    preempted: list[Request] = []
    number = 0
    for _ in range(data.draw(st.integers(1, 12))):
        running = list(batch.batch.req_ids)
        gone = data.draw(st.lists(st.sampled_from(running), unique=True)) if running else []
        places = SLOTS - len(running) + len(gone)
        come = [preempted.pop() for _ in range(min(places, len(preempted))) if data.draw(st.booleans())]
        for _ in range(min(places - len(come), data.draw(st.integers(0, 3)))):
            request = data.draw(requests)
            number += 1
            come.append(Request(admitted(request.params), request.prompt, [], number=number, scope=scope))
        for name in gone:
            if data.draw(st.booleans()):
                request = batch.running[name]
                if data.draw(st.booleans()):  # As with asynchronous scheduling: another list of the same ids.
                    request.state.output_token_ids = list(request.state.output_token_ids)
                preempted.append(request)
        swaps = data.draw(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1)), max_size=2))
        batch.step(gone, come, swaps, random)
    if place == "device":  # No slot is lost.
        runner = batch.processor._runner
        assert len(runner._free_slots) == 2 * SLOTS - batch.batch.num_reqs


class V2Slots:
    """The V2 runner's slots, with draft tokens, unfinished prefills and preemption: its tensors and order of calls."""

    def __init__(self, tokenizer: Path) -> None:
        self.ids = torch.zeros((SLOTS, 64), dtype=torch.int32)
        self.prompt_len = torch.zeros(SLOTS, dtype=torch.int32)
        self.prefill_len = torch.zeros(SLOTS, dtype=torch.int32)
        self.states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=SLOTS,
            vocab_size=WIDTH,
            all_token_ids=SimpleNamespace(gpu=self.ids),
            prompt_len=SimpleNamespace(gpu=self.prompt_len, np=self.prompt_len.numpy()),
            prefill_len=SimpleNamespace(gpu=self.prefill_len, np=self.prefill_len.numpy()),
        )
        self.processor = GreenListProcessor(server(tokenizer), self.states)
        self.slots: dict[int, Request] = {}

    def add(self, request: Request) -> None:
        slot = next(slot for slot in range(SLOTS) if slot not in self.slots)
        known = request.prompt + request.output
        self.ids[slot] = 13  # What an earlier request left there.
        self.ids[slot, : len(known)] = torch.tensor(known)
        self.prompt_len[slot], self.prefill_len[slot] = len(request.prompt), len(known)
        assert self.processor.add_request(slot, request.params) == (request.params.extra_args["taggant_mark"] == "on")
        self.slots[slot] = request

    def step(self, random: Any, drafts: int) -> None:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

        self.processor.apply_staged_writes()
        rows: list[tuple[int, int, int, int, list[int]]] = []
        order = random.permutation(list(self.slots)).tolist()
        for slot in order:
            request = self.slots[slot]
            known = request.prompt + request.output
            unfinished = random.random() < 0.15 and not request.output
            if unfinished and len(known) > 1:
                part = known[: int(random.integers(1, len(known)))]
                rows.append((slot, 0, part[-1], len(part) - 1, part))
                continue
            guessed = known + (ids(random, int(random.integers(0, drafts + 1))) if request.output else [])
            for local in range(len(guessed) - len(known) + 1):
                place = len(known) - 1 + local
                rows.append((slot, local, guessed[place], place, guessed[: place + 1]))
        if not rows:
            return
        slot_of, local_pos, fed, pos = (
            torch.tensor([row[column] for row in rows], dtype=torch.int32) for column in range(4)
        )
        mapping = torch.tensor(order, dtype=torch.int32)
        context = LogitsContext(
            expanded_idx_mapping=slot_of,
            idx_mapping=mapping,
            idx_mapping_np=mapping.numpy(),
            expanded_local_pos=local_pos,
            input_ids=fed,
            pos=pos.long(),
            seq_lens_upper_bound_np=np.zeros(len(order)),
        )
        logits = logits_of(len(rows), random)
        tensor = torch.from_numpy(logits.copy())
        assert self.processor.apply(tensor, context) is tensor
        for row, before, (slot, _, _, _, known) in zip(tensor.numpy(), logits, rows, strict=True):
            request = self.slots[slot]
            assert same_bits(row, request.expected(before, known[len(request.prompt) :]))
        for slot in order:
            request = self.slots[slot]
            for token in ids(random, int(random.integers(0, 3))):
                self.ids[slot, len(request.prompt) + len(request.output)] = token
                request.output.append(token)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_each_row_of_the_v2_slots_is_as_specified_with_drafts_preemption_and_slots_used_again(
    configured: Configured, tokenizer: Path, data: st.DataObject, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scope = server_marker().green_list.scope
    slots = V2Slots(tokenizer)
    preempted: list[Request] = []
    for _ in range(data.draw(st.integers(1, 10))):
        for slot in data.draw(st.lists(st.sampled_from(list(slots.slots)), unique=True)) if slots.slots else []:
            request = slots.slots.pop(slot)
            if data.draw(st.booleans()):
                preempted.append(request)
        while preempted and len(slots.slots) < SLOTS and data.draw(st.booleans()):
            slots.add(preempted.pop())
        while len(slots.slots) < SLOTS and data.draw(st.booleans()):
            request = data.draw(requests)
            slots.add(Request(admitted(request.params), request.prompt, [], scope=scope))
        slots.step(random, drafts=data.draw(st.integers(0, 3)))


def one_row(processor: GreenListProcessor, params: SamplingParams, output: list[int]) -> np.ndarray:
    """The bias of a batch of one request (V1)."""
    update = SimpleNamespace(batch_size=1, removed=[], added=[(0, params, [1], output)], moved=[])
    processor.update_state(update)
    return np.asarray(processor.apply(torch.zeros((1, WIDTH)))[0].numpy())


def test_a_request_keeps_its_scope_and_those_after_it_take_the_new_one(configured: Configured, tokenizer: Path) -> None:
    before = admitted(params_of("acme"))
    update_key_file(configured.key_file, lambda keyring: retire(activate(keyring, SECOND), "2026-q4"))
    server_marker().refresh()
    after = admitted(params_of("acme"))
    processor = GreenListProcessor(server(tokenizer), torch.device("cpu"), False)
    assert [one_row(processor, params, [3, 5]).max() for params in (before, after)] == [2.0, 1.5]


def test_a_sampling_process_that_has_not_seen_the_new_scope_yet_marks_under_it_all_the_same(
    configured: Configured, tokenizer: Path
) -> None:
    processor = GreenListProcessor(server(tokenizer), torch.device("cpu"), False)
    assert server_marker().green_list.scope.name == "2026-q4"
    update_key_file(configured.key_file, lambda keyring: activate(keyring, SECOND))
    params = params_of("acme")
    params.extra_args["taggant_scope"] = SECOND  # Another process, which has seen it, took the request in.
    assert one_row(processor, params, [3, 5]).max() == 1.5
    assert server_marker().green_list.scope.name == SECOND


def test_a_client_cannot_name_the_scope(configured: Configured) -> None:
    params = params_of("acme")
    params.extra_args["taggant_scope"] = SECOND
    assert admitted(params).extra_args["taggant_scope"] == "2026-q4"


@pytest.mark.parametrize("fields", [{"taggant_ticket": "forged"}, {"taggant_account": "acme"}, {"taggant_mark": "off"}])
def test_a_clients_own_fields_are_refused_with_403(configured: Configured, fields: dict[str, str]) -> None:
    configured(fields="signed")
    with pytest.raises(GracefulHTTPError, match="ingress") as refused:
        GreenListProcessor.validate_params(SamplingParams(extra_args=fields))
    assert refused.value.http_status == 403


def test_a_malformed_field_is_refused_with_400(configured: Configured) -> None:
    with pytest.raises(VLLMValidationError, match='expected "on" or "off"'):
        GreenListProcessor.validate_params(params_of("acme", mark="perhaps"))


def test_where_an_account_is_required_a_request_without_gets_401(configured: Configured) -> None:
    configured(fields="plain", require_account=True)
    with pytest.raises(GracefulHTTPError, match="API key") as refused:
        GreenListProcessor.validate_params(SamplingParams())
    assert refused.value.http_status == 401


def test_when_the_last_scope_is_retired_requests_get_503(configured: Configured) -> None:
    assert server_marker().green_list is not None
    update_key_file(configured.key_file, lambda keyring: retire(keyring, "2026-q4"))
    server_marker().refresh()
    with pytest.raises(GracefulHTTPError, match="keys activate") as refused:
        GreenListProcessor.validate_params(params_of())
    assert refused.value.http_status == 503


def test_beam_search_as_vllm_does_it_is_refused(configured: Configured) -> None:
    """VLLM's own beam search is run up to the request that it sends to its engine."""
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.sampling_params import BeamSearchParams

    class Serving(BeamSearchOnlineMixin):
        renderer = SimpleNamespace(get_tokenizer=lambda: SimpleNamespace(eos_token_id=2))

        class engine_client:  # noqa: N801
            input_processor = SimpleNamespace(resolve_watermarking=lambda params: False)

            @staticmethod
            async def generate(prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any) -> Any:
                GreenListProcessor.validate_params(sampling_params)
                yield None

    async def run() -> None:
        prompt = {"type": "token", "prompt_token_ids": [1, 2]}
        async for _ in Serving().beam_search(prompt, "r", BeamSearchParams(beam_width=2, max_tokens=4)):
            pass

    with pytest.raises(VLLMValidationError, match="use_beam_search"):
        asyncio.run(run())


def test_what_merely_looks_a_little_like_beam_search_is_served(configured: Configured) -> None:
    GreenListProcessor.validate_params(SamplingParams(max_tokens=1, logprobs=4))
    GreenListProcessor.validate_params(SamplingParams(max_tokens=8, logprobs=4, detokenize=False))


def test_the_replay_of_a_trace_is_refused(configured: Configured) -> None:
    with pytest.raises(VLLMValidationError, match="trace"):
        GreenListProcessor.validate_params(SamplingParams(trace_decode_token_ids=[1, 2, 3]))
    assert server_marker().counts.requests == {(None, "refused"): 1}


def test_loaded_twice_it_adds_delta_once(configured: Configured, tokenizer: Path) -> None:
    config = server(tokenizer)
    both = [GreenListProcessor(config, torch.device("cpu"), False) for _ in range(2)]
    update = SimpleNamespace(batch_size=1, removed=[], added=[(0, admitted(params_of()), [1], [3, 5])], moved=[])
    logits = torch.zeros((1, WIDTH))
    for processor in both:
        processor.update_state(update)
    for processor in both:
        processor.apply(logits)
    assert set(logits.unique().tolist()) == {0.0, 2.0}
    assert sum(server_marker().counts.tokens.values()) == 1


def test_loaded_twice_it_adds_delta_once_in_the_v2_runner(configured: Configured, tokenizer: Path) -> None:
    slots = V2Slots(tokenizer)
    slots.processor._config.model_config.tokenizer = str(tokenizer)
    second = GreenListProcessor(slots.processor._config, slots.states)
    assert not slots.processor.add_request(0, admitted(params_of()))
    slots.processor = second
    slots.add(Request(admitted(params_of()), [1], [3, 5], scope=server_marker().green_list.scope))
    slots.step(np.random.default_rng(1), drafts=0)


def test_made_anew_for_the_same_server_the_later_one_marks(configured: Configured, tokenizer: Path) -> None:
    config = server(tokenizer)
    first = GreenListProcessor(config, torch.device("cpu"), False)
    second = GreenListProcessor(config, torch.device("cpu"), False)
    del first
    gc.collect()
    assert one_row(second, admitted(params_of()), [3, 5]).max() == 2.0


def test_two_servers_in_one_process_both_mark(configured: Configured, tokenizer: Path) -> None:
    both = [GreenListProcessor(server(tokenizer), torch.device("cpu"), False) for _ in range(2)]
    assert [one_row(one, admitted(params_of()), [3, 5]).max() for one in both] == [2.0, 2.0]


def test_a_placeholder_stops_the_server_with_the_remedy(configured: Configured, tokenizer: Path) -> None:
    processor = GreenListProcessor(server(tokenizer), torch.device("cpu"), False)
    with pytest.raises(TaggantError, match=r"--logits-processors watermark\.engines\.vllm:GreenListProcessor"):
        one_row(processor, admitted(params_of()), [3, 5, -1])


def test_rows_for_other_requests_than_it_knows_stop_the_server(configured: Configured, tokenizer: Path) -> None:
    processor = GreenListProcessor(server(tokenizer), torch.device("cpu"), False)
    with pytest.raises(TaggantError, match="2 rows of logits for 0 requests"):
        processor.apply(torch.zeros((2, WIDTH)))


def test_asynchronous_scheduling_by_entry_point_alone_is_refused_at_the_start(
    configured: Configured, tokenizer: Path
) -> None:
    with pytest.raises(UsageError, match=r"--logits-processors watermark\.engines\.vllm:GreenListProcessor"):
        GreenListProcessor(server(tokenizer, async_scheduling=True), torch.device("cpu"), False)
    named = server(tokenizer, async_scheduling=True, logits_processors=["watermark.engines.vllm:GreenListProcessor"])
    GreenListProcessor(named, torch.device("cpu"), False)


def test_a_diffusion_model_is_refused(configured: Configured, tokenizer: Path) -> None:
    with pytest.raises(UsageError, match="diffusion"):
        GreenListProcessor(server(tokenizer, is_diffusion=True), torch.device("cpu"), False)


def test_another_models_tokenizer_is_refused(configured: Configured, tokenizer: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = (tokenizer / "tokenizer.json").read_text().replace("</s>", "<eos>")
    (other / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match="another tokenizer"):
        GreenListProcessor(server(other), torch.device("cpu"), False)


def test_a_tokenizer_that_cannot_be_told_is_refused_unless_it_is_named(
    configured: Configured, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TokenizerError, match=r'tokenizer = "/path/to/tokenizer\.json"'):
        GreenListProcessor(server(empty), torch.device("cpu"), False)
    configured(fields="plain", policy="optional")
    GreenListProcessor(server(empty), torch.device("cpu"), False)
    configured(fields="plain", tokenizer=str(tokenizer))
    GreenListProcessor(server(empty), torch.device("cpu"), False)


def test_unconfigured_it_refuses_to_start_and_switched_off_it_does_nothing(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_marker()
    for name in ("TAGGANT_CONFIG", "TAGGANT_KEYRING", "TAGGANT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="TAGGANT_KEYRING"):
        GreenListProcessor(server(tokenizer), torch.device("cpu"), False)
    monkeypatch.setenv("TAGGANT_POLICY", "off")
    processor = GreenListProcessor(server("nowhere", async_scheduling=True), torch.device("cpu"), False)
    assert not one_row(processor, SamplingParams(), [3, 5]).any()
    GreenListProcessor.validate_params(SamplingParams(max_tokens=1, logprobs=4, detokenize=False, watermarking=False))
    forget_marker()


def test_a_key_file_that_others_can_read_stops_the_start(configured: Configured, tokenizer: Path) -> None:
    configured.key_file.chmod(0o644)
    with pytest.raises(KeyringError, match="chmod"):
        GreenListProcessor(server(tokenizer), torch.device("cpu"), False)


def test_a_bias_that_goes_wrong_is_found_at_the_start(
    configured: Configured, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    green_list = server_marker().green_list
    monkeypatch.setattr(green_list, "_lane_words", green_list._lane_words ^ np.uint64(1))
    with pytest.raises(TaggantError, match="self-test"):
        GreenListProcessor(server(tokenizer), torch.device("cpu"), False)


def test_shadow_changes_no_logit_in_either_runner(configured: Configured, tokenizer: Path) -> None:
    configured(fields="plain", shadow=True)
    processor = GreenListProcessor(server(tokenizer), torch.device("cpu"), False)
    assert not one_row(processor, admitted(params_of("acme")), [3, 5]).any()
    assert server_marker().counts.shadowed == {"2026-q4": 1}
    slots = V2Slots(tokenizer)
    request = Request(admitted(params_of("acme")), [1], [3, 5], scope=server_marker().green_list.scope)
    request.expected = lambda logits, tail: logits  # type: ignore[method-assign]
    slots.add(request)
    slots.step(np.random.default_rng(0), drafts=1)
    slots.processor._runner.requests._count()
    assert server_marker().counts.shadowed["2026-q4"] >= 2


def test_the_counters_of_the_v2_runner_hold_the_rows_and_not_those_of_the_self_test(
    configured: Configured, tokenizer: Path
) -> None:
    slots = V2Slots(tokenizer)
    for output in ([3, 5], []):  # The first comes back after a preemption, and was counted before.
        slots.add(Request(admitted(params_of("acme")), [1], list(output), scope=server_marker().green_list.scope))
    slots.step(np.random.default_rng(0), drafts=0)
    slots.processor._runner.requests._count()
    counts = server_marker().counts
    assert counts.tokens == {("2026-q4", Outcome.MARKED): 1, ("2026-q4", Outcome.NO_WINDOW): 1}
    assert counts.requests == {("2026-q4", "marked"): 1}


def test_low_entropy_is_left_alone_on_the_device_too(configured: Configured, tokenizer: Path) -> None:
    configured(fields="plain", min_entropy=2.0)
    slots = V2Slots(tokenizer)
    slots.add(Request(admitted(params_of("acme")), [1], [3, 5], scope=server_marker().green_list.scope))
    slots.processor.apply_staged_writes()
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    zero = torch.zeros(2, dtype=torch.int32)
    context = LogitsContext(
        expanded_idx_mapping=zero,
        idx_mapping=zero[:1],
        idx_mapping_np=np.zeros(1, dtype=np.int32),
        expanded_local_pos=zero,
        input_ids=zero + 5,
        pos=zero.long() + 2,
        seq_lens_upper_bound_np=np.array([3]),
    )
    logits = torch.zeros((2, WIDTH))
    logits[1, 9] = 50.0
    certain = logits[1].clone()
    slots.processor.apply(logits, context)
    assert logits[0].max() == 2.0
    assert torch.equal(logits[1], certain)


class TestGuard:
    @pytest.fixture(autouse=True)
    def _unguarded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm.v1.sample import logits_processor

        built: list[Any] = []
        monkeypatch.setattr(logits_processor, "build_logitsprocs", lambda *args: built.append(args))
        monkeypatch.setattr(vllm_guard, "_guarded", False)
        self.built = built
        self.module = logits_processor

    def build(self, speculative: Any, *, pooling: bool = False) -> None:
        config = SimpleNamespace(speculative_config=speculative)
        self.module.build_logitsprocs(config, torch.device("cpu"), False, pooling, ())

    def test_speculative_decoding_with_the_v1_runner_is_refused(self, configured: Configured) -> None:
        vllm_guard.guard()
        vllm_guard.guard()
        with pytest.raises(UsageError, match="speculative"):
            self.build("ngram")
        assert not self.built

    def test_all_else_is_passed_on(self, configured: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
        vllm_guard.guard()
        self.build(None)
        self.build("ngram", pooling=True)
        monkeypatch.setenv("TAGGANT_POLICY", "off")
        self.build("ngram")
        assert len(self.built) == 3

    def test_an_allow_list_that_leaves_it_out_is_refused_at_the_request(
        self, configured: Configured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vllm_guard, "_announced", lambda: True)
        monkeypatch.setenv("VLLM_PLUGINS", "other")
        with pytest.raises(GracefulHTTPError, match="add taggant"):
            GreenListProcessor.validate_params(params_of())
        vllm_guard.guard()
        GreenListProcessor.validate_params(params_of())
