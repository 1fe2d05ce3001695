"""More in a finished file, and less: `add` and `remove`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pyllamafile import arguments, engine, plan, zipalign
from pyllamafile.errors import AccessError, NotFoundError, RefusedError
from pyllamafile.llamafile import (
    ARGS,
    GPU,
    GUI,
    MANIFEST,
    PROOF,
    SIGNATURE,
    STATE,
    WEIGHTS,
    Llamafile,
    read,
)
from pyllamafile.models import gguf
from pyllamafile.models.fit import unmappable, unsound
from pyllamafile.models.source import PathLike
from pyllamafile.paths import named, path_of, several, strings
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
    pairs = [named(each) for each in several(files)]
    for given, name in pairs:
        own = {MANIFEST, SIGNATURE, STATE, *([PROOF] if found.has_proof else [])}
        if name in own or name.startswith(GPU) or (found.has_gui and name.startswith(GUI)):
            raise RefusedError(
                f"{path}: cannot add {name!r}: pyllamafile itself writes what has such a name",
                path=path,
            )
        entry = zipalign.from_file(given, name, align=plan.alignment(name))
        if name.endswith(WEIGHTS):  # what is none, or can't be run, is refused
            arguments.check_nameable(given, name)
            facts = gguf.read(given)
            if problem := unmappable(facts):
                raise RefusedError(f"{given}: {problem}", path=given)
            if facts.kind == "model" and not facts.split:  # the other parts may come another time
                engine.check_weights([given], unsound(facts))
        engine.check_text(given, name)
        if name == ARGS:
            text = arguments.of_file(given)
            arguments.check(text, {*found.members, *(name for _, name in pairs)}, str(given), given)
            engine.check_arguments(text, str(given), given)
            entry = zipalign.Entry(name, text, mode=entry.mode)
        entries.append(entry)
    stale = found.stale([entry.name for entry in entries])
    entries.append(found.updated_manifest(entries, stale))
    _change(found, entries, {*found.signature_entry, *stale}, progress or silent)
    return [entry.name for entry in entries[:-1]]


def remove(path: PathLike, names: str | Sequence[str], *, progress: Progress | None = None) -> None:
    """Take entries out of a finished file, in place.

    Their room is given back if at most 16 MiB stand behind them, and otherwise left unused.

    Args:
        path: The llamafile.
        names: Of the entries.
        progress: Told what else is gone: the signature.

    Raises:
        PyllamafileError: There is no such entry, or the file needs it, or can't be written.
    """
    path, names = path_of(path), strings(names, "names")
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
        if name.startswith(GPU) and found.is_engine(name):
            raise RefusedError(
                f"{path}: {name} can't be removed: it belongs to the engine",
                hint=f"pyllamafile upgrade {path} --no-gpu takes all of that out",
                path=path,
            )
    _check_unnamed(found, names)
    if set(names) == {SIGNATURE}:
        zipalign.add(path, [], remove={SIGNATURE})
        return
    stale = found.stale(names)
    gone = {*names, *stale, *found.signature_entry}
    _change(found, [found.updated_manifest([], [*names, *stale])], gone, progress or silent)


def _change(
    found: Llamafile, entries: Sequence[zipalign.Entry], gone: Collection[str], progress: Progress
) -> None:
    """Add and remove entries, and say what is no longer right: a signature, a state, an icon."""
    changed = {*gone, *(entry.name for entry in entries)}
    lost = [*found.unsigned(), *found.lost_state(gone), *found.old_look(changed)]
    zipalign.add(found.path, entries, remove=gone, progress=progress)
    for step in lost:
        progress(step)


def _check_unnamed(found: Llamafile, gone: Collection[str]) -> None:
    """Refuse to take out weights that the default arguments name: the file would not start."""
    left = found.members.keys() - set(gone)
    if ARGS not in left or not any(name.endswith(WEIGHTS) for name in gone):
        return
    text = found.content(ARGS)
    before = list(arguments.missing(text, found.members))
    for name in arguments.missing(text, left):
        if name not in before:
            raise RefusedError(
                f"{found.path}: its .args names what would be gone: "
                f"line {name.line}: {name.option} @{name.name}",
                hint=f"change that first: pyllamafile add {found.path} FILE=.args",
                path=found.path,
            )


def check_args(file: Path, entries: Collection[str]) -> None:
    """Refuse a file that is to become `.args` byte for byte, if no llamafile starts with it.

    Args:
        file: The file.
        entries: The names of the entries beside it.

    Raises:
        PyllamafileError: None does, or it can't be read.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(arguments.MOST + 1)
    except OSError as error:
        raise AccessError(f"{file}: {error.strerror}", path=file) from error
    arguments.check(text, entries, str(file), file)
    engine.check_arguments(text, str(file), file)
