"""The surgery on Windows programs, judged by lief and, for real ones, by Wine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lief
import pytest
from fixtures import grey_png, tiny_elf, tiny_pe
from judging import compare, facts, loaded
from running import need

from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import BLOCK, HeadProgram, Program, head, pack, pe, rsrc
from pyllamafile.launcher.rsrc import Look
from pyllamafile.runtimes import Runtime
from pyllamafile.targets import host

lief.logging.disable()

SCRIPT = b'echo "$0: $1"\nexit 3\n'


@pytest.mark.parametrize("machine", [0x8664, 0xAA64])
def test_the_program_is_the_same(machine):
    program = tiny_pe(machine)
    grafted = pe.graft(program, SCRIPT)
    compare(program, grafted)
    old, new = lief.PE.parse(program), lief.PE.parse(grafted)
    assert old.optional_header.checksum == 0xC0FFEE  # it had one to lose
    (debug,) = new.debug
    assert debug.filename == "x.pdb"


def test_what_a_shell_sees():
    grafted = pe.graft(tiny_pe(), SCRIPT)
    assert grafted.index(b"\n") == 59
    assert grafted[:60].isascii()
    assert b"\0" not in grafted[:60]
    assert not grafted.startswith(b"MZqFpD")  # what an installed APE loader claims
    assert grafted[0x2000:0x4000] == SCRIPT.ljust(0x2000, b"\n")


def test_the_headers_stay_where_they_are():
    program = tiny_pe()
    grafted = pe.graft(program, SCRIPT)
    changed = {at for at in range(60, 0x400) if program[at] != grafted[at]}
    coff = struct.unpack_from("<I", program, 60)[0]
    table = coff + 24 + 240
    pointers = {
        at
        for section in (0, 1, 3)
        for at in range(table + section * 40 + 20, 4 + table + section * 40 + 20)
    }
    assert changed <= pointers | set(range(coff + 24 + 64, coff + 24 + 68))


def test_debug_data_that_is_not_in_the_file():
    program = bytearray(tiny_pe())
    struct.pack_into("<I", program, 0x600 + 24, 0)  # as of type REPRO
    grafted = pe.graft(bytes(program), SCRIPT)
    assert struct.unpack_from("<I", grafted, 0x4200 + 24) == (0,)


def change(at: int, value: int) -> Callable[[bytes], bytes]:
    def changed(program: bytes) -> bytes:
        out = bytearray(program)
        struct.pack_into("<I", out, at, value)
        return bytes(out)

    return changed


OPTIONAL = 0x78 + 24
TABLE = OPTIONAL + 240


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: b"", "cut short"),
        (lambda p: p[:0x90], "cut short"),
        (lambda p: p[:TABLE], "cut short"),
        (lambda p: p[:-1], "it is cut short"),
        (lambda p: p + b"\0", "something follows its last section"),
        (lambda p: b"ZM" + p[2:], "no 64-bit PE"),
        (lambda p: tiny_elf().ljust(0x400, b"\0"), "no 64-bit PE"),
        (lambda p: b"#!/bin/sh\n".ljust(0x400), "cut short"),
        (change(OPTIONAL, 0x10B), "no 64-bit PE"),  # PE32
        (change(0x3C, 0xFFFFFFFF), "cut short"),
        (lambda p: tiny_pe(certificate=0x1000), "certificate"),
        (lambda p: tiny_pe(symbols=0xC00), "symbols: strip it"),
        (change(OPTIONAL + 60, 0x2200), "headers reach beyond byte 8192"),
        (change(OPTIONAL + 60, 0x200), "longer than they say"),
        (change(OPTIONAL + 60, 0x600), "longer than they say"),
        (change(OPTIONAL + 36, 0), "not aligned"),
        (change(OPTIONAL + 36, 0x8000), "not aligned"),
        (change(TABLE + 20, 0x410), "not aligned"),
        (change(OPTIONAL + 112 + 6 * 8, 0x9000), "debug directory is not in the file"),
        (change(0x78 + 6, 0), "no sections"),
    ],
)  # fmt: skip
def test_programs_that_cannot_be_changed(damage, reason):
    with pytest.raises(PyllamafileError, match=reason) as caught:
        pe.graft(damage(tiny_pe()), SCRIPT)
    assert "\n" not in caught.value.message
    with pytest.raises(PyllamafileError, match=reason):
        pe.shift(damage(tiny_pe()))


def test_headers_that_begin_within_the_first_line():
    program = bytearray(tiny_pe())
    program[16 : 16 + 400] = program[0x78 : 0x78 + 400]
    struct.pack_into("<I", program, 60, 16)
    with pytest.raises(PyllamafileError, match="not a Windows program"):
        pe.graft(bytes(program), SCRIPT)


def test_damaged_headers_raise_nothing_else():
    program = tiny_pe()
    for at in range(0x3C, 0x400):
        for value in (0, 0xFF):
            damaged = bytearray(program)
            damaged[at] = value
            try:
                grafted = pe.graft(bytes(damaged), SCRIPT)
            except PyllamafileError:
                continue
            assert grafted[0x2000:0x4000].startswith(SCRIPT)


# Another icon, another name

LOOK = Look(
    "Ada \u2014 \u6771\u4eac \U0001f999", (grey_png(300), 300, 48), "1.22.3", "t-u", "engine"
)
MANIFEST = b"<?xml version='1.0'?><assembly xmlns='urn:schemas-microsoft-com:asm.v1'/>"
LINKED = {
    (3, 1, 1033): b"\x28" + bytes(39),
    (3, 2, 1033): b"\x28" + bytes(40),
    (14, 1, 1033): struct.pack("<3H", 0, 1, 0),
    (24, 1, 1033): MANIFEST,
    (24, 2, 1031): b"German",
}
RSRC = 0xA000  # where that is in memory


def with_resources(section: bytes | None = None, program: bytes = b"") -> bytes:
    """A program whose linker has put in what is in `LINKED`."""
    section = rsrc.written(LINKED, RSRC) if section is None else section
    out = bytearray(program or tiny_pe())
    size = -(-len(section) // 0x200) * 0x200
    struct.pack_into("<H", out, 0x78 + 6, 5)
    struct.pack_into("<I", out, OPTIONAL + 56, RSRC + 0x1000)
    struct.pack_into("<I", out, OPTIONAL + 64, 0)  # CheckSum
    struct.pack_into("<2I", out, OPTIONAL + 112 + 16, RSRC, len(section))
    struct.pack_into(
        "<8s6I2HI", out, TABLE + 4 * 40, b".rsrc", len(section), RSRC, size, len(out), 0, 0, 0, 0,
        0x40000040,
    )  # fmt: skip
    return bytes(out) + section.ljust(size, b"\0")


def texts(program: bytes) -> dict[str, str]:
    binary = lief.PE.parse(program)
    (version,) = binary.resources_manager.version
    info = version.file_info
    assert (info.signature, info.struct_version) == (0xFEEF04BD, 0x10000)
    assert info.file_type == 1
    assert [each.values for each in version.var_file_info.vars] == [[0x04B00409]]
    (table,) = version.string_file_info.children
    return {entry.key: entry.value for entry in table.entries}


@pytest.mark.parametrize("machine", [0x8664, 0xAA64])
def test_a_look_is_one_section_more(machine):
    program = with_resources(program=tiny_pe(machine))
    made = pe.dressed(program, LOOK)
    old, new = lief.PE.parse(program), lief.PE.parse(made)
    before, after = facts(old), facts(new)
    assert after["sections"][:-1] == before["sections"]
    *_, last = new.sections
    assert (last.name, last.virtual_address) == (".persona", old.optional_header.sizeof_image)
    assert last.offset + last.size == len(made)
    assert new.optional_header.sizeof_image == 0xC000
    changed = {"sections", "directories", "image"}
    assert {key: value for key, value in before.items() if key not in changed} == {
        key: value for key, value in after.items() if key not in changed
    }
    grown = (
        new.optional_header.sizeof_initialized_data - old.optional_header.sizeof_initialized_data
    )
    assert grown == last.size
    assert loaded(new).startswith(loaded(old))  # all that was loaded is where it was
    compare(made, pe.graft(made, SCRIPT))


def test_what_windows_shows_of_it():
    made = pe.dressed(with_resources(), LOOK)
    found = lief.PE.parse(made).resources_manager
    assert found.manifest.encode() == MANIFEST
    (icon,) = found.icons
    # lief makes a file of it: one picture, at the end
    assert bytes(icon.serialize())[22:] == grey_png(300)
    assert (icon.width, icon.height, icon.bit_count, icon.planes) == (0, 48, 32, 1)
    assert texts(made) == {
        "Comments": "engine",
        "CompanyName": "pyllamafile",
        "FileDescription": LOOK.name,
        "FileVersion": "1.22.3",
        "InternalName": "t-u",
        "LegalCopyright": "Apache-2.0 and others, see --licenses",
        "OriginalFilename": "llamafile.exe",
        "ProductName": LOOK.name,
        "ProductVersion": "1.22.3",
    }
    assert rsrc.read(*ours(made))[24, 2, 1031] == b"German"


def ours(program: bytes) -> tuple[bytes, int]:
    binary = lief.PE.parse(program)
    *_, last = binary.sections
    return bytes(last.content), last.virtual_address


@pytest.mark.parametrize(
    ("look", "kept"),
    [(replace(LOOK, name=None), {24}), (replace(LOOK, icon=None), {3, 14, 24})],
    ids=["an icon alone", "a name alone"],
)
def test_what_is_not_said_stays_the_programs_own(look, kept):
    made = rsrc.read(*ours(pe.dressed(with_resources(), look)))
    for key, data in LINKED.items():
        assert (made.get(key) == data) == (key[0] in kept)
    assert {key[0] for key in made} - kept == ({3, 14} if look.icon else {16})


@pytest.mark.parametrize("grafted", [False, True])
@pytest.mark.parametrize("resources", [False, True])
def test_a_look_comes_off_again(resources, grafted):
    program = with_resources() if resources else change(OPTIONAL + 64, 0)(tiny_pe())
    program = pe.graft(program, SCRIPT) if grafted else program
    made = pe.dressed(program, LOOK)
    assert made != program
    assert pe.dressed(made, None) == program
    other = replace(LOOK, name="Eve", icon=None)
    assert pe.dressed(pe.dressed(program, other), LOOK) == made
    assert pe.dressed(program, None) == program


def test_the_longest_name():
    """The fields for lengths have 16 bits."""
    name = "\U0001f999" * 4096
    made = texts(pe.dressed(tiny_pe(), replace(LOOK, name=name, engine="\ud800" * 4096)))
    assert (made["FileDescription"], made["ProductName"]) == (name, name)
    assert made["Comments"] == "?" * 200


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1.22.3", (1, 22, 3, 0)),
        ("0.1.0.dev3", (0, 1, 0, 3)),
        ("99999999999.1", (0xFFFF, 1, 0, 0)),
        ("1.2.3.4.5.6", (1, 2, 3, 4)),
        ("x", (0, 0, 0, 0)),
    ],
)
def test_any_version(version, numbers):
    made = pe.dressed(tiny_pe(), replace(LOOK, version=version))
    assert texts(made)["FileVersion"] == texts(made)["ProductVersion"] == version
    binary = lief.PE.parse(made)
    (shown,) = binary.resources_manager.version
    info = shown.file_info
    major, minor, patch, build = numbers
    assert (info.file_version_ms, info.file_version_ls) == (
        major << 16 | minor,
        patch << 16 | build,
    )
    assert info.product_version_ms == info.file_version_ms
    assert info.product_version_ls == info.file_version_ls


def loop() -> bytes:
    """A directory of types of which each leads to itself."""
    return struct.pack("<2I4H", 0, 0, 0, 0, 0, 60_000) + struct.pack("<2I", 3, 1 << 31) * 60_000


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (with_resources(struct.pack("<2I4H2I", 0, 0, 0, 0, 0, 1, 3, 1 << 31 | 4096)), "be read"),
        (with_resources(rsrc.written(LINKED, RSRC + 64)), "resources can't be read"),
        (with_resources(rsrc.written(LINKED, RSRC - 4096)), "resources can't be read"),
        (with_resources(loop()), "resources can't be read"),
        (with_resources(struct.pack("<2I4H2I", 0, 0, 0, 0, 1, 0, 1 << 31, 24)), "can't be read"),
        (with_resources(struct.pack("<2I4H2I", 0, 0, 0, 0, 0, 1, 3, 24)), "can't be read"),
        (change(OPTIONAL + 112 + 16, 0x8000)(with_resources()), "resources are somewhere else"),
        (change(OPTIONAL + 112 + 16, 0x8000)(tiny_pe()), "resources are somewhere else"),
        (change(OPTIONAL + 108, 2)(tiny_pe()), "resources are somewhere else"),
        (change(OPTIONAL + 32, 0)(tiny_pe()), "not aligned"),
        (change(OPTIONAL + 56, 0xFFFFF000)(tiny_pe()), "resources can't be read"),
        (change(TABLE + 3 * 40 + 16, 0x3FF)(tiny_pe())[:-1], "last section is not filled up"),
        (change(TABLE + 4 * 40, 1)(tiny_pe()), "no room for another section"),
        (tiny_elf().ljust(0x400, b"\0"), "no 64-bit PE"),
    ],
)
def test_programs_that_cannot_look_otherwise(program, reason):
    with pytest.raises(PyllamafileError, match=reason) as caught:
        pe.dressed(program, LOOK)
    assert "\n" not in caught.value.message


def test_damaged_headers_and_resources_raise_nothing_else():
    plain = with_resources()
    made = pe.dressed(plain, LOOK)
    for program, places in ((plain, range(0x1000, len(plain))), (made, range(0x3C, 0x400))):
        for at in places:
            for value in (0, 0xFF):
                damaged = bytearray(program)
                damaged[at] = value
                for look in (LOOK, None):
                    with contextlib.suppress(PyllamafileError):
                        pe.dressed(bytes(damaged), look)


# Real programs. The first compilation for a target takes zig a minute or two.

SOURCE = r"""
#include <stdio.h>
#include <windows.h>
#include <shellapi.h>

