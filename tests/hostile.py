"""Containers that nobody would write, made in code, and what every reader owes their readers."""

from __future__ import annotations

import io
import resource
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures import tiny_gguf

import pyllamafile
from pyllamafile import native, passages, zipalign
from pyllamafile.errors import PyllamafileError
from pyllamafile.passages import Passage

TESTS = Path(__file__).parent
MAX_16, MAX_32, MAX_64 = 0xFFFF, 0xFFFFFFFF, 2**64 - 1


def sources() -> list[str | Path]:
    """What compiles container.cpp alone with its harness; stb_image comes from the sdist."""
    ours = TESTS.parent / "src" / "pyllamafile" / "native" / "runtime"
    stb = native.llama_source() / "vendor" / "stb"
    includes = ["-std=c++17", "-w", f"-I{ours}", f"-isystem{stb}"]
    return [*includes, ours / "container.cpp", TESTS / "container" / "fuzz_container.cpp"]


def extra64(*values: int) -> bytes:
    """A zip64 extra field."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def member(name: bytes = b"a.gguf", content: bytes = b"text", **changes: object) -> dict:
    """An entry as `archive` takes it: fields of its headers, which may lie."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = changes.get("method") == 8
    data = packed.compress(content) + packed.flush() if deflated else content
    fields = {
        "name": name, "data": data, "method": 0, "flags": 0, "crc": zlib.crc32(content),
        "size": len(content), "stored": len(data), "extra": b"", "local_extra": b"",
        "comment": b"", "offset": None, "disk": 0, "sign": b"PK\1\2", "local_sign": b"PK\3\4",
        "name_size": None,
    }  # fmt: skip
    assert changes.keys() <= fields.keys(), changes
    return fields | changes


def archive(*members: dict, prefix: bytes = b"", comment: bytes = b"", **ends: object) -> bytes:
    """A zip of these entries; `ends` are fields of the end records, which may lie, too."""
    out = bytearray(prefix)
    directory = bytearray()
    for it in members:
        at = len(out)
        head = (10, it["flags"], it["method"], 0, 33, it["crc"])
        sizes = (min(it["stored"], MAX_32), min(it["size"], MAX_32))
        lengths = (len(it["name"]), len(it["local_extra"]))
        out += struct.pack("<4s5H3L2H", it["local_sign"], *head, *sizes, *lengths)
        out += it["name"] + it["local_extra"] + it["data"]
        offset = at if it["offset"] is None else it["offset"]
        name_size = len(it["name"]) if it["name_size"] is None else it["name_size"]
        directory += struct.pack(
            "<4s6H3L5H2L", it["sign"], 3 << 8 | 10, *head, *sizes, name_size, len(it["extra"]),
            len(it["comment"]), it["disk"], 0, 0o100644 << 16, min(offset, MAX_32),
        )  # fmt: skip
        directory += it["name"] + it["extra"] + it["comment"]
    at = len(out)
    end = {"count": len(members), "size": len(directory), "offset": at, "disk": 0, "zip64": None}
    end |= {"comment_size": len(comment), "locator": None, "behind": b""} | ends
    out += directory
    if end["zip64"] is not None:
        wide = {"count": len(members), "size": len(directory), "offset": at} | end["zip64"]
        place = len(out) if end["locator"] is None else end["locator"]
        sizes = (wide["count"], wide["count"], wide["size"], wide["offset"])
        out += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *sizes)
        out += struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
    counts = (end["disk"], end["disk"], end["count"] & MAX_16, end["count"] & MAX_16)
    places = (end["size"] & MAX_32, end["offset"] & MAX_32, end["comment_size"])
    return (
        bytes(out) + struct.pack("<4s4H2LH", b"PK\5\6", *counts, *places) + comment + end["behind"]
    )


