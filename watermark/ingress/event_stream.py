"""Server-sent events as bytes, however the server's writes cut them (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["EventSplitter", "data_of", "with_data"]

# Atomic groups: the carriage return of one CR LF is not to be taken for a line end by itself.
_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE: Final = re.compile(rb"((?>\r\n|\n|\r))")


class EventSplitter:
    """Cut a byte stream after each event's blank line. Joined, what it returns is what it was fed."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._looked = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that *data* completes, their blank line included."""
        pending = self._pending
        if not pending and data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
            return [data]  # One event, as nearly every server writes them.
        pending += data
        events = []
        start = 0
        # A line end cut in two was seen as the half of it: three bytes back.
        search = max(0, self._looked - 3)
        while found := _END.search(pending, search):
            if found.group() == b"\r\n\r" and found.end() == len(pending):
                break  # Its line feed is on the way.
            events.append(bytes(pending[start : found.end()]))
            start = search = found.end()
        if start:
            del pending[:start]
        self._looked = len(pending)
        return events

    def rest(self) -> bytes:
        """Return what no blank line has ended, and forget it."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._looked = 0
        return rest


def data_of(event: bytes) -> bytes | None:
    r"""Return the data of an event; None if it has none (a comment).

    >>> data_of(b"event: delta\r\ndata: {\r\ndata:}\r\n\r\n")
    b'{\n}'
    """
    if _is_plain(event):
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in _LINE.split(event) if _is_data(line)]
    return b"\n".join(lines) if lines else None


def with_data(event: bytes, data: bytes) -> bytes:
    r"""Return the event with other data, one line of it; its other lines stay.

    >>> with_data(b"event: delta\ndata: 1\n\n", b"2")
    b'event: delta\ndata: 2\n\n'
    """
    if _is_plain(event):
        return b"data: %b\n\n" % data
    pieces = _LINE.split(event)  # Lines and their ends by turns, since the pattern is a group.
    parts: list[bytes] = []
    written = False
    for line, end in zip(pieces[::2], [*pieces[1::2], b""], strict=True):
        if not _is_data(line):
            parts += (line, end)
        elif not written:
            parts += (b"data: ", data, end)
            written = True
    return b"".join(parts)


def _is_plain(event: bytes) -> bool:
    """Say whether an event is one line of data, as nearly every server writes them."""
    return event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2 and b"\r" not in event


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data:") or line == b"data"
