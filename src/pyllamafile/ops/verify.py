"""Second opinion on a finished llamafile.

It reads the container by the letter of its formats and believes nothing before it is checked:
that every reader finds the same files in it, that weights can be mapped where they lie, and that
every byte that counts is the one that was put in. To be worth anything as a check on the writer
it shares no code with it.

Where a fact about the format comes from: "APPNOTE" is PKWARE's .ZIP File Format Specification
6.3.10; RFC 1951 and RFC 1952 are deflate and gzip, RFC 8878 is Zstandard. The manifest,
``llamafile.json``, and the layout are this project's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

from pyllamafile.errors import (
    AccessError,
    DamagedError,
    NotFoundError,
    PyllamafileError,
    RefusedError,
)
from pyllamafile.progress import Progress, Step, silent

MANIFEST: Final = "llamafile.json"
SIGNATURE: Final = "llamafile.json.sig"
ARGS: Final = ".args"
READ: Final = ".read"
STATE: Final = ".state"
DOCUMENTS: Final = ".documents"
EMBEDDER: Final = "embedder.model"
SHADERS: Final = "gpu/shaders.zst"
FORMAT: Final = 1
BLOCK: Final = 65536  # what weights and runtimes are aligned to, in bytes

_CHUNK: Final = 1 << 20  # bytes in flight: some of these at a time, whatever the file's size
_MOST_DIRECTORY: Final = 256 << 20  # bytes: some million entries
_MOST_MANIFEST: Final = 64 << 20
_MOST_ARGS: Final = 1 << 20
_MOST_READ: Final = 16 << 20
_MOST_SIGNATURE: Final = 1 << 16
_MOST_STATE: Final = 2 << 30
_MOST_PROGRAM: Final = 256 << 20  # bytes of a program, or of a packed one; they have some MiB
_MOST_MISFITS: Final = 20  # are enough to see what is wrong with a manifest

_PASSAGES: Final = struct.Struct("<8s4I3Q16s")  # FORMAT.md, section 11
_LOCAL: Final = struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.7
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")  # APPNOTE 4.3.12
_END: Final = struct.Struct("<4s4H2IH")  # APPNOTE 4.3.16
_END64: Final = struct.Struct("<4sQ2H2I4Q")  # APPNOTE 4.3.14
_LOCATOR64: Final = struct.Struct("<4sIQI")  # APPNOTE 4.3.15
_LOCAL_MAGIC: Final = b"PK\3\4"
_CENTRAL_MAGIC: Final = b"PK\1\2"
_END_MAGIC: Final = b"PK\5\6"
_END64_MAGIC: Final = b"PK\6\6"
_LOCATOR64_MAGIC: Final = b"PK\6\7"

_IN_ZIP64: Final = 0xFFFFFFFF  # APPNOTE 4.4.1.4: the value is in a zip64 record instead
_IN_ZIP64_SHORT: Final = 0xFFFF
_ZIP64_EXTRA: Final = 0x0001  # APPNOTE 4.5.3
_STORED: Final = 0
_DEFLATED: Final = 8
_ENCRYPTED: Final = 1 << 0 | 1 << 6 | 1 << 13  # APPNOTE 4.4.4
_DESCRIPTOR: Final = 1 << 3
_UTF8: Final = 1 << 11
_UNIX: Final = 3  # APPNOTE 4.4.2.2

_SCRIPT_MAGIC: Final = b"#!/bin/sh\n"
_PE_MAGIC: Final = b"MZ"
_ELF_MAGIC: Final = b"\x7fELF"
_FIRST_LINE: Final = b'MZ=;eval "$(dd<"$0" bs=8k skip=1 count=1 2<&0)";exit 1     \n'
_PE_SCRIPT: Final = 8192  # where that line finds the script, in bytes
_PE_BODY: Final = 16384  # where it ends, and the program goes on
_FRAME: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1
_PE_MACHINES: Final = {0x8664: "windows-amd64", 0xAA64: "windows-arm64"}
_ELF_MACHINES: Final = {62: "linux-amd64", 183: "linux-arm64"}

_RAW_DEFLATE: Final = -15  # zlib's `wbits`
_GZIP: Final = 31

_ENDS: Final = "end records"
_DIRECTORY: Final = "central directory"
_HEAD: Final = "head"


@dataclass(frozen=True)
class Problem:
    """Something in the file that is not as it must be.

    Attributes:
        where: The part of the file, for example ``central directory``, ``head``,
            ``phi3.gguf (entry at offset 130992)`` or ``runtime linux-amd64 (offset 65536)``;
            offsets are those of its first byte from the start of the file.
        what: What is wrong with it, in one line.
    """

    where: str
    what: str


def verify(
    path: str | os.PathLike[str],
    *,
    contents: bool = True,
    progress: Progress | None = None,
) -> list[Problem]:
    """Check a llamafile, down to every byte of its contents.

    Args:
        path: The finished file. Another ZIP archive is checked as far as it goes.
        contents: False for the structure and the head alone, which takes milliseconds.
        progress: Told how many bytes are read.

    Returns:
        All that is wrong with it, structure first; nothing if it is sound.

    Raises:
        PyllamafileError: If the file can't be opened or holds no ZIP archive at all.
    """
    path = Path(path)
    with _open(path) as file:
        survey = _survey(file, path)
        problems = list(survey.problems)
        tasks = [task for task in survey.tasks if contents or task.where == _HEAD]
        total, done = sum(task.size for task in tasks), 0

        def tick(more: int) -> None:
            (progress or silent)(Step("bytes", f"verifying {path.name}", done + more, total))

        tick(0)
        with ThreadPoolExecutor(1) as pool:
            for task in tasks:
                chunks = _chunks(file, task.start, task.size, tick)
                problems += (Problem(task.where, what) for what in _attempt(task, chunks, pool))
                done += task.size
                tick(0)
    return problems


# Contents: streams of chunks, and what is checked about them


class _PartError(Exception):
    """What is wrong with the part that is being looked at; it goes no further."""


class _Digest(NamedTuple):
    size: int
    crc: int
    sha256: str


_Check: TypeAlias = Callable[[Iterator[bytes], ThreadPoolExecutor], Iterator[str]]


@dataclass(frozen=True)
class _Task:
    """A part of the file, in bytes from its start, and what to check about it.

    Attributes:
        begin: Where the part begins, its header included.
        start: Where that begins which is to be read.
        size: How much is to be read.
    """

    where: str
    begin: int
    start: int
    size: int
    check: _Check

    @property
    def end(self) -> int:
        return self.start + self.size


def _attempt(task: _Task, chunks: Iterator[bytes], pool: ThreadPoolExecutor) -> Iterator[str]:
    try:
        yield from task.check(chunks, pool)
    except _PartError as bad:
        yield str(bad)
    except OSError as error:
        yield f"it cannot be read: {error.strerror or error}"


def _chunks(
    file: BinaryIO, start: int, size: int, tick: Callable[[int], None] = lambda done: None
) -> Iterator[bytes]:
    """A range of the file, piece by piece; `tick` hears how many bytes of it were read."""
    file.seek(start)
    left = size
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise _PartError(f"the file ends {left} bytes before it does")
        left -= len(chunk)
        tick(size - left)
        yield chunk


def _inflate(chunks: Iterable[bytes], wbits: int, limit: int) -> Iterator[bytes]:
    """Unpack one deflate stream or gzip member, never more than `limit` bytes of it."""
    engine = zlib.decompressobj(wbits)
    made = 0

    def unpack(packed: bytes) -> bytes:
        nonlocal made
        try:
            plain = engine.decompress(packed, _CHUNK)
        except zlib.error as error:
            raise _PartError(f"damaged: it cannot be unpacked ({error})") from None
        made += len(plain)
        if made > limit:
            raise _PartError(f"it unpacks to more than the {limit} bytes that are stated")
        return plain

    for chunk in chunks:
        if engine.eof:
            raise _PartError("other bytes follow its compressed data")
        while chunk and not engine.eof:
            yield unpack(chunk)
            chunk = engine.unconsumed_tail
    while not engine.eof:  # all input is consumed, but zlib may hold back output
        plain = unpack(b"")
        if not plain:
            raise _PartError("its compressed data are cut short")
        yield plain
    if engine.unused_data:
        raise _PartError("other bytes follow its compressed data")


def _digest(chunks: Iterable[bytes], pool: ThreadPoolExecutor) -> _Digest:
    """Size, CRC-32 and SHA-256, the latter in a thread of its own while the next chunk is read."""
    size = crc = 0
    sha256 = hashlib.sha256()
    hashing: Future[None] | None = None
    for chunk in chunks:
        if hashing:
            hashing.result()
        hashing = pool.submit(sha256.update, chunk)
        crc = zlib.crc32(chunk, crc)
        size += len(chunk)
    if hashing:
        hashing.result()
    return _Digest(size, crc, sha256.hexdigest())


def _check_entry(
    entry: _Entry,
    listed: Mapping[str, Any] | None,
    chunks: Iterator[bytes],
    pool: ThreadPoolExecutor,
) -> Iterator[str]:
    plain = chunks
    if entry.method == _DEFLATED:
        plain = _inflate(chunks, _RAW_DEFLATE, entry.size)
    found = _digest(plain, pool)
    if found.size != entry.size:
        yield f"it holds {found.size} bytes, the central directory says {entry.size}"
    if found.crc != entry.crc:
        yield f"damaged: its CRC-32 is {found.crc:08x}, the central directory says {entry.crc:08x}"
    if listed and found.size != listed["size"]:
        yield f"it holds {found.size} bytes, the manifest says {listed['size']}"
    if listed and found.sha256 != listed["sha256"]:
        yield f"damaged: its {_differs(found.sha256, listed['sha256'])}"


def _check_head(
    listed: Mapping[str, Any],
    target: str | None,
    chunks: Iterator[bytes],
    pool: ThreadPoolExecutor,
) -> Iterator[str]:
    """The first bytes of the file; `target` is the target that they are a program for."""
    start = b""
    text = True

    def watched() -> Iterator[bytes]:
        nonlocal start, text
        for chunk in chunks:
            start = start or chunk
            text = text and _is_text(chunk)
            yield chunk

    found = _digest(watched(), pool)
    if start.startswith(_SCRIPT_MAGIC):
        if not text:
            yield "it is not plain ASCII without NUL"
        if target:
            yield f"it is a script, not the program that the manifest lists for {target}"
    elif start.startswith((_PE_MAGIC, _ELF_MAGIC)):
        try:
            yield from (_pe_faults if start.startswith(_PE_MAGIC) else _elf_faults)(
                start, listed["size"], target or ""
            )
        except struct.error:
            yield "its headers are cut short"
    else:
        yield "it does not begin with #!/bin/sh, nor as a program does"
    if found.sha256 != listed["sha256"]:
        yield f"damaged: its {_differs(found.sha256, listed['sha256'])}"


def _is_text(part: bytes) -> bool:
    """Some shells stop at a NUL, and what others do depends on the locale."""
    return part.isascii() and b"\0" not in part


def _elf_faults(start: bytes, size: int, target: str) -> Iterator[str]:
    """By the ELF specification: e_ident, e_machine, and the program headers."""
    identity, _, machine = struct.unpack_from("<7s9x2H", start)
    if identity != b"\x7fELF\2\1\1":
        yield "it is no 64-bit little-endian ELF"
        return
    if _ELF_MACHINES.get(machine) != target:
        yield f"it is an ELF program for machine {machine}, the manifest lists {target or 'none'}"
    table, length, count = struct.unpack_from("<32xQ14x2H", start)
    for index in range(count):
        offset, stored = struct.unpack_from("<8xQ16xQ", start, table + index * length)
        if offset + stored > size:
            yield f"its segment at byte {offset} ends past the head"
            return


def _pe_faults(start: bytes, size: int, target: str) -> Iterator[str]:
    """By the PE specification, and by where the launch script must be."""
    if start[: len(_FIRST_LINE)] != _FIRST_LINE:
        yield "its first line is not the one that makes shells run the launch script"
    if len(start) < _PE_BODY or not _is_text(start[_PE_SCRIPT:_PE_BODY]):
        yield f"bytes {_PE_SCRIPT} to {_PE_BODY} are not plain ASCII without NUL"
    (coff,) = struct.unpack_from("<I", start, 60)
    magic, machine, sections, optional_size, kind = struct.unpack_from("<4s2H12xH2xH", start, coff)
    if magic != b"PE\0\0" or kind != 0x20B:
        yield "it is no 64-bit PE"
        return
    if _PE_MACHINES.get(machine) != target:
        yield f"it is a PE for machine {machine:#x}, the manifest lists {target or 'none'}"
    optional = coff + 24
    (headers,) = struct.unpack_from("<I", start, optional + 60)
    directories, *_ = struct.unpack_from("<I", start, optional + 108)
    if directories > 4 and any(struct.unpack_from("<2I", start, optional + 144)):
        yield "it has a certificate table, which can't hold"
    table = optional + optional_size
    end = table + 40 * sections
    if not end <= headers <= _PE_SCRIPT:
        yield f"its headers end at byte {end} and claim {headers} bytes"
    reached = _PE_BODY
    for index in range(sections):
        stored, offset = struct.unpack_from("<16x2I", start, table + 40 * index)
        if stored and not _PE_BODY <= offset <= size - stored:
            yield f"its section at byte {offset} is not between the launch script and its end"
            return
        reached = max(reached, offset + stored)
    if reached != size:
        yield f"its last section ends at byte {reached}, the head at byte {size}"


def _check_runtime(
    listed: Mapping[str, Any], chunks: Iterator[bytes], pool: ThreadPoolExecutor
) -> Iterator[str]:
    packed = hashlib.sha256()

    def watched() -> Iterator[bytes]:
        for chunk in chunks:
            packed.update(chunk)
            yield chunk

    whats: list[str] = []
    try:
        found = _digest(_inflate(watched(), _GZIP, listed["size"]), pool)
        if found.size != listed["size"]:
            whats.append(f"it unpacks to {found.size} bytes, the manifest says {listed['size']}")
        if found.sha256 != listed["sha256"]:
            whats.append(f"its program's {_differs(found.sha256, listed['sha256'])}")
    except _PartError as bad:
        whats.append(str(bad))
    for chunk in chunks:  # what was left when it could not be unpacked
        packed.update(chunk)
    if packed.hexdigest() != listed["packed_sha256"]:
        yield f"damaged: its {_differs(packed.hexdigest(), listed['packed_sha256'])}"
    yield from whats


def _check_second(
    entry: _Entry,
    listed: Mapping[str, Any] | None,
    runtime: Mapping[str, Any],
    file: BinaryIO,
    chunks: Iterator[bytes],
    pool: ThreadPoolExecutor,
) -> Iterator[str]:
    """The second program of a runtime: its entry, and what comes of it.

    Without the package zstandard nothing comes of it, and the digest of the entry has to do.
    """
    frame = bytearray()

    def watched() -> Iterator[bytes]:
        for chunk in chunks:
            frame.extend(chunk)
            yield chunk

    faults = list(_check_entry(entry, listed, watched(), pool))
    yield from faults
    try:
        import zstandard  # of the extra `runtimes`
    except ImportError:
        return
    if faults or runtime["gpu"]["size"] != _frame_size(bytes(frame[:18])):
        return  # which has been said
    try:
        prefix = zstandard.ZstdCompressionDict(
            _prefix(_program(file, runtime)), dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        program = zstandard.ZstdDecompressor(prefix).decompress(
            bytes(frame), allow_extra_data=False
        )
    except (_PartError, struct.error):
        yield "the program that it belongs to cannot be read"
        return
    except zstandard.ZstdError as error:
        yield f"it cannot be unpacked with the program that it belongs to ({error})"
        return
    sha256 = hashlib.sha256(program).hexdigest()
    if sha256 != runtime["gpu"]["sha256"]:
        yield f"its program's {_differs(sha256, runtime['gpu']['sha256'])}"


def _program(file: BinaryIO, runtime: Mapping[str, Any]) -> bytes:
    """The plain program of a runtime."""
    size = runtime["size"]
    if max(size, runtime["packed_size"]) > _MOST_PROGRAM:
        raise _PartError(f"it has {size} bytes, which no program has")
    chunks = _chunks(file, runtime["offset"], runtime["packed_size"])
    return b"".join(_inflate(chunks, _GZIP, size) if runtime["offset"] else chunks)


def _prefix(program: bytes) -> bytes:
    """What the second program of a system was made with: FORMAT.md, section 13."""
    if program[:2] != _PE_MAGIC:
        return program
    (coff,) = struct.unpack_from("<I", program, 60)
    count, optional_size = struct.unpack_from("<6xH12xH", program, coff)
    table = coff + 24 + optional_size
    ends = []
    for at in range(table, table + 40 * count, 40):
        name, stored, offset = struct.unpack_from("<8s8x2I", program, at)
        if offset and name != b".persona":
            ends += [offset, offset + stored]
    return program[min(ends, default=0) : max(ends, default=0)]


def _frame_size(start: bytes) -> int | None:
    """How much a frame of Zstandard holds, by its header; None if it is none that fits here."""
    if start[:4] != _FRAME or len(start) < 6:
        return None
    descriptor = start[4]
    single, kind = descriptor >> 5 & 1, descriptor >> 6
    width = [single, 2, 4, 8][kind]
    if descriptor & 0b1011 or not width:  # a dictionary has a number, or a bit is reserved
        return None
    at = 6 - single  # behind the size of the window, which is that of the content otherwise
    size = int.from_bytes(start[at : at + width], "little") + (256 if width == 2 else 0)
    return size if size <= _MOST_PROGRAM else None


def _differs(found: str, listed: str) -> str:
    return f"SHA-256 is {found}, the manifest says {listed}"


# Structure: everything that can be said without reading the contents

_Report: TypeAlias = Callable[[str, str], None]  # takes where and what


@dataclass(frozen=True)
class _Ends:
    """What the end records say, in bytes from the start of the file.

    Attributes:
        directory: Where the central directory begins.
        end: Where it ends, by its stated size.
        count: The number of its entries.
        start: Where the end records themselves begin.
    """

    directory: int
    end: int
    count: int
    start: int


@dataclass(frozen=True)
class _Entry:
    """An entry of the central directory; offsets from the start of the file, all in bytes.

    Attributes:
        header: Where its local header begins.
        data: Where its data begin; 0 until the local header was read.
        stored: How long its data are.
        size: How long its content is.
    """

    name: str
    raw_name: bytes
    header: int
    stored: int
    size: int
    crc: int
    method: int
    flags: int
    date_time: tuple[int, int]
    link: bool
    data: int = 0

    @property
    def where(self) -> str:
        return f"{_shown(self.name)} (entry at offset {self.header})"


@dataclass(frozen=True)
class _Survey:
    """What the structure tells: its problems, and what is left to be read."""

    problems: list[Problem]
    tasks: list[_Task]


def _open(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked first: to open a FIFO is to wait
            raise RefusedError(f"{path} is not a regular file", path=path)
        return path.open("rb")
    except ValueError as error:
        raise NotFoundError(f"{str(path)!r}: no such file: a path can't hold a NUL") from error
    except OSError as error:
        raise _unread(path, error) from error


def _unread(path: Path, error: OSError) -> PyllamafileError:
    kind = NotFoundError if isinstance(error, FileNotFoundError) else AccessError
    return kind(f"cannot read {path}: {error.strerror or error}", path=path)


def _survey(file: BinaryIO, path: Path) -> _Survey:
    problems: list[Problem] = []

    def report(where: str, what: str) -> None:
        problems.append(Problem(where, what))

    try:
        size = file.seek(0, 2)
        position = _find_end(file, size, report)
        if position is None:
            file.seek(0)
            if file.read(4) == b"GGUF":
                raise RefusedError(
                    f"{path} is a bare GGUF, which has no checksums to verify",
                    hint="inspect reads it, build makes a llamafile of it",
                    path=path,
                )
            raise DamagedError(
                f"{path} is no ZIP archive, or one whose end is missing",
                hint="the download may have been interrupted: get the file again",
                path=path,
            )
        ends = _read_ends(file, position, report)
        entries, complete = _read_directory(file, ends, report) if ends else ([], False)
        limit = min(ends.directory, size) if ends else size
        _check_names(entries, report)
        _check_args(entries, report)
        located = list(_locate(file, entries, limit, report))
        if complete and all(entry.name != MANIFEST for entry in entries):
            report(MANIFEST, "missing: not built by pyllamafile, or rewritten by another program")
        manifest = _read_manifest(file, located, report)
        _check_arguments(file, located, report)
        if manifest:
            _check_signature(file, located, report)
            _check_state(file, located, report)
            _check_read(file, located, report)
            _check_seconds(file, located, manifest, report)
    except _PartError as bad:
        raise DamagedError(f"cannot read {path}: {bad}", path=path) from bad
    except OSError as error:
        raise _unread(path, error) from error
    if manifest and complete:
        _compare_names(entries, manifest["entries"], report)
    tasks = [*_entry_tasks(file, located, manifest), *_prefix_tasks(manifest, report)]
    return _Survey(problems, _in_order(tasks, limit, report))


def _exactly(file: BinaryIO, start: int, size: int) -> bytes:
    """That many bytes of the file; the caller has made sure that they are not too many."""
    return b"".join(_chunks(file, start, size))


def _shown(name: str) -> str:
    """A name from the file, safe to print."""
    return name if name.isprintable() and name else repr(name)


def _find_end(file: BinaryIO, size: int, report: _Report) -> int | None:
    """Where the end of central directory record lies, which is the last thing in a ZIP."""
    base = max(0, size - _END.size - 0xFFFF)  # APPNOTE 4.3.16: the longest comment
    tail = _exactly(file, base, size - base)
    marks = [match.start() for match in re.finditer(re.escape(_END_MAGIC), tail)]
    whole = [mark for mark in marks if mark + _END.size <= len(tail)]
    left = {mark: len(tail) - mark - _END.size - _END.unpack_from(tail, mark)[-1] for mark in whole}
    exact = [mark for mark in whole if not left[mark]]
    if len(exact) > 1:  # readers would disagree on which one counts
        report(_ENDS, "there is more than one: the archive's comment holds another")
    if exact:
        return base + exact[-1]
    if not marks:
        return None
    if not whole:
        report(_ENDS, "they are cut short")
        return base + marks[-1]
    last = whole[-1]
    more = f"{left[last]} bytes follow" if left[last] > 0 else f"{-left[last]} bytes are missing"
    report(_ENDS, f"they are not at the very end of the file: {more}")
    return base + last


def _read_ends(file: BinaryIO, position: int, report: _Report) -> _Ends | None:
    """What the end records say, with those of zip64 if there are any; None if it is no use."""
    try:
        disk, first, here, count, size, offset, _ = _fields(file, position, _END)
        start = position
        locator = position - _LOCATOR64.size
        if locator >= 0 and _exactly(file, locator, 4) == _LOCATOR64_MAGIC:
            located, start, disks = _fields(file, locator, _LOCATOR64)
            if start + _END64.size > locator or _exactly(file, start, 4) != _END64_MAGIC:
                raise _PartError(
                    f"there is no zip64 record at byte {start}, where its locator says"
                )
            length, _, _, *wide = _fields(file, start, _END64)
            if start + 12 + length != locator:  # APPNOTE 4.3.14.1
                raise _PartError("the zip64 record does not end where its locator begins")
            for narrow, value, mark in zip(
                (disk, first, here, count, size, offset),
                wide,
                (*[_IN_ZIP64_SHORT] * 4, *[_IN_ZIP64] * 2),
                strict=True,
            ):
                if narrow not in (value, mark):
                    raise _PartError(f"two of them disagree: {narrow}, in zip64 {value}")
            disk, first, here, count, size, offset = wide
            if located or disks != 1:
                raise _PartError("the archive is said to span several disks")
        if disk or first or here != count:
            raise _PartError("the archive is said to span several disks")
    except _PartError as bad:
        report(_ENDS, str(bad))
        return None
    if offset + size > start or size > _MOST_DIRECTORY:
        report(_DIRECTORY, f"it cannot be {size} bytes at byte {offset}")
        return None
    if offset + size != start:
        what = f"it ends at byte {offset + size}, the end records begin at byte {start}"
        report(_DIRECTORY, what)
    return _Ends(offset, offset + size, count, start)


def _fields(file: BinaryIO, start: int, form: struct.Struct) -> tuple[Any, ...]:
    """The fields of a record but for its magic, which the caller has seen."""
    return form.unpack(_exactly(file, start, form.size))[1:]


def _read_directory(file: BinaryIO, ends: _Ends, report: _Report) -> tuple[list[_Entry], bool]:
    """The entries of the central directory, and whether these are all of them."""
    entries: list[_Entry] = []
    count = position = 0
    complete = True
    try:
        raw = _exactly(file, ends.directory, ends.end - ends.directory)
        while position < len(raw):
            if (
                position + _CENTRAL.size > len(raw)
                or raw[position : position + 4] != _CENTRAL_MAGIC
            ):
                raise _PartError(f"there is no entry at byte {ends.directory + position}")
            fields = _CENTRAL.unpack_from(raw, position)
            name_end = position + _CENTRAL.size + fields[10]
            extra_end = name_end + fields[11]
            end = extra_end + fields[12]
            if end > len(raw):
                raise _PartError(
                    f"the entry at byte {ends.directory + position} reaches past its end"
                )
            name = raw[position + _CENTRAL.size : name_end]
            count += 1
            position = end
            try:
                entries.append(_central_entry(fields, name, raw[name_end:extra_end]))
            except _PartError as bad:
                complete = False
                report(_DIRECTORY, f"entry {_shown(name.decode('latin-1'))}: {bad}")
        if count != ends.count:
            report(_DIRECTORY, f"it has {count} entries, the end records say {ends.count}")
    except _PartError as bad:
        report(_DIRECTORY, str(bad))
        return entries, False
    return entries, complete


def _central_entry(fields: tuple[Any, ...], raw_name: bytes, extra: bytes) -> _Entry:
    _, made, _, flags, method, time, date, crc, stored, size, *rest = fields
    _, _, _, disk, _, attributes, header = rest
    try:
        name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise _PartError("its name is marked as UTF-8, but is not") from None
    values = [size, stored, header, disk]  # the order in zip64, APPNOTE 4.5.3
    marks = [_IN_ZIP64, _IN_ZIP64, _IN_ZIP64, _IN_ZIP64_SHORT]
    absent = [index for index in range(4) if values[index] == marks[index]]
    wide = _extras(extra).get(_ZIP64_EXTRA, b"")
    form = struct.Struct("<" + "".join("QQQI"[index] for index in absent))
    if len(wide) != form.size:
        raise _PartError(f"its zip64 field has {len(wide)} bytes, not {form.size}")
    for index, value in zip(absent, form.unpack(wide), strict=True):
        values[index] = value
    size, stored, header, disk = values
    if disk:
        raise _PartError("it is said to be on another disk")
    link = made >> 8 == _UNIX and stat.S_ISLNK(attributes >> 16)
    return _Entry(name, raw_name, header, stored, size, crc, method, flags, (date, time), link)


def _extras(raw: bytes) -> dict[int, bytes]:
    """The extra fields by their numbers: APPNOTE 4.5.1."""
    fields: dict[int, bytes] = {}
    position = 0
    while position < len(raw):
        if position + 4 > len(raw):
            raise _PartError("its extra field is malformed")
        number, size = struct.unpack_from("<2H", raw, position)
        position += 4
        if position + size > len(raw) or number in fields:
            raise _PartError("its extra field is malformed")
        fields[number] = raw[position : position + size]
        position += size
    return fields


def _check_names(entries: Sequence[_Entry], report: _Report) -> None:
    """That every entry unpacks to a file of its own, below where one unpacks to."""
    seen: set[str] = set()
    for entry in entries:
        name = entry.name
        parts = name.removesuffix("/").split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or name[1:2] == ":":
            report(entry.where, "its name is not a plain relative path")
        if "\\" in name or "\0" in name:
            report(entry.where, "its name holds a backslash or a NUL")
        if not entry.raw_name.isascii() and not entry.flags & _UTF8:
            report(entry.where, "its name is neither ASCII nor marked as UTF-8")
        if name in seen:
            report(entry.where, "there is another entry of this name")
        if entry.link:
            report(entry.where, "it is a symbolic link")
        seen.add(name)


def _check_args(entries: Sequence[_Entry], report: _Report) -> None:
    """That a runtime can read the arguments."""
    for entry in entries:
        if entry.name == ARGS and entry.size > _MOST_ARGS:
            what = f"it has {entry.size} bytes, and a runtime reads no more than {_MOST_ARGS}"
            report(entry.where, what)


def _locate(
    file: BinaryIO, entries: Iterable[_Entry], limit: int, report: _Report
) -> Iterator[_Entry]:
    """Find the data of the entries behind their local headers; drops those that can't be read."""
    for entry in entries:
        try:
            located = _locate_one(file, entry, limit, report)
        except _PartError as bad:
            report(entry.where, str(bad))
            continue
        unreadable = list(_unreadable(located, limit))
        for what in unreadable:
            report(entry.where, what)
        if entry.name == DOCUMENTS and not unreadable:
            for what in _misplaced(file, located):
                report(entry.where, what)
        if entry.name.endswith(".gguf") or entry.name == EMBEDDER:
            if entry.method != _STORED:
                report(entry.where, "weights must be stored, not compressed")
            if located.data % BLOCK:
                what = f"its data at offset {located.data} are not aligned to {BLOCK} bytes"
                report(entry.where, what)
        if not unreadable:
            yield located


