"""Work beside the work: in a thread, with programs that leave the others first choice."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

_NICENESS = 10  # a tenth of what others get, and all that they leave


class StoppedError(Exception):
    """Ends what is done aside; nobody sees it."""


class Aside(Generic[Result]):
    """Something that is done in a thread until the `with` ends, which ends its programs, too.

    Args:
        work: What is done.
        nice: Whether its programs take only what others leave.
    """

    def __init__(self, work: Callable[[], Result], *, nice: bool = True) -> None:
        self._work = work
        self.nice = nice
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.stopped = False
        self._value: list[Result] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,))

    def result(self) -> Result:
        """What came of it, when it is done; raises what it raised."""
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self._value[0]

    def __enter__(self) -> Aside[Result]:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self.stopped = True
            if self._process:
                self._process.terminate()
        self._thread.join()

    def _run(self) -> None:
        _CURRENT.set(self)
        try:
            self._value.append(self._work())
        except BaseException as error:
            self.error = error

    def started(self, process: subprocess.Popen[bytes]) -> None:
        """Take over a program that the work has just started."""
        with self._lock:
            self._process = process
            if self.stopped:
                process.terminate()


_CURRENT: ContextVar[Aside[Any] | None] = ContextVar("aside", default=None)


def check() -> None:
    """Has to be called by whoever waits for something else than a program.

    Raises:
        StoppedError: Nobody waits for what is done here any more.
    """
    aside = _CURRENT.get()
    if aside and aside.stopped:
        raise StoppedError


def command(words: Sequence[str]) -> Sequence[str]:
    """A command as it is started here: nice, if that is wanted of what is done here."""
    aside = _CURRENT.get()
    nice = shutil.which("nice") if aside and aside.nice else None
    return [nice, "-n", str(_NICENESS), *words] if nice else words


def started(process: subprocess.Popen[bytes]) -> None:
    """Has to be told of every program that was started, so that it can be ended."""
    if aside := _CURRENT.get():
        aside.started(process)
