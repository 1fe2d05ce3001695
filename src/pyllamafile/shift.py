"""Weights that stay where the disk has them, while what is in front of them changes.

Linux's fallocate puts whole blocks into a file of ext4 or XFS, or takes some out, and moves no
data for it (man 2 fallocate: FALLOC_FL_INSERT_RANGE, FALLOC_FL_COLLAPSE_RANGE). Each such call
happens as a whole or not at all, as far as a signal can tell, if the file ends with a whole block
(`zipalign.Layout.moves` sees to that). What is done with it here goes in steps, and between any
two of them, and within each, the process may be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyllamafile import zipalign
from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import BLOCK
from pyllamafile.plan import Engine, Plan, manifest
from pyllamafile.zipalign import Digest, Entry, Member

if sys.platform.startswith("linux"):
    import fcntl

Step = Callable[[], None]

Pieces = Callable[[], Iterable[tuple[int, bytes]]]
"""Gives what an engine consists of, one after the other: where it belongs, and its bytes."""

MARK = "user.pyllamafile.in-place"
"""The extended attribute of a GGUF that is becoming a llamafile: how to undo it."""

_COLLAPSE, _INSERT = 0x08, 0x20  # linux/falloc.h
_FICLONE = 0x40049409  # linux/fs.h
_MOST_PART = 1 << 28  # bytes of a head or a packed program; they have some MiB
_PAGE = 4096  # what of a head is written last: no kill comes in the middle of it


# ------------------------------------------------------------ the file system


def unit(folder: Path) -> int | None:
    """What a file in this folder can be shifted by a multiple of, in bytes; None if it can't be.

    It is tried on a file without a name.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        size = max(os.statvfs(folder).f_bsize, _PAGE)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * (2 * size))
            file.flush()
            os.setxattr(file.fileno(), MARK, b"")
            _fallocate(file.fileno(), _INSERT, size, size)
            _fallocate(file.fileno(), _COLLAPSE, 0, size)
    except OSError:
        return None
    return size if BLOCK % size == 0 else None


