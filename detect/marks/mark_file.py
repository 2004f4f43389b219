"""`--mark SCHEME:FILE`: an operator's own configuration of a mark, as the server takes it.

======================  ==============================================================================================
``vllm:FILE``           the JSON of ``--watermark-config``: {"algorithm": "gumbel", "key": 1234567890123456789}
``transformers:FILE``   ``WatermarkingConfig.to_dict()`` and the vocabulary: {"hashing_key": 981273, ...,
                        "taggant": {"vocabulary": 49152}}
``synthid:FILE``        ``SynthIDTextWatermarkingConfig.to_dict()``: {"ngram_len": 5, "keys": [51234, ...]}
``textseal:FILE``       its ``WatermarkConfig``: {"secret_key": 8412344123, "ngram": 2, "watermark_type": "gumbelmax"}
======================  ==============================================================================================

What those lack stands under "taggant" in the same object: {"tokenizer": digest or a name that `watermark.tokenizer`
loads, "special_ids": [0, 1], "vocabulary": 49152}. The file holds the key: one that its group or others can read is
refused with the command that mends it, and no message shows anything of its content.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any, NoReturn

from detect.mark import Mark
from detect.marks.synthid import SynthIDMark, keys_secret
from detect.marks.textseal import TextSealGumbelMark
from detect.marks.transformers_kgw import DEFAULT_KEY, TransformersGreenListMark
from detect.marks.vllm_gumbel import DEFAULT_WIDTH, VllmGumbelMark
from detect.strict_json import parse_object
from watermark.errors import InputError, KeyringError, UsageError, printable
from watermark.keys import Secret

__all__ = ["SCHEMES", "load_mark"]

_EXAMPLE = MappingProxyType(
    {
        "vllm": '{"algorithm": "gumbel", "key": 1234567890123456789}',
        "transformers": '{"hashing_key": 981273, "greenlist_ratio": 0.25, "taggant": {"vocabulary": 49152}}',
        "synthid": '{"ngram_len": 5, "keys": [51234, 9712, 60001]}',
        "textseal": '{"watermark_type": "gumbelmax", "secret_key": 8412344123, "ngram": 2}',
    }
)

_MOST_BYTES = 1 << 20


class _Fields:
    """One JSON object, read field by field: what is not asked for is refused in the end."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._left = dict(values)
        self._where = where

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise the error that says what was expected of a field, and never what it held."""
        raise KeyringError(f"{self._where}: field {name}: expected {expected}")

    def take(self, name: str, expected: str, check: Callable[[Any], bool], default: Any = ...) -> Any:
        """Return a field's value."""
        value = self._left.pop(name, default)
        if value is ...:
            self.refuse(name, f"{expected}, found none")
        if value is not default and not check(value):
            self.refuse(name, expected)
        return value

    def integer(self, name: str, low: int, high: int, default: Any = ...) -> int:
        """Return an integer within bounds."""
        return int(
            self.take(
                name, f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high, default
            )
        )

    def number(self, name: str, low: float, high: float, default: Any = ...) -> float:
        """Return a number within bounds."""
        return float(
            self.take(
                name,
                f"a number from {low:g} to {high:g}",
                lambda v: type(v) in (int, float) and low <= v <= high,
                default,
            )
        )

    def one_of(self, name: str, choices: tuple[str, ...], default: Any = ...) -> str:
        """Return one of several words."""
        return str(self.take(name, " or ".join(map(repr, choices)), lambda v: v in choices, default))

    def ignore(self, *names: str) -> None:
        """Pass over fields that say nothing to a detector."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse fields that nobody asked for."""
        if self._left:
            raise KeyringError(f"{self._where}: field {printable(min(self._left), 40)!r} is unknown to this scheme")


def load_mark(spec: str) -> Mark:
    """Return the mark that ``SCHEME:FILE`` names.

    Raises:
        UsageError: no such scheme; parameters that cannot work.
        KeyringError: the file is missing, readable by others, or not such a configuration.
    """
    scheme, colon, file = spec.partition(":")
    if not colon or scheme not in SCHEMES or not file:
        names = ", ".join(SCHEMES)
        raise UsageError(
            f"mark {printable(spec)!r}: expected SCHEME:FILE with one of {names}, e.g. vllm:watermark.json"
        )
    path = Path(file)
    content = _read(path)
    where = printable(path)
    example = _EXAMPLE[scheme]
    problem = None
    try:
        values = parse_object(content)
    except InputError:
        # Raised anew outside: the decoder's error holds the content, and would stay in the chain.
        problem = f"{where}: expected one JSON object in UTF-8, e.g. {example}"
    if problem is not None:
        raise KeyringError(problem)
    try:
        fields = _Fields(values, where)
        own = fields.take("taggant", "an object", lambda v: isinstance(v, dict), {})
        extras = _Fields(own, f"{where}: taggant")
        mark = SCHEMES[scheme](fields, extras)
        fields.finish()
        extras.finish()
    except KeyringError as error:
        raise KeyringError(f"{error}; a whole one: {example}") from None
    return mark


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise KeyringError(
            f"{printable(path)}: no such file; it is the JSON that the server's mark is set with"
        ) from None
    except OSError as error:
        raise KeyringError(f"{printable(path)}: cannot read the file: {error.strerror}") from None
    # Windows has no such bits.
    if sys.platform != "win32" and mode & 0o077:
        raise KeyringError(
            f"{printable(path)}: others can read this file, and it holds a key (mode {mode:04o}). "
            f"Mend it: chmod 600 {quote(str(path))}"
        )
    if len(content) > _MOST_BYTES:
        raise KeyringError(f"{printable(path)}: expected a configuration of at most {_MOST_BYTES} bytes")
    return content


