"""Key files: who may read them, what is refused, and that no message quotes one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watermark.errors import KeyringError, UsageError
from watermark.keyring import SCHEMA, Event, Keyring, create_key_file, public_view
from watermark.keys import NO_ACTIVATION, Params, Secret
from watermark.tokenizer import Tokenizer

ROOT = bytes(range(100, 132))
PARAMS = Params(tokenizer="ab" * 32, special_ids=(0, 1, 2, 70_000), window=3, fleet_k=40, account_lanes=0)


def tokenizer(vocabulary_size: int = 300) -> Tokenizer:
    """One id a byte, and names for the ids above; ids 256 and 257 are special."""
    return Tokenizer(
        name="bytes",
        vocabulary_size=vocabulary_size,
        special_ids=(256, 257),
        encode_text=lambda text: list(text.encode()),
        bytes_of=lambda i: bytes([i]) if i < 256 else f"<token {i}>".encode(),
    )


def keyring(scope: str = "2026-q4", *, delta: float = 2.5) -> Keyring:
    return Keyring.create(scope, params=PARAMS, delta=delta, root=Secret(ROOT))


def with_scopes(*names: str, state: str = "active") -> Keyring:
    first = keyring().scopes[0]
    event = Event(state, "2026-01-02T03:04:05Z")
    scopes = tuple(replace(first, name=name, history=(*first.history, event)) for name in names)
    return replace(keyring(), scopes=scopes)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "key.json"


@pytest.fixture
def edited(path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Return a function that writes a good key file, changed by a function of its JSON."""
    keyring().write(path)

    def edit(change: Callable[[dict[str, Any]], object]) -> Path:
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return edit


@settings(max_examples=30, deadline=None)
@given(
    root=st.binary(min_size=32, max_size=32),
    name=st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True),
    window=st.integers(1, 8),
    fleet_k=st.integers(1, 255),
    account_lanes=st.sampled_from((0, 16)),
    special=st.sets(st.integers(0, 2**32 - 1), max_size=5),
    delta=st.floats(0, 50),
    activation=st.binary(min_size=32, max_size=32),
    published=st.booleans(),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    root: bytes,
    name: str,
    window: int,
    fleet_k: int,
    account_lanes: int,
    special: set[int],
    delta: float,
    activation: bytes,
    published: bool,
) -> None:
    params = Params(
        tokenizer="0f" * 32,
        special_ids=tuple(sorted(special)),
        window=window,
        fleet_k=fleet_k,
        account_lanes=account_lanes,
    )
    written = Keyring.create(name, params=params, delta=delta, root=Secret(root))
    written = replace(written, scopes=(replace(written.scopes[0], activation=activation),), published=published)
    path = tmp_path_factory.mktemp("keys") / "key.json"
    written.write(path)
    read = Keyring.load(path)
    assert read.root.reveal() == root
    assert (read.scopes, read.published) == (written.scopes, written.published)
    assert (read.scope().lane_words() == written.scope().lane_words()).all()


def test_a_created_root_is_new_each_time() -> None:
    roots = {Keyring.create("a", params=PARAMS, delta=1.0).root.reveal() for _ in range(20)}
    assert len(roots) == 20
    assert {len(root) for root in roots} == {32}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize(("published", "mode"), [(False, 0o600), (True, 0o644)])
def test_the_umask_has_no_say_in_the_mode(path: Path, umask: int, published: bool, mode: int) -> None:
    before = os.umask(umask)
    try:
        replace(keyring(), published=published).write(path)
    finally:
        os.umask(before)
    assert mode_of(path) == mode


