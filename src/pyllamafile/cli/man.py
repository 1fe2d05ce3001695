"""Manual pages in troff with the macros of man(7). Pure; what they say comes from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command as its own help describes it.

    Attributes:
        name: What is typed to call it.
        usage: What follows the name: options and arguments.
        summary: One line.
        help: Paragraphs with empty lines between them; one that begins with a line of a single
            backspace (U+0008) is shown line by line, as click has it.
        options: How each option is spelled, and what it does.
    """

    name: str
    usage: str
    summary: str
    help: str
    options: Sequence[tuple[str, str]]


def page(
    whole: Command, parts: Sequence[Command], version: str, ends: Sequence[tuple[str, str]]
) -> str:
    """A manual page of section 1.

    Args:
        whole: The program.
        parts: Its commands, each called as it is typed.
        version: Of the program, for the footer.
        ends: Titles and texts of what comes last, as `Command.help` has it.
    """
    name = whole.name
    summary = f"{whole.summary[0].lower()}{whole.summary[1:]}".rstrip(".")
    lines = [
        f'.TH {name.upper()} 1 "" "{_text(name)} {_text(version)}" "User Commands"',
        ".SH NAME",
        rf"{_text(name)} \- {_text(summary)}",
        ".SH SYNOPSIS",
        *_usage(whole),
        ".SH DESCRIPTION",
        *_paragraphs(whole.help, first=True),
        ".SH OPTIONS",
        *_options(whole),
        ".SH COMMANDS",
    ]
    for part in parts:
        lines += [f'.SS "{_text(part.name)}"', *_usage(part), *_paragraphs(part.help)]
        lines += _options(part)
    for title, text in ends:
        lines += [f".SH {_text(title)}", *_paragraphs(text, first=True)]
    return "\n".join(lines) + "\n"


def _usage(command: Command) -> Iterator[str]:
    yield f".B {_text(command.name)}"
    if command.usage:
        yield _line(command.usage)


def _options(command: Command) -> Iterator[str]:
    for label, text in command.options:
        yield ".TP"
        yield f".B {_text(label)}"
        yield _line(text)


def _paragraphs(text: str, first: bool = False) -> Iterator[str]:
    """Paragraphs; the first one may be the first of a section, too, which begins by itself."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip("\n"))):
        verbatim, lines = paragraph.startswith("\b"), paragraph.lstrip("\b\n").split("\n")
        if number or not first:
            yield ".PP"
        if verbatim:
            yield ".nf"
            yield from map(_line, lines)
            yield ".fi"
        else:
            yield _line(" ".join(line.strip() for line in lines))


def _line(text: str) -> str:
    """Text that stands in a line of its own, where a dot or a quote at the start is a request."""
    text = _text(text)
    return rf"\&{text}" if text.startswith((".", "'")) else text


def _text(text: str) -> str:
    """Text that comes out as it is: what can be typed is not to become something nicer."""
    for character, escape in {
        "\\": r"\e",
        "-": r"\-",
        "'": r"\(aq",
        "`": r"\(ga",
        "^": r"\(ha",
        "~": r"\(ti",
        '"': r"\(dq",
    }.items():
        text = text.replace(character, escape)
    return "".join(c if c.isascii() else rf"\[u{ord(c):04X}]" for c in text)
