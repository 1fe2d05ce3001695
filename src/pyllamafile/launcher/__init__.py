"""The head of a llamafile and the programs behind it, as bytes.

The layout is written down in FORMAT.md beside this module. Nothing here touches a file: `head`
renders the launch script, into a Windows program if there is one; `pack` makes a program fit to
stand behind it.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import pe
from pyllamafile.runtimes import Runtime
from pyllamafile.targets import TARGETS

BLOCK = 65536
"""What programs and weights are aligned to, and ``dd``'s block size, in bytes."""

HEAD = 16384
"""Length of a head in bytes that is a script and its padding."""

BUDGET = pe.BODY - pe.SCRIPT
"""Length in bytes that the script must stay below, for it to fit into a Windows program."""


@dataclass(frozen=True)
class Outer:
    """A program that the file itself is: it runs where it lies.

    Attributes:
        runtime: What it is.
        program: Its bytes: a Windows program or an ELF one.
    """

    runtime: Runtime
    program: bytes


@dataclass(frozen=True)
class Program:
    """A packed runtime at its place in the file.

    Attributes:
        runtime: What it is.
        offset: Where it begins, in bytes from the start of the file; a multiple
            of `BLOCK`.
    """

    runtime: Runtime
    offset: int


def head(programs: Sequence[Program], outer: Outer | None = None) -> bytes:
    """The beginning of a file: what starts one of `programs`, or is itself a program.

    Without `outer` it is a shell script of `HEAD` bytes. A Windows program gets the script
    put in, an ELF program stands alone.

    Args:
        programs: What the script chooses from; where two fit a system, the first.
        outer: The program that the file itself is.

    Raises:
        PyllamafileError: There is no program, one of them is misplaced or of an unknown
            target, the script does not fit, or the file can't be such a program.
    """
    if outer and _is_elf(outer):
        if programs:
            raise PyllamafileError("an ELF program can't choose among others")
        return outer.program
    if not programs and not outer:
        raise PyllamafileError("a llamafile needs at least one runtime")
    script = _script(programs, outer).encode("ascii")
    if len(script) >= BUDGET:
        raise PyllamafileError(
            f"the launch script is {len(script)} bytes long, and must be below {BUDGET}",
            hint="choose fewer targets",
        )
    if not outer:
        return script.ljust(HEAD, b"\n")
    with _about(outer):
        return pe.graft(outer.program, script.split(b"\n", 1)[1])


def head_size(outer: Outer | None = None) -> int:
    """How long `head` will be, in bytes, whatever the programs are.

    Raises:
        PyllamafileError: The file can't be such a program.
    """
    if not outer:
        return HEAD
    if _is_elf(outer):
        return len(outer.program)
    with _about(outer):
        return len(outer.program) + pe.shift(outer.program)


def pack(program: bytes, body: bytes | None = None) -> bytes:
    """Compress a program to one gzip member (RFC 1952) of a multiple of `BLOCK` bytes.

    The padding is the member's comment: it stands before the compressed data, so the
    member is whole and exact, and no reader finds anything behind it to warn of.
    The same bytes come out for the same bytes in and the same zlib.

    Args:
        program: The executable.
        body: It as a raw deflate stream (RFC 1951), by something better than zlib, which makes
            it otherwise.
    """
    if body is None:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = deflate.compress(program) + deflate.flush()
    # RFC 1952 2.3: magic, method 8, FLG = FCOMMENT, MTIME 0, XFL 2 (best), OS 255 (unknown).
    start = struct.pack("<4BL2B", 0x1F, 0x8B, 8, 1 << 4, 0, 2, 255)
    end = struct.pack("<2L", zlib.crc32(program), len(program) & 0xFFFFFFFF)
    padding = -(len(start) + 1 + len(body) + len(end)) % BLOCK
    return start + b" " * padding + b"\0" + body + end


def _is_elf(outer: Outer) -> bool:
    """Whether it is an ELF program, which it must be if it isn't for Windows."""
    if TARGETS[outer.runtime.target].os == "windows":
        return False
    if not outer.program.startswith(b"\x7fELF"):
        raise PyllamafileError(f"{outer.runtime.path}: not an ELF program")
    return True


@contextlib.contextmanager
def _about(outer: Outer) -> Iterator[None]:
    try:
        yield
    except PyllamafileError as error:
        raise PyllamafileError(f"{outer.runtime.path}: {error.message}", error.hint) from error


def _script(programs: Sequence[Program], outer: Outer | None) -> str:
    """The template, filled in, without its comments but the first two lines."""
    template = resources.files(__name__).joinpath("launch.sh").read_text("ascii")
    first, second, *rest = template.splitlines()
    lines = [first, second]
    for line in rest:
        if line.startswith("@UNAME@"):
            lines += filter(None, (_row(line, program) for program in programs))
        elif line.strip() and not line.lstrip().startswith("#"):
            lines.append(line)
    runtimes = [outer.runtime] if outer else []
    names = " ".join(runtime.target for runtime in (*runtimes, *(p.runtime for p in programs)))
    return "\n".join(lines).replace("@NAMES@", names) + "\n"


def _row(line: str, program: Program) -> str:
    """One branch of the script's ``case``: from ``uname -sm`` to where the program is.

    Empty for a program that the script does not start.
    """
    runtime = program.runtime
    if runtime.target not in TARGETS:
        raise PyllamafileError(f"{runtime.path}: no such target: {runtime.target}")
    if program.offset < HEAD or program.offset % BLOCK or runtime.packed_size % BLOCK:
        raise PyllamafileError(
            f"{runtime.path}: does not begin and end on a multiple of {BLOCK} bytes",
            hint="pack it again",
        )
    if not re.fullmatch("[0-9a-f]{64}", runtime.sha256):
        raise PyllamafileError(f"{runtime.path}: not a SHA-256: {runtime.sha256}")
    patterns = TARGETS[runtime.target].uname
    if not patterns:
        return ""
    for mark, value in (
        ("@UNAME@", " | ".join(pattern.replace(" ", "\\ ") for pattern in patterns)),
        ("@SKIP@", program.offset // BLOCK),
        ("@COUNT@", runtime.packed_size // BLOCK),
        ("@SIZE@", runtime.size),
        ("@SHA256@", runtime.sha256),
    ):
        line = line.replace(mark, str(value))
    return line
