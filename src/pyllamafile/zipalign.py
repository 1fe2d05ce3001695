"""The ZIP64 container: lay out, write, read, and change in place.

Offsets and sizes are in bytes, offsets count from the start of the file. Section
numbers are those of PKWARE's APPNOTE.TXT 6.3. The module knows nothing of what
the entries mean.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pyllamafile.appearing import appearing
from pyllamafile.copying import (
    CHUNK,
    Count,
    Digest,
    Hashes,
    Source,
    Target,
    copy,
    copy_source,
    counted,
    crc32,
    failed,
    read_into,
    writing,
)
from pyllamafile.errors import DamagedError, NotFoundError, PyllamafileError, RefusedError
from pyllamafile.progress import Progress, silent

if TYPE_CHECKING:  # only who writes needs it, and it takes long to import
    from concurrent.futures import ThreadPoolExecutor

STORED = 0
DEFLATED = 8
BLOCK = 65536  # serves 4K, 16K and 64K pages and Windows' mapping granularity

Time = tuple[int, int, int, int, int, int]  # year, month, day, hour, minute, second

_CHEAP = 64 << 20  # bytes that may be copied once more to make the file compact
_MOVE = 16 << 20  # bytes of kept entries that are moved to close a gap
_PAGE = 4096
_MOST_DIRECTORY = 1 << 28  # bytes: some million entries, and less than a machine has memory
_MAX_16 = 0xFFFF  # from here on a value goes into a zip64 record
_MAX_32 = 0xFFFFFFFF
_MAX_COMMENT = 0xFFFF
_EPOCHS = (315532800, 4354819198)  # 1980-01-01 and 2107-12-31 23:59:58: what DOS time can say

_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
_END = struct.Struct("<4s4H2LH")  # 4.3.16
_ENCRYPTED, _DESCRIPTOR, UTF8 = 1 << 0, 1 << 3, 1 << 11  # 4.4.4
_ZIP64 = 0x0001  # 4.5.3
_UNIX = 3  # 4.4.2.2


@dataclass(frozen=True)
class Late:
    """Stored content of known size that depends on the entries written before it.

    Attributes:
        size: Length in bytes.
        make: Called with the digests of the entries before, by name.
    """

    size: int
    make: Callable[[Mapping[str, Digest]], bytes]


@dataclass(frozen=True)
class Entry:
    """Something to put into an archive.

    Attributes:
        name: Relative path with forward slashes.
        data: The bytes as they stand in the archive: compressed for `DEFLATED`.
        method: `STORED` or `DEFLATED` (4.4.5).
        size: Uncompressed length; None for that of `data`.
        crc: CRC-32 of the uncompressed content; checked if given.
        align: The offset of the data is a multiple of this power of two.
        mode: Unix permissions.
        date_time: None for SOURCE_DATE_EPOCH in UTC, or 1980-01-01 without it.
    """

    name: str
    data: bytes | Source | Late
    method: int = STORED
    size: int | None = None
    crc: int | None = None
    align: int = 1
    mode: int = 0o644
    date_time: Time | None = None

    @property
    def stored_size(self) -> int:
        """Length of the data in the archive."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.size

    @property
    def full_size(self) -> int:
        """Length of the uncompressed content."""
        return self.stored_size if self.size is None else self.size


@dataclass(frozen=True)
class Member:
    """An entry of an existing archive.

    Attributes:
        name: As the archive spells it; relative paths are not a given.
        header_offset: Where the local header begins.
        data_offset: Where the data begins.
        end: Where the member ends; bytes that may be its data descriptor included.
        size: Uncompressed length.
        stored_size: Length of the data in the archive.
        method: Compression method (4.4.5), any number.
        crc: CRC-32 of the uncompressed content.
        mode: Unix permissions and file type, 0 if the archive holds none.
        date_time: As recorded, not checked.
        flags: General purpose bits (4.4.4).
        align: Alignment of the data that is kept when the member is moved.
        record: Its central directory header, verbatim.
    """

    name: str
    header_offset: int
    data_offset: int
    end: int
    size: int
    stored_size: int
    method: int
    crc: int
    mode: int
    date_time: Time
    flags: int
    align: int
    record: bytes


@dataclass(frozen=True)
class Placed:
    """An entry and where it goes.

    Attributes:
        entry: The entry, or a member of the same file that is moved.
        header_offset: Where its local header begins.
        data_offset: Where its data begins.
        stored_size: Length of its data.
    """

    entry: Entry | Member
    header_offset: int
    data_offset: int
    stored_size: int


@dataclass(frozen=True)
class Layout:
    """An archive with every offset decided, before a byte is written.

    Attributes:
        placed: The entries to write, in file order.
        directory_end: Where the central directory ends, as its end records say.
        size: Length of the whole file.
        start: Where writing begins; what is before is not touched.
        kept: Members before `start` that stay as they are.
        comment: The archive's comment.
        displacements: By how many bytes everything may have been moved, right up to the end of the
            file, when somebody reads it. The archive is right for each of these; see `_blocks`. If
            there are several, it ends where a block of the disk does: XFS may be killed between
            moving and cutting off what is no whole block, and leave the archive far from the end
            of the file.
        undisplaced: With several displacements, the members of the archive before it is moved.
    """

    placed: tuple[Placed, ...]
    directory_end: int
    size: int
    start: int = 0
    kept: tuple[Member, ...] = ()
    comment: bytes = b""
    displacements: tuple[int, ...] = (0,)
    undisplaced: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Archive:
    """What `read` found.

    Attributes:
        members: In the order in which they lie in the file.
        directory_offset: Where the central directory begins.
        size: Length of the whole file.
        comment: The archive's comment.
        origin: Where the archive begins that its recorded offsets count from.
    """

    members: tuple[Member, ...]
    directory_offset: int
    size: int
    comment: bytes = b""
    origin: int = 0

    def shifted(self, by: int) -> Archive:
        """It, once so many bytes were put in front of all members, or, if negative, taken out."""
        members = tuple(
            _at(m, m.header_offset + by, m.data_offset + by, m.end + by) for m in self.members
        )
        return replace(
            self,
            members=members,
            directory_offset=self.directory_offset + by,
            size=self.size + by,
            origin=self.origin + by,
        )


