"""What marking one row of a 128,256-token vocabulary costs, beside what else could be done to the row.

    pytest benchmarks/test_green_list_speed.py

The group `row` holds, for one row of float32 logits: the bias, the bare in-place add of a number to all of
it (the least that any bias costs), and torch.randperm (the least that a watermark costs whose green list is
part of a permutation of the vocabulary). The group `batch` holds 32 rows. No time is asserted, but for the
two ratios that are promised, in `test_ratios` (marked slow), where all three alternate in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
import pytest

from watermark.green_list import GreenList
from watermark.keys import Params, ScopeKeys, Secret

VOCABULARY = 128_256


@pytest.fixture(scope="module")
def green_list() -> GreenList:
    params = Params(tokenizer="00" * 32, special_ids=tuple(range(128_000, VOCABULARY)), window=2, account_lanes=0)
    green_list = GreenList(ScopeKeys(name="speed", params=params, delta=2.0, key=Secret(bytes(32))))
    green_list.bias(*batch(1))  # Loads the compiled kernels, or compiles them.
    return green_list


def batch(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (rows, VOCABULARY)).astype(np.float32)
    return logits, rng.integers(0, 128_000, (rows, 2), dtype=np.uint32)


def add(row: np.ndarray) -> None:
    row += 2.0


@pytest.mark.benchmark(group="row")
def test_bias_of_a_row(benchmark: Any, green_list: GreenList) -> None:
    logits, windows = batch(1)
    benchmark(green_list.bias, logits, windows)


@pytest.mark.benchmark(group="row")
def test_bare_add_to_a_row(benchmark: Any) -> None:
    logits, _ = batch(1)
    benchmark(add, logits)


@pytest.mark.benchmark(group="row")
def test_permutation_of_a_row(benchmark: Any) -> None:
    torch = pytest.importorskip("torch")
    benchmark(torch.randperm, VOCABULARY)


@pytest.mark.benchmark(group="batch")
def test_bias_of_32_rows(benchmark: Any, green_list: GreenList) -> None:
    logits, windows = batch(32)
    benchmark(green_list.bias, logits, windows)


@pytest.mark.benchmark(group="batch")
def test_bare_add_to_32_rows(benchmark: Any) -> None:
    logits, _ = batch(32)
    benchmark(add, logits)


@pytest.mark.benchmark(group="batch")
def test_processor_of_transformers_on_32_rows(benchmark: Any, green_list: GreenList) -> None:
    """What a step of `generate` pays: the copy, the windows and the bias."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from watermark.engines.transformers import GreenListLogitsProcessor

    logits, windows = batch(32)
    ids = torch.from_numpy(np.hstack([windows, windows]).astype(np.int64))
    processor = GreenListLogitsProcessor(green_list, prompt_length=2, temperature=1.0)
    benchmark(processor, ids, torch.from_numpy(logits))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.slow
def test_ratios(green_list: GreenList) -> None:
    """The bias takes at most 8 times the bare add (14 without AVX-512) and under a fifth of torch.randperm.

    SplitMix64 multiplies 64 bits twice a token. AVX-512 has an instruction for that; AVX2 takes three
    multiplications of 32 bits and their shifts, 26 instructions for 4 tokens in all.

    The three alternate, so that whatever else the machine does meets them alike, and the least of many
    rounds is compared, which is what a call takes when nothing interrupts it.
    """
    torch = pytest.importorskip("torch")
    biased, windows = batch(1)
    added, _ = batch(1)
    calls: dict[str, Callable[[], object]] = {
        "bias": lambda: green_list.bias(biased, windows),
        "add": lambda: add(added),
        "permutation": lambda: torch.randperm(VOCABULARY),
    }
    for call in calls.values():
        call()
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(2_000):
        for name, call in calls.items():
            least[name] = min(least[name], seconds(call))
    allowed = 8 if llvmlite.binding.get_host_cpu_features().get("avx512dq") else 14
    assert least["bias"] <= allowed * least["add"], least
    assert least["bias"] < least["permutation"] / 5, least


@pytest.mark.benchmark(group="accounts")
@pytest.mark.parametrize("accounts", [1, 24_000])
def test_bias_of_a_batch_of_so_many_accounts(benchmark: Any, accounts: int) -> None:
    """Each step of 32 rows, a quarter of them in account lanes, serves the next 32 accounts."""
    params = Params(tokenizer="00" * 32, special_ids=(), window=2, account_lanes=16)
    green_list = GreenList(ScopeKeys(name="speed", params=params, delta=2.0, key=Secret(bytes(32))))
    logits, windows = batch(32)
    names = [f"account-{number}" for number in range(accounts)]
    for name in names:
        green_list._code_word(name)
    served = 0

    def step() -> None:
        nonlocal served
        now = [names[(served + row) % accounts] for row in range(32)]
        served += 32
        green_list.bias(logits, windows, accounts=now)

    benchmark(step)


@pytest.mark.benchmark(group="account")
def test_code_word_of_a_new_account(benchmark: Any) -> None:
    scope = ScopeKeys(
        name="speed",
        params=Params(tokenizer="00" * 32, special_ids=(), window=2),
        delta=2.0,
        key=Secret(bytes(32)),
    )
    scope.packed_code_word("first")
    benchmark(scope.packed_code_word, "account-1")
