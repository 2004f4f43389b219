"""Objects of an S3-compatible store as inputs: `s3://BUCKET/KEY`, a prefix, or a pattern (extra `corpora`).

Arrow's client reads them. Who reads is told by the environment alone, as by every client of such stores:
`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (`AWS_SESSION_TOKEN`), a profile, or the machine's role;
`AWS_REGION`; `AWS_ENDPOINT_URL` for a store that is not Amazon's; `AWS_NO_SIGN_REQUEST=1` for what everybody may read.
An address with credentials in it is refused and not repeated, and of what a store answers only the error's name is.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import has_magic
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from detect.arrow_rows import need_pyarrow
from watermark.errors import InputError, UsageError, printable

if TYPE_CHECKING:
    import pyarrow.fs as pafs

__all__ = ["SCHEME", "find_objects", "is_object", "open_object"]

SCHEME = "s3://"

#: Bytes asked for at a time: each request is waited for.
_BUFFER = 2**23

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Names between slashes; no NUL, and no bytes of a command line that are no UTF-8.
_KEY = re.compile(r"|[^/\0\ud800-\udfff]+(/[^/\0\ud800-\udfff]+)*")
_ERROR = re.compile(r"AWS Error ([A-Z_]+)")
_HINTS = {
    "ACCESS_DENIED": ": are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role set, and may it be read?",
    "NETWORK_CONNECTION": ": is AWS_ENDPOINT_URL right, and the store reachable?",
    "NO_SUCH_BUCKET": ": check the bucket's name and AWS_ENDPOINT_URL",
}


def is_object(given: str) -> bool:
    """Tell whether an input is an address of objects."""
    return given.startswith(SCHEME)


def find_objects(given: str) -> tuple[list[tuple[str, int]], bool]:
    """Return address and size of each object, sorted, and whether *given* is a prefix that others are under.

    An address that exists is no pattern. In a pattern `*` and `?` stop at `/`, and `**` is any number of names.

    Raises:
        InputError: there is none, or the store does not answer.
        UsageError: the address is none, or has credentials in it.
        MissingExtraError: pyarrow is not installed.
    """
    import pyarrow.fs as pafs

    bucket, key = _parts(given)
    with _told(given):
        store = _store(bucket)
        info = store.get_file_info(f"{bucket}/{key}" if key else bucket)
        if info.type == pafs.FileType.File:
            return [(given, int(info.size))], False
        if info.type == pafs.FileType.Directory:
            return list(_under(store, bucket, key)), True
        if has_magic(key):
            names = key.split("/")
            literal = next(i for i, name in enumerate(names) if has_magic(name))
            found = [
                (url, size)
                for url, size in _under(store, bucket, "/".join(names[:literal]))
                if _matches(url.removeprefix(f"{SCHEME}{bucket}/").split("/"), names)
            ]
            if not found:
                raise InputError(f"no object matches {printable(given, 4096)}: check the pattern and the bucket")
            return found, False
    raise InputError(f"{printable(given, 4096)}: no such object or prefix: check the name")


def open_object(url: str) -> BinaryIO:
    """Open an object to be read and sought in.

    Raises:
        OSError: it is not there, or the store does not answer; nothing else that it says is in the message.
    """
    bucket, key = _parts(url)
    try:
        stream = _store(bucket).open_input_file(f"{bucket}/{key}")
    except OSError as error:
        raise _meant(error) from None
    return cast("BinaryIO", io.BufferedReader(_Object(stream), _BUFFER))


class _Object(io.RawIOBase):
    """An object as Python reads files."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._stream.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise _meant(error) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _parts(url: str) -> tuple[str, str]:
    """Return bucket and key."""
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if "@" in bucket or re.search(r"\?[^/]*=", url):
        raise UsageError(
            "an address s3://BUCKET/KEY has no credentials or options in it: they come from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{printable(url, 4096)}: expected s3://BUCKET/KEY, with the bucket's name written out")
    key = key.removesuffix("/")
    if not _KEY.fullmatch(key):
        raise UsageError(f"{printable(url, 4096)}: a key with an empty name between two / or no text in it is not read")
    return bucket, key


@lru_cache(maxsize=64)
def _store(bucket: str) -> pafs.S3FileSystem:
    """Return the client for a bucket, as the environment has it."""
    need_pyarrow()
    import pyarrow.fs as pafs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        anonymous=os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "yes", "true"),
        connect_timeout=10,
        request_timeout=60,
    )


def _under(store: pafs.S3FileSystem, bucket: str, key: str) -> Iterator[tuple[str, int]]:
    """Yield address and size of each object under a prefix, sorted."""
    import pyarrow.fs as pafs

    base = f"{bucket}/{key}" if key else bucket
    infos = store.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    for info in sorted(infos, key=lambda info: str(info.path)):
        if info.type == pafs.FileType.File:
            yield SCHEME + info.path, int(info.size)


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a key matches a pattern, name by name; a name that begins with a dot is matched by a dot alone."""
    if not pattern:
        return not names
    if pattern[0] == "**" and len(pattern) > 1:
        return _matches(names, pattern[1:]) or (
            bool(names) and not names[0].startswith(".") and _matches(names[1:], pattern)
        )
    if not names or (names[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


@contextmanager
def _told(given: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {printable(given, 4096)}: {_meant(error).strerror}") from None


def _meant(error: OSError) -> OSError:
    """Return the error without what the store said, which may repeat what was sent to it."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object")
    name = _ERROR.search(str(error))
    if name is None:
        return OSError(errno.EIO, "the store gave an error without a name")
    return OSError(errno.EIO, f"the store says {name[1]}{_HINTS.get(name[1], '')}")
