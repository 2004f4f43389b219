"""Training text found in installed packages: code, prose, and text that is mostly boilerplate.

Nothing is downloaded. The same packages give the same passages in the same order; the digest says which.

* *code*: Python files of the standard library and of the packages installed;
* *prose*: the docstrings of such files (of others than those taken as code);
* *boilerplate*: the licences, notices and metadata of the packages;
* *tool-calls*: the calls in such files as give the docstrings, each as a line of JSON, ``{"tool": ..., "arguments":
  ...}``: arguments by name, what is not a constant as its source, and those without a name as a list, ``args``.

A passage is a run of whole lines of one file. Passages of one file stay on one side of every split.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from watermark.errors import UsageError

__all__ = ["KINDS", "Half", "Passage", "digest_of", "find_passages"]

KINDS = ("code", "prose", "boilerplate", "tool-calls")

#: Characters in a passage at most: some 400 to 500 ids, longer than any answer of a study.
_PASSAGE = 1600

#: Shorter passages and docstrings say too little to be continued.
_SHORTEST = 240

#: Larger files are tables and generated code.
_LARGEST_FILE = 200_000

#: Calls with longer arguments hold data.
_LONGEST_CALL = 400

_BOILERPLATE = ("licen", "copying", "notice", "metadata", "copyright", "authors")


class Half(Enum):
    """What a file's passages are for. Which one follows from its path."""

    TEACHER = "teacher"
    """Training the teacher."""
    BASE = "base"
    """Training the students' common base, which is initialised and trained apart."""
    ASKED = "asked"
    """Prompts to which the teacher answers, for students to be trained on."""
    AUDIT = "audit"
    """Prompts with which suspects are queried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Some lines of one file."""

    kind: str
    half: Half
    source: str
    """The file's path, relative to where packages are installed."""
    text: str


def find_passages(characters: Mapping[str, int], *, folders: Sequence[Path] | None = None) -> list[Passage]:
    """Return passages of each kind, the packages in turn, without repeats.

    Args:
        characters: for each kind, how many characters are wanted in all.
        folders: where packages are installed; by default this Python's standard library and site-packages.

    Raises:
        UsageError: a kind is unknown, or the packages hold less than a tenth of what is wanted of it.
    """
    if unknown := set(characters) - set(KINDS):
        raise UsageError(f"text kind {min(unknown)!r}: expected one of {', '.join(KINDS)}")
    roots = [Path(path) for path in (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"])]
    files = _files(roots if folders is None else folders)
    found: list[Passage] = []
    seen: set[bytes] = set()
    for kind in KINDS:
        wanted, had = characters.get(kind, 0), 0
        if wanted:
            for source, path in files:
                if _kind_of(source) != ("prose" if kind == "tool-calls" else kind):
                    continue
                for text in _passages(path, kind):
                    name = hashlib.sha256(" ".join(text.split()).encode()).digest()
                    if name not in seen:
                        seen.add(name)
                        found.append(Passage(kind=kind, half=_half_of(source), source=source, text=text))
                        had += len(text)
                if had >= wanted:
                    break
        if had < wanted / 10:
            raise UsageError(
                f"found {had:,} characters of {kind} in the installed packages, and the study wants {wanted:,}: "
                "install more packages (torch, transformers, scipy), or want less"
            )
    return found


def digest_of(passages: Sequence[Passage]) -> str:
    """Return the hexadecimal SHA-256 of the passages' kinds, halves and texts, in order."""
    digest = hashlib.sha256()
    for passage in passages:
        for part in (passage.kind, passage.half.value, passage.text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.hexdigest()


def _hash(source: str, label: str) -> int:
    return int.from_bytes(hashlib.sha256(f"taggant/study/{label}\0{source}".encode()).digest()[:8], "little")


def _half_of(source: str) -> Half:
    share = _hash(source, "half") % 100
    return Half.ASKED if share < 12 else Half.AUDIT if share < 22 else Half.TEACHER if share < 61 else Half.BASE


def _kind_of(source: str) -> str:
    if not source.endswith(".py"):
        return "boilerplate"
    return "code" if _hash(source, "kind") % 2 else "prose"


def _files(roots: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return (relative path, path) of each file of interest, one of each package in turn."""
    packages: dict[str, list[tuple[int, str, Path]]] = {}
    for root in roots:
        for folder, inner, names in os.walk(root):
            inner[:] = sorted(name for name in inner if name not in ("__pycache__", "site-packages", "idlelib"))
            for name in names:
                path = Path(folder, name)
                source = path.relative_to(root).as_posix()
                legal = ".dist-info/" in source or name.upper().startswith("LICEN")
                wanted = name.endswith(".py") or (legal and any(part in name.lower() for part in _BOILERPLATE))
                if wanted and path.stat().st_size <= _LARGEST_FILE:
                    package = "stdlib" if root == roots[0] else source.split("/")[0]
                    packages.setdefault(package, []).append((_hash(source, "order"), source, path))
    in_turn: list[tuple[int, str, str, Path]] = []
    for package, members in packages.items():
        for turn, (_, source, path) in enumerate(sorted(members)):
            in_turn.append((turn, package, source, path))
    return [(source, path) for _, _, source, path in sorted(in_turn)]


def _passages(path: Path, kind: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    texts = _docstrings(text) if kind == "prose" else ["".join(_tool_calls(text))] if kind == "tool-calls" else [text]
    for whole in texts:
        lines: list[str] = []
        length = 0
        for line in whole.splitlines(keepends=True):
            if length + len(line) > _PASSAGE and length >= _SHORTEST:
                yield "".join(lines)
                lines, length = [], 0
            if len(line) <= _PASSAGE:  # Longer lines are data.
                lines.append(line)
                length += len(line)
        if length >= _SHORTEST:
            yield "".join(lines)


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _docstrings(code: str) -> list[str]:
    if (tree := _parsed(code)) is None:
        return []
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, holders)]
    return [text + "\n" for text in found if text and len(text) >= _SHORTEST]


def _tool_calls(code: str) -> Iterator[str]:
    """Yield the calls with an argument by name, each as one line of JSON, in the order of the file."""
    if (tree := _parsed(code)) is None:
        return
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and any(k.arg for k in node.keywords)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        if not isinstance(call.func, ast.Name | ast.Attribute):
            continue
        named = {k.arg: _json_of(k.value) for k in call.keywords if k.arg}
        unnamed = {"args": [_json_of(value) for value in call.args]} if call.args else {}
        line = json.dumps({"tool": ast.unparse(call.func), "arguments": {**unnamed, **named}}) + "\n"
        if len(line) <= _LONGEST_CALL:
            yield line


def _json_of(node: ast.expr) -> Any:
    """Return a constant, or a list or dictionary of constants, as it is, and the source of anything else."""
    with suppress(ValueError, TypeError, MemoryError, RecursionError):
        value = ast.literal_eval(node)
        if json.loads(json.dumps(value)) == value:
            return value
    return ast.unparse(node)
