"""The ticket of the request that is being answered, where ingress and sampler are one process.

`watermark.middleware` puts a request's ticket (`watermark.ticket`) here before it calls the server's
application; an engine whose server hands no fields of a request to its sampler (llama-cpp-python) reads it.
A context variable and not a header or a field: a client can set neither of the two that way.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

__all__ = ["CURRENT_TICKET"]

#: The signed ticket, or None where no middleware has set one.
CURRENT_TICKET: Final[ContextVar[str | None]] = ContextVar("taggant_ticket", default=None)
