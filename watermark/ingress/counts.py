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

import os
from collections import Counter
from pathlib import Path
from typing import Any

from watermark.counts import Counts
from watermark.errors import MissingExtraError, UsageError, printable
from watermark.whole_file import write_whole

__all__ = ["IngressCounts"]


class IngressCounts(Counts):
    """Count what passes the ingress. No account is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: Counter[int] = Counter()
        self.stripped: Counter[str] = Counter()
        self.self_tests: Counter[str] = Counter()
        self.unrecorded = 0

    def exposition(self) -> str:
        """Return the counters in Prometheus' text format.

        Raises:
            MissingExtraError: prometheus_client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, generate_latest
            from prometheus_client.core import CounterMetricFamily
        except ImportError:
            raise MissingExtraError("metrics need prometheus_client: pip install 'taggant[serve]'") from None
        counts = self

        class Collector:
            def collect(self) -> Any:
                requests = CounterMetricFamily(
                    "taggant_ingress_requests", "Requests by outcome.", labels=("scope", "outcome")
                )
                for (scope, said), count in sorted(counts.requests.items(), key=str):
                    requests.add_metric((scope or "", said), count)
                yield requests
                for name, what, label, counter in (
                    ("refused", "Requests refused here.", "status", counts.refused),
                    ("stripped", "Fields taken out of requests.", "field", counts.stripped),
                    ("self_tests", "Start-up self-tests.", "outcome", counts.self_tests),
                ):
                    family = CounterMetricFamily(f"taggant_ingress_{name}", what, labels=(label,))
                    for value, count in sorted(counter.items(), key=str):
                        family.add_metric((str(value),), count)
                    yield family
                for name, what, count in (
                    ("unrecorded", "Answers that went out unrecorded.", counts.unrecorded),
                    ("reload_errors", "Changes of the key file that were not taken up.", counts.reload_errors),
                ):
                    yield CounterMetricFamily(f"taggant_ingress_{name}", what, value=count)

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector())
        return bytes(generate_latest(registry)).decode()

    def write(self, folder: Path) -> Path:
        """Write the counters of this process to *folder*, whole or not at all; return the file.

        Raises:
            UsageError: the folder can't be written to.
            MissingExtraError: prometheus_client is not installed.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{printable(folder)}: cannot make the folder of metrics: {error.strerror}") from None
        return write_whole(folder / f"taggant-ingress-{os.getpid()}.prom", self.exposition(), what="the metrics")
