"""A study's cells: one student or suspect each, in a folder of its own.

A cell's folder holds ``outputs.npz`` (`detect.study.outputs`), ``reference-NAME.npz`` (`detect.reference`) for each
reference, ``student.pt`` or what the lab keeps of a student, ``cell.json``, and, when all is done, ``result.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detect.study.config import StudyConfig

__all__ = ["Cell", "cells_of", "read_json", "write_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One student: what it was trained on, and from which seed."""

    window: int
    """Of the mark; 0 where the dose is 0, since such a student serves every window."""
    dose: float
    """Marked share of its training answers."""
    key: int
    """Number of the key; 0 where the dose is 0."""
    seed: int
    arm: str = ""

    @property
    def name(self) -> str:
        """The folder's: e.g. ``d0-s101``, ``w1-d10-k2-s1``, ``w1-d100-k1-s1-relay``."""
        if self.dose == 0 and not self.arm:
            return f"d0-s{self.seed}"
        plain = f"w{self.window}-d{self.dose * 100:g}-k{self.key}-s{self.seed}"
        return f"{plain}-{self.arm}" if self.arm else plain

    def described(self) -> dict[str, Any]:
        """Return the cell as JSON has it."""
        return asdict(self)


def cells_of(config: StudyConfig) -> list[Cell]:
    """Return the cells of a study, in the order in which they are made: twins first, then key by key."""
    return list(_cells(config))


def _cells(config: StudyConfig) -> Iterator[Cell]:
    for seed in config.clean_seeds:
        yield Cell(window=0, dose=0.0, key=0, seed=seed)
    for seed in config.seeds:
        for key in config.keys:
            for window in config.windows:
                for dose in config.doses:
                    yield Cell(window=window, dose=dose, key=key, seed=seed)
    for arm in config.arms:
        for window in config.windows:
            yield Cell(window=window, dose=config.arm_dose, key=config.keys[0], seed=config.seeds[0], arm=arm)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read a JSON file of this study."""
    return json.loads(path.read_text(encoding="utf-8"))
