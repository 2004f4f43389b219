"""The ledger on real databases: nothing lost on a clean stop, a kill -9 that shows, tampering that is found."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import scope_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from postgres import cluster

from watermark.errors import LedgerError, UsageError, VerificationError
from watermark.keys import Secret
from watermark.ledger.record import LedgerRecord, Retention, timestamp
from watermark.signed_note import NoteSigner

sa = pytest.importorskip("sqlalchemy")
pytest.importorskip("alembic")

# ruff: noqa: E402 - these need what is not always there
from watermark.checkpoint import Checkpoint, LogProof
from watermark.ledger import schema as ledger_schema
from watermark.ledger.export import Filter, export_ledger, instant
from watermark.ledger.reader import LedgerReader
from watermark.ledger.schema import ENTRIES, LOGS, METADATA, NODES, connect_engine, ledger_url, migration_config
from watermark.ledger.session import LogSession
from watermark.ledger.verify import VerifiedLog, verify_ledger
from watermark.ledger.writer import Ledger

ORIGIN = "host-a.example/ledger"
SIGNER = NoteSigner(ORIGIN, Secret(bytes(range(32))))


@pytest.fixture(scope="module")
def postgres() -> Iterator[Callable[[], str]]:
    with cluster() as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return str(request.getfixturevalue("postgres")())


def record(number: int, **fields: Any) -> LedgerRecord:
    moment = f"2026-10-{1 + number // 86400:02d}T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}"
    given = {
        "id": f"r{number}",
        "started": f"{moment}.000000Z",
        "ended": f"{moment}.500000Z",
        "account": f"account-{number % 3}",
        "model": "a/model",
        "scope": "2026-q4",
        "fingerprint": "ab" * 32,
        "scheme": "sipmix-v1",
        "parameters": {"delta": 2.0, "temperature": 0.7},
        "marked": True,
        "token_ids": range(number, number + 5),
        "prompt_token_ids": (1, 2),
        "response": f"answer {number}",
        "prompt": "Why?",
    }
    return LedgerRecord(**{**given, **fields})


def write(url: str, numbers: range, *, origin: str = ORIGIN, **options: Any) -> None:
    with Ledger.open(url, origin=origin, flush_interval=0.005, **options) as ledger:
        for number in numbers:
            ledger.append(record(number), timeout=10)


def verified(url: str, **options: Any) -> VerifiedLog:
    with LedgerReader.open(url) as reader:
        (log,) = verify_ledger(reader, **options)
    return log


def stored(url: str) -> list[dict[str, Any]]:
    """All rows of responses, in the order of the log."""
    engine = connect_engine(ledger_url(url), create=False)
    query = sa.select(ENTRIES).where(ENTRIES.c.kind == "response").order_by(ENTRIES.c.log_id, ENTRIES.c.leaf_index)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def tamper(url: str, statement: Any) -> None:
    engine = connect_engine(ledger_url(url), create=False)
    with engine.connect() as connection, connection.begin():
        done = connection.execute(statement if isinstance(statement, sa.Executable) else sa.text(statement))
        assert done.rowcount != 0


# Writing.


def test_a_clean_stop_loses_nothing(url: str) -> None:
    write(url, range(1500))
    write(url, range(1500, 1600))
    assert [row["id"] for row in stored(url)] == [f"r{number}" for number in range(1600)]
    log = verified(url)
    assert (log.responses, log.sessions, log.gaps, log.open_since) == (1600, 2, (), None)
    assert log.size == 1600 + 2 * 2


def test_many_threads_lose_nothing(url: str) -> None:
    with Ledger.open(url, origin=ORIGIN, capacity=100, flush_interval=0.001) as ledger:

        def serve(first: int) -> None:
            for number in range(first, first + 200):
                ledger.append(record(number), timeout=30)

        threads = [threading.Thread(target=serve, args=(200 * index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = [int(row["id"][1:]) for row in stored(url)]
    assert sorted(rows) == list(range(800))
    # Each thread's own responses stand in its order.
    for first in range(0, 800, 200):
        own = [number for number in rows if first <= number < first + 200]
        assert own == sorted(own)
    assert verified(url).responses == 800


def test_an_exit_without_close_loses_nothing(url: str) -> None:
    child("for number in range(500): ledger.append(record(number), timeout=10)\nsys.exit(3)", url, returns=3)
    log = verified(url)
    assert (log.responses, log.gaps, log.open_since) == (500, (), None)


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
sys.path.insert(0, {support!r})
from test_ledger import record
from watermark.ledger.writer import Ledger
ledger = Ledger.open({url!r}, origin={origin!r}, flush_interval=0.02)
{what}
"""


def child(what: str, url: str, *, returns: int | None = None) -> subprocess.Popen[str]:
    """Run *what* in a process that has the log open."""
    tests = Path(__file__).parent
    support = tests.parent / "support"
    code = CHILD.format(tests=str(tests), support=str(support), url=url, origin=ORIGIN, what=what)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    if returns is not None:
        process.communicate(timeout=60)
        assert process.returncode == returns
    return process


