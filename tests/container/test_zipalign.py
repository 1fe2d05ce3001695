"""The container, with the standard library's zipfile as the oracle and other readers beside it."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
import zlib
from pathlib import Path

import pytest

from pyllamafile import copying, zipalign
from pyllamafile.copying import Digest, Source
from pyllamafile.errors import PyllamafileError
from pyllamafile.zipalign import (
    BLOCK,
    DEFLATED,
    STORED,
    Entry,
    Late,
    add,
    deflate,
    from_file,
    layout,
    read,
    write,
)

READERS = {
    "unzip": (["unzip", "-t"], "unzip"),
    "7z": (["7z", "t"], "p7zip-full"),
    "bsdtar": (["bsdtar", "-tf"], "libarchive-tools"),
    "busybox": (["busybox", "unzip", "-l"], "busybox"),
}
RANDOM = random.Random(7).randbytes(3 * BLOCK + 123)


@pytest.fixture(autouse=True)
def _no_epoch(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(RANDOM)
    return path


def gguf(model, name="model.gguf"):
    return Entry(name, Source(model, size=model.stat().st_size), align=BLOCK)


def packed(path, entries, prefix=b"", comment=b""):
    """Write an archive from scratch."""
    path.write_bytes(prefix)
    with path.open("r+b") as file:
        write(file, layout(entries, len(prefix), comment=comment))
    return path


def contents(path):
    """Every entry as zipfile reads it; CRCs are checked on the way."""
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def need(tool, package):
    if shutil.which(tool) is None:
        pytest.skip(f"needs the Debian package {package}")


def run(*command, **options):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------ layout, write


def some(model):
    return [
        gguf(model),
        Entry(".args", b"-m model.gguf\n"),
        deflate("ui/index.html", b"<p>hello</p>" * 500),
        Entry("LICENSES/empty", b""),
        Entry("naïve/模型.txt", "ü".encode()),
        Entry("m.json", Late(64, lambda digests: digests["model.gguf"].sha256.encode())),
    ]


def test_write_is_read_by_zipfile(tmp_path, model):
    prefix = b"#!/bin/sh\n" * 700
    plan = layout(some(model), len(prefix))
    path = tmp_path / "a.zip"
    path.write_bytes(prefix)
    seen = []
    with path.open("r+b") as file:
        digests = write(file, plan, lambda step: seen.append(step.done))

    sha256 = hashlib.sha256(RANDOM).hexdigest()
    page = b"<p>hello</p>" * 500
    assert path.stat().st_size == plan.size
    assert path.read_bytes().startswith(prefix)
    assert contents(path) == [
        ("model.gguf", RANDOM),
        (".args", b"-m model.gguf\n"),
        ("ui/index.html", page),
        ("LICENSES/empty", b""),
        ("naïve/模型.txt", "ü".encode()),
        ("m.json", sha256.encode()),
    ]
    assert digests["model.gguf"] == Digest(len(RANDOM), zlib.crc32(RANDOM), sha256)
    assert digests["ui/index.html"] == Digest(
        6000, zlib.crc32(page), hashlib.sha256(page).hexdigest()
    )
    assert seen == sorted(seen)
    assert seen[-1] == plan.size
    with zipfile.ZipFile(path) as archive:
        for info, item in zip(archive.infolist(), plan.placed, strict=True):
            assert info.header_offset == item.header_offset
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o100644
            assert (info.create_system, info.extra, info.flag_bits) == (
                3,
                b"",
                0 if info.filename.isascii() else 0x800,
            )


@pytest.mark.parametrize("reader", READERS)
def test_other_readers(tmp_path, model, reader):
    command, package = READERS[reader]
    need(command[0], package)
    path = packed(tmp_path / "a.zip", some(model), b"MZ" + bytes(70000))
    out = run(*command, path)
    if reader == "unzip":
        assert "No errors detected" in out
        assert "warning" not in out
    elif reader == "7z":
        assert "Everything is Ok" in out
    else:
        assert "model.gguf" in out


def test_data_is_aligned_by_a_gap_before_the_header(tmp_path, model):
    entries = [Entry("a", b"x"), gguf(model), Entry("b", b"y", align=64), gguf(model, "2.gguf")]
    path = packed(tmp_path / "a.zip", entries, b"prefix")
    members = {member.name: member for member in read(path).members}
    assert members["model.gguf"].data_offset % BLOCK == 0
    assert members["2.gguf"].data_offset % BLOCK == 0
    assert members["b"].data_offset % 64 == 0
    assert members["b"].header_offset >= members["model.gguf"].end
    for member in members.values():  # no extra field
        assert member.data_offset == member.header_offset + 30 + len(member.name)


def test_a_source_is_a_range_of_a_file(tmp_path, model):
    path = packed(tmp_path / "a.zip", [Entry("part", Source(model, offset=11, size=BLOCK))])
    assert contents(path) == [("part", RANDOM[11 : 11 + BLOCK])]


def test_many_chunks(tmp_path, model, monkeypatch):
    monkeypatch.setattr(copying, "CHUNK", 1000)
    path = packed(tmp_path / "a.zip", some(model))
    assert dict(contents(path))["model.gguf"] == RANDOM


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (None, (1980, 1, 1, 0, 0, 0)),
        ("0", (1980, 1, 1, 0, 0, 0)),
        ("1700000001", (2023, 11, 14, 22, 13, 20)),
        ("99999999999", (2107, 12, 31, 23, 59, 58)),
    ],
)
def test_same_input_same_bytes(tmp_path, model, monkeypatch, epoch, expected):
    if epoch is not None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    results = set()
    for zone in ("UTC", "Asia/Tokyo", "America/Los_Angeles"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        path = packed(tmp_path / "a.zip", some(model))
        results.add(path.read_bytes())
        assert {member.date_time for member in read(path).members} == {expected}
    monkeypatch.undo()
    time.tzset()
    assert len(results) == 1


def test_bad_epoch_is_refused(tmp_path, model, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(PyllamafileError, match="SOURCE_DATE_EPOCH"):
        packed(tmp_path / "a.zip", some(model))


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", "a\\b", "a\0b", "a\nb", "C:/x"],
)
def test_hostile_names_are_refused(name):
    refused(name)


@pytest.mark.parametrize("name", ["C:x", "\udcff", "n" * 65536], ids=["drive", "bytes", "long"])
def test_unwritable_names_are_refused(name):
    refused(name)


def refused(name):
    with pytest.raises(PyllamafileError):
        layout([Entry(name, b"")], 0)


def test_duplicates_are_refused(tmp_path):
    with pytest.raises(PyllamafileError, match="twice"):
        layout([Entry("a", b""), Entry("a", b"")], 0)
    with pytest.raises(PyllamafileError, match="twice"):
        add(tmp_path / "new.zip", [Entry("a", b""), Entry("a", b"")])
    assert list(tmp_path.iterdir()) == []


def test_alignment_must_be_a_power_of_two():
    for align in (0, -1, 3, 65535):
        with pytest.raises(PyllamafileError, match="power of two"):
            layout([Entry("a", b"", align=align)], 0)


def test_sources_that_disappoint(tmp_path, model):
    cases = {
        "missing": Source(tmp_path / "missing", size=3),
        "less than": Source(model, offset=100, size=len(RANDOM)),
        "cannot read": Source(tmp_path, size=3),
    }
    for message, source in cases.items():
        with pytest.raises(PyllamafileError, match=message):
            packed(tmp_path / "a.zip", [Entry("a", source)])


def test_a_source_that_changes_meanwhile(tmp_path, model):
    path = tmp_path / "a.zip"
    path.write_bytes(b"")
    with (
        path.open("r+b") as file,
        pytest.raises(PyllamafileError, match=r"model\.gguf: changed"),
    ):
        write(file, layout([gguf(model)], 0), lambda step: os.utime(model, ns=(1, step.done)))


def test_what_was_announced_is_checked(tmp_path):
    packed_bytes = deflate("a", b"a" * 1000).data
    crc = zlib.crc32(b"a" * 1000)
    good = Entry("a", packed_bytes, DEFLATED, 1000, crc)
    assert contents(packed(tmp_path / "a.zip", [good])) == [("a", b"a" * 1000)]
    for bad in (
        Entry("a", packed_bytes, DEFLATED, 999, crc),
        Entry("a", packed_bytes, DEFLATED, 1000, crc ^ 1),
        Entry("a", packed_bytes[:-1], DEFLATED, 1000, crc),
        Entry("a", b"\xff" * 9, DEFLATED, 1000, crc),
        Entry("a", b"text", STORED, crc=1),
    ):
        with pytest.raises(PyllamafileError, match="a: "):
            packed(tmp_path / "b.zip", [bad])


@pytest.mark.parametrize("more", [-1, 0, 1, 7])
def test_what_zlib_holds_back_at_the_end(tmp_path, more):
    """It takes all that it is given, and hands out no more than was asked for."""
    content = bytes(8 * copying.CHUNK + more)
    entry = deflate("a", content)
    assert entry.method == DEFLATED
    assert contents(packed(tmp_path / "a.zip", [entry])) == [("a", content)]


def test_deflate_stores_what_does_not_shrink():
    assert deflate("a", RANDOM[:100]).method == STORED
    assert deflate("a", b"").method == STORED
    assert deflate("a", bytes(100)).method == DEFLATED


def test_from_file(tmp_path, model, monkeypatch):
    os.utime(model, (1e9, 1e9))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    plain = from_file(model, "dir/m.gguf")
    assert (plain.data, plain.align) == (Source(model, size=len(RANDOM)), BLOCK)
    assert (plain.date_time, plain.mode) == (None, 0o644)
    assert from_file(model, "m", own_time=True).date_time == (2001, 9, 9, 1, 46, 40)
    model.chmod(0o700)
    assert from_file(model, "m").mode == 0o755
    text = tmp_path / "t"
    text.write_bytes(bytes(5000))
    assert from_file(text, "t", level=9).method == DEFLATED
    for wrong in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PyllamafileError, match=wrong.name):
            from_file(wrong, "x")


def test_no_space_left(tmp_path, model, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(PyllamafileError, match=r"a\.zip: cannot write: No space left") as caught:
        packed(tmp_path / "a.zip", [gguf(model)])
    plan = layout([gguf(model)], 0)
    assert caught.value.hint is not None
    assert f"takes {plan.size} bytes" in caught.value.hint
    assert "bytes free" in caught.value.hint


def test_keyboard_interrupt_passes(tmp_path, model):
    def stop(done):
        raise KeyboardInterrupt

    path = packed(tmp_path / "a.zip", [Entry("a", b"a")])
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        add(path, [gguf(model)], progress=stop)
    assert path.read_bytes() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="FICLONERANGE is Linux")
def test_blocks_are_shared_where_possible(tmp_path, model, monkeypatch):
    calls = []

    def ioctl(fd, request, argument):
        assert request == 0x4020940D
        source, offset, length, at = struct.unpack("=qQQQ", argument)
        assert offset % 4096 == length % 4096 == at % 4096 == 0
        os.pwrite(fd, os.pread(source, length, offset), at)
        calls.append((length, at))

    monkeypatch.setattr(copying.fcntl, "ioctl", ioctl)
    path = packed(tmp_path / "a.zip", [gguf(model)])
    block = os.statvfs(path).f_bsize
    assert calls == [(len(RANDOM) // block * block, BLOCK)]
    assert contents(path) == [("model.gguf", RANDOM)]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="not on this system")
@pytest.mark.parametrize("error", [None, errno.EINVAL])
def test_the_disk_begins_before_the_end(tmp_path, model, monkeypatch, error):
    """Every byte that is copied is mentioned once; it is advice, so it may fail."""
    advised = []

    def advise(fd, at, length, advice):
        advised.append(range(at, at + length))
        assert os.pread(fd, length, at) == RANDOM[at - BLOCK :][:length]
        if error:
            raise OSError(error, "no")

    monkeypatch.setattr(copying, "_STRIDE", 50_000)
    monkeypatch.setattr(copying, "_share", lambda *_: 0)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    path = packed(tmp_path / "a.zip", [gguf(model)])
    assert contents(path) == [("model.gguf", RANDOM)]
    assert [*itertools.chain(*advised)] == [*range(BLOCK, BLOCK + len(RANDOM))]
    assert len(advised) == 4


def test_reading_by_seeking(tmp_path, model, monkeypatch):
    """As Windows reads, where a file that two threads read has one position."""
    monkeypatch.delattr(os, "preadv", raising=False)
    monkeypatch.setattr(copying, "CHUNK", 100)
    path = packed(tmp_path / "a.zip", some(model))
    assert dict(contents(path))["model.gguf"] == RANDOM


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="not on this system")
def test_reading_little_by_little(tmp_path, model, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:1000]], at))
    path = packed(tmp_path / "a.zip", some(model))
    assert dict(contents(path))["model.gguf"] == RANDOM


def test_what_is_shared_is_not_written(tmp_path, model, monkeypatch):
    """But for the rest behind the last whole block."""
    shared = 2 * BLOCK
    monkeypatch.setattr(copying, "_share", lambda *_: shared)
    monkeypatch.setattr(copying, "CHUNK", 1000)
    path = packed(tmp_path / "a.zip", [Entry("m", Source(model, size=len(RANDOM)), align=BLOCK)])
    [member] = read(path).members
    raw = path.read_bytes()[member.data_offset : member.end]
    assert raw == bytes(shared) + RANDOM[shared:]
    assert member.crc == zlib.crc32(RANDOM)


def test_nobody_reads_a_file_that_was_closed(tmp_path, model, monkeypatch):
    """Not even when copying stops while threads still hash."""
    closed, late = threading.Event(), []
    real, fill = copying.read_into, zipalign._fill

    def slowly(fd, offset, view):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.01)
            late.append(closed.is_set())
        return real(fd, offset, view)

    def stop(*_):
        raise OSError(errno.ENOSPC, "stop")

    def watched(*arguments):
        try:
            fill(*arguments)
        finally:
            closed.set()

    monkeypatch.setattr(copying, "CHUNK", 10_000)
    monkeypatch.setattr(copying, "_share", lambda *_: 0)
    monkeypatch.setattr(copying, "read_into", slowly)
    monkeypatch.setattr(zipalign, "_fill", watched)
    monkeypatch.setattr(os, "write", stop)
    with pytest.raises(PyllamafileError, match="cannot write"):
        packed(tmp_path / "a.zip", [gguf(model)])
    assert late
    assert not any(late)


# -------------------------------------------------------------------- zip64


def test_zip64_cheaply(tmp_path, model, monkeypatch):
    entries = some(model)
    small = packed(tmp_path / "small.zip", entries)
    assert b"PK\6\6" not in small.read_bytes()[-200:]
    monkeypatch.setattr(zipalign, "_MAX_32", 5000)
    monkeypatch.setattr(zipalign, "_MAX_16", 3)
    path = packed(tmp_path / "a.zip", entries)
    assert b"PK\6\6" in path.read_bytes()[-200:]
    assert contents(path) == contents(small)
    assert [(m.name, m.size, m.crc) for m in read(path).members] == [
        (m.name, m.size, m.crc) for m in read(small).members
    ]
    for command, package in (READERS["unzip"], READERS["7z"], READERS["bsdtar"]):
        need(command[0], package)
        run(*command, path)


@pytest.mark.slow
def test_zip64_for_real(tmp_path):
    """4 GiB of zeros that take no disk: holes stay holes."""
    size = 1 << 32
    hole = tmp_path / "hole.gguf"
    with hole.open("wb") as file:
        file.truncate(size)
    path = tmp_path / "a.zip"
    add(path, [Entry("hole.gguf", Source(hole, size=size), align=BLOCK), Entry("after", b"text")])
    add(path, [Entry("more", b"more")])
    assert path.stat().st_blocks * 512 < 1 << 20
    assert read(path).members[0].crc == CRC_OF_4_GIB
    with zipfile.ZipFile(path) as archive:
        big, after, more = archive.infolist()
        assert big.file_size == big.compress_size == size
        assert after.header_offset > size
        assert archive.read(after) + archive.read(more) == b"textmore"
    for command, package in (
        (["unzip", "-l"], "unzip"),
        (["7z", "l"], "p7zip-full"),
        (["bsdtar", "-tf"], "libarchive-tools"),
    ):
        need(command[0], package)
        assert "more" in run(*command, path)


CRC_OF_4_GIB = 0xD202EF8D


# --------------------------------------------------------------------- read


def test_read_agrees_with_zipfile(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", b"text" * 100)
        archive.writestr("é", b"x", zipfile.ZIP_STORED)
        archive.comment = b"a comment"
    found = read(path)
    assert found.comment == b"a comment"
    with zipfile.ZipFile(path) as archive:
        assert found.directory_offset == archive.start_dir
        for member, info in zip(found.members, archive.infolist(), strict=True):
            assert (member.name, member.size, member.stored_size, member.crc) == (
                info.filename,
                info.file_size,
                info.compress_size,
                info.CRC,
            )
            assert (member.header_offset, member.date_time, member.method) == (
                info.header_offset,
                info.date_time,
                info.compress_type,
            )


def test_read_offsets_from_the_start_of_the_archive(tmp_path):
    path = tmp_path / "a.exe"
    plain = packed(tmp_path / "a.zip", [Entry("a", b"text"), Entry("b", b"b")])
    path.write_bytes(b"MZ" * 500 + plain.read_bytes())
    assert [member.data_offset for member in read(path).members] == [1031, 1066]
    add(path, [Entry("c", b"c")])
    assert contents(path) == [("a", b"text"), ("b", b"b"), ("c", b"c")]
    assert path.read_bytes().startswith(b"MZ" * 500 + b"PK\3\4")
    need("unzip", "unzip")
    assert "warning" not in run("unzip", "-t", path)


def test_read_empty(tmp_path):
    path = packed(tmp_path / "a.zip", [], b"prefix")
    assert read(path).members == ()
    add(path, [Entry("a", b"a")])
    assert contents(path) == [("a", b"a")]
    assert path.read_bytes().startswith(b"prefixPK\3\4")


@pytest.mark.parametrize("zip64", [False, True])
def test_hostile_input(tmp_path, monkeypatch, rng, zip64):
    """Whatever is cut off or flipped: an answer or our error."""
    if zip64:
        monkeypatch.setattr(zipalign, "_MAX_32", 100)
        monkeypatch.setattr(zipalign, "_MAX_16", 1)
    entries = [Entry("first", b"1" * 150), deflate("dir/ü", bytes(400)), Entry("c", b"")]
    path = packed(tmp_path / "a.zip", entries, b"prefix", b"comment")
    good = path.read_bytes()

    def names(data):
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()
        try:
            return [member.name for member in read(path).members]
        except PyllamafileError as error:
            messages.append(error.message)
            return None

    messages = []
    directory = read(path).directory_offset

    assert names(good) == ["first", "dir/ü", "c"]
    for length in range(len(good)):
        assert names(good[:length]) is None
    for start in range(1, len(good)):
        names(good[start:])
    answers = []
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(directory if rng.random() < 0.8 else 0, len(data))
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        answers.append(names(bytes(data)))
    assert None in answers
    assert any(answers)
    assert all(message.startswith(f"{path}: ") for message in messages)


def forged(**changes):
    """One stored entry, some fields of its headers replaced."""
    field = {"name": b"a", "size": 4, "stored": 4, "offset": 0, "extra": b"", "disk": 0}
    field |= {"count": 1, "end_disk": 0, "cd_size": None, "cd_offset": None, "copies": 1}
    field |= {"flags": 0} | changes
    name, extra = field["name"], field["extra"]
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 10, 0, 0, 0, 33, 0, 4, 4, len(name), 0)
    local += name + b"text"
    head = (b"PK\1\2", 0x31E, 10, field["flags"], 0, 0, 33, 0, field["stored"], field["size"])
    tail = (len(name), len(extra), 0, field["disk"], 0, 0, field["offset"])
    central = (struct.pack("<4s6H3L5H2L", *head, *tail) + name + extra) * field["copies"]
    size = len(central) if field["cd_size"] is None else field["cd_size"]
    offset = len(local) if field["cd_offset"] is None else field["cd_offset"]
    count, disk = field["count"], field["end_disk"]
    return (
        local
        + central
        + struct.pack("<4s4H2LH", b"PK\5\6", disk, disk, count, count, size, offset, 0)
    )


def wide(*values):
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


FULL = 0xFFFFFFFF
HOSTILE = {
    "size of 2^64": {"size": FULL, "stored": FULL, "extra": wide(2**64 - 1, 2**64 - 1)},
    "offset of 2^64": {"offset": FULL, "extra": wide(2**64 - 1)},
    "zip64 field missing": {"size": FULL, "stored": FULL},
    "zip64 field too short": {"size": FULL, "stored": FULL, "extra": wide(4)},
    "size past the directory": {"size": 5000, "stored": 5000},
    "two sizes": {"size": 5},
    "offset past the end": {"offset": 5000},
    "offset elsewhere": {"offset": 3},
    "count too high": {"count": 2},
    "count far too high": {"count": 65534},
    "count too low": {"count": 1, "copies": 2},
    "count zero": {"count": 0},
    "overlap": {"count": 2, "copies": 2},
    "NUL in a name": {"name": b"a\0b"},
    "empty name": {"name": b""},
    "name not UTF-8": {"name": b"\xff", "flags": 1 << 11},
    "entry on another disk": {"disk": 1},
    "several disks": {"end_disk": 1},
    "directory past the end": {"cd_size": 5000},
    "directory cut": {"cd_size": 46},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_forged_archives(tmp_path, case):
    path = tmp_path / "forged.zip"
    path.write_bytes(forged())
    assert [member.name for member in read(path).members] == ["a"]
    path.write_bytes(forged(**HOSTILE[case]))
    with pytest.raises(PyllamafileError, match=r"forged\.zip: "):
        read(path)


def test_read_what_is_no_archive(tmp_path):
    for name, data in {"empty": b"", "text": b"hello" * 50000, "short": b"PK\5\6"}.items():
        path = tmp_path / name
        path.write_bytes(data)
        for action in (lambda path: read(path), lambda path: add(path, [Entry("a", b"")])):
            with pytest.raises(PyllamafileError, match=f"{name}: not a zip"):
                action(path)
        assert path.read_bytes() == data
    with pytest.raises(PyllamafileError, match="missing: cannot read"):
        read(tmp_path / "missing")


# ---------------------------------------------------------------------- add


def body(name, size=3000):
    return Entry(name, random.Random(name).randbytes(size))


PREFIX = b"\x7fELF" + b"runtime " * 600
OLD = [body("model.gguf", 90000), body("a"), body("b", 5000), body("c", 200)]
OLD[0] = Entry("model.gguf", OLD[0].data, align=BLOCK)
BIG = Entry("model.gguf", random.Random(3).randbytes(200_000), align=BLOCK)

# name: (entries to add, names to remove, entries of the result)
CHANGES = {
    "add small": ([body("n")], [], [*OLD, body("n")]),
    "add large": ([BIG_2 := Entry("2.gguf", RANDOM, align=BLOCK)], [], [*OLD, BIG_2]),
    "replace last": ([new := Entry("c", b"new")], [], [*OLD[:3], new]),
    "replace last by large": ([new := body("c", 150_000)], [], [*OLD[:3], new]),
    "replace middle": ([new := body("a", 2)], [], [OLD[0], new, *OLD[2:]]),
    "replace middle by large": ([new := body("a", 99_999)], [], [OLD[0], new, *OLD[2:]]),
    "replace first by larger": ([BIG], [], [BIG, *OLD[1:]]),
    "replace first by smaller": ([new := body("model.gguf", 7)], [], [new, *OLD[1:]]),
    "replace two, add one": (
        [new := body("n"), body("c", 9), body("a", 4000)],
        [],
        [OLD[0], body("a", 4000), OLD[2], body("c", 9), new],
    ),
    "replace all": ([BIG, *OLD[1:]], [], [BIG, *OLD[1:]]),
    "remove first": ([], ["model.gguf"], OLD[1:]),
    "remove middle": ([], ["a"], [OLD[0], *OLD[2:]]),
    "remove last": ([], ["c"], OLD[:3]),
    "remove all": ([], ["c", "a", "b", "model.gguf"], []),
    "remove and add": ([body("n")], ["a"], [OLD[0], *OLD[2:], body("n")]),
    "nothing": ([], [], OLD),
}


@pytest.mark.parametrize(
    ("change", "limit"),
    [(change, 0xFFFFFFFF) for change in CHANGES]
    # Here the detour needs zip64 and the result does not.
    + [(change, 158_000) for change in ("replace two, add one", "replace last")],
)
def test_add_leaves_what_a_fresh_archive_has(tmp_path, monkeypatch, change, limit):
    """No dead bytes, and the same bytes again when it is repeated."""
    monkeypatch.setattr(zipalign, "_MAX_32", limit)
    entries, remove, result = CHANGES[change]
    path = packed(tmp_path / "a.zip", OLD, PREFIX, b"comment")
    # Where the first entry goes, the gap before it stays: nobody can tell it from the prefix.
    first = read(path).members[0].header_offset if result[:1] != OLD[:1] else len(PREFIX)
    prefix = path.read_bytes()[:first]
    assert add(path, entries, remove=remove) == 0
    fresh = packed(tmp_path / "fresh.zip", result, prefix, b"comment")
    assert contents(path) == contents(fresh)
    assert path.read_bytes() == fresh.read_bytes()
    assert add(path, entries) == 0
    assert path.read_bytes() == fresh.read_bytes()


class Spy:
    """Stands in for `os.write` and `os.ftruncate`: the file after every page written."""

    def __init__(self, path, monkeypatch):
        self.path = path
        self.states = []
        self.real = {name: getattr(os, name) for name in ("write", "ftruncate")}
        for name in self.real:
            monkeypatch.setattr(os, name, getattr(self, name))

    def write(self, fd, data):
        room = 4096 - os.lseek(fd, 0, os.SEEK_CUR) % 4096
        count = self.real["write"](fd, bytes(data[:room]))
        self.states.append(self.path.read_bytes())
        return count

    def ftruncate(self, fd, size):
        self.real["ftruncate"](fd, size)
        self.states.append(self.path.read_bytes())


SPECIAL = ["add large", "replace two, add one", "remove middle"]


@pytest.mark.parametrize(
    ("change", "limits"),
    [(change, {}) for change in CHANGES]
    + [(change, {"_CHEAP": 0}) for change in SPECIAL]
    + [(change, {"_MAX_32": 150}) for change in SPECIAL],
)
def test_killed_at_any_moment(tmp_path, monkeypatch, change, limits):
    for name, value in limits.items():
        monkeypatch.setattr(zipalign, name, value)
    entries, remove, result = CHANGES[change]
    path = packed(tmp_path / "a.zip", OLD, PREFIX, b"comment")
    old = contents(path)
    with monkeypatch.context() as patch:
        spy = Spy(path, patch)
        add(path, entries, remove=remove)
    new = [(entry.name, entry.data) for entry in result]
    assert contents(path) == new

    seen = []
    for state in spy.states:
        assert state.startswith(PREFIX)
        found = contents(io.BytesIO(state))
        assert found in (old, new)
        seen.append(found == new)
        path.write_bytes(state)
        assert [member.name for member in read(path).members] == [name for name, _ in found]
    assert len(seen) > 1
    assert seen[-1]
    if old != new:
        assert not seen[0]
        assert seen == sorted(seen)  # no way back


def test_killed_with_a_directory_of_many_pages(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.zip", [Entry(f"{n:050}", b"") for n in range(300)])
    old = contents(path)
    with monkeypatch.context() as patch:
        spy = Spy(path, patch)
        add(path, [body("small", 20_000)])
    assert len(spy.states) > 10
    for state in spy.states:
        assert contents(io.BytesIO(state))[:300] == old


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("change", ["add large", "replace two, add one", "remove first"])
def test_failing_at_any_moment(tmp_path, monkeypatch, change, lasting):
    entries, remove, result = CHANGES[change]
    path = packed(tmp_path / "a.zip", OLD, PREFIX)
    before, old = path.read_bytes(), contents(path)
    new = [(entry.name, entry.data) for entry in result]
    real = {name: getattr(os, name) for name in ("write", "ftruncate", "fsync")}
    outcomes, messages = [], set()
    for limit in range(1000):
        path.unlink()
        path.write_bytes(before)
        calls = 0

        def fake(name, *arguments, limit=limit):
            nonlocal calls
            calls += 1
            if calls == limit + 1 or (lasting and calls > limit):
                raise OSError(errno.EIO, "Input/output error")
            return real[name](*arguments)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, lambda *a, name=name, fake=fake: fake(name, *a))
            try:
                add(path, entries, remove=remove)
            except PyllamafileError as error:
                messages.add(error.message)
                found = contents(path)
                assert found in (old, new)  # new: if just the last fsync fails
                outcomes.append("old" if found == old else "new")
                assert lasting or found == new or path.read_bytes() == before
            else:
                assert contents(path) == new
                if calls <= limit:
                    break
    assert messages == {f"{path}: cannot write: Input/output error"}
    assert outcomes.count("new") <= 1
    assert outcomes.count("old") >= 4


KILLED = """
    import sys
    from pathlib import Path
    from pyllamafile.zipalign import Entry, add
    path = Path(sys.argv[1])
    entries = {name: [Entry("first", name * 100_000), Entry("last", name)] for name in (b"0", b"1")}
    print("ready", flush=True)
    while True:
        for name in entries:
            add(path, entries[name])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_for_real(tmp_path, rng):
    path = tmp_path / "a.zip"
    kept = [("kept", RANDOM[:5000])]
    packed(path, [Entry("first", b"0" * 100_000), Entry("last", b"0"), Entry(*kept[0])], PREFIX)
    environment = {**os.environ, "PYTHONPATH": str(Path(zipalign.__file__).parents[1])}
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), path],
            stdout=subprocess.PIPE,
            env=environment,
        )
        with child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(rng.random() / 20)
            child.send_signal(signal.SIGKILL)
        found = dict(contents(path))
        mark = found["last"]
        assert found == {"first": mark * 100_000, "last": mark, **dict(kept)}
        assert path.read_bytes().startswith(PREFIX)


