"""The second opinion: containers made by hand, then damaged, each damage named where it is.

Nothing here comes from `pyllamafile.zipalign`: the bytes are put together with `struct`, so
that the two sides of the format are tested apart from each other.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from fixtures import frame, tiny_elf, tiny_pe
from running import package

from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import pe
from pyllamafile.ops import verify as verifying
from pyllamafile.ops.verify import Problem, verify
from pyllamafile.progress import Step

BLOCK = 65536
HEAD = b"#!/bin/sh\nexit 0\n".ljust(16384, b"\n")
FULL = 0xFFFFFFFF
WEIGHTS = random.Random(1).randbytes(100_000)
PROGRAM = random.Random(2).randbytes(30_000) + bytes(90_000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pack(program: bytes) -> bytes:
    """A gzip member padded to whole blocks by a comment of spaces (RFC 1952, FCOMMENT)."""
    body = gzip.compress(program, mtime=0)[10:]
    return b"\x1f\x8b\x08\x10\0\0\0\0\0\xff" + b" " * (-(11 + len(body)) % BLOCK) + b"\0" + body


def deflate(content: bytes) -> bytes:
    return zlib.compress(content, 9, -15)


@dataclass
class Box:
    """A llamafile in the making; what a test wants wrong it changes before `write`.

    `local` and `central` override fields of an entry's headers; `ends` those of the end record.
    """

    path: Path
    entries: dict[str, bytes] = field(default_factory=dict)
    deflated: set[str] = field(default_factory=set)
    head: bytes = HEAD
    outer: str = ""
    packed: dict[str, bytes] = field(default_factory=dict)
    manifest: Callable[[dict[str, Any]], object] = lambda manifest: None
    local: dict[str, dict[str, Any]] = field(default_factory=dict)
    central: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    ends64: dict[str, int] = field(default_factory=dict)
    zip64: bool = False
    shift: int = 0
    comment: bytes = b""
    at: dict[str, int] = field(default_factory=dict)

    def write(self) -> Path:
        content = bytearray(self.head.ljust(BLOCK, b"\0"))
        runtimes = [self.in_place(self.outer)] if self.outer else []
        for target, packed in self.packed.items():
            self.at[target] = len(content)
            runtimes.append(
                {
                    "target": target,
                    "offset": len(content),
                    "packed_size": len(packed),
                    "packed_sha256": sha256(packed),
                    "size": len(PROGRAM),
                    "sha256": sha256(PROGRAM),
                    "llama_cpp": "0.5.0",
                    "levels": ["v3"],
                }
            )
            content += packed
        manifest = {
            "format": 1,
            "name": "m",
            "pyllamafile": "0.1.0",
            "head": {"size": len(self.head), "sha256": sha256(self.head)},
            "runtimes": runtimes,
            "entries": {
                name: {"size": len(plain), "sha256": sha256(plain)}
                for name, plain in self.entries.items()
            },
        }
        changed = self.manifest(manifest)
        raw = changed if isinstance(changed, bytes) else json.dumps(manifest).encode()

        directory = bytearray()
        for name, plain in {**self.entries, "llamafile.json": raw}.items():
            data = deflate(plain) if name in self.deflated else plain
            fields = {
                "name": name.encode(),
                "flags": 0 if name.isascii() else 1 << 11,
                "method": 8 if name in self.deflated else 0,
                "date": 33,
                "crc": zlib.crc32(plain),
                "stored": len(data),
                "size": len(plain),
                "extra": b"",
            }
            local = {**fields, **self.local.get(name, {})}
            if self.zip64:
                local["extra"] += struct.pack("<2H2Q", 1, 16, local["size"], local["stored"])
                local["size"] = local["stored"] = FULL
            if name.endswith(".gguf"):
                header = 30 + len(local["name"]) + len(local["extra"])
                content += bytes(-(len(content) + header) % BLOCK + self.shift)
            central = {**fields, "header": len(content), "made": 3 << 8, "attributes": 0o100644}
            central |= self.central.get(name, {})
            if self.zip64:
                wide = (central["size"], central["stored"], central["header"])
                central["extra"] += struct.pack("<2H3Q", 1, 24, *wide)
                central["size"] = central["stored"] = central["header"] = FULL
            self.at[f"{name} header"] = len(content)
            content += struct.pack(
                "<4s5H3I2H", b"PK\3\4", 20, local["flags"], local["method"], 0, local["date"],
                local["crc"], local["stored"], local["size"], len(local["name"]),
                len(local["extra"]),
            ) + local["name"] + local["extra"]  # fmt: skip
            self.at[name] = len(content)
            content += data
            self.at[f"{name} central"] = len(directory)
            directory += struct.pack(
                "<4s6H3I5H2I", b"PK\1\2", central["made"], 20, central["flags"], central["method"],
                0, central["date"], central["crc"], central["stored"], central["size"],
                len(central["name"]), len(central["extra"]), 0, 0, 0,
                central["attributes"] << 16, central["header"],
            ) + central["name"] + central["extra"]  # fmt: skip
        count = len(self.entries) + 1
        self.at["directory"] = start = len(content)
        content += directory
        ends = {"disk": 0, "here": count, "count": count, "size": len(directory), "offset": start}
        if self.zip64:
            wide = {**ends, "length": 44, "where": len(content), "disks": 1, **self.ends64}
            content += struct.pack(
                "<4sQ2H2I4Q", b"PK\6\6", wide["length"], 45, 45, wide["disk"], wide["disk"],
                wide["here"], wide["count"], wide["size"], wide["offset"],
            ) + struct.pack("<4sIQI", b"PK\6\7", 0, wide["where"], wide["disks"])  # fmt: skip
            ends |= {"here": 0xFFFF, "count": 0xFFFF, "size": FULL, "offset": FULL}
        ends |= self.ends
        self.at["end"] = len(content)
        content += struct.pack(
            "<4s4H2IH", b"PK\5\6", ends["disk"], ends["disk"], ends["here"], ends["count"],
            ends["size"], ends["offset"], len(self.comment),
        ) + self.comment  # fmt: skip
        self.path.write_bytes(content)
        return self.path

    def in_place(self, target: str) -> dict[str, Any]:
        size, digest = len(self.head), sha256(self.head)
        return {
            "target": target, "offset": 0, "packed_size": size, "packed_sha256": digest,
            "size": size, "sha256": digest, "llama_cpp": "0.5.0", "levels": ["v3"],
        }  # fmt: skip

    def where(self, name: str) -> str:
        return f"{name} (entry at offset {self.at[f'{name} header']})"


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(
        tmp_path / "m.llamafile",
        {
            "phi3.gguf": WEIGHTS,
            ".args": b"-c 0\n...\n",
            "ui/index.html": b"<html>" * 5000,
            "LICENSES/\N{LATIN SMALL LETTER E WITH ACUTE}": b"MIT",
            "empty": b"",
        },
        {"ui/index.html"},
        packed={"linux-amd64": pack(PROGRAM), "macos-arm64": pack(PROGRAM)},
    )


def patch(path: Path, offset: int, new: bytes | None = None) -> None:
    """Overwrite bytes; without new ones flip a bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        new = new or bytes([file.read(1)[0] ^ 0x10])
        file.seek(offset)
        file.write(new)


