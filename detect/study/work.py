"""The work of a study as tasks: what each needs, what it makes, and how it is done in any process.

A task is done when its JSON file exists, which is written last, so that a study goes on from where it was stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detect.study.cell import Cell, cells_of, read_json, write_json
from detect.study.config import DOMAINS, StudyConfig
from detect.study.lab import Lab, open_lab
from detect.study.measure import as_row, measure_cell
from detect.study.outputs import Outputs

__all__ = ["Task", "perform", "tasks_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One step of the work."""

    kind: str
    """``text``, ``model``, ``answers``, ``student``, ``cell`` (its references) or ``measure``."""
    done: Path
    """Its JSON file."""
    needs: tuple[Path, ...]
    """The JSON files of the tasks that come before."""
    which: str = ""
    """Of a model: ``teacher``, ``base`` or ``foreign``."""
    window: int = 0
    key: int = 0
    """Of marked answers; 0 and 0 for unmarked ones."""
    text_kind: str = ""
    """Of the answers' prompts; empty for all."""
    cell: Cell | None = None


def tasks_of(config: StudyConfig, folder: Path) -> list[Task]:
    """Return a study's tasks, each after those that it needs."""
    lab = folder / "lab"
    text = Task(kind="text", done=lab / "text.json", needs=())
    models = [
        Task(kind="model", done=lab / f"{which}.json", needs=(text.done,), which=which) for which in ("teacher", "base")
    ]
    trained = (text.done, *(task.done for task in models))
    unmarked = Task(kind="answers", done=lab / "unmarked.json", needs=trained)
    tasks = [text, *models, unmarked]
    foreign = Task(kind="model", done=lab / "foreign.json", needs=(text.done,), which="foreign")
    made = {unmarked.done}
    for cell in cells_of(config):
        needs = [unmarked.done]
        before = []
        if cell.dose and cell.arm != "relay":
            domain = _domain_of(cell)
            marked = Task(
                kind="answers",
                done=_answers_file(lab, cell.window, cell.key, domain).with_suffix(".json"),
                needs=trained,
                window=cell.window,
                key=cell.key,
                text_kind=domain,
            )
            before.append(marked)
            if domain and cell.dose < 1:
                done = _answers_file(lab, 0, 0, domain).with_suffix(".json")
                before.append(Task(kind="answers", done=done, needs=trained, text_kind=domain))
        if cell.arm == "cross-tokenizer":
            before.append(foreign)
        for task in before:
            if task.done not in made:
                made.add(task.done)
                tasks.append(task)
            needs.append(task.done)
        at = folder / "cells" / cell.name
        if cell.arm in ("second-fine-tune", "neutralised"):
            # Both start from the plain student of the same dose, which the study must have.
            needs.append(_folder_of(folder, _plain(cell)) / "student.json")
        student = Task(kind="student", done=at / "student.json", needs=tuple(needs), cell=cell)
        twin = folder / "cells" / twin_of(cell, config).name / "student.json"
        tasks.append(student)
        measured = Task(kind="cell", done=at / "cell.json", needs=(student.done, twin), cell=cell)
        tasks.append(measured)
        tasks.append(Task(kind="measure", done=at / "result.json", needs=(measured.done,), cell=cell))
    return tasks


def twin_of(cell: Cell, config: StudyConfig) -> Cell:
    """Return the clean twin of a cell: the first one, or for a clean student the next."""
    seeds = config.clean_seeds
    seed = seeds[0]
    if cell.dose == 0 and not cell.arm:
        seed = seeds[(seeds.index(cell.seed) + 1) % len(seeds)]
    return Cell(window=0, dose=0.0, key=0, seed=seed)


def perform(config: StudyConfig, folder: Path, task: Task) -> None:
    """Do one task, and write its JSON file last."""
    started = time.monotonic()
    task.done.parent.mkdir(parents=True, exist_ok=True)
    lab = open_lab(config, folder / "lab")
    if task.kind == "text":
        record = lab.make_text()
    elif task.kind == "model":
        record = lab.make_model(task.which)
    elif task.kind == "answers":
        scope = lab.scope(task.key, task.window) if task.window else None
        answers = lab.teacher_answers(scope, kind=task.text_kind)
        answers.save(task.done.with_suffix(".npz"))
        record = {"window": task.window, "key": task.key, "answers": len(answers), "tokens": answers.tokens}
    elif task.kind == "student":
        assert task.cell is not None  # noqa: S101 - such tasks have one
        record = _make_student(lab, config, folder, task.cell)
    elif task.kind == "cell":
        assert task.cell is not None  # noqa: S101 - such tasks have one
        record = _make_references(lab, config, folder, task.cell)
    else:
        assert task.cell is not None  # noqa: S101 - such tasks have one
        measured = measure_cell(config, lab, _folder_of(folder, task.cell), task.cell)
        record = {"rows": [as_row(measurement) for measurement in measured]}
    write_json(task.done, {**record, "task_seconds": round(time.monotonic() - started, 1)})


