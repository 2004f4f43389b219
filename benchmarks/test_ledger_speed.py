"""What the ledger takes on SQLite, and what it costs the thread that serves.

    pytest benchmarks/test_ledger_speed.py

Records of 300 token ids, retention `ids`, every commit brought to the disk. `write` is 20,000 records from the first
append to the end of `close`. `append` is one call, while the writer's thread is kept busy. `verify` and `export` read
what was written. `test_sustained` (slow) holds 5,000 responses a second for 20 seconds beside an event loop that
serves, and compares how late that loop wakes with and without the ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sqlalchemy")


from watermark.ledger.export import export_ledger
from watermark.ledger.reader import LedgerReader
from watermark.ledger.record import LedgerRecord, timestamp
from watermark.ledger.verify import verify_ledger
from watermark.ledger.writer import Ledger

IDS = np.random.default_rng(0).integers(0, 128_000, 300, dtype=np.uint32)
COUNT = 20_000


def record(number: int) -> LedgerRecord:
    now = timestamp()
    return LedgerRecord(
        id=f"chatcmpl-{number:016x}",
        started=now,
        ended=now,
        account=f"account-{number % 1000}",
        model="a/model",
        scope="2026-q4",
        fingerprint="ab" * 32,
        scheme="sipmix-v1",
        parameters={"delta": 2.0, "temperature": 0.7, "min_entropy": 0.0},
        marked=True,
        token_ids=IDS,
    )


@pytest.fixture(scope="module")
def records() -> list[LedgerRecord]:
    return [record(number) for number in range(COUNT)]


@pytest.fixture(scope="module")
def written(records: list[LedgerRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    with Ledger.open(path, origin="speed") as ledger:
        for item in records:
            ledger.append(item, timeout=60)
    return path


@pytest.mark.benchmark(group="ledger, 20,000 records")
def test_write(benchmark: Any, records: list[LedgerRecord], tmp_path: Path) -> None:
    names = itertools.count()

    def write() -> None:
        with Ledger.open(tmp_path / f"{next(names)}.db", origin="speed") as ledger:
            for item in records:
                ledger.append(item, timeout=60)

    benchmark.pedantic(write, rounds=3)


@pytest.mark.benchmark(group="ledger, 20,000 records")
def test_verify(benchmark: Any, written: Path) -> None:
    with LedgerReader.open(written) as reader:
        benchmark.pedantic(verify_ledger, args=(reader,), rounds=3)


@pytest.mark.benchmark(group="ledger, 20,000 records")
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_export(benchmark: Any, written: Path, suffix: str, tmp_path: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    with LedgerReader.open(written) as reader:
        benchmark.pedantic(export_ledger, args=(reader, tmp_path / f"out.{suffix}"), rounds=3)


@pytest.mark.benchmark(group="ledger, one record")
def test_record(benchmark: Any) -> None:
    benchmark(record, 1)


@pytest.mark.benchmark(group="ledger, one record")
def test_append(benchmark: Any, records: list[LedgerRecord], tmp_path: Path) -> None:
    """The median is what the caller pays; the writer is behind all the time."""
    with Ledger.open(tmp_path / "ledger.db", origin="speed", capacity=10_000_000) as ledger:
        benchmark.pedantic(ledger.append, args=(records[0],), rounds=40_000, warmup_rounds=5_000)


@pytest.mark.slow
def test_sustained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """5,000 responses a second for 20 s, while an event loop in the same interpreter wakes each millisecond."""
    quiet = asyncio.run(_serve(None, seconds=5))
    with Ledger.open(tmp_path / "ledger.db", origin="speed") as ledger:
        loaded = asyncio.run(_serve(ledger, seconds=20))
        behind = ledger.status()
    with capsys.disabled():
        for name, (late, cost, rate) in (("without", quiet), ("with", loaded)):
            median, p99 = (f"{statistics.quantiles(late, n=100)[at] * 1e6:.0f}" for at in (49, 98))
            print(
                f"\n{name} the ledger: {rate:.0f} responses/s; the loop wakes late by {median} us, p99 {p99} us", end=""
            )
            median, p99 = (f"{statistics.quantiles(cost, n=100)[at] * 1e6:.1f}" for at in (49, 98))
            print(f"; append takes {median} us, p99 {p99} us", end="")
        print(f"\nwaiting at the end: {behind.accepted - behind.written}")
    assert behind.accepted == 100_000
    assert behind.accepted - behind.written < 5_000


async def _serve(ledger: Ledger | None, *, seconds: float) -> tuple[list[float], list[float], float]:
    """Make 5 records each millisecond and append them; return how late the loop woke, and what each append took."""
    late, cost = [], []
    numbers = itertools.count()
    begun = time.perf_counter()
    for tick in range(int(seconds * 1000)):
        due = begun + tick / 1000
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
            late.append(time.perf_counter() - due)
        for _ in range(5):
            item = record(next(numbers))
            before = time.perf_counter()
            if ledger is not None:
                ledger.append(item)
            cost.append(time.perf_counter() - before)
    return late, cost, next(numbers) / (time.perf_counter() - begun)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ledger ")] == []
