"""What Windows shows of a program: its icon, its name, its version. Pure.

Structures and names are those of Microsoft's "PE Format" (section ".rsrc"), "Icons in Win32" and
"Version Information Structures". A program's resources are a tree of three levels: a directory of
types, of each type one of names, of each name one of languages.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

Key: TypeAlias = tuple[int, ...]
"""What a resource is found by: its type, its name and its language, all numbers."""

ICON: Final = 3
GROUP_ICON: Final = 14
VERSION: Final = 16

_DIRECTORY: Final = struct.Struct("<2I4H")  # the last two: entries with texts for names, and others
_ENTRY: Final = struct.Struct("<2I")
_DATA: Final = struct.Struct("<4I")
_SPECIAL: Final = 1 << 31  # in an entry: its name is a text, or it leads to a directory
_LEVELS: Final = 3
_MOST: Final = 4096  # entries of all directories; a runtime has some 20
_ALIGNMENT: Final = 8

_GROUP: Final = struct.Struct("<3H4B2HIH")  # NEWHEADER and one RESDIR
_BLOCK: Final = struct.Struct("<3H")
_FIXED: Final = struct.Struct("<13I")  # VS_FIXEDFILEINFO
_ENGLISH: Final = 0x409
_UNICODE: Final = 1200
_MOST_TEXT: Final = 200  # characters of what the engine says of itself


@dataclass(frozen=True)
class Look:
    """What Windows is to show of a program, in place of what the program brings.

    Attributes:
        name: What it is called; None for its own name and version.
        icon: A PNG, its width and its height in pixels; None for its own icon.
        version: The version of pyllamafile, such as ``0.1.0``.
        target: The target that the program is for.
        engine: What is in it.
    """

    name: str | None
    icon: tuple[bytes, int, int] | None
    version: str
    target: str
    engine: str

    def over(self, resources: Mapping[Key, bytes]) -> dict[Key, bytes]:
        """These resources of a program, changed so that it looks like that."""
        gone = {*([ICON, GROUP_ICON] if self.icon else []), *([VERSION] if self.name else [])}
        made = {key: data for key, data in resources.items() if key[0] not in gone}
        if self.icon:
            made[ICON, 1, _ENGLISH] = self.icon[0]
            made[GROUP_ICON, 1, _ENGLISH] = _group(*self.icon)
        if self.name:
            made[VERSION, 1, _ENGLISH] = self._version(self.name)
        return made

    def _version(self, name: str) -> bytes:
        """A VS_VERSIONINFO with what a runtime says of itself (system/windows.rc.in)."""
        parts = [min(int(part), 0xFFFF) for part in re.findall("[0-9]+", self.version)]
        major, minor, patch, build = [*parts, 0, 0, 0, 0][:4]
        number = (major << 16 | minor, patch << 16 | build)
        texts = {
            "Comments": self.engine[:_MOST_TEXT],
            "CompanyName": "pyllamafile",
            "FileDescription": name,
            "FileVersion": self.version,
            "InternalName": self.target,
            "LegalCopyright": "Apache-2.0 and others, see --licenses",
            "OriginalFilename": "llamafile.exe",
            "ProductName": name,
            "ProductVersion": self.version,
        }
        # Signature and version of the structure; the mask of its flags, of which none is set;
        # Windows NT; a program; no date.
        fixed = _FIXED.pack(
            *(0xFEEF04BD, 1 << 16, *number, *number, 0x3F, 0, 0x40004, 1, 0, 0, 0),
        )
        strings = (_block(key, text) for key, text in texts.items())
        language = struct.pack("<2H", _ENGLISH, _UNICODE)
        return _block(
            "VS_VERSION_INFO",
            fixed,
            _block("StringFileInfo", "", _block(f"{_ENGLISH:04X}{_UNICODE:04X}", "", *strings)),
            _block("VarFileInfo", "", _block("Translation", language)),
        )


def read(section: bytes, address: int) -> dict[Key, bytes]:
    """The resources of a program.

    Args:
        section: The section that they are.
        address: Where it is loaded to, from the image's base.

    Raises:
        ValueError: It is no such tree, or has resources that are called by a text.
        struct.error: It is cut short.
    """
    found = {}
    left = len(section)
    for key, at in _leaves(section):
        place, size, *_ = _DATA.unpack_from(section, at)
        data = section[place - address : place - address + size] if place >= address else b""
        left -= size
        if len(data) != size or left < 0:
            raise ValueError(key)
        found[key] = data
    return found


def _leaves(section: bytes) -> Iterator[tuple[Key, int]]:
    """The key of each resource, and where in the section it is described."""
    most = _MOST
    ahead: list[tuple[Key, int]] = [((), 0)]
    while ahead:
        key, at = ahead.pop()
        if len(key) == _LEVELS:
            yield key, at
            continue
        *_, texts, numbers = _DIRECTORY.unpack_from(section, at)
        most -= numbers
        if texts or most < 0:
            raise ValueError(key)
        for index in range(numbers):
            name, to = _ENTRY.unpack_from(section, at + _DIRECTORY.size + index * _ENTRY.size)
            if bool(to & _SPECIAL) == (len(key) + 1 == _LEVELS):
                raise ValueError(key)
            ahead.append(((*key, name), to & ~_SPECIAL))


def written(resources: Mapping[Key, bytes], address: int) -> bytes:
    """The same as a section: directories, the places of the data, the data.

    Args:
        resources: What it is to have.
        address: Where it is loaded to, from the image's base.
    """
    keys = sorted(resources)
    inside: dict[Key, list[Key]] = {}
    for level in range(_LEVELS):
        for key in sorted({key[: level + 1] for key in keys}):
            inside.setdefault(key[:-1], []).append(key)
    places, end = {}, 0
    for folder, entries in inside.items():
        places[folder] = end | _SPECIAL
        end += _DIRECTORY.size + _ENTRY.size * len(entries)
    for key in keys:
        places[key] = end
        end += _DATA.size
    out = bytearray()
    for entries in inside.values():
        out += _DIRECTORY.pack(0, 0, 0, 0, 0, len(entries))
        for entry in entries:
            out += _ENTRY.pack(entry[-1], places[entry])
    for key in keys:
        end += -end % _ALIGNMENT
        out += _DATA.pack(address + end, len(resources[key]), 0, 0)
        end += len(resources[key])
    for key in keys:
        out += bytes(-len(out) % _ALIGNMENT) + resources[key]
    return bytes(out)


def _group(png: bytes, width: int, height: int) -> bytes:
    """An icon of one picture. In a byte, 0 means 256 pixels, and stands for more than that, too."""
    sides = (side if side < 256 else 0 for side in (width, height))
    return _GROUP.pack(0, 1, 1, *sides, 0, 0, 1, 32, len(png), 1)


def _block(key: str, value: str | bytes, *inside: bytes) -> bytes:
    """A structure of a VS_VERSIONINFO: what it is called, its value, and structures within it.

    In front of that its length, the length of its value, in characters if that is a text, and
    whether it is one. Value and structures begin at multiples of four bytes.
    """
    raw = value if isinstance(value, bytes) else _wide(value) if value else b""
    text = isinstance(value, str)
    body = _wide(key)
    for part in filter(None, (raw, *inside)):
        body += bytes(-(_BLOCK.size + len(body)) % 4) + part
    return _BLOCK.pack(_BLOCK.size + len(body), len(raw) // 2 if text else len(raw), text) + body


def _wide(text: str) -> bytes:
    return f"{text}\0".encode("utf-16-le", "replace")
