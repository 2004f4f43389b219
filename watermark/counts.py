"""Counters of what was marked and what was not, with the reason; as Prometheus text.

::

    taggant_tokens_total{scope, outcome}       tokens by what became of their row (`watermark.green_list.Outcome`)
    taggant_requests_total{scope, outcome}     requests by how they were admitted, or refused
    taggant_reload_errors_total                changes of the key file that could not be taken up

Several processes of one server each write a file of their own into one folder, which Prometheus' node
exporter collects (its textfile collector).
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from watermark.errors import MissingExtraError
from watermark.green_list import Outcome
from watermark.whole_file import write_whole

__all__ = ["Counts"]


class Counts:
    """Count tokens and requests. Adding is cheap; whoever reads sees each counter at some recent moment."""

    def __init__(self) -> None:
        self.tokens: Counter[tuple[str | None, Outcome]] = Counter()
        self.shadowed: Counter[str] = Counter()
        """Tokens that would have been marked, and were not since the server runs in shadow."""
        self.requests: Counter[tuple[str | None, str]] = Counter()
        self.reload_errors = 0

    def add(self, scope: str, outcomes: npt.NDArray[np.uint8], *, shadow: bool = False) -> None:
        """Add the outcomes of a batch's rows, uint8 of shape (B,)."""
        self.add_totals(scope, np.bincount(outcomes, minlength=len(Outcome)), shadow=shadow)

    def add_totals(self, scope: str, totals: npt.NDArray[np.integer[Any]], *, shadow: bool = False) -> None:
        """Add so many of each outcome: integers of shape (5,), in the order of `Outcome`."""
        for outcome, count in zip(Outcome, totals.tolist(), strict=True):
            if count and shadow and outcome is Outcome.MARKED:
                self.shadowed[scope] += count
            elif count:
                self.tokens[scope, outcome] += count

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
                tokens = CounterMetricFamily("taggant_tokens", "Tokens by outcome.", labels=("scope", "outcome"))
                for (scope, outcome), count in sorted(counts.tokens.items(), key=str):
                    tokens.add_metric((scope or "", outcome.name.lower()), count)
                for scope, count in sorted(counts.shadowed.items()):
                    tokens.add_metric((scope, "shadow"), count)
                yield tokens
                requests = CounterMetricFamily("taggant_requests", "Requests by outcome.", labels=("scope", "outcome"))
                for (scope, said), count in sorted(counts.requests.items(), key=str):
                    requests.add_metric((scope or "", said), count)
                yield requests
                errors = "Changes of the key file that were not taken up."
                yield CounterMetricFamily("taggant_reload_errors", errors, value=counts.reload_errors)

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector())
        return bytes(generate_latest(registry)).decode()

    def write(self, folder: Path) -> Path:
        """Write the counters of this process to *folder*, whole or not at all; return the file.

        Raises:
            UsageError: the folder can't be written to.
            MissingExtraError: prometheus_client is not installed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return write_whole(folder / f"taggant-{os.getpid()}.prom", self.exposition(), what="the metrics")
