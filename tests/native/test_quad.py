"""Long doubles of OpenBSD's arm64 runtime, on Linux under qemu, against Python's whole numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from running import need

from pyllamafile.native.building import driver, tools

FRACTION, MOST, LEAST = 112, 0x7FFF, -16494  # IEEE 754 binary128; the least is an exponent of 2
SIGN, INFINITE = 1 << 127, MOST << FRACTION


def taken_apart(bits: int) -> tuple[int, int]:
    """A number without its sign, as a whole number and an exponent of 2."""
    exponent, fraction = bits >> FRACTION & MOST, bits & (1 << FRACTION) - 1
    return (fraction | 1 << FRACTION, LEAST + exponent - 1) if exponent else (fraction, LEAST)


def rounded(whole: int, exponent: int) -> int:
    """What is nearest to ``whole * 2**exponent``, of two the even one."""
    place = max(exponent + whole.bit_length() - 1 - FRACTION, LEAST)
    lost = place - exponent
    if lost > 0:
        whole, rest = divmod(whole, 1 << lost)
        whole += 2 * rest > 1 << lost or (2 * rest == 1 << lost and whole & 1)
    else:
        whole <<= -lost
    return min((place - LEAST << FRACTION) + whole, INFINITE) if whole else 0


def product(a: int, b: int) -> int | None:
    """None where it is no number."""
    sign, (x, y) = (a ^ b) & SIGN, (a & ~SIGN, b & ~SIGN)
    if max(x, y) > INFINITE or {x, y} == {0, INFINITE}:
        return None
    if INFINITE in (x, y):
        return sign | INFINITE
    (p, e), (q, f) = taken_apart(x), taken_apart(y)
    return sign | rounded(p * q, e + f)


def below(a: int, b: int) -> bool:
    x, y = (-(bits & ~SIGN) if bits & SIGN else bits for bits in (a, b))
    return max(abs(x), abs(y)) <= INFINITE and x < y


@pytest.mark.native
def test_long_doubles(tmp_path: Path) -> None:
    qemu = need("qemu-aarch64-static", "qemu-user-static")
    program, source = tmp_path / "program", Path(__file__).with_name("quad.cpp")
    command = [tools.package("ziglang") / "zig", "c++", "-target", "aarch64-linux-musl", "-O2"]
    command += ["-std=c++17", f"-I{driver.RUNTIME}", source, "-o", program]
    subprocess.run(command, check=True, env=tools.environment())
    done = subprocess.run([qemu, program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 30000
    for *words, order, whole in rows:
        a, b, times, floated = (int(word, 16) for word in words)
        expected = product(a, b)
        is_number = times & ~SIGN <= INFINITE
        assert (times if is_number else None) == expected, words
        assert (int(order) < 0) == below(a, b), words
        assert floated == (SIGN if int(whole) < 0 else 0) | rounded(abs(int(whole)), 0), whole
