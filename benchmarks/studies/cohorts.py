"""Which clusters of accounts fed a student, on transformers of 1 M parameters trained from scratch.

    python benchmarks/studies/cohorts.py FOLDER [--keys 6] [--tokens 150000,600000]    # resumable

The lab is that of the study `arms` (detect/study/configs/arms.toml): a teacher answers 1,600 beginnings of files for
the accounts of the fed clusters in turn, one account each, delta 2, window 1, gamma 1/4, 16 account lanes; a student is
fine-tuned on them and answers other beginnings, unmarked; the reference is a clean twin's reading. A row is a
number of clusters that are asked about, of those that fed the student, and of tokens, over the keys; level 0.01. The
innocent clusters had no part, so that 50 disjoint sets of them are asked about with each student. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import builders

from detect.cohorts import CohortResult, detect_cohorts
from detect.reference import Reference
from detect.study.config import load_config
from detect.study.outputs import Outputs
from detect.study.small import SmallLab
from watermark.errors import UsageError
from watermark.keys import ScopeKeys

SETS = 50
LEVEL = 0.01

#: Clusters asked about, and those of them that fed the student.
CELLS = ((8, 2), (8, 4), (64, 4), (64, 32))


class Students:
    """The students and what they said, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, load_config("arms")
        self.lab = SmallLab(self.config, folder / "lab")
        lab = folder / "lab"
        if not (lab / "text.npz").exists():
            print(self.lab.make_text(), flush=True)
        for which in ("teacher", "base"):
            if not (lab / f"{which}.pt").exists():
                print(which, self.lab.make_model(which)["seconds"], "s", flush=True)

    def scope(self, key: int) -> ScopeKeys:
        """Return key number *key*, with 16 account lanes."""
        scope = self.lab.scope(1_000 + key, 1)
        return replace(scope, params=replace(scope.params, account_lanes=16))

    def student(self, name: str, scope: ScopeKeys | None, accounts: list[str], *, seed: int) -> Path:
        """Return where a student of answers to *accounts* is."""
        at = self.folder / name / "student.pt"
        at.parent.mkdir(exist_ok=True)
        if not at.exists():
            turn = np.random.default_rng(seed).permutation(self.config.answers)
            served = [accounts[i % len(accounts)] for i in turn.tolist()] if accounts else None
            answers = self.lab.teacher_answers(scope, accounts=served)
            self.lab.train_student(answers, seed=seed, path=at)
            print(name, answers.tokens, "ids learned", flush=True)
        return at

    def outputs(self, student: Path, twin: Path, *, tokens: int, seed: int) -> tuple[Outputs, Reference]:
        """Return what a student says, and the twin's reading of it."""
        said, read = (student.with_name(f"{what}-{tokens}.npz") for what in ("outputs", "reference"))
        if not read.exists():
            lab = SmallLab(replace(self.config, suspect_tokens=tokens), self.folder / "lab")
            lab.suspect_outputs(student, seed=seed).save(said)
            lab.read(twin, Outputs.load(said), name="twin").save(read)
        return Outputs.load(said), Reference.load(read)


@dataclass(slots=True)
class Row:
    """What came of one number of clusters, of fed ones and of tokens."""

    results: list[CohortResult] = field(default_factory=list)
    refused: int = 0

    def add(
        self, outputs: Outputs, scope: ScopeKeys, reference: Reference, *, clusters: int, fed: int, sets: int
    ) -> None:
        corpus = builders.corpus_of(outputs.responses, [[ids] for ids in outputs.prompts])
        for number in range(sets):
            named = {name: [name] for name in fed_names(fed)}
            named |= {f"innocent-{number}-{i}": [f"innocent-{number}-{i}"] for i in range(clusters - fed)}
            try:
                result = detect_cohorts(corpus, scope, named, reference=reference, level=LEVEL, share=1 / fed)
            except UsageError as error:
                self.refused += 1
                print(f"  {clusters} clusters, {fed} fed: {error}", flush=True)
                return
            self.results.append(result)

    def line(self, fed: int) -> str:
        if not self.results:
            return f"refused under {self.refused} keys"
        names = {*fed_names(fed)}
        found = [{each.cluster for each in result.findings if each.found} for result in self.results]
        wrong = np.array([len(each - names) for each in found])
        rate = np.mean([len(each - names) / max(1, len(each)) for each in found])
        z = np.mean([each.z for result in self.results for each in result.findings if each.cluster in names])
        stated = fed * np.mean([result.power.found for result in self.results])
        right = np.mean([len(each & names) for each in found])
        return (
            f"{stated:6.2f}  {right:5.2f} of {fed:<3}  {rate:20.4f}  {(wrong > 0).sum():6}/{len(found):<6}  {z:13.1f}"
            + (f"  ({self.refused} refused)" if self.refused else "")
        )


def fed_names(fed: int) -> list[str]:
    return [f"fed-{i}" for i in range(fed)]


def main() -> None:
    """Make the students and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keys", type=int, default=6)
    parser.add_argument("--tokens", default="150000,600000")
    parser.add_argument("--sets", type=int, default=SETS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    students = Students(options.folder)
    twin = students.student("clean", None, [], seed=101)
    lengths = [int(each) for each in options.tokens.split(",")]
    rows = {(tokens, *cell): Row() for cell in CELLS for tokens in lengths}
    for key in range(1, options.keys + 1):
        scope = students.scope(key)
        for fed in sorted({fed for _, fed in CELLS}):
            student = students.student(f"k{key}-fed{fed}", scope, fed_names(fed), seed=key)
            for tokens in lengths:
                outputs, reference = students.outputs(student, twin, tokens=tokens, seed=1_000 + key)
                for clusters in (each for each, of in CELLS if of == fed):
                    row = rows[tokens, clusters, fed]
                    row.add(outputs, scope, reference, clusters=clusters, fed=fed, sets=options.sets)
    print("clusters  fed   tokens  stated  fed: found  false discovery rate  sets with one  mean z of fed")
    for (tokens, clusters, fed), row in rows.items():
        print(f"{clusters:8}  {fed:3}  {tokens:7,}  {row.line(fed)}")


if __name__ == "__main__":
    main()
