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
from dataclasses import dataclass, replace
from importlib import resources

from pyllamafile.errors import DamagedError, NotFoundError, PyllamafileError, RefusedError
from pyllamafile.launcher import pe
from pyllamafile.launcher.rsrc import Look
from pyllamafile.runtimes import Runtime
from pyllamafile.targets import TARGETS

BLOCK = 65536
"""What programs and weights are aligned to, and ``dd``'s block size, in bytes."""

HEAD = 16384
"""Length of a head in bytes that is a script and its padding."""

BUDGET = pe.BODY - pe.SCRIPT
"""Length in bytes that the script must stay below, for it to fit into a Windows program."""


@dataclass(frozen=True)
class HeadProgram:
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


def head(programs: Sequence[Program], head_program: HeadProgram | None = None) -> bytes:
    """The beginning of a file: what starts one of `programs`, or is itself a program.

    Without `head_program` it is a shell script of `HEAD` bytes. A Windows program gets the script
    put in, an ELF program stands alone.

    Args:
        programs: What the script chooses from; where two fit a system, the first.
        head_program: The program that the file itself is.

    Raises:
        PyllamafileError: There is no program, one of them is misplaced or of an unknown
            target, the script does not fit, or the file can't be such a program.
    """
    if head_program and _is_elf(head_program):
        if programs:
            raise RefusedError("an ELF program can't choose among others")
        return head_program.program
    if not programs and not head_program:
        raise RefusedError("a llamafile needs at least one runtime")
    script = _script(programs, head_program).encode("ascii")
    if len(script) >= BUDGET:
        raise RefusedError(
            f"the launch script is {len(script)} bytes long, and must be below {BUDGET}",
            hint="choose fewer targets",
        )
    if not head_program:
        return script.ljust(HEAD, b"\n")
    with _about(head_program):
        return pe.graft(head_program.program, script.split(b"\n", 1)[1])


def dressed(head_program: HeadProgram, look: Look | None) -> HeadProgram:
    """A program that Windows shows otherwise: by another name, with another icon.

    Args:
        head_program: The program; one that isn't for Windows is left as it is.
        look: What Windows is to show; None for what the program brings.

    Raises:
        PyllamafileError: The program can't be changed so.
    """
    if _is_elf(head_program):
        return head_program
    with _about(head_program):
        return replace(head_program, program=pe.dressed(head_program.program, look))


def is_head_of(program: bytes, head: bytes) -> bool:
    """Whether a head is this Windows program, with whatever script in it."""
    if not head.startswith(pe.FIRST_LINE):
        return False
    try:
        return pe.graft(program, head[pe.SCRIPT : pe.BODY]) == head
    except PyllamafileError:
        return False


def head_size(head_program: HeadProgram | None = None) -> int:
    """How long `head` will be, in bytes, whatever the programs are.

    Raises:
        PyllamafileError: The file can't be such a program.
    """
    if not head_program:
        return HEAD
    if _is_elf(head_program):
        return len(head_program.program)
    with _about(head_program):
        return len(head_program.program) + pe.shift(head_program.program)


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


def _is_elf(head_program: HeadProgram) -> bool:
    """Whether it is an ELF program, which it must be if it isn't for Windows."""
    if TARGETS[head_program.runtime.target].os == "windows":
        return False
    if not head_program.program.startswith(b"\x7fELF"):
        raise DamagedError(
            f"{head_program.runtime.path}: not an ELF program", path=head_program.runtime.path
        )
    return True


@contextlib.contextmanager
def _about(head_program: HeadProgram) -> Iterator[None]:
    try:
        yield
    except PyllamafileError as error:
        raise RefusedError(
            f"{head_program.runtime.path}: {error.message}",
            hint=error.hint,
            path=head_program.runtime.path,
        ) from error


def _script(programs: Sequence[Program], head_program: HeadProgram | None) -> str:
    """The template, filled in, without its comments but the first two lines."""
    template = resources.files(__name__).joinpath("launch.sh").read_text("ascii")
    first, second, *rest = template.splitlines()
    lines = [first, second]
    for line in rest:
        if line.startswith("@UNAME@"):
            lines += filter(None, (_row(line, program) for program in programs))
        elif line.strip() and not line.lstrip().startswith("#"):
            lines.append(line)
    runtimes = [head_program.runtime] if head_program else []
    names = " ".join(runtime.target for runtime in (*runtimes, *(p.runtime for p in programs)))
    return "\n".join(lines).replace("@NAMES@", names) + "\n"


def _row(line: str, program: Program) -> str:
    """One branch of the script's ``case``: from ``uname -sm`` to where the program is.

    Empty for a program that the script does not start.
    """
    runtime = program.runtime
    if runtime.target not in TARGETS:
        raise NotFoundError(f"{runtime.path}: no such target: {runtime.target}", path=runtime.path)
    if program.offset < HEAD or program.offset % BLOCK or runtime.packed_size % BLOCK:
        raise RefusedError(
            f"{runtime.path}: does not begin and end on a multiple of {BLOCK} bytes",
            hint="pack it again",
            path=runtime.path,
        )
    if not re.fullmatch("[0-9a-f]{64}", runtime.sha256):
        raise DamagedError(f"{runtime.path}: not a SHA-256: {runtime.sha256}", path=runtime.path)
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
