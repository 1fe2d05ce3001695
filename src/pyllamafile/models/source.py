"""Weights that were found: what they are called, and how to have them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyllamafile.copying import counted
from pyllamafile.errors import AccessError
from pyllamafile.models.gguf import Weights
from pyllamafile.progress import Progress

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Source:
    """Weights that were found, and how to have them as a GGUF.

    Attributes:
        name: What the GGUF is called, ``.gguf`` included.
        fetch: Gives the GGUF's path, of a split one the first file's; takes a folder for what
            has to be written, which the caller removes, and the progress.
        path: The file itself, where nothing has to be fetched.
        headers: Reads what the header says, without fetching the rest where that can be avoided.
        partners: What goes with it, each with its role in `fit.ROLES`.
        args: The options, each with its value, with which it is meant to run.
        remarks: What else belongs to it and can't be taken.
    """

    name: str
    fetch: Callable[[Path, Progress], Path]
    path: Path | None = None
    headers: Callable[[], tuple[Weights, ...]] | None = None
    partners: tuple[tuple[str, Source], ...] = ()
    args: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()


def gguf_name(name: str) -> str:
    """A file's name with the ending by which a runtime knows weights."""
    return name if name.endswith(".gguf") else f"{name.removesuffix('.GGUF')}.gguf"


def digest_of(path: Path, progress: Progress, start: bytes = b"", algorithm: str = "sha256") -> str:
    """The digest of a file in hex, behind some bytes that it begins with.

    Raises:
        AccessError: It can't be read.
    """
    digest = hashlib.new(algorithm, start)
    try:
        count = counted(progress, f"checking {path.name}", path.stat().st_size)
        done = 0
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                done += len(block)
                count(done)
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    return digest.hexdigest()
