"""The bar, which rich draws."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBar
from rich.text import Text

from pyllamafile.cli.screen import shown
from pyllamafile.progress import Kind, Step


class _Left(ProgressColumn):
    """The time left, counted down from when something was done last.

    Shares are guesses: the mean of all that was tells more than what was last.
    """

    def render(self, task: Task) -> Text:
        """The column's text."""
        end = task.fields.get("end")
        if end is None:
            return Text("-:--:-- left", "progress.remaining")
        left = timedelta(seconds=max(int(end - (task.elapsed or 0)), 0))
        return Text(f"{left} left", "progress.remaining")


# What stands behind the bar. Steps take another time each, so nobody knows when they end.
_FIGURES: Mapping[Kind, tuple[ProgressColumn, ...]] = {
    "bytes": (TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()),
    "share": (
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("so far,"),
        _Left(),
    ),
    "steps": (MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn()),
    "waiting": (TimeElapsedColumn(),),
}


class Bar:
    """One bar at a time on a terminal, and nothing before there is something to show."""

    def __init__(self, console: Console) -> None:
        self._columns = (TextColumn("{task.description}", markup=False), BarColumn())
        # Standard output stays what it is.
        self._bar = RichBar(*self._columns, console=console, transient=True, redirect_stdout=False)
        self._task: TaskID | None = None
        self._last = Step("waiting", "")

    def note(self, line: str) -> None:
        """Print a line above it."""
        self._bar.console.print(line)

    def show(self, step: Step) -> None:
        """Show how far it is."""
        self._bar.columns = (*self._columns, *_FIGURES[step.kind])
        self._bar.start()
        # A bar never goes back, nor from steps to bytes: what does is another one.
        if self._task is not None and (self._last.kind != step.kind or step.done < self._last.done):
            self._bar.remove_task(self._task)
            self._task = None
        total = step.total or None
        if self._task is None:
            self._task = self._bar.add_task(shown(step.what), total=total)
        if step.done and step.done != self._last.done:
            took = self._bar.tasks[0].elapsed or 0
            self._bar.update(self._task, end=took * step.total / step.done)
        self._last = step
        self._bar.update(self._task, description=shown(step.what), completed=step.done, total=total)

    def stop(self) -> None:
        """Take it away."""
        self._bar.stop()
