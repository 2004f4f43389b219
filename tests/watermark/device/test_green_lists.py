"""The bias on a device against the specification, and what it must leave alone to the bit.

Each test runs on PyTorch's path and, where there is a CUDA device or Triton interprets (TRITON_INTERPRET=1,
which `test_triton_kernels` sets in a process of its own), on Triton's.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import Batch, Slot, scope_named

from watermark import kernels
from watermark.errors import UsageError
from watermark.keys import ScopeKeys

torch = pytest.importorskip("torch", reason="the device path needs torch")

from watermark.device.green_lists import DeviceGreenLists  # noqa: E402
from watermark.device.windows import TokenTable, windows_from  # noqa: E402
from watermark.green_list import Outcome  # noqa: E402

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
MAX_SLOTS = 6
ROWS = 20

on_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
#: (device, whether Triton's kernels run). A path that can't run here is skipped, and says so.
PATHS = [
    pytest.param(("cpu", False), id="torch"),
    pytest.param(("cuda", False), id="torch-cuda", marks=on_cuda),
    pytest.param(
        ("cuda", True) if CUDA and not INTERPRETED else ("cpu", True),
        id="triton",
        marks=pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs a CUDA device or TRITON_INTERPRET=1"),
    ),
]
Path = tuple[str, bool]
#: Triton's interpreter takes some 10 ms a row.
EXAMPLES = 12 if INTERPRETED else 80

each_path = pytest.mark.parametrize("path", PATHS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def lists_of(scopes: list[ScopeKeys], path: Path, *, vocab_size: int, max_slots: int = MAX_SLOTS) -> DeviceGreenLists:
    device, fused = path
    return DeviceGreenLists(scopes, device=device, max_slots=max_slots, vocab_size=vocab_size, fused=fused)


def set_slots(lists: DeviceGreenLists, batch: Batch) -> None:
    for number, slot in batch.slots.items():
        account = slot.account
        word = None if account is None else batch.scopes[slot.scope].code_word(account)
        lists.set_slot(number, scope=slot.scope, addition=slot.addition, code_word=word)
    lists.flush()


def arguments(batch: Batch, device: str, dtype: Any = torch.int32) -> dict[str, Any]:
    return {
        "windows": torch.from_numpy(batch.windows).to(dtype).to(device),
        "row_slot": torch.tensor(batch.row_slot, dtype=dtype, device=device),
        "window_length": torch.tensor(batch.window_length, dtype=dtype, device=device),
    }


def awkward(rows: int, stride: int, dtype: Any, seed: int = 0) -> Any:
    """Return logits with -0.0, NaN payloads, infinities, denormals, ties and the largest values among them."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn((rows, stride), generator=generator) * 20).to(dtype)
    info = torch.finfo(dtype)
    odd = [-0.0, 0.0, -float("inf"), float("inf"), info.max, -info.max, info.tiny / 2, -info.tiny / 4, 256.0, 257.0]
    for place, value in enumerate(odd):
        logits[:, place :: 3 * len(odd)] = value
    bits = logits.view(BITS[dtype])
    nan = {torch.float32: 0x7FC01234, torch.bfloat16: 0x7FC5, torch.float16: 0x7E12}[dtype]
    bits[:, 11::41] = nan
    bits[:, 12::43] = -1  # A NaN with every bit set.
    return logits


def same_bits(a: Any, b: Any) -> bool:
    return bool((a.view(BITS[a.dtype]) == b.view(BITS[b.dtype])).all())