__thread int per_thread = 40;

static void say(const wchar_t *text) {
    char line[4000];
    WideCharToMultiByte(CP_UTF8, 0, text, -1, line, sizeof line, NULL, NULL);
    printf("%s\n", line);
}

/* The last bytes of the very file that runs, what it was given, and an exit code. */
int main(void) {
    wchar_t path[1000], **words;
    char end[5] = "", line[100] = "";
    int count;
    GetModuleFileNameW(NULL, path, 1000);
    say(wcsrchr(path, L'\\') + 1);
    FILE *file = _wfopen(path, L"rb");
    fseek(file, -4, SEEK_END);
    fread(end, 1, 4, file);
    printf("%s\n%s", end, fgets(line, sizeof line, stdin) ? line : "no input\n");
    words = CommandLineToArgvW(GetCommandLineW(), &count);
    for (int i = 1; i < count; i++) say(words[i]);
    return per_thread + 2;
}
"""
ZIG = {"windows-amd64": "x86_64-windows-gnu", "windows-arm64": "aarch64-windows-gnu"}


@functools.cache
def compiled(target: str, folder: Path) -> bytes:
    source, program = folder / "program.c", folder / f"{target}.exe"
    source.write_text(SOURCE)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", ZIG[target], "-Os", "-s"]
    subprocess.run([*zig, source, "-o", program, "-lshell32"], check=True)
    return program.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.mark.native
@pytest.mark.parametrize("target", ZIG)
def test_a_real_program_is_the_same(folder, target):
    compare(compiled(target, folder), pe.graft(compiled(target, folder), SCRIPT))


# What Windows itself finds in a program: name and version, icons, and the dot in their middle.
READER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <windows.h>
#include <shellapi.h>

static void icon(const char *size, HICON made) {
    ICONINFO info;
    BITMAP bitmap;
    if (made == NULL || !GetIconInfo(made, &info)) {
        printf("%s=none\n", size);
        return;
    }
    GetObjectW(info.hbmColor, sizeof bitmap, &bitmap);
    HDC screen = CreateCompatibleDC(NULL);
    SelectObject(screen, info.hbmColor);
    printf("%s=%d %06lx\n", size, (int) bitmap.bmWidth,
           (unsigned long) GetPixel(screen, bitmap.bmWidth / 2, bitmap.bmHeight / 2));
}

int wmain(int count, wchar_t **words) {
    static const wchar_t *names[] = {L"FileDescription", L"ProductName", L"FileVersion",
                                     L"OriginalFilename"};
    DWORD none;
    UINT length;
    DWORD size = GetFileVersionInfoSizeW(words[1], &none);
    void *version = malloc(size + 1);
    if (!size || !GetFileVersionInfoW(words[1], 0, size, version)) return 1;
    for (int i = 0; i < 4; i++) {
        wchar_t key[100], *text;
        static char line[20000];
        swprintf(key, 100, L"\\StringFileInfo\\040904B0\\%ls", names[i]);
        if (!VerQueryValueW(version, key, (void **) &text, &length)) return 2;
        WideCharToMultiByte(CP_UTF8, 0, text, -1, line, sizeof line, NULL, NULL);
        printf("%ls=%s\n", names[i], line);
    }
    VS_FIXEDFILEINFO *fixed;
    if (!VerQueryValueW(version, L"\\", (void **) &fixed, &length)) return 3;
    printf("number=%lx %lx\n", (unsigned long) fixed->dwFileVersionMS,
           (unsigned long) fixed->dwFileVersionLS);
    HICON large = NULL, small = NULL;
    printf("icons=%d\n", (int) (INT_PTR) ExtractIconExW(words[1], -1, NULL, NULL, 0));
    ExtractIconExW(words[1], 0, &large, &small, 1);
    icon("large", large);
    icon("small", small);
    return 0;
}
"""


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory, wine: dict[str, str]) -> Callable[..., dict]:
    """What Wine's Windows shows of a file."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.c").write_text(READER)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", ZIG["windows-amd64"], "-municode"]
    libraries = ["-lversion", "-lshell32", "-lgdi32"]
    subprocess.run([*zig, "-O1", "reader.c", "-o", "r.exe", *libraries], check=True, cwd=folder)

    def shown(path: Path) -> dict[str, str]:
        done = subprocess.run(["wine", folder / "r.exe", path], env=wine, capture_output=True)
        assert done.returncode == 0, done
        lines = done.stdout.decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    return shown


@pytest.mark.native
def test_what_wine_shows_of_a_program_and_that_it_runs(folder, shown, wine, tmp_path):
    """Of one that has no resources; scaled from 300 by 300."""
    program = compiled("windows-amd64", folder)
    path = tmp_path / "ada.exe"
    look = replace(LOOK, icon=(grey_png(300), 300, 300))
    path.write_bytes(pe.graft(pe.dressed(program, look), SCRIPT))
    assert shown(path) == {
        "FileDescription": LOOK.name,
        "ProductName": LOOK.name,
        "FileVersion": "1.22.3",
        "OriginalFilename": "llamafile.exe",
        "number": "10016 30000",
        "icons": "1",
        "large": "32 808080",
        "small": "16 808080",
    }
    done = subprocess.run(["wine", path, "a b"], env=wine, input=b"in\n", capture_output=True)
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (42, [b"in", b"a b"])


SHELL_PROGRAM = b"#!/bin/sh\n[ $1 = --probe ] || printf '<%s>' \"$@\"\nexit\n"


def stored(target: str, packed: bytes = b"", program: bytes = b"") -> Runtime:
    digest = hashlib.sha256(program).hexdigest()
    return Runtime(target, Path(target), len(packed), "", len(program), digest, "", (), "")


@pytest.fixture(scope="module")
def both(folder: Path) -> Path:
    """A program for Windows that is a shell script for the system that this runs on."""
    program, packed = compiled("windows-amd64", folder), pack(SHELL_PROGRAM)
    here = host()
    assert here
    start = -(-(len(program) + pe.shift(program)) // BLOCK) * BLOCK
    behind = Program(stored(here.name, packed, SHELL_PROGRAM), start)
    begin = head([behind], HeadProgram(stored("windows-amd64"), program))
    path = folder / "both.llamafile"
    path.write_bytes(begin.ljust(start, b"\0") + packed + b"last")
    path.chmod(0o755)
    return path


@pytest.mark.native
@pytest.mark.parametrize("name", ["both.llamafile", "both.exe", "naïve 東京.llamafile", "both"])
def test_it_runs_under_wine_in_place(both, wine, tmp_path, name):
    path = Path(shutil.copy(both, tmp_path / name))
    given = ["two words", 'say "hi"', "C:\\dir\\", "", "ä 東京"]
    done = subprocess.run(
        ["wine", path, *given], env=wine, input="typed\n", capture_output=True, text=True
    )
    assert done.returncode == 42
    assert done.stdout.splitlines() == [name, "last", "typed", *given]


@pytest.mark.native
@pytest.mark.parametrize(
    "shell", ["sh", "bash", "dash", "zsh", "ksh93", "mksh", "yash", "posh", "busybox"]
)
def test_the_same_file_runs_in_shells(both, tmp_path, shell):
    need(shell, "ksh93u+m" if shell == "ksh93" else shell)
    command = [shell, "sh"] if shell == "busybox" else [shell]
    env = {"PATH": os.environ["PATH"], "PYLLAMAFILE_CACHE": str(tmp_path)}
    done = subprocess.run([*command, both, "two words", ""], env=env, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"<--llamafile><{both}><two words><>"
