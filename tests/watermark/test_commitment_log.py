"""The log of commitments: appended to, proven, cut off by crashes, edited by others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import builders
import pytest

from watermark.checkpoint import Checkpoint
from watermark.commitment_log import (
    COMMITMENT,
    ActivationSource,
    CommitmentLog,
    activation_leaf,
    commitment_leaf,
    envelope_leaf,
    read_entries,
    revealed_leaf,
    state_leaf,
    tree_of_entries,
)
from watermark.errors import LedgerError, UsageError, VerificationError
from watermark.signed_note import NoteSigner, create_note_key


@pytest.fixture
def signer(tmp_path: Path) -> NoteSigner:
    return create_note_key(tmp_path / "publisher.key", name="provider.example/taggant")


@pytest.fixture
def log(tmp_path: Path) -> CommitmentLog:
    return CommitmentLog(tmp_path / "log")


def filled(log: CommitmentLog, signer: NoteSigner) -> CommitmentLog:
    keys = builders.scope_of()
    committed = log.append(commitment_leaf(keys), signer)
    log.append(
        activation_leaf(committed, ActivationSource(kind="beacon", name="a beacon", value="its value", round=3)), signer
    )
    log.append(envelope_leaf("plan", "ab" * 32, plan=None), signer)
    log.append(revealed_leaf(keys, [4, 2]), signer)
    log.append(state_leaf(keys, "retired"), signer)
    return log


def test_every_entry_is_under_the_signed_head_and_proves_itself(log: CommitmentLog, signer: NoteSigner) -> None:
    filled(log, signer)
    head = Checkpoint.open(log.checkpoint(), [signer.verifier()])
    leaves = log.entries()
    assert (head.size, head.root, head.origin) == (5, tree_of_entries(leaves).root(), "provider.example/taggant")
    assert leaves[3].value["lanes"] == [2, 4]
    for leaf in leaves:
        assert log.prove(leaf.index).verify([signer.verifier()]) == head


def test_the_tree_is_that_of_an_independent_implementation(log: CommitmentLog, signer: NoteSigner) -> None:
    pymerkle = pytest.importorskip("pymerkle")
    filled(log, signer)
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for size, leaf in enumerate(log.entries(), start=1):
        tree.append_entry(leaf.data)
        note = (log.folder / "checkpoints" / str(size)).read_text(encoding="utf-8")
        assert Checkpoint.open(note, [signer.verifier()]).root == tree.get_root()


def test_an_entry_that_a_crash_left_above_the_head_was_never_published(log: CommitmentLog, signer: NoteSigner) -> None:
    filled(log, signer)
    entries, head = log.folder / "entries.jsonl", (log.folder / "checkpoint").read_bytes()
    log.append(envelope_leaf("scores", "cd" * 32, plan="ab" * 32), signer)
    (log.folder / "checkpoint").write_bytes(head)  # As if the process had died between the two.
    assert len(log.entries()) == 6
    log.append(envelope_leaf("scores", "ef" * 32, plan="ab" * 32), signer)
    assert [leaf.value.get("sha256") for leaf in read_entries(entries.read_bytes())][-1] == "ef" * 32
    assert Checkpoint.open(log.checkpoint(), [signer.verifier()]).size == 6


@pytest.mark.parametrize("how", ["edited", "cut", "torn", "headless"])
def test_entries_that_are_not_under_the_head_are_refused(log: CommitmentLog, signer: NoteSigner, how: str) -> None:
    filled(log, signer)
    entries = log.folder / "entries.jsonl"
    content = entries.read_bytes()
    if how == "edited":
        entries.write_bytes(content.replace(b'"retired"', b'"compromised"'))
    elif how == "cut":
        entries.write_bytes(b"\n".join(content.split(b"\n")[:2]) + b"\n")
    elif how == "torn":
        entries.write_bytes(content[:-20])
    else:
        (log.folder / "checkpoint").unlink()
    before = entries.read_bytes()
    with pytest.raises(VerificationError, match=r"edited or cut|was cut|without a signed head"):
        log.append(envelope_leaf("scores", "cd" * 32, plan="ab" * 32), signer)
    assert entries.read_bytes() == before


def test_another_key_cannot_append(log: CommitmentLog, signer: NoteSigner, tmp_path: Path) -> None:
    filled(log, signer)
    other = create_note_key(tmp_path / "other.key", name="provider.example/taggant")
    with pytest.raises(VerificationError):
        log.append(envelope_leaf("scores", "cd" * 32, plan="ab" * 32), other)


@pytest.mark.skipif(sys.platform == "win32", reason="locks are of POSIX")
def test_one_process_writes_at_a_time(log: CommitmentLog, signer: NoteSigner) -> None:
    import fcntl

    filled(log, signer)
    held = os.open(log.folder / ".lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(LedgerError, match="another process writes"):
            log.append(envelope_leaf("scores", "cd" * 32, plan="ab" * 32), signer)
    finally:
        os.close(held)


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b'{"type":"taggant/state/1"}',
        b'{"fingerprint":"'
        + b"ab" * 32
        + b'","scope":"s","state":"happy","time":"2026-01-01T00:00:00Z","type":"taggant/state/1"}',
        b'{"kind":"plan","plan":null,"sha256":"'
        + b"AB" * 32
        + b'","time":"2026-01-01T00:00:00Z","type":"taggant/envelope/1"}',
        b'{"kind":"plan","plan":null,"sha256":"' + b"ab" * 32 + b'","time":"yesterday","type":"taggant/envelope/1"}',
        b'{"sha256":"'
        + b"ab" * 32
        + b'","kind":"plan","plan":null,"time":"2026-01-01T00:00:00Z","type":"taggant/envelope/1"}',
        b'{"fingerprint":"'
        + b"ab" * 32
        + b'","lanes":[3,2],"scope":"s","time":"2026-01-01T00:00:00Z","type":"taggant/revealed/1"}',
        b'{"fingerprint":"'
        + b"ab" * 32
        + b'","lanes":[64],"scope":"s","time":"2026-01-01T00:00:00Z","type":"taggant/revealed/1"}',
        b"[" * 100_000,
    ],
    ids=lambda line: line[:12].decode(),
)
def test_a_line_that_is_no_leaf_is_named(line: bytes) -> None:
    with pytest.raises(VerificationError, match="line 1: expected a leaf"):
        read_entries(line + b"\n")


def test_a_leaf_survives_what_the_source_of_an_activation_says() -> None:
    said = ActivationSource(kind="nonce", name="the auditor", value="5" * 64)
    assert said.activation == bytes.fromhex("5" * 64)
    assert ActivationSource(kind="nonce", name="the auditor", value="5" * 63).activation != said.activation
    for wrong in ({"kind": "dice"}, {"name": ""}, {"value": ""}, {"value": "v" * 4097}):
        with pytest.raises(UsageError, match="source of randomness"):
            ActivationSource(**{"kind": "nonce", "name": "n", "value": "v", **wrong})


def test_the_newest_commitment_of_a_scope_is_found(log: CommitmentLog, signer: NoteSigner) -> None:
    filled(log, signer)
    keys = builders.scope_of()
    assert log.commitment(keys.name, keys.fingerprint).type == COMMITMENT
    with pytest.raises(UsageError, match="taggant keys commit"):
        log.commitment("another", keys.fingerprint)


def test_an_empty_log_says_what_to_do(log: CommitmentLog) -> None:
    assert log.entries() == []
    with pytest.raises(UsageError, match="taggant keys commit"):
        log.checkpoint()


def test_killed_between_any_two_writes_it_goes_on(tmp_path: Path) -> None:
    """A process that dies at its first, second and so on write leaves a log that takes the next entry."""
    script = """
import os, sys
from pathlib import Path
import watermark.commitment_log as module
from watermark.commitment_log import CommitmentLog, envelope_leaf
from watermark.signed_note import NoteSigner
writes = int(sys.argv[2])
honest = module.write_whole
def dying(path, content, what):
    global writes
    if writes == 0:
        os.kill(os.getpid(), 9)
    writes -= 1
    return honest(path, content, what=what)
module.write_whole = dying
folder = Path(sys.argv[1])
signer = NoteSigner.load(folder / "publisher.key")
CommitmentLog(folder / "log").append(envelope_leaf("scores", "cd" * 32, plan="ab" * 32), signer)
"""
    signer = create_note_key(tmp_path / "publisher.key", name="provider.example/taggant")
    log = filled(CommitmentLog(tmp_path / "log"), signer)
    for writes in range(3):
        size = Checkpoint.open(log.checkpoint(), [signer.verifier()]).size
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(writes)], check=False)
        assert done.returncode == -9
        assert Checkpoint.open(log.checkpoint(), [signer.verifier()]).size == size
        log.append(envelope_leaf("opening", "12" * 32, plan="ab" * 32), signer)
        assert Checkpoint.open(log.checkpoint(), [signer.verifier()]).size == size + 1
