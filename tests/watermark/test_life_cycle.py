"""The life of a scope, the keyrings of serving hosts, and key files that change under a reader."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from watermark import life_cycle
from watermark.errors import KeyringError, UsageError
from watermark.keyring import Event, Keyring
from watermark.keys import NO_ACTIVATION, Params, Secret
from watermark.life_cycle import activate, add_scope, derive, retire, update_key_file

ROOT = Secret(bytes(range(100, 132)))
PARAMS = Params(tokenizer="ab" * 32, special_ids=(0, 1), window=2)


def keyring() -> Keyring:
    return Keyring.create("2026-q4", params=PARAMS, delta=2.0, root=ROOT)


def states(keyring: Keyring) -> dict[str, str]:
    return {scope.name: scope.state for scope in keyring.scopes}


def test_a_scope_is_added_activated_and_retired() -> None:
    grown = add_scope(keyring(), "2027-q1", params=PARAMS, delta=1.5)
    assert states(grown) == {"2026-q4": "active", "2027-q1": "pending"}
    assert grown.scope_to_mark().name == "2026-q4"
    both = activate(grown, "2027-q1", activation=b"\x07" * 32)
    assert both.scope_to_mark().name == "2027-q1"
    one = retire(both, "2026-q4")
    assert states(one) == {"2026-q4": "retired", "2027-q1": "active"}
    assert [event.state for event in one.scopes[1].history] == ["pending", "active"]
    with pytest.raises(KeyringError, match="2026-q4 is retired"):
        one.scope_to_mark("2026-q4")
    assert one.scope("2026-q4").lane_key(3).reveal() == keyring().scope().lane_key(3).reveal()


def test_the_scope_that_was_activated_last_marks_whatever_its_place() -> None:
    first = keyring().scopes[0]
    of = {"early": "2026-01-01T00:00:00Z", "late": "2026-03-01T00:00:00.5Z", "middle": "2026-02-01T00:00:00Z"}
    scopes = tuple(replace(first, name=name, history=(Event("active", time),)) for name, time in of.items())
    assert replace(keyring(), scopes=scopes).scope_to_mark().name == "late"
    with pytest.raises(KeyringError, match=r"no scope of this keyring is active .early is retired"):
        replace(
            keyring(), scopes=tuple(replace(s, history=(Event("retired", s.history[0].time),)) for s in scopes)
        ).scope_to_mark()


def test_the_activation_changes_the_keys_and_not_the_commitments() -> None:
    pending = add_scope(keyring(), "next", params=PARAMS, delta=2.0)
    drawn = activate(pending, "next", activation=b"\x07" * 32).scope("next")
    without = activate(pending, "next").scope("next")
    assert drawn.activated
    assert not without.activated
    assert drawn.commitments() == without.commitments()
    assert drawn.lane_key(0).reveal() != without.lane_key(0).reveal()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: activate(k, "2026-q4"), "2026-q4 is active: only a scope that is pending can be activated"),
        (lambda k: retire(retire(k, "2026-q4"), "2026-q4"), "is retired: only a scope that is active"),
        (lambda k: retire(k, "\x1b"), r"no scope .* in this keyring: it has 2026-q4"),
        (lambda k: activate(k, "2026-q4", activation=b"1"), "expected 32 bytes .64 hexadecimal digits., got 1"),
        (lambda k: add_scope(k, "2026-q4", params=PARAMS, delta=2), "is in this keyring already"),
        (lambda k: add_scope(k, "A b", params=PARAMS, delta=2), "scope name"),
        (lambda k: derive(retire(k, "2026-q4")), "no scope of this keyring is active"),
    ],
)
def test_what_cannot_be_is_refused(change: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        change(keyring())  # type: ignore[operator]


def test_a_serving_host_gets_the_scopes_keys_and_never_the_root(tmp_path: Path) -> None:
    whole = add_scope(keyring(), "2027-q1", params=PARAMS, delta=2.0)
    serving = derive(whole, ["2026-q4"])
    path = tmp_path / "serving.json"
    serving.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ROOT.reveal().hex() not in path.read_text()
    read = Keyring.load(path)
    assert read.root is None
    assert states(read) == {"2026-q4": "active"}
    assert (read.scope().lane_words() == whole.scope("2026-q4").lane_words()).all()
    assert (read.scope().code_word("a") == whole.scope("2026-q4").code_word("a")).all()
    assert derive(read).scope().commitments() == whole.scope("2026-q4").commitments()
    with pytest.raises(KeyringError, match="scope-only: add the scope where the root is"):
        add_scope(read, "b", params=PARAMS, delta=2.0)
    with pytest.raises(KeyringError, match="no root to publish"):
        read.publish()
    with pytest.raises(KeyringError, match="published"):
        derive(keyring().publish())
    assert states(retire(read, "2026-q4")) == {"2026-q4": "retired"}


def test_by_default_every_active_scope_is_derived() -> None:
    whole = activate(add_scope(keyring(), "b", params=PARAMS, delta=2.0), "b")
    whole = add_scope(whole, "c", params=PARAMS, delta=2.0)
    assert list(states(derive(whole))) == ["2026-q4", "b"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["scopes"][0].update(key=data["scopes"][0]["key"][:-1] + "0"),
        lambda data: data["scopes"][0].update(key=7),
        lambda data: data.update(root=data["scopes"][0]["key"]),
        lambda data: data["scopes"].append({**data["scopes"][0], "name": "b", "key": None}),
        lambda data: data.update(published=True, published_root="00" * 32),
    ],
)
def test_a_scope_only_file_that_was_edited_is_refused_without_content(tmp_path: Path, edit: object) -> None:
    path = tmp_path / "serving.json"
    derive(keyring()).write(path)
    data = json.loads(path.read_text())
    secret = data["scopes"][0]["key"]
    before = json.dumps(data)
    edit(data)  # type: ignore[operator]
    if json.dumps(data) == before:
        pytest.skip("the last digit was 0 already")
    path.write_text(json.dumps(data))
    with pytest.raises(KeyringError) as raised:
        Keyring.load(path)
    assert secret[12:40] not in str(raised.value)


def test_a_file_is_changed_in_one_step_and_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    keyring().write(path)
    update_key_file(path, lambda k: retire(k, "2026-q4"))
    assert states(Keyring.load(path)) == {"2026-q4": "retired"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key.json"]


def test_of_two_changes_at_once_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another change lands after this one has read the file: this one begins again."""
    path = tmp_path / "key.json"
    keyring().write(path)
    calls: list[int] = []

    def slow(k: Keyring) -> Keyring:
        calls.append(len(k.scopes))
        if len(calls) == 1:
            update_key_file(path, lambda k: add_scope(k, "other", params=PARAMS, delta=2.0))
        return add_scope(k, "mine", params=PARAMS, delta=2.0)

    update_key_file(path, slow)
    assert calls == [1, 2]
    assert list(states(Keyring.load(path))) == ["2026-q4", "other", "mine"]