def containers() -> dict[str, bytes]:
    """Good ones and bad ones, by what is the matter with them."""
    small, packed = member(), member(b"b.txt", b"words " * 50, method=8)
    wide_end = {"count": MAX_16, "size": MAX_32, "offset": MAX_32}
    directory = len(archive(small, count=0)) - 22 - 46 - 6  # where that of `small` begins
    bomb = member(b"bomb", bytes(300_000), method=8)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_gguf(Path(folder) / "m.gguf").read_bytes()
    pipe = io.BytesIO()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as zip_file:
        zip_file.writestr("dir/", b"")
        zip_file.writestr("llamafile.json", b'{"runtimes": [{"target": "x", "offset": 0}]}')
        with zip_file.open("b.gguf", "w", force_zip64=True) as file:
            file.write(b"GGUF" * 9)
    return {
        "empty": b"",
        "an end record alone": archive(),
        "one entry": archive(small),
        "several entries": archive(small, packed, member(b"empty", b"")),
        "a model": archive(member(b"m.gguf", model), member(b".args", b"-c 5\n")),
        "a prefix and a comment": archive(small, packed, prefix=b"#!/bin/sh\n", comment=b"words"),
        "parts of a split model": archive(
            *(member(b"m-0000%d-of-00003.gguf" % n, b"%d" % n) for n in (1, 2, 3))
        ),
        "zip64 where it has to be": archive(
            member(size=MAX_32, stored=MAX_32, extra=extra64(4, 4)), packed, zip64={}, **wide_end
        ),
        "an extra field before that of zip64": archive(
            member(size=MAX_32, stored=MAX_32, extra=b"UT\1\0x" + extra64(4, 4))
        ),
        "by zipfile": pipe.getvalue(),
        "data descriptors": archive(member(flags=8, data=b"textPK\7\x08" + bytes(12))),
        "encrypted": archive(member(flags=1)),
        "a method that nobody knows": archive(member(method=99)),
        "names with ..": archive(*map(member, (b"../up", b"a/../../up", b"/abs", b"..\\up"))),
        "the same name twice": archive(small, small),
        "no name": archive(member(b"")),
        "a NUL in a name": archive(member(b"a\0.gguf")),
        "a name not in UTF-8": archive(member(b"\xff.gguf", flags=1 << 11)),
        "overlapping entries": archive(small, member(offset=0), member(b"c", offset=0)),
        "an entry around another": archive(
            member(size=60, stored=60), member(b"inner", b"x" * 20), member(b"c", bytes(99))
        ),
        "an entry in the directory": archive(member(offset=directory)),
        "an entry that is the directory": archive(member(size=99, stored=99)),
        "an offset past the end": archive(member(offset=5000)),
        "an offset of 2^32 - 1": archive(member(offset=MAX_32)),
        "an offset of 2^64 - 1": archive(member(offset=MAX_64, extra=extra64(MAX_64))),
        "an offset of 2^63": archive(member(offset=MAX_64, extra=extra64(1 << 63))),
        "a size of 2^64 - 1": archive(
            member(size=MAX_64, stored=MAX_64, extra=extra64(MAX_64, MAX_64))
        ),
        "a size that wraps around": archive(
            member(size=MAX_64, stored=MAX_64, extra=extra64(MAX_64 - 35, MAX_64 - 35))
        ),
        "stored, with a size of 2^64 - 1": archive(member(size=MAX_64, extra=extra64(MAX_64))),
        "stored, with two sizes": archive(member(size=5)),
        "zip64 sizes that are missing": archive(member(size=MAX_32, stored=MAX_32)),
        "zip64 sizes that are cut": archive(
            member(size=MAX_32, stored=MAX_32, extra=extra64(4, 4)[:15])
        ),
        "an extra field that is too long": archive(member(extra=b"\1\0\xff\xff")),
        "an extra field of three bytes": archive(member(extra=b"\1\0\0")),
        "a name that is too long": archive(member(name_size=MAX_16)),
        "a local name that is too long": archive(member(local_extra=bytes(60_000)), count=1),
        "no local header": archive(member(local_sign=b"PK\0\0")),
        "no central header": archive(member(sign=b"PK\0\0")),
        "on another disk": archive(member(disk=1)),
        "an end on another disk": archive(small, disk=1),
        "more entries than there are": archive(small, count=2),
        "65,534 entries": archive(small, count=MAX_16 - 1),
        "fewer entries than there are": archive(small, packed, count=1),
        "2^64 - 1 entries": archive(small, zip64={"count": MAX_64}, **wide_end),
        "a directory of 2^64 - 1 bytes": archive(small, zip64={"size": MAX_64}, **wide_end),
        "a directory at 2^64 - 1": archive(small, zip64={"offset": MAX_64}, **wide_end),
        "a directory at 2^63": archive(small, zip64={"offset": 1 << 63}, **wide_end),
        "a directory that wraps around": archive(
            small, zip64={"offset": MAX_64 - 10, "size": 60}, **wide_end
        ),
        "a locator that points nowhere": archive(small, zip64={}, locator=MAX_64, **wide_end),
        "a locator that points at itself": archive(small, zip64={}, locator=146, **wide_end),
        "zip64 end that is not needed and lies": archive(small, zip64={"count": 7, "offset": 3}),
        "a directory past the end": archive(small, offset=5000),
        "a directory larger than the file": archive(small, size=5000),
        "a directory that is the whole file": archive(small, offset=0, size=directory),
        "a comment longer than the file": archive(small, comment_size=MAX_16),
        "an end record in the comment": archive(small, comment=archive()),
        "an archive behind an archive": archive(small) + archive(packed),
        "bytes behind the end": archive(small, behind=b"behind"),
        "not deflated": archive(member(method=8, data=b"\xff" * 9, stored=9)),
        "deflated, and cut": archive(packed | {"data": packed["data"][:9], "stored": 9}),
        "a bomb": archive(bomb),
        "deflated, and bytes behind": archive(
            bomb | {"data": bomb["data"] + b"x" * 500, "stored": bomb["stored"] + 500}
        ),
        "a bomb that calls itself small": archive(bomb | {"size": 10}),
        "a bomb many times": archive(bomb, *([bomb | {"data": b"", "offset": 0}] * 9)),
    }  # fmt: skip


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Whatever takes so many bytes more than now gets a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + most, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def zipfile_answer(path: Path) -> list[tuple[str, int, int]] | None:
    """Names, sizes and offsets as the standard library reads them; None where it refuses."""
    try:
        with zipfile.ZipFile(path) as zip_file:
            infos = zip_file.infolist()
            return [(info.orig_filename, info.file_size, info.header_offset) for info in infos]
    except Exception:
        return None