def only(path: Path, where: str, what: str) -> None:
    """There are problems, all of them at one place, one of them as expected."""
    problems = verify(path)
    assert problems
    assert {problem.where for problem in problems} == {where}
    assert any(what in problem.what for problem in problems), problems
    assert all("\n" not in problem.what for problem in problems)


# What is sound


@pytest.mark.parametrize("zip64", [False, True])
def test_sound(box: Box, zip64: bool) -> None:
    box.zip64 = zip64
    assert verify(box.write()) == []
    with zipfile.ZipFile(box.path) as archive:  # the container is one for others, too
        assert archive.testzip() is None
        assert archive.read("phi3.gguf") == WEIGHTS


def test_sound_with_much_content_and_little_memory(box: Box) -> None:
    box.entries |= {"big.gguf": WEIGHTS * 100, "big.txt": b"text\n" * 20_000_000}
    box.deflated |= {"big.txt"}
    box.write()
    tracemalloc.start()
    assert verify(box.path) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


def test_sound_with_a_comment_and_with_a_compressed_manifest(box: Box) -> None:
    box.comment = b"made by hand"
    box.deflated |= {"llamafile.json"}
    assert verify(box.write()) == []


def test_progress(box: Box) -> None:
    box.entries["more.gguf"] = WEIGHTS * 30
    steps: list[Step] = []
    assert verify(box.write(), progress=steps.append) == []
    seen, total = [step.done for step in steps], steps[0].total
    assert {step.total for step in steps} == {total}
    assert seen[0] == 0
    assert seen[-1] == total
    assert seen == sorted(seen)
    assert len(seen) > 10
    packed = sum(map(len, box.packed.values()))
    stored = sum(len(plain) for name, plain in box.entries.items() if name not in box.deflated)
    assert len(HEAD) + packed + stored < total < box.path.stat().st_size


def test_progress_ends_at_the_total_although_there_is_damage(box: Box) -> None:
    box.write()
    patch(box.path, box.at["linux-amd64"])
    seen: list[Step] = []
    assert verify(box.path, progress=seen.append)
    assert seen[-1].done == work(box.path) == work(box.write())


def work(path: Path) -> int:
    """How many bytes are to be read of a file."""
    steps: list[Step] = []
    verify(path, progress=steps.append)
    return steps[-1].total


# Other archives