def test_a_kill_in_the_middle_of_writing_shows(url: str) -> None:
    serving = """
number = 0
while True:
    for _ in range(20):
        ledger.append(record(number), timeout=10)
        number += 1
    if number % 400 == 0:
        ledger.flush()
        print(number, flush=True)
    time.sleep(0.001)
"""
    with child(serving, url) as process:
        assert process.stdout is not None
        flushed = 0
        for line in process.stdout:
            flushed = int(line)
            if flushed >= 1600:
                break
        time.sleep(0.03)  # It goes on writing, and is killed at it.
        process.send_signal(signal.SIGKILL)
        flushed = max([flushed, *map(int, process.stdout.read().split())])
    with LedgerReader.open(url) as reader:
        (before,) = verify_ledger(reader)
        note = reader.sign(SIGNER)
    assert before.open_since is not None
    write_after_a_crash(url)
    log = verified(url, published=[note], verifiers=[SIGNER.verifier()])
    (gap,) = log.gaps
    numbers = [int(row["id"][1:]) for row in stored(url)]
    written = len(numbers) - 1
    # Whatever a flush had promised is there, in order and without a hole; after it at most the unflushed rest is not.
    assert numbers == [*range(written), 9999]
    assert written >= flushed
    assert (gap.written, log.open_since) == (written, None)
    assert gap.opened <= gap.seen <= gap.found
    if url.startswith("postgresql"):
        assert not gap.accepted_exact
        assert gap.accepted >= gap.written
    else:
        assert gap.accepted_exact
        # Some 20 ms of responses, as they come here at up to 20,000 a second, and what was being written.
        assert 0 <= gap.missing <= 2000


def write_after_a_crash(url: str) -> None:
    """Open the log again and write one response; a database server takes a moment to notice that a client is gone."""
    for _ in range(100):
        try:
            write(url, range(9999, 10_000))
        except LedgerError as error:
            assert "is being written by another connection" in str(error)  # noqa: PT017
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the lock of a dead writer is still held")


