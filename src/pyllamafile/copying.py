"""Bytes from file to file, at the speed of the disk, hashed on the way.

Holes stay holes, blocks are shared where the file system can do that, the disk begins to write
early, and SHA-256 has a thread to itself. Offsets and sizes are in bytes.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyllamafile.errors import (
    AccessError,
    DamagedError,
    NotFoundError,
    PyllamafileError,
    RefusedError,
)
from pyllamafile.progress import Progress, Step, silent

try:
    from isal.isal_zlib import crc32 as crc32  # several times as fast as zlib's
except ImportError:  # no wheel for this system
    from zlib import crc32 as crc32

if sys.platform.startswith("linux"):
    import fcntl

if TYPE_CHECKING:  # what takes long to import, and only who copies needs
    from concurrent.futures import Future, ThreadPoolExecutor

Count = Callable[[int], None]
"""Called with the number of bytes that are done."""

CHUNK = 512 << 10
"""Bytes at a time: what a core keeps at hand."""

_STRIDE = 16 << 20  # bytes that one thread hashes while the other copies them
_DEPTH = 4  # strides that it may be behind, so that the page cache still has them


@dataclass(frozen=True)
class Source:
    """A range of a file, copied when the archive is written.

    Attributes:
        path: The file.
        offset: Where the range begins.
        size: How long it is.
    """

    path: Path
    _: KW_ONLY
    offset: int = 0
    size: int


class Digest(NamedTuple):
    """What a reader of an entry must find, of the uncompressed content.

    Attributes:
        size: Length in bytes.
        crc: CRC-32.
        sha256: SHA-256 in hex.
    """

    size: int
    crc: int
    sha256: str


def digest(path: Path, progress: Progress = silent) -> Digest:
    """The digest of a whole file, its SHA-256 computed on a thread beside the rest.

    Raises:
        PyllamafileError: It cannot be read, or changes meanwhile.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise failed(path, "read", error) from error
    from concurrent.futures import ThreadPoolExecutor

    size = status.st_size
    with ThreadPoolExecutor(1) as thread:
        hashes = Hashes(thread, path.name, size, stored=size)
        tell = counted(progress, f"reading {path.name}", size)
        copy_source(Source(path, size=size), None, 0, hashes, tell)
        return hashes.digest()


def counted(progress: Progress, what: str, total: int, before: int = 0) -> Count:
    """A count of bytes as steps of something that has `total` bytes, `before` of them done."""
    return lambda done: progress(Step("bytes", what, before + done, total))


@dataclass(frozen=True)
class Target:
    """A file that is being written. From `blank` on it holds nothing but zeros so far."""

    fd: int
    path: Path
    blank: int

    def put(self, at: int, data: bytes | memoryview) -> None:
        """Write all of some bytes at an offset."""
        os.lseek(self.fd, at, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def begin_writeback(self, at: int, length: int) -> None:
        """Let the disk begin now, for whoever calls fsync waits until all is there.

        The advice is that nobody needs these bytes in the page cache. What Linux does about it
        to bytes just written is no more than that: they can't be dropped before they are written.
        """
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.fd, at, length, os.POSIX_FADV_DONTNEED)

    def zero(self, start: int, end: int) -> None:
        """Make the bytes from `start` to `end` zero; a hole already is."""
        end = min(end, self.blank)
        for at in range(start, end, CHUNK):
            self.put(at, bytes(min(CHUNK, end - at)))


def copy_source(
    source: Source,
    target: Target | None,
    at: int,
    hashes: Hashes,
    count: Count = lambda done: None,
) -> None:
    """Copy a source to offset `at`, hashing it on the way; without a target, only hash it.

    Raises:
        PyllamafileError: It cannot be read, is too short, or changes meanwhile.
    """
    try:
        file = source.path.open("rb", buffering=0)
    except OSError as error:
        raise failed(source.path, "read", error) from error
    with file:
        before = os.fstat(file.fileno())
        copy(source.path, file.fileno(), source.offset, source.size, target, at, hashes, count)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        verb = "packed" if target else "read"
        raise RefusedError(
            f"{source.path}: changed while it was being {verb}",
            hint="try again when nothing writes to it",
            path=source.path,
        )


