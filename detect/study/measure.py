"""What each test makes of a study's cell: at growing numbers of tokens, with each reference, under each key.

The key that a student's teacher marked with is its *own*. All other keys of the study are null controls: neither the
student nor its training text depends on them, so that their p-values are those of an innocent model.

Null hypothesis, validity and what a small p does not say are those of the tests (`detect.count`,
`detect.weighted_test`). Here nothing is chosen by looking at a key: tests, references and numbers of tokens are the
configuration's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detect.centred import CENTRED
from detect.count import count_test
from detect.family import FAMILY
from detect.mark import GreenListMark
from detect.reference import Reference
from detect.study.cell import Cell
from detect.study.config import StudyConfig
from detect.study.lab import Lab
from detect.study.outputs import Outputs
from detect.tally import PromptPolicy, Tally, tally_of
from detect.weighted_test import effect_size, weighted_test
from detect.weighting import Weighting
from watermark.errors import UsageError, printable

__all__ = ["COUNT", "Measurement", "measure_cell", "measure_outputs", "weightings_of"]

#: Name of the count test, which needs no reference.
COUNT = "count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One test of one student's outputs under one key."""

    cell: str
    arm: str
    window: int
    """Of the key tested."""
    dose: float
    """Marked share of the student's training answers; 0 for a key that is not its own."""
    key: int
    own: bool
    """Whether the student's teacher marked with this key and window: else a null control."""
    seed: int
    test: str
    reference: str
    """Empty for a test without one."""
    prefix: int
    """Tokens asked for: the first answers that have so many together; 0 is all of them."""
    tokens: int
    pairs: int
    z: float
    log10_p: float
    tau: float | None
    """Effect size, of the centred test alone."""
    decoy_sd: float | None
    """Standard deviation of the decoys' z; at all tokens only."""
    seconds: float
    """The test's own share: weights, scores and p-value, without tokenising and reading references."""


def weightings_of(config: StudyConfig) -> tuple[Weighting, ...]:
    """Return the weighted tests of a study.

    Raises:
        UsageError: one is not in the family.
    """
    for name in config.tests:
        if name not in FAMILY and name != COUNT:
            raise UsageError(f"tests: expected of {COUNT}, {', '.join(FAMILY)}; got {printable(name)!r}")
    return tuple(FAMILY[name] for name in (config.tests or FAMILY) if name != COUNT)


def measure_cell(config: StudyConfig, lab: Lab, folder: Path, cell: Cell) -> list[Measurement]:
    """Measure one cell whose outputs and references are made.

    Args:
        config: the study.
        lab: gives the keys.
        folder: the cell's.
        cell: which it is.
    """
    outputs = Outputs.load(folder / "outputs.npz")
    references = [Reference.load(folder / f"reference-{name}.npz") for name in config.references]
    windows = (cell.window,) if cell.window else config.windows
    return [
        measurement
        for window in windows
        for measurement in measure_outputs(config, lab, cell, outputs, references, window=window)
    ]


def measure_outputs(
    config: StudyConfig,
    lab: Lab,
    cell: Cell,
    outputs: Outputs,
    references: Sequence[Reference],
    *,
    window: int,
) -> Iterator[Measurement]:
    """Yield every measurement of some outputs at one width of window.

    Args:
        config: the study.
        lab: gives the keys.
        cell: whose outputs they are.
        outputs: what the suspect said, to prompts that are human text.
        references: aligned with the outputs.
        window: of the keys tested.
    """
    marks = {key: GreenListMark(lab.scope(key, window)) for key in config.keys}
    sizes = sorted({n for n in config.prefixes if n < outputs.tokens} | {outputs.tokens})
    for size in sizes:
        part = outputs.first_tokens(size) if size < outputs.tokens else outputs
        prefix = size if size < outputs.tokens else 0
        decoys = 0 if prefix else config.decoys
        plain = _tally(part, marks[config.keys[0]], None)
        for key, mark in marks.items():
            yield _counted(plain, mark, key=key, cell=cell, prefix=prefix, tokens=part.tokens)
        for reference in references:
            tally = _tally(part, marks[config.keys[0]], reference.first(len(part)))
            for weighting in weightings_of(config):
                yield from _weighted(
                    tally,
                    weighting,
                    marks,
                    reference.first(len(part)),
                    decoys=decoys,
                    cell=cell,
                    prefix=prefix,
                    tokens=part.tokens,
                )


def _tally(outputs: Outputs, mark: GreenListMark, reference: Reference | None) -> Tally:
    return tally_of(
        outputs.responses,
        window=mark.window,
        special_ids=mark.special_ids,
        policy=PromptPolicy.CLEAN,
        reference=reference,
    )


def _counted(tally: Tally, mark: GreenListMark, *, key: int, cell: Cell, prefix: int, tokens: int) -> Measurement:
    started = time.monotonic()
    said = tally.said > 0
    pairs, green = int(said.sum()), int((mark.scores(tally) & said).sum())
    k = mark.scope.params.fleet_k
    gamma = k / 256
    return Measurement(
        **_about(cell, key, mark.window),
        test=COUNT,
        reference="",
        prefix=prefix,
        tokens=tokens,
        pairs=pairs,
        z=(green - gamma * pairs) / math.sqrt(max(pairs, 1) * gamma * (1 - gamma)),
        log10_p=count_test(green, pairs=pairs, k=k).log10_p,
        tau=None,
        decoy_sd=None,
        seconds=round(time.monotonic() - started, 4),
    )


def _weighted(
    tally: Tally,
    weighting: Weighting,
    marks: dict[int, GreenListMark],
    reference: Reference,
    *,
    decoys: int,
    cell: Cell,
    prefix: int,
    tokens: int,
) -> Iterator[Measurement]:
    started = time.monotonic()
    weights = weighting.weigh(tally, reference)
    shared = time.monotonic() - started
    # Decoys are the same for all keys of a study: their scopes have one name and one set of parameters.
    some = next(iter(marks.values()))
    sums = some.decoy_sums(tally, weights.values[:, None], count=decoys, seed=0)[:, 0] if decoys else None
    information = int(tally.information.sum())
    for key, mark in marks.items():
        started = time.monotonic()
        test = weighted_test(weights, mark=mark, tally=tally, scores=mark.scores(tally), decoy_sums=sums)
        effect = (
            effect_size(test.statistic, sd=test.sd, mark=mark, information=information)
            if weighting.name == CENTRED.name
            else None
        )
        yield Measurement(
            **_about(cell, key, mark.window),
            test=weighting.name,
            reference=reference.name,
            prefix=prefix,
            tokens=tokens,
            pairs=test.pairs,
            z=test.z,
            log10_p=test.log10_p,
            tau=None if effect is None else effect.tau,
            decoy_sd=test.decoy_sd,
            seconds=round(shared + time.monotonic() - started, 4),
        )


def _about(cell: Cell, key: int, window: int) -> dict[str, Any]:
    own = cell.dose > 0 and cell.key == key and cell.window == window
    return {
        "cell": cell.name,
        "arm": cell.arm,
        "window": window,
        "dose": cell.dose if own else 0.0,
        "key": key,
        "own": own,
        "seed": cell.seed,
    }


def as_row(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement as a line of results.jsonl has it, floats to 6 significant digits."""
    row = asdict(measurement)
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}
