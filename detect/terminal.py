"""What a person at a terminal sees while a command works, and how its result is printed.

Progress goes to standard error and only to a terminal; results go to standard output.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["busy", "progress", "reading", "show", "task_progress"]

#: Width of tables that go to a file or a pipe.
_WIDTH = 140


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; the function given is called with how many were done since the last call."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda new: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)

        yield lambda new: bar.advance(task, new)


@contextmanager
def reading(total: int | None, what: str = "") -> Iterator[Callable[[int, int, int], None]]:
    """Show how far a corpus is read, at what rate and for how long still.

    The function given is called with the bytes read, of *total* if that is known, the records and the ids so far.
    *what* stands before them where a corpus is read for more than one thing.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda bytes_read, records, tokens: None
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=total)
        began = time.monotonic()
        first: list[int] = []

        def advance(bytes_read: int, records: int, tokens: int) -> None:
            # A run that is gone on with has ids of the run before, which say nothing of this one's rate.
            if not first:
                first.append(tokens)
            rate = (tokens - first[0]) / max(1e-9, time.monotonic() - began)
            told = f"{what}{records:,} records, {tokens:,} ids, {rate / 1e6:.1f} M ids/s"
            bar.update(task, completed=bytes_read, description=told)

        yield advance


@contextmanager
def task_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show tasks of different kinds: the function given is called with a task's name, how many are done, of how many.

    Where there is no terminal, a line a task: such work takes hours.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda task, done, total: console.print(f"{done}/{total} {task}", highlight=False, markup=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("", total=None)
        yield lambda task, done, total: bar.update(shown, description=task, completed=done, total=total)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show that something is being done that has no measure."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def show(renderable: RenderableType) -> None:
    """Print a result; nothing in it is read as markup."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=max(console.width, _WIDTH))
    console.print(renderable)
