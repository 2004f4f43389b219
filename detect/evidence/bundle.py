"""A bundle: the files of a study, in a folder or an uncompressed tar, read by an allow-list of names.

Nothing is extracted or written in reading: names outside the list, links, devices, entries that stand twice and files
beyond their size are refused before a byte of them is read. MANIFEST.json has the digest and size of every file but
itself and the last signed envelope, claim.dsse.json, whose subject it is.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from detect.evidence.canonical import canonical, parse_canonical, sha256_hex
from watermark.errors import InputError, UsageError, printable

__all__ = ["CLAIM", "MANIFEST", "OUTPUTS", "Bundle", "manifest_bytes", "write_bundle"]

MANIFEST: Final = "MANIFEST.json"
CLAIM: Final = "claim.dsse.json"
OUTPUTS: Final = "outputs.jsonl"

_REQUIRED: Final = frozenset(
    {
        MANIFEST,
        CLAIM,
        OUTPUTS,
        "plan.dsse.json",
        "scores.dsse.json",
        "opening.dsse.json",
        "prompts.jsonl",
        "log.jsonl",
        "checkpoint",
        "commitment.tlog-proof",
    }
)
_OPTIONAL: Final = re.compile(
    r"activation\.tlog-proof|tokenizer\.(tiktoken|json)|reference\.npz|controls/[a-z0-9-]{1,32}\.(jsonl|npz)"
    r"|timestamps/[1-9][0-9]{0,8}\.(checkpoint|tsr)|trust/(publisher\.pub|tsa\.pem)"
)
_FOLDERS: Final = ("controls", "timestamps", "trust")
_LARGE: Final = re.compile(r"outputs\.jsonl|prompts\.jsonl|reference\.npz|controls/.*")
_MAX_LARGE: Final = 1 << 32
_MAX_SMALL: Final = 64 << 20
_MAX_ENTRIES: Final = 256


class Bundle:
    """A bundle's files. Made by `open`.

    Attributes:
        sizes: of each file, by name.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], offsets: Mapping[str, int] | None) -> None:
        self.path = path
        self.sizes = dict(sizes)
        self._offsets = offsets

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, {len(self.sizes)} files)"

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read a bundle's names and sizes.

        Raises:
            InputError: it is no bundle; the message names the entry.
        """
        try:
            if path.is_dir():
                sizes, offsets = _in_folder(path), None
            else:
                sizes, offsets = _in_tar(path)
        except OSError as error:
            raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from None
        for name, size in sizes.items():
            if name not in _REQUIRED and not _OPTIONAL.fullmatch(name):
                raise InputError(f"{printable(path)}: {printable(name)!r} is no file of a bundle")
            if size > (_MAX_LARGE if _LARGE.fullmatch(name) else _MAX_SMALL):
                raise InputError(f"{printable(path)}: {name}: {size:,} bytes are more than a bundle's may have")
        missing = sorted(_REQUIRED - set(sizes))
        if missing:
            raise InputError(f"{printable(path)}: {missing[0]} is missing")
        return cls(path, sizes, offsets)

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            InputError: it is not there, or has changed.
        """
        if name not in self.sizes:
            raise InputError(f"{printable(self.path)}: {printable(name)} is missing")
        size = self.sizes[name]
        try:
            if self._offsets is None:
                descriptor = os.open(self.path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                with os.fdopen(descriptor, "rb") as file:
                    data = file.read(size + 1)
            else:
                with open(self.path, "rb") as file:
                    file.seek(self._offsets[name])
                    data = file.read(size)
        except OSError as error:
            raise InputError(f"{printable(self.path)}: {name}: cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise InputError(
                f"{printable(self.path)}: {name}: expected {size:,} bytes; it was cut, or changed meanwhile"
            )
        return data

    def stream(self, name: str) -> io.BytesIO:
        """Return a file as a stream."""
        return io.BytesIO(self.read(name))

    def controls(self) -> list[str]:
        """Return the names of the controls."""
        return sorted(name[9:-6] for name in self.sizes if name.startswith("controls/") and name.endswith(".jsonl"))

    def timestamps(self) -> list[int]:
        """Return the sizes of the log at which a token was taken."""
        return sorted(int(name[11:-4]) for name in self.sizes if name.startswith("timestamps/") and name[-4:] == ".tsr")

    def check_manifest(self) -> None:
        """Check each file's size and digest against MANIFEST.json.

        Raises:
            InputError: a file differs, or stands in one and not in the other.
        """
        said = parse_canonical(self.read(MANIFEST), what=MANIFEST)
        found = manifest_of({name: self.read(name) for name in self.sizes if name not in (MANIFEST, CLAIM)})
        if said == found:
            return
        entries = said.get("files")
        there = (
            {str(entry.get("name")): entry for entry in entries if isinstance(entry, dict)}
            if isinstance(entries, list)
            else {}
        )
        here = {entry["name"]: entry for entry in found["files"]}
        wrong = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
        raise InputError(f"{MANIFEST}: {printable(wrong[0]) if wrong else 'its form'} is not what it says")


def manifest_of(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest of files."""
    return {
        "schema": "taggant/manifest/1",
        "files": [
            {"name": name, "sha256": sha256_hex(data), "size": len(data)} for name, data in sorted(files.items())
        ],
    }


def manifest_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return MANIFEST.json for the files of a bundle."""
    return canonical(manifest_of({name: data for name, data in files.items() if name not in (MANIFEST, CLAIM)}))


def write_bundle(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle, whole or not at all: a tar if *path* ends in .tar, else a folder.

    Raises:
        UsageError: *path* exists, or cannot be written.
    """
    if path.exists():
        raise UsageError(f"{printable(path)}: exists; a bundle is never overwritten. Choose another name")
    partial = path.with_name(path.name + ".partial")
    try:
        if path.suffix == ".tar":
            with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                for name, data in sorted(files.items()):
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode = len(data), 0o644
                    tar.addfile(entry, io.BytesIO(data))
        else:
            shutil.rmtree(partial, ignore_errors=True)
            for name, data in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"{printable(path)}: the bundle cannot be written there: {error.strerror}") from None


def _in_folder(path: Path) -> dict[str, int]:
    sizes = {}
    for folder in ("", *_FOLDERS):
        place = path / folder
        if folder and not os.path.lexists(place):
            continue
        if folder and not stat.S_ISDIR(place.lstat().st_mode):
            raise InputError(f"{printable(path)}: {folder}: expected a folder")
        with os.scandir(place) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if not folder and entry.name in _FOLDERS:
                    continue
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise InputError(f"{printable(path)}: {printable(name)}: expected a regular file")
                sizes[name] = status.st_size
                if len(sizes) > _MAX_ENTRIES:
                    raise InputError(f"{printable(path)}: more than {_MAX_ENTRIES} files")
    return sizes


def _in_tar(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    sizes, offsets = {}, {}
    try:
        with tarfile.open(path, "r:") as tar:
            while (entry := tar.next()) is not None:
                name = entry.name
                if entry.isdir() and name in _FOLDERS:
                    continue
                if not entry.isreg() or entry.issparse():
                    raise InputError(f"{printable(path)}: {printable(name)}: expected a regular file")
                if name in sizes:
                    raise InputError(f"{printable(path)}: {printable(name)} stands twice")
                sizes[name], offsets[name] = entry.size, entry.offset_data
                if len(sizes) > _MAX_ENTRIES:
                    raise InputError(f"{printable(path)}: more than {_MAX_ENTRIES} files")
    except (tarfile.TarError, EOFError, ValueError, OverflowError):
        raise InputError(f"{printable(path)}: expected a bundle: a folder, or an uncompressed tar") from None
    return sizes, offsets