def test_an_archive_of_others(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a" * 1000, zipfile.ZIP_DEFLATED)
        archive.mkdir("folder") if hasattr(archive, "mkdir") else None
        archive.writestr("folder/b.txt", "b")
    only(path, "llamafile.json", "missing: not built by pyllamafile")

    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m.gguf", WEIGHTS)
        archive.writestr("n.gguf", WEIGHTS, zipfile.ZIP_DEFLATED)
    found = {problem.where.split(" (")[0]: problem.what for problem in verify(path)}
    assert set(found) == {"llamafile.json", "m.gguf", "n.gguf"}
    assert "not aligned to 65536" in found["m.gguf"]
    whats = [problem.what for problem in verify(path) if problem.where.startswith("n.gguf")]
    assert "weights must be stored, not compressed" in whats


def test_an_archive_of_others_behind_a_program(tmp_path: Path) -> None:
    path = tmp_path / "other.llamafile"
    path.write_bytes(b"MZ" + bytes(5000))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.txt", "a")
    only(path, "llamafile.json", "missing: not built by pyllamafile")


def test_zip64_by_zipfile(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a", "w", force_zip64=True) as file:
        file.write(b"a")
    only(path, "llamafile.json", "missing: not built by pyllamafile")


def test_an_empty_archive(tmp_path: Path) -> None:
    path = tmp_path / "empty.zip"
    zipfile.ZipFile(path, "w").close()
    only(path, "llamafile.json", "missing: not built by pyllamafile")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no ZIP archive"),
        (b"PK\3\4", "no ZIP archive"),
        (b"GGUF" + bytes(100_000), "a bare GGUF"),
    ],
    ids=["empty", "4 bytes", "GGUF"],
)
def test_no_archive_at_all(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "m.llamafile"
    path.write_bytes(content)
    for function in (verify, work):
        with pytest.raises(PyllamafileError, match=rf"m\.llamafile is {problem}"):
            function(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PyllamafileError, match="not a regular file"):
        verify(tmp_path)
    with pytest.raises(PyllamafileError, match="No such file"):
        verify(tmp_path / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(PyllamafileError, match="not a regular file"):
            verify(tmp_path / "fifo")


# Damage to what was written


@pytest.mark.parametrize("offset", [0, 1, 65536, len(WEIGHTS) - 1])
def test_a_bit_of_the_weights(box: Box, offset: int) -> None:
    box.write()
    patch(box.path, box.at["phi3.gguf"] + offset)
    only(box.path, box.where("phi3.gguf"), "damaged: its CRC-32 is")
    only(box.path, box.where("phi3.gguf"), "damaged: its SHA-256 is")


def test_weights_exchanged_together_with_their_crc(box: Box) -> None:
    box.manifest = lambda manifest: manifest["entries"]["phi3.gguf"].update(sha256="0" * 64)
    only(box.write(), box.where("phi3.gguf"), f"the manifest says {'0' * 64}")


def test_a_bit_of_compressed_data(box: Box) -> None:
    box.write()
    for offset in range(0, 40):
        patch(box.path, box.at["ui/index.html"] + offset)
        only(box.path, box.where("ui/index.html"), "")
        patch(box.path, box.at["ui/index.html"] + offset)
    assert verify(box.path) == []


@pytest.mark.parametrize("offset", [0, 9, 20_000, -1, -5, -20_000])
def test_a_bit_of_a_runtime(box: Box, offset: int) -> None:
    box.write()
    size = len(box.packed["macos-arm64"])
    patch(box.path, box.at["macos-arm64"] + offset % size)
    where = f"runtime macos-arm64 (offset {box.at['macos-arm64']})"
    only(box.path, where, "damaged: its SHA-256 is")


@pytest.mark.parametrize("offset", [0, 12, len(HEAD) - 1])
def test_a_bit_of_the_script(box: Box, offset: int) -> None:
    box.write()
    patch(box.path, offset)
    only(box.path, "head", "damaged: its SHA-256 is")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"#!/bin/bash\nexit\n", "does not begin with #!/bin/sh"),
        (b"", "does not begin with #!/bin/sh"),
        (HEAD[:-2] + b"\0\n", "not plain ASCII without NUL"),
        (HEAD[:-2] + b"\xe9\n", "not plain ASCII without NUL"),
    ],
)
def test_a_script_that_is_none(box: Box, head: bytes, what: str) -> None:
    box.head = head
    only(box.write(), "head", what)


def test_a_bit_of_the_manifest(box: Box) -> None:
    box.write()
    patch(box.path, box.at["llamafile.json"] + 3)
    problems = verify(box.path)
    assert problems[0].where == "llamafile.json"
    assert problems[-1].where == box.where("llamafile.json")
    assert "damaged" in problems[-1].what


@pytest.mark.parametrize(("offset", "label"), [
    (8, "flags"), (10, "method"), (14, "date"), (16, "CRC-32"), (20, "stored size"),
    (24, "size"), (46, "name"),
])  # fmt: skip
def test_a_bit_of_the_directory(box: Box, offset: int, label: str) -> None:
    box.write()
    patch(box.path, box.at["directory"] + box.at[".args central"] + offset)
    problems = verify(box.path)
    assert any("disagree on its" in p.what and label in p.what for p in problems), problems
    places = {p.where.split(" (")[0] for p in problems}
    assert places == ({".args", ">args"} if label == "name" else {".args"})


def test_a_bit_of_the_directorys_structure(box: Box) -> None:
    box.write()
    entry = box.at["directory"] + box.at[".args central"]
    for offset in (0, 3, 28, 29, 30):
        patch(box.path, entry + offset)
        assert "central directory" in {problem.where for problem in verify(box.path)}, offset
        patch(box.path, entry + offset)
    for offset in (42, 43, 44, 45):
        patch(box.path, entry + offset)
        problems = verify(box.path)
        assert [p.where.split(" (")[0] for p in problems] == [".args"]
        assert "no local header" in problems[0].what
        patch(box.path, entry + offset)
    assert verify(box.path) == []


def test_every_bit_of_the_end_record(box: Box) -> None:
    box.write()
    size = box.path.stat().st_size
    for offset in range(box.at["end"] + 4, size):
        patch(box.path, offset)
        assert {p.where for p in verify(box.path)} & {"end records", "central directory"}, offset
        patch(box.path, offset)
    assert verify(box.path) == []


def test_truncation(box: Box) -> None:
    box.write()
    content = box.path.read_bytes()
    for length in (*range(len(content) - 21, len(content)), len(content) - 22, 200_000, 70_000, 0):
        box.path.write_bytes(content[:length])
        if len(content) - length < 19:
            assert verify(box.path)[0].where == "end records"
        else:
            with pytest.raises(PyllamafileError, match="whose end is missing"):
                verify(box.path)


