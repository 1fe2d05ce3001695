"""The table of commands, which is all that `pyllamafile --help` takes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

import pyllamafile

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Lazy(click.Group):
    """Commands that are imported when they are asked for.

    Args:
        table: Of each command by its name the module and the function in it, and its help in one
            line, which is the first line of the function's docstring.
        given: What click's groups take.
    """

    def __init__(
        self,
        *,
        table: Mapping[str, tuple[str, str]],
        **given: Any,  # noqa: ANN401 # click's
    ) -> None:
        super().__init__(**given)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the alphabet's order."""
        return sorted({*self.table, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name in self.table and cmd_name not in self.commands:
            module, _, function = self.table[cmd_name][0].partition(":")
            self.add_command(getattr(import_module(module, __package__), function), cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The part of the help that lists the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][1]) for name in sorted(self.table)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What a shell offers here: names of commands, and the options."""
        from click.shell_completion import CompletionItem

        names = [name for name in sorted(self.table) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=self.table[name][1]) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=Lazy,
    table={
        "add": (".change:add", "Put more files into a llamafile, in place."),
        "advise": (".advise:advise", "Say which format to quantize a model to."),
        "build": (".build:build", "Pack weights and everything that runs them into one file."),
        "doctor": (".look:doctor", "Say why a llamafile doesn't start here, and what helps."),
        "export": (".export:export", "Write a llamafile as an image for containers."),
        "extract": (".look:extract", "Take entries out of a llamafile or any zip, as files."),
        "inspect": (".look:inspect", "Say what is in a llamafile, a GGUF, or any zip."),
        "man": (".manual:man_page", "Print the manual page."),
        "remove": (".change:remove", "Remove entries from a llamafile, in place."),
        "runtimes": (".program:runtimes", "List and build the native programs for files."),
        "sign": (".sign:sign", "Sign a llamafile with a key of SSH's, in place."),
        "upgrade": (".change:upgrade", "Put a new engine under the same weights."),
        "verify": (".look:verify", "Check everything that is in a llamafile."),
        "zipalign": (
            ".change:zipalign_command",
            "Put files into a zip so that they can be mapped.",
        ),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(pyllamafile.__version__, message="pyllamafile %(version)s")
def program() -> None:
    """Turn a language model into one file that anybody can run."""


@click.group(
    cls=Lazy,
    table={
        "build": (
            ".runtimes:build_runtimes",
            "Compile the runtimes that are missing, and the web GUI.",
        ),
        "list": (".runtimes:list_runtimes", "Say which runtimes are at hand."),
    },
)
def runtimes() -> None:
    """List and build the native programs for files.

    A file has one of them, a runtime, for each of its targets. A runtime is llama.cpp, compiled.
    """
