"""Every command: what it takes, and what it says of what was done."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect as inspection
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from click.shell_completion import CompletionItem
from rich.table import Table
from rich.text import Text

import pyllamafile
from pyllamafile import Adapter, Built, llamafile, native, zipalign
from pyllamafile.cli import man, screen
from pyllamafile.cli.screen import amount, bold, complain, err, fail, out, print_table, shown, warn
from pyllamafile.errors import PyllamafileError, RefusedError
from pyllamafile.models.fit import KINDS
from pyllamafile.models.forecast import FORMATS
from pyllamafile.ops.advise import Advice
from pyllamafile.ops.inspect import EntryFacts, ModelFacts, Report
from pyllamafile.progress import Progress, Step
from pyllamafile.runtimes import Runtime
from pyllamafile.targets import TARGETS, Target, groups, host, select

_Command = TypeVar("_Command", bound=Callable[..., object])

_PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyllamafile.__version__, message="pyllamafile %(version)s")
def program() -> None:
    """Turn a language model into one file that anybody can run."""


# What a shell completes: click asks, by its variable _PYLLAMAFILE_COMPLETE


def _complete_files(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]  # to be found by the shell itself


def _complete_targets(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    return [name for name in (*groups(), *TARGETS) if name.startswith(incomplete)]


def _target_option(help: str) -> Callable[[_Command], _Command]:
    return click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="TARGET",
        shell_complete=_complete_targets,
        help=help,
    )


def _complete_entries(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    with contextlib.suppress(PyllamafileError, TypeError):
        members = zipalign.read(Path(context.params["file"])).members
        return [member.name for member in members if member.name.startswith(incomplete)]
    return []


# build


@program.command()
@click.option(
    "--gguf",
    multiple=True,
    metavar="SOURCE",
    shell_complete=_complete_files,
    help="Weights; repeat it for several models.",
)
@click.option(
    "--lora",
    multiple=True,
    metavar="SOURCE[=SCALE]",
    help="A LoRA adapter for the first model; repeat it.",
)
@click.option("--mmproj", metavar="SOURCE", help="A projector: the first model sees or hears.")
@click.option("--draft", metavar="SOURCE", help="A small model that drafts for the first one.")
@click.option(
    "--quantize",
    "quantize_to",
    type=click.Choice(list(FORMATS), case_sensitive=False),
    help="Make the weights smaller first.",
)
@click.option(
    "--allow-requantize",
    is_flag=True,
    help="Even if they are quantized already, which loses more.",
)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    metavar="OUT",
    help="The file to write.  [default: NAME.llamafile]",
)
@click.option(
    "--name", metavar="NAME", help="What the model is called.  [default: its file's name]"
)
@click.option(
    "--arg", multiple=True, metavar="ARG", help="A default argument of the file; repeat it."
)
@click.option("--args-file", type=_PATH, metavar="FILE", help="Default arguments in a text file.")
@click.option(
    "--add",
    multiple=True,
    metavar="FILE[=NAME]",
    shell_complete=_complete_files,
    help="Another file to put in.",
)
@_target_option("A system to run on, or a group; repeat it.  [default: every runtime at hand]")
@click.option("--gui/--no-gui", default=True, help="With or without the web GUI.")
@click.option(
    "--format",
    type=click.Choice(["portable", "elf"]),
    default="portable",
    show_default=True,
    help="What the file is to the system that starts it.",
)
@click.option(
    "--companion/--no-companion",
    default=True,
    help="With or without the .exe that starts a file of 4 GiB or more on Windows.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--in-place", is_flag=True, help="The GGUF itself becomes OUT: no copy, and no GGUF any more."
)
def build(
    gguf: tuple[str, ...],
    lora: tuple[str, ...],
    mmproj: str | None,
    draft: str | None,
    quantize_to: str | None,
    allow_requantize: bool,
    output: Path | None,
    name: str | None,
    arg: tuple[str, ...],
    args_file: Path | None,
    add: tuple[str, ...],
    targets: tuple[str, ...],
    gui: bool,
    format: Literal["portable", "elf"],
    companion: bool,
    force: bool,
    in_place: bool,
) -> None:
    """Pack weights and everything that runs them into one file.

    A SOURCE is a GGUF; a folder of safetensors or of a LoRA adapter, which is converted
    (pip install 'pyllamafile[convert]'); hf:OWNER/REPO on Hugging Face's hub, with :FILE or
    a quantization such as :Q4_K_M behind it where there are several; or ollama:NAME[:TAG]
    in Ollama's store. Parts of a split GGUF (NAME-00001-of-00003.gguf) are taken together.
    With -o and no --gguf the file is an engine alone, for weights given with -m when it runs.

    --lora, --mmproj and --draft take a SOURCE, too, and are used with the first --gguf by
    themselves. An adapter's SCALE is how much of it is applied, 1 by default. A draft has the
    model's vocabulary: what it writes ahead the model checks at once, so that the same answer
    comes sooner. Several --gguf are models side by side: the server has them all, and loads
    one when it is asked for; -p and --chat want -m @NAME.

    --quantize takes weights in F16, BF16 or F32, and room for the result beside OUT. `advise`
    says which format suits a model and a machine.

    Default arguments go into the entry .args. In a text file of them white space
    separates, # starts a comment, quotes work as in a shell, and $NAME is an
    environment variable. An argument ... stands for those that the user gives, which
    otherwise follow.

    A TARGET is a system on a processor (linux-amd64, as `runtimes list` has them), or a
    group of them: a system (linux), a processor (arm64), or all.

    Without a Windows target the file begins with #!/bin/sh and starts wherever programs
    do: from shells, systemd, containers, another program. With one it is a Windows program
    that shells run as a script; what is no shell then has to call sh FILE. --format elf
    makes it a program of one Linux target, which needs no shell and unpacks nothing.

    Windows starts no program of 4 GiB or more. Such a file gets a small one beside it that
    opens it: OUT with .exe for .llamafile.

    --in-place makes room in front of the weights where they are, on ext4 and XFS under Linux: the
    weights are read once and not written, and the disk needs room for the engine alone. The GGUF
    is gone then: it has become OUT, in the same folder unless -o says otherwise (`extract` gets it
    back). Killed halfway, it may be neither GGUF nor llamafile: the same command again, or any
    --in-place with that file, makes it the GGUF again and starts anew.

    \b
    Examples:
      pyllamafile build --gguf phi3.gguf -o phi3.llamafile
      pyllamafile build --gguf phi3.gguf --arg -c --arg 2048 --add LICENSE.txt
      pyllamafile build --gguf phi3.gguf --target linux --target macos-arm64
      pyllamafile build --gguf phi3-f16.gguf --quantize Q5_K_M
      pyllamafile build --gguf hf:microsoft/Phi-3-mini-4k-instruct-gguf:q4
      pyllamafile build --gguf ollama:phi3
    """  # noqa: D301
    if not gguf and output is None and not (lora or mmproj or draft):
        raise click.UsageError("nothing to pack: give --gguf FILE, or -o OUT for an engine alone")
    with screen.progress() as tell:
        built = pyllamafile.build(
            gguf,
            output,
            lora=[_lora_option(option) for option in lora],
            mmproj=mmproj,
            draft=draft,
            name=name,
            targets=targets,
            args=arg,
            args_file=args_file,
            add=[_add_option(option) for option in add],
            gui=gui,
            format=format,
            companion=companion,
            quantize_to=quantize_to,
            requantize=allow_requantize,
            force=force,
            in_place=in_place,
            progress=_announcing(tell),
        )
    out.print(bold(str(built.path)), f" {amount(built.size)}")
    out.print(f"  weights   {shown(', '.join(built.models) or 'none: give some with -m FILE')}")
    for option, partner in built.partners:
        out.print(f"  {option:<8}  {shown(partner)}")
    out.print(f"  runs on   {', '.join(built.targets)}")
    if note := _on_windows(built):
        out.print(f"  Windows   {shown(note)}")
    if built.template:
        out.print("  chat      in its family's format, for the weights don't say theirs")
    if built.missing:
        lacking = f"{len(built.missing)} of {len(TARGETS)} targets"
        out.print(f"  lacking   {lacking} (pyllamafile runtimes build --all)")
    for model in built.untemplated:
        warn(
            f"{model} has no chat template: conversations with it are written in ChatML",
            "--arg --chat-template --arg TEMPLATE brings one, in Jinja, for all weights inside",
        )
    run, choice = shown(_as_command(built.path)), shown(_choice(built.models))
    out.print("try:")
    out.print(f'  {run}{choice} -p "Once upon a time" -n 64')
    serving = choice if not built.models else ""  # it has all models, and loads them on demand
    offered = "web GUI and API" if gui else "API"
    out.print(f"  {run}{serving}   # {offered} on http://127.0.0.1:8080")


def _on_windows(built: Built) -> str | None:
    """What people with Windows have to know."""
    if built.too_large:
        opener = built.companion or "nothing"
        return f"{opener} starts it there, for a program must be below 4 GiB"
    for_windows = any(TARGETS[name].os == "windows" for name in built.targets)
    if for_windows and built.path.suffix.lower() != ".exe":
        return "starts it when its name ends in .exe"
    return None


def _announcing(tell: Progress) -> Progress:
    """The same, with a word in front of the first step that is not the writing itself."""
    announced = False

    def announce(step: Step) -> None:
        nonlocal announced
        if not announced and step.what.startswith(("building ", "fetching llama.cpp")):
            announced = True
            lacking, what = "No runtime is", "llama.cpp and its web GUI"
            if native.available():
                lacking, what = "Not all that goes in is", "the rest of llama.cpp"
            err.print(
                f"{lacking} at hand yet: compiling {what}, once. "
                "That takes about ten minutes on two cores."
            )
        tell(step)

    return announce


def _add_option(option: str) -> tuple[Path, str]:
    path, equals, name = option.rpartition("=")
    if not equals or os.path.lexists(option):
        return Path(option), Path(option).name
    return Path(path), name


def _lora_option(option: str) -> str | Adapter:
    source, equals, scale = option.rpartition("=")
    if not equals or os.path.lexists(option):
        return option
    try:
        return Adapter(source, float(scale))
    except ValueError as error:
        raise click.BadParameter(f"{scale!r} is no scale", param_hint="'--lora'") from error


def _as_command(path: Path) -> str:
    return shlex.quote(str(path) if "/" in str(path) else f"./{path}")


def _choice(models: Sequence[str]) -> str:
    """The -m that such a file can't do without; the later parts of a model are not for it."""
    if not models:
        return " -m MODEL.gguf"
    whole = [m for m in models if not re.search(r"-(?!00001)[0-9]{5}-of-[0-9]{5}\.gguf$", m)]
    return f" -m {shlex.quote('@' + whole[0].removesuffix('.gguf'))}" if len(whole) > 1 else ""