# ------------------------------------------------------------------ entries


def deflate(
    name: str,
    content: bytes,
    level: int = 9,
    *,
    align: int = 1,
    mode: int = 0o644,
    date_time: Time | None = None,
) -> Entry:
    """Make an entry of compressed content, or of stored content where that is no longer.

    Args:
        name: Name in the archive.
        content: The uncompressed bytes.
        level: 0 (store) to 9 (smallest).
        align: Alignment of the data in bytes.
        mode: Unix permissions.
        date_time: Time of modification.
    """
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(content) + packer.flush()
    method, data = (DEFLATED, packed) if len(packed) < len(content) else (STORED, content)
    crc = crc32(content)
    return Entry(name, data, method, len(content), crc, align, mode, date_time)


def from_file(
    path: Path,
    name: str,
    *,
    level: int = 0,
    align: int = BLOCK,
    own_time: bool = False,
) -> Entry:
    """Make an entry of a file: stored and copied when written, or compressed now, in memory.

    Args:
        path: The file.
        name: Name in the archive.
        level: 0 (store) to 9 (smallest).
        align: Alignment of the data in bytes.
        own_time: Record the file's own time of modification, in local time as zip
            readers take it, instead of the reproducible one.

    Raises:
        PyllamafileError: The file cannot be read or is not a regular file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"{path}: not a regular file", path=path)
        content = path.read_bytes() if level else b""
    except OSError as error:
        raise failed(path, "read", error) from error
    mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644  # umask and group do not matter
    when = _clamped(time.localtime, int(status.st_mtime)) if own_time else None
    if level:
        return deflate(name, content, level, align=align, mode=mode, date_time=when)
    data = Source(path, size=status.st_size)
    return Entry(name, data, align=align, mode=mode, date_time=when)


def _clamped(convert: Callable[[int], time.struct_time], seconds: int) -> Time:
    moment = convert(min(max(seconds, _EPOCHS[0]), _EPOCHS[1]))
    year = min(max(moment.tm_year, 1980), 2107)  # a local time may fall outside once more
    return (year, *moment[1:5], min(moment.tm_sec, 59))


def _default_time() -> Time:
    value = os.environ.get("SOURCE_DATE_EPOCH") or str(_EPOCHS[0])
    try:
        return _clamped(time.gmtime, int(value))
    except ValueError:
        raise RefusedError(
            f"SOURCE_DATE_EPOCH is not a number of seconds: {value!r}", hint="unset it"
        ) from None


def standing(entry: Entry, data_offset: int, digest: Digest) -> tuple[Member, bytes]:
    """An entry whose data are in the file already.

    Args:
        entry: What it is to be called, and how large it is.
        data_offset: Where its data begin; negative if the file has yet to be moved.
        digest: What its content is.

    Returns:
        It as a member, and the local header that belongs in front of it.
    """
    when = _default_time()
    header = _local_header(entry, digest.crc, when)
    at = data_offset - len(header)
    record = _record(entry, max(at, 0), digest.crc, when)
    end = data_offset + entry.stored_size
    member = Member(
        name=entry.name,
        header_offset=at,
        data_offset=data_offset,
        end=end,
        size=entry.full_size,
        stored_size=entry.stored_size,
        method=entry.method,
        crc=digest.crc,
        mode=stat.S_IFREG | entry.mode,
        date_time=entry.date_time or when,
        flags=0,
        align=entry.align,
        record=record,
    )
    return member, header


# ------------------------------------------------------------------- layout


def layout(
    entries: Sequence[Entry | Member],
    start: int,
    *,
    kept: Sequence[Member] = (),
    comment: bytes = b"",
    displacements: Sequence[int] = (0,),
    undisplaced: Sequence[Member] = (),
) -> Layout:
    """Decide where everything goes. Pure.

    Data is aligned by a gap before the local header: an extra field is too short to
    hold 64 KiB of padding.

    Args:
        entries: What to write, in this order.
        start: Where writing may begin.
        kept: Members before `start` that stay, in file order.
        comment: The archive's comment.
        displacements: As `Layout` has it.
        undisplaced: As `Layout` has it.

    Raises:
        PyllamafileError: A name is empty, absolute, doubled, not portable, or leads
            out of the directory that the archive is unpacked into.
    """
    names = {member.name for member in kept}
    placed = []
    end = start
    for entry in entries:
        if isinstance(entry, Entry):
            _check(entry, names)
            header, stored = len(_local_header(entry, 0, _NO_TIME)), entry.stored_size
        else:
            header, stored = entry.data_offset - entry.header_offset, entry.end - entry.data_offset
        names.add(entry.name)
        data = -(-(end + header) // entry.align) * entry.align
        placed.append(Placed(entry, data - header, data, stored))
        end = data + stored
    plan = Layout(
        placed=tuple(placed),
        directory_end=0,
        size=0,
        start=start,
        kept=tuple(kept),
        comment=comment,
        displacements=tuple(displacements),
        undisplaced=tuple(undisplaced),
    )
    bodies = {move: b"".join(_records(plan, {}, _NO_TIME, move)) for move in displacements}
    at = max(end + len(body) + move for move, body in bodies.items())
    plan = _sized(replace(plan, directory_end=at))
    if len(displacements) > 1:
        plan = _sized(replace(plan, directory_end=at + -plan.size % BLOCK))
    return plan


def _sized(plan: Layout) -> Layout:
    """The same with the length of the file that it makes."""
    last, directory = _blocks(plan, {}, _NO_TIME)[-1]
    return replace(plan, size=last + len(directory))


def _check(entry: Entry, taken: Collection[str]) -> None:
    name = entry.name
    parts = name.split("/")
    reasons = {
        "is empty": not name,
        "is in the archive twice": name in taken,
        "is absolute": name.startswith("/") or bool(PureWindowsPath(name).drive),
        "has an empty part, . or .. in it": not {"", ".", ".."}.isdisjoint(parts),
        "has a backslash in it": "\\" in name,
        "has a control character in it": bool(re.search(r"[\x00-\x1f\x7f]", name)),
        "cannot be written as UTF-8": bool(re.search(r"[\ud800-\udfff]", name)),
        "is too long": len(name.encode(errors="replace")) > 0xFFFF,
    }
    for reason, holds in reasons.items():
        if holds:
            raise RefusedError(f"cannot pack {name!r}: the name {reason}")
    if entry.align < 1 or entry.align & (entry.align - 1):
        raise RefusedError(f"cannot align {name} to {entry.align}: not a power of two")
    if entry.method not in (STORED, DEFLATED):
        raise ValueError(f"{name}: unknown method {entry.method}")
    if entry.method == DEFLATED and (entry.size is None or isinstance(entry.data, Late)):
        raise ValueError(f"{name}: a deflated entry needs its size beforehand")
    if entry.method == STORED and entry.full_size != entry.stored_size:
        raise ValueError(f"{name}: a stored entry has one size")


# ------------------------------------------------------------------ headers

_NO_TIME: Time = (1980, 1, 1, 0, 0, 0)


def _dos(moment: Time) -> tuple[int, int]:
    """Time and date as 4.4.6 has them."""
    year, month, day, hour, minute, second = moment
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day


def _from_dos(moment: int, date: int) -> Time:
    year, month, day = (date >> 9) + 1980, date >> 5 & 15, date & 31
    return year, month, day, moment >> 11, moment >> 5 & 63, (moment & 31) * 2


def _split64(*values: int, whole: bool = False) -> tuple[list[int], bytes]:
    """32-bit fields, and the extra field with the values that do not fit (4.5.3).

    The order is the extra field's: size, stored size, header offset. A local header
    takes both sizes or none (`whole`).
    """
    large = [value >= _MAX_32 for value in values]
    if whole and any(large):
        large = [True] * len(values)
    fields = [0xFFFFFFFF if is_large else v for v, is_large in zip(values, large, strict=True)]
    outside = [v for v, is_large in zip(values, large, strict=True) if is_large]
    extra = struct.pack(f"<2H{len(outside)}Q", _ZIP64, 8 * len(outside), *outside)
    return fields, extra if outside else b""


def _common(entry: Entry, zip64: bytes, when: Time) -> tuple[int, int, int, int, int]:
    """Version needed (4.4.3.2), flags, method, time, date: alike in both headers."""
    needed = 45 if zip64 else 20 if entry.method == DEFLATED or "/" in entry.name else 10
    flags = 0 if entry.name.isascii() else UTF8
    return (needed, flags, entry.method, *_dos(entry.date_time or when))


def _local_header(entry: Entry, crc: int, when: Time) -> bytes:
    name = entry.name.encode()
    (size, stored), zip64 = _split64(entry.full_size, entry.stored_size, whole=True)
    common = _common(entry, zip64, when)
    head = _LOCAL.pack(b"PK\3\4", *common, crc, stored, size, len(name), len(zip64))
    return head + name + zip64


def _record(entry: Entry, at: int, crc: int, when: Time) -> bytes:
    """A new entry's central directory header."""
    name = entry.name.encode()
    (size, stored, offset), zip64 = _split64(entry.full_size, entry.stored_size, at)
    common = _common(entry, zip64, when)
    made_by = _UNIX << 8 | common[0]
    mode = (stat.S_IFREG | entry.mode) << 16
    sizes = (crc, stored, size, len(name), len(zip64), 0, 0, 0, mode, offset)
    return _CENTRAL.pack(b"PK\1\2", made_by, *common, *sizes) + name + zip64


