"""The command `build`: what it takes, and what it says of what was made."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import pyllamafile
from pyllamafile import persona
from pyllamafile.arguments import quote
from pyllamafile.cli import screen
from pyllamafile.cli.options import PATH, complete_files, named_file, target_option
from pyllamafile.cli.screen import amount, bold, say, shown, warn
from pyllamafile.models.forecast import FORMATS
from pyllamafile.models.gguf import part_of
from pyllamafile.state import TYPES
from pyllamafile.targets import TARGETS

if TYPE_CHECKING:
    from pyllamafile import Adapter, Built, Persona


class _Build(click.Command):
    """`build`, which takes no arguments but options: most people try weights by themselves."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with a hint at what an argument may be meant as."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            found = re.search(r"unexpected extra arguments? \((\S*)", error.message)
            if not found:
                raise
            first = found[1].rstrip(")")
            hint = f"weights are given as --gguf {first}"
            raise click.UsageError(f"{error.message}; {hint}", ctx) from error


@click.command(cls=_Build)
@click.option(
    "--gguf",
    multiple=True,
    metavar="SOURCE",
    shell_complete=complete_files,
    help="Weights. Repeat it for several models.",
)
@click.option(
    "--lora",
    multiple=True,
    metavar="SOURCE[=SCALE]",
    help="A LoRA adapter for the first model. Repeat it for several adapters.",
)
@click.option(
    "--mmproj", metavar="SOURCE", help="A projector, with which the first model sees or hears."
)
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
    help="Quantize weights that are quantized already, which loses more.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUT",
    help="The file to write.  [default: NAME.llamafile]",
)
@click.option("--name", metavar="NAME", help="The model's name.  [default: its file's name]")
@click.option(
    "--read",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="A document that the model has read. Repeat it for several documents.",
)
@click.option(
    "--documents",
    type=PATH,
    metavar="FOLDER",
    help="Documents in which the file looks up what a question is about.",
)
@click.option(
    "--embedder",
    metavar="SOURCE",
    shell_complete=complete_files,
    help="A model for embeddings, which finds in them what is worded otherwise, too.",
)
@click.option(
    "--read-as",
    type=click.Choice(TYPES),
    help="What the model remembers texts as: its keys and values.  [default: f16]",
)
@click.option(
    "--state/--no-state",
    default=True,
    help="Put in what the model remembers of what it has read, or leave it out.",
)
@click.option("--system", type=PATH, metavar="FILE", help="The system prompt, in a text file.")
@click.option("--greeting", metavar="TEXT", help="What the model says before anybody asks.")
@click.option(
    "--suggest",
    multiple=True,
    metavar="TEXT",
    help="A question that the web GUI offers as a button. Repeat it for several questions.",
)
@click.option(
    "--icon",
    type=PATH,
    metavar="FILE.png",
    help="The icon of the web GUI, and on Windows the file's.",
)
@click.option("--accent", metavar="COLOUR", help="The web GUI's colour, such as #3b82f6.")
@click.option(
    "--persona",
    "persona_file",
    type=PATH,
    metavar="FILE.toml",
    help="The five options above and the name, in one file.",
)
@click.option(
    "--arg",
    multiple=True,
    metavar="ARG",
    help="A default argument of the file. Repeat it for several arguments.",
)
@click.option("--args-file", type=PATH, metavar="FILE", help="Default arguments in a text file.")
@click.option(
    "--add",
    multiple=True,
    metavar="FILE[=NAME]",
    shell_complete=complete_files,
    help="Another file to put in. Repeat it for several files.",
)
@target_option(
    "A system that the file runs on, or a group. Repeat it for several.  "
    "[default: every runtime at hand]"
)
@click.option("--gui/--no-gui", default=True, help="Put the web GUI in, or leave it out.")
@click.option(
    "--gpu/--no-gpu",
    default=None,
    help="Put in what uses GPUs, or leave it out.  [default: put in what is at hand]",
)
@click.option(
    "--prove/--no-prove",
    default=True,
    help="Put the small model in by which the file proves itself, or leave it out.",
)
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
    help="Write the .exe that starts a file of 4 GiB or more on Windows, or leave it out.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--in-place",
    is_flag=True,
    help="Turn the GGUF itself into OUT. There is no copy, and no GGUF any more.",
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
    read: tuple[Path, ...],
    documents: Path | None,
    embedder: str | None,
    read_as: str | None,
    state: bool,
    system: Path | None,
    greeting: str | None,
    suggest: tuple[str, ...],
    icon: Path | None,
    accent: str | None,
    persona_file: Path | None,
    arg: tuple[str, ...],
    args_file: Path | None,
    add: tuple[str, ...],
    targets: tuple[str, ...],
    gui: bool,
    gpu: bool | None,
    prove: bool,
    format: Literal["portable", "elf"],
    companion: bool,
    force: bool,
    in_place: bool,
) -> None:
    """Pack weights and everything that runs them into one file.

    A SOURCE is one of these:

    \b
      FILE.gguf             a GGUF; the parts of a split one are taken together
      FOLDER                safetensors or a LoRA adapter, which is converted
                            (pip install 'pyllamafile[convert]')
      hf:OWNER/REPO[:WHAT]  a file on Hugging Face's hub; WHAT is its name, or a
                            quantization such as Q4_K_M
      ollama:NAME[:TAG]     a model in Ollama's store

    With -o and without --gguf the file is an engine alone. It takes its weights from the option
    -m when it runs.

    --lora, --mmproj and --draft take a SOURCE, too. The file uses them with the first --gguf by
    itself. SCALE says how much of an adapter is applied, 1 by default. A draft has the model's
    vocabulary. It writes ahead, and the model checks several tokens at once, so the same answer
    comes sooner. With several --gguf the server has all models, and loads a model when somebody
    asks for it. The modes -p and --chat then need -m @NAME.

    --quantize takes weights in F16, BF16 or F32, and needs room for the result beside OUT.
    `pyllamafile advise` says which format suits a model and a machine.

    Default arguments go into the entry .args. In the text of --args-file white space separates
    arguments, # starts a comment, quotes work as in a shell, and $NAME is an environment variable.
    The arguments that a user gives follow, or take the place of an argument ... if there is one.

    A TARGET is a system on a processor such as linux-amd64; `pyllamafile runtimes list` lists
    them. It can also be a group: a system (linux), a processor (arm64), or all.

    --read takes Markdown, plain text, HTML, PDF and DOCX (the last two take
    pip install 'pyllamafile[documents]'). The text stands behind the system prompt of every
    conversation, so it has to fit the context: about four letters are a token. The option --no-read
    of the file leaves it out. From 256 tokens on it is evaluated now, by the runtime for this
    system. What the model remembers of it, the state, goes into the file, so that no start
    evaluates it. `pyllamafile advise --read` says how large it is. --read-as q8_0 makes it and the
    context half as large and little less exact, q4_0 a quarter.

    --documents takes a folder of such documents, of any size. They are cut into passages. For each
    question the passages that fit it best are put in front of it, so that the model can answer out
    of them and name them. Without --embedder the words of the question count. With it the meaning
    counts as well. Besides a SOURCE, --embedder takes `english` or `multilingual`: small models on
    Hugging Face's hub. The option --no-documents of the file looks nothing up.

    --name, --system, --greeting, --suggest, --icon and --accent say who the file is. The web GUI
    and the mode --chat show it, and --system holds for both. Windows shows name and icon of a file
    that is called NAME.exe, and of the .exe beside a large one. In the FILE.toml of --persona the
    keys are name, greeting, suggestions (a list), accent, system (a text), system-file and icon
    (names of files beside it). An option takes the place of the key.

    Without a Windows target the file begins with #!/bin/sh, and every program can start it: a
    shell, systemd, a container, another program. With a Windows target the file is a Windows
    program, which a shell runs as a script. A program that is not a shell then has to call sh FILE.
    With --format elf the file is a program of one Linux target. It needs no shell and unpacks
    nothing.

    Windows starts no program of 4 GiB or more. Beside such a file a small program is written that
    opens it. It has the name of OUT, with .exe in the place of .llamafile.

    --in-place makes room in front of the weights where they are, on ext4 and XFS under Linux. The
    weights are read once and not written, and the disk needs room for the engine alone. The GGUF
    becomes OUT, in the same folder unless -o says otherwise; `pyllamafile extract` gets it back.
    If the command is killed, the file may be neither a GGUF nor a llamafile. Then run the same
    command, or any other --in-place with that file: it first makes the file the GGUF again.

    \b
    Examples:
      pyllamafile build --gguf phi3.gguf -o phi3.llamafile
      pyllamafile build --gguf phi3.gguf --arg -c --arg 2048 --add LICENSE.txt
      pyllamafile build --gguf phi3.gguf --target linux --target macos-arm64
      pyllamafile build --gguf phi3-f16.gguf --quantize Q5_K_M
      pyllamafile build --gguf hf:microsoft/Phi-3-mini-4k-instruct-gguf:q4
      pyllamafile build --gguf ollama:phi3
      pyllamafile build --gguf phi3.gguf --documents manuals
      pyllamafile build --gguf phi3.gguf --persona ada.toml -o ada.llamafile
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
            read=read,
            documents=documents,
            embedder=embedder,
            read_as=read_as,
            state=state,
            persona=_persona(persona_file, name, system, greeting, suggest, icon, accent),
            targets=targets,
            args=arg,
            args_file=args_file,
            add=[named_file(option) for option in add],
            gui=gui,
            gpu=gpu,
            prove=prove,
            format=format,
            companion=companion,
            quantize_to=quantize_to,
            requantize=allow_requantize,
            force=force,
            in_place=in_place,
            progress=tell,
        )
    say(bold(str(built.path)), f" {amount(built.size)}")
    say(f"  weights   {shown(', '.join(built.models) or 'none: give some with -m FILE')}")
    for option, partner in built.partners:
        say(f"  {option:<8}  {shown(partner)}")
    say(f"  runs on   {', '.join(built.targets)}")
    if built.gpus:
        say(f"  GPUs on   {', '.join(built.gpus)}")
    if note := _on_windows(built):
        say(f"  Windows   {shown(note)}")
    if built.template:
        say("  chat      in its family's format, because the weights don't name theirs")
    if built.missing and not targets:
        lacking = f"{len(built.missing)} of {len(TARGETS)} targets"
        say(f"  lacking   {lacking} (pyllamafile runtimes build --all)")
    for model in built.base:
        say(f"  no chat   {shown(model)} has no chat format's tokens: it seems a base model")
    if built.read:
        say(f"  has read  {amount(built.read)} of text, {_remembered(built)}")
    if built.documents:
        way = shown(built.embedder) if built.embedder else "words alone (no --embedder)"
        say(f"  documents {built.documents:,}, in {built.passages:,} passages, found by {way}")
    for document, reason in built.left_out:
        say(f"  left out  {shown(document)}: {shown(reason)}")
    if built.persona:
        say(f"  persona   {shown(built.persona)}")
    if built.own_args:
        say(f"  its own   {shown(' '.join(map(quote, built.own_args)))}")
    for remark in built.remarks:
        say(f"  left out  {shown(remark)}")
    for model in built.untemplated:
        warn(
            f"{model} has no chat template: conversations with it are written in ChatML",
            "--arg --chat-template --arg TEMPLATE brings one, in Jinja, for all weights inside",
        )
    for model, problem in built.broken:
        warn(
            f"{model} has a chat template that can't be parsed ({problem})",
            "--arg --chat-template --arg TEMPLATE brings another, in Jinja",
        )
    run, choice = shown(_as_command(built.path)), shown(_choice(built.models))
    say("try:")
    say(f'  {run}{choice} -p "Once upon a time" -n 64')
    serving = choice if not built.models else ""  # it has all models, and loads them on demand
    served = "web GUI and API" if gui else "API"
    say(f"  {run}{serving}   # {served} on http://127.0.0.1:8080")


def _remembered(built: Built) -> str:
    """What becomes of the text that was read."""
    if not built.state:
        return f"about {built.read // 4:,} tokens"
    return f"{built.state.tokens:,} tokens, state of {amount(built.state.size)}"


def _on_windows(built: Built) -> str | None:
    """What people with Windows have to know."""
    if built.too_large:
        opener = built.companion or "nothing"
        return f"{opener} starts it there, because a program must be below 4 GiB"
    for_windows = any(TARGETS[name].os == "windows" for name in built.targets)
    if for_windows and built.path.suffix.lower() != ".exe":
        return "starts it when its name ends in .exe"
    return None


def _persona(
    file: Path | None,
    name: str | None,
    system: Path | None,
    greeting: str | None,
    suggest: Sequence[str],
    icon: Path | None,
    accent: str | None,
) -> Persona:
    """What the file says, and in its place what the options say."""
    given: dict[str, Any] = {
        "name": name if file else None,  # without it `build` decides
        "system": persona.read_text(system) if system else None,
        "greeting": greeting,
        "suggestions": tuple(suggest) or None,
        "icon": persona.read_icon(icon) if icon else None,
        "accent": accent,
    }
    said = pyllamafile.Persona.read(file) if file else pyllamafile.Persona()
    return replace(said, **{key: value for key, value in given.items() if value is not None})


def _lora_option(option: str) -> str | Adapter:
    source, equals, scale = option.rpartition("=")
    if not equals or os.path.lexists(option):
        return option
    try:
        return pyllamafile.Adapter(source, float(scale))
    except ValueError as error:
        raise click.BadParameter(f"{scale!r} is no scale", param_hint="'--lora'") from error


def _as_command(path: Path) -> str:
    return shlex.quote(str(path) if "/" in str(path) else f"./{path}")


def _choice(models: Sequence[str]) -> str:
    """The -m that such a file can't do without; the later parts of a model are not for it."""
    if not models:
        return " -m MODEL.gguf"
    whole = [m for m in models if (part_of(m) or ("", 1, 1))[1] == 1]
    return f" -m {shlex.quote('@' + whole[0].removesuffix('.gguf'))}" if len(whole) > 1 else ""