def _misplaced(file: BinaryIO, entry: _Entry) -> Iterator[str]:
    """What is wrong with the numbers that documents begin with."""
    if entry.method != _STORED:
        yield "documents must be stored, not compressed: they are compressed in themselves"
        return
    if entry.size < _PASSAGES.size:
        yield f"it has {entry.size} bytes, and documents begin with {_PASSAGES.size}"
        return
    fields = _PASSAGES.unpack(_exactly(file, entry.data, _PASSAGES.size))
    magic, version, count, dimension, several, stored, _, vectors, zeros = fields
    if (magic, zeros) != (b"passages", bytes(16)) or version != (2 if several else 1):
        yield "it does not begin as documents do"
        return
    end = _PASSAGES.size + stored
    if not dimension:
        vectors = vectors or end
    whole = vectors + 2 * (several or count) * dimension
    if vectors < end or whole != entry.size or not count or (several and several < count):
        yield f"its numbers are those of {whole} bytes, not {entry.size}"


def _unreadable(entry: _Entry, limit: int) -> Iterator[str]:
    """Why the content of an entry can't be read."""
    if entry.flags & _ENCRYPTED:
        yield "it is encrypted"
    if entry.method not in (_STORED, _DEFLATED):
        yield f"it is compressed by method {entry.method}, only stored and deflated are possible"
    if entry.method == _STORED and entry.stored != entry.size:
        yield f"it is stored, but in {entry.stored} bytes, not {entry.size}"
    if entry.data + entry.stored > limit:
        yield f"it ends at byte {entry.data + entry.stored}, past the central directory's start"


