"""Paths, names and lists of them, as callers give them.

A value of a wrong type, such as None or 5, is the mistake of a program and a `TypeError`. What a
user may have typed is a `PyllamafileError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, overload

from pyllamafile.errors import NotFoundError

PathLike = str | os.PathLike[str]
Given = TypeVar("Given")


def path_of(given: str | os.PathLike[str]) -> Path:
    """A path that a file can have.

    Raises:
        NotFoundError: A character in it is one that no system allows.
    """
    path = Path(given)
    try:
        problem = "a path can't hold a NUL" if b"\0" in os.fsencode(path) else None
    except UnicodeEncodeError:
        problem = "a path can't hold half a surrogate pair"
    if problem:
        raise NotFoundError(f"{str(path)!r}: no such file: {problem}")
    return path


@overload
def several(given: str | Iterable[str]) -> list[str]: ...


@overload
def several(given: PathLike | Iterable[Given]) -> list[PathLike | Given]: ...


def several(given: Any) -> list[Any]:
    """What was given as a list; a single path or name is a list of one."""
    return [given] if isinstance(given, (str, os.PathLike)) else list(given)


def strings(given: str | Iterable[str], what: str) -> list[str]:
    """The same for strings alone.

    Args:
        given: One, or several.
        what: What they are called, for an error.

    Raises:
        TypeError: Something is no string.
    """
    found = several(given)
    for each in found:
        if not isinstance(each, str):
            raise TypeError(f"{what}: {each!r} is no string")
    return found


def named(given: PathLike | tuple[PathLike, str]) -> tuple[Path, str]:
    """A file and the name of its entry, which is its own if it comes alone.

    Raises:
        NotFoundError: As `path_of`.
        TypeError: It is neither a path nor a pair of a path and a string.
    """
    if not isinstance(given, tuple):
        return path_of(given), path_of(given).name
    if len(given) != 2 or not isinstance(given[1], str):
        raise TypeError(f"{given!r} is no pair of a path and a string")
    return path_of(given[0]), given[1]
