"""A GGUF that becomes a llamafile itself: `build --in-place`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pyllamafile import copying, shift, zipalign
from pyllamafile.copying import Digest
from pyllamafile.errors import AccessError, DamagedError, RefusedError
from pyllamafile.llamafile import manifest_entry
from pyllamafile.models.gguf import shards
from pyllamafile.models.source import Source, gguf_name
from pyllamafile.plan import File, Plan
from pyllamafile.progress import Progress, silent
from pyllamafile.shift import ATTRIBUTE, PAGE
from pyllamafile.zipalign import Entry, Member

Step = Callable[[], None]

_ENDS = 65536  # bytes at both ends of the weights by which they are known again


def destination(
    found: Sequence[Source], output: Path | None, stem: str, format: str | None
) -> Path:
    """Where a GGUF goes that becomes the file itself, once it is clear that it can.

    What an earlier call began and did not end is undone first.

    Args:
        found: The weights.
        output: Where the user wants it, if they said so.
        stem: What it is called otherwise, without ``.llamafile``.
        format: What the weights are to be quantized to, which rules it out.

    Raises:
        PyllamafileError: It can't.
    """
    path = found[0].path if len(found) == 1 else None
    stored = path and found[0].name != gguf_name(path.name)  # by Ollama, say
    if path is None or stored or format or len(shards(path)) > 1:
        raise RefusedError(
            "--in-place takes one GGUF that is a file, as it is", hint="leave out --in-place"
        )
    try:
        undo(path)
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_nlink > 1:
            raise RefusedError(
                f"{path}: has other names, whose file would change, too",
                hint="leave out --in-place, or name the file itself if it is a symbolic link",
                path=path,
            )
        output = output or path.with_name(f"{stem}.llamafile")
        there = output.parent.stat().st_dev if output.parent.is_dir() else status.st_dev
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    if there != status.st_dev:
        raise RefusedError(
            f"{output}: is on another file system than {path}", hint="leave out --in-place"
        )
    if shift.unit(path.parent) is None:
        raise RefusedError(
            f"{path}: its file system can't make room in front of a file's content",
            hint="ext4 and XFS on Linux can; leave out --in-place, which copies the weights",
            path=path,
        )
    if shift.busy(path):
        raise RefusedError(
            f"{path}: is in use, or may not be written", hint="end what uses it", path=path
        )
    return output


def convert(
    plan: Plan, path: Path, destination: Path, others: Sequence[File], progress: Progress
) -> None:
    """Make a llamafile of a GGUF, where it lies.

    Args:
        plan: The llamafile, with these weights as its first entry.
        path: The GGUF.
        destination: What it is called afterwards, on the same file system.
        others: What else goes in.
        progress: Told how many bytes of the weights were read.

    Raises:
        PyllamafileError: It can't be read or written; it is a GGUF again then.
    """
    try:
        if any(path.samefile(other.path) for other in others):
            raise RefusedError(f"{path}: is to be put in twice", hint="leave out --in-place")
        if plan.zip.placed[0].stored_size != path.stat().st_size:
            raise RefusedError(f"{path}: changed while it was being packed", path=path)
        Conversion(path, destination, plan, progress).run()
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error


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
        progress: Told how many bytes of the weights were read.
    """

    path: Path
    destination: Path
    plan: Plan
    progress: Progress = silent

    @cached_property
    def digest(self) -> Digest:
        """What the weights are; they are read once for it."""
        return copying.digest(self.path, self.progress)

    @property
    def room(self) -> int:
        """How far the weights move, in bytes."""
        return self.plan.zip.placed[0].data_offset

    def steps(self) -> tuple[Step, ...]:
        """What is to be done, in order; `undo` knows how far it came."""
        return (
            self._mark,
            self._append,
            lambda: shift.insert(self.path, 0, self.room),
            self._fill,
            lambda: shift.put(self.path, [(0, self.plan.engine.head[:PAGE])]),
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
        entry = self.plan.zip.placed[0].entry
        assert isinstance(entry, Entry)
        return zipalign.standing(entry, 0, self.digest)

    def _mark(self) -> None:
        size = self._model[0].size
        mark = f"{size} {self.room} {_fingerprint(self.path, 0, size)}"
        os.setxattr(self.path, ATTRIBUTE, mark.encode())

    def _append(self) -> None:
        with self.path.open("r+b") as file:
            model, _ = self._model
            *others, _ = [item.entry for item in self.plan.zip.placed[1:]]
            added = [entry for entry in others if isinstance(entry, Entry)]
            known = {model.name: self.digest}
            added.append(manifest_entry(self.plan.engine.facts, known, added))
            layout = zipalign.layout(added, model.end, kept=[model], displacements=(self.room,))
            zipalign.write(file, layout)
            os.fsync(file.fileno())

    def _fill(self) -> None:
        """Everything in front of the weights but the very first bytes."""
        _, header = self._model
        pieces = self.plan.engine.pieces()
        body = ((at, piece) if at else (PAGE, piece[PAGE:]) for at, piece in pieces)
        shift.put(self.path, body)
        shift.put(self.path, [(self.room - len(header), header)])

    def _name(self) -> None:
        mode = self.path.stat().st_mode
        self.path.chmod(mode & 0o777 | (mode & 0o444) >> 2)  # who may read it may start it
        self.path.replace(self.destination)
        os.removexattr(self.destination, ATTRIBUTE)


def undo(path: Path) -> bool:
    """Make a GGUF again of what began to become a llamafile; False if it is no such file.

    A mark of weights that are no longer there, because another file was written over them, is
    taken away and nothing else happens.

    Raises:
        DamagedError: It is not what it was left as.
        OSError: It can't be written.
    """
    try:
        mark = os.getxattr(path, ATTRIBUTE).decode().split()
        size, room, fingerprint = int(mark[0]), int(mark[1]), mark[2]
    except (AttributeError, OSError, ValueError, IndexError):
        return False
    if _fingerprint(path, 0, size) == fingerprint:
        os.truncate(path, size)
    elif _fingerprint(path, room, size) == fingerprint:
        shift.collapse(path, 0, room)
        os.truncate(path, size)
    elif _is_gguf(path):
        os.removexattr(path, ATTRIBUTE)
        return False
    else:
        raise DamagedError(
            f"{path}: began to become a llamafile, and was changed then",
            hint="get the weights again",
            path=path,
        )
    os.removexattr(path, ATTRIBUTE)
    return True


def _fingerprint(path: Path, at: int, size: int) -> str:
    """A digest of both ends of the weights that begin at an offset."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start in (at, at + max(size - _ENDS, 0)):
            file.seek(start)
            digest.update(file.read(min(_ENDS, size)))
    return digest.hexdigest()


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"