def _moved_record(member: Member, at: int) -> bytes:
    """An existing member's central directory header with another header offset."""
    head = list(_CENTRAL.unpack_from(member.record))
    name, extra, comment = _variable(member.record, _CENTRAL.size, *head[10:13])
    (head[9], head[8], head[16]), zip64 = _split64(member.size, member.stored_size, at)
    extra = zip64 + b"".join(raw for tag, raw in _extra_fields(extra) if tag != _ZIP64)
    head[2] = max(head[2], 45) if zip64 else head[2]
    head[11] = len(extra)
    return _CENTRAL.pack(*head) + name + extra + comment


def _records(plan: Layout, digests: Mapping[str, Digest], when: Time, move: int = 0) -> list[bytes]:
    if len(plan.displacements) > 1 and not move:
        return [_moved_record(member, member.header_offset) for member in plan.undisplaced]
    records = [_moved_record(member, member.header_offset + move) for member in plan.kept]
    for item in plan.placed:
        at = item.header_offset + move
        if isinstance(item.entry, Member):
            records.append(_moved_record(item.entry, at))
        else:
            digest = digests.get(item.entry.name)
            crc = digest.crc if digest else 0
            records.append(_record(item.entry, at, crc, when))
    return records


_Block = tuple[int, bytes]  # where it begins, and what stands there


