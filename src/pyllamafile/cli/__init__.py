"""The command line: the only part that prints or exits.

To ask for help alone takes click and `program`. What a command takes beside them is imported when
the command is called.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TextIO, cast

import click

from pyllamafile.cli.program import program
from pyllamafile.errors import PyllamafileError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit.

    With 0 when it is done, 1 failed, 2 asked in the wrong way, 130 interrupted, and what a shell
    says of a signal that ended it: 143 for SIGTERM, 129 for SIGHUP. 3 to 5 are `verify`'s verdicts
    on signatures.
    """
    try:
        with (
            _ending_on_signals(),
            _losing_no_interrupt(),
            contextlib.redirect_stdout(sys.stdout and cast(TextIO, _Output(sys.stdout))),
        ):
            code = program.main(arguments, prog_name="pyllamafile", standalone_mode=False)
        sys.exit(code)
    except PyllamafileError as error:
        _fail(error.message, error.hint)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except OSError as error:  # nobody thought of it; click and rich see to a closed pipe
        reason = error.strerror or str(error)
        _fail(f"{error.filename}: {reason}" if error.filename else reason)
    finally:
        _drop_unwritten()


def _fail(message: str, hint: str | None = None) -> NoReturn:
    from pyllamafile.cli import screen

    screen.fail(message, hint)


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let those signals that would just end the program leave as little behind as Ctrl-C."""

    def end(number: int, frame: object) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # one is enough: tidying up takes its time
        sys.exit(128 + number)

    ending = [number for name in _ENDING if (number := getattr(signal, name, None))]
    # Not those that are ignored, as by nohup.
    before = [number for number in ending if signal.getsignal(number) is signal.SIG_DFL]
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_DFL)


_ENDING = ("SIGTERM", "SIGHUP")


@contextlib.contextmanager
def _losing_no_interrupt() -> Iterator[None]:
    """Raise a KeyboardInterrupt once more that came where Python drops what is raised.

    It does so in what it calls when an object goes, which every import has.
    """

    def again(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident or 0
            strike = functools.partial(signal.pthread_kill, main, signal.SIGINT)
            threading.Timer(0.01, strike).start()  # when it is out of there
        else:
            before(dropped)

    before, sys.unraisablehook = sys.unraisablehook, again
    try:
        yield
    finally:
        sys.unraisablehook = before


class _Output:
    """Standard output, whose errors name it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._named():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._named():
            self._stream.flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = "standard output"
            raise


def _drop_unwritten() -> None:
    """Else Python tries it again when it exits, and complains in its own way."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
