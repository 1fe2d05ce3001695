"""What is in a file or a folder, and whether it is right: by readers of others, where there are."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import lief
from running import need

import pyllamafile
from pyllamafile.launcher import BLOCK, pe

lief.logging.disable()

# Programs that check a zip: name, Debian package, options.
CHECKERS = [
    ("unzip", "unzip", ["-t"]),
    ("7z", "p7zip-full", ["t", "-tzip"]),  # else it takes the runtime for the archive
    ("bsdtar", "libarchive-tools", ["-tvf"]),
    ("busybox", "busybox", ["unzip", "-t"]),
]


def names(folder: Path = Path()) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder; None is what has no bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def contents(path: Path | str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


def manifest(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("llamafile.json"))


def runs(path: Path) -> bool:
    """Whether the file starts, and a reader finds weights where the directory says."""
    done = subprocess.run(["sh", f"./{path}", "-p", "x"], capture_output=True, text=True)
    return (done.returncode, done.stdout) == (0, f"<--llamafile>\n<./{path}>\n<-p>\n<x>\n")


def check_whole(path: Path, model: Path) -> None:
    """It is sound for us and for others, and the weights can be mapped where they lie."""
    assert pyllamafile.verify(path) == []
    for program, package, options in CHECKERS:
        done = subprocess.run([need(program, package), *options, path], capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert b"warning" not in (done.stdout + done.stderr).lower()
    assert pyllamafile.inspect(path).entries[0].offset % BLOCK == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("m.gguf") == model.read_bytes()


def loaded(binary: lief.PE.Binary) -> bytes:
    """What a loader makes of the sections: every address that the file gives content to."""
    image = bytearray(binary.optional_header.sizeof_image)
    for section in binary.sections:
        content = bytes(section.content)[: section.virtual_size]
        image[section.virtual_address : section.virtual_address + len(content)] = content
    return bytes(image)


def facts(binary: lief.PE.Binary) -> dict[str, object]:
    """Everything in the headers that must not change."""
    header, optional = binary.header, binary.optional_header
    return {
        "machine": header.machine,
        "characteristics": header.characteristics,
        "entry": optional.addressof_entrypoint,
        "base": optional.imagebase,
        "image": optional.sizeof_image,
        "headers": optional.sizeof_headers,
        "alignments": (optional.section_alignment, optional.file_alignment),
        "subsystem": optional.subsystem,
        "stack": (optional.sizeof_stack_reserve, optional.sizeof_stack_commit),
        "dll": optional.dll_characteristics,
        "directories": [(d.type, d.rva, d.size) for d in binary.data_directories],
        "sections": [
            (s.name, s.virtual_address, s.virtual_size, s.size, s.characteristics)
            for s in binary.sections
        ],
    }


def compare(before: bytes, after: bytes) -> None:
    """lief finds the same program, only farther back in the file."""
    old, new = lief.PE.parse(before), lief.PE.parse(after)
    assert facts(old) == facts(new)
    image, other = loaded(old), loaded(new)
    assert any(image)
    assert len(image) == len(other)
    debug = old.data_directory(lief.PE.DataDirectory.TYPES.DEBUG_DIR).rva
    pointers = {debug + 28 * n + 24 + byte for n in range(len(old.debug)) for byte in range(4)}
    assert {at for at in range(len(image)) if image[at] != other[at]} <= pointers
    moved = {n.offset - o.offset for o, n in zip(old.sections, new.sections, strict=True) if o.size}
    assert moved == {len(after) - len(before)} == {pe.shift(before)}
    assert [s.offset for s in old.sections if not s.size] == [
        s.offset for s in new.sections if not s.size
    ]
    assert new.sections[0].offset == 0x4000
    assert new.optional_header.checksum == 0
    assert not new.overlay
    for one, other in zip(old.debug, new.debug, strict=True):
        assert (one.type, one.addressof_rawdata, one.sizeof_data) == (
            other.type, other.addressof_rawdata, other.sizeof_data,
        )  # fmt: skip
        assert bytes(one.payload) == bytes(other.payload)
        if one.pointerto_rawdata:
            assert other.pointerto_rawdata == one.pointerto_rawdata + pe.shift(before)
