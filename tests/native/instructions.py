"""Which instructions a linked program has, and which of its parts they are in.

An independent look at what the levels of the kernels promise: binutils' objdump reads the
finished program, the linker's own map says which object each address came from.
"""

from __future__ import annotations

import bisect
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What each level of amd64 adds to the one below, as AT&T syntax spells it. v2 goes by name; of
# v3 and above, every vector instruction begins with v, and the registers tell the rest.
_V2 = re.compile(
    r"(p(shufb|alignr|abs[bwd]|h(add|sub)(w|d|sw)|maddubsw|mulhrsw|sign[bwd]|blend(w|vb)|insr[bdq]"
    r"|extr[bdq]|min(sb|uw|ud|sd)|max(sb|uw|ud|sd)|test|muldq|mulld|mov[sz]x..|hminposuw|cmpeqq"
    r"|cmpgtq|cmp[ei]str[im])|round[sp][sd]|blendv?p[sd]|packusdw|dpp[sd]|mpsadbw|insertps"
    r"|extractps|movntdqa|crc32[bwlq]?|popcnt[wlq]?)\Z"
)
_V3_NAMES = re.compile(r"(mulx|pdep|pext|rorx|sarx|shlx|shrx|bzhi)[lq]?\Z|v(?!erw|err|mcall)")
_V3_REGISTERS = re.compile("%ymm")
_AVX512_REGISTERS = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])")
_BF16_NAMES = re.compile(r"vdpbf16ps|vcvtne2?ps2bf16")

# Arm Architecture Reference Manual: FEAT_I8MM, FEAT_DotProd, and FEAT_FP16, whose arithmetic is
# on registers or lanes of 16 bits, where the base only converts such numbers, and FEAT_LSE, which
# comes with these. What no level has is there as well: SVE's registers, BF16.
_I8MM = re.compile(r"(s|u|us)mmla\Z|(us|su)dot\Z")
_DOTPROD = re.compile(r"[su]dot\Z|(ld(add|clr|eor|set|smax)|cas|swp)[abhlp]*\Z")
_FP16 = re.compile(r"f(?!cvt|mov\b|csel).*[ \t{,](h\d+|v\d+\.[48]?h)\b")
_NEVER = re.compile(r".*[ \t{,](z|p)\d+\.|bf(dot|mmla|mlal[bt]|cvtn?2?)\b")

# zstd has some of its functions twice, and asks the processor which to take (its common/cpu.h).
ASKS_BY_ITSELF = re.compile(r"/zstd\.c\.o \.text\.\w+(_bmi2|_internal_fast(_c_loop)?)\Z")

LEVELS = {
    "amd64": ["", "v2", "v3", "avxvnni", "avx512", "avx512bf16"],
    "arm64": ["", "v8", "dotprod", "i8mm", "none"],
}
OBJDUMP = {"amd64": "objdump", "arm64": "aarch64-linux-gnu-objdump"}


def level(instruction: str, arch: str = "amd64") -> str:
    """The lowest level that has an instruction; empty for what every processor has."""
    return {"amd64": _level_amd64, "arm64": _level_arm64}[arch](instruction)


def _level_arm64(instruction: str) -> str:
    name = instruction.split(None, 1)[0]
    if _NEVER.match(instruction):
        return "none"
    if _I8MM.match(name):
        return "i8mm"
    return "dotprod" if _DOTPROD.match(name) or _FP16.match(instruction) else ""


def _level_amd64(instruction: str) -> str:
    name = instruction.split(None, 1)[0]
    if _BF16_NAMES.match(name):
        return "avx512bf16"
    if _AVX512_REGISTERS.search(instruction):
        return "avx512"
    if name == "{vex}":  # so that nobody takes it for AVX-512's of the same name
        return "avxvnni"
    if _V3_REGISTERS.search(instruction) or _V3_NAMES.match(name):
        return "v3"
    return "v2" if _V2.match(name) else ""


@dataclass(frozen=True)
class Part:
    """A piece of a program's code: addresses, the object and the section it came from."""

    start: int
    end: int
    object: str
    section: str
    lowest: str  # the level of upstream's own library

    @property
    def level(self) -> str:
        """The level whose library the piece came from; empty if from no such library."""
        if found := re.search(r"ggml-cpu-(\w+)\.a\(", self.object):
            return found[1]
        return self.lowest if "libggml-cpu.a(" in self.object else ""


def link(command: str, folder: Path, output: Path, arch: str) -> list[Part]:
    """Link a program once more, as `command` does, and return what it is made of."""
    assert " -o runtime " in command
    command = command.replace(" -o runtime ", f" -Wl,--print-map -o {output} ")
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = re.compile(r"\s*([0-9a-f]+) +[0-9a-f]+ +([0-9a-f]+) +\d+ +(\S.*):\((\.text[^)]*)\)")
    found = [match.groups() for line in done.stdout.splitlines() if (match := row.match(line))]
    return sorted(
        (
            Part(int(start, 16), int(start, 16) + int(size, 16), name, section, LEVELS[arch][1])
            for start, size, name, section in found
            if int(size, 16)
        ),
        key=lambda part: part.start,
    )


def instructions(program: Path, arch: str) -> Iterator[tuple[int, str]]:
    """Address and text of every instruction."""
    command = [OBJDUMP[arch], "-d", "--no-show-raw-insn", str(program)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in text.splitlines():
        if match := re.match(r"\s*([0-9a-f]+):\t(\S.*)", line):
            yield int(match[1], 16), match[2]


def misplaced(program: Path, parts: list[Part], arch: str) -> list[str]:
    """Instructions above the level of the part that they are in."""
    starts = [part.start for part in parts]
    wrong = []
    for address, text in instructions(program, arch):
        needed = level(text, arch)
        if not needed:
            continue
        part = parts[bisect.bisect_right(starts, address) - 1]
        own = part.level if address < part.end else ""
        if arch == "amd64" and ASKS_BY_ITSELF.search(f"{part.object} {part.section}"):
            own = "v3"
        if LEVELS[arch].index(needed) > LEVELS[arch].index(own):
            wrong.append(f"{part.object} {part.section}: {text}")
    return wrong


def external(archive: Path) -> set[str]:
    """The names that a static library defines for others."""
    command = ["nm", "--defined-only", "--extern-only", str(archive)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[2] for line in text.splitlines() if len(line.split()) == 3}


def taken_too_high(parts: list[Part], lowest: set[str]) -> list[str]:
    """Pieces out of a higher level's library that the lowest level has as well."""
    return [
        f"{part.object} {part.section}"
        for part in parts
        if part.level not in ("", part.lowest) and part.section.removeprefix(".text.") in lowest
    ]
