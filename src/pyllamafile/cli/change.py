"""The commands that change a finished file: `upgrade`, `add`, `remove`, and `zipalign`."""

from __future__ import annotations

from pathlib import Path

import click

import pyllamafile
from pyllamafile import llamafile, zipalign
from pyllamafile.cli import screen
from pyllamafile.cli.options import (
    PATH,
    complete_entries,
    complete_files,
    named_file,
    target_option,
)
from pyllamafile.cli.screen import amount, bold, note, say, shown
from pyllamafile.errors import RefusedError
from pyllamafile.ops import edit


@click.command()
@click.argument("file", type=PATH)
@click.option(
    "--engine",
    type=PATH,
    metavar="WHEEL-or-FILE",
    help="Where the engine comes from.  [default: the runtimes at hand]",
)
@target_option(
    "A system that the file runs on, or a group. Repeat it for several.  [default: those of FILE]"
)
@click.option(
    "--gpu/--no-gpu",
    default=None,
    help="Put in what uses GPUs, or take it out.  [default: what the engine has, unless FILE was "
    "built without]",
)
@click.option("--drop-unknown", is_flag=True, help="Drop entries that belong to no engine.")
def upgrade(
    file: Path,
    engine: Path | None,
    targets: tuple[str, ...],
    gpu: bool | None,
    drop_unknown: bool,
) -> None:
    """Put a new engine under the same weights.

    The programs, the launch script, the web GUI and the notices are replaced. The weights, .args
    and everything that was added stay. What the model remembers of what it has read is made anew by
    the new program for this system. From a llamafile of Mozilla's only the weights and .args
    are taken. If somebody added anything else to it, nothing is done without --drop-unknown.

    --engine takes a wheel of pyllamafile that has runtimes in it, or another llamafile.

    A signature is gone afterwards, because it was of the old engine, too: sign the file again.

    On ext4 and XFS under Linux large weights are not copied, but stay where they are. On Btrfs and
    XFS the new file can share their blocks with the old one. Otherwise, and while FILE is in use,
    a copy takes its place. If the command is killed, the file starts all the same. If `pyllamafile
    verify` then finds a problem, the same command again ends the work.
    """
    with screen.progress() as tell:
        done = pyllamafile.upgrade(
            file,
            engine=engine,
            targets=targets,
            gpu=gpu,
            drop_unknown=drop_unknown,
            progress=tell,
        )
    say(bold(str(done.path)), f" {amount(done.size)}")
    say(f"  weights   {shown(', '.join(done.models) or 'none: give some with -m FILE')}")
    say(f"  runs on   {', '.join(done.targets)}")
    if done.gpus:
        say(f"  GPUs on   {', '.join(done.gpus)}")
    say(f"  engine    {shown(', '.join(done.llama_cpp))}")
    if done.state:
        say(f"  has read  {done.state.tokens:,} tokens, state of {amount(done.state.size)}")
    if done.shifted:
        say("  the weights were shifted, not copied")
    if done.companion:
        say(f"  Windows   {shown(str(done.companion))} starts it there")


@click.command()
@click.argument("file", type=PATH)
@click.argument(
    "what",
    metavar="WHAT[=NAME]...",
    nargs=-1,
    required=True,
    shell_complete=complete_files,
)
def add(file: Path, what: tuple[str, ...]) -> None:
    """Put more files into a llamafile, in place.

    WHAT is a file, and NAME its name inside, by default its own. Weights need a NAME that ends in
    .gguf, and default arguments the NAME .args. An entry of the same name is replaced. Everything
    else stays where it is. A signature is gone afterwards: sign the file again.

    \b
    Examples:
      pyllamafile add phi3.llamafile README.md LICENSE=LICENSES/phi3.txt
      pyllamafile add phi3.llamafile my-arguments.txt=.args
    """  # noqa: D301
    with screen.progress() as tell:
        names = pyllamafile.add(file, [named_file(option) for option in what], progress=tell)
    for name in names:
        say(shown(name))


@click.command()
@click.argument("file", type=PATH)
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_entries
)
def remove(file: Path, names: tuple[str, ...]) -> None:
    """Remove entries from a llamafile, in place.

    Everything else stays where it is. The file gets shorter if little stands behind the entries;
    otherwise their room is left unused. `pyllamafile inspect --all` lists the names.

    A signature is gone once anything else is. `remove FILE llamafile.json.sig` takes it out alone.
    """
    with screen.progress() as tell:
        pyllamafile.remove(file, names, progress=tell)


@click.command("zipalign")
@click.argument("archive", metavar="ZIP", type=PATH)
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@click.option("-v", "--verbose", is_flag=True, help="Say where each entry is.")
@click.option("-N", "--nondeterministic", is_flag=True, help="Keep the files' own dates.")
@click.option("-j", "--junk-paths", is_flag=True, help="Leave the folders out of the names.")
@click.option(
    "-a",
    "--alignment",
    type=int,
    default=zipalign.BLOCK,
    show_default=True,
    help="Bytes that offsets are multiples of.",
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
@click.option("-9", "level", flag_value=9, type=int, help="Compress best. -2 to -8 are in between.")
def zipalign_command(
    archive: Path,
    files: tuple[Path, ...],
    verbose: bool,
    nondeterministic: bool,
    junk_paths: bool,
    alignment: int,
    level: int,
) -> None:
    """Put files into a zip so that they can be mapped.

    The entries are aligned, so a program can map them into its memory. An entry of the same name
    is replaced. ZIP can be a file of pyllamafile, whose manifest is kept right, a llamafile of
    Mozilla's, or any zip. It is made if it doesn't exist. If the command is interrupted, the file
    is the old archive or the new one.
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
    names = {entry.name for entry in entries}
    if archive.exists():
        names |= {member.name for member in zipalign.read(archive).members}
    for file, entry in zip(files, entries, strict=True):
        if entry.name == llamafile.ARGS:
            edit.check_args(file, names)
    found = _checked(archive, entries)
    stale = found.stale([entry.name for entry in entries]) if found else ()
    more = [found.updated_manifest(entries, stale)] if found and found.ours else []
    gone = {*stale, *(found.signature_entry if found else ())}
    changed = {entry.name for entry in entries}
    lost = [*found.unsigned(), *found.lost_state(gone), *found.old_look(changed)] if found else []
    with screen.progress() as tell:
        dead = zipalign.add(archive, [*entries, *more], remove=gone, progress=tell)
        for step in lost:
            tell(step)
    if verbose:
        members = {member.name: member for member in zipalign.read(archive).members}
        for entry in entries:
            member = members[entry.name]
            note(shown(f"{entry.name}: {member.stored_size} bytes at {member.data_offset}"))
        if dead:
            note(f"{dead} bytes of the old archive are left, unused")


def _entry_name(path: Path) -> str:
    """As Info-ZIP names a file: relative, without what leads to the root."""
    name = path.as_posix().lstrip("/")
    if ".." in path.parts:
        raise RefusedError(
            f"cannot pack {name!r}: the name has .. in it",
            hint="-j leaves out the directories of the names",
        )
    return name


def _checked(archive: Path, entries: list[zipalign.Entry]) -> llamafile.Llamafile | None:
    """The archive, if there is one already. A file that isn't whole is refused."""
    if not archive.exists():
        return None
    found = llamafile.read(archive)
    found.check_known()
    found.check_whole()
    found.check_room(entries)
    return found
