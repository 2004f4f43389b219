"""`taggant ledger` as a person meets it: arguments, standard output and error, files, and the exit code."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cli

sa = pytest.importorskip("sqlalchemy")
pytest.importorskip("alembic")

ORIGIN = "host-a.example/ledger"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert (self.code, self.err) == (0, "")
        return dict(json.loads(self.out))


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, in an empty folder; the ledger is `ledger.db` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TAGGANT_LEDGER", "ledger.db")
    monkeypatch.delenv("TAGGANT_DEBUG", raising=False)

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["taggant", "ledger", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return Ran(int(stopped.value.code or 0), out, err)

    return call


def line(number: int, **changes: Any) -> str:
    served = {
        "id": f"r{number}",
        "started": f"2026-10-01T12:{number // 60:02d}:{number % 60:02d}.000000Z",
        "ended": f"2026-10-01T12:{number // 60:02d}:{number % 60:02d}.500000Z",
        "account": f"account-{number % 2}",
        "model": "a/model",
        "scope": "2026-q4",
        "fingerprint": "ab" * 32,
        "scheme": "sipmix-v1",
        "parameters": {"delta": 2.0},
        "marked": True,
        "prompt": "Why?",
        "response": "Because.",
        "token_ids": [number, 1, 2],
    }
    return json.dumps({**served, **changes}) + "\n"


def append(run: Run, count: int, *, first: int = 0) -> Ran:
    Path("served.jsonl").write_text("".join(line(number) for number in range(first, first + count)))
    return run("append", "served.jsonl", "--origin", ORIGIN)


def test_from_a_key_to_a_proof_checked_elsewhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("create-key", "--out", "log.key", "--name", ORIGIN)
    verifier = made.out.strip()
    assert (made.code, made.err) == (0, "")
    assert verifier.startswith(f"{ORIGIN}+")
    assert stat.S_IMODE(Path("log.key").stat().st_mode) == 0o600
    secret = Path("log.key").read_text().strip().rpartition("+")[2]

    done = append(run, 100)
    assert (done.code, done.out, done.err) == (0, "100 lines read: 100 appended, 0 malformed\n", "")
    signed = run("checkpoint", "--key", "log.key", "--out", "head.txt")
    assert (signed.code, signed.out, signed.err) == (0, "", "head.txt: the checkpoint\n")
    assert Path("head.txt").read_text() == run("checkpoint", "--key", "log.key").out
    append(run, 20, first=100)

    proved = run("prove", "r42", "--out", "r42.tlog-proof")
    assert (proved.code, proved.out) == (0, "")
    proof = Path("r42.tlog-proof").read_text()
    assert proof == run("prove", "r42").out
    assert proof.startswith("c2sp.org/tlog-proof@v1\nextra ")
    told = run("prove", "r42", "--json").json
    assert (told["proof"], told["leaf"]["id"], told["size"]) == (proof, "r42", 102)
    assert run("prove", "r110", "--key", "log.key", "--json").json["size"] == 124

    # Checked where there is no ledger, with the verifier key as text or as a file.
    monkeypatch.setenv("TAGGANT_LEDGER", "nowhere.db")
    Path("log.pub").write_text(verifier + "\n")
    for given in (verifier, "log.pub"):
        checked = run("verify", "--proof", "r42.tlog-proof", "--verifier", given).json
        assert (checked["origin"], checked["index"], checked["leaf"]["account"]) == (ORIGIN, 43, "account-0")
    lines = proof.split("\n")
    leaf = base64.b64decode(lines[1].removeprefix("extra ")).replace(b"account-0", b"account-1")
    Path("bad.tlog-proof").write_text("\n".join([lines[0], f"extra {base64.b64encode(leaf).decode()}", *lines[2:]]))
    bad = run("verify", "--proof", "bad.tlog-proof", "--verifier", verifier)
    assert (bad.code, bad.out) == (5, "")
    assert "inclusion proof: leaf 43" in bad.err
    assert run("verify", "--proof", "r42.tlog-proof").code == 5
    assert run("verify", "--proof", "none", "--verifier", verifier).code == 3
    assert run("verify", "--proof", "r42.tlog-proof", "--verifier", "x").code == 4

    monkeypatch.setenv("TAGGANT_LEDGER", "ledger.db")
    whole = run("verify", "--checkpoint", "head.txt", "--verifier", verifier)
    assert whole.out == f"{ORIGIN}: 124 leaves verified: 120 responses, 2 sessions, 0 gaps, 3 checkpoints\n"
    (log,) = run("verify", "--json").json["logs"]
    assert (log["responses"], log["gaps"], len(log["root"])) == (120, [], 64)
    for ran in (made, signed, proved, whole):
        assert secret not in ran.out + ran.err


def test_tampering_ends_with_5(run: Run) -> None:
    append(run, 10)
    with sa.create_engine("sqlite:///ledger.db").connect() as connection, connection.begin():
        connection.execute(sa.text("UPDATE taggant_entries SET account = 'x' WHERE id = 'r4'"))
    bad = run("verify")
    assert (bad.code, bad.out) == (5, "")
    assert bad.err == f"taggant: log {ORIGIN}: entry 5 (r4): its columns are not those that were logged\n"


def test_malformed_lines_are_counted_and_end_with_3(run: Run) -> None:
    bad = [
        "not JSON\n",
        line(1, more=1),
        line(2, started="today"),
        "[1]\n",
        '{"id": "a", "id": "b"}\n',
        '{"id": NaN}\n',
        "\udcff\n",
        "{" * 100_000 + "\n",
    ]
    text = line(0) + "\n" + "".join(bad) + line(9)
    Path("mixed.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    ran = run("append", "mixed.jsonl", "--origin", ORIGIN)
    assert (ran.code, ran.out) == (3, "10 lines read: 2 appended, 8 malformed\n")
    for number, said in enumerate(("expected a JSON object", "unknown field more", "started: "), 3):
        assert f"malformed: line {number}: {said}" in ran.err
    assert "found id twice" in ran.err
    assert "Traceback" not in ran.err
    told = run("append", "mixed.jsonl", "--origin", ORIGIN, "--max-malformed", "8", "--json")
    assert told.code == 0
    assert {"read": 10, "appended": 2, "malformed": 8}.items() <= json.loads(told.out).items()
    assert run("append", "none.jsonl", "--origin", ORIGIN).code == 3
    assert run("verify").out.startswith(f"{ORIGIN}: 8 leaves verified: 4 responses, 2 sessions")


def test_standard_input(run: Run, tmp_path: Path) -> None:
    append(run, 1)
    code = "import sys, cli; sys.argv[0] = 'taggant'; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ledger", "append", "-", "--origin", ORIGIN, "--retention", "digest"],
        input=line(1) + line(2),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**__import__("os").environ, "PYTHONPATH": str(Path(cli.__file__).parent)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 lines read: 2 appended, 0 malformed\n", "")
    run("export", "--out", "out.jsonl")
    kept = [json.loads(text)["token_ids"] for text in Path("out.jsonl").read_text().splitlines()]
    assert kept == [[0, 1, 2], None, None]


def test_an_export_is_chosen_and_read(run: Run) -> None:
    append(run, 90)
    ran = run("export", "--out", "out.jsonl", "--account", "account-1", "--since", "2026-10-01T12:01:00Z", "--marked")
    assert (ran.code, ran.out, ran.err) == (0, "", "out.jsonl: 15 responses\n")
    ids = [json.loads(text)["id"] for text in Path("out.jsonl").read_text().splitlines()]
    assert ids == [f"r{number}" for number in range(61, 90, 2)]
    told = run("export", "--out", "out.ndjson", "--until", "2026-10-01T12:00:10Z", "--json").json
    assert (told["responses"], told["gaps"], told["logs"]) == (10, [], [ORIGIN])
    assert run("export", "--out", "out.txt").code == 2
    assert run("export", "--out", "out.jsonl", "--since", "yesterday").code == 2
    assert run("export", "--out", "none/out.jsonl").code == 2
    pytest.importorskip("pyarrow")
    assert run("export", "--out", "out.parquet").err == "out.parquet: 90 responses\n"


def test_what_is_wrong_with_a_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = run("verify")
    assert (missing.code, missing.err) == (7, "taggant: ledger.db: no such ledger\n")
    append(run, 3)
    assert "no checkpoint covers leaf 1" in run("prove", "r0").err
    assert run("prove", "none").code == 2
    assert run("checkpoint", "--key", "none.key").code == 4
    run("create-key", "--out", "other.key", "--name", "other")
    assert "a log's key bears its name" in run("checkpoint", "--key", "other.key").err
    assert run("create-key", "--out", "other.key", "--name", "other").code == 4
    assert run("create-key", "--out", "x.key", "--name", "a b").code == 2
    assert run("verify", "--origin", "none").code == 2
    secret = run("verify", "--db", "postgresql://me:hunter2@127.0.0.1/x")
    assert (secret.code, "hunter2" in secret.err) == (2, False)
    monkeypatch.delenv("TAGGANT_LEDGER")
    assert "name the ledger: --db" in run("verify").err
    assert run("verify", "--db", "ledger.db").code == 0
