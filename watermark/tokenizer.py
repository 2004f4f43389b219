"""Tokenizers: text to the generating model's ids, and the digest by which both sides know it is the same.

Text is tokenised without Unicode normalisation and without a beginning-of-text id, and the strings of
special tokens are ordinary text.

tiktoken does the work wherever the vocabulary is known as ranks: some 5 M ids a second on one core, against
1.1 M of the `tokenizers` library for the same ids (measured on the standard library's sources). Neither
gains from threads or batches on two cores, so that texts are encoded one by one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from watermark.errors import InputError, MissingExtraError, TokenizerError, printable
from watermark.examples import examples_path
from watermark.gguf import byte_characters, read_vocabulary

__all__ = ["PROBE", "Tokenizer", "load", "load_for"]

Ids = npt.NDArray[np.uint32]

#: Text whose ids are part of every tokenizer's digest, so that two tokenizers of one vocabulary that split
#: text differently (a lost digit split, a normaliser) are told apart. It never changes.
PROBE = Path(__file__).with_name("probe.txt")

#: Where a text is cut that tiktoken refuses. Its regex engine gives up on some 10^6 white-space characters in
#: a row ("Max stack size exceeded"); text with shorter runs, which is all that people meet, is never cut.
_LONG_SPACE = re.compile(r"\s{65536}")

#: What a model's tokenizer.json may do to a text before splitting it. Unicode forms are left out (see above);
#: the others write a space as U+2581 or a byte as a character, and so lose nothing.
_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
_LOSSLESS = {"ByteLevel", "Prepend"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokenizer:
    """A tokenizer of V ids. It can be pickled.

    >>> smollm2 = load("smollm2")
    >>> smollm2.encode("12 <|im_end|>").tolist()
    [33, 34, 2067, 108, 306, 79, 486, 108, 46]
    >>> smollm2.decode([33, 34, 2])
    '12<|im_end|>'
    """

    name: str
    vocabulary_size: int
    special_ids: tuple[int, ...]
    """Increasing."""
    encode_text: Callable[[str], Sequence[int] | npt.NDArray[Any]] = field(repr=False)
    """Ids of a text, those not below V included."""
    bytes_of: Callable[[int], bytes] = field(repr=False)
    """The bytes of an id; empty for an id with no token."""
    leading_space: bool = False
    """Whether encoding puts a space before the text (sentencepiece does), which decoding takes off again."""
    _digest: list[str] = field(default_factory=list, repr=False)

    def encode(self, text: str) -> Ids:
        """Return the ids of *text*, uint32; pieces that no id stands for are dropped, as the model's runtime does.

        Raises:
            InputError: the text holds half of a surrogate pair.
        """
        try:
            # A copy: tiktoken's array is a read-only view, for which Numba would compile every kernel again.
            ids = np.array(self.encode_text(text), dtype=np.uint32)
        except UnicodeEncodeError as error:
            raise _no_text(error) from None
        return ids if not ids.size or int(ids.max()) < self.vocabulary_size else ids[ids < self.vocabulary_size]

    def encode_all(self, texts: Sequence[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Return the ids of each text, one after the other, (N,), and where each one's begin, with N as the last entry.

        Raises:
            InputError: a text holds half of a surrogate pair.
        """
        try:
            pieces = [np.asarray(self.encode_text(text), dtype=np.uint32) for text in texts]
        except UnicodeEncodeError as error:
            raise _no_text(error) from None
        starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        ids = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.uint32)
        if ids.size and int(ids.max()) >= self.vocabulary_size:
            known = ids < self.vocabulary_size
            starts = np.concatenate([[0], np.cumsum(known)])[starts]
            ids = ids[known]
        return ids, starts

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """Return the text of *ids*; bytes that are not UTF-8 become U+FFFD.

        Raises:
            TokenizerError: one is not an id of this tokenizer.
        """
        text = b"".join(self.token_bytes(int(i)) for i in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.leading_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of an id; those of a special token are its name.

        Raises:
            TokenizerError: not an id of this tokenizer.
        """
        if not 0 <= token_id < self.vocabulary_size:
            raise TokenizerError(
                f"tokenizer {self.name} has ids 0 to {self.vocabulary_size - 1}, found {token_id}: "
                "the ids are of another tokenizer. Name theirs with --tokenizer"
            )
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


def _no_text(error: UnicodeEncodeError) -> InputError:
    return InputError(
        f"expected text, found the lone surrogate \\u{ord(error.object[error.start]):04x} at character "
        f"{error.start + 1}: it has no UTF-8 form and no tokens. Mend the text where it was made"
    )


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
            f"tokenizer {name}: its ranks are not in tiktoken's cache and could not be downloaded "
            f"({type(error).__name__}). Where there is a network, run TIKTOKEN_CACHE_DIR=FOLDER python -c "
            f"\"import tiktoken; tiktoken.get_encoding('{name}')\", bring FOLDER here, and set TIKTOKEN_CACHE_DIR to it"
        ) from None
    return _of_encoding(encoding, name, encoding.n_vocab)


@dataclass(frozen=True, slots=True)
class _Tiktoken:
    encoding: Any

    def encode(self, text: str) -> Sequence[int] | npt.NDArray[Any]:
        try:
            return self.encoding.encode_to_numpy(text, disallowed_special=())  # type: ignore[no-any-return]
        except UnicodeEncodeError:
            raise
        except ValueError:
            cuts = [0, *(found.end() for found in _LONG_SPACE.finditer(text)), len(text)]
            pieces = [text[start:end] for start, end in pairwise(cuts)]
            return np.concatenate([self.encoding.encode_to_numpy(piece, disallowed_special=()) for piece in pieces])

    def bytes_of(self, i: int) -> bytes:
        try:
            return self.encoding.decode_single_token_bytes(i)  # type: ignore[no-any-return]
        except KeyError:
            return b""


def _of_encoding(encoding: Any, name: str, vocabulary_size: int) -> Tokenizer:
    inner = _Tiktoken(encoding)
    return Tokenizer(
        name=name,
        vocabulary_size=vocabulary_size,
        special_ids=tuple(sorted(encoding.encode_single_token(token) for token in encoding.special_tokens_set)),
        encode_text=inner.encode,
        bytes_of=inner.bytes_of,
    )


def _from_ranks(path: Path) -> Tokenizer:
    sidecar = path.with_suffix(".json")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read the ranks file: {error.strerror}") from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise TokenizerError(f"{path}:{number}: expected a token in base64, a space and its rank") from None
    try:
        about = json.loads(sidecar.read_text(encoding="utf-8"))
        name, pattern, special = str(about.get("name", path.stem)), str(about["pattern"]), dict(about["special_tokens"])
        ids = [*ranks.values(), *map(int, special.values())]
        size = int(about.get("vocabulary_size", 1 + max(ids)))
        dropped = sorted(map(int, about.get("dropped_ids", (i for i in ids if i >= size))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise TokenizerError(
            f'{sidecar}: expected beside the ranks file, with {{"pattern": the regex that splits text, '
            '"special_tokens": {token: id}, "vocabulary_size": V, "dropped_ids": [the ids from V on, which stand for '
            'bytes that the vocabulary lacks], "name": what to call it}; the last three are optional'
        ) from None
    if dropped != sorted(i for i in ids if i >= size):
        raise TokenizerError(
            f"{sidecar}: expected dropped_ids to be the ids from vocabulary_size = {size} on, which it is not: "
            "correct one of the two"
        )
    return _of_ranks(name, pattern, ranks, special, size)


def _from_gguf(path: Path) -> Tokenizer:
    read = read_vocabulary(path)
    return _of_ranks(path.stem, read.pattern, read.ranks, read.special_tokens, read.vocabulary_size)


def _of_ranks(name: str, pattern: str, ranks: dict[bytes, int], special: dict[str, int], size: int) -> Tokenizer:
    import tiktoken

    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise TokenizerError(
            f"tokenizer {printable(name)}: {len(absent)} of the 256 single bytes have no rank, the first is "
            f"0x{absent[0]:02x}: give them ids from vocabulary_size on, and they are dropped from the text"
        )
    if len({*ranks.values(), *special.values()}) < len(ranks) + len(special):
        raise TokenizerError(f"tokenizer {printable(name)}: two tokens have the same id")
    if min(ranks.values()) < 0 or not all(0 <= i < size for i in special.values()):
        raise TokenizerError(
            f"tokenizer {printable(name)}: special tokens need ids from 0 to {size - 1}, others from 0"
        )
    try:
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except (ValueError, TypeError, OverflowError) as error:
        raise TokenizerError(f"tokenizer {printable(name)}: {printable(error)}") from None
    return _of_encoding(encoding, name, size)


def _from_json(path: Path) -> Tokenizer:
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise MissingExtraError("a tokenizer.json needs tokenizers: pip install 'taggant[tokenizers]'") from None
    if not path.is_file():
        raise TokenizerError(f"{path}: no such file; a model's folder has a tokenizer.json, or name another tokenizer")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        model, normalizer = described["model"], described.get("normalizer")
        kind = model.get("type", "BPE" if "merges" in model else "unknown")
        affixes = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
        described["normalizer"] = _lossless(normalizer, path) if normalizer else None
        if kind == "BPE":
            model["dropout"] = None
        described["truncation"] = described["padding"] = None
        inner = _Json.of(json.dumps(described))
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{path}: not a tokenizer.json of the tokenizers library ({type(error).__name__}: {printable(error)})"
        ) from None
    if kind not in ("BPE", "Unigram") or affixes:
        raise TokenizerError(
            f"{path}: expected a BPE or Unigram model without affixes, found {printable(' '.join([kind, *affixes]))}: "
            "its tokens do not give the text back"
        )
    tokens = _json_tokens(inner, described)
    chosen = Tokenizer(
        name=path.absolute().parent.name if path.name == "tokenizer.json" else path.stem,
        vocabulary_size=1 + max(tokens),
        special_ids=tuple(sorted(i for i, token in inner.inner.get_added_tokens_decoder().items() if token.special)),
        encode_text=inner.encode,
        bytes_of=partial(_get, tokens),
    )
    return replace(chosen, leading_space=chosen.decode(chosen.encode("a")) == " a")


@dataclass(frozen=True, slots=True)
class _Json:
    inner: Any

    @classmethod
    def of(cls, definition: str) -> _Json:
        import tokenizers

        inner = tokenizers.Tokenizer.from_str(definition)
        inner.encode_special_tokens = True
        return cls(inner)

    def encode(self, text: str) -> Sequence[int] | npt.NDArray[Any]:
        try:
            return self.inner.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]
        except TypeError:  # "TextInputSequence must be str", said of a surrogate too, which this names:
            text.encode("utf-8")
            raise

    def __reduce__(self) -> tuple[Callable[[str], _Json], tuple[str]]:
        # The library's own pickle forgets encode_special_tokens.
        return _Json.of, (self.inner.to_str(),)


def _lossless(normalizer: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Return *normalizer* without its Unicode forms; raise if it changes the text otherwise."""
    kind = normalizer["type"]
    if kind == "Sequence":
        kept = [step for step in (_lossless(step, path) for step in normalizer["normalizers"]) if step]
        return {"type": "Sequence", "normalizers": kept} if kept else None
    if kind in _UNICODE_FORMS:
        return None
    space = {"pattern": {"String": " "}, "content": "\u2581"}
    if kind in _LOSSLESS or (kind == "Replace" and {key: normalizer.get(key) for key in space} == space):
        return normalizer
    raise TokenizerError(
        f"{path}: its normalizer {printable(kind)} changes the text, so that its ids do not give the text back: "
        "expected none, a Unicode form (left out), or spaces written as U+2581"
    )


def _json_tokens(inner: _Json, described: dict[str, Any]) -> dict[int, bytes]:
    """Return the bytes of each id of a tokenizer.json."""
    parts = json.dumps([described.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")])
    byte_level = '"ByteLevel"' in parts
    added = inner.inner.get_added_tokens_decoder()
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}

    def to_bytes(i: int, token: str) -> bytes:
        # Byte-level vocabularies hold added tokens as they are; sentencepiece's write spaces in them too.
        if i in added and (byte_level or added[i].special):
            return token.encode()
        if byte_level:
            known = all(character in byte_of for character in token)
            return bytes(byte_of[character] for character in token) if known else token.encode()
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()

    return {i: to_bytes(i, token) for token, i in inner.inner.get_vocab(with_added_tokens=True).items()}


def _get(tokens: dict[int, bytes], i: int) -> bytes:
    return tokens.get(i, b"")
