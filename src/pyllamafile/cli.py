"""The command line: the only module that prints or exits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import pyllamafile
from pyllamafile import native, plan, zipalign
from pyllamafile.errors import PyllamafileError
from pyllamafile.inspect import ModelFacts, Report, content
from pyllamafile.targets import TARGETS, host, select
from pyllamafile.verify import work

Tell = Callable[[str, int, int], None]

_PATH = click.Path(path_type=Path)

# rich measures a terminal; a pipe gets whole lines.
_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 asked in the wrong way, 130 interrupted."""
    try:
        sys.exit(commands.main(arguments, prog_name="pyllamafile", standalone_mode=False))
    except PyllamafileError as error:
        _fail(error.message, error.hint)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _err.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _fail(message: str, hint: str | None = None) -> NoReturn:
    _err.print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        _err.print(f"[bold]hint:[/] {escape(hint)}")
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyllamafile.__version__, message="pyllamafile %(version)s")
def commands() -> None:
    """Turn a language model into one file that anybody can run."""


# build


@commands.command()
@click.option("--gguf", type=_PATH, multiple=True, help="Weights; repeat it for several models.")
@click.option("-o", "--output", type=_PATH, help="The file to write.  [default: NAME.llamafile]")
@click.option("--name", help="What the model is called.  [default: its file's name]")
@click.option("--arg", multiple=True, help="A default argument of the file; repeat it.")
@click.option("--args-file", type=_PATH, help="A file of default arguments (see .args below).")
@click.option("--add", multiple=True, metavar="FILE[=NAME]", help="Another file to put in.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="A system to run on; repeat it.  [default: every runtime at hand]",
)
@click.option("--gui/--no-gui", default=True, help="With or without the web GUI.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def build(
    gguf: tuple[Path, ...],
    output: Path | None,
    name: str | None,
    arg: tuple[str, ...],
    args_file: Path | None,
    add: tuple[str, ...],
    targets: tuple[str, ...],
    gui: bool,
    force: bool,
) -> None:
    r"""Pack weights and everything that runs them into one file.

    Parts of a split GGUF (NAME-00001-of-00003.gguf) are taken together. Without
    --gguf the file is an engine alone, for weights given with -m when it runs.

    Default arguments go into the entry .args, where white space separates, # starts
    a comment, quotes work as in a shell, $NAME is an environment variable, and `...`
    stands for what the user gives.

    \b
    Examples:
      pyllamafile build --gguf phi3.gguf -o phi3.llamafile
      pyllamafile build --gguf phi3.gguf --arg -c --arg 2048 --add LICENSE.txt
    """
    with _progress() as tell:
        _announce_compiling(targets)
        built = pyllamafile.build(
            gguf,
            output,
            name=name,
            targets=targets,
            args=arg,
            args_file=args_file,
            add=[_add_option(option) for option in add],
            gui=gui,
            force=force,
            progress=tell,
        )
    _out.print(f"[bold]{escape(str(built.path))}[/]  {_size(built.size)}")
    _out.print(f"  weights   {escape(', '.join(built.models) or 'none: give some with -m FILE')}")
    _out.print(f"  runs on   {', '.join(built.targets)}")
    if built.missing:
        _out.print(f"  lacking   {', '.join(built.missing)} (pyllamafile runtimes build --all)")
    run = escape(_as_command(built.path))
    model = "" if built.models else " -m MODEL.gguf"
    _out.print("try:")
    _out.print(f'  {run}{model} -p "Once upon a time" -n 64')
    _out.print(f"  {run}{model}   # web GUI and API on http://127.0.0.1:8080")


def _announce_compiling(targets: tuple[str, ...]) -> None:
    here = host()
    wanted = select(targets) if targets else ()
    if any(native.find(target) is None for target in wanted) or (
        not wanted and here is not None and not native.available()
    ):
        _err.print(
            "No runtime is at hand yet: compiling llama.cpp and its web GUI, once. "
            "That takes about ten minutes on two cores."
        )


def _add_option(option: str) -> tuple[Path, str]:
    path, equals, name = option.rpartition("=")
    if not equals or Path(option).exists():
        return Path(option), Path(option).name
    return Path(path), name


def _as_command(path: Path) -> str:
    text = str(path)
    quoted = (
        text
        if text.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum()
        else f"'{text}'"
    )
    return quoted if "/" in text else f"./{quoted}"


# inspect, verify, extract


