"""Lines of JSON that are nothing but a text and what says nothing of it, all of a portion at once.

Most records of most corpora are one flat object: a text, and strings and numbers beside it that no test reads. Each
byte of such a line is checked here as `detect.strict_json` checks it, without an object made of it. Whatever is of
another shape, or in the least doubtful, is left to that parser: here nothing is ever refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from watermark.kernels import kernel

__all__ = ["plain_texts"]

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

#: Members of an object, and digits of a number on either side of its point. No reader differs about so few.
_MOST_MEMBERS = 32
_MOST_DIGITS = 15

#: What a byte of a string is: itself, an escape, the closing quote, not allowed, or one of several of a character.
_ITSELF, _ESCAPE, _QUOTE, _WRONG, _LEADS = range(5)
_CLASS = np.full(256, _ITSELF, dtype=np.uint8)
_CLASS[:0x20] = _WRONG
_CLASS[0x80:] = _LEADS
_CLASS[ord('"')] = _QUOTE
_CLASS[ord("\\")] = _ESCAPE

#: What stands for itself after a backslash, or for a control character; 0: no such escape, or one in hexadecimal.
_SIMPLE = np.zeros(256, dtype=np.uint8)
for _letter, _byte in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    _SIMPLE[_letter] = _byte

_HEX = np.full(256, 255, dtype=np.uint8)
for _number, _pair in enumerate(zip(b"0123456789abcdef", b"0123456789ABCDEF", strict=True)):
    _HEX[list(_pair)] = _number

_IS_BLANK = np.zeros(256, dtype=np.bool_)
_IS_BLANK[list(b" \t\n\r")] = True


def plain_texts(
    data: bytes, starts: Places, ends: Places, *, answers: Sequence[str], others: Sequence[str]
) -> tuple[bytes, Places]:
    r"""Return the text of each line that is an object with one of *answers*, a string, and without any of *others*.

    >>> line = rb'{"id": 7, "text": "na\u00efve"}'
    >>> texts, places = plain_texts(line, np.array([0]), np.array([len(line)]), answers=["text"], others=["prompt"])
    >>> texts.decode(), places.tolist()
    ('naïve', [[0, 6]])

    Args:
        data: bytes in which the lines are.
        starts: where each begins, (n,).
        ends: where each ends, (n,).
        answers: names of a member that is the text; a line with two of them is not plain.
        others: names of members that make a line more than a text.

    Returns:
        The texts in UTF-8, and where in them each line's begins and ends, (n, 2): -1 where a line is not plain.
    """
    names = [name.encode("utf-8", "surrogatepass") for name in (*answers, *others)]
    name_ends = np.cumsum([0, *map(len, names)]).astype(np.int64)
    texts, places = _plain(
        np.frombuffer(data, dtype=np.uint8),
        starts,
        ends,
        np.frombuffer(b"".join(names) + b"\0", dtype=np.uint8),
        name_ends,
        len(answers),
    )
    return texts.tobytes(), places


@kernel
def _after_blanks(data: Bytes, i: int, end: int) -> int:
    while i < end and _IS_BLANK[data[i]]:
        i += 1
    return i


@kernel
def _after_character(data: Bytes, i: int, end: int) -> int:
    """Return where the character of several bytes ends that begins at *i*; -1: it is not UTF-8."""
    lead = data[i]
    low, high = 0x80, 0xBF
    if 0xC2 <= lead <= 0xDF:
        more = 1
    elif 0xE0 <= lead <= 0xEF:
        more = 2
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
    elif 0xF0 <= lead <= 0xF4:
        more = 3
        if lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
    else:
        return -1
    if i + more >= end or not low <= data[i + 1] <= high:
        return -1
    for k in range(2, more + 1):
        if not 0x80 <= data[i + k] <= 0xBF:
            return -1
    return i + more + 1


@kernel
def _hexadecimal(data: Bytes, i: int, end: int) -> int:
    r"""Return the four digits after `\u` as a number; -1: they are none."""
    if i + 4 > end:
        return -1
    value = 0
    for k in range(i, i + 4):
        digit = _HEX[data[k]]
        if digit == 255:
            return -1
        value = value * 16 + digit
    return value


@kernel
def _string(data: Bytes, i: int, end: int, out: Bytes, to: int) -> tuple[int, int]:
    """Write the string that begins after its quote; return where what follows it begins (-1: not plain) and its end."""
    while i < end:
        byte = data[i]
        kind = _CLASS[byte]
        if kind == _ITSELF:
            out[to] = byte
            to += 1
            i += 1
        elif kind == _QUOTE:
            return i + 1, to
        elif kind == _LEADS:
            after = _after_character(data, i, end)
            if after < 0:
                return -1, to
            while i < after:
                out[to] = data[i]
                to += 1
                i += 1
        elif kind == _WRONG or i + 1 >= end:
            return -1, to
        elif _SIMPLE[data[i + 1]] != 0:
            out[to] = _SIMPLE[data[i + 1]]
            to += 1
            i += 2
        else:
            if data[i + 1] != 0x75:
                return -1, to
            code = _hexadecimal(data, i + 2, end)
            i += 6
            if 0xD800 <= code <= 0xDFFF:
                # Half of a pair: the other half follows, or there is none.
                if code >= 0xDC00 or i + 6 > end or data[i] != 0x5C or data[i + 1] != 0x75:
                    return -1, to
                low = _hexadecimal(data, i + 2, end)
                if not 0xDC00 <= low <= 0xDFFF:
                    return -1, to
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                i += 6
            if code < 0:
                return -1, to
            # An escape is at least as long as what it stands for.
            if code < 0x80:
                out[to] = code
                to += 1
            elif code < 0x800:
                out[to] = 0xC0 | (code >> 6)
                out[to + 1] = 0x80 | (code & 0x3F)
                to += 2
            elif code < 0x10000:
                out[to] = 0xE0 | (code >> 12)
                out[to + 1] = 0x80 | ((code >> 6) & 0x3F)
                out[to + 2] = 0x80 | (code & 0x3F)
                to += 3
            else:
                out[to] = 0xF0 | (code >> 18)
                out[to + 1] = 0x80 | ((code >> 12) & 0x3F)
                out[to + 2] = 0x80 | ((code >> 6) & 0x3F)
                out[to + 3] = 0x80 | (code & 0x3F)
                to += 4
    return -1, to


@kernel
def _after_digits(data: Bytes, i: int, end: int) -> int:
    """Return where a few digits end; -1: there are none, or many."""
    first = i
    while i < end and 0x30 <= data[i] <= 0x39:
        i += 1
    return i if 0 < i - first <= _MOST_DIGITS else -1


@kernel
def _after_number(data: Bytes, i: int, end: int) -> int:
    """Return where a short number without an exponent ends; -1: there is none."""
    if data[i] == 0x2D:
        i += 1
    after = _after_digits(data, i, end)
    if after < 0 or (data[i] == 0x30 and after > i + 1):
        return -1
    if after < end and data[after] == 0x2E:
        return _after_digits(data, after + 1, end)
    return after


@kernel
def _after_word(data: Bytes, i: int, end: int) -> int:
    """Return where true, false or null ends; -1: there is none of them."""
    for word in (b"true", b"false", b"null"):
        if i + len(word) <= end:
            same = True
            for k in range(len(word)):
                same = same and data[i + k] == word[k]
            if same:
                return i + len(word)
    return -1


@kernel
def _equal(one: Bytes, i: int, j: int, other: Bytes, k: int, m: int) -> bool:
    """Tell whether one[i:j] is other[k:m]."""
    if j - i != m - k:
        return False
    for n in range(j - i):
        if one[i + n] != other[k + n]:
            return False
    return True


@kernel
def _line(
    data: Bytes,
    i: int,
    end: int,
    names: Bytes,
    name_ends: Places,
    answers: int,
    members: Places,
    out: Bytes,
    to: int,
    spare: Bytes,
) -> int:
    """Write the text of a line and return its end; -1: the line is not plain."""
    i = _after_blanks(data, i, end)
    if i >= end or data[i] != 0x7B:
        return -1
    found = -1
    count = 0
    while True:
        # After the brace, or a comma.
        i = _after_blanks(data, i + 1, end)
        if i >= end or data[i] != 0x22 or count == _MOST_MEMBERS:
            return -1
        first = i + 1
        i, size = _string(data, first, end, spare, 0)
        # A name with an escape in it is the shorter for it.
        if i < 0 or size != i - 1 - first:
            return -1
        last = i - 1
        for k in range(count):
            if _equal(data, first, last, data, members[k, 0], members[k, 1]):
                return -1
        members[count, 0] = first
        members[count, 1] = last
        count += 1
        is_text = False
        for k in range(len(name_ends) - 1):
            if _equal(data, first, last, names, name_ends[k], name_ends[k + 1]):
                if k >= answers or found >= 0:
                    return -1
                is_text = True
        i = _after_blanks(data, i, end)
        if i >= end or data[i] != 0x3A:
            return -1
        i = _after_blanks(data, i + 1, end)
        if i >= end:
            return -1
        if data[i] == 0x22:
            if is_text:
                i, found = _string(data, i + 1, end, out, to)
            else:
                i, _ = _string(data, i + 1, end, spare, 0)
        elif is_text:
            return -1
        elif data[i] == 0x2D or 0x30 <= data[i] <= 0x39:
            i = _after_number(data, i, end)
        else:
            i = _after_word(data, i, end)
        if i < 0:
            return -1
        i = _after_blanks(data, i, end)
        if i >= end:
            return -1
        if data[i] == 0x7D:
            break
        if data[i] != 0x2C:
            return -1
    return found if _after_blanks(data, i + 1, end) == end else -1


@kernel
def _plain(
    data: Bytes, starts: Places, ends: Places, names: Bytes, name_ends: Places, answers: int
) -> tuple[Bytes, Places]:
    places = np.full((len(starts), 2), -1, np.int64)
    members = np.empty((_MOST_MEMBERS, 2), np.int64)
    # What is written is no longer than what is read.
    out = np.empty(len(data), np.uint8)
    spare = np.empty(len(data), np.uint8)
    to = 0
    for n in range(len(starts)):
        end = _line(data, starts[n], ends[n], names, name_ends, answers, members, out, to, spare)
        if end >= 0:
            places[n, 0] = to
            places[n, 1] = end
            to = end
    return out[:to], places