def test_large_entries_are_not_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(zipalign, "_MOVE", 10_000)
    path = packed(tmp_path / "a.zip", [body("args"), *OLD], PREFIX)
    where = {member.name: member for member in read(path).members}
    size = path.stat().st_size
    lost = where["args"].end - where["args"].header_offset
    assert add(path, [Entry("args", b"x"), Entry("a", b"y")]) == lost
    after = {member.name: member for member in read(path).members}
    assert after["model.gguf"] == where["model.gguf"]
    assert [member.name for member in read(path).members] == ["model.gguf", "a", "b", "c", "args"]
    assert path.stat().st_size < size
    again = path.read_bytes()
    assert add(path, [Entry("args", b"x"), Entry("a", b"y")]) == 0
    assert path.read_bytes() == again


def test_large_changes_are_written_once(tmp_path, monkeypatch):
    """Dead bytes, and said so, rather than copying very much once more."""
    monkeypatch.setattr(zipalign, "_CHEAP", 1000)
    path = packed(tmp_path / "a.zip", OLD)
    member = read(path).members[-1]
    assert add(path, [Entry("c", b"new"), Entry("2.gguf", RANDOM, align=BLOCK)]) == (
        member.end - member.header_offset
    )
    assert contents(path)[-2:] == [("c", b"new"), ("2.gguf", RANDOM)]