def test_bytes_behind_the_end(box: Box) -> None:
    box.write()
    with box.path.open("ab") as file:
        file.write(b"12345")
    only(box.path, "end records", "not at the very end of the file: 5 bytes follow")


def test_an_end_record_inside_the_comment(box: Box) -> None:
    box.comment = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    problems = verify(box.write())
    assert problems[0] == Problem(
        "end records", "there is more than one: the archive's comment holds another"
    )


# What a writer could get wrong, and an attacker right


@pytest.mark.parametrize("shift", [1, 4096, 32768])
def test_weights_that_are_not_aligned(box: Box, shift: int) -> None:
    box.shift = shift
    only(box.write(), box.where("phi3.gguf"), f"not aligned to {BLOCK}")


def test_weights_that_are_compressed(box: Box) -> None:
    box.deflated |= {"phi3.gguf"}
    only(box.write(), box.where("phi3.gguf"), "must be stored")


HOSTILE = ("/etc/passwd", "../up", "a/../b", "a//b", "./a", "C:a", "a\\b", "a\0b", "", "..", "a/.")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(box: Box, name: str) -> None:
    box.entries[name] = b"x"
    problems = verify(box.write())
    assert len(problems) == 1
    assert problems[0].where.endswith(f"(entry at offset {box.at[f'{name} header']})")
    assert problems[0].where.isprintable()
    assert "its name" in problems[0].what


def test_names_in_an_unknown_encoding(box: Box) -> None:
    name = "LICENSES/\N{LATIN SMALL LETTER E WITH ACUTE}"
    box.local[name] = box.central[name] = {"flags": 0}
    assert any("neither ASCII nor marked" in p.what for p in verify(box.write()))
    raw = b"LICENSES/\xe9"
    box.local[name] = box.central[name] = {"name": raw}
    only(box.write(), "central directory", "marked as UTF-8, but is not")


def test_a_name_twice(box: Box) -> None:
    box.entries["args2"] = b"other"
    box.local["args2"] = box.central["args2"] = {"name": b".args"}
    problems = verify(box.write())
    where = f".args (entry at offset {box.at['args2 header']})"
    assert Problem(where, "there is another entry of this name") in problems


def test_a_symbolic_link(box: Box) -> None:
    box.central[".args"] = {"attributes": 0o120777}
    only(box.write(), box.where(".args"), "symbolic link")


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (1, "encrypted"),
        (1 << 6, "encrypted"),
        (1 << 13, "encrypted"),
        (1 << 3, "data descriptor"),
    ],
)
def test_flags(box: Box, flags: int, what: str) -> None:
    box.local[".args"] = box.central[".args"] = {"flags": flags}
    only(box.write(), box.where(".args"), what)


def test_an_unknown_method(box: Box) -> None:
    box.local[".args"] = box.central[".args"] = {"method": 12}
    only(box.write(), box.where(".args"), "compressed by method 12")


@pytest.mark.parametrize(("change", "label"), [
    ({"name": b".argz"}, "name"), ({"flags": 2}, "flags"), ({"method": 8}, "method"),
    ({"date": 34}, "date"), ({"crc": 5}, "CRC-32"), ({"stored": 8}, "stored size"),
    ({"size": 8}, "size"),
])  # fmt: skip
def test_a_local_header_that_disagrees(box: Box, change: dict[str, Any], label: str) -> None:
    box.local[".args"] = change
    only(box.write(), box.where(".args"), f"disagree on its {label}")


def test_overlapping_entries(box: Box) -> None:
    box.local["phi3.gguf"] = box.central["phi3.gguf"] = {
        "stored": len(WEIGHTS) + 20, "size": len(WEIGHTS) + 20,
    }  # fmt: skip
    problems = verify(box.write())
    assert Problem(box.where(".args"), f"it overlaps {box.where('phi3.gguf')}") in problems


def test_the_same_bytes_a_thousand_times_are_read_once(box: Box) -> None:
    box.write()
    header = box.at["phi3.gguf header"]
    for index in range(1000):
        box.entries[f"copy{index}"] = b""
        box.central[f"copy{index}"] = {
            "name": b"phi3.gguf", "header": header, "crc": zlib.crc32(WEIGHTS),
            "stored": len(WEIGHTS), "size": len(WEIGHTS),
        }  # fmt: skip
    problems = verify(box.write())
    assert sum(p.what == f"it overlaps {box.where('phi3.gguf')}" for p in problems) == 1000
    assert work(box.path) < box.path.stat().st_size


def test_an_entry_that_reaches_into_the_directory(box: Box) -> None:
    box.local["empty"] = box.central["empty"] = {"stored": 10**6, "size": 10**6}
    only(box.write(), box.where("empty"), "past the central directory's start")


def test_stored_with_two_sizes(box: Box) -> None:
    box.local[".args"] = box.central[".args"] = {"size": 5}
    only(box.write(), box.where(".args"), "it is stored, but in 9 bytes, not 5")


def test_an_entry_that_unpacks_to_more_than_it_says(box: Box) -> None:
    box.entries["bomb"] = bytes(50 << 20)
    box.deflated |= {"bomb"}
    box.local["bomb"] = box.central["bomb"] = {"size": 1000}
    tracemalloc.start()
    box.write()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    only(box.path, box.where("bomb"), "more than the 1000 bytes that are stated")
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 8 << 20


def test_an_entry_that_unpacks_to_less_than_it_says(box: Box) -> None:
    box.local["ui/index.html"] = box.central["ui/index.html"] = {"size": 30_001}
    only(box.write(), box.where("ui/index.html"), "holds 30000 bytes, the central directory says")


