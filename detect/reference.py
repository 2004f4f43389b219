"""What a reference model would have said anyway, at each position of the suspect's text.

A reference is the suspect's public base, a clean twin, or the teacher without its mark; or, where no
model is at hand, the outputs of one. It is made without the key, so any reference leaves the test valid;
a good one makes it powerful.

On disk a reference is an ``.npz`` of plain arrays (no pickles) with compact types: probabilities in
units of 2^-16, token ids in 16 bits where they fit.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from watermark.errors import InputError, ReferenceMismatchError, UsageError, printable

__all__ = ["SCHEMA", "TOP", "Reference", "on_grid"]

SCHEMA: Final = "taggant/reference/1"

#: How many of the reference's likeliest tokens are kept at each position unless told otherwise.
TOP: Final = 32

_UNIT: Final = 1 << 16

#: The largest array that is read from a file, in bytes once unpacked.
_LARGEST: Final = 1 << 32

#: The kinds of type and the rank of each array of a file.
_MEMBERS: Final = {
    "schema": ("U", 0),
    "name": ("U", 0),
    "tokenizer": ("U", 0),
    "ids": ("u", 1),
    "starts": ("i", 1),
    "top_ids": ("u", 2),
    "top_p": ("u", 2),
    "said_p": ("u", 1),
    "fingerprints": ("U", 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A reference's next-token probabilities at N positions of R responses, the M likeliest tokens of each."""

    name: str
    """The model or file that it came from."""
    tokenizer: str
    """Digest of the tokenizer of the ids."""
    ids: npt.NDArray[np.uint32]
    """The responses' ids, concatenated, (N,)."""
    starts: npt.NDArray[np.int64]
    """Where each response starts, and the end, (R + 1,)."""
    top_ids: npt.NDArray[np.uint32]
    """(N, M)."""
    top_p: npt.NDArray[np.float32]
    """Their probabilities, (N, M), largest first."""
    said_p: npt.NDArray[np.float32]
    """The probability of the id that was said, (N,)."""
    fingerprints: frozenset[str] = frozenset()
    """Scope fingerprints that its source's records name: under those scopes it is no reference."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        shapes = (self.top_ids.shape, self.top_p.shape)
        if shapes[0] != shapes[1] or self.top_ids.ndim != 2 or shapes[0][0] != n or self.said_p.shape != (n,):
            raise ReferenceMismatchError(
                f"reference {self.name}: expected {n} rows of ids and probabilities, got {shapes}"
            )
        for p in (self.top_p, self.said_p):
            if p.size and not (p.min() >= 0 and p.max() <= 1):
                raise ReferenceMismatchError(f"reference {self.name}: probabilities outside 0 to 1")
        # A row may sum to a little over 1 after rounding to units of 2^-16.
        if n and self.top_p.sum(axis=1, dtype=np.float64).max(initial=0.0) > 1 + shapes[0][1] / _UNIT:
            raise ReferenceMismatchError(f"reference {self.name}: a position's probabilities sum to more than 1")

    def check(self, ids: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64]) -> None:
        """Check that the reference is of exactly these responses.

        Raises:
            ReferenceMismatchError: it is of others.
        """
        if len(starts) != len(self.starts):
            raise ReferenceMismatchError(
                f"reference {self.name}: made for {len(self.starts) - 1} responses, and there are {len(starts) - 1}: "
                "make it again for these outputs, e.g. with --reference-model and --save-reference"
            )
        if not np.array_equal(starts, self.starts) or not np.array_equal(ids, self.ids):
            sizes_agree = np.diff(starts) == np.diff(self.starts)
            at = int(np.argmin(sizes_agree)) if not sizes_agree.all() else _first_difference(ids, self.ids, starts)
            raise ReferenceMismatchError(
                f"reference {self.name}: made for other text: response {at + 1} has other token ids. "
                "Make it again for these outputs, e.g. with --reference-model and --save-reference"
            )

    def check_length(self, positions: int) -> None:
        """Check that the reference has so many positions.

        Raises:
            ReferenceMismatchError: it has more or fewer.
        """
        if len(self.ids) != positions:
            raise ReferenceMismatchError(
                f"reference {self.name}: has {len(self.ids)} positions, and the tally is of other text: make the tally "
                "with this reference"
            )

    def check_unmarked(self, fingerprints: Iterable[str]) -> None:
        """Check that its source was marked under none of these scopes.

        Raises:
            ReferenceMismatchError: its records name one of them.
        """
        if self.fingerprints & frozenset(fingerprints):
            raise ReferenceMismatchError(
                f"reference {printable(self.name)}: its records say that they were marked under the parameters tested. "
                "A reference must know nothing of the key: take outputs of a model that never saw the mark"
            )

    def check_vocabulary(self, size: int) -> None:
        """Check that all ids are below *size*.

        Raises:
            ReferenceMismatchError: one is not.
        """
        largest = max(int(self.ids.max(initial=0)), int(self.top_ids.max(initial=0)))
        if largest >= size:
            raise ReferenceMismatchError(
                f"reference {printable(self.name)}: expected ids under {size}, the scope's vocabulary, got {largest}: "
                "make it again with the scope's tokenizer"
            )

    @property
    def remainder(self) -> npt.NDArray[np.float32]:
        """The probability of the tokens neither listed nor said at each position, (N,).

        It gives no pair a weight, and `Tally.information` lacks its sum of squares, which is at most its square: so
        the information is too large by no more than that. Power only, and the effect size low by the same share.
        """
        listed = (self.top_ids == self.ids[:, None]).any(axis=1)
        left = 1 - self.top_p.sum(axis=1, dtype=np.float64) - np.where(listed, 0.0, self.said_p)
        return np.asarray(np.maximum(left, 0.0), dtype=np.float32)

    def first(self, responses: int) -> Reference:
        """Return the reference of the first so many responses."""
        n = int(self.starts[responses])
        return replace(
            self,
            ids=self.ids[:n],
            starts=self.starts[: responses + 1],
            top_ids=self.top_ids[:n],
            top_p=self.top_p[:n],
            said_p=self.said_p[:n],
        )

    def negative_log_likelihood(self) -> float:
        """Return the mean of -ln p over the ids said, in nats (a probability stored as 0 counts as 2^-17)."""
        return float(-np.log(np.maximum(self.said_p.astype(np.float64), 0.5 / _UNIT)).mean()) if len(self.ids) else 0.0

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UsageError: it cannot be written there.
        """
        narrow = (
            np.uint16 if max(int(self.top_ids.max(initial=0)), int(self.ids.max(initial=0))) < 1 << 16 else np.uint32
        )
        arrays: dict[str, Any] = {
            "schema": np.array(SCHEMA),
            "name": np.array(self.name),
            "tokenizer": np.array(self.tokenizer),
            "ids": self.ids.astype(narrow),
            "starts": self.starts,
            "top_ids": self.top_ids.astype(narrow),
            "top_p": _packed(self.top_p),
            "said_p": _packed(self.said_p),
            "fingerprints": np.array(sorted(self.fingerprints), dtype=np.str_),
        }
        partial = path.with_name(path.name + ".partial")
        try:
            try:
                with open(partial, "wb") as file:
                    np.savez_compressed(file, **arrays)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"{printable(path)}: the reference cannot be written there ({error.strerror}). Name a file in a folder "
                "that you can write to"
            ) from None

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read a reference file.

        Raises:
            InputError: missing, or not a reference file of this version.
        """
        try:
            # Opened here: NumPy leaves a file open that turns out not to be whole.
            with open(path, "rb") as raw:
                return cls.read(raw, name=str(path))
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such reference file; --reference-model with --save-reference makes one"
            ) from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None

    @classmethod
    def read(cls, stream: BinaryIO, *, name: str) -> Reference:
        """Read a reference from a stream that can seek; *name* is for messages.

        Raises:
            InputError: not a reference file of this version.
        """
        try:
            with np.load(stream, allow_pickle=False) as file:
                _check_members(file)
                if str(file["schema"]) != SCHEMA:
                    raise ValueError("schema")
                return cls(
                    name=str(file["name"]),
                    tokenizer=str(file["tokenizer"]),
                    ids=file["ids"].astype(np.uint32),
                    starts=file["starts"].astype(np.int64),
                    top_ids=file["top_ids"].astype(np.uint32),
                    top_p=_unpacked(file["top_p"]),
                    said_p=_unpacked(file["said_p"]),
                    fingerprints=frozenset(map(str, file["fingerprints"])) if "fingerprints" in file else frozenset(),
                )
        except (
            ValueError,
            KeyError,
            OSError,
            EOFError,
            TypeError,
            zipfile.BadZipFile,
            zlib.error,
            MemoryError,
        ) as error:
            raise InputError(
                f"{name}: not a reference file of this version ({SCHEMA}): {type(error).__name__}"
            ) from None


def _check_members(file: Any) -> None:
    """Refuse arrays of the wrong type or rank, or whose header claims another size than they have, before any is read.

    Raises:
        ValueError: there is one.
    """
    for entry in file.zip.infolist():
        name = entry.filename.removesuffix(".npy")
        if name not in _MEMBERS or entry.file_size > _LARGEST:
            raise ValueError(name)
        with file.zip.open(entry) as raw:
            version = np.lib.format.read_magic(raw)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
            if read_header is None:
                raise ValueError(name)
            shape, _, dtype = read_header(raw)
            kinds, rank = _MEMBERS[name]
            held = entry.file_size - raw.tell()
            if dtype.kind not in kinds or len(shape) != rank or math.prod(shape) * dtype.itemsize != held:
                raise ValueError(name)


def _first_difference(a: npt.NDArray[Any], b: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> int:
    return int(np.searchsorted(starts, np.argmax(a != b), side="right")) - 1


def _packed(p: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return np.minimum(np.rint(p.astype(np.float64) * _UNIT), _UNIT - 1).astype(np.uint16)


def on_grid(p: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return probabilities rounded as a file stores them, so that a reference just made and one loaded agree."""
    return _unpacked(_packed(p))


def _unpacked(p: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (p.astype(np.float32) / np.float32(_UNIT)).astype(np.float32)
