"""The shaders of ggml-vulkan: compiled once for every GPU and system, and packed into one blob.

Upstream's generator calls a compiler for each of some 1,600 modules of SPIR-V, and writes tables
of them in C++. Here the compiler is glslang, which zig compiles, and the tables name no bytes:
``Tables`` makes a header in which they point into memory that the runtime fills from the blob.

The blob, uncompressed; numbers are little-endian:

    magic     8 bytes, `MAGIC`
    count     4 bytes, of the modules
    length    4 bytes, of the names
    sizes     4 bytes for each module
    names     each with a zero byte behind it, sorted; zero bytes up to a multiple of 4
    modules   one behind the other
"""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllamafile.errors import DamagedError, PyllamafileError
from pyllamafile.native.building import tools
from pyllamafile.native.building.source import (
    GLSLANG,
    SDIST_SHA256,
    llama_source,
    vendored,
)
from pyllamafile.progress import Progress, Step

FOLDER = Path(__file__).parent.parent / "shaders"

MAGIC = b"spirv\0\0\1"

# What glslang makes of glslc's words. It knows neither -O nor files of dependencies.
GLSLC = """\
for word; do
    shift
    case "$word" in
        -fshader-stage=compute) set -- "$@" -S comp; continue ;;
        --target-env=*) set -- "$@" --target-env "${word#*=}"; continue ;;
        -O | -MD | -MF | *.cpp.d) continue ;;
    esac
    set -- "$@" "$word"
done
"""
# glslc allows #include without being asked.
PREAMBLE = "-P#extension GL_GOOGLE_include_directive : require\n"

# What of a module only says where it comes from: instructions by their numbers, all of them in
# front of the first annotation. ggml-vulkan looks at none.
_SOURCE = {2, 3, 4, 5, 6, 7, 330}
# Those in front of it that stay: capabilities, extensions, the entry point and how it runs.
_HEAD = {10, 11, 14, 15, 16, 17, 331}

# The bytes depend on the library's version, which pyproject.toml pins. The window covers it all.
_LEVEL, _WINDOW = 22, 26
# One more when `strip` or `pack` make other bytes of the same modules, and when `Tables` does.
_PACKING, _TABLES = 1, 1


def key() -> str:
    """A digest over everything that determines the blob."""
    packing = f"{MAGIC!r} {_PACKING} {_LEVEL} {_WINDOW} {tools.version('zstandard')}"
    return hashlib.sha256(f"{_compilation()} {packing}".encode()).hexdigest()[:16]


def _compilation() -> str:
    """A digest over everything that determines the modules."""
    digest = hashlib.sha256("\0".join((SDIST_SHA256, GLSLANG.sha256, GLSLC, PREAMBLE)).encode())
    digest.update((FOLDER / "CMakeLists.txt").read_bytes())
    return digest.hexdigest()


def path() -> Path:
    """Where the blob is once it is built."""
    return tools.cache() / "shaders" / f"shaders-{key()}.zst"


@dataclass(frozen=True)
class Programs:
    """What drives the compilers: zig, CMake and Ninja."""

    zig: Path
    cmake: Path
    ninja: Path


