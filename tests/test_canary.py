"""A known root goes through everything that prints, and must come out of nothing.

Sought in every output: the root, the scope key, each lane's seed and key, the account seed, account key
and code key, as raw bytes, hexadecimal, base64 at its three alignments, Python's repr, a list of numbers,
and the decimal 64-bit words of the keys.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from watermark import generation
from watermark.errors import TaggantError
from watermark.generation import Sampling
from watermark.green_list import GreenList
from watermark.keyring import Keyring, create_key_file, public_view
from watermark.keys import ScopeKeys, Secret
from watermark.tokenizer import load

ROOT = hashlib.sha256(b"canary").digest()
CHECKOUT = Path(__file__).parents[1]


def secrets_of(scope: ScopeKeys) -> dict[str, bytes]:
    found = {"root": ROOT, "scope key": scope.key.reveal(), "account seed": scope.account_seed().reveal()}
    found |= {f"lane seed {j}": scope.lane_seed(j).reveal() for j in range(64)}
    found |= {f"lane key {j}": scope.lane_key(j).reveal() for j in range(64)}
    return found | {"account key": scope._account_key.reveal(), "code key": scope.code_key().reveal()}


def forms(secret: bytes) -> Iterator[bytes]:
    """Yield what a leak of *secret*, or of 12 bytes at either end of it, looks like."""
    for part in (secret[:12], secret[-12:]):
        yield part
        yield part.hex().encode()
        yield part.hex().upper().encode()
        yield part.hex(" ").encode()
        yield repr(part)[2:-1].encode()
        yield ", ".join(map(str, part)).encode()
        for shift, spoilt in ((0, 0), (1, 2), (2, 3)):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                yield encode(bytes(shift) + part).rstrip(b"=")[spoilt:-1]
    for start in range(0, len(secret), 8):
        for order in ("little", "big"):
            yield str(int.from_bytes(secret[start : start + 8], order)).encode()


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary")
    (folder / "root").write_bytes(ROOT)
    create_key_file(
        folder / "key.json",
        scope="canary",
        window=1,
        delta=2.0,
        fleet_k=64,
        account_lanes=16,
        tokenizer=load("smollm2"),
        root_file=folder / "root",
    )
    return folder / "key.json"


@pytest.fixture(scope="module")
def keyring(key_file: Path) -> Keyring:
    return Keyring.load(key_file)


@pytest.fixture(scope="module")
def leaks(keyring: Keyring) -> Callable[[object], list[str]]:
    """Return a function that names the secrets that a text or bytes holds."""
    sought = [(name, form) for name, secret in secrets_of(keyring.scope()).items() for form in forms(secret)]

    def names(output: object) -> list[str]:
        data = output if isinstance(output, bytes) else str(output).encode("utf-8", "surrogateescape")
        return sorted({name for name, form in sought if form in data})

    return names


@pytest.mark.parametrize(
    "leak",
    [
        bytes,
        bytes.hex,
        lambda secret: secret.hex().upper(),
        repr,
        list,
        lambda secret: f"text {secret!r} text",
        lambda secret: base64.b64encode(secret).decode(),
        lambda secret: base64.b64encode(b"x" + secret + b"yz").decode(),
        lambda secret: base64.urlsafe_b64encode(b"xy" + secret + b"z").decode(),
        lambda secret: np.frombuffer(secret, dtype="<u8").tolist(),
        lambda secret: secret[:13].hex(),
    ],
)
def test_the_search_finds_each_form_of_a_leak(
    leaks: Callable[[object], list[str]], keyring: Keyring, leak: Any
) -> None:
    scope = keyring.scope()
    assert leaks(leak(ROOT)) == ["root"]
    assert leaks(leak(scope.lane_key(63).reveal())) == ["lane key 63"]
    assert leaks(leak(scope.code_key().reveal())) == ["code key"]


def test_the_key_file_holds_the_root_and_nothing_derived(leaks: Callable[[object], list[str]], key_file: Path) -> None:
    assert leaks(key_file.read_bytes()) == ["root"]


def used(keyring: Keyring) -> list[object]:
    """Return every object that holds a secret, after it derived all that it keeps."""
    scope = keyring.scope()
    scope.lane_words()
    scope.commitments()
    green_list = GreenList(scope, min_entropy=1.0)
    windows = np.arange(200, dtype=np.uint32)[:, None]
    green_list.bias(np.zeros((200, 30), dtype=np.float32), windows, accounts=["someone"] * 200)
    secrets = [scope.lane_seed(0), scope.lane_key(0), scope.code_key(), scope.account_seed(), scope._account_key]
    return [keyring, keyring.root, *keyring.scopes, keyring.publish(), scope, scope.key, green_list, *secrets]


def test_nothing_that_an_object_prints_of_itself_leaks(leaks: Callable[[object], list[str]], keyring: Keyring) -> None:
    for value in used(keyring):
        for printed in (
            repr(value),
            str(value),
            f"{value}",
            f"{value!a}",
            "%s %r" % (value, value),  # noqa: UP031
            json.dumps([value], default=str),
            repr([value, {"key": value}, (value,)]),
        ):
            assert leaks(printed) == []
    assert repr(keyring.root) == "Secret(32 bytes)"


def test_nothing_with_a_secret_is_pickled_or_copied_out(leaks: Callable[[object], list[str]], keyring: Keyring) -> None:
    for value in used(keyring):
        if value in keyring.scopes:
            assert leaks(pickle.dumps(value)) == []  # It has no secret.
            continue
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="a Secret is not pickled"):
                pickle.dumps(value, protocol)
        with pytest.raises(TypeError, match="a Secret is not pickled"):
            copy.deepcopy(value)
    with pytest.raises(TypeError, match="a Secret is not pickled"):
        dataclasses.asdict(keyring)
    for secret in (keyring.root, keyring.scope().key):
        with pytest.raises(TypeError):
            json.dumps(secret)
        with pytest.raises(TypeError):
            bytes(secret)  # type: ignore[call-overload]
        assert not hasattr(secret, "__dict__")


def test_the_public_view_leaks_nothing(leaks: Callable[[object], list[str]], keyring: Keyring) -> None:
    assert leaks(json.dumps(public_view(keyring))) == []


def failures(folder: Path, key_file: Path, keyring: Keyring) -> Iterator[Callable[[], object]]:
    """Yield what fails where a secret is at hand."""
    content = key_file.read_bytes()
    [whole] = re.findall(rb'"taggant_sk1_\w+"', content)
    digit = content.index(b"taggant_sk1_") + 20
    broken = {
        "cut": content[:-20],
        "flipped": content[:digit] + (b"0" if content[digit : digit + 1] != b"0" else b"1") + content[digit + 1 :],
        "root as schema": content.replace(b'"taggant/keyring/1"', whole),
        "root as state": content.replace(b'"active"', whole),
        "root as name": content.replace(b'"canary"', whole),
        "bare": ROOT,
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
        yield lambda name=name: Keyring.load(folder / name).scope("none")
    shutil.copy(key_file, folder / "open")
    (folder / "open").chmod(0o644)
    yield lambda: Keyring.load(folder / "open")
    yield lambda: keyring.write(key_file)
    yield lambda: keyring.scope("none")
    yield lambda: keyring.publish().scope_to_mark()
    yield lambda: Keyring.create("a", params=keyring.scopes[0].params, delta=2.0, root=Secret(ROOT + ROOT))
    yield lambda: ScopeKeys(name="a", params=keyring.scopes[0].params, delta=2.0, key=Secret(ROOT[:31]))
    yield lambda: keyring.scope().lane_seed(256)
    yield lambda: keyring.scope().code_word("\x1b")
    yield lambda: GreenList(keyring.scope()).bias(np.zeros((1, 5)), np.zeros((1, 1), dtype=np.uint32))  # type: ignore[arg-type]


def test_no_message_and_no_chained_traceback_leaks(
    leaks: Callable[[object], list[str]], key_file: Path, keyring: Keyring, tmp_path: Path
) -> None:
    count = 0
    for fail in failures(tmp_path, key_file, keyring):
        with pytest.raises((TaggantError, ValueError)) as first:
            fail()
        try:
            try:
                raise first.value
            except Exception as error:
                raise RuntimeError("while serving a request") from error
        except RuntimeError as error:
            printed = "".join(traceback.format_exception(error))
        assert str(first.value) in printed
        assert leaks(printed) == []
        # What `from None` hides would still be there for a logger that walks the chain.
        link: BaseException | None = first.value
        while link is not None:
            assert leaks(f"{link} {link!r} {link.args}") == []
            link = link.__cause__ or link.__context__
        count += 1
    assert count == 15


def test_nothing_is_logged_that_leaks(
    leaks: Callable[[object], list[str]], key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        keyring = Keyring.load(key_file)
        objects = used(keyring)
        Keyring.create("a", params=keyring.scopes[0].params, delta=2.0, root=keyring.root).write(tmp_path / "key")
        logging.getLogger("canary").debug("in use: %r", objects)
        try:
            keyring.scope("none")
        except TaggantError:
            logging.getLogger("canary").exception("with %s", keyring)
    assert "Secret(32 bytes)" in caplog.text
    assert leaks(caplog.text) == []


def test_the_answers_written_leak_nothing(
    leaks: Callable[[object], list[str]], keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        name = "canary"
        tokenizer = load("smollm2")
        end_ids = ()

    monkeypatch.setattr(generation, "_answer", lambda model, batch, *rest, number: [[40, 50, 60]] * len(batch))
    out = tmp_path / "answers.jsonl"
    model: Any = Model()
    generation.generate(model, ["a", "b"], green_list=GreenList(keyring.scope()), out=out, sampling=Sampling())
    assert keyring.scope().fingerprint in out.read_text(encoding="utf-8")
    assert leaks(out.read_bytes()) == []


def taggant(*arguments: object, before: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, after the Python statements *before*."""
    environment = {key: value for key, value in os.environ.items() if key != "TAGGANT_DEBUG"}
    program = f"import sys\n{before}\nimport cli\nsys.argv = ['taggant', *sys.argv[1:]]\ncli.main()"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "answers.jsonl"
    lines = [{"prompt": "Why?", "response": f"Because {i} is {i * i}, and so on, as they said."} for i in range(30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_commands_print_no_secret(
    leaks: Callable[[object], list[str]], key_file: Path, text: Path, tmp_path: Path
) -> None:
    commands: list[tuple[object, ...]] = [
        ("keys", "create", "--out", tmp_path / "new.json", "--root-file", key_file.with_name("root")),
        ("keys", "show", "--keyring", key_file),
        ("keys", "show", "--keyring", key_file, "--json"),
        ("detect", "text", text, "--keyring", key_file),
        ("detect", "text", text, "--keyring", key_file, "--json"),
        ("detect", "model", text, "--keyring", key_file, "--decoys", "19", "--json"),
    ]
    for command in commands:
        done = taggant(*command)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout
        assert leaks(done.stdout) == []
        assert leaks(done.stderr) == []


def test_the_commands_errors_print_no_secret(
    leaks: Callable[[object], list[str]], key_file: Path, tmp_path: Path
) -> None:
    shutil.copy(key_file, tmp_path / "open.json")
    (tmp_path / "open.json").chmod(0o644)
    (tmp_path / "cut.json").write_bytes(key_file.read_bytes()[:-30])
    (tmp_path / "cut.json").chmod(0o600)
    # A key file given where text is expected is a mistake that people make.
    commands: list[tuple[tuple[object, ...], int]] = [
        (("keys", "show", "--keyring", tmp_path / "open.json"), 4),
        (("keys", "show", "--keyring", tmp_path / "cut.json"), 4),
        (("keys", "show", "--keyring", key_file.with_name("root")), 4),
        (("keys", "create", "--out", key_file), 4),
        (("detect", "text", shutil.copy(key_file, tmp_path / "key.jsonl"), "--keyring", key_file), 3),
        (("detect", "text", key_file.with_name("root"), "--keyring", key_file), 3),
    ]
    for command, code in commands:
        done = taggant(*command)
        assert done.returncode == code, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        assert leaks(done.stdout + done.stderr) == []


def test_an_internal_error_prints_no_secret(
    leaks: Callable[[object], list[str]], key_file: Path, text: Path, keyring: Keyring
) -> None:
    """Even an error whose own message quotes the key."""
    before = (
        "from watermark.keys import ScopeKeys\n"
        "def fail(self):\n"
        "    secret = self.key.reveal()\n"
        "    try:\n"
        "        raise KeyError(secret)\n"
        "    except KeyError as error:\n"
        "        raise ValueError(f'bad key {secret.hex()} {secret!r}') from error\n"
        "ScopeKeys.lane_words = fail"
    )
    done = taggant("detect", "text", text, "--keyring", key_file, "--json", before=before)
    assert done.returncode == 1
    assert done.stderr.startswith(b"taggant: internal error: ValueError at <string>:")
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""
    assert leaks(done.stderr) == []


def test_no_tracked_file_holds_what_looks_like_a_root() -> None:
    if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    files = [CHECKOUT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    assert CHECKOUT / "watermark" / "keyring.py" in files
    pattern = re.compile(rb"taggant_sk1_[0-9a-f]{64}")
    assert pattern.search(b"taggant_sk1_" + ROOT.hex().encode())
    assert [file for file in files if file.is_file() and pattern.search(file.read_bytes())] == []