def test_the_count_of_what_is_missing_is_exact_on_sqlite(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger.db")
    crash = """
for number in range(300): ledger.append(record(number))
ledger.flush()
ledger._flush_interval = 60
for number in range(300, 342): ledger.append(record(number))
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = child(crash, url)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    write(url, range(9999, 10_000))
    (gap,) = verified(url).gaps
    # The interval of 60 s may have begun with or after the first of them.
    assert (gap.accepted, gap.accepted_exact) == (342, True)
    assert gap.missing == 342 - gap.written <= 42
    assert f"{gap.missing:,} of its responses are missing" in gap.sentence()


def test_a_log_has_one_writer(url: str) -> None:
    with (
        Ledger.open(url, origin=ORIGIN) as ledger,
        pytest.raises(LedgerError, match="is being written by another"),
    ):
        Ledger.open(url, origin=ORIGIN)
    with pytest.raises(LedgerError, match="closed"):
        ledger.append(record(0))
    ledger.close()
    process = child("print('open', flush=True)\ntime.sleep(60)", url)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    try:
        with pytest.raises(LedgerError, match="is being written by another"):
            Ledger.open(url, origin=ORIGIN)
    finally:
        process.kill()
        process.communicate()
    write_after_a_crash(url)
    assert [gap.missing for gap in verified(url).gaps] == [0]


def test_two_logs_of_one_database_are_written_at_once(url: str) -> None:
    origins = ("host-a.example/ledger", "host-b.example/ledger")
    threads = [
        threading.Thread(target=write, args=(url, range(1000 * index, 1000 * index + 700)), kwargs={"origin": origin})
        for index, origin in enumerate(origins)
    ]
    with Ledger.open(url, origin="another"):  # The tables are there; making them is serialised too, see below.
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with LedgerReader.open(url) as reader:
        logs = {log.origin: log for log in verify_ledger(reader)}
        assert {origin: logs[origin].responses for origin in origins} == dict.fromkeys(origins, 700)
        with pytest.raises(UsageError, match="name one with --origin"):
            reader.log()
        proof = reader.prove("r1003", signer=NoteSigner(origins[1], SIGNER.seed))
        assert json.loads(proof.leaf or b"")["id"] == "r1003"


def test_tables_made_by_two_at_once(url: str) -> None:
    problems: list[BaseException] = []

    def start(index: int) -> None:
        try:
            write(url, range(10), origin=f"host-{index}")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=start, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    with LedgerReader.open(url) as reader:
        assert [log.responses for log in verify_ledger(reader)] == [10] * 4


# Outages.


def test_a_full_queue_is_said_before_anything_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_schema, "_BUSY_TIMEOUT_MS", 20)
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path, origin=ORIGIN, capacity=50, flush_interval=0.001)
    ledger.append(record(0))
    ledger.flush()
    assert ledger.ready()
    blocking = connect_engine(ledger_url(path), create=False).connect()
    blocking.exec_driver_sql("COMMIT")
    blocking.exec_driver_sql("BEGIN EXCLUSIVE")
    for number in range(1, 51):
        ledger.append(record(number))
    with pytest.raises(LedgerError, match="queue is full: 50 responses wait"):
        ledger.append(record(51))
    started = time.monotonic()
    with pytest.raises(LedgerError, match="queue is full"):
        ledger.append(record(51), timeout=0.2)
    assert 0.15 < time.monotonic() - started < 5
    assert not ledger.ready()
    assert "locked" in str(ledger.status().problem)
    with pytest.raises(LedgerError, match="50 responses that were accepted are not written"):
        ledger.flush(timeout=0.05)
    with pytest.raises(LedgerError, match="full"):
        asyncio.run(ledger.append_async(record(51), timeout=0.05))
    blocking.rollback()
    blocking.close()
    ledger.append(record(51), timeout=20)
    ledger.flush()
    assert ledger.ready()
    assert ledger.status().problem is None
    ledger.close()
    assert [row["id"] for row in stored(str(path))] == [f"r{number}" for number in range(52)]
    verified(str(path))


def test_a_close_that_cannot_write_says_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_schema, "_BUSY_TIMEOUT_MS", 20)
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path, origin=ORIGIN)
    blocking = connect_engine(ledger_url(path), create=False).connect()
    blocking.exec_driver_sql("COMMIT")
    blocking.exec_driver_sql("BEGIN EXCLUSIVE")
    for number in range(7):
        ledger.append(record(number))
    with pytest.raises(LedgerError, match=r"7 responses that were accepted are not written: .*locked"):
        ledger.close(timeout=0.3)
    blocking.rollback()
    blocking.close()
    write(str(path), range(100, 101))
    (gap,) = verified(str(path)).gaps
    assert (gap.missing, gap.accepted_exact) == (7, True)


def test_connections_that_are_cut_lose_and_double_nothing(postgres: Callable[[], str]) -> None:
    url = postgres()
    engine = connect_engine(ledger_url(url), create=False)
    cut = sa.text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    cuts = number = 0
    with Ledger.open(url, origin=ORIGIN, flush_interval=0.002) as ledger:
        while cuts < 5 and number < 100_000:
            for number in range(number, number + 300):  # noqa: B020 - goes on from where it was
                ledger.append(record(number), timeout=30)
            number += 1
            with engine.connect() as connection:
                cuts += connection.execute(cut).scalar() or 0
            time.sleep(0.02)
    assert cuts >= 5
    assert [row["id"] for row in stored(url)] == [f"r{index}" for index in range(number)]
    log = verified(url)
    assert (log.responses, log.gaps, log.sessions) == (number, (), 1)


def test_a_commit_whose_answer_is_lost_is_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, failed = LogSession._write, []

    def loses_the_answer(self: LogSession, *arguments: Any, **options: Any) -> None:
        attempt(self, *arguments, **options)
        if len(failed) < 3:
            failed.append(1)
            raise sa.exc.OperationalError("COMMIT", None, Exception("connection lost"))

    monkeypatch.setattr(LogSession, "_write", loses_the_answer)
    write(url, range(40))
    assert len(failed) == 3
    log = verified(url)
    assert (log.responses, log.sessions) == (40, 1)
    assert log.size == 42


def test_a_writer_that_lost_its_log_stops(url: str) -> None:
    ledger = Ledger.open(url, origin=ORIGIN, flush_interval=0.001)
    ledger.append(record(0))
    ledger.flush()
    tamper(url, sa.update(LOGS).values(session="ff" * 16))
    ledger.append(record(1))
    with pytest.raises(LedgerError, match="another writer has taken the log over"):
        ledger.flush()
    assert not ledger.ready()
    with pytest.raises(LedgerError, match="can no longer be written"):
        ledger.append(record(2))
    with pytest.raises(LedgerError, match="1 responses that were accepted are not written"):
        ledger.close()
    assert [row["id"] for row in stored(url)] == ["r0"]


def test_rows_beyond_the_head_stop_the_writer(url: str) -> None:
    ledger = Ledger.open(url, origin=ORIGIN, flush_interval=0.001)
    engine = connect_engine(ledger_url(url), create=False)
    with engine.connect() as connection, connection.begin():
        row = dict(connection.execute(sa.select(ENTRIES)).mappings().one())
        connection.execute(sa.insert(ENTRIES).values(**{**row, "leaf_index": 1}))
    ledger.append(record(0))
    with pytest.raises(LedgerError, match="rows beyond its head"):
        ledger.flush()
    with pytest.raises(LedgerError):
        ledger.close()


def test_an_idle_writer_notes_that_it_lives(url: str) -> None:
    with Ledger.open(url, origin=ORIGIN, heartbeat=0.05), LedgerReader.open(url) as reader:
        first = reader.log().seen
        until = time.monotonic() + 10
        while reader.log().seen == first and time.monotonic() < until:
            time.sleep(0.02)
        assert (reader.log().seen or "") > (first or "")
        assert reader.log().size == 1


# Use.


def test_an_event_loop_is_not_held_up(tmp_path: Path) -> None:
    async def serve(ledger: Ledger) -> float:
        worst = 0.0

        async def beat() -> None:
            nonlocal worst
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                worst = max(worst, time.monotonic() - before)

        beating = asyncio.create_task(beat())
        for number in range(2000):
            await ledger.append_async(record(number), timeout=30)
            if number % 20 == 0:
                await asyncio.sleep(0)
        beating.cancel()
        return worst

    path = tmp_path / "ledger.db"
    with Ledger.open(path, origin=ORIGIN, capacity=200, flush_interval=0.005) as ledger:
        assert asyncio.run(serve(ledger)) < 0.5
    assert verified(str(path)).responses == 2000


def test_a_forked_process_opens_its_own(tmp_path: Path) -> None:
    code = "import os\npid = os.fork()\nif pid == 0:\n"
    code += (
        "    try: ledger.append(record(0))\n    except Exception as error: print(type(error).__name__, flush=True)\n"
    )
    code += "    os._exit(0)\nos.waitpid(pid, 0)\nledger.append(record(1))\nledger.close()"
    process = child(code, str(tmp_path / "ledger.db"))
    out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("LedgerError\n", 0)
    assert [row["id"] for row in stored(str(tmp_path / "ledger.db"))] == ["r1"]


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger.db")
    code = "import os, signal\npid = os.fork()\nif pid == 0:\n    time.sleep(60)\n"
    code += "print(pid, flush=True)\nledger.append(record(0))\nledger.flush()\nos.kill(os.getpid(), signal.SIGKILL)"
    with child(code, url) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        process.wait()
        try:
            write(url, range(1, 2))
        finally:
            os.kill(orphan, signal.SIGKILL)
    assert [gap.missing for gap in verified(url).gaps] == [0]


def test_a_count_from_before_a_restart_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from watermark.ledger import lock as ledger_lock

    url = str(tmp_path / "ledger.db")
    crash = "ledger._flush_interval = 60\nledger.append(record(0))\nimport os; os._exit(1)"
    child(crash, url, returns=1)
    monkeypatch.setattr(ledger_lock, "_boot", lambda: bytes(range(16)))
    write(url, range(1, 2))
    (gap,) = verified(url).gaps
    assert not gap.accepted_exact
    assert "or more of its responses are missing" in gap.sentence()


def test_a_small_queue_does_not_wait_for_the_interval(tmp_path: Path) -> None:
    started = time.monotonic()
    with Ledger.open(tmp_path / "ledger.db", origin=ORIGIN, capacity=20, flush_interval=5) as ledger:
        for number in range(400):
            ledger.append(record(number), timeout=4)
        took = time.monotonic() - started
    assert took < 20
    assert verified(str(tmp_path / "ledger.db")).responses == 400


def test_the_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    write(str(tmp_path / "ledger.db"), range(3))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://someone:hunter2@127.0.0.1:1/db?connect_timeout=1"
    for use in (lambda: Ledger.open(url, origin=ORIGIN), lambda: LedgerReader.open(url)):
        with pytest.raises(LedgerError) as caught:
            use()
        assert "hunter2" not in str(caught.value)
        assert "someone:***@127.0.0.1:1/db" in str(caught.value)
    with pytest.raises(UsageError) as refused:
        ledger_url("postgres//x:hunter2@://")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(UsageError, match="a password on the command line"):
        ledger_schema.chosen_url(url)
    monkeypatch.setenv("TAGGANT_LEDGER", url)
    assert ledger_schema.chosen_url(None) == url
    monkeypatch.delenv("TAGGANT_LEDGER")
    with pytest.raises(UsageError, match="name the ledger"):
        ledger_schema.chosen_url(None)


@pytest.mark.parametrize("given", ["", ":memory:", "sqlite://", "mysql://u@h/d", "://"])
def test_what_is_no_ledger(given: str) -> None:
    with pytest.raises(UsageError, match="ledger: "):
        ledger_url(given)


def test_options_out_of_range(tmp_path: Path) -> None:
    for options in ({"origin": "a b"}, {"retention": "all"}, {"capacity": 0}, {"heartbeat": 0}):
        with pytest.raises(UsageError):
            Ledger.open(tmp_path / "x.db", **{"origin": ORIGIN, **options})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LedgerError, match="no such ledger"):
        LedgerReader.open(tmp_path / "x.db")
    (tmp_path / "text").write_text("This is no database, and long enough to be read as one." * 40)
    with pytest.raises(LedgerError, match="not a database"):
        LedgerReader.open(tmp_path / "text")
    with pytest.raises(LedgerError, match="not a database"):
        Ledger.open(tmp_path / "text", origin=ORIGIN)
    with pytest.raises(LedgerError, match="cannot open the ledger"):
        Ledger.open(tmp_path / "none" / "x.db", origin=ORIGIN)


# Proofs and checkpoints.


def test_proofs_hold_offline_and_after_growth(url: str) -> None:
    write(url, range(700))
    verifiers = [SIGNER.verifier()]
    with LedgerReader.open(url) as reader:
        with pytest.raises(UsageError, match="no checkpoint covers leaf"):
            reader.prove("r5")
        first = reader.sign(SIGNER)
        assert reader.sign(SIGNER) == first  # The same head, the same note.
    write(url, range(700, 1000))
    with LedgerReader.open(url) as reader:
        old = reader.prove("r5")
        new = reader.prove("r999", signer=SIGNER)
        assert len(reader.checkpoints(reader.log())) == 2
        for number in (0, 255, 256, 257, 511, 699, 998):
            proof = LogProof.parse(reader.prove(f"r{number}").text())
            head = proof.verify(verifiers)
            assert (head.origin, head.size) == (ORIGIN, 1004)
            assert json.loads(proof.leaf or b"")["id"] == f"r{number}"
        with pytest.raises(UsageError, match="0 responses have the id none"):
            reader.prove("none")
        with pytest.raises(UsageError, match="a log's key bears its name"):
            reader.sign(NoteSigner("another", Secret(bytes(32))))
        # Who holds two checkpoints and no ledger asks for a consistency proof.
        from watermark.merkle import verify_consistency

        heads = [Checkpoint.open(note, verifiers) for note in (first, new.note)]
        verify_consistency(
            old=heads[0].size,
            new=heads[1].size,
            old_root=heads[0].root,
            new_root=heads[1].root,
            proof=reader.tree(reader.log()).consistency(heads[0].size, heads[1].size),
        )
    assert old.verify(verifiers).size == 702
    assert verified(url, published=[first, new.note], verifiers=verifiers).checkpoints == 4


def test_an_id_that_was_used_twice(url: str) -> None:
    with Ledger.open(url, origin=ORIGIN) as ledger:
        ledger.append(record(1))
        ledger.append(record(1))
    with LedgerReader.open(url) as reader:
        with pytest.raises(UsageError, match=r"2 responses have the id r1 .*ledger 1, .*ledger 2"):
            reader.prove("r1", signer=SIGNER)
        assert reader.prove("r1", index=2, signer=SIGNER).index == 2


def test_a_log_that_was_rewritten_is_not_signed(url: str) -> None:
    write(url, range(300))
    with LedgerReader.open(url) as reader:
        reader.sign(SIGNER)
    # The leaf and the head changed together: the tree fits its head, and not what was signed.
    leaf = b"x" * 32
    tamper(url, sa.update(ENTRIES).where(ENTRIES.c.leaf_index == 299).values(leaf_hash=leaf))
    with LedgerReader.open(url) as reader:
        with pytest.raises(VerificationError, match="does not give its head's root"):
            reader.sign(SIGNER)
        with pytest.raises(VerificationError):
            reader.prove("r297")
        tamper(url, sa.update(LOGS).values(root=reader.tree(reader.log()).root()))
        with pytest.raises(VerificationError, match="contradicts its checkpoint of 302 leaves"):
            reader.sign(SIGNER)


# Tampering.

CHANGES: dict[str, Any] = {
    "kind": "closed",
    "id": "r6",
    "started": "2026-10-01T00:00:00.000000Z",
    "ended": "2026-10-01T00:00:00.000000Z",
    "account": None,
    "model": "another",
    "scope": "2026-q3",
    "fingerprint": "cd" * 32,
    "scheme": "sipmix-v2",
    "parameters": '{"delta":2,"temperature":0.70}',
    "marked": False,
    "reason": "none",
    "digests": "{}",
    "nonce": bytes(16),
    "leaf_hash": bytes(32),
    "token_ids": bytes(20),
    "prompt_token_ids": b"",
    "response": b"another",
    "prompt": b"",
    "leaf_index": 5000,
    "log_id": 7,
}


def test_every_column_has_its_change() -> None:
    assert set(CHANGES) == set(ENTRIES.c.keys())


@pytest.mark.parametrize("column", CHANGES)
def test_a_change_of_any_column_is_found_and_named(url: str, column: str) -> None:
    write(url, range(20), retention="both")
    assert verified(url).responses == 20
    tamper(url, sa.update(ENTRIES).where(ENTRIES.c.leaf_index == 8).values({column: CHANGES[column]}))
    with pytest.raises(VerificationError, match=r"entry 8(: missing| \((r7|r6)\))"):
        verified(url)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM taggant_entries WHERE leaf_index = 300", "entry 300: missing"),
        ("DELETE FROM taggant_entries WHERE leaf_index = 601", "entry 601: missing"),
        ("DELETE FROM taggant_nodes WHERE position = 1", "entries 256 to 511"),
        ("UPDATE taggant_nodes SET hash = (SELECT hash FROM taggant_nodes WHERE position = 0)", "entries 256 to 511"),
        ("UPDATE taggant_logs SET size = size - 1", "do not give the root of the head"),
        ("UPDATE taggant_logs SET root = frontier", "do not give the root of the head"),
        ("UPDATE taggant_logs SET frontier = root", "frontier"),
        ("UPDATE taggant_logs SET session = 'ff'", "a gap was hidden"),
        ("UPDATE taggant_checkpoints SET size = 3, note = replace(note, '602', '603')", "signature"),
    ],
)
def test_a_change_beside_the_rows_is_found(url: str, statement: str, message: str) -> None:
    write(url, range(600))
    with LedgerReader.open(url) as reader:
        reader.sign(SIGNER)
    tamper(url, statement)
    with pytest.raises(VerificationError, match=message):
        verified(url)


def test_a_row_that_was_changed_with_its_hash_is_found_within_its_tile(url: str) -> None:
    write(url, range(600))
    from watermark.ledger.entry import leaf_of
    from watermark.merkle import leaf_hash

    row = {**stored(url)[299], "account": "somebody-else"}
    where = ENTRIES.c.leaf_index == row["leaf_index"]
    tamper(
        url,
        sa.update(ENTRIES).where(where).values(account=row["account"], leaf_hash=leaf_hash(leaf_of(row))),
    )
    with pytest.raises(VerificationError, match="one of the entries 256 to 511 is not the one that was logged"):
        verified(url)


def test_a_log_that_was_written_anew_contradicts_what_was_published(url: str, tmp_path: Path) -> None:
    write(url, range(50))
    with LedgerReader.open(url) as reader:
        note = reader.sign(SIGNER)
    verifiers = [SIGNER.verifier()]
    # As many responses, one of them another: every hash and head fits.
    other = str(tmp_path / "other.db")
    with Ledger.open(other, origin=ORIGIN) as ledger:
        for number in range(50):
            ledger.append(record(number, account="somebody-else" if number == 20 else None))
    verified(other)
    with pytest.raises(VerificationError, match="do not give the root of the head or checkpoint"):
        verified(other, published=[note], verifiers=verifiers)
    # One that was cut and ended properly.
    short = str(tmp_path / "short.db")
    write(short, range(10))
    with pytest.raises(VerificationError, match="leaves were removed"):
        verified(short, published=[note], verifiers=verifiers)
    with pytest.raises(VerificationError, match="no signature of"):
        verified(url, published=[note], verifiers=[NoteSigner(ORIGIN, Secret(bytes(32))).verifier()])
    foreign = Checkpoint("another", 1, bytes(32)).sign(NoteSigner("another", SIGNER.seed))
    with pytest.raises(UsageError, match="not among those checked"):
        verified(url, published=[foreign], verifiers=[NoteSigner("another", SIGNER.seed).verifier()])


def test_a_crash_cannot_be_hidden(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger.db")
    child("ledger.append(record(0))\nledger.flush()\nimport os; os._exit(1)", url, returns=1)
    tamper(url, "UPDATE taggant_logs SET session = NULL")
    with pytest.raises(VerificationError, match="a gap was hidden"):
        verified(url)
    write(url, range(1, 2))
    with pytest.raises(VerificationError, match="a session begins in another that neither ended nor left a gap"):
        verified(url)


def test_what_was_said_can_be_deleted(url: str) -> None:
    write(url, range(10), retention="both")
    tamper(url, sa.update(ENTRIES).values(response=None, prompt=None, token_ids=None, prompt_token_ids=None))
    assert verified(url).responses == 10


# Retention and export.


@pytest.mark.parametrize("retention", Retention)
def test_what_is_kept(url: str, retention: Retention) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    with Ledger.open(url, origin=ORIGIN, retention=retention) as ledger:
        ledger.append(record(0, response="a\x00b é"))
        ledger.append(record(1, prompt=messages))
        ledger.append(record(2, token_ids=None, prompt_token_ids=None))
    first, second, third = stored(url)
    ids, text = retention in ("ids", "both"), retention in ("text", "both")
    assert first["token_ids"] == (np.arange(5, dtype="<u4").tobytes() if ids else None)
    assert first["prompt_token_ids"] == (np.array([1, 2], dtype="<u4").tobytes() if ids else None)
    assert first["response"] == ("a\x00b é".encode() if text else None)
    assert first["prompt"] == (b"Why?" if text else None)
    assert second["prompt"] == (b'[{"content":"Why?","role":"user"}]' if text else None)
    assert third["token_ids"] is None
    # Whatever is kept, everything that was known has its digest.
    names = {"prompt", "prompt_token_ids", "response", "token_ids"}
    assert json.loads(first["digests"]).keys() == names
    assert json.loads(second["digests"]).keys() == names - {"prompt"} | {"prompt_messages"}
    assert json.loads(third["digests"]).keys() == {"prompt", "response"}
    verified(url)


def test_an_export_is_in_the_order_of_the_responses_start(url: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).permutation(5000)
    for index, origin in enumerate(("host-a", "host-b")):
        with Ledger.open(url, origin=origin, flush_interval=0.005) as ledger:
            for number in numbers[index::2]:
                ledger.append(record(int(number)), timeout=10)
    out = tmp_path / "served.jsonl"
    with LedgerReader.open(url) as reader:
        assert export_ledger(reader, out).responses == 5000
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert [item["id"] for item in records] == [f"r{number}" for number in range(5000)]
        assert {item["origin"] for item in records} == {"host-a", "host-b"}
        assert records[7]["token_ids"] == [7, 8, 9, 10, 11]
        assert records[7]["parameters"] == {"delta": 2, "temperature": 0.7}
        for chosen, expected in (
            (Filter(since=instant("2026-10-01T00:00:10Z"), until=instant("2026-10-01T01:00:20+01:00")), range(10, 20)),
            (Filter(account="account-1"), range(1, 5000, 3)),
            (Filter(scope="2026-q3"), range(0)),
            (Filter(marked=False), range(0)),
            (Filter(marked=True, origin="host-b"), sorted(int(number) for number in numbers[1::2])),
        ):
            summary = export_ledger(reader, out, chosen=chosen)
            ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
            assert ids == [f"r{number}" for number in expected]
            assert summary.responses == len(ids)
        with pytest.raises(UsageError, match="expected a name that ends in"):
            export_ledger(reader, tmp_path / "served.csv")
        with pytest.raises(UsageError, match="no log none"):
            export_ledger(reader, out, chosen=Filter(origin="none"))
    with pytest.raises(UsageError, match="expected a date or a time"):
        instant("yesterday")


def test_parquet_holds_what_json_lines_hold(url: str, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    with Ledger.open(url, origin=ORIGIN, retention="both") as ledger:
        ledger.append(record(0))
        ledger.append(record(1, prompt=[{"role": "user", "content": "Why?"}], token_ids=[]))
        ledger.append(record(2, marked=False, reason="unsupported sampler", scope=None, fingerprint=None, scheme=None))
    lines, table = tmp_path / "served.jsonl", tmp_path / "served.parquet"
    with LedgerReader.open(url) as reader:
        export_ledger(reader, lines)
        summary = export_ledger(reader, table)
    expected = [json.loads(line) for line in lines.read_text().splitlines()]
    read = pq.read_table(table)
    assert json.loads(read.schema.metadata[b"taggant.ledger"]) == json.loads(json.dumps(summary.to_json()))
    for row, item in zip(read.to_pylist(), expected, strict=True):
        messages = row.pop("prompt_messages")
        row["prompt"] = row["prompt"] if messages is None else json.loads(messages)
        row["parameters"], row["digests"] = json.loads(row["parameters"]), json.loads(row["digests"])
        row["started"], row["ended"] = timestamp(row["started"]), timestamp(row["ended"])
        assert row == item
    assert expected[1]["prompt"] == [{"role": "user", "content": "Why?"}]
    assert (expected[2]["marked"], expected[2]["reason"]) == (False, "unsupported sampler")


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "ledger.db")
    write(url, range(10))
    out = tmp_path / "served.jsonl"
    out.write_text("the one before")
    from watermark.ledger import export as ledger_export

    def breaks(*arguments: Any) -> str:
        raise LedgerError("the database is gone")

    monkeypatch.setattr(ledger_export, "_json_line", breaks)
    with LedgerReader.open(url) as reader, pytest.raises(LedgerError):
        export_ledger(reader, out)
    assert out.read_text() == "the one before"
    assert sorted(path.suffix for path in tmp_path.iterdir() if "served" in path.name) == [".jsonl"]


def test_gaps_are_in_the_export(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger.db")
    child("ledger.append(record(0))\nledger.flush()\nimport os; os._exit(1)", url, returns=1)
    with Ledger.open(url, origin=ORIGIN) as ledger, LedgerReader.open(url) as reader:
        out = tmp_path / "served.jsonl"
        summary = export_ledger(reader, out)
        (gap,) = summary.gaps
        assert summary.open_sessions[0][0] == ledger.origin
        told = json.loads((tmp_path / "served.jsonl.summary.json").read_text())
        assert told["gaps"][0]["session"] == gap.session
        assert export_ledger(reader, out, chosen=Filter(until=instant("2026-01-01"))).gaps == ()
        assert export_ledger(reader, out, chosen=Filter(since="2999-01-01T00:00:00.000000Z")).gaps == ()


def test_an_export_is_what_the_detector_reads(tmp_path: Path) -> None:
    from detect.corpus import read_corpus
    from detect.mark import GreenListMark
    from detect.records import Reader
    from detect.supervised import detect_served
    from watermark.tokenizer import load

    tokenizer = load("smollm2")
    keys = scope_of(window=1)
    rng = np.random.default_rng(1)
    answers = [rng.integers(100, 400, 60, dtype=np.uint32) for _ in range(30)]
    url, out = str(tmp_path / "ledger.db"), tmp_path / "served.jsonl"
    with Ledger.open(url, origin=ORIGIN, retention="both") as ledger:
        for number, ids in reversed(list(enumerate(answers))):
            fields = {
                "token_ids": ids,
                "response": "not what is read",
                "fingerprint": keys.fingerprint,
                "scope": "test",
            }
            ledger.append(record(number, **fields))
    with LedgerReader.open(url) as reader:
        export_ledger(reader, out, chosen=Filter(marked=True))
    served = read_corpus(Reader([out]), tokenizer, window=0)
    assert [list(ids) for ids in served.responses] == [list(ids) for ids in answers]
    corpus = read_corpus(Reader([out]), tokenizer, window=1)
    assert corpus.from_ids == len(answers)
    result = detect_served(corpus, GreenListMark(keys), served)
    assert (result.served_responses, result.windows) == (30, result.windows_served)


# Migrations.


def test_the_migrations_make_the_tables_of_the_models(url: str) -> None:
    from alembic import command
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    write(url, range(3))
    engine = connect_engine(ledger_url(url), create=False)
    with engine.connect() as connection:
        config = migration_config()
        config.attributes["connection"] = connection
        command.check(config)
        context = MigrationContext.configure(
            connection,
            opts={"version_table": ledger_schema.VERSION_TABLE, "compare_server_default": True},
        )
        assert compare_metadata(context, METADATA) == []


def test_an_older_ledger_is_brought_up_to_date(url: str) -> None:
    from alembic import command

    engine = connect_engine(ledger_url(url), create=True)
    with engine.connect().execution_options(taggant_writes=True) as connection, connection.begin():
        config = migration_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    with pytest.raises(LedgerError, match=r"of an older version \(0001\)"):
        LedgerReader.open(url)
    write(url, range(5))
    with LedgerReader.open(url) as reader:
        reader.sign(SIGNER)
    # And back, and up again, with the rows that are there.
    with engine.connect().execution_options(taggant_writes=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    write(url, range(5, 8))
    assert (verified(url).responses, verified(url).checkpoints) == (8, 0)
    with engine.connect().execution_options(taggant_writes=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with pytest.raises(LedgerError):
        LedgerReader.open(url).logs()


def test_a_newer_ledger_is_left_alone(url: str) -> None:
    write(url, range(3))
    tamper(url, f"UPDATE {ledger_schema.VERSION_TABLE} SET version_num = '9999'")  # noqa: S608
    for use in (lambda: Ledger.open(url, origin=ORIGIN), lambda: LedgerReader.open(url)):
        with pytest.raises(LedgerError, match=r"of a newer version \(9999\): upgrade taggant"):
            use()


def test_a_database_without_a_ledger(url: str) -> None:
    engine = connect_engine(ledger_url(url), create=True)
    with engine.connect() as connection, connection.begin():
        connection.execute(sa.text("CREATE TABLE somebody_s (id INTEGER)"))
    with pytest.raises(LedgerError, match="there is no ledger in this database"):
        LedgerReader.open(url)
    write(url, range(3))
    assert verified(url).responses == 3
    assert sa.inspect(engine).has_table("somebody_s")


# Interleavings.


class LedgerMachine(RuleBasedStateMachine):
    """Sessions that end well or badly, in any order, beside a model that is a list."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.url = str(Path(self.folder.name) / "ledger.db")
        self.ledger: Ledger | None = None
        self.written: list[str] = []
        self.waiting: list[str] = []
        self.lost: list[int] = []
        self.sessions = 0
        self.notes: list[str] = []
        self.number = 0

    @precondition(lambda self: self.ledger is None)
    @rule()
    def open(self) -> None:
        # Nothing is flushed but when it is asked for: an interval that never ends.
        self.ledger = Ledger.open(self.url, origin=ORIGIN, flush_interval=0.0005, capacity=1000)
        self.sessions += 1

    @precondition(lambda self: self.ledger is not None)
    @rule(count=st.integers(1, 300))
    def append(self, count: int) -> None:
        assert self.ledger is not None
        for _ in range(count):
            self.ledger.append(record(self.number), timeout=10)
            self.waiting.append(f"r{self.number}")
            self.number += 1

    @precondition(lambda self: self.ledger is not None)
    @rule()
    def flush(self) -> None:
        assert self.ledger is not None
        self.ledger.flush()
        self.written += self.waiting
        self.waiting = []

    @precondition(lambda self: self.ledger is not None)
    @rule()
    def close(self) -> None:
        assert self.ledger is not None
        self.ledger.close()
        self.ledger = None
        self.written += self.waiting
        self.waiting = []

    @precondition(lambda self: self.ledger is not None)
    @rule()
    def crash(self) -> None:
        """From now on no transaction goes through, and the writer ends as a killed one does: its session stays open."""
        assert self.ledger is not None

        def fails(*arguments: Any, **options: Any) -> None:
            raise sa.exc.OperationalError("BEGIN", None, Exception("disk I/O error"))

        self.ledger._session._write = fails  # type: ignore[method-assign]
        with contextlib.suppress(LedgerError):
            self.ledger.close(timeout=0)
        ids = [row["id"] for row in stored(self.url)]
        known = self.written + self.waiting
        # A prefix of what was accepted, and at least what a flush had promised.
        assert ids == known[: len(ids)]
        assert len(ids) >= len(self.written)
        self.lost.append(len(known) - len(ids))
        self.written, self.waiting, self.ledger = ids, [], None

    @precondition(lambda self: self.sessions > 0)
    @rule()
    def publish(self) -> None:
        with LedgerReader.open(self.url) as reader:
            self.notes.append(reader.sign(SIGNER))

    @precondition(lambda self: self.sessions > 0)
    @rule(data=st.data())
    def prove(self, data: st.DataObject) -> None:
        if self.written:
            chosen = data.draw(st.sampled_from(self.written))
            with LedgerReader.open(self.url) as reader:
                reader.prove(chosen, signer=SIGNER).verify([SIGNER.verifier()])

    @precondition(lambda self: self.sessions > 0 and self.ledger is None)
    @invariant()
    def the_log_tells_it_all(self) -> None:
        log = verified(self.url, published=self.notes, verifiers=[SIGNER.verifier()])
        assert (log.responses, log.sessions) == (len(self.written), self.sessions)
        gaps = [gap.missing for gap in log.gaps]
        # The last crash is a gap once somebody opens the log.
        assert gaps == (self.lost[:-1] if log.open_since else self.lost)

    def teardown(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
        self.folder.cleanup()


LedgerMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestInterleavings = LedgerMachine.TestCase


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 1200), st.integers(1, 300))
def test_blocks_hold_every_row_once(count: int, log: int) -> None:
    from watermark.ledger.entry import _blocks

    rows = [(log, number) for number in range(count)]
    blocks = list(_blocks(rows))
    assert [row for block in blocks for row in block] == rows
    assert {len(block) for block in blocks} <= {2**power for power in range(9)}


def test_nodes_are_those_of_the_tree(url: str) -> None:
    write(url, range(600))
    engine = connect_engine(ledger_url(url), create=False)
    with engine.connect() as connection:
        found = connection.execute(sa.select(NODES.c.level, NODES.c.position).order_by(NODES.c.position)).all()
    assert [tuple(row) for row in found] == [(8, 0), (8, 1)]


@pytest.mark.parametrize("digests", ["[]", "5", "null", "[" * 100_000])
def test_digests_that_are_none_are_found_where_the_leaf_fits_them(tmp_path: Path, digests: str) -> None:
    from watermark.ledger.entry import leaf_of
    from watermark.merkle import leaf_hash

    url = str(tmp_path / "ledger.db")
    write(url, range(1))
    row = stored(url)[0] | {"digests": digests}
    where = ENTRIES.c.leaf_index == row["leaf_index"]
    tamper(url, sa.update(ENTRIES).where(where).values(digests=digests, leaf_hash=leaf_hash(leaf_of(row))))
    with pytest.raises(VerificationError, match="a column holds what the ledger never writes"):
        verified(url)