def test_compressed_data_cut_short_and_followed_by_others(box: Box) -> None:
    name = "ui/index.html"
    size = len(deflate(box.entries[name]))
    box.local[name] = box.central[name] = {"stored": size - 1}
    only(box.write(), box.where(name), "cut short")
    box.local[name] = box.central[name] = {"method": 8, "crc": zlib.crc32(b"x"), "size": 1}
    box.deflated.clear()
    box.entries[name] = deflate(b"x") + b"more"
    only(box.write(), box.where(name), "other bytes follow")


@pytest.mark.parametrize(("ends", "where", "what"), [
    ({"count": 5, "here": 5}, "central directory", "6 entries, the end records say 5"),
    ({"here": 5}, "end records", "several disks"),
    ({"disk": 1}, "end records", "several disks"),
    ({"size": FULL, "offset": FULL}, "central directory", "it cannot be"),
    ({"offset": 5}, "central directory", "it ends at byte"),
])  # fmt: skip
def test_end_records_that_lie(box: Box, ends: dict[str, int], where: str, what: str) -> None:
    box.ends = ends
    only(box.write(), where, what)


@pytest.mark.parametrize(("ends", "ends64", "what"), [
    ({"count": 5}, {}, "two of them disagree: 5, in zip64 6"),
    ({"offset": 77}, {}, "two of them disagree: 77"),
    ({}, {"where": 0}, "no zip64 record at byte 0"),
    ({}, {"where": 2**64 - 1}, "no zip64 record at byte"),
    ({}, {"length": 45}, "does not end where its locator begins"),
    ({}, {"length": 2**64 - 1}, "does not end where its locator begins"),
    ({}, {"disks": 2}, "several disks"),
    ({}, {"disk": 2}, "two of them disagree"),
    ({}, {"here": 2**40}, "several disks"),
])  # fmt: skip
def test_zip64_end_records_that_lie(
    box: Box, ends: dict[str, int], ends64: dict[str, int], what: str
) -> None:
    box.zip64, box.ends, box.ends64 = True, ends, ends64
    only(box.write(), "end records", what)


@pytest.mark.parametrize("ends64", [{"size": 2**63}, {"offset": 2**64 - 1}, {"size": 2**64 - 1}])
def test_a_zip64_directory_out_of_this_world(box: Box, ends64: dict[str, int]) -> None:
    box.zip64, box.ends64 = True, ends64
    only(box.write(), "central directory", "it cannot be")


@pytest.mark.parametrize(("change", "what"), [
    ({"size": FULL, "stored": FULL}, "its zip64 field has 0 bytes, not 16"),
    ({"header": FULL}, "its zip64 field has 0 bytes, not 8"),
    ({"extra": struct.pack("<2HQ", 1, 8, 5)}, "its zip64 field has 8 bytes, not 0"),
    ({"extra": struct.pack("<2H", 7, 9)}, "its extra field is malformed"),
    ({"extra": b"\1"}, "its extra field is malformed"),
    ({"extra": struct.pack("<4H", 7, 0, 7, 0)}, "its extra field is malformed"),
])  # fmt: skip
def test_zip64_entries_that_lie(box: Box, change: dict[str, Any], what: str) -> None:
    box.central[".args"] = change
    only(box.write(), "central directory", what)


def test_zip64_sizes_out_of_this_world(box: Box) -> None:
    box.zip64 = True
    box.central[".args"] = {"stored": 2**64 - 1, "size": 2**64 - 1}
    only(box.write(), box.where(".args"), "past the central directory's start")
    box.central[".args"] = {"header": 2**64 - 1}
    problems = verify(box.write())
    assert [p.where for p in problems] == [f".args (entry at offset {2**64 - 1})"]


@pytest.mark.parametrize(("extra", "what"), [
    (struct.pack("<2HQ", 1, 8, 9), "has 8 bytes, not 16"),
    (struct.pack("<2H2Q", 1, 16, 9, 10), "states two different sizes"),
])  # fmt: skip
def test_a_local_zip64_field_that_lies(box: Box, extra: bytes, what: str) -> None:
    box.local[".args"] = {"extra": extra}
    only(box.write(), box.where(".args"), what)


# The manifest


