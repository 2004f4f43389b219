"""Counters of what was marked and what was not, with the reason; as Prometheus text.

::

    taggant_tokens_total{scope, outcome}       tokens by what became of their row (`watermark.green_list.Outcome`)
    taggant_requests_total{scope, outcome}     requests by how they were admitted, or refused
    taggant_reload_errors_total                changes of the key file that could not be taken up

Several processes of one server each write a file of their own into one folder, which Prometheus' node
exporter collects (its textfile collector). It takes no series twice: hence the label ``process``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from watermark.errors import MissingExtraError, UsageError, printable
from watermark.green_list import Outcome
from watermark.whole_file import write_whole

__all__ = ["Counts", "Family"]

#: A counter's name, help and label names, and its value for each tuple of labels.
Family = tuple[str, str, tuple[str, ...], Mapping[Any, int]]


class Counts:
    """Count tokens and requests. Adding is cheap; whoever reads sees each counter at some recent moment."""

    _FILE: ClassVar[str] = "taggant"

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

    def families(self) -> Iterator[Family]:
        """Yield each counter's name, help, labels and values."""
        tokens = {(scope or "", outcome.name.lower()): count for (scope, outcome), count in self.tokens.items()}
        shadowed = {(scope, "shadow"): count for scope, count in self.shadowed.items()}
        yield "taggant_tokens", "Tokens by outcome.", ("scope", "outcome"), tokens | shadowed
        requests = {(scope or "", said): count for (scope, said), count in self.requests.items()}
        yield "taggant_requests", "Requests by outcome.", ("scope", "outcome"), requests
        errors = {(): self.reload_errors}
        yield "taggant_reload_errors", "Changes of the key file that were not taken up.", (), errors

    def exposition(self) -> str:
        """Return the counters in Prometheus' text format, each with this process's number as the label ``process``.

        Raises:
            MissingExtraError: prometheus_client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, generate_latest
            from prometheus_client.core import CounterMetricFamily
        except ImportError:
            raise MissingExtraError("metrics need prometheus_client: pip install 'taggant[serve]'") from None
        families = [(*family[:3], dict(family[3])) for family in self.families()]
        process = str(os.getpid())

        class Collector:
            def collect(self) -> Any:
                for name, what, labels, values in families:
                    metric = CounterMetricFamily(name, what, labels=(*labels, "process"))
                    for value, count in sorted(values.items()):
                        metric.add_metric((*value, process), count)
                    yield metric

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
        return write_whole(folder / f"{self._FILE}-{os.getpid()}.prom", self.exposition(), what="the metrics")
