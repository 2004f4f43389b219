"""Signed notes, checkpoints and proofs: the vectors of Go's sumdb/note and of C2SP, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watermark.checkpoint import Checkpoint, LogProof
from watermark.errors import KeyringError, UsageError, VerificationError
from watermark.keys import Secret
from watermark.merkle import leaf_hash, tree_of
from watermark.signed_note import NoteSigner, NoteVerifier, check_key_name, create_note_key, open_note

#: The example of golang.org/x/mod/sumdb/note's documentation: public, and no key of anybody's.
GO_SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_NOTE = (
    GO_TEXT
    + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

#: C2SP signed-note, "Verifier keys", "Example".
C2SP_VERIFIER = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
C2SP_NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)


@pytest.fixture
def signer(tmp_path: Path) -> NoteSigner:
    path = tmp_path / "go.key"
    path.write_text(GO_SIGNER + "\n")
    path.chmod(0o600)
    return NoteSigner.load(path)


def test_the_note_of_go_comes_out_byte_for_byte(signer: NoteSigner) -> None:
    assert str(signer.verifier()) == GO_VERIFIER
    assert signer.sign(GO_TEXT) == GO_NOTE
    assert open_note(GO_NOTE, [NoteVerifier.parse(GO_VERIFIER)]) == GO_TEXT


def test_the_note_of_c2sp_is_opened() -> None:
    assert open_note(C2SP_NOTE, [NoteVerifier.parse(C2SP_VERIFIER)]) == "This is an example message.\n"


def test_a_new_key_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.key"
    old = os.umask(0)
    try:
        made = create_note_key(path, name="host-a.example/ledger")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = NoteSigner.load(path)
    assert read.verifier() == made.verifier()
    assert open_note(read.sign("text\n"), [made.verifier()]) == "text\n"
    with pytest.raises(KeyringError, match="exists"):
        create_note_key(path, name="host-a.example/ledger")
    path.chmod(0o640)
    with pytest.raises(KeyringError, match=r"others can read this key file \(mode 0640\). Mend it: chmod 600"):
        NoteSigner.load(path)


def test_a_key_shows_itself_nowhere(signer: NoteSigner, tmp_path: Path) -> None:
    secret = GO_SIGNER.rpartition("+")[2]
    assert secret not in repr(signer)
    assert "Secret(32 bytes)" in repr(signer)
    for pickled in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            pickled(signer)
    path = tmp_path / "bad.key"
    for content in (
        GO_SIGNER[:-2],
        GO_SIGNER.replace("c74f20a3", "c74f20a4"),
        GO_SIGNER + "\nmore",
        "\udcff",
        GO_SIGNER.replace("+AY", "+Aa"),
    ):
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        path.chmod(0o600)
        with pytest.raises(KeyringError) as caught:
            NoteSigner.load(path)
        assert secret[:12] not in str(caught.value)
        assert caught.value.__context__ is None
    with pytest.raises(KeyringError, match="found a private key"):
        NoteVerifier.parse(GO_SIGNER)
    with pytest.raises(KeyringError, match="no such key file"):
        NoteSigner.load(tmp_path / "none")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "PeterNeumann",
        GO_VERIFIER[:-1],
        GO_VERIFIER.replace("c74f20a3", "c74f20a4"),
        GO_VERIFIER.replace("c74f20a3", "C74F20A3"),
        GO_VERIFIER.replace("PeterNeumann", "Peter Neumann"),
        GO_VERIFIER.replace("PeterNeumann", ""),
        GO_VERIFIER.replace("+AR", "+BR"),
        "PeterNeumann+c74f20a3+ARpc",
    ],
)
def test_a_bad_verifier_key_is_refused(key: str) -> None:
    with pytest.raises(KeyringError):
        NoteVerifier.parse(key)


def test_a_verifier_key_is_read_from_text_or_file(tmp_path: Path) -> None:
    path = tmp_path / "log.pub"
    path.write_text(GO_VERIFIER + "\n")
    assert NoteVerifier.load(str(path)) == NoteVerifier.load(GO_VERIFIER)


@pytest.mark.parametrize(
    "note",
    [
        "",
        GO_TEXT,
        GO_NOTE[:-1],
        GO_NOTE.replace("\n\n", "\n"),
        GO_NOTE.replace("—", "-"),
        GO_NOTE.replace("x08go", "x08g-"),
        GO_NOTE.replace("— PeterNeumann", "— Peter+Neumann"),
        GO_NOTE + "\n",
        GO_NOTE + "— Someone\n",
        GO_NOTE + "— Someone AAAA\n",
        GO_NOTE.replace("think", "th\tink"),
        GO_NOTE.replace("think", "th\udcffink"),
        GO_NOTE + "— Someone AAAAAAAA\n" * 64,
    ],
)
def test_a_malformed_note_is_refused(note: str) -> None:
    with pytest.raises(VerificationError):
        open_note(note, [NoteVerifier.parse(GO_VERIFIER)])


def test_who_signed_decides(signer: NoteSigner) -> None:
    peter, other = NoteVerifier.parse(GO_VERIFIER), NoteVerifier.parse(C2SP_VERIFIER)
    stranger = NoteSigner("stranger", Secret(bytes(32))).sign(GO_TEXT).rpartition("\n\n")[2]
    # A signature of an unknown key is passed over, whatever it says; one of a known key must be right.
    assert open_note(GO_NOTE + stranger, [peter, other]) == GO_TEXT
    for verifiers in ([], [other]):
        with pytest.raises(VerificationError, match="no signature of"):
            open_note(GO_NOTE, verifiers)
    wrong = signer.sign("another text\n").rpartition("\n\n")[2]
    with pytest.raises(VerificationError, match="the signature of PeterNeumann is wrong"):
        open_note(GO_NOTE + wrong, [peter])
    with pytest.raises(VerificationError, match="wrong"):
        open_note(GO_NOTE.replace("your problem", "my problem"), [peter])
    # The same name with another key is another signer.
    namesake = NoteSigner("PeterNeumann", Secret(bytes(32)))
    with pytest.raises(VerificationError, match="no signature of"):
        open_note(namesake.sign(GO_TEXT), [peter])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b", "x" * 256])
def test_a_bad_key_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_key_name(name)


@pytest.mark.parametrize("text", ["no newline", "a\x00b\n", "tab\t\n", "\udcff\n"])
def test_what_cannot_be_signed(signer: NoteSigner, text: str) -> None:
    with pytest.raises(ValueError, match="newline"):
        signer.sign(text)


# Checkpoints and proofs.


def checkpoint_of(count: int) -> tuple[Checkpoint, list[bytes]]:
    leaves = [f"leaf {index}".encode() for index in range(count)]
    return Checkpoint("PeterNeumann", count, tree_of([leaf_hash(leaf) for leaf in leaves]).root()), leaves


def test_a_checkpoint_is_three_lines(signer: NoteSigner) -> None:
    checkpoint, _ = checkpoint_of(7)
    note = checkpoint.sign(signer)
    assert note.split("\n")[:2] == ["PeterNeumann", "7"]
    assert Checkpoint.open(note, [signer.verifier()]) == checkpoint
    assert Checkpoint.parse_unverified(note) == checkpoint
    # Extension lines are signed and passed over.
    assert Checkpoint.open(signer.sign(checkpoint.text() + "more\n"), [signer.verifier()]) == checkpoint


def test_the_specification_s_checkpoint_is_parsed() -> None:
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    checkpoint = Checkpoint.parse(text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n1\n",
        "a\n01\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "a\n-1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I\n",
        "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2J=\n",
        "a\n1\nCsUY\n",
        "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n",
        "\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
    ],
)
def test_a_malformed_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(VerificationError):
        Checkpoint.parse(text)


@given(st.integers(1, 40), st.data())
def test_a_proof_is_read_back_and_verified(count: int, data: st.DataObject) -> None:
    signer = NoteSigner("PeterNeumann", Secret(bytes(32)))
    checkpoint, leaves = checkpoint_of(count)
    index = data.draw(st.integers(0, count - 1))
    path = tuple(tree_of([leaf_hash(leaf) for leaf in leaves]).inclusion(index))
    proof = LogProof(index=index, path=path, note=checkpoint.sign(signer), leaf=leaves[index])
    read = LogProof.parse(proof.text())
    assert read == proof
    assert read.verify([signer.verifier()]) == checkpoint
    for wrong in (b"another leaf", b""):
        with pytest.raises(VerificationError):
            read.verify([signer.verifier()], leaf=wrong)
    with pytest.raises(VerificationError):
        LogProof(index=count, path=path, note=proof.note, leaf=leaves[index]).verify([signer.verifier()])
    bare = LogProof.parse(LogProof(index=index, path=path, note=proof.note, leaf=None).text())
    assert bare.verify([signer.verifier()], leaf=leaves[index]) == checkpoint
    with pytest.raises(VerificationError, match="does not bring its leaf"):
        bare.verify([signer.verifier()])
    # Cut anywhere, or with any line gone, it is refused.
    text = proof.text()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(VerificationError):
        LogProof.parse(text[:cut]).verify([signer.verifier()])
    lines = text.split("\n")
    gone = data.draw(st.integers(0, len(lines) - 1))
    with pytest.raises(VerificationError):
        LogProof.parse("\n".join(lines[:gone] + lines[gone + 1 :])).verify([signer.verifier()])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c2sp.org/tlog-proof@v2\nindex 0\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 00\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 0\nAAAA\n\nx",
        "c2sp.org/tlog-proof@v1\nindex 0\n\n",
        "c2sp.org/tlog-proof@v1\nextra !\nindex 0\n\nx",
        "c2sp.org/tlog-proof@v1\n\nx",
    ],
)
def test_a_malformed_proof_is_refused(text: str) -> None:
    with pytest.raises(VerificationError, match="proof: expected"):
        LogProof.parse(text)


def test_one_logs_key_says_nothing_of_another() -> None:
    ours, theirs = NoteSigner("ours", Secret(bytes(32))), NoteSigner("theirs", Secret(bytes(range(32))))
    forged = theirs.sign(Checkpoint("ours", 1, bytes(32)).text())
    with pytest.raises(VerificationError, match="no signature of ours"):
        Checkpoint.open(forged, [ours.verifier(), theirs.verifier()])
    with pytest.raises(VerificationError, match="of the log ours, and no key of that name"):
        Checkpoint.open(forged, [theirs.verifier()])


def test_a_leaf_that_is_no_json_is_said() -> None:
    signer = NoteSigner("ours", Secret(bytes(32)))
    note = signer.sign(Checkpoint("ours", 1, leaf_hash(b"x")).text())
    proof = LogProof(index=0, path=(), note=note, leaf=b"x")
    checkpoint = proof.verify([signer.verifier()])
    with pytest.raises(VerificationError, match="no entry of a ledger"):
        proof.to_json(checkpoint)
