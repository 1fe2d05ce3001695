"""Care for finished files: another engine, more in them, less in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyllamafile
from pyllamafile import native, plan, shift, zipalign
from pyllamafile.build import (
    Format,
    Progress,
    appearing,
    check_written,
    companion_path,
    outer_program,
    pieces,
    put_beside,
    runtimes_for,
    scratch_folder,
    write_file,
)
from pyllamafile.errors import PyllamafileError
from pyllamafile.inspect import content, extract, inspect
from pyllamafile.launcher import Outer, pack
from pyllamafile.plan import ARGS, GUI, LICENSES, MANIFEST
from pyllamafile.sources import PathLike
from pyllamafile.targets import TARGETS, TOO_LARGE, Runtime, select
from pyllamafile.verify import verify
from pyllamafile.zipalign import Archive, Digest, Entry, Member

SMALL = 64 << 20
"""Bytes of a file that is rather copied than shifted: it costs little, and is over at once."""

_PREBUILT = "pyllamafile/native/prebuilt/"  # in a wheel of ours


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
    """

    path: Path
    size: int
    before: str | None
    models: tuple[str, ...]
    targets: tuple[str, ...]
    llama_cpp: tuple[str, ...]
    shifted: bool
    companion: Path | None


# Another engine


def upgrade(
    path: PathLike,
    *,
    engine: PathLike | None = None,
    targets: Sequence[str] = (),
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
        progress: Told about every step.

    Raises:
        PyllamafileError: It is no llamafile, the engine can't be had or lacks a target, or the
            file can't be written.
    """
    tell = progress or (lambda what, done, total: None)
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # which stays one
    archive = zipalign.read(path)
    if archive.base:
        with _writing(path):
            shift.finish(path, _facts(path, archive))
        archive = zipalign.read(path)
    report = inspect(path)
    ours = report.built_by is not None
    if not ours and not report.models:
        raise PyllamafileError(
            f"{path}: is no llamafile: it has no weights", hint="build makes one of a GGUF"
        )
    here = tuple(str(runtime.get("target")) for runtime in report.runtimes) if ours else ()
    wanted = tuple(target.name for target in select(targets or here))
    gui = not ours or any(entry.name.startswith(GUI) for entry in report.entries)
    with contextlib.ExitStack() as scratch:
        if engine is None:
            parts = _at_hand(wanted, bool(targets), gui, tell)
        else:
            folder = scratch.enter_context(scratch_folder(path.parent))
            parts = _taken(Path(engine), folder, gui)
        runtimes = _chosen(parts.runtimes, wanted, parts.label)
        outer = outer_program(runtimes, _format(path, ours, runtimes))
        runs = plan.engine(
            name=report.name or path.name.removesuffix(".llamafile"),
            version=pyllamafile.__version__,
            runtimes=[runtime for runtime in runtimes if not outer or runtime != outer.runtime],
            outer=outer,
            gui=parts.gui,
        )
        kept = _kept(archive, ours, {entry.name for entry in runs.entries})
        shifted = _shift(path, archive, runs, kept) if ours else False
        if not shifted:
            _copy(path, runs, [_as_ours(path, m, archive, ours) for m in kept], tell)
        size = path.stat().st_size
        starter = _start_beside(path, size, outer)
    return Upgraded(
        path=path,
        size=size,
        before=report.built_by,
        models=tuple(member.name for member in kept if member.name.endswith(".gguf")),
        targets=tuple(runtime.target for runtime in runtimes),
        llama_cpp=tuple(dict.fromkeys(runtime.llama_cpp for runtime in runtimes)),
        shifted=shifted,
        companion=starter,
    )


@dataclass(frozen=True)
class _Parts:
    """What an engine can be made of, and where it is from."""

    runtimes: Sequence[Runtime]
    gui: Sequence[Entry]
    label: str


def _at_hand(wanted: Sequence[str], build: bool, gui: bool, tell: Progress) -> _Parts:
    """What the package or the cache has; what was asked for by name is built if need be."""
    runtimes = runtimes_for(wanted, tell) if build or not wanted else native.available()
    pages = native.find_gui() or native.build_gui(progress=tell) if gui else None
    return _Parts(runtimes, plan.gui_entries(pages) if pages else (), "")


def _taken(engine: Path, folder: Path, gui: bool) -> _Parts:
    """What a wheel or a llamafile has; runtimes are taken out into a folder."""
    archive = zipalign.read(engine)
    if any(member.name.startswith(_PREBUILT) for member in archive.members):
        return _from_wheel(engine, archive, folder, gui)
    for problem in verify(engine, contents=False):
        raise PyllamafileError(
            f"{engine}: {problem.where}: {problem.what}",
            hint="--engine takes a wheel of pyllamafile with runtimes in it, or a sound llamafile",
        )
    return _from_llamafile(engine, archive, folder, gui)


def _from_wheel(engine: Path, archive: Archive, folder: Path, gui: bool) -> _Parts:
    wanted = [
        f"{_PREBUILT}{name}"
        for target in TARGETS
        for name in (f"{target}.json", f"{target}.gz")
        if any(member.name == f"{_PREBUILT}{name}" for member in archive.members)
    ]
    pages = f"{_PREBUILT}ui.zip"
    wanted += [pages] if gui and any(member.name == pages for member in archive.members) else []
    runtimes = []
    entries: list[Entry] = []
    for path in extract(engine, folder, wanted):
        try:
            if path.name == "ui.zip":
                entries = plan.gui_entries(path)
            elif path.suffix == ".json":
                facts = json.loads(path.read_bytes())
                facts["levels"] = tuple(facts["levels"])
                runtimes.append(Runtime(path=path.with_suffix(".gz"), origin="engine", **facts))
        except (PyllamafileError, ValueError, KeyError, TypeError) as error:
            raise PyllamafileError(f"{engine}: {path.name} can't be understood") from error
    return _Parts(runtimes, entries, str(engine))


def _from_llamafile(engine: Path, archive: Archive, folder: Path, gui: bool) -> _Parts:
    """All notices in it come along: which ones are whose is not written there."""
    notices = {
        member.name.removeprefix(LICENSES).removesuffix(".txt"): content(engine, member).decode()
        for member in archive.members
        if member.name.startswith(LICENSES) and member.name != f"{LICENSES}web-gui.txt"
    }
    runtimes = []
    for facts in inspect(engine).runtimes:
        path = folder / f"{facts['target']}.gz"
        with engine.open("rb") as file:
            file.seek(facts["offset"])
            packed = file.read(facts["packed_size"])
        if hashlib.sha256(packed).hexdigest() != facts["packed_sha256"]:
            raise PyllamafileError(f"{engine}: its runtime for {facts['target']} is damaged")
        if not facts["offset"]:  # the file's head, with a script in it that the next one replaces
            packed = pack(packed)
        path.write_bytes(packed)
        runtimes.append(
            Runtime(
                target=facts["target"],
                path=path,
                packed_size=len(packed),
                packed_sha256=hashlib.sha256(packed).hexdigest(),
                size=facts["size"],
                sha256=facts["sha256"],
                llama_cpp=facts["llama_cpp"],
                levels=tuple(facts["levels"]),
                origin="engine",
                licenses=notices,
            )
        )
    pages = [
        plan.entry(engine, member)
        for member in archive.members
        if gui and (member.name.startswith(GUI) or member.name == f"{LICENSES}web-gui.txt")
    ]
    return _Parts(runtimes, pages, str(engine))


def _chosen(runtimes: Sequence[Runtime], wanted: Sequence[str], label: str) -> list[Runtime]:
    """The runtimes that are wanted, in the table's order; all, if none is named."""
    there = {runtime.target: runtime for runtime in runtimes}
    missing = [name for name in wanted if name not in there]
    if missing:
        options = " ".join(f"--target {name}" for name in missing)
        others = [name for name in wanted if name in there]
        hints = [] if label else [f"pyllamafile runtimes build {options}"]
        hints += [" ".join(f"--target {name}" for name in others)] if others else []
        message = f"{label}: has no runtime" if label else "no runtime is at hand"
        raise PyllamafileError(
            f"{message} for {', '.join(missing)}",
            hint=", or do without: ".join(hints) or None,
        )
    if not there:
        raise PyllamafileError(f"{label}: has no runtimes")
    return [there[name] for name in TARGETS if name in (wanted or there)]


def _format(path: Path, ours: bool, runtimes: Sequence[Runtime]) -> Format:
    """An ELF program stays one, unless it gets more targets."""
    with path.open("rb") as file:
        elf = ours and file.read(4) == b"\x7fELF"
    single = len(runtimes) == 1 and TARGETS[runtimes[0].target].os == "linux"
    return "elf" if elf and single else "portable"


def _kept(archive: Archive, ours: bool, new: Collection[str]) -> list[Member]:
    """What stays in a file: all that people put in; of other makers' files what runs here."""
    if ours:
        return [
            member
            for member in archive.members
            if member.name not in (MANIFEST, *new) and not member.name.startswith(GUI)
        ]
    return [m for m in archive.members if m.name.endswith(".gguf") or m.name == ARGS]


def _as_ours(path: Path, member: Member, archive: Archive, ours: bool) -> Entry:
    """An entry for the copy."""
    if member.name.endswith(".gguf") and member.method != zipalign.STORED:
        raise PyllamafileError(
            f"{path}: {member.name} is compressed, and can't be used where it is",
            hint="extract it, and build a file of it",
        )
    if ours or member.name != ARGS:
        return plan.entry(path, member)
    models = [m.name for m in archive.members if m.name.endswith(".gguf")]
    return Entry(ARGS, _own_names(content(path, member), models))


def _own_names(args: bytes, models: Sequence[str]) -> bytes:
    """An `.args` in which weights are named as a runtime of ours knows them: ``@NAME``.

    In other makers' files a bare name, or one below ``/zip/``, is one in the file.
    """
    for model in models:
        name = re.escape(model.encode())
        args = re.sub(rb"(?<!\S)(?:/zip/)?" + name + rb"(?!\S)", b"@" + model.encode(), args)
    return args


def _shift(path: Path, archive: Archive, runs: plan.Engine, kept: Sequence[Member]) -> bool:
    """Exchange the engine under weights that stay where they are, if they can."""
    if archive.size < SMALL or shift.shares(path.parent):
        return False
    known = _known(path, archive)
    if any(member.name not in known for member in kept):
        return False  # some other program put them in: they have to be read, and so copied
    entries = [*runs.entries]
    digests = {member.name: known[member.name] for member in kept}
    entries.append(plan.manifest(runs.facts, digests, runs.entries))
    stay = {member.name for member in kept} | {entry.name for entry in entries}
    remove = [member.name for member in archive.members if member.name not in stay]
    front = partial(pieces, runs.head, runs.programs)
    with _writing(path):
        exchange = shift.exchange(path, runs, entries, remove, front)
        if exchange is None:
            return False
        exchange.run()
    check_written(path, path)
    return True


def _known(path: Path, archive: Archive) -> Mapping[str, Digest]:
    """The digests of entries, as the manifest has them."""
    facts = _facts(path, archive)
    listed = facts.get("entries")
    sizes = {member.name: member.size for member in archive.members}
    return {
        name: Digest(value["size"], 0, value["sha256"])
        for name, value in (listed.items() if isinstance(listed, dict) else ())
        if isinstance(value, dict)
        and value.get("size") == sizes.get(name)
        and isinstance(value.get("sha256"), str)
    }


def _facts(path: Path, archive: Archive) -> dict[str, Any]:
    for member in archive.members:
        if member.name == MANIFEST:
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(content(path, member))
                return found if isinstance(found, dict) else {}
    return {}


def _copy(path: Path, runs: plan.Engine, entries: Sequence[Entry], tell: Progress) -> None:
    """A new file in the place of the old one, which stays whole until then."""
    weights = [entry for entry in entries if entry.name.endswith(".gguf")]
    others = [entry for entry in entries if not entry.name.endswith(".gguf")]
    others.sort(key=lambda entry: entry.name == ARGS)
    layout = plan.laid_out(runs, [*weights, *others])
    mode = path.stat().st_mode & 0o777
    what = f"writing {path.name}"
    with appearing(path, layout.size, True, mode) as (file, readable):
        write_file(file, layout, lambda done: tell(what, done, layout.size))
        check_written(readable, path)


def _start_beside(path: Path, size: int, outer: Outer | None) -> Path | None:
    """The companion of a file that is too large for Windows, if it is for Windows at all."""
    if outer is None or TARGETS[outer.runtime.target].os != "windows" or size < TOO_LARGE:
        return None
    starter = companion_path(path)
    with contextlib.ExitStack() as undo:
        put_beside(starter, outer.program, True, undo)
        undo.pop_all()
    return starter


# More, and less


def add(
    path: PathLike,
    files: Sequence[tuple[PathLike, str]],
    *,
    progress: Progress | None = None,
) -> list[str]:
    """Put more files into a finished file, in place; weights so that they can be mapped.

    Entries of the same name are replaced. Nothing that stays is moved off its alignment, and
    `verify` holds afterwards. Killed at any moment, it leaves the old file or the new one.

    Args:
        path: The llamafile.
        files: What to add, each with the name of its entry; `.args` may be one of them.
        progress: Told about every step.

    Returns:
        The names of the entries.

    Raises:
        PyllamafileError: A file can't be read or be added, or the llamafile can't be written.
    """
    path = Path(path)
    archive = _of_ours(path)
    entries = []
    for given, name in files:
        _refuse_ours(path, name)
        entry = zipalign.from_file(Path(given), name, align=plan.alignment(name))
        if name.endswith(".gguf"):
            pyllamafile.inspect(given)  # weights that are none are refused
        if name == ARGS:
            _check_args(Path(given))
        entries.append(entry)
    total = sum(entry.stored_size for entry in entries)
    tell = progress or (lambda what, done, total: None)
    updated = _updated(path, archive, entries)
    what = f"writing {path.name}"
    zipalign.add(path, [*entries, updated], progress=lambda done: tell(what, done, total))
    return [entry.name for entry in entries]


def remove(path: PathLike, names: Sequence[str]) -> None:
    """Take entries out of a finished file, in place.

    Their room is given back if at most 16 MiB stand behind them, and otherwise left unused.

    Raises:
        PyllamafileError: There is no such entry, or the file needs it, or can't be written.
    """
    path = Path(path)
    archive = _of_ours(path)
    there = {member.name for member in archive.members}
    for name in names:
        if name not in there:
            raise PyllamafileError(f"{path}: has no entry {name!r}", hint="inspect lists them")
        if name == MANIFEST:
            raise PyllamafileError(f"{path}: {name} can't be removed: it says what is in the file")
    zipalign.add(path, [_updated(path, archive, [], names)], remove=set(names))


def half_upgraded(path: PathLike) -> bool:
    """Whether an upgrade was killed before it had shifted what its new directory speaks of."""
    with contextlib.suppress(PyllamafileError):  # no archive: then it is something else
        return zipalign.read(Path(path)).base != 0
    return False


def _of_ours(path: Path) -> Archive:
    archive = zipalign.read(path)
    if archive.base:
        raise PyllamafileError(
            f"{path}: an upgrade of it was interrupted",
            hint=f"pyllamafile upgrade {path} ends it",
        )
    if all(member.name != MANIFEST for member in archive.members):
        raise PyllamafileError(
            f"{path}: was not built by pyllamafile",
            hint="`pyllamafile upgrade` makes it one of ours, `zipalign` adds to any zip",
        )
    return archive


def _refuse_ours(path: Path, name: str) -> None:
    if name == MANIFEST or name.startswith(GUI):
        raise PyllamafileError(
            f"{path}: cannot add {name!r}: pyllamafile itself writes what has such a name"
        )


def _check_args(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PyllamafileError(f"{path}: not UTF-8 text") from error


def _updated(
    path: Path, archive: Archive, entries: Sequence[Entry], removed: Collection[str] = ()
) -> Entry:
    old = next(member for member in archive.members if member.name == MANIFEST)
    updated = plan.updated_manifest(content(path, old), entries, removed)
    if updated is None:
        raise PyllamafileError(
            f"{path}: its manifest can't be understood", hint="`pyllamafile verify` says why"
        )
    return updated


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = None
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(path.parent).free
            hint = f"its file system has {free:,} bytes free, and the new engine takes more"
        raise PyllamafileError(f"{path}: {error.strerror}", hint=hint) from error