def runtime(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["runtimes"][1]
    return found


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: b"", "cannot be understood"),
        (lambda m: b"\xff", "cannot be understood"),
        (lambda m: b"{" * 100_000, "cannot be understood"),
        (lambda m: b"[" * 100_000, "cannot be understood"),
        (lambda m: b'{"format":1,"format":1}', "a key is there twice"),
        (lambda m: b'{"format":1' + b"0" * 5000 + b"}", "cannot be understood"),
        (lambda m: b" " * (65 << 20), "which no manifest has"),
        (lambda m: b"[]", "does not say which format"),
        (lambda m: m.pop("format"), "does not say which format"),
        (lambda m: m.update(format=True), "does not say which format"),
        (lambda m: m.update(format=2), "it is of format 2, only 1 is known"),
        (lambda m: m.update(name=5), "manifest['name'] is not text"),
        (lambda m: m.pop("pyllamafile"), "manifest lacks 'pyllamafile'"),
        (lambda m: m.update(head=[]), "manifest['head'] is not an object"),
        (lambda m: m["head"].pop("size"), "manifest['head'] lacks 'size'"),
        (lambda m: m["head"].update(size=-1), "['size'] is not a number of bytes"),
        (lambda m: m["head"].update(size=1.5), "['size'] is not a number of bytes"),
        (lambda m: m["head"].update(size=True), "['size'] is not a number of bytes"),
        (lambda m: m["head"].update(size=2**63), "['size'] is not a number of bytes"),
        (lambda m: m["head"].update(sha256="F" * 64), "['sha256'] is not a SHA-256"),
        (lambda m: m["head"].update(sha256="f" * 63), "['sha256'] is not a SHA-256"),
        (lambda m: m.update(runtimes={}), "manifest['runtimes'] is not an array"),
        (lambda m: m.update(runtimes=[5]), "manifest['runtimes'][0] is not an object"),
        (lambda m: runtime(m).update(offset=65537), "[1]['offset'] is not a multiple of 65536"),
        (lambda m: runtime(m).update(packed_size=-9), "[1]['packed_size'] is not a number"),
        (lambda m: runtime(m).update(levels=[5]), "[1]['levels'][0] is not text"),
        (lambda m: m.update(entries=[]), "manifest['entries'] is not an object"),
        (lambda m: m["entries"].update(x=5), "manifest['entries']['x'] is not an object"),
        (lambda m: m["entries"].update({"\udc80\n": {}}), "['entries']['\\udc80\\n'] lacks"),
        (lambda m: m["entries"].update({"llamafile.json": m["head"]}), "it lists itself"),
    ],
)  # fmt: skip
def test_malformed_manifests(
    box: Box, change: Callable[[dict[str, Any]], object], what: str
) -> None:
    box.manifest = change
    only(box.write(), "llamafile.json", what)


def test_a_manifest_wrong_in_a_million_places_is_told_shortly(box: Box) -> None:
    box.manifest = lambda m: m.update(runtimes=[1] * 100_000)
    assert len(verify(box.write())) == 20


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"offset": 2**62}, "past the central directory's start"),
        ({"packed_size": BLOCK - 1}, "bytes long, not a multiple of 65536"),
        ({"packed_size": 0}, "bytes long, not a multiple of 65536"),
        ({"packed_size": 2**62}, "past the central directory's start"),
        ({"packed_size": BLOCK * 3}, "past the central directory's start"),
        ({"offset": BLOCK}, "it overlaps runtime linux-amd64"),
        ({"target": "linux-amd64"}, "there is another runtime for this target"),
        ({"size": 5}, "it unpacks to more than the 5 bytes"),
        ({"size": len(PROGRAM) + 1}, f"it unpacks to {len(PROGRAM)} bytes"),
        ({"sha256": "0" * 64}, "its program's SHA-256 is"),
        ({"packed_sha256": "0" * 64}, "damaged: its SHA-256 is"),
    ],
)
def test_runtimes_that_are_not_as_listed(box: Box, change: dict[str, Any], what: str) -> None:
    made: dict[str, Any] = {}
    del box.entries["phi3.gguf"]

    def manifest(content: dict[str, Any]) -> None:
        runtime(content).update(change)
        made.update(runtime(content))

    box.manifest = manifest
    problems = verify(box.write())
    where = f"runtime {made['target']} (offset {made['offset']})"
    assert any(p.where == where and what in p.what for p in problems), problems


def test_runtimes_of_two_members_or_with_bytes_behind(box: Box) -> None:
    whole = box.packed["linux-amd64"]
    more = gzip.compress(b"more", mtime=0)
    assert len(whole) == BLOCK
    box.packed["linux-amd64"] = whole + whole
    where = f"runtime linux-amd64 (offset {BLOCK})"
    only(box.write(), where, "other bytes follow its compressed data")
    box.packed["linux-amd64"] = whole + bytes(BLOCK)
    only(box.write(), where, "other bytes follow its compressed data")
    member = gzip.compress(PROGRAM, mtime=0)
    box.packed["linux-amd64"] = (member + more).ljust(BLOCK, b"\0")
    only(box.write(), where, "other bytes follow its compressed data")
    box.packed["linux-amd64"] = whole[:-BLOCK] + whole[-BLOCK:-8] + bytes(8)
    only(box.write(), where, "damaged: it cannot be unpacked")


def test_a_head_that_reaches_into_a_runtime(box: Box) -> None:
    box.manifest = lambda m: m["head"].update(size=BLOCK + 1)
    problems = verify(box.write())
    assert problems[0] == Problem(f"runtime linux-amd64 (offset {BLOCK})", "it overlaps head")


# A head that is a program

PE = pe.graft(tiny_pe(), b"exit 0\n")
ELF = tiny_elf()
COFF = 0x78
SECTIONS = COFF + 24 + 240


@pytest.mark.parametrize(
    ("head", "target"),
    [
        (PE, "windows-amd64"),
        (pe.graft(tiny_pe(0xAA64), b"exit 0\n"), "windows-arm64"),
        (ELF, "linux-amd64"),
        (tiny_elf(183), "linux-arm64"),
    ],
)
def test_sound_as_a_program(box: Box, head: bytes, target: str) -> None:
    box.head, box.outer = head, target
    box.packed.pop(target, None)
    assert verify(box.write()) == []
    assert work(box.path) > len(head)


