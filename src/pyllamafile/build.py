"""The recipe: weights -> plan -> write -> verify -> replace."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyllamafile
from pyllamafile import native, zipalign
from pyllamafile.errors import PyllamafileError
from pyllamafile.plan import Extra, Model, Plan, gui_entries, plan, quote
from pyllamafile.targets import TARGETS, Runtime, host, select
from pyllamafile.verify import verify
from pyllamafile.weights import read, shards

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Built:
    """A finished llamafile.

    Attributes:
        path: Where it is.
        size: Its length in bytes.
        name: What the model is called.
        models: Names of the weights inside.
        targets: Names of the systems that it runs on.
        missing: Names of the systems for which no runtime was at hand.
    """

    path: Path
    size: int
    name: str
    models: tuple[str, ...]
    targets: tuple[str, ...]
    missing: tuple[str, ...]


def build(
    gguf: PathLike | Sequence[PathLike] = (),
    output: PathLike | None = None,
    *,
    name: str | None = None,
    targets: Sequence[str] = (),
    args: Sequence[str] = (),
    args_file: PathLike | None = None,
    add: Sequence[tuple[PathLike, str]] = (),
    gui: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Pack weights, launcher and runtimes into one file.

    The file appears under its name when it is complete and not before; whatever goes wrong
    leaves no partial file and no damaged one.

    Args:
        gguf: The weights; parts of a split GGUF are taken together. None for an engine alone.
        output: The file to write; by default ``NAME.llamafile`` in the current directory.
        name: What the model is called; by default as its file is.
        targets: Systems to run on; by default those whose runtimes are at hand.
        args: Default arguments of the file, put into ``.args`` one by one.
        args_file: A file with the text of ``.args``, in front of `args`.
        add: More files, each with the name of its entry.
        gui: Whether the web GUI goes in.
        force: Whether an existing output may be replaced.
        progress: Told about every step.

    Raises:
        PyllamafileError: Some input is no good, or the output can't be written.
    """
    tell = progress or (lambda what, done, total: None)
    models = _models([gguf] if isinstance(gguf, (str, os.PathLike)) else gguf)
    name = name or _default_name(models)
    destination = Path(output) if output is not None else Path(f"{name}.llamafile")
    extras = [_extra(Path(path), entry) for path, entry in add]
    inputs = [*(model.path for model in models), *(extra.path for extra in extras)]
    _check_output(destination, inputs, force)

    runtimes = _runtimes(targets, tell)
    layout = plan(
        name=name,
        version=pyllamafile.__version__,
        models=models,
        runtimes=runtimes,
        extras=extras,
        args=_args_text(args, args_file),
        gui=gui_entries(native.find_gui() or native.build_gui(progress=tell)) if gui else (),
    )
    with _replacing(destination, layout.size) as file:
        _write(file, layout, lambda done: tell(f"writing {destination.name}", done, layout.size))
        _check_result(file, destination)

    included = tuple(runtime.target for runtime in runtimes)
    return Built(
        path=destination,
        size=layout.size,
        name=name,
        models=tuple(model.path.name for model in models),
        targets=included,
        missing=tuple(target for target in TARGETS if target not in included),
    )


# What goes in


def _models(paths: Sequence[PathLike]) -> list[Model]:
    models = []
    for given in paths:
        files = shards(Path(given))
        for path in files:
            weights = read(path)
            if weights.split and len(files) == 1:
                raise PyllamafileError(
                    f"{path}: one part of a split model, under a name that doesn't say so",
                    hint="give it back its name, such as NAME-00001-of-00003.gguf",
                )
            models.append(Model(path, weights))
    return models


def _default_name(models: Sequence[Model]) -> str:
    return models[0].path.stem.split("-00001-of-")[0] if models else "llamafile"


def _extra(path: Path, name: str) -> Extra:
    try:
        if not path.is_file():
            reason = "is a directory" if path.is_dir() else "no such file"
            raise PyllamafileError(f"{path}: {reason}")
        return Extra(path, name, path.stat().st_size)
    except OSError as error:
        raise PyllamafileError(f"{path}: {error.strerror}") from error


def _args_text(args: Sequence[str], args_file: PathLike | None) -> str | None:
    lines = []
    if args_file is not None:
        try:
            lines.append(Path(args_file).read_text(encoding="utf-8").rstrip("\n"))
        except OSError as error:
            raise PyllamafileError(f"{args_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PyllamafileError(f"{args_file}: not UTF-8 text") from error
    lines += [quote(argument) for argument in args]
    return "\n".join(lines) + "\n" if lines else None


def _runtimes(names: Sequence[str], tell: Progress) -> list[Runtime]:
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


# Where it goes


def _check_output(path: Path, inputs: Sequence[Path], force: bool) -> None:
    if path.is_dir():
        raise PyllamafileError(f"{path}: is a directory", hint="name a file with -o")
    if not path.parent.is_dir():
        raise PyllamafileError(f"{path.parent}: no such directory")
    if not path.exists():
        return
    for given in inputs:
        if path.samefile(given):
            raise PyllamafileError(f"{path}: is input and output at once", hint="name another -o")
    if not force:
        raise PyllamafileError(f"{path}: exists already", hint="--force replaces it")
    if not path.is_file():
        raise PyllamafileError(f"{path}: not a regular file, so it can't be replaced")


@contextlib.contextmanager
def _replacing(path: Path, size: int) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when all went well, and vanishes otherwise.

    Where the system can, the file has no name until it is complete, so that not even a
    SIGKILL leaves something behind.
    """
    try:
        with _nameless(path.parent) or tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            named = None if isinstance(file.name, int) else Path(file.name)
            try:
                yield file  # type: ignore[misc]
                os.fchmod(file.fileno(), 0o777 & ~_umask())
                file.flush()
                os.fsync(file.fileno())
                if named is None:
                    named = _give_name(file.fileno(), path)
                named.replace(path)
            except BaseException:
                if named is not None:
                    named.unlink(missing_ok=True)
                raise
    except OSError as error:
        hint = f"{size:,} bytes are needed" if error.errno == errno.ENOSPC else None
        raise PyllamafileError(f"{path}: {error.strerror}", hint=hint) from error


def _nameless(folder: Path) -> BinaryIO | None:
    flag = getattr(os, "O_TMPFILE", 0)  # Linux
    if not flag or not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        return None
    try:
        return os.fdopen(os.open(folder, flag | os.O_RDWR, 0o600), "w+b")
    except OSError:
        return None  # this file system doesn't have it


def _give_name(descriptor: int, path: Path) -> Path:
    """Name a nameless file: beside its destination, for a link can't replace a file."""
    name = path.with_name(f".{path.name}.{os.getpid()}")
    name.unlink(missing_ok=True)
    os.link(f"/proc/self/fd/{descriptor}", name, follow_symlinks=True)
    return name


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _write(file: BinaryIO, layout: Plan, done: Callable[[int], None]) -> None:
    file.write(layout.head)
    for program in layout.programs:
        file.seek(program.offset)
        file.write(program.runtime.path.read_bytes())
    file.flush()
    start = layout.layout.start
    zipalign.write(file, layout.layout, lambda count: done(start + count))
    done(layout.size)


def _check_result(file: BinaryIO, path: Path) -> None:
    """A second opinion on the structure; the contents were hashed while they were copied."""
    file.flush()
    name = Path(file.name) if isinstance(file.name, str) else Path(f"/proc/self/fd/{file.fileno()}")
    for problem in verify(name, contents=False):
        raise PyllamafileError(
            f"{path}: the file came out wrong ({problem.where}: {problem.what})",
            hint="this is a bug in pyllamafile: please report it",
        )