def _blocks(plan: Layout, digests: Mapping[str, Digest], when: Time) -> list[_Block]:
    """The central directory, once for each displacement, and where it goes, in file order.

    One place is named at the end of the file, that of a zip64 end record if there are several. What
    is found there is the one of the directory written for no move; or, once all has moved by so
    many bytes, the one written that far in front of it or behind it. So moving everything makes
    one archive of another, at once. And readers that take what stands right before the end of the
    file, whatever place that names, find a directory whose offsets are wrong by as much as its
    own: the archive, to them, has so many bytes in front of it.
    """
    several = len(plan.displacements) > 1
    blocks = []
    for move in sorted(plan.displacements, reverse=True):
        body = b"".join(records := _records(plan, digests, when, move))
        at = plan.directory_end - len(body)
        end = _end_records(len(records), len(body), at, plan.comment, wide=several)
        blocks.append((at - move, body + end))
    ends = [start + len(directory) for start, directory in blocks]
    if any(end > start for end, (start, _) in zip(ends, blocks[1:], strict=False)):
        raise RefusedError("cannot be moved by less than the length of its directory")
    return blocks


def _directory(records: Sequence[bytes], at: int, comment: bytes) -> bytes:
    """The central directory and what ends the file, to be placed at offset `at`."""
    body = b"".join(records)
    return body + _end_records(len(records), len(body), at, comment)


def _end_records(count: int, size: int, at: int, comment: bytes, *, wide: bool = False) -> bytes:
    """What ends the file behind a directory of so many entries and bytes at offset `at`."""
    zip64 = b""
    if wide or count >= _MAX_16 or size >= _MAX_32 or at >= _MAX_32:
        zip64 = _END64.pack(
            b"PK\6\6", _END64.size - 12, _UNIX << 8 | 45, 45, 0, 0, count, count, size, at
        )
        zip64 += _LOCATOR.pack(b"PK\6\7", 0, at + size, 1)
    count = 0xFFFF if wide or count >= _MAX_16 else count
    size, at = (0xFFFFFFFF if wide or value >= _MAX_32 else value for value in (size, at))
    return zip64 + _END.pack(b"PK\5\6", 0, 0, count, count, size, at, len(comment)) + comment


def _variable(raw: bytes, at: int, *lengths: int) -> list[bytes]:
    """The fields of variable length that follow a header."""
    fields = []
    for length in lengths:
        fields.append(raw[at : at + length])
        at += length
    return fields


def _extra_fields(extra: bytes) -> Iterator[tuple[int | None, bytes]]:
    """Tag and raw bytes of each extra field (4.5.1); None for a rest that is none."""
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<2H", extra)
        if 4 + length > len(extra):
            break
        yield tag, extra[: 4 + length]
        extra = extra[4 + length :]
    if extra:
        yield None, extra


# ------------------------------------------------------------------ writing


def write(file: BinaryIO, plan: Layout, progress: Progress = silent) -> dict[str, Digest]:
    """Write an archive in one pass. The file ends with it, `plan.start` bytes before it stay.

    Memory is bounded whatever the sizes. SHA-256, which takes the longest, is computed on
    a thread beside the rest; ranges of files are shared instead of copied where the file
    system can do that, and their holes stay holes.

    Args:
        file: A real file open for reading and writing in binary mode.
        plan: What `layout` returned.
        progress: Told how many bytes of the file are written.

    Returns:
        The digests of the entries written, by name.

    Raises:
        PyllamafileError: A source is missing, unreadable, too short, or changes while it
            is copied; an entry's content is not what its size and CRC-32 say; the file
            cannot be written.
    """
    file.flush()
    path = Path(str(file.name))
    target = Target(file.fileno(), path, os.fstat(file.fileno()).st_size)
    with writing(path, plan.size):
        count = counted(progress, f"writing {path.name}", plan.size, plan.start)
        digests, _ = _write(target, plan, count)
        os.ftruncate(target.fd, plan.size)
    count(plan.size - plan.start)
    file.seek(plan.size)
    return digests


def _write(target: Target, plan: Layout, count: Count) -> tuple[dict[str, Digest], _Block]:
    """Write entries and directory; whatever follows in the file stays.

    Returns:
        The digests of the entries, and the directory at the end.
    """
    from concurrent.futures import ThreadPoolExecutor

    when = _default_time()
    digests: dict[str, Digest] = {}
    end, done = plan.start, 0
    with ThreadPoolExecutor(1) as thread:
        for item in plan.placed:
            entry = item.entry
            target.zero(end, item.header_offset)
            if isinstance(entry, Member):
                size = entry.end - entry.header_offset
                copy(target.path, target.fd, entry.header_offset, size, target, item.header_offset)
            else:
                hashes = _hashes(thread, entry)
                _fill(
                    entry, target, item.data_offset, digests, hashes, partial(_add_up, count, done)
                )
                digests[entry.name] = hashes.digest()
                header = _local_header(entry, digests[entry.name].crc, when)
                target.put(item.header_offset, header)
                done += item.stored_size
            end = item.data_offset + item.stored_size
    blocks = _blocks(plan, digests, when)
    for at, directory in blocks:
        target.put(at, directory)
    return digests, blocks[-1]


def _add_up(count: Count, before: int, done: int) -> None:
    count(before + done)


def _hashes(thread: ThreadPoolExecutor, entry: Entry) -> Hashes:
    deflated = entry.method == DEFLATED
    size, stored = entry.full_size, entry.stored_size
    return Hashes(thread, entry.name, size, entry.crc, stored=stored, deflated=deflated)