def _folder_of(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / cell.name


def _plain(cell: Cell) -> Cell:
    return Cell(window=cell.window, dose=cell.dose, key=cell.key, seed=cell.seed)


def _domain_of(cell: Cell) -> str:
    """Return the kind of text that a student is trained and asked in; empty for all."""
    return cell.arm if cell.arm in DOMAINS else ""


def _answers_file(lab: Path, window: int, key: int, domain: str) -> Path:
    """Return where the teacher's answers lie: marked, or with window 0 unmarked."""
    which = f"marked-w{window}-k{key}" if window else "unmarked"
    return lab / f"{which}{'-' if domain else ''}{domain}.npz"


def mixed_answers(unmarked: Outputs, marked: Outputs | None, *, dose: float, seed: int) -> Outputs:
    """Return answers to every prompt, of which a share *dose* are marked: which, is drawn from *seed*."""
    if marked is None:
        return unmarked
    chosen = np.random.default_rng([seed, 1]).permutation(len(unmarked))[: round(dose * len(unmarked))]
    takes = np.zeros(len(unmarked), dtype=np.bool_)
    takes[chosen] = True
    return Outputs(
        prompts=unmarked.prompts,
        responses=[marked.responses[i] if take else unmarked.responses[i] for i, take in enumerate(takes.tolist())],
        ended=np.where(takes, marked.ended, unmarked.ended),
        kinds=unmarked.kinds,
    )


def _make_student(lab: Lab, config: StudyConfig, folder: Path, cell: Cell) -> dict[str, Any]:
    at = _folder_of(folder, cell)
    seed = 1_000_000 + _number(cell)
    started = time.monotonic()
    record: dict[str, Any] = {}
    plain = _folder_of(folder, _plain(cell)) / "student.pt"
    if cell.arm in ("relay", "neutralised"):
        trained = started
    elif cell.arm == "cross-tokenizer":
        record = lab.foreign_student(_answers_for(lab, folder, cell), seed=cell.seed, path=at / "student.pt")
        trained = time.monotonic()
    else:
        answers = _answers_for(lab, folder, cell)
        base = plain if cell.arm == "second-fine-tune" else None
        record = lab.train_student(answers, seed=cell.seed, path=at / "student.pt", base=base)
        trained = time.monotonic()
    if cell.arm == "relay":
        outputs = lab.teacher_relayed(lab.scope(cell.key, cell.window), seed=seed)
    elif cell.arm == "neutralised":
        learned = _answers_for(lab, folder, _plain(cell))
        outputs = lab.neutralised_outputs(plain, learned, seed=seed)
    elif cell.arm == "cross-tokenizer":
        outputs = lab.foreign_outputs(at / "student.pt", seed=seed)
    else:
        outputs = lab.suspect_outputs(at / "student.pt", seed=seed, kind=_domain_of(cell))
    outputs.save(at / "outputs.npz")
    return {
        "training": record,
        "train_seconds": round(trained - started, 1),
        "suspect_tokens": outputs.tokens,
        "suspect_answers": len(outputs),
        "generate_seconds": round(time.monotonic() - trained, 1),
    }


def _answers_for(lab: Lab, folder: Path, cell: Cell) -> Outputs:
    """Return what a cell's student learns."""
    made, domain = folder / "lab", _domain_of(cell)
    if not cell.dose or cell.arm == "second-fine-tune":
        return Outputs.load(_answers_file(made, 0, 0, ""))
    marked = Outputs.load(_answers_file(made, cell.window, cell.key, domain))
    if cell.arm == "paraphrase":
        marked = lab.paraphrased(marked, seed=cell.seed)
    if cell.dose == 1:
        return marked
    return mixed_answers(Outputs.load(_answers_file(made, 0, 0, domain)), marked, dose=cell.dose, seed=cell.seed)


def _make_references(lab: Lab, config: StudyConfig, folder: Path, cell: Cell) -> dict[str, Any]:
    at = _folder_of(folder, cell)
    outputs = Outputs.load(at / "outputs.npz")
    twin = _folder_of(folder, twin_of(cell, config)) / "student.pt"
    nll = {}
    started = time.monotonic()
    for name in config.references:
        reference = lab.read(twin if name == "twin" else name, outputs, name=name)
        reference.save(at / f"reference-{name}.npz")
        nll[name] = round(reference.negative_log_likelihood(), 4)
    return {
        **cell.described(),
        "name": cell.name,
        "delta": config.delta,
        "gamma_256": config.gamma_256,
        "twin": twin_of(cell, config).name,
        "reference_nll": nll,
        "reference_seconds": round(time.monotonic() - started, 1),
        "student": read_json(at / "student.json"),
    }


def _number(cell: Cell) -> int:
    """Return a number that tells cells apart, from which a suspect draws."""
    import hashlib

    return int.from_bytes(hashlib.sha256(cell.name.encode()).digest()[:4], "little")