def check_message(error: PyllamafileError) -> None:
    assert error.message
    assert "\n" not in error.message


def check_python_readers(path: Path) -> bool:
    """Each gives an answer or our error; extract writes nowhere but where it is told.

    Returns:
        Whether `zipalign.read` took the file for an archive.
    """
    sound = False
    destination = path.with_name("extracted")
    before = set(path.parent.rglob("*"))
    for reader in (zipalign.read, pyllamafile.verify, pyllamafile.inspect):
        try:
            found = reader(path)
            sound = sound or reader is zipalign.read
        except PyllamafileError as error:
            check_message(error)
            continue
        if reader is zipalign.read:
            size = path.stat().st_size
            assert all(0 <= m.data_offset <= m.end <= size for m in found.members)
    try:
        pyllamafile.extract(path, destination)
    except PyllamafileError as error:
        check_message(error)
    inside = sorted(destination.rglob("*"), reverse=True)
    assert set(path.parent.rglob("*")) - before <= {destination, *inside}
    for item in inside:
        item.rmdir() if item.is_dir() else item.unlink()
    if destination.exists():
        destination.rmdir()
    return sound


# An entry of documents, and what is none (FORMAT.md, section 11).
PASSAGES = passages.entry([Passage("a", 0, "", "text")], [(1.0,)])
IN_PARTS = passages.entry([Passage("a", 0, "", "text")], [(1.0,), (0.5,)], "", [2])


