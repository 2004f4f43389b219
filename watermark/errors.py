"""Every error that Taggant raises on purpose.

::

    TaggantError                1  something went wrong inside Taggant
    ├── UsageError              2  an option, a name or a combination that cannot work
    │   ├── TokenizerError      2  an unknown tokenizer, or one that is not the scope's
    │   └── MissingExtraError   2  an optional dependency is not installed
    ├── InputError              3  malformed input, with where it is
    │   └── ReferenceMismatchError 3  a reference that does not fit the suspect's text
    ├── KeyringError            4  a key file that is missing, unreadable, unsafe or wrong
    ├── VerificationError       5  a proof, signature or ledger that is not what it claims to be
    ├── UncheckableError        6  a claim that could not be checked, so that nothing is said of it
    └── LedgerError             7  a ledger that cannot be reached, written or kept up with

The number is the exit code of the command line (docs/reference.md). A message says what, where, what
was expected, what was found, and the next step; it never holds a secret or a raw control character.
"""

from __future__ import annotations

__all__ = [
    "InputError",
    "KeyringError",
    "LedgerError",
    "MissingExtraError",
    "ReferenceMismatchError",
    "TaggantError",
    "TokenizerError",
    "UncheckableError",
    "UsageError",
    "VerificationError",
    "printable",
]


class TaggantError(Exception):
    """Say what went wrong, in one line that a person can act on."""

    exit_code = 1


class UsageError(TaggantError):
    """Report an option, a name or a combination that cannot work."""

    exit_code = 2


class TokenizerError(UsageError):
    """Report a tokenizer that is unknown, incomplete, or not the one that the scope was made for."""


class MissingExtraError(UsageError):
    """Name an optional dependency that is missing and the command that installs it."""


class InputError(TaggantError):
    """Report malformed input, with its place."""

    exit_code = 3


class ReferenceMismatchError(InputError):
    """Report a reference that does not fit the suspect's text or the scope's vocabulary."""


class KeyringError(TaggantError):
    """Report a key file that is missing, unreadable, readable by others, or not what it says."""

    exit_code = 4


class VerificationError(TaggantError):
    """Report that a proof, a signature or a ledger is not what it claims to be."""

    exit_code = 5


class UncheckableError(TaggantError):
    """Report a claim that could not be checked: a key or a tokenizer is not at hand."""

    exit_code = 6


class LedgerError(TaggantError):
    """Report a ledger that cannot be reached, cannot be written, is written by another, or is full."""

    exit_code = 7


def printable(text: object, limit: int = 120) -> str:
    r"""Return *text* fit for a message: control and bidirectional characters escaped, and cut to *limit*.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
