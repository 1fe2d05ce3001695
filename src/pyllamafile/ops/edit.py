"""More in a finished file, and less: `add` and `remove`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyllamafile import plan, zipalign
from pyllamafile.errors import NotFoundError, RefusedError
from pyllamafile.llamafile import ARGS, GUI, MANIFEST, WEIGHTS, check_args, read
from pyllamafile.models import gguf
from pyllamafile.models.source import PathLike
from pyllamafile.paths import named, path_of, several
from pyllamafile.progress import Progress, silent


def add(
    path: PathLike,
    files: PathLike | Sequence[PathLike | tuple[PathLike, str]],
    *,
    progress: Progress | None = None,
) -> list[str]:
    """Put more files into a finished file, in place; weights so that they can be mapped.

    Entries of the same name are replaced. Nothing that stays is moved off its alignment, and
    `verify` holds afterwards. Killed at any moment, it leaves the old file or the new one.

    Args:
        path: The llamafile.
        files: What to add, each by itself or with the name of its entry; `.args` may be one.
        progress: Told about every step.

    Returns:
        The names of the entries.

    Raises:
        PyllamafileError: A file can't be read or be added, or the llamafile can't be written.
    """
    path = path_of(path)
    found = read(path)
    found.check_ours()
    entries = []
    for given, name in map(named, several(files)):
        if name == MANIFEST or (found.has_gui and name.startswith(GUI)):
            raise RefusedError(
                f"{path}: cannot add {name!r}: pyllamafile itself writes what has such a name",
                path=path,
            )
        entries.append(zipalign.from_file(given, name, align=plan.alignment(name)))
        if name.endswith(WEIGHTS):
            gguf.read(given)  # what is none is refused
        if name == ARGS:
            check_args(given, entries[-1].full_size)
            _check_text(given)
    zipalign.add(path, [*entries, found.updated_manifest(entries)], progress=progress or silent)
    return [entry.name for entry in entries]


def remove(path: PathLike, names: str | Sequence[str]) -> None:
    """Take entries out of a finished file, in place.

    Their room is given back if at most 16 MiB stand behind them, and otherwise left unused.

    Raises:
        PyllamafileError: There is no such entry, or the file needs it, or can't be written.
    """
    path, names = path_of(path), several(names)
    found = read(path)
    found.check_ours()
    for name in names:
        if name not in found.members:
            raise NotFoundError(
                f"{path}: has no entry {name!r}", hint="inspect lists them", path=path
            )
        if name == MANIFEST:
            raise RefusedError(
                f"{path}: {name} can't be removed: it says what is in the file", path=path
            )
    zipalign.add(path, [found.updated_manifest([], names)], remove=set(names))


def _check_text(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: not UTF-8 text", path=path) from error
