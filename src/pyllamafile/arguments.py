"""The grammar of `.args` (launcher/FORMAT.md, section 5): reading it, and changing names in it.

native/runtime/arguments.cpp is what starts a file, and has the last word: a test holds the two
against each other. A text is bytes here, as it stands in a file.
"""

from __future__ import annotations

import codecs
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pyllamafile.errors import AccessError, RefusedError

MOST: Final = 1 << 20
"""Bytes that a text of arguments may have."""

PLACEHOLDER: Final = "..."
"""The word that the user's own arguments take the place of."""

SYSTEM: Final = "-sys"
"""The option behind which the system prompt stands."""

DRAFT_OPTIONS: Final = frozenset({"-md", "--model-draft", "--spec-draft-model"})
"""The options behind which a model drafts for another one."""

WEIGHTS_OPTIONS: Final = DRAFT_OPTIONS | {
    *("-m", "--model"),
    *("--lora", "--lora-scaled"),
    *("-mm", "--mmproj"),
}
"""The options behind which ``@NAME`` means weights in the same file."""

_LISTS: Final = frozenset({"--lora", "--lora-scaled"})  # commas separate their values

_WEIGHTS: Final = ".gguf"
_MARKS: Final = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_SPACE: Final = rb"\x20\t\n\r\f\v"
_BETWEEN: Final = re.compile(rb"(?:[%b]+|#[^\n]*)*" % _SPACE)
_VARIABLE: Final = rb"\$(?:\{(?P<braced>\w+)\}|(?P<bare>\w+))"
_PIECES: Final = (
    rb"(?P<plain>[^'\"\\$%b]+)" % _SPACE,
    rb"'(?P<single>[^']*)(?P<open1>\Z)?'?",
    rb'"(?P<double>(?:[^"\\]+|\\.)*\\?)(?P<open2>\Z)?"?',
    rb"\\(?P<escaped>.)",
    _VARIABLE,
    rb"(?P<alone>[\\$])",
)
_PIECE: Final = re.compile(b"|".join(_PIECES), re.DOTALL)
_WORD: Final = re.compile(rb"(?:%b)+" % re.sub(rb"\?P<\w+>", b"?:", b"|".join(_PIECES)), re.DOTALL)
_SPECIAL: Final = re.compile(rb"['\"\\$]")
_IN_QUOTES: Final = re.compile(
    rb"\\(?:(?P<octal>[0-7]{1,3})|x(?P<hex>[0-9A-Fa-f]{0,2})|(?P<letter>.))|" + _VARIABLE, re.DOTALL
)
_LETTERS: Final = dict(zip(b"abefnrtv", b"\a\b\033\f\n\r\t\v", strict=True))


class Word(NamedTuple):
    """A word of a text of arguments.

    Attributes:
        text: What it stands for. Bytes that are not UTF-8 are in it as Python has them in
            arguments (``surrogateescape``).
        start: Where it begins in the text, in bytes.
        end: Where it ends.
        quoted: Whether any of it is in quotes or behind a backslash.
        variables: The variables of the environment in it.
        open: Whether a quote in it is not closed, which then ends with the text.
    """

    text: str
    start: int
    end: int
    quoted: bool = False
    variables: tuple[str, ...] = ()
    open: bool = False

    @property
    def placeholder(self) -> bool:
        """Whether the user's own arguments take its place, if no other did before."""
        return self.text == PLACEHOLDER


def parse(text: bytes, environment: Mapping[str, str] | None = None) -> list[Word]:
    """Split a text into its words. There is no text that can't be.

    Args:
        text: The text.
        environment: The values of variables; what is not in it stands for nothing.
    """
    values = {
        name.encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
        for name, value in (environment or {}).items()
    }
    words = []
    at = _end(_BETWEEN, text, 0)
    while at < len(text):
        end = _end(_WORD, text, at)
        words.append(_word(text, at, end, values))
        at = _end(_BETWEEN, text, end)
    return words


def _end(form: re.Pattern[bytes], text: bytes, at: int) -> int:
    match = form.match(text, at)
    return match.end() if match else at