def _mended(of: bytes = PASSAGES, **changes: int) -> bytes:
    """The entry with other numbers in its header."""
    names = ("magic", "version", "count", "dimension", "vectors", "stored", "size", "at")
    fields = dict(zip(names, struct.unpack_from("<8s4I3Q", of), strict=True))
    return struct.pack("<8s4I3Q", *{**fields, **changes}.values()) + of[48:]


def _with_texts(text: bytes, count: int = 1) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(text) + deflate.flush()
    head = struct.pack("<8s4I3Q", b"passages", 1, count, 0, 0, len(packed), len(text), 0)
    return head.ljust(64, b"\0") + packed


def _with_parts(*of_each: bytes) -> bytes:
    """Passages that say something else of their parts, beside two vectors of one number."""
    rows = b",".join(b'[0,0,"","x",' + parts + b"]" for parts in of_each)
    texts = _with_texts(b'{"sources":["a"],"query":"","passages":[' + rows + b"]}")
    stored, size = struct.unpack_from("<2Q", texts, 24)
    at = -(-len(texts) // 64) * 64
    head = struct.pack("<8s4I3Q", b"passages", 2, len(of_each), 1, 2, stored, size, at)
    return head.ljust(64, b"\0") + texts[64:].ljust(at - 64, b"\0") + bytes(4)


NO_DOCUMENTS = [
    b"",
    PASSAGES[:40],
    PASSAGES[:-1],
    PASSAGES + b"\0",
    _mended(version=2),
    _mended(version=2, vectors=1),
    _mended(version=3),
    _mended(vectors=1),
    _mended(IN_PARTS, version=1),
    _mended(IN_PARTS, version=1, vectors=0),
    _mended(IN_PARTS, vectors=0),
    _mended(IN_PARTS, vectors=1),
    _mended(IN_PARTS, vectors=3),
    _mended(IN_PARTS, vectors=0xFFFFFFFF),
    _mended(IN_PARTS, count=2),
    _mended(IN_PARTS, dimension=0, at=0),
    _mended(count=0),
    _mended(count=2),
    _mended(count=0xFFFFFFFF),
    _mended(dimension=0),
    _mended(dimension=2),
    _mended(dimension=0xFFFFFFFF),
    _mended(count=0x80000000, dimension=0x80000000),
    _mended(stored=0),
    _mended(stored=1),
    _mended(stored=(1 << 64) - 64),
    _mended(stored=(1 << 64) - 1),
    _mended(size=3),
    _mended(size=1 << 40),
    _mended(size=(1 << 64) - 1),
    _mended(at=0),
    _mended(at=64),
    _mended(at=(1 << 64) - 64),
    _with_parts(b"1"),
    _with_parts(b"3"),
    _with_parts(b"2", b"0"),
    _with_parts(b"3", b"-1"),
    _with_parts(b"2.0"),
    _with_parts(b'"2"'),
    _with_parts(b"true"),
    _with_parts(b"2,2"),
    _with_parts(b"4294967298"),
    _with_texts(b"{}"),
    _with_texts(b"[" * 100_000),
    _with_texts(b'{"sources":["a"],"query":"","passages":[]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[1,0,"","x"]]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[-1,0,"","x"]]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[0,-1,"","x"]]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[0,0.5,"","x"]]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[0,0,"",1]]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[0,0,""]]}'),
    _with_texts(b'{"sources":["a"],"query":1,"passages":[[0,0,"","x"]]}'),
    _with_texts(b'{"sources":["a"],"query":"","query":"","passages":[[0,0,"","x"]]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[0,0,"","x"]],"more":1}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[0,0,"","x",[]]]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[0,0,"","x"],[]]}', 2),
    _with_texts(b'{"sources":[["a"]],"query":"","passages":[[0,0,"","x"]]}'),
    _with_texts(b'["sources","query","passages"]'),
    _with_texts(b"1"),
    _with_texts(b"[" * (60 << 20)),
    _with_texts(b'{"sources":[1],"query":"","passages":[[0,0,"","x"]]}'),
    _with_texts(b'{"sources":["a"],"query":"","passages":[[0,0,"","\xff"]]}'),
]
