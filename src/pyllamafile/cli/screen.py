"""What the terminal shows: text that can't command it, tables, one bar at a time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from pyllamafile.progress import Kind, Progress, Step, silent

out = Console(soft_wrap=True, highlight=False, emoji=False, markup=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False, markup=False)


def fail(message: str, hint: str | None = None) -> NoReturn:
    """Say what went wrong, and end with 1."""
    complain(message, hint)
    sys.exit(1)


def complain(message: str, hint: str | None = None) -> None:
    """Say what went wrong, and what to do about it."""
    lines = "\n".join(shown(line) for line in message.split("\n"))  # of a log, maybe
    err.print(Text("error:", "bold red"), lines)
    if hint:
        err.print(Text("hint:", "bold"), shown(hint))


def warn(message: str, hint: str) -> None:
    """Say what may not be as wanted, and what to do about it."""
    err.print(Text("warning:", "bold yellow"), shown(message))
    err.print(Text("hint:", "bold"), shown(hint))


# The bar


def in_words() -> Progress:
    """For a log, which shows no bar: minutes of silence look like a program that hangs."""
    said: set[str] = set()

    def tell(step: Step) -> None:
        if step.what not in said:
            said.add(step.what)
            err.print(shown(step.what))

    return tell


# What stands behind the bar. Steps take another time each, so nobody knows when they end.
_FIGURES: Mapping[Kind, tuple[ProgressColumn, ...]] = {
    "bytes": (TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()),
    "steps": (MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn()),
    "waiting": (TimeElapsedColumn(),),
}


@contextlib.contextmanager
def progress(*, words: bool = False) -> Iterator[Progress]:
    """A bar on the terminal for what takes over half a second.

    Args:
        words: Whether anywhere else each new thing is said in a line, instead of nothing at all.
    """
    started = time.monotonic()
    if not err.is_terminal:
        yield in_words() if words else silent
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn())
    bar = Bar(*columns, console=err, transient=True)
    task: TaskID | None = None
    last = Step("waiting", "")

    def tell(step: Step) -> None:
        nonlocal task, last
        quick = time.monotonic() - started < 0.5 and step.kind != "waiting"  # which may tell once
        if quick and not bar.live.is_started:
            return
        bar.columns = (*columns, *_FIGURES[step.kind])
        bar.start()
        # A bar never goes back, nor from steps to bytes: what does is another one.
        if task is not None and (last.kind != step.kind or step.done < last.done):
            bar.remove_task(task)
            task = None
        total = step.total or None
        if task is None:
            task = bar.add_task(shown(step.what), total=total)
        last = step
        bar.update(task, description=shown(step.what), completed=step.done, total=total)

    try:
        yield tell
    finally:
        bar.stop()


# Text and numbers


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell, whatever the terminal; numbers to the right."""
    cells = [[shown(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [all(isinstance(cell, int) for cell in column) for column in zip(*rows, strict=True)]
    for line, row in enumerate(cells):
        text = "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        )
        out.print(text.rstrip(), style=None if line else "bold")


def bold(text: str) -> Text:
    """Text that stands out."""
    return Text(shown(text), "bold")


def shown(text: str) -> str:
    """Text from a file, or its name, that can't command the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def amount(count: int) -> str:
    """A number of bytes in a unit of powers of ten, as disks and files have it."""
    return filesize.decimal(count)