def test_a_change_under_way_is_said(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    keyring().write(path)
    (tmp_path / "key.json.changing").touch()
    with pytest.raises(KeyringError, match="another change of this key file is under way"):
        update_key_file(path, lambda k: retire(k, "2026-q4"))
    assert states(Keyring.load(path)) == {"2026-q4": "active"}


def test_a_change_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.json"
    keyring().write(path)

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(life_cycle.os, "replace", full)
    with pytest.raises(KeyringError, match="No space left"):
        update_key_file(path, lambda k: retire(k, "2026-q4"))
    assert [p.name for p in tmp_path.iterdir()] == ["key.json"]
    assert states(Keyring.load(path)) == {"2026-q4": "active"}


def test_a_keyring_holds_a_root_or_a_key_for_each_scope() -> None:
    scope = derive(keyring()).scopes[0]
    with pytest.raises(KeyringError, match="one or the other"):
        Keyring(root=ROOT, scopes=(scope,))
    with pytest.raises(KeyringError, match="one or the other"):
        Keyring(root=None, scopes=(replace(scope, key=None),))


def test_an_activation_of_zeros_is_none() -> None:
    pending = add_scope(keyring(), "next", params=PARAMS, delta=2.0)
    assert not activate(pending, "next", activation=NO_ACTIVATION).scope("next").activated


def test_packed_code_words_are_the_code_words() -> None:
    scope = keyring().scope()
    packed = scope.packed_code_word("a")
    assert packed.shape == (512,)
    assert [int(packed[i // 8]) >> (i % 8) & 1 for i in range(4096)] == scope.code_word("a").astype(np.int64).tolist()
