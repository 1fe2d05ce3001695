"""Paths as callers give them."""

from __future__ import annotations

import os
from pathlib import Path

from pyllamafile.errors import NotFoundError


def path_of(given: str | os.PathLike[str]) -> Path:
    """A path that a file can have.

    Raises:
        NotFoundError: There is a NUL in it, which no system allows.
    """
    text = os.fspath(given)
    if "\0" in text:
        raise NotFoundError(f"{text!r}: no such file: a path can't hold a NUL")
    return Path(given)