def assert_as_specified(got: Any, before: Any, batch: Batch) -> None:
    """Assert that *got* is *before* with the additions, rounded once; to the bit, but for a NaN that was added to."""
    got, before = got.cpu(), before.cpu()
    chosen = torch.from_numpy(batch.chosen(before.shape[1]))
    sums = (before.float() + torch.from_numpy(batch.additions())).to(before.dtype)
    expected = torch.where(chosen, sums, before)
    nan = chosen & before.isnan()
    assert got[nan].isnan().all()
    assert same_bits(got[~nan], expected[~nan])


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    vocab_size = draw(st.sampled_from((1, 31, 33, 300, 2048, 2500)))
    some_ids = st.integers(0, vocab_size - 1)
    scopes = [
        scope_named(
            f"scope-{number}",
            key=number + 1,
            window=draw(st.integers(1, 8)),
            account_lanes=draw(st.sampled_from((0, 16))),
            account_k=draw(st.integers(1, 255)),
            fleet_k=draw(st.integers(1, 255)),
            special_ids=tuple(sorted(draw(st.sets(some_ids | st.just(5000), max_size=3)))),
        )
        for number in range(draw(st.integers(1, 3)))
    ]
    additions = st.sampled_from((2.0, -1.5, 0.0, -0.0, 0.3, 1e-3))
    slots = {
        number: Slot(
            scope=draw(st.integers(0, len(scopes) - 1)),
            addition=draw(additions),
            account=draw(st.sampled_from((None, "a", "b"))),
        )
        for number in draw(st.sets(st.integers(0, MAX_SLOTS - 1), min_size=1))
    }
    rows = draw(st.integers(1, 8))
    width = max(scope.params.window for scope in scopes) + draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    windows = rng.integers(0, vocab_size, (rows, width))
    # Placeholders and ids that no logit has, here and there.
    windows[rng.random(windows.shape) < draw(st.sampled_from((0.0, 0.03)))] = draw(
        st.sampled_from((-1, vocab_size, -(2**31), 2**31 - 1))
    )
    return Batch(
        scopes=scopes,
        slots=slots,
        row_slot=draw(
            st.lists(st.integers(-1, MAX_SLOTS) | st.sampled_from(sorted(slots)), min_size=rows, max_size=rows)
        ),
        windows=windows,
        window_length=draw(st.lists(st.just(100) | st.integers(-3, 9), min_size=rows, max_size=rows)),
        vocab_size=vocab_size,
    )


@each_path
@each_dtype
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batch=batches(), padding=st.integers(0, 70), narrower=st.integers(0, 40), wide=st.booleans())
def test_rows_become_what_the_specification_says(
    path: Path, dtype: Any, batch: Batch, padding: int, narrower: int, wide: bool
) -> None:
    vocabulary = max(batch.vocab_size - narrower, 1)
    rows = len(batch.row_slot)
    lists = lists_of(batch.scopes, path, vocab_size=batch.vocab_size)
    set_slots(lists, batch)
    whole = awkward(rows, vocabulary + padding, dtype).to(path[0])
    before = whole.clone()
    lists.bias(whole[:, :vocabulary], **arguments(batch, path[0], torch.int64 if wide else torch.int32))
    assert_as_specified(whole[:, :vocabulary], before[:, :vocabulary], batch)
    assert same_bits(whole[:, vocabulary:], before[:, vocabulary:])
    assert (lists.counts() == batch.counts).all()


def plain(path: Path, *, rows: int = ROWS, vocab_size: int = 2100, **of: Any) -> tuple[DeviceGreenLists, Batch]:
    """Return rows of one scope, h = 2, each of a slot of its own, with windows that lie in all lanes."""
    scope = scope_named("one", window=2, **of)
    batch = Batch(
        scopes=[scope],
        slots={number: Slot(scope=0, addition=2.0) for number in range(rows)},
        row_slot=list(range(rows)),
        windows=np.random.default_rng(1).integers(8, vocab_size, (rows, 2)),
        window_length=[2] * rows,
        vocab_size=vocab_size,
    )
    lists = lists_of([scope], path, vocab_size=vocab_size, max_slots=rows)
    set_slots(lists, batch)
    return lists, batch


@each_path
@each_dtype
def test_what_is_added_is_torchs_own_sum(path: Path, dtype: Any) -> None:
    lists, batch = plain(path)
    before = awkward(ROWS, 2100, dtype).to(path[0])
    got = before.clone()
    lists.bias(got, **arguments(batch, path[0]))
    chosen = torch.from_numpy(batch.chosen(2100)).to(path[0]) & ~before.isnan()
    assert chosen.any()
    assert same_bits(got[chosen], (before + 2.0)[chosen])


