"""A plan becomes a file: written, checked, with its companion for Windows."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

from pyllamafile import zipalign
from pyllamafile.appearing import appearing, permitted
from pyllamafile.errors import DamagedError, RefusedError
from pyllamafile.ops.verify import verify
from pyllamafile.plan import Plan
from pyllamafile.progress import Progress


def write(file: BinaryIO, plan: Plan, progress: Progress) -> None:
    """Write a whole llamafile.

    Raises:
        PyllamafileError: Something that goes in can't be read, or isn't what it was.
    """
    for at, piece in plan.engine.pieces():
        file.seek(at)
        file.write(piece)
    file.flush()
    zipalign.write(file, plan.zip, progress)


def check_written(path: Path, destination: Path) -> None:
    """A second opinion on the structure; the contents were hashed while they were copied."""
    for problem in verify(path, contents=False):
        raise DamagedError(
            f"{destination}: the file came out wrong ({problem.where}: {problem.what})",
            hint="this is a bug in pyllamafile: please report it",
            path=destination,
        )


def companion_path(path: Path) -> Path:
    """The name by which a runtime for Windows finds `path` beside itself."""
    if path.suffix.lower() == ".exe":
        raise RefusedError(
            f"{path}: Windows can't start a program of 4 GiB or more",
            hint="name it .llamafile: the .exe that starts it is then written beside it",
            path=path,
        )
    return path.with_name(f"{path.name.removesuffix('.llamafile')}.exe")


def write_companion(path: Path, program: bytes, force: bool, undo: contextlib.ExitStack) -> None:
    """Write the program that starts a file on Windows, before the file itself gets its name."""
    new = not path.exists()
    with appearing(path, len(program), force=force, mode=permitted(0o777)) as (file, _):
        file.write(program)
    if new:
        undo.callback(path.unlink, missing_ok=True)
