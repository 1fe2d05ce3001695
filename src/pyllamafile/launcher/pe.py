"""A Windows program that is also a shell script: the surgery on its bytes. Pure.

The program stays complete and runs where it is; FORMAT.md 2.3 has the result. Structures and
field names are those of Microsoft's "PE Format" specification; offsets are in bytes from the start
of the file. Only the 64-bit form (PE32+) is known.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyllamafile.errors import PyllamafileError, RefusedError
from pyllamafile.launcher import rsrc
from pyllamafile.launcher.rsrc import Look

FIRST_LINE = b'MZ=;eval "$(dd<"$0" bs=8k skip=1 count=1 2<&0)";exit 1     \n'
"""To Windows a DOS header up to e_lfanew, to a shell the order to run what is at `SCRIPT`.

``dd`` gets the file, open for reading alone, as standard error, which keeps it quiet."""

SCRIPT = 0x2000
"""Where the launch script begins; ``dd`` reads it with ``bs=8k skip=1``."""

BODY = 0x4000
"""Where the first section's data begins, and the script's room ends."""

_LFANEW = 0x3C  # of the DOS header only this field and the first two bytes count
_COFF = struct.Struct("<4s2H3I2H")  # the signature, then the COFF file header
_SECTION = struct.Struct("<8s6I2HI")
_DEBUG = struct.Struct("<2I2H4I")
_PE32_PLUS = 0x20B
_RESOURCES = 2  # indexes of data directories
_CERTIFICATES = 4
_DEBUGS = 6
_RSRC = b".rsrc\0\0\0"  # the linker's resources
_OURS = b".persona"  # those in their place
_READ_ONLY = 0x40000040  # characteristics of a section: initialized data that may be read


@dataclass(frozen=True)
class _Section:
    name: bytes
    header: int  # where it stands in the section table
    address: int  # where it is loaded to, from the image's base
    length: int  # how long it is there
    size: int  # and in the file
    offset: int

    def content(self, program: bytes) -> bytes:
        return program[self.offset : self.offset + self.size]


@dataclass(frozen=True)
class _Headers:
    """What of a program's headers matters here.

    Attributes:
        count: Where the field NumberOfSections is.
        optional: Where the optional header is.
        directories: How many data directories there are.
        end: Where the section table ends.
        room: Where the headers end.
        image: How long the program is in memory.
        alignment: What sections are aligned to in the file.
        resources: The address of the resources, and their length.
        debug: Where the debug directory is, and its length.
        sections: Those with a place in the file.
        shift: What these have to be moved by.
    """

    count: int
    optional: int
    directories: int
    end: int
    room: int
    image: int
    alignment: int
    resources: tuple[int, int]
    debug: tuple[int, int]
    sections: tuple[_Section, ...]
    shift: int

    @property
    def checksum(self) -> int:
        """Where the field CheckSum is."""
        return self.optional + 64

    @property
    def linked(self) -> _Section | None:
        """The resources that the linker put in."""
        return next((section for section in self.sections if section.name == _RSRC), None)


def shift(program: bytes) -> int:
    """How many bytes longer `graft` makes a program.

    Raises:
        PyllamafileError: The program is not one that `graft` can change.
    """
    return _headers(program).shift


def graft(program: bytes, script: bytes) -> bytes:
    """Make a Windows program one that shells run as a script.

    The headers stay where they are, the sections' data moves to `BODY`, and the pointers to
    it in section table and debug directory follow. Nothing changes in memory, except the DOS
    header. CheckSum, which counts for drivers only, becomes 0 for "none".

    Args:
        program: A complete 64-bit PE.
        script: What shells are to run, less than ``BODY - SCRIPT`` bytes.

    Raises:
        PyllamafileError: The program can't be changed so: its headers don't leave room, or
            something in it would be lost or broken.
    """
    headers = _headers(program)
    start = min(section.offset for section in headers.sections)
    head = bytearray(program[:start].ljust(SCRIPT, b"\0")[:SCRIPT])
    head[:_LFANEW] = FIRST_LINE
    head += script.ljust(BODY - SCRIPT, b"\n")
    struct.pack_into("<I", head, headers.checksum, 0)
    for section in headers.sections:
        _add(head, section.header + 20, headers.shift)  # PointerToRawData
    at, size = headers.debug if headers.debug[1] else (start, 0)
    debug = bytearray(program[at : at + size])
    for entry in range(0, size, _DEBUG.size):
        _add(debug, entry + 24, headers.shift)  # PointerToRawData
    body = memoryview(program)  # a copy of 12 MB less at the moment when memory is fullest
    return b"".join((head, body[start:at], debug, body[at + size :]))


def dressed(program: bytes, look: Look | None) -> bytes:
    """Make a Windows program look otherwise: another icon, another name.

    Behind its other sections comes one with its resources, changed so. The linker's own stay where
    they are, and nothing leads to them any more. A section that is there from an earlier call goes
    first. CheckSum becomes 0.

    Args:
        program: A complete 64-bit PE, grafted or not.
        look: What it is to look like; None for what it was linked as.

    Raises:
        PyllamafileError: The program can't be changed so.
    """
    headers = _headers(program)
    try:
        if headers.sections[-1].name == _OURS:
            program = _undressed(program, headers)
            headers = _headers(program)
        return _dressed(program, headers, look) if look else program
    except (ValueError, struct.error):
        raise _unfit("its resources can't be read") from None


def _dressed(program: bytes, headers: _Headers, look: Look) -> bytes:
    """A program with a section more, behind its own."""
    linked, alignment = headers.linked, headers.alignment
    reasons = {
        "it has no room for another section": headers.room - headers.end < _SECTION.size
        or any(program[headers.end : headers.end + _SECTION.size]),
        "its resources are somewhere else": headers.directories <= _RESOURCES
        or headers.resources != ((linked.address, linked.length) if linked else (0, 0)),
        "its last section is not filled up": len(program) % alignment,
    }
    for reason, holds in reasons.items():
        if holds:
            raise _unfit(reason)
    found = rsrc.read(linked.content(program), linked.address) if linked else {}
    section = rsrc.written(look.over(found), headers.image)
    size = -(-len(section) // alignment) * alignment
    place = (headers.image, len(section))
    entry = _SECTION.pack(_OURS, *reversed(place), size, len(program), 0, 0, 0, 0, _READ_ONLY)
    out = bytearray(program)
    _resize(out, headers, 1, sum(place), size, place)
    out[headers.end : headers.end + len(entry)] = entry
    return bytes(out) + section.ljust(size, b"\0")


def _undressed(program: bytes, headers: _Headers) -> bytes:
    """A program without the section that `dressed` put behind its own."""
    ours, linked = headers.sections[-1], headers.linked
    out = bytearray(program[: ours.offset])
    place = (linked.address, linked.length) if linked else (0, 0)
    _resize(out, headers, -1, ours.address, -ours.size, place)
    out[ours.header : headers.end] = bytes(headers.end - ours.header)
    return bytes(out)


def _resize(
    out: bytearray, headers: _Headers, count: int, end: int, size: int, place: tuple[int, int]
) -> None:
    """Change what a program's headers say of all sections.

    Args:
        out: The program.
        headers: What they say now.
        count: How many sections more there are.
        end: Where they end in memory, from the image's base.
        size: How many bytes more they have in the file.
        place: The address of the resources, and their length.
    """
    optional = headers.optional
    (sections,) = struct.unpack_from("<H", out, headers.count)
    (initialized,) = struct.unpack_from("<I", out, optional + 8)
    (alignment,) = struct.unpack_from("<I", out, optional + 32)
    struct.pack_into("<H", out, headers.count, sections + count)
    struct.pack_into("<I", out, optional + 8, initialized + size)  # SizeOfInitializedData
    struct.pack_into("<I", out, optional + 56, -(-end // alignment) * alignment)  # SizeOfImage
    struct.pack_into("<I", out, headers.checksum, 0)
    struct.pack_into("<2I", out, optional + 112 + 8 * _RESOURCES, *place)


def _add(out: bytearray, at: int, more: int) -> None:
    (pointer,) = struct.unpack_from("<I", out, at)
    if pointer:
        struct.pack_into("<I", out, at, pointer + more)


def _headers(program: bytes) -> _Headers:
    try:
        return _parse(program)
    except struct.error:
        raise _unfit("its headers are cut short") from None


def _parse(program: bytes) -> _Headers:
    (lfanew,) = struct.unpack_from("<I", program, _LFANEW)
    magic, _, count, _, symbols, _, optional_size, _ = _COFF.unpack_from(program, lfanew)
    optional = lfanew + _COFF.size
    (kind,) = struct.unpack_from("<H", program, optional)
    if program[:2] != b"MZ" or magic != b"PE\0\0" or kind != _PE32_PLUS:
        raise _unfit("it is no 64-bit PE")
    in_memory, alignment = struct.unpack_from("<2I", program, optional + 32)
    image, headers_size = struct.unpack_from("<2I", program, optional + 56)
    (directories,) = struct.unpack_from("<I", program, optional + 108)

    def directory(index: int) -> tuple[int, int]:
        if index >= directories:
            return 0, 0
        at, size = struct.unpack_from("<2I", program, optional + 112 + 8 * index)
        return at, size

    table = optional + optional_size
    end = table + count * _SECTION.size
    sections = []
    for header in range(table, end, _SECTION.size):
        name, length, address, size, offset, *_ = _SECTION.unpack_from(program, header)
        if offset:
            sections.append(_Section(name, header, address, length, size, offset))
    start = min((section.offset for section in sections), default=0)
    last = max((section.offset + section.size for section in sections), default=0)
    certificates, _ = directory(_CERTIFICATES)
    reasons = {
        "it has no sections": not sections,
        "its headers begin too early": lfanew <= _LFANEW,
        f"its headers reach beyond byte {SCRIPT}": max(headers_size, end) > SCRIPT,
        "its headers are longer than they say": end > headers_size or start < headers_size,
        "it carries a certificate, which would no longer hold": certificates,
        "it has symbols: strip it": symbols,
        "its sections are not aligned": not (in_memory and alignment)
        or any(number % alignment for number in (BODY, *(s.offset for s in sections))),
        "it is cut short": len(program) < last,
        "something follows its last section": len(program) > last,
    }
    for reason, holds in reasons.items():
        if holds:
            raise _unfit(reason)
    return _Headers(
        count=lfanew + 6,
        optional=optional,
        directories=directories,
        end=end,
        room=headers_size,
        image=image,
        alignment=alignment,
        resources=directory(_RESOURCES),
        debug=_debug(*directory(_DEBUGS), sections),
        sections=tuple(sections),
        shift=BODY - start,
    )


def _debug(address: int, size: int, sections: list[_Section]) -> tuple[int, int]:
    """Where the debug directory is in the file."""
    if not size:
        return 0, 0
    for section in sections:
        if section.address <= address and address + size <= section.address + section.size:
            return section.offset + address - section.address, size - size % _DEBUG.size
    raise _unfit("its debug directory is not in the file")


def _unfit(reason: str) -> PyllamafileError:
    return RefusedError(f"not a Windows program that can head a llamafile: {reason}")
