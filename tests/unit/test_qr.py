"""QR codes on the terminal, read by another program: zbar."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from running import need

from pyllamafile.native.building.driver import RUNTIME

URL = "http://192.168.100.200:8080/#key=aZ09_-" * 5
DOT = 6  # pixels


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clang = need("clang++", "clang")
    path = tmp_path_factory.mktemp("qr") / "qr"
    sources = [Path(__file__).with_name("qr.cpp"), RUNTIME / "web" / "qr.cpp"]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{RUNTIME / 'web'}"]
    subprocess.run([clang, *flags, *sources, "-o", path], check=True)
    return path


def drawn(program: Path, text: str) -> str:
    return subprocess.run([program, text], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("length", [1, 17, 18, 32, 33, 53, 54, 78, 79, 106])  # ends of versions
def test_a_phone_reads_it(program: Path, length: int, tmp_path: Path) -> None:
    zbarimg = need("zbarimg", "zbar-tools")
    text = URL[:length]
    rows = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", drawn(program, text)).splitlines():
        for half in ("▀█", "▄█"):
            rows.append(b"".join((b"\0" if c in half else b"\xff") * DOT for c in line) * DOT)
    width = len(rows[0]) // DOT
    image = tmp_path / "code.pgm"
    image.write_bytes(b"P5 %d %d 255\n" % (width, len(rows) * DOT) + b"".join(rows))
    done = subprocess.run([zbarimg, "-q", "--raw", image], capture_output=True, text=True)
    assert done.stdout == f"{text}\n"


def test_what_is_too_long_is_not_drawn(program: Path) -> None:
    assert drawn(program, URL[:107]) == ""