def test_moved_entries_stay_aligned(tmp_path):
    path = packed(tmp_path / "a.zip", [body("x", 70_000), body("y", 5), OLD[0], body("z")])
    assert add(path, [], remove=["x"]) == 0
    members = {member.name: member for member in read(path).members}
    assert members["model.gguf"].data_offset == BLOCK
    assert add(path, [], remove=["y"]) == 0
    assert contents(path) == [("model.gguf", OLD[0].data), ("z", body("z").data)]


@pytest.mark.parametrize("seed", range(15))
def test_what_a_change_returns_is_what_is_read(tmp_path, monkeypatch, seed):
    """So that who changes an archive in several steps reads it once."""
    rng = random.Random(seed)
    monkeypatch.setattr(zipalign, "_MOVE", rng.choice([0, 5000, 16 << 20]))
    monkeypatch.setattr(zipalign, "_MAX_32", rng.choice([0xFFFFFFFF, 0xFFFFFFFF, 3000]))
    path, front = tmp_path / "a.zip", rng.randint(0, 2) * BLOCK

    def some(count):
        sizes = [rng.choice([0, 10, 3000, 300_000]) for _ in range(count)]
        names = rng.sample(["a", "b/c", "d.gguf", "\xe4", "e" * 300, "f", "g", "h"], count)
        return [
            Entry(name, rng.randbytes(size), align=rng.choice([1, BLOCK]))
            if rng.random() < 0.8
            else deflate(name, bytes(size))
            for name, size in zip(names, sizes, strict=True)
        ]

    if front:
        packed(path, some(5), bytes(front), rng.choice([b"", b"words"]))
    known, _ = zipalign.change(path, some(3))
    assert known == read(path)
    for _ in range(6):
        names = [member.name for member in known.members]
        gone = rng.sample(names, min(len(names), rng.randint(0, 2)))
        if front and rng.random() < 0.4:
            move = rng.choice([-front, front, front + 4096])
            known, _ = zipalign.change(
                path, some(rng.randint(0, 2)), remove=gone, displacements=(0, move), archive=known
            )
            assert known == read(path)
            raw = path.read_bytes()
            path.write_bytes(bytes(move) + raw if move > 0 else raw[-move:])
            known = known.shifted(move)
            assert known == read(path)
            if known.origin < 0 or known.origin % BLOCK:
                break  # no such thing is ever changed again
        else:
            known, _ = zipalign.change(path, some(2), remove=gone, archive=known)
        assert known == read(path)
        if rng.random() < 0.5:
            known = zipalign.compact(path, known)
            assert known == read(path)


