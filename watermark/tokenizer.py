"""Tokenizers: text to the generating model's ids, and the digest by which both sides know it is the same.

Text is tokenised without Unicode normalisation and without a beginning-of-text id, and the strings of
special tokens are ordinary text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from watermark.errors import MissingExtraError, TokenizerError, printable

__all__ = ["PROBE", "Tokenizer", "load", "load_for"]

Ids = npt.NDArray[np.uint32]

#: Text whose ids are part of every tokenizer's digest, so that two tokenizers of one vocabulary that split
#: text differently (a lost digit split, a normaliser) are told apart. It never changes.
PROBE = Path(__file__).with_name("probe.txt")


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer of V ids.

    >>> smollm2 = load("smollm2")
    >>> smollm2.encode("12 <|im_end|>").tolist()
    [33, 34, 2067, 108, 306, 79, 486, 108, 46]
    """

    name: str
    vocabulary_size: int
    special_ids: tuple[int, ...]
    """Increasing."""
    encode_text: Callable[[str], Sequence[int] | npt.NDArray[Any]] = field(repr=False)
    """Ids of a text, those not below V included."""
    bytes_of: Callable[[int], bytes] = field(repr=False)
    """The bytes of an id; empty for an id with no token."""
    _digest: list[str] = field(default_factory=list, repr=False, compare=False)

    def encode(self, text: str) -> Ids:
        """Return the ids of *text*, uint32; pieces that no id stands for are dropped, as the model's runtime does."""
        ids = np.asarray(self.encode_text(text), dtype=np.uint32)
        return ids if not ids.size or int(ids.max()) < self.vocabulary_size else ids[ids < self.vocabulary_size]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """Return the text of *ids*; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(int(i)) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of an id; those of a special token are its name.

        Raises:
            TokenizerError: not an id of this tokenizer.
        """
        if not 0 <= token_id < self.vocabulary_size:
            raise TokenizerError(f"tokenizer {self.name} has ids 0 to {self.vocabulary_size - 1}, not {token_id}")
        return self.bytes_of(token_id)

    def digest(self) -> str:
        """Return the hexadecimal digest.

        SHA-256 over L(bytes of id) for id 0..V-1, then L(le32 ids of the probe text), with
        L(x) = le32(length) + x. A ranks file and an equivalent tokenizer.json agree.
        """
        if not self._digest:
            probe = self.encode(PROBE.read_bytes().decode("utf-8")).astype("<u4").tobytes()
            parts = [self.token_bytes(i) for i in range(self.vocabulary_size)]
            joined = b"".join(len(part).to_bytes(4, "little") + part for part in (*parts, probe))
            self._digest.append(hashlib.sha256(joined).hexdigest())
        return self._digest[0]

    def special_id(self, name: str) -> int:
        """Return the id of a special token's name, or of a number.

        Raises:
            TokenizerError: neither an id nor a token of this tokenizer.
        """
        if name.isdecimal() and int(name) < self.vocabulary_size:
            return int(name)
        wanted = name.encode()
        for i in range(self.vocabulary_size):
            if self.token_bytes(i) == wanted:
                return i
        raise TokenizerError(f"special id {printable(name)!r}: neither an id nor a token of {self.name}")


