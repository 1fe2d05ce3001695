"""What building takes: the cache's folders, logs, locks, and the programs that pip installs."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pyllamafile.errors import AccessError, UnavailableError
from pyllamafile.native.building import aside
from pyllamafile.progress import Progress, Step

if TYPE_CHECKING:  # only who compiles takes a lock
    from filelock import FileLock


def cache() -> Path:
    """The folder of everything that was built: ``$PYLLAMAFILE_CACHE`` or the user's cache."""
    if given := os.environ.get("PYLLAMAFILE_CACHE"):
        return Path(given).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("pyllamafile")


def folder(name: str) -> Path:
    """A folder of the cache, made if it isn't there."""
    path = cache() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AccessError(
            f"{path}: {error.strerror}",
            hint="set PYLLAMAFILE_CACHE to a folder that you can write to",
            path=path,
        ) from error
    return path


def write(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


@contextlib.contextmanager
def lock(name: str, doing: str, tell: Progress) -> Iterator[None]:
    """Let one process at a time do something; the others wait, and say so."""
    from filelock import FileLock

    held = FileLock(folder("locks") / name)
    if not _acquired(held, 0):
        tell(Step("waiting", f"waiting for another pyllamafile that {doing}"))
        while not _acquired(held, 0.2):
            aside.check()
    try:
        yield
    finally:
        held.release()


def _acquired(held: FileLock, seconds: float) -> bool:
    from filelock import Timeout

    try:
        held.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def run(
    command: Sequence[str],
    *,
    log: str,
    what: str,
    append: bool = False,
    each_line: Callable[[str], None] | None = None,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Run a program with its output in a log; raises with the log's last lines if it fails."""
    path = _log_path(log)
    with (
        path.open("ab" if append else "wb", buffering=0) as file,
        subprocess.Popen(
            aside.command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**environment(), **(variables or {})},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            aside.started(process)
            for line in _lines(process.stdout, file):
                if each_line:
                    each_line(line.decode(errors="replace"))
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code != 0:
        lines = list(filter(str.strip, path.read_text(errors="replace").splitlines()))
        tail = "\n".join(f"  {line}" for line in lines[-12:])
        raise UnavailableError(
            f"{what} failed ({Path(command[0]).name} ended with {code}):\n{tail}",
            hint=log_hint(log),
        )


def _lines(output: IO[bytes], log: IO[bytes]) -> Iterator[bytes]:
    """What a program says as soon as it says it, copied to the log.

    A line ends where the next begins: a bar that is drawn over itself is many lines, which only
    carriage returns part.
    """
    rest = b""
    while block := os.read(output.fileno(), 1 << 16):
        log.write(block)
        *lines, rest = re.split(rb"[\r\n]+", rest + block)
        yield from lines
    if rest:
        yield rest


def environment() -> dict[str, str]:
    """What every program gets: where our cache was moved, those of zig and npm are in it."""
    if not os.environ.get("PYLLAMAFILE_CACHE"):
        return dict(os.environ)
    moved = {"ZIG_GLOBAL_CACHE_DIR": cache() / "zig", "npm_config_cache": cache() / "npm"}
    return {**os.environ, **{name: str(path) for name, path in moved.items()}}


def _log_path(name: str) -> Path:
    return folder("logs") / f"{name}.log"


def log_hint(name: str) -> str:
    """Where the log of that name is, in words."""
    return f"the whole log is {_log_path(name)}"


def package(name: str) -> Path:
    """The folder of an installed package that carries programs."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise _missing(f"the Python package {name}")
    return Path(spec.origin).parent


def program(name: str) -> Path:
    """A program that pip installed, or else one on the PATH."""
    installed = Path(sysconfig.get_path("scripts")) / name
    found = str(installed) if installed.exists() else shutil.which(name)
    if not found:
        raise _missing(f"the program {name}")
    return Path(found)


def pip() -> list[str]:
    """The command that starts pip: the environment's own, or, where uv made it without one, uv's.

    Raises:
        UnavailableError: There is neither.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]  # `uv pip` can't download
    raise UnavailableError(
        f"llama.cpp's source is fetched with pip, and {sys.executable} has none",
        hint="python -m ensurepip, or install uv",
    )


def _missing(what: str) -> UnavailableError:
    return UnavailableError(
        f"{what} is missing, which compiling takes", hint="pip install 'pyllamafile[runtimes]'"
    )


def script(path: Path, *command: str | Path, before: str = "") -> Path:
    """Write a program that stands for a command and the first of its arguments."""
    words = " ".join(shlex.quote(str(word)) for word in command)
    write(path, f'#!/bin/sh\n{before}exec {words} "$@"\n'.encode())
    path.chmod(0o755)
    return path


@functools.cache  # every target's key has them
def version(package: str) -> str:
    """The version of an installed package, or ``missing``."""
    from importlib import metadata  # a wheel that brings the runtimes has no use for it

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