def test_what_somebody_else_has_changed_is_left_alone(tmp_path, model):
    path = packed(tmp_path / "a.zip", [gguf(model)])
    known = read(path)
    path.write_bytes(raw := path.read_bytes() + b"more")
    for change in (
        lambda: zipalign.change(path, [Entry("a", b"a")], archive=known),
        lambda: zipalign.compact(path, known),
    ):
        with pytest.raises(PyllamafileError, match=r"a\.zip: another program changed it"):
            change()
        assert path.read_bytes() == raw


def test_add_creates(tmp_path, model):
    path = tmp_path / "a.zip"
    assert add(path, some(model)) == 0
    assert path.read_bytes() == packed(tmp_path / "b.zip", some(model)).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip", "model.gguf"]
    with pytest.raises(PyllamafileError, match="nothere"):
        add(tmp_path / "c.zip", [Entry("a", Source(tmp_path / "nothere", size=1))])
    with pytest.raises(PyllamafileError, match="to remove"):
        add(tmp_path / "c.zip", [], remove=["x"])
    assert not (tmp_path / "c.zip").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_add_refuses(tmp_path, model):
    path = packed(tmp_path / "a.zip", OLD)
    before = path.read_bytes()
    for arguments, message in (
        (([Entry("x", Source(path, size=5))],), "to itself"),
        (([Entry("../x", b"")],), r"\.\."),
        (([Entry("x", Source(tmp_path / "nothere", size=5))],), "nothere: cannot read"),
    ):
        with pytest.raises(PyllamafileError, match=message):
            add(path, *arguments)
    with pytest.raises(PyllamafileError, match="has no 'x' to remove"):
        add(path, [], remove=["x"])
    assert path.read_bytes() == before


