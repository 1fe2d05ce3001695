"""A Windows program that is also a shell script: the surgery on its bytes. Pure.

The program stays complete and runs where it is; FORMAT.md 2.3 has the result. Structures and
field names are those of Microsoft's "PE Format" specification; offsets are in bytes from the start
of the file. Only the 64-bit form (PE32+) is known.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyllamafile.errors import PyllamafileError, RefusedError

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
_CERTIFICATES = 4  # indexes of data directories
_DEBUGS = 6


@dataclass(frozen=True)
class _Section:
    header: int  # where it stands in the section table
    address: int  # where it is loaded to, from the image's base
    size: int
    offset: int


@dataclass(frozen=True)
class _Headers:
    """What of a program's headers matters here.

    Attributes:
        checksum: Where the field CheckSum is.
        debug: Where the debug directory is, and its length.
        sections: Those with a place in the file.
        shift: What its sections have to be moved by.
    """

    checksum: int
    debug: tuple[int, int]
    sections: tuple[_Section, ...]
    shift: int


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
    (alignment,) = struct.unpack_from("<I", program, optional + 36)
    (headers_size,) = struct.unpack_from("<I", program, optional + 60)
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
        _, _, address, size, offset, *_ = _SECTION.unpack_from(program, header)
        if offset:
            sections.append(_Section(header, address, size, offset))
    start = min((section.offset for section in sections), default=0)
    last = max((section.offset + section.size for section in sections), default=0)
    certificates, _ = directory(_CERTIFICATES)
    move = BODY - start
    reasons = {
        "it has no sections": not sections,
        "its headers begin too early": lfanew <= _LFANEW,
        f"its headers reach beyond byte {SCRIPT}": max(headers_size, end) > SCRIPT,
        "its headers are longer than they say": end > headers_size or start < headers_size,
        "it carries a certificate, which would no longer hold": certificates,
        "it has symbols: strip it": symbols,
        "its sections are not aligned": not alignment
        or any(number % alignment for number in (BODY, *(s.offset for s in sections))),
        "it is cut short": len(program) < last,
        "something follows its last section": len(program) > last,
    }
    for reason, holds in reasons.items():
        if holds:
            raise _unfit(reason)
    debug = _debug(*directory(_DEBUGS), sections)
    return _Headers(optional + 64, debug, tuple(sections), move)


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
