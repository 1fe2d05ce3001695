"""A file that gets its name when it is complete, and vanishes otherwise."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pyllamafile.errors import AccessError, ExistsError, PyllamafileError


@contextlib.contextmanager
def appearing(
    path: Path, size: int | None = None, *, force: bool = True, mode: int | None = None
) -> Iterator[tuple[BinaryIO, Path]]:
    """A file that gets the name `path` when all went well, and vanishes otherwise.

    Where the system can, the file has no name until it is complete, so that not even a
    SIGKILL leaves something behind.

    Args:
        path: Its name.
        size: How many bytes it will have, for the message when there is no room.
        force: Whether it may replace another file.
        mode: Its permissions; by default those that a new file has.

    Yields:
        The file, open for reading and writing, and where it can be read meanwhile.

    Raises:
        ExistsError: There is such a file, and `force` is not given.
        AccessError: It can't be written.
    """
    draft = path.with_name(f".pyllamafile-{os.urandom(8).hex()}")
    try:
        nameless = _nameless(path.parent)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL
        descriptor = os.open(draft, flags, 0o600) if nameless is None else nameless
        # Opened as `path`, for that is the name to appear in messages.
        with open(path, "w+b", opener=lambda *_: descriptor) as file:
            yield file, draft if nameless is None else _opened(nameless)
            file.flush()
            os.fchmod(descriptor, permitted(0o666) if mode is None else mode)
            os.fsync(descriptor)
            if nameless is None:
                draft.replace(path)
            else:
                _give_name(nameless, path, draft, force)
    except FileExistsError:
        raise exists(path) from None
    except OSError as error:
        full = error.errno == errno.ENOSPC and size is not None
        hint = f"{size:,} bytes are needed" if full else None
        raise AccessError(f"{path}: {error.strerror}", hint=hint, path=path) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def exists(path: Path) -> PyllamafileError:
    """The error that says that there is such a file already."""
    return ExistsError(f"{path}: exists already", hint="--force replaces it", path=path)


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder for what is written on the way, gone afterwards whatever happens.

    Raises:
        AccessError: It can't be made.
    """
    import tempfile  # which takes as long to import as all of the rest

    try:
        folder = tempfile.TemporaryDirectory(dir=beside, prefix=".pyllamafile-")
    except OSError as error:
        raise AccessError(f"{beside}: {error.strerror}", path=beside) from error
    with folder:
        yield Path(folder.name)


def _nameless(folder: Path) -> int | None:
    flag = getattr(os, "O_TMPFILE", 0)  # Linux
    if not flag or not _opened(0).parent.is_dir():
        return None
    try:
        return os.open(folder, os.O_RDWR | os.O_CLOEXEC | flag, 0o600)
    except OSError:
        return None  # this file system doesn't have it


def _opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


def _give_name(descriptor: int, path: Path, draft: Path, force: bool) -> None:
    """Name a nameless file, which by itself can't replace another."""

    def link(name: Path) -> None:
        # os.link follows a symbolic link only when it is given a folder.
        os.link(_opened(descriptor), name, src_dir_fd=descriptor)

    try:
        link(path)
    except FileExistsError:
        if not force:
            raise
        link(draft)
        draft.replace(path)


def permitted(mode: int) -> int:
    """Permissions less what the umask takes away."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mode & ~mask