def copy(
    path: Path,
    fd: int,
    offset: int,
    size: int,
    target: Target | None,
    at: int,
    hashes: Hashes | None = None,
    count: Count = lambda done: None,
) -> None:
    """Copy a range of an open file to offset `at`, hashing it on the way; or only hash it."""
    strides = [
        _Stride(path, fd, start, min(_STRIDE, offset + size - start), offset + size)
        for start in range(offset, offset + size, _STRIDE)
    ]
    shared = _share(fd, offset, size, target, at) if target else size
    buffer = _buffer(size)
    try:
        for stride in strides:
            if hashes:
                hashes.read(stride)
            for position, view, hole in stride.chunks(buffer):
                done = position - offset
                if hashes:
                    hashes.count(view)
                rest = view[max(shared - done, 0) :]
                place = at + done + len(view) - len(rest)
                if target and rest and not (hole and place >= target.blank):
                    target.put(place, rest)
                count(done + len(view))
            if target:
                target.begin_writeback(at + stride.offset - offset, stride.length)
    finally:
        if hashes:
            hashes.finish()


class _Stride(NamedTuple):
    """A part of a range of an open file, which ends at `end`."""

    path: Path
    fd: int
    offset: int
    length: int
    end: int

    def chunks(self, buffer: memoryview) -> Iterator[tuple[int, memoryview, bool]]:
        """Where each chunk is, its bytes until the next one is asked for, whether it is a hole."""
        for position in range(self.offset, self.offset + self.length, CHUNK):
            view = buffer[: self.offset + self.length - position]
            try:
                hole = _is_hole(self.fd, position, len(view))
                if hole:
                    view = memoryview(_ZEROS)[: len(view)]
                elif not read_into(self.fd, position, view):
                    raise DamagedError(
                        f"{self.path}: has less than {self.end} bytes", path=self.path
                    )
            except OSError as error:
                raise failed(self.path, "read", error) from error
            yield position, view, hole


_ZEROS = bytes(CHUNK)


def _buffer(size: int) -> memoryview:
    """Memory for the chunks of so many bytes.

    It begins with a page, as what the page cache holds does. Zen 3 takes five times as long to copy
    that to 16 bytes behind the beginning of one, and there is what a large bytearray holds.
    """
    return memoryview(mmap.mmap(-1, max(min(size, CHUNK), 1)))


def read_into(fd: int, offset: int, view: memoryview) -> bool:
    """Fill `view`; False if the file ends before. Two threads may read the same file."""
    while view:
        if hasattr(os, "preadv"):
            count = os.preadv(fd, [view], offset)
        else:
            with _SEEKING, open(fd, "rb", buffering=0, closefd=False) as file:
                file.seek(offset)
                count = file.readinto(view)
        if not count:
            return False
        view, offset = view[count:], offset + count
    return True


_SEEKING = threading.Lock()  # for a file has one position