# advise


@program.command()
@click.argument("source", metavar="SOURCE", shell_complete=_complete_files)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=1),
    help="Tokens of context.  [default: the model's own, 4096 at most]",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="The memory of another machine, in units of 10^9 bytes.  [default: this one's]",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def advise(source: str, context: int | None, memory: float | None, as_json: bool) -> None:
    """Say which format to quantize a model to.

    SOURCE is a GGUF, hf:OWNER/REPO[:FILE-or-quant] or ollama:NAME[:TAG]; of one on the hub
    only the header is fetched. Sizes follow from the header by the quantizer's own rules.
    Memory is weights, keys and values for the context (F16), and the buffers for reading 512
    tokens at once; it fits if an eighth of the machine's stays free. Good for reading means
    fast with long prompts, for writing fast with long answers. One file on Windows is what
    stays below 4 GiB with everything that runs it.
    """
    machine = int(memory * 1e9) if memory else None
    advice = pyllamafile.advise(source, context=context, machine=machine)
    if as_json:
        click.echo(json.dumps(advice.as_dict(), indent=2))
    else:
        _print_advice(advice)


def _print_advice(advice: Advice) -> None:
    facts = [f"{advice.parameters / 1e6:,.0f} million parameters"]
    facts += [f"quantized to {advice.quantization}"] if advice.quantization else []
    out.print(bold(advice.name), f" {shown(', '.join(facts))}")
    own = f" of {advice.own_context:,}" if advice.own_context else ""
    machine = f"{amount(advice.usable)} of {amount(advice.machine)}"
    out.print(f"  context {advice.context:,}{own} tokens; the machine has {machine} for it")
    header = ("format", "file", "memory", "fits", "good for", "Windows")
    table = Table(*header, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in advice.rows:
        table.add_row(
            row.format,
            amount(row.size),
            amount(row.memory.total),
            "yes" if row.fits else "no",
            row.good_for,
            "one file" if row.windows else "two files",
            style="bold" if row.format == advice.recommended else None,
        )
    out.print(table)
    out.print(shown(f"{advice.recommended or 'none'}: {advice.reason}"))


# inspect, verify, extract


@program.command()
@click.argument("file", type=_PATH)
@click.option("-a", "--all", "everything", is_flag=True, help="Every file of the web GUI, too.")
@click.option("--json", "as_json", is_flag=True, help="For programs; always everything.")
def inspect(file: Path, everything: bool, as_json: bool) -> None:
    """Say what is in a llamafile, a GGUF, or any zip."""
    report = pyllamafile.inspect(file)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print_report(report if everything else replace(report, entries=_folded(report.entries)))


def _folded(entries: Sequence[EntryFacts]) -> tuple[EntryFacts, ...]:
    """The same, with the dozens of files of the web GUI as one, and so the notices."""
    for folder in (llamafile.GUI, llamafile.LICENSES):
        entries = _with_one_row(entries, folder)
    return tuple(entries)


def _with_one_row(entries: Sequence[EntryFacts], folder: str) -> Sequence[EntryFacts]:
    files = [entry for entry in entries if entry.name.startswith(folder)]
    if len(files) < 2:
        return entries
    row = replace(
        files[0],
        name=f"{folder} ({len(files)} files, --all lists them)",
        size=sum(entry.size for entry in files),
        stored_size=sum(entry.stored_size for entry in files),
        method=", ".join(sorted({entry.method for entry in files})),
        alignment=min(entry.alignment for entry in files),
    )
    at = entries.index(files[0])
    rest = (entry for entry in entries[at:] if not entry.name.startswith(folder))
    return (*entries[:at], row, *rest)


def _print_report(report: Report) -> None:
    origin = {"called": report.name, "built by pyllamafile": report.built_by}
    facts = ", ".join(f"{what} {value}" for what, value in origin.items() if value)
    out.print(bold(str(report.path)), f" {amount(report.size)}  {shown(facts)}".rstrip())
    for label, problem in _problems(report).items():
        out.print(f"  {label:<12}  {shown(problem)}")
    if report.runtimes:
        out.print("  " + ", ".join(f"{what} {amount(size)}" for what, size in _shares(report)))
    for model in report.models:
        _print_model(model)
    if report.runtimes:
        print_table(
            ("runtime", "llama.cpp", "levels", "offset", "size", "packed", "sha256"),
            [
                (
                    runtime.get("target"),
                    runtime.get("llama_cpp"),
                    " ".join(map(str, _list(runtime.get("levels")))),
                    runtime.get("offset"),
                    runtime.get("size"),
                    runtime.get("packed_size"),
                    str(runtime.get("sha256"))[:16],
                )
                for runtime in report.runtimes
            ],
        )
    if report.args_problem:
        out.print(bold(".args"))
        out.print(f"  {'problem':<12}  {shown(report.args_problem)}")
    if report.args is not None:
        out.print(bold(".args"))
        for line in report.args.splitlines():
            out.print(f"  {shown(line)}")
    if report.entries:
        print_table(
            ("offset", "align", "size", "stored", "method", "entry"),
            [
                (
                    entry.offset,
                    entry.alignment,
                    entry.size,
                    entry.stored_size,
                    entry.method,
                    entry.name,
                )
                for entry in report.entries
            ],
        )


def _problems(report: Report) -> dict[str, str]:
    """What is wrong with the file as a whole, by what to call it."""
    problems = {}
    if report.problem:
        damaged = "its manifest can't be understood: " if report.maker == "damaged" else ""
        problems["newer" if report.maker == "newer" else "problem"] = damaged + report.problem
    if report.interrupted:
        ended = f"pyllamafile upgrade {report.path} ends it"
        problems["interrupted"] = f"an upgrade of it did not end: {ended}"
    return problems


def _shares(report: Report) -> Iterator[tuple[str, int]]:
    """What takes how many bytes of the file, down to the last one."""
    shares: dict[str, list[Any]] = {
        "runtimes": [runtime.get("packed_size") for runtime in report.runtimes],
        "weights": [e.stored_size for e in report.entries if e.name.endswith(".gguf")],
        "web GUI": [e.stored_size for e in report.entries if e.name.startswith(llamafile.GUI)],
    }
    left = report.size
    for what, sizes in shares.items():
        size = sum(size for size in sizes if isinstance(size, int))
        left -= size
        yield what, size
    yield "other", left


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _print_model(model: ModelFacts) -> None:
    out.print(bold(model.file))
    template = model.chat_template
    rows: dict[str, Any] = {
        "problem": model.problem,
        "kind": None if model.kind in (None, "model") else KINDS[model.kind],
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
            out.print(f"  {label:<12}  {shown(str(value))}")


@program.command()
@click.argument("file", type=_PATH)
def verify(file: Path) -> None:
    """Check all that is in a llamafile.

    Structure, alignment, checksums and digests of everything in it, runtimes included. Says
    what is wrong and where, and exits with 1 if anything is.
    """
    with screen.progress() as tell:
        problems = pyllamafile.verify(file, progress=tell)
    for problem in problems:
        out.print(shown(f"{problem.where}: {problem.what}"))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        fail(f"{file}: {count}", _ending(file))
    out.print(shown(f"{file}: sound"))


def _ending(file: Path) -> str | None:
    """What ends an upgrade that was interrupted."""
    with contextlib.suppress(PyllamafileError):  # no archive: then it is something else
        llamafile.read(file).check_whole()
        return None
    return f"an upgrade of it was interrupted: pyllamafile upgrade {file} ends it"


@program.command()
@click.argument("file", type=_PATH, required=False)
def doctor(file: Path | None) -> None:
    """Say why a llamafile doesn't start here, and what to do about it.

    Looks at the file, if one is given, and at this machine: damage, permissions, what takes
    files that begin with MZ, the processor, memory, and the place that programs are unpacked
    to. Exits with 1 if something keeps the file from starting.
    """
    findings = pyllamafile.examine(file)
    for finding in findings:
        word = Text("problem:", "bold red") if finding.fatal else Text("note:", "bold")
        out.print(word, shown(finding.what))
        out.print(Text("remedy:", "bold"), shown(finding.remedy))
    if any(finding.fatal for finding in findings):
        sys.exit(1)
    out.print(shown(f"{file or 'this machine'}: nothing keeps it from starting"))


@program.command()
@click.argument("file", type=_PATH)
@click.argument("names", nargs=-1, shell_complete=_complete_entries)
@click.option("-C", "--directory", type=_PATH, default=Path(), help="Where to.  [default: here]")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def extract(file: Path, names: tuple[str, ...], directory: Path, force: bool) -> None:
    """Take entries out of a llamafile or any zip.

    All of them, or those called NAMES. Nothing is written outside of the directory,
    whatever the names in the file say.
    """
    with screen.progress() as tell:
        paths = pyllamafile.extract(file, directory, names, force=force, progress=tell)
    for path in paths:
        out.print(shown(str(path)))


# upgrade, add, remove


@program.command()
@click.argument("file", type=_PATH)
@click.option(
    "--engine",
    type=_PATH,
    metavar="WHEEL-or-FILE",
    help="Where it comes from.  [default: the runtimes at hand]",
)
@_target_option("A system to run on, or a group; repeat it.  [default: those of FILE]")
@click.option("--drop-unknown", is_flag=True, help="Drop entries that belong to no engine.")
def upgrade(file: Path, engine: Path | None, targets: tuple[str, ...], drop_unknown: bool) -> None:
    """Put a new engine under the same weights.

    Programs, launch script, web GUI and notices are replaced; weights, .args and what else was
    added stay. Of Mozilla's llamafiles weights and .args are taken, and FILE becomes one of ours.
    If somebody added anything else to such a file, nothing is done unless you say --drop-unknown.

    --engine takes a wheel of pyllamafile that has runtimes in it, or another llamafile.

    Large weights of files of ours are not copied on ext4 and XFS under Linux, where a file can be
    shifted, and share their blocks with the old file where that is possible (Btrfs, XFS).
    Otherwise, and while FILE is in use, a copy takes its place. Killed at any moment, it leaves a
    file that starts; if `verify` doesn't like it, the same command again ends what it began.
    """
    with screen.progress() as tell:
        done = pyllamafile.upgrade(
            file, engine=engine, targets=targets, drop_unknown=drop_unknown, progress=tell
        )
    out.print(bold(str(done.path)), f" {amount(done.size)}")
    out.print(f"  weights   {shown(', '.join(done.models) or 'none: give some with -m FILE')}")
    out.print(f"  runs on   {', '.join(done.targets)}")
    out.print(f"  engine    {shown(', '.join(done.llama_cpp))}")
    if done.shifted:
        out.print("  the weights were shifted, not copied")
    if done.companion:
        out.print(f"  Windows   {shown(str(done.companion))} starts it there")


@program.command()
@click.argument("file", type=_PATH)
@click.argument(
    "what",
    metavar="WHAT[=NAME]...",
    nargs=-1,
    required=True,
    shell_complete=_complete_files,
)
def add(file: Path, what: tuple[str, ...]) -> None:
    """Put more into a llamafile, in place.

    WHAT is a file, NAME what it is called inside: weights as NAME.gguf, default arguments as .args.
    Entries of the same name are replaced. Nothing else moves, and `verify` holds afterwards.

    \b
    Examples:
      pyllamafile add phi3.llamafile README.md LICENSE=LICENSES/phi3.txt
      pyllamafile add phi3.llamafile my-arguments.txt=.args
    """  # noqa: D301
    with screen.progress() as tell:
        names = pyllamafile.add(file, [_add_option(option) for option in what], progress=tell)
    for name in names:
        out.print(shown(name))


@program.command()
@click.argument("file", type=_PATH)
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=_complete_entries
)
def remove(file: Path, names: tuple[str, ...]) -> None:
    """Take entries out of a llamafile, in place.

    What is left stays where it is, weights above all; their room is given back when what stands
    behind them is little. `inspect --all` lists the names.
    """
    pyllamafile.remove(file, names)


# zipalign


@program.command("zipalign")
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
    with screen.progress() as tell:
        dead = zipalign.add(archive, [*entries, *_new_manifest(archive, entries)], progress=tell)
    if verbose:
        members = {member.name: member for member in zipalign.read(archive).members}
        for entry in entries:
            member = members[entry.name]
            err.print(shown(f"{entry.name}: {member.stored_size} bytes at {member.data_offset}"))
        if dead:
            err.print(f"{dead} bytes of the old archive are left, unused")


def _entry_name(path: Path) -> str:
    """As Info-ZIP names a file: relative, without what leads to the root."""
    name = path.as_posix().lstrip("/")
    if ".." in path.parts:
        raise RefusedError(
            f"cannot pack {name!r}: the name has .. in it",
            hint="-j leaves out the directories of the names",
        )
    return name


def _new_manifest(archive: Path, entries: list[zipalign.Entry]) -> list[zipalign.Entry]:
    """What has to be said anew of a file of ours. A file that isn't whole is refused."""
    if not archive.exists():
        return []
    found = llamafile.read(archive)
    found.check_known()
    found.check_whole()
    found.check_room(entries)
    return [found.updated_manifest(entries)] if found.ours else []


# man


@program.command("man")
def man_page() -> None:
    """Print the manual page.

    It is troff: pyllamafile man | man -l -
    """
    context = click.Context(program, info_name="pyllamafile", **program.context_settings)
    parts = [_described(click.Context(command, context)) for command in _all(program, context)]
    whole = _described(context)
    click.echo(man.page(whole, parts, pyllamafile.__version__, MAN_ENDS), nl=False)


MAN_ENDS = (
    ("EXIT STATUS", "\b\n0    done\n1    failed\n2    asked in the wrong way\n130  interrupted"),
    (
        "ENVIRONMENT",
        "PYLLAMAFILE_CACHE: where runtimes are compiled and kept, and where files unpack theirs; "
        "otherwise $XDG_CACHE_HOME/pyllamafile or ~/.cache/pyllamafile.\n\n"
        "SOURCE_DATE_EPOCH: the dates in the zip, in seconds; 1980-01-01 otherwise.",
    ),
    ("SEE ALSO", "zip(1), unzip(1). A built file has its own manual: FILE --help."),
)


def _all(group: click.Group, context: click.Context) -> Iterator[click.Command]:
    """Every command that does something, those of groups with the group's name in front."""
    for name in group.list_commands(context):
        command = group.commands[name]
        if isinstance(command, click.Group):
            for inner in _all(command, context):
                yield _renamed(inner, f"{name} {inner.name}")
        else:
            yield command


def _renamed(command: click.Command, name: str) -> click.Command:
    renamed = copy.copy(command)
    renamed.name = name
    return renamed


def _described(context: click.Context) -> man.Command:
    """What a command's own help says."""
    command = context.command
    context.info_name = command.name if context.parent else context.info_name
    options = (p for p in command.get_params(context) if isinstance(p, click.Option))
    records = (option.get_help_record(context) for option in options)
    return man.Command(
        name=context.command_path,
        usage=" ".join(command.collect_usage_pieces(context)),
        summary=command.get_short_help_str(100),
        help=inspection.cleandoc(command.help or ""),
        options=[record for record in records if record],
    )


# runtimes


@program.group()
def runtimes() -> None:
    """The native programs that go into a file."""


@runtimes.command("list")
def list_runtimes() -> None:
    """Say which runtimes are at hand, in the package or in the cache."""
    rows = []
    for target in TARGETS.values():
        found = native.find(target)
        facts = ["not built", *[""] * 5]
        if found:
            size, packed = amount(found.size), amount(found.packed_size)
            levels = " ".join(found.levels)
            facts = [found.origin, found.llama_cpp, levels, size, packed, found.sha256[:16]]
        rows.append([target.name, *facts])
    print_table(("target", "where", "llama.cpp", "levels", "size", "packed", "sha256"), rows)


@runtimes.command("build")
@_target_option("A target or a group; repeat it.")
@click.option("--all", "everything", is_flag=True, help="All targets.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    help="Compilers at once.  [default: one per processor]",
)
def build_runtimes(targets: tuple[str, ...], everything: bool, jobs: int | None) -> None:
    """Compile the runtimes that are missing, and the web GUI.

    llama.cpp's source comes from the llama-cpp-python sdist, which pip fetches; zig compiles
    it, for whatever target. By default it is the system that this runs on. What is finished
    stays, whatever becomes of the rest: the same command goes on from there.
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
    parts: dict[str, Callable[[Progress], str]] = {}
    for target in wanted:
        if found := native.find(target):
            out.print(_runtime_line(found))
        else:
            parts[target.name] = functools.partial(_build_runtime, target, jobs)
    with screen.progress(words=True) as tell:
        if parts:
            native.prepare(progress=tell)
        if gui := native.find_gui():
            out.print(_gui_line(gui))
        else:
            parts["web GUI"] = _build_gui
        _build_all(parts, tell)


def _build_runtime(target: Target, jobs: int | None, tell: Progress) -> str:
    return _runtime_line(native.build(target, jobs=jobs, progress=tell))


def _runtime_line(runtime: Runtime) -> str:
    return f"{runtime.target}  {amount(runtime.size)}  {runtime.path}"


def _build_gui(tell: Progress) -> str:
    return _gui_line(native.build_gui(progress=tell))


def _gui_line(path: Path) -> str:
    return f"web GUI  {path}"


def _build_all(parts: Mapping[str, Callable[[Progress], str]], tell: Progress) -> None:
    """Build one after the other; what fails is told, and doesn't stop the others."""
    failed = []
    for number, (name, build_part) in enumerate(parts.items()):
        try:
            out.print(build_part(_share(tell, number, len(parts))))
        except PyllamafileError as error:
            complain(error.message, error.hint)
            failed.append(name)
    if failed and len(parts) > 1:
        fail(
            f"{len(failed)} of {len(parts)} failed: {', '.join(failed)}",
            hint="what was built stays; the same command tries the rest again",
        )
    if failed:
        sys.exit(1)


def _share(tell: Progress, number: int, count: int) -> Progress:
    """The progress of one of several parts as that of all: each has as many steps as the next."""
    steps = 1 << 16
    if count == 1:
        return tell

    def tell_share(step: Step) -> None:
        done = steps * step.done // step.total if step.total else 0
        what = f"{step.what} ({number + 1} of {count})"
        tell(Step("bytes", what, number * steps + done, count * steps))  # a share of the whole

    return tell_share