def _word(text: bytes, start: int, end: int, values: Mapping[bytes, bytes]) -> Word:
    if not _SPECIAL.search(text, start, end):
        return Word(text[start:end].decode("utf-8", "surrogateescape"), start, end)
    out = bytearray()
    quoted = unclosed = False
    variables: list[bytes] = []

    def variable(name: bytes) -> bytes:
        variables.append(name)
        return values.get(name, b"")

    def within(match: re.Match[bytes]) -> bytes:
        found = match.groupdict()
        if name := found["braced"] or found["bare"]:
            return variable(name)
        if found["octal"]:
            return bytes([int(found["octal"], 8) & 0xFF])
        if found["hex"] is not None:
            return bytes([int(found["hex"] or b"0", 16)])
        letter = found["letter"]
        return bytes([_LETTERS.get(letter[0], letter[0])])

    for match in _PIECE.finditer(text, start, end):
        kind, found = match.lastgroup, match.groupdict()
        if kind in ("plain", "alone"):
            out += match[0]
        elif name := found["braced"] or found["bare"]:
            out += variable(name)
        else:
            quoted = True
            if found["single"] is not None:
                out += found["single"]
            elif found["double"] is not None:
                out += _IN_QUOTES.sub(within, found["double"])
            else:
                out += found["escaped"]
            unclosed = unclosed or kind in ("open1", "open2")
    names = tuple(name.decode() for name in variables)
    return Word(bytes(out).decode("utf-8", "surrogateescape"), start, end, quoted, names, unclosed)


def quote(argument: str) -> str:
    """Spell an argument so that a runtime that reads `.args` finds just this one.

    ``...`` is where the user's own arguments go, however it is spelled.
    """
    if re.fullmatch(r"[\w@%+=:,./-]+", argument, re.ASCII):
        return argument
    if "'" not in argument:
        return f"'{argument}'"
    return '"' + re.sub(r'(["\\$])', r"\\\1", argument) + '"'


def decoded(raw: bytes) -> str:
    """The text in a file that somebody wrote with an editor.

    A byte order mark is taken off, UTF-16 that has one is understood, and lines that end in CR LF,
    or in CR alone, end in LF.

    Raises:
        UnicodeDecodeError: It is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    for mark, encoding in _MARKS.items():
        if raw.startswith(mark) and (raw != mark or mark == codecs.BOM_UTF8):  # alone it is none
            text = raw[len(mark) :].decode(encoding)
            break
    else:
        text = raw.decode()
    return text.replace("\r\n", "\n").replace("\r", "\n")


def of_file(path: Path) -> bytes:
    """The text in a file that is to become the arguments of a llamafile, as `decoded` has it.

    Raises:
        PyllamafileError: It can't be read, is no text, or has too much in it.
    """
    most = 2 * MOST + 2  # UTF-16 takes twice as much, and a mark
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= most else b""
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    if size > most:
        raise RefusedError(f"{path}: {_too_long(size)}", path=path)
    try:
        return decoded(raw).encode()
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: not UTF-8 text", path=path) from error


def check(text: bytes, entries: Collection[str], where: str, path: Path | None = None) -> None:
    """Refuse arguments with which a file would not start.

    Args:
        text: The text of `.args`.
        entries: The names of the entries that the file will have.
        where: What the text is from, for the message.
        path: The file that it is from, if it is from one.

    Raises:
        RefusedError: It would not.
    """
    if what := fault_of_new(text, entries):
        raise RefusedError(
            f"{where}: {what}",
            hint="these become the default arguments of a file, which would not start with them",
            path=path,
        )


# Options, and the weights behind them


def spelled(option: str) -> str:
    """An option as llama.cpp's table has it: it takes ``--no_mmap`` for ``--no-mmap``."""
    return option.replace("_", "-") if option.startswith("--") else option


def has(text: bytes, options: Collection[str]) -> bool:
    """Whether one of these options is a word of a text."""
    return any(spelled(word.text) in options for word in parse(text))


class Name(NamedTuple):
    """Weights of the same file, as an argument names them.

    Attributes:
        option: The option that it stands behind.
        name: What stands behind the ``@``.
        line: The number of its line, from 1.
    """

    option: str
    name: str
    line: int


def missing(text: bytes, entries: Collection[str]) -> Iterator[Name]:
    """Where a text names weights that are not among the entries of its file.

    What is a matter of variables is passed over.
    """
    yield from _missing(text, parse(text), entries)


def _missing(text: bytes, words: Sequence[Word], entries: Collection[str]) -> Iterator[Name]:
    weights = [entry for entry in entries if entry.endswith(_WEIGHTS)]
    for option, value in itertools.pairwise(words):
        flag = spelled(option.text)
        if flag not in WEIGHTS_OPTIONS or option.variables or value.variables:
            continue
        for each in _values(value.text) if flag in _LISTS else [value.text]:
            name = each.rpartition(":")[0] or each if flag == "--lora-scaled" else each
            if name.startswith("@") and not any(_means(name[1:], entry) for entry in weights):
                yield Name(option.text, name[1:], _line(text, value.start))


def _values(text: str) -> Iterator[str]:
    """Values with commas between them, as llama.cpp reads them: double quotes protect one."""
    for value in re.findall(r'(?:"[^"]*"?|[^,"])+', text):
        yield value.replace('"', "")


