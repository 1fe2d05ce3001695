"""The recipe: weights -> plan -> write -> verify -> replace."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyllamafile
from pyllamafile import convert, native, quantize, shift, sources, zipalign
from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import Outer, Program
from pyllamafile.plan import (
    ARGS,
    GUI,
    MANIFEST,
    File,
    Plan,
    chat_template,
    gui_entries,
    misfit,
    partner_args,
    plan,
    quote,
)
from pyllamafile.sources import PathLike, Source
from pyllamafile.targets import TARGETS, TOO_LARGE, Runtime, host, select
from pyllamafile.verify import verify
from pyllamafile.weights import Weights, read, shards

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""

Format = Literal["portable", "elf"]


@dataclass(frozen=True)
class Built:
    """A finished llamafile.

    Attributes:
        path: Where it is.
        size: Its length in bytes.
        name: What the model is called.
        models: Names of the models inside, added ones too.
        partners: What goes with the first of them: adapters, a projector, a draft, each by
            its option and its name; of an adapter the scale is in it.
        targets: Names of the systems that it runs on.
        missing: Names of the systems for which no runtime was at hand.
        too_large: Whether it is for Windows, but has more bytes than Windows lets a
            program have.
        companion: The program beside it that starts it there nevertheless.
        template: The chat template of its family that went into `.args`, because the weights
            have none.
        untemplated: Names of weights that have no chat template and got none.
    """

    path: Path
    size: int
    name: str
    models: tuple[str, ...]
    partners: tuple[tuple[str, str], ...]
    targets: tuple[str, ...]
    missing: tuple[str, ...]
    too_large: bool
    companion: Path | None
    template: str | None
    untemplated: tuple[str, ...]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that goes with the first model of a file.

    Attributes:
        source: What `sources.find` knows: a GGUF, a folder, ``hf:OWNER/REPO:FILE``.
        scale: How much of it is applied; 1 is what it was trained for.
    """

    source: PathLike
    scale: float = 1


