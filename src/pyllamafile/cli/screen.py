"""What the terminal shows: text that can't command it, tables, one bar at a time.

rich is imported for a bar alone, because it takes longer than all of a command that is quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from pyllamafile.progress import Progress, Step

if TYPE_CHECKING:
    from pyllamafile.cli.bar import Bar


def say(*parts: str) -> None:
    """Print a line that the command was called for."""
    click.echo(" ".join(parts), color=_styles())


def note(*parts: str) -> None:
    """Print a line beside it, on standard error."""
    click.echo(" ".join(parts), err=True, color=_styles())


def _styles() -> bool | None:
    """Whether there are styles; None for: on a terminal."""
    if os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def fail(message: str, hint: str | None = None, code: int = 1) -> NoReturn:
    """Say what went wrong, and end with 1, or another exit status."""
    complain(message, hint)
    sys.exit(code)


def complain(message: str, hint: str | None = None) -> None:
    """Say what went wrong, and what to do about it."""
    lines = "\n".join(shown(line) for line in message.split("\n"))  # of a log, maybe
    note(styled("error:", "red"), lines)
    if hint:
        note(bold("hint:"), shown(hint))


def warn(message: str, hint: str) -> None:
    """Say what may not be as wanted, and what to do about it."""
    note(styled("warning:", "yellow"), shown(message))
    note(bold("hint:"), shown(hint))


# How far it is


@contextlib.contextmanager
def progress(*, words: bool = False) -> Iterator[Progress]:
    """A bar on the terminal for what takes over half a second; notices, in lines of their own.

    Args:
        words: Whether anywhere else each new thing is said in a line, instead of nothing at all.
    """
    if not on_terminal():
        yield in_words(words)
        return
    bar: Bar | None = None
    started: float | None = None

    def tell(step: Step) -> None:
        nonlocal bar, started
        if started is None:  # and not before, when modules are imported
            started = time.monotonic()
        if step.kind == "notice":
            (bar.note if bar else note)(shown(step.what))
        # Something quick may be told but once; of what one waits for the end isn't known.
        elif step.kind == "waiting" or bar or time.monotonic() - started >= 0.5:
            bar = bar or new_bar()
            bar.show(step)

    try:
        yield tell
    finally:
        if bar:
            bar.stop()


def on_terminal() -> bool:
    """Whether somebody looks at standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def new_bar() -> Bar:
    """A bar on standard error, which shows nothing yet."""
    from rich.console import Console

    from pyllamafile.cli.bar import Bar

    return Bar(Console(stderr=True, soft_wrap=True, highlight=False, emoji=False, markup=False))


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


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], marked: int | None = None
) -> None:
    """Columns as wide as their widest cell, whatever the terminal; numbers to the right.

    Args:
        header: What is above the columns.
        rows: What is in them.
        marked: The number of a row that stands out.
    """
    cells = [[shown(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [all(isinstance(cell, int) for cell in column) for column in zip(*rows, strict=True)]
    for line, row in enumerate(cells):
        text = "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        )
        text = text.rstrip()
        say(bold(text) if line == 0 or line - 1 == marked else text)


def bold(text: str) -> str:
    """Text that stands out."""
    return styled(text)


def styled(text: str, colour: str | None = None) -> str:
    """Text that stands out in a colour; in none for who doesn't want any (no-color.org)."""
    return click.style(shown(text), None if os.environ.get("NO_COLOR") else colour, bold=True)


def shown(text: str) -> str:
    """Text from a file, or its name, that can't command the terminal."""
    if text.isprintable():  # as nearly all of it is
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")


def amount(count: int) -> str:
    """A number of bytes in a unit of powers of ten, as disks and files have it."""
    if count < 1000:
        return "1 byte" if count == 1 else f"{count} bytes"
    # Rounded first, or else 999,999 bytes were 1,000.0 kB.
    places = (len(str(count)) - 1) // 3 * 3 - 1  # one of three stays behind the point
    rounded = round(count, -places)
    power = min((len(str(rounded)) - 1) // 3, len(_UNITS))
    return f"{rounded / 1000**power:,.1f} {_UNITS[power - 1]}"