def _is_hole(fd: int, offset: int, length: int) -> bool:
    """Whether a range is a hole of a sparse file: zeros, known without reading them."""
    if not hasattr(os, "SEEK_DATA") or offset + length > os.fstat(fd).st_size:
        return False
    try:
        with _SEEKING:
            return os.lseek(fd, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        return error.errno == errno.ENXIO  # no data up to the end of the file


_FICLONERANGE = 0x4020940D  # linux/fs.h


def _share(fd: int, offset: int, size: int, target: Target, at: int) -> int:
    """Make both files share blocks (Btrfs, XFS, ...). Returns the bytes that now do."""
    if not sys.platform.startswith("linux"):
        return 0
    block = max(os.fstatvfs(target.fd).f_bsize, 1)
    length = size - size % block
    if not length or offset % block or at % block:
        return 0
    try:
        fcntl.ioctl(target.fd, _FICLONERANGE, struct.pack("=qQQQ", fd, offset, length, at))
    except OSError:
        return 0
    return length


class Hashes:
    """Size, CRC-32 and SHA-256 of some content, computed while it is copied.

    SHA-256 takes about as long as all the rest, so it has a thread to itself. That thread reads a
    file for itself, a long way at a time, so that the two seldom wait for each other.

    Args:
        thread: One thread, which keeps the order.
        name: What to call the content in a message.
        size: How long the content has to be, in bytes.
        crc: The CRC-32 that it has to have, if that is known.
        stored: How many bytes are copied.
        deflated: Whether these are a raw deflate stream; the digests are of what it unpacks to.
    """

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        name: str,
        size: int,
        crc: int | None = None,
        *,
        stored: int,
        deflated: bool = False,
    ) -> None:
        import hashlib

        self._thread = thread
        self._name = name
        self._expected = size, crc
        self._size = self._crc = 0
        self._sha256 = hashlib.sha256()
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if deflated else None
        self._buffer = _buffer(stored)
        self._jobs: deque[Future[None]] = deque()

    def update(self, data: bytes) -> None:
        """Take the whole content at once, as stored."""
        self._jobs.append(self._thread.submit(self._take, data))
        self.count(data)

    def read(self, stride: _Stride) -> None:
        """Take more of a file, as stored, which is to be given to `count`, too."""
        self._jobs.append(self._thread.submit(self._read, stride))
        self._wait(_DEPTH - 1)

    def count(self, data: memoryview | bytes) -> None:
        """Do what of the hashing is left to who copies."""
        if not self._inflate:
            self._count(data)

    def finish(self) -> None:
        """Wait until the thread reads no more."""
        from concurrent.futures import wait

        wait(self._jobs)

    def digest(self) -> Digest:
        """Wait for the thread, and compare with what was announced."""
        self._wait(0)
        size, crc = self._expected
        if (
            self._size != size
            or crc not in (None, self._crc)
            or (self._inflate and (not self._inflate.eof or self._inflate.unused_data))
        ):
            raise DamagedError(f"{self._name}: the content is not what it was announced to be")
        return Digest(self._size, self._crc, self._sha256.hexdigest())

    def _wait(self, remaining: int) -> None:
        while len(self._jobs) > remaining:
            self._jobs.popleft().result()

    def _read(self, stride: _Stride) -> None:
        for _, view, _ in stride.chunks(self._buffer):
            self._take(view)

    def _take(self, data: memoryview | bytes) -> None:
        if self._inflate:
            self._unpack(data)
        else:
            self._sha256.update(data)

    def _count(self, view: memoryview | bytes) -> None:
        self._size += len(view)
        self._crc = crc32(view, self._crc)

    def _unpack(self, packed: memoryview | bytes) -> None:
        assert self._inflate is not None
        try:
            more = bool(packed)
            while more:  # in steps: a few bytes can unpack to very many
                content = self._inflate.decompress(packed, CHUNK)
                self._count(content)
                self._sha256.update(content)
                packed = self._inflate.unconsumed_tail
                # Of bytes that it has taken zlib may hold back some of what they unpack to. At the
                # end it leaves the tail as it was, for ever.
                more = not self._inflate.eof and (bool(packed) or len(content) == CHUNK)
        except zlib.error as error:
            raise DamagedError(f"{self._name}: not deflated: {error}") from error


def failed(path: object, verb: str, error: OSError) -> PyllamafileError:
    """What the operating system said, as an error of ours.

    Args:
        path: The file.
        verb: What could not be done to it, such as ``read``.
        error: What was raised.
    """
    kind = NotFoundError if isinstance(error, FileNotFoundError) else AccessError
    return kind(f"{path}: cannot {verb}: {error.strerror or error}", path=str(path))


@contextlib.contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """Turn what the operating system raises while `path` is written into our error."""
    try:
        yield
    except OSError as error:
        failure = failed(path, "write", error)
        if error.errno == errno.EFBIG:
            failure.hint = f"the file takes {size} bytes, more than its file system allows for one"
        elif error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            failure.hint = f"the file takes {size} bytes"
            import shutil

            with contextlib.suppress(OSError):
                free = shutil.disk_usage(path.absolute().parent).free
                failure.hint += f", its file system has {free} bytes free"
        raise failure from error