def build(
    gguf: PathLike | Sequence[PathLike] = (),
    output: PathLike | None = None,
    *,
    lora: Sequence[PathLike | Adapter] = (),
    mmproj: PathLike | None = None,
    draft: PathLike | None = None,
    name: str | None = None,
    targets: Sequence[str] = (),
    args: Sequence[str] = (),
    args_file: PathLike | None = None,
    add: Sequence[tuple[PathLike, str]] = (),
    gui: bool = True,
    format: Format = "portable",
    companion: bool = True,
    quantize_to: str | None = None,
    requantize: bool = False,
    force: bool = False,
    in_place: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Pack weights, launcher and runtimes into one file.

    The file appears under its name when it is complete and not before; whatever goes wrong
    leaves no partial file and no damaged one.

    Args:
        gguf: The weights, each a path or what else `sources.find` knows, such as
            ``hf:OWNER/REPO:Q4_K_M``; parts of a split GGUF are taken together. Without any
            the file is an engine alone.
        output: The file to write; by default ``NAME.llamafile`` in the current directory.
        lora: LoRA adapters that go with the first of them, and are applied to it.
        mmproj: The projector that lets it see or hear.
        draft: A small model of the same vocabulary that drafts for it (speculative decoding).
        name: What the model is called; by default as its file is.
        targets: Systems to run on, or groups of them such as ``linux``, ``arm64`` and
            ``all``; by default those whose runtimes are at hand.
        args: Default arguments of the file, put into ``.args`` one by one.
        args_file: A file with the text of ``.args``, in front of `args`.
        add: More files, each with the name of its entry.
        gui: Whether the web GUI goes in.
        format: ``portable``, or ``elf`` for a file that is a program of one Linux target.
        companion: Whether a file that is too large for Windows to start gets a small
            Windows program beside it, called as it is, with ``.exe`` for ``.llamafile``.
        quantize_to: What the models are quantized to, one of `quantize.FORMATS`; adapters,
            projectors and drafts stay what they are.
        requantize: Whether that may happen to what is quantized already, and loses twice.
        force: Whether existing output may be replaced.
        in_place: Whether the GGUF itself becomes the file, which takes neither its time nor its
            room again; the GGUF is gone then. A file system that can't is an error. Killed
            halfway, the same call again undoes what was begun and does it all.
        progress: Told about every step.

    Raises:
        PyllamafileError: Some input is no good, or the output can't be written.
    """
    tell = progress or (lambda what, done, total: None)
    if quantize_to is not None:
        quantize.check(quantize_to)
    found = [sources.find(g) for g in ([gguf] if isinstance(gguf, (str, os.PathLike)) else gguf)]
    beside = _beside(lora, mmproj, draft)
    if beside and not found:
        raise PyllamafileError(
            f"{beside[0].source.name} goes with a model, and there is none",
            hint="give it with --gguf",
        )
    name = name or _default_name(found, quantize_to)
    destination = Path(output) if output is not None else Path(f"{name}.llamafile")
    if in_place:
        destination = _for_itself(found, destination if output else None, quantize_to)
    with contextlib.ExitStack() as scratch:
        folder = destination.parent
        everything = [*found, *(partner.source for partner in beside)]
        if quantize_to or any(source.path is None for source in everything):
            # Now rather than after gigabytes were fetched or written.
            _check_output(destination, [s.path for s in everything if s.path], force)
            folder = scratch.enter_context(scratch_folder(folder))
        before: dict[Path, tuple[int, ...] | None] = {}

        @functools.cache  # to walk a large vocabulary takes a twentieth of a second
        def header(path: Path) -> Weights:
            before[path] = _stamp(path)
            return read(path)

        groups = _models(found, folder, header, tell)
        partners = [_models([partner.source], folder, header, tell)[0] for partner in beside]
        extras = [_file(Path(path), entry) for path, entry in add]
        _check_names(extras, gui)
        added = [extra for extra in extras if extra.name.endswith(".gguf")]  # weights to a runtime
        text = _args_text(args, args_file)
        files_in = [*itertools.chain(*groups, *partners), *extras]
        inputs = [file.path for file in files_in]
        inputs += [Path(args_file)] if args_file is not None else []
        before |= {f.path: _stamp(f.path) for f in files_in if f.path not in before}
        facts = {file.name: header(file.path) for file in (*itertools.chain(*groups), *added)}
        lines = []
        template = chat_template(facts, text)
        if isinstance(template, str):
            lines.append(["--chat-template", template])
        for partner, files in zip(beside, partners, strict=True):
            own, others = header(files[0].path), [facts[file.name] for file in groups[0]]
            _check_fit(partner, files[0], own, others)
            lines.append(partner_args(partner.role, files[0].name, partner.scale))
        if lines:
            text = "".join(" ".join(map(quote, line)) + "\n" for line in lines) + (text or "")
        _check_output(destination, inputs, force)
        # Now rather than after the minutes that a runtime may take.
        names = [file.name for file in (*itertools.chain(*groups, *partners), *extras)]
        zipalign.layout([zipalign.Entry(entry, b"") for entry in names], 0)

        runtimes = runtimes_for(_one_linux(targets) if format == "elf" else targets, tell)
        outer = outer_program(runtimes, format)
        if quantize_to:
            groups = [_quantized(g, quantize_to, requantize, folder, tell) for g in groups]
        models = list(itertools.chain(*groups))
        layout = plan(
            name=name,
            version=pyllamafile.__version__,
            models=[*models, *itertools.chain(*partners)],
            runtimes=[runtime for runtime in runtimes if not outer or runtime != outer.runtime],
            outer=outer,
            extras=extras,
            args=text,
            gui=gui_entries(native.find_gui() or native.build_gui(progress=tell)) if gui else (),
        )
        too_large = bool(outer) and format == "portable" and layout.size >= TOO_LARGE
        starter = companion_path(destination) if too_large and companion else None
        if starter:
            _check_output(starter, inputs, force)
        program = outer.program if starter and outer else None
        del outer  # as many bytes again as the head has; writing needs memory of its own
        with contextlib.ExitStack() as undo:
            if in_place:
                if starter and program:
                    put_beside(starter, program, force, undo)
                beside_it = [*models[1:], *itertools.chain(*partners), *extras]
                _convert(layout, models[0].path, destination, beside_it, tell)
                undo.pop_all()
                check_written(destination, destination)
            else:
                what = f"writing {destination.name}"
                with appearing(destination, layout.size, force) as (file, path):
                    write_file(file, layout, lambda n: tell(what, n, layout.size))
                    check_written(path, destination)
                    for given, stamp in before.items():
                        if _stamp(given) != stamp:
                            raise PyllamafileError(f"{given}: changed while it was being packed")
                    if starter and program:
                        put_beside(starter, program, force, undo)
                undo.pop_all()

    included = tuple(runtime.target for runtime in runtimes)
    return Built(
        path=destination,
        size=layout.size,
        name=name,
        models=tuple(file.name for file in models)
        + tuple(file.name for file in added if facts[file.name].kind == "model"),
        partners=tuple(
            (f"--{partner.role}", files[0].name + partner.suffix)
            for partner, files in zip(beside, partners, strict=True)
        ),
        targets=included,
        missing=tuple(target for target in TARGETS if target not in included),
        too_large=too_large,
        companion=starter,
        template=template if isinstance(template, str) else None,
        untemplated=() if isinstance(template, str) else template,
    )


# What goes in


@dataclass(frozen=True)
class _Partner:
    """Weights that go with the first model, in one of `plan.ROLES`."""

    role: str
    source: Source
    scale: float = 1

    @property
    def suffix(self) -> str:
        return "" if self.scale == 1 else f"={self.scale:g}"


def _beside(
    lora: Sequence[PathLike | Adapter], mmproj: PathLike | None, draft: PathLike | None
) -> list[_Partner]:
    adapters = [each if isinstance(each, Adapter) else Adapter(each) for each in lora]
    for adapter in adapters:
        if not math.isfinite(adapter.scale):
            raise PyllamafileError(f"{adapter.source}: {adapter.scale} is no scale")
    return [
        *(_Partner("lora", sources.find(each.source), each.scale) for each in adapters),
        *([_Partner("mmproj", sources.find(mmproj))] if mmproj is not None else []),
        *([_Partner("draft", sources.find(draft))] if draft is not None else []),
    ]


def _check_fit(partner: _Partner, file: File, own: Weights, model: Sequence[Weights]) -> None:
    if problem := misfit(partner.role, own, model):
        raise PyllamafileError(f"{file.path}: {problem}")
    if partner.role == "lora" and re.search(r'[,:"]', file.name):
        raise PyllamafileError(
            f"{file.name}: an adapter's name can't have a comma, a colon or a quote",
            hint="llama.cpp takes lists of adapters with scales, and those separate them",
        )


def _models(
    found: Sequence[Source], folder: Path, header: Callable[[Path], Weights], tell: Progress
) -> list[list[File]]:
    """Of each model its files; those that have to be written first are in `folder`."""
    models: list[list[File]] = []
    for source in found:
        files = shards(source.fetch(folder, tell))
        for path in files:
            if header(path).split and len(files) == 1:
                raise PyllamafileError(
                    f"{path}: one part of a split model, under a name that doesn't say so",
                    hint="give it back its name, such as NAME-00001-of-00003.gguf",
                )
        if len(files) == 1:
            models.append([_file(files[0], source.name)])
        else:
            parts = [_file(path, sources.gguf_name(path.name)) for path in files]
            if parts not in models:  # somebody may name every part
                models.append(parts)
    return models


def _quantized(
    model: Sequence[File], format: str, again: bool, folder: Path, tell: Progress
) -> list[File]:
    """The same model in another format; what is no model stays what it is."""
    first = model[0]
    if read(first.path).kind != "model":
        return list(model)
    name = convert.quantized_name(first.name, format)
    runtime = _host_runtime(tell)
    path = convert.to_format(
        first.path, folder / name, format, runtime.program(), again=again, tell=tell
    )
    return [_file(path, name)]


def _host_runtime(tell: Progress) -> Runtime:
    here = host()
    if here is None:
        raise PyllamafileError("quantizing takes a runtime for the system that this runs on")
    return native.find(here) or native.build(here, progress=tell)


def _default_name(found: Sequence[Source], format: str | None) -> str:
    if not found:
        return "llamafile"
    name = found[0].name
    if format:
        name = convert.quantized_name(name, format)
    return re.sub(r"-[0-9]{5}-of-[0-9]{5}$", "", name.removesuffix(".gguf"))


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder for what is written on the way, gone afterwards whatever happens."""
    try:
        folder = tempfile.TemporaryDirectory(dir=beside, prefix=".pyllamafile-")
    except OSError as error:
        raise PyllamafileError(f"{beside}: {error.strerror}") from error
    with folder:
        yield Path(folder.name)


def _file(path: Path, name: str) -> File:
    try:
        status = path.stat()
    except OSError as error:
        raise PyllamafileError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        what = "is a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise PyllamafileError(f"{path}: {what}")
    return File(path, name, status.st_size)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes with a file's content; None for one that is out of reach."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_names(extras: Sequence[File], gui: bool) -> None:
    """Leave to us what we write ourselves."""
    for file in extras:
        if file.name in (ARGS, MANIFEST) or (gui and file.name.startswith(GUI)):
            raise PyllamafileError(
                f"cannot add {file.name!r}: pyllamafile itself writes what has such a name",
                hint="--args-file FILE gives the text of .args" if file.name == ARGS else None,
            )


def _args_text(args: Sequence[str], args_file: PathLike | None) -> str | None:
    lines = []
    if args_file is not None:
        path = _file(Path(args_file), ARGS).path
        try:
            lines.append(path.read_text(encoding="utf-8").rstrip("\n"))
        except OSError as error:
            raise PyllamafileError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PyllamafileError(f"{path}: not UTF-8 text") from error
    for argument in args:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise PyllamafileError(f"the argument {argument!r} is not UTF-8 text") from error
        lines.append(quote(argument))
    return "\n".join(lines) + "\n" if lines else None


def runtimes_for(names: Sequence[str], tell: Progress) -> list[Runtime]:
    """The runtimes of these targets, or all at hand, or, if there is none yet, the host's."""
    if names:
        return [native.find(t) or native.build(t, progress=tell) for t in select(names)]
    at_hand = native.available()
    if at_hand:
        return at_hand
    here = host()
    if here is None:
        raise PyllamafileError(
            "no runtime is at hand, and none can be built for the system that this runs on",
            hint="choose one to build: " + " ".join(f"--target {target}" for target in TARGETS),
        )
    return [native.build(here, progress=tell)]


def _one_linux(names: Sequence[str]) -> Sequence[str]:
    """The names of targets, if an ELF program can be all of them: one, by default the host's."""
    here = host()
    chosen = select(names) if names else (here,) if here else ()
    if [target.os for target in chosen] != ["linux"]:
        raise PyllamafileError(
            "a file of the format elf is for one Linux target",
            hint="choose it with --target linux-amd64 or --target linux-arm64",
        )
    return [target.name for target in chosen]


def outer_program(runtimes: Sequence[Runtime], format: Format) -> Outer | None:
    """The program that the file itself is: on Windows there is no script to start one."""
    system = "linux" if format == "elf" else "windows"
    for runtime in runtimes:
        if TARGETS[runtime.target].os == system:
            return Outer(runtime, runtime.program())
    return None


# The GGUF itself as output


def _for_itself(found: Sequence[Source], output: Path | None, format: str | None) -> Path:
    """Where a GGUF goes that becomes the file itself, once it is clear that it can."""
    path = found[0].path if len(found) == 1 else None
    stored = path and found[0].name != sources.gguf_name(path.name)  # by Ollama, say
    if path is None or stored or format or len(shards(path)) > 1:
        raise PyllamafileError(
            "--in-place takes one GGUF that is a file, as it is", hint="leave out --in-place"
        )
    try:
        shift.undo(path)
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_nlink > 1:
            raise PyllamafileError(
                f"{path}: has other names, whose file would change, too",
                hint="leave out --in-place, or name the file itself if it is a symbolic link",
            )
        output = output or path.with_name(f"{_default_name(found, None)}.llamafile")
        there = output.parent.stat().st_dev if output.parent.is_dir() else status.st_dev
    except OSError as error:
        raise PyllamafileError(f"{path}: {error.strerror}") from error
    if there != status.st_dev:
        raise PyllamafileError(
            f"{output}: is on another file system than {path}", hint="leave out --in-place"
        )
    if shift.unit(path.parent) is None:
        raise PyllamafileError(
            f"{path}: its file system can't make room in front of a file's content",
            hint="ext4 and XFS on Linux can; leave out --in-place, which copies the weights",
        )
    if shift.busy(path):
        raise PyllamafileError(f"{path}: is in use, or may not be written", hint="end what uses it")
    return output


def _convert(
    layout: Plan, path: Path, destination: Path, others: Sequence[File], tell: Progress
) -> None:
    if any(path.samefile(other.path) for other in others):
        raise PyllamafileError(f"{path}: is to be put in twice", hint="leave out --in-place")
    if layout.layout.placed[0].stored_size != path.stat().st_size:
        raise PyllamafileError(f"{path}: changed while it was being packed")
    size = path.stat().st_size
    try:
        shift.Conversion(
            path,
            destination,
            layout,
            lambda: pieces(layout.head, layout.programs),
            lambda done: tell(f"reading {path.name}", done, size),
        ).run()
    except OSError as error:
        raise PyllamafileError(f"{path}: {error.strerror}") from error


# Where it goes


def companion_path(path: Path) -> Path:
    """The name by which a runtime for Windows finds `path` beside itself."""
    if path.suffix.lower() == ".exe":
        raise PyllamafileError(
            f"{path}: Windows can't start a program of 4 GiB or more",
            hint="name it .llamafile: the .exe that starts it is then written beside it",
        )
    return path.with_name(f"{path.name.removesuffix('.llamafile')}.exe")


def _check_output(path: Path, inputs: Sequence[Path], force: bool) -> None:
    try:
        if path.is_dir():
            raise PyllamafileError(f"{path}: is a directory", hint="name a file with -o")
        if not path.parent.is_dir():
            raise PyllamafileError(f"{path.parent}: no such directory")
        if not path.exists():
            return
        if any(path.samefile(given) for given in inputs):
            raise PyllamafileError(f"{path}: is input and output at once", hint="name another -o")
        if not path.is_file():
            raise PyllamafileError(f"{path}: not a regular file, so it can't be replaced")
    except OSError as error:  # a name too long, a directory that may not be searched
        raise PyllamafileError(f"{path}: {error.strerror}") from error
    if not force:
        raise _exists(path)


def _exists(path: Path) -> PyllamafileError:
    return PyllamafileError(f"{path}: exists already", hint="--force replaces it")


@contextlib.contextmanager
def appearing(
    path: Path, size: int, force: bool, mode: int | None = None
) -> Iterator[tuple[BinaryIO, Path]]:
    """A file that gets the name `path` when all went well, and vanishes otherwise.

    Its permissions are `mode`, or all that the umask leaves.

    Where the system can, the file has no name until it is complete, so that not even a
    SIGKILL leaves something behind. The second value is where it can be read meanwhile.
    """
    draft = path.with_name(f".pyllamafile-{secrets.token_hex(8)}")
    try:
        nameless = _nameless(path.parent)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL
        descriptor = os.open(draft, flags, 0o600) if nameless is None else nameless
        # Opened as `path`, for that is the name to appear in messages.
        with open(path, "w+b", opener=lambda *_: descriptor) as file:
            yield file, draft if nameless is None else _opened(nameless)
            file.flush()
            os.fchmod(descriptor, 0o777 & ~_umask() if mode is None else mode)
            os.fsync(descriptor)
            if nameless is None:
                draft.replace(path)
            else:
                _give_name(nameless, path, draft, force)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        hint = f"{size:,} bytes are needed" if error.errno == errno.ENOSPC else None
        raise PyllamafileError(f"{path}: {error.strerror}", hint=hint) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def put_beside(path: Path, program: bytes, force: bool, undo: contextlib.ExitStack) -> None:
    """Write a companion, before the file gets its name: that comes last."""
    new = not path.exists()
    with appearing(path, len(program), force) as (file, _):
        file.write(program)
    if new:
        undo.callback(path.unlink, missing_ok=True)


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


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_file(file: BinaryIO, layout: Plan, done: Callable[[int], None]) -> None:
    """Write a whole llamafile.

    Raises:
        PyllamafileError: Something that goes in can't be read, or isn't what it was.
    """
    for at, piece in pieces(layout.head, layout.programs):
        file.seek(at)
        file.write(piece)
    file.flush()
    start = layout.layout.start
    zipalign.write(file, layout.layout, lambda count: done(start + count))
    done(layout.size)


def pieces(head: bytes, programs: Sequence[Program]) -> Iterator[tuple[int, bytes]]:
    """What stands in front of the zip, one after the other: where it belongs, and its bytes.

    Raises:
        PyllamafileError: A runtime can't be read, or isn't what it was.
    """
    yield 0, head
    for program in programs:
        yield program.offset, program.runtime.packed()


def check_written(path: Path, destination: Path) -> None:
    """A second opinion on the structure; the contents were hashed while they were copied."""
    for problem in verify(path, contents=False):
        raise PyllamafileError(
            f"{destination}: the file came out wrong ({problem.where}: {problem.what})",
            hint="this is a bug in pyllamafile: please report it",
        )
