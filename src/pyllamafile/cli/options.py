"""What several commands take: options, and what a shell completes.

A shell asks click for it, by the variable _PYLLAMAFILE_COMPLETE.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from pyllamafile.errors import PyllamafileError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., object])

PATH = click.Path(path_type=Path)


def target_option(help: str) -> Callable[[Command], Command]:
    """The option --target."""
    return click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="TARGET",
        shell_complete=_complete_targets,
        help=help,
    )


def named_file(option: str) -> str | tuple[str, str]:
    """FILE or FILE=NAME, as `add` takes it; a file whose name has the equals sign is FILE."""
    path, equals, name = option.rpartition("=")
    return (path, name) if equals and not os.path.lexists(option) else option


def complete_files(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Leave it to the shell to find files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def complete_entries(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """The entries of the file that the command line names."""
    from pyllamafile import zipalign

    with contextlib.suppress(PyllamafileError, TypeError):
        members = zipalign.read(Path(context.params["file"])).members
        return [member.name for member in members if member.name.startswith(incomplete)]
    return []


def _complete_targets(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    from pyllamafile.targets import TARGETS, groups

    return [name for name in (*groups(), *TARGETS) if name.startswith(incomplete)]
