"""Entries of a llamafile, or of any zip, as files."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pyllamafile import zipalign
from pyllamafile.appearing import appearing, exists, permitted
from pyllamafile.copying import Count, counted
from pyllamafile.errors import AccessError, NotFoundError, RefusedError
from pyllamafile.llamafile import read
from pyllamafile.paths import path_of, strings
from pyllamafile.progress import Progress, silent
from pyllamafile.zipalign import Member


def extract(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str] = ".",
    names: str | Sequence[str] = (),
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Take entries out of a llamafile or any zip.

    Args:
        path: The file.
        directory: Where to, made if it isn't there; nothing is ever written outside of it.
        names: Which entries; all if there are none.
        force: Whether existing files may be replaced.
        progress: Told about every step.

    Returns:
        The files written.

    Raises:
        PyllamafileError: A name is not there or leads outside, a file exists, or the
            content doesn't match its checksum.
    """
    path, root, names = path_of(path), path_of(directory), strings(names, "names")
    members = read(path).members
    for name in names:
        if name not in members:
            raise NotFoundError(f"{path}: has no entry {name!r}", hint="inspect lists them")
    chosen = [members[name] for name in dict.fromkeys(names)] if names else list(members.values())
    chosen = [member for member in chosen if not member.name.endswith("/")]
    try:
        if root.exists() and not root.is_dir():
            raise RefusedError(f"{root}: not a directory", path=root)
    except OSError as error:  # a name too long, a directory that may not be searched
        raise AccessError(f"{root}: {error.strerror}", path=root) from error
    targets = [(member, _inside(path, root, member)) for member in chosen]
    for _, target in targets:
        if target.exists() and not force:
            raise exists(target)
    done, total = 0, sum(member.size for member in chosen)
    with contextlib.ExitStack() as made:
        for member, target in targets:
            count = counted(progress or silent, f"extracting {path.name}", total, done)
            _make_folders(target, made)
            _extract_one(path, member, target, force, count)
            done += member.size
        made.pop_all()
    return [target for _, target in targets]


def _inside(path: Path, root: Path, member: Member) -> Path:
    """Where an entry goes, which is inside of `root` whatever its name says."""
    parts = member.name.split("/")
    hostile = (
        not {"", ".", ".."}.isdisjoint(parts)
        or "\\" in member.name
        or ":" in parts[0]
        or re.search(r"[\x00-\x1f]", member.name)
        or member.mode & 0o170000 == 0o120000  # a symbolic link
    )
    target = root.joinpath(*parts)
    if hostile or not target.parent.resolve().is_relative_to(root.resolve()):
        raise RefusedError(
            f"{path}: the entry {member.name!r} would be written outside of {root}, or is a link",
            hint="name the entries that you want",
        )
    return target


def _make_folders(target: Path, made: contextlib.ExitStack) -> None:
    """Make those that a file is in; those that stay empty go again at the stack's end."""
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        for folder in reversed(missing):
            made.callback(_remove_empty, folder)
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise AccessError(f"{target}: {error.strerror}", path=target) from error


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _extract_one(path: Path, member: Member, target: Path, force: bool, count: Count) -> None:
    mode = permitted(0o777 if member.mode & 0o100 else 0o666)
    with appearing(target, force=force, mode=mode) as (file, _):
        done = 0
        for chunk in zipalign.chunks(path, member):
            done += file.write(chunk)
            count(done)