@each_path
def test_the_generators_row_is_the_detectors_lookup(path: Path) -> None:
    """What detection looks up pair by pair, with other kernels, is what the device added to."""
    lists, batch = plain(path)
    scope = batch.scopes[0]
    for dtype in DTYPES:
        logits = torch.zeros((ROWS, 2100), dtype=dtype, device=path[0])
        lists.bias(logits, **arguments(batch, path[0]))
        windows = batch.windows.astype(np.uint32)
        lanes = kernels.lanes(windows)
        looked_up = kernels.green(
            kernels.seeds(scope.lane_words(), windows, lanes),
            scope.params.bounds()[lanes],
            np.repeat(np.arange(ROWS, dtype=np.int64), 2100),
            np.tile(np.arange(2100, dtype=np.uint32), ROWS),
        )
        assert ((logits > 0).cpu().numpy() == looked_up.reshape(ROWS, 2100)).all()


@each_path
@each_dtype
def test_rows_that_are_not_marked_stay_bit_identical_in_a_mixed_batch(path: Path, dtype: Any) -> None:
    lists, batch = plain(path, account_lanes=16, special_ids=(0, 1))
    for row in range(0, ROWS, 4):
        lists.set_slot(row, scope=0, addition=0.0, code_word=None)
        batch.slots[row].addition = 0.0
    batch.windows[1, 0] = 0  # special
    batch.windows[2, 1] = -1  # a placeholder
    batch.window_length[3] = 1
    lists.clear_slot(5)
    del batch.slots[5]
    lists.flush()
    before = awkward(ROWS, 2100, dtype).to(path[0])
    got = before.clone()
    lists.bias(got, **arguments(batch, path[0]))
    marked = [batch.outcome(row)[0] == Outcome.MARKED for row in range(ROWS)]
    assert 3 < sum(marked) < 15
    for row in range(ROWS):
        assert same_bits(got[row], before[row]) != marked[row]
    assert_as_specified(got, before, batch)


@each_path
def test_special_ids_stay_bit_identical_in_complemented_rows_too(path: Path) -> None:
    special = (*range(0, 40, 3), 2047, 2048, 2099)
    lists, batch = plain(path, account_lanes=16, special_ids=special)
    for row in range(ROWS):
        batch.slots[row].account = "a"
    batch.windows[batch.windows < 40] = 40
    batch.windows[np.isin(batch.windows, special)] = 41
    set_slots(lists, batch)
    logits = torch.full((ROWS, 2100), -0.0, device=path[0])
    lists.bias(logits, **arguments(batch, path[0]))
    assert (logits[:, list(special)].view(torch.int32) == -(2**31)).all()
    assert (logits != 0).any(dim=1).all()
    assert_as_specified(logits, torch.full((ROWS, 2100), -0.0), batch)


@each_path
def test_a_slot_that_is_used_again_has_nothing_of_its_last_request(path: Path) -> None:
    lists, batch = plain(path, account_lanes=16)
    for row in range(ROWS):
        batch.slots[row] = Slot(scope=0, addition=2.0, account="first")
    set_slots(lists, batch)
    for account in ("second", None, "third"):
        for row in range(ROWS):
            batch.slots[row] = Slot(scope=0, addition=1.0, account=account)
        set_slots(lists, batch)
        logits = torch.zeros((ROWS, 2100), device=path[0])
        lists.bias(logits, **arguments(batch, path[0]))
        assert_as_specified(logits, torch.zeros((ROWS, 2100)), batch)


@each_path
def test_what_is_staged_takes_effect_at_flush(path: Path) -> None:
    lists, batch = plain(path)
    lists.set_slot(0, scope=0, addition=0.0)
    lists.clear_slot(1)
    first, second = torch.zeros((2, ROWS, 2100), device=path[0])
    lists.bias(first, **arguments(batch, path[0]))
    assert first.any(dim=1).all()
    lists.flush()
    lists.bias(second, **arguments(batch, path[0]))
    assert second.any(dim=1).tolist() == [False, False, *[True] * (ROWS - 2)]


