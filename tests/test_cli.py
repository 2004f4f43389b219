"""The command as a person meets it: `cli.main` with arguments, standard output and error, and the exit code.

Most of it runs in this process, where a run takes milliseconds; what depends on a process of its own (signals, closed
pipes, what is imported) runs in one.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import inspect
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import cli
import watermark.tokenizer
from detect.decoys import DECOYS
from detect.family import DEFAULT
from detect.records import Fields
from detect.reference import TOP, Reference
from detect.tally import PromptPolicy
from detect.verdict import LEVEL
from watermark import kernels
from watermark.errors import UsageError
from watermark.keyring import Keyring

REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"

#: Every command, in the order of docs/reference.md.
COMMANDS = (
    "",
    "demo",
    "keys",
    "keys create",
    "keys show",
    "keys add",
    "keys commit",
    "keys activate",
    "keys timestamp",
    "keys retire",
    "keys compromise",
    "keys derive",
    "keys ingress",
    "accounts",
    "accounts add",
    "accounts list",
    "generate",
    "detect",
    "detect text",
    "detect show",
    "detect model",
    "detect accounts",
    "detect corpus",
    "tally",
    "tally build",
    "tally merge",
    "tally score",
    "calibrate",
    "detect weights",
    "power",
    "study",
    "study run",
    "study table",
    "ledger",
    "ledger create-key",
    "ledger append",
    "ledger checkpoint",
    "ledger prove",
    "ledger verify",
    "ledger export",
    "collect",
    "evidence",
    "evidence plan",
    "evidence score",
    "evidence open",
    "evidence create",
    "evidence verify",
    "evidence report",
)

ANSWER = "Because molecules of the air scatter the short waves of sunlight much more than they do the long ones."
GOOD = json.dumps({"prompt": "Why is the sky blue?", "response": ANSWER}) + "\n"
LONG = "".join(json.dumps({"prompt": f"{i}?", "response": f"{i}. {ANSWER}"}) + "\n" for i in range(300))

KEY = ("-k", "key.json")
CREATE = ("keys", "create", "--out", "new.json")
GENERATE = ("generate", "--model", "smollm2", "--out", "answers.jsonl")
MODEL = ("detect", "model", "good.jsonl", *KEY)
TEXT = ("detect", "text")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert (self.code, self.err) == (0, "")
        return dict(json.loads(self.out))

    @property
    def complaint(self) -> str:
        """The one line on standard error, which must be all there is."""
        assert self.out == ""
        assert self.err.startswith("taggant: ")
        assert self.err.endswith("\n")
        line = self.err[:-1]
        assert line.isprintable()
        assert "Traceback" not in line
        assert "taggant_sk1_" not in line
        return line


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two keys, the answers of a teacher marked under the first, and every kind of bad input."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _make_keys()
        _make_teacher()
        _make_bad_input()
    return folder


@pytest.fixture
def run(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, in the folder of `files`."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TAGGANT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(watermark.tokenizer, "load", _load_once)

    def run_it(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["taggant", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ran(left.value.code, out, err)

    return run_it


def spawn(arguments: Sequence[str], folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "import cli; cli.main()", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "100"},
        **options,
    )


# Loading the shipped tokenizer takes a quarter of a second.
_load_once = functools.cache(watermark.tokenizer.load)


def _make_keys() -> None:
    smollm2 = _load_once("smollm2")
    for name, scope in (("key.json", "default"), ("other.json", "2026-q4")):
        watermark.keyring.create_key_file(
            Path(name), scope=scope, window=2, delta=2.0, fleet_k=64, account_lanes=16, tokenizer=smollm2
        )
    key = json.loads(Path("key.json").read_text())
    (scope,) = key["scopes"]
    changes: dict[str, dict[str, Any]] = {
        "edited.json": {"root": key["root"][:-1] + ("1" if key["root"][-1] == "0" else "0")},
        "foreign.json": {"scopes": [{**scope, "params": {**scope["params"], "tokenizer": "ab" * 32}}]},
        "future.json": {"schema": "taggant/keyring/2"},
        "two.json": {"scopes": [scope, {**scope, "name": "second"}]},
    }
    for name, change in changes.items():
        Path(name).write_text(json.dumps({**key, **change}))
        Path(name).chmod(0o600)
    Path("open.json").write_text(json.dumps(key))
    Path("open.json").chmod(0o644)
    Path("garbage.json").write_bytes(b"\xff\x00taggant_sk1_garbage")
    Path("garbage.json").chmod(0o600)


def _make_teacher(answers: int = 80, length: int = 60) -> None:
    """Write answers whose every token is green if one of eight drawn at random is."""
    smollm2, scope = _load_once("smollm2"), Keyring.load(Path("key.json")).scope()
    rng = np.random.default_rng(1)
    ids = rng.integers(20, smollm2.vocabulary_size, size=(answers, length), dtype=np.uint32)
    for at in range(2, length):
        windows = np.ascontiguousarray(ids[:, at - 2 : at])
        lanes = kernels.lanes(windows)
        seeds = kernels.seeds(scope.lane_words(), windows, lanes)
        drawn = rng.integers(20, smollm2.vocabulary_size, size=(answers, 8), dtype=np.uint32)
        owner = np.repeat(np.arange(answers, dtype=np.int64), 8)
        green = kernels.green(seeds, scope.params.bounds()[lanes], owner, drawn.ravel()).reshape(answers, 8)
        ids[:, at] = drawn[np.arange(answers), np.argmax(green, axis=1)]
    head = {"fingerprint": scope.fingerprint, "tokenizer": smollm2.digest(), "prompt": "Say something."}
    with open("teacher.jsonl", "w") as file:
        for row in ids:
            file.write(json.dumps({**head, "response": smollm2.decode(row), "token_ids": row.tolist()}) + "\n")
    starts = np.arange(answers + 1, dtype=np.int64) * length
    reference = Reference(
        name="flat",
        tokenizer=smollm2.digest(),
        ids=ids.ravel(),
        starts=starts,
        top_ids=np.tile(np.arange(20, 24, dtype=np.uint32), (ids.size, 1)),
        top_p=np.full((ids.size, 4), 0.01, dtype=np.float32),
        said_p=np.full(ids.size, 0.01, dtype=np.float32),
    )
    reference.save(Path("flat.npz"))


def _make_bad_input() -> None:
    def record(**fields: Any) -> str:
        return json.dumps(fields) + "\n"

    texts = {
        "good.jsonl": GOOD,
        "long.jsonl": LONG,
        "clean.jsonl": LONG,
        "renamed.jsonl": record(question="Why?", answer=ANSWER),
        "cut.jsonl": GOOD + '{"response": "and th',
        "wrong.jsonl": record(completion=ANSWER),
        "number.jsonl": record(response=7),
        "surrogate.jsonl": '{"response": "a \\ud800 b c d"}\n',
        "outside.jsonl": record(token_ids=[5, 6, 7, 49152]),
        "foreign.jsonl": record(token_ids=[5, 6, 7, 8], tokenizer="ab" * 32),
        "short.jsonl": record(response="a b"),
        "few.jsonl": record(response="one two three four five six"),
        "empty.jsonl": "",
        "blank.txt": "\n \n",
        "one.json": GOOD,
        "table.zip": "a,b\n",
        "escape\x1b[31m.jsonl": "{bad\n",
        "prompts.txt": "Hello\n",
        "noprompts.txt": "\n\n",
        "wrongprompts.jsonl": record(question="Why?"),
        "taken.jsonl": GOOD,
        "bad.tiktoken": "!!! 0\n",
        "lone.tiktoken": "IQ== 0\n",
        "bad/tokenizer.json": "{}",
        "folder/a.txt": ANSWER,
        "folder/b.jsonl": GOOD,
        "folder/c.xyz": "not read",
        "root.bin": "abc",
        "text.npz": "hello",
    }
    for folder in ("bad", "folder", "nothing"):
        Path(folder).mkdir()
    for name, text in texts.items():
        Path(name).write_text(text)
    packed = gzip.compress(LONG.encode())
    Path("good.jsonl.gz").write_bytes(gzip.compress(GOOD.encode()))
    Path("cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    Path("plain.jsonl.gz").write_text(GOOD)
    flat = Path("flat.npz").read_bytes()
    Path("cut.npz").write_bytes(flat[: len(flat) // 2])
    with zipfile.ZipFile("other.npz", "w") as file:
        file.writestr("a.txt", "b")


# What a person can do wrong, with the exit code and what the one line must say: what, expected, and the next step.

BAD_INPUT = [
    ((*TEXT, "cut.jsonl", *KEY), 3, ["cut.jsonl:2", "expected a JSON object", "1 of 2 records", "--max-malformed 1"]),
    ((*TEXT, "wrong.jsonl", *KEY), 3, ["wrong.jsonl:1", "response", "found completion", "--response-field"]),
    ((*TEXT, "number.jsonl", *KEY), 3, ["number.jsonl:1", "expected a string in response, found the number 7"]),
    ((*TEXT, "surrogate.jsonl", *KEY), 3, ["surrogate.jsonl:1", "lone surrogate \\ud800"]),
    ((*TEXT, "outside.jsonl", *KEY), 3, ["outside.jsonl:1", "under 49152", "found 49152", "--tokenizer"]),
    ((*TEXT, "foreign.jsonl", *KEY), 3, ["foreign.jsonl:1", "another tokenizer", "add the text"]),
    ((*TEXT, "empty.jsonl", *KEY), 3, ["no records in empty.jsonl", "expected text or JSON Lines"]),
    ((*TEXT, "blank.txt", *KEY), 3, ["no records in blank.txt"]),
    ((*TEXT, "missing.jsonl", *KEY), 3, ["missing.jsonl: no such file", "check the name"]),
    ((*TEXT, "*.missing", *KEY), 3, ["no file matches *.missing", "check the pattern"]),
    ((*TEXT, "nothing", *KEY), 3, ["no records in nothing", ".jsonl"]),
    ((*TEXT, "-", *KEY), 3, ["no records in -"]),
    ((*TEXT, "cut.jsonl.gz", *KEY), 3, ["cut.jsonl.gz", "whole gzip stream", "cut short"]),
    ((*TEXT, "plain.jsonl.gz", *KEY), 3, ["plain.jsonl.gz", "whole gzip stream", "found damage"]),
    ((*TEXT, "escape\x1b[31m.jsonl", *KEY), 3, ["escape\\x1b[31m.jsonl:1"]),
    ((*TEXT, "one.json", *KEY), 2, ["one.json", "convert it to JSON Lines"]),
    ((*TEXT, "table.zip", *KEY), 2, ["table.zip", "zip is not read", "convert it"]),
    ((*TEXT, "good.jsonl", "cut.jsonl", *KEY), 3, ["cut.jsonl:2", "1 of 3 records"]),
    (("calibrate", "empty.jsonl"), 3, ["no records in empty.jsonl"]),
]

BAD_KEYS = [
    ((*TEXT, "good.jsonl", "-k", "missing.json"), 4, ["missing.json: no such key file", "taggant keys create"]),
    ((*TEXT, "good.jsonl", "-k", "garbage.json"), 4, ["garbage.json: not a key file", "taggant/keyring/1"]),
    ((*TEXT, "good.jsonl", "-k", "good.jsonl"), 4, ["good.jsonl: not a key file"]),
    ((*TEXT, "good.jsonl", "-k", "future.json"), 4, ["future.json", "taggant/keyring/2", "reads 'taggant/keyring/1'"]),
    ((*TEXT, "good.jsonl", "-k", "open.json"), 4, ["open.json: others can read", "mode 0644", "chmod 600 open.json"]),
    ((*TEXT, "good.jsonl", "-k", "edited.json"), 4, ["edited.json", "checksum does not fit", "cut or edited"]),
    ((*TEXT, "good.jsonl", "-k", "nothing"), 4, ["nothing: cannot read the key file", "directory"]),
    (("keys", "show", "-k", "missing.json"), 4, ["missing.json: no such key file"]),
    ((*TEXT, "good.jsonl"), 2, ["name the key: --keyring FILE", "--mark SCHEME:FILE"]),
    ((*TEXT, "good.jsonl", *KEY, "--scope", "zz"), 2, ["no scope zz", "they have default"]),
    ((*TEXT, "good.jsonl", "-k", "two.json"), 2, ["one key, and 2 were given", "--scope"]),
    ((*TEXT, "good.jsonl", *KEY, "-k", "other.json"), 2, ["one key, and 2 were given"]),
    ((*MODEL, *KEY), 2, ["each once"]),
    ((*TEXT, "good.jsonl", "-k", "foreign.json"), 2, ["scope default", "not shipped", "--tokenizer"]),
    ((*TEXT, "good.jsonl", "-k", "foreign.json", "-t", "smollm2"), 2, ["another tokenizer than smollm2", "abababab"]),
    (("keys", "create", "--out", "key.json"), 4, ["key.json: exists", "never overwritten", "another name"]),
    (("keys", "create", "--out", "no/key.json"), 4, ["no/key.json: cannot create", "No such file or directory"]),
    (("keys", "create"), 2, ["missing option '--out'"]),
    ((*CREATE, "--scope", "Bad Scope"), 2, ["scope name 'Bad Scope'", "expected 1 to 64 characters", "2026-q4"]),
    ((*CREATE, "--delta", "99"), 2, ["delta: expected 0 to 50", "got 99"]),
    ((*CREATE, "--delta", "nan"), 2, ["delta: expected 0 to 50", "got nan"]),
    ((*CREATE, "--account-lanes", "3"), 2, ["account_lanes: expected 0 or 16, got 3"]),
    ((*CREATE, "--window", "9"), 2, ["'--window'", "8"]),
    ((*CREATE, "--special", "<nope>"), 2, ["special id '<nope>'"]),
    ((*CREATE, "--root-file", "root.bin"), 4, ["root.bin: expected exactly 32 raw bytes, got 3"]),
    ((*CREATE, "--root-file", "missing.bin"), 4, ["missing.bin: cannot read the root"]),
]

BAD_TOKENIZERS = [
    ((*TEXT, "good.jsonl", *KEY, "-t", "nope"), 2, ["tokenizer 'nope'", "expected smollm2", "cl100k_base", ".gguf"]),
    ((*TEXT, "good.jsonl", *KEY, "-t", "missing.tiktoken"), 2, ["missing.tiktoken: cannot read the ranks file"]),
    ((*TEXT, "good.jsonl", *KEY, "-t", "bad.tiktoken"), 2, ["bad.tiktoken:1: expected a token in base64"]),
    ((*TEXT, "good.jsonl", *KEY, "-t", "lone.tiktoken"), 2, ["lone.json: expected beside the ranks file"]),
    ((*TEXT, "good.jsonl", *KEY, "-t", "bad"), 2, ["tokenizer.json"]),
    ((*TEXT, "good.jsonl", *KEY, "-t", "missing/tokenizer.json"), 2, ["missing/tokenizer.json: no such file"]),
    ((*CREATE, "-t", "nope"), 2, ["tokenizer 'nope'"]),
    (("calibrate", "good.jsonl", "-t", "nope"), 2, ["tokenizer 'nope'"]),
]

BAD_REFERENCES = [
    ((*MODEL, "--reference", "missing.npz"), 3, ["missing.npz: no such reference file"]),
    ((*MODEL, "--reference", "text.npz"), 3, ["text.npz: not a reference file of this version (taggant/reference/1)"]),
    ((*MODEL, "--reference", "other.npz"), 3, ["other.npz: not a reference file of this version"]),
    ((*MODEL, "--reference", "flat.npz"), 3, ["flat: made for 80 responses, and there are 1", "--save-reference"]),
    ((*MODEL, "--reference", "missing.jsonl"), 3, ["missing.jsonl: no such file"]),
    ((*MODEL, "--reference", "cut.jsonl"), 3, ["cut.jsonl:2"]),
    ((*MODEL, "--reference", "short.jsonl"), 2, ["reference short.jsonl", "holds no ids"]),
    ((*MODEL, "--reference", "teacher.jsonl"), 3, ["reference teacher.jsonl", "marked", "never saw the mark"]),
    ((*MODEL, "--reference", "a.npz", "--reference", "a.npz"), 2, ["named twice", "name each candidate once"]),
    ((*MODEL, "--save-reference", "a.npz"), 2, ["--save-reference", "name one with --reference-model"]),
    ((*MODEL, "--reference-model", "b", "--save-reference", "a.bin"), 2, ["ends in .npz, got a.bin"]),
    ((*MODEL, "--reference-model", "b", "--save-reference", "no/a.npz"), 2, ["no folder", "make it first"]),
]

BAD_USE = [
    (("detekt",), 2, ["no such command 'detekt'", "taggant --help"]),
    (TEXT, 2, ["missing argument 'INPUT'", "taggant detect text --help"]),
    ((*TEXT, "good.jsonl", *KEY, "--nope"), 2, ["--nope"]),
    ((*TEXT, "good.jsonl", *KEY, "--level", "x"), 2, ["'--level'"]),
    ((*TEXT, "good.jsonl", *KEY, "--level", "0"), 2, ["'--level'", "between 0 and 1, got 0"]),
    ((*TEXT, "good.jsonl", *KEY, "--level", "1"), 2, ["'--level'", "between 0 and 1, got 1"]),
    ((*MODEL, "--level", "nan"), 2, ["'--level'", "got nan"]),
    ((*TEXT, "good.jsonl", *KEY, "--prompts", "x"), 2, ["'--prompts'", "'own', 'clean', 'marked'"]),
    ((*TEXT, "good.jsonl", *KEY, "--exit-code", "3"), 2, ["'--exit-code'", "8"]),
    ((*TEXT, "good.jsonl", *KEY, "--max-malformed", "-1"), 2, ["'--max-malformed'", "0"]),
    (("calibrate", "good.jsonl", "--keys", "0"), 2, ["'--keys'", "1"]),
    ((*GENERATE, "--prompts", "prompts.txt"), 2, ["--keyring", "--unmarked"]),
    ((*GENERATE, "--prompts", "prompts.txt", *KEY, "--unmarked"), 2, ["--keyring", "--unmarked"]),
    ((*GENERATE, "--prompts", "missing.txt", *KEY), 3, ["missing.txt: cannot read the prompts"]),
    ((*GENERATE, "--prompts", "noprompts.txt", *KEY), 3, ["noprompts.txt: no prompts"]),
    ((*GENERATE, "--prompts", "wrongprompts.jsonl", *KEY), 3, ["wrongprompts.jsonl:1", '"prompt"']),
    ((*GENERATE, "--prompts", "prompts.txt", *KEY, "--scope", "zz"), 2, ["no scope 'zz'", "it has default"]),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [*BAD_INPUT, *BAD_KEYS, *BAD_TOKENIZERS, *BAD_REFERENCES, *BAD_USE],
    ids=lambda value: " ".join(value).replace("\x1b", "ESC") if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_told_in_one_line(
    run: Run, files: Path, arguments: tuple[str, ...], code: int, said: list[str]
) -> None:
    before = sorted(os.listdir(files))
    ran = run(*arguments)
    complaint = ran.complaint
    assert [part for part in said if part not in complaint] == []
    assert ran.code == code
    assert sorted(os.listdir(files)) == before


def test_a_key_file_that_the_group_can_read_is_refused(run: Run, files: Path) -> None:
    for mode in (0o640, 0o604, 0o660):
        (files / "open.json").chmod(mode)
        assert run(*TEXT, "good.jsonl", "-k", "open.json").code == 4
    (files / "open.json").chmod(0o644)


def test_ranks_that_cannot_be_had_are_told_with_the_way_round(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def no_network(name: str) -> None:
        raise ConnectionError("secret.proxy.example refused")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    ran = run(*TEXT, "good.jsonl", *KEY, "-t", "p50k_base")
    assert ran.code == 2
    assert "TIKTOKEN_CACHE_DIR" in ran.complaint
    assert "secret" not in ran.complaint


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("torch", (*GENERATE, "--prompts", "prompts.txt", *KEY), "pip install 'taggant[hf]'"),
        ("transformers", (*MODEL, "--reference-model", "smollm2"), "pip install 'taggant[hf]'"),
        ("tokenizers", (*TEXT, "good.jsonl", *KEY, "-t", "bad"), "pip install 'taggant[tokenizers]'"),
        ("jinja2", ("demo", "--decoys", "0", "--out", "report"), "pip install 'taggant[report]'"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, module: str, arguments: tuple[str, ...], said: str
) -> None:
    for name in {module, "torch"} if module == "transformers" else {module}:
        monkeypatch.setitem(sys.modules, name, None)  # So that its import fails.
    ran = run(*arguments)
    assert ran.code == 2
    assert said in ran.complaint


# In a process of its own, since NumPy leaves the file open when it is not whole.
def test_the_defaults_are_those_of_the_library() -> None:
    """The command line says them again, since importing them would bring NumPy in before `--help`."""
    model, text = inspect.signature(cli.detect_model).parameters, inspect.signature(cli.detect_text).parameters
    assert (model["level"].default, text["level"].default) == (LEVEL, LEVEL)
    assert (model["decoys"].default, inspect.signature(cli.demo).parameters["decoys"].default) == (DECOYS, DECOYS)
    assert model["top"].default == TOP
    assert model["prompts"].default.value == PromptPolicy.OWN.value
    assert {prompts.value for prompts in cli.Prompts} == {policy.value for policy in PromptPolicy}
    assert {name: parameter.default for name, parameter in model.items() if name.endswith("_field")} == {
        f"{'ids' if kind == 'token_ids' else kind}_field": name for kind, name in asdict(Fields()).items()
    }


def test_a_reference_that_cannot_be_saved_is_told(files: Path) -> None:
    reference = Reference.load(files / "flat.npz")
    (files / "taken.npz").mkdir()
    with pytest.raises(UsageError, match=r"taken\.npz: the reference cannot be written there"):
        reference.save(files / "taken.npz")
    assert not (files / "taken.npz.partial").exists()


def test_a_reference_that_was_cut_is_told(files: Path) -> None:
    process = spawn([*MODEL, "--decoys", "0", "--reference", "cut.npz"], files, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, b"")
    assert err.startswith(b"taggant: cut.npz: not a reference file of this version (taggant/reference/1)")
    assert err.count(b"\n") == 1


def test_a_bug_is_one_line_that_quotes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("what the customer said")

    monkeypatch.setattr("detect.corpus.read_corpus", broken)
    ran = run(*TEXT, "good.jsonl", *KEY)
    assert ran.code == 1
    assert "internal error: RuntimeError at test_cli.py:" in ran.complaint
    assert "customer" not in ran.complaint
    assert "report it" in ran.complaint
    monkeypatch.setenv("TAGGANT_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["taggant", *TEXT, "good.jsonl", *KEY])
    with pytest.raises(RuntimeError, match="customer"):
        cli.main()


def test_a_message_is_one_line_whatever_a_path_holds(run: Run) -> None:
    ran = run("keys", "show", "-k", "no\nsuch\x1b[31m\u202e\udcff key")
    assert ran.code == 4
    assert "no\\nsuch\\x1b[31m\\u202e\\udcff key" in ran.complaint


def test_an_interruption_is_told_and_leaves_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detect.corpus.read_corpus", interrupted)
    ran = run(*TEXT, "good.jsonl", *KEY)
    assert (ran.code, ran.err) == (130, "taggant: interrupted\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_ctrl_c_while_reading(files: Path) -> None:
    pipe = files / "pipe"
    os.mkfifo(pipe)
    process = spawn([*TEXT, "pipe", *KEY], files, stdout=subprocess.PIPE)
    try:
        # Opening waits until the command has opened the other end: it is reading by then.
        with open(pipe, "wb"):
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        pipe.unlink()
    assert (process.returncode, out, err) == (130, b"", b"taggant: interrupted\n")


@pytest.mark.parametrize("arguments", [("--json",), ()])
def test_a_reader_that_has_read_enough_ends_it_quietly(files: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn([*TEXT, "good.jsonl", *KEY, *arguments], files, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_cannot_be_written_is_told(files: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = spawn([*TEXT, "good.jsonl", *KEY], files, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(b"taggant: cannot write: ")
    assert err.count(b"\n") == 1


# What goes well.


def test_text_as_json_and_as_a_table_say_the_same(run: Run) -> None:
    told = run(*TEXT, "teacher.jsonl", *KEY, "--json").json
    pooled = told["pooled"]
    assert told["schema"] == "taggant/detect-text/1"
    assert len(told["documents"]) == told["accounting"]["read"] == told["accounting"]["scored"] == 80
    assert {"pairs", "score", "log10_p", "verdict", "source"} <= told["documents"][0].keys()
    assert pooled["pairs"] > 3000
    assert pooled["green"] > 0.8 * pooled["pairs"]
    assert pooled["log10_p"] < -1000
    assert pooled["verdict"] == "depends on the key"
    assert all(document["verdict"] == "depends on the key" for document in told["documents"])
    assert told["texts_scored_by_recorded_ids"] == 80
    table = run(*TEXT, "teacher.jsonl", *KEY).out
    assert f"{pooled['green']:,} green of {pooled['pairs']:,} distinct pairs" in table
    assert f"e{int(np.floor(pooled['log10_p']))}," in table
    assert "80 records read: 80 scored, 0 excluded, 0 malformed" in table
    assert "documents: 80 depends on the key" in table


def test_model_as_json_and_as_a_table_say_the_same(run: Run) -> None:
    told = run(*MODEL[:2], "teacher.jsonl", *KEY, "--reference", "flat.npz", "--decoys", "19", "--json").json
    count, weighted = told["tests"]["count"], told["tests"][DEFAULT[0].name]
    assert isinstance(count["green"], int)
    for test in (count, weighted):
        assert isinstance(test["pairs"], int)
        assert test["log10_p"] < -500
        assert test["decoy_rank"] == 1
        assert test["decoys"] == 19
    assert told["main_test"] == "quasi-score and centred"
    assert told["reference"] == "flat.npz"
    assert told["verdict"] == "depends on the key"
    table = run(*MODEL[:2], "teacher.jsonl", *KEY, "--reference", "flat.npz", "--decoys", "19").out
    for name, test in told["tests"].items():
        (row,) = [line.split() for line in table.splitlines() if line.startswith(f"{name} ")]
        assert row[1] == f"{test['pairs']:,}"
        assert row[-4].endswith(f"e{int(np.floor(test['log10_p']))}")
        assert row[-3:] == ["1", "of", "20"]
    assert "depends on the key: p <= " in table
    assert "It does not say who trained on what" in table


def test_the_same_answers_under_another_key_are_no_finding(run: Run) -> None:
    told = run(*TEXT, "teacher.jsonl", "-k", "other.json", "--json").json
    assert told["pooled"]["verdict"] == "no sign of the key"
    assert told["pooled"]["log10_p"] > -6


def test_several_keys_are_corrected_for_by_holm(run: Run) -> None:
    arguments = (*MODEL[:2], "teacher.jsonl", *KEY, "-k", "other.json", "--decoys", "0")
    told = run(*arguments, "--json").json
    assert told["schema"] == "taggant/detect-models/1"
    first, second = told["scopes"]
    assert (first["scope"], second["scope"]) == ("default", "2026-q4")
    assert (first["verdict"], second["verdict"]) == ("depends on the key", "no sign of the key")
    assert first["log10_p_holm"] == pytest.approx(first["log10_p"] + np.log10(2), abs=1e-9)
    assert first["scopes_tested"] == second["scopes_tested"] == 2
    assert first["tests"]["count"]["decoy_rank"] is None
    table = run(*arguments).out
    assert "scope default:" in table
    assert "scope 2026-q4:" in table
    assert "Holm over 2 scopes" in table


def test_the_life_of_a_scope(run: Run, tmp_path: Path) -> None:
    key, serving = str(tmp_path / "key.json"), str(tmp_path / "serving.json")
    assert run("keys", "create", "--out", key, "--scope", "a", "--pending").code == 0
    assert run("keys", "derive", "-k", key, "--out", serving).err.startswith(
        "taggant: no scope of this keyring is active"
    )
    refused = run("keys", "activate", "-k", key, "--scope", "a", "--activation", "12")
    assert (refused.code, refused.err[:50]) == (2, "taggant: activation: expected 64 hexadecimal digit")
    assert run("keys", "activate", "-k", key, "--scope", "a", "--activation", "0f" * 32).out.endswith("a is active\n")
    added = run("keys", "add", "-k", key, "--scope", "b", "--delta", "1.5")
    assert "scope b is pending" in added.out
    said = run("keys", "activate", "-k", key, "--scope", "b")
    assert "randomness cannot be verified" in said.err
    assert run("keys", "retire", "-k", key, "--scope", "a").out.endswith("a is retired\n")
    shown = run("keys", "show", "-k", key, "--json").json["scopes"]
    assert [(one["scope"], one["state"], one["delta"]) for one in shown] == [
        ("a", "retired", 2.0),
        ("b", "active", 1.5),
    ]
    assert shown[0]["activation"] == "0f" * 32
    assert run("keys", "derive", "-k", key, "--out", serving).out.endswith("serving.json: b; no root is in it\n")
    derived = run("keys", "show", "-k", serving, "--json").json["scopes"]
    assert derived == shown[1:]
    assert run("keys", "retire", "-k", key, "--scope", "a").code == 2


def test_a_verdict_changes_the_exit_code_only_if_asked(run: Run) -> None:
    assert run(*TEXT, "teacher.jsonl", *KEY).code == 0
    assert run(*TEXT, "teacher.jsonl", *KEY, "--exit-code", "9").code == 9
    assert run(*TEXT, "teacher.jsonl", *KEY, "--exit-code", "9", "--json").code == 9
    assert run(*TEXT, "good.jsonl", *KEY, "--exit-code", "9").code == 0
    assert run(*MODEL[:2], "teacher.jsonl", *KEY, "--decoys", "0", "--exit-code", "9").code == 9
    assert run(*MODEL, "--decoys", "0", "--exit-code", "9").code == 0


def test_the_forms_of_input_give_the_same_pairs(run: Run) -> None:
    def pooled(*arguments: str, stdin: bytes = b"") -> Any:
        return run(*TEXT, *arguments, *KEY, "--json", stdin=stdin).json["pooled"]

    expected = pooled("good.jsonl")
    assert pooled("good.jsonl.gz") == expected
    assert pooled("-", stdin=GOOD.encode()) == expected
    assert pooled("-", stdin=gzip.compress(GOOD.encode())) == expected
    assert pooled("renamed.jsonl", "--prompt-field", "question", "--response-field", "answer") == expected
    # Pairs are distinct over all files.
    assert pooled("good.jsonl", "good.jsonl.gz") == expected


def test_every_record_is_accounted_for(run: Run) -> None:
    arguments = (*TEXT, "good.jsonl", "cut.jsonl", "outside.jsonl", "short.jsonl", "folder", *KEY)
    told = run(*arguments, "--max-malformed", "2", "--json").json["accounting"]
    assert told["read"] == told["scored"] + sum(told["excluded"].values()) + told["malformed"] == 7
    assert told["excluded"] == {"not longer than the window": 1}
    assert [problem.split(": ")[0] for problem in told["problems"]] == ["cut.jsonl:2", "outside.jsonl:1"]
    table = run(*arguments, "--max-malformed", "2").out
    assert "7 records read: 4 scored, 1 excluded, 2 malformed (1 not longer than the window)" in table
    assert "malformed: outside.jsonl:1: expected token ids under 49152" in table
    assert "beside the records: 1 files passed over" in table
    assert "2 of 7 records are malformed and 1 allowed" in run(*arguments, "--max-malformed", "1").complaint


def test_a_text_too_short_says_so_and_what_it_takes(run: Run) -> None:
    table = run(*TEXT, "few.jsonl", *KEY).out
    assert "too short to tell" in table
    assert "it takes 10 distinct pairs at least" in table
    nothing = run(*TEXT, "short.jsonl", *KEY)
    assert nothing.code == 0
    assert "no text is longer than the window of 2 ids" in nothing.out
    told = run(*TEXT, "short.jsonl", *KEY, "--json").json
    assert (told["documents"], told["pooled"]["pairs"], told["pooled"]["log10_p"]) == ([], 0, 0.0)
    assert told["pooled"]["verdict"] == "too short to tell"
    assert run(*MODEL[:2], "short.jsonl", *KEY, "--json").json["verdict"] == "too short to tell"


def test_calibration(run: Run) -> None:
    arguments = ("calibrate", "long.jsonl", "--keys", "400", "--seed", "3")
    told = run(*arguments, "--json").json
    assert told["schema"] == "taggant/calibrate/1"
    assert set(told["rates"]) == {"count", "naive z"}
    assert all(rate["within"] for rate in told["rates"]["count"])
    table = run(*arguments).out
    for name, rates in told["rates"].items():
        (row,) = [line for line in table.splitlines() if line.startswith(name)]
        assert all(f"{rate['rate']:.4f}" in row for rate in rates)
    assert "300 records read: 300 scored" in table
    with_reference = run(*arguments, "--reference", "clean.jsonl", "--json").json
    assert set(with_reference["rates"]) == {"count", "quasi-score", "centred", "naive z"}


def test_a_piped_result_holds_no_escape_codes(run: Run) -> None:
    for arguments in ((*TEXT, "teacher.jsonl", *KEY), MODEL, ("calibrate", "good.jsonl", "--keys", "50")):
        assert "\x1b" not in run(*arguments).out


def test_a_key_is_made_offline_and_shown_without_its_secret(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def no_network(*arguments: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    path = tmp_path / "key file.json"
    made = run("keys", "create", "--out", str(path))
    assert (made.code, made.err) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    root = json.loads(path.read_text())["root"]
    shown, listed = run("keys", "show", "-k", str(path), "--json"), run("keys", "show", "-k", str(path))
    for out in (made.out, shown.out, listed.out):
        assert "taggant_sk1_" not in out
        assert root.removeprefix("taggant_sk1_")[:16] not in out
    (scope,) = shown.json["scopes"]
    assert (scope["scope"], scope["state"], len(scope["commitments"])) == ("default", "active", 65)
    assert scope["fingerprint"] in listed.out
    assert scope["fingerprint"] in made.out


def test_callers_are_added_by_a_key_that_no_argument_holds(run: Run, tmp_path: Path) -> None:
    path, key = str(tmp_path / "accounts"), b"sk-0123456789abcdef"
    added = run("accounts", "add", "--map", path, "alice", stdin=key + b"\r\n")
    assert (added.code, added.out) == (0, f"{path}: alice. A server takes it up by itself\n")
    added = run("accounts", "add", "--map", path, "evaluation", "--off", stdin=b"sk-fedcba9876543210")
    assert added.out == f"{path}: evaluation, unmarked. A server takes it up by itself\n"
    listed = run("accounts", "list", "--map", path).out
    digest = hashlib.sha256(key).hexdigest()
    assert listed.splitlines()[0] == f"{digest[:12]}…  alice"
    assert listed.splitlines()[1].endswith("…  evaluation  off")
    twice = run("accounts", "add", "--map", path, "bob", stdin=key)
    assert twice.code == 2
    assert "this API key is there already" in twice.complaint
    for stdin, account in ((b"", "bob"), (b"short", "bob"), (b"sk-0000000000000000", "two words")):
        assert run("accounts", "add", "--map", path, account, stdin=stdin).code == 2
    assert key.decode() not in Path(path).read_text() + listed + twice.err
    assert run("accounts", "list", "--map", str(tmp_path / "none")).code == 2


def test_an_api_key_typed_in_a_terminal_is_not_shown(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    asked: list[dict[str, Any]] = []

    def prompt(text: str, **options: Any) -> str:
        asked.append(options)
        return "sk-typed-0123456789"

    monkeypatch.setattr(typer, "prompt", prompt)
    monkeypatch.setattr(io, "TextIOWrapper", Terminal)
    assert run("accounts", "add", "--map", str(tmp_path / "accounts"), "alice").code == 0
    assert asked == [{"hide_input": True}]


def test_an_ingress_key_is_made_once(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ingress-key"
    made = run("keys", "ingress", "--out", str(path))
    assert made.code == 0
    assert "taggant_sk1_" not in made.out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = run("keys", "ingress", "--out", str(path))
    assert again.code == 4
    assert "never overwritten" in again.complaint


def test_a_saved_name_of_a_special_token_joins_the_scope(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "k.json")
    assert (
        run("keys", "create", "--out", path, "--special", "<|im_end|>", "--special", "9000", "--window", "1").code == 0
    )
    params = run("keys", "show", "-k", path, "--json").json["scopes"][0]["params"]
    assert params["special_ids"] == [*range(17), 9000]
    assert params["window"] == 1


def test_the_demo_tells_the_issue_s_fields(run: Run) -> None:
    told = run("demo", "--decoys", "19", "--json").json
    assert told["schema"] == "taggant/demo/1"
    assert told["commitments_that_fit"] == 65
    for suspect in ("student", "clean_twin"):
        for test in ("count", *(weighting.name for weighting in DEFAULT)):
            assert {"pairs", "z", "log10_p", "decoy_rank"} <= told[suspect]["tests"][test].keys()
    assert told["student"]["log10_p"] < -30
    assert told["clean_twin"]["log10_p"] > -2
    assert told["teacher"]["pooled"]["log10_p"] < -100


# Start-up, help and the reference.


def test_help_loads_nothing_heavy(files: Path) -> None:
    code = (
        "import sys, cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=files, capture_output=True, text=True, check=True)
    heavy = {"numba", "numpy", "scipy", "torch", "transformers", "tiktoken", "tokenizers", "cryptography", "requests"}
    assert done.stdout.startswith("Usage: taggant")
    assert heavy & set(done.stderr.split()) == set()


def test_a_command_alone_shows_its_help(run: Run) -> None:
    for command in ("", "keys", "detect"):
        ran = run(*command.split())
        assert ran.code == 2
        assert ran.err.startswith(f"Usage: {' '.join(['taggant', *command.split()])}")
    assert run("--version").out == f"taggant {watermark.__version__}\n"


def _help_of(run: Run, command: str) -> str:
    ran = run(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    return ran.out.rstrip("\n")


def test_the_reference_mirrors_the_help(run: Run) -> None:
    """Written anew with TAGGANT_WRITE_DOCS=1, so that the text in the docs is made by the command and by no hand.

    Typer's layout changes with its versions, so the docs name theirs; under another one only the words are compared.
    """
    page = REFERENCE.read_text(encoding="utf-8")
    blocks = {}
    for command in COMMANDS:
        prompt = " ".join(["$ taggant", *command.split(), "--help"])
        pattern = re.compile(rf"(?<=```text\n){re.escape(prompt)}\n.*?(?=\n```)", re.DOTALL)
        assert len(pattern.findall(page)) == 1, f"docs/reference.md needs a text block that begins with {prompt}"
        blocks[pattern] = f"{prompt}\n{_help_of(run, command)}"
    if os.environ.get("TAGGANT_WRITE_DOCS"):
        for pattern, block in blocks.items():
            page = page.replace(pattern.findall(page)[0], block)
        page = re.sub(r"(?<=typer )[0-9][0-9.]*", typer.__version__, page)
        REFERENCE.write_text(page, encoding="utf-8")
    same_layout = f"typer {typer.__version__}" in page
    for pattern, block in blocks.items():
        (shown,) = pattern.findall(page)
        if same_layout:
            assert shown == block, "make the block anew: TAGGANT_WRITE_DOCS=1 pytest tests/test_cli.py -k mirrors"
        else:
            assert set(re.findall(r"--[a-z][a-z-]+", shown)) == set(re.findall(r"--[a-z][a-z-]+", block))


def _fields_of(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_fields_of, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    return set(value) | set().union(*(_fields_of(inner) for inner in value.values()))


def test_the_reference_names_every_field_of_the_json(run: Run) -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_ -]+)`", page))
    outputs = {
        "detect text": run(*TEXT, "teacher.jsonl", *KEY, "--json").json,
        "detect model": run(*MODEL[:2], "teacher.jsonl", *KEY, "--reference", "flat.npz", "--json").json,
        "calibrate": run("calibrate", "good.jsonl", "--keys", "50", "--json").json,
        "keys show": run("keys", "show", *KEY, "--json").json,
        "several scopes": run(*MODEL, "-k", "other.json", "--decoys", "0", "--json").json,
    }
    for command, told in outputs.items():
        told.pop("inputs", None)
        for scope in told.get("scopes", []):
            scope.pop("inputs", None)
        assert _fields_of(told) - named == set(), command


def test_the_reference_names_every_exit_code_and_variable() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    for code in (0, 1, 2, 3, 4, 130):
        assert f"\n| {code} |" in page
    for variable in ("TAGGANT_DEBUG", "TIKTOKEN_CACHE_DIR", "NUMBA_CACHE_DIR", "HF_HUB_OFFLINE"):
        assert f"`{variable}`" in page


def test_log_probabilities_are_tested_beside_the_outputs(run: Run, files: Path) -> None:
    """Of a suspect that lists what it says with p 0.9, and something else."""
    tokenizer = _load_once("smollm2")
    lines = []
    for number in range(3):
        text = f"{number}. {ANSWER}"
        pieces = [tokenizer.token_bytes(int(i)).decode() for i in tokenizer.encode(text)]
        given = [{"token": p, "logprob": -0.1, "top_logprobs": [{"token": p, "logprob": -0.1}]} for p in pieces]
        lines.append({"prompt": f"{number}?", "response": text, "logprobs": given})
    lines.append({"prompt": "3?", "response": ANSWER})
    (files / "listed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("detect", "model", "listed.jsonl", *KEY, "--decoys", "19", "--logprobs")
    found = run(*arguments, "--json").json
    given = found["logprobs"]
    assert given["accounting"]["scored"] == 3
    assert given["accounting"]["excluded"] == {"no log-probabilities": 1}
    assert found["accounting"]["scored"] == 4
    assert found["texts_scored_by_recorded_ids"] == 3
    assert given["test"]["name"] == "log-probabilities"
    assert given["test"]["log10_p"] <= 0
    assert given["reference"] == "the suspect on the whole"
    shown = run(*arguments)
    assert shown.code == 0
    assert "log-probabilities at " in shown.out
    assert run(*MODEL, "--logprobs", "--retokenize").code == 2
    assert "none of" in run(*MODEL, "--logprobs").complaint
    assert run(*MODEL, "--json").json["logprobs"] is None