def _fill(
    entry: Entry,
    target: Target,
    at: int,
    digests: Mapping[str, Digest],
    hashes: Hashes,
    count: Count,
) -> None:
    """Write an entry's data at offset `at`."""
    data = entry.data
    if isinstance(data, Source):
        copy_source(data, target, at, hashes, count)
        return
    if isinstance(data, Late):
        content = data.make(digests)
        if len(content) != data.size:
            raise ValueError(f"{entry.name}: {len(content)} bytes made, {data.size} announced")
        data = content
    hashes.update(data)
    target.put(at, data)
    count(len(data))


# ------------------------------------------------------------------ reading


def read(path: Path) -> Archive:
    """Read an archive's directory. Any file will do: nothing in it is trusted.

    Archives may stand behind other data, their offsets counting from the start of the file
    or of the archive. Names may be anything that has no NUL in it.

    Raises:
        PyllamafileError: The file cannot be read, is no zip archive, is one of several
            disks, has members that overlap, or contradicts itself.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked first: to open a FIFO is to wait
            raise RefusedError(f"{path}: not a regular file", path=path)
        with path.open("rb", buffering=0) as file:
            return _read(file.fileno(), path)
    except OSError as error:
        raise failed(path, "read", error) from error


class _Reader:
    """Bounds-checked reads of a file."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        self.size = os.fstat(fd).st_size

    def get(self, offset: int, length: int, what: str) -> bytes:
        """The bytes at an offset; `what` they are is for the error."""
        if not 0 <= offset <= offset + length <= self.size:
            raise self.error(f"{what} lies outside of the file")
        raw = bytearray(length)
        if not read_into(self.fd, offset, memoryview(raw)):
            raise self.error("became shorter while it was read")
        return bytes(raw)

    def has(self, offset: int, signature: bytes) -> bool:
        """Whether a signature stands at an offset."""
        inside = 0 <= offset <= self.size - len(signature)
        return inside and self.get(offset, len(signature), "") == signature

    def error(self, what: str, hint: str | None = None) -> PyllamafileError:
        return DamagedError(f"{self.path}: {what}", hint=hint, path=self.path)


class _End(NamedTuple):
    """What the end records say, the zip64 ones included."""

    position: int  # where they begin
    comment: bytes
    disk: int
    directory_disk: int
    here: int  # entries on this disk
    entries: int
    length: int
    offset: int


def _read(fd: int, path: Path) -> Archive:
    file = _Reader(fd, path)
    end = _read_end(file)
    if end.disk or end.directory_disk or end.here != end.entries:
        raise file.error("is one part of an archive on several disks")
    if end.length < end.entries * _CENTRAL.size or (end.length and not end.entries):
        raise file.error(f"{end.length} bytes of directory cannot hold {end.entries} entries")

    if end.length > _MOST_DIRECTORY:
        raise file.error(
            f"a directory of {end.length:,} bytes: {_MOST_DIRECTORY:,} is the most for one"
        )

    # The directory ends where the end records begin. Where its recorded offset differs, all
    # offsets count from the start of the archive, not of the file.
    start = end.position - end.length
    if end.entries and not file.has(start, b"PK\1\2"):
        start = end.offset
    directory = file.get(start, end.length, "the central directory")
    if start + end.length > end.position:
        raise file.error("the central directory runs into the end record")
    shift = start - end.offset if end.entries else 0

    members = []
    position = 0
    for _ in range(end.entries):
        member = _parse(file, directory, position)
        members.append(_locate(file, member, member.header_offset + shift, start))
        position += len(member.record)
    if position != len(directory):
        raise file.error(f"the central directory holds more than {end.entries} entries")
    return Archive(tuple(_in_order(file, members, start)), start, file.size, end.comment, shift)


def _read_end(file: _Reader) -> _End:
    # The last end record whose comment fits (4.3.16); like zipfile, not minding what follows.
    length = min(file.size, _END.size + _MAX_COMMENT)
    base = file.size - length
    tail = file.get(base, length, "the end")
    found = len(tail) - _END.size + 4
    while (found := tail.rfind(b"PK\5\6", 0, max(found, 0))) >= 0:
        _, *fields, comment_size = _END.unpack_from(tail, found)
        comment = tail[found + _END.size :][:comment_size]
        if len(comment) == comment_size:
            break
        found += 3  # so that the next search ends before this signature
    else:
        bare = "it is a bare GGUF: `pyllamafile build` makes a llamafile of it"
        again = "if it was downloaded, get it again"
        raise file.error("not a zip archive, or cut off", bare if file.has(0, b"GGUF") else again)

    position = base + found
    locator = position - _LOCATOR.size
    if file.has(locator, b"PK\6\7"):
        _, disk, recorded, disks = _LOCATOR.unpack(file.get(locator, _LOCATOR.size, ""))
        if disk or disks > 1:
            raise file.error("is one part of an archive on several disks")
        # Where it normally stands, whatever its offset counts from; else where it is said to be.
        places = (locator - _END64.size, min(recorded, locator - _END64.size))
        position = next((at for at in places if file.has(at, b"PK\6\6")), -1)
        if position < 0:
            raise file.error("the zip64 end record is missing")
        wide = _END64.unpack(file.get(position, _END64.size, "the zip64 end record"))[4:]
        limits = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        fields = [
            large if value == limit else value
            for value, large, limit in zip(fields, wide, limits, strict=True)
        ]
    return _End(position, comment, *fields)


