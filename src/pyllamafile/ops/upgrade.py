"""Another engine under the weights of a finished file: `upgrade`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyllamafile
from pyllamafile import arguments, persona, plan, shift, zipalign
from pyllamafile import engine as engines
from pyllamafile.appearing import appearing, scratch_folder
from pyllamafile.copying import failed
from pyllamafile.engine import Format
from pyllamafile.errors import AccessError, NotFoundError, PyllamafileError, RefusedError
from pyllamafile.launcher import BLOCK, HeadProgram, is_head_of
from pyllamafile.llamafile import (
    ARGS,
    GPU,
    MANIFEST,
    PERSONA,
    PROOF,
    WEIGHTS,
    Llamafile,
    manifest_entry,
    of_archive,
    read,
)
from pyllamafile.models.source import PathLike
from pyllamafile.ops.state import renew
from pyllamafile.output import check_written, companion_path, write, write_companion
from pyllamafile.paths import path_of, strings
from pyllamafile.persona import Persona
from pyllamafile.plan import Engine, Plan
from pyllamafile.progress import Progress, Step, silent
from pyllamafile.runtimes import Runtime
from pyllamafile.state import State
from pyllamafile.targets import TARGETS, TOO_LARGE, select
from pyllamafile.zipalign import Archive, Entry, Member

Action = Callable[[], None]

SMALL = 64 << 20
"""Bytes of a file that is rather copied than shifted: it costs little, and is over at once."""

_MOST_PART = 1 << 28  # bytes of a head or a packed program; they have some MiB


@dataclass(frozen=True)
class Upgraded:
    """A file with another engine.

    Attributes:
        path: Where it is.
        size: Its length in bytes.
        before: What built it before: the version of pyllamafile, if it was pyllamafile.
        models: Names of the weights inside.
        targets: Names of the systems that it runs on now.
        llama_cpp: The versions of llama.cpp inside.
        shifted: Whether the weights stayed where they were on the disk.
        companion: The program beside it that starts it on Windows, if it is too large for that.
        state: What it remembers of what it has read, made by the new engine; None if nothing.
        gpus: Names of the systems on which it can use a GPU.
    """

    path: Path
    size: int
    before: str | None
    models: tuple[str, ...]
    targets: tuple[str, ...]
    llama_cpp: tuple[str, ...]
    shifted: bool
    companion: Path | None
    state: State | None = None
    gpus: tuple[str, ...] = ()


def upgrade(
    path: PathLike,
    *,
    engine: PathLike | None = None,
    targets: str | Sequence[str] = (),
    gpu: bool | None = None,
    drop_unknown: bool = False,
    progress: Progress | None = None,
) -> Upgraded:
    """Put another engine under the weights of a file, and leave all else in it as it is.

    Large weights are not copied where the file system can shift them (`shift`), and only read
    where it can share them between files. Otherwise a copy takes the file's place when it is
    complete. Killed at any moment, it leaves the old file or the new one, at worst with more in it
    than it needs; called again, it goes on.

    Args:
        path: A llamafile of ours; or one of Mozilla's, of which weights and `.args` are taken.
        engine: Where the engine is from: a wheel of ours, or another llamafile of ours. By
            default it is the runtimes at hand.
        targets: Systems to run on, or groups of them; by default those that the file has, or, if
            it isn't ours, all that the engine has.
        gpu: Whether it has what uses GPUs then, as `build` has it. By default it has what of that
            the engine brings, unless it was built without.
        drop_unknown: Whether entries may be lost that no maker of llamafiles has put in: those
            that people added to a file that isn't ours, and their own in the place of an engine's.
            Without it, such entries are an error that names them.
        progress: Told about every step.

    Raises:
        PyllamafileError: It is no llamafile, the engine can't be had or lacks a target, or the
            file can't be written.
    """
    tell = progress or silent
    path = path_of(path)
    with contextlib.suppress(OSError):  # the reader says why
        path = Path(os.path.realpath(path)) if path.is_symlink() else path  # the link stays one
    found = _ready(read(path))
    lost = found.unsigned()
    here = tuple(str(runtime["target"]) for runtime in found.runtimes)
    wanted = tuple(target.name for target in select(strings(targets, "targets") or here))
    gui = not found.ours or found.has_gui
    with contextlib.ExitStack() as scratch:
        if engine is None:
            parts = engines.at_hand(wanted, bool(targets), gui, tell, gpu)
        else:
            folder = scratch.enter_context(scratch_folder(path.parent))
            parts = engines.taken(path_of(engine), folder, gui)
        gpus = found.wants_gpu if gpu is None else gpu
        runtimes = parts.chosen(wanted) if gpus else engines.without_gpus(parts.chosen(wanted))
        if gpu and not any(runtime.gpu for runtime in runtimes):
            raise NotFoundError(f"{parts.label}: has nothing that uses GPUs")
        program = engines.head_program(
            runtimes, _format(found, runtimes), pyllamafile.__version__, _persona(found)
        )
        new = plan.engine(
            name=found.name or path.name.removesuffix(".llamafile"),
            version=pyllamafile.__version__,
            runtimes=runtimes,
            head_program=program,
            gui=parts.gui,
            gpu=gpus,
            shaders=parts.shaders if engines.take_shaders(runtimes) else None,
            proof=parts.proof if found.wants_proof else None,
            state=found.manifest.get("state") is not False,
        )
        kept = _kept(found, new, drop_unknown)
        copy = plan.laid_out(new, _in_order([_as_ours(found, member) for member in kept]))
        companion = _Companion.of(found, program)
        with contextlib.ExitStack() as undo:
            exe = companion.write(copy.size, undo) if companion else None
            shifted = found.ours and _shift(found, new, kept)
            if not shifted:
                _copy(path, copy, tell)
            undo.pop_all()
            size = path.stat().st_size
            if companion and not exe:  # dead bytes may make it larger than the copy is
                exe = companion.write(size, undo)
                undo.pop_all()
    for step in (*lost, *(_without_gpus(found, runtimes) if gpu is None else ())):
        tell(step)
    state = renew(path, tell) if found.wants_state else None
    if state:
        size = path.stat().st_size
    return Upgraded(
        path=path,
        size=size,
        before=found.built_by,
        models=tuple(member.name for member in kept if member.name.endswith(WEIGHTS)),
        targets=tuple(runtime.target for runtime in runtimes),
        llama_cpp=tuple(dict.fromkeys(runtime.llama_cpp for runtime in runtimes)),
        shifted=shifted,
        companion=exe,
        state=state,
        gpus=tuple(runtime.target for runtime in runtimes if runtime.gpu),
    )


def _ready(found: Llamafile) -> Llamafile:
    """A file that can have another engine; what was interrupted is ended first.

    Raises:
        PyllamafileError: It can't.
    """
    found.check_known()
    if found.interrupted:
        with _writing(found.path):
            found = _finish(found)
    if not found.ours and not found.weights:
        raise RefusedError(
            f"{found.path}: is no llamafile: it has no weights",
            hint="build makes one of a GGUF",
            path=found.path,
        )
    found.args()  # refuses what no runtime can read
    return found


def _without_gpus(found: Llamafile, runtimes: Sequence[Runtime]) -> Iterator[Step]:
    """What it could use GPUs by and the engine lacks, where nobody said that it is to go."""
    gone = set(found.gpus) - {runtime.target for runtime in runtimes if runtime.gpu}
    if gone and found.wants_gpu:
        how = "upgrade --gpu brings that back, from an engine that has it"
        what = f"uses no GPU any more on {', '.join(sorted(gone))}"
        yield Step("notice", f"{found.path}: {what}: {how}")


def _format(found: Llamafile, runtimes: Sequence[Runtime]) -> Format:
    """An ELF program stays one, unless it gets more targets."""
    elf = found.ours and _front(found, 4) == b"\x7fELF"
    single = len(runtimes) == 1 and TARGETS[runtimes[0].target].os == "linux"
    return "elf" if elf and single else "portable"


def _persona(found: Llamafile) -> Persona | None:
    """Who a file of ours says it is. One that says nonsense gets another engine nevertheless."""
    if not found.ours or PERSONA not in found.members:
        return None
    with contextlib.suppress(PyllamafileError):
        return persona.said_in(found.content(PERSONA, persona.MOST))
    return None


def _front(found: Llamafile, size: int) -> bytes:
    with _reading(found.path), found.path.open("rb") as file:
        return file.read(size)


# What stays


_MOZILLAS = (
    *(".cosmo", ".symtab", "llama.cpp/", "llamafile/", "stable-diffusion.cpp/", "third_party/"),
    *("usr/", "whisper.cpp/"),
)
"""How the names of entries begin that come with the engine in llamafiles of Mozilla's."""