def _locate_one(file: BinaryIO, entry: _Entry, limit: int, report: _Report) -> _Entry:
    """Read the local header of an entry and hold it against the central directory."""
    if entry.header + _LOCAL.size > limit or _exactly(file, entry.header, 4) != _LOCAL_MAGIC:
        raise _PartError("there is no local header where the central directory says")
    fields = _fields(file, entry.header, _LOCAL)
    _, flags, method, time, date, crc, stored, size, name_size, extra_size = fields
    raw = _exactly(file, entry.header + _LOCAL.size, name_size + extra_size)
    name, extra = raw[:name_size], _extras(raw[name_size:])
    if _ZIP64_EXTRA in extra or _IN_ZIP64 in (size, stored):
        size, stored = _local_sizes(size, stored, extra.get(_ZIP64_EXTRA, b""))
    pairs = [
        ("name", name, entry.raw_name),
        ("flags", flags, entry.flags),
        ("method", method, entry.method),
        ("date", (date, time), entry.date_time),
    ]
    if flags & _DESCRIPTOR:
        report(entry.where, "it has a data descriptor: its size stands behind its data")
    else:
        pairs += [
            ("CRC-32", crc, entry.crc),
            ("stored size", stored, entry.stored),
            ("size", size, entry.size),
        ]
    different = [label for label, local, central in pairs if local != central]
    if different:
        what = f"local header and central directory disagree on its {', '.join(different)}"
        report(entry.where, what)
    return replace(entry, data=entry.header + _LOCAL.size + len(raw))