def _common(extras: _Fields) -> dict[str, Any]:
    special = extras.take(
        "special_ids",
        "a list of ids of 32 bits",
        lambda v: isinstance(v, list) and all(type(i) is int and 0 <= i < 2**32 - 1 for i in v),
        [],
    )
    named = extras.take("tokenizer", "a digest of 64 hexadecimal digits, or a name", lambda v: isinstance(v, str), None)
    if named is not None and not re.fullmatch(r"[0-9a-f]{64}", named):
        from watermark.tokenizer import load

        named = load(named).digest()
    return {"special_ids": tuple(sorted(set(special))), "tokenizer": named}


def _secret(number: int) -> Secret:
    return Secret(number.to_bytes(8, "big"))


def _vllm(fields: _Fields, extras: _Fields) -> Mark:
    algorithm = fields.one_of("algorithm", ("gumbel", "dual_key_gumbel"), "gumbel")
    fields.one_of("prf", ("philox",), "philox")
    alpha = fields.number("alpha", 0.0, 1.0, 0.1)
    fields.ignore("deduplicate_contexts", "deduplicate_contexts_max_history", "allow_target_only_watermarking")
    return VllmGumbelMark(
        _secret(fields.integer("key", 0, 2**64 - 1)),
        width=fields.integer("context_width", 1, 64, DEFAULT_WIDTH),
        alpha=alpha if algorithm == "dual_key_gumbel" else None,
        **_common(extras),
    )


def _transformers(fields: _Fields, extras: _Fields) -> Mark:
    fields.ignore("watermarking_type")
    return TransformersGreenListMark(
        _secret(fields.integer("hashing_key", 0, 2**63 - 1, DEFAULT_KEY)),
        vocabulary=extras.integer("vocabulary", 2, 2**26 - 1),
        ratio=fields.number("greenlist_ratio", 0.0, 1.0, 0.25),
        bias=fields.number("bias", -100.0, 100.0, 2.0),
        scheme=fields.one_of("seeding_scheme", ("lefthash", "selfhash"), "lefthash"),
        context_width=fields.integer("context_width", 1, 64, 1),
        **_common(extras),
    )


def _synthid(fields: _Fields, extras: _Fields) -> Mark:
    keys = fields.take(
        "keys",
        "a list of 1 to 256 whole numbers of 64 bits",
        lambda v: (
            isinstance(v, list) and 1 <= len(v) <= 256 and all(type(k) is int and -(2**63) <= k < 2**63 for k in v)
        ),
    )
    fields.ignore("watermarking_type", "context_history_size", "skip_first_ngram_calls", "debug_mode")
    return SynthIDMark(
        keys_secret(keys),
        ngram_len=fields.integer("ngram_len", 2, 65),
        table_seed=fields.integer("sampling_table_seed", 0, 2**63 - 1, 0),
        table_size=fields.integer("sampling_table_size", 2, 2**24, 2**16),
        **_common(extras),
    )


def _textseal(fields: _Fields, extras: _Fields) -> Mark:
    fields.one_of("watermark_type", ("gumbelmax",), "gumbelmax")
    fields.one_of("method", ("uniform",), "uniform")
    fields.ignore(
        *("gamma", "delta", "alpha", "depth", "after_topp", "k_morphmark", "p_0", "chunk_size", "num_drafts"),
        *("base_watermark", "attenuation", "attenuation_weight", "backprop_on_nonzero", "scoring_method"),
    )
    return TextSealGumbelMark(
        _secret(fields.integer("secret_key", 0, 2**63 - 1)), ngram=fields.integer("ngram", 1, 10, 1), **_common(extras)
    )


SCHEMES: Mapping[str, Callable[[_Fields, _Fields], Mark]] = MappingProxyType(
    {"vllm": _vllm, "transformers": _transformers, "synthid": _synthid, "textseal": _textseal}
)