def put(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


@pytest.mark.parametrize(
    ("head", "target", "what"),
    [
        (HEAD, "windows-amd64", "it is a script, not the program that the manifest lists"),
        (PE, "", "it is a PE for machine 0x8664, the manifest lists none"),
        (PE, "windows-arm64", "it is a PE for machine 0x8664, the manifest lists windows-arm64"),
        (ELF, "linux-arm64", "it is an ELF program for machine 62, the manifest lists linux-arm64"),
        (ELF, "windows-amd64", "machine 62"),
        (put(PE, 58, b"x"), "windows-amd64", "its first line is not the one"),
        (put(PE, 59, b"\0"), "windows-amd64", "its first line is not the one"),
        (tiny_pe(), "windows-amd64", "its first line is not the one"),
        (put(PE, 0x2000, b"\0"), "windows-amd64", "bytes 8192 to 16384 are not plain ASCII"),
        (put(PE, 0x3FFF, b"\xe9"), "windows-amd64", "bytes 8192 to 16384 are not plain ASCII"),
        (PE[:0x3000], "windows-amd64", "bytes 8192 to 16384 are not plain ASCII"),
        (PE[:0x90], "windows-amd64", "its headers are cut short"),
        (put(PE, 60, b"\xff" * 4), "windows-amd64", "its headers are cut short"),
        (put(PE, COFF, b"NE"), "windows-amd64", "no 64-bit PE"),
        (put(PE, COFF + 24, b"\x0b\1"), "windows-amd64", "no 64-bit PE"),
        (put(PE, COFF + 24 + 144, b"\1"), "windows-amd64", "a certificate table"),
        (put(PE, COFF + 24 + 60, b"\0\x22"), "windows-amd64", "claim 8704 bytes"),
        (put(PE, COFF + 24 + 60, b"\0\1"), "windows-amd64", "claim 256 bytes"),
        (put(PE, SECTIONS + 20, b"\0\4"), "windows-amd64", "its section at byte 1024 is not"),
        (put(PE, SECTIONS + 16, b"\0\0\1"), "windows-amd64", "its section at byte 16384 is not"),
        (PE + bytes(512), "windows-amd64", "its last section ends at byte"),
        (put(ELF, 4, b"\1"), "linux-amd64", "no 64-bit little-endian ELF"),
        (ELF[:40], "linux-amd64", "its headers are cut short"),
        (ELF[:-1], "linux-amd64", "its segment at byte 0 ends past the head"),
        (b"#!/bin/bash\n", "linux-amd64", "nor as a program does"),
    ],
)
def test_heads_that_are_no_such_program(box: Box, head: bytes, target: str, what: str) -> None:
    box.head, box.outer, box.packed = head, target, {}
    only(box.write(), "head", what)


@pytest.mark.parametrize("key", ["size", "packed_size", "sha256", "packed_sha256"])
def test_a_program_that_is_listed_otherwise_than_the_head(box: Box, key: str) -> None:
    box.head, box.outer = PE, "windows-amd64"
    box.manifest = lambda m: m["runtimes"][0].update({key: 5 if "size" in key else "0" * 64})
    where = "runtime windows-amd64 (offset 0)"
    only(box.write(), where, f"its {key} is not that of the head")


def test_a_bit_of_a_program_that_is_the_head(box: Box, rng: random.Random) -> None:
    box.head, box.outer = PE, "windows-amd64"
    box.write()
    for _ in range(30):
        at = rng.randrange(len(PE))
        patch(box.path, at)
        assert {problem.where for problem in verify(box.path)} == {"head"}
        patch(box.path, at)
    assert verify(box.path) == []


def test_entries_missing_and_extra(box: Box) -> None:
    box.manifest = lambda m: m["entries"].update(gone=m["entries"].pop("phi3.gguf"))
    problems = verify(box.write())
    assert problems == [
        Problem("gone", "missing: the manifest lists it, the central directory does not"),
        Problem(box.where("phi3.gguf"), "the manifest does not list it"),
    ]


def test_an_entry_of_another_size_than_listed(box: Box) -> None:
    box.manifest = lambda m: m["entries"][".args"].update(size=10)
    only(box.write(), box.where(".args"), "it holds 9 bytes, the manifest says 10")


# Anything at all


@pytest.mark.parametrize("zip64", [False, True])
def test_random_damage_never_raises_anything_else(
    box: Box, rng: random.Random, zip64: bool
) -> None:
    box.zip64 = zip64
    box.entries["phi3.gguf"] = WEIGHTS[:3000]
    del box.packed["macos-arm64"]
    content = box.write().read_bytes()
    lively = [  # where the structure is; what lies between is padding
        *range(100), *range(BLOCK, BLOCK + 12), *range(box.at["phi3.gguf header"], len(content)),
    ]  # fmt: skip
    told = refused = 0
    for _ in range(600):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.choice(lively)] = rng.choice((0, 1, 0x50, 0x7F, 0xFF))
        if rng.random() < 0.1:
            at = rng.choice(lively)
            del damaged[at : at + rng.randrange(1, 50)]
        box.path.write_bytes(damaged)
        try:
            problems = verify(box.path)
        except PyllamafileError as error:
            refused += "no ZIP archive" in error.message
        else:
            told += bool(problems)
            for problem in problems:
                assert problem.where.isprintable()
                assert problem.what.isprintable()
    assert told > 500
    assert refused < 30


def test_every_byte_that_counts_is_covered(box: Box, rng: random.Random) -> None:
    box.write()
    parts = {
        "head": (0, len(HEAD)),
        f"runtime linux-amd64 (offset {BLOCK})": (BLOCK, len(box.packed["linux-amd64"])),
        **{
            box.where(name): (box.at[name], len(plain))
            for name, plain in box.entries.items()
            if plain and name not in box.deflated
        },
    }
    for where, (start, size) in parts.items():
        for _ in range(20):
            offset = start + rng.randrange(size)
            patch(box.path, offset)
            assert {problem.where for problem in verify(box.path)} == {where}
            patch(box.path, offset)
    assert verify(box.path) == []


