"""The journal of a collection: a header, then a JSON object an answer or error, on the disk before the next is asked.

A request that failed is asked again when the collection is gone on with: its error stays as history, and what comes of
it is a further line. A request is answered once at most, and nothing comes after its answer.

A journal is an input of every `taggant detect` command and of `taggant evidence score`. Its header says what was asked
of whom, without a secret; taken up again under another header it is refused. A line that a crash or a full disk cut
off was never acknowledged, and is cut away. No line is longer than those commands read: an answer that would make one
is kept as an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from detect.inputs import MAX_LINE
from detect.records import COLLECTION
from detect.strict_json import parse_object
from watermark.errors import InputError, TaggantError, UsageError, printable

__all__ = ["Journal", "Request"]

_FIELDS: Final = ("endpoint", "model", "kind", "sampling", "logprobs", "prompts", "samples")

#: With what a journal begins.
_BEGINNING: Final = json.dumps({"schema": COLLECTION})[:-1].encode()


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
        answers: by request, in the order of their arrival, which is that of the file; without their log-probabilities,
            which are a hundred times the text.
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

    def add(self, request: Request, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write what became of a request, and return what was written; it is on the disk when this returns.

        Raises:
            UsageError: the prompt by itself is too long for a line.
            TaggantError: the file takes no more.
            ValueError: it is answered already.
        """
        if request in self.answers:
            raise ValueError(f"{request} is answered in the journal already")
        whole = {"prompt_index": request.prompt_index, "sample_index": request.sample_index, **record}
        line = _line(whole)
        if len(line) > MAX_LINE:
            whole |= {
                "response": "",
                "error": f"an answer too long to keep: {len(line):,} bytes as a line",
                "unread": whole.get("unread", 0) + 1,
            }
            whole.pop("logprobs", None)
            line = _line(whole)
        self._write(line, f"prompt {request.prompt_index}")
        self._count(request, whole)
        return whole

    def _count(self, request: Request, record: dict[str, Any]) -> None:
        kept = {name: value for name, value in record.items() if name != "logprobs"}
        if kept.get("error") is not None:
            self.failed[request] += 1
            self.errors.append(kept)
        else:
            self.answers[request] = kept
            self.failed.pop(request, None)

    def _write(self, line: bytes, what: str) -> None:
        if len(line) > MAX_LINE:
            raise UsageError(f"{printable(self.path)}: {what} is too long for a line of {MAX_LINE:,} bytes")
        end = self._file.seek(0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise TaggantError(
                f"{printable(self.path)}: cannot be written: {error.strerror}. What it holds is whole: make room, and "
                "the same command goes on"
            ) from None

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{printable(self.path)}: another process collects into this journal") from None

    def _take_up(self, header: dict[str, Any]) -> None:
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            self._write(_line(header), "the header")
            return
        said = self._parsed(first, 1)
        wrong = [name for name in _FIELDS if said.get(name) != json.loads(json.dumps(header.get(name)))]
        if said.get("schema") != COLLECTION or wrong:
            raise self._anothers(f" (another {', '.join(wrong)})" if said.get("schema") == COLLECTION else "")
        for number, line in enumerate(lines, start=2):
            record = self._parsed(line, number)
            request = Request(record["prompt_index"], record["sample_index"])
            if request in self.answers:
                raise InputError(f"{printable(self.path)}:{number}: a request that was answered before")
            self._count(request, record)

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines, and cut away what stands after the last line feed, of a file that begins as a journal."""
        with open(self.path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if line.endswith(b"\n"):
                    yield line
                elif len(line) > MAX_LINE:
                    raise InputError(f"{printable(self.path)}:{number}: a line of more than {MAX_LINE:,} bytes")
                elif number > 1 or line[: len(_BEGINNING)] == _BEGINNING[: len(line)]:
                    self._file.truncate(file.tell() - len(line))
                else:
                    raise self._anothers("")

    def _anothers(self, how: str) -> UsageError:
        return UsageError(
            f"{printable(self.path)}: is another collection's journal{how}; it is never written over. Name another "
            "file, or give the settings it was begun with"
        )

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = parse_object(line)
            places = [record.get("prompt_index"), record.get("sample_index")]
            if number > 1 and not all(type(place) is int for place in places):
                raise InputError("expected prompt_index and sample_index")
        except InputError as error:
            raise InputError(f"{printable(self.path)}:{number}: {error}") from None
        return record


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode() + b"\n"
