"""What a file system can do to a file without copying it: shift its content, share its blocks.

Linux's fallocate inserts whole blocks into a file of ext4 or XFS, or takes some out, and moves no
data for it (man 2 fallocate: FALLOC_FL_INSERT_RANGE, FALLOC_FL_COLLAPSE_RANGE). Each such call
happens as a whole or not at all, as far as a signal can tell, if the file ends with a whole block
(`zipalign.Layout.displacements` sees to that). Offsets and sizes are in bytes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

if sys.platform.startswith("linux"):
    import fcntl

ATTRIBUTE = "user.pyllamafile.in-place"
"""The extended attribute that a file is marked with while its content is shifted."""

PAGE = 4096
"""Bytes that are written by one call as a whole: no kill comes in the middle."""

_COLLAPSE, _INSERT = 0x08, 0x20  # linux/falloc.h
_FICLONE = 0x40049409  # linux/fs.h
_BLOCK = 65536  # what a shift has to be a multiple of


def unit(folder: Path) -> int | None:
    """What a file in this folder can be shifted by a multiple of, in bytes; None if it can't be.

    It is tried on a file without a name.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        size = max(os.statvfs(folder).f_bsize, PAGE)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * (2 * size))
            file.flush()
            os.setxattr(file.fileno(), ATTRIBUTE, b"")
            _fallocate(file.fileno(), _INSERT, size, size)
            _fallocate(file.fileno(), _COLLAPSE, 0, size)
    except OSError:
        return None
    return size if _BLOCK % size == 0 else None


def shares(folder: Path) -> bool:
    """Whether files in this folder can share blocks: then a copy of one takes no room either."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        size = max(os.statvfs(folder).f_bsize, PAGE)
        with tempfile.TemporaryFile(dir=folder) as one, tempfile.TemporaryFile(dir=folder) as other:
            one.write(b"x" * size)
            one.flush()
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
    except OSError:
        return False
    return True


def busy(path: Path) -> bool:
    """Whether somebody else has a file open, or mapped into memory, or that can't be told.

    The kernel grants a lease for writing only to who is alone with a file (man 2 fcntl).
    """
    try:
        with path.open("r+b", buffering=0) as file:
            # A signal that is ignored by default tells when somebody comes.
            fcntl.fcntl(file.fileno(), fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # also: it is a program that runs; it may not be written to
        return True
    return False


def insert(path: Path, at: int, size: int) -> None:
    """Put zeros into a file; what is behind them moves. Nothing is copied."""
    _change(path, _INSERT, at, size)


def collapse(path: Path, at: int, size: int) -> None:
    """Take a range out of a file; what is behind it moves. Nothing is copied."""
    _change(path, _COLLAPSE, at, size)


def _change(path: Path, how: int, at: int, size: int) -> None:
    with path.open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
        _fallocate(file.fileno(), how, at, size)
        os.fsync(file.fileno())


def _fallocate(fd: int, how: int, at: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, how, ctypes.c_int64(at), ctypes.c_int64(size)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def put(path: Path, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Write at offsets, and wait until it is on the disk."""
    with path.open("r+b", buffering=0) as file:
        for at, piece in pieces:
            file.seek(at)
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
