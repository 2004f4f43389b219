"""Run a study: its tasks in order of need, in one process or several, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from detect.study.cell import cells_of, read_json, write_json
from detect.study.config import StudyConfig
from detect.study.measure import weightings_of
from detect.study.work import Task, perform, tasks_of
from watermark.errors import UsageError, printable

__all__ = ["measure_again", "open_folder", "run_study"]


def run_study(
    config: StudyConfig,
    folder: Path,
    *,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> None:
    """Run a study in *folder*, or go on with it.

    Args:
        config: the study.
        folder: created if it is not there.
        progress: called when a task begins or ends, with its name, how many are done, and of how many.

    Raises:
        UsageError: the folder holds another study, or another version of this one; a test is not in the family.
        MissingExtraError: the lab wants a package that is not installed.
    """
    weightings_of(config)  # A test that is not known is said now, not after an hour.
    open_folder(config, folder)
    tasks = tasks_of(config, folder)
    waiting = [task for task in tasks if not task.done.exists()]
    done = len(tasks) - len(waiting)
    if config.workers == 1:
        while waiting:
            # The first whose needs are met: a twin's student comes before its other's reference.
            task = next(task for task in waiting if all(path.exists() for path in task.needs))
            waiting.remove(task)
            progress(_name(task), done, len(tasks))
            perform(config, folder, task)
            done += 1
            if task.kind == "measure":
                gather(config, folder)
        progress("", done, len(tasks))
        gather(config, folder)
        return
    # One thread each: two processes of one thread do more than one of two. OpenMP reads this when it is loaded.
    kept = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
            running: dict[Future[None], Task] = {}
            while waiting or running:
                for task in list(waiting):
                    if len(running) < config.workers and all(path.exists() for path in task.needs):
                        waiting.remove(task)
                        running[pool.submit(perform, config, folder, task)] = task
                        progress(_name(task), done, len(tasks))
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    try:
                        future.result()
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
                    done += 1
                    if task.kind == "measure":
                        gather(config, folder)
            progress("", done, len(tasks))
            gather(config, folder)
    finally:
        if kept is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = kept


def open_folder(config: StudyConfig, folder: Path) -> None:
    """Create a study's folder, or check that it is this study's.

    Raises:
        UsageError: it is another's.
    """
    record = folder / "study.json"
    if record.exists():
        if read_json(record)["config"] != config.digest():
            raise UsageError(
                f"{printable(folder)}: holds a study made with another configuration; name another folder with --out, "
                "or delete this one"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{printable(folder)}: expected an empty folder or one of this study; name another with --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, {"schema": "taggant/study/1", "name": config.name, "lab": config.lab, "config": config.digest()})


def _name(task: Task) -> str:
    if task.cell is not None:
        return f"{task.kind} {task.cell.name}"
    return f"{task.kind} {task.which}".strip() if task.kind != "answers" else task.done.stem


def measure_again(
    config: StudyConfig,
    folder: Path,
    *,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> None:
    """Make the tests of a study again, whose students are made: after a change of the tests."""
    open_folder(config, folder)
    measures = [task for task in tasks_of(config, folder) if task.kind == "measure" and task.needs[0].exists()]
    for done, task in enumerate(measures):
        progress(_name(task), done, len(measures))
        perform(config, folder, task)
    gather(config, folder)


def gather(config: StudyConfig, folder: Path) -> Path:
    """Write results.jsonl, a line a measurement, from the cells that are complete; return its path."""
    lines = []
    for cell in cells_of(config):
        result = folder / "cells" / cell.name / "result.json"
        if result.exists():
            lines += [json.dumps(row) for row in read_json(result)["rows"]]
    path = folder / "results.jsonl"
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)
    return path