def _local_sizes(size: int, stored: int, wide: bytes) -> tuple[int, int]:
    """Size and stored size by a local header's zip64 field, which has both: APPNOTE 4.5.3."""
    if len(wide) != 16:
        raise _PartError(f"the zip64 field of its local header has {len(wide)} bytes, not 16")
    sizes: tuple[int, int] = struct.unpack("<2Q", wide)
    if size not in (_IN_ZIP64, sizes[0]) or stored not in (_IN_ZIP64, sizes[1]):
        raise _PartError("its local header states two different sizes")
    return sizes


# The manifest


_Shape: TypeAlias = "dict[str, _Shape] | list[_Shape] | tuple[str, Callable[[Any], bool]]"


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


_TEXT: Final[_Shape] = ("text", lambda value: isinstance(value, str))
_SIZE: Final[_Shape] = ("a number of bytes", _is_size)
_BLOCKS: Final[_Shape] = (
    f"a multiple of {BLOCK} bytes",
    lambda value: _is_size(value) and value % BLOCK == 0,
)
_SHA256: Final[_Shape] = (
    "a SHA-256",
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
)
_TARGET: Final[_Shape] = (
    "a target such as linux-amd64",
    lambda value: isinstance(value, str) and bool(re.fullmatch("[a-z0-9]+-[a-z0-9]+", value)),
)
_EACH: Final = "*"  # stands for every key of an object
_MAYBE: Final = "?"  # at the end of a key: it may be missing
_SHAPE: Final[_Shape] = {
    "name": _TEXT,
    "pyllamafile": _TEXT,
    "head": {"size": _SIZE, "sha256": _SHA256},
    "runtimes": [
        {
            "target": _TARGET,
            "offset": _BLOCKS,
            "packed_size": _SIZE,
            "packed_sha256": _SHA256,
            "size": _SIZE,
            "sha256": _SHA256,
            "llama_cpp": _TEXT,
            "levels": [_TEXT],
            f"gpu{_MAYBE}": {"size": _SIZE, "sha256": _SHA256},
        }
    ],
    "entries": {_EACH: {"size": _SIZE, "sha256": _SHA256}},
}