def _parse(file: _Reader, directory: bytes, position: int) -> Member:
    """The central directory header at a position, with the header offset as recorded."""
    if position + _CENTRAL.size > len(directory):
        raise file.error("the central directory is cut off")
    head = _CENTRAL.unpack_from(directory, position)
    end = position + _CENTRAL.size + sum(head[10:13])
    if head[0] != b"PK\1\2" or end > len(directory):
        raise file.error("the central directory is damaged")
    record = directory[position:end]
    raw, extra, _ = _variable(record, _CENTRAL.size, *head[10:13])
    try:
        name = raw.decode("utf-8" if head[3] & UTF8 else "cp437")
    except UnicodeDecodeError:
        raise file.error(f"the name {raw!r} is not UTF-8") from None
    if not name or "\0" in name:
        raise file.error(f"{name!r} is no name")

    wide = b"".join(field[4:] for tag, field in _extra_fields(extra) if tag == _ZIP64)
    values = []
    for value, limit, width in (
        (head[9], 0xFFFFFFFF, 8),
        (head[8], 0xFFFFFFFF, 8),
        (head[16], 0xFFFFFFFF, 8),
        (head[13], 0xFFFF, 4),
    ):
        if value == limit and len(wide) < width:
            raise file.error(f"{name!r} lacks its zip64 sizes")
        large = value == limit
        values.append(int.from_bytes(wide[:width], "little") if large else value)
        wide = wide[width:] if large else wide
    size, stored_size, offset, disk = values
    if disk:
        raise file.error("is one part of an archive on several disks")
    if head[4] == STORED and size != stored_size and not head[3] & _ENCRYPTED:
        raise file.error(f"{name!r} is stored, but with two sizes")
    return Member(
        name=name,
        header_offset=offset,
        data_offset=0,
        end=0,
        size=size,
        stored_size=stored_size,
        method=head[4],
        crc=head[7],
        mode=head[15] >> 16 if head[1] >> 8 == _UNIX else 0,
        date_time=_from_dos(head[5], head[6]),
        flags=head[3],
        align=1,
        record=record,
    )


def _locate(file: _Reader, member: Member, at: int, limit: int) -> Member:
    """Find the data of a member whose local header is at `at`."""
    head = _LOCAL.unpack(file.get(at, _LOCAL.size, repr(member.name)))
    if head[0] != b"PK\3\4":
        raise file.error(f"{member.name!r} is not where the directory says")
    data = at + _LOCAL.size + head[9] + head[10]
    end = data + member.stored_size
    if end > limit:
        raise file.error(f"{member.name!r} runs into the central directory")
    return _at(member, at, data, end)


def _at(member: Member, header: int, data: int, end: int) -> Member:
    """A member at its place. What is aligned there is to be so wherever it is moved."""
    natural = data & -data
    align = min(natural, BLOCK) if member.method == STORED and natural >= _PAGE else 1
    return replace(member, header_offset=header, data_offset=data, end=end, align=align)


def _in_order(file: _Reader, members: list[Member], limit: int) -> Iterator[Member]:
    """Sort members by offset; refuse those that overlap (a zip bomb's trick)."""
    members = sorted(members, key=lambda member: member.header_offset)
    limits = [member.header_offset for member in members[1:]] + [limit]
    for member, limit in zip(members, limits, strict=False):  # no members: one limit too many
        if member.end > limit:
            raise file.error(f"{member.name!r} overlaps another entry")
        # 4.3.9: a descriptor has 12 to 24 bytes, and nothing tells how many.
        slack = 24 if member.flags & _DESCRIPTOR else 0
        yield replace(member, end=min(member.end + slack, limit))


def content(path: Path, member: Member, limit: int) -> bytes:
    """The uncompressed content of a member that has to fit into memory.

    Args:
        path: The archive.
        member: One of its members.
        limit: The most bytes that it may have.

    Raises:
        PyllamafileError: It has more, or as `chunks`.
    """
    if member.size > limit:
        raise RefusedError(
            f"{path}: {member.name} has {member.size:,} bytes, and {limit:,} is the most for it",
            path=path,
        )
    return b"".join(chunks(path, member))


def chunks(path: Path, member: Member) -> Iterator[bytes]:
    """The uncompressed content of a member, piece by piece.

    Raises:
        PyllamafileError: It is encrypted, packed in another way than by deflate, cut off, or at the
            end its size or CRC-32 is another than the directory's.
    """
    size = crc = 0
    for chunk in _inflated(path, member):
        size += len(chunk)
        crc = zlib.crc32(chunk, crc)
        if size > member.size:
            raise DamagedError(f"{path}: {member.name} is longer than it says", path=path)
        yield chunk
    if (size, crc) != (member.size, member.crc):
        raise DamagedError(
            f"{path}: {member.name} is damaged: its checksum doesn't match", path=path
        )


def _inflated(path: Path, member: Member) -> Iterator[bytes]:
    if member.method not in (STORED, DEFLATED) or member.flags & 1:
        raise RefusedError(
            f"{path}: {member.name} is encrypted or compressed in another way", path=path
        )
    if member.method == STORED:
        yield from _stored(path, member)
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for raw in _stored(path, member):
            while raw:
                yield inflate.decompress(raw, CHUNK)
                # At the end zlib leaves the tail as it was, for ever.
                raw = b"" if inflate.eof else inflate.unconsumed_tail
        yield inflate.flush()
    except zlib.error as error:
        raise DamagedError(f"{path}: {member.name} is damaged", path=path) from error


def _stored(path: Path, member: Member) -> Iterator[bytes]:
    left = member.stored_size
    with path.open("rb") as file:
        file.seek(member.data_offset)
        while left > 0:
            raw = file.read(min(left, CHUNK))
            if not raw:
                raise DamagedError(f"{path}: cut off inside of {member.name}", path=path)
            left -= len(raw)
            yield raw


# --------------------------------------------------------- change in place