def build(programs: Programs, jobs: int | None, tell: Progress) -> Path:
    """Compile the shaders into the cache, unless they are there already; returns the blob.

    A build that was ended goes on from there.

    Args:
        programs: What drives the compilers.
        jobs: How many compilers run at once; None for as many as there are processors.
        tell: Told about every step.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    with tools.lock("shaders", "compiles the shaders", tell):
        if path().is_file():
            return path()
        out = _configured(programs, tell)
        names = Tables.read(_generated(programs, out)).names
        _make(programs, out, "modules", jobs, tell)
        modules = {name: (out / "modules" / f"{name}.spv").read_bytes() for name in names}
        tell(Step("waiting", "packing the shaders"))
        packed = compress(pack({name: strip(module) for name, module in modules.items()}))
        tools.write(tools.folder("shaders") / path().name, packed)
        for folder in ("modules", "tables"):  # some 300 MB
            shutil.rmtree(out / folder)
    return path()


def tables(programs: Programs, tell: Progress) -> Path:
    """The folder with what takes the place of upstream's tables in a program.

    Raises:
        PyllamafileError: A tool is missing, a step failed, or upstream's tables are unlike those
            that this knows.
    """
    folder = _folder(programs) / "out" / "program"
    if folder.is_dir():
        return folder  # without waiting for whoever compiles the shaders
    with tools.lock("shaders", "compiles the shaders", tell):
        out = _configured(programs, tell)
        if not folder.is_dir():
            read = Tables.read(_generated(programs, out))
            draft = out / "program.draft"
            draft.mkdir(exist_ok=True)
            (draft / "ggml-vulkan-shaders.hpp").write_text(read.header())
            (draft / "shader-table.cpp").write_text(read.source())
            draft.rename(folder)
    return folder


def _configured(programs: Programs, tell: Progress) -> Path:
    """CMake's folder of the compiler and the generator; it stays for the next time."""
    llama = llama_source(progress=tell)
    glslang = vendored(GLSLANG, progress=tell)
    folder = _folder(programs)
    out = folder / "out"
    if (out / "build.ninja").is_file():
        return out
    scripts = folder / "tools"
    scripts.mkdir(parents=True, exist_ok=True)
    compiler = {name: [programs.zig, name, "-mcpu=baseline"] for name in ("cc", "c++")}
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CXX_FLAGS_RELEASE": "-O2 -DNDEBUG",
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_C_COMPILER": tools.script(scripts / "zig-cc", *compiler["cc"]),
        "CMAKE_CXX_COMPILER": tools.script(scripts / "zig-c++", *compiler["c++"]),
        "CMAKE_AR": tools.script(scripts / "zig-ar", programs.zig, "ar"),
        "CMAKE_RANLIB": tools.script(scripts / "zig-ranlib", programs.zig, "ranlib"),
        "CMAKE_MAKE_PROGRAM": programs.ninja,
        "GLSLANG": glslang,
        "SHADERS": llama / "ggml" / "src" / "ggml-vulkan" / "vulkan-shaders",
        "GLSLC": tools.script(
            scripts / "glslc",
            out / "glslang" / "StandAlone" / "glslang",
            *(PREAMBLE, "-V", "--quiet"),
            before=GLSLC,
        ),
    }
    configure = [str(programs.cmake), "-S", str(FOLDER), "-B", str(out), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    tools.run(configure, log="shaders", what="configuring the compiler of shaders")
    return out


def _folder(programs: Programs) -> Path:
    """Where the compiler and the modules are made, by what CMake holds on to."""
    began = f"{_compilation()} {programs} {tools.cache()} {FOLDER} {_TABLES}"
    name = f"shaders-{hashlib.sha256(began.encode()).hexdigest()[:8]}"
    return tools.cache() / "build" / name


def _make(programs: Programs, out: Path, what: str, jobs: int | None, tell: Progress) -> None:
    doing = "compiling the shaders"

    def step(line: str) -> None:
        if match := re.match(r"\[(\d+)/(\d+)\]", line):
            tell(Step("steps", doing, int(match[1]), int(match[2])))

    command = [str(programs.ninja), "-C", str(out), what, *(["-j", str(jobs)] if jobs else [])]
    tools.run(command, log="shaders", what=doing, append=True, each_line=step)


def _generated(programs: Programs, out: Path) -> Iterator[str]:
    """Upstream's tables without a byte of a module: its header, and a source for each shader."""
    _make(programs, out, "generator", None, lambda _: None)
    llama = llama_source()
    shaders = llama / "ggml" / "src" / "ggml-vulkan" / "vulkan-shaders"
    nothing = out / "nothing"
    generator = [str(out / "generator"), "--output-dir", str(nothing), "--target-hpp"]
    header, tables = out / "upstream.hpp", out / "upstream.cpp"
    _generate([*generator, str(header)])
    yield header.read_text()
    for source in sorted(shaders.glob("*.comp")):
        words = ["--glslc", "true", "--source", str(source), "--target-cpp", str(tables)]
        _generate([*generator, str(header), *words])
        yield tables.read_text()


def _generate(command: Sequence[str]) -> None:
    # It complains of every module that it was told to read back, and that nobody compiled.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise PyllamafileError(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")


@dataclass(frozen=True)
class Tables:
    """Upstream's tables of modules, as its generator writes them.

    Attributes:
        names: The modules, sorted.
        arrays: C++ declarators of tables of tables, with their initialisers.
    """

    names: tuple[str, ...]
    arrays: Mapping[str, str]

    @classmethod
    def read(cls, generated: Iterator[str]) -> Tables:
        """Read the generator's header and sources.

        Raises:
            DamagedError: They are unlike those that this knows.
        """
        header = next(generated)
        names = re.findall(r"^extern const unsigned char (\w+)_data\[\];$", header, re.M)
        lengths = re.findall(r"^extern const uint64_t (\w+)_len;$", header, re.M)
        arrays = re.findall(r"^extern (const (?:void \*|uint64_t) \w+(?:\[\d\])+);$", header, re.M)
        lines = [line for line in header.splitlines() if line.startswith("extern")]
        if names != lengths or len(lines) != 2 * len(names) + len(arrays) or not names:
            raise DamagedError("ggml-vulkan's generator writes a header that is not known here")
        found: dict[str, str] = {}
        for source in generated:
            found.update(
                re.findall(
                    r"^(const (?:void \*|uint64_t) \w+(?:\[\d\])+) = +(\{[^;]*\});$", source, re.M
                )
            )
        if sorted(found) != sorted(arrays):
            raise DamagedError("ggml-vulkan's generator writes tables that are not known here")
        return cls(tuple(sorted(names)), dict(sorted(found.items())))

    def header(self) -> str:
        """The header that ggml-vulkan includes."""
        lines = [
            "// Made by shaders.py.",
            "#pragma once",
            "",
            "#include <cstddef>",
            "#include <cstdint>",
            "",
            "struct shader_module {",
            "    const char * name;",
            "    const unsigned char * data;",
            "    uint64_t size;",
            "};",
            "",
            f"constexpr size_t SHADER_MODULES = {len(self.names)};",
            "extern shader_module shader_modules[SHADER_MODULES]; // by name; empty until filled",
            "void fill_shader_arrays();",
            "",
        ]
        for place, name in enumerate(self.names):
            module = f"shader_modules[{place}]"
            lines += [
                f"static constexpr const unsigned char * const & {name}_data = {module}.data;",
                f"static constexpr const uint64_t & {name}_len = {module}.size;",
            ]
        lines += [f"extern {_filled(declarator)};" for declarator in self.arrays]
        return "\n".join([*lines, ""])

    def source(self) -> str:
        """The source with the tables."""
        lines = [
            "// Made by shaders.py.",
            '#include "ggml-vulkan-shaders.hpp"',
            "",
            "#include <cstring>",
            "",
            "shader_module shader_modules[SHADER_MODULES] = {",
            *(f'    {{ "{name}", nullptr, 0 }},' for name in self.names),
            "};",
            "",
            *(f"{_filled(declarator)};" for declarator in self.arrays),
            "",
            "void fill_shader_arrays() {",
        ]
        for declarator, values in self.arrays.items():
            name = re.findall(r"\w+", declarator.split("[")[0])[-1]
            now = _filled(declarator).replace(name, "now", 1)
            lines.append(f"    {{ {now} = {values}; memcpy({name}, now, sizeof now); }}")
        return "\n".join([*lines, "}", ""])


def _filled(declarator: str) -> str:
    """The declarator of a table that is filled later."""
    return declarator.removeprefix("const ") if "uint64_t" in declarator else declarator


def strip(module: bytes) -> bytes:
    """A module of SPIR-V without names and sources, which only people read.

    Raises:
        DamagedError: It is none.
    """
    words = memoryview(module).cast("I") if len(module) % 4 == 0 else memoryview(b"")
    if len(words) < 5 or words[0] != 0x07230203:
        raise DamagedError("a shader was compiled into something else than SPIR-V")
    kept = bytearray(module[:20])
    at = 5
    while at < len(words):
        size, code = words[at] >> 16, words[at] & 0xFFFF
        if code not in _SOURCE and code not in _HEAD:
            break
        if size == 0:
            raise DamagedError("a shader was compiled into broken SPIR-V")
        if code in _HEAD:
            kept += words[at : at + size]
        at += size
    return bytes(kept) + bytes(words[at:])


def pack(modules: Mapping[str, bytes]) -> bytes:
    """The blob, uncompressed."""
    names = sorted(modules)
    listed = b"".join(name.encode() + b"\0" for name in names)
    listed += bytes(-len(listed) % 4)
    sizes = [len(modules[name]) for name in names]
    return b"".join(
        [
            MAGIC,
            struct.pack("<II", len(names), len(listed)),
            struct.pack(f"<{len(sizes)}I", *sizes),
            listed,
            *(modules[name] for name in names),
        ]
    )


def unpack(blob: bytes) -> dict[str, bytes]:
    """The modules of an uncompressed blob by their names.

    Raises:
        DamagedError: It is none, or cut.
    """
    try:
        count, length = struct.unpack_from("<II", blob, len(MAGIC))
        start = len(MAGIC) + 8 + 4 * count
        sizes = struct.unpack_from(f"<{count}I", blob, len(MAGIC) + 8)
        names = blob[start : start + length].decode().split("\0")[:count]
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedError(f"these are no shaders: {error}") from None
    at = start + length
    if blob[: len(MAGIC)] != MAGIC or len(names) != count or at + sum(sizes) != len(blob):
        raise DamagedError("these are no shaders, or not all of them")
    modules = {}
    for name, size in zip(names, sizes, strict=True):
        modules[name] = blob[at : at + size]
        at += size
    return modules


def compress(blob: bytes) -> bytes:
    """The blob as it is in a llamafile.

    xz makes it a fifth smaller. It is unpacked five times as slowly, and whoever starts waits.

    Raises:
        UnavailableError: zstandard is missing.
    """
    tools.package("zstandard")
    import zstandard  # of the extra `runtimes`

    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, source_size=len(blob), window_log=_WINDOW, enable_ldm=True
    )
    packed = zstandard.ZstdCompressor(compression_params=parameters).compress(blob)
    return bytes(packed)