def test_no_moment_exists_in_which_others_can_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is created with its mode: a chmod afterwards would leave it open for a moment."""
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(arguments) or real(*arguments))
    keyring().write(path)
    [(_, flags, mode)] = opened
    assert mode == 0o600
    assert flags & os.O_EXCL
    assert flags & os.O_CREAT


def test_a_key_file_is_never_overwritten(path: Path) -> None:
    path.write_text("something else", encoding="utf-8")
    with pytest.raises(KeyringError, match=r"exists; a key file is never overwritten\. Choose another name"):
        keyring().write(path)
    assert path.read_text(encoding="utf-8") == "something else"


def test_a_key_file_is_not_written_through_a_link(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyringError, match="exists"):
        keyring().write(path)
    assert not (tmp_path / "elsewhere").exists()


def test_where_no_file_can_be_made_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="cannot create the key file: No such file or directory"):
        keyring().write(tmp_path / "none" / "key.json")


def test_a_write_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyringError, match="cannot write the key file: No space left on device"):
        keyring().write(path)
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610, 0o601, 0o602, 0o777])
def test_a_file_that_others_can_reach_is_refused_with_the_command_that_mends_it(path: Path, mode: int) -> None:
    keyring().write(path)
    path.chmod(mode)
    with pytest.raises(KeyringError) as refused:
        Keyring.load(path)
    expected = f"{path}: others can read this key file (mode {mode:04o}). Mend it: chmod 600 {path}"
    assert str(refused.value) == expected
    assert refused.value.exit_code == 4
    path.chmod(0o600)
    assert Keyring.load(path).root.reveal() == ROOT


def test_the_command_that_mends_it_is_quoted_for_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "my key; rm x.json"
    keyring().write(path)
    path.chmod(0o644)
    with pytest.raises(KeyringError) as refused:
        Keyring.load(path)
    assert str(refused.value).endswith(f"chmod 600 '{path}'")


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_what_its_owner_alone_can_read_is_accepted(path: Path, mode: int) -> None:
    keyring().write(path)
    path.chmod(mode)
    assert Keyring.load(path).root.reveal() == ROOT


def test_a_published_keyring_is_read_by_all_and_marks_nothing(path: Path) -> None:
    keyring().publish().write(path)
    assert mode_of(path) == 0o644
    read = Keyring.load(path)
    assert read.published
    assert read.scope().key.reveal() == keyring().scope().key.reveal()
    with pytest.raises(
        KeyringError, match=r"published: anyone could mark with it\. Make your own: taggant keys create"
    ):
        read.scope_to_mark()


def test_the_root_stands_in_the_file_with_its_prefix_and_checksum(path: Path) -> None:
    keyring().write(path)
    root = json.loads(path.read_text(encoding="utf-8"))["root"]
    # python -c 'import hashlib; r = bytes(range(100, 132));
    #   print(r.hex(), hashlib.sha256(b"taggant_sk1_" + r).hexdigest()[:8])'
    # In three pieces, since no file of the repository may hold what looks like a root (tests/test_canary.py).
    digits, checksum = "6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283", "660a188e"
    assert root == "taggant_sk1_" + digits + checksum


@pytest.mark.parametrize("position", [12, 40, 75, 76, 83])
def test_a_flipped_digit_of_root_or_checksum_is_refused(
    edited: Callable[[Callable[[dict[str, Any]], object]], Path], position: int
) -> None:
    def flip(data: dict[str, Any]) -> None:
        digits = data["root"]
        data["root"] = digits[:position] + format(int(digits[position], 16) ^ 1, "x") + digits[position + 1 :]

    with pytest.raises(KeyringError, match="checksum does not fit: the file was cut or edited"):
        Keyring.load(edited(flip))


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "other schema": lambda d: d.update(schema="taggant/keyring/2"),
    "a root as schema": lambda d: d.update(schema=d["root"]),
    "no schema": lambda d: d.pop("schema"),
    "no root": lambda d: d.pop("root"),
    "root cut": lambda d: d.update(root=d["root"][:-1]),
    "root a number": lambda d: d.update(root=7),
    "root in capitals": lambda d: d.update(root=d["root"].upper()),
    "line after the root": lambda d: d.update(root=d["root"] + "\n"),
    "published, no root": lambda d: d.update(published=True),
    "published, short root": lambda d: d.update(published=True, published_root="00" * 31),
    "published, no hexadecimal": lambda d: d.update(published=True, published_root="xy" * 32),
    "no scopes": lambda d: d.pop("scopes"),
    "empty scopes": lambda d: d.update(scopes=[]),
    "scopes a text": lambda d: d.update(scopes="2026-q4"),
    "scope a text": lambda d: d.update(scopes=["2026-q4"]),
    "a scope twice": lambda d: d.update(scopes=d["scopes"] * 2),
    "scope name": lambda d: d["scopes"][0].update(name="a/b"),
    "scope name a number": lambda d: d["scopes"][0].update(name=4),
    "no params": lambda d: d["scopes"][0].pop("params"),
    "params a text": lambda d: d["scopes"][0].update(params="none"),
    "unknown parameter": lambda d: d["scopes"][0]["params"].update(more=1),
    "missing parameter": lambda d: d["scopes"][0]["params"].pop("account_k"),
    "window 0": lambda d: d["scopes"][0]["params"].update(window=0),
    "window 9": lambda d: d["scopes"][0]["params"].update(window=9),
    "window 2.5": lambda d: d["scopes"][0]["params"].update(window=2.5),
    "window 2.0": lambda d: d["scopes"][0]["params"].update(window=2.0),
    "window true": lambda d: d["scopes"][0]["params"].update(window=True),
    "fleet_k 64.5": lambda d: d["scopes"][0]["params"].update(fleet_k=64.5),
    "special id 1.5": lambda d: d["scopes"][0]["params"].update(special_ids=[0, 1.5]),
    "special ids unsorted": lambda d: d["scopes"][0]["params"].update(special_ids=[1, 0]),
    "suite": lambda d: d["scopes"][0]["params"].update(suite="sipmix-v2"),
    "delta NaN": lambda d: d["scopes"][0].update(delta=float("nan")),
    "delta infinite": lambda d: d["scopes"][0].update(delta=float("inf")),
    "delta negative": lambda d: d["scopes"][0].update(delta=-1),
    "delta a text": lambda d: d["scopes"][0].update(delta="2"),
    "delta true": lambda d: d["scopes"][0].update(delta=True),
    "activation short": lambda d: d["scopes"][0].update(activation="00" * 31),
    "activation no hexadecimal": lambda d: d["scopes"][0].update(activation="zz" * 32),
    "state": lambda d: d["scopes"][0].update(history=[{"state": "lost", "time": "2026-01-01T00:00:00Z"}]),
    "time": lambda d: d["scopes"][0].update(history=[{"state": "active", "time": "\x1b[2Jyesterday"}]),
    "history a text": lambda d: d["scopes"][0].update(history="active"),
}


def says_nothing_of_the_file(refused: pytest.ExceptionInfo[KeyringError], content: bytes) -> None:
    """The message names the path and holds no 9 characters of the content but what every message holds."""
    message = str(refused.value)
    assert refused.value.exit_code == 4
    assert message.isprintable()
    assert ROOT.hex()[:8] not in message
    assert refused.value.__cause__ is refused.value.__context__ is None
    own = {SCHEMA, "taggant/keyring/2"}
    words = {word.strip("'():,") for word in message.split()} - own
    quoted = {word for word in words if len(word) > 8 and word.encode() in content and not word.isalpha()}
    assert not quoted


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_field_is_refused_in_one_line_without_content(
    edited: Callable[[Callable[[dict[str, Any]], object]], Path], case: str
) -> None:
    path = edited(BAD[case])
    with pytest.raises(KeyringError) as refused:
        Keyring.load(path)
    assert str(refused.value).startswith(f"{path}: ")
    says_nothing_of_the_file(refused, path.read_bytes())


def whole() -> bytes:
    return json.dumps(
        {"schema": SCHEMA, "root": "taggant_sk1_" + ROOT.hex() + "660a188e", "scopes": []}, indent=1
    ).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 64,
        b"\xff\xfe\xfd" + ROOT,
        whole()[:-1],
        whole()[: len(whole()) // 2],
        whole() + b"}",
        ROOT.hex().encode(),
        b'"' + ROOT.hex().encode() + b'"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b"7",
        b"9" * 10_000,
    ],
    ids=lambda content: f"{content[:6]!r} of {len(content)}",
)
def test_what_is_no_key_file_is_refused_without_content(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyringError) as refused:
        Keyring.load(path)
    assert str(refused.value).endswith(f"not a key file of this version (expected schema {SCHEMA!r})")
    says_nothing_of_the_file(refused, content)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_key_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("keys") / "key.json"
    keyring().write(path)
    content = path.read_bytes()
    length = data.draw(st.integers(0, len(content.rstrip()) - 1))
    path.write_bytes(content[:length])
    with pytest.raises(KeyringError, match="not a key file of this version"):
        Keyring.load(path)


def test_a_missing_file_is_met_with_the_command_that_makes_one(path: Path) -> None:
    with pytest.raises(KeyringError, match=r"no such key file; `taggant keys create --out .*key.json` makes one"):
        Keyring.load(path)


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="cannot read the key file: Is a directory"):
        Keyring.load(tmp_path)


def test_of_several_scopes_one_must_be_named() -> None:
    both = with_scopes("a", "b")
    with pytest.raises(UsageError, match=r"has 2 scopes: name one with --scope \(it has a, b\)"):
        both.scope()
    with pytest.raises(UsageError, match="no scope 'c' in this keyring: it has a, b"):
        both.scope("c")
    assert both.scope("b").name == "b"
    assert both.scope("a").key.reveal() != both.scope("b").key.reveal()


@pytest.mark.parametrize("state", ["pending", "retired", "revealed", "compromised", "destroyed"])
def test_only_an_active_scope_marks(state: str) -> None:
    marked_once = with_scopes("a", state=state)
    assert marked_once.scope("a").name == "a"  # Detection goes on.
    with pytest.raises(KeyringError, match=f"scope a is {state}: only an active scope marks"):
        marked_once.scope_to_mark()
    assert with_scopes("a").scope_to_mark("a").name == "a"


def test_a_scope_without_history_is_pending() -> None:
    scope = replace(keyring().scopes[0], history=())
    with pytest.raises(KeyringError, match="is pending"):
        replace(keyring(), scopes=(scope,)).scope_to_mark()


def test_the_scope_carries_its_activation_into_its_keys() -> None:
    plain = keyring()
    activated = replace(plain, scopes=(replace(plain.scopes[0], activation=bytes(range(32))),))
    assert activated.scope().activated
    assert plain.scope().activation == NO_ACTIVATION
    assert activated.scope().lane_key(0).reveal() != plain.scope().lane_key(0).reveal()
    assert activated.scope().commitments() == plain.scope().commitments()


@pytest.mark.parametrize("delta", [-0.5, 51, float("nan"), float("inf")])
def test_an_absurd_delta_is_refused(delta: float) -> None:
    with pytest.raises(UsageError, match="delta: expected 0 to 50 logits"):
        keyring(delta=delta)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_root_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(KeyringError, match=f"expected exactly 32 bytes, got {length}"):
        Keyring.create("a", params=PARAMS, delta=1.0, root=Secret(bytes(length)))


def created(path: Path, **changes: Any) -> Keyring:
    options: dict[str, Any] = {"scope": "default", "window": 2, "delta": 2.0, "fleet_k": 64, "account_lanes": 16}
    return create_key_file(path, tokenizer=tokenizer(), **{**options, **changes})


def test_create_key_file_takes_the_root_from_a_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(ROOT)
    made = created(path, root_file=tmp_path / "root", special=("<token 290>", "7"))
    assert made.root.reveal() == Keyring.load(path).root.reveal() == ROOT
    assert made.scopes[0].params.special_ids == (7, 256, 257, 290)
    assert made.scopes[0].params.tokenizer == tokenizer().digest()
    assert mode_of(path) == 0o600


@pytest.mark.parametrize(("length", "said"), [(0, "0"), (31, "31"), (33, "more"), (65, "more")])
def test_a_root_file_of_another_length_is_refused(path: Path, tmp_path: Path, length: int, said: str) -> None:
    (tmp_path / "root").write_bytes((ROOT * 3)[:length])
    with pytest.raises(KeyringError, match=rf"root: expected exactly 32 raw bytes, got {said}$"):
        created(path, root_file=tmp_path / "root")
    assert not path.exists()


def test_a_root_file_without_end_is_refused_and_not_read_for_ever(path: Path) -> None:
    with pytest.raises(KeyringError, match="expected exactly 32 raw bytes, got more"):
        created(path, root_file=Path("/dev/zero"))


def test_a_root_file_that_cannot_be_read_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="cannot read the root: No such file or directory"):
        created(path, root_file=tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "Q4 2026"}, "scope name 'Q4 2026': expected 1 to 64 characters"),
        ({"window": 9}, "window: expected 1 to 8"),
        ({"fleet_k": 0}, "fleet_k: expected 1 to 255"),
        ({"account_lanes": 8}, "account_lanes: expected 0 or 16"),
        ({"special": ("<none>",)}, "special id '<none>'"),
    ],
)
def test_a_parameter_out_of_range_makes_no_file(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        created(path, **changes)
    assert not path.exists()


def test_the_public_view_holds_commitments_and_no_secret() -> None:
    both = with_scopes("a", "b")
    view = public_view(both)
    assert view["schema"] == "taggant/commitments/1"
    assert view["published"] is False
    for shown, name in zip(view["scopes"], ("a", "b"), strict=True):
        keys_of = both.scope(name)
        assert shown["scope"] == name
        assert shown["fingerprint"] == keys_of.fingerprint
        assert shown["commitments"] == keys_of.commitments()
        assert len(set(shown["commitments"])) == 65
        assert shown["params"]["special_ids"] == [0, 1, 2, 70_000]
        assert shown["activation"] is None
        assert [event["state"] for event in shown["history"]] == ["active", "active"]
    text = json.dumps(view)
    assert "taggant_sk1_" not in text
    for name in ("a", "b"):
        keys_of = both.scope(name)
        secrets = [keys_of.key, keys_of.account_seed(), keys_of.code_key()]
        secrets += [keys_of.lane_seed(j) for j in range(64)] + [keys_of.lane_key(j) for j in range(64)]
        assert not any(secret.reveal().hex() in text for secret in (both.root, *secrets))


def test_nothing_printed_of_a_keyring_holds_its_root() -> None:
    text = f"{keyring()} {keyring()!r} {keyring().scope()!r}"
    assert "Secret(32 bytes)" in text
    assert ROOT.hex() not in text
    assert repr(ROOT)[2:-1] not in text
