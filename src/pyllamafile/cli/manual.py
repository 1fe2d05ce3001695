"""The command `man`: the manual page, made of the commands' own help."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

import click

import pyllamafile
from pyllamafile.cli import man
from pyllamafile.cli.program import program

ENDS = (
    (
        "EXIT STATUS",
        "\b\n0    done\n1    failed\n2    asked in the wrong way\n"
        "3    verify --signed-by: not signed\n"
        "4    verify --signed-by: signed by an unknown key\n"
        "5    verify --signed-by: signed, but changed\n"
        "130  interrupted",
    ),
    (
        "ENVIRONMENT",
        "PYLLAMAFILE_CACHE is the folder where runtimes are compiled and kept, and where files "
        "unpack theirs. Otherwise it is $XDG_CACHE_HOME/pyllamafile or ~/.cache/pyllamafile.\n\n"
        "SOURCE_DATE_EPOCH gives the dates in the zip, in seconds. Otherwise they are 1980-01-01.",
    ),
    ("SEE ALSO", "zip(1), unzip(1). A finished file has a manual of its own: FILE --help."),
)
"""What comes last on the page, behind the commands: titles and texts."""


@click.command("man")
def man_page() -> None:
    """Print the manual page.

    It is in troff: pyllamafile man | man -l -
    """
    context = click.Context(program, info_name="pyllamafile", **program.context_settings)
    parts = [_described(click.Context(command, context)) for command in _all(program, context)]
    whole = _described(context)
    click.echo(man.page(whole, parts, pyllamafile.__version__, ENDS), nl=False)


def _all(group: click.Group, context: click.Context) -> Iterator[click.Command]:
    """Every command that does something, those of groups with the group's name in front."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
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
        help=inspect.cleandoc(command.help or ""),
        options=[record for record in records if record],
    )