@each_path
def test_scopes_come_and_go_without_a_table_moving(path: Path) -> None:
    lists, batch = plain(path)
    addresses = {name: tensor.data_ptr() for name, tensor in vars(lists.tables).items() if torch.is_tensor(tensor)}
    assert len(addresses) >= 10
    second = scope_named("two", key=7, window=3, special_ids=(4,))
    assert lists.add_scope(second) == 1
    assert lists.add_scope(second) == 1
    for row in range(ROWS // 2):
        batch.slots[row].scope = 1
    batch.scopes.append(second)
    batch.windows = np.random.default_rng(2).integers(8, 2100, (ROWS, 3))
    batch.window_length = [3] * ROWS
    set_slots(lists, batch)
    logits = torch.zeros((ROWS, 2100), device=path[0])
    lists.bias(logits, **arguments(batch, path[0]))
    assert_as_specified(logits, torch.zeros((ROWS, 2100)), batch)
    with pytest.raises(UsageError, match="in use by slots"):
        lists.remove_scope(1)
    for row in range(ROWS // 2):
        lists.clear_slot(row)
    lists.remove_scope(1)
    assert not lists.tables.lane_words[1].any()
    third = scope_named("three", key=8, window=1)
    assert lists.add_scope(third) == 1
    assert lists.counts()[1].tolist() == [0] * 5
    assert addresses == {name: getattr(lists.tables, name).data_ptr() for name in addresses}
    batch.scopes[1] = third
    set_slots(lists, batch)
    again = torch.zeros((ROWS, 2100), device=path[0])
    lists.bias(again, **arguments(batch, path[0]))
    assert_as_specified(again, torch.zeros((ROWS, 2100)), batch)


def test_slots_and_scopes_that_are_not_there_are_refused() -> None:
    lists, _ = plain(("cpu", False))
    with pytest.raises(UsageError, match="expected 0 to 19"):
        lists.set_slot(ROWS, scope=0, addition=1.0)
    with pytest.raises(UsageError, match="expected 0 to 19"):
        lists.clear_slot(-1)
    with pytest.raises(UsageError, match="no scope has this index"):
        lists.set_slot(0, scope=1, addition=1.0)
    with pytest.raises(UsageError, match="no scope has this index"):
        lists.remove_scope(-1)
    with pytest.raises(UsageError, match="another scope of this name"):
        lists.add_scope(scope_named("one"))
    for number in range(7):
        lists.add_scope(scope_named(f"more-{number}"))
    with pytest.raises(UsageError, match="all 8 places are taken"):
        lists.add_scope(scope_named("too-many"))
    for addition in (float("inf"), float("nan"), 1e39):
        with pytest.raises(ValueError, match="finite float32"):
            lists.set_slot(0, scope=0, addition=addition)
    for word in (np.zeros(4095, dtype=np.bool_), np.zeros(4096, dtype=np.uint8), np.zeros(64, dtype=np.uint64)):
        with pytest.raises(ValueError, match="code word: expected"):
            lists.set_slot(0, scope=0, addition=1.0, code_word=word)


def test_wrong_shapes_and_dtypes_are_refused() -> None:
    lists, batch = plain(("cpu", False))
    good = arguments(batch, "cpu")
    logits = torch.zeros((ROWS, 2100))
    for wrong in (logits.double(), logits[0], logits.t(), logits[:1].expand(ROWS, -1), torch.zeros((ROWS, 2101))):
        with pytest.raises(ValueError, match="logits: expected"):
            lists.bias(wrong, **good)
    for name, value in (
        ("row_slot", good["row_slot"][:-1]),
        ("row_slot", good["row_slot"].float()),
        ("window_length", good["window_length"][None]),
        ("windows", good["windows"].to(torch.int16)),
        ("windows", good["windows"][:, :1]),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            lists.bias(logits, **{**good, name: value})
    assert not logits.any()


def test_a_batch_without_rows_and_a_device_without_scopes_do_nothing() -> None:
    lists = DeviceGreenLists(device="cpu", max_slots=3, vocab_size=50)
    logits = torch.full((2, 50), -0.0)
    nothing = torch.zeros((2,), dtype=torch.int32)
    lists.bias(logits, windows=nothing[:, None], row_slot=nothing, window_length=nothing)
    assert (logits.view(torch.int32) == -(2**31)).all()
    lists.bias(logits[:0], windows=nothing[:0, None], row_slot=nothing[:0], window_length=nothing[:0])
    assert not lists.counts().any()


def test_packed_code_words_are_the_same() -> None:
    lists, batch = plain(("cpu", False), account_lanes=16)
    word = batch.scopes[0].code_word("a")
    lists.set_slot(0, scope=0, addition=1.0, code_word=word)
    lists.set_slot(1, scope=0, addition=1.0, code_word=np.packbits(word, bitorder="little"))
    lists.flush()
    assert (lists.tables.slots[0] == lists.tables.slots[1]).all()


def test_no_secret_in_a_repr_or_a_pickle() -> None:
    lists, _ = plain(("cpu", False))
    assert repr(lists) == "DeviceGreenLists(device=cpu, scopes={'one': 0}, PyTorch)"
    assert "tensor" not in repr(lists.tables)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(lists)


# ---- windows from an engine's table


def engine_step(
    rng: np.random.Generator, *, slots: int, requests: int, drafts: int, vocab_size: int
) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    """Return one step of a server like vLLM's Model Runner V2, and each row's response so far.

    The table holds what is committed; the drafts are in input_ids only, and what the table has in their
    places is left over from another request.
    """
    capacity = 40
    table = rng.integers(0, vocab_size, (slots, capacity))
    prompt_len = rng.integers(1, 20, slots)
    rows: dict[str, list[int]] = {"row_slot": [], "local_pos": [], "input_ids": [], "pos": []}
    responses = []
    for slot in rng.permutation(slots)[:requests].tolist():
        prompt = int(prompt_len[slot])
        total = int(rng.integers(prompt, prompt + 12))
        if rng.random() < 0.2:  # An unfinished chunk of the prompt: one row, fed an id of the prompt.
            total, count = int(rng.integers(1, prompt + 1)), 1
        else:
            count = 1 if total == prompt else 1 + int(rng.integers(0, drafts + 1))
        sequence = [*table[slot, :total].tolist(), *rng.integers(0, vocab_size, count - 1).tolist()]
        for local in range(count):
            end = total + local
            rows["row_slot"].append(slot)
            rows["local_pos"].append(local)
            rows["input_ids"].append(sequence[end - 1])
            rows["pos"].append(end - 1)
            responses.append(sequence[prompt:end])
    arrays = {name: np.array(values) for name, values in rows.items()}
    return {"all_token_ids": table, "prompt_len": prompt_len, **arrays}, responses


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 8), drafts=st.integers(0, 4))
def test_windows_are_the_ends_of_the_responses(seed: int, width: int, drafts: int) -> None:
    arrays, responses = engine_step(np.random.default_rng(seed), slots=5, requests=4, drafts=drafts, vocab_size=99)
    table = TokenTable(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    windows, length = windows_from(table, width=width)
    assert windows.dtype == length.dtype == torch.int32
    for row, response in enumerate(responses):
        assert max(int(length[row]), 0) == len(response)
        tail = response[-width:]
        assert windows[row, width - len(tail) :].tolist() == tail


@each_path
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    h=st.lists(st.integers(1, 8), min_size=1, max_size=2),
    drafts=st.integers(0, 4),
    wide=st.booleans(),
)
def test_a_step_of_an_engine_is_marked_from_its_table(
    path: Path, seed: int, h: list[int], drafts: int, wide: bool
) -> None:
    rng = np.random.default_rng(seed)
    arrays, responses = engine_step(rng, slots=5, requests=4, drafts=drafts, vocab_size=99)
    scopes = [scope_named(f"s{n}", key=n, window=h[n], special_ids=(3,)) for n in range(len(h))]
    batch = Batch(
        scopes=scopes,
        slots={slot: Slot(scope=slot % len(h), addition=2.0) for slot in range(4)},
        row_slot=arrays["row_slot"].tolist(),
        windows=np.array([[*[0] * 8, *response][-8:] for response in responses]),
        window_length=[len(response) for response in responses],
        vocab_size=99,
    )
    lists = lists_of(scopes, path, vocab_size=99, max_slots=5)
    set_slots(lists, batch)
    dtype = torch.int64 if wide else torch.int32
    table = TokenTable(**{name: torch.from_numpy(array).to(dtype).to(path[0]) for name, array in arrays.items()})
    before = awkward(len(responses), 99, torch.float32).to(path[0])
    got = before.clone()
    lists.bias_from_table(got, table=table)
    assert_as_specified(got, before, batch)
    assert (lists.counts() == batch.counts).all()


@each_path
def test_rows_whose_slot_or_place_makes_no_sense_are_left_alone(path: Path) -> None:
    """An engine may hand over rows that it padded a batch with."""
    lists, _ = plain(path, rows=4)
    ints = {"dtype": torch.int32, "device": path[0]}
    table = TokenTable(
        all_token_ids=torch.full((4, 16), 9, **ints),
        prompt_len=torch.zeros(4, **ints),
        row_slot=torch.tensor([-1, 4, 2**30, 0, 1], **ints),
        local_pos=torch.tensor([0, 0, 0, 0, 0], **ints),
        input_ids=torch.tensor([9, 9, 9, -1, 9], **ints),
        pos=torch.tensor([5, 5, 5, 5, -7], **ints),
    )
    logits = torch.full((5, 2100), -0.0, device=path[0])
    lists.bias_from_table(logits, table=table)
    assert (logits.view(torch.int32) == -(2**31)).all()
    assert lists.counts()[0].tolist() == [0, 0, 2, 0, 0]


def test_a_table_of_another_shape_is_refused() -> None:
    lists, _ = plain(("cpu", False), rows=4)
    row = torch.zeros(2, dtype=torch.int32)
    good = {
        "all_token_ids": torch.zeros((4, 16), dtype=torch.int32),
        "prompt_len": torch.zeros(4, dtype=torch.int32),
        "row_slot": row,
        "local_pos": row,
        "input_ids": row,
        "pos": row,
    }
    logits = torch.zeros((2, 2100))
    lists.bias_from_table(logits, table=TokenTable(**good))
    for name, value in (("prompt_len", row), ("pos", row.float()), ("input_ids", row[:1]), ("local_pos", row[None])):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            lists.bias_from_table(logits, table=TokenTable(**{**good, name: value}))
    short = {**good, "all_token_ids": good["all_token_ids"][:3], "prompt_len": good["prompt_len"][:3]}
    with pytest.raises(ValueError, match="expected 4 or more slots"):
        lists.bias_from_table(logits, table=TokenTable(**short))
    with pytest.raises(ValueError, match="width: expected 1 to 8"):
        windows_from(TokenTable(**good), width=9)


# ---- on CUDA only


@on_cuda
@pytest.mark.parametrize("fused", [False, True])
def test_nothing_waits_for_the_device(fused: bool) -> None:
    lists, batch = plain(("cuda", fused))
    logits = torch.zeros((ROWS, 2100), device="cuda")
    on_device = arguments(batch, "cuda")
    lists.bias(logits, **on_device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        lists.set_slot(0, scope=0, addition=1.0)
        lists.flush()
        lists.add_scope(scope_named("later"))
        lists.bias(logits, **on_device)
        windows_from(
            TokenTable(
                all_token_ids=on_device["windows"],
                prompt_len=on_device["row_slot"],
                row_slot=on_device["row_slot"],
                local_pos=on_device["row_slot"] * 0,
                input_ids=on_device["row_slot"],
                pos=on_device["row_slot"],
            ),
            width=2,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_cuda
@pytest.mark.parametrize("fused", [False, True])
def test_a_captured_graph_sees_slots_and_scopes_that_came_later(fused: bool) -> None:
    lists, batch = plain(("cuda", fused))
    static = arguments(batch, "cuda")
    logits = torch.zeros((ROWS, 2100), device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        lists.bias(logits, **static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lists.bias(logits, **static)
    later = scope_named("later", key=5, window=2)
    batch.scopes.append(later)
    index = lists.add_scope(later)
    for row in range(ROWS // 2):
        batch.slots[row] = Slot(scope=index, addition=1.0)
    set_slots(lists, batch)
    batch.windows = np.random.default_rng(9).integers(8, 2100, (ROWS, 2))
    static["windows"].copy_(torch.from_numpy(batch.windows))
    logits.zero_()
    graph.replay()
    assert_as_specified(logits, torch.zeros((ROWS, 2100)), batch)