def _means(name: str, entry: str) -> bool:
    """Whether ``@NAME`` is this entry: its folders and ``.gguf`` can be left out."""
    return entry in (name, name + _WEIGHTS) or entry.rpartition("/")[2] in (name, name + _WEIGHTS)


def check_nameable(path: Path, entry: str) -> None:
    """Refuse weights under a name by which no runtime finds them.

    To it, what stands behind the last ``@`` is the name of an entry (weights.cpp).

    Args:
        path: The file that they are in.
        entry: What their entry is to be called; what is not weights may have any name.

    Raises:
        RefusedError: There is an ``@`` in it.
    """
    if entry.endswith(_WEIGHTS) and "@" in entry:
        raise RefusedError(
            f"{path}: weights called {entry!r} can't be used: their name has an @ in it",
            hint=f"rename the file, or add it as NAME.gguf: --add {path}=NAME.gguf",
            path=path,
        )


def renamed(text: bytes, mapping: Mapping[str, str]) -> bytes:
    """A text in which the options for weights have other values. All else stays as it is.

    ``--model=NAME``, which a runtime of ours does not take, becomes two words.

    Args:
        text: The text.
        mapping: New values by the old ones.
    """
    out, copied = bytearray(), 0
    option = ""
    for word in parse(text):
        flag, equals, value = word.text.partition("=")
        new = None
        if word.variables:
            option = ""
            continue
        if equals and spelled(flag) in WEIGHTS_OPTIONS:
            new = _mapped(spelled(flag), value, mapping)
        elif option in WEIGHTS_OPTIONS:
            flag, new = "", _mapped(option, word.text, mapping)
        if new is not None:
            out += text[copied : word.start]
            out += f"{flag} {quote(new)}".strip().encode("utf-8", "surrogateescape")
            copied = word.end
        option = spelled(word.text)
    return bytes(out + text[copied:])


def _mapped(option: str, value: str, mapping: Mapping[str, str]) -> str | None:
    """A new value, or None if the old one is nothing to change."""
    if value in mapping or option not in _LISTS:
        return mapping.get(value)
    new = []
    for each in value.split(","):
        name, _, scale = each.rpartition(":")
        new.append(f"{mapping[name]}:{scale}" if name in mapping else mapping.get(each, each))
    changed = ",".join(new)
    return changed if changed != value else None


# What can't be right


def fault(text: bytes, entries: Collection[str]) -> str | None:
    """Why no file starts with these arguments, in one line; None if nothing says so.

    This knows the grammar and the names in the file, and of the options only those for weights.

    Args:
        text: The text.
        entries: The names of the entries of the file that it is in.
    """
    if len(text) > MOST:
        return _too_long(len(text))
    if any(text.startswith(mark) for mark in _MARKS):
        return "it begins with a byte order mark, which would belong to the first word"
    if b"\0" in text:
        return f"line {_line(text, text.index(0))}: a NUL, where the argument would end"
    words = parse(text)
    for word in words:
        if "\0" in word.text:
            return (
                f"line {_line(text, word.start)}: an escape for NUL, where the argument would end"
            )
    if stray := _stray(words):
        return (
            f"line {_line(text, stray.start)}: {stray.text[:40]!r} is no option, nor a value of one"
        )
    for found in _missing(text, words, entries):
        return f"line {found.line}: {found.option} @{found.name}: the file has no such weights"
    return None


def fault_of_new(text: bytes, entries: Collection[str]) -> str | None:
    """The same of a text that is to go into a file, where an open quote is a mistake, too."""
    if what := fault(text, entries):
        return what
    for word in parse(text):
        if word.open:
            return f"line {_line(text, word.start)}: a quote is opened and not closed"
    return None


def _too_long(size: int) -> str:
    return f"arguments can't have {size:,} bytes: {MOST:,} is the most for them"


_MOST_VALUES: Final = 2  # that any option of llama.cpp takes
_FREE: Final = "--quantize"  # the mode whose arguments are not all options


def _stray(words: Sequence[Word]) -> Word | None:
    """A word that is no option, where no option can be that it is a value of."""
    if any(word.text == _FREE and not word.variables for word in words):
        return None
    room = 0.0
    for word in words:
        if word.variables or word.placeholder:
            room = math.inf  # who knows what comes there
        elif word.text.startswith("-"):
            room = _MOST_VALUES
        elif room == 0:
            return word
        else:
            room -= 1
    return None


def _line(text: bytes, at: int) -> int:
    """The number of the line that a byte is in, from 1."""
    return text.count(b"\n", 0, at) + 1