def add(
    path: Path,
    entries: Sequence[Entry],
    *,
    remove: Collection[str] = (),
    displacements: Sequence[int] = (0,),
    progress: Progress = silent,
) -> int:
    """Add, replace and remove entries of an archive in place; create it if there is none.

    What is before the first entry stays, and so do the other entries: those behind a
    removed one move up if that is at most 16 MiB to copy. Killed at any moment, it leaves
    the old archive or the new one, at worst with dead bytes in it. An error leaves the old
    archive.

    Args:
        path: The archive.
        entries: What to add; members of the same name are replaced.
        remove: Names of members to remove.
        displacements: As `Layout` has it. With more than (0,) gaps stay in the archive, which
            `compact` closes when it has been moved.
        progress: Told how many bytes of `entries` are written.

    Returns:
        The number of bytes that this call left in the file though nothing needs them.

    Raises:
        PyllamafileError: As `read`, `layout` and `write`; or a name in `remove` is not in
            the archive, or the archive is to be added to itself.
    """
    return change(path, entries, remove=remove, displacements=displacements, progress=progress)[1]


def change(
    path: Path,
    entries: Sequence[Entry],
    *,
    remove: Collection[str] = (),
    displacements: Sequence[int] = (0,),
    archive: Archive | None = None,
    progress: Progress = silent,
) -> tuple[Archive, int]:
    """The same as `add`, for whoever goes on with what comes of it.

    Args:
        path: The archive.
        entries: As `add` has it.
        remove: As `add` has it.
        displacements: As `add` has it.
        archive: What it is now, if that is known; by default it is read.
        progress: As `add` has it.

    Returns:
        What it is afterwards, and what `add` returns.

    Raises:
        PyllamafileError: As `add`.
    """
    for entry in entries:
        if isinstance(entry.data, Source) and _same(entry.data.path, path):
            raise RefusedError(f"{path}: cannot be added to itself", path=path)
    layout(entries, 0)  # refuse what cannot be written before anything is touched
    total = sum(entry.stored_size for entry in entries)
    count = counted(progress, f"writing {path.name}", total)
    try:
        file = path.open("r+b", buffering=0)
    except FileNotFoundError:
        for name in sorted(remove):
            raise NotFoundError(
                f"{path}: no such file, so no {name!r} to remove", path=path
            ) from None
        return _create(path, entries, count)
    except OSError as error:
        raise failed(path, "write", error) from error
    with file:
        try:
            archive = _known(file.fileno(), path, archive)
        except OSError as error:
            raise failed(path, "read", error) from error
        return _change(file.fileno(), path, archive, entries, remove, tuple(displacements), count)


def compact(path: Path, archive: Archive | None = None) -> Archive:
    """Close gaps in an archive in place, if at most 16 MiB have to be moved for that.

    Killed at any moment, it leaves the archive as it was, at worst with more dead bytes in it.
    Offsets that counted from elsewhere count from the start of the file afterwards.

    Args:
        path: The archive.
        archive: What it is now, if that is known; by default it is read.

    Returns:
        What it is afterwards.

    Raises:
        PyllamafileError: As `read`.
    """
    try:
        file = path.open("r+b", buffering=0)
    except OSError as error:
        raise failed(path, "write", error) from error
    with file:
        archive = _known(file.fileno(), path, archive)
        if plan := _compacted(archive):
            archive, _ = _commit(file.fileno(), path, archive, plan, lambda done: None)
    return archive


def _known(fd: int, path: Path, archive: Archive | None) -> Archive:
    """What an archive is: as it was left, if nobody else has changed its size, or read now."""
    if archive and os.fstat(fd).st_size != archive.size:
        raise RefusedError(f"{path}: another program changed it meanwhile", path=path)
    return archive or _read(fd, path)


def _compacted(archive: Archive) -> Layout | None:
    """The same without the first gap that what is behind it can be moved into at once."""
    members = archive.members
    best = None
    ends = [member.end for member in members]
    starts = [*(member.header_offset for member in members[1:]), archive.directory_offset]
    moving = 0
    for split in range(len(members), 0, -1):
        if moving > _MOVE:
            break
        if starts[split - 1] > ends[split - 1] or archive.origin:
            tail = members[split:]
            plan = layout(tail, ends[split - 1], kept=members[:split], comment=archive.comment)
            fits = plan.size <= starts[split - 1] and plan.size < archive.size
            if fits or (archive.origin and not tail):
                best = plan
        moving += members[split - 1].end - members[split - 1].header_offset
    return best


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _create(path: Path, entries: Sequence[Entry], count: Count) -> tuple[Archive, int]:
    plan = layout(entries, 0)
    with writing(path, plan.size), appearing(path, plan.size) as (file, _):
        _, end = _write(Target(file.fileno(), path, 0), plan, count)
        return _made(_Reader(file.fileno(), path), plan, end), 0