def _kept(found: Llamafile, new: Engine, drop_unknown: bool) -> list[Member]:
    """What stays in a file: all that people put in; of other makers' files what runs here.

    Raises:
        RefusedError: Something else would be lost, and that was not agreed to.
    """
    members = [m for m in found.archive.members if not (m.name.endswith("/") and not m.size)]
    replaced = {entry.name for entry in new.entries}
    if found.ours:
        kept = [m for m in members if m.name not in replaced and not found.is_engine(m.name)]
        engines = {MANIFEST, *found.digests} - (set() if found.has_proof else {PROOF})
        lost = [m.name for m in members if m.name in replaced and m.name not in engines]
        if not found.gpus:  # then people have added what is called so
            lost += [n for n in found.digests if n in replaced and n.startswith(GPU)]
    else:
        kept = [m for m in members if m.name.endswith(WEIGHTS) or m.name == ARGS]
        theirs = {ARGS, *(m.name for m in kept)}
        lost = [
            m.name for m in members if m.name not in theirs and not m.name.startswith(_MOZILLAS)
        ]
    if lost and not drop_unknown:
        raise RefusedError(
            f"{found.path}: an upgrade would drop what belongs to no engine: {_folded(lost)}",
            hint="--drop-unknown drops it; `pyllamafile extract` saves it before",
            path=found.path,
        )
    return kept


