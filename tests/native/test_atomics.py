"""The functions for atomics that OpenBSD's arm64 runtime brings along, on Linux under qemu."""

from __future__ import annotations

import subprocess
from pathlib import Path

import lief
import pytest
from running import need

from pyllamafile.native.building import driver, tools

SOURCES = (Path(__file__).with_name("atomics.cpp"), driver.RUNTIME / "system" / "atomics.cpp")


@pytest.mark.native
def test_atomics(tmp_path: Path) -> None:
    qemu = need("qemu-aarch64-static", "qemu-user-static")
    compiler = [tools.package("ziglang") / "zig", "c++", "-target", "aarch64-linux-musl", "-O2"]
    objects = [tmp_path / name for name in ("calling.o", "called.o")]
    for source, output in zip(SOURCES, objects, strict=True):
        command = [*compiler, "-moutline-atomics", "-std=c++17", "-c", source, "-o", output]
        subprocess.run(command, check=True, env=tools.environment())
    calling, called = (lief.ELF.parse(str(path)) for path in objects)
    assert calling is not None
    assert called is not None
    names = {str(symbol.name) for symbol in calling.symbols if symbol.shndx == 0}
    names = {name for name in names if name.startswith("__aarch64_")}
    assert {"__aarch64_cas1_acq_rel", "__aarch64_ldadd8_relax"} < names
    # They are there, and so come before those of zig's library.
    assert names <= {str(symbol.name) for symbol in called.symbols if symbol.shndx != 0}
    program = tmp_path / "program"
    subprocess.run([*compiler, *objects, "-o", program], check=True, env=tools.environment())
    done = subprocess.run([qemu, program], capture_output=True, text=True, timeout=100)
    assert done.stdout == "".join(f"{size} bytes: 0 wrong\n" for size in (1, 2, 4, 8))
    assert done.returncode == 0