def _change(
    fd: int,
    path: Path,
    archive: Archive,
    entries: Sequence[Entry],
    remove: Collection[str],
    displacements: tuple[int, ...],
    count: Count,
) -> tuple[Archive, int]:
    for name in sorted(set(remove) - {member.name for member in archive.members}):
        raise NotFoundError(f"{path}: has no {name!r} to remove", path=path)
    new = {entry.name: entry for entry in entries}
    gone = new.keys() | set(remove)
    kept, lost, behind = _split(archive.members, gone)

    # The tail of the new archive: what moves, replacements in the place of what they replace,
    # and then what is new. What is late depends on the others, so it comes behind them.
    tail: list[Entry | Member] = []
    for member in behind:
        if member.name not in gone:
            tail.append(member)
        elif member.name in new and not isinstance(new[member.name].data, Late):
            tail.append(new.pop(member.name))
    tail += new.values()

    first, last = archive.directory_offset, archive.directory_offset
    if behind:
        first, last = behind[0].header_offset, behind[-1].end
    start = kept[-1].end if kept else first
    replan = partial(
        layout,
        kept=kept,
        comment=archive.comment,
        displacements=displacements,
        undisplaced=archive.members,
    )
    plan = layout(tail, start, kept=kept, comment=archive.comment)
    here = replan(tail, start)
    # If it covers no member of the old archive, nor cuts off one that is to be found there still.
    if not behind or (here.size <= first and len(displacements) == 1):
        return _commit(fd, path, archive, here, count)[0], lost

    # It does, so it is written behind them first. Then they are dead, and it can move to
    # its place: but rather leave some dead bytes than copy very many.
    small = plan.size - start <= max(_CHEAP, 4 * (last - start))
    away = replan(tail, max(last, plan.size) if small else last)
    archive, digests = _commit(fd, path, archive, away, count)
    if not small or displacements != (0,):
        return archive, lost + last - start
    try:
        return _close_gap(fd, path, archive, plan, away, digests), lost
    except (OSError, PyllamafileError):
        return archive, lost + away.start - start  # it is complete, just not compact


def _close_gap(
    fd: int,
    path: Path,
    archive: Archive,
    plan: Layout,
    away: Layout,
    digests: Mapping[str, Digest],
) -> Archive:
    """Move the tail of an archive that was written as `away` to where `plan` has it."""
    count = len(away.kept)
    kept, tail = archive.members[:count], archive.members[count:]
    # The headers as if there had been no detour: farther away they may have needed zip64.
    records = _records(plan, digests, _default_time())[count:]
    moved = [
        replace(
            member,
            align=item.entry.align,
            end=item.data_offset + item.stored_size,
            record=record,
        )
        for member, item, record in zip(tail, away.placed, records, strict=True)
    ]
    final = layout(moved, plan.start, kept=kept, comment=plan.comment)
    return _commit(fd, path, archive, final, lambda done: None)[0]


def _split(
    members: Sequence[Member], gone: Collection[str]
) -> tuple[list[Member], int, Sequence[Member]]:
    """Which members stay where they are, and which are removed or moved.

    Returns:
        The members that stay; how many bytes of removed members lie between them; and
        the members from the first removed one on behind which little enough is to move.
    """
    split = len(members)
    moving = 0
    for index in reversed(range(len(members))):
        if members[index].name in gone:
            split = index
        else:
            moving += members[index].end - members[index].header_offset
            if moving > _MOVE:
                break
    kept = [member for member in members[:split] if member.name not in gone]
    lost = sum(m.end - m.header_offset for m in members[:split] if m.name in gone)
    return kept, lost, members[split:]


def _commit(
    fd: int, path: Path, archive: Archive, plan: Layout, count: Count
) -> tuple[Archive, dict[str, Digest]]:
    """Write a plan whose entries cover no member of the archive, and make it the archive.

    Readers look for the end record in the last 64 KiB, and for the directory right before
    it. So the old archive stays readable as long as the file ends with its directory and
    end record; and the new archive becomes readable at once when the file is truncated to
    end with its own. Where the plan covers the old directory, therefore, a copy of it is
    first put behind everything.

    The copy is put there by one call of `write`. Linux can stop that for SIGKILL only
    between two pages, so it goes into one page if it fits. (If it does not fit, and if the
    file grows by more than 64 KiB, there are some microseconds left.)

    Returns:
        The new archive, and the digests of what was written.
    """
    target = Target(fd, path, archive.size)
    # What has been moved may be read by another directory than the one at its end.
    moved = archive.origin != 0
    covered = moved or plan.size > archive.directory_offset
    file = _Reader(fd, path)
    old = file.get(archive.directory_offset, archive.size - archive.directory_offset, "")

    def undo() -> None:  # until its last step the copy is still there
        if covered and not moved:
            with contextlib.suppress(OSError):
                target.put(archive.directory_offset, old)
                os.fsync(fd)
                os.ftruncate(fd, archive.size)

    with writing(path, plan.size):
        try:
            if covered:
                target.put(*_copy_of_directory(archive, max(plan.size, archive.size)))
                os.fsync(fd)
            digests, end = _write(target, plan, count)
            os.fsync(fd)
        except BaseException:
            undo()
            raise
        try:
            os.ftruncate(fd, plan.size)
        except OSError:  # nothing else: an interrupt may come after it was done
            undo()
            raise
        os.fsync(fd)
    return _made(file, plan, end), digests


def _made(file: _Reader, plan: Layout, end: _Block) -> Archive:
    """What `_read` finds once a plan is written, before anything is moved."""
    start, block = end
    move = min(plan.displacements)
    places = [(m.header_offset, m.data_offset, m.end) for m in plan.kept]
    places += [(p.header_offset, p.data_offset, p.data_offset + p.stored_size) for p in plan.placed]
    if len(plan.displacements) > 1 and not move:
        places = [(m.header_offset, m.data_offset, m.end) for m in plan.undisplaced]
    members = []
    position = 0
    for place in places:
        member = _parse(file, block, position)
        members.append(_at(member, *place))
        position += len(member.record)
    base = -move if members else 0
    return Archive(tuple(members), start, plan.size, plan.comment, base)


def _copy_of_directory(archive: Archive, at: int) -> tuple[int, bytes]:
    """Directory and end record of an archive to stand at an offset, or a little behind."""
    records = [_moved_record(member, member.header_offset) for member in archive.members]
    length = len(_directory(records, at + _PAGE, archive.comment))
    if at % _PAGE + length > _PAGE:
        at += -at % _PAGE
    return at, _directory(records, at, archive.comment)
