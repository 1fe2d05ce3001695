"""Paths and lists as callers give them."""

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
        NotFoundError: There is a NUL in it, which no system allows.
    """
    text = os.fspath(given)
    if "\0" in text:
        raise NotFoundError(f"{text!r}: no such file: a path can't hold a NUL")
    return Path(given)


@overload
def several(given: str | Iterable[str]) -> list[str]: ...


@overload
def several(given: PathLike | Iterable[Given]) -> list[PathLike | Given]: ...


def several(given: Any) -> list[Any]:
    """What was given as a list; a single path or name is a list of one."""
    return [given] if isinstance(given, (str, os.PathLike)) else list(given)


def named(given: PathLike | tuple[PathLike, str]) -> tuple[Path, str]:
    """A file and the name of its entry, which is its own if it comes alone.

    Raises:
        NotFoundError: As `path_of`.
    """
    path, name = given if isinstance(given, tuple) else (given, Path(given).name)
    return path_of(path), name
