"""The surgery on Windows programs, judged by lief and, for real ones, by Wine."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lief
import pytest
from fixtures import tiny_elf, tiny_pe
from judging import compare
from running import need

from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import BLOCK, HeadProgram, Program, head, pack, pe
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
