"""Who a llamafile says it is: its name, its icon, its greeting (launcher/FORMAT.md, section 9)."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import sys
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from pyllamafile.arguments import decoded
from pyllamafile.errors import AccessError, RefusedError, UnavailableError
from pyllamafile.paths import path_of

MOST: Final = 4 << 20
"""Bytes that `persona.json` may have: a runtime reads no more."""

MOST_ICON: Final = 1 << 20
"""Bytes that a picture may have: every page of the web GUI brings it along."""

MOST_TEXT: Final = 4096
"""Characters that a name, a greeting or a suggestion may have."""

_TEXTS: Final = ("name", "icon", "system", "system-file", "greeting", "accent")
_PNG: Final = b"\x89PNG\r\n\x1a\n"  # PNG specification, section 5.2
_COLOUR: Final = re.compile(r"#(?:[0-9a-fA-F]{3}){1,2}")
_ODD: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")  # all controls but LF, no UTF-8
_DATA: Final = "data:image/png;base64,"


@dataclass(frozen=True)
class Persona:
    """Who a llamafile says it is. What is None is left as it would be without.

    Attributes:
        name: What it is called, in the web GUI and in `--chat`.
        icon: Its picture, the bytes of a PNG.
        system: Its system prompt.
        greeting: What it says before anybody asks.
        suggestions: Questions that the web GUI offers as buttons.
        accent: The colour of the web GUI's buttons, such as ``#3b82f6``.
    """

    name: str | None = None
    icon: bytes | None = None
    system: str | None = None
    greeting: str | None = None
    suggestions: tuple[str, ...] = ()
    accent: str | None = None

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            RefusedError: One is nothing that the web GUI or a terminal could show.
        """
        texts = {"name": self.name, "greeting": self.greeting}
        texts |= {f"suggestion {i + 1}": text for i, text in enumerate(self.suggestions)}
        for what, text in texts.items():
            if text is not None:
                _check_text(what, text)
        if self.name is not None and "\n" in self.name:
            raise RefusedError("the persona's name has more than one line")
        if self.accent is not None and not _COLOUR.fullmatch(self.accent):
            raise RefusedError(
                f"{self.accent!r} is no colour", hint="give red, green and blue as in #3b82f6"
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Persona:
        """Read a persona out of a TOML file.

        Its keys are ``name``, ``greeting``, ``suggestions`` (a list), ``accent``, ``system`` (a
        text), and, as files beside it, ``icon`` and ``system-file``.

        Raises:
            PyllamafileError: The file, or one that it names, can't be read or is no good.
        """
        path = path_of(path)
        says = _parsed(path)
        kinds = {**dict.fromkeys(_TEXTS, str), "suggestions": list}
        for key, value in says.items():
            if key not in kinds:
                raise RefusedError(
                    f"{path}: there is no key {key!r}",
                    hint=f"there are {', '.join(kinds)}",
                    path=path,
                )
            if not isinstance(value, kinds[key]):
                what = "a text in quotes" if kinds[key] is str else "a list of texts"
                raise RefusedError(f"{path}: {key} is not {what}", path=path)
        suggestions = says.get("suggestions", [])
        if not all(isinstance(each, str) for each in suggestions):
            raise RefusedError(f"{path}: suggestions is not a list of texts", path=path)
        if "system" in says and "system-file" in says:
            raise RefusedError(f"{path}: has both system and system-file", path=path)
        icon, system = says.get("icon"), says.get("system-file")
        try:
            return cls(
                name=says.get("name"),
                icon=read_icon(path.parent / icon) if icon is not None else None,
                system=read_text(path.parent / system)
                if system is not None
                else says.get("system"),
                greeting=says.get("greeting"),
                suggestions=tuple(suggestions),
                accent=says.get("accent"),
            )
        except RefusedError as error:
            if error.path is not None:
                raise
            raise RefusedError(f"{path}: {error.message}", hint=error.hint, path=path) from error

    @property
    def summary(self) -> str:
        """The parts that it has, separated by commas."""
        return ", ".join(field.name for field in fields(self) if getattr(self, field.name))

    @property
    def picture(self) -> tuple[bytes, int, int] | None:
        """Its icon, and its width and height in pixels, unless it is none that can be shown."""
        size = _pixels(self.icon or b"")
        return (self.icon, *size) if self.icon and size else None

    @property
    def text(self) -> bytes | None:
        """What `persona.json` says, which is all but the system prompt; None for nothing."""
        says: dict[str, Any] = {
            "name": self.name,
            "greeting": self.greeting,
            "suggestions": list(self.suggestions),
            "accent": self.accent,
            "icon": _DATA + base64.b64encode(self.icon).decode() if self.icon else None,
        }
        says = {key: value for key, value in says.items() if value}
        if not says:
            return None
        return (json.dumps(says, indent=1, ensure_ascii=False) + "\n").encode()


def read_icon(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a PNG.

    Raises:
        PyllamafileError: It can't be read, is no PNG, or is larger than `MOST_ICON`.
    """
    path = path_of(path)
    content = _bytes(path)
    if not _pixels(content):
        raise RefusedError(f"{path}: is no PNG", path=path)
    if len(content) > MOST_ICON:
        raise RefusedError(
            f"{path}: has {len(content):,} bytes, and an icon may have {MOST_ICON:,}",
            hint="make it smaller: 256 pixels are enough",
            path=path,
        )
    return content


def read_text(path: str | os.PathLike[str]) -> str:
    """A text as editors write it, of any of Unicode's encodings, without the last line's end.

    Raises:
        PyllamafileError: It can't be read, or is no text.
    """
    path = path_of(path)
    try:
        text = decoded(_bytes(path)).removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: is no text in UTF-8 or UTF-16", path=path) from error
    if "\0" in text or not text.strip():
        raise RefusedError(f"{path}: is {'no text' if text.strip() else 'empty'}", path=path)
    return text


def said_in(content: bytes) -> Persona:
    """The persona that a finished file's `persona.json` says.

    Raises:
        RefusedError: It is no such text.
    """
    if len(content) > MOST:
        raise RefusedError(f"persona.json has {len(content):,} bytes, and may have {MOST:,}")
    try:
        says = json.loads(content)
        icon, suggestions = says.get("icon"), says.get("suggestions", [])
        if not isinstance(suggestions, list):
            raise TypeError(suggestions)
        return Persona(
            name=says.get("name"),
            icon=base64.b64decode(icon.removeprefix(_DATA), validate=True) if icon else None,
            greeting=says.get("greeting"),
            suggestions=tuple(suggestions),
            accent=says.get("accent"),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise RefusedError("persona.json says no persona") from error


def _pixels(png: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG, which its first chunk has (section 11.2.2)."""
    if not png.startswith(_PNG + b"\0\0\0\x0dIHDR") or len(png) < 33:
        return None
    width, height = struct.unpack_from(">2I", png, 16)
    return (width, height) if width and height else None


def _check_text(what: str, text: str) -> None:
    if not text.strip():
        raise RefusedError(f"the persona's {what} is empty")
    if len(text) > MOST_TEXT:
        raise RefusedError(
            f"the persona's {what} has {len(text):,} characters, and may have {MOST_TEXT:,}"
        )
    if _ODD.search(text):
        raise RefusedError(f"the persona's {what} has a character that can't be shown")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error


def _parsed(path: Path) -> dict[str, Any]:
    try:
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError as error:
        raise UnavailableError(
            f"{path}: Python before 3.11 reads no TOML", hint="pip install tomli"
        ) from error
    try:
        parsed: dict[str, Any] = toml.loads(decoded(_bytes(path)))
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: is no text in UTF-8 or UTF-16", path=path) from error
    except ValueError as error:
        raise RefusedError(f"{path}: {error}", path=path) from error
    return parsed