@commands.command()
@click.argument("file", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def inspect(file: Path, as_json: bool) -> None:
    """Say what is in a llamafile, a GGUF, or any zip."""
    report = pyllamafile.inspect(file)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print_report(report)


def _print_report(report: Report) -> None:
    built = f"  built by pyllamafile {report.built_by}" if report.built_by else ""
    _out.print(f"[bold]{escape(report.path)}[/]  {_size(report.size)}{escape(built)}")
    for model in report.models:
        _print_model(model)
    if report.runtimes:
        table = Table(
            "runtime", "llama.cpp", "levels", "offset", "size", "packed", "sha256", box=None
        )
        for runtime in report.runtimes:
            table.add_row(
                str(runtime.get("target")),
                str(runtime.get("llama_cpp")),
                " ".join(map(str, runtime.get("levels", ()))),
                str(runtime.get("offset")),
                str(runtime.get("size")),
                str(runtime.get("packed_size")),
                str(runtime.get("sha256"))[:16],
            )
        _out.print(table)
    if report.args is not None:
        _out.print("[bold].args[/]")
        for line in report.args.splitlines():
            _out.print(f"  {escape(line)}")
    if report.entries:
        table = Table(box=None)
        for column in ("offset", "align", "size", "stored"):
            table.add_column(column, justify="right")
        table.add_column("method")
        table.add_column("entry", no_wrap=True)
        for entry in report.entries:
            table.add_row(
                str(entry.offset),
                str(entry.alignment),
                str(entry.size),
                str(entry.stored_size),
                entry.method,
                escape(entry.name),
            )
        _out.print(table)


def _print_model(model: ModelFacts) -> None:
    _out.print(f"[bold]{escape(model.file)}[/]")
    template = model.chat_template
    rows: dict[str, Any] = {
        "problem": model.problem,
        "name": model.name,
        "architecture": model.architecture,
        "parameters": f"{model.parameters:,}" if model.parameters is not None else None,
        "quantization": model.quantization,
        "context": f"{model.context_length:,} tokens" if model.context_length else None,
        "tokenizer": model.tokenizer,
        "vocabulary": f"{model.vocabulary:,} tokens" if model.vocabulary else None,
        "tensors": model.tensors,
        "template": f"{len(template):,} characters" if template else None,
    }
    for label, value in rows.items():
        if value is not None:
            _out.print(f"  {label:<12}  {escape(str(value))}")


@commands.command()
@click.argument("file", type=_PATH)
def verify(file: Path) -> None:
    """Check structure, alignment, checksums and digests of a llamafile."""
    total = work(file)
    with _progress() as tell:
        problems = pyllamafile.verify(file, lambda done: tell("verifying", done, total))
    for problem in problems:
        _out.print(f"{escape(problem.where)}: {escape(problem.what)}")
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        _fail(f"{file}: {count}")
    _out.print(f"{escape(str(file))}: sound")


@commands.command()
@click.argument("file", type=_PATH)
@click.argument("names", nargs=-1)
@click.option("-C", "--directory", type=_PATH, default=Path(), help="Where to.  [default: here]")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def extract(file: Path, names: tuple[str, ...], directory: Path, force: bool) -> None:
    """Take the entries NAMES, or all of them, out of a llamafile or any zip."""
    for path in pyllamafile.extract(file, directory, names, force=force):
        _out.print(escape(str(path)))


# zipalign


@commands.command("zipalign")
@click.argument("archive", metavar="ZIP", type=_PATH)
@click.argument("files", metavar="FILE...", type=_PATH, nargs=-1, required=True)
@click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
@click.option("-N", "--nondeterministic", is_flag=True, help="Keep the files' own dates.")
@click.option("-j", "--junk-paths", is_flag=True, help="Leave out the directories of the names.")
@click.option(
    "-a", "--alignment", type=int, default=zipalign.BLOCK, show_default=True, help="Bytes."
)
@click.option("-0", "level", flag_value=0, type=int, default=0, help="Store (the default).")
@click.option("-1", "level", flag_value=1, type=int, help="Compress fast.")
@click.option("-2", "level", flag_value=2, type=int, hidden=True)
@click.option("-3", "level", flag_value=3, type=int, hidden=True)
@click.option("-4", "level", flag_value=4, type=int, hidden=True)
@click.option("-5", "level", flag_value=5, type=int, hidden=True)
@click.option("-6", "level", flag_value=6, type=int, hidden=True)
@click.option("-7", "level", flag_value=7, type=int, hidden=True)
@click.option("-8", "level", flag_value=8, type=int, hidden=True)
@click.option("-9", "level", flag_value=9, type=int, help="Compress best; -2 to -8 between.")
def zipalign_command(
    archive: Path,
    files: tuple[Path, ...],
    verbose: bool,
    nondeterministic: bool,
    junk_paths: bool,
    alignment: int,
    level: int,
) -> None:
    """Put files into a zip, aligned so that they can be memory-mapped.

    Entries of the same name are replaced. Works on files of ours, whose manifest follows,
    on Mozilla's llamafiles and on any zip; makes ZIP if there is none. Interrupted at any
    moment, it leaves the old archive or the new one.
    """
    entries = [
        zipalign.from_file(
            file,
            file.name if junk_paths else _entry_name(file),
            level=level,
            align=alignment,
            own_time=nondeterministic,
        )
        for file in files
    ]
    total = sum(entry.stored_size for entry in entries)
    with _progress() as tell:
        dead = zipalign.add(
            archive,
            [*entries, *_new_manifest(archive, entries)],
            progress=lambda done: tell(f"writing {archive.name}", done, total),
        )
    if verbose:
        members = {member.name: member for member in zipalign.read(archive).members}
        for entry in entries:
            member = members[entry.name]
            _err.print(escape(f"{entry.name}: {member.stored_size} bytes at {member.data_offset}"))
        if dead:
            _err.print(f"{dead} bytes of the old archive are left, unused")


def _entry_name(path: Path) -> str:
    """As Info-ZIP names a file: relative, without what leads to the root."""
    return path.as_posix().lstrip("/")


def _new_manifest(archive: Path, entries: list[zipalign.Entry]) -> list[zipalign.Entry]:
    if archive.exists():
        for member in zipalign.read(archive).members:
            if member.name == plan.MANIFEST:
                updated = plan.updated_manifest(content(archive, member), entries)
                return [updated] if updated else []
    return []


# runtimes


@commands.group()
def runtimes() -> None:
    """The native programs that go into a file."""


@runtimes.command("list")
def list_runtimes() -> None:
    """Say which runtimes are at hand, in the package or in the cache."""
    table = Table("target", "where", "llama.cpp", "levels", "size", "packed", "sha256", box=None)
    for target in TARGETS.values():
        runtime = native.find(target)
        if runtime is None:
            table.add_row(target.name, "not built")
        else:
            table.add_row(
                target.name,
                runtime.origin,
                runtime.llama_cpp,
                " ".join(runtime.levels),
                _size(runtime.size),
                _size(runtime.packed_size),
                runtime.sha256[:16],
            )
    _out.print(table)


@runtimes.command("build")
@click.option("--target", "targets", multiple=True, metavar="TARGET", help="Repeat it for more.")
@click.option("--all", "everything", is_flag=True, help="All targets.")
@click.option("-j", "--jobs", type=int, help="Compilers at once.  [default: one per processor]")
def build_runtimes(targets: tuple[str, ...], everything: bool, jobs: int | None) -> None:
    """Compile the runtimes that are missing, and the web GUI.

    llama.cpp's source comes from the llama-cpp-python sdist, which pip fetches; zig compiles
    it, for whatever target. By default it is the system that this runs on.
    """
    here = host()
    if everything:
        wanted = tuple(TARGETS.values())
    elif targets:
        wanted = select(targets)
    elif here:
        wanted = (here,)
    else:
        raise PyllamafileError("this system is no target", hint="name one with --target, or --all")
    with _progress() as tell:
        for target in wanted:
            runtime = native.build(target, jobs=jobs, progress=tell)
            _out.print(f"{target.name}  {_size(runtime.size)}  {runtime.path}")
        _out.print(f"web GUI  {native.build_gui(progress=tell)}")


# progress and numbers


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on the terminal for what takes over two seconds; nothing anywhere else."""
    started = time.monotonic()
    if not _err.is_terminal:
        yield lambda what, done, total: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=_err,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def tell(what: str, done: int, total: int) -> None:
        if time.monotonic() - started < 0.5 and not bar.live.is_started:
            return
        bar.start()
        if what not in tasks:
            for task in tasks.values():
                bar.remove_task(task)
            tasks.clear()
            tasks[what] = bar.add_task(escape(what), total=total or None)
        bar.update(tasks[what], completed=done, total=total or None)

    try:
        yield tell
    finally:
        bar.stop()


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
