"""What a program with ggml-metal, for Macs, takes beside what every runtime takes.

It takes nothing of Apple's. llama.cpp's sources are compiled with declarations of our own, linked
with stubs that name symbols and libraries, and carry the kernels as text, which macOS compiles.

Upstream puts 34 such texts into a program, 5 MB, most of which is the same headers. Here they are
one compressed stream. Where upstream's code looks for them is zeros, which are no part of the file
and which `metal/texts.cpp` fills when a GPU is used.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyllamafile.errors import DamagedError
from pyllamafile.native.building import shaders, tools
from pyllamafile.native.building.shaders import Programs
from pyllamafile.native.building.source import SDIST_SHA256, llama_source
from pyllamafile.progress import Progress, Step

FOLDER = Path(__file__).parent.parent / "metal"
SDK = FOLDER / "sdk"  # in place of Apple's

# Where an include finds a file, below llama.cpp's folder.
_INCLUDED = ("ggml/src/ggml-metal/kernels", "ggml/src/ggml-metal", "ggml/src")
# One that upstream's CMake files write another way.
_INCLUDE = re.compile(r'(?:#include "(.+)"|__embed_(.+)__)')

_ASSEMBLY = """\
// Made by metal.py: room for the kernels' text, and the text itself.
#ifdef __APPLE__
#define NAME(name) _##name
#define ROOM .section __DATA,__bss,zerofill
#define CONSTANTS .section __TEXT,__const
#else
#define NAME(name) name
#define ROOM .bss
#define CONSTANTS .section .rodata
    .section .note.GNU-stack,"",%progbits
#endif

    ROOM
{room}

    CONSTANTS
{packed}
"""


def sources() -> dict[str, Path]:
    """What of ours determines such a program beside the runtime's own files, by name."""
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    named = {f"../metal/{path.relative_to(FOLDER).as_posix()}": path for path in files}
    made = (Path(shaders.__file__), Path(__file__))
    return {**named, **{f"../building/{path.name}": path for path in made}}


def settings(programs: Programs, tell: Progress) -> dict[str, Path]:
    """CMake's variables for such a program.

    Raises:
        PyllamafileError: A source can't be had, or is unlike those that this knows.
    """
    return {
        "CMAKE_PROJECT_runtime_INCLUDE": FOLDER / "project.cmake",
        "METAL": FOLDER,
        "METAL_TEXTS": packed_texts(tell),
    }


def packed_texts(tell: Progress) -> Path:
    """The folder of a source with the kernels' text and the room for it, made if need be.

    Raises:
        PyllamafileError: Upstream's sources are unlike those that this knows, or zstandard is
            missing.
    """
    made_by = hashlib.sha256(f"{SDIST_SHA256} {tools.version('zstandard')}".encode())
    made_by.update(Path(__file__).read_bytes() + Path(shaders.__file__).read_bytes())
    folder = tools.folder("build") / f"metal-texts-{made_by.hexdigest()[:8]}"
    if not folder.is_dir():
        source = llama_source(progress=tell)
        with tools.lock("metal-texts", "packs Metal's kernels", tell):
            if not folder.is_dir():
                tell(Step("waiting", "packing Metal's kernels"))
                with tempfile.TemporaryDirectory(prefix="metal-", dir=folder.parent) as scratch:
                    draft = Path(scratch) / "draft"
                    draft.mkdir()
                    content = texts(source)
                    packed = folder / "texts.zst"
                    blob = shaders.compress(b"".join(content.values()))
                    (draft / packed.name).write_bytes(blob)
                    (draft / "texts.S").write_text(_assembly(content, packed))
                    draft.rename(folder)
    return folder


def texts(source: Path) -> dict[str, bytes]:
    """The kernels' texts by the names that upstream's code has for them, headers in them.

    Args:
        source: llama.cpp's folder.

    Raises:
        DamagedError: It is unlike the one that this knows.
    """
    code = (source / "ggml" / "src" / "ggml-metal" / "ggml-metal-device.m").read_text()
    listed = re.search(r"#define GGML_METAL_LIBS((?:.*\\\n)+.*\n)", code)
    names = re.findall(r"X\(\w+,\s*(\w+)\)", listed[1] if listed else "")
    if not names:
        raise DamagedError("ggml-metal lists its kernels in a way that is not known here")
    return {
        name: "".join(f"{line}\n" for line in _lines(source, f"{name}.metal", set())).encode()
        for name in names
    }


def _lines(source: Path, name: str, seen: set[str]) -> Iterator[str]:
    """The lines of a file, with those of what it includes, each once."""
    if name in seen:
        return
    seen.add(name)
    path = next((path for place in _INCLUDED if (path := source / place / name).is_file()), None)
    if path is None:
        raise DamagedError(f"ggml-metal's kernels include {name}, which isn't there")
    for line in path.read_text().splitlines():
        if included := _INCLUDE.fullmatch(line.strip()):
            yield from _lines(source, included[1] or included[2], seen)
        elif line.strip() != "#pragma once":
            yield line


def _assembly(content: Mapping[str, bytes], packed: Path) -> str:
    room = (
        _named(f"ggml_metallib_{name}", f"    .space {len(text)}") for name, text in content.items()
    )
    return _ASSEMBLY.format(
        room=_named("kernel_texts", "\n".join(room)),
        packed=_named("packed_kernel_texts", f'    .incbin "{packed}"'),
    )


def _named(name: str, lines: str) -> str:
    """Lines of assembly with a name in front, and another one behind."""
    start, end = (f"    .globl NAME({name}_{at})\nNAME({name}_{at}):" for at in ("start", "end"))
    return f"{start}\n{lines}\n{end}"