def _folded(names: Sequence[str]) -> str:
    """Names of entries in few words: of a folder with several files its own."""
    tops: dict[str, list[str]] = {}
    for name in names:
        tops.setdefault(name.split("/")[0], []).append(name)
    return ", ".join(
        inside[0] if len(inside) == 1 else f"{top}/ ({len(inside)} files)"
        for top, inside in tops.items()
    )


def _as_ours(found: Llamafile, member: Member) -> Entry:
    """An entry for the copy."""
    if member.name.endswith(WEIGHTS) and member.method != zipalign.STORED:
        raise RefusedError(
            f"{found.path}: {member.name} is compressed, and can't be used where it is",
            hint="extract it, and build a file of it",
            path=found.path,
        )
    if not found.ours:
        arguments.check_nameable(found.path, member.name)
    if found.ours or member.name != ARGS:
        return plan.entry(found.path, member)
    return Entry(ARGS, _own_names(found.content(ARGS), [m.name for m in found.weights]))


def _own_names(args: bytes, models: Sequence[str]) -> bytes:
    """An `.args` in which weights are named as a runtime of ours knows them: ``@NAME``.

    In other makers' files a bare name, or one below ``/zip/``, is one in the file.
    """
    spellings = {f"{folder}{model}": f"@{model}" for model in models for folder in ("", "/zip/")}
    return arguments.renamed(args, spellings)


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Weights first, `.args` last."""
    return sorted(entries, key=lambda e: (not e.name.endswith(WEIGHTS), e.name == ARGS))


def _copy(path: Path, decided: Plan, progress: Progress) -> None:
    """A new file in the place of the old one, which stays whole until then."""
    mode = path.stat().st_mode & 0o777
    with appearing(path, decided.size, mode=mode) as (file, readable):
        write(file, decided, progress)
        check_written(readable, path)


@dataclass(frozen=True)
class _Companion:
    """The program beside a file that starts it on Windows, where it is too large to do so itself.

    It is written before the file is changed: a new companion starts the old file, too.

    Attributes:
        file: The file.
        head: How the file begins now, which tells its companion from a program of others.
        program: What the companion is to be.
    """

    file: Path
    head: bytes
    program: bytes

    @classmethod
    def of(cls, found: Llamafile, program: HeadProgram | None) -> _Companion | None:
        """That of a file that may need one: it is for Windows."""
        if program is None or TARGETS[program.runtime.target].os != "windows":
            return None
        size = min(found.manifest["head"]["size"], _MOST_PART) if found.ours else 0
        return cls(found.path, _front(found, size), program.program)

    def write(self, size: int, undo: contextlib.ExitStack) -> Path | None:
        """Write it, if a file of so many bytes needs one.

        Args:
            size: The length of the file.
            undo: Gets what undoes it.

        Raises:
            RefusedError: Another program has its name.
        """
        if size < TOO_LARGE:
            return None
        exe = companion_path(self.file)
        before = self._known(exe) if os.path.lexists(exe) else None
        if before != self.program:
            write_companion(exe, self.program, True, undo)
        if before not in (None, self.program):
            undo.callback(exe.write_bytes, before)
        return exe

    def _known(self, exe: Path) -> bytes:
        with _reading(exe):
            program = exe.read_bytes() if exe.is_file() else b""
        if program != self.program and not is_head_of(program, self.head):
            raise RefusedError(
                f"{exe}: is no companion of {self.file.name}, which needs one of this name: "
                "Windows starts no program of 4 GiB or more",
                hint=f"move it away, or rename {self.file.name}",
                path=exe,
            )
        return program


# Under weights that stay where they are


def _shift(found: Llamafile, new: Engine, kept: Sequence[Member]) -> bool:
    """Exchange the engine under weights that stay where they are, if they can."""
    path = found.path
    if found.archive.size < SMALL or shift.shares(path.parent):
        return False
    if any(m.name not in found.digests or m.flags & ~zipalign.UTF8 for m in kept):
        return False  # some other program put them in: they have to be read, and so copied
    digests = {member.name: found.digests[member.name] for member in kept}
    entries = [*new.entries, manifest_entry(new.facts, digests, new.entries)]
    stay = {member.name for member in kept} | {entry.name for entry in entries}
    remove = [name for name in found.members if name not in stay]
    with _writing(path):
        exchange = _exchange(found, new, entries, remove)
        if exchange is None:
            return False
        exchange.run()
    check_written(path, path)
    return True


@dataclass
class Exchange:
    """Another engine for a llamafile, under weights that are not copied.

    The new engine is put behind the old one, where nobody looks, then the new directory behind
    everything, and last the old engine is taken out. Before anything moves, the directory is
    written twice: a reader finds the one for the old place until the weights have moved, and then
    the other (`zipalign.Layout.displacements`). So at any moment the file is the old one or the
    new one. If the exchange is killed before the last move, `_finish` ends it. If it is killed
    earlier, the file is just one with something in front of its weights.

    Attributes:
        path: The file.
        archive: What its zip is, after every step anew.
        engine: The new one.
        entries: What is added to the zip or replaced in it, the manifest last.
        remove: Names of entries that go.
        old: How much goes from the front, in bytes.
        new: How much comes there.
    """

    path: Path
    archive: Archive
    engine: Engine
    entries: Sequence[Entry]
    remove: Collection[str]
    old: int
    new: int

    def steps(self) -> tuple[Action, ...]:
        """What is to be done, in order. Killed within one or behind it, the file still starts."""
        return (
            lambda: self._change([], (), self.new),
            lambda: self._insert(self.new),
            self._put_engine,
            lambda: self._change(self.entries, self.remove, -self.old),
            lambda: self._collapse(0, self.old),
            self._compact,
        )

    def run(self) -> None:
        """Do it, or leave the file as it was.

        Raises:
            PyllamafileError: The file can't be written.
            OSError: The same.
        """
        before = self.archive.members
        try:
            for step in self.steps():
                step()
        except BaseException:
            with contextlib.suppress(OSError, PyllamafileError):  # it starts as it is, too
                self._settle(before)
            raise

    def _settle(self, before: Sequence[Member]) -> None:
        """Undo what was begun, or finish what is nearly done."""
        self.archive = zipalign.read(self.path)  # nobody knows how far it came
        now = self.archive.members
        if now[0].header_offset == before[0].header_offset + self.new:
            if [_moved(member, self.new) for member in before] == [_moved(m, 0) for m in now]:
                self._change([], (), -self.new)
                self._collapse(self.old, self.new)
            else:
                self._collapse(0, self.old)
        self._compact()

    def _change(self, entries: Sequence[Entry], remove: Collection[str], move: int) -> None:
        """Change the zip so that all of it may be moved then by so many bytes."""
        self.archive, _ = zipalign.change(
            self.path, entries, remove=remove, displacements=(0, move), archive=self.archive
        )

    def _insert(self, size: int) -> None:
        shift.insert(self.path, self.old, size)
        self.archive = self.archive.shifted(size)

    def _put_engine(self) -> None:
        shift.put(self.path, ((self.old + at, piece) for at, piece in self.engine.pieces()))

    def _collapse(self, at: int, size: int) -> None:
        shift.collapse(self.path, at, size)
        self.archive = self.archive.shifted(-size)

    def _compact(self) -> None:
        self.archive = zipalign.compact(self.path, self.archive)


def _exchange(
    found: Llamafile,
    engine: Engine,
    entries: Sequence[Entry],
    remove: Collection[str],
) -> Exchange | None:
    """Plan to put another engine under the weights of a file; None if they can't stay.

    Args:
        found: The file.
        engine: The new engine.
        entries: What is added to the zip or replaced in it.
        remove: Names of entries that go.
    """
    path, members = found.path, found.archive.members
    block = shift.unit(path.parent)
    if block is None or not members or shift.busy(path):
        return None
    first = members[0].header_offset
    old = first // block * block
    # Weights end up aligned to blocks. Where an upgrade was killed they may be off now, all alike.
    off = {member.data_offset % BLOCK for member in found.weights} or {0}
    new = engine.end + (old - max(off) - engine.end) % BLOCK
    if not old or len(off) > 1 or new % block:
        return None
    with path.open("rb") as file:
        file.seek(old)
        if any(file.read(first - old)):  # something of the old engine would move
            return None
    try:
        for move in (new, -old):
            gone = {*remove, *(entry.name for entry in entries)}
            kept = [member for member in members if member.name not in gone]
            zipalign.layout(
                entries, members[-1].end, kept=kept, displacements=(0, move), undisplaced=members
            )
    except PyllamafileError:
        return None
    return Exchange(path, found.archive, engine, entries, remove, old, new)


def _finish(found: Llamafile) -> Llamafile:
    """End an exchange that was killed when only the old engine was left to be taken out.

    Nothing is done unless all of the engine is there that the manifest tells of.

    Returns:
        The file as it is then.
    """
    path, base = found.path, found.archive.origin
    block = shift.unit(path.parent)
    if base < 0 or block is None or base % block or shift.busy(path):
        return found
    room = found.archive.members[0].header_offset - base
    if not _stands(path, base, room, found.manifest):
        return found
    shift.collapse(path, 0, base)
    return of_archive(path, zipalign.compact(path, found.archive.shifted(-base)))


def _stands(path: Path, at: int, room: int, manifest: Mapping[str, Any]) -> bool:
    """Whether an engine stands at an offset, head and programs, in so many bytes."""
    parts = [(0, manifest["head"]["size"], manifest["head"]["sha256"])]
    for runtime in manifest["runtimes"]:
        parts.append((runtime["offset"], runtime["packed_size"], runtime["packed_sha256"]))
    if any(start > room - size or not 0 < size < _MOST_PART for start, size, _ in parts):
        return False
    with path.open("rb") as file:
        for start, size, sha256 in parts:
            file.seek(at + start)
            if hashlib.sha256(file.read(size)).hexdigest() != sha256:
                return False
    return True


def _moved(member: Member, by: int) -> tuple[str, int, int]:
    return member.name, member.crc, member.header_offset + by


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(path, "read", error) from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = None
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(path.parent).free
            hint = f"its file system has {free:,} bytes free, and the new engine takes more"
        raise AccessError(f"{path}: {error.strerror}", hint=hint, path=path) from error
