"""The recipe: weights -> plan -> write -> verify -> replace."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyllamafile
from pyllamafile import engine, plan, zipalign
from pyllamafile.appearing import appearing, exists, permitted, scratch_folder
from pyllamafile.arguments import quote
from pyllamafile.engine import Format
from pyllamafile.errors import AccessError, PyllamafileError, RefusedError
from pyllamafile.llamafile import ARGS, GUI, MANIFEST, WEIGHTS
from pyllamafile.models import convert, forecast, sources
from pyllamafile.models.fit import chat_template, misfit, partner_args
from pyllamafile.models.gguf import Weights, read, shards
from pyllamafile.models.source import PathLike, Source, gguf_name
from pyllamafile.ops import in_place as conversion
from pyllamafile.output import check_written, companion_path, write, write_companion
from pyllamafile.plan import File
from pyllamafile.progress import Progress, silent
from pyllamafile.targets import TARGETS, TOO_LARGE


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
        quantize_to: What the models are quantized to, one of `forecast.FORMATS`; adapters,
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
    tell = progress or silent
    if quantize_to is not None:
        forecast.check(quantize_to)
    found = [sources.find(g) for g in ([gguf] if isinstance(gguf, (str, os.PathLike)) else gguf)]
    partners = _partners(lora, mmproj, draft)
    if partners and not found:
        raise RefusedError(
            f"{partners[0].source.name} goes with a model, and there is none",
            hint="give it with --gguf",
        )
    name = name or _default_name(found, quantize_to)
    destination = Path(output) if output is not None else Path(f"{name}.llamafile")
    if in_place:
        given = destination if output is not None else None
        stem = _default_name(found, None)
        destination = conversion.destination(found, given, stem, quantize_to)
    with contextlib.ExitStack() as scratch:
        folder = destination.parent
        everything = [*found, *(partner.source for partner in partners)]
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
        going = [_models([partner.source], folder, header, tell)[0] for partner in partners]
        extras = [_file(Path(path), entry) for path, entry in add]
        _check_names(extras, gui)
        added = [extra for extra in extras if extra.name.endswith(WEIGHTS)]  # weights to a runtime
        text = _args_text(args, args_file)
        files_in = [*itertools.chain(*groups, *going), *extras]
        inputs = [file.path for file in files_in]
        inputs += [Path(args_file)] if args_file is not None else []
        before |= {f.path: _stamp(f.path) for f in files_in if f.path not in before}
        facts = {file.name: header(file.path) for file in (*itertools.chain(*groups), *added)}
        lines = []
        template = chat_template(facts, text)
        if isinstance(template, str):
            lines.append(["--chat-template", template])
        for partner, files in zip(partners, going, strict=True):
            own, others = header(files[0].path), [facts[file.name] for file in groups[0]]
            _check_fit(partner, files[0], own, others)
            lines.append(partner_args(partner.role, files[0].name, partner.scale))
        if lines:
            text = "".join(" ".join(map(quote, line)) + "\n" for line in lines) + (text or "")
        _check_output(destination, inputs, force)
        # Now rather than after the minutes that a runtime may take.
        names = [file.name for file in (*itertools.chain(*groups, *going), *extras)]
        zipalign.layout([zipalign.Entry(entry, b"") for entry in names], 0)

        wanted = engine.one_linux(targets) if format == "elf" else targets
        runtimes = engine.runtimes_for(wanted, tell)
        head_program = engine.head_program(runtimes, format)
        if quantize_to:
            groups = [_quantized(g, quantize_to, requantize, folder, tell) for g in groups]
        models = list(itertools.chain(*groups))
        decided = plan.whole(
            name=name,
            version=pyllamafile.__version__,
            models=[*models, *itertools.chain(*going)],
            runtimes=runtimes,
            head_program=head_program,
            extras=extras,
            args=text,
            gui=engine.gui_entries(tell) if gui else (),
        )
        too_large = bool(head_program) and format == "portable" and decided.size >= TOO_LARGE
        exe = companion_path(destination) if too_large and companion else None
        if exe:
            _check_output(exe, inputs, force)
        program = head_program.program if exe and head_program else None
        del head_program  # as many bytes again as the head has; writing needs memory of its own
        with contextlib.ExitStack() as undo:
            if in_place:
                if exe and program:
                    write_companion(exe, program, force, undo)
                rest = [*models[1:], *itertools.chain(*going), *extras]
                conversion.convert(decided, models[0].path, destination, rest, tell)
                undo.pop_all()
                check_written(destination, destination)
            else:
                with appearing(destination, decided.size, force=force, mode=permitted(0o777)) as (
                    file,
                    path,
                ):
                    write(file, decided, tell)
                    check_written(path, destination)
                    for given, stamp in before.items():
                        if _stamp(given) != stamp:
                            raise RefusedError(
                                f"{given}: changed while it was being packed", path=given
                            )
                    if exe and program:
                        write_companion(exe, program, force, undo)
                undo.pop_all()

    included = tuple(runtime.target for runtime in runtimes)
    return Built(
        path=destination,
        size=decided.size,
        name=name,
        models=tuple(file.name for file in models)
        + tuple(file.name for file in added if facts[file.name].kind == "model"),
        partners=tuple(
            (f"--{partner.role}", files[0].name + partner.suffix)
            for partner, files in zip(partners, going, strict=True)
        ),
        targets=included,
        missing=tuple(target for target in TARGETS if target not in included),
        too_large=too_large,
        companion=exe,
        template=template if isinstance(template, str) else None,
        untemplated=() if isinstance(template, str) else template,
    )


# What goes in


@dataclass(frozen=True)
class _Partner:
    """Weights that go with the first model, in one of `fit.ROLES`."""

    role: str
    source: Source
    scale: float = 1

    @property
    def suffix(self) -> str:
        return "" if self.scale == 1 else f"={self.scale:g}"


def _partners(
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
            parts = [_file(path, gguf_name(path.name)) for path in files]
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
    runtime = engine.host_runtime(tell)
    path = convert.to_format(
        first.path, folder / name, format, runtime.program(), again=again, tell=tell
    )
    return [_file(path, name)]


def _default_name(found: Sequence[Source], format: str | None) -> str:
    if not found:
        return "llamafile"
    name = found[0].name
    if format:
        name = convert.quantized_name(name, format)
    return re.sub(r"-[0-9]{5}-of-[0-9]{5}$", "", name.removesuffix(".gguf"))


def _file(path: Path, name: str) -> File:
    try:
        status = path.stat()
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
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
            raise AccessError(f"{path}: {error.strerror}", path=path) from error
        except UnicodeDecodeError as error:
            raise PyllamafileError(f"{path}: not UTF-8 text") from error
    for argument in args:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise PyllamafileError(f"the argument {argument!r} is not UTF-8 text") from error
        lines.append(quote(argument))
    return "\n".join(lines) + "\n" if lines else None


# Where it goes


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
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    if not force:
        raise exists(path)
