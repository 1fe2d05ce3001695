"""What the terminal shows: text that can't command it, tables, one bar at a time.

rich is imported when something is printed, so that to ask for help doesn't take it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from pyllamafile.progress import Progress, Step

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


@functools.cache
def out() -> Console:
    """Standard output."""
    return _console(stderr=False)


@functools.cache
def err() -> Console:
    """Standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False, emoji=False, markup=False)


def say(*parts: object) -> None:
    """Print a line that the command was called for."""
    out().print(*parts)


def note(*parts: object) -> None:
    """Print a line beside it, on standard error."""
    err().print(*parts)


def fail(message: str, hint: str | None = None, code: int = 1) -> NoReturn:
    """Say what went wrong, and end with 1, or another exit status."""
    complain(message, hint)
    sys.exit(code)


def complain(message: str, hint: str | None = None) -> None:
    """Say what went wrong, and what to do about it."""
    lines = "\n".join(shown(line) for line in message.split("\n"))  # of a log, maybe
    note(styled("error:", "bold red"), lines)
    if hint:
        note(bold("hint:"), shown(hint))


def warn(message: str, hint: str) -> None:
    """Say what may not be as wanted, and what to do about it."""
    note(styled("warning:", "bold yellow"), shown(message))
    note(bold("hint:"), shown(hint))


# How far it is


@contextlib.contextmanager
def progress(*, words: bool = False) -> Iterator[Progress]:
    """A bar on the terminal for what takes over half a second; notices, in lines of their own.

    Args:
        words: Whether anywhere else each new thing is said in a line, instead of nothing at all.
    """
    if not err().is_terminal:
        yield in_words(words)
        return
    from pyllamafile.cli.bar import Bar

    bar = Bar(err())
    started: float | None = None

    def tell(step: Step) -> None:
        nonlocal started
        if started is None:  # and not before, when modules are imported
            started = time.monotonic()
        if step.kind == "notice":
            note(shown(step.what))
        # Something quick may be told but once; of what one waits for the end isn't known.
        elif step.kind == "waiting" or bar.shows or time.monotonic() - started >= 0.5:
            bar.show(step)

    try:
        yield tell
    finally:
        bar.stop()


def in_words(everything: bool) -> Progress:
    """For a log, which shows no bar: minutes of silence look like a program that hangs.

    Args:
        everything: Whether each new thing is said, and not the notices alone.
    """
    said: set[str] = set()

    def tell(step: Step) -> None:
        if step.what not in said and (everything or step.kind == "notice"):
            said.add(step.what)
            note(shown(step.what))

    return tell


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
        out().print(text.rstrip(), style=None if line else "bold")


def bold(text: str) -> Text:
    """Text that stands out."""
    return styled(text, "bold")


def styled(text: str, style: str) -> Text:
    """Text in a style of rich's."""
    from rich.text import Text

    return Text(shown(text), style)


def shown(text: str) -> str:
    """Text from a file, or its name, that can't command the terminal."""
    if text.isprintable():  # as nearly all of it is
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def amount(count: int) -> str:
    """A number of bytes in a unit of powers of ten, as disks and files have it."""
    from rich import filesize

    # Rounded first, or else 999,999 bytes were 1,000.0 kB.
    places = (len(str(count)) - 1) // 3 * 3 - 1  # one of three stays behind the point
    return filesize.decimal(round(count, -places) if places > 0 else count)