def load(spec: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        spec: ``smollm2`` (shipped); the name of a tiktoken encoding; a ranks file ``X.tiktoken`` with ``X.json``
            beside it; a ``tokenizer.json`` or a folder with one (extra `tokenizers`); a ``.gguf`` file (extra `hf`).

    Raises:
        TokenizerError: there is no such tokenizer, or it is incomplete.
        MissingExtraError: an optional dependency is not installed.
    """
    name, path = str(spec), Path(spec)
    if name == "smollm2":
        from watermark.examples import examples_path

        return _from_ranks(examples_path("smollm2.tiktoken"))
    if path.suffix == ".tiktoken":
        return _from_ranks(path)
    if path.suffix == ".gguf":
        return _from_gguf(path)
    if path.is_dir() or path.suffix == ".json":
        return _from_json(path / "tokenizer.json" if path.is_dir() else path)
    return _from_tiktoken(name)


def load_for(scopes: Sequence[tuple[str, str]], *, spec: str | None = None) -> Tokenizer:
    """Load the tokenizer that scopes were made for.

    Args:
        scopes: name and tokenizer digest of each.
        spec: as for `load`; by default the shipped one if it is theirs.

    Raises:
        TokenizerError: a scope was made for another.
    """
    chosen = load(spec if spec is not None else "smollm2")
    for name, digest in scopes:
        if digest != chosen.digest():
            if spec is None:
                raise TokenizerError(
                    f"scope {name} was made for a tokenizer that is not shipped (digest {digest[:16]}…): "
                    "name it with --tokenizer"
                )
            raise TokenizerError(
                f"scope {name} was made for another tokenizer than {chosen.name}: expected digest {digest[:16]}…, "
                f"got {chosen.digest()[:16]}…. Name the generating model's tokenizer with --tokenizer"
            )
    return chosen


def _from_tiktoken(name: str) -> Tokenizer:
    import tiktoken

    if name not in tiktoken.list_encoding_names():
        raise TokenizerError(
            f"tokenizer {printable(name)!r}: expected smollm2, a tiktoken encoding "
            f"({', '.join(tiktoken.list_encoding_names())}), a ranks file X.tiktoken with X.json beside it, "
            "a tokenizer.json or a folder with one, or a .gguf file"
        )
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # requests' errors, and tiktoken's own on a bad checksum
        raise TokenizerError(
            f"tokenizer {name}: its vocabulary is not cached and could not be downloaded ({type(error).__name__}). "
            "Set TIKTOKEN_CACHE_DIR to a folder that holds it (docs/reference.md, Tokenizers offline)"
        ) from None
    return _of_encoding(encoding, name, encoding.n_vocab)


def _of_encoding(encoding: Any, name: str, vocabulary_size: int) -> Tokenizer:
    special = {token: i for token, i in encoding._special_tokens.items()}

    def encode(text: str) -> Sequence[int] | npt.NDArray[Any]:
        try:
            return encoding.encode_to_numpy(text, disallowed_special=())  # type: ignore[no-any-return]
        except UnicodeEncodeError:
            raise TokenizerError("a text with a lone surrogate has no UTF-8 form and can't be tokenised") from None

    def bytes_of(i: int) -> bytes:
        try:
            return encoding.decode_single_token_bytes(i)  # type: ignore[no-any-return]
        except KeyError:
            return b""

    return Tokenizer(
        name=name,
        vocabulary_size=vocabulary_size,
        special_ids=tuple(sorted(special.values())),
        encode_text=encode,
        bytes_of=bytes_of,
    )


def _from_ranks(path: Path) -> Tokenizer:
    sidecar = path.with_suffix(".json")
    try:
        ranks = {
            base64.b64decode(token, validate=True): int(rank)
            for token, rank in (line.split() for line in path.read_bytes().splitlines() if line)
        }
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read the ranks file: {error.strerror}") from None
    except (ValueError, binascii.Error):
        raise TokenizerError(f"{path}: expected lines of a base64 token, a space and its rank") from None
    try:
        about = json.loads(sidecar.read_text(encoding="utf-8"))
        name, pattern, special = str(about.get("name", path.stem)), str(about["pattern"]), dict(about["special_tokens"])
        size = int(about.get("vocabulary_size", 1 + max([*ranks.values(), *special.values()])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise TokenizerError(
            f'{sidecar}: expected beside the ranks file, with {{"pattern": the split regex, "special_tokens": '
            '{token: id}, "vocabulary_size": V (ids from V on are dropped; optional), "name": optional}'
        ) from None
    return _of_ranks(name, pattern, ranks, special, size)


def _from_gguf(path: Path) -> Tokenizer:
    from watermark.gguf import read_vocabulary

    read = read_vocabulary(path)
    return _of_ranks(path.stem, read.pattern, read.ranks, read.special_tokens, read.vocabulary_size)


def _of_ranks(name: str, pattern: str, ranks: dict[bytes, int], special: dict[str, int], size: int) -> Tokenizer:
    import tiktoken

    try:
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except (ValueError, TypeError) as error:
        raise TokenizerError(f"tokenizer {printable(name)}: {printable(error)}") from None
    return _of_encoding(encoding, name, size)


def _from_json(path: Path) -> Tokenizer:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError("a tokenizer.json needs tokenizers: pip install 'taggant[tokenizers]'") from None
    if not path.is_file():
        raise TokenizerError(f"{path}: no such file; a model's folder has a tokenizer.json, or name another tokenizer")
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
        described = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path}: not a tokenizer.json: {printable(error)}") from None
    inner.encode_special_tokens = True
    inner.no_truncation()
    inner.no_padding()
    vocabulary = inner.get_vocab(with_added_tokens=True)
    added = {token["id"]: token for token in described.get("added_tokens", ())}
    byte_level = "ByteLevel" in json.dumps([described.get("decoder"), described.get("pre_tokenizer")])
    names = {i: token for token, i in vocabulary.items()}
    to_bytes = _byte_level_bytes() if byte_level else _sentencepiece_bytes

    def bytes_of(i: int) -> bytes:
        name = names.get(i)
        if name is None:
            return b""
        return name.encode() if i in added else to_bytes(name)

    return Tokenizer(
        name=path.parent.name if path.name == "tokenizer.json" else path.stem,
        vocabulary_size=1 + max(vocabulary.values()),
        special_ids=tuple(sorted(i for i, token in added.items() if token["special"])),
        encode_text=lambda text: inner.encode(text, add_special_tokens=False).ids,
        bytes_of=bytes_of,
    )


def _byte_level_bytes() -> Callable[[str], bytes]:
    from watermark.gguf import byte_characters

    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    return lambda token: bytes(byte_of[character] for character in token)


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()
