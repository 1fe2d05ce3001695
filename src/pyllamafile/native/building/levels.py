"""Lets several builds of the same kernels stand in one program, under names of their own.

A build step of CMakeLists.txt: from the objects of the first level it takes every external
name and writes, for each other level, a header that is included in front of all its sources and
renames them: ``#define ggml_vec_dot_q4_0_q8_0 ggml_vec_dot_q4_0_q8_0__v3``.

    python levels.py OUT_DIRECTORY LEVEL[=SOURCE,...]... -- OBJECT...

A level with sources has these alone, and everything else is the level's before it. That one learns
by ``BETTER`` what names of the better one are.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import lief

# Namespaces around the kernels that others have things in too.
SHARED_NAMESPACES = {"ggml", "cpu"}


def external_symbols(path: Path) -> Iterator[str]:
    """The names that an object file (ELF, Mach-O or COFF) defines for others, as C has them."""
    binary = lief.parse(path)
    if isinstance(binary, lief.ELF.Binary):
        outside = (lief.ELF.Symbol.BINDING.GLOBAL, lief.ELF.Symbol.BINDING.WEAK)
        yield from (str(s.name) for s in binary.symbols if s.binding in outside and s.shndx)
    elif isinstance(binary, lief.MachO.Binary):
        external = lief.MachO.Symbol.CATEGORY.EXTERNAL
        yield from (str(s.name)[1:] for s in binary.symbols if s.category == external)
    elif isinstance(binary, lief.COFF.Binary):
        yield from coff_symbols(path.read_bytes())
    else:
        raise ValueError(f"{path}: not an object file that can be read")


def coff_symbols(data: bytes) -> Iterator[str]:
    """The same for COFF (Microsoft's PE format, sections 3.3, 5.4 and 5.6).

    Not by lief, which has no name for a symbol whose name is the end of another string.
    """
    external = 2
    table, count = struct.unpack_from("<2I", data, 8)
    strings = table + 18 * count
    skip = 0
    for at in range(table, strings, 18):
        zeros, offset, _, section, _, storage, auxiliary = struct.unpack_from("<2IIhH2B", data, at)
        if skip:
            skip -= 1
            continue
        skip = auxiliary
        if storage == external and section > 0:
            start, room = (at, 8) if zeros else (strings + offset, len(data))
            yield data[start : start + room].split(b"\0", 1)[0].decode()


def identifier(symbol: str) -> str | None:
    """What to rename in the sources so that a symbol gets another name.

    Follows the Itanium C++ ABI, 5.1: ``_ZN4ggml3cpu6repack...`` is in a namespace ``repack``,
    ``_ZTV...`` is the virtual table of what follows. None for what is the standard library's, or
    has points in its name, which is no C then but the compiler's.
    """
    mangled = re.match(r"_Z(?:T[VISTvc]|GV)?N?[rVKRO]*", symbol)
    if not mangled:
        return symbol if symbol.isidentifier() else None
    at = mangled.end()
    while length := re.match(r"\d+", symbol[at:]):
        start = at + length.end()
        at = start + int(length[0])
        if symbol[start:at] not in SHARED_NAMESPACES:
            return symbol[start:at]
    return None


def header(identifiers: Mapping[str, str], better: str = "") -> str:
    """The header that renames everything for a level.

    Args:
        identifiers: The level that each is of.
        better: A level that has some of them for better processors.
    """
    lines = [f"#define {name} {name}__{level}" for name, level in sorted(identifiers.items())]
    if better:
        lines.append(f"#define BETTER(name) name##__{better}")
    return "\n".join(["#pragma once", *lines, ""])


def headers(levels: Iterable[str], objects: Iterable[Path]) -> dict[str, str]:
    """The headers by level.

    Args:
        levels: The names, each perhaps with its sources behind it.
        objects: Those of the first level.
    """
    by_source: dict[str, set[str]] = {}
    for path in objects:
        names = by_source.setdefault(re.sub(r"\.o(bj)?$", "", path.name), set())
        names |= {name for symbol in external_symbols(path) if (name := identifier(symbol))}
    whole, texts = "", {}
    for level in levels:
        name, _, sources = level.partition("=")
        own = {n for source in sources.split(",") if source for n in by_source[source]}
        if own:
            texts[whole] = header(dict.fromkeys(set().union(*by_source.values()), whole), name)
        else:
            whole = name
        of = {n: name if n in own else whole for names in by_source.values() for n in names}
        texts[name] = header(of)
    return texts


def main() -> None:
    """Write the headers."""
    split = sys.argv.index("--")
    folder, *levels = sys.argv[1:split]
    for level, text in headers(levels, map(Path, sys.argv[split + 1 :])).items():
        path = Path(folder, f"level-{level}.h")
        if not path.exists() or path.read_text() != text:  # or all kernels compile again
            path.write_text(text)


if __name__ == "__main__":
    main()
