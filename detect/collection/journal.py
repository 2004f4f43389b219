"""The journal of a collection: a header, then a JSON object an answer or error, on the disk before the next is asked.

A request that failed is asked again when the collection is gone on with: its error stays as history, and what comes of
it is a further line. A request is answered once at most, and nothing comes after its answer.

A journal is an input of every `taggant detect` command and of `taggant evidence score`. Its header says what was asked
of whom, without a secret; taken up again under another header it is refused. A line that a crash cut off was
never acknowledged, and is cut away.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from detect.records import COLLECTION
from detect.strict_json import parse_object
from watermark.errors import InputError, UsageError, printable

__all__ = ["Journal", "Request"]

_FIELDS: Final = ("endpoint", "model", "kind", "sampling", "logprobs", "prompts", "samples")


@dataclass(frozen=True, slots=True, order=True)
class Request:
    """One planned request: the prompt's place, and which of its samples."""

    prompt_index: int
    sample_index: int


class Journal:
    """An open journal, which no other process writes to.

    Args:
        path: of the file; made if it is not there.
        header: what this collection is, without its schema.

    Attributes:
        answers: by request, in the order of their arrival, which is that of the file.
        failed: the requests that have no answer yet, each with how often it failed.
        errors: in all, in the order of the file.

    Raises:
        UsageError: the file is another collection's, or another process writes to it.
        InputError: a line of it is malformed.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.answers: dict[Request, dict[str, Any]] = {}
        self.failed: Counter[Request] = Counter()
        self.errors: list[dict[str, Any]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)
        except OSError as error:
            raise UsageError(f"{printable(path)}: cannot be written: {error.strerror}") from None
        try:
            self._lock()
            self._take_up({"schema": COLLECTION, **header})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def add(self, request: Request, record: Mapping[str, Any]) -> None:
        """Write what became of a request; it is on the disk when this returns.

        Raises:
            ValueError: it is answered already.
        """
        if request in self.answers:
            raise ValueError(f"{request} is answered in the journal already")
        whole = {"prompt_index": request.prompt_index, "sample_index": request.sample_index, **record}
        self._write(whole)
        self._count(request, whole)

    def _count(self, request: Request, record: dict[str, Any]) -> None:
        if record.get("error") is not None:
            self.failed[request] += 1
            self.errors.append(record)
        else:
            self.answers[request] = record
            self.failed.pop(request, None)

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=True).encode() + b"\n")
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{printable(self.path)}: another process collects into this journal") from None

    def _take_up(self, header: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        if not whole:
            self._write(header)
            return
        lines = whole.split(b"\n")[:-1]
        said = self._parsed(lines[0], 1)
        wrong = [name for name in _FIELDS if said.get(name) != json.loads(json.dumps(header.get(name)))]
        if said.get("schema") != COLLECTION or wrong:
            raise UsageError(
                f"{printable(self.path)}: is another collection's journal"
                + (f" (another {', '.join(wrong)})" if said.get("schema") == COLLECTION else "")
                + "; it is never written over. Name another file, or give the settings it was begun with"
            )
        for number, line in enumerate(lines[1:], start=2):
            record = self._parsed(line, number)
            request = Request(record["prompt_index"], record["sample_index"])
            if request in self.answers:
                raise InputError(f"{printable(self.path)}:{number}: a request that was answered before")
            self._count(request, record)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = parse_object(line)
            places = [record.get("prompt_index"), record.get("sample_index")]
            if number > 1 and not all(type(place) is int for place in places):
                raise InputError("expected prompt_index and sample_index")
        except InputError as error:
            raise InputError(f"{printable(self.path)}:{number}: {error}") from None
        return record