def shares(folder: Path) -> bool:
    """Whether files in this folder can share blocks: then a copy of one takes no room either."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        size = max(os.statvfs(folder).f_bsize, _PAGE)
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


def _put(path: Path, pieces: Iterable[tuple[int, bytes]]) -> None:
    """Write at offsets, and wait until it is on the disk."""
    with path.open("r+b", buffering=0) as file:
        for at, piece in pieces:
            file.seek(at)
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())


# ------------------------------------------------- another engine, same weights


@dataclass(frozen=True)
class Exchange:
    """Another engine for a llamafile, under weights that are not copied.

    The new engine is put behind the old one, where nobody looks, then the new directory behind
    everything, and last the old engine is taken out. Before something moves, the directory is
    written twice, so that who starts the file finds the one that was right before as long as
    nothing has moved, and then the other (`zipalign.Layout.moves`). So at any moment the file is
    the old one or the new one. What was killed before the last move is ended by `finish`; what was
    killed earlier is just another file with something in front of its weights.

    Attributes:
        path: The file.
        engine: The new one.
        entries: What is added to the zip or replaced in it, the manifest last.
        remove: Names of entries that go.
        pieces: The new engine's bytes.
        old: How much goes from the front, in bytes.
        new: How much comes there.
    """

    path: Path
    engine: Engine
    entries: Sequence[Entry]
    remove: Collection[str]
    pieces: Pieces
    old: int
    new: int

    def steps(self) -> tuple[Step, ...]:
        """What is to be done, in order. Killed within one or behind it, the file still starts."""
        path, old, new = self.path, self.old, self.new
        return (
            lambda: _add(path, [], (), new),
            lambda: insert(path, old, new),
            lambda: _put(path, ((old + at, piece) for at, piece in self.pieces())),
            lambda: _add(path, self.entries, self.remove, -old),
            lambda: collapse(path, 0, old),
            lambda: zipalign.compact(path),
        )

    def run(self) -> None:
        """Do it, or leave the file as it was.

        Raises:
            PyllamafileError: The file can't be written.
            OSError: The same.
        """
        before = zipalign.read(self.path).members
        try:
            for step in self.steps():
                step()
        except BaseException:
            with contextlib.suppress(OSError, PyllamafileError):  # it starts as it is, too
                self._settle(before)
            raise

    def _settle(self, before: Sequence[Member]) -> None:
        """Undo what was begun, or finish what is nearly done."""
        now = zipalign.read(self.path).members
        if now[0].header_offset == before[0].header_offset + self.new:
            if [_moved(member, self.new) for member in before] == [_moved(m, 0) for m in now]:
                _add(self.path, [], (), -self.new)
                collapse(self.path, self.old, self.new)
            else:
                collapse(self.path, 0, self.old)
        zipalign.compact(self.path)


def exchange(
    path: Path,
    engine: Engine,
    entries: Sequence[Entry],
    remove: Collection[str],
    pieces: Pieces,
) -> Exchange | None:
    """Plan to put another engine under the weights of a file; None if they can't stay.

    Args:
        path: A llamafile, or any zip with something in front.
        engine: The new engine.
        entries: What is added to the zip or replaced in it.
        remove: Names of entries that go.
        pieces: The new engine's bytes.
    """
    block = unit(path.parent)
    members = zipalign.read(path).members
    if block is None or not members or busy(path):
        return None
    first = members[0].header_offset
    old = first // block * block
    # Weights end up aligned to blocks. Where an upgrade was killed they may be off now, all alike.
    off = {m.data_offset % BLOCK for m in members if m.name.endswith(".gguf")} or {0}
    new = engine.end + (old - max(off) - engine.end) % BLOCK
    if not old or len(off) > 1 or new % block:
        return None
    with path.open("rb") as file:
        file.seek(old)
        if any(file.read(first - old)):  # something of the old engine would move
            return None
    try:
        for move in (new, -old):
            kept = [member for member in members if member.name not in remove]
            gone = {entry.name for entry in entries}
            kept = [member for member in kept if member.name not in gone]
            zipalign.layout(entries, members[-1].end, kept=kept, moves=(0, move), former=members)
    except PyllamafileError:
        return None
    return Exchange(path, engine, entries, remove, pieces, old, new)


def finish(path: Path, manifest: Mapping[str, Any]) -> None:
    """End an exchange that was killed when only the old engine was left to be taken out.

    Args:
        path: A llamafile with something in front.
        manifest: What its manifest says; nothing is done unless all of that engine is there.

    Raises:
        PyllamafileError: It is no archive.
        OSError: It can't be read or written.
    """
    archive = zipalign.read(path)
    block = unit(path.parent) if archive.base else None
    if block is None or archive.base % block or busy(path):
        return
    room = archive.members[0].header_offset - archive.base
    if _stands(path, archive.base, room, manifest):
        collapse(path, 0, archive.base)
        zipalign.compact(path)


def _stands(path: Path, at: int, room: int, manifest: Mapping[str, Any]) -> bool:
    """Whether an engine stands at an offset, head and programs, in so many bytes."""
    try:
        parts = [(0, manifest["head"]["size"], manifest["head"]["sha256"])]
        for runtime in manifest["runtimes"]:
            parts.append((runtime["offset"], runtime["packed_size"], runtime["packed_sha256"]))
        inside = (0 <= start <= room - size and 0 < size < _MOST_PART for start, size, _ in parts)
        if not all(inside):
            return False
        with path.open("rb") as file:
            for start, size, sha256 in parts:
                file.seek(at + start)
                if hashlib.sha256(file.read(size)).hexdigest() != sha256:
                    return False
    except (KeyError, TypeError, ValueError):  # it is somebody else's, or damaged
        return False
    return True


def _add(path: Path, entries: Sequence[Entry], remove: Collection[str], move: int) -> None:
    zipalign.add(path, entries, remove=remove, moves=(0, move))


def _moved(member: Member, by: int) -> tuple[str, int, int]:
    return member.name, member.crc, member.header_offset + by


# ------------------------------------------------- a GGUF becomes a llamafile


@dataclass(frozen=True)
class Conversion:
    """A GGUF that becomes a llamafile, without room for a copy.

    The zip's end is written behind the weights, which leaves a GGUF; then room is made in front of
    them, and the engine written into it, its first bytes last. From the one to the other the file
    is neither a GGUF nor a llamafile; an attribute of it says how to undo that (`undo`).

    Attributes:
        path: The GGUF.
        destination: What it is called afterwards, on the same file system.
        plan: The llamafile, with these weights as its first entry.
        pieces: What stands in front of its zip.
        read: Told how many bytes of the weights were read.
    """

    path: Path
    destination: Path
    plan: Plan
    pieces: Pieces
    read: Callable[[int], None] = lambda done: None

    @cached_property
    def digest(self) -> Digest:
        """What the weights are; they are read once for it."""
        return zipalign.digest(self.path, self.read)

    @property
    def room(self) -> int:
        """How far the weights move, in bytes."""
        return self.plan.layout.placed[0].data_offset

    def steps(self) -> tuple[Step, ...]:
        """What is to be done, in order; `undo` knows how far it came."""
        return (
            self._mark,
            self._append,
            lambda: insert(self.path, 0, self.room),
            self._fill,
            lambda: _put(self.path, [(0, self.plan.head[:_PAGE])]),
            self._name,
        )

    def run(self) -> None:
        """Do it, or leave the GGUF as it was.

        Raises:
            PyllamafileError: The file can't be read or written.
            OSError: The same.
        """
        _ = self.digest  # before anything is touched
        try:
            for step in self.steps():
                step()
        except BaseException:
            if self.path.exists():  # else it has its new name, which is the last that happens
                undo(self.path)
            raise

    @cached_property
    def _model(self) -> tuple[Member, bytes]:
        """The weights where they are now, and the header that they get."""
        entry = self.plan.layout.placed[0].entry
        assert isinstance(entry, Entry)
        return zipalign.standing(entry, 0, self.digest)

    def _mark(self) -> None:
        os.setxattr(self.path, MARK, f"{self._model[0].size} {self.room}".encode())

    def _append(self) -> None:
        with self.path.open("r+b") as file:
            model, _ = self._model
            *others, _ = [item.entry for item in self.plan.layout.placed[1:]]
            added = [entry for entry in others if isinstance(entry, Entry)]
            added.append(manifest(self.plan.engine.facts, {model.name: self.digest}, added))
            layout = zipalign.layout(added, model.end, kept=[model], moves=(self.room,))
            zipalign.write(file, layout)
            os.fsync(file.fileno())

    def _fill(self) -> None:
        """Everything in front of the weights but the very first bytes."""
        _, header = self._model
        body = ((at, piece) if at else (_PAGE, piece[_PAGE:]) for at, piece in self.pieces())
        _put(self.path, body)
        _put(self.path, [(self.room - len(header), header)])

    def _name(self) -> None:
        mode = self.path.stat().st_mode
        self.path.chmod(mode & 0o777 | (mode & 0o444) >> 2)  # who may read it may start it
        self.path.replace(self.destination)
        os.removexattr(self.destination, MARK)


def undo(path: Path) -> bool:
    """Make a GGUF again of what began to become a llamafile; False if it is no such file.

    Raises:
        PyllamafileError: It is not what it was left as.
        OSError: It can't be written.
    """
    try:
        size, room = map(int, os.getxattr(path, MARK).split())
    except (AttributeError, OSError, ValueError):
        return False
    if not _is_gguf(path, 0):
        if not _is_gguf(path, room):
            raise PyllamafileError(f"{path}: began to become a llamafile, and was changed then")
        collapse(path, 0, room)
    os.truncate(path, size)
    os.removexattr(path, MARK)
    return True


def _is_gguf(path: Path, at: int) -> bool:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(4) == b"GGUF"