def _misfits(value: object, shape: _Shape, at: str) -> Iterator[str]:
    """Where a value is not what the table above says it must be."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{at} is not an object"
            return
        shapes = dict.fromkeys(value, shape[_EACH]) if _EACH in shape else shape
        for name, inner in shapes.items():
            key = name if _EACH in shape else name.removesuffix(_MAYBE)
            if key in value:
                yield from _misfits(value[key], inner, f"{at}[{key!r}]")
            elif key == name:
                yield f"{at} lacks {key!r}"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{at} is not an array"
            return
        for index, item in enumerate(value):
            yield from _misfits(item, shape[0], f"{at}[{index}]")
    else:
        label, fits = shape
        if not fits(value):
            yield f"{at} is not {label}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python would take the last of equal keys, others the first."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _read_manifest(
    file: BinaryIO, entries: Iterable[_Entry], report: _Report
) -> dict[str, Any] | None:
    """The manifest, if it is one that can be relied on."""
    entry = next((entry for entry in entries if entry.name == MANIFEST), None)
    if entry is None:
        return None
    try:
        if max(entry.size, entry.stored) > _MOST_MANIFEST:
            raise _PartError(f"it has {entry.size} bytes, which no manifest has")
        manifest = json.loads(b"".join(_plain(file, entry)).decode(), object_pairs_hook=_once)
    except (_PartError, ValueError, RecursionError) as error:
        report(MANIFEST, f"it cannot be understood: {error}")
        return None
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        report(MANIFEST, "it does not say which format it is of")
        return None
    if manifest["format"] != FORMAT:
        report(MANIFEST, f"it is of format {manifest['format']}, only {FORMAT} is known")
        return None
    misfits = list(islice(_misfits(manifest, _SHAPE, "manifest"), _MOST_MISFITS))
    for what in misfits:
        report(MANIFEST, what)
    return None if misfits else manifest


def _plain(file: BinaryIO, entry: _Entry) -> Iterable[bytes]:
    """The content of an entry, unpacked."""
    chunks = _chunks(file, entry.data, entry.stored)
    packed = entry.method == _DEFLATED
    return _inflate(chunks, _RAW_DEFLATE, entry.size) if packed else chunks


# The signature: launcher/FORMAT.md, section 8

_SIGNATURE: Final = re.compile(
    rb"-----BEGIN SSH SIGNATURE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END SSH SIGNATURE-----\s*"
)


def _check_signature(file: BinaryIO, entries: Sequence[_Entry], report: _Report) -> None:
    """That the signature, if there is one, is one. Whether it holds takes a key."""
    entry = next((entry for entry in entries if entry.name == SIGNATURE), None)
    if entry is None:
        return
    if max(entry.size, entry.stored) > _MOST_SIGNATURE:
        report(entry.where, f"it has {entry.size} bytes, which no signature has")
        return
    try:
        text = _SIGNATURE.fullmatch(b"".join(_plain(file, entry)))
        raw = base64.b64decode(b"".join(text[1].split()), validate=True) if text else b""
    except (_PartError, ValueError):
        raw = b""
    if not _is_signature(raw):
        report(entry.where, "it is no signature of OpenSSH's")


def _check_read(file: BinaryIO, entries: Sequence[_Entry], report: _Report) -> None:
    """That what the file has read is a text that a runtime takes."""
    entry = next((entry for entry in entries if entry.name == READ), None)
    if entry is None:
        return
    if max(entry.size, entry.stored) > _MOST_READ:
        what = f"it has {entry.size} bytes, and a runtime reads no more than {_MOST_READ}"
        report(entry.where, what)
        return
    try:
        raw = b"".join(_plain(file, entry))
    except _PartError:
        return  # which is said where its contents are checked
    if zlib.crc32(raw) != entry.crc:
        return
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        report(entry.where, "it is no text in UTF-8, and no conversation starts with it")
        return
    if "\0" in text:
        report(entry.where, "it has a zero byte, and no conversation starts with it")
    elif not text.strip():
        report(entry.where, "it is empty")


def _check_state(file: BinaryIO, entries: Sequence[_Entry], report: _Report) -> None:
    """That a runtime can read what the model remembers: all lengths in it agree."""
    entry = next((entry for entry in entries if entry.name == STATE), None)
    if entry is None:
        return
    if entry.method != _STORED or entry.data % BLOCK or entry.size > _MOST_STATE:
        report(entry.where, "it is compressed, too long, or not where a runtime could map it")
        return
    try:
        magic, length = struct.unpack("<8sQ", _exactly(file, entry.data, 16))
        at = min(16 + length, entry.size)
        slot, tokens, memory = struct.unpack(
            "<8s8xQQ", _exactly(file, entry.data + at, 32 if at + 32 <= entry.size else 0)
        )
        fits = at == 16 + length and at + 32 + 4 * tokens + memory == entry.size
    except (_PartError, struct.error):
        magic, slot, fits = b"", b"", False
    if magic != b"llamSTA1" or slot != b"llamSLT2" or not fits:
        report(entry.where, "it is nothing that a model remembers, or is cut off")


def _second_name(runtime: Mapping[str, Any]) -> str:
    return f"gpu/{runtime['target']}.zst"


def _check_seconds(
    file: BinaryIO, entries: Sequence[_Entry], manifest: Mapping[str, Any], report: _Report
) -> None:
    """That a runtime finds its second program, which can use a GPU, and what that takes."""
    there = {entry.name: entry for entry in entries}
    having = {_second_name(r): r["gpu"]["size"] for r in manifest["runtimes"] if "gpu" in r}
    if any(not name.startswith("gpu/macos-") for name in having):
        having[SHADERS] = None
    for name, size in having.items():
        entry = there.get(name)
        if entry is None:
            report(name, "missing: a program in the manifest takes it to use a GPU")
            continue
        held = None
        if entry.method == _STORED:
            held = _frame_size(_exactly(file, entry.data, min(18, entry.size)))
        if held is None:
            report(entry.where, "it is no frame of Zstandard that says how much it holds")
        elif size not in (None, held):
            report(entry.where, f"it holds {held} bytes, the manifest says {size}")


def _is_signature(raw: bytes) -> bool:
    """Whether these bytes are one: a number, and strings, each behind its length."""
    parts = []
    at = 10
    while at + 4 <= len(raw):
        (size,) = struct.unpack_from(">I", raw, at)
        parts.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    if raw[:10] != b"SSHSIG\0\0\0\1" or at != len(raw) or len(parts) != 5:
        return False
    key, namespace, *_ = parts
    size = int.from_bytes(key[:4], "big")
    kind = re.fullmatch(rb"[a-z][a-z0-9.@-]{2,99}", key[4 : 4 + size])
    try:
        namespace.decode()
    except UnicodeDecodeError:
        return False
    return bool(kind) and len(key) >= 4 + size


# The default arguments: launcher/FORMAT.md, section 5

_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_TOKEN: Final = re.compile(
    rb"""(?P<space>[ \t\n\r\f\v]+) | (?P<plain>[^ \t\n\r\f\v'"\\$]+) | '(?P<single>[^']*)'?
    | "(?P<double>(?:[^"\\]|\\.)*(?:\\\Z)?)"? | \\(?P<next>.) | (?P<variable>\$(?:\w+|{\w+}))
    | (?P<lone>.)""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE: Final = re.compile(
    rb"\\([0-7]{1,3})|\\x([0-9a-fA-F]{0,2})|\\(.)|(\$(?:\w+|{\w+}))", re.DOTALL
)
_NAMING: Final = {  # options for weights, and what stands between several
    **dict.fromkeys(("-m", "--model", "-mm", "--mmproj"), ""),
    **dict.fromkeys(("-md", "--model-draft", "--spec-draft-model"), ""),
    **dict.fromkeys(("--lora", "--lora-scaled"), ","),
}


def _check_arguments(file: BinaryIO, entries: Sequence[_Entry], report: _Report) -> None:
    """That the default arguments, if there are any, are none with which no file starts."""
    entry = next((entry for entry in entries if entry.name == ARGS), None)
    if entry is None or max(entry.size, entry.stored) > _MOST_ARGS:
        return
    try:
        text = b"".join(_plain(file, entry))
    except _PartError:
        return  # which is said where its contents are checked
    if zlib.crc32(text) != entry.crc:
        return
    weights = [e.name for e in entries if e.name.endswith(".gguf") and e.method == _STORED]
    for what in _args_faults(text, weights):
        report(ARGS, what)


def _args_faults(text: bytes, weights: Collection[str]) -> Iterator[str]:
    if text.startswith(_BYTE_ORDER_MARKS):
        yield "it begins with a byte order mark"
        return
    if b"\0" in text:
        yield "it holds a NUL"
        return
    words = list(_words(text))
    if any(word and b"\0" in word for word in words):
        yield "an argument in it has a NUL"
        return
    free = b"--quantize" in words  # the one mode that takes more than options and their values
    room = inf if free else 0
    for word in words:
        if word is None or word == b"...":
            room = inf  # a variable or the user's own arguments: nobody knows which
        elif word.startswith(b"-"):
            room = inf if free else 2
        elif not room:
            yield f"{_shown(word[:40].decode(errors='replace'))} is no option, nor a value of one"
            return
        else:
            room -= 1
    for option, value in pairwise(words):
        named = (option or b"").decode(errors="replace")
        named = named.replace("_", "-") if named.startswith("--") else named
        if named in _NAMING and value is not None:
            for name in _named(value, _NAMING[named], named.endswith("-scaled")):
                if not any(weight in _forms(name) for each in weights for weight in _ends(each)):
                    yield f"{named} @{name}: there are no such weights in the file"


def _named(value: bytes, separator: str, scaled: bool) -> Iterator[str]:
    """The names behind ``@`` in the value of an option for weights."""
    text = value.decode("utf-8", "surrogateescape")
    several = re.findall(r'(?:"[^"]*"?|[^,"])+', text) if separator else [text]
    for one in several:
        name = one.replace('"', "") if separator else one
        name = name[: name.rindex(":")] if scaled and ":" in name else name
        if name.startswith("@"):
            yield name[1:]


def _forms(name: str) -> tuple[str, str]:
    return name, f"{name}.gguf"


def _ends(entry: str) -> tuple[str, str]:
    return entry, entry[entry.rfind("/") + 1 :]


def _words(text: bytes) -> Iterator[bytes | None]:
    """The arguments in a text; None for one that depends on a variable."""
    word: list[bytes | None] = []
    at = 0
    while at < len(text):
        if not word and text.startswith(b"#", at):
            at = text.find(b"\n", at) % (len(text) + 1)  # not found is -1, and so the end
            continue
        token = _TOKEN.match(text, at)
        assert token  # a byte of any value is one
        at = token.end()
        if token["space"] is None:
            word += _pieces(token)
        elif word:
            yield _joined(word)
            word = []
    if word:
        yield _joined(word)


def _joined(pieces: Sequence[bytes | None]) -> bytes | None:
    known = b"".join(piece for piece in pieces if piece is not None)
    return None if None in pieces and b"\0" not in known else known


def _pieces(token: re.Match[bytes]) -> list[bytes | None]:
    if token["variable"]:
        return [None]
    quoted = token["double"]
    if quoted is None:
        return [
            next(
                token[kind]
                for kind in ("plain", "single", "next", "lone")
                if token[kind] is not None
            )
        ]
    pieces: list[bytes | None] = []
    at = 0
    for match in _ESCAPE.finditer(quoted):
        pieces += [quoted[at : match.start()], None if match[4] else _escaped(match)]
        at = match.end()
    return [*pieces, quoted[at:]]


def _escaped(match: re.Match[bytes]) -> bytes:
    octal, digits, letter, _ = match.groups()
    if octal:
        return bytes([int(octal, 8) % 256])
    if digits is not None:
        return bytes([int(digits or b"0", 16)])
    return {b"a": b"\a", b"b": b"\b", b"e": b"\33", b"f": b"\f", b"n": b"\n", b"r": b"\r",
            b"t": b"\t", b"v": b"\v"}.get(letter, letter)  # fmt: skip


def _compare_names(entries: Iterable[_Entry], listed: Mapping[str, Any], report: _Report) -> None:
    """That the manifest lists every entry but itself and its signature, and no other."""
    present = {entry.name for entry in entries}
    for name in listed:
        if name == MANIFEST:
            report(MANIFEST, "it lists itself")
        elif name == SIGNATURE:
            report(MANIFEST, "it lists its signature")
        elif name not in present:
            report(_shown(name), "missing: the manifest lists it, the central directory does not")
    for entry in entries:
        if entry.name not in (MANIFEST, SIGNATURE) and entry.name not in listed:
            report(entry.where, "the manifest does not list it")


def _entry_tasks(
    file: BinaryIO, entries: Iterable[_Entry], manifest: Mapping[str, Any] | None
) -> Iterator[_Task]:
    listed = manifest["entries"] if manifest else {}
    runtimes = _apart(manifest["runtimes"]) if manifest else ()
    seconds = {_second_name(runtime): runtime for runtime in runtimes if "gpu" in runtime}
    for entry in entries:
        promised = None if entry.name in (MANIFEST, SIGNATURE) else listed.get(entry.name)
        check: _Check = partial(_check_entry, entry, promised)
        if entry.name in seconds and max(entry.stored, entry.size) <= _MOST_PROGRAM:
            check = partial(_check_second, entry, promised, seconds[entry.name], file)
        yield _Task(entry.where, entry.header, entry.data, entry.stored, check)


def _apart(runtimes: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Those that overlap none before: each is unpacked once more for its second program."""
    reached = 0
    for runtime in sorted(runtimes, key=lambda runtime: runtime["offset"]):
        if runtime["offset"] >= reached:
            yield runtime
        reached = max(reached, runtime["offset"] + runtime["packed_size"])


def _prefix_tasks(manifest: Mapping[str, Any] | None, report: _Report) -> Iterator[_Task]:
    """What lies before the archive and only the manifest knows of."""
    if not manifest:
        return
    head = manifest["head"]
    target: str | None = None
    targets: set[str] = set()
    for runtime in manifest["runtimes"]:
        where = f"runtime {_shown(runtime['target'])} (offset {runtime['offset']})"
        if runtime["target"] in targets:
            report(where, "there is another runtime for this target")
        targets.add(runtime["target"])
        start, size = runtime["offset"], runtime["packed_size"]
        if start == 0:
            target = runtime["target"]
            for key in ("size", "packed_size", "sha256", "packed_sha256"):
                if runtime[key] != head[key.removeprefix("packed_")]:
                    report(where, f"its {key} is not that of the head, which it is")
            continue
        if size == 0 or size % BLOCK:
            report(where, f"it is {size} bytes long, not a multiple of {BLOCK}")
        yield _Task(where, start, start, size, partial(_check_runtime, runtime))
    yield _Task(_HEAD, 0, 0, head["size"], partial(_check_head, head, target))


def _in_order(tasks: Iterable[_Task], limit: int, report: _Report) -> list[_Task]:
    """The tasks in the order of the file, without those that leave their bounds.

    A part that overlaps another one is not read: a small file could otherwise claim the same
    bytes thousands of times.
    """
    readable = []
    reached, last = 0, ""
    for task in sorted(tasks, key=lambda task: (task.begin, task.end)):
        if task.end > limit:
            report(task.where, f"it ends at byte {task.end}, past the central directory's start")
            continue
        if task.begin < reached:
            report(task.where, f"it overlaps {last}")
        else:
            readable.append(task)
        if task.end > reached:
            reached, last = task.end, task.where
    return readable