# Second programs, which can use a GPU

PREFIX = random.Random(3).randbytes(20_000)
SECOND = PROGRAM + PREFIX
GPU = "gpu/linux-amd64.zst"


@pytest.fixture
def gpus(box: Box) -> Box:
    """A file with a second program, and the shaders."""
    box.entries |= {GPU: frame(SECOND), "gpu/shaders.zst": frame(b"spirv\0\0\1")}
    box.manifest = lambda manifest: manifest["runtimes"][0].update(
        gpu={"size": len(SECOND), "sha256": sha256(SECOND)}
    )
    return box


def test_sound_with_a_second_program(gpus: Box) -> None:
    assert verify(gpus.write()) == []


@pytest.mark.parametrize("name", [GPU, "gpu/shaders.zst"])
def test_something_for_gpus_is_missing(gpus: Box, name: str) -> None:
    del gpus.entries[name]
    only(gpus.write(), name, "missing: a program in the manifest takes it to use a GPU")


@pytest.mark.parametrize("name", [GPU, "gpu/shaders.zst"])
@pytest.mark.parametrize(
    "content", [b"", b"\x28\xb5\x2f\xfd", b"x" * 99, frame(SECOND)[:4] + b"\0" + bytes(20)]
)
def test_something_for_gpus_is_no_frame(gpus: Box, name: str, content: bytes) -> None:
    gpus.entries[name] = content
    path = gpus.write()
    what = "it is no frame of Zstandard that says how much it holds"
    assert [(p.where, p.what) for p in verify(path, contents=False)] == [(gpus.where(name), what)]


def test_a_second_program_that_is_compressed_once_more(gpus: Box) -> None:
    gpus.deflated.add(GPU)
    path = gpus.write()
    only(path, gpus.where(GPU), "it is no frame of Zstandard")


@pytest.mark.parametrize(
    ("gpu", "what"),
    [
        ({"size": len(SECOND) + 1, "sha256": sha256(SECOND)}, "the manifest says 140001"),
        ({"size": len(SECOND), "sha256": "0" * 64}, "the manifest says 00000"),
    ],
)
def test_a_second_program_that_is_not_as_listed(gpus: Box, gpu: dict[str, Any], what: str) -> None:
    package("zstandard", "runtimes")
    gpus.manifest = lambda manifest: manifest["runtimes"][0].update(gpu=gpu)
    path = gpus.write()
    only(path, gpus.where(GPU), what)


def test_the_same_runtime_a_hundred_times_is_unpacked_once(
    gpus: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a second program of each, a small file could otherwise take hours."""
    pytest.importorskip("zstandard")
    unpacked: list[str] = []
    program = verifying._program

    def counted(file: BinaryIO, runtime: Mapping[str, Any]) -> bytes:
        unpacked.append(runtime["target"])
        return program(file, runtime)

    monkeypatch.setattr(verifying, "_program", counted)
    targets = [f"linux-x{number:02}" for number in range(99)]
    gpus.entries |= {f"gpu/{target}.zst": frame(SECOND) for target in targets}
    listed = gpus.manifest
    assert listed is not None

    def of_all(manifest: dict[str, Any]) -> None:
        listed(manifest)
        only = manifest["runtimes"][0]
        manifest["runtimes"] += [only | {"target": target} for target in targets]

    gpus.manifest = of_all
    problems = verify(gpus.write())
    assert sum("overlaps" in problem.what for problem in problems) == 99, problems[:5]
    assert unpacked == ["linux-amd64"]


@pytest.mark.parametrize("gpu", [True, {}, {"size": 1}, {"size": -1, "sha256": "0" * 64}])
def test_a_second_program_of_which_nothing_is_said(gpus: Box, gpu: object) -> None:
    gpus.manifest = lambda manifest: manifest["runtimes"][0].update(gpu=gpu)
    only(gpus.write(), "llamafile.json", "['gpu']")


@pytest.mark.parametrize("made", ["packed", "script", "elf"])
def test_a_second_program_unpacks_with_the_first(box: Box, made: str) -> None:
    """And with no other: the first may be a gzip member, a Windows program, or an ELF one."""
    zstandard = package("zstandard", "runtimes")
    target, prefix, box.packed = "linux-amd64", PROGRAM, {"linux-amd64": pack(PROGRAM)}
    if made == "script":
        plain, target = tiny_pe(debug_data=False), "windows-amd64"
        box.head, prefix = pe.graft(plain, b"exit 0\n"), plain[0x400:]
    elif made == "elf":
        box.head = prefix = tiny_elf()
    if made != "packed":
        box.packed, box.outer = {}, target
    second = prefix[-100:] + PREFIX
    facts = {"size": len(second), "sha256": sha256(second)}
    box.manifest = lambda manifest: manifest["runtimes"][0].update(gpu=facts)
    name = f"gpu/{target}.zst"

    def frame_with(prefix: bytes) -> bytes:
        known = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdCompressor(dict_data=known).compress(prefix[-100:] + PREFIX)

    box.entries |= {name: frame_with(prefix), "gpu/shaders.zst": frame(b"spirv\0\0\1")}
    assert verify(box.write()) == []
    box.entries[name] = frame_with(prefix[:-100] + random.Random(4).randbytes(100))
    only(box.write(), box.where(name), "its program's SHA-256 is")
