"""The manual page and what shells complete: both made of the commands' own help."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from running import need

import pyllamafile
from pyllamafile.cli import commands as cli
from pyllamafile.cli import man
from pyllamafile.targets import TARGETS, groups


def rendered(page: str) -> str:
    """What a reader sees, without the line breaks."""
    command = [need("groff", "groff"), "-man", "-Tascii", "-ww", "-P-c", "-P-bou"]
    done = subprocess.run(command, input=page, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return " ".join(re.sub(r"(\w)-\n\s*", r"\1", done.stdout).split())


def test_it_says_what_the_help_says(run):
    done = run("man")
    assert (done.code, done.err) == (0, "")
    text = rendered(done.out)
    parts = [(name, command) for name, command in cli.program.commands.items()]
    parts += [(f"runtimes {name}", command) for name, command in cli.runtimes.commands.items()]
    for name, command in parts:
        if isinstance(command, click.Group):
            continue
        assert f"pyllamafile {name}" in text
        first = command.help.split("\n\n")[0]
        assert " ".join(first.split()) in text
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert all(spelled in text for spelled in option.opts), option


def test_another_reader_finds_no_error(run):
    page = run("man").out
    command = [need("mandoc", "mandoc"), "-T", "lint", "-W", "warning"]
    found = subprocess.run(command, input=page, capture_output=True, text=True).stdout
    complaints = [line for line in found.splitlines() if "missing date" not in line]
    assert complaints == []


def test_what_troff_would_take_for_its_own():
    text = r".dot 'quote \back -dash ä `tick` ^ ~ x"
    command = man.Command("x", "", "Tries.", f"{text}\n\n\b\n{text}\n  {text}", [("--o", text)])
    page = man.page(command, [], "1", [("END", text)])
    assert page.isascii()
    shown = subprocess.run(
        [need("groff", "groff"), "-man", "-Tutf8", "-ww", "-Dascii", "-P-c", "-P-bou"],
        input=page,
        capture_output=True,
        text=True,
    )
    assert shown.stderr == ""
    assert " ".join(shown.stdout.split()).count(text) == 5


# Completion


# How a shell is started with nothing of the user's, and what it runs before the test.
SHELLS = {
    "bash": (
        ["--norc", "--noprofile", "-i"],
        'eval "$(_PYLLAMAFILE_COMPLETE=bash_source pyllamafile)"',
    ),
    "zsh": (
        ["-f", "-i"],
        "autoload -Uz compinit; compinit -u -D; "
        'eval "$(_PYLLAMAFILE_COMPLETE=zsh_source pyllamafile)"',
    ),
    "fish": (
        ["--no-config", "-i"],
        "_PYLLAMAFILE_COMPLETE=fish_source pyllamafile | source",
    ),
}


@pytest.fixture(params=SHELLS)
def complete(request, folder):
    """What a shell makes of a line when the tab key is pressed, in a terminal of its own."""
    shell = need(request.param, request.param)
    arguments, setup = SHELLS[request.param]
    bin = Path(sys.executable).parent
    if not shutil.which("pyllamafile", path=str(bin)):
        pytest.skip("pyllamafile is not installed")

    def complete(line: str, expected: str) -> None:
        process, terminal = pty.fork()
        if process == 0:
            os.environ.update(PATH=f"{bin}:{os.environ['PATH']}", PS1="$ ", TERM="dumb")
            os.environ["INPUTRC"] = "/dev/null"
            os.execv(shell, [shell, *arguments])
        try:
            os.write(terminal, f"{setup}\n".encode())
            os.write(terminal, b"echo is'' ready\n")
            read_until(terminal, "is ready")
            os.write(terminal, f"{line}\t".encode())
            read_until(terminal, expected)
        finally:
            os.kill(process, 9)
            os.waitpid(process, 0)
            os.close(terminal)

    return complete


def read_until(terminal: int, expected: str) -> None:
    text, end = "", time.monotonic() + 60
    while expected not in text:
        assert time.monotonic() < end, text
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 4096).decode(errors="replace")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pyllamafile upgr", "upgrade "),
        ("pyllamafile upgrade a-f", "a-file-to-try.llamafile "),
        ("pyllamafile build --gguf a-m", "a-model-to-try.gguf "),
        ("pyllamafile build --target linux-am", "linux-amd64 "),
        ("pyllamafile build --quantize q8", "q8_0 "),
        ("pyllamafile add a-file-to-try.llamafile a-m", "a-model-to-try.gguf "),
        ("pyllamafile remove a-file-to-try.llamafile notes-t", "notes-to-remove.txt "),
    ],
)
def test_shells_complete(complete, model, line, expected):
    shutil.copy(model, "a-model-to-try.gguf")
    options = {"add": [(model, "notes-to-remove.txt")]}
    pyllamafile.build("a-model-to-try.gguf", "a-file-to-try.llamafile", **options)
    complete(line, expected)


def test_targets_are_the_tables(run, monkeypatch):
    def completed(*words: str) -> list[str]:
        monkeypatch.setenv("_PYLLAMAFILE_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return [line.split(",")[1] for line in run().out.splitlines()]

    for command in (("build",), ("upgrade",), ("runtimes", "build")):
        found = completed("pyllamafile", *command, "--target")
        assert set(found) == {*TARGETS, *groups()}