def test_doubled_entries_are_replaced_together(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("twice", b"1")
        for content in (b"2", b"3"):
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("twice", content)
    assert add(path, [Entry("new", b"new")]) == 0
    assert len(contents(path)) == 4
    assert add(path, [Entry("twice", b"once")]) == 0
    assert contents(path) == [("twice", b"once"), ("new", b"new")]


class Pipe(io.BytesIO):
    """Makes zipfile write data descriptors."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise OSError

    def tell(self):
        raise OSError


def test_entries_with_descriptors_are_kept_and_moved(tmp_path):
    pipe = Pipe()
    names = ["one", "two", "three"]
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, name * 500)
    path = tmp_path / "a.zip"
    path.write_bytes(pipe.getvalue())
    assert all(member.flags & 8 for member in read(path).members)
    assert add(path, [Entry("one", b"1" * 5000), Entry("four", b"4", align=4096)]) == 0
    again = path.read_bytes()
    assert add(path, [Entry("one", b"1" * 5000), Entry("four", b"4", align=4096)]) == 0
    assert path.read_bytes() == again
    expected = [("one", b"1" * 5000), *((n, n.encode() * 500) for n in names[1:]), ("four", b"4")]
    assert contents(path) == expected
    need("unzip", "unzip")
    run("unzip", "-t", path)


def test_entries_that_are_zip64_without_need(tmp_path):
    """As llamafile's own zipalign writes them."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("one", "two"):
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(name.encode() * 99)
    assert [member.data_offset - member.header_offset for member in read(path).members] == [53, 53]
    assert add(path, [Entry("one", b"new"), Entry("three", b"3")]) == 0
    assert contents(path) == [("one", b"new"), ("two", b"two" * 99), ("three", b"3")]
    for command, package in READERS.values():
        need(command[0], package)
        run(*command, path)


def test_encrypted_entries_are_kept_and_moved(tmp_path):
    need("zip", "zip")
    need("unzip", "unzip")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 3000)
    run("zip", "-qP", "secret", "e.zip", "a", "b", cwd=tmp_path)
    path = tmp_path / "e.zip"
    assert add(path, [Entry("c", b"c")], remove=["a"]) == 0
    assert run("unzip", "-P", "secret", "-p", path, "b") == "b" * 3000
    assert run("unzip", "-P", "secret", "-p", path, "c") == "c"


def test_info_zip_keeps_the_first_entry_aligned(tmp_path, model):
    need("zip", "zip")
    path = packed(tmp_path / "a.zip", [gguf(model), Entry("x.txt", b"x" * 99), Entry("y", b"y")])
    path.write_bytes(path.read_bytes())
    for name in ("x.txt", "new.txt"):
        (tmp_path / name).write_text("other text")

    def check(*names):
        found = read(path)
        assert [member.name for member in found.members] == ["model.gguf", *names]
        assert found.members[0].data_offset == BLOCK
        assert dict(contents(path))["model.gguf"] == RANDOM

    check("x.txt", "y")
    run("zip", "-q", path, "new.txt", cwd=tmp_path)
    check("x.txt", "y", "new.txt")
    run("zip", "-q", path, "x.txt", cwd=tmp_path)
    check("x.txt", "y", "new.txt")
    run("zip", "-qd", path, "y", cwd=tmp_path)
    check("x.txt", "new.txt")
    assert add(path, [Entry("x.txt", b"ours")]) == 0
    check("x.txt", "new.txt")
