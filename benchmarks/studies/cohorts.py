"""Which clusters of accounts fed a student, on transformers of 1 M parameters trained from scratch.

    python benchmarks/studies/cohorts.py FOLDER [--keys 3] [--tokens 150000]    # some 40 minutes on one core, resumable

The lab is that of the study `arms` (detect/study/configs/arms.toml): a teacher answers 1,600 beginnings of files for
the accounts of the fed clusters in turn, one account each, delta 2, window 1, gamma 1/4, 16 account lanes; a student is
fine-tuned on them and answers other beginnings, unmarked; the reference is a clean twin's reading. A row is a
number of clusters that are asked about and of those that fed the student, over the keys; level 0.01. The innocent
clusters had no part, so that 100 disjoint sets of them are asked about with each student. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import builders

from detect.cohorts import detect_cohorts
from detect.reference import Reference
from detect.study.config import load_config
from detect.study.outputs import Outputs
from detect.study.small import SmallLab
from watermark.errors import UsageError
from watermark.keys import ScopeKeys

SETS = 100
LEVEL = 0.01


class Cohorts:
    """The students and what they said, kept in a folder."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.folder = folder
        self.lab = SmallLab(replace(load_config("arms"), suspect_tokens=tokens), folder / "lab")
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

    def student(self, name: str, scope: ScopeKeys | None, accounts: list[str], *, seed: int) -> tuple[Outputs, Path]:
        """Return what a student of answers to *accounts* says, and where it is."""
        at = self.folder / name
        at.mkdir(exist_ok=True)
        if not (at / "outputs.npz").exists():
            turn = np.random.default_rng(seed).permutation(self.lab.config.answers)
            served = [accounts[i % len(accounts)] for i in turn.tolist()] if accounts else None
            answers = self.lab.teacher_answers(scope, accounts=served)
            self.lab.train_student(answers, seed=seed, path=at / "student.pt")
            self.lab.suspect_outputs(at / "student.pt", seed=1_000 + seed).save(at / "outputs.npz")
            print(name, answers.tokens, "ids learned", flush=True)
        return Outputs.load(at / "outputs.npz"), at / "student.pt"

    def reference(self, name: str, twin: Path, outputs: Outputs) -> Reference:
        """Return the twin's reading of what a student says."""
        path = self.folder / name / "reference.npz"
        if not path.exists():
            self.lab.read(twin, outputs, name="twin").save(path)
        return Reference.load(path)


def main() -> None:
    """Make the students and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keys", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=150_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    study = Cohorts(options.folder, options.tokens)
    _, twin = study.student("clean", None, [], seed=101)
    rows: dict[tuple[int, int], list[tuple[int, int, float, float, float]]] = {}
    refused: dict[tuple[int, int], int] = {}
    for key in range(1, options.keys + 1):
        scope = study.scope(key)
        for fed in (4, 32):
            names = [f"fed-{i}" for i in range(fed)]
            outputs, _ = study.student(f"k{key}-fed{fed}", scope, names, seed=key)
            reference = study.reference(f"k{key}-fed{fed}", twin, outputs)
            corpus = builders.corpus_of(outputs.responses, [[ids] for ids in outputs.prompts])
            for clusters in (8, 64) if fed == 4 else (64,):
                cell = rows.setdefault((clusters, fed), [])
                for number in range(SETS):
                    named = {name: [name] for name in names}
                    named |= {f"innocent-{number}-{i}": [f"innocent-{number}-{i}"] for i in range(clusters - fed)}
                    try:
                        result = detect_cohorts(corpus, scope, named, reference=reference, level=LEVEL, share=1 / fed)
                    except UsageError as error:
                        refused[clusters, fed] = refused.get((clusters, fed), 0) + 1
                        print(f"  key {key}, {clusters} clusters, {fed} fed: {error}", flush=True)
                        break
                    found = {each.cluster for each in result.findings if each.found}
                    right = len(found & {*names})
                    zs = [each.z for each in result.findings if each.cluster in names]
                    hoped = float(np.mean([result.power.z_expected[name] for name in names]))
                    wrong = len(found) - right
                    cell.append((right, wrong, wrong / max(1, len(found)), hoped, float(np.mean(zs))))
    print("clusters  fed  keys  fed: found  false discovery rate  sets with one  z hoped for  mean z of fed")
    for (clusters, fed), cell in rows.items():
        if not cell:
            print(f"{clusters:8}  {fed:3}  {options.keys:4}  refused under {refused[clusters, fed]} keys")
            continue
        right, wrong, rate, hoped, z = np.array(cell).T
        keys = len(cell) // SETS
        print(
            f"{clusters:8}  {fed:3}  {keys:4}  {right.mean():.2f} of {fed:<4}  {rate.mean():20.4f}  "
            f"{(wrong > 0).sum():6}/{len(cell):<6}  {hoped.mean():11.1f}  {z.mean():13.1f}"
        )


if __name__ == "__main__":
    main()
