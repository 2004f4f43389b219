"""Counters of the ingress, beside those of the engine; as Prometheus text.

::

    taggant_ingress_requests_total{scope, outcome}     requests by how they were admitted: marked, or the reason
    taggant_ingress_refused_total{status}              requests that were refused here
    taggant_ingress_stripped_total{field}              fields that were taken out of requests
    taggant_ingress_unrecorded_total                   answers that went out and that the ledger could not take
    taggant_ingress_self_tests_total{outcome}          start-up self-tests
    taggant_ingress_reload_errors_total                changes of the key file that could not be taken up
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from watermark.counts import Counts, Family

__all__ = ["IngressCounts"]


class IngressCounts(Counts):
    """Count what passes the ingress. No account is in it."""

    _FILE: ClassVar[str] = "taggant-ingress"

    def __init__(self) -> None:
        super().__init__()
        self.refused: Counter[int] = Counter()
        self.stripped: Counter[str] = Counter()
        self.self_tests: Counter[str] = Counter()
        self.unrecorded = 0

    def families(self) -> Iterator[Family]:
        """Yield each counter's name, help, labels and values."""
        requests = {(scope or "", said): count for (scope, said), count in self.requests.items()}
        yield "taggant_ingress_requests", "Requests by outcome.", ("scope", "outcome"), requests
        refused = {(str(status),): count for status, count in self.refused.items()}
        yield "taggant_ingress_refused", "Requests refused here.", ("status",), refused
        stripped = {(field,): count for field, count in self.stripped.items()}
        yield "taggant_ingress_stripped", "Fields taken out of requests.", ("field",), stripped
        self_tests = {(outcome,): count for outcome, count in self.self_tests.items()}
        yield "taggant_ingress_self_tests", "Start-up self-tests.", ("outcome",), self_tests
        yield "taggant_ingress_unrecorded", "Answers that went out unrecorded.", (), {(): self.unrecorded}
        errors = {(): self.reload_errors}
        yield "taggant_ingress_reload_errors", "Changes of the key file that were not taken up.", (), errors
